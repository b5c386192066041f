//! Reads from files of history: the format knows how, this says which file, and how many read at once.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use tokio::sync::Semaphore;

use super::ReadError;
use crate::history::{History, Share};
use crate::keys;
use crate::partition::image::StoredRange;
use crate::store::Store;
use crate::{Offset, Partition};

/// Shares that are read ahead at once.
const AHEAD_AT_ONCE: usize = 16;

/// Where readers get what stands in files of history.
#[derive(Debug)]
pub(crate) struct HistoryFiles {
    store: Store,
    format: Option<Arc<dyn History>>,
    /// Like cold reads of other objects: a pool of their own, so that they cannot slow produce.
    at_once: Semaphore,
    /// For what nobody waits for yet.
    ahead: Arc<Semaphore>,
}

/// A range as the format knows it.
pub(crate) fn share_of(partition: i32, r: &StoredRange) -> Share {
    Share {
        partition,
        base_offset: r.base_offset,
        last_offset: r.last_offset,
        first_row: r.position,
        len: r.len,
        max_timestamp: r.max_timestamp,
        append_time_ms: r.append_time_ms,
    }
}

impl HistoryFiles {
    pub(crate) fn new(store: Store, format: Option<Arc<dyn History>>, at_once: usize) -> HistoryFiles {
        HistoryFiles {
            store,
            format,
            at_once: Semaphore::new(at_once.max(1)),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
        }
    }

    /// The key of the file that a range of `partition` stands in.
    pub(crate) fn key(&self, partition: &Partition, r: &StoredRange) -> Path {
        let (incarnation, number) = (r.place.incarnation, r.place.seq);
        let key = keys::archived(partition.topic_name(), partition.topic(), incarnation, number);
        self.store.key(&key)
    }

    fn format(&self, key: &Path) -> Result<&Arc<dyn History>, ReadError> {
        let none = || ReadError::NoHistory(key.to_string());
        self.format.as_ref().ok_or_else(none)
    }

    /// Batches of a range in offset order, from the one that holds `offset` on; see [`History::read`].
    pub(crate) async fn read(
        &self,
        partition: &Partition,
        r: &StoredRange,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        let key = self.key(partition, r);
        let format = self.format(&key)?;
        let _permit = self.permit().await?;
        let share = share_of(partition.index(), r);
        format
            .read(&self.store, &key, &share, offset, max_bytes.max(1))
            .await
    }

    /// Begins to bring the beginning of a range that a reader will want; whether there is room for that.
    pub(crate) fn read_ahead(&self, partition: &Partition, r: &StoredRange) -> bool {
        let key = self.key(partition, r);
        let (Ok(format), Ok(permit)) = (self.format(&key), self.ahead.clone().try_acquire_owned()) else {
            return false;
        };
        let (store, format, share) = (self.store.clone(), format.clone(), share_of(partition.index(), r));
        tokio::spawn(async move {
            // Who needs it will meet the same error and tell it.
            let _ = format.read(&store, &key, &share, share.base_offset, 1).await;
            drop(permit);
        });
        true
    }

    /// See [`History::first_at_or_after`].
    pub(crate) async fn first_at_or_after(
        &self,
        partition: &Partition,
        r: &StoredRange,
        at_least: i64,
        from: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        let key = self.key(partition, r);
        let format = self.format(&key)?;
        let _permit = self.permit().await?;
        let share = share_of(partition.index(), r);
        format
            .first_at_or_after(&self.store, &key, &share, at_least, from)
            .await
    }

    /// Forgets what is remembered of the file that a range stands in.
    pub(crate) async fn forget(&self, partition: &Partition, r: &StoredRange) {
        if let Some(format) = &self.format {
            format.forget(&self.key(partition, r)).await;
        }
    }

    /// Forgets what is remembered of a file that was deleted.
    pub(crate) async fn forget_file(&self, key: &Path) {
        if let Some(format) = &self.format {
            format.forget(key).await;
        }
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, ReadError> {
        let permit = self.at_once.acquire().await;
        permit.map_err(|e| ReadError::Store(e.to_string()))
    }
}
