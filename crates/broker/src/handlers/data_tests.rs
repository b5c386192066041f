//! Produce, Fetch and their neighbours on a whole broker with a store in memory, at every version.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::batch::{BatchBuilder, BatchHeader, for_each_record};
use bytes::Bytes;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::produce_response::PartitionProduceResponse;
use kafka_wire::{
    ApiVersionsRequest, FetchRequest, FetchResponse, InitProducerIdRequest, ListOffsetsRequest,
    MetadataRequest, OffsetForLeaderEpochRequest, ProduceRequest,
};
use kafka_wire_core::{StrBytes, Uuid};
use tokio::time::{Instant, timeout};

use crate::broker::Broker;
use crate::connection::{Ended, Refusal};
use crate::testing::{Client, broker, broker_on, shared_store};

/// Asks for a topic, which creates it; returns its id.
async fn create(client: &mut Client, name: &str) -> Uuid {
    let mut topic = MetadataRequestTopic::default();
    topic.name = Some(StrBytes::from(name));
    let mut request = MetadataRequest::default();
    request.topics = Some(vec![topic]);
    request.allow_auto_topic_creation = true;
    let response = client.call(12, &request).await;
    assert_eq!(response.topics[0].error_code, 0);
    response.topics[0].topic_id
}

fn batch(values: &[&str]) -> Bytes {
    sequenced(values, -1, -1, -1)
}

fn sequenced(values: &[&str], producer_id: i64, epoch: i16, sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new();
    if producer_id >= 0 {
        builder = builder.producer(producer_id, epoch, sequence);
    }
    for (at, value) in (0..).zip(values) {
        builder.push(1_700_000_000_000 + at, Some(b"key"), Some(value.as_bytes()), &[]);
    }
    builder.build().bytes().clone()
}

fn produce(name: &str, id: Uuid, partitions: &[(i32, Bytes)]) -> ProduceRequest {
    let mut topic = TopicProduceData::default();
    topic.name = StrBytes::from(name);
    topic.topic_id = id;
    for (index, records) in partitions {
        let mut data = PartitionProduceData::default();
        data.index = *index;
        data.records = Some(records.clone());
        topic.partition_data.push(data);
    }
    let mut request = ProduceRequest::default();
    request.acks = -1;
    request.timeout_ms = 10_000;
    request.topic_data = vec![topic];
    request
}

async fn produce_one(
    client: &mut Client,
    version: i16,
    request: &ProduceRequest,
) -> PartitionProduceResponse {
    let response = client.call(version, request).await;
    response.responses[0].partition_responses[0].clone()
}

fn fetch(name: &str, id: Uuid, version: i16, partitions: &[(i32, i64)]) -> FetchRequest {
    let mut topic = FetchTopic::default();
    if version >= 13 {
        topic.topic_id = id;
    } else {
        topic.topic = StrBytes::from(name);
    }
    for (index, offset) in partitions {
        let mut partition = FetchPartition::default();
        partition.partition = *index;
        partition.fetch_offset = *offset;
        partition.partition_max_bytes = 1 << 20;
        partition.current_leader_epoch = -1;
        topic.partitions.push(partition);
    }
    let mut request = FetchRequest::default();
    request.max_wait_ms = 0;
    request.min_bytes = 1;
    request.max_bytes = 1 << 20;
    request.session_epoch = -1;
    request.topics = vec![topic];
    request
}

/// Values and offsets in the records of a response, over all its partitions.
fn values(response: &FetchResponse) -> Vec<(i64, String)> {
    let mut values = Vec::new();
    for data in response.responses.iter().flat_map(|topic| &topic.partitions) {
        let mut rest = data.records.clone().unwrap_or_default();
        while !rest.is_empty() {
            let size = BatchHeader::parse(&rest).unwrap().size();
            let one = rest.split_to(size);
            for_each_record(&one, 1 << 20, |record| {
                values.push((
                    record.offset,
                    String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                ));
                ControlFlow::Continue(())
            })
            .unwrap();
        }
    }
    values
}

