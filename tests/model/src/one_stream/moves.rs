//! Slots that move between brokers: RELEASE, takeovers that give slots to several brokers, graceful stops, links that
//! are dropped, streams that are drained.
//!
//! The engine decides who owns what after a change (`Manifest::register`, `set_desired`, `move_slots`, `take_over_for`,
//! `retire`, `drop_links`), what is appended (`PartitionState`), where a stream ends (`Takeover`), what must be read and
//! what comes of it (`to_read`, `recover`), how far a floor may move (`head::floor`). Here a write that lands is
//! confirmed, a head is written in one step and so is an end put to a stream: [`super::model`] takes those apart. A
//! broker acts on the manifest that it has applied, which may be old; the answer to its own change of the manifest
//! reaches it only that way, as if it were always lost.

use std::collections::BTreeMap;

use alluvium_log::entry::{BatchEntry, BatchProducer, BatchRange, Entry, MergedRange, MergedRanges, Place};
use alluvium_log::format::checkpoint::{Checkpoint, SlotImage, encode_slot};
use alluvium_log::head::floor;
use alluvium_log::manifest::change::Released;
use alluvium_log::manifest::{Change, Manifest};
use alluvium_log::partition::image::{PartitionImage, StoredRange};
use alluvium_log::partition::state::{PartitionState, Verdict};
use alluvium_log::{Incarnation, Offset, Seq, Slot, TopicPartition};
use stateright::{Model, Property};
use uuid::Uuid;

use self::Deviation::*;
use super::moves_check::{check, end_of, rebuilt, stored};
use super::state::{Entries, Of, Rec, Request, Violation};
use crate::check::{Checked, Run};

const TOPIC: Uuid = Uuid::from_u128(42);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// The floor moves while links that this stream's releases made are in the manifest.
    FloorIgnoresLinks,
    /// The floor moves while a RELEASE is on its way.
    FloorIgnoresRelease,
    /// A checkpoint leaves out what is on its way to another broker.
    CheckpointForgetsReleasing,
    /// A checkpoint holds what the manifest grants, recovered or not.
    CheckpointCoversRecovering,
    /// Appends go on until the RELEASE is sent, behind the state that it holds.
    AppendWhileReleasing,
    /// A slot is moved when its RELEASE is sent.
    MoveBeforePublished,
    /// A broker goes on with a slot that came back in a new epoch, as if nothing had happened.
    KeepAcrossEpochs,
    /// A pointer to merged data is sent behind the state that a RELEASE holds, and before the RELEASE.
    PointerWhileReleasing,
    /// Links are dropped although the data lies in other streams.
    DropWithForeignData,
    /// A broker that stops seals behind what it has sent, stored or not.
    SealBeforeFlush,
}

/// Every deviation, with the configuration that shows it.
const MUTATIONS: &[(Deviation, &str)] = &[
    (FloorIgnoresLinks, "moves"),
    (FloorIgnoresRelease, "moves"),
    (CheckpointForgetsReleasing, "moves"),
    (CheckpointCoversRecovering, "moves"),
    (AppendWhileReleasing, "inherited"),
    (MoveBeforePublished, "moves"),
    (KeepAcrossEpochs, "there-and-back"),
    (PointerWhileReleasing, "inherited"),
    (DropWithForeignData, "moves"),
    (SealBeforeFlush, "stop"),
];

/// How often what costs states may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub moves: u8,
    pub takeovers: u8,
    pub checkpoints: u8,
    pub merges: u8,
    pub stops: u8,
    pub starts: u8,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub brokers: u8,
    /// As many as partitions: each partition has one of its own.
    pub slots: u32,
    /// Partition of each record, in the order of its producer.
    pub records: Vec<i32>,
    pub max_sends: u8,
    pub puts_in_flight: usize,
    pub budget: Budget,
    pub reaches: Vec<&'static str>,
}

