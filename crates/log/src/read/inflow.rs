//! Keeps a cache near its size however fast entries come.

use std::sync::atomic::{AtomicU64, Ordering};

/// A cache may grow beyond its size by this part of it.
const EXCESS_SHARE: u64 = 16;

/// Bytes that came into a cache since it last evicted what is too much. By itself moka evicts after 64 insertions,
/// which is little where entries are small, and far too late where they have a MiB each.
#[derive(Debug)]
pub struct Inflow {
    most: u64,
    came: AtomicU64,
}

impl Inflow {
    /// Of a cache of this size.
    pub fn of_cache(bytes: u64) -> Inflow {
        Inflow {
            most: bytes / EXCESS_SHARE,
            came: AtomicU64::new(0),
        }
    }

    /// Counts what came in. Tells whether so much did that the cache MUST run its pending tasks now.
    pub fn add(&self, bytes: u64) -> bool {
        let came = self.came.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = came >= self.most;
        if due {
            self.came.store(0, Ordering::Relaxed);
        }
        due
    }

    /// Beyond its size, and what is just coming, a cache that is told holds no more than this.
    #[cfg(test)]
    pub(crate) fn excess_max(&self) -> u64 {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_of_the_size_comes_in_before_something_goes() {
        let inflow = Inflow::of_cache(1_600);
        let due: Vec<bool> = [60, 39, 1, 99, 0, 1, 500].map(|came| inflow.add(came)).into();
        assert_eq!(due, [false, false, true, false, false, true, true]);
        assert!(Inflow::of_cache(0).add(0), "what has no room holds nothing");
    }
}
