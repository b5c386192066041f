//! From pages to rows: which bytes of a file some rows need, and what they are.

use std::collections::BTreeMap;
use std::ops::Range;

use alluvium_log::format::FormatError;
use bytes::Bytes;

use crate::encoding::{self, booleans, packed, walk_levels};
use crate::file::{Chunk, Group, PageAt};
use crate::page::Opener;
use crate::rebuild::{Rows, Strings};
use crate::schema::Column;

/// Bytes between two pages that are rather fetched than asked for around.
const GAP_MAX: u64 = 64 * 1024;

/// Pages of one row group, as they were fetched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetched(BTreeMap<u64, Bytes>);

impl Fetched {
    pub(crate) fn insert(&mut self, at: u64, bytes: Bytes) {
        self.0.insert(at, bytes);
    }

    fn page(&self, page: &PageAt) -> Result<&[u8], FormatError> {
        let (at, piece) = self
            .0
            .range(..=page.at)
            .next_back()
            .ok_or(FormatError::Truncated("page"))?;
        let from = usize::try_from(page.at - at).map_err(|_| FormatError::Truncated("page"))?;
        from.checked_add(page.len as usize)
            .and_then(|to| piece.get(from..to))
            .ok_or(FormatError::Truncated("page"))
    }
}

/// Columns that a batch is made of. The partition is known, and the time of the append goes to analysts only.
const REPLAYED: [Column; 8] = [
    Column::Offset,
    Column::Timestamp,
    Column::LeaderEpoch,
    Column::Key,
    Column::HeaderKey,
    Column::HeaderValue,
    Column::Value,
    Column::LogAppendTime,
];

/// Byte ranges that hold all that these rows' batches are made of. Columns of which the page index tells the value are
/// not read.
pub(crate) fn ranges_of(group: &Group, rows: &Range<u32>) -> Vec<Range<u64>> {
    let no_headers = is_null(group.chunk(Column::HeaderKey), rows);
    let needed = REPLAYED.into_iter().filter(|column| match column {
        Column::Offset => true,
        Column::HeaderKey | Column::HeaderValue => !no_headers,
        column => {
            let chunk = group.chunk(*column);
            chunk.constant(&chunk.pages_of(rows)).is_none()
        }
    });
    ranges(group, needed, rows)
}

/// Byte ranges of the pages of some columns that these rows are in.
pub(crate) fn ranges(
    group: &Group,
    columns: impl IntoIterator<Item = Column>,
    rows: &Range<u32>,
) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> = columns
        .into_iter()
        .filter_map(|column| {
            let chunk = group.chunk(column);
            let pages = chunk.pages.get(chunk.pages_of(rows))?;
            // The pages of a column lie side by side.
            Some(pages.first()?.at..pages.last().map(|p| p.at + u64::from(p.len))?)
        })
        .collect();
    pages.sort_unstable_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = vec![];
    for range in pages {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + GAP_MAX => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Whether the page index tells that the column has no value in these rows.
fn is_null(chunk: &Chunk, rows: &Range<u32>) -> bool {
    chunk.constant(&chunk.pages_of(rows)) == Some(None)
}

/// Decodes rows of one row group, whose pages were fetched.
pub(crate) struct Decoder<'a> {
    group: &'a Group,
    fetched: &'a Fetched,
    rows: Range<u32>,
    opener: Opener,
    page: Vec<u8>,
    numbers: Vec<i64>,
}

