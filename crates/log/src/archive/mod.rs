//! Archiving (L2): merged data becomes history, in files that analysts query and consumers are served from.
//!
//! When the merged data of a topic reaches the size of a file, or is old enough, the owner writes a file of it and
//! publishes where everything is *as entries in its stream*: an archive of a broker that lost its stream cannot take
//! effect. What was merged is then garbage; nothing is deleted here.
//!
//! A batch that is not as it was written, or whose inside is bad, is *quarantined*: the log tells, a metric counts it,
//! and the range of merged data that it stands in (about 1 MiB) stays as it is, where consumers get it byte for byte. What
//! lies around it is archived. Data that was once compacted is archived like any other: its batches stand for the offsets
//! that compaction took, and history has no row of them.
//!
//! A file whose fate is unknown is given up together with its number, and is garbage ([`crate::garbage`]).
//!
//! [`plan`] decides what goes into a file, [`file`] brings it from the store to the store, [`thread`] works on it and
//! [`pace`] slows it down; this file says when, and publishes.

mod file;
mod pace;
mod plan;
mod thread;
mod upload;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checkpointer::Checkpointer;
use crate::entry::{ArchivedShares, Entry, Level};
use crate::history::{History, HistoryTopic};
use crate::keys;
use crate::log::AppendError;
use crate::manifest::keeper::ManifestKeeper;
use crate::manifest::{LEVEL_OF_HISTORY, Topic};
use crate::merge::plan::{Run, only_of};
use crate::partition::image::StoredRange;
use crate::stream::Stream;
use crate::{Offset, Partition, TopicId, TopicPartition};
use file::{FileError, Left, Order, Written};
use pace::Pace;
pub(crate) use plan::Asks;
use plan::{FileLimits, Lag, Offered, archivable, choose, take_turns};
use thread::Manner;

/// How often it is looked at what is due.
const LOOK: Duration = Duration::from_secs(5);
/// A topic whose file could not be written is left alone for this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Ranges and partitions that go into one file at most.
const FILE_RANGES: usize = 20_000;
const FILE_PARTITIONS: usize = 1_000;
/// Partitions that are looked at between two points at which others may go on.
const PARTITIONS_AT_ONCE: usize = 500;
/// Ranges to be left alone that are remembered. Beyond that they are looked at again with every file.
const SET_ASIDE_MAX: usize = 100_000;

/// Settings of archiving.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArchiveOptions {
    /// `archive.threads`: files that are written at the same time, each on a thread of its own; 0: a quarter of the
    /// processor's cores, and at least one.
    pub threads: usize,
    /// `archive.bytes.per.second`: how fast merged data is read for it.
    pub bytes_per_second: u64,
    /// `archive.pause.above.ms`: no more is read while an append has waited longer than this to become durable, for
    /// up to 30 s.
    pub pause_above: Duration,
    /// `archive.flush.min.interval.ms`: a topic becomes history because somebody asks for it ([`crate::Log::archive_now`])
    /// once in this time at most; who asks sooner waits.
    pub flush_interval_min: Duration,
    /// Work for a processor is done on threads of its own. A simulation does it in place.
    pub own_threads: bool,
}

impl Default for ArchiveOptions {
    fn default() -> ArchiveOptions {
        ArchiveOptions {
            threads: 0,
            bytes_per_second: 64 << 20,
            pause_above: Duration::from_secs(1),
            flush_interval_min: Duration::from_secs(10),
            own_threads: true,
        }
    }
}

/// How a topic is archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchivePolicy {
    /// So many bytes of merged data make a file.
    pub file_bytes: u64,
    /// What is merged is archived after at most about this time, however little it is.
    pub interval: Duration,
    /// Values are written as text. MUST never change back for a topic.
    pub text_values: bool,
}

/// Says which topics are archived, and how.
pub trait ArchivePolicies: fmt::Debug + Send + Sync {
    /// The policy of a topic; `None`: it is not archived.
    fn policy(&self, name: &str, topic: &Topic) -> Option<ArchivePolicy>;
}

