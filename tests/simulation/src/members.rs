//! Members of a classic consumer group: they join, share the partitions out, commit what they have, are late now and
//! then, and come back when they are told that the group went on without them.

use bytes::Bytes;
use kafka_wire::join_group_request::JoinGroupRequestProtocol;
use kafka_wire::sync_group_request::SyncGroupRequestAssignment;
use kafka_wire::{HeartbeatRequest, JoinGroupRequest, SyncGroupRequest};

use crate::clients::{Client, Failed, Tried};
use crate::kafka::{Kafka, code};

const MEMBER_ID_REQUIRED: i16 = 79;
const ILLEGAL_GENERATION: i16 = 22;
const UNKNOWN_MEMBER_ID: i16 = 25;
const REBALANCE_IN_PROGRESS: i16 = 27;

/// What a member is, between two rounds.
#[derive(Debug, Default)]
struct Member {
    id: String,
    generation: i32,
    partitions: Vec<u8>,
}

/// Why a member must join again.
pub fn must_join(error: i16) -> bool {
    [ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS].contains(&error)
}

impl Client {
    /// Is a member of a group that shares the partitions of a topic.
    pub async fn be_member(mut self, group: String, topic: String, partitions: u8) {
        let mut member = Member::default();
        while !self.closing() {
            if let Err(e) = self.one_generation(&group, &topic, partitions, &mut member).await {
                self.tell(format_args!("member of {group}: {e}"));
                self.pause(100, 600).await;
            }
        }
    }

    async fn one_generation(
        &mut self,
        group: &str,
        topic: &str,
        partitions: u8,
        member: &mut Member,
    ) -> Tried<()> {
        let node = self.coordinator(group).await?;
        let mut kafka = self.take(node).await?;
        self.join(&mut kafka, group, partitions, member).await?;
        self.give_back(kafka);
        {
            let mut w = self.world.lock();
            w.tell(format_args!(
                "{} has {:?} in generation {} of {group} by {node}",
                self.name, member.partitions, member.generation
            ));
            let now = w.clock();
            w.history.synced(group, member.generation, now);
        }
        loop {
            if self.closing() {
                return Ok(());
            }
            if self.chance.happens(0.03) {
                // Too late: the others go on without it, and what it then commits must not count.
                self.pause(5_000, 12_000).await;
            }
            let error = match self.chance.below(3) {
                0 => self.beat(group, member).await?,
                _ => self.commit_as(group, topic, member).await?,
            };
            if must_join(error) {
                if error == UNKNOWN_MEMBER_ID {
                    member.id.clear();
                }
                self.tell(format_args!("must join {group} again: error {error}"));
                return Ok(());
            }
            if error != code::NONE {
                return Err(Failed::Again(format!("error {error}")));
            }
            self.pause(200, 1_200).await;
        }
    }

    /// JoinGroup and SyncGroup.
    async fn join(
        &mut self,
        kafka: &mut Kafka,
        group: &str,
        partitions: u8,
        member: &mut Member,
    ) -> Tried<()> {
        let mut protocol = JoinGroupRequestProtocol::default();
        protocol.name = "range".into();
        protocol.metadata = Bytes::from_static(b"simulated");
        let mut request = JoinGroupRequest::default();
        request.group_id = group.to_owned().into();
        request.session_timeout_ms = 6_000;
        request.rebalance_timeout_ms = 5_000;
        request.protocol_type = "consumer".into();
        request.protocols = vec![protocol];
        request.member_id = member.id.clone().into();
        let mut joined = kafka.call(5, &request).await?;
        if joined.error_code == MEMBER_ID_REQUIRED {
            request.member_id = joined.member_id.clone();
            joined = kafka.call(5, &request).await?;
        }
        if joined.error_code != code::NONE {
            if joined.error_code == UNKNOWN_MEMBER_ID {
                member.id.clear();
            }
            return Err(Failed::Again(format!("join: error {}", joined.error_code)));
        }
        member.id = joined.member_id.as_str().to_owned();
        member.generation = joined.generation_id;
        let mut request = SyncGroupRequest::default();
        request.group_id = group.to_owned().into();
        request.generation_id = member.generation;
        request.member_id = member.id.clone().into();
        let count = joined.members.len();
        for (i, other) in joined.members.iter().enumerate() {
            let mut assignment = SyncGroupRequestAssignment::default();
            assignment.member_id = other.member_id.clone();
            assignment.assignment = (0..partitions)
                .filter(|p| *p as usize % count == i)
                .collect::<Vec<u8>>()
                .into();
            request.assignments.push(assignment);
        }
        let synced = kafka.call(3, &request).await?;
        if synced.error_code != code::NONE {
            return Err(Failed::Again(format!("sync: error {}", synced.error_code)));
        }
        member.partitions = synced.assignment.to_vec();
        Ok(())
    }

    async fn beat(&mut self, group: &str, member: &Member) -> Tried<i16> {
        let node = self.coordinator(group).await?;
        let mut kafka = self.take(node).await?;
        let mut request = HeartbeatRequest::default();
        request.group_id = group.to_owned().into();
        request.generation_id = member.generation;
        request.member_id = member.id.clone().into();
        let answer = kafka.call(3, &request).await?;
        self.give_back(kafka);
        Ok(answer.error_code)
    }

    async fn commit_as(&mut self, group: &str, topic: &str, member: &Member) -> Tried<i16> {
        let Some(partition) = member.partitions.first().copied().map(i32::from) else {
            return self.beat(group, member).await;
        };
        let before = self.try_fetch_commit(group, topic, partition).await?;
        let as_member = Some((member.id.as_str(), member.generation));
        self.try_commit(group, topic, partition, before.max(0) + 1, as_member)
            .await
    }
}
