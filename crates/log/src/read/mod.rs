//! The read path: plan under a short lock, then fetch bytes from the tail, the cache or the store.

pub mod ahead;
pub(crate) mod blocks;
pub(crate) mod history;
pub mod inflow;
pub(crate) mod tail;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::batch::{BatchError, BatchView, ChunkCursor, RecordBatch, slice_chunks};
use crate::entry::Level;
use crate::keys;
use crate::partition::image::{PartitionImage, StoredRange};
use crate::{Offset, Partition, Watermarks};
use ahead::Reader;
use blocks::{Blocks, blocks_of};

/// Ranges that one read takes at most.
const RANGES_PER_READ: usize = 256;
/// Plans that one read makes at most: an object may be merged and deleted between the plan and the read.
const PLANS: usize = 4;
/// Ranges that one read brings from the store side by side.
const COLD_RANGES_AT_ONCE: usize = 8;
/// A share of a file of history that has so few bytes there is small.
const SMALL_SHARE_BYTES: u32 = 256 << 10;
/// Small shares that one read brings side by side, once it is known how much comes of a share: each is little to bring and as
/// long to wait for as a large range. Half of the reads that there may be, so that others have room.
const SMALL_SHARES_AT_ONCE: usize = 16;
/// What is thought of history before some was read: records of text become a quarter.
const EXPANSION: u64 = 4;
/// Small shares that are read ahead for one block of a reader's window.
const SMALL_SHARES_PER_BLOCK: usize = 4;
/// A batch is opened for a lookup by time up to this size.
const LOOKUP_BYTES: usize = 64 << 20;
/// Batches are opened one at a time for lookups: what that takes is in no budget.
static OPENING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Which records a reader may see (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Everything published.
    ReadUncommitted,
    /// Up to the last stable offset.
    ReadCommitted,
}

/// Whole batches in order.
#[derive(Clone, Debug)]
pub struct ReadResult {
    /// Offsets as of the plan.
    pub watermarks: Watermarks,
    /// Pieces to be sent one after the other; a batch may span several.
    pub chunks: Vec<Bytes>,
    /// Sum of their lengths.
    pub bytes: usize,
    /// Aborted transactions as (producer id, first offset); only for `ReadCommitted`.
    pub aborted: Vec<(i64, Offset)>,
}

impl ReadResult {
    /// Where a reader of this kind finds nothing more.
    fn end(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadUncommitted => self.watermarks.high_watermark,
            Isolation::ReadCommitted => self.watermarks.last_stable_offset,
        }
    }
}

/// Why a read fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The topic was deleted, the partition moved, or this broker lost its lease.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// Outside what the log holds.
    #[error("offset {offset} is outside {log_start}..={end}")]
    OffsetOutOfRange {
        /// As asked for.
        offset: Offset,
        /// Log start.
        log_start: Offset,
        /// High watermark.
        end: Offset,
    },
    /// The store cannot be reached now.
    #[error("the store cannot be read now: {0}")]
    Store(String),
    /// Stored bytes are damaged, also when read again.
    #[error("stored bytes are damaged: {0}")]
    Corrupt(String),
    /// An object that the log refers to, by its key, is not in the store.
    #[error("data is missing: {0} is not in the store")]
    Missing(String),
    /// A file of history, by its key, and this log was opened without knowledge of the format.
    #[error("{0} is a file of history, which this program does not read")]
    NoHistory(String),
}

/// What to look an offset up by (ListOffsets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetLookup {
    /// The end, as far as the isolation level sees it.
    Latest(Isolation),
    /// The log start.
    Earliest,
    /// The record with the greatest timestamp (KIP-734).
    MaxTimestamp,
    /// The first record whose timestamp (ms) is not below this.
    Timestamp(i64),
}

/// An offset that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset.
    pub offset: Offset,
    /// Timestamp (ms) of the record there; -1 where none was asked for.
    pub timestamp: i64,
    /// Leader epoch under which the offset was given, or -1.
    pub leader_epoch: i32,
}

