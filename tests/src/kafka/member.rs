//! A member of a classic consumer group, as one that is written by hand: each call is one try, and says what to do
//! when it fails.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::consumer_protocol_assignment::TopicPartition;
use kafka_wire::join_group_request::JoinGroupRequestProtocol;
use kafka_wire::leave_group_request::MemberIdentity;
use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_wire::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_wire::sync_group_request::SyncGroupRequestAssignment;
use kafka_wire::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, HeartbeatRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest, OffsetFetchRequest, RequestResponsePair,
    SyncGroupRequest, decode_consumer_protocol_assignment, encode_consumer_protocol_assignment,
    encode_consumer_protocol_subscription,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, StrBytes};

use super::{Router, code};
use crate::wire::Client;

const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(8);
const PROTOCOL: &str = "round-robin";

/// Why a call of a member did not succeed, and what a client does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It tries again; the coordinator may have moved.
    Again(String),
    /// It joins anew.
    Rejoin(String),
    /// No broker answers so.
    Broken(String),
}

/// A member of a group that consumes one topic.
#[derive(Debug)]
pub struct Member {
    router: Router,
    group: String,
    topic: String,
    partitions: i32,
    client: Option<(SocketAddr, Client)>,
    member_id: String,
    generation: i32,
}

impl Member {
    /// One that has not joined yet.
    pub fn new(router: Router, group: &str, topic: &str, partitions: i32) -> Member {
        Member {
            router,
            group: group.to_owned(),
            topic: topic.to_owned(),
            partitions,
            client: None,
            member_id: String::new(),
            generation: -1,
        }
    }

    /// Generation of the last join.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// Joins and gets the partitions that are to be consumed. It waits for the others, as the coordinator does.
    ///
    /// # Errors
    /// What to do now.
    pub fn join(&mut self) -> Result<Vec<i32>, Trouble> {
        let mut protocol = JoinGroupRequestProtocol::default();
        protocol.name = PROTOCOL.into();
        protocol.metadata = subscription(&self.topic)?;
        let mut request = JoinGroupRequest::default();
        request.group_id = self.group.as_str().into();
        request.session_timeout_ms = SESSION_TIMEOUT.as_millis() as i32;
        request.rebalance_timeout_ms = REBALANCE_TIMEOUT.as_millis() as i32;
        request.member_id = self.member_id.as_str().into();
        request.protocol_type = "consumer".into();
        request.protocols = vec![protocol];
        let response = self.call(&request, 4)?;
        if response.error_code == code::MEMBER_ID_REQUIRED {
            self.member_id = response.member_id.to_string();
            return Err(Trouble::Rejoin("a member id was given".to_owned()));
        }
        self.check(response.error_code, "JoinGroup")?;
        self.member_id = response.member_id.to_string();
        self.generation = response.generation_id;
        self.sync(&response)
    }

    fn sync(&mut self, joined: &JoinGroupResponse) -> Result<Vec<i32>, Trouble> {
        let mut request = SyncGroupRequest::default();
        request.group_id = self.group.as_str().into();
        request.generation_id = self.generation;
        request.member_id = self.member_id.as_str().into();
        if joined.leader == joined.member_id {
            let members: Vec<&str> = joined.members.iter().map(|member| &*member.member_id).collect();
            for (member, partitions) in shares(&members, self.partitions) {
                let mut assignment = SyncGroupRequestAssignment::default();
                assignment.member_id = member.into();
                assignment.assignment = assigned(&self.topic, partitions)?;
                request.assignments.push(assignment);
            }
        }
        let response = self.call(&request, 2)?;
        self.check(response.error_code, "SyncGroup")?;
        let decoded = decode_consumer_protocol_assignment(response.assignment, DecodeLimits::default());
        let (_, assignment) = decoded.map_err(|error| Trouble::Broken(format!("the assignment: {error}")))?;
        let mine = assignment.assigned_partitions.into_iter();
        Ok(mine
            .filter(|part| *part.topic == *self.topic)
            .flat_map(|part| part.partitions)
            .collect())
    }

