//! Record batches that cost next to nothing to make. The records of a batch do not depend on when it is sent, so they
//! are built (and compressed) once, before the run; a batch is then a header of 61 bytes in front of a shared body,
//! and its CRC is put together from that of the header and the known one of the body.

use std::io;

use alluvium_log::batch::{BatchBuilder, BatchHeader, HEADER_LEN, field};
use alluvium_log::codec::Codec;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::event;

/// Bodies of all kinds together have about this size: more than a CPU's caches share, little beside a heap.
const POOL_BYTES: usize = 32 * 1024 * 1024;
const BODIES_MIN: usize = 4;
const BODIES_MAX: usize = 1024;
/// Keys have this fixed length.
pub(super) const KEY_BYTES: usize = 8;
/// Values that carry their number begin with it: the mark of the run, and the record's number.
pub(super) const NUMBERED_BYTES_MIN: u32 = 16;

/// What records look like.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordPlan {
    /// Size of each value in bytes.
    pub(super) value_bytes: usize,
    /// What values are made of.
    pub(super) content: Content,
    /// So many distinct keys; `None` is no key.
    pub(super) keys: Option<u32>,
    /// Largest uncompressed batch in bytes; a record that is larger is a batch of its own.
    pub(super) batch_bytes: usize,
    /// Most records of a batch.
    pub(super) batch_records_max: usize,
    /// How batches are compressed.
    pub(super) codec: Codec,
}

/// What values are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Content {
    /// Random bytes, and behind them the same byte again and again, so that a codec makes them about one part in so
    /// many; 1 is random bytes alone.
    Random(f64),
    /// JSON as services send it, see [`super::event`].
    Json,
}

/// Who a batch comes from, and where it stands in that producer's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Producer id, -1 for none.
    pub(super) producer_id: i64,
    /// Producer epoch, -1 for none.
    pub(super) producer_epoch: i16,
    /// Sequence of the batch's first record, -1 for none.
    pub(super) base_sequence: i32,
}

/// A batch, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct ReadyBatch {
    /// The first 61 bytes.
    pub(super) header: [u8; HEADER_LEN],
    /// The rest.
    pub(super) body: Bytes,
    /// Bytes of keys and values.
    pub(super) record_bytes: u64,
}

/// Where the records of batches come from.
#[derive(Debug)]
pub(super) enum Payload {
    /// Bodies that were built before the run.
    Pool(Pool),
    /// Each value begins with its number, so that a reader knows which record it has.
    Numbered(Numbered),
}

impl Payload {
    /// Most records of one batch.
    pub(super) fn batch_records(&self) -> u64 {
        match self {
            Payload::Pool(pool) => pool.ends.len() as u64,
            Payload::Numbered(numbered) => numbered.batch_records as u64,
        }
    }

    /// A batch of the records from `first` on. `turn` chooses among bodies.
    pub(super) fn batch(
        &self,
        first: u64,
        records: u64,
        turn: u64,
        origin: Origin,
        now_ms: i64,
    ) -> io::Result<ReadyBatch> {
        match self {
            Payload::Pool(pool) => pool.batch(records as usize, turn, origin, now_ms),
            Payload::Numbered(numbered) => numbered.batch(first, records, origin, now_ms),
        }
    }
}

/// Prepared bodies.
#[derive(Debug)]
pub(super) struct Pool {
    bodies: Vec<Body>,
    /// Where each record ends in an uncompressed body: the same in all of them.
    ends: Vec<usize>,
    codec: Codec,
    record_bytes: u64,
    /// For a whole body that is not compressed.
    whole: CrcJoin,
}

#[derive(Debug)]
struct Body {
    records: Bytes,
    /// The records as they are sent, if all of them are.
    packed: Bytes,
    packed_crc: u32,
}

/// Joins the CRC of some bytes with that of further bytes of a fixed length. Joining is linear in the first CRC, so
/// that the results for its 32 bits are enough: `crc32c_combine` takes some 12 µs each time, as long as going over
/// 100 KiB would.
#[derive(Debug)]
struct CrcJoin {
    of_bits: [u32; 32],
    len: usize,
}

