//! The manifest: which stream owns which slot, and what topics there are.
//!
//! One small JSON object, changed by compare-and-swap only when ownership or topics change. This file is its
//! shape and the questions it answers; [`change`] holds every change as a pure function.

pub mod change;
pub(crate) mod keeper;
pub mod operator;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use change::{Change, Rejection};
pub use operator::NotChanged;

use crate::format::checked_json;
use crate::{Incarnation, Seq, Slot, TopicId, TopicPartition};

/// Slots of a new cluster; fixed from then on.
pub const DEFAULT_SLOTS: u32 = 1024;
/// Highest feature level that this build can write. 1: one broker's streams; 2: slots are released and data is merged;
/// 3: merged data is archived, and compacted.
pub const FEATURE_LEVEL: u32 = 3;
/// From this level on a broker may release slots and publish merged data: readers of level 1 do not know those entries.
pub const LEVEL_OF_CLUSTERS: u32 = 2;
/// From this level on a broker may publish files of history and compacted data: readers of level 2 do not know those
/// entries.
pub const LEVEL_OF_HISTORY: u32 = 3;
/// The level that a broker is taken to know whose build did not say: the last one before builds said it.
const LEVEL_UNSAID: u32 = 2;
const KIND: &str = "alluvium manifest";

/// Why bytes are not taken for a manifest. Each is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are no manifest, or none any more: a copy may be put in their place.
    #[error("not a valid manifest: {0}")]
    Damaged(String),
    /// It is not for this build; another may find it in order.
    #[error("{0}")]
    NotForUs(String),
}

/// What every JSON object of ours begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// What the object is.
    pub kind: String,
    /// A reader refuses a higher one.
    pub major: u32,
    /// A reader ignores a higher one.
    pub minor: u32,
    /// Names of features that a reader may ignore.
    #[serde(default)]
    pub compatible: Vec<String>,
    /// Names of features that a reader must know.
    #[serde(default)]
    pub incompatible: Vec<String>,
}

impl Format {
    pub(crate) fn new(kind: &str) -> Format {
        Format {
            kind: kind.into(),
            major: 1,
            minor: 0,
            compatible: vec![],
            incompatible: vec![],
        }
    }

    /// Refuses an object of another kind, or one that needs a newer build.
    pub(crate) fn check(&self, kind: &str) -> Result<(), String> {
        if self.kind != kind {
            return Err(format!("not an {kind} but '{}'", self.kind));
        }
        if self.major > 1 || !self.incompatible.is_empty() {
            let features = self.incompatible.join(", ");
            return Err(format!(
                "written by a newer version (format {}.{}, features [{features}]); use a newer Alluvium",
                self.major, self.minor
            ));
        }
        Ok(())
    }
}

/// The cluster's one mutable record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Magic and versions.
    pub format: Format,
    /// Never changes.
    pub cluster_id: Uuid,
    /// What may be written to this bucket; raised by an operator.
    pub feature_level: u32,
    /// Counts changes.
    pub version: u64,
    /// Tells this write from any other: S3 ETags are content hashes, so bytes must never repeat.
    pub commit_id: Uuid,
    /// The next broker start gets this incarnation.
    pub next_incarnation: Incarnation,
    /// Number of slots; fixed at creation.
    pub slot_count: u32,
    /// Streams that are live, or sealed and still needed.
    pub streams: BTreeMap<Incarnation, StreamEntry>,
    /// Ownership, as runs of neighbouring slots; every slot is in exactly one run.
    pub slots: Vec<SlotRun>,
    /// Topics by name.
    pub topics: BTreeMap<String, Topic>,
    /// Deleted topics by id, with the manifest version that deleted them.
    pub tombstones: BTreeMap<TopicId, u64>,
    /// Names of deleted topics, with the version that says so: a broker that has not applied it may still take
    /// records for the old topic, so a name is free again only when every live broker has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub deleted_names: BTreeMap<String, u64>,
    /// Dynamic broker configs: key "" is the cluster-wide default, else the decimal node id.
    pub broker_configs: BTreeMap<String, BTreeMap<String, String>>,
    /// Newest commit id of each live incarnation: settles a CAS of unknown outcome, also when another
    /// writer has already built on it.
    pub last_commits: BTreeMap<Incarnation, Uuid>,
    /// Highest feature level that the build of each live stream's broker knows. It stands here and not in the stream's
    /// entry because builds that do not know the field keep it here whenever they change something else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub known_levels: BTreeMap<Incarnation, u32>,
    /// Brokers, by node id, that an operator has asked to hand over all that they lead; they get nothing until that
    /// is undone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub draining: BTreeSet<i32>,
    /// The newest restoration from a copy, if there ever was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Fields of newer minor versions, kept as they are.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// A manifest that was put back from a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Version of the copy.
    pub from_version: u64,
    /// Commit id of the restoration: it settles an unknown outcome, also when brokers have built on it since.
    pub commit_id: Uuid,
    /// Streams that the copy did not know, of this and of earlier restorations. No slot's log goes through them any
    /// more, but they hold what was acknowledged: they are for people to look at, and nobody deletes them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown_streams: BTreeSet<Incarnation>,
}