/// What became of a partition that somebody wanted archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedPartition {
    /// Its number.
    pub partition: i32,
    /// Everything that is left of the log below this offset is in history.
    pub archived_to: Offset,
    /// Where its log ended when it was asked for.
    pub end: Offset,
    /// Why less than that is archived.
    pub why: Option<String>,
}

/// Why nothing can be archived now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotArchived {
    /// This program does not know the format.
    #[error("this program writes no history")]
    NoFormat,
    /// There is no such topic, or this broker leads none of its partitions.
    #[error("this broker leads no partition of the topic")]
    NotLed,
    /// It is internal, compacted, or archiving is off for it.
    #[error("the topic is not archived")]
    NotThisTopic,
    /// Files of history may not be written yet.
    #[error(
        "the bucket's feature level is {0}, and history needs {LEVEL_OF_HISTORY}: raise it with `alluvium cluster \
         feature-level`"
    )]
    Level(u32),
    /// This broker stops, or has lost its stream.
    #[error("this broker is stopping, or was taken over")]
    Ended,
    /// Something fails now; it is tried again later.
    #[error("{0}")]
    Failed(String),
}

/// A wish to have a topic archived up to some offsets, by partition number.
#[derive(Debug)]
pub(crate) struct Flush {
    pub(crate) topic: TopicId,
    pub(crate) ends: BTreeMap<i32, Offset>,
    pub(crate) done: oneshot::Sender<Result<(), NotArchived>>,
}

/// How to ask the task that archives.
#[derive(Debug)]
pub(crate) struct AskArchiver {
    pub(crate) flushes: mpsc::Sender<Flush>,
    /// Says which topics are archived, if any is.
    pub(crate) policies: Arc<dyn ArchivePolicies>,
    pub(crate) asks: Mutex<Asks>,
}

impl AskArchiver {
    /// Waits until it is the topic's time; an error if the task ends before.
    pub(crate) async fn admitted(&self, topic: TopicId) -> Result<(), NotArchived> {
        loop {
            let admitted = self.asks.lock().admit(topic, Instant::now());
            let Err(later) = admitted else {
                return Ok(());
            };
            tokio::select! {
                () = tokio::time::sleep_until(later) => {}
                () = self.flushes.closed() => return Err(NotArchived::Ended),
            }
        }
    }
}

/// What every file needs.
#[derive(Debug)]
struct Shared {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    checkpointer: Arc<Checkpointer>,
    format: Arc<dyn History>,
    pace: Pace,
    own_threads: bool,
    /// Ranges that stay where they are, by their first offset.
    set_aside: Mutex<HashSet<(TopicPartition, Offset)>>,
}

/// Archives the merged data of one open log.
#[derive(Debug)]
pub(crate) struct Archiver {
    shared: Arc<Shared>,
    policies: Arc<dyn ArchivePolicies>,
    threads: usize,
    flushes: Vec<Flush>,
    /// Topics of which a file is being written.
    busy: HashSet<TopicId>,
    /// Topics that failed, and when they are tried again.
    left_alone: BTreeMap<TopicId, Instant>,
    /// Whether the last file that was begun was of a topic that somebody asked for.
    asked_last: bool,
}

/// A topic that may be archived.
#[derive(Clone, Debug)]
struct Candidate {
    topic: HistoryTopic,
    policy: ArchivePolicy,
    partitions: Vec<Arc<Partition>>,
    lag: Lag,
}

/// A file that was written and published, or why not.
type Outcome = Result<(), EndOfFile>;

/// Why a file came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum EndOfFile {
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing that was chosen can be archived, and no more of it can be remembered: it would be chosen again at once.
    #[error("more than {SET_ASIDE_MAX} stored ranges cannot be archived")]
    TooMuchBad,
    /// The stream ends or is lost.
    #[error(transparent)]
    Stream(#[from] AppendError),
}

