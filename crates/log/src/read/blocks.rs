//! Bytes of stored ranges: from the tail, from the block cache, or by ranged GETs from the store.
//!
//! Cold reads have a bounded pool of their own and cannot evict the tail. One GET serves all who wait for the
//! same block.

use std::sync::Arc;

use bytes::Bytes;
use moka::future::Cache;
use object_store::{GetOptions, GetRange};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::ReadError;
use super::ahead::{ReadAhead, Windows};
use super::history::HistoryFiles;
use super::inflow::Inflow;
use super::tail::TailRing;
use crate::TopicPartition;
use crate::entry::Place;
use crate::history::History;
use crate::keys;
use crate::metrics::LogMetrics;
use crate::partition::image::StoredRange;
use crate::store::Store;
use crate::store::reason_of;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;
/// Blocks that a reader who was seen going on gets ahead first, and those that one reader gets at most.
const FIRST_WINDOW: usize = 8;
const WINDOW_MAX: usize = 32;
/// An object that is up to this part of the cache is kept when it is written.
const KEPT_SHARE: u64 = 16;

/// Where readers get bytes.
#[derive(Debug)]
pub(crate) struct Blocks {
    store: Store,
    pub(crate) tail: Mutex<TailRing>,
    cache: Cache<BlockId, Bytes>,
    cache_bytes: u64,
    inflow: Inflow,
    cold: Semaphore,
    /// What stands in no object that has blocks.
    pub(crate) history: HistoryFiles,
    pub(crate) ahead: Mutex<ReadAhead<TopicPartition>>,
    /// Fewer than `cold`, so that reading ahead never makes somebody wait who waits already.
    ahead_permits: Arc<Semaphore>,
    metrics: LogMetrics,
}

/// A block of a segment or merged object.
pub(crate) type BlockId = (Place, u64);

/// The blocks that a range lies in.
pub(crate) fn blocks_of(r: &StoredRange) -> impl Iterator<Item = BlockId> + use<> {
    let (place, from) = (r.place, u64::from(r.position));
    let to = from + u64::from(r.len).max(1);
    (from / BLOCK..=(to - 1) / BLOCK).map(move |n| (place, n))
}

impl Blocks {
    pub(crate) fn new(
        store: Store,
        tail: TailRing,
        cache_bytes: u64,
        read_concurrency: usize,
        history: Option<Arc<dyn History>>,
        metrics: LogMetrics,
    ) -> Blocks {
        let cache = Cache::builder()
            .max_capacity(cache_bytes)
            // Recency, not frequency: a replay reads each block once, and the newest are the next to be read.
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .weigher(|_, block: &Bytes| u32::try_from(block.len()).unwrap_or(u32::MAX))
            .build();
        Blocks {
            history: HistoryFiles::new(store.clone(), history, read_concurrency),
            store,
            tail: Mutex::new(tail),
            cache,
            cache_bytes,
            inflow: Inflow::of_cache(cache_bytes),
            cold: Semaphore::new(read_concurrency.max(1)),
            ahead: Mutex::new(ReadAhead::new(Windows {
                first: FIRST_WINDOW,
                max: WINDOW_MAX,
                budget: (cache_bytes / 2 / BLOCK) as usize,
            })),
            ahead_permits: Arc::new(Semaphore::new(read_concurrency * 3 / 4)),
            metrics,
        }
    }

    /// The bytes of a range of a segment or merged object, and whether they came from the store and must be verified.
    pub(crate) async fn range(&self, r: &StoredRange) -> Result<(Vec<Bytes>, bool), ReadError> {
        if r.len == 0 {
            // Compaction has left no record of it.
            return Ok((vec![], true));
        }
        let (from, to) = (u64::from(r.position), u64::from(r.position) + u64::from(r.len));
        let newest = self.tail.lock().get(r.place);
        if let Some(segment) = newest {
            self.metrics.tail_reads.inc();
            return Ok((segment.slice(from, to), false));
        }
        let reads = blocks_of(r).map(|id| async move { self.block(id).await.map(|b| (id.1 * BLOCK, b)) });
        let blocks = futures::future::try_join_all(reads).await?;
        self.metrics
            .cache_bytes
            .set(i64::try_from(self.cache.weighted_size()).unwrap_or(i64::MAX));
        let mut chunks = Vec::with_capacity(blocks.len());
        for (at, block) in blocks {
            let start = from.saturating_sub(at) as usize;
            let end = ((to - at) as usize).min(block.len());
            if start > end {
                return Err(ReadError::Corrupt(format!(
                    "{} is shorter than its index says",
                    keys::place(r.place)
                )));
            }
            chunks.push(block.slice(start..end));
        }
        if chunks.iter().map(Bytes::len).sum::<usize>() as u64 != to - from {
            return Err(ReadError::Corrupt(format!(
                "{} is shorter than its index says",
                keys::place(r.place)
            )));
        }
        Ok((chunks, true))
    }

