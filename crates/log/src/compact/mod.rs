//! Compaction: of each key of a compacted topic the newest record stays.
//!
//! Compacted topics never become history; their merged objects are rewritten. One pass goes through one partition, the
//! one where most is not compacted yet. It reads what is new twice: first it notes the newest offset of each key in a map
//! of bounded size ([`map`]), then it goes through everything from the log start on and writes anew what loses a record
//! ([`pass`]). Offsets and everything else of what stays are unchanged, and every offset still has a batch that stands for
//! it. Pointers to the new objects are entries of the stream, as those of a merge are, so a broker that lost its stream
//! compacts nothing. Up to where a partition is compacted is said by the pointers and kept with its image.
//!
//! What cannot be read is passed over: it is told, nothing of it is lost, and as long as it is there no deletion mark
//! behind it goes, because what the mark deletes may be in it. What could not be read for the map counts as unreadable to
//! the end of the pass: of what it holds the map knows nothing. What the log start passes meanwhile is nobody's concern.
//!
//! A partition whose pass fails rests for a while, and others have their turn.
//!
//! [`plan`] and [`pass`] decide; this file carries out.

mod map;
mod metrics;
mod pass;
mod plan;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use hashbrown::HashMap;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use uuid::Uuid;

use crate::batch::slice_chunks;
use crate::entry::{CompactedRanges, Entry, Level, MergedRanges, Place};
use crate::format::merged::{MergedHeader, MergedIndex, put_head, put_tail, read_header};
use crate::garbage::FileNumber;
use crate::keys;
use crate::log::AppendError;
use crate::manifest::LEVEL_OF_HISTORY;
use crate::manifest::keeper::ManifestKeeper;
use crate::merge::plan::verify;
use crate::merge::{MergeError, get};
use crate::partition::image::{StoredRange, stored};
use crate::store::conditional::{self, CreateOutcome, Patience};
use crate::stream::Stream;
use crate::worker::Workers;
use crate::{Log, Offset, Partition, TopicId, TopicPartition};
use map::OffsetMap;
use metrics::CompactionMetrics;
use pass::{Full, Piece, Rewriter, Rules, Run, Unread, note_keys};
use plan::{Look, Priority, look, ranges_up_to, reads, took_effect};

/// Size of an object that compaction writes; it is held in memory until then.
const PIECE_BYTES: u64 = 16 << 20;
/// Requests under way at once.
const READS_AT_ONCE: usize = 3;
/// How far its thread stands back for others: as far as there is.
const NICE: i32 = 19;
/// How long one object is tried to be written.
const PATIENCE: Duration = Duration::from_secs(120);
/// Partitions that are looked at between two points at which others may go on.
const PARTITIONS_AT_ONCE: usize = 200;
/// A partition whose pass failed is tried again after this time, and after twice as long each time it fails again,
const SOON: Duration = Duration::from_secs(60);
/// up to this. One that cannot be compacted as it is rests so long at once.
const AGAIN: Duration = Duration::from_secs(600);
/// So many passes that fail one after the other end a look: the store may fail for everybody.
const FAILURES_IN_A_ROW: usize = 3;

/// How a topic is compacted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionSettings {
    /// `delete.retention.ms`: how long deletion marks stay after a pass first met them.
    pub delete_retention_ms: i64,
    /// `min.compaction.lag.ms`: what is younger is not touched.
    pub min_lag_ms: i64,
    /// `max.compaction.lag.ms`: what is older is compacted, however little it is.
    pub max_lag_ms: i64,
    /// `min.cleanable.dirty.ratio`: a pass is worth it if more than this share is not compacted.
    pub min_dirty_ratio: f64,
    /// `segment.ms`: little data is not worth a pass before it is so old.
    pub segment_ms: i64,
}

/// Says which topics are compacted, and how.
pub trait CompactionPolicy: Send + Sync + fmt::Debug + 'static {
    /// Settings of all topics that are compacted now.
    fn topics(&self) -> HashMap<TopicId, CompactionSettings>;
}

