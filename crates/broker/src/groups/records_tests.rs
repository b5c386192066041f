use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn offset_record(value: Option<OffsetValue>) -> LogRecord {
    LogRecord::Offset {
        group: "grp".to_owned(),
        topic: "events".to_owned(),
        partition: 7,
        value,
    }
}

fn offset_value() -> OffsetValue {
    OffsetValue {
        offset: 0x0102,
        leader_epoch: 5,
        metadata: "hi".to_owned(),
        commit_timestamp_ms: 0x018b_cfe5_6800,
        expire_timestamp_ms: None,
        topic_id: None,
    }
}

/// Computed by hand from Kafka's `OffsetCommitKey.json` and `OffsetCommitValue.json`.
#[test]
fn offset_records_are_kafkas_bytes() {
    let key = hex("0001 0003 677270 0006 6576656e7473 00000007");
    let with_id = OffsetValue {
        topic_id: Some(TopicId::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
        ..offset_value()
    };
    let with_expiry = OffsetValue {
        leader_epoch: -1,
        expire_timestamp_ms: Some(0x018b_cfe5_6900),
        ..offset_value()
    };
    let cases = [
        (
            offset_value(),
            "0003 0000000000000102 00000005 0002 6869 0000018bcfe56800",
        ),
        (
            with_id,
            "0004 0000000000000102 00000005 03 6869 0000018bcfe56800
             01 00 10 00112233445566778899aabbccddeeff",
        ),
        (
            with_expiry,
            "0001 0000000000000102 0002 6869 0000018bcfe56800 0000018bcfe56900",
        ),
    ];
    for (value, bytes) in cases {
        let encoded = offset_record(Some(value.clone())).encode().unwrap();
        assert_eq!(encoded.key, key);
        assert_eq!(encoded.value, Some(hex(bytes)));
        let decoded = LogRecord::decode(&key, Some(&hex(bytes))).unwrap();
        assert_eq!(decoded, Some(offset_record(Some(value))));
    }
    let tombstone = offset_record(None).encode().unwrap();
    assert_eq!((tombstone.key, tombstone.value), (key.clone(), None));
    assert_eq!(LogRecord::decode(&key, None).unwrap(), Some(offset_record(None)));
}

/// Computed by hand from Kafka's `GroupMetadataKey.json` and `GroupMetadataValue.json`.
#[test]
fn group_records_are_kafkas_bytes() {
    let member = MemberValue {
        member_id: "m-1".to_owned(),
        group_instance_id: Some("i".to_owned()),
        client_id: "c".to_owned(),
        client_host: "/h".to_owned(),
        rebalance_timeout_ms: 60_000,
        session_timeout_ms: 10_000,
        subscription: Bytes::from_static(&[1, 2]),
        assignment: Bytes::from_static(&[3]),
    };
    let value = GroupValue {
        protocol_type: "consumer".to_owned(),
        generation: 9,
        protocol: Some("range".to_owned()),
        leader: Some("m-1".to_owned()),
        state_timestamp_ms: 0x018b_cfe5_6800,
        members: vec![member],
    };
    let record = LogRecord::Group {
        group: "grp".to_owned(),
        value: Some(value),
    };
    let encoded = record.encode().unwrap();
    assert_eq!(encoded.key, hex("0002 0003 677270"));
    let bytes = hex(
        "0003 0008 636f6e73756d6572 00000009 0005 72616e6765 0003 6d2d31 0000018bcfe56800
                     00000001
                     0003 6d2d31 0001 69 0001 63 0002 2f68 0000ea60 00002710 00000002 0102 00000001 03",
    );
    assert_eq!(encoded.value.as_deref(), Some(&bytes[..]));
    assert_eq!(
        LogRecord::decode(&encoded.key, Some(&bytes)).unwrap(),
        Some(record)
    );

    let empty = GroupValue {
        protocol_type: String::new(),
        generation: 0,
        protocol: None,
        leader: None,
        state_timestamp_ms: -1,
        members: Vec::new(),
    };
    let encoded = LogRecord::Group {
        group: "grp".to_owned(),
        value: Some(empty),
    }
    .encode()
    .unwrap();
    let bytes = hex("0003 0000 00000000 ffff ffff ffffffffffffffff 00000000");
    assert_eq!(encoded.value, Some(bytes));
}

#[test]
fn older_and_newer_values_are_read() {
    let read = |bytes: &str| match LogRecord::decode(&hex("0001 0001 67 0001 74 00000000"), Some(&hex(bytes)))
    {
        Ok(Some(LogRecord::Offset {
            value: Some(value), ..
        })) => value,
        other => panic!("{other:?}"),
    };
    let oldest = read("0000 0000000000000005 0000 0000000000000064");
    assert_eq!(
        (oldest.offset, oldest.leader_epoch, oldest.commit_timestamp_ms),
        (5, -1, 100)
    );
    let second = read("0002 0000000000000005 0000 0000000000000064");
    assert_eq!((second.offset, second.expire_timestamp_ms), (5, None));
    // A tag that this version does not know is skipped.
    let tagged = read("0004 0000000000000005 ffffffff 01 0000000000000064 01 09 02 beef");
    assert_eq!((tagged.offset, tagged.topic_id), (5, None));

    // Group values: version 0 has one timeout, version 4 is flexible.
    let group = |bytes: &str| match LogRecord::decode(&hex("0002 0001 67"), Some(&hex(bytes))) {
        Ok(Some(LogRecord::Group {
            value: Some(value), ..
        })) => value,
        other => panic!("{other:?}"),
    };
    let oldest = group(
        "0000 0008 636f6e73756d6572 00000001 0001 72 0001 6d 00000001
         0001 6d 0001 63 0001 68 00001388 00000000 00000000",
    );
    assert_eq!(
        (oldest.state_timestamp_ms, oldest.members[0].rebalance_timeout_ms),
        (-1, 5_000)
    );
    let newest = group(
        "0004 09 636f6e73756d6572 00000001 02 72 02 6d 0000000000000064 02
         02 6d 00 02 63 02 68 00001388 00001388 02 aa 01 00 00",
    );
    assert_eq!(
        (newest.state_timestamp_ms, newest.members[0].member_id.as_str()),
        (100, "m")
    );
    assert_eq!(newest.members[0].subscription, Bytes::from_static(&[0xaa]));
}

#[test]
fn other_kinds_of_records_are_skipped_and_unknown_versions_refused() {
    // ConsumerGroupMetadataKey (KIP-848) is version 3.
    assert_eq!(
        LogRecord::decode(&hex("0003 0001 67"), Some(&hex("0000"))),
        Ok(None)
    );
    let future = LogRecord::decode(&hex("0002 0001 67"), Some(&hex("0005")));
    assert_eq!(future, Err(RecordError::UnknownVersion(5)));
    let long = LogRecord::Group {
        group: "x".repeat(40_000),
        value: None,
    };
    assert_eq!(long.encode(), Err(RecordError::TooLong(40_000)));
}

/// Values of Java's `String.hashCode`, made non-negative, modulo 50.
#[test]
fn groups_are_placed_as_in_kafka() {
    let cases = [
        ("", 0),
        // 97
        ("a", 47),
        // 99162322
        ("hello", 22),
        // 627841412
        ("test-group", 12),
        // -1906497762
        ("my-group", 12),
        // Integer.MIN_VALUE, whose absolute value Kafka takes as 0.
        ("polygenelubricants", 0),
        // Beyond the basic plane Java counts surrogates: 0xd83d * 31 + 0xde00 = 1772899.
        ("\u{1f600}", 49),
    ];
    for (group, partition) in cases {
        assert_eq!(partition_for(group, 50), partition, "{group:?}");
    }
    assert_eq!(partition_for("anything", 0), 0);
}

#[test]
fn subscriptions_are_read_by_their_common_prefix() {
    // Version 3 with one topic, no user data, and what later versions add.
    let newer = hex("0003 00000001 0001 74 ffffffff 00000000 00000001 ffff");
    assert_eq!(subscribed_topics(&newer), Some(vec!["t".to_owned()]));
    for damaged in [
        "",
        "00",
        "ffff 00000000",
        "0000 7fffffff",
        "0000 ffffffff",
        "0000 00000001 0005 74",
    ] {
        assert_eq!(subscribed_topics(&hex(damaged)), None, "{damaged}");
    }
}

fn texts() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a-zé\u{1f600}]{0,12}").unwrap()
}

