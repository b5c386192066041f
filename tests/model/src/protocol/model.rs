//! The protocol: every action is one atomic step at the bucket or in one broker's memory.
//! A paused broker is one whose actions are not taken for a while; a zombie is one that is
//! sealed and does not know it yet. Both come for free.

use stateright::{Model, Property};

use super::reads;
use super::recover::*;
use super::rules::{Deviation::*, Rules};
use super::state::*;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub brokers: u8,
    pub max_incarnations: u8,
    /// Broker that owns each slot at the start.
    pub owners: Vec<u8>,
    /// Slot of each producer, and how many records it sends.
    pub producers: Vec<(Slot, u8)>,
    pub max_sends: u8,
    pub pipeline: usize,
    /// Whether a released slot may come back to the broker that released it.
    pub take_back: bool,
    pub budget: Budget,
    /// What must be reached, or the configuration does not show what it is for.
    pub reaches: Vec<&'static str>,
}

pub struct Protocol {
    pub cfg: Scenario,
    pub rules: Rules,
    pub slot_of: Vec<Slot>,
    /// The record that its producer sent just before.
    pub before: Vec<Option<Rec>>,
}

pub type B = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Send(Rec, B),
    /// A copy of a segment PUT reaches the bucket.
    Land {
        stream: Inc,
        seq: Seq,
    },
    /// The broker learns the outcome of its oldest PUT: publish, fenced, or send again.
    Settle(B),
    AckSecond(B),
    Crash(B),
    Restart(B),
    TakeStart(B, Inc),
    TakeProbe(B),
    TakeCommit(B),
    Recover(B, Slot),
    Release(B, Slot),
    Move {
        from: B,
        slot: Slot,
        to: B,
    },
    Grab(B, Slot),
    Merge(B),
    LogStart(B, Slot),
    Checkpoint(B),
    LandCheckpoint(Inc),
    Heartbeat(B),
    DeleteSegments(B),
    DropLinks(B, Slot),
    Drain(Inc),
    OwnerDeleteFile(B, FileId),
    CleanStart(FileId),
    CleanRead(Slot),
    CleanEnd,
    /// The same CAS as the inner action, but its outcome stays unknown for a while.
    Delayed(Box<Act>),
    LandCas(usize),
    SettleCas(B),
    /// All leases run out that nothing has renewed since the last tick.
    Tick,
    LookStart(B),
    LookEnd(B),
    /// A client asks what committed offsets there are.
    AskCommitted(B, Slot),
    /// A client fetches at an offset that it has been shown, and the broker does not know it.
    AskBeyond(B, Slot),
    /// A deviation: the second write under way is stored, and counts as proof.
    ProveSecond(B),
    /// A graceful stop begins.
    Stop(B),
    SealItself(B),
    Retire {
        from: B,
        to: Inc,
    },
    TakeFree(B),
    /// Like `TakeCommit`, and one slot goes to another broker.
    TakeSplit {
        by: B,
        slot: Slot,
        to: B,
    },
}

impl Protocol {
    pub fn new(cfg: Scenario, rules: Rules) -> Self {
        let (mut slot_of, mut before) = (vec![], vec![]);
        for &(slot, n) in &cfg.producers {
            for i in 0..n {
                before.push((i > 0).then(|| slot_of.len() as Rec - 1));
                slot_of.push(slot);
            }
        }
        Protocol {
            cfg,
            rules,
            slot_of,
            before,
        }
    }

    // ---- a broker's memory ----

    fn new_broker(&self, inc: Inc) -> Broker {
        Broker {
            up: true,
            inc,
            next: 0,
            inflight: vec![],
            owned: vec![None; self.cfg.owners.len()],
            durable: None,
            take: None,
            floor: 0,
            cas: None,
            commits: 0,
            leased: self.has_ticks(),
            look: None,
            stopping: false,
            sealed_itself: None,
        }
    }

    pub fn forget(&self, br: &mut Broker) {
        *br = Broker {
            up: false,
            leased: false,
            ..self.new_broker(br.inc)
        };
    }

    pub fn has_ticks(&self) -> bool {
        self.cfg.budget.tick > 0
    }

    fn serving(br: &Broker, slot: Slot) -> Option<&Owned> {
        br.owned[slot as usize]
            .as_ref()
            .filter(|o| br.up && o.phase == Phase::Serving)
    }

    fn in_flight(br: &Broker, f: impl Fn(&Entry) -> bool) -> bool {
        br.inflight.iter().any(|p| p.seg.iter().any(&f))
    }

    fn releasing(br: &Broker, slot: Slot) -> bool {
        Self::in_flight(br, |e| matches!(e, Entry::Release { slot: s, .. } if *s == slot))
    }

    /// Published state plus what is in flight.
    fn assigned(br: &Broker, slot: Slot) -> Option<Log> {
        let o = br.owned[slot as usize].as_ref()?;
        let mut log = o.log.clone();
        for (i, p) in br.inflight.iter().enumerate() {
            for e in p.seg.iter().filter(|e| e.slot_epoch() == (slot, o.epoch)) {
                apply(&mut log, e, (br.inc, br.next + i as Seq)).ok()?;
            }
        }
        Some(log)
    }

    fn append(&self, s: &mut State, b: B, seg: Segment) -> Option<()> {
        let after_ask = s.asked.as_ref().is_some_and(|a| a.broker == b);
        let br = &mut s.brokers[b];
        if br.inflight.len() >= self.cfg.pipeline || br.stopping {
            return None;
        }
        let (inc, seq) = (br.inc, br.next + br.inflight.len() as Seq);
        br.inflight.push(Put {
            seg: seg.clone(),
            retried: false,
            fresh: self.has_ticks(),
            after_ask,
        });
        fly(&mut s.streams[inc as usize], seq, seg);
        Some(())
    }

    // ---- what the world sees ----

    fn see(s: &mut State, slot: Slot, off: usize, rec: Rec) {
        let v = &mut s.visible[slot as usize];
        match v.get(off) {
            Some(r) if *r != rec => s.bad = Some(Violation::OffsetReused),
            Some(_) => {}
            None if v.contains(&rec) => s.bad = Some(Violation::Duplicate),
            None => v.push(rec),
        }
    }

    fn ack(s: &mut State, rec: Rec, off: Off) {
        match s.recs[rec as usize].acked {
            Some(o) if o != off => s.bad = Some(Violation::AckedTwice),
            _ => s.recs[rec as usize].acked = Some(off),
        }
    }

