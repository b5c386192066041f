use super::*;

fn settings() -> TopicSettings {
    TopicSettings {
        max_message_bytes: 1000,
        log_append_time: false,
        timestamp_before_max_ms: 10_000,
        timestamp_after_max_ms: 1_000,
        retention_ms: -1,
        retention_bytes: -1,
        cleanup_compact: false,
        cleanup_delete: true,
        archive_enable: true,
        archive_file_bytes: 1 << 20,
        archive_interval_ms: 1000,
        archive_text_values: false,
        compaction: alluvium_log::CompactionSettings {
            delete_retention_ms: 0,
            min_lag_ms: 0,
            max_lag_ms: i64::MAX,
            min_dirty_ratio: 0.5,
            segment_ms: i64::MAX,
        },
    }
}

fn header(attributes: i16) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        batch_length: 100,
        leader_epoch: -1,
        magic: 2,
        crc: 0,
        attributes,
        last_offset_delta: 0,
        base_timestamp: 0,
        max_timestamp: 0,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 1,
    }
}

fn error_of<T: std::fmt::Debug>(result: Result<T, Refusal>) -> ErrorCode {
    result.unwrap_err().error
}

#[test]
fn headers_are_refused_with_the_errors_of_kafka() {
    let settings = settings();
    let check = |version| Check {
        settings: &settings,
        version,
        now_ms: 0,
    };
    assert_eq!(check(3).header(&header(0)), Ok(()));
    assert_eq!(
        error_of(check(6).header(&header(4))),
        ErrorCode::UnsupportedCompressionType
    );
    assert_eq!(check(7).header(&header(4)), Ok(()));
    assert_eq!(
        error_of(check(9).header(&header(0x10))),
        ErrorCode::TransactionalIdAuthorizationFailed
    );
    assert_eq!(error_of(check(9).header(&header(0x20))), ErrorCode::InvalidRecord);
    assert_eq!(error_of(check(9).header(&header(0x30))), ErrorCode::InvalidRecord);
}

#[test]
fn empty_and_oversized_batches_are_refused_unparsed() {
    let settings = settings();
    let check = Check {
        settings: &settings,
        version: 9,
        now_ms: 0,
    };
    assert_eq!(error_of(check.parse(None)), ErrorCode::InvalidRecord);
    assert_eq!(
        error_of(check.parse(Some(Bytes::new()))),
        ErrorCode::InvalidRecord
    );
    assert_eq!(
        error_of(check.parse(Some(Bytes::from(vec![0; 1001])))),
        ErrorCode::MessageTooLarge
    );
}

fn batch(records: &[(i64, Option<&[u8]>)], codec: Codec) -> Bytes {
    let mut builder = alluvium_log::batch::BatchBuilder::new();
    for (timestamp, key) in records {
        builder.push(*timestamp, *key, Some(b"value"), &[]);
    }
    builder.build_with(codec).unwrap().bytes().clone()
}

#[test]
fn timestamps_may_be_absent_or_near_the_clock() {
    let settings = settings();
    let check = Check {
        settings: &settings,
        version: 9,
        now_ms: 50_000,
    };
    for codec in [Codec::None, Codec::Lz4] {
        for good in [-1, 50_000, 40_000, 51_000] {
            assert!(check.parse(Some(batch(&[(good, None)], codec))).is_ok(), "{good}");
        }
        for bad in [39_999, 51_001, 0] {
            let refusal = check.parse(Some(batch(&[(50_000, None), (bad, None)], codec)));
            // The header of a compressed batch knows the first and the largest only.
            if codec == Codec::Lz4 && bad < 50_000 {
                assert!(refusal.is_ok());
                continue;
            }
            let refusal = refusal.unwrap_err();
            assert_eq!(refusal.error, ErrorCode::InvalidTimestamp, "{bad}");
            assert_eq!(
                refusal
                    .records
                    .iter()
                    .map(|(index, _)| *index)
                    .collect::<Vec<_>>(),
                [1]
            );
        }
    }
    let by_broker = TopicSettings {
        log_append_time: true,
        ..settings.clone()
    };
    let check = Check {
        settings: &by_broker,
        version: 9,
        now_ms: 50_000,
    };
    assert!(check.parse(Some(batch(&[(0, None)], Codec::None))).is_ok());
    let unlimited = TopicSettings {
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        ..settings
    };
    let check = Check {
        settings: &unlimited,
        version: 9,
        now_ms: 50_000,
    };
    assert!(
        check
            .parse(Some(batch(&[(0, None), (i64::MAX, None)], Codec::None)))
            .is_ok()
    );
}

#[test]
fn compacted_topics_need_keys() {
    let settings = TopicSettings {
        cleanup_compact: true,
        ..settings()
    };
    let check = Check {
        settings: &settings,
        version: 9,
        now_ms: 0,
    };
    for codec in [Codec::None, Codec::Zstd] {
        assert!(
            check
                .parse(Some(batch(&[(0, Some(b"k")), (0, Some(b""))], codec)))
                .is_ok()
        );
        let refusal = check
            .parse(Some(batch(&[(0, Some(b"k")), (0, None), (0, None)], codec)))
            .unwrap_err();
        assert_eq!(refusal.error, ErrorCode::InvalidRecord);
        assert_eq!(
            refusal.records,
            [(1, "no key".to_owned()), (2, "no key".to_owned())]
        );
    }
}

#[test]
fn a_damaged_batch_is_corrupt() {
    let settings = settings();
    let check = Check {
        settings: &settings,
        version: 9,
        now_ms: 0,
    };
    let mut bytes = batch(&[(0, Some(b"k"))], Codec::None).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(
        error_of(check.parse(Some(bytes.into()))),
        ErrorCode::CorruptMessage
    );
}

#[test]
fn requests_are_checked_as_a_whole() {
    let mut request = ProduceRequest::default();
    for (acks, error) in [
        (-1, None),
        (0, None),
        (1, None),
        (2, Some(ErrorCode::InvalidRequiredAcks)),
        (-2, Some(ErrorCode::InvalidRequiredAcks)),
    ] {
        request.acks = acks;
        assert_eq!(check_request(&request).map(|refusal| refusal.error), error);
    }
    request.acks = -1;
    request.transactional_id = Some(StrBytes::from("tx"));
    let refusal = check_request(&request).unwrap();
    assert_eq!(refusal.error, ErrorCode::TransactionalIdAuthorizationFailed);
}

#[test]
fn a_failed_partition_carries_the_records_at_fault_and_encodes_at_every_version() {
    use kafka_wire_core::{ApiVersion, KafkaEncode};
    let mut refusal = Refusal::new(ErrorCode::InvalidRecord, "why");
    refusal.records = vec![(3, "no key".to_owned())];
    let answer = failed(2, &refusal);
    assert_eq!((answer.index, answer.error_code, answer.base_offset), (2, 87, -1));
    assert_eq!(answer.record_errors[0].batch_index, 3);
    let mut topic = TopicProduceResponse::default();
    topic.name = StrBytes::from("t");
    topic.topic_id = kafka_wire_core::Uuid::from_bytes([1; 16]);
    topic.partition_responses = vec![answer];
    let mut response = ProduceResponse::default();
    response.responses = vec![topic];
    for version in 3..=13 {
        response.encode_to_bytes(ApiVersion::new(version)).unwrap();
    }
}

#[test]
fn timeouts_of_nothing_are_the_default() {
    assert_eq!(patience(0), DEFAULT_TIMEOUT);
    assert_eq!(patience(-5), DEFAULT_TIMEOUT);
    assert_eq!(patience(1500), Duration::from_millis(1500));
}
