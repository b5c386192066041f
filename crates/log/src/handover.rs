//! Giving slots away, and taking them from the dead.
//!
//! * [`Inner::hand_over`]: a slot that another broker should own is *released*. Its appends stop, what was appended is
//!   published, a RELEASE entry with its state is published, and one manifest change moves it. From the RELEASE until
//!   the link is dropped the floor of this stream stands still, because the new owner reads from here.
//! * [`Inner::take_over`]: a stream whose broker is dead is ended by a seal, and one manifest change gives its slots
//!   to the live brokers.
//! * [`Inner::retire`]: a graceful stop, after this broker has sealed its own stream.
//! * [`Inner::drop_links`]: once a durable checkpoint holds a slot and its data lies in no other stream, the slot's
//!   log no longer goes through those.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use crate::entry::Entry;
use crate::format::checkpoint::{SlotImage, encode_slot};
use crate::liveness::Death;
use crate::log::{AppendError, Inner, wait_published};
use crate::manifest::change::{Released, TakeoverRefused};
use crate::manifest::keeper::ManifestError;
use crate::manifest::{LEVEL_OF_CLUSTERS, Manifest, StreamEntry};
use crate::membership::Cluster;
use crate::mutation::{self, Mutation};
use crate::partition::Standing;
use crate::placement;
use crate::start::{Taker, still_live};
use crate::stream::{Owned, Phase};
use crate::{Incarnation, Partition, Seq, Slot};

/// Slots that are released together: a segment carries their state, and their clients wait for it.
const SLOTS_AT_ONCE: usize = 256;
/// Pause before a manifest change of unknown outcome is tried again.
const AGAIN: Duration = Duration::from_millis(500);

impl Inner {
    /// Hands over every slot that is desired elsewhere. One call at a time does so; one that waited finds little to do.
    pub(crate) async fn hand_over(self: &Arc<Inner>) {
        let _only = self.handing_over.lock().await;
        loop {
            let slots = self.begin_release();
            if slots.is_empty() || self.release(&slots).await.is_err() {
                break;
            }
        }
    }

    /// Slots that are to be handed over now. From here on they take no new partitions, and the floor stands still.
    fn begin_release(&self) -> Vec<(Slot, i32)> {
        let stream = &self.stream;
        let _no_new_partitions = stream.partitions.write();
        let mut owned = stream.owned.lock();
        let manifest = self.keeper.current();
        if manifest.feature_level < LEVEL_OF_CLUSTERS || stream.is_fenced() {
            return vec![];
        }
        let mut slots = vec![];
        for run in &manifest.slots {
            let wanted = run
                .desired
                .is_some_and(|to| to != run.owner && manifest.is_live(to));
            if run.owner != stream.incarnation || !wanted {
                continue;
            }
            for slot in run.first..run.first + run.count {
                let active = |o: &&mut Owned| (o.epoch, o.phase) == (run.epoch, Phase::Active);
                if slots.len() < SLOTS_AT_ONCE
                    && let Some(o) = owned.get_mut(&slot).filter(active)
                {
                    o.phase = Phase::Releasing;
                    slots.push((slot, run.epoch));
                }
            }
        }
        slots
    }

    /// Publishes RELEASE entries of `slots` and moves them by one manifest change.
    async fn release(self: &Arc<Inner>, slots: &[(Slot, i32)]) -> Result<(), AppendError> {
        let stream = &self.stream;
        let manifest = self.keeper.current();
        let mut by_slot: BTreeMap<Slot, Vec<Arc<Partition>>> =
            slots.iter().map(|(slot, _)| (*slot, vec![])).collect();
        for p in stream.partitions.read().values() {
            if let Some(of_slot) = by_slot.get_mut(&manifest.slot_of(&p.id())) {
                of_slot.push(p.clone());
            }
        }
        let partitions: Vec<Arc<Partition>> = by_slot.values().flatten().cloned().collect();
        // What was appended before must be published, since the entry holds the published state.
        if !mutation::on(Mutation::ReleaseSkipped) {
            wait_published(stream.stop_appends(&partitions)?).await?;
        }
        let entries = slots.iter().map(|(slot, epoch)| {
            let mine = by_slot.get(slot).into_iter().flatten();
            let image = SlotImage {
                epoch: *epoch,
                partitions: mine.map(|p| (p.id(), p.published.lock().clone())).collect(),
            };
            Entry::Release {
                slot: *slot,
                leader_epoch: *epoch,
                image: encode_slot(&image),
            }
        });
        let entries: Vec<Entry> = entries.collect();
        // Once the entry is published and the manifest changed, which may happen without our knowing, somebody else
        // leads these partitions; and what proves that the stream is ours says nothing about a slot of it.
        for p in &partitions {
            if !mutation::on(Mutation::ReleaseSkipped) {
                p.become_at_least(Standing::Released);
            }
        }
        let seq = wait_published(Some(stream.release(entries)?)).await?;
        let released: Vec<Released> = slots
            .iter()
            .map(|(slot, epoch)| Released {
                slot: *slot,
                epoch: *epoch,
                bound: seq.unwrap_or_default() + 1,
            })
            .collect();
        self.move_released(&released).await;
        Ok(())
    }

