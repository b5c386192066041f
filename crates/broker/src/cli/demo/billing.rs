//! The consumer group: one member that reads the orders now and then, as a batch job would, so that there is a lag to
//! see. Others may join the group: partitions are shared out among all members.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::consumer_protocol_assignment::TopicPartition;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::join_group_request::JoinGroupRequestProtocol;
use kafka_wire::leave_group_request::MemberIdentity;
use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_wire::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_wire::sync_group_request::SyncGroupRequestAssignment;
use kafka_wire::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest,
    OffsetFetchRequest, SyncGroupRequest, decode_consumer_protocol_assignment,
    decode_consumer_protocol_subscription, encode_consumer_protocol_assignment,
    encode_consumer_protocol_subscription,
};
use kafka_wire_core::{ApiVersion, DecodeLimits};

use super::figures::Figures;
use super::story::ORDERS;
use super::{AGAIN, Over};
use crate::cli::bench::Batches;
use crate::cli::client::{Client, ClientError, OffsetOf, RETRY_PAUSE, discover, list_offsets, refused};
use crate::errors::ErrorCode;

/// Name of the group.
pub(super) const GROUP: &str = "billing";
/// It reads so often.
pub(super) const READS_EVERY: Duration = Duration::from_secs(3);
/// It says so often that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A member that was killed is missed after this time. Kafka's shortest.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The way of sharing partitions out that all clients have.
const PROTOCOL: &str = "range";
const FETCH_BYTES_MAX: i32 = 1024 * 1024;

/// Versions that carry all that is used here; older ones of each are as good.
const COORDINATOR_VERSION_MAX: i16 = 3;
const JOIN_VERSION_MAX: i16 = 4;
const SYNC_VERSION_MAX: i16 = 2;
const HEARTBEAT_VERSION_MAX: i16 = 2;
const LEAVE_VERSION_MAX: i16 = 3;
const COMMIT_VERSION_MAX: i16 = 6;
const OFFSET_FETCH_VERSION_MAX: i16 = 5;
const FETCH_VERSION_MAX: i16 = 11;

/// A member of the group.
pub(super) struct Billing {
    at: Arc<str>,
    figures: Arc<Figures>,
    member: String,
    generation: i32,
}

/// Offsets by partition.
type Positions = BTreeMap<i32, i64>;

impl Billing {
    pub(super) fn new(at: Arc<str>, figures: Arc<Figures>) -> Billing {
        Billing {
            at,
            figures,
            member: String::new(),
            generation: -1,
        }
    }

