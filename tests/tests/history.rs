//! History as Parquet under faults, on the real binary: kills at every moment of archiving, files that are damaged or
//! gone, readers of files that are deleted, very many small partitions, and what `alluvium archive flush` says when it
//! cannot do what it should.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Output;
use std::time::{Duration, Instant};

use alluvium_log::codec::Codec;
use alluvium_tests::batches::{Producer, batch, batch_of, field, now_ms, varint};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::kafka::{self, IdempotentProducer, check_exact, code, read_all};
use alluvium_tests::s3_fake::{Kind, Options, S3Fake};
use alluvium_tests::wire::Client;
use kafka_wire::DeleteRecordsRequest;
use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_wire::produce_request::PartitionProduceData;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

const PATIENCE: Duration = Duration::from_secs(90);

fn options(fake: &S3Fake, prefix: &str) -> BrokerOptions {
    patient(fake, prefix).set("archive.flush.min.interval.ms", 0)
}

/// Options with which a flush waits for the one before.
fn patient(fake: &S3Fake, prefix: &str) -> BrokerOptions {
    let options = BrokerOptions::on(fake.store_url(prefix)).env(fake.env());
    // The same broker each time: another one would wait before it takes the dead one's log.
    options
        .set("node.id", 1)
        .set("merge.interval.ms", 1_000)
        .set("request.budget.per.second", 0)
}

fn flush_with(at: SocketAddr, topic: &str, more: &[&str]) -> Output {
    let bootstrap = at.to_string();
    let arguments = [&["archive", "flush", topic, "--bootstrap", &bootstrap][..], more].concat();
    broker::run(&arguments, &[], PATIENCE)
}

fn flush(broker: &Broker, topic: &str) {
    let done = flush_with(broker.address(), topic, &[]);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}\n{}", broker.log_tail());
}

/// Keys of the files of history.
fn files(fake: &S3Fake, prefix: &str) -> Vec<String> {
    let below = fake.objects(&format!("{prefix}/archive/"));
    below.into_iter().map(|(key, _)| key).collect()
}

/// Values that do not compress, so that pages fill up.
fn noise(random: &mut StdRng, count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut one = || {
        let mut value = vec![0; bytes];
        random.fill_bytes(&mut value);
        value
    };
    (0..count).map(|_| one()).collect()
}

#[test]
fn a_kill_between_upload_and_publication_loses_and_repeats_nothing() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut broker = Broker::start(options(&fake, "kill"));
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    let mut producer = IdempotentProducer::new(broker.address(), "t", 0).unwrap();
    for n in 0..20 {
        let values = (0..50).map(|i| format!("value {n} {i}").into_bytes()).collect();
        producer.send(now_ms(), values, PATIENCE).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    // Nothing is published any more from the moment that a file is there.
    let asked = flush_with(broker.address(), "t", &["--timeout", "0"]);
    assert!(asked.status.success(), "{asked:?}");
    broker::until("a file is written", PATIENCE, || {
        let written = !files(&fake, "kill").is_empty();
        if written {
            fake.set_fault_texts(&["kind=put,key=wal/,do=hang"]);
        }
        written
    });
    std::thread::sleep(Duration::from_millis(300));
    broker.kill_9();
    fake.set_faults(vec![]);
    broker.launch();
    let all = |broker: &Broker| read_all(broker.address(), "t", 0, PATIENCE).unwrap();
    check_exact(&all(&broker), &[producer.acknowledged()]).unwrap();
    flush(&broker, "t");
    broker.restart();
    check_exact(&all(&broker), &[producer.acknowledged()]).unwrap();
}

