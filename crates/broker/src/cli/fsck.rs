//! `alluvium fsck URL`: is everything in a store whole, and what is there besides?

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use alluvium_log::fsck::{self, Class, Counted, FsckOptions, Kind, Progress, Report};
use tokio::sync::watch;

use super::cluster::{confirmed, open_to_change, print};
use super::on_runtime;
use super::store::{absolute, look_into};
use crate::history;

/// How often the line of progress changes.
const REFRESH: Duration = Duration::from_millis(200);

/// What to look through.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FsckArgs {
    /// The store, as for `serve --store`; brokers may run, and a directory may be in use by one
    url: String,
    /// Compare only indexes with their checksums, and not all the records that they speak of
    #[arg(long)]
    fast: bool,
    /// Delete what is garbage beyond doubt and belongs to no running broker. A directory must not be in use
    #[arg(long)]
    repair: bool,
    /// Do not ask before --repair deletes
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit code 0: all is whole, 1: something is wrong, 2: it could not be found out.
pub(super) fn main(args: FsckArgs) -> ExitCode {
    let mut whole = false;
    let done = on_runtime(async {
        whole = run(args).await?;
        Ok(())
    });
    match done {
        Ok(()) if whole => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(lines) => {
            lines.lines().for_each(|line| eprintln!("alluvium: {line}"));
            ExitCode::from(2)
        }
    }
}

async fn run(args: FsckArgs) -> Result<bool, String> {
    let store = match args.repair {
        true => open_to_change(&args.url).await?,
        false => look_into(&absolute(&args.url)?).await?,
    };
    let options = FsckOptions {
        fast: args.fast,
        history: Some(history::format()?),
    };
    let (progress, seen) = watch::channel(Progress::default());
    let shown = std::io::stderr().is_terminal().then(|| tokio::spawn(show(seen)));
    let report = fsck::check(&store, &options, &progress).await;
    if let Some(shown) = shown {
        shown.abort();
        eprint!("\r\x1b[K");
    }
    let report = report.map_err(|e| e.to_string())?;
    if !args.json {
        print(&page(&report))?;
    }
    let mut repaired = None;
    if args.repair {
        let garbage = fsck::deletable(&report);
        if !report.whole {
            eprintln!(
                "alluvium: nothing is deleted as long as something is wrong: what is damaged may hide what is needed"
            );
        } else if garbage.objects > 0 {
            let wait = match fsck::grace(&store, &report).as_secs() {
                0 => String::new(),
                seconds => format!(" (after {seconds} s, for readers that are about to read some of it)"),
            };
            let counted = Counted {
                objects: garbage.objects,
                bytes: garbage.bytes,
            };
            confirmed(&format!("Delete {}{wait}?", amount(counted)), args.yes).await?;
            repaired = Some(fsck::repair(&store, &report).await.map_err(|e| e.to_string())?);
        } else {
            repaired = Some(garbage);
        }
    }
    match (args.json, repaired) {
        (true, _) => {
            let mut json = serde_json::to_value(&report).map_err(|e| e.to_string())?;
            json["repaired"] = serde_json::to_value(repaired).map_err(|e| e.to_string())?;
            print(&serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)?;
        }
        (false, Some(repaired)) => {
            let counted = Counted {
                objects: repaired.objects,
                bytes: repaired.bytes,
            };
            print(&format!("deleted {}", amount(counted)))?;
            let garbage = report.counts.of(Class::Garbage);
            if garbage.objects > repaired.objects {
                print(&format!(
                    "{} objects of garbage are left to the brokers that wrote them",
                    garbage.objects - repaired.objects
                ))?;
            }
        }
        (false, None) => {}
    }
    Ok(report.whole)
}

/// One line on the terminal that changes.
async fn show(seen: watch::Receiver<Progress>) {
    loop {
        tokio::time::sleep(REFRESH).await;
        let p = *seen.borrow();
        let line = match p.objects {
            0 => format!("listed {} objects", p.listed),
            all => format!("looked into {} of {all} objects, {}", p.checked, bytes(p.bytes)),
        };
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }
}

/// The page that people read.
fn page(report: &Report) -> String {
    let mut out = vec![];
    let cluster = match report.cluster_id {
        Some(id) => format!("{id} in {}", report.store),
        None => format!("unknown, in {}", report.store),
    };
    for (name, value) in [
        ("cluster", cluster),
        (
            "manifest",
            format!(
                "version {}, {} brokers live",
                report.manifest_version, report.live_brokers
            ),
        ),
        (
            "logs",
            format!(
                "{} partitions of {} topics rebuilt",
                report.partitions, report.topics
            ),
        ),
        (
            "looked at",
            format!(
                "{} objects that logs refer to, {} read",
                report.checked_objects,
                bytes(report.checked_bytes)
            ),
        ),
    ] {
        out.push(format!("{name:<11}{value}"));
    }
    out.push(String::new());
    out.extend(table(report));
    if !report.notes.is_empty() {
        out.push(String::new());
        out.extend(report.notes.iter().map(|note| format!("- {note}")));
    }
    out.push(String::new());
    match report.findings.len() {
        0 => out.push("Everything that logs refer to is there and whole.".to_owned()),
        1 => out.push("1 thing is wrong:".to_owned()),
        n => out.push(format!("{n} things are wrong:")),
    }
    for finding in &report.findings {
        out.push(format!("- {finding}"));
        out.push(format!("  What to do: {}.", finding.advice()));
    }
    out.join("\n")
}

