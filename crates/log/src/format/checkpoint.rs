//! A checkpoint: the published state of every slot its writer owned, as of a position in its stream.
//!
//! ```text
//! preamble | HEADER | DATA: one body per slot | INDEX: header again, directory | trailer
//! directory entry = slot, epoch granted to the stream, source (0: this object), position, length, CRC32C
//! ```
//! The directory names a source per slot, so that a later writer may refer to bodies in an older checkpoint;
//! this build writes full ones. A slot that is listed is *covered*, also if it holds no partition.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::*;
use crate::entry::{Level, Place};
use crate::partition::image::{PartitionImage, StoredRange};
use crate::partition::state::{PartitionState, ProducerState, REMEMBERED_BATCHES, RememberedBatch};
use crate::{Incarnation, Seq, Slot, TopicPartition};

const INDEX_VERSION: u8 = 1;
/// Of a body in which all ranges stand in segments.
const BODY_OF_SEGMENTS: u8 = 1;
/// Of a body in which each range says whether it stands in a segment or in a merged object.
const BODY_WITH_LEVELS: u8 = 2;
/// The same, with files of history among the places.
const BODY_WITH_HISTORY: u8 = 3;
/// The same, and each partition says how far it is compacted.
const BODY_WITH_COMPACTION: u8 = 4;
const SOURCE_SELF: u64 = 0;

/// A decoded checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The stream.
    pub incarnation: Incarnation,
    /// It holds everything below this seq, and nothing from it on.
    pub next: Seq,
    /// Manifest version that its writer had applied.
    pub manifest_version: u64,
    /// Wall-clock time (ms) of the writer.
    pub written_ms: i64,
    /// Covered slots, with the epoch that the stream held.
    pub slots: BTreeMap<Slot, SlotImage>,
}

/// State of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotImage {
    /// Leader epoch granted to the stream.
    pub epoch: i32,
    /// Its partitions.
    pub partitions: Vec<(TopicPartition, PartitionImage)>,
}

/// Encodes a full checkpoint.
pub fn encode(c: &Checkpoint, cluster: Uuid, nonce: Uuid) -> Bytes {
    let mut header = BytesMut::new();
    let start = HeaderStart {
        nonce,
        incarnation: c.incarnation,
        number: c.next,
        manifest_version: c.manifest_version,
    };
    start.put(&mut header);
    put_signed(&mut header, c.written_ms);

    let (mut data, mut directory) = (BytesMut::new(), BytesMut::new());
    for (slot, image) in &c.slots {
        let at = data.len();
        if !image.partitions.is_empty() {
            encode_body(&mut data, image);
        }
        put_unsigned(&mut directory, u64::from(*slot));
        put_unsigned(&mut directory, image.epoch as u64);
        put_unsigned(&mut directory, SOURCE_SELF);
        put_unsigned(&mut directory, at as u64);
        put_unsigned(&mut directory, (data.len() - at) as u64);
        put_unsigned(&mut directory, u64::from(crc32c::crc32c(&data[at..])));
    }
    let mut index = BytesMut::new();
    index.put_u8(INDEX_VERSION);
    put_unsigned(&mut index, header.len() as u64);
    index.put_slice(&header);
    put_unsigned(&mut index, c.slots.len() as u64);
    index.put_slice(&directory);

    let mut out = BytesMut::with_capacity(data.len() + index.len() + 256);
    put_preamble(&mut out, ObjectKind::Checkpoint, cluster);
    put_section(&mut out, SECTION_HEADER, &header);
    put_section(&mut out, SECTION_DATA, &data);
    let so_far = out.len() as u64;
    put_index_and_trailer(&mut out, ObjectKind::Checkpoint, &index, so_far);
    out.freeze()
}

