//! What the file adds to Parquet for those who replay it: where each share and each portion begins, and a checksum over
//! everything that is not a page. It stands between the page index and the footer, where other readers do not look.
//!
//! ```text
//! row groups | page index | seek table | trailer (32 bytes) | footer | footer length u32 | "PAR1"
//! trailer = magic (8) | format version u32 | index length u64 | seek table length u32 | 0 u32 | CRC32C u32
//! ```
//! The index length counts page index and seek table. The checksum covers everything from the page index to the end of
//! the file but itself. The table's integers are varints:
//! ```text
//! count of shares | for each: partition | base offset | span | rows | count of portions
//!                             | for each portion: rows | raw KiB | from the second on: first offset, from the last one
//! ```

use std::ops::Range;

use alluvium_log::Offset;
use alluvium_log::format::{FormatError, Reader, put_unsigned};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::schema::FORMAT_VERSION;

const MAGIC: &[u8; 8] = b"ALLUVHIS";
/// Bytes of the trailer.
const TRAILER_LEN: usize = 32;
/// What follows the footer in every Parquet file: its length, and this.
const PARQUET_MAGIC: &[u8; 4] = b"PAR1";
const FOOTER_END: usize = 8;
/// Index and footer of one file at most. Ours have a part in a thousand of the file.
const TAIL_MAX: u64 = 256 << 20;

/// A run of rows that is read, decoded and cached as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    /// First row, counted from the start of the file.
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// First offset that it stands for, which a row has unless the portion is the first of its share.
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    /// Bytes of its records, about.
    pub(crate) raw: u64,
}

/// A share as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileShare {
    pub(crate) partition: i32,
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// Its portions in [`SeekTable::portions`]: one at least.
    pub(crate) portions: Range<usize>,
}

/// All shares of a file and their portions, by partition and offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeekTable {
    pub(crate) shares: Vec<FileShare>,
    pub(crate) portions: Vec<Portion>,
}

impl SeekTable {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let unsigned = |v: i64| v.cast_unsigned();
        put_unsigned(&mut out, self.shares.len() as u64);
        for share in &self.shares {
            put_unsigned(&mut out, u64::from(share.partition.cast_unsigned()));
            put_unsigned(&mut out, unsigned(share.base_offset));
            put_unsigned(&mut out, unsigned(share.last_offset - share.base_offset));
            put_unsigned(&mut out, u64::from(share.rows));
            let portions = &self.portions[share.portions.clone()];
            put_unsigned(&mut out, portions.len() as u64);
            for (n, portion) in portions.iter().enumerate() {
                put_unsigned(&mut out, u64::from(portion.rows));
                put_unsigned(&mut out, portion.raw.div_ceil(1024));
                if n > 0 {
                    put_unsigned(
                        &mut out,
                        unsigned(portion.base_offset - portions[n - 1].base_offset),
                    );
                }
            }
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<SeekTable, FormatError> {
        /// Five numbers and a portion of two.
        const SHARE_LEN_MIN: usize = 7;
        const PORTION_LEN_MIN: usize = 2;
        let mut r = Reader::new(bytes);
        let mut table = SeekTable::default();
        let mut next_row = 0u32;
        for _ in 0..r.count(SHARE_LEN_MIN)? {
            let partition = r.i32v("partition")?;
            let base_offset = r.offset("base offset")?;
            let span = r.offset("span")?;
            let last_offset = base_offset
                .checked_add(span)
                .ok_or(FormatError::Invalid("span"))?;
            if let Some(before) = table.shares.last()
                && (before.partition, before.last_offset) >= (partition, base_offset)
            {
                return Err(FormatError::Invalid("order of shares"));
            }
            let rows = r.u32v("rows")?;
            let from = table.portions.len();
            let (mut portion_row, mut portion_base) = (next_row, base_offset);
            for n in 0..r.count(PORTION_LEN_MIN)? {
                let portion_rows = r.u32v("rows")?;
                let raw = r.unsigned()?.saturating_mul(1024);
                if n > 0 {
                    let step = r.offset("first offset")?;
                    let before = portion_base;
                    portion_base = before
                        .checked_add(step)
                        .filter(|base| step > 0 && *base <= last_offset)
                        .ok_or(FormatError::Invalid("first offset"))?;
                    table.portions[from + n - 1].last_offset = portion_base - 1;
                }
                table.portions.push(Portion {
                    first_row: portion_row,
                    rows: portion_rows,
                    base_offset: portion_base,
                    last_offset,
                    raw,
                });
                portion_row = portion_row
                    .checked_add(portion_rows)
                    .ok_or(FormatError::Invalid("rows"))?;
            }
            if table.portions.len() == from || portion_row - next_row != rows {
                return Err(FormatError::Invalid("portions"));
            }
            table.shares.push(FileShare {
                partition,
                base_offset,
                last_offset,
                first_row: next_row,
                rows,
                portions: from..table.portions.len(),
            });
            next_row = portion_row;
        }
        r.finish()?;
        Ok(table)
    }

    /// Rows of all shares.
    pub(crate) fn rows(&self) -> u32 {
        self.shares.last().map_or(0, |s| s.first_row + s.rows)
    }

    /// The share that begins there.
    pub(crate) fn share(&self, partition: i32, base_offset: Offset) -> Option<usize> {
        self.shares
            .binary_search_by_key(&(partition, base_offset), |s| (s.partition, s.base_offset))
            .ok()
    }

    /// The portion of a share that holds `offset`, or the first one behind it.
    pub(crate) fn portion(&self, share: &FileShare, offset: Offset) -> usize {
        let within = self.portions[share.portions.clone()].partition_point(|p| p.last_offset < offset);
        (share.portions.start + within).min(share.portions.end - 1)
    }

    /// The portions of a share's partition from the portion `from` on, those of later shares too.
    pub(crate) fn portions_from(&self, share: usize, from: usize) -> impl Iterator<Item = usize> + '_ {
        let partition = self.shares[share].partition;
        let own = from..self.shares[share].portions.end;
        let later = self.shares[share + 1..]
            .iter()
            .take_while(move |s| s.partition == partition)
            .flat_map(|s| s.portions.clone());
        own.chain(later)
    }
}

