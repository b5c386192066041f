//! Produce 3-13 (0-2 are refused before they get here): checks each batch, appends all of them in the order
//! of the request, and answers when the last is published.
//!
//! * acks 1 and -1 are the same: durable before the answer. acks 0 gets none; an error closes the connection.
//! * `timeout.ms` passed means REQUEST_TIMED_OUT, which is "unknown": the write goes on. Zero or less, which
//!   some clients send because Kafka ignores it for acks=1, counts as 30 s.
//! * Compressed batches are opened only for compacted topics, which need keys; their timestamps are checked by
//!   the batch header (first and largest).
//! * What follows a batch that an idempotent producer has to send again waits for it: see [`Torn`].
//! * Left out: transactions. They get TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which is fatal to every client.

use std::sync::Arc;
use std::time::Duration;

use alluvium_log::batch::RecordRef;
use alluvium_log::codec::Codec;
use alluvium_log::manifest::{Manifest, Topic};
use alluvium_log::{AppendError, Appended, BatchError, BatchHeader, RecordBatch};
use kafka_wire::produce_response::{
    BatchIndexAndErrorMessage, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_wire::{ProduceRequest, ProduceResponse};
use kafka_wire_core::{Bytes, StrBytes};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, Misplaced, RequestContext, find_topic, leader_elsewhere, leader_endpoint};
use crate::budget::BudgetPermit;
use crate::config::TopicSettings;
use crate::errors::ErrorCode;
use crate::protocol::topic_id;
use crate::topics::is_internal;

mod publication;
mod torn;
use publication::Publication;
use torn::Sequenced;
pub(crate) use torn::Torn;

/// First version that names topics by id.
const TOPIC_IDS: i16 = 13;
/// First version that may carry zstd.
const ZSTD: i16 = 7;
/// First version with the current leader in the answer (KIP-951).
const CURRENT_LEADER: i16 = 10;
/// Largest decompressed size at which the records of a batch are looked at.
const OPENED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Batches are opened one at a time, so that this much memory is all it takes, however many are sent at once.
static OPENING: Mutex<()> = Mutex::new(());
/// Records that a refusal names.
const RECORD_ERRORS_MAX: usize = 100;
/// What a timeout of zero or less counts as.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What becomes of a Produce request.
#[derive(Debug)]
pub(crate) enum Answer {
    Response(ProduceResponse),
    /// acks = 0.
    Silent,
    /// acks = 0, and something went wrong.
    SilentFailed(String),
}

impl Answer {
    /// What it says of the request's partitions, for the log.
    pub(crate) fn word(&self) -> &'static str {
        let is_fine = |topic: &TopicProduceResponse| {
            let mut partitions = topic.partition_responses.iter();
            partitions.all(|partition| partition.error_code == 0)
        };
        match self {
            Answer::Response(response) if response.responses.iter().all(is_fine) => "published",
            Answer::Response(_) => "error",
            Answer::Silent => "silent",
            Answer::SilentFailed(_) => "closed",
        }
    }
}

/// Why a batch is not appended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    error: ErrorCode,
    message: String,
    /// Indexes of the records at fault, with what is wrong with each.
    records: Vec<(i32, String)>,
}

impl Refusal {
    fn new(error: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal {
            error,
            message: message.into(),
            records: Vec::new(),
        }
    }
}

/// State of one partition of the request.
enum Part {
    Refused {
        index: i32,
        refusal: Refusal,
    },
    Misplaced {
        index: i32,
        misplaced: Misplaced,
    },
    /// Position among the request's appends.
    Appended {
        index: i32,
        append: usize,
    },
}

impl Part {
    /// The error that is certain already.
    fn refused_with(&self) -> Option<ErrorCode> {
        match self {
            Part::Refused { refusal, .. } => Some(refusal.error),
            Part::Misplaced { misplaced, .. } => Some(misplaced.error),
            Part::Appended { .. } => None,
        }
    }
}

struct TopicParts {
    name: StrBytes,
    id: kafka_wire_core::Uuid,
    parts: Vec<Part>,
}

/// Appends what can be appended, now; the future answers.
pub(crate) fn start(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    torn: &mut Torn,
    request: ProduceRequest,
    permit: Option<BudgetPermit>,
) -> impl Future<Output = Answer> + Send + use<> {
    let deadline = Instant::now() + patience(request.timeout_ms);
    let acks = request.acks;
    let mut publication = Publication::new(permit);
    let topics = append_all(broker, ctx, torn, request, &mut publication);
    let broker = Arc::clone(broker);
    let ctx = ctx.clone();
    async move {
        if acks == 0 {
            // The appends go on, and hold their memory until they are published.
            return match first_failure(&topics) {
                Some(why) => Answer::SilentFailed(why),
                None => Answer::Silent,
            };
        }
        let timed_out = timeout_at(deadline, publication.published()).await.is_err();
        if timed_out {
            broker
                .readiness
                .store_failed("a write was not acknowledged in time", Instant::now());
        } else if publication.any_published() {
            broker.readiness.store_answered();
        }
        Answer::Response(respond(&broker, &ctx, topics, &mut publication))
    }
}

