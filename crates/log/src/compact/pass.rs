//! One pass through a partition: which records stay, and the bytes of what is written anew. The pure part.
//!
//! Which records stay is Kafka's rule (`LogCleaner`): the newest of each key, a deletion mark among them for
//! `delete.retention.ms` after a pass first met it (KIP-534), and none without a key. Every offset still has a batch that
//! stands for it. Where all records of a batch are gone the one before it is stretched; but not beyond its leader epoch,
//! since a consumer would then look for its position behind the end of that epoch and take the log for truncated: there
//! an empty batch stands in.
//!
//! What cannot be read hides records that nobody knows. Nothing of it is lost, and nothing that is missing follows from
//! it: deletion marks behind it stay, because what they delete may be in it, and they do not count as met. What could not
//! be read when the map was made hides records that the map lacks, so it is not read afterwards either.
//!
//! Offsets of which no record is left are as old as the records that were there, as far as retention is concerned: an empty
//! range must not hold back what lies behind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::map::OffsetMap;
use super::plan::time_of;
use crate::batch::{
    BatchError, BatchRecords, BatchView, ChunkCursor, RecordBatch, RecordRef, RewriteError, empty_batch,
};
use crate::entry::MergedRange;
use crate::partition::image::StoredRange;
use crate::{Offset, TopicPartition};

/// A batch is opened up to this size: larger ones no producer can put into a compacted topic.
const BATCH_BYTES: usize = 32 << 20;
/// A range is at most this long, unless a single batch is longer.
const RANGE_BYTES: u64 = 1 << 20;
/// A range in which nothing changes is left where it is if it has so many bytes. Smaller ones are gathered.
const LEFT_BYTES: u64 = RANGE_BYTES / 4;

/// The map has no room for the keys of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A batch, as far as compaction understands it.
enum Inside {
    /// Data, and its records.
    Data(RecordBatch, BatchRecords),
    /// A transaction's end marker, which stays.
    Control(RecordBatch),
    /// Its records cannot be read. They stay.
    Opaque(RecordBatch, BatchError),
}

/// Opens one batch whose checksum is right.
fn open(view: &BatchView, chunks: &[Bytes]) -> Inside {
    let batch = RecordBatch {
        bytes: view.in_one_piece(chunks),
        header: view.header,
    };
    if view.header.is_control() {
        return Inside::Control(batch);
    }
    let walked = batch.records(BATCH_BYTES).and_then(|records| {
        // All of them, before anything follows from one.
        records.iter().try_for_each(|record| record.map(|_| ()))?;
        Ok(records)
    });
    match walked {
        Ok(records) => Inside::Data(batch, records),
        Err(why) => Inside::Opaque(batch, why),
    }
}

/// Puts the keys of a range into the map. Its bytes are verified.
///
/// What belongs to a transaction does not count: it may have been aborted, and then takes nothing's place.
pub(crate) fn note_keys(map: &mut OffsetMap, chunks: &[Bytes]) -> Result<(), Full> {
    let mut cursor = ChunkCursor::new(chunks);
    while let Some(Ok(view)) = cursor.next_batch() {
        if view.header.is_transactional() {
            continue;
        }
        let Inside::Data(_, records) = open(&view, chunks) else {
            continue;
        };
        for record in records.iter().flatten() {
            if let Some(key) = record.key
                && !map.put(key, record.offset)
            {
                return Err(Full);
            }
        }
    }
    Ok(())
}

/// Ranges that could not be read, by their first offset, and why.
pub(crate) type Unread = BTreeMap<Offset, String>;

/// By what records are judged.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The newest offset of each key of the part that was not gone through before. It holds all keys of whole ranges,
    pub(crate) newest: Arc<OffsetMap>,
    /// but for these.
    pub(crate) unread: Unread,
    /// Wall-clock time (ms) of the pass.
    pub(crate) now_ms: i64,
    /// `delete.retention.ms`
    pub(crate) delete_retention_ms: i64,
}

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Bytes of the ranges that were gone through.
    pub(crate) bytes_read: u64,
    /// Bytes of those ranges that were written anew, before and after.
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    /// Records that were read, and that were taken out.
    pub(crate) records: u64,
    pub(crate) removed: u64,
    /// Batches that could not be opened.
    pub(crate) opaque: u64,
}

/// Neighbouring ranges that are written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) base_offset: Offset,
    /// Where it begins in the object.
    pub(crate) position: usize,
    pub(crate) ranges: Vec<MergedRange>,
}

/// What one object will hold.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// The object so far: what stands before its data, and the data.
    pub(crate) object: BytesMut,
    /// By offset.
    pub(crate) runs: Vec<Run>,
}

/// What becomes of a batch.
enum Step {
    /// It is written: as it was, or without some of its records.
    Write(RecordBatch),
    /// Nothing of it is left.
    Drop {
        base_offset: Offset,
        last_offset: Offset,
        leader_epoch: i32,
        /// The greatest timestamp (ms) that it had; negative if it had none, or no record before.
        max_timestamp: i64,
    },
}

