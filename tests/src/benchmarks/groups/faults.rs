//! What happens under load when something else goes wrong: memory stays within its budget, nothing fails.

use std::time::Duration;

use kafka_wire::FetchRequest;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};

use super::super::alluvium::Alluvium;
use super::super::clients::{RECORD_BYTES, bench, words};
use super::super::measure::{Measurement, Plan, Step, settle};
use super::super::report::{Bound, Column, Section, Target};
use super::super::results::Metrics;
use super::super::session::{Run, Session, in_turns};
use super::super::store::Store;
use super::{BENCH, GroupSpec, ours, store30};
use crate::kafka::FETCH_VERSION;
use crate::wire;

const SECTION: &str = "faults.faults";
/// 50 MB/s of 1 KiB records.
pub(super) const RATE: u64 = 48_828;
const PARTITIONS: i32 = 12;
/// Consumers that never read their answers.
const SLOW_CONSUMERS: usize = 20;
/// Topic that the cold reader reads and the slow consumers ask for.
const OLD: &str = "old";
/// Settings that together bound what a broker holds of records.
const BUDGET: [&str; 3] = ["memory.budget.bytes", "tail.bytes", "cache.bytes"];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    SlowConsumers,
    SlowStore,
    Outage,
    ColdReader,
}

const ALL: [Fault; 5] = [
    Fault::Nothing,
    Fault::SlowConsumers,
    Fault::SlowStore,
    Fault::Outage,
    Fault::ColdReader,
];

impl Fault {
    const fn work(self) -> &'static str {
        match self {
            Fault::Nothing => "nothing goes wrong",
            Fault::SlowConsumers => "20 consumers that never read their answers",
            Fault::SlowStore => "store ten times as slow for 20 s",
            Fault::Outage => "store out of reach for 20 s",
            Fault::ColdReader => "a cold reader of everything",
        }
    }
}

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "faults",
    title: "Faults under load",
    about: "Four producers at 50 MB/s together on twelve partitions, on a bucket at 30/15/30 ms that already holds half a \
            row's records; the broker has just started and has no saved-up requests (`request.budget.burst=1`). The rows \
            are measured in turns, and \"p99 x\" compares with the one in which nothing goes wrong.",
    sections: &[Section {
        id: SECTION,
        title: "Produce at 50 MB/s while ...",
        about: "Latency runs from the moment at which a record was to be sent, so that an outage of 20 s shows as a \
                maximum of 20 s and what it takes to catch up. \"budget\" is `memory.budget.bytes` + `tail.bytes` + \
                `cache.bytes`; resident memory is more than that by the code, the stacks, what the allocator keeps, \
                and the answers that are on their way to consumers. \"reader MB/s\" is the rate of the cold reader, \
                who shares the processors with everyone else.",
        columns: &[
            Column::Value("MB/s", "mb_per_second", 1),
            Column::Value("errors", "errors", 0),
            Column::Value("retries", "retries", 0),
            Column::Several("p50 / p99 ms", &["p50_ms", "p99_ms"], 0),
            Column::Value("p99 x", "p99_ratio", 2),
            Column::Value("max ms", "max_ms", 0),
            Column::Several("peak RSS / budget MB", &["rss_mb", "budget_mb"], 0),
            Column::Value("reader MB/s", "reader_mb_per_second", 0),
            store30::CORES,
        ],
    }],
    targets: &[
        errors("Faults: errors, slow consumers", Fault::SlowConsumers),
        errors("Faults: errors, slow store", Fault::SlowStore),
        errors("Faults: errors, outage", Fault::Outage),
        errors("Faults: errors, cold reader", Fault::ColdReader),
        Target {
            says: "Faults: produce p99 with a cold reader, x without",
            section: SECTION,
            work: Fault::ColdReader.work(),
            client: BENCH,
            metric: "p99_ratio",
            bound: Bound::AtMost(1.5),
        },
    ],
    run,
};

const fn errors(says: &'static str, fault: Fault) -> Target {
    Target {
        says,
        section: SECTION,
        work: fault.work(),
        client: BENCH,
        metric: "errors",
        bound: Bound::AtMost(0.0),
    }
}

fn run(session: &mut Session) -> Result<(), String> {
    let budget = budget_bytes(&super::super::broker_settings(&session.tools)?);
    for run in 0..session.scale.runs {
        // The row without a fault comes first in each turn: the others are compared with it.
        let mut baseline = None;
        let faults = [&ALL[..1], &in_turns(&ALL[1..], run)].concat();
        for fault in faults {
            let done = once(session, fault).map(|(command, mut metrics)| {
                let p99 = metrics.get("p99_ms").copied();
                if fault == Fault::Nothing {
                    baseline = p99;
                } else if let (Some(p99), Some(baseline)) = (p99, baseline.filter(|p99| *p99 > 0.0)) {
                    metrics.insert("p99_ratio".to_owned(), p99 / baseline);
                }
                metrics.insert("budget_mb".to_owned(), budget as f64 / 1e6);
                (command, metrics)
            });
            session.record(&ours(SECTION, fault.work()), done);
        }
    }
    Ok(())
}

