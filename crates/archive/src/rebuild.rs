//! Makes record batches of rows: uncompressed, without producer, each of at most [`BATCH_BYTES`] unless one record is
//! larger. Pure, so the same rows always become the same batches.

use alluvium_log::Offset;
use alluvium_log::batch::{BatchHeader, HEADER_LEN, LOG_APPEND_TIME, field, put_varlong, varlong_len};
use bytes::Bytes;

/// Bytes of a batch at most, unless it holds a single record.
pub(crate) const BATCH_BYTES: usize = 256 * 1024;
/// No timestamp, no producer, no sequence.
const NONE: i64 = -1;

/// Byte strings that lie in one buffer, some of them null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strings {
    pub(crate) data: Vec<u8>,
    /// Where each begins and how long it is; a length of -1 is null.
    pub(crate) slots: Vec<(u32, i32)>,
}

impl Strings {
    fn get(&self, index: usize) -> Option<&[u8]> {
        let (at, len) = *self.slots.get(index)?;
        let len = usize::try_from(len).ok()?;
        self.data.get(at as usize..at as usize + len)
    }

    /// Bytes of all of them. The buffer has more: whole pages, of which rows are taken.
    fn bytes(&self) -> usize {
        self.slots
            .iter()
            .map(|(_, len)| usize::try_from(*len).unwrap_or(0))
            .sum()
    }
}

/// Rows of one partition, column by column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) offsets: Vec<i64>,
    /// Milliseconds; -1 for none.
    pub(crate) timestamps: Vec<i64>,
    pub(crate) epochs: Vec<i64>,
    /// 1 where the timestamp is the broker's.
    pub(crate) log_append: Vec<i64>,
    pub(crate) keys: Strings,
    pub(crate) values: Strings,
    /// How many headers each row has; empty if none has any.
    pub(crate) header_counts: Vec<u32>,
    pub(crate) header_keys: Strings,
    pub(crate) header_values: Strings,
}

/// A batch with the offsets that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) bytes: Bytes,
}

/// The batches of rows that stand for the offsets `base..=last`.
///
/// Gaps belong to the batch before them. One that is wider than the 31 bits of an offset delta is left out, but the last
/// batch always ends at `last`.
pub(crate) fn rebuild(rows: &Rows, base: Offset, last: Offset) -> Vec<Rebuilt> {
    let payload = rows.keys.bytes() + rows.values.bytes() + rows.header_values.bytes();
    let mut out = Batches {
        bytes: Vec::with_capacity(payload + payload / 16 + rows.offsets.len() * 24 + HEADER_LEN),
        done: vec![],
        open: None,
    };
    let mut header = 0;
    for row in 0..rows.offsets.len() {
        let headers = header..header + rows.header_counts.get(row).map_or(0, |n| *n as usize);
        header = headers.end;
        out.push(rows, row, headers, base);
    }
    out.end_at(base, last);
    let bytes = Bytes::from(out.bytes);
    out.done
        .into_iter()
        .map(|(at, base_offset, last_offset)| Rebuilt {
            base_offset,
            last_offset,
            bytes: bytes.slice(at),
        })
        .collect()
}

/// A batch that is not finished.
#[derive(Clone, Copy, Debug)]
struct Open {
    at: usize,
    base_offset: Offset,
    last_offset: Offset,
    epoch: i64,
    log_append: bool,
    base_timestamp: i64,
    max_timestamp: i64,
    records: i32,
}

struct Batches {
    bytes: Vec<u8>,
    done: Vec<(std::ops::Range<usize>, Offset, Offset)>,
    open: Option<Open>,
}

fn delta(from: Offset, to: Offset) -> Option<i32> {
    i32::try_from(to.wrapping_sub(from)).ok().filter(|d| *d >= 0)
}

fn string_len(string: Option<&[u8]>) -> usize {
    string.map_or(1, |s| varlong_len(s.len() as i64) + s.len())
}

fn put_string(out: &mut Vec<u8>, string: Option<&[u8]>) {
    match string {
        None => put_varlong(out, -1),
        Some(s) => {
            put_varlong(out, s.len() as i64);
            out.extend_from_slice(s);
        }
    }
}

