//! Brokers behind proxies on one store, and the faults that are done to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Settings;
use super::plan::{Fault, FaultKind};
use super::proxy::{Manner, Proxy, Weather};
use super::store::ChaosStore;
use crate::broker::{Broker, BrokerOptions, binary, free_address};

/// Time that a start or a graceful stop may take on a busy machine, after everything has healed.
const PROCESS_PATIENCE: Duration = Duration::from_secs(90);
/// A broker that lost its store may end because of it until so long after the store is back.
const STORE_GRACE: Duration = Duration::from_secs(60);
/// Pause between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);

/// What a store does in a storm, in the form of the fake's rules. The probe of a start has tests of its own.
const STORM: [&str; 6] = [
    "key=/(wal|cluster|merged)/,kind=put,probability=0.05,do=applied-then-500",
    "key=/(wal|cluster|merged)/,kind=put,probability=0.05,do=applied-then-cut",
    "key=/(wal|cluster|merged)/,kind=put,probability=0.03,do=late-cut,ms=2500",
    "key=/(wal|cluster|merged)/,kind=put,probability=0.02,do=late-hang,ms=3000",
    "key=/(wal|cluster|merged)/,probability=0.1,do=503",
    "key=/(wal|cluster|merged)/,kind=get,probability=0.05,do=cut",
];

/// What a broker's process should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// It was told to stop.
    Stops,
    Down,
    Frozen,
}

#[derive(Debug)]
struct Node {
    broker: Broker,
    /// An `alluvium` of another version, which takes turns with ours.
    other: Option<PathBuf>,
    /// Between it and the store.
    store: Proxy,
    /// Between everybody and it.
    kafka: Proxy,
    state: State,
    starts: u64,
    /// Until then it may end by itself.
    forgiven_until: Option<Instant>,
    log: PathBuf,
}

/// Some brokers on one store.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    store: ChaosStore,
    revived: u64,
}

/// Starts of processes, for a comparison with the streams that were begun: every further stream was begun by a broker
/// that had been taken for dead.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Starts {
    pub(super) all: u64,
    /// Of those, starts of brokers that had ended because they had lost the store.
    pub(super) revived: u64,
}

