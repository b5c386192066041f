//! The 61 bytes that every record batch v2 begins with (KIP-98), big endian.

use bytes::{Buf, BufMut};

use super::BatchError;
use crate::codec::Codec;

/// Where each field of the header begins, in bytes from the start of the batch.
pub mod field {
    /// `base_offset`, 8 bytes, outside the CRC.
    pub const BASE_OFFSET: usize = 0;
    /// `batch_length`, 4 bytes, outside the CRC.
    pub const BATCH_LENGTH: usize = 8;
    /// `leader_epoch`, 4 bytes, outside the CRC.
    pub const LEADER_EPOCH: usize = 12;
    /// `magic`, 1 byte, outside the CRC; at the same place in the older message formats.
    pub const MAGIC: usize = 16;
    /// `crc`, 4 bytes.
    pub const CRC: usize = 17;
    /// `attributes`, 2 bytes: the first that the CRC covers.
    pub const ATTRIBUTES: usize = 21;
    /// `last_offset_delta`, 4 bytes.
    pub const LAST_OFFSET_DELTA: usize = 23;
    /// `base_timestamp`, 8 bytes.
    pub const BASE_TIMESTAMP: usize = 27;
    /// `max_timestamp`, 8 bytes.
    pub const MAX_TIMESTAMP: usize = 35;
    /// `producer_id`, 8 bytes.
    pub const PRODUCER_ID: usize = 43;
    /// `producer_epoch`, 2 bytes.
    pub const PRODUCER_EPOCH: usize = 51;
    /// `base_sequence`, 4 bytes.
    pub const BASE_SEQUENCE: usize = 53;
    /// `record_count`, 4 bytes.
    pub const RECORD_COUNT: usize = 57;
    /// The records, compressed or not, up to the end of the batch.
    pub const RECORDS: usize = 61;
}

/// Length of the header in bytes.
pub const HEADER_LEN: usize = field::RECORDS;
/// What `batch_length` does not count: itself and the base offset before it.
pub(crate) const LENGTH_OVERHEAD: usize = field::LEADER_EPOCH;
/// The only magic that is read and written.
pub(crate) const MAGIC: i8 = 2;
const MIN_BATCH_LENGTH: i32 = (HEADER_LEN - LENGTH_OVERHEAD) as i32;

const CODEC_MASK: i16 = 0x07;
/// The attribute of a batch whose timestamps are the broker's.
pub const LOG_APPEND_TIME: i16 = 0x08;
pub(crate) const TRANSACTIONAL: i16 = 0x10;
pub(crate) const CONTROL: i16 = 0x20;
/// The base timestamp is the time from which on deletion marks in the batch may go (KIP-534).
const DELETE_HORIZON: i16 = 0x40;

/// The header of a record batch, as it stands in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; a producer sends 0 and the log assigns it.
    pub base_offset: i64,
    /// Bytes after this field (the total size is this + 12).
    pub batch_length: i32,
    /// Epoch of the leader that appended the batch.
    pub leader_epoch: i32,
    /// Version of the format: 2.
    pub magic: i8,
    /// CRC32C of everything from the attributes to the end.
    pub crc: u32,
    /// Codec (bits 0-2), LogAppendTime (3), transactional (4), control (5), base timestamp is a delete horizon (6).
    pub attributes: i16,
    /// Offset of the last record, or of one that was compacted away, minus the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas count from, in ms since the epoch.
    pub base_timestamp: i64,
    /// The largest timestamp in the batch, or the append time of all records if the type is LogAppendTime.
    pub max_timestamp: i64,
    /// -1 if the producer is not idempotent; then the next two fields mean nothing, and clients differ in them.
    pub producer_id: i64,
    /// Epoch of the producer.
    pub producer_epoch: i16,
    /// Sequence number of the first record.
    pub base_sequence: i32,
    /// How many records the batch holds.
    pub record_count: i32,
}

/// Whose clock the timestamps of a batch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's: each record has its own.
    CreateTime,
    /// The broker's: all records have the batch's `max_timestamp`.
    LogAppendTime,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, of which the rest is not looked at. The magic is 2 and the size
    /// holds at least the header; no other field has been judged.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        // Messages of the older formats can be shorter than 61 bytes, so the magic is looked at first.
        let magic = bytes
            .get(field::MAGIC)
            .ok_or(BatchError::Truncated)?
            .cast_signed();
        if magic != MAGIC {
            return Err(BatchError::UnsupportedMagic(magic));
        }
        let mut head: &[u8] = bytes.first_chunk::<HEADER_LEN>().ok_or(BatchError::Truncated)?;
        let header = BatchHeader {
            base_offset: head.get_i64(),
            batch_length: head.get_i32(),
            leader_epoch: head.get_i32(),
            magic: head.get_i8(),
            crc: head.get_u32(),
            attributes: head.get_i16(),
            last_offset_delta: head.get_i32(),
            base_timestamp: head.get_i64(),
            max_timestamp: head.get_i64(),
            producer_id: head.get_i64(),
            producer_epoch: head.get_i16(),
            base_sequence: head.get_i32(),
            record_count: head.get_i32(),
        };
        if header.batch_length < MIN_BATCH_LENGTH {
            return Err(BatchError::BatchLength(header.batch_length));
        }
        Ok(header)
    }

    /// The header's 61 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut head = &mut bytes[..];
        head.put_i64(self.base_offset);
        head.put_i32(self.batch_length);
        head.put_i32(self.leader_epoch);
        head.put_i8(self.magic);
        head.put_u32(self.crc);
        head.put_i16(self.attributes);
        head.put_i32(self.last_offset_delta);
        head.put_i64(self.base_timestamp);
        head.put_i64(self.max_timestamp);
        head.put_i64(self.producer_id);
        head.put_i16(self.producer_epoch);
        head.put_i32(self.base_sequence);
        head.put_i32(self.record_count);
        bytes
    }

    /// Size of the whole batch in bytes.
    pub fn size(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LENGTH_OVERHEAD
    }

    /// How the records are compressed.
    pub fn codec(&self) -> Result<Codec, BatchError> {
        let id = (self.attributes & CODEC_MASK) as u8;
        Codec::from_id(id).ok_or(BatchError::UnsupportedCodec(id))
    }

    /// Whose clock the timestamps come from.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a transaction's end marker and no user data.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// The time (ms) from which on the deletion marks in the batch may go (KIP-534). Compaction sets it when it first
    /// meets them, in the place of the base timestamp; those of the records stay what they were.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    pub(super) fn set_delete_horizon(&mut self, ms: i64) {
        self.attributes |= DELETE_HORIZON;
        self.base_timestamp = ms;
    }

    /// Whether an idempotent producer wrote it. Without one, epoch and sequence mean nothing.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id >= 0
    }

    /// Offset of the last record. The base offset lies outside the CRC and may be anything, so the sum wraps.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.wrapping_add(i64::from(self.last_offset_delta))
    }

    /// Sequence number of the last record, which follows `i32::MAX` with 0; -1 without a producer id.
    pub fn last_sequence(&self) -> i32 {
        if !self.has_producer_id() || self.base_sequence < 0 {
            return -1;
        }
        (self.base_sequence.wrapping_add(self.last_offset_delta)) & i32::MAX
    }
}
