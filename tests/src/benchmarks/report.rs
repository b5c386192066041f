//! The page, written from the figures.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::groups;
use super::results::{Facts, Group, Results, Row};

const NOTES_BEGIN: &str = "<!-- notes -->";
const NOTES_END: &str = "<!-- /notes -->";

/// One table of a group.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What is measured and how to read it.
    pub(crate) about: &'static str,
    pub(crate) columns: &'static [Column],
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// The median of a figure.
    Value(&'static str, &'static str, usize),
    /// Medians of several figures in one cell.
    Several(&'static str, &'static [&'static str], usize),
    /// The median of the ratios to the same row of another system.
    Ratio(&'static str, &'static str, &'static str),
    /// How far the runs lie apart, in percent of the median.
    Spread(&'static str),
}

/// A figure that Alluvium should reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) says: &'static str,
    pub(crate) section: &'static str,
    pub(crate) work: &'static str,
    pub(crate) client: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) bound: Bound,
}

/// How a figure is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// At least so many times that of another system.
    RatioAtLeast(&'static str, f64),
    /// At most so many times that of another system.
    RatioAtMost(&'static str, f64),
}

/// The system whose figures are judged.
pub(crate) const OURS: &str = "Alluvium";

impl Target {
    /// The figure and whether it is reached; nothing when it was not measured.
    fn judge(&self, group: &Group) -> Option<(f64, bool)> {
        let row = group.row(self.section, self.work, self.client, OURS)?;
        let ratio = |to: &str| {
            let other = group.row(self.section, self.work, self.client, to)?;
            row.ratio(other, self.metric)
        };
        Some(match self.bound {
            Bound::AtLeast(bound) => {
                let value = row.median(self.metric)?;
                (value, value >= bound)
            }
            Bound::AtMost(bound) => {
                let value = row.median(self.metric)?;
                (value, value <= bound)
            }
            Bound::RatioAtLeast(to, bound) => {
                let value = ratio(to)?;
                (value, value >= bound)
            }
            Bound::RatioAtMost(to, bound) => {
                let value = ratio(to)?;
                (value, value <= bound)
            }
        })
    }

    fn bound_text(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!("at least {}", short(bound)),
            Bound::AtMost(bound) => format!("at most {}", short(bound)),
            Bound::RatioAtLeast(to, bound) => format!("at least {} x {to}", short(bound)),
            Bound::RatioAtMost(to, bound) => format!("at most {} x {to}", short(bound)),
        }
    }
}

/// What somebody wrote into an earlier page between the markers.
pub(crate) fn notes_of(page: &str) -> String {
    let notes = page
        .split_once(NOTES_BEGIN)
        .and_then(|(_, rest)| rest.split_once(NOTES_END));
    notes.map_or_else(|| "\n".to_owned(), |(notes, _)| notes.to_owned())
}

/// The whole page.
pub fn render(results: &Results, notes: &str) -> String {
    let mut page = String::from(PREAMBLE);
    let measured: Vec<(&groups::GroupSpec, &Group)> = groups::ALL
        .iter()
        .filter_map(|spec| Some((spec, results.groups.get(spec.name)?)))
        .collect();
    if let Some((_, first)) = measured.first() {
        let quick = measured.iter().any(|(_, group)| group.facts.quick);
        if quick {
            page.push_str("\n**Measured with --quick: too little work for figures that one may quote.**\n");
        }
        write_machine(&mut page, &first.facts);
        write_circumstances(&mut page, &measured);
    }
    write_targets(&mut page, &measured);
    let _ = write!(page, "\n## Notes\n{NOTES_BEGIN}{notes}{NOTES_END}\n");
    for (spec, group) in &measured {
        let _ = write!(page, "\n## {}\n\n{}\n", spec.title, spec.about);
        for section in spec.sections {
            write_section(&mut page, section, group);
        }
        write_failures(&mut page, group);
        write_commands(&mut page, group);
    }
    page
}

const PREAMBLE: &str = "\
# Benchmarks

<!-- Written by benchmarks/run.sh from benchmarks.json. Only what stands between the notes markers is written by hand. -->

One command measures everything here again: `benchmarks/run.sh`. It builds release binaries, fetches Apache Kafka,
and runs broker, store and load generator on one machine, one broker under load at a time.

How to read it:

- MB are 10^6 bytes of records (1 KiB values, random, not compressible, unless the group says otherwise); GB 10^9, GiB 2^30.
  All producers use acks=all.
- Each figure is the median of the runs of its row. What is compared was measured in turns; \"x Kafka\" is the median of
  the ratios of runs that followed one another. \"spread\" is the largest less the smallest run, in percent of the median.
- CPU-s/GB is the broker's processor time, user and kernel, per GB of records; \"cores\" is processor time per second
  of broker, load generator and (on a bucket) of the process that stands for the store. They share the machine: where
  the sum comes near its cores, the machine was the limit and not the broker alone.
- RSS is the most resident memory during the row (VmHWM).
- Latency of producers is from the time at which a record was to be sent (by the rate's schedule) to its
  acknowledgement, so that no wait is left out (coordinated omission). Without a rate it runs from the time at which its
  batch was ready; with librdkafka and Java from the call that queued it.
- Every record that Alluvium acknowledges is in the store: on its disk, synced, or in the bucket. Apache Kafka on its
  own acknowledges from memory; \"flush.messages=1\" makes it sync each append.
- Dollars are requests at the prices of S3 Standard in us-east-1 (PUT, LIST, POST 5e-6, GET, HEAD 4e-7); storage is
  not in them. A month has 30 days.
- The bucket is a process on the same machine that takes as long to answer as the heading says.
";

fn write_machine(page: &mut String, facts: &Facts) {
    let machine = &facts.machine;
    let _ = write!(
        page,
        "\n## Machine and versions\n\n| | |\n|---|---|\n\
         | processor | {}, {} cores |\n| memory | {:.1} GiB |\n| kernel | {} |\n\
         | disk | {}; write and fsync of 4 KiB {} ms, of 4 MiB {} ms |\n",
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / (1u64 << 30) as f64,
        machine.kernel,
        machine.disk,
        number(machine.fsync_4_kib_ms, 2),
        number(machine.fsync_4_mib_ms, 1),
    );
    for (name, version) in &facts.versions {
        let _ = writeln!(page, "| {name} | {version} |");
    }
    page.push_str(
        "\nSettings of the broker on a bucket, all at their defaults unless a row says otherwise:\n\n",
    );
    let settings: Vec<String> = facts
        .settings
        .iter()
        .map(|(name, value)| format!("`{name}={value}`"))
        .collect();
    let _ = writeln!(page, "{}", settings.join(", "));
}

fn write_circumstances(page: &mut String, measured: &[(&groups::GroupSpec, &Group)]) {
    page.push_str(
        "\n| group | measured (UTC) | minutes | runs | GB per row | commit | command |\n|---|---|---|---|---|---|---|\n",
    );
    for (spec, group) in measured {
        let facts = &group.facts;
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | `{}` |",
            spec.name,
            facts.date,
            number(facts.minutes, 0),
            facts.runs,
            number(facts.bytes_per_row as f64 / 1e9, 1),
            facts.commit,
            facts.command
        );
    }
}

fn write_targets(page: &mut String, measured: &[(&groups::GroupSpec, &Group)]) {
    let judged: Vec<(&Target, f64, bool)> = measured
        .iter()
        .flat_map(|(spec, group)| {
            spec.targets.iter().filter_map(|target| {
                let (value, reached) = target.judge(group)?;
                Some((target, value, reached))
            })
        })
        .collect();
    if judged.is_empty() {
        return;
    }
    page.push_str("\n## Targets\n\n| target | bound | measured | |\n|---|---|---|---|\n");
    for (target, value, reached) in judged {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} |",
            target.says,
            target.bound_text(),
            short(value),
            if reached { "reached" } else { "**missed**" }
        );
    }
}

