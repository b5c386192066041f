//! What many clients and partitions cost, beside Apache Kafka.

use std::net::SocketAddr;

use super::super::alluvium::Alluvium;
use super::super::clients::{RECORD_BYTES, bench, words};
use super::super::kafka_server::{KafkaServer, create_with_leaders};
use super::super::measure::{Plan, settle};
use super::super::process::Process;
use super::super::report::{Column, OURS, Section};
use super::super::results::Metrics;
use super::super::session::{Key, Run, Session, in_turns};
use super::{BENCH, GroupSpec, KAFKA, TOPIC};

const CONNECTIONS: &str = "many.connections";
const WAKES: &str = "many.wakes";

/// Idle connections where the limit of open files allows them.
const CONNECTIONS_WANTED: u64 = 10_000;
/// Partitions of the wide session.
const WIDE: u32 = 1_000;
/// Files that a process needs beside its connections.
const OTHER_FILES: u64 = 200;

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "many",
    title: "Many clients, many partitions",
    about: "Alluvium on the embedded store with a limit of 12,000 connections, Apache Kafka with its defaults.",
    sections: &[
        Section {
            id: CONNECTIONS,
            title: "Connections",
            about: "Connections that have asked for the API versions and then stay idle. Memory per connection is the \
                    growth of the broker's resident memory; the kernel's buffers are not in it, and of a virtual \
                    machine the garbage is.",
            columns: &[
                Column::Value("connections", "connections", 0),
                Column::Value("connected in s", "connect_seconds", 2),
                Column::Value("KiB per connection", "kib_per_connection", 1),
                Column::Value("RSS MB", "rss_mb", 0),
                Column::Value("broker cores", "broker_cores", 3),
            ],
        },
        Section {
            id: WAKES,
            title: "Waiting consumers and wide sessions",
            about: "1,000 consumers, each on a connection of its own, wait at the end of one partition for 10 records a \
                    second: each record wakes all of them. And one consumer waits on 1,000 partitions in one fetch \
                    session for 100 records a second, each in another partition. The time runs from the moment at which a record \
                    was to be sent to the moment at which a consumer has it; the processor time is all that the broker \
                    used, the producing included.",
            columns: &[
                Column::Several("p50 / p99 ms", &["p50_ms", "p99_ms"], 2),
                Column::Value("max ms", "max_ms", 1),
                Column::Ratio("p99 x Kafka", "p99_ms", KAFKA),
                Column::Value("wakes", "wakes", 0),
                Column::Value("broker CPU us per wake", "cpu_us_per_wake", 1),
                Column::Value("peak RSS MB", "rss_mb", 0),
                Column::Several("cores broker / client", &["broker_cores", "client_cores"], 2),
            ],
        },
    ],
    targets: &[],
    run,
};

fn run(session: &mut Session) -> Result<(), String> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let allowed = open_files(&limits).unwrap_or(1_024).saturating_sub(OTHER_FILES);
    let connections = CONNECTIONS_WANTED.min(allowed);
    let work = if connections < CONNECTIONS_WANTED {
        format!("{connections} idle connections (the limit of open files allows no more)")
    } else {
        "10,000 idle connections".to_owned()
    };
    let seconds = session.scale.seconds(20);
    rows(
        session,
        CONNECTIONS,
        &work,
        &format!("--connections {connections} --seconds {seconds}"),
    );
    let waiters = format!("--waiters 1000 --rate 10 --record-size {RECORD_BYTES} --seconds {seconds}");
    rows(
        session,
        WAKES,
        "1,000 waiting consumers of one partition",
        &waiters,
    );
    let wide =
        format!("--session-partitions {WIDE} --rate 100 --record-size {RECORD_BYTES} --seconds {seconds}");
    rows(session, WAKES, "1,000 partitions in one fetch session", &wide);
    Ok(())
}

fn rows(session: &mut Session, section: &'static str, work: &str, arguments: &str) {
    for run in 0..session.scale.runs {
        for system in in_turns(&[OURS, KAFKA], run) {
            // Fresh for each run: memory that an earlier one left would hide what this one needs.
            let done =
                match system {
                    OURS => Alluvium::embedded(&session.tools, &[("max.connections", "12000")]).and_then(
                        |broker| once(session, section, broker.address(), broker.process()?, arguments),
                    ),
                    _ => KafkaServer::start(&session.tools).and_then(|broker| {
                        once(session, section, broker.address(), broker.process()?, arguments)
                    }),
                };
            let key = Key {
                section,
                work: work.to_owned(),
                client: BENCH.to_owned(),
                system,
            };
            session.record(&key, done);
        }
    }
}

fn once(
    session: &Session,
    section: &'static str,
    address: SocketAddr,
    broker: &Process,
    arguments: &str,
) -> Run {
    let run = |arguments: &str| {
        settle();
        let plan = Plan {
            client: Some(bench(&session.tools, "many", address, &words(arguments))),
            broker: Some(broker),
            ..Plan::default()
        };
        plan.run(&session.tools)
    };
    if section == WAKES {
        create_with_leaders(address, TOPIC, 1, &[])?;
        create_with_leaders(address, &format!("{TOPIC}-session"), WIDE, &[])?;
        // For the virtual machine.
        run(&format!(
            "--waiters 200 --session-partitions {WIDE} --rate 100 --seconds 5"
        ))?;
    }
    let measurement = run(arguments)?;
    let mut metrics = measurement.metrics();
    metrics.extend(derived(&metrics, measurement.broker_cpu_seconds));
    Ok((measurement.shown.clone(), metrics))
}

/// Memory per connection and processor time per wake.
fn derived(metrics: &Metrics, broker_cpu_seconds: f64) -> Metrics {
    let of = |name: &str| metrics.get(name).copied().filter(|value| *value > 0.0);
    let mut derived = Metrics::new();
    if let (Some(connections), Some(before), Some(peak)) =
        (of("connections"), of("rss_before_mb"), of("rss_mb"))
    {
        let kib = (peak - before) * 1e6 / 1024.0 / connections;
        derived.insert("kib_per_connection".to_owned(), kib);
    }
    if let Some(wakes) = of("wakes") {
        derived.insert("cpu_us_per_wake".to_owned(), broker_cpu_seconds * 1e6 / wakes);
    }
    derived
}

/// The soft limit of open files in `/proc/self/limits`.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_limit_of_open_files() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            20000                20000                files\n";
        assert_eq!(open_files(limits), Some(20_000));
        assert_eq!(
            open_files("Max open files unlimited unlimited files"),
            Some(u64::MAX)
        );
        assert_eq!(open_files(""), None);
    }

    #[test]
    fn shares_out_memory_and_time() {
        let metrics = Metrics::from([
            ("connections".to_owned(), 1_000.0),
            ("rss_before_mb".to_owned(), 10.0),
            ("rss_mb".to_owned(), 20.24),
            ("wakes".to_owned(), 500.0),
        ]);
        let derived = derived(&metrics, 0.25);
        assert!((derived["kib_per_connection"] - 10.0).abs() < 1e-9);
        assert!((derived["cpu_us_per_wake"] - 500.0).abs() < 1e-9);
        assert!(super::derived(&Metrics::new(), 1.0).is_empty());
    }
}
