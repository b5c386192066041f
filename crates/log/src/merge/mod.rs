//! Merging (L1): the data of a stream moves into objects that are sorted by partition.
//!
//! In a segment of a stream with many partitions each of them has a few KB: who catches up from there makes a request
//! per segment, and whatever is kept pins the stream. So the owner copies what is published, its own and what it
//! inherited, into merged objects, and publishes the pointers *as entries in its stream*: a merge of a broker that lost
//! its stream cannot take effect. Afterwards a checkpoint moves the floor, and [`crate::clean`] deletes.
//!
//! What cannot be read as it was written stays where it is, with a word in the log, and everything else goes on; it is
//! tried again after a while. An object whose fate is unknown is given up together with its number: [`crate::garbage`]
//! finds that nobody refers to it.
//!
//! What stays merged for long is *gathered*: see [`gather`].
//!
//! [`plan`] and [`gather`] decide; this file carries out.

mod gather;
pub(crate) mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use hashbrown::{HashMap, HashSet};
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::checkpointer::Checkpointer;
use crate::entry::{CompactedRanges, Entry, MergedRanges, Place};
use crate::format::merged::{MergedHeader, MergedIndex, put_head, put_tail, read_header};
use crate::garbage::FileNumber;
use crate::keys;
use crate::log::AppendError;
use crate::manifest::keeper::ManifestKeeper;
use crate::manifest::{LEVEL_OF_CLUSTERS, LEVEL_OF_HISTORY};
use crate::partition::image::StoredRange;
use crate::store::conditional::{self, CreateOutcome, Patience};
use crate::store::reason_of;
use crate::stream::{Conditional, Stream};
use crate::{Offset, Partition, TopicPartition};
use gather::Needs;
use plan::{
    Backlog, FileLimits, Layout, Part, Read, Run, Target, neighbours, only_of, pointers, runs, verify,
};

/// How often the growth of the stream is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the backlog is measured if nothing is merged.
const MEASURE: Duration = Duration::from_secs(10);
/// Ranges that go into one object at most: what is planned takes memory too.
const FILE_RANGES: u64 = 100_000;
/// Reads under way at once.
const READS_AT_ONCE: usize = 4;
/// How long one object is tried to be written.
const PATIENCE: Duration = Duration::from_secs(120);
/// Partitions that are looked at, or bytes that are summed, between two points at which others may go on.
const PARTITIONS_AT_ONCE: usize = 500;
const BYTES_AT_ONCE: u64 = 1 << 20;
/// Damaged ranges that are remembered. Beyond that they are looked at again in every round.
const DAMAGED_MAX: usize = 100_000;
/// They are tried again after this time: as long as they stand in a segment, all later ones stay in the bucket.
const DAMAGED_AGAIN: Duration = Duration::from_secs(600);
/// A read that fails in so many rounds, while the store answers others, holds up the rest no longer.
const STUBBORN_ROUNDS: u32 = 3;
/// Such reads that are remembered.
const STUBBORN_MAX: usize = 1_000;
/// It is looked so often for what is to be gathered, in parts of the time after which it is.
const GATHER_LOOKS: u32 = 12;

/// Settings of merging.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeOptions {
    /// `merge.interval.ms`: what is published is merged after at most about this time.
    pub interval: Duration,
    /// `merge.bytes`: so many published bytes are merged at once.
    pub bytes: u64,
    /// `merge.file.bytes`: size of a merged object.
    pub file_bytes: u64,
    /// `merge.bytes.per.second`: how fast.
    pub bytes_per_second: u64,
    /// `merge.gather.after.ms`: what has been merged for so long, and stands in objects of which little else is needed,
    /// moves into new ones.
    pub gather_after: Duration,
}

impl Default for MergeOptions {
    fn default() -> MergeOptions {
        MergeOptions {
            interval: Duration::from_secs(45),
            bytes: 128 << 20,
            file_bytes: 32 << 20,
            bytes_per_second: 64 << 20,
            gather_after: Duration::from_secs(7_200),
        }
    }
}