pub struct Moves {
    cfg: Scenario,
    deviations: Vec<Deviation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Obj {
    Data(Entries),
    Seal,
}

/// What the stored head of a stream leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    pub checkpoint: Of<Checkpoint>,
    pub floor: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Recovering,
    Active,
    /// Nothing is appended any more.
    Releasing,
    /// The RELEASE is published before this seq.
    Released(Seq),
}

/// A slot as its broker has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owned {
    pub epoch: i32,
    pub phase: Phase,
    pub assigned: Of<PartitionState>,
    pub published: Of<PartitionImage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broker {
    pub up: bool,
    pub applied: Of<Manifest>,
    pub owned: BTreeMap<Slot, Owned>,
    /// First seq that is not published, and the segments from there on.
    pub next: Seq,
    pub window: Vec<Entries>,
    /// The stream that it has ended, and where.
    pub ended: Option<(Incarnation, Seq)>,
    pub stopping: bool,
    pub sealed_itself: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub stored: Of<Manifest>,
    pub objs: BTreeMap<(Incarnation, Seq), Obj>,
    pub flying: BTreeMap<(Incarnation, Seq), Entries>,
    pub heads: BTreeMap<Incarnation, Head>,
    /// Index 0 is incarnation 1.
    pub brokers: Vec<Broker>,
    pub requests: Vec<Request>,
    /// Merged objects by writer and number: the record at each offset.
    pub files: BTreeMap<(Incarnation, u64), BTreeMap<Offset, Rec>>,
    /// What consumers have seen.
    pub visible: BTreeMap<(i32, Offset), Rec>,
    pub left: Budget,
    pub bad: Option<Violation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Send(Rec, Incarnation),
    Land(Incarnation, Seq),
    Settle(Incarnation),
    /// The manifest asks for a slot to be moved.
    Desire(Slot, Incarnation),
    /// A broker applies the newest manifest.
    Apply(Incarnation),
    StopAppends(Incarnation, Slot),
    Release(Incarnation, Slot),
    Move(Incarnation, Slot),
    Recover(Incarnation, Slot),
    Checkpoint(Incarnation),
    Delete(Incarnation),
    DropLinks(Incarnation),
    /// A broker copies what it has published of a slot into a merged object, and sends the pointer.
    Merge(Incarnation, Slot),
    /// A broker puts an end to another one's stream.
    End(Incarnation, Incarnation),
    /// The manifest change of a takeover; the second slot goes to the other broker if there is one.
    TakeOver(Incarnation, Option<Incarnation>),
    Stop(Incarnation),
    SealItself(Incarnation),
    Retire(Incarnation, Option<Incarnation>),
    /// A broker starts, and takes what nobody owns.
    Start,
    /// Deletes what a stream holds that has left the manifest.
    Clean(Incarnation),
}

fn index(inc: Incarnation) -> usize {
    inc as usize - 1
}

pub fn tp(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: TOPIC,
        partition,
    }
}

/// The partition of a slot.
fn of_slot(m: &Manifest, slot: Slot) -> i32 {
    let of = |p: &i32| m.slot_of(&tp(*p)) == slot;
    (0..m.slot_count as i32).find(of).unwrap_or_default()
}

impl Moves {
    fn has(&self, d: Deviation) -> bool {
        self.deviations.contains(&d)
    }

    pub fn producer(&self, rec: Rec) -> BatchProducer {
        let partition = self.cfg.records[rec as usize];
        let before = self.cfg.records[..rec as usize]
            .iter()
            .filter(|p| **p == partition);
        let sequence = before.count() as i32;
        BatchProducer {
            id: i64::from(partition),
            epoch: 0,
            first_sequence: sequence,
            last_sequence: sequence,
        }
    }

    pub fn partition(&self, rec: Rec) -> i32 {
        self.cfg.records[rec as usize]
    }

