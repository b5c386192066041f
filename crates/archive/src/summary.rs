//! What a file says of itself, for people.

use alluvium_log::format::FormatError;
use alluvium_log::store::{Store, reason_of};
use alluvium_log::{Offset, ReadError};
use object_store::path::Path;
use object_store::{GetOptions, GetRange};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::seek::{SeekTable, Tail, TailOrMore, open};

/// A first guess at how much of a file is its end; the file itself says how much it is.
const TAIL_GUESS: u64 = 256 * 1024;
const TAIL_GETS_MAX: usize = 3;

/// A file in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// Its size.
    pub bytes: u64,
    /// Records.
    pub rows: u64,
    /// What its metadata says of cluster, topic and format: key and value.
    pub metadata: Vec<(String, String)>,
    /// Row groups: rows and bytes.
    pub row_groups: Vec<(u64, u64)>,
    /// Columns: path, physical type, bytes as stored, bytes before compression.
    pub columns: Vec<(String, String, u64, u64)>,
    /// What it holds, by partition and offset.
    pub shares: Vec<ShareSummary>,
}

/// Neighbouring records of one partition, in one row group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareSummary {
    /// Partition number.
    pub partition: i32,
    /// First offset that it stands for.
    pub base_offset: Offset,
    /// Last offset that it stands for.
    pub last_offset: Offset,
    /// Row of its first record, counted from 0.
    pub first_row: u32,
    /// Records.
    pub rows: u32,
}

/// Reads the end of a file, and nothing else of it.
///
/// # Errors
/// It is missing, no file of history, damaged, or the store fails.
pub async fn summary(store: &Store, key: &Path) -> Result<FileSummary, ReadError> {
    let corrupt = |why: String| ReadError::Corrupt(format!("{key}: {why}"));
    let of_store = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => ReadError::Missing(key.to_string()),
        error => ReadError::Store(reason_of(&error)),
    };
    let mut suffix = TAIL_GUESS;
    for _ in 0..TAIL_GETS_MAX {
        let options = GetOptions {
            range: Some(GetRange::Suffix(suffix)),
            ..GetOptions::default()
        };
        let got = store.bulk.get_opts(key, options).await.map_err(of_store)?;
        let len = got.meta.size;
        let bytes = got.bytes().await.map_err(of_store)?;
        match open(&bytes, len).map_err(|e| corrupt(e.to_string()))? {
            TailOrMore::NeedSuffix(needed) => suffix = needed,
            TailOrMore::Tail(tail) => return of_tail(&tail).map_err(|e| corrupt(e.to_string())),
        }
    }
    Err(corrupt("its length changes".to_owned()))
}

fn of_tail(tail: &Tail) -> Result<FileSummary, FormatError> {
    let table = SeekTable::decode(tail.seek.clone())?;
    let bytes = tail.index_at + tail.bytes.len() as u64;
    let mut reader = ParquetMetaDataReader::new();
    let footer = reader
        .try_parse_sized(&tail.bytes, bytes)
        .and_then(|()| reader.finish())
        .map_err(|_| FormatError::Invalid("footer"))?;
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let shares = table.shares.iter().map(|share| ShareSummary {
        partition: share.partition,
        base_offset: share.base_offset,
        last_offset: share.last_offset,
        first_row: share.first_row,
        rows: share.rows,
    });
    let groups = footer.row_groups().iter();
    Ok(FileSummary {
        bytes,
        rows: unsigned(footer.file_metadata().num_rows()),
        metadata: metadata(&footer),
        row_groups: groups
            .map(|group| (unsigned(group.num_rows()), unsigned(group.compressed_size())))
            .collect(),
        columns: columns(&footer),
        shares: shares.collect(),
    })
}

fn metadata(footer: &ParquetMetaData) -> Vec<(String, String)> {
    let pairs = footer.file_metadata().key_value_metadata();
    let pairs = pairs.into_iter().flatten();
    pairs
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
        .collect()
}

fn columns(footer: &ParquetMetaData) -> Vec<(String, String, u64, u64)> {
    let schema = footer.file_metadata().schema_descr();
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let sum = |n: usize| {
        footer.row_groups().iter().fold((0, 0), |(stored, raw), group| {
            group.columns().get(n).map_or((stored, raw), |column| {
                (
                    stored + unsigned(column.compressed_size()),
                    raw + unsigned(column.uncompressed_size()),
                )
            })
        })
    };
    let describe = |(n, column): (usize, &parquet::schema::types::ColumnDescPtr)| {
        let (stored, raw) = sum(n);
        (
            column.path().string(),
            column.physical_type().to_string(),
            stored,
            raw,
        )
    };
    schema.columns().iter().enumerate().map(describe).collect()
}