    // ---- clients and the write path ----

    fn send(&self, s: &mut State, rec: Rec, b: B) -> Option<()> {
        let slot = self.slot_of[rec as usize];
        let r = &s.recs[rec as usize];
        let known = self.before[rec as usize].is_none_or(|p| s.recs[p as usize].sent > 0);
        if r.acked.is_some() || r.sent >= self.cfg.max_sends || !known {
            return None;
        }
        let br = &s.brokers[b];
        let own = br.owned[slot as usize].as_ref().filter(|_| br.up)?;
        let stopped = own.phase != Phase::Serving || Self::releasing(br, slot);
        if stopped && !self.rules.has(AppendAfterRelease) {
            return None;
        }
        let epoch = own.epoch;
        let original = own.log.iter().position(|x| x.0 == rec);
        if let Some(off) = original.filter(|_| !self.rules.has(ForgetProducers)) {
            Self::ack(s, rec, off as Off); // a duplicate of something published
        } else {
            let log = Self::assigned(br, slot)?;
            let assigned = log.iter().position(|x| x.0 == rec);
            if let Some(off) = assigned.filter(|_| original.is_none()) {
                if !self.rules.has(AnswerDuplicateEarly) {
                    return None; // waits: it is answered when the original publishes
                }
                Self::ack(s, rec, off as Off);
            } else {
                if self.before[rec as usize].is_some_and(|p| !log.iter().any(|x| x.0 == p)) {
                    return None; // OUT_OF_ORDER_SEQUENCE_NUMBER
                }
                let off = log.len() as Off;
                self.append(
                    s,
                    b,
                    vec![Entry::Rec {
                        slot,
                        epoch,
                        off,
                        rec,
                    }],
                )?;
                if self.rules.has(AckBeforeDurable) {
                    Self::ack(s, rec, off);
                }
            }
        }
        s.recs[rec as usize].sent += 1;
        Some(())
    }

    fn land(&self, s: &mut State, stream: Inc, seq: Seq) -> Option<()> {
        let st = &mut s.streams[stream as usize];
        let i = st.flying.iter().position(|f| f.seq == seq)?;
        let seg = st.flying[i].seg.clone();
        st.flying[i].copies -= 1;
        if st.flying[i].copies == 0 {
            st.flying.remove(i);
        }
        st.create(seq, Obj::Data(seg));
        Some(())
    }

    fn settle(&self, s: &mut State, b: B) -> Option<()> {
        let br = &s.brokers[b];
        if !br.up || br.inflight.is_empty() {
            return None;
        }
        let (inc, seq) = (br.inc, br.next);
        let retried = br.inflight[0].retried;
        match s.streams[inc as usize].get(seq) {
            Obj::Absent => {
                // Unknown: send the same bytes again; the first copy may still land.
                let st = &mut s.streams[inc as usize];
                let copies = st.flying.iter().find(|f| f.seq == seq).map_or(0, |f| f.copies);
                if copies > 1 || (copies == 1 && s.left.reissue == 0) {
                    return None;
                }
                s.left.reissue = s.left.reissue.saturating_sub(copies);
                let put = &mut s.brokers[b].inflight[0];
                put.retried = true;
                fly(st, seq, put.seg.clone());
                if self.rules.has(DeleteFileOnUnknown) {
                    let seg = put.seg.clone();
                    delete_files_of(s, &seg);
                }
            }
            Obj::Data(_) if retried && self.rules.has(BlindRetryNextSeq) => {
                // "Already exists" taken for somebody else's object: the same again, one further.
                let mut puts = std::mem::take(&mut s.brokers[b].inflight);
                let put = puts.remove(0);
                s.brokers[b].next += 1;
                puts.insert(
                    0,
                    Put {
                        retried: false,
                        ..put.clone()
                    },
                );
                s.brokers[b].inflight = puts;
                fly(&mut s.streams[inc as usize], seq + 1, put.seg);
            }
            Obj::Data(_) => self.publish(s, b),
            Obj::Seal if retried && self.rules.has(BlindRetryExistsIsOurs) => self.publish(s, b),
            Obj::Seal => {
                // Fenced: drops everything and deletes nothing. The seal may be a void one, made
                // by a slow taker after this very segment was read, merged and deleted.
                let puts = std::mem::take(&mut s.brokers[b].inflight);
                for p in puts.iter().filter(|_| self.rules.has(FencedWriterDeletesFiles)) {
                    delete_files_of(s, &p.seg);
                }
                self.forget(&mut s.brokers[b]);
            }
        }
        Some(())
    }

    fn publish(&self, s: &mut State, b: B) {
        let put = s.brokers[b].inflight.remove(0);
        let (inc, seq) = (s.brokers[b].inc, s.brokers[b].next);
        s.brokers[b].next += 1;
        for e in &put.seg {
            let (slot, epoch) = e.slot_epoch();
            let past = |l: &Link| l.stream == inc && l.epoch == epoch && seq >= l.bound;
            let past_link = s.manifest.slots[slot as usize].links.iter().any(past);
            let past_seal = matches!(s.manifest.streams[inc as usize], Status::SealedAt(x) if seq >= x);
            if past_link || past_seal {
                s.bad = Some(Violation::PublishedPastSeal);
            }
            if let Some(o) = s.brokers[b].owned[slot as usize]
                .as_mut()
                .filter(|o| o.epoch == epoch)
            {
                if apply(&mut o.log, e, (inc, seq)).is_err() {
                    s.bad = Some(Violation::Unrecoverable);
                }
                if let Entry::Release { .. } = e {
                    o.phase = Phase::Released(seq);
                }
            }
            if let Entry::Rec { off, rec, .. } = e {
                Self::see(s, slot, *off as usize, *rec);
                Self::ack(s, *rec, *off);
            }
        }
        self.proven_by_write(s, b, &put);
    }

    // ---- seals and takeover ----

    fn probe_from(&self, s: &State, victim: Inc) -> (Seq, Seq) {
        newest_found(&self.rules, &s.streams[victim as usize]).map_or((0, 0), |c| (c.as_of + 1, c.floor))
    }

    fn take_start(&self, s: &mut State, b: B, victim: Inc) -> Option<()> {
        let br = &s.brokers[b];
        let owns = s.manifest.slots.iter().any(|m| m.owner == victim);
        let live = s.manifest.streams[victim as usize] == Status::Live;
        if !br.up
            || br.stopping
            || br.take.is_some()
            || br.inc == victim
            || !owns
            || !live
            || s.left.takeover == 0
        {
            return None;
        }
        s.left.takeover -= 1;
        let (probe, floor_seen_first) = self.probe_from(s, victim);
        s.brokers[b].take = Some(Takeover {
            victim,
            probe,
            floor_seen_first,
            seal: None,
            found: false,
        });
        Some(())
    }

