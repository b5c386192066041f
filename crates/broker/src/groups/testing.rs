//! An in-memory log, and groups in it, for tests of the coordinator and its handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use alluvium_log::TopicId;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_wire::JoinGroupRequest;
use kafka_wire::join_group_request::JoinGroupRequestProtocol;
use kafka_wire_core::{ApiVersion, BytesMut, KafkaEncode, StrBytes};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::coordinator::Inner;
use super::engine::{Chunk, CoordinatorEndpoint, Engine, EngineError, Ownership, TopicInfo};
use super::records::{EncodedRecord, OFFSETS_TOPIC};
use super::{Commit, Coordinator, Join, Limits, OffsetToCommit, Options, Protocol, Sync};
use crate::broker::RequestContext;

/// How long it takes until leadership is proven without a look at the store.
pub(crate) const NEXT_PROOF: Duration = Duration::from_secs(1);

/// What happens to the next appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appends {
    Publish,
    /// They stay under way until the mode changes.
    Hold,
    /// They fail; nothing gets into the log.
    Fail,
}

#[derive(Debug, Default)]
struct Stored {
    topics: BTreeMap<String, TopicInfo>,
    owned: BTreeMap<i32, i32>,
    records: BTreeMap<i32, Vec<(Bytes, Option<Bytes>)>>,
    high_watermarks: BTreeMap<(String, i32), i64>,
    deposed: bool,
    unleased: bool,
    recovering: BTreeSet<i32>,
    quarantined: BTreeSet<i32>,
}

impl Stored {
    fn led(&self, partition: i32, epoch: i32) -> Result<(), EngineError> {
        match self.owned.get(&partition) {
            Some(granted) if *granted != epoch => Err(EngineError::NotLeader),
            Some(_) if self.recovering.contains(&partition) => Err(EngineError::Recovering),
            Some(_) => Ok(()),
            None => Err(EngineError::NotLeader),
        }
    }
}

/// A log in memory whose appends can be held back or failed.
#[derive(Debug)]
pub(crate) struct MemoryEngine {
    stored: Arc<Mutex<Stored>>,
    mode: watch::Sender<Appends>,
    pub(crate) appends: AtomicI64,
    /// Reads wait while this is true.
    pub(crate) reads_held: watch::Sender<bool>,
    refuse_at_once: AtomicI64,
    /// Proofs of leadership that cost a look at the store.
    pub(crate) confirmations: AtomicI64,
}

impl MemoryEngine {
    /// Another broker took over; only a look at the store tells.
    pub(crate) fn depose(&self) {
        self.stored.lock().deposed = true;
    }

    /// For a while nothing proved that this broker is still the leader, or now it did.
    pub(crate) fn lease(&self, held: bool) {
        self.stored.lock().unleased = !held;
    }

    /// A partition that is owned turns out to be damaged.
    pub(crate) fn quarantine(&self, partition: i32) {
        let mut stored = self.stored.lock();
        stored.recovering.insert(partition);
        stored.quarantined.insert(partition);
    }

    pub(crate) fn new() -> MemoryEngine {
        MemoryEngine {
            stored: Arc::default(),
            mode: watch::Sender::new(Appends::Publish),
            appends: AtomicI64::new(0),
            reads_held: watch::Sender::new(false),
            refuse_at_once: AtomicI64::new(0),
            confirmations: AtomicI64::new(0),
        }
    }

    pub(crate) fn set(&self, mode: Appends) {
        self.mode.send_replace(mode);
    }

    /// The next append is refused by the call itself.
    pub(crate) fn refuse_next(&self) {
        self.refuse_at_once.store(1, Ordering::SeqCst);
    }

    pub(crate) fn add_topic(&self, name: &str, partitions: u32) -> TopicId {
        let id = TopicId::new_v4();
        self.stored
            .lock()
            .topics
            .insert(name.to_owned(), TopicInfo { id, partitions });
        id
    }

    pub(crate) fn remove_topic(&self, name: &str) {
        self.stored.lock().topics.remove(name);
    }

    pub(crate) fn own(&self, partition: i32, epoch: Option<i32>) {
        let mut stored = self.stored.lock();
        match epoch {
            Some(epoch) => stored.owned.insert(partition, epoch),
            None => stored.owned.remove(&partition),
        };
    }

    /// Whether a partition that is owned is still being recovered.
    pub(crate) fn recover(&self, partition: i32, under_way: bool) {
        let mut stored = self.stored.lock();
        match under_way {
            true => stored.recovering.insert(partition),
            false => stored.recovering.remove(&partition),
        };
    }

    pub(crate) fn set_high_watermark(&self, topic: &str, partition: i32, offset: i64) {
        self.stored
            .lock()
            .high_watermarks
            .insert((topic.to_owned(), partition), offset);
    }

    /// Everything that was published, oldest first within a partition.
    pub(crate) fn published(&self) -> Vec<(Bytes, Option<Bytes>)> {
        self.stored.lock().records.values().flatten().cloned().collect()
    }
}

