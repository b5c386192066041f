//! What a produced and a fetched batch cost in the engine, without disk and network.
//!
//! `cargo bench --workspace --bench engine`

#![allow(missing_docs)] // criterion's macro makes a public function.

use std::hint::black_box;
use std::sync::Arc;

use alluvium_log::batch::{BatchBuilder, ChunkCursor};
use alluvium_log::entry::{BatchRange, Entry};
use alluvium_log::format::segment::{SegmentHead, SegmentHeader, SegmentIndex, decode_index, encode_tail};
use alluvium_log::format::{IndexOrMore, ObjectKind, index_of};
use alluvium_log::manifest::Change;
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::stream::batch_entry;
use alluvium_log::{Isolation, Log, LogOptions, Partition, RecordBatch, SystemClock, TopicPartition};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Records of 1 KiB that make a batch of about `bytes`.
fn batch(bytes: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    for n in 0..(bytes / 1024).max(1) {
        builder.push(1_700_000_000_000 + n as i64, None, Some(&[7; 1000]), &[]);
    }
    builder.build()
}

fn validation(c: &mut Criterion) {
    let mut group = c.benchmark_group("validate a produced batch");
    for bytes in [1 << 10, 16 << 10, 1 << 20] {
        let batch = batch(bytes).bytes().clone();
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function(format!("{} KiB", bytes >> 10), |b| {
            b.iter(|| RecordBatch::parse_produced(black_box(batch.clone())).map(|b| b.len()));
        });
    }
    group.finish();
}

/// The index of a segment that holds a batch of 1 KiB for each of so many partitions.
fn index(partitions: i32) -> SegmentIndex {
    let batch = batch(1024);
    let entries = (0..partitions).map(|partition| {
        Entry::Batches(BatchRange {
            partition: TopicPartition {
                topic: Uuid::from_u128(7),
                partition,
            },
            leader_epoch: 3,
            position: 256 + partition as u64 * batch.len() as u64,
            append_time_ms: 1_700_000_000_000,
            batches: vec![batch_entry(batch.header(), 1_000_000)],
        })
    });
    SegmentIndex {
        header: SegmentHeader {
            incarnation: 5,
            seq: 9,
            nonce: Uuid::from_u128(1),
            manifest_version: 4,
            checkpoint_next: Some(2),
            committed_next: 8,
            written_ms: 1_700_000_000_000,
            seal: None,
        },
        entries: entries.collect(),
    }
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment index");
    for partitions in [1, 1000] {
        let index = index(partitions);
        let head = SegmentHead::new(&index.header, Uuid::from_u128(2), 0);
        group.throughput(Throughput::Elements(partitions as u64));
        group.bench_function(format!("encode, {partitions} ranges"), |b| {
            b.iter(|| encode_tail(black_box(&index), head.data_start()).len());
        });
        let tail = encode_tail(&index, head.data_start());
        group.bench_function(format!("decode, {partitions} ranges"), |b| {
            b.iter(|| match index_of(black_box(&tail), ObjectKind::Segment) {
                Ok(IndexOrMore::Index(index)) => decode_index(index).map(|i| i.entries.len()).ok(),
                _ => None,
            });
        });
    }
    group.finish();
}

fn open(runtime: &Runtime) -> (Log, Vec<Arc<Partition>>) {
    runtime.block_on(async {
        let store = Store::open("memory://", StoreOptions::default()).await;
        let options = LogOptions::for_store(StoreKind::Memory);
        let mut registry = Registry::default();
        let log = Log::open(
            store.expect("a store in memory opens"),
            options,
            Arc::new(SystemClock),
            &mut registry,
        );
        let log = log.await.expect("an empty log opens");
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: 100,
            replication_factor: 1,
            configs: Default::default(),
        };
        let made = log.change(vec![create]).await.remove(0);
        let id = made.expect("a topic is created").topics["t"].id;
        let partitions = (0..100).filter_map(|n| log.partition(&id, n)).collect();
        (log, partitions)
    })
}

fn append(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let (log, partitions) = open(&runtime);
    let mut group = c.benchmark_group("append until published");
    group.sample_size(20);
    for (count, bytes) in [(100, 1 << 10), (64, 16 << 10)] {
        let batches = vec![batch(bytes); count];
        let total: usize = batches.iter().map(RecordBatch::len).sum();
        group.throughput(Throughput::Bytes(total as u64));
        group.bench_function(format!("{count} batches of {} KiB", bytes >> 10), |b| {
            b.iter_batched(
                || batches.clone(),
                |batches| {
                    runtime.block_on(async {
                        let mut pending = Vec::with_capacity(batches.len());
                        for (batch, partition) in batches.into_iter().zip(partitions.iter().cycle()) {
                            pending.push(log.append(partition, batch, false).expect("an append is taken"));
                        }
                        for append in pending {
                            append.published().await.expect("memory does not fail");
                        }
                    });
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn fetch(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let (log, partitions) = open(&runtime);
    let partition = &partitions[0];
    runtime.block_on(async {
        for _ in 0..64 {
            let append = log.append(partition, batch(64 << 10), false);
            let _ = append.expect("an append is taken").published().await;
        }
    });
    let mut group = c.benchmark_group("fetch from the tail");
    for bytes in [16 << 10, 1 << 20] {
        let read = || log.read(partition, 0, bytes, Isolation::ReadUncommitted);
        let got = runtime.block_on(read()).expect("the tail is read");
        group.throughput(Throughput::Bytes(got.bytes as u64));
        group.bench_function(format!("{} KiB", bytes >> 10), |b| {
            b.iter(|| runtime.block_on(read()).map(|r| r.bytes));
        });
        group.bench_function(format!("walk the headers of {} KiB", bytes >> 10), |b| {
            b.iter(|| {
                let mut cursor = ChunkCursor::new(black_box(&got.chunks));
                std::iter::from_fn(|| cursor.next_batch()).flatten().count()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, validation, segments, append, fetch);
criterion_main!(benches);
