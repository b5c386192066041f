//! Hostile and broken clients against the real binary: whatever they send, their connection gets Kafka's error
//! or is closed, memory stays bounded, and others are served.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alluvium_tests::batches::{Producer, batch};
use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::kafka::{self, code, produce_request};
use alluvium_tests::wire::{Client, Outcome, frame, framed, header};
use kafka_wire::{ApiVersionsRequest, HeartbeatRequest, MetadataRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MIB: u64 = 1024 * 1024;
/// `socket.request.max.bytes` of these tests.
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Patience for an answer or for the end of a connection.
const SOON: Duration = Duration::from_secs(10);

fn broker() -> Broker {
    Broker::start(
        BrokerOptions::embedded()
            .set("socket.request.max.bytes", REQUEST_BYTES_MAX)
            .set("memory.budget.bytes", 8 * MIB)
            .set("max.connections", 2_000)
            .set("tail.bytes", 8 * MIB)
            .set("cache.bytes", 8 * MIB),
    )
}

/// The broker serves a new client.
fn assert_alive(broker: &mut Broker, after: &str) {
    assert!(broker.exited().is_none(), "the broker died of {after}");
    let mut client = Client::connect(broker.address()).unwrap();
    client.set_timeout(SOON).unwrap();
    let response = client.call(&ApiVersionsRequest::default(), 0);
    assert_eq!(
        response.map(|response| response.error_code).ok(),
        Some(code::NONE),
        "after {after}"
    );
}

fn outcome(address: SocketAddr, bytes: &[u8]) -> Outcome {
    let mut client = Client::connect(address).unwrap();
    // The broker may close the connection before everything is sent.
    let _ = client.send_raw(bytes);
    client.outcome(SOON).unwrap()
}

fn metadata_frame() -> Vec<u8> {
    frame(&MetadataRequest::default(), 8, 7).unwrap().to_vec()
}

#[test]
fn truncated_and_missized_frames_end_their_connection() {
    let mut broker = broker();
    let good = metadata_frame();
    // Every prefix, its client gone in the middle of the frame.
    for length in 0..good.len() {
        let mut client = Client::connect(broker.address()).unwrap();
        client.send_raw(&good[..length]).unwrap();
        client.finish_sending().unwrap();
        assert!(
            client.closes_within(SOON),
            "prefix of {length} bytes, then the end"
        );
    }
    assert_alive(&mut broker, "prefixes that end");
    // Every prefix, given as a whole frame.
    for length in 0..good.len() - 4 {
        let outcome = outcome(broker.address(), &framed(&good[4..4 + length]));
        assert_eq!(
            outcome,
            Outcome::Closed,
            "a frame of the first {length} bytes of a request"
        );
    }
    assert_alive(&mut broker, "short frames");
    for length in [-1, i32::MIN, REQUEST_BYTES_MAX as i32 + 1, i32::MAX] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&good[4..]);
        assert_eq!(
            outcome(broker.address(), &bytes),
            Outcome::Closed,
            "a length of {length}"
        );
        assert_alive(&mut broker, "a bad length");
    }
    assert!(
        broker.log().lines().any(|line| line.contains("127.0.0.1")),
        "a line tells of it"
    );
}

#[test]
fn the_largest_allowed_frame_is_served() {
    let mut broker = broker();
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "large", 1, &[("max.message.bytes", "4194304")]).unwrap();
    let fits = |bytes: usize| produce_request("large", 0, batch(0, Producer::NONE, &[vec![b'x'; bytes]]));
    let overhead = frame(&fits(2_000_000), kafka::PRODUCE_VERSION, 1).unwrap().len() - 4 - 2_000_000;
    let response = client
        .call(&fits(REQUEST_BYTES_MAX - overhead), kafka::PRODUCE_VERSION)
        .unwrap();
    assert_eq!(kafka::produced(&response).unwrap().0, code::NONE);
    let too_large = frame(&fits(REQUEST_BYTES_MAX - overhead + 1), kafka::PRODUCE_VERSION, 1).unwrap();
    assert_eq!(outcome(broker.address(), &too_large), Outcome::Closed);
    assert_alive(&mut broker, "a frame of one byte too many");
}