    /// Moves released slots in the manifest, however long that takes: they are led by nobody until then.
    async fn move_released(self: &Arc<Inner>, released: &[Released]) {
        let incarnation = self.stream.incarnation;
        loop {
            let moved = self
                .keeper
                .change(|m| {
                    let moved = m.move_slots(incarnation, released)?;
                    if moved.is_empty() {
                        // Done by an earlier try whose outcome was unknown, or taken over meanwhile.
                        return Err(TakeoverRefused::NothingToDo);
                    }
                    Ok((moved.len(), Some(incarnation)))
                })
                .await;
            self.apply_manifest();
            match moved {
                Ok(slots) => {
                    tracing::info!(slots, "handed slots over");
                    self.stream.metrics.slots_moved.inc_by(slots as u64);
                    break;
                }
                Err(ManifestError::Refused(_)) => break,
                Err(e) if self.stream.is_fenced() => {
                    tracing::info!(error = %e, "slots were not handed over: this broker was taken over");
                    break;
                }
                Err(e) => {
                    tracing::warn!(error = %e, "slots could not be handed over yet; trying again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        self.nudge();
    }

    /// Ends the stream of a dead broker and gives its slots to the live ones.
    pub(crate) async fn take_over(self: &Arc<Inner>, victim: Incarnation, why: &str) -> Result<(), String> {
        let incarnation = self.stream.incarnation;
        let by = Taker {
            incarnation,
            node_id: self.node_id,
            now_ms: self.stream.clock.now_ms(),
            reason: why.to_owned(),
        };
        let (seal, read) = match self.reader().end_stream(victim, &by).await {
            Ok(ended) => ended,
            Err(why) if still_live(&self.keeper, victim).await => return Err(why.to_string()),
            Err(_) => {
                self.apply_manifest();
                return Ok(());
            }
        };
        self.ended.lock().insert(victim, read);
        let taken = self
            .keeper
            .change(|m| {
                let owners = self.heirs(m, victim);
                m.take_over_for(incarnation, &[(victim, seal)], |slot| {
                    owners.get(&slot).copied().unwrap_or(incarnation)
                })?;
                Ok(((), Some(incarnation)))
            })
            .await;
        self.apply_manifest();
        self.nudge();
        let heir = self
            .stream
            .owned
            .lock()
            .values()
            .any(|o| o.phase == Phase::Recovering);
        if taken.is_err() || !heir {
            // The recovery of slots takes it; without any it would stay.
            self.ended.lock().remove(&victim);
        }
        match taken {
            Ok(()) => {
                if mutation::on(Mutation::SealDeleted) {
                    let store = &self.stream.store;
                    let key = store.key(&crate::keys::segment(victim, seal));
                    let _ = object_store::ObjectStoreExt::delete(store.bulk.as_ref(), &key).await;
                }
                self.stream.metrics.takeovers.inc();
                tracing::warn!(victim, seal, why, "took over from a broker");
                Ok(())
            }
            // Somebody else was faster: all is well.
            Err(ManifestError::Refused(TakeoverRefused::VictimNotLive(_))) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// After this broker has sealed its own stream at `at`: gives its slots to the others, or to nobody.
    pub(crate) async fn retire(&self, at: Seq) {
        let incarnation = self.stream.incarnation;
        let retired = self
            .keeper
            .change(|m| {
                let owners = self.heirs(m, incarnation);
                m.retire(incarnation, at, |slot| owners.get(&slot).copied())?;
                Ok::<_, TakeoverRefused>(((), None))
            })
            .await;
        if let Err(e) = retired {
            tracing::info!(error = %e, "the slots of this broker were not given away; others will take them");
        }
        if let Some(membership) = self.membership.get() {
            membership.tell_all().await;
        }
        // The process ends after this.
        self.keeper.copies_kept().await;
    }

    /// Who gets the slots of a broker that ends: those of whom this broker has heard lately, since two may die at once; all of
    /// them if there is no such one.
    fn heirs(&self, manifest: &Manifest, of: Incarnation) -> BTreeMap<Slot, Incarnation> {
        let slots: Vec<Slot> = manifest.slots_of(of).map(|(slot, _)| slot).collect();
        let mut live = manifest.receivers(of);
        if let Some(membership) = self.membership.get() {
            let (quiet, heard): (Vec<_>, Vec<_>) = live.into_iter().partition(|i| membership.is_quiet(*i));
            live = if heard.is_empty() { quiet } else { heard };
        }
        if live.is_empty() {
            return BTreeMap::new();
        }
        placement::orphans(manifest, &slots, &live).into_iter().collect()
    }

    /// Takes the slots out of their links that a durable checkpoint holds whole.
    pub(crate) async fn drop_links(self: &Arc<Inner>, covered: &[(Slot, i32)]) {
        let manifest = self.keeper.current();
        let owned = self.stream.owned.lock().clone();
        let slots: Vec<Slot> = covered.iter().map(|(slot, _)| *slot).collect();
        let linked = manifest.linked(&slots);
        let linked: Vec<(Slot, i32)> = covered
            .iter()
            .filter(|(slot, _)| linked.contains(slot))
            // What is being released goes on from the image in its entry, and that may be older than the checkpoint.
            .filter(|(slot, _)| owned.get(slot).is_some_and(|o| o.phase == Phase::Active))
            .copied()
            .collect();
        if linked.is_empty() {
            return;
        }
        let incarnation = self.stream.incarnation;
        let dropped = self
            .keeper
            .change(|m| {
                if !m.is_live(incarnation) || m.drop_links(incarnation, &linked) == 0 {
                    return Err(TakeoverRefused::NothingToDo);
                }
                Ok(((), Some(incarnation)))
            })
            .await;
        self.apply_manifest();
        if let Err(e @ (ManifestError::Unknown(_) | ManifestError::Unusable(_))) = dropped {
            tracing::debug!(error = %e, "links could not be dropped yet");
        }
    }

    /// Asks the owners of these slots to hand them over.
    pub(crate) async fn desire(self: &Arc<Inner>, moves: Vec<(Slot, Incarnation)>) -> Result<(), String> {
        let incarnation = self.stream.incarnation;
        let asked = self
            .keeper
            .change(|m| {
                // Only the controller of this very version proposes: two proposals would undo each other.
                let ours = m.controller().is_some_and(|(i, _)| i == incarnation);
                if !ours || m.set_desired(&moves) == 0 {
                    return Err(TakeoverRefused::NothingToDo);
                }
                Ok(((), Some(incarnation)))
            })
            .await;
        self.apply_manifest();
        match asked {
            Ok(()) | Err(ManifestError::Refused(_)) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The store belongs to this process alone: nobody else can be on it.
    pub(crate) fn exclusive(&self) -> bool {
        self.stream.store.kind != crate::store::StoreKind::S3
    }

    /// Tells the other brokers that the manifest has changed.
    pub(crate) fn nudge(&self) {
        if let Some(membership) = self.membership.get() {
            membership.nudge();
        }
    }
}

/// This broker, as membership acts on it.
#[derive(Debug)]
pub(crate) struct Member(pub(crate) std::sync::Weak<Inner>);

impl Cluster for Member {
    fn manifest(&self) -> watch::Receiver<Arc<Manifest>> {
        match self.0.upgrade() {
            Some(inner) => inner.keeper.subscribe(),
            None => watch::channel(Arc::new(Manifest::new(Uuid::nil(), Uuid::nil(), 1))).1,
        }
    }

    fn refresh(&self) -> BoxFuture<'static, ()> {
        let inner = self.0.upgrade();
        Box::pin(async move {
            if let Some(inner) = inner {
                // The store tells of failures itself.
                let _ = inner.refresh_manifest().await;
            }
        })
    }

    fn take_over(&self, victim: Incarnation, death: Death) -> BoxFuture<'static, Result<(), String>> {
        let inner = self.0.upgrade();
        Box::pin(async move {
            match inner {
                Some(inner) => inner.take_over(victim, &death.to_string()).await,
                None => Err("this broker has stopped".to_owned()),
            }
        })
    }

    fn is_drained(&self, _incarnation: Incarnation, stream: &StreamEntry) -> bool {
        let draining = |inner: Arc<Inner>| inner.keeper.current().draining.contains(&stream.node_id);
        self.0.upgrade().is_some_and(draining)
    }

    fn propose(&self, moves: Vec<(Slot, Incarnation)>) -> BoxFuture<'static, Result<(), String>> {
        let inner = self.0.upgrade();
        Box::pin(async move {
            match inner {
                Some(inner) => inner.desire(moves).await,
                None => Ok(()),
            }
        })
    }
}
