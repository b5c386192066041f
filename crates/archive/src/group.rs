//! The row group that is being written: a staging area of rows, and an encoder for each column.
//!
//! Rows are handed to the encoders in short runs, because a page can end only between two of them. Strings are copied on
//! the way: an encoder keeps them until its page ends, and a short key must not hold the object that its record came in.

use std::sync::Arc;

use alluvium_log::batch::RecordRef;
use bytes::Bytes;
use parquet::column::writer::{
    ColumnCloseResult, ColumnWriter, ColumnWriterImpl, get_column_writer, get_typed_column_writer,
};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::SchemaDescriptor;

use crate::page::PageSink;
use crate::schema::{Column, RUN_ROWS};

/// Bytes of a run at most, unless it is one record.
const RUN_BYTES: usize = 32 * 1024;
/// What a row costs beside its strings, about.
const ROW_BYTES: usize = 32;

/// What all records of a batch have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchFacts {
    pub(crate) partition: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) append_time_us: i64,
    pub(crate) log_append: bool,
}

/// Strings of one column that wait for its encoder, with their levels.
#[derive(Debug, Default)]
struct Strings {
    /// All of them, one behind the other.
    copied: Vec<u8>,
    lengths: Vec<usize>,
    definitions: Vec<i16>,
}

/// Rows that wait to be encoded.
#[derive(Debug, Default)]
struct Staging {
    bytes: usize,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    timestamps: Vec<i64>,
    timestamp_definitions: Vec<i16>,
    append_times: Vec<i64>,
    epochs: Vec<i32>,
    log_append: Vec<bool>,
    keys: Strings,
    header_keys: Strings,
    header_values: Strings,
    header_repetitions: Vec<i16>,
    values: Strings,
    encodable: Vec<ByteArray>,
}

impl Strings {
    /// Definition level `null` stands for a string that is not there, the one above for one that is.
    fn push(&mut self, string: Option<&[u8]>, null: i16) {
        self.definitions.push(null + i16::from(string.is_some()));
        if let Some(string) = string {
            self.copied.extend_from_slice(string);
            self.lengths.push(string.len());
        }
    }

    /// Encodes all of them. The encoder keeps the copy until its page ends.
    fn encode(
        &mut self,
        repetitions: Option<&[i16]>,
        encoder: &mut ColumnWriterImpl<'static, ByteArrayType>,
        scratch: &mut Vec<ByteArray>,
    ) -> Result<()> {
        let all = Bytes::from(std::mem::take(&mut self.copied));
        let mut at = 0;
        scratch.clear();
        scratch.extend(self.lengths.drain(..).map(|len| {
            let string = all.slice(at..at + len);
            at += len;
            ByteArray::from(string)
        }));
        encoder.write_batch(scratch, Some(&self.definitions), repetitions)?;
        self.definitions.clear();
        scratch.clear();
        Ok(())
    }
}

/// Bytes that a record counts as.
pub(crate) fn raw_bytes(record: &RecordRef<'_>) -> usize {
    let strings = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    let headers = record
        .headers()
        .map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len) + ROW_BYTES);
    ROW_BYTES + strings + headers.sum::<usize>()
}

/// The encoders, in file order.
struct Encoders {
    partition: ColumnWriterImpl<'static, Int32Type>,
    offset: ColumnWriterImpl<'static, Int64Type>,
    timestamp: ColumnWriterImpl<'static, Int64Type>,
    append_time: ColumnWriterImpl<'static, Int64Type>,
    leader_epoch: ColumnWriterImpl<'static, Int32Type>,
    key: ColumnWriterImpl<'static, ByteArrayType>,
    header_key: ColumnWriterImpl<'static, ByteArrayType>,
    header_value: ColumnWriterImpl<'static, ByteArrayType>,
    value: ColumnWriterImpl<'static, ByteArrayType>,
    log_append: ColumnWriterImpl<'static, BoolType>,
}

/// A row group that is being written.
pub(crate) struct OpenGroup {
    encoders: Encoders,
    sinks: Vec<PageSink>,
    staging: Staging,
    rows: u32,
    raw: u64,
}

/// What became of a run of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunWritten {
    /// Whether a page of values ended with it.
    pub(crate) page_ended: bool,
}

