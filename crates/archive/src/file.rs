//! What is known of a file once its end was read: where every page is, and what some of them hold.

use std::ops::Range;

use alluvium_log::format::FormatError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::{ColumnIndexMetaData, PrimitiveColumnIndex};

use crate::schema::{Column, schema};
use crate::seek::{SeekTable, Tail};

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageAt {
    pub(crate) at: u64,
    pub(crate) len: u32,
    /// Its first row, counted from the start of the row group.
    pub(crate) first_row: u32,
}

/// What the values of a page lie between. Booleans count as 0 and 1; bytes have no bounds here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Least and greatest value; none if all are null.
    pub(crate) values: Option<(i64, i64)>,
    pub(crate) nulls: bool,
}

/// A column within a row group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) pages: Vec<PageAt>,
    /// One for each page, or none for a column that has no bounds.
    pub(crate) bounds: Vec<Bounds>,
}

impl Chunk {
    /// The pages that some of these rows are in.
    pub(crate) fn pages_of(&self, rows: &Range<u32>) -> Range<usize> {
        let from = self.pages.partition_point(|p| p.first_row <= rows.start);
        let to = self.pages.partition_point(|p| p.first_row < rows.end);
        from.saturating_sub(1)..to
    }

    /// Where the rows of a page end.
    pub(crate) fn end_row(&self, page: usize, rows: u32) -> u32 {
        self.pages.get(page + 1).map_or(rows, |p| p.first_row)
    }

    /// What all values in these pages are, if they are all the same and the bounds tell it.
    pub(crate) fn constant(&self, pages: &Range<usize>) -> Option<Option<i64>> {
        let bounds = self.bounds.get(pages.clone())?;
        let (first, rest) = bounds.split_first()?;
        if rest.iter().any(|b| b != first) {
            return None;
        }
        match first.values {
            None => Some(None),
            Some((least, greatest)) => (least == greatest && !first.nulls).then_some(Some(least)),
        }
    }
}

/// A row group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Its first row, counted from the start of the file.
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// In the order of [`Column::ALL`].
    chunks: Vec<Chunk>,
}

impl Group {
    pub(crate) fn chunk(&self, column: Column) -> &Chunk {
        &self.chunks[column as usize]
    }

    /// Rows of the file as rows of this group.
    pub(crate) fn within(&self, rows: &Range<u32>) -> Range<u32> {
        rows.start - self.first_row..rows.end - self.first_row
    }
}

/// A file.
#[derive(Clone, Debug)]
pub(crate) struct FileMeta {
    groups: Vec<Group>,
    pub(crate) seek: SeekTable,
}

impl FileMeta {
    /// Reads what a verified tail says.
    pub(crate) fn read(tail: &Tail) -> Result<FileMeta, FormatError> {
        let seek = SeekTable::decode(tail.seek.clone())?;
        let len = tail.index_at + tail.bytes.len() as u64;
        let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        let footer = reader
            .try_parse_sized(&tail.bytes, len)
            .and_then(|()| reader.finish())
            .map_err(|_| FormatError::Invalid("footer"))?;
        let ours = |text| {
            schema(text).is_ok_and(|ours| *footer.file_metadata().schema_descr().root_schema() == *ours)
        };
        if !ours(false) && !ours(true) {
            return Err(FormatError::NotOurs("history file: it has other columns"));
        }
        let mut groups = Vec::with_capacity(footer.num_row_groups());
        let mut first_row = 0u32;
        for n in 0..footer.num_row_groups() {
            let group = group(&footer, n, first_row, tail.index_at)?;
            first_row = first_row
                .checked_add(group.rows)
                .ok_or(FormatError::Invalid("rows"))?;
            groups.push(group);
        }
        if first_row != seek.rows() {
            return Err(FormatError::Invalid("rows"));
        }
        let file = FileMeta { groups, seek };
        let whole = |rows: Range<u32>| rows.is_empty() || file.group_of(&rows).is_some();
        if !file
            .seek
            .shares
            .iter()
            .all(|s| whole(s.first_row..s.first_row + s.rows))
        {
            return Err(FormatError::Invalid("share: it passes its row group"));
        }
        Ok(file)
    }

    /// The row group in which these rows are, if it is one.
    pub(crate) fn group_of(&self, rows: &Range<u32>) -> Option<&Group> {
        let n = self.groups.partition_point(|g| g.first_row <= rows.start);
        let group = self.groups.get(n.checked_sub(1)?)?;
        (rows.end <= group.first_row + group.rows).then_some(group)
    }

