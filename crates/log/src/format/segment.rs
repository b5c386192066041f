//! A segment (L0) or the seal that ends a stream.
//!
//! ```text
//! preamble | HEADER | DATA: batches, sorted by partition | INDEX: header again, entries | trailer
//! ```
//! The header stands at both ends: at the start so that a writer can recognise its own object in the first
//! 256 bytes, in the index so that one suffix GET tells everything but the payload. An index entry is
//! delta-encoded: about ten bytes for a small range of one partition.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::*;
use crate::entry::{
    ArchivedShare, ArchivedShares, BatchEntry, BatchProducer, BatchRange, CompactedRanges, Entry,
};
use crate::partition::state::sequence_after;
use crate::{Incarnation, Seq, TopicPartition};

/// A GET of so many bytes from the start holds the header with the writer's nonce.
pub const HEAD_LEN: u64 = 256;
/// Bytes before the first batch in a segment with this build's header.
const INDEX_VERSION: u8 = 1;
const ENTRY_BATCHES: u8 = 1;
const ENTRY_LOG_START: u8 = 2;
const ENTRY_RELEASE: u8 = 3;
const ENTRY_MERGED: u8 = 4;
const ENTRY_COMPACTED: u8 = 5;
const ENTRY_ARCHIVED: u8 = 6;
/// Longest reason text in a seal.
const MAX_REASON: usize = 120;

/// Fields of every segment and seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The stream.
    pub incarnation: Incarnation,
    /// Position in it.
    pub seq: Seq,
    /// Tells this write from any other of the same key.
    pub nonce: Uuid,
    /// Manifest version that its writer had applied.
    pub manifest_version: u64,
    /// `next` of the newest durable checkpoint of the stream.
    pub checkpoint_next: Option<Seq>,
    /// Everything below this seq was published when this one was built.
    pub committed_next: Seq,
    /// Wall-clock time (ms) of the writer.
    pub written_ms: i64,
    /// Set if this object ends the stream.
    pub seal: Option<Seal>,
}

/// Who ended a stream, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Incarnation of the taker; the stream's own when it stopped gracefully.
    pub taker: Incarnation,
    /// Broker id of the taker.
    pub taker_node: i32,
    /// For people.
    pub reason: String,
}

/// Index of a segment: its header and entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// The header.
    pub header: SegmentHeader,
    /// The entries, batches first by partition.
    pub entries: Vec<Entry>,
}

fn encode_header(h: &SegmentHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(96);
    let start = HeaderStart {
        nonce: h.nonce,
        incarnation: h.incarnation,
        number: h.seq,
        manifest_version: h.manifest_version,
    };
    start.put(&mut out);
    put_unsigned(&mut out, h.checkpoint_next.map_or(0, |n| n + 1));
    put_unsigned(&mut out, h.committed_next);
    put_signed(&mut out, h.written_ms);
    match &h.seal {
        None => out.put_u8(0),
        Some(s) => {
            out.put_u8(1);
            put_unsigned(&mut out, s.taker);
            put_signed(&mut out, i64::from(s.taker_node));
            let mut cut = s.reason.len().min(MAX_REASON);
            while !s.reason.is_char_boundary(cut) {
                cut -= 1;
            }
            put_unsigned(&mut out, cut as u64);
            out.put_slice(&s.reason.as_bytes()[..cut]);
        }
    }
    out
}

fn decode_header(r: &mut Reader) -> Result<SegmentHeader, FormatError> {
    let start = HeaderStart::read(r)?;
    let checkpoint_next = r.unsigned()?.checked_sub(1);
    let committed_next = r.unsigned()?;
    let written_ms = r.signed()?;
    let seal = match r.u8()? {
        0 => None,
        1 => {
            let taker = r.unsigned()?;
            let node = i32::try_from(r.signed()?).map_err(|_| FormatError::Invalid("taker node"))?;
            Some(Seal {
                taker,
                taker_node: node,
                reason: r.string()?,
            })
        }
        _ => return Err(FormatError::Invalid("segment kind")),
    };
    Ok(SegmentHeader {
        incarnation: start.incarnation,
        seq: start.number,
        nonce: start.nonce,
        manifest_version: start.manifest_version,
        checkpoint_next,
        committed_next,
        written_ms,
        seal,
    })
}

