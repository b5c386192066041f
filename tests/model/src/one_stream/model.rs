//! The world around the engine's decisions: every action is one atomic step at the bucket or in one broker start.
//!
//! A broker start whose actions are not taken for a while is paused; one that is sealed and has not noticed is a
//! zombie. Copies of a write land when they like, also after their writer is gone.

use std::collections::BTreeMap;

use alluvium_log::entry::{BatchEntry, BatchProducer, Entry};
use alluvium_log::manifest::{Change, Manifest};
use alluvium_log::partition::image::PartitionImage;
use alluvium_log::partition::state::PartitionState;
use alluvium_log::store::conditional::Action;
use alluvium_log::stream::window::Window;
use alluvium_log::{Incarnation, Offset, Seq, Slot, TopicPartition};
use stateright::{Model, Property};
use uuid::Uuid;

use super::recover::check;
use super::rules::Deviation::{self, *};
use super::state::*;

/// The one slot that there is.
pub const SLOT: Slot = 0;
pub const CLUSTER: Uuid = Uuid::from_u128(1);
const TOPIC: Uuid = Uuid::from_u128(42);
/// Copies of one write that are on their way at once.
pub const COPIES: u8 = 2;

/// The one partition that there is.
pub fn tp() -> TopicPartition {
    TopicPartition {
        topic: TOPIC,
        partition: 0,
    }
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// Records of each producer.
    pub producers: Vec<u8>,
    pub max_sends: u8,
    pub puts_in_flight: usize,
    /// Checkpoints take their time to be written, old ones are deleted, and takers read head and checkpoint one after
    /// the other.
    pub old_checkpoints_go: bool,
    pub budget: Budget,
    /// What must be reached, or the configuration does not show what it is for.
    pub reaches: Vec<&'static str>,
}

pub struct OneStream {
    pub cfg: Scenario,
    pub deviations: Vec<Deviation>,
    /// Producer and sequence of each record.
    records: Vec<(i64, i32)>,
}

/// A write of a broker start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Segment(Seq),
    Seal,
    Checkpoint,
    Head,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A client sends a record to a broker start.
    Send(Rec, Incarnation),
    /// A copy of a create reaches the bucket: stream, seq, writer.
    Land(Incarnation, Seq, Incarnation),
    /// A copy of a compare-and-swap of a head reaches the bucket.
    LandHead(usize),
    /// A copy of a checkpoint reaches the bucket: stream and nonce.
    LandCheckpoint(Incarnation, u128),
    /// The store's answer to a write reaches its writer.
    Answer(Incarnation, Write),
    /// The store, or a layer below the writer, refuses what an earlier copy has done.
    Echo(Incarnation, Write),
    /// No answer comes in time.
    TimeOut(Incarnation, Write),
    /// A writer reads the key back.
    ReadBack(Incarnation, Write),
    /// Patience with a head runs out.
    GiveUpHead(Incarnation),
    GiveUpCheckpoint(Incarnation),
    /// A broker starts and registers.
    Start,
    /// A broker start's memory is lost.
    Crash(Incarnation),
    /// The next read of a takeover.
    Take(Incarnation),
    /// The manifest change that grants the slot.
    Grant(Incarnation),
    /// Recovery, after which the broker start serves.
    Recover(Incarnation),
    LogStart(Incarnation),
    Checkpoint(Incarnation),
    /// Deletes the segments below the floor.
    Delete(Incarnation),
    /// Deletes the checkpoints before the one that the head names.
    DeleteCheckpoints(Incarnation),
}

impl OneStream {
    pub fn new(cfg: Scenario, deviations: Vec<Deviation>) -> Self {
        let records = |(producer, n): (usize, &u8)| (0..i32::from(*n)).map(move |i| (producer as i64, i));
        let records = cfg.producers.iter().enumerate().flat_map(records).collect();
        OneStream {
            cfg,
            deviations,
            records,
        }
    }

    pub fn has(&self, d: Deviation) -> bool {
        self.deviations.contains(&d)
    }

    pub fn producer_of(&self, rec: Rec) -> (i64, i32) {
        self.records[rec as usize]
    }

