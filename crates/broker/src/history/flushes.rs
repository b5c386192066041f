//! Flushes that `alluvium archive flush` has asked for: one for a topic at a time, on a task of its own, so that asking
//! again costs nothing and who asked may go away.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use alluvium_log::manifest::Manifest;
use alluvium_log::{ArchivedPartition, Log, NotArchived, TopicId};
use parking_lot::Mutex;

/// What became of one.
type Ended = Result<Vec<ArchivedPartition>, NotArchived>;

/// What was asked for, by topic; `None` while it goes on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flushes(Arc<Mutex<HashMap<TopicId, Option<Ended>>>>);

impl Flushes {
    /// Begins one, unless one of the topic goes on.
    pub(crate) fn begin(&self, log: &Log, topic: TopicId) {
        let mut known = self.0.lock();
        // What is remembered is bounded by the topics that there are.
        let manifest = log.manifest();
        known.retain(|id, _| *id == topic || exists(&manifest, id));
        match known.entry(topic) {
            Entry::Occupied(entry) if entry.get().is_none() => return,
            Entry::Occupied(mut entry) => drop(entry.insert(None)),
            Entry::Vacant(entry) => {
                entry.insert(None);
            }
        }
        drop(known);
        let (flushes, log) = (self.clone(), log.clone());
        tokio::spawn(async move {
            let ended = log.archive_now(&topic).await;
            flushes.0.lock().insert(topic, Some(ended));
        });
    }

    /// What went wrong with the last one that came to an end, if none goes on since.
    pub(crate) fn trouble(&self, topic: &TopicId) -> Option<String> {
        match self.0.lock().get(topic)?.as_ref()? {
            Ok(partitions) => partitions.iter().find_map(|one| {
                let why = one.why.as_ref()?;
                Some(format!("partition {}: {why}", one.partition))
            }),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Whether the last one came to an end and left something of a partition that is archived to there now.
    pub(crate) fn is_stuck(&self, topic: &TopicId, partition: i32, archived_to: i64) -> bool {
        let known = self.0.lock();
        let Some(Some(Ok(partitions))) = known.get(topic) else {
            return false;
        };
        let left = |one: &ArchivedPartition| one.why.is_some() && archived_to < one.end;
        let found = partitions.binary_search_by_key(&partition, |one| one.partition);
        found.is_ok_and(|at| left(&partitions[at]))
    }
}

fn exists(manifest: &Manifest, id: &TopicId) -> bool {
    manifest.topics.values().any(|topic| topic.id == *id)
}