fn only(response: &FetchResponse) -> &kafka_wire::fetch_response::PartitionData {
    &response.responses[0].partitions[0]
}

async fn started() -> (Arc<Broker>, Client, Uuid) {
    let broker = broker(&[("num.partitions", "3")]).await;
    let mut client = Client::connect(&broker);
    let id = create(&mut client, "t").await;
    (broker, client, id)
}

#[tokio::test]
async fn what_is_produced_is_fetched_at_every_version() {
    let (_broker, mut client, id) = started().await;
    let mut expected = Vec::new();
    for version in 3..=13 {
        let value = format!("v{version}");
        let answer = produce_one(&mut client, version, &produce("t", id, &[(0, batch(&[&value]))])).await;
        assert_eq!(
            (answer.error_code, answer.base_offset),
            (0, expected.len() as i64),
            "v{version}"
        );
        expected.push((expected.len() as i64, value));
    }
    let end = expected.len() as i64;
    for version in 4..=18 {
        let response = client.call(version, &fetch("t", id, version, &[(0, 0)])).await;
        assert_eq!(values(&response), expected, "v{version}");
        let data = only(&response);
        assert_eq!(
            (data.error_code, data.high_watermark, data.last_stable_offset),
            (0, end, end)
        );
        assert_eq!(data.aborted_transactions, None);
        assert_eq!(data.preferred_read_replica, -1);
    }
    let mut committed = fetch("t", id, 11, &[(0, 0)]);
    committed.isolation_level = 1;
    let response = client.call(11, &committed).await;
    assert_eq!(only(&response).aborted_transactions, Some(Vec::new()));
}

#[tokio::test]
async fn pipelined_produces_keep_their_order() {
    let (_broker, mut client, id) = started().await;
    let mut ids = Vec::new();
    for number in 0..300 {
        let request = produce("t", id, &[(0, batch(&[&number.to_string()]))]);
        ids.push(client.send(9, &request).await);
    }
    for (offset, id) in (0..).zip(ids) {
        let response = client.receive::<ProduceRequest>(9, id).await;
        assert_eq!(response.responses[0].partition_responses[0].base_offset, offset);
    }
    let response = client.call(11, &fetch("t", id, 11, &[(0, 0)])).await;
    let expected: Vec<(i64, String)> = (0..300).map(|number| (number, number.to_string())).collect();
    assert_eq!(values(&response), expected);
    assert_eq!(
        client.budgets.produce.available(),
        1 << 26,
        "all memory is given back"
    );
}

