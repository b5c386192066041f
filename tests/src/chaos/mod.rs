//! Chaos: real brokers behind proxies on one store, producers and consumer groups at work, and faults drawn from a
//! seed, while a ledger compares everything that clients are told.
//!
//! `Plan (faults) -> Cluster (processes, proxies, store)`, and beside it `producers, readers, members -> Ledger`.
//!
//! What must hold: every acknowledged record stays at its offset, once and in its producer's order; a reader at any
//! broker sees every offset in turn and the same record each time; committed offsets and generations of groups never
//! go back; when a fault has ended, every partition takes records and every group goes on in bounded time; no broker
//! ends by itself. At the end everything is read again, before and after a kill of all brokers.

mod cluster;
mod external;
mod ledger;
mod members;
mod plan;
mod producers;
mod proxy;
mod pulse;
mod readers;
mod record;
mod sniffer;
mod store;
mod summary;
mod world;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use cluster::Cluster;
use external::External;
use ledger::Violation;
use members::Consumer;
use plan::{Bounds, Fault, FaultKind, Plan, Step};
use producers::ProducerPlan;
use store::{ChaosStore, Contents};
use world::{TOPIC, World};

pub use store::StoreChoice;
pub use summary::Summary;

use crate::kafka;
use crate::wire::Client;

/// Partitions of the topic.
const PARTITIONS: i32 = 6;
/// Groups, and members of each.
const GROUPS: [&str; 2] = ["chaos-a", "chaos-b"];
const MEMBERS: u64 = 3;
/// From the end of a fault until every partition takes records again and every group has caught up with it.
const RECOVERY: Duration = Duration::from_secs(120);
/// Time for the last acknowledgements, the last commits and reading everything.
const ENDING: Duration = Duration::from_secs(240);
/// Time after which what restarts leave behind is gone: merging, checkpoints and the deletion delay take their turns.
const TIDYING: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(50);

/// What a run does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Decides every fault; printed by whoever runs.
    pub seed: u64,
    /// Brokers.
    pub brokers: usize,
    /// How long faults strike.
    pub length: Duration,
    /// So many rounds of kill and restart instead of other faults.
    pub rounds: Option<u32>,
    /// Longest single fault.
    pub longest: Duration,
    /// The store.
    pub store: StoreChoice,
    /// Records per second of all producers, about.
    pub rate: u32,
    /// Whether producers and consumers on librdkafka take part.
    pub clients: bool,
    /// An older `alluvium`, which takes turns with ours: each start of a broker is of the version that it was not before.
    pub other: Option<PathBuf>,
    /// Where logs go.
    pub logs: PathBuf,
}

/// Why a run failed.
#[derive(Debug)]
pub struct Failure {
    /// What was wrong, in a sentence.
    pub violation: String,
    /// The last faults before it.
    pub faults: Vec<String>,
    /// Logs of the brokers.
    pub logs: Vec<PathBuf>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.violation)?;
        writeln!(f, "the last faults before that:")?;
        for fault in &self.faults {
            writeln!(f, "  {fault}")?;
        }
        let logs: Vec<String> = self.logs.iter().map(|log| log.display().to_string()).collect();
        write!(f, "logs: {}", logs.join(" "))
    }
}

/// Runs it.
///
/// # Errors
/// What was wrong first.
pub fn run(settings: &Settings) -> Result<Summary, Failure> {
    let early = |violation: String| Failure {
        violation,
        faults: Vec::new(),
        logs: Vec::new(),
    };
    std::fs::create_dir_all(&settings.logs)
        .map_err(|error| early(format!("{}: {error}", settings.logs.display())))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("chaos")
        .enable_all()
        .build()
        .map_err(|error| early(error.to_string()))?;
    let store = ChaosStore::start(&settings.store, settings.seed).map_err(early)?;
    let cluster = Cluster::start(store, settings, runtime.handle()).map_err(early)?;
    let world = World::new(cluster.bootstrap(), PARTITIONS);
    let logs = cluster.logs();
    let mut session = Session {
        settings,
        runtime: &runtime,
        world: &world,
        cluster,
        summary: Summary::default(),
        told: Vec::new(),
    };
    let done = session.run();
    // Everything that runs has seen the flags by now; only the first violation counts.
    let violation = world.violation().or(done.err());
    match violation {
        None => Ok(session.summary),
        Some(violation) => Err(Failure {
            violation,
            faults: session.told.split_off(session.told.len().saturating_sub(8)),
            logs,
        }),
    }
}