    /// Says that it lives.
    ///
    /// # Errors
    /// What to do now.
    pub fn heartbeat(&mut self) -> Result<(), Trouble> {
        let mut request = HeartbeatRequest::default();
        request.group_id = self.group.as_str().into();
        request.generation_id = self.generation;
        request.member_id = self.member_id.as_str().into();
        let response = self.call(&request, 2)?;
        self.check(response.error_code, "Heartbeat")
    }

    /// Commits these offsets in the generation of the last join.
    ///
    /// # Errors
    /// What to do now; it is not known whether an offset was committed.
    pub fn commit(&mut self, offsets: &BTreeMap<i32, i64>) -> Result<(), Trouble> {
        for code in self.commit_in(self.generation, offsets)? {
            self.check(code, "OffsetCommit")?;
        }
        Ok(())
    }

    /// Commits these offsets in any generation: the code of each partition.
    ///
    /// # Errors
    /// What to do now, if there was no answer.
    pub fn commit_in(&mut self, generation: i32, offsets: &BTreeMap<i32, i64>) -> Result<Vec<i16>, Trouble> {
        let mut topic = OffsetCommitRequestTopic::default();
        topic.name = self.topic.as_str().into();
        for (index, offset) in offsets {
            let mut partition = OffsetCommitRequestPartition::default();
            partition.partition_index = *index;
            partition.committed_offset = *offset;
            partition.committed_leader_epoch = -1;
            topic.partitions.push(partition);
        }
        let mut request = OffsetCommitRequest::default();
        request.group_id = self.group.as_str().into();
        request.generation_id_or_member_epoch = generation;
        request.member_id = self.member_id.as_str().into();
        request.topics = vec![topic];
        let response = self.call(&request, 6)?;
        let partitions = response.topics.into_iter().flat_map(|topic| topic.partitions);
        Ok(partitions.map(|partition| partition.error_code).collect())
    }

    /// The committed offsets, 0 where there is none.
    ///
    /// # Errors
    /// What to do now.
    pub fn committed(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, Trouble> {
        let mut topic = OffsetFetchRequestTopic::default();
        topic.name = self.topic.as_str().into();
        topic.partition_indexes = partitions.to_vec();
        let mut request = OffsetFetchRequest::default();
        request.group_id = self.group.as_str().into();
        request.topics = Some(vec![topic]);
        let response = self.call(&request, 5)?;
        self.check(response.error_code, "OffsetFetch")?;
        let mut offsets = BTreeMap::new();
        for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
            self.check(partition.error_code, "OffsetFetch")?;
            offsets.insert(partition.partition_index, partition.committed_offset.max(0));
        }
        match partitions.iter().find(|index| !offsets.contains_key(index)) {
            Some(missing) => Err(Trouble::Broken(format!("OffsetFetch leaves out {missing}"))),
            None => Ok(offsets),
        }
    }

    /// Leaves, if the coordinator can be reached; it then joins as somebody else.
    pub fn leave(&mut self) {
        let mut identity = MemberIdentity::default();
        identity.member_id = self.member_id.as_str().into();
        let mut request = LeaveGroupRequest::default();
        request.group_id = self.group.as_str().into();
        request.members = vec![identity];
        // A member that cannot say good-bye is missed when its session has timed out.
        let _ = self.call(&request, 3);
        self.member_id.clear();
        self.generation = -1;
    }

    /// Forgets the coordinator: the next call looks for it.
    pub fn lose_coordinator(&mut self) {
        self.client = None;
        self.router.another();
    }

    fn call<R: RequestResponsePair>(&mut self, request: &R, version: i16) -> Result<R::Response, Trouble> {
        let answered = self.connected().and_then(|client| client.call(request, version));
        answered.map_err(|error| {
            self.lose_coordinator();
            Trouble::Again(error.to_string())
        })
    }

