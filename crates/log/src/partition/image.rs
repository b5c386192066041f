//! A partition as recovery rebuilds it and a checkpoint keeps it: state, and where the bytes are.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::state::{Misfit, PartitionState};
use crate::entry::{BatchRange, Entry, Level, MergedRanges, Place};
use crate::{Incarnation, Offset, Seq};

/// Where some contiguous offsets of a partition stand: batches side by side in one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRange {
    /// First offset.
    pub base_offset: Offset,
    /// Last offset.
    pub last_offset: Offset,
    /// The object.
    pub place: Place,
    /// Byte position in the object.
    pub position: u32,
    /// Bytes.
    pub len: u32,
    /// Greatest timestamp (ms) of its records.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it.
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
}

impl PartitionImage {
    /// An image of `ranges`, in offset order.
    pub fn new(state: PartitionState, ranges: VecDeque<StoredRange>) -> PartitionImage {
        let (bytes, unmerged) = (0, 0);
        let mut image = PartitionImage {
            state,
            ranges: VecDeque::with_capacity(ranges.len()),
            bytes,
            unmerged,
        };
        ranges.into_iter().for_each(|r| image.add(r));
        image
    }

    fn add(&mut self, range: StoredRange) {
        self.bytes += u64::from(range.len);
        if range.place.level == Level::L0 {
            self.unmerged += u64::from(range.len);
        }
        self.ranges.push_back(range);
    }

    fn count_out(&mut self, range: &StoredRange) {
        self.bytes -= u64::from(range.len);
        if range.place.level == Level::L0 {
            self.unmerged -= u64::from(range.len);
        }
    }

    /// Applies one entry that stands at `place`.
    pub fn apply(&mut self, entry: &Entry, place: Place) -> Result<(), Misfit> {
        self.state.apply(entry)?;
        match entry {
            Entry::Batches(range) => self.push(range, place)?,
            Entry::LogStart { .. } => self.drop_below_log_start(),
            Entry::Release { .. } => {}
            Entry::Merged(m) => self.replace(m, place.incarnation)?,
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

    /// Which ranges `merged` stands for, as positions in [`PartitionImage::ranges`]; `None` if the log start has
    /// passed them all. They begin and end where it does, except that some at its front may be forgotten already,
    /// and none of them is merged.
    pub fn covered_by(&self, merged: &MergedRanges) -> Result<Option<RangeInclusive<usize>>, Misfit> {
        let misfit = |what| Misfit {
            partition: merged.partition,
            offset: merged.base_offset,
            end: self.state.end,
            what,
        };
        if merged.last_offset() < self.state.log_start {
            return Ok(None);
        }
        let (first, last) = (
            self.range_from(merged.base_offset),
            self.range_from(merged.last_offset()),
        );
        let begins = self.ranges.get(first).is_some_and(|r| {
            let front_is_forgotten =
                first == 0 && r.base_offset > merged.base_offset && r.base_offset <= self.state.log_start;
            r.base_offset == merged.base_offset || front_is_forgotten
        });
        if !begins {
            return Err(misfit("merged data that does not begin where a range does"));
        }
        let ends = self.ranges.get(last).map(|r| r.last_offset);
        if ends != Some(merged.last_offset()) {
            return Err(misfit("merged data that does not end where a range does"));
        }
        let mut covered = self.ranges.range(first..=last);
        if covered.any(|r| r.place.level != Level::L0) {
            return Err(misfit("merged data that is merged already"));
        }
        Ok(Some(first..=last))
    }

    fn replace(&mut self, merged: &MergedRanges, writer: Incarnation) -> Result<(), Misfit> {
        let Some(covered) = self.covered_by(merged)? else {
            return Ok(());
        };
        let after = self.ranges.split_off(covered.end() + 1);
        let replaced = self.ranges.split_off(*covered.start());
        replaced.iter().for_each(|r| self.count_out(r));
        let log_start = self.state.log_start;
        let still_needed = stored(merged, writer).filter(|r| r.last_offset >= log_start);
        still_needed.for_each(|r| self.add(r));
        self.ranges.extend(after);
        Ok(())
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

    /// Where retention lets the log start now: whole ranges go, oldest first, while they are older than
    /// `retention_ms` or the rest is still at least `retention_bytes`. A negative limit means none.
    pub fn retention_point(&self, now_ms: i64, retention_ms: i64, retention_bytes: i64) -> Offset {
        let mut start = self.state.log_start;
        let mut left = self.bytes;
        for r in &self.ranges {
            // Kafka judges by the greatest timestamp; a range without one by when it was written.
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
