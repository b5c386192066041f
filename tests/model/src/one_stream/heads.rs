//! Checkpoints of what is published, the head that names them, and deletion below its floor.

use std::collections::BTreeMap;

use alluvium_log::entry::Place;
use alluvium_log::format::checkpoint::{Checkpoint, SlotImage};
use alluvium_log::head::{CheckpointRef, Head, floor};
use alluvium_log::store::conditional::{Action, UpdateEvent, UpdateMachine};
use alluvium_log::{Incarnation, Seq};
use uuid::Uuid;

use super::model::*;
use super::rules::Deviation::*;
use super::state::*;

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
        let nonce = Uuid::from_u128(u128::from(inc) << 8 | u128::from(b.heads_written));
        let mut head = b
            .head
            .as_ref()
            .map_or_else(|| Head::new(CLUSTER, inc, nonce), |h| (**h).clone());
        head.commit_id = nonce;
        head.heartbeat += 1;
        head.tip = next;
        head.manifest_version = manifest.version;
        head.floor = floor(head.floor, next, oldest_needed);
        head.checkpoint = Some(CheckpointRef { next, nonce });
        let (body, expected) = (Of::new(head), b.head.clone());
        let slot = SlotImage {
            epoch: b.epoch,
            partitions: vec![(tp(), image)],
        };
        b.head_write = Some(HeadWrite {
            machine: UpdateMachine::default(),
            expected: expected.clone(),
            body: body.clone(),
        });
        let checkpoint = Checkpoint {
            incarnation: inc,
            next,
            manifest_version: manifest.version,
            written_ms: 0,
            slots: BTreeMap::from([(SLOT, slot)]),
        };
        s.bucket
            .checkpoints
            .insert((inc, nonce.as_u128()), Of::new(checkpoint));
        s.bucket.flying_heads.push(FlyingHead {
            stream: inc,
            expected,
            body,
            copies: 1,
        });
        s.left.checkpoints -= 1;
        Some(())
    }

    pub fn land_head(&self, s: &mut State, i: usize) -> Option<()> {
        let f = s.bucket.flying_heads.get_mut(i)?;
        f.copies -= 1;
        let f = f.clone();
        if f.copies == 0 {
            s.bucket.flying_heads.remove(i);
        }
        if s.bucket.heads.get(&f.stream) == f.expected.as_ref() {
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
            }
            Action::Lost => {
                // An earlier head of this stream, given up, is there: it is adopted.
                b.head = stored;
                b.head_write = None;
                s.head_adopted = true;
            }
        }
        Some(())
    }

    pub fn give_up_head(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = Self::serving(s, inc)?;
        (b.head_write.as_ref()?.machine.action() == Action::Read).then_some(())?;
        b.head_write = None;
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
