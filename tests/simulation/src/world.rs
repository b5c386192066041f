//! Time, chance and what is to happen: the part of the simulation that everything else shares.
//!
//! One thread runs everything. What is to happen later is a closure at a point of virtual time; machines are stepped
//! to the same time in turn. All chance comes from one generator, so a seed decides everything.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

use crate::bucket::Bucket;
use crate::history::History;
use crate::mutation::Mutation;
use crate::nemesis::StoreWeather;
use crate::network::Network;

/// Milliseconds since the world began.
pub type Millis = u64;

/// The wall-clock time at which worlds begin.
pub const EPOCH_MS: i64 = 1_800_000_000_000;

/// A machine on the network; brokers have the small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u8);

/// A machine whose broker has the `node.id` of the first one's.
pub const TWIN: Node = Node(9);

/// The topic that has a limit now and then.
pub const LIMITED: &str = "limited";
/// The topic of which the newest record of each key stays; in some worlds it has a limit now and then, too.
pub const COMPACTED: &str = "compacted";

/// The store, seen as a place on the network.
pub const STORE: Node = Node(0);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("store"),
            n @ 1..=9 => write!(f, "b{n}"),
            n => write!(f, "c{n}"),
        }
    }
}

thread_local! {
    /// The clock of the machine that is being stepped: an instant of its runtime and the world's time then.
    static STEPPING: Cell<Option<(Instant, Millis)>> = const { Cell::new(None) };
}

/// Says which machine's clock counts until it is called again.
pub fn stepping(clock: Option<(Instant, Millis)>) {
    STEPPING.set(clock);
}

type Action = Box<dyn FnOnce(&mut World) + Send>;

