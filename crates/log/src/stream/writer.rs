//! Builds a segment from what was appended: the pure part.
//!
//! Batches are sorted by partition. The 61-byte header of each is written anew (base offset and leader epoch
//! are assigned here and lie outside the batch's CRC); small bodies are copied behind it, large ones are
//! referenced, so that a large payload is never copied between socket and store.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::batch::{BatchHeader, RecordBatch};
use crate::entry::{BatchEntry, BatchRange, Entry};
use crate::format::segment::{SegmentHead, SegmentHeader, SegmentIndex, encode_tail};
use crate::partition::state::producer_of;
use crate::{Offset, TopicPartition};

/// Bodies up to this size are copied: an HTTP client writes at most 16 pieces at a time, and many small pieces
/// cost more than they save.
const COPY_BELOW: usize = 16 * 1024;
const BATCH_HEADER_LEN: usize = 61;

/// A batch whose place in the log is decided.
#[derive(Clone, Debug)]
pub(crate) struct AssignedBatch {
    pub(crate) partition: TopicPartition,
    pub(crate) leader_epoch: i32,
    pub(crate) base_offset: Offset,
    pub(crate) append_time_ms: i64,
    pub(crate) batch: RecordBatch,
}

impl AssignedBatch {
    pub(crate) fn entry(&self) -> BatchEntry {
        batch_entry(self.batch.header(), self.base_offset)
    }
}

/// What the index says of a batch that gets `base_offset`.
pub fn batch_entry(h: &BatchHeader, base_offset: Offset) -> BatchEntry {
    BatchEntry {
        base_offset,
        last_offset: base_offset + i64::from(h.last_offset_delta),
        records: h.record_count.max(0) as u32,
        size: h.size() as u32,
        base_timestamp: h.base_timestamp,
        max_timestamp: h.max_timestamp,
        attributes: h.attributes,
        producer: producer_of(h),
    }
}

/// The bytes of an object in memory, in pieces.
#[derive(Clone, Debug)]
pub(crate) struct SegmentBytes {
    /// Position and bytes of each piece, in order, without gaps.
    pieces: Vec<(u64, Bytes)>,
    len: u64,
}

impl SegmentBytes {
    fn new(chunks: impl IntoIterator<Item = Bytes>) -> SegmentBytes {
        let (mut pieces, mut len) = (vec![], 0);
        for c in chunks.into_iter().filter(|c| !c.is_empty()) {
            pieces.push((len, c.clone()));
            len += c.len() as u64;
        }
        SegmentBytes { pieces, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().map(|(_, c)| c)
    }

    /// The bytes from `from` to `to` by reference; fewer if the object ends before.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Vec<Bytes> {
        let first = self.pieces.partition_point(|(at, c)| at + c.len() as u64 <= from);
        let mut out = vec![];
        for (at, c) in &self.pieces[first..] {
            if *at >= to {
                break;
            }
            let start = from.saturating_sub(*at) as usize;
            let end = ((to - at) as usize).min(c.len());
            out.push(c.slice(start..end));
        }
        out
    }
}

/// A segment that is ready to be written.
#[derive(Debug)]
pub(crate) struct BuiltSegment {
    pub(crate) entries: Vec<Entry>,
    pub(crate) bytes: SegmentBytes,
}

/// Builds the object. `batches` are in append order; the order within a partition is kept.
pub(crate) fn build(
    header: SegmentHeader,
    cluster: Uuid,
    mut batches: Vec<AssignedBatch>,
    others: Vec<Entry>,
) -> BuiltSegment {
    batches.sort_by_key(|b| b.partition); // stable
    let data_len: usize = batches.iter().map(|b| b.batch.len()).sum();
    let head = SegmentHead::new(&header, cluster, data_len as u64);
    let mut position = head.data_start();
    let mut chunks = vec![head.into_bytes()];
    let entries = index_entries(&batches, &mut position, others);

    let copied = |b: &AssignedBatch| {
        if b.batch.len() < COPY_BELOW {
            b.batch.len()
        } else {
            BATCH_HEADER_LEN
        }
    };
    let mut gathered = BytesMut::with_capacity(batches.iter().map(copied).sum());
    for b in &batches {
        gathered.extend_from_slice(&b.batch.patched_header(b.base_offset, b.leader_epoch));
        if b.batch.len() < COPY_BELOW {
            gathered.extend_from_slice(&b.batch.bytes()[BATCH_HEADER_LEN..]);
        } else {
            chunks.push(gathered.split().freeze());
            chunks.push(b.batch.body());
        }
    }
    chunks.push(gathered.freeze());
    let index = SegmentIndex { header, entries };
    chunks.push(encode_tail(&index, position));
    BuiltSegment {
        entries: index.entries,
        bytes: SegmentBytes::new(chunks),
    }
}

