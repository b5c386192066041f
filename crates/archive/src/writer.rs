//! Writes one file.

use std::fmt;
use std::sync::Arc;

use alluvium_log::batch::{BatchHeader, BatchRecords, TimestampType};
use alluvium_log::history::{FinishedFile, HistoryError, HistoryTopic, HistoryWriter, Share};
use alluvium_log::{BatchError, Offset};
use bytes::Bytes;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor};

use crate::ParquetOptions;
use crate::group::{BatchFacts, OpenGroup, raw_bytes};
use crate::schema::{properties, schema};
use crate::seek::{FileShare, Portion, SeekTable, seal};

/// Bytes that the records of a batch may become, decompressed.
const RECORDS_BYTES_MAX: usize = 128 << 20;
/// Bytes of one record, with what its headers take beside their text. A larger one could not be sent uncompressed to
/// every client (librdkafka takes 100 MB at most), and is worked on as a whole.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// Headers of one batch. One of two bytes takes a hundred times as much while it is written: a batch of 12 KB could
/// become gigabytes.
const HEADERS_MAX: usize = 1_000_000;
/// A row group that has this part of its size does not begin a further partition: a large partition gets row groups of
/// its own but for the first.
const SHARED_GROUP_PART: u64 = 4;
/// A portion that found no end of a page within so many times its size ends anyway.
const PORTION_OVER: u64 = 2;

fn failed(error: impl fmt::Display) -> HistoryError {
    HistoryError(error.to_string())
}

/// The share that is being added to.
#[derive(Clone, Debug)]
struct OpenShare {
    partition: i32,
    base_offset: Offset,
    last_offset: Offset,
    rows: u32,
    raw: u64,
    max_timestamp: i64,
    append_time_ms: i64,
    /// Where its portions begin: rows and bytes before, and the first offset.
    portions: Vec<(u32, u64, Offset)>,
    /// The next row begins a portion.
    portion_ended: bool,
}

impl OpenShare {
    fn new(partition: i32, base_offset: Offset) -> OpenShare {
        OpenShare {
            partition,
            base_offset,
            last_offset: base_offset - 1,
            rows: 0,
            raw: 0,
            max_timestamp: -1,
            append_time_ms: i64::MIN,
            portions: vec![(0, 0, base_offset)],
            portion_ended: false,
        }
    }

    fn push(&mut self, offset: Offset, timestamp: i64, raw: u64) {
        if std::mem::take(&mut self.portion_ended) {
            self.portions.push((self.rows, self.raw, offset));
        }
        self.rows += 1;
        self.raw += raw;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.last_offset = offset;
    }

    /// A run of rows was written, which ended a page or not.
    fn end_run(&mut self, page_ended: bool, portion_bytes: u64) {
        let raw = self.raw - self.portions.last().map_or(0, |p| p.1);
        self.portion_ended = raw >= portion_bytes && (page_ended || raw >= portion_bytes * PORTION_OVER);
    }
}

/// A file that is being written.
pub(crate) struct ParquetWriter {
    file: SerializedFileWriter<Vec<u8>>,
    schema: SchemaDescPtr,
    properties: WriterPropertiesPtr,
    options: ParquetOptions,
    text_values: bool,
    group: Option<OpenGroup>,
    /// Whether the next row begins a row group.
    group_full: bool,
    share: Option<OpenShare>,
    /// Shares of the row group that is being written, but the open one.
    in_group: Vec<OpenShare>,
    shares: Vec<Share>,
    table: SeekTable,
    /// Rows of the row groups that are written.
    rows: u32,
}

impl ParquetWriter {
    pub(crate) fn begin(
        topic: &HistoryTopic,
        options: &ParquetOptions,
    ) -> Result<ParquetWriter, HistoryError> {
        let root = schema(topic.text_values).map_err(failed)?;
        let descriptor = Arc::new(SchemaDescriptor::new(Arc::clone(&root)));
        let properties = Arc::new(properties(&descriptor, topic, options).map_err(failed)?);
        let file = SerializedFileWriter::new(vec![], root, Arc::clone(&properties)).map_err(failed)?;
        Ok(ParquetWriter {
            file,
            schema: descriptor,
            properties,
            options: options.clone(),
            text_values: topic.text_values,
            group: None,
            group_full: false,
            share: None,
            in_group: vec![],
            shares: vec![],
            table: SeekTable::default(),
            rows: 0,
        })
    }