fn patience(timeout_ms: i32) -> Duration {
    match u64::try_from(timeout_ms) {
        Ok(0) | Err(_) => DEFAULT_TIMEOUT,
        Ok(ms) => Duration::from_millis(ms),
    }
}

fn append_all(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    torn: &mut Torn,
    request: ProduceRequest,
    publication: &mut Publication,
) -> Vec<TopicParts> {
    torn.next_request();
    let manifest = broker.log.manifest();
    let refused = check_request(&request);
    let by_id = ctx.api_version >= TOPIC_IDS;
    let now_ms = broker.now_ms();
    request
        .topic_data
        .into_iter()
        .map(|topic| {
            let found = match &refused {
                Some(refusal) => Err(refusal.clone()),
                None => writable_topic(&manifest, by_id, &topic.name, topic_id(topic.topic_id)),
            };
            let settings = found
                .as_ref()
                .ok()
                .map(|(name, _)| broker.config.topic(&manifest, name));
            let parts = topic
                .partition_data
                .into_iter()
                .map(|data| {
                    let (index, records) = (data.index, data.records);
                    let sequenced = Sequenced::of(&topic.name, topic.topic_id, index, records.as_deref());
                    if let Some(error) = sequenced.as_ref().and_then(|batch| torn.refusal(batch)) {
                        let refusal =
                            Refusal::new(error, "a batch before it was refused and has to come first");
                        return Part::Refused { index, refusal };
                    }
                    let part = match (&found, &settings) {
                        (Ok(topic), Some(settings)) => {
                            let check = Check {
                                settings,
                                version: ctx.api_version,
                                now_ms,
                            };
                            append_one(broker, &manifest, *topic, check, index, records, publication)
                        }
                        (Err(refusal), _) => Part::Refused {
                            index,
                            refusal: refusal.clone(),
                        },
                        (Ok(_), None) => Part::Refused {
                            index,
                            refusal: Refusal::new(ErrorCode::UnknownServerError, "the topic has no settings"),
                        },
                    };
                    if let Some(error) = part.refused_with() {
                        tracing::debug!(topic = %topic.name, partition = index, ?error, "refused");
                        if let Some(batch) = &sequenced {
                            torn.note(batch, error);
                        }
                    }
                    part
                })
                .collect();
            TopicParts {
                name: topic.name,
                id: topic.topic_id,
                parts,
            }
        })
        .collect()
}

fn append_one(
    broker: &Arc<Broker>,
    manifest: &Manifest,
    (name, topic): (&str, &Topic),
    check: Check<'_>,
    index: i32,
    records: Option<Bytes>,
    publication: &mut Publication,
) -> Part {
    let partition = match broker.led_partition(manifest, topic, index) {
        Ok(partition) => partition,
        Err(misplaced) => return Part::Misplaced { index, misplaced },
    };
    let batch = match check.parse(records) {
        Ok(batch) => batch,
        Err(refusal) => return Part::Refused { index, refusal },
    };
    let (bytes, count) = (batch.len(), batch.header().record_count);
    match broker
        .log
        .append(&partition, batch, check.settings.log_append_time)
    {
        Ok(append) => {
            let base_offset = append.base_offset();
            tracing::debug!(
                topic = name,
                partition = index,
                base_offset,
                records = count,
                bytes,
                "appended"
            );
            broker.metrics.produce_bytes.inc_by(bytes as u64);
            broker
                .metrics
                .produce_records
                .inc_by(u64::try_from(count).unwrap_or(0));
            Part::Appended {
                index,
                append: publication.push(append.published()),
            }
        }
        Err(error) if error.is_for_good() => {
            let log = broker.log.clone();
            let confirmed = async move { Err(log.confirm_rejection(&partition, error).await) };
            Part::Appended {
                index,
                append: publication.push(confirmed),
            }
        }
        Err(error) => not_appended(broker, manifest, topic, index, &error),
    }
}

fn not_appended(
    broker: &Broker,
    manifest: &Manifest,
    topic: &Topic,
    index: i32,
    error: &AppendError,
) -> Part {
    let code = ErrorCode::from(error);
    match code {
        ErrorCode::NotLeaderOrFollower => {
            let leader = leader_elsewhere(manifest, topic, index, broker.log.incarnation());
            Part::Misplaced {
                index,
                misplaced: Misplaced { error: code, leader },
            }
        }
        _ => Part::Refused {
            index,
            refusal: Refusal::new(code, error.to_string()),
        },
    }
}

