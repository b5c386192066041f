//! The embedded store, synced, beside Apache Kafka on the same disk.

use std::net::SocketAddr;

use super::super::alluvium::Alluvium;
use super::super::clients::{Client, Kind, Produce, consume, end_to_end, produce};
use super::super::kafka_server::{KafkaServer, create_with_leaders};
use super::super::measure::{Plan, settle};
use super::super::process::Process;
use super::super::report::{Bound, Column, OURS, Section, Target};
use super::super::session::{Key, Run, Session, in_turns};
use super::{BENCH, GroupSpec, KAFKA, KAFKA_FLUSHED, TOPIC, WARM_UP};

const PRODUCE: &str = "embedded.produce";
const CONSUME: &str = "embedded.consume";
const END_TO_END: &str = "embedded.e2e";
const E2E_WORK: &str = "100 records/s";
const E2E_RATE: u32 = 100;
const MAIN_PRODUCE: &str = "1 partition, 1 producer, idempotent";
const MAIN_CONSUME: &str = "from the start, 1 partition";
/// As it comes, with topics that become Parquet while they are written: work that the other rows leave out.
const ARCHIVING: &str = "Alluvium, archiving";
/// Apache Kafka makes no second copy of a topic in another format, so what is compared makes none either.
const LIKE_KAFKA: &[(&str, &str)] = &[("archive.enable", "false")];

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "embedded",
    title: "Embedded store beside Apache Kafka",
    about: "Alluvium on `file://`, every acknowledged record synced to the disk; Apache Kafka on the same disk with its \
            own defaults, which sync nothing. There is no request budget: it costs nothing to write. Each run of Alluvium starts on an empty store; Kafka is started for each \
            row, warmed up, and keeps running. Before each run the disk has finished earlier work (`sync`). Topics do \
            not become Parquet meanwhile (`archive.enable=false`), except in the row that says so: Kafka does no such work.",
    sections: &[
        Section {
            id: PRODUCE,
            title: "Produce",
            about: "Producers as fast as they can. p50/p99 are those of a full queue and say more about the client's \
                    buffer than about the broker.",
            columns: &[
                Column::Value("MB/s", "mb_per_second", 0),
                Column::Ratio("x Kafka", "mb_per_second", KAFKA),
                Column::Spread("mb_per_second"),
                Column::Value("CPU-s/GB", "broker_cpu_s_per_gb", 2),
                Column::Value("peak RSS MB", "rss_mb", 0),
                Column::Several("p50 / p99 ms", &["p50_ms", "p99_ms"], 1),
                Column::Several("cores broker / client", &["broker_cores", "client_cores"], 2),
            ],
        },
        Section {
            id: CONSUME,
            title: "Consume from the start",
            about: "One consumer reads a topic that `alluvium bench produce` filled, from its beginning to its end. The \
                    system's page cache holds what Kafka wrote; Alluvium writes and reads past it.",
            columns: &[
                Column::Value("MB/s", "mb_per_second", 0),
                Column::Ratio("x Kafka", "mb_per_second", KAFKA),
                Column::Spread("mb_per_second"),
                Column::Value("CPU-s/GB", "broker_cpu_s_per_gb", 2),
                Column::Value("peak RSS MB", "rss_mb", 0),
                Column::Several("cores broker / client", &["broker_cores", "client_cores"], 2),
            ],
        },
        Section {
            id: END_TO_END,
            title: "End to end",
            about: "One producer at a steady rate and one consumer at the end of the log; the time from the moment at \
                    which a record was to be sent to the moment at which the consumer has it. librdkafka lingers 5 ms.",
            columns: &[
                Column::Several("end to end p50 / p99 ms", &["p50_ms", "p99_ms"], 2),
                Column::Value("max ms", "max_ms", 1),
                Column::Several(
                    "acknowledged p50 / p99 ms",
                    &["produce_p50_ms", "produce_p99_ms"],
                    2,
                ),
                Column::Ratio("p50 x Kafka", "p50_ms", KAFKA),
                Column::Ratio("p99 x Kafka flushed", "p99_ms", KAFKA_FLUSHED),
                Column::Value("lost", "lost", 0),
                Column::Value("broker cores", "broker_cores", 3),
            ],
        },
    ],
    targets: &[
        target(
            "Embedded: produce rate",
            PRODUCE,
            MAIN_PRODUCE,
            BENCH,
            "mb_per_second",
            Bound::RatioAtLeast(KAFKA, 1.0),
        ),
        target(
            "Embedded: produce rate, librdkafka",
            PRODUCE,
            MAIN_PRODUCE,
            "librdkafka",
            "mb_per_second",
            Bound::RatioAtLeast(KAFKA, 1.0),
        ),
        target(
            "Embedded: produce rate, Java",
            PRODUCE,
            MAIN_PRODUCE,
            "Java",
            "mb_per_second",
            Bound::RatioAtLeast(KAFKA, 1.0),
        ),
        target(
            "Embedded: produce, CPU-s/GB",
            PRODUCE,
            MAIN_PRODUCE,
            BENCH,
            "broker_cpu_s_per_gb",
            Bound::AtMost(1.2),
        ),
        target(
            "Embedded: produce, peak RSS MB",
            PRODUCE,
            MAIN_PRODUCE,
            BENCH,
            "rss_mb",
            Bound::AtMost(512.0),
        ),
        target(
            "Embedded: consume rate",
            CONSUME,
            MAIN_CONSUME,
            BENCH,
            "mb_per_second",
            Bound::RatioAtLeast(KAFKA, 1.0),
        ),
        target(
            "Embedded: consume rate, librdkafka",
            CONSUME,
            MAIN_CONSUME,
            "librdkafka",
            "mb_per_second",
            Bound::RatioAtLeast(KAFKA, 1.0),
        ),
        target(
            "Embedded: consume, CPU-s/GB",
            CONSUME,
            MAIN_CONSUME,
            BENCH,
            "broker_cpu_s_per_gb",
            Bound::AtMost(0.5),
        ),
        target(
            "Embedded: consume, peak RSS MB",
            CONSUME,
            MAIN_CONSUME,
            BENCH,
            "rss_mb",
            Bound::AtMost(512.0),
        ),
        target(
            "Embedded: end to end p50, librdkafka",
            END_TO_END,
            E2E_WORK,
            "librdkafka",
            "p50_ms",
            Bound::RatioAtMost(KAFKA, 1.0),
        ),
        target(
            "Embedded: end to end p99, librdkafka",
            END_TO_END,
            E2E_WORK,
            "librdkafka",
            "p99_ms",
            Bound::RatioAtMost(KAFKA_FLUSHED, 1.0),
        ),
    ],
    run,
};