/// A range that was gone through.
struct Judged {
    range: StoredRange,
    steps: Vec<Step>,
    changed: bool,
}

/// A run that is being written. Its last batch waits for what may have to be added to its span.
struct OpenRun {
    run: Run,
    last: Option<LastBatch>,
}

struct LastBatch {
    batch: RecordBatch,
    last_offset: Offset,
    /// Of one without records the time by which those are judged that it stands for.
    append_time_ms: i64,
}

/// Goes through the ranges of a partition in offset order.
pub(crate) struct Rewriter {
    partition: TopicPartition,
    rules: Rules,
    piece: Piece,
    open: Option<OpenRun>,
    /// A small range in which nothing changes: it is left where it is unless the next one is written.
    held: Option<Judged>,
    /// Something could not be read before this point.
    obstructed: bool,
    /// Where the first range begins that could not be read: the partition is clean up to there at most.
    pub(crate) obstacle: Option<Offset>,
    pub(crate) tally: Tally,
}

impl Rewriter {
    /// Writes into an object that begins with `head`.
    pub(crate) fn new(partition: TopicPartition, rules: Rules, head: BytesMut) -> Rewriter {
        Rewriter {
            partition,
            rules,
            piece: Piece {
                object: head,
                runs: vec![],
            },
            open: None,
            held: None,
            obstructed: false,
            obstacle: None,
            tally: Tally::default(),
        }
    }

    /// Goes through a range, whose bytes are verified. With `write` it is written also if nothing in it changes.
    pub(crate) fn range(
        &mut self,
        r: &StoredRange,
        chunks: &[Bytes],
        write: bool,
    ) -> Result<(), RewriteError> {
        self.tally.bytes_read += u64::from(r.len);
        let judged = self.judge(r, chunks)?;
        if judged.changed || write {
            if let Some(held) = self.held.take() {
                self.write(held)?;
            }
            return self.write(judged);
        }
        if u64::from(r.len) >= LEFT_BYTES {
            self.skip();
            return Ok(());
        }
        if self.open.is_some() {
            return self.write(judged);
        }
        match self.held.take() {
            Some(held) => {
                self.write(held)?;
                self.write(judged)
            }
            None => {
                self.held = Some(judged);
                Ok(())
            }
        }
    }

    /// Why a range is not to be read, if it could not be read when the map was made.
    pub(crate) fn was_unread(&self, r: &StoredRange) -> Option<&str> {
        self.rules.unread.get(&r.base_offset).map(String::as_str)
    }

    /// Passes over a range that cannot be read.
    pub(crate) fn unreadable(&mut self, r: &StoredRange) {
        self.obstacle = self.obstacle.or(Some(r.base_offset));
        self.gap();
    }

    /// Passes over offsets that stand where they are not written anew.
    pub(crate) fn gap(&mut self) {
        self.obstructed = true;
        self.skip();
    }

    /// Passes over a range that nobody needs any more, or that stays where it is.
    pub(crate) fn skip(&mut self) {
        self.held = None;
        self.close_run();
    }

    /// Bytes of the object so far.
    pub(crate) fn len(&self) -> u64 {
        let waiting = self.open.as_ref().and_then(|open| open.last.as_ref());
        (self.piece.object.len() + waiting.map_or(0, |last| last.batch.len())) as u64
    }

    /// What was written so far. The next piece begins with `head`.
    pub(crate) fn take(&mut self, head: BytesMut) -> Piece {
        self.skip();
        let next = Piece {
            object: head,
            runs: vec![],
        };
        std::mem::replace(&mut self.piece, next)
    }

    fn judge(&mut self, r: &StoredRange, chunks: &[Bytes]) -> Result<Judged, RewriteError> {
        let mut judged = Judged {
            range: *r,
            steps: vec![],
            changed: false,
        };
        let mut cursor = ChunkCursor::new(chunks);
        while let Some(view) = cursor.next_batch() {
            let step = match open(&view?, chunks) {
                Inside::Control(batch) => Step::Write(batch),
                Inside::Opaque(batch, why) => {
                    tracing::warn!(
                        topic = %self.partition.topic, partition = self.partition.partition,
                        offset = batch.header().base_offset, %why,
                        "a batch cannot be compacted; it stays as it is"
                    );
                    self.obstructed = true;
                    self.tally.opaque += 1;
                    Step::Write(batch)
                }
                Inside::Data(batch, records) => {
                    let (step, changed) = self.thin(batch, &records)?;
                    judged.changed |= changed;
                    step
                }
            };
            judged.steps.push(step);
        }
        Ok(judged)
    }

