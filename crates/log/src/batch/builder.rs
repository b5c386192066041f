//! Builds batches that the broker itself writes.

use std::io;

use bytes::Bytes;

use super::RecordBatch;
use super::header::{BatchHeader, CONTROL, HEADER_LEN, LENGTH_OVERHEAD, MAGIC, TRANSACTIONAL, field};
use super::records::{put_varlong, varlong_len};
use crate::codec::Codec;

/// Builds one batch with base offset 0, since the log assigns offsets. Coordinators write their records with it.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    records: Vec<u8>,
    record_count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    attributes: i16,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    /// An empty batch without a producer id.
    pub fn new() -> Self {
        BatchBuilder {
            records: Vec::new(),
            record_count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
            attributes: 0,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Marks the batch as written by this producer; `base_sequence` is that of its first record.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Marks the batch as part of a transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.attributes |= TRANSACTIONAL;
        self
    }

    /// Marks the batch as a control batch, whose records are markers and not data.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.attributes |= CONTROL;
        self
    }

    /// Appends a record. Header keys need not be UTF-8 and may repeat.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) {
        if self.is_empty() {
            self.base_timestamp = timestamp_ms;
            self.max_timestamp = timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.record_count);
        let len = 1
            + varlong_len(timestamp_delta)
            + varlong_len(offset_delta)
            + nullable_len(key)
            + nullable_len(value)
            + varlong_len(headers.len() as i64)
            + headers
                .iter()
                .map(|(key, value)| nullable_len(Some(key)) + nullable_len(*value))
                .sum::<usize>();
        let out = &mut self.records;
        put_varlong(out, len as i64);
        out.push(0);
        put_varlong(out, timestamp_delta);
        put_varlong(out, offset_delta);
        put_nullable(out, key);
        put_nullable(out, value);
        put_varlong(out, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(out, Some(key));
            put_nullable(out, *value);
        }
        self.record_count += 1;
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Records so far.
    pub fn record_count(&self) -> i32 {
        self.record_count
    }

    /// Size of the uncompressed batch so far, in bytes.
    pub fn size(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// The batch, uncompressed.
    ///
    /// # Panics
    /// Without a record, or beyond 2 GiB: both are mistakes of the caller, whose records they are.
    pub fn build(mut self) -> RecordBatch {
        let records = std::mem::take(&mut self.records);
        self.assemble(Codec::None, &records)
    }

    /// The batch with its records compressed.
    ///
    /// # Panics
    /// As [`BatchBuilder::build`].
    pub fn build_with(mut self, codec: Codec) -> io::Result<RecordBatch> {
        let records = codec.compress(&std::mem::take(&mut self.records))?;
        Ok(self.assemble(codec, &records))
    }

    fn assemble(&self, codec: Codec, records: &[u8]) -> RecordBatch {
        assert!(!self.is_empty(), "a batch needs at least one record");
        let batch_length = HEADER_LEN - LENGTH_OVERHEAD + records.len();
        assert!(i32::try_from(batch_length).is_ok(), "a batch stays below 2 GiB");
        let mut header = BatchHeader {
            base_offset: 0,
            batch_length: batch_length as i32,
            leader_epoch: -1,
            magic: MAGIC,
            crc: 0,
            attributes: self.attributes | i16::from(codec.id()),
            last_offset_delta: self.record_count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.record_count,
        };
        header.crc = header.crc_with(records);
        let mut bytes = Vec::with_capacity(HEADER_LEN + records.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(records);
        RecordBatch {
            bytes: Bytes::from(bytes),
            header,
        }
    }
}

impl BatchHeader {
    /// The CRC of a batch with this header and these records (compressed, if they are).
    pub(super) fn crc_with(&self, records: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.encode()[field::ATTRIBUTES..]), records)
    }
}

fn nullable_len(part: Option<&[u8]>) -> usize {
    part.map_or(1, |part| varlong_len(part.len() as i64) + part.len())
}

fn put_nullable(out: &mut Vec<u8>, part: Option<&[u8]>) {
    match part {
        None => put_varlong(out, -1),
        Some(part) => {
            put_varlong(out, part.len() as i64);
            out.extend_from_slice(part);
        }
    }
}
