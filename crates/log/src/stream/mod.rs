//! This broker's stream: gathers appends, writes segments in parallel, publishes them in order.
//!
//! One lock guards what is assigned, one task closes and publishes segments, and each write runs on a task of
//! its own that a dropped request cannot cancel. Nothing is acknowledged, shown to a reader or put into a
//! checkpoint before its segment and all before it are durable (invariants 1, 2 and 9).

pub mod flush;
mod trace;
pub mod window;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::batch::RecordBatch;
use crate::clock::Clock;
use crate::entry::{Entry, Place};
use crate::format::segment::{Seal, SegmentHeader, encode_seal, read_header};
use crate::garbage::FileNumbers;
use crate::keys;
use crate::log::{AppendError, Appended, PendingAppend, wait_published};
use crate::metrics::LogMetrics;
use crate::mutation::{self, Mutation};
use crate::partition::Standing;
use crate::partition::image::StoredRange;
use crate::partition::state::{Verdict, producer_of};
use crate::read::blocks::Blocks;
use crate::store::Store;
use crate::store::conditional::{self, CreateOutcome, Patience};
use crate::{Incarnation, Offset, Partition, Seq, Slot, TopicPartition};
use flush::{FlushDecision, FlushPolicy, Gathering, Tokens, UnderWay};
use trace::Traces;
use window::Window;
use writer::{AssignedBatch, SegmentBytes};

pub use writer::batch_entry;

/// Partitions that this broker leads.
pub(crate) type Partitions = RwLock<HashMap<TopicPartition, Arc<Partition>>>;

/// A pointer, and what it stands for if it counts for that alone.
pub(crate) type Conditional = (Entry, Option<Vec<StoredRange>>);

/// A slot of this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    /// Leader epoch in which it was granted.
    pub(crate) epoch: i32,
    pub(crate) phase: Phase,
}

/// What this broker does with a slot of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its log is being rebuilt; nothing is answered for it.
    Recovering,
    /// Its log cannot be rebuilt, and is tried again from time to time.
    Quarantined,
    /// Its partitions are led.
    Active,
    /// It is on its way to another broker: its partitions are read, and nothing is appended.
    Releasing,
}

impl Owned {
    /// Whether the stream may hold entries of it: then each checkpoint must have it, until the manifest takes it away.
    pub(crate) fn is_covered(self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Releasing)
    }
}

/// What became of a segment, for all who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Pending,
    /// Durable and visible, in the segment with this seq.
    Published(Seq),
    Failed(AppendError),
}

/// Why a broker has lost its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// A sentence.
    pub why: String,
    /// Whether a broker with the same `node.id` took over: then there is no place for this one.
    pub same_node: bool,
}

/// Whether appends are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Open,
    Stopping,
    Fenced,
}

/// The segment that gathers appends.
#[derive(Debug)]
struct Open {
    batches: Vec<AssignedBatch>,
    others: Vec<Entry>,
    gathering: Gathering,
    /// Goes at once, whatever the policy says.
    urgent: bool,
    fate: watch::Sender<Fate>,
    traces: Traces,
}

#[derive(Debug)]
struct Assigning {
    status: Status,
    open: Option<Open>,
    /// Fate of the newest segment that holds anything assigned.
    newest: Option<watch::Receiver<Fate>>,
}

/// A segment that is being written or waits for those before it.
#[derive(Debug)]
struct Written {
    entries: Vec<Entry>,
    bytes: Arc<SegmentBytes>,
    fate: watch::Sender<Fate>,
    oldest: Instant,
    /// When its write began: once it is published, proof that the stream had no seal then.
    started: Instant,
    /// When its write ended.
    durable: Option<Instant>,
    traces: Traces,
}

