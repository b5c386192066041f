//! How fast files of history are written: no faster than allowed, and not while producers wait.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::stream::Stream;

/// How often a pause looks whether producers still wait.
const LOOK: Duration = Duration::from_millis(100);
/// Archiving pauses at most this long at a time: where the store is slow for everybody, history must not stop.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Shared by all files that are written at the same time.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// Archiving pauses while the oldest append that is not published waits longer than this.
    pause_above: Duration,
    /// When the next bytes may be read.
    next: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64, pause_above: Duration) -> Pace {
        Pace {
            bytes_per_second,
            pause_above,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may be read.
    pub(crate) async fn wait(&self, stream: &Stream, bytes: u64) {
        let begun = Instant::now();
        while stream.oldest_wait() > self.pause_above && begun.elapsed() < PAUSE_MAX {
            tokio::time::sleep(LOOK).await;
        }
        stream
            .metrics
            .archive_paused_seconds
            .inc_by(begun.elapsed().as_secs_f64());
        tokio::time::sleep_until(self.reserve(Instant::now(), bytes)).await;
    }

    /// When so many bytes may be read that are asked for now.
    fn reserve(&self, now: Instant, bytes: u64) -> Instant {
        let mut next = self.next.lock();
        let at = now.max(*next);
        *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_spread_over_time_whoever_asks_for_them() {
        let (pace, now) = (Pace::new(100, Duration::ZERO), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(pace.reserve(now, 200), now, "the first do not wait");
        assert_eq!(pace.reserve(now, 50), now + 2 * second);
        assert_eq!(pace.reserve(now, 1), now + 5 * second / 2);
        let later = now + 60 * second;
        assert_eq!(pace.reserve(later, 100), later, "nothing is saved up");
        assert_eq!(pace.reserve(later, 1), later + second);
    }
}
