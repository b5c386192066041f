//! Record batches built and read by hand, independently of the product's own code, right and wrong ones.

use bytes::Bytes;

/// The time of a record that is made now, in ms.
pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Offsets of the fields of a batch (message format v2).
pub mod field {
    /// Base offset, 8 bytes.
    pub const BASE_OFFSET: usize = 0;
    /// Bytes after this field, 4 bytes.
    pub const LENGTH: usize = 8;
    /// Format version, 1 byte.
    pub const MAGIC: usize = 16;
    /// CRC-32C of everything after it, 4 bytes.
    pub const CRC: usize = 17;
    /// Codec and flags, 2 bytes.
    pub const ATTRIBUTES: usize = 21;
    /// Offset of the last record minus base offset, 4 bytes.
    pub const LAST_OFFSET_DELTA: usize = 23;
    /// Timestamp of the first record, 8 bytes.
    pub const BASE_TIMESTAMP: usize = 27;
    /// Largest timestamp, 8 bytes.
    pub const MAX_TIMESTAMP: usize = 35;
    /// Producer id, 8 bytes.
    pub const PRODUCER_ID: usize = 43;
    /// Producer epoch, 2 bytes.
    pub const PRODUCER_EPOCH: usize = 51;
    /// Sequence of the first record, 4 bytes.
    pub const BASE_SEQUENCE: usize = 53;
    /// Number of records, 4 bytes.
    pub const RECORD_COUNT: usize = 57;
    /// First byte of the records.
    pub const RECORDS: usize = 61;
}

/// The producer of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Producer id, -1 for none.
    pub id: i64,
    /// Producer epoch.
    pub epoch: i16,
    /// Sequence of the batch's first record.
    pub sequence: i32,
}

impl Producer {
    /// Not idempotent.
    pub const NONE: Producer = Producer {
        id: -1,
        epoch: -1,
        sequence: -1,
    };
}

/// A valid uncompressed batch with these values, no keys.
pub fn batch(timestamp_ms: i64, producer: Producer, values: &[Vec<u8>]) -> Vec<u8> {
    let mut records = Vec::new();
    for (index, value) in values.iter().enumerate() {
        record(&mut records, index as i64, value);
    }
    batch_of(timestamp_ms, producer, 0, values.len() as i32, &records)
}

/// A batch whose records section (compressed as `codec` says) is given; header and CRC are right.
pub fn batch_of(timestamp_ms: i64, producer: Producer, codec: u16, count: i32, records: &[u8]) -> Vec<u8> {
    let mut batch = Vec::with_capacity(field::RECORDS + records.len());
    batch.extend_from_slice(&0i64.to_be_bytes());
    batch.extend_from_slice(&((field::RECORDS - 12 + records.len()) as i32).to_be_bytes());
    batch.extend_from_slice(&(-1i32).to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&[0; 4]);
    batch.extend_from_slice(&codec.to_be_bytes());
    batch.extend_from_slice(&(count - 1).to_be_bytes());
    batch.extend_from_slice(&timestamp_ms.to_be_bytes());
    batch.extend_from_slice(&timestamp_ms.to_be_bytes());
    batch.extend_from_slice(&producer.id.to_be_bytes());
    batch.extend_from_slice(&producer.epoch.to_be_bytes());
    batch.extend_from_slice(&producer.sequence.to_be_bytes());
    batch.extend_from_slice(&count.to_be_bytes());
    batch.extend_from_slice(records);
    reseal(&mut batch);
    batch
}

/// Appends one record without key and headers.
pub fn record(out: &mut Vec<u8>, offset_delta: i64, value: &[u8]) {
    keyed_record(out, offset_delta, None, value);
}

/// Appends one record without headers.
pub fn keyed_record(out: &mut Vec<u8>, offset_delta: i64, key: Option<&[u8]>, value: &[u8]) {
    let mut body = vec![0];
    varint(&mut body, 0);
    varint(&mut body, offset_delta);
    match key {
        None => varint(&mut body, -1),
        Some(key) => {
            varint(&mut body, key.len() as i64);
            body.extend_from_slice(key);
        }
    }
    varint(&mut body, value.len() as i64);
    body.extend_from_slice(value);
    varint(&mut body, 0);
    varint(out, body.len() as i64);
    out.extend_from_slice(&body);
}

