//! Looks through a whole cluster in its bucket: is everything there that its logs refer to, is it whole, and what is
//! there besides?
//!
//! It rebuilds every log as a broker would that took over from all others now ([`crate::recover`]), so it needs no broker
//! and disturbs none: it only reads. What it finds missing or damaged it looks at once more in what the bucket says
//! then, because a running cluster rewrites and deletes meanwhile; only what is wrong both times is told.
//!
//! **Why looking twice is enough.** Brokers delete what no log refers to, by what is durable ([`crate::garbage`],
//! [`crate::clean`]). If an object is missing, and *then* the newest checkpoint and all that stands behind it are read
//! and still refer to it, it was not deleted by that rule. The same holds for a segment below a floor: the floor is in the
//! head before anything below it goes.
//!
//! [`repair`] deletes what is garbage beyond doubt. It takes no lock, and needs none, because what it deletes is decided
//! by facts that never change back: an object of a stream that has left the manifest's table gets no further pointer,
//! and if no log refers to it under one version of the manifest, none ever will. Objects are listed first, then claims are
//! read, then the manifest is looked at again; if anything could not be read, nothing is deleted. What a running broker
//! has written is left to that broker, which alone knows what it is about to point to.

mod count;
mod listing;
mod objects;
mod repair;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::cluster::ClusterError;
use crate::history::History;
use crate::keys;
use crate::manifest::{DecodeError, Manifest};
use crate::store::Store;
use crate::store::conditional;
use crate::store::reason_of;
pub use count::{Class, Counted, Counts, Kind};
use listing::Listing;
pub use repair::{Repaired, deletable, grace, repair};
use state::State;

/// Looks at most, if things change between them.
const LOOKS: usize = 4;
/// Pause before what was found is looked at again.
const PAUSE: Duration = Duration::from_millis(500);
/// Examples of what is affected that a finding has at most.
const EXAMPLES: usize = 3;

/// How thoroughly to look.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Compare indexes with their checksums, and not the records of which they speak.
    pub fast: bool,
    /// Knows the format of files of history; without it they only have to be there.
    pub history: Option<Arc<dyn History>>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects listed.
    pub listed: u64,
    /// Objects that were looked into, of `objects`.
    pub checked: u64,
    /// Objects that are to be looked into.
    pub objects: u64,
    /// Bytes read of them.
    pub bytes: u64,
}

/// What is wrong with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// The manifest cannot be read.
    Manifest,
    /// A head cannot be read.
    Head,
    /// A checkpoint is missing or damaged that a head names.
    Checkpoint,
    /// A segment, or the seal of a stream, is missing or damaged.
    Segment,
    /// The log of some slots cannot be rebuilt.
    Recovery,
    /// An object is missing that logs refer to.
    Missing,
    /// An object is damaged that logs refer to.
    Damaged,
    /// Offsets that nothing stands for.
    Gap,
    /// Offsets, or bytes of an object, that two things stand for.
    Overlap,
}

impl Wrong {
    /// What can be done.
    fn advice(self) -> &'static str {
        match self {
            Wrong::Manifest => {
                "stop all brokers and put the newest copy back: `alluvium cluster restore-manifest`"
            }
            Wrong::Head | Wrong::Checkpoint | Wrong::Segment | Wrong::Recovery => {
                "put the object back from an earlier version of the bucket, if it keeps any; whoever takes these \
                 partitions over cannot serve them before. A running leader still can: do not stop it, and let \
                 consumers read what is needed elsewhere"
            }
            Wrong::Missing | Wrong::Damaged => {
                "put the object back from an earlier version of the bucket, if it keeps any; otherwise these records are \
                 lost: consumers get an error there, and go on behind it after their offset is moved, or DeleteRecords \
                 up to there"
            }
            Wrong::Gap | Wrong::Overlap => {
                "the index of the partition was changed by something that is no broker: keep a copy of the bucket, and \
                 report it"
            }
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub wrong: Wrong,
    /// The object, by its key below the store's prefix, or the partition.
    pub place: String,
    /// What is wrong with it, without a full stop.
    pub what: String,
    /// How many ranges, slots or partitions are affected.
    pub affected: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

impl Finding {
    fn new(wrong: Wrong, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            wrong,
            place: place.into(),
            what: what.into(),
            affected: 0,
            examples: vec![],
        }
    }

    fn affecting(mut self, affected: impl IntoIterator<Item = String>) -> Finding {
        for one in affected {
            self.affected += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(one);
            }
        }
        self
    }

