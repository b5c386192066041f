//! Reads: what a broker may say to clients while it does not know that it has been succeeded.
//!
//! Time is a budget of ticks. A lease is good until the tick after which nothing has renewed it, and only what
//! *began* after the tick renews it. So a read may lack what was acknowledged since the last tick, and nothing older.
//! OffsetFetch and OFFSET_OUT_OF_RANGE, which clients act on for good, wait for proof that began after the question.

use super::model::{Act, B, Protocol};
use super::rules::Deviation::*;
use super::state::*;

/// What can go wrong here.
pub const VIOLATIONS: [Violation; 3] = [
    Violation::StaleBeyondLease,
    Violation::StaleCommit,
    Violation::WrongOutOfRange,
];

fn holds(log: &Log, s: &State, rec: Rec) -> bool {
    let off = s.recs[rec as usize].acked;
    off.is_some_and(|off| log.get(off as usize).map(|x| x.0) == Some(rec))
}

/// A broker that may answer reads lacks something that was acknowledged.
pub fn stale_within_lease(m: &Protocol, s: &State) -> bool {
    let slots = 0..s.manifest.slots.len() as Slot;
    let lacks = |br: &Broker, slot: Slot| {
        let o = m.readable(br, slot).filter(|_| br.leased);
        o.is_some_and(|o| m.acked(s, slot).any(|rec| !holds(&o.log, s, rec)))
    };
    s.brokers
        .iter()
        .any(|br| slots.clone().any(|slot| lacks(br, slot)))
}

