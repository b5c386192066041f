//! Real, unmodified Kafka clients against the real binary. Each test runs the program of one client, below
//! `tests/clients`, on a fresh broker, and leaves its report for `docs/compatibility.md`.
//!
//! With `ALLUVIUM_TEST_BOOTSTRAP` set to an address, they run against whatever broker is there, such as
//! Apache Kafka, and the reports go elsewhere.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::compatibility::{Report, parse_reports};
use alluvium_tests::installed::{Missing, root, target};
use parking_lot::Mutex;

/// Time that all scenarios of one client may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Exit code of `run.sh` for a client that is not installed.
const NOT_INSTALLED: i32 = 77;

/// One client at a time: rebalances and long polls are sensitive to a machine that does nine things at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

macro_rules! clients {
    ($($test:ident = $client:literal;)*) => {
        $(
            #[test]
            fn $test() {
                run($client);
            }
        )*

        /// A client that is installed and pinned but never run would look tested.
        #[test]
        fn every_client_of_the_script_is_tested() {
            let script = std::fs::read_to_string(root().join("tests/clients/run.sh")).expect("run.sh");
            let (_, body) = script.split_once("case $client in").expect("the clients of run.sh");
            let named: Vec<&str> = body
                .lines()
                .filter_map(|line| line.strip_suffix(')'))
                .filter(|line| !line.starts_with(' ') && *line != "*")
                .flat_map(|line| line.split('|').map(str::trim))
                .collect();
            let tested = [$($client),*];
            assert!(!named.is_empty() && named.iter().all(|client| tested.contains(client)), "{named:?}");
            assert!(tested.iter().all(|client| named.contains(client)), "{named:?}");
        }
    };
}

clients! {
    kcat = "kcat";
    confluent_kafka = "confluent-kafka";
    kafka_clients = "kafka-clients";
    kafka_tools = "kafka-tools";
    franz_go = "franz-go";
    kafkajs = "kafkajs";
    kafka_python = "kafka-python";
    aiokafka = "aiokafka";
    sarama = "sarama";
    kafka_go = "kafka-go";
}

/// Where a client connects: a broker of ours, or one that runs already.
enum Target {
    Ours(Box<Broker>),
    Theirs(String),
}

impl Target {
    fn bootstrap(&self) -> String {
        match self {
            Target::Ours(broker) => broker.address().to_string(),
            Target::Theirs(address) => address.clone(),
        }
    }
}

fn run(client: &str) {
    let missing = Missing::from_environment();
    // A client that is not installed is told by its script; only a real run needs a broker.
    if !missing.goes_on(not_installed(client)) {
        return;
    }
    let _guard = ONE_AT_A_TIME.lock();
    let (target, directory) = match std::env::var("ALLUVIUM_TEST_BOOTSTRAP") {
        Ok(address) => (Target::Theirs(address), "results-of-another-broker"),
        Err(_) => {
            // Kafka's default waits 3 s before the first assignment of every group; compaction waits for half a minute.
            let options = BrokerOptions::embedded()
                .set("group.initial.rebalance.delay.ms", 100)
                .set("merge.interval.ms", 1_000)
                .set("log.cleaner.backoff.ms", 500);
            (Target::Ours(Box::new(Broker::start(options))), "results")
        }
    };
    let report = results(directory).join(format!("{client}.json"));
    let output = File::create(&report).expect("the report's file");
    let prefix = format!("{client}-{}", uuid::Uuid::new_v4().simple());
    let mut command = script();
    command.args([client, &target.bootstrap(), &prefix]);
    let status = wait(command.stdin(Stdio::null()).stdout(output), client);
    let text = std::fs::read_to_string(&report).expect("the report");
    let reports = parse_reports(&text).unwrap_or_else(|problem| panic!("{client}: {problem}"));
    for one in &reports {
        println!("{}", line(one));
    }
    let failed: Vec<String> = reports.iter().filter(|one| !one.ok).map(line).collect();
    assert!(failed.is_empty(), "{client} failed:\n{}", failed.join("\n"));
    assert!(status.success(), "{client} ended with {status}");
    assert!(!reports.is_empty(), "{client} ran no scenario");
}

fn line(report: &Report) -> String {
    let outcome = if report.ok { "ok" } else { "FAILED" };
    let words = report.error.as_deref().or(report.note.as_deref()).unwrap_or("");
    format!(
        "{} {} {} {outcome} in {} ms {words}",
        report.client, report.version, report.scenario, report.ms
    )
}

fn script() -> Command {
    Command::new(root().join("tests/clients/run.sh"))
}

fn results(name: &str) -> PathBuf {
    let directory = target().join("clients").join(name);
    std::fs::create_dir_all(&directory).expect("the directory of the results");
    directory
}

/// What `run.sh` says when it is asked for a client that is not there; it looks before it uses its arguments.
fn not_installed(client: &str) -> Option<String> {
    let output = script()
        .args(["--installed", client])
        .output()
        .expect("run.sh runs");
    match output.status.code() {
        Some(0) => None,
        Some(NOT_INSTALLED) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        _ => panic!("run.sh --installed {client}: {output:?}"),
    }
}

fn wait(command: &mut Command, client: &str) -> ExitStatus {
    let mut child = command.spawn().expect("run.sh runs");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("the state of run.sh") {
            return status;
        }
        if Instant::now() > deadline {
            // `run.sh` has become the client, so this ends the client.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{client} did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
