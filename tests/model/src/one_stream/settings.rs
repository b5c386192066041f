//! Changes of the manifest: two brokers, each with a list of changes, compare-and-swaps that stay unknown, land
//! late or twice. The engine decides what a change does (`Manifest::apply`, `stamp`), what became of a write
//! (`UpdateMachine`) and whether a manifest holds it (`has_commit`); the loop around them is the keeper's.

use std::collections::BTreeMap;

use alluvium_log::Incarnation;
use alluvium_log::manifest::{Change, Manifest};
use alluvium_log::store::conditional::{Action, UpdateEvent, UpdateMachine};
use stateright::{Model, Property};
use uuid::Uuid;

use self::Deviation::*;
use super::state::Of;
use crate::check::{Checked, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// Bodies carry no fresh commit id and no version: the same content has the same ETag again.
    EtagAba,
    /// A write is recognised by the newest commit id only, not by its writer's last one.
    NewestCommitOnly,
    /// A change whose answer did not come is told as refused.
    UnknownIsRefused,
    /// A refused write is taken for lost without reading back.
    RefusedIsLost,
}

const MUTATIONS: &[Deviation] = &[EtagAba, NewestCommitOnly, UnknownIsRefused, RefusedIsLost];
const TOPIC: Uuid = Uuid::from_u128(42);

