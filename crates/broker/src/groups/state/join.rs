//! JoinGroup: new members, known ones, and static ones that come back.

use bytes::Bytes;

use super::{
    Group, GroupEffects, GroupState, Join, JoinReply, Limits, MEMBER_ID_PREFIX_MAX,
    NEW_MEMBER_JOIN_TIMEOUT_MS, Now, PENDING_MEMBERS_MAX, SyncReply, Then, session_end,
};
use crate::errors::ErrorCode;
use crate::groups::member::{Member, ReplyId};

impl Group {
    /// Answers through `fx`, now or when the rebalance ends.
    pub(crate) fn join(
        &mut self,
        request: Join,
        reply: ReplyId,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        if self.state == GroupState::Dead {
            fx.joins.push((
                reply,
                JoinReply::error(ErrorCode::CoordinatorNotAvailable, &request.member_id),
            ));
            return;
        }
        if !self.accepts(&request.member_id, limits) {
            self.remove(&request.member_id, fx);
            fx.joins
                .push((reply, JoinReply::error(ErrorCode::GroupMaxSizeReached, "")));
            self.maybe_complete_join(now, limits, fx);
            return;
        }
        if !self.supports_protocols(&request) {
            let error = JoinReply::error(ErrorCode::InconsistentGroupProtocol, &request.member_id);
            fx.joins.push((reply, error));
            return;
        }
        if request.member_id.is_empty() {
            self.join_new(request, reply, now, limits, fx);
        } else {
            self.join_existing(request, reply, now, limits, fx);
        }
    }

    /// Members that already wait are kept; others are let in while there is room. While a rebalance is
    /// prepared the waiting ones count, so that the last to rejoin an oversized group are refused.
    pub(super) fn accepts(&self, member_id: &str, limits: &Limits) -> bool {
        if member_id.is_empty() && self.pending_joins.len() >= PENDING_MEMBERS_MAX {
            return false;
        }
        match self.state {
            GroupState::Empty | GroupState::Dead => true,
            GroupState::PreparingRebalance => {
                self.members
                    .get(member_id)
                    .is_some_and(|m| m.awaiting_join.is_some())
                    || self.awaiting_joins() < limits.group_max_size
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                self.members.contains_key(member_id) || self.members.len() < limits.group_max_size
            }
        }
    }

    pub(super) fn supports_protocols(&self, request: &Join) -> bool {
        if self.state == GroupState::Empty {
            return !request.protocol_type.is_empty() && !request.protocols.is_empty();
        }
        self.protocol_type
            .as_deref()
            .is_none_or(|ours| ours == request.protocol_type)
            && request
                .protocols
                .iter()
                .any(|p| self.members.values().all(|m| m.supports(&p.name)))
    }

    pub(super) fn join_new(
        &mut self,
        request: Join,
        reply: ReplyId,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        let prefix = request.instance_id.as_deref().unwrap_or(&request.client_id);
        let cut = prefix.floor_char_boundary(MEMBER_ID_PREFIX_MAX);
        let new_id = format!("{}-{}", &prefix[..cut], request.unique);
        if let Some(instance) = &request.instance_id {
            match self.static_members.get(instance).cloned() {
                Some(old_id) => self.replace_static(&old_id, new_id, request, reply, now, limits, fx),
                None => self.add_member(new_id, request, reply, now, limits, fx),
            }
        } else if request.requires_known_member_id {
            let lapses = session_end(request.session_timeout_ms, now);
            self.pending_joins.insert(new_id.clone(), lapses);
            fx.joins
                .push((reply, JoinReply::error(ErrorCode::MemberIdRequired, &new_id)));
        } else {
            self.add_member(new_id, request, reply, now, limits, fx);
        }
    }

    pub(super) fn join_existing(
        &mut self,
        request: Join,
        reply: ReplyId,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        let member_id = request.member_id.clone();
        if self.pending_joins.contains_key(&member_id) {
            // An id that was handed out belongs to a dynamic member.
            if request.instance_id.is_some() {
                fx.joins
                    .push((reply, JoinReply::error(ErrorCode::UnknownMemberId, &member_id)));
            } else {
                self.add_member(member_id, request, reply, now, limits, fx);
            }
            return;
        }
        if let Err(error) = self.validate_member(&member_id, request.instance_id.as_deref()) {
            fx.joins.push((reply, JoinReply::error(error, &member_id)));
            return;
        }
        let same = self
            .members
            .get(&member_id)
            .is_some_and(|m| m.protocols == request.protocols);
        match self.state {
            // The answer to its first try was lost: give it again.
            GroupState::CompletingRebalance if same => {
                let answer = self.current_generation(&member_id);
                fx.joins.push((reply, answer));
            }
            // A leader may ask for a rebalance for reasons that only it knows.
            GroupState::Stable if same && !self.is_leader(&member_id) => {
                let answer = self.current_generation(&member_id);
                fx.joins.push((reply, answer));
            }
            GroupState::PreparingRebalance | GroupState::CompletingRebalance | GroupState::Stable => {
                self.update_member(&member_id, request, reply, fx);
                self.prepare_or_complete(now, limits, fx);
            }
            GroupState::Empty | GroupState::Dead => {
                fx.joins
                    .push((reply, JoinReply::error(ErrorCode::UnknownMemberId, &member_id)));
            }
        }
    }