/// One stream: the log of one broker start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEntry {
    /// Kafka's broker id.
    pub node_id: i32,
    /// `broker.rack`
    pub rack: Option<String>,
    /// Advertised endpoints by listener name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Live or sealed.
    pub state: StreamState,
    /// Slots that its broker handed over while it lived, and whose log still goes through it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub released: Vec<ReleasedRun>,
}

impl StreamEntry {
    /// Whether its broker may still write to it.
    pub fn is_live(&self) -> bool {
        matches!(self.state, StreamState::Live)
    }

    /// Whether one of these endpoints was advertised by its broker.
    pub fn is_at(&self, endpoints: &BTreeMap<String, Endpoint>) -> bool {
        let mut own = self.endpoints.values();
        own.any(|own| endpoints.values().any(|other| other == own))
    }
}

/// Whether a stream may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamState {
    /// Its broker may be running.
    Live,
    /// It ended.
    Sealed {
        /// Seq of the seal: entries at it or after it are not part of the log.
        at: Seq,
        /// Slots whose log still goes through this stream.
        links: Vec<LinkRun>,
    },
}

/// Neighbouring slots that went through a sealed stream in the same epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRun {
    /// First slot.
    pub first: Slot,
    /// How many.
    pub count: u32,
    /// Leader epoch that the stream held.
    pub epoch: i32,
}

/// Neighbouring slots that were released in one segment and in the same epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedRun {
    /// First slot.
    pub first: Slot,
    /// How many.
    pub count: u32,
    /// Leader epoch that the stream held.
    pub epoch: i32,
    /// The segment before this seq holds the RELEASE entries.
    pub bound: Seq,
}

/// Neighbouring slots with one owner and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRun {
    /// First slot.
    pub first: Slot,
    /// How many.
    pub count: u32,
    /// Stream that owns them; 0 before the first broker came.
    pub owner: Incarnation,
    /// Leader epoch; 0 before the first broker came.
    pub epoch: i32,
    /// Who should own them, if that is being changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Incarnation>,
}

/// Where clients reach a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Never reused, unlike the name.
    pub id: TopicId,
    /// Partition count; only grows.
    pub partitions: u32,
    /// As asked for; durability comes from the store.
    pub replication_factor: i16,
    /// Only what was set for this topic, by Kafka's names.
    #[serde(default)]
    pub configs: BTreeMap<String, String>,
    /// Fields of newer minor versions, kept as they are.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Leader of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its stream.
    pub incarnation: Incarnation,
    /// Its broker id.
    pub node_id: i32,
    /// The partition's leader epoch.
    pub leader_epoch: i32,
}

/// "This slot's log goes through `stream` up to (not including) `bound`, in `epoch`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// The sealed stream.
    pub stream: Incarnation,
    /// Seq of its seal, or the one after the segment that released the slot.
    pub bound: Seq,
    /// Leader epoch that it held.
    pub epoch: i32,
    /// Whether the slot was released: then the segment before `bound` holds all that is to know of it.
    pub released: bool,
}

impl Manifest {
    /// The manifest of a new cluster.
    pub fn new(cluster_id: Uuid, commit_id: Uuid, slot_count: u32) -> Manifest {
        Manifest {
            format: Format::new(KIND),
            cluster_id,
            feature_level: FEATURE_LEVEL,
            version: 1,
            commit_id,
            next_incarnation: 1,
            slot_count,
            streams: BTreeMap::new(),
            slots: vec![SlotRun {
                first: 0,
                count: slot_count,
                owner: 0,
                epoch: 0,
                desired: None,
            }],
            topics: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            deleted_names: BTreeMap::new(),
            broker_configs: BTreeMap::new(),
            last_commits: BTreeMap::new(),
            known_levels: BTreeMap::new(),
            draining: BTreeSet::new(),
            restored: None,
            unknown: BTreeMap::new(),
        }
    }

