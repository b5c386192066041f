//! What the coordinator needs from the log, behind a trait so that it can be tested without one.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_log::batch::{BatchBuilder, records};
use alluvium_log::manifest::{Change, Rejection};
use alluvium_log::{AppendError, Isolation, Log, Partition, ReadError, TopicId};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::records::{EncodedRecord, OFFSETS_TOPIC};
use crate::broker::leader_endpoint;

/// Bytes asked for with one read while a partition is loaded.
const LOAD_READ_BYTES: usize = 4 << 20;
/// Cap of one decompressed batch of `__consumer_offsets`; the coordinator itself writes no compressed ones.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// Kafka's `offsets.topic.segment.bytes`: shown, without effect here.
const OFFSETS_SEGMENT_BYTES: &str = "104857600";

/// A topic as far as offsets are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicInfo {
    pub(crate) id: TopicId,
    pub(crate) partitions: u32,
}

/// Which partitions of `__consumer_offsets` this broker leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ownership {
    /// Partitions of the topic in all.
    pub(crate) partitions: u32,
    /// Partition to leader epoch.
    pub(crate) owned: BTreeMap<i32, i32>,
}

/// Where clients find the coordinator of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorEndpoint {
    pub(crate) node_id: i32,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A part of a partition, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) records: Vec<(Bytes, Option<Bytes>)>,
    pub(crate) next_offset: i64,
    /// Nothing was published behind it when it was read.
    pub(crate) is_last: bool,
}

/// Why the log did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EngineError {
    /// The partition is led by another broker, or in another epoch, or gone.
    #[error("not the leader of the partition")]
    NotLeader,
    /// The partition was granted to this broker, which is still recovering it.
    #[error("the partition is being recovered")]
    Recovering,
    /// This broker is stopping, or rejects the append for another reason.
    #[error("the append was rejected: {0}")]
    Rejected(String),
    /// Worth trying again.
    #[error("reading: {0}")]
    Unreadable(String),
}

/// The log as the coordinator sees it. `partition` is always one of `__consumer_offsets`.
pub(crate) trait Engine: Send + Sync + 'static {
    /// `None` when there is no such topic.
    fn topic(&self, name: &str) -> Option<TopicInfo>;

    fn topic_name(&self, id: &TopicId) -> Option<String>;

    /// `None` while the topic does not exist.
    fn ownership(&self) -> Option<Ownership>;

    /// Creates `__consumer_offsets`; done when it exists, whoever created it.
    fn create_offsets_topic(&self, partitions: u32) -> BoxFuture<'_, Result<(), String>>;

    /// The leader's address for clients of that listener.
    fn endpoint(&self, partition: i32, listener: &str) -> Option<CoordinatorEndpoint>;

    /// MUST fix the order of appends by the order of calls, and return without waiting; MUST refuse if the partition
    /// is not led here in this very epoch, for what the caller knows of it is of that epoch. The future MUST resolve
    /// to `Ok` only when the records are durable and published, and to an error only when they are not in the log and
    /// never will be, or when the next owner decides that; what is unknown otherwise stays pending.
    fn append(
        &self,
        partition: i32,
        epoch: i32,
        records: Vec<EncodedRecord>,
        now_ms: i64,
    ) -> Result<BoxFuture<'static, Result<(), EngineError>>, EngineError>;

    /// Published records from an offset on, or from the log start, while the partition is led here in this epoch.
    fn read(
        &self,
        partition: i32,
        epoch: i32,
        from: Option<i64>,
    ) -> BoxFuture<'_, Result<Chunk, EngineError>>;

    /// Resolves once it is proven that this broker led the partition, in that epoch, at some time after the call; false
    /// if it does not, or if that cannot be found out now.
    fn confirm_leadership(&self, partition: i32, epoch: i32) -> BoxFuture<'_, bool>;

    /// The same, and takes a little over a second if that saves a request to the store.
    fn await_leadership(&self, partition: i32, epoch: i32) -> BoxFuture<'_, bool>;

    /// Whether this broker may take for granted that it still leads what it led: it was proven a moment ago. Known
    /// without asking anybody.
    fn leased(&self) -> bool;

    /// Whether the partition is this broker's and cannot be recovered: damage that an operator has to mend.
    fn is_quarantined(&self, partition: i32) -> bool;

    /// High watermark of any topic's partition, when it is known here.
    fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64>;
}

/// The real log.
pub(crate) struct LogEngine {
    log: Log,
    replication_factor: i16,
}

