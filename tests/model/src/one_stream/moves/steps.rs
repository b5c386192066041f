//! What brokers do, each a step at the bucket, at the manifest or in one of them.

use std::collections::BTreeMap;

use alluvium_log::entry::{BatchEntry, BatchRange, Entry, MergedRange, MergedRanges, Place};
use alluvium_log::format::checkpoint::{Checkpoint, SlotImage, encode_slot};
use alluvium_log::head::floor;
use alluvium_log::manifest::Manifest;
use alluvium_log::manifest::change::Released;
use alluvium_log::partition::image::{PartitionImage, StoredRange};
use alluvium_log::partition::state::{PartitionState, Verdict};
use alluvium_log::{Incarnation, Offset, Seq, Slot};

use super::Deviation::*;
use super::Moves;
use super::check::{end_of, rebuilt, stored};
use super::model::{Broker, Head, Obj, Owned, Phase, State, index, new_broker, of_slot, tp};
use crate::one_stream::state::{Entries, Of, Rec, Violation};

impl Moves {
    // ---- the write path ----

    pub fn send(&self, s: &mut State, rec: Rec, inc: Incarnation) -> Option<()> {
        let (producer, partition) = (self.producer(rec), self.partition(rec));
        let max = self.cfg.max_sends;
        let r = s
            .requests
            .get(rec as usize)
            .filter(|r| r.acked.is_none() && r.sent < max)?;
        let sent = r.sent + 1;
        let slot = s.stored.slot_of(&tp(partition));
        let b = Self::broker(s, inc)?;
        let o = b.owned.get(&slot)?;
        let appends =
            o.phase == Phase::Active || o.phase == Phase::Releasing && self.has(AppendWhileReleasing);
        if !appends {
            return None;
        }
        let (offset, epoch) = (o.assigned.end, o.epoch);
        match o.assigned.check(Some(producer)) {
            Verdict::Append => {}
            // A duplicate of what is published is answered; one of what is under way would wait.
            Verdict::Duplicate(original) if b.window.is_empty() => {
                let offset = original.base_offset;
                Self::ack(s, rec, offset);
                s.requests[rec as usize].sent = sent;
                return Some(());
            }
            Verdict::Duplicate(_) | Verdict::Reject(_) => return None,
        }
        let batch = BatchEntry {
            base_offset: offset,
            last_offset: offset,
            records: 1,
            size: 100,
            base_timestamp: 0,
            max_timestamp: 0,
            attributes: 0,
            producer: Some(producer),
        };
        let entry = Entry::Batches(BatchRange {
            partition: tp(partition),
            leader_epoch: epoch,
            position: 0,
            append_time_ms: 0,
            batches: vec![batch],
        });
        self.append(s, inc, entry)?;
        s.requests[rec as usize].sent = sent;
        Some(())
    }

    pub fn append(&self, s: &mut State, inc: Incarnation, entry: Entry) -> Option<()> {
        let puts = self.cfg.puts_in_flight;
        let b = Self::broker(s, inc)?;
        if b.stopping || b.window.len() >= puts {
            return None;
        }
        if let Some((tp, _)) = entry.scope() {
            let slot = b.applied.slot_of(&tp);
            b.owned.get_mut(&slot)?.assigned.get_mut().apply(&entry).ok()?;
        }
        let seq = b.next + b.window.len() as Seq;
        let entries = Entries::new(vec![entry]);
        b.window.push(entries.clone());
        s.flying.insert((inc, seq), entries);
        Some(())
    }

    pub fn settle(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = s
            .brokers
            .get(index(inc))
            .filter(|b| b.up && !b.window.is_empty())?;
        match s.objs.get(&(inc, b.next))? {
            Obj::Seal => Self::over(s, inc),
            Obj::Data(_) => self.publish(s, inc),
        }
        Some(())
    }

    pub fn publish(&self, s: &mut State, inc: Incarnation) {
        let b = &mut s.brokers[index(inc)];
        let entries = b.window.remove(0);
        let place = Place::l0(inc, b.next);
        b.next += 1;
        for e in entries.iter() {
            let b = &mut s.brokers[index(inc)];
            match e {
                Entry::Release {
                    slot, leader_epoch, ..
                } => {
                    if let Some(o) = b.owned.get_mut(slot).filter(|o| o.epoch == *leader_epoch) {
                        o.phase = Phase::Released(place.seq + 1);
                    }
                    continue;
                }
                Entry::Batches(r) => self.show(s, r),
                _ => {}
            }
            let b = &mut s.brokers[index(inc)];
            let Some((tp, epoch)) = e.scope() else { continue };
            let slot = b.applied.slot_of(&tp);
            let Some(o) = b.owned.get_mut(&slot).filter(|o| o.epoch == epoch) else {
                continue;
            };
            if o.published.get_mut().apply(e, place).is_err() {
                s.bad = Some(Violation::Misfit);
            }
        }
    }