/// Settings of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionOptions {
    /// `log.cleaner.backoff.ms`: time between two looks for something to do.
    pub look: Duration,
    /// `log.cleaner.dedupe.buffer.size`: memory for the keys of one pass.
    pub map_bytes: u64,
    /// `log.cleaner.io.max.bytes.per.second`: bytes that are read and written per second at most.
    pub bytes_per_second: f64,
    /// Work for a processor is done on a thread of its own. A simulation does it in place.
    pub own_thread: bool,
}

impl Default for CompactionOptions {
    fn default() -> CompactionOptions {
        CompactionOptions {
            look: Duration::from_secs(15),
            map_bytes: 32 << 20,
            bytes_per_second: f64::from(32 << 20),
            own_thread: true,
        }
    }
}

/// Why a pass ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompactError {
    /// The store fails: later.
    #[error("{0}")]
    Store(String),
    /// Something is not as it was when the pass was planned, or as it should be.
    #[error("{0}")]
    Odd(String),
    /// This partition cannot be compacted as it is.
    #[error("{0}")]
    Uncleanable(String),
    /// The stream ends or is lost.
    #[error(transparent)]
    Ended(#[from] AppendError),
}

impl From<MergeError> for CompactError {
    fn from(error: MergeError) -> CompactError {
        match error {
            MergeError::Store(_) | MergeError::Object { .. } => CompactError::Store(error.to_string()),
            MergeError::Odd(why) => CompactError::Odd(why),
            MergeError::Ended(why) => CompactError::Ended(why),
        }
    }
}

impl Log {
    /// From now on compacts the partitions that this broker leads of the topics that `policy` names, as soon as the
    /// manifest's feature level allows it. To be called once.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn compact(
        &self,
        policy: Arc<dyn CompactionPolicy>,
        options: CompactionOptions,
        registry: &mut Registry,
    ) -> std::io::Result<()> {
        let compactor = Compactor::new(self, policy, options, registry)?;
        let task = tokio::spawn(compactor.run());
        self.inner.background.lock().push(task);
        Ok(())
    }
}

/// Compacts partitions of one open log.
#[derive(Debug)]
pub(crate) struct Compactor {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    policy: Arc<dyn CompactionPolicy>,
    options: CompactionOptions,
    metrics: CompactionMetrics,
    worker: Workers,
    /// Partitions that are not compacted as they should be.
    troubled: HashMap<TopicPartition, Trouble>,
}

/// What is known of a partition with something in it that cannot be compacted, or whose pass failed.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// It was gone through up to here, around what cannot be read.
    passed: Offset,
    /// How long it rests after its newest failure; nothing if it is in trouble for what cannot be read alone.
    rest: Duration,
    /// It is not tried again before.
    again: Option<Instant>,
}

impl Trouble {
    /// Another failure: it rests for `least`, and for twice as long as the time before.
    fn after_failure(self, least: Duration, now: Instant) -> Trouble {
        let rest = (self.rest * 2).clamp(least, AGAIN);
        Trouble {
            passed: self.passed,
            rest,
            again: Some(now + rest),
        }
    }

    /// Whether the reason is taken to stand in the partition: something cannot be read, or try after try fails.
    fn is_of_its_own(&self) -> bool {
        self.passed > 0 || self.rest >= AGAIN
    }
}

/// A partition whose turn it is.
struct Turn {
    partition: Arc<Partition>,
    settings: CompactionSettings,
    end: Offset,
}

/// What is there of a range.
enum Found {
    /// Its bytes, as they came.
    Bytes(Vec<Bytes>),
    Nothing(Why),
}

/// Why a range is not gone through.
enum Why {
    /// The log start has passed it since the pass was planned: nobody needs it any more.
    Gone,
    /// It stands where compaction does not write: in a file of history.
    Archived,
    /// It cannot be read, or not as it was written.
    Unreadable(String),
}

/// What the first half of a pass has found out.
struct Mapped {
    newest: OffsetMap,
    /// Up to here there was room.
    end: Offset,
    unread: Unread,
}

/// An object that is being made.
struct Making {
    file: FileNumber,
    header: MergedHeader,
    head_len: usize,
}

/// Bytes per second, from a point in time on.
struct Pace {
    from: Instant,
    bytes: f64,
    per_second: f64,
}

