//! What a run saw, and what it left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::cluster::Starts;
use super::plan::FaultKind;
use super::store::Contents;
use super::world::World;

/// A manifest may be so much larger than before: each of 1,024 slots may be a run of its own, and the numbers of its owner
/// and epoch get longer as they grow.
const MANIFEST_SLACK_BYTES: u64 = 6 * 1024;
/// A stream that is dead keeps its seal, and for a while a head or a checkpoint.
const LEFT_BY_DEAD_STREAM: usize = 3;

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    begun: Instant,
    kinds: BTreeMap<String, Kind>,
    lines: Vec<String>,
}

/// Faults of one kind that struck alone.
#[derive(Clone, Debug, Default)]
struct Kind {
    count: u64,
    /// From the end of the fault until every partition took records.
    recoveries: Vec<Duration>,
    /// Longest time without an acknowledgement, for each partition.
    gaps: Vec<Duration>,
}

impl Default for Summary {
    fn default() -> Summary {
        Summary {
            begun: Instant::now(),
            kinds: BTreeMap::new(),
            lines: Vec::new(),
        }
    }
}

impl Summary {
    /// Seconds since the begin.
    pub(super) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    pub(super) fn step(&mut self, kinds: &[FaultKind], recovery: Duration, gaps: &[Duration]) {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let name = if names.len() > 1 {
            "two at once"
        } else {
            names.first().copied().unwrap_or("none")
        };
        let kind = self.kinds.entry(name.to_owned()).or_default();
        kind.count += 1;
        kind.recoveries.push(recovery);
        kind.gaps.extend_from_slice(gaps);
    }

    pub(super) fn tidied(&mut self, before: &Contents, after: &Contents, took: Duration) {
        self.lines.push(format!(
            "manifest {} bytes before, {} after; objects {:?} before, {:?} after; tidy after {:.0} s",
            before.manifest_bytes,
            after.manifest_bytes,
            before.by_kind(),
            after.by_kind(),
            took.as_secs_f64()
        ));
    }

    pub(super) fn finish(&mut self, world: &World, starts: Starts, contents: &Contents) {
        let counts = &world.counts;
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        self.lines.push(format!(
            "{:.0} s; {} records acknowledged, {} retries; {} read in order, {} old ones read again",
            self.seconds(),
            world.ledger.lock().acknowledged_count(),
            of(&counts.producer_retries),
            of(&counts.reads),
            of(&counts.old_reads),
        ));
        self.lines.push(format!(
            "{} joins, {} commits, {} stale commits refused",
            of(&counts.joins),
            of(&counts.commits),
            of(&counts.stale_commits_refused),
        ));
        self.lines.push(format!(
            "{} starts of brokers, {} of them because the store was lost; {} streams begun",
            starts.all, starts.revived, contents.streams_begun
        ));
        let bytes: u64 = contents.objects.iter().map(|(_, bytes)| bytes).sum();
        self.lines.push(format!(
            "bucket: {} objects, {bytes} bytes, {:?}; manifest {} bytes",
            contents.objects.len(),
            contents.by_kind(),
            contents.manifest_bytes
        ));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:>5} {:>22} {:>36}",
            "fault", "count", "recovery p50/max s", "unavailable p50/p99/max s"
        )?;
        for (name, kind) in &self.kinds {
            let (recovery, gaps) = (sorted(&kind.recoveries), sorted(&kind.gaps));
            writeln!(
                f,
                "{name:<18} {:>5} {:>22} {:>36}",
                kind.count,
                format!("{:.1} / {:.1}", share(&recovery, 0.5), share(&recovery, 1.0)),
                format!(
                    "{:.1} / {:.1} / {:.1}",
                    share(&gaps, 0.5),
                    share(&gaps, 0.99),
                    share(&gaps, 1.0)
                ),
            )?;
        }
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

fn sorted(all: &[Duration]) -> Vec<f64> {
    let mut seconds: Vec<f64> = all.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The value below which this share lies; 0 of nothing.
fn share(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// Whether restarts have left more than they must.
///
/// # Errors
/// What there is too much of.
pub(super) fn leftovers(before: &Contents, now: &Contents, brokers: usize) -> Result<(), String> {
    if now.manifest_bytes > before.manifest_bytes + MANIFEST_SLACK_BYTES {
        return Err(format!(
            "the manifest has {} bytes, {} before",
            now.manifest_bytes, before.manifest_bytes
        ));
    }
    let streams = now.by_stream();
    let mut large: Vec<(&&str, &usize)> = streams
        .iter()
        .filter(|(_, count)| **count > LEFT_BY_DEAD_STREAM)
        .collect();
    large.sort_by_key(|(_, count)| **count);
    // The living may hold as much as they do.
    if large.len() > brokers {
        return Err(format!(
            "{} streams of {brokers} brokers hold more than {LEFT_BY_DEAD_STREAM} objects: {large:?}",
            large.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(streams: &[(&str, usize)], manifest_bytes: u64) -> Contents {
        let keys = streams
            .iter()
            .flat_map(|(stream, count)| (0..*count).map(move |number| (format!("wal/{stream}/{number}"), 1)));
        Contents {
            objects: keys.collect(),
            manifest_bytes,
            ..Contents::default()
        }
    }

    #[test]
    fn what_is_left_behind_is_noticed() {
        let before = contents(&[("a", 20), ("b", 9)], 5_000);
        let judge = |streams: &[(&str, usize)], manifest| leftovers(&before, &contents(streams, manifest), 2);
        let dead = LEFT_BY_DEAD_STREAM;
        let slack = 5_000 + MANIFEST_SLACK_BYTES;
        let living = [("c", 40), ("d", 50)];
        let with = |left: usize| [&[("a", 1), ("b", left)][..], &living[..]].concat();
        assert_eq!(judge(&with(dead), slack), Ok(()));
        let streams = judge(&with(dead + 1), slack).unwrap_err();
        assert!(streams.contains("3 streams of 2 brokers"), "{streams}");
        let manifest = judge(&living, slack + 1).unwrap_err();
        assert!(
            manifest.contains(&format!("{} bytes, 5000 before", slack + 1)),
            "{manifest}"
        );
    }

    #[test]
    fn figures_are_told_by_kind() {
        let mut summary = Summary::default();
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        summary.step(&[FaultKind::Kill], Duration::from_secs(1), &seconds(&[1, 2]));
        summary.step(&[FaultKind::Kill], Duration::from_secs(3), &seconds(&[4, 3]));
        summary.step(&[FaultKind::Stop, FaultKind::Freeze], Duration::from_secs(9), &[]);
        let text = summary.to_string();
        let line = text.lines().find(|line| line.starts_with("kill ")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            cells,
            ["kill", "2", "3.0", "/", "3.0", "3.0", "/", "4.0", "/", "4.0"]
        );
        assert!(text.contains("two at once"), "{text}");
    }
}
