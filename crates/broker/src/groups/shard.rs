//! One partition of `__consumer_offsets`: all groups that it coordinates, as a pure state machine.
//!
//! [`Shard::apply`] takes a command and says what to answer and what to append. Appends are reported back,
//! in order, with [`Command::Appended`]: only then do offsets change, assignments go out and deletions
//! count. Replaying the published records gives the same offsets and generations ([`Shard::replay`]).

mod appends;
mod expiry;

use std::collections::{BTreeSet, HashMap};
use std::slice;
use std::sync::Arc;

use alluvium_log::TopicId;

use super::member::ReplyId;
use super::offsets::{Committed, Offsets};
use super::records::{EncodedRecord, LogRecord, OffsetValue};
use super::state::{Group, GroupEffects, GroupState, Join, JoinReply, Limits, Now, Sync, SyncReply, Then};
use crate::errors::ErrorCode;

/// Names an append until its outcome is known.
pub(crate) type AppendId = u64;

/// One offset of an OffsetCommit, its topic already resolved.
#[derive(Clone, Debug)]
pub(crate) struct OffsetToCommit {
    pub(crate) topic: String,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
}

/// An OffsetCommit request.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    /// -1 for commits outside group management.
    pub(crate) generation: i32,
    /// An own retention time (versions 2-4).
    pub(crate) retention_ms: Option<i64>,
    /// Version 9 and later name a missing group; before, the generation is called wrong.
    pub(crate) names_missing_group: bool,
    pub(crate) offsets: Vec<OffsetToCommit>,
}

/// What can happen to a shard.
#[derive(Debug)]
pub(crate) enum Command {
    Join {
        group: String,
        request: Join,
        reply: ReplyId,
    },
    Sync {
        group: String,
        request: Sync,
        reply: ReplyId,
    },
    Heartbeat {
        group: String,
        member_id: String,
        instance_id: Option<String>,
        generation: i32,
        reply: ReplyId,
    },
    /// Member id and instance id of each.
    Leave {
        group: String,
        members: Vec<(String, Option<String>)>,
        reply: ReplyId,
    },
    Commit {
        group: String,
        request: Commit,
        reply: ReplyId,
    },
    DeleteGroups {
        groups: Vec<String>,
        reply: ReplyId,
    },
    /// Topic and partition of each; all of topics that exist.
    DeleteOffsets {
        group: String,
        offsets: Vec<(String, i32)>,
        reply: ReplyId,
    },
    /// Sessions and rebalances whose time has come.
    Tick,
    /// What members said was refused until then: nobody has been silent for longer than since.
    Unheard(Now),
    /// Offsets and groups that nobody used for the retention time.
    Expire,
    /// Topics that are gone, by name and, where it was stored, id.
    DropTopics(BTreeSet<(String, Option<TopicId>)>),
    /// The outcome of an append.
    Appended {
        append: AppendId,
        outcome: Result<(), ErrorCode>,
    },
    /// The partition moves away: everybody who waits gets the error.
    Unload(ErrorCode),
}

/// An answer. Every command with a reply id gets exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Join(JoinReply),
    Sync(SyncReply),
    /// Heartbeat.
    Code(ErrorCode),
    /// One code per member, group or offset, in the order of the request.
    Codes(Vec<ErrorCode>),
    /// The request as a whole failed.
    Failed(ErrorCode),
}

impl Reply {
    fn codes(&self) -> &[ErrorCode] {
        match self {
            Reply::Join(reply) => slice::from_ref(&reply.error),
            Reply::Sync(reply) => slice::from_ref(&reply.error),
            Reply::Code(code) | Reply::Failed(code) => slice::from_ref(code),
            Reply::Codes(codes) => codes,
        }
    }

    /// Whether it tells of no error at all.
    pub(crate) fn is_success(&self) -> bool {
        self.codes().iter().all(|code| *code == ErrorCode::None)
    }

    /// Whether it tells a static member that another one has its place: clients end for good then.
    pub(crate) fn is_fencing(&self) -> bool {
        self.codes().contains(&ErrorCode::FencedInstanceId)
    }
}

