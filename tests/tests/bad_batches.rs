//! Batches that Kafka refuses: Kafka's own error code, nothing appended, the connection stays.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Write;

use alluvium_tests::batches::{
    Producer, batch, batch_of, field, keyed_record, now_ms, old_message, patched, record,
};
use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::kafka::{self, code, produce_request};
use alluvium_tests::wire::Client;
use kafka_wire::produce_request::PartitionProduceData;

const MIB: u64 = 1024 * 1024;

fn plain(values: &[&str]) -> Vec<u8> {
    let values: Vec<Vec<u8>> = values.iter().map(|value| value.as_bytes().to_vec()).collect();
    batch(now_ms(), Producer::NONE, &values)
}

struct Fixture {
    broker: Broker,
    client: Client,
    topic: &'static str,
    end: i64,
}

impl Fixture {
    fn start(topic: &'static str, configs: &[(&str, &str)]) -> Fixture {
        let broker = Broker::start(BrokerOptions::embedded().set("memory.budget.bytes", 128 * MIB));
        let mut client = Client::connect(broker.address()).unwrap();
        kafka::create_topic(&mut client, topic, 2, configs).unwrap();
        Fixture {
            broker,
            client,
            topic,
            end: 0,
        }
    }

    /// The batch is refused with one of these codes and leaves no trace.
    fn refuses(&mut self, what: &str, records: Vec<u8>, codes: &[i16]) {
        let (code, _) = kafka::produce(&mut self.client, self.topic, 0, records)
            .unwrap_or_else(|error| panic!("{what}: the connection is lost: {error}"));
        assert!(
            codes.contains(&code),
            "{what}: error {code}, expected one of {codes:?}"
        );
        self.unchanged(what);
    }

    fn unchanged(&mut self, what: &str) {
        let end = kafka::end_offset(&mut self.client, self.topic, 0).unwrap();
        assert_eq!(end, self.end, "{what} moved the end of the log");
    }

    fn takes(&mut self, what: &str, records: Vec<u8>) -> i64 {
        let (code, offset) = kafka::produce(&mut self.client, self.topic, 0, records).unwrap();
        assert_eq!(code, code::NONE, "{what}");
        self.end = kafka::end_offset(&mut self.client, self.topic, 0).unwrap();
        offset
    }
}

const BROKEN: &[i16] = &[code::CORRUPT_MESSAGE, code::INVALID_RECORD];

#[test]
fn broken_batches_are_refused() {
    let mut fixture = Fixture::start("broken", &[]);
    assert_eq!(fixture.takes("a good batch", plain(&["a", "b", "c"])), 0);
    let good = || plain(&["a", "b", "c"]);
    let int = |value: i32| value.to_be_bytes();

    let mut flipped = good();
    flipped[field::RECORDS + 3] ^= 1;
    fixture.refuses("a flipped bit in the records", flipped, &[code::CORRUPT_MESSAGE]);
    let mut flipped = good();
    flipped[field::MAX_TIMESTAMP + 7] ^= 1;
    fixture.refuses("a flipped bit in the header", flipped, &[code::CORRUPT_MESSAGE]);
    let mut flipped = good();
    flipped[field::CRC] ^= 0x80;
    fixture.refuses("a wrong CRC", flipped, &[code::CORRUPT_MESSAGE]);

    for cut in [
        1,
        30,
        good().len() - field::RECORDS,
        good().len() - 12,
        good().len() - 1,
    ] {
        let mut short = good();
        short.truncate(good().len() - cut);
        fixture.refuses(&format!("a batch without its last {cut} bytes"), short, BROKEN);
    }
    for length in [0, -1, 48, 10_000, i32::MAX, i32::MIN] {
        let mut wrong = good();
        wrong[field::LENGTH..field::LENGTH + 4].copy_from_slice(&int(length));
        fixture.refuses(&format!("a batch length of {length}"), wrong, BROKEN);
    }
    for count in [0, -1, 1, 4, i32::MAX, i32::MIN] {
        let wrong = patched(good(), field::RECORD_COUNT, &int(count));
        fixture.refuses(&format!("a record count of {count} for 3"), wrong, BROKEN);
        let both = patched(
            wrong_count(count),
            field::LAST_OFFSET_DELTA,
            &int(count.wrapping_sub(1)),
        );
        fixture.refuses(
            &format!("a record count and last offset of {count} for 3"),
            both,
            BROKEN,
        );
    }
    for delta in [-1, 0, 1, 3, i32::MAX] {
        let wrong = patched(good(), field::LAST_OFFSET_DELTA, &int(delta));
        fixture.refuses(
            &format!("a last offset delta of {delta} for 3 records"),
            wrong,
            BROKEN,
        );
    }
    let mut trailing = good();
    trailing.extend_from_slice(&[0; 5]);
    let length = trailing.len() as i32 - 12;
    fixture.refuses(
        "bytes after the last record",
        patched(trailing, field::LENGTH, &int(length)),
        BROKEN,
    );
    fixture.refuses("two batches", [good(), good()].concat(), &[code::INVALID_RECORD]);
    fixture.refuses("no batch", Vec::new(), BROKEN);
    let control = patched(good(), field::ATTRIBUTES, &0x20u16.to_be_bytes());
    fixture.refuses("a control batch", control, &[code::INVALID_RECORD]);
    let future = batch(now_ms() + 48 * 3_600_000, Producer::NONE, &[b"future".to_vec()]);
    fixture.refuses(
        "a record of the day after tomorrow",
        future,
        &[code::INVALID_TIMESTAMP],
    );

    assert_eq!(fixture.takes("a good batch after all of these", good()), 3);
    assert!(fixture.broker.exited().is_none());
}