    pub fn show(&self, s: &mut State, r: &BatchRange) {
        for b in &r.batches {
            let Some(rec) = self.record_of(b) else { continue };
            let at = (r.partition.partition, b.base_offset);
            let elsewhere = s.visible.iter().any(|(o, r)| *r == rec && *o != at);
            if s.visible.insert(at, rec).is_some_and(|old| old != rec) {
                s.bad = Some(Violation::OffsetReused);
            } else if elsewhere {
                s.bad = Some(Violation::Duplicate);
            }
            Self::ack(s, rec, b.base_offset);
        }
    }

    pub fn ack(s: &mut State, rec: Rec, offset: Offset) {
        match s.requests[rec as usize].acked {
            Some(o) if o != offset => s.bad = Some(Violation::AckedTwice),
            _ => s.requests[rec as usize].acked = Some(offset),
        }
    }

    /// Fenced or stopped: its memory is gone.
    pub fn over(s: &mut State, inc: Incarnation) {
        let applied = s.brokers[index(inc)].applied.clone();
        s.brokers[index(inc)] = Broker {
            up: false,
            ..new_broker(&applied)
        };
    }

    // ---- the manifest ----

    /// A change of the manifest by a broker that does not hear of it.
    pub fn change(s: &mut State, change: impl FnOnce(&mut Manifest) -> bool) -> Option<()> {
        let mut next = (*s.stored).clone();
        change(&mut next).then_some(())?;
        s.stored = Of::new(next);
        Some(())
    }

    /// What is not granted any more, or in another epoch, is forgotten; what is new must be recovered.
    pub fn apply(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let stored = s.stored.clone();
        let b = Self::broker(s, inc).filter(|b| b.applied != stored)?;
        if !stored.is_live(inc) {
            Self::over(s, inc);
            return Some(());
        }
        b.applied = stored.clone();
        let granted: BTreeMap<Slot, i32> = stored.slots_of(inc).collect();
        if self.has(KeepAcrossEpochs) {
            let back = |o: &Owned| o.phase != Phase::Recovering;
            for (slot, o) in b.owned.iter_mut().filter(|(_, o)| back(o)) {
                if let Some(epoch) = granted.get(slot).filter(|epoch| **epoch != o.epoch) {
                    (o.epoch, o.phase) = (*epoch, Phase::Active);
                }
            }
        } else {
            b.owned.retain(|slot, o| granted.get(slot) == Some(&o.epoch));
        }
        for (slot, epoch) in granted {
            b.owned.entry(slot).or_insert_with(|| Owned {
                epoch,
                phase: Phase::Recovering,
                assigned: Of::new(PartitionState::default()),
                published: Of::new(PartitionImage::default()),
            });
        }
        Some(())
    }

    pub fn recover(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let b = s.brokers.get(index(inc)).filter(|b| b.up)?;
        b.owned.get(&slot).filter(|o| o.phase == Phase::Recovering)?;
        let newest = b.applied == s.stored;
        match rebuilt(s, &b.applied, &[slot], BTreeMap::new()) {
            Ok(mut images) => {
                let partition = of_slot(&s.stored, slot);
                let image = images.remove(&tp(partition)).unwrap_or_default();
                let o = Self::broker(s, inc)?.owned.get_mut(&slot)?;
                (o.phase, o.assigned) = (Phase::Active, Of::new(image.state.clone()));
                o.published = Of::new(image);
            }
            // By an old manifest it may look for what is gone: it tries again with the newest.
            Err(_) if !newest => return None,
            Err(_) => s.bad = Some(Violation::TakerCannotRecover),
        }
        Some(())
    }

    // ---- moving a slot ----

    pub fn stop_appends(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let b = Self::broker(s, inc)?;
        let desired = b.applied.slot(slot)?.desired?;
        let o = b.owned.get_mut(&slot).filter(|o| o.phase == Phase::Active)?;
        if desired == inc || !b.applied.is_live(desired) {
            return None;
        }
        o.phase = Phase::Releasing;
        Some(())
    }