    /// Opens a batch and checks all of it, so that adding it cannot fail half way.
    fn check(&self, partition: i32, batch: &Bytes) -> Result<Checked, BatchError> {
        let header = BatchHeader::parse(batch)?;
        if header.base_offset < 0 || header.last_offset_delta < 0 {
            return Err(BatchError::Invalid("an offset is negative"));
        }
        let end = header
            .base_offset
            .checked_add(i64::from(header.last_offset_delta));
        if end.is_none_or(|end| end == Offset::MAX) {
            return Err(BatchError::Invalid("the offsets leave their range"));
        }
        if let Some(share) = &self.share
            && share.partition == partition
            && header.base_offset <= share.last_offset
        {
            return Err(BatchError::Invalid("the offsets do not rise from batch to batch"));
        }
        if header.is_control() {
            return Ok(Checked {
                header,
                records: None,
            });
        }
        let records = BatchRecords::open(batch, RECORDS_BYTES_MAX)?;
        if records.payload_bytes() > RECORDS_BYTES_MAX {
            return Err(BatchError::TooLarge);
        }
        let mut headers = 0;
        for record in &records {
            let record = record?;
            headers += record.header_count();
            if headers > HEADERS_MAX || raw_bytes(&record) > RECORD_BYTES_MAX {
                return Err(BatchError::TooLarge);
            }
            if record.timestamp.checked_mul(1000).is_none() {
                return Err(BatchError::Timestamp("it does not fit microseconds"));
            }
            if record.headers().any(|(key, _)| std::str::from_utf8(key).is_err()) {
                return Err(BatchError::Invalid("a header's key is not UTF-8"));
            }
            if self.text_values
                && record
                    .value
                    .is_some_and(|value| std::str::from_utf8(value).is_err())
            {
                return Err(BatchError::Invalid("a value is not UTF-8"));
            }
        }
        Ok(Checked {
            header,
            records: Some(records),
        })
    }

    fn add_checked(
        &mut self,
        partition: i32,
        append_time_ms: i64,
        batch: &Checked,
    ) -> Result<(), HistoryError> {
        let header = &batch.header;
        let goes_on = self
            .share
            .as_ref()
            .is_some_and(|share| share.partition == partition && share.last_offset + 1 == header.base_offset);
        if !goes_on {
            self.begin_share(partition, header.base_offset);
        }
        if let Some(records) = &batch.records {
            let facts = BatchFacts {
                partition,
                leader_epoch: header.leader_epoch,
                append_time_us: append_time_ms.saturating_mul(1000),
                log_append: header.timestamp_type() == TimestampType::LogAppendTime,
            };
            self.add_records(facts, append_time_ms, records)?;
        }
        if let Some(share) = &mut self.share {
            share.last_offset = header.last_offset();
            share.append_time_ms = share.append_time_ms.max(append_time_ms);
        }
        Ok(())
    }

    fn add_records(
        &mut self,
        facts: BatchFacts,
        append_time_ms: i64,
        records: &BatchRecords,
    ) -> Result<(), HistoryError> {
        for record in records {
            let record = record.map_err(failed)?;
            if self.group_full {
                self.split(record.offset)?;
            }
            let group = self
                .group
                .get_or_insert_with(|| OpenGroup::new(&self.schema, &self.properties));
            let timestamp_us = (record.timestamp != -1).then(|| record.timestamp.saturating_mul(1000));
            group.push(facts, &record, timestamp_us);
            let run_ended = group.run_is_full();
            if let Some(share) = &mut self.share {
                share.push(record.offset, record.timestamp, raw_bytes(&record) as u64);
                share.append_time_ms = share.append_time_ms.max(append_time_ms);
            }
            if run_ended {
                self.end_run()?;
            }
        }
        Ok(())
    }

    /// Encodes a run of rows.
    fn end_run(&mut self) -> Result<(), HistoryError> {
        let Some(group) = &mut self.group else {
            return Ok(());
        };
        let page_ended = group.write_run().map_err(failed)?.page_ended;
        let options = &self.options;
        self.group_full = group.encoded() >= options.row_group_bytes
            || group.raw() >= options.row_group_raw_bytes
            || group.rows() >= options.row_group_rows;
        if let Some(share) = &mut self.share {
            share.end_run(page_ended, options.portion_bytes);
        }
        Ok(())
    }

