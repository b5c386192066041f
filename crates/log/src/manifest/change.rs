//! Every change of the manifest, as a pure function of the version it is applied to.
//!
//! A change is validated again at each attempt of the compare-and-swap loop: what was right for one version
//! may be wrong for the next. The caller hands in everything random (topic ids, commit ids).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Endpoint, FEATURE_LEVEL, LinkRun, Manifest, ReleasedRun, SlotRun, StreamEntry, StreamState, Topic,
};
use crate::{Incarnation, Seq, Slot, TopicId};

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
    /// A topic of that name was deleted, and some broker may not know it yet.
    #[error("Topic '{0}' is being deleted.")]
    DeletionUnderWay(String),
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
                self.deleted_names.remove(name);
            }
            Change::DeleteTopic { id } => {
                let name = self
                    .topic_by_id(id)
                    .map(|(n, _)| n.to_owned())
                    .ok_or(Rejection::UnknownTopic)?;
                self.topics.remove(&name);
                // The version that this change becomes.
                self.tombstones.insert(*id, self.version + 1);
                self.deleted_names.insert(name, self.version + 1);
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

    /// A broker start: registers a live stream, with what this build knows, and returns its incarnation.
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
                released: vec![],
            },
        );
        // A build that does not know this map leaves in it what it ended.
        let streams = &self.streams;
        let live = |stream: &Incarnation| streams.get(stream).is_some_and(StreamEntry::is_live);
        self.known_levels.retain(|stream, _| live(stream));
        self.known_levels.insert(incarnation, FEATURE_LEVEL);
        incarnation
    }

    /// Takes over all slots of `victims`, each sealed at a seq, and all slots that nobody owns.
    pub fn take_over(
        &mut self,
        taker: Incarnation,
        victims: &[(Incarnation, Seq)],
    ) -> Result<(), TakeoverRefused> {
        self.take_over_for(taker, victims, |_| taker)
    }

    /// Gives all slots of `victims`, each sealed at a seq, and all slots that nobody owns, to the brokers that
    /// `owner_of` names; to the taker where it names one that is not live.
    ///
    /// Refused unless taker and victims are live in this very version (rule 9 of the model: a slot is never
    /// granted to a stream that the same version says is sealed).
    pub fn take_over_for(
        &mut self,
        taker: Incarnation,
        victims: &[(Incarnation, Seq)],
        owner_of: impl Fn(Slot) -> Incarnation,
    ) -> Result<(), TakeoverRefused> {
        if !self.is_live(taker) {
            return Err(TakeoverRefused::TakerNotLive);
        }
        for (victim, _) in victims {
            if *victim == taker || !self.is_live(*victim) {
                return Err(TakeoverRefused::VictimNotLive(*victim));
            }
        }
        let dead = |owner: Incarnation| victims.iter().any(|(v, _)| *v == owner);
        let live: Vec<Incarnation> = self.live().map(|(i, _)| i).filter(|i| !dead(*i)).collect();
        self.end_streams(victims, |slot| {
            let wanted = owner_of(slot);
            Some(if live.contains(&wanted) { wanted } else { taker })
        });
        Ok(())
    }

    /// A broker has sealed its own stream at `at` and gives its slots to those that `owner_of` names, or to nobody:
    /// the next start takes those.
    pub fn retire(
        &mut self,
        incarnation: Incarnation,
        at: Seq,
        owner_of: impl Fn(Slot) -> Option<Incarnation>,
    ) -> Result<(), TakeoverRefused> {
        if !self.is_live(incarnation) {
            return Err(TakeoverRefused::VictimNotLive(incarnation));
        }
        let live: Vec<Incarnation> = self
            .live()
            .map(|(i, _)| i)
            .filter(|i| *i != incarnation)
            .collect();
        self.end_streams(&[(incarnation, at)], |slot| {
            owner_of(slot).filter(|owner| live.contains(owner))
        });
        Ok(())
    }

    /// Marks streams as sealed, links their slots to them and gives the slots, and those without an owner, away.
    fn end_streams(&mut self, ended: &[(Incarnation, Seq)], owner_of: impl Fn(Slot) -> Option<Incarnation>) {
        let mut links: BTreeMap<Incarnation, Vec<LinkRun>> = BTreeMap::new();
        self.each_slot(|slot, run| {
            if ended.iter().any(|(stream, _)| *stream == run.owner) {
                let link = LinkRun {
                    first: slot,
                    count: 1,
                    epoch: run.epoch,
                };
                links.entry(run.owner).or_default().push(link);
                run.owner = 0;
            }
            if run.owner != 0 {
                // What was asked of a broker that is no more is not asked any more.
                run.desired = run
                    .desired
                    .filter(|to| !ended.iter().any(|(stream, _)| stream == to));
            } else {
                run.desired = None;
                if let Some(owner) = owner_of(slot) {
                    (run.owner, run.epoch) = (owner, run.epoch + 1);
                }
            }
        });
        for (stream, at) in ended {
            if let Some(entry) = self.streams.get_mut(stream) {
                let links = join_links(links.remove(stream).unwrap_or_default());
                entry.state = StreamState::Sealed { at: *at, links };
            }
            self.last_commits.remove(stream);
            self.known_levels.remove(stream);
        }
        self.forget_drained();
    }

    /// Asks owners to hand slots over. What is asked for already, or makes no sense in this version, is left out;
    /// returns how many slots were changed.
    pub fn set_desired(&mut self, moves: &[(Slot, Incarnation)]) -> usize {
        let wanted: BTreeMap<Slot, Incarnation> = moves.iter().copied().collect();
        let live: Vec<Incarnation> = self.live().map(|(i, _)| i).collect();
        let mut changed = 0;
        self.each_slot(|slot, run| {
            let Some(to) = wanted.get(&slot).filter(|to| live.contains(to)) else {
                return;
            };
            let desired = Some(*to).filter(|to| *to != run.owner);
            if live.contains(&run.owner) && run.desired != desired {
                run.desired = desired;
                changed += 1;
            }
        });
        changed
    }

    /// `from` has released slots: each goes to whom it is desired for, or back to `from` in a new epoch if that
    /// broker is gone. What is not `from`'s in the released epoch is left out; returns what was moved.
    pub fn move_slots(
        &mut self,
        from: Incarnation,
        released: &[Released],
    ) -> Result<Vec<Slot>, TakeoverRefused> {
        if !self.is_live(from) {
            return Err(TakeoverRefused::VictimNotLive(from));
        }
        let by_slot: BTreeMap<Slot, Released> = released.iter().map(|r| (r.slot, *r)).collect();
        let live: Vec<Incarnation> = self.live().map(|(i, _)| i).collect();
        let (mut moved, mut runs) = (vec![], vec![]);
        self.each_slot(|slot, run| {
            let ours = |r: &&Released| (run.owner, run.epoch) == (from, r.epoch);
            let Some(r) = by_slot.get(&slot).filter(ours) else {
                return;
            };
            runs.push(ReleasedRun {
                first: slot,
                count: 1,
                epoch: run.epoch,
                bound: r.bound,
            });
            run.owner = run.desired.filter(|to| live.contains(to)).unwrap_or(from);
            (run.epoch, run.desired) = (run.epoch + 1, None);
            moved.push(slot);
        });
        if let Some(entry) = self.streams.get_mut(&from) {
            entry.released.extend(runs);
            entry.released = join_released(std::mem::take(&mut entry.released));
        }
        Ok(moved)
    }

    /// `owner` has a durable checkpoint that holds all of these slots, given with their epochs, and their data lies in
    /// no other stream any more: their logs no longer go through those. Returns how many slots were unlinked.
    pub fn drop_links(&mut self, owner: Incarnation, covered: &[(Slot, i32)]) -> usize {
        let covered: BTreeMap<Slot, i32> = covered.iter().copied().collect();
        let held = self.slots_of(owner);
        let held = held.filter(|(slot, epoch)| covered.get(slot) == Some(epoch));
        let held: Vec<Slot> = held.map(|(slot, _)| slot).collect();
        let unlinked = self.linked(&held);
        for entry in self.streams.values_mut() {
            if let StreamState::Sealed { links, .. } = &mut entry.state {
                let single = links.iter().flat_map(|l| {
                    let one = move |first| LinkRun {
                        first,
                        count: 1,
                        ..*l
                    };
                    (l.first..l.first + l.count).map(one)
                });
                let kept = single.filter(|l| !unlinked.contains(&l.first)).collect();
                *links = join_links(kept);
            }
            let single = entry.released.iter().flat_map(|r| {
                let one = move |first| ReleasedRun {
                    first,
                    count: 1,
                    ..*r
                };
                (r.first..r.first + r.count).map(one)
            });
            let kept = single.filter(|r| !unlinked.contains(&r.first)).collect();
            entry.released = join_released(kept);
        }
        self.forget_drained();
        unlinked.len()
    }

    /// A sealed stream that no slot's log goes through is no longer needed. Monotone: it never comes back.
    fn forget_drained(&mut self) {
        self.streams.retain(|_, s| {
            let linked = match &s.state {
                StreamState::Live => true,
                StreamState::Sealed { links, .. } => !links.is_empty(),
            };
            linked || !s.released.is_empty()
        });
    }

    /// Calls `each` with a run of every single slot, and joins neighbours that are alike again.
    fn each_slot(&mut self, mut each: impl FnMut(Slot, &mut SlotRun)) {
        let mut runs: Vec<SlotRun> = vec![];
        for run in &self.slots {
            for slot in run.first..run.first + run.count {
                let mut one = SlotRun {
                    first: slot,
                    count: 1,
                    ..*run
                };
                each(slot, &mut one);
                let same =
                    |r: &&mut SlotRun| (r.owner, r.epoch, r.desired) == (one.owner, one.epoch, one.desired);
                match runs.last_mut().filter(same) {
                    Some(last) => last.count += 1,
                    None => runs.push(one),
                }
            }
        }
        self.slots = runs;
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

fn join_links(mut runs: Vec<LinkRun>) -> Vec<LinkRun> {
    runs.sort_by_key(|r| (r.epoch, r.first));
    runs.dedup_by(|next, run| {
        let same = run.epoch == next.epoch && run.first + run.count == next.first;
        if same {
            run.count += next.count;
        }
        same
    });
    runs
}

fn join_released(mut runs: Vec<ReleasedRun>) -> Vec<ReleasedRun> {
    runs.sort_by_key(|r| (r.bound, r.epoch, r.first));
    runs.dedup_by(|next, run| {
        let same = (run.bound, run.epoch, run.first + run.count) == (next.bound, next.epoch, next.first);
        if same {
            run.count += next.count;
        }
        same
    });
    runs
}

/// A slot whose RELEASE entry is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Released {
    /// The slot.
    pub slot: Slot,
    /// Leader epoch that the releasing stream held.
    pub epoch: i32,
    /// The seq after the segment with the entry.
    pub bound: Seq,
}