    fn connected(&mut self) -> io::Result<&mut Client> {
        let connection = match self.client.take() {
            Some(connection) => connection,
            None => {
                let address = self.router.coordinator(&self.group)?;
                let client = self.router.connect(address)?;
                client.set_timeout(REBALANCE_TIMEOUT + self.router.patience())?;
                (address, client)
            }
        };
        Ok(&mut self.client.insert(connection).1)
    }

    fn check(&mut self, code: i16, what: &str) -> Result<(), Trouble> {
        let result = judge(code, what);
        match &result {
            Err(Trouble::Again(_)) => self.lose_coordinator(),
            Err(Trouble::Rejoin(_)) if code == code::UNKNOWN_MEMBER_ID => self.member_id.clear(),
            _ => {}
        }
        result
    }
}

/// What a client does about a code.
fn judge(code: i16, what: &str) -> Result<(), Trouble> {
    let words = || format!("{what}: error {code}");
    match code {
        code::NONE => Ok(()),
        code::ILLEGAL_GENERATION | code::UNKNOWN_MEMBER_ID | code::REBALANCE_IN_PROGRESS => {
            Err(Trouble::Rejoin(words()))
        }
        code if code::is_retriable(code) => Err(Trouble::Again(words())),
        _ => Err(Trouble::Broken(words())),
    }
}

fn subscription(topic: &str) -> Result<Bytes, Trouble> {
    let mut subscription = ConsumerProtocolSubscription::default();
    subscription.topics = vec![topic.into()];
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_subscription(&mut buffer, &subscription, ApiVersion::new(0))
        .map_err(|error| Trouble::Broken(error.to_string()))?;
    Ok(buffer.freeze())
}

fn assigned(topic: &str, partitions: Vec<i32>) -> Result<Bytes, Trouble> {
    let mut part = TopicPartition::default();
    part.topic = StrBytes::from(topic);
    part.partitions = partitions;
    let mut assignment = ConsumerProtocolAssignment::default();
    assignment.assigned_partitions = vec![part];
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_assignment(&mut buffer, &assignment, ApiVersion::new(0))
        .map_err(|error| Trouble::Broken(error.to_string()))?;
    Ok(buffer.freeze())
}

/// Partitions in turns over the members, who come in the order of their ids.
fn shares<'a>(members: &[&'a str], partitions: i32) -> BTreeMap<&'a str, Vec<i32>> {
    let mut shares: BTreeMap<&str, Vec<i32>> = members.iter().map(|member| (*member, Vec::new())).collect();
    let count = shares.len().max(1);
    for (at, share) in shares.values_mut().enumerate() {
        share.extend((0..partitions).skip(at).step_by(count));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_one_member() {
        let shares = shares(&["b", "a", "c"], 7);
        assert_eq!(shares["a"], [0, 3, 6]);
        assert_eq!(shares["b"], [1, 4]);
        assert_eq!(shares["c"], [2, 5]);
        assert_eq!(super::shares(&["a", "b"], 1)["b"], [0i32; 0]);
    }

    #[test]
    fn codes_are_judged_as_clients_do() {
        assert_eq!(judge(code::NONE, "x"), Ok(()));
        for code in [
            code::NOT_COORDINATOR,
            code::COORDINATOR_LOAD_IN_PROGRESS,
            code::REQUEST_TIMED_OUT,
        ] {
            assert!(matches!(judge(code, "x"), Err(Trouble::Again(_))), "{code}");
        }
        for code in [code::ILLEGAL_GENERATION, code::REBALANCE_IN_PROGRESS] {
            assert!(matches!(judge(code, "x"), Err(Trouble::Rejoin(_))), "{code}");
        }
        let broken = judge(1, "Fetch");
        assert_eq!(broken, Err(Trouble::Broken("Fetch: error 1".to_owned())));
    }
}
