//! A merged object (L1): some of a stream's data, sorted by partition, in the batches' own bytes.
//!
//! ```text
//! preamble | HEADER | DATA: batches by partition and offset | INDEX: header again, ranges | trailer
//! ```
//! It counts for a partition once an entry in its writer's stream points to it. Its own index says the same as those
//! entries: it is for people, and for whoever must rebuild a bucket by hand. DATA may hold bytes that no range names:
//! room of batches that turned out to be damaged.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::*;
use crate::entry::{MergedRange, MergedRanges};
use crate::{Incarnation, TopicPartition};

const INDEX_VERSION: u8 = 1;

/// Fields of every merged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedHeader {
    /// The broker start that wrote it.
    pub incarnation: Incarnation,
    /// Its number there.
    pub number: u64,
    /// Tells this write from any other of the same key.
    pub nonce: Uuid,
    /// Manifest version that its writer had applied.
    pub manifest_version: u64,
    /// Wall-clock time (ms) of the writer.
    pub written_ms: i64,
}

/// Index of a merged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedIndex {
    /// The header.
    pub header: MergedHeader,
    /// What it holds, by partition.
    pub entries: Vec<MergedRanges>,
}

fn encode_header(h: &MergedHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    let start = HeaderStart {
        nonce: h.nonce,
        incarnation: h.incarnation,
        number: h.number,
        manifest_version: h.manifest_version,
    };
    start.put(&mut out);
    put_signed(&mut out, h.written_ms);
    out
}

fn decode_header(r: &mut Reader) -> Result<MergedHeader, FormatError> {
    let start = HeaderStart::read(r)?;
    Ok(MergedHeader {
        nonce: start.nonce,
        incarnation: start.incarnation,
        number: start.number,
        manifest_version: start.manifest_version,
        written_ms: r.signed()?,
    })
}

/// Appends everything that stands before the data, whose length must be known.
pub fn put_head(out: &mut BytesMut, header: &MergedHeader, cluster: Uuid, data_len: u64) {
    put_preamble(out, ObjectKind::Merged, cluster);
    put_section(out, SECTION_HEADER, &encode_header(header));
    put_section_header(out, SECTION_DATA, data_len);
}

/// Appends everything that stands after the data. `out` holds the object up to there.
pub fn put_tail(out: &mut BytesMut, index: &MergedIndex) {
    let mut body = BytesMut::with_capacity(128 + index.entries.len() * 48);
    body.put_u8(INDEX_VERSION);
    let header = encode_header(&index.header);
    put_unsigned(&mut body, header.len() as u64);
    body.put_slice(&header);
    put_unsigned(&mut body, index.entries.len() as u64);
    let mut one = BytesMut::new();
    for m in &index.entries {
        one.clear();
        one.put_slice(m.partition.topic.as_bytes());
        put_unsigned(&mut one, m.partition.partition as u64);
        put_unsigned(&mut one, m.leader_epoch as u64);
        put_ranges(&mut one, m, index.header.written_ms);
        put_unsigned(&mut body, one.len() as u64);
        body.put_slice(&one);
    }
    let so_far = out.len() as u64;
    put_index_and_trailer(out, ObjectKind::Merged, &body, so_far);
}

/// Reads the header from the first 256 bytes of an object: enough to know who wrote it.
pub fn read_header(prefix: &Bytes, cluster: Option<Uuid>) -> Result<MergedHeader, FormatError> {
    decode_header(&mut first_section(prefix, ObjectKind::Merged, cluster)?)
}

/// Decodes the checked bytes of an index.
pub fn decode_index(index: Bytes) -> Result<MergedIndex, FormatError> {
    let mut r = Reader::new(index);
    if r.u8()? != INDEX_VERSION {
        return Err(FormatError::TooNew("merged object's index".into()));
    }
    let n = r.count(1)?;
    let header = decode_header(&mut Reader::new(r.bytes(n)?))?;
    let count = r.count(24)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let n = r.count(1)?;
        let mut one = Reader::new(r.bytes(n)?);
        let partition = TopicPartition {
            topic: one.uuid()?,
            partition: one.i32v("partition")?,
        };
        let leader_epoch = one.i32v("leader epoch")?;
        entries.push(ranges(&mut one, partition, leader_epoch, header.written_ms)?);
        one.finish()?;
    }
    r.finish()?;
    Ok(MergedIndex { header, entries })
}

/// Appends what [`ranges`] reads: all but partition and epoch.
pub(super) fn put_ranges(out: &mut BytesMut, m: &MergedRanges, written_ms: i64) {
    put_unsigned(out, m.file);
    put_unsigned(out, u64::from(m.position));
    put_unsigned(out, m.base_offset as u64);
    put_unsigned(out, m.ranges.len() as u64);
    let (mut base_offset, mut time) = (m.base_offset, written_ms);
    for r in &m.ranges {
        put_unsigned(out, (r.last_offset - base_offset) as u64);
        put_unsigned(out, u64::from(r.len));
        put_signed(out, time.wrapping_sub(r.append_time_ms));
        put_signed(out, r.append_time_ms.wrapping_sub(r.max_timestamp));
        (base_offset, time) = (r.last_offset + 1, r.append_time_ms);
    }
}

