//! SyncGroup: the leader's assignment, its storing, and what depends on that.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Group, GroupEffects, GroupState, JoinReply, Limits, Now, Sync, SyncReply, Then, session_end};
use crate::errors::ErrorCode;
use crate::groups::member::{Member, ReplyId};

impl Group {
    /// Answers through `fx`, now or when the leader's assignment is stored.
    pub(crate) fn sync(&mut self, request: Sync, reply: ReplyId, now: Now, fx: &mut GroupEffects) {
        if let Err(error) = self.validate_sync(&request) {
            fx.syncs.push((reply, SyncReply::error(error)));
            return;
        }
        match self.state {
            GroupState::PreparingRebalance => {
                fx.syncs
                    .push((reply, SyncReply::error(ErrorCode::RebalanceInProgress)));
            }
            GroupState::CompletingRebalance => {
                self.synced(&request.member_id);
                if let Some(member) = self.members.get_mut(&request.member_id)
                    && let Some(older) = member.awaiting_sync.replace(reply)
                {
                    fx.syncs
                        .push((older, SyncReply::error(ErrorCode::RebalanceInProgress)));
                }
                // A leader that asks twice must not have two assignments in the log.
                if self.is_leader(&request.member_id) && self.assigning != Some(self.generation) {
                    self.store_assignment(request, now, fx);
                }
            }
            GroupState::Stable => {
                self.synced(&request.member_id);
                let assignment = self.members.get(&request.member_id).map(|m| m.assignment.clone());
                let answer = self.sync_answer(assignment.unwrap_or_default());
                fx.syncs.push((reply, answer));
            }
            GroupState::Empty | GroupState::Dead => {
                fx.syncs
                    .push((reply, SyncReply::error(ErrorCode::UnknownMemberId)));
            }
        }
    }

    pub(super) fn validate_sync(&self, request: &Sync) -> Result<(), ErrorCode> {
        if self.state == GroupState::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.validate_member(&request.member_id, request.instance_id.as_deref())?;
        if request.generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        let differs = |theirs: &Option<String>, ours: &Option<String>| theirs.is_some() && theirs != ours;
        if differs(&request.protocol_type, &self.protocol_type) || differs(&request.protocol, &self.protocol)
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    pub(super) fn synced(&mut self, member_id: &str) {
        self.pending_syncs.remove(member_id);
        if self.pending_syncs.is_empty() {
            self.sync_timer_ms = None;
        }
    }

    pub(super) fn store_assignment(&mut self, request: Sync, now: Now, fx: &mut GroupEffects) {
        let mut given: BTreeMap<String, Bytes> = request.assignments.into_iter().collect();
        let assignments: BTreeMap<String, Bytes> = self
            .members
            .keys()
            .map(|id| (id.clone(), given.remove(id).unwrap_or_default()))
            .collect();
        let mut value = self.to_value(|m| assignments.get(&m.id).cloned().unwrap_or_default());
        value.state_timestamp_ms = now.wall_ms;
        let generation = self.generation;
        self.assigning = Some(generation);
        fx.persist = Some((
            value,
            Then::Assign {
                generation,
                assignments,
            },
        ));
    }

    pub(super) fn sync_answer(&self, assignment: Bytes) -> SyncReply {
        SyncReply {
            error: ErrorCode::None,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment,
        }
    }

    pub(super) fn reset_assignments(&mut self, error: ErrorCode, now: Now, fx: &mut GroupEffects) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
            if let Some(reply) = member.awaiting_sync.take() {
                member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
                fx.syncs.push((reply, SyncReply::error(error)));
            }
        }
    }

    /// The outcome of storing a generation. The caller passes the time of the publication.
    pub(crate) fn persisted(
        &mut self,
        then: Then,
        outcome: Result<(), ErrorCode>,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        match then {
            Then::Nothing => {}
            Then::Assign {
                generation,
                assignments,
            } => {
                // Another rebalance may have begun meanwhile: then its outcome counts.
                if self.state == GroupState::CompletingRebalance && self.generation == generation {
                    self.assigned(assignments, outcome, now, limits, fx);
                }
            }
            Then::Replace {
                generation,
                before,
                new_id,
                reply,
                answer,
            } => {
                self.replaced(generation, *before, &new_id, reply, *answer, outcome, now, fx);
            }
        }
    }

    pub(super) fn assigned(
        &mut self,
        mut assignments: BTreeMap<String, Bytes>,
        outcome: Result<(), ErrorCode>,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        self.assigning = None;
        if let Err(error) = outcome {
            self.reset_assignments(error, now, fx);
            self.prepare_rebalance(now, limits, fx);
            return;
        }
        self.transition(GroupState::Stable, now);
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let assignment = assignments.remove(&id).unwrap_or_default();
            let answer = self.sync_answer(assignment.clone());
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
                if let Some(reply) = member.awaiting_sync.take() {
                    member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
                    fx.syncs.push((reply, answer));
                }
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of Then::Replace and its outcome"
    )]
    pub(super) fn replaced(
        &mut self,
        generation: i32,
        mut before: Member,
        new_id: &str,
        reply: ReplyId,
        answer: JoinReply,
        outcome: Result<(), ErrorCode>,
        now: Now,
        fx: &mut GroupEffects,
    ) {
        let settled = self.state == GroupState::Stable && self.generation == generation;
        let Some(member) = self.members.get_mut(new_id) else {
            return;
        };
        let waits = member.awaiting_join == Some(reply);
        match outcome {
            // A rebalance that began meanwhile answers the member when it ends.
            Ok(()) if settled && waits => {
                member.awaiting_join = None;
                member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
                fx.joins.push((reply, answer));
            }
            Err(error) if settled => {
                if waits {
                    fx.joins.push((reply, JoinReply::error(error, "")));
                } else if let Some(parked) = member.awaiting_join {
                    fx.joins.push((parked, JoinReply::error(error, "")));
                }
                if let Some(parked) = member.awaiting_sync {
                    fx.syncs.push((parked, SyncReply::error(error)));
                }
                self.members.remove(new_id);
                if self.is_leader(new_id) {
                    self.leader = Some(before.id.clone());
                }
                if let Some(instance) = &before.instance_id {
                    self.static_members.insert(instance.clone(), before.id.clone());
                }
                before.deadline_ms = Some(session_end(before.session_timeout_ms, now));
                self.members.insert(before.id.clone(), before);
            }
            _ => {}
        }
    }
}