/// Puts seek table and trailer between page index and footer. `tail` is what the library wrote behind the row groups.
pub(crate) fn seal(tail: &[u8], table: &SeekTable) -> Result<Bytes, FormatError> {
    let footer_at = footer_len(tail)
        .and_then(|len| tail.len().checked_sub(len))
        .ok_or(FormatError::Invalid("footer"))?;
    let (index, footer) = tail.split_at(footer_at);
    let table = table.encode();
    let seek_len = u32::try_from(table.len()).map_err(|_| FormatError::Invalid("seek table"))?;
    let mut out = BytesMut::with_capacity(tail.len() + table.len() + TRAILER_LEN);
    out.put_slice(index);
    out.put_slice(&table);
    let index_len = out.len() as u64;
    out.put_slice(MAGIC);
    out.put_u32_le(FORMAT_VERSION);
    out.put_u64_le(index_len);
    out.put_u32_le(seek_len);
    out.put_u32_le(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), footer);
    out.put_u32_le(crc);
    out.put_slice(footer);
    Ok(out.freeze())
}

/// Length of the footer with what follows it.
fn footer_len(suffix: &[u8]) -> Option<usize> {
    let end = suffix.last_chunk::<FOOTER_END>()?;
    if !end.ends_with(PARQUET_MAGIC) {
        return None;
    }
    let mut len = &end[..];
    (len.get_u32_le() as usize).checked_add(FOOTER_END)
}

/// Answer of [`open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TailOrMore {
    Tail(Tail),
    /// The suffix was too short; so many bytes are needed.
    NeedSuffix(u64),
}

/// The end of a file, its checksum right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Where the page index begins and the row groups end.
    pub(crate) index_at: u64,
    /// All of it, as [`seal`] made it.
    pub(crate) bytes: Bytes,
    /// The seek table.
    pub(crate) seek: Bytes,
}

