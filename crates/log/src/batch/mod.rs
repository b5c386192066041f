//! Record batch v2 (magic 2, KIP-98): the unit that clients send, the log stores and consumers read.
//!
//! A batch stays the client's bytes. [`RecordBatch::parse_produced`] judges what a producer sent,
//! [`RecordBatch::from_stored`] what was read back, [`ChunkCursor`] walks batches in a list of chunks, and
//! [`BatchRecords`] opens one. Base offset and leader epoch lie outside the CRC, so the log assigns them by a
//! [patched header](RecordBatch::patched_header) in front of bytes that it only refers to.
//!
//! Everything here takes hostile bytes: it answers with a [`BatchError`], never panics, and allocates nothing by a
//! length that the bytes declare.

use bytes::{Bytes, BytesMut};

pub use builder::BatchBuilder;
pub use chunks::{BatchView, ChunkCursor, slice_chunks};
pub use header::{BatchHeader, HEADER_LEN, LOG_APPEND_TIME, TimestampType, field};
pub use records::{
    BatchRecords, Record, RecordIter, RecordRef, for_each_record, put_varlong, records, varlong_len,
};
pub use rewrite::{RewriteError, empty_batch};

use crate::codec::{Codec, DecompressError};

mod builder;
mod chunks;
mod header;
mod records;
mod rewrite;
#[cfg(test)]
mod tests;

