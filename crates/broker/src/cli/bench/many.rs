//! `alluvium bench many`: idle connections, consumers that wait on one partition, one fetch session over many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::task::JoinSet;

use super::consume::{FetchArgs, Goal, ReadPlan, Reader};
use super::e2e::{Arrivals, check_size, reader_error, trickle};
use super::meter::{Latencies, Meter, Percentiles, round};
use super::produce::{Order, Producers, SECONDS_DEFAULT};
use super::{RecordArgs, RunArgs, Stop};
use crate::cli::client::{Client, ClientError, Cluster, OffsetOf, TopicPlan, ensure_topic, list_offsets};

/// Connections that are being made at the same time.
const CONNECTING_MAX: usize = 64;
/// Time for all readers to get their first fetch to the broker; thousands need a while to connect.
const HEAD_START: Duration = Duration::from_millis(500);
/// More of it for each reader.
const HEAD_START_EACH: Duration = Duration::from_millis(1);
/// Records that are acknowledged but not read after this time count as lost.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(10);

/// Who there is. At least one of --connections, --waiters and --session-partitions is needed.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct ManyArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Connections that do nothing after ApiVersions
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    connections: u32,
    /// Consumers that long-poll partition 0 of the topic, each over its own connection; every record wakes all
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    waiters: u32,
    /// Partitions of the topic TOPIC-session that one consumer reads in one fetch session; records go all over them
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    session_partitions: u32,
    /// Records per second that wake the waiters, and as many for the session
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    #[command(flatten)]
    fetch: FetchArgs,
}

#[derive(Debug, Serialize)]
struct ManyReport {
    kind: &'static str,
    connections: u32,
    connect_seconds: f64,
    /// Idle connections that the broker closed during the run.
    connections_lost: u64,
    seconds: f64,
    waiters: u32,
    session_partitions: u32,
    /// Times that a waiter or the session got a record.
    wakes: u64,
    lost: u64,
    errors: u64,
    /// From the intended time of a record to each waiter that has it.
    wake_latency_ms: Option<Percentiles>,
    /// From the intended time of a record to the session's consumer that has it.
    latency_ms: Option<Percentiles>,
    produce_latency_ms: Option<Percentiles>,
    generator_cpu_seconds: Option<f64>,
}

