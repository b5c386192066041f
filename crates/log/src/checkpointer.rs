//! Writes checkpoints of published state, and the head that names them; beats the heart.
//!
//! A checkpoint is written soon after a start, when the stream has grown by a fraction of what a checkpoint
//! holds (so that their cost stays in proportion to ingest), soon after data was merged, so that the floor can move,
//! and every minute if anything happened. It counts once the head names it. The head is also written as a sign of life,
//! on time whatever a checkpoint takes; one write at a time, so its compare-and-swap never races with itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::UpdateVersion;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::format::check_preamble;
use crate::format::checkpoint::{Checkpoint, SlotImage, encode};
use crate::head::{CheckpointRef, Head, floor};
use crate::keys;
use crate::manifest::Manifest;
use crate::manifest::keeper::ManifestKeeper;
use crate::store::conditional::{self, CreateOutcome, Patience, UpdateOutcome};
use crate::stream::{Owned, Phase, Stream};
use crate::{Incarnation, Seq, Slot};

/// A head is written at least this often.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The same where there are other brokers, from the beginning of one write to that of the next.
const HEARTBEAT_AMONG_OTHERS: Duration = Duration::from_secs(10);
/// The same while one of them does not answer: it may not reach this broker either, and judge it by its head. With it one
/// write that hangs is not yet a standstill ([`crate::liveness::LivenessLimits::standstill`]).
const HEARTBEAT_AMONG_SILENCE: Duration = Duration::from_secs(3);
/// A write of the head that has no answer after this time is tried again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A checkpoint is written at least this often, if anything was published.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How often the growth of the stream is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Segments that a restart may have to read before a checkpoint is due, however small the state.
const TAIL_SEGMENTS: u64 = 1_000;
/// After a merge a checkpoint is due soon if it is smaller than what was merged by this factor, else after a while, which
/// is longer for a large one: so many bytes a second are spent on checkpoints of a trickle.
const MERGED_PER_CHECKPOINT: u64 = 8;
const AFTER_MERGE: Duration = Duration::from_secs(30);
const AFTER_MERGE_MAX: Duration = Duration::from_secs(600);
const TRICKLE_BYTES_PER_SECOND: u64 = 512 << 10;
/// A checkpoint for the sake of a merge or of links is written at the earliest this long after the one before.
const SOON: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    producer_expiration: Duration,
    state: Mutex<Written>,
    /// Held from a snapshot until a head names it, so that a later one is named later.
    one: Mutex<()>,
    /// Bytes merged since the newest checkpoint.
    merged: AtomicU64,
    durable: watch::Sender<Arc<Durable>>,
    /// How many other brokers do not answer.
    silent: OnceLock<Gauge>,
}

/// What the newest durable head says, and what follows from the checkpoint that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    /// Segments below are needed by nobody.
    pub(crate) floor: Seq,
    /// `next` of the checkpoint; older ones are needed by nobody.
    pub(crate) checkpoint_next: Option<Seq>,
    /// The slots that it holds.
    pub(crate) covered: Vec<Covered>,
}

/// A slot that a durable checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) slot: Slot,
    /// The epoch in which this stream has it.
    pub(crate) epoch: i32,
    /// Some of its data stands in segments of other streams: they are still needed.
    pub(crate) foreign_l0: bool,
}

#[derive(Debug)]
struct Written {
    head: Head,
    version: Option<UpdateVersion>,
    /// When the write of it began.
    begun: Option<Instant>,
    /// Ranges in the newest checkpoint: a measure of what the next one costs.
    ranges: u64,
    /// With the newest checkpoint the floor could not move.
    floor_stood: bool,
}

/// What a checkpoint is made of, taken at one position of the stream.
struct Snapshot {
    checkpoint: Checkpoint,
    ranges: u64,
    oldest_needed: Option<Seq>,
    /// The floor stays where it is, whatever is needed.
    floor_stands: bool,
    covered: Vec<Covered>,
}

/// Why a checkpoint or head was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotWritten {
    /// The store failed for as long as was waited for; it tells so itself, in one line for all its writers.
    #[error("{0}")]
    StoreSilent(String),
    /// Something is not as it should be.
    #[error("{0}")]
    Odd(String),
}

