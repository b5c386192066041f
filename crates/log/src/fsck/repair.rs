//! Deletes what is garbage beyond doubt; see the module's documentation for why that needs no lock.

use std::time::Duration;

use futures::{StreamExt, stream};
use hashbrown::HashMap;
use object_store::path::Path;
use serde::Serialize;

use super::{Report, manifest};
use crate::cluster::ClusterError;
use crate::store::reason_of;
use crate::store::{Store, StoreKind};

/// Readers of running brokers that planned a read before get so long to finish it, as brokers give each other.
const GRACE: Duration = Duration::from_secs(60);
/// Objects that are deleted in one request.
const BATCH: usize = 1_000;

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Objects that [`repair`] would delete, and their bytes.
pub fn deletable(report: &Report) -> Repaired {
    Repaired {
        objects: report.deletable.len() as u64,
        bytes: report.deletable.total_size(),
    }
}

/// How long [`repair`] waits before it deletes.
pub fn grace(store: &Store, report: &Report) -> Duration {
    match store.kind == StoreKind::S3 && report.live_brokers > 0 {
        true => GRACE,
        false => Duration::ZERO,
    }
}

/// Deletes what a look has found to be nobody's. Refuses as long as anything is wrong.
pub async fn repair(store: &Store, report: &Report) -> Result<Repaired, ClusterError> {
    if !report.whole {
        return Err(ClusterError::Refused(format!(
            "{}: nothing is deleted as long as something is wrong: what is damaged may hide what is needed",
            store.display
        )));
    }
    if report.deletable.is_empty() {
        return Ok(Repaired::default());
    }
    tokio::time::sleep(grace(store, report)).await;
    // What was found stays true, unless somebody has put an older manifest back.
    let now = manifest(store).await?.and_then(Result::ok);
    let same = now.is_some_and(|now| {
        let restored = now.restored.map(|r| r.commit_id);
        (Some(now.cluster_id), restored) == (report.cluster_id, report.restored)
            && now.version >= report.manifest_version
    });
    if !same {
        return Err(ClusterError::Refused(format!(
            "{}: the manifest was replaced meanwhile; nothing was deleted",
            store.display
        )));
    }
    let mut repaired = Repaired::default();
    let mut deletable = report.deletable.iter();
    loop {
        let batch = deletable.by_ref().take(BATCH);
        let batch: HashMap<Path, u64> = batch.map(|(key, size)| (store.key(&key), size)).collect();
        if batch.is_empty() {
            break;
        }
        let keys: Vec<_> = batch.keys().cloned().map(Ok).collect();
        let mut answers = store.bulk.delete_stream(stream::iter(keys).boxed());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(key) => {
                    repaired.objects += 1;
                    repaired.bytes += batch.get(&key).copied().unwrap_or(0);
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => {
                    return Err(ClusterError::Refused(format!(
                        "{}: deleting: {}; {} objects are deleted, and the rest is found again",
                        store.display,
                        reason_of(&e),
                        repaired.objects
                    )));
                }
            }
        }
    }
    Ok(repaired)
}
