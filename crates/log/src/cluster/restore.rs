//! Puts a numbered copy of the manifest in the place of a damaged or lost one.
//!
//! A copy is written after each change, so the newest is most often the manifest itself. What makes a restoration
//! safe: no broker runs meanwhile ([`watch`]); the version lies above all that any broker has applied, and the next
//! incarnation above all that ever owned a stream, so that neither comes a second time; what stood there is kept; and
//! the write is a compare-and-swap from what was looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::UpdateVersion;
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::ClusterError;
use crate::head::Head;
use crate::manifest::keeper::keep_copy;
use crate::manifest::{DecodeError, Manifest, Restored};
use crate::store::Store;
use crate::store::conditional::{self, CreateOutcome, Patience, UpdateOutcome};
use crate::store::reason_of;
use crate::{Incarnation, keys};

/// How long heads are watched: a running broker writes its head at least every 30 s.
pub const WATCH: Duration = Duration::from_secs(35);
/// How often.
const LOOK: Duration = Duration::from_secs(1);
/// How long a write is tried while the store does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Incarnations left out on top of those that are known: a broker that had registered and written nothing is known
/// only to the versions that were lost, and its number must not come again.
const LEFT_OUT: u64 = 1_000;

/// What stands where the manifest should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Present {
    /// Nothing.
    Missing,
    /// Something that cannot be read, for the reason given.
    Damaged(String),
    /// A manifest of this version.
    Whole(u64),
}

/// What was found in the bucket.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where the manifest should be.
    pub present: Present,
    at: Option<conditional::Versioned>,
    /// Versions of which there is a copy, newest first.
    pub copies: Vec<u64>,
    /// Incarnations that have a stream.
    pub streams: Vec<Incarnation>,
}

/// A restoration that can be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it replaces.
    pub present: Present,
    /// The copy that is put back.
    pub copy: Manifest,
    /// Newer copies that cannot be read, with the reason.
    pub unreadable: Vec<(String, String)>,
    /// Newest version that a broker is known to have applied, or that has a copy.
    pub newest_known: u64,
    /// Streams of which the copy knows nothing: what was acknowledged in them will not be found.
    pub unknown_streams: Vec<Incarnation>,
    /// What will be written, but for its commit id.
    pub restored: Manifest,
    heads: BTreeMap<Incarnation, Option<Uuid>>,
    at: Option<conditional::Versioned>,
}

impl Plan {
    /// Versions whose changes are lost.
    pub fn lost_versions(&self) -> Option<std::ops::RangeInclusive<u64>> {
        (self.newest_known > self.copy.version).then_some(self.copy.version + 1..=self.newest_known)
    }

    /// Streams whose owners may be running.
    pub fn watched(&self) -> usize {
        self.heads.len()
    }
}

fn refused<T>(why: String) -> Result<T, ClusterError> {
    Err(ClusterError::Refused(why))
}

fn failed(store: &Store, what: &str, error: &object_store::Error) -> ClusterError {
    ClusterError::Refused(format!("{}: {what}: {}", store.display, reason_of(error)))
}

/// Looks at what there is.
pub async fn find(store: &Store) -> Result<Found, ClusterError> {
    let at = conditional::read(store, &store.key(keys::MANIFEST)).await;
    let at = at.map_err(|e| ClusterError::Refused(e.to_string()))?;
    let present = match at.as_ref().map(|at| Manifest::decode(&at.bytes)) {
        None => Present::Missing,
        Some(Ok(manifest)) => Present::Whole(manifest.version),
        Some(Err(why @ DecodeError::Damaged(_))) => Present::Damaged(why.to_string()),
        // It says itself that it is not for this build: a newer one may find it in order.
        Some(Err(DecodeError::NotForUs(why))) => {
            return refused(format!(
                "{}: {}: {why}; nothing is restored over it",
                store.display,
                keys::MANIFEST
            ));
        }
    };
    let mut copies = vec![];
    let mut list = store.bulk.list(Some(&store.key(keys::HISTORY)));
    while let Some(copy) = list
        .try_next()
        .await
        .map_err(|e| failed(store, "listing copies", &e))?
    {
        copies.extend(copy.location.filename().and_then(keys::copied_version));
    }
    copies.sort_unstable_by(|a, b| b.cmp(a));
    let folders = store
        .bulk
        .list_with_delimiter(Some(&store.key(keys::STREAMS)))
        .await;
    let folders = folders.map_err(|e| failed(store, "listing streams", &e))?;
    let streams = folders.common_prefixes.iter();
    let mut streams: Vec<Incarnation> = streams
        .filter_map(|f| f.filename().and_then(keys::stream_of))
        .collect();
    streams.sort_unstable();
    Ok(Found {
        present,
        at,
        copies,
        streams,
    })
}

