//! Reads files: the effects around [`decode`](crate::decode) and [`rebuild`](crate::rebuild).
//!
//! A file's end is read once and remembered. Rows are read in portions, which are rebuilt on threads of their own, kept
//! as batches for other readers, and brought ahead of a reader who goes on.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use alluvium_log::format::FormatError;
use alluvium_log::history::Share;
use alluvium_log::read::ahead::{ReadAhead, Reader, Windows};
use alluvium_log::read::inflow::Inflow;
use alluvium_log::store::{Store, reason_of};
use alluvium_log::worker::Workers;
use alluvium_log::{Offset, ReadError};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::ParquetOptions;
use crate::decode::{Decoder, Fetched, ranges, ranges_of};
use crate::file::{FileMeta, Group};
use crate::metrics::HistoryMetrics;
use crate::rebuild::{Rebuilt, rebuild};
use crate::schema::Column;
use crate::seek::{FileShare, Portion, TailOrMore, open};

/// A suffix GET of this many bytes holds the end of most files.
const TAIL_GUESS: u64 = 128 * 1024;
/// GETs that the end of a file takes at most: for a guess, for the trailer, for all of it.
const TAIL_GETS_MAX: usize = 3;
/// Portions that one read brings side by side, and in all.
const PORTIONS_AT_ONCE: usize = 8;
const PORTIONS_PER_READ: usize = 64;
/// Bytes of records for which one permit is taken to bring a portion. A small one takes one all the same: it is as many requests.
const PERMIT_BYTES: u64 = 512 * 1024;
/// How far threads that decode stand back: who produces and who reads the newest goes first, but consumers wait for them.
const NICE: i32 = 5;

/// A portion, by its file and its number there.
type PortionId = (Path, u32);
/// A partition, by the directory of its topic's files.
type Directory = (String, i32);

/// Rebuilt batches in offset order.
type Batches = Arc<Vec<Rebuilt>>;

/// Where readers get history.
pub(crate) struct Files {
    options: ParquetOptions,
    metrics: HistoryMetrics,
    files: Cache<Path, Arc<FileMeta>>,
    portions: Cache<PortionId, Batches>,
    /// Into the cache of portions.
    inflow: Inflow,
    /// In units of [`PERMIT_BYTES`] of records.
    fetching: Arc<Semaphore>,
    decoding: Workers,
    /// Fewer than `fetching`, so that reading ahead never makes somebody wait who waits already.
    ahead_permits: Arc<Semaphore>,
    ahead: Mutex<ReadAhead<Directory>>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Permits to bring so many bytes of records.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES))
        .unwrap_or(u32::MAX)
        .max(1)
}

fn corrupt(key: &Path, what: impl fmt::Display) -> ReadError {
    ReadError::Corrupt(format!("{key}: {what}"))
}

fn of_store(key: &Path, error: &object_store::Error) -> ReadError {
    match error {
        object_store::Error::NotFound { .. } => ReadError::Missing(key.to_string()),
        error => ReadError::Store(reason_of(error)),
    }
}