/// Zigzag varint.
pub fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Overwrites bytes of a batch and makes its CRC right again.
pub fn patched(mut batch: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    reseal(&mut batch);
    batch
}

/// Makes the CRC right.
pub fn reseal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[field::ATTRIBUTES..]);
    batch[field::CRC..field::CRC + 4].copy_from_slice(&crc.to_be_bytes());
}

/// One message of the old formats 0 and 1, as a message set.
pub fn old_message(magic: u8, value: &[u8]) -> Vec<u8> {
    let mut body = vec![magic, 0];
    if magic == 1 {
        body.extend_from_slice(&1_700_000_000_000i64.to_be_bytes());
    }
    body.extend_from_slice(&(-1i32).to_be_bytes());
    body.extend_from_slice(&(value.len() as i32).to_be_bytes());
    body.extend_from_slice(value);
    let mut crc = flate2::Crc::new();
    crc.update(&body);
    let mut message = 0i64.to_be_bytes().to_vec();
    message.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
    message.extend_from_slice(&crc.sum().to_be_bytes());
    message.extend_from_slice(&body);
    message
}

/// A record that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Offset.
    pub offset: i64,
    /// Value, empty for null.
    pub value: Bytes,
}

/// The records of fetched, uncompressed batches; a batch that is cut short at the end is left out.
///
/// # Errors
/// A sentence about what is wrong: a bad CRC, a length that does not fit, a codec.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Fetched>, String> {
    let mut records = Vec::new();
    while bytes.len() >= field::RECORDS {
        let size = 12 + i32::from_be_bytes(array(bytes, field::LENGTH)) as usize;
        if size > bytes.len() {
            break;
        }
        let (batch, rest) = bytes.split_at(size);
        bytes = rest;
        let base = i64::from_be_bytes(array(batch, field::BASE_OFFSET));
        let crc = u32::from_be_bytes(array(batch, field::CRC));
        if crc != crc32c::crc32c(&batch[field::ATTRIBUTES..]) {
            return Err(format!("the CRC of the batch at {base} is wrong"));
        }
        if batch[field::MAGIC] != 2 || batch[field::ATTRIBUTES + 1] & 7 != 0 {
            return Err(format!(
                "the batch at {base} is not an uncompressed one of format 2"
            ));
        }
        let count = i32::from_be_bytes(array(batch, field::RECORD_COUNT));
        let mut cursor = &batch[field::RECORDS..];
        for _ in 0..count {
            let record = read_record(&mut cursor, base);
            records.push(record.ok_or_else(|| format!("the batch at {base} is malformed"))?);
        }
    }
    Ok(records)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn read_record(cursor: &mut &[u8], base: i64) -> Option<Fetched> {
    read_varint(cursor)?;
    *cursor = cursor.get(1..)?;
    read_varint(cursor)?;
    let offset = base + read_varint(cursor)?;
    read_bytes(cursor)?;
    let value = Bytes::copy_from_slice(read_bytes(cursor)?);
    for _ in 0..read_varint(cursor)? {
        read_bytes(cursor)?;
        read_bytes(cursor)?;
    }
    Some(Fetched { offset, value })
}

fn read_bytes<'a>(cursor: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(read_varint(cursor)?).unwrap_or(0);
    let (bytes, rest) = cursor.split_at_checked(length)?;
    *cursor = rest;
    Some(bytes)
}

fn read_varint(cursor: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = cursor.split_first()?;
        *cursor = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let values: Vec<Vec<u8>> = (0..300).map(|i| vec![i as u8; i]).collect();
        let mut bytes = batch(7, Producer::NONE, &values);
        bytes[..8].copy_from_slice(&1_000i64.to_be_bytes());
        let mut two = bytes.clone();
        two.extend_from_slice(&bytes[..70]);
        let read = read(&two).unwrap();
        assert_eq!(read.len(), 300);
        assert!(
            read.iter()
                .zip(&values)
                .all(|(record, value)| record.value == *value)
        );
        assert_eq!(read[299].offset, 1_299);
        bytes[100] ^= 1;
        assert!(super::read(&bytes).unwrap_err().contains("CRC"));
    }
}
