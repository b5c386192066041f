//! Measures Alluvium beside Apache Kafka and at the latency of buckets; `benchmarks/run.sh` starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use alluvium_tests::benchmarks::{Settings, group_names, rewrite, run};
use alluvium_tests::installed::{root, target};
use clap::Parser;

/// Bytes of records in a row of throughput.
const BYTES: u64 = 4_000_000_000;
/// The same with `--quick`.
const QUICK_BYTES: u64 = 500_000_000;

/// Measures Alluvium beside Apache Kafka and at the latency of buckets, and writes benchmarks.md and benchmarks.json.
#[derive(Debug, Parser)]
#[command(name = "benchmarks")]
struct Arguments {
    /// An eighth of the records and a quarter of the time; written below target/benchmarks, not to docs
    #[arg(long)]
    quick: bool,
    /// Groups to measure: embedded, store30, s3, idle, many, faults, cluster, scale, history; the others keep what the file says of them
    #[arg(long, value_name = "GROUPS", value_delimiter = ',')]
    only: Vec<String>,
    /// Runs of each row; the page shows medians
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Megabytes of records in a row of throughput (default: 4000, with --quick 500)
    #[arg(long, value_name = "MB")]
    megabytes: Option<u64>,
    /// Where benchmarks.md and benchmarks.json are written (default: docs, with --quick target/benchmarks/quick)
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Measure nothing: write the page anew from benchmarks.json
    #[arg(long)]
    render: bool,
    /// Where run.sh has installed what is compared with
    #[arg(long, value_name = "DIR", hide = true)]
    tools: Option<PathBuf>,
}

impl Arguments {
    fn output(&self) -> PathBuf {
        match &self.output {
            Some(directory) => directory.clone(),
            None if self.quick => self.tools().join("quick"),
            None => root().join("docs"),
        }
    }

    fn tools(&self) -> PathBuf {
        self.tools.clone().unwrap_or_else(|| target().join("benchmarks"))
    }

    fn groups(&self) -> Result<Vec<String>, String> {
        let known = group_names();
        let named = self.only.iter().filter(|name| !name.is_empty());
        if let Some(unknown) = named.clone().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("unknown group '{unknown}'; known: {}", known.join(", ")));
        }
        let named: Vec<String> = named.cloned().collect();
        if named.is_empty() {
            return Ok(known.into_iter().map(str::to_owned).collect());
        }
        Ok(named)
    }

    /// The command that measures this again.
    fn command_line(&self) -> String {
        let mut command = "benchmarks/run.sh".to_owned();
        if self.quick {
            command.push_str(" --quick");
        }
        if !self.only.is_empty() {
            command.push_str(&format!(" --only {}", self.only.join(",")));
        }
        if self.runs != 3 {
            command.push_str(&format!(" --runs {}", self.runs));
        }
        if let Some(megabytes) = self.megabytes {
            command.push_str(&format!(" --megabytes {megabytes}"));
        }
        command
    }
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(words) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Err(words) => {
            eprintln!("benchmarks: {words}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<String, String> {
    if arguments.render {
        return rewrite(&arguments.output());
    }
    if arguments.runs == 0 {
        return Err("--runs must be at least 1".to_owned());
    }
    let bytes = if arguments.quick { QUICK_BYTES } else { BYTES };
    run(&Settings {
        tools: arguments.tools(),
        groups: arguments.groups()?,
        runs: arguments.runs,
        quick: arguments.quick,
        bytes_per_row: arguments
            .megabytes
            .map_or(bytes, |megabytes| megabytes.saturating_mul(1_000_000)),
        output: arguments.output(),
        command: arguments.command_line(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Arguments {
        Arguments::parse_from(line.split(' '))
    }

    #[test]
    fn help_names_every_group() {
        let help = Arguments::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&group_names().join(", ")), "{help}");
    }

    #[test]
    fn knows_its_groups_and_its_own_command() {
        let arguments = parse("benchmarks --quick --only s3,idle --runs 2");
        assert_eq!(arguments.groups(), Ok(vec!["s3".to_owned(), "idle".to_owned()]));
        assert_eq!(
            arguments.command_line(),
            "benchmarks/run.sh --quick --only s3,idle --runs 2"
        );
        assert!(
            parse("benchmarks --only disk")
                .groups()
                .unwrap_err()
                .contains("'disk'")
        );
        assert_eq!(parse("benchmarks").groups().unwrap(), group_names());
    }

    #[test]
    fn a_quick_measurement_leaves_the_docs_alone() {
        assert!(parse("benchmarks --quick").output().ends_with("quick"));
        assert!(parse("benchmarks").output().ends_with("docs"));
    }
}