#[test]
fn unknown_apis_and_versions_are_refused_as_kafka_does() {
    let mut broker = broker();
    for version in [5, 99, i16::MAX, -1] {
        let mut client = Client::connect(broker.address()).unwrap();
        client.send_raw(&framed(&header(18, version, 42, true))).unwrap();
        let Outcome::Answer(answer) = client.outcome(SOON).unwrap() else {
            panic!("no answer to {version}")
        };
        let (correlation, response) =
            alluvium_tests::wire::decode_answer::<ApiVersionsRequest>(answer, 0).unwrap();
        assert_eq!(
            (correlation, response.error_code),
            (42, code::UNSUPPORTED_VERSION),
            "version {version}"
        );
        assert!(
            response.api_keys.iter().any(|api| api.api_key == 18),
            "it lists the versions to try"
        );
        // The connection is as good as new.
        assert!(client.call(&ApiVersionsRequest::default(), 0).is_ok());
    }
    for (key, version) in [
        (999, 0),
        (-1, 0),
        (i16::MIN, 0),
        (3, 99),
        (3, -1),
        (0, 99),
        (1, 0),
    ] {
        for flexible in [false, true] {
            let outcome = outcome(broker.address(), &framed(&header(key, version, 1, flexible)));
            assert_eq!(outcome, Outcome::Closed, "API {key} version {version}");
        }
    }
    assert_alive(&mut broker, "unknown APIs");
}

#[test]
fn garbage_before_the_first_request_ends_the_connection() {
    let mut broker = broker();
    let mut random = StdRng::seed_from_u64(3);
    let mut garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        // The start of a TLS ClientHello.
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat(),
        vec![0; 64],
        vec![0xff; 4096],
    ];
    garbage.extend((0..50).map(|_| {
        let mut bytes: Vec<u8> = (0..random.random_range(8..200))
            .map(|_| random.random())
            .collect();
        // A length that is accepted would only make the broker wait for the rest.
        bytes[0] |= 0x80;
        bytes
    }));
    for bytes in &garbage {
        assert_eq!(
            outcome(broker.address(), bytes),
            Outcome::Closed,
            "{:?}",
            &bytes[..8]
        );
    }
    assert_alive(&mut broker, "garbage");
}

#[test]
fn what_brokers_ask_each_other_is_closed_to_strangers() {
    let mut broker = broker();
    // A private request of brokers: its key and version, a correlation id, no client id, then the ids of a cluster
    // and of a broker start, and a manifest version.
    let header = [
        &32_000_i16.to_be_bytes()[..],
        &[0, 0],
        &[0, 0, 0, 7],
        &[0xff, 0xff],
    ]
    .concat();
    let ping = [
        &header[..],
        &[1; 16],
        &9_u64.to_be_bytes(),
        &u64::MAX.to_be_bytes(),
    ]
    .concat();
    let refused = Outcome::Answer([0, 0, 0, 7, 0, 104].to_vec().into());
    for _ in 0..100 {
        let answer = outcome(broker.address(), &framed(&ping));
        assert_eq!(
            answer, refused,
            "another cluster hears that it is another one, and nothing else"
        );
    }
    for length in 0..ping.len() {
        let answer = outcome(broker.address(), &framed(&ping[..length]));
        assert_eq!(answer, Outcome::Closed, "the first {length} bytes of a ping");
    }
    for longer in [43, 128, 129, 4096] {
        let bytes = [&ping[..], &vec![0; longer - ping.len()]].concat();
        assert_eq!(
            outcome(broker.address(), &framed(&bytes)),
            Outcome::Closed,
            "{longer} bytes"
        );
    }
    let mut client = Client::connect(broker.address()).unwrap();
    let apis = client.call(&ApiVersionsRequest::default(), 0).unwrap().api_keys;
    assert!(
        apis.iter().all(|api| api.api_key < 1_000),
        "no client is told of it"
    );
    assert_alive(&mut broker, "pings of strangers");
}

/// Bodies that claim far more than they hold.
fn hostile_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let max = i32::MAX.to_be_bytes();
    let compact_max = [0xff, 0xff, 0xff, 0xff, 0x0f];
    vec![
        ("one array of 2^31 - 1 elements", max.to_vec()),
        ("counts of 2^31 - 1", max.repeat(16)),
        ("compact counts of 2^32 - 2", compact_max.repeat(16)),
        ("varints without an end", vec![0xff; 64]),
        ("strings of 32,639 bytes", vec![0x7f; 64]),
        ("negative lengths", vec![0x80; 64]),
    ]
}