impl Protocol {
    /// The slot as its broker reads it to clients. After a RELEASE it does not: a write proves the stream, and the
    /// slot may be somebody else's already.
    fn readable<'a>(&self, br: &'a Broker, slot: Slot) -> Option<&'a Owned> {
        let o = br.owned[slot as usize].as_ref().filter(|_| br.up)?;
        (o.phase == Phase::Serving || self.rules.has(ReadAfterRelease)).then_some(o)
    }

    fn acked(&self, s: &State, slot: Slot) -> impl Iterator<Item = Rec> {
        let acked = s.recs.iter().zip(&self.slot_of).enumerate();
        acked
            .filter(move |(_, (r, of))| r.acked.is_some() && **of == slot)
            .map(|(rec, _)| rec as Rec)
    }

    /// A broker whose lease is good lacks what was acknowledged before the lease could have been renewed.
    pub fn stale(&self, s: &State) -> Option<Violation> {
        if !self.has_ticks() {
            return None;
        }
        for br in s
            .brokers
            .iter()
            .filter(|br| br.leased || self.rules.has(ReadWithoutLease))
        {
            for slot in 0..s.manifest.slots.len() as Slot {
                let Some(o) = self.readable(br, slot) else {
                    continue;
                };
                let mut old = self.acked(s, slot).filter(|rec| s.recs[*rec as usize].settled);
                if old.any(|rec| !holds(&o.log, s, rec)) {
                    return Some(Violation::StaleBeyondLease);
                }
            }
        }
        None
    }

    pub fn read_actions(&self, s: &State, b: B, acts: &mut Vec<Act>) {
        let br = &s.brokers[b];
        if s.left.tick > 0 && b == 0 {
            acts.push(Act::Tick);
        }
        let asked = s.asked.as_ref().is_some_and(|a| a.broker == b);
        match &br.look {
            Some(_) => acts.push(Act::LookEnd(b)),
            None if self.has_ticks() && (!br.leased || asked || self.rules.has(ConfirmByLookUnderWay)) => {
                acts.push(Act::LookStart(b))
            }
            None => {}
        }
        if s.left.ask > 0 {
            let slots = 0..s.manifest.slots.len() as Slot;
            acts.extend(slots.flat_map(|slot| [Act::AskCommitted(b, slot), Act::AskBeyond(b, slot)]));
        }
        if br.inflight.len() > 1 && self.rules.has(LeaseByWriteBeyondSeal) {
            acts.push(Act::ProveSecond(b));
        }
    }

    pub fn tick(&self, s: &mut State) -> Option<()> {
        s.left.tick = s.left.tick.checked_sub(1)?;
        for br in &mut s.brokers {
            br.leased = false;
            br.inflight.iter_mut().for_each(|p| p.fresh = false);
            br.look.iter_mut().for_each(|l| l.fresh = false);
        }
        s.recs.iter_mut().for_each(|r| r.settled = r.acked.is_some());
        Some(())
    }

    pub fn look_start(&self, s: &mut State, b: B) -> Option<()> {
        let inc = s.brokers[b].inc;
        let live = s.manifest.streams[inc as usize] == Status::Live;
        let slots = s.manifest.slots.iter();
        let sees = slots.map(|m| (m.owner == inc).then_some(m.epoch)).collect();
        s.brokers[b].look = Some(Look {
            sees: live.then_some(sees),
            fresh: true,
            after_ask: s.asked.as_ref().is_some_and(|a| a.broker == b),
        });
        Some(())
    }

    /// The manifest comes: a broker whose stream is sealed stops, another one has proof.
    pub fn look_end(&self, s: &mut State, b: B) -> Option<()> {
        let look = s.brokers[b].look.take()?;
        let Some(sees) = look.sees else {
            self.forget(&mut s.brokers[b]);
            return Some(());
        };
        s.brokers[b].leased |= look.fresh || self.rules.has(LeaseFromAnswer);
        if look.after_ask || self.rules.has(ConfirmByLookUnderWay) {
            let ours = |a: &Asked| a.broker != b || sees[a.slot as usize] == Some(a.epoch);
            s.asked = s.asked.take().filter(ours);
            self.answer(s, b);
        }
        Some(())
    }

    /// A write that is published proves that no seal was before it when it began.
    pub fn proven_by_write(&self, s: &mut State, b: B, put: &Put) {
        s.brokers[b].leased |= put.fresh;
        if put.after_ask {
            self.answer(s, b);
        }
    }

    /// A deviation.
    pub fn prove_second(&self, s: &mut State, b: B) -> Option<()> {
        let br = &s.brokers[b];
        let put = br.inflight.get(1)?.clone();
        let stored = matches!(s.streams[br.inc as usize].get(br.next + 1), Obj::Data(_));
        if !stored || !put.fresh {
            return None;
        }
        self.proven_by_write(s, b, &put);
        Some(())
    }

    pub fn ask_committed(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let must: Vec<Rec> = self.acked(s, slot).collect();
        if must.is_empty() {
            return None;
        }
        self.ask(s, b, slot, Question::Committed(must), OffsetFetchUnconfirmed)
    }

    pub fn ask_beyond(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let known = self.readable(&s.brokers[b], slot)?.log.len();
        if known >= s.visible[slot as usize].len() {
            return None;
        }
        self.ask(s, b, slot, Question::Beyond, OutOfRangeUnconfirmed)
    }

    fn ask(
        &self,
        s: &mut State,
        b: B,
        slot: Slot,
        question: Question,
        at_once: super::rules::Deviation,
    ) -> Option<()> {
        if s.asked.is_some() || !s.brokers[b].leased {
            return None;
        }
        let epoch = self.readable(&s.brokers[b], slot)?.epoch;
        s.left.ask = s.left.ask.checked_sub(1)?;
        s.asked = Some(Asked {
            broker: b,
            slot,
            epoch,
            question,
        });
        if self.rules.has(at_once) {
            self.answer(s, b);
        }
        Some(())
    }

    /// Answers the question that waits at a broker, if there is one.
    fn answer(&self, s: &mut State, b: B) {
        let Some(a) = s.asked.take_if(|a| a.broker == b) else {
            return;
        };
        let Some(o) = self
            .readable(&s.brokers[b], a.slot)
            .filter(|o| o.epoch == a.epoch)
        else {
            return;
        };
        let wrong = match a.question {
            Question::Committed(must) => {
                let lacks = must.iter().any(|rec| !holds(&o.log, s, *rec));
                lacks.then_some(Violation::StaleCommit)
            }
            Question::Beyond => Some(Violation::WrongOutOfRange),
        };
        s.answered = true;
        s.bad = s.bad.or(wrong);
    }

    /// A question ends when its broker has lost the slot. Without one, nothing began after it.
    pub fn forget_question(&self, s: &mut State) {
        let waits = |a: &Asked| {
            let o = self.readable(&s.brokers[a.broker], a.slot);
            o.is_some_and(|o| o.epoch == a.epoch)
        };
        if s.asked.as_ref().is_some_and(waits) {
            return;
        }
        s.asked = None;
        for br in &mut s.brokers {
            br.inflight.iter_mut().for_each(|p| p.after_ask = false);
            br.look.iter_mut().for_each(|l| l.after_ask = false);
        }
    }
}
