//! Every interleaving of a small world: writers under the machines, a bucket that may answer anything an S3
//! client may see, and copies of writes that land late. Each rule of the machines is switched off once, and
//! the exploration must notice.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

use super::*;

/// Visits every state reachable from `start`; the first violation found ends it.
fn explore<S: Clone + Eq + Hash>(
    start: S,
    next: impl Fn(&S) -> Vec<S>,
    check: impl Fn(&S) -> Result<(), String>,
) -> Result<usize, String> {
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(state) = queue.pop_front() {
        check(&state)?;
        for state in next(&state) {
            if seen.insert(state.clone()) {
                queue.push_back(state);
            }
        }
    }
    Ok(seen.len())
}

mod create {
    use super::*;

    const WRITERS: usize = 3;

    #[derive(Clone, PartialEq, Eq, Hash, Default)]
    struct World {
        /// Who wrote the key.
        holds: Option<usize>,
        /// Copies under way per writer, at most one is worth telling apart.
        under_way: [bool; WRITERS],
        writers: [CreateMachine; WRITERS],
    }

    type Rule = fn(&mut CreateMachine, CreateEvent);

    fn follow(machine: &mut CreateMachine, event: CreateEvent) {
        let _ = machine.on(event);
    }

    fn next(world: &World, rule: Rule) -> Vec<World> {
        let mut found = Vec::new();
        for writer in 0..WRITERS {
            let mut go = |event, holds: Option<usize>, under_way: bool| {
                let mut after = world.clone();
                after.holds = holds;
                after.under_way[writer] |= under_way;
                rule(&mut after.writers[writer], event);
                found.push(after);
            };
            let applied = world.holds.or(Some(writer));
            match world.writers[writer].action() {
                Action::Put => {
                    if world.holds.is_none() {
                        go(CreateEvent::PutConfirmed, applied, false);
                        // The answer was cut, and a layer below has sent the request again.
                        go(CreateEvent::PutRefused, applied, false);
                    }
                    // 409, or something exists.
                    go(CreateEvent::PutRefused, world.holds, false);
                    go(CreateEvent::PutUnknown, applied, false);
                    go(CreateEvent::PutUnknown, world.holds, false);
                    go(CreateEvent::PutUnknown, world.holds, true);
                }
                Action::Read => {
                    go(CreateEvent::ReadFailed, world.holds, false);
                    let event = match world.holds {
                        None => CreateEvent::ReadMissing,
                        Some(holder) if holder == writer => CreateEvent::ReadMine,
                        Some(_) => CreateEvent::ReadOther,
                    };
                    go(event, world.holds, false);
                }
                Action::Committed | Action::Lost => {}
            }
            if world.under_way[writer] {
                let mut landed = world.clone();
                landed.under_way[writer] = false;
                landed.holds = applied;
                found.push(landed);
            }
        }
        found
    }