/// The stream of this broker start.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) store: Store,
    pub(crate) cluster: Uuid,
    pub(crate) incarnation: Incarnation,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) partitions: Partitions,
    /// Slots that the manifest in use grants to this stream. Locked inside `partitions`.
    pub(crate) owned: Mutex<BTreeMap<Slot, Owned>>,
    /// Told whenever `owned` changes.
    pub(crate) owned_changed: Notify,
    pub(crate) blocks: Arc<Blocks>,
    pub(crate) metrics: LogMetrics,
    policy: FlushPolicy,
    assigning: Mutex<Assigning>,
    wake: Notify,
    /// Oldest append in the segments that are being written.
    oldest_under_way: Mutex<Option<Instant>>,
    /// Held from the judgement about pointers until their publication; with the fate of the newest.
    rewriting: tokio::sync::Mutex<Option<watch::Receiver<Fate>>>,
    /// First seq that is not published. Held while a segment is being published, so that a snapshot taken under
    /// it is as of one position of the stream.
    pub(crate) published_next: Mutex<Seq>,
    /// `next + 1` of the newest durable checkpoint; 0 before the first.
    pub(crate) checkpoint_next: AtomicU64,
    pub(crate) manifest_version: AtomicU64,
    /// Numbers of the merged objects, and of the files of history, that this broker start writes.
    pub(crate) merged_numbers: Arc<FileNumbers>,
    pub(crate) archived_numbers: Arc<FileNumbers>,
    /// Bytes of all segments that were published.
    pub(crate) published_bytes: AtomicU64,
    /// Why this stream was lost.
    fenced: watch::Sender<Option<Fenced>>,
    node_id: i32,
    /// When the newest write or manifest read that proved ownership was started; see `Log::leased`.
    proven: watch::Sender<Instant>,
}

impl Stream {
    #[allow(clippy::too_many_arguments)] // Everything that one start of a broker is made of, named once.
    pub(crate) fn new(
        store: Store,
        cluster: Uuid,
        (incarnation, node_id): (Incarnation, i32),
        clock: Arc<dyn Clock>,
        blocks: Arc<Blocks>,
        metrics: LogMetrics,
        policy: FlushPolicy,
    ) -> Stream {
        Stream {
            store,
            cluster,
            incarnation,
            clock,
            partitions: RwLock::default(),
            owned: Mutex::default(),
            owned_changed: Notify::new(),
            blocks,
            metrics,
            policy,
            assigning: Mutex::new(Assigning {
                status: Status::Open,
                open: None,
                newest: None,
            }),
            wake: Notify::new(),
            oldest_under_way: Mutex::default(),
            rewriting: tokio::sync::Mutex::default(),
            published_next: Mutex::new(0),
            checkpoint_next: AtomicU64::new(0),
            manifest_version: AtomicU64::new(0),
            merged_numbers: Arc::default(),
            archived_numbers: Arc::default(),
            published_bytes: AtomicU64::new(0),
            fenced: watch::Sender::new(None),
            node_id,
            proven: watch::Sender::new(Instant::now()),
        }
    }

    /// Decides about a batch and, if it may be appended, gives it its offsets: in call order, without waiting.
    pub(crate) fn append(
        &self,
        partition: &Arc<Partition>,
        mut batch: RecordBatch,
        log_append_time: bool,
    ) -> Result<PendingAppend, AppendError> {
        let now_ms = self.clock.now_ms();
        if log_append_time {
            // Outside the lock, since it sums the batch. Time never goes back in a partition.
            let time = now_ms.max(partition.assigned.lock().append_time_ms);
            batch = batch.with_log_append_time(time);
        }
        let len = batch.len();
        let mut assigning = self.assigning.lock();
        assigning.check_open()?;
        partition.check_appendable()?;
        let mut state = partition.assigned.lock();
        let log_start_offset = state.log_start;
        let base_offset = match state.check(producer_of(batch.header())) {
            Verdict::Append => state.end,
            Verdict::Reject(e) => return Err(e),
            Verdict::Duplicate(original) => {
                // Answered when the original publishes. Segments publish in order, so the newest will do.
                let appended = Appended {
                    base_offset: original.base_offset,
                    append_time_ms: if log_append_time {
                        original.max_timestamp
                    } else {
                        -1
                    },
                    log_start_offset,
                };
                if mutation::on(Mutation::DuplicateAnsweredEarly) {
                    return Ok(PendingAppend::new(appended, None));
                }
                return Ok(PendingAppend::new(appended, assigning.newest.clone()));
            }
        };
        if log_append_time && state.append_time_ms > batch.header().max_timestamp {
            batch = batch.with_log_append_time(state.append_time_ms);
        }
        let append_time_ms = now_ms.max(state.append_time_ms);
        let leader_epoch = partition.leader_epoch();
        let entry = batch_entry(batch.header(), base_offset);
        state
            .apply_batch(partition.id(), leader_epoch, append_time_ms, &entry)
            .map_err(|misfit| {
                tracing::error!(%misfit, "an append does not fit the state that allowed it");
                AppendError::NotLeader
            })?;
        drop(state);
        let appended = Appended {
            base_offset,
            append_time_ms: if log_append_time {
                batch.header().max_timestamp
            } else {
                -1
            },
            log_start_offset,
        };
        let tp = partition.id();
        let pending = assigning.add(len, &self.wake, &self.policy, |open| {
            open.traces.add_current();
            open.batches.push(AssignedBatch {
                partition: tp,
                leader_epoch,
                base_offset,
                append_time_ms,
                batch,
            });
        });
        self.metrics
            .gathering_bytes
            .set(assigning.open.as_ref().map_or(0, |o| o.gathering.bytes as i64));
        drop(assigning);
        self.metrics.appended_bytes.inc_by(len as u64);
        self.metrics.appended_batches.inc();
        Ok(PendingAppend::new(appended, Some(pending)))
    }

