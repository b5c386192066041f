//! Metadata 0-13: brokers, topics, leaders; topics that do not exist are created where client and settings
//! allow it.
//!
//! A created topic is answered at once, for its creation is durable by then; where its leader is not known
//! yet, the answer is LEADER_NOT_AVAILABLE and the client asks again. Replicas and in-sync replicas are the
//! leader alone: the store replicates. Who asks for authorized operations is told that all are allowed, as by
//! Kafka without ACLs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::manifest::{Change, Manifest, Rejection, Topic};
use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_wire::{MetadataRequest, MetadataResponse};
use kafka_wire_core::StrBytes;
use tokio::time::timeout;

use crate::broker::{Broker, RequestContext, endpoint_for};
use crate::errors::ErrorCode;
use crate::handlers::describe_cluster::CLUSTER_OPERATIONS;
use crate::protocol::topic_id;
use crate::topics::{TOPIC_OPERATIONS, TakenNames, check_name, is_internal, wire_id};

/// Topics that one request may create.
const CREATED_MAX: usize = 1000;
/// How long the name of a deleted topic is waited for: clients ask for metadata again and again.
const DELETION_PATIENCE: Duration = Duration::from_secs(2);
/// First version that may ask by id.
const BY_ID: i16 = 12;
/// "Not asked for or not known", as clients understand it.
const NO_OPERATIONS: i32 = i32::MIN;

/// Bit fields of what the client may do.
#[derive(Clone, Copy, Debug)]
struct Operations {
    topics: i32,
    cluster: i32,
}

/// A topic as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Name(StrBytes),
    Id(kafka_wire_core::Uuid),
}

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: MetadataRequest,
) -> MetadataResponse {
    let operations = Operations {
        topics: if request.include_topic_authorized_operations {
            TOPIC_OPERATIONS
        } else {
            NO_OPERATIONS
        },
        cluster: if request.include_cluster_authorized_operations {
            CLUSTER_OPERATIONS
        } else {
            NO_OPERATIONS
        },
    };
    let asked = asked(ctx.api_version, request.topics);
    let mut refused = BTreeMap::new();
    let may_create = broker.config.settings.auto_create_topics
        && (ctx.api_version < 4 || request.allow_auto_topic_creation);
    if let (true, Some(asked)) = (may_create, &asked) {
        refused = create_missing(broker, asked).await;
    }
    let response = respond(&broker.log.manifest(), ctx, asked, &refused, operations);
    for topic in &response.topics {
        broker.metrics.request_error("Metadata", topic.error_code);
    }
    response
}

/// The topics that the request wants; `None` is all of them.
fn asked(version: i16, topics: Option<Vec<MetadataRequestTopic>>) -> Option<Vec<Asked>> {
    let topics = topics?;
    if version == 0 && topics.is_empty() {
        return None;
    }
    // An id counts if there is one, as in Kafka: the Java client leaves the name empty, others leave it null.
    let asked = topics.into_iter().map(|topic| match topic.name {
        Some(name) if topic.topic_id.is_zero() => Asked::Name(name),
        _ => Asked::Id(topic.topic_id),
    });
    Some(asked.collect())
}

/// Creates what is asked for by name and does not exist. Returns why some could not be.
async fn create_missing(broker: &Broker, asked: &[Asked]) -> BTreeMap<String, ErrorCode> {
    let (missing, mut refused) = missing(&broker.log.manifest(), asked);
    if missing.is_empty() {
        return refused;
    }
    let settings = &broker.config.settings;
    let mut configs = BTreeMap::new();
    broker
        .config
        .fix_at_creation(&broker.log.manifest(), &mut configs);
    let create = |name: &String| Change::CreateTopic {
        name: name.clone(),
        partitions: settings.num_partitions,
        replication_factor: settings.default_replication_factor,
        configs: configs.clone(),
    };
    let changes = missing.iter().map(create).collect();
    let deleted = &broker.log.manifest().deleted_names;
    let results = if missing.iter().any(|name| deleted.contains_key(name)) {
        let log = broker.log.clone();
        let created = tokio::spawn(async move { log.change(changes).await });
        match timeout(DELETION_PATIENCE, created).await {
            Ok(Ok(results)) => results,
            // They will be there later, most likely.
            Ok(Err(_)) | Err(_) => {
                let later = missing
                    .iter()
                    .map(|name| (name.clone(), ErrorCode::LeaderNotAvailable));
                refused.extend(later);
                return refused;
            }
        }
    } else {
        broker.log.change(changes).await
    };
    for (name, result) in missing.into_iter().zip(results) {
        match result {
            Ok(_) => {
                tracing::info!(topic = %name, partitions = settings.num_partitions, "topic created on demand")
            }
            // Somebody else was faster, which is as good.
            Err(Rejection::TopicExists(_)) => {}
            Err(rejection) => {
                tracing::warn!(topic = %name, %rejection, "cannot create a topic on demand");
                let error = match ErrorCode::from(&rejection) {
                    ErrorCode::InvalidPartitions => ErrorCode::InvalidPartitions,
                    _ => ErrorCode::LeaderNotAvailable,
                };
                refused.insert(name, error);
            }
        }
    }
    refused
}

