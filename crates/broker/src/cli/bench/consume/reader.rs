//! Reads partitions from their leaders and hands whole batches on, through failures and moves of leaders.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alluvium_log::batch::BatchHeader;
use bytes::BytesMut;
use futures::future::try_join_all;
use kafka_wire::FetchRequest;
use parking_lot::Mutex;

use super::super::Stop;
use super::super::meter::Meter;
use super::answer::{Batches, FetchedPartition, VERSION_MAX, VERSION_MIN, walk};
use super::session::{FetchLimits, FetchSession};
use crate::cli::client::{
    ANSWER_BYTES_MAX, ANSWER_PATIENCE, Client, ClientError, Cluster, RETRY_PAUSE, discover, refused,
};

/// Takes what a [`Reader`] reads.
pub(in super::super) trait Sink: Send + Sync {
    /// A whole batch, exactly its bytes. `position` is the offset that was asked for: records before it do not count.
    fn batch(&self, batch: Arrived<'_>) -> Result<(), ClientError>;
}

/// A batch that was read.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Arrived<'a> {
    pub(in super::super) partition: usize,
    pub(in super::super) header: &'a BatchHeader,
    pub(in super::super) bytes: &'a [u8],
    pub(in super::super) position: i64,
    /// Records from `position` on.
    pub(in super::super) records: u64,
    /// When the first bytes of the answer were there.
    pub(in super::super) first: Instant,
    /// When all of it was.
    pub(in super::super) whole: Instant,
}

/// When readers are done, whatever their partitions hold; shared by those of a run.
#[derive(Debug)]
pub(in super::super) struct Goal {
    stop: Stop,
    until: Option<Instant>,
    records_max: u64,
    records: AtomicU64,
}

impl Goal {
    /// Stops at any of these.
    pub(in super::super) fn new(stop: Stop, until: Option<Instant>, records_max: Option<u64>) -> Arc<Goal> {
        Arc::new(Goal {
            stop,
            until,
            records_max: records_max.unwrap_or(u64::MAX),
            records: AtomicU64::new(0),
        })
    }

