//! A consumer that reads one partition of a thousand.

use super::super::super::report::{Bound, Column, Section, Target};
use super::super::super::results::Metrics;
use super::super::super::session::{Run, Session};
use super::super::ours;
use super::layers::{Layers, Level, Place};
use super::{events, target};

const ID: &str = "history.catch-up";
const WIDE: &str = "wide";
const NARROW: &str = "narrow";
const PARTITIONS: u64 = 1_000;
/// The one that is read.
const PARTITION: u64 = 500;
/// Small enough that a segment holds one batch of every partition, or nearly.
const BATCH_BYTES: u32 = 4_096;

pub(super) const SECTION: Section = Section {
    id: ID,
    title: "Catch up with one partition of 1,000",
    about: "A row's records are produced evenly into the 1,000 partitions of a topic, in batches of up to 4 KiB, so that \
            each segment holds a little of each; and as many bytes as one partition has into a topic with a single one. \
            A consumer reads one partition of each topic, on a bucket at 30/15/30 ms, from a broker that has just started and \
            has read nothing but the other topic. \"times slower\" compares their MB/s run by run.",
    columns: &[
        Column::Value("MB", "mb", 1),
        Column::Value("s", "seconds", 3),
        Column::Value("MB/s", "mb_per_second", 1),
        Column::Value("single-partition topic MB/s", "narrow_mb_per_second", 1),
        Column::Value("times slower", "slower", 1),
        Column::Several(
            "GET / of the single one",
            &["get_requests", "narrow_get_requests"],
            0,
        ),
        Column::Value("MB from the store", "received_mb", 1),
    ],
};
pub(super) const TARGET: Target = target(
    "History: one partition of 1,000 from Parquet, times slower than a single one",
    ID,
    work(Level::Parquet),
    "slower",
    Bound::AtMost(2.0),
);

const fn work(level: Level) -> &'static str {
    match level {
        Level::Segments => "level 0, segments",
        Level::Merged => "level 1, merged",
        Level::Parquet => "level 2, Parquet",
    }
}

pub(super) fn rows(session: &mut Session) {
    let mut filled = fill(session);
    for level in Level::ALL {
        if let Ok(layers) = &mut filled
            && let Err(error) = raise(session, layers, level)
        {
            filled = Err(error);
        }
        for _ in 0..session.scale.runs {
            let done = match &mut filled {
                Ok(layers) => once(session, layers),
                Err(error) => Err(error.clone()),
            };
            session.record(&ours(ID, work(level)), done);
        }
    }
}

fn fill(session: &Session) -> Result<Layers, String> {
    let each = (session.scale.records() / PARTITIONS).max(1);
    let mut layers = Layers::start(session, Place::Bucket)?;
    let wide = format!(
        "--topic {WIDE} --partitions {PARTITIONS} --producers 4 --batch-size {BATCH_BYTES} {} --records {}",
        events(),
        each * PARTITIONS
    );
    layers.fill(session, &wide)?;
    let narrow = format!("--topic {NARROW} --partitions 1 {} --records {each}", events());
    layers.fill(session, &narrow)?;
    Ok(layers)
}

fn raise(session: &Session, layers: &mut Layers, level: Level) -> Result<(), String> {
    match level {
        Level::Segments => Ok(()),
        Level::Merged => layers.merge(),
        Level::Parquet => layers.archive(session, &[WIDE, NARROW]).map(drop),
    }
}

fn once(session: &Session, layers: &mut Layers) -> Run {
    let wide = format!("--topic {WIDE} --only-partition {PARTITION}");
    let narrow = format!("--topic {NARROW}");
    // Some 4 MB are read in the time that a process takes to touch memory for the first time. So each topic is read after the
    // other one: what is read is cold, what it is read into is not.
    layers.read_cold(session, &narrow)?;
    let before = layers.broker.metric("alluvium_store_received_bytes_total")?;
    let read = layers.read(session, &wide)?;
    let received = layers.broker.metric("alluvium_store_received_bytes_total")? - before;
    layers.read_cold(session, &wide)?;
    let narrow = layers.read(session, &narrow)?;
    let mut metrics = beside(read.metrics(), &narrow.metrics());
    metrics.insert("received_mb".to_owned(), received / 1e6);
    Ok((read.shown, metrics))
}

/// The figures of a read of one of many partitions, and those of a partition alone.
fn beside(mut wide: Metrics, narrow: &Metrics) -> Metrics {
    if let Some(bytes) = wide.get("bytes").copied() {
        wide.insert("mb".to_owned(), bytes / 1e6);
    }
    for name in ["mb_per_second", "get_requests"] {
        if let Some(value) = narrow.get(name) {
            wide.insert(format!("narrow_{name}"), *value);
        }
    }
    if let (Some(alone), Some(of_many)) = (narrow.get("mb_per_second"), wide.get("mb_per_second")) {
        wide.insert("slower".to_owned(), alone / of_many);
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_compared_with_one_alone() {
        let metrics = |rate: f64, gets: f64| {
            Metrics::from([
                ("bytes".to_owned(), 4e6),
                ("mb_per_second".to_owned(), rate),
                ("get_requests".to_owned(), gets),
            ])
        };
        let together = beside(metrics(20.0, 70.0), &metrics(50.0, 7.0));
        assert_eq!((together["slower"], together["mb"]), (2.5, 4.0));
        assert_eq!(
            (together["get_requests"], together["narrow_get_requests"]),
            (70.0, 7.0)
        );
        assert!(!beside(metrics(1.0, 1.0), &Metrics::new()).contains_key("slower"));
    }
}
