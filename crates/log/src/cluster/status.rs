//! How a cluster stands: what the manifest and the heads say, and what is wrong with it.
//!
//! [`look`] fetches (one GET for the manifest, three small ones per live stream), [`judge`] decides, purely.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{GetOptions, GetRange};
use serde::Serialize;
use uuid::Uuid;

use super::{ClusterError, Led, led};
use crate::clock::Clock;
use crate::format::{ObjectKind, PREAMBLE_LEN, check_preamble};
use crate::head::Head;
use crate::keys;
use crate::manifest::{Endpoint, FEATURE_LEVEL, Manifest, StreamEntry, StreamState};
use crate::store::Store;
use crate::store::reason_of;
use crate::{Incarnation, Seq, Slot};

/// A live broker writes its head at least every 30 s; one that has not for this long is not well.
pub const HEAD_AGE_MS_MAX: i64 = 60_000;
/// Streams that are looked at together.
const LOOKS_AT_ONCE: usize = 16;

/// How a cluster stands. Ages are in milliseconds, by the clock of whoever looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The store, as people write it.
    pub store: String,
    /// The cluster.
    pub cluster_id: Uuid,
    /// What may be written.
    pub feature_level: u32,
    /// Changes of the manifest so far.
    pub manifest_version: u64,
    /// Its size.
    pub manifest_bytes: u64,
    /// Whether the numbered copy of this version is there.
    pub manifest_copied: bool,
    /// Version of the copy that it was restored from, if it ever was.
    pub restored_from: Option<u64>,
    /// Topics.
    pub topics: u64,
    /// Their partitions.
    pub partitions: u64,
    /// Slots, whoever owns them.
    pub slots: u32,
    /// Live brokers, oldest start first.
    pub brokers: Vec<BrokerStatus>,
    /// Fewest partitions that a live broker leads which is not draining.
    pub partitions_min: u64,
    /// Most of them.
    pub partitions_max: u64,
    /// Earlier streams that partitions still need.
    pub linked: Vec<LinkedStatus>,
    /// Slots whose owner is asked to give them to another broker.
    pub moves: Vec<MoveStatus>,
    /// Slots that no live broker owns.
    pub slots_without_owner: Vec<SlotRange>,
    /// Partitions in them.
    pub partitions_without_owner: u64,
    /// Node ids marked as draining, whether such a broker lives or not.
    pub draining: Vec<i32>,
    /// What is wrong, in sentences. Empty: healthy.
    pub problems: Vec<String>,
    /// What is worth knowing, in sentences.
    pub notes: Vec<String>,
}

/// A live broker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BrokerStatus {
    /// Kafka's broker id.
    pub node_id: i32,
    /// Its start.
    pub incarnation: Incarnation,
    /// `broker.rack`
    pub rack: Option<String>,
    /// Where clients reach it, by listener.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Whether it is shown as the controller.
    pub controller: bool,
    /// Whether it is to hand over all that it leads.
    pub draining: bool,
    /// Partitions that it leads.
    pub partitions: u64,
    /// Slots that it owns.
    pub slots: u64,
    /// Since its head was written; `None`: it has none.
    pub head_age_ms: Option<i64>,
    /// Since its newest checkpoint was written; `None`: it has none.
    pub checkpoint_age_ms: Option<i64>,
    /// Segments published, as its head says.
    pub tip: Seq,
    /// Segments below may be gone.
    pub floor: Seq,
    /// Segments that are not merged yet: those from the floor to the tip.
    pub unmerged: u64,
    /// Manifest version that it had applied when it wrote its head.
    pub applied_version: u64,
    /// Highest feature level that it knows.
    pub known_level: u32,
}

/// An earlier stream that the log of some slots still goes through: one that ended, or that handed them over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkedStatus {
    /// The broker that wrote it.
    pub node_id: i32,
    /// Its start.
    pub incarnation: Incarnation,
    /// Seq of the seal; `None` while the broker lives and has handed the slots over.
    pub sealed_at: Option<Seq>,
    /// How many slots.
    pub slots: u64,
    /// Which.
    pub slot_ranges: Vec<SlotRange>,
}

/// Slots on their way from one live broker to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MoveStatus {
    /// The slots.
    pub slots: SlotRange,
    /// Broker that owns them.
    pub from: i32,
    /// Broker that shall have them.
    pub to: i32,
}

/// Neighbouring slots, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SlotRange {
    /// First slot.
    pub first: Slot,
    /// Last slot.
    pub last: Slot,
}

