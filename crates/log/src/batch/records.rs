//! The records inside a batch: walked in place, without an allocation per record.
//!
//! A record is `length, attributes, timestamp delta, offset delta, key, value, headers`, where all integers but the
//! one-byte attributes are zigzag varints and a length of -1 means null.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::BatchError;
use super::header::{BatchHeader, HEADER_LEN, TimestampType};
use crate::codec::Codec;

/// A record of its own: key, value and headers are slices of the batch (or of its decompressed records), which
/// stay in memory as long as they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since the epoch; -1 if the producer gave none.
    pub timestamp: i64,
    /// The key; null is not the same as empty.
    pub key: Option<Bytes>,
    /// The value; null in a compacted topic deletes the key.
    pub value: Option<Bytes>,
    /// Headers in the producer's order, duplicates kept. Keys need not be UTF-8.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// A record that borrows from its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since the epoch; -1 if the producer gave none.
    pub timestamp: i64,
    /// The key; null is not the same as empty.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    header_count: usize,
    /// The headers as they are encoded; they have been walked once.
    headers: &'a [u8],
    /// The record as it is encoded, its length in front.
    encoded: &'a [u8],
    /// What follows the timestamp delta in it.
    after_timestamp: &'a [u8],
    timestamp_delta: i64,
}

impl<'a> RecordRef<'a> {
    /// Appends the record as it is encoded, with its timestamp counted from a base that lies `earlier` (ms) than that of
    /// its batch.
    pub(super) fn put(&self, out: &mut Vec<u8>, earlier: i64) {
        if earlier == 0 {
            out.extend_from_slice(self.encoded);
            return;
        }
        let delta = self.timestamp_delta.wrapping_add(earlier);
        let len = 1 + varlong_len(delta) + self.after_timestamp.len();
        put_varlong(out, len as i64);
        // No attribute of a record has a meaning yet: the byte is 0 in all there are.
        out.push(0);
        put_varlong(out, delta);
        out.extend_from_slice(self.after_timestamp);
    }

    /// Headers in the producer's order, duplicates kept: key and value.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut cursor = Cursor(self.headers);
        (0..self.header_count).map_while(move |_| cursor.header())
    }

    /// How many headers there are.
    pub fn header_count(&self) -> usize {
        self.header_count
    }
}

/// The records of one batch, ready to be walked as often as needed.
#[derive(Clone, Debug)]
pub struct BatchRecords {
    header: BatchHeader,
    payload: Bytes,
}

impl BatchRecords {
    /// Opens exactly one batch. Compressed records are decompressed, to at most `max_bytes`; others are only
    /// referred to. The CRC is not verified again.
    pub fn open(batch: &Bytes, max_bytes: usize) -> Result<BatchRecords, BatchError> {
        let header = BatchHeader::parse(batch)?;
        super::check_exact_size(&header, batch.len())?;
        let codec = header.codec()?;
        let records = batch.slice(HEADER_LEN..);
        // Compaction may leave a batch without records, and then nothing was compressed either.
        let payload = if codec == Codec::None || (header.record_count == 0 && records.is_empty()) {
            records
        } else {
            Bytes::from(codec.decompress(&records, max_bytes)?)
        };
        Ok(BatchRecords { header, payload })
    }

    /// The header of the batch.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Size of the records, decompressed, in bytes.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Walks the records. After an error there is no further item.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter::new(&self.header, &self.payload)
    }

    fn owned(&self, record: RecordRef<'_>) -> Record {
        let own = |part: &[u8]| self.payload.slice_ref(part);
        Record {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(own),
            value: record.value.map(own),
            headers: record
                .headers()
                .map(|(key, value)| (own(key), value.map(own)))
                .collect(),
        }
    }
}

