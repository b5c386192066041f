//! The state machine of one classic group: members, generations, rebalances.
//!
//! It is pure: every call gets the time and what was random, and says through [`GroupEffects`] which parked
//! requests are answered and what has to be stored. The rules are those of Kafka 4's `ClassicGroup` and
//! `GroupMetadataManager`.
//!
//! What others may rely on becomes visible with its publication: a generation is Stable, and assignments are
//! handed out, only after its record is durable ([`Group::persisted`]).

mod join;
mod rebalance;
mod session;
mod sync;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::member::{Member, Protocol, ReplyId};
use super::records::{GroupValue, subscribed_topics};
use crate::errors::ErrorCode;

/// The protocol type whose member metadata the coordinator can read (subscribed topics).
const CONSUMER_PROTOCOL_TYPE: &str = "consumer";
/// A new member that waits longer than this in its first JoinGroup is dropped: it may be long gone.
const NEW_MEMBER_JOIN_TIMEOUT_MS: i64 = 5 * 60 * 1000;
/// Member ids handed out and not yet used; a flood of first JoinGroups stops here.
const PENDING_MEMBERS_MAX: usize = 10_000;
/// A rebalance that nobody joined is looked at again no sooner than this.
const REBALANCE_RETRY_MIN_MS: i64 = 1_000;
/// The client id inside a member id is cut here, so that the id fits every field it travels in.
const MEMBER_ID_PREFIX_MAX: usize = 1_024;

/// The two clocks that a decision may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Never steps: sessions and rebalance deadlines.
    pub(crate) monotonic_ms: i64,
    /// Unix time: what is stored and compared across restarts.
    pub(crate) wall_ms: i64,
}

/// The limits of all groups; from the broker's settings.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) initial_rebalance_delay_ms: i64,
    pub(crate) session_timeout_min_ms: i64,
    pub(crate) session_timeout_max_ms: i64,
    pub(crate) group_max_size: usize,
    /// In UTF-16 units, as Kafka counts.
    pub(crate) offset_metadata_max: usize,
    pub(crate) offsets_retention_ms: i64,
    /// Bytes of one record, and of the records of one append.
    pub(crate) append_max_bytes: usize,
}

/// Where a group is between generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum GroupState {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
    /// Its deletion is being stored.
    Dead,
}

impl GroupState {
    /// The name as Kafka shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "Empty",
            GroupState::PreparingRebalance => "PreparingRebalance",
            GroupState::CompletingRebalance => "CompletingRebalance",
            GroupState::Stable => "Stable",
            GroupState::Dead => "Dead",
        }
    }
}

/// A JoinGroup request.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    /// Empty for a member that has none yet.
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout_ms: i32,
    pub(crate) rebalance_timeout_ms: i32,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<Protocol>,
    /// Version 4 and later: a dynamic member first gets an id and joins with it (KIP-394).
    pub(crate) requires_known_member_id: bool,
    /// Version 9 and later: a returning static leader learns its group but need not assign (KIP-814).
    pub(crate) supports_skipping_assignment: bool,
    /// Randomness for a new member id.
    pub(crate) unique: uuid::Uuid,
}

/// The answer to a JoinGroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinReply {
    pub(crate) error: ErrorCode,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: String,
    pub(crate) skip_assignment: bool,
    pub(crate) member_id: String,
    /// Member id, instance id and metadata of every member; only for the leader.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
}

impl JoinReply {
    pub(crate) fn error(error: ErrorCode, member_id: &str) -> JoinReply {
        JoinReply {
            error,
            generation: -1,
            protocol_type: None,
            protocol: None,
            leader: String::new(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members: Vec::new(),
        }
    }
}

/// A SyncGroup request.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// The answer to a SyncGroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyncReply {
    pub(crate) error: ErrorCode,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignment: Bytes,
}

impl SyncReply {
    pub(crate) fn error(error: ErrorCode) -> SyncReply {
        SyncReply {
            error,
            protocol_type: None,
            protocol: None,
            assignment: Bytes::new(),
        }
    }
}

