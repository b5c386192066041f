//! What history costs and gives: how fast it is written and replayed, one partition of many, producers beside it, its
//! size and the requests that it takes.

mod beside;
mod bill;
mod catch_up;
mod layers;
mod replay;
mod size;

use super::super::clients::RECORD_BYTES;
use super::super::report::{Bound, Target};
use super::super::session::Session;
use super::{BENCH, GroupSpec};

/// Distinct keys of the records.
const KEYS: u32 = 50_000;
/// Partitions of a topic that is not about partitions.
const PARTITIONS: u32 = 12;

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "history",
    title: "History as Parquet",
    about: "Records are JSON of 1 KiB with keys of 8 bytes (`alluvium bench produce --json-values --keys 50000`), not \
            compressed by the producer unless the row says so. Levels: 0 is the segments of the stream, 1 is data merged \
            by partition, 2 is Parquet. Records are held at a level by settings (`merge.interval.ms`, `merge.bytes`, \
            `archive.enable`); where it is not about their pace, merging and archiving run unpaced \
            (`merge.bytes.per.second`, `archive.bytes.per.second`). \"Cold\" is a broker that has just started.",
    sections: &[
        replay::SECTION,
        catch_up::SECTION,
        beside::SECTION,
        size::SECTION,
        bill::SECTION,
    ],
    targets: &[
        replay::TARGET_DISK,
        replay::TARGET_BUCKET,
        catch_up::TARGET,
        beside::TARGET_DISK,
        beside::TARGET_BUCKET,
        size::TARGET_SMALL,
        size::TARGET_LARGE,
        bill::TARGET,
    ],
    run,
};

const fn target(
    says: &'static str,
    section: &'static str,
    work: &'static str,
    metric: &'static str,
    bound: Bound,
) -> Target {
    Target {
        says,
        section,
        work,
        client: BENCH,
        metric,
        bound,
    }
}

fn run(session: &mut Session) -> Result<(), String> {
    replay::rows(session);
    catch_up::rows(session);
    beside::rows(session);
    size::rows(session);
    bill::rows(session);
    Ok(())
}

/// What records are, as `alluvium bench produce` takes it.
fn events() -> String {
    format!("--json-values --keys {KEYS} --record-size {RECORD_BYTES}")
}
