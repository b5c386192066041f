//! Members of consumer groups: they join, read on from what is committed, commit, and join again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ledger::{Cursor, Ledger};
use super::readers::{FetchTrouble, Fetcher};
use super::record::Record;
use super::world::{TOPIC, World, count};
use crate::kafka::{Member, Trouble, code};

const PAUSE: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_millis(1_000);
const COMMIT: Duration = Duration::from_millis(700);
/// A member leaves by itself after about this time, so that groups are never at rest.
const STAY: Duration = Duration::from_secs(25);

/// One member of one group.
#[derive(Debug)]
pub(super) struct Consumer<'a> {
    world: &'a World,
    group: String,
    member: Member,
    fetcher: Fetcher,
    random: StdRng,
    /// The generation before this one, in which nothing can be committed any more.
    stale: Option<i32>,
}

/// What a member does next.
enum Next {
    Again,
    Rejoin,
    /// It was told something that cannot be.
    End,
}

impl<'a> Consumer<'a> {
    pub(super) fn new(world: &'a World, group: &str, seed: u64) -> Consumer<'a> {
        Consumer {
            world,
            group: group.to_owned(),
            member: Member::new(world.router(), group, TOPIC, world.partitions),
            fetcher: Fetcher::new(world),
            random: StdRng::seed_from_u64(seed),
            stale: None,
        }
    }

    /// Consumes until it is told to stop.
    pub(super) fn run(mut self) {
        while self.world.readers_go_on() {
            let before = self.member.generation();
            let asked = self.world.ledger.lock().group_now(&self.group, 0);
            match self.member.join() {
                Ok(mine) => {
                    count(&self.world.counts.joins, 1);
                    let generation = self.member.generation();
                    let joined = self.world.ledger.lock().joined(&self.group, asked, generation);
                    if !self.world.judge(joined) {
                        return;
                    }
                    self.stale = (0..generation).contains(&before).then_some(before);
                    if matches!(self.consume(&mine), Next::End) {
                        return;
                    }
                }
                Err(trouble) => match self.after(trouble) {
                    Next::End => return,
                    Next::Again | Next::Rejoin => std::thread::sleep(PAUSE),
                },
            }
        }
        self.member.leave();
    }

    /// Reads and commits its partitions until it must join again.
    fn consume(&mut self, mine: &[i32]) -> Next {
        let mut cursors = loop {
            match self.positions(mine) {
                Ok(cursors) => break cursors,
                Err(Next::Again) if self.world.readers_go_on() => std::thread::sleep(PAUSE),
                Err(Next::Again) => return Next::Rejoin,
                Err(next) => return next,
            }
        };
        let mut committed: BTreeMap<i32, i64> = positions(&cursors);
        let stay = STAY.mul_f64(self.random.random_range(0.2..2.0));
        let (begun, mut beaten, mut saved) = (Instant::now(), Instant::now(), Instant::now());
        while self.world.readers_go_on() {
            if !self.read(&mut cursors) {
                return Next::End;
            }
            let mut done = Ok(());
            if saved.elapsed() > COMMIT && committed != positions(&cursors) {
                saved = Instant::now();
                committed = positions(&cursors);
                done = self.commit(&committed);
            } else if beaten.elapsed() > HEARTBEAT {
                beaten = Instant::now();
                done = self.member.heartbeat().map_err(|trouble| self.after(trouble));
            }
            match done {
                // An offset of which it is not known whether it was committed is committed again.
                Err(Next::Again) => committed.clear(),
                Err(next) => return next,
                Ok(()) if begun.elapsed() > stay => {
                    self.member.leave();
                    return Next::Rejoin;
                }
                Ok(()) => {}
            }
        }
        Next::Rejoin
    }

    /// Where the group is in these partitions.
    fn positions(&mut self, mine: &[i32]) -> Result<BTreeMap<i32, Cursor>, Next> {
        let asked: Vec<_> = {
            let ledger = self.world.ledger.lock();
            mine.iter()
                .map(|partition| ledger.group_now(&self.group, *partition))
                .collect()
        };
        let offsets = self
            .member
            .committed(mine)
            .map_err(|trouble| self.after(trouble))?;
        let mut cursors = BTreeMap::new();
        for (partition, asked) in mine.iter().zip(asked) {
            let offset = offsets[partition];
            if !self
                .world
                .judge(Ledger::fetched(&self.group, *partition, asked, offset))
            {
                return Err(Next::End);
            }
            cursors.insert(*partition, Cursor { next: offset });
        }
        Ok(cursors)
    }

    /// False if it read something that cannot be.
    fn read(&mut self, cursors: &mut BTreeMap<i32, Cursor>) -> bool {
        if cursors.is_empty() {
            std::thread::sleep(PAUSE);
        }
        for (partition, cursor) in cursors {
            match self
                .fetcher
                .fetch(*partition, cursor.next, Duration::from_millis(50))
            {
                Ok(records) => {
                    let mut ledger = self.world.ledger.lock();
                    let read =
                        |(offset, record): (i64, Record)| ledger.read(*partition, cursor, offset, record);
                    if !self.world.judge(records.into_iter().try_for_each(read)) {
                        return false;
                    }
                }
                Err(FetchTrouble::Again(_)) => std::thread::sleep(PAUSE / 4),
                Err(FetchTrouble::Wrong(violation)) => {
                    self.world.report(format!("group {}: {violation}", self.group));
                    return false;
                }
            }
        }
        true
    }

    fn commit(&mut self, offsets: &BTreeMap<i32, i64>) -> Result<(), Next> {
        let (group, generation) = (self.group.clone(), self.member.generation());
        let before: Vec<_> = {
            let ledger = self.world.ledger.lock();
            offsets
                .keys()
                .map(|partition| ledger.group_now(&group, *partition))
                .collect()
        };
        if let Some(stale) = self.stale.take() {
            self.commit_in_vain(stale)?;
        }
        self.member
            .commit(offsets)
            .map_err(|trouble| self.after(trouble))?;
        count(&self.world.counts.commits, 1);
        let mut ledger = self.world.ledger.lock();
        for ((partition, offset), asked) in offsets.iter().zip(before) {
            let noted = ledger.committed((&group, *partition), asked, generation, *offset);
            if !self.world.judge(noted) {
                return Err(Next::End);
            }
        }
        Ok(())
    }

    /// Tries to commit in a generation that is over, which must not succeed.
    fn commit_in_vain(&mut self, generation: i32) -> Result<(), Next> {
        let nothing = BTreeMap::from([(0, 0)]);
        let codes = self.member.commit_in(generation, &nothing);
        let codes = codes.map_err(|trouble| self.after(trouble))?;
        if codes.contains(&code::NONE) {
            self.world.report(format!(
                "group {} let a member commit in generation {generation}, when {} had begun",
                self.group,
                self.member.generation()
            ));
            return Err(Next::End);
        }
        count(&self.world.counts.stale_commits_refused, 1);
        Ok(())
    }

    fn after(&mut self, trouble: Trouble) -> Next {
        match trouble {
            Trouble::Again(_) => Next::Again,
            Trouble::Rejoin(_) => Next::Rejoin,
            Trouble::Broken(words) => {
                self.world.report(format!("group {}: {words}", self.group));
                Next::End
            }
        }
    }
}

fn positions(cursors: &BTreeMap<i32, Cursor>) -> BTreeMap<i32, i64> {
    cursors
        .iter()
        .map(|(partition, cursor)| (*partition, cursor.next))
        .collect()
}
