//! A store that fails in every way, under the real binary: nothing acknowledged is lost, nothing of an
//! idempotent producer is there twice, memory is bounded, and the same process recovers.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alluvium_tests::batches::{Fetched, Producer, batch, now_ms};
use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::kafka::{self, IdempotentProducer, check_exact, code, read_all};
use alluvium_tests::s3_fake::{Kind, Options, Outage, S3Fake};
use alluvium_tests::wire::Client;
use kafka_wire::ApiVersionsRequest;

const MIB: u64 = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(180);

/// Length of an outage: short by default, the full 60 s where `ALLUVIUM_TEST_OUTAGE_SECONDS` asks for it.
fn outage_length() -> Duration {
    let seconds = std::env::var("ALLUVIUM_TEST_OUTAGE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

struct Fixture {
    fake: S3Fake,
    broker: Broker,
    rss_at_start: Option<u64>,
}

impl Fixture {
    fn start(prefix: &str) -> Fixture {
        let seed = std::env::var("ALLUVIUM_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(1);
        println!("ALLUVIUM_TEST_SEED={seed}");
        let fake = S3Fake::start(Options {
            seed,
            ..Options::default()
        })
        .unwrap();
        let options = BrokerOptions::on(fake.store_url(prefix)).env(fake.env());
        let options = options
            .set("memory.budget.bytes", 16 * MIB)
            .set("socket.request.max.bytes", 8 * MIB)
            .set("tail.bytes", 4 * MIB)
            .set("cache.bytes", 8 * MIB)
            .set("flush.interval.ms", 10)
            .set("request.budget.per.second", 0);
        let broker = Broker::start(options);
        let rss_at_start = broker.rss_bytes();
        let mut client = Client::connect(broker.address()).unwrap();
        kafka::create_topic(&mut client, "t", 2, &[]).unwrap();
        Fixture {
            fake,
            broker,
            rss_at_start,
        }
    }

    fn address(&self) -> SocketAddr {
        self.broker.address()
    }

    fn producer(&self, partition: i32) -> IdempotentProducer {
        IdempotentProducer::new(self.address(), "t", partition).unwrap()
    }

    /// What is in partition 0 is exactly what these producers were promised, now and after a crash.
    fn assert_exact(&mut self, producers: &[&IdempotentProducer]) {
        let promised: Vec<&BTreeMap<i64, Vec<Vec<u8>>>> =
            producers.iter().map(|p| p.acknowledged()).collect();
        let records = self.read(0);
        check_exact(&records, &promised).unwrap();
        assert_eq!(
            self.fake.counts().rejected,
            0,
            "the broker sends no malformed request"
        );
        self.fake.set_faults(Vec::new());
        self.broker.restart();
        check_exact(&self.read(0), &promised).unwrap();
    }

    fn read(&self, partition: i32) -> Vec<Fetched> {
        read_all(self.address(), "t", partition, PATIENCE).unwrap()
    }

    fn assert_bounded(&self) {
        if let (Some(start), Some(max)) = (self.rss_at_start, self.broker.rss_bytes_max()) {
            assert!(max < start + 192 * MIB, "memory grew from {start} to {max} bytes");
        }
    }
}

fn values(name: &str, from: u64, count: u64, bytes: usize) -> Vec<Vec<u8>> {
    (from..from + count)
        .map(|number| {
            let mut value = format!("{name}-{number}-").into_bytes();
            value.resize(value.len().max(bytes), b'.');
            value
        })
        .collect()
}

/// Every failure of a write in turn, one process, one idempotent producer.
#[test]
fn writes_that_fail_lose_and_double_nothing() {
    let mut fixture = Fixture::start("writes");
    let pid = fixture.broker.pid();
    let mut producer = fixture.producer(0);
    let mut number = 0;
    for rule in [
        "kind=put,probability=0.2,do=500",
        "kind=put,probability=0.2,do=503",
        "kind=put,probability=0.2,do=409",
        "kind=put,probability=0.2,do=cut",
        "kind=put,probability=0.2,do=applied-then-500",
        "kind=put,probability=0.2,do=applied-then-503",
        "kind=put,probability=0.2,do=applied-then-409",
        "kind=put,probability=0.2,do=applied-then-412",
        "kind=put,probability=0.2,do=applied-then-cut",
        "kind=put,probability=0.1,do=412",
        "kind=put,probability=0.2,do=late-500,ms=300",
        "kind=put,probability=0.2,do=late-cut,ms=300",
        "kind=put,probability=0.2,do=delay,ms=700",
        "kind=put,probability=0.05,do=hang,ms=3000",
        "kind=put,probability=0.05,do=applied-then-hang,ms=3000",
        "kind=put,times=1,do=hang",
        "kind=put,times=1,do=applied-then-hang",
        "kind=put,times=1,do=late-hang,ms=1000",
        "kind=put,times=1,do=late-hang,ms=40000",
        "kind=get,probability=0.3,do=503",
    ] {
        fixture.fake.set_fault_texts(&[rule]);
        let started = Instant::now();
        // Batches share segments, so how many it takes until the rule has fired depends on the timing.
        let enough = if rule.contains("times=1,") { 1 } else { 3 };
        let mut sent = 0;
        while sent < 50 || (rule.contains("kind=put") && fixture.fake.faults_fired()[0] < enough) {
            assert!(started.elapsed() < PATIENCE, "{rule} hardly fires");
            producer
                .send(now_ms(), values("w", number, 3, 100), PATIENCE)
                .unwrap_or_else(|error| panic!("{rule}: {error}"));
            number += 3;
            sent += 1;
        }
        producer
            .flush(PATIENCE)
            .unwrap_or_else(|error| panic!("{rule}: {error}"));
        println!(
            "{rule}: fired {:?}, {:?}",
            fixture.fake.faults_fired(),
            started.elapsed()
        );
        assert!(fixture.broker.exited().is_none(), "{rule} ended the broker");
        assert_eq!(fixture.broker.pid(), pid);
    }
    fixture.assert_bounded();
    fixture.assert_exact(&[&producer]);
}

/// SIGKILL again and again while writes fail and land late, so that recovery meets all of it.
#[test]
fn crashes_among_failing_writes_lose_and_double_nothing() {
    let mut fixture = Fixture::start("crashes");
    let address = fixture.address();
    fixture.fake.set_latencies("put=20/60,get=10/30".parse().unwrap());
    // The start-up probe has a test of its own.
    fixture.fake.set_fault_texts(&[
        "key=/(wal|cluster)/,kind=put,probability=0.05,do=applied-then-500",
        "key=/(wal|cluster)/,kind=put,probability=0.05,do=applied-then-cut",
        "key=/(wal|cluster)/,kind=put,probability=0.05,do=late-cut,ms=1500",
        "key=/(wal|cluster)/,kind=put,probability=0.02,do=late-hang,ms=3000",
        "key=/(wal|cluster)/,kind=put,probability=0.05,do=503",
        "key=/(wal|cluster)/,kind=get,probability=0.05,do=500",
        "key=/(wal|cluster)/,kind=get,probability=0.05,do=cut",
    ]);
    let stop = AtomicBool::new(false);
    let producers: Vec<IdempotentProducer> = std::thread::scope(|scope| {
        let running: Vec<_> = ["a", "b"]
            .map(|name| {
                let stop = &stop;
                let mut producer = fixture.producer(0);
                scope.spawn(move || {
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        producer
                            .send(now_ms(), values(name, number, 2, 200), PATIENCE)
                            .unwrap();
                        number += 2;
                    }
                    producer.flush(PATIENCE).unwrap();
                    producer
                })
            })
            .into();
        for round in 0..6 {
            std::thread::sleep(Duration::from_millis(1_500 + 337 * round));
            fixture.broker.restart();
        }
        stop.store(true, Ordering::Relaxed);
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(
        producers
            .iter()
            .all(|producer| producer.acknowledged().len() > 20),
        "{address} was hardly there"
    );
    assert!(
        producers.iter().any(|producer| producer.retries() > 0),
        "no producer noticed anything"
    );
    let producers: Vec<&IdempotentProducer> = producers.iter().collect();
    fixture.assert_exact(&producers);
}

/// A start meets a store that stumbles: it takes longer and succeeds.
#[test]
fn a_start_among_transient_failures_succeeds() {
    let mut fixture = Fixture::start("start");
    let mut producer = fixture.producer(0);
    producer
        .send(now_ms(), values("s", 0, 100, 100), PATIENCE)
        .unwrap();
    producer.flush(PATIENCE).unwrap();
    fixture.fake.reset_counts();
    fixture.broker.restart();
    let requests: u64 = fixture
        .fake
        .counts()
        .kinds
        .values()
        .map(|counts| counts.requests)
        .sum();
    println!("a start takes {requests} requests");
    for (step, rule) in [
        (4, "do=cut,times=1"),
        (11, "do=500,times=2"),
        (11, "do=503,times=2"),
        (11, "kind=put,do=applied-then-500,times=1"),
        (7, "kind=put,do=applied-then-cut,times=1"),
        (11, "kind=put,do=late-cut,ms=500,times=1"),
    ] {
        // One request of the start fails, each time a later one.
        for after in (0..requests).step_by(step) {
            fixture.fake.set_fault_texts(&[&format!("{rule},after={after}")]);
            fixture.broker.restart();
        }
        let records = fixture.read(0);
        check_exact(&records, &[producer.acknowledged()]).unwrap();
    }
    fixture.assert_exact(&[&producer]);
}

fn outage(kind: Outage) {
    let mut fixture = Fixture::start("outage");
    let address = fixture.address();
    let mut producer = fixture.producer(0);
    for number in 0..20 {
        producer
            .send(now_ms(), values("before", number, 1, 1_000), PATIENCE)
            .unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let pid = fixture.broker.pid();
    let length = outage_length();

    fixture.fake.set_outage(Some(kind));
    let started = Instant::now();
    let ended = AtomicBool::new(false);
    let after = std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            for number in 0..20 {
                producer
                    .send(now_ms(), values("during", number, 1, 1_000), length + PATIENCE)
                    .unwrap();
            }
            producer.flush(length + PATIENCE).unwrap();
            assert!(ended.load(Ordering::Relaxed), "acknowledged without a store");
        });
        // More producers than the budget holds: they wait, nothing is dropped, memory stays.
        let pressing: Vec<_> = (0..8)
            .map(|name| {
                scope.spawn(move || {
                    let mut client = Client::connect(address).unwrap();
                    client.set_timeout(length + PATIENCE).unwrap();
                    let values = values(&format!("press-{name}"), 0, 4, 900_000);
                    for value in values {
                        let records = batch(now_ms(), Producer::NONE, &[value]);
                        let (code, _) = kafka::produce(&mut client, "t", 1, records).unwrap();
                        assert!(
                            [code::NONE, code::REQUEST_TIMED_OUT].contains(&code),
                            "error {code}"
                        );
                    }
                })
            })
            .collect();
        while started.elapsed() < length {
            let mut client = Client::connect(address).unwrap();
            client.set_timeout(Duration::from_secs(5)).unwrap();
            client
                .call(&ApiVersionsRequest::default(), 0)
                .expect("the broker answers during an outage");
            assert_eq!(
                fixture.broker.http_get("/livez").unwrap().0,
                200,
                "a store's outage is no reason to restart"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        ended.store(true, Ordering::Relaxed);
        fixture.fake.set_outage(None);
        let over = Instant::now();
        producing.join().unwrap();
        let after = over.elapsed();
        for thread in pressing {
            thread.join().unwrap();
        }
        after
    });
    println!("{kind:?} of {length:?}: the producer went on {after:?} after its end");
    assert!(
        after < Duration::from_secs(45),
        "the producer went on only {after:?} after the outage"
    );
    assert_eq!(
        (fixture.broker.pid(), fixture.broker.exited()),
        (pid, None),
        "no restart"
    );
    assert!(fixture.broker.is_ready());
    fixture.assert_bounded();
    fixture.assert_exact(&[&producer]);
}

#[test]
fn an_outage_that_refuses_passes() {
    outage(Outage::Refuse);
}

#[test]
fn an_outage_that_hangs_passes() {
    outage(Outage::Hang);
}

#[test]
fn an_outage_that_answers_503_passes() {
    outage(Outage::Unavailable);
}

/// A consumer at the tail of two producers misses nothing, whatever the latency of the store.
#[test]
fn a_tailing_consumer_sees_everything_in_order() {
    let mut fixture = Fixture::start("tail");
    fixture
        .fake
        .set_latencies("put=30/300,get=20/200".parse().unwrap());
    fixture
        .fake
        .set_fault_texts(&["kind=put,probability=0.03,do=delay,ms=1000"]);
    let address = fixture.address();
    let producing = AtomicBool::new(true);
    let (seen, producers) = std::thread::scope(|scope| {
        let consumer = scope.spawn(|| {
            let mut client = Client::connect(address).unwrap();
            let mut seen: Vec<Fetched> = Vec::new();
            loop {
                let last_look = !producing.load(Ordering::Relaxed);
                let next = seen.last().map_or(0, |record| record.offset + 1);
                let (code, bytes) =
                    kafka::fetch(&mut client, "t", 0, next, Duration::from_millis(500)).unwrap();
                assert_eq!(code, code::NONE);
                let fetched = alluvium_tests::batches::read(&bytes).unwrap();
                if last_look && fetched.is_empty() {
                    return seen;
                }
                seen.extend(fetched.into_iter().filter(|record| record.offset >= next));
            }
        });
        let running: Vec<_> = ["a", "b"]
            .map(|name| {
                let mut producer = fixture.producer(0);
                scope.spawn(move || {
                    for number in 0..300 {
                        producer
                            .send(now_ms(), values(name, number, 1, 50), PATIENCE)
                            .unwrap();
                    }
                    producer.flush(PATIENCE).unwrap();
                    producer
                })
            })
            .into();
        let producers: Vec<IdempotentProducer> = running.into_iter().map(|t| t.join().unwrap()).collect();
        producing.store(false, Ordering::Relaxed);
        (consumer.join().unwrap(), producers)
    });
    let promised: Vec<_> = producers.iter().map(IdempotentProducer::acknowledged).collect();
    check_exact(&seen, &promised).unwrap();
    for name in ["a-", "b-"] {
        let order: Vec<&Fetched> = seen
            .iter()
            .filter(|r| r.value.starts_with(name.as_bytes()))
            .collect();
        let expected = values(&name[..1], 0, 300, 50);
        assert!(
            order.iter().zip(&expected).all(|(r, value)| r.value == *value),
            "{name} out of order"
        );
        assert_eq!(order.len(), 300);
    }
    let producers: Vec<&IdempotentProducer> = producers.iter().collect();
    fixture.assert_exact(&producers);
}

/// Reads that are cut short, wrong or refused give an error or the right bytes, never others.
#[test]
fn corrupt_reads_never_reach_a_client() {
    let mut fixture = Fixture::start("reads");
    let mut producer = fixture.producer(0);
    for number in 0..200 {
        producer
            .send(now_ms(), values("r", number * 5, 5, 20_000), PATIENCE)
            .unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    for rule in [
        "do=flip",
        "do=truncate",
        "kind=get,do=500",
        "kind=get,do=cut",
        "kind=get,do=delay,ms=500",
    ] {
        // Restarted, so that everything has to be read back.
        fixture.fake.set_faults(Vec::new());
        fixture.broker.restart();
        fixture
            .fake
            .set_fault_texts(&[&format!("{rule},probability=0.25")]);
        let records = fixture.read(0);
        println!("{rule}: fired {:?}", fixture.fake.faults_fired());
        assert_ne!(fixture.fake.faults_fired(), [0], "{rule}");
        check_exact(&records, &[producer.acknowledged()]).unwrap_or_else(|error| panic!("{rule}: {error}"));
    }
    // A start among failing reads is slow, not fatal.
    fixture.fake.set_fault_texts(&[
        "kind=get,probability=0.2,do=503",
        "kind=get,probability=0.1,do=truncate",
    ]);
    fixture.broker.restart();
    fixture.assert_exact(&[&producer]);
}

/// An idle broker on a bucket writes nothing but its heartbeat.
#[test]
fn an_idle_broker_costs_little() {
    let fixture = Fixture::start("idle");
    std::thread::sleep(Duration::from_secs(3));
    fixture.fake.reset_counts();
    std::thread::sleep(Duration::from_secs(10));
    let counts = fixture.fake.counts();
    println!("10 idle seconds: {counts:?}");
    assert!(counts.of(Kind::Put).requests <= 2, "{counts:?}");
    assert_eq!(counts.of(Kind::List).requests, 0, "{counts:?}");
    assert!(
        counts.of(Kind::Get).requests + counts.of(Kind::Head).requests <= 15,
        "{counts:?}"
    );
}
