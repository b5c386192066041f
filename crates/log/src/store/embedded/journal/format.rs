//! What is in a half of the journal, byte by byte. Numbers are little-endian; a block has 4 KiB.
//!
//! ```text
//! blocks 0 and 1: the same header twice, so that one is whole whenever power fails
//!     0  magic        "alluvjrn"
//!     8  format       u32; what follows it may differ in other formats
//!    12  crc32c       u32 of bytes 0..12, so that damage does not pass for another format
//!    16  generation   u64, greater with every header
//!    24  nonce        16 random bytes
//!    40  crc32c       u32 of bytes 0..40
//! from block 2 on, each at the start of a block: records
//!     0  magic        "alluvobj"
//!     8  nonce        the header's; a record with another one is left from before
//!    24  version      i64, the file's modification time in nanoseconds
//!    32  key_len      u32
//!    36  payload_len  u32
//!    40  crc32c       u32 of bytes 0..40, the key and the payload
//!    44  key, payload, zeros up to the next block
//! ```
//!
//! Records are found by looking at every block, since records are written at the same time and a power cut may
//! tear any of them. A payload cannot pass for a record: whoever made it does not know the nonce.

use bytes::Bytes;

use super::super::direct::{BLOCK, aligned_start};

const HEADER_MAGIC: &[u8; 8] = b"alluvjrn";
const RECORD_MAGIC: &[u8; 8] = b"alluvobj";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 44;
const RECORD_HEADER_BYTES: usize = 44;

/// Where the records begin.
pub(super) const RECORDS_START: usize = 2 * BLOCK;

/// Payloads below this are copied out of their record; larger ones keep it in memory.
const COPIED_BYTES_MAX: usize = 64 * 1024;

/// What makes the records of a half its own, and the newer of two headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) generation: u64,
    pub(super) nonce: u128,
}

/// Why a half cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Damaged,
    OtherFormat(u32),
}

/// An object that a record makes durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) version: i64,
    pub(super) payload: Bytes,
}

/// A record as it is written: aligned, and a whole number of blocks.
pub(super) struct Record {
    bytes: Vec<u8>,
    start: usize,
    payload_start: usize,
    payload_end: usize,
}

impl Header {
    /// Both copies, to be written one after the other.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(HEADER_MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.nonce.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// The header of a half from its first two blocks: the newer one that is whole.
    pub(super) fn decode(half: &[u8]) -> Result<Header, Unreadable> {
        let copies = [half.get(..BLOCK), half.get(BLOCK..2 * BLOCK)];
        let mut newest: Option<Header> = None;
        for copy in copies.into_iter().flatten() {
            match Header::decode_copy(copy) {
                Err(Unreadable::Damaged) => {}
                Err(other) => return Err(other),
                Ok(header) if newest.is_some_and(|newest| newest.generation >= header.generation) => {}
                Ok(header) => newest = Some(header),
            }
        }
        newest.ok_or(Unreadable::Damaged)
    }

    fn decode_copy(copy: &[u8]) -> Result<Header, Unreadable> {
        let mut fields = Fields(copy);
        let magic = fields.take::<8>();
        let format = fields.take().map(u32::from_le_bytes);
        if magic.as_ref() != Some(HEADER_MAGIC) || !fields.checked(copy, 12) {
            return Err(Unreadable::Damaged);
        }
        match format {
            Some(FORMAT) => {}
            Some(other) => return Err(Unreadable::OtherFormat(other)),
            None => return Err(Unreadable::Damaged),
        }
        let generation = fields.take().map(u64::from_le_bytes);
        let nonce = fields.take().map(u128::from_le_bytes);
        match (generation, nonce, fields.checked(copy, HEADER_BYTES - 4)) {
            (Some(generation), Some(nonce), true) => Ok(Header { generation, nonce }),
            _ => Err(Unreadable::Damaged),
        }
    }
}

/// Bytes on disk of the record of an object.
pub(super) fn record_bytes(key: &str, payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + key.len() + payload_bytes).next_multiple_of(BLOCK)
}

impl Record {
    /// Key and payload MUST be within the journal's limits, which are far below what the lengths can say.
    pub(super) fn encode(nonce: u128, version: i64, key: &str, chunks: &[Bytes]) -> Record {
        let payload_bytes = chunks.iter().map(Bytes::len).sum();
        let padded = record_bytes(key, payload_bytes);
        let mut bytes = Vec::with_capacity(padded + BLOCK);
        let start = aligned_start(&bytes);
        bytes.resize(start, 0);
        bytes.extend_from_slice(RECORD_MAGIC);
        bytes.extend_from_slice(&nonce.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(payload_bytes as u32).to_le_bytes());
        let crc_at = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(key.as_bytes());
        let payload_start = bytes.len();
        for chunk in chunks {
            bytes.extend_from_slice(chunk);
        }
        let payload_end = bytes.len();
        let crc = crc_of(&bytes[start..crc_at], &bytes[crc_at + 4..]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(start + padded, 0);
        Record {
            bytes,
            start,
            payload_start,
            payload_end,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The payload alone, in little more memory than it has bytes.
    pub(super) fn into_payload(self) -> Bytes {
        let payload = self.payload_start..self.payload_end;
        match payload.len() < COPIED_BYTES_MAX {
            true => Bytes::copy_from_slice(&self.bytes[payload]),
            false => Bytes::from(self.bytes).slice(payload),
        }
    }
}

/// Every whole record of the half that has this nonce.
pub(super) fn records(half: &Bytes, nonce: u128) -> Vec<Object> {
    let mut found = Vec::new();
    let mut at = RECORDS_START;
    while at < half.len() {
        match decode_record(&half.slice(at..), nonce) {
            Some(object) => {
                at += record_bytes(&object.key, object.payload.len());
                found.push(object);
            }
            None => at += BLOCK,
        }
    }
    found
}

fn decode_record(bytes: &Bytes, nonce: u128) -> Option<Object> {
    let mut fields = Fields(bytes);
    if fields.take::<8>()? != *RECORD_MAGIC || u128::from_le_bytes(fields.take()?) != nonce {
        return None;
    }
    let version = i64::from_le_bytes(fields.take()?);
    let key_bytes = u32::from_le_bytes(fields.take()?) as usize;
    let payload_bytes = u32::from_le_bytes(fields.take()?) as usize;
    let crc = u32::from_le_bytes(fields.take()?);
    let payload_start = RECORD_HEADER_BYTES.checked_add(key_bytes)?;
    let end = payload_start.checked_add(payload_bytes)?;
    let content = bytes.get(RECORD_HEADER_BYTES..end)?;
    if crc_of(bytes.get(..RECORD_HEADER_BYTES - 4)?, content) != crc {
        return None;
    }
    Some(Object {
        key: str::from_utf8(&content[..key_bytes]).ok()?.to_owned(),
        version,
        payload: bytes.slice(payload_start..end),
    })
}

fn crc_of(header: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), content)
}

/// Fixed fields one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    /// Whether the next field is the CRC of the first `bytes` of `all`.
    fn checked(&mut self, all: &[u8], bytes: usize) -> bool {
        let crc = self.take().map(u32::from_le_bytes);
        crc.is_some() && crc == all.get(..bytes).map(crc32c::crc32c)
    }
}
