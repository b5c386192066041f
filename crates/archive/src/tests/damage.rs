//! Damage is told, with the key, and never becomes a record.

use alluvium_log::ReadError;
use proptest::prelude::*;

use super::made::{COMMON, Common, Given, Made, batches, given};
use super::*;

fn some_batches() -> Vec<Given> {
    (0..40)
        .map(|n| {
            let records: Vec<Made> = (0..20)
                .map(|delta| Made {
                    delta,
                    timestamp: 1000 * i64::from(n) + i64::from(delta),
                    key: (delta % 3 > 0).then(|| vec![delta as u8; 5]),
                    value: (delta % 7 > 0).then(|| vec![n as u8; 50 + delta as usize]),
                    headers: vec![(b"h".to_vec(), None); delta as usize % 3],
                })
                .collect();
            let common = Common {
                partition: n / 20,
                base_offset: i64::from(n % 20) * 20,
                last_delta: 19,
                ..COMMON
            };
            given(&common, &records)
        })
        .collect()
}

async fn read_all(
    history: &ParquetHistory,
    store: &Store,
    shares: &[Share],
) -> Vec<Result<Vec<Seen>, ReadError>> {
    let mut out = vec![];
    for share in shares {
        out.push(replay(history, store, share, share.base_offset, 5000).await);
        let found = history
            .first_at_or_after(store, &key(), share, 7010, share.base_offset)
            .await;
        out.push(found.map(|found| {
            let seen = |(offset, timestamp)| Seen {
                offset,
                timestamp,
                log_append: false,
                epoch: 0,
                key: None,
                value: None,
                headers: vec![],
            };
            found.map(seen).into_iter().collect()
        }));
    }
    out
}

fn is_told(error: &ReadError) -> bool {
    matches!(error, ReadError::Corrupt(what) if what.contains(key().as_ref()))
}

#[test]
fn no_flipped_bit_becomes_a_record() {
    let (file, finished, _) = write(&small(), &topic(false), &some_batches());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = memory();
    let right: Vec<_> = runtime.block_on(async {
        put(&store, &file).await;
        read_all(&history(&small()), &store, &finished.shares).await
    });
    assert!(right.iter().all(Result::is_ok));
    let config = ProptestConfig {
        cases: 600,
        ..ProptestConfig::default()
    };
    proptest!(config, |(at in 0..file.len(), bit in 0..8)| {
        let mut damaged = file.to_vec();
        damaged[at] ^= 1u8 << bit;
        let read = runtime.block_on(async {
            put(&store, &Bytes::from(damaged)).await;
            read_all(&history(&small()), &store, &finished.shares).await
        });
        for (read, right) in read.iter().zip(&right) {
            match read {
                Ok(_) => prop_assert_eq!(read, right),
                Err(error) => prop_assert!(is_told(error), "{:?}", error),
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_is_cut_or_garbage_is_told(batches in batches(6), cut: prop::sample::Index, garbage: Vec<u8>) {
        let (file, finished, _) = write(&small(), &topic(false), &batches);
        let cut = file.slice(..cut.index(file.len()));
        let end = file.slice(file.len() - 8..);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            for bytes in [cut, Bytes::new(), Bytes::from(garbage.clone()), Bytes::from([&garbage[..], &end].concat())] {
                let store = memory();
                put(&store, &bytes).await;
                for read in read_all(&history(&small()), &store, &finished.shares).await {
                    assert!(read.is_err_and(|e| is_told(&e)), "{} bytes", bytes.len());
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_and_a_foreign_share_are_told() {
    let (file, finished, _) = write(&small(), &topic(false), &some_batches());
    let (store, history) = (memory(), history(&small()));
    let share = finished.shares[0];
    let missing = history.read(&store, &key(), &share, 0, 1).await;
    assert_eq!(missing, Err(ReadError::Missing(key().to_string())));
    put(&store, &file).await;
    for foreign in [
        Share {
            partition: 9,
            ..share
        },
        Share {
            last_offset: share.last_offset + 1,
            ..share
        },
        Share {
            first_row: 1,
            ..share
        },
    ] {
        let read = history.read(&store, &key(), &foreign, 0, 1).await;
        assert!(read.is_err_and(|e| is_told(&e)));
    }
    assert!(history.read(&store, &key(), &share, 0, 1).await.is_ok());
    store.bulk.delete(&key()).await.unwrap();
    history.forget(&key()).await;
    let gone = history.read(&store, &key(), &share, 0, 1).await;
    assert_eq!(gone, Err(ReadError::Missing(key().to_string())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_under_a_reader_is_told() {
    let (file, finished, _) = write(&small(), &topic(false), &some_batches());
    let (store, history) = (memory(), history(&small()));
    put(&store, &file).await;
    history
        .read(&store, &key(), &finished.shares[0], 0, 1)
        .await
        .unwrap();
    store.bulk.delete(&key()).await.unwrap();
    let share = finished.shares.last().unwrap();
    let gone = history.read(&store, &key(), share, share.last_offset, 1).await;
    assert_eq!(gone, Err(ReadError::Missing(key().to_string())));
}
