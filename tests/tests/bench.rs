//! `alluvium bench` against a real broker: exact counts, the fields of its JSON, and what it says to bad input.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use alluvium_tests::benchmarks::Results;
use alluvium_tests::broker::{Broker, BrokerOptions, binary, run};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn bench(arguments: &[&str]) -> Output {
    run(&[&["bench"], arguments].concat(), &[], PATIENCE)
}

/// The JSON that a run printed; it must be the only line.
fn json(broker: &Broker, arguments: &[&str]) -> Value {
    let address = broker.address().to_string();
    let command = [arguments, &["--json", "--bootstrap", &address]].concat();
    let output = bench(&command);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {stdout}{stderr}{}",
        broker.log_tail()
    );
    assert_eq!(stderr, "", "{command:?}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn number(report: &Value, field: &str) -> f64 {
    report[field]
        .as_f64()
        .unwrap_or_else(|| panic!("no {field} in {report}"))
}

fn count(report: &Value, field: &str) -> u64 {
    report[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {report}"))
}

/// All percentiles are there and rise.
fn check_latency(report: &Value, field: &str) {
    let found = |name| number(&report[field], name);
    let rising = ["p50", "p90", "p95", "p99", "p999", "max"].map(found);
    assert!(rising[0] > 0.0 && rising.is_sorted(), "{field}: {report}");
    assert!(
        found("mean") > 0.0 && found("mean") <= rising[5],
        "{field}: {report}"
    );
}

fn consume_all(broker: &Broker, topic: &str, more: &[&str]) -> Value {
    let arguments = [&["consume", "--topic", topic, "--verify"], more].concat();
    let report = json(broker, &arguments);
    assert_eq!(report["kind"], "consume");
    assert_eq!(count(&report, "errors"), 0);
    report
}

#[test]
fn what_is_produced_is_consumed() {
    let broker = Broker::start(BrokerOptions::embedded());
    let produced = json(
        &broker,
        &[
            "produce",
            "--topic",
            "fast",
            "--partitions",
            "3",
            "--producers",
            "2",
            "--seconds",
            "2",
        ],
    );
    assert_eq!(produced["kind"], "produce");
    let records = count(&produced, "records");
    assert!(records > 1000, "{produced}");
    assert_eq!(count(&produced, "bytes"), records * 1024);
    assert!(count(&produced, "wire_bytes") > records * 1024);
    assert_eq!((count(&produced, "errors"), count(&produced, "retries")), (0, 0));
    assert_eq!(count(&produced, "partitions"), 3);
    let seconds = number(&produced, "seconds");
    assert!((1.5..30.0).contains(&seconds), "{produced}");
    let rate = number(&produced, "records_per_second");
    assert!(
        (rate * seconds - records as f64).abs() < 0.01 * records as f64,
        "{produced}"
    );
    check_latency(&produced, "latency_ms");
    assert_eq!(produced.get("longest_gap_ms"), None);

    let consumed = consume_all(&broker, "fast", &["--consumers", "2"]);
    assert_eq!(count(&consumed, "records"), records);
    assert!(count(&consumed, "bytes") > records * 1024);
    assert!(count(&consumed, "wire_bytes") > count(&consumed, "bytes"));
    assert!(count(&consumed, "fetches") > 0 && number(&consumed, "first_byte_ms") > 0.0);
    let one = consume_all(&broker, "fast", &["--only-partition", "1"]);
    assert_eq!(count(&one, "partitions"), 1);
    assert!((1..records).contains(&count(&one, "records")), "{one}");
    // Every consumer of a crowd reads a partition of its own, some the same.
    let crowd = json(&broker, &["consume", "--topic", "fast", "--consumers", "6"]);
    assert_eq!(count(&crowd, "records"), 2 * records);
    let some = json(&broker, &["consume", "--topic", "fast", "--records", "10"]);
    assert!((10..records).contains(&count(&some, "records")), "{some}");
    let tail = json(
        &broker,
        &["consume", "--topic", "fast", "--from", "end", "--seconds", "0.5"],
    );
    assert_eq!(count(&tail, "records"), 0);
}

#[test]
fn a_rate_gives_an_exact_number_of_records() {
    let broker = Broker::start(BrokerOptions::embedded());
    let report = json(
        &broker,
        &[
            "produce",
            "--topic",
            "paced",
            "--rate",
            "500",
            "--seconds",
            "2",
            "--producers",
            "2",
            "--report-gaps",
        ],
    );
    assert_eq!(count(&report, "records"), 1000);
    check_latency(&report, "latency_ms");
    let gaps = &report["longest_gap_ms"];
    assert!(
        number(gaps, "max") >= number(gaps, "p50") && number(gaps, "p50") > 0.0,
        "{report}"
    );

    // Half a second of the warm-up is in the topic, and in no figure.
    let separate = json(
        &broker,
        &[
            "produce",
            "--topic",
            "paced",
            "--rate",
            "200",
            "--seconds",
            "1.5",
            "--warmup",
            "0.5",
            "--separate-requests",
            "--producers",
            "4",
            "--record-size",
            "10",
            "--keys",
            "3",
        ],
    );
    let measured = count(&separate, "records");
    assert!((280..=320).contains(&measured), "{separate}");
    assert_eq!(count(&separate, "bytes"), measured * 18);
    let consumed = consume_all(&broker, "paced", &[]);
    assert_eq!(count(&consumed, "records"), 1000 + 400);
}

#[test]
fn every_codec_and_every_acks_keeps_the_count() {
    let broker = Broker::start(BrokerOptions::embedded());
    for (codec, values) in [
        ("gzip", &["--compressible", "4"][..]),
        ("snappy", &["--compressible", "4"]),
        ("lz4", &["--compressible", "4"]),
        ("zstd", &["--json-values"]),
    ] {
        let arguments = [
            "produce",
            "--topic",
            codec,
            "--compression",
            codec,
            "--records",
            "2500",
            "--batch-size",
            "100000",
        ];
        let produced = json(&broker, &[&arguments[..], values].concat());
        assert_eq!(count(&produced, "records"), 2500, "{codec}");
        assert!(
            count(&produced, "wire_bytes") < count(&produced, "bytes") / 2,
            "{produced}"
        );
        assert_eq!(
            count(&consume_all(&broker, codec, &[]), "records"),
            2500,
            "{codec}"
        );
    }
    for acks in ["all", "1", "0"] {
        let arguments = [
            "produce",
            "--topic",
            "acks",
            "--acks",
            acks,
            "--records",
            "1001",
            "--max-in-flight",
            "9",
        ];
        let produced = json(&broker, &arguments);
        assert_eq!(count(&produced, "records"), 1001, "acks {acks}");
        assert_eq!(produced["idempotent"], false);
    }
    // Nobody says when the last batches of acks=0 are in the log.
    let until = [
        "consume",
        "--topic",
        "acks",
        "--records",
        "3003",
        "--seconds",
        "20",
    ];
    assert_eq!(count(&json(&broker, &until), "records"), 3003);
}

#[test]
fn nothing_is_lost_end_to_end() {
    let broker = Broker::start(BrokerOptions::embedded());
    let report = json(
        &broker,
        &[
            "e2e",
            "--topic",
            "e2e",
            "--rate",
            "200",
            "--seconds",
            "2",
            "--partitions",
            "2",
        ],
    );
    assert_eq!(report["kind"], "e2e");
    assert_eq!(count(&report, "records"), 400);
    assert_eq!((count(&report, "lost"), count(&report, "duplicates")), (0, 0));
    check_latency(&report, "latency_ms");
    check_latency(&report, "produce_latency_ms");
}

#[test]
fn many_clients_are_woken_by_every_record() {
    let broker = Broker::start(BrokerOptions::embedded());
    let report = json(
        &broker,
        &[
            "many",
            "--topic",
            "many",
            "--connections",
            "50",
            "--waiters",
            "20",
            "--session-partitions",
            "100",
            "--rate",
            "20",
            "--seconds",
            "2",
        ],
    );
    assert_eq!(report["kind"], "many");
    assert_eq!(count(&report, "connections"), 50);
    assert!(number(&report, "connect_seconds") > 0.0);
    assert_eq!(
        (count(&report, "connections_lost"), count(&report, "lost")),
        (0, 0)
    );
    assert_eq!(count(&report, "wakes"), 40 * 20 + 40);
    check_latency(&report, "wake_latency_ms");
    check_latency(&report, "latency_ms");
    let idle = json(&broker, &["many", "--connections", "10", "--seconds", "0.2"]);
    assert_eq!(
        (count(&idle, "connections"), &idle["wake_latency_ms"]),
        (10, &Value::Null)
    );
}

#[test]
fn a_restart_of_the_broker_is_survived() {
    let mut broker = Broker::start(BrokerOptions::embedded());
    let address = broker.address().to_string();
    let load = std::thread::spawn(move || {
        let arguments = [
            "produce",
            "--topic",
            "failover",
            "--rate",
            "400",
            "--seconds",
            "4",
            "--report-gaps",
            "--json",
            "--bootstrap",
            &address,
        ];
        bench(&arguments)
    });
    std::thread::sleep(Duration::from_millis(1500));
    broker.restart();
    let output = load.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count(&report, "records"), 1600);
    assert!(count(&report, "errors") > 0, "{report}");
    let gap = number(&report["longest_gap_ms"], "max");
    // Records that were due during the restart waited for its end.
    assert!(
        number(&report["latency_ms"], "max") + 50.0 >= gap && gap > 20.0,
        "{report}"
    );
    let consumed = consume_all(&broker, "failover", &[]);
    assert_eq!(
        count(&consumed, "records"),
        1600,
        "idempotent batches are stored once"
    );
}