impl LogEngine {
    pub(crate) fn new(log: Log, replication_factor: i16) -> LogEngine {
        LogEngine {
            log,
            replication_factor,
        }
    }

    /// The partition, if it is led here in this epoch. Between a change of the manifest and its effect on what is
    /// led, the one of another epoch may still be there: it is not the one that is asked for.
    fn partition(&self, partition: i32, epoch: i32) -> Result<Arc<Partition>, EngineError> {
        let manifest = self.log.manifest();
        let topic = manifest.topics.get(OFFSETS_TOPIC).ok_or(EngineError::NotLeader)?;
        let leader = manifest.leader(&topic.id, partition);
        leader
            .filter(|leader| (leader.incarnation, leader.leader_epoch) == (self.log.incarnation(), epoch))
            .ok_or(EngineError::NotLeader)?;
        self.log
            .partition(&topic.id, partition)
            .filter(|found| found.leader_epoch() == epoch)
            .ok_or(EngineError::Recovering)
    }

    /// Whether it is led here now. The stream may be ours and the partition another broker's since.
    fn leads(&self, partition: i32, epoch: i32) -> bool {
        self.partition(partition, epoch).is_ok_and(|p| !p.is_gone())
    }

    async fn read_chunk(&self, partition: i32, epoch: i32, from: Option<i64>) -> Result<Chunk, EngineError> {
        let partition = self.partition(partition, epoch)?;
        let watermarks = partition.watermarks();
        let from = from.unwrap_or(0).max(watermarks.log_start_offset);
        if from >= watermarks.high_watermark {
            return Ok(Chunk {
                next_offset: from,
                is_last: true,
                ..Chunk::default()
            });
        }
        // Control batches are skipped below; no transaction writes to this topic yet.
        let read = self
            .log
            .read(&partition, from, LOAD_READ_BYTES, Isolation::ReadUncommitted);
        let read = match read.await {
            Ok(read) => read,
            Err(ReadError::NotLeader) => return Err(EngineError::NotLeader),
            Err(error) => return Err(EngineError::Unreadable(error.to_string())),
        };
        let high_watermark = read.watermarks.high_watermark;
        let mut joined = BytesMut::with_capacity(read.chunks.iter().map(Bytes::len).sum());
        for chunk in &read.chunks {
            joined.extend_from_slice(chunk);
        }
        let mut chunk = split_batches(joined.freeze(), from)?;
        if chunk.next_offset <= from {
            return Err(EngineError::Unreadable(format!("no batch at offset {from}")));
        }
        chunk.is_last = chunk.next_offset >= high_watermark;
        Ok(chunk)
    }
}

/// The records of whole batches that lie one after the other, from an offset on.
fn split_batches(mut bytes: Bytes, from: i64) -> Result<Chunk, EngineError> {
    let mut chunk = Chunk {
        next_offset: from,
        ..Chunk::default()
    };
    while !bytes.is_empty() {
        let frame = BatchFrame::parse(&bytes).ok_or_else(|| {
            EngineError::Unreadable(format!("damaged batch at offset {}", chunk.next_offset))
        })?;
        let batch = bytes.split_to(frame.length);
        if !frame.is_control {
            let read = records(&batch, BATCH_BYTES_MAX);
            let read = read.map_err(|error| EngineError::Unreadable(error.to_string()))?;
            for record in read {
                // Records without a key mean nothing in a compacted topic.
                if let (true, Some(key)) = (record.offset >= from, record.key) {
                    chunk.records.push((key, record.value));
                }
            }
        }
        chunk.next_offset = chunk.next_offset.max(frame.last_offset.saturating_add(1));
    }
    Ok(chunk)
}

/// The few fields of a batch header that are needed to walk batches.
struct BatchFrame {
    length: usize,
    last_offset: i64,
    is_control: bool,
}

impl BatchFrame {
    const CONTROL_BIT: i16 = 0x20;