#[test]
fn hostile_counts_allocate_nothing() {
    let mut broker = broker();
    let mut client = Client::connect(broker.address()).unwrap();
    let apis = client.call(&ApiVersionsRequest::default(), 0).unwrap().api_keys;
    assert!(apis.len() > 20, "{} APIs", apis.len());
    let before = broker.rss_bytes_max();
    for api in &apis {
        for version in [api.min_version, api.max_version] {
            for flexible in [false, true] {
                for (name, body) in hostile_bodies() {
                    let payload = [header(api.api_key, version, 1, flexible), body].concat();
                    let outcome = outcome(broker.address(), &framed(&payload));
                    assert!(
                        outcome != Outcome::Silent,
                        "API {} version {version} says nothing about {name}",
                        api.api_key
                    );
                }
            }
        }
        assert_alive(&mut broker, &format!("hostile bodies of API {}", api.api_key));
    }
    if let (Some(before), Some(after)) = (before, broker.rss_bytes_max()) {
        assert!(
            after < before + 64 * MIB,
            "memory grew from {before} to {after} bytes"
        );
    }
}

#[test]
fn random_bodies_do_no_harm() {
    let mut broker = broker();
    let mut client = Client::connect(broker.address()).unwrap();
    let apis = client.call(&ApiVersionsRequest::default(), 0).unwrap().api_keys;
    let seed = std::env::var("ALLUVIUM_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(11);
    println!("ALLUVIUM_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..2_000 {
        let api = &apis[random.random_range(0..apis.len())];
        let version = random.random_range(api.min_version..=api.max_version);
        let mut payload = header(api.api_key, version, round, random.random());
        let length = random.random_range(0..200);
        // Mostly small numbers: they get further into a parser than noise.
        payload.extend((0..length).map(|_| match random.random_range(0..4) {
            0 => random.random::<u8>(),
            1 => 1,
            _ => 0,
        }));
        let mut client = Client::connect(broker.address()).unwrap();
        let _ = client.send_raw(&framed(&payload));
        // Some of them are valid and may wait, as a Fetch does: only harm counts here.
        let _ = client.outcome(Duration::from_millis(20)).unwrap();
        if round % 100 == 0 {
            assert_alive(&mut broker, &format!("random bodies until {round}, seed {seed}"));
        }
    }
    assert_alive(&mut broker, &format!("random bodies, seed {seed}"));
}

/// Files and connections that this process may have open: fewer than a thousand on some machines.
fn open_files_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(1_024)
}

#[test]
fn a_thousand_idle_connections_cost_little() {
    let mut broker = broker();
    let before = broker.rss_bytes();
    let count = 1_000.min(open_files_max().saturating_sub(200));
    println!("{count} connections");
    let mut clients: Vec<Client> = (0..count)
        .map(|_| Client::connect(broker.address()).unwrap())
        .collect();
    for client in clients.iter_mut().step_by(2) {
        client.call(&ApiVersionsRequest::default(), 0).unwrap();
    }
    if let (Some(before), Some(after)) = (before, broker.rss_bytes()) {
        let each = after.saturating_sub(before) / count as u64;
        assert!(each < 64 * 1024, "{each} bytes for each idle connection");
    }
    assert_alive(&mut broker, "idle connections");
    // Each of them is still served.
    for client in clients.iter_mut().step_by(2) {
        client.call(&MetadataRequest::default(), 8).unwrap();
    }
}

