//! What goes wrong, and when: drawn from the seed before anything runs.

use crate::mutation::Mutation;
use crate::world::{Ambush, Chance, Command, Millis, Node, STORE, Shared, TWIN, Tuning, World};

/// How the store is at the moment: probabilities of each way to fail, and latencies.
#[derive(Clone, Copy, Debug)]
pub struct StoreWeather {
    pub latency_ms: (u64, u64),
    /// Seconds instead of milliseconds, now and then.
    pub slow: f64,
    /// 503, not done.
    pub throttled: f64,
    /// 500 or a cut connection, not done.
    pub failed_before: f64,
    /// 500 or a cut connection, done.
    pub done_and_failed: f64,
    /// No answer, done or not.
    pub silent: f64,
    /// No answer, done later.
    pub late: f64,
    pub late_ms_max: u64,
    /// 409, not done.
    pub conflict: f64,
    /// Done, and answered as a conflict with somebody else.
    pub echo: f64,
    /// A body that ends too soon.
    pub cut_read: f64,
    /// How old a LIST may be.
    pub stale_list_ms: u64,
}

impl StoreWeather {
    pub const fn calm() -> StoreWeather {
        StoreWeather {
            latency_ms: (10, 60),
            slow: 0.0,
            throttled: 0.0,
            failed_before: 0.0,
            done_and_failed: 0.0,
            silent: 0.0,
            late: 0.0,
            late_ms_max: 90_000,
            conflict: 0.0,
            echo: 0.0,
            cut_read: 0.0,
            stale_list_ms: 0,
        }
    }

    /// A store that has each of its troubles now and then.
    fn rough(chance: &mut Chance) -> StoreWeather {
        let mut some = |often: f64, at_most: f64| match chance.happens(often) {
            true => at_most * (chance.below(100) as f64 + 1.0) / 100.0,
            false => 0.0,
        };
        StoreWeather {
            slow: some(0.5, 0.05),
            throttled: some(0.5, 0.1),
            failed_before: some(0.5, 0.05),
            done_and_failed: some(0.7, 0.1),
            silent: some(0.5, 0.03),
            late: some(0.7, 0.04),
            conflict: some(0.5, 0.05),
            echo: some(0.5, 0.05),
            cut_read: some(0.5, 0.03),
            stale_list_ms: 30_000,
            ..StoreWeather::calm()
        }
    }

    /// One of its troubles, badly.
    fn storm(self, chance: &mut Chance) -> StoreWeather {
        let mut storm = self;
        match chance.below(6) {
            0 => storm.throttled = 0.7,
            1 => storm.done_and_failed = 0.5,
            2 => storm.silent = 0.3,
            3 => storm.late = 0.4,
            4 => storm.slow = 0.5,
            _ => storm.latency_ms = (300, 3_000),
        }
        storm
    }
}

/// How a world is set up; drawn from the seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub brokers: Vec<Node>,
    /// How long things go wrong.
    pub chaos_ms: Millis,
    /// Whether brokers share the bucket; else the newest start takes everything.
    pub shared: bool,
    pub weather: StoreWeather,
    /// Whether it is left alone at the end, to see that it forgets its dead.
    pub drains: bool,
}

/// Draws a plan and schedules all of it.
pub fn plan(world: &Shared, shared: bool, chance: &mut Chance) -> Plan {
    let mut brokers: Vec<Node> = (1..=chance.between(2, 5) as u8).map(Node).collect();
    if chance.happens(0.1) {
        brokers.push(TWIN);
    }
    let calm = chance.happens(0.15);
    let plan = Plan {
        chaos_ms: chance.between(40_000, 240_000),
        shared,
        weather: match calm {
            true => StoreWeather::calm(),
            false => StoreWeather::rough(chance),
        },
        brokers,
        drains: chance.happens(0.2),
    };
    let mut w = world.lock();
    w.tuning = Tuning {
        merge_ms: chance.between(2_000, 30_000),
        file_bytes: chance.between(2_000, 200_000),
        delete_delay_ms: chance.between(500, 20_000),
    };
    let tuning = w.tuning;
    w.tell(format_args!("{tuning:?}"));
    if chance.happens(0.5) {
        let mut some = |at_most: f64| match chance.happens(0.5) {
            true => at_most * (chance.below(100) as f64 + 1.0) / 100.0,
            false => 0.0,
        };
        w.ambush = Ambush {
            head: some(0.3),
            manifest: some(0.1),
            checkpoint: some(0.1),
            seal: some(0.5),
            lag_after_thaw: some(1.0) > 0.0,
            ms_max: 60_000,
        };
    }
    let ambush = w.ambush;
    w.tell(format_args!("{ambush:?}"));
    let weather = plan.weather;
    // The first start makes the cluster in peace, so that there is something to break.
    w.at(3_000, move |w| w.weather = weather);
    if chance.happens(0.5) {
        w.network.lossy = 0.02;
    }
    if chance.happens(0.3) {
        w.network.resets = 0.002;
    }
    let mut at = 5_000;
    let pace = chance.between(1_500, 9_000);
    while at < plan.chaos_ms {
        strike(&mut w, &plan, at, chance);
        at += chance.between(pace / 4, pace * 2);
    }
    if plan.brokers.contains(&TWIN) {
        let at = chance.between(10_000, plan.chaos_ms);
        w.at(at, |w| w.commands.push(Command::Boot(TWIN)));
    }
    let end = plan.chaos_ms;
    w.at(end, |w| w.commands.push(Command::Heal));
    if let Some(m) = w.mutation {
        aim(&mut w, m);
    }
    plan
}

