//! The one compare-and-swap loop of the manifest, and its numbered copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{GetOptions, UpdateVersion};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{DEFAULT_SLOTS, DecodeError, Manifest};
use crate::Incarnation;
use crate::keys;
use crate::store::conditional::{self, CreateOutcome, Patience, UpdateOutcome, Versioned};
use crate::store::reason_of;
use crate::store::{Store, StoreError};

/// How long one change is tried while the store does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one look at the manifest may take, less than a read lease lasts; the next one comes a second later.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// What can be done about a manifest that is damaged or gone.
const RESTORE: &str = "each version was copied to cluster/history/: stop all brokers, and `alluvium cluster \
                       restore-manifest` puts the newest copy back";

/// Why the manifest could not be read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ManifestError<E> {
    /// The change does not fit the newest version.
    #[error("{0}")]
    Refused(E),
    /// The store does not answer; an earlier attempt may have been applied, or may be later.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// What is stored cannot be used.
    #[error("{0}")]
    Unusable(String),
}

/// The newest manifest that this broker knows, and the way to change it.
///
/// Reads and changes go on beside each other: a change may wait for the store for a minute, and the proof that this broker
/// still owns its stream, which a read is, must not wait for it.
#[derive(Debug)]
pub(crate) struct ManifestKeeper {
    store: Store,
    /// Changed only with `object` locked, so that the two belong together.
    current: watch::Sender<Arc<Manifest>>,
    /// The stored object that holds `current`.
    object: parking_lot::Mutex<UpdateVersion>,
    /// Makes this broker's changes take turns: the outcome of a doubtful one is found by its commit id, and the manifest
    /// holds the newest of each incarnation only.
    changing: Mutex<()>,
    /// Reads that were begun.
    reads_begun: AtomicU64,
    /// Makes reads take turns, so that one serves all who wait; the number of the newest that succeeded.
    reading: Mutex<u64>,
    /// Numbered copies that are being written.
    copying: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl ManifestKeeper {
    /// Reads the manifest, or creates the one of a new cluster.
    pub(crate) async fn open(
        store: Store,
    ) -> Result<ManifestKeeper, ManifestError<std::convert::Infallible>> {
        let key = store.key(keys::MANIFEST);
        loop {
            if let Some(keeper) = ManifestKeeper::existing(&store).await? {
                return Ok(keeper);
            }
            if has_copies(&store).await? {
                // Copies are made after the manifest, so one that was created just now is there by now. A new cluster
                // over the streams of a lost one would mix the two.
                return match ManifestKeeper::existing(&store).await? {
                    Some(keeper) => Ok(keeper),
                    None => Err(ManifestError::Unusable(format!(
                        "{}: {} is gone; {RESTORE}",
                        store.display,
                        keys::MANIFEST
                    ))),
                };
            }
            let commit = Uuid::new_v4();
            let new = Manifest::new(Uuid::new_v4(), commit, DEFAULT_SLOTS);
            tracing::info!(cluster_id = %new.cluster_id, store = %store.display, "creating a new cluster");
            let body = Bytes::from(new.encode());
            let landed = |b: &Bytes| Manifest::decode(b).is_ok_and(|m| m.has_commit(commit));
            match conditional::update(&store, &key, body, None, landed, Patience::For(PATIENCE)).await {
                UpdateOutcome::Committed(_) | UpdateOutcome::Lost(_) => {}
                UpdateOutcome::Unknown(why) => return Err(ManifestError::Unknown(why)),
            }
        }
    }

    /// Reads the manifest of a cluster; `None` if there is none.
    pub(crate) async fn existing(
        store: &Store,
    ) -> Result<Option<ManifestKeeper>, ManifestError<std::convert::Infallible>> {
        let found = conditional::read(store, &store.key(keys::MANIFEST)).await;
        let Some(found) = found.map_err(|e| ManifestError::Unusable(e.to_string()))? else {
            return Ok(None);
        };
        let manifest = decode(store, &found.bytes)?;
        Ok(Some(ManifestKeeper::new(store.clone(), manifest, found.version)))
    }

    fn new(store: Store, manifest: Manifest, object: UpdateVersion) -> ManifestKeeper {
        ManifestKeeper {
            store,
            current: watch::Sender::new(Arc::new(manifest)),
            object: parking_lot::Mutex::new(object),
            changing: Mutex::default(),
            reads_begun: AtomicU64::new(0),
            reading: Mutex::default(),
            copying: parking_lot::Mutex::default(),
        }
    }

    pub(crate) fn current(&self) -> Arc<Manifest> {
        self.current.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Manifest>> {
        self.current.subscribe()
    }

    /// The newest manifest, and the object that holds it.
    fn newest(&self) -> (Arc<Manifest>, UpdateVersion) {
        let object = self.object.lock();
        (self.current(), object.clone())
    }

    /// Changes the manifest. `change` is applied to the newest version, and again to a newer one whenever
    /// another writer was faster; it must be a pure function of the manifest it is given.
    ///
    /// The caller must run this on a task that is not dropped half way.
    pub(crate) async fn change<R, E>(
        &self,
        mut change: impl FnMut(&mut Manifest) -> Result<(R, Option<Incarnation>), E> + Send,
    ) -> Result<R, ManifestError<E>> {
        let key = self.store.key(keys::MANIFEST);
        let _one_at_a_time = self.changing.lock().await;
        let mut looked = false;
        loop {
            let (known, object) = self.newest();
            let mut next = (*known).clone();
            let (result, by) = match change(&mut next) {
                Ok(made) => made,
                Err(refused) => {
                    // What is known here may be out of date, as after a change by another broker a moment ago.
                    if looked || self.look().await.is_err() || self.current().version == known.version {
                        return Err(ManifestError::Refused(refused));
                    }
                    looked = true;
                    continue;
                }
            };
            let commit = Uuid::new_v4();
            next.stamp(by, commit);
            let body = Bytes::from(next.encode());
            let landed = |b: &Bytes| Manifest::decode(b).is_ok_and(|m| m.has_commit(commit));
            let (expected, patience) = (Some(&object), Patience::For(PATIENCE));
            match conditional::update(&self.store, &key, body.clone(), expected, landed, patience).await {
                UpdateOutcome::Committed(now) => {
                    self.keep_copy(next.version, commit, body);
                    self.adopt(&known, now)?;
                    return Ok(result);
                }
                UpdateOutcome::Lost(Some(now)) => self.adopt(&known, now)?,
                UpdateOutcome::Lost(None) => {
                    let what = format!("{key} is gone from {}", self.store.display);
                    return Err(ManifestError::Unusable(what));
                }
                UpdateOutcome::Unknown(why) => return Err(ManifestError::Unknown(why)),
            }
        }
    }

    /// Makes sure that the manifest was read from the store after this call began (one read serves all who
    /// wait). A leader does this before it says something that clients act on for good.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        match self.look().await {
            Ok(()) => {
                self.store.look_succeeded();
                Ok(())
            }
            Err(problem) => {
                self.store.look_failed(&problem);
                Err(StoreError::Unusable {
                    store: self.store.display.clone(),
                    problem,
                })
            }
        }
    }