    pub fn record_of(&self, b: &BatchEntry) -> Option<Rec> {
        let all = 0..self.cfg.records.len() as Rec;
        all.into_iter()
            .find(|rec| Some(self.producer(*rec)) == b.producer)
    }

    fn broker(s: &mut State, inc: Incarnation) -> Option<&mut Broker> {
        s.brokers.get_mut(index(inc)).filter(|b| b.up)
    }

    // ---- the write path ----

    fn send(&self, s: &mut State, rec: Rec, inc: Incarnation) -> Option<()> {
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

    fn append(&self, s: &mut State, inc: Incarnation, entry: Entry) -> Option<()> {
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

    fn settle(&self, s: &mut State, inc: Incarnation) -> Option<()> {
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

    fn publish(&self, s: &mut State, inc: Incarnation) {
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

    fn show(&self, s: &mut State, r: &BatchRange) {
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

    fn ack(s: &mut State, rec: Rec, offset: Offset) {
        match s.requests[rec as usize].acked {
            Some(o) if o != offset => s.bad = Some(Violation::AckedTwice),
            _ => s.requests[rec as usize].acked = Some(offset),
        }
    }

    /// Fenced or stopped: its memory is gone.
    fn over(s: &mut State, inc: Incarnation) {
        let applied = s.brokers[index(inc)].applied.clone();
        s.brokers[index(inc)] = Broker {
            up: false,
            ..new_broker(&applied)
        };
    }

    // ---- the manifest ----

    /// A change of the manifest by a broker that does not hear of it.
    fn change(s: &mut State, change: impl FnOnce(&mut Manifest) -> bool) -> Option<()> {
        let mut next = (*s.stored).clone();
        change(&mut next).then_some(())?;
        s.stored = Of::new(next);
        Some(())
    }

    /// What is not granted any more, or in another epoch, is forgotten; what is new must be recovered.
    fn apply(&self, s: &mut State, inc: Incarnation) -> Option<()> {
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

    fn recover(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
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

    fn stop_appends(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
        let b = Self::broker(s, inc)?;
        let desired = b.applied.slot(slot)?.desired?;
        let o = b.owned.get_mut(&slot).filter(|o| o.phase == Phase::Active)?;
        if desired == inc || !b.applied.is_live(desired) {
            return None;
        }
        o.phase = Phase::Releasing;
        Some(())
    }

    fn release(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
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

    fn move_slot(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
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

    fn checkpoint(&self, s: &mut State, inc: Incarnation) -> Option<()> {
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

    fn delete(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        Self::broker(s, inc)?;
        let floor = s.heads.get(&inc)?.floor;
        Self::delete_data(s, inc, floor)
    }

    fn delete_data(s: &mut State, stream: Incarnation, below: Seq) -> Option<()> {
        let before = s.objs.len();
        s.objs
            .retain(|(i, seq), obj| *i != stream || *seq >= below || *obj == Obj::Seal);
        (s.objs.len() < before).then_some(())
    }

    fn drop_links(&self, s: &mut State, inc: Incarnation) -> Option<()> {
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

    fn merge(&self, s: &mut State, inc: Incarnation, slot: Slot) -> Option<()> {
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

    fn end(&self, s: &mut State, by: Incarnation, victim: Incarnation) -> Option<()> {
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

    fn take_over(&self, s: &mut State, by: Incarnation, other: Option<Incarnation>) -> Option<()> {
        let (victim, seal) = Self::broker(s, by)?.ended.take()?;
        if other.is_some_and(|o| o == by || o == victim || !s.stored.is_live(o)) {
            return None;
        }
        let owner_of = |slot| other.filter(|_| slot == 1).unwrap_or(by);
        // If others were faster, or it was itself taken over, nothing comes of it.
        let _ = Self::change(s, |m| m.take_over_for(by, &[(victim, seal)], owner_of).is_ok());
        Some(())
    }

    fn stop(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        s.left.stops = s.left.stops.checked_sub(1)?;
        let b = Self::broker(s, inc).filter(|b| !b.stopping && b.ended.is_none())?;
        b.stopping = true;
        Some(())
    }

    fn seal_itself(&self, s: &mut State, inc: Incarnation) -> Option<()> {
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

    fn retire(&self, s: &mut State, inc: Incarnation, to: Option<Incarnation>) -> Option<()> {
        let at = Self::broker(s, inc)?.sealed_itself?;
        let _ = Self::change(s, |m| m.retire(inc, at, |_| to).is_ok());
        Self::over(s, inc);
        Some(())
    }

    fn start(&self, s: &mut State) -> Option<()> {
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

    fn step(&self, s: &mut State, act: &Act) -> Option<()> {
        match *act {
            Act::Send(rec, inc) => self.send(s, rec, inc),
            Act::Land(inc, seq) => {
                let entries = s.flying.remove(&(inc, seq))?;
                s.objs.entry((inc, seq)).or_insert(Obj::Data(entries));
                Some(())
            }
            Act::Settle(inc) => self.settle(s, inc),
            Act::Desire(slot, to) => {
                s.left.moves = s.left.moves.checked_sub(1)?;
                Self::change(s, |m| m.set_desired(&[(slot, to)]) > 0)
            }
            Act::Apply(inc) => self.apply(s, inc),
            Act::StopAppends(inc, slot) => self.stop_appends(s, inc, slot),
            Act::Release(inc, slot) => self.release(s, inc, slot),
            Act::Move(inc, slot) => self.move_slot(s, inc, slot),
            Act::Recover(inc, slot) => self.recover(s, inc, slot),
            Act::Checkpoint(inc) => self.checkpoint(s, inc),
            Act::Delete(inc) => self.delete(s, inc),
            Act::DropLinks(inc) => self.drop_links(s, inc),
            Act::Merge(inc, slot) => self.merge(s, inc, slot),
            Act::End(by, victim) => self.end(s, by, victim),
            Act::TakeOver(by, other) => self.take_over(s, by, other),
            Act::Stop(inc) => self.stop(s, inc),
            Act::SealItself(inc) => self.seal_itself(s, inc),
            Act::Retire(inc, to) => self.retire(s, inc, to),
            Act::Start => self.start(s),
            Act::Clean(stream) => {
                let gone = !s.stored.streams.contains_key(&stream);
                gone.then(|| Self::delete_data(s, stream, Seq::MAX)).flatten()
            }
        }
    }
}

fn new_broker(applied: &Of<Manifest>) -> Broker {
    Broker {
        up: true,
        applied: applied.clone(),
        owned: BTreeMap::new(),
        next: 0,
        window: vec![],
        ended: None,
        stopping: false,
        sealed_itself: None,
    }
}

impl Model for Moves {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::nil(), self.cfg.slots);
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: self.cfg.slots,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        m.apply(&create, TOPIC).expect("a new topic");
        let empty = Of::new(m.clone());
        for node in 1..=self.cfg.brokers {
            m.register(i32::from(node), None, BTreeMap::new());
        }
        m.take_over(1, &[]).expect("an empty cluster");
        let stored = Of::new(m);
        let mut s = State {
            brokers: vec![new_broker(&empty); self.cfg.brokers as usize],
            stored,
            objs: BTreeMap::new(),
            flying: BTreeMap::new(),
            heads: BTreeMap::new(),
            requests: vec![Request::default(); self.cfg.records.len()],
            files: BTreeMap::new(),
            visible: BTreeMap::new(),
            left: self.cfg.budget,
            bad: None,
        };
        for inc in 1..=Incarnation::from(self.cfg.brokers) {
            self.apply(&mut s, inc).expect("a live broker");
        }
        for slot in 0..self.cfg.slots {
            self.recover(&mut s, 1, slot).expect("an empty slot");
        }
        vec![s]
    }

    /// Candidates; `next_state` drops those that are not possible.
    fn actions(&self, s: &State, acts: &mut Vec<Act>) {
        if s.bad.is_some() {
            return;
        }
        acts.extend(s.flying.keys().map(|(inc, seq)| Act::Land(*inc, *seq)));
        let all = 1..=s.brokers.len() as Incarnation;
        if s.left.moves > 0 {
            let to = |slot| all.clone().map(move |to| Act::Desire(slot, to));
            acts.extend((0..self.cfg.slots).flat_map(to));
        }
        if s.left.starts > 0 {
            acts.push(Act::Start);
        }
        for inc in all.clone() {
            acts.push(Act::Clean(inc));
            let b = &s.brokers[index(inc)];
            if !b.up {
                continue;
            }
            acts.extend((0..self.cfg.records.len()).map(|rec| Act::Send(rec as Rec, inc)));
            acts.extend([
                Act::Settle(inc),
                Act::Apply(inc),
                Act::Delete(inc),
                Act::DropLinks(inc),
            ]);
            if s.left.checkpoints > 0 {
                acts.push(Act::Checkpoint(inc));
            }
            for slot in b.owned.keys().copied() {
                acts.extend([
                    Act::StopAppends(inc, slot),
                    Act::Release(inc, slot),
                    Act::Move(inc, slot),
                    Act::Recover(inc, slot),
                ]);
                if s.left.merges > 0 {
                    acts.push(Act::Merge(inc, slot));
                }
            }
            if s.left.takeovers > 0 {
                acts.extend(all.clone().map(|victim| Act::End(inc, victim)));
            }
            if b.ended.is_some() {
                acts.push(Act::TakeOver(inc, None));
                acts.extend(all.clone().map(|other| Act::TakeOver(inc, Some(other))));
            }
            if s.left.stops > 0 {
                acts.push(Act::Stop(inc));
            }
            if b.stopping {
                acts.push(Act::SealItself(inc));
            }
            if b.sealed_itself.is_some() {
                acts.push(Act::Retire(inc, None));
                acts.extend(
                    all.clone()
                        .filter(|to| *to != inc)
                        .map(|to| Act::Retire(inc, Some(to))),
                );
            }
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, &act)?;
        s.bad = s.bad.or_else(|| check(self, &s));
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn all_acked(s: &State) -> bool {
            s.requests.iter().all(|r| r.acked.is_some())
        }
        fn owners(s: &State) -> Vec<Incarnation> {
            s.stored.slots.iter().map(|run| run.owner).collect()
        }
        vec![
            Property::always("no violation", |_: &Moves, s: &State| s.bad.is_none()),
            Property::sometimes("all acknowledged", |_: &Moves, s: &State| all_acked(s)),
            Property::sometimes("all acknowledged after a move", |_: &Moves, s: &State| {
                all_acked(s) && owners(s).contains(&2) && s.stored.is_live(1)
            }),
            Property::sometimes("all acknowledged after a takeover", |_: &Moves, s: &State| {
                all_acked(s) && s.stored.live().count() < s.brokers.len()
            }),
            Property::sometimes("released and then sealed", |_: &Moves, s: &State| {
                let sealed = s.stored.streams.values().filter(|e| !e.is_live());
                sealed.into_iter().any(|e| !e.released.is_empty())
            }),
            Property::sometimes("went back in a new epoch", |_: &Moves, s: &State| {
                let back = |slot: &Slot| {
                    let run = s.stored.slot(*slot).filter(|run| s.stored.is_live(run.owner));
                    let links = s.stored.links(*slot);
                    run.is_some_and(|run| links.iter().any(|l| l.released && l.stream == run.owner))
                };
                (0..s.stored.slot_count).any(|slot| back(&slot))
            }),
            Property::sometimes("two links", |_: &Moves, s: &State| {
                (0..s.stored.slot_count).any(|slot| s.stored.links(slot).len() > 1)
            }),
            Property::sometimes("stream drained", |_: &Moves, s: &State| {
                let gone = |i: usize| !s.stored.streams.contains_key(&(i as Incarnation + 1));
                (0..s.brokers.len()).any(gone)
            }),
            Property::sometimes("segment deleted", |_: &Moves, s: &State| {
                s.heads
                    .iter()
                    .any(|(i, h)| h.floor > 0 && !s.objs.contains_key(&(*i, 0)))
            }),
            Property::sometimes("slot without an owner", |_: &Moves, s: &State| {
                owners(s).contains(&0)
            }),
            Property::sometimes("taker and heir", |_: &Moves, s: &State| {
                let of = owners(s);
                of.len() > 1 && !of.contains(&1) && s.stored.links(0).first() == s.stored.links(1).first()
            }),
        ]
    }
}

impl Checked for Moves {
    fn violation(&self, s: &State) -> Option<String> {
        s.bad.map(|v| format!("{v:?}"))
    }
}

fn scenarios() -> Vec<Scenario> {
    let none = Budget::default();
    let base = Scenario {
        name: "",
        brokers: 2,
        slots: 2,
        records: vec![0, 1],
        max_sends: 2,
        puts_in_flight: 1,
        budget: none,
        reaches: vec![],
    };
    vec![
        // A slot moves while its owner lives on with another, and a takeover comes in between.
        Scenario {
            name: "moves",
            records: vec![0, 0],
            budget: Budget {
                moves: 1,
                takeovers: 1,
                checkpoints: 1,
                merges: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a move",
                "all acknowledged after a takeover",
                "released and then sealed",
                "stream drained",
            ],
            ..base.clone()
        },
        // An inherited slot is merged and moves on at the same time.
        Scenario {
            name: "inherited",
            brokers: 3,
            slots: 1,
            records: vec![0],
            puts_in_flight: 2,
            max_sends: 1,
            budget: Budget {
                moves: 1,
                takeovers: 1,
                checkpoints: 1,
                merges: 1,
                ..none
            },
            reaches: vec!["all acknowledged after a takeover", "stream drained", "two links"],
        },
        // There and back again, or back to itself because the other one is gone.
        Scenario {
            name: "there-and-back",
            records: vec![0, 0],
            budget: Budget {
                moves: 2,
                takeovers: 1,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a move",
                "went back in a new epoch",
                "two links",
            ],
            ..base.clone()
        },
        // A takeover gives slots to two brokers, one of which dies before it has recovered.
        Scenario {
            name: "heirs",
            brokers: 3,
            budget: Budget {
                takeovers: 2,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a takeover",
                "taker and heir",
                "two links",
                "stream drained",
            ],
            ..base.clone()
        },
        // A graceful stop, against a takeover; the next start takes what nobody owns.
        Scenario {
            name: "stop",
            budget: Budget {
                stops: 1,
                starts: 1,
                takeovers: 1,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a takeover",
                "slot without an owner",
                "two links",
            ],
            ..base
        },
    ]
}

/// The configurations, or their deviations.
pub fn runs(mutations: bool) -> Vec<Run> {
    let one = |cfg: Scenario, d: Option<Deviation>| {
        let (label, reaches) = (d.map(|d| format!("{d:?}")), cfg.reaches.clone());
        Run::new("one-stream", cfg.name, label, reaches, move || Moves {
            cfg: cfg.clone(),
            deviations: d.into_iter().collect(),
        })
    };
    let scenarios = scenarios();
    if !mutations {
        return scenarios.into_iter().map(|s| one(s, None)).collect();
    }
    let of = |(d, name): &(Deviation, &str)| {
        let cfg = scenarios.iter().find(|s| s.name == *name)?;
        Some(one(cfg.clone(), Some(*d)))
    };
    MUTATIONS.iter().filter_map(of).collect()
}