impl OpenGroup {
    pub(crate) fn new(schema: &SchemaDescriptor, properties: &WriterPropertiesPtr) -> OpenGroup {
        let sinks: Vec<PageSink> = Column::ALL.map(|_| PageSink::default()).to_vec();
        let writer = |column: Column| -> ColumnWriter<'static> {
            let n = column as usize;
            let sink = Box::new(sinks[n].clone());
            get_column_writer(schema.column(n), Arc::clone(properties), sink)
        };
        fn typed<T: DataType>(writer: ColumnWriter<'static>) -> ColumnWriterImpl<'static, T> {
            get_typed_column_writer(writer)
        }
        let encoders = Encoders {
            partition: typed(writer(Column::Partition)),
            offset: typed(writer(Column::Offset)),
            timestamp: typed(writer(Column::Timestamp)),
            append_time: typed(writer(Column::AppendTime)),
            leader_epoch: typed(writer(Column::LeaderEpoch)),
            key: typed(writer(Column::Key)),
            header_key: typed(writer(Column::HeaderKey)),
            header_value: typed(writer(Column::HeaderValue)),
            value: typed(writer(Column::Value)),
            log_append: typed(writer(Column::LogAppendTime)),
        };
        OpenGroup {
            encoders,
            sinks,
            staging: Staging::default(),
            rows: 0,
            raw: 0,
        }
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of all records so far.
    pub(crate) fn raw(&self) -> u64 {
        self.raw
    }

    /// Bytes of the pages so far.
    pub(crate) fn encoded(&self) -> u64 {
        let e = &self.encoders;
        let numbers = e.partition.get_total_bytes_written()
            + e.offset.get_total_bytes_written()
            + e.timestamp.get_total_bytes_written()
            + e.append_time.get_total_bytes_written()
            + e.leader_epoch.get_total_bytes_written()
            + e.log_append.get_total_bytes_written();
        numbers
            + e.key.get_total_bytes_written()
            + e.header_key.get_total_bytes_written()
            + e.header_value.get_total_bytes_written()
            + e.value.get_total_bytes_written()
    }

    /// Adds a record; `timestamp_us` is none if it has no time.
    pub(crate) fn push(&mut self, facts: BatchFacts, record: &RecordRef<'_>, timestamp_us: Option<i64>) {
        let s = &mut self.staging;
        s.partitions.push(facts.partition);
        s.offsets.push(record.offset);
        s.timestamps.extend(timestamp_us);
        s.timestamp_definitions.push(i16::from(timestamp_us.is_some()));
        s.append_times.push(facts.append_time_us);
        s.epochs.push(facts.leader_epoch);
        s.log_append.push(facts.log_append);
        s.keys.push(record.key, 0);
        s.values.push(record.value, 0);
        let mut repetition = 0;
        for (key, value) in record.headers() {
            s.header_repetitions.push(repetition);
            s.header_keys.push(Some(key), 0);
            s.header_values.push(value, 1);
            repetition = 1;
        }
        if repetition == 0 {
            s.header_repetitions.push(0);
            s.header_keys.push(None, 0);
            s.header_values.push(None, 0);
        }
        let raw = raw_bytes(record);
        s.bytes += raw;
        self.rows += 1;
        self.raw += raw as u64;
    }

    /// Whether what was added since the last run is one.
    pub(crate) fn run_is_full(&self) -> bool {
        self.staging.bytes >= RUN_BYTES || self.staging.offsets.len() >= RUN_ROWS
    }

    /// Encodes what was added since the last run.
    pub(crate) fn write_run(&mut self) -> Result<RunWritten> {
        let (s, e) = (&mut self.staging, &mut self.encoders);
        if s.offsets.is_empty() {
            return Ok(RunWritten::default());
        }
        e.partition.write_batch(&s.partitions, None, None)?;
        e.offset.write_batch(&s.offsets, None, None)?;
        e.timestamp
            .write_batch(&s.timestamps, Some(&s.timestamp_definitions), None)?;
        e.append_time.write_batch(&s.append_times, None, None)?;
        e.leader_epoch.write_batch(&s.epochs, None, None)?;
        e.log_append.write_batch(&s.log_append, None, None)?;
        let repetitions = Some(&s.header_repetitions[..]);
        let before = e.value.get_total_bytes_written();
        for (strings, repetitions, encoder) in [
            (&mut s.keys, None, &mut e.key),
            (&mut s.header_keys, repetitions, &mut e.header_key),
            (&mut s.header_values, repetitions, &mut e.header_value),
            (&mut s.values, None, &mut e.value),
        ] {
            strings.encode(repetitions, encoder, &mut s.encodable)?;
        }
        s.partitions.clear();
        s.offsets.clear();
        s.timestamps.clear();
        s.timestamp_definitions.clear();
        s.append_times.clear();
        s.epochs.clear();
        s.log_append.clear();
        s.header_repetitions.clear();
        s.bytes = 0;
        Ok(RunWritten {
            page_ended: e.value.get_total_bytes_written() > before,
        })
    }

    /// Appends the row group to the file and returns how many bytes it has there.
    pub(crate) fn close(mut self, file: &mut SerializedFileWriter<Vec<u8>>) -> Result<u64> {
        self.write_run()?;
        let e = self.encoders;
        let closed: [ColumnCloseResult; Column::ALL.len()] = [
            e.partition.close()?,
            e.offset.close()?,
            e.timestamp.close()?,
            e.append_time.close()?,
            e.leader_epoch.close()?,
            e.key.close()?,
            e.header_key.close()?,
            e.header_value.close()?,
            e.value.close()?,
            e.log_append.close()?,
        ];
        let mut group = file.next_row_group()?;
        let mut bytes = 0;
        for (column, sink) in closed.into_iter().zip(&self.sinks) {
            let pages = Bytes::from(sink.take());
            bytes += pages.len() as u64;
            group.append_column(&pages, column)?;
        }
        group.close()?;
        Ok(bytes)
    }
}
