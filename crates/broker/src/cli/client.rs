//! A small Kafka client: one plaintext connection, versions negotiated by ApiVersions, requests and answers of
//! kafka-wire. Produce and Fetch, whose bodies are large, write and read frames of their own over it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_wire::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::{
    ApiVersionsRequest, CreateTopicsRequest, InitProducerIdRequest, KafkaMessage, KafkaRequest,
    ListOffsetsRequest, MetadataRequest, MetadataResponse, OutboundFrameLimits, RequestResponsePair,
    encode_request, response_header_version_for,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, KafkaDecode, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::errors::ErrorCode;

/// Name under which brokers see this program.
pub(super) const CLIENT_ID: &str = "alluvium";
/// Time that one connection may take to come about.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Time that one answer may take; Kafka's producers wait as long (`request.timeout.ms`).
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Answers without records are smaller than this.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A buffer grows by at least this much when an answer does not fit.
const READ_STEP_BYTES: usize = 1024 * 1024;
/// Pause between two tries of something that may succeed soon.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time for a leader to answer for its partitions.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Newest version of Metadata that is used: with those after it topics may be nameless.
const METADATA_VERSION_MAX: i16 = 9;

/// An address on the command line.
pub(super) fn address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT")?;
    match port.parse::<u16>() {
        Ok(1..) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("expected HOST:PORT".to_owned()),
    }
}

/// Why a command cannot go on, or has to try again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No connection.
    #[error("cannot connect to {address}: {source}{}", connect_hint(source))]
    Connect {
        /// `host:port`.
        address: Arc<str>,
        /// What the system says.
        source: io::Error,
    },
    /// A connection has ended.
    #[error("the connection to {address} is lost: {source}")]
    Lost {
        /// `host:port`.
        address: Arc<str>,
        /// What the system says.
        source: io::Error,
    },
    /// No answer.
    #[error("{address} did not answer within {} s", after.as_secs())]
    Silent {
        /// `host:port`.
        address: Arc<str>,
        /// For how long it was waited.
        after: Duration,
    },
    /// An error code.
    #[error("{what}: {}{}", code_name(*code), refusal_hint(*code))]
    Refused {
        /// What was asked for.
        what: String,
        /// Kafka's code.
        code: i16,
    },
    /// No common version.
    #[error("{address} does not serve a version of {api} that this program speaks ({min} to {max})")]
    Version {
        /// `host:port`.
        address: Arc<str>,
        /// Name of the API.
        api: &'static str,
        /// First version that would do.
        min: i16,
        /// Last version that would do.
        max: i16,
    },
    /// Not the Kafka protocol.
    #[error("{address} sent something that is no valid Kafka answer: {why}")]
    Malformed {
        /// `host:port`.
        address: Arc<str>,
        /// What is wrong.
        why: String,
    },
    /// Anything else, in one sentence.
    #[error("{0}")]
    Other(String),
}

impl ClientError {
    /// Whether a further try may succeed without anybody doing anything.
    pub(super) fn is_retriable(&self) -> bool {
        match self {
            ClientError::Connect { source, .. } => !is_out_of_files(source),
            ClientError::Lost { .. } | ClientError::Silent { .. } => true,
            ClientError::Refused { code, .. } => is_retriable(*code),
            ClientError::Version { .. } | ClientError::Malformed { .. } | ClientError::Other(_) => false,
        }
    }
}

fn is_out_of_files(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

fn connect_hint(error: &io::Error) -> &'static str {
    if is_out_of_files(error) {
        "; allow this process more open files (ulimit -n)"
    } else {
        "; --bootstrap must name a running broker and its plaintext listener"
    }
}

fn refusal_hint(code: i16) -> &'static str {
    match code {
        10 => "; lower --batch-size or --record-size, or raise the topic's max.message.bytes",
        17 => "; --topic takes letters, digits, '.', '_' and '-'",
        29..=31 => "; this program does not authenticate, so allow anonymous clients",
        38 => "; lower --replication-factor or start more brokers",
        40 => "; correct --topic-config",
        45 => "; the broker lost or reordered batches of an idempotent producer",
        76 => "; the broker does not take this --compression",
        _ => "",
    }
}

