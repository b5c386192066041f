//! `alluvium bench produce`, and the producers of the other loads.

mod frame;
mod link;
mod outbox;
mod producer;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use tokio::task::JoinSet;

use super::meter::{Gaps, Meter, Percentiles};
use super::payload::{Payload, Pool, RecordPlan};
use super::schedule::{Schedule, Supply, share};
use super::timer::Timer;
use super::{RecordArgs, RunArgs, Stop};
use crate::cli::client::{ClientError, Cluster, ensure_topic, init_producer_id};
use link::{Event, Link};
pub(super) use producer::{Order, ProducerPlan};
use producer::{Producer, ProducerParts};

/// Batches for several partitions share a request up to this size, as with Kafka's `max.request.size`.
pub(super) const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Batches of an idempotent producer that a broker remembers.
pub(super) const IDEMPOTENT_IN_FLIGHT_MAX: usize = 5;
/// Seconds of a load for which nothing else says when it stops.
pub(super) const SECONDS_DEFAULT: Duration = Duration::from_secs(10);

/// What to produce.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct ProduceArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Producers, each with its own connections and producer id
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    producers: u64,
    /// Number the batches so that none is stored twice [default: true, unless --acks or --max-in-flight forbid it]
    #[arg(long, value_name = "BOOL")]
    idempotent: Option<bool>,
    /// Replicas that must have a batch before it is acknowledged
    #[arg(long, value_enum, default_value_t = Acks::All)]
    acks: Acks,
    /// Largest batch in bytes before compression, as Kafka's batch.size; just below Kafka's default limit of 1 MiB
    #[arg(long, value_name = "BYTES", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=268_435_456))]
    batch_size: u32,
    /// Milliseconds for which a batch that is not full waits for more records; has a meaning with --rate only
    #[arg(long, value_name = "MS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    linger_ms: u64,
    /// Requests of a connection, and batches of a partition, that wait for their acknowledgement; at most 5 if
    /// idempotent
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_in_flight: u32,
    /// Records per second of all producers together; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u64,
    /// Send each record as a request of its own when its time has come, as a web service does that waits for every
    /// acknowledgement; no batches, no linger
    #[arg(long)]
    separate_requests: bool,
    /// Also tell the longest time in which a partition acknowledged nothing: the length of a fail-over
    #[arg(long)]
    report_gaps: bool,
}

/// As Kafka's `acks`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acks {
    /// All in-sync replicas
    All,
    /// The leader
    #[value(name = "1")]
    Leader,
    /// None: a batch counts as acknowledged when it is written to the socket
    #[value(name = "0")]
    None,
}

#[derive(Debug, Serialize)]
struct ProduceReport {
    kind: &'static str,
    topic: String,
    partitions: usize,
    producers: u64,
    idempotent: bool,
    records: u64,
    bytes: u64,
    wire_bytes: u64,
    seconds: f64,
    mb_per_second: f64,
    records_per_second: f64,
    errors: u64,
    retries: u64,
    latency_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_gap_ms: Option<Gaps>,
    generator_cpu_seconds: Option<f64>,
}

pub(super) async fn run(args: ProduceArgs) -> Result<(), String> {
    let idempotent = is_idempotent(args.idempotent, args.acks, args.max_in_flight)?;
    let plan = RecordPlan {
        batch_bytes: args.batch_size as usize,
        batch_records_max: if args.separate_requests { 1 } else { usize::MAX },
        ..args.records.plan()
    };
    let bootstrap = args.run.bootstrap();
    let cluster = ensure_topic(&bootstrap, &args.run.topic_plan(true), args.run.patience)
        .await
        .map_err(|e| e.to_string())?;
    let payload = Pool::new(&plan).map_err(|e| format!("cannot compress a batch: {e}"))?;
    let separate = args.separate_requests;
    let load = ProducersPlan {
        each: ProducerPlan {
            bootstrap,
            topic: args.run.topic.clone(),
            acks: match args.acks {
                Acks::All => -1,
                Acks::Leader => 1,
                Acks::None => 0,
            },
            max_in_flight: args.max_in_flight as usize,
            request_bytes_max: if separate { 0 } else { REQUEST_BYTES_MAX },
            patience: args.run.patience,
            order: Order::InTurns,
        },
        producers: args.producers,
        idempotent,
        rate: (args.rate > 0).then_some(args.rate),
        linger: if separate {
            Duration::ZERO
        } else {
            Duration::from_millis(args.linger_ms)
        },
        records: args.run.records,
        seconds: args.run.seconds_or(SECONDS_DEFAULT),
        payload: Arc::new(Payload::Pool(payload)),
    };
    let partitions = cluster.leaders.len();
    let producers = Producers::prepare(load, cluster)
        .await
        .map_err(|e| e.to_string())?;
    let start = Instant::now();
    let meter = Meter::new(
        start + args.run.warmup,
        if args.report_gaps { partitions } else { 0 },
    )?;
    let watch = tokio::spawn(meter.clone().watch());
    let done = producers.run(start, &meter, &args.run.stop()).await;
    watch.abort();
    done.map_err(|e| e.to_string())?;
    let counts = meter.counts();
    args.run.report(&ProduceReport {
        kind: "produce",
        topic: args.run.topic.clone(),
        partitions,
        producers: args.producers,
        idempotent,
        records: counts.records,
        bytes: counts.bytes,
        wire_bytes: counts.wire_bytes,
        seconds: counts.seconds,
        mb_per_second: counts.mb_per_second,
        records_per_second: counts.records_per_second,
        errors: counts.errors,
        retries: counts.retries,
        latency_ms: meter.latencies.percentiles(),
        longest_gap_ms: meter.gaps(),
        generator_cpu_seconds: meter.cpu_seconds(),
    })
}