    /// Memory that it takes, about.
    pub(crate) fn memory(&self) -> usize {
        let chunks = self.groups.iter().flat_map(|g| &g.chunks);
        let pages: usize = chunks
            .map(|c| size_of_val(&c.pages[..]) + size_of_val(&c.bounds[..]) + size_of::<Chunk>())
            .sum();
        pages
            + size_of_val(&self.seek.shares[..])
            + size_of_val(&self.seek.portions[..])
            + size_of::<FileMeta>()
    }
}

fn group(footer: &ParquetMetaData, n: usize, first_row: u32, data_end: u64) -> Result<Group, FormatError> {
    let metadata = footer.row_group(n);
    let rows = u32::try_from(metadata.num_rows())
        .ok()
        .filter(|rows| *rows > 0)
        .ok_or(FormatError::Invalid("rows of a row group"))?;
    let mut chunks = Vec::with_capacity(Column::ALL.len());
    for c in 0..metadata.num_columns() {
        let mut chunk = Chunk {
            pages: pages(footer, n, c, rows, data_end)?,
            bounds: vec![],
        };
        chunk.bounds = bounds(footer, n, c, chunk.pages.len())?;
        chunks.push(chunk);
    }
    if chunks.len() != Column::ALL.len() {
        return Err(FormatError::Invalid("columns of a row group"));
    }
    Ok(Group {
        first_row,
        rows,
        chunks,
    })
}

/// Where a column's pages are: one behind the other, within the row groups, the first with row 0.
fn pages(
    footer: &ParquetMetaData,
    group: usize,
    column: usize,
    rows: u32,
    data_end: u64,
) -> Result<Vec<PageAt>, FormatError> {
    const WRONG: FormatError = FormatError::Invalid("page index");
    let index = footer
        .offset_index()
        .and_then(|all| all.get(group)?.get(column))
        .ok_or(WRONG)?;
    let mut pages = Vec::with_capacity(index.page_locations().len());
    let (mut end, mut next_row) = (0, 0);
    for location in index.page_locations() {
        let page = PageAt {
            at: u64::try_from(location.offset).map_err(|_| WRONG)?,
            len: u32::try_from(location.compressed_page_size).map_err(|_| WRONG)?,
            first_row: u32::try_from(location.first_row_index).map_err(|_| WRONG)?,
        };
        let row_fits = if pages.is_empty() {
            page.first_row == 0
        } else {
            page.first_row >= next_row && page.first_row < rows
        };
        if !row_fits || page.at < end {
            return Err(WRONG);
        }
        end = page.at.checked_add(u64::from(page.len)).ok_or(WRONG)?;
        next_row = page.first_row + 1;
        pages.push(page);
    }
    if pages.is_empty() || end > data_end {
        return Err(WRONG);
    }
    Ok(pages)
}

fn bounds(
    footer: &ParquetMetaData,
    group: usize,
    column: usize,
    pages: usize,
) -> Result<Vec<Bounds>, FormatError> {
    let index = footer.column_index().and_then(|all| all.get(group)?.get(column));
    let bounds = match index {
        None | Some(ColumnIndexMetaData::NONE) => return Ok(vec![]),
        Some(ColumnIndexMetaData::INT32(index)) => of_numbers(index, |v| i64::from(*v)),
        Some(ColumnIndexMetaData::INT64(index)) => of_numbers(index, |v| *v),
        Some(ColumnIndexMetaData::BOOLEAN(index)) => of_numbers(index, |v| i64::from(*v)),
        // Of bytes it is only of interest whether all are null: keys and headers often are.
        Some(ColumnIndexMetaData::BYTE_ARRAY(index)) => (0..index.num_pages() as usize)
            .map(|n| Bounds {
                values: (!index.is_null_page(n)).then_some((i64::MIN, i64::MAX)),
                nulls: true,
            })
            .collect(),
        Some(_) => return Err(FormatError::Invalid("page index")),
    };
    if bounds.len() != pages {
        return Err(FormatError::Invalid("page index"));
    }
    Ok(bounds)
}

fn of_numbers<T>(index: &PrimitiveColumnIndex<T>, number: impl Fn(&T) -> i64) -> Vec<Bounds> {
    (0..index.num_pages() as usize)
        .map(|n| Bounds {
            values: index
                .min_value(n)
                .map(&number)
                .zip(index.max_value(n).map(&number)),
            nulls: index.null_count(n) != Some(0),
        })
        .collect()
}
