//! The bucket, each broker start's memory, and what the clients have seen.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use alluvium_log::entry::Entry;
use alluvium_log::format::checkpoint::Checkpoint;
use alluvium_log::head::Head;
use alluvium_log::manifest::{Manifest, StreamState};
use alluvium_log::partition::image::PartitionImage;
use alluvium_log::partition::state::PartitionState;
use alluvium_log::store::conditional::{CreateMachine, UpdateMachine};
use alluvium_log::stream::window::Window;
use alluvium_log::takeover::Takeover;
use alluvium_log::{Incarnation, Offset, Seq};
use uuid::Uuid;

/// A record: one (producer, sequence number).
pub type Rec = u8;

/// What a state is told apart by. The engine's types hold unordered maps, so not all of them are `Hash`.
pub trait Fingerprint {
    fn fingerprint<H: Hasher>(&self, h: &mut H);
}

/// Shared, compared by content, hashed by its fingerprint.
#[derive(Debug, PartialEq, Eq)]
pub struct Of<T>(Arc<T>);

impl<T> Of<T> {
    pub fn new(t: T) -> Of<T> {
        Of(Arc::new(t))
    }
}

impl<T: Clone> Of<T> {
    pub fn get_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> Clone for Of<T> {
    fn clone(&self) -> Self {
        Of(self.0.clone())
    }
}

impl<T> Deref for Of<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Fingerprint> Hash for Of<T> {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.0.fingerprint(h);
    }
}

impl Fingerprint for PartitionState {
    fn fingerprint<H: Hasher>(&self, h: &mut H) {
        (self.log_start, self.end, &self.epochs).hash(h);
        let mut producers: Vec<_> = self
            .producers
            .iter()
            .map(|(id, p)| (id, p.epoch, &p.batches))
            .collect();
        producers.sort_by_key(|p| p.0);
        producers.hash(h);
    }
}

impl Fingerprint for PartitionImage {
    fn fingerprint<H: Hasher>(&self, h: &mut H) {
        self.state.fingerprint(h);
        self.ranges.len().hash(h);
        self.ranges
            .iter()
            .for_each(|r| (r.base_offset, r.last_offset, r.place).hash(h));
    }
}

impl Fingerprint for Checkpoint {
    fn fingerprint<H: Hasher>(&self, h: &mut H) {
        (self.incarnation, self.next, self.slots.len()).hash(h);
        for (slot, image) in &self.slots {
            (slot, image.epoch, image.partitions.len()).hash(h);
            image
                .partitions
                .iter()
                .for_each(|(_, image)| image.fingerprint(h));
        }
    }
}

impl Fingerprint for Head {
    fn fingerprint<H: Hasher>(&self, h: &mut H) {
        let checkpoint = self.checkpoint.as_ref().map(|c| (c.next, c.nonce));
        (
            self.incarnation,
            self.commit_id,
            checkpoint,
            self.floor,
            self.heartbeat,
        )
            .hash(h);
    }
}

impl Fingerprint for Manifest {
    fn fingerprint<H: Hasher>(&self, h: &mut H) {
        (
            self.version,
            self.commit_id,
            self.next_incarnation,
            &self.last_commits,
        )
            .hash(h);
        self.slots
            .iter()
            .for_each(|r| (r.first, r.count, r.owner, r.epoch, r.desired).hash(h));
        for (stream, entry) in &self.streams {
            stream.hash(h);
            let released = entry.released.iter();
            released.for_each(|r| (r.first, r.count, r.epoch, r.bound).hash(h));
            if let StreamState::Sealed { at, links } = &entry.state {
                at.hash(h);
                links.iter().for_each(|l| (l.first, l.count, l.epoch).hash(h));
            }
        }
        self.topics
            .iter()
            .for_each(|(name, t)| (name, t.id, &t.configs).hash(h));
        self.broker_configs.hash(h);
    }
}

pub type Entries = Arc<Vec<Entry>>;

/// What a key of a stream holds. The bytes stand for the nonce: no two writes of a key are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Obj {
    Data(Entries),
    Seal { taker: Incarnation },
}

/// Copies of a create that are on their way and may land at any time, whatever became of their writer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flying {
    pub obj: Obj,
    pub copies: u8,
}

/// Copies of a compare-and-swap of a head that are on their way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlyingHead {
    pub stream: Incarnation,
    pub expected: Option<Of<Head>>,
    pub body: Of<Head>,
    pub copies: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub manifest: Of<Manifest>,
    pub objs: BTreeMap<(Incarnation, Seq), Obj>,
    /// By key and writer.
    pub flying: BTreeMap<(Incarnation, Seq, Incarnation), Flying>,
    pub heads: BTreeMap<Incarnation, Of<Head>>,
    pub flying_heads: Vec<FlyingHead>,
    /// By stream and nonce.
    pub checkpoints: BTreeMap<(Incarnation, u128), Of<Checkpoint>>,
    pub flying_checkpoints: BTreeMap<(Incarnation, u128), FlyingCheckpoint>,
}