/// Like Kafka's producer: what contradicts idempotence turns it off, unless it was asked for.
fn is_idempotent(asked: Option<bool>, acks: Acks, max_in_flight: u32) -> Result<bool, String> {
    let possible = acks == Acks::All && max_in_flight as usize <= IDEMPOTENT_IN_FLIGHT_MAX;
    if asked == Some(true) && !possible {
        return Err(format!(
            "--idempotent true needs --acks all and --max-in-flight {IDEMPOTENT_IN_FLIGHT_MAX} or less"
        ));
    }
    Ok(asked.unwrap_or(possible))
}

/// A number of producers with one goal.
#[derive(Clone, Debug)]
pub(super) struct ProducersPlan {
    /// What they have in common.
    pub(super) each: ProducerPlan,
    /// How many there are.
    pub(super) producers: u64,
    /// Whether each gets a producer id.
    pub(super) idempotent: bool,
    /// Records per second of all of them; `None` is as fast as possible.
    pub(super) rate: Option<u64>,
    /// How long a batch that is not full waits.
    pub(super) linger: Duration,
    /// Records of all of them, the warm-up included.
    pub(super) records: Option<u64>,
    /// How long they go on after the warm-up.
    pub(super) seconds: Option<Duration>,
    /// What they send.
    pub(super) payload: Arc<Payload>,
}

/// Producers that are connected and can start at any time.
pub(super) struct Producers {
    plan: ProducersPlan,
    cluster: Cluster,
    timer: Timer,
    prepared: Vec<(BTreeMap<i32, Link>, (i64, i16))>,
}

impl Producers {
    /// Connects all of them, and gets their ids.
    pub(super) async fn prepare(plan: ProducersPlan, cluster: Cluster) -> Result<Producers, ClientError> {
        let timer = Timer::start().map_err(|e| ClientError::Other(format!("cannot start a thread: {e}")))?;
        let mut prepared = Vec::new();
        for _ in 0..plan.producers {
            let identity = if plan.idempotent {
                init_producer_id(&plan.each.bootstrap, plan.each.patience).await?
            } else {
                (-1, -1)
            };
            prepared.push((connect(&cluster).await?, identity));
        }
        Ok(Producers {
            plan,
            cluster,
            timer,
            prepared,
        })
    }

    /// When the producer with this index sends what; `None` as fast as possible.
    pub(super) fn schedule(plan: &ProducersPlan, start: Instant, index: u64) -> Option<Schedule> {
        let rate = plan.rate?;
        Some(Schedule::new(start, rate, plan.producers, index))
    }

    /// Produces from `start` on; returns how many records were acknowledged, the warm-up included.
    pub(super) async fn run(
        self,
        start: Instant,
        meter: &Arc<Meter>,
        stop: &Stop,
    ) -> Result<u64, ClientError> {
        let each = Arc::new(self.plan.each.clone());
        let ends = self
            .plan
            .seconds
            .and_then(|seconds| meter.measured_from.checked_add(seconds));
        let mut tasks = JoinSet::new();
        for (index, (links, identity)) in (0..).zip(self.prepared) {
            let records = self.plan.records;
            let records = records.map_or(u64::MAX, |all| share(all, self.plan.producers, index));
            let payload = self.plan.payload.clone();
            let supply = Supply::new(
                Producers::schedule(&self.plan, start, index),
                self.plan.linger,
                payload.batch_records(),
                records,
                ends,
            );
            let producer = Producer::new(ProducerParts {
                plan: each.clone(),
                payload,
                identity,
                supply,
                meter: meter.clone(),
                stop: stop.clone(),
                alarm: self.timer.alarm(),
                cluster: self.cluster.clone(),
                links,
                index,
            });
            tasks.spawn(producer.run());
        }
        let mut records = 0;
        while let Some(done) = tasks.join_next().await {
            records += done.map_err(|e| ClientError::Other(format!("a producer ended: {e}")))??;
        }
        Ok(records)
    }
}

/// A link to every leader, connected.
async fn connect(cluster: &Cluster) -> Result<BTreeMap<i32, Link>, ClientError> {
    let now = Instant::now();
    let mut links = BTreeMap::new();
    for partition in 0..cluster.leaders.len() {
        if let Some((node, address)) = cluster.leader(partition) {
            links
                .entry(node)
                .or_insert_with(|| Link::new(address.clone(), now));
        }
    }
    for link in links.values_mut() {
        let mut events = Vec::new();
        poll_fn(|cx| {
            link.poll(cx, Instant::now(), &mut events);
            if events.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        for event in events {
            if let Event::Lost { error, .. } = event {
                return Err(error);
            }
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotence_gives_way_unless_asked_for() {
        assert_eq!(is_idempotent(None, Acks::All, 5), Ok(true));
        assert_eq!(is_idempotent(None, Acks::All, 6), Ok(false));
        assert_eq!(is_idempotent(None, Acks::Leader, 5), Ok(false));
        assert_eq!(is_idempotent(Some(false), Acks::All, 5), Ok(false));
        assert!(is_idempotent(Some(true), Acks::None, 5).is_err());
        assert!(is_idempotent(Some(true), Acks::All, 6).is_err());
    }
}