    /// Reads and checks a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
        let damaged = |e: &dyn std::fmt::Display| DecodeError::Damaged(e.to_string());
        // The format is read first: a newer manifest may have any shape.
        #[derive(Deserialize)]
        struct Envelope {
            format: Format,
        }
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| damaged(&e))?;
        envelope.format.check(KIND).map_err(DecodeError::NotForUs)?;
        checked_json::check(bytes).map_err(DecodeError::Damaged)?;
        let mut m: Manifest = serde_json::from_slice(bytes).map_err(|e| damaged(&e))?;
        m.unknown.remove(checked_json::MEMBER);
        if m.feature_level > FEATURE_LEVEL {
            return Err(DecodeError::NotForUs(format!(
                "the bucket's feature level is {}, this build knows {FEATURE_LEVEL}; use a newer Alluvium",
                m.feature_level
            )));
        }
        let mut next = 0u32;
        for run in &m.slots {
            if run.first != next || run.count == 0 {
                return Err(damaged(&format!("slot {next} is in no run or in two")));
            }
            next = next
                .checked_add(run.count)
                .ok_or_else(|| damaged(&"too many slots"))?;
        }
        if next != m.slot_count || m.slot_count == 0 {
            return Err(damaged(&format!("{next} of {} slots are listed", m.slot_count)));
        }
        Ok(m)
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // A map with text keys and plain values cannot fail to serialise.
        checked_json::seal(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Slot of a partition: a topic's partitions fall into different slots.
    pub fn slot_of(&self, tp: &TopicPartition) -> Slot {
        slot_of(tp, self.slot_count)
    }

    /// The run that holds a slot.
    pub fn slot(&self, slot: Slot) -> Option<&SlotRun> {
        let after = self.slots.partition_point(|r| r.first <= slot);
        self.slots
            .get(after.checked_sub(1)?)
            .filter(|r| slot - r.first < r.count)
    }

    /// Name and topic of an id.
    pub fn topic_by_id(&self, id: &TopicId) -> Option<(&str, &Topic)> {
        self.topics
            .iter()
            .find(|(_, t)| t.id == *id)
            .map(|(n, t)| (n.as_str(), t))
    }

    /// Owner of a partition; `None` if there is no such topic, partition or owner.
    pub fn leader(&self, topic: &TopicId, partition: i32) -> Option<Leader> {
        let tp = TopicPartition {
            topic: *topic,
            partition,
        };
        let run = self.slot(self.slot_of(&tp))?;
        let node_id = self.streams.get(&run.owner)?.node_id;
        Some(Leader {
            incarnation: run.owner,
            node_id,
            leader_epoch: run.epoch,
        })
    }

    /// The broker that answers for the cluster: the lowest live incarnation.
    pub fn controller(&self) -> Option<(Incarnation, &StreamEntry)> {
        self.live().next()
    }

    /// Whether this broker start owns a stream that nobody has sealed.
    pub fn is_live(&self, incarnation: Incarnation) -> bool {
        self.streams.get(&incarnation).is_some_and(StreamEntry::is_live)
    }

    /// Highest feature level that the broker of a stream can read.
    pub fn known_level(&self, incarnation: Incarnation) -> u32 {
        let said = self.known_levels.get(&incarnation);
        said.copied().unwrap_or(LEVEL_UNSAID)
    }

    /// Live streams, oldest first.
    pub fn live(&self) -> impl Iterator<Item = (Incarnation, &StreamEntry)> {
        self.streams
            .iter()
            .filter(|(_, s)| s.is_live())
            .map(|(i, s)| (*i, s))
    }

    /// Earlier streams that a slot's log goes through, oldest first.
    pub fn links(&self, slot: Slot) -> Vec<Link> {
        self.links_of(&[slot]).pop().unwrap_or_default()
    }

    /// The links of each of some slots, found in one look at the table of streams.
    pub fn links_of(&self, slots: &[Slot]) -> Vec<Vec<Link>> {
        let mut sorted: Vec<(Slot, usize)> = slots.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        let mut links: Vec<Vec<Link>> = vec![vec![]; slots.len()];
        for (first, count, link) in self.linked_runs() {
            let from = sorted.partition_point(|(slot, _)| *slot < first);
            let run = sorted[from..].iter().take_while(|(slot, _)| slot - first < count);
            run.for_each(|(_, at)| links[*at].push(link));
        }
        links
            .iter_mut()
            .for_each(|of_slot| of_slot.sort_by_key(|l| l.epoch));
        links
    }

    /// Those of some slots whose logs go through any earlier stream.
    pub(crate) fn linked(&self, slots: &[Slot]) -> BTreeSet<Slot> {
        let with_links = slots.iter().zip(self.links_of(slots));
        let linked = with_links.filter(|(_, links)| !links.is_empty());
        linked.map(|(slot, _)| *slot).collect()
    }

    /// Whether the slot's log goes through any earlier stream.
    pub fn has_links(&self, slot: Slot) -> bool {
        let holds = |(first, count, _): (Slot, u32, Link)| first <= slot && slot - first < count;
        self.linked_runs().any(holds)
    }

    /// Neighbouring slots, by the first and how many, with what their logs go through.
    fn linked_runs(&self) -> impl Iterator<Item = (Slot, u32, Link)> + '_ {
        self.streams.iter().flat_map(|(stream, entry)| {
            let link = move |bound, epoch, released| Link {
                stream: *stream,
                bound,
                epoch,
                released,
            };
            let (at, links) = match &entry.state {
                StreamState::Sealed { at, links } => (*at, links.as_slice()),
                StreamState::Live => (0, &[][..]),
            };
            let sealed = links.iter();
            let sealed = sealed.map(move |r| (r.first, r.count, link(at, r.epoch, false)));
            let released = entry.released.iter();
            let released = released.map(move |r| (r.first, r.count, link(r.bound, r.epoch, true)));
            sealed.chain(released)
        })
    }

    /// Slots of one owner, with their leader epochs.
    pub fn slots_of(&self, owner: Incarnation) -> impl Iterator<Item = (Slot, i32)> + '_ {
        let runs = self.slots.iter().filter(move |r| r.owner == owner);
        runs.flat_map(|r| (r.first..r.first + r.count).map(|slot| (slot, r.epoch)))
    }

    /// The broker id of a start that was not given one: that of a predecessor at the same address, the newest one if
    /// none is live and nobody else has its id by now; else the smallest that nobody has, nor had in a stream that is
    /// still needed: its broker may come back for it.
    pub fn free_node_id(&self, endpoints: &BTreeMap<String, Endpoint>) -> i32 {
        if let Some((_, predecessor)) = self.live().find(|(_, s)| s.is_at(endpoints)) {
            return predecessor.node_id;
        }
        // A mark stays with its number: a new broker would get nothing.
        let taken = |id: &i32| self.draining.contains(id) || self.live().any(|(_, s)| s.node_id == *id);
        let mut earlier = self.streams.values().rev().filter(|s| s.is_at(endpoints));
        if let Some(id) = earlier.find(|s| !taken(&s.node_id)).map(|s| s.node_id) {
            return id;
        }
        let known = |id: &i32| self.streams.values().any(|s| s.node_id == *id);
        (1..).find(|id| !taken(id) && !known(id)).unwrap_or(1)
    }
}

