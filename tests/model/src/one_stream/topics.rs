//! A topic is deleted and created again under its name, while brokers still map the name to the old id.
//!
//! What a change of the manifest does, which names wait until a deletion is known, who leads a partition and who is
//! live is the engine's (`Manifest::apply`, `deleted_names`, `take_over`, `leader`, `is_live`). Changes are atomic here:
//! their compare-and-swap is what [`super::settings`] is about. Clients send by name, to any broker; a broker takes what
//! it leads by the manifest that it has applied.

use std::collections::BTreeMap;

use alluvium_log::manifest::{Change, Manifest};
use alluvium_log::{Incarnation, Seq, TopicId};
use stateright::{Model, Property};
use uuid::Uuid;

use self::Deviation::*;
use super::model::stamp;
use super::state::{Of, Rec};
use crate::check::{Checked, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// A name is free as soon as its topic is deleted.
    CreateAtOnce,
    /// A broker that is being sealed counts as sealed before the manifest, and its stream, say so.
    SuspectCountsAsSealed,
    /// A broker reports a manifest when it has read it, before it has applied it.
    ReportBeforeApplied,
}

const MUTATIONS: &[Deviation] = &[CreateAtOnce, SuspectCountsAsSealed, ReportBeforeApplied];
const NAME: &str = "t";
const OLD: TopicId = Uuid::from_u128(42);
const NEW: TopicId = Uuid::from_u128(43);