/// Whether a range stands in a file of history.
fn is_history(r: &StoredRange) -> bool {
    r.place.level == Level::L2
}

/// Whether it is a share of a file that holds many partitions, each of which has little there: several are read at once,
/// since nearly all of the time is waiting for the store.
fn is_small_share(r: &StoredRange) -> bool {
    is_history(r) && r.len <= SMALL_SHARE_BYTES
}

/// Ranges that hold `offset` and what follows, until they are about `max_bytes`: all of them history or none. Of history
/// each stored byte is `expansion` bytes of batches.
fn plan(
    image: &PartitionImage,
    offset: Offset,
    end: Offset,
    max_bytes: usize,
    expansion: u64,
) -> Vec<StoredRange> {
    let mut bytes = 0u64;
    let mut ranges: Vec<StoredRange> = vec![];
    for r in image.ranges.range(image.range_from(offset)..) {
        if r.base_offset >= end || bytes >= max_bytes.max(1) as u64 || ranges.len() == RANGES_PER_READ {
            break;
        }
        if ranges
            .first()
            .is_some_and(|first| is_history(first) != is_history(r))
        {
            break;
        }
        let each = if is_history(r) { expansion } else { 1 };
        bytes = bytes.saturating_add(bytes_from(r, offset).saturating_mul(each));
        ranges.push(*r);
    }
    ranges
}

/// About how many bytes of a range lie at or behind `offset`: the first range may be entered in the middle.
fn bytes_from(r: &StoredRange, offset: Offset) -> u64 {
    let offsets = |from| u128::from((r.last_offset + 1).saturating_sub(from).max(0).unsigned_abs());
    let part = u128::from(r.len) * offsets(offset.max(r.base_offset)) / offsets(r.base_offset).max(1);
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// Ranges behind `planned` that a reader's window may reach.
fn ranges_ahead(reader: &Reader, planned: &[StoredRange]) -> usize {
    match planned.last().is_some_and(is_small_share) {
        true => reader.window * SMALL_SHARES_PER_BLOCK,
        false => reader.window,
    }
}

/// Begins to bring what a reader will want after `planned`, if it goes on through the partition.
fn read_ahead(blocks: &Arc<Blocks>, partition: &Partition, reader: &mut Reader, next: &[StoredRange]) {
    let mut window = reader.window * SMALL_SHARES_PER_BLOCK;
    for r in next {
        let takes = match is_history(r) {
            true => 1,
            false => blocks_of(r).count() * SMALL_SHARES_PER_BLOCK,
        };
        // Within a large share the format reads ahead itself.
        if window < takes || is_history(r) && !is_small_share(r) || !blocks.is_cold(r) {
            break;
        }
        window -= takes;
        if r.last_offset < reader.ahead_to {
            continue;
        }
        let brought = match is_history(r) {
            true => blocks.history.read_ahead(partition, r),
            false => blocks.read_ahead(blocks_of(r)) == blocks_of(r).count(),
        };
        if !brought {
            break;
        }
        reader.ahead_to = r.last_offset + 1;
    }
}

/// Walks the batches of `chunks`; damaged headers are an error in words.
fn walk(
    chunks: &[Bytes],
    verify: bool,
    mut each: impl FnMut(&BatchView) -> Result<bool, BatchError>,
) -> Result<(), BatchError> {
    let mut cursor = ChunkCursor::new(chunks);
    while let Some(view) = cursor.next_batch() {
        let view = view?;
        if verify {
            view.verify(chunks)?;
        }
        if !each(&view)? {
            break;
        }
    }
    Ok(())
}

/// What a reader wants of a range.
#[derive(Clone, Copy)]
struct Want {
    offset: Offset,
    end: Offset,
    room: usize,
    /// Whether the first batch is given even if it is larger than the room.
    at_least_one: bool,
}

/// Where the bytes of a range come from, and so what has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// This broker wrote them and has them still.
    Memory,
    /// The store: they are compared with the index, which alone says which offsets these are, and what is given is
    /// compared with its checksum.
    Stored,
    /// A file of history, whose format has verified them.
    History,
}