    pub fn record_of(&self, b: &BatchEntry) -> Option<Rec> {
        let p = b.producer?;
        self.records
            .iter()
            .position(|r| *r == (p.id, p.first_sequence))
            .map(|i| i as Rec)
    }

    pub fn batch_producer(&self, rec: Rec) -> BatchProducer {
        let (id, sequence) = self.producer_of(rec);
        BatchProducer {
            id,
            epoch: 0,
            first_sequence: sequence,
            last_sequence: sequence,
        }
    }

    /// The record that its producer sends before `rec`.
    pub fn before(&self, rec: Rec) -> Option<Rec> {
        (self.producer_of(rec).1 > 0).then(|| rec - 1)
    }

    pub fn violation(&self, s: &State) -> Option<Violation> {
        s.bad.or_else(|| check(self, s))
    }

    // ---- what the world sees ----

    pub fn show(&self, s: &mut State, entries: &[Entry]) {
        for e in entries {
            match e {
                Entry::Batches(r) => {
                    for b in &r.batches {
                        let Some(rec) = self.record_of(b) else { continue };
                        let elsewhere = s.visible.iter().any(|(o, r)| *r == rec && *o != b.base_offset);
                        if s.visible.insert(b.base_offset, rec).is_some_and(|old| old != rec) {
                            s.bad = Some(Violation::OffsetReused);
                        } else if elsewhere {
                            s.bad = Some(Violation::Duplicate);
                        }
                    }
                }
                Entry::LogStart { offset, .. } => s.shown_start = s.shown_start.max(*offset),
                Entry::Merged(_) | Entry::Compacted(_) | Entry::Archived(_) | Entry::Release { .. } => {}
            }
        }
    }

    pub fn ack(s: &mut State, rec: Rec, offset: Offset) {
        match s.requests[rec as usize].acked {
            Some(o) if o != offset => s.bad = Some(Violation::AckedTwice),
            _ => s.requests[rec as usize].acked = Some(offset),
        }
    }

    // ---- a broker start's memory ----

    pub fn serving(s: &mut State, inc: Incarnation) -> Option<&mut Serving> {
        match s.brokers.get_mut(inc as usize - 1)? {
            Broker::Serving(b) => Some(b),
            _ => None,
        }
    }

    pub fn taking(s: &mut State, inc: Incarnation) -> Option<&mut Taking> {
        match s.brokers.get_mut(inc as usize - 1)? {
            Broker::Taking(t) => Some(t),
            _ => None,
        }
    }

    pub fn serve(&self, epoch: i32, image: PartitionImage) -> Broker {
        let mut assigned: PartitionState = image.state.clone();
        if self.has(ForgetProducers) {
            assigned.producers.clear();
        }
        Broker::Serving(Box::new(Serving {
            epoch,
            assigned: Of::new(assigned),
            published: Of::new(image),
            window: Window::new(0),
            puts: BTreeMap::new(),
            waiting: vec![],
            head: None,
            head_write: None,
            checkpoint_write: None,
            head_open: false,
            heads_written: 0,
            given_up: Default::default(),
        }))
    }

    fn step(&self, s: &mut State, act: &Act) -> Option<()> {
        match *act {
            Act::Send(rec, inc) => self.send(s, rec, inc),
            Act::Land(stream, seq, by) => {
                let f = s.bucket.flying.get_mut(&(stream, seq, by))?;
                f.copies -= 1;
                let f = f.clone();
                if f.copies == 0 {
                    s.bucket.flying.remove(&(stream, seq, by));
                }
                s.bucket.objs.entry((stream, seq)).or_insert(f.obj);
                Some(())
            }
            Act::LandHead(i) => self.land_head(s, i),
            Act::LandCheckpoint(stream, nonce) => self.land_checkpoint(s, (stream, nonce)),
            Act::Answer(inc, write) => self.write_step(s, inc, write, Step::Answer),
            Act::ReadBack(inc, write) => self.write_step(s, inc, write, Step::ReadBack),
            Act::Echo(inc, write) | Act::TimeOut(inc, write) => {
                s.left.unknown = s.left.unknown.checked_sub(1)?;
                let what = if matches!(act, Act::Echo(..)) {
                    Step::Echo
                } else {
                    Step::TimeOut
                };
                self.write_step(s, inc, write, what)
            }
            Act::GiveUpHead(inc) => self.give_up_head(s, inc),
            Act::GiveUpCheckpoint(inc) => self.give_up_checkpoint(s, inc),
            Act::Start => self.start(s),
            Act::Crash(inc) => {
                s.left.crashes = s.left.crashes.checked_sub(1)?;
                s.brokers[inc as usize - 1] = Broker::Over;
                Some(())
            }
            Act::Take(inc) => self.take(s, inc),
            Act::Grant(inc) => self.grant(s, inc),
            Act::Recover(inc) => self.recover(s, inc),
            Act::LogStart(inc) => self.log_start(s, inc),
            Act::Checkpoint(inc) => self.checkpoint(s, inc),
            Act::Delete(inc) => self.delete(s, inc),
            Act::DeleteCheckpoints(inc) => self.delete_checkpoints(s, inc),
        }
    }

