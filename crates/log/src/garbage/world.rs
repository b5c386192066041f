//! A small world of brokers, moves, takeovers, merges and checkpoints, taken through random steps, with rounds of
//! looking for garbage in between that are cut into their parts. After each step everything that any recovery could
//! reach, and everything that a broker leads, must still be there. Rules are broken one at a time to see that this is
//! noticed.
//!
//! The decisions are the engine's: [`Manifest`], [`recover`], [`PartitionImage`], [`FileNumbers`], [`Claims`],
//! [`Judge`]. The loops around them are told again here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::numbers::FileNumber;
use super::*;
use crate::entry::{BatchEntry, BatchRange, Entry, MergedRange, MergedRanges};
use crate::format::checkpoint::{Checkpoint, SlotImage};
use crate::manifest::Change;
use crate::manifest::change::Released;
use crate::partition::image::PartitionImage;
use crate::recover::{Source, Sources, StreamRead, recover, to_read};
use crate::stream::{Owned, Phase};
use crate::{Seq, TopicId, TopicPartition};

const SLOTS: u32 = 3;
const BROKERS_MAX: usize = 4;
const TOPIC: TopicId = Uuid::from_u128(77);

/// A rule of the rounds that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The checkpoint of one other broker counts as read, and is not.
    CheckpointLeftOut,
    /// A slot that is in no checkpoint holds nothing, whatever its links.
    LinksIgnored,
    /// A state of another epoch covers a slot.
    EpochIgnored,
    /// The manifest is not looked at again.
    SecondLookLeftOut,
    /// Files are listed, and numbers taken, after the claims were read.
    ListedLate,
    /// Files that are being written are judged as well.
    UnsettledJudged,
}

#[derive(Debug, Default)]
struct Log {
    segments: Vec<Vec<Entry>>,
    seal: Option<Seq>,
    /// What the head names.
    checkpoint: Option<Checkpoint>,
}

#[derive(Debug)]
struct Merge {
    file: FileNumber,
    pointers: Vec<MergedRanges>,
}

/// A round that is under way.
#[derive(Debug)]
struct Round {
    judge: Judge,
    listed: Vec<Place>,
    manifest: Option<Manifest>,
    claimed: BTreeSet<Place>,
    covered: Vec<(Incarnation, Vec<(Slot, i32)>)>,
    /// Brokers whose claims are still to be read; itself first.
    to_ask: Vec<Incarnation>,
}

#[derive(Debug)]
struct Broker {
    incarnation: Incarnation,
    applied: Manifest,
    owned: BTreeMap<Slot, Owned>,
    images: BTreeMap<Slot, PartitionImage>,
    files: Arc<FileNumbers>,
    merge: Option<Merge>,
    released: Option<Released>,
    fenced: bool,
    round: Option<Round>,
    unreferenced: BTreeSet<Place>,
}

#[derive(Debug)]
struct World {
    broken: Broken,
    random: SmallRng,
    manifest: Manifest,
    logs: BTreeMap<Incarnation, Log>,
    brokers: Vec<Broker>,
    /// A seal is set, and the manifest is to be changed.
    takeover: Option<(Incarnation, Incarnation, Seq)>,
    objects: BTreeSet<Place>,
    deleted: BTreeSet<Place>,
    saves_often: bool,
    /// How far rounds came.
    found: u64,
}

fn tp(slot: Slot) -> TopicPartition {
    let partitions = (0..SLOTS as i32).map(|partition| TopicPartition {
        topic: TOPIC,
        partition,
    });
    let mut of_slot = partitions.filter(|tp| crate::manifest::slot_of(tp, SLOTS) == slot);
    of_slot.next().unwrap()
}

fn entry(slot: Slot, epoch: i32, offset: i64) -> Entry {
    let batch = BatchEntry {
        base_offset: offset,
        last_offset: offset,
        records: 1,
        size: 70,
        base_timestamp: 0,
        max_timestamp: 0,
        attributes: 0,
        producer: None,
    };
    Entry::Batches(BatchRange {
        partition: tp(slot),
        leader_epoch: epoch,
        position: 100,
        append_time_ms: 0,
        batches: vec![batch],
    })
}