    fn parse(bytes: &[u8]) -> Option<BatchFrame> {
        let base_offset = i64::from_be_bytes(bytes.get(0..8)?.try_into().ok()?);
        let length = i32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
        let attributes = i16::from_be_bytes(bytes.get(21..23)?.try_into().ok()?);
        let last_delta = i32::from_be_bytes(bytes.get(23..27)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?.checked_add(12)?;
        (length >= 61 && length <= bytes.len()).then_some(BatchFrame {
            length,
            last_offset: base_offset.checked_add(i64::from(last_delta))?,
            is_control: attributes & BatchFrame::CONTROL_BIT != 0,
        })
    }
}

impl From<AppendError> for EngineError {
    fn from(error: AppendError) -> EngineError {
        match error {
            AppendError::NotLeader | AppendError::UnknownPartition => EngineError::NotLeader,
            other => EngineError::Rejected(other.to_string()),
        }
    }
}

impl Engine for LogEngine {
    fn confirm_leadership(&self, partition: i32, epoch: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.log.confirm_leadership().await.is_ok() && self.leads(partition, epoch) })
    }

    fn await_leadership(&self, partition: i32, epoch: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.log.await_leadership().await.is_ok() && self.leads(partition, epoch) })
    }

    fn leased(&self) -> bool {
        self.log.leased()
    }

    fn is_quarantined(&self, partition: i32) -> bool {
        let manifest = self.log.manifest();
        let topic = manifest.topics.get(OFFSETS_TOPIC);
        topic.is_some_and(|topic| self.log.is_quarantined(&topic.id, partition))
    }

    fn topic(&self, name: &str) -> Option<TopicInfo> {
        let manifest = self.log.manifest();
        manifest.topics.get(name).map(|topic| TopicInfo {
            id: topic.id,
            partitions: topic.partitions,
        })
    }

    fn topic_name(&self, id: &TopicId) -> Option<String> {
        self.log
            .manifest()
            .topic_by_id(id)
            .map(|(name, _)| name.to_owned())
    }

    fn ownership(&self) -> Option<Ownership> {
        let manifest = self.log.manifest();
        let topic = manifest.topics.get(OFFSETS_TOPIC)?;
        let mut owned = BTreeMap::new();
        for partition in 0..i32::try_from(topic.partitions).unwrap_or(i32::MAX) {
            if let Some(leader) = manifest.leader(&topic.id, partition)
                && leader.incarnation == self.log.incarnation()
            {
                owned.insert(partition, leader.leader_epoch);
            }
        }
        Some(Ownership {
            partitions: topic.partitions,
            owned,
        })
    }

    fn create_offsets_topic(&self, partitions: u32) -> BoxFuture<'_, Result<(), String>> {
        let configs = [
            ("cleanup.policy", "compact"),
            ("compression.type", "producer"),
            ("segment.bytes", OFFSETS_SEGMENT_BYTES),
        ];
        let change = Change::CreateTopic {
            name: OFFSETS_TOPIC.to_owned(),
            partitions,
            replication_factor: self.replication_factor,
            configs: configs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        async move {
            match self.log.change(vec![change]).await.pop() {
                Some(Ok(_) | Err(Rejection::TopicExists(_))) => Ok(()),
                Some(Err(rejection)) => Err(rejection.to_string()),
                None => Err("the change was not answered".to_owned()),
            }
        }
        .boxed()
    }

    fn endpoint(&self, partition: i32, listener: &str) -> Option<CoordinatorEndpoint> {
        let manifest = self.log.manifest();
        let topic = manifest.topics.get(OFFSETS_TOPIC)?;
        let leader = manifest.leader(&topic.id, partition)?;
        // Of a broker that is gone the partitions will be somebody else's soon: better to ask again.
        let (stream, endpoint) = leader_endpoint(&manifest, &leader, listener)?;
        stream.is_live().then(|| CoordinatorEndpoint {
            node_id: leader.node_id,
            host: endpoint.host.clone(),
            port: endpoint.port,
        })
    }

    fn append(
        &self,
        partition: i32,
        epoch: i32,
        records: Vec<EncodedRecord>,
        now_ms: i64,
    ) -> Result<BoxFuture<'static, Result<(), EngineError>>, EngineError> {
        let partition = self.partition(partition, epoch)?;
        let mut batch = BatchBuilder::new();
        for record in &records {
            batch.push(now_ms, Some(&record.key), record.value.as_deref(), &[]);
        }
        let pending = self.log.append(&partition, batch.build(), false)?;
        Ok(async move { pending.published().await.map(|_| ()).map_err(EngineError::from) }.boxed())
    }

    fn read(
        &self,
        partition: i32,
        epoch: i32,
        from: Option<i64>,
    ) -> BoxFuture<'_, Result<Chunk, EngineError>> {
        self.read_chunk(partition, epoch, from).boxed()
    }

    fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        let id = self.log.manifest().topics.get(topic)?.id;
        self.log
            .partition(&id, partition)
            .map(|partition| partition.watermarks().high_watermark)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::groups::records::{LogRecord, OffsetValue};

    #[test]
    fn a_damaged_batch_is_an_error_and_never_a_panic() {
        for length in 0..80 {
            for fill in [0x00, 0x7f, 0xff] {
                let bytes = Bytes::from(vec![fill; length]);
                if length > 0 {
                    assert!(split_batches(bytes, 0).is_err(), "{length} bytes of {fill:#x}");
                }
            }
        }
    }

    #[test]
    fn batch_frames_are_read_from_their_fixed_places() {
        let mut bytes = vec![0u8; 70];
        bytes[0..8].copy_from_slice(&40i64.to_be_bytes());
        bytes[8..12].copy_from_slice(&49i32.to_be_bytes());
        bytes[21..23].copy_from_slice(&0x20i16.to_be_bytes());
        bytes[23..27].copy_from_slice(&2i32.to_be_bytes());
        let frame = BatchFrame::parse(&bytes).unwrap();
        assert_eq!(
            (frame.length, frame.last_offset, frame.is_control),
            (61, 42, true)
        );
        // A control batch is stepped over.
        let chunk = split_batches(Bytes::from(bytes[..61].to_vec()), 40).unwrap();
        assert_eq!((chunk.records.len(), chunk.next_offset), (0, 43));
    }

    /// Every commit is a record, and a coordinator that takes a partition over reads all that is there.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_partition_with_very_many_commits_is_read_as_a_few() {
        const COMMITS: i64 = 200_000;
        let settings = [
            ("offsets.topic.num.partitions", "1"),
            ("merge.interval.ms", "1000"),
            ("log.cleaner.backoff.ms", "100"),
        ];
        let broker = crate::testing::broker(&settings).await;
        let (log, mut registry) = (broker.log.clone(), Registry::default());
        let options = broker.config.settings.compaction.unwrap();
        crate::compaction::start(&log, &broker.config, options, &mut registry).unwrap();
        let engine = LogEngine::new(log.clone(), 1);
        let topic = Change::CreateTopic {
            name: "t".into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        log.change(vec![topic]).await.remove(0).unwrap();
        engine.create_offsets_topic(1).await.unwrap();
        let id = engine.topic("t").unwrap().id;
        let epoch = engine.ownership().unwrap().owned[&0];
        let topic = engine.topic(OFFSETS_TOPIC).unwrap().id;
        let now_ms = broker.now_ms();
        let commit = |group: &str, offset: i64| LogRecord::Offset {
            group: group.into(),
            topic: "t".into(),
            partition: 0,
            value: (offset >= 0).then(|| OffsetValue {
                offset,
                leader_epoch: -1,
                metadata: String::new(),
                commit_timestamp_ms: now_ms,
                expire_timestamp_ms: None,
                topic_id: Some(id),
            }),
        };
        let append = |record: LogRecord| {
            let records = vec![record.encode().unwrap()];
            loop {
                match engine.append(0, epoch, records.clone(), now_ms) {
                    Ok(pending) => return pending,
                    Err(EngineError::Recovering) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        };
        append(commit("other", 7)).await.unwrap();
        append(commit("gone", 7)).await.unwrap();
        append(commit("gone", -1)).await.unwrap();
        for offset in 0..COMMITS {
            let pending = append(commit("g", offset));
            if offset % 1_000 == 999 {
                pending.await.unwrap();
            }
        }
        let partition = log.partition(&topic, 0).unwrap();
        let before = partition.watermarks().high_watermark;
        assert_eq!(before, COMMITS + 3);
        let started = tokio::time::Instant::now();
        while partition.size_bytes() > 3 << 20 {
            assert!(
                started.elapsed().as_secs() < 120,
                "{} bytes",
                partition.size_bytes()
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let (mut next, mut read, mut newest) = (None, 0, BTreeMap::new());
        loop {
            let chunk = engine.read(0, epoch, next).await.unwrap();
            read += chunk.records.len();
            for (key, value) in chunk.records {
                if let Some(LogRecord::Offset { group, value, .. }) =
                    LogRecord::decode(&key, value.as_deref()).unwrap()
                {
                    newest.insert(group, value.map(|v| v.offset));
                }
            }
            next = Some(chunk.next_offset);
            if chunk.is_last {
                break;
            }
        }
        let expected = [("g", Some(COMMITS - 1)), ("gone", None), ("other", Some(7))];
        assert_eq!(
            newest,
            expected.map(|(group, offset)| (group.to_owned(), offset)).into()
        );
        assert!(read < COMMITS as usize / 10, "{read} records of {COMMITS}");
        assert_eq!(next, Some(before));
    }
}