impl Files {
    pub(crate) fn new(options: ParquetOptions, metrics: HistoryMetrics) -> io::Result<Files> {
        let lru = EvictionPolicy::lru;
        Ok(Files {
            files: Cache::builder()
                .max_capacity(options.metadata_cache_bytes)
                .eviction_policy(lru())
                .weigher(|key: &Path, file: &Arc<FileMeta>| weight(file.memory() + key.as_ref().len()))
                .build(),
            // Recency, not frequency: a replay reads each portion once, and the newest are the next to be read.
            portions: Cache::builder()
                .max_capacity(options.portion_cache_bytes)
                .eviction_policy(lru())
                .weigher(|(key, _): &PortionId, batches: &Batches| {
                    let bytes: usize = batches.iter().map(|b| b.bytes.len() + size_of::<Rebuilt>()).sum();
                    weight(bytes + key.as_ref().len())
                })
                .build(),
            inflow: Inflow::of_cache(options.portion_cache_bytes),
            fetching: Arc::new(Semaphore::new(permits(options.fetch_bytes) as usize)),
            decoding: match options.own_threads {
                true => Workers::start("history", options.decode_threads, NICE)?,
                false => Workers::in_place(),
            },
            ahead_permits: Arc::new(Semaphore::new(permits(options.fetch_bytes / 4 * 3) as usize)),
            ahead: Mutex::new(ReadAhead::new(Windows {
                first: (options.portion_bytes as usize * 2).min(options.read_ahead_bytes),
                max: options.read_ahead_bytes,
                budget: (options.portion_cache_bytes / 2) as usize,
            })),
            options,
            metrics,
        })
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &HistoryMetrics {
        &self.metrics
    }

    /// Batches of a share from the one that holds `offset` on.
    pub(crate) async fn read(
        self: &Arc<Files>,
        store: &Store,
        key: &Path,
        share: &Share,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        self.metrics.reads.inc();
        if offset > share.last_offset {
            return Ok(vec![]);
        }
        let file = self.file(store, key).await?;
        let n = find(&file, key, share)?;
        let table = &file.seek;
        let first = table.portion(&table.shares[n], offset);
        let wanted = wanted(
            &table.portions,
            first..table.shares[n].portions.end,
            offset,
            max_bytes,
        );
        // There is nothing to be ahead of in a share of one portion, and many of those are read side by side.
        let goes_on = table.shares[n].portions.len() > 1;
        let reader = goes_on.then(|| {
            let partition = (directory(key), share.partition);
            let begun = self
                .ahead
                .lock()
                .begin(partition.clone(), offset, false, Instant::now());
            (
                partition,
                self.read_ahead(store, key, &file, n, wanted.end, begun),
            )
        });
        let mut out = vec![];
        let mut next = offset;
        let mut bytes = 0usize;
        let mut portions = stream::iter(wanted)
            .map(|p| self.portion(store, key, &file, p))
            .buffered(PORTIONS_AT_ONCE);
        'all: while let Some(batches) = portions.next().await {
            let batches = match batches {
                Ok(batches) => batches,
                // What was read so far is good; the reader will ask again from here.
                Err(_) if bytes > 0 => break,
                Err(error) => return Err(error),
            };
            for batch in batches.iter().filter(|b| b.last_offset >= offset) {
                if bytes > 0 && bytes + batch.bytes.len() > max_bytes {
                    break 'all;
                }
                bytes += batch.bytes.len();
                next = batch.last_offset + 1;
                out.push(batch.bytes.clone());
            }
        }
        drop(portions);
        if let Some((partition, reader)) = reader {
            self.ahead.lock().end(partition, next, reader);
        }
        let cached = i64::try_from(self.portions.weighted_size()).unwrap_or(i64::MAX);
        self.metrics.cached_bytes.set(cached);
        Ok(out)
    }

    /// Begins to bring what a reader will want from the portion `after` on, as far as there is room.
    fn read_ahead(
        self: &Arc<Files>,
        store: &Store,
        key: &Path,
        file: &Arc<FileMeta>,
        share: usize,
        after: usize,
        mut reader: Reader,
    ) -> Reader {
        let mut window = reader.window as u64;
        for p in file.seek.portions_from(share, after) {
            let portion = file.seek.portions[p];
            if portion.raw > window {
                break;
            }
            window -= portion.raw;
            if portion.last_offset < reader.ahead_to {
                continue;
            }
            if !self.portions.contains_key(&(key.clone(), p as u32)) {
                let permits = permits(portion.raw);
                let Ok(permit) = Arc::clone(&self.ahead_permits).try_acquire_many_owned(permits) else {
                    break;
                };
                self.metrics.portions_ahead.inc();
                let (this, store, key) = (Arc::clone(self), store.clone(), key.clone());
                let file = Arc::clone(file);
                tokio::spawn(async move {
                    // Who needs the portion will meet the same error and tell it.
                    let _ = this.portion(&store, &key, &file, p).await;
                    drop(permit);
                });
            }
            reader.ahead_to = portion.last_offset + 1;
        }
        reader
    }