fn wrong_count(count: i32) -> Vec<u8> {
    patched(plain(&["a", "b", "c"]), field::RECORD_COUNT, &count.to_be_bytes())
}

#[test]
fn broken_records_are_refused() {
    let mut fixture = Fixture::start("records", &[]);
    let of = |count: i32, records: &[u8]| batch_of(now_ms(), Producer::NONE, 0, count, records);
    let mut one = Vec::new();
    record(&mut one, 0, b"value");
    fixture.takes("a good record", of(1, &one));

    let mut long = one.clone();
    long[0] += 2;
    fixture.refuses("a record length past the end", of(1, &long), BROKEN);
    let mut short = one.clone();
    short[0] -= 2;
    fixture.refuses("a record length inside the record", of(1, &short), BROKEN);
    fixture.refuses("a varint without an end", of(1, &[0xff; 20]), BROKEN);
    // Length, attributes, timestamp, offset, no key, and a value of 2^30 bytes.
    let mut huge = vec![0, 0, 0, 1];
    alluvium_tests::batches::varint(&mut huge, 1 << 30);
    huge.push(0);
    let mut framed = Vec::new();
    alluvium_tests::batches::varint(&mut framed, huge.len() as i64);
    framed.extend_from_slice(&huge);
    fixture.refuses("a value of 2^30 bytes in a record of 10", of(1, &framed), BROKEN);
    let mut headers = vec![0, 0, 0, 1, 1];
    alluvium_tests::batches::varint(&mut headers, i64::from(i32::MAX));
    let mut framed = Vec::new();
    alluvium_tests::batches::varint(&mut framed, headers.len() as i64);
    framed.extend_from_slice(&headers);
    fixture.refuses("2^31 - 1 headers in a record of 10 bytes", of(1, &framed), BROKEN);
    let mut offsets = Vec::new();
    record(&mut offsets, 0, b"a");
    record(&mut offsets, 5, b"b");
    fixture.refuses("records with a gap in their offsets", of(2, &offsets), BROKEN);
    let mut negative = Vec::new();
    record(&mut negative, -1, b"a");
    fixture.refuses("a record before its batch", of(1, &negative), BROKEN);
    fixture.takes("a good record after all of these", of(1, &one));
}

