//! What is archived next, and what is said of it: the pure part.
//!
//! A file takes merged ranges of one topic, the oldest first over all partitions, until it is full. As append times
//! never go back in a partition, that is a front of each partition's merged data; in the file it stands by partition
//! and offset.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::batch::ChunkCursor;
use crate::entry::{ArchivedShare, ArchivedShares};
use crate::history::Share;
use crate::merge::plan::{Run, neighbours};
use crate::partition::image::{PartitionImage, StoredRange};
use crate::{Offset, TopicId, TopicPartition};

use super::ArchivePolicy;

/// What one file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimits {
    /// Bytes of merged data; at least one range, however large.
    pub(crate) bytes: u64,
    pub(crate) ranges: usize,
    /// Each takes a row group of its own, which makes a file of many small ones slow to open.
    pub(crate) partitions: usize,
}

/// What of a topic is merged and not archived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) bytes: u64,
    /// Append time (ms) of the oldest.
    pub(crate) oldest_ms: Option<i64>,
    /// Whether any of it was asked for now.
    pub(crate) asked: bool,
}

impl Lag {
    /// Counts a range, which somebody asked for if it begins below `asked_to`.
    pub(crate) fn add(&mut self, r: &StoredRange, asked_to: Option<Offset>) {
        self.bytes += u64::from(r.len);
        let oldest = self.oldest_ms.unwrap_or(i64::MAX);
        self.oldest_ms = Some(oldest.min(r.append_time_ms));
        self.asked |= asked_to.is_some_and(|to| r.base_offset < to);
    }

    /// How long the oldest waits.
    pub(crate) fn age(&self, now_ms: i64) -> Duration {
        let age_ms = self.oldest_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest));
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }

    /// Whether a file is to be written.
    pub(crate) fn is_due(&self, policy: &ArchivePolicy, now_ms: i64) -> bool {
        self.bytes > 0
            && (self.asked || self.bytes >= policy.file_bytes || self.age(now_ms) >= policy.interval)
    }
}

/// Keeps the times apart at which a topic becomes history because somebody asks for it: each makes a file, however
/// little there is, and has the stream merged.
#[derive(Debug)]
pub(crate) struct Asks {
    apart: Duration,
    /// When a topic was last let through; only of those that have to wait.
    last: BTreeMap<TopicId, Instant>,
}

impl Asks {
    pub(crate) fn new(apart: Duration) -> Asks {
        let last = BTreeMap::new();
        Asks { apart, last }
    }

    /// Lets a topic through, or says when to come again.
    pub(crate) fn admit(&mut self, topic: TopicId, now: Instant) -> Result<(), Instant> {
        let apart = self.apart;
        self.last
            .retain(|_, last| now.saturating_duration_since(*last) < apart);
        match self.last.get(&topic) {
            Some(last) => Err(*last + apart),
            None => {
                self.last.insert(topic, now);
                Ok(())
            }
        }
    }
}

/// Which topics get the free threads, in order, as positions in `waiting`. Those that somebody asked for and those that
/// are only due take turns, so that neither kind holds the other up; of each kind the one with the oldest data is
/// next. `asked_last` is whose turn it was last, and is brought up to date.
pub(crate) fn take_turns(waiting: &[Lag], free: usize, asked_last: &mut bool) -> Vec<usize> {
    let of_kind = |asked: bool| {
        let mut kind: Vec<usize> = (0..waiting.len())
            .filter(|i| waiting[*i].asked == asked)
            .collect();
        kind.sort_by_key(|i| waiting[*i].oldest_ms);
        kind.into_iter().peekable()
    };
    let (mut asked, mut due) = (of_kind(true), of_kind(false));
    let mut taken = vec![];
    while taken.len() < free {
        let next = match (asked.peek(), due.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(_), Some(_)) => !*asked_last,
        };
        *asked_last = next;
        let kind = if next { &mut asked } else { &mut due };
        taken.extend(kind.next());
    }
    taken
}