struct Session<'a> {
    settings: &'a Settings,
    runtime: &'a Runtime,
    world: &'a World,
    cluster: Cluster,
    summary: Summary,
    told: Vec<String>,
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), Violation> {
        create_topic(self.world)?;
        let world = self.world;
        let start = || External::start(world, &self.settings.logs);
        let external = self.settings.clients.then(start).transpose()?;
        std::thread::scope(|scope| {
            let mut producers = Vec::new();
            for plan in producer_plans(self.settings) {
                producers.push(scope.spawn(move || producers::produce(world, &plan)));
            }
            scope.spawn(|| readers::follow(world));
            let seed = self.settings.seed;
            scope.spawn(move || readers::look_back(world, seed));
            for (number, group) in GROUPS.iter().enumerate() {
                for member in 0..MEMBERS {
                    let seed = seed ^ ((number as u64 + 1) << 32 | member);
                    scope.spawn(move || Consumer::new(world, group, seed).run());
                }
            }
            if let Some(external) = &external {
                scope.spawn(|| external.listen(world));
            }
            let done = self.strike().and_then(|()| {
                world.producers_stop.store(true, Ordering::Relaxed);
                self.wait("the last acknowledgements", ENDING, || {
                    producers.iter().all(std::thread::ScopedJoinHandle::is_finished)
                })?;
                external.as_ref().map_or(Ok(()), External::finish)?;
                self.wait_for_groups(ENDING).map(drop)
            });
            if let Err(violation) = done {
                world.report(violation);
                // Its lines end only with it.
                external.iter().for_each(External::kill);
            }
            world.readers_stop.store(true, Ordering::Relaxed);
        });
        if let Some(violation) = self.world.violation() {
            return Err(violation);
        }
        self.finish()
    }

    /// Lets faults strike as long as is asked for.
    fn strike(&mut self) -> Result<(), Violation> {
        let begun = Instant::now();
        self.wait_for_recovery(begun)?;
        if let Some(rounds) = self.settings.rounds {
            return self.rounds(rounds);
        }
        let bounds = Bounds {
            brokers: self.settings.brokers,
            longest: self.settings.longest,
            storms: self.cluster.store().has_storms(),
        };
        for step in Plan::new(self.settings.seed, bounds) {
            if begun.elapsed() >= self.settings.length {
                break;
            }
            self.step(&step)?;
            self.rest(step.rest)?;
        }
        Ok(())
    }

    /// Kills and restarts one broker after the other, and looks at what that leaves behind.
    fn rounds(&mut self, rounds: u32) -> Result<(), Violation> {
        // Whatever is written while everything is new has been written by then.
        self.rest(Duration::from_secs(10))?;
        let before = self.contents()?;
        for round in 0..rounds {
            let fault = Fault {
                kind: if round % 10 == 9 {
                    FaultKind::KillAll
                } else {
                    FaultKind::Kill
                },
                broker: round as usize % self.settings.brokers,
                length: Duration::from_millis(100 + 400 * u64::from(round % 4)),
            };
            self.step(&Step {
                faults: vec![(Duration::ZERO, fault)],
                rest: Duration::ZERO,
            })?;
        }
        self.tidy(&before)
    }

    /// Waits until the manifest is as small as before and every dead stream has left only what it must.
    fn tidy(&mut self, before: &Contents) -> Result<(), Violation> {
        let begun = Instant::now();
        loop {
            let now = self.contents()?;
            match summary::leftovers(before, &now, self.settings.brokers) {
                Ok(()) => {
                    self.summary.tidied(before, &now, begun.elapsed());
                    return Ok(());
                }
                Err(words) if begun.elapsed() > TIDYING => return Err(words),
                Err(_) => self.rest(Duration::from_secs(2))?,
            }
        }
    }

    fn contents(&self) -> Result<Contents, Violation> {
        self.runtime.block_on(self.cluster.store().contents())
    }

    /// Lets the faults of a step begin and end in their time, and waits until all is well again.
    fn step(&mut self, step: &Step) -> Result<(), Violation> {
        let begun = Instant::now();
        let mut moments: Vec<(Duration, bool, Fault)> = Vec::new();
        for (delay, fault) in &step.faults {
            moments.push((*delay, true, *fault));
            moments.push((*delay + fault.length, false, *fault));
        }
        moments.sort_by_key(|(at, ..)| *at);
        for (at, begins, fault) in moments {
            self.wait("a fault", Duration::MAX, || begun.elapsed() >= at)?;
            if begins {
                let seconds = self.summary.seconds();
                self.tell(format!("{seconds:7.1} s: {fault}"));
                self.cluster.begin(&fault);
            } else {
                self.cluster.end(&fault)?;
            }
        }
        let healed = Instant::now();
        self.wait_for_recovery(healed)?;
        let recovery = healed.elapsed();
        let gaps = self.world.pulse.lock().longest_since(begun);
        let kinds: Vec<FaultKind> = step.faults.iter().map(|(_, fault)| fault.kind).collect();
        self.summary.step(&kinds, recovery, &gaps);
        self.wait_for_groups(RECOVERY)?;
        Ok(())
    }

    fn tell(&mut self, words: String) {
        println!("{words}");
        self.told.push(words);
    }

    /// Waits until every partition has acknowledged something after this moment.
    fn wait_for_recovery(&mut self, since: Instant) -> Result<(), Violation> {
        let world = self.world;
        self.wait("every partition takes records", RECOVERY, || {
            world.pulse.lock().silent_since(since).is_empty()
        })
        .map_err(|error| {
            let silent = world.pulse.lock().silent_since(since);
            format!("{error}: partitions {silent:?} acknowledge nothing")
        })
    }

    /// Waits until every group has committed what is there now.
    fn wait_for_groups(&mut self, patience: Duration) -> Result<(), Violation> {
        let world = self.world;
        let ends: Vec<i64> = {
            let ledger = world.ledger.lock();
            (0..PARTITIONS).map(|partition| ledger.end(partition)).collect()
        };
        let behind = || {
            let ledger = world.ledger.lock();
            let mut behind = Vec::new();
            for group in GROUPS {
                for (partition, end) in (0..).zip(&ends) {
                    let committed = ledger.commit_floor(group, partition);
                    if committed < *end {
                        behind.push(format!("{group}/{partition}: {committed} of {end}"));
                    }
                }
            }
            behind
        };
        self.wait("every group goes on", patience, || behind().is_empty())
            .map_err(|error| format!("{error}: {}", behind().join(", ")))
    }

    fn rest(&mut self, length: Duration) -> Result<(), Violation> {
        let begun = Instant::now();
        self.wait("a rest", Duration::MAX, || begun.elapsed() >= length)
    }

    /// Waits for something while it looks after the brokers and listens to the threads.
    fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), Violation> {
        let begun = Instant::now();
        loop {
            if let Some(violation) = self.world.violation() {
                return Err(violation);
            }
            self.cluster.tend()?;
            if done() {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(format!("{what} only after more than {} s", patience.as_secs()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Reads everything, from the brokers as they are and from brokers that have just started.
    fn finish(&mut self) -> Result<(), Violation> {
        self.cluster.settle()?;
        self.read_everything()?;
        let all = Fault {
            kind: FaultKind::KillAll,
            broker: 0,
            length: Duration::ZERO,
        };
        self.cluster.begin(&all);
        self.cluster.end(&all)?;
        self.cluster.settle()?;
        self.read_everything()?;
        match self.cluster.store().rejected() {
            0 => {}
            rejected => return Err(format!("{rejected} requests to the store were malformed")),
        }
        let contents = self.contents()?;
        self.summary.finish(self.world, self.cluster.starts(), &contents);
        Ok(())
    }

    fn read_everything(&self) -> Result<(), Violation> {
        for partition in 0..PARTITIONS {
            let records = readers::read_whole(self.world, partition, ENDING)?;
            self.world.ledger.lock().compare(partition, &records)?;
        }
        Ok(())
    }
}

fn create_topic(world: &World) -> Result<(), Violation> {
    let create = || {
        let mut client = Client::connect(world.bootstrap[0])?;
        kafka::create_topic(&mut client, TOPIC, PARTITIONS, &[("retention.ms", "-1")])
    };
    create().map_err(|error| format!("the topic: {error}"))
}

/// Two producers for every other partition, one for the rest.
fn producer_plans(settings: &Settings) -> Vec<ProducerPlan> {
    let partitions = (0..PARTITIONS).chain((0..PARTITIONS).step_by(2));
    let all: Vec<i32> = partitions.collect();
    // Three batches of three records are sent at once, in the mean.
    let pause = Duration::from_secs_f64(9.0 * all.len() as f64 / f64::from(settings.rate.max(1)));
    let plans = (0..).zip(all).map(|(id, partition)| ProducerPlan {
        id,
        partition,
        pause,
        seed: settings.seed ^ u64::from(id) << 16,
    });
    plans.collect()
}

/// What is missing for [`Settings::clients`], if anything.
pub fn clients_missing() -> Option<String> {
    external::missing()
}

/// Where the logs of a run go.
pub fn logs_of(seed: u64) -> PathBuf {
    logs_below(&crate::installed::target(), seed)
}

fn logs_below(target: &Path, seed: u64) -> PathBuf {
    target
        .join("chaos")
        .join(format!("{seed}-{}", std::process::id()))
}
