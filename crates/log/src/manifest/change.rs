//! Every change of the manifest, as a pure function of the version it is applied to.
//!
//! A change is validated again at each attempt of the compare-and-swap loop: what was right for one version
//! may be wrong for the next. The caller hands in everything random (topic ids, commit ids).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Endpoint, LinkRun, Manifest, SlotRun, StreamEntry, StreamState, Topic};
use crate::{Incarnation, Seq, TopicId};

/// Partitions of one topic, at most.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 100_000;
/// Partitions of the cluster, at most.
pub const MAX_PARTITIONS: u64 = 1_000_000;

/// A change of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Creates a topic, under an id that the caller drew.
    CreateTopic {
        /// Kafka's topic name, already checked.
        name: String,
        /// At least 1.
        partitions: u32,
        /// Reported back; durability comes from the store.
        replication_factor: i16,
        /// Explicit configs, already checked.
        configs: BTreeMap<String, String>,
    },
    /// Deletes a topic and leaves a tombstone.
    DeleteTopic {
        /// Its id.
        id: TopicId,
    },
    /// Grows a topic.
    CreatePartitions {
        /// Its name.
        name: String,
        /// New total count.
        count: u32,
    },
    /// Sets (`Some`) or removes (`None`) topic configs, in order.
    AlterTopicConfigs {
        /// The topic's name.
        name: String,
        /// Keys and new values, already checked.
        changes: Vec<(String, Option<String>)>,
    },
    /// Sets or removes dynamic broker configs, in order.
    AlterBrokerConfigs {
        /// "" for the cluster-wide default, else a decimal node id.
        broker: String,
        /// Keys and new values, already checked.
        changes: Vec<(String, Option<String>)>,
    },
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The name is taken.
    #[error("Topic '{0}' already exists.")]
    TopicExists(String),
    /// No such topic (any more).
    #[error("This server does not host this topic-partition.")]
    UnknownTopic,
    /// The partition count is not possible.
    #[error("{0}")]
    InvalidPartitions(String),
    /// The store cannot be reached, or this broker may not write any more.
    #[error("the change could not be made now: {0}")]
    Unavailable(String),
}

impl Manifest {
    /// Applies one change in place. `topic_id` is used only by `CreateTopic`.
    pub fn apply(&mut self, change: &Change, topic_id: TopicId) -> Result<(), Rejection> {
        match change {
            Change::CreateTopic {
                name,
                partitions,
                replication_factor,
                configs,
            } => {
                if self.topics.contains_key(name) {
                    return Err(Rejection::TopicExists(name.clone()));
                }
                self.check_partitions(0, *partitions)?;
                let topic = Topic {
                    id: topic_id,
                    partitions: *partitions,
                    replication_factor: *replication_factor,
                    configs: configs.clone(),
                    unknown: BTreeMap::new(),
                };
                self.topics.insert(name.clone(), topic);
            }
            Change::DeleteTopic { id } => {
                let name = self
                    .topic_by_id(id)
                    .map(|(n, _)| n.to_owned())
                    .ok_or(Rejection::UnknownTopic)?;
                self.topics.remove(&name);
                self.tombstones.insert(*id, self.version);
            }
            Change::CreatePartitions { name, count } => {
                let now = self.topics.get(name).ok_or(Rejection::UnknownTopic)?.partitions;
                if *count <= now {
                    let what = if *count == now { "the same as" } else { "below" };
                    return Err(Rejection::InvalidPartitions(format!(
                        "The topic {name} currently has {now} partition(s); {count} is {what} that."
                    )));
                }
                self.check_partitions(now, *count)?;
                if let Some(topic) = self.topics.get_mut(name) {
                    topic.partitions = *count;
                }
            }
            Change::AlterTopicConfigs { name, changes } => {
                let topic = self.topics.get_mut(name).ok_or(Rejection::UnknownTopic)?;
                set_all(&mut topic.configs, changes);
            }
            Change::AlterBrokerConfigs { broker, changes } => {
                let configs = self.broker_configs.entry(broker.clone()).or_default();
                set_all(configs, changes);
                if configs.is_empty() {
                    self.broker_configs.remove(broker);
                }
            }
        }
        Ok(())
    }

    fn check_partitions(&self, now: u32, count: u32) -> Result<(), Rejection> {
        let all: u64 = self.topics.values().map(|t| u64::from(t.partitions)).sum();
        let grown = all - u64::from(now) + u64::from(count);
        let problem = if count == 0 {
            "Number of partitions must be larger than 0.".to_owned()
        } else if count > MAX_PARTITIONS_PER_TOPIC {
            format!(
                "{count} partitions are more than the {MAX_PARTITIONS_PER_TOPIC} that one topic may have."
            )
        } else if grown > MAX_PARTITIONS {
            format!("The cluster would have {grown} partitions; it may have {MAX_PARTITIONS}.")
        } else {
            return Ok(());
        };
        Err(Rejection::InvalidPartitions(problem))
    }