    /// Offset and timestamp of the first record at or above `from` that is not older than `at_least` (ms).
    pub(crate) async fn first_at_or_after(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        at_least: i64,
        from: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        self.metrics.reads.inc();
        if from > share.last_offset {
            return Ok(None);
        }
        let file = self.file(store, key).await?;
        let share = &file.seek.shares[find(&file, key, share)?];
        let first = file.seek.portions[file.seek.portion(share, from)].first_row;
        let rows = first..share.first_row + share.rows;
        let Some(group) = file.group_of(&rows).filter(|_| !rows.is_empty()) else {
            return Ok(None);
        };
        for rows in candidates(group, &group.within(&rows), at_least) {
            let times = self
                .twice(|| self.times(store, key, &file, group, rows.clone()))
                .await?;
            let found = times
                .into_iter()
                .find(|(offset, timestamp)| *offset >= from && *timestamp >= at_least);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Offsets and timestamps of some rows of a row group.
    async fn times(
        &self,
        store: &Store,
        key: &Path,
        file: &Arc<FileMeta>,
        group: &Group,
        rows: Range<u32>,
    ) -> Result<Vec<(Offset, i64)>, ReadError> {
        let columns = [Column::Offset, Column::Timestamp];
        let permit = self.permit(1).await?;
        let fetched = self.fetch(store, key, ranges(group, columns, &rows)).await?;
        let first = group.first_row + rows.start;
        let file = Arc::clone(file);
        let decoded = self
            .on_a_thread(move || -> Result<Vec<(Offset, i64)>, FormatError> {
                let _permit = permit;
                let group = file.group_of(&(first..first + 1));
                let group = group.ok_or(FormatError::Invalid("rows"))?;
                let mut decoder = Decoder::new(group, &fetched, rows)?;
                Ok(decoder
                    .offsets()?
                    .into_iter()
                    .zip(decoder.timestamps()?)
                    .collect())
            })
            .await?;
        decoded.map_err(|e| corrupt(key, format!("rows from {first}: {e}")))
    }

    /// Forgets a file.
    pub(crate) async fn forget(&self, key: &Path) {
        if let Some(file) = self.files.remove(key).await {
            for p in 0..file.seek.portions.len() {
                self.portions.invalidate(&(key.clone(), p as u32)).await;
            }
        }
    }

    /// What is known of a file, from the cache or from its end.
    async fn file(&self, store: &Store, key: &Path) -> Result<Arc<FileMeta>, ReadError> {
        let read = self.twice(|| async {
            self.metrics.files_opened.inc();
            self.read_end(store, key).await
        });
        self.files
            .try_get_with_by_ref(key, read)
            .await
            .map_err(|e: Arc<ReadError>| (*e).clone())
    }

    async fn read_end(&self, store: &Store, key: &Path) -> Result<Arc<FileMeta>, ReadError> {
        let mut suffix = TAIL_GUESS;
        for _ in 0..TAIL_GETS_MAX {
            let got = self.get(store, key, GetRange::Suffix(suffix)).await?;
            let len = got.meta.size;
            let bytes = got.bytes().await.map_err(|e| of_store(key, &e))?;
            self.metrics.fetched_bytes.inc_by(bytes.len() as u64);
            let read = move || -> Result<Result<FileMeta, u64>, FormatError> {
                match open(&bytes, len)? {
                    TailOrMore::NeedSuffix(needed) => Ok(Err(needed)),
                    TailOrMore::Tail(tail) => FileMeta::read(&tail).map(Ok),
                }
            };
            match self.on_a_thread(read).await?.map_err(|e| corrupt(key, e))? {
                Ok(file) => return Ok(Arc::new(file)),
                Err(needed) => suffix = needed,
            }
        }
        Err(corrupt(key, "its length changes"))
    }

    /// A portion, from the cache or from its pages. One read serves all who wait for it.
    async fn portion(
        &self,
        store: &Store,
        key: &Path,
        file: &Arc<FileMeta>,
        p: usize,
    ) -> Result<Batches, ReadError> {
        let id = (key.clone(), p as u32);
        if let Some(batches) = self.portions.get(&id).await {
            self.metrics.portion_hits.inc();
            return Ok(batches);
        }
        let read = self.twice(|| async {
            self.metrics.portion_misses.inc();
            self.read_portion(store, key, file, p).await
        });
        let brought = self.portions.entry(id).or_try_insert_with(read).await;
        let entry = brought.map_err(|e: Arc<ReadError>| (*e).clone())?;
        if entry.is_fresh() {
            let bytes = entry.value().iter().map(|b| b.bytes.len() as u64).sum();
            if self.inflow.add(bytes) {
                self.portions.run_pending_tasks().await;
            }
        }
        Ok(entry.into_value())
    }

    async fn read_portion(
        &self,
        store: &Store,
        key: &Path,
        file: &Arc<FileMeta>,
        p: usize,
    ) -> Result<Batches, ReadError> {
        let portion = file.seek.portions[p];
        let rows = portion.first_row..portion.first_row + portion.rows;
        let permit = self.permit(permits(portion.raw)).await?;
        let fetched = match file.group_of(&rows).filter(|_| !rows.is_empty()) {
            Some(group) => {
                let ranges = ranges_of(group, &group.within(&rows));
                self.fetch(store, key, ranges).await?
            }
            None => Fetched::default(),
        };
        let (file, metrics) = (Arc::clone(file), self.metrics.clone());
        let decoded = self
            .on_a_thread(move || {
                let _permit = permit;
                let began = Instant::now();
                let batches = batches(&file, &portion, &fetched);
                metrics.decode_seconds.observe(began.elapsed().as_secs_f64());
                batches
            })
            .await?;
        decoded
            .map(Arc::new)
            .map_err(|e| corrupt(key, format!("rows from {}: {e}", portion.first_row)))
    }

    /// To bring and decode something, as far as others leave room; whoever wants more than there is gets all. It goes with
    /// the work to the thread that decodes: what waits there takes memory, whether somebody waits for it or not.
    async fn permit(&self, permits: u32) -> Result<OwnedSemaphorePermit, ReadError> {
        let all = self::permits(self.options.fetch_bytes);
        let fetching = Arc::clone(&self.fetching);
        let permit = fetching.acquire_many_owned(permits.min(all)).await;
        permit.map_err(|e| ReadError::Store(e.to_string()))
    }

    /// Byte ranges of a file, side by side.
    async fn fetch(&self, store: &Store, key: &Path, ranges: Vec<Range<u64>>) -> Result<Fetched, ReadError> {
        let gets = ranges.into_iter().map(|range| async move {
            let got = self.get(store, key, GetRange::Bounded(range.clone())).await?;
            let bytes = got.bytes().await.map_err(|e| of_store(key, &e))?;
            self.metrics.fetched_bytes.inc_by(bytes.len() as u64);
            if bytes.len() as u64 != range.end - range.start {
                return Err(corrupt(key, "it is shorter than its index says"));
            }
            Ok((range.start, bytes))
        });
        let pieces = futures::future::try_join_all(gets).await?;
        let mut fetched = Fetched::default();
        pieces
            .into_iter()
            .for_each(|(at, bytes)| fetched.insert(at, bytes));
        Ok(fetched)
    }

    async fn get(&self, store: &Store, key: &Path, range: GetRange) -> Result<GetResult, ReadError> {
        let options = GetOptions {
            range: Some(range),
            ..GetOptions::default()
        };
        let got = store.bulk.get_opts(key, options).await;
        got.map_err(|e| of_store(key, &e))
    }

    /// Does work for a processor away from the threads that serve the network; a few at once.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let done = self.decoding.run(work).await;
        done.ok_or_else(|| ReadError::Store("reading history was interrupted by a panic".to_owned()))
    }

    /// Reads, and once more if what was read is damaged: it may have been so on the way only.
    async fn twice<T, F: Future<Output = Result<T, ReadError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, ReadError> {
        match read().await {
            Err(ReadError::Corrupt(what)) => {
                self.metrics.corrupt_reads.inc();
                tracing::warn!(what, "history is damaged; reading it again");
                let again = read().await;
                if let Err(ReadError::Corrupt(what)) = &again {
                    tracing::error!(what, "history is damaged");
                }
                again
            }
            other => other,
        }
    }
}

/// The share as the file knows it.
fn find(file: &FileMeta, key: &Path, share: &Share) -> Result<usize, ReadError> {
    let same = |s: &FileShare| s.last_offset == share.last_offset && s.first_row == share.first_row;
    file.seek
        .share(share.partition, share.base_offset)
        .filter(|n| same(&file.seek.shares[*n]))
        .ok_or_else(|| {
            let (from, to) = (share.base_offset, share.last_offset);
            corrupt(
                key,
                format!("it has no share {from}..={to} of partition {}", share.partition),
            )
        })
}

/// The portions that together hold about `max_bytes` from `offset` on: one at least.
fn wanted(portions: &[Portion], of: Range<usize>, offset: Offset, max_bytes: usize) -> Range<usize> {
    let mut raw = 0u64;
    let not_enough = |p: &&Portion| {
        let more = raw < max_bytes.max(1) as u64;
        // The first one may be entered in the middle.
        let offsets =
            |from: Offset| u128::from((p.last_offset + 1).saturating_sub(from).max(0).unsigned_abs());
        let part = u128::from(p.raw) * offsets(offset.max(p.base_offset)) / offsets(p.base_offset).max(1);
        raw = raw.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        more
    };
    let count = portions[of.clone()]
        .iter()
        .take(PORTIONS_PER_READ)
        .take_while(not_enough)
        .count();
    of.start..of.start + count
}

/// The topic's directory, without the file's name.
fn directory(key: &Path) -> String {
    let key = key.as_ref();
    key.rfind('/').map_or("", |at| &key[..at]).to_owned()
}

/// Rows of one page of timestamps each that may hold a record which is not older than `at_least`.
fn candidates(group: &Group, rows: &Range<u32>, at_least: i64) -> Vec<Range<u32>> {
    let chunk = group.chunk(Column::Timestamp);
    let at_least_us = at_least.saturating_mul(1000);
    let pages = chunk.pages_of(rows).filter_map(|page| {
        let bounds = chunk.bounds.get(page);
        let may = bounds.is_none_or(|b| {
            // A record without a time counts as -1.
            b.values.is_some_and(|(_, greatest)| greatest >= at_least_us) || (b.nulls && at_least <= -1)
        });
        let first = chunk.pages[page].first_row.max(rows.start);
        let end = chunk.end_row(page, group.rows).min(rows.end);
        (may && first < end).then_some(first..end)
    });
    pages.collect()
}

/// Decodes and rebuilds a portion.
fn batches(file: &FileMeta, portion: &Portion, fetched: &Fetched) -> Result<Vec<Rebuilt>, FormatError> {
    let rows = portion.first_row..portion.first_row + portion.rows;
    let decoded = match file.group_of(&rows).filter(|_| !rows.is_empty()) {
        Some(group) => Decoder::new(group, fetched, group.within(&rows))?.rows()?,
        None => Default::default(),
    };
    let inside = |offset: &Offset| (portion.base_offset..=portion.last_offset).contains(offset);
    if !decoded.offsets.first().is_none_or(inside) || !decoded.offsets.last().is_none_or(inside) {
        return Err(FormatError::Invalid("offsets: they leave their portion"));
    }
    Ok(rebuild(&decoded, portion.base_offset, portion.last_offset))
}