fn write_section(page: &mut String, section: &Section, group: &Group) {
    let rows: Vec<&Row> = group
        .rows
        .iter()
        .filter(|row| row.section == section.id)
        .collect();
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "\n### {}\n\n{}\n\n", section.title, section.about);
    let clients: BTreeSet<&str> = rows.iter().map(|row| row.client.as_str()).collect();
    let systems: BTreeSet<&str> = rows.iter().map(|row| row.system.as_str()).collect();
    let mut head = vec!["work"];
    if clients.len() > 1 {
        head.push("client");
    }
    if systems.len() > 1 {
        head.push("broker");
    }
    head.extend(section.columns.iter().map(|column| match column {
        Column::Value(title, ..) | Column::Several(title, ..) | Column::Ratio(title, ..) => *title,
        Column::Spread(_) => "spread",
    }));
    let _ = writeln!(page, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for row in in_order(&rows) {
        let mut cells = vec![row.work.clone()];
        if clients.len() > 1 {
            cells.push(row.client.clone());
        }
        if systems.len() > 1 {
            cells.push(row.system.clone());
        }
        cells.extend(section.columns.iter().map(|column| cell(*column, row, group)));
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

/// Works in the order of their first row; within a work by client and system, ours first.
fn in_order<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    let mut works: Vec<&str> = Vec::new();
    let mut clients: Vec<&str> = Vec::new();
    for row in rows {
        if !works.contains(&row.work.as_str()) {
            works.push(&row.work);
        }
        if !clients.contains(&row.client.as_str()) {
            clients.push(&row.client);
        }
    }
    let place = |names: &[&str], name: &str| names.iter().position(|known| *known == name);
    let mut rows = rows.to_vec();
    rows.sort_by_key(|row| {
        (
            place(&works, &row.work),
            place(&clients, &row.client),
            row.system != OURS,
            row.system.clone(),
        )
    });
    rows
}

fn cell(column: Column, row: &Row, group: &Group) -> String {
    let median = |metric: &str, digits: usize| {
        row.median(metric)
            .map_or_else(|| "-".to_owned(), |value| number(value, digits))
    };
    match column {
        Column::Value(_, metric, digits) => median(metric, digits),
        Column::Several(_, metrics, digits) => {
            let all: Vec<String> = metrics.iter().map(|metric| median(metric, digits)).collect();
            if all.iter().all(|one| one == "-") {
                return "-".to_owned();
            }
            all.join(" / ")
        }
        Column::Ratio(_, metric, to) => {
            let other = group.row(&row.section, &row.work, &row.client, to);
            let ratio = other
                .filter(|_| row.system != to)
                .and_then(|other| row.ratio(other, metric));
            ratio.map_or_else(String::new, |ratio| number(ratio, 2))
        }
        Column::Spread(metric) => row
            .spread(metric)
            .map_or_else(|| "-".to_owned(), |spread| format!("{:.0} %", spread * 100.0)),
    }
}

fn write_failures(page: &mut String, group: &Group) {
    let failed: Vec<&Row> = group.rows.iter().filter(|row| row.error.is_some()).collect();
    if failed.is_empty() {
        return;
    }
    page.push_str("\nRows with a run that failed:\n\n");
    for row in failed {
        let error = row.error.as_deref().unwrap_or_default();
        let line = error.lines().next().unwrap_or_default();
        let _ = writeln!(page, "- {}, {}, {}: {line}", row.work, row.client, row.system);
    }
}

fn write_commands(page: &mut String, group: &Group) {
    let commands: BTreeSet<(&str, &str)> = group
        .rows
        .iter()
        .filter(|row| !row.command.is_empty())
        .map(|row| (row.work.as_str(), row.command.as_str()))
        .collect();
    if commands.is_empty() {
        return;
    }
    page.push_str("\n<details><summary>Commands</summary>\n\n");
    for (work, command) in commands {
        let _ = writeln!(page, "- {work}: `{command}`");
    }
    page.push_str("\n</details>\n");
}

/// A number with so many digits behind the point, thousands parted.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut parted = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            parted.push(',');
        }
        parted.push(digit);
    }
    let nonzero = text.chars().any(|c| c.is_ascii_digit() && c != '0');
    let sign = if value < 0.0 && nonzero { "-" } else { "" };
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{parted}{point}{rest}")
}