/// Records to append as one batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) id: AppendId,
    pub(crate) records: Vec<EncodedRecord>,
}

/// What the owner of a shard has to do after a command: first the appends, in order, then the replies.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) appends: Vec<Append>,
    pub(crate) replies: Vec<(ReplyId, Reply)>,
    pub(crate) rebalances: u64,
    pub(crate) offsets_committed: u64,
    /// Commits answered without a write.
    pub(crate) offsets_unchanged: u64,
    pub(crate) offsets_expired: u64,
}

#[derive(Debug)]
struct Entry {
    group: Group,
    offsets: Offsets,
    /// The log holds a record of the group itself.
    stored: bool,
    /// Appends under way that touch the group.
    in_flight: u32,
    /// Where the group stands in the deadline queue.
    armed_ms: Option<i64>,
}

impl Entry {
    fn new(group: Group) -> Entry {
        Entry {
            group,
            offsets: Offsets::default(),
            stored: false,
            in_flight: 0,
            armed_ms: None,
        }
    }
}

/// An append under way.
#[derive(Debug)]
struct Pending {
    records: Vec<LogRecord>,
    then: Option<(String, Then)>,
    /// What to answer once it is published.
    replies: Vec<(ReplyId, Reply)>,
    /// Groups to forget once it is published, and to revive if it fails.
    buried: Vec<String>,
    /// An earlier part of the same request failed.
    doomed: Option<ErrorCode>,
    /// The last part of the same request, which answers for all.
    last: AppendId,
}

/// What to do after the last record of a request is published.
#[derive(Default)]
struct After {
    then: Option<(String, Then)>,
    replies: Vec<(ReplyId, Reply)>,
    buried: Vec<String>,
}

/// The groups of one partition.
#[derive(Debug)]
pub(crate) struct Shard {
    groups: HashMap<String, Entry>,
    pending: HashMap<AppendId, Pending>,
    next_append: AppendId,
    deadlines: BTreeSet<(i64, String)>,
    limits: Arc<Limits>,
    closed: Option<ErrorCode>,
}

impl Shard {
    pub(crate) fn new(limits: Arc<Limits>) -> Shard {
        Shard {
            groups: HashMap::new(),
            pending: HashMap::new(),
            next_append: 0,
            deadlines: BTreeSet::new(),
            limits,
            closed: None,
        }
    }

    // ---- Loading ----

    /// A record read back from the log, oldest first.
    pub(crate) fn replay(&mut self, record: LogRecord, now: Now) {
        match record {
            LogRecord::Offset {
                group,
                topic,
                partition,
                value,
            } => {
                if value.is_none() && !self.groups.contains_key(&group) {
                    return;
                }
                let entry = self
                    .groups
                    .entry(group)
                    .or_insert_with(|| Entry::new(Group::new(now)));
                entry.offsets.replay(&topic, partition, value);
            }
            LogRecord::Group {
                group,
                value: Some(value),
            } => {
                let entry = self
                    .groups
                    .entry(group)
                    .or_insert_with(|| Entry::new(Group::new(now)));
                entry.group = Group::from_value(value);
                entry.stored = true;
            }
            LogRecord::Group { group, value: None } => {
                if let Some(entry) = self.groups.get_mut(&group) {
                    entry.group = Group::new(now);
                    entry.stored = false;
                }
            }
        }
    }

    /// All records are replayed: sessions start now.
    pub(crate) fn loaded(&mut self, now: Now) -> Effects {
        let mut fx = Effects::default();
        let mut names: Vec<String> = self.groups.keys().cloned().collect();
        names.sort_unstable();
        for name in names {
            self.with_group(&name, now, &mut fx, |group, limits, gfx| {
                group.loaded(now, limits, gfx)
            });
        }
        fx
    }

    // ---- Reading ----

