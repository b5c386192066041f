//! What a seek reads, and where a lookup by time ends.

use alluvium_log::batch::BatchBuilder;
use proptest::prelude::*;

use super::made::{Given, batches};
use super::*;

fn fetched(history: &ParquetHistory) -> u64 {
    history.files.metrics().fetched_bytes.get()
}

/// `count` records of about 1 KiB each, a ms apart, in batches of a hundred.
fn long(partition: i32, count: i64) -> Vec<Given> {
    let mut state = 1u64;
    (0..count / 100)
        .map(|n| {
            let mut builder = BatchBuilder::new();
            for m in 0..100 {
                let value: Vec<u8> = std::iter::repeat_with(|| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 59) as u8 + b'a'
                })
                .take(1000)
                .collect();
                builder.push(1_700_000_000_000 + n * 100 + m, Some(b"key"), Some(&value), &[]);
            }
            let batch = builder.build();
            let mut bytes = batch.patched_header(n * 100, 0).to_vec();
            bytes.extend_from_slice(&batch.body());
            Given {
                partition,
                append_time: 0,
                bytes: Bytes::from(bytes),
                base_offset: n * 100,
                last_offset: n * 100 + 99,
                records: vec![],
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_reads_a_little_and_a_replay_everything_once() {
    let options = ParquetOptions::default();
    let (file, finished, _) = write(&options, &topic(false), &long(0, 60_000));
    assert!(
        file.len() > 30 << 20 && finished.shares.len() > 2,
        "{} bytes",
        file.len()
    );
    let own: u64 = finished.shares.iter().map(|s| u64::from(s.len)).sum();
    assert!(own > file.len() as u64 * 9 / 10);
    let (store, history) = (memory(), history(&options));
    put(&store, &file).await;
    let share = &finished.shares[1];
    let offset = (share.base_offset + share.last_offset) / 2;
    let got = history.read(&store, &key(), share, offset, 1).await.unwrap();
    assert!(seen(&got).iter().any(|r| r.offset == offset));
    let by_offset = fetched(&history);
    assert!(by_offset < 1200 << 10, "a seek by offset read {by_offset} bytes");
    let found = history
        .first_at_or_after(&store, &key(), share, 1_700_000_000_000 + offset, 0)
        .await
        .unwrap();
    assert_eq!(found, Some((offset, 1_700_000_000_000 + offset)));
    let by_time = fetched(&history) - by_offset;
    assert!(by_time < 128 << 10, "a seek by time read {by_time} bytes");

    let before = fetched(&history);
    for share in &finished.shares {
        let all = replay(&history, &store, share, share.base_offset, 1 << 20)
            .await
            .unwrap();
        assert_eq!(all.len() as i64, share.last_offset - share.base_offset + 1);
    }
    let all = fetched(&history) - before;
    assert!(
        all < file.len() as u64 * 11 / 10,
        "a replay read {all} of {} bytes",
        file.len()
    );
    assert!(history.files.metrics().portions_ahead.get() > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_small_partitions_have_a_small_index() {
    let batches: Vec<Given> = (0..10_000)
        .map(|partition| {
            let mut builder = BatchBuilder::new();
            builder.push(1, None, Some(b"a value"), &[]);
            builder.push(2, None, Some(b"another"), &[]);
            Given {
                partition,
                append_time: 0,
                bytes: builder.build().bytes().clone(),
                base_offset: 0,
                last_offset: 1,
                records: vec![],
            }
        })
        .collect();
    let (file, finished, _) = write(&ParquetOptions::default(), &topic(false), &batches);
    assert_eq!(finished.shares.len(), 10_000);
    assert!(file.len() < 200 << 10, "the file has {} bytes", file.len());
    let (store, history) = (memory(), history(&ParquetOptions::default()));
    put(&store, &file).await;
    for share in finished.shares.iter().step_by(997) {
        let records = replay(&history, &store, share, 0, 1 << 20).await.unwrap();
        assert_eq!(records.len(), 2);
        let found = history
            .first_at_or_after(&store, &key(), share, 2, 0)
            .await
            .unwrap();
        assert_eq!(found, Some((1, 2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_read_anew() {
    let (file, finished, _) = write(&small(), &topic(false), &long(0, 100));
    let (store, history) = (memory(), history(&small()));
    put(&store, &file).await;
    let share = &finished.shares[0];
    let opened = || history.files.metrics().files_opened.get();
    for _ in 0..2 {
        replay(&history, &store, share, 0, 1 << 20).await.unwrap();
        assert_eq!(opened(), 1);
    }
    history.forget(&key()).await;
    let before = fetched(&history);
    replay(&history, &store, share, 0, 1 << 20).await.unwrap();
    assert_eq!(opened(), 2);
    assert!(fetched(&history) - before >= file.len() as u64 / 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_lookup_by_time_is_what_a_walk_finds(
        batches in batches(20),
        times in proptest::collection::vec(1_700_000_000_000i64..1_700_000_100_000, 1..20),
    ) {
        let (file, finished, _) = write(&small(), &topic(false), &batches);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (store, history) = (memory(), history(&small()));
            put(&store, &file).await;
            for share in &finished.shares {
                let own: Vec<(i64, i64)> = batches
                    .iter()
                    .filter(|b| b.partition == share.partition)
                    .flat_map(|b| &b.records)
                    .map(|r| (r.offset, r.timestamp))
                    .filter(|(o, _)| (share.base_offset..=share.last_offset).contains(o))
                    .collect();
                let edges = [i64::MIN, -3, -1, 0, 9_223_372_036_854, i64::MAX / 1000, i64::MAX];
                for (n, at_least) in times.iter().chain(&edges).enumerate() {
                    let from = match n % 3 {
                        0 => share.base_offset,
                        1 => own.get(n % own.len().max(1)).map_or(0, |r| r.0),
                        _ => own.get(n % own.len().max(1)).map_or(0, |r| r.0 + 1),
                    };
                    let expected = own.iter().find(|(o, t)| *o >= from && t >= at_least).copied();
                    let found = history.first_at_or_after(&store, &key(), share, *at_least, from).await;
                    assert_eq!(found, Ok(expected));
                }
            }
        });
    }
}
