//! The table of APIs: what is served, in which versions, by which handler.
//!
//! The same rows answer ApiVersions and dispatch requests, so nothing is advertised that does not work and
//! nothing works that is not advertised. A row is one line:
//! `Name: first version served..=last, RequestType => handler module`. The exceptions are no APIs of Kafka's: what
//! brokers ask each other, [`handlers::peer_ping`], and what our own command asks, [`handlers::archive_flush`].

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kafka_wire::*;
use kafka_wire_core::{ApiVersion, Decoder};
use tokio::time::Instant;

use crate::broker::{Broker, RequestContext};
use crate::connection::{Outcome, Refusal, Requests, Started};
use crate::frame::{Frame, PRODUCE};
use crate::handlers;
use crate::history::message::ARCHIVE_FLUSH;
use crate::peers::message::PEER_PING;
use crate::protocol::{self, API_VERSIONS, HeldBytes, old_produce};

/// One row of the table.
pub(crate) struct Api {
    pub(crate) key: i16,
    pub(crate) name: &'static str,
    /// Versions that are served.
    pub(crate) first: i16,
    pub(crate) last: i16,
    /// Whether a header of this version has tagged fields.
    is_flexible: fn(ApiVersion) -> bool,
    /// Only waits and reads: may be dropped when the client has gone.
    abandonable: bool,
    run: Run,
}

/// How a request is run.
enum Run {
    /// Decodes, handles, encodes.
    Handler(fn(Arc<Broker>, Request) -> BoxFuture<'static, Outcome>),
    /// Ordered at once, answered at publication.
    Produce,
    /// Answered with chunks of the log.
    Fetch,
}

/// A request whose header is read.
struct Request {
    api: &'static Api,
    ctx: RequestContext,
    correlation_id: i32,
    body: Decoder,
}

macro_rules! row {
    ($name:ident, $first:literal, $last:literal, $request:ty, $abandonable:expr, $run:expr) => {
        Api {
            key: <$request as KafkaRequest>::API_KEY.value(),
            name: stringify!($name),
            first: $first,
            last: $last,
            is_flexible: <$request as KafkaMessage>::is_flexible,
            abandonable: $abandonable,
            run: $run,
        }
    };
}

macro_rules! apis {
    ($($name:ident: $first:literal..=$last:literal, $request:ty => $handler:ident $(, $long:ident)?;)*) => {
        &[$(
            row!($name, $first, $last, $request, apis!(@long $($long)?), Run::Handler(|broker, request| {
                Box::pin(async move {
                    let Request { api, ctx, correlation_id, body } = request;
                    let version = ctx.api_version;
                    let request = match protocol::decode_body::<$request>(body, version) {
                        Ok(request) => request,
                        Err(error) => return api.malformed(version, &error),
                    };
                    let response = handlers::$handler::handle(&broker, &ctx, request).await;
                    match protocol::encode_reply(api.key, version, correlation_id, &response) {
                        Ok(reply) => Outcome::Reply(reply),
                        Err(error) => api.unencodable(version, &error),
                    }
                })
            }))
        ),*]
    };
    (@long) => { false };
    (@long waits) => { true };
}

const DATA: &[Api] = apis! {
    ListOffsets: 1..=11, ListOffsetsRequest => list_offsets;
    Metadata: 0..=13, MetadataRequest => metadata;
    ApiVersions: 0..=4, ApiVersionsRequest => api_versions;
    InitProducerId: 0..=5, InitProducerIdRequest => init_producer_id;
    OffsetForLeaderEpoch: 2..=4, OffsetForLeaderEpochRequest => offset_for_leader_epoch;
};

const STREAMING: &[Api] = &[
    row!(Produce, 3, 13, ProduceRequest, false, Run::Produce),
    row!(Fetch, 4, 18, FetchRequest, true, Run::Fetch),
];

const GROUPS: &[Api] = apis! {
        OffsetCommit: 2..=10, OffsetCommitRequest => offset_commit;
        OffsetFetch: 1..=10, OffsetFetchRequest => offset_fetch;
        FindCoordinator: 0..=6, FindCoordinatorRequest => find_coordinator;
        JoinGroup: 0..=9, JoinGroupRequest => join_group, waits;
        Heartbeat: 0..=4, HeartbeatRequest => heartbeat;
        LeaveGroup: 0..=5, LeaveGroupRequest => leave_group;
        SyncGroup: 0..=5, SyncGroupRequest => sync_group, waits;
        DescribeGroups: 0..=6, DescribeGroupsRequest => describe_groups;
        ListGroups: 0..=5, ListGroupsRequest => list_groups;
        DeleteGroups: 0..=2, DeleteGroupsRequest => delete_groups;
    OffsetDelete: 0..=0, OffsetDeleteRequest => offset_delete;
};

const ADMIN: &[Api] = apis! {
        CreateTopics: 2..=7, CreateTopicsRequest => create_topics;
        DeleteTopics: 1..=6, DeleteTopicsRequest => delete_topics;
        DeleteRecords: 0..=2, DeleteRecordsRequest => delete_records;
        DescribeAcls: 1..=3, DescribeAclsRequest => describe_acls;
        DescribeConfigs: 1..=4, DescribeConfigsRequest => describe_configs;
        AlterConfigs: 0..=2, AlterConfigsRequest => alter_configs;
        DescribeLogDirs: 1..=5, DescribeLogDirsRequest => describe_log_dirs;
        CreatePartitions: 0..=3, CreatePartitionsRequest => create_partitions;
        IncrementalAlterConfigs: 0..=1, IncrementalAlterConfigsRequest => incremental_alter_configs;
        ElectLeaders: 0..=2, ElectLeadersRequest => elect_leaders;
        AlterPartitionReassignments: 0..=1, AlterPartitionReassignmentsRequest => alter_partition_reassignments;
        ListPartitionReassignments: 0..=0, ListPartitionReassignmentsRequest => list_partition_reassignments;
        DescribeClientQuotas: 0..=1, DescribeClientQuotasRequest => describe_client_quotas;
        DescribeCluster: 0..=2, DescribeClusterRequest => describe_cluster;
        DescribeProducers: 0..=0, DescribeProducersRequest => describe_producers;
    DescribeTopicPartitions: 0..=0, DescribeTopicPartitionsRequest => describe_topic_partitions;
};

const TABLES: &[&[Api]] = &[STREAMING, DATA, GROUPS, ADMIN];

/// Every API that is served.
pub(crate) fn apis() -> impl Iterator<Item = &'static Api> {
    TABLES.iter().copied().flatten()
}