    /// Takes out of a batch what goes. Also answers whether that is anything.
    fn thin(&mut self, batch: RecordBatch, records: &BatchRecords) -> Result<(Step, bool), RewriteError> {
        let header = *batch.header();
        let horizon = header.delete_horizon_ms();
        // What belongs to a transaction has taken nothing away, so its deletion marks still have their meaning.
        let marks_go = !self.obstructed
            && !header.is_transactional()
            && horizon.is_some_and(|horizon| self.rules.now_ms >= horizon);
        let newest = &self.rules.newest;
        let stays = |record: &RecordRef<'_>| {
            let Some(key) = record.key else { return false };
            let superseded = newest.get(key).is_some_and(|newest| record.offset < newest);
            !superseded && (record.value.is_some() || !marks_go)
        };
        let (mut kept, mut marks, mut count) = (0u64, false, 0u64);
        for record in records {
            let record = record?;
            count += 1;
            if stays(&record) {
                kept += 1;
                marks |= record.value.is_none();
            }
        }
        self.tally.records += count;
        self.tally.removed += count - kept;
        if kept == 0 {
            let step = Step::Drop {
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                leader_epoch: header.leader_epoch,
                max_timestamp: header.max_timestamp,
            };
            // An empty batch that is there already changes nothing by itself.
            return Ok((step, count > 0));
        }
        let first_met = marks && !self.obstructed && horizon.is_none() && !header.is_transactional();
        if kept == count && !first_met {
            return Ok((Step::Write(batch), false));
        }
        let horizon = self.rules.now_ms.saturating_add(self.rules.delete_retention_ms);
        let less = batch.with_records(records, stays, first_met.then_some(horizon))?;
        Ok((Step::Write(less), true))
    }

    fn write(&mut self, judged: Judged) -> Result<(), RewriteError> {
        let r = judged.range;
        self.tally.bytes_before += u64::from(r.len);
        let open = self.open.get_or_insert_with(|| OpenRun {
            run: Run {
                base_offset: r.base_offset,
                position: self.piece.object.len(),
                ranges: vec![],
            },
            last: None,
        });
        for step in judged.steps {
            match step {
                Step::Write(batch) => open.add(&mut self.piece.object, batch, r.append_time_ms),
                Step::Drop {
                    base_offset,
                    last_offset,
                    leader_epoch,
                    max_timestamp,
                } => {
                    let time = if max_timestamp >= 0 {
                        max_timestamp
                    } else {
                        time_of(&r)
                    };
                    open.cover(
                        &mut self.piece.object,
                        (base_offset, last_offset),
                        leader_epoch,
                        // What is not there any more need not stay for a timestamp ahead of the clock.
                        time.min(r.append_time_ms),
                    );
                }
            }
        }
        Ok(())
    }

    fn close_run(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.settle(&mut self.piece.object);
            let bytes: u64 = open.run.ranges.iter().map(|r| u64::from(r.len)).sum();
            self.tally.bytes_after += bytes;
            self.piece.runs.push(open.run);
        }
    }
}

impl OpenRun {
    fn add(&mut self, object: &mut BytesMut, batch: RecordBatch, append_time_ms: i64) {
        self.settle(object);
        self.last = Some(LastBatch {
            last_offset: batch.header().last_offset(),
            batch,
            append_time_ms,
        });
    }

    /// Lets something stand for offsets of which no record is left, and which `time_ms` judges.
    fn cover(
        &mut self,
        object: &mut BytesMut,
        (base_offset, last_offset): (Offset, Offset),
        leader_epoch: i32,
        time_ms: i64,
    ) {
        if let Some(last) = &mut self.last {
            let header = *last.batch.header();
            let fits = last_offset - header.base_offset <= i64::from(i32::MAX);
            if fits && header.leader_epoch == leader_epoch {
                last.last_offset = last_offset;
                last.append_time_ms = last.append_time_ms.max(time_ms);
                return;
            }
            if fits && header.record_count == 0 && !header.is_control() {
                // Who has passed it is in the newest of the epochs that it stands for.
                last.batch = empty_batch(header.base_offset, last_offset, leader_epoch);
                last.last_offset = last_offset;
                last.append_time_ms = last.append_time_ms.max(time_ms);
                return;
            }
        }
        let empty = empty_batch(base_offset, last_offset, leader_epoch);
        self.add(object, empty, time_ms);
    }

    /// Writes the batch that waited.
    fn settle(&mut self, object: &mut BytesMut) {
        let Some(last) = self.last.take() else { return };
        let stretched = (last.last_offset > last.batch.header().last_offset())
            .then(|| last.batch.stretched(last.last_offset))
            .flatten();
        let batch = stretched.unwrap_or(last.batch);
        object.extend_from_slice(batch.bytes());
        let header = batch.header();
        let one = MergedRange {
            last_offset: header.last_offset(),
            len: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            max_timestamp: header.max_timestamp,
            append_time_ms: last.append_time_ms,
        };
        let fits = |r: &&mut MergedRange| u64::from(r.len) + u64::from(one.len) <= RANGE_BYTES;
        match self.run.ranges.last_mut().filter(fits) {
            Some(r) => {
                *r = MergedRange {
                    len: r.len + one.len,
                    max_timestamp: r.max_timestamp.max(one.max_timestamp),
                    append_time_ms: r.append_time_ms.max(one.append_time_ms),
                    ..one
                };
            }
            None => self.run.ranges.push(one),
        }
    }
}

#[cfg(test)]
#[path = "pass_tests.rs"]
mod tests;
