//! `alluvium bench consume`, and the readers of the other loads.

mod answer;
mod reader;
mod session;

pub(in crate::cli) use answer::Batches;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alluvium_log::RecordBatch;
use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;
use tokio::task::JoinSet;

use super::RunArgs;
use super::meter::{Meter, round};
use crate::cli::client::{ClientError, OffsetOf, ensure_topic, list_offsets};
pub(super) use reader::{Arrived, Goal, ReadPlan, Reader, Sink};
pub(super) use session::FetchLimits;

/// Records of one batch, decompressed, are at most this large.
const RECORDS_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What to consume.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct ConsumeArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Consumers, each with its own connections and a share of the partitions; where there are more than partitions,
    /// several read the same one, as groups do
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    consumers: u32,
    /// Read this partition alone; may be repeated [default: all of them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=99_999))]
    only_partition: Vec<u32>,
    /// Where to begin; the end needs --records or --seconds
    #[arg(long, value_enum, default_value_t = From::Beginning)]
    from: From,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Check every CRC and every record, and that offsets have no gaps; costs CPU
    #[arg(long)]
    verify: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Beginning,
    End,
}

/// As Kafka's consumers have them.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FetchArgs {
    /// Bytes of one answer, as fetch.max.bytes
    #[arg(long, value_name = "BYTES", default_value_t = 52_428_800, value_parser = clap::value_parser!(u32).range(1..=1_073_741_824))]
    fetch_max_bytes: u32,
    /// Bytes of one partition in an answer, as max.partition.fetch.bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1_048_576, value_parser = clap::value_parser!(u32).range(1..=1_073_741_824))]
    max_partition_fetch_bytes: u32,
    /// Bytes for which an answer waits, as fetch.min.bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=1_073_741_824))]
    fetch_min_bytes: u32,
    /// Milliseconds for which it waits, as fetch.max.wait.ms
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(..=600_000))]
    fetch_wait_ms: u64,
}

impl FetchArgs {
    pub(super) fn limits(&self) -> FetchLimits {
        FetchLimits {
            max_bytes: self.fetch_max_bytes,
            partition_max_bytes: self.max_partition_fetch_bytes,
            min_bytes: self.fetch_min_bytes,
            wait: Duration::from_millis(self.fetch_wait_ms),
        }
    }
}

/// `bytes` are those of the batches without their headers; `wire_bytes` all of the answers.
#[derive(Debug, Serialize)]
struct ConsumeReport {
    kind: &'static str,
    topic: String,
    partitions: usize,
    consumers: u32,
    records: u64,
    bytes: u64,
    wire_bytes: u64,
    seconds: f64,
    mb_per_second: f64,
    records_per_second: f64,
    fetches: u64,
    first_byte_ms: Option<f64>,
    errors: u64,
    generator_cpu_seconds: Option<f64>,
}

pub(super) async fn run(args: ConsumeArgs) -> Result<(), String> {
    let run = &args.run;
    let bounded = run.records.is_some() || run.seconds.is_some();
    if args.from == From::End && !bounded {
        return Err("--from end needs --records or --seconds to know when to stop".to_owned());
    }
    let said = |e: ClientError| e.to_string();
    let bootstrap = run.bootstrap();
    let cluster = ensure_topic(&bootstrap, &run.topic_plan(false), run.patience)
        .await
        .map_err(said)?;
    let partitions = chosen(&args.only_partition, cluster.leaders.len())?;
    let end = list_offsets(&cluster, &run.topic, OffsetOf::End)
        .await
        .map_err(said)?;
    let begin = match args.from {
        From::Beginning => list_offsets(&cluster, &run.topic, OffsetOf::Start)
            .await
            .map_err(said)?,
        From::End => end.clone(),
    };
    let plan = Arc::new(ReadPlan {
        bootstrap,
        topic: run.topic.clone(),
        limits: args.fetch.limits(),
        patience: run.patience,
        ends: (!bounded).then_some(end),
    });
    let start = Instant::now();
    let meter = Meter::new(start + run.warmup, 0)?;
    let until = run.seconds.map(|seconds| meter.measured_from + seconds);
    let goal = Goal::new(run.stop(), until, run.records);
    let watch = tokio::spawn(meter.clone().watch());
    let first_byte = Arc::new(AtomicU64::new(u64::MAX));
    let mut readers = JoinSet::new();
    for consumer in 0..args.consumers as usize {
        let sink = Counter {
            meter: meter.clone(),
            verify: args.verify,
            start,
            first_byte: first_byte.clone(),
        };
        let share = partitions_of(consumer, args.consumers as usize, partitions.len());
        let positions: Vec<_> = share
            .map(|place| partitions[place])
            .map(|partition| (partition as i32, begin[partition]))
            .collect();
        let reader = Reader::new(plan.clone(), goal.clone(), meter.clone(), sink, positions);
        let cluster = cluster.clone();
        readers.spawn(async move { reader.run(cluster).await });
    }
    while let Some(done) = readers.join_next().await {
        done.map_err(|e| format!("a consumer ended: {e}"))?
            .map_err(said)?;
    }
    watch.abort();
    let counts = meter.counts();
    let first_byte = first_byte.load(Ordering::Relaxed);
    run.report(&ConsumeReport {
        kind: "consume",
        topic: run.topic.clone(),
        partitions: partitions.len(),
        consumers: args.consumers,
        records: counts.records,
        bytes: counts.bytes,
        wire_bytes: counts.wire_bytes,
        seconds: counts.seconds,
        mb_per_second: counts.mb_per_second,
        records_per_second: counts.records_per_second,
        fetches: counts.fetches,
        first_byte_ms: (first_byte != u64::MAX).then(|| round(first_byte as f64 / 1e6, 1e3)),
        errors: counts.errors,
        generator_cpu_seconds: meter.cpu_seconds(),
    })
}