fn find(key: i16) -> Option<&'static Api> {
    apis().find(|api| api.key == key)
}

impl Api {
    /// The versions that ApiVersions names. Produce pretends to be older than it is: see [`old_produce`].
    pub(crate) fn advertised(&self) -> (i16, i16) {
        (if self.key == PRODUCE { 0 } else { self.first }, self.last)
    }

    fn malformed(&self, version: i16, error: &dyn std::fmt::Display) -> Outcome {
        Outcome::Close(Refusal::Malformed {
            api: self.name,
            version,
            error: error.to_string(),
        })
    }

    fn unencodable(&self, version: i16, error: &dyn std::fmt::Display) -> Outcome {
        Outcome::Close(Refusal::Unencodable {
            api: self.name,
            version,
            error: error.to_string(),
        })
    }
}

/// What requests of one connection have in common.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Number of the connection, for the log.
    number: u64,
    host: Arc<str>,
    listener: Arc<str>,
    /// The client id of the last request: it hardly ever changes.
    client_id: Arc<str>,
    torn: handlers::produce::Torn,
}

impl Peer {
    pub(crate) fn new(number: u64, ip: IpAddr, listener: &Arc<str>) -> Peer {
        // As Java's InetAddress.toString shows an address without a name.
        Peer {
            number,
            host: format!("/{ip}").into(),
            listener: Arc::clone(listener),
            client_id: "".into(),
            torn: handlers::produce::Torn::default(),
        }
    }

    fn context(&mut self, client_id: Option<&str>, api_version: i16) -> RequestContext {
        let client_id = client_id.unwrap_or_default();
        if *self.client_id != *client_id {
            self.client_id = client_id.into();
        }
        RequestContext {
            client_id: Arc::clone(&self.client_id),
            client_host: Arc::clone(&self.host),
            listener: Arc::clone(&self.listener),
            api_version,
        }
    }
}

/// Serves requests by the table.
pub(crate) struct Dispatcher {
    broker: Arc<Broker>,
}

impl Dispatcher {
    pub(crate) fn new(broker: Arc<Broker>) -> Dispatcher {
        Dispatcher { broker }
    }
}

impl Requests for Dispatcher {
    type Peer = Peer;

    fn start(&self, peer: &mut Peer, frame: Frame) -> Started {
        let received = frame.received;
        let permit = frame.permit;
        let private = match frame.api_key {
            PEER_PING => Some(handlers::peer_ping::answer(&self.broker, &frame.bytes)),
            ARCHIVE_FLUSH => Some(handlers::archive_flush::answer(&self.broker, &frame.bytes)),
            _ => None,
        };
        if let Some(outcome) = private {
            return Started {
                outcome: Box::pin(std::future::ready(outcome)),
                abandonable: false,
            };
        }
        let request = match route(peer, frame.api_key, frame.api_version, frame.bytes) {
            Routed::Run(request) => request,
            Routed::Done(outcome) => {
                return Started {
                    outcome: Box::pin(async move { outcome }),
                    abandonable: false,
                };
            }
        };
        let api = request.api;
        let broker = Arc::clone(&self.broker);
        let outcome = match api.run {
            Run::Handler(run) => {
                let handled = run(Arc::clone(&broker), request);
                Box::pin(async move {
                    let outcome = handled.await;
                    drop(permit);
                    outcome
                })
            }
            Run::Produce => start_produce(&broker, peer, request, permit, received),
            Run::Fetch => Box::pin({
                let broker = Arc::clone(&broker);
                async move {
                    let outcome = answer_fetch(&broker, request).await;
                    drop(permit);
                    outcome
                }
            }),
        };
        let timed = async move {
            let outcome = outcome.await;
            broker.metrics.request_answered(api.key, received.elapsed());
            outcome
        };
        Started {
            outcome: Box::pin(timed),
            abandonable: api.abandonable,
        }
    }
}