    /// As [`ManifestKeeper::refresh`], and tells nobody; the error is one sentence.
    async fn look(&self) -> Result<(), String> {
        // Numbers, and not times, which may be the same for what came one after the other.
        let before = self.reads_begun.load(Ordering::Acquire);
        let mut succeeded = self.reading.lock().await;
        if *succeeded > before {
            return Ok(());
        }
        let number = self.reads_begun.fetch_add(1, Ordering::AcqRel) + 1;
        self.read().await?;
        *succeeded = number;
        Ok(())
    }

    /// Takes over what the store has if that is newer; the error is one sentence.
    async fn read(&self) -> Result<(), String> {
        let key = self.store.key(keys::MANIFEST);
        let (known, object) = self.newest();
        let options = GetOptions {
            if_none_match: object.e_tag,
            ..GetOptions::default()
        };
        let read = async {
            let got = self.store.bulk.get_opts(&key, options).await?;
            let version = UpdateVersion {
                e_tag: got.meta.e_tag.clone(),
                version: got.meta.version.clone(),
            };
            Ok((version, got.bytes().await?))
        };
        // Everybody waits for this one: a lost answer must not hold them up for as long as a bulk read may take.
        let Ok(read) = tokio::time::timeout(LOOK_TIMEOUT, read).await else {
            return Err(format!("no answer within {LOOK_TIMEOUT:?}"));
        };
        let (version, bytes) = match read {
            Err(object_store::Error::NotModified { .. }) => return Ok(()),
            Err(object_store::Error::NotFound { .. }) => return Err(format!("{key} is gone")),
            Err(e) => return Err(reason_of(&e)),
            Ok(read) => read,
        };
        self.adopt::<std::convert::Infallible>(&known, Versioned { bytes, version })
            .map_err(|e| e.to_string())
    }