/// Finds the copy to put back (the newest that can be read, or that of `version`), and what would be lost.
pub async fn plan(
    store: &Store,
    found: &Found,
    version: Option<u64>,
    force: bool,
) -> Result<Plan, ClusterError> {
    if let (Present::Whole(version), false) = (&found.present, force) {
        return refused(format!(
            "{}: the manifest is whole (version {version}), so there is nothing to restore",
            store.display
        ));
    }
    let (copy, unreadable) = choose(store, found, version).await?;
    let mut heads = BTreeMap::new();
    let mut applied = 0;
    let unknown_streams = unknown(&copy, &found.streams);
    let live = copy.live().map(|(incarnation, _)| incarnation);
    for incarnation in live.chain(unknown_streams.iter().copied()) {
        let head = head(store, copy.cluster_id, incarnation).await?;
        applied = applied.max(head.as_ref().map_or(0, |head| head.manifest_version));
        heads.insert(incarnation, head.map(|head| head.commit_id));
    }
    let present = match found.present {
        Present::Whole(version) => version,
        Present::Missing | Present::Damaged(_) => 0,
    };
    let newest_known = [
        copy.version,
        applied,
        present,
        found.copies.first().copied().unwrap_or(0),
    ];
    let newest_known = newest_known.into_iter().max().unwrap_or(0);
    let newest_stream = found.streams.last().copied().unwrap_or(0);
    Ok(Plan {
        present: found.present.clone(),
        restored: restored(&copy, newest_known, newest_stream),
        unreadable,
        newest_known,
        unknown_streams,
        copy,
        heads,
        at: found.at.clone(),
    })
}

/// Streams of which a copy knows nothing. Older ones that it does not list were drained before it was written.
fn unknown(copy: &Manifest, streams: &[Incarnation]) -> Vec<Incarnation> {
    let newer = streams.iter().copied();
    newer
        .filter(|incarnation| *incarnation >= copy.next_incarnation)
        .collect()
}

/// The copy as the next version, but for its commit id.
fn restored(copy: &Manifest, newest_known: u64, newest_stream: Incarnation) -> Manifest {
    let mut restored = copy.clone();
    // The stamp makes it one higher.
    restored.version = newest_known;
    restored.next_incarnation = copy.next_incarnation.max(newest_stream + 1) + LEFT_OUT;
    restored
}

async fn choose(
    store: &Store,
    found: &Found,
    version: Option<u64>,
) -> Result<(Manifest, Vec<(String, String)>), ClusterError> {
    let wanted: Vec<u64> = match version {
        Some(version) => vec![version],
        None => found.copies.clone(),
    };
    let mut unreadable = vec![];
    for version in wanted {
        match copy(store, version).await? {
            Ok(copy) => return Ok((copy, unreadable)),
            Err(why) => unreadable.push((keys::manifest_copy(version), why)),
        }
    }
    let (display, what) = (&store.display, keys::HISTORY);
    match unreadable.first() {
        None => refused(format!("{display}: there is no copy of a manifest below {what}")),
        Some((key, why)) if version.is_some() => refused(format!("{display}: {key}: {why}")),
        Some((key, why)) => refused(format!(
            "{display}: none of the {} copies below {what} can be read; the newest, {key}: {why}",
            unreadable.len()
        )),
    }
}

