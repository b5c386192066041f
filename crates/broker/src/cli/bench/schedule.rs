//! When records are sent: pure arithmetic, so that the intended time of every record is known whatever the broker
//! does. Latency from an intended time needs no further correction for coordinated omission.

use std::time::{Duration, Instant};

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Records evenly spread over time and dealt to the producers in turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: Instant,
    /// Records per second of all producers together; not 0.
    rate: u64,
    producers: u64,
    /// Which of the producers this is.
    index: u64,
}

impl Schedule {
    /// The share of one producer of `producers`.
    pub(super) fn new(start: Instant, rate: u64, producers: u64, index: u64) -> Schedule {
        Schedule {
            start,
            rate: rate.max(1),
            producers: producers.max(1),
            index,
        }
    }

    /// When this producer's record `n` (from 0) is to be sent.
    pub(super) fn due(&self, n: u64) -> Instant {
        let place = u128::from(self.index) + u128::from(n) * u128::from(self.producers);
        let nanos = place * NANOS_PER_SECOND / u128::from(self.rate);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        let far = self.start + Duration::from_secs(u64::from(u32::MAX));
        self.start.checked_add(Duration::from_nanos(nanos)).unwrap_or(far)
    }

    /// How many of this producer's records are due at `now`, those due exactly now included.
    pub(super) fn due_by(&self, now: Instant) -> u64 {
        let Some(elapsed) = now.checked_duration_since(self.start) else {
            return 0;
        };
        // The largest place whose time, rounded down to a nanosecond, has come.
        let last = ((elapsed.as_nanos() + 1) * u128::from(self.rate) - 1) / NANOS_PER_SECOND;
        match last.checked_sub(u128::from(self.index)) {
            None => 0,
            Some(last) => u64::try_from(last / u128::from(self.producers) + 1).unwrap_or(u64::MAX),
        }
    }
}

/// What one producer still has to send.
#[derive(Clone, Debug)]
pub(super) struct Supply {
    schedule: Option<Schedule>,
    linger: Duration,
    batch_records: u64,
    /// Records that went into batches.
    taken: u64,
    /// Records in all.
    limit: u64,
    /// Without a schedule: when the last batch may be made.
    ends: Option<Instant>,
}

impl Supply {
    /// Records at the times of the schedule, or without one as fast as they are taken, up to `limit` records and
    /// the time `ends`.
    pub(super) fn new(
        schedule: Option<Schedule>,
        linger: Duration,
        batch_records: u64,
        limit: u64,
        ends: Option<Instant>,
    ) -> Supply {
        let limit = match (schedule, ends) {
            // What is due exactly at the end is not sent any more.
            (Some(schedule), Some(ends)) => {
                let before = ends.checked_sub(Duration::from_nanos(1)).unwrap_or(ends);
                limit.min(schedule.due_by(before))
            }
            _ => limit,
        };
        Supply {
            schedule,
            linger,
            batch_records: batch_records.max(1),
            taken: 0,
            limit,
            ends,
        }
    }

    /// How many records a batch closed now would have; `None` while it is better to wait.
    pub(super) fn ready(&self, now: Instant) -> Option<u64> {
        let Some(schedule) = self.schedule else {
            let over = self.is_over(now);
            return (!over).then(|| self.batch_records.min(self.limit - self.taken));
        };
        let due = schedule.due_by(now).min(self.limit);
        let waiting = due.saturating_sub(self.taken);
        let full = waiting >= self.batch_records;
        let last = due == self.limit;
        if waiting > 0 && (full || last || schedule.due(self.taken) + self.linger <= now) {
            Some(waiting.min(self.batch_records))
        } else {
            None
        }
    }

    /// Takes so many records; the number of the first one.
    pub(super) fn take(&mut self, records: u64) -> u64 {
        let first = self.taken;
        self.taken += records;
        first
    }

    /// Records taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// When the next batch can be closed; `None` if there is none to come.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        if self.is_over(now) {
            return None;
        }
        let Some(schedule) = self.schedule else {
            return Some(now);
        };
        let last = (self.taken + self.batch_records).min(self.limit) - 1;
        Some(schedule.due(last).min(schedule.due(self.taken) + self.linger))
    }

    /// Whether every record has been taken, or the time is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let late = self.schedule.is_none() && self.ends.is_some_and(|ends| now >= ends);
        self.taken >= self.limit || late
    }

    /// Nothing is sent from now on.
    pub(super) fn stop(&mut self) {
        self.limit = self.taken;
    }

    /// When a record was to be sent, if there is a schedule.
    pub(super) fn intended(&self, record: u64) -> Option<Instant> {
        self.schedule.map(|schedule| schedule.due(record))
    }
}