/// Decodes a whole checkpoint object.
pub fn decode(object: &Bytes, cluster: Option<Uuid>) -> Result<Checkpoint, FormatError> {
    check_preamble(object, ObjectKind::Checkpoint, cluster)?;
    let trailer = read_trailer(object, ObjectKind::Checkpoint)?;
    if trailer.object_len != object.len() as u64 {
        return Err(FormatError::Truncated("checkpoint"));
    }
    let IndexOrMore::Index(index) = index_of(object, ObjectKind::Checkpoint)? else {
        return Err(FormatError::Truncated("checkpoint"));
    };
    // The data section follows the header section.
    let mut r = Reader::new(object.slice(PREAMBLE_LEN..));
    let _tag = r.bytes(4)?;
    let header_len = usize::try_from(r.u64()?).map_err(|_| FormatError::Invalid("header length"))?;
    r.bytes(header_len)?;
    let tag = r.bytes(4)?;
    if tag[..] != SECTION_DATA.to_le_bytes() {
        return Err(FormatError::Invalid("second section"));
    }
    let data_len = usize::try_from(r.u64()?).map_err(|_| FormatError::Invalid("data length"))?;
    let data = r.bytes(data_len)?;

    let mut r = Reader::new(index);
    if r.u8()? != INDEX_VERSION {
        return Err(FormatError::TooNew("checkpoint index".into()));
    }
    let n = r.count(1)?;
    let mut h = Reader::new(r.bytes(n)?);
    let start = HeaderStart::read(&mut h)?;
    let written_ms = h.signed()?;
    let mut slots = BTreeMap::new();
    for _ in 0..r.count(6)? {
        let slot = r.u32v("slot")?;
        let epoch = r.i32v("epoch")?;
        if r.unsigned()? != SOURCE_SELF {
            return Err(FormatError::TooNew("checkpoint that refers to another".into()));
        }
        let (at, len) = (r.unsigned()?, r.unsigned()?);
        let crc = r.u32v("body checksum")?;
        let end = at
            .checked_add(len)
            .filter(|e| *e <= data.len() as u64)
            .ok_or(FormatError::Invalid("body range"))?;
        let body = data.slice(at as usize..end as usize);
        if crc32c::crc32c(&body) != crc {
            return Err(FormatError::Checksum("checkpoint body"));
        }
        let partitions = if body.is_empty() {
            vec![]
        } else {
            decode_body(body)?
        };
        slots.insert(slot, SlotImage { epoch, partitions });
    }
    r.finish()?;
    Ok(Checkpoint {
        incarnation: start.incarnation,
        next: start.number,
        manifest_version: start.manifest_version,
        written_ms,
        slots,
    })
}

/// One slot by itself, as a RELEASE entry carries it.
pub fn encode_slot(slot: &SlotImage) -> Bytes {
    let mut out = BytesMut::new();
    encode_body(&mut out, slot);
    out.freeze()
}

/// Partitions of a slot that [`encode_slot`] has encoded.
pub fn decode_slot(bytes: Bytes) -> Result<Vec<(TopicPartition, PartitionImage)>, FormatError> {
    decode_body(bytes)
}

fn encode_body(out: &mut BytesMut, slot: &SlotImage) {
    // What holds no merged data can still be read by a build that knows none, and so on.
    let ranges = slot.partitions.iter().flat_map(|(_, image)| &image.ranges);
    let version = match ranges.map(|r| r.place.level).max() {
        None | Some(Level::L0) => BODY_OF_SEGMENTS,
        Some(Level::L1) => BODY_WITH_LEVELS,
        Some(Level::L2) => BODY_WITH_HISTORY,
    };
    let version = match slot.partitions.iter().any(|(_, image)| image.clean_to > 0) {
        true => BODY_WITH_COMPACTION,
        false => version,
    };
    out.put_u8(version);
    put_unsigned(out, slot.partitions.len() as u64);
    let mut one = BytesMut::new();
    for (tp, image) in &slot.partitions {
        one.clear();
        one.put_slice(tp.topic.as_bytes());
        put_unsigned(&mut one, tp.partition as u64);
        encode_state(&mut one, &image.state);
        encode_ranges(&mut one, &image.ranges, version);
        if version >= BODY_WITH_COMPACTION {
            put_unsigned(&mut one, image.clean_to as u64);
        }
        // Room: open transactions, aborted index, an opaque extension; all empty now.
        put_unsigned(&mut one, 0);
        put_unsigned(out, one.len() as u64);
        out.put_slice(&one);
    }
}