/// A copy; the inner error says why it cannot be used.
async fn copy(store: &Store, version: u64) -> Result<Result<Manifest, String>, ClusterError> {
    let key = store.key(&keys::manifest_copy(version));
    let read = conditional::read(store, &key).await;
    let Some(found) = read.map_err(|e| ClusterError::Refused(e.to_string()))? else {
        return Ok(Err("there is no such copy".to_owned()));
    };
    Ok(match Manifest::decode(&found.bytes) {
        Ok(copy) if copy.version == version => Ok(copy),
        Ok(copy) => Err(format!("it holds version {}", copy.version)),
        Err(why) => Err(why.to_string()),
    })
}

/// A head; one that cannot be read counts as none, for it tells nothing.
async fn head(store: &Store, cluster: Uuid, incarnation: Incarnation) -> Result<Option<Head>, ClusterError> {
    let read = conditional::read(store, &store.key(&keys::head(incarnation))).await;
    let found = read.map_err(|e| ClusterError::Refused(e.to_string()))?;
    Ok(found.and_then(|found| Head::decode(&found.bytes, cluster, incarnation).ok()))
}

/// Watches the heads of all streams that may have an owner, and refuses as soon as one moves: that broker runs.
pub async fn watch(store: &Store, plan: &Plan, patience: Duration) -> Result<(), ClusterError> {
    let deadline = Instant::now() + patience;
    while !plan.heads.is_empty() {
        for (incarnation, before) in &plan.heads {
            let now = head(store, plan.copy.cluster_id, *incarnation).await?;
            if now.map(|head| head.commit_id) != *before {
                let stream = plan.copy.streams.get(incarnation);
                let who = stream.map_or_else(String::new, |s| format!("broker {}, ", s.node_id));
                return refused(format!(
                    "{}: a broker is running ({who}incarnation {incarnation} has just written its head); stop all \
                     brokers first",
                    store.display
                ));
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Makes the restoration and returns the version that was written. What stood there is kept below
/// `cluster/replaced/`.
pub async fn restore(store: &Store, plan: &Plan) -> Result<u64, ClusterError> {
    let commit = Uuid::new_v4();
    if let Some(at) = &plan.at {
        let key = store.key(&keys::replaced_manifest(commit));
        // The key holds the commit id, so whatever is there is ours.
        let patience = Patience::For(PATIENCE);
        let kept = conditional::create(store, &key, at.bytes.clone().into(), |_| true, patience).await;
        if let CreateOutcome::Unknown(why) = kept {
            return refused(format!(
                "{}: what stands there could not be kept, and nothing was restored: {why}",
                store.display
            ));
        }
    }
    let mut next = plan.restored.clone();
    let mut unknown_streams = next.restored.map(|r| r.unknown_streams).unwrap_or_default();
    unknown_streams.extend(&plan.unknown_streams);
    next.restored = Some(Restored {
        from_version: plan.copy.version,
        commit_id: commit,
        unknown_streams,
    });
    next.stamp(None, commit);
    let body = Bytes::from(next.encode());
    let landed = |found: &Bytes| {
        Manifest::decode(found).is_ok_and(|m| m.restored.is_some_and(|restored| restored.commit_id == commit))
    };
    let key = store.key(keys::MANIFEST);
    let expected: Option<&UpdateVersion> = plan.at.as_ref().map(|at| &at.version);
    let patience = Patience::For(PATIENCE);
    match conditional::update(store, &key, body.clone(), expected, landed, patience).await {
        UpdateOutcome::Committed(_) => {
            keep_copy(store, next.version, commit, body).await;
            Ok(next.version)
        }
        UpdateOutcome::Lost(_) => refused(format!(
            "{}: the manifest was changed meanwhile, and nothing was restored; look at it again",
            store.display
        )),
        UpdateOutcome::Unknown(why) => Err(ClusterError::Unknown(why)),
    }
}