    fn write_step(&self, s: &mut State, inc: Incarnation, write: Write, what: Step) -> Option<()> {
        match write {
            Write::Head => self.head_step(s, inc, what),
            Write::Checkpoint => self.checkpoint_step(s, inc, what),
            Write::Segment(_) | Write::Seal => self.create_step(s, inc, write, what),
        }
    }

    /// Copies that can never change anything any more are forgotten: states that differ only in them are one.
    fn forget_spent(&self, s: &mut State) {
        let Bucket {
            objs,
            flying,
            heads,
            flying_heads,
            ..
        } = &mut s.bucket;
        if !self.has(HeadWithoutCas) {
            flying_heads.retain(|f| heads.get(&f.stream) == f.expected.as_ref());
        }
        if self.cfg.budget.log_starts == 0 && !self.has(FloorForgetsNeeded) {
            // Nothing is ever deleted.
            flying.retain(|(stream, seq, _), _| !objs.contains_key(&(*stream, *seq)));
        }
    }
}

/// What happens to a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Answer,
    Echo,
    TimeOut,
    ReadBack,
}

pub fn stamp(manifest: &mut Manifest, by: Incarnation) {
    let commit = Uuid::from_u128(1000 + u128::from(manifest.version));
    manifest.stamp(Some(by), commit);
}

