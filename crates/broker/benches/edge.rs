//! What a request costs at the Kafka edge.
//!
//! `cargo bench --workspace --bench edge`

#![allow(missing_docs)] // criterion's macro makes a public function.

use std::hint::black_box;

use alluvium::benches::{FetchPlan, FrameBench};
use alluvium_log::batch::BatchBuilder;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("read and decode a Produce request");
    for bytes in [1 << 10, 16 << 10, 1 << 20] {
        let mut batch = BatchBuilder::new();
        for n in 0..(bytes / 1024).max(1) {
            batch.push(1_700_000_000_000 + n as i64, None, Some(&[7; 1000]), &[]);
        }
        let bench = FrameBench::produce(batch.build().bytes());
        group.throughput(Throughput::Bytes(bench.bytes() as u64));
        group.bench_function(format!("{} KiB", bytes >> 10), |b| b.iter(|| bench.run()));
    }
    group.finish();
}

fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan a Fetch");
    for partitions in [1, 12, 1000] {
        let bench = FetchPlan::new(partitions);
        group.throughput(Throughput::Elements(partitions as u64));
        group.bench_function(format!("{partitions} partitions"), |b| {
            b.iter(|| black_box(&bench).run());
        });
    }
    group.finish();
}

criterion_group!(benches, frames, plans);
criterion_main!(benches);
