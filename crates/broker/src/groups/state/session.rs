//! What members say between rebalances, and what happens when they fall silent.

use super::{Group, GroupEffects, GroupState, JoinReply, JoinTimer, Limits, Now, SyncReply, session_end};
use crate::errors::ErrorCode;

impl Group {
    /// The error code of a Heartbeat.
    pub(crate) fn heartbeat(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Now,
    ) -> ErrorCode {
        if self.state == GroupState::Dead {
            return ErrorCode::CoordinatorNotAvailable;
        }
        if let Err(error) = self.validate_member(member_id, instance_id) {
            return error;
        }
        if generation != self.generation {
            return ErrorCode::IllegalGeneration;
        }
        self.restart_session(member_id, now);
        match self.state {
            GroupState::PreparingRebalance => ErrorCode::RebalanceInProgress,
            GroupState::CompletingRebalance | GroupState::Stable => ErrorCode::None,
            GroupState::Empty | GroupState::Dead => ErrorCode::UnknownMemberId,
        }
    }

    /// Removes members by id, or static ones by instance id; one error code each.
    pub(crate) fn leave(
        &mut self,
        leaving: &[(String, Option<String>)],
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) -> Vec<ErrorCode> {
        let mut codes = Vec::with_capacity(leaving.len());
        for (member_id, instance_id) in leaving {
            codes.push(self.leave_one(member_id, instance_id.as_deref(), fx));
        }
        if codes.contains(&ErrorCode::None) {
            match self.state {
                GroupState::Stable | GroupState::CompletingRebalance => {
                    // Without members, pending ones included, the group empties at once.
                    self.prepare_or_complete(now, limits, fx);
                }
                GroupState::PreparingRebalance => self.maybe_complete_join(now, limits, fx),
                GroupState::Empty | GroupState::Dead => {}
            }
        }
        codes
    }

    pub(super) fn leave_one(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        fx: &mut GroupEffects,
    ) -> ErrorCode {
        if self.state == GroupState::Dead {
            return ErrorCode::CoordinatorNotAvailable;
        }
        if member_id.is_empty() {
            // An administrator removes a static member whose id it does not know.
            let known = instance.and_then(|instance| self.static_members.get(instance).cloned());
            return match known {
                Some(id) => {
                    self.remove(&id, fx);
                    ErrorCode::None
                }
                None => ErrorCode::UnknownMemberId,
            };
        }
        if !self.pending_joins.contains_key(member_id)
            && let Err(error) = self.validate_member(member_id, instance)
        {
            return error;
        }
        self.remove(member_id, fx);
        ErrorCode::None
    }

    /// Whether an OffsetCommit of this member and generation counts; if so its session goes on.
    pub(crate) fn validate_commit(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Now,
    ) -> Result<(), ErrorCode> {
        if self.state == GroupState::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        if generation < 0 && self.state == GroupState::Empty {
            // Tools, and consumers that assign partitions to themselves.
            return Ok(());
        }
        if generation < 0 && member_id.is_empty() && instance_id.is_none() {
            return Err(ErrorCode::UnknownMemberId);
        }
        self.validate_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        if self.state == GroupState::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        self.restart_session(member_id, now);
        Ok(())
    }

    /// Does what has fallen due.
    pub(crate) fn tick(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        let due = |at: i64| at <= now.monotonic_ms;
        if self.sync_timer_ms.is_some_and(due) {
            self.expire_pending_syncs(now, limits, fx);
        }
        let lapsed: Vec<String> = self
            .pending_joins
            .iter()
            .filter(|(_, at)| due(**at))
            .map(|(id, _)| id.clone())
            .collect();
        for id in lapsed {
            self.remove(&id, fx);
            self.complete_if_last(now, limits, fx);
        }
        let silent: Vec<String> = self
            .members
            .values()
            .filter(|m| m.deadline_ms.is_some_and(due))
            .map(|m| m.id.clone())
            .collect();
        for id in silent {
            self.session_ended(&id, now, limits, fx);
        }
        if let Some(timer) = self.join_timer
            && due(timer.at_ms())
        {
            self.join_timer_fired(timer, now, limits, fx);
        }
    }

    /// What members said was refused until then: sessions, and rebalances that wait for members, begin anew there.
    pub(crate) fn unheard(&mut self, until: Now) {
        for member in self.members.values_mut() {
            let again = session_end(member.session_timeout_ms, until);
            member.deadline_ms = member.deadline_ms.map(|at| at.max(again));
        }
        let again = until.monotonic_ms + self.rebalance_timeout_ms();
        self.sync_timer_ms = self.sync_timer_ms.map(|at| at.max(again));
        if let Some(JoinTimer::Rebalance { at_ms }) = &mut self.join_timer {
            *at_ms = (*at_ms).max(again);
        }
    }

    pub(super) fn complete_if_last(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        if self.state == GroupState::PreparingRebalance && self.all_joined() {
            self.complete_join(now, limits, fx);
        }
    }

    pub(super) fn session_ended(
        &mut self,
        member_id: &str,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        // An earlier expiry of the same tick may have moved it.
        if member.deadline_ms.is_none_or(|at| at > now.monotonic_ms) {
            return;
        }
        if member.satisfies_heartbeat() {
            member.deadline_ms = None;
            return;
        }
        self.remove(member_id, fx);
        match self.state {
            GroupState::Stable | GroupState::CompletingRebalance => self.prepare_rebalance(now, limits, fx),
            _ => self.complete_if_last(now, limits, fx),
        }
    }

    pub(super) fn expire_pending_syncs(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        self.sync_timer_ms = None;
        let late = std::mem::take(&mut self.pending_syncs);
        if late.is_empty() {
            return;
        }
        for id in &late {
            self.remove(id, fx);
        }
        if matches!(self.state, GroupState::CompletingRebalance | GroupState::Stable) {
            self.prepare_rebalance(now, limits, fx);
        }
    }

    /// Answers everybody who waits; the group moves to another coordinator.
    pub(crate) fn unload(&mut self, error: ErrorCode, fx: &mut GroupEffects) {
        for member in self.members.values_mut() {
            if let Some(reply) = member.awaiting_join.take() {
                fx.joins.push((reply, JoinReply::error(error, &member.id)));
            }
            if let Some(reply) = member.awaiting_sync.take() {
                fx.syncs.push((reply, SyncReply::error(error)));
            }
        }
    }
}