/// Kafka's name and number of an error code.
pub(super) fn code_name(code: i16) -> String {
    match ErrorCode::name_of(code) {
        Some(name) => format!("{name} ({code})"),
        None => format!("error {code}"),
    }
}

/// Whether Kafka's clients try again after this code.
pub(super) fn is_retriable(code: i16) -> bool {
    const RETRIABLE: [ErrorCode; 18] = [
        ErrorCode::CorruptMessage,
        ErrorCode::UnknownTopicOrPartition,
        ErrorCode::LeaderNotAvailable,
        ErrorCode::NotLeaderOrFollower,
        ErrorCode::RequestTimedOut,
        ErrorCode::BrokerNotAvailable,
        ErrorCode::ReplicaNotAvailable,
        ErrorCode::NetworkException,
        ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotCoordinator,
        ErrorCode::NotEnoughReplicas,
        ErrorCode::NotEnoughReplicasAfterAppend,
        ErrorCode::NotController,
        ErrorCode::KafkaStorageError,
        ErrorCode::FencedLeaderEpoch,
        ErrorCode::UnknownLeaderEpoch,
        ErrorCode::OffsetNotAvailable,
    ];
    RETRIABLE.iter().any(|retriable| retriable.code() == code)
}

/// The versions that a broker serves.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions(BTreeMap<i16, (i16, i16)>);