impl Engine for MemoryEngine {
    fn confirm_leadership(&self, _partition: i32, _epoch: i32) -> BoxFuture<'_, bool> {
        self.confirmations.fetch_add(1, Ordering::SeqCst);
        let led = !self.stored.lock().deposed;
        Box::pin(async move { led })
    }

    fn await_leadership(&self, _partition: i32, _epoch: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            tokio::time::sleep(NEXT_PROOF).await;
            !self.stored.lock().deposed
        })
    }

    fn leased(&self) -> bool {
        !self.stored.lock().unleased
    }

    fn is_quarantined(&self, partition: i32) -> bool {
        self.stored.lock().quarantined.contains(&partition)
    }

    fn topic(&self, name: &str) -> Option<TopicInfo> {
        self.stored.lock().topics.get(name).copied()
    }

    fn topic_name(&self, id: &TopicId) -> Option<String> {
        let stored = self.stored.lock();
        stored
            .topics
            .iter()
            .find(|(_, topic)| topic.id == *id)
            .map(|(name, _)| name.clone())
    }

    fn ownership(&self) -> Option<Ownership> {
        let stored = self.stored.lock();
        let topic = stored.topics.get(OFFSETS_TOPIC)?;
        Some(Ownership {
            partitions: topic.partitions,
            owned: stored.owned.clone(),
        })
    }

    fn create_offsets_topic(&self, partitions: u32) -> BoxFuture<'_, Result<(), String>> {
        self.add_topic(OFFSETS_TOPIC, partitions);
        for partition in 0..i32::try_from(partitions).unwrap() {
            self.own(partition, Some(0));
        }
        std::future::ready(Ok(())).boxed()
    }

    fn endpoint(&self, partition: i32, _listener: &str) -> Option<CoordinatorEndpoint> {
        let stored = self.stored.lock();
        stored.owned.get(&partition)?;
        Some(CoordinatorEndpoint {
            node_id: 7,
            host: "localhost".to_owned(),
            port: 9092,
        })
    }

    fn append(
        &self,
        partition: i32,
        epoch: i32,
        records: Vec<EncodedRecord>,
        _now_ms: i64,
    ) -> Result<BoxFuture<'static, Result<(), EngineError>>, EngineError> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        if self.refuse_at_once.swap(0, Ordering::SeqCst) == 1 {
            return Err(EngineError::NotLeader);
        }
        self.stored.lock().led(partition, epoch)?;
        let mut mode = self.mode.subscribe();
        let stored = self.stored.clone();
        Ok(async move {
            let decided = mode.wait_for(|mode| *mode != Appends::Hold).await;
            let decided = decided.map(|mode| *mode).unwrap_or(Appends::Fail);
            if decided == Appends::Fail {
                return Err(EngineError::NotLeader);
            }
            let plain = |record: EncodedRecord| (Bytes::from(record.key), record.value.map(Bytes::from));
            stored
                .lock()
                .records
                .entry(partition)
                .or_default()
                .extend(records.into_iter().map(plain));
            Ok(())
        }
        .boxed())
    }

    fn read(
        &self,
        partition: i32,
        epoch: i32,
        from: Option<i64>,
    ) -> BoxFuture<'_, Result<Chunk, EngineError>> {
        /// Small, so that loading takes several reads.
        const AT_ONCE: usize = 2;
        async move {
            let mut held = self.reads_held.subscribe();
            let _ = held.wait_for(|held| !held).await;
            let stored = self.stored.lock();
            stored.led(partition, epoch)?;
            let all = stored
                .records
                .get(&partition)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let start = usize::try_from(from.unwrap_or(0)).unwrap();
            let end = (start + AT_ONCE).min(all.len());
            Ok(Chunk {
                records: all[start..end].to_vec(),
                next_offset: i64::try_from(end).unwrap(),
                is_last: end == all.len(),
            })
        }
        .boxed()
    }

    fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        self.stored
            .lock()
            .high_watermarks
            .get(&(topic.to_owned(), partition))
            .copied()
    }
}

/// Kafka's defaults, but with a short initial delay.
pub(crate) fn limits() -> Limits {
    Limits {
        initial_rebalance_delay_ms: 3_000,
        session_timeout_min_ms: 6_000,
        session_timeout_max_ms: 1_800_000,
        group_max_size: 100,
        offset_metadata_max: 4_096,
        offsets_retention_ms: 7 * 24 * 3_600_000,
        append_max_bytes: 1 << 20,
    }
}

/// A coordinator on a log in memory, with topics `events` (3 partitions) and `other` (1).
pub(crate) struct Fixture {
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) registry: Registry,
    pub(crate) wall_ms: Arc<AtomicI64>,
}

impl Fixture {
    pub(crate) fn without_topic() -> Fixture {
        let engine = Arc::new(MemoryEngine::new());
        engine.add_topic("events", 3);
        engine.add_topic("other", 1);
        Fixture::on(engine)
    }

