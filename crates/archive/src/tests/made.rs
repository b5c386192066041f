//! Batches of every kind, and what a consumer must see of them.

use std::collections::BTreeMap;

use alluvium_log::Offset;
use alluvium_log::batch::{BatchHeader, HEADER_LEN, LOG_APPEND_TIME, field, put_varlong};
use alluvium_log::codec::Codec;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::Seen;

/// A batch that is given to the writer.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) partition: i32,
    pub(super) append_time: i64,
    pub(super) bytes: Bytes,
    pub(super) base_offset: Offset,
    pub(super) last_offset: Offset,
    pub(super) records: Vec<Seen>,
}

/// A record of a batch to be made.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    pub(super) delta: i32,
    pub(super) timestamp: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What all records of a batch to be made have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub(super) partition: i32,
    pub(super) base_offset: Offset,
    pub(super) last_delta: i32,
    pub(super) epoch: i32,
    pub(super) codec: Codec,
    /// The broker's time for all records.
    pub(super) append: Option<i64>,
    pub(super) control: bool,
    /// Id, epoch and first sequence.
    pub(super) producer: (i64, i16, i32),
}

/// Of who does not number its batches.
const NOBODY: (i64, i16, i32) = (-1, -1, -1);

pub(super) const COMMON: Common = Common {
    partition: 0,
    base_offset: 0,
    last_delta: 0,
    epoch: 3,
    codec: Codec::None,
    append: None,
    control: false,
    producer: (77, 5, 9),
};

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varlong(out, bytes.map_or(-1, |b| b.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}

pub(super) fn encode(base_timestamp: i64, records: &[Made]) -> Vec<u8> {
    let mut out = vec![];
    for record in records {
        let mut body = vec![0];
        put_varlong(&mut body, record.timestamp.wrapping_sub(base_timestamp));
        put_varlong(&mut body, i64::from(record.delta));
        put_bytes(&mut body, record.key.as_deref());
        put_bytes(&mut body, record.value.as_deref());
        put_varlong(&mut body, record.headers.len() as i64);
        for (key, value) in &record.headers {
            put_bytes(&mut body, Some(key));
            put_bytes(&mut body, value.as_deref());
        }
        put_varlong(&mut out, body.len() as i64);
        out.extend_from_slice(&body);
    }
    out
}

/// A batch whose records are `payload`, whatever that is.
pub(super) fn raw(
    common: &Common,
    payload: &[u8],
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
) -> Bytes {
    let payload = match common.codec {
        Codec::None => payload.to_vec(),
        codec => codec.compress(payload).unwrap(),
    };
    let mut attributes = i16::from(common.codec.id());
    if common.append.is_some() {
        attributes |= LOG_APPEND_TIME;
    }
    if common.control {
        attributes |= 0x30;
    }
    let (producer_id, producer_epoch, base_sequence) = common.producer;
    let header = BatchHeader {
        base_offset: common.base_offset,
        batch_length: (HEADER_LEN - field::LEADER_EPOCH + payload.len()) as i32,
        leader_epoch: common.epoch,
        magic: 2,
        crc: 0,
        attributes,
        last_offset_delta: common.last_delta,
        base_timestamp,
        max_timestamp: common.append.unwrap_or(max_timestamp),
        producer_id,
        producer_epoch,
        base_sequence,
        record_count: count,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&payload);
    let crc = crc32c::crc32c(&bytes[field::ATTRIBUTES..]);
    bytes[field::CRC..field::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(bytes)
}

pub(super) fn given(common: &Common, records: &[Made]) -> Given {
    let base_timestamp = records.first().map_or(-1, |r| r.timestamp);
    let greatest = records.iter().map(|r| r.timestamp).max().unwrap_or(-1);
    let payload = encode(base_timestamp, records);
    let own = |b: &Vec<u8>| Bytes::from(b.clone());
    Given {
        partition: common.partition,
        append_time: 1_700_000_000_123,
        bytes: raw(common, &payload, records.len() as i32, base_timestamp, greatest),
        base_offset: common.base_offset,
        last_offset: common.base_offset + i64::from(common.last_delta),
        records: records
            .iter()
            .filter(|_| !common.control)
            .map(|r| Seen {
                offset: common.base_offset + i64::from(r.delta),
                timestamp: common.append.unwrap_or(r.timestamp),
                log_append: common.append.is_some(),
                epoch: common.epoch,
                key: r.key.as_ref().map(own),
                value: r.value.as_ref().map(own),
                headers: r
                    .headers
                    .iter()
                    .map(|(k, v)| (own(k), v.as_ref().map(own)))
                    .collect(),
            })
            .collect(),
    }
}

/// Bytes that compress a little.
fn filled(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8 + b'a'
        })
        .collect()
}

fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        50 => Just(None),
        50 => Just(Some(vec![])),
        200 => vec(any::<u8>(), 0..100).prop_map(Some),
        100 => (0usize..5000, any::<u8>()).prop_map(|(len, seed)| Some(filled(len, seed))),
        20 => (0usize..200_000, any::<u8>()).prop_map(|(len, seed)| Some(filled(len, seed))),
        1 => (0usize..2 << 20, any::<u8>()).prop_map(|(len, seed)| Some(filled(len, seed))),
    ]
}