impl<'a> IntoIterator for &'a BatchRecords {
    type Item = Result<RecordRef<'a>, BatchError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// The records of one batch; decompresses at most `max_bytes`.
///
/// A record of 7 bytes becomes a [`Record`] of about 100, a header of 2 bytes one of 64. Bytes that clients made
/// are better walked with [`for_each_record`] or [`BatchRecords`], which cost nothing per record.
pub fn records(batch: &Bytes, max_bytes: usize) -> Result<Vec<Record>, BatchError> {
    let batch = BatchRecords::open(batch, max_bytes)?;
    batch.iter().map(|record| Ok(batch.owned(record?))).collect()
}

/// Hands each record of one batch to `visit` until that breaks; decompresses at most `max_bytes`.
pub fn for_each_record(
    batch: &Bytes,
    max_bytes: usize,
    mut visit: impl FnMut(RecordRef<'_>) -> ControlFlow<()>,
) -> Result<(), BatchError> {
    for record in &BatchRecords::open(batch, max_bytes)? {
        if visit(record?).is_break() {
            break;
        }
    }
    Ok(())
}

/// Walks encoded records and checks them on the way: lengths end where the record ends, offset deltas rise and stay
/// within the batch, and nothing is left after the last record.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    rest: Cursor<'a>,
    records_left: i32,
    base_offset: i64,
    base_timestamp: i64,
    append_time: Option<i64>,
    next_delta_min: i64,
    last_delta: i64,
    done: bool,
}

impl<'a> RecordIter<'a> {
    pub(super) fn new(header: &BatchHeader, payload: &'a [u8]) -> RecordIter<'a> {
        RecordIter {
            rest: Cursor(payload),
            records_left: header.record_count,
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_time: match header.timestamp_type() {
                TimestampType::CreateTime => None,
                TimestampType::LogAppendTime => Some(header.max_timestamp),
            },
            next_delta_min: 0,
            last_delta: i64::from(header.last_offset_delta),
            done: false,
        }
    }

    fn read(&mut self) -> Result<RecordRef<'a>, BatchError> {
        let before = self.rest.0;
        let raw = RawRecord::parse(&mut self.rest)
            .ok_or(BatchError::Invalid("a record's lengths do not match its bytes"))?;
        let offset_delta = i64::from(raw.offset_delta);
        if offset_delta < self.next_delta_min || offset_delta > self.last_delta {
            return Err(BatchError::Invalid(
                "record offsets do not rise or leave the batch",
            ));
        }
        self.next_delta_min = offset_delta + 1;
        Ok(RecordRef {
            offset: self.base_offset.wrapping_add(offset_delta),
            timestamp: self
                .append_time
                .unwrap_or(self.base_timestamp.wrapping_add(raw.timestamp_delta)),
            key: raw.key,
            value: raw.value,
            header_count: raw.header_count,
            headers: raw.headers,
            encoded: &before[..before.len() - self.rest.0.len()],
            after_timestamp: raw.after_timestamp,
            timestamp_delta: raw.timestamp_delta,
        })
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordRef<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.records_left > 0 {
            self.records_left -= 1;
            let record = self.read();
            self.done = record.is_err();
            return Some(record);
        }
        self.done = true;
        let complete = self.records_left == 0 && self.rest.0.is_empty();
        (!complete).then_some(Err(BatchError::Invalid(
            "the record count does not match the records",
        )))
    }
}

/// A record as it is encoded, its lengths checked.
struct RawRecord<'a> {
    timestamp_delta: i64,
    after_timestamp: &'a [u8],
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    header_count: usize,
    headers: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// `None` if the bytes are not a record. The walk is the hot path of uncompressed produce, and an `Option` fits
    /// in registers where a `BatchError` does not.
    #[inline]
    fn parse(rest: &mut Cursor<'a>) -> Option<RawRecord<'a>> {
        let len = usize::try_from(rest.varint()?).ok()?;
        let mut record = Cursor(rest.take(len)?);
        // No attribute of a record has a meaning yet, so any value is left to those who may know one.
        record.take(1)?;
        let timestamp_delta = record.varlong()?;
        let after_timestamp = record.0;
        let offset_delta = record.varint()?;
        let key = record.nullable()?;
        let value = record.nullable()?;
        let header_count = usize::try_from(record.varint()?).ok()?;
        let headers = record.0;
        // Each header takes two bytes at least, so a false count ends the loop soon.
        for _ in 0..header_count {
            record.header()?;
        }
        record.0.is_empty().then_some(RawRecord {
            timestamp_delta,
            after_timestamp,
            offset_delta,
            key,
            value,
            header_count,
            headers,
        })
    }
}

/// What is left to read. All methods answer `None` where the bytes do not hold what is asked for.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes behind their length, or null for a length of -1.
    #[inline]
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint()? {
            -1 => Some(None),
            len => self.take(usize::try_from(len).ok()?).map(Some),
        }
    }

    /// A header, whose key cannot be null.
    #[inline]
    fn header(&mut self) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let key = self.nullable()??;
        Some((key, self.nullable()?))
    }

    #[inline]
    fn varint(&mut self) -> Option<i32> {
        let raw = u32::try_from(self.unsigned(5)?).ok()?;
        Some((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    #[inline]
    fn varlong(&mut self) -> Option<i64> {
        let raw = self.unsigned(10)?;
        Some((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// Most varints are one byte; the others are not worth the code in every caller.
    #[inline]
    fn unsigned(&mut self, max_len: u32) -> Option<u64> {
        match self.0 {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.0 = rest;
                Some(u64::from(*byte))
            }
            _ => self.unsigned_long(max_len),
        }
    }

    /// Seven bits a byte, the lowest first; the last byte is the one without its highest bit.
    fn unsigned_long(&mut self, max_len: u32) -> Option<u64> {
        let mut value = 0;
        for index in 0..max_len {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            // Only the tenth byte can have bits that do not fit.
            if index == 9 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// Appends a zigzag varint. A value that fits 32 bits is encoded alike as a varint and as a varlong.
pub fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// Length of [`put_varlong`]'s encoding in bytes.
pub fn varlong_len(value: i64) -> usize {
    let raw = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let bits = (u64::BITS - raw.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}
