//! `alluvium demo` on the real binary: there is something to see, Ctrl-C ends it, and the next start goes on.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use alluvium_tests::broker::{self, free_address, http_get};
use alluvium_tests::installed::{Missing, analytics_missing, kcat_missing, target};
use alluvium_tests::kafka::{self, Member, Router};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// Partitions of the topic `orders`.
const PARTITIONS: i32 = 3;

/// A demo that runs. Dropping it kills it.
struct Demo {
    child: Child,
    output: PathBuf,
}

impl Demo {
    fn start(directory: &Path, output: &Path, arguments: &[&str]) -> Demo {
        let file = File::create(output).unwrap();
        let mut command = Command::new(broker::binary());
        command
            .args(["demo", "--directory"])
            .arg(directory)
            .args(arguments);
        broker::isolate(&mut command);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Demo {
            child: command.spawn().unwrap(),
            output: output.to_owned(),
        }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until its output has this; panics if it ends before.
    fn says(&mut self, what: &str) -> String {
        let began = Instant::now();
        loop {
            let text = self.text();
            if text.contains(what) {
                return text;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the demo ended with {ended:?}:\n{text}");
            assert!(
                began.elapsed() < PATIENCE,
                "the demo does not say {what:?}:\n{text}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What stands behind a label of the welcome.
    fn labelled(&mut self, label: &str) -> String {
        let text = self.says("Ctrl-C");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label}:\n{text}"))
            .trim()
            .to_owned()
    }

    fn address(&mut self) -> SocketAddr {
        self.labelled("broker ").parse().unwrap()
    }

    fn interrupt(&mut self) -> ExitStatus {
        broker::signal(self.child.id(), "INT");
        self.ends()
    }

    fn ends(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "the demo does not end:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- output of the demo ---\n{}", self.text());
        }
    }
}

/// How many orders there are. Each must be where its number says that it is, so that none is missing and none is there
/// twice.
fn orders(at: SocketAddr) -> i64 {
    let mut count = 0;
    for partition in 0..PARTITIONS {
        let records = kafka::read_all(at, "orders", partition, PATIENCE).unwrap();
        for (place, record) in records.iter().enumerate() {
            assert_eq!(record.offset, place as i64);
            let order: Value = serde_json::from_slice(&record.value).unwrap();
            let number = record.offset * i64::from(PARTITIONS) + i64::from(partition);
            assert_eq!(order["order"], number, "{order}");
            assert!(order["price"].as_f64().unwrap() > 0.0, "{order}");
        }
        count += records.len() as i64;
    }
    count
}

/// Waits until there are more orders than that.
fn more_orders_than(count: i64, at: SocketAddr) -> i64 {
    let began = Instant::now();
    loop {
        let now = orders(at);
        if now > count {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "no more than {now} orders");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn committed(at: SocketAddr) -> BTreeMap<i32, i64> {
    let began = Instant::now();
    loop {
        let router = Router::fixed(at, PATIENCE);
        let mut member = Member::new(router, "billing", "orders", PARTITIONS);
        let offsets = member.committed(&[0, 1, 2]);
        match offsets {
            Ok(offsets) if offsets.values().all(|offset| *offset > 0) => return offsets,
            offsets => assert!(began.elapsed() < PATIENCE, "no commits: {offsets:?}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn there_is_something_to_see_and_the_next_start_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("shop");
    let listeners = free_address().to_string();
    let start = |number: u32, more: &[&str]| {
        let arguments = [&["--listeners", &listeners, "--rate", "100"], more].concat();
        Demo::start(
            &directory,
            &root.path().join(format!("output{number}")),
            &arguments,
        )
    };

    let mut first = start(1, &[]);
    let at = first.address();
    assert_eq!(at.to_string(), listeners);
    assert!(!first.text().contains("going on"), "{}", first.text());
    let seen = more_orders_than(100, at);
    // Before anybody else has asked for the group.
    first.says("billing is ");
    let committed_before = committed(at);
    assert!(!kafka::read_all(at, "page_views", 2, PATIENCE).unwrap().is_empty());
    let customers = kafka::read_all(at, "customers", 0, PATIENCE).unwrap();
    let customer: Value = serde_json::from_slice(&customers[0].value).unwrap();
    assert!(customer["city"].is_string(), "{customer}");
    let metrics = first.labelled("metrics ");
    let metrics = metrics.trim_start_matches("http://").trim_end_matches("/metrics");
    let (status, text) = http_get(metrics.parse().unwrap(), "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("alluvium_group_lag{group=\"billing\",topic=\"orders\"}"),
        "{text}"
    );

    // Only one at a time has the directory.
    let mut second = Demo::start(
        &directory,
        &root.path().join("refused"),
        &["--listeners", "127.0.0.1:0"],
    );
    assert_eq!(second.ends().code(), Some(1));
    let refusal = second.text();
    assert!(
        refusal.contains("is in use by") && !refusal.contains("--store"),
        "{refusal}"
    );

    let status = first.interrupt();
    assert!(status.success(), "{status}: {}", first.text());
    assert!(first.text().contains("Stopped."), "{}", first.text());
    drop(first);

    let mut killed = start(2, &[]);
    let at = killed.address();
    assert!(killed.text().contains("going on"), "{}", killed.text());
    let seen = more_orders_than(seen, at);
    killed.child.kill().unwrap();
    drop(killed);

    let mut last = start(3, &["--duration", "30"]);
    let at = last.address();
    more_orders_than(seen, at);
    let now = committed(at);
    assert!(
        now.iter()
            .all(|(partition, offset)| *offset >= committed_before[partition])
    );
    let status = last.ends();
    assert!(status.success(), "{status}: {}", last.text());
    assert!(last.text().contains("Stopped."), "{}", last.text());
}

/// What the welcome says to type in another terminal, run as it is written.
#[test]
fn what_it_says_to_type_next_works() {
    if !Missing::from_environment().goes_on(kcat_missing().or_else(analytics_missing)) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let programs = root.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(broker::binary(), programs.join("alluvium")).unwrap();
    let usual = std::env::var_os("PATH").unwrap();
    let ours = [programs, target().join("clients/analytics/bin")];
    let path = std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&usual))).unwrap();

    let listeners = free_address().to_string();
    let mut demo = Demo::start(
        &root.path().join("shop"),
        &root.path().join("output"),
        &["--listeners", &listeners, "--rate", "100"],
    );
    let at = demo.address();
    let welcome = demo.text();
    let typed = |start: &str| {
        let mut lines = welcome.lines().map(str::trim);
        let line = lines.find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start}:\n{welcome}"));
        let mut command = Command::new("timeout");
        broker::isolate(&mut command);
        let seconds = PATIENCE.as_secs().to_string();
        command
            .args([&seconds, "bash", "-c", line])
            .env("PATH", &path)
            .stdin(Stdio::null());
        command
    };
    let printed = |start: &str| {
        let output = typed(start).output().unwrap();
        assert!(output.status.success(), "{start}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    // A group goes on for ever, and begins where the topic ends.
    let file = root.path().join("page_views");
    let read = || std::fs::read_to_string(&file).unwrap();
    let mut group = typed(&format!("kcat -b {at} -G"));
    let mut group = group
        .stdout(File::create(&file).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    broker::until("the group reads", PATIENCE, || read().lines().count() > 10);
    broker::signal(group.id(), "TERM");
    group.wait().unwrap();
    let view: Value = serde_json::from_str(read().lines().next().unwrap()).unwrap();
    assert!(view["path"].is_string(), "{view}");

    let last = printed(&format!("kcat -b {at} -t orders"));
    assert_eq!(last.matches("\"order\":").count(), 5, "{last}");

    let seen = orders(at);
    let archived = printed("alluvium archive flush");
    assert!(archived.contains("are Parquet"), "{archived}");
    // Of each item how many.
    let table = printed("duckdb ");
    let counts = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('│').map(str::trim).collect();
        cells.get(2)?.parse::<i64>().ok()
    });
    assert!(seen > 0 && counts.sum::<i64>() >= seen, "{seen} orders:\n{table}");
    assert!(demo.interrupt().success());
}

#[test]
fn a_port_that_is_taken_is_no_obstacle() {
    // If it cannot be bound here, somebody else has it, which is as good.
    let _held = TcpListener::bind("127.0.0.1:9092");
    let root = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(
        &root.path().join("data"),
        &root.path().join("output"),
        &["--duration", "10"],
    );
    let at = demo.address();
    assert_ne!(at.port(), 9092);
    assert!(
        demo.text().contains("another program has port 9092"),
        "{}",
        demo.text()
    );
    more_orders_than(0, at);
    assert!(demo.ends().success(), "{}", demo.text());
}

#[test]
fn what_is_no_directory_is_refused() {
    let output = broker::run(&["demo", "--directory", "s3://bucket/prefix"], &[], PATIENCE);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("is no directory") && !errors.contains("panicked"),
        "{errors}"
    );
}
