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
    /// What stood in segments or merged objects now stands in another merged object: without the records that compaction
    /// took away, or, where it was gathered, unchanged. The ranges stand for the same offsets as before, also where no
    /// record is left.
    Compacted(CompactedRanges),
    /// What stood in segments or merged objects now stands in a file of history.
    Archived(ArchivedShares),
}

impl Entry {
    /// Partition and epoch of an entry that changes a partition; entries of an epoch that the stream was not granted
    /// are ignored.
    pub fn scope(&self) -> Option<(TopicPartition, i32)> {
        match self {
            Entry::Batches(r) => Some((r.partition, r.leader_epoch)),
            Entry::Merged(m) => Some((m.partition, m.leader_epoch)),
            Entry::Compacted(c) => Some((c.merged.partition, c.merged.leader_epoch)),
            Entry::Archived(a) => Some((a.partition, a.leader_epoch)),
            Entry::LogStart {
                partition,
                leader_epoch,
                ..
            } => Some((*partition, *leader_epoch)),
            Entry::Release { .. } => None,
        }
    }

    /// What the entry puts in the place of other ranges, if it is a pointer.
    pub fn rewrite(&self) -> Option<Rewrite> {
        let (partition, base_offset, last_offset, highest) = match self {
            Entry::Merged(m) => (m.partition, m.base_offset, m.last_offset(), Level::L0),
            Entry::Compacted(CompactedRanges { merged: m, .. }) => {
                (m.partition, m.base_offset, m.last_offset(), Level::L1)
            }
            Entry::Archived(a) => (a.partition, a.base_offset, a.last_offset(), Level::L1),
            Entry::Batches(_) | Entry::LogStart { .. } | Entry::Release { .. } => return None,
        };
        Some(Rewrite {
            partition,
            base_offset,
            last_offset,
            highest,
        })
    }
}

/// Offsets whose bytes stand elsewhere from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The partition.
    pub partition: TopicPartition,
    /// First offset.
    pub base_offset: Offset,
    /// Last offset.
    pub last_offset: Offset,
    /// What stands on a higher level than this must not be replaced.
    pub highest: Level,
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
    /// Greatest timestamp (ms) of its records; -1 if there are none.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it. Where compaction left no record, the greatest timestamp of those
    /// that there were, if it is earlier: retention judges by it.
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

/// Merged data from which compaction took what is superseded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CompactedRanges {
    /// Where it stands.
    pub merged: MergedRanges,
    /// Below this offset compaction has gone through everything that there is: no key has two records there, and nothing
    /// that a deletion mark there deletes is left. What is there already is not made less by it.
    pub clean_to: Offset,
}

/// Neighbouring shares of one partition in one file of history (L2): offsets go on without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchivedShares {
    /// The partition.
    pub partition: TopicPartition,
    /// Leader epoch of who archived them; the records may be of earlier ones.
    pub leader_epoch: i32,
    /// Number of the file; together with the incarnation of the stream that this entry stands in and with the topic it
    /// gives the key.
    pub file: u64,
    /// First offset that the first share stands for.
    pub base_offset: Offset,
    /// The shares, in offset order; never none.
    pub shares: Vec<ArchivedShare>,
}

/// One share of a file of history; it stands for the offsets from the end of the one before it on, whether there are
/// records of them or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArchivedShare {
    /// Last offset that it stands for.
    pub last_offset: Offset,
    /// Row in the file, counted from 0, of its first record.
    pub first_row: u32,
    /// Bytes of the file that are its own, about.
    pub len: u32,
    /// Greatest timestamp (ms) of its records; -1 if none has one.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it.
    pub append_time_ms: i64,
}

impl ArchivedShares {
    /// Last offset that the last share stands for.
    pub fn last_offset(&self) -> Offset {
        self.shares.last().map_or(self.base_offset - 1, |s| s.last_offset)
    }
    /// Bytes of all shares.
    pub fn byte_len(&self) -> u64 {
        self.shares.iter().map(|s| u64::from(s.len)).sum()
    }
}

/// What kind of object some bytes stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// A segment of a stream.
    L0,
    /// A merged object.
    L1,
    /// A file of history.
    L2,
}

/// Where something stands in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Segment, merged object or file of history.
    pub level: Level,
    /// The stream, or that of the broker start that merged or archived.
    pub incarnation: crate::Incarnation,
    /// Position of the segment in the stream, or number of the merged object or file.
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

    /// A file of history. Its key holds the topic as well.
    pub fn l2(incarnation: crate::Incarnation, number: u64) -> Place {
        Place {
            level: Level::L2,
            incarnation,
            seq: number,
        }
    }
}