/// What happens to the group once a stored record is published, or failed.
#[derive(Debug)]
pub(crate) enum Then {
    /// The record says what is already so.
    Nothing,
    /// Hand out the leader's assignments and become Stable.
    Assign {
        generation: i32,
        assignments: BTreeMap<String, Bytes>,
    },
    /// Answer a static member that took over its predecessor's place, or give the place back.
    Replace {
        generation: i32,
        before: Box<Member>,
        new_id: String,
        reply: ReplyId,
        answer: Box<JoinReply>,
    },
}

/// What the owner of a group has to do after a call.
#[derive(Debug, Default)]
pub(crate) struct GroupEffects {
    pub(crate) joins: Vec<(ReplyId, JoinReply)>,
    pub(crate) syncs: Vec<(ReplyId, SyncReply)>,
    /// A generation to store; at most one per call.
    pub(crate) persist: Option<(GroupValue, Then)>,
    /// Rebalances that began.
    pub(crate) rebalances: u64,
}

#[derive(Clone, Copy, Debug)]
enum JoinTimer {
    /// The first rebalance of an empty group waits a little for more members.
    Initial {
        at_ms: i64,
        delay_ms: i64,
        remaining_ms: i64,
    },
    Rebalance {
        at_ms: i64,
    },
}

impl JoinTimer {
    fn at_ms(self) -> i64 {
        match self {
            JoinTimer::Initial { at_ms, .. } | JoinTimer::Rebalance { at_ms } => at_ms,
        }
    }
}

/// One classic group.
#[derive(Debug)]
pub(crate) struct Group {
    state: GroupState,
    previous: GroupState,
    /// Unix time of the last state change; `None` when it was loaded from an old record.
    state_since_ms: Option<i64>,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Instance id to member id.
    static_members: BTreeMap<String, String>,
    /// Ids handed out with MEMBER_ID_REQUIRED, and when they lapse.
    pending_joins: BTreeMap<String, i64>,
    pending_syncs: BTreeSet<String>,
    /// `None`: not known, because no consumer protocol is spoken or it could not be read.
    subscribed: Option<BTreeSet<String>>,
    new_member_added: bool,
    join_timer: Option<JoinTimer>,
    sync_timer_ms: Option<i64>,
    /// The generation whose assignment is being stored.
    assigning: Option<i32>,
}

impl Group {
    pub(crate) fn new(now: Now) -> Group {
        Group {
            state: GroupState::Empty,
            previous: GroupState::Dead,
            state_since_ms: Some(now.wall_ms),
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending_joins: BTreeMap::new(),
            pending_syncs: BTreeSet::new(),
            subscribed: None,
            new_member_added: false,
            join_timer: None,
            sync_timer_ms: None,
            assigning: None,
        }
    }

    /// A group as its last record says. Sessions start with [`Group::loaded`].
    pub(crate) fn from_value(value: GroupValue) -> Group {
        let mut group = Group::new(Now {
            monotonic_ms: 0,
            wall_ms: 0,
        });
        group.state = if value.members.is_empty() {
            GroupState::Empty
        } else {
            GroupState::Stable
        };
        group.state_since_ms = (value.state_timestamp_ms != -1).then_some(value.state_timestamp_ms);
        group.generation = value.generation;
        group.protocol_type = (!value.protocol_type.is_empty()).then_some(value.protocol_type);
        group.protocol = value.protocol;
        group.leader = value.leader;
        for member in value.members {
            let member = Member::from_value(member, group.protocol.as_deref());
            if let Some(instance) = &member.instance_id {
                group.static_members.insert(instance.clone(), member.id.clone());
            }
            group.members.insert(member.id.clone(), member);
        }
        group.subscribed = group.compute_subscribed();
        group
    }

    /// Starts the sessions of a group that was read from the log.
    pub(crate) fn loaded(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        for member in self.members.values_mut() {
            member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
        }
        // The limit may have been lowered; a rebalance lets members commit before some are refused.
        if self.members.len() > limits.group_max_size {
            self.prepare_rebalance(now, limits, fx);
        }
    }

