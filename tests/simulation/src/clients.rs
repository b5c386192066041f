//! Clients: they produce, read, commit and administer through the Kafka protocol, retry as real ones do, and tell the
//! history what they saw.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::time::Duration;

use alluvium_log::batch::{BatchBuilder, ChunkCursor};
use bytes::Bytes;
use kafka_wire::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_wire::delete_topics_request::DeleteTopicState;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_wire::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_wire::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{
    CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, FetchRequest, FindCoordinatorRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest,
    OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest, ProduceRequest,
};
use uuid::Uuid;

use crate::history::{Partition, Value};
use crate::kafka::{Kafka, code};
use crate::members::must_join;
use crate::world::{Chance, Limit, Millis, Node, Shared};

/// Batches of a producer in flight at once.
const IN_FLIGHT: usize = 5;
/// An acknowledged record is looked for by its time once no leader can be unaware of it.
const SETTLED: Millis = 15_000;
/// Of Kafka: a resource that is a topic, and the operation that gives a config a value.
const TOPIC: i8 = 2;
const SET: i8 = 0;

/// What all clients need.
#[derive(Clone, Debug)]
pub struct Client {
    pub world: Shared,
    /// The machine that it runs on.
    pub from: Node,
    pub name: String,
    /// Machines that may run a broker.
    pub brokers: Vec<Node>,
    pub chance: Chance,
    connections: Connections,
    /// A broker that answered.
    good: Option<Node>,
}

#[derive(Debug, Default)]
struct Connections(BTreeMap<Node, Kafka>);

impl Clone for Connections {
    fn clone(&self) -> Connections {
        Connections::default()
    }
}

/// A topic as a broker describes it.
#[derive(Clone, Debug)]
pub struct Described {
    pub id: Uuid,
    /// Machine of the leader of each partition.
    pub leaders: BTreeMap<i32, Node>,
}

/// Where a reader of a partition stands.
#[derive(Debug, Default)]
struct Position {
    of: Uuid,
    at: i64,
    /// Leader epoch of the batch before it, if that was read, and who gave it.
    behind: Option<(i32, Node)>,
}

impl Position {
    /// Goes elsewhere; nothing is known of what stands before.
    fn go_to(&mut self, at: i64) {
        (self.at, self.behind) = (at, None);
    }
}

/// What ends an attempt.
#[derive(Debug)]
pub enum Failed {
    /// Worth another try.
    Again(String),
    /// The topic is not there (any more).
    NoTopic,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Again(why) => f.write_str(why),
            Failed::NoTopic => f.write_str("the topic is not there"),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Failed {
        Failed::Again(e.to_string())
    }
}

pub type Tried<T> = Result<T, Failed>;

impl Client {
    pub fn new(world: &Shared, from: Node, name: &str, brokers: &[Node]) -> Client {
        Client {
            world: world.clone(),
            from,
            name: name.to_owned(),
            brokers: brokers.to_vec(),
            chance: world.lock().chance.split(),
            connections: Connections::default(),
            good: None,
        }
    }

    pub(crate) fn now(&self) -> Millis {
        self.world.lock().clock()
    }

    pub(crate) fn closing(&self) -> bool {
        self.world.lock().closing
    }