const fn target(
    says: &'static str,
    section: &'static str,
    work: &'static str,
    client: &'static str,
    metric: &'static str,
    bound: Bound,
) -> Target {
    Target {
        says,
        section,
        work,
        client,
        metric,
        bound,
    }
}

fn run(session: &mut Session) -> Result<(), String> {
    let everyone = [Kind::Bench, Kind::Java, Kind::JavaBatches, Kind::Rdkafka];
    for partitions in [1, 12] {
        for producers in [1, 4] {
            for idempotent in [true, false] {
                let main = partitions == 1 && producers == 1 && idempotent;
                let kinds = if main { &everyone[..] } else { &everyone[..1] };
                for kind in kinds {
                    produce_row(session, *kind, partitions, producers, idempotent);
                }
            }
        }
    }
    for partitions in [1, 12] {
        consume_rows(session, partitions);
    }
    for kind in [Kind::Bench, Kind::Rdkafka] {
        end_to_end_row(session, kind);
    }
    Ok(())
}

/// Runs a client against a broker and turns what was seen into figures.
fn measured(session: &Session, client: Client, broker: &Process) -> Run {
    settle();
    let plan = Plan {
        client: Some(client),
        broker: Some(broker),
        ..Plan::default()
    };
    let measurement = plan.run(&session.tools)?;
    Ok((measurement.shown.clone(), measurement.metrics()))
}

/// Produces without measuring: processes, caches and the virtual machine are warm afterwards.
fn fill(
    session: &Session,
    broker: SocketAddr,
    process: &Process,
    name: &str,
    partitions: u32,
    records: u64,
) -> Result<(), String> {
    create_with_leaders(broker, name, partitions, &[])?;
    let work = Produce {
        topic: name,
        partitions,
        producers: 4,
        idempotent: true,
        records,
    };
    let client = produce(&session.tools, Kind::Bench, broker, work)?;
    let plan = Plan {
        client: Some(client),
        broker: Some(process),
        ..Plan::default()
    };
    plan.run(&session.tools).map(drop)
}

/// Kafka, started and warmed up.
fn warm_kafka(session: &Session) -> Result<KafkaServer, String> {
    let kafka = KafkaServer::start(&session.tools)?;
    let records = session.scale.warm_up_records(4);
    fill(session, kafka.address(), kafka.process()?, WARM_UP, 4, records)?;
    kafka.delete_topic(WARM_UP)?;
    Ok(kafka)
}

fn produce_row(session: &mut Session, kind: Kind, partitions: u32, producers: u32, idempotent: bool) {
    let plural = |count: u32, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let work = format!(
        "{}, {}, {}",
        plural(partitions, "partition"),
        plural(producers, "producer"),
        if idempotent {
            "idempotent"
        } else {
            "not idempotent"
        }
    );
    let job = Produce {
        topic: TOPIC,
        partitions,
        producers,
        idempotent,
        records: session.scale.records(),
    };
    let systems: &[&str] = if work == MAIN_PRODUCE && kind == Kind::Bench {
        &[OURS, KAFKA, ARCHIVING]
    } else {
        &[OURS, KAFKA]
    };
    let kafka = warm_kafka(session);
    for run in 0..session.scale.runs {
        for system in in_turns(systems, run) {
            let key = Key {
                section: PRODUCE,
                work: work.clone(),
                client: kind.name().to_owned(),
                system,
            };
            let done = match (system, &kafka) {
                (OURS, _) => produce_to_alluvium(session, kind, job, LIKE_KAFKA),
                (ARCHIVING, _) => produce_to_alluvium(session, kind, job, &[]),
                (_, Ok(kafka)) => produce_to_kafka(session, kafka, kind, job),
                (_, Err(error)) => Err(error.clone()),
            };
            session.record(&key, done);
        }
    }
}