impl Archiver {
    pub(crate) fn new(
        stream: Arc<Stream>,
        keeper: Arc<ManifestKeeper>,
        checkpointer: Arc<Checkpointer>,
        format: Arc<dyn History>,
        policies: Arc<dyn ArchivePolicies>,
        options: ArchiveOptions,
    ) -> Archiver {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match options.threads {
            0 => (cores / 4).max(1),
            threads => threads,
        };
        Archiver {
            shared: Arc::new(Shared {
                stream,
                keeper,
                checkpointer,
                format,
                pace: Pace::new(options.bytes_per_second, options.pause_above),
                own_threads: options.own_threads,
                set_aside: Mutex::default(),
            }),
            policies,
            threads,
            flushes: vec![],
            busy: HashSet::new(),
            left_alone: BTreeMap::new(),
            asked_last: false,
        }
    }

    /// Runs until the task is aborted or the stream ends; files that are being written are given up then.
    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<Flush>) {
        let stream = self.shared.stream.clone();
        let mut files = JoinSet::new();
        let work = async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    Some(flush) = asked.recv() => self.flushes.push(flush),
                    Some(ended) = files.join_next(), if !files.is_empty() => {
                        let goes_on = match ended {
                            Ok((topic, outcome)) => self.settle(topic, outcome),
                            Err(e) => {
                                tracing::error!(error = %e, "archiving has failed, and ends");
                                false
                            }
                        };
                        if !goes_on {
                            return;
                        }
                    }
                }
                self.begin_due(&mut files).await;
            }
        };
        tokio::select! {
            _ = stream.fenced() => {}
            () = work => {}
        }
    }

    /// A file came to an end; whether there is anything left to do in this stream.
    fn settle(&mut self, topic: TopicId, outcome: Outcome) -> bool {
        self.busy.remove(&topic);
        match outcome {
            Ok(()) => drop(self.left_alone.remove(&topic)),
            Err(EndOfFile::Stream(_)) => return false,
            Err(why) => {
                tracing::warn!(%topic, %why, "a topic could not be archived; trying again later");
                self.left_alone.insert(topic, Instant::now() + AGAIN);
                self.answer(|flush| {
                    (flush.topic == topic).then(|| Err(NotArchived::Failed(why.to_string())))
                });
            }
        }
        true
    }

    /// Answers those flushes for which there is an answer.
    fn answer(&mut self, answer: impl Fn(&Flush) -> Option<Result<(), NotArchived>>) {
        for flush in std::mem::take(&mut self.flushes) {
            match answer(&flush) {
                // Whoever has gone away need not know.
                Some(answer) => drop(flush.done.send(answer)),
                None => self.flushes.push(flush),
            }
        }
    }

    /// Begins as many files as there are threads for.
    async fn begin_due(&mut self, files: &mut JoinSet<(TopicId, Outcome)>) {
        let mut candidates = self.survey().await;
        let now_ms = self.shared.stream.clock.now_ms();
        let waits = |topic: &TopicId| {
            let pending = |c: &Candidate| c.topic.id == *topic && c.lag.asked;
            candidates.iter().any(pending)
        };
        let answered: HashSet<TopicId> = self
            .flushes
            .iter()
            .map(|flush| flush.topic)
            .filter(|topic| !waits(topic) && !self.busy.contains(topic))
            .collect();
        self.answer(|flush| answered.contains(&flush.topic).then_some(Ok(())));
        candidates.retain(|c| c.lag.is_due(&c.policy, now_ms));
        self.measure(&candidates, now_ms);
        let now = Instant::now();
        candidates.retain(|c| {
            let id = c.topic.id;
            // Who asks for it does not wait for the next try.
            let may = c.lag.asked || self.left_alone.get(&id).is_none_or(|until| *until <= now);
            may && !self.busy.contains(&id)
        });
        let waiting: Vec<Lag> = candidates.iter().map(|c| c.lag).collect();
        let free = self.threads.saturating_sub(files.len());
        let next = take_turns(&waiting, free, &mut self.asked_last);
        let mut candidates: Vec<Option<Candidate>> = candidates.into_iter().map(Some).collect();
        for candidate in next.into_iter().filter_map(|i| candidates[i].take()) {
            let (shared, id) = (self.shared.clone(), candidate.topic.id);
            self.busy.insert(id);
            files.spawn(async move { (id, shared.archive(candidate).await) });
        }
    }

    fn measure(&self, due: &[Candidate], now_ms: i64) {
        let metrics = &self.shared.stream.metrics;
        let bytes: u64 = due.iter().map(|c| c.lag.bytes).sum();
        let age = due.iter().map(|c| c.lag.age(now_ms)).max().unwrap_or_default();
        metrics
            .archive_due_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        metrics.archive_due_age_seconds.set(age.as_secs_f64());
    }

    /// What is merged and not archived, of every topic that may be archived.
    async fn survey(&self) -> Vec<Candidate> {
        let manifest = self.shared.keeper.current();
        if manifest.feature_level < LEVEL_OF_HISTORY {
            return vec![];
        }
        let mut candidates: BTreeMap<TopicId, Candidate> = BTreeMap::new();
        for (name, topic) in &manifest.topics {
            let Some(policy) = self.policies.policy(name, topic) else {
                continue;
            };
            let topic = HistoryTopic {
                cluster: self.shared.stream.cluster,
                id: topic.id,
                name: name.clone(),
                text_values: policy.text_values,
            };
            candidates.insert(
                topic.id,
                Candidate {
                    topic,
                    policy,
                    partitions: vec![],
                    lag: Lag::default(),
                },
            );
        }
        let led: Vec<Arc<Partition>> = self.shared.stream.partitions.read().values().cloned().collect();
        for some in led.chunks(PARTITIONS_AT_ONCE) {
            for p in some {
                let Some(candidate) = candidates.get_mut(&p.topic()) else {
                    continue;
                };
                let asked = self.flushes.iter().filter(|f| f.topic == p.topic());
                let asked_to = asked.filter_map(|f| f.ends.get(&p.index())).max().copied();
                self.shared.each_archivable(p, |r| candidate.lag.add(r, asked_to));
                candidate.partitions.push(p.clone());
            }
            tokio::task::yield_now().await;
        }
        candidates.into_values().collect()
    }
}