/// What is wrong with the request as a whole.
fn check_request(request: &ProduceRequest) -> Option<Refusal> {
    if !matches!(request.acks, -1..=1) {
        return Some(Refusal::new(
            ErrorCode::InvalidRequiredAcks,
            "acks must be 0, 1 or all",
        ));
    }
    request.transactional_id.is_some().then(transactions_unsupported)
}

fn transactions_unsupported() -> Refusal {
    Refusal::new(
        ErrorCode::TransactionalIdAuthorizationFailed,
        "transactions are not supported",
    )
}

fn writable_topic<'m>(
    manifest: &'m Manifest,
    by_id: bool,
    name: &StrBytes,
    id: alluvium_log::TopicId,
) -> Result<(&'m str, &'m Topic), Refusal> {
    let (name, topic) =
        find_topic(manifest, by_id, name, id).map_err(|error| Refusal::new(error, "no such topic"))?;
    if is_internal(name) {
        let message = format!("{name} is written by the broker alone");
        return Err(Refusal::new(ErrorCode::InvalidTopicException, message));
    }
    Ok((name, topic))
}

/// What a batch is checked against.
#[derive(Clone, Copy)]
struct Check<'a> {
    settings: &'a TopicSettings,
    version: i16,
    now_ms: i64,
}

impl Check<'_> {
    /// The one batch that a partition of a request must hold.
    fn parse(&self, records: Option<Bytes>) -> Result<RecordBatch, Refusal> {
        let records = records.filter(|records| !records.is_empty()).ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidRecord,
                "a Produce request must hold one record batch per partition",
            )
        })?;
        let limit = self.settings.max_message_bytes;
        if records.len() > limit {
            let message = format!(
                "a batch of {} bytes, more than the {limit} of max.message.bytes",
                records.len()
            );
            return Err(Refusal::new(ErrorCode::MessageTooLarge, message));
        }
        let batch = RecordBatch::parse_produced(records).map_err(|error| unfit(&error))?;
        self.header(batch.header())?;
        self.timestamps(&batch)?;
        if self.settings.cleanup_compact {
            has_keys(&batch)?;
        }
        Ok(batch)
    }

    fn header(&self, header: &BatchHeader) -> Result<(), Refusal> {
        if self.version < ZSTD && header.codec() == Ok(Codec::Zstd) {
            let message = "zstd needs Produce version 7 or newer";
            return Err(Refusal::new(ErrorCode::UnsupportedCompressionType, message));
        }
        if header.is_control() {
            return Err(Refusal::new(
                ErrorCode::InvalidRecord,
                "clients may not write control records",
            ));
        }
        if header.is_transactional() {
            return Err(transactions_unsupported());
        }
        Ok(())
    }

    /// `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms`, for topics whose records keep
    /// the time that the producer gave them.
    fn timestamps(&self, batch: &RecordBatch) -> Result<(), Refusal> {
        if self.settings.log_append_time {
            return Ok(());
        }
        let earliest = self.now_ms.saturating_sub(self.settings.timestamp_before_max_ms);
        let latest = self.now_ms.saturating_add(self.settings.timestamp_after_max_ms);
        match batch.check_timestamps(earliest, latest) {
            Ok(()) => Ok(()),
            Err(error @ BatchError::Timestamp(_)) => Err(at_fault(batch, &error, |record| {
                let timestamp = record.timestamp;
                let allowed = timestamp == -1 || (earliest..=latest).contains(&timestamp);
                (!allowed).then(|| format!("timestamp {timestamp} is not within {earliest}..={latest}"))
            })),
            Err(error) => Err(unfit(&error)),
        }
    }
}

/// A compacted topic keeps the last record of each key, so every record needs one.
fn has_keys(batch: &RecordBatch) -> Result<(), Refusal> {
    let checked = {
        let _one = OPENING.lock();
        batch.check_keys(OPENED_BYTES_MAX)
    };
    match checked {
        Ok(()) => Ok(()),
        Err(error @ BatchError::Invalid(_)) => Err(at_fault(batch, &error, |record| {
            record.key.is_none().then(|| "no key".to_owned())
        })),
        Err(error) => Err(unfit(&error)),
    }
}

fn unfit(error: &BatchError) -> Refusal {
    Refusal::new(ErrorCode::from(error), error.to_string())
}