    fn begin_share(&mut self, partition: i32, base_offset: Offset) {
        let other = self.share.take().map(|share| {
            let other = share.partition != partition;
            self.in_group.push(share);
            other
        });
        let part = self.options.row_group_bytes / SHARED_GROUP_PART;
        if other == Some(true) && self.group.as_ref().is_some_and(|group| group.encoded() >= part) {
            self.group_full = true;
        }
        self.share = Some(OpenShare::new(partition, base_offset));
    }

    /// Ends the row group before a row with this offset. A share that has rows goes on as another one.
    fn split(&mut self, offset: Offset) -> Result<(), HistoryError> {
        self.group_full = false;
        let rest = self.share.take().map(|mut share| {
            if share.rows == 0 {
                return share;
            }
            let rest = OpenShare {
                append_time_ms: share.append_time_ms,
                ..OpenShare::new(share.partition, offset)
            };
            share.last_offset = offset - 1;
            self.in_group.push(share);
            rest
        });
        self.share = rest;
        self.close_group()
    }

    fn close_group(&mut self) -> Result<(), HistoryError> {
        let (mut bytes, mut raw, mut rows) = (0, 0, 0);
        if let Some(group) = self.group.take() {
            (raw, rows) = (group.raw(), group.rows());
            bytes = group.close(&mut self.file).map_err(failed)?;
        }
        let mut first_row = self.rows;
        for share in std::mem::take(&mut self.in_group) {
            // At least 1, or the share would seem to hold nothing that one could read.
            let len = (u128::from(bytes) * u128::from(share.raw) / u128::from(raw.max(1))).max(1);
            self.shares.push(Share {
                partition: share.partition,
                base_offset: share.base_offset,
                last_offset: share.last_offset,
                first_row,
                len: u32::try_from(len).unwrap_or(u32::MAX),
                max_timestamp: share.max_timestamp,
                append_time_ms: share.append_time_ms,
            });
            self.remember(&share, first_row);
            first_row += share.rows;
        }
        self.rows = self
            .rows
            .checked_add(rows)
            .ok_or_else(|| failed("a file holds fewer rows"))?;
        Ok(())
    }

    /// Enters a share and its portions into the seek table.
    fn remember(&mut self, share: &OpenShare, first_row: u32) {
        let from = self.table.portions.len();
        for (n, (row, raw, base_offset)) in share.portions.iter().enumerate() {
            let end = (share.rows, share.raw, share.last_offset + 1);
            let (end_row, end_raw, end_offset) = share.portions.get(n + 1).copied().unwrap_or(end);
            self.table.portions.push(Portion {
                first_row: first_row + row,
                rows: end_row - row,
                base_offset: *base_offset,
                last_offset: end_offset - 1,
                raw: end_raw - raw,
            });
        }
        self.table.shares.push(FileShare {
            partition: share.partition,
            base_offset: share.base_offset,
            last_offset: share.last_offset,
            first_row,
            rows: share.rows,
            portions: from..self.table.portions.len(),
        });
    }
}

/// A batch that can be added.
struct Checked {
    header: BatchHeader,
    /// None for a control batch.
    records: Option<BatchRecords>,
}

impl HistoryWriter for ParquetWriter {
    fn add(
        &mut self,
        partition: i32,
        append_time_ms: i64,
        batch: &Bytes,
    ) -> Result<Result<(), BatchError>, HistoryError> {
        if partition < 0
            || self
                .share
                .as_ref()
                .is_some_and(|share| share.partition > partition)
        {
            return Err(failed(format!("partition {partition} comes out of order")));
        }
        match self.check(partition, batch) {
            Ok(checked) => self.add_checked(partition, append_time_ms, &checked).map(Ok),
            Err(bad) => Ok(Err(bad)),
        }
    }

    fn is_empty(&self) -> bool {
        self.share.is_none()
    }

    fn take(&mut self) -> Bytes {
        // Into memory: it cannot fail, and if it did, the bytes would come with the next ones.
        let _ = self.file.flush();
        Bytes::from(std::mem::take(self.file.inner_mut()))
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedFile, HistoryError> {
        self.in_group.extend(self.share.take());
        self.close_group()?;
        let data = self.take();
        self.file.finish().map_err(failed)?;
        let tail = seal(&self.take(), &self.table).map_err(failed)?;
        Ok(FinishedFile {
            rest: Bytes::from([&data[..], &tail[..]].concat()),
            shares: self.shares,
            rows: u64::from(self.rows),
        })
    }
}
