//! When a round is due, and what it looks at.

use std::time::Duration;

use tokio::time::Instant;

/// The wider part of a round, which lists what others have left, is done once in so many.
const WIDE_EVERY: u32 = 6;
/// How much of the interval the brokers of a cluster are spread over.
const JITTER: f64 = 0.2;

/// What a round looks at beside the merged objects of the own stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Merged objects and files of history of streams that have left the manifest.
    pub(crate) drained: bool,
    /// Files of history, the own ones among them.
    pub(crate) archive: bool,
}

/// Spreads rounds over time.
#[derive(Debug)]
pub(crate) struct Rounds {
    interval: Duration,
    next: Instant,
    done: u32,
}

impl Rounds {
    /// The first round comes after a whole interval at the latest; `random` is in 0..1.
    pub(crate) fn new(interval: Duration, now: Instant, random: f64) -> Rounds {
        Rounds {
            interval,
            next: now + interval.mul_f64(1.0 - JITTER * random),
            done: 0,
        }
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Whether a round is due now, and which. `controller`: this broker looks after what is nobody's.
    pub(crate) fn take(&mut self, now: Instant, controller: bool, random: f64) -> Option<Scope> {
        if now < self.next {
            return None;
        }
        self.next = now + self.interval.mul_f64(1.0 - JITTER * random);
        let wide = self.done.is_multiple_of(WIDE_EVERY);
        self.done = self.done.wrapping_add(1);
        Some(Scope {
            drained: wide && controller,
            archive: wide,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rounds_are_spread_and_every_sixth_is_wide() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let now = Instant::now();
        let mut rounds = Rounds::new(minutes(5), now, 1.0);
        assert_eq!(rounds.next(), now + minutes(4));
        assert_eq!(rounds.take(now + minutes(3), true, 0.0), None);
        let mut scopes = vec![];
        for n in 0..7 {
            let at = now + minutes(4 + 5 * n);
            scopes.push(rounds.take(at, n != 0, 0.0).unwrap());
            assert_eq!(rounds.next(), at + minutes(5));
        }
        let scope = |drained, archive| Scope { drained, archive };
        assert_eq!(scopes[0], scope(false, true), "another one is the controller");
        assert!(scopes[1..6].iter().all(|s| *s == scope(false, false)));
        assert_eq!(scopes[6], scope(true, true));
    }
}
