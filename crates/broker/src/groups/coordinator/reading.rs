//! What can be asked about groups. Nothing here changes them.

use std::collections::BTreeMap;

use alluvium_log::TopicId;
use bytes::Bytes;

use super::{Inner, Slot};
use crate::errors::ErrorCode;
use crate::groups::offsets::Committed;
use crate::groups::state::{Group, GroupState};

/// A group as DescribeGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupDescription {
    pub(crate) state: GroupState,
    pub(crate) protocol_type: String,
    /// Only of a stable group.
    pub(crate) protocol: String,
    pub(crate) members: Vec<MemberDescription>,
}

/// A member as DescribeGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberDescription {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
}

/// A group as ListGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupListing {
    pub(crate) group: String,
    pub(crate) protocol_type: String,
    pub(crate) state: GroupState,
}

/// Topic and its partitions, each with the published offset if there is one.
pub(crate) type FetchedTopic = (String, Vec<(i32, Option<Committed>)>);

impl Inner {
    /// Published offsets of a group: of what is asked for, or all. With `require_stable` commits that are on
    /// their way are waited for first, so that the answer includes them.
    pub(crate) async fn fetch(
        &self,
        group: &str,
        wanted: Option<Vec<(String, Vec<i32>)>>,
        require_stable: bool,
    ) -> Result<Vec<FetchedTopic>, ErrorCode> {
        let shard = self.shard(group)?;
        // Members begin to read at what this says: it must not come from a coordinator that was succeeded by
        // another one without noticing (section 5 of the design, interleaving 15).
        if !self.engine.confirm_leadership(shard.partition, shard.epoch).await {
            return Err(ErrorCode::NotCoordinator);
        }
        if require_stable {
            shard.barrier().await?;
        }
        let guarded = shard.guarded.lock();
        if guarded.publications.is_none() {
            return Err(ErrorCode::NotCoordinator);
        }
        if let Some(wanted) = wanted {
            let of_topic = |(topic, partitions): (String, Vec<i32>)| {
                let id = self.engine.topic(&topic).map(|info| info.id);
                let of_partition = |partition| {
                    let committed = guarded.shard.committed(group, &topic, partition);
                    (partition, committed.filter(|c| is_current(c, id)).cloned())
                };
                let rows = partitions.into_iter().map(of_partition).collect();
                (topic, rows)
            };
            return Ok(wanted.into_iter().map(of_topic).collect());
        }
        let mut topics: BTreeMap<String, Vec<(i32, Option<Committed>)>> = BTreeMap::new();
        for (topic, partition, committed) in guarded.shard.all_committed(group) {
            let id = self.engine.topic(topic).map(|info| info.id);
            if is_current(committed, id) {
                topics
                    .entry(topic.to_owned())
                    .or_default()
                    .push((partition, Some(committed.clone())));
            }
        }
        Ok(topics.into_iter().collect())
    }

    /// `Ok(None)`: there is no such group.
    pub(crate) fn describe(&self, group: &str) -> Result<Option<GroupDescription>, ErrorCode> {
        let shard = self.shard(group)?;
        let guarded = shard.guarded.lock();
        Ok(guarded
            .shard
            .group(group)
            .filter(|g| g.state() != GroupState::Dead)
            .map(describe_group))
    }

    /// All groups that are coordinated here. What is damaged may stay so for long, and must not hide all the others.
    pub(crate) fn list(&self) -> Result<Vec<GroupListing>, ErrorCode> {
        let is_loading = |(partition, slot): (&i32, &Slot)| match slot {
            Slot::Loading { .. } => Some(*partition),
            Slot::Active(_) => None,
        };
        let loading: Vec<i32> = self.slots.lock().iter().filter_map(is_loading).collect();
        if !loading.iter().all(|p| self.engine.is_quarantined(*p)) {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        let mut listings = Vec::new();
        for shard in self.active_shards() {
            let guarded = shard.guarded.lock();
            for (name, group, _) in guarded.shard.groups() {
                listings.push(GroupListing {
                    group: name.to_owned(),
                    protocol_type: group.protocol_type().unwrap_or_default().to_owned(),
                    state: group.state(),
                });
            }
        }
        listings.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(listings)
    }

    pub(crate) fn groups_by_state(&self) -> BTreeMap<&'static str, i64> {
        let states = [
            GroupState::Empty,
            GroupState::PreparingRebalance,
            GroupState::CompletingRebalance,
            GroupState::Stable,
            GroupState::Dead,
        ];
        let mut counts: BTreeMap<&'static str, i64> = states.map(|state| (state.name(), 0)).into();
        for shard in self.active_shards() {
            for (_, group, _) in shard.guarded.lock().shard.groups() {
                *counts.entry(group.state().name()).or_default() += 1;
            }
        }
        counts
    }

    pub(crate) fn lag_by_group_and_topic(&self) -> BTreeMap<(String, String), i64> {
        let mut lags = BTreeMap::new();
        for shard in self.active_shards() {
            for (name, _, offsets) in shard.guarded.lock().shard.groups() {
                for (topic, partition, committed) in offsets.published() {
                    let id = self.engine.topic(topic).map(|info| info.id);
                    if let Some(end) = self.engine.high_watermark(topic, partition)
                        && is_current(committed, id)
                    {
                        let lag = end.saturating_sub(committed.value.offset).max(0);
                        *lags.entry((name.to_owned(), topic.to_owned())).or_insert(0) += lag;
                    }
                }
            }
        }
        lags
    }
}

/// Offsets of a deleted topic are not those of a new one with the same name.
fn is_current(committed: &Committed, topic_id: Option<TopicId>) -> bool {
    topic_id.is_some_and(|id| committed.is_for(id))
}

fn describe_group(group: &Group) -> GroupDescription {
    let stable = group.state() == GroupState::Stable;
    let protocol = group.protocol().filter(|_| stable).unwrap_or_default().to_owned();
    let members = group.members().map(|member| MemberDescription {
        member_id: member.id.clone(),
        instance_id: member.instance_id.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        metadata: if stable {
            member.metadata(&protocol)
        } else {
            Bytes::new()
        },
        assignment: member.assignment.clone(),
    });
    GroupDescription {
        state: group.state(),
        protocol_type: group.protocol_type().unwrap_or_default().to_owned(),
        members: members.collect(),
        protocol,
    }
}