    /// A broker start: registers a live stream and returns its incarnation.
    pub fn register(
        &mut self,
        node_id: i32,
        rack: Option<String>,
        endpoints: BTreeMap<String, Endpoint>,
    ) -> Incarnation {
        let incarnation = self.next_incarnation;
        self.next_incarnation += 1;
        self.streams.insert(
            incarnation,
            StreamEntry {
                node_id,
                rack,
                endpoints,
                state: StreamState::Live,
            },
        );
        incarnation
    }

    /// Takes over all slots of `victims`, each sealed at a seq, and all slots that nobody owns.
    ///
    /// Refused unless taker and victims are live in this very version (rule 9 of the model: a slot is never
    /// granted to a stream that the same version says is sealed).
    pub fn take_over(
        &mut self,
        taker: Incarnation,
        victims: &[(Incarnation, Seq)],
    ) -> Result<(), TakeoverRefused> {
        if !self.streams.get(&taker).is_some_and(StreamEntry::is_live) {
            return Err(TakeoverRefused::TakerNotLive);
        }
        for (victim, _) in victims {
            if *victim == taker || !self.streams.get(victim).is_some_and(StreamEntry::is_live) {
                return Err(TakeoverRefused::VictimNotLive(*victim));
            }
        }
        let mut links: BTreeMap<Incarnation, Vec<LinkRun>> = BTreeMap::new();
        for run in &mut self.slots {
            let dead = victims.iter().any(|(v, _)| *v == run.owner);
            if dead {
                let link = LinkRun {
                    first: run.first,
                    count: run.count,
                    epoch: run.epoch,
                };
                links.entry(run.owner).or_default().push(link);
            }
            if dead || run.owner == 0 {
                *run = SlotRun {
                    owner: taker,
                    epoch: run.epoch + 1,
                    desired: None,
                    ..*run
                };
            }
        }
        self.join_runs();
        for (victim, at) in victims {
            if let Some(stream) = self.streams.get_mut(victim) {
                let links = links.remove(victim).unwrap_or_default();
                stream.state = StreamState::Sealed { at: *at, links };
            }
            self.last_commits.remove(victim);
        }
        // A sealed stream that no slot's log goes through is no longer needed.
        self.streams
            .retain(|_, s| !matches!(&s.state, StreamState::Sealed { links, .. } if links.is_empty()));
        Ok(())
    }

    fn join_runs(&mut self) {
        self.slots.dedup_by(|next, run| {
            let same = (run.owner, run.epoch, run.desired) == (next.owner, next.epoch, next.desired);
            if same {
                run.count += next.count;
            }
            same
        });
    }

    /// Makes this the next version, written by `by` under a fresh commit id.
    pub fn stamp(&mut self, by: Option<Incarnation>, commit_id: Uuid) {
        self.version += 1;
        self.commit_id = commit_id;
        if let Some(by) = by {
            self.last_commits.insert(by, commit_id);
        }
    }

    /// Whether the write with this commit id took place, as far as this version can tell: it is this
    /// version, or one that its writer has not followed up since.
    pub fn has_commit(&self, commit_id: Uuid) -> bool {
        self.commit_id == commit_id || self.last_commits.values().any(|c| *c == commit_id)
    }
}

/// Why a takeover does not fit the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverRefused {
    /// The taker was itself taken over.
    #[error("this broker was taken over by another one while it started")]
    TakerNotLive,
    /// Somebody else took the victim over.
    #[error("stream {0} was taken over by another broker")]
    VictimNotLive(Incarnation),
}