fn index_entries(batches: &[AssignedBatch], position: &mut u64, others: Vec<Entry>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    for b in batches {
        match entries.last_mut() {
            Some(Entry::Batches(r)) if (r.partition, r.leader_epoch) == (b.partition, b.leader_epoch) => {
                r.append_time_ms = r.append_time_ms.max(b.append_time_ms);
                r.batches.push(b.entry());
            }
            _ => entries.push(Entry::Batches(BatchRange {
                partition: b.partition,
                leader_epoch: b.leader_epoch,
                position: *position,
                append_time_ms: b.append_time_ms,
                batches: vec![b.entry()],
            })),
        }
        *position += b.batch.len() as u64;
    }
    entries.extend(others);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, ChunkCursor};
    use crate::format::segment::{decode_index, read_header};
    use crate::format::{IndexOrMore, ObjectKind, index_of};
    use proptest::prelude::*;

    fn batch(size: usize) -> RecordBatch {
        let mut b = BatchBuilder::new();
        b.push(5, None, Some(&vec![7u8; size]), &[]);
        b.build()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_batch_is_found_again_at_its_position(sizes in proptest::collection::vec((0i32..4, 1usize..40_000), 1..40)) {
            let (cluster, topic) = (Uuid::from_u128(1), Uuid::from_u128(9));
            let header = SegmentHeader {
                incarnation: 1, seq: 2, nonce: Uuid::from_u128(3), manifest_version: 1, checkpoint_next: None,
                committed_next: 2, written_ms: 100, seal: None,
            };
            let mut next = [0i64; 4];
            let batches: Vec<_> = sizes.iter().map(|(p, size)| {
                let base_offset = next[*p as usize];
                next[*p as usize] += 1;
                AssignedBatch {
                    partition: TopicPartition { topic, partition: *p }, leader_epoch: 4, base_offset,
                    append_time_ms: 90, batch: batch(*size),
                }
            }).collect();
            let built = build(header.clone(), cluster, batches, vec![]);
            let whole: Vec<u8> = built.bytes.chunks().flat_map(|c| c.to_vec()).collect();
            prop_assert_eq!(whole.len() as u64, built.bytes.len());
            let whole = Bytes::from(whole);
            prop_assert_eq!(&read_header(&whole, Some(cluster)).unwrap(), &header);
            let IndexOrMore::Index(index) = index_of(&whole, ObjectKind::Segment).unwrap() else { panic!() };
            let index = decode_index(index).unwrap();
            prop_assert_eq!(&index.entries, &built.entries);
            let mut seen = 0;
            for e in &index.entries {
                let Entry::Batches(r) = e else { panic!() };
                let chunks = built.bytes.slice(r.position, r.position + r.byte_len());
                let joined: Vec<u8> = chunks.iter().flat_map(|c| c.to_vec()).collect();
                prop_assert_eq!(&joined[..], &whole[r.position as usize..(r.position + r.byte_len()) as usize]);
                let mut cursor = ChunkCursor::new(&chunks);
                for b in &r.batches {
                    let view = cursor.next_batch().unwrap().unwrap();
                    view.verify(&chunks).unwrap();
                    prop_assert_eq!(view.header.base_offset, b.base_offset);
                    prop_assert_eq!(view.header.leader_epoch, 4);
                    prop_assert_eq!(view.len as u32, b.size);
                    seen += 1;
                }
                prop_assert!(cursor.next_batch().is_none());
            }
            prop_assert_eq!(seen, sizes.len());
        }
    }
}
