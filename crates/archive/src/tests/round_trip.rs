//! Any batches, through writer and reader, are the same records; and bad ones harm no other.

use alluvium_log::batch::BatchBuilder;
use alluvium_log::codec::Codec;
use arrow::array::{Array, AsArray, BinaryArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

use super::made::{COMMON, Common, Given, Made, batches, encode, given, raw};
use super::*;

/// What all shares must be together: the batches' offsets, without a gap within a run of batches.
fn check_shares(batches: &[Given], finished: &FinishedFile) {
    let mut shares = finished.shares.iter().peekable();
    let mut at = 0;
    while at < batches.len() {
        let mut end = at + 1;
        while end < batches.len()
            && batches[end].partition == batches[at].partition
            && batches[end].base_offset == batches[end - 1].last_offset + 1
        {
            end += 1;
        }
        let run = &batches[at..end];
        let (mut next, last) = (run[0].base_offset, run[run.len() - 1].last_offset);
        while next <= last {
            let share = shares.next().expect("a share of every offset");
            assert_eq!((share.partition, share.base_offset), (run[0].partition, next));
            let own: Vec<i64> = run
                .iter()
                .flat_map(|b| &b.records)
                .filter(|r| (share.base_offset..=share.last_offset).contains(&r.offset))
                .map(|r| r.timestamp)
                .collect();
            assert_eq!(share.max_timestamp, own.iter().copied().fold(-1, i64::max));
            assert_eq!(share.append_time_ms, run[0].append_time);
            assert!(
                !own.is_empty() || share.last_offset == last,
                "only a whole run is without rows"
            );
            next = share.last_offset + 1;
        }
        assert_eq!(next, last + 1);
        at = end;
    }
    assert!(shares.next().is_none());
    let rows: usize = batches.iter().map(|b| b.records.len()).sum();
    assert_eq!(finished.rows, rows as u64);
}

async fn check_reads(options: &ParquetOptions, batches: &[Given], file: &Bytes, finished: &FinishedFile) {
    let (store, history) = (memory(), history(options));
    put(&store, file).await;
    for share in &finished.shares {
        let own: Vec<Seen> = batches
            .iter()
            .filter(|b| b.partition == share.partition)
            .flat_map(|b| b.records.clone())
            .filter(|r| (share.base_offset..=share.last_offset).contains(&r.offset))
            .collect();
        for max_bytes in [1, 3000, 1 << 20] {
            let all = replay(&history, &store, share, share.base_offset, max_bytes)
                .await
                .unwrap();
            assert_eq!(all, own);
        }
        let starts = own
            .iter()
            .flat_map(|r| [r.offset, r.offset + 1])
            .chain([share.last_offset]);
        for offset in starts.filter(|o| *o <= share.last_offset) {
            let got = history.read(&store, &key(), share, offset, 1).await.unwrap();
            let records = seen(&got);
            let expected = own.iter().find(|r| r.offset >= offset);
            let holds = expected.is_none_or(|r| records.iter().any(|seen| seen == r));
            assert!(got.len() == 1 && (holds || records.iter().all(|r| r.offset < offset)));
        }
        let beyond = history
            .read(&store, &key(), share, share.last_offset + 1, 1)
            .await;
        assert_eq!(beyond.unwrap(), Vec::<Bytes>::new());
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Every row as a reader that knows nothing of us sees it, with its partition and append time (us). The checksums of the
/// pages are verified.
fn rows(file: &Bytes) -> Vec<(i32, i64, Seen)> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap();
    let mut out = vec![];
    for rows in reader.build().unwrap() {
        let rows = rows.unwrap();
        let column = |name| rows.column_by_name(name).unwrap();
        let partitions = column("partition").as_primitive::<Int32Type>();
        let offsets = column("offset").as_primitive::<Int64Type>();
        let timestamps = column("timestamp").as_primitive::<TimestampMicrosecondType>();
        let append_times = column("append_time").as_primitive::<TimestampMicrosecondType>();
        let epochs = column("leader_epoch").as_primitive::<Int32Type>();
        let (keys, values) = (
            column("key").as_binary::<i32>(),
            column("value").as_binary::<i32>(),
        );
        let headers = column("headers").as_list::<i32>();
        let log_append = column("log_append_time").as_boolean();
        let bytes = |column: &BinaryArray, n| column.is_valid(n).then(|| column.value(n).to_vec().into());
        for n in 0..rows.num_rows() {
            let own = headers.value(n);
            let own = own.as_struct();
            let names = own.column(0).as_string::<i32>();
            let of_names = own.column(1).as_binary::<i32>();
            let named = |h| {
                (
                    Bytes::copy_from_slice(names.value(h).as_bytes()),
                    bytes(of_names, h),
                )
            };
            let timestamp = timestamps.is_valid(n).then(|| timestamps.value(n));
            let record = Seen {
                offset: offsets.value(n),
                timestamp: timestamp.map_or(-1, |us| us / 1000),
                log_append: log_append.value(n),
                epoch: epochs.value(n),
                key: bytes(keys, n),
                value: bytes(values, n),
                headers: (0..own.len()).map(named).collect(),
            };
            out.push((partitions.value(n), append_times.value(n), record));
        }
    }
    out
}

fn check_as_parquet(file: &Bytes, batches: &[Given]) {
    let given = batches.iter().flat_map(|b| {
        let of_batch = move |record: &Seen| (b.partition, b.append_time * 1000, record.clone());
        b.records.iter().map(of_batch)
    });
    assert_eq!(rows(file), given.collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_batches_come_back(batches in batches(30)) {
        let (file, finished, refused) = write(&small(), &topic(false), &batches);
        prop_assert_eq!(refused, vec![]);
        check_shares(&batches, &finished);
        check_as_parquet(&file, &batches);
        block_on(check_reads(&small(), &batches, &file, &finished));
    }

    #[test]
    fn so_they_do_with_a_brokers_options(batches in batches(10)) {
        let options = ParquetOptions::default();
        let (file, finished, refused) = write(&options, &topic(false), &batches);
        prop_assert_eq!(refused, vec![]);
        check_shares(&batches, &finished);
        block_on(check_reads(&options, &batches, &file, &finished));
    }
}

fn one(delta: i32, value: &[u8]) -> Made {
    Made {
        delta,
        timestamp: 1_700_000_000_000,
        value: Some(value.to_vec()),
        ..Made::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_larger_than_a_row_group_is_alone() {
    let big = vec![b'x'; 3 << 20];
    let batches = [
        given(
            &Common {
                last_delta: 1,
                ..COMMON
            },
            &[one(0, b"a"), one(1, &big)],
        ),
        given(
            &Common {
                base_offset: 2,
                last_delta: 1,
                codec: Codec::Zstd,
                ..COMMON
            },
            &[one(0, &big), one(1, b"b")],
        ),
    ];
    let (file, finished, _) = write(&small(), &topic(false), &batches);
    check_shares(&batches, &finished);
    check_reads(&small(), &batches, &file, &finished).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_wider_than_a_delta_do_no_harm() {
    let wide = i64::from(i32::MAX) + 1;
    let at = |n: i64, control| Common {
        base_offset: n * wide,
        last_delta: i32::MAX,
        control,
        ..COMMON
    };
    let batches = [
        given(&at(0, true), &[one(0, b"marker")]),
        given(&at(1, false), &[one(7, b"far from the share's start")]),
        given(&at(2, false), &[one(i32::MAX, b"far from the one before")]),
        given(&at(3, true), &[one(0, b"marker")]),
        given(&at(4, true), &[one(0, b"marker")]),
    ];
    let (file, finished, _) = write(&small(), &topic(false), &batches);
    assert_eq!(finished.shares.len(), 1);
    check_shares(&batches, &finished);
    check_reads(&small(), &batches, &file, &finished).await;
}

#[test]
fn bad_batches_are_refused_and_the_rest_is_unharmed() {
    let records = [one(0, b"a"), one(1, b"b")];
    let payload = encode(1_700_000_000_000, &records);
    let common = Common {
        base_offset: 100,
        last_delta: 1,
        ..COMMON
    };
    let made = |payload: &[u8], count| raw(&common, payload, count, 1_700_000_000_000, 1_700_000_000_000);
    let with = |common: &Common, records: &[Made]| given(common, records).bytes;
    let header = |key: &[u8]| Made {
        headers: vec![(key.to_vec(), None)],
        ..one(0, b"a")
    };
    let bomb = vec![0; (128 << 20) + 1];
    let bad = [
        (
            made(&payload, 1),
            BatchError::Invalid("the record count does not match the records"),
        ),
        (
            made(&payload, 3),
            BatchError::Invalid("a record's lengths do not match its bytes"),
        ),
        (
            made(&[&payload[..], &[0]].concat(), 2),
            BatchError::Invalid("the record count does not match the records"),
        ),
        (
            with(&common, &[one(1, b"a"), one(1, b"b")]),
            BatchError::Invalid("record offsets do not rise or leave the batch"),
        ),
        (
            with(&common, &[one(0, b"a"), one(2, b"b")]),
            BatchError::Invalid("record offsets do not rise or leave the batch"),
        ),
        (
            with(
                &Common {
                    base_offset: -1,
                    ..common
                },
                &records,
            ),
            BatchError::Invalid("an offset is negative"),
        ),
        (
            with(
                &Common {
                    last_delta: -1,
                    ..common
                },
                &[],
            ),
            BatchError::Invalid("an offset is negative"),
        ),
        (
            with(
                &Common {
                    base_offset: i64::MAX - 1,
                    ..common
                },
                &records,
            ),
            BatchError::Invalid("the offsets leave their range"),
        ),
        (
            with(
                &Common {
                    base_offset: 9,
                    ..common
                },
                &records,
            ),
            BatchError::Invalid("the offsets do not rise from batch to batch"),
        ),
        (
            with(
                &common,
                &[Made {
                    timestamp: i64::MAX / 1000 + 1,
                    ..one(0, b"a")
                }],
            ),
            BatchError::Timestamp("it does not fit microseconds"),
        ),
        (
            with(
                &Common {
                    append: Some(i64::MIN),
                    ..common
                },
                &records,
            ),
            BatchError::Timestamp("it does not fit microseconds"),
        ),
        (
            with(
                &common,
                &[Made {
                    headers: vec![(vec![], None); 1_000_001],
                    ..one(0, b"a")
                }],
            ),
            BatchError::TooLarge,
        ),
        (with(&common, &[one(0, &vec![0; 32 << 20])]), BatchError::TooLarge),
        (
            with(&common, &[header(b"\xff")]),
            BatchError::Invalid("a header's key is not UTF-8"),
        ),
        (
            with(&common, &[one(0, b"\xff")]),
            BatchError::Invalid("a value is not UTF-8"),
        ),
        (
            raw(
                &Common {
                    codec: Codec::Zstd,
                    ..common
                },
                &bomb,
                1,
                0,
                0,
            ),
            BatchError::TooLarge,
        ),
        (
            raw(
                &Common {
                    codec: Codec::Gzip,
                    ..common
                },
                b"",
                1,
                0,
                0,
            )
            .slice(..70),
            BatchError::Truncated,
        ),
    ];
    let first = given(
        &Common {
            last_delta: 9,
            ..COMMON
        },
        &[one(0, b"first")],
    );
    let last = given(
        &Common {
            base_offset: 10,
            last_delta: 0,
            ..COMMON
        },
        &[one(0, b"last")],
    );
    let mut batches = vec![first.clone()];
    batches.extend(bad.iter().map(|(bytes, _)| Given {
        bytes: bytes.clone(),
        ..first.clone()
    }));
    batches.push(last.clone());
    let (file, finished, refused) = write(&small(), &topic(true), &batches);
    let expected: Vec<_> = bad
        .iter()
        .enumerate()
        .map(|(n, (_, error))| (n + 1, error.clone()))
        .collect();
    assert_eq!(refused, expected);
    let good = [first, last];
    check_shares(&good, &finished);
    block_on(check_reads(&small(), &good, &file, &finished));
}

#[test]
fn text_values_are_text_and_others_bytes() {
    let batch = given(&COMMON, &[one(0, "é".as_bytes())]);
    for text in [false, true] {
        let (file, ..) = write(&small(), &topic(text), std::slice::from_ref(&batch));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let kind = reader.schema().field_with_name("value").unwrap().data_type();
        assert_eq!(*kind, if text { DataType::Utf8 } else { DataType::Binary });
        let schema = reader.parquet_schema().root_schema();
        let ids: Vec<i32> = schema
            .get_fields()
            .iter()
            .map(|f| f.get_basic_info().id())
            .collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}

#[test]
fn a_file_without_rows_is_one() {
    let control = Common {
        control: true,
        last_delta: 5,
        ..COMMON
    };
    let batches = [
        given(&control, &[one(0, b"marker")]),
        given(
            &Common {
                base_offset: 6,
                ..control
            },
            &[one(0, b"marker")],
        ),
        given(
            &Common {
                partition: 1,
                base_offset: 5_000_000_000,
                ..control
            },
            &[one(0, b"marker")],
        ),
    ];
    let (file, finished, refused) = write(&small(), &topic(false), &batches);
    assert_eq!((finished.rows, finished.shares.len(), refused.len()), (0, 2, 0));
    check_shares(&batches, &finished);
    check_as_parquet(&file, &batches);
    block_on(check_reads(&small(), &batches, &file, &finished));
    let empty = history(&small()).begin(&topic(false)).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.finish().unwrap().shares, []);
}

#[test]
fn a_batch_in_disorder_ends_the_file() {
    let mut writer = history(&small()).begin(&topic(false)).unwrap();
    let batch = given(&COMMON, &[one(0, b"a")]).bytes;
    assert_eq!(writer.add(3, 0, &batch), Ok(Ok(())));
    assert!(writer.add(2, 0, &batch).is_err());
    assert!(writer.add(-1, 0, &batch).is_err());
}

#[test]
fn memory_holds_about_one_row_group() {
    let options = ParquetOptions {
        row_group_bytes: 1 << 20,
        ..ParquetOptions::default()
    };
    let mut writer = history(&options).begin(&topic(false)).unwrap();
    let mut state = 1u64;
    let (mut taken, mut largest) = (0, 0);
    for n in 0..64 {
        let mut builder = BatchBuilder::new();
        for _ in 0..256 {
            let value: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(1000)
            .collect();
            builder.push(n, None, Some(&value), &[]);
        }
        let batch = builder.build();
        let mut bytes = batch.patched_header(n * 256, 0).to_vec();
        bytes.extend_from_slice(&batch.body());
        assert_eq!(writer.add(0, 0, &Bytes::from(bytes)), Ok(Ok(())));
        let part = writer.take().len();
        (taken, largest) = (taken + part, largest.max(part));
    }
    assert!(taken > 12 << 20, "what is done is handed out: {taken}");
    assert!(largest < 3 << 19, "a row group at a time: {largest}");
}