impl Shared {
    /// Goes through the ranges of a partition that may be archived now, in offset order.
    fn each_archivable(&self, p: &Partition, mut each: impl FnMut(&StoredRange)) {
        // What is about to be released, or has gone, takes no pointer any more.
        if p.check_appendable().is_err() {
            return;
        }
        let set_aside = self.set_aside.lock();
        let image = p.published.lock();
        let stable = p.watermarks_of(&image).last_stable_offset;
        let bad = |r: &StoredRange| !set_aside.is_empty() && set_aside.contains(&(p.id(), r.base_offset));
        archivable(&image, stable).filter(|r| !bad(r)).for_each(&mut each);
    }

    /// Writes one file of a topic, and publishes it.
    async fn archive(&self, candidate: Candidate) -> Outcome {
        let limits = FileLimits {
            bytes: candidate.policy.file_bytes.max(1),
            ranges: FILE_RANGES,
            partitions: FILE_PARTITIONS,
        };
        let started = Instant::now();
        let mut manner = Manner::Swift;
        loop {
            let mut offered = vec![];
            for some in candidate.partitions.chunks(PARTITIONS_AT_ONCE) {
                for p in some {
                    let mut ranges = vec![];
                    self.each_archivable(p, |r| ranges.push(*r));
                    offered.push(Offered {
                        partition: p.id(),
                        leader_epoch: p.leader_epoch(),
                        ranges,
                    });
                }
                tokio::task::yield_now().await;
            }
            let runs = choose(offered, limits);
            if runs.is_empty() {
                return Ok(());
            }
            let mut file = self.stream.archived_numbers.begin();
            let order = Order {
                stream: &self.stream,
                format: &self.format,
                topic: &candidate.topic,
                number: file.number(),
                runs: &runs,
                manner,
                own_thread: self.own_threads,
                pace: &self.pace,
            };
            match order.carry_out().await {
                Ok(written) => {
                    let seconds = started.elapsed().as_secs_f64();
                    self.stream.metrics.archive_seconds.observe(seconds);
                    // From here on the file may be referred to, whatever becomes of this task; of one that is not there
                    // the number is settled in any case.
                    if !written.pointers.is_empty() {
                        file.submit();
                    }
                    self.publish(written, &runs).await?;
                    file.settle();
                    return Ok(());
                }
                Err(FileError::Bad {
                    partition,
                    range,
                    why,
                }) => {
                    let partition = TopicPartition {
                        topic: candidate.topic.id,
                        partition,
                    };
                    let why = why.to_string();
                    self.set_aside(&Left {
                        partition,
                        range,
                        why,
                    });
                    // Where there is one there may be many, and each would cost a file.
                    manner = Manner::Careful;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Publishes where everything is that a file of `runs` holds.
    async fn publish(&self, written: Written, runs: &[Run]) -> Outcome {
        written.left_out.iter().for_each(|left| self.set_aside(left));
        if written.pointers.is_empty() {
            let full = self.set_aside.lock().len() >= SET_ASIDE_MAX;
            return if full { Err(EndOfFile::TooMuchBad) } else { Ok(()) };
        }
        let metrics = &self.stream.metrics;
        metrics.archived_files.inc();
        metrics.archived_bytes.inc_by(written.bytes);
        metrics.archived_rows.inc_by(written.rows);
        let bytes = written.pointers.iter().map(ArchivedShares::byte_len).sum();
        // A topic whose policy has changed may have been compacted meanwhile: that must not be undone.
        let pointers = written.pointers.into_iter();
        let pointers = pointers
            .map(|shares| only_of(runs, Entry::Archived(shares)))
            .collect();
        if self.stream.rewrite_if(pointers).await? > 0 {
            self.checkpointer.merged(bytes);
        }
        Ok(())
    }

    /// Leaves a range where it is, for good as far as this broker start is concerned.
    fn set_aside(&self, left: &Left) {
        let (tp, r) = (left.partition, left.range);
        if !self.stream.holds(&tp, &r) {
            // The log start has passed it, or its topic is gone: nobody needs it any more.
            return;
        }
        let mut set_aside = self.set_aside.lock();
        if set_aside.len() < SET_ASIDE_MAX && !set_aside.insert((tp, r.base_offset)) {
            return;
        }
        drop(set_aside);
        let (key, why) = (keys::place(r.place), &left.why);
        tracing::error!(
            topic = %tp.topic, partition = tp.partition, offset = r.base_offset, last_offset = r.last_offset, key, why,
            "stored records cannot be archived; they stay where they are"
        );
        self.stream.metrics.unarchivable_ranges.inc();
    }
}

/// How far a partition is archived, and why no further, of what ended at `end` once.
pub(crate) fn archived_to(p: &Partition, end: Offset) -> ArchivedPartition {
    let image = p.published.lock();
    let first = image.ranges.iter().find(|r| r.place.level != Level::L2);
    let log_start = image.state.log_start;
    let archived_to = first.map_or(image.state.end, |r| r.base_offset).max(log_start);
    let why = first.filter(|_| archived_to < end).map(|r| {
        let left = image.ranges.range(image.range_from(r.base_offset)..);
        let left = left.filter(|r| r.place.level != Level::L2 && r.base_offset < end);
        let (ranges, bytes) = left.fold((0u64, 0u64), |(n, sum), r| (n + 1, sum + u64::from(r.len)));
        format!(
            "{ranges} ranges ({bytes} bytes) from offset {} on could not be merged or archived; the broker's log says \
             why",
            r.base_offset
        )
    });
    ArchivedPartition {
        partition: p.index(),
        archived_to,
        end,
        why,
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod tests;
