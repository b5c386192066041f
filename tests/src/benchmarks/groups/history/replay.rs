//! How fast history is written, and how fast it is read again.

use super::super::super::report::{Bound, Column, Section, Target};
use super::super::super::results::Metrics;
use super::super::super::session::{Session, in_turns};
use super::super::store30::CORES;
use super::super::{TOPIC, ours};
use super::layers::{Layers, Place};
use super::{PARTITIONS, events, target};

const ID: &str = "history.replay";

pub(super) const SECTION: Section = Section {
    id: ID,
    title: "Archive and replay",
    about: "Half a row's records in twelve partitions. \"archive\" is `alluvium archive flush` of what is merged, by one \
            thread, from the start of the command to its end; \"replay\" is one consumer of the topic from its start, \
            cold, when all of it is Parquet and nothing else. MB/s are of records.",
    columns: &[
        Column::Value("MB/s", "mb_per_second", 0),
        Column::Spread("mb_per_second"),
        Column::Value("first record ms", "first_byte_ms", 0),
        Column::Value("CPU-s/GB", "broker_cpu_s_per_gb", 2),
        Column::Value("peak RSS MB", "rss_mb", 0),
        Column::Several("files / MB of Parquet", &["files", "file_mb"], 0),
        Column::Several(
            "PUT / multipart / GET",
            &["put_requests", "multipart_requests", "get_requests"],
            0,
        ),
        CORES,
    ],
};
pub(super) const TARGET_DISK: Target = target(
    "History: replay from the embedded store, MB/s",
    ID,
    replay_of(Place::Disk),
    "mb_per_second",
    Bound::AtLeast(300.0),
);
pub(super) const TARGET_BUCKET: Target = target(
    "History: replay with 15 ms for each GET, MB/s",
    ID,
    replay_of(Place::Bucket),
    "mb_per_second",
    Bound::AtLeast(250.0),
);

const fn archive_of(place: Place) -> &'static str {
    match place {
        Place::Disk => "archive, embedded store",
        Place::Bucket => "archive, bucket at 30/15/30 ms",
    }
}

const fn replay_of(place: Place) -> &'static str {
    match place {
        Place::Disk => "replay, embedded store",
        Place::Bucket => "replay, bucket at 30/15/30 ms",
    }
}

/// The command and the figures of one run.
type Done = (String, Metrics);

pub(super) fn rows(session: &mut Session) {
    for run in 0..session.scale.runs {
        for place in in_turns(&Place::ALL, run) {
            let (archived, replayed) = match once(session, place) {
                Ok((archived, replayed)) => (Ok(archived), Ok(replayed)),
                Err(error) => (Err(error.clone()), Err(error)),
            };
            session.record(&ours(ID, archive_of(place)), archived);
            session.record(&ours(ID, replay_of(place)), replayed);
        }
    }
}

fn once(session: &Session, place: Place) -> Result<(Done, Done), String> {
    let mut layers = Layers::start(session, place)?;
    let fill = format!(
        "--topic {TOPIC} --partitions {PARTITIONS} --producers 4 {} --records {}",
        events(),
        (session.scale.records() / 2).max(1)
    );
    let bytes = layers.fill(session, &fill)?.outcome.bytes();
    layers.merge()?;
    let mut written = layers
        .archive(session, &[TOPIC])?
        .pop()
        .ok_or("nothing was archived")?;
    written.did(bytes);
    let mut metrics = written.metrics();
    for (name, metric, unit) in [
        ("files", "alluvium_log_archived_files_total", 1.0),
        ("file_mb", "alluvium_log_archived_bytes_total", 1e6),
    ] {
        metrics.insert(name.to_owned(), layers.broker.metric(metric)? / unit);
    }
    let consume = format!("--topic {TOPIC} --partitions {PARTITIONS} --from beginning");
    let read = layers.read_cold(session, &consume)?;
    let replayed = read.metrics();
    Ok(((written.shown, metrics), (read.shown, replayed)))
}
