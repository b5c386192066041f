use super::*;
use alluvium_log::manifest::Endpoint;
use kafka_wire_core::{ApiVersion, KafkaEncode};

fn endpoint(host: &str, port: u16) -> Endpoint {
    Endpoint {
        host: host.to_owned(),
        port,
    }
}

fn endpoints(host: &str) -> BTreeMap<String, Endpoint> {
    BTreeMap::from([
        ("PLAINTEXT".to_owned(), endpoint(host, 9092)),
        ("INSIDE".to_owned(), endpoint("10.0.0.9", 19092)),
    ])
}

/// Broker 2 started twice, broker 1 joined without a slot of its own, broker 9 is gone. One topic.
fn manifest() -> Manifest {
    let id = uuid::Uuid::from_bytes([7; 16]);
    let mut manifest = Manifest::new(id, id, 8);
    let old = manifest.register(2, None, endpoints("old"));
    manifest.take_over(old, &[]).unwrap();
    let dead = manifest.register(9, None, endpoints("dead"));
    let two = manifest.register(2, None, endpoints("two"));
    manifest.take_over(two, &[(old, 5), (dead, 7)]).unwrap();
    manifest.register(1, Some("zone-a".to_owned()), endpoints("one"));
    let create = Change::CreateTopic {
        name: "events".to_owned(),
        partitions: 3,
        replication_factor: 3,
        configs: BTreeMap::new(),
    };
    manifest.apply(&create, TOPIC).unwrap();
    manifest
}

const TOPIC: uuid::Uuid = uuid::Uuid::from_u128(0xabc);
const NONE: Operations = Operations {
    topics: NO_OPERATIONS,
    cluster: NO_OPERATIONS,
};

fn ctx(version: i16, listener: &str) -> RequestContext {
    RequestContext {
        client_id: "c".into(),
        client_host: "/127.0.0.1".into(),
        listener: listener.into(),
        api_version: version,
    }
}

fn by_name(name: &str) -> Asked {
    Asked::Name(StrBytes::from(name))
}

#[test]
fn null_and_empty_lists_mean_what_the_version_says() {
    assert_eq!(asked(0, Some(vec![])), None);
    assert_eq!(asked(1, Some(vec![])), Some(vec![]));
    assert_eq!(asked(9, None), None);
    // The Java client asks by id with an empty name.
    let mut by_id = MetadataRequestTopic::default();
    by_id.topic_id = kafka_wire_core::Uuid::from_bytes([7; 16]);
    by_id.name = Some(StrBytes::default());
    assert_eq!(
        asked(12, Some(vec![by_id.clone()])),
        Some(vec![Asked::Id(by_id.topic_id)])
    );
}

#[test]
fn live_brokers_are_listed_once_by_listener_and_the_controller_is_one_of_them() {
    let response = respond(
        &manifest(),
        &ctx(9, "PLAINTEXT"),
        Some(vec![]),
        &BTreeMap::new(),
        NONE,
    );
    let listed: Vec<(i32, &str, i32)> = response
        .brokers
        .iter()
        .map(|broker| (broker.node_id, broker.host.as_str(), broker.port))
        .collect();
    assert_eq!(listed, [(1, "one", 9092), (2, "two", 9092)]);
    assert_eq!(
        response.controller_id, 2,
        "the one that has been there for longest"
    );
    assert_eq!(response.brokers[0].rack.as_deref(), Some("zone-a"));
    let inside = respond(
        &manifest(),
        &ctx(9, "INSIDE"),
        Some(vec![]),
        &BTreeMap::new(),
        NONE,
    );
    assert_eq!(
        (inside.brokers[1].host.as_str(), inside.brokers[1].port),
        ("10.0.0.9", 19092)
    );
}

#[test]
fn names_are_checked_and_unknown_ones_reported() {
    let refused = BTreeMap::from([("soon".to_owned(), ErrorCode::LeaderNotAvailable)]);
    let asked = ["bad name", "", "..", "missing", "soon"].map(by_name).to_vec();
    let response = respond(&manifest(), &ctx(9, "PLAINTEXT"), Some(asked), &refused, NONE);
    let errors: Vec<i16> = response.topics.iter().map(|topic| topic.error_code).collect();
    assert_eq!(errors, [17, 17, 17, 3, 5]);
}

