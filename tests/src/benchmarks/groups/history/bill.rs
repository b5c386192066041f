//! What a GiB costs in requests, from its producer into history and to three consumers.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::super::alluvium::Alluvium;
use super::super::super::clients::{archive_flush, bench, words};
use super::super::super::kafka_server::create_with_leaders;
use super::super::super::measure::{Plan, Running, settle, watch_idle};
use super::super::super::report::{Bound, Column, Section, Target};
use super::super::super::results::Metrics;
use super::super::super::session::{Run, Session};
use super::super::super::statistics::{GIB, price};
use super::super::super::store::Store;
use super::super::store30::CORES;
use super::super::{TOPIC, ours, s3};
use super::{PARTITIONS, events, target};

const ID: &str = "history.bill";
const WORK: &str = "produce, merge, archive, three consumers";
const CONSUMERS: usize = 3;
/// MiB per second at which a GiB is priced besides.
const RATE: f64 = 140.0;
const SECONDS_PER_GIB: f64 = 1024.0 / RATE;
/// The default pace of merging and archiving is less than what is produced here.
const SETTINGS: &[(&str, &str)] = &[
    ("merge.bytes.per.second", "268435456"),
    ("archive.bytes.per.second", "268435456"),
];
const KINDS: [&str; 5] = ["put", "multipart", "get", "head", "list"];

pub(super) const SECTION: Section = Section {
    id: ID,
    title: "Requests and dollars per GiB",
    about: "Half a row's records on a bucket with S3's latency, from eight producers into twelve partitions as fast as \
            the machine can, while three consumers read all of it as it comes; merging and archiving may go at 256 MiB/s \
            (`merge.bytes.per.second`, `archive.bytes.per.second`), everything else is at its default. All requests are \
            counted from the first record until everything is Parquet. \"at 140 MiB/s\" takes from them what an idle \
            broker needs in that time (counted afterwards, for 20 s), and adds what it needs in the 7.3 s in which a GiB \
            passes at that rate: the rest goes with bytes.",
    columns: &[
        Column::Value("MB/s", "mb_per_second", 0),
        Column::Value("MB/s until all is Parquet", "whole_mb_per_second", 0),
        Column::Several(
            "PUT / multipart / GET / HEAD / LIST per GiB",
            &[
                "put_per_gib",
                "multipart_per_gib",
                "get_per_gib",
                "head_per_gib",
                "list_per_gib",
            ],
            0,
        ),
        Column::Value("$/GiB", "dollars_per_gib", 5),
        Column::Value("$/GiB at 140 MiB/s", "dollars_per_gib_at_rate", 5),
        Column::Value("errors", "errors", 0),
        CORES,
    ],
};
pub(super) const TARGET: Target = target(
    "History: $/GiB with merging, archiving and three consumers, at 140 MiB/s",
    ID,
    WORK,
    "dollars_per_gib_at_rate",
    Bound::AtMost(0.002),
);

/// Requests by kind, and how long they were counted.
#[derive(Debug)]
struct Counted {
    by_kind: BTreeMap<String, u64>,
    seconds: f64,
}

impl Counted {
    fn of(&self, kind: &str) -> f64 {
        self.by_kind.get(kind).copied().unwrap_or(0) as f64
    }
}

pub(super) fn rows(session: &mut Session) {
    for _ in 0..session.scale.runs {
        let done = once(session);
        session.record(&ours(ID, WORK), done);
    }
}

