//! Log compaction by the real binary: what a client that reads from the start finds of a compacted topic.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alluvium_log::batch::{Record, records};
use alluvium_tests::batches::{Producer, batch_of, now_ms, varint};
use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::kafka::{self, code};
use alluvium_tests::wire::Client;

const TOPIC: &str = "compacted";
const PATIENCE: Duration = Duration::from_secs(90);
const KEYS: usize = 20;
const ROUNDS: usize = 50;

fn keyed(records: &[(String, Option<String>)]) -> Vec<u8> {
    keyed_at(now_ms(), records)
}

/// An uncompressed batch of records with keys; no value deletes the key.
fn keyed_at(time_ms: i64, records: &[(String, Option<String>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (delta, (key, value)) in records.iter().enumerate() {
        let mut body = vec![0];
        varint(&mut body, 0);
        varint(&mut body, delta as i64);
        varint(&mut body, key.len() as i64);
        body.extend_from_slice(key.as_bytes());
        match value {
            None => varint(&mut body, -1),
            Some(value) => {
                varint(&mut body, value.len() as i64);
                body.extend_from_slice(value.as_bytes());
            }
        }
        varint(&mut body, 0);
        varint(&mut out, body.len() as i64);
        out.extend_from_slice(&body);
    }
    batch_of(time_ms, Producer::NONE, 0, records.len() as i32, &out)
}

type Row = (i64, String, Option<String>);

fn read(client: &mut Client) -> Vec<Row> {
    read_rows(client, 0)
}

/// Reads from an offset to the end, as a consumer does: by the last offset of each batch.
fn read_rows(client: &mut Client, from: i64) -> Vec<Row> {
    let end = kafka::end_offset(client, TOPIC, 0).unwrap();
    let (mut rows, mut next) = (Vec::new(), from);
    while next < end {
        let (error, mut bytes) = kafka::fetch(client, TOPIC, 0, next, Duration::from_millis(500)).unwrap();
        assert_eq!(error, code::NONE, "at {next}");
        let before = next;
        while bytes.len() >= 61 {
            let size = 12 + i32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
            if size > bytes.len() {
                break;
            }
            let batch = bytes.split_to(size);
            let base = i64::from_be_bytes(batch[..8].try_into().unwrap());
            let text = |b: &bytes::Bytes| String::from_utf8(b.to_vec()).unwrap();
            let row = |r: Record| (r.offset, text(&r.key.unwrap()), r.value.as_ref().map(text));
            let found = records(&batch, 1 << 24).unwrap().into_iter();
            rows.extend(found.filter(|r| r.offset >= next).map(row));
            next = base + i64::from(i32::from_be_bytes(batch[23..27].try_into().unwrap())) + 1;
        }
        assert!(next > before, "a consumer gets on at {next}");
    }
    rows
}

/// What was produced, by key: the newest offset and value.
#[derive(Default)]
struct Expected {
    newest: BTreeMap<String, (i64, Option<String>)>,
}

impl Expected {
    fn produce(&mut self, client: &mut Client, records: &[(String, Option<String>)]) {
        let (error, base) = kafka::produce(client, TOPIC, 0, keyed(records)).unwrap();
        assert_eq!(error, code::NONE);
        for (i, (key, value)) in records.iter().enumerate() {
            self.newest.insert(key.clone(), (base + i as i64, value.clone()));
        }
    }

    fn rows(&self, with_marks: bool) -> Vec<Row> {
        let rows = self
            .newest
            .iter()
            .map(|(key, (offset, value))| (*offset, key.clone(), value.clone()));
        let mut rows: Vec<Row> = rows.filter(|row| with_marks || row.2.is_some()).collect();
        rows.sort();
        rows
    }
}

#[test]
fn a_reader_from_the_start_finds_the_newest_of_each_key() {
    let options = BrokerOptions::embedded()
        .set("merge.interval.ms", 1_000)
        .set("log.cleaner.backoff.ms", 100);
    let mut broker = Broker::start(options);
    let mut client = Client::connect(broker.address()).unwrap();
    let configs = [
        ("cleanup.policy", "compact"),
        ("max.compaction.lag.ms", "1"),
        ("delete.retention.ms", "500"),
    ];
    kafka::create_topic(&mut client, TOPIC, 1, &configs).unwrap();
    let mut expected = Expected::default();
    for round in 0..ROUNDS {
        let keys = (0..KEYS).map(|key| (format!("key {key}"), Some(format!("{key} in {round}"))));
        let all: Vec<_> = keys.collect();
        for some in all.chunks(1 + round % 5) {
            expected.produce(&mut client, some);
        }
    }
    expected.produce(&mut client, &[("key 3".into(), None), ("key 4".into(), None)]);

    // Each tick gives compaction something new, after which the marks may go.
    let began = Instant::now();
    let mut marks_seen = false;
    loop {
        expected.produce(
            &mut client,
            &[("tick".into(), Some(format!("{:?}", began.elapsed())))],
        );
        let rows = read(&mut client);
        let newest: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.1.as_str(), row)).collect();
        for row in expected.rows(false) {
            assert_eq!(
                newest.get(row.1.as_str()),
                Some(&&row),
                "never less than the newest"
            );
        }
        let live: Vec<Row> = rows.iter().filter(|row| row.1 != "tick").cloned().collect();
        let expect = |with_marks| -> Vec<Row> {
            let rows = expected.rows(with_marks).into_iter();
            rows.filter(|row| row.1 != "tick").collect()
        };
        marks_seen |= live == expect(true);
        if live == expect(false) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{live:?}\n{}", broker.log_tail());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(marks_seen, "deletion marks stay for delete.retention.ms");
    println!("compacted after {:?}", began.elapsed());
    let removed = broker
        .metric("alluvium_compaction_removed_records_total")
        .unwrap();
    assert!(removed >= ((ROUNDS - 1) * KEYS) as f64, "{removed}");
    assert_eq!(
        broker.metric("alluvium_compaction_uncleanable_partitions"),
        Some(0.0)
    );

    // The same after a crash, and no offset is given twice.
    let end = kafka::end_offset(&mut client, TOPIC, 0).unwrap();
    broker.restart();
    let mut client = Client::connect(broker.address()).unwrap();
    assert_eq!(kafka::end_offset(&mut client, TOPIC, 0).unwrap(), end);
    let rows: Vec<Row> = read(&mut client)
        .into_iter()
        .filter(|row| row.1 != "tick")
        .collect();
    let live = expected.rows(false).into_iter().filter(|row| row.1 != "tick");
    assert_eq!(rows, live.collect::<Vec<_>>());
}

#[test]
fn what_is_compacted_and_deleted_keeps_the_newest_until_it_is_too_old() {
    const HOUR_MS: i64 = 3_600_000;
    /// Each makes a range of its own, in which there is no room even for an empty batch: retention takes whole ranges.
    const LARGE: usize = 1_048_480;
    let options = BrokerOptions::embedded()
        .set("merge.interval.ms", 1_000)
        .set("log.cleaner.backoff.ms", 100)
        .set("log.retention.check.interval.ms", 500);
    let mut broker = Broker::start(options);
    let mut client = Client::connect(broker.address()).unwrap();
    let configs = [
        ("cleanup.policy", "compact,delete"),
        ("max.compaction.lag.ms", "1"),
        ("retention.ms", "-1"),
    ];
    kafka::create_topic(&mut client, TOPIC, 1, &configs).unwrap();
    let mut expected = Expected::default();
    // The old ones are a mirror's: they are appended now. Where nothing is left of them retention must not wait for that.
    for (kind, age) in [("old", 2 * HOUR_MS), ("new", 0)] {
        for round in 0..2 {
            for n in 0..3 {
                let (key, value) = (format!("{kind} {n}"), format!("{round} {}", "x".repeat(LARGE)));
                let records = keyed_at(now_ms() - age, &[(key.clone(), Some(value.clone()))]);
                let (error, offset) = kafka::produce(&mut client, TOPIC, 0, records).unwrap();
                assert_eq!(error, code::NONE);
                expected.newest.insert(key, (offset, Some(value)));
            }
        }
    }
    let offsets = |rows: &[Row]| rows.iter().map(|row| row.0).collect::<Vec<_>>();
    let all = expected.rows(false);
    assert_eq!(offsets(&all), [3, 4, 5, 9, 10, 11]);
    // Compaction takes what is superseded, and nothing else: not by age either, while there is no limit.
    let until = |what: &str, broker: &Broker, holds: &mut dyn FnMut() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "{what}\n{}", broker.log_tail());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("compacted", &broker, &mut || {
        let rows = read(&mut client);
        let found = offsets(&rows);
        assert!(
            offsets(&all).iter().all(|offset| found.contains(offset)),
            "{found:?}"
        );
        rows == all
    });
    assert_eq!(kafka::list_offset(&mut client, TOPIC, 0, -2).unwrap(), 0);
    // Retention takes the old ones, the newest of their keys or not, and the log start moves there.
    kafka::alter_topic_config(&mut client, TOPIC, "retention.ms", &HOUR_MS.to_string()).unwrap();
    let young: Vec<Row> = all[3..].to_vec();
    let log_start = |client: &mut Client| kafka::list_offset(client, TOPIC, 0, -2).unwrap();
    until("too old", &broker, &mut || log_start(&mut client) >= 6);
    let start = log_start(&mut client);
    // The last old one may stand for the removed new ones behind it.
    assert!((6..=9).contains(&start), "{start}");
    assert_eq!(read_rows(&mut client, start), young);
    let (error, _) = kafka::fetch(&mut client, TOPIC, 0, start - 1, Duration::ZERO).unwrap();
    assert_eq!(error, 1, "out of range");
    // A crash changes neither, and both go on: a newer value makes the one before go.
    broker.restart();
    let mut client = Client::connect(broker.address()).unwrap();
    let after = log_start(&mut client);
    assert!((start..=9).contains(&after), "{after}");
    assert_eq!(read_rows(&mut client, after), young, "as before");
    let newer = keyed(&[("new 0".into(), Some("newer".into()))]);
    let (error, offset) = kafka::produce(&mut client, TOPIC, 0, newer).unwrap();
    assert_eq!((error, offset), (code::NONE, 12));
    until("compacted again", &broker, &mut || {
        let start = log_start(&mut client);
        let found = offsets(&read_rows(&mut client, start));
        found == [10, 11, 12]
    });
}