    fn is_reached(&self) -> bool {
        self.stop.is_set()
            || self.records.load(Ordering::Relaxed) >= self.records_max
            || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// What readers have in common.
#[derive(Clone, Debug)]
pub(in super::super) struct ReadPlan {
    pub(in super::super) bootstrap: Vec<Arc<str>>,
    pub(in super::super) topic: String,
    pub(in super::super) limits: FetchLimits,
    pub(in super::super) patience: Duration,
    /// Partitions are done at these offsets; without them never.
    pub(in super::super) ends: Option<Vec<i64>>,
}

/// One consumer.
pub(in super::super) struct Reader<S> {
    plan: Arc<ReadPlan>,
    goal: Arc<Goal>,
    meter: Arc<Meter>,
    sink: S,
    /// The next offset of each partition, kept across connections.
    positions: BTreeMap<i32, AtomicI64>,
    /// When something was answered last.
    progress: Mutex<Instant>,
}

impl<S: Sink> Reader<S> {
    /// Reads these partitions from these offsets.
    pub(in super::super) fn new(
        plan: Arc<ReadPlan>,
        goal: Arc<Goal>,
        meter: Arc<Meter>,
        sink: S,
        positions: impl IntoIterator<Item = (i32, i64)>,
    ) -> Reader<S> {
        Reader {
            plan,
            goal,
            meter,
            sink,
            positions: positions
                .into_iter()
                .map(|(partition, offset)| (partition, AtomicI64::new(offset)))
                .collect(),
            progress: Mutex::new(Instant::now()),
        }
    }

    /// Reads until the goal or every end is reached. A first connection that fails is an error.
    pub(in super::super) async fn run(&self, mut cluster: Cluster) -> Result<(), ClientError> {
        *self.progress.lock() = Instant::now();
        loop {
            let mut by_leader: BTreeMap<i32, (Arc<str>, Vec<i32>)> = BTreeMap::new();
            let mut has_leaders = true;
            for partition in self.positions.keys().copied() {
                match cluster.leader(partition as usize) {
                    Some((node, address)) => {
                        let of_node = by_leader
                            .entry(node)
                            .or_insert_with(|| (address.clone(), Vec::new()));
                        of_node.1.push(partition);
                    }
                    None => has_leaders = false,
                }
            }
            let failure = if has_leaders {
                let fetches = by_leader
                    .values()
                    .map(|(address, partitions)| self.fetch_from(address, partitions));
                match try_join_all(fetches).await {
                    Ok(_) => return Ok(()),
                    Err(failure) => failure,
                }
            } else {
                ClientError::Other("a partition has no leader".to_owned())
            };
            if has_leaders && !failure.is_retriable() {
                return Err(failure);
            }
            self.meter.add_error(Instant::now(), 1);
            self.check_patience(&failure.to_string())?;
            tokio::time::sleep(RETRY_PAUSE).await;
            let addresses: Vec<_> = cluster
                .brokers
                .values()
                .chain(&self.plan.bootstrap)
                .cloned()
                .collect();
            if let Ok(found) = discover(&addresses, &self.plan.topic).await {
                cluster = found;
            }
        }
    }

    fn check_patience(&self, why: &str) -> Result<(), ClientError> {
        if self.progress.lock().elapsed() <= self.plan.patience || self.goal.is_reached() {
            return Ok(());
        }
        Err(ClientError::Other(format!(
            "nothing could be read for {} s: {why}; --patience sets how long to wait",
            self.plan.patience.as_secs()
        )))
    }

    /// Fetches from one leader until the goal or the end of its partitions is reached.
    async fn fetch_from(&self, address: &Arc<str>, partitions: &[i32]) -> Result<(), ClientError> {
        if self.goal.is_reached() {
            return Ok(());
        }
        let plan = &*self.plan;
        let mut client = Client::connect(address).await?;
        let version = client
            .versions()
            .pick::<FetchRequest>(address, VERSION_MIN, VERSION_MAX)?;
        let offsets = partitions
            .iter()
            .filter_map(|partition| {
                let position = self.positions.get(partition)?.load(Ordering::Relaxed);
                (position < self.end(*partition)).then_some((*partition, position))
            })
            .collect();
        let mut session = FetchSession::new(&plan.topic, version, offsets);
        let bytes_max = ANSWER_BYTES_MAX.saturating_add(plan.limits.max_bytes as usize);
        let patience = ANSWER_PATIENCE + plan.limits.wait;
        let mut answer = BytesMut::new();
        while !session.is_empty() && !self.goal.is_reached() {
            let request = session.request(&plan.limits);
            let sent = client.send(&request, version).await?;
            let first = client.receive(&mut answer, bytes_max, patience).await?;
            let whole = Instant::now();
            self.meter.add_fetch(whole);
            self.meter.add_wire_bytes(whole, answer.len() as u64 + 4);
            let mut taken = Ok(());
            let mut progress = plan.ends.is_none();
            let head = walk(&answer, version, |partition| {
                if taken.is_ok() {
                    match self.take(&mut session, partition, first, whole) {
                        Ok(moved) => progress |= moved,
                        Err(error) => taken = Err(error),
                    }
                }
            });
            let head = head.map_err(|why| client.malformed(why.to_owned()))?;
            if head.correlation != sent {
                return Err(client.malformed("an answer to another request".to_owned()));
            }
            taken?;
            session.answered(head.error, head.session_id)?;
            if progress {
                *self.progress.lock() = whole;
            } else {
                self.check_patience("the broker answers without records, although there must be more")?;
            }
        }
        Ok(())
    }

    fn end(&self, partition: i32) -> i64 {
        let ends = self.plan.ends.as_ref();
        let end = ends.and_then(|ends| ends.get(usize::try_from(partition).ok()?));
        end.copied().unwrap_or(i64::MAX)
    }

    /// Takes what was read of one partition; whether it brought anything.
    fn take(
        &self,
        session: &mut FetchSession,
        fetched: FetchedPartition<'_>,
        first: Instant,
        whole: Instant,
    ) -> Result<bool, ClientError> {
        let what = || format!("cannot read {}-{}", self.plan.topic, fetched.index);
        let Some(mut position) = session.offset(fetched.index) else {
            return Ok(false);
        };
        if fetched.error != 0 {
            return refused(&format!("{} at offset {position}", what()), fetched.error).map(|()| false);
        }
        let before = position;
        let end = self.end(fetched.index);
        for batch in Batches::new(fetched.records) {
            let (header, bytes) = batch.map_err(|why| ClientError::Other(format!("{}: {why}", what())))?;
            if header.base_offset >= end || position >= end {
                break;
            }
            let after = header.last_offset().saturating_add(1);
            if after <= position {
                continue;
            }
            let records = records_from(&header, position);
            self.sink.batch(Arrived {
                partition: fetched.index as usize,
                header: &header,
                bytes,
                position,
                records,
                first,
                whole,
            })?;
            self.goal.records.fetch_add(records, Ordering::Relaxed);
            position = after;
        }
        if position == before {
            if !fetched.records.is_empty() && position < end {
                return Err(ClientError::Other(format!(
                    "{}: a batch at offset {position} does not fit; raise --max-partition-fetch-bytes",
                    what()
                )));
            }
            return Ok(false);
        }
        if let Some(kept) = self.positions.get(&fetched.index) {
            kept.store(position, Ordering::Relaxed);
        }
        if position >= end {
            session.forget(fetched.index);
        } else {
            session.advance(fetched.index, position);
        }
        Ok(true)
    }
}

/// Records of a batch from this offset on. A batch that does not begin before it has as many as it says, which is
/// less than its offsets if it was compacted; control batches have none.
fn records_from(header: &BatchHeader, position: i64) -> u64 {
    if header.is_control() {
        return 0;
    }
    let count = if header.base_offset >= position {
        i64::from(header.record_count)
    } else {
        header.last_offset().saturating_sub(position).saturating_add(1)
    };
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::batch::BatchBuilder;

    #[test]
    fn only_records_that_were_asked_for_count() {
        let mut builder = BatchBuilder::new();
        for _ in 0..10 {
            builder.push(1, None, None, &[]);
        }
        let batch = builder.clone().build();
        let header = BatchHeader::parse(&batch.patched_header(100, 0)).unwrap();
        assert_eq!(records_from(&header, 0), 10);
        assert_eq!(records_from(&header, 100), 10);
        assert_eq!(records_from(&header, 104), 6);
        assert_eq!(records_from(&header, 500), 0);
        let control = builder.control().build();
        assert_eq!(records_from(control.header(), 0), 0);
    }
}