pub struct Settings {
    deviations: Vec<Deviation>,
    /// The changes of each broker, in order.
    plans: [Vec<Change>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flying {
    expected: Of<Manifest>,
    body: Of<Manifest>,
    copies: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cas {
    machine: UpdateMachine,
    expected: Of<Manifest>,
    body: Of<Manifest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    known: Of<Manifest>,
    /// Which of its changes is next, or under way.
    at: usize,
    cas: Option<Cas>,
    told: Vec<Told>,
}

/// What the client of a change heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Done,
    Refused,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// The newest acknowledged change of a setting does not hold.
    ChangeUndone,
    /// A change told as refused was made.
    RefusedWasMade,
    /// A write that its writer takes for lost was made.
    LostWasMade,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    stored: Of<Manifest>,
    flying: Vec<Flying>,
    writers: Vec<Writer>,
    unknown: u8,
    commits: u8,
    built_upon: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Begin(usize),
    Land(usize),
    Answer(usize),
    Echo(usize),
    TimeOut(usize),
    ReadBack(usize),
    GiveUp(usize),
    Poll(usize),
}

fn set(value: Option<&str>) -> Change {
    let changes = vec![("retention.ms".to_owned(), value.map(str::to_owned))];
    Change::AlterBrokerConfigs {
        broker: String::new(),
        changes,
    }
}

/// What a setting holds.
fn value(m: &Manifest) -> Option<&String> {
    m.broker_configs.get("").and_then(|c| c.get("retention.ms"))
}

impl Settings {
    fn new(deviations: Vec<Deviation>) -> Settings {
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        let other = Change::AlterBrokerConfigs {
            broker: "2".into(),
            changes: vec![("a".into(), Some("1".into()))],
        };
        Settings {
            deviations,
            plans: [vec![set(Some("1")), set(None), create], vec![other]],
        }
    }

    fn has(&self, d: Deviation) -> bool {
        self.deviations.contains(&d)
    }

    /// What the store compares.
    fn same(&self, a: &Manifest, b: &Manifest) -> bool {
        if self.has(EtagAba) {
            return (&a.topics, &a.broker_configs, &a.slots) == (&b.topics, &b.broker_configs, &b.slots);
        }
        a == b
    }

    fn landed(&self, stored: &Manifest, body: &Manifest) -> bool {
        if self.has(EtagAba) {
            return self.same(stored, body);
        }
        if self.has(NewestCommitOnly) {
            return stored.commit_id == body.commit_id;
        }
        stored.has_commit(body.commit_id)
    }

    fn begin(&self, s: &mut State, i: usize) -> Option<()> {
        let w = &mut s.writers[i];
        if w.cas.is_some() {
            return None;
        }
        let change = self.plans[i].get(w.at)?;
        let mut next = (*w.known).clone();
        if next.apply(change, TOPIC).is_err() {
            w.told.push(Told::Refused);
            w.at += 1;
            return Some(());
        }
        s.commits += 1;
        next.stamp(
            Some(i as Incarnation + 1),
            Uuid::from_u128(100 + u128::from(s.commits)),
        );
        let (expected, body) = (w.known.clone(), Of::new(next));
        w.cas = Some(Cas {
            machine: UpdateMachine::default(),
            expected: expected.clone(),
            body: body.clone(),
        });
        s.flying.push(Flying {
            expected,
            body,
            copies: 1,
        });
        Some(())
    }

    fn settle(w: &mut Writer, told: Told) {
        w.told.push(told);
        w.at += 1;
        w.cas = None;
    }

    fn step(&self, s: &mut State, act: &Act) -> Option<()> {
        let (i, event) = match *act {
            Act::Begin(i) => return self.begin(s, i),
            Act::Poll(i) => {
                let (stored, w) = (s.stored.clone(), &mut s.writers[i]);
                let news = w.cas.is_none() && w.known != stored && w.at < self.plans[i].len();
                w.known = stored;
                return news.then_some(());
            }
            Act::Land(i) => {
                let f = s.flying.get_mut(i)?;
                f.copies -= 1;
                let f = f.clone();
                if f.copies == 0 {
                    s.flying.remove(i);
                }
                if self.same(&s.stored, &f.expected) {
                    s.stored = f.body;
                }
                return Some(());
            }
            Act::GiveUp(i) => {
                let w = &mut s.writers[i];
                (w.cas.as_ref()?.machine.action() == Action::Read).then_some(())?;
                Self::settle(w, Told::Unknown);
                return Some(());
            }
            Act::Answer(i) => (i, Act::Answer(i)),
            Act::Echo(i) => (i, Act::Echo(i)),
            Act::TimeOut(i) => (i, Act::TimeOut(i)),
            Act::ReadBack(i) => (i, Act::ReadBack(i)),
        };
        let stored = s.stored.clone();
        let cas = s.writers[i].cas.clone()?;
        let landed = self.landed(&stored, &cas.body);
        let unchanged = self.same(&stored, &cas.expected);
        let event = match event {
            Act::Answer(_) if landed => UpdateEvent::PutConfirmed,
            Act::Answer(_) if unchanged => return None,
            Act::Answer(_) => UpdateEvent::PutRefused,
            Act::Echo(_) if landed => UpdateEvent::PutRefused,
            Act::TimeOut(_) => UpdateEvent::PutUnknown,
            Act::ReadBack(_) if landed => UpdateEvent::ReadLanded,
            Act::ReadBack(_) if unchanged => UpdateEvent::ReadUnchanged,
            Act::ReadBack(_) => UpdateEvent::ReadChanged,
            _ => return None,
        };
        if matches!(act, Act::Echo(_) | Act::TimeOut(_)) {
            s.unknown = s.unknown.checked_sub(1)?;
        }
        let expected = if matches!(act, Act::ReadBack(_)) {
            Action::Read
        } else {
            Action::Put
        };
        if cas.machine.action() != expected {
            return None;
        }
        let w = &mut s.writers[i];
        if event == UpdateEvent::PutUnknown && self.has(UnknownIsRefused) {
            Self::settle(w, Told::Refused);
            return Some(());
        }
        let mut machine = cas.machine;
        let mut action = machine.on(event);
        if event == UpdateEvent::PutRefused && self.has(RefusedIsLost) {
            action = Action::Lost;
        }
        match action {
            Action::Put => match s.flying.iter_mut().find(|f| f.body == cas.body) {
                Some(f) => f.copies = (f.copies + 1).min(2),
                None => s.flying.push(Flying {
                    expected: cas.expected,
                    body: cas.body,
                    copies: 1,
                }),
            },
            Action::Read => {}
            Action::Committed => {
                s.built_upon |= stored.commit_id != cas.body.commit_id;
                w.known = stored;
                Self::settle(w, Told::Done);
                return Some(());
            }
            // The keeper's loop: adopt what is there and decide again.
            Action::Lost => {
                w.known = stored;
                w.cas = None;
                return Some(());
            }
        }
        w.cas.as_mut()?.machine = machine;
        Some(())
    }

    fn check(&self, s: &State) -> Option<Violation> {
        let w = &s.writers[0];
        // Only this broker changes the setting. After its newest acknowledged change, only later ones may hold.
        let newest = w.told.iter().take(2).rposition(|t| *t == Told::Done);
        let mut allowed: Vec<Option<String>> = vec![];
        let values = [Some("1".to_owned()), None];
        allowed.push(newest.and_then(|i| values[i].clone()));
        for (i, v) in values.iter().enumerate().skip(newest.map_or(0, |i| i + 1)) {
            if w.at > i || w.at == i && w.cas.is_some() {
                allowed.push(v.clone());
            }
        }
        let holds = value(&s.stored).cloned();
        if !allowed.contains(&holds) {
            let lost = w.cas.is_none() && values.get(w.at) == Some(&holds);
            return Some(if lost {
                Violation::LostWasMade
            } else {
                Violation::ChangeUndone
            });
        }
        let made = |i: usize| match i {
            0 => value(&s.stored).is_some(),
            2 => s.stored.topics.contains_key("t"),
            _ => false,
        };
        let refused = |i: &usize| w.told.get(*i) == Some(&Told::Refused);
        (0..3)
            .filter(refused)
            .any(made)
            .then_some(Violation::RefusedWasMade)
    }
}

impl Model for Settings {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::nil(), 1);
        for i in 1..=2 {
            let inc = m.register(i as i32, None, BTreeMap::new());
            m.stamp(Some(inc), Uuid::from_u128(10 + i));
        }
        let stored = Of::new(m);
        let writer = Writer {
            known: stored.clone(),
            at: 0,
            cas: None,
            told: vec![],
        };
        vec![State {
            stored,
            flying: vec![],
            writers: vec![writer.clone(), writer],
            unknown: 2,
            commits: 0,
            built_upon: false,
        }]
    }