/// Slot of a partition: `(hash(topic id) + partition) mod slots`.
pub fn slot_of(tp: &TopicPartition, slot_count: u32) -> Slot {
    // Topic ids are random, but they may be chosen by others one day: mix all 16 bytes (FNV-1a).
    let mix = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    let hash = tp.topic.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    ((hash.wrapping_add(tp.partition as u64)) % u64::from(slot_count.max(1))) as Slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_a_topic_fall_into_different_slots() {
        let topic = Uuid::from_u128(0x1234);
        let slots: std::collections::HashSet<_> = (0..64)
            .map(|partition| slot_of(&TopicPartition { topic, partition }, 1024))
            .collect();
        assert_eq!(slots.len(), 64);
    }

    #[test]
    fn links_are_found_for_one_slot_as_for_many() {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 64);
        let first = m.register(1, None, BTreeMap::new());
        m.take_over(first, &[]).unwrap();
        let mut last = first;
        for n in 2..6 {
            let next = m.register(n, None, BTreeMap::new());
            // Every third slot is handed over, the rest is taken over by several.
            let asked: Vec<_> = (0..64)
                .filter(|slot| slot % 3 == 0)
                .map(|slot| (slot, next))
                .collect();
            m.set_desired(&asked);
            let of_last: Vec<_> = m.slots_of(last).filter(|(slot, _)| slot % 3 == 0).collect();
            let released: Vec<_> = of_last
                .into_iter()
                .map(|(slot, epoch)| change::Released {
                    slot,
                    epoch,
                    bound: 7,
                })
                .collect();
            m.move_slots(last, &released).unwrap();
            m.take_over_for(next, &[(last, 9)], |slot| if slot % 2 == 0 { next } else { 0 })
                .unwrap();
            last = next;
        }
        let slots: Vec<Slot> = (0..64).rev().chain([5, 5]).collect();
        let of_all = m.links_of(&slots);
        for (slot, links) in slots.iter().zip(&of_all) {
            assert_eq!(links, &m.links(*slot), "slot {slot}");
            assert!(links.len() >= 4 && m.has_links(*slot));
            assert!(links.windows(2).all(|w| w[0].epoch < w[1].epoch), "{links:?}");
        }
        assert!(of_all.iter().flatten().any(|l| l.released) && of_all.iter().flatten().any(|l| !l.released));
        assert_eq!((m.links_of(&[]).len(), m.links(64).len()), (0, 0));
        assert!(!m.has_links(64));
    }

    #[test]
    fn a_manifest_keeps_what_a_newer_minor_version_added() {
        let m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let mut json: serde_json::Value = serde_json::from_slice(&m.encode()).unwrap();
        json["placement"] = serde_json::json!({"a": 1});
        let back = Manifest::decode(json.to_string().as_bytes()).unwrap();
        assert_eq!(back.unknown["placement"]["a"], 1);
        assert!(String::from_utf8(back.encode()).unwrap().contains("placement"));
    }

    #[test]
    fn what_brokers_know_is_kept_by_builds_that_know_nothing_of_it() {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let empty = String::from_utf8(m.encode()).unwrap();
        assert!(!empty.contains("known_levels"), "as it was before: {empty}");
        let broker = m.register(1, None, BTreeMap::new());
        assert_eq!(m.known_level(broker), FEATURE_LEVEL);
        assert_eq!(m.known_level(broker + 1), LEVEL_UNSAID, "nothing was said");
        let bytes = m.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(m));
        // Such a build reads every member that it does not know as it reads this one, and writes it back.
        let mut older: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let members = older.as_object_mut().unwrap();
        members.remove("crc32c");
        let said = members.remove("known_levels").unwrap();
        members.insert("of_a_newer_build".into(), said.clone());
        let kept = Manifest::decode(older.to_string().as_bytes()).unwrap().encode();
        let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept["of_a_newer_build"], said);
    }

    #[test]
    fn a_manifest_that_cannot_be_trusted_is_refused_in_words() {
        let m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let refused = |f: &dyn Fn(&mut serde_json::Value)| {
            let mut json: serde_json::Value = serde_json::from_slice(&m.encode()).unwrap();
            f(&mut json);
            Manifest::decode(json.to_string().as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&|j| j["format"]["major"] = 2.into()).contains("newer version"));
        assert!(
            refused(&|j| j["format"]["incompatible"] = serde_json::json!(["x"])).contains("features [x]")
        );
        assert!(refused(&|j| j["format"]["kind"] = "dog".into()).contains("'dog'"));
        assert!(refused(&|j| j["feature_level"] = 99.into()).contains("level is 99"));
        assert!(refused(&|j| j["slots"][0]["count"] = 3.into()).contains("3 of 4"));
        assert!(refused(&|j| j["slots"][0]["first"] = 1.into()).contains("slot 0"));
        let mut flipped = m.encode();
        let version = b"\"version\":1";
        let at = flipped.windows(version.len()).position(|w| w == version).unwrap() + version.len() - 1;
        flipped[at] ^= 2;
        let flipped = Manifest::decode(&flipped).unwrap_err();
        assert!(
            matches!(&flipped, DecodeError::Damaged(why) if why.contains("checksum")),
            "{flipped}"
        );
        assert_eq!(Manifest::decode(&m.encode()), Ok(m.clone()));
        assert!(Manifest::decode(b"{").is_err());
        assert!(Manifest::decode(b"").is_err());
    }
}
