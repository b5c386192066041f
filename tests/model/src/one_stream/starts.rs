//! A broker starts: it registers, ends the streams before it, takes the slot and recovers.

use std::collections::BTreeMap;

use alluvium_log::manifest::Manifest;
use alluvium_log::manifest::change::TakeoverRefused;
use alluvium_log::store::conditional::CreateMachine;
use alluvium_log::takeover::{Found, Takeover};
use alluvium_log::{Incarnation, Seq};

use super::model::*;
use super::recover::*;
use super::rules::Deviation::*;
use super::state::*;

impl OneStream {
    pub fn start(&self, s: &mut State) -> Option<()> {
        if s.left.starts == 0 {
            return None;
        }
        s.left.starts -= 1;
        let manifest = s.bucket.manifest.get_mut();
        let inc = manifest.register(1, None, BTreeMap::new());
        stamp(manifest, inc);
        s.brokers.push(Broker::Taking(Box::new(Taking {
            victims: victims(manifest, inc),
            take: Takeover::Begin,
            first_floor: 0,
            sealing: None,
            reading: Reading::default(),
            named: None,
            sealed: vec![],
            read: BTreeMap::new(),
            linked: None,
            met_missing: false,
            granted: false,
        })));
        Some(())
    }

    /// The next read of a takeover: of the head, or of a key.
    pub fn take(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let (trust, unsealed) = (self.has(TrustFoundSeal), self.has(TakeWithoutSeal));
        let State { bucket, brokers, .. } = s;
        let Broker::Taking(t) = brokers.get_mut(inc as usize - 1)? else {
            return None;
        };
        let victim = *t.victims.first()?;
        if let Some(head) = t.named.take() {
            match begin(bucket, victim, Some(&head)) {
                Some(reading) => t.reading = reading,
                None if self.has(MissingCheckpointIsNone) => t.reading = Reading::default(),
                // Its owner has deleted it, so the head names a newer one by now.
                None => (t.take, t.met_missing) = (Takeover::Begin, true),
            }
            return Some(());
        }
        match t.take {
            Takeover::Begin | Takeover::Confirming { .. } => {
                let mut seen = head_seen(bucket, victim);
                if t.take == Takeover::Begin {
                    t.first_floor = seen.floor;
                }
                if self.has(IgnoreFloor) {
                    seen.floor = 0;
                } else if self.has(FloorReadOnlyBeforeSeal) {
                    seen.floor = t.first_floor;
                }
                t.take = t.take.on(Found::Head(seen));
                if let Takeover::Probing { .. } = t.take {
                    // The first time, or the seal was void: all that was read before is out of date.
                    let head = bucket.heads.get(&victim);
                    if self.cfg.old_checkpoints_go && head.is_some() {
                        t.named = head.cloned();
                    } else {
                        t.reading = begin(bucket, victim, head)?;
                    }
                }
            }
            Takeover::Probing { probe } => {
                t.take = match bucket.objs.get(&(victim, probe)) {
                    Some(Obj::Data(entries)) => {
                        t.reading.segments.push((probe, entries.clone()));
                        t.take.on(Found::Data)
                    }
                    Some(Obj::Seal { .. }) if trust => Takeover::Sealed { seal: probe },
                    Some(Obj::Seal { .. }) => t.take.on(Found::Seal),
                    None if unsealed => Takeover::Sealed { seal: probe },
                    None => t.take.on(Found::Missing),
                };
            }
            Takeover::Sealing { .. } | Takeover::Sealed { .. } => return None,
        }
        if let Takeover::Sealing { at } = t.take {
            t.sealing = Some(CreateMachine::default());
            Self::fly(s, victim, at, inc, Obj::Seal { taker: inc });
        }
        self.ended(s, inc)
    }

    /// The seal that was sent is there, or something else is.
    pub fn seal_settled(
        &self,
        s: &mut State,
        inc: Incarnation,
        found: Found,
        met: Option<(Seq, Entries)>,
    ) -> Option<()> {
        let (trust, skip) = (self.has(TrustFoundSeal), self.has(SegmentMetBySealNotRead));
        let t = Self::taking(s, inc)?;
        t.sealing = None;
        t.take = match (t.take, found) {
            (Takeover::Sealing { at }, Found::Seal) if trust => Takeover::Sealed { seal: at },
            (take, found) => take.on(found),
        };
        // The segment that was there first is part of the log, whether or not the next probe reads it.
        if let Some((seq, entries)) = met {
            let passed = Takeover::Probing { probe: seq + 1 };
            if skip {
                t.take = passed;
            } else if t.take == passed {
                t.reading.segments.push((seq, entries));
            }
        }
        self.ended(s, inc)
    }

    /// Goes on to the next stream if this one is ended.
    pub fn ended(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let t = Self::taking(s, inc)?;
        if let Takeover::Sealed { seal } = t.take {
            let victim = t.victims.remove(0);
            t.sealed.push((victim, seal));
            t.read.insert(victim, std::mem::take(&mut t.reading));
            t.take = Takeover::Begin;
        }
        Some(())
    }

    pub fn grant(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let mut manifest = (*s.bucket.manifest).clone();
        let t = Self::taking(s, inc)?;
        if t.granted || !t.victims.is_empty() {
            return None;
        }
        match manifest.take_over(inc, &t.sealed) {
            Ok(()) => {
                t.granted = true;
                stamp(&mut manifest, inc);
                s.bucket.manifest = Of::new(manifest);
            }
            Err(TakeoverRefused::VictimNotLive(_)) => {
                t.victims = victims(&manifest, inc);
                t.sealed.clear();
            }
            Err(TakeoverRefused::TakerNotLive | TakeoverRefused::NothingToDo) => {
                s.brokers[inc as usize - 1] = Broker::Over
            }
        }
        Some(())
    }

    pub fn recover(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let t = Self::taking(s, inc).filter(|t| t.granted)?.clone();
        let manifest = s.bucket.manifest.clone();
        let run = manifest.slot(SLOT)?;
        if run.owner != inc {
            // Taken over before it served: the manifest tells it so.
            s.brokers[inc as usize - 1] = Broker::Over;
            return Some(());
        }
        if self.cfg.old_checkpoints_go && self.read_linked(s, inc) {
            return Some(());
        }
        match rebuild(&s.bucket, &manifest, &t.read) {
            Ok(image) => s.brokers[inc as usize - 1] = self.serve(run.epoch, image),
            Err(_) => s.bad = Some(Violation::TakerCannotRecover),
        }
        Some(())
    }

    /// The next read of a linked stream: of its head, or of all that the head leads to. Its owner may still run and
    /// delete, so what is not there any more means: read the head again. False if nothing must be read.
    fn read_linked(&self, s: &mut State, inc: Incarnation) -> bool {
        let State { bucket, brokers, .. } = s;
        let Some(Broker::Taking(t)) = brokers.get_mut(inc as usize - 1) else {
            return false;
        };
        let Some((stream, bound)) = wanted(&bucket.manifest, &t.read) else {
            return false;
        };
        match t.linked.take() {
            Some((of, head)) if of == stream => match sealed_stream(bucket, stream, bound, head.as_ref()) {
                Some(reading) => drop(t.read.insert(stream, reading)),
                None => t.met_missing = true,
            },
            _ => t.linked = Some((stream, bucket.heads.get(&stream).cloned())),
        }
        true
    }
}

fn victims(manifest: &Manifest, taker: Incarnation) -> Vec<Incarnation> {
    manifest.live().map(|(i, _)| i).filter(|i| *i < taker).collect()
}
