//! Pages that name what is in the program must not outlive it: messages, anchors, links, and figures that follow from
//! others.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alluvium_tests::installed::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every page of the documentation, by its path in the repository.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "helm/alluvium/README.md",
        "minio-dev/README.md",
        "terraform/README.md",
    ]
    .map(str::to_owned)
    .to_vec();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

/// All of the program's source, with the text literals that go on in the next line in one piece.
fn source() -> String {
    let mut text = String::new();
    add_sources(&root().join("crates"), &mut text);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\\\n") {
        out.push_str(before);
        rest = after.trim_start();
    }
    out.push_str(rest);
    out
}

fn add_sources(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Rows of tables below a heading cell, as cells.
fn rows<'a>(page: &'a str, heading: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    let mut inside = false;
    page.lines().filter_map(move |line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if !line.starts_with('|') {
            inside = false;
        } else if cells[0] == heading {
            inside = true;
        } else if inside && !line.starts_with("|---") {
            return Some(cells);
        }
        None
    })
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The fixed parts of a message: what differs is written as "...".
fn fragments(message: &str) -> impl Iterator<Item = &str> {
    let is_text = |part: &&str| part.chars().any(char::is_alphanumeric);
    message.split("...").map(str::trim).filter(is_text)
}

#[test]
fn every_message_that_a_page_explains_is_one_of_the_program() {
    let source = source();
    let mut missing = Vec::new();
    for (page, at_least) in [
        ("docs/troubleshooting.md", 60),
        ("docs/cluster.md", 15),
        ("docs/kubernetes.md", 11),
    ] {
        let text = read(page);
        let messages: Vec<&str> = rows(&text, "message")
            .flat_map(|cells| quoted(cells[0]).collect::<Vec<_>>())
            .collect();
        assert!(
            messages.len() >= at_least,
            "{page} has {} messages",
            messages.len()
        );
        for message in messages {
            let unknown = fragments(message).filter(|part| !source.contains(part));
            missing.extend(unknown.map(|part| format!("{page}: `{message}`: {part:?}")));
        }
    }
    assert!(missing.is_empty(), "not in the source:\n{}", missing.join("\n"));
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.chars().filter_map(kept).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#').trim()));
        }
    }
    found
}

/// Targets of the links of a page: `](target)`.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for page in pages() {
        let text = read(&page);
        let here = PathBuf::from(&page);
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => here.clone(),
                path => here.parent().unwrap().join(path),
            };
            let exists = root().join(&target).exists();
            let is_page = target.extension().is_some_and(|extension| extension == "md");
            let leads = exists
                && (wanted.is_empty()
                    || !is_page
                    || anchors(&read(target.to_str().unwrap())).contains(wanted));
            followed += 1;
            if !leads {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(followed > 100, "only {followed} links");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// S3's price of a write, and the seconds of a month of 30 days.
const DOLLARS_PER_WRITE: f64 = 5e-6;
const MONTH_SECONDS: f64 = 30.0 * 86_400.0;
/// A segment of this size costs no token (`crates/log/src/stream/flush.rs`), and one of this size goes at once.
const FREE_MIB: f64 = 1.0;
const FULL_MIB: f64 = 4.0;
/// S3's time for a PUT, at the median and in one of a hundred cases.
const PUT_MS: (f64, f64) = (100.0, 195.0);

fn dollars(writes_per_second: f64) -> String {
    format!("${:.0}", writes_per_second * DOLLARS_PER_WRITE * MONTH_SECONDS)
}

/// `1195.0` as the page has it.
fn grouped(number: f64) -> String {
    let rounded = format!("{number:.0}");
    match rounded.len() {
        4.. => format!(
            "{},{}",
            &rounded[..rounded.len() - 3],
            &rounded[rounded.len() - 3..]
        ),
        _ => rounded,
    }
}

#[test]
fn the_cost_dial_follows_from_its_formula() {
    let page = read("docs/operations.md");
    // The defaults that the page names are those of the program.
    let configuration = read("docs/configuration.md");
    for setting in [
        "| `flush.interval.ms` | 30 on S3, else 0 |",
        "| `flush.bytes` | 4194304 |",
        "| `request.budget.per.second` | 4.0 on S3, else 0.0 |",
        "| `request.budget.burst` | 900.0 |",
    ] {
        assert!(configuration.contains(setting), "{setting}");
    }
    assert!(read("crates/log/src/stream/flush.rs").contains("const FREE_BYTES: f64 = 1024.0 * 1024.0;"));

    let mut budgets = 0;
    for cells in rows(&page, "`request.budget.per.second`") {
        let budget: f64 = cells[0].split([' ', ':']).next().unwrap().parse().unwrap();
        let writes = if budget > 0.0 { budget } else { 1000.0 / 30.0 };
        let most = 1000.0 / writes;
        // A half rounds up here.
        let mean = (most / 2.0 + 1e-9).round();
        let expected = [
            dollars(writes),
            format!("{mean} / {}", grouped((most + 1e-9).round())),
            format!(
                "{} / {}",
                grouped((most / 2.0 + PUT_MS.0 + 1e-9).round()),
                grouped((most + PUT_MS.1 + 1e-9).round())
            ),
        ];
        assert_eq!(cells[1..], expected, "{cells:?}");
        budgets += 1;
    }
    assert_eq!(budgets, 6);

    let mut rates = 0;
    for cells in rows(&page, "MiB/s of a broker") {
        let rate: f64 = cells[0].parse().unwrap();
        for (cell, interval_ms) in cells[1..].iter().zip([30.0, 80.0, 250.0]) {
            let small = f64::min(1000.0 / interval_ms, 4.0 + rate / FREE_MIB);
            let writes = (rate / FULL_MIB).max(small);
            assert_eq!(*cell, dollars(writes), "{rate} MiB/s at {interval_ms} ms");
            rates += 1;
        }
    }
    assert_eq!(rates, 18);
}