    fn take_probe(&self, s: &mut State, b: B) -> Option<()> {
        let t = s.brokers[b].take.as_mut().filter(|t| t.seal.is_none())?;
        let st = &mut s.streams[t.victim as usize];
        match st.get(t.probe) {
            Obj::Data(_) => t.probe += 1,
            Obj::Seal => (t.seal, t.found) = (Some(t.probe), true),
            Obj::Absent => {
                if !self.rules.has(TakeWithoutSeal) {
                    st.create(t.probe, Obj::Seal);
                }
                t.seal = Some(t.probe);
            }
        }
        Some(())
    }

    /// Re-reads the floor; then a void seal means start again, a good one means CAS.
    fn take_commit(&self, s: &mut State, b: B, other: Option<(Slot, Inc)>, delayed: bool) -> Option<()> {
        let t = s.brokers[b].take.clone()?;
        let seal = t.seal?;
        if s.manifest.streams[t.victim as usize] != Status::Live {
            s.brokers[b].take = None; // somebody else did it
            return (!delayed).then_some(());
        }
        let (probe, mut floor) = self.probe_from(s, t.victim);
        if self.rules.has(FloorReadOnlyBeforeSeal) {
            floor = t.floor_seen_first;
        }
        let trusted = t.found && self.rules.has(TrustFoundSeal);
        if seal < floor && !trusted && !self.rules.has(IgnoreFloorRule) {
            let again = Takeover {
                probe,
                seal: None,
                found: false,
                floor_seen_first: floor,
                ..t
            };
            s.brokers[b].take = Some(again);
            return (!delayed).then_some(());
        }
        self.cas(
            s,
            b,
            Op::TakeAll {
                victim: t.victim,
                seal,
                other,
            },
            delayed,
        )
    }

    fn take_split(&self, s: &mut State, b: B, slot: Slot, to: B) -> Option<()> {
        let to = s.brokers[to].inc;
        let victim = s.brokers[b].take.as_ref()?.victim;
        if to == victim || to == s.brokers[b].inc || s.manifest.slots[slot as usize].owner != victim {
            return None;
        }
        s.left.split = s.left.split.checked_sub(1)?;
        self.take_commit(s, b, Some((slot, to)), false)
    }

    // ---- graceful stop ----

    fn stop(&self, s: &mut State, b: B) -> Option<()> {
        let br = &mut s.brokers[b];
        if br.stopping || br.take.is_some() || br.owned.iter().all(Option::is_none) {
            return None;
        }
        s.left.retire = s.left.retire.checked_sub(1)?;
        br.stopping = true;
        Some(())
    }

    /// All that was sent is published; a seal of one's own ends the stream behind it.
    fn seal_itself(&self, s: &mut State, b: B) -> Option<()> {
        let br = &s.brokers[b];
        let flushed = br.inflight.is_empty() || self.rules.has(SealBeforeFlush);
        if !br.stopping || br.sealed_itself.is_some() || !flushed {
            return None;
        }
        let seq = br.next + br.inflight.len() as Seq;
        if s.streams[br.inc as usize].create(seq, Obj::Seal) {
            s.brokers[b].sealed_itself = Some(seq);
        } else {
            // A taker was there first.
            self.forget(&mut s.brokers[b]);
        }
        Some(())
    }

    fn retire(&self, s: &mut State, b: B, to: Inc, delayed: bool) -> Option<()> {
        let seal = s.brokers[b].sealed_itself?;
        self.cas(s, b, Op::Retire { seal, to }, delayed)
    }

    fn recover_slot(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let meta = &s.manifest.slots[slot as usize];
        let (br, epoch) = (&s.brokers[b], meta.epoch);
        let old = br.owned[slot as usize].as_ref().map_or(0, |o| o.epoch);
        if !br.up || meta.owner != br.inc || old >= epoch || (meta.links.is_empty() && epoch > 1) {
            return None;
        }
        let log = recover(&self.rules, s, &s.manifest, slot, false).ok()?;
        for (off, (rec, _)) in log.iter().enumerate() {
            Self::see(s, slot, off, *rec);
        }
        s.brokers[b].owned[slot as usize] = Some(Owned {
            epoch,
            phase: Phase::Serving,
            log,
        });
        Some(())
    }

    // ---- moving one slot ----

    fn release(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let br = &s.brokers[b];
        let epoch = Self::serving(br, slot)?.epoch;
        if s.left.release == 0 || Self::releasing(br, slot) {
            return None;
        }
        let mut snapshot = Self::assigned(br, slot)?;
        if self.rules.has(ImageBeforePointers) {
            let published = br.owned[slot as usize].as_ref()?.log.iter();
            snapshot.iter_mut().zip(published).for_each(|(x, p)| *x = *p);
        }
        s.left.release -= 1;
        self.append(
            s,
            b,
            vec![Entry::Release {
                slot,
                epoch,
                snapshot,
            }],
        )
    }

    fn move_slot(&self, s: &mut State, from: B, slot: Slot, to: B, delayed: bool) -> Option<()> {
        let br = &s.brokers[from];
        let o = br.owned[slot as usize].as_ref()?;
        let released_at = match o.phase {
            Phase::Released(r) => r,
            Phase::Serving if self.rules.has(MoveBeforeReleasePublished) => {
                let i = br
                    .inflight
                    .iter()
                    .position(|p| matches!(p.seg[0], Entry::Release { slot: s, .. } if s == slot))?;
                br.next + i as Seq
            }
            Phase::Serving => return None,
        };
        if !s.brokers[to].up || (from == to && !self.cfg.take_back) {
            return None;
        }
        let op = Op::Move {
            slot,
            epoch: o.epoch,
            released_at,
            to: s.brokers[to].inc,
        };
        self.cas(s, from, op, delayed)
    }

    /// Mutation: somebody takes a slot from its living owner without RELEASE or seal.
    fn grab(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let m = &mut s.manifest.slots[slot as usize];
        if s.left.release == 0 || !s.brokers[b].up || m.owner == s.brokers[b].inc {
            return None;
        }
        s.left.release -= 1;
        let st = &s.streams[m.owner as usize];
        let bound = st.end_of_data(newest_below(st, None).map_or(0, |c| c.as_of + 1));
        m.links.push(Link {
            stream: m.owner,
            bound,
            epoch: m.epoch,
            release: false,
        });
        (m.owner, m.epoch) = (s.brokers[b].inc, m.epoch + 1);
        s.manifest.version += 1;
        Some(())
    }