    fn actions(&self, s: &State, acts: &mut Vec<Act>) {
        acts.extend((0..s.flying.len()).map(Act::Land));
        for (i, w) in s.writers.iter().enumerate() {
            if w.cas.is_none() {
                acts.extend([Act::Begin(i), Act::Poll(i)]);
            } else {
                acts.extend([Act::Answer(i), Act::ReadBack(i), Act::GiveUp(i)]);
                if s.unknown > 0 {
                    acts.extend([Act::Echo(i), Act::TimeOut(i)]);
                }
            }
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, &act)?;
        if !self.has(EtagAba) {
            // A version never comes back, so these copies cannot change anything any more.
            let State { flying, stored, .. } = &mut s;
            flying.retain(|f| f.expected == *stored);
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no violation", |m: &Settings, s: &State| m.check(s).is_none()),
            Property::sometimes("all done", |m: &Settings, s: &State| {
                let done = |(w, plan): (&Writer, &Vec<Change>)| w.told == vec![Told::Done; plan.len()];
                s.writers.iter().zip(&m.plans).all(done)
            }),
            Property::sometimes(
                "recognised after another built on it",
                |_: &Settings, s: &State| s.built_upon,
            ),
            Property::sometimes("given up and landed later", |_: &Settings, s: &State| {
                s.writers[0].told.first() == Some(&Told::Unknown) && value(&s.stored).is_some()
            }),
        ]
    }
}

impl Checked for Settings {
    fn violation(&self, s: &State) -> Option<String> {
        self.check(s).map(|v| format!("{v:?}"))
    }
}

/// The configuration, or its deviations.
pub fn runs(mutations: bool) -> Vec<Run> {
    let one = |d: Option<Deviation>| {
        let reaches = vec![
            "all done",
            "recognised after another built on it",
            "given up and landed later",
        ];
        let label = d.map(|d| format!("{d:?}"));
        Run::new("one-stream", "settings", label, reaches, move || {
            Settings::new(d.into_iter().collect())
        })
    };
    if mutations {
        MUTATIONS.iter().map(|d| one(Some(*d))).collect()
    } else {
        vec![one(None)]
    }
}