/// Reads ranges of a partition that neighbour each other in one object.
pub(super) fn ranges(
    r: &mut Reader,
    partition: TopicPartition,
    leader_epoch: i32,
    written_ms: i64,
) -> Result<MergedRanges, FormatError> {
    const BAD: FormatError = FormatError::Invalid("merged range");
    let file = r.unsigned()?;
    let position = r.u32v("position")?;
    let base_offset = r.offset("base offset")?;
    let count = r.count(4)?;
    if count == 0 {
        return Err(BAD);
    }
    let mut ranges = Vec::with_capacity(count);
    let (mut next, mut time, mut end) = (base_offset, written_ms, position);
    for _ in 0..count {
        let last_offset = next.checked_add(r.offset("span")?).ok_or(BAD)?;
        let len = r.u32v("length")?;
        let append_time_ms = time.wrapping_sub(r.signed()?);
        let max_timestamp = append_time_ms.wrapping_sub(r.signed()?);
        next = last_offset.checked_add(1).ok_or(BAD)?;
        end = end.checked_add(len).ok_or(BAD)?;
        time = append_time_ms;
        ranges.push(MergedRange {
            last_offset,
            len,
            max_timestamp,
            append_time_ms,
        });
    }
    Ok(MergedRanges {
        partition,
        leader_epoch,
        file,
        position,
        base_offset,
        ranges,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::format) fn ranges() -> impl Strategy<Value = MergedRanges> {
        let one = (1i64..1 << 40, 0u32..1 << 26, any::<i64>(), any::<i64>());
        let where_ = (any::<u64>(), 0u32..1 << 28, 0i64..1 << 60);
        let whose = (0u128..4, 0i32..9, 0i32..9);
        (whose, where_, proptest::collection::vec(one, 1..5)).prop_map(|(whose, where_, ranges)| {
            let (mut next, base_offset) = (where_.2, where_.2);
            let ranges = ranges.into_iter().map(|(n, len, max_timestamp, append_time_ms)| {
                next += n;
                MergedRange {
                    last_offset: next - 1,
                    len,
                    max_timestamp,
                    append_time_ms,
                }
            });
            MergedRanges {
                ranges: ranges.collect(),
                partition: TopicPartition {
                    topic: Uuid::from_u128(whose.0),
                    partition: whose.1,
                },
                leader_epoch: whose.2,
                file: where_.0,
                position: where_.1,
                base_offset,
            }
        })
    }

    fn object(entries: Vec<MergedRanges>) -> (MergedIndex, Bytes) {
        let header = MergedHeader {
            incarnation: 4,
            number: u64::MAX,
            nonce: Uuid::from_u128(u128::MAX),
            manifest_version: u64::MAX,
            written_ms: i64::MIN,
        };
        let index = MergedIndex { header, entries };
        let mut out = BytesMut::new();
        put_head(&mut out, &index.header, Uuid::from_u128(7), 3);
        assert!(
            out.len() <= 256,
            "a writer recognises its own by the first 256 bytes"
        );
        out.put_slice(b"abc");
        put_tail(&mut out, &index);
        (index, out.freeze())
    }

    proptest! {
        #[test]
        fn an_index_comes_back(entries in proptest::collection::vec(ranges(), 0..5)) {
            let (index, bytes) = object(entries);
            prop_assert_eq!(&read_header(&bytes, Some(Uuid::from_u128(7))).unwrap(), &index.header);
            let IndexOrMore::Index(body) = index_of(&bytes, ObjectKind::Merged).unwrap() else { panic!() };
            prop_assert_eq!(decode_index(body).unwrap(), index);
            prop_assert!(index_of(&bytes, ObjectKind::Segment).is_err());
            prop_assert!(read_header(&bytes, Some(Uuid::from_u128(8))).is_err());
        }

        #[test]
        fn damage_of_an_index_is_found(entries in proptest::collection::vec(ranges(), 0..5), at: usize, bit in 0u8..8) {
            let (_, bytes) = object(entries);
            let trailer = read_trailer(&bytes, ObjectKind::Merged).unwrap();
            let mut bad = bytes.to_vec();
            let from = trailer.index_offset as usize;
            let at = from + at % (bad.len() - from);
            bad[at] ^= 1 << bit;
            prop_assert!(!matches!(index_of(&Bytes::from(bad), ObjectKind::Merged), Ok(IndexOrMore::Index(_))));
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let shortest = 37;
            prop_assert!(decode_index(Bytes::from(bytes.clone())).is_err() || bytes.len() >= shortest);
        }
    }
}