impl Checkpointer {
    pub(crate) fn new(
        stream: Arc<Stream>,
        keeper: Arc<ManifestKeeper>,
        producer_expiration: Duration,
    ) -> Self {
        let head = Head::new(stream.cluster, stream.incarnation, Uuid::new_v4());
        let state = Mutex::new(Written {
            head,
            version: None,
            begun: None,
            ranges: 0,
            floor_stood: false,
        });
        Checkpointer {
            stream,
            keeper,
            producer_expiration,
            state,
            one: Mutex::default(),
            merged: AtomicU64::new(0),
            durable: watch::Sender::default(),
            silent: OnceLock::new(),
        }
    }

    /// From now on the head is written more often while other brokers do not answer.
    pub(crate) fn mind(&self, silent: Gauge) {
        // There is one membership.
        let _ = self.silent.set(silent);
    }

    /// Data was merged or archived: a checkpoint lets the floor pass where it was, and says that the rest needs it no more.
    pub(crate) fn merged(&self, bytes: u64) {
        self.merged.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Changes with every head that became durable.
    pub(crate) fn durable(&self) -> watch::Receiver<Arc<Durable>> {
        self.durable.subscribe()
    }

    /// Runs until the task is aborted or the stream is lost.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.write_checkpoints(), self.beat());
    }