    pub fn release(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let b = Self::broker(s, inc)?;
        let o = b.owned.get(&slot).filter(|o| o.phase == Phase::Releasing)?;
        let about = |e: &Entry| match e {
            Entry::Release { slot: s, .. } => *s == slot,
            Entry::Merged(_) if self.has(PointerWhileReleasing) => false,
            e => e.scope().is_some_and(|(tp, _)| b.applied.slot_of(&tp) == slot),
        };
        let unpublished = b.window.iter().any(|entries| entries.iter().any(about));
        if unpublished && !self.has(AppendWhileReleasing) {
            return None;
        }
        let released = |e: &Entry| matches!(e, Entry::Release { .. });
        if b.window.iter().any(|entries| entries.iter().any(released)) {
            return None;
        }
        let image = SlotImage {
            epoch: o.epoch,
            partitions: vec![(tp(of_slot(&b.applied, slot)), (*o.published).clone())],
        };
        let entry = Entry::Release {
            slot,
            leader_epoch: o.epoch,
            image: encode_slot(&image),
        };
        self.append(s, inc, entry)
    }

    pub fn move_slot(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let b = s.brokers.get(index(inc)).filter(|b| b.up)?;
        let o = b.owned.get(&slot)?;
        let sent = |entries: &Entries| {
            entries
                .iter()
                .any(|e| matches!(e, Entry::Release { slot: s, .. } if *s == slot))
        };
        let bound = match o.phase {
            Phase::Released(bound) => bound,
            Phase::Releasing if self.has(MoveBeforePublished) => {
                b.next + b.window.iter().position(sent)? as Seq + 1
            }
            _ => return None,
        };
        let epoch = o.epoch;
        let released = Released { slot, epoch, bound };
        Self::change(s, |m| {
            m.move_slots(inc, &[released])
                .is_ok_and(|moved| !moved.is_empty())
        })
    }

    // ---- checkpoints and deletion ----

    pub fn checkpoint(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let before = s.heads.get(&inc).cloned();
        let b = Self::broker(s, inc)?;
        let next = b.next;
        if next == 0 || before.as_ref().is_some_and(|h| h.checkpoint.next >= next) {
            return None;
        }
        let covered = |o: &Owned| match o.phase {
            Phase::Active => true,
            Phase::Releasing | Phase::Released(_) => !self.has(CheckpointForgetsReleasing),
            Phase::Recovering => self.has(CheckpointCoversRecovering),
        };
        let (mut slots, mut oldest_needed) = (BTreeMap::new(), None::<Seq>);
        for (slot, o) in b.owned.iter().filter(|(_, o)| covered(o)) {
            let image = (*o.published).clone();
            oldest_needed = [oldest_needed, image.oldest_needed(inc)]
                .into_iter()
                .flatten()
                .min();
            let partitions = vec![(tp(of_slot(&b.applied, *slot)), image)];
            let epoch = o.epoch;
            slots.insert(*slot, SlotImage { epoch, partitions });
        }
        // Who removed what is being released from `owned` had the newer manifest in use.
        let releasing = |o: &Owned| matches!(o.phase, Phase::Releasing | Phase::Released(_));
        let releasing = b.owned.values().any(releasing) && !self.has(FloorIgnoresRelease);
        let entry = b.applied.streams.get(&inc);
        let linked = entry.is_some_and(|e| !e.released.is_empty()) && !self.has(FloorIgnoresLinks);
        let at = before.as_ref().map_or(0, |h| h.floor);
        let floor = if releasing || linked {
            at
        } else {
            floor(at, next, oldest_needed)
        };
        let checkpoint = Of::new(Checkpoint {
            incarnation: inc,
            next,
            manifest_version: 0,
            written_ms: 0,
            slots,
        });
        s.heads.insert(inc, Head { checkpoint, floor });
        s.left.checkpoints = s.left.checkpoints.checked_sub(1)?;
        Some(())
    }

    pub fn delete(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        Self::broker(s, inc)?;
        let floor = s.heads.get(&inc)?.floor;
        Self::delete_data(s, inc, floor)
    }

    pub fn delete_data(s: &mut State, stream: Incarnation, below: Seq) -> Option<()> {
        let before = s.objs.len();
        s.objs
            .retain(|(i, seq), obj| *i != stream || *seq >= below || *obj == Obj::Seal);
        (s.objs.len() < before).then_some(())
    }

    pub fn drop_links(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        Self::broker(s, inc)?;
        let head = s.heads.get(&inc)?.clone();
        let own = |image: &SlotImage| {
            let mut ranges = image.partitions.iter().map(|(_, image)| image);
            !ranges.any(|image| image.needs_foreign(inc)) || self.has(DropWithForeignData)
        };
        let covered = head.checkpoint.slots.iter().filter(|(_, image)| own(image));
        let covered: Vec<(Slot, i32)> = covered.map(|(slot, image)| (*slot, image.epoch)).collect();
        Self::change(s, |m| m.is_live(inc) && m.drop_links(inc, &covered) > 0)
    }