impl CrcJoin {
    fn new(len: usize) -> CrcJoin {
        let mut of_bits = [0; 32];
        for (bit, joined) in of_bits.iter_mut().enumerate() {
            *joined = crc32c::crc32c_combine(1 << bit, 0, len);
        }
        CrcJoin { of_bits, len }
    }

    fn join(&self, first: u32, further: u32) -> u32 {
        let bits = self.of_bits.iter().enumerate();
        bits.filter(|(bit, _)| first >> bit & 1 == 1)
            .fold(further, |crc, (_, joined)| crc ^ joined)
    }
}

impl Pool {
    /// Builds the bodies.
    pub(super) fn new(plan: &RecordPlan) -> io::Result<Pool> {
        let ends = record_ends(plan);
        let size = ends.last().copied().unwrap_or(1);
        let count = (POOL_BYTES / size).clamp(BODIES_MIN, BODIES_MAX);
        let mut random = Random::new(plan);
        let mut bodies = Vec::with_capacity(count);
        for _ in 0..count {
            let mut builder = BatchBuilder::new();
            for _ in 0..ends.len() {
                let key = random.key();
                builder.push(0, key.as_ref().map(|key| &key[..]), Some(random.value()), &[]);
            }
            let records = builder.build().body();
            let packed = pack(plan.codec, &records)?;
            bodies.push(Body {
                packed_crc: crc32c::crc32c(&packed),
                packed,
                records,
            });
        }
        Ok(Pool {
            bodies,
            ends,
            codec: plan.codec,
            record_bytes: (plan.value_bytes + plan.keys.map_or(0, |_| KEY_BYTES)) as u64,
            whole: CrcJoin::new(size),
        })
    }

    /// The first `records` of a body; their offsets count from 0, so any number of them is a batch.
    fn batch(&self, records: usize, turn: u64, origin: Origin, now_ms: i64) -> io::Result<ReadyBatch> {
        let records = records.clamp(1, self.ends.len());
        let of_pool = &self.bodies[(turn % self.bodies.len() as u64) as usize];
        let (body, known_crc) = if records == self.ends.len() {
            (of_pool.packed.clone(), Some(of_pool.packed_crc))
        } else {
            let part = of_pool.records.slice(..self.ends[records - 1]);
            (pack(self.codec, &part)?, None)
        };
        let mut header = batch_header(records as i32, origin, now_ms, self.codec, body.len());
        let of_header = crc32c::crc32c(&header[field::ATTRIBUTES..]);
        let crc = match known_crc {
            Some(of_body) if body.len() == self.whole.len => self.whole.join(of_header, of_body),
            _ => crc32c::crc32c_append(of_header, &body),
        };
        header[field::CRC..field::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
        Ok(ReadyBatch {
            header,
            body,
            record_bytes: self.record_bytes * records as u64,
        })
    }
}

fn pack(codec: Codec, records: &Bytes) -> io::Result<Bytes> {
    match codec {
        Codec::None => Ok(records.clone()),
        codec => Ok(codec.compress(records)?.into()),
    }
}

/// Ends of the records of a full batch, by building one.
fn record_ends(plan: &RecordPlan) -> Vec<usize> {
    let value = vec![0; plan.value_bytes];
    let key = plan.keys.map(|_| [0; KEY_BYTES]);
    let mut builder = BatchBuilder::new();
    let mut ends = Vec::new();
    while ends.len() < plan.batch_records_max.max(1) {
        builder.push(0, key.as_ref().map(|key| &key[..]), Some(&value), &[]);
        if builder.size() > plan.batch_bytes && !ends.is_empty() {
            break;
        }
        ends.push(builder.size() - HEADER_LEN);
    }
    ends
}

/// The header that [`BatchBuilder`] would write, but for its CRC.
fn batch_header(
    records: i32,
    origin: Origin,
    now_ms: i64,
    codec: Codec,
    body_bytes: usize,
) -> [u8; HEADER_LEN] {
    let after_length = HEADER_LEN - field::LEADER_EPOCH + body_bytes;
    BatchHeader {
        base_offset: 0,
        batch_length: i32::try_from(after_length).unwrap_or(i32::MAX),
        leader_epoch: -1,
        magic: 2,
        crc: 0,
        attributes: i16::from(codec.id()),
        last_offset_delta: records - 1,
        base_timestamp: now_ms,
        max_timestamp: now_ms,
        producer_id: origin.producer_id,
        producer_epoch: origin.producer_epoch,
        base_sequence: origin.base_sequence,
        record_count: records,
    }
    .encode()
}

/// Records whose values say which ones they are.
#[derive(Debug)]
pub(super) struct Numbered {
    mark: [u8; 8],
    values: Bytes,
    value_bytes: usize,
    batch_records: usize,
    codec: Codec,
    keys: Option<u32>,
}

impl Numbered {
    /// Values begin with `mark`, which tells this run from others, and the record's number.
    pub(super) fn new(plan: &RecordPlan, mark: u64) -> Numbered {
        let mut random = Random::new(plan);
        Numbered {
            mark: mark.to_be_bytes(),
            values: Bytes::copy_from_slice(random.value()),
            value_bytes: plan.value_bytes.max(NUMBERED_BYTES_MIN as usize),
            batch_records: record_ends(plan).len(),
            codec: plan.codec,
            keys: plan.keys,
        }
    }