/// What to do with a frame.
enum Routed {
    Run(Request),
    Done(Outcome),
}

/// Finds the row and reads the header.
fn route(peer: &mut Peer, key: i16, version: i16, bytes: Bytes) -> Routed {
    let Some(api) = find(key) else {
        return Routed::Done(Outcome::Close(Refusal::UnknownApi(key)));
    };
    let (first, last) = api.advertised();
    if version < first || version > last {
        return Routed::Done(match correlation_id(&bytes) {
            // The one answer that a client needs to find out what we speak (KIP-511).
            Some(id) if key == API_VERSIONS => handlers::api_versions::unsupported_version(id),
            _ => Outcome::Close(Refusal::UnsupportedVersion {
                api: api.name,
                version,
            }),
        });
    }
    let flexible = (api.is_flexible)(ApiVersion::new(version));
    let (header, body) = match protocol::decode_header(bytes, flexible) {
        Ok(decoded) => decoded,
        Err(error) => return Routed::Done(api.malformed(version, &error)),
    };
    let correlation_id = header.correlation_id;
    if key == PRODUCE && version < old_produce::FIRST_SERVED {
        return Routed::Done(match old_produce::refuse(body, version, correlation_id) {
            Ok(Some(reply)) => Outcome::Reply(reply),
            Ok(None) => Outcome::Close(Refusal::UnsupportedVersion {
                api: api.name,
                version,
            }),
            Err(error) => api.malformed(version, &error),
        });
    }
    let ctx = peer.context(header.client_id.as_deref(), version);
    Routed::Run(Request {
        api,
        ctx,
        correlation_id,
        body,
    })
}

fn correlation_id(bytes: &[u8]) -> Option<i32> {
    bytes
        .get(4..8)?
        .first_chunk()
        .map(|field| i32::from_be_bytes(*field))
}

/// Orders the batches now; the future waits for their publication.
///
/// At level debug the request can be followed through the log by its connection and correlation id: see
/// docs/monitoring.md.
fn start_produce(
    broker: &Arc<Broker>,
    peer: &mut Peer,
    request: Request,
    permit: Option<crate::budget::BudgetPermit>,
    received: Instant,
) -> BoxFuture<'static, Outcome> {
    let Request {
        api,
        ctx,
        correlation_id,
        body,
    } = request;
    let version = ctx.api_version;
    let span = tracing::debug_span!("produce", trace = %format_args!("{}-{correlation_id}", peer.number));
    let entered = span.enter();
    let request = match protocol::decode_body::<ProduceRequest>(body, version) {
        Ok(request) => request,
        Err(error) => {
            let outcome = api.malformed(version, &error);
            return Box::pin(async move { outcome });
        }
    };
    tracing::debug!(
        version,
        client_id = %ctx.client_id,
        acks = request.acks,
        topics = request.topic_data.len(),
        "decoded"
    );
    let answer = handlers::produce::start(broker, &ctx, &mut peer.torn, request, permit);
    drop(entered);
    Box::pin(async move {
        let answer = answer.await;
        span.in_scope(|| {
            let took = received.elapsed();
            tracing::debug!(?took, result = answer.word(), "answered");
        });
        match answer {
            handlers::produce::Answer::Response(response) => {
                match protocol::encode_reply(api.key, version, correlation_id, &response) {
                    Ok(reply) => Outcome::Reply(reply),
                    Err(error) => api.unencodable(version, &error),
                }
            }
            handlers::produce::Answer::Silent => Outcome::Silent,
            handlers::produce::Answer::SilentFailed(why) => Outcome::Close(Refusal::SilentProduceFailed(why)),
        }
    })
}

async fn answer_fetch(broker: &Arc<Broker>, request: Request) -> Outcome {
    let Request {
        api,
        ctx,
        correlation_id,
        body,
    } = request;
    let version = ctx.api_version;
    let request = match protocol::decode_body::<FetchRequest>(body, version) {
        Ok(request) => request,
        Err(error) => return api.malformed(version, &error),
    };
    let answer = handlers::fetch::answer(broker, &ctx, request).await;
    let bytes = answer.records_bytes();
    broker.metrics.fetch_bytes.inc_by(bytes as u64);
    let held = (bytes > 0).then(|| HeldBytes::new(bytes, &broker.metrics.fetch_reply_bytes));
    match answer.into_reply(version, correlation_id, held) {
        Ok(reply) => Outcome::Reply(reply),
        Err(error) => api.unencodable(version, &error),
    }
}

#[cfg(test)]
mod tests;
