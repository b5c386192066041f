//! Which partition is compacted next, and how far: the pure part.

use std::ops::Range;

use super::CompactionSettings;
use crate::entry::{Level, MergedRanges};
use crate::partition::image::{PartitionImage, StoredRange, stored};
use crate::{Incarnation, Offset};

/// A pass is worth its requests if it goes through so many bytes that were not compacted before,
const DIRTY_BYTES: u64 = 1 << 20;
/// or so many ranges, each of which is a request for whoever reads from the start.
const DIRTY_RANGES: u64 = 32;
/// What stands in a segment for so long (ms) is left there because it is damaged; younger data will still be merged.
const LEFT_MS: i64 = 3_600_000;
/// Ranges side by side in one object are read in one request up to this size, unless one is longer.
const READ_BYTES: u64 = 4 << 20;

/// A partition, as compaction sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Compaction may go up to here.
    pub(crate) end: Offset,
    /// Bytes of merged data that was gone through, and of such that was not.
    pub(crate) clean_bytes: u64,
    pub(crate) dirty_bytes: u64,
    /// Ranges of the latter, and the time (ms) of the oldest.
    pub(crate) dirty_ranges: u64,
    pub(crate) oldest_dirty_ms: Option<i64>,
}

/// What to compact first: the greater.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Priority {
    /// `max.compaction.lag.ms` has passed.
    overdue: bool,
    ratio: f64,
}

/// Time (ms) by which a range is judged: as retention does it, the greatest timestamp, or without one the append.
pub(crate) fn time_of(r: &StoredRange) -> i64 {
    match r.max_timestamp {
        t if t >= 0 => t,
        _ => r.append_time_ms,
    }
}

/// Looks at a partition. `passed` is how far it was gone through, as far as that is more than what the image says;
/// `last_stable` its last stable offset.
///
/// Compaction goes up to the last merged range before the first one that is too young or not merged yet. A range that is left in a segment
/// because it is damaged, or stands in a file of history, is passed over.
pub(crate) fn look(
    image: &PartitionImage,
    last_stable: Offset,
    passed: Offset,
    settings: &CompactionSettings,
    now_ms: i64,
) -> Look {
    let clean_to = image.clean_to.max(passed);
    let mut look = Look::default();
    for r in &image.ranges {
        let dirty = r.last_offset >= clean_to;
        let young = settings.min_lag_ms > 0 && now_ms.saturating_sub(time_of(r)) < settings.min_lag_ms;
        if r.last_offset >= last_stable || (dirty && young) {
            break;
        }
        match r.place.level {
            Level::L0 if now_ms.saturating_sub(r.append_time_ms) < LEFT_MS => break,
            Level::L0 | Level::L2 => continue,
            Level::L1 => {}
        }
        look.end = r.last_offset + 1;
        if dirty {
            look.dirty_bytes += u64::from(r.len);
            look.dirty_ranges += 1;
            let oldest = time_of(r).min(r.append_time_ms);
            look.oldest_dirty_ms = Some(look.oldest_dirty_ms.map_or(oldest, |o| o.min(oldest)));
        } else {
            look.clean_bytes += u64::from(r.len);
        }
    }
    look
}

impl Look {
    /// Share of what was not gone through.
    pub(crate) fn dirty_ratio(&self) -> f64 {
        let all = self.clean_bytes + self.dirty_bytes;
        self.dirty_bytes as f64 / all.max(1) as f64
    }

    /// How urgent compaction is; `None` if it is not due.
    pub(crate) fn priority(&self, settings: &CompactionSettings, now_ms: i64) -> Option<Priority> {
        let age_ms = now_ms.saturating_sub(self.oldest_dirty_ms?);
        let ratio = self.dirty_ratio();
        let overdue = age_ms > settings.max_lag_ms;
        let worth_it = self.dirty_bytes >= DIRTY_BYTES
            || self.dirty_ranges >= DIRTY_RANGES
            || age_ms >= settings.segment_ms;
        (overdue || (worth_it && ratio > settings.min_dirty_ratio)).then_some(Priority { overdue, ratio })
    }
}

/// What a pass up to `end` goes through.
pub(crate) fn ranges_up_to(image: &PartitionImage, end: Offset) -> Vec<StoredRange> {
    let ranges = image.ranges.iter();
    ranges.take_while(|r| r.last_offset < end).copied().collect()
}