    fn batch(&self, first: u64, records: u64, origin: Origin, now_ms: i64) -> io::Result<ReadyBatch> {
        let Origin {
            producer_id,
            producer_epoch,
            base_sequence,
        } = origin;
        let mut builder = BatchBuilder::new().producer(producer_id, producer_epoch, base_sequence);
        let mut value = self.values.to_vec();
        value.resize(self.value_bytes, 0);
        value[..8].copy_from_slice(&self.mark);
        for number in first..first + records {
            value[8..16].copy_from_slice(&number.to_be_bytes());
            let key = self.keys.map(|keys| key_bytes(number as u32 % keys.max(1)));
            builder.push(now_ms, key.as_ref().map(|key| &key[..]), Some(&value), &[]);
        }
        let batch = builder.build_with(self.codec)?;
        let key_bytes = self.keys.map_or(0, |_| KEY_BYTES);
        Ok(ReadyBatch {
            header: batch.patched_header(0, -1),
            body: batch.body(),
            record_bytes: (self.value_bytes + key_bytes) as u64 * records,
        })
    }

    /// The number in a value, if the value is one of this run.
    pub(super) fn number(mark: u64, value: &[u8]) -> Option<u64> {
        let (found, rest) = value.split_first_chunk::<8>()?;
        let number = rest.first_chunk::<8>()?;
        (*found == mark.to_be_bytes()).then(|| u64::from_be_bytes(*number))
    }
}

/// Keys and values. The seed is fixed: runs are alike, and nothing that a broker or store does looks for repeats
/// across them.
struct Random {
    rng: StdRng,
    value: Vec<u8>,
    content: Content,
    keys: Option<u32>,
}

impl Random {
    fn new(plan: &RecordPlan) -> Random {
        Random {
            rng: StdRng::seed_from_u64(0x0a11_0041),
            // What follows the random part repeats, so any codec makes it nearly nothing.
            value: vec![b'.'; plan.value_bytes],
            content: plan.content,
            keys: plan.keys,
        }
    }

    fn value(&mut self) -> &[u8] {
        match self.content {
            Content::Random(ratio) => {
                let part = self.value.len() as f64 / ratio.max(1.0);
                let random_bytes = (part.round() as usize).min(self.value.len());
                self.rng.fill_bytes(&mut self.value[..random_bytes]);
            }
            Content::Json => event::write(&mut self.rng, &mut self.value),
        }
        &self.value
    }

