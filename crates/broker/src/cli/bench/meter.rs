//! What was measured: counts, latencies, gaps, the CPU time of the generator itself, and a line a second about it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Latencies up to this are told apart; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);
/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;
/// Bytes of a MB.
pub(super) const MB: f64 = 1e6;

/// Latencies from many tasks.
#[derive(Debug)]
pub(super) struct Latencies(Mutex<Histogram<u64>>);

impl Latencies {
    /// None yet.
    pub(super) fn new() -> Result<Latencies, String> {
        let max = LATENCY_MAX.as_micros() as u64;
        let histogram = Histogram::new_with_bounds(1, max, LATENCY_DIGITS);
        Ok(Latencies(Mutex::new(histogram.map_err(|e| e.to_string())?)))
    }

    /// Notes latencies, in µs.
    pub(super) fn record(&self, latencies: impl IntoIterator<Item = Duration>) {
        let mut histogram = self.0.lock();
        for latency in latencies {
            histogram.saturating_record(micros(latency));
        }
    }

    /// Notes the same latency `count` times.
    pub(super) fn record_many(&self, latency: Duration, count: u64) {
        self.0.lock().saturating_record_n(micros(latency), count);
    }

    /// The percentiles; `None` if nothing was noted.
    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        let histogram = self.0.lock();
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| millis(histogram.value_at_quantile(quantile) as f64);
        Some(Percentiles {
            mean: millis(histogram.mean()),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(histogram.max() as f64),
        })
    }
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds with three digits behind the point.
fn millis(micros: f64) -> f64 {
    micros.round() / 1000.0
}

/// Latencies in ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

/// The counts of a run, shared by all its tasks. What happens before `measured_from` counts nowhere.
#[derive(Debug)]
pub(super) struct Meter {
    /// When the warm-up is over.
    pub(super) measured_from: Instant,
    records: AtomicU64,
    bytes: AtomicU64,
    wire_bytes: AtomicU64,
    /// Answers with an error and lost connections.
    errors: AtomicU64,
    /// Batches that were sent again, or fetches that were tried again.
    retries: AtomicU64,
    fetches: AtomicU64,
    /// Nanoseconds from `measured_from` to the last acknowledgement or the last record.
    last: AtomicU64,
    /// Nanoseconds of CPU that the process had used at `measured_from`.
    cpu_before: AtomicU64,
    pub(super) latencies: Latencies,
    gaps: Vec<Gap>,
}

/// The longest time in which a partition acknowledged nothing, in nanoseconds.
#[derive(Debug, Default)]
struct Gap {
    last: AtomicU64,
    longest: AtomicU64,
}

impl Meter {
    /// Zero. With `gaps_of` partitions the gaps between acknowledgements are noted too.
    pub(super) fn new(measured_from: Instant, gaps_of: usize) -> Result<Arc<Meter>, String> {
        Ok(Arc::new(Meter {
            measured_from,
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            last: AtomicU64::new(0),
            cpu_before: AtomicU64::new(0),
            latencies: Latencies::new()?,
            gaps: (0..gaps_of).map(|_| Gap::default()).collect(),
        }))
    }

