//! Slots come and go: brings what this broker leads in line with the manifest, and rebuilds slots that it was granted.
//!
//! A slot that the manifest grants is *recovering* until its log is rebuilt from links: its partitions are not led,
//! and clients get retriable errors. What cannot be rebuilt is *quarantined*: it is told with the object that is to
//! blame, tried again from time to time, and never written to. All else goes on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use crate::log::Inner;
use crate::manifest::{Link, Manifest};
use crate::partition::image::PartitionImage;
use crate::partition::{Partition, Standing};
use crate::recover::{RecoveryError, Source, Sources, recover, to_read};
use crate::start::Reader;
use crate::stream::{Fenced, Owned, Phase};
use crate::{Incarnation, Slot, TopicPartition};

/// Sources read at once during a recovery.
const SOURCES_AT_ONCE: usize = 8;
/// First pause before a recovery is tried again; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest pause: what is damaged does not mend itself, but an operator may put an object back.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// So many tries may fail for objects that others have deleted meanwhile before a slot counts as damaged.
const TRIES_BEFORE_QUARANTINE: u32 = 4;

/// A granted slot: its number and the epoch of the grant.
pub(crate) type Grant = (Slot, i32);

/// Slots that could not be rebuilt, and why.
type Failures = Vec<(Vec<Grant>, String)>;

impl Inner {
    /// Brings the partitions in line with the manifest in use, and begins to rebuild what was granted.
    pub(crate) fn apply_manifest(self: &Arc<Inner>) {
        let stream = &self.stream;
        let mut partitions = stream.partitions.write();
        // Under the lock, so that an older manifest is never applied over a newer one.
        let manifest = self.keeper.current();
        let version = manifest.version;
        if stream.manifest_version.load(Ordering::Relaxed) >= version {
            return;
        }
        if !manifest.is_live(stream.incarnation) {
            // The version is not taken over: whoever comes next must find this too, and not think it was handled.
            drop(partitions);
            stream.fence(taken_over(&manifest, stream.incarnation, self.node_id));
            return;
        }
        let mut owned = stream.owned.lock();
        let granted: BTreeMap<Slot, i32> = manifest.slots_of(stream.incarnation).collect();
        owned.retain(|slot, o| granted.get(slot) == Some(&o.epoch));
        let fresh: Vec<Grant> = granted
            .into_iter()
            .filter(|(slot, _)| !owned.contains_key(slot))
            .collect();
        for (slot, epoch) in &fresh {
            let phase = Phase::Recovering;
            owned.insert(*slot, Owned { epoch: *epoch, phase });
        }
        let topics: HashMap<_, _> = manifest.topics.values().map(|t| (t.id, t.partitions)).collect();
        partitions.retain(|tp, p| {
            let owned = owned.get(&manifest.slot_of(tp));
            let led = owned.is_some_and(|o| o.epoch == p.leader_epoch());
            let exists = topics.get(&tp.topic).is_some_and(|n| (tp.partition as u32) < *n);
            match (led, exists) {
                (true, true) => {}
                (_, false) => p.become_at_least(Standing::Deleted),
                (false, true) => p.become_at_least(Standing::Released),
            }
            led && exists
        });
        // New partitions of slots that are led: they have no past. Those of other slots come with their recovery.
        lead(&manifest, &mut HashMap::new(), |slot, tp| {
            let epoch = owned.get(&slot).filter(|o| o.phase == Phase::Active)?.epoch;
            (!partitions.contains_key(tp)).then_some(epoch)
        })
        .into_iter()
        .for_each(|p| {
            partitions.insert(p.id(), p);
        });
        stream.metrics.partitions.set(partitions.len() as i64);
        // Last: others are told that it is applied, and may give the name of a deleted topic to a new one.
        stream.manifest_version.store(version, Ordering::Release);
        stream.metrics.manifest_version.set(version as i64);
        drop(owned);
        drop(partitions);
        stream.owned_changed.notify_waiters();
        if !fresh.is_empty() {
            tokio::spawn(rebuild(Arc::downgrade(self), fresh));
        }
        self.begin_hand_over(&manifest);
    }

    fn begin_hand_over(self: &Arc<Inner>, manifest: &Manifest) {
        let own = self.stream.incarnation;
        if manifest
            .slots
            .iter()
            .any(|r| r.owner == own && r.desired.is_some())
        {
            let inner = self.clone();
            tokio::spawn(async move { inner.hand_over().await });
        }
    }