impl Batches {
    fn push(&mut self, rows: &Rows, row: usize, headers: std::ops::Range<usize>, base: Offset) {
        let (offset, timestamp) = (rows.offsets[row], rows.timestamps[row]);
        let (epoch, log_append) = (rows.epochs[row], rows.log_append[row] != 0);
        let (key, value) = (rows.keys.get(row), rows.values.get(row));
        let mut body = string_len(key) + string_len(value) + varlong_len(headers.len() as i64) + 1;
        for n in headers.clone() {
            body += string_len(rows.header_keys.get(n)) + string_len(rows.header_values.get(n));
        }
        let record_len = |open: &Open, offset_delta: i32| {
            let timestamp_delta = timestamp.wrapping_sub(open.base_timestamp);
            body + varlong_len(timestamp_delta) + varlong_len(i64::from(offset_delta))
        };
        let fits = self.open.filter(|open| {
            let same = open.epoch == epoch
                && open.log_append == log_append
                && (!log_append || open.max_timestamp == timestamp);
            let so_far = self.bytes.len() - open.at;
            let record = delta(open.base_offset, offset).map(|d| record_len(open, d));
            same && record.is_some_and(|len| so_far + varlong_len(len as i64) + len <= BATCH_BYTES)
        });
        let mut open = fits.unwrap_or_else(|| {
            let first = self.open.is_none() && self.done.is_empty();
            self.close(offset - 1);
            let base_offset = if first && delta(base, offset).is_some() {
                base
            } else {
                offset
            };
            let at = self.bytes.len();
            self.bytes.resize(at + HEADER_LEN, 0);
            Open {
                at,
                base_offset,
                last_offset: offset,
                epoch,
                log_append,
                base_timestamp: timestamp,
                max_timestamp: timestamp,
                records: 0,
            }
        });
        let offset_delta = delta(open.base_offset, offset).unwrap_or(0);
        let len = record_len(&open, offset_delta);
        let out = &mut self.bytes;
        put_varlong(out, len as i64);
        out.push(0);
        put_varlong(out, timestamp.wrapping_sub(open.base_timestamp));
        put_varlong(out, i64::from(offset_delta));
        put_string(out, key);
        put_string(out, value);
        put_varlong(out, headers.len() as i64);
        for n in headers {
            put_string(out, rows.header_keys.get(n));
            put_string(out, rows.header_values.get(n));
        }
        open.last_offset = offset;
        open.max_timestamp = open.max_timestamp.max(timestamp);
        open.records += 1;
        self.open = Some(open);
    }

    /// Finishes the batch that is open. It stands for everything up to `last`, as far as a delta reaches.
    fn close(&mut self, last: Offset) {
        let Some(open) = self.open.take() else { return };
        let reach = open.base_offset.saturating_add(i64::from(i32::MAX));
        let last_offset = last.min(reach).max(open.last_offset);
        let mut header = BatchHeader {
            base_offset: open.base_offset,
            batch_length: (self.bytes.len() - open.at - field::LEADER_EPOCH) as i32,
            leader_epoch: open.epoch as i32,
            magic: 2,
            crc: 0,
            attributes: if open.log_append { LOG_APPEND_TIME } else { 0 },
            last_offset_delta: (last_offset - open.base_offset) as i32,
            base_timestamp: open.base_timestamp,
            max_timestamp: open.max_timestamp,
            producer_id: NONE,
            producer_epoch: NONE as i16,
            base_sequence: NONE as i32,
            record_count: open.records,
        };
        let batch = &mut self.bytes[open.at..];
        batch[..HEADER_LEN].copy_from_slice(&header.encode());
        header.crc = crc32c::crc32c(&batch[field::ATTRIBUTES..]);
        batch[..HEADER_LEN].copy_from_slice(&header.encode());
        self.done
            .push((open.at..self.bytes.len(), open.base_offset, last_offset));
    }

    /// Makes the last batch end at `last`, with a batch that holds no record if it must be.
    fn end_at(&mut self, base: Offset, last: Offset) {
        self.close(last);
        if self.done.last().is_some_and(|(_, _, end)| *end == last) {
            return;
        }
        let epoch = NONE;
        let after = self.done.last().map_or(base, |(_, _, end)| end + 1);
        let at = self.bytes.len();
        self.bytes.resize(at + HEADER_LEN, 0);
        self.open = Some(Open {
            at,
            base_offset: after.max(last.saturating_sub(i64::from(i32::MAX))),
            last_offset: last,
            epoch,
            log_append: false,
            base_timestamp: NONE,
            max_timestamp: NONE,
            records: 0,
        });
        self.close(last);
    }
}
