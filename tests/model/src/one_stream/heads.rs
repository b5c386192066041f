//! Checkpoints of what is published, the head that names them, and deletion below its floor.

use std::collections::BTreeMap;

use alluvium_log::entry::Place;
use alluvium_log::format::checkpoint::{Checkpoint, SlotImage};
use alluvium_log::head::{CheckpointRef, Head, floor};
use alluvium_log::store::conditional::{Action, CreateEvent, CreateMachine, UpdateEvent, UpdateMachine};
use alluvium_log::{Incarnation, Seq};
use uuid::Uuid;

use super::model::*;
use super::rules::Deviation::*;
use super::state::*;

/// A number that no other checkpoint or head has.
fn fresh(inc: Incarnation, n: u8) -> Uuid {
    Uuid::from_u128(u128::from(inc) << 8 | u128::from(n))
}

fn fly_checkpoint(s: &mut State, key: (Incarnation, u128), body: Of<Checkpoint>) {
    let none = FlyingCheckpoint { body, copies: 0 };
    let flying = s.bucket.flying_checkpoints.entry(key).or_insert(none);
    flying.copies = (flying.copies + 1).min(COPIES);
}

impl OneStream {
    pub fn checkpoint(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        if s.left.checkpoints == 0 {
            return None;
        }
        let manifest = s.bucket.manifest.clone();
        let b = Self::serving(s, inc)?;
        let next = b.window.published_next();
        let named = b
            .head
            .as_ref()
            .and_then(|h| h.checkpoint.as_ref())
            .map(|c| c.next);
        if b.head_write.is_some()
            || b.checkpoint_write.is_some()
            || named.is_some_and(|n| n >= next)
            || next == 0 && b.published.state.end == 0
        {
            return None;
        }
        let mut image = (*b.published).clone();
        if self.has(CheckpointAssigned) {
            for (i, entries) in b.window.iter().enumerate() {
                let place = Place::l0(inc, next + i as Seq);
                entries
                    .iter()
                    .for_each(|e| image.apply(e, place).unwrap_or_default());
            }
        }
        let oldest_needed = image.oldest_needed(inc).filter(|_| !self.has(FloorForgetsNeeded));
        b.heads_written += 1;
        let nonce = fresh(inc, b.heads_written);
        let slot = SlotImage {
            epoch: b.epoch,
            partitions: vec![(tp(), image)],
        };
        let named = Named {
            next,
            nonce,
            oldest_needed,
        };
        let checkpoint = Checkpoint {
            incarnation: inc,
            next,
            manifest_version: manifest.version,
            written_ms: 0,
            slots: BTreeMap::from([(SLOT, slot)]),
        };
        let body = Of::new(checkpoint);
        if self.cfg.old_checkpoints_go {
            b.checkpoint_write = Some(CheckpointWrite {
                machine: CreateMachine::default(),
                named,
                body: body.clone(),
            });
            fly_checkpoint(s, (inc, nonce.as_u128()), body);
            s.left.checkpoints -= 1;
            return Some(());
        }
        s.left.checkpoints -= 1;
        s.bucket.checkpoints.insert((inc, nonce.as_u128()), body);
        self.write_head(s, inc, named, true)
    }

    /// Sends a head that names a durable checkpoint; once more if an earlier head is in its way.
    fn write_head(&self, s: &mut State, inc: Incarnation, named: Named, again: bool) -> Option<()> {
        let version = s.bucket.manifest.version;
        let b = Self::serving(s, inc)?;
        b.heads_written += 1;
        let commit = fresh(inc, b.heads_written);
        let mut head = b
            .head
            .as_ref()
            .map_or_else(|| Head::new(CLUSTER, inc, commit), |h| (**h).clone());
        let Named { next, nonce, .. } = named;
        head.commit_id = commit;
        head.heartbeat += 1;
        head.tip = b.window.published_next();
        head.manifest_version = version;
        head.floor = floor(head.floor, next, named.oldest_needed);
        head.checkpoint = Some(CheckpointRef { next, nonce });
        let (body, expected) = (Of::new(head), b.head.clone());
        b.head_write = Some(HeadWrite {
            machine: UpdateMachine::default(),
            expected: expected.clone(),
            body: body.clone(),
            names: again.then_some(named),
        });
        s.bucket.flying_heads.push(FlyingHead {
            stream: inc,
            expected,
            body,
            copies: 1,
        });
        Some(())
    }

    pub fn land_checkpoint(&self, s: &mut State, key: (Incarnation, u128)) -> Option<()> {
        let f = s.bucket.flying_checkpoints.get_mut(&key)?;
        f.copies -= 1;
        let f = f.clone();
        if f.copies == 0 {
            s.bucket.flying_checkpoints.remove(&key);
        }
        s.bucket.checkpoints.entry(key).or_insert(f.body);
        Some(())
    }

    /// What happens to the create of a checkpoint. Nobody else writes under its key.
    pub fn checkpoint_step(&self, s: &mut State, inc: Incarnation, what: Step) -> Option<()> {
        let write = Self::serving(s, inc)?.checkpoint_write.clone()?;
        let key = (inc, write.named.nonce.as_u128());
        let stored = s.bucket.checkpoints.contains_key(&key);
        let event = match what {
            Step::Answer if stored => CreateEvent::PutConfirmed,
            Step::Echo if stored => CreateEvent::PutRefused,
            Step::Answer | Step::Echo => return None,
            Step::TimeOut => CreateEvent::PutUnknown,
            Step::ReadBack if stored => CreateEvent::ReadMine,
            Step::ReadBack => CreateEvent::ReadMissing,
        };
        let event = match event {
            CreateEvent::PutUnknown if self.has(UnknownCheckpointIsStored) => CreateEvent::PutConfirmed,
            e => e,
        };
        let expected = match what {
            Step::ReadBack => Action::Read,
            _ => Action::Put,
        };
        let mut machine = write.machine;
        if machine.action() != expected {
            return None;
        }
        let action = machine.on(event);
        let b = Self::serving(s, inc)?;
        b.checkpoint_write.as_mut()?.machine = machine;
        match action {
            Action::Put => fly_checkpoint(s, key, write.body),
            Action::Read => {}
            Action::Committed => {
                b.checkpoint_write = None;
                self.write_head(s, inc, write.named, true)?;
            }
            Action::Lost => b.checkpoint_write = None,
        }
        Some(())
    }