/// Reads the header from the first [`HEAD_LEN`] bytes of an object: enough to know who wrote it.
pub fn read_header(prefix: &Bytes, cluster: Option<Uuid>) -> Result<SegmentHeader, FormatError> {
    decode_header(&mut first_section(prefix, ObjectKind::Segment, cluster)?)
}

/// Bytes of an object before its first batch: positions of ranges are known before the object is built.
#[derive(Debug)]
pub struct SegmentHead(BytesMut);

impl SegmentHead {
    /// Encodes everything that stands before the payload, whose length must be known.
    pub fn new(header: &SegmentHeader, cluster: Uuid, data_len: u64) -> SegmentHead {
        let mut out = BytesMut::with_capacity(256);
        put_preamble(&mut out, ObjectKind::Segment, cluster);
        put_section(&mut out, SECTION_HEADER, &encode_header(header));
        put_section_header(&mut out, SECTION_DATA, data_len);
        SegmentHead(out)
    }

    /// Position of the first payload byte.
    pub fn data_start(&self) -> u64 {
        self.0.len() as u64
    }

    /// The bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0.freeze()
    }
}

/// Encodes what stands after the payload. `so_far` is the length of head and payload.
pub fn encode_tail(index: &SegmentIndex, so_far: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(128 + index.entries.len() * 48);
    body.put_u8(INDEX_VERSION);
    let header = encode_header(&index.header);
    put_unsigned(&mut body, header.len() as u64);
    body.put_slice(&header);
    let scopes = index.entries.iter().filter_map(Entry::scope);
    let mut topics: Vec<Uuid> = scopes.map(|(tp, _)| tp.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    put_unsigned(&mut body, topics.len() as u64);
    topics.iter().for_each(|t| body.put_slice(t.as_bytes()));
    put_unsigned(&mut body, index.entries.len() as u64);
    let mut scratch = BytesMut::new();
    for e in &index.entries {
        scratch.clear();
        let code = encode_entry(&mut scratch, e, &topics, index.header.written_ms);
        body.put_u8(code);
        put_unsigned(&mut body, scratch.len() as u64);
        body.put_slice(&scratch);
    }
    let mut out = BytesMut::with_capacity(body.len() + SECTION_HEADER_LEN + TRAILER_LEN);
    put_index_and_trailer(&mut out, ObjectKind::Segment, &body, so_far);
    out.freeze()
}

/// A whole object without payload: a seal.
pub fn encode_seal(header: &SegmentHeader, cluster: Uuid) -> Bytes {
    let head = SegmentHead::new(header, cluster, 0).0;
    let tail = encode_tail(
        &SegmentIndex {
            header: header.clone(),
            entries: vec![],
        },
        head.len() as u64,
    );
    let mut out = head;
    out.put_slice(&tail);
    out.freeze()
}

fn encode_entry(out: &mut BytesMut, e: &Entry, topics: &[Uuid], written_ms: i64) -> u8 {
    if let Some((tp, epoch)) = e.scope() {
        put_unsigned(out, topics.binary_search(&tp.topic).unwrap_or(0) as u64);
        put_unsigned(out, tp.partition as u64);
        put_unsigned(out, epoch as u64);
    }
    match e {
        Entry::Release {
            slot,
            leader_epoch,
            image,
        } => {
            put_unsigned(out, u64::from(*slot));
            put_unsigned(out, *leader_epoch as u64);
            put_unsigned(out, image.len() as u64);
            out.put_slice(image);
            ENTRY_RELEASE
        }
        Entry::LogStart { offset, .. } => {
            put_unsigned(out, *offset as u64);
            ENTRY_LOG_START
        }
        Entry::Merged(m) => {
            merged::put_ranges(out, m, written_ms);
            ENTRY_MERGED
        }
        Entry::Compacted(c) => {
            put_unsigned(out, c.clean_to as u64);
            merged::put_ranges(out, &c.merged, written_ms);
            ENTRY_COMPACTED
        }
        Entry::Archived(a) => {
            put_shares(out, a, written_ms);
            ENTRY_ARCHIVED
        }
        Entry::Batches(r) => {
            put_unsigned(out, r.position);
            put_signed(out, written_ms.wrapping_sub(r.append_time_ms));
            put_unsigned(out, r.base_offset() as u64);
            put_unsigned(out, r.batches.len() as u64);
            let mut next = r.base_offset();
            for b in &r.batches {
                encode_batch(out, b, next, r.append_time_ms);
                next = b.last_offset + 1;
            }
            ENTRY_BATCHES
        }
    }
}

fn put_shares(out: &mut BytesMut, a: &ArchivedShares, written_ms: i64) {
    put_unsigned(out, a.file);
    put_unsigned(out, a.base_offset as u64);
    put_unsigned(out, a.shares.len() as u64);
    let (mut base_offset, mut row, mut time) = (a.base_offset, 0u32, written_ms);
    for s in &a.shares {
        put_unsigned(out, (s.last_offset - base_offset) as u64);
        put_signed(out, i64::from(s.first_row) - i64::from(row));
        put_unsigned(out, u64::from(s.len));
        put_signed(out, time.wrapping_sub(s.append_time_ms));
        put_signed(out, s.append_time_ms.wrapping_sub(s.max_timestamp));
        (base_offset, row, time) = (s.last_offset + 1, s.first_row, s.append_time_ms);
    }
}

fn encode_batch(out: &mut BytesMut, b: &BatchEntry, next: i64, append_ms: i64) {
    put_unsigned(out, u64::from(b.size));
    put_unsigned(out, (b.base_offset - next) as u64);
    put_unsigned(out, (b.last_offset - b.base_offset) as u64);
    put_unsigned(
        out,
        (b.last_offset - b.base_offset + 1 - i64::from(b.records)) as u64,
    );
    put_signed(out, append_ms.wrapping_sub(b.max_timestamp));
    put_signed(out, b.max_timestamp.wrapping_sub(b.base_timestamp));
    put_unsigned(
        out,
        u64::from(b.attributes as u16) << 1 | u64::from(b.producer.is_some()),
    );
    if let Some(p) = b.producer {
        put_unsigned(out, p.id as u64);
        put_unsigned(out, p.epoch as u64);
        put_signed(out, i64::from(p.first_sequence));
    }
}

/// Decodes the checked bytes of an index.
pub fn decode_index(index: Bytes) -> Result<SegmentIndex, FormatError> {
    let mut r = Reader::new(index);
    if r.u8()? != INDEX_VERSION {
        return Err(FormatError::TooNew("segment index".into()));
    }
    let n = r.count(1)?;
    let header = decode_header(&mut Reader::new(r.bytes(n)?))?;
    let topics = (0..r.count(16)?)
        .map(|_| r.uuid())
        .collect::<Result<Vec<_>, _>>()?;
    let count = r.count(2)?;
    let mut entries = Vec::with_capacity(count.min(r.remaining() / 6 + 1));
    for _ in 0..count {
        let code = r.u8()?;
        let n = r.count(1)?;
        let mut body = Reader::new(r.bytes(n)?);
        entries.push(decode_entry(code, &mut body, &topics, header.written_ms)?);
        body.finish()?;
    }
    r.finish()?;
    Ok(SegmentIndex { header, entries })
}

fn decode_entry(code: u8, r: &mut Reader, topics: &[Uuid], written_ms: i64) -> Result<Entry, FormatError> {
    if code == ENTRY_RELEASE {
        let slot = r.u32v("slot")?;
        let leader_epoch = r.i32v("leader epoch")?;
        let n = r.count(1)?;
        return Ok(Entry::Release {
            slot,
            leader_epoch,
            image: r.bytes(n)?,
        });
    }
    let topic = *topics
        .get(r.unsigned()? as usize)
        .ok_or(FormatError::Invalid("topic number"))?;
    let partition = TopicPartition {
        topic,
        partition: r.i32v("partition")?,
    };
    let leader_epoch = r.i32v("leader epoch")?;
    match code {
        ENTRY_LOG_START => Ok(Entry::LogStart {
            partition,
            leader_epoch,
            offset: r.offset("log start")?,
        }),
        ENTRY_MERGED => merged::ranges(r, partition, leader_epoch, written_ms).map(Entry::Merged),
        ENTRY_COMPACTED => {
            let clean_to = r.offset("clean offset")?;
            let merged = merged::ranges(r, partition, leader_epoch, written_ms)?;
            Ok(Entry::Compacted(CompactedRanges { merged, clean_to }))
        }
        ENTRY_ARCHIVED => shares(r, partition, leader_epoch, written_ms).map(Entry::Archived),
        ENTRY_BATCHES => {
            let position = r.unsigned()?;
            let append_time_ms = written_ms.wrapping_sub(r.signed()?);
            let mut next = r.offset("base offset")?;
            let count = r.count(7)?;
            if count == 0 {
                return Err(FormatError::Invalid("empty range"));
            }
            let mut batches = Vec::with_capacity(count);
            for _ in 0..count {
                let b = decode_batch(r, next, append_time_ms)?;
                next = b
                    .last_offset
                    .checked_add(1)
                    .ok_or(FormatError::Invalid("offset"))?;
                batches.push(b);
            }
            Ok(Entry::Batches(BatchRange {
                partition,
                leader_epoch,
                position,
                append_time_ms,
                batches,
            }))
        }
        // An entry that is not understood may change any partition: nothing can be skipped here.
        other => Err(FormatError::TooNew(format!("entry kind {other}"))),
    }
}

fn shares(
    r: &mut Reader,
    partition: TopicPartition,
    leader_epoch: i32,
    written_ms: i64,
) -> Result<ArchivedShares, FormatError> {
    const BAD: FormatError = FormatError::Invalid("share of a file");
    let file = r.unsigned()?;
    let base_offset = r.offset("base offset")?;
    let count = r.count(5)?;
    if count == 0 {
        return Err(BAD);
    }
    let mut shares = Vec::with_capacity(count);
    let (mut next, mut row, mut time) = (base_offset, 0i64, written_ms);
    for _ in 0..count {
        let last_offset = next.checked_add(r.offset("span")?).ok_or(BAD)?;
        row = row.checked_add(r.signed()?).ok_or(BAD)?;
        let first_row = u32::try_from(row).map_err(|_| BAD)?;
        let len = r.u32v("length")?;
        let append_time_ms = time.wrapping_sub(r.signed()?);
        let max_timestamp = append_time_ms.wrapping_sub(r.signed()?);
        next = last_offset.checked_add(1).ok_or(BAD)?;
        time = append_time_ms;
        shares.push(ArchivedShare {
            last_offset,
            first_row,
            len,
            max_timestamp,
            append_time_ms,
        });
    }
    Ok(ArchivedShares {
        partition,
        leader_epoch,
        file,
        base_offset,
        shares,
    })
}

fn decode_batch(r: &mut Reader, next: i64, append_ms: i64) -> Result<BatchEntry, FormatError> {
    const BAD: FormatError = FormatError::Invalid("batch offsets");
    let size = r.u32v("batch size")?;
    let base_offset = next.checked_add(r.offset("gap")?).ok_or(BAD)?;
    let span = r.offset("span")?;
    let last_offset = base_offset.checked_add(span).ok_or(BAD)?;
    let missing = r.offset("record count")?;
    let records = span
        .checked_add(1)
        .and_then(|s| s.checked_sub(missing))
        .ok_or(BAD)?;
    let max_timestamp = append_ms.wrapping_sub(r.signed()?);
    let base_timestamp = max_timestamp.wrapping_sub(r.signed()?);
    let flags = r.u32v("attributes")?;
    let producer = if flags & 1 == 0 {
        None
    } else {
        let id = r.offset("producer id")?;
        let epoch = i16::try_from(r.unsigned()?).map_err(|_| FormatError::Invalid("producer epoch"))?;
        let first = i32::try_from(r.signed()?).map_err(|_| FormatError::Invalid("sequence"))?;
        let delta = i32::try_from(span).map_err(|_| BAD)?;
        let last = if first < 0 {
            first
        } else {
            sequence_after(first, delta)
        };
        Some(BatchProducer {
            id,
            epoch,
            first_sequence: first,
            last_sequence: last,
        })
    };
    Ok(BatchEntry {
        base_offset,
        last_offset,
        records: u32::try_from(records).map_err(|_| BAD)?,
        size,
        base_timestamp,
        max_timestamp,
        attributes: (flags >> 1) as u16 as i16,
        producer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(seal: bool) -> SegmentHeader {
        SegmentHeader {
            incarnation: 3,
            seq: 99,
            nonce: Uuid::from_u128(5),
            manifest_version: 12,
            checkpoint_next: Some(0),
            committed_next: 98,
            written_ms: 1_700_000_000_000,
            seal: seal.then(|| Seal {
                taker: 4,
                taker_node: 1,
                reason: "restart é".repeat(40),
            }),
        }
    }

    fn batches(first: i64) -> impl Strategy<Value = Vec<BatchEntry>> {
        let one = (
            0i64..3,
            1i64..50,
            any::<i64>(),
            any::<i64>(),
            any::<i16>(),
            proptest::option::of((0i64..9, 0i16..9, 0i32..)),
        );
        proptest::collection::vec(one, 1..6).prop_map(move |v| {
            let mut next = first;
            v.into_iter()
                .map(|(gap, n, base_timestamp, max_timestamp, attributes, p)| {
                    let base_offset = next + gap;
                    let last_offset = base_offset + n - 1;
                    next = last_offset + 1;
                    let producer = p.map(|(id, epoch, first)| BatchProducer {
                        id,
                        epoch,
                        first_sequence: first,
                        last_sequence: sequence_after(first, n as i32 - 1),
                    });
                    BatchEntry {
                        base_offset,
                        last_offset,
                        records: n as u32,
                        size: 61,
                        base_timestamp,
                        max_timestamp,
                        attributes,
                        producer,
                    }
                })
                .collect()
        })
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let range = (
            0u128..4,
            0i32..5,
            0i32..5,
            any::<i64>(),
            0u64..1 << 40,
            batches(17),
        )
            .prop_map(
                |(t, partition, leader_epoch, append_time_ms, position, mut batches)| {
                    batches[0].base_offset = 17;
                    let b = &mut batches[0];
                    b.records = (b.last_offset - 16) as u32;
                    if let Some(p) = &mut b.producer {
                        p.last_sequence = sequence_after(p.first_sequence, (b.last_offset - 17) as i32);
                    }
                    let partition = TopicPartition {
                        topic: Uuid::from_u128(t),
                        partition,
                    };
                    Entry::Batches(BatchRange {
                        partition,
                        leader_epoch,
                        position,
                        append_time_ms,
                        batches,
                    })
                },
            );
        let start = (0u128..4, 0i64..).prop_map(|(t, offset)| Entry::LogStart {
            partition: TopicPartition {
                topic: Uuid::from_u128(t),
                partition: 1,
            },
            leader_epoch: 2,
            offset,
        });
        let merged = merged::tests::ranges().prop_map(Entry::Merged);
        let compacted = (merged::tests::ranges(), 0i64..)
            .prop_map(|(merged, clean_to)| Entry::Compacted(CompactedRanges { merged, clean_to }));
        let archived = (merged::tests::ranges(), any::<u32>()).prop_map(|(m, row)| {
            let share = |(i, r): (usize, &crate::entry::MergedRange)| ArchivedShare {
                last_offset: r.last_offset,
                first_row: row.rotate_left(i as u32),
                len: r.len,
                max_timestamp: r.max_timestamp,
                append_time_ms: r.append_time_ms,
            };
            Entry::Archived(ArchivedShares {
                partition: m.partition,
                leader_epoch: m.leader_epoch,
                file: m.file,
                base_offset: m.base_offset,
                shares: m.ranges.iter().enumerate().map(share).collect(),
            })
        });
        proptest::collection::vec(prop_oneof![range, start, merged, compacted, archived], 0..8)
    }

    proptest! {
        #[test]
        fn an_index_comes_back(entries in entries(), seal: bool) {
            let mut h = header(seal);
            if let Some(s) = &mut h.seal { s.reason.truncate(11) }
            let index = SegmentIndex { header: h, entries };
            let tail = encode_tail(&index, 1000);
            let IndexOrMore::Index(bytes) = index_of(&tail, ObjectKind::Segment).unwrap() else { panic!() };
            prop_assert_eq!(decode_index(bytes).unwrap(), index);
        }

        #[test]
        fn a_flipped_bit_is_found(entries in entries(), at: usize, bit in 0u8..8) {
            let tail = encode_tail(&SegmentIndex { header: header(false), entries }, 0);
            let mut bad = tail.to_vec();
            let at = SECTION_HEADER_LEN + at % (bad.len() - SECTION_HEADER_LEN);
            bad[at] ^= 1 << bit;
            let found = match index_of(&Bytes::from(bad), ObjectKind::Segment) {
                Ok(IndexOrMore::Index(_)) => false,
                Ok(IndexOrMore::NeedSuffix(_)) | Err(_) => true,
            };
            prop_assert!(found);
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let b = Bytes::from(bytes);
            prop_assert!(decode_index(b.clone()).is_err() || b.len() > 30);
            prop_assert!(read_header(&b, None).is_err());
            prop_assert!(index_of(&b, ObjectKind::Segment).is_err());
        }
    }

    #[test]
    fn who_reads_from_the_end_only_hears_of_unknown_features() {
        let index = SegmentIndex {
            header: header(false),
            entries: vec![],
        };
        let mut newer = encode_tail(&index, 1 << 20).to_vec();
        let features = newer.len() - TRAILER_LEN + 21;
        newer[features] |= 4;
        let refused = index_of(&newer.into(), ObjectKind::Segment);
        assert!(matches!(refused, Err(FormatError::TooNew(_))), "{refused:?}");
    }

    #[test]
    fn a_seal_is_one_small_object_with_a_header_at_both_ends() {
        let mut h = header(true);
        let whole = encode_seal(&h, Uuid::from_u128(1));
        assert!(whole.len() < 600, "{}", whole.len());
        let seal = h.seal.as_mut().unwrap();
        seal.reason.truncate(120);
        assert_eq!(
            read_header(&whole.slice(..HEAD_LEN as usize), Some(Uuid::from_u128(1))).unwrap(),
            h
        );
        let IndexOrMore::Index(bytes) = index_of(&whole, ObjectKind::Segment).unwrap() else {
            panic!()
        };
        assert_eq!(decode_index(bytes).unwrap().header, h);
        assert!(matches!(
            read_header(&whole, Some(Uuid::from_u128(2))),
            Err(FormatError::OtherCluster { .. })
        ));
        let mut newer = whole.to_vec();
        newer[9] = 9;
        let crc = crc32c::crc32c(&newer[..36]).to_le_bytes();
        newer[36..40].copy_from_slice(&crc);
        assert!(matches!(
            read_header(&Bytes::from(newer), None),
            Err(FormatError::TooNew(_))
        ));
    }
}