    /// Adds a log-start entry. Answers at once if the log start is there already.
    pub(crate) fn advance_log_start(
        &self,
        partition: &Arc<Partition>,
        to: Offset,
    ) -> Result<Option<watch::Receiver<Fate>>, AppendError> {
        let mut assigning = self.assigning.lock();
        assigning.check_open()?;
        partition.check_appendable()?;
        let mut state = partition.assigned.lock();
        // Only what readers have been shown may be dropped.
        let to = to.min(partition.watermarks().high_watermark);
        if to <= state.log_start {
            return Ok(assigning.newest.clone());
        }
        let entry = Entry::LogStart {
            partition: partition.id(),
            leader_epoch: partition.leader_epoch(),
            offset: to,
        };
        state.apply(&entry).map_err(|misfit| {
            tracing::error!(%misfit, "a log start does not fit");
            AppendError::NotLeader
        })?;
        drop(state);
        Ok(Some(assigning.add(64, &self.wake, &self.policy, |open| {
            open.others.push(entry)
        })))
    }

    /// Takes no more appends to these partitions from now on. Resolves to the fate of everything that was appended
    /// before: once that is published, what is published of them will not change any more.
    pub(crate) fn stop_appends(
        &self,
        partitions: &[Arc<Partition>],
    ) -> Result<Option<watch::Receiver<Fate>>, AppendError> {
        let assigning = self.assigning.lock();
        assigning.check_open()?;
        for p in partitions {
            p.become_at_least(Standing::Closed);
        }
        Ok(assigning.newest.clone())
    }

    /// Adds RELEASE entries, all in one segment. What they say MUST not change any more: see
    /// [`Stream::stop_appends`].
    pub(crate) fn release(&self, entries: Vec<Entry>) -> Result<watch::Receiver<Fate>, AppendError> {
        let bytes = entries.iter().map(|e| match e {
            Entry::Release { image, .. } => image.len() + 64,
            _ => 64,
        });
        let bytes = bytes.sum();
        let mut assigning = self.assigning.lock();
        assigning.check_open()?;
        let pending = assigning.add(bytes, &self.wake, &self.policy, |open| {
            open.others.extend(entries);
            // Clients wait for this one.
            open.urgent = true;
        });
        self.wake.notify_one();
        Ok(pending)
    }

    /// Publishes pointers to data that was merged, compacted or archived, and MUST be durable. Returns how many of them
    /// took effect: one that does not fit any more, because something else has rewritten the same offsets since it was
    /// planned, is left out, and so is one whose partition has gone.
    ///
    /// What fits what is published now fits for good: appends come behind it, what a log start passes meanwhile is
    /// forgotten on both sides, and nobody else's pointers come between, since one call judges after the other is
    /// published. So none is written that could not be applied at its publication, or at a recovery.
    pub(crate) async fn rewrite(&self, pointers: Vec<Entry>) -> Result<usize, AppendError> {
        self.rewrite_if(pointers.into_iter().map(|pointer| (pointer, None)).collect())
            .await
    }

    /// The same of pointers each of which counts only if what it stands for is still exactly this, but for what the log
    /// start has passed: for what would undo a rewrite that came between.
    pub(crate) async fn rewrite_if(&self, pointers: Vec<Conditional>) -> Result<usize, AppendError> {
        let mut newest = self.rewriting.lock().await;
        // Whoever waited for the one before may have been dropped.
        wait_published(newest.clone()).await?;
        let Some((fate, fitting)) = self.add_pointers(pointers)? else {
            return Ok(0);
        };
        *newest = Some(fate.clone());
        wait_published(Some(fate)).await?;
        Ok(fitting)
    }

