//! Gathering: what is still needed of merged objects of which little is needed moves into new ones, so that the old ones
//! can go. The pure part.
//!
//! An object holds data of many partitions, and goes as a whole. Most of it leaves soon, as history or because retention
//! says so; but a compacted topic, one that is kept for ever, or what cannot be archived would keep all the rest in the
//! bucket for as long. How large an object is nobody needs to know for that: only how much of it is needed here.

use std::collections::{BTreeMap, BTreeSet};

use crate::entry::Place;
use crate::partition::image::StoredRange;

use super::plan::FileLimits;

/// What is needed of an object is little if it is less than this part of a full one,
const SPARSE_PART: u64 = 4;
/// and is gathered when together it fills this part of a new one,
const WORTH_PART: u64 = 2;
/// or when it keeps so many objects.
const OBJECTS_MAX: usize = 64;

/// What this broker needs of merged objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs(BTreeMap<Place, Need>);

#[derive(Clone, Copy, Debug)]
struct Need {
    bytes: u64,
    ranges: u64,
    newest_ms: i64,
}

impl Needs {
    /// Adds a range that stands in a merged object.
    pub(crate) fn add(&mut self, r: &StoredRange) {
        let need = self.0.entry(r.place).or_insert(Need {
            bytes: 0,
            ranges: 0,
            newest_ms: i64::MIN,
        });
        need.bytes += u64::from(r.len);
        need.ranges += 1;
        need.newest_ms = need.newest_ms.max(r.append_time_ms);
    }

    /// The objects whose ranges are to be gathered into the next one: those of which little is needed, all of it older than
    /// `before_ms`. At least two, or none if it is not worth it yet.
    pub(crate) fn sparse(&self, limits: FileLimits, before_ms: i64) -> BTreeSet<Place> {
        let little = |need: &Need| need.bytes < limits.bytes / SPARSE_PART && need.newest_ms < before_ms;
        let mut sparse: Vec<_> = self.0.iter().filter(|(_, need)| little(need)).collect();
        let bytes: u64 = sparse.iter().map(|(_, need)| need.bytes).sum();
        let worth = bytes >= limits.bytes / WORTH_PART;
        if !worth && sparse.len() < OBJECTS_MAX {
            return BTreeSet::new();
        }
        // Of few ranges first: so there are two that fit, if there are any. One alone would be written again as it is.
        sparse.sort_by_key(|(_, need)| need.ranges);
        let (mut bytes, mut ranges) = (0, 0);
        let fits = |(_, need): &&(&Place, &Need)| {
            bytes += need.bytes;
            ranges += need.ranges;
            bytes <= limits.bytes && ranges <= limits.ranges
        };
        let chosen: BTreeSet<Place> = sparse.iter().take_while(fits).map(|(place, _)| **place).collect();
        if chosen.len() > 1 { chosen } else { BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FileLimits = FileLimits {
        bytes: 1_000,
        ranges: 100,
    };

    fn range(number: u64, base_offset: i64, len: u32, append_time_ms: i64) -> StoredRange {
        StoredRange {
            base_offset,
            last_offset: base_offset + 9,
            place: Place::l1(1, number),
            position: 0,
            len,
            max_timestamp: 0,
            append_time_ms,
        }
    }

    fn sparse(ranges: &[StoredRange]) -> Vec<u64> {
        let mut needs = Needs::default();
        ranges.iter().for_each(|r| needs.add(r));
        needs.sparse(LIMITS, 50).iter().map(|place| place.seq).collect()
    }

    #[test]
    fn little_that_is_old_is_gathered_when_it_is_worth_it() {
        let old = |number, len| range(number, 0, len, 49);
        assert_eq!(sparse(&[]), [0; 0]);
        assert_eq!(
            sparse(&[old(1, 249), old(2, 249)]),
            [0; 0],
            "less than half of an object"
        );
        assert_eq!(sparse(&[old(1, 249), old(2, 249), old(3, 2)]), [1, 2, 3]);
        assert_eq!(
            sparse(&[old(1, 249), old(2, 249), old(3, 250), old(4, 100)]),
            [1, 2, 4],
            "of the third a quarter is needed"
        );
        assert_eq!(
            sparse(&[
                old(1, 249),
                old(2, 249),
                range(2, 50, 1, 50),
                old(3, 249),
                old(4, 200)
            ]),
            [1, 3, 4],
            "something in the second is young and may leave by itself"
        );
        assert_eq!(
            sparse(&[
                old(1, 200),
                old(1, 49),
                old(2, 249),
                old(2, 1),
                old(3, 249),
                old(4, 249)
            ]),
            [1, 3, 4],
            "ranges of an object count together"
        );
        let wide = |number| (0..60).map(move |n| range(number, 10 * n, 2, 0));
        let too_wide: Vec<StoredRange> = (0..70).flat_map(wide).collect();
        assert_eq!(sparse(&too_wide), [0; 0], "two do not fit");
        let many: Vec<StoredRange> = (0..6).map(|n| old(n, 240)).collect();
        assert_eq!(sparse(&many), [0, 1, 2, 3], "no more than an object holds");
    }

    #[test]
    fn many_objects_are_too_many_however_little_is_needed_of_them() {
        let tiny = |count: u64| -> Vec<StoredRange> { (0..count).map(|n| range(n, 0, 1, 0)).collect() };
        assert_eq!(sparse(&tiny(OBJECTS_MAX as u64 - 1)).len(), 0);
        assert_eq!(sparse(&tiny(OBJECTS_MAX as u64)).len(), OBJECTS_MAX);
        assert_eq!(sparse(&tiny(500)).len() as u64, LIMITS.ranges);
    }

    #[test]
    fn what_was_gathered_is_little_no_more() {
        let ranges: Vec<StoredRange> = (0..4).map(|n| range(n, 0, 150, 0)).collect();
        assert_eq!(sparse(&ranges), [0, 1, 2, 3]);
        let gathered: Vec<StoredRange> = (0..4).map(|_| range(9, 0, 150, 0)).collect();
        assert_eq!(sparse(&gathered), [0; 0]);
    }
}