    pub fn merge(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let partition = of_slot(&s.stored, slot);
        let b = Self::broker(s, inc)?;
        let may = |o: &&Owned| {
            o.phase == Phase::Active || o.phase == Phase::Releasing && self.has(PointerWhileReleasing)
        };
        let o = b.owned.get(&slot).filter(may)?;
        let (epoch, image) = (o.epoch, o.published.clone());
        // One merge at a time: what is planned next must know what this one did.
        let pointer = |e: &Entry| matches!(e, Entry::Merged(_));
        if b.window.iter().any(|entries| entries.iter().any(pointer)) {
            return None;
        }
        let base_offset = image.unmerged_ranges().next()?.base_offset;
        let ranges = image.unmerged_ranges().map(|r| MergedRange {
            last_offset: r.last_offset,
            len: r.len,
            max_timestamp: r.max_timestamp,
            append_time_ms: r.append_time_ms,
        });
        let file = s.files.keys().filter(|(i, _)| *i == inc).count() as u64;
        let entry = Entry::Merged(MergedRanges {
            partition: tp(partition),
            leader_epoch: epoch,
            file,
            position: 0,
            base_offset,
            ranges: ranges.collect(),
        });
        let there = |r: &StoredRange| Some((r.base_offset, stored(self, s, tp(partition), r)?));
        let content: Option<BTreeMap<Offset, Rec>> = image.unmerged_ranges().map(there).collect();
        let content = content?;
        self.append(s, inc, entry)?;
        s.files.insert((inc, file), content);
        s.left.merges = s.left.merges.checked_sub(1)?;
        Some(())
    }

    // ---- ends of streams ----

    pub fn end(&self, s: &mut State, by: Incarnation, victim: Incarnation) -> Option<()> {
        let b = Self::broker(s, by)?;
        if b.ended.is_some() || b.stopping || by == victim || !b.applied.is_live(victim) {
            return None;
        }
        s.left.takeovers = s.left.takeovers.checked_sub(1)?;
        let (seal, _) = end_of(s, victim)?;
        s.objs.entry((victim, seal)).or_insert(Obj::Seal);
        Self::broker(s, by)?.ended = Some((victim, seal));
        Some(())
    }

    pub fn take_over(&self, s: &mut State, by: Incarnation, other: Option<Incarnation>) -> Option<()> {
        let (victim, seal) = Self::broker(s, by)?.ended.take()?;
        if other.is_some_and(|o| o == by || o == victim || !s.stored.is_live(o)) {
            return None;
        }
        let owner_of = |slot| other.filter(|_| slot == 1).unwrap_or(by);
        // If others were faster, or it was itself taken over, nothing comes of it.
        let _ = Self::change(s, |m| m.take_over_for(by, &[(victim, seal)], owner_of).is_ok());
        Some(())
    }

    pub fn stop(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        s.left.stops = s.left.stops.checked_sub(1)?;
        let b = Self::broker(s, inc).filter(|b| !b.stopping && b.ended.is_none())?;
        b.stopping = true;
        Some(())
    }

    pub fn seal_itself(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = Self::broker(s, inc).filter(|b| b.stopping && b.sealed_itself.is_none())?;
        if !b.window.is_empty() && !self.has(SealBeforeFlush) {
            return None;
        }
        let at = b.next + b.window.len() as Seq;
        let taken = s.objs.contains_key(&(inc, at));
        if taken {
            Self::over(s, inc);
            return Some(());
        }
        s.objs.insert((inc, at), Obj::Seal);
        Self::broker(s, inc)?.sealed_itself = Some(at);
        Some(())
    }

    pub fn retire(&self, s: &mut State, inc: Incarnation, to: Option<Incarnation>) -> Option<()> {
        let at = Self::broker(s, inc)?.sealed_itself?;
        let _ = Self::change(s, |m| m.retire(inc, at, |_| to).is_ok());
        Self::over(s, inc);
        Some(())
    }

    pub fn start(&self, s: &mut State) -> Option<()> {
        s.left.starts = s.left.starts.checked_sub(1)?;
        Self::change(s, |m| {
            let inc = m.register(9, None, BTreeMap::new());
            m.take_over(inc, &[]).is_ok()
        })?;
        // It applies the manifest before it does anything else.
        let before = s.brokers[0].applied.clone();
        s.brokers.push(new_broker(&before));
        self.apply(s, s.brokers.len() as Incarnation)
    }
}
