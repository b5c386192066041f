//! The few Kafka operations that most tests need, on the raw client: topics, produce, fetch, offsets, and an
//! idempotent producer that retries as a real one does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_wire::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{
    CreateTopicsRequest, FetchRequest, IncrementalAlterConfigsRequest, ListOffsetsRequest, ProduceRequest,
    ProduceResponse,
};

use crate::batches::{self, Fetched, Producer};
use crate::wire::Client;

mod member;
mod router;

pub use member::{Member, Trouble};
pub use router::Router;

/// Version of Produce that is used unless a test names another.
pub const PRODUCE_VERSION: i16 = 9;
/// Version of Fetch.
pub const FETCH_VERSION: i16 = 11;
/// What configs are of, in requests: a topic.
pub const RESOURCE_TOPIC: i8 = 2;
/// Batches of an idempotent producer in flight at once, as Kafka allows.
const IN_FLIGHT_MAX: usize = 5;

/// The error codes that tests name.
pub mod code {
    /// No error.
    pub const NONE: i16 = 0;
    /// CORRUPT_MESSAGE
    pub const CORRUPT_MESSAGE: i16 = 2;
    /// UNKNOWN_TOPIC_OR_PARTITION
    pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    /// LEADER_NOT_AVAILABLE
    pub const LEADER_NOT_AVAILABLE: i16 = 5;
    /// NOT_LEADER_OR_FOLLOWER
    pub const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    /// REQUEST_TIMED_OUT: the outcome is unknown.
    pub const REQUEST_TIMED_OUT: i16 = 7;
    /// MESSAGE_TOO_LARGE
    pub const MESSAGE_TOO_LARGE: i16 = 10;
    /// NETWORK_EXCEPTION
    pub const NETWORK_EXCEPTION: i16 = 13;
    /// COORDINATOR_LOAD_IN_PROGRESS
    pub const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    /// COORDINATOR_NOT_AVAILABLE
    pub const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    /// NOT_COORDINATOR
    pub const NOT_COORDINATOR: i16 = 16;
    /// NOT_ENOUGH_REPLICAS
    pub const NOT_ENOUGH_REPLICAS: i16 = 19;
    /// NOT_ENOUGH_REPLICAS_AFTER_APPEND
    pub const NOT_ENOUGH_REPLICAS_AFTER_APPEND: i16 = 20;
    /// ILLEGAL_GENERATION
    pub const ILLEGAL_GENERATION: i16 = 22;
    /// UNKNOWN_MEMBER_ID
    pub const UNKNOWN_MEMBER_ID: i16 = 25;
    /// REBALANCE_IN_PROGRESS
    pub const REBALANCE_IN_PROGRESS: i16 = 27;
    /// INVALID_TIMESTAMP
    pub const INVALID_TIMESTAMP: i16 = 32;
    /// UNSUPPORTED_VERSION
    pub const UNSUPPORTED_VERSION: i16 = 35;
    /// TOPIC_ALREADY_EXISTS
    pub const TOPIC_ALREADY_EXISTS: i16 = 36;
    /// NOT_CONTROLLER
    pub const NOT_CONTROLLER: i16 = 41;
    /// UNSUPPORTED_FOR_MESSAGE_FORMAT
    pub const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
    /// OUT_OF_ORDER_SEQUENCE_NUMBER
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    /// DUPLICATE_SEQUENCE_NUMBER
    pub const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;
    /// INVALID_PRODUCER_EPOCH
    pub const INVALID_PRODUCER_EPOCH: i16 = 47;
    /// KAFKA_STORAGE_ERROR
    pub const KAFKA_STORAGE_ERROR: i16 = 56;
    /// FENCED_LEADER_EPOCH
    pub const FENCED_LEADER_EPOCH: i16 = 74;
    /// UNKNOWN_LEADER_EPOCH
    pub const UNKNOWN_LEADER_EPOCH: i16 = 75;
    /// UNSUPPORTED_COMPRESSION_TYPE
    pub const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
    /// OFFSET_NOT_AVAILABLE
    pub const OFFSET_NOT_AVAILABLE: i16 = 78;
    /// MEMBER_ID_REQUIRED
    pub const MEMBER_ID_REQUIRED: i16 = 79;
    /// INVALID_RECORD
    pub const INVALID_RECORD: i16 = 87;

