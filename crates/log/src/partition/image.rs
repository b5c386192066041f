//! A partition as recovery rebuilds it and a checkpoint keeps it: state, and where the bytes are.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::state::{Misfit, PartitionState};
use crate::entry::{ArchivedShares, BatchRange, Entry, Level, MergedRanges, Place, Rewrite};
use crate::{Incarnation, Offset, Seq};

/// Where some contiguous offsets of a partition stand: batches side by side in one object, or rows in a file of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRange {
    /// First offset.
    pub base_offset: Offset,
    /// Last offset.
    pub last_offset: Offset,
    /// The object.
    pub place: Place,
    /// Byte position in the object; in a file of history the row of the first record.
    pub position: u32,
    /// Bytes; in a file of history about.
    pub len: u32,
    /// Greatest timestamp (ms) of its records.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it; see [`crate::entry::MergedRange::append_time_ms`].
    pub append_time_ms: i64,
}

/// State and stored ranges of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionImage {
    /// The state.
    pub state: PartitionState,
    /// Ranges that hold offsets at or above the log start, in offset order.
    pub ranges: VecDeque<StoredRange>,
    /// Bytes of all ranges.
    pub bytes: u64,
    /// Bytes of those that stand in segments.
    pub unmerged: u64,
    /// Bytes of those that stand in files of history.
    pub archived: u64,
    /// Compaction has gone through everything below this offset; see [`crate::entry::CompactedRanges`].
    pub clean_to: Offset,
    /// How many do not stand in files of history.
    unarchived_ranges: usize,
}

impl PartitionImage {
    /// An image of `ranges`, in offset order.
    pub fn new(state: PartitionState, ranges: VecDeque<StoredRange>) -> PartitionImage {
        let mut image = PartitionImage {
            state,
            ranges: VecDeque::with_capacity(ranges.len()),
            ..PartitionImage::default()
        };
        ranges.into_iter().for_each(|r| image.add(r));
        image
    }

    fn add(&mut self, range: StoredRange) {
        let len = u64::from(range.len);
        self.bytes += len;
        match range.place.level {
            Level::L0 => self.unmerged += len,
            Level::L1 => {}
            Level::L2 => self.archived += len,
        }
        self.unarchived_ranges += usize::from(range.place.level != Level::L2);
        self.ranges.push_back(range);
    }

    fn count_out(&mut self, range: &StoredRange) {
        let len = u64::from(range.len);
        self.bytes -= len;
        match range.place.level {
            Level::L0 => self.unmerged -= len,
            Level::L1 => {}
            Level::L2 => self.archived -= len,
        }
        self.unarchived_ranges -= usize::from(range.place.level != Level::L2);
    }

    /// Applies one entry that stands at `place`.
    pub fn apply(&mut self, entry: &Entry, place: Place) -> Result<(), Misfit> {
        self.state.apply(entry)?;
        match entry {
            Entry::Batches(range) => self.push(range, place)?,
            Entry::LogStart { .. } => self.drop_below_log_start(),
            Entry::Release { .. } => {}
            Entry::Merged(m) => self.replace(entry, stored(m, place.incarnation))?,
            Entry::Compacted(c) => {
                self.replace(entry, stored(&c.merged, place.incarnation))?;
                self.clean_to = self.clean_to.max(c.clean_to);
            }
            Entry::Archived(a) => self.replace(entry, stored_shares(a, place.incarnation))?,
        }
        Ok(())
    }

    fn push(&mut self, range: &BatchRange, place: Place) -> Result<(), Misfit> {
        let fits = |v: u64| {
            u32::try_from(v).map_err(|_| Misfit {
                partition: range.partition,
                offset: range.base_offset(),
                end: self.state.end,
                what: "a byte position beyond 4 GiB",
            })
        };
        let (position, len) = (fits(range.position)?, fits(range.byte_len())?);
        self.add(StoredRange {
            base_offset: range.base_offset(),
            last_offset: range.last_offset(),
            place,
            position,
            len,
            max_timestamp: range.batches.iter().map(|b| b.max_timestamp).max().unwrap_or(-1),
            append_time_ms: range.append_time_ms,
        });
        Ok(())
    }

    fn drop_below_log_start(&mut self) {
        let log_start = self.state.log_start;
        let passed = |r: &&StoredRange| r.last_offset < log_start;
        while let Some(first) = self.ranges.front().filter(passed).copied() {
            self.count_out(&first);
            self.ranges.pop_front();
        }
    }