/// What it gets.
struct Cut {
    chunks: Vec<Bytes>,
    /// Nothing after it is wanted.
    full: bool,
    /// Where the next read begins.
    next: Offset,
}

/// Cuts what a reader gets out of one range: whole batches.
///
/// Merged data may have gaps, which compaction leaves. A base offset lies outside the checksum of its batch, so that
/// one that is damaged could pass for a gap: it would not fit to what follows, or to the end of the range. So all
/// headers of such a range are looked at, also behind what is given.
fn cut(r: &StoredRange, chunks: &[Bytes], origin: Origin, want: Want) -> Result<Cut, BatchError> {
    const BAD: BatchError = BatchError::Invalid("its base offset is not what the index says");
    let gaps = r.place.level != Level::L0;
    let to_the_end = gaps && origin == Origin::Stored;
    let (mut from, mut to, mut full) = (None, 0, false);
    let (mut expected, mut next) = (r.base_offset, want.offset);
    walk(chunks, false, |b| {
        let (base_offset, after) = (b.header.base_offset, b.header.last_offset().wrapping_add(1));
        let fits = base_offset == expected || gaps && base_offset > expected;
        if origin != Origin::Memory && !fits {
            return Err(BAD);
        }
        expected = after;
        if full || after <= want.offset {
            return Ok(true);
        }
        let start = from.unwrap_or(b.start);
        let first = from.is_none() && want.at_least_one;
        if base_offset >= want.end || b.start + b.len - start > want.room && !first {
            full = true;
            return Ok(to_the_end);
        }
        if origin == Origin::Stored {
            b.verify(chunks)?;
        }
        from = Some(start);
        to = b.start + b.len;
        next = after;
        Ok(true)
    })?;
    if to_the_end && expected > r.last_offset + 1 {
        return Err(BAD);
    }
    // The format gives a part of a range, and says so by giving anything that does not reach its end.
    full |= origin == Origin::History && !chunks.is_empty() && expected <= r.last_offset;
    Ok(Cut {
        chunks: from.map_or_else(Vec::new, |from| slice_chunks(chunks, from..to)),
        next: if full { next } else { next.max(r.last_offset + 1) },
        full,
    })
}

/// What stands now where `planned` begins, or behind it; nothing if the log start has passed all that there was.
fn now_at(partition: &Partition, planned: &StoredRange) -> Option<StoredRange> {
    let image = partition.published.lock();
    image.ranges.get(image.range_from(planned.base_offset)).copied()
}

/// A read that failed, with the range for which it did.
struct Failed(ReadError, Option<StoredRange>);

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Failed {
        Failed(error, None)
    }
}

/// Reads whole batches from the one that holds `offset` on.
pub(crate) async fn read(
    blocks: &Arc<Blocks>,
    partition: &Partition,
    offset: Offset,
    max_bytes: usize,
    isolation: Isolation,
) -> Result<ReadResult, ReadError> {
    let (mut plans, mut from) = (1, offset);
    loop {
        match read_as_planned(blocks, partition, from, max_bytes, isolation).await {
            // There was no record in what was planned, only offsets that compaction or archiving emptied.
            Ok((result, next)) if result.bytes == 0 && from < next && next < result.end(isolation) => {
                from = next;
            }
            Ok((result, _)) => return Ok(result),
            Err(Failed(ReadError::Missing(_), Some(r)))
                if plans < PLANS && now_at(partition, &r) != Some(r) =>
            {
                plans += 1;
            }
            Err(Failed(error, _)) => return Err(error),
        }
    }
}