    fn key(&mut self) -> Option<[u8; KEY_BYTES]> {
        self.keys
            .map(|keys| key_bytes(self.rng.random_range(0..keys.max(1))))
    }
}

fn key_bytes(key: u32) -> [u8; KEY_BYTES] {
    let mut bytes = [b'0'; KEY_BYTES];
    for (place, byte) in bytes.iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[(key >> (4 * place) & 0xf) as usize];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::RecordBatch;

    const ORIGIN: Origin = Origin {
        producer_id: 77,
        producer_epoch: 3,
        base_sequence: 1000,
    };
    const NOW: i64 = 1_700_000_000_123;

    fn plan(codec: Codec, keys: Option<u32>) -> RecordPlan {
        RecordPlan {
            value_bytes: 100,
            content: Content::Random(1.0),
            keys,
            batch_bytes: 16 * 1024,
            batch_records_max: usize::MAX,
            codec,
        }
    }

    fn whole(batch: &ReadyBatch) -> Bytes {
        [&batch.header[..], &batch.body].concat().into()
    }

    #[test]
    fn a_batch_is_what_the_builder_gives() {
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            for keys in [None, Some(5)] {
                let pool = Pool::new(&plan(codec, keys)).unwrap();
                let full = pool.ends.len();
                for records in [1, 2, 70, full - 1, full] {
                    let batch = pool.batch(records, 3, ORIGIN, NOW).unwrap();
                    let parsed = RecordBatch::parse_produced(whole(&batch)).unwrap();
                    assert_eq!(parsed.header().record_count as usize, records);
                    let opened = parsed.records(1 << 20).unwrap();
                    let mut builder = BatchBuilder::new().producer(77, 3, 1000);
                    let mut record_bytes = 0;
                    for record in &opened {
                        let record = record.unwrap();
                        assert_eq!(record.key.is_some(), keys.is_some());
                        record_bytes += record.value.unwrap().len() + record.key.map_or(0, <[u8]>::len);
                        builder.push(NOW, record.key, record.value, &[]);
                    }
                    assert_eq!(batch.record_bytes, record_bytes as u64);
                    let built = builder.build_with(codec).unwrap();
                    assert_eq!(*built.bytes(), whole(&batch), "{codec:?}, {records} records");
                }
            }
        }
    }

    #[test]
    fn a_full_batch_just_fits() {
        let pool = Pool::new(&plan(Codec::None, None)).unwrap();
        let full = pool.batch(usize::MAX, 0, ORIGIN, NOW).unwrap();
        let size = whole(&full).len();
        assert!(size <= 16 * 1024 && size + 112 > 16 * 1024, "{size}");
        let large = RecordPlan {
            value_bytes: 50_000,
            ..plan(Codec::None, None)
        };
        assert_eq!(record_ends(&large).len(), 1);
        let single = RecordPlan {
            batch_records_max: 1,
            ..plan(Codec::None, None)
        };
        assert_eq!(record_ends(&single).len(), 1);
    }

    #[test]
    fn values_compress_as_told() {
        for (content, least, most) in [
            (Content::Random(1.0), 0.98, 1.02),
            (Content::Random(4.0), 0.2, 0.32),
            (Content::Json, 0.2, 0.4),
        ] {
            let plan = RecordPlan {
                value_bytes: 1000,
                content,
                batch_bytes: 100_000,
                ..plan(Codec::Zstd, None)
            };
            let pool = Pool::new(&plan).unwrap();
            let body = &pool.bodies[0];
            let part = body.packed.len() as f64 / body.records.len() as f64;
            assert!((least..most).contains(&part), "{content:?}: {part}");
        }
    }

    #[test]
    fn numbered_records_say_which_they_are() {
        let numbered = Numbered::new(&plan(Codec::Lz4, None), 42);
        let batch = numbered.batch(7, 3, ORIGIN, NOW).unwrap();
        let parsed = RecordBatch::parse_produced(whole(&batch)).unwrap();
        let opened = parsed.records(1 << 20).unwrap();
        let numbers: Vec<_> = opened
            .iter()
            .map(|record| Numbered::number(42, record.unwrap().value.unwrap()))
            .collect();
        assert_eq!(numbers, vec![Some(7), Some(8), Some(9)]);
        assert_eq!(batch.record_bytes, 300);
        assert_eq!(
            Numbered::number(43, opened.iter().next().unwrap().unwrap().value.unwrap()),
            None
        );
        assert_eq!(Numbered::number(42, b"short"), None);
    }

    #[test]
    fn keys_are_hexadecimal() {
        assert_eq!(&key_bytes(0xc0ffee), b"00c0ffee");
    }
}