    /// Begins to bring blocks that are not there, as far as there is room; returns how many it went through.
    pub(crate) fn read_ahead(self: &Arc<Blocks>, blocks: impl IntoIterator<Item = BlockId>) -> usize {
        let mut passed = 0;
        for id in blocks {
            if !self.cache.contains_key(&id) {
                let Ok(permit) = Arc::clone(&self.ahead_permits).try_acquire_owned() else {
                    break;
                };
                self.metrics.blocks_ahead.inc();
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    // Who needs the block will meet the same error and tell it.
                    let _ = this.block(id).await;
                    drop(permit);
                });
            }
            passed += 1;
        }
        passed
    }

    /// Puts a new object into the cache whose data was in memory until now under another key. A large one would drive
    /// out what others need.
    pub(crate) async fn keep(&self, place: Place, object: &Bytes) {
        if object.len() as u64 > self.cache_bytes / KEPT_SHARE {
            return;
        }
        for (n, block) in object.chunks(BLOCK as usize).enumerate() {
            // A copy: a block must not hold all others.
            let block = Bytes::copy_from_slice(block);
            let len = block.len() as u64;
            self.cache.insert((place, n as u64), block).await;
            self.came_in(len).await;
        }
    }

    /// Whether a range is not in memory for sure.
    pub(crate) fn is_cold(&self, r: &StoredRange) -> bool {
        !self.tail.lock().holds(r.place)
    }

    async fn block(&self, key: BlockId) -> Result<Bytes, ReadError> {
        let (place, n) = key;
        if let Some(block) = self.cache.get(&key).await {
            self.metrics.cache_hits.inc();
            return Ok(block);
        }
        let read = async {
            self.metrics.cache_misses.inc();
            let _permit = self
                .cold
                .acquire()
                .await
                .map_err(|e| ReadError::Store(e.to_string()))?;
            self.get(place, n).await
        };
        let brought = self.cache.entry(key).or_try_insert_with(read).await;
        let entry = brought.map_err(|e: Arc<ReadError>| (*e).clone())?;
        if entry.is_fresh() {
            self.came_in(entry.value().len() as u64).await;
        }
        Ok(entry.into_value())
    }

    async fn came_in(&self, bytes: u64) {
        if self.inflow.add(bytes) {
            self.cache.run_pending_tasks().await;
        }
    }

    async fn get(&self, place: Place, n: u64) -> Result<Bytes, ReadError> {
        let key = self.store.key(&keys::place(place));
        let range = Some(GetRange::Bounded(n * BLOCK..(n + 1) * BLOCK));
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let got = async { self.store.bulk.get_opts(&key, options).await?.bytes().await };
        match got.await {
            Ok(bytes) => Ok(bytes),
            Err(object_store::Error::NotFound { .. }) => Err(ReadError::Missing(key.to_string())),
            Err(e) => Err(ReadError::Store(reason_of(&e))),
        }
    }

    /// Drops what the cache holds of a range: its checksum did not match.
    pub(crate) async fn forget(&self, r: &StoredRange) {
        self.metrics.corrupt_reads.inc();
        for id in blocks_of(r) {
            self.cache.invalidate(&id).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;
    use crate::store::StoreOptions;

    #[tokio::test]
    async fn what_is_cached_stays_near_its_size_however_fast_it_comes() {
        let store = Store::open("memory://", StoreOptions::default()).await.unwrap();
        let place = Place::l1(1, 1);
        let object = Bytes::from(vec![7; 40 * BLOCK as usize]);
        let key = store.key(&keys::place(place));
        store.bulk.put(&key, object.into()).await.unwrap();
        let cache_bytes = 4 * BLOCK;
        let metrics = LogMetrics::register(&mut prometheus_client::registry::Registry::default());
        let blocks = Blocks::new(store, TailRing::new(1, 0), cache_bytes, 4, None, metrics);
        for n in 0..40 {
            assert_eq!(blocks.block((place, n)).await.unwrap().len() as u64, BLOCK);
            let held: usize = blocks.cache.iter().map(|(_, block)| block.len()).sum();
            let most = cache_bytes + blocks.inflow.excess_max() + BLOCK;
            assert!(held as u64 <= most, "{held} after {n}");
        }
        assert!(blocks.cache.contains_key(&(place, 39)), "the newest is there");
    }
}