fn produce_to_alluvium(session: &Session, kind: Kind, job: Produce<'_>, settings: &[(&str, &str)]) -> Run {
    let broker = Alluvium::embedded(&session.tools, settings)?;
    let (address, process) = (broker.address(), broker.process()?);
    let records = session.scale.warm_up_records(20);
    fill(session, address, process, WARM_UP, 1, records)?;
    create_with_leaders(address, job.topic, job.partitions, &[])?;
    let client = produce(&session.tools, kind, address, job)?;
    measured(session, client, process)
}

fn produce_to_kafka(session: &Session, kafka: &KafkaServer, kind: Kind, job: Produce<'_>) -> Run {
    create_with_leaders(kafka.address(), job.topic, job.partitions, &[])?;
    let client = produce(&session.tools, kind, kafka.address(), job)?;
    let done = measured(session, client, kafka.process()?);
    kafka.delete_topic(job.topic)?;
    done
}

/// One broker of each kind, filled once, read by each client in turns.
fn consume_rows(session: &mut Session, partitions: u32) {
    let work = format!(
        "from the start, {partitions} partition{}",
        if partitions == 1 { "" } else { "s" }
    );
    let records = session.scale.records();
    let filled = |session: &Session, broker: SocketAddr, process: &Process| {
        fill(session, broker, process, TOPIC, partitions, records)?;
        // Once for the virtual machine and the page cache.
        let client = consume(&session.tools, Kind::Bench, broker, TOPIC, partitions, records);
        measured(session, client, process).map(drop)
    };
    let kafka = KafkaServer::start(&session.tools).and_then(|kafka| {
        filled(session, kafka.address(), kafka.process()?)?;
        Ok(kafka)
    });
    let ours = Alluvium::embedded(&session.tools, LIKE_KAFKA).and_then(|broker| {
        filled(session, broker.address(), broker.process()?)?;
        Ok(broker)
    });
    for kind in [Kind::Bench, Kind::Java, Kind::Rdkafka] {
        for run in 0..session.scale.runs {
            for system in in_turns(&[OURS, KAFKA], run) {
                let broker = match system {
                    OURS => ours.as_ref().map(|broker| (broker.address(), broker.process())),
                    _ => kafka.as_ref().map(|broker| (broker.address(), broker.process())),
                };
                let done = broker.map_err(String::clone).and_then(|(address, process)| {
                    let client = consume(&session.tools, kind, address, TOPIC, partitions, records);
                    measured(session, client, process?)
                });
                let key = Key {
                    section: CONSUME,
                    work: work.clone(),
                    client: kind.name().to_owned(),
                    system,
                };
                session.record(&key, done);
            }
        }
    }
}

fn end_to_end_row(session: &mut Session, kind: Kind) {
    let seconds = session.scale.seconds(30);
    let once = |session: &Session, broker: SocketAddr, process: &Process, configs: &[(&str, &str)]| {
        create_with_leaders(broker, TOPIC, 1, configs)?;
        let client = end_to_end(&session.tools, kind, broker, TOPIC, E2E_RATE, seconds);
        measured(session, client, process)
    };
    // More records than are measured, for the virtual machine.
    let warm_up = |session: &Session, broker: SocketAddr, process: &Process| {
        create_with_leaders(broker, WARM_UP, 1, &[])?;
        let client = end_to_end(&session.tools, Kind::Bench, broker, WARM_UP, 1_000, 5);
        measured(session, client, process).map(drop)
    };
    let kafka = KafkaServer::start(&session.tools).and_then(|kafka| {
        warm_up(session, kafka.address(), kafka.process()?)?;
        Ok(kafka)
    });
    for run in 0..session.scale.runs {
        for system in in_turns(&[OURS, KAFKA, KAFKA_FLUSHED], run) {
            let configs: &[(&str, &str)] = match system {
                KAFKA_FLUSHED => &[("flush.messages", "1")],
                _ => &[],
            };
            let done = match (system, &kafka) {
                (OURS, _) => Alluvium::embedded(&session.tools, LIKE_KAFKA).and_then(|broker| {
                    let (address, process) = (broker.address(), broker.process()?);
                    warm_up(session, address, process)?;
                    once(session, address, process, configs)
                }),
                (_, Ok(kafka)) => kafka.process().and_then(|process| {
                    let done = once(session, kafka.address(), process, configs);
                    kafka.delete_topic(TOPIC)?;
                    done
                }),
                (_, Err(error)) => Err(error.clone()),
            };
            let key = Key {
                section: END_TO_END,
                work: E2E_WORK.to_owned(),
                client: kind.name().to_owned(),
                system,
            };
            session.record(&key, done);
        }
    }
}