/// One read; also where the next one begins.
async fn read_as_planned(
    blocks: &Arc<Blocks>,
    partition: &Partition,
    offset: Offset,
    max_bytes: usize,
    isolation: Isolation,
) -> Result<(ReadResult, Offset), Failed> {
    let (watermarks, ranges, end, expansion, reader) = {
        let image = partition.published.lock();
        let end = partition.check_offset(&image, offset, isolation)?;
        let first = image.range_from(offset);
        let wanted = image.ranges.get(first).filter(|r| r.base_offset < end);
        let cold = wanted.is_some_and(|r| blocks.is_cold(r));
        let reader = cold.then(|| {
            let at_start = offset == image.state.log_start;
            let mut ahead = blocks.ahead.lock();
            ahead.begin(partition.id(), offset, at_start, Instant::now())
        });
        let expansion = reader.and_then(|r| r.expansion);
        let ranges = plan(&image, offset, end, max_bytes, expansion.unwrap_or(EXPANSION));
        let reader = reader.map(|reader| {
            let next = image.ranges.range(first + ranges.len()..);
            let next = next.take(ranges_ahead(&reader, &ranges)).copied();
            (reader, next.collect::<Vec<StoredRange>>())
        });
        let watermarks = partition.watermarks_of(&image);
        (watermarks, ranges, end, expansion, reader)
    };
    let reader = reader.map(|(mut reader, next)| {
        read_ahead(blocks, partition, &mut reader, &next);
        reader
    });
    let mut reading = Reading {
        blocks,
        partition,
        max_bytes,
        want: Want {
            offset,
            end,
            room: max_bytes,
            at_least_one: true,
        },
        result: ReadResult {
            watermarks,
            chunks: vec![],
            bytes: 0,
            aborted: vec![],
        },
    };
    if ranges
        .first()
        .is_some_and(|r| is_history(r) && !is_small_share(r))
    {
        // One after the other: how much of a large share is wanted depends on the one before.
        for r in ranges.iter().copied() {
            let read = bring(blocks, partition, &r, reading.want.offset, reading.want.room).await;
            match reading.take(r, read)? {
                Taken::More => {}
                Taken::Enough => break,
                Taken::Damaged(what) => {
                    reading.retake(r, &what).await?;
                    break;
                }
            }
        }
    } else {
        let at_once = match ranges.first() {
            Some(first) if is_small_share(first) && expansion.is_some() => SMALL_SHARES_AT_ONCE,
            _ if reader.is_some() => COLD_RANGES_AT_ONCE,
            _ => 1,
        };
        let mut reads = stream::iter(ranges.iter().copied())
            .map(|r| async move { (r, bring(blocks, partition, &r, offset, max_bytes).await) })
            .buffered(at_once);
        let mut damaged = None;
        while let Some((r, read)) = reads.next().await {
            match reading.take(r, read)? {
                Taken::More => {}
                Taken::Enough => break,
                Taken::Damaged(what) => {
                    damaged = Some((r, what));
                    break;
                }
            }
        }
        // What waits here is polled no more. It may have been given a permit for which the next read waits.
        drop(reads);
        if let Some((r, what)) = damaged {
            reading.retake(r, &what).await?;
        }
    }
    let next = reading.want.offset;
    if let Some(mut reader) = reader {
        if reading.result.bytes > 0 && ranges.first().is_some_and(is_history) {
            let stored: u64 = ranges
                .iter()
                .map(|r| bytes_from(r, offset) - bytes_from(r, next))
                .sum();
            reader.expansion = (reading.result.bytes as u64)
                .checked_div(stored)
                .map(|e| e.max(1));
        }
        blocks.ahead.lock().end(partition.id(), next, reader);
    }
    Ok((reading.result, next))
}

/// Bytes of a range, and where they come from.
type Brought = (Vec<Bytes>, Origin);

fn of_object((chunks, stored): (Vec<Bytes>, bool)) -> Brought {
    let origin = if stored { Origin::Stored } else { Origin::Memory };
    (chunks, origin)
}

