//! The committed offsets of one group: what is published, and what is on its way to the log.

use std::collections::BTreeMap;

use alluvium_log::TopicId;

use super::records::OffsetValue;

/// A published offset. Only these are ever answered to an OffsetFetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) value: OffsetValue,
    /// Unix time of the last acknowledged commit of this very value. It may be later than the stored commit
    /// timestamp, because an unchanged commit is answered without a write; see [`Offsets::is_unchanged`].
    pub(crate) touched_ms: i64,
}

#[derive(Debug, Default)]
struct Slot {
    published: Option<Committed>,
    /// Appends of this key that are not published yet.
    in_flight: u32,
}

/// The offsets of one group by topic and partition.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    topics: BTreeMap<String, BTreeMap<i32, Slot>>,
}

/// An unchanged commit is written again once its stored timestamp is older than this part of the retention
/// time. So a coordinator that takes over, and knows only what is stored, expires at most an eighth early.
const REFRESH_DIVISOR: i64 = 8;

impl Offsets {
    /// Neither published offsets nor any on the way.
    pub(crate) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.topics.get(topic)?.get(&partition)?.published.as_ref()
    }

    /// Every published offset.
    pub(crate) fn published(&self) -> impl Iterator<Item = (&str, i32, &Committed)> {
        self.topics.iter().flat_map(|(topic, partitions)| {
            partitions.iter().filter_map(move |(partition, slot)| {
                slot.published
                    .as_ref()
                    .map(|committed| (topic.as_str(), *partition, committed))
            })
        })
    }

    /// Every key that the log holds or will hold an offset for.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, i32)> {
        self.topics.iter().flat_map(|(topic, partitions)| {
            partitions
                .keys()
                .map(move |partition| (topic.as_str(), *partition))
        })
    }

    pub(crate) fn contains(&self, topic: &str, partition: i32) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|partitions| partitions.contains_key(&partition))
    }

    /// Whether an append of this key is on its way.
    pub(crate) fn is_in_flight(&self, topic: &str, partition: i32) -> bool {
        self.topics
            .get(topic)
            .and_then(|p| p.get(&partition))
            .is_some_and(|slot| slot.in_flight > 0)
    }

    /// Whether the value is already published and durable with a timestamp that is fresh enough, so that a
    /// commit of it needs no write. The commit still counts for expiry: its time is remembered here.
    pub(crate) fn is_unchanged(
        &mut self,
        topic: &str,
        partition: i32,
        value: &OffsetValue,
        retention_ms: i64,
    ) -> bool {
        let Some(slot) = self.topics.get_mut(topic).and_then(|p| p.get_mut(&partition)) else {
            return false;
        };
        let Some(committed) = &mut slot.published else {
            return false;
        };
        let stored = &committed.value;
        let same = slot.in_flight == 0
            && value.expire_timestamp_ms.is_none()
            && stored.expire_timestamp_ms.is_none()
            && stored.offset == value.offset
            && stored.leader_epoch == value.leader_epoch
            && stored.metadata == value.metadata
            && stored.topic_id == value.topic_id;
        let age_ms = value.commit_timestamp_ms - stored.commit_timestamp_ms;
        if same && age_ms < retention_ms / REFRESH_DIVISOR {
            committed.touched_ms = committed.touched_ms.max(value.commit_timestamp_ms);
            return true;
        }
        false
    }

    /// An append of this key was started.
    pub(crate) fn begin(&mut self, topic: &str, partition: i32) {
        let slot = self
            .topics
            .entry(topic.to_owned())
            .or_default()
            .entry(partition)
            .or_default();
        slot.in_flight += 1;
    }

    /// An append that was started with [`Offsets::begin`] failed: nothing changes.
    pub(crate) fn failed(&mut self, topic: &str, partition: i32) {
        self.finish(topic, partition, |_| {});
    }

    /// An append that was started with [`Offsets::begin`] is published.
    pub(crate) fn succeeded(&mut self, topic: &str, partition: i32, value: Option<OffsetValue>) {
        self.finish(topic, partition, |slot| {
            slot.published = value.map(Committed::stored)
        });
    }

    /// A record that is read back from the log.
    pub(crate) fn replay(&mut self, topic: &str, partition: i32, value: Option<OffsetValue>) {
        self.begin(topic, partition);
        self.succeeded(topic, partition, value);
    }

    fn finish(&mut self, topic: &str, partition: i32, change: impl FnOnce(&mut Slot)) {
        let Some(partitions) = self.topics.get_mut(topic) else {
            return;
        };
        let Some(slot) = partitions.get_mut(&partition) else {
            return;
        };
        slot.in_flight = slot.in_flight.saturating_sub(1);
        change(slot);
        if slot.in_flight == 0 && slot.published.is_none() {
            partitions.remove(&partition);
            if partitions.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}

impl Committed {
    fn stored(value: OffsetValue) -> Committed {
        Committed {
            touched_ms: value.commit_timestamp_ms,
            value,
        }
    }

    /// Kafka's rule: an explicit expiry time counts alone; otherwise the retention time runs from `base_ms`
    /// (when the group became empty) or, without one, from the last commit.
    pub(crate) fn is_expired(&self, base_ms: Option<i64>, retention_ms: i64, now_ms: i64) -> bool {
        match self.value.expire_timestamp_ms {
            Some(expire_ms) => now_ms >= expire_ms,
            None => now_ms.saturating_sub(base_ms.unwrap_or(self.touched_ms)) >= retention_ms,
        }
    }

    /// Whether it was committed for this very topic, not for a deleted one of the same name. Records that
    /// name no topic id are trusted.
    pub(crate) fn is_for(&self, topic_id: TopicId) -> bool {
        self.value.topic_id.is_none_or(|stored| stored == topic_id)
    }
}