#[tokio::test]
async fn each_partition_of_a_request_has_its_own_outcome() {
    let (_broker, mut client, id) = started().await;
    let mut damaged = batch(&["x"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let parts = [
        (0, batch(&["good"])),
        (1, damaged.into()),
        (7, batch(&["x"])),
        (2, batch(&["good", "too"])),
    ];
    let response = client.call(9, &produce("t", id, &parts)).await;
    let outcomes: Vec<(i32, i16, i64)> = response.responses[0]
        .partition_responses
        .iter()
        .map(|answer| (answer.index, answer.error_code, answer.base_offset))
        .collect();
    assert_eq!(outcomes, [(0, 0, 0), (1, 2, -1), (7, 3, -1), (2, 0, 0)]);

    let unknown = produce_one(&mut client, 9, &produce("nope", id, &[(0, batch(&["x"]))])).await;
    assert_eq!(unknown.error_code, 3);
    let unknown = Uuid::from_bytes([8; 16]);
    let unknown = produce_one(&mut client, 13, &produce("", unknown, &[(0, batch(&["x"]))])).await;
    assert_eq!(unknown.error_code, 100);
    let mut acks = produce("t", id, &[(0, batch(&["x"]))]);
    acks.acks = 2;
    assert_eq!(produce_one(&mut client, 9, &acks).await.error_code, 21);
    let mut transactional = produce("t", id, &[(0, batch(&["x"]))]);
    transactional.transactional_id = Some(StrBytes::from("tx"));
    assert_eq!(produce_one(&mut client, 9, &transactional).await.error_code, 53);
    let response = client
        .call(11, &fetch("t", id, 11, &[(0, 0), (1, 0), (2, 0)]))
        .await;
    assert_eq!(values(&response).len(), 3, "nothing else was appended");
}

#[tokio::test]
async fn idempotent_producers_get_kafkas_answers() {
    let (_broker, mut client, id) = started().await;
    let mut request = InitProducerIdRequest::default();
    request.transactional_id = None;
    request.transaction_timeout_ms = 1000;
    let first = client.call(0, &request).await;
    let second = client.call(5, &request).await;
    assert_eq!((first.error_code, first.producer_epoch), (0, 0));
    assert_ne!(first.producer_id, second.producer_id);
    request.transactional_id = Some(StrBytes::from("tx"));
    let refused = client.call(4, &request).await;
    assert_eq!((refused.error_code, refused.producer_id), (53, -1));

    let pid = first.producer_id;
    let mut append = async |epoch, sequence, values: &[&str]| {
        let records = sequenced(values, pid, epoch, sequence);
        let answer = produce_one(&mut client, 9, &produce("t", id, &[(0, records)])).await;
        (answer.error_code, answer.base_offset)
    };
    assert_eq!(append(0, 0, &["a", "b"]).await, (0, 0));
    assert_eq!(append(0, 2, &["c"]).await, (0, 2));
    assert_eq!(
        append(0, 0, &["a", "b"]).await,
        (0, 0),
        "a repeat gets the first offset"
    );
    assert_eq!(append(0, 9, &["z"]).await, (45, -1));
    assert_eq!(append(1, 0, &["d"]).await, (0, 3));
    assert_eq!(append(0, 3, &["z"]).await, (47, -1));
}

#[tokio::test]
async fn a_topic_that_becomes_known_between_two_batches_tears_no_pipeline() {
    let broker = broker(&[]).await;
    let mut client = Client::connect(&broker);
    let request = |value: &str, sequence| {
        let records = sequenced(&[value], 77, 0, sequence);
        produce("t", Uuid::default(), &[(0, records)])
    };
    let too_early = produce_one(&mut client, 9, &request("a", 0)).await;
    assert_eq!(too_early.error_code, 3);
    create(&mut Client::connect(&broker), "t").await;
    // Sent before the client heard of it. Appended now, it would make the repeat of the first a duplicate.
    let behind = produce_one(&mut client, 9, &request("b", 1)).await;
    assert_eq!((behind.error_code, behind.base_offset), (3, -1));
    for (offset, value) in (0..).zip(["a", "b"]) {
        let sequence = i32::try_from(offset).unwrap();
        let answer = produce_one(&mut client, 9, &request(value, sequence)).await;
        assert_eq!((answer.error_code, answer.base_offset), (0, offset));
    }
}

#[tokio::test]
async fn no_answer_is_given_to_acks_0_and_an_error_closes() {
    let (_broker, mut client, id) = started().await;
    let mut request = produce("t", id, &[(0, batch(&["silent"]))]);
    request.acks = 0;
    client.send(9, &request).await;
    let answer = produce_one(&mut client, 9, &produce("t", id, &[(0, batch(&["loud"]))])).await;
    assert_eq!(answer.base_offset, 1);
    request = produce("nope", id, &[(0, batch(&["x"]))]);
    request.acks = 0;
    client.send(9, &request).await;
    let ended = client.server.await.unwrap();
    assert!(
        matches!(ended, Ended::Refused(Refusal::SilentProduceFailed(_))),
        "{ended}"
    );
}

#[tokio::test]
async fn a_long_poll_wakes_at_an_append_and_waits_no_longer_than_asked() {
    let (broker, mut client, id) = started().await;
    let mut request = fetch("t", id, 12, &[(0, 0), (1, 0)]);
    request.max_wait_ms = 300;
    let began = Instant::now();
    let response = client.call(12, &request).await;
    assert!(began.elapsed() >= Duration::from_millis(295));
    assert!(values(&response).is_empty());

    request.max_wait_ms = 60_000;
    let waiting = client.send(12, &request).await;
    let mut producer = Client::connect(&broker);
    tokio::time::sleep(Duration::from_millis(50)).await;
    produce_one(&mut producer, 9, &produce("t", id, &[(1, batch(&["wake"]))])).await;
    let response = timeout(
        Duration::from_secs(5),
        client.receive::<FetchRequest>(12, waiting),
    )
    .await
    .unwrap();
    assert_eq!(values(&response), [(0, "wake".to_owned())]);

    // Not enough for min_bytes until the second append.
    request.min_bytes = 150;
    let waiting = client.send(12, &request).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    produce_one(&mut producer, 9, &produce("t", id, &[(0, batch(&["more"]))])).await;
    let response = timeout(
        Duration::from_secs(5),
        client.receive::<FetchRequest>(12, waiting),
    )
    .await
    .unwrap();
    assert_eq!(values(&response).len(), 2);

    // An error does not wait.
    let mut request = fetch("t", id, 12, &[(0, 99), (1, 0)]);
    request.max_wait_ms = 60_000;
    request.min_bytes = 1 << 20;
    let response = timeout(Duration::from_secs(5), client.call(12, &request))
        .await
        .unwrap();
    let errors: Vec<i16> = response.responses[0]
        .partitions
        .iter()
        .map(|data| data.error_code)
        .collect();
    assert_eq!(errors, [1, 0]);
}

#[tokio::test]
async fn fetch_errors_are_those_of_kafka() {
    let (_broker, mut client, id) = started().await;
    produce_one(&mut client, 9, &produce("t", id, &[(0, batch(&["a"]))])).await;
    let error = async |client: &mut Client, version, request: FetchRequest| {
        only(&client.call(version, &request).await).error_code
    };
    assert_eq!(error(&mut client, 12, fetch("t", id, 12, &[(0, 2)])).await, 1);
    assert_eq!(error(&mut client, 12, fetch("t", id, 12, &[(0, -1)])).await, 1);
    assert_eq!(error(&mut client, 12, fetch("t", id, 12, &[(9, 0)])).await, 3);
    assert_eq!(error(&mut client, 12, fetch("nope", id, 12, &[(0, 0)])).await, 3);
    let unknown = Uuid::from_bytes([8; 16]);
    assert_eq!(
        error(&mut client, 13, fetch("", unknown, 13, &[(0, 0)])).await,
        100
    );
    for (epoch, code) in [(0, 74), (1, 0), (2, 75)] {
        let mut request = fetch("t", id, 12, &[(0, 0)]);
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        assert_eq!(error(&mut client, 12, request).await, code, "epoch {epoch}");
    }
    let mut follower = fetch("t", id, 12, &[(0, 0)]);
    follower.replica_id = 3;
    let response = client.call(12, &follower).await;
    assert_eq!((response.error_code, only(&response).error_code), (42, 42));
}

/// A client of a topic with one record, and the request that brought it.
async fn one_record(broker: &Arc<Broker>) -> (Client, Uuid, ProduceRequest) {
    let mut client = Client::connect(broker);
    let id = create(&mut client, "t").await;
    let one = produce("t", id, &[(0, batch(&["a"]))]);
    assert_eq!(produce_one(&mut client, 9, &one).await.error_code, 0);
    (client, id, one)
}

#[tokio::test(start_paused = true)]
async fn only_who_still_leads_says_that_an_offset_is_out_of_range() {
    let (store, requests) = shared_store().await;
    let settings = [("node.id", "1")];
    let old = broker_on(&store, &settings).await;
    let (mut client, id, one) = one_record(&old).await;
    let error = async |client: &mut Client, offset| {
        only(&client.call(12, &fetch("t", id, 12, &[(0, offset)])).await).error_code
    };
    // Nobody waits for anything here, so no time passes, and whatever is asked of the store is asked for this answer.
    let looks = || requests.requests("get");
    let before = looks();
    assert_eq!(error(&mut client, 1).await, 0);
    assert_eq!(looks(), before, "the end itself needs no proof");
    assert_eq!(error(&mut client, 2).await, 1);
    assert_eq!(looks(), before + 1, "proven by a look at the manifest");

    // The same broker is started again, and the first process has not heard of it. What was appended there since is beyond
    // the end that it knows, and a consumer that is told so would begin anew.
    let new = broker_on(&store, &settings).await;
    let mut other = Client::connect(&new);
    for offset in 1..4 {
        let answer = produce_one(&mut other, 9, &one).await;
        assert_eq!((answer.error_code, answer.base_offset), (0, offset));
    }
    assert_eq!(error(&mut other, 3).await, 0);
    assert!(old.log.leased(), "it knows already, or doubts");
    assert_eq!(error(&mut client, 3).await, 6);
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_said_only_by_who_is_proven_to_lead() {
    let (store, _) = shared_store().await;
    let broker = broker_on(&store, &[]).await;
    let mut client = Client::connect(&broker);
    let id = create(&mut client, "t").await;
    let mut request = fetch("t", id, 12, &[(0, 0)]);
    request.max_wait_ms = 10;
    let response = client.call(12, &request).await;
    assert_eq!(only(&response).error_code, 0);
    // The process stands still for longer than the lease; the poll that ends meanwhile is answered first.
    let waiting = client.send(12, &request).await;
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(Duration::from_secs(4)).await;
    let response = client.receive::<FetchRequest>(12, waiting).await;
    assert_eq!(only(&response).error_code, 6);
}

#[tokio::test]
async fn sessions_tell_only_what_is_new() {
    let (_broker, mut client, id) = started().await;
    for (produced, version) in (0..).zip([7, 12, 13, 17]) {
        let mut request = fetch("t", id, version, &[(0, 0), (1, produced)]);
        request.session_epoch = 0;
        let response = client.call(version, &request).await;
        let session = response.session_id;
        assert!(session > 0, "v{version}");
        assert_eq!(response.responses[0].partitions.len(), 2);

        let mut next = FetchRequest::default();
        next.min_bytes = 1;
        next.max_bytes = 1 << 20;
        next.session_id = session;
        next.session_epoch = 1;
        let response = client.call(version, &next).await;
        assert_eq!((response.error_code, response.session_id), (0, session));
        assert!(response.responses.is_empty(), "v{version}: nothing is new");

        produce_one(&mut client, 9, &produce("t", id, &[(1, batch(&["new"]))])).await;
        next.session_epoch = 2;
        let response = client.call(version, &next).await;
        assert_eq!(only(&response).partition_index, 1);
        assert!(!values(&response).is_empty());

        next.session_epoch = 9;
        assert_eq!(client.call(version, &next).await.error_code, 71);
        next.session_id = session + 1000;
        assert_eq!(client.call(version, &next).await.error_code, 70);
    }
}

#[tokio::test]
async fn limits_hold_and_one_batch_always_comes() {
    let (_broker, mut client, id) = started().await;
    let large = "x".repeat(10_000);
    for index in [0, 1, 2] {
        for _ in 0..3 {
            produce_one(&mut client, 9, &produce("t", id, &[(index, batch(&[&large]))])).await;
        }
    }
    let count = async |client: &mut Client, max_bytes, partition_max_bytes| {
        let mut request = fetch("t", id, 12, &[(0, 0), (1, 0), (2, 0)]);
        request.max_bytes = max_bytes;
        for partition in &mut request.topics[0].partitions {
            partition.partition_max_bytes = partition_max_bytes;
        }
        let response = client.call(12, &request).await;
        let sizes = response.responses[0]
            .partitions
            .iter()
            .map(|data| data.records.as_ref().map_or(0, Bytes::len));
        sizes.map(|size| size / 10_000).collect::<Vec<usize>>()
    };
    assert_eq!(count(&mut client, 1, 1).await, [1, 0, 0]);
    assert_eq!(count(&mut client, 0, 0).await, [1, 0, 0]);
    assert_eq!(count(&mut client, 25_000, 1 << 20).await, [2, 0, 0]);
    assert_eq!(count(&mut client, 45_000, 22_000).await, [2, 2, 0]);
    assert_eq!(count(&mut client, 1 << 20, 15_000).await, [1, 1, 1]);
    assert_eq!(count(&mut client, 1 << 20, 1 << 20).await, [3, 3, 3]);
}

#[tokio::test]
async fn offsets_are_listed_at_every_version() {
    let (_broker, mut client, id) = started().await;
    produce_one(&mut client, 9, &produce("t", id, &[(0, batch(&["a", "b", "c"]))])).await;
    let mut list = async |version, timestamp, index, epoch| {
        let mut partition = ListOffsetsPartition::default();
        partition.partition_index = index;
        partition.timestamp = timestamp;
        partition.current_leader_epoch = epoch;
        let mut topic = ListOffsetsTopic::default();
        topic.name = StrBytes::from("t");
        topic.partitions = vec![partition];
        let mut request = ListOffsetsRequest::default();
        request.replica_id = -1;
        request.topics = vec![topic];
        let response = client.call(version, &request).await;
        let answer = &response.topics[0].partitions[0];
        (answer.error_code, answer.offset, answer.timestamp)
    };
    const BASE: i64 = 1_700_000_000_000;
    for version in 1..=11 {
        assert_eq!(list(version, -1, 0, -1).await, (0, 3, -1), "v{version}");
        assert_eq!(list(version, -2, 0, -1).await, (0, 0, -1));
        assert_eq!(list(version, BASE + 1, 0, -1).await, (0, 1, BASE + 1));
        assert_eq!(list(version, 0, 0, -1).await, (0, 0, BASE));
        assert_eq!(list(version, BASE + 3, 0, -1).await, (0, -1, -1));
        assert_eq!(
            list(version, BASE, 1, -1).await,
            (0, -1, -1),
            "an empty partition"
        );
        assert_eq!(list(version, -1, 5, -1).await.0, 3);
    }
    assert_eq!(list(7, -3, 0, -1).await, (0, 2, BASE + 2));
    assert_eq!(list(6, -3, 0, -1).await.0, 35);
    assert_eq!(list(9, -5, 0, -1).await, (0, -1, -1));
    assert_eq!(list(4, -1, 0, 0).await.0, 74);
    assert_eq!(list(4, -1, 0, 7).await.0, 75);
}

/// Error, epoch and end offset of each of some partitions' epochs.
async fn epoch_ends(client: &mut Client, version: i16, epochs: &[(i32, i32)]) -> Vec<(i16, i32, i64)> {
    let mut topic = OffsetForLeaderTopic::default();
    topic.topic = StrBytes::from("t");
    for (index, epoch) in epochs {
        let mut partition = OffsetForLeaderPartition::default();
        partition.partition = *index;
        partition.current_leader_epoch = -1;
        partition.leader_epoch = *epoch;
        topic.partitions.push(partition);
    }
    let mut request = OffsetForLeaderEpochRequest::default();
    request.topics = vec![topic];
    let response = client.call(version, &request).await;
    let ends = response.topics[0].partitions.iter();
    ends.map(|end| (end.error_code, end.leader_epoch, end.end_offset))
        .collect()
}

#[tokio::test]
async fn epochs_end_where_the_log_says() {
    let (_broker, mut client, id) = started().await;
    produce_one(&mut client, 9, &produce("t", id, &[(0, batch(&["a", "b"]))])).await;
    for version in 2..=4 {
        let ends = epoch_ends(&mut client, version, &[(0, 1), (0, 9), (7, 1)]).await;
        assert_eq!(ends, [(0, 1, 2), (0, -1, -1), (3, -1, -1)], "v{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_still_leads_says_where_an_epoch_ends_that_none_follows() {
    let (store, requests) = shared_store().await;
    let settings = [("node.id", "1")];
    let old = broker_on(&store, &settings).await;
    let (mut client, _, one) = one_record(&old).await;
    let looks = || requests.requests("get");
    let before = looks();
    let ends = epoch_ends(&mut client, 4, &[(0, 1), (0, 2)]).await;
    assert_eq!(ends, [(0, 1, 1), (0, -1, -1)]);
    assert_eq!(looks(), before + 1, "both are proven by one look at the manifest");

    // The same broker is started again, and the first process has not heard of it. Whoever has read what was appended
    // since would take it for lost if that one said how far the log goes, or that there is no such epoch.
    let new = broker_on(&store, &settings).await;
    let mut other = Client::connect(&new);
    for offset in 1..4 {
        let answer = produce_one(&mut other, 9, &one).await;
        assert_eq!((answer.error_code, answer.base_offset), (0, offset));
    }
    let before = looks();
    assert_eq!(epoch_ends(&mut other, 4, &[(0, 1)]).await, [(0, 1, 1)]);
    assert_eq!(
        looks(),
        before,
        "an epoch that another one follows has ended for good"
    );
    assert!(old.log.leased(), "it knows already, or doubts");
    let ends = epoch_ends(&mut client, 4, &[(0, 1), (0, 2)]).await;
    assert_eq!(ends, [(6, -1, -1), (6, -1, -1)]);
}

#[tokio::test]
async fn topics_are_created_where_client_and_broker_allow_it() {
    let broker = broker(&[("auto.create.topics.enable", "false")]).await;
    let mut client = Client::connect(&broker);
    let ask = |allow| {
        let mut topic = MetadataRequestTopic::default();
        topic.name = Some(StrBytes::from("t"));
        let mut request = MetadataRequest::default();
        request.topics = Some(vec![topic]);
        request.allow_auto_topic_creation = allow;
        request
    };
    assert_eq!(client.call(9, &ask(true)).await.topics[0].error_code, 3);

    let broker = self::broker(&[]).await;
    let mut client = Client::connect(&broker);
    assert_eq!(client.call(9, &ask(false)).await.topics[0].error_code, 3);
    for version in [1, 9] {
        let response = client.call(version, &ask(true)).await;
        assert_eq!(
            (response.topics[0].error_code, response.topics[0].partitions.len()),
            (0, 1)
        );
        let node = &response.brokers[0];
        assert_eq!(
            (node.host.as_str(), node.port, response.controller_id),
            ("broker.test", 9092, node.node_id)
        );
    }
}

#[tokio::test]
async fn versions_are_told_to_every_client() {
    let broker = broker(&[]).await;
    for version in 0..=4 {
        let mut client = Client::connect(&broker);
        let mut request = ApiVersionsRequest::default();
        if version >= 3 {
            request.client_software_name = StrBytes::from("test");
            request.client_software_version = StrBytes::from("1.0");
        }
        let response = client.call(version, &request).await;
        assert_eq!(response.error_code, 0, "v{version}");
        assert!(response.api_keys.len() > 20);
        request.client_software_name = StrBytes::from("");
        if version >= 3 {
            assert_eq!(client.call(version, &request).await.error_code, 42);
        }
    }
}