/// Copies of a checkpoint that are on their way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlyingCheckpoint {
    pub body: Of<Checkpoint>,
    pub copies: u8,
}

/// What a taker has read of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reading {
    pub checkpoint: Option<Of<Checkpoint>>,
    pub segments: Vec<(Seq, Entries)>,
}

/// A broker start before it serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taking {
    /// Streams that are still to be ended; the first is being ended.
    pub victims: Vec<Incarnation>,
    pub take: Takeover,
    /// Floor at the first read of the head: only a deviation looks at it.
    pub first_floor: Seq,
    /// The seal on its way.
    pub sealing: Option<CreateMachine>,
    pub reading: Reading,
    /// A head whose checkpoint must still be read.
    pub named: Option<Of<Head>>,
    pub sealed: Vec<(Incarnation, Seq)>,
    pub read: BTreeMap<Incarnation, Reading>,
    /// The head of a linked stream whose checkpoint and segments must still be read.
    pub linked: Option<(Incarnation, Option<Of<Head>>)>,
    /// A checkpoint was gone, and the head was read again.
    pub met_missing: bool,
    /// The manifest says that it owns the slot.
    pub granted: bool,
}

/// A client's request that waits for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub rec: Rec,
    pub offset: Offset,
    pub seq: Seq,
}

/// A head that is being written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeadWrite {
    pub machine: UpdateMachine,
    pub expected: Option<Of<Head>>,
    pub body: Of<Head>,
    /// What it names, to be named again if an earlier head turns out to be in the way.
    pub names: Option<Named>,
}

/// A durable checkpoint, and the oldest segment that is needed beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    pub next: Seq,
    pub nonce: Uuid,
    pub oldest_needed: Option<Seq>,
}

/// A checkpoint that is being written. Its key holds the nonce.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CheckpointWrite {
    pub machine: CreateMachine,
    pub named: Named,
    pub body: Of<Checkpoint>,
}

/// A broker start that serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serving {
    pub epoch: i32,
    pub assigned: Of<PartitionState>,
    pub published: Of<PartitionImage>,
    pub window: Window<Entries>,
    pub puts: BTreeMap<Seq, CreateMachine>,
    pub waiting: Vec<Waiting>,
    /// The newest head that it knows to be stored.
    pub head: Option<Of<Head>>,
    pub head_write: Option<HeadWrite>,
    pub checkpoint_write: Option<CheckpointWrite>,
    /// A head was given up, and none is known to be stored since: it may name any checkpoint.
    pub head_open: bool,
    pub heads_written: u8,
    /// Seqs that were told as failed: only a deviation does that.
    pub given_up: BTreeSet<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Broker {
    Taking(Box<Taking>),
    Serving(Box<Serving>),
    /// Fenced or crashed: its memory is gone.
    Over,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    pub sent: u8,
    pub acked: Option<Offset>,
}

/// How often what costs states may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub starts: u8,
    pub crashes: u8,
    pub unknown: u8,
    pub checkpoints: u8,
    pub log_starts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Bucket and manifest no longer give a log.
    Unrecoverable,
    /// What a taker read on its way does not give a log.
    TakerCannotRecover,
    /// An acknowledged record is not at its offset.
    AckedLost,
    /// An acknowledged record is there, but its producer's retry would be appended again.
    RetryNotKnown,
    /// A record that consumers have seen is not at its offset.
    VisibleLost,
    /// The bytes of something readable are gone.
    ReadableDeleted,
    /// Two records at one offset.
    OffsetReused,
    /// One record at two offsets.
    Duplicate,
    /// One record acknowledged at two offsets.
    AckedTwice,
    /// The log start went back, or to where nobody asked.
    LogStartMoved,
    /// An entry that the engine assigned does not fit what it published.
    Misfit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub bucket: Bucket,
    /// Index 0 is incarnation 1.
    pub brokers: Vec<Broker>,
    pub requests: Vec<Request>,
    /// What consumers have seen.
    pub visible: BTreeMap<Offset, Rec>,
    /// The greatest log start that was shown, and that was asked for.
    pub shown_start: Offset,
    pub asked_start: Offset,
    pub left: Budget,
    /// A duplicate waited for its original and was answered.
    pub waited: bool,
    /// A head that was given up turned out to be stored.
    pub head_adopted: bool,
    pub bad: Option<Violation>,
}