    /// Whether Kafka's clients try again after this code.
    pub fn is_retriable(code: i16) -> bool {
        [
            UNKNOWN_TOPIC_OR_PARTITION,
            LEADER_NOT_AVAILABLE,
            NOT_LEADER_OR_FOLLOWER,
            REQUEST_TIMED_OUT,
            NETWORK_EXCEPTION,
            COORDINATOR_LOAD_IN_PROGRESS,
            COORDINATOR_NOT_AVAILABLE,
            NOT_COORDINATOR,
            NOT_ENOUGH_REPLICAS,
            NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            NOT_CONTROLLER,
            KAFKA_STORAGE_ERROR,
            FENCED_LEADER_EPOCH,
            UNKNOWN_LEADER_EPOCH,
            OFFSET_NOT_AVAILABLE,
        ]
        .contains(&code)
    }
}

fn failed(message: String) -> io::Error {
    io::Error::other(message)
}

/// Sets a config of a topic.
pub fn alter_topic_config(client: &mut Client, topic: &str, name: &str, value: &str) -> io::Result<()> {
    let mut config = AlterableConfig::default();
    config.name = name.into();
    config.value = Some(value.into());
    let mut resource = AlterConfigsResource::default();
    resource.resource_type = RESOURCE_TOPIC;
    resource.resource_name = topic.into();
    resource.configs = vec![config];
    let mut request = IncrementalAlterConfigsRequest::default();
    request.resources = vec![resource];
    let response = client.call(&request, 1)?;
    match response.responses.first() {
        Some(result) if result.error_code == code::NONE => Ok(()),
        result => Err(failed(format!("IncrementalAlterConfigs: {result:?}"))),
    }
}

/// Creates a topic with these configs; one that exists already is fine.
pub fn create_topic(
    client: &mut Client,
    name: &str,
    partitions: i32,
    configs: &[(&str, &str)],
) -> io::Result<()> {
    let mut topic = CreatableTopic::default();
    topic.name = name.into();
    topic.num_partitions = partitions;
    topic.replication_factor = 1;
    for (key, value) in configs {
        let mut config = CreatableTopicConfig::default();
        config.name = (*key).into();
        config.value = Some((*value).into());
        topic.configs.push(config);
    }
    let mut request = CreateTopicsRequest::default();
    request.topics = vec![topic];
    request.timeout_ms = 30_000;
    let response = client.call(&request, 5)?;
    match response.topics.first() {
        Some(result) if [code::NONE, code::TOPIC_ALREADY_EXISTS].contains(&result.error_code) => Ok(()),
        result => Err(failed(format!("CreateTopics: {result:?}"))),
    }
}

/// A Produce request of one batch.
pub fn produce_request(topic: &str, partition: i32, records: impl Into<Bytes>) -> ProduceRequest {
    let mut data = PartitionProduceData::default();
    data.index = partition;
    data.records = Some(records.into());
    let mut of_topic = TopicProduceData::default();
    of_topic.name = topic.into();
    of_topic.partition_data = vec![data];
    let mut request = ProduceRequest::default();
    request.acks = -1;
    request.timeout_ms = 30_000;
    request.topic_data = vec![of_topic];
    request
}

/// Error code and base offset of the one partition that was produced to.
pub fn produced(response: &ProduceResponse) -> io::Result<(i16, i64)> {
    let partition = response
        .responses
        .first()
        .and_then(|topic| topic.partition_responses.first());
    let partition = partition.ok_or_else(|| failed("an answer without a partition".to_owned()))?;
    Ok((partition.error_code, partition.base_offset))
}

/// Produces one batch; error code and base offset.
pub fn produce(client: &mut Client, topic: &str, partition: i32, records: Vec<u8>) -> io::Result<(i16, i64)> {
    let response = client.call(&produce_request(topic, partition, records), PRODUCE_VERSION)?;
    produced(&response)
}

