use super::*;
use crate::connection::Ended;
use bytes::BytesMut;
use kafka_wire::{RequestHeader, RequestResponsePair};
use kafka_wire_core::{KafkaEncode, StrBytes};
use proptest::prelude::*;

/// Versions that Kafka 4 serves: (key, first advertised, last).
const KAFKA: &[(i16, i16, i16)] = &[
    (0, 0, 13),
    (1, 4, 18),
    (2, 1, 11),
    (3, 0, 13),
    (8, 2, 10),
    (9, 1, 10),
    (10, 0, 6),
    (11, 0, 9),
    (12, 0, 4),
    (13, 0, 5),
    (14, 0, 5),
    (15, 0, 6),
    (16, 0, 5),
    (18, 0, 4),
    (19, 2, 7),
    (20, 1, 6),
    (21, 0, 2),
    (22, 0, 5),
    (23, 2, 4),
    (29, 1, 3),
    (32, 1, 4),
    (33, 0, 2),
    (35, 1, 5),
    (37, 0, 3),
    (42, 0, 2),
    (43, 0, 2),
    (44, 0, 1),
    (45, 0, 1),
    (46, 0, 0),
    (47, 0, 0),
    (48, 0, 1),
    (60, 0, 2),
    (61, 0, 0),
    (75, 0, 0),
];

fn peer() -> Peer {
    Peer::new(0, IpAddr::from([127, 0, 0, 1]), &"PLAINTEXT".into())
}

/// Routes a request and says what came of it, without a broker behind.
fn routed(key: i16, version: i16, bytes: impl Into<Bytes>) -> Routed {
    route(&mut peer(), key, version, bytes.into())
}

fn header(key: i16, version: i16, flexible: bool) -> BytesMut {
    let mut header = RequestHeader::default();
    header.request_api_key = key;
    header.request_api_version = version;
    header.correlation_id = 77;
    header.client_id = Some(StrBytes::from("tester"));
    let mut bytes = BytesMut::new();
    header
        .encode_into(&mut bytes, ApiVersion::new(if flexible { 2 } else { 1 }))
        .unwrap();
    bytes
}

fn refusal(routed: Routed) -> Refusal {
    match routed {
        Routed::Done(Outcome::Close(refusal)) => refusal,
        Routed::Done(other) => panic!("not refused: {other:?}"),
        Routed::Run(request) => panic!("{} runs", request.api.name),
    }
}

#[test]
fn the_table_serves_what_kafka_serves() {
    let mut keys: Vec<i16> = apis().map(|api| api.key).collect();
    keys.sort_unstable();
    assert!(keys.is_sorted_by(|a, b| a < b), "a key is listed twice: {keys:?}");
    for api in apis() {
        let (first, last) = api.advertised();
        assert!(
            KAFKA.contains(&(api.key, first, last)),
            "{} {first}-{last}",
            api.name
        );
        assert!(api.first <= api.last);
    }
    for served in [0, 1, 2, 3, 18, 22, 23] {
        assert!(find(served).is_some(), "{served}");
    }
}

#[test]
fn unknown_apis_and_versions_close_the_connection() {
    let bytes = header(3, 99, false).freeze();
    assert!(matches!(
        refusal(routed(999, 0, bytes.clone())),
        Refusal::UnknownApi(999)
    ));
    assert!(matches!(
        refusal(routed(-1, 0, bytes.clone())),
        Refusal::UnknownApi(-1)
    ));
    for version in [-1, 14, i16::MAX, i16::MIN] {
        let refused = refusal(routed(3, version, bytes.clone()));
        assert!(
            matches!(refused, Refusal::UnsupportedVersion { api: "Metadata", .. }),
            "{refused}"
        );
    }
    assert!(matches!(
        refusal(routed(1, 3, bytes)),
        Refusal::UnsupportedVersion { api: "Fetch", .. }
    ));
}

#[test]
fn an_unknown_version_of_api_versions_gets_the_ranges_in_version_0() {
    for version in [5, 99, i16::MAX, -1] {
        let Routed::Done(Outcome::Reply(reply)) = routed(18, version, header(18, version, true)) else {
            panic!("no reply to version {version}");
        };
        let frame = &reply.chunks[0];
        assert_eq!(frame[4..8], 77_i32.to_be_bytes());
        assert_eq!(frame[8..10], 35_i16.to_be_bytes());
        let count = apis().count();
        assert_eq!(frame[10..14], (count as i32).to_be_bytes());
        // Produce comes first and is advertised from 0 on; then Fetch from 4 on.
        assert_eq!(frame[14..26], [0, 0, 0, 0, 0, 13, 0, 1, 0, 4, 0, 18]);
        assert_eq!(frame.len(), 14 + 6 * count);
    }
}

#[test]
fn the_header_of_api_versions_stays_at_version_0() {
    let response = kafka_wire::ApiVersionsResponse::default();
    for (version, body) in [(0, 2 + 4), (2, 2 + 4 + 4), (3, 2 + 1 + 4 + 1), (4, 2 + 1 + 4 + 1)] {
        let reply = protocol::encode_reply(API_VERSIONS, version, 1, &response).unwrap();
        assert_eq!(reply.chunks[0].len(), 8 + body, "version {version}");
    }
    let response = kafka_wire::MetadataResponse::default();
    let rigid = protocol::encode_reply(3, 8, 1, &response).unwrap().chunks[0].len();
    let flexible = protocol::encode_reply(3, 9, 1, &response).unwrap();
    assert_eq!(
        flexible.chunks[0][8], 0,
        "a flexible header has an empty list of tags"
    );
    assert!(rigid > 8);
}

