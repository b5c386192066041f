//! A broker whose records stand at one level, and stay there until they are raised to the next.

use std::time::{Duration, Instant};

use super::super::super::alluvium::Alluvium;
use super::super::super::clients::{Client, archive_flush, bench, words};
use super::super::super::measure::{Measurement, Plan, settle};
use super::super::super::session::Session;
use super::super::super::store::Store;
use super::super::store30;

/// Until everything is merged.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(50);
/// Of the bytes that were sent, headers of requests included, so much at least is merged.
const MERGED_PART: f64 = 0.9;

/// Where records stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Segments,
    Merged,
    Parquet,
}

impl Level {
    pub(super) const ALL: [Level; 3] = [Level::Segments, Level::Merged, Level::Parquet];

    /// Settings with which records get as far as this, as fast as the machine can, and no further.
    const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Level::Segments => &[
                ("merge.interval.ms", "3600000"),
                ("merge.bytes", "1099511627776"),
                ("archive.enable", "false"),
            ],
            Level::Merged => &[
                ("merge.interval.ms", "1000"),
                ("merge.bytes.per.second", "1099511627776"),
                ("archive.enable", "false"),
            ],
            Level::Parquet => &[
                ("merge.interval.ms", "1000"),
                ("archive.threads", "1"),
                ("archive.bytes.per.second", "1099511627776"),
            ],
        }
    }
}

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Disk,
    Bucket,
}

impl Place {
    pub(super) const ALL: [Place; 2] = [Place::Disk, Place::Bucket];

    /// Nothing on a disk.
    pub(super) fn store(self, session: &Session) -> Result<Option<Store>, String> {
        match self {
            Place::Disk => Ok(None),
            Place::Bucket => Store::start(&session.tools, store30::LATENCY, None).map(Some),
        }
    }
}

/// A broker on this store, or on a disk without one.
pub(super) fn broker_on(
    session: &Session,
    store: Option<&Store>,
    settings: &[(&str, &str)],
) -> Result<Alluvium, String> {
    match store {
        Some(store) => Alluvium::on(&session.tools, store, settings),
        None => Alluvium::embedded(&session.tools, settings),
    }
}

/// A broker, what it holds, and where.
#[derive(Debug)]
pub(super) struct Layers {
    // Stops before its store does.
    pub(super) broker: Alluvium,
    store: Option<Store>,
    level: Level,
    /// Bytes that producers have sent.
    sent: f64,
}

impl Layers {
    /// An empty one, in which everything stays in segments.
    pub(super) fn start(session: &Session, place: Place) -> Result<Layers, String> {
        let store = place.store(session)?;
        let level = Level::Segments;
        let broker = broker_on(session, store.as_ref(), level.settings())?;
        Ok(Layers {
            broker,
            store,
            level,
            sent: 0.0,
        })
    }

    /// Runs `alluvium bench produce` with these arguments.
    pub(super) fn fill(&mut self, session: &Session, arguments: &str) -> Result<Measurement, String> {
        let client = bench(
            &session.tools,
            "produce",
            self.broker.address(),
            &words(arguments),
        );
        let filled = self.measure(session, client)?;
        let sent = filled.outcome.number("wire_bytes");
        self.sent += sent.ok_or("the producer does not tell what it has sent")?;
        if self.broker.metric("alluvium_log_merged_objects_total")? > 0.0 {
            return Err("something was merged that should not".to_owned());
        }
        Ok(filled)
    }

    /// Merges everything.
    pub(super) fn merge(&mut self) -> Result<(), String> {
        self.begin(Level::Merged)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let merged = self.broker.metric("alluvium_log_merged_bytes_total")?;
            let left = self.broker.metric("alluvium_log_unmerged_bytes")?;
            // Nothing is left, too, before it was looked at.
            if left == 0.0 && merged >= self.sent * MERGED_PART {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{left} bytes are not merged"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets history be written, and waits until it is, of each of these topics.
    pub(super) fn archive(&mut self, session: &Session, topics: &[&str]) -> Result<Vec<Measurement>, String> {
        self.begin(Level::Parquet)?;
        let flush = |topic: &&str| {
            let client = archive_flush(&session.tools, self.broker.address(), topic);
            self.measure(session, client)
        };
        topics.iter().map(flush).collect()
    }

    /// Runs `alluvium bench consume` with these arguments on a broker that has just started.
    pub(super) fn read_cold(&mut self, session: &Session, arguments: &str) -> Result<Measurement, String> {
        self.broker.restart()?;
        self.read(session, arguments)
    }

    /// Runs `alluvium bench consume` with these arguments.
    pub(super) fn read(&mut self, session: &Session, arguments: &str) -> Result<Measurement, String> {
        let client = bench(
            &session.tools,
            "consume",
            self.broker.address(),
            &words(arguments),
        );
        let read = self.measure(session, client)?;
        let parquet = self.broker.metric("alluvium_history_fetched_bytes_total")?;
        if (parquet > 0.0) != (self.level == Level::Parquet) {
            return Err(format!("{parquet} bytes were read from Parquet"));
        }
        Ok(read)
    }

    fn begin(&mut self, level: Level) -> Result<(), String> {
        self.level = level;
        self.broker.set(level.settings());
        self.broker.restart()
    }

    fn measure(&self, session: &Session, client: Client) -> Result<Measurement, String> {
        settle();
        let plan = Plan {
            client: Some(client),
            broker: Some(self.broker.process()?),
            store: self.store.as_ref(),
            ..Plan::default()
        };
        plan.run(&session.tools)
    }
}
