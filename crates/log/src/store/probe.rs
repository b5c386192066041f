//! Proves that a store keeps its conditions, before anything is entrusted to it.
//!
//! Stores exist that accept `If-None-Match` and `If-Match` and ignore them; on those, two brokers would
//! acknowledge different records at one offset. So each start races creates and updates on fresh keys under
//! `<prefix>/probe/` and refuses the store if more than one wins. A store that passes may still be wrong in
//! ways that need a fault to show; one that fails is wrong for certain.
//!
//! Each kind of call that a broker makes is among them, so that one that is denied is found now and not in the middle of
//! something.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::{BoxFuture, join_all};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::reason::{Cure, Reason};
use super::{Store, StoreKind};

/// Writers that race for one key.
const RACERS: usize = 8;
/// Races of each kind: one may come out right by chance.
const RACES: usize = 3;
/// A check is repeated on fresh keys this often when requests fail without an answer.
const TRIES: u32 = 10;
/// The whole probe takes at most this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);

const IGNORES_CONDITIONS: &str =
    "known to ignore conditions: Garage, NetApp StorageGRID, some Ceph RGW, old SeaweedFS and MinIO";
const NOT_ATOMIC: &str = "known to check conditions without atomicity: s3s-fs, moto's threaded server";
const MISSING_KEY: &str = "known to accept If-Match on a missing key: MinIO of 2025 (issue 21526)";
const PLAIN: &str = "such a store cannot be used";
const WHAT_TO_DO: &str = "use a store with conditional writes (AWS S3, Cloudflare R2, a current MinIO or \
                          SeaweedFS) or a directory (file:///path)";

/// What a store has shown itself to do. `Display` gives it in words, one line per check.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// What was probed, as shown to people.
    pub store: String,
    /// What was checked, in order.
    pub checks: Vec<Check>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A check that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What holds.
    pub name: &'static str,
    /// What was seen besides; worth knowing, no reason to refuse.
    pub note: Option<String>,
}

/// Why a store is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The store breaks a promise that everything else rests on.
    #[error("store '{store}' is refused: {check}: {observed}; {known}; {WHAT_TO_DO}")]
    Refused {
        /// What was probed, as shown to people.
        store: String,
        /// The promise.
        check: &'static str,
        /// What was seen instead.
        observed: String,
        /// Which stores are known for it.
        known: &'static str,
    },
    /// Requests failed, so that nothing is known.
    #[error("store '{store}' cannot be used now: {problem}; it was to be proven that {check}")]
    Failed {
        /// What was probed, as shown to people.
        store: String,
        /// What was to be checked.
        check: &'static str,
        /// What the requests said, and what to do if that is known.
        problem: String,
    },
    /// The store turns this process away, or cannot be reached, until somebody changes something.
    #[error("store '{store}' cannot be used: {problem}")]
    Unusable {
        /// What was probed, as shown to people.
        store: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// How one try of a check ends if it does not pass.
enum Failure {
    /// The store is wrong: what was seen.
    Broken(String),
    /// A request failed: why.
    Trouble(Reason),
}

type Checked = Result<Option<String>, Failure>;

/// Probes a store. Leaves nothing behind, unless deleting fails.
pub async fn probe(store: &Store) -> Result<ProbeReport, ProbeError> {
    let started = Instant::now();
    let bench = Bench {
        store,
        used: Mutex::default(),
    };
    let probed = tokio::time::timeout(PROBE_TIMEOUT, bench.run()).await;
    bench.clean_up().await;
    let checks = probed.unwrap_or_else(|_| {
        let problem = format!("not done after {PROBE_TIMEOUT:?}");
        Err(ProbeError::Failed {
            store: store.display.clone(),
            check: "it keeps its promises",
            problem,
        })
    })?;
    Ok(ProbeReport {
        store: store.display.clone(),
        checks,
        elapsed: started.elapsed(),
    })
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "store {} keeps its conditions:", self.store)?;
        for check in &self.checks {
            writeln!(f, "  ok    {}", check.name)?;
            if let Some(note) = &check.note {
                writeln!(f, "        note: {note}")?;
            }
        }
        write!(
            f,
            "{} checks in {} ms",
            self.checks.len(),
            self.elapsed.as_millis()
        )
    }
}