    /// Every group, in no order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&str, &Group, &Offsets)> {
        self.groups
            .iter()
            .map(|(name, entry)| (name.as_str(), &entry.group, &entry.offsets))
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name).map(|entry| &entry.group)
    }

    /// The published offset of a partition.
    pub(crate) fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<&Committed> {
        self.groups.get(group)?.offsets.get(topic, partition)
    }

    /// Every published offset of a group.
    pub(crate) fn all_committed(&self, group: &str) -> impl Iterator<Item = (&str, i32, &Committed)> {
        self.groups
            .get(group)
            .into_iter()
            .flat_map(|entry| entry.offsets.published())
    }

    /// Monotonic time at which [`Command::Tick`] is due. It may be earlier than needed, never later.
    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.first().map(|(at_ms, _)| *at_ms)
    }

    /// Topics, with the ids that were stored for them, that any group has offsets of.
    pub(crate) fn topics(&self) -> BTreeSet<(String, Option<TopicId>)> {
        let mut topics = BTreeSet::new();
        for entry in self.groups.values() {
            for (topic, _, committed) in entry.offsets.published() {
                topics.insert((topic.to_owned(), committed.value.topic_id));
            }
        }
        topics
    }

    // ---- Commands ----

    pub(crate) fn apply(&mut self, command: Command, now: Now) -> Effects {
        let mut fx = Effects::default();
        if let Some(error) = self.closed
            && !matches!(command, Command::Appended { .. })
        {
            if let Some(reply) = command.reply() {
                fx.replies.push((reply, Reply::Failed(error)));
            }
            return fx;
        }
        match command {
            Command::Join {
                group,
                request,
                reply,
            } => self.join(&group, request, reply, now, &mut fx),
            Command::Sync {
                group,
                request,
                reply,
            } => self.sync(&group, request, reply, now, &mut fx),
            Command::Heartbeat {
                group,
                member_id,
                instance_id,
                generation,
                reply,
            } => {
                let code = match self.groups.get_mut(&group) {
                    Some(entry) => entry
                        .group
                        .heartbeat(&member_id, instance_id.as_deref(), generation, now),
                    None => ErrorCode::UnknownMemberId,
                };
                // A session only gets longer here: the queued deadline is looked at again when it fires.
                fx.replies.push((reply, Reply::Code(code)));
            }
            Command::Leave {
                group,
                members,
                reply,
            } => self.leave(&group, &members, reply, now, &mut fx),
            Command::Commit {
                group,
                request,
                reply,
            } => self.commit(&group, request, reply, now, &mut fx),
            Command::DeleteGroups { groups, reply } => self.delete_groups(&groups, reply, now, &mut fx),
            Command::DeleteOffsets {
                group,
                offsets,
                reply,
            } => {
                self.delete_offsets(&group, &offsets, reply, now, &mut fx);
            }
            Command::Tick => self.tick(now, &mut fx),
            Command::Unheard(until) => {
                // Deadlines only get later here, as by a heartbeat.
                let groups = self.groups.values_mut();
                groups.for_each(|entry| entry.group.unheard(until));
            }
            Command::Expire => self.expire(now, &mut fx),
            Command::DropTopics(topics) => self.drop_topics(&topics, now, &mut fx),
            Command::Appended { append, outcome } => self.appended(append, outcome, now, &mut fx),
            Command::Unload(error) => self.unload(error, &mut fx),
        }
        fx
    }

    fn join(&mut self, name: &str, request: Join, reply: ReplyId, now: Now, fx: &mut Effects) {
        if !self.groups.contains_key(name) {
            if !request.member_id.is_empty() {
                let error = JoinReply::error(ErrorCode::UnknownMemberId, &request.member_id);
                fx.replies.push((reply, Reply::Join(error)));
                return;
            }
            self.groups.insert(name.to_owned(), Entry::new(Group::new(now)));
        }
        self.with_group(name, now, fx, |group, limits, gfx| {
            group.join(request, reply, now, limits, gfx)
        });
    }

    fn sync(&mut self, name: &str, request: Sync, reply: ReplyId, now: Now, fx: &mut Effects) {
        if !self.groups.contains_key(name) {
            fx.replies
                .push((reply, Reply::Sync(SyncReply::error(ErrorCode::UnknownMemberId))));
            return;
        }
        self.with_group(name, now, fx, |group, _, gfx| {
            group.sync(request, reply, now, gfx)
        });
    }

    fn leave(
        &mut self,
        name: &str,
        members: &[(String, Option<String>)],
        reply: ReplyId,
        now: Now,
        fx: &mut Effects,
    ) {
        if !self.groups.contains_key(name) {
            let codes = vec![ErrorCode::UnknownMemberId; members.len()];
            fx.replies.push((reply, Reply::Codes(codes)));
            return;
        }
        let mut codes = Vec::new();
        let appends = fx.appends.len();
        self.with_group(name, now, fx, |group, limits, gfx| {
            codes = group.leave(members, now, limits, gfx)
        });
        // When the last member left, the answer waits until the log says that the group is empty.
        match fx
            .appends
            .get(appends)
            .and_then(|append| self.pending.get_mut(&append.id))
        {
            Some(pending) => pending.replies.push((reply, Reply::Codes(codes))),
            None => fx.replies.push((reply, Reply::Codes(codes))),
        }
    }

    fn commit(&mut self, name: &str, request: Commit, reply: ReplyId, now: Now, fx: &mut Effects) {
        if !self.groups.contains_key(name) {
            if request.generation >= 0 {
                let error = if request.names_missing_group {
                    ErrorCode::GroupIdNotFound
                } else {
                    ErrorCode::IllegalGeneration
                };
                fx.replies.push((reply, Reply::Failed(error)));
                return;
            }
            self.groups.insert(name.to_owned(), Entry::new(Group::new(now)));
        }
        let Some(entry) = self.groups.get_mut(name) else {
            return;
        };
        let instance = request.instance_id.as_deref();
        let valid = entry
            .group
            .validate_commit(&request.member_id, instance, request.generation, now);
        if let Err(error) = valid {
            fx.replies.push((reply, Reply::Failed(error)));
            self.settle(name);
            return;
        }
        let expire_timestamp_ms = request.retention_ms.map(|ms| now.wall_ms.saturating_add(ms));
        let mut codes = Vec::with_capacity(request.offsets.len());
        let mut records = Vec::new();
        for offset in request.offsets {
            let too_large = offset.metadata.encode_utf16().count() > self.limits.offset_metadata_max
                || offset.metadata.len() > i16::MAX as usize;
            if too_large {
                codes.push(ErrorCode::OffsetMetadataTooLarge);
                continue;
            }
            codes.push(ErrorCode::None);
            let value = OffsetValue {
                offset: offset.offset,
                leader_epoch: offset.leader_epoch,
                metadata: offset.metadata,
                commit_timestamp_ms: now.wall_ms,
                expire_timestamp_ms,
                topic_id: Some(offset.topic_id),
            };
            let retention = self.limits.offsets_retention_ms;
            if entry
                .offsets
                .is_unchanged(&offset.topic, offset.partition, &value, retention)
            {
                fx.offsets_unchanged += 1;
                continue;
            }
            fx.offsets_committed += 1;
            records.push(LogRecord::Offset {
                group: name.to_owned(),
                topic: offset.topic,
                partition: offset.partition,
                value: Some(value),
            });
        }
        let after = After {
            replies: vec![(reply, Reply::Codes(codes))],
            ..After::default()
        };
        self.append(records, after, ErrorCode::InvalidCommitOffsetSize, now, fx);
        self.settle(name);
    }

    fn delete_groups(&mut self, names: &[String], reply: ReplyId, now: Now, fx: &mut Effects) {
        let mut codes = Vec::with_capacity(names.len());
        let mut records = Vec::new();
        let mut buried = Vec::new();
        for name in names {
            let code = match self.groups.get_mut(name) {
                None => ErrorCode::GroupIdNotFound,
                Some(entry) if entry.group.state() == GroupState::Empty => {
                    bury(name, entry, now, &mut records);
                    buried.push(name.clone());
                    ErrorCode::None
                }
                Some(entry) if entry.group.state() == GroupState::Dead => ErrorCode::GroupIdNotFound,
                Some(_) => ErrorCode::NonEmptyGroup,
            };
            codes.push(code);
        }
        let after = After {
            replies: vec![(reply, Reply::Codes(codes))],
            buried,
            ..After::default()
        };
        self.append(records, after, ErrorCode::UnknownServerError, now, fx);
    }

    fn delete_offsets(
        &mut self,
        name: &str,
        offsets: &[(String, i32)],
        reply: ReplyId,
        now: Now,
        fx: &mut Effects,
    ) {
        let refusal = match self.groups.get(name) {
            None => Some(ErrorCode::GroupIdNotFound),
            Some(entry) => match entry.group.state() {
                GroupState::Dead => Some(ErrorCode::GroupIdNotFound),
                GroupState::Empty => None,
                _ if entry.group.speaks_consumer_protocol() => None,
                _ => Some(ErrorCode::NonEmptyGroup),
            },
        };
        let (Some(entry), None) = (self.groups.get(name), refusal) else {
            fx.replies.push((
                reply,
                Reply::Failed(refusal.unwrap_or(ErrorCode::GroupIdNotFound)),
            ));
            return;
        };
        let mut codes = Vec::with_capacity(offsets.len());
        let mut records = Vec::new();
        for (topic, partition) in offsets {
            if entry.group.is_subscribed(topic) {
                codes.push(ErrorCode::GroupSubscribedToTopic);
                continue;
            }
            codes.push(ErrorCode::None);
            if entry.offsets.contains(topic, *partition) {
                records.push(tombstone(name, topic, *partition));
            }
        }
        let after = After {
            replies: vec![(reply, Reply::Codes(codes))],
            ..After::default()
        };
        self.append(records, after, ErrorCode::UnknownServerError, now, fx);
        self.settle(name);
    }

    fn tick(&mut self, now: Now, fx: &mut Effects) {
        let mut due = Vec::new();
        while let Some((at_ms, _)) = self.deadlines.first()
            && *at_ms <= now.monotonic_ms
        {
            due.extend(self.deadlines.pop_first().map(|(_, name)| name));
        }
        for name in due {
            if let Some(entry) = self.groups.get_mut(&name) {
                entry.armed_ms = None;
            }
            self.with_group(&name, now, fx, |group, limits, gfx| group.tick(now, limits, gfx));
        }
    }

    fn unload(&mut self, error: ErrorCode, fx: &mut Effects) {
        self.closed = Some(error);
        let mut gfx = GroupEffects::default();
        for entry in self.groups.values_mut() {
            entry.group.unload(error, &mut gfx);
        }
        fx.replies
            .extend(gfx.joins.into_iter().map(|(id, reply)| (id, Reply::Join(reply))));
        fx.replies
            .extend(gfx.syncs.into_iter().map(|(id, reply)| (id, Reply::Sync(reply))));
        self.deadlines.clear();
    }
}

