//! A bucket with the latency that others measured of Amazon S3.

use super::super::clients::RECORD_BYTES;
use super::super::report::{Bound, Section, Target};
use super::super::session::Session;
use super::super::store::StoreLatency;
use super::bucket::{Job, row};
use super::store30::{LATENCY_COLUMNS, THROUGHPUT, throughput_stop};
use super::{BENCH, GroupSpec};

/// p50/p99/p99.9 of PUT and GET; a LIST is taken to be as slow as a PUT.
pub(super) const LATENCY: StoreLatency = StoreLatency {
    put: "100/195/274",
    get: "63/78/118",
    list: "100/195/274",
};

const PRODUCE: &str = "s3.produce";
const STEADY: &str = "s3.steady";
const SLOW_PUT: &str = "s3.slow-put";
const TEN_MB: &str = "produce 10 MB/s";
const END_TO_END: &str = "end to end, 100 records/s";
/// 10 MB/s of 1 KiB records.
const RATE: u64 = 9_766;

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "s3",
    title: "A bucket with S3's latency",
    about: "PUT 100/195/274 ms and GET 63/78/118 ms (p50/p99/p99.9, drawn for each request), LIST like PUT. Each run has \
            a new bucket and a new broker. The closed systems publish 250/500 ms (WarpStream) and 260/500 ms (Bufstream) \
            for an acknowledgement and 500/900 ms end to end (WarpStream), p50/p99.",
    sections: &[
        Section {
            id: STEADY,
            title: "Latency at a steady rate",
            about: "Four producers on twelve partitions at 10 MB/s together; one producer and one consumer at 100 \
                    records/s. \"tokens spent\" has no saved-up requests (`request.budget.burst=1`): what holds for good \
                    at the default budget.",
            columns: LATENCY_COLUMNS,
        },
        Section {
            id: PRODUCE,
            title: "Produce",
            about: "Producers as fast as they can, for at most half a minute.",
            columns: THROUGHPUT,
        },
        Section {
            id: SLOW_PUT,
            title: "Slow PUTs",
            about: "As above at 10 MB/s, but one of a hundred PUTs takes 3 s longer. Segments are acknowledged in order, \
                    so that whatever follows a slow one waits for it; nothing waits longer than that if p99.9 and the \
                    maximum stay near 3 s.",
            columns: LATENCY_COLUMNS,
        },
    ],
    targets: &[
        target("S3 latency: produce p50 ms", STEADY, TEN_MB, "p50_ms", 150.0),
        target("S3 latency: produce p99 ms", STEADY, TEN_MB, "p99_ms", 300.0),
        target(
            "S3 latency: end to end p50 ms",
            STEADY,
            END_TO_END,
            "p50_ms",
            155.0,
        ),
        target(
            "S3 latency: end to end p99 ms",
            STEADY,
            END_TO_END,
            "p99_ms",
            310.0,
        ),
        target(
            "S3 latency: slowest record with PUTs of 3 s, ms",
            SLOW_PUT,
            TEN_MB,
            "max_ms",
            3_600.0,
        ),
    ],
    run,
};

const fn target(
    says: &'static str,
    section: &'static str,
    work: &'static str,
    metric: &'static str,
    at_most: f64,
) -> Target {
    Target {
        says,
        section,
        work,
        client: BENCH,
        metric,
        bound: Bound::AtMost(at_most),
    }
}

fn run(session: &mut Session) -> Result<(), String> {
    let produce = format!(
        "--partitions 12 --producers 4 --rate {RATE} --record-size {RECORD_BYTES} --seconds {}",
        session.scale.seconds(24)
    );
    let job = Job {
        section: STEADY,
        work: TEN_MB,
        verb: "produce",
        arguments: &produce,
        latency: LATENCY,
        fault: None,
        settings: &[],
    };
    let spent = &[("request.budget.burst", "1")];
    row(session, job);
    row(
        session,
        Job {
            work: "produce 10 MB/s, tokens spent",
            settings: spent,
            ..job
        },
    );
    let arguments = format!("--rate 100 --seconds {}", session.scale.seconds(24));
    let end_to_end = Job {
        work: END_TO_END,
        verb: "e2e",
        arguments: &arguments,
        ..job
    };
    row(session, end_to_end);
    row(
        session,
        Job {
            work: "end to end, 100 records/s, tokens spent",
            settings: spent,
            ..end_to_end
        },
    );
    let stop = throughput_stop(session);
    for (work, partitions, producers) in [
        ("1 partition, 1 producer, idempotent", 1, 1),
        ("12 partitions, 8 producers, idempotent", 12, 8),
    ] {
        let arguments = format!(
            "--partitions {partitions} --producers {producers} --idempotent true --record-size {RECORD_BYTES} {stop}"
        );
        let throughput = Job {
            section: PRODUCE,
            work,
            arguments: &arguments,
            ..job
        };
        row(session, throughput);
    }
    row(
        session,
        Job {
            section: SLOW_PUT,
            fault: Some("kind=put,key=^benchmarks/wal/,probability=0.01,do=delay,ms=3000"),
            ..job
        },
    );
    Ok(())
}