    pub fn give_up_checkpoint(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = Self::serving(s, inc)?;
        (b.checkpoint_write.as_ref()?.machine.action() == Action::Read).then_some(())?;
        b.checkpoint_write = None;
        Some(())
    }

    /// Deletes the checkpoints of a stream that its durable head does not name, and that are not being written. Not
    /// while a head is open: what is stored may name any of them.
    pub fn delete_checkpoints(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let early = self.has(DeleteCheckpointBeforeHead);
        let b = Self::serving(s, inc)?;
        if b.head_open {
            return None;
        }
        let (durable, pending) = (b.head.as_deref(), b.head_write.as_ref().map(|w| &*w.body));
        let named = [durable.filter(|_| !early || pending.is_none()), pending];
        let named = named
            .iter()
            .flatten()
            .filter_map(|h| Some(h.checkpoint.as_ref()?.nonce));
        let writing = b.checkpoint_write.as_ref().map(|w| w.named.nonce);
        let keep: Vec<u128> = named.chain(writing).map(|n| n.as_u128()).collect();
        let before = s.bucket.checkpoints.len();
        s.bucket
            .checkpoints
            .retain(|(stream, nonce), _| *stream != inc || keep.contains(nonce));
        (s.bucket.checkpoints.len() < before).then_some(())
    }

    pub fn land_head(&self, s: &mut State, i: usize) -> Option<()> {
        let f = s.bucket.flying_heads.get_mut(i)?;
        f.copies -= 1;
        let f = f.clone();
        if f.copies == 0 {
            s.bucket.flying_heads.remove(i);
        }
        if s.bucket.heads.get(&f.stream) == f.expected.as_ref() || self.has(HeadWithoutCas) {
            s.bucket.heads.insert(f.stream, f.body);
        }
        Some(())
    }

    pub fn head_step(&self, s: &mut State, inc: Incarnation, what: Step) -> Option<()> {
        let stored = s.bucket.heads.get(&inc).cloned();
        let b = Self::serving(s, inc)?;
        let write = b.head_write.as_mut()?;
        let landed = stored
            .as_ref()
            .is_some_and(|h| h.commit_id == write.body.commit_id);
        let unchanged = stored == write.expected;
        let event = match what {
            Step::Answer if landed => UpdateEvent::PutConfirmed,
            Step::Answer if unchanged => return None,
            Step::Answer => UpdateEvent::PutRefused,
            Step::Echo if landed => UpdateEvent::PutRefused,
            Step::Echo => return None,
            Step::TimeOut => UpdateEvent::PutUnknown,
            Step::ReadBack if landed => UpdateEvent::ReadLanded,
            Step::ReadBack if unchanged => UpdateEvent::ReadUnchanged,
            Step::ReadBack => UpdateEvent::ReadChanged,
        };
        let expected = if what == Step::ReadBack {
            Action::Read
        } else {
            Action::Put
        };
        if write.machine.action() != expected {
            return None;
        }
        match write.machine.on(event) {
            Action::Put => {
                let body = write.body.clone();
                let again = |f: &&mut FlyingHead| f.body == body;
                match s.bucket.flying_heads.iter_mut().find(again) {
                    Some(f) => f.copies = (f.copies + 1).min(COPIES),
                    None => {
                        let expected = Self::serving(s, inc)?.head_write.clone()?.expected;
                        s.bucket.flying_heads.push(FlyingHead {
                            stream: inc,
                            expected,
                            body,
                            copies: 1,
                        });
                    }
                }
            }
            Action::Read => {}
            Action::Committed => {
                b.head = Some(write.body.clone());
                b.head_write = None;
                b.head_open = false;
            }
            Action::Lost => {
                // An earlier head of this stream, given up, is there: it is adopted, and built upon.
                b.head = stored;
                b.head_open = false;
                let write = b.head_write.take();
                s.head_adopted = true;
                if let Some(named) = write.and_then(|w| w.names) {
                    self.write_head(s, inc, named, false)?;
                }
            }
        }
        Some(())
    }

    pub fn give_up_head(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = Self::serving(s, inc)?;
        (b.head_write.as_ref()?.machine.action() == Action::Read).then_some(())?;
        let write = b.head_write.take()?;
        if self.has(UnknownHeadIsStored) {
            b.head = Some(write.body);
        } else {
            b.head_open = self.cfg.old_checkpoints_go && !self.has(UnknownHeadIsLost);
        }
        Some(())
    }

    pub fn delete(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let early = self.has(DeleteBeforeHeadDurable);
        let b = Self::serving(s, inc)?;
        let pending = b.head_write.as_ref().filter(|_| early).map(|w| w.body.floor);
        let below = pending.or(b.head.as_ref().map(|h| h.floor))?;
        let before = s.bucket.objs.len();
        s.bucket.objs.retain(|(stream, seq), obj| {
            (*stream, matches!(obj, Obj::Data(_))) != (inc, true) || *seq >= below
        });
        (s.bucket.objs.len() < before).then_some(())
    }
}
