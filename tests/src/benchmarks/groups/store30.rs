//! A bucket that answers in 30/15/30 ms: an on-premises store, or a zonal one.

use super::super::clients::RECORD_BYTES;
use super::super::report::{Bound, Column, Section, Target};
use super::super::session::Session;
use super::super::store::StoreLatency;
use super::bucket::{Job, cold_row, row};
use super::{BENCH, GroupSpec};

/// PUT, GET and LIST of this store.
pub(super) const LATENCY: StoreLatency = StoreLatency {
    put: "30",
    get: "15",
    list: "30",
};
/// Time that a row of throughput may take: one producer waits for the store most of the time.
const SECONDS_MAX: u64 = 30;

const PRODUCE: &str = "store30.produce";
const CONSUME: &str = "store30.consume";
const END_TO_END: &str = "store30.e2e";
const SINGLE: &str = "store30.single";
const MANY_PRODUCERS: &str = "12 partitions, 8 producers, idempotent";
const COLD: &str = "from the start, cold, 12 partitions";
const TRICKLE: &str = "10 records/s";
const SINGLE_WORK: &str = "1,000 sends/s, saved tokens";

/// Columns of throughput on a bucket.
pub(super) const THROUGHPUT: &[Column] = &[
    Column::Value("MB/s", "mb_per_second", 0),
    Column::Spread("mb_per_second"),
    Column::Value("CPU-s/GB", "broker_cpu_s_per_gb", 2),
    Column::Value("peak RSS MB", "rss_mb", 0),
    Column::Several("p50 / p99 ms", &["p50_ms", "p99_ms"], 0),
    REQUESTS,
    Column::Value("$/GiB", "dollars_per_gib", 5),
    Column::Value("errors", "errors", 0),
    CORES,
];
/// Requests by kind.
pub(super) const REQUESTS: Column = Column::Several(
    "PUT / GET / LIST",
    &["put_requests", "get_requests", "list_requests"],
    0,
);
/// Who was busy.
pub(super) const CORES: Column = Column::Several(
    "cores broker / client / store",
    &["broker_cores", "client_cores", "store_cores"],
    2,
);

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "store30",
    title: "A bucket at 30/15/30 ms (PUT/GET/LIST)",
    about: "Each run has a new bucket and a new broker, all settings at their defaults unless the row says otherwise. \
            Apache Kafka has no place here: its log is on a disk.",
    sections: &[
        Section {
            id: PRODUCE,
            title: "Produce",
            about: "Producers as fast as they can, for at most half a minute.",
            columns: THROUGHPUT,
        },
        Section {
            id: CONSUME,
            title: "Consume from the start, cold",
            about: "One consumer of a topic that was filled before. The broker has just started: nothing of it is in \
                    memory.",
            columns: &[
                Column::Value("MB/s", "mb_per_second", 0),
                Column::Spread("mb_per_second"),
                Column::Value("first record ms", "first_byte_ms", 0),
                Column::Value("CPU-s/GB", "broker_cpu_s_per_gb", 2),
                Column::Value("peak RSS MB", "rss_mb", 0),
                REQUESTS,
                Column::Value("$/GiB", "dollars_per_gib", 5),
                CORES,
            ],
        },
        Section {
            id: END_TO_END,
            title: "End to end",
            about: "One producer at a steady rate, one consumer at the end of the log.",
            columns: LATENCY_COLUMNS,
        },
        Section {
            id: SINGLE,
            title: "Single-record sends",
            about: "Each record is a Produce request of its own, as a web service sends it, from 100 connections. A small \
                    write costs a token; a fresh broker has saved up some (`request.budget.burst`) and gets new ones at \
                    `request.budget.per.second`. The other rows show what holds when they are spent, and without a budget.",
            columns: LATENCY_COLUMNS,
        },
    ],
    targets: &[
        Target {
            says: "30 ms bucket: produce MB/s, several producers",
            section: PRODUCE,
            work: MANY_PRODUCERS,
            client: BENCH,
            metric: "mb_per_second",
            bound: Bound::AtLeast(150.0),
        },
        Target {
            says: "30 ms bucket: cold consume MB/s",
            section: CONSUME,
            work: COLD,
            client: BENCH,
            metric: "mb_per_second",
            bound: Bound::AtLeast(250.0),
        },
        Target {
            says: "30 ms bucket: end to end at 10 records/s, p50 ms",
            section: END_TO_END,
            work: TRICKLE,
            client: BENCH,
            metric: "p50_ms",
            bound: Bound::AtMost(45.0),
        },
        Target {
            says: "30 ms bucket: end to end at 10 records/s, p99 ms",
            section: END_TO_END,
            work: TRICKLE,
            client: BENCH,
            metric: "p99_ms",
            bound: Bound::AtMost(90.0),
        },
        Target {
            says: "30 ms bucket: 1,000 single sends/s, p99 ms",
            section: SINGLE,
            work: SINGLE_WORK,
            client: BENCH,
            metric: "p99_ms",
            bound: Bound::AtMost(150.0),
        },
    ],
    run,
};