#[test]
fn kills_at_any_moment_of_archiving_lose_and_repeat_nothing() {
    let seed = std::env::var("ALLUVIUM_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("ALLUVIUM_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let fake = S3Fake::start(Options::default()).unwrap();
    fake.set_latencies("put=10/40,get=5/20".parse().unwrap());
    let options = options(&fake, "kills")
        .set("archive.interval.ms", 500)
        .set("archive.file.bytes", 65_536);
    let mut broker = Broker::start(options);
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 3, &[]).unwrap();
    let mut producers: Vec<_> = (0..3)
        .map(|p| IdempotentProducer::new(broker.address(), "t", p).unwrap())
        .collect();
    for round in 0..8 {
        for producer in &mut producers {
            for n in 0..5 {
                let mut values = noise(&mut random, 4, 3_000);
                values.push(format!("{round} {n}").into_bytes());
                producer.send(now_ms(), values, PATIENCE).unwrap();
            }
            producer.flush(PATIENCE).unwrap();
        }
        let asked = flush_with(broker.address(), "t", &["--timeout", "0"]);
        assert!(asked.status.success(), "{asked:?}");
        std::thread::sleep(Duration::from_millis(random.random_range(0..2_500)));
        broker.restart();
    }
    let check = |broker: &Broker| {
        for (partition, producer) in producers.iter().enumerate() {
            let found = read_all(broker.address(), "t", partition as i32, PATIENCE).unwrap();
            check_exact(&found, &[producer.acknowledged()])
                .unwrap_or_else(|e| panic!("{e}\n{}", broker.log_tail()));
        }
    };
    check(&broker);
    flush(&broker, "t");
    check(&broker);
    broker.restart();
    check(&broker);
    assert!(files(&fake, "kills").len() >= 2, "several files were written");
}

#[test]
fn a_damaged_or_missing_file_hurts_only_who_reads_it_and_is_named() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut broker = Broker::start(options(&fake, "hurt"));
    let mut client = Client::connect(broker.address()).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut produced: BTreeMap<(&str, i32), Vec<Vec<u8>>> = BTreeMap::new();
    for (topic, partitions) in [("hurt", 3), ("whole", 1)] {
        kafka::create_topic(&mut client, topic, partitions, &[]).unwrap();
        for partition in 0..partitions {
            // So much that no page is shared by two partitions' middles.
            for _ in 0..8 {
                let values = noise(&mut random, 10, 4_000);
                let records = batch(now_ms(), Producer::NONE, &values);
                assert_eq!(
                    kafka::produce(&mut client, topic, partition, records).unwrap().0,
                    0
                );
                produced.entry((topic, partition)).or_default().extend(values);
            }
        }
        flush(&broker, topic);
    }
    let of_hurt: Vec<_> = files(&fake, "hurt")
        .into_iter()
        .filter(|key| key.contains("topic=hurt-"))
        .collect();
    let [key] = &of_hurt[..] else {
        panic!("one file is expected, not {of_hurt:?}")
    };
    let good = fake.get(key).unwrap();
    let name = key.strip_prefix("hurt/").unwrap();
    let whole = |broker: &Broker, topic: &'static str, partition| {
        let found = read_all(broker.address(), topic, partition, PATIENCE).unwrap();
        let found: Vec<_> = found.into_iter().map(|r| r.value.to_vec()).collect();
        assert!(
            found == produced[&(topic, partition)],
            "{topic}-{partition} is not as it was"
        );
    };
    let in_the_middle = |part: f64| {
        let mut bad = good.to_vec();
        let at = (bad.len() as f64 * part) as usize;
        bad[at] ^= 0x10;
        bad
    };
    let footer = {
        let mut bad = good.to_vec();
        let at = bad.len() - 40;
        bad[at] ^= 1;
        bad
    };
    // Each start has forgotten what it once read.
    for (what, content, others) in [
        ("a page", Some(in_the_middle(1.0 / 6.0)), true),
        ("the footer", Some(footer), false),
        ("half of it", Some(good[..good.len() / 2].to_vec()), false),
        ("nothing", None, false),
    ] {
        match content {
            Some(bytes) => fake.put_raw(key, bytes).unwrap(),
            None => assert!(fake.remove(key)),
        }
        broker.restart();
        let (found, _) = read_first_error(&broker, "hurt", 0);
        assert_eq!(found, code::CORRUPT_MESSAGE, "{what}: {}", broker.log_tail());
        let log = broker.log();
        let told = log
            .lines()
            .any(|line| line.contains(name) && line.contains("ERROR"));
        assert!(told, "{what}: {name} is not named\n{}", broker.log_tail());
        whole(&broker, "whole", 0);
        if others {
            whole(&broker, "hurt", 2);
        }
        assert!(!broker.log().contains("panicked"), "{}", broker.log_tail());
    }
    // What an operator puts back is served again.
    fake.put_raw(key, good.to_vec()).unwrap();
    broker.restart();
    for partition in 0..3 {
        whole(&broker, "hurt", partition);
    }
}

