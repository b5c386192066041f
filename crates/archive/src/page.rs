//! Data pages: a header in Thrift's compact protocol, then the compressed bytes under a checksum.
//!
//! The library writes no page checksums, so the header is made here; and it is read here, because a reader that
//! believes a header allocates what it says. Every page of a file is a data page of version 1, so the header has one
//! shape: whatever differs is damage. Its numbers are outside the checksum, and each is compared with something that
//! is inside.

use std::sync::Arc;

use alluvium_log::format::FormatError;
use flate2::Crc;
use parking_lot::Mutex;
use parquet::basic::{Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::errors::ParquetError;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::get_frame_content_size;

use crate::schema::Column;

/// Bytes of a page at most, decompressed: a page ends with the record that fills it, and the records of a batch have
/// at most half of this together.
const PAGE_BYTES_MAX: u64 = 256 << 20;

/// The types of fields in Thrift's compact protocol, one step behind the field before.
const INT: u8 = 0x15;
const STRUCT: u8 = 0x1c;
const STOP: u8 = 0;
/// `PageType::DATA_PAGE`.
const DATA_PAGE: i32 = 0;
/// `Encoding::RLE`, of the levels.
const RLE: i32 = 3;

/// What a page says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageHeader {
    uncompressed: i32,
    compressed: i32,
    crc: u32,
    values: i32,
    encoding: i32,
}

impl PageHeader {
    fn put(&self, out: &mut Vec<u8>) {
        for field in [
            DATA_PAGE,
            self.uncompressed,
            self.compressed,
            self.crc.cast_signed(),
        ] {
            put_int(out, field);
        }
        out.push(STRUCT);
        for field in [self.values, self.encoding, RLE, RLE] {
            put_int(out, field);
        }
        out.extend_from_slice(&[STOP, STOP]);
    }

    /// The header at the start of `bytes`, and what follows it.
    fn read(bytes: &[u8]) -> Option<(PageHeader, &[u8])> {
        let mut rest = bytes;
        let expect = |rest: &mut &[u8], byte| {
            let (first, after) = rest.split_first()?;
            *rest = after;
            (*first == byte).then_some(())
        };
        if int(&mut rest)? != DATA_PAGE {
            return None;
        }
        let (uncompressed, compressed, crc) = (int(&mut rest)?, int(&mut rest)?, int(&mut rest)?);
        expect(&mut rest, STRUCT)?;
        let (values, encoding) = (int(&mut rest)?, int(&mut rest)?);
        if int(&mut rest)? != RLE || int(&mut rest)? != RLE {
            return None;
        }
        expect(&mut rest, STOP)?;
        expect(&mut rest, STOP)?;
        let header = PageHeader {
            uncompressed,
            compressed,
            crc: crc.cast_unsigned(),
            values,
            encoding,
        };
        Some((header, rest))
    }
}

fn put_int(out: &mut Vec<u8>, value: i32) {
    out.push(INT);
    let mut raw = ((value << 1) ^ (value >> 31)).cast_unsigned();
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (kind, mut bytes) = rest.split_first()?;
    let mut raw = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, after) = bytes.split_first()?;
        bytes = after;
        raw |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            *rest = bytes;
            let value = (raw >> 1).cast_signed() ^ -((raw & 1).cast_signed());
            return (*kind == INT).then_some(value);
        }
    }
    None
}

/// The number of an encoding in the format; only of those that are written.
fn code(encoding: Encoding) -> Option<i32> {
    match encoding {
        Encoding::PLAIN => Some(0),
        Encoding::DELTA_BINARY_PACKED => Some(5),
        Encoding::DELTA_LENGTH_BYTE_ARRAY => Some(6),
        _ => None,
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Gathers the pages of a column chunk in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageSink(Arc<Mutex<Vec<u8>>>);

impl PageSink {
    /// The pages, once the column's writer is closed.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock())
    }
}

impl PageWriter for PageSink {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec, ParquetError> {
        let refused = |why: &str| ParquetError::General(why.to_owned());
        let size = |bytes: usize| i32::try_from(bytes).map_err(|_| refused("a page passes 2 GiB"));
        let Page::DataPage { num_values, .. } = page.compressed_page() else {
            return Err(refused("not a data page of version 1"));
        };
        let header = PageHeader {
            uncompressed: size(page.uncompressed_size())?,
            compressed: size(page.compressed_size())?,
            crc: checksum(page.data()),
            values: size(*num_values as usize)?,
            encoding: code(page.encoding()).ok_or_else(|| refused("an encoding that is not read"))?,
        };
        let mut out = self.0.lock();
        let start = out.len();
        header.put(&mut out);
        let header_len = out.len() - start;
        out.extend_from_slice(page.data());
        let mut spec = PageWriteSpec::new();
        spec.page_type = PageType::DATA_PAGE;
        spec.uncompressed_size = page.uncompressed_size() + header_len;
        spec.compressed_size = page.compressed_size() + header_len;
        spec.num_values = *num_values;
        spec.offset = start as u64;
        spec.bytes_written = (out.len() - start) as u64;
        Ok(spec)
    }

    fn close(&mut self) -> Result<(), ParquetError> {
        Ok(())
    }
}

/// Opens pages. It keeps the decompressor between them.
pub(crate) struct Opener(Decompressor<'static>);

impl Opener {
    pub(crate) fn new() -> Result<Opener, FormatError> {
        let decompressor = Decompressor::new().map_err(|_| FormatError::Invalid("decompressor"))?;
        Ok(Opener(decompressor))
    }

    /// Verifies one page, appends what it holds to `out`, decompressed, and returns how many values it says it has,
    /// nulls included.
    pub(crate) fn open(
        &mut self,
        column: Column,
        page: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, FormatError> {
        let (header, body) = PageHeader::read(page).ok_or(FormatError::Invalid("page header"))?;
        if usize::try_from(header.compressed) != Ok(body.len()) {
            return Err(FormatError::Invalid("size of a page"));
        }
        if header.crc != checksum(body) {
            return Err(FormatError::Checksum("page"));
        }
        if Some(header.encoding) != code(column.encoding()) {
            return Err(FormatError::Invalid("encoding of a page"));
        }
        let values = usize::try_from(header.values).map_err(|_| FormatError::Invalid("count of a page"))?;
        // The size stands within the checksum too, so it can be trusted as far as it may go.
        let len = match get_frame_content_size(body) {
            Ok(Some(len))
                if len <= PAGE_BYTES_MAX && i64::from(header.uncompressed).cast_unsigned() == len =>
            {
                len as usize
            }
            _ => return Err(FormatError::Invalid("size of a page")),
        };
        let start = out.len();
        out.resize(start + len, 0);
        match self.0.decompress_to_buffer(body, &mut out[start..]) {
            Ok(written) if written == len => Ok(values),
            _ => Err(FormatError::Invalid("compressed page")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_come_back(uncompressed: i32, compressed: i32, crc: u32, values: i32, encoding: i32) {
            let header = PageHeader { uncompressed, compressed, crc, values, encoding };
            let mut bytes = vec![];
            header.put(&mut bytes);
            bytes.push(7);
            prop_assert_eq!(PageHeader::read(&bytes), Some((header, &[7u8][..])));
        }

        #[test]
        fn garbage_is_refused(bytes: Vec<u8>) {
            let mut out = vec![];
            let _ = PageHeader::read(&bytes);
            prop_assert!(Opener::new().unwrap().open(Column::Value, &bytes, &mut out).is_err());
        }
    }
}
