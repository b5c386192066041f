//! The newest offset of each key, in bounded memory: a hash stands for the key, as in Kafka's log cleaner.
//!
//! Of two keys with the same hash the older record would be lost. A hash has 128 bits and a secret that is drawn anew for
//! each map, so this happens neither by chance nor by design of whoever writes the keys.

use std::hash::{DefaultHasher, Hasher};

use uuid::Uuid;

use crate::Offset;

/// Places of which this part is used at most: beyond it looking up takes long.
const LOAD: (u64, u64) = (3, 4);

/// One key: its hash, and the newest offset plus 1. All zero: nothing.
type Place = [u64; 3];
/// Bytes per place.
pub(crate) const PLACE_BYTES: u64 = size_of::<Place>() as u64;

/// Hashes of keys, with the newest offset of each.
#[derive(Debug)]
pub(crate) struct OffsetMap {
    secret: [u128; 2],
    places: Vec<Place>,
    used: u64,
    used_max: u64,
}

impl OffsetMap {
    /// A map for up to `records` records that takes at most about `bytes`.
    pub(crate) fn new(bytes: u64, records: u64) -> OffsetMap {
        let wanted = records.saturating_mul(LOAD.1) / LOAD.0 + 8;
        let places = wanted.min(bytes / PLACE_BYTES).max(2);
        OffsetMap {
            secret: [Uuid::new_v4().as_u128(), Uuid::new_v4().as_u128()],
            // Zeroes that the system gives: only what is used becomes real memory.
            places: vec![[0; 3]; usize::try_from(places).unwrap_or(2)],
            used: 0,
            used_max: places * LOAD.0 / LOAD.1,
        }
    }

    /// Notes that `key` has a record at `offset`. Answers false, and forgets it, if there is no room.
    #[must_use]
    pub(crate) fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        let at = self.find(hash);
        let [_, _, before] = self.places[at];
        if before == 0 {
            if self.used >= self.used_max {
                return false;
            }
            self.used += 1;
        }
        self.places[at] = [hash[0], hash[1], before.max(offset.cast_unsigned() + 1)];
        true
    }

    /// The newest offset of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Offset> {
        let [_, _, after] = self.places[self.find(self.hash(key))];
        after.checked_sub(1).map(u64::cast_signed)
    }

    /// Keys.
    pub(crate) fn len(&self) -> u64 {
        self.used
    }

    /// Keys that it has room for.
    pub(crate) fn room(&self) -> u64 {
        self.used_max
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        self.secret.map(|secret| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u128(secret);
            hasher.write(key);
            hasher.finish()
        })
    }

    /// The place of a hash, or the empty one where it would be. There is always an empty one.
    fn find(&self, hash: [u64; 2]) -> usize {
        let count = self.places.len();
        let mut at = ((u128::from(hash[0]) * count as u128) >> 64) as usize;
        loop {
            let [first, second, after] = self.places[at];
            if after == 0 || [first, second] == hash {
                return at;
            }
            at = if at + 1 == count { 0 } else { at + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_is_a_map_until_it_is_full(
            puts in proptest::collection::vec((0u16..300, 0i64..), 0..600),
            room in 0u64..400,
        ) {
            let mut map = OffsetMap::new(room * PLACE_BYTES, 1_000);
            let mut model: HashMap<u16, i64> = HashMap::new();
            for (key, offset) in puts {
                let bytes = key.to_be_bytes();
                if map.put(&bytes, offset) {
                    let newest = model.entry(key).or_insert(offset);
                    *newest = offset.max(*newest);
                } else {
                    prop_assert!(!model.contains_key(&key), "what is in it finds its place");
                    prop_assert!(model.len() as u64 >= (room * 3 / 4).max(1));
                }
            }
            prop_assert_eq!(map.len(), model.len() as u64);
            for key in 0..300u16 {
                prop_assert_eq!(map.get(&key.to_be_bytes()), model.get(&key).copied());
            }
        }
    }

    #[test]
    fn it_takes_no_more_places_than_there_are_records() {
        let map = OffsetMap::new(1 << 30, 30);
        assert!(map.places.len() <= 48, "{}", map.places.len());
        assert_eq!(map.get(b""), None);
    }
}