    pub(crate) async fn pause(&mut self, from: u64, to: u64) {
        let ms = self.chance.between(from, to);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub(crate) fn tell(&self, line: std::fmt::Arguments<'_>) {
        self.world.lock().tell(format_args!("{} {line}", self.name));
    }

    pub(crate) fn wrong(&self, what: String) {
        self.world.lock().violation(format!("{}: {what}", self.name));
    }

    fn succeeded(&self) {
        let mut w = self.world.lock();
        let now = w.clock();
        w.history.success(&self.name, now);
    }

    /// A connection to a broker, kept from earlier or new; taken out, so that an error leaves none behind.
    pub(crate) async fn take(&mut self, node: Node) -> Tried<Kafka> {
        match self.connections.0.remove(&node) {
            Some(kafka) => Ok(kafka),
            None => {
                if self.good == Some(node) {
                    self.good = None;
                }
                Ok(Kafka::connect(&self.world, self.from, node).await?)
            }
        }
    }

    pub(crate) fn give_back(&mut self, kafka: Kafka) {
        self.good = Some(kafka.node);
        self.connections.0.insert(kafka.node, kafka);
    }

    /// Most often one that answered before: clients go on to the next only when one is away.
    fn any_broker(&mut self) -> Node {
        let unheard = self.world.lock().unheard();
        if let Some(first) = unheard
            && self.chance.happens(0.5)
        {
            return first.node;
        }
        match self.good {
            Some(good) if self.chance.happens(0.8) => good,
            _ => *self.chance.one_of(&self.brokers),
        }
    }

    /// Describes a topic; `None` if the broker does not know it.
    pub(crate) async fn describe(&mut self, topic: &str) -> Tried<Option<Described>> {
        let node = self.any_broker();
        let mut kafka = self.take(node).await?;
        let mut named = MetadataRequestTopic::default();
        named.name = Some(topic.to_owned().into());
        let mut request = MetadataRequest::default();
        request.topics = Some(vec![named]);
        request.allow_auto_topic_creation = false;
        let answer = kafka.call(10, &request).await?;
        self.give_back(kafka);
        let places: BTreeMap<i32, Node> = answer
            .brokers
            .iter()
            .filter_map(|b| Some((b.node_id, node_named(b.host.as_str())?)))
            .collect();
        let Some(found) = answer.topics.first() else {
            return Err(Failed::Again("metadata without the topic".into()));
        };
        if found.error_code == code::UNKNOWN_TOPIC_OR_PARTITION {
            return Ok(None);
        }
        if found.error_code != code::NONE {
            return Err(Failed::Again(format!("metadata: error {}", found.error_code)));
        }
        let leaders = found
            .partitions
            .iter()
            .filter(|p| p.error_code == code::NONE)
            .filter_map(|p| Some((p.partition_index, *places.get(&p.leader_id)?)));
        Ok(Some(Described {
            id: Uuid::from_bytes(*found.topic_id.as_bytes()),
            leaders: leaders.collect(),
        }))
    }

    async fn leader(&mut self, topic: &str, partition: i32) -> Tried<(Uuid, Node)> {
        let described = self.describe(topic).await?.ok_or(Failed::NoTopic)?;
        let node = described.leaders.get(&partition);
        let node = node.ok_or_else(|| Failed::Again("no leader".into()))?;
        Ok((described.id, *node))
    }

    // ---- topics

    /// Creates a topic, until it is there; returns its id.
    pub async fn create_topic(&mut self, topic: &str, partitions: i32, configs: &[(&str, &str)]) -> Uuid {
        loop {
            match self.try_create(topic, partitions, configs).await {
                Ok(id) => {
                    self.tell(format_args!("created {topic} as {id}"));
                    return id;
                }
                Err(e) => self.tell(format_args!("creating {topic}: {e}")),
            }
            self.pause(200, 1_000).await;
        }
    }

    async fn try_create(&mut self, topic: &str, partitions: i32, configs: &[(&str, &str)]) -> Tried<Uuid> {
        let node = self.any_broker();
        let mut kafka = self.take(node).await?;
        let mut creatable = CreatableTopic::default();
        creatable.name = topic.to_owned().into();
        creatable.num_partitions = partitions;
        creatable.replication_factor = 1;
        for (name, value) in configs {
            let mut config = CreatableTopicConfig::default();
            config.name = (*name).to_owned().into();
            config.value = Some((*value).to_owned().into());
            creatable.configs.push(config);
        }
        let mut request = CreateTopicsRequest::default();
        request.topics = vec![creatable];
        request.timeout_ms = 10_000;
        let answer = kafka.call(7, &request).await?;
        self.give_back(kafka);
        let made = answer.topics.first().map_or(-1, |t| t.error_code);
        if made != code::NONE && made != code::TOPIC_ALREADY_EXISTS {
            return Err(Failed::Again(format!("error {made}")));
        }
        match self.describe(topic).await? {
            Some(described) => Ok(described.id),
            None => Err(Failed::Again("not there yet".into())),
        }
    }

    async fn try_delete(&mut self, topic: &str, id: Uuid) -> Tried<()> {
        let node = self.any_broker();
        let mut kafka = self.take(node).await?;
        let mut state = DeleteTopicState::default();
        state.topic_id = kafka_wire_core::Uuid::from_bytes(*id.as_bytes());
        let mut request = DeleteTopicsRequest::default();
        request.topics = vec![state];
        request.timeout_ms = 10_000;
        self.world.lock().history.deleting(id);
        let answer = kafka.call(6, &request).await?;
        self.give_back(kafka);
        match answer.responses.first().map_or(-1, |t| t.error_code) {
            code::NONE | code::UNKNOWN_TOPIC_ID => {
                self.tell(format_args!("deleted {topic} {id}"));
                Ok(())
            }
            other => Err(Failed::Again(format!("error {other}"))),
        }
    }

    /// Deletes a topic and creates it again under the same name, again and again.
    pub async fn churn(mut self, topic: String, partitions: i32) {
        while !self.closing() {
            let id = self.create_topic(&topic, partitions, &[]).await;
            self.succeeded();
            self.pause(4_000, 20_000).await;
            if self.closing() {
                return;
            }
            while let Err(e) = self.try_delete(&topic, id).await {
                self.tell(format_args!("deleting {topic}: {e}"));
                self.pause(200, 1_000).await;
            }
        }
    }

    /// Lets retention take what a topic has too much of, or what is too old, and then again nothing, in turns.
    pub async fn retain(mut self, topic: String, (config, limit): Limit) {
        let mut limited = false;
        while !self.closing() {
            self.pause(200, 400).await;
            let aimed = self.world.lock().aims_at_zombies();
            let wanted = match aimed {
                // It is to miss the end of it.
                Some(zombie) => zombie.is_none(),
                None if self.chance.happens(0.02) => !limited,
                None => limited,
            };
            if wanted == limited {
                continue;
            }
            if wanted && aimed.is_some() {
                // Until it is seen what the zombie did.
                self.pause(3_000, 4_000).await;
            }
            let value = if wanted { limit } else { -1 };
            match self.try_config(&topic, config, value).await {
                Ok(()) => {
                    self.tell(format_args!("{topic} has {config}={value}"));
                    self.succeeded();
                    limited = wanted;
                }
                Err(e) => self.tell(format_args!("{config} of {topic}: {e}")),
            }
        }
    }

    async fn try_config(&mut self, topic: &str, config: &str, value: i64) -> Tried<()> {
        let zombie = self.world.lock().zombie.map(|z| z.node);
        let node = match self.any_broker() {
            node if Some(node) != zombie => node,
            _ => *self
                .brokers
                .iter()
                .rfind(|n| Some(**n) != zombie)
                .unwrap_or(&Node(1)),
        };
        let mut kafka = self.take(node).await?;
        let mut altered = AlterableConfig::default();
        altered.name = config.to_owned().into();
        altered.config_operation = SET;
        altered.value = Some(value.to_string().into());
        let mut resource = AlterConfigsResource::default();
        resource.resource_type = TOPIC;
        resource.resource_name = topic.to_owned().into();
        resource.configs = vec![altered];
        let mut request = IncrementalAlterConfigsRequest::default();
        request.resources = vec![resource];
        let answer = kafka.call(1, &request).await?;
        self.give_back(kafka);
        match answer.responses.first().map_or(-1, |r| r.error_code) {
            code::NONE => Ok(()),
            other => Err(Failed::Again(format!("error {other}"))),
        }
    }

    // ---- producing

    /// Produces with sequence numbers to one partition, a few batches in flight at a time.
    pub async fn produce(mut self, topic: String, partition: i32, number: u32) {
        let mut unacked: VecDeque<(i32, Vec<Value>)> = VecDeque::new();
        let (mut next_value, mut next_sequence) = (0, 0);
        let mut identity = None;
        while !self.closing() || !unacked.is_empty() {
            if identity.is_none() {
                match self.producer_id().await {
                    Ok(id) => identity = Some(id),
                    Err(e) => {
                        self.tell(format_args!("no producer id: {e}"));
                        self.pause(100, 500).await;
                        continue;
                    }
                }
            }
            let want = 1 + self.chance.below(IN_FLIGHT as u64) as usize;
            while unacked.len() < want && !self.closing() {
                let count = 1 + self.chance.below(3);
                let values: Vec<Value> = (0..count)
                    .map(|i| Value {
                        producer: number,
                        number: next_value + i,
                    })
                    .collect();
                next_value += count;
                unacked.push_back((next_sequence, values));
                next_sequence += count as i32;
            }
            if let Some(identity) = identity {
                let tried = self
                    .send_all(&topic, partition, Some(identity), &mut unacked)
                    .await;
                if let Err(e) = tried {
                    self.tell(format_args!("{} unacknowledged: {e}", unacked.len()));
                    self.pause(50, 400).await;
                }
            }
            self.pause(20, 400).await;
        }
    }

    /// Produces without sequence numbers, by topic name: what fails is another value next time.
    pub async fn produce_plainly(mut self, topic: String, partition: i32, number: u32) {
        let mut next = 0;
        while !self.closing() {
            let values = vec![Value {
                producer: number,
                number: next,
            }];
            next += 1;
            let mut unacked = VecDeque::from([(-1, values)]);
            if let Err(e) = self.send_all(&topic, partition, None, &mut unacked).await {
                self.tell(format_args!("not acknowledged: {e}"));
            }
            self.pause(50, 700).await;
        }
    }

    async fn producer_id(&mut self) -> Tried<(i64, i16)> {
        let node = self.any_broker();
        let mut kafka = self.take(node).await?;
        let mut request = InitProducerIdRequest::default();
        request.transactional_id = None;
        request.producer_id = -1;
        request.producer_epoch = -1;
        let answer = kafka.call(4, &request).await?;
        self.give_back(kafka);
        match answer.error_code {
            code::NONE => Ok((answer.producer_id, answer.producer_epoch)),
            other => Err(Failed::Again(format!("error {other}"))),
        }
    }

    /// Sends what is not acknowledged, in order, and takes out what is.
    async fn send_all(
        &mut self,
        topic: &str,
        partition: i32,
        identity: Option<(i64, i16)>,
        unacked: &mut VecDeque<(i32, Vec<Value>)>,
    ) -> Tried<()> {
        let (id, node) = self.leader(topic, partition).await?;
        let mut kafka = self.take(node).await?;
        let mut sent = vec![];
        for (sequence, values) in unacked.iter() {
            let records = batch(identity, *sequence, values);
            let request = produce_request(id, partition, records);
            sent.push(kafka.send(13, &request).await?);
        }
        for request in sent {
            let answer = kafka.receive::<ProduceRequest>(13, request).await?;
            let part = answer
                .responses
                .first()
                .and_then(|t| t.partition_responses.first());
            let (error, base) = part.map_or((-1, -1), |p| (p.error_code, p.base_offset));
            let Some((sequence, values)) = unacked.front() else {
                break;
            };
            if error != code::NONE {
                let why = format!("sequence {sequence}: error {error} from {node}");
                if !code::is_retriable(error) {
                    self.wrong(format!("produce to {topic}-{partition}, {why}"));
                }
                return Err(Failed::Again(why));
            }
            let mut w = self.world.lock();
            let now = w.clock();
            w.tell(format_args!(
                "{} {topic}-{partition} {base}: {sequence} x{} acknowledged by {node}",
                self.name,
                values.len()
            ));
            w.history.acked((id, partition), base, values, now);
            w.history.success(&self.name, now);
            unacked.pop_front();
        }
        self.give_back(kafka);
        Ok(())
    }

    // ---- reading

    /// Follows a partition, now and then from an earlier place, and asks where it ends.
    pub async fn read(mut self, topic: String, partition: i32) {
        let mut position = Position::default();
        while !self.closing() {
            let tried = match self.chance.below(10) {
                0..=1 => self.ask_end(&topic, partition).await.map(|_| ()),
                2 => self.ask_time(&topic, partition).await,
                _ => {
                    if self.chance.happens(0.03) {
                        position.go_to(self.chance.below(position.at as u64 + 1) as i64);
                    }
                    self.read_some(&topic, partition, &mut position).await
                }
            };
            if let Err(e) = tried {
                self.tell(format_args!("{topic}-{partition} at {}: {e}", position.at));
                self.pause(100, 500).await;
            }
            self.pause(10, 300).await;
        }
    }

    async fn ask_end(&mut self, topic: &str, partition: i32) -> Tried<(Uuid, i64, i64)> {
        let (id, node) = self.leader(topic, partition).await?;
        let mut kafka = self.take(node).await?;
        let asked = self.now();
        let ask = |timestamp| offsets_request(topic, partition, timestamp);
        let latest = kafka.call(5, &ask(-1)).await?;
        let earliest = kafka.call(5, &ask(-2)).await?;
        let answered = self.now();
        self.give_back(kafka);
        let of = |r: &kafka_wire::ListOffsetsResponse| {
            r.topics
                .first()
                .and_then(|t| t.partitions.first())
                .map_or((-1, -1, -1), |p| (p.error_code, p.offset, p.leader_epoch))
        };
        let (end, start) = (of(&latest), of(&earliest));
        if (end.0, start.0) != (code::NONE, code::NONE) {
            return Err(Failed::Again(format!("ends: errors {} and {}", end.0, start.0)));
        }
        // By name: only if the name still means the same topic is this about it.
        let same = self
            .leader(topic, partition)
            .await
            .is_ok_and(|(now, _)| now == id);
        if same {
            let mut w = self.world.lock();
            w.tell(format_args!(
                "{} {topic}-{partition} of epoch {} is {}..{} says {node}",
                self.name, end.2, start.1, end.1
            ));
            w.history
                .told((id, partition), end.2, start.1, end.1, asked, answered);
        }
        Ok((id, start.1, end.1))
    }

    /// Looks an acknowledged record up by its time.
    async fn ask_time(&mut self, topic: &str, partition: i32) -> Tried<()> {
        let (id, node) = self.leader(topic, partition).await?;
        let (lot, settled) = (self.chance.next(), self.now().saturating_sub(SETTLED));
        let time = self.world.lock().history.some_time((id, partition), settled, lot);
        let Some(time) = time else { return Ok(()) };
        let mut kafka = self.take(node).await?;
        let answer = kafka.call(5, &offsets_request(topic, partition, time)).await?;
        self.give_back(kafka);
        let part = answer.topics.first().and_then(|t| t.partitions.first());
        let (error, offset, at) = part.map_or((-1, -1, -1), |p| (p.error_code, p.offset, p.timestamp));
        if error != code::NONE {
            return Err(Failed::Again(format!("time {time}: error {error}")));
        }
        // By name: as for the ends.
        let now = self.leader(topic, partition).await;
        if now.is_ok_and(|(now, _)| now == id) {
            let mut w = self.world.lock();
            w.tell(format_args!(
                "{} {topic}-{partition} has time {time} at {offset} says {node}",
                self.name
            ));
            let found = (offset >= 0).then_some((offset, at));
            w.history.found_by_time((id, partition), time, found, settled);
        }
        Ok(())
    }

    /// Reads on from a position.
    async fn read_some(&mut self, topic: &str, partition: i32, position: &mut Position) -> Tried<()> {
        let (id, node) = self.leader(topic, partition).await?;
        if position.of != id {
            (position.of, position.at, position.behind) = (id, 0, None);
        }
        if let Some((epoch, of)) = position.behind
            && of != node
        {
            self.validate(topic, partition, id, (epoch, position.at), node)
                .await?;
            position.behind = Some((epoch, node));
        }
        let at = position.at;
        let mut kafka = self.take(node).await?;
        let batches = fetch(&mut kafka, id, partition, at).await?;
        self.give_back(kafka);
        let batches = match batches {
            Ok(batches) => batches,
            Err(code::OFFSET_OUT_OF_RANGE) => {
                self.tell(format_args!(
                    "{topic}-{partition} {at} is out of range says {node}"
                ));
                self.world.lock().history.out_of_range((id, partition), at);
                let (_, start, end) = self.ask_end(topic, partition).await?;
                position.go_to(at.clamp(start, end.max(start)));
                return Ok(());
            }
            Err(error) if code::is_retriable(error) => {
                return Err(Failed::Again(format!("fetch: error {error} from {node}")));
            }
            Err(error) => {
                self.wrong(format!(
                    "fetch of {topic}-{partition} at {at}: error {error} from {node}"
                ));
                return Err(Failed::Again(format!("error {error}")));
            }
        };
        let mut w = self.world.lock();
        let now = w.clock();
        for b in &batches {
            let at = position.at;
            let values: Vec<Value> = b.records.iter().map(|(_, value)| *value).collect();
            if b.next - b.base != values.len() as i64 {
                let what = format!(
                    "{topic}-{partition}: {} values in {}..{}",
                    values.len(),
                    b.base,
                    b.next
                );
                w.violation(what);
            }
            if b.next <= at {
                let what = format!("{topic}-{partition}: a batch at {} to a fetch from {at}", b.base);
                w.violation(what);
            }
            if b.base > at {
                let what = format!("{topic}-{partition}: a fetch from {at} got {}", b.base);
                w.violation(what);
            }
            w.history.read((id, partition), b.base, b.epoch, &values);
            (position.at, position.behind) = (b.next, Some((b.epoch, node)));
        }
        w.tell(format_args!(
            "{} {topic}-{partition} read up to {} from {node}",
            self.name, position.at
        ));
        w.history.success(&self.name, now);
        Ok(())
    }

    /// Asks another leader than before where the epoch ended that was read up to an offset, as the Java client does: it
    /// takes an end before that for a log that was cut.
    async fn validate(
        &mut self,
        topic: &str,
        partition: i32,
        id: Uuid,
        (epoch, at): (i32, i64),
        node: Node,
    ) -> Tried<()> {
        let mut kafka = self.take(node).await?;
        let answer = kafka.call(4, &epoch_request(topic, partition, epoch)).await?;
        self.give_back(kafka);
        let part = answer.topics.first().and_then(|t| t.partitions.first());
        let (error, found, end) = part.map_or((-1, -1, -1), |p| (p.error_code, p.leader_epoch, p.end_offset));
        if error != code::NONE {
            let why = format!("end of epoch {epoch}: error {error} from {node}");
            if !code::is_retriable(error) {
                self.wrong(format!("{topic}-{partition}, {why}"));
            }
            return Err(Failed::Again(why));
        }
        // By name: as for the ends.
        let now = self.leader(topic, partition).await;
        if now.is_ok_and(|(now, _)| now == id) {
            let mut w = self.world.lock();
            w.tell(format_args!(
                "{} {topic}-{partition} read up to {at} in epoch {epoch}, which is {found} and ends at {end} says {node}",
                self.name
            ));
            w.history.epoch_ends((id, partition), (epoch, at), (found, end));
        }
        Ok(())
    }

    /// Reads a whole partition, as it is now; retries for ever.
    pub async fn read_whole(&mut self, topic: &str, partition: i32) -> (Uuid, i64, Vec<(i64, i32, Value)>) {
        loop {
            match self.try_read_whole(topic, partition).await {
                Ok(found) => return found,
                Err(e) => self.tell(format_args!("reading all of {topic}-{partition}: {e}")),
            }
            self.pause(200, 600).await;
        }
    }

    async fn try_read_whole(
        &mut self,
        topic: &str,
        partition: i32,
    ) -> Tried<(Uuid, i64, Vec<(i64, i32, Value)>)> {
        let (id, start, end) = self.ask_end(topic, partition).await?;
        let (_, node) = self.leader(topic, partition).await?;
        let (mut at, mut all) = (start, vec![]);
        while at < end {
            let mut kafka = self.take(node).await?;
            let batches = fetch(&mut kafka, id, partition, at).await?;
            self.give_back(kafka);
            let batches = batches.map_err(|e| Failed::Again(format!("fetch at {at}: error {e}")))?;
            for b in batches {
                let whole = b.records.iter().map(|(offset, value)| (*offset, b.epoch, *value));
                all.extend(whole.filter(|(offset, ..)| *offset >= at));
                at = b.next;
            }
        }
        Ok((id, start, all))
    }

    /// Now and then lets a partition begin later.
    pub async fn trim(mut self, topic: String, partition: i32) {
        while !self.closing() {
            self.pause(5_000, 20_000).await;
            if self.closing() {
                return;
            }
            if let Err(e) = self.try_trim(&topic, partition).await {
                self.tell(format_args!("trimming {topic}-{partition}: {e}"));
            }
        }
    }

    async fn try_trim(&mut self, topic: &str, partition: i32) -> Tried<()> {
        let (id, start, end) = self.ask_end(topic, partition).await?;
        if end - start < 20 {
            return Ok(());
        }
        let to = start + (end - start) / 4;
        let (again, node) = self.leader(topic, partition).await?;
        if again != id {
            return Ok(());
        }
        let mut kafka = self.take(node).await?;
        let mut of_partition = DeleteRecordsPartition::default();
        of_partition.partition_index = partition;
        of_partition.offset = to;
        let mut of_topic = DeleteRecordsTopic::default();
        of_topic.name = topic.to_owned().into();
        of_topic.partitions = vec![of_partition];
        let mut request = DeleteRecordsRequest::default();
        request.topics = vec![of_topic];
        request.timeout_ms = 10_000;
        self.world.lock().history.start_asked((id, partition), to);
        let answer = kafka.call(1, &request).await?;
        self.give_back(kafka);
        let part = answer.topics.first().and_then(|t| t.partitions.first());
        match part.map_or(-1, |p| p.error_code) {
            code::NONE => {
                self.tell(format_args!("{topic}-{partition} begins at {to}"));
                self.world.lock().history.start_acked((id, partition), to);
                self.succeeded();
                Ok(())
            }
            other => Err(Failed::Again(format!("error {other}"))),
        }
    }

    // ---- committing

    /// Commits growing offsets of a group, and looks what is committed.
    pub async fn commit(mut self, group: String, topic: String, partition: i32) {
        let mut next = 0;
        while !self.closing() {
            let tried = if self.chance.happens(0.6) {
                next += 1 + self.chance.below(5) as i64;
                match self.try_commit(&group, &topic, partition, next, None).await {
                    Ok(code::NONE) => Ok(()),
                    Ok(error) => Err(Failed::Again(format!("commit: error {error}"))),
                    Err(e) => Err(e),
                }
            } else {
                self.try_fetch_commit(&group, &topic, partition).await.map(|_| ())
            };
            if let Err(e) = tried {
                self.tell(format_args!("group {group}: {e}"));
                self.pause(50, 300).await;
            }
            self.pause(50, 600).await;
        }
    }

    pub(crate) async fn coordinator(&mut self, group: &str) -> Tried<Node> {
        let node = self.any_broker();
        let mut kafka = self.take(node).await?;
        let mut request = FindCoordinatorRequest::default();
        request.key_type = 0;
        request.coordinator_keys = vec![group.to_owned().into()];
        let answer = kafka.call(4, &request).await?;
        self.give_back(kafka);
        let found = answer.coordinators.first();
        match found {
            Some(c) if c.error_code == code::NONE => node_named(c.host.as_str())
                .ok_or_else(|| Failed::Again(format!("coordinator {}", c.host.as_str()))),
            found => Err(Failed::Again(format!(
                "no coordinator: {}",
                found.map_or(-1, |c| c.error_code)
            ))),
        }
    }

    /// Commits an offset, alone or as a member of a generation; the coordinator's error code.
    pub(crate) async fn try_commit(
        &mut self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        member: Option<(&str, i32)>,
    ) -> Tried<i16> {
        let described = self.describe(topic).await?.ok_or(Failed::NoTopic)?;
        let node = self.coordinator(group).await?;
        let mut kafka = self.take(node).await?;
        let mut of_partition = OffsetCommitRequestPartition::default();
        of_partition.partition_index = partition;
        of_partition.committed_offset = offset;
        of_partition.committed_leader_epoch = -1;
        let mut of_topic = OffsetCommitRequestTopic::default();
        of_topic.name = topic.to_owned().into();
        of_topic.partitions = vec![of_partition];
        let mut request = OffsetCommitRequest::default();
        request.group_id = group.to_owned().into();
        request.generation_id_or_member_epoch = -1;
        if let Some((id, generation)) = member {
            request.member_id = id.to_owned().into();
            request.generation_id_or_member_epoch = generation;
        }
        request.topics = vec![of_topic];
        let p: Partition = (described.id, partition);
        let sent = self.now();
        self.world.lock().history.commit_tried(group, p, offset, sent);
        let answer = kafka.call(8, &request).await?;
        self.give_back(kafka);
        let part = answer.topics.first().and_then(|t| t.partitions.first());
        let error = part.map_or(code::UNKNOWN_SERVER_ERROR, |p| p.error_code);
        if error == code::NONE {
            let mut w = self.world.lock();
            let now = w.clock();
            w.tell(format_args!(
                "{} group {group} committed {offset} for {partition} with {node}",
                self.name
            ));
            w.history.commit_acked(group, p, offset, now);
            if let Some((_, generation)) = member {
                w.history.committed_in(group, generation, sent);
            }
            w.history.success(&self.name, now);
        } else if !(code::is_retriable(error) || member.is_some() && must_join(error)) {
            self.wrong(format!("commit of group {group}: error {error} from {node}"));
        }
        Ok(error)
    }

    pub(crate) async fn try_fetch_commit(&mut self, group: &str, topic: &str, partition: i32) -> Tried<i64> {
        let described = self.describe(topic).await?.ok_or(Failed::NoTopic)?;
        let node = self.coordinator(group).await?;
        let mut kafka = self.take(node).await?;
        let asked = self.now();
        let mut of_topic = OffsetFetchRequestTopics::default();
        of_topic.name = topic.to_owned().into();
        of_topic.partition_indexes = vec![partition];
        let mut of_group = OffsetFetchRequestGroup::default();
        of_group.group_id = group.to_owned().into();
        of_group.topics = Some(vec![of_topic]);
        let mut request = OffsetFetchRequest::default();
        request.groups = vec![of_group];
        request.require_stable = true;
        let answer = kafka.call(8, &request).await?;
        self.give_back(kafka);
        let of_group = answer.groups.first();
        let part = of_group
            .and_then(|g| g.topics.first())
            .and_then(|t| t.partitions.first());
        let error = of_group
            .map_or(-1, |g| g.error_code)
            .max(part.map_or(0, |p| p.error_code));
        match (error, part) {
            (code::NONE, Some(p)) => {
                let offset = p.committed_offset;
                let mut w = self.world.lock();
                let now = w.clock();
                w.tell(format_args!(
                    "{} group {group} is at {offset} says {node}",
                    self.name
                ));
                w.history
                    .committed(group, (described.id, partition), offset, asked);
                w.history.success(&self.name, now);
                Ok(offset)
            }
            (error, _) => {
                if !code::is_retriable(error) {
                    self.wrong(format!("offsets of group {group}: error {error} from {node}"));
                }
                Err(Failed::Again(format!("offsets: error {error} from {node}")))
            }
        }
    }
}

pub fn node_named(host: &str) -> Option<Node> {
    host.strip_prefix('b')?.parse().ok().map(Node)
}

fn batch(identity: Option<(i64, i16)>, sequence: i32, values: &[Value]) -> Bytes {
    let mut builder = BatchBuilder::new();
    if let Some((id, epoch)) = identity {
        builder = builder.producer(id, epoch, sequence);
    }
    for value in values {
        builder.push(value.time(), Some(&value.key()), Some(&value.encode()), &[]);
    }
    builder.build().bytes().clone()
}

fn produce_request(id: Uuid, partition: i32, records: Bytes) -> ProduceRequest {
    let mut data = PartitionProduceData::default();
    data.index = partition;
    data.records = Some(records);
    let mut of_topic = TopicProduceData::default();
    of_topic.topic_id = kafka_wire_core::Uuid::from_bytes(*id.as_bytes());
    of_topic.partition_data = vec![data];
    let mut request = ProduceRequest::default();
    request.acks = -1;
    request.timeout_ms = 8_000;
    request.topic_data = vec![of_topic];
    request
}

fn offsets_request(topic: &str, partition: i32, timestamp: i64) -> ListOffsetsRequest {
    let mut of_partition = ListOffsetsPartition::default();
    of_partition.partition_index = partition;
    of_partition.current_leader_epoch = -1;
    of_partition.timestamp = timestamp;
    let mut of_topic = ListOffsetsTopic::default();
    of_topic.name = topic.to_owned().into();
    of_topic.partitions = vec![of_partition];
    let mut request = ListOffsetsRequest::default();
    request.replica_id = -1;
    request.topics = vec![of_topic];
    request
}

fn epoch_request(topic: &str, partition: i32, epoch: i32) -> OffsetForLeaderEpochRequest {
    let mut of_partition = OffsetForLeaderPartition::default();
    of_partition.partition = partition;
    of_partition.current_leader_epoch = -1;
    of_partition.leader_epoch = epoch;
    let mut of_topic = OffsetForLeaderTopic::default();
    of_topic.topic = topic.to_owned().into();
    of_topic.partitions = vec![of_partition];
    let mut request = OffsetForLeaderEpochRequest::default();
    request.replica_id = -1;
    request.topics = vec![of_topic];
    request
}

/// A batch that was read.
#[derive(Debug)]
pub struct Read {
    pub base: i64,
    /// The offset behind it.
    pub next: i64,
    pub epoch: i32,
    /// By offset.
    pub records: Vec<(i64, Value)>,
}

/// The batches from `at` on, or the partition's error code.
async fn fetch(kafka: &mut Kafka, id: Uuid, partition: i32, at: i64) -> io::Result<Result<Vec<Read>, i16>> {
    let mut of_partition = FetchPartition::default();
    of_partition.partition = partition;
    of_partition.fetch_offset = at;
    of_partition.current_leader_epoch = -1;
    of_partition.last_fetched_epoch = -1;
    of_partition.log_start_offset = -1;
    of_partition.partition_max_bytes = 16 * 1024;
    let mut of_topic = FetchTopic::default();
    of_topic.topic_id = kafka_wire_core::Uuid::from_bytes(*id.as_bytes());
    of_topic.partitions = vec![of_partition];
    let mut request = FetchRequest::default();
    request.replica_id = -1;
    request.max_wait_ms = 300;
    request.min_bytes = 1;
    request.max_bytes = 64 * 1024;
    request.session_epoch = -1;
    request.topics = vec![of_topic];
    let answer = kafka.call(13, &request).await?;
    if answer.error_code != code::NONE {
        return Ok(Err(answer.error_code));
    }
    let Some(part) = answer.responses.first().and_then(|t| t.partitions.first()) else {
        return Ok(Err(code::UNKNOWN_SERVER_ERROR));
    };
    if part.error_code != code::NONE {
        return Ok(Err(part.error_code));
    }
    let chunks = [part.records.clone().unwrap_or_default()];
    Ok(decode(&chunks).ok_or(code::CORRUPT_MESSAGE))
}

/// Batches as clients read them; `None` if they are damaged.
pub fn decode(chunks: &[Bytes]) -> Option<Vec<Read>> {
    let mut cursor = ChunkCursor::new(chunks);
    let mut found = vec![];
    while let Some(view) = cursor.next_batch() {
        let view = view.ok()?;
        view.verify(chunks).ok()?;
        let batch = view.to_batch(chunks).ok()?;
        let records = alluvium_log::batch::records(batch.bytes(), 1 << 20).ok()?;
        // All of a record follows from its value.
        let value = |r: &alluvium_log::batch::Record| {
            let value = Value::decode(r.value.as_ref()?)?;
            let whole = r.timestamp == value.time() && r.key.as_deref() == Some(&value.key()[..]);
            whole.then_some((r.offset, value))
        };
        let header = batch.header();
        found.push(Read {
            base: header.base_offset,
            next: header.last_offset() + 1,
            epoch: header.leader_epoch,
            records: records.iter().map(value).collect::<Option<Vec<_>>>()?,
        });
    }
    Some(found)
}