    /// Which ranges `rewrite` stands for, as positions in [`PartitionImage::ranges`]; `None` if the log start has
    /// passed them all. They begin and end where it does, except that some at its front may be forgotten already,
    /// and none of them stands higher than it may replace: what was merged is not merged again, and history stays.
    pub fn covered_by(&self, rewrite: &Rewrite) -> Result<Option<RangeInclusive<usize>>, Misfit> {
        let misfit = |what| Misfit {
            partition: rewrite.partition,
            offset: rewrite.base_offset,
            end: self.state.end,
            what,
        };
        if rewrite.last_offset < self.state.log_start {
            return Ok(None);
        }
        let (first, last) = (
            self.range_from(rewrite.base_offset),
            self.range_from(rewrite.last_offset),
        );
        let begins = self.ranges.get(first).is_some_and(|r| {
            let front_is_forgotten =
                first == 0 && r.base_offset > rewrite.base_offset && r.base_offset <= self.state.log_start;
            r.base_offset == rewrite.base_offset || front_is_forgotten
        });
        if !begins {
            return Err(misfit("a pointer that does not begin where a range does"));
        }
        let ends = self.ranges.get(last).map(|r| r.last_offset);
        if ends != Some(rewrite.last_offset) {
            return Err(misfit("a pointer that does not end where a range does"));
        }
        let mut covered = self.ranges.range(first..=last);
        if covered.any(|r| r.place.level > rewrite.highest) {
            return Err(misfit("a pointer to what was rewritten already"));
        }
        Ok(Some(first..=last))
    }

    /// Whether the ranges at `covered` are `given`, but for those at its front that the log start has passed.
    pub(crate) fn is_end_of(&self, covered: RangeInclusive<usize>, given: &[StoredRange]) -> bool {
        let there = self.ranges.range(covered);
        let passed = given.len().checked_sub(there.len());
        passed.is_some_and(|passed| there.eq(&given[passed..]))
    }

    fn replace(&mut self, pointer: &Entry, stored: impl Iterator<Item = StoredRange>) -> Result<(), Misfit> {
        let covered = pointer.rewrite().map(|r| self.covered_by(&r)).transpose()?;
        let Some(covered) = covered.flatten() else {
            return Ok(());
        };
        let after = self.ranges.split_off(covered.end() + 1);
        let replaced = self.ranges.split_off(*covered.start());
        replaced.iter().for_each(|r| self.count_out(r));
        let log_start = self.state.log_start;
        let still_needed = stored.filter(|r| r.last_offset >= log_start);
        still_needed.for_each(|r| self.add(r));
        self.ranges.extend(after);
        Ok(())
    }

    /// Everything that is left of the log below this offset is in history.
    pub fn archived_to(&self) -> Offset {
        let first = self.ranges.iter().find(|r| r.place.level != Level::L2);
        let archived_to = first.map_or(self.state.end, |r| r.base_offset);
        archived_to.max(self.state.log_start)
    }

    /// Index of the first range that holds `offset` or something after it.
    pub fn range_from(&self, offset: Offset) -> usize {
        self.ranges.partition_point(|r| r.last_offset < offset)
    }

    /// The oldest segment of stream `incarnation` that this partition still needs.
    pub fn oldest_needed(&self, incarnation: Incarnation) -> Option<Seq> {
        let mut unmerged = self.unmerged_ranges();
        unmerged
            .find(|r| r.place.incarnation == incarnation)
            .map(|r| r.place.seq)
    }

    /// Whether it needs a segment of another stream than `incarnation`.
    pub fn needs_foreign(&self, incarnation: Incarnation) -> bool {
        self.unmerged_ranges().any(|r| r.place.incarnation != incarnation)
    }

    /// Ranges that stand in segments, in offset order. They are nearly always the last ones.
    pub fn unmerged_ranges(&self) -> impl Iterator<Item = &StoredRange> {
        let (mut left, mut from) = (self.unmerged, self.ranges.len());
        while left > 0 && from > 0 {
            from -= 1;
            let r = &self.ranges[from];
            if r.place.level == Level::L0 {
                left = left.saturating_sub(u64::from(r.len));
            }
        }
        let ranges = self.ranges.range(from..);
        ranges.filter(|r| r.place.level == Level::L0)
    }

    /// Ranges that stand in merged objects, in offset order. They are nearly always those between history and segments.
    pub fn merged_ranges(&self) -> impl Iterator<Item = &StoredRange> {
        let (mut left, mut from) = (self.unarchived_ranges, self.ranges.len());
        while left > 0 && from > 0 {
            from -= 1;
            left -= usize::from(self.ranges[from].place.level != Level::L2);
        }
        let ranges = self.ranges.range(from..);
        ranges.filter(|r| r.place.level == Level::L1)
    }