impl<'a> Decoder<'a> {
    /// `rows` count from the start of the row group.
    pub(crate) fn new(
        group: &'a Group,
        fetched: &'a Fetched,
        rows: Range<u32>,
    ) -> Result<Decoder<'a>, FormatError> {
        Ok(Decoder {
            group,
            fetched,
            rows,
            opener: Opener::new()?,
            page: vec![],
            numbers: vec![],
        })
    }

    /// Everything that batches are made of.
    pub(crate) fn rows(&mut self) -> Result<Rows, FormatError> {
        let mut rows = Rows {
            offsets: self.offsets()?,
            timestamps: self.timestamps()?,
            epochs: self.epochs()?,
            log_append: self.numbers(Column::LogAppendTime, 0)?,
            keys: self.strings(Column::Key)?,
            values: self.strings(Column::Value)?,
            ..Rows::default()
        };
        if !is_null(self.group.chunk(Column::HeaderKey), &self.rows) {
            let (counts, keys) = self.lists(Column::HeaderKey)?;
            let (same, values) = self.lists(Column::HeaderValue)?;
            if counts != same {
                return Err(FormatError::Invalid("headers: keys and values differ in number"));
            }
            (rows.header_counts, rows.header_keys, rows.header_values) = (counts, keys, values);
        }
        Ok(rows)
    }

    /// The offsets, which rise.
    pub(crate) fn offsets(&mut self) -> Result<Vec<i64>, FormatError> {
        let offsets = self.numbers(Column::Offset, -1)?;
        if offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(FormatError::Invalid("offsets: they do not rise"));
        }
        Ok(offsets)
    }

    /// The leader epochs, whose deltas wrap at 32 bits.
    fn epochs(&mut self) -> Result<Vec<i64>, FormatError> {
        let mut epochs = self.numbers(Column::LeaderEpoch, -1)?;
        epochs.iter_mut().for_each(|e| *e = i64::from(*e as i32));
        Ok(epochs)
    }

    /// The timestamps in ms; -1 for none.
    pub(crate) fn timestamps(&mut self) -> Result<Vec<i64>, FormatError> {
        const NONE_US: i64 = -1000;
        let mut timestamps = self.numbers(Column::Timestamp, NONE_US)?;
        timestamps.iter_mut().for_each(|t| *t = t.div_euclid(1000));
        Ok(timestamps)
    }

    /// Numbers of a column that is not a list, with `null` for those that are not there.
    fn numbers(&mut self, column: Column, null: i64) -> Result<Vec<i64>, FormatError> {
        let chunk = self.group.chunk(column);
        let pages = chunk.pages_of(&self.rows);
        let count = self.rows.len();
        if let Some(constant) = chunk.constant(&pages) {
            return Ok(vec![constant.unwrap_or(null); count]);
        }
        let mut out = Vec::with_capacity(count);
        for page in pages {
            let (page_rows, wanted) = self.page_rows(chunk, page);
            self.page.clear();
            let values = self
                .opener
                .open(column, self.fetched.page(&chunk.pages[page])?, &mut self.page)?;
            if values != page_rows {
                return Err(FormatError::Invalid("count of a page"));
            }
            let mut rest = encoding::Bytes(&self.page);
            let nulls = Nulls::read(column, &mut rest, page_rows)?;
            self.numbers.clear();
            if column == Column::LogAppendTime {
                booleans(rest, nulls.present, &mut self.numbers)?;
            } else {
                packed(&mut rest, nulls.present, &mut self.numbers)?;
                whole(rest)?;
            }
            nulls.spread(&wanted, |from| out.push(from.map_or(null, |n| self.numbers[n])));
        }
        Ok(out)
    }

    /// Byte strings of a column that is not a list.
    fn strings(&mut self, column: Column) -> Result<Strings, FormatError> {
        let chunk = self.group.chunk(column);
        let pages = chunk.pages_of(&self.rows);
        let mut out = Strings::default();
        if is_null(chunk, &self.rows) {
            out.slots = vec![(0, -1); self.rows.len()];
            return Ok(out);
        }
        out.slots.reserve(self.rows.len());
        for page in pages {
            let (page_rows, wanted) = self.page_rows(chunk, page);
            let start = out.data.len();
            let values = self
                .opener
                .open(column, self.fetched.page(&chunk.pages[page])?, &mut out.data)?;
            if values != page_rows {
                return Err(FormatError::Invalid("count of a page"));
            }
            let mut rest = encoding::Bytes(&out.data[start..]);
            let nulls = Nulls::read(column, &mut rest, page_rows)?;
            let at = self.lengths(rest, out.data.len(), nulls.present)?;
            let mut next = Slots::new(at, &self.numbers);
            next.skip(nulls.before(wanted.start));
            nulls.spread(&wanted, |from| {
                out.slots.push(from.map_or((0, -1), |_| next.take()));
            });
        }
        Ok(out)
    }

    /// How many elements each row has, and what they are.
    fn lists(&mut self, column: Column) -> Result<(Vec<u32>, Strings), FormatError> {
        let chunk = self.group.chunk(column);
        let pages = chunk.pages_of(&self.rows);
        let (_, max_level) = column.levels();
        let (mut counts, mut out) = (Vec::with_capacity(self.rows.len()), Strings::default());
        let (mut begins, mut levels) = (vec![], vec![]);
        for page in pages {
            let (page_rows, wanted) = self.page_rows(chunk, page);
            let start = out.data.len();
            let values = self
                .opener
                .open(column, self.fetched.page(&chunk.pages[page])?, &mut out.data)?;
            // No count is believed before the levels are there: a level takes a bit at least, or stands in a run.
            let mut rest = encoding::Bytes(&out.data[start..]);
            let (repetitions, definitions) = (rest.levels()?, rest.levels()?);
            begins.clear();
            levels.clear();
            let mut rows = 0usize;
            walk_levels(repetitions, 1, values, |level, n| {
                if level == 0 {
                    rows += n;
                    if rows > page_rows {
                        return Err(FormatError::Invalid("rows of a page"));
                    }
                }
                begins.extend(std::iter::repeat_n(level == 0, n));
                Ok(())
            })?;
            if rows != page_rows || begins.first() != Some(&true) {
                return Err(FormatError::Invalid("rows of a page"));
            }
            walk_levels(definitions, max_level, values, |level, n| {
                levels.extend(std::iter::repeat_n(level, n));
                Ok(())
            })?;
            let present = levels.iter().filter(|level| **level == max_level).count();
            let at = self.lengths(rest, out.data.len(), present)?;
            let mut next = Slots::new(at, &self.numbers);
            let mut row = 0usize;
            for (begin, level) in begins.iter().zip(&levels) {
                row += usize::from(*begin);
                let here = wanted.contains(&(row - 1));
                if *begin && here {
                    counts.push(0);
                }
                let slot = if *level == max_level { next.take() } else { (0, -1) };
                // Level 0 is a row without elements.
                if here && *level > 0 {
                    out.slots.push(slot);
                    if let Some(count) = counts.last_mut() {
                        *count += 1;
                    }
                }
            }
        }
        Ok((counts, out))
    }

    /// How many rows a page has, and which of them are wanted.
    fn page_rows(&self, chunk: &Chunk, page: usize) -> (usize, Range<usize>) {
        let first = chunk.pages[page].first_row;
        let end = chunk.end_row(page, self.group.rows);
        let from = self.rows.start.max(first) - first;
        let to = self.rows.end.min(end) - first;
        ((end - first) as usize, from as usize..to as usize)
    }

    /// Reads `count` lengths into `self.numbers`; the strings are all that follows them. Returns where those begin in a
    /// buffer that ends with them at `end`.
    fn lengths(
        &mut self,
        mut rest: encoding::Bytes<'_>,
        end: usize,
        count: usize,
    ) -> Result<u32, FormatError> {
        self.numbers.clear();
        packed(&mut rest, count, &mut self.numbers)?;
        let mut total = 0u64;
        for len in &self.numbers {
            let len = u32::try_from(*len).map_err(|_| FormatError::Invalid("length of a value"))?;
            total += u64::from(len);
        }
        if total != rest.0.len() as u64 {
            return Err(FormatError::Invalid("length of values"));
        }
        let end = u32::try_from(end).map_err(|_| FormatError::Invalid("length of values"))?;
        Ok(end - rest.0.len() as u32)
    }
}