    /// What can be done about it.
    pub fn advice(&self) -> &'static str {
        self.wrong.advice()
    }

    fn key(&self) -> (Wrong, String) {
        (self.wrong, self.place.clone())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        if !self.examples.is_empty() {
            write!(f, " ({}", self.examples.join("; "))?;
            match self.affected - self.examples.len() as u64 {
                0 => f.write_str(")")?,
                more => write!(f, " and {more} more)")?,
            }
        }
        Ok(())
    }
}

/// What was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The store, as people write it.
    pub store: String,
    /// The cluster, if the manifest could be read.
    pub cluster_id: Option<Uuid>,
    /// Version of the manifest under which it was looked at.
    pub manifest_version: u64,
    /// Whether nothing is wrong.
    pub whole: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is worth knowing, in sentences.
    pub notes: Vec<String>,
    /// Topics.
    pub topics: u64,
    /// Partitions whose logs were rebuilt.
    pub partitions: u64,
    /// Objects that were looked into.
    pub checked_objects: u64,
    /// Bytes that were read of them.
    pub checked_bytes: u64,
    /// Everything that was listed, by kind.
    pub counts: Counts,
    /// Keys that are garbage and may be deleted by anyone.
    #[serde(skip)]
    pub(crate) deletable: Listing,
    /// How many brokers run, as far as the manifest tells.
    pub live_brokers: u64,
    /// The restoration that the manifest comes from, if it does.
    #[serde(skip)]
    pub(crate) restored: Option<Uuid>,
}

/// Why looking cannot go on: the store does not answer.
#[derive(Clone, Debug)]
struct Trouble(String);

impl From<Trouble> for ClusterError {
    fn from(trouble: Trouble) -> ClusterError {
        ClusterError::Refused(trouble.0)
    }
}

/// Looks through everything. The error says why nothing could be found out: no cluster is there, or the store does not
/// answer.
pub async fn check(
    store: &Store,
    options: &FsckOptions,
    progress: &watch::Sender<Progress>,
) -> Result<Report, ClusterError> {
    if manifest(store).await?.is_none() {
        return Err(ClusterError::no_cluster(store));
    }
    // Before anything is read that says what is needed: what comes later is not judged.
    let listed = list(store, progress).await?;
    let looked = look(store, options, progress).await?;
    Ok(report(store, &listed, looked).await?)
}

/// All objects of the store, by their keys below its prefix.
async fn list(store: &Store, progress: &watch::Sender<Progress>) -> Result<Listing, Trouble> {
    let failed = |e: object_store::Error| Trouble(format!("{}: listing: {}", store.display, reason_of(&e)));
    let mut listed = Listing::default();
    let mut listing = store.bulk.list(Some(&store.prefix));
    while let Some(meta) = listing.try_next().await.map_err(failed)? {
        listed.push(store.relative(&meta.location).unwrap_or_default(), meta.size);
        progress.send_modify(|p| p.listed += 1);
    }
    Ok(listed)
}

/// What stands where the manifest should be; the inner error says why it cannot be used.
async fn manifest(store: &Store) -> Result<Option<Result<Manifest, String>>, ClusterError> {
    let found = conditional::read(store, &store.key(keys::MANIFEST)).await;
    let found = found.map_err(|e| ClusterError::Refused(e.to_string()))?;
    let Some(found) = found else {
        let mut copies = store.bulk.list(Some(&store.key(keys::HISTORY)));
        let copy = copies.try_next().await;
        let copy =
            copy.map_err(|e| ClusterError::Refused(format!("{}: {}", store.display, reason_of(&e))))?;
        return Ok(copy.map(|_| Err("it is gone, and copies of it are there".to_owned())));
    };
    match Manifest::decode(&found.bytes) {
        Err(DecodeError::NotForUs(why)) => Err(ClusterError::Refused(format!(
            "{}: {}: {why}",
            store.display,
            keys::MANIFEST
        ))),
        decoded => Ok(Some(decoded.map_err(|why| why.to_string()))),
    }
}

