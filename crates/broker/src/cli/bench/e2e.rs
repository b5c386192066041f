//! `alluvium bench e2e`: how long a record takes from the moment at which it was to be sent to its reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_log::RecordBatch;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use super::consume::{Arrived, FetchArgs, Goal, ReadPlan, Reader, Sink};
use super::meter::{Gaps, Latencies, Meter, Percentiles};
use super::payload::{NUMBERED_BYTES_MIN, Numbered, Payload};
use super::produce::{
    IDEMPOTENT_IN_FLIGHT_MAX, Order, ProducerPlan, Producers, ProducersPlan, REQUEST_BYTES_MAX,
    SECONDS_DEFAULT,
};
use super::schedule::Schedule;
use super::{RecordArgs, RunArgs, Stop};
use crate::cli::client::{ClientError, OffsetOf, ensure_topic, list_offsets};

/// Records that are acknowledged but not read after this time count as lost.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(10);
/// Time for readers to get their first fetch to the broker before the first record.
const HEAD_START: Duration = Duration::from_millis(100);
/// Batches that carry numbers are small; no record of a run is beyond this number.
const NUMBERS_MAX: u64 = 1 << 32;
const RECORDS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What to send.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct E2eArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Records per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Milliseconds for which a batch waits for more records
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    linger_ms: u64,
    /// Number the batches so that none is stored twice
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    idempotent: bool,
    /// Also tell the longest time in which a partition acknowledged nothing: the length of a fail-over
    #[arg(long)]
    report_gaps: bool,
    #[command(flatten)]
    fetch: FetchArgs,
}

#[derive(Debug, Serialize)]
struct E2eReport {
    kind: &'static str,
    topic: String,
    partitions: usize,
    records: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    lost: u64,
    duplicates: u64,
    errors: u64,
    retries: u64,
    produce_latency_ms: Option<Percentiles>,
    latency_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_gap_ms: Option<Gaps>,
    generator_cpu_seconds: Option<f64>,
}

pub(super) async fn run(args: E2eArgs) -> Result<(), String> {
    check_size(&args.records)?;
    let run = &args.run;
    let said = |e: ClientError| e.to_string();
    let bootstrap = run.bootstrap();
    let cluster = ensure_topic(&bootstrap, &run.topic_plan(true), run.patience)
        .await
        .map_err(said)?;
    let mark = rand::random();
    let load = trickle(
        &args.run,
        &args.records,
        &run.topic,
        mark,
        args.rate,
        Order::InTurns,
    );
    let load = ProducersPlan {
        idempotent: args.idempotent,
        linger: Duration::from_millis(args.linger_ms),
        ..load
    };
    let ends = list_offsets(&cluster, &run.topic, OffsetOf::End)
        .await
        .map_err(said)?;
    let producers = Producers::prepare(load.clone(), cluster.clone())
        .await
        .map_err(said)?;
    let start = Instant::now() + HEAD_START;
    let partitions = cluster.leaders.len();
    let meter = Meter::new(start + run.warmup, if args.report_gaps { partitions } else { 0 })?;
    let reads = Meter::new(meter.measured_from, 0)?;
    let latencies = Arc::new(Latencies::new()?);
    let arrivals = Arrivals::new(mark, &load, start, meter.measured_from, latencies.clone())?;
    let plan = Arc::new(ReadPlan {
        bootstrap,
        topic: run.topic.clone(),
        limits: args.fetch.limits(),
        patience: run.patience,
        ends: None,
    });
    let over = Stop::default();
    let positions: Vec<_> = (0..).zip(ends).collect();
    let goal = Goal::new(over.clone(), None, None);
    let reader = Arc::new(Reader::new(
        plan,
        goal,
        reads.clone(),
        arrivals.clone(),
        positions,
    ));
    let mut reading = tokio::spawn({
        let reader = reader.clone();
        async move { reader.run(cluster).await }
    });
    let watch = tokio::spawn(meter.clone().watch());
    let stop = run.stop();
    let sent = tokio::select! {
        sent = producers.run(start, &meter, &stop) => sent.map_err(said)?,
        ended = &mut reading => return Err(reader_error(ended)),
    };
    tokio::select! {
        () = arrivals.wait_for(sent, ARRIVAL_PATIENCE) => {}
        ended = &mut reading => return Err(reader_error(ended)),
    }
    over.set();
    reading.abort();
    watch.abort();
    let (seen, duplicates) = arrivals.seen();
    let counts = meter.counts();
    let lost = sent.saturating_sub(seen);
    run.report(&E2eReport {
        kind: "e2e",
        topic: run.topic.clone(),
        partitions,
        records: counts.records,
        bytes: counts.bytes,
        seconds: counts.seconds,
        records_per_second: counts.records_per_second,
        lost,
        duplicates,
        errors: counts.errors + reads.counts().errors,
        retries: counts.retries,
        produce_latency_ms: meter.latencies.percentiles(),
        latency_ms: latencies.percentiles(),
        longest_gap_ms: meter.gaps(),
        generator_cpu_seconds: meter.cpu_seconds(),
    })?;
    if lost > 0 {
        return Err(format!(
            "{lost} of {sent} records were acknowledged and had not arrived {} s after the last was sent",
            ARRIVAL_PATIENCE.as_secs()
        ));
    }
    Ok(())
}

