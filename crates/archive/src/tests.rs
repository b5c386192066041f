//! What is written comes back, whoever reads it; what is damaged does not.

mod damage;
mod made;
mod round_trip;
mod seeking;
mod whole_way;

use std::sync::Arc;

use alluvium_log::batch::{BatchRecords, HEADER_LEN, RecordBatch, TimestampType};
use alluvium_log::history::{FinishedFile, History, HistoryTopic, Share};
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{BatchError, Offset};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::{ParquetHistory, ParquetOptions};
use made::Given;

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    offset: Offset,
    timestamp: i64,
    log_append: bool,
    epoch: i32,
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<(Bytes, Option<Bytes>)>,
}

fn topic(text_values: bool) -> HistoryTopic {
    HistoryTopic {
        cluster: Uuid::from_u128(1),
        id: Uuid::from_u128(2),
        name: "orders".to_owned(),
        text_values,
    }
}

/// Small enough that a test has many of everything.
fn small() -> ParquetOptions {
    ParquetOptions {
        row_group_bytes: 16 << 10,
        row_group_raw_bytes: 256 << 10,
        row_group_rows: 3000,
        page_bytes: 2 << 10,
        value_page_bytes: 2 << 10,
        portion_bytes: 8 << 10,
        ..ParquetOptions::default()
    }
}

fn memory() -> Store {
    store(Arc::new(InMemory::new()))
}

fn store(client: Arc<dyn ObjectStore>) -> Store {
    Store::from_parts(
        Arc::clone(&client),
        client,
        Path::default(),
        "memory://".to_owned(),
        StoreKind::Memory,
        StoreOptions::default(),
    )
}

fn history(options: &ParquetOptions) -> ParquetHistory {
    ParquetHistory::new(options.clone(), &mut Registry::default()).unwrap()
}

fn key() -> Path {
    Path::from("archive/topic=orders-1/1-2.parquet")
}

/// Writes a file of batches; what is refused is returned with its place.
fn write(
    options: &ParquetOptions,
    topic: &HistoryTopic,
    batches: &[Given],
) -> (Bytes, FinishedFile, Vec<(usize, BatchError)>) {
    let mut writer = history(options).begin(topic).unwrap();
    let (mut file, mut refused) = (vec![], vec![]);
    for (n, batch) in batches.iter().enumerate() {
        if let Err(bad) = writer
            .add(batch.partition, batch.append_time, &batch.bytes)
            .unwrap()
        {
            refused.push((n, bad));
        }
        file.extend_from_slice(&writer.take());
    }
    let finished = writer.finish().unwrap();
    file.extend_from_slice(&finished.rest);
    assert!(
        finished.shares.iter().all(|s| s.len > 0),
        "a share without bytes seems to hold nothing"
    );
    let len = file.len() as u64;
    let own: u64 = finished.shares.iter().map(|s| u64::from(s.len)).sum();
    assert!(own <= len, "shares of {own} bytes in a file of {len}");
    (Bytes::from(file), finished, refused)
}

async fn put(store: &Store, file: &Bytes) {
    store.bulk.put(&key(), file.clone().into()).await.unwrap();
}

/// The records of stored batches, each verified.
fn seen(batches: &[Bytes]) -> Vec<Seen> {
    let mut out = vec![];
    for bytes in batches {
        let batch = RecordBatch::from_stored(bytes.clone()).unwrap();
        let header = *batch.header();
        let log_append = header.timestamp_type() == TimestampType::LogAppendTime;
        let mut greatest = None;
        for record in alluvium_log::batch::records(bytes, usize::MAX).unwrap() {
            greatest = greatest.max(Some(record.timestamp));
            out.push(Seen {
                offset: record.offset,
                timestamp: record.timestamp,
                log_append,
                epoch: header.leader_epoch,
                key: record.key,
                value: record.value,
                headers: record.headers,
            });
        }
        // What a producer sends may be older than any time, which a header does not say.
        assert!(greatest.is_none_or(|t| t.max(-1) == header.max_timestamp.max(-1)));
    }
    out
}

/// Reads a share from `offset` on, in steps of `max_bytes`, and checks what every read owes.
async fn replay(
    history: &ParquetHistory,
    store: &Store,
    share: &Share,
    offset: Offset,
    max_bytes: usize,
) -> Result<Vec<Seen>, alluvium_log::ReadError> {
    let (mut next, mut before, mut out) = (offset, share.base_offset, vec![]);
    while next <= share.last_offset {
        let batches = history.read(store, &key(), share, next, max_bytes).await?;
        if batches.is_empty() {
            break;
        }
        let mut bytes = 0;
        for (n, batch) in batches.iter().enumerate() {
            let records = BatchRecords::open(batch, usize::MAX).unwrap();
            let header = records.header();
            assert!(header.last_offset() >= next, "nothing before what was asked for");
            assert!(n == 0 || header.base_offset >= next, "no offset twice");
            assert!(header.base_offset >= share.base_offset && header.last_offset() <= share.last_offset);
            let hole = header.base_offset > next;
            assert!(
                !hole || header.base_offset - before > i64::from(i32::MAX),
                "gaps are covered"
            );
            before = header.base_offset;
            assert!(batch.len() <= crate::rebuild::BATCH_BYTES || header.record_count <= 1);
            assert!(header.record_count > 0 || batch.len() == HEADER_LEN);
            bytes += batch.len();
            assert!(n == 0 || bytes <= max_bytes, "more than was asked for");
            next = header.last_offset() + 1;
        }
        out.extend(seen(&batches));
    }
    assert!(next > share.last_offset, "the last batch ends with the share");
    Ok(out)
}