/// The earliest (-2) or latest (-1) offset.
pub fn list_offset(client: &mut Client, topic: &str, partition: i32, timestamp: i64) -> io::Result<i64> {
    let mut of_partition = ListOffsetsPartition::default();
    of_partition.partition_index = partition;
    of_partition.timestamp = timestamp;
    let mut of_topic = ListOffsetsTopic::default();
    of_topic.name = topic.into();
    of_topic.partitions = vec![of_partition];
    let mut request = ListOffsetsRequest::default();
    request.replica_id = -1;
    request.topics = vec![of_topic];
    let response = client.call(&request, 4)?;
    let partition = response.topics.first().and_then(|topic| topic.partitions.first());
    match partition {
        Some(partition) if partition.error_code == code::NONE => Ok(partition.offset),
        partition => Err(failed(format!("ListOffsets: {partition:?}"))),
    }
}

/// The offset after the last record.
pub fn end_offset(client: &mut Client, topic: &str, partition: i32) -> io::Result<i64> {
    list_offset(client, topic, partition, -1)
}

/// Fetches from an offset: error code and raw batches.
pub fn fetch(
    client: &mut Client,
    topic: &str,
    partition: i32,
    offset: i64,
    wait: Duration,
) -> io::Result<(i16, Bytes)> {
    let mut of_partition = FetchPartition::default();
    of_partition.partition = partition;
    of_partition.fetch_offset = offset;
    of_partition.current_leader_epoch = -1;
    of_partition.log_start_offset = -1;
    of_partition.partition_max_bytes = 8 * 1024 * 1024;
    let mut of_topic = FetchTopic::default();
    of_topic.topic = topic.into();
    of_topic.partitions = vec![of_partition];
    let mut request = FetchRequest::default();
    request.replica_id = -1;
    request.max_wait_ms = wait.as_millis() as i32;
    request.min_bytes = 1;
    request.max_bytes = 16 * 1024 * 1024;
    request.session_epoch = -1;
    request.topics = vec![of_topic];
    let response = client.call(&request, FETCH_VERSION)?;
    if response.error_code != code::NONE {
        return Err(failed(format!("Fetch: error {}", response.error_code)));
    }
    let partition = response
        .responses
        .first()
        .and_then(|topic| topic.partitions.first());
    let partition = partition.ok_or_else(|| failed("a fetch without its partition".to_owned()))?;
    Ok((
        partition.error_code,
        partition.records.clone().unwrap_or_default(),
    ))
}