impl World {
    fn new(seed: u64, broken: Broken) -> World {
        let mut manifest = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), SLOTS);
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: SLOTS,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        manifest.apply(&create, TOPIC).unwrap();
        let mut world = World {
            broken,
            random: SmallRng::seed_from_u64(seed),
            manifest,
            logs: BTreeMap::new(),
            brokers: vec![],
            takeover: None,
            objects: BTreeSet::new(),
            deleted: BTreeSet::new(),
            saves_often: seed.is_multiple_of(2),
            found: 0,
        };
        world.start();
        world
    }

    fn changed(&mut self) {
        self.manifest.version += 1;
    }

    fn start(&mut self) {
        let incarnation = self.manifest.register(1, None, BTreeMap::new());
        // The first takes what nobody owns.
        if self.manifest.slots.iter().any(|run| run.owner == 0) {
            self.manifest.take_over(incarnation, &[]).unwrap();
        }
        self.changed();
        self.logs.insert(incarnation, Log::default());
        self.brokers.push(Broker {
            incarnation,
            applied: self.manifest.clone(),
            owned: BTreeMap::new(),
            images: BTreeMap::new(),
            files: Arc::default(),
            merge: None,
            released: None,
            fenced: false,
            round: None,
            unreferenced: BTreeSet::new(),
        });
        self.apply(self.brokers.len() - 1);
    }

    /// Appends a segment to a broker's stream and applies it; false if it meets a seal.
    fn publish(&mut self, b: usize, entries: Vec<Entry>) -> bool {
        let broker = &mut self.brokers[b];
        let log = self.logs.get_mut(&broker.incarnation).unwrap();
        if log.seal.is_some() {
            broker.fenced = true;
            return false;
        }
        let place = Place::l0(broker.incarnation, log.segments.len() as Seq);
        for e in &entries {
            let Some((tp, epoch)) = e.scope() else { continue };
            let slot = crate::manifest::slot_of(&tp, SLOTS);
            if broker.owned.get(&slot).is_some_and(|o| o.epoch == epoch) {
                broker.images.get_mut(&slot).unwrap().apply(e, place).unwrap();
            }
        }
        log.segments.push(entries);
        true
    }

    fn active(&mut self, b: usize) -> Option<(Slot, i32)> {
        let active = self.brokers[b].owned.iter();
        let active: Vec<_> = active
            .filter(|(_, o)| o.phase == Phase::Active)
            .map(|(slot, o)| (*slot, o.epoch))
            .collect();
        let one = self.random.random_range(0..active.len().max(1));
        active.get(one).copied()
    }

    fn append(&mut self, b: usize) {
        if let Some((slot, epoch)) = self.active(b) {
            let offset = self.brokers[b].images[&slot].state.end;
            self.publish(b, vec![entry(slot, epoch, offset)]);
        }
    }

    fn move_log_start(&mut self, b: usize) {
        let Some((slot, leader_epoch)) = self.active(b) else {
            return;
        };
        let state = &self.brokers[b].images[&slot].state;
        let offset = match self.random.random_range(0..2) {
            0 => state.end,
            _ => self.random.random_range(state.log_start..=state.end),
        };
        let start = Entry::LogStart {
            partition: tp(slot),
            leader_epoch,
            offset,
        };
        self.publish(b, vec![start]);
    }

    /// Writes an object; its pointers come later.
    fn write_merged(&mut self, b: usize) {
        let broker = &mut self.brokers[b];
        if broker.merge.is_some() {
            return;
        }
        let file = broker.files.begin();
        let mut pointers = vec![];
        for (slot, o) in broker.owned.iter().filter(|(_, o)| o.phase == Phase::Active) {
            let image = &broker.images[slot];
            let ranges: Vec<_> = image.unmerged_ranges().copied().collect();
            let Some(first) = ranges.first() else { continue };
            pointers.push(MergedRanges {
                partition: tp(*slot),
                leader_epoch: o.epoch,
                file: file.number(),
                position: 100,
                base_offset: first.base_offset,
                ranges: ranges
                    .iter()
                    .map(|r| MergedRange {
                        last_offset: r.last_offset,
                        len: r.len,
                        max_timestamp: 0,
                        append_time_ms: 0,
                    })
                    .collect(),
            });
        }
        if pointers.is_empty() {
            return;
        }
        self.objects.insert(Place::l1(broker.incarnation, file.number()));
        broker.merge = Some(Merge { file, pointers });
    }

    fn publish_pointers(&mut self, b: usize) {
        let Some(Merge { mut file, pointers }) = self.brokers[b].merge.take() else {
            return;
        };
        file.submit();
        let broker = &self.brokers[b];
        let fits = |m: &MergedRanges| {
            let slot = crate::manifest::slot_of(&m.partition, SLOTS);
            let active = Owned {
                epoch: m.leader_epoch,
                phase: Phase::Active,
            };
            broker.owned.get(&slot) == Some(&active) && {
                let rewrite = Entry::Merged(m.clone()).rewrite().unwrap();
                matches!(broker.images[&slot].covered_by(&rewrite), Ok(Some(_)))
            }
        };
        let fitting: Vec<_> = pointers.into_iter().filter(fits).map(Entry::Merged).collect();
        if fitting.is_empty() || self.publish(b, fitting) {
            file.settle();
        }
    }

    fn checkpoint(&mut self, b: usize) {
        let broker = &self.brokers[b];
        if !broker.applied.is_live(broker.incarnation) {
            return;
        }
        let covered = broker.owned.iter().filter(|(_, o)| o.is_covered());
        let slots = covered.map(|(slot, o)| {
            let image = broker.images[slot].clone();
            let slot_image = SlotImage {
                epoch: o.epoch,
                partitions: vec![(tp(*slot), image)],
            };
            (*slot, slot_image)
        });
        let log = &self.logs[&broker.incarnation];
        let checkpoint = Checkpoint {
            incarnation: broker.incarnation,
            next: log.segments.len() as Seq,
            manifest_version: broker.applied.version,
            written_ms: 0,
            slots: slots.collect(),
        };
        self.logs.get_mut(&broker.incarnation).unwrap().checkpoint = Some(checkpoint);
    }

    fn release(&mut self, b: usize) {
        if self.brokers[b].released.is_some() {
            return;
        }
        let Some((slot, epoch)) = self.active(b) else {
            return;
        };
        let image = crate::format::checkpoint::encode_slot(&SlotImage {
            epoch,
            partitions: vec![(tp(slot), self.brokers[b].images[&slot].clone())],
        });
        let release = Entry::Release {
            slot,
            leader_epoch: epoch,
            image,
        };
        self.brokers[b].owned.get_mut(&slot).unwrap().phase = Phase::Releasing;
        if self.publish(b, vec![release]) {
            let bound = self.logs[&self.brokers[b].incarnation].segments.len() as Seq;
            self.brokers[b].released = Some(Released { slot, epoch, bound });
        }
    }

    fn move_released(&mut self, b: usize) {
        let Some(released) = self.brokers[b].released.take() else {
            return;
        };
        let from = self.brokers[b].incarnation;
        let live: Vec<Incarnation> = self.manifest.live().map(|(i, _)| i).collect();
        let to = live[self.random.random_range(0..live.len())];
        if self.manifest.is_live(from) {
            self.manifest.set_desired(&[(released.slot, to)]);
            self.manifest.move_slots(from, &[released]).unwrap();
            self.changed();
            self.apply(b);
        }
    }

    fn seal(&mut self, b: usize) {
        let (by, live) = (self.brokers[b].incarnation, &self.manifest);
        let victims: Vec<Incarnation> = live.live().map(|(i, _)| i).filter(|i| *i != by).collect();
        if self.takeover.is_some() || victims.is_empty() || !live.is_live(by) {
            return;
        }
        let victim = victims[self.random.random_range(0..victims.len())];
        let log = self.logs.get_mut(&victim).unwrap();
        let at = log.segments.len() as Seq;
        log.seal = Some(at);
        self.takeover = Some((by, victim, at));
    }

    fn take_over(&mut self) {
        let Some((by, victim, at)) = self.takeover.take() else {
            return;
        };
        let live: Vec<Incarnation> = self.manifest.live().map(|(i, _)| i).collect();
        let heir = live[self.random.random_range(0..live.len())];
        if self.manifest.take_over_for(by, &[(victim, at)], |_| heir).is_ok() {
            self.changed();
        } else {
            // The taker has ended; another one will go on from the seal.
            let other = live.iter().find(|i| **i != victim);
            self.takeover = other.map(|by| (*by, victim, at));
        }
    }

    /// Brings a broker in line with the manifest.
    fn apply(&mut self, b: usize) {
        let broker = &mut self.brokers[b];
        broker.applied = self.manifest.clone();
        if !self.manifest.is_live(broker.incarnation) {
            broker.fenced = true;
            return;
        }
        let granted: BTreeMap<Slot, i32> = self.manifest.slots_of(broker.incarnation).collect();
        broker.owned.retain(|slot, o| granted.get(slot) == Some(&o.epoch));
        let owned = &mut broker.owned;
        broker.images.retain(|slot, _| owned.contains_key(slot));
        for (slot, epoch) in granted {
            let phase = Phase::Recovering;
            owned.entry(slot).or_insert(Owned { epoch, phase });
        }
    }

    fn recover(&mut self, b: usize) {
        let broker = &self.brokers[b];
        let slots: Vec<Slot> = broker
            .owned
            .iter()
            .filter(|(_, o)| o.phase == Phase::Recovering)
            .map(|(slot, _)| *slot)
            .collect();
        let Some(images) = self.recovered(&broker.applied, &slots) else {
            return;
        };
        let broker = &mut self.brokers[b];
        for slot in slots {
            broker.owned.get_mut(&slot).unwrap().phase = Phase::Active;
            let image = images.get(&slot).cloned().unwrap_or_default();
            broker.images.insert(slot, image);
        }
    }

    fn recovered(&self, manifest: &Manifest, slots: &[Slot]) -> Option<BTreeMap<Slot, PartitionImage>> {
        let mut sources = Sources::default();
        loop {
            let wanted = to_read(manifest, slots, &sources);
            if wanted.is_empty() {
                break;
            }
            for source in wanted {
                match source {
                    Source::Stream { stream, bound } => {
                        let log = &self.logs[&stream];
                        let checkpoint = log.checkpoint.clone().filter(|c| c.next <= bound);
                        let first = checkpoint.as_ref().map_or(0, |c| c.next);
                        let segments = (first..bound).map(|seq| (seq, log.segments[seq as usize].clone()));
                        let segments = segments.collect();
                        sources
                            .streams
                            .insert(stream, StreamRead { checkpoint, segments });
                    }
                    Source::Release { stream, bound } => {
                        let mut released = BTreeMap::new();
                        for e in &self.logs[&stream].segments[bound as usize - 1] {
                            if let Entry::Release {
                                slot,
                                leader_epoch: epoch,
                                image,
                            } = e
                            {
                                let partitions =
                                    crate::format::checkpoint::decode_slot(image.clone()).unwrap();
                                let epoch = *epoch;
                                released.insert(*slot, SlotImage { epoch, partitions });
                            }
                        }
                        sources.releases.insert((stream, bound), released);
                    }
                }
            }
        }
        let images = recover(manifest, slots, &sources).ok()?;
        let by_slot = images.into_iter();
        Some(
            by_slot
                .map(|(tp, image)| (crate::manifest::slot_of(&tp, SLOTS), image))
                .collect(),
        )
    }

    fn drop_links(&mut self, b: usize) {
        let broker = &self.brokers[b];
        let Some(checkpoint) = &self.logs[&broker.incarnation].checkpoint else {
            return;
        };
        if !self.manifest.is_live(broker.incarnation) {
            return;
        }
        let whole = checkpoint.slots.iter().filter(|(slot, image)| {
            let active = broker.owned.get(slot).is_some_and(|o| o.phase == Phase::Active);
            let mut images = image.partitions.iter();
            active && !images.any(|(_, image)| image.needs_foreign(broker.incarnation))
        });
        let whole: Vec<_> = whole.map(|(slot, image)| (*slot, image.epoch)).collect();
        if self.manifest.drop_links(broker.incarnation, &whole) > 0 {
            self.changed();
        }
    }

    /// One part of a round of looking for garbage.
    fn look_for_garbage(&mut self, b: usize) {
        if self.brokers[b].fenced {
            return;
        }
        let Some(mut round) = self.brokers[b].round.take() else {
            let round = self.begin(b);
            self.brokers[b].round = Some(round);
            return;
        };
        let broker = &self.brokers[b];
        let Some(manifest) = &round.manifest else {
            if self.manifest.is_live(broker.incarnation) {
                round.to_ask = self.manifest.live().map(|(i, _)| i).collect();
                round.manifest = Some(self.manifest.clone());
                self.brokers[b].round = Some(round);
            }
            return;
        };
        if let Some(asked) = round.to_ask.pop() {
            let (slots, files) = self.claims_of(b, asked);
            let left_out = self.broken == Broken::CheckpointLeftOut && asked != broker.incarnation;
            if !left_out {
                round.claimed.extend(files);
            }
            round.covered.push((asked, slots));
            self.brokers[b].round = Some(round);
            return;
        }
        let mut claims = Claims::new(manifest);
        for (owner, slots) in &round.covered {
            let as_granted = |(slot, epoch): &(Slot, i32)| match self.broken {
                Broken::EpochIgnored => (*slot, manifest.slot(*slot).unwrap().epoch),
                _ => (*slot, *epoch),
            };
            claims.cover(*owner, slots.iter().map(as_granted));
        }
        if self.broken == Broken::LinksIgnored {
            for run in &manifest.slots {
                claims.cover(
                    run.owner,
                    (run.first..run.first + run.count).map(|s| (s, run.epoch)),
                );
            }
        }
        claims.claim(round.claimed.iter().copied());
        let Ok(claimed) = claims.finish() else { return };
        let unchanged = self.manifest.version == manifest.version;
        if !unchanged && self.broken != Broken::SecondLookLeftOut {
            return;
        }
        if self.broken == Broken::ListedLate {
            let late = self.begin(b);
            (round.judge, round.listed) = (late.judge, late.listed);
        }
        for file in &round.listed {
            let judged = round.judge.may_judge(manifest, *file);
            if judged && !claimed.contains(file) {
                self.found += u64::from(self.brokers[b].unreferenced.insert(*file));
            }
        }
    }

    fn begin(&self, b: usize) -> Round {
        let broker = &self.brokers[b];
        let settled_below = match self.broken {
            Broken::UnsettledJudged => u64::MAX,
            _ => broker.files.settled_below(),
        };
        Round {
            judge: Judge {
                own: broker.incarnation,
                merged_below: settled_below,
                archived_below: settled_below,
                drained: true,
            },
            listed: self.objects.iter().copied().collect(),
            manifest: None,
            claimed: BTreeSet::new(),
            covered: vec![],
            to_ask: vec![],
        }
    }

    /// What broker `b` sees of another, or of itself.
    fn claims_of(&self, b: usize, asked: Incarnation) -> (Vec<(Slot, i32)>, Vec<Place>) {
        let broker = &self.brokers[b];
        if broker.incarnation == asked {
            let covered = broker.owned.iter().filter(|(_, o)| o.is_covered());
            let slots = covered.map(|(slot, o)| (*slot, o.epoch)).collect();
            return (slots, broker.images.values().flat_map(files_of).collect());
        }
        let Some(checkpoint) = &self.logs[&asked].checkpoint else {
            return (vec![], vec![]);
        };
        let slots = checkpoint
            .slots
            .iter()
            .map(|(slot, s)| (*slot, s.epoch))
            .collect();
        let images = checkpoint.slots.values().flat_map(|s| &s.partitions);
        (slots, images.flat_map(|(_, image)| files_of(image)).collect())
    }

    /// After a while, as it may be.
    fn delete(&mut self, b: usize) {
        let now = self.random.random_range(0..3) == 0;
        let broker = &mut self.brokers[b];
        if now && !broker.fenced {
            for file in std::mem::take(&mut broker.unreferenced) {
                self.objects.remove(&file);
                self.deleted.insert(file);
            }
        }
    }

    /// One step; whether something was deleted.
    fn step(&mut self) -> bool {
        let before = self.deleted.len();
        let running: Vec<usize> = (0..self.brokers.len())
            .filter(|b| !self.brokers[*b].fenced)
            .collect();
        let b = match running.is_empty() || self.random.random_range(0..10) == 0 {
            true => self.random.random_range(0..self.brokers.len()),
            false => running[self.random.random_range(0..running.len())],
        };
        let choice = self.random.random_range(0..100);
        // One that knows that it has ended does nothing any more; one that does not goes on.
        if self.brokers[b].fenced && choice < 95 {
            return false;
        }
        match choice {
            0..9 => self.append(b),
            9..14 => self.move_log_start(b),
            14..20 => self.write_merged(b),
            20..27 => self.publish_pointers(b),
            27..34 if self.saves_often || self.random.random_range(0..8) == 0 => self.checkpoint(b),
            27..34 => {}
            34..36 => self.release(b),
            36..41 => self.move_released(b),
            41..42 if self.random.random_range(0..3) == 0 => self.seal(b),
            42..45 => self.take_over(),
            45..51 => self.apply(b),
            51..58 => self.recover(b),
            58..62 => self.drop_links(b),
            41..62 => {}
            62..95 => {
                // Some rounds are quick, others are overtaken by what happens.
                for _ in 0..self.random.random_range(1..8) {
                    self.look_for_garbage(b);
                }
                self.delete(b);
            }
            _ if self.random.random_range(0..4) > 0 => {}
            _ => {
                let running = self.brokers.iter().filter(|b| !b.fenced).count();
                if running < BROKERS_MAX && self.brokers.len() < 3 * BROKERS_MAX {
                    self.start();
                }
            }
        }
        self.deleted.len() > before
    }

    /// What is needed and gone.
    fn lost(&self) -> Option<String> {
        let mut after = self.manifest.clone();
        let live: Vec<Incarnation> = after.live().map(|(i, _)| i).collect();
        let ends: Vec<(Incarnation, Seq)> = live
            .iter()
            .map(|i| (*i, self.logs[i].segments.len() as Seq))
            .collect();
        let taker = after.register(9, None, BTreeMap::new());
        after.take_over(taker, &ends).unwrap();
        let slots: Vec<Slot> = (0..SLOTS).collect();
        let Some(images) = self.recovered(&after, &slots) else {
            return Some("nothing can be recovered".into());
        };
        let recovered = images
            .values()
            .flat_map(files_of)
            .map(|file| (file, "a recovery"));
        let led = self.brokers.iter().filter(|b| !b.fenced).flat_map(|b| {
            let led = b.images.iter().filter(move |(slot, _)| {
                let run = self.manifest.slot(**slot).unwrap();
                (run.owner, run.epoch) == (b.incarnation, b.owned[*slot].epoch)
            });
            led.flat_map(|(_, image)| files_of(image))
                .map(|file| (file, "its leader"))
        });
        let mut needed = recovered.chain(led);
        let gone = needed.find(|(file, _)| !self.objects.contains(file));
        gone.map(|(file, who)| format!("{file:?} is needed by {who}"))
    }
}