/// The part of `records` that producer `index` of `producers` sends.
pub(super) fn share(records: u64, producers: u64, index: u64) -> u64 {
    records / producers + u64::from(index < records % producers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn records_are_evenly_spread_and_dealt_in_turns() {
        let start = Instant::now();
        let second = Schedule::new(start, 100, 2, 1);
        assert_eq!(second.due(0), start + ms(10));
        assert_eq!(second.due(1), start + ms(30));
        assert_eq!(second.due_by(start), 0);
        assert_eq!(second.due_by(start + ms(10)), 1);
        assert_eq!(second.due_by(start + ms(29)), 1);
        assert_eq!(second.due_by(start + ms(1000)), 50);
    }

    proptest! {
        #[test]
        fn a_record_counts_as_due_from_its_time_on(
            rate in 1u64..50_000_000, producers in 1u64..50, index in 0u64..50, n in 0u64..10_000_000,
        ) {
            let start = Instant::now();
            let schedule = Schedule::new(start, rate, producers, index % producers);
            let due = schedule.due(n);
            prop_assert!(schedule.due_by(due) > n);
            if let Some(before) = due.checked_sub(Duration::from_nanos(1)).filter(|before| *before >= start) {
                prop_assert!(schedule.due_by(before) <= n);
            }
        }

        #[test]
        fn shares_add_up(records in 0u64..1_000_000, producers in 1u64..100) {
            prop_assert_eq!((0..producers).map(|p| share(records, producers, p)).sum::<u64>(), records);
        }
    }

    #[test]
    fn a_batch_closes_when_full_or_when_it_lingered() {
        let start = Instant::now();
        let schedule = Some(Schedule::new(start, 1000, 1, 0));
        let mut supply = Supply::new(schedule, ms(5), 10, 100, None);
        assert_eq!(supply.ready(start), None);
        assert_eq!(supply.next_at(start), Some(start + ms(5)));
        assert_eq!(supply.ready(start + ms(5)), Some(6));
        assert_eq!(supply.take(6), 0);
        // Record 6 is due at 6 ms.
        assert_eq!(supply.next_at(start + ms(5)), Some(start + ms(11)));
        assert_eq!(supply.ready(start + ms(10)), None);
        // After a stall the backlog comes out in full batches, with the times at which it was due.
        let later = start + ms(60);
        assert_eq!(supply.ready(later), Some(10));
        assert_eq!(supply.take(10), 6);
        assert_eq!(supply.intended(6), Some(start + ms(6)));

        let mut no_linger = Supply::new(schedule, Duration::ZERO, 10, 100, None);
        assert_eq!(no_linger.ready(start), Some(1));
        no_linger.take(1);
        assert_eq!(no_linger.ready(start), None);
        assert_eq!(no_linger.next_at(start), Some(start + ms(1)));
    }

    #[test]
    fn the_last_records_do_not_linger() {
        let start = Instant::now();
        let schedule = Some(Schedule::new(start, 1000, 1, 0));
        let mut supply = Supply::new(schedule, ms(50), 10, 3, None);
        assert_eq!(supply.ready(start + ms(1)), None);
        assert_eq!(supply.ready(start + ms(2)), Some(3));
        supply.take(3);
        assert!(supply.is_over(start + ms(2)));
        assert_eq!(supply.next_at(start + ms(2)), None);
    }

    #[test]
    fn time_ends_a_schedule_at_an_exact_count() {
        let start = Instant::now();
        let schedule = Some(Schedule::new(start, 100, 1, 0));
        let ends = Some(start + Duration::from_secs(2));
        let mut supply = Supply::new(schedule, Duration::ZERO, 1000, u64::MAX, ends);
        assert_eq!(supply.ready(start + Duration::from_secs(9)), Some(200));
        supply.take(200);
        assert!(supply.is_over(start));
    }

    #[test]
    fn without_a_schedule_batches_are_full_until_the_end() {
        let start = Instant::now();
        let ends = Some(start + ms(10));
        let mut supply = Supply::new(None, ms(5), 10, 25, ends);
        assert_eq!(supply.ready(start), Some(10));
        assert_eq!((supply.take(10), supply.take(10)), (0, 10));
        assert_eq!(supply.ready(start), Some(5));
        assert_eq!(supply.next_at(start), Some(start));
        assert_eq!(supply.ready(start + ms(10)), None);
        assert!(supply.is_over(start + ms(10)));
        supply.stop();
        assert!(supply.is_over(start));
        assert_eq!(supply.taken(), 20);
    }
}
