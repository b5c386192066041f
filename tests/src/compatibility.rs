//! The table of clients and what they can do, made from the reports of `tests/clients`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kafka_wire::API_DESCRIPTORS;
use serde::Deserialize;

/// What one client said about one scenario: a line of its program's output.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// The client's name.
    pub client: String,
    /// Its version.
    pub version: String,
    /// The scenario's name, such as `produce.zstd`.
    pub scenario: String,
    /// The Kafka APIs that the scenario makes the client use.
    pub apis: Vec<String>,
    /// Whether everything was as it must be.
    pub ok: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// A measurement or another remark.
    pub note: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// Reads a client's output: one JSON object a line.
pub fn parse_reports(text: &str) -> Result<Vec<Report>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}")))
        .collect()
}

/// Reads the reports of all clients in a directory.
pub fn read_reports(directory: &Path) -> Result<Vec<Report>, String> {
    let at = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut reports = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(at)? {
        let path = entry.map_err(at)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read_to_string(&path).map_err(at)?;
            let parsed = parse_reports(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            reports.extend(parsed);
        }
    }
    Ok(reports)
}

const PREAMBLE: &str = "\
# Compatibility

Unmodified clients against the real binary on the embedded store. This page is written from the results of the
tests, by `cargo run -p alluvium-tests --bin compatibility` after `cargo test -p alluvium-tests --test clients`; what
each scenario does is in `tests/clients`. A cell is empty where a client has no way to do it. Every program passes
against Apache Kafka 4.3.1 as well.
";

/// The versions of each API that a broker names, by the API's key: the first and the last.
pub type Served = BTreeMap<i16, (i16, i16)>;

/// The page. It holds nothing that changes from run to run.
pub fn render(reports: &[Report], served: &Served) -> String {
    let mut page = PREAMBLE.to_owned();
    let versions: BTreeMap<&str, &str> = reports.iter().map(|r| (&*r.client, &*r.version)).collect();
    let scenarios: BTreeSet<&str> = reports.iter().map(|r| &*r.scenario).collect();
    page.push_str("\n## Scenarios\n\n| scenario |");
    for (client, version) in &versions {
        let _ = write!(page, " {client} {version} |");
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(versions.len()));
    for scenario in scenarios {
        let _ = write!(page, "\n| {scenario} |");
        for client in versions.keys() {
            let found = reports
                .iter()
                .find(|r| r.client == *client && r.scenario == scenario);
            let _ = write!(
                page,
                " {} |",
                found.map_or("", |r| if r.ok { "yes" } else { "**no**" })
            );
        }
    }
    page.push_str(
        "\n\n## Kafka APIs\n\nWhat the broker names in its answer to ApiVersions, and who used it in a scenario that \
         succeeded. What is not in this table is not served: clients say that the broker does not support it. Produce is \
         served from version 3 on; it is named from 0 because older librdkafka looks there for what it may compress \
         with.\n\n\
         | key | API | versions | tested by |\n|---|---|---|---|\n",
    );
    for (key, (first, last)) in served {
        let name = name_of(*key);
        let using = reports.iter().filter(|r| r.ok && r.apis.contains(&name));
        let clients: BTreeSet<&str> = using.map(|r| &*r.client).collect();
        let clients: Vec<&str> = clients.into_iter().collect();
        let clients = match clients.is_empty() {
            true => "our own tests".to_owned(),
            false => clients.join(", "),
        };
        let _ = writeln!(page, "| {key} | {name} | {first} to {last} | {clients} |");
    }
    page
}

/// Kafka's name of an API.
fn name_of(key: i16) -> String {
    let found = API_DESCRIPTORS.iter().find(|api| api.api_key.value() == key);
    found.map_or_else(
        || format!("API {key}"),
        |api| api.request.name.trim_end_matches("Request").to_owned(),
    )
}

/// Every success of the page that the reports do not repeat, in words.
pub fn regressions(page: &str, reports: &[Report]) -> Vec<String> {
    let mut clients: Vec<String> = Vec::new();
    let mut lost = Vec::new();
    for line in page.lines() {
        let cells = |line: &str| -> Vec<String> {
            let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
            inner.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        if line.starts_with("| scenario |") {
            let headings = cells(line).into_iter().skip(1);
            clients = headings
                .map(|h| h.split(' ').next().unwrap_or_default().to_owned())
                .collect();
        } else if !line.starts_with('|') {
            clients.clear();
        } else if !clients.is_empty() {
            let row = cells(line);
            for (client, cell) in clients.iter().zip(row.iter().skip(1)) {
                let now = reports
                    .iter()
                    .find(|r| r.client == *client && r.scenario == row[0]);
                match now {
                    _ if cell != "yes" => {}
                    Some(report) if report.ok => {}
                    Some(report) => lost.push(format!(
                        "{client} {}: {}",
                        row[0],
                        report.error.as_deref().unwrap_or("failed")
                    )),
                    None => lost.push(format!("{client} {}: not run", row[0])),
                }
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(client: &str, scenario: &str, ok: bool) -> Report {
        Report {
            client: client.to_owned(),
            version: "1.0 (inner 2)".to_owned(),
            scenario: scenario.to_owned(),
            apis: vec!["Produce".to_owned(), format!("Api-{scenario}")],
            ok,
            error: (!ok).then(|| "broken".to_owned()),
            note: None,
            ms: 5,
        }
    }

    #[test]
    fn page_holds_each_outcome() {
        let reports = [
            report("a", "s1", true),
            report("a", "s2", false),
            report("b", "s2", true),
        ];
        let page = render(&reports, &Served::from([(0, (3, 13)), (22, (0, 5))]));
        assert!(
            page.contains("| scenario | a 1.0 (inner 2) | b 1.0 (inner 2) |"),
            "{page}"
        );
        assert!(
            page.contains("\n| s1 | yes |  |\n| s2 | **no** | yes |\n"),
            "{page}"
        );
        assert!(
            page.ends_with(
                "\n| 0 | Produce | 3 to 13 | a, b |\n| 22 | InitProducerId | 0 to 5 | our own tests |\n"
            ),
            "{page}"
        );
    }

    #[test]
    fn regressions_are_found_and_nothing_else() {
        let before = [
            report("a", "s1", true),
            report("a", "s2", false),
            report("b", "s2", true),
        ];
        let page = render(&before, &Served::new());
        assert_eq!(regressions(&page, &before), Vec::<String>::new());
        let better = [
            report("a", "s1", true),
            report("a", "s2", true),
            report("b", "s2", true),
            report("c", "s1", false),
        ];
        assert_eq!(regressions(&page, &better), Vec::<String>::new());
        let worse = [report("a", "s1", true), report("b", "s2", false)];
        assert_eq!(regressions(&page, &worse), ["b s2: broken"]);
        let fewer = [report("a", "s1", true)];
        assert_eq!(regressions(&page, &fewer), ["b s2: not run"]);
    }

    #[test]
    fn reports_are_lines_of_json() {
        let text = r#"{"client": "x", "version": "1", "scenario": "s", "apis": ["Fetch"], "ok": true, "error": null, "note": "n", "ms": 3}"#;
        let reports = parse_reports(&format!("{text}\n\n{text}\n")).expect("two reports");
        assert_eq!(reports.len(), 2);
        assert!(parse_reports("Traceback").is_err());
    }
}