/// The partitions that are read, of those that there are.
fn chosen(only: &[u32], partitions: usize) -> Result<Vec<usize>, String> {
    if only.is_empty() {
        return Ok((0..partitions).collect());
    }
    let only: BTreeSet<usize> = only.iter().map(|partition| *partition as usize).collect();
    match only.last() {
        Some(last) if *last >= partitions => Err(format!(
            "there is no partition {last}: the topic has {partitions}, counted from 0"
        )),
        _ => Ok(only.into_iter().collect()),
    }
}

/// Places among the partitions that a consumer reads: dealt in turns, or one each if there are not enough.
fn partitions_of(consumer: usize, consumers: usize, partitions: usize) -> impl Iterator<Item = usize> {
    let only = consumer % partitions.max(1);
    (0..partitions).filter(move |partition| {
        if consumers > partitions {
            *partition == only
        } else {
            partition % consumers == consumer
        }
    })
}

/// Counts by headers alone, unless it has to verify.
struct Counter {
    meter: Arc<Meter>,
    verify: bool,
    start: Instant,
    /// Nanoseconds from the start, connecting included, to the first answer with records.
    first_byte: Arc<AtomicU64>,
}

impl Sink for Counter {
    fn batch(&self, batch: Arrived<'_>) -> Result<(), ClientError> {
        if self.verify {
            verify(&batch).map_err(|why| {
                let (partition, offset) = (batch.partition, batch.header.base_offset);
                ClientError::Other(format!("partition {partition}, offset {offset}: {why}"))
            })?;
        }
        let first = batch.first.saturating_duration_since(self.start).as_nanos();
        self.first_byte
            .fetch_min(u64::try_from(first).unwrap_or(u64::MAX), Ordering::Relaxed);
        let bytes = batch.bytes.len() - alluvium_log::batch::HEADER_LEN;
        self.meter.add(batch.whole, batch.records, bytes as u64);
        Ok(())
    }
}

fn verify(batch: &Arrived<'_>) -> Result<(), String> {
    if batch.header.base_offset > batch.position {
        let missing = batch.header.base_offset - batch.position;
        return Err(format!("{missing} offsets before it are missing"));
    }
    let whole = RecordBatch::from_stored(Bytes::copy_from_slice(batch.bytes)).map_err(|e| e.to_string())?;
    let records = whole.records(RECORDS_BYTES_MAX).map_err(|e| e.to_string())?;
    for record in &records {
        record.map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::batch::{BatchBuilder, BatchHeader};

    fn shares(consumers: usize, partitions: usize) -> Vec<Vec<usize>> {
        (0..consumers)
            .map(|consumer| partitions_of(consumer, consumers, partitions).collect())
            .collect()
    }

    #[test]
    fn partitions_are_shared() {
        assert_eq!(shares(2, 5), vec![vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(shares(3, 2), vec![vec![0], vec![1], vec![0]]);
        assert_eq!(shares(1, 0), vec![Vec::<usize>::new()]);
    }

    #[test]
    fn some_partitions_can_be_chosen() {
        assert_eq!(chosen(&[], 3), Ok(vec![0, 1, 2]));
        assert_eq!(chosen(&[2, 0, 2], 3), Ok(vec![0, 2]));
        let error = chosen(&[0, 3], 3).unwrap_err();
        assert!(error.contains("no partition 3"), "{error}");
    }

    #[test]
    fn verification_finds_damage_and_gaps() {
        let mut builder = BatchBuilder::new();
        builder.push(1, None, Some(b"value"), &[]);
        let bytes = builder.build().bytes().to_vec();
        let checked = |bytes: &[u8], position| {
            verify(&Arrived {
                partition: 0,
                header: &BatchHeader::parse(bytes).unwrap(),
                bytes,
                position,
                records: 1,
                first: Instant::now(),
                whole: Instant::now(),
            })
        };
        assert_eq!(checked(&bytes, 0), Ok(()));
        assert_eq!(
            checked(&bytes, -2),
            Err("2 offsets before it are missing".to_owned())
        );
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(checked(&damaged, 0), Err("CRC mismatch".to_owned()));
    }
}