/// Reads on until there is an error or the end: the code of the error, and how far it came.
fn read_first_error(broker: &Broker, topic: &str, partition: i32) -> (i16, i64) {
    let mut client = Client::connect(broker.address()).unwrap();
    let end = kafka::end_offset(&mut client, topic, partition).unwrap();
    let mut next = 0;
    while next < end {
        let (code, bytes) =
            kafka::fetch(&mut client, topic, partition, next, Duration::from_secs(1)).unwrap();
        if code != code::NONE {
            return (code, next);
        }
        let records = alluvium_tests::batches::read(&bytes).unwrap();
        next = records.last().map_or(next, |record| record.offset + 1);
    }
    (code::NONE, next)
}

fn delete_records(client: &mut Client, topic: &str, before: i64) {
    let mut of_partition = DeleteRecordsPartition::default();
    of_partition.partition_index = 0;
    of_partition.offset = before;
    let mut of_topic = DeleteRecordsTopic::default();
    of_topic.name = topic.into();
    of_topic.partitions = vec![of_partition];
    let mut request = DeleteRecordsRequest::default();
    request.topics = vec![of_topic];
    request.timeout_ms = 30_000;
    let answer = client.call(&request, 1).unwrap();
    assert_eq!(answer.topics[0].partitions[0].error_code, code::NONE);
}

/// One record of so many headers of two bytes, compressed: a few KB that become gigabytes if each header is kept.
fn header_bomb(headers: usize) -> Vec<u8> {
    // Attributes, timestamp, offset, no key, an empty value.
    let mut body = vec![0, 0, 0, 1, 0];
    varint(&mut body, headers as i64);
    // Of each header an empty key and an empty value.
    body.resize(body.len() + 2 * headers, 0);
    let mut record = Vec::new();
    varint(&mut record, body.len() as i64);
    record.append(&mut body);
    const ZSTD: u16 = 4;
    let compressed = Codec::Zstd.compress(&record).unwrap();
    batch_of(now_ms(), Producer::NONE, ZSTD, 1, &compressed)
}

#[test]
fn a_batch_that_would_become_gigabytes_stays_where_it_is() {
    const MIB: u64 = 1024 * 1024;
    let fake = S3Fake::start(Options::default()).unwrap();
    let broker = Broker::start(options(&fake, "bomb"));
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 2, &[]).unwrap();
    let good = |text: &str| batch(now_ms(), Producer::NONE, &[text.as_bytes().to_vec()]);
    let bomb = header_bomb(60_000_000);
    assert!(bomb.len() < 100_000, "{} bytes", bomb.len());
    for records in [good("before"), bomb.clone(), good("behind")] {
        assert_eq!(kafka::produce(&mut client, "t", 0, records).unwrap().0, 0);
    }
    assert_eq!(kafka::produce(&mut client, "t", 1, good("beside")).unwrap().0, 0);
    let before = broker.rss_bytes_max().unwrap();
    let done = flush_with(broker.address(), "t", &[]);
    let line = String::from_utf8(done.stderr).unwrap();
    assert!(
        done.status.code() == Some(1) && line.contains("not everything can be archived"),
        "{line}"
    );
    let after = broker.rss_bytes_max().unwrap();
    println!(
        "{} bytes, at {} and {} MiB",
        bomb.len(),
        before / MIB,
        after / MIB
    );
    // The records are opened, 115 MiB of them, and then not followed.
    assert!(after < before + 512 * MIB, "from {before} to {after} bytes");
    assert_eq!(broker.metric("alluvium_log_unarchivable_ranges_total"), Some(1.0));
    let log = broker.log();
    let told = log.lines().find(|line| line.contains("cannot be archived"));
    assert!(
        told.is_some_and(|line| line.contains("ERROR") && line.contains("offset=0")),
        "{log}"
    );
    assert_eq!(files(&fake, "bomb").len(), 1, "what is beside it is archived");
    // Consumers get it as it was.
    let (error, bytes) = kafka::fetch(&mut client, "t", 0, 1, Duration::from_secs(1)).unwrap();
    assert_eq!(error, code::NONE);
    assert!(
        bytes[field::CRC..bomb.len()] == bomb[field::CRC..],
        "byte for byte"
    );
    assert_eq!(kafka::end_offset(&mut client, "t", 0).unwrap(), 3);
    assert_eq!(read_all(broker.address(), "t", 1, PATIENCE).unwrap().len(), 1);
}

