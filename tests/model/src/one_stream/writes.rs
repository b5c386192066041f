//! Appends, segments on their way, and what becomes of a create.

use alluvium_log::entry::{BatchEntry, BatchRange, Entry, Place};
use alluvium_log::partition::state::Verdict;
use alluvium_log::store::conditional::{Action, CreateEvent, CreateMachine};
use alluvium_log::takeover::{Found, Takeover};
use alluvium_log::{Incarnation, Offset, Seq};

use super::model::*;
use super::rules::Deviation::*;
use super::state::*;

impl OneStream {
    pub fn send(&self, s: &mut State, rec: Rec, inc: Incarnation) -> Option<()> {
        let (producer, before) = (self.batch_producer(rec), self.before(rec));
        let r = &s.requests[rec as usize];
        if r.acked.is_some() || r.sent >= self.cfg.max_sends {
            return None;
        }
        let before_acked = before.is_none_or(|p| s.requests[p as usize].acked.is_some());
        let b = Self::serving(s, inc)?;
        // A client pipelines on one connection: what comes before is acknowledged or was sent here.
        let known_here = before.is_some_and(|p| {
            matches!(
                b.assigned.check(Some(self.batch_producer(p))),
                Verdict::Duplicate(_)
            )
        });
        if !before_acked && !known_here {
            return None;
        }
        let newest = b.window.next_seq().checked_sub(1);
        match b.assigned.check(Some(producer)) {
            Verdict::Reject(_) => return None,
            Verdict::Duplicate(original) => {
                let offset = original.base_offset;
                match newest.filter(|seq| *seq >= b.window.published_next()) {
                    Some(seq) if !self.has(AnswerDuplicateEarly) => {
                        let again = Waiting { rec, offset, seq };
                        if b.waiting.contains(&again) {
                            return None;
                        }
                        b.waiting.push(again);
                    }
                    _ => Self::ack(s, rec, offset),
                }
            }
            Verdict::Append => {
                let offset = b.assigned.end;
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
                    partition: tp(),
                    leader_epoch: b.epoch,
                    position: 0,
                    append_time_ms: 0,
                    batches: vec![batch],
                });
                let seq = self.append(s, inc, entry)?;
                Self::serving(s, inc)?.waiting.push(Waiting { rec, offset, seq });
                if self.has(PublishBeforeDurable) {
                    self.show_early(s, inc, seq);
                }
            }
        }
        s.requests[rec as usize].sent += 1;
        Some(())
    }

    /// Assigns an entry and sends the segment that holds it.
    pub fn append(&self, s: &mut State, inc: Incarnation, entry: Entry) -> Option<Seq> {
        let b = Self::serving(s, inc)?;
        if b.window.in_flight() >= self.cfg.puts_in_flight {
            return None;
        }
        if b.assigned.get_mut().apply(&entry).is_err() {
            s.bad = Some(Violation::Misfit);
            return Some(0);
        }
        let entries = Entries::new(vec![entry]);
        let seq = b.window.push(entries.clone());
        b.puts.insert(seq, CreateMachine::default());
        Self::fly(s, inc, seq, inc, Obj::Data(entries));
        Some(seq)
    }

    pub fn fly(s: &mut State, stream: Incarnation, seq: Seq, by: Incarnation, obj: Obj) {
        let flying = s
            .bucket
            .flying
            .entry((stream, seq, by))
            .or_insert(Flying { obj, copies: 0 });
        flying.copies = (flying.copies + 1).min(COPIES);
    }

    pub fn log_start(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = Self::serving(s, inc)?;
        // Only what readers have been shown may be dropped; the oldest record goes first.
        let offset = b.published.ranges.front()?.last_offset + 1;
        let (epoch, known) = (b.epoch, b.assigned.log_start);
        if offset <= known || s.left.log_starts == 0 {
            return None;
        }
        self.append(
            s,
            inc,
            Entry::LogStart {
                partition: tp(),
                leader_epoch: epoch,
                offset,
            },
        )?;
        s.asked_start = s.asked_start.max(offset);
        s.left.log_starts -= 1;
        Some(())
    }

    /// A deviation: shows and acknowledges a segment without asking the window.
    pub fn show_early(&self, s: &mut State, inc: Incarnation, seq: Seq) {
        let Some(b) = Self::serving(s, inc) else { return };
        let Some(at) = seq.checked_sub(b.window.published_next()) else {
            return;
        };
        let Some(entries) = b.window.iter().nth(at as usize).cloned() else {
            return;
        };
        let waiting: Vec<Waiting> = b.waiting.iter().filter(|w| w.seq == seq).copied().collect();
        self.show(s, &entries);
        waiting.iter().for_each(|w| Self::ack(s, w.rec, w.offset));
    }

    /// A segment is durable: publishes what the window lets go, in order, and answers who waited for it.
    pub fn durable(&self, s: &mut State, inc: Incarnation, seq: Seq) {
        if self.has(PublishOutOfOrder) {
            self.show_early(s, inc, seq);
        }
        let Some(b) = Self::serving(s, inc) else { return };
        b.puts.remove(&seq);
        let first = b.window.published_next();
        for (i, entries) in b.window.durable(seq).into_iter().enumerate() {
            let Some(b) = Self::serving(s, inc) else { return };
            let place = Place::l0(inc, first + i as Seq);
            if b.given_up.remove(&place.seq) {
                continue;
            }
            let image = b.published.get_mut();
            let fits = entries.iter().all(|e| image.apply(e, place).is_ok());
            let (answered, waiting): (Vec<Waiting>, _) = b.waiting.iter().partition(|w| w.seq <= place.seq);
            b.waiting = waiting;
            if !fits {
                s.bad = Some(Violation::Misfit);
            }
            self.show(s, &entries);
            for w in answered {
                s.waited |= answered_late(&entries, w.offset);
                Self::ack(s, w.rec, w.offset);
            }
        }
    }

    // ---- conditional creates ----

    /// Key, writer's bytes and machine of a create that is under way.
    pub fn create_of(
        s: &State,
        inc: Incarnation,
        write: Write,
    ) -> Option<((Incarnation, Seq), Obj, CreateMachine)> {
        match (s.brokers.get(inc as usize - 1)?, write) {
            (Broker::Serving(b), Write::Segment(seq)) => {
                let machine = *b.puts.get(&seq)?;
                let at = seq.checked_sub(b.window.published_next())?;
                Some((
                    (inc, seq),
                    Obj::Data(b.window.iter().nth(at as usize)?.clone()),
                    machine,
                ))
            }
            (Broker::Taking(t), Write::Seal) => match t.take {
                Takeover::Sealing { at } => {
                    Some(((*t.victims.first()?, at), Obj::Seal { taker: inc }, t.sealing?))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// What happens to a create: its machine is asked, and what it says is done.
    pub fn create_step(&self, s: &mut State, inc: Incarnation, write: Write, what: Step) -> Option<()> {
        let (key, mine, mut machine) = Self::create_of(s, inc, write)?;
        let found = s.bucket.objs.get(&key).cloned();
        let is_mine = found.as_ref() == Some(&mine);
        let event = match (what, &found) {
            (Step::Answer, Some(_)) if is_mine => CreateEvent::PutConfirmed,
            (Step::Answer, Some(_)) => CreateEvent::PutRefused,
            (Step::Answer, None) => return None,
            (Step::Echo, Some(_)) if is_mine => CreateEvent::PutRefused,
            (Step::Echo, _) => return None,
            (Step::TimeOut, _) => CreateEvent::PutUnknown,
            (Step::ReadBack, Some(_)) if is_mine => CreateEvent::ReadMine,
            (Step::ReadBack, Some(_)) => CreateEvent::ReadOther,
            (Step::ReadBack, None) => CreateEvent::ReadMissing,
        };
        let expected = if what == Step::ReadBack {
            Action::Read
        } else {
            Action::Put
        };
        if machine.action() != expected {
            return None;
        }
        let event = match event {
            CreateEvent::PutRefused if self.has(BlindRetryExistsIsOurs) => CreateEvent::PutConfirmed,
            e => e,
        };
        if let (CreateEvent::PutUnknown, Write::Segment(seq), true) =
            (event, write, self.has(UnknownIsFailure))
        {
            return self.send_under_next_seq(s, inc, seq);
        }
        match (machine.on(event), write) {
            (Action::Put, _) => Self::fly(s, key.0, key.1, inc, mine),
            (Action::Read, _) => {}
            (Action::Committed, Write::Segment(seq)) => {
                self.durable(s, inc, seq);
                return Some(());
            }
            (Action::Lost, Write::Segment(_)) => {
                // Fenced: every request that waits is told that its outcome is open.
                s.brokers[inc as usize - 1] = Broker::Over;
                return Some(());
            }
            (Action::Committed, _) => return self.seal_settled(s, inc, Found::Created, None),
            (Action::Lost, _) => {
                return match found? {
                    Obj::Seal { .. } => self.seal_settled(s, inc, Found::Seal, None),
                    Obj::Data(entries) => self.seal_settled(s, inc, Found::Data, Some((key.1, entries))),
                };
            }
        }
        match &mut s.brokers[inc as usize - 1] {
            Broker::Serving(b) => {
                b.puts.insert(key.1, machine);
            }
            Broker::Taking(t) => t.sealing = Some(machine),
            Broker::Over => {}
        }
        Some(())
    }

    /// A deviation.
    pub fn send_under_next_seq(&self, s: &mut State, inc: Incarnation, seq: Seq) -> Option<()> {
        let b = Self::serving(s, inc)?;
        let at = seq.checked_sub(b.window.published_next())?;
        let entries = b.window.iter().nth(at as usize)?.clone();
        let again = b.window.push(entries.clone());
        b.puts.insert(again, CreateMachine::default());
        b.given_up.insert(seq);
        b.waiting
            .iter_mut()
            .filter(|w| w.seq == seq)
            .for_each(|w| w.seq = again);
        Self::fly(s, inc, again, inc, Obj::Data(entries));
        self.durable(s, inc, seq);
        Some(())
    }
}

/// Whether an answer at `offset` comes with entries that do not hold it: a duplicate that waited.
fn answered_late(entries: &[Entry], offset: Offset) -> bool {
    !entries
        .iter()
        .any(|e| matches!(e, Entry::Batches(r) if r.base_offset() == offset))
}