fn table(report: &Report) -> Vec<String> {
    let classes = [Class::Live, Class::Garbage, Class::Unknown];
    let row = |name: &str, cells: [Counted; 3]| {
        let total = cells.iter().fold(Counted::default(), |sum, one| Counted {
            objects: sum.objects + one.objects,
            bytes: sum.bytes + one.bytes,
        });
        let cells = cells.into_iter().chain([total]);
        let cells: String = cells
            .map(|c| format!("{:>9}{:>11}", c.objects, bytes(c.bytes)))
            .collect();
        format!("  {name:<17}{cells}")
    };
    let mut rows = vec![format!(
        "  {:<17}{:>20}{:>20}{:>20}{:>20}",
        "OBJECTS, BYTES", "LIVE", "GARBAGE", "UNKNOWN", "TOTAL"
    )];
    for (kind, of_kind) in &report.counts.by_kind {
        let cells = classes.map(|class| of_kind.get(&class).copied().unwrap_or_default());
        rows.push(row(kind_name(*kind), cells));
    }
    rows.push(row("all", classes.map(|class| report.counts.of(class))));
    rows
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Manifest => "manifest",
        Kind::ManifestCopy => "manifest copies",
        Kind::Head => "heads",
        Kind::Checkpoint => "checkpoints",
        Kind::Segment => "segments",
        Kind::Merged => "merged",
        Kind::Archive => "history",
        Kind::Foreign => "not ours",
    }
}

fn amount(counted: Counted) -> String {
    format!("{} objects with {}", counted.objects, bytes(counted.bytes))
}

/// A number of bytes in three digits or so.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use alluvium_log::store::{Store, StoreKind, StoreOptions};
    use alluvium_log::{Log, LogOptions, SystemClock};
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: FsckArgs,
    }

    async fn ran(words: &[&str]) -> Result<bool, String> {
        let line = Line::try_parse_from(["fsck"].iter().chain(words)).map_err(|e| e.to_string())?;
        run(line.args).await
    }

    async fn open(url: &str) -> Log {
        let store = Store::open(url, StoreOptions::default()).await.unwrap();
        let options = LogOptions::for_store(StoreKind::Embedded);
        let mut registry = prometheus_client::registry::Registry::default();
        let opened = Log::open(store, options, Arc::new(SystemClock), &mut registry).await;
        opened.unwrap()
    }

    #[tokio::test]
    async fn a_directory_is_looked_at_while_a_broker_has_it_and_repaired_when_not() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().display().to_string();
        let none = ran(&[&here]).await.unwrap_err();
        assert!(none.contains("no Alluvium cluster here"), "{none}");
        let log = open(&here).await;
        assert_eq!(ran(&[&here]).await, Ok(true));
        let in_use = ran(&[&here, "--repair", "--yes"]).await.unwrap_err();
        assert!(
            in_use.contains("is in use by") && in_use.contains("stop it first"),
            "{in_use}"
        );
        log.close().await.unwrap();
        drop(log);
        assert_eq!(ran(&[&here, "--fast", "--json"]).await, Ok(true));
        assert_eq!(ran(&[&here, "--repair", "--yes"]).await, Ok(true));
        std::fs::write(root.path().join("cluster/manifest.json"), "{").unwrap();
        assert_eq!(ran(&[&here]).await, Ok(false));
        assert_eq!(
            ran(&[&here, "--repair", "--yes"]).await,
            Ok(false),
            "and nothing is deleted"
        );
        std::fs::remove_file(root.path().join("cluster/manifest.json")).unwrap();
        assert_eq!(ran(&[&here]).await, Ok(false), "its copies are there");
    }

    #[tokio::test]
    async fn what_cannot_be_looked_at_is_no_finding() {
        let memory = ran(&["memory://"]).await.unwrap_err();
        assert!(memory.contains("nothing of it can be seen"), "{memory}");
        let gone = ran(&["/nowhere/at/all", "--repair", "--yes"]).await.unwrap_err();
        assert!(gone.contains("give the directory or URL"), "{gone}");
        assert!(ran(&["/x", "--yes"]).await.is_err(), "only with --repair");
    }

    #[test]
    fn bytes_are_short() {
        let shown = [0, 999, 1000, 1 << 20, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.0 KiB", "1.0 MiB", "5.0 GiB", "16777216.0 TiB"]
        );
    }
}