/// One thing goes wrong at a time, perhaps for a while.
fn strike(w: &mut World, plan: &Plan, at: Millis, chance: &mut Chance) {
    let node = *chance.one_of(&plan.brokers);
    let until = at
        + match chance.below(3) {
            0 => chance.between(300, 3_000),
            1 => chance.between(3_000, 15_000),
            _ => chance.between(15_000, 60_000),
        };
    let command = |c: Command| move |w: &mut World| w.commands.push(c);
    match chance.below(14) {
        0..=2 => {
            let silent = chance.happens(0.4);
            w.at(at, command(Command::Kill { node, silent }));
        }
        3 => w.at(at, command(Command::Stop(node))),
        4..=6 => {
            w.at(at, command(Command::Freeze(node)));
            w.at(until, command(Command::Thaw(node)));
        }
        7 => {
            w.at(at, move |w| {
                w.tell(format_args!("{node} is cut from the store"));
                w.network.cut(node, STORE);
            });
            w.at(until, move |w| {
                w.tell(format_args!("{node} reaches the store"));
                w.network.mend(node, STORE);
            });
        }
        8 => {
            let other = match chance.below(3) {
                0 => Node(20),
                1 => Node(21),
                _ => plan.brokers[(node.0 as usize) % plan.brokers.len()],
            };
            w.at(at, move |w| {
                w.tell(format_args!("{node} is cut from {other}"));
                w.network.cut(node, other);
            });
            w.at(until, move |w| {
                w.tell(format_args!("{node} reaches {other}"));
                w.network.mend(node, other);
            });
        }
        9 => {
            let (storm, before) = (plan.weather.storm(chance), plan.weather);
            w.at(at, move |w| {
                w.tell(format_args!("a storm: {storm:?}"));
                w.weather = storm;
            });
            w.at(until.min(at + 20_000).min(plan.chaos_ms - 1), move |w| {
                w.tell(format_args!("the storm is over"));
                w.weather = before;
            });
        }
        10 => {
            let jump = chance.between(0, 1_200_000) as i64 - 600_000;
            w.at(at, move |w| {
                w.tell(format_args!("the clock of {node} jumps by {jump} ms"));
                w.skew_ms[node.0 as usize] += jump;
            });
        }
        11 => w.at(at, command(Command::CheckBucket)),
        // A start beside those that run.
        _ => w.at(at, command(Command::Boot(node))),
    }
}

/// Mutations that are not in the product: somebody else does what no broker may do. And one that needs the world in a
/// rare state: a taker that sleeps in the middle while the owner, which only seemed dead, moves its floor.
fn aim(w: &mut World, mutation: Mutation) {
    match mutation {
        Mutation::FloorIgnored => {
            w.tuning.merge_ms = 2_000;
            w.tuning.delete_delay_ms = 500;
            w.ambush.seal = 0.8;
            w.ambush.ms_max = 50_000;
            doze(w, 17_000, 22_000);
        }
        Mutation::LinkDroppedEarly => {
            w.tuning.merge_ms = 60_000;
            w.tuning.delete_delay_ms = 500;
        }
        Mutation::SealDeleted | Mutation::StaleCoordinator => {
            w.ambush.lag_after_thaw = true;
            doze(w, 17_000, 30_000);
        }
        _ => {}
    }
    if mutation == Mutation::CleanerByAge {
        for at in (30_000..600_000).step_by(10_000) {
            w.at(at, |w| {
                let (now, old) = (w.now, 25_000);
                let segment =
                    |k: &str| k.starts_with("wal/") && !k.contains("checkpoint") && !k.ends_with("head.json");
                let keys: Vec<String> = w
                    .bucket
                    .objects
                    .iter()
                    .filter(|(k, o)| segment(k) && o.written + old < now)
                    .map(|(k, _)| k.clone())
                    .collect();
                keys.iter().for_each(|k| w.bucket.delete(k, now));
            });
        }
    }
}

/// The first broker freezes again and again, so long that the others think it dead.
fn doze(w: &mut World, from: Millis, to: Millis) {
    let mut at = 12_000;
    while at < 200_000 {
        let lasts = w.chance.between(from, to);
        w.at(at, |w| w.commands.push(Command::Freeze(Node(1))));
        w.at(at + lasts, |w| w.commands.push(Command::Thaw(Node(1))));
        at += lasts + w.chance.between(8_000, 20_000);
    }
}