fn timestamp() -> impl Strategy<Value = i64> {
    /// 2262-04-11, where nanoseconds end, and the ends of what microseconds of 64 bits hold.
    const EDGES: [i64; 7] = [-1, 0, -2, 1, 9_223_372_036_854, i64::MAX / 1000, i64::MIN / 1000];
    prop_oneof![
        6 => 1_700_000_000_000i64..1_700_000_100_000,
        2 => prop::sample::select(&EDGES[..]),
        1 => i64::MIN / 1000..i64::MAX / 1000,
    ]
}

fn record() -> impl Strategy<Value = Made> {
    let header = (
        "[a-cé]{0,3}",
        prop_oneof![Just(None), vec(any::<u8>(), 0..20).prop_map(Some)],
    );
    let headers = prop_oneof![3 => Just(vec![]), 1 => vec(header, 0..5)];
    // Few and short ones too: compaction takes what has the key of something newer.
    let key = prop_oneof![
        4 => Just(None),
        1 => vec(0u8..3, 0..2).prop_map(Some),
        1 => vec(any::<u8>(), 0..30).prop_map(Some),
    ];
    let step = prop_oneof![9 => Just(1), 1 => 1..20];
    (step, timestamp(), key, value(), headers).prop_map(|(delta, timestamp, key, value, headers)| Made {
        delta,
        timestamp,
        key,
        value,
        headers: headers.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect(),
    })
}

pub(super) fn codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(&[Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd][..])
}

/// A topic's batches by partition and offset: gaps between and within batches, control and empty batches, both kinds
/// of time, several epochs.
pub(super) fn batches(max: usize) -> impl Strategy<Value = Vec<Given>> {
    let kind = prop_oneof![8 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))];
    let batch = (
        prop_oneof![9 => Just(0), 1 => 1..4],
        prop_oneof![6 => Just(0i64), 1 => 1i64..50, 1 => 3_000_000_000i64..7_000_000_000],
        vec(record(), 1..40),
        (codec(), kind, 0..5),
        (
            prop_oneof![4 => Just(None), 1 => timestamp().prop_map(Some)],
            prop::bool::weighted(0.1),
        ),
    );
    vec(batch, 0..max).prop_map(|batches| {
        let (mut partition, mut offset, mut epoch) = (0, 0i64, 0);
        let mut out = vec![];
        for (step, gap, mut records, (codec, (control, empty), rest), (append, new_epoch)) in batches {
            partition += step;
            if step > 0 {
                offset = 0;
            }
            offset += gap;
            epoch += i32::from(new_epoch);
            // The steps become deltas; the first may leave a gap too.
            let mut delta = -1;
            for record in &mut records {
                delta += record.delta;
                record.delta = delta;
            }
            let common = Common {
                partition,
                base_offset: offset,
                last_delta: delta + rest,
                epoch,
                codec: if empty { Codec::None } else { codec },
                append,
                control,
                producer: COMMON.producer,
            };
            if empty {
                records.clear();
            }
            let batch = given(&common, &records);
            offset = batch.last_offset + 1;
            out.push(batch);
        }
        out
    })
}

/// A batch as a producer sends it, and what its log does with it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Its offsets begin at 0: the log has not given any.
    pub(super) batch: Given,
    /// The log's time replaces the producer's.
    pub(super) log_append_time: bool,
    /// It comes a second time, as after an answer that was lost; only of a producer that numbers its batches.
    pub(super) again: bool,
    pub(super) then: Then,
}

/// What happens after an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The next one, perhaps into the same segment.
    GoesOn,
    /// All is published before the next one.
    Waits,
    /// So it is, and the process is gone; the next one begins a leader epoch.
    Crashes,
    /// It stops as it should.
    Stops,
}

/// What producers send to so many partitions: all that [`batches`] has and a producer may send.
pub(super) fn sent(partitions: i32, max: usize) -> impl Strategy<Value = Vec<Sent>> {
    let then = prop_oneof![
        6 => Just(Then::GoesOn),
        3 => Just(Then::Waits),
        1 => Just(Then::Crashes),
        1 => Just(Then::Stops),
    ];
    let one = (
        (0..partitions, vec(record(), 1..40), codec()),
        (prop::option::of(1i64..3), prop::bool::weighted(0.2)),
        (prop::bool::weighted(0.2), then),
    );
    vec(one, 1..max).prop_map(|sent| {
        let mut sequences = BTreeMap::<(i32, i64), i32>::new();
        let mut out = vec![];
        for ((partition, mut records, codec), (producer, again), (log_append_time, then)) in sent {
            let count = records.len() as i32;
            (0..)
                .zip(&mut records)
                .for_each(|(delta, record)| record.delta = delta);
            let numbered = |id| {
                let next = sequences.entry((partition, id)).or_default();
                *next += count;
                (id, 0, *next - count)
            };
            let common = Common {
                partition,
                last_delta: count - 1,
                codec,
                producer: producer.map_or(NOBODY, numbered),
                ..COMMON
            };
            out.push(Sent {
                batch: given(&common, &records),
                log_append_time,
                again: again && producer.is_some(),
                then,
            });
        }
        out
    })
}