    /// Where retention lets the log start now: whole ranges go, oldest first, while they are older than
    /// `retention_ms` or the rest is still at least `retention_bytes`. A negative limit means none.
    pub fn retention_point(&self, now_ms: i64, retention_ms: i64, retention_bytes: i64) -> Offset {
        let mut start = self.state.log_start;
        let mut left = self.bytes;
        for r in &self.ranges {
            // Kafka judges by the greatest timestamp; a range without one by when it was written, or by what was in it.
            let written = if r.max_timestamp >= 0 {
                r.max_timestamp
            } else {
                r.append_time_ms
            };
            let too_old = retention_ms >= 0 && now_ms.saturating_sub(written) > retention_ms;
            let too_much =
                retention_bytes >= 0 && left.saturating_sub(u64::from(r.len)) >= retention_bytes as u64;
            if !too_old && !too_much {
                break;
            }
            start = start.max(r.last_offset + 1);
            left -= u64::from(r.len);
        }
        start
    }
}

/// The ranges of `merged`, which `writer` wrote.
pub fn stored(merged: &MergedRanges, writer: Incarnation) -> impl Iterator<Item = StoredRange> + '_ {
    let (mut base_offset, mut position) = (merged.base_offset, merged.position);
    merged.ranges.iter().map(move |r| {
        let range = StoredRange {
            base_offset,
            last_offset: r.last_offset,
            place: Place::l1(writer, merged.file),
            position,
            len: r.len,
            max_timestamp: r.max_timestamp,
            append_time_ms: r.append_time_ms,
        };
        (base_offset, position) = (r.last_offset + 1, position.saturating_add(r.len));
        range
    })
}

/// The ranges of `archived`, which `writer` wrote.
pub fn stored_shares(
    archived: &ArchivedShares,
    writer: Incarnation,
) -> impl Iterator<Item = StoredRange> + '_ {
    let mut base_offset = archived.base_offset;
    archived.shares.iter().map(move |s| {
        let range = StoredRange {
            base_offset,
            last_offset: s.last_offset,
            place: Place::l2(writer, archived.file),
            position: s.first_row,
            len: s.len,
            max_timestamp: s.max_timestamp,
            append_time_ms: s.append_time_ms,
        };
        base_offset = s.last_offset + 1;
        range
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopicPartition;
    use crate::entry::BatchEntry;
    use uuid::Uuid;

    fn image(ranges: &[(i64, i64, u32)]) -> PartitionImage {
        let partition = TopicPartition {
            topic: Uuid::nil(),
            partition: 0,
        };
        let mut image = PartitionImage::default();
        for (seq, (n, max_timestamp, size)) in ranges.iter().enumerate() {
            let base_offset = image.state.end;
            let batch = BatchEntry {
                base_offset,
                last_offset: base_offset + n - 1,
                records: *n as u32,
                size: *size,
                base_timestamp: 0,
                max_timestamp: *max_timestamp,
                attributes: 0,
                producer: None,
            };
            let range = BatchRange {
                partition,
                leader_epoch: 1,
                position: 100,
                append_time_ms: 50,
                batches: vec![batch],
            };
            image
                .apply(&Entry::Batches(range), Place::l0(1, seq as u64))
                .unwrap();
        }
        image
    }

    #[test]
    fn retention_takes_whole_ranges_from_the_front() {
        let i = image(&[(10, 100, 1000), (10, 300, 1000), (10, 200, 1000), (10, -1, 1000)]);
        assert_eq!(i.retention_point(1000, -1, -1), 0);
        assert_eq!(i.retention_point(1000, 900, -1), 0);
        assert_eq!(i.retention_point(1000, 899, -1), 10);
        assert_eq!(
            i.retention_point(1000, 750, -1),
            10,
            "the second is young enough and ends it"
        );
        assert_eq!(
            i.retention_point(1000, 600, -1),
            40,
            "without a timestamp its append time counts"
        );
        assert_eq!(i.retention_point(1000, -1, 4000), 0);
        assert_eq!(
            i.retention_point(1000, -1, 3999),
            0,
            "what is left must still reach the limit"
        );
        assert_eq!(i.retention_point(1000, -1, 3000), 10);
        assert_eq!(i.retention_point(1000, -1, 0), 40);
    }

    #[test]
    fn a_log_start_forgets_ranges_below_it() {
        let mut i = image(&[(10, 1, 7), (10, 1, 8), (10, 1, 9)]);
        let start = |offset| Entry::LogStart {
            partition: TopicPartition {
                topic: Uuid::nil(),
                partition: 0,
            },
            leader_epoch: 1,
            offset,
        };
        i.apply(&start(15), Place::l0(1, 9)).unwrap();
        assert_eq!(
            (i.ranges.len(), i.bytes, i.oldest_needed(1), i.oldest_needed(2)),
            (2, 17, Some(1), None)
        );
        assert_eq!((i.range_from(15), i.range_from(20), i.range_from(30)), (0, 1, 2));
    }
}