/// The topics to create, and those that may not be because of their neighbours' names. Names that are not
/// proper at all are left to the answer.
fn missing(manifest: &Manifest, asked: &[Asked]) -> (Vec<String>, BTreeMap<String, ErrorCode>) {
    let names: BTreeSet<&str> = asked
        .iter()
        .filter_map(|asked| match asked {
            Asked::Name(name) => Some(name.as_str()),
            Asked::Id(_) => None,
        })
        .filter(|name| !manifest.topics.contains_key(*name) && check_name(name).is_ok() && !is_internal(name))
        .take(CREATED_MAX)
        .collect();
    if names.is_empty() {
        return Default::default();
    }
    let mut taken = TakenNames::of(&manifest.topics);
    let mut create = Vec::new();
    let mut refused = BTreeMap::new();
    for name in names {
        match taken.check(name) {
            Ok(()) => {
                taken.take(name);
                create.push(name.to_owned());
            }
            Err(refusal) => {
                refused.insert(name.to_owned(), refusal.code);
            }
        }
    }
    (create, refused)
}

fn respond(
    manifest: &Manifest,
    ctx: &RequestContext,
    asked: Option<Vec<Asked>>,
    refused: &BTreeMap<String, ErrorCode>,
    operations: Operations,
) -> MetadataResponse {
    let mut response = MetadataResponse::default();
    response.brokers = brokers(manifest, &ctx.listener);
    response.controller_id = controller(manifest, &response.brokers);
    response.cluster_id = Some(StrBytes::from(manifest.cluster_id.to_string()));
    response.cluster_authorized_operations = operations.cluster;
    response.topics = match asked {
        None => manifest
            .topics
            .iter()
            .map(|(name, topic)| describe(manifest, name, topic))
            .collect(),
        Some(asked) => asked
            .into_iter()
            .map(|asked| one(manifest, ctx, asked, refused))
            .collect(),
    };
    for topic in response
        .topics
        .iter_mut()
        .filter(|topic| topic.error_code == ErrorCode::None.code())
    {
        topic.topic_authorized_operations = operations.topics;
    }
    response
}

/// The broker that is shown as controller, as in DescribeCluster. Any broker can do what Kafka's controller does;
/// clients want one that is listed.
fn controller(manifest: &Manifest, listed: &[MetadataResponseBroker]) -> i32 {
    let id = manifest.controller().map(|(_, stream)| stream.node_id);
    id.filter(|id| listed.iter().any(|broker| broker.node_id == *id))
        .unwrap_or(-1)
}

/// Live brokers by node id. Of two starts of one broker, the newer counts.
fn brokers(manifest: &Manifest, listener: &str) -> Vec<MetadataResponseBroker> {
    let mut brokers = BTreeMap::new();
    for stream in manifest.streams.values().filter(|stream| stream.is_live()) {
        let Some(endpoint) = endpoint_for(stream, listener) else {
            continue;
        };
        let mut broker = MetadataResponseBroker::default();
        broker.node_id = stream.node_id;
        broker.host = StrBytes::from(endpoint.host.as_str());
        broker.port = i32::from(endpoint.port);
        broker.rack = stream.rack.as_deref().map(StrBytes::from);
        brokers.insert(stream.node_id, broker);
    }
    brokers.into_values().collect()
}

fn one(
    manifest: &Manifest,
    ctx: &RequestContext,
    asked: Asked,
    refused: &BTreeMap<String, ErrorCode>,
) -> MetadataResponseTopic {
    let found = match &asked {
        Asked::Name(name) => manifest
            .topics
            .get_key_value(name.as_str())
            .map(|(name, topic)| (name.as_str(), topic)),
        Asked::Id(id) if ctx.api_version >= BY_ID => manifest.topic_by_id(&topic_id(*id)),
        Asked::Id(_) => None,
    };
    if let Some((name, topic)) = found {
        return describe(manifest, name, topic);
    }
    let mut answer = MetadataResponseTopic::default();
    answer.topic_authorized_operations = NO_OPERATIONS;
    let error = match asked {
        Asked::Name(name) => {
            let error = match check_name(&name) {
                Ok(()) => refused
                    .get(name.as_str())
                    .copied()
                    .unwrap_or(ErrorCode::UnknownTopicOrPartition),
                Err(refusal) => refusal.code,
            };
            answer.is_internal = is_internal(&name);
            answer.name = Some(name);
            error
        }
        Asked::Id(id) if ctx.api_version >= BY_ID => {
            answer.topic_id = id;
            answer.name = None;
            ErrorCode::UnknownTopicId
        }
        Asked::Id(_) => {
            answer.name = Some(StrBytes::default());
            ErrorCode::InvalidRequest
        }
    };
    answer.error_code = error.code();
    answer
}

fn describe(manifest: &Manifest, name: &str, topic: &Topic) -> MetadataResponseTopic {
    let mut answer = MetadataResponseTopic::default();
    answer.name = Some(StrBytes::from(name));
    answer.topic_id = wire_id(&topic.id);
    answer.is_internal = is_internal(name);
    answer.topic_authorized_operations = NO_OPERATIONS;
    let indexes = 0..i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    answer.partitions = indexes
        .map(|index| describe_partition(manifest, topic, index))
        .collect();
    answer
}

fn describe_partition(manifest: &Manifest, topic: &Topic, index: i32) -> MetadataResponsePartition {
    let mut answer = MetadataResponsePartition::default();
    answer.partition_index = index;
    let leader = manifest.leader(&topic.id, index);
    match leader {
        Some(leader) if manifest.is_live(leader.incarnation) => {
            answer.leader_id = leader.node_id;
            answer.leader_epoch = leader.leader_epoch;
            answer.replica_nodes = vec![leader.node_id];
            answer.isr_nodes = vec![leader.node_id];
        }
        _ => {
            answer.error_code = ErrorCode::LeaderNotAvailable.code();
            answer.leader_id = -1;
            answer.leader_epoch = leader.map_or(-1, |leader| leader.leader_epoch);
            answer.replica_nodes = leader.iter().map(|leader| leader.node_id).collect();
            answer.offline_replicas = answer.replica_nodes.clone();
        }
    }
    answer
}

#[cfg(test)]
mod tests;