    async fn write_checkpoints(&self) {
        let mut last = None::<Instant>;
        while !self.stream.is_fenced() {
            if self.checkpoint_due(last).await {
                last = Some(Instant::now());
                tell(self.write_checkpoint().await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn beat(&self) {
        while !self.stream.is_fenced() {
            let begun = self.state.lock().await.begun;
            if begun.is_none_or(|t| t.elapsed() >= self.heartbeat()) {
                tell(self.write_head(None).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Others judge by the head whether a broker that does not answer them lives.
    fn heartbeat(&self) -> Duration {
        if self.keeper.current().live().count() <= 1 {
            HEARTBEAT
        } else if self.silent.get().is_some_and(|silent| silent.get() > 0) {
            HEARTBEAT_AMONG_SILENCE
        } else {
            HEARTBEAT_AMONG_OTHERS
        }
    }

    async fn checkpoint_due(&self, last: Option<Instant>) -> bool {
        let next = *self.stream.published_next.lock();
        let state = self.state.lock().await;
        let grown = next - state.head.first_unread().min(next);
        // A range is about as costly to write as a segment is to read; an eighth keeps both in proportion.
        let enough = grown >= TAIL_SEGMENTS.max(state.ranges / 8);
        let waited = |time| last.is_none_or(|t| t.elapsed() >= time);
        let merged = self.merged.load(Ordering::Relaxed);
        let size = u64::try_from(self.stream.metrics.checkpoint_bytes.get()).unwrap_or(0);
        let after_merge = merged > 0 && waited(after_merge(merged, size, self.others_wait()));
        let linked = waited(SOON) && self.links_wait();
        // Without it the floor of a broker that nobody uses would stay where a hand-over left it.
        let floor = state.floor_stood && waited(SOON) && !self.floor_stands(&self.stream.owned.lock());
        enough || after_merge || linked || floor || (grown > state.ranges / 64 && waited(CHECKPOINT_INTERVAL))
    }

    /// Whether segments of other streams stay until the newest checkpoint says that they are not needed any more.
    fn others_wait(&self) -> bool {
        self.durable.borrow().covered.iter().any(|c| c.foreign_l0)
    }

    /// Whether a slot of this broker still has links and no durable checkpoint of it is there: with one they could go.
    fn links_wait(&self) -> bool {
        let manifest = self.keeper.current();
        let streams = manifest.streams.values();
        if streams.into_iter().all(|s| s.is_live() && s.released.is_empty()) {
            return false;
        }
        let durable = self.durable.borrow().clone();
        let covered: BTreeSet<(Slot, i32)> = durable.covered.iter().map(|c| (c.slot, c.epoch)).collect();
        let owned = self.stream.owned.lock();
        let active = owned.iter().filter(|(_, o)| o.phase == Phase::Active);
        let mut uncovered = active.filter(|(slot, o)| !covered.contains(&(**slot, o.epoch)));
        uncovered.any(|(slot, _)| manifest.has_links(*slot))
    }

    /// Writes a checkpoint of what is published now, and the head that names it.
    pub(crate) async fn write_checkpoint(&self) -> Result<(), NotWritten> {
        let _one_at_a_time = self.one.lock().await;
        let manifest = self.keeper.current();
        // A checkpoint of a stream that lost its slots would cover nothing and hide what came before it.
        if self.stream.is_fenced() || !manifest.is_live(self.stream.incarnation) {
            return Err(NotWritten::Odd("this broker was taken over".into()));
        }
        // What is merged from here on may not be in the snapshot.
        let merged = self.merged.load(Ordering::Relaxed);
        let snapshot = self.snapshot(&manifest);
        let (next, nonce) = (snapshot.checkpoint.next, Uuid::new_v4());
        let key = self
            .stream
            .store
            .key(&keys::checkpoint(self.stream.incarnation, next, nonce));
        let bytes = encode(&snapshot.checkpoint, self.stream.cluster, nonce);
        self.stream.metrics.checkpoint_bytes.set(bytes.len() as i64);
        // The key holds the nonce, so whatever is there is ours.
        let cluster = self.stream.cluster;
        let ours = |found: &Bytes| {
            check_preamble(found, crate::format::ObjectKind::Checkpoint, Some(cluster)).is_ok()
        };
        let patience = Patience::For(Duration::from_secs(120));
        match conditional::create(&self.stream.store, &key, bytes.into(), ours, patience).await {
            CreateOutcome::Committed => {}
            CreateOutcome::Lost(_) => return Err(NotWritten::Odd(format!("{key} holds something else"))),
            CreateOutcome::Unknown(why) => return Err(NotWritten::StoreSilent(why)),
        }
        self.write_head(Some((CheckpointRef { next, nonce }, snapshot.oldest_needed)))
            .await?;
        let floor = {
            let mut state = self.state.lock().await;
            state.ranges = snapshot.ranges;
            state.floor_stood = snapshot.floor_stands;
            state.head.floor
        };
        self.merged.fetch_sub(merged, Ordering::Relaxed);
        self.durable.send_replace(Arc::new(Durable {
            floor,
            checkpoint_next: Some(next),
            covered: snapshot.covered,
        }));
        self.stream.checkpoint_next.store(next + 1, Ordering::Relaxed);
        self.stream.metrics.checkpoints.inc();
        Ok(())
    }

    /// From a RELEASE until its link is dropped somebody else reads this stream from below: the floor stands still.
    /// Whoever takes a releasing slot out of the table has the manifest with the link in use before, so that looking at the
    /// table first and at the manifest then misses none.
    fn floor_stands(&self, owned: &BTreeMap<Slot, Owned>) -> bool {
        let releasing = owned.values().any(|o| o.phase == Phase::Releasing);
        let manifest = self.keeper.current();
        let own = manifest.streams.get(&self.stream.incarnation);
        releasing || own.is_some_and(|s| !s.released.is_empty())
    }

    /// Published state as of one seq. Publication waits meanwhile.
    fn snapshot(&self, manifest: &Manifest) -> Snapshot {
        let now_ms = self.stream.clock.now_ms();
        let incarnation = self.stream.incarnation;
        let (mut ranges, mut oldest_needed) = (0, None::<Seq>);
        let mut foreign: BTreeSet<Slot> = BTreeSet::new();
        let published = self.stream.published_next.lock();
        let partitions = self.stream.partitions.read();
        // Every slot that may have entries, and no other: one that is listed covers what came before it.
        let covered = |(slot, owned): (&Slot, &Owned)| {
            let image = SlotImage {
                epoch: owned.epoch,
                partitions: vec![],
            };
            owned.is_covered().then_some((*slot, image))
        };
        let owned = self.stream.owned.lock();
        let mut slots: BTreeMap<Slot, SlotImage> = owned.iter().filter_map(covered).collect();
        let floor_stands = self.floor_stands(&owned);
        drop(owned);
        for p in partitions.values() {
            p.assigned
                .lock()
                .expire_producers(now_ms, self.producer_expiration);
            let image = {
                let mut image = p.published.lock();
                image.state.expire_producers(now_ms, self.producer_expiration);
                image.clone()
            };
            ranges += image.ranges.len() as u64;
            oldest_needed = [oldest_needed, image.oldest_needed(incarnation)]
                .into_iter()
                .flatten()
                .min();
            let number = manifest.slot_of(&p.id());
            if image.needs_foreign(incarnation) {
                foreign.insert(number);
            }
            if let Some(slot) = slots.get_mut(&number) {
                slot.partitions.push((p.id(), image));
            }
        }
        let covered = slots.iter().map(|(slot, image)| Covered {
            slot: *slot,
            epoch: image.epoch,
            foreign_l0: foreign.contains(slot),
        });
        let covered = covered.collect();
        let checkpoint = Checkpoint {
            incarnation,
            next: *published,
            manifest_version: manifest.version,
            written_ms: now_ms,
            slots,
        };
        Snapshot {
            checkpoint,
            ranges,
            oldest_needed: if floor_stands { Some(0) } else { oldest_needed },
            floor_stands,
            covered,
        }
    }

    /// Writes the head: naming a new checkpoint, or only as a sign of life.
    async fn write_head(&self, checkpoint: Option<(CheckpointRef, Option<Seq>)>) -> Result<(), NotWritten> {
        let mut state = self.state.lock().await;
        let key = self.stream.store.key(&keys::head(self.stream.incarnation));
        let (cluster, incarnation): (Uuid, Incarnation) = (self.stream.cluster, self.stream.incarnation);
        let patience = Patience::For(Duration::from_secs(60));
        let mut store = self.stream.store.clone();
        store.limits.request_timeout = store.limits.request_timeout.min(HEAD_TIMEOUT);
        // Nobody else writes here: one earlier write of ours can be in the way, given up as unknown or with its task,
        // and landed since.
        for _ in 0..2 {
            let begun = Instant::now();
            let head = self.next_head(&state.head, checkpoint.as_ref());
            let commit = head.commit_id;
            let landed =
                |b: &Bytes| Head::decode(b, cluster, incarnation).is_ok_and(|h| h.commit_id == commit);
            let (body, expected) = (Bytes::from(head.encode()), state.version.as_ref());
            match conditional::update(&store, &key, body, expected, landed, patience).await {
                UpdateOutcome::Committed(now) => {
                    state.version = Some(now.version);
                    state.head = head;
                    state.begun = Some(begun);
                    return Ok(());
                }
                UpdateOutcome::Lost(Some(now)) => {
                    let found = Head::decode(&now.bytes, cluster, incarnation);
                    state.head = found.map_err(|e| NotWritten::Odd(format!("{key}: {e}")))?;
                    state.version = Some(now.version);
                }
                UpdateOutcome::Lost(None) => {
                    state.version = None;
                    return Err(NotWritten::Odd(format!("{key} is gone")));
                }
                UpdateOutcome::Unknown(why) => return Err(NotWritten::StoreSilent(why)),
            }
        }
        Err(NotWritten::Odd(format!("{key} was behind an earlier write")))
    }

    /// The head after `last`.
    fn next_head(&self, last: &Head, checkpoint: Option<&(CheckpointRef, Option<Seq>)>) -> Head {
        let mut head = last.clone();
        head.commit_id = Uuid::new_v4();
        head.heartbeat += 1;
        head.tip = *self.stream.published_next.lock();
        head.manifest_version = self.stream.manifest_version.load(Ordering::Relaxed);
        if let Some((checkpoint, oldest_needed)) = checkpoint
            && checkpoint.next >= last.first_unread()
        {
            head.floor = floor(head.floor, checkpoint.next, *oldest_needed);
            head.checkpoint = Some(checkpoint.clone());
        }
        head
    }
}

fn tell(written: Result<(), NotWritten>) {
    match written {
        Ok(()) => {}
        Err(NotWritten::StoreSilent(why)) => {
            tracing::debug!(why, "no checkpoint or head could be written; trying again");
        }
        Err(NotWritten::Odd(why)) => {
            tracing::warn!(why, "no checkpoint or head could be written; trying again");
        }
    }
}

/// Time from a checkpoint to the next for the sake of what was merged: so many bytes, where a checkpoint has `size`.
fn after_merge(merged: u64, size: u64, others_wait: bool) -> Duration {
    if merged / MERGED_PER_CHECKPOINT >= size {
        SOON
    } else if others_wait {
        AFTER_MERGE
    } else {
        Duration::from_secs(size / TRICKLE_BYTES_PER_SECOND).clamp(AFTER_MERGE, AFTER_MERGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_after_a_merge_costs_little_beside_what_was_merged() {
        let mib = |n: u64| n << 20;
        let seconds = |merged, size, others| after_merge(merged, size, others).as_secs();
        assert_eq!(seconds(mib(48), mib(6), false), 5);
        assert_eq!(seconds(mib(47), mib(6), false), 30, "a trickle");
        assert_eq!(seconds(1, mib(75), false), 150);
        assert_eq!(
            seconds(1, mib(75), true),
            30,
            "others cannot let go of their segments before"
        );
        assert_eq!(
            seconds(1, mib(5_000), false),
            600,
            "the floor does not stand still for ever"
        );
    }
}