impl Versions {
    /// The newest version of `R` that both sides speak, from `min` to `max`.
    pub(super) fn pick<R: KafkaRequest>(
        &self,
        address: &Arc<str>,
        min: i16,
        max: i16,
    ) -> Result<i16, ClientError> {
        let min = min.max(R::SUPPORTED_VERSIONS.min().value());
        let max = max.min(R::SUPPORTED_VERSIONS.max().value());
        let theirs = self.0.get(&R::API_KEY.value());
        match theirs {
            Some((their_min, their_max)) if min.max(*their_min) <= max.min(*their_max) => {
                Ok(max.min(*their_max))
            }
            _ => Err(ClientError::Version {
                address: address.clone(),
                api: <R as KafkaMessage>::NAME.trim_end_matches("Request"),
                min,
                max,
            }),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    address: Arc<str>,
    versions: Versions,
    correlation: i32,
    answer: BytesMut,
}

impl Client {
    /// Connects and learns which versions the broker serves.
    pub(super) async fn connect(address: &Arc<str>) -> Result<Client, ClientError> {
        let failed = |source| ClientError::Connect {
            address: address.clone(),
            source,
        };
        let connected = timeout(CONNECT_PATIENCE, TcpStream::connect(&**address)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut client = Client {
            stream,
            address: address.clone(),
            versions: Versions::default(),
            correlation: 0,
            answer: BytesMut::new(),
        };
        // Every broker since Kafka 0.10 serves version 0.
        let answer = client.call_version(&ApiVersionsRequest::default(), 0).await?;
        refused("ApiVersions", answer.error_code)?;
        let ranges = answer.api_keys.iter();
        client.versions = Versions(
            ranges
                .map(|api| (api.api_key, (api.min_version, api.max_version)))
                .collect(),
        );
        Ok(client)
    }

    /// The first of these addresses that can be connected to, or why the last one cannot.
    pub(super) async fn connect_any(addresses: &[Arc<str>]) -> Result<Client, ClientError> {
        let mut failure = ClientError::Other("--bootstrap names no address".to_owned());
        for address in addresses {
            match Client::connect(address).await {
                Ok(client) => return Ok(client),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Where it is connected to.
    pub(super) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// What the broker serves.
    pub(super) fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The bare connection. Every answer has been read.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Whether the broker has kept this idle connection open.
    pub(super) fn is_open(&self) -> bool {
        let nothing = self.stream.try_read(&mut [0; 1]);
        matches!(nothing, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request of the newest version that both sides know, at most `version_max`, and reads its answer.
    pub(super) async fn call<R: RequestResponsePair>(
        &mut self,
        request: &R,
        version_max: i16,
    ) -> Result<R::Response, ClientError> {
        let version = self.versions.pick::<R>(&self.address, 0, version_max)?;
        self.call_version(request, version).await
    }

    async fn call_version<R: RequestResponsePair>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, ClientError> {
        let sent = self.send(request, version).await?;
        let mut answer = std::mem::take(&mut self.answer);
        self.receive(&mut answer, ANSWER_BYTES_MAX, ANSWER_PATIENCE)
            .await?;
        let (correlation, response) =
            decode::<R>(answer.freeze(), version).map_err(|why| self.malformed(why))?;
        if correlation != sent {
            return Err(self.malformed("an answer to another request".to_owned()));
        }
        Ok(response)
    }

    /// Sends the frame of a request that is no API of Kafka's, for the correlation id that it is given, and reads its
    /// answer, of at most `bytes_max`, without the length.
    pub(super) async fn exchange(
        &mut self,
        frame: impl FnOnce(i32) -> Vec<u8>,
        bytes_max: usize,
    ) -> Result<(i32, Bytes), ClientError> {
        self.correlation = self.correlation.wrapping_add(1);
        self.write(&frame(self.correlation)).await?;
        let mut answer = std::mem::take(&mut self.answer);
        self.receive(&mut answer, bytes_max, ANSWER_PATIENCE).await?;
        Ok((self.correlation, answer.freeze()))
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), ClientError> {
        match timeout(ANSWER_PATIENCE, self.stream.write_all(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(self.lost(source)),
            Err(_) => Err(self.silent(ANSWER_PATIENCE)),
        }
    }

    /// Sends a request; the answer is for [`Client::receive`]. Returns the correlation id.
    pub(super) async fn send<R: KafkaRequest>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<i32, ClientError> {
        self.correlation = self.correlation.wrapping_add(1);
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(ANSWER_BYTES_MAX);
        let client_id = Some(StrBytes::from(CLIENT_ID));
        let version = ApiVersion::new(version);
        encode_request(&mut frame, self.correlation, client_id, request, version, limits)
            .map_err(|error| ClientError::Other(format!("cannot write a request: {error}")))?;
        self.write(&frame).await?;
        Ok(self.correlation)
    }

    /// Reads exactly the next answer, without its length, into the buffer, whose memory is used again. It grows
    /// with the bytes that arrive, not with what their length promises. Returns when the first bytes came.
    pub(super) async fn receive(
        &mut self,
        answer: &mut BytesMut,
        bytes_max: usize,
        patience: Duration,
    ) -> Result<Instant, ClientError> {
        match timeout(patience, read_answer(&mut self.stream, answer, bytes_max)).await {
            Ok(Ok(first)) => Ok(first),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(self.malformed(error.to_string()))
            }
            Ok(Err(source)) => Err(self.lost(source)),
            Err(_) => Err(self.silent(patience)),
        }
    }

    pub(super) fn malformed(&self, why: String) -> ClientError {
        ClientError::Malformed {
            address: self.address.clone(),
            why,
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost {
            address: self.address.clone(),
            source,
        }
    }

    fn silent(&self, after: Duration) -> ClientError {
        ClientError::Silent {
            address: self.address.clone(),
            after,
        }
    }
}

async fn read_answer(stream: &mut TcpStream, answer: &mut BytesMut, bytes_max: usize) -> io::Result<Instant> {
    answer.clear();
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let first = Instant::now();
    let length =
        answer_length(length, bytes_max).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    while answer.len() < length {
        let missing = length - answer.len();
        if answer.capacity() == answer.len() {
            answer.reserve(missing.min(answer.len().max(READ_STEP_BYTES)));
        }
        let room = missing.min(answer.capacity() - answer.len());
        if stream.read_buf(&mut (&mut *answer).limit(room)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(first)
}

/// The length of an answer by its first four bytes.
pub(super) fn answer_length(length: [u8; 4], bytes_max: usize) -> Result<usize, String> {
    let length = i32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(length) if (4..=bytes_max).contains(&length) => Ok(length),
        _ => Err(format!("a length of {length}")),
    }
}

/// Correlation id and body of an answer without its length.
pub(super) fn decode<R: RequestResponsePair>(
    answer: Bytes,
    version: i16,
) -> Result<(i32, R::Response), String> {
    let version = ApiVersion::new(version);
    let limits = DecodeLimits::default();
    let said = |error: kafka_wire_core::DecodeError| error.to_string();
    let mut decoder = Decoder::new(answer, limits).map_err(said)?;
    let correlation = decoder.read_i32().map_err(said)?;
    let header = response_header_version_for::<R>(version).map_err(|error| error.to_string())?;
    if header > 0 {
        decoder.read_tagged_fields().map_err(said)?;
    }
    let response = R::Response::decode(&mut decoder, version).map_err(said)?;
    Ok((correlation, response))
}

/// An error code as an error.
pub(super) fn refused(what: &str, code: i16) -> Result<(), ClientError> {
    if code == ErrorCode::None.code() {
        return Ok(());
    }
    Err(ClientError::Refused {
        what: what.to_owned(),
        code,
    })
}

/// The brokers of a cluster, and who leads the partitions of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cluster {
    /// `host:port` by node id.
    pub(super) brokers: BTreeMap<i32, Arc<str>>,
    /// Node id of the leader by partition; `None` while there is none. Empty if the topic does not exist.
    pub(super) leaders: Vec<Option<i32>>,
    controller: i32,
}

impl Cluster {
    fn of(answer: &MetadataResponse, topic: &str) -> Result<Cluster, ClientError> {
        let mut cluster = Cluster {
            controller: answer.controller_id,
            ..Cluster::default()
        };
        for broker in &answer.brokers {
            let host = broker.host.as_str();
            let address = if host.contains(':') {
                format!("[{host}]:{}", broker.port)
            } else {
                format!("{host}:{}", broker.port)
            };
            cluster.brokers.insert(broker.node_id, address.into());
        }
        let Some(found) = answer.topics.first() else {
            return Ok(cluster);
        };
        if found.error_code == ErrorCode::UnknownTopicOrPartition.code() {
            return Ok(cluster);
        }
        refused(&format!("topic '{topic}'"), found.error_code)?;
        cluster.leaders = vec![None; found.partitions.len()];
        for partition in &found.partitions {
            let place = usize::try_from(partition.partition_index).ok();
            if let Some(leader) = place.and_then(|place| cluster.leaders.get_mut(place)) {
                *leader = (partition.leader_id >= 0).then_some(partition.leader_id);
            }
        }
        Ok(cluster)
    }

    /// Where the leader of a partition listens, if there is one.
    pub(super) fn leader(&self, partition: usize) -> Option<(i32, &Arc<str>)> {
        let node = (*self.leaders.get(partition)?)?;
        Some((node, self.brokers.get(&node)?))
    }
}

/// Asks any of these brokers for the cluster and the topic.
pub(super) async fn discover(addresses: &[Arc<str>], topic: &str) -> Result<Cluster, ClientError> {
    let mut client = Client::connect_any(addresses).await?;
    metadata(&mut client, topic).await
}

async fn metadata(client: &mut Client, topic: &str) -> Result<Cluster, ClientError> {
    let mut asked = MetadataRequestTopic::default();
    asked.name = Some(topic.into());
    let mut request = MetadataRequest::default();
    request.topics = Some(vec![asked]);
    // Before version 4 the broker decides by itself whether it creates the topic.
    request.allow_auto_topic_creation = client
        .versions
        .pick::<MetadataRequest>(&client.address, 4, METADATA_VERSION_MAX)
        .is_err();
    let answer = client.call(&request, METADATA_VERSION_MAX).await?;
    Cluster::of(&answer, topic)
}

/// A topic that a run needs.
#[derive(Clone, Debug)]
pub(super) struct TopicPlan {
    /// Its name.
    pub(super) name: String,
    /// How many partitions it must have; `None` takes what is there, or creates one.
    pub(super) partitions: Option<i32>,
    /// For its creation.
    pub(super) replication_factor: i16,
    /// Settings for its creation.
    pub(super) configs: Vec<(String, String)>,
    /// Whether it is created if it does not exist.
    pub(super) create: bool,
}

/// Finds the topic, creates it if that is wanted, and waits until every partition has a leader.
pub(super) async fn ensure_topic(
    bootstrap: &[Arc<str>],
    plan: &TopicPlan,
    patience: Duration,
) -> Result<Cluster, ClientError> {
    let mut client = Client::connect_any(bootstrap).await?;
    let deadline = Instant::now() + patience;
    let mut created = false;
    loop {
        let found = metadata(&mut client, &plan.name).await;
        let cluster = match found {
            Err(error) if error.is_retriable() && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            found => found?,
        };
        let led = (0..cluster.leaders.len()).all(|partition| cluster.leader(partition).is_some());
        if led && !cluster.leaders.is_empty() {
            check_partitions(plan, cluster.leaders.len())?;
            return Ok(cluster);
        }
        if cluster.leaders.is_empty() && !plan.create {
            return Err(ClientError::Other(format!(
                "topic '{}' does not exist; --topic must name one that holds records",
                plan.name
            )));
        }
        if cluster.leaders.is_empty() && !created {
            create_topic(&mut client, &cluster, plan).await?;
            created = true;
        } else if Instant::now() >= deadline {
            return Err(ClientError::Other(format!(
                "topic '{}' has a partition without a leader for {} s; are all brokers up?",
                plan.name,
                patience.as_secs()
            )));
        } else {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

fn check_partitions(plan: &TopicPlan, found: usize) -> Result<(), ClientError> {
    match plan.partitions {
        Some(wanted) if usize::try_from(wanted) != Ok(found) => Err(ClientError::Other(format!(
            "topic '{}' exists with {found} partitions, not {wanted}; leave --partitions out or name another --topic",
            plan.name
        ))),
        _ => Ok(()),
    }
}

async fn create_topic(client: &mut Client, cluster: &Cluster, plan: &TopicPlan) -> Result<(), ClientError> {
    let mut topic = CreatableTopic::default();
    topic.name = plan.name.as_str().into();
    topic.num_partitions = plan.partitions.unwrap_or(1);
    topic.replication_factor = plan.replication_factor;
    for (name, value) in &plan.configs {
        let mut config = CreatableTopicConfig::default();
        config.name = name.as_str().into();
        config.value = Some(value.as_str().into());
        topic.configs.push(config);
    }
    let mut request = CreateTopicsRequest::default();
    request.topics = vec![topic];
    request.timeout_ms = ANSWER_PATIENCE.as_millis() as i32;
    // Kafka 2 creates topics on its controller only.
    let controller = cluster.brokers.get(&cluster.controller);
    let answer = match controller {
        Some(address) if address != client.address() => {
            Client::connect(address).await?.call(&request, i16::MAX).await?
        }
        _ => client.call(&request, i16::MAX).await?,
    };
    let code = answer.topics.first().map_or(0, |topic| topic.error_code);
    if code == ErrorCode::TopicAlreadyExists.code() {
        return Ok(());
    }
    refused(&format!("cannot create topic '{}'", plan.name), code)
}

/// A fresh id and epoch for an idempotent producer.
pub(super) async fn init_producer_id(
    bootstrap: &[Arc<str>],
    patience: Duration,
) -> Result<(i64, i16), ClientError> {
    let mut request = InitProducerIdRequest::default();
    request.transactional_id = None;
    request.transaction_timeout_ms = 60_000;
    let deadline = Instant::now() + patience;
    let mut client = Client::connect_any(bootstrap).await?;
    loop {
        let answer = client.call(&request, 4).await?;
        match refused("cannot get a producer id", answer.error_code) {
            Ok(()) => return Ok((answer.producer_id, answer.producer_epoch)),
            Err(error) if error.is_retriable() && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OffsetOf {
    /// The first record.
    Start,
    /// Behind the last record.
    End,
}

/// Offsets of all partitions of a topic, asked from their leaders. A leader of a new topic may need a moment to know
/// that it is one.
pub(super) async fn list_offsets(
    cluster: &Cluster,
    topic: &str,
    which: OffsetOf,
) -> Result<Vec<i64>, ClientError> {
    let deadline = Instant::now() + LEADER_PATIENCE;
    loop {
        match try_list_offsets(cluster, topic, which).await {
            Err(error) if error.is_retriable() && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn try_list_offsets(cluster: &Cluster, topic: &str, which: OffsetOf) -> Result<Vec<i64>, ClientError> {
    let mut offsets = vec![0; cluster.leaders.len()];
    for (node, address) in &cluster.brokers {
        let led = (0..offsets.len()).filter(|partition| cluster.leaders[*partition] == Some(*node));
        let partitions: Vec<_> = led
            .map(|partition| {
                let mut asked = ListOffsetsPartition::default();
                asked.partition_index = partition as i32;
                asked.current_leader_epoch = -1;
                asked.timestamp = match which {
                    OffsetOf::Start => -2,
                    OffsetOf::End => -1,
                };
                asked
            })
            .collect();
        if partitions.is_empty() {
            continue;
        }
        let mut of_topic = ListOffsetsTopic::default();
        of_topic.name = topic.into();
        of_topic.partitions = partitions;
        let mut request = ListOffsetsRequest::default();
        request.replica_id = -1;
        request.topics = vec![of_topic];
        // Version 0 answers with a list of offsets.
        let mut client = Client::connect(address).await?;
        let version = client.versions.pick::<ListOffsetsRequest>(address, 1, 6)?;
        let answer = client.call_version(&request, version).await?;
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            let name = format!("cannot list offsets of {topic}-{}", partition.partition_index);
            refused(&name, partition.error_code)?;
            let place = usize::try_from(partition.partition_index).ok();
            if let Some(offset) = place.and_then(|place| offsets.get_mut(place)) {
                *offset = partition.offset.max(0);
            }
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use kafka_wire::{FetchRequest, ProduceRequest};

    #[test]
    fn reads_addresses() {
        assert_eq!(address("b.example:9092"), Ok("b.example:9092".to_owned()));
        assert_eq!(address("[::1]:9092"), Ok("[::1]:9092".to_owned()));
        for wrong in ["b.example", ":9092", "b:0", "b:99999", "b:"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn picks_the_newest_common_version() {
        let address: Arc<str> = "b:1".into();
        let versions = Versions(BTreeMap::from([(0, (3, 9)), (1, (0, 3))]));
        assert_eq!(versions.pick::<ProduceRequest>(&address, 3, 12).unwrap(), 9);
        assert_eq!(versions.pick::<ProduceRequest>(&address, 3, 7).unwrap(), 7);
        let error = versions.pick::<FetchRequest>(&address, 4, 12).unwrap_err();
        assert_eq!(
            error.to_string(),
            "b:1 does not serve a version of Fetch that this program speaks (4 to 12)"
        );
        assert!(!error.is_retriable());
        assert!(versions.pick::<MetadataRequest>(&address, 0, 9).is_err());
    }

    #[test]
    fn reads_leaders_and_addresses() {
        let mut answer = MetadataResponse::default();
        for (id, host) in [(1, "a.example"), (2, "::1")] {
            let mut broker = MetadataResponseBroker::default();
            broker.node_id = id;
            broker.host = host.into();
            broker.port = 9092;
            answer.brokers.push(broker);
        }
        let mut topic = MetadataResponseTopic::default();
        // Out of order, one without a leader, one beyond the count.
        for (index, leader) in [(1, 2), (0, 1), (2, -1), (77, 1)] {
            let mut partition = MetadataResponsePartition::default();
            partition.partition_index = index;
            partition.leader_id = leader;
            topic.partitions.push(partition);
        }
        answer.topics.push(topic);
        let cluster = Cluster::of(&answer, "t").unwrap();
        assert_eq!(cluster.leaders, vec![Some(1), Some(2), None, None]);
        assert_eq!(cluster.leader(0), Some((1, &Arc::from("a.example:9092"))));
        assert_eq!(cluster.leader(1), Some((2, &Arc::from("[::1]:9092"))));
        assert_eq!((cluster.leader(2), cluster.leader(9)), (None, None));

        answer.topics[0].error_code = 3;
        assert!(Cluster::of(&answer, "t").unwrap().leaders.is_empty());
        answer.topics[0].error_code = 17;
        let error = Cluster::of(&answer, "t").unwrap_err().to_string();
        assert!(
            error.starts_with("topic 't': InvalidTopicException (17); --topic takes"),
            "{error}"
        );
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(answer_length([0, 0, 0, 4], 10), Ok(4));
        for length in [-1, 0, 3, 11, i32::MAX, i32::MIN] {
            assert!(answer_length(length.to_be_bytes(), 10).is_err(), "{length}");
        }
    }
}