proptest! {
    #[test]
    fn offsets_survive_a_round_trip(
        group in texts(), topic in texts(), partition: i32, offset: i64, epoch: i32, metadata in texts(),
        commit: i64, expire in proptest::option::of(0i64..), id in proptest::option::of(1u128..),
    ) {
        let value = OffsetValue {
            offset,
            // A value with an expiry time has room for neither.
            leader_epoch: if expire.is_some() { -1 } else { epoch },
            topic_id: if expire.is_some() { None } else { id.map(TopicId::from_u128) },
            metadata,
            commit_timestamp_ms: commit,
            expire_timestamp_ms: expire,
        };
        let record = LogRecord::Offset { group, topic, partition, value: Some(value) };
        let bytes = record.encode().unwrap();
        prop_assert_eq!(LogRecord::decode(&bytes.key, bytes.value.as_deref()).unwrap(), Some(record));
    }

    #[test]
    fn any_bytes_are_an_answer_and_never_a_panic(
        kind in 0i16..4, key: Vec<u8>, version in 0i16..6, value: Vec<u8>,
    ) {
        let key = [&kind.to_be_bytes()[..], &key].concat();
        let value = [&version.to_be_bytes()[..], &value].concat();
        let _ = LogRecord::decode(&key, Some(&value));
        let _ = subscribed_topics(&value);
    }
}
