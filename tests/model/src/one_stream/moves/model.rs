//! The bucket and each broker's memory, and what can happen next.

use std::collections::BTreeMap;

use alluvium_log::entry::{BatchEntry, BatchProducer};
use alluvium_log::format::checkpoint::Checkpoint;
use alluvium_log::manifest::{Change, Manifest};
use alluvium_log::partition::image::PartitionImage;
use alluvium_log::partition::state::PartitionState;
use alluvium_log::{Incarnation, Offset, Seq, Slot, TopicPartition};
use stateright::{Model, Property};
use uuid::Uuid;

use super::check::check;
use super::{Budget, Deviation, Moves};
use crate::one_stream::state::{Entries, Of, Rec, Request, Violation};

const TOPIC: Uuid = Uuid::from_u128(42);

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

pub fn index(inc: Incarnation) -> usize {
    inc as usize - 1
}

pub fn tp(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: TOPIC,
        partition,
    }
}

/// The partition of a slot.
pub fn of_slot(m: &Manifest, slot: Slot) -> i32 {
    let of = |p: &i32| m.slot_of(&tp(*p)) == slot;
    (0..m.slot_count as i32).find(of).unwrap_or_default()
}

impl Moves {
    pub fn has(&self, d: Deviation) -> bool {
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

    pub fn broker(s: &mut State, inc: Incarnation) -> Option<&mut Broker> {
        s.brokers.get_mut(index(inc)).filter(|b| b.up)
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

pub fn new_broker(applied: &Of<Manifest>) -> Broker {
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