#[test]
fn old_formats_and_codecs_are_refused() {
    let mut fixture = Fixture::start("old", &[]);
    for magic in [0, 1] {
        let old = [code::INVALID_RECORD, code::UNSUPPORTED_FOR_MESSAGE_FORMAT];
        fixture.refuses(
            &format!("a message of format {magic}"),
            old_message(magic, b"old"),
            &old,
        );
    }
    for magic in [3u8, 127, 255] {
        let wrong = patched(plain(&["a"]), field::MAGIC, &[magic]);
        fixture.refuses(&format!("a batch of format {magic}"), wrong, &[2, 43, 87]);
    }
    for codec in 5..8u16 {
        let wrong = patched(plain(&["a"]), field::ATTRIBUTES, &codec.to_be_bytes());
        fixture.refuses(&format!("codec {codec}"), wrong, &[2, 76, 87]);
    }
    // Clients of these versions cannot know zstd.
    let zstd = patched(plain(&["a"]), field::ATTRIBUTES, &4u16.to_be_bytes());
    let response = fixture.client.call(&produce_request("old", 0, zstd), 6).unwrap();
    assert_eq!(
        kafka::produced(&response).unwrap().0,
        code::UNSUPPORTED_COMPRESSION_TYPE
    );
    fixture.unchanged("zstd by an old client");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gzip of so many bytes of zeros, made without holding them.
fn gzip_bomb(mut bytes: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    let zeros = vec![0; 1024 * 1024];
    while bytes > 0 {
        let part = bytes.min(zeros.len());
        encoder.write_all(&zeros[..part]).unwrap();
        bytes -= part;
    }
    encoder.finish().unwrap()
}

#[test]
fn bombs_are_refused_where_batches_are_opened() {
    let mut fixture = Fixture::start("compacted", &[("cleanup.policy", "compact")]);
    let of = |codec, count, records: &[u8]| batch_of(now_ms(), Producer::NONE, codec, count, records);
    let mut keyed = Vec::new();
    keyed_record(&mut keyed, 0, Some(b"key"), b"value");
    fixture.takes("a keyed record", of(0, 1, &keyed));
    fixture.takes("a compressed keyed record", of(1, 1, &gzip(&keyed)));
    let mut keyless = Vec::new();
    record(&mut keyless, 0, b"value");
    fixture.refuses(
        "a record without a key",
        of(0, 1, &keyless),
        &[code::INVALID_RECORD],
    );
    fixture.refuses(
        "a compressed record without a key",
        of(1, 1, &gzip(&keyless)),
        &[code::INVALID_RECORD],
    );

    let refused = &[
        code::CORRUPT_MESSAGE,
        code::MESSAGE_TOO_LARGE,
        code::INVALID_RECORD,
    ];
    for codec in 1..5 {
        fixture.refuses(
            &format!("noise as codec {codec}"),
            of(codec, 1, &[0xa5; 300]),
            BROKEN,
        );
        fixture.refuses(&format!("nothing as codec {codec}"), of(codec, 1, &[]), BROKEN);
    }
    fixture.refuses("a cut gzip stream", of(1, 1, &gzip(&keyed)[..20]), BROKEN);
    let before = fixture.broker.rss_bytes_max();
    // Below max.message.bytes, so that they are opened.
    let (small, bomb) = (gzip_bomb(200 * 1024 * 1024), gzip_bomb(900 * 1024 * 1024));
    assert!(bomb.len() < 1_000_000, "{} bytes", bomb.len());
    for _ in 0..5 {
        fixture.refuses("a bomb of 200 MiB", of(1, 1, &small), refused);
        fixture.refuses("a bomb of 900 MiB", of(1, 1, &bomb), refused);
    }
    // Many at once, which a limit on each batch does not bound.
    let address = fixture.broker.address();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let records = of(1, 1, &bomb);
            scope.spawn(move || {
                let mut client = Client::connect(address).unwrap();
                let (code, _) = kafka::produce(&mut client, "compacted", 0, records).unwrap();
                assert!(refused.contains(&code), "error {code}");
            });
        }
    });
    if let (Some(before), Some(after)) = (before, fixture.broker.rss_bytes_max()) {
        assert!(
            after < before + 384 * MIB,
            "memory grew from {before} to {after} bytes"
        );
    }
    fixture.takes("a keyed record after all of these", of(0, 1, &keyed));
}

#[test]
fn batches_above_the_limit_are_refused() {
    let mut fixture = Fixture::start("limited", &[("max.message.bytes", "10000")]);
    let of = |bytes: usize| batch(now_ms(), Producer::NONE, &[vec![b'x'; bytes]]);
    let overhead = of(9_000).len() - 9_000;
    fixture.takes("a batch of exactly the limit", of(10_000 - overhead));
    fixture.refuses(
        "a batch of a byte more",
        of(10_001 - overhead),
        &[code::MESSAGE_TOO_LARGE],
    );
    fixture.refuses("a much larger one", of(900_000), &[code::MESSAGE_TOO_LARGE]);
}