fn whole(rest: encoding::Bytes<'_>) -> Result<(), FormatError> {
    if rest.0.is_empty() {
        Ok(())
    } else {
        Err(FormatError::Invalid("page: bytes are left"))
    }
}

/// Hands out one string after the other.
struct Slots<'a> {
    at: u32,
    lengths: std::slice::Iter<'a, i64>,
}

impl<'a> Slots<'a> {
    fn new(at: u32, lengths: &'a [i64]) -> Slots<'a> {
        Slots {
            at,
            lengths: lengths.iter(),
        }
    }

    fn take(&mut self) -> (u32, i32) {
        // There are as many lengths as levels that want one.
        let len = self.lengths.next().map_or(0, |len| *len as i32);
        let slot = (self.at, len);
        self.at += len.cast_unsigned();
        slot
    }

    fn skip(&mut self, n: usize) {
        (0..n).for_each(|_| {
            self.take();
        });
    }
}

/// Which rows of a page have a value.
struct Nulls {
    /// Runs of rows: how many, and whether they have one. Empty if all have.
    runs: Vec<(bool, usize)>,
    present: usize,
}

impl Nulls {
    fn read(column: Column, rest: &mut encoding::Bytes<'_>, rows: usize) -> Result<Nulls, FormatError> {
        let (_, max_level) = column.levels();
        let mut nulls = Nulls {
            runs: vec![],
            present: rows,
        };
        if max_level == 0 {
            return Ok(nulls);
        }
        nulls.present = 0;
        walk_levels(rest.levels()?, max_level, rows, |level, n| {
            let there = level == max_level;
            nulls.present += if there { n } else { 0 };
            match nulls.runs.last_mut() {
                Some((same, so_far)) if *same == there => *so_far += n,
                _ => nulls.runs.push((there, n)),
            }
            Ok(())
        })?;
        Ok(nulls)
    }

    /// Values in the rows before `row`.
    fn before(&self, row: usize) -> usize {
        if self.runs.is_empty() {
            return row;
        }
        let (mut at, mut values) = (0, 0);
        for (there, n) in &self.runs {
            let n = (*n).min(row - at);
            values += if *there { n } else { 0 };
            at += n;
        }
        values
    }

    /// For each wanted row the number of its value.
    fn spread(&self, wanted: &Range<usize>, mut each: impl FnMut(Option<usize>)) {
        if self.runs.is_empty() {
            wanted.clone().for_each(|n| each(Some(n)));
            return;
        }
        let (mut row, mut value) = (0, 0);
        for (there, n) in &self.runs {
            let end = row + n;
            for r in row.max(wanted.start)..end.min(wanted.end) {
                each(there.then(|| value + r - row));
            }
            value += if *there { *n } else { 0 };
            row = end;
        }
    }
}