    pub(crate) fn state(&self) -> GroupState {
        self.state
    }

    pub(crate) fn state_since_ms(&self) -> Option<i64> {
        self.state_since_ms
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> i32 {
        self.generation
    }

    pub(crate) fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    pub(crate) fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    #[cfg(test)]
    pub(crate) fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// No members, and none on the way.
    pub(crate) fn is_vacant(&self) -> bool {
        self.state == GroupState::Empty && self.members.is_empty() && self.pending_joins.is_empty()
    }

    pub(crate) fn speaks_consumer_protocol(&self) -> bool {
        self.protocol_type.as_deref() == Some(CONSUMER_PROTOCOL_TYPE)
    }

    pub(crate) fn knows_subscription(&self) -> bool {
        self.subscribed.is_some()
    }

    /// Whether a member consumes the topic; consumers whose subscription cannot be read may consume any.
    pub(crate) fn is_subscribed(&self, topic: &str) -> bool {
        match &self.subscribed {
            Some(topics) => topics.contains(topic),
            None => self.speaks_consumer_protocol(),
        }
    }

    /// Marks the group while its tombstone is being stored.
    pub(crate) fn bury(&mut self, now: Now) {
        self.transition(GroupState::Dead, now);
    }

    /// Takes a deletion back that could not be stored.
    pub(crate) fn revive(&mut self, now: Now) {
        self.transition(GroupState::Empty, now);
    }

    /// Monotonic time of the earliest thing that [`Group::tick`] would do.
    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        let members = self.members.values().filter_map(|m| m.deadline_ms).min();
        let pending = self.pending_joins.values().copied().min();
        let join = self.join_timer.map(JoinTimer::at_ms);
        [members, pending, join, self.sync_timer_ms]
            .into_iter()
            .flatten()
            .min()
    }

    /// The stored form of the current generation with the given assignments.
    fn to_value(&self, assignment: impl Fn(&Member) -> Bytes) -> GroupValue {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        GroupValue {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp_ms: self.state_since_ms.unwrap_or(-1),
            members: self
                .members
                .values()
                .map(|m| m.to_value(protocol, assignment(m)))
                .collect(),
        }
    }

    fn transition(&mut self, to: GroupState, now: Now) {
        self.previous = self.state;
        self.state = to;
        self.state_since_ms = Some(now.wall_ms);
    }

    fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    fn awaiting_joins(&self) -> usize {
        self.members
            .values()
            .filter(|m| m.awaiting_join.is_some())
            .count()
    }

    fn all_joined(&self) -> bool {
        self.pending_joins.is_empty() && self.members.values().all(|m| m.awaiting_join.is_some())
    }

    fn rebalance_timeout_ms(&self) -> i64 {
        self.members
            .values()
            .map(|m| i64::from(m.rebalance_timeout_ms))
            .max()
            .unwrap_or(0)
            .max(0)
    }

    fn validate_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance) = instance_id {
            match self.static_members.get(instance) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(current) if current != member_id => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ErrorCode::UnknownMemberId)
        }
    }

    fn restart_session(&mut self, member_id: &str, now: Now) {
        if let Some(member) = self.members.get_mut(member_id)
            // A parked request keeps the session already, and its answer starts it anew.
            && (member.deadline_ms.is_some() || !member.satisfies_heartbeat())
        {
            member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
        }
    }

    fn compute_subscribed(&self) -> Option<BTreeSet<String>> {
        if !self.speaks_consumer_protocol() {
            return None;
        }
        if self.members.is_empty() {
            return Some(BTreeSet::new());
        }
        let protocol = self.protocol.as_deref()?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(subscribed_topics(&member.metadata(protocol))?);
        }
        Some(topics)
    }
}

fn session_end(timeout_ms: i32, now: Now) -> i64 {
    now.monotonic_ms + i64::from(timeout_ms.max(1))
}