impl Model for OneStream {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let mut manifest = Manifest::new(CLUSTER, Uuid::nil(), 1);
        let inc = manifest.register(1, None, BTreeMap::new());
        stamp(&mut manifest, inc);
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        manifest.apply(&create, TOPIC).expect("a new topic");
        manifest.take_over(inc, &[]).expect("an empty cluster");
        stamp(&mut manifest, inc);
        let bucket = Bucket {
            manifest: Of::new(manifest),
            objs: BTreeMap::new(),
            flying: BTreeMap::new(),
            heads: BTreeMap::new(),
            flying_heads: vec![],
            checkpoints: BTreeMap::new(),
            flying_checkpoints: BTreeMap::new(),
        };
        vec![State {
            bucket,
            brokers: vec![self.serve(1, PartitionImage::default())],
            requests: vec![Request::default(); self.records.len()],
            visible: BTreeMap::new(),
            shown_start: 0,
            asked_start: 0,
            left: self.cfg.budget,
            waited: false,
            head_adopted: false,
            bad: None,
        }]
    }

    /// Candidates; `next_state` drops those that are not possible.
    fn actions(&self, s: &State, acts: &mut Vec<Act>) {
        if s.bad.is_some() {
            return;
        }
        acts.extend(
            s.bucket
                .flying
                .keys()
                .map(|(stream, seq, by)| Act::Land(*stream, *seq, *by)),
        );
        acts.extend((0..s.bucket.flying_heads.len()).map(Act::LandHead));
        let checkpoints = s.bucket.flying_checkpoints.keys();
        acts.extend(checkpoints.map(|(stream, nonce)| Act::LandCheckpoint(*stream, *nonce)));
        if s.left.starts > 0 {
            acts.push(Act::Start);
        }
        for (i, broker) in s.brokers.iter().enumerate() {
            let inc = i as Incarnation + 1;
            let mut writes = vec![];
            match broker {
                Broker::Over => continue,
                Broker::Taking(t) => {
                    if t.sealing.is_some() {
                        writes.push(Write::Seal);
                    } else if !t.victims.is_empty() {
                        acts.push(Act::Take(inc));
                    } else if !t.granted {
                        acts.push(Act::Grant(inc));
                    } else {
                        acts.push(Act::Recover(inc));
                    }
                }
                Broker::Serving(b) => {
                    acts.extend((0..self.records.len()).map(|r| Act::Send(r as Rec, inc)));
                    writes.extend(b.puts.keys().map(|seq| Write::Segment(*seq)));
                    if let Some(w) = &b.head_write {
                        writes.push(Write::Head);
                        if w.machine.action() == Action::Read {
                            acts.push(Act::GiveUpHead(inc));
                        }
                    }
                    if let Some(w) = &b.checkpoint_write {
                        writes.push(Write::Checkpoint);
                        if w.machine.action() == Action::Read {
                            acts.push(Act::GiveUpCheckpoint(inc));
                        }
                    }
                    if self.cfg.old_checkpoints_go {
                        acts.push(Act::DeleteCheckpoints(inc));
                    }
                    if s.left.log_starts > 0 {
                        acts.push(Act::LogStart(inc));
                    }
                    if s.left.checkpoints > 0 {
                        acts.push(Act::Checkpoint(inc));
                    }
                    acts.push(Act::Delete(inc));
                }
            }
            for write in writes {
                acts.extend([Act::Answer(inc, write), Act::ReadBack(inc, write)]);
                if s.left.unknown > 0 {
                    acts.extend([Act::Echo(inc, write), Act::TimeOut(inc, write)]);
                }
            }
            if s.left.crashes > 0 {
                acts.push(Act::Crash(inc));
            }
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, &act)?;
        self.forget_spent(&mut s);
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn all_acked(s: &State) -> bool {
            s.requests.iter().all(|r| r.acked.is_some())
        }
        let void_seal = |_: &OneStream, s: &State| {
            let floor = |stream| s.bucket.heads.get(stream).map_or(0, |h| h.floor);
            s.bucket
                .objs
                .iter()
                .any(|((stream, seq), o)| matches!(o, Obj::Seal { .. }) && *seq < floor(stream))
        };
        vec![
            Property::always("no violation", |m: &OneStream, s: &State| {
                m.violation(s).is_none()
            }),
            Property::sometimes("all acknowledged", |_: &OneStream, s: &State| all_acked(s)),
            Property::sometimes("all acknowledged after a restart", |_: &OneStream, s: &State| {
                all_acked(s) && s.brokers.len() > 1
            }),
            Property::sometimes("zombie acknowledged", |_: &OneStream, s: &State| {
                let owner = s.bucket.manifest.slot(SLOT).map_or(0, |r| r.owner);
                all_acked(s) && owner > 1 && matches!(s.brokers[0], Broker::Serving(_))
            }),
            Property::sometimes("duplicate waited", |_: &OneStream, s: &State| s.waited),
            Property::sometimes("two links", |_: &OneStream, s: &State| {
                s.bucket.manifest.links(SLOT).len() > 1
            }),
            Property::sometimes("void seal", void_seal),
            Property::sometimes("segment deleted", |_: &OneStream, s: &State| {
                s.bucket
                    .heads
                    .iter()
                    .any(|(stream, h)| h.floor > 0 && !s.bucket.objs.contains_key(&(*stream, 0)))
            }),
            Property::sometimes("head adopted", |_: &OneStream, s: &State| s.head_adopted),
            Property::sometimes("checkpoint deleted", |_: &OneStream, s: &State| {
                s.bucket.heads.iter().any(|(stream, h)| {
                    let of_stream = s.bucket.checkpoints.keys().filter(|c| c.0 == *stream);
                    h.heartbeat > 1 && of_stream.count() == 1
                })
            }),
            Property::sometimes("taker met a deleted checkpoint", |_: &OneStream, s: &State| {
                let met = |b: &Broker| matches!(b, Broker::Taking(t) if t.met_missing && t.granted);
                s.brokers.iter().any(met)
            }),
            Property::sometimes("restarted from a checkpoint", |_: &OneStream, s: &State| {
                s.brokers.iter().any(|b| match b {
                    Broker::Taking(t) => t.read.values().any(|r| r.checkpoint.is_some()),
                    _ => false,
                })
            }),
        ]
    }
}
