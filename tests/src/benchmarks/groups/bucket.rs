//! What the groups on a bucket share: a fresh store and a fresh broker for each run.

use super::super::alluvium::Alluvium;
use super::super::clients::{Client, bench, words};
use super::super::measure::{Plan, settle};
use super::super::session::{Key, Run, Session};
use super::super::store::{Store, StoreLatency};
use super::ours;

/// One row on a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub(super) section: &'static str,
    pub(super) work: &'a str,
    /// Verb and arguments of `alluvium bench`.
    pub(super) verb: &'a str,
    pub(super) arguments: &'a str,
    pub(super) latency: StoreLatency,
    /// A rule of the fake for what goes wrong.
    pub(super) fault: Option<&'a str>,
    /// Settings of the broker that differ from the defaults.
    pub(super) settings: &'a [(&'a str, &'a str)],
}

impl Job<'_> {
    pub(super) fn key(&self) -> Key {
        ours(self.section, self.work)
    }

    pub(super) fn client(&self, session: &Session, broker: &Alluvium) -> Client {
        bench(
            &session.tools,
            self.verb,
            broker.address(),
            &words(self.arguments),
        )
    }

    pub(super) fn start(&self, session: &Session) -> Result<(Store, Alluvium), String> {
        let store = Store::start(&session.tools, self.latency, self.fault)?;
        let broker = Alluvium::on(&session.tools, &store, self.settings)?;
        Ok((store, broker))
    }
}

/// Each run on a new bucket and a new broker, whose budget of requests is unspent.
pub(super) fn row(session: &mut Session, job: Job<'_>) {
    for _ in 0..session.scale.runs {
        let done = job.start(session).and_then(|(store, broker)| {
            let client = job.client(session, &broker);
            measured(session, client, &broker, &store)
        });
        session.record(&job.key(), done);
    }
}

/// Fills a topic once; each run reads it with a broker that has just started: tail and cache are empty.
pub(super) fn cold_row(session: &mut Session, fill: &str, job: Job<'_>) {
    let filled = job.start(session).and_then(|(store, broker)| {
        let client = bench(&session.tools, "produce", broker.address(), &words(fill));
        measured(session, client, &broker, &store)?;
        Ok((store, broker))
    });
    let mut filled = filled;
    for _ in 0..session.scale.runs {
        let done = match &mut filled {
            Ok((store, broker)) => broker.restart().and_then(|()| {
                let client = job.client(session, broker);
                measured(session, client, broker, store)
            }),
            Err(error) => Err(error.clone()),
        };
        session.record(&job.key(), done);
    }
}

pub(super) fn measured(session: &Session, client: Client, broker: &Alluvium, store: &Store) -> Run {
    settle();
    let plan = Plan {
        client: Some(client),
        broker: Some(broker.process()?),
        store: Some(store),
        ..Plan::default()
    };
    let measurement = plan.run(&session.tools)?;
    Ok((measurement.shown.clone(), measurement.metrics()))
}