/// Columns of latency on a bucket.
pub(super) const LATENCY_COLUMNS: &[Column] = &[
    Column::Several("p50 / p99 / p99.9 ms", &["p50_ms", "p99_ms", "p999_ms"], 0),
    Column::Value("max ms", "max_ms", 0),
    Column::Several(
        "acknowledged p50 / p99 ms",
        &["produce_p50_ms", "produce_p99_ms"],
        0,
    ),
    Column::Value("MB/s", "mb_per_second", 2),
    Column::Value("errors", "errors", 0),
    REQUESTS,
    Column::Value("$/month", "dollars_per_month", 2),
    Column::Value("broker cores", "broker_cores", 3),
];

fn run(session: &mut Session) -> Result<(), String> {
    let job = Job {
        section: PRODUCE,
        work: "",
        verb: "produce",
        arguments: "",
        latency: LATENCY,
        fault: None,
        settings: &[],
    };
    let stop = throughput_stop(session);
    for (work, partitions, producers) in [
        ("1 partition, 1 producer, idempotent", 1, 1),
        ("12 partitions, 1 producer, idempotent", 12, 1),
        (MANY_PRODUCERS, 12, 8),
    ] {
        let arguments = format!(
            "--partitions {partitions} --producers {producers} --idempotent true --record-size {RECORD_BYTES} {stop}"
        );
        let arguments = arguments.as_str();
        row(
            session,
            Job {
                work,
                arguments,
                ..job
            },
        );
    }
    for (work, partitions) in [("from the start, cold, 1 partition", 1), (COLD, 12)] {
        let fill = format!(
            "--partitions {partitions} --producers 8 --record-size {RECORD_BYTES} --records {}",
            session.scale.records()
        );
        let cold = Job {
            section: CONSUME,
            work,
            verb: "consume",
            arguments: "--from beginning",
            ..job
        };
        cold_row(session, &fill, cold);
    }
    let arguments = format!("--rate 10 --seconds {}", session.scale.seconds(24));
    let end_to_end = Job {
        section: END_TO_END,
        work: TRICKLE,
        verb: "e2e",
        arguments: &arguments,
        ..job
    };
    row(session, end_to_end);
    let arguments = format!(
        "--separate-requests --producers 100 --rate 1000 --partitions 12 --record-size {RECORD_BYTES} --seconds {}",
        session.scale.seconds(20)
    );
    for (work, settings) in [
        (SINGLE_WORK, &[][..]),
        (
            "1,000 sends/s, tokens spent",
            &[("request.budget.burst", "1")][..],
        ),
        (
            "1,000 sends/s, no budget",
            &[("request.budget.per.second", "0")][..],
        ),
    ] {
        let single = Job {
            section: SINGLE,
            work,
            arguments: &arguments,
            settings,
            ..job
        };
        row(session, single);
    }
    Ok(())
}

/// When a row of throughput on a bucket ends.
pub(super) fn throughput_stop(session: &Session) -> String {
    format!(
        "--records {} --seconds {}",
        session.scale.records(),
        session.scale.seconds(SECONDS_MAX)
    )
}