/// Why a round of merging ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    /// The store fails: later.
    #[error("{0}")]
    Store(String),
    /// It fails for this object.
    #[error("{}: {why}", keys::place(*.place))]
    Object { place: Place, why: String },
    /// An object that should be new is there already, or what was read changed under us: never seen in good order.
    #[error("{0}")]
    Odd(String),
    /// The stream ends or is lost.
    #[error(transparent)]
    Ended(#[from] AppendError),
}

/// Somebody who waits for a round of merging.
pub(crate) type AskedMerge = oneshot::Sender<Result<(), String>>;

/// Merges the published data of one open log.
#[derive(Debug)]
pub(crate) struct Merger {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    checkpointer: Arc<Checkpointer>,
    options: MergeOptions,
    /// Ranges that could not be read as they were written, by their first offset, and when they are tried again.
    damaged: HashMap<(TopicPartition, Offset), Instant>,
    /// Reads that failed in as many rounds, by where they begin.
    stubborn: HashMap<(Place, u64), u32>,
}

impl Merger {
    pub(crate) fn new(
        stream: Arc<Stream>,
        keeper: Arc<ManifestKeeper>,
        checkpointer: Arc<Checkpointer>,
        options: MergeOptions,
    ) -> Merger {
        Merger {
            stream,
            keeper,
            checkpointer,
            options,
            damaged: HashMap::new(),
            stubborn: HashMap::new(),
        }
    }