fn once(session: &Session, fault: Fault) -> Run {
    let tools = &session.tools;
    let store = Store::start(tools, store30::LATENCY, None)?;
    // With saved tokens, the first seconds would be faster than what follows, and p99 a matter of chance.
    let mut broker = Alluvium::on(tools, &store, &[("request.budget.burst", "1")])?;
    let fill = format!(
        "--topic {OLD} --partitions {PARTITIONS} --producers 8 --record-size {RECORD_BYTES} --records {}",
        session.scale.records() / 2
    );
    let filling = Plan {
        client: Some(bench(tools, "produce", broker.address(), &words(&fill))),
        broker: Some(broker.process()?),
        ..Plan::default()
    };
    filling.run(tools)?;
    broker.restart()?;
    let address = broker.address();
    let seconds = session.scale.seconds(60);
    let produce = format!(
        "--partitions {PARTITIONS} --producers 4 --rate {RATE} --record-size {RECORD_BYTES} --seconds {seconds}"
    );
    let read = format!("--topic {OLD} --partitions {PARTITIONS} --from beginning");
    let reader = || bench(tools, "consume", address, &words(&read));
    let asking = match fault {
        Fault::SlowConsumers => slow_consumers(&broker)?,
        _ => Vec::new(),
    };
    settle();
    let plan = Plan {
        client: Some(bench(tools, "produce", address, &words(&produce))),
        beside: (fault == Fault::ColdReader).then_some(&reader),
        steps: steps(fault, &store, session),
        broker: Some(broker.process()?),
        store: Some(&store),
    };
    let measurement = plan.run(tools)?;
    drop(asking);
    let mut metrics = measurement.metrics();
    metrics.extend(reader_rate(&measurement));
    Ok((measurement.shown.clone(), metrics))
}

/// The fault begins after a sixth of the time and lasts for a third of it: 10 s and 20 s of a full minute.
fn steps<'a>(fault: Fault, store: &'a Store, session: &Session) -> Vec<Step<'a>> {
    let unit = Duration::from_secs(session.scale.seconds(60)) / 6;
    let step = |after: Duration, act: Box<dyn Fn() -> Result<(), String> + 'a>| Step { after, act };
    match fault {
        Fault::SlowStore => vec![
            step(unit, Box::new(|| store.set_latency("put=300,get=150,list=300"))),
            step(unit * 3, Box::new(|| store.set_latency(&store30::LATENCY.text()))),
        ],
        Fault::Outage => vec![
            step(unit, Box::new(|| store.set_outage("refuse"))),
            step(unit * 3, Box::new(|| store.set_outage("off"))),
        ],
        Fault::Nothing | Fault::SlowConsumers | Fault::ColdReader => Vec::new(),
    }
}

/// Connections on which a lot was asked for and nothing is ever read.
fn slow_consumers(broker: &Alluvium) -> Result<Vec<wire::Client>, String> {
    let mut request = FetchRequest::default();
    request.replica_id = -1;
    request.max_wait_ms = 500;
    request.min_bytes = 1;
    request.max_bytes = 50 * 1024 * 1024;
    request.session_epoch = -1;
    let mut topic = FetchTopic::default();
    topic.topic = OLD.into();
    topic.partitions = (0..PARTITIONS)
        .map(|index| {
            let mut partition = FetchPartition::default();
            partition.partition = index;
            partition.current_leader_epoch = -1;
            partition.log_start_offset = -1;
            partition.partition_max_bytes = 8 * 1024 * 1024;
            partition
        })
        .collect();
    request.topics = vec![topic];
    let connect = |_| {
        let mut client = wire::Client::connect(broker.address())?;
        client.send(&request, FETCH_VERSION)?;
        Ok(client)
    };
    let clients: std::io::Result<Vec<wire::Client>> = (0..SLOW_CONSUMERS).map(connect).collect();
    clients.map_err(|error| format!("a slow consumer: {error}"))
}

/// The cold reader's rate over its finished passes.
fn reader_rate(measurement: &Measurement) -> Metrics {
    let bytes: f64 = measurement.beside.iter().map(|outcome| outcome.bytes()).sum();
    let seconds: f64 = measurement.beside.iter().map(|outcome| outcome.seconds()).sum();
    let mut metrics = Metrics::new();
    if seconds > 0.0 {
        metrics.insert("reader_mb_per_second".to_owned(), bytes / seconds / 1e6);
    }
    metrics
}

fn budget_bytes(settings: &std::collections::BTreeMap<String, String>) -> u64 {
    let values = BUDGET
        .iter()
        .filter_map(|name| settings.get(*name)?.parse::<u64>().ok());
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmarks::clients::Outcome;
    use serde_json::json;

    #[test]
    fn the_reader_s_rate_is_over_all_passes() {
        let measurement = Measurement {
            beside: vec![
                Outcome(json!({"bytes": 1_000_000, "seconds": 1.0})),
                Outcome(json!({"bytes": 1_000_000, "seconds": 3.0})),
            ],
            ..Measurement::default()
        };
        assert_eq!(reader_rate(&measurement)["reader_mb_per_second"], 0.5);
        assert!(reader_rate(&Measurement::default()).is_empty());
    }

    #[test]
    fn the_budget_is_what_the_broker_may_hold() {
        let settings = [
            ("tail.bytes", "5"),
            ("cache.bytes", "7"),
            ("fetch.max.bytes", "11"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(budget_bytes(&settings.into()), 12);
    }
}
