//! What goes without anybody asking: offsets past their retention, and those of deleted topics.

use std::collections::BTreeSet;

use alluvium_log::TopicId;

use super::{After, Effects, Entry, Shard, bury, tombstone};
use crate::errors::ErrorCode;
use crate::groups::offsets::Committed;
use crate::groups::records::LogRecord;
use crate::groups::state::{GroupState, Now};

impl Shard {
    pub(super) fn expire(&mut self, now: Now, fx: &mut Effects) {
        let mut records = Vec::new();
        let mut buried = Vec::new();
        let mut names: Vec<String> = self.groups.keys().cloned().collect();
        names.sort_unstable();
        for name in names {
            let Some(entry) = self.groups.get_mut(&name) else {
                continue;
            };
            let expired = expired_offsets(&name, entry, self.limits.offsets_retention_ms, now);
            fx.offsets_expired += expired.len() as u64;
            let all = entry.offsets.keys().count() == expired.len();
            if all && entry.in_flight == 0 && entry.group.is_vacant() {
                bury(&name, entry, now, &mut records);
                buried.push(name);
            } else {
                records.extend(expired);
            }
        }
        if !records.is_empty() {
            let after = After {
                buried,
                ..After::default()
            };
            self.append(records, after, ErrorCode::UnknownServerError, now, fx);
        }
    }

    pub(super) fn drop_topics(
        &mut self,
        gone: &BTreeSet<(String, Option<TopicId>)>,
        now: Now,
        fx: &mut Effects,
    ) {
        let mut records = Vec::new();
        for (name, entry) in &self.groups {
            for (topic, partition, committed) in entry.offsets.published() {
                if gone.contains(&(topic.to_owned(), committed.value.topic_id))
                    && !entry.offsets.is_in_flight(topic, partition)
                {
                    records.push(tombstone(name, topic, partition));
                }
            }
        }
        if !records.is_empty() {
            self.append(records, After::default(), ErrorCode::UnknownServerError, now, fx);
        }
    }
}

/// The offsets whose retention is over, by Kafka's rule: of an empty group, counted from when it became
/// empty; of a stable consumer group, those of topics that it does not consume, counted from the commit; of
/// a group that never had members, counted from the commit.
fn expired_offsets(name: &str, entry: &Entry, retention_ms: i64, now: Now) -> Vec<LogRecord> {
    let group = &entry.group;
    let base_ms = match (group.protocol_type(), group.state()) {
        (_, GroupState::Dead) => return Vec::new(),
        (None, _) => None,
        (Some(_), GroupState::Empty) => group.state_since_ms(),
        (Some(_), GroupState::Stable) if group.speaks_consumer_protocol() && group.knows_subscription() => {
            None
        }
        (Some(_), _) => return Vec::new(),
    };
    let expired = |topic: &str, partition: i32, committed: &Committed| {
        !group.is_subscribed(topic)
            && !entry.offsets.is_in_flight(topic, partition)
            && committed.is_expired(base_ms, retention_ms, now.wall_ms)
    };
    entry
        .offsets
        .published()
        .filter(|(topic, partition, committed)| expired(topic, *partition, committed))
        .map(|(topic, partition, _)| tombstone(name, topic, partition))
        .collect()
}
