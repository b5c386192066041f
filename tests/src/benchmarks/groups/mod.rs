//! What is measured, one file for each group.

mod bucket;
mod cluster;
mod embedded;
mod faults;
mod history;
mod idle;
mod many;
mod s3;
mod scale;
mod store30;

use super::report::{OURS, Section, Target};
use super::session::{Key, Session};

/// One group of rows.
#[derive(Debug)]
pub(crate) struct GroupSpec {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) sections: &'static [Section],
    pub(crate) targets: &'static [Target],
    pub(crate) run: fn(&mut Session) -> Result<(), String>,
}

/// All groups in the order in which they run and stand on the page.
pub(crate) const ALL: &[GroupSpec] = &[
    embedded::GROUP,
    store30::GROUP,
    s3::GROUP,
    idle::GROUP,
    many::GROUP,
    faults::GROUP,
    cluster::GROUP,
    scale::GROUP,
    history::GROUP,
];

/// Name of the system that everything is compared with.
pub(super) const KAFKA: &str = "Kafka";
/// The same with an fsync after each append.
pub(super) const KAFKA_FLUSHED: &str = "Kafka, flush.messages=1";
/// Name of our load generator's rows.
pub(super) const BENCH: &str = "alluvium bench";

/// Topic of a measurement.
pub(super) const TOPIC: &str = "bench";
/// Topic that warms a broker up.
pub(super) const WARM_UP: &str = "warm-up";

/// A row that our load generator measures of our broker.
pub(super) fn ours(section: &'static str, work: &str) -> Key {
    Key {
        section,
        work: work.to_owned(),
        client: BENCH.to_owned(),
        system: OURS,
    }
}