/// Ranges of a partition that may be archived: merged, and below `stable`, from which on transactions may be open. One
/// without bytes has no record: compaction has left nothing of it.
pub(crate) fn archivable(image: &PartitionImage, stable: Offset) -> impl Iterator<Item = &StoredRange> {
    image
        .merged_ranges()
        .filter(move |r| r.last_offset < stable && r.len > 0)
}

/// What one partition has for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) partition: TopicPartition,
    pub(crate) leader_epoch: i32,
    /// In offset order.
    pub(crate) ranges: Vec<StoredRange>,
}

/// What goes into the next file, by partition and offset.
pub(crate) fn choose(offered: Vec<Offered>, limits: FileLimits) -> Vec<Run> {
    let mut order: Vec<(i64, usize, usize)> = vec![];
    for (p, of_partition) in offered.iter().enumerate() {
        // Never back, also if times should be.
        let mut time = i64::MIN;
        for (i, r) in of_partition.ranges.iter().enumerate() {
            time = time.max(r.append_time_ms);
            order.push((time, p, i));
        }
    }
    order.sort_unstable();
    // Of each partition, how many ranges from the front are taken.
    let mut taken = vec![0usize; offered.len()];
    let (mut bytes, mut ranges, mut partitions) = (0u64, 0usize, 0usize);
    for (_, p, i) in order {
        let len = u64::from(offered[p].ranges[i].len);
        if ranges > 0 && (bytes + len > limits.bytes || ranges == limits.ranges) {
            break;
        }
        if taken[p] == 0 {
            if partitions == limits.partitions {
                break;
            }
            partitions += 1;
        }
        bytes += len;
        ranges += 1;
        taken[p] = i + 1;
    }
    let mut runs: Vec<Run> = vec![];
    for (of_partition, taken) in offered.iter().zip(taken) {
        let chosen = of_partition.ranges.iter().take(taken);
        runs.extend(neighbours(
            of_partition.partition,
            of_partition.leader_epoch,
            chosen,
        ));
    }
    // The ranges of a partition are in order already.
    runs.sort_by_key(|run| (run.partition, run.ranges.first().map_or(0, |r| r.base_offset)));
    runs
}

