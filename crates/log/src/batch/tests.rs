use proptest::prelude::*;

use super::*;

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const MIB: usize = 1 << 20;

/// Batches as Kafka's Java client (3.9.1) wrote them: three records, producer id 2^32 + 5, epoch 3, sequences from
/// `i32::MAX`, and then the same as its broker code appends it at offset 1000, epoch 8, with LogAppendTime.
mod java {
    pub(super) const NONE: &str = "000000000000000000000085ffffffff0231fe23aa0000000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff000000038401000000046b315e76616c75652d76616c75652d76616c75652d76616c75652d76616c75652d76616c75652d76616c75652d76616c75650602680276026801046832000e00cf0f020100000e00880e04000100";
    pub(super) const GZIP: &str = "000000000000000000000071ffffffff02ad880b1f0001000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff000000031f8b08000000000000ff6b6164606060c9368c2b4bcc294dd5259a6463ca602a63ca6064c93062e06338cfcf0434878fa1838f85819101004da4b2c454000000";
    pub(super) const SNAPPY: &str = "000000000000000000000076ffffffff020da3503c0002000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff0000000382534e415050590000000001000000010000003154388401000000046b315e76616c75652da206006c0602680276026801046832000e00cf0f020100000e00880e04000100";
    pub(super) const LZ4: &str = "000000000000000000000072ffffffff0271b5bfba0003000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff0000000304224d1860408232000000ff008401000000046b315e76616c75652d060016f00d0602680276026801046832000e00cf0f020100000e00880e0400010000000000";
    pub(super) const ZSTD: &str = "00000000000000000000006fffffffff025b75c05e0004000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff0000000328b52ffd0058940100b4028401000000046b315e76616c75652d0602680276026801046832000e00cf0f020100000e00880e04000100010002953a010000";
    pub(super) const COMMIT_MARKER: &str = "0000000000000007000000420000000502666330a00030000000000000018bcfe568000000018bcfe56800000000000000002a0001ffffffff000000012000000008000000010c00000000000900";
    pub(super) const TRANSACTIONAL: &str = "000000000000000000000056ffffffff02a8f10a3c0010000000020000018bcfe568000000018bcfe56b84000000010000000500037fffffff0000000328000000046b3102760602680276026801046832000e00cf0f020100000e00880e04000100";
    pub(super) const TRANSACTIONAL_APPENDED: &str = "00000000000003e8000000560000000802beb28fc30018000000020000018bcfe56800000001a3185c5000000000010000000500037fffffff0000000328000000046b3102760602680276026801046832000e00cf0f020100000e00880e04000100";
}