    /// The join answer of the current generation; the leader gets the members too.
    pub(super) fn current_generation(&self, member_id: &str) -> JoinReply {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let members = if self.is_leader(member_id) {
            let row = |m: &Member| (m.id.clone(), m.instance_id.clone(), m.metadata(protocol));
            self.members.values().map(row).collect()
        } else {
            Vec::new()
        };
        JoinReply {
            error: ErrorCode::None,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members,
        }
    }

    pub(super) fn add_member(
        &mut self,
        id: String,
        request: Join,
        reply: ReplyId,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        if self.state == GroupState::PreparingRebalance && self.previous == GroupState::Empty {
            self.new_member_added = true;
        }
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type);
        }
        if let Some(instance) = &request.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        self.pending_joins.remove(&id);
        self.leader.get_or_insert_with(|| id.clone());
        let member = Member {
            id: id.clone(),
            instance_id: request.instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            rebalance_timeout_ms: request.rebalance_timeout_ms,
            session_timeout_ms: request.session_timeout_ms,
            protocols: request.protocols,
            assignment: Bytes::new(),
            is_new: true,
            deadline_ms: Some(now.monotonic_ms + NEW_MEMBER_JOIN_TIMEOUT_MS),
            awaiting_join: Some(reply),
            awaiting_sync: None,
        };
        self.members.insert(id, member);
        self.prepare_or_complete(now, limits, fx);
    }

    pub(super) fn update_member(
        &mut self,
        member_id: &str,
        request: Join,
        reply: ReplyId,
        fx: &mut GroupEffects,
    ) {
        let Some(member) = self.members.get_mut(member_id) else {
            fx.joins
                .push((reply, JoinReply::error(ErrorCode::UnknownMemberId, member_id)));
            return;
        };
        member.protocols = request.protocols;
        member.rebalance_timeout_ms = request.rebalance_timeout_ms;
        member.session_timeout_ms = request.session_timeout_ms;
        // Only the newest of a member's requests waits; the connection of the older one is gone.
        if let Some(older) = member.awaiting_join.replace(reply) {
            fx.joins
                .push((older, JoinReply::error(ErrorCode::RebalanceInProgress, member_id)));
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one join request with what its decision may read"
    )]
    pub(super) fn replace_static(
        &mut self,
        old_id: &str,
        new_id: String,
        request: Join,
        reply: ReplyId,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        let Some(mut member) = self.members.remove(old_id) else {
            fx.joins
                .push((reply, JoinReply::error(ErrorCode::UnknownMemberId, "")));
            return;
        };
        // Fence the predecessor at once, in case it waits for an answer.
        if let Some(parked) = member.awaiting_join.take() {
            fx.joins
                .push((parked, JoinReply::error(ErrorCode::FencedInstanceId, old_id)));
        }
        if let Some(parked) = member.awaiting_sync.take() {
            fx.syncs
                .push((parked, SyncReply::error(ErrorCode::FencedInstanceId)));
        }
        let before = Box::new(member.clone());
        let old_leader = self.leader.clone().unwrap_or_default();
        if self.is_leader(old_id) {
            self.leader = Some(new_id.clone());
        }
        self.pending_syncs.remove(old_id);
        if let Some(instance) = &member.instance_id {
            self.static_members.insert(instance.clone(), new_id.clone());
        }
        let skips = request.supports_skipping_assignment;
        member.id = new_id.clone();
        member.protocols = request.protocols;
        member.rebalance_timeout_ms = request.rebalance_timeout_ms;
        member.session_timeout_ms = request.session_timeout_ms;
        member.client_id = request.client_id;
        member.client_host = request.client_host;
        member.is_new = false;
        member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
        member.awaiting_join = Some(reply);
        self.members.insert(new_id.clone(), member);

        match self.state {
            GroupState::Stable if self.select_protocol() == self.protocol => {
                // The assignment stays as it is: store who holds it, then answer, without a rebalance.
                let mut answer = self.current_generation(&new_id);
                if skips {
                    answer.skip_assignment = self.is_leader(&new_id);
                } else {
                    // An older leader would assign anew; naming its former id makes it a follower.
                    answer.leader = old_leader;
                    answer.members = Vec::new();
                }
                let value = self.to_value(|m| m.assignment.clone());
                let (generation, answer) = (self.generation, Box::new(answer));
                fx.persist = Some((
                    value,
                    Then::Replace {
                        generation,
                        before,
                        new_id,
                        reply,
                        answer,
                    },
                ));
            }
            // The leader may be assigning partitions to the old id right now.
            GroupState::Stable | GroupState::CompletingRebalance => self.prepare_rebalance(now, limits, fx),
            _ => self.maybe_complete_join(now, limits, fx),
        }
    }
}