fn encode_state(out: &mut BytesMut, s: &PartitionState) {
    put_unsigned(out, s.log_start as u64);
    put_unsigned(out, s.end as u64);
    put_signed(out, s.append_time_ms);
    put_unsigned(out, s.epochs.len() as u64);
    for (epoch, start) in &s.epochs {
        put_unsigned(out, *epoch as u64);
        put_unsigned(out, *start as u64);
    }
    put_unsigned(out, s.producers.len() as u64);
    let mut ids: Vec<_> = s.producers.keys().copied().collect();
    ids.sort_unstable();
    for id in ids {
        let p = &s.producers[&id];
        put_unsigned(out, id as u64);
        put_unsigned(out, p.epoch as u64);
        put_signed(out, p.append_time_ms);
        put_unsigned(out, p.batches.len() as u64);
        for b in &p.batches {
            put_signed(out, i64::from(b.first_sequence));
            put_signed(out, i64::from(b.last_sequence));
            put_unsigned(out, b.base_offset as u64);
            put_unsigned(out, (b.last_offset - b.base_offset) as u64);
            put_signed(out, b.max_timestamp);
        }
    }
}

fn encode_ranges(out: &mut BytesMut, ranges: &VecDeque<StoredRange>, version: u8) {
    put_unsigned(out, ranges.len() as u64);
    let mut before = (0u64, 0u64, 0i64, 0i64, 0i64);
    for r in ranges {
        if version != BODY_OF_SEGMENTS {
            out.put_u8(match r.place.level {
                Level::L0 => 0,
                Level::L1 => 1,
                Level::L2 => 2,
            });
        }
        put_signed(out, r.place.incarnation.wrapping_sub(before.0) as i64);
        put_signed(out, r.place.seq.wrapping_sub(before.1) as i64);
        put_unsigned(out, u64::from(r.position));
        put_unsigned(out, u64::from(r.len));
        put_signed(out, r.base_offset - before.2);
        put_unsigned(out, (r.last_offset - r.base_offset) as u64);
        put_signed(out, r.max_timestamp.wrapping_sub(before.3));
        put_signed(out, r.append_time_ms.wrapping_sub(before.4));
        before = (
            r.place.incarnation,
            r.place.seq,
            r.last_offset,
            r.max_timestamp,
            r.append_time_ms,
        );
    }
}

fn decode_body(body: Bytes) -> Result<Vec<(TopicPartition, PartitionImage)>, FormatError> {
    let mut r = Reader::new(body);
    let version = r.u8()?;
    if !(BODY_OF_SEGMENTS..=BODY_WITH_COMPACTION).contains(&version) {
        return Err(FormatError::TooNew("checkpoint body".into()));
    }
    let mut partitions = vec![];
    for _ in 0..r.count(20)? {
        let n = r.count(1)?;
        let mut one = Reader::new(r.bytes(n)?);
        let tp = TopicPartition {
            topic: one.uuid()?,
            partition: one.i32v("partition")?,
        };
        let state = decode_state(&mut one)?;
        let ranges = decode_ranges(&mut one, version)?;
        let clean_to = match version >= BODY_WITH_COMPACTION {
            true => one.offset("clean offset")?,
            false => 0,
        };
        if one.unsigned()? != 0 {
            return Err(FormatError::TooNew(
                "checkpoint with more than this version knows".into(),
            ));
        }
        one.finish()?;
        let mut image = PartitionImage::new(state, ranges);
        image.clean_to = clean_to;
        partitions.push((tp, image));
    }
    r.finish()?;
    Ok(partitions)
}

fn decode_state(r: &mut Reader) -> Result<PartitionState, FormatError> {
    let (log_start, end) = (r.offset("log start")?, r.offset("end")?);
    let append_time_ms = r.signed()?;
    if log_start > end {
        return Err(FormatError::Invalid("log start"));
    }
    let mut epochs = vec![];
    for _ in 0..r.count(2)? {
        epochs.push((r.i32v("epoch")?, r.offset("epoch start")?));
    }
    let count = r.count(4)?;
    let mut producers = hashbrown::HashMap::with_capacity(count);
    for _ in 0..count {
        let id = r.offset("producer id")?;
        let epoch = i16::try_from(r.unsigned()?).map_err(|_| FormatError::Invalid("producer epoch"))?;
        let append_time_ms = r.signed()?;
        let n = r.count(5)?;
        if n > REMEMBERED_BATCHES {
            return Err(FormatError::Invalid("remembered batches"));
        }
        let mut batches = Vec::with_capacity(REMEMBERED_BATCHES);
        for _ in 0..n {
            let sequence = |v: i64| i32::try_from(v).map_err(|_| FormatError::Invalid("sequence"));
            let (first, last) = (sequence(r.signed()?)?, sequence(r.signed()?)?);
            let base_offset = r.offset("offset")?;
            let last_offset = base_offset
                .checked_add(r.offset("span")?)
                .ok_or(FormatError::Invalid("span"))?;
            let max_timestamp = r.signed()?;
            batches.push(RememberedBatch {
                first_sequence: first,
                last_sequence: last,
                base_offset,
                last_offset,
                max_timestamp,
            });
        }
        producers.insert(
            id,
            ProducerState {
                epoch,
                append_time_ms,
                batches,
            },
        );
    }
    Ok(PartitionState {
        log_start,
        end,
        append_time_ms,
        epochs,
        producers,
    })
}

