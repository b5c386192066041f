//! History as Parquet: files that analysts query as they lie and that consumers replay from, record for record.
//!
//! [`ParquetHistory`] is the [`History`] of a log whose past is Parquet. The engine decides what is archived and when;
//! here is only the format.
//!
//! # The file
//!
//! One file holds records of one topic, ordered by partition and offset, in row groups of about 12 MiB. Small partitions
//! share a row group; a large one has its own but for the first.
//!
//! | id | column | type | what it is |
//! |---|---|---|---|
//! | 1 | `partition` | int32 | |
//! | 2 | `offset` | int64 | may leave gaps: control batches and compacted records are not here |
//! | 3 | `timestamp` | timestamp(us, UTC), optional | of the record; null where Kafka's is -1 |
//! | 4 | `append_time` | timestamp(us, UTC) | when the broker appended it, as far as that is known |
//! | 5 | `leader_epoch` | int32 | |
//! | 6 | `key` | binary, optional | |
//! | 7 | `headers` | list of struct (`key` string, `value` binary, optional) | in the producer's order, duplicates kept |
//! | 8 | `value` | binary or string, optional | |
//! | 9 | `log_append_time` | boolean | whether the timestamp is the broker's (`message.timestamp.type`) |
//!
//! The list's element, a header's key and its value have the ids 10 to 12. Numbers and times are packed deltas, strings
//! delta lengths, without dictionaries; pages hold about 64 KiB, of values 256, and are compressed with zstd 3, each with its checksum.
//! There is a page index, and bounds of every column but values. `sorting_columns` names partition and offset. The
//! file's metadata has `alluvium.format`, `alluvium.cluster`, `alluvium.topic.id` and `alluvium.topic.name`.
//!
//! Before the footer stand a seek table and a checksum over index and footer (`seek.rs`), which other readers
//! pass over: a broker finds the rows of an offset without a search, and believes no number that is not what was
//! written.
//!
//! # What cannot be written
//!
//! A batch is added whole or refused with a [`BatchError`](alluvium_log::BatchError), and then stays as it is in the log:
//! one whose inside is damaged, whose records become more than 128 MiB, that has a timestamp beyond the microseconds of
//! 64 bits, or a header key that is not UTF-8 (the column is a string for everybody's sake, and replacing bytes would
//! change the record); in a topic with text values also one with a value that is not UTF-8.
//!
//! A batch's producer, sequence and transaction are not kept: what is archived is committed, and nobody will append to
//! it.
//!
//! # Reading
//!
//! A share is read in portions of 1 to 2 MiB that end where a page of values does. Only the pages of a portion are
//! fetched, and not those of which the index tells the content: no headers, no keys, one epoch. A portion becomes
//! uncompressed batches of at most 256 KiB (`rebuild.rs`), which are cached; a reader who goes on gets what follows
//! ahead of time.
//!
//! Damage is [`ReadError::Corrupt`], which names file and row, after a second try; nothing here panics at it or
//! allocates by a number that was not verified.

mod decode;
mod encoding;
mod file;
mod group;
mod metrics;
mod page;
mod reader;
mod rebuild;
mod schema;
mod seek;
mod summary;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use alluvium_log::history::{History, HistoryError, HistoryTopic, HistoryWriter, Share};
use alluvium_log::store::Store;
use alluvium_log::{Offset, ReadError};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use prometheus_client::registry::Registry;

pub use summary::{FileSummary, ShareSummary, summary};

use metrics::HistoryMetrics;
use reader::Files;
use writer::ParquetWriter;

/// How files are written and read. The default is right for a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParquetOptions {
    /// A row group ends when its pages have so many bytes.
    pub row_group_bytes: u64,
    /// It ends, too, when its records have so many bytes, which bounds what a query holds of it.
    pub row_group_raw_bytes: u64,
    /// It ends, too, when it has so many rows.
    pub row_group_rows: u32,
    /// Bytes of a page before it is compressed, about.
    pub page_bytes: usize,
    /// The same of the column of values, most of the file: the longer a page, the more of it repeats, and a reader wants many
    /// of them anyway. Of other columns it wants few rows.
    pub value_page_bytes: usize,
    /// Bytes of the records that are read, rebuilt and cached as one: so many to twice as many.
    pub portion_bytes: u64,
    /// Memory for what is known of files.
    pub metadata_cache_bytes: u64,
    /// Memory for rebuilt batches.
    pub portion_cache_bytes: u64,
    /// Bytes of records that are brought from the store and decoded at once.
    pub fetch_bytes: u64,
    /// Threads that decode.
    pub decode_threads: usize,
    /// How far ahead of one reader portions are brought, in bytes of records.
    pub read_ahead_bytes: usize,
    /// Files are opened and decoded on threads of their own. A simulation does it in place.
    pub own_threads: bool,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        ParquetOptions {
            row_group_bytes: 12 << 20,
            row_group_raw_bytes: 64 << 20,
            row_group_rows: 1 << 20,
            page_bytes: 64 << 10,
            value_page_bytes: 256 << 10,
            portion_bytes: 1 << 20,
            metadata_cache_bytes: 32 << 20,
            portion_cache_bytes: 64 << 20,
            fetch_bytes: 32 << 20,
            decode_threads: cores.div_ceil(2).max(2),
            read_ahead_bytes: 16 << 20,
            own_threads: true,
        }
    }
}

/// History in Parquet files.
#[derive(Clone, Debug)]
pub struct ParquetHistory {
    options: ParquetOptions,
    files: Arc<Files>,
}

impl ParquetHistory {
    /// History with its own caches and threads, which registers its metrics (`alluvium_history_*`). Fails if the system
    /// gives no thread.
    pub fn new(options: ParquetOptions, registry: &mut Registry) -> std::io::Result<ParquetHistory> {
        let metrics = HistoryMetrics::register(registry);
        Ok(ParquetHistory {
            files: Arc::new(Files::new(options.clone(), metrics)?),
            options,
        })
    }
}

#[async_trait]
impl History for ParquetHistory {
    fn begin(&self, topic: &HistoryTopic) -> Result<Box<dyn HistoryWriter>, HistoryError> {
        Ok(Box::new(ParquetWriter::begin(topic, &self.options)?))
    }

    async fn read(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        self.files.read(store, key, share, offset, max_bytes).await
    }

    async fn first_at_or_after(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        at_least: i64,
        from: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        self.files
            .first_at_or_after(store, key, share, at_least, from)
            .await
    }

    async fn forget(&self, key: &Path) {
        self.files.forget(key).await;
    }
}