/// Numbered records need room for their number.
pub(super) fn check_size(records: &RecordArgs) -> Result<(), String> {
    if records.record_size < NUMBERED_BYTES_MIN {
        return Err(format!(
            "--record-size must be at least {NUMBERED_BYTES_MIN} here, because records carry their number"
        ));
    }
    Ok(())
}

/// One producer of numbered records.
pub(super) fn trickle(
    run: &RunArgs,
    records: &RecordArgs,
    topic: &str,
    mark: u64,
    rate: u64,
    order: Order,
) -> ProducersPlan {
    ProducersPlan {
        each: ProducerPlan {
            bootstrap: run.bootstrap(),
            topic: topic.to_owned(),
            acks: -1,
            max_in_flight: IDEMPOTENT_IN_FLIGHT_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            patience: run.patience,
            order,
        },
        producers: 1,
        idempotent: true,
        rate: Some(rate),
        linger: Duration::ZERO,
        records: run.records,
        seconds: run.seconds_or(SECONDS_DEFAULT),
        payload: Arc::new(Payload::Numbered(Numbered::new(&records.plan(), mark))),
    }
}

/// Why a reader ended that was not told to.
pub(super) fn reader_error(ended: Result<Result<(), ClientError>, tokio::task::JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "the consumer ended before the producer".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => format!("the consumer ended: {error}"),
    }
}

/// Which records of a run one reader has seen, and how late.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    mark: u64,
    schedule: Schedule,
    measured_from: Instant,
    latencies: Arc<Latencies>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// A bit per record.
    bits: Vec<u64>,
    records: u64,
    duplicates: u64,
}

impl Seen {
    /// Whether the record is new.
    fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        let is_new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        if is_new {
            self.records += 1;
        } else {
            self.duplicates += 1;
        }
        is_new
    }
}

impl Arrivals {
    /// For records with this mark that the one producer of this load sends from `start` on.
    pub(super) fn new(
        mark: u64,
        load: &ProducersPlan,
        start: Instant,
        measured_from: Instant,
        latencies: Arc<Latencies>,
    ) -> Result<Arrivals, String> {
        let schedule = Producers::schedule(load, start, 0).ok_or("records need a rate to have a time")?;
        Ok(Arrivals {
            mark,
            schedule,
            measured_from,
            latencies,
            seen: Arc::default(),
        })
    }

    /// How many different records came, and how many came again.
    pub(super) fn seen(&self) -> (u64, u64) {
        let seen = self.seen.lock();
        (seen.records, seen.duplicates)
    }

    /// Returns when so many records came, or the time is over.
    pub(super) async fn wait_for(&self, records: u64, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.seen().0 < records && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn note(&self, number: u64, at: Instant) {
        if number >= NUMBERS_MAX || !self.seen.lock().insert(number) {
            return;
        }
        let intended = self.schedule.due(number);
        if intended >= self.measured_from {
            self.latencies.record([at.saturating_duration_since(intended)]);
        }
    }
}

impl Sink for Arrivals {
    fn batch(&self, batch: Arrived<'_>) -> Result<(), ClientError> {
        if batch.header.is_control() {
            return Ok(());
        }
        let bad = |e| ClientError::Other(format!("a batch cannot be read: {e}"));
        let whole = RecordBatch::from_stored(Bytes::copy_from_slice(batch.bytes)).map_err(bad)?;
        for record in &whole.records(RECORDS_BYTES_MAX).map_err(bad)? {
            let record = record.map_err(bad)?;
            let number = record.value.and_then(|value| Numbered::number(self.mark, value));
            if let Some(number) = number
                && record.offset >= batch.position
            {
                self.note(number, batch.whole);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_arrives_once() {
        let mut seen = Seen::default();
        assert!(seen.insert(0) && seen.insert(64) && seen.insert(1000));
        assert!(!seen.insert(64));
        assert_eq!((seen.records, seen.duplicates), (3, 1));
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_not_in_the_warm_up() {
        let start = Instant::now();
        let arrivals = Arrivals {
            mark: 1,
            schedule: Schedule::new(start, 100, 1, 0),
            measured_from: start + Duration::from_millis(20),
            latencies: Arc::new(Latencies::new().unwrap()),
            seen: Arc::default(),
        };
        for number in [1, 2, 2, 3, u64::MAX] {
            arrivals.note(number, start + Duration::from_millis(70));
        }
        assert_eq!(arrivals.seen(), (3, 1));
        let found = arrivals.latencies.percentiles().unwrap();
        // Record 2 was due at 20 ms, record 3 at 30; record 1 belongs to the warm-up.
        assert!(
            (found.p50 - 40.0).abs() < 0.1 && (found.max - 50.0).abs() < 0.1,
            "{found:?}"
        );
    }
}