fn once(session: &Session) -> Run {
    let tools = &session.tools;
    let store = Store::start(tools, s3::LATENCY, None)?;
    let broker = Alluvium::on(tools, &store, SETTINGS)?;
    let address = broker.address();
    create_with_leaders(address, TOPIC, PARTITIONS, &[])?;
    let records = (session.scale.records() / 2).max(1);
    let topic = format!("--topic {TOPIC} --partitions {PARTITIONS}");
    let consume = words(&format!("{topic} --from beginning --records {records}"));
    let consumer = |number: usize| {
        let client = bench(tools, "consume", address, &consume);
        Running::start(tools, client, &format!("consumer-{number}"))
    };
    let consumers: Result<Vec<Running>, String> = (1..=CONSUMERS).map(consumer).collect();
    let consumers = consumers?;
    settle();
    let produce = format!("{topic} --producers 8 {} --records {records}", events());
    let begun = Instant::now();
    let plan = Plan {
        client: Some(bench(tools, "produce", address, &words(&produce))),
        broker: Some(broker.process()?),
        store: Some(&store),
        ..Plan::default()
    };
    let mut produced = plan.run(tools)?;
    for consumer in consumers {
        consumer.finish()?;
    }
    Running::start(tools, archive_flush(tools, address, TOPIC), "flush")?.finish()?;
    let whole = Counted {
        seconds: begun.elapsed().as_secs_f64(),
        by_kind: store.requests()?.by_kind,
    };
    let time = session.scale.time(20);
    let (_, by_kind) = watch_idle(broker.process()?, &store, time)?;
    let idle = Counted {
        seconds: time.as_secs_f64(),
        by_kind,
    };
    // Those until the last record was acknowledged are not all.
    produced.requests = None;
    let bytes = produced.outcome.bytes();
    let mut metrics = produced.metrics();
    metrics.insert("whole_mb_per_second".to_owned(), bytes / whole.seconds / 1e6);
    metrics.extend(bill(&whole, &idle, bytes / GIB));
    Ok((produced.shown, metrics))
}

/// Requests and dollars of a GiB as they were counted, and the dollars of one that passes at [`RATE`].
fn bill(whole: &Counted, idle: &Counted, gib: f64) -> Metrics {
    let mut metrics = Metrics::new();
    let (mut dollars, mut at_rate) = (0.0, 0.0);
    for kind in KINDS {
        let per_gib = whole.of(kind) / gib;
        let idle_per_second = idle.of(kind) / idle.seconds;
        let by_bytes = (per_gib - idle_per_second * whole.seconds / gib).max(0.0);
        dollars += price(kind) * per_gib;
        at_rate += price(kind) * (by_bytes + idle_per_second * SECONDS_PER_GIB);
        metrics.insert(format!("{kind}_per_gib"), per_gib);
    }
    metrics.insert("dollars_per_gib".to_owned(), dollars);
    metrics.insert("dollars_per_gib_at_rate".to_owned(), at_rate);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(seconds: f64, counts: &[(&str, u64)]) -> Counted {
        let counts = counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count));
        Counted {
            seconds,
            by_kind: counts.collect(),
        }
    }

    #[test]
    fn what_time_costs_is_told_from_what_bytes_cost() {
        // 2 GiB in 100 s; an idle broker sends a GET a second.
        let whole = counted(100.0, &[("put", 600), ("get", 300), ("delete", 50)]);
        let idle = counted(20.0, &[("get", 20)]);
        let metrics = bill(&whole, &idle, 2.0);
        let near = |name: &str, expected: f64| {
            let found = metrics[name];
            assert!((found - expected).abs() < 1e-12, "{name} {found}, not {expected}");
        };
        near("put_per_gib", 300.0);
        near("get_per_gib", 150.0);
        near("list_per_gib", 0.0);
        near("dollars_per_gib", 300.0 * 5e-6 + 150.0 * 4e-7);
        near(
            "dollars_per_gib_at_rate",
            300.0 * 5e-6 + (100.0 + 1024.0 / 140.0) * 4e-7,
        );
        assert!(!metrics.contains_key("delete_per_gib"));
    }

    #[test]
    fn an_idle_broker_that_asks_more_than_a_busy_one_is_no_gain() {
        let metrics = bill(&counted(10.0, &[]), &counted(10.0, &[("put", 10)]), 1.0);
        let idle = SECONDS_PER_GIB * 5e-6;
        assert!((metrics["dollars_per_gib_at_rate"] - idle).abs() < 1e-12);
        assert_eq!(metrics["dollars_per_gib"], 0.0);
    }
}