    /// Of these grants, those that still stand and are not rebuilt yet.
    fn still_recovering(&self, grants: &[Grant]) -> Vec<Grant> {
        let owned = self.stream.owned.lock();
        let waits = |(slot, epoch): &&Grant| {
            let waiting = |o: &Owned| matches!(o.phase, Phase::Recovering | Phase::Quarantined);
            owned.get(slot).is_some_and(|o| o.epoch == *epoch && waiting(o))
        };
        grants.iter().filter(waits).copied().collect()
    }

    /// Leads the partitions of slots that are rebuilt.
    fn activate(&self, grants: &[Grant], mut images: HashMap<TopicPartition, PartitionImage>) {
        let stream = &self.stream;
        let mut partitions = stream.partitions.write();
        let manifest = self.keeper.current();
        let mut owned = stream.owned.lock();
        let mut active: HashMap<Slot, i32> = HashMap::new();
        for (slot, epoch) in grants {
            if let Some(o) = owned.get_mut(slot).filter(|o| o.epoch == *epoch) {
                o.phase = Phase::Active;
                active.insert(*slot, *epoch);
            }
        }
        for p in lead(&manifest, &mut images, |slot, _| active.get(&slot).copied()) {
            partitions.insert(p.id(), p);
        }
        stream.metrics.partitions.set(partitions.len() as i64);
        self.count_phases(&owned);
        drop(owned);
        drop(partitions);
        stream.owned_changed.notify_waiters();
    }

    fn quarantine(&self, grants: &[Grant]) {
        let mut owned = self.stream.owned.lock();
        for (slot, epoch) in grants {
            if let Some(o) = owned.get_mut(slot).filter(|o| o.epoch == *epoch) {
                o.phase = Phase::Quarantined;
            }
        }
        self.count_phases(&owned);
        drop(owned);
        self.stream.owned_changed.notify_waiters();
    }

    fn count_phases(&self, owned: &BTreeMap<Slot, Owned>) {
        let count = |phase| owned.values().filter(|o| o.phase == phase).count() as i64;
        let metrics = &self.stream.metrics;
        metrics.recovering_slots.set(count(Phase::Recovering));
        metrics.quarantined_slots.set(count(Phase::Quarantined));
    }

    /// Resolves once no slot is recovering, or the stream is lost; whether all of them are led.
    pub(crate) async fn recovered(&self) -> bool {
        loop {
            let changed = self.stream.owned_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.stream.is_fenced() {
                return false;
            }
            {
                let owned = self.stream.owned.lock();
                if owned.values().all(|o| o.phase != Phase::Recovering) {
                    return owned.values().all(|o| o.phase != Phase::Quarantined);
                }
            }
            changed.await;
        }
    }
}

/// Why this broker lost its stream, as far as the manifest tells.
fn taken_over(manifest: &Manifest, incarnation: Incarnation, node_id: i32) -> Fenced {
    let version = manifest.version;
    let heir = manifest
        .live()
        .find(|(i, s)| *i > incarnation && s.node_id == node_id);
    match heir {
        Some((by, s)) => {
            let at = s
                .endpoints
                .values()
                .next()
                .map_or_else(String::new, |e| format!(" at {}:{}", e.host, e.port));
            Fenced {
                why: format!(
                    "the manifest (version {version}) says that incarnation {by}{at} took over with the same \
                     node.id {node_id}"
                ),
                same_node: true,
            }
        }
        None => Fenced::by_another(format!(
            "the manifest (version {version}) says that this broker's stream {incarnation} has ended"
        )),
    }
}

/// A partition object for every partition of the manifest that `epoch_of` gives an epoch to.
fn lead(
    manifest: &Manifest,
    images: &mut HashMap<TopicPartition, PartitionImage>,
    epoch_of: impl Fn(Slot, &TopicPartition) -> Option<i32>,
) -> Vec<Arc<Partition>> {
    let mut led = vec![];
    for (name, topic) in &manifest.topics {
        let name: Arc<str> = name.as_str().into();
        for partition in 0..topic.partitions as i32 {
            let tp = TopicPartition {
                topic: topic.id,
                partition,
            };
            if let Some(epoch) = epoch_of(manifest.slot_of(&tp), &tp) {
                let image = images.remove(&tp).unwrap_or_default();
                led.push(Arc::new(Partition::new(tp, name.clone(), epoch, image)));
            }
        }
    }
    led
}