    /// Takes over what a read or a change found in the store that began when `known` was in use.
    fn adopt<E>(&self, known: &Manifest, found: Versioned) -> Result<(), ManifestError<E>> {
        let manifest = decode(&self.store, &found.bytes)?;
        if manifest.cluster_id != known.cluster_id {
            let what = format!(
                "the manifest now belongs to cluster {}, it was {}",
                manifest.cluster_id, known.cluster_id
            );
            return Err(ManifestError::Unusable(what));
        }
        // Versions only grow. One that is smaller than what was known when the store was asked was put there by hand, and
        // building on what is known here would undo it.
        if manifest.version < known.version {
            let what = format!(
                "the manifest went back from version {} to {}; restart this broker if that was meant",
                known.version, manifest.version
            );
            return Err(ManifestError::Unusable(what));
        }
        let mut object = self.object.lock();
        // Another request was made later, or answered faster: what that one found is newer.
        if manifest.version < self.current().version {
            return Ok(());
        }
        // Only now: with the object of a manifest that is not taken, the next change would overwrite it.
        *object = found.version;
        self.current.send_if_modified(|current| {
            let newer = manifest.version > current.version;
            if newer {
                *current = Arc::new(manifest);
            }
            newer
        });
        Ok(())
    }

    fn keep_copy(&self, version: u64, commit: Uuid, body: Bytes) {
        let store = self.store.clone();
        let copying = tokio::spawn(async move { keep_copy(&store, version, commit, body).await });
        let mut tasks = self.copying.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(copying);
    }

    /// Waits until the numbered copies of this keeper's changes are written, or given up. Who ends the process does
    /// this first.
    pub(crate) async fn copies_kept(&self) {
        let tasks = std::mem::take(&mut *self.copying.lock());
        for task in tasks {
            // A copy that could not be kept was told of; the change itself stands.
            let _ = task.await;
        }
    }
}

/// Keeps the numbered copy of a version.
pub(crate) async fn keep_copy(store: &Store, version: u64, commit: Uuid, body: Bytes) {
    let key = store.key(&keys::manifest_copy(version));
    // Only the winner of a version writes its copy, so what is there is ours.
    let patience = Patience::For(PATIENCE);
    let outcome = conditional::create(store, &key, body.into(), |_| true, patience).await;
    if let CreateOutcome::Unknown(why) = outcome {
        tracing::warn!(%key, %commit, why, "no numbered copy of the manifest was kept");
    }
}

/// Whether there are copies of a manifest. A hint against harm, so LIST will do.
async fn has_copies<E>(store: &Store) -> Result<bool, ManifestError<E>> {
    let mut listed = store.bulk.list(Some(&store.key(keys::HISTORY)));
    let first = listed.try_next().await;
    first
        .map(|first| first.is_some())
        .map_err(|e| ManifestError::Unusable(format!("{}: {}", store.display, reason_of(&e))))
}

fn decode<E>(store: &Store, bytes: &[u8]) -> Result<Manifest, ManifestError<E>> {
    Manifest::decode(bytes).map_err(|e| {
        let mut what = format!("{}: {}: {e}", store.display, keys::MANIFEST);
        if let DecodeError::Damaged(_) = e {
            what.push_str(&format!("; {RESTORE}"));
        }
        ManifestError::Unusable(what)
    })
}

#[cfg(test)]
mod tests;
