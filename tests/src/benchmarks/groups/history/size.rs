//! How large history is beside Kafka's segments of the same records.

use super::super::super::alluvium::bytes_below;
use super::super::super::clients::{bench, words};
use super::super::super::kafka_server::{KafkaServer, create_with_leaders};
use super::super::super::measure::{Measurement, Plan};
use super::super::super::report::{Bound, Column, OURS, Section, Target};
use super::super::super::results::Metrics;
use super::super::super::session::{Key, Run, Session};
use super::super::{KAFKA, TOPIC, ours};
use super::layers::{Layers, Place};
use super::{PARTITIONS, events, target};

const ID: &str = "history.size";
/// Batches of Kafka's producers unless they are told otherwise, and of those that want throughput.
const BATCHES: [(&str, u32); 2] = [(SMALL, 16_384), (LARGE, 1_000_000)];
const SMALL: &str = "zstd batches of 16 KiB";
const LARGE: &str = "zstd batches of 1 MB";

pub(super) const SECTION: Section = Section {
    id: ID,
    title: "Size beside Kafka's segments",
    about: "A quarter of a row's records, the same ones for both, compressed by the producer (zstd at its default level \
            3). Ours are the Parquet files of the whole topic, Kafka's its segments without their indexes. Measured \
            once: there is nothing to vary.",
    columns: &[
        Column::Value("MB of records", "records_mb", 0),
        Column::Value("MB stored", "stored_mb", 1),
        Column::Ratio("x Kafka", "stored_mb", KAFKA),
        Column::Value("% of the records", "stored_percent", 1),
    ],
};
pub(super) const TARGET_SMALL: Target = target(
    "History: size, zstd batches of 16 KiB",
    ID,
    SMALL,
    "stored_mb",
    Bound::RatioAtMost(KAFKA, 1.0),
);
pub(super) const TARGET_LARGE: Target = target(
    "History: size, zstd batches of 1 MB",
    ID,
    LARGE,
    "stored_mb",
    Bound::RatioAtMost(KAFKA, 1.0),
);

pub(super) fn rows(session: &mut Session) {
    // Several producers would send the same prepared batches side by side, and what repeats within a page is for nothing.
    for (work, batch_bytes) in BATCHES {
        let produce = format!(
            "--topic {TOPIC} --partitions {PARTITIONS} --producers 1 --compression zstd --batch-size {batch_bytes} {} \
             --records {}",
            events(),
            (session.scale.records() / 4).max(1)
        );
        for system in [OURS, KAFKA] {
            let stored = match system {
                OURS => of_parquet(session, &produce),
                _ => of_segments(session, &produce),
            };
            let key = Key {
                system,
                ..ours(ID, work)
            };
            session.record(&key, stored);
        }
    }
}

fn of_parquet(session: &Session, produce: &str) -> Run {
    let mut layers = Layers::start(session, Place::Disk)?;
    let filled = layers.fill(session, produce)?;
    layers.merge()?;
    layers.archive(session, &[TOPIC])?;
    let directory = layers.broker.directory().ok_or("the store is no directory")?;
    let bytes = bytes_below(&directory.join("archive"), ".parquet")?;
    Ok(stored(&filled, bytes))
}

fn of_segments(session: &Session, produce: &str) -> Run {
    let kafka = KafkaServer::start(&session.tools)?;
    create_with_leaders(kafka.address(), TOPIC, PARTITIONS, &[])?;
    let plan = Plan {
        client: Some(bench(&session.tools, "produce", kafka.address(), &words(produce))),
        broker: Some(kafka.process()?),
        ..Plan::default()
    };
    let filled = plan.run(&session.tools)?;
    Ok(stored(&filled, kafka.segment_bytes(TOPIC)?))
}

fn stored(filled: &Measurement, bytes: u64) -> (String, Metrics) {
    let (records, bytes) = (filled.outcome.bytes(), bytes as f64);
    let metrics = Metrics::from([
        ("records_mb".to_owned(), records / 1e6),
        ("stored_mb".to_owned(), bytes / 1e6),
        ("stored_percent".to_owned(), 100.0 * bytes / records),
    ]);
    (filled.shown.clone(), metrics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmarks::clients::Outcome;

    #[test]
    fn a_size_is_told_beside_that_of_the_records() {
        let filled = Measurement {
            shown: "produce".to_owned(),
            outcome: Outcome(serde_json::json!({"bytes": 8_000_000})),
            ..Measurement::default()
        };
        let (shown, metrics) = stored(&filled, 2_000_000);
        assert_eq!(shown, "produce");
        assert_eq!((metrics["stored_mb"], metrics["stored_percent"]), (2.0, 25.0));
    }
}
