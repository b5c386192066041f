//! What archiving and replaying cost.
//!
//! `cargo bench --workspace --bench archive`

#![allow(missing_docs)] // criterion's macro makes a public function.

use std::sync::Arc;
use std::time::Duration;

use alluvium_archive::{ParquetHistory, ParquetOptions};
use alluvium_log::BatchHeader;
use alluvium_log::batch::BatchBuilder;
use alluvium_log::codec::Codec;
use alluvium_log::history::{FinishedFile, History, HistoryTopic};
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt};
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Batches of one partition with values of `bytes` that look like JSON, and how many bytes they are uncompressed.
fn batches(count: i64, records: i64, bytes: usize, codec: Codec) -> (Vec<Bytes>, u64) {
    let mut random = SmallRng::seed_from_u64(1);
    let mut raw = 0;
    let made = (0..count).map(|n| {
        let mut builder = BatchBuilder::new();
        for m in 0..records {
            let mut value = String::new();
            while value.len() < bytes {
                let (id, price) = (random.random::<u32>(), random.random_range(0..100_000));
                value.push_str(&format!(
                    "{{\"order\":{id},\"cents\":{price},\"state\":\"paid\"}},"
                ));
            }
            value.truncate(bytes);
            let key = format!("customer-{}", random.random_range(0..50_000));
            let time = 1_700_000_000_000 + n * 100 + m;
            builder.push(time, Some(key.as_bytes()), Some(value.as_bytes()), &[]);
        }
        raw += builder.size() as u64;
        let batch = builder.build_with(codec).expect("records compress");
        let mut bytes = batch.patched_header(n * records, 1).to_vec();
        bytes.extend_from_slice(&batch.body());
        Bytes::from(bytes)
    });
    (made.collect(), raw)
}

fn history() -> ParquetHistory {
    ParquetHistory::new(ParquetOptions::default(), &mut Registry::default()).expect("it starts its threads")
}

fn write(batches: &[Bytes]) -> (Bytes, FinishedFile) {
    let topic = HistoryTopic {
        cluster: Uuid::nil(),
        id: Uuid::nil(),
        name: "orders".to_owned(),
        text_values: false,
    };
    let mut writer = history().begin(&topic).expect("a file begins");
    let mut file = vec![];
    for batch in batches {
        let added = writer.add(0, 1_700_000_000_000, batch);
        added.expect("a file is written").expect("a batch is good");
        file.extend_from_slice(&writer.take());
    }
    let finished = writer.finish().expect("a file is finished");
    file.extend_from_slice(&finished.rest);
    (Bytes::from(file), finished)
}

fn archive(c: &mut Criterion) {
    let mut group = c.benchmark_group("write a file");
    group.sample_size(10);
    for (bytes, codec) in [(1024, Codec::None), (1024, Codec::Lz4), (100, Codec::None)] {
        let (batches, raw) = batches(64, (1 << 20) / bytes as i64, bytes, codec);
        group.throughput(Throughput::Bytes(raw));
        group.bench_function(format!("values of {bytes} bytes, {codec:?}"), |b| {
            b.iter(|| write(&batches).0.len());
        });
    }
    group.finish();
}

fn store(client: Arc<dyn ObjectStore>) -> Store {
    Store::from_parts(
        Arc::clone(&client),
        client,
        Path::default(),
        "bench".to_owned(),
        StoreKind::Memory,
        StoreOptions::default(),
    )
}

/// Everything, by someone who has no cache yet.
async fn replay(store: &Store, key: &Path, file: &FinishedFile) -> usize {
    let history = history();
    let mut bytes = 0;
    for share in &file.shares {
        let mut next = share.base_offset;
        while next <= share.last_offset {
            let read = history.read(store, key, share, next, 1 << 20).await;
            let read = read.expect("history is read");
            for batch in read {
                let header = BatchHeader::parse(&batch).expect("a batch");
                next = header.last_offset() + 1;
                bytes += batch.len();
            }
        }
    }
    bytes
}

fn replays(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let directory = tempfile::tempdir().expect("a directory");
    let key = Path::from("archive/topic=orders-1/1-1.parquet");
    let slow = ThrottledStore::new(
        InMemory::new(),
        ThrottleConfig {
            wait_get_per_call: Duration::from_millis(15),
            ..ThrottleConfig::default()
        },
    );
    let url = directory.path().display().to_string();
    let embedded = runtime
        .block_on(Store::open(&url, StoreOptions::default()))
        .expect("a directory opens");
    let stores = [("a directory", embedded), ("15 ms a GET", store(Arc::new(slow)))];
    let mut group = c.benchmark_group("replay");
    group.sample_size(10);
    for bytes in [1024, 100] {
        let (batches, raw) = batches(256, (1 << 20) / bytes as i64, bytes, Codec::None);
        let (file, finished) = write(&batches);
        group.throughput(Throughput::Bytes(raw));
        for (name, store) in &stores {
            runtime
                .block_on(store.bulk.put(&key, file.clone().into()))
                .expect("a file is put");
            group.bench_function(format!("values of {bytes} bytes from {name}"), |b| {
                b.iter(|| runtime.block_on(replay(store, &key, &finished)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, archive, replays);
criterion_main!(benches);
