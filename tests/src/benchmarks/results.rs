//! The measured figures: what `docs/benchmarks.json` holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::statistics::{median, ratio, spread};

/// Figures of one run, by name.
pub type Metrics = BTreeMap<String, f64>;

/// Everything that was measured, by group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Groups that were measured, by name.
    pub groups: BTreeMap<String, Group>,
}

/// One group of rows, measured in one go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Where, when and with what.
    pub facts: Facts,
    /// The rows in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// The circumstances of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Start, UTC.
    pub date: String,
    /// How long the group took.
    pub minutes: f64,
    /// Commit of the tree that was measured.
    pub commit: String,
    /// The command that measured.
    pub command: String,
    /// Less work per row than the real measurement.
    pub quick: bool,
    /// Runs of each row.
    pub runs: usize,
    /// Bytes of records in a row of throughput.
    pub bytes_per_row: u64,
    /// The machine.
    pub machine: Machine,
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
    /// Settings of the broker that bound memory and requests, as they hold on a bucket.
    pub settings: BTreeMap<String, String>,
}

/// One work on one system by one client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Table to which it belongs.
    pub section: String,
    /// What is done.
    pub work: String,
    /// Which client does it.
    pub client: String,
    /// Which broker it is done to.
    pub system: String,
    /// The client's command.
    pub command: String,
    /// Figures of each run; empty for a run that failed.
    pub runs: Vec<Metrics>,
    /// Why a run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Row {
    fn values(&self, metric: &str) -> Vec<Option<f64>> {
        self.runs.iter().map(|run| run.get(metric).copied()).collect()
    }

    /// Median over the runs.
    pub fn median(&self, metric: &str) -> Option<f64> {
        let values: Vec<f64> = self.values(metric).into_iter().flatten().collect();
        median(&values)
    }

    /// Largest less smallest run as a part of the median.
    pub fn spread(&self, metric: &str) -> Option<f64> {
        let values: Vec<f64> = self.values(metric).into_iter().flatten().collect();
        spread(&values)
    }

    /// Median of the ratios to another row, run by run.
    pub fn ratio(&self, other: &Row, metric: &str) -> Option<f64> {
        ratio(&self.values(metric), &other.values(metric))
    }
}

impl Group {
    /// The row of a work, client and system.
    pub fn row(&self, section: &str, work: &str, client: &str, system: &str) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.section == section && row.work == work && row.client == client && row.system == system
        })
    }
}

impl Results {
    /// Reads a file; one that is not there holds nothing.
    pub fn read(path: &Path) -> Result<Results, String> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Results::default()),
            read => read.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f64]) -> Row {
        Row {
            runs: values
                .iter()
                .map(|value| Metrics::from([("x".to_owned(), *value)]))
                .collect(),
            ..Row::default()
        }
    }

    #[test]
    fn a_row_is_the_median_of_its_runs() {
        let mut one = row(&[1.0, 9.0, 2.0]);
        assert_eq!(one.median("x"), Some(2.0));
        assert_eq!(one.spread("x"), Some(4.0));
        assert_eq!(one.median("y"), None);
        // A run that failed has no figures, and its partner no ratio.
        one.runs[1].clear();
        assert_eq!(one.median("x"), Some(1.5));
        assert_eq!(one.ratio(&row(&[2.0, 3.0, 1.0]), "x"), Some(1.25));
    }

    #[test]
    fn survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        assert_eq!(Results::read(&path).unwrap(), Results::default());
        let group = Group {
            rows: vec![row(&[1.5])],
            ..Group::default()
        };
        let results = Results {
            groups: BTreeMap::from([("idle".to_owned(), group)]),
        };
        results.write(&path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results);
        std::fs::write(&path, "{").unwrap();
        assert!(Results::read(&path).unwrap_err().contains("results.json"));
    }
}