/// Three significant digits or so.
fn short(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => number(value, 0),
        size if size >= 10.0 => number(value, 1),
        size if size >= 0.1 || size == 0.0 => number(value, 2),
        _ => number(value, 5),
    };
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmarks::results::Metrics;
    use std::collections::BTreeMap;

    fn row(work: &str, system: &str, values: &[f64]) -> Row {
        Row {
            section: "embedded.produce".to_owned(),
            work: work.to_owned(),
            client: "alluvium bench".to_owned(),
            system: system.to_owned(),
            command: format!("alluvium bench produce {work}"),
            runs: values
                .iter()
                .map(|value| Metrics::from([("mb_per_second".to_owned(), *value)]))
                .collect(),
            error: None,
        }
    }

    fn results(rows: Vec<Row>) -> Results {
        let group = Group {
            rows,
            ..Group::default()
        };
        Results {
            groups: BTreeMap::from([("embedded".to_owned(), group)]),
        }
    }

    #[test]
    fn a_table_puts_ours_beside_theirs() {
        let rows = vec![
            row("w1", "Kafka", &[200.0, 100.0]),
            row("w1", "Alluvium", &[300.0, 300.0]),
            row("w2", "Alluvium", &[1500.0]),
        ];
        let page = render(&results(rows), "\n");
        let lines: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| w"))
            .filter(|line| !line.starts_with("| work"))
            .collect();
        assert_eq!(lines.len(), 3, "{page}");
        assert!(
            lines[0].starts_with("| w1 | Alluvium | 300 | 2.25 |"),
            "{}",
            lines[0]
        );
        assert!(lines[1].starts_with("| w1 | Kafka | 150 |  |"), "{}", lines[1]);
        assert!(
            lines[2].starts_with("| w2 | Alluvium | 1,500 |  |"),
            "{}",
            lines[2]
        );
        assert!(page.contains("- w1: `alluvium bench produce w1`"));
    }

    #[test]
    fn notes_survive_a_new_page() {
        let first = render(&results(vec![row("w", "Alluvium", &[1.0])]), "\nBy hand.\n");
        assert_eq!(notes_of(&first), "\nBy hand.\n");
        let second = render(&Results::default(), &notes_of(&first));
        assert_eq!(notes_of(&second), "\nBy hand.\n");
        assert_eq!(notes_of("no markers"), "\n");
    }

    #[test]
    fn failures_are_told() {
        let mut failed = row("w", "Kafka", &[]);
        failed.error = Some("it ended\nwith a log".to_owned());
        let page = render(&results(vec![failed]), "\n");
        assert!(page.contains("- w, alluvium bench, Kafka: it ended\n"), "{page}");
    }

    #[test]
    fn targets_are_judged_by_median_and_ratio() {
        let group = Group {
            rows: vec![
                row("w", "Alluvium", &[10.0, 20.0, 30.0]),
                row("w", "Kafka", &[10.0, 10.0, 10.0]),
            ],
            ..Group::default()
        };
        let target = |bound: Bound| Target {
            says: "rate",
            section: "embedded.produce",
            work: "w",
            client: "alluvium bench",
            metric: "mb_per_second",
            bound,
        };
        assert_eq!(target(Bound::AtLeast(20.0)).judge(&group), Some((20.0, true)));
        assert_eq!(target(Bound::AtMost(19.0)).judge(&group), Some((20.0, false)));
        assert_eq!(
            target(Bound::RatioAtLeast("Kafka", 2.5)).judge(&group),
            Some((2.0, false))
        );
        assert_eq!(
            target(Bound::RatioAtMost("Kafka", 2.0)).judge(&group),
            Some((2.0, true))
        );
        assert_eq!(target(Bound::RatioAtMost("other", 2.0)).judge(&group), None);
    }

    #[test]
    fn every_target_names_a_table_that_exists() {
        for group in groups::ALL {
            let ids: Vec<&str> = group.sections.iter().map(|section| section.id).collect();
            for target in group.targets {
                assert!(ids.contains(&target.section), "{}", target.says);
            }
        }
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(number(1234567.0, 0), "1,234,567");
        assert_eq!(number(999.95, 1), "1,000.0");
        assert_eq!(number(-1234.5, 1), "-1,234.5");
        assert_eq!(number(-0.001, 1), "0.0");
        assert_eq!(number(0.046, 2), "0.05");
        assert_eq!(short(0.5), "0.5");
        assert_eq!(short(1000.0), "1,000");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(3.0), "3");
        assert_eq!(short(0.0), "0");
        assert_eq!(short(0.002), "0.002");
        assert_eq!(short(0.00202), "0.00202");
    }
}