impl Pace {
    async fn spend(&mut self, bytes: u64) {
        self.bytes += bytes as f64;
        let seconds = (self.bytes / self.per_second.max(1.0)).min(AGAIN.as_secs_f64());
        tokio::time::sleep_until(self.from + Duration::from_secs_f64(seconds)).await;
        if seconds >= 1.0 {
            (self.from, self.bytes) = (Instant::now(), 0.0);
        }
    }
}

impl Compactor {
    pub(crate) fn new(
        log: &Log,
        policy: Arc<dyn CompactionPolicy>,
        options: CompactionOptions,
        registry: &mut Registry,
    ) -> std::io::Result<Compactor> {
        Ok(Compactor {
            stream: log.inner.stream.clone(),
            keeper: log.inner.keeper.clone(),
            policy,
            options,
            metrics: CompactionMetrics::register(registry),
            worker: match options.own_thread {
                true => Workers::start("compaction", 1, NICE)?,
                false => Workers::in_place(),
            },
            troubled: HashMap::new(),
        })
    }

    /// Runs until the task is aborted or the stream ends.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::time::sleep(self.options.look).await;
            if self.stream.is_fenced() {
                return;
            }
            if self.keeper.current().feature_level < LEVEL_OF_HISTORY {
                continue;
            }
            if self.rounds().await.is_err() {
                return;
            }
        }
    }

    /// Compacts what there is to compact, one partition after the other, until there is nothing or all fail. An error if
    /// the stream has ended.
    async fn rounds(&mut self) -> Result<(), AppendError> {
        let mut failures = 0;
        while failures < FAILURES_IN_A_ROW {
            match self.round().await {
                Ok(true) => failures = 0,
                Ok(false) => break,
                Err(CompactError::Ended(why)) => return Err(why),
                // Told, and the partition rests: others are next.
                Err(_) => failures += 1,
            }
        }
        Ok(())
    }

    /// Goes through the partition that needs it most. Answers whether there was one.
    pub(crate) async fn round(&mut self) -> Result<bool, CompactError> {
        let Some(turn) = self.choose().await else {
            return Ok(false);
        };
        let id = turn.partition.id();
        match self.pass(&turn).await {
            Ok(()) => Ok(true),
            Err(CompactError::Uncleanable(why)) => {
                tracing::error!(
                    topic = %id.topic, partition = id.partition, why,
                    "a partition cannot be compacted; trying again later"
                );
                self.rests(id, AGAIN);
                Ok(true)
            }
            Err(why @ CompactError::Ended(_)) => Err(why),
            Err(why) => {
                tracing::warn!(
                    topic = %id.topic, partition = id.partition, %why,
                    "a partition could not be compacted; trying again later"
                );
                self.rests(id, SOON);
                Err(why)
            }
        }
    }

    /// Leaves a partition alone for a while, at least for this time.
    fn rests(&mut self, id: TopicPartition, least: Duration) {
        let trouble = self.troubled.entry(id).or_default();
        *trouble = trouble.after_failure(least, Instant::now());
    }

    /// Looks at all partitions of compacted topics.
    async fn choose(&mut self) -> Option<Turn> {
        let topics = self.policy.topics();
        let now_ms = self.stream.clock.now_ms();
        let led: Vec<Arc<Partition>> = self.stream.partitions.read().values().cloned().collect();
        let (mut best, mut most, mut dirty_bytes): (Option<(Priority, Turn)>, _, _) = (None, 0.0f64, 0);
        let mut troubled = HashMap::new();
        for some in led.chunks(PARTITIONS_AT_ONCE) {
            for p in some {
                let Some(settings) = topics.get(&p.topic()) else {
                    continue;
                };
                let trouble = self.troubled.get(&p.id()).copied();
                troubled.extend(trouble.map(|t| (p.id(), t)));
                let looked = look_at(p, trouble.map_or(0, |t| t.passed), settings, now_ms);
                most = most.max(looked.dirty_ratio());
                dirty_bytes += looked.dirty_bytes;
                let rests = trouble
                    .and_then(|t| t.again)
                    .is_some_and(|again| Instant::now() < again);
                let Some(priority) = looked.priority(settings, now_ms).filter(|_| !rests) else {
                    continue;
                };
                if best.as_ref().is_none_or(|(other, _)| priority > *other) {
                    let turn = Turn {
                        partition: p.clone(),
                        settings: *settings,
                        end: looked.end,
                    };
                    best = Some((priority, turn));
                }
            }
            tokio::task::yield_now().await;
        }
        self.troubled = troubled;
        let metrics = &self.metrics;
        let uncleanable = self.troubled.values().filter(|t| t.is_of_its_own()).count();
        metrics.uncleanable.set(uncleanable as i64);
        metrics.max_dirty_percent.set(most * 100.0);
        metrics
            .dirty_bytes
            .set(i64::try_from(dirty_bytes).unwrap_or(i64::MAX));
        best.map(|(_, turn)| turn)
    }

    /// Goes through one partition.
    async fn pass(&mut self, turn: &Turn) -> Result<(), CompactError> {
        let (p, id, started) = (&turn.partition, turn.partition.id(), Instant::now());
        let (ranges, clean_to) = {
            let image = p.published.lock();
            (ranges_up_to(&image, turn.end), image.clean_to)
        };
        let mut pace = Pace {
            from: started,
            bytes: 0.0,
            per_second: self.options.bytes_per_second,
        };
        let dirty = ranges.partition_point(|r| r.last_offset < clean_to);
        let Mapped { newest, end, unread } = self.map(p, &ranges[dirty..], &mut pace).await?;
        self.metrics
            .map_percent
            .set(newest.len() as f64 * 100.0 / newest.room().max(1) as f64);
        let ranges = &ranges[..ranges.partition_point(|r| r.last_offset < end)];
        let rules = Rules {
            newest: Arc::new(newest),
            unread,
            now_ms: self.stream.clock.now_ms(),
            delete_retention_ms: turn.settings.delete_retention_ms,
        };
        let obstacle = self.rewrite(p, ranges, rules, &mut pace).await?;
        let before = self.troubled.remove(&id);
        if obstacle.is_some() {
            // With the map full at the same point again it would go on like this without a pause.
            let stands = before.is_some_and(|t| t.passed >= end);
            let again = stands.then(|| Instant::now() + AGAIN);
            let (passed, rest) = (end, Duration::ZERO);
            self.troubled.insert(id, Trouble { passed, rest, again });
        }
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.passes.inc();
        self.metrics.pass_seconds.observe(seconds);
        self.metrics.last_pass_seconds.set(seconds);
        Ok(())
    }

    /// Notes the newest offset of each key in `ranges`, as far as there is room: of at least one range.
    async fn map(
        &self,
        p: &Arc<Partition>,
        ranges: &[StoredRange],
        pace: &mut Pace,
    ) -> Result<Mapped, CompactError> {
        let first = ranges.first().map_or(0, |r| r.base_offset);
        let last = ranges.last().map_or(-1, |r| r.last_offset);
        let mut map = OffsetMap::new(self.options.map_bytes, (last + 1 - first).max(0).unsigned_abs());
        let (mut end, mut noted_any, mut unread) = (None, false, Unread::new());
        let mut brought = Box::pin(bring_all(self.stream.clone(), p.clone(), ranges));
        while let Some(some) = brought.next().await {
            let mut bytes = 0;
            for (r, found) in some? {
                let noted;
                (map, noted) = self
                    .on_verified(p, &r, found, map, |map, _, chunks| note_keys(map, chunks))
                    .await?;
                match noted {
                    Ok(Ok(())) => (end, noted_any) = (Some(r.last_offset + 1), true),
                    Ok(Err(Full)) => {
                        let end = end.filter(|_| noted_any).ok_or_else(|| {
                            CompactError::Uncleanable(format!(
                                "there are more keys in the bytes at offset {} than log.cleaner.dedupe.buffer.size has room for",
                                r.base_offset
                            ))
                        })?;
                        let newest = map;
                        return Ok(Mapped { newest, end, unread });
                    }
                    Err(why) => {
                        end = Some(r.last_offset + 1);
                        match why {
                            Why::Gone => continue,
                            Why::Archived => {}
                            Why::Unreadable(why) => drop(unread.insert(r.base_offset, why)),
                        }
                    }
                }
                bytes += u64::from(r.len);
            }
            pace.spend(bytes).await;
            self.check_led(p)?;
        }
        Ok(Mapped {
            newest: map,
            end: end.unwrap_or(0),
            unread,
        })
    }

    /// Writes anew what loses records, piece by piece. Answers where the first range begins that could not be read.
    async fn rewrite(
        &self,
        p: &Arc<Partition>,
        ranges: &[StoredRange],
        rules: Rules,
        pace: &mut Pace,
    ) -> Result<Option<Offset>, CompactError> {
        let id = p.id();
        let last_merged = ranges.iter().rposition(|r| r.place.level == Level::L1);
        let last_merged = last_merged.map(|i| ranges[i].base_offset);
        let (mut making, head) = self.begin();
        let mut rewriter = Rewriter::new(id, rules, head);
        let mut brought = Box::pin(bring_all(self.stream.clone(), p.clone(), ranges));
        while let Some(some) = brought.next().await {
            let mut bytes = 0;
            for (r, found) in some? {
                let found = match rewriter.was_unread(&r) {
                    Some(why) => Found::Nothing(Why::Unreadable(why.to_owned())),
                    None => found,
                };
                // Written in any case: the pointer to it says how far the pass went.
                let write = last_merged == Some(r.base_offset);
                let gone_through;
                (rewriter, gone_through) = self
                    .on_verified(p, &r, found, rewriter, move |rewriter, r, chunks| {
                        rewriter.range(r, chunks, write)
                    })
                    .await?;
                match gone_through {
                    Ok(done) => done.map_err(|e| CompactError::Uncleanable(e.to_string()))?,
                    Err(Why::Gone) => {
                        rewriter.skip();
                        continue;
                    }
                    Err(Why::Archived) => rewriter.gap(),
                    Err(Why::Unreadable(why)) => {
                        tell(&id, &r, &why);
                        rewriter.unreadable(&r);
                    }
                }
                bytes += u64::from(r.len);
                if rewriter.len() >= PIECE_BYTES {
                    let (next, head) = self.begin();
                    let piece = rewriter.take(head);
                    let made = std::mem::replace(&mut making, next);
                    let written = self.publish(p, made, piece, rewriter.obstacle).await?;
                    pace.spend(written).await;
                }
            }
            pace.spend(bytes).await;
            self.check_led(p)?;
        }
        let piece = rewriter.take(BytesMut::new());
        self.metrics.add(&rewriter.tally);
        self.publish(p, making, piece, rewriter.obstacle).await?;
        Ok(rewriter.obstacle)
    }

    /// The header of the next object, and its bytes before the data.
    fn begin(&self) -> (Making, BytesMut) {
        let stream = &self.stream;
        let file = stream.merged_numbers.begin();
        let header = MergedHeader {
            incarnation: stream.incarnation,
            number: file.number(),
            nonce: Uuid::new_v4(),
            manifest_version: stream.manifest_version.load(Ordering::Relaxed),
            written_ms: stream.clock.now_ms(),
        };
        let mut head = BytesMut::new();
        put_head(&mut head, &header, stream.cluster, 0);
        let head_len = head.len();
        let making = Making {
            file,
            header,
            head_len,
        };
        (making, head)
    }

    /// Writes an object and publishes the pointers to it. Returns its size.
    async fn publish(
        &self,
        p: &Arc<Partition>,
        making: Making,
        piece: Piece,
        obstacle: Option<Offset>,
    ) -> Result<u64, CompactError> {
        if piece.runs.is_empty() {
            return Ok(0);
        }
        if !self.policy.topics().contains_key(&p.topic()) {
            return Err(CompactError::Odd("the topic is not compacted any more".into()));
        }
        let (cluster, id, epoch) = (self.stream.cluster, p.id(), p.leader_epoch());
        let Making {
            mut file,
            header,
            head_len,
        } = making;
        let built = self
            .worker
            .run(move || finish(piece, header, head_len, cluster, (id, epoch)));
        let built = built.await.ok_or_else(panicked)?;
        let (object, index) = built.map_err(|why| {
            CompactError::Odd(format!(
                "what compaction would write is not right, and is not written: {why}"
            ))
        })?;
        let stream = &self.stream;
        let key = stream
            .store
            .key(&keys::merged(index.header.incarnation, index.header.number));
        let (nonce, bytes) = (index.header.nonce, object.len() as u64);
        let is_mine = |found: &Bytes| read_header(found, Some(cluster)).is_ok_and(|h| h.nonce == nonce);
        let patience = Patience::For(PATIENCE);
        match conditional::create(&stream.store, &key, object.into(), is_mine, patience).await {
            CreateOutcome::Committed => {}
            CreateOutcome::Lost(_) => return Err(CompactError::Odd(format!("{key} holds something else"))),
            CreateOutcome::Unknown(why) => return Err(CompactError::Store(why)),
        }
        let pointer = |merged: MergedRanges| {
            let end = merged.last_offset() + 1;
            // Everything below has been gone through, but for what could not be read.
            let clean_to = obstacle.map_or(end, |obstacle| obstacle.min(end));
            Entry::Compacted(CompactedRanges { merged, clean_to })
        };
        let entries = index.entries;
        let pointers = entries.iter().cloned().map(pointer).collect();
        // From here on the object may be referred to, whatever becomes of this task.
        file.submit();
        let fitting = stream.rewrite(pointers).await?;
        file.settle();
        if fitting < entries.len() {
            self.check_led(p)?;
            let image = p.published.lock();
            if !entries.iter().all(|m| took_effect(&image, m, stream.incarnation)) {
                return Err(CompactError::Odd(
                    "something else has rewritten it meanwhile".into(),
                ));
            }
        }
        Ok(bytes)
    }

    /// Does something with the bytes of a range, on the thread for it, once they are what was written: they are read again
    /// if they are not. Gives `state` back, and inside why there are no such bytes.
    async fn on_verified<S: Send + 'static, T: Send + 'static>(
        &self,
        p: &Arc<Partition>,
        r: &StoredRange,
        found: Found,
        mut state: S,
        job: impl Fn(&mut S, &StoredRange, &[Bytes]) -> T + Clone + Send + 'static,
    ) -> Result<(S, Result<T, Why>), CompactError> {
        let mut found = found;
        let mut tries = 0;
        loop {
            let chunks = match found {
                Found::Bytes(chunks) => chunks,
                Found::Nothing(Why::Unreadable(why)) => {
                    let why = self.why_unreadable(p, r, why)?;
                    return Ok((state, Err(why)));
                }
                Found::Nothing(why) => return Ok((state, Err(why))),
            };
            let (range, job) = (*r, job.clone());
            let done = self.worker.run(move || match verify(&range, &chunks) {
                Ok(()) => {
                    let done = job(&mut state, &range, &chunks);
                    (state, Ok(done))
                }
                Err(why) => (state, Err(why)),
            });
            let done = done.await.ok_or_else(panicked)?;
            state = done.0;
            tries += 1;
            found = match done.1 {
                Ok(done) => return Ok((state, Ok(done))),
                Err(why) if tries > 1 => Found::Nothing(Why::Unreadable(why.to_string())),
                Err(_) => {
                    let bytes = bytes_of(r);
                    match get(&self.stream, r.place, bytes).await? {
                        Ok(chunks) => Found::Bytes(chunks),
                        Err(why) => Found::Nothing(Why::Unreadable(why)),
                    }
                }
            };
        }
    }

    /// Why a range cannot be read: that it is not there any more is no wonder once the log start has passed it. Fails if
    /// it stands elsewhere than when the pass was planned.
    fn why_unreadable(&self, p: &Partition, r: &StoredRange, why: String) -> Result<Why, CompactError> {
        if self.stream.holds(&p.id(), r) {
            return Ok(Why::Unreadable(why));
        }
        self.check_led(p)?;
        match is_passed(p, r) {
            true => Ok(Why::Gone),
            false => Err(CompactError::Odd(
                "what was to be compacted was rewritten meanwhile".into(),
            )),
        }
    }

    fn check_led(&self, p: &Partition) -> Result<(), CompactError> {
        if self.stream.is_fenced() {
            return Err(CompactError::Ended(AppendError::NotLeader));
        }
        if p.check_appendable().is_err() {
            return Err(CompactError::Odd("the partition is not led here any more".into()));
        }
        Ok(())
    }
}

