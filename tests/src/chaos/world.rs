//! What all threads of a run share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ledger::{Ledger, Violation};
use super::pulse::Pulse;
use super::record::Record;
use crate::batches::Fetched;
use crate::kafka::Router;

/// Name of the topic.
pub(super) const TOPIC: &str = "chaos";
/// How long a client waits for a connection or an answer before it tries elsewhere.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// What happened so far, and what is asked of the threads.
#[derive(Debug)]
pub(super) struct World {
    pub(super) bootstrap: Vec<SocketAddr>,
    pub(super) partitions: i32,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) pulse: Mutex<Pulse>,
    /// Producers end when everything is acknowledged.
    pub(super) producers_stop: AtomicBool,
    /// Everybody else ends.
    pub(super) readers_stop: AtomicBool,
    pub(super) counts: Counts,
    violation: Mutex<Option<Violation>>,
}

/// What the threads did.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) producer_retries: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) old_reads: AtomicU64,
    pub(super) joins: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) stale_commits_refused: AtomicU64,
}

/// Counts one or more.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl World {
    pub(super) fn new(bootstrap: Vec<SocketAddr>, partitions: i32) -> World {
        World {
            bootstrap,
            partitions,
            ledger: Mutex::new(Ledger::new(partitions)),
            pulse: Mutex::new(Pulse::new(partitions as usize, Instant::now())),
            producers_stop: AtomicBool::new(false),
            readers_stop: AtomicBool::new(false),
            counts: Counts::default(),
            violation: Mutex::new(None),
        }
    }

    pub(super) fn router(&self) -> Router {
        Router::new(&self.bootstrap, ANSWER_PATIENCE)
    }

    /// Notes the first violation and makes every thread end.
    pub(super) fn report(&self, violation: Violation) {
        self.violation.lock().get_or_insert(violation);
        self.producers_stop.store(true, Ordering::Relaxed);
        self.readers_stop.store(true, Ordering::Relaxed);
    }

    /// Notes a violation, if it is one.
    pub(super) fn judge(&self, result: Result<(), Violation>) -> bool {
        match result {
            Ok(()) => true,
            Err(violation) => {
                self.report(violation);
                false
            }
        }
    }

    /// The first violation.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.lock().clone()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.violation.lock().is_some()
    }

    pub(super) fn readers_go_on(&self) -> bool {
        !self.readers_stop.load(Ordering::Relaxed)
    }
}

/// The records of what was fetched.
pub(super) fn records_of(fetched: &[Fetched]) -> Result<Vec<(i64, Record)>, Violation> {
    let record = |record: &Fetched| {
        let parsed = Record::parse(&record.value);
        parsed
            .map(|parsed| (record.offset, parsed))
            .map_err(|error| format!("offset {}: {error}", record.offset))
    };
    fetched.iter().map(record).collect()
}