impl Command {
    fn reply(&self) -> Option<ReplyId> {
        match self {
            Command::Join { reply, .. }
            | Command::Sync { reply, .. }
            | Command::Heartbeat { reply, .. }
            | Command::Leave { reply, .. }
            | Command::Commit { reply, .. }
            | Command::DeleteGroups { reply, .. }
            | Command::DeleteOffsets { reply, .. } => Some(*reply),
            Command::Tick
            | Command::Unheard(_)
            | Command::Expire
            | Command::DropTopics(_)
            | Command::Appended { .. }
            | Command::Unload(_) => None,
        }
    }
}

fn tombstone(group: &str, topic: &str, partition: i32) -> LogRecord {
    LogRecord::Offset {
        group: group.to_owned(),
        topic: topic.to_owned(),
        partition,
        value: None,
    }
}

/// Tombstones for everything that the log holds of a group; the group answers "try again" meanwhile.
fn bury(name: &str, entry: &mut Entry, now: Now, records: &mut Vec<LogRecord>) {
    records.extend(
        entry
            .offsets
            .keys()
            .map(|(topic, partition)| tombstone(name, topic, partition)),
    );
    records.push(LogRecord::Group {
        group: name.to_owned(),
        value: None,
    });
    entry.group.bury(now);
}

#[cfg(test)]
#[path = "shard_random_tests.rs"]
mod random_tests;
#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