fn look_at(p: &Partition, passed: Offset, settings: &CompactionSettings, now_ms: i64) -> Look {
    let image = p.published.lock();
    let last_stable = p.watermarks_of(&image).last_stable_offset;
    look(&image, last_stable, passed, settings, now_ms)
}

/// Whether the log start has passed all of a range.
fn is_passed(p: &Partition, r: &StoredRange) -> bool {
    r.last_offset < p.published.lock().state.log_start
}

fn panicked() -> CompactError {
    CompactError::Uncleanable("compaction failed on it unexpectedly".into())
}

fn tell(id: &TopicPartition, r: &StoredRange, why: &str) {
    let key = keys::place(r.place);
    tracing::error!(
        topic = %id.topic, partition = id.partition, offset = r.base_offset, key, why,
        "stored bytes cannot be compacted; they stay where they are, and deletion marks behind them too"
    );
}

fn bytes_of(r: &StoredRange) -> Range<u64> {
    let from = u64::from(r.position);
    from..from + u64::from(r.len)
}

/// Brings ranges in their order, some at a time.
fn bring_all(
    stream: Arc<Stream>,
    p: Arc<Partition>,
    ranges: &[StoredRange],
) -> impl futures::Stream<Item = Result<Vec<(StoredRange, Found)>, CompactError>> + Send + use<> {
    let groups: Vec<Vec<StoredRange>> = reads(ranges).into_iter().map(|r| ranges[r].to_vec()).collect();
    stream::iter(groups)
        .map(move |group| bring(stream.clone(), p.clone(), group))
        .buffered(READS_AT_ONCE)
}