    /// Consumes until the demo is over, and leaves the group.
    pub(super) async fn run(mut self, mut over: Over) {
        loop {
            let error = tokio::select! {
                Err(error) = self.session() => error,
                () = over.wait() => break,
            };
            self.figures.trouble(GROUP, Some(error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = over.wait() => break,
            }
        }
        // A member that cannot say good-bye is missed when its session has timed out.
        let _ = self.leave().await;
    }

    /// On one connection, until something fails.
    async fn session(&mut self) -> Result<Infallible, ClientError> {
        let mut client = Client::connect(&self.at).await?;
        // There is one broker, so who it is needs no answer; but the first to ask has the offsets' topic made.
        let mut request = FindCoordinatorRequest::default();
        request.key = GROUP.into();
        let found = client.call(&request, COORDINATOR_VERSION_MAX).await?;
        refused("cannot find the group's coordinator", found.error_code)?;
        loop {
            let Err(error) = self.until_the_next_join(&mut client).await;
            match error {
                ClientError::Refused { code, .. } if joins_anew(code) => {
                    if code == ErrorCode::UnknownMemberId.code() {
                        self.member.clear();
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                error => return Err(error),
            }
        }
    }

    /// From a join until something asks for another one.
    async fn until_the_next_join(&mut self, client: &mut Client) -> Result<Infallible, ClientError> {
        let partitions = self.join(client).await?;
        let mut positions = self.positions(client, &partitions).await?;
        self.figures.committed(&positions);
        self.figures.trouble(GROUP, None);
        loop {
            let mut waited = Duration::ZERO;
            while waited < READS_EVERY {
                tokio::time::sleep(HEARTBEAT).await;
                waited += HEARTBEAT;
                self.heartbeat(client).await?;
            }
            if read_on(client, &mut positions).await? {
                self.commit(client, &positions).await?;
                self.figures.committed(&positions);
            }
        }
    }

    /// Joins, shares the partitions out if that is its part, and returns those that it got.
    async fn join(&mut self, client: &mut Client) -> Result<Vec<i32>, ClientError> {
        let mut protocol = JoinGroupRequestProtocol::default();
        protocol.name = PROTOCOL.into();
        protocol.metadata = subscription()?;
        let mut request = JoinGroupRequest::default();
        request.group_id = GROUP.into();
        request.session_timeout_ms = SESSION_TIMEOUT.as_millis() as i32;
        request.rebalance_timeout_ms = REBALANCE_TIMEOUT.as_millis() as i32;
        request.member_id = self.member.as_str().into();
        request.protocol_type = "consumer".into();
        request.protocols = vec![protocol];
        let joined = client.call(&request, JOIN_VERSION_MAX).await?;
        let none_or_required = [ErrorCode::None, ErrorCode::MemberIdRequired].map(ErrorCode::code);
        if none_or_required.contains(&joined.error_code) {
            self.member = joined.member_id.to_string();
        }
        refused("cannot join the group", joined.error_code)?;
        self.generation = joined.generation_id;
        self.sync(client, &joined).await
    }

    async fn sync(&self, client: &mut Client, joined: &JoinGroupResponse) -> Result<Vec<i32>, ClientError> {
        let mut request = SyncGroupRequest::default();
        request.group_id = GROUP.into();
        request.generation_id = self.generation;
        request.member_id = self.member.as_str().into();
        if joined.leader == joined.member_id {
            let cluster = discover(std::slice::from_ref(&self.at), ORDERS).await?;
            let readers: Vec<&str> = joined
                .members
                .iter()
                .filter(|member| subscribes(&member.metadata))
                .map(|member| &*member.member_id)
                .collect();
            for (member, partitions) in shares(&readers, cluster.leaders.len()) {
                let mut share = SyncGroupRequestAssignment::default();
                share.member_id = member.into();
                share.assignment = assignment(partitions)?;
                request.assignments.push(share);
            }
        }
        let synced = client.call(&request, SYNC_VERSION_MAX).await?;
        refused("cannot learn the group's assignment", synced.error_code)?;
        assigned(synced.assignment).map_err(|why| client.malformed(why))
    }

    /// Where to go on: what was committed, or the start of the log.
    async fn positions(&self, client: &mut Client, partitions: &[i32]) -> Result<Positions, ClientError> {
        let mut topic = OffsetFetchRequestTopic::default();
        topic.name = ORDERS.into();
        topic.partition_indexes = partitions.to_vec();
        let mut request = OffsetFetchRequest::default();
        request.group_id = GROUP.into();
        request.topics = Some(vec![topic]);
        let answer = client.call(&request, OFFSET_FETCH_VERSION_MAX).await?;
        refused("cannot fetch the group's offsets", answer.error_code)?;
        let cluster = discover(std::slice::from_ref(&self.at), ORDERS).await?;
        let starts = list_offsets(&cluster, ORDERS, OffsetOf::Start).await?;
        let mut positions = Positions::new();
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            refused("cannot fetch the group's offsets", partition.error_code)?;
            let start = usize::try_from(partition.partition_index).ok();
            let start = start.and_then(|place| starts.get(place)).copied().unwrap_or(0);
            positions.insert(partition.partition_index, partition.committed_offset.max(start));
        }
        Ok(positions)
    }

    async fn heartbeat(&self, client: &mut Client) -> Result<(), ClientError> {
        let mut request = HeartbeatRequest::default();
        request.group_id = GROUP.into();
        request.generation_id = self.generation;
        request.member_id = self.member.as_str().into();
        let answer = client.call(&request, HEARTBEAT_VERSION_MAX).await?;
        refused("the group does not take a heartbeat", answer.error_code)
    }

    async fn commit(&self, client: &mut Client, positions: &Positions) -> Result<(), ClientError> {
        let mut topic = OffsetCommitRequestTopic::default();
        topic.name = ORDERS.into();
        for (index, offset) in positions {
            let mut partition = OffsetCommitRequestPartition::default();
            partition.partition_index = *index;
            partition.committed_offset = *offset;
            partition.committed_leader_epoch = -1;
            topic.partitions.push(partition);
        }
        let mut request = OffsetCommitRequest::default();
        request.group_id = GROUP.into();
        request.generation_id_or_member_epoch = self.generation;
        request.member_id = self.member.as_str().into();
        request.topics = vec![topic];
        let answer = client.call(&request, COMMIT_VERSION_MAX).await?;
        let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.try_for_each(|partition| refused("cannot commit offsets", partition.error_code))
    }

    async fn leave(&self) -> Result<(), ClientError> {
        if self.member.is_empty() {
            return Ok(());
        }
        let mut identity = MemberIdentity::default();
        identity.member_id = self.member.as_str().into();
        let mut request = LeaveGroupRequest::default();
        request.group_id = GROUP.into();
        request.members = vec![identity];
        let mut client = Client::connect(&self.at).await?;
        let answer = client.call(&request, LEAVE_VERSION_MAX).await?;
        refused("cannot leave the group", answer.error_code)
    }
}

/// Codes after which a member joins again instead of giving up its connection.
fn joins_anew(code: i16) -> bool {
    const ANEW: [ErrorCode; 4] = [
        ErrorCode::MemberIdRequired,
        ErrorCode::RebalanceInProgress,
        ErrorCode::IllegalGeneration,
        ErrorCode::UnknownMemberId,
    ];
    ANEW.iter().any(|anew| anew.code() == code)
}

/// Reads to the end of every partition; whether there was anything.
async fn read_on(client: &mut Client, positions: &mut Positions) -> Result<bool, ClientError> {
    let mut any = false;
    loop {
        let answer = client.call(&fetch(positions), FETCH_VERSION_MAX).await?;
        refused("cannot fetch", answer.error_code)?;
        let mut more = false;
        for partition in answer.responses.iter().flat_map(|topic| &topic.partitions) {
            refused("cannot fetch", partition.error_code)?;
            let records = partition.records.as_deref().unwrap_or_default();
            let position = positions.get_mut(&partition.partition_index);
            if let (Some(position), Some(end)) = (position, end_of(records)) {
                more |= end > *position;
                *position = end.max(*position);
            }
        }
        if !more {
            return Ok(any);
        }
        any = true;
    }
}

fn fetch(positions: &Positions) -> FetchRequest {
    let mut topic = FetchTopic::default();
    topic.topic = ORDERS.into();
    for (index, offset) in positions {
        let mut partition = FetchPartition::default();
        partition.partition = *index;
        partition.fetch_offset = *offset;
        partition.current_leader_epoch = -1;
        partition.log_start_offset = -1;
        partition.partition_max_bytes = FETCH_BYTES_MAX;
        topic.partitions.push(partition);
    }
    let mut request = FetchRequest::default();
    request.replica_id = -1;
    request.max_wait_ms = 0;
    request.min_bytes = 0;
    request.max_bytes = FETCH_BYTES_MAX;
    request.session_epoch = -1;
    request.topics = vec![topic];
    request
}

/// The offset behind the last whole batch.
fn end_of(records: &[u8]) -> Option<i64> {
    let last = Batches::new(records).map_while(Result::ok).last();
    last.map(|(header, _)| header.last_offset() + 1)
}

fn cannot_write(error: impl std::fmt::Display) -> ClientError {
    ClientError::Other(format!("cannot write a request: {error}"))
}

fn subscription() -> Result<Bytes, ClientError> {
    let mut subscription = ConsumerProtocolSubscription::default();
    subscription.topics = vec![ORDERS.into()];
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_subscription(&mut buffer, &subscription, ApiVersion::new(0))
        .map_err(cannot_write)?;
    Ok(buffer.freeze())
}

/// Whether a member wants the orders.
fn subscribes(metadata: &Bytes) -> bool {
    let decoded = decode_consumer_protocol_subscription(metadata.clone(), DecodeLimits::default());
    decoded.is_ok_and(|(_, subscription)| subscription.topics.iter().any(|topic| &**topic == ORDERS))
}

fn assignment(partitions: Vec<i32>) -> Result<Bytes, ClientError> {
    let mut part = TopicPartition::default();
    part.topic = ORDERS.into();
    part.partitions = partitions;
    let mut assignment = ConsumerProtocolAssignment::default();
    assignment.assigned_partitions = vec![part];
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_assignment(&mut buffer, &assignment, ApiVersion::new(0))
        .map_err(cannot_write)?;
    Ok(buffer.freeze())
}

/// The partitions of an assignment. Nothing at all is none.
fn assigned(bytes: Bytes) -> Result<Vec<i32>, String> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let decoded = decode_consumer_protocol_assignment(bytes, DecodeLimits::default());
    let (_, assignment) = decoded.map_err(|error| format!("an assignment: {error}"))?;
    let mine = assignment.assigned_partitions.into_iter();
    Ok(mine
        .filter(|part| *part.topic == *ORDERS)
        .flat_map(|part| part.partitions)
        .collect())
}

/// A range of partitions for each member, in the order of their ids.
fn shares<'a>(members: &[&'a str], partitions: usize) -> BTreeMap<&'a str, Vec<i32>> {
    let mut shares: BTreeMap<&str, Vec<i32>> = members.iter().map(|member| (*member, Vec::new())).collect();
    let count = shares.len();
    for (place, share) in shares.values_mut().enumerate() {
        let (from, to) = (place * partitions / count, (place + 1) * partitions / count);
        share.extend((from..to).filter_map(|partition| i32::try_from(partition).ok()));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::batch::BatchBuilder;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_partition_has_one_member(members in 1..9_usize, partitions in 0..50_usize) {
            let names: Vec<String> = (0..members).map(|member| format!("m{member}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let shares = shares(&names, partitions);
            prop_assert_eq!(shares.len(), members);
            let mut all: Vec<i32> = shares.values().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..partitions as i32).collect::<Vec<_>>());
            let sizes = shares.values().map(Vec::len);
            prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        }
    }

    #[test]
    fn nobody_means_no_shares() {
        assert!(shares(&[], 3).is_empty());
    }

    #[test]
    fn what_is_written_can_be_read() {
        assert!(subscribes(&subscription().unwrap()));
        assert!(!subscribes(&Bytes::from_static(b"?")));
        assert_eq!(assigned(assignment(vec![2, 0]).unwrap()), Ok(vec![2, 0]));
        assert_eq!(assigned(Bytes::new()), Ok(Vec::new()));
        assert!(assigned(Bytes::from_static(b"?")).is_err());
    }

    #[test]
    fn a_position_moves_over_whole_batches() {
        let batch = |base_offset: i64, records: usize| {
            let mut builder = BatchBuilder::new();
            (0..records).for_each(|_| builder.push(0, None, Some(b"x"), &[]));
            let batch = builder.build();
            [&batch.patched_header(base_offset, 0)[..], &batch.body()].concat()
        };
        assert_eq!(end_of(&[]), None);
        let two = [batch(5, 2), batch(7, 3)].concat();
        assert_eq!(end_of(&two), Some(10));
        assert_eq!(end_of(&two[..two.len() - 1]), Some(7));
        assert_eq!(end_of(&two[..30]), None);
    }

    #[test]
    fn some_codes_ask_for_a_new_join() {
        assert!(joins_anew(27) && joins_anew(79) && joins_anew(22) && joins_anew(25));
        assert!(!joins_anew(0) && !joins_anew(15) && !joins_anew(1));
    }
}