    // ---- the manifest ----

    /// The manifest after `op`, or nothing if it no longer applies to this version.
    fn applied(&self, man: &Manifest, by: Inc, op: &Op) -> Option<Manifest> {
        let mut m = man.clone();
        m.version += 1;
        // Only a live stream may be given a slot: a sealed one could never serve it.
        let live =
            |m: &Manifest, inc: Inc| m.streams[inc as usize] == Status::Live || self.rules.has(GrantToSealed);
        if !live(&m, by) {
            return None;
        }
        match *op {
            Op::TakeAll { victim, seal, other } => {
                let target_live = other.is_none_or(|(_, to)| live(&m, to));
                if m.streams[victim as usize] != Status::Live || !target_live {
                    return None;
                }
                m.streams[victim as usize] = Status::SealedAt(seal);
                for (slot, sl) in m
                    .slots
                    .iter_mut()
                    .enumerate()
                    .filter(|(_, sl)| sl.owner == victim)
                {
                    if self.rules.has(TakeoverForgetsLinks) {
                        sl.links.clear();
                    }
                    sl.links.push(Link {
                        stream: victim,
                        bound: seal,
                        epoch: sl.epoch,
                        release: false,
                    });
                    let to = other.filter(|o| o.0 as usize == slot).map_or(by, |o| o.1);
                    (sl.owner, sl.epoch) = (to, sl.epoch + 1);
                }
            }
            Op::Retire { seal, to } => {
                if to != NOBODY && !live(&m, to) {
                    return None;
                }
                m.streams[by as usize] = Status::SealedAt(seal);
                for sl in m.slots.iter_mut().filter(|sl| sl.owner == by) {
                    sl.links.push(Link {
                        stream: by,
                        bound: seal,
                        epoch: sl.epoch,
                        release: false,
                    });
                    // Without an owner, the epoch waits for the next one.
                    (sl.owner, sl.epoch) = (to, sl.epoch + Epoch::from(to != NOBODY));
                }
            }
            Op::TakeFree => {
                let mut free = m.slots.iter_mut().filter(|sl| sl.owner == NOBODY).peekable();
                free.peek()?;
                for sl in free {
                    if self.rules.has(UnownedIsNew) {
                        sl.links.clear();
                    }
                    (sl.owner, sl.epoch) = (by, sl.epoch + 1);
                }
            }
            Op::Move {
                slot,
                epoch,
                released_at,
                to,
            } => {
                let target_live = live(&m, to);
                let sl = &mut m.slots[slot as usize];
                if (sl.owner, sl.epoch) != (by, epoch) || !target_live {
                    return None;
                }
                sl.links.push(Link {
                    stream: by,
                    bound: released_at + 1,
                    epoch,
                    release: true,
                });
                (sl.owner, sl.epoch) = (to, epoch + 1);
            }
            Op::DropLinks { slot, epoch } => {
                let sl = &mut m.slots[slot as usize];
                if (sl.owner, sl.epoch) != (by, epoch) || sl.links.is_empty() {
                    return None;
                }
                let dropped = std::mem::take(&mut sl.links);
                if self.rules.has(TakerDropsOthersLinks) {
                    let with_it = |l: &Link| dropped.iter().any(|d| d.stream == l.stream);
                    m.slots.iter_mut().for_each(|sl| sl.links.retain(|l| !with_it(l)));
                }
            }
        }
        Some(m)
    }

    fn cas(&self, s: &mut State, b: B, op: Op, delayed: bool) -> Option<()> {
        let by = s.brokers[b].inc;
        if s.brokers[b].cas.is_some() {
            return None;
        }
        let mut body = self.applied(&s.manifest, by, &op)?;
        if !delayed {
            s.manifest = body;
            self.after_cas(&mut s.brokers[b], &op);
            return Some(());
        }
        s.left.delayed_cas = s.left.delayed_cas.checked_sub(1)?;
        s.brokers[b].commits += 1;
        let commit = s.brokers[b].commits;
        body.last_commit[by as usize] = commit;
        s.brokers[b].cas = Some((commit, s.manifest.version, op));
        s.flying_cas.push(FlyingCas {
            by,
            base: s.manifest.version,
            body,
        });
        Some(())
    }

    fn after_cas(&self, br: &mut Broker, op: &Op) {
        match *op {
            Op::TakeAll { .. } => br.take = None,
            Op::Move { slot, .. } => br.owned[slot as usize] = None,
            Op::Retire { .. } => self.forget(br),
            Op::DropLinks { .. } | Op::TakeFree => {}
        }
    }

    fn land_cas(&self, s: &mut State, i: usize) -> Option<()> {
        let f = s.flying_cas.remove(i);
        if f.base == s.manifest.version || self.rules.has(ReuseOldManifest) {
            // An older body knows nothing of later registrations.
            let streams = s.manifest.streams.len();
            s.manifest = f.body;
            s.manifest.streams.resize(streams, Status::Live);
            s.manifest.last_commit.resize(streams, 0);
        }
        Some(())
    }

    fn settle_cas(&self, s: &mut State, b: B) -> Option<()> {
        let (commit, base, op) = s.brokers[b].cas.clone()?;
        let br = &mut s.brokers[b];
        if s.manifest.last_commit[br.inc as usize] == commit {
            self.after_cas(br, &op);
        } else if self.rules.has(UnknownCasIsFailure) {
            // Gives up and goes on as if it had not happened.
            if let Op::Move { slot, .. } = op {
                br.owned[slot as usize].as_mut()?.phase = Phase::Serving;
            }
        } else if s.manifest.version == base {
            return None; // may still land
        }
        s.brokers[b].cas = None;
        Some(())
    }

    // ---- L1, checkpoints, deletion ----