/// Cuts runs into pieces that are read at once, in order; a piece is larger only if it is a single range.
pub(crate) fn pieces(runs: &[Run], bytes: u64) -> Vec<Vec<Run>> {
    let (mut pieces, mut piece, mut filled) = (vec![], Vec::<Run>::new(), 0u64);
    for run in runs {
        let begin = || Run {
            ranges: vec![],
            ..run.clone()
        };
        let mut part = begin();
        for r in &run.ranges {
            let len = u64::from(r.len);
            if filled > 0 && filled + len > bytes {
                if !part.ranges.is_empty() {
                    piece.push(std::mem::replace(&mut part, begin()));
                }
                pieces.push(std::mem::take(&mut piece));
                filled = 0;
            }
            part.ranges.push(*r);
            filled += len;
        }
        if !part.ranges.is_empty() {
            piece.push(part);
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Ranges that did not go into a file, by partition and first offset.
pub(crate) type LeftOut = BTreeSet<(TopicPartition, Offset)>;

/// What entries say of a file of `runs` without those ranges that were left out, and whose writer says that `shares`
/// stand in it. An error, in words, if these are not the same offsets.
pub(crate) fn pointers(
    runs: &[Run],
    left_out: &LeftOut,
    file: u64,
    shares: &[Share],
) -> Result<Vec<ArchivedShares>, String> {
    let mut shares = shares.iter();
    let mut pointers = vec![];
    for span in runs.iter().flat_map(|run| without(run, left_out)) {
        let (Some(first), Some(last)) = (span.ranges.first(), span.ranges.last()) else {
            continue;
        };
        let mut pointer = ArchivedShares {
            partition: span.partition,
            leader_epoch: span.leader_epoch,
            file,
            base_offset: first.base_offset,
            shares: vec![],
        };
        let mut next = first.base_offset;
        while next <= last.last_offset {
            let fits = |s: &&Share| {
                s.partition == span.partition.partition
                    && s.base_offset == next
                    && (next..=last.last_offset).contains(&s.last_offset)
            };
            let Some(share) = shares.next().filter(fits) else {
                return Err(format!(
                    "partition {}: the file's shares do not go on at offset {next}",
                    span.partition.partition
                ));
            };
            pointer.shares.push(ArchivedShare {
                last_offset: share.last_offset,
                first_row: share.first_row,
                len: share.len,
                max_timestamp: share.max_timestamp,
                append_time_ms: share.append_time_ms,
            });
            next = share.last_offset + 1;
        }
        pointers.push(pointer);
    }
    match shares.next() {
        None => Ok(pointers),
        Some(more) => Err(format!(
            "partition {}: the file has a share at offset {} that nobody gave it",
            more.partition, more.base_offset
        )),
    }
}

/// Whether a range's batches, which were verified, leave offsets out between them or at its ends. Compaction does not.
pub(crate) fn has_gaps(r: &StoredRange, chunks: &[Bytes]) -> bool {
    let mut next = r.base_offset;
    let mut cursor = ChunkCursor::new(chunks);
    while let Some(Ok(batch)) = cursor.next_batch() {
        if batch.header.base_offset != next {
            return true;
        }
        next = batch.header.last_offset().wrapping_add(1);
    }
    next != r.last_offset + 1
}

/// A run without the ranges that were left out: it falls apart there.
fn without(run: &Run, left_out: &LeftOut) -> Vec<Run> {
    let kept = |r: &&StoredRange| !left_out.contains(&(run.partition, r.base_offset));
    neighbours(run.partition, run.leader_epoch, run.ranges.iter().filter(kept))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::entry::Place;

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: Uuid::from_u128(1),
            partition,
        }
    }

    fn range(base_offset: Offset, n: i64, len: u32, append_time_ms: i64) -> StoredRange {
        StoredRange {
            base_offset,
            last_offset: base_offset + n - 1,
            place: Place::l1(1, 1),
            position: 0,
            len,
            max_timestamp: 0,
            append_time_ms,
        }
    }

    fn policy(file_bytes: u64, interval: u64) -> ArchivePolicy {
        ArchivePolicy {
            file_bytes,
            interval: Duration::from_millis(interval),
            text_values: false,
        }
    }

    #[test]
    fn a_file_is_due_by_size_by_age_and_when_asked_for() {
        let mut lag = Lag::default();
        assert!(!lag.is_due(&policy(0, 0), 1_000), "there is nothing");
        lag.add(&range(10, 5, 100, 600), None);
        lag.add(&range(15, 5, 100, 500), None);
        let due = |lag: &Lag, bytes, interval| lag.is_due(&policy(bytes, interval), 1_000);
        assert!(due(&lag, 200, 10_000) && !due(&lag, 201, 10_000));
        assert!(due(&lag, 1_000, 500) && !due(&lag, 1_000, 501), "{lag:?}");
        lag.add(&range(20, 5, 1, 700), Some(20));
        assert!(!due(&lag, 1_000, 10_000), "what was asked for is below");
        lag.add(&range(20, 5, 1, 700), Some(21));
        assert!(due(&lag, 1_000, 10_000));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Time goes on (ms), and a topic is asked for.
        Ask(u64, u8),
        /// Topics come to wait, each with whether it was asked for and the time of its oldest data; then some threads
        /// are free.
        Free(Vec<(bool, i64)>, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ask = (0u64..4_000, 0u8..3).prop_map(|(later, topic)| Step::Ask(later, topic));
        let comes = proptest::collection::vec((any::<bool>(), 0i64..100), 0..4);
        let free = (comes, 0usize..3).prop_map(|(comes, free)| Step::Free(comes, free));
        proptest::collection::vec(prop_oneof![ask, free], 0..60)
    }

    fn offered() -> impl Strategy<Value = Vec<Offered>> {
        let range = (1i64..9, 0u32..400, 0i64..50, 0i64..3);
        let partition = proptest::collection::vec(range, 0..12);
        proptest::collection::vec(partition, 0..6).prop_map(|partitions| {
            let one = |(p, ranges): (usize, Vec<(i64, u32, i64, i64)>)| {
                let (mut next, mut time) = (0, 0);
                let ranges = ranges.into_iter().map(|(n, len, later, gap)| {
                    let r = range_at(next + gap, n, len, time + later);
                    (next, time) = (r.last_offset + 1, r.append_time_ms);
                    r
                });
                Offered {
                    // Not in order, as a table of partitions gives them.
                    partition: tp((p as i32 * 5) % 7),
                    leader_epoch: 3,
                    ranges: ranges.collect(),
                }
            };
            partitions.into_iter().enumerate().map(one).collect()
        })
    }

    fn range_at(base_offset: Offset, n: i64, len: u32, time: i64) -> StoredRange {
        range(base_offset, n, len, time)
    }

    proptest! {
        /// However often somebody asks: each topic is let through once in the interval, at the time that was named, and
        /// files of topics that were asked for and of others take turns.
        #[test]
        fn who_asks_waits_for_the_interval_and_for_others(steps in steps(), apart in 0u64..10_000) {
            let apart = Duration::from_millis(apart);
            let mut asks = Asks::new(apart);
            let mut now = Instant::now();
            let mut let_through: BTreeMap<TopicId, Instant> = BTreeMap::new();
            let (mut waiting, mut asked_last, mut before) = (Vec::<Lag>::new(), false, None);
            for step in steps {
                let (comes, free) = match step {
                    Step::Ask(later, topic) => {
                        now += Duration::from_millis(later);
                        let topic = Uuid::from_u128(u128::from(topic));
                        let last = let_through.get(&topic).copied();
                        let expected = match last {
                            Some(last) if now < last + apart => Err(last + apart),
                            _ => Ok(()),
                        };
                        prop_assert_eq!(asks.admit(topic, now), expected);
                        if expected.is_ok() {
                            let_through.insert(topic, now);
                        }
                        let must_wait = let_through.values().filter(|last| now < **last + apart).count();
                        prop_assert!(asks.last.len() <= must_wait.max(1), "no more is remembered");
                        continue;
                    }
                    Step::Free(comes, free) => (comes, free),
                };
                waiting.extend(comes.into_iter().map(|(asked, t)| Lag { asked, oldest_ms: Some(t), ..Lag::default() }));
                let taken = take_turns(&waiting, free, &mut asked_last);
                prop_assert_eq!(taken.len(), free.min(waiting.len()), "no thread is left without work");
                let mut left: Vec<usize> = (0..waiting.len()).collect();
                for i in taken {
                    let at = left.iter().position(|l| *l == i);
                    prop_assert!(at.is_some(), "each once");
                    let one = waiting[i];
                    if before == Some(one.asked) {
                        prop_assert!(left.iter().all(|l| waiting[*l].asked == one.asked), "it was the others' turn");
                    }
                    let older = |l: &usize| waiting[*l].asked == one.asked && waiting[*l].oldest_ms < one.oldest_ms;
                    prop_assert!(!left.iter().any(older), "the oldest first");
                    left.retain(|l| *l != i);
                    before = Some(one.asked);
                }
                waiting = left.into_iter().map(|l| waiting[l]).collect();
            }
        }

        #[test]
        fn a_file_takes_the_oldest_fronts_within_its_limits(
            offered in offered(), bytes in 1u64..1_500, ranges in 1usize..20, partitions in 1usize..5,
        ) {
            let limits = FileLimits { bytes, ranges, partitions };
            let runs = choose(offered.clone(), limits);
            let chosen: Vec<(TopicPartition, StoredRange)> =
                runs.iter().flat_map(|run| run.ranges.iter().map(|r| (run.partition, *r))).collect();
            let sum: u64 = chosen.iter().map(|(_, r)| u64::from(r.len)).sum();
            let all: usize = offered.iter().map(|o| o.ranges.len()).sum();
            prop_assert_eq!(chosen.is_empty(), all == 0, "something, if there is anything");
            prop_assert!(chosen.len() == 1 || sum <= bytes);
            prop_assert!(chosen.len() <= ranges);
            let of: BTreeSet<TopicPartition> = chosen.iter().map(|(p, _)| *p).collect();
            prop_assert!(of.len() <= partitions);
            prop_assert!(chosen.windows(2).all(|w| (w[0].0, w[0].1.base_offset) < (w[1].0, w[1].1.base_offset)));
            let newest = chosen.iter().map(|(_, r)| r.append_time_ms).max().unwrap_or(0);
            for o in &offered {
                let mine: Vec<StoredRange> =
                    chosen.iter().filter(|(p, _)| *p == o.partition).map(|(_, r)| *r).collect();
                prop_assert!(o.ranges.starts_with(&mine), "a front");
                let left = o.ranges.get(mine.len());
                prop_assert!(left.is_none_or(|r| r.append_time_ms >= newest || chosen.len() == 1 || sum + u64::from(r.len) > bytes
                    || chosen.len() == ranges || of.len() == partitions));
            }
            for run in &runs {
                prop_assert!(run.ranges.windows(2).all(|w| w[0].last_offset + 1 == w[1].base_offset));
            }

            // In pieces it is the same.
            let cut = pieces(&runs, 500);
            let again: Vec<(TopicPartition, StoredRange)> =
                cut.iter().flatten().flat_map(|run| run.ranges.iter().map(|r| (run.partition, *r))).collect();
            prop_assert_eq!(&again, &chosen);
            for piece in &cut {
                let ranges: Vec<&StoredRange> = piece.iter().flat_map(|run| &run.ranges).collect();
                prop_assert!(!ranges.is_empty());
                let sum: u64 = ranges.iter().map(|r| u64::from(r.len)).sum();
                let first_ones = ranges.iter().filter(|r| r.len > 0).count();
                prop_assert!(sum <= 500 || first_ones == 1);
            }
        }

        /// What the writer says is taken over exactly, and refused if it is about anything else.
        #[test]
        fn pointers_say_what_stands_in_the_file(
            offered in offered(), out in proptest::collection::vec(any::<prop::sample::Index>(), 0..4), at: prop::sample::Index,
        ) {
            let limits = FileLimits { bytes: u64::MAX, ranges: usize::MAX, partitions: usize::MAX };
            let runs = choose(offered, limits);
            let all: Vec<(TopicPartition, Offset)> =
                runs.iter().flat_map(|run| run.ranges.iter().map(|r| (run.partition, r.base_offset))).collect();
            prop_assume!(!all.is_empty());
            let left_out: LeftOut = out.iter().map(|i| all[i.index(all.len())]).collect();
            let (mut shares, mut row, mut offsets) = (Vec::<Share>::new(), 0, 0);
            for run in &runs {
                for r in run.ranges.iter().filter(|r| !left_out.contains(&(run.partition, r.base_offset))) {
                    let partition = run.partition.partition;
                    // Sometimes two ranges share a row group.
                    let joins = |s: &&mut Share| s.partition == partition && s.last_offset + 1 == r.base_offset && r.len % 2 == 0;
                    match shares.last_mut().filter(joins) {
                        Some(s) => s.last_offset = r.last_offset,
                        None => shares.push(Share {
                            partition, base_offset: r.base_offset, last_offset: r.last_offset, first_row: row, len: r.len,
                            max_timestamp: 7, append_time_ms: r.append_time_ms,
                        }),
                    }
                    row += 1;
                    offsets += r.last_offset - r.base_offset + 1;
                }
            }
            let pointed = pointers(&runs, &left_out, 4, &shares).unwrap();
            let named: usize = pointed.iter().map(|p| p.shares.len()).sum();
            prop_assert_eq!(named, shares.len());
            let stood: i64 = pointed.iter().map(|p| p.last_offset() - p.base_offset + 1).sum();
            prop_assert_eq!(stood, offsets);
            if !shares.is_empty() {
                let at = at.index(shares.len());
                let mut wrong = shares.clone();
                wrong.remove(at);
                prop_assert!(pointers(&runs, &left_out, 4, &wrong).is_err());
                let mut wrong = shares.clone();
                wrong[at].last_offset += 1;
                prop_assert!(pointers(&runs, &left_out, 4, &wrong).is_err());
                let mut wrong = shares.clone();
                wrong.push(shares[at]);
                prop_assert!(pointers(&runs, &left_out, 4, &wrong).is_err());
            }
        }
    }
}