fn set_all(configs: &mut BTreeMap<String, String>, changes: &[(String, Option<String>)]) {
    for (key, value) in changes {
        match value {
            Some(v) => configs.insert(key.clone(), v.clone()),
            None => configs.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 8)
    }

    fn create(name: &str, partitions: u32) -> Change {
        Change::CreateTopic {
            name: name.into(),
            partitions,
            replication_factor: 1,
            configs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_start_takes_every_slot_and_a_restart_links_to_the_one_before() {
        let mut m = manifest();
        let a = m.register(1, None, BTreeMap::new());
        m.take_over(a, &[]).unwrap();
        assert_eq!(
            m.slots,
            vec![SlotRun {
                first: 0,
                count: 8,
                owner: a,
                epoch: 1,
                desired: None
            }]
        );
        let b = m.register(1, None, BTreeMap::new());
        m.take_over(b, &[(a, 17)]).unwrap();
        let c = m.register(1, None, BTreeMap::new());
        m.take_over(c, &[(b, 0)]).unwrap();
        assert_eq!((a, b, c), (1, 2, 3));
        assert_eq!(m.slot(7).unwrap().epoch, 3);
        let links = m.links(5);
        assert_eq!(
            links,
            vec![
                Link {
                    stream: a,
                    bound: 17,
                    epoch: 1
                },
                Link {
                    stream: b,
                    bound: 0,
                    epoch: 2
                }
            ]
        );
        assert_eq!(Manifest::decode(&m.encode()).unwrap(), m);
        use crate::manifest::Link;
    }

    #[test]
    fn a_takeover_needs_everybody_live_in_that_version() {
        let mut m = manifest();
        let a = m.register(1, None, BTreeMap::new());
        m.take_over(a, &[]).unwrap();
        let (b, c) = (
            m.register(1, None, BTreeMap::new()),
            m.register(1, None, BTreeMap::new()),
        );
        m.take_over(b, &[(a, 3)]).unwrap();
        assert_eq!(m.take_over(c, &[(a, 3)]), Err(TakeoverRefused::VictimNotLive(a)));
        m.take_over(c, &[(b, 0)]).unwrap();
        assert_eq!(m.take_over(b, &[(c, 0)]), Err(TakeoverRefused::TakerNotLive));
        assert_eq!(m.take_over(c, &[(c, 0)]), Err(TakeoverRefused::VictimNotLive(c)));
    }

    #[test]
    fn topics_are_created_grown_and_deleted_by_id() {
        let mut m = manifest();
        let (t1, t2) = (Uuid::from_u128(11), Uuid::from_u128(12));
        m.apply(&create("a", 3), t1).unwrap();
        assert_eq!(
            m.apply(&create("a", 3), t2),
            Err(Rejection::TopicExists("a".into()))
        );
        assert!(matches!(
            m.apply(&create("b", 0), t2),
            Err(Rejection::InvalidPartitions(_))
        ));
        assert!(matches!(
            m.apply(&create("b", 100_001), t2),
            Err(Rejection::InvalidPartitions(_))
        ));
        let grow = |count| Change::CreatePartitions {
            name: "a".into(),
            count,
        };
        assert!(m.apply(&grow(3), t2).is_err());
        m.apply(&grow(5), t2).unwrap();
        assert_eq!(m.topics["a"].partitions, 5);
        m.apply(&Change::DeleteTopic { id: t1 }, t2).unwrap();
        assert_eq!(
            m.apply(&Change::DeleteTopic { id: t1 }, t2),
            Err(Rejection::UnknownTopic)
        );
        m.apply(&create("a", 1), t2).unwrap();
        assert_eq!(m.topics["a"].id, t2);
        assert!(m.tombstones.contains_key(&t1));
    }

    #[test]
    fn configs_are_set_and_removed_in_order() {
        let mut m = manifest();
        m.apply(&create("a", 1), Uuid::from_u128(11)).unwrap();
        let set = |v: Option<&str>| ("k".to_owned(), v.map(str::to_owned));
        let alter = |changes| Change::AlterTopicConfigs {
            name: "a".into(),
            changes,
        };
        m.apply(&alter(vec![set(Some("1")), set(Some("2"))]), Uuid::nil())
            .unwrap();
        assert_eq!(m.topics["a"].configs["k"], "2");
        m.apply(&alter(vec![set(None)]), Uuid::nil()).unwrap();
        assert!(m.topics["a"].configs.is_empty());
        let broker = |changes| Change::AlterBrokerConfigs {
            broker: "".into(),
            changes,
        };
        m.apply(&broker(vec![set(Some("1"))]), Uuid::nil()).unwrap();
        m.apply(&broker(vec![set(None)]), Uuid::nil()).unwrap();
        assert!(m.broker_configs.is_empty());
    }

    #[test]
    fn a_commit_is_recognised_after_others_built_on_it() {
        let mut m = manifest();
        let (a, b) = (
            m.register(1, None, BTreeMap::new()),
            m.register(2, None, BTreeMap::new()),
        );
        m.stamp(Some(a), Uuid::from_u128(100));
        m.stamp(Some(b), Uuid::from_u128(101));
        assert!(m.has_commit(Uuid::from_u128(100)) && m.has_commit(Uuid::from_u128(101)));
        assert!(!m.has_commit(Uuid::from_u128(2)));
        assert_eq!(m.version, 3);
    }
}