/// Rebuilds slots until all of them are led, are somebody else's, or the log is gone.
async fn rebuild(inner: Weak<Inner>, grants: Vec<Grant>) {
    let (began, mut tries, mut wait) = (Instant::now(), 0, RETRY_MIN);
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let todo = inner.still_recovering(&grants);
        if todo.is_empty() || inner.stream.is_fenced() {
            return;
        }
        let manifest = inner.keeper.current();
        let failures = inner.rebuild_once(&manifest, &todo).await;
        if failures.is_empty() {
            let seconds = began.elapsed().as_secs_f64();
            inner.stream.metrics.recovery_seconds.set(seconds);
            tracing::info!(slots = todo.len(), seconds, "recovered slots");
            // They may be wanted elsewhere since before they were led.
            inner.begin_hand_over(&inner.keeper.current());
            return;
        }
        tries += 1;
        // What was planned on an older manifest may be gone by now: look at the newest one before blaming anybody.
        let refreshed = inner.refresh_manifest().await.is_ok();
        let moved_on = inner.keeper.current().version > manifest.version;
        if refreshed && !moved_on && (inner.exclusive() || tries >= TRIES_BEFORE_QUARANTINE) {
            for (grants, why) in &failures {
                if inner.still_recovering(grants).is_empty() {
                    continue;
                }
                inner.quarantine(grants);
                *inner.last_failure.lock() = Some(why.clone());
                tracing::error!(
                    slots = grants.len(),
                    why,
                    "slots cannot be recovered and are not served; trying again"
                );
            }
        }
        drop(inner);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

impl Inner {
    /// One try. Slots with the same links stand and fall together, unless their entries tell them apart.
    async fn rebuild_once(&self, manifest: &Manifest, grants: &[Grant]) -> Failures {
        let mut alike: BTreeMap<Vec<Link>, Vec<Grant>> = BTreeMap::new();
        let slots: Vec<Slot> = grants.iter().map(|(slot, _)| *slot).collect();
        for (grant, links) in grants.iter().zip(manifest.links_of(&slots)) {
            alike.entry(links).or_default().push(*grant);
        }
        let mut sources = Sources::default();
        sources.streams.extend(std::mem::take(&mut *self.ended.lock()));
        let mut failed: HashMap<Source, String> = HashMap::new();
        let mut failures = vec![];
        let reader = self.reader();
        for group in alike.into_values() {
            let slots: Vec<Slot> = group.iter().map(|(slot, _)| *slot).collect();
            match read_sources(&reader, manifest, &slots, &mut sources, &mut failed).await {
                Ok(()) => self.rebuild_group(manifest, &group, &sources, &mut failures),
                Err(why) => failures.push((group, why)),
            }
        }
        failures
    }

    fn rebuild_group(
        &self,
        manifest: &Manifest,
        group: &[Grant],
        sources: &Sources,
        failures: &mut Failures,
    ) {
        let slots: Vec<Slot> = group.iter().map(|(slot, _)| *slot).collect();
        match recover(manifest, &slots, sources) {
            Ok(images) => self.activate(group, images),
            Err(_) if group.len() > 1 => {
                for grant in group {
                    self.rebuild_group(manifest, std::slice::from_ref(grant), sources, failures);
                }
            }
            Err(e) => failures.push((group.to_vec(), self.in_words(&e))),
        }
    }

    fn in_words(&self, e: &RecoveryError) -> String {
        format!("{}: the log cannot be rebuilt: {e}", self.stream.store.display)
    }
}

/// Reads what `slots` need beyond what was read, several sources at once.
async fn read_sources(
    reader: &Reader,
    manifest: &Manifest,
    slots: &[Slot],
    sources: &mut Sources,
    failed: &mut HashMap<Source, String>,
) -> Result<(), String> {
    use futures::StreamExt;
    loop {
        let wanted = to_read(manifest, slots, sources);
        if wanted.is_empty() {
            return Ok(());
        }
        if let Some(why) = wanted.iter().find_map(|s| failed.get(s)) {
            return Err(why.clone());
        }
        let wanted: HashSet<Source> = wanted.into_iter().collect();
        let mut reads = futures::stream::iter(wanted)
            .map(|source| async move { (source, reader.source(source).await) })
            .buffer_unordered(SOURCES_AT_ONCE);
        while let Some((source, read)) = reads.next().await {
            match read {
                Ok(read) => read.add_to(sources),
                Err(e) => drop(failed.insert(source, e.to_string())),
            }
        }
    }
}
