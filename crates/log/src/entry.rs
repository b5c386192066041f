//! Entries: everything that is ordered and fenced in a stream is one of these.

use bytes::Bytes;

use crate::{Offset, Slot, TopicPartition};

/// One entry of a segment's index. The index is authoritative for offset, epoch and append time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Record batches of one partition, contiguous in the segment.
    Batches(BatchRange),
    /// The log start moved: everything below `offset` may be forgotten.
    LogStart {
        /// The partition.
        partition: TopicPartition,
        /// Epoch of the leader that moved it.
        leader_epoch: i32,
        /// The new log start.
        offset: Offset,
    },
    /// The owner appends to the slot no more; whoever gets it next goes on from here.
    Release {
        /// The slot.
        slot: Slot,
        /// Epoch of the leader that released it.
        leader_epoch: i32,
        /// All that is to know of the slot, as a checkpoint keeps it ([`crate::format::checkpoint::encode_slot`]).
        image: Bytes,
    },
    /// Batches that stood in segments now stand, unchanged, in a merged object as well.
    Merged(MergedRanges),
}

impl Entry {
    /// Partition and epoch of an entry that changes a partition; entries of an epoch that the stream was not granted
    /// are ignored.
    pub fn scope(&self) -> Option<(TopicPartition, i32)> {
        match self {
            Entry::Batches(r) => Some((r.partition, r.leader_epoch)),
            Entry::Merged(m) => Some((m.partition, m.leader_epoch)),
            Entry::LogStart {
                partition,
                leader_epoch,
                ..
            } => Some((*partition, *leader_epoch)),
            Entry::Release { .. } => None,
        }
    }
}

/// Batches of one partition that stand side by side in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchRange {
    /// The partition.
    pub partition: TopicPartition,
    /// Leader epoch under which the offsets were given.
    pub leader_epoch: i32,
    /// Byte position in the object.
    pub position: u64,
    /// Wall-clock time (ms) at which the last of the batches was appended; never goes back in a partition.
    pub append_time_ms: i64,
    /// The batches, in offset order.
    pub batches: Vec<BatchEntry>,
}

impl BatchRange {
    /// First offset; ranges are never empty.
    pub fn base_offset(&self) -> Offset {
        self.batches.first().map_or(0, |b| b.base_offset)
    }
    /// Last offset.
    pub fn last_offset(&self) -> Offset {
        self.batches.last().map_or(-1, |b| b.last_offset)
    }
    /// Bytes of all batches.
    pub fn byte_len(&self) -> u64 {
        self.batches.iter().map(|b| u64::from(b.size)).sum()
    }
}

/// What the index knows of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchEntry {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset of the last record.
    pub last_offset: Offset,
    /// Records; not the span of offsets where a batch was compacted.
    pub records: u32,
    /// Bytes, header included.
    pub size: u32,
    /// Timestamp (ms) of the first record.
    pub base_timestamp: i64,
    /// Greatest timestamp (ms).
    pub max_timestamp: i64,
    /// Attributes as in the batch header: codec, timestamp type, transactional, control.
    pub attributes: i16,
    /// The idempotent producer, if any.
    pub producer: Option<BatchProducer>,
}

/// Producer fields of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchProducer {
    /// Producer id.
    pub id: i64,
    /// Producer epoch.
    pub epoch: i16,
    /// Sequence of the first record.
    pub first_sequence: i32,
    /// Sequence of the last record; wraps to 0 after `i32::MAX`.
    pub last_sequence: i32,
}

/// Neighbouring ranges of one partition in one merged object (L1): offsets and bytes both go on without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MergedRanges {
    /// The partition.
    pub partition: TopicPartition,
    /// Leader epoch of who merged them; the batches may be of earlier ones.
    pub leader_epoch: i32,
    /// Number of the object; together with the incarnation of the stream that this entry stands in it gives the key.
    pub file: u64,
    /// Byte position of the first range in the object.
    pub position: u32,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The ranges, in offset order; never none.
    pub ranges: Vec<MergedRange>,
}

/// One range of a merged object; it begins where the one before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MergedRange {
    /// Offset of the last record.
    pub last_offset: Offset,
    /// Bytes.
    pub len: u32,
    /// Greatest timestamp (ms) of its records.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it.
    pub append_time_ms: i64,
}

impl MergedRanges {
    /// Offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.ranges.last().map_or(self.base_offset - 1, |r| r.last_offset)
    }
    /// Bytes of all ranges.
    pub fn byte_len(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.len)).sum()
    }
}

/// What kind of object some bytes stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// A segment of a stream.
    L0,
    /// A merged object.
    L1,
}

/// Where something stands in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Segment or merged object.
    pub level: Level,
    /// The stream, or that of the broker start that merged.
    pub incarnation: crate::Incarnation,
    /// Position of the segment in the stream, or number of the merged object.
    pub seq: u64,
}

impl Place {
    /// A segment.
    pub fn l0(incarnation: crate::Incarnation, seq: crate::Seq) -> Place {
        Place {
            level: Level::L0,
            incarnation,
            seq,
        }
    }

    /// A merged object.
    pub fn l1(incarnation: crate::Incarnation, number: u64) -> Place {
        Place {
            level: Level::L1,
            incarnation,
            seq: number,
        }
    }
}