pub(super) async fn run(args: ManyArgs) -> Result<(), String> {
    check_size(&args.records)?;
    let run = &args.run;
    if args.connections == 0 && args.waiters == 0 && args.session_partitions == 0 {
        return Err("name at least one of --connections, --waiters and --session-partitions".to_owned());
    }
    let said = |e: ClientError| e.to_string();
    let began = Instant::now();
    let bootstrap = run.bootstrap();
    let idle = connect_idle(&bootstrap, args.connections).await.map_err(said)?;
    let connect_seconds = began.elapsed().as_secs_f64();

    let mut waiting = None;
    let mut session = None;
    if args.waiters > 0 {
        let plan = run.topic_plan(true);
        waiting = Some(Crowd::gather(&args, plan, args.waiters, Order::InTurns, 1).await?);
    }
    if args.session_partitions > 0 {
        let plan = TopicPlan {
            name: format!("{}-session", run.topic),
            partitions: Some(args.session_partitions as i32),
            ..run.topic_plan(true)
        };
        let partitions = args.session_partitions as usize;
        session = Some(Crowd::gather(&args, plan, 1, Order::Scattered, partitions).await?);
    }
    let readers = args.waiters + u32::from(session.is_some());
    let start = Instant::now() + HEAD_START + HEAD_START_EACH * readers;
    let meter = Meter::new(start + run.warmup, 0)?;
    let watch = tokio::spawn(meter.clone().watch());
    let stop = run.stop();
    let total = run.seconds_or(SECONDS_DEFAULT);
    let idle_until = meter.measured_from + total.unwrap_or_default();
    let (woken, read) = tokio::try_join!(
        Crowd::run(waiting, start, &meter, &stop),
        Crowd::run(session, start, &meter, &stop)
    )?;
    if readers == 0 {
        while Instant::now() < idle_until && !stop.is_set() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    watch.abort();
    let lost = idle.iter().filter(|client| !client.is_open()).count() as u64;
    let counts = meter.counts();
    run.report(&ManyReport {
        kind: "many",
        connections: args.connections,
        connect_seconds: round(connect_seconds, 1e6),
        connections_lost: lost,
        seconds: round(
            Instant::now()
                .saturating_duration_since(meter.measured_from)
                .as_secs_f64(),
            1e6,
        ),
        waiters: args.waiters,
        session_partitions: args.session_partitions,
        wakes: woken.wakes + read.wakes,
        lost: woken.lost + read.lost,
        errors: counts.errors + woken.errors + read.errors,
        wake_latency_ms: woken.latency_ms,
        latency_ms: read.latency_ms,
        produce_latency_ms: meter.latencies.percentiles(),
        generator_cpu_seconds: meter.cpu_seconds(),
    })
}

async fn connect_idle(bootstrap: &[Arc<str>], count: u32) -> Result<Vec<Client>, ClientError> {
    let connecting = (0..count).map(|_| Client::connect_any(bootstrap));
    futures::stream::iter(connecting)
        .buffer_unordered(CONNECTING_MAX)
        .try_collect()
        .await
}

/// Readers of one topic and the producer that wakes them.
struct Crowd {
    cluster: Cluster,
    load: super::produce::ProducersPlan,
    producers: Producers,
    plan: Arc<ReadPlan>,
    positions: Vec<(i32, i64)>,
    readers: u32,
    mark: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    wakes: u64,
    lost: u64,
    errors: u64,
    latency_ms: Option<Percentiles>,
}

impl Crowd {
    /// So many readers, each of the first `partitions` of the topic.
    async fn gather(
        args: &ManyArgs,
        topic: TopicPlan,
        readers: u32,
        order: Order,
        partitions: usize,
    ) -> Result<Crowd, String> {
        let said = |e: ClientError| e.to_string();
        let bootstrap = args.run.bootstrap();
        let mut cluster = ensure_topic(&bootstrap, &topic, args.run.patience)
            .await
            .map_err(said)?;
        // The producer goes where the readers are.
        cluster.leaders.truncate(partitions);
        let ends = list_offsets(&cluster, &topic.name, OffsetOf::End)
            .await
            .map_err(said)?;
        let mark = rand::random();
        let load = trickle(&args.run, &args.records, &topic.name, mark, args.rate, order);
        let producers = Producers::prepare(load.clone(), cluster.clone())
            .await
            .map_err(said)?;
        Ok(Crowd {
            cluster,
            load,
            producers,
            plan: Arc::new(ReadPlan {
                bootstrap,
                topic: topic.name,
                limits: args.fetch.limits(),
                patience: args.run.patience,
                ends: None,
            }),
            positions: (0..).zip(ends).collect(),
            readers,
            mark,
        })
    }

    /// Wakes the readers from `start` on, if there is a crowd.
    async fn run(
        crowd: Option<Crowd>,
        start: Instant,
        meter: &Arc<Meter>,
        stop: &Stop,
    ) -> Result<Outcome, String> {
        let Some(crowd) = crowd else {
            return Ok(Outcome::default());
        };
        let latencies = Arc::new(Latencies::new()?);
        let over = Stop::default();
        let goal = Goal::new(over.clone(), None, None);
        let reads = Meter::new(meter.measured_from, 0)?;
        let mut all = Vec::new();
        let mut reading = JoinSet::new();
        for _ in 0..crowd.readers {
            let arrivals = Arrivals::new(
                crowd.mark,
                &crowd.load,
                start,
                meter.measured_from,
                latencies.clone(),
            )?;
            all.push(arrivals.clone());
            let positions = crowd.positions.clone();
            let reader = Reader::new(
                crowd.plan.clone(),
                goal.clone(),
                reads.clone(),
                arrivals,
                positions,
            );
            let cluster = crowd.cluster.clone();
            reading.spawn(async move { reader.run(cluster).await });
        }
        let ended = |ended: Option<_>| ended.map_or_else(String::new, reader_error);
        let sent = tokio::select! {
            sent = crowd.producers.run(start, meter, stop) => sent.map_err(|e| e.to_string())?,
            done = reading.join_next() => return Err(ended(done)),
        };
        let deadline = Instant::now() + ARRIVAL_PATIENCE;
        for arrivals in &all {
            let left = deadline.saturating_duration_since(Instant::now());
            arrivals.wait_for(sent, left).await;
        }
        over.set();
        reading.abort_all();
        let wakes: u64 = all.iter().map(|arrivals| arrivals.seen().0).sum();
        Ok(Outcome {
            wakes,
            lost: (sent * u64::from(crowd.readers)).saturating_sub(wakes),
            errors: reads.counts().errors,
            latency_ms: latencies.percentiles(),
        })
    }
}