/// Finds and verifies the end of a file of `len` bytes in its last ones.
pub(crate) fn open(suffix: &Bytes, len: u64) -> Result<TailOrMore, FormatError> {
    if suffix.len() < FOOTER_END {
        return Err(FormatError::Truncated("file"));
    }
    let footer = footer_len(suffix).ok_or(FormatError::NotOurs("history file"))?;
    let with_trailer = footer + TRAILER_LEN;
    if with_trailer as u64 > len.min(TAIL_MAX) {
        return Err(FormatError::Invalid("length of the footer"));
    }
    if suffix.len() < with_trailer {
        return Ok(TailOrMore::NeedSuffix(with_trailer as u64));
    }
    let at = suffix.len() - with_trailer;
    let mut trailer = &suffix[at..at + TRAILER_LEN];
    if !trailer.starts_with(MAGIC) {
        return Err(FormatError::NotOurs("history file"));
    }
    trailer.advance(MAGIC.len());
    let version = trailer.get_u32_le();
    let index_len = trailer.get_u64_le();
    let seek_len = trailer.get_u32_le() as usize;
    trailer.advance(4);
    let crc = trailer.get_u32_le();
    let needed = index_len
        .checked_add(with_trailer as u64)
        .filter(|needed| *needed <= len.min(TAIL_MAX))
        .ok_or(FormatError::Invalid("length of the index"))?;
    if (suffix.len() as u64) < needed {
        return Ok(TailOrMore::NeedSuffix(needed));
    }
    let bytes = suffix.slice(suffix.len() - needed as usize..);
    let index_len = index_len as usize;
    let (covered, rest) = bytes.split_at(index_len + TRAILER_LEN - 4);
    if crc32c::crc32c_append(crc32c::crc32c(covered), &rest[4..]) != crc {
        return Err(FormatError::Checksum("index or footer"));
    }
    if version != FORMAT_VERSION {
        return Err(FormatError::TooNew(format!("history format {version}")));
    }
    let seek_at = index_len
        .checked_sub(seek_len)
        .ok_or(FormatError::Invalid("seek table"))?;
    Ok(TailOrMore::Tail(Tail {
        index_at: len - needed,
        seek: bytes.slice(seek_at..index_len),
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shares of some partitions, each of some portions.
    fn tables() -> impl Strategy<Value = SeekTable> {
        let portion = (0u32..100, 1i64..1000, 0u64..5000);
        let share = (
            0i32..3,
            0i64..1000,
            proptest::collection::vec(portion, 1..5),
            0i64..50,
        );
        proptest::collection::vec(share, 0..20).prop_map(|shares| {
            let mut table = SeekTable::default();
            let (mut row, mut partition, mut offset) = (0, 0, 0);
            for (step, gap, portions, rest) in shares {
                partition += step;
                offset = if step > 0 { gap } else { offset + gap };
                let (first_row, base_offset, from) = (row, offset, table.portions.len());
                for (rows, span, kib) in portions {
                    let (last_offset, raw) = (offset + span - 1, kib * 1024);
                    table.portions.push(Portion {
                        first_row: row,
                        rows,
                        base_offset: offset,
                        last_offset,
                        raw,
                    });
                    (row, offset) = (row + rows, offset + span);
                }
                offset += rest;
                let end = table.portions.len();
                table.portions[end - 1].last_offset = offset - 1;
                table.shares.push(FileShare {
                    partition,
                    base_offset,
                    last_offset: offset - 1,
                    first_row,
                    rows: row - first_row,
                    portions: from..end,
                });
            }
            table
        })
    }

    /// An index, and a footer with what follows it.
    fn tail(index: &[u8], footer: &[u8]) -> Vec<u8> {
        let len = u32::try_from(footer.len()).unwrap().to_le_bytes();
        [index, footer, &len, PARQUET_MAGIC].concat()
    }

    proptest! {
        #[test]
        fn tables_come_back(table in tables()) {
            prop_assert_eq!(SeekTable::decode(table.encode()).unwrap(), table.clone());
            for (n, share) in table.shares.iter().enumerate() {
                prop_assert_eq!(table.share(share.partition, share.base_offset), Some(n));
                for offset in [share.base_offset, share.last_offset] {
                    let p = table.portions[table.portion(share, offset)];
                    prop_assert!((p.base_offset..=p.last_offset).contains(&offset));
                }
                let all: Vec<usize> = table.portions_from(n, share.portions.start).collect();
                let to = table.shares[n..].iter().take_while(|s| s.partition == share.partition).last();
                prop_assert_eq!(all, (share.portions.start..to.unwrap().portions.end).collect::<Vec<_>>());
            }
        }

        #[test]
        fn garbage_is_no_table(bytes: Vec<u8>) {
            let _ = SeekTable::decode(Bytes::from(bytes.clone()));
            let len = bytes.len() as u64;
            let _ = open(&Bytes::from(bytes), len);
        }

        #[test]
        fn a_tail_is_found_and_no_bit_of_it_may_differ(
            table in tables(),
            index: Vec<u8>,
            footer: Vec<u8>,
            flip: prop::sample::Index,
            bit in 0..8,
        ) {
            let rows = b"PAR1rows";
            let sealed = seal(&tail(&index, &footer), &table).unwrap();
            let file = Bytes::from([&rows[..], &sealed].concat());
            let len = file.len() as u64;
            let expected = Tail { index_at: rows.len() as u64, bytes: sealed.clone(), seek: table.encode() };
            let mut suffix = file.slice(file.len() - FOOTER_END..);
            let mut asked = 0;
            while let TailOrMore::NeedSuffix(needed) = open(&suffix, len).unwrap() {
                suffix = file.slice(file.len() - needed as usize..);
                asked += 1;
            }
            prop_assert!(asked <= 2);
            prop_assert_eq!(open(&suffix, len), Ok(TailOrMore::Tail(expected)));
            let mut damaged = file.to_vec();
            let at = rows.len() + flip.index(sealed.len());
            damaged[at] ^= 1u8 << bit;
            prop_assert!(!matches!(open(&Bytes::from(damaged), len), Ok(TailOrMore::Tail(_))));
        }
    }
}