/// The refusal of a batch, with the records that `fault` finds something wrong with. Only a batch that is
/// refused anyway is opened for that.
fn at_fault(
    batch: &RecordBatch,
    error: &BatchError,
    fault: impl Fn(&RecordRef<'_>) -> Option<String>,
) -> Refusal {
    let mut refusal = unfit(error);
    let _one = OPENING.lock();
    if let Ok(records) = batch.records(OPENED_BYTES_MAX) {
        let indexed = (0_i32..).zip(&records);
        let faults = indexed.filter_map(|(index, record)| Some((index, fault(&record.ok()?)?)));
        refusal.records = faults.take(RECORD_ERRORS_MAX).collect();
    }
    refusal
}

fn first_failure(topics: &[TopicParts]) -> Option<String> {
    topics
        .iter()
        .flat_map(|topic| &topic.parts)
        .find_map(|part| match part {
            Part::Refused { refusal, .. } => Some(refusal.message.clone()),
            Part::Misplaced { misplaced, .. } => Some(format!("{:?}", misplaced.error)),
            Part::Appended { .. } => None,
        })
}

fn respond(
    broker: &Broker,
    ctx: &RequestContext,
    topics: Vec<TopicParts>,
    publication: &mut Publication,
) -> ProduceResponse {
    let manifest = broker.log.manifest();
    let by_id = ctx.api_version >= TOPIC_IDS;
    let mut response = ProduceResponse::default();
    for topic in topics {
        let mut answered = TopicProduceResponse::default();
        for part in topic.parts {
            let answer = match part {
                Part::Appended { index, append } => match publication.take(append) {
                    None => failed(index, &Refusal::new(ErrorCode::RequestTimedOut, TIMED_OUT)),
                    Some(Ok(appended)) => succeeded(index, &appended),
                    Some(Err(error)) => {
                        let code = ErrorCode::from(&error);
                        let leader = find_topic(&manifest, by_id, &topic.name, topic_id(topic.id))
                            .ok()
                            .and_then(|(_, topic)| {
                                leader_elsewhere(&manifest, topic, index, broker.log.incarnation())
                            })
                            .filter(|_| code == ErrorCode::NotLeaderOrFollower);
                        let misplaced = Misplaced { error: code, leader };
                        let message = error.to_string();
                        elsewhere(
                            &manifest,
                            ctx,
                            index,
                            misplaced,
                            message,
                            &mut response.node_endpoints,
                        )
                    }
                },
                Part::Refused { index, refusal } => failed(index, &refusal),
                Part::Misplaced { index, misplaced } => {
                    let message = "this broker does not lead the partition".to_owned();
                    elsewhere(
                        &manifest,
                        ctx,
                        index,
                        misplaced,
                        message,
                        &mut response.node_endpoints,
                    )
                }
            };
            broker.metrics.request_error("Produce", answer.error_code);
            answered.partition_responses.push(answer);
        }
        answered.name = topic.name;
        answered.topic_id = topic.id;
        response.responses.push(answered);
    }
    response
}

const TIMED_OUT: &str = "not known to be durable within the timeout; the write goes on";

fn succeeded(index: i32, appended: &Appended) -> PartitionProduceResponse {
    let mut answer = PartitionProduceResponse::default();
    answer.index = index;
    answer.base_offset = appended.base_offset;
    answer.log_append_time_ms = appended.append_time_ms;
    answer.log_start_offset = appended.log_start_offset;
    answer
}

fn failed(index: i32, refusal: &Refusal) -> PartitionProduceResponse {
    let mut answer = PartitionProduceResponse::default();
    answer.index = index;
    answer.error_code = refusal.error.code();
    answer.base_offset = -1;
    answer.log_append_time_ms = -1;
    answer.log_start_offset = -1;
    answer.error_message = Some(StrBytes::from(refusal.message.as_str()));
    answer.record_errors = refusal
        .records
        .iter()
        .map(|(index, message)| {
            let mut record = BatchIndexAndErrorMessage::default();
            record.batch_index = *index;
            record.batch_index_error_message = Some(StrBytes::from(message.as_str()));
            record
        })
        .collect();
    answer
}

/// A failure that names the leader, as far as it is known and the version can say it.
fn elsewhere(
    manifest: &Manifest,
    ctx: &RequestContext,
    index: i32,
    misplaced: Misplaced,
    message: String,
    endpoints: &mut Vec<NodeEndpoint>,
) -> PartitionProduceResponse {
    let mut answer = failed(index, &Refusal::new(misplaced.error, message));
    let Some(leader) = misplaced.leader.filter(|_| ctx.api_version >= CURRENT_LEADER) else {
        return answer;
    };
    let Some((stream, endpoint)) = leader_endpoint(manifest, &leader, &ctx.listener) else {
        return answer;
    };
    answer.current_leader.leader_id = leader.node_id;
    answer.current_leader.leader_epoch = leader.leader_epoch;
    if endpoints.iter().all(|known| known.node_id != leader.node_id) {
        let mut node = NodeEndpoint::default();
        node.node_id = leader.node_id;
        node.host = StrBytes::from(endpoint.host.as_str());
        node.port = i32::from(endpoint.port);
        node.rack = stream.rack.as_deref().map(StrBytes::from);
        endpoints.push(node);
    }
    answer
}

#[cfg(test)]
mod tests;