    /// Whether a range is published, and stands where `r` says.
    pub(crate) fn holds(&self, partition: &TopicPartition, r: &StoredRange) -> bool {
        let partition = self.partitions.read().get(partition).cloned();
        partition.is_some_and(|p| {
            let image = p.published.lock();
            image.ranges.get(image.range_from(r.base_offset)) == Some(r)
        })
    }

    /// How long the oldest append that is not published waits: a measure of what producers suffer.
    pub(crate) fn oldest_wait(&self) -> Duration {
        let gathering = self
            .assigning
            .lock()
            .open
            .as_ref()
            .map(|open| open.gathering.oldest);
        let oldest = [gathering, *self.oldest_under_way.lock()]
            .into_iter()
            .flatten()
            .min();
        oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }

    /// Adds those pointers that fit; `None` if none does. For [`Stream::rewrite`] alone.
    fn add_pointers(
        &self,
        pointers: Vec<Conditional>,
    ) -> Result<Option<(watch::Receiver<Fate>, usize)>, AppendError> {
        let mut fitting = Vec::with_capacity(pointers.len());
        for (pointer, only_of) in pointers {
            let (Some((tp, epoch)), Some(rewrite)) = (pointer.scope(), pointer.rewrite()) else {
                continue;
            };
            // A topic may be deleted, or its slot have moved, since this was planned.
            let partition = self.partitions.read().get(&tp).cloned();
            let Some(p) = partition.filter(|p| p.leader_epoch() == epoch) else {
                continue;
            };
            let fits = {
                let image = p.published.lock();
                let same = |covered| only_of.is_none_or(|given| image.is_end_of(covered, &given));
                image
                    .covered_by(&rewrite)
                    .map(|covered| covered.is_some_and(same))
            };
            match fits {
                Ok(true) => fitting.push((p, pointer)),
                Ok(false) => {}
                Err(misfit) => tracing::warn!(%misfit, "a rewrite came too late; it is left out"),
            }
        }
        let mut assigning = self.assigning.lock();
        assigning.check_open()?;
        fitting.retain(|(p, _)| p.check_appendable().is_ok());
        if fitting.is_empty() {
            return Ok(None);
        }
        let bytes = fitting.iter().map(|(_, pointer)| pointer_bytes(pointer)).sum();
        let count = fitting.len();
        let fate = assigning.add(bytes, &self.wake, &self.policy, |open| {
            open.others
                .extend(fitting.into_iter().map(|(_, pointer)| pointer));
        });
        Ok(Some((fate, count)))
    }

