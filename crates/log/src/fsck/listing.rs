//! The keys of very many objects in little memory.

/// Keys and sizes of objects, in the order in which they were added. Of a key only what differs from the one before is
/// kept: in a sorted listing, a few digits. 10 million objects take about 220 MB, and up to twice that while they are
/// added, where the store's own description of each would take gigabytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    entries: Vec<Entry>,
    /// What each key has beyond what it shares with the one before, one behind the other.
    rests: String,
    /// The key that was added last.
    last: String,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Bytes that the key shares with the one before.
    shared: u32,
    /// Bytes that follow.
    rest: u32,
    /// Of the object.
    size: u64,
}

impl Listing {
    pub(crate) fn push(&mut self, key: &str, size: u64) {
        let mut same = key
            .bytes()
            .zip(self.last.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        while !key.is_char_boundary(same) {
            same -= 1;
        }
        let rest = &key[same..];
        self.rests.push_str(rest);
        self.entries.push(Entry {
            // Keys have a thousand bytes at most.
            shared: same as u32,
            rest: rest.len() as u32,
            size,
        });
        self.last.truncate(same);
        self.last.push_str(rest);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sizes of all together.
    pub(crate) fn total_size(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// Keys with the sizes of their objects.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let (mut key, mut at) = (String::new(), 0);
        self.entries.iter().map(move |entry| {
            let end = at + entry.rest as usize;
            key.truncate(entry.shared as usize);
            key.push_str(&self.rests[at..end]);
            at = end;
            (key.clone(), entry.size)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::keys;

    fn listing(keys: impl IntoIterator<Item = (String, u64)>) -> Listing {
        let mut listing = Listing::default();
        keys.into_iter().for_each(|(key, size)| listing.push(&key, size));
        listing
    }

    proptest! {
        /// Also keys that are not sorted, that are the same twice, and that differ inside a character.
        #[test]
        fn what_is_added_comes_back(keys in proptest::collection::vec(("[a/é𝄞è]{0,6}", any::<u64>()), 0..40)) {
            let listing = listing(keys.clone());
            prop_assert_eq!((listing.len(), listing.is_empty()), (keys.len(), keys.is_empty()));
            prop_assert_eq!(listing.iter().collect::<Vec<_>>(), keys);
        }
    }

    #[test]
    fn an_object_of_many_takes_about_22_bytes() {
        let topics = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let mut all: Vec<String> = (0..30_000)
            .flat_map(|n| {
                let archived = topics.map(|id| keys::archived("orders.of.the.day", id, 17, 2 * n));
                archived
                    .into_iter()
                    .chain([keys::segment(17, n), keys::merged(17, n)])
            })
            .collect();
        all.sort_unstable();
        let listing = listing(all.iter().map(|key| (key.clone(), 64 << 20)));
        let bytes = listing.len() * size_of::<Entry>() + listing.rests.len();
        let each = bytes as f64 / all.len() as f64;
        println!("{each:.1} bytes an object");
        assert!(each < 26.0, "{each}");
        assert_eq!(listing.total_size(), all.len() as u64 * (64 << 20));
        assert!(listing.iter().map(|(key, _)| key).eq(all));
    }
}