fn hex(text: &str) -> Bytes {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

const T0: i64 = 1_700_000_000_000;

fn java_builder(value: &[u8]) -> BatchBuilder {
    let mut builder = BatchBuilder::new().producer((1 << 32) + 5, 3, i32::MAX);
    builder.push(
        T0,
        Some(b"k1"),
        Some(value),
        &[(b"h", Some(b"v")), (b"h", None), (b"h2", Some(b""))],
    );
    builder.push(T0 - 1000, None, Some(b""), &[]);
    builder.push(T0 + 900, Some(b""), None, &[]);
    builder
}

fn java_value() -> Vec<u8> {
    b"value-".repeat(8)[..47].to_vec()
}

/// The batch with some header fields changed and a CRC that matches again.
fn forged(batch: &Bytes, change: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let mut header = BatchHeader::parse(batch).unwrap();
    change(&mut header);
    header.crc = header.crc_with(&batch[HEADER_LEN..]);
    [&header.encode()[..], &batch[HEADER_LEN..]].concat().into()
}

/// The batch with other records and a length and CRC that match them.
fn with_records(batch: &Bytes, records: &[u8]) -> Bytes {
    let joined: Bytes = [&batch[..HEADER_LEN], records].concat().into();
    forged(&joined, |header| header.batch_length = (joined.len() - 12) as i32)
}

fn produced_error(bytes: Bytes) -> BatchError {
    RecordBatch::parse_produced(bytes).unwrap_err()
}

#[test]
fn reads_what_the_java_client_writes() {
    let all = [java::NONE, java::GZIP, java::SNAPPY, java::LZ4, java::ZSTD];
    for (codec, text) in CODECS.into_iter().zip(all) {
        let batch = RecordBatch::parse_produced(hex(text)).unwrap();
        let header = batch.header();
        assert_eq!(header.codec(), Ok(codec));
        assert_eq!((header.producer_id, header.producer_epoch), ((1 << 32) + 5, 3));
        assert_eq!((header.base_sequence, header.last_sequence()), (i32::MAX, 1));
        assert_eq!((header.last_offset(), header.max_timestamp), (2, T0 + 900));
        assert_eq!((header.is_transactional(), header.is_control()), (false, false));
        assert_eq!(batch.bytes(), &hex(text), "nothing was to be changed");
        let expected = java_builder(&java_value()).build();
        assert_eq!(records(batch.bytes(), MIB), records(expected.bytes(), MIB));
        assert_eq!(records(batch.bytes(), MIB).unwrap()[0].headers.len(), 3);
    }
}

#[test]
fn writes_what_the_java_client_writes() {
    assert_eq!(java_builder(&java_value()).build().bytes(), &hex(java::NONE));
    assert_eq!(
        java_builder(b"v").transactional().build().bytes(),
        &hex(java::TRANSACTIONAL)
    );
    let snappy = java_builder(&java_value()).build_with(Codec::Snappy).unwrap();
    assert_eq!(snappy.header().codec(), Ok(Codec::Snappy));
}

#[test]
fn appends_as_kafkas_broker_does() {
    let produced = RecordBatch::parse_produced(hex(java::TRANSACTIONAL)).unwrap();
    let appended = produced.clone().with_log_append_time(1_800_000_000_000);
    let stored = [&appended.patched_header(1000, 8)[..], &appended.body()].concat();
    assert_eq!(stored, hex(java::TRANSACTIONAL_APPENDED));
    assert_eq!(
        produced.bytes(),
        &hex(java::TRANSACTIONAL),
        "shared bytes are not changed in place"
    );

    let stored = RecordBatch::from_stored(stored.into()).unwrap();
    assert_eq!(stored.header().timestamp_type(), TimestampType::LogAppendTime);
    let records = records(stored.bytes(), MIB).unwrap();
    assert_eq!(
        records.iter().map(|r| r.offset).collect::<Vec<_>>(),
        [1000, 1001, 1002]
    );
    assert!(records.iter().all(|r| r.timestamp == 1_800_000_000_000));
}

#[test]
fn reads_a_transaction_marker() {
    let bytes = hex(java::COMMIT_MARKER);
    let marker = RecordBatch::from_stored(bytes.clone()).unwrap();
    assert!(marker.header().is_control() && marker.header().is_transactional());
    assert_eq!(
        (marker.header().base_offset, marker.header().leader_epoch),
        (7, 5)
    );
    assert_eq!(
        (marker.header().producer_id, marker.header().last_sequence()),
        (42, -1)
    );
    let mut keys = Vec::new();
    for_each_record(marker.bytes(), 0, |record| {
        keys.push((record.offset, record.key.map(<[u8]>::to_vec)));
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(keys, [(7, Some(vec![0, 0, 0, 1]))]);
    // Version 0, type 1 (commit), then a value of version 0 with the coordinator's epoch 9.
    let mut builder = BatchBuilder::new().producer(42, 1, -1).transactional().control();
    builder.push(T0, Some(&[0, 0, 0, 1]), Some(&[0, 0, 0, 0, 0, 9]), &[]);
    let built = builder.build();
    assert_eq!([&built.patched_header(7, 5)[..], &built.body()].concat(), bytes);
    assert_eq!(
        produced_error(built.bytes().clone()),
        BatchError::Invalid("clients may not write control records")
    );
}

#[test]
fn fields_lie_where_the_constants_say() {
    let bytes = hex(java::NONE);
    let header = BatchHeader::parse(&bytes).unwrap();
    assert_eq!(&header.encode()[..], &bytes[..HEADER_LEN]);
    assert_eq!(header.size(), bytes.len());
    let at = |start: usize, len: usize| &bytes[start..start + len];
    assert_eq!(at(field::BASE_OFFSET, 8), header.base_offset.to_be_bytes());
    assert_eq!(at(field::BATCH_LENGTH, 4), header.batch_length.to_be_bytes());
    assert_eq!(at(field::LEADER_EPOCH, 4), header.leader_epoch.to_be_bytes());
    assert_eq!(at(field::MAGIC, 1), [2]);
    assert_eq!(at(field::CRC, 4), header.crc.to_be_bytes());
    assert_eq!(at(field::ATTRIBUTES, 2), header.attributes.to_be_bytes());
    assert_eq!(
        at(field::LAST_OFFSET_DELTA, 4),
        header.last_offset_delta.to_be_bytes()
    );
    assert_eq!(at(field::BASE_TIMESTAMP, 8), header.base_timestamp.to_be_bytes());
    assert_eq!(at(field::MAX_TIMESTAMP, 8), header.max_timestamp.to_be_bytes());
    assert_eq!(at(field::PRODUCER_ID, 8), header.producer_id.to_be_bytes());
    assert_eq!(at(field::PRODUCER_EPOCH, 2), header.producer_epoch.to_be_bytes());
    assert_eq!(at(field::BASE_SEQUENCE, 4), header.base_sequence.to_be_bytes());
    assert_eq!(at(field::RECORD_COUNT, 4), header.record_count.to_be_bytes());
    assert_eq!(field::RECORDS, HEADER_LEN);
}

#[test]
fn sequences_wrap_to_zero() {
    let header = BatchHeader::parse(&hex(java::NONE)).unwrap();
    let last = |base_sequence, last_offset_delta| {
        BatchHeader {
            base_sequence,
            last_offset_delta,
            ..header
        }
        .last_sequence()
    };
    assert_eq!(last(0, 0), 0);
    assert_eq!(last(5, 10), 15);
    assert_eq!(last(i32::MAX, 0), i32::MAX);
    assert_eq!(last(i32::MAX, 1), 0);
    assert_eq!(last(i32::MAX - 3, 10), 6);
    assert_eq!(last(i32::MAX, i32::MAX), i32::MAX - 1);
    assert_eq!(last(-1, 3), -1);
}

/// What a producer may not send, and the error that Kafka has for it.
#[test]
fn produced_batches_are_judged_as_kafka_does() {
    use BatchError::{BatchLength, Crc, Invalid, Timestamp, Truncated, UnsupportedCodec, UnsupportedMagic};
    let good = hex(java::NONE);
    let header = |change: fn(&mut BatchHeader)| produced_error(forged(&good, change));

    assert_eq!(produced_error(Bytes::new()), Truncated);
    assert_eq!(produced_error(good.slice(..good.len() - 1)), Truncated);
    let twice = [good.clone(), good.clone()].concat().into();
    assert_eq!(
        produced_error(twice),
        Invalid("bytes follow the batch; there must be only one")
    );
    assert_eq!(header(|h| h.batch_length = 48), BatchLength(48));
    assert_eq!(header(|h| h.batch_length = -1), BatchLength(-1));
    assert_eq!(header(|h| h.batch_length = i32::MIN), BatchLength(i32::MIN));
    assert_eq!(header(|h| h.batch_length = i32::MAX), Truncated);
    for magic in [0, 1, 3, -1] {
        let mut bytes = good.to_vec();
        bytes[field::MAGIC] = magic as u8;
        assert_eq!(produced_error(bytes.into()), UnsupportedMagic(magic));
    }
    // An empty message of magic 0 or 1 is shorter than a header.
    let old: Bytes = [&[0; 8][..], &14_i32.to_be_bytes(), &[1, 2, 3, 4, 0], &[0; 9]]
        .concat()
        .into();
    assert_eq!(produced_error(old), UnsupportedMagic(0));

    assert_eq!(
        header(|h| h.base_offset = 1),
        Invalid("the base offset of a produced batch is not 0")
    );
    let mut flipped = good.to_vec();
    flipped[70] ^= 1;
    assert_eq!(produced_error(flipped.into()), Crc);
    for id in 5..=7 {
        let unknown = forged(&good, |h| h.attributes = i16::from(id));
        assert_eq!(produced_error(unknown), UnsupportedCodec(id));
    }
    assert_eq!(
        header(|h| h.record_count = 0),
        Invalid("the batch holds no records")
    );
    assert_eq!(
        header(|h| h.record_count = i32::MIN),
        Invalid("the batch holds no records")
    );
    let mismatch = Invalid("the record count does not match the offset range");
    assert_eq!(header(|h| h.record_count = 2), mismatch);
    assert_eq!(header(|h| h.record_count = i32::MAX), mismatch);
    assert_eq!(header(|h| h.last_offset_delta = i32::MAX), mismatch);
    assert_eq!(header(|h| h.last_offset_delta = -1), mismatch);
    assert_eq!(
        header(|h| h.attributes |= header::CONTROL),
        Invalid("clients may not write control records")
    );
    assert_eq!(
        header(|h| h.producer_epoch = -1),
        Invalid("a producer id without an epoch")
    );
    assert_eq!(
        header(|h| h.base_sequence = -1),
        Invalid("a producer id without a sequence number")
    );
    assert_eq!(
        header(|h| h.producer_id = -2),
        Invalid("the producer id is negative")
    );
    assert_eq!(
        header(|h| (h.producer_id, h.attributes) = (-1, header::TRANSACTIONAL)),
        Invalid("a transactional batch without a producer id")
    );
    assert_eq!(
        header(|h| h.attributes |= header::LOG_APPEND_TIME),
        Timestamp("producers may not set the type LogAppendTime")
    );
    assert_eq!(
        produced_error(with_records(&hex(java::ZSTD), b"")),
        Invalid("the batch holds no records")
    );
}

#[test]
fn records_of_a_produced_batch_are_walked() {
    let good = hex(java::NONE);
    let damaged = BatchError::Invalid("a record's lengths do not match its bytes");
    let one = forged(&with_records(&good, &[]), |h| {
        (h.record_count, h.last_offset_delta) = (1, 0)
    });
    let judge = |records: &[u8]| RecordBatch::parse_produced(with_records(&one, records)).map(|_| ());
    // length, attributes, timestamp delta, offset delta, null key, null value, header count
    let minimal = [12, 0, 0, 0, 1, 1, 0];
    assert_eq!(judge(&minimal), Ok(()));
    assert_eq!(
        judge(&[12, 0xff, 0, 0, 1, 1, 0]),
        Ok(()),
        "record attributes have no meaning yet"
    );
    let count = BatchError::Invalid("the record count does not match the records");
    assert_eq!(judge(&[&minimal[..], &minimal].concat()), Err(count.clone()));
    assert_eq!(judge(&[&minimal[..], &[0]].concat()), Err(count));
    assert_eq!(judge(&[12, 0, 0, 0, 1, 1]), Err(damaged.clone()), "cut");
    assert_eq!(
        judge(&[14, 0, 0, 0, 1, 1, 0, 0]),
        Err(damaged.clone()),
        "a byte too many in the record"
    );
    assert_eq!(
        judge(&[10, 0, 0, 0, 1, 1, 0]),
        Err(damaged.clone()),
        "record ends before its headers"
    );
    assert_eq!(judge(&[1, 0, 0, 0, 1, 1, 0]), Err(damaged.clone()), "length -1");
    assert_eq!(
        judge(&[12, 0, 0, 0, 3, 1, 0]),
        Err(damaged.clone()),
        "key length -2"
    );
    assert_eq!(
        judge(&[12, 0, 0, 0, 1, 6, 0]),
        Err(damaged.clone()),
        "value longer than the record"
    );
    assert_eq!(
        judge(&[12, 0, 0, 0, 1, 1, 1]),
        Err(damaged.clone()),
        "header count -1"
    );
    assert_eq!(
        judge(&[12, 0, 0, 0, 1, 1, 2]),
        Err(damaged.clone()),
        "a header that is not there"
    );
    let many = [20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(judge(&many), Err(damaged.clone()), "i32::MAX headers");
    assert_eq!(
        judge(&[16, 0, 0, 0, 1, 1, 2, 1, 1]),
        Err(damaged.clone()),
        "a null header key"
    );
    assert_eq!(
        judge(&[16, 0, 0, 0, 1, 1, 2, 0, 1]),
        Ok(()),
        "an empty header key, a null value"
    );
    let order = BatchError::Invalid("record offsets do not rise or leave the batch");
    assert_eq!(
        judge(&[12, 0, 0, 2, 1, 1, 0]),
        Err(order.clone()),
        "first offset delta 1"
    );
    assert_eq!(
        judge(&[12, 0, 0, 1, 1, 1, 0]),
        Err(order.clone()),
        "offset delta -1"
    );
    assert_eq!(
        judge(&[20, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 1, 0]),
        Err(damaged.clone()),
        "33 bits"
    );
    let timestamp_delta = |last: u8| [&[30, 0][..], &[0x80; 9], &[last, 0, 1, 1, 0]].concat();
    assert_eq!(judge(&timestamp_delta(1)), Ok(()), "64 bits");
    assert_eq!(judge(&timestamp_delta(2)), Err(damaged.clone()), "65 bits");
    assert_eq!(judge(&[0x80; 40]), Err(damaged), "a varint without an end");

    let two = forged(&one, |h| (h.record_count, h.last_offset_delta) = (2, 1));
    let second = |delta| [&minimal[..], &[12, 0, 0, delta, 1, 1, 0]].concat();
    assert!(RecordBatch::parse_produced(with_records(&two, &second(2))).is_ok());
    for delta in [0, 4] {
        assert_eq!(produced_error(with_records(&two, &second(delta))), order);
    }
}

/// Clients in use send such headers, and Kafka takes them.
#[test]
fn without_a_producer_id_epoch_and_sequence_mean_nothing() {
    for (epoch, sequence) in [(-1, -1), (0, 0), (-1, 0), (7, 9)] {
        let bytes = forged(&hex(java::NONE), |h| {
            (h.producer_id, h.producer_epoch, h.base_sequence) = (-1, epoch, sequence);
        });
        let batch = RecordBatch::parse_produced(bytes).unwrap();
        assert!(!batch.header().has_producer_id());
        assert_eq!(batch.header().last_sequence(), -1);
    }
}

#[test]
fn a_wrong_max_timestamp_is_put_right() {
    let good = hex(java::NONE);
    for wrong in [-1, 0, T0, i64::MAX, i64::MIN] {
        let fixed = RecordBatch::parse_produced(forged(&good, |h| h.max_timestamp = wrong)).unwrap();
        assert_eq!(fixed.bytes(), &good);
        assert_eq!(fixed.header(), &BatchHeader::parse(&good).unwrap());
    }
    let compressed = forged(&hex(java::GZIP), |h| h.max_timestamp = -1);
    let lifted = RecordBatch::parse_produced(compressed).unwrap();
    assert_eq!(lifted.header().max_timestamp, T0);
    RecordBatch::from_stored(lifted.bytes().clone()).unwrap();
    assert_eq!(records(lifted.bytes(), MIB), records(&good, MIB));
    let mut ancient = BatchBuilder::new();
    ancient.push(-7, None, None, &[]);
    for codec in [Codec::None, Codec::Gzip] {
        let sent = ancient.clone().build_with(codec).unwrap();
        let parsed = RecordBatch::parse_produced(sent.bytes().clone()).unwrap();
        assert_eq!(parsed.header().max_timestamp, -1, "{codec:?}");
    }
}

#[test]
fn timestamps_and_keys_are_checked_for_the_topic() {
    let batch = RecordBatch::parse_produced(hex(java::NONE)).unwrap();
    let late = Err(BatchError::Timestamp("outside what the topic allows"));
    assert_eq!(batch.check_timestamps(i64::MIN, T0 + 900), Ok(()));
    assert_eq!(batch.check_timestamps(i64::MIN, T0 + 899), late);
    assert_eq!(batch.check_timestamps(T0 - 1000, i64::MAX), Ok(()));
    assert_eq!(batch.check_timestamps(T0 - 999, i64::MAX), late);
    let gzip = RecordBatch::parse_produced(hex(java::GZIP)).unwrap();
    assert_eq!(
        gzip.check_timestamps(T0, T0 + 900),
        Ok(()),
        "only base and maximum are looked at"
    );
    assert_eq!(gzip.check_timestamps(T0 + 1, T0 + 900), late);
    let mut builder = BatchBuilder::new();
    builder.push(-1, Some(b"k"), None, &[]);
    let without = builder.clone().build();
    assert_eq!(
        without.check_timestamps(T0, T0 + 1),
        Ok(()),
        "no timestamp is in every range"
    );

    assert_eq!(without.check_keys(MIB), Ok(()));
    let keyless = BatchError::Invalid("a record of a compacted topic has no key");
    assert_eq!(batch.check_keys(MIB), Err(keyless.clone()));
    assert_eq!(gzip.check_keys(MIB), Err(keyless));
    assert_eq!(gzip.check_keys(10), Err(BatchError::TooLarge));
}

#[test]
fn every_changed_byte_is_noticed_or_outside_the_crc() {
    for text in [java::NONE, java::GZIP, java::SNAPPY, java::LZ4, java::ZSTD] {
        let good = hex(text);
        for at in 0..good.len() {
            for xor in 1..=255 {
                let mut bytes = good.to_vec();
                bytes[at] ^= xor;
                match RecordBatch::parse_produced(bytes.into()) {
                    Ok(batch) => {
                        assert!(
                            (field::LEADER_EPOCH..field::MAGIC).contains(&at),
                            "byte {at} xor {xor}"
                        );
                        assert_eq!(batch.patched_header(0, -1), good[..HEADER_LEN]);
                    }
                    Err(error) => assert!(
                        at < field::CRC || error == BatchError::Crc,
                        "byte {at} xor {xor} gives {error}"
                    ),
                }
            }
        }
    }
}

/// The same with a CRC that matches: what is accepted can be read.
#[test]
fn a_forged_uncompressed_batch_is_refused_or_readable() {
    let good = hex(java::NONE);
    let mut accepted = 0;
    for at in field::ATTRIBUTES..good.len() {
        for xor in 1..=255 {
            let mut bytes = good.to_vec();
            bytes[at] ^= xor;
            let bytes = forged(&bytes.into(), |_| ());
            if let Ok(batch) = RecordBatch::parse_produced(bytes) {
                if batch.header().codec() == Ok(Codec::None) {
                    accepted += 1;
                    let read = records(batch.bytes(), 0).unwrap();
                    assert_eq!(read.len(), 3);
                    let max = read.iter().map(|record| record.timestamp).max().unwrap();
                    assert_eq!(batch.header().max_timestamp, max.max(-1));
                } else {
                    assert!(records(batch.bytes(), MIB).is_err());
                }
            }
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn every_truncation_is_an_error() {
    for text in [java::NONE, java::GZIP, java::SNAPPY, java::LZ4, java::ZSTD] {
        let good = hex(text);
        for len in 0..good.len() {
            let cut = good.slice(..len);
            assert_eq!(produced_error(cut.clone()), BatchError::Truncated);
            assert_eq!(
                RecordBatch::from_stored(cut.clone()).unwrap_err(),
                BatchError::Truncated
            );
            assert_eq!(records(&cut, MIB), Err(BatchError::Truncated));
            let chunks = [cut];
            let found: Vec<_> = ChunkCursor::new(&chunks).collect();
            let expected = if len == 0 {
                vec![]
            } else {
                vec![Err(BatchError::Truncated)]
            };
            assert_eq!(found, expected);
        }
        // The same with a length and CRC that match.
        for len in HEADER_LEN..good.len() {
            let cut = with_records(&good, &good[HEADER_LEN..len]);
            assert!(records(&cut, MIB).is_err(), "{len}");
        }
    }
}

#[test]
fn bombs_inside_a_batch_are_too_large() {
    for codec in CODECS {
        let mut builder = BatchBuilder::new();
        builder.push(T0, None, Some(&vec![0; 16 * MIB]), &[]);
        let bomb = builder.build_with(codec).unwrap();
        let bomb = RecordBatch::parse_produced(bomb.bytes().clone()).unwrap();
        if codec == Codec::None {
            assert_eq!(
                records(bomb.bytes(), MIB).unwrap().len(),
                1,
                "these bytes are already in memory"
            );
        } else {
            assert_eq!(records(bomb.bytes(), MIB), Err(BatchError::TooLarge), "{codec:?}");
            assert!(bomb.len() < MIB);
        }
    }
}

#[test]
fn compacted_batches_are_read() {
    let good = hex(java::NONE);
    let empty = forged(&with_records(&good, &[]), |h| h.record_count = 0);
    let empty = RecordBatch::from_stored(empty).unwrap();
    assert_eq!(records(empty.bytes(), 0), Ok(vec![]));
    assert_eq!(empty.header().last_offset(), 2);
    // One record of five is left.
    let one = forged(&with_records(&good, &[12, 0, 0, 6, 1, 1, 0]), |h| {
        (h.base_offset, h.record_count, h.last_offset_delta) = (100, 1, 4);
    });
    let one = RecordBatch::from_stored(one).unwrap();
    assert_eq!(records(one.bytes(), 0).unwrap()[0].offset, 103);
    let negative = forged(&good, |h| h.record_count = -1);
    assert!(RecordBatch::from_stored(negative.clone()).is_err());
    assert!(records(&negative, 0).is_err());
}

#[test]
fn an_iterator_ends_after_an_error() {
    let batch = with_records(&hex(java::NONE), &[12, 0, 0, 0, 1, 1, 0, 0xff]);
    let batch = BatchRecords::open(&batch, 0).unwrap();
    let mut records = batch.iter();
    assert!(records.next().unwrap().is_ok());
    assert!(records.next().unwrap().is_err());
    assert!(records.next().is_none());
}

#[test]
fn varlongs_have_the_length_that_was_foreseen() {
    for shift in 0..64 {
        for value in [
            1_i64 << shift,
            (1_i64 << shift).wrapping_sub(1),
            -(1_i64 << (shift % 63)),
            i64::MIN,
        ] {
            let mut out = Vec::new();
            super::records::put_varlong(&mut out, value);
            assert_eq!(out.len(), super::records::varlong_len(value), "{value}");
        }
    }
}

/// Cuts `bytes` at the given places, which may repeat: then there are empty chunks.
fn cut(bytes: &Bytes, mut places: Vec<usize>) -> Vec<Bytes> {
    places.sort_unstable();
    let starts = std::iter::once(0).chain(places.iter().copied());
    let ends = places.iter().copied().chain([bytes.len()]);
    starts
        .zip(ends)
        .map(|(start, end)| bytes.slice(start..end))
        .collect()
}

#[test]
fn a_cursor_stops_at_what_it_does_not_know() {
    let good = hex(java::NONE);
    let mut foreign = good.to_vec();
    foreign[field::MAGIC] = 1;
    let chunks = [good.clone(), foreign.into(), good.clone()];
    let mut cursor = ChunkCursor::new(&chunks);
    assert_eq!(cursor.next_batch().unwrap().unwrap().range(), 0..good.len());
    assert_eq!(cursor.next_batch(), Some(Err(BatchError::UnsupportedMagic(1))));
    assert_eq!(cursor.next_batch(), None);
    assert_eq!(cursor.position(), good.len());
    assert_eq!(ChunkCursor::new(&[]).next_batch(), None);
    assert_eq!(ChunkCursor::new(&[Bytes::new(), Bytes::new()]).next_batch(), None);
}

#[test]
fn a_view_notices_a_damaged_byte_in_any_chunk() {
    let good = hex(java::NONE);
    let (first, second) = ([good.clone(), good.clone()].concat(), good.len());
    for at in second..2 * second {
        let mut bytes = first.clone();
        bytes[at] ^= 0x40;
        let chunks = cut(&bytes.into(), vec![30, second + 10, second + 40, second + 90]);
        let views: Vec<_> = ChunkCursor::new(&chunks).map_while(Result::ok).collect();
        assert_eq!(views[0].verify(&chunks), Ok(()));
        // Changes of length and magic stop the cursor, of offset and epoch are not covered.
        if at >= second + field::CRC {
            assert_eq!(views[1].verify(&chunks), Err(BatchError::Crc), "{at}");
            assert_eq!(views[1].to_batch(&chunks).unwrap_err(), BatchError::Crc);
        }
    }
}

/// What a record is built from: timestamp, key, value, headers.
type Parts = (
    i64,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn parts() -> impl Strategy<Value = Parts> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    let optional = move || proptest::option::of(bytes());
    let timestamp = prop_oneof![Just(-1), 0..2_000_000_000_000_i64, any::<i64>()];
    (
        timestamp,
        optional(),
        optional(),
        proptest::collection::vec((bytes(), optional()), 0..4),
    )
}

fn build(all: &[Parts], codec: Codec) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    for (timestamp, key, value, headers) in all {
        let headers: Vec<_> = headers
            .iter()
            .map(|(key, value)| (&key[..], value.as_deref()))
            .collect();
        builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
    }
    assert_eq!(builder.record_count() as usize, all.len());
    let size = builder.size();
    let batch = builder.build_with(codec).unwrap();
    assert!(codec != Codec::None || batch.len() == size);
    batch
}

proptest! {
    #[test]
    fn what_is_built_is_accepted_and_read_back(
        all in proptest::collection::vec(parts(), 1..20),
        codec in proptest::sample::select(&CODECS[..]),
        base_offset in 0..i64::MAX / 2,
        append_time in proptest::option::of(any::<i64>()),
    ) {
        let mut batch = RecordBatch::parse_produced(build(&all, codec).bytes().clone()).unwrap();
        if let Some(now) = append_time {
            batch = batch.with_log_append_time(now);
        }
        let stored: Bytes = [&batch.patched_header(base_offset, 7)[..], &batch.body()].concat().into();
        let stored = RecordBatch::from_stored(stored).unwrap();
        prop_assert_eq!(stored.header().last_offset(), base_offset + all.len() as i64 - 1);
        let expected: Vec<_> = all.into_iter().zip(base_offset..).map(|((timestamp, key, value, headers), offset)| {
            let own = |part: Option<Vec<u8>>| part.map(Bytes::from);
            Record {
                offset,
                timestamp: append_time.unwrap_or(timestamp),
                key: own(key),
                value: own(value),
                headers: headers.into_iter().map(|(key, value)| (key.into(), own(value))).collect(),
            }
        }).collect();
        prop_assert_eq!(records(stored.bytes(), 1 << 20).unwrap(), expected);
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() > field::MAGIC {
            bytes[field::BATCH_LENGTH..field::LEADER_EPOCH].fill(0);
            bytes[field::LEADER_EPOCH - 1] = (bytes.len() - 12).min(255) as u8;
            bytes[field::MAGIC] = 2;
        }
        let bytes = Bytes::from(bytes);
        prop_assert!(RecordBatch::parse_produced(bytes.clone()).is_err());
        prop_assert!(RecordBatch::from_stored(bytes.clone()).is_err());
        let _ = records(&bytes, 1000);
        let chunks = [bytes];
        for view in ChunkCursor::new(&chunks).flatten() {
            prop_assert!(view.verify(&chunks).is_err());
        }
    }

    #[test]
    fn arbitrary_records_never_panic(
        payload in proptest::collection::vec(prop_oneof![0_u8..20, any::<u8>()], 0..100),
        codec in 0_i16..8,
        record_count: i32,
        small in 0..5_i32,
        use_small: bool,
    ) {
        let record_count = if use_small { small } else { record_count };
        let bytes = forged(&with_records(&hex(java::NONE), &payload), |h| {
            h.attributes = codec;
            h.record_count = record_count;
            h.last_offset_delta = record_count.wrapping_sub(1);
        });
        let read = records(&bytes, 1 << 16);
        if let Ok(batch) = RecordBatch::parse_produced(bytes.clone())
            && batch.header().codec() == Ok(Codec::None)
        {
            prop_assert_eq!(read.unwrap().len() as i32, record_count);
        }
    }

    #[test]
    fn a_cursor_walks_cut_chunks_as_one_piece(
        all in proptest::collection::vec((parts(), proptest::sample::select(&CODECS[..])), 0..8),
        places in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40),
        ends in any::<(proptest::sample::Index, proptest::sample::Index)>(),
    ) {
        let mut whole = Vec::new();
        let mut expected = Vec::new();
        for (index, (parts, codec)) in all.into_iter().enumerate() {
            let batch = build(&[parts], codec);
            let stored = [&batch.patched_header(index as i64, 3)[..], &batch.body()].concat();
            expected.push((whole.len()..whole.len() + stored.len(), stored.clone()));
            whole.extend(stored);
        }
        let whole = Bytes::from(whole);
        let chunks = cut(&whole, places.iter().map(|place| place.index(whole.len() + 1)).collect());

        let mut cursor = ChunkCursor::new(&chunks);
        let mut views = Vec::new();
        while let Some(view) = cursor.next_batch() {
            views.push(view.unwrap());
        }
        prop_assert_eq!(views.len(), expected.len());
        prop_assert_eq!(cursor.position(), whole.len());
        for (view, (range, bytes)) in views.iter().zip(&expected) {
            prop_assert_eq!(&view.range(), range);
            prop_assert_eq!(view.verify(&chunks), Ok(()));
            prop_assert_eq!(&view.chunks(&chunks).concat(), bytes);
            prop_assert_eq!(slice_chunks(&chunks, view.range()).concat(), &bytes[..]);
            let batch = view.to_batch(&chunks).unwrap();
            prop_assert_eq!(batch.bytes(), bytes);
            prop_assert_eq!(batch.header(), &view.header);
        }

        let (a, b) = (ends.0.index(whole.len() + 1), ends.1.index(whole.len() + 1));
        let range = a.min(b)..a.max(b);
        let pieces = slice_chunks(&chunks, range.clone());
        prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        prop_assert_eq!(pieces.concat(), &whole[range.clone()]);
        prop_assert_eq!(slice_chunks(&chunks, range.start..usize::MAX).concat(), &whole[range.start..]);
        prop_assert!(slice_chunks(&chunks, whole.len() + 1..usize::MAX).is_empty());
    }
}
