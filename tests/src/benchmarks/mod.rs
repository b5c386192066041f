//! Measures Alluvium beside what it is compared with, and writes `docs/benchmarks.md`.
//!
//! `groups -> measure (clients run, brokers are watched) -> results (JSON) -> report (the page)`
//!
//! Brokers, the store and the load generators are processes of their own, so that `/proc` tells the cost of each.
//! What is compared is measured in turns, run by run, and ratios are taken within a run: drift of the machine hits
//! both sides. Nothing here decides a test.

mod alluvium;
mod clients;
mod groups;
mod kafka_server;
mod machine;
mod measure;
mod process;
mod report;
mod results;
mod session;
mod statistics;
mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub use machine::Machine;
pub use report::render;
pub use results::{Facts, Group, Metrics, Results, Row};

use session::{Scale, Session};

/// Names of all groups, in the order in which they run.
pub fn group_names() -> Vec<&'static str> {
    groups::ALL.iter().map(|group| group.name).collect()
}

/// What to measure and where to write it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the programs that are compared with, and of all data while it is needed.
    pub tools: PathBuf,
    /// Names of the groups; the others keep what the file says of them.
    pub groups: Vec<String>,
    /// Runs of each row.
    pub runs: usize,
    /// Less work per row.
    pub quick: bool,
    /// Bytes of records in a row of throughput.
    pub bytes_per_row: u64,
    /// Directory of `benchmarks.md` and `benchmarks.json`.
    pub output: PathBuf,
    /// The command that the page names.
    pub command: String,
}

/// The programs that take part, and where data and logs go.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) alluvium: PathBuf,
    pub(crate) s3_fake: PathBuf,
    pub(crate) rdkafka: PathBuf,
    pub(crate) directory: PathBuf,
}

impl Tools {
    /// Our programs lie beside this one.
    fn find(directory: &Path) -> Result<Tools, String> {
        let this = std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
        let beside = |name: &str| {
            let path = this.with_file_name(name);
            let missing = || format!("{} is missing: run benchmarks/run.sh", path.display());
            path.exists().then(|| path.clone()).ok_or_else(missing)
        };
        std::fs::create_dir_all(directory.join("logs"))
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        let directory = directory
            .canonicalize()
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(Tools {
            alluvium: beside("alluvium")?,
            s3_fake: beside("s3-fake")?,
            rdkafka: directory.join("rdkafka"),
            directory,
        })
    }

    /// The class path of Kafka and its tools.
    pub(crate) fn kafka_jars(&self) -> String {
        format!("{}/kafka/lib/*", self.directory.display())
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// A directory for data that does not exist yet.
    pub(crate) fn fresh_directory(&self, name: &str) -> Result<PathBuf, String> {
        let path = self
            .directory
            .join("data")
            .join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }
}

/// Measures and writes; says what was written. Rows that fail are told on the page and do not end the others.
pub fn run(settings: &Settings) -> Result<String, String> {
    let tools = Tools::find(&settings.tools)?;
    let data = tools.directory.join("data");
    // What an interrupted measurement left behind.
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&settings.output)
        .map_err(|error| format!("{}: {error}", settings.output.display()))?;
    let json = settings.output.join("benchmarks.json");
    let mut results = Results::read(&json)?;
    let mut facts = Facts {
        commit: machine::commit(),
        command: settings.command.clone(),
        quick: settings.quick,
        runs: settings.runs,
        bytes_per_row: settings.bytes_per_row,
        machine: Machine::look(&tools.directory)?,
        versions: machine::versions(&tools),
        settings: broker_settings(&tools)?,
        ..Facts::default()
    };
    let mut failures = 0;
    for group in groups::ALL {
        if !settings.groups.iter().any(|name| name == group.name) {
            continue;
        }
        facts.date = chrono::Utc::now().format("%Y-%m-%d %H:%M").to_string();
        let started = Instant::now();
        let scale = Scale {
            quick: settings.quick,
            runs: settings.runs,
            bytes: settings.bytes_per_row,
        };
        let mut session = Session::new(tools.clone(), scale, group.name);
        let ended = (group.run)(&mut session);
        let mut rows = session.into_rows();
        if let Err(error) = ended {
            eprintln!("{}: {error}", group.name);
            rows.push(Row {
                section: group.name.to_owned(),
                work: "the group".to_owned(),
                error: Some(error),
                ..Row::default()
            });
        }
        failures += rows.iter().filter(|row| row.error.is_some()).count();
        facts.minutes = started.elapsed().as_secs_f64() / 60.0;
        let measured = Group {
            facts: facts.clone(),
            rows,
        };
        // After each group, so that hours of measuring are not lost with the last row.
        results.groups.insert(group.name.to_owned(), measured);
        results.write(&json)?;
        write_page(&results, &settings.output)?;
    }
    let _ = std::fs::remove_dir_all(&data);
    let wrote = format!("wrote {} and its page", json.display());
    if failures > 0 {
        return Err(format!("{wrote}; {failures} rows failed"));
    }
    Ok(wrote)
}

/// Writes the page anew from the figures that are there.
pub fn rewrite(output: &Path) -> Result<String, String> {
    let results = Results::read(&output.join("benchmarks.json"))?;
    write_page(&results, output)?;
    Ok(format!("wrote {}", output.join("benchmarks.md").display()))
}

fn write_page(results: &Results, output: &Path) -> Result<(), String> {
    let path = output.join("benchmarks.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let page = render(results, &report::notes_of(&old));
    std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))
}

/// Names of the settings that the page states.
const STATED: [&str; 9] = [
    "request.budget.per.second",
    "request.budget.burst",
    "flush.interval.ms",
    "flush.bytes",
    "flush.puts.in.flight",
    "memory.budget.bytes",
    "tail.bytes",
    "cache.bytes",
    "fetch.max.bytes",
];

/// The settings that bound memory and requests, as they hold on a bucket.
fn broker_settings(tools: &Tools) -> Result<BTreeMap<String, String>, String> {
    let mut command = Command::new(&tools.alluvium);
    crate::broker::isolate(&mut command);
    command.args(["config", "--json", "--store", "s3://alluvium/benchmarks"]);
    let output = command
        .output()
        .map_err(|error| format!("alluvium config: {error}"))?;
    parse_settings(&output.stdout).map_err(|error| format!("alluvium config: {error}"))
}

fn parse_settings(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let settings: Vec<serde_json::Value> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let pairs = settings.iter().filter_map(|setting| {
        let name = setting["name"].as_str()?;
        let value = setting["value"].as_str()?;
        STATED
            .contains(&name)
            .then(|| (name.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_settings_that_the_page_states() {
        let json = br#"[{"name": "tail.bytes", "value": "7"}, {"name": "node.id", "value": "1"}]"#;
        let settings = parse_settings(json).unwrap();
        assert_eq!(
            settings,
            BTreeMap::from([("tail.bytes".to_owned(), "7".to_owned())])
        );
        assert!(parse_settings(b"nothing").is_err());
    }
}