#[test]
fn only_proper_names_are_created() {
    let asked = [
        "new",
        "new",
        "bad name",
        "__consumer_offsets",
        "a.b",
        "a_b",
        "events",
    ]
    .map(by_name);
    let (create, refused) = missing(&manifest(), &asked);
    assert_eq!(create, ["a.b", "new"]);
    assert_eq!(
        refused,
        BTreeMap::from([("a_b".to_owned(), ErrorCode::InvalidTopicException)])
    );
}

#[test]
fn answers_encode_at_every_version() {
    for version in 0..=13 {
        let asked = vec![by_name("missing"), by_name("bad name"), by_name("events")];
        let response = respond(
            &manifest(),
            &ctx(version, "PLAINTEXT"),
            Some(asked),
            &BTreeMap::new(),
            NONE,
        );
        response.encode_to_bytes(ApiVersion::new(version)).unwrap();
    }
    let id = Asked::Id(kafka_wire_core::Uuid::from_bytes([1; 16]));
    let response = respond(
        &manifest(),
        &ctx(10, "PLAINTEXT"),
        Some(vec![id]),
        &BTreeMap::new(),
        NONE,
    );
    assert_eq!(response.topics[0].error_code, ErrorCode::InvalidRequest.code());
    response.encode_to_bytes(ApiVersion::new(10)).unwrap();
}

#[test]
fn topics_are_described_by_name_and_by_id() {
    let id = Asked::Id(kafka_wire_core::Uuid::from_bytes(TOPIC.into_bytes()));
    let unknown = Asked::Id(kafka_wire_core::Uuid::from_bytes([9; 16]));
    let asked = vec![by_name("events"), id, unknown];
    let response = respond(
        &manifest(),
        &ctx(12, "PLAINTEXT"),
        Some(asked),
        &BTreeMap::new(),
        NONE,
    );
    for topic in &response.topics[..2] {
        assert_eq!((topic.error_code, topic.name.as_deref()), (0, Some("events")));
        assert_eq!(topic.topic_id.to_bytes(), TOPIC.into_bytes());
        assert_eq!(topic.topic_authorized_operations, i32::MIN);
        assert_eq!(topic.partitions.len(), 3);
        for (index, partition) in (0..).zip(&topic.partitions) {
            assert_eq!((partition.partition_index, partition.error_code), (index, 0));
            assert_eq!((partition.leader_id, partition.leader_epoch), (2, 2));
            assert_eq!(
                (&*partition.replica_nodes, &*partition.isr_nodes),
                (&[2][..], &[2][..])
            );
        }
    }
    assert_eq!(
        (response.topics[2].error_code, response.topics[2].name.as_deref()),
        (100, None)
    );
    let all = respond(&manifest(), &ctx(12, "PLAINTEXT"), None, &BTreeMap::new(), NONE);
    assert_eq!(all.topics.len(), 1);
}

#[test]
fn a_partition_without_a_live_leader_is_not_available() {
    let mut manifest = manifest();
    let taker = manifest
        .streams
        .values_mut()
        .find(|stream| stream.is_live() && stream.node_id == 2)
        .unwrap();
    taker.state = alluvium_log::manifest::StreamState::Sealed {
        at: 3,
        links: Vec::new(),
    };
    let response = respond(&manifest, &ctx(12, "PLAINTEXT"), None, &BTreeMap::new(), NONE);
    let partition = &response.topics[0].partitions[0];
    assert_eq!((partition.error_code, partition.leader_id), (5, -1));
    assert_eq!(partition.offline_replicas, [2]);
}

#[test]
fn operations_are_told_to_who_asks() {
    let operations = Operations {
        topics: TOPIC_OPERATIONS,
        cluster: CLUSTER_OPERATIONS,
    };
    let asked = vec![by_name("events"), by_name("missing")];
    let response = respond(
        &manifest(),
        &ctx(8, "PLAINTEXT"),
        Some(asked),
        &BTreeMap::new(),
        operations,
    );
    assert_eq!(response.cluster_authorized_operations, CLUSTER_OPERATIONS);
    assert_eq!(response.topics[0].topic_authorized_operations, TOPIC_OPERATIONS);
    assert_eq!(response.topics[1].topic_authorized_operations, i32::MIN);
}