#[test]
fn heartbeats_are_answered_while_produce_is_held_back() {
    let mut broker = broker();
    let address = broker.address();
    let mut client = Client::connect(address).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[("max.message.bytes", "4194304")]).unwrap();
    assert_eq!(
        kafka::produce(
            &mut client,
            "t",
            0,
            batch(0, Producer::NONE, &[b"first".to_vec()])
        )
        .unwrap()
        .0,
        0
    );

    // Clients that announce large frames and let a byte drip now and then: together about the budget.
    let records = batch(0, Producer::NONE, &[vec![b'x'; REQUEST_BYTES_MAX - 1024]]);
    let large = frame(&produce_request("t", 0, records), kafka::PRODUCE_VERSION, 1).unwrap();
    let drips: Vec<Client> = (0..4)
        .map(|_| {
            let mut drip = Client::connect(address).unwrap();
            drip.send_raw(&large[..100]).unwrap();
            drip
        })
        .collect();
    let dripping = std::thread::spawn({
        let large = large.clone();
        move || {
            let mut drips: Vec<(Client, usize)> = drips.into_iter().map(|drip| (drip, 100)).collect();
            let started = Instant::now();
            while !drips.is_empty() && started.elapsed() < Duration::from_secs(180) {
                drips.retain_mut(|(drip, sent)| {
                    let more = drip.send_raw(&large[*sent..*sent + 1]).is_ok();
                    *sent += 1;
                    more
                });
                std::thread::sleep(Duration::from_millis(200));
            }
            drips.len()
        }
    });
    std::thread::sleep(Duration::from_secs(1));

    let held_back = std::thread::spawn(move || {
        let mut client = Client::connect(address).unwrap();
        client.set_timeout(Duration::from_secs(240)).unwrap();
        let started = Instant::now();
        let values = vec![vec![b'y'; REQUEST_BYTES_MAX / 2]];
        let (code, _) = kafka::produce(&mut client, "t", 0, batch(0, Producer::NONE, &values)).unwrap();
        (code, started.elapsed())
    });
    let mut heartbeats = Client::connect(address).unwrap();
    for _ in 0..20 {
        let mut heartbeat = HeartbeatRequest::default();
        heartbeat.group_id = "group".into();
        heartbeat.member_id = "nobody".into();
        let started = Instant::now();
        let response = heartbeats.call(&heartbeat, 3).unwrap();
        assert_ne!(response.error_code, code::NONE, "there is no such member");
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "a heartbeat took {:?}",
            started.elapsed()
        );
        let (code, bytes) = kafka::fetch(&mut heartbeats, "t", 0, 0, Duration::ZERO).unwrap();
        assert_eq!(
            (code, bytes.is_empty()),
            (code::NONE, false),
            "a fetch is served too"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, waited) = held_back.join().unwrap();
    assert_eq!(code, code::NONE);
    println!("the producer behind the drips waited {waited:?}");
    assert_eq!(dripping.join().unwrap(), 0, "a frame that drips is given up");
    assert_alive(&mut broker, "dripping frames");
    if let Some(rss) = broker.rss_bytes_max() {
        assert!(rss < 512 * MIB, "{rss} bytes");
    }
}

#[test]
fn a_client_that_reads_no_answers_holds_no_memory() {
    let mut broker = broker();
    let address = broker.address();
    let mut client = Client::connect(address).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    for _ in 0..16 {
        let values = vec![vec![b'x'; 500 * 1024]];
        assert_eq!(
            kafka::produce(&mut client, "t", 0, batch(0, Producer::NONE, &values))
                .unwrap()
                .0,
            0
        );
    }
    let before = broker.rss_bytes();
    // 20 clients that ask for 8 MB a hundred times and never read.
    let mut deaf: Vec<Client> = (0..20).map(|_| Client::connect(address).unwrap()).collect();
    for client in &mut deaf {
        client.set_timeout(Duration::from_millis(200)).unwrap();
        for _ in 0..100 {
            let mut request = kafka_wire::FetchRequest::default();
            let mut partition = kafka_wire::fetch_request::FetchPartition::default();
            partition.partition_max_bytes = 8 * MIB as i32;
            partition.current_leader_epoch = -1;
            partition.log_start_offset = -1;
            let mut topic = kafka_wire::fetch_request::FetchTopic::default();
            topic.topic = "t".into();
            topic.partitions = vec![partition];
            request.replica_id = -1;
            request.session_epoch = -1;
            request.max_bytes = 8 * MIB as i32;
            request.topics = vec![topic];
            if client.send(&request, kafka::FETCH_VERSION).is_err() {
                break;
            }
        }
    }
    std::thread::sleep(Duration::from_secs(2));
    if let (Some(before), Some(after)) = (before, broker.rss_bytes()) {
        assert!(
            after < before + 256 * MIB,
            "memory grew from {before} to {after} bytes"
        );
    }
    assert_alive(&mut broker, "deaf clients");
}