    fn check(world: &World) -> Result<(), String> {
        for (writer, machine) in world.writers.iter().enumerate() {
            let mine = world.holds == Some(writer);
            match machine.action() {
                Action::Committed if !mine => return Err(format!("{writer} committed, {:?}", world.holds)),
                Action::Lost if mine || world.holds.is_none() => {
                    return Err(format!("{writer} lost, {:?}", world.holds));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn run(rule: Rule) -> Result<usize, String> {
        explore(World::default(), |world| next(world, rule), check)
    }

    #[test]
    fn no_interleaving_gives_a_wrong_outcome() {
        let states = run(follow).unwrap();
        assert!(states > 300, "the world is too small: {states} states");
    }

    #[test]
    fn every_rule_is_needed() {
        let deviations: [(&str, Rule); 5] = [
            ("a refusal is believed", |machine, event| {
                match (machine.step, event) {
                    (Step::Putting, CreateEvent::PutRefused) => machine.step = Step::Lost,
                    _ => follow(machine, event),
                }
            }),
            ("blind retry: what exists is ours", |machine, event| {
                match (machine.step, event) {
                    (Step::Reading, CreateEvent::ReadOther) => machine.step = Step::Committed,
                    _ => follow(machine, event),
                }
            }),
            ("unknown is failure", |machine, event| {
                match (machine.step, event) {
                    (Step::Putting, CreateEvent::PutUnknown) => machine.step = Step::Lost,
                    _ => follow(machine, event),
                }
            }),
            ("unknown is success", |machine, event| {
                match (machine.step, event) {
                    (Step::Putting, CreateEvent::PutUnknown) => machine.step = Step::Committed,
                    _ => follow(machine, event),
                }
            }),
            ("what is missing will not come", |machine, event| {
                match (machine.step, event) {
                    (Step::Reading, CreateEvent::ReadMissing) => machine.step = Step::Lost,
                    _ => follow(machine, event),
                }
            }),
        ];
        for (name, rule) in deviations {
            assert!(run(rule).is_err(), "nothing goes wrong when {name}");
        }
    }

    #[test]
    fn events_that_do_not_belong_change_nothing() {
        let mut machine = CreateMachine::default();
        assert_eq!(machine.on(CreateEvent::ReadMine), Action::Put);
        assert_eq!(machine.on(CreateEvent::PutUnknown), Action::Read);
        assert_eq!(machine.on(CreateEvent::PutConfirmed), Action::Read);
        assert_eq!(machine.on(CreateEvent::ReadMine), Action::Committed);
        assert_eq!(machine.on(CreateEvent::PutUnknown), Action::Committed);
    }
}

mod update {
    use super::*;

    /// A body: a value, whether our commit is remembered in it, and an id that is 0 in a world where bodies
    /// carry none.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    struct Body {
        value: u8,
        ours: bool,
        id: u8,
    }

    /// Our one write from the first version, others' writes on top, and late copies of ours. The ETag is the
    /// body itself, as with a store whose ETags are content hashes.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct World {
        holds: Body,
        /// Whether our write was ever applied.
        applied: bool,
        under_way: bool,
        changes_left: u8,
        writer: UpdateMachine,
    }

    const FIRST: Body = Body {
        value: 0,
        ours: false,
        id: 0,
    };

    #[derive(Clone, Copy)]
    struct Rules {
        fresh_ids: bool,
        on: fn(&mut UpdateMachine, UpdateEvent),
        /// What tells that our write was applied.
        landed: fn(Body) -> bool,
    }

    fn follow(machine: &mut UpdateMachine, event: UpdateEvent) {
        let _ = machine.on(event);
    }

    const RULES: Rules = Rules {
        fresh_ids: true,
        on: follow,
        landed: |body| body.ours,
    };

    fn next(world: &World, rules: Rules) -> Vec<World> {
        let ours = Body {
            value: 7,
            ours: true,
            id: if rules.fresh_ids { 100 } else { 0 },
        };
        let matches = world.holds == FIRST;
        let mut found = Vec::new();
        let mut go = |event, apply: bool, under_way: bool| {
            let mut after = world.clone();
            if apply && matches {
                after.holds = ours;
                after.applied = true;
            }
            after.under_way |= under_way;
            if let Some(event) = event {
                (rules.on)(&mut after.writer, event);
            }
            found.push(after);
        };
        match world.writer.action() {
            Action::Put => {
                if matches {
                    go(Some(UpdateEvent::PutConfirmed), true, false);
                    go(Some(UpdateEvent::PutRefused), true, false);
                }
                go(Some(UpdateEvent::PutRefused), false, false);
                go(Some(UpdateEvent::PutUnknown), true, false);
                go(Some(UpdateEvent::PutUnknown), false, false);
                go(Some(UpdateEvent::PutUnknown), false, true);
            }
            Action::Read => {
                go(Some(UpdateEvent::ReadFailed), false, false);
                let event = match (rules.landed)(world.holds) {
                    true => UpdateEvent::ReadLanded,
                    false if matches => UpdateEvent::ReadUnchanged,
                    false => UpdateEvent::ReadChanged,
                };
                go(Some(event), false, false);
            }
            Action::Committed | Action::Lost => {}
        }
        if world.under_way {
            let mut landed = world.clone();
            landed.under_way = false;
            if matches {
                landed.holds = ours;
                landed.applied = true;
            }
            found.push(landed);
        }
        if world.changes_left > 0 {
            for value in 0..2 {
                let mut changed = world.clone();
                changed.changes_left -= 1;
                let id = if rules.fresh_ids { world.changes_left } else { 0 };
                changed.holds = Body {
                    value,
                    ours: world.holds.ours,
                    id,
                };
                found.push(changed);
            }
        }
        found
    }

    fn check(world: &World) -> Result<(), String> {
        match world.writer.action() {
            Action::Committed if !world.applied => {
                Err(format!("committed, but never applied: {:?}", world.holds))
            }
            Action::Lost if world.applied => Err(format!("lost, but applied: {:?}", world.holds)),
            _ => Ok(()),
        }
    }

    fn run(rules: Rules) -> Result<usize, String> {
        let writer = UpdateMachine::default();
        let start = World {
            holds: FIRST,
            applied: false,
            under_way: false,
            changes_left: 3,
            writer,
        };
        explore(start, |world| next(world, rules), check)
    }

    #[test]
    fn no_interleaving_gives_a_wrong_outcome() {
        let states = run(RULES).unwrap();
        assert!(states > 50, "the world is too small: {states} states");
    }

    #[test]
    fn every_rule_is_needed() {
        let deviations = [
            (
                "bodies repeat (ETag ABA)",
                Rules {
                    fresh_ids: false,
                    ..RULES
                },
            ),
            (
                "only the newest writer is remembered",
                Rules {
                    landed: |body| body.value == 7,
                    ..RULES
                },
            ),
            (
                "a refusal is believed",
                Rules {
                    on: |machine, event| match (machine.step, event) {
                        (Step::Putting, UpdateEvent::PutRefused) => machine.step = Step::Lost,
                        _ => follow(machine, event),
                    },
                    ..RULES
                },
            ),
            (
                "unknown is failure",
                Rules {
                    on: |machine, event| match (machine.step, event) {
                        (Step::Putting, UpdateEvent::PutUnknown) => machine.step = Step::Lost,
                        _ => follow(machine, event),
                    },
                    ..RULES
                },
            ),
            (
                "unchanged means lost",
                Rules {
                    on: |machine, event| match (machine.step, event) {
                        (Step::Reading, UpdateEvent::ReadUnchanged) => machine.step = Step::Lost,
                        _ => follow(machine, event),
                    },
                    ..RULES
                },
            ),
            (
                "changed means ours",
                Rules {
                    on: |machine, event| match (machine.step, event) {
                        (Step::Reading, UpdateEvent::ReadChanged) => machine.step = Step::Committed,
                        _ => follow(machine, event),
                    },
                    ..RULES
                },
            ),
        ];
        for (name, rules) in deviations {
            assert!(run(rules).is_err(), "nothing goes wrong when {name}");
        }
    }
}