    fn merge(&self, s: &mut State, b: B) -> Option<()> {
        let br = &s.brokers[b];
        if s.left.merge == 0 || Self::in_flight(br, |e| matches!(e, Entry::Merged { .. })) {
            return None;
        }
        let file = s.files.len() as FileId;
        let (mut seg, mut ranges) = (vec![], vec![]);
        for slot in 0..br.owned.len() as Slot {
            let Some(o) = Self::serving(br, slot).filter(|_| !Self::releasing(br, slot)) else {
                continue;
            };
            let Some(from) = o.log.iter().position(|x| matches!(x.1, Loc::L0(..))) else {
                continue;
            };
            let (from, to) = (from as Off, o.log.len() as Off);
            ranges.push((slot, from, to));
            seg.push(Entry::Merged {
                slot,
                epoch: o.epoch,
                from,
                to,
                file,
            });
        }
        if seg.is_empty() {
            return None;
        }
        let inc = br.inc;
        self.append(s, b, seg)?;
        s.files.push(File {
            writer: inc,
            present: true,
            ranges,
        });
        s.left.merge -= 1;
        Some(())
    }

    fn log_start(&self, s: &mut State, b: B, slot: Slot) -> Option<()> {
        let br = &s.brokers[b];
        let o = Self::serving(br, slot)?;
        let pending = Self::in_flight(br, |e| matches!(e, Entry::LogStart { slot: s, .. } if *s == slot));
        if s.left.log_start == 0
            || pending
            || Self::releasing(br, slot)
            || o.log.iter().all(|x| x.1 == Loc::Gone)
        {
            return None;
        }
        let (epoch, start) = (o.epoch, o.log.len() as Off);
        s.left.log_start -= 1;
        self.append(s, b, vec![Entry::LogStart { slot, epoch, start }])
    }

    fn checkpoint(&self, s: &mut State, b: B) -> Option<()> {
        let br = &s.brokers[b];
        let st = &s.streams[br.inc as usize];
        let as_of = br.next.checked_sub(1).filter(|_| br.up)?;
        let newer = st.checkpoints.iter().all(|c| c.as_of < as_of);
        if s.left.checkpoint == 0 || st.flying_checkpoint.is_some() || !newer {
            return None;
        }
        let mut slots = vec![None; br.owned.len()];
        let mut floor = as_of + 1;
        // From a RELEASE until its link is dropped, the floor stands still. (Links of a takeover
        // do not count here: a zombie may not have heard of it.)
        let ours = |l: &Link| l.release && l.stream == br.inc;
        let mut pinned = s.manifest.slots.iter().any(|m| m.links.iter().any(ours));
        for (slot, o) in br.owned.iter().enumerate() {
            let Some(o) = o else { continue };
            if o.phase != Phase::Serving {
                pinned = true;
                if self.rules.has(CheckpointForgetsReleased) {
                    continue;
                }
            }
            let log = match self.rules.has(CheckpointAssigned) {
                true => Self::assigned(br, slot as Slot)?,
                false => o.log.clone(),
            };
            let l0 = log.iter().filter_map(|x| match x.1 {
                Loc::L0(inc, seq) if inc == br.inc => Some(seq),
                _ => None,
            });
            if !self.rules.has(FloorPassesUnmerged) {
                floor = l0.fold(floor, Seq::min);
            }
            slots[slot] = Some((o.epoch, log));
        }
        if self.rules.has(CheckpointCoversUnrecovered) {
            for (slot, m) in s
                .manifest
                .slots
                .iter()
                .enumerate()
                .filter(|(_, m)| m.owner == br.inc)
            {
                slots[slot].get_or_insert((m.epoch, vec![]));
            }
        }
        if pinned && !self.rules.has(FloorForgetsReleased) {
            floor = br.floor;
        }
        let floor = floor.max(br.floor);
        let inc = br.inc;
        s.brokers[b].floor = floor;
        s.streams[inc as usize].flying_checkpoint = Some(Checkpoint { as_of, floor, slots });
        s.left.checkpoint -= 1;
        Some(())
    }

    fn land_checkpoint(&self, s: &mut State, stream: Inc) -> Option<()> {
        let cp = s.streams[stream as usize].flying_checkpoint.take()?;
        if let Some(br) = s.brokers.iter_mut().find(|br| br.up && br.inc == stream) {
            br.durable = Some(cp.as_of);
        }
        s.streams[stream as usize].checkpoints.push(cp);
        Some(())
    }

    fn durable(s: &State, b: B) -> Option<&Checkpoint> {
        let br = &s.brokers[b];
        let as_of = br.durable.filter(|_| br.up)?;
        s.streams[br.inc as usize]
            .checkpoints
            .iter()
            .find(|c| c.as_of == as_of)
    }

    fn delete_segments(&self, s: &mut State, b: B) -> Option<()> {
        let floor = match self.rules.has(DeleteBeforeFloorDurable) {
            true => s.brokers[b].floor,
            false => Self::durable(s, b)?.floor,
        };
        let st = &mut s.streams[s.brokers[b].inc as usize];
        delete_data(&mut st.objs[..], floor)
    }

    fn drop_links(&self, s: &mut State, b: B, slot: Slot, delayed: bool) -> Option<()> {
        let m = &s.manifest.slots[slot as usize];
        if !s.brokers[b].up || m.owner != s.brokers[b].inc || m.links.is_empty() {
            return None;
        }
        let epoch = m.epoch;
        if self.rules.has(DropLinkBeforeCheckpoint) {
            // It has recovered the slot and thinks that is enough.
            Self::serving(&s.brokers[b], slot).filter(|o| o.epoch == epoch)?;
        } else {
            let cp = Self::durable(s, b)?;
            let own = Self::serving(&s.brokers[b], slot).filter(|o| o.epoch == epoch);
            let log = match own {
                // The retry's body had the slot; the body that landed is the first attempt's.
                Some(o) if self.rules.has(CheckpointRebuiltOnRetry) && cp.as_of + 1 == s.brokers[b].next => {
                    &o.log
                }
                _ => cp.covers(slot, Some(epoch))?,
            };
            let elsewhere = |l: &Loc| matches!(l, Loc::L0(inc, _) if *inc != s.brokers[b].inc);
            if log.iter().any(|x| elsewhere(&x.1)) && !self.rules.has(DropLinkBeforeDataMoved) {
                return None;
            }
        }
        self.cas(s, b, Op::DropLinks { slot, epoch }, delayed)
    }

    fn drain(&self, s: &mut State, stream: Inc) -> Option<()> {
        let linked =
            |m: &SlotMeta| m.links.iter().any(|l| l.stream == stream) && !self.rules.has(DrainWithLinks);
        let needed = |m: &SlotMeta| m.owner == stream || linked(m);
        let sealed = matches!(s.manifest.streams[stream as usize], Status::SealedAt(_));
        if !sealed || s.manifest.slots.iter().any(needed) {
            return None;
        }
        s.manifest.streams[stream as usize] = Status::Gone;
        s.manifest.version += 1;
        let st = &mut s.streams[stream as usize];
        delete_data(&mut st.objs[..], Seq::MAX);
        st.checkpoints.clear();
        if self.rules.has(DeleteSeal) {
            st.objs.clear();
        }
        Some(())
    }