impl Cluster {
    /// Starts brokers and waits until all are ready.
    ///
    /// # Errors
    /// A sentence with the log that says more.
    pub(super) fn start(store: ChaosStore, settings: &Settings, runtime: &Handle) -> Result<Cluster, String> {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            store,
            revived: 0,
        };
        for index in 0..settings.brokers {
            let node = cluster.prepare(index, settings, runtime)?;
            cluster.nodes.push(node);
        }
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.settle()?;
        Ok(cluster)
    }

    fn prepare(&self, index: usize, settings: &Settings, runtime: &Handle) -> Result<Node, String> {
        let failed = |error: std::io::Error| format!("a proxy: {error}");
        let store = Proxy::start(runtime, free_address()).map_err(failed)?;
        store.leads_to(self.store.address());
        let kafka = Proxy::start(runtime, free_address()).map_err(failed)?;
        let log = settings.logs.join(format!("broker-{index}.log"));
        let mut options = BrokerOptions::on(self.store.url())
            .env(self.store.env_through(store.address()))
            .log(&log)
            .set("advertised.listeners", format!("PLAINTEXT://{}", kafka.address()))
            // A paced trickle would let little happen between two faults.
            .set("request.budget.per.second", 0)
            // Merging and deleting take part in everything, and not once a minute.
            .set("merge.interval.ms", 4_000)
            .set("log.segment.delete.delay.ms", 4_000)
            // So little that readers need the store.
            .set("tail.bytes", 4 * 1024 * 1024)
            .set("cache.bytes", 4 * 1024 * 1024);
        if settings.other.is_none() {
            // The other version may not know these.
            options = options
                .set("garbage.check.interval.ms", 4_000)
                .set("merge.gather.after.ms", 12_000);
        }
        // Both ways of getting a broker id must do.
        if settings.seed.is_multiple_of(2) {
            options = options.set("node.id", index + 1);
        }
        let broker = Broker::prepare(options);
        kafka.leads_to(broker.address());
        Ok(Node {
            broker,
            other: settings.other.clone(),
            store,
            kafka,
            state: State::Down,
            starts: 0,
            forgiven_until: None,
            log,
        })
    }

    /// Where clients find the brokers.
    pub(super) fn bootstrap(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.kafka.address()).collect()
    }

    /// The store.
    pub(super) fn store(&self) -> &ChaosStore {
        &self.store
    }

    /// How often processes were started.
    pub(super) fn starts(&self) -> Starts {
        Starts {
            all: self.nodes.iter().map(|node| node.starts).sum(),
            revived: self.revived,
        }
    }

    /// The logs of the brokers.
    pub(super) fn logs(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.log.clone()).collect()
    }

    /// Lets a fault begin.
    pub(super) fn begin(&mut self, fault: &Fault) {
        let node = &mut self.nodes[fault.broker];
        match fault.kind {
            FaultKind::Kill => node.kill(),
            FaultKind::KillAll => self.nodes.iter_mut().for_each(Node::kill),
            FaultKind::Stop => node.stop(),
            FaultKind::Freeze => node.freeze(),
            FaultKind::Store(manner) => {
                node.store.set(Weather {
                    all: manner.into(),
                    peers: Manner::Whole,
                });
                node.forgive(fault.length + STORE_GRACE);
            }
            FaultKind::Peers(manner) => node.kafka.set(Weather {
                all: Manner::Whole,
                peers: manner.into(),
            }),
            FaultKind::Everyone(manner) => node.kafka.set(Weather {
                all: manner.into(),
                peers: Manner::Whole,
            }),
            FaultKind::Storm => {
                self.store.storm(&STORM);
                for node in &mut self.nodes {
                    node.forgive(fault.length + STORE_GRACE);
                }
            }
        }
    }

    /// Lets a fault end.
    ///
    /// # Errors
    /// If a broker that was told to stop does not.
    pub(super) fn end(&mut self, fault: &Fault) -> Result<(), String> {
        let node = &mut self.nodes[fault.broker];
        match fault.kind {
            FaultKind::Kill => node.spawn(),
            FaultKind::KillAll => self.nodes.iter_mut().for_each(Node::spawn),
            FaultKind::Stop => {
                let deadline = Instant::now() + PROCESS_PATIENCE;
                while node.state == State::Stops {
                    node.look()?;
                    if Instant::now() > deadline {
                        return Err(format!("broker {} does not stop", fault.broker));
                    }
                    std::thread::sleep(LOOK);
                }
                node.spawn();
            }
            FaultKind::Freeze => node.thaw(),
            FaultKind::Store(_) => node.store.set(Weather::default()),
            FaultKind::Peers(_) | FaultKind::Everyone(_) => node.kafka.set(Weather::default()),
            FaultKind::Storm => self.store.storm(&[]),
        }
        Ok(())
    }

    /// Looks after the processes: one that ended without reason is an error, one that ended because it had lost its
    /// store is started again.
    ///
    /// # Errors
    /// A sentence about the broker that ended.
    pub(super) fn tend(&mut self) -> Result<(), String> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.look().map_err(|error| format!("broker {index} {error}"))? {
                self.revived += 1;
            }
        }
        Ok(())
    }

    /// Waits until every broker is ready.
    ///
    /// # Errors
    /// If one is not in time.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PROCESS_PATIENCE;
        loop {
            self.tend()?;
            let waiting = self.nodes.iter().position(|node| !node.broker.is_ready());
            let Some(index) = waiting else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let log = self.nodes[index].log.display();
                return Err(format!("broker {index} is not ready in time, see {log}"));
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Node {
    fn kill(&mut self) {
        if self.state != State::Down {
            self.broker.kill_9();
            self.down();
        }
    }

    fn down(&mut self) {
        self.state = State::Down;
        self.kafka.close();
    }

    fn stop(&mut self) {
        if self.state == State::Runs {
            self.broker.signal("TERM");
            self.state = State::Stops;
        }
    }

    fn freeze(&mut self) {
        if self.state == State::Runs {
            self.broker.pause();
            self.state = State::Frozen;
        }
    }

    fn thaw(&mut self) {
        if self.state == State::Frozen {
            self.broker.resume();
            self.state = State::Runs;
        }
    }

    fn spawn(&mut self) {
        if self.state == State::Down {
            // The port was chosen so that nobody else takes it.
            self.kafka.open().expect("the proxy listens again");
            // The other version begins, because it must know the bucket that is made; then each start of a broker is of the one
            // that it was not before.
            let other = self.other.as_deref().filter(|_| self.starts.is_multiple_of(2));
            self.broker.set_binary(other.unwrap_or_else(|| binary()));
            self.broker.spawn();
            self.starts += 1;
            self.state = State::Runs;
        }
    }

    fn forgive(&mut self, length: Duration) {
        let until = Instant::now() + length;
        self.forgiven_until = Some(self.forgiven_until.map_or(until, |earlier| earlier.max(until)));
    }

    /// Sees whether the process is as it should be; true if it had ended and was started again.
    fn look(&mut self) -> Result<bool, String> {
        if self.state == State::Down {
            return Ok(false);
        }
        let Some(status) = self.broker.exited() else {
            return Ok(false);
        };
        self.broker.wait_for_exit(PROCESS_PATIENCE);
        let was = self.state;
        self.down();
        let forgiven = self.forgiven_until.is_some_and(|until| Instant::now() < until);
        match was {
            State::Stops if status.success() || forgiven => Ok(false),
            State::Runs if forgiven => {
                self.spawn();
                Ok(true)
            }
            _ => Err(format!("ended by itself: {status}, see {}", self.log.display())),
        }
    }
}