pub struct Topics {
    deviations: Vec<Deviation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broker {
    up: bool,
    /// The manifest that it has applied: names, ids and leaders.
    applied: Of<Manifest>,
    /// The others know that it has applied the deletion.
    reported: bool,
    /// First seq that it has not used.
    next: Seq,
    /// The record that is being written, and to which topic.
    writing: Option<Stored>,
    /// The stream that it is about to take over, and where it sealed it.
    sealing: Option<(Incarnation, Option<Seq>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    topic: TopicId,
    rec: Rec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obj {
    Data(Stored),
    Seal,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    sent: bool,
    acked: bool,
    /// What the name meant when the client sent it.
    meant: Option<TopicId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A record was acknowledged and is not in the topic that had its name all the while.
    AckedElsewhere,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    stored: Of<Manifest>,
    objs: BTreeMap<(Incarnation, Seq), Obj>,
    /// Index 0 is incarnation 1.
    brokers: Vec<Broker>,
    requests: Vec<Request>,
    takeovers: u8,
    starts: u8,
    /// The leader of the deleted topic acknowledged a record that was sent after the deletion.
    acked_unaware: bool,
    bad: Option<Violation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Send(Rec, Incarnation),
    Land(Incarnation),
    Answer(Incarnation),
    /// A broker reads the manifest and applies it.
    Apply(Incarnation),
    /// The others learn which version it has applied: from its head, or from a ping.
    Report(Incarnation),
    Delete(Incarnation),
    Create(Incarnation),
    Suspect(Incarnation, Incarnation),
    Seal(Incarnation),
    TakeOver(Incarnation),
    Start,
}

fn index(inc: Incarnation) -> usize {
    inc as usize - 1
}

impl Topics {
    fn has(&self, d: Deviation) -> bool {
        self.deviations.contains(&d)
    }

    fn create() -> Change {
        Change::CreateTopic {
            name: NAME.into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        }
    }

    /// The name is free: every broker that may still write has applied the deletion.
    fn is_free(&self, s: &State) -> bool {
        let sealing = |inc| s.brokers.iter().any(|b| b.sealing.is_some_and(|(v, _)| v == inc));
        let counts = |inc| s.brokers[index(inc)].reported || self.has(SuspectCountsAsSealed) && sealing(inc);
        self.has(CreateAtOnce) || s.stored.live().all(|(inc, _)| counts(inc))
    }

    /// A change of the manifest by a broker that is live in it; the broker applies what comes of it.
    fn change(s: &mut State, by: Incarnation, change: impl FnOnce(&mut Manifest) -> bool) -> Option<()> {
        let b = &s.brokers[index(by)];
        if !b.up || !s.stored.is_live(by) {
            return None;
        }
        let mut next = (*s.stored).clone();
        change(&mut next).then_some(())?;
        stamp(&mut next, by);
        s.stored = Of::new(next);
        s.brokers[index(by)].applied = s.stored.clone();
        Some(())
    }

    fn send(&self, s: &mut State, rec: Rec, inc: Incarnation) -> Option<()> {
        let b = &mut s.brokers[index(inc)];
        let topic = b.applied.topics.get(NAME)?.id;
        let leads = b.applied.leader(&topic, 0).is_some_and(|l| l.incarnation == inc);
        let r = &mut s.requests[rec as usize];
        if !b.up || b.writing.is_some() || !leads || r.sent {
            return None;
        }
        *r = Request {
            sent: true,
            acked: false,
            meant: s.stored.topics.get(NAME).map(|t| t.id),
        };
        b.writing = Some(Stored { topic, rec });
        Some(())
    }

    fn answer(&self, s: &mut State, inc: Incarnation) -> Option<()> {
        let b = &mut s.brokers[index(inc)];
        let writing = b.writing.filter(|_| b.up)?;
        match s.objs.get(&(inc, b.next))? {
            Obj::Seal => b.up = false,
            Obj::Data(_) => {
                (b.writing, b.next) = (None, b.next + 1);
                let r = &mut s.requests[writing.rec as usize];
                r.acked = true;
                let means = s.stored.topics.get(NAME).map(|t| t.id);
                s.acked_unaware |= r.meant.is_none();
                if means.is_some() && means == r.meant && means != Some(writing.topic) {
                    s.bad = Some(Violation::AckedElsewhere);
                }
            }
        }
        Some(())
    }

    fn step(&self, s: &mut State, act: &Act) -> Option<()> {
        match *act {
            Act::Send(rec, inc) => self.send(s, rec, inc),
            Act::Land(inc) => {
                let b = &s.brokers[index(inc)];
                let (key, obj) = ((inc, b.next), Obj::Data(b.writing?));
                if s.objs.contains_key(&key) {
                    return None;
                }
                s.objs.insert(key, obj);
                Some(())
            }
            Act::Answer(inc) => self.answer(s, inc),
            Act::Apply(inc) => {
                let b = &mut s.brokers[index(inc)];
                if !b.up || b.applied == s.stored {
                    return None;
                }
                (b.up, b.applied) = (s.stored.is_live(inc), s.stored.clone());
                Some(())
            }
            Act::Report(inc) => {
                let deleted = *s.stored.deleted_names.get(NAME)?;
                let b = &mut s.brokers[index(inc)];
                let knows = b.applied.version >= deleted || self.has(ReportBeforeApplied);
                (b.up && knows && !b.reported).then(|| b.reported = true)
            }
            Act::Delete(by) => {
                let delete = Change::DeleteTopic { id: OLD };
                Self::change(s, by, |m| m.apply(&delete, NEW).is_ok())
            }
            Act::Create(by) => {
                if s.stored.deleted_names.contains_key(NAME) && !self.is_free(s) {
                    return None;
                }
                Self::change(s, by, |m| m.apply(&Self::create(), NEW).is_ok())
            }
            Act::Suspect(by, victim) => {
                let b = &mut s.brokers[index(by)];
                if !b.up || b.sealing.is_some() || !s.stored.is_live(victim) || !s.stored.is_live(by) {
                    return None;
                }
                s.takeovers = s.takeovers.checked_sub(1)?;
                b.sealing = Some((victim, None));
                Some(())
            }
            Act::Seal(by) => {
                let (victim, None) = s.brokers[index(by)].sealing? else {
                    return None;
                };
                let mut at = 0;
                while matches!(s.objs.get(&(victim, at)), Some(Obj::Data(_))) {
                    at += 1;
                }
                s.objs.insert((victim, at), Obj::Seal);
                s.brokers[index(by)].sealing = Some((victim, Some(at)));
                Some(())
            }
            Act::TakeOver(by) => {
                let (victim, Some(at)) = s.brokers[index(by)].sealing? else {
                    return None;
                };
                Self::change(s, by, |m| m.take_over(by, &[(victim, at)]).is_ok())?;
                s.brokers[index(by)].sealing = None;
                Some(())
            }
            Act::Start => {
                s.starts = s.starts.checked_sub(1)?;
                let mut next = (*s.stored).clone();
                let inc = next.register(9, None, BTreeMap::new());
                stamp(&mut next, inc);
                s.stored = Of::new(next);
                s.brokers.push(broker(&s.stored));
                Some(())
            }
        }
    }
}

fn broker(applied: &Of<Manifest>) -> Broker {
    Broker {
        up: true,
        applied: applied.clone(),
        reported: false,
        next: 0,
        writing: None,
        sealing: None,
    }
}

impl Model for Topics {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::nil(), 1);
        for node in 1..=2 {
            let inc = m.register(node, None, BTreeMap::new());
            stamp(&mut m, inc);
        }
        m.take_over(1, &[]).expect("an empty cluster");
        m.apply(&Self::create(), OLD).expect("a new topic");
        stamp(&mut m, 1);
        let stored = Of::new(m);
        vec![State {
            brokers: vec![broker(&stored); 2],
            stored,
            objs: BTreeMap::new(),
            requests: vec![Request::default()],
            takeovers: 1,
            starts: 1,
            acked_unaware: false,
            bad: None,
        }]
    }

    fn actions(&self, s: &State, acts: &mut Vec<Act>) {
        if s.bad.is_some() {
            return;
        }
        acts.push(Act::Start);
        for inc in 1..=s.brokers.len() as Incarnation {
            acts.extend((0..s.requests.len()).map(|rec| Act::Send(rec as Rec, inc)));
            acts.extend([
                Act::Land(inc),
                Act::Answer(inc),
                Act::Apply(inc),
                Act::Report(inc),
            ]);
            acts.extend([
                Act::Delete(inc),
                Act::Create(inc),
                Act::Seal(inc),
                Act::TakeOver(inc),
            ]);
            let others = (1..=s.brokers.len() as Incarnation).filter(|v| *v != inc);
            acts.extend(others.map(|victim| Act::Suspect(inc, victim)));
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, &act)?;
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn created(s: &State) -> bool {
            s.stored.topics.get(NAME).is_some_and(|t| t.id == NEW)
        }
        vec![
            Property::always("no violation", |_: &Topics, s: &State| s.bad.is_none()),
            Property::sometimes("created again and written to", |_: &Topics, s: &State| {
                let new = |r: &Request| r.acked && r.meant == Some(NEW);
                created(s) && s.requests.iter().any(new)
            }),
            Property::sometimes("created again beside a zombie", |_: &Topics, s: &State| {
                let zombie = |(i, b): (usize, &Broker)| {
                    let knows = b.applied.topics.get(NAME).is_some_and(|t| t.id == OLD);
                    b.up && knows && !s.stored.is_live(i as Incarnation + 1)
                };
                created(s) && s.brokers.iter().enumerate().any(zombie)
            }),
            Property::sometimes(
                "the unaware leader of a deleted topic",
                |_: &Topics, s: &State| s.acked_unaware,
            ),
        ]
    }
}

impl Checked for Topics {
    fn violation(&self, s: &State) -> Option<String> {
        s.bad.map(|v| format!("{v:?}"))
    }
}

/// The configuration, or its deviations.
pub fn runs(mutations: bool) -> Vec<Run> {
    let one = |d: Option<Deviation>| {
        let reaches = vec![
            "created again and written to",
            "created again beside a zombie",
            "the unaware leader of a deleted topic",
        ];
        let label = d.map(|d| format!("{d:?}"));
        Run::new("one-stream", "topics", label, reaches, move || Topics {
            deviations: d.into_iter().collect(),
        })
    };
    if mutations {
        MUTATIONS.iter().map(|d| one(Some(*d))).collect()
    } else {
        vec![one(None)]
    }
}
