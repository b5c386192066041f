//! The rows of one group while they are measured.

use std::time::Duration;

use super::Tools;
use super::clients::RECORD_BYTES;
use super::results::{Metrics, Row};

/// How much work is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
    pub(crate) runs: usize,
    pub(crate) bytes: u64,
}

impl Scale {
    /// Records of a row of throughput.
    pub(crate) fn records(&self) -> u64 {
        (self.bytes / RECORD_BYTES).max(1)
    }

    /// Records that warm a broker up.
    pub(crate) fn warm_up_records(&self, part: u64) -> u64 {
        (self.records() / part).max(1_000)
    }

    /// A time in seconds, shorter when it must be quick.
    pub(crate) fn seconds(&self, full: u64) -> u64 {
        if self.quick { (full / 4).max(5) } else { full }
    }

    /// The same as a duration.
    pub(crate) fn time(&self, full: u64) -> Duration {
        Duration::from_secs(self.seconds(full))
    }
}

/// What identifies a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) section: &'static str,
    pub(crate) work: String,
    pub(crate) client: String,
    pub(crate) system: &'static str,
}

/// Gathers the rows of a group.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) tools: Tools,
    pub(crate) scale: Scale,
    group: &'static str,
    rows: Vec<Row>,
}

/// The command and the figures of one run.
pub(crate) type Run = Result<(String, Metrics), String>;

impl Session {
    pub(crate) fn new(tools: Tools, scale: Scale, group: &'static str) -> Session {
        Session {
            tools,
            scale,
            group,
            rows: Vec::new(),
        }
    }

    /// Adds a run to its row. A run that failed keeps its place, so that runs of two rows stay paired.
    pub(crate) fn record(&mut self, key: &Key, run: Run) {
        let row = self.row(key);
        match run {
            Ok((command, metrics)) => {
                eprintln!("{}", line(key, &metrics));
                let row = &mut self.rows[row];
                row.command = command;
                row.runs.push(metrics);
            }
            Err(error) => {
                let group = self.group;
                eprintln!(
                    "{group}: {} ({}, {}) failed: {error}",
                    key.work, key.client, key.system
                );
                let row = &mut self.rows[row];
                row.runs.push(Metrics::new());
                row.error.get_or_insert(error);
            }
        }
    }

    fn row(&mut self, key: &Key) -> usize {
        let same = |row: &Row| {
            row.section == key.section
                && row.work == key.work
                && row.client == key.client
                && row.system == key.system
        };
        self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(Row {
                section: key.section.to_owned(),
                work: key.work.clone(),
                client: key.client.clone(),
                system: key.system.to_owned(),
                ..Row::default()
            });
            self.rows.len() - 1
        })
    }

    pub(crate) fn into_rows(self) -> Vec<Row> {
        self.rows
    }
}

/// One line about a run, for whoever watches.
fn line(key: &Key, metrics: &Metrics) -> String {
    let shown = [
        ("mb_per_second", "MB/s"),
        ("broker_cpu_s_per_gb", "CPU-s/GB"),
        ("p50_ms", "ms p50"),
        ("p99_ms", "ms p99"),
        ("rss_mb", "MB RSS"),
        ("dollars_per_month", "$/month"),
        ("errors", "errors"),
    ];
    let parts: Vec<String> = shown
        .iter()
        .filter_map(|(name, unit)| Some(format!("{:.1} {unit}", metrics.get(*name)?)))
        .collect();
    format!(
        "{}, {}, {}: {}",
        key.work,
        key.client,
        key.system,
        parts.join(", ")
    )
}

/// `count` systems in an order that turns from run to run, so that none always comes first.
pub(crate) fn in_turns<T: Copy>(systems: &[T], run: usize) -> Vec<T> {
    let mut order = systems.to_vec();
    order.rotate_left(run % systems.len().max(1));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn session() -> Session {
        let path = PathBuf::from("/nowhere");
        let tools = Tools {
            alluvium: path.clone(),
            s3_fake: path.clone(),
            rdkafka: path.clone(),
            directory: path,
        };
        let scale = Scale {
            quick: true,
            runs: 2,
            bytes: 1 << 20,
        };
        Session::new(tools, scale, "test")
    }

    #[test]
    fn a_run_that_failed_keeps_its_place() {
        let mut session = session();
        let key = Key {
            section: "s",
            work: "w".to_owned(),
            client: "c".to_owned(),
            system: "alluvium",
        };
        session.record(&key, Err("broken".to_owned()));
        let metrics = Metrics::from([("x".to_owned(), 1.0)]);
        session.record(&key, Ok(("command".to_owned(), metrics.clone())));
        let rows = session.into_rows();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].runs, [Metrics::new(), metrics]);
        assert_eq!(rows[0].error.as_deref(), Some("broken"));
        assert_eq!(rows[0].command, "command");
    }

    #[test]
    fn none_is_always_first() {
        assert_eq!(in_turns(&[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(in_turns(&[1, 2, 3], 4), [2, 3, 1]);
    }

    #[test]
    fn quick_is_shorter() {
        let scale = session().scale;
        assert_eq!(scale.records(), 1024);
        assert_eq!(scale.seconds(60), 15);
        assert_eq!(scale.seconds(8), 5);
    }
}
