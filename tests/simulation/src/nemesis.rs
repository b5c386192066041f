//! What goes wrong, and when: drawn from the seed before anything runs.

use crate::mutation::Mutation;
use crate::world::{
    Ambush, Chance, Command, Limit, Millis, Node, STORE, Shared, TWIN, Tuning, Unheard, World,
};

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
    pub weather: StoreWeather,
    /// Whether it is left alone at the end, to see that it forgets its dead.
    pub drains: bool,
}

/// What limits the compacted topic in the world of a seed, if anything does. A generator of its own draws it, so that all
/// other draws are what they would be without, and the worlds in which nothing does too.
pub fn compacted_limit(seed: u64) -> Option<Limit> {
    let mut chance = Chance::new(seed ^ 0x4e4e);
    chance.happens(0.4).then(|| match chance.happens(0.5) {
        true => ("retention.bytes", chance.between(1_000, 8_000) as i64),
        false => ("retention.ms", chance.between(5_000, 40_000) as i64),
    })
}

/// Draws a plan and schedules all of it.
pub fn plan(world: &Shared, chance: &mut Chance) -> Plan {
    let rule = world.lock().aim;
    let zombies = rule == Some(Mutation::ZombieMovesLogStart);
    let count = match chance.between(2, 5) {
        // Each is to lead some of every topic.
        count if zombies => count.min(3),
        count => count,
    };
    let mut brokers: Vec<Node> = (1..=count as u8).map(Node).collect();
    let duels = matches!(rule, Some(Mutation::SealDeleted | Mutation::StaleCoordinator));
    if chance.happens(0.1) || duels {
        brokers.push(TWIN);
    }
    // What must come together for this one takes its time, and anything else spoils it.
    let quiet = zombies || rule == Some(Mutation::FloorIgnored);
    let calm = chance.happens(0.15) || quiet;
    let plan = Plan {
        chaos_ms: match chance.between(40_000, 240_000) {
            _ if quiet => 240_000,
            drawn => drawn,
        },
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
        history: (chance.between(65_536, 131_072), chance.between(5_000, 40_000)),
        garbage_ms: chance.between(2_000, 20_000),
        retention: match chance.happens(0.6) {
            true => ("retention.bytes", chance.between(2_000, 8_000) as i64),
            false => ("retention.ms", chance.between(10_000, 40_000) as i64),
        },
        gather_ms: chance.between(5_000, 60_000),
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
            slow_seal: some(0.5),
            history: some(0.3),
            slow_history: some(0.3),
            garbage: some(0.02),
            after_thaw: some(1.0) > 0.0,
            ms_max: 60_000,
        };
    }
    let ambush = w.ambush;
    w.tell(format_args!("{ambush:?}"));
    let weather = plan.weather;
    // The first start makes the cluster in peace, so that there is something to break.
    w.at(3_000, move |w| w.weather = weather);
    if chance.happens(0.5) && !quiet {
        w.network.lossy = 0.02;
    }
    if chance.happens(0.3) && !quiet {
        w.network.resets = 0.002;
    }
    let mut at = 5_000;
    let pace = chance.between(1_500, 9_000);
    while at < plan.chaos_ms && !quiet {
        strike(&mut w, &plan, at, chance);
        at += chance.between(pace / 4, pace * 2);
    }
    if plan.brokers.contains(&TWIN) {
        if duels || chance.happens(0.5) {
            duel(&mut w, plan.chaos_ms, chance);
        } else {
            let at = chance.between(10_000, plan.chaos_ms);
            w.at(at, |w| w.commands.push(Command::Boot(TWIN)));
        }
    }
    let end = plan.chaos_ms;
    w.at(end, |w| w.commands.push(Command::Heal));
    if let Some(rule) = rule {
        aim(&mut w, rule);
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
    match chance.below(15) {
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
                w.skew_ms_max = w.skew_ms_max.max(w.skew_ms[node.0 as usize]);
            });
        }
        11 => w.at(at, command(Command::CheckBucket)),
        12 => w.at(at, move |w| w.trap = Some(node)),
        // A start beside those that run.
        _ => w.at(at, command(Command::Boot(node))),
    }
}

/// Two processes with the id of the first broker take turns. Each start ends the stream of the other process at once,
/// which hears of it as late as can be: within the lease that it had.
fn duel(w: &mut World, end: Millis, chance: &mut Chance) {
    let (mut young, mut old) = (TWIN, Node(1));
    let mut at = 12_000;
    while at < end {
        let answers_late_by = chance.between(500, 1_200);
        w.at(at, move |w| {
            w.tell(format_args!("{young} is to succeed {old}"));
            w.commands.push(Command::Boot(young));
            w.unheard = Some(Unheard {
                node: old,
                until: w.now + 6_000,
                answers_late_by,
            });
        });
        (young, old) = (old, young);
        at += chance.between(9_000, 14_000);
    }
}

/// Makes a world in which it shows soon if a rule is broken.
fn aim(w: &mut World, rule: Mutation) {
    match rule {
        // No broker does this: somebody else does.
        Mutation::CleanerByAge if w.mutation.is_some() => (30_000..600_000)
            .step_by(10_000)
            .for_each(|at| w.at(at, delete_the_old)),
        // The owner seems dead, is not, and moves its floor past the seal that is on its way.
        Mutation::FloorIgnored => {
            w.tuning.merge_ms = 2_000;
            w.tuning.delete_delay_ms = 500;
            w.ambush = Ambush {
                slow_seal: 1.0,
                ms_max: 60_000,
                ..Ambush::default()
            };
            doze(w, 17_000, 22_000);
        }
        // What is pointed to is long not there, and looked for.
        Mutation::PointerBeforeUpload => {
            w.ambush.slow_history = 1.0;
            (20_000..240_000)
                .step_by(10_000)
                .for_each(|at| w.at(at, |w| w.commands.push(Command::CheckBucket)));
        }
        // Retention ends while a broker sleeps that has a segment on its way. It wakes when it was just succeeded, hears
        // of that late, and has more to write.
        Mutation::ZombieMovesLogStart => {
            w.tuning.retention = ("retention.bytes", 2_000);
            w.ambush = Ambush {
                after_thaw: true,
                ms_max: 60_000,
                ..Ambush::default()
            };
            (20_000..230_000)
                .step_by(20_000)
                .for_each(|at| w.at(at, |w| w.trap = Some(Node(1))));
        }
        // What nobody is linked to goes at once, and is merged much later.
        Mutation::LinkDroppedEarly => {
            w.tuning.merge_ms = 60_000;
            w.tuning.delete_delay_ms = 500;
        }
        _ => {}
    }
}

/// Deletes every segment and seal that was written some time ago.
fn delete_the_old(w: &mut World) {
    let (now, old) = (w.now, 25_000);
    let segment = |k: &str| k.starts_with("wal/") && !k.contains("checkpoint") && !k.ends_with("head.json");
    let objects = w.bucket.objects.iter();
    let keys: Vec<String> = objects
        .filter(|(k, o)| segment(k) && o.written + old < now)
        .map(|(k, _)| k.clone())
        .collect();
    keys.iter().for_each(|k| w.bucket.delete(k, now));
}

/// The first broker freezes again and again, so long that the others think it dead.
fn doze(w: &mut World, from: Millis, to: Millis) {
    let mut at = 12_000;
    while at < 200_000 {
        let lasts = w.chance.between(from, to);
        w.at(at, |w| w.commands.push(Command::Freeze(Node(1))));
        w.at(at + lasts, |w| w.commands.push(Command::Thaw(Node(1))));
        at += lasts + w.chance.between(30_000, 60_000);
    }
}