    /// Runs until the task is aborted or the stream ends. Merges at once when it is asked to.
    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<AskedMerge>) {
        // What was inherited keeps other streams alive, so the first round comes early.
        let mut due = Instant::now() + self.options.interval / 4;
        let mut measured = Instant::now();
        let mut merged_to = 0;
        let mut gather_at = Instant::now() + self.options.gather_after / GATHER_LOOKS;
        loop {
            let mut waiting = vec![];
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                Some(one) = asked.recv() => waiting.push(one),
            }
            // One round serves all who ask now.
            while let Ok(one) = asked.try_recv() {
                waiting.push(one);
            }
            if self.stream.is_fenced() {
                return;
            }
            let published = self.stream.published_bytes.load(Ordering::Relaxed);
            let full = published - merged_to >= self.options.bytes || !waiting.is_empty();
            let allowed = self.keeper.current().feature_level >= LEVEL_OF_CLUSTERS;
            if allowed && (full || Instant::now() >= due) {
                let merged = self.round().await;
                for one in waiting {
                    // Whoever has gone away need not know.
                    let _ = one.send(merged.clone().map_err(|why| why.to_string()));
                }
                match merged {
                    Ok(()) => {}
                    Err(MergeError::Ended(_)) => return,
                    Err(why) => tracing::warn!(%why, "data could not be merged; trying again later"),
                }
                merged_to = published;
                due = Instant::now() + self.options.interval;
                measured = Instant::now();
            } else if measured.elapsed() >= MEASURE {
                self.survey().await;
                measured = Instant::now();
            }
            if Instant::now() >= gather_at {
                let more = match self.gather().await {
                    Ok(more) => more,
                    Err(MergeError::Ended(_)) => return,
                    Err(why) => {
                        tracing::warn!(%why, "merged data could not be gathered; trying again later");
                        false
                    }
                };
                // Between two objects there is time to merge.
                let pause = if more {
                    LOOK
                } else {
                    self.options.gather_after / GATHER_LOOKS
                };
                gather_at = Instant::now() + pause;
            }
        }
    }

    /// Merges what is not merged now; what comes meanwhile is for the next round.
    pub(crate) async fn round(&mut self) -> Result<(), MergeError> {
        let now = Instant::now();
        self.damaged.retain(|_, again| *again > now);
        let mut backlog = self.survey().await;
        let mut left = backlog.bytes;
        while left > 0 {
            let Some(cut) = backlog.cut(self.limits()) else {
                break;
            };
            let started = Instant::now();
            let taken = self.merge_up_to(cut).await?;
            self.stream
                .metrics
                .merge_seconds
                .observe(started.elapsed().as_secs_f64());
            left = left.saturating_sub(taken.max(1));
            backlog = self.survey().await;
            self.pace(started, taken).await;
        }
        Ok(())
    }

    fn limits(&self) -> FileLimits {
        FileLimits {
            bytes: self.options.file_bytes,
            ranges: FILE_RANGES,
        }
    }

    async fn pace(&self, started: Instant, bytes: u64) {
        let pace = bytes as f64 / self.options.bytes_per_second.max(1) as f64;
        tokio::time::sleep_until(started + Duration::from_secs_f64(pace)).await;
    }

    /// Gathers into one object, if it is worth it; whether there may be more to gather.
    pub(crate) async fn gather(&mut self) -> Result<bool, MergeError> {
        // Which entries there may be.
        if self.keeper.current().feature_level < LEVEL_OF_HISTORY {
            return Ok(false);
        }
        let started = Instant::now();
        let sparse = self.sparse().await;
        if sparse.is_empty() {
            return Ok(false);
        }
        let layout = Arc::new(Layout::new(self.needed_of(&sparse).await));
        let Some((index, mut file)) = self.copy(&layout).await? else {
            return Ok(false);
        };
        let entries = index.entries.into_iter();
        let pointers = entries.map(|merged| gathered(&layout, merged)).collect();
        // From here on the object may be referred to, whatever becomes of this task.
        file.submit();
        let fitting = self.stream.rewrite_if(pointers).await?;
        file.settle();
        let bytes = layout.data_len;
        if fitting > 0 {
            self.checkpointer.merged(bytes);
            self.stream.metrics.gathered_bytes.inc_by(bytes);
            tracing::debug!(objects = sparse.len(), bytes, "gathered merged data");
        }
        self.pace(started, bytes).await;
        Ok(fitting > 0)
    }

    /// The objects from which something is to be gathered now.
    async fn sparse(&self) -> BTreeSet<Place> {
        let mut needs = Needs::default();
        self.each_merged(|_, ranges| ranges.for_each(|r| needs.add(r)))
            .await;
        let after_ms = i64::try_from(self.options.gather_after.as_millis()).unwrap_or(i64::MAX);
        let before_ms = self.stream.clock.now_ms().saturating_sub(after_ms);
        needs.sparse(self.limits(), before_ms)
    }

    /// What is needed of these objects.
    async fn needed_of(&self, objects: &BTreeSet<Place>) -> Vec<Run> {
        let mut needed = vec![];
        // Slots may have come since the objects were chosen.
        let mut left = self.limits();
        self.each_merged(|p, ranges| {
            let fitting = ranges.filter(|r| {
                let bytes = u64::from(r.len);
                let fits = objects.contains(&r.place) && left.ranges > 0 && left.bytes >= bytes;
                if fits {
                    (left.bytes, left.ranges) = (left.bytes - bytes, left.ranges - 1);
                }
                fits
            });
            needed.extend(neighbours(p.id(), p.leader_epoch(), fitting));
        })
        .await;
        needed
    }

    /// Gives what stands in merged objects and is not known to be damaged, of all partitions that are appended to.
    async fn each_merged(&self, mut each: impl FnMut(&Partition, &mut dyn Iterator<Item = &StoredRange>)) {
        for some in self.partitions().chunks(PARTITIONS_AT_ONCE) {
            for p in some {
                // What is about to be released, or has gone, takes no pointer any more.
                if p.check_appendable().is_ok() {
                    let image = p.published.lock();
                    let good = |r: &&StoredRange| r.len > 0 && !self.is_damaged(p.id(), r);
                    each(p, &mut image.merged_ranges().filter(good));
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Measures what is not merged.
    async fn survey(&self) -> Backlog {
        let mut backlog = Backlog::default();
        for some in self.partitions().chunks(PARTITIONS_AT_ONCE) {
            for p in some {
                let id = p.id();
                let image = p.published.lock();
                let ranges = image.unmerged_ranges().filter(|r| !self.is_damaged(id, r));
                ranges.for_each(|r| backlog.add(r));
            }
            tokio::task::yield_now().await;
        }
        let metrics = &self.stream.metrics;
        metrics
            .unmerged_bytes
            .set(i64::try_from(backlog.bytes).unwrap_or(i64::MAX));
        let now_ms = self.stream.clock.now_ms();
        let age_ms = backlog
            .oldest_ms
            .map_or(0, |oldest| now_ms.saturating_sub(oldest).max(0));
        metrics.unmerged_age_seconds.set(age_ms as f64 / 1000.0);
        backlog
    }

    fn partitions(&self) -> Vec<Arc<Partition>> {
        self.stream.partitions.read().values().cloned().collect()
    }

    fn is_damaged(&self, partition: TopicPartition, r: &StoredRange) -> bool {
        !self.damaged.is_empty() && self.damaged.contains_key(&(partition, r.base_offset))
    }

    /// Merges everything up to the segment `cut` into one object and publishes where it is. Returns the bytes that were
    /// looked at.
    async fn merge_up_to(&mut self, cut: Place) -> Result<u64, MergeError> {
        let mut chosen: Vec<Run> = vec![];
        for some in self.partitions().chunks(PARTITIONS_AT_ONCE) {
            for p in some {
                let (id, epoch) = (p.id(), p.leader_epoch());
                let image = p.published.lock();
                chosen.extend(runs(id, epoch, &image, cut, |r| self.is_damaged(id, r)));
            }
            tokio::task::yield_now().await;
        }
        let layout = Arc::new(Layout::new(chosen));
        if let Some((index, mut file)) = self.copy(&layout).await? {
            // From here on the object may be referred to, whatever becomes of this task.
            file.submit();
            self.publish(index.entries).await?;
            file.settle();
        }
        Ok(layout.data_len)
    }

    /// Copies what is laid out into a new object, which nobody refers to yet. None if nothing of it is as it was written.
    async fn copy(&mut self, layout: &Arc<Layout>) -> Result<Option<(MergedIndex, FileNumber)>, MergeError> {
        let file = self.stream.merged_numbers.begin();
        let header = MergedHeader {
            incarnation: self.stream.incarnation,
            number: file.number(),
            nonce: Uuid::new_v4(),
            manifest_version: self.stream.manifest_version.load(Ordering::Relaxed),
            written_ms: self.stream.clock.now_ms(),
        };
        let mut object = BytesMut::with_capacity(layout.data_len as usize + (64 << 10));
        put_head(&mut object, &header, self.stream.cluster, layout.data_len);
        let data_start = object.len();
        object.resize(data_start + layout.data_len as usize, 0);
        let left_out = self.collect(layout, &mut object[data_start..]).await?;

        let target = Target {
            file: header.number,
            data_start: data_start as u64,
        };
        let good = |run: usize, range: usize| !left_out.contains(&(run, range));
        let entries = pointers(layout, &object[data_start..], target, good)
            .map_err(|e| MergeError::Odd(format!("what was read and found good is not: {e}")))?;
        if entries.is_empty() {
            return Ok(None);
        }
        let index = MergedIndex { header, entries };
        put_tail(&mut object, &index);
        let object = object.freeze();
        self.write(&index.header, object.clone()).await?;
        let place = Place::l1(self.stream.incarnation, target.file);
        self.stream.blocks.keep(place, &object).await;
        Ok(Some((index, file)))
    }

    /// Brings all bytes to their places. Returns the ranges that were left out, as positions in the layout.
    async fn collect(
        &mut self,
        layout: &Arc<Layout>,
        data: &mut [u8],
    ) -> Result<HashSet<(usize, usize)>, MergeError> {
        let mut left_out = HashSet::new();
        let mut reads = bring_all(&self.stream, layout);
        let mut summed = 0;
        while let Some((i, brought)) = reads.next().await {
            let read = &layout.reads[i];
            let brought = match brought {
                Err(MergeError::Object { place, why }) => {
                    if !self.is_stubborn((place, read.bytes.start)).await {
                        return Err(MergeError::Object { place, why });
                    }
                    vec![Err(why); read.parts.len()]
                }
                brought => {
                    self.stubborn.remove(&(read.place, read.bytes.start));
                    brought?
                }
            };
            for (part, found) in read.parts.iter().zip(brought) {
                let r = *layout.range(part);
                match found {
                    Ok(chunks) => {
                        let mut to = part.target as usize;
                        for chunk in chunks {
                            data[to..to + chunk.len()].copy_from_slice(&chunk);
                            to += chunk.len();
                        }
                    }
                    Err(why) => {
                        left_out.insert((part.run, part.range));
                        self.set_aside(layout.runs[part.run].partition, &r, &why);
                    }
                }
                summed += u64::from(r.len);
                if summed >= BYTES_AT_ONCE {
                    summed = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(left_out)
    }

    /// Whether a read that has failed again fails alone: the store answers to others.
    async fn is_stubborn(&mut self, read: (Place, u64)) -> bool {
        if self.stubborn.len() >= STUBBORN_MAX {
            self.stubborn.clear();
        }
        let rounds = self.stubborn.entry(read).or_default();
        *rounds += 1;
        *rounds >= STUBBORN_ROUNDS && self.keeper.refresh().await.is_ok()
    }

    /// Leaves a range where it is for a while.
    fn set_aside(&mut self, partition: TopicPartition, r: &StoredRange, why: &str) {
        if !self.stream.holds(&partition, r) {
            // The log start has passed it, or its topic is gone: nobody needs it any more.
            return;
        }
        let key = keys::place(r.place);
        tracing::error!(
            topic = %partition.topic, partition = partition.partition, offset = r.base_offset, key, why,
            "stored bytes cannot be merged; they stay where they are, and are tried again in {DAMAGED_AGAIN:?}"
        );
        self.stream.metrics.unmergeable_ranges.inc();
        if self.damaged.len() < DAMAGED_MAX {
            let again = Instant::now() + DAMAGED_AGAIN;
            self.damaged.insert((partition, r.base_offset), again);
        }
    }

    async fn write(&self, header: &MergedHeader, object: Bytes) -> Result<(), MergeError> {
        let stream = &self.stream;
        let key = stream.store.key(&keys::merged(header.incarnation, header.number));
        let (cluster, nonce, len) = (stream.cluster, header.nonce, object.len() as u64);
        let is_mine = |found: &Bytes| read_header(found, Some(cluster)).is_ok_and(|h| h.nonce == nonce);
        let patience = Patience::For(PATIENCE);
        match conditional::create(&stream.store, &key, object.into(), is_mine, patience).await {
            CreateOutcome::Committed => {
                stream.metrics.merged_objects.inc();
                stream.metrics.merged_bytes.inc_by(len);
                Ok(())
            }
            CreateOutcome::Lost(_) => Err(MergeError::Odd(format!("{key} holds something else"))),
            CreateOutcome::Unknown(why) => Err(MergeError::Store(why)),
        }
    }

    async fn publish(&self, entries: Vec<MergedRanges>) -> Result<(), MergeError> {
        let bytes = entries.iter().map(MergedRanges::byte_len).sum();
        let pointers = entries.into_iter().map(Entry::Merged).collect();
        // One merge at a time: what is planned next must know what this one did.
        if self.stream.rewrite(pointers).await? > 0 {
            self.checkpointer.merged(bytes);
        }
        Ok(())
    }
}

/// The pointer to what was gathered. What compaction has written meanwhile must not be undone by older bytes of the same
/// offsets.
fn gathered(layout: &Layout, merged: MergedRanges) -> Conditional {
    only_of(
        &layout.runs,
        Entry::Compacted(CompactedRanges { merged, clean_to: 0 }),
    )
}

/// Bytes of one range, or why they are not what was written.
pub(crate) type Brought = Result<Vec<Bytes>, String>;

/// Brings everything that a layout reads, a few reads at once and in no order: the position of each and what it brought.
pub(crate) fn bring_all(
    stream: &Arc<Stream>,
    layout: &Arc<Layout>,
) -> impl futures::Stream<Item = (usize, Result<Vec<Brought>, MergeError>)> + Unpin + Send + use<> {
    let (from, plan) = (stream.clone(), layout.clone());
    stream::iter(0..layout.reads.len())
        .map(move |i| {
            let (from, plan) = (from.clone(), plan.clone());
            async move { (i, bring(&from, &plan.reads[i], &plan).await) }
        })
        .buffer_unordered(READS_AT_ONCE)
        .boxed()
}

/// Brings the parts of one read, verified.
async fn bring(stream: &Stream, read: &Read, layout: &Layout) -> Result<Vec<Brought>, MergeError> {
    let newest = stream.blocks.tail.lock().get(read.place);
    let whole = match newest {
        Some(_) => Ok(vec![]),
        None => get(stream, read.place, read.bytes.clone()).await?,
    };
    let mut brought = Vec::with_capacity(read.parts.len());
    for part in &read.parts {
        let r = layout.range(part);
        let from = u64::from(r.position);
        let chunks = match (&newest, &whole) {
            (Some(segment), _) => segment.slice(from, from + u64::from(r.len)),
            (None, Ok(whole)) => {
                let start = (from - read.bytes.start) as usize;
                crate::batch::slice_chunks(whole, start..start + r.len as usize)
            }
            (None, Err(why)) => {
                brought.push(Err(why.clone()));
                continue;
            }
        };
        brought.push(match verify(r, &chunks) {
            Ok(()) => Ok(chunks),
            Err(_) => again(stream, part, layout).await?,
        });
    }
    Ok(brought)
}

/// Reads one range again that is not what it should be.
async fn again(stream: &Stream, part: &Part, layout: &Layout) -> Result<Brought, MergeError> {
    let r = layout.range(part);
    let from = u64::from(r.position);
    let chunks = match get(stream, r.place, from..from + u64::from(r.len)).await? {
        Ok(chunks) => chunks,
        Err(why) => return Ok(Err(why)),
    };
    Ok(match verify(r, &chunks) {
        Ok(()) => Ok(chunks),
        Err(e) => Err(e.to_string()),
    })
}

/// Some bytes of an object, in one piece or as it came; inside, that they are not there.
pub(crate) async fn get(
    stream: &Stream,
    place: Place,
    bytes: std::ops::Range<u64>,
) -> Result<Brought, MergeError> {
    let key = stream.store.key(&keys::place(place));
    let end = bytes.end;
    let options = GetOptions {
        range: Some(GetRange::Bounded(bytes)),
        ..GetOptions::default()
    };
    let got = async { stream.store.bulk.get_opts(&key, options).await?.bytes().await };
    match got.await {
        Ok(bytes) => Ok(Ok(vec![bytes])),
        Err(object_store::Error::NotFound { .. }) => Ok(Err(format!("{key} is not in the store"))),
        Err(e) => match stream.store.bulk.head(&key).await {
            // Stores refuse to give what lies behind the end of an object.
            Ok(meta) if meta.size < end => Ok(Err(format!("{key} is cut short"))),
            _ => Err(MergeError::Object {
                place,
                why: reason_of(&e),
            }),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests;
