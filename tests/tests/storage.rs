//! What `docs/storage.md` says is true: a reader that knows nothing but that page (`tests/storage/read.py`) reads a bucket
//! that real brokers have written, with slots handed over and taken over, from segments, merged objects and Parquet, and
//! finds every record that was produced and no other.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alluvium_log::batch::BatchBuilder;
use alluvium_log::codec::Codec;
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::installed::{Missing, analytics_missing, root, target};
use alluvium_tests::kafka::{self, Router, code};
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use base64::Engine;
use kafka_wire::DeleteRecordsRequest;
use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "storage";
const BASE_MS: i64 = 1_700_000_000_000;

/// A record, and where it must be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Record {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp: i64,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, Option<String>)>,
}

/// The last line of the reader.
#[derive(Debug, Deserialize)]
struct Counts {
    records: usize,
    levels: [usize; 3],
    partitions: BTreeMap<String, [i64; 2]>,
}

fn text(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// What a topic is created with.
type Configs = &'static [(&'static str, &'static str)];

/// Topics, their partitions, and what they are created with.
const TOPICS: &[(&str, i32, Configs)] = &[
    ("mixed", 6, &[]),
    ("not.archived", 4, &[("archive.enable", "false")]),
    ("stamped", 1, &[("message.timestamp.type", "LogAppendTime")]),
    ("text", 2, &[("archive.value.type", "string")]),
];

/// Produces, finds leaders again when they move, and remembers what was acknowledged.
struct Producer {
    router: Router,
    produced: Vec<Record>,
}

impl Producer {
    fn round(&mut self, round: i64) {
        for (topic, partitions, _) in TOPICS {
            for partition in 0..*partitions {
                let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
                for (n, codec) in codecs.into_iter().enumerate() {
                    let seed = round * 1_000 + i64::from(partition) * 100 + n as i64 * 10;
                    self.batch(topic, partition, codec, seed);
                }
            }
        }
    }

    fn batch(&mut self, topic: &str, partition: i32, codec: Codec, seed: i64) {
        let mut builder = BatchBuilder::new();
        let mut records = vec![];
        for i in 0..5 {
            let key = format!("key {}", seed + i).into_bytes();
            let key = [Some(&key[..]), None, Some(b"")][(seed + i) as usize % 3];
            // One of each hundred is large; one is empty, and one is null.
            let value = match (seed + i) % 100 {
                7 => Some(vec![b'x'; 60_000]),
                14 => Some(vec![]),
                21 => None,
                _ => Some(format!("value é {}", seed + i).into_bytes()),
            };
            let headers: &[(&[u8], Option<&[u8]>)] = match i {
                0 => &[],
                1 => &[(b"a", Some(b"1"))],
                _ => &[(b"a", Some(b"1")), ("ü".as_bytes(), None), (b"a", Some(b""))],
            };
            let timestamp = BASE_MS + seed - i * 7;
            builder.push(timestamp, key, value.as_deref(), headers);
            records.push(Record {
                topic: topic.to_owned(),
                partition,
                offset: i,
                timestamp,
                key: key.map(text),
                value: value.as_deref().map(text),
                headers: headers.iter().map(|(k, v)| (text(k), v.map(text))).collect(),
            });
        }
        let bytes = builder.build_with(codec).unwrap().bytes().to_vec();
        let (base_offset, append_time) = self.send(topic, partition, &bytes);
        for mut record in records {
            record.offset += base_offset;
            if append_time >= 0 {
                record.timestamp = append_time;
            }
            self.produced.push(record);
        }
    }

    /// Base offset and, if the broker gives one, the time of the append.
    fn send(&mut self, topic: &str, partition: i32, bytes: &[u8]) -> (i64, i64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = kafka::produce_request(topic, partition, bytes.to_vec());
            let answer = self.router.leader(topic, partition).and_then(|leader| {
                let mut client = self.router.connect(leader)?;
                client.call(&request, kafka::PRODUCE_VERSION)
            });
            let answered = answer.map(|answer| answer.responses[0].partition_responses[0].clone());
            match answered {
                Ok(one) if one.error_code == code::NONE => {
                    return (one.base_offset, one.log_append_time_ms);
                }
                other => assert!(Instant::now() < deadline, "{topic}-{partition}: {other:?}"),
            }
            self.router.forget();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves the log start of a partition.
    fn delete(&mut self, topic: &str, partition: i32, before: i64) {
        let mut of_partition = DeleteRecordsPartition::default();
        of_partition.partition_index = partition;
        of_partition.offset = before;
        let mut of_topic = DeleteRecordsTopic::default();
        of_topic.name = topic.into();
        of_topic.partitions = vec![of_partition];
        let mut request = DeleteRecordsRequest::default();
        request.topics = vec![of_topic];
        request.timeout_ms = 30_000;
        let leader = self.router.leader(topic, partition).unwrap();
        let answer = Client::connect(leader).unwrap().call(&request, 1).unwrap();
        assert_eq!(answer.topics[0].partitions[0].error_code, code::NONE);
        self.produced
            .retain(|r| r.topic != topic || r.partition != partition || r.offset >= before);
    }
}

fn start(fake: &S3Fake, node_id: i32) -> Broker {
    let options = BrokerOptions::on(fake.store_url(PREFIX)).env(fake.env());
    let options = options.set("node.id", node_id).set("merge.interval.ms", 1_000);
    // The records are of 2023.
    Broker::start(options.set("log.retention.ms", -1))
}

fn flush(at: SocketAddr, topic: &str) {
    let bootstrap = at.to_string();
    let done = broker::run(
        &["archive", "flush", topic, "--bootstrap", &bootstrap],
        &[],
        PATIENCE,
    );
    let (said, errors) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{said}{errors}");
    assert!(said.contains("are Parquet"), "{said}");
}

/// Writes the objects of the store into a directory, as files.
fn copy(fake: &S3Fake, to: &Path) {
    for (key, _) in fake.objects(&format!("{PREFIX}/")) {
        let path = to.join(key.strip_prefix(PREFIX).unwrap().trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, fake.get(&key).unwrap()).unwrap();
    }
}

fn read(bucket: &Path) -> (Vec<(usize, Record)>, Counts) {
    #[derive(Deserialize)]
    struct Line {
        level: usize,
        #[serde(flatten)]
        record: Record,
    }
    let output = Command::new(target().join("clients/analytics/bin/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root().join("tests/storage/read.py"))
        .arg(bucket)
        .stdin(Stdio::null())
        .output()
        .expect("read.py runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    let (last, lines) = lines.split_last().expect("a line of counts");
    let parse = |line: &&str| -> Line { serde_json::from_str(line).unwrap() };
    let records = lines.iter().map(parse).map(|line| (line.level, line.record));
    (records.collect(), serde_json::from_str(last).unwrap())
}

#[test]
fn a_reader_that_knows_only_the_page_finds_every_record() {
    if !Missing::from_environment().goes_on(analytics_missing()) {
        return;
    }
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut first = start(&fake, 1);
    let mut client = Client::connect(first.address()).unwrap();
    for (topic, partitions, configs) in TOPICS {
        kafka::create_topic(&mut client, topic, *partitions, configs).unwrap();
    }
    let mut producer = Producer {
        router: Router::new(&[first.address()], Duration::from_secs(5)),
        produced: vec![],
    };
    producer.round(0);
    flush(first.address(), "mixed");
    // Some slots are handed over to the second broker.
    let mut second = start(&fake, 2);
    broker::until("the second broker leads something", PATIENCE, || {
        second
            .metric("alluvium_log_partitions")
            .is_some_and(|led| led > 0.0)
    });
    producer.router = Router::new(&[second.address(), first.address()], Duration::from_secs(5));
    producer.round(1);
    for topic in ["mixed", "text", "stamped"] {
        flush(first.address(), topic);
    }
    producer.delete("mixed", 1, 7);
    producer.delete("not.archived", 2, 3);
    // And then it takes over the rest.
    first.kill_9();
    producer.router = Router::new(&[second.address()], Duration::from_secs(5));
    producer.round(2);
    broker::until("something is merged", PATIENCE, || {
        second
            .metric("alluvium_log_unmerged_bytes")
            .is_some_and(|bytes| bytes == 0.0)
    });
    producer.round(3);
    second.terminate();

    let bucket = tempfile::tempdir().unwrap();
    copy(&fake, bucket.path());
    let (found, counts) = read(bucket.path());
    assert_eq!(counts.records, found.len());
    assert!(
        counts.levels.iter().all(|records| *records > 0),
        "each level was read: {counts:?}"
    );
    assert_eq!(counts.partitions["mixed/1"][0], 7, "{counts:?}");
    let ours = |topic: &str| TOPICS.iter().any(|(name, ..)| *name == topic);
    let mut found: Vec<(usize, Record)> = found.into_iter().filter(|(_, r)| ours(&r.topic)).collect();
    let place = |r: &Record| (r.topic.clone(), r.partition, r.offset);
    found.sort_by_key(|(_, r)| place(r));
    producer.produced.sort_by_key(place);
    for ((_, found), produced) in found.iter().zip(&producer.produced) {
        assert_eq!(found, produced);
    }
    assert_eq!(found.len(), producer.produced.len());
    for (level, record) in &found {
        let archived = record.topic != "not.archived";
        assert!(archived || *level < 2, "{record:?} is on level {level}");
    }
}
