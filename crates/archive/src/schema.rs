//! The columns of a file, and how each is written.

use std::sync::Arc;

use alluvium_log::history::HistoryTopic;
use parquet::basic::{Compression, Encoding, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use parquet::errors::Result;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

use crate::ParquetOptions;

/// Version of the layout that [the crate's page](crate) describes, in the file's metadata and in its trailer.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Rows of a page at most, so that a seek decodes little of the columns that compress to nothing.
const PAGE_ROWS: usize = 16 * 1024;
/// What producers use by default. Of pages of 256 KiB of JSON it makes 7 % less than level 1 of 64 KiB, as fast.
const ZSTD_LEVEL: i32 = 3;
/// Rows that are handed to the encoders at once at most. Pages end only between such runs.
pub(crate) const RUN_ROWS: usize = 1024;
/// Bytes of the least and greatest key that are kept of a page and of a row group.
const BOUND_BYTES: usize = 32;

/// The leaf columns, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Partition,
    Offset,
    Timestamp,
    AppendTime,
    LeaderEpoch,
    Key,
    HeaderKey,
    HeaderValue,
    Value,
    LogAppendTime,
}

impl Column {
    pub(crate) const ALL: [Column; 10] = [
        Column::Partition,
        Column::Offset,
        Column::Timestamp,
        Column::AppendTime,
        Column::LeaderEpoch,
        Column::Key,
        Column::HeaderKey,
        Column::HeaderValue,
        Column::Value,
        Column::LogAppendTime,
    ];

    /// How its values are encoded, in every page.
    pub(crate) fn encoding(self) -> Encoding {
        match self {
            Column::Partition
            | Column::Offset
            | Column::Timestamp
            | Column::AppendTime
            | Column::LeaderEpoch => Encoding::DELTA_BINARY_PACKED,
            Column::Key | Column::HeaderKey | Column::HeaderValue | Column::Value => {
                Encoding::DELTA_LENGTH_BYTE_ARRAY
            }
            Column::LogAppendTime => Encoding::PLAIN,
        }
    }

    /// The greatest repetition level and the greatest definition level.
    pub(crate) fn levels(self) -> (u8, u8) {
        match self {
            Column::Partition
            | Column::Offset
            | Column::AppendTime
            | Column::LeaderEpoch
            | Column::LogAppendTime => (0, 0),
            Column::Timestamp | Column::Key | Column::Value => (0, 1),
            Column::HeaderKey => (1, 1),
            Column::HeaderValue => (1, 2),
        }
    }

    /// Bounds of each page where a search can use them. A value has none: nobody looks for one, and it may be huge.
    fn statistics(self) -> EnabledStatistics {
        match self {
            Column::HeaderValue | Column::Value => EnabledStatistics::None,
            _ => EnabledStatistics::Page,
        }
    }
}

/// The schema of a topic's files.
pub(crate) fn schema(text_values: bool) -> Result<TypePtr> {
    let int = |name, physical, id| leaf(name, physical, Repetition::REQUIRED, None, id);
    let time = |name, repetition, id| {
        let utc = LogicalType::Timestamp {
            is_adjusted_to_u_t_c: true,
            unit: TimeUnit::MICROS,
        };
        leaf(name, Physical::INT64, repetition, Some(utc), id)
    };
    let bytes = |name, text: bool, repetition, id| {
        leaf(
            name,
            Physical::BYTE_ARRAY,
            repetition,
            text.then_some(LogicalType::String),
            id,
        )
    };
    let header = Type::group_type_builder("element")
        .with_repetition(Repetition::REQUIRED)
        .with_id(Some(10))
        .with_fields(vec![
            bytes("key", true, Repetition::REQUIRED, 11)?,
            bytes("value", false, Repetition::OPTIONAL, 12)?,
        ])
        .build()?;
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(header)])
        .build()?;
    let headers = Type::group_type_builder("headers")
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_id(Some(7))
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let root = Type::group_type_builder("record")
        .with_fields(vec![
            int("partition", Physical::INT32, 1)?,
            int("offset", Physical::INT64, 2)?,
            time("timestamp", Repetition::OPTIONAL, 3)?,
            time("append_time", Repetition::REQUIRED, 4)?,
            int("leader_epoch", Physical::INT32, 5)?,
            bytes("key", false, Repetition::OPTIONAL, 6)?,
            Arc::new(headers),
            bytes("value", text_values, Repetition::OPTIONAL, 8)?,
            int("log_append_time", Physical::BOOLEAN, 9)?,
        ])
        .build()?;
    Ok(Arc::new(root))
}

fn leaf(
    name: &str,
    physical: Physical,
    repetition: Repetition,
    logical: Option<LogicalType>,
    id: i32,
) -> Result<TypePtr> {
    let leaf = Type::primitive_type_builder(name, physical)
        .with_repetition(repetition)
        .with_logical_type(logical)
        .with_id(Some(id))
        .build()?;
    Ok(Arc::new(leaf))
}

/// How a file of the topic is written. Pages are of version 1, which every reader knows, and whose checksum covers the
/// levels too.
pub(crate) fn properties(
    schema: &SchemaDescriptor,
    topic: &HistoryTopic,
    options: &ParquetOptions,
) -> Result<WriterProperties> {
    let about = |key: &str, value: String| KeyValue::new(format!("alluvium.{key}"), value);
    let ascending = |column_idx| SortingColumn {
        column_idx,
        descending: false,
        nulls_first: false,
    };
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(concat!("alluvium version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(options.page_bytes)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(RUN_ROWS)
        .set_column_index_truncate_length(Some(BOUND_BYTES))
        .set_statistics_truncate_length(Some(BOUND_BYTES))
        .set_sorting_columns(Some(vec![ascending(0), ascending(1)]))
        .set_key_value_metadata(Some(vec![
            about("format", FORMAT_VERSION.to_string()),
            about("cluster", topic.cluster.to_string()),
            about("topic.id", topic.id.to_string()),
            about("topic.name", topic.name.clone()),
        ]));
    for (column, descriptor) in Column::ALL.into_iter().zip(schema.columns()) {
        if column == Column::Value {
            let limit = options.value_page_bytes;
            properties = properties.set_column_data_page_size_limit(descriptor.path().clone(), limit);
        }
        properties = properties
            .set_column_encoding(descriptor.path().clone(), column.encoding())
            .set_column_statistics_enabled(descriptor.path().clone(), column.statistics());
    }
    Ok(properties.build())
}
