//! Producers: each writes numbered records to one partition and goes on until every one is acknowledged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ledger::Violation;
use super::record::Record;
use super::world::{TOPIC, World, count};
use crate::kafka::IdempotentProducer;

/// A batch must be acknowledged within this time, the longest fault included.
const PATIENCE: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(50);
/// Batches that are in flight at once.
const IN_FLIGHT: usize = 5;

/// One producer.
#[derive(Debug)]
pub(super) struct ProducerPlan {
    pub(super) id: u16,
    pub(super) partition: i32,
    /// Mean time from one batch to the next.
    pub(super) pause: Duration,
    pub(super) seed: u64,
}

/// Writes until it is told to stop, and then until everything is acknowledged.
pub(super) fn produce(world: &World, plan: &ProducerPlan) {
    if let Err(violation) = run(world, plan) {
        world.report(format!(
            "producer {} of partition {}: {violation}",
            plan.id, plan.partition
        ));
    }
}

fn run(world: &World, plan: &ProducerPlan) -> Result<(), Violation> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut producer = IdempotentProducer::routed(world.router(), TOPIC, plan.partition)?;
    let mut number = 0;
    let mut progress = Instant::now();
    loop {
        let stops = world.producers_stop.load(Ordering::Relaxed);
        if world.is_broken() || (stops && producer.unacknowledged() == 0) {
            return Ok(());
        }
        // Sometimes one batch waits alone, sometimes the pipeline is full.
        let wanted = random.random_range(1..=IN_FLIGHT);
        while !stops && producer.unacknowledged() < wanted {
            let records = random.random_range(1..=5);
            let values = (number..number + records).map(|number| {
                let record = Record {
                    producer: plan.id,
                    number,
                };
                record.value(value_bytes(&mut random))
            });
            producer.queue(timestamp_ms(), values.collect());
            number += records;
        }
        let retries = producer.retries();
        let left = producer.round()?;
        count(&world.counts.producer_retries, producer.retries() - retries);
        if note(world, plan.partition, &mut producer)? {
            progress = Instant::now();
        }
        match left {
            None => std::thread::sleep(plan.pause.mul_f64(random.random_range(0.0..2.0))),
            Some(error) if progress.elapsed() > PATIENCE => {
                return Err(format!("nothing was acknowledged for {PATIENCE:?}: {error}"));
            }
            Some(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Tells the ledger what was acknowledged; true if anything was.
fn note(world: &World, partition: i32, producer: &mut IdempotentProducer) -> Result<bool, Violation> {
    let acknowledged = producer.take_acknowledged();
    if acknowledged.is_empty() {
        return Ok(false);
    }
    let mut ledger = world.ledger.lock();
    for (base, values) in &acknowledged {
        let records: Result<Vec<Record>, String> = values.iter().map(|value| Record::parse(value)).collect();
        ledger.acknowledged(partition, *base, &records?)?;
    }
    drop(ledger);
    world.pulse.lock().beat(partition as usize, Instant::now());
    Ok(true)
}

/// Mostly small, now and then large enough to be handled in another way.
fn value_bytes(random: &mut StdRng) -> usize {
    if random.random_bool(0.02) {
        random.random_range(20_000..60_000)
    } else {
        random.random_range(20..1_500)
    }
}

fn timestamp_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
