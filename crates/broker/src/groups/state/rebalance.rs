//! How a generation ends and the next one begins.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    Group, GroupEffects, GroupState, JoinReply, JoinTimer, Limits, Now, REBALANCE_RETRY_MIN_MS, SyncReply,
    Then, session_end,
};
use crate::errors::ErrorCode;
use crate::groups::member::Member;

impl Group {
    pub(super) fn prepare_or_complete(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        match self.state {
            GroupState::Empty | GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(now, limits, fx);
            }
            GroupState::PreparingRebalance => self.maybe_complete_join(now, limits, fx),
            GroupState::Dead => {}
        }
    }

    pub(super) fn prepare_rebalance(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        fx.rebalances += 1;
        if self.state == GroupState::CompletingRebalance {
            self.reset_assignments(ErrorCode::RebalanceInProgress, now, fx);
        }
        self.pending_syncs.clear();
        self.sync_timer_ms = None;
        let initial = self.state == GroupState::Empty;
        self.transition(GroupState::PreparingRebalance, now);
        if !initial {
            if self.all_joined() {
                self.complete_join(now, limits, fx);
            } else {
                let at_ms = now.monotonic_ms + self.rebalance_timeout_ms();
                self.join_timer = Some(JoinTimer::Rebalance { at_ms });
            }
            return;
        }
        let delay_ms = limits.initial_rebalance_delay_ms;
        if delay_ms <= 0 {
            self.complete_join(now, limits, fx);
        } else {
            let remaining_ms = (self.rebalance_timeout_ms() - delay_ms).max(0);
            let at_ms = now.monotonic_ms + delay_ms;
            self.join_timer = Some(JoinTimer::Initial {
                at_ms,
                delay_ms,
                remaining_ms,
            });
        }
    }

    /// Ends the join phase early when everybody is there; the first rebalance of a group sits its delay out.
    pub(super) fn maybe_complete_join(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        if self.state == GroupState::PreparingRebalance
            && self.previous != GroupState::Empty
            && self.all_joined()
        {
            self.complete_join(now, limits, fx);
        }
    }

    pub(super) fn join_timer_fired(
        &mut self,
        timer: JoinTimer,
        now: Now,
        limits: &Limits,
        fx: &mut GroupEffects,
    ) {
        self.join_timer = None;
        if let JoinTimer::Initial {
            delay_ms,
            remaining_ms,
            ..
        } = timer
            && self.new_member_added
            && remaining_ms > 0
        {
            self.new_member_added = false;
            let next = limits.initial_rebalance_delay_ms.min(remaining_ms).max(1);
            self.join_timer = Some(JoinTimer::Initial {
                at_ms: now.monotonic_ms + next,
                delay_ms: next,
                remaining_ms: (remaining_ms - delay_ms).max(0),
            });
        } else {
            self.complete_join(now, limits, fx);
        }
    }

    pub(super) fn complete_join(&mut self, now: Now, limits: &Limits, fx: &mut GroupEffects) {
        self.join_timer = None;
        self.new_member_added = false;
        if self.state != GroupState::PreparingRebalance {
            return;
        }
        let late: Vec<String> = self
            .members
            .values()
            .filter(|m| m.awaiting_join.is_none() && m.instance_id.is_none())
            .map(|m| m.id.clone())
            .collect();
        for id in late {
            self.remove(&id, fx);
        }
        if self.members.is_empty() {
            self.generation = self.generation.wrapping_add(1).max(0);
            self.protocol = None;
            self.subscribed = self.compute_subscribed();
            self.transition(GroupState::Empty, now);
            fx.persist = Some((self.to_value(|_| Bytes::new()), Then::Nothing));
            return;
        }
        if !self.elect_joined_leader() {
            // Only static members that did not come back: their sessions decide.
            let wait = self.rebalance_timeout_ms().max(REBALANCE_RETRY_MIN_MS);
            self.join_timer = Some(JoinTimer::Rebalance {
                at_ms: now.monotonic_ms + wait,
            });
            return;
        }
        self.begin_generation(now, limits, fx);
    }

    pub(super) fn begin_generation(&mut self, now: Now, _limits: &Limits, fx: &mut GroupEffects) {
        self.generation = self.generation.wrapping_add(1).max(0);
        self.protocol = self.select_protocol();
        self.subscribed = self.compute_subscribed();
        self.transition(GroupState::CompletingRebalance, now);
        self.pending_syncs = self.members.keys().cloned().collect();
        self.assigning = None;
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.current_generation(&id);
            if let Some(member) = self.members.get_mut(&id) {
                if let Some(reply) = member.awaiting_join.take() {
                    fx.joins.push((reply, answer));
                }
                member.is_new = false;
                member.deadline_ms = Some(session_end(member.session_timeout_ms, now));
            }
        }
        let wait = self.rebalance_timeout_ms().max(1);
        self.sync_timer_ms = Some(now.monotonic_ms + wait);
    }

    /// Whether there is a leader that joined; picks one if the old one did not.
    pub(super) fn elect_joined_leader(&mut self) -> bool {
        let joined = |m: &Member| m.awaiting_join.is_some();
        let current = self.leader.as_ref().and_then(|id| self.members.get(id));
        if current.is_some_and(joined) {
            return true;
        }
        match self.members.values().find(|m| joined(m)) {
            Some(member) => {
                self.leader = Some(member.id.clone());
                true
            }
            None => false,
        }
    }

    /// The protocol that all members offer and most prefer; ties go to the first by name.
    pub(super) fn select_protocol(&self) -> Option<String> {
        let first = self.members.values().next()?;
        let candidates: BTreeSet<&str> = first
            .protocols
            .iter()
            .map(|p| p.name.as_str())
            .filter(|name| self.members.values().all(|m| m.supports(name)))
            .collect();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(name) = member.vote(&candidates) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        votes
            .into_iter()
            .find(|(_, count)| *count == most)
            .map(|(name, _)| name.to_owned())
    }

    /// Takes a member, or an id that was handed out, away. Nobody is left waiting.
    pub(super) fn remove(&mut self, member_id: &str, fx: &mut GroupEffects) {
        if let Some(member) = self.members.remove(member_id) {
            if let Some(reply) = member.awaiting_join {
                fx.joins
                    .push((reply, JoinReply::error(ErrorCode::UnknownMemberId, "")));
            }
            if let Some(reply) = member.awaiting_sync {
                fx.syncs
                    .push((reply, SyncReply::error(ErrorCode::UnknownMemberId)));
            }
            if let Some(instance) = &member.instance_id {
                self.static_members.remove(instance);
            }
            if self.is_leader(member_id) {
                self.leader = self.members.keys().next().cloned();
            }
        }
        self.pending_joins.remove(member_id);
        self.pending_syncs.remove(member_id);
    }
}