/// Why a takeover does not fit the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverRefused {
    /// The taker was itself taken over.
    #[error("this broker was taken over by another one")]
    TakerNotLive,
    /// Somebody else took the victim over.
    #[error("stream {0} was taken over by another broker")]
    VictimNotLive(Incarnation),
    /// The manifest says it already.
    #[error("there is nothing to change")]
    NothingToDo,
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
                    epoch: 1,
                    released: false
                },
                Link {
                    stream: b,
                    bound: 0,
                    epoch: 2,
                    released: false
                }
            ]
        );
        assert_eq!(Manifest::decode(&m.encode()).unwrap(), m);
        use crate::manifest::Link;
    }

    #[test]
    fn what_a_broker_knows_leaves_with_its_stream() {
        let mut m = manifest();
        let a = m.register(1, None, BTreeMap::new());
        m.take_over(a, &[]).unwrap();
        let b = m.register(1, None, BTreeMap::new());
        let known = |m: &Manifest| m.known_levels.keys().copied().collect::<Vec<_>>();
        assert_eq!(known(&m), [a, b]);
        m.take_over(b, &[(a, 17)]).unwrap();
        assert_eq!(known(&m), [b]);
        // Somebody who does not know the map ended them.
        m.known_levels.extend([(a, 3), (77, 3)]);
        let c = m.register(2, None, BTreeMap::new());
        assert_eq!(known(&m), [b, c]);
        assert_eq!(m.known_level(c), FEATURE_LEVEL);
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

    fn two_brokers() -> (Manifest, Incarnation, Incarnation) {
        let mut m = manifest();
        let a = m.register(1, None, BTreeMap::new());
        m.take_over(a, &[]).unwrap();
        let b = m.register(2, None, BTreeMap::new());
        (m, a, b)
    }

    fn owners(m: &Manifest) -> Vec<(Incarnation, i32)> {
        let runs = m
            .slots
            .iter()
            .flat_map(|r| (0..r.count).map(|_| (r.owner, r.epoch)));
        runs.collect()
    }

    #[test]
    fn released_slots_go_where_they_are_desired_or_back() {
        let (mut m, a, b) = two_brokers();
        assert_eq!(m.set_desired(&[(1, b), (2, b), (3, a), (4, 99)]), 2);
        assert_eq!(m.set_desired(&[(1, b)]), 0, "asked for already");
        let released = |slot, epoch| Released {
            slot,
            epoch,
            bound: 8,
        };
        let moved = m.move_slots(
            a,
            &[released(1, 1), released(2, 1), released(5, 1), released(6, 9)],
        );
        assert_eq!(moved.unwrap(), vec![1, 2, 5]);
        assert_eq!(
            owners(&m),
            [(a, 1), (b, 2), (b, 2), (a, 1), (a, 1), (a, 2), (a, 1), (a, 1)]
        );
        assert!(m.links(5)[0].released && m.links(0).is_empty());
        assert!(
            m.move_slots(a, &[released(1, 1)]).unwrap().is_empty(),
            "done already"
        );
        assert_eq!(Manifest::decode(&m.encode()).unwrap(), m);
        // Only the owner, in the epoch that its checkpoint holds, unlinks a slot.
        assert_eq!(m.drop_links(b, &[(1, 1), (5, 2)]), 0);
        assert_eq!(m.drop_links(b, &[(1, 2)]), 1);
        assert_eq!(m.links(2).len(), 1);
        assert_eq!(m.drop_links(a, &[(5, 2), (0, 1)]), 1);
        assert_eq!(m.drop_links(b, &[(2, 2)]), 1);
        assert!(m.streams[&a].released.is_empty());
    }

    #[test]
    fn the_slots_of_the_dead_go_to_several_and_the_stream_leaves_once_it_is_drained() {
        let (mut m, a, b) = two_brokers();
        let c = m.register(3, None, BTreeMap::new());
        m.set_desired(&[(7, b)]);
        m.take_over_for(b, &[(a, 4)], |slot| [b, c, a, 99][slot as usize % 4])
            .unwrap();
        assert_eq!(
            owners(&m),
            [(b, 2), (c, 2), (b, 2), (b, 2), (b, 2), (c, 2), (b, 2), (b, 2)],
            "who is not live gets nothing"
        );
        assert!(m.slots.iter().all(|r| r.desired.is_none()));
        assert_eq!(
            m.drop_links(b, &[(0, 2), (2, 2), (3, 2), (4, 2), (6, 2), (7, 2)]),
            6
        );
        assert!(m.streams.contains_key(&a));
        assert_eq!(m.drop_links(c, &[(1, 2), (5, 2)]), 2);
        assert!(!m.streams.contains_key(&a), "nothing goes through it any more");
    }

    #[test]
    fn a_broker_that_stops_gives_its_slots_to_others_or_to_nobody() {
        let (mut m, a, b) = two_brokers();
        m.retire(a, 9, |slot| (slot < 4).then_some(b)).unwrap();
        let expected: Vec<_> = (0..8).map(|s| if s < 4 { (b, 2) } else { (0, 1) }).collect();
        assert_eq!(owners(&m), expected);
        assert_eq!(m.retire(a, 9, |_| None), Err(TakeoverRefused::VictimNotLive(a)));
        let c = m.register(1, None, BTreeMap::new());
        m.take_over(c, &[]).unwrap();
        assert_eq!(m.slot(7).map(|r| (r.owner, r.epoch)), Some((c, 2)));
        assert_eq!(m.links(7)[0].bound, 9);
    }

    #[test]
    fn a_node_id_is_the_predecessors_or_the_smallest_that_is_free() {
        let at = |port| {
            let host = "h".to_owned();
            BTreeMap::from([("L".to_owned(), Endpoint { host, port })])
        };
        let mut m = manifest();
        assert_eq!(m.free_node_id(&at(1)), 1);
        m.register(1, None, at(1));
        m.register(3, None, at(3));
        assert_eq!((m.free_node_id(&at(9)), m.free_node_id(&at(3))), (2, 3));
        // The number of one that is gone goes to who comes to its address, unless somebody else has it by then.
        let mut m = manifest();
        let gone = m.register(5, None, at(5));
        m.take_over(gone, &[]).unwrap();
        let taker = m.register(1, None, at(1));
        m.take_over(taker, &[(gone, 3)]).unwrap();
        assert_eq!((m.free_node_id(&at(5)), m.free_node_id(&at(9))), (5, 2));
        m.register(5, None, at(7));
        assert_eq!(m.free_node_id(&at(5)), 2);
        // Whoever is there again before its stream is forgotten finds its number.
        let second = m.register(2, None, at(2));
        m.take_over(second, &[(taker, 7)]).unwrap();
        assert_eq!((m.free_node_id(&at(9)), m.free_node_id(&at(1))), (3, 1));
    }
}
