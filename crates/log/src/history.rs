//! History (L2): what lies behind the engine's merged objects, in files that analysts query.
//!
//! The engine decides what is archived, when, under which key, and publishes where it is; a [`History`] knows the file
//! format. This crate knows none: `alluvium-archive` brings Parquet.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;

use crate::read::ReadError;
use crate::store::Store;
use crate::{BatchError, Offset, TopicId};

/// Neighbouring records of one partition in one file: as much of it as stands in one row group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Partition number.
    pub partition: i32,
    /// First offset that it stands for; there need not be a record of it.
    pub base_offset: Offset,
    /// Last offset that it stands for.
    pub last_offset: Offset,
    /// Row in the file, counted from 0, of its first record.
    pub first_row: u32,
    /// Bytes of the file that are its own, about.
    pub len: u32,
    /// Greatest timestamp (ms) of its records; -1 if none has one.
    pub max_timestamp: i64,
    /// Wall-clock time (ms) of the newest append in it.
    pub append_time_ms: i64,
}

/// What a file says of its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryTopic {
    /// Id of the cluster.
    pub cluster: uuid::Uuid,
    /// Id of the topic.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Whether values are written as text (`archive.value.type=string`) and not as bytes. Once true for a topic it is
    /// so for all its files.
    pub text_values: bool,
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedFile {
    /// Its last bytes, which follow all that [`HistoryWriter::take`] gave.
    pub rest: Bytes,
    /// What it holds, by partition and offset; without gaps between the shares of what was added side by side.
    pub shares: Vec<Share>,
    /// Rows.
    pub rows: u64,
}

/// Why a file cannot be written on. The file is to be given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HistoryError(pub String);

/// Writes one file of one topic. Everything here is work for a processor and none for the network: it is called on
/// threads of its own.
pub trait HistoryWriter: Send {
    /// Adds a stored batch whose checksum is right: all of it, or, with an error of the inner kind, nothing. Batches
    /// come by partition and offset. Those of a partition that do not begin where the last one ended begin a new share.
    /// A control batch adds no row, and its offsets to the share. `append_time_ms` is the wall-clock time of its append
    /// as far as it is known.
    fn add(
        &mut self,
        partition: i32,
        append_time_ms: i64,
        batch: &Bytes,
    ) -> Result<Result<(), BatchError>, HistoryError>;

    /// Whether nothing was added.
    fn is_empty(&self) -> bool;

    /// Bytes that are written for good and were not taken yet.
    fn take(&mut self) -> Bytes;

    /// Finishes the file.
    fn finish(self: Box<Self>) -> Result<FinishedFile, HistoryError>;
}

/// Knows a file format.
#[async_trait]
pub trait History: Send + Sync + fmt::Debug {
    /// Begins a file.
    fn begin(&self, topic: &HistoryTopic) -> Result<Box<dyn HistoryWriter>, HistoryError>;

    /// Batches of a share in offset order, from the one that holds `offset` or the first one behind it on, until they
    /// are about `max_bytes` or the share ends; at least one unless the share has no record there. The last batch of
    /// a share ends at its last offset. The bytes are verified.
    async fn read(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError>;

    /// Offset and timestamp of the first record at or above offset `from` whose timestamp is not below `at_least`
    /// (ms).
    async fn first_at_or_after(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        at_least: i64,
        from: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError>;

    /// Forgets what is remembered of a file: it was deleted.
    async fn forget(&self, key: &Path);
}