/// The keys that the probe works on.
struct Bench<'a> {
    store: &'a Store,
    used: Mutex<Vec<Path>>,
}

impl Bench<'_> {
    /// All checks at once, each on keys of its own: a start does not wait for their sum.
    async fn run(&self) -> Result<Vec<Check>, ProbeError> {
        let mut checks: Vec<BoxFuture<'_, Result<Check, ProbeError>>> = vec![
            // First, so that it is told of first: who may not list hears of missing objects as if he might not read
            // them.
            Box::pin(self.check("a new key is listed", PLAIN, || self.list())),
            Box::pin(self.check("what is written can be read at once", PLAIN, || {
                self.read_after_write()
            })),
            Box::pin(self.check("ranges and suffixes can be read", PLAIN, || self.ranges())),
            Box::pin(self.check(
                "a create over an existing key is refused",
                IGNORES_CONDITIONS,
                || self.create_over_existing(),
            )),
            Box::pin(
                self.check("of many creates of one key, one wins", NOT_ATOMIC, || {
                    self.create_race()
                }),
            ),
            Box::pin(self.check(
                "an update with a stale ETag is refused",
                IGNORES_CONDITIONS,
                || self.stale_update(),
            )),
            Box::pin(
                self.check("an update of a missing key is refused", MISSING_KEY, || {
                    self.update_of_missing()
                }),
            ),
            Box::pin(
                self.check("of many updates from one version, one wins", NOT_ATOMIC, || {
                    self.update_race()
                }),
            ),
            Box::pin(
                self.check("a deleted key is gone and can be created again", PLAIN, || {
                    self.delete()
                }),
            ),
        ];
        // Only a service can deny it.
        if self.store.kind == StoreKind::S3 {
            checks.push(Box::pin(self.check(
                "an upload in parts can be begun and aborted",
                PLAIN,
                || self.abort(),
            )));
        }
        let mut results = join_all(checks).await;
        // What is wrong for certain is told before what only failed, and what waiting does not cure before the rest.
        results.sort_by_key(|result| match result {
            Err(ProbeError::Refused { .. }) => 0,
            Err(ProbeError::Unusable { .. }) => 1,
            _ => 2,
        });
        results.into_iter().collect()
    }

    async fn check<F>(
        &self,
        name: &'static str,
        known: &'static str,
        check: impl Fn() -> F + Send,
    ) -> Result<Check, ProbeError>
    where
        F: Future<Output = Checked> + Send,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match check().await {
                Ok(note) => return Ok(Check { name, note }),
                Err(Failure::Trouble(why)) if tries < TRIES && why.cure == Cure::Wait => {
                    self.pause(tries).await
                }
                Err(failure) => return Err(self.error(name, known, failure)),
            }
        }
    }

    fn error(&self, check: &'static str, known: &'static str, failure: Failure) -> ProbeError {
        let store = self.store.display.clone();
        match failure {
            Failure::Broken(observed) => ProbeError::Refused {
                store,
                check,
                observed,
                known,
            },
            Failure::Trouble(why) => {
                let problem = why.line;
                match why.cure {
                    Cure::Change => ProbeError::Unusable { store, problem },
                    Cure::Wait => ProbeError::Failed {
                        store,
                        check,
                        problem,
                    },
                }
            }
        }
    }

    async fn pause(&self, failures: u32) {
        let pause = self.store.limits.backoff(failures, self.store.random_unit());
        tokio::time::sleep(pause).await;
    }

    async fn clean_up(&self) {
        let used = std::mem::take(&mut *self.used.lock());
        let deletes = used.iter().map(|key| self.store.bulk.delete(key));
        let _ = tokio::time::timeout(self.store.limits.timeout(0), join_all(deletes)).await;
    }

    fn fresh(&self) -> Path {
        let key = self.store.key(&format!("probe/{:016x}", self.store.random_u64()));
        self.used.lock().push(key.clone());
        key
    }

    /// A conditional write: `None` if it was refused.
    async fn put(&self, key: &Path, body: &str, mode: PutMode) -> Result<Option<PutResult>, Failure> {
        let payload = PutPayload::from(body.to_owned());
        let update = matches!(mode, PutMode::Update(_));
        let put = self
            .store
            .conditional
            .put_opts(key, payload, PutOptions::from(mode));
        match tokio::time::timeout(self.store.limits.timeout(body.len() as u64), put).await {
            Ok(Ok(result)) => Ok(Some(result)),
            Ok(Err(Error::AlreadyExists { .. } | Error::Precondition { .. })) => Ok(None),
            Ok(Err(Error::NotFound { .. })) if update => Ok(None),
            Ok(Err(error)) => Err(trouble(&error)),
            Err(_) => odd("a write got no answer"),
        }
    }

    async fn create(&self, key: &Path, body: &str) -> Result<UpdateVersion, Failure> {
        match self.put(key, body, PutMode::Create).await? {
            Some(result) if result.e_tag.is_none() => broken("writes are answered without an ETag"),
            Some(result) => Ok(result.into()),
            // A conflict without anybody to conflict with: an echo of a request that was repeated below.
            None => odd("the create of a fresh key was refused"),
        }
    }

    async fn read(&self, key: &Path) -> Result<Option<Bytes>, Failure> {
        match self.store.bulk.get(key).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|error| trouble(&error))?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(trouble(&error)),
        }
    }

    /// The key must hold one of `bodies`: the one confirmed, if one was.
    async fn settle(&self, key: &Path, bodies: &[String], won: &[usize]) -> Checked {
        if won.len() > 1 {
            return broken(format!(
                "{} of {} concurrent writes were confirmed",
                won.len(),
                bodies.len()
            ));
        }
        let found = self.read(key).await?;
        let found = bodies
            .iter()
            .position(|body| found.as_ref().is_some_and(|found| found == body.as_bytes()));
        match (won.first(), found) {
            (Some(won), Some(found)) if *won == found => Ok(None),
            (Some(_), _) => broken("the key does not hold what was confirmed"),
            (None, _) => odd("no concurrent write was confirmed"),
        }
    }

    /// Concurrent writes of one key under one condition.
    async fn race(&self, key: &Path, mode: PutMode) -> Checked {
        let bodies: Vec<_> = (0..RACERS)
            .map(|racer| format!("racer {racer} of {key}"))
            .collect();
        let puts = bodies.iter().map(|body| self.put(key, body, mode.clone()));
        let answers = join_all(puts).await;
        let won: Vec<_> = (0..RACERS)
            .filter(|&racer| matches!(answers[racer], Ok(Some(_))))
            .collect();
        match answers.into_iter().find_map(Result::err) {
            // A racer whose fate is unknown may have won.
            Some(failure) if won.is_empty() => Err(failure),
            _ => self.settle(key, &bodies, &won).await,
        }
    }

    async fn read_after_write(&self) -> Checked {
        let key = self.fresh();
        self.create(&key, "written").await?;
        match self.read(&key).await? {
            Some(found) if found == "written" => Ok(None),
            Some(_) => broken("other bytes came back"),
            None => broken("the key was not found after its write was confirmed"),
        }
    }

    async fn ranges(&self) -> Checked {
        let key = self.fresh();
        self.create(&key, "0123456789").await?;
        let cases = [
            (GetRange::Bounded(2..5), "234"),
            (GetRange::Bounded(7..1000), "789"),
            (GetRange::Offset(8), "89"),
            (GetRange::Suffix(4), "6789"),
        ];
        for (range, expected) in cases {
            let options = GetOptions::new().with_range(Some(range.clone()));
            let found = self
                .store
                .bulk
                .get_opts(&key, options)
                .await
                .map_err(|error| trouble(&error))?;
            if found.meta.size != 10 {
                return broken(format!(
                    "{range} says that the object has {} bytes instead of 10",
                    found.meta.size
                ));
            }
            if found.bytes().await.map_err(|error| trouble(&error))? != expected {
                return broken(format!("{range} gave other bytes"));
            }
        }
        Ok(None)
    }

    async fn create_over_existing(&self) -> Checked {
        let key = self.fresh();
        self.create(&key, "first").await?;
        if self.put(&key, "second", PutMode::Create).await?.is_some() {
            return broken("it was confirmed");
        }
        match self.read(&key).await? {
            Some(found) if found == "first" => Ok(None),
            _ => broken("it was refused and written all the same"),
        }
    }

    async fn create_race(&self) -> Checked {
        let keys: Vec<_> = (0..RACES).map(|_| self.fresh()).collect();
        let races = keys.iter().map(|key| self.race(key, PutMode::Create));
        worst(join_all(races).await)
    }

    async fn stale_update(&self) -> Checked {
        let key = self.fresh();
        let first = self.create(&key, "one").await?;
        let Some(second) = self.put(&key, "two", PutMode::Update(first.clone())).await? else {
            return odd("an update from the newest version was refused");
        };
        if self
            .put(&key, "three", PutMode::Update(first.clone()))
            .await?
            .is_some()
        {
            return broken("it was confirmed");
        }
        // The same bytes as at first: stores whose ETags are hashes of the content give the same ETag.
        let Some(again) = self
            .put(&key, "one", PutMode::Update(second.clone().into()))
            .await?
        else {
            return odd("an update from the newest version was refused");
        };
        if self
            .put(&key, "four", PutMode::Update(second.into()))
            .await?
            .is_some()
        {
            return broken("it was confirmed");
        }
        match self.read(&key).await? {
            Some(found) if found == "one" => {}
            _ => return broken("it was refused and written all the same"),
        }
        let hashes = again.e_tag == first.e_tag;
        Ok(hashes.then(|| {
            "ETags are content hashes; every version of a changing object holds a fresh id".to_owned()
        }))
    }

    async fn update_of_missing(&self) -> Checked {
        let (key, other) = (self.fresh(), self.fresh());
        let version = self.create(&other, "elsewhere").await?;
        match self.put(&key, "from nothing", PutMode::Update(version)).await {
            Ok(Some(_)) => broken("it was confirmed"),
            Ok(None) => Ok(None),
            Err(failure) => match self.read(&key).await? {
                None => Err(failure),
                Some(_) => broken("it was written"),
            },
        }
    }

    async fn update_race(&self) -> Checked {
        let keys: Vec<_> = (0..RACES).map(|_| self.fresh()).collect();
        let races = keys.iter().map(|key| async move {
            let version = self.create(key, "start").await?;
            self.race(key, PutMode::Update(version)).await
        });
        worst(join_all(races).await)
    }

    async fn delete(&self) -> Checked {
        let key = self.fresh();
        self.create(&key, "to be deleted").await?;
        self.store
            .bulk
            .delete(&key)
            .await
            .map_err(|error| trouble(&error))?;
        if self.read(&key).await?.is_some() {
            return broken("it is still there");
        }
        self.create(&key, "created again").await?;
        Ok(None)
    }

    /// As files of history are uploaded, and as one is given up that fails half-way.
    async fn abort(&self) -> Checked {
        let key = self.fresh();
        let begun = self.store.bulk.put_multipart(&key).await;
        let mut upload = begun.map_err(|error| trouble(&error))?;
        match upload.abort().await {
            // The client repeats it if its answer is lost.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(trouble(&error)),
        }
    }

    async fn list(&self) -> Checked {
        let key = self.fresh();
        self.create(&key, "listed").await?;
        let mut found = self.store.bulk.list(Some(&self.store.key("probe")));
        while let Some(meta) = found.try_next().await.map_err(|error| trouble(&error))? {
            if meta.location == key {
                return Ok(None);
            }
        }
        Ok(Some(
            "it was not listed at once; lists only serve clean-up".to_owned(),
        ))
    }
}

fn broken<T>(observed: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Broken(observed.into()))
}

/// What is wrong for certain counts more than what only failed, and that more than success.
fn worst(mut results: Vec<Checked>) -> Checked {
    results.sort_by_key(|result| match result {
        Err(Failure::Broken(_)) => 0,
        Err(Failure::Trouble(why)) if why.cure == Cure::Change => 1,
        Err(Failure::Trouble(_)) => 2,
        Ok(_) => 3,
    });
    results.into_iter().next().unwrap_or(Ok(None))
}

/// What a failure elsewhere may explain, so that it is tried again.
fn odd<T>(observed: &str) -> Result<T, Failure> {
    Err(Failure::Trouble(Reason {
        line: observed.to_owned(),
        cure: Cure::Wait,
    }))
}

fn trouble(error: &Error) -> Failure {
    Failure::Trouble(Reason::of(error))
}

#[cfg(test)]
mod tests;