/// Brings ranges that stand side by side.
async fn bring(
    stream: Arc<Stream>,
    p: Arc<Partition>,
    group: Vec<StoredRange>,
) -> Result<Vec<(StoredRange, Found)>, CompactError> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Ok(vec![]);
    };
    let nothing = |why: &dyn Fn() -> Why| group.iter().map(|r| (*r, Found::Nothing(why()))).collect();
    if is_passed(&p, last) {
        return Ok(nothing(&|| Why::Gone));
    }
    match first.place.level {
        Level::L2 => return Ok(nothing(&|| Why::Archived)),
        Level::L0 => return Ok(nothing(&|| Why::Unreadable("it could not be merged".into()))),
        Level::L1 => {}
    }
    let from = u64::from(first.position);
    match get(&stream, first.place, from..bytes_of(last).end).await? {
        Ok(whole) => {
            let found = group.iter().map(|r| {
                let bytes = bytes_of(r);
                let within = (bytes.start - from) as usize..(bytes.end - from) as usize;
                (*r, Found::Bytes(slice_chunks(&whole, within)))
            });
            Ok(found.collect())
        }
        Err(why) => Ok(nothing(&|| Why::Unreadable(why.clone()))),
    }
}

/// Finishes an object, after a look at whether it is what its index says.
fn finish(
    piece: Piece,
    header: MergedHeader,
    head_len: usize,
    cluster: Uuid,
    (partition, leader_epoch): (TopicPartition, i32),
) -> Result<(Bytes, MergedIndex), String> {
    let mut object = piece.object;
    let mut head = BytesMut::with_capacity(head_len);
    put_head(&mut head, &header, cluster, (object.len() - head_len) as u64);
    object[..head_len].copy_from_slice(&head);
    let entry = |run: Run| {
        let position = u32::try_from(run.position).map_err(|e| e.to_string())?;
        Ok::<_, String>(MergedRanges {
            partition,
            leader_epoch,
            file: header.number,
            position,
            base_offset: run.base_offset,
            ranges: run.ranges,
        })
    };
    let entries = piece.runs.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    let object_so_far = object.freeze();
    for merged in &entries {
        for r in stored(merged, header.incarnation) {
            // As strictly as what was just appended: there are no gaps.
            let r = StoredRange {
                place: Place::l0(r.place.incarnation, 0),
                ..r
            };
            let bytes = bytes_of(&r);
            let bytes = object_so_far.slice(bytes.start as usize..bytes.end as usize);
            verify(&r, std::slice::from_ref(&bytes)).map_err(|e| e.to_string())?;
        }
    }
    let mut object = BytesMut::from(object_so_far);
    let index = MergedIndex { header, entries };
    put_tail(&mut object, &index);
    Ok((object.freeze(), index))
}

#[cfg(test)]
mod tests;