    fn superseded(log: &Log, file: FileId, from: Off, to: Off) -> bool {
        let part = log.get(from as usize..to as usize);
        part.is_some_and(|p| {
            p.iter()
                .all(|x| x.1 == Loc::Gone || matches!(x.1, Loc::L1(f) if f != file))
        })
    }

    /// As written: "whole files go when the log start has passed them", judged by one owner.
    fn owner_delete_file(&self, s: &mut State, b: B, file: FileId) -> Option<()> {
        let cp = Self::durable(s, b)?;
        let f = &s.files[file as usize];
        let mine = |slot: Slot| cp.slots[slot as usize].as_ref().map(|x| &x.1);
        let some = f.ranges.iter().any(|&(slot, ..)| mine(slot).is_some());
        let done = f
            .ranges
            .iter()
            .all(|&(slot, from, to)| mine(slot).is_none_or(|l| Self::superseded(l, file, from, to)));
        if !f.present || !some || !done {
            return None;
        }
        s.files[file as usize].present = false;
        Some(())
    }

    fn claimed(&self, s: &State, man: &Manifest, slot: Slot, file: FileId) -> bool {
        let uses = |log: &Log| log.iter().any(|x| x.1 == Loc::L1(file));
        if self.rules.has(CleanerReadsCheckpointsOnly) {
            let m = &man.slots[slot as usize];
            return m.links.iter().map(|l| l.stream).chain([m.owner]).any(|st| {
                let cp = newest_below(&s.streams[st as usize], None);
                cp.and_then(|c| c.slots[slot as usize].as_ref())
                    .is_some_and(|x| uses(&x.1))
            });
        }
        recover(&self.rules, s, man, slot, true).map_or(true, |log| uses(&log))
    }

    /// The cleaner reads the manifest. The pointer's fate must be settled: the writer's stream is
    /// drained, or the writer itself cleans and has the pointer no longer in flight.
    fn clean_start(&self, s: &mut State, file: FileId) -> Option<()> {
        let f = &s.files[file as usize];
        let drained = s.manifest.streams[f.writer as usize] == Status::Gone;
        let pointer = |e: &Entry| matches!(e, Entry::Merged { file: x, .. } if *x == file);
        let by_writer = |br: &Broker| br.up && br.inc == f.writer && !Self::in_flight(br, pointer);
        let writer_may = !self.rules.has(CleanerReadsCheckpointsOnly) && s.brokers.iter().any(by_writer);
        let settled = drained || writer_may || self.rules.has(CleanLiveWriter);
        if s.left.clean == 0 || s.cleaner.is_some() || !f.present || !settled {
            return None;
        }
        s.left.clean -= 1;
        s.cleaner = Some(Cleaner {
            file,
            manifest: s.manifest.clone(),
            unclaimed: vec![],
        });
        Some(())
    }

    /// It reads one slot's state, as that manifest leads to it. A claim ends the attempt.
    fn clean_read(&self, s: &mut State, slot: Slot) -> Option<()> {
        let mut c = s.cleaner.take()?;
        if c.unclaimed.contains(&slot) {
            return None;
        }
        if !self.claimed(s, &c.manifest, slot, c.file) {
            c.unclaimed.push(slot);
            c.unclaimed.sort();
            s.cleaner = Some(c);
        }
        Some(())
    }

    /// It reads the manifest again, and deletes if nothing has changed.
    fn clean_end(&self, s: &mut State) -> Option<()> {
        let c = s.cleaner.take()?;
        if c.unclaimed.len() < s.manifest.slots.len() {
            return None;
        }
        let confirm = !self.rules.has(CleanWithoutConfirm) && !self.rules.has(CleanerReadsCheckpointsOnly);
        if !confirm || c.manifest == s.manifest {
            s.files[c.file as usize].present = false;
        }
        Some(())
    }

    fn restart(&self, s: &mut State, b: B) -> Option<()> {
        if s.brokers[b].up || s.streams.len() >= self.cfg.max_incarnations as usize {
            return None;
        }
        let inc = s.streams.len() as Inc;
        s.streams.push(Stream::default());
        s.manifest.streams.push(Status::Live);
        s.manifest.last_commit.push(0);
        s.manifest.version += 1;
        s.brokers[b] = self.new_broker(inc);
        Some(())
    }

    fn step(&self, s: &mut State, act: &Act, delayed: bool) -> Option<()> {
        match *act {
            Act::Send(rec, b) => self.send(s, rec, b),
            Act::Land { stream, seq } => self.land(s, stream, seq),
            Act::Settle(b) => self.settle(s, b),
            Act::AckSecond(b) => {
                let br = &s.brokers[b];
                let Obj::Data(seg) = s.streams[br.inc as usize].get(br.next + 1) else {
                    return None;
                };
                let Entry::Rec { off, rec, .. } = seg[0] else {
                    return None;
                };
                Self::ack(s, rec, off);
                Some(())
            }
            Act::Crash(b) => {
                s.left.crash = s.left.crash.checked_sub(1)?;
                self.forget(&mut s.brokers[b]);
                Some(())
            }
            Act::Restart(b) => self.restart(s, b),
            Act::TakeStart(b, victim) => self.take_start(s, b, victim),
            Act::TakeProbe(b) => self.take_probe(s, b),
            Act::TakeCommit(b) => self.take_commit(s, b, None, delayed),
            Act::TakeSplit { by, slot, to } => self.take_split(s, by, slot, to),
            Act::Stop(b) => self.stop(s, b),
            Act::SealItself(b) => self.seal_itself(s, b),
            Act::Retire { from, to } => self.retire(s, from, to, delayed),
            Act::TakeFree(b) => self.cas(s, b, Op::TakeFree, delayed),
            Act::Tick => self.tick(s),
            Act::LookStart(b) => self.look_start(s, b),
            Act::LookEnd(b) => self.look_end(s, b),
            Act::AskCommitted(b, slot) => self.ask_committed(s, b, slot),
            Act::AskBeyond(b, slot) => self.ask_beyond(s, b, slot),
            Act::ProveSecond(b) => self.prove_second(s, b),
            Act::Recover(b, slot) => self.recover_slot(s, b, slot),
            Act::Release(b, slot) => self.release(s, b, slot),
            Act::Move { from, slot, to } => self.move_slot(s, from, slot, to, delayed),
            Act::Grab(b, slot) => self.grab(s, b, slot),
            Act::Merge(b) => self.merge(s, b),
            Act::LogStart(b, slot) => self.log_start(s, b, slot),
            Act::Checkpoint(b) => self.checkpoint(s, b),
            Act::LandCheckpoint(stream) => self.land_checkpoint(s, stream),
            Act::Heartbeat(b) => {
                let br = &s.brokers[b];
                let st = &mut s.streams[br.inc as usize];
                (br.up && st.hint < br.durable).then(|| st.hint = br.durable)
            }
            Act::DeleteSegments(b) => self.delete_segments(s, b),
            Act::DropLinks(b, slot) => self.drop_links(s, b, slot, delayed),
            Act::Drain(stream) => self.drain(s, stream),
            Act::OwnerDeleteFile(b, file) => self.owner_delete_file(s, b, file),
            Act::CleanStart(file) => self.clean_start(s, file),
            Act::CleanRead(slot) => self.clean_read(s, slot),
            Act::CleanEnd => self.clean_end(s),
            Act::Delayed(ref inner) => self.step(s, inner, true),
            Act::LandCas(i) => self.land_cas(s, i),
            Act::SettleCas(b) => self.settle_cas(s, b),
        }
    }
}