/// Every record from the start to the end as of now, connecting again and retrying until `patience` is over.
pub fn read_all(
    address: SocketAddr,
    topic: &str,
    partition: i32,
    patience: Duration,
) -> Result<Vec<Fetched>, String> {
    let deadline = Instant::now() + patience;
    let mut records: Vec<Fetched> = Vec::new();
    loop {
        let error = match read_on(address, topic, partition, &mut records, deadline) {
            Ok(()) => return Ok(records),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error.to_string()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(format!("cannot read on from {}: {error}", records.len()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read_on(
    address: SocketAddr,
    topic: &str,
    partition: i32,
    records: &mut Vec<Fetched>,
    deadline: Instant,
) -> io::Result<()> {
    let mut client = Client::connect(address)?;
    let end = end_offset(&mut client, topic, partition)?;
    loop {
        let next = records.last().map_or(0, |record| record.offset + 1);
        if next >= end {
            return Ok(());
        }
        let (code, bytes) = fetch(&mut client, topic, partition, next, Duration::from_millis(500))?;
        if code != code::NONE {
            return Err(failed(format!("fetch at {next}: error {code}")));
        }
        let fetched =
            batches::read(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        records.extend(fetched.into_iter().filter(|record| record.offset >= next));
        if Instant::now() > deadline {
            return Err(failed(format!("no end at {next} of {end}")));
        }
    }
}

/// A batch on its way.
#[derive(Debug)]
struct Outgoing {
    sequence: i32,
    values: Vec<Vec<u8>>,
    bytes: Bytes,
}

/// A producer that sends every batch again, with the same sequence, until it is acknowledged: up to five at
/// once on one connection to the leader, as Kafka's own producers do.
#[derive(Debug)]
pub struct IdempotentProducer {
    router: Router,
    topic: String,
    partition: i32,
    id: i64,
    epoch: i16,
    sequence: i32,
    client: Option<Client>,
    outgoing: VecDeque<Outgoing>,
    /// Base offset of every acknowledged batch, and its values.
    acknowledged: BTreeMap<i64, Vec<Vec<u8>>>,
    retries: u64,
}

impl IdempotentProducer {
    /// A producer with a new id, that knows one broker.
    pub fn new(address: SocketAddr, topic: &str, partition: i32) -> Result<IdempotentProducer, String> {
        let router = Router::fixed(address, Duration::from_secs(15));
        IdempotentProducer::routed(router, topic, partition)
    }

    /// A producer with a new id, that finds the leader among several brokers.
    pub fn routed(mut router: Router, topic: &str, partition: i32) -> Result<IdempotentProducer, String> {
        let (id, epoch) = router.init_producer_id(Duration::from_secs(60))?;
        Ok(IdempotentProducer {
            router,
            topic: topic.to_owned(),
            partition,
            id,
            epoch,
            sequence: 0,
            client: None,
            outgoing: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            retries: 0,
        })
    }

    /// Sends a batch of these values; returns when fewer than five batches are unacknowledged.
    ///
    /// # Errors
    /// A sentence when the broker broke a promise, or did not acknowledge in time.
    pub fn send(
        &mut self,
        timestamp_ms: i64,
        values: Vec<Vec<u8>>,
        patience: Duration,
    ) -> Result<(), String> {
        self.queue(timestamp_ms, values);
        if self.outgoing.len() < IN_FLIGHT_MAX {
            Ok(())
        } else {
            self.flush(patience)
        }
    }

    /// Puts a batch of these values behind the others, which are sent by [`IdempotentProducer::round`]; no more than
    /// five may wait.
    pub fn queue(&mut self, timestamp_ms: i64, values: Vec<Vec<u8>>) {
        let producer = Producer {
            id: self.id,
            epoch: self.epoch,
            sequence: self.sequence,
        };
        let bytes = Bytes::from(batches::batch(timestamp_ms, producer, &values));
        self.outgoing.push_back(Outgoing {
            sequence: self.sequence,
            values,
            bytes,
        });
        self.sequence += self.outgoing.back().map_or(0, |batch| batch.values.len() as i32);
    }

    /// Batches that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outgoing.len()
    }

    /// Returns when every batch is acknowledged.
    ///
    /// # Errors
    /// As [`IdempotentProducer::send`].
    pub fn flush(&mut self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !self.outgoing.is_empty() {
            let error = match self.round()? {
                None => continue,
                Some(error) => error,
            };
            if Instant::now() > deadline {
                let left = self.outgoing.len();
                return Err(format!(
                    "{left} batches are unacknowledged after {patience:?}: {error}"
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Base offset and values of every acknowledged batch.
    pub fn acknowledged(&self) -> &BTreeMap<i64, Vec<Vec<u8>>> {
        &self.acknowledged
    }

    /// The same, which the producer then forgets.
    pub fn take_acknowledged(&mut self) -> BTreeMap<i64, Vec<Vec<u8>>> {
        std::mem::take(&mut self.acknowledged)
    }

    /// How often something was sent again.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Sends all that is unacknowledged once, in order. `Ok(Some(error))`: something is left to be retried.
    ///
    /// # Errors
    /// A sentence when the broker broke a promise.
    pub fn round(&mut self) -> Result<Option<String>, String> {
        let mut client = match self.connection() {
            Ok(client) => client,
            Err(error) => {
                self.router.forget();
                self.retries += 1;
                return Ok(Some(format!("connect: {error}")));
            }
        };
        let mut connected = Ok(());
        for batch in &self.outgoing {
            let mut request = produce_request(&self.topic, self.partition, batch.bytes.clone());
            request.timeout_ms = 10_000;
            connected = connected.and_then(|()| client.send(&request, PRODUCE_VERSION).map(drop));
        }
        let mut left = VecDeque::new();
        let mut error = None;
        while let Some(batch) = self.outgoing.pop_front() {
            let answer = match &connected {
                Ok(()) => client.receive::<ProduceRequest>(PRODUCE_VERSION),
                Err(error) => Err(failed(error.to_string())),
            };
            let answer = answer.and_then(|(_, response)| produced(&response));
            match answer {
                Ok((code::NONE, offset)) => self.acknowledge(offset, batch)?,
                Ok((code, _)) if code::is_retriable(code) => {
                    error = Some(format!("error {code}"));
                    left.push_back(batch);
                }
                // Right behind a batch that was not taken, and only there, a gap is to be expected.
                Ok((code::OUT_OF_ORDER_SEQUENCE_NUMBER, _)) if !left.is_empty() => left.push_back(batch),
                Ok((code, _)) => {
                    return Err(format!("batch with sequence {}: error {code}", batch.sequence));
                }
                Err(lost) => {
                    connected = Err(failed(lost.to_string()));
                    error = Some(lost.to_string());
                    left.push_back(batch);
                }
            }
        }
        self.outgoing = left;
        if error.is_some() {
            self.retries += 1;
            self.router.forget();
        }
        // A leader that refused may not be the leader any more.
        let stays = error.is_none() || self.router.is_fixed();
        self.client = (connected.is_ok() && stays).then_some(client);
        Ok(error)
    }

    fn connection(&mut self) -> io::Result<Client> {
        match self.client.take() {
            Some(client) => Ok(client),
            None => {
                let leader = self.router.leader(&self.topic, self.partition)?;
                self.router.connect(leader)
            }
        }
    }

    fn acknowledge(&mut self, offset: i64, batch: Outgoing) -> Result<(), String> {
        if offset < 0 {
            return Err(format!(
                "sequence {} is acknowledged at offset {offset}",
                batch.sequence
            ));
        }
        match self.acknowledged.insert(offset, batch.values) {
            None => Ok(()),
            Some(_) => Err(format!("offset {offset} is acknowledged twice")),
        }
    }
}

/// Compares what was read with what producers were promised: everything acknowledged is at its offset, nothing
/// is there twice, offsets have no gap.
///
/// # Errors
/// A sentence about the first difference.
pub fn check_exact(records: &[Fetched], acknowledged: &[&BTreeMap<i64, Vec<Vec<u8>>>]) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        if record.offset != index as i64 {
            return Err(format!("offset {} where {index} was expected", record.offset));
        }
        if let Some(first) = seen.insert(record.value.clone(), record.offset) {
            let value = String::from_utf8_lossy(&record.value).into_owned();
            return Err(format!(
                "{value:?} is there twice, at {first} and {}",
                record.offset
            ));
        }
    }
    let mut count = 0;
    for batches in acknowledged {
        for (base, values) in *batches {
            for (delta, value) in values.iter().enumerate() {
                let offset = *base + delta as i64;
                let found = records.get(offset as usize).map(|record| &record.value[..]);
                if found != Some(&value[..]) {
                    let (value, found) = (String::from_utf8_lossy(value), found.map(String::from_utf8_lossy));
                    return Err(format!(
                        "{value:?} was acknowledged at {offset}, where {found:?} is"
                    ));
                }
                count += 1;
            }
        }
    }
    if count != records.len() {
        return Err(format!(
            "{} records are there, {count} were acknowledged",
            records.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use kafka_wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};
    use kafka_wire_core::{ApiVersion, BytesMut, Encoder, KafkaEncode};

    use super::*;

    fn batches(all: &[(i64, &[&str])]) -> BTreeMap<i64, Vec<Vec<u8>>> {
        let owned = |values: &[&str]| values.iter().map(|value| value.as_bytes().to_vec()).collect();
        all.iter()
            .map(|(offset, values)| (*offset, owned(values)))
            .collect()
    }

    fn records(all: &[(i64, &'static str)]) -> Vec<Fetched> {
        all.iter()
            .map(|(offset, value)| Fetched {
                offset: *offset,
                value: Bytes::from(*value),
            })
            .collect()
    }

    #[test]
    fn the_comparison_sees_every_kind_of_difference() {
        let one = batches(&[(0, &["a", "b"]), (3, &["d"])]);
        let two = batches(&[(2, &["c"])]);
        let check = |all: &[(i64, &'static str)]| check_exact(&records(all), &[&one, &two]);
        assert_eq!(check(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")]), Ok(()));
        for (wrong, part) in [
            (vec![(0, "a"), (1, "b"), (2, "c")], "acknowledged at 3"),
            (
                vec![(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "e")],
                "5 records are there",
            ),
            (vec![(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "a")], "twice"),
            (vec![(0, "b"), (1, "a"), (2, "c"), (3, "d")], "acknowledged at 0"),
            (vec![(0, "a"), (1, "b"), (3, "c"), (4, "d")], "offset 3 where 2"),
        ] {
            let error = check(&wrong).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    /// A code and a base offset, or a cut.
    type Answer = Option<(i16, i64)>;

    /// Answers the Produce requests of one connection after the other as scripted.
    fn scripted(script: Vec<Vec<Answer>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answers in script {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut length = [0; 4];
                    stream.read_exact(&mut length).unwrap();
                    let mut request = vec![0; i32::from_be_bytes(length) as usize];
                    stream.read_exact(&mut request).unwrap();
                    let Some((code, offset)) = answer else {
                        // Closed with requests unread, it would be reset, and take the answers on their way with it.
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                        let _ = std::io::copy(&mut stream, &mut std::io::sink());
                        break;
                    };
                    let mut partition = PartitionProduceResponse::default();
                    partition.error_code = code;
                    partition.base_offset = offset;
                    let mut topic = TopicProduceResponse::default();
                    topic.partition_responses = vec![partition];
                    let mut response = ProduceResponse::default();
                    response.responses = vec![topic];
                    let mut body = BytesMut::new();
                    response
                        .encode(&mut Encoder::new(&mut body), ApiVersion::new(PRODUCE_VERSION))
                        .unwrap();
                    let payload = [&request[4..8], &[0], &body[..]].concat();
                    stream.write_all(&crate::wire::framed(&payload)).unwrap();
                }
            }
        });
        address
    }

    fn producer(address: SocketAddr) -> IdempotentProducer {
        IdempotentProducer {
            router: Router::fixed(address, Duration::from_secs(5)),
            topic: "t".to_owned(),
            partition: 0,
            id: 1,
            epoch: 0,
            sequence: 0,
            client: None,
            outgoing: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            retries: 0,
        }
    }

    fn send(producer: &mut IdempotentProducer, count: usize) -> Result<(), String> {
        let patience = Duration::from_secs(10);
        for number in 0..count {
            producer.send(0, vec![format!("{number}").into_bytes()], patience)?;
        }
        producer.flush(patience)
    }

    #[test]
    fn the_producer_sends_again_until_all_is_acknowledged() {
        let ok = |offset| Some((code::NONE, offset));
        let timed_out = Some((code::REQUEST_TIMED_OUT, -1));
        let gap = Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1));
        let address = scripted(vec![
            vec![ok(0), timed_out, ok(2), None],
            vec![timed_out, gap, gap, ok(1), ok(3), ok(4)],
        ]);
        let mut producer = producer(address);
        send(&mut producer, 5).unwrap();
        let all = batches(&[(0, &["0"]), (1, &["1"]), (2, &["2"]), (3, &["3"]), (4, &["4"])]);
        assert_eq!(*producer.acknowledged(), all);
        assert_eq!(producer.retries(), 2);
    }

    #[test]
    fn the_producer_notices_broken_promises() {
        let gap = Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1));
        let first = send(&mut producer(scripted(vec![vec![gap]])), 1);
        assert!(first.unwrap_err().contains("error 45"));
        let twice = vec![vec![Some((code::NONE, 7)), Some((code::NONE, 7))]];
        assert!(
            send(&mut producer(scripted(twice)), 2)
                .unwrap_err()
                .contains("acknowledged twice")
        );
    }
}