#[test]
fn sequences_are_kept() {
    let mut fixture = Fixture::start("sequences", &[]);
    let address = fixture.broker.address();
    let patience = std::time::Duration::from_secs(10);
    let mut router = kafka::Router::fixed(address, patience);
    let (id, epoch) = router.init_producer_id(patience).unwrap();
    let of = |epoch: i16, sequence: i32, count: usize| {
        let values: Vec<Vec<u8>> = (0..count)
            .map(|i| format!("{epoch}/{sequence}+{i}").into_bytes())
            .collect();
        batch(1_000, Producer { id, epoch, sequence }, &values)
    };
    assert_eq!(fixture.takes("sequence 0", of(epoch, 0, 3)), 0);
    fixture.refuses("a gap", of(epoch, 5, 1), &[code::OUT_OF_ORDER_SEQUENCE_NUMBER]);
    for (index, sequence) in (3..13).enumerate() {
        assert_eq!(
            fixture.takes("the next sequence", of(epoch, sequence, 1)),
            3 + index as i64
        );
    }
    // The last five batches are known: a repeat is answered with the first one's offset.
    for sequence in 8..13 {
        let end = fixture.end;
        assert_eq!(
            fixture.takes("a repeat", of(epoch, sequence, 1)),
            i64::from(sequence)
        );
        assert_eq!(fixture.end, end, "a repeat of {sequence} is not appended");
    }
    let forgotten = [
        code::DUPLICATE_SEQUENCE_NUMBER,
        code::OUT_OF_ORDER_SEQUENCE_NUMBER,
    ];
    fixture.refuses("a repeat of what is forgotten", of(epoch, 3, 1), &forgotten);
    fixture.refuses("a repeat with more records", of(epoch, 12, 2), &forgotten);
    fixture.refuses(
        "a gap after repeats",
        of(epoch, 20, 1),
        &[code::OUT_OF_ORDER_SEQUENCE_NUMBER],
    );

    assert_eq!(fixture.takes("a new epoch starts at 0", of(epoch + 1, 0, 1)), 13);
    fixture.refuses("the old epoch", of(epoch, 13, 1), &[code::INVALID_PRODUCER_EPOCH]);
    fixture.refuses(
        "a new epoch that starts late",
        of(epoch + 2, 1, 1),
        &[code::OUT_OF_ORDER_SEQUENCE_NUMBER],
    );
    // KIP-360: of a producer that is not known, any first sequence is taken.
    let unknown = batch(
        1_000,
        Producer {
            id: id + 1_000,
            epoch: 0,
            sequence: 500,
        },
        &[b"unknown".to_vec()],
    );
    assert_eq!(fixture.takes("an unknown producer", unknown), 14);
    let id = id + 2_000;
    let wrap = |sequence: i32, text: &str| {
        batch(
            1_000,
            Producer {
                id,
                epoch: 0,
                sequence,
            },
            &[text.into()],
        )
    };
    assert_eq!(fixture.takes("the last sequence", wrap(i32::MAX, "last")), 15);
    assert_eq!(fixture.takes("and around", wrap(0, "around")), 16);

    // The state survives a crash.
    fixture.broker.restart();
    fixture.client = Client::connect(address).unwrap();
    fixture.refuses(
        "a gap after a crash",
        wrap(2, "gap"),
        &[code::OUT_OF_ORDER_SEQUENCE_NUMBER],
    );
    assert_eq!(fixture.takes("a repeat after a crash", wrap(0, "around")), 16);
    assert_eq!(fixture.end, 17);
    assert_eq!(fixture.takes("the next after a crash", wrap(1, "next")), 17);
}

#[test]
fn a_bad_partition_leaves_the_others_alone() {
    let mut fixture = Fixture::start("mixed", &[]);
    let mut request = produce_request("mixed", 0, {
        let mut wrong = plain(&["wrong"]);
        wrong[field::CRC] ^= 1;
        wrong
    });
    for (index, records) in [(1, plain(&["right"])), (7, plain(&["nowhere"]))] {
        let mut data = PartitionProduceData::default();
        data.index = index;
        data.records = Some(records.into());
        request.topic_data[0].partition_data.push(data);
    }
    let response = fixture.client.call(&request, kafka::PRODUCE_VERSION).unwrap();
    let mut codes: Vec<(i32, i16)> = response.responses[0]
        .partition_responses
        .iter()
        .map(|p| (p.index, p.error_code))
        .collect();
    codes.sort_unstable();
    assert_eq!(
        codes,
        [
            (0, code::CORRUPT_MESSAGE),
            (1, code::NONE),
            (7, code::UNKNOWN_TOPIC_OR_PARTITION)
        ]
    );
    fixture.unchanged("a bad batch beside a good one");
    assert_eq!(kafka::end_offset(&mut fixture.client, "mixed", 1).unwrap(), 1);
}