fn fly(st: &mut Stream, seq: Seq, seg: Segment) {
    match st.flying.iter_mut().find(|f| f.seq == seq && f.seg == seg) {
        Some(f) => f.copies += 1,
        None => st.flying.push(FlyingPut { seq, seg, copies: 1 }),
    }
}

fn delete_files_of(s: &mut State, seg: &Segment) {
    for e in seg {
        if let Entry::Merged { file, .. } = e {
            s.files[*file as usize].present = false;
        }
    }
}

/// Deletes data below `floor`, never seals.
fn delete_data(objs: &mut [Obj], floor: Seq) -> Option<()> {
    let mut any = false;
    for o in objs
        .iter_mut()
        .take(floor as usize)
        .filter(|o| matches!(o, Obj::Data(_)))
    {
        *o = Obj::Absent;
        any = true;
    }
    any.then_some(())
}

impl Model for Protocol {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let n = self.cfg.brokers;
        let mut brokers: Vec<Broker> = (0..n).map(|i| self.new_broker(i)).collect();
        let mut slots = vec![];
        for (slot, &owner) in self.cfg.owners.iter().enumerate() {
            brokers[owner as usize].owned[slot] = Some(Owned {
                epoch: 1,
                phase: Phase::Serving,
                log: vec![],
            });
            slots.push(SlotMeta {
                owner,
                epoch: 1,
                links: vec![],
            });
        }
        let n = n as usize;
        let manifest = Manifest {
            version: 0,
            slots,
            streams: vec![Status::Live; n],
            last_commit: vec![0; n],
        };
        vec![State {
            manifest,
            streams: vec![Stream::default(); n],
            files: vec![],
            flying_cas: vec![],
            brokers,
            recs: vec![RecState::default(); self.slot_of.len()],
            cleaner: None,
            asked: None,
            answered: false,
            left: self.cfg.budget,
            visible: vec![vec![]; self.cfg.owners.len()],
            bad: None,
        }]
    }

    /// Candidates; `next_state` drops those that are not possible.
    fn actions(&self, s: &State, acts: &mut Vec<Act>) {
        if s.bad.is_some() {
            return;
        }
        let slots = s.manifest.slots.len() as Slot;
        for (i, st) in s.streams.iter().enumerate() {
            let stream = i as Inc;
            acts.extend(st.flying.iter().map(|f| Act::Land { stream, seq: f.seq }));
            if st.flying_checkpoint.is_some() {
                acts.push(Act::LandCheckpoint(stream));
            }
            if matches!(s.manifest.streams[i], Status::SealedAt(_)) {
                acts.push(Act::Drain(stream));
            }
        }
        acts.extend((0..s.flying_cas.len()).map(Act::LandCas));
        if s.cleaner.is_some() {
            acts.extend((0..slots).map(Act::CleanRead));
            acts.push(Act::CleanEnd);
        } else if s.left.clean > 0 {
            acts.extend((0..s.files.len()).map(|f| Act::CleanStart(f as FileId)));
        }
        for (b, br) in s.brokers.iter().enumerate() {
            if !br.up {
                acts.push(Act::Restart(b));
                continue;
            }
            for (rec, r) in s.recs.iter().enumerate() {
                if r.acked.is_none()
                    && r.sent < self.cfg.max_sends
                    && br.owned[self.slot_of[rec] as usize].is_some()
                {
                    acts.push(Act::Send(rec as Rec, b));
                }
            }
            if !br.inflight.is_empty() {
                acts.push(Act::Settle(b));
            }
            if br.inflight.len() > 1 && self.rules.has(AckOutOfOrder) {
                acts.push(Act::AckSecond(b));
            }
            if s.left.crash > 0 {
                acts.push(Act::Crash(b));
            }
            if br.cas.is_some() {
                acts.push(Act::SettleCas(b));
            }
            let mut cas_acts = vec![];
            match &br.take {
                None if s.left.takeover > 0 => {
                    acts.extend((0..s.streams.len()).map(|v| Act::TakeStart(b, v as Inc)))
                }
                Some(t) if t.seal.is_none() => acts.push(Act::TakeProbe(b)),
                Some(_) => {
                    cas_acts.push(Act::TakeCommit(b));
                    if s.left.split > 0 {
                        let to = 0..s.brokers.len();
                        let split = |slot| to.clone().map(move |to| Act::TakeSplit { by: b, slot, to });
                        acts.extend((0..slots).flat_map(split));
                    }
                }
                None => {}
            }
            self.read_actions(s, b, acts);
            if s.left.retire > 0 {
                acts.push(Act::Stop(b));
            }
            if br.stopping {
                acts.push(Act::SealItself(b));
            } else if s.manifest.slots.iter().any(|m| m.owner == NOBODY) {
                cas_acts.push(Act::TakeFree(b));
            }
            if br.sealed_itself.is_some() {
                let heirs = s.brokers.iter().map(|to| to.inc).filter(|to| *to != br.inc);
                cas_acts.extend(heirs.chain([NOBODY]).map(|to| Act::Retire { from: b, to }));
            }
            if s.left.merge > 0 {
                acts.push(Act::Merge(b));
            }
            if s.left.checkpoint > 0 && br.next > 0 {
                acts.push(Act::Checkpoint(b));
            }
            if br.floor > 0 {
                acts.push(Act::DeleteSegments(b));
            }
            if self.rules.has(CheckpointByHint) {
                acts.push(Act::Heartbeat(b));
            }
            if self.rules.has(OwnerDeletesSharedFile) {
                acts.extend((0..s.files.len()).map(|f| Act::OwnerDeleteFile(b, f as FileId)));
            }
            for slot in 0..slots {
                let meta = &s.manifest.slots[slot as usize];
                let own = br.owned[slot as usize].as_ref();
                if meta.owner == br.inc && own.is_none_or(|o| o.epoch < meta.epoch) {
                    acts.push(Act::Recover(b, slot));
                }
                if meta.owner == br.inc && !meta.links.is_empty() {
                    cas_acts.push(Act::DropLinks(b, slot));
                }
                if s.left.release > 0 {
                    match self.rules.has(SkipRelease) {
                        true => acts.push(Act::Grab(b, slot)),
                        false if own.is_some() => acts.push(Act::Release(b, slot)),
                        false => {}
                    }
                }
                if s.left.log_start > 0 && own.is_some() {
                    acts.push(Act::LogStart(b, slot));
                }
                let early = self.rules.has(MoveBeforeReleasePublished);
                if own.is_some_and(|o| o.phase != Phase::Serving || early) {
                    cas_acts.extend((0..s.brokers.len()).map(|to| Act::Move { from: b, slot, to }));
                }
            }
            if s.left.delayed_cas > 0 {
                acts.extend(cas_acts.iter().cloned().map(|a| Act::Delayed(Box::new(a))));
            }
            acts.extend(cas_acts);
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, &act, false)?;
        self.forget_question(&mut s);
        if s.bad.is_none() {
            s.bad = check(&self.rules, &s, &self.slot_of).or_else(|| self.stale(&s));
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn bad(s: &State, v: Violation) -> bool {
            s.bad == Some(v)
        }
        fn data_gone(s: &State) -> bool {
            s.streams.iter().any(|st| {
                st.checkpoints
                    .iter()
                    .any(|c| c.floor > 0 && *st.get(0) != Obj::Seal && *st.get(c.floor - 1) == Obj::Absent)
            })
        }
        vec![
            Property::always("every slot is recoverable", |_: &Protocol, s: &State| {
                !bad(s, Violation::Unrecoverable)
            }),
            Property::always("acked records are at their offsets", |_: &Protocol, s: &State| {
                !bad(s, Violation::AckedLost)
            }),
            Property::always(
                "published records are at their offsets",
                |_: &Protocol, s: &State| !bad(s, Violation::PublishedLost),
            ),
            Property::always("nothing reachable is deleted", |_: &Protocol, s: &State| {
                !bad(s, Violation::ReachableDeleted)
            }),
            Property::always("one offset, one record", |_: &Protocol, s: &State| {
                !bad(s, Violation::OffsetReused)
            }),
            Property::always("one record, one offset", |_: &Protocol, s: &State| {
                !bad(s, Violation::Duplicate)
            }),
            Property::always("no record acked at two offsets", |_: &Protocol, s: &State| {
                !bad(s, Violation::AckedTwice)
            }),
            Property::always(
                "nothing published past a seal or link",
                |_: &Protocol, s: &State| !bad(s, Violation::PublishedPastSeal),
            ),
            Property::always("leases and proofs hold", |_: &Protocol, s: &State| {
                !reads::VIOLATIONS.iter().any(|v| bad(s, *v))
            }),
            // Progress, and proof that the configuration reaches what it is for.
            Property::sometimes("all acked", |_: &Protocol, s: &State| {
                s.recs.iter().all(|r| r.acked.is_some())
            }),
            Property::sometimes("all acked after a takeover", |_: &Protocol, s: &State| {
                s.recs.iter().all(|r| r.acked.is_some())
                    && s.manifest.streams.iter().any(|x| *x != Status::Live)
            }),
            Property::sometimes("segments deleted", |_: &Protocol, s: &State| data_gone(s)),
            Property::sometimes("void seal", |_: &Protocol, s: &State| {
                s.streams.iter().any(|st| {
                    let floor = newest_below(st, None).map_or(0, |c| c.floor);
                    st.objs.iter().take(floor as usize).any(|o| *o == Obj::Seal)
                })
            }),
            Property::sometimes("two links", |_: &Protocol, s: &State| {
                s.manifest.slots.iter().any(|m| m.links.len() > 1)
            }),
            Property::sometimes("stream drained", |_: &Protocol, s: &State| {
                s.manifest.streams.contains(&Status::Gone)
            }),
            Property::sometimes("acked after a release", |_: &Protocol, s: &State| {
                s.manifest.slots.iter().enumerate().any(|(i, m)| {
                    m.links.last().is_some_and(|l| l.release)
                        && s.brokers.iter().any(|b| {
                            b.owned[i].as_ref().is_some_and(|o| {
                                o.epoch == m.epoch
                                    && o.log.iter().any(|x| matches!(x.1, Loc::L0(st, _) if st == b.inc))
                            })
                        })
                })
            }),
            Property::sometimes("file deleted", |_: &Protocol, s: &State| {
                s.files.iter().any(|f| !f.present)
            }),
            Property::sometimes("stale within its lease", reads::stale_within_lease),
            Property::sometimes("answered after proof", |_: &Protocol, s: &State| s.answered),
            Property::sometimes("slot without an owner", |_: &Protocol, s: &State| {
                s.manifest.slots.iter().any(|m| m.owner == NOBODY)
            }),
            Property::sometimes("taker and heir", |_: &Protocol, s: &State| {
                let owners = |l: &Link| {
                    let to = s.manifest.slots.iter().filter(|m| m.links.contains(l));
                    let mut to: Vec<Inc> = to.map(|m| m.owner).collect();
                    to.dedup();
                    to.len() > 1
                };
                s.manifest.slots.iter().flat_map(|m| &m.links).any(owners)
            }),
            Property::sometimes("log start moved", |_: &Protocol, s: &State| {
                s.brokers.iter().any(|b| {
                    b.owned
                        .iter()
                        .flatten()
                        .any(|o| o.log.iter().any(|x| x.1 == Loc::Gone))
                })
            }),
        ]
    }
}