struct Scheduled {
    at: Millis,
    order: u64,
    action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the earliest comes first.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A generator of chance (splitmix64): small, and the same for ever.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9216_d5d9_8979_fb1b)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From `from` to below `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    pub fn happens(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }

    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// A generator of its own, for a part whose draws must not shift those of others.
    pub fn split(&mut self) -> Chance {
        Chance(self.next())
    }
}

/// What happened, in order: every line goes into a hash, and is printed if asked for.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    print: bool,
}

impl Trace {
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// Something that the driver does between steps, because it changes machines.
#[derive(Clone, Debug)]
pub enum Command {
    /// A broker process starts.
    Boot(Node),
    /// It ends without a word. `silent`: so does the machine's network, so nobody is told.
    Kill {
        node: Node,
        silent: bool,
    },
    /// It ended by itself.
    Exited {
        node: Node,
        boot: u64,
        why: String,
    },
    /// It is asked to stop.
    Stop(Node),
    /// It does not run, and the world goes on.
    Freeze(Node),
    Thaw(Node),
    /// Everything that was broken is whole again.
    Heal,
    /// A copy of the bucket is recovered by a broker of its own.
    CheckBucket,
}

/// A broker whose stream is to be sealed while it is frozen with a segment on its way, and that wakes right then.
#[derive(Clone, Copy, Debug)]
pub struct Zombie {
    pub node: Node,
    pub incarnation: u64,
}

/// Freezes and kills at the worst moments: probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ambush {
    /// After the head of another broker's stream was read, as at the beginning of a takeover.
    pub head: f64,
    /// After a change of the manifest was sent.
    pub manifest: f64,
    /// After a checkpoint or a merged object was sent.
    pub checkpoint: f64,
    /// While a seal of another broker's stream is on its way, which takes as long as the freeze.
    pub seal: f64,
    /// The same without a freeze: such a seal takes long, and so does all that its sender asks about its key.
    pub slow_seal: f64,
    /// After a file of history was sent.
    pub history: f64,
    /// Without a freeze: such a file is on its way for seconds.
    pub slow_history: f64,
    /// While garbage is looked for or deleted.
    pub garbage: f64,
    /// A broker that thaws hears late what has become of it, see [`Unheard`].
    pub after_thaw: bool,
    pub ms_max: u64,
}

/// A broker that hears late that it has a successor: what the store answers to it takes longer than else, and clients
/// come to it first.
#[derive(Clone, Copy, Debug)]
pub struct Unheard {
    pub node: Node,
    pub until: Millis,
    pub answers_late_by: Millis,
}

/// The config that limits a topic, and the limit.
pub type Limit = (&'static str, i64);

/// Settings of brokers that are drawn from the seed, so that all of a stream's life fits into minutes.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub merge_ms: u64,
    pub file_bytes: u64,
    pub delete_delay_ms: u64,
    /// Size and age (ms) at which files of history are written.
    pub history: (u64, u64),
    pub garbage_ms: u64,
    /// What limits a topic now and then.
    pub retention: Limit,
    /// Age at which merged data is gathered.
    pub gather_ms: u64,
}

/// See the module's documentation.
pub struct World {
    pub now: Millis,
    pub chance: Chance,
    pub trace: Trace,
    pub bucket: Bucket,
    pub network: Network,
    pub weather: StoreWeather,
    pub history: History,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
    /// The rule that the world is made for.
    pub aim: Option<Mutation>,
    pub commands: Vec<Command>,
    /// Offset of each broker's wall clock, and the greatest that any has had.
    pub skew_ms: [i64; 10],
    pub skew_ms_max: i64,
    /// Brokers freeze in the middle of what is told here: how often, and for how long at most.
    pub ambush: Ambush,
    /// Incarnation of each broker that is up.
    pub incarnations: BTreeMap<Node, u64>,
    pub unheard: Option<Unheard>,
    /// A broker that becomes a [`Zombie`] with its next segment.
    pub trap: Option<Node>,
    pub zombie: Option<Zombie>,
    /// Until when requests of a broker about a key are on their way.
    pub slow_keys: BTreeMap<(Node, String), Millis>,
    /// Settings of brokers that are drawn from the seed.
    pub tuning: Tuning,
    /// What limits the compacted topic now and then, if it is to be `compact,delete`.
    pub compacted_limit: Option<Limit>,
    /// Set when clients are to come to an end.
    pub closing: bool,
    scheduled: BinaryHeap<Scheduled>,
    order: u64,
}

/// The world, as its parts hold it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Shared {
    pub fn new(seed: u64, print: bool) -> Shared {
        let mut chance = Chance::new(seed);
        Shared(Arc::new(Mutex::new(World {
            now: 0,
            trace: Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                print,
            },
            bucket: Bucket::default(),
            network: Network::default(),
            weather: StoreWeather::calm(),
            history: History::default(),
            mutation: None,
            aim: None,
            commands: vec![],
            skew_ms: [0; 10],
            skew_ms_max: 0,
            ambush: Ambush::default(),
            incarnations: BTreeMap::new(),
            unheard: None,
            trap: None,
            zombie: None,
            slow_keys: BTreeMap::new(),
            tuning: Tuning {
                merge_ms: 45_000,
                file_bytes: 32 << 20,
                delete_delay_ms: 60_000,
                history: (64 << 20, 3_600_000),
                garbage_ms: 300_000,
                retention: ("retention.bytes", -1),
                gather_ms: 7_200_000,
            },
            compacted_limit: None,
            closing: false,
            scheduled: BinaryHeap::new(),
            order: 0,
            chance: chance.split(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("the world ends with the first panic")
    }
}

impl World {
    /// The time, as the machine sees it that is being stepped, else the world's.
    pub fn clock(&self) -> Millis {
        match STEPPING.get() {
            Some((base, at)) => at + Instant::now().saturating_duration_since(base).as_millis() as u64,
            None => self.now,
        }
    }

    /// Plans something for a time; what is planned for the same time happens in the order of the plans.
    pub fn at(&mut self, at: Millis, action: impl FnOnce(&mut World) + Send + 'static) {
        self.order += 1;
        let at = at.max(self.now);
        self.scheduled.push(Scheduled {
            at,
            order: self.order,
            action: Box::new(action),
        });
    }

    /// Plans something for `wait` after now.
    pub fn after(&mut self, wait: Millis, action: impl FnOnce(&mut World) + Send + 'static) {
        let at = self.clock() + wait;
        self.at(at, action);
    }

    /// Lets happen what is planned up to `to`, which is then the time.
    pub fn advance(&mut self, to: Millis) {
        while self.scheduled.peek().is_some_and(|s| s.at <= to) {
            if let Some(next) = self.scheduled.pop() {
                self.now = self.now.max(next.at);
                crate::os::set_millis(self.now);
                (next.action)(self);
            }
        }
        self.now = to;
        self.history.latest_ms = EPOCH_MS + to as i64 + self.skew_ms_max;
        crate::os::set_millis(to);
    }

    /// The broker that hears late now, if there is one.
    pub fn unheard(&self) -> Option<Unheard> {
        self.unheard.filter(|u| u.until > self.clock())
    }

    /// Whether the world is made to show what zombies do to log starts, and the one that there is now.
    pub fn aims_at_zombies(&self) -> Option<Option<Zombie>> {
        (self.aim == Some(Mutation::ZombieMovesLogStart)).then_some(self.zombie)
    }

    /// Adds a line to the trace.
    pub fn tell(&mut self, line: fmt::Arguments<'_>) {
        let line = format!("{:>7} {line}", self.clock());
        for byte in line.bytes() {
            self.trace.hash = (self.trace.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.trace.print {
            println!("{line}");
        }
    }

    /// Something that must never happen did.
    pub fn violation(&mut self, what: String) {
        self.tell(format_args!("VIOLATION {what}"));
        self.history.violations.push(what);
    }
}