/// What looking came to.
struct Looked {
    /// As it was seen last.
    state: Option<State>,
    findings: Vec<Finding>,
    notes: Vec<String>,
    objects: u64,
    bytes: u64,
    /// Whether the manifest was the same before and after the claims were read.
    steady: bool,
}

/// Looks until nothing is wrong, or the same twice.
async fn look(
    store: &Store,
    options: &FsckOptions,
    progress: &watch::Sender<Progress>,
) -> Result<Looked, ClusterError> {
    let mut objects = objects::Objects::new(options, progress);
    let mut suspected: BTreeMap<(Wrong, String), Finding> = BTreeMap::new();
    let mut looked = Looked {
        state: None,
        findings: vec![],
        notes: vec![],
        objects: 0,
        bytes: 0,
        steady: false,
    };
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let store = &store
            .renewed()
            .await
            .map_err(|e| ClusterError::Refused(e.to_string()))?;
        let manifest = match manifest(store).await? {
            Some(Ok(manifest)) => manifest,
            damaged => {
                let why = damaged.and_then(Result::err);
                let why = why.unwrap_or_else(|| "it is gone".to_owned());
                looked.findings = vec![Finding::new(Wrong::Manifest, keys::MANIFEST, why)];
                return Ok(looked);
            }
        };
        let (state, mut found) = state::read(store, manifest).await?;
        found.extend(objects.check(store, &state, &suspected).await?);
        looked.steady = match self::manifest(store).await? {
            Some(Ok(now)) => now.version == state.manifest.version,
            _ => false,
        };
        looked.state = Some(state);
        let again = |f: &Finding| suspected.contains_key(&f.key());
        let confirmed = found.iter().all(again);
        let sure = confirmed && looked.steady && (look > 0 || found.is_empty());
        if sure || look + 1 == LOOKS {
            let (sure, unsure): (Vec<Finding>, Vec<Finding>) = found.into_iter().partition(again);
            looked.notes.extend(unsure.iter().map(|f| {
                format!("{f}; seen only once, because the cluster changed too fast to look again: look again later")
            }));
            looked.findings = sure;
            break;
        }
        suspected = found.into_iter().map(|f| (f.key(), f)).collect();
    }
    looked.objects = objects.checked;
    looked.bytes = objects.bytes;
    Ok(looked)
}

async fn report(store: &Store, listed: &Listing, looked: Looked) -> Result<Report, Trouble> {
    let Looked {
        state,
        findings,
        mut notes,
        objects,
        bytes,
        steady,
    } = looked;
    let counted = count::count(store, listed, state.as_ref(), steady).await?;
    notes.extend(counted.notes);
    let manifest = state.as_ref().map(|state| &state.manifest);
    Ok(Report {
        store: store.display.clone(),
        cluster_id: manifest.map(|m| m.cluster_id),
        manifest_version: manifest.map_or(0, |m| m.version),
        whole: findings.is_empty(),
        notes,
        topics: manifest.map_or(0, |m| m.topics.len() as u64),
        partitions: state.as_ref().map_or(0, |state| state.images.len() as u64),
        checked_objects: objects,
        checked_bytes: bytes,
        counts: counted.counts,
        // Something wrong may hide what is needed.
        deletable: match findings.is_empty() {
            true => counted.deletable,
            false => Listing::default(),
        },
        live_brokers: manifest.map_or(0, |m| m.live().count() as u64),
        restored: manifest.and_then(|m| m.restored.as_ref()).map(|r| r.commit_id),
        findings,
    })
}

/// Names of slots, as far as they are of any use to a reader.
fn slot_names(slots: &BTreeSet<crate::Slot>) -> Vec<String> {
    slots.iter().map(|slot| format!("slot {slot}")).collect()
}