    /// Closes and publishes segments until the stream is stopped or fenced.
    pub(crate) async fn run(self: Arc<Stream>) {
        let (outcomes, mut landed) = mpsc::unbounded_channel();
        let mut window: Window<Written> = Window::new(0);
        let mut tokens = Tokens::full(&self.policy, Instant::now());
        loop {
            let wait = loop {
                match self.decide(&window, tokens) {
                    None => break None,
                    Some(FlushDecision::WhenWriteEnds) => break None,
                    Some(FlushDecision::At(t)) => break Some(t),
                    Some(FlushDecision::Now) => self.flush(&mut window, &mut tokens, &outcomes),
                }
            };
            *self.oldest_under_way.lock() = window.iter().next().map(|w| w.oldest);
            if window.is_empty() && wait.is_none() && self.finished() {
                return;
            }
            let timer = async {
                match wait {
                    Some(t) => tokio::time::sleep_until(t).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = timer => {}
                Some((seq, outcome)) = landed.recv() => match outcome {
                    CreateOutcome::Committed => {
                        window.change(seq, |w| w.durable = Some(Instant::now()));
                        if mutation::on(Mutation::PublishedOutOfOrder) {
                            window.change(seq, |w| w.fate.send_replace(Fate::Published(seq)));
                        }
                        for written in window.durable(seq) {
                            if mutation::on(Mutation::HighWatermarkFirst) {
                                written.fate.send_replace(Fate::Published(seq));
                                continue;
                            }
                            self.publish(written);
                        }
                    }
                    CreateOutcome::Lost(found) => {
                        self.fence(self.who_is_there(seq, &found));
                    }
                    // Not with `Patience::Forever`.
                    CreateOutcome::Unknown(why) => {
                        self.fence(Fenced::by_another(format!("a write was given up: {why}")));
                    }
                },
            }
            self.metrics.puts_in_flight.set(window.in_flight() as i64);
            if self.is_fenced() {
                self.fail_all(&mut window);
                return;
            }
        }
    }

    fn decide(&self, window: &Window<Written>, tokens: Tokens) -> Option<FlushDecision> {
        let assigning = self.assigning.lock();
        let open = assigning.open.as_ref()?;
        if assigning.status == Status::Stopping || open.urgent {
            return Some(FlushDecision::Now);
        }
        let under_way = UnderWay {
            writes: window.in_flight(),
            newest: window.newest().map(|w| w.started),
        };
        Some(
            self.policy
                .decide(open.gathering, under_way, tokens, Instant::now()),
        )
    }

    fn finished(&self) -> bool {
        let assigning = self.assigning.lock();
        assigning.status == Status::Stopping && assigning.open.is_none()
    }

    fn flush(
        self: &Arc<Stream>,
        window: &mut Window<Written>,
        tokens: &mut Tokens,
        outcomes: &mpsc::UnboundedSender<(Seq, CreateOutcome)>,
    ) {
        let Some(open) = self.assigning.lock().open.take() else {
            return;
        };
        self.metrics.gathering_bytes.set(0);
        let (seq, nonce, now) = (window.next_seq(), Uuid::new_v4(), Instant::now());
        let header = self.header(seq, nonce, window.published_next(), None);
        let built = writer::build(header, self.cluster, open.batches, open.others);
        let built_at = Instant::now();
        tokens.spend(&self.policy, built.bytes.len() as usize, now);
        let oldest = open.gathering.oldest;
        self.metrics.segment_bytes.observe(built.bytes.len() as f64);
        self.metrics.queue_seconds.observe((now - oldest).as_secs_f64());
        self.metrics.flush_seconds.observe((built_at - now).as_secs_f64());
        let bytes = Arc::new(built.bytes);
        let (incarnation, traces) = (self.incarnation, open.traces);
        traces.each(|| {
            let queued = now - oldest;
            tracing::debug!(incarnation, seq, bytes = bytes.len(), ?queued, "segment closed");
        });
        if mutation::on(Mutation::HighWatermarkFirst) {
            self.publish(Written {
                entries: built.entries.clone(),
                bytes: bytes.clone(),
                fate: watch::Sender::new(Fate::Pending),
                oldest,
                started: now,
                durable: None,
                traces: Traces::default(),
            });
        }
        window.push(Written {
            entries: built.entries,
            bytes: bytes.clone(),
            fate: open.fate,
            oldest,
            started: now,
            durable: None,
            traces: traces.clone(),
        });
        let (stream, outcomes) = (self.clone(), outcomes.clone());
        tokio::spawn(async move {
            let outcome = stream.create(seq, nonce, bytes.chunks().cloned().collect()).await;
            let took = built_at.elapsed();
            stream.metrics.put_seconds.observe(took.as_secs_f64());
            traces.each(|| {
                let outcome = outcome.word();
                tracing::debug!(incarnation, seq, outcome, ?took, "segment written");
            });
            // Nobody listens once the stream has ended.
            let _ = outcomes.send((seq, outcome));
        });
    }

    fn header(&self, seq: Seq, nonce: Uuid, committed_next: Seq, seal: Option<Seal>) -> SegmentHeader {
        SegmentHeader {
            incarnation: self.incarnation,
            seq,
            nonce,
            manifest_version: self.manifest_version.load(Ordering::Relaxed),
            checkpoint_next: self.checkpoint_next.load(Ordering::Relaxed).checked_sub(1),
            committed_next,
            written_ms: self.clock.now_ms(),
            seal,
        }
    }

    async fn create(&self, seq: Seq, nonce: Uuid, payload: object_store::PutPayload) -> CreateOutcome {
        let key = self.store.key(&keys::segment(self.incarnation, seq));
        let is_mine = |found: &Bytes| read_header(found, Some(self.cluster)).is_ok_and(|h| h.nonce == nonce);
        conditional::create(&self.store, &key, payload, is_mine, Patience::Forever).await
    }

    /// Makes a durable segment visible. The tail comes first, so that who sees the range finds its bytes there.
    fn publish(&self, written: Written) {
        let mut next = self.published_next.lock();
        let place = Place::l0(self.incarnation, *next);
        self.published_bytes
            .fetch_add(written.bytes.len(), Ordering::Relaxed);
        {
            let mut tail = self.blocks.tail.lock();
            tail.push(place.seq, written.bytes);
            self.metrics.tail_bytes.set(tail.bytes() as i64);
        }
        let mut touched = Vec::with_capacity(written.entries.len());
        let mut broken = None;
        {
            let partitions = self.partitions.read();
            for e in &written.entries {
                // A partition that is gone has no state any more.
                let Some((tp, epoch)) = e.scope() else { continue };
                let Some(p) = partitions.get(&tp).filter(|p| p.leader_epoch() == epoch) else {
                    continue;
                };
                let applied = p.published.lock().apply(e, place);
                if let Err(misfit) = applied {
                    // Never acknowledge what a recovery could not read: stop here, loudly.
                    tracing::error!(%misfit, "a durable entry does not fit");
                    broken = Some(format!("a durable entry does not fit: {misfit}"));
                }
                // A pointer moves nothing that anybody waits for.
                if e.rewrite().is_none() {
                    touched.push(p.clone());
                }
            }
        }
        *next += 1;
        drop(next);
        if let Some(why) = broken {
            written.fate.send_replace(Fate::Failed(AppendError::NotLeader));
            self.fence(Fenced::by_another(why));
            return;
        }
        // In order, and without a seal before it: only now is it proven that the stream was ours when this write
        // began. A write beyond a seal succeeds too, and proves nothing.
        self.prove(written.started);
        touched.iter().for_each(|p| p.wake());
        let now = Instant::now();
        self.metrics.segments.inc();
        if let Some(durable) = written.durable {
            let waited = now - durable;
            self.metrics.order_seconds.observe(waited.as_secs_f64());
        }
        let since_append = now - written.oldest;
        self.metrics.publish_seconds.observe(since_append.as_secs_f64());
        written.traces.each(|| {
            let (incarnation, seq) = (self.incarnation, place.seq);
            tracing::debug!(incarnation, seq, ?since_append, "segment published");
        });
        written.fate.send_replace(Fate::Published(place.seq));
    }

    fn fail_all(&self, window: &mut Window<Written>) {
        for written in window.fail() {
            written.traces.each(|| {
                tracing::debug!(
                    incarnation = self.incarnation,
                    "segment given up: the stream is lost"
                );
            });
            written.fate.send_replace(Fate::Failed(AppendError::NotLeader));
        }
        if let Some(open) = self.assigning.lock().open.take() {
            open.fate.send_replace(Fate::Failed(AppendError::NotLeader));
        }
    }

    /// Takes no more appends and lets the task end once everything is published.
    pub(crate) fn stop(&self) {
        let mut assigning = self.assigning.lock();
        if assigning.status == Status::Open {
            assigning.status = Status::Stopping;
        }
        drop(assigning);
        self.wake.notify_one();
    }

    /// This stream belongs to somebody else now. Terminal: nothing is written or deleted any more.
    pub(crate) fn fence(&self, why: Fenced) {
        self.assigning.lock().status = Status::Fenced;
        self.fenced.send_if_modified(|f| {
            let first = f.is_none();
            if first {
                *f = Some(why);
            }
            first
        });
        for p in self.partitions.read().values() {
            p.become_at_least(Standing::Released);
        }
        self.owned_changed.notify_waiters();
        self.wake.notify_one();
    }

    /// Whether it takes appends: it is neither stopping nor lost.
    pub(crate) fn is_open(&self) -> bool {
        self.assigning.lock().check_open().is_ok()
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.borrow().is_some()
    }

    /// Resolves, with the reason, when the stream is lost.
    pub(crate) async fn fenced(&self) -> Fenced {
        let mut fenced = self.fenced.subscribe();
        loop {
            if let Some(why) = fenced.borrow_and_update().clone() {
                return why;
            }
            if fenced.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn who_is_there(&self, seq: Seq, found: &Bytes) -> Fenced {
        let key = keys::segment(self.incarnation, seq);
        match read_header(found, Some(self.cluster)) {
            Ok(SegmentHeader { seal: Some(s), .. }) => Fenced {
                why: format!(
                    "this broker's stream was sealed at {key} by incarnation {} (node.id {}): {}",
                    s.taker, s.taker_node, s.reason
                ),
                same_node: s.taker_node == self.node_id && s.taker != self.incarnation,
            },
            Ok(_) => Fenced::by_another(format!("{key} holds a segment that this broker did not write")),
            Err(e) => Fenced::by_another(format!("{key} holds something else: {e}")),
        }
    }

    /// Ends the stream after a graceful stop: nobody need wait for anything. Returns where, if the seal is ours.
    pub(crate) async fn seal_itself(&self) -> Option<Seq> {
        let seq = *self.published_next.lock();
        let nonce = Uuid::new_v4();
        let seal = Seal {
            taker: self.incarnation,
            taker_node: self.node_id,
            reason: "stopped gracefully".into(),
        };
        let bytes = encode_seal(&self.header(seq, nonce, seq, Some(seal)), self.cluster);
        let key = self.store.key(&keys::segment(self.incarnation, seq));
        let is_mine = |found: &Bytes| read_header(found, Some(self.cluster)).is_ok_and(|h| h.nonce == nonce);
        let patience = Patience::For(Duration::from_secs(10));
        match conditional::create(&self.store, &key, bytes.into(), is_mine, patience).await {
            CreateOutcome::Committed => return Some(seq),
            CreateOutcome::Lost(found) => tracing::info!("{}", self.who_is_there(seq, &found).why),
            CreateOutcome::Unknown(why) => tracing::warn!(why, "the stream was left without a seal"),
        }
        None
    }

    /// Something that only a stream's owner can do succeeded; it was started at `started`.
    pub(crate) fn prove(&self, started: Instant) {
        self.proven.send_if_modified(|proven| {
            let newer = started > *proven;
            *proven = started.max(*proven);
            newer
        });
    }

    /// How long ago it was certain that this stream was ours.
    pub(crate) fn proven_since(&self) -> Duration {
        self.proven.borrow().elapsed()
    }

    /// Resolves once it is proven that this stream was ours later than at `time`.
    pub(crate) async fn proven_after(&self, time: Instant) {
        let mut proven = self.proven.subscribe();
        // It cannot fail while this stream, which has the sender, is here.
        let _ = proven.wait_for(|proven| *proven > time).await;
    }
}

/// About how many bytes a pointer takes in an index.
fn pointer_bytes(pointer: &Entry) -> usize {
    let ranges = match pointer {
        Entry::Merged(m) => m.ranges.len(),
        Entry::Compacted(c) => c.merged.ranges.len(),
        Entry::Archived(a) => a.shares.len(),
        Entry::Batches(_) | Entry::LogStart { .. } | Entry::Release { .. } => 0,
    };
    32 + ranges * 12
}

impl Fenced {
    /// Lost to a broker with another `node.id`, or to nobody that is known.
    pub(crate) fn by_another(why: String) -> Fenced {
        Fenced {
            why,
            same_node: false,
        }
    }
}

impl Assigning {
    fn check_open(&self) -> Result<(), AppendError> {
        match self.status {
            Status::Open => Ok(()),
            Status::Stopping => Err(AppendError::Stopping),
            Status::Fenced => Err(AppendError::NotLeader),
        }
    }

    /// Adds something to the gathering segment; wakes the task only when that may change its decision.
    fn add(
        &mut self,
        bytes: usize,
        wake: &Notify,
        policy: &FlushPolicy,
        put: impl FnOnce(&mut Open),
    ) -> watch::Receiver<Fate> {
        let now = Instant::now();
        let was_empty = self.open.is_none();
        let open = self.open.get_or_insert_with(|| Open {
            batches: vec![],
            others: vec![],
            gathering: Gathering {
                bytes: 0,
                oldest: now,
                newest: now,
            },
            urgent: false,
            fate: watch::Sender::new(Fate::Pending),
            traces: Traces::default(),
        });
        let before = open.gathering.bytes;
        open.gathering.bytes += bytes;
        open.gathering.newest = now;
        put(open);
        if was_empty {
            self.newest = Some(open.fate.subscribe());
        }
        if was_empty || (before < policy.bytes && open.gathering.bytes >= policy.bytes) {
            wake.notify_one();
        }
        open.fate.subscribe()
    }
}