    /// Time since the warm-up; `None` before its end.
    fn elapsed(&self, now: Instant) -> Option<u64> {
        let elapsed = now.checked_duration_since(self.measured_from)?;
        Some(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Counts records that are acknowledged, or read.
    pub(super) fn add(&self, now: Instant, records: u64, bytes: u64) {
        if let Some(elapsed) = self.elapsed(now) {
            self.records.fetch_add(records, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.last.fetch_max(elapsed, Ordering::Relaxed);
        }
    }

    /// Counts bytes of a connection.
    pub(super) fn add_wire_bytes(&self, now: Instant, bytes: u64) {
        if self.elapsed(now).is_some() {
            self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a fetch.
    pub(super) fn add_fetch(&self, now: Instant) {
        if self.elapsed(now).is_some() {
            self.fetches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts an error, and what is tried again after it.
    pub(super) fn add_error(&self, now: Instant, retries: u64) {
        if self.elapsed(now).is_some() {
            self.errors.fetch_add(1, Ordering::Relaxed);
            self.retries.fetch_add(retries, Ordering::Relaxed);
        }
    }

    /// Notes that a partition acknowledged something.
    pub(super) fn alive(&self, now: Instant, partition: usize) {
        if let (Some(gap), Some(elapsed)) = (self.gaps.get(partition), self.elapsed(now)) {
            // Several producers may be a little out of order.
            let before = gap.last.fetch_max(elapsed, Ordering::Relaxed);
            gap.longest
                .fetch_max(elapsed.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// The longest gap of each partition, in ms: the median of the partitions and the worst one.
    pub(super) fn gaps(&self) -> Option<Gaps> {
        let mut longest: Vec<u64> = self
            .gaps
            .iter()
            .map(|gap| gap.longest.load(Ordering::Relaxed))
            .collect();
        longest.sort_unstable();
        let ms = |nanos: u64| millis(nanos as f64 / 1000.0);
        Some(Gaps {
            p50: ms(longest[longest.len().checked_sub(1)? / 2]),
            max: ms(*longest.last()?),
        })
    }

    /// The counts.
    pub(super) fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let seconds = get(&self.last) as f64 / 1e9;
        let per_second = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        let (records, bytes) = (get(&self.records), get(&self.bytes));
        Counts {
            records,
            bytes,
            wire_bytes: get(&self.wire_bytes),
            seconds: round(seconds, 1e6),
            mb_per_second: round(per_second(bytes as f64 / MB), 1e3),
            records_per_second: round(per_second(records as f64), 1e1),
            errors: get(&self.errors),
            retries: get(&self.retries),
            fetches: get(&self.fetches),
        }
    }

    /// CPU seconds of this process since the warm-up.
    pub(super) fn cpu_seconds(&self) -> Option<f64> {
        let used = process_cpu()?.as_nanos() as u64;
        let used = used.saturating_sub(self.cpu_before.load(Ordering::Relaxed));
        Some(round(used as f64 / 1e9, 1e2))
    }

    /// Watches a run until it is dropped: notes the CPU time at the end of the warm-up, and writes a line a second
    /// to a terminal.
    pub(super) async fn watch(self: Arc<Self>) {
        tokio::time::sleep_until(self.measured_from.into()).await;
        let used = process_cpu().unwrap_or_default();
        self.cpu_before.store(used.as_nanos() as u64, Ordering::Relaxed);
        if !std::io::stderr().is_terminal() {
            return;
        }
        let (mut records, mut bytes) = (0, 0);
        for second in 1.. {
            tokio::time::sleep_until((self.measured_from + Duration::from_secs(second)).into()).await;
            let counts = self.counts();
            let p99 = self.latencies.percentiles().map(|all| all.p99);
            eprintln!(
                "{second:>5} s {:>12} records/s {:>9.1} MB/s{}",
                counts.records - records,
                (counts.bytes - bytes) as f64 / MB,
                p99.map_or_else(String::new, |p99| format!("   p99 {p99:.1} ms so far")),
            );
            (records, bytes) = (counts.records, counts.bytes);
        }
    }
}

/// Longest gaps in ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Gaps {
    pub(super) p50: f64,
    pub(super) max: f64,
}

/// What a [`Meter`] counted. Rates are over `seconds`, which end with the last acknowledgement or record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) seconds: f64,
    pub(super) mb_per_second: f64,
    pub(super) records_per_second: f64,
    pub(super) errors: u64,
    pub(super) retries: u64,
    pub(super) fetches: u64,
}

/// Rounds to a part in `parts`.
pub(super) fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// CPU time, user and system, of this process; `None` where the system does not tell it as Linux does.
fn process_cpu() -> Option<Duration> {
    cpu_of(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Linux counts in hundredths of a second, whatever its own tick is.
fn cpu_of(stat: &str) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    // The name in parentheses may hold anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user.checked_add(system)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_in_ms() {
        let latencies = Latencies::new().unwrap();
        assert_eq!(latencies.percentiles(), None);
        latencies.record((1..=1000).map(Duration::from_millis));
        let found = serde_json::to_value(latencies.percentiles().unwrap()).unwrap();
        let expected = [
            ("mean", 500.5),
            ("p50", 500.0),
            ("p90", 900.0),
            ("p95", 950.0),
            ("p99", 990.0),
            ("p999", 999.0),
            ("max", 1000.0),
        ];
        assert_eq!(found.as_object().unwrap().len(), expected.len());
        for (name, expected) in expected {
            let value = found[name].as_f64().unwrap();
            assert!((value - expected).abs() <= expected * 0.001, "{name}: {value}");
        }
        latencies.record_many(Duration::from_millis(2000), 9000);
        assert!((latencies.percentiles().unwrap().p50 - 2000.0).abs() <= 2.0);
    }

    #[test]
    fn absurd_latencies_are_capped() {
        let latencies = Latencies::new().unwrap();
        latencies.record([Duration::ZERO, Duration::MAX]);
        let all = latencies.percentiles().unwrap();
        assert!(all.max >= LATENCY_MAX.as_millis() as f64, "{all:?}");
    }

    #[test]
    fn the_warm_up_counts_nowhere() {
        let from = Instant::now();
        let meter = Meter::new(from, 2).unwrap();
        let before = from.checked_sub(Duration::from_millis(1)).unwrap();
        meter.add(before, 5, 50);
        meter.add_wire_bytes(before, 60);
        meter.add_error(before, 1);
        meter.add_fetch(before);
        meter.alive(before, 0);
        assert_eq!(meter.counts().records + meter.counts().wire_bytes, 0);
        assert_eq!(meter.counts().records_per_second, 0.0);
        meter.add(from + Duration::from_secs(1), 5, 3_000_000);
        meter.add(from + Duration::from_secs(2), 5, 3_000_000);
        meter.add_wire_bytes(from + Duration::from_secs(9), 60);
        meter.add_error(from, 2);
        meter.add_fetch(from);
        let counts = meter.counts();
        assert_eq!(
            (counts.records, counts.bytes, counts.wire_bytes),
            (10, 6_000_000, 60)
        );
        assert_eq!((counts.seconds, counts.mb_per_second), (2.0, 3.0));
        assert_eq!((counts.errors, counts.retries, counts.fetches), (1, 2, 1));
    }

    #[test]
    fn gaps_are_the_longest_of_each_partition() {
        let from = Instant::now();
        assert_eq!(Meter::new(from, 0).unwrap().gaps(), None);
        let meter = Meter::new(from, 3).unwrap();
        let at = |ms| from + Duration::from_millis(ms);
        for (partition, ms) in [
            (0, 10),
            (1, 70),
            (2, 5),
            (0, 50),
            (0, 60),
            (2, 10),
            (2, 9),
            (1, 90),
        ] {
            meter.alive(at(ms), partition);
        }
        meter.alive(at(99), 7);
        assert_eq!(meter.gaps(), Some(Gaps { p50: 40.0, max: 70.0 }));
    }

    #[test]
    fn reads_the_cpu_time_of_a_process() {
        let stat = "123 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_of("123 (a) S 1"), None);
    }
}