#[test]
fn a_reader_in_a_file_that_is_deleted_reads_on_or_hears_that_it_is_out_of_range() {
    const OFFSET_OUT_OF_RANGE: i16 = 1;
    let fake = S3Fake::start(Options::default()).unwrap();
    let options = options(&fake, "reader").set("log.segment.delete.delay.ms", 1_000);
    let broker = Broker::start(options);
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let mut values = vec![];
    for _ in 0..40 {
        let some = noise(&mut random, 20, 5_000);
        let records = batch(now_ms(), Producer::NONE, &some);
        assert_eq!(kafka::produce(&mut client, "t", 0, records).unwrap().0, 0);
        values.extend(some);
    }
    flush(&broker, "t");
    let end = values.len() as i64;
    let mut next = 0;
    let mut out_of_range = false;
    while next < end && !out_of_range {
        if next >= end / 2 {
            delete_records(&mut client, "t", end - 1);
        }
        let (code, bytes) = kafka::fetch(&mut client, "t", 0, next, Duration::from_secs(1)).unwrap();
        match code {
            code::NONE => {
                for record in alluvium_tests::batches::read(&bytes).unwrap() {
                    assert!(
                        record.value == values[record.offset as usize],
                        "offset {}",
                        record.offset
                    );
                    next = record.offset + 1;
                }
            }
            OFFSET_OUT_OF_RANGE => out_of_range = true,
            other => panic!("error {other} at {next}\n{}", broker.log_tail()),
        }
    }
    delete_records(&mut client, "t", end);
    let (code, bytes) = kafka::fetch(&mut client, "t", 0, 0, Duration::from_secs(1)).unwrap();
    assert_eq!((code, bytes.len()), (OFFSET_OUT_OF_RANGE, 0));
    assert_eq!(kafka::list_offset(&mut client, "t", 0, -2).unwrap(), end);
    assert!(!broker.log().contains("ERROR"), "{}", broker.log_tail());
}

/// One record for each of these partitions, in one request; returns the bytes of the batches.
fn produce_to_each(client: &mut Client, partitions: &[i32], value: &dyn Fn(i32) -> Vec<u8>) -> u64 {
    let of_partition = |partition: &i32| {
        let mut data = PartitionProduceData::default();
        data.index = *partition;
        data.records = Some(batch(now_ms(), Producer::NONE, &[value(*partition)]).into());
        data
    };
    let data: Vec<_> = partitions.iter().map(of_partition).collect();
    let bytes = data
        .iter()
        .filter_map(|one| one.records.as_ref())
        .map(|b| b.len() as u64)
        .sum();
    let mut request = kafka::produce_request("t", 0, Vec::new());
    request.topic_data[0].partition_data = data;
    let answer = client.call(&request, kafka::PRODUCE_VERSION).unwrap();
    let answered = &answer.responses[0].partition_responses;
    assert_eq!(answered.len(), partitions.len());
    assert!(
        answered.iter().all(|one| one.error_code == code::NONE),
        "{answered:?}"
    );
    bytes
}

#[test]
fn many_small_partitions_share_files_and_requests() {
    const PARTITIONS: i32 = 10_000;
    /// A file takes so many.
    const OF_A_FILE: usize = 1_000;
    const GIB: u64 = 1 << 30;
    let began = Instant::now();
    let fake = S3Fake::start(Options::default()).unwrap();
    let broker = Broker::start(options(&fake, "many"));
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", PARTITIONS, &[]).unwrap();
    let noise = noise(&mut StdRng::seed_from_u64(11), 1, 4_000).remove(0);
    let value = |partition: i32| [format!("value {partition} ").as_bytes(), &noise[..]].concat();
    let requests = |what: &str, bytes: u64| {
        let counts = fake.counts();
        let (puts, gets) = (counts.of(Kind::Put).requests, counts.of(Kind::Get).requests);
        let per_gib = (puts + gets) * GIB / bytes;
        println!(
            "{what}: {puts} PUT and {gets} GET, {per_gib} requests per GiB, after {:?}",
            began.elapsed()
        );
        fake.reset_counts();
        (puts + gets, per_gib)
    };
    fake.reset_counts();
    let partitions: Vec<i32> = (0..PARTITIONS).collect();
    let some = partitions.chunks(OF_A_FILE);
    let bytes: u64 = some.map(|some| produce_to_each(&mut client, some, &value)).sum();
    broker::until("all is merged", PATIENCE, || {
        let merged = broker.metric("alluvium_log_merged_bytes_total");
        merged >= Some(bytes as f64) && broker.metric("alluvium_log_unmerged_bytes") == Some(0.0)
    });
    let (written, _) = requests("produced and merged", bytes);
    flush(&broker, "t");
    let count = files(&fake, "many").len();
    let (archived, per_gib) = requests("archived", bytes);
    println!("{PARTITIONS} partitions of one record, {bytes} bytes: {count} files");
    // A file or a request for each partition would be 10,000.
    assert!(count <= partitions.len() / OF_A_FILE + 2, "{count} files");
    assert!(written < 200, "{written} requests");
    assert!(archived < 200 && per_gib < 6_000, "{archived} requests");
    for partition in (0..PARTITIONS).step_by(497) {
        let found = read_all(broker.address(), "t", partition, PATIENCE).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].value == value(partition), "partition {partition}");
    }
    println!("all in {:?}", began.elapsed());
}