fn decode_ranges(r: &mut Reader, version: u8) -> Result<VecDeque<StoredRange>, FormatError> {
    let count = r.count(8)?;
    let mut ranges = VecDeque::with_capacity(count);
    let mut before = (0u64, 0u64, 0i64, 0i64, 0i64);
    const BAD: FormatError = FormatError::Invalid("range");
    for _ in 0..count {
        let level = match version {
            BODY_OF_SEGMENTS => 0,
            _ => r.u8()?,
        };
        let level = match level {
            0 => Level::L0,
            1 => Level::L1,
            2 if version >= BODY_WITH_HISTORY => Level::L2,
            _ => return Err(FormatError::TooNew("level of a range".into())),
        };
        let incarnation = before.0.wrapping_add(r.signed()? as u64);
        let seq = before.1.wrapping_add(r.signed()? as u64);
        let (position, len) = (r.u32v("position")?, r.u32v("length")?);
        let base_offset = before.2.checked_add(r.signed()?).filter(|o| *o >= 0).ok_or(BAD)?;
        let last_offset = base_offset.checked_add(r.offset("span")?).ok_or(BAD)?;
        let max_timestamp = before.3.wrapping_add(r.signed()?);
        let append_time_ms = before.4.wrapping_add(r.signed()?);
        if base_offset <= before.2 && !ranges.is_empty() {
            return Err(BAD);
        }
        before = (incarnation, seq, last_offset, max_timestamp, append_time_ms);
        ranges.push_back(StoredRange {
            base_offset,
            last_offset,
            place: Place {
                level,
                incarnation,
                seq,
            },
            position,
            len,
            max_timestamp,
            append_time_ms,
        });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> impl Strategy<Value = PartitionImage> {
        let ranges = proptest::collection::vec(
            (1i64..99, 1u64..4, 0u64..9, any::<u32>(), 0u32..99, any::<i64>()),
            0..9,
        );
        let levels = prop_oneof![Just(0), 0u32..512, 0u32..512 * 512];
        let producers = proptest::collection::hash_map(0i64.., (0i16.., any::<i64>(), 0usize..6), 0..4);
        let clean_to = prop_oneof![2 => Just(0), 1 => 0i64..];
        (
            ranges,
            levels,
            producers,
            proptest::collection::vec((0i32..99, 0i64..), 0..4),
            clean_to,
        )
            .prop_map(|(described, levels, producers, epochs, clean_to)| {
                let (mut state, mut ranges) = (PartitionState::default(), VecDeque::new());
                for (i, (n, incarnation, seq, position, len, t)) in described.into_iter().enumerate() {
                    let base_offset = state.end + n;
                    state.end = base_offset + n;
                    let place = match (levels >> i & 1, levels >> (9 + i) & 1) {
                        (_, 1) => Place::l2(incarnation, seq),
                        (1, _) => Place::l1(incarnation, seq),
                        _ => Place::l0(incarnation, seq),
                    };
                    ranges.push_back(StoredRange {
                        base_offset,
                        last_offset: base_offset + n - 1,
                        place,
                        position,
                        len,
                        max_timestamp: t,
                        append_time_ms: t / 2,
                    });
                }
                let mut image = PartitionImage::new(state, ranges);
                image.state.epochs = epochs;
                image.clean_to = clean_to;
                for (id, (epoch, t, n)) in producers {
                    let b = |i: usize| RememberedBatch {
                        first_sequence: i as i32,
                        last_sequence: i32::MAX - i as i32,
                        base_offset: i as i64,
                        last_offset: 2 * i as i64,
                        max_timestamp: t,
                    };
                    let batches = (0..n.min(REMEMBERED_BATCHES)).map(b).collect();
                    image.state.producers.insert(
                        id,
                        ProducerState {
                            epoch,
                            append_time_ms: t,
                            batches,
                        },
                    );
                }
                image
            })
    }

    /// The numbers of docs/analytics.md.
    #[test]
    fn a_share_of_history_takes_64_bytes_of_memory_and_about_20_of_a_checkpoint() {
        assert_eq!(size_of::<StoredRange>(), 64);
        let body = |shares: i64| {
            let share = |hour: i64| StoredRange {
                base_offset: hour * 500,
                last_offset: hour * 500 + 499,
                place: Place::l2(17, 1_000 + hour as u64),
                // Somewhere in a file that many partitions share.
                position: 40_000 + hour as u32 * 97,
                len: 60_000 + hour as u32 * 31,
                max_timestamp: 1_700_000_000_000 + hour * 3_600_000,
                append_time_ms: 1_700_000_000_005 + hour * 3_600_011,
            };
            let image = PartitionImage::new(PartitionState::default(), (0..shares).map(share).collect());
            let tp = TopicPartition {
                topic: Uuid::from_u128(3),
                partition: 0,
            };
            let partitions = vec![(tp, image)];
            encode_slot(&SlotImage { epoch: 1, partitions }).len()
        };
        // Of a week of hours.
        let each = (body(168) - body(0)) as f64 / 168.0;
        println!("{each:.1} bytes of a checkpoint");
        assert!((18.0..22.0).contains(&each), "{each}");
    }

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let tp = |t: u128, p: i32| TopicPartition {
            topic: Uuid::from_u128(t),
            partition: p,
        };
        let slot = (
            0i32..9,
            proptest::collection::vec((any::<u128>(), 0i32..9, image()), 0..3),
        );
        proptest::collection::btree_map(0u32..1024, slot, 0..4).prop_map(move |slots| Checkpoint {
            incarnation: 8,
            next: 0,
            manifest_version: 4,
            written_ms: -7,
            slots: slots
                .into_iter()
                .map(|(s, (epoch, ps))| {
                    (
                        s,
                        SlotImage {
                            epoch,
                            partitions: ps.into_iter().map(|(t, p, i)| (tp(t, p), i)).collect(),
                        },
                    )
                })
                .collect(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_checkpoint_comes_back(c in checkpoint()) {
            let bytes = encode(&c, Uuid::from_u128(1), Uuid::from_u128(2));
            prop_assert_eq!(decode(&bytes, Some(Uuid::from_u128(1))).unwrap(), c);
        }

        #[test]
        fn a_body_without_merged_data_or_history_is_as_it_always_was(c in checkpoint()) {
            for slot in c.slots.values() {
                let mut body = BytesMut::new();
                encode_body(&mut body, slot);
                let ranges: Vec<&StoredRange> = slot.partitions.iter().flat_map(|(_, i)| &i.ranges).collect();
                let any = |level| ranges.iter().any(|r| r.place.level == level);
                let compacted = slot.partitions.iter().any(|(_, i)| i.clean_to > 0);
                let of_levels = if any(Level::L2) { 3 } else if any(Level::L1) { 2 } else { 1 };
                prop_assert_eq!(body[0], if compacted { 4 } else { of_levels });
                if any(Level::L2) && !compacted {
                    let mut older = body.clone();
                    older[0] = 2;
                    prop_assert!(matches!(decode_body(older.freeze()), Err(FormatError::TooNew(_))));
                }
                body[0] = 5;
                prop_assert!(matches!(decode_body(body.freeze()), Err(FormatError::TooNew(_))));
            }
        }

        #[test]
        fn damage_is_an_error(c in checkpoint(), at: usize, bit in 0u8..8, cut: usize) {
            let bytes = encode(&c, Uuid::from_u128(1), Uuid::from_u128(2));
            let mut bad = bytes.to_vec();
            // Every byte but the unsummed copy of the header and section lengths is under a checksum.
            let at = at % PREAMBLE_LEN;
            bad[at] ^= 1 << bit;
            prop_assert!(decode(&Bytes::from(bad), Some(Uuid::from_u128(1))).is_err());
            prop_assert!(decode(&bytes.slice(..cut % bytes.len()), None).is_err());
        }

        #[test]
        fn any_flip_is_an_error_or_changes_nothing(c in checkpoint(), at: usize, bit in 0u8..8) {
            let bytes = encode(&c, Uuid::from_u128(1), Uuid::from_u128(2));
            let mut bad = bytes.to_vec();
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            if let Ok(back) = decode(&Bytes::from(bad), Some(Uuid::from_u128(1))) {
                prop_assert_eq!(back, c);
            }
        }
    }
}