    pub(crate) async fn loaded() -> Fixture {
        let fixture = Fixture::without_topic();
        fixture.inner.find("any", "PLAINTEXT").await.unwrap();
        fixture.settled().await;
        fixture
    }

    /// Another coordinator on the same log, as after a restart.
    pub(crate) fn on(engine: Arc<MemoryEngine>) -> Fixture {
        let mut registry = Registry::default();
        let options = Options {
            limits: limits(),
            offsets_partitions: 5,
            expire_interval: Duration::from_secs(600),
        };
        let wall_ms = Arc::new(AtomicI64::new(1_700_000_000_000));
        let clock = {
            let wall_ms = wall_ms.clone();
            Arc::new(move || wall_ms.load(Ordering::SeqCst))
        };
        let coordinator = Coordinator::with_engine(engine.clone(), options, clock, &mut registry);
        Fixture {
            engine,
            inner: coordinator.inner.clone(),
            registry,
            wall_ms,
        }
    }

    /// Waits until everything is loaded. Time is paused in tests, so this costs none.
    pub(crate) async fn settled(&self) {
        while self.inner.list().is_err() {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn topic_id(&self, name: &str) -> TopicId {
        self.inner.topic(name).unwrap().id
    }

    pub(crate) fn context(&self, api_version: i16) -> RequestContext {
        RequestContext {
            client_id: "client".into(),
            client_host: "/127.0.0.1".into(),
            listener: "PLAINTEXT".into(),
            api_version,
        }
    }
}

/// Fails when a response cannot be written in that version.
pub(crate) fn encodes<T: KafkaEncode + std::fmt::Debug>(response: &T, version: i16) {
    let mut buffer = BytesMut::new();
    let encoded = response.encode_into(&mut buffer, ApiVersion::new(version));
    assert!(encoded.is_ok(), "version {version}: {encoded:?} for {response:?}");
}

/// A `ConsumerProtocolSubscription` of version 0.
pub(crate) fn subscription(topics: &[&str]) -> Bytes {
    let mut bytes = vec![0, 0];
    bytes.extend_from_slice(&u32::try_from(topics.len()).unwrap().to_be_bytes());
    for topic in topics {
        bytes.extend_from_slice(&u16::try_from(topic.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(topic.as_bytes());
    }
    bytes.extend_from_slice(&(-1i32).to_be_bytes());
    Bytes::from(bytes)
}

pub(crate) fn join_request(group: &str, member: &str) -> JoinGroupRequest {
    let mut request = JoinGroupRequest::default();
    request.group_id = StrBytes::from(group);
    request.member_id = StrBytes::from(member);
    request.session_timeout_ms = 10_000;
    request.rebalance_timeout_ms = 60_000;
    request.protocol_type = StrBytes::from("consumer");
    let mut protocol = JoinGroupRequestProtocol::default();
    protocol.name = StrBytes::from("range");
    protocol.metadata = subscription(&["events"]);
    request.protocols.push(protocol);
    request
}

/// A join of a dynamic member whose first request gets it in.
pub(crate) fn join(member: &str) -> Join {
    Join {
        member_id: member.to_owned(),
        instance_id: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![Protocol {
            name: "range".to_owned(),
            metadata: subscription(&["events"]),
        }],
        requires_known_member_id: false,
        supports_skipping_assignment: false,
        unique: uuid::Uuid::new_v4(),
    }
}

/// The sync of a leader that assigns the same to everybody.
pub(crate) fn leader_sync(member: &str, generation: i32, members: &BTreeSet<String>) -> Sync {
    Sync {
        member_id: member.to_owned(),
        instance_id: None,
        generation,
        protocol_type: None,
        protocol: None,
        assignments: members
            .iter()
            .map(|id| (id.clone(), Bytes::from_static(b"assigned")))
            .collect(),
    }
}

/// The only member of a group after its JoinGroup.
pub(crate) async fn joined(fixture: &Fixture, group: &str) -> String {
    fixture.inner.join(group, join("")).await.member_id
}

/// The only member of a stable group.
pub(crate) async fn stable(fixture: &Fixture, group: &str) -> String {
    let reply = fixture.inner.join(group, join("")).await;
    let members = [reply.member_id.clone()].into();
    fixture
        .inner
        .sync(group, leader_sync(&reply.member_id, reply.generation, &members))
        .await;
    reply.member_id
}

/// A commit outside group management, of partition 0 of `events`.
pub(crate) fn simple_commit(fixture: &Fixture, offset: i64) -> Commit {
    Commit {
        member_id: String::new(),
        instance_id: None,
        generation: -1,
        retention_ms: None,
        names_missing_group: true,
        offsets: vec![OffsetToCommit {
            topic: "events".to_owned(),
            topic_id: fixture.topic_id("events"),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
        }],
    }
}

pub(crate) async fn commit_simple(fixture: &Fixture, group: &str, offset: i64) {
    let codes = fixture.inner.commit(group, simple_commit(fixture, offset)).await;
    assert_eq!(codes, Ok(vec![crate::errors::ErrorCode::None]));
}
