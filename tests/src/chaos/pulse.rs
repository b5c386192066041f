//! How long each partition acknowledged nothing.

use std::time::{Duration, Instant};

/// Shorter gaps are ordinary.
const GAP_MIN: Duration = Duration::from_millis(250);

/// Acknowledgements by partition over time.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Vec<Instant>,
    gaps: Vec<Gap>,
}

/// A time in which a partition acknowledged nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// Its partition.
    pub(super) partition: usize,
    /// The acknowledgement before it.
    pub(super) from: Instant,
    /// The acknowledgement after it.
    pub(super) to: Instant,
}

impl Gap {
    /// From the one to the other.
    pub(super) fn length(&self) -> Duration {
        self.to.saturating_duration_since(self.from)
    }
}

impl Pulse {
    /// Every partition counts as alive at `now`.
    pub(super) fn new(partitions: usize, now: Instant) -> Pulse {
        Pulse {
            last: vec![now; partitions],
            gaps: Vec::new(),
        }
    }

    /// A partition acknowledged something.
    pub(super) fn beat(&mut self, partition: usize, now: Instant) {
        let Some(last) = self.last.get_mut(partition) else {
            return;
        };
        let gap = Gap {
            partition,
            from: *last,
            to: now,
        };
        *last = (*last).max(now);
        if gap.length() >= GAP_MIN {
            self.gaps.push(gap);
        }
    }

    /// Partitions that have acknowledged nothing since that time.
    pub(super) fn silent_since(&self, since: Instant) -> Vec<usize> {
        let silent = self.last.iter().enumerate().filter(|(_, last)| **last <= since);
        silent.map(|(partition, _)| partition).collect()
    }

    /// The longest gap of each partition that reaches into the time after `since`.
    pub(super) fn longest_since(&self, since: Instant) -> Vec<Duration> {
        let mut longest = vec![Duration::ZERO; self.last.len()];
        for gap in self.gaps.iter().filter(|gap| gap.to > since) {
            longest[gap.partition] = longest[gap.partition].max(gap.length());
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_told_by_partition_and_time() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(2, start);
        for ms in [100, 200, 3_000, 3_100] {
            pulse.beat(0, at(ms));
        }
        pulse.beat(1, at(1_000));
        let ms = |all: Vec<Duration>| all.iter().map(Duration::as_millis).collect::<Vec<_>>();
        assert_eq!(ms(pulse.longest_since(start)), [2_800, 1_000]);
        assert_eq!(ms(pulse.longest_since(at(1_500))), [2_800, 0]);
        assert_eq!(ms(pulse.longest_since(at(3_050))), [0, 0]);
        assert_eq!(pulse.silent_since(at(1_500)), [1]);
        assert_eq!(pulse.silent_since(at(3_100)), [0, 1]);
        pulse.beat(9, at(4_000));
    }
}