/// Whether what was written anew stands in the log, but for what the log start has passed.
pub(crate) fn took_effect(image: &PartitionImage, merged: &MergedRanges, writer: Incarnation) -> bool {
    let log_start = image.state.log_start;
    let mut needed = stored(merged, writer).filter(|r| r.last_offset >= log_start);
    needed.all(|r| image.ranges.get(image.range_from(r.base_offset)) == Some(&r))
}

/// Requests for ranges, as positions in `ranges`. What does not stand in merged objects is alone.
pub(crate) fn reads(ranges: &[StoredRange]) -> Vec<Range<usize>> {
    let mut reads: Vec<Range<usize>> = vec![];
    let mut bytes = 0;
    for (i, r) in ranges.iter().enumerate() {
        let len = u64::from(r.len);
        let follows = i
            .checked_sub(1)
            .map(|before| &ranges[before])
            .is_some_and(|before| {
                let end = u64::from(before.position) + u64::from(before.len);
                before.place == r.place && end == u64::from(r.position) && r.place.level == Level::L1
            });
        match reads.last_mut() {
            Some(read) if follows && bytes + len <= READ_BYTES => {
                read.end = i + 1;
                bytes += len;
            }
            _ => {
                reads.push(i..i + 1);
                bytes = len;
            }
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::TopicPartition;
    use crate::entry::{MergedRange, Place};
    use crate::partition::state::PartitionState;

    const SETTINGS: CompactionSettings = CompactionSettings {
        delete_retention_ms: 0,
        min_lag_ms: 0,
        max_lag_ms: i64::MAX,
        min_dirty_ratio: 0.5,
        segment_ms: 1_000_000,
    };

    fn range(base_offset: Offset, place: Place, len: u32, time: i64) -> StoredRange {
        StoredRange {
            base_offset,
            last_offset: base_offset + 9,
            place,
            position: 0,
            len,
            max_timestamp: time,
            append_time_ms: time.max(50),
        }
    }

    fn image(clean_to: Offset) -> PartitionImage {
        let (old, new) = (Place::l1(1, 1), Place::l1(1, 2));
        let ranges = [
            range(0, Place::l2(1, 1), 7, 10),
            range(10, old, 1_000, 100),
            range(20, new, 2_000, 300),
            StoredRange {
                append_time_ms: -LEFT_MS,
                ..range(30, Place::l0(1, 3), 9, 200)
            },
            range(40, new, 4_000, 200),
            range(50, new, 8_000, -1),
            range(60, Place::l0(1, 4), 9, 500),
        ];
        let state = PartitionState {
            end: 70,
            ..PartitionState::default()
        };
        let mut image = PartitionImage::new(state, ranges.into());
        image.clean_to = clean_to;
        image
    }

    #[test]
    fn merged_data_is_clean_or_dirty_and_the_rest_is_passed_over() {
        let of = |clean_to, passed, stable| {
            let look = look(&image(clean_to), stable, passed, &SETTINGS, 1_000);
            (look.end, look.clean_bytes, look.dirty_bytes, look.dirty_ranges)
        };
        assert_eq!(of(0, 0, 70), (60, 0, 15_000, 4));
        assert_eq!(of(30, 0, 70), (60, 3_000, 12_000, 2));
        assert_eq!(of(30, 50, 70), (60, 7_000, 8_000, 1));
        assert_eq!(
            of(25, 0, 70),
            (60, 1_000, 14_000, 3),
            "a range that is clean in part is dirty"
        );
        assert_eq!(of(0, 0, 59), (50, 0, 7_000, 3), "above it nothing is stable");
        assert_eq!(of(60, 0, 70), (60, 15_000, 0, 0));
        let mut later = image(0);
        later.ranges[3].append_time_ms = 999 - LEFT_MS;
        assert_eq!(look(&later, 70, 0, &SETTINGS, 999).end, 60);
        assert_eq!(look(&later, 70, 0, &SETTINGS, 998).end, 30, "it will be merged");
    }

    #[test]
    fn what_is_too_young_ends_it_unless_it_is_clean() {
        let settings = CompactionSettings {
            min_lag_ms: 800,
            ..SETTINGS
        };
        let end = |clean_to, now_ms| look(&image(clean_to), 70, 0, &settings, now_ms).end;
        assert_eq!(end(0, 899), 0);
        assert_eq!(end(0, 900), 20);
        assert_eq!(end(0, 1_099), 20, "younger ones stand before older ones");
        assert_eq!(end(0, 1_100), 60);
        assert_eq!(
            end(30, 1_000),
            60,
            "the last has no timestamp, and was appended at 50"
        );
        assert_eq!(end(0, i64::MIN), 0);
    }

    #[test]
    fn a_pass_is_due_by_ratio_or_by_age_and_worth_its_requests() {
        let dirty = |bytes, ranges| Look {
            end: 1,
            clean_bytes: DIRTY_BYTES,
            dirty_bytes: bytes,
            dirty_ranges: ranges,
            oldest_dirty_ms: (ranges > 0).then_some(100),
        };
        let due = |look: Look, now_ms| look.priority(&SETTINGS, now_ms).is_some();
        assert!(!due(dirty(0, 0), i64::MAX));
        assert!(
            !due(dirty(DIRTY_BYTES, 1), 200),
            "as much as what is clean is not more than half"
        );
        assert!(due(dirty(DIRTY_BYTES + 1, 1), 200));
        let small = Look {
            clean_bytes: 10,
            ..dirty(100, 1)
        };
        assert!(!due(small, 200));
        assert!(due(
            Look {
                dirty_ranges: DIRTY_RANGES,
                ..small
            },
            200
        ));
        assert!(due(small, 1_000_100), "a segment would be full by its age");
        let soon = CompactionSettings {
            max_lag_ms: 50,
            ..SETTINGS
        };
        assert_eq!(small.priority(&soon, 150), None);
        let overdue = dirty(1, 1).priority(&soon, 151);
        assert!(
            overdue > small.priority(&SETTINGS, 1_000_100),
            "goes first, whatever the ratio"
        );
    }

    #[test]
    fn pointers_take_effect_where_the_log_start_has_not_passed() {
        let merged = |base_offset, file| MergedRanges {
            partition: TopicPartition {
                topic: Uuid::nil(),
                partition: 0,
            },
            leader_epoch: 0,
            file,
            position: 0,
            base_offset,
            ranges: vec![
                MergedRange {
                    last_offset: base_offset + 9,
                    len: 5,
                    max_timestamp: -1,
                    append_time_ms: 7,
                },
                MergedRange {
                    last_offset: base_offset + 19,
                    len: 6,
                    max_timestamp: 3,
                    append_time_ms: 7,
                },
            ],
        };
        let of = |log_start, pointers: &[MergedRanges]| {
            let ranges = pointers.iter().flat_map(|m| stored(m, 1));
            let state = PartitionState {
                log_start,
                end: 40,
                ..PartitionState::default()
            };
            PartitionImage::new(state, ranges.filter(|r| r.last_offset >= log_start).collect())
        };
        let (a, b) = (merged(0, 1), merged(20, 1));
        for log_start in 0..=40 {
            let both = of(log_start, &[a.clone(), b.clone()]);
            assert!(took_effect(&both, &a, 1) && took_effect(&both, &b, 1));
            // Something else was faster.
            let other = of(log_start, &[merged(0, 2), b.clone()]);
            assert_eq!(took_effect(&other, &a, 1), log_start >= 20, "{log_start}");
            assert!(took_effect(&other, &b, 1));
        }
        assert!(!took_effect(&of(0, &[]), &a, 1));
    }

    #[test]
    fn neighbours_in_an_object_are_read_at_once() {
        let place = Place::l1(1, 1);
        let at = |place, position, len| StoredRange {
            position,
            len,
            ..range(0, place, 0, 0)
        };
        let ranges = [
            at(place, 10, 5),
            at(place, 15, 5),
            at(place, 21, 5),
            at(Place::l1(1, 2), 26, 1 << 20),
            at(Place::l1(1, 2), 26 + (1 << 20), 3 << 20),
            at(Place::l1(1, 2), 26 + (4 << 20), 1),
            at(Place::l0(1, 2), 5, 1),
            at(Place::l0(1, 2), 6, 1),
        ];
        assert_eq!(reads(&ranges), [0..2, 2..3, 3..5, 5..6, 6..7, 7..8]);
        assert!(reads(&[]).is_empty());
        let image = image(0);
        let all: Vec<Offset> = ranges_up_to(&image, 50).iter().map(|r| r.base_offset).collect();
        assert_eq!(all, [0, 10, 20, 30, 40]);
    }
}