impl SlotRange {
    fn run(first: Slot, count: u32) -> SlotRange {
        SlotRange {
            first,
            last: first + count.saturating_sub(1),
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }
}

impl std::fmt::Display for SlotRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// What was read for a [`Status`].
#[derive(Clone, Debug)]
pub struct Seen {
    /// The store, as people write it.
    pub store: String,
    /// The manifest.
    pub manifest: Manifest,
    /// Its size.
    pub manifest_bytes: u64,
    /// Whether its numbered copy is there.
    pub manifest_copied: bool,
    /// What was seen of each live stream.
    pub streams: BTreeMap<Incarnation, StreamSeen>,
    /// When all that was read, in ms since 1970.
    pub now_ms: i64,
}

/// What was seen of a live stream.
#[derive(Clone, Debug, Default)]
pub struct StreamSeen {
    /// Its head and when that was written, in ms since 1970; `None`: it has none yet.
    pub head: Option<(Head, i64)>,
    /// When the checkpoint that the head names was written.
    pub checkpoint_ms: Option<i64>,
    /// What cannot be read of it, with the key.
    pub damage: Option<String>,
}

/// Reads the manifest and what the live streams' owners wrote about them.
pub async fn look(store: &Store, clock: &dyn Clock) -> Result<Seen, ClusterError> {
    let Some(found) = get(store, keys::MANIFEST, None).await? else {
        return Err(ClusterError::no_cluster(store));
    };
    let manifest = Manifest::decode(&found.bytes).map_err(|e| {
        ClusterError::Refused(format!(
            "{}: {}: {e}; if it is damaged, `alluvium cluster restore-manifest` puts a copy in its place",
            store.display,
            keys::MANIFEST
        ))
    })?;
    let copy = get(store, &keys::manifest_copy(manifest.version), Some(1)).await?;
    let live: Vec<Incarnation> = manifest.live().map(|(incarnation, _)| incarnation).collect();
    let cluster = manifest.cluster_id;
    let looks = stream::iter(live)
        .map(|incarnation| async move { (incarnation, look_at(store, cluster, incarnation).await) })
        .buffer_unordered(LOOKS_AT_ONCE);
    let looks: Vec<(Incarnation, Result<StreamSeen, ClusterError>)> = looks.collect().await;
    let mut streams = BTreeMap::new();
    for (incarnation, seen) in looks {
        streams.insert(incarnation, seen?);
    }
    Ok(Seen {
        store: store.display.clone(),
        manifest,
        manifest_bytes: found.bytes.len() as u64,
        manifest_copied: copy.is_some(),
        streams,
        now_ms: clock.now_ms(),
    })
}

async fn look_at(store: &Store, cluster: Uuid, incarnation: Incarnation) -> Result<StreamSeen, ClusterError> {
    let mut seen = StreamSeen::default();
    let key = keys::head(incarnation);
    let Some(found) = get(store, &key, None).await? else {
        return Ok(seen);
    };
    let head = match Head::decode(&found.bytes, cluster, incarnation) {
        Ok(head) => head,
        Err(why) => {
            seen.damage = Some(format!("{key}: {why}"));
            return Ok(seen);
        }
    };
    if let Some(named) = &head.checkpoint {
        let key = keys::checkpoint(incarnation, named.next, named.nonce);
        // Its first bytes say whose it is; the store knows when it was written.
        match get(store, &key, Some(PREAMBLE_LEN as u64)).await? {
            None => seen.damage = Some(format!("{key} is gone, although the head names it")),
            Some(start) => match check_preamble(&start.bytes, ObjectKind::Checkpoint, Some(cluster)) {
                Ok(_) => seen.checkpoint_ms = Some(start.written_ms),
                Err(why) => seen.damage = Some(format!("{key}: {why}")),
            },
        }
    }
    seen.head = Some((head, found.written_ms));
    Ok(seen)
}

struct Got {
    bytes: Bytes,
    written_ms: i64,
}

/// An object, or its first `most` bytes; `None` if there is none.
async fn get(store: &Store, key: &str, most: Option<u64>) -> Result<Option<Got>, ClusterError> {
    let failed = |e: object_store::Error| {
        ClusterError::Refused(format!("{}: reading {key}: {}", store.display, reason_of(&e)))
    };
    let options = GetOptions {
        range: most.map(|most| GetRange::Bounded(0..most)),
        ..GetOptions::default()
    };
    match store.bulk.get_opts(&store.key(key), options).await {
        Ok(found) => {
            let written_ms = found.meta.last_modified.timestamp_millis();
            let bytes = found.bytes().await.map_err(failed)?;
            Ok(Some(Got { bytes, written_ms }))
        }
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// What follows from what was seen.
pub fn judge(seen: &Seen) -> Status {
    let m = &seen.manifest;
    let led = led(m);
    let controller = m.controller().map(|(incarnation, _)| incarnation);
    let brokers: Vec<BrokerStatus> = m
        .live()
        .map(|(incarnation, entry)| {
            let led = led.get(&incarnation).copied().unwrap_or_default();
            let mut broker = broker_status(seen, incarnation, entry, led);
            broker.controller = controller == Some(incarnation);
            broker
        })
        .collect();
    let shares = brokers.iter().filter(|b| !b.draining).map(|b| b.partitions);
    let (slots_without_owner, partitions_without_owner) = without_owner(m, &led);
    let mut status = Status {
        store: seen.store.clone(),
        cluster_id: m.cluster_id,
        feature_level: m.feature_level,
        manifest_version: m.version,
        manifest_bytes: seen.manifest_bytes,
        manifest_copied: seen.manifest_copied,
        restored_from: m.restored.as_ref().map(|r| r.from_version),
        topics: m.topics.len() as u64,
        partitions: m.topics.values().map(|t| u64::from(t.partitions)).sum(),
        slots: m.slot_count,
        partitions_min: shares.clone().min().unwrap_or(0),
        partitions_max: shares.max().unwrap_or(0),
        brokers,
        linked: linked(m),
        moves: moves(m),
        slots_without_owner,
        partitions_without_owner,
        draining: m.draining.iter().copied().collect(),
        problems: vec![],
        notes: vec![],
    };
    status.problems = problems(&status, seen);
    status.notes = notes(&status, &m.unready_in_words(FEATURE_LEVEL));
    status
}

fn broker_status(seen: &Seen, incarnation: Incarnation, entry: &StreamEntry, led: Led) -> BrokerStatus {
    let nothing = StreamSeen::default();
    let stream = seen.streams.get(&incarnation).unwrap_or(&nothing);
    let head = stream.head.as_ref();
    let age = |written_ms: i64| (seen.now_ms - written_ms).max(0);
    let (tip, floor) = head.map_or((0, 0), |(head, _)| (head.tip, head.floor));
    BrokerStatus {
        node_id: entry.node_id,
        incarnation,
        rack: entry.rack.clone(),
        endpoints: entry.endpoints.clone(),
        controller: false,
        draining: seen.manifest.draining.contains(&entry.node_id),
        partitions: led.partitions,
        slots: led.slots,
        head_age_ms: head.map(|(_, written_ms)| age(*written_ms)),
        checkpoint_age_ms: stream.checkpoint_ms.map(age),
        tip,
        floor,
        unmerged: tip.saturating_sub(floor),
        applied_version: head.map_or(0, |(head, _)| head.manifest_version),
        known_level: seen.manifest.known_level(incarnation),
    }
}

/// Slots that nobody alive owns, and the partitions in them.
fn without_owner(m: &Manifest, led: &BTreeMap<Incarnation, Led>) -> (Vec<SlotRange>, u64) {
    let dead = |owner: &Incarnation| !m.is_live(*owner);
    let runs = m.slots.iter().filter(|run| dead(&run.owner));
    let ranges = joined(runs.map(|run| SlotRange::run(run.first, run.count)));
    let partitions = led.iter().filter(|(owner, _)| dead(owner));
    (ranges, partitions.map(|(_, led)| led.partitions).sum())
}

fn linked(m: &Manifest) -> Vec<LinkedStatus> {
    let mut linked = vec![];
    for (incarnation, entry) in &m.streams {
        let (sealed_at, links) = match &entry.state {
            StreamState::Sealed { at, links } => (Some(*at), links.as_slice()),
            StreamState::Live => (None, &[][..]),
        };
        let links = links.iter().map(|run| SlotRange::run(run.first, run.count));
        let released = entry.released.iter();
        let released = released.map(|run| SlotRange::run(run.first, run.count));
        let mut ranges: Vec<SlotRange> = links.chain(released).collect();
        ranges.sort_by_key(|range| range.first);
        // A slot may have gone through the stream more than once.
        let ranges = joined(ranges.into_iter());
        if !ranges.is_empty() {
            linked.push(LinkedStatus {
                node_id: entry.node_id,
                incarnation: *incarnation,
                sealed_at,
                slots: ranges.iter().map(SlotRange::count).sum(),
                slot_ranges: ranges,
            });
        }
    }
    linked
}

fn moves(m: &Manifest) -> Vec<MoveStatus> {
    let node_of = |incarnation: Incarnation| m.streams.get(&incarnation).map_or(-1, |s| s.node_id);
    let mut moves: Vec<MoveStatus> = vec![];
    for run in &m.slots {
        let Some(desired) = run.desired.filter(|desired| *desired != run.owner) else {
            continue;
        };
        let next = MoveStatus {
            slots: SlotRange::run(run.first, run.count),
            from: node_of(run.owner),
            to: node_of(desired),
        };
        match moves.last_mut() {
            Some(last)
                if (last.from, last.to, last.slots.last + 1) == (next.from, next.to, next.slots.first) =>
            {
                last.slots.last = next.slots.last;
            }
            _ => moves.push(next),
        }
    }
    moves
}

/// Ranges in order, neighbours made one.
fn joined(ranges: impl Iterator<Item = SlotRange>) -> Vec<SlotRange> {
    let mut out: Vec<SlotRange> = vec![];
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.first <= last.last + 1 => last.last = last.last.max(range.last),
            _ => out.push(range),
        }
    }
    out
}

fn problems(status: &Status, seen: &Seen) -> Vec<String> {
    let mut problems = vec![];
    if status.brokers.is_empty() {
        problems.push(format!(
            "no broker is live, so nobody serves the {} partitions: start one",
            status.partitions
        ));
    } else if status.partitions_without_owner > 0 {
        problems.push(format!(
            "{} of {} partitions are led by nobody: a live broker takes them over within seconds; if this stays, \
             see what the brokers log",
            status.partitions_without_owner, status.partitions
        ));
    }
    for broker in &status.brokers {
        let who = format!("broker {} (incarnation {})", broker.node_id, broker.incarnation);
        let damage = seen
            .streams
            .get(&broker.incarnation)
            .and_then(|s| s.damage.as_ref());
        match (damage, broker.head_age_ms) {
            (Some(why), _) => problems.push(format!("{who}: {why}")),
            (None, Some(age)) if age > HEAD_AGE_MS_MAX => problems.push(format!(
                "{who} has not written its head for {} s: it is dead, frozen or cut off from the bucket (or the \
                 clock of this machine is ahead)",
                age / 1000
            )),
            (None, None) if broker.slots > 0 => problems.push(format!(
                "{who} owns {} slots and has no head: it is still starting, or died while it started",
                broker.slots
            )),
            (None, _) => {}
        }
    }
    problems
}

/// `unready`: the live brokers that do not know what this build knows, in words.
fn notes(status: &Status, unready: &str) -> Vec<String> {
    let mut notes = vec![];
    if status.feature_level < FEATURE_LEVEL {
        let when = match unready {
            "" => "every live broker is new enough".to_owned(),
            unready => format!("once every broker is new enough; {unready}"),
        };
        notes.push(format!(
            "the feature level is {}, and this build knows {FEATURE_LEVEL}: raise it with `alluvium cluster \
             feature-level`, {when}",
            status.feature_level
        ));
    }
    if !status.manifest_copied {
        notes.push(format!(
            "the copy of manifest version {} is not there (yet)",
            status.manifest_version
        ));
    }
    let mut seen = BTreeSet::new();
    for broker in &status.brokers {
        let (id, incarnation) = (broker.node_id, broker.incarnation);
        if !seen.insert(id) {
            notes.push(format!(
                "two live brokers have node.id {id}: the newer one (incarnation {incarnation}) takes over from the \
                 older"
            ));
        }
        if broker.head_age_ms.is_none() && broker.slots == 0 {
            notes.push(format!(
                "broker {id} (incarnation {incarnation}) has no head yet: it is starting, or died while it started"
            ));
        }
        if broker.draining {
            notes.push(match broker.slots {
                0 => format!("broker {id} is draining and leads nothing any more: it can be stopped"),
                slots => format!("broker {id} is draining and still owns {slots} slots"),
            });
        }
    }
    let local = status.brokers.iter();
    let local = local.filter(|b| b.endpoints.values().any(|e| is_loopback(&e.host)));
    let local: Vec<String> = local.map(|b| b.node_id.to_string()).collect();
    if status.brokers.len() > 1 && !local.is_empty() {
        notes.push(format!(
            "a loopback address is advertised by {}: clients and brokers on other machines cannot reach it",
            local.join(", ")
        ));
    }
    for id in status.draining.iter().filter(|id| !seen.contains(id)) {
        notes.push(format!(
            "node.id {id} is marked as draining, and no such broker is live: one that comes gets nothing until \
             `alluvium cluster drain {id} --undo`"
        ));
    }
    notes
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