/// What comes after a range.
enum Taken {
    More,
    /// Nothing more is wanted.
    Enough,
    /// Its bytes are not what they should be, and nothing was given before.
    Damaged(String),
}

/// A read under way.
struct Reading<'a> {
    blocks: &'a Arc<Blocks>,
    partition: &'a Partition,
    max_bytes: usize,
    want: Want,
    result: ReadResult,
}

/// Brings a range; of history from `offset` on, and about `room`.
async fn bring(
    blocks: &Arc<Blocks>,
    partition: &Partition,
    r: &StoredRange,
    offset: Offset,
    room: usize,
) -> Result<Brought, ReadError> {
    if !is_history(r) {
        return blocks.range(r).await.map(of_object);
    }
    let batches = blocks
        .history
        .read(partition, r, offset.max(r.base_offset), room)
        .await?;
    Ok((batches, Origin::History))
}

impl Reading<'_> {
    /// Takes what is wanted of a range.
    fn take(&mut self, r: StoredRange, read: Result<Brought, ReadError>) -> Result<Taken, Failed> {
        let cutting = read.and_then(|(chunks, origin)| {
            cut(&r, &chunks, origin, self.want)
                .map_err(|e| ReadError::Corrupt(format!("{}: {e}", keys::place(r.place))))
        });
        match cutting {
            Ok(cut) => Ok(self.give(cut)),
            // What was read so far is good; the reader will ask again from here.
            Err(_) if self.result.bytes > 0 => Ok(Taken::Enough),
            Err(ReadError::Corrupt(what)) => Ok(Taken::Damaged(what)),
            Err(e) => Err(Failed(e, Some(r))),
        }
    }

    fn give(&mut self, cut: Cut) -> Taken {
        self.result.bytes += cut.chunks.iter().map(Bytes::len).sum::<usize>();
        self.result.chunks.extend(cut.chunks);
        self.want.room = self.max_bytes.saturating_sub(self.result.bytes);
        self.want.at_least_one = self.result.bytes == 0;
        self.want.offset = cut.next;
        if cut.full { Taken::Enough } else { Taken::More }
    }

    /// Takes what is wanted of a range that was damaged, from its bytes as they are when they are read again.
    async fn retake(&mut self, r: StoredRange, what: &str) -> Result<(), Failed> {
        let cut = self.reread(&r, what).await.map_err(|e| Failed(e, Some(r)))?;
        self.give(cut);
        Ok(())
    }

    /// Reads a range again whose bytes are not what they should be.
    async fn reread(&self, r: &StoredRange, what: &str) -> Result<Cut, ReadError> {
        if is_history(r) {
            self.blocks.history.forget(self.partition, r).await;
        }
        self.blocks.forget(r).await;
        tracing::warn!(what, "stored bytes do not match; reading the range again");
        let (offset, room) = (self.want.offset, self.want.room);
        let brought = bring(self.blocks, self.partition, r, offset, room).await;
        let (chunks, origin) = brought.inspect_err(|e| {
            if let ReadError::Corrupt(what) = e {
                tracing::error!(what, "stored bytes are damaged");
            }
        })?;
        cut(r, &chunks, origin, self.want).map_err(|e| {
            let what = format!("{e} at offset {} in {}", r.base_offset, keys::place(r.place));
            tracing::error!(what, "stored bytes are damaged");
            ReadError::Corrupt(what)
        })
    }
}