/// Takes a world through its steps; what was lost, if anything was, and what was deleted.
fn run(seed: u64, broken: Broken, steps: usize) -> Result<World, String> {
    let mut world = World::new(seed, broken);
    for step in 0..steps {
        let deleted = world.step();
        if (deleted || step % CHECK_EVERY == 0)
            && let Some(lost) = world.lost()
        {
            return Err(format!("seed {seed}, step {step}: {lost}"));
        }
    }
    Ok(world)
}

const STEPS: usize = 600;
/// What is lost stays so for a while, and looking costs more than a step.
const CHECK_EVERY: usize = 5;

#[test]
fn nothing_that_is_needed_is_ever_deleted() {
    let (mut deleted, mut of_others, mut drained) = (0, 0, 0);
    for seed in 0..200 {
        let world = run(seed, Broken::Nothing, STEPS).unwrap();
        deleted += world.deleted.len();
        let is_live = |file: &&Place| world.manifest.is_live(file.incarnation);
        of_others += world.deleted.iter().filter(|f| !is_live(f)).count();
        drained += world.brokers.len() - world.manifest.streams.len();
    }
    println!("deleted {deleted}, {of_others} of those that have ended, {drained} streams drained");
    assert!(
        deleted > 500 && of_others > 50 && drained > 50,
        "{deleted} {of_others} {drained}"
    );
}

#[test]
fn every_broken_rule_is_noticed() {
    let mut unnoticed = vec![];
    // Each with a seed from which on to look, since some need a rare course of things.
    for (broken, from) in [
        (Broken::CheckpointLeftOut, 0),
        (Broken::LinksIgnored, 0),
        (Broken::EpochIgnored, 985),
        (Broken::SecondLookLeftOut, 0),
        (Broken::ListedLate, 0),
        (Broken::UnsettledJudged, 0),
    ] {
        let noticed = (from..from + 3_000).find_map(|seed| run(seed, broken, STEPS).err());
        println!("{broken:?}: {noticed:?}");
        unnoticed.extend(noticed.is_none().then_some(broken));
    }
    assert_eq!(unnoticed, []);
}