/// Why bytes are not a batch that this log takes. Each variant names the Kafka error that a producer gets for it;
/// where Kafka's own broker differs, the reason is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does. INVALID_RECORD (87): Kafka finds no whole batch in the request.
    #[error("the batch is cut short")]
    Truncated,
    /// The length field does not even hold a header. CORRUPT_MESSAGE (2).
    #[error("batch length {0} is impossible")]
    BatchLength(i32),
    /// INVALID_RECORD (87) for 0 and 1, the message formats before Kafka 0.11, in Produce v3 and later (the older
    /// requests, where UNSUPPORTED_FOR_MESSAGE_FORMAT (43) was an answer, are not served); CORRUPT_MESSAGE (2) for
    /// any other.
    #[error("magic {0} is not supported")]
    UnsupportedMagic(i8),
    /// CORRUPT_MESSAGE (2), which producers retry.
    #[error("CRC mismatch")]
    Crc,
    /// INVALID_RECORD (87).
    #[error("invalid record batch: {0}")]
    Invalid(&'static str),
    /// UNSUPPORTED_COMPRESSION_TYPE (76). Kafka's broker fails on such an id and answers UNKNOWN_SERVER_ERROR.
    #[error("unknown compression codec {0}")]
    UnsupportedCodec(u8),
    /// INVALID_TIMESTAMP (32).
    #[error("invalid timestamp: {0}")]
    Timestamp(&'static str),
    /// MESSAGE_TOO_LARGE (10), on which producers split the batch and try again.
    #[error("decompressed size passes the cap")]
    TooLarge,
}

impl From<DecompressError> for BatchError {
    fn from(error: DecompressError) -> Self {
        match error {
            DecompressError::TooLarge => BatchError::TooLarge,
            DecompressError::Damaged => BatchError::Invalid("the compressed records are damaged"),
        }
    }
}

/// One whole batch, exactly `batch_length + 12` bytes, whose header has been parsed and checked.
#[derive(Clone, Debug)]
pub struct RecordBatch {
    pub(crate) bytes: Bytes,
    pub(crate) header: BatchHeader,
}

impl RecordBatch {
    /// Checks exactly one batch as a producer sends it, by the rules of Kafka's `ProduceRequest`, `UnifiedLog` and
    /// `LogValidator`, in their order. Uncompressed records are walked, without an allocation; compressed ones are
    /// not opened.
    ///
    /// Stricter than Kafka: the offset deltas of uncompressed records count 0, 1, 2 and so on; the LogAppendTime bit
    /// and a transactional batch without a producer id are always refused; no byte may follow the batch. Not
    /// stricter where clients in use would fail: without a producer id, epoch and sequence may be anything (kafkajs
    /// sends 0 and 0, sarama -1 and 0).
    ///
    /// Like Kafka this puts a wrong `max_timestamp` right (some producers send that of the last record), which copies
    /// the batch: to the true one if the records are not compressed, otherwise only to the base timestamp at least. What
    /// is below -1 becomes -1, which is no time.
    ///
    /// What depends on the topic is checked by [`RecordBatch::check_timestamps`] and [`RecordBatch::check_keys`].
    pub fn parse_produced(bytes: Bytes) -> Result<RecordBatch, BatchError> {
        let header = BatchHeader::parse(&bytes)?;
        check_exact_size(&header, bytes.len())?;
        if header.base_offset != 0 {
            return Err(BatchError::Invalid(
                "the base offset of a produced batch is not 0",
            ));
        }
        check_crc(&header, crc32c::crc32c(&bytes[field::ATTRIBUTES..]))?;
        let codec = header.codec()?;
        check_produced_header(&header)?;
        let records = &bytes[HEADER_LEN..];
        let max_timestamp = if codec == Codec::None {
            max_timestamp(&header, records)?
        } else if records.is_empty() {
            return Err(BatchError::Invalid("the batch holds no records"));
        } else {
            header.max_timestamp.max(header.base_timestamp).max(-1)
        };
        let batch = RecordBatch { bytes, header };
        if max_timestamp == header.max_timestamp {
            return Ok(batch);
        }
        Ok(batch.with_header(BatchHeader {
            max_timestamp,
            ..header
        }))
    }

    /// Takes exactly one batch as it was stored: size, magic, CRC, a known codec and counts that are not negative.
    /// The records are not walked.
    pub fn from_stored(bytes: Bytes) -> Result<RecordBatch, BatchError> {
        let header = BatchHeader::parse(&bytes)?;
        check_exact_size(&header, bytes.len())?;
        check_crc(&header, crc32c::crc32c(&bytes[field::ATTRIBUTES..]))?;
        header.codec()?;
        if header.record_count < 0 || header.last_offset_delta < 0 {
            return Err(BatchError::Invalid("a count is negative"));
        }
        Ok(RecordBatch { bytes, header })
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Everything after the header, sharing the memory: what follows a [patched
    /// header](RecordBatch::patched_header).
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_LEN..)
    }

    /// Size of the batch in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a batch has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Opens the records; decompresses at most `max_bytes`.
    pub fn records(&self, max_bytes: usize) -> Result<BatchRecords, BatchError> {
        BatchRecords::open(&self.bytes, max_bytes)
    }

    /// The header with the two fields that the log assigns. The CRC does not cover them and stays right.
    pub fn patched_header(&self, base_offset: i64, leader_epoch: i32) -> [u8; HEADER_LEN] {
        BatchHeader {
            base_offset,
            leader_epoch,
            ..self.header
        }
        .encode()
    }

    /// The batch with the broker's time for all its records, as a topic with `message.timestamp.type` LogAppendTime
    /// wants it. Computes the CRC again, and copies unless the bytes belong to nobody else.
    #[must_use]
    pub fn with_log_append_time(self, now_ms: i64) -> RecordBatch {
        let attributes = self.header.attributes | header::LOG_APPEND_TIME;
        let header = BatchHeader {
            attributes,
            max_timestamp: now_ms,
            ..self.header
        };
        self.with_header(header)
    }

    /// Checks the producer's timestamps against the topic's limits (`message.timestamp.before.max.ms` and
    /// `.after.max.ms`, counted from now), in ms since the epoch, both inclusive. A timestamp of -1 means that there
    /// is none. Compressed batches are judged by base and maximum, others by every record, but only if one may be
    /// out of range.
    pub fn check_timestamps(&self, earliest: i64, latest: i64) -> Result<(), BatchError> {
        const OUT_OF_RANGE: BatchError = BatchError::Timestamp("outside what the topic allows");
        let allowed = |timestamp: i64| timestamp == -1 || (earliest..=latest).contains(&timestamp);
        if !allowed(self.header.max_timestamp) {
            return Err(OUT_OF_RANGE);
        }
        if self.header.codec()? != Codec::None {
            return if allowed(self.header.base_timestamp) {
                Ok(())
            } else {
                Err(OUT_OF_RANGE)
            };
        }
        if earliest == i64::MIN {
            return Ok(());
        }
        for record in RecordIter::new(&self.header, &self.bytes[HEADER_LEN..]) {
            if !allowed(record?.timestamp) {
                return Err(OUT_OF_RANGE);
            }
        }
        Ok(())
    }

    /// Checks that every record has a key, as a compacted topic needs it; decompresses at most `max_bytes`.
    pub fn check_keys(&self, max_bytes: usize) -> Result<(), BatchError> {
        for record in &self.records(max_bytes)? {
            if record?.key.is_none() {
                return Err(BatchError::Invalid("a record of a compacted topic has no key"));
            }
        }
        Ok(())
    }

    /// The same records under another header, which gets the CRC that belongs to it.
    fn with_header(self, mut header: BatchHeader) -> RecordBatch {
        header.crc = header.crc_with(&self.bytes[HEADER_LEN..]);
        let mut bytes = self
            .bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        RecordBatch {
            bytes: bytes.freeze(),
            header,
        }
    }
}

fn check_exact_size(header: &BatchHeader, available: usize) -> Result<(), BatchError> {
    match available.cmp(&header.size()) {
        std::cmp::Ordering::Less => Err(BatchError::Truncated),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(BatchError::Invalid(
            "bytes follow the batch; there must be only one",
        )),
    }
}

fn check_crc(header: &BatchHeader, computed: u32) -> Result<(), BatchError> {
    if header.crc == computed {
        Ok(())
    } else {
        Err(BatchError::Crc)
    }
}

fn check_produced_header(header: &BatchHeader) -> Result<(), BatchError> {
    let invalid = |why| Err(BatchError::Invalid(why));
    if header.record_count <= 0 {
        return invalid("the batch holds no records");
    }
    if i64::from(header.record_count) != i64::from(header.last_offset_delta) + 1 {
        return invalid("the record count does not match the offset range");
    }
    if header.is_control() {
        return invalid("clients may not write control records");
    }
    if header.has_producer_id() {
        if header.producer_epoch < 0 {
            return invalid("a producer id without an epoch");
        }
        if header.base_sequence < 0 {
            return invalid("a producer id without a sequence number");
        }
    } else if header.producer_id != -1 {
        return invalid("the producer id is negative");
    } else if header.is_transactional() {
        return invalid("a transactional batch without a producer id");
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(BatchError::Timestamp(
            "producers may not set the type LogAppendTime",
        ));
    }
    Ok(())
}

/// Walks the records of an uncompressed batch and returns their largest timestamp.
fn max_timestamp(header: &BatchHeader, records: &[u8]) -> Result<i64, BatchError> {
    // Offset deltas rise within 0..record_count, so all of them are there, in order.
    RecordIter::new(header, records).try_fold(-1, |max, record| Ok(max.max(record?.timestamp)))
}