#[test]
fn a_flush_in_a_loop_makes_few_files_and_waits() {
    const APART_MS: u64 = 3_000;
    let fake = S3Fake::start(Options::default()).unwrap();
    let broker = Broker::start(patient(&fake, "loop").set("archive.flush.min.interval.ms", APART_MS));
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    let begun = Instant::now();
    for round in 0..3 {
        let records = batch(now_ms(), Producer::NONE, &[format!("value {round}").into_bytes()]);
        assert_eq!(kafka::produce(&mut client, "t", 0, records).unwrap().0, 0);
        if round > 0 {
            // Asked for twice, it is done once.
            let done = flush_with(broker.address(), "t", &["--timeout", "0"]);
            assert!(done.status.success(), "{done:?}");
        }
        flush(&broker, "t");
        assert_eq!(files(&fake, "loop").len(), round + 1);
        let least = Duration::from_millis(APART_MS * round as u64);
        assert!(
            begun.elapsed() >= least,
            "{:?} after round {round}",
            begun.elapsed()
        );
    }
}

#[test]
fn flush_says_what_is_wrong_and_what_to_do() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut broker = Broker::start(options(&fake, "words"));
    let mut client = Client::connect(broker.address()).unwrap();
    for (topic, configs) in [
        ("plain", &[][..]),
        ("empty", &[]),
        ("compacted", &[("cleanup.policy", "compact")]),
        ("off", &[("archive.enable", "false")]),
    ] {
        kafka::create_topic(&mut client, topic, 2, configs).unwrap();
    }
    let records = batch(now_ms(), Producer::NONE, &[b"one".to_vec()]);
    assert_eq!(kafka::produce(&mut client, "plain", 1, records).unwrap().0, 0);
    let at = broker.address();
    let said = |topic: &str, more: &[&str]| {
        let done = flush_with(at, topic, more);
        let lines = [&done.stdout[..], &done.stderr].concat();
        (done.status.code().unwrap(), String::from_utf8(lines).unwrap())
    };
    for (topic, part) in [
        ("none", "there is no topic 'none'"),
        ("compacted", "set cleanup.policy=delete"),
        ("off", "--add-config archive.enable=true"),
        ("bad name", "no valid"),
    ] {
        let (code, line) = said(topic, &[]);
        assert!(code == 1 && line.lines().count() == 1, "{topic}: {code} {line}");
        assert!(part == "no valid" || line.contains(part), "{topic}: {line}");
    }
    let (code, line) = said("empty", &[]);
    assert!(code == 0 && line.contains("nothing to archive"), "{line}");
    let (code, line) = said("plain", &[]);
    assert!(
        code == 0 && line.contains("1 record in 2 partitions is Parquet"),
        "{line}"
    );
    assert!(line.contains("/archive/topic=plain-"), "{line}");
    // What it is sent that is no request of its own closes the connection, and nothing else.
    let mut raw = Client::connect(at).unwrap();
    raw.send_raw(&[0, 0, 0, 12, 0x7d, 1, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 9, 9])
        .unwrap();
    assert!(raw.closes_within(Duration::from_secs(5)));
    // The store takes nothing: it is told when the time is over.
    fake.set_fault_texts(&["kind=put,key=archive/,do=503"]);
    let records = batch(now_ms(), Producer::NONE, &[b"two".to_vec()]);
    assert_eq!(kafka::produce(&mut client, "plain", 0, records).unwrap().0, 0);
    let (code, line) = said("plain", &["--timeout", "2"]);
    assert!(
        code == 1 && line.contains("not archived within 2 s: 1 of 2 records are Parquet"),
        "{line}"
    );
    fake.set_faults(vec![]);
    broker.kill_9();
    let (code, line) = said("plain", &[]);
    assert!(
        code == 1 && line.contains("--bootstrap must name a running broker"),
        "{line}"
    );
}