/// Looks up an offset.
pub(crate) async fn lookup(
    blocks: &Blocks,
    partition: &Arc<Partition>,
    what: OffsetLookup,
) -> Result<Option<FoundOffset>, ReadError> {
    if partition.is_gone() {
        return Err(ReadError::NotLeader);
    }
    let (range, at_least) = {
        let image = partition.published.lock();
        let w = partition.watermarks_of(&image);
        let bare = |offset| {
            let epoch = image.state.epoch_of(offset);
            let leader_epoch = if offset >= w.high_watermark {
                w.leader_epoch
            } else {
                epoch
            };
            Ok(Some(FoundOffset {
                offset,
                timestamp: -1,
                leader_epoch,
            }))
        };
        match what {
            OffsetLookup::Latest(Isolation::ReadUncommitted) => return bare(w.high_watermark),
            OffsetLookup::Latest(Isolation::ReadCommitted) => return bare(w.last_stable_offset),
            OffsetLookup::Earliest => return bare(w.log_start_offset),
            OffsetLookup::Timestamp(t) => (image.ranges.iter().find(|r| r.max_timestamp >= t).copied(), t),
            OffsetLookup::MaxTimestamp => {
                // The first of equals, as Kafka: strictly greater replaces.
                let newest = image
                    .ranges
                    .iter()
                    .fold(None::<&StoredRange>, |best, r| match best {
                        Some(b) if b.max_timestamp >= r.max_timestamp => Some(b),
                        _ => Some(r),
                    });
                (newest.copied(), newest.map_or(-1, |r| r.max_timestamp))
            }
        }
    };
    let Some(range) = range.filter(|r| r.max_timestamp >= 0 || at_least < 0) else {
        return Ok(None);
    };
    let (mut from, mut plans) = (range, 1);
    let log_start = partition.watermarks().log_start_offset;
    loop {
        let found = match found_in(blocks, partition, &from, at_least, log_start).await {
            Ok(found) => found,
            Err(ReadError::Missing(key)) if plans < PLANS => {
                match now_at(partition, &from) {
                    Some(now) if now != from => from = now,
                    Some(_) => return Err(ReadError::Missing(key)),
                    None => return Ok(None),
                }
                plans += 1;
                continue;
            }
            Err(e) => return Err(e),
        };
        match found {
            Some((offset, timestamp)) => {
                let leader_epoch = partition.published.lock().state.epoch_of(offset);
                return Ok(Some(FoundOffset {
                    offset,
                    timestamp,
                    leader_epoch,
                }));
            }
            // All that match lie below the log start, or are compacted away: go on with the next range.
            None => {
                let image = partition.published.lock();
                let rest = image.ranges.range(image.range_from(from.last_offset + 1)..);
                match rest.copied().find(|r| r.max_timestamp >= at_least) {
                    Some(next) => from = next,
                    None => return Ok(None),
                }
            }
        }
    }
}

/// Offset and timestamp of the first record of a range at or above `log_start` whose timestamp is not below `at_least`.
async fn found_in(
    blocks: &Blocks,
    partition: &Partition,
    r: &StoredRange,
    at_least: i64,
    log_start: Offset,
) -> Result<Option<(Offset, i64)>, ReadError> {
    if is_history(r) {
        let from = log_start.max(r.base_offset);
        return blocks
            .history
            .first_at_or_after(partition, r, at_least, from)
            .await;
    }
    let (chunks, verify) = blocks.range(r).await?;
    match first_at_or_after(&chunks, verify, at_least, log_start) {
        Ok(found) => Ok(found),
        Err(e) => {
            blocks.forget(r).await;
            Err(ReadError::Corrupt(format!("{e} in {}", keys::place(r.place))))
        }
    }
}

/// Offset and timestamp of the first record at or above `log_start` whose timestamp is not below `at_least`.
fn first_at_or_after(
    chunks: &[Bytes],
    verify: bool,
    at_least: i64,
    log_start: Offset,
) -> Result<Option<(Offset, i64)>, BatchError> {
    let mut found = None;
    walk(chunks, verify, |b| {
        if b.header.max_timestamp < at_least || b.header.last_offset() < log_start {
            return Ok(true);
        }
        let batch: RecordBatch = b.to_batch(chunks)?;
        let _one = OPENING.lock();
        for record in &batch.records(LOOKUP_BYTES)? {
            let record = record?;
            if record.timestamp >= at_least && record.offset >= log_start {
                found = Some((record.offset, record.timestamp));
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    Ok(found)
}