#[test]
fn mistakes_are_named_in_one_line() {
    let broker = Broker::start(BrokerOptions::embedded());
    let address = broker.address().to_string();
    json(&broker, &["produce", "--topic", "one", "--records", "1"]);
    let nobody = alluvium_tests::broker::free_address().to_string();
    let failures: [(&[&str], &str); 8] = [
        (
            &["produce", "--bootstrap", &nobody, "--seconds", "1"],
            "cannot connect to 127.0.0.1",
        ),
        (
            &["consume", "--bootstrap", &address, "--topic", "nothing"],
            "topic 'nothing' does not exist",
        ),
        (
            &["produce", "--bootstrap", &address, "--topic", "no spaces"],
            "InvalidTopicException (17)",
        ),
        (
            &["consume", "--bootstrap", &address, "--from", "end"],
            "--from end needs",
        ),
        (
            &[
                "consume",
                "--bootstrap",
                &address,
                "--topic",
                "one",
                "--only-partition",
                "1",
            ],
            "there is no partition 1",
        ),
        (&["many", "--bootstrap", &address], "name at least one of"),
        (
            &["e2e", "--bootstrap", &address, "--record-size", "8"],
            "--record-size must be at least 16",
        ),
        (
            &[
                "produce",
                "--bootstrap",
                &address,
                "--idempotent",
                "true",
                "--acks",
                "1",
            ],
            "--idempotent true needs --acks all",
        ),
    ];
    for (arguments, expected) in failures {
        let output = bench(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("alluvium: ") && stderr.contains(expected),
            "{stderr}"
        );
        assert_eq!((stderr.lines().count(), output.stdout.len()), (1, 0), "{stderr}");
    }
    let usage: [&[&str]; 7] = [
        &["produce", "--record-size", "0"],
        &["produce", "--compression", "brotli"],
        &["produce", "--bootstrap", "nowhere"],
        &["produce", "--topic-config", "retention.ms"],
        &["produce", "--json-values", "--compressible", "2"],
        &["e2e", "--rate", "0"],
        &["consume", "--seconds", "-1"],
    ];
    for arguments in usage {
        let output = bench(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("error: ") && output.stdout.is_empty(),
            "{stderr}"
        );
    }
    // A topic is not taken for another one.
    json(
        &broker,
        &["produce", "--topic", "two", "--partitions", "2", "--records", "1"],
    );
    let output = bench(&[
        "produce",
        "--bootstrap",
        &address,
        "--topic",
        "two",
        "--partitions",
        "3",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("exists with 2 partitions, not 3"), "{stderr}");
}

/// Far too little work for figures, but every row is measured as it is with enough of it. There is no Apache Kafka here,
/// which its rows must say, and no time for a file of history to be written beside producers.
#[test]
fn the_benchmarks_of_history_measure_every_row() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("benchmarks-of-history");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    // The program looks for the others beside itself, and where itself is, past links.
    let program = directory.join("benchmarks");
    std::fs::hard_link(env!("CARGO_BIN_EXE_benchmarks"), &program).unwrap();
    for (name, other) in [
        ("alluvium", binary()),
        ("s3-fake", Path::new(env!("CARGO_BIN_EXE_s3-fake"))),
    ] {
        std::os::unix::fs::symlink(other, directory.join(name)).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["--quick", "--only", "history", "--runs", "1", "--megabytes", "8"]);
    command.arg("--tools").arg(directory.join("tools"));
    command.arg("--output").arg(&directory);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let results = Results::read(&directory.join("benchmarks.json")).unwrap();
    let rows = &results
        .groups
        .get("history")
        .unwrap_or_else(|| panic!("{said}"))
        .rows;
    assert_eq!(rows.len(), 16, "{said}");
    for row in rows {
        let name = format!("{}: {}, {}", row.section, row.work, row.system);
        match &row.error {
            Some(error) if row.system == "Kafka" => assert!(
                error.contains("ormatting") || error.contains("java"),
                "{name}: {error}"
            ),
            Some(error) if row.work.ends_with(", archiving") => {
                assert!(error.contains("were archived"), "{name}: {error}")
            }
            Some(error) => panic!("{name}: {error}\n{said}"),
            None => assert!(row.runs.iter().all(|run| !run.is_empty()), "{name}"),
        }
    }
    let page = std::fs::read_to_string(directory.join("benchmarks.md")).unwrap();
    for part in [
        "## History as Parquet",
        "| level 2, Parquet |",
        "$/GiB at 140 MiB/s",
    ] {
        assert!(page.contains(part), "{part} is not on the page");
    }
    let _ = std::fs::remove_dir_all(&directory);
}
