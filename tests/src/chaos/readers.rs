//! Readers: one that follows every partition, one that reads what is old, and one that reads everything at the end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ledger::{Cursor, Violation};
use super::record::Record;
use super::world::{TOPIC, World, count, records_of};
use crate::batches;
use crate::kafka::{self, Router, code};
use crate::wire::Client;

/// Offsets that the reader of old records reads in one go.
const OLD_RECORDS: i64 = 300;
/// OFFSET_OUT_OF_RANGE: clients act on it for good, so no broker may say it while nothing is removed.
const OFFSET_OUT_OF_RANGE: i16 = 1;
const PAUSE: Duration = Duration::from_millis(50);

/// Fetches from whoever leads.
#[derive(Debug)]
pub(super) struct Fetcher {
    router: Router,
    clients: HashMap<SocketAddr, Client>,
}

/// Why nothing was fetched.
#[derive(Debug)]
pub(super) enum FetchTrouble {
    Again(String),
    Wrong(Violation),
}

impl Fetcher {
    pub(super) fn new(world: &World) -> Fetcher {
        Fetcher {
            router: world.router(),
            clients: HashMap::new(),
        }
    }

    /// Records from this offset on.
    pub(super) fn fetch(
        &mut self,
        partition: i32,
        offset: i64,
        wait: Duration,
    ) -> Result<Vec<(i64, Record)>, FetchTrouble> {
        let answered = self.try_fetch(partition, offset, wait);
        let bytes = match answered {
            Ok((code::NONE, bytes)) => bytes,
            Ok((OFFSET_OUT_OF_RANGE, _)) => {
                let words = format!("partition {partition}: {offset} is said to be out of range");
                return Err(FetchTrouble::Wrong(words));
            }
            Ok((code, _)) if code::is_retriable(code) => {
                self.router.forget();
                return Err(FetchTrouble::Again(format!("error {code}")));
            }
            Ok((code, _)) => {
                let words = format!("partition {partition}: fetch at {offset}: error {code}");
                return Err(FetchTrouble::Wrong(words));
            }
            Err(error) => {
                self.router.forget();
                return Err(FetchTrouble::Again(error.to_string()));
            }
        };
        let wrong = |error| FetchTrouble::Wrong(format!("partition {partition}: {error}"));
        let fetched = batches::read(&bytes).map_err(wrong)?;
        let fetched: Vec<_> = fetched
            .into_iter()
            .filter(|record| record.offset >= offset)
            .collect();
        records_of(&fetched).map_err(wrong)
    }

    fn try_fetch(&mut self, partition: i32, offset: i64, wait: Duration) -> io::Result<(i16, bytes::Bytes)> {
        let leader = self.router.leader(TOPIC, partition)?;
        // A connection that fails is not put back.
        let mut client = match self.clients.remove(&leader) {
            Some(client) => client,
            None => self.router.connect(leader)?,
        };
        let answer = kafka::fetch(&mut client, TOPIC, partition, offset, wait)?;
        self.clients.insert(leader, client);
        Ok(answer)
    }

    /// The end of a partition, as its leader says.
    fn end(&mut self, partition: i32) -> io::Result<i64> {
        let leader = self.router.leader(TOPIC, partition)?;
        let mut client = self.router.connect(leader)?;
        kafka::end_offset(&mut client, TOPIC, partition)
    }
}

/// Follows every partition from its first offset on.
pub(super) fn follow(world: &World) {
    let mut fetcher = Fetcher::new(world);
    let mut cursors = vec![Cursor::default(); world.partitions as usize];
    while world.readers_go_on() {
        for (partition, cursor) in (0..).zip(&mut cursors) {
            match fetcher.fetch(partition, cursor.next, Duration::from_millis(100)) {
                Ok(records) => {
                    count(&world.counts.reads, records.len() as u64);
                    let mut ledger = world.ledger.lock();
                    let read =
                        |(offset, record): (i64, Record)| ledger.read(partition, cursor, offset, record);
                    if !world.judge(records.into_iter().try_for_each(read)) {
                        return;
                    }
                }
                Err(FetchTrouble::Again(_)) => std::thread::sleep(PAUSE),
                Err(FetchTrouble::Wrong(violation)) => return world.report(violation),
            }
        }
    }
}

/// Reads pieces of the past again and again: they must stay what they were, wherever they have been moved.
pub(super) fn look_back(world: &World, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fetcher = Fetcher::new(world);
    while world.readers_go_on() {
        std::thread::sleep(PAUSE * 4);
        let partition = random.random_range(0..world.partitions);
        let end = world.ledger.lock().end(partition);
        if end == 0 {
            continue;
        }
        let from = random.random_range(0..end);
        let mut cursor = Cursor { next: from };
        while cursor.next < end.min(from + OLD_RECORDS) && world.readers_go_on() {
            match fetcher.fetch(partition, cursor.next, Duration::ZERO) {
                Ok(records) => {
                    count(&world.counts.old_reads, records.len() as u64);
                    let mut ledger = world.ledger.lock();
                    let read =
                        |(offset, record): (i64, Record)| ledger.read(partition, &mut cursor, offset, record);
                    if !world.judge(records.into_iter().try_for_each(read)) {
                        return;
                    }
                }
                Err(FetchTrouble::Again(_)) => std::thread::sleep(PAUSE),
                Err(FetchTrouble::Wrong(violation)) => return world.report(violation),
            }
        }
    }
}

/// Reads a whole partition, from its first offset to its end as of now.
///
/// # Errors
/// What is wrong with it, or that it could not be read in time.
pub(super) fn read_whole(
    world: &World,
    partition: i32,
    patience: Duration,
) -> Result<Vec<(i64, Record)>, Violation> {
    let mut fetcher = Fetcher::new(world);
    let deadline = Instant::now() + patience;
    let mut all: Vec<(i64, Record)> = Vec::new();
    let mut end = None;
    loop {
        let next = all.last().map_or(0, |(offset, _)| offset + 1);
        let trouble = match end {
            None => match fetcher.end(partition) {
                Ok(found) => {
                    end = Some(found);
                    continue;
                }
                Err(error) => {
                    fetcher.router.forget();
                    error.to_string()
                }
            },
            Some(end) if next >= end => return Ok(all),
            Some(_) => match fetcher.fetch(partition, next, Duration::from_millis(100)) {
                Ok(records) if !records.is_empty() => {
                    all.extend(records);
                    continue;
                }
                Ok(_) => format!("nothing comes at {next}, the end is {end:?}"),
                Err(FetchTrouble::Again(error)) => error,
                Err(FetchTrouble::Wrong(violation)) => return Err(violation),
            },
        };
        if Instant::now() > deadline {
            return Err(format!(
                "partition {partition} cannot be read on from {next}: {trouble}"
            ));
        }
        std::thread::sleep(PAUSE);
    }
}