#[test]
fn headers_are_read_at_both_versions() {
    for (version, flexible) in [(1, false), (12, true)] {
        let mut bytes = header(3, version, flexible);
        bytes.extend_from_slice(b"body");
        let Routed::Run(request) = routed(3, version, bytes) else {
            panic!("not run")
        };
        assert_eq!((request.correlation_id, &*request.ctx.client_id), (77, "tester"));
        assert_eq!(&*request.ctx.client_host, "/127.0.0.1");
        assert_eq!(request.body.remaining(), 4);
    }
}

#[test]
fn a_client_id_is_kept_while_it_stays_the_same() {
    let mut peer = peer();
    let first = peer.context(Some("a"), 1).client_id;
    assert!(Arc::ptr_eq(&first, &peer.context(Some("a"), 1).client_id));
    assert_eq!(&*peer.context(None, 1).client_id, "");
}

/// What a malformed request of an API comes to: the type's own decoder, as the table calls it.
fn decode<R: KafkaRequest>(version: i16, body: &[u8]) -> Result<R, kafka_wire_core::DecodeError> {
    let api = find(R::API_KEY.value()).unwrap();
    let flexible = (api.is_flexible)(ApiVersion::new(version));
    let mut bytes = header(api.key, version, flexible);
    bytes.extend_from_slice(body);
    let (_, decoder) = protocol::decode_header(bytes.freeze(), flexible).unwrap();
    protocol::decode_body::<R>(decoder, version)
}

#[test]
fn hostile_counts_are_errors() {
    let max = i32::MAX.to_be_bytes();
    assert!(decode::<MetadataRequest>(0, &max).is_err());
    // No transactional id, acks, timeout, then as many topics as there can be.
    let mut produce = vec![0xff, 0xff, 0, 1, 0, 0, 0, 0];
    produce.extend(max);
    assert!(decode::<ProduceRequest>(3, &produce).is_err());
    // The same in the compact encoding: 2^32 - 2 elements.
    assert!(decode::<MetadataRequest>(9, &[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    assert!(decode::<ProduceRequest>(9, &[0, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    // A list longer than any client sends, backed by bytes.
    let mut long = 300_000_i32.to_be_bytes().to_vec();
    long.extend(vec![0; 600_000]);
    assert!(decode::<MetadataRequest>(1, &long).is_err());
    // As many tags as there can be, and one larger than the request.
    assert!(decode::<ApiVersionsRequest>(3, &[1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    assert!(decode::<ApiVersionsRequest>(3, &[1, 1, 1, 9, 0xff, 0xff, 0xff, 0x7f]).is_err());
}

#[test]
fn bytes_left_over_are_passed_over() {
    assert!(decode::<ApiVersionsRequest>(0, b"").is_ok());
    assert!(
        decode::<ApiVersionsRequest>(0, b"xyz").is_ok(),
        "librdkafka leaves some"
    );
}

#[test]
fn short_frames_never_get_to_a_handler() {
    for api in apis() {
        for version in api.first..=api.last {
            let whole = header(api.key, version, (api.is_flexible)(ApiVersion::new(version)));
            for cut in 0..whole.len() {
                let refused = refusal(routed(api.key, version, whole.clone().freeze().slice(..cut)));
                assert!(
                    matches!(refused, Refusal::Malformed { .. }),
                    "{} {version}: {refused}",
                    api.name
                );
                assert!(Ended::from(refused).is_noteworthy());
            }
        }
    }
}

fn shortened<R: RequestResponsePair + Default>(versions: std::ops::RangeInclusive<i16>, request: &R) {
    for version in versions {
        let whole = request.encode_to_bytes(ApiVersion::new(version)).unwrap();
        assert!(decode::<R>(version, &whole).is_ok(), "{} {version}", R::NAME);
        for cut in 0..whole.len() {
            assert!(
                decode::<R>(version, &whole[..cut]).is_err(),
                "{} {version} cut at {cut}",
                R::NAME
            );
        }
    }
}

#[test]
fn every_cut_of_a_body_is_an_error() {
    shortened(4..=18, &FetchRequest::default());
    shortened(1..=11, &ListOffsetsRequest::default());
    shortened(0..=5, &InitProducerIdRequest::default());
    shortened(2..=4, &OffsetForLeaderEpochRequest::default());
    let mut produce = ProduceRequest::default();
    let mut topic = kafka_wire::produce_request::TopicProduceData::default();
    let mut data = kafka_wire::produce_request::PartitionProduceData::default();
    data.records = Some(Bytes::from_static(b"batch"));
    topic.partition_data = vec![data];
    produce.topic_data = vec![topic];
    shortened(3..=13, &produce);
}

proptest! {
    #[test]
    fn arbitrary_bodies_do_no_harm(body in proptest::collection::vec(any::<u8>(), 0..200), version in 0_i16..19) {
        let _ = decode::<ProduceRequest>(version, &body);
        let _ = decode::<FetchRequest>(version, &body);
        let _ = decode::<MetadataRequest>(version, &body);
        let _ = decode::<ListOffsetsRequest>(version, &body);
        let _ = decode::<ApiVersionsRequest>(version, &body);
    }

    #[test]
    fn arbitrary_frames_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        key in -2_i16..80,
        version in -2_i16..20,
    ) {
        let _ = routed(key, version, bytes);
    }
}
