//! One seed: a world is set up, runs, breaks, heals, and is looked at.

use std::collections::BTreeMap;

use alluvium_log::fsck::{self, Class, Counts, FsckOptions, Kind};
use alluvium_log::manifest::Manifest;
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, Isolation};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

use crate::clients::Client;
use crate::history::{Partition, Value};
use crate::machine::Machine;
use crate::mutation::Mutation;
use crate::nemesis::{Plan, StoreWeather, compacted_limit, plan};
use crate::store::{MANIFEST, SimStore};
use crate::world::{
    Ambush, COMPACTED, Chance, Command, EPOCH_MS, LIMITED, Millis, Node, Shared, TWIN, Unheard,
};
use crate::{broker, os};

/// Step of the world.
const TICK: Millis = 5;
/// After everything is whole again, every client must get through within this time.
const RECOVERY_BOUND: Millis = 60_000;
/// How long the end may take: clients finish, everything is read.
const ENDING_BOUND: Millis = 120_000;
/// How long a cluster is left alone before it must have forgotten its dead.
const DRAINING: Millis = 240_000;
/// Clients that have nothing to do for long.
const NOT_ALWAYS: [&str; 7] = [
    "trimmer",
    "churner",
    "limiter",
    "keylimiter",
    "member0",
    "member1",
    "member2",
];
/// Partitions that are read from the brokers at the end.
const AUDITED: [(&str, i32); 6] = [
    ("t", 0),
    ("t", 1),
    ("t", 2),
    (LIMITED, 0),
    (LIMITED, 1),
    (COMPACTED, 0),
];
/// Merged objects and files of history that may be left after a rest beside those that logs refer to.
const FILES_LEFT: u64 = 12;
/// What nobody refers to any more is gone after this time at most: it is looked for twice, and then waits for readers.
const GARBAGE_GOES: Millis = 60_000;
/// A process that ended is started again after at most this time.
const RESTART_MS: Millis = 3_000;

/// What a client does until the end.
type Worker = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub hash: u64,
    pub summary: String,
}

/// A broker's machine, as the driver sees it.
#[derive(Default)]
struct Host {
    machine: Option<Machine>,
    boot: u64,
    stop: Option<mpsc::UnboundedSender<()>>,
    /// Another broker has its id: it does not come back by itself.
    gave_way: bool,
}

struct Driver {
    world: Shared,
    plan: Plan,
    hosts: BTreeMap<Node, Host>,
    clients: Vec<(Node, Machine)>,
    chance: Chance,
    boots: u64,
    healed: Option<Millis>,
    checks: u64,
}

/// Runs one seed to its end, in a world that is made for a rule if there is one, and with it broken or not. Once per process: see `os`.
pub fn run(seed: u64, rule: Option<Mutation>, broken: bool, print: bool) -> Outcome {
    os::take_over(seed);
    let mutation = rule.filter(|_| broken);
    if let Some(m) = mutation {
        alluvium_log::mutation::switch_on(m);
    }
    let mut chance = Chance::new(seed ^ 0xa5a5);
    let world = Shared::new(seed, print);
    {
        let mut w = world.lock();
        (w.mutation, w.aim) = (mutation, rule);
    }
    let plan = plan(&world, &mut chance);
    world.lock().tell(format_args!("seed {seed}: {plan:?}"));
    // A world that is made for a rule is kept as it is.
    if let Some(limit) = compacted_limit(seed).filter(|_| rule.is_none()) {
        let mut w = world.lock();
        w.tell(format_args!("the compacted topic has {limit:?} now and then"));
        w.compacted_limit = Some(limit);
    }
    let mut driver = Driver {
        hosts: plan.brokers.iter().map(|n| (*n, Host::default())).collect(),
        clients: vec![(Node(20), Machine::new(0)), (Node(21), Machine::new(0))],
        world,
        plan,
        chance,
        boots: 0,
        healed: None,
        checks: 0,
    };
    driver.live();
    driver.outcome()
}

impl Driver {
    fn live(&mut self) {
        let first = self.plan.brokers[0];
        self.boot(first);
        let others = self.plan.brokers.clone().into_iter().filter(|n| *n != TWIN);
        for node in others.skip(1) {
            let at = self.chance.between(0, 8_000);
            self.world
                .lock()
                .at(at, move |w| w.commands.push(Command::Boot(node)));
        }
        self.start_clients();
        self.go_on_until(self.plan.chaos_ms + RECOVERY_BOUND);
        if !self.go_on() {
            return;
        }
        self.check_recovery();
        self.finish();
    }

    fn now(&self) -> Millis {
        self.world.lock().now
    }

    fn go_on_until(&mut self, end: Millis) {
        while self.now() < end && self.go_on() {
            self.tick();
        }
    }

    fn go_on(&self) -> bool {
        self.world.lock().history.violations.is_empty()
    }

    fn tick(&mut self) {
        let to = self.now() + TICK;
        self.world.lock().advance(to);
        for (_, machine) in &mut self.clients {
            machine.step(to);
        }
        for host in self.hosts.values_mut() {
            if let Some(machine) = &mut host.machine {
                machine.step(to);
            }
        }
        let commands = std::mem::take(&mut self.world.lock().commands);
        for command in commands {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Boot(node) => {
                if self.hosts.get(&node).is_some_and(|h| h.machine.is_none()) {
                    self.boot(node);
                }
            }
            Command::Kill { node, silent } => {
                if self.healed.is_none() && self.hosts.get(&node).is_some_and(|h| h.machine.is_some()) {
                    self.world.lock().tell(format_args!(
                        "{node} is killed{}",
                        if silent { " without a word" } else { "" }
                    ));
                    self.end(node, silent);
                }
            }
            Command::Exited { node, boot, why } => {
                if self
                    .hosts
                    .get(&node)
                    .is_some_and(|h| h.boot == boot && h.machine.is_some())
                {
                    self.world.lock().tell(format_args!("{node} exits: {why}"));
                    if let Some(host) = self.hosts.get_mut(&node) {
                        host.gave_way = why.starts_with(broker::GAVE_WAY);
                    }
                    self.end(node, false);
                }
            }
            Command::Stop(node) => {
                if self.healed.is_none()
                    && let Some(stop) = self.hosts.get(&node).and_then(|h| h.stop.as_ref())
                {
                    self.world.lock().tell(format_args!("{node} is asked to stop"));
                    let _ = stop.send(());
                }
            }
            Command::Freeze(node) => {
                let host = self.hosts.get_mut(&node);
                if let Some(machine) = host.and_then(|h| h.machine.as_mut()).filter(|m| !m.frozen) {
                    machine.frozen = self.healed.is_none();
                    self.world.lock().tell(format_args!("{node} freezes"));
                }
            }
            Command::Thaw(node) => self.thaw(node),
            Command::Heal => {
                self.healed = Some(self.now());
                {
                    let mut w = self.world.lock();
                    w.tell(format_args!("everything is whole again"));
                    w.weather = StoreWeather::calm();
                    w.network.mend_all();
                    w.network.lossy = 0.0;
                    w.network.resets = 0.0;
                    w.ambush = Ambush::default();
                    w.unheard = None;
                    (w.trap, w.zombie) = (None, None);
                }
                for node in self.plan.brokers.clone() {
                    self.thaw(node);
                }
                for node in self.plan.brokers.clone() {
                    let host = self.hosts.get(&node);
                    let absent = host.is_some_and(|h| h.machine.is_none() && !h.gave_way);
                    // Of two with one id, one is enough.
                    let namesake = self.hosts.get(&Node(1)).is_some_and(|h| h.machine.is_some());
                    if absent && !(node == TWIN && namesake) {
                        self.boot(node);
                    }
                }
            }
            Command::CheckBucket => drop(self.check_bucket("in a copy of the bucket")),
        }
    }

    fn boot(&mut self, node: Node) {
        let (now, world) = (self.now(), self.world.clone());
        self.boots += 1;
        let boot = self.boots;
        world.lock().tell(format_args!("{node} starts"));
        let (stop, stopping) = mpsc::unbounded_channel();
        let machine = Machine::new(now);
        machine.spawn(broker::run(world, node, boot, stopping));
        let host = Host {
            machine: Some(machine),
            boot,
            stop: Some(stop),
            gave_way: false,
        };
        self.hosts.insert(node, host);
    }

    /// The process of a machine is gone, and is started again some time later.
    fn end(&mut self, node: Node, silent: bool) {
        let mut w = self.world.lock();
        w.hang_up(node, silent);
        w.incarnations.remove(&node);
        drop(w);
        if let Some(host) = self.hosts.get_mut(&node) {
            host.machine = None;
            host.stop = None;
        }
        let wait = self.chance.between(100, RESTART_MS);
        if self.hosts.get(&node).is_some_and(|h| !h.gave_way) {
            self.world
                .lock()
                .after(wait, move |w| w.commands.push(Command::Boot(node)));
        }
    }

    fn thaw(&mut self, node: Node) {
        let now = self.now();
        let host = self.hosts.get_mut(&node);
        if let Some(machine) = host.and_then(|h| h.machine.as_mut()).filter(|m| m.frozen) {
            let mut w = self.world.lock();
            w.tell(format_args!("{node} thaws"));
            if w.ambush.after_thaw {
                w.unheard = Some(Unheard {
                    node,
                    until: now + 4_000,
                    answers_late_by: self.chance.between(500, 1_900),
                });
            }
            drop(w);
            machine.thaw(now);
        }
    }

    fn start_clients(&mut self) {
        let mut on = 0;
        let mut client = |driver: &mut Driver, name: &str| {
            on = 1 - on;
            Client::new(&driver.world, driver.clients[on].0, name, &driver.plan.brokers)
        };
        let partitions = 3;
        let admin = client(self, "admin");
        let mut workers: Vec<(usize, Worker)> = vec![];
        for p in 0..partitions {
            let of = client(self, &format!("producer{p}"));
            workers.push((0, Box::pin(of.produce("t".into(), p, 2 + 2 * p as u32))));
            let of = client(self, &format!("reader{p}"));
            workers.push((1, Box::pin(of.read("t".into(), p))));
        }
        let of = client(self, "second");
        workers.push((1, Box::pin(of.produce("t".into(), 0, 20))));
        let of = client(self, "plain");
        workers.push((0, Box::pin(of.produce_plainly("t".into(), 1, 1))));
        for g in 0..2 {
            let of = client(self, &format!("group{g}"));
            workers.push((g, Box::pin(of.commit(format!("g{g}"), "t".into(), g as i32))));
        }
        for m in 0..3 {
            let of = client(self, &format!("member{m}"));
            workers.push((m % 2, Box::pin(of.be_member("members".into(), "t".into(), 3))));
        }
        let of = client(self, "trimmer");
        workers.push((0, Box::pin(of.trim("t".into(), 2))));
        let churn = client(self, "churner");
        workers.push((1, Box::pin(churn.churn("churned".into(), 2))));
        for p in 0..2 {
            let of = client(self, &format!("limited{p}"));
            workers.push((
                p,
                Box::pin(of.produce(LIMITED.into(), p as i32, 30 + 2 * p as u32)),
            ));
            let of = client(self, &format!("limitedread{p}"));
            workers.push((1 - p, Box::pin(of.read(LIMITED.into(), p as i32))));
        }
        let of = client(self, "limiter");
        let (retention, compacted_limit) = {
            let w = self.world.lock();
            (w.tuning.retention, w.compacted_limit)
        };
        workers.push((0, Box::pin(of.retain(LIMITED.into(), retention))));
        let of = client(self, "keyed");
        workers.push((1, Box::pin(of.produce(COMPACTED.into(), 0, 40))));
        let of = client(self, "churned");
        workers.push((0, Box::pin(of.produce_plainly("churned".into(), 0, 3))));
        let of = client(self, "churnread");
        workers.push((1, Box::pin(of.read("churned".into(), 0))));
        if let Some(limit) = compacted_limit {
            let of = client(self, "keylimiter");
            workers.push((0, Box::pin(of.retain(COMPACTED.into(), limit))));
        }
        // Clients begin once their topic is there.
        let (go, wait) = tokio::sync::watch::channel(false);
        self.clients[0].1.spawn(async move {
            let mut admin = admin;
            admin.create_topic("t", partitions, &[]).await;
            admin.create_topic(LIMITED, 2, &[]).await;
            let policy = match compacted_limit {
                Some(_) => "compact,delete",
                None => "compact",
            };
            let configs = [("cleanup.policy", policy)];
            let id = admin.create_topic(COMPACTED, 1, &configs).await;
            admin.world.lock().history.compacted(id);
            let _ = go.send(true);
        });
        for (on, worker) in workers {
            let mut wait = wait.clone();
            self.clients[on].1.spawn(async move {
                let _ = wait.wait_for(|go| *go).await;
                worker.await;
            });
        }
    }

    /// Everybody who works must have got through since the world was healed.
    fn check_recovery(&mut self) {
        let healed = self.healed.unwrap_or(0);
        let mut w = self.world.lock();
        let late: Vec<String> = w
            .history
            .clients()
            .filter(|(name, at)| **at < healed && !NOT_ALWAYS.contains(&name.as_str()))
            .map(|(name, at)| {
                format!("{name} got through at {at} the last time, and all was whole at {healed}")
            })
            .collect();
        late.into_iter().for_each(|what| w.violation(what));
        if w.history.acks == 0 {
            w.violation("nothing was ever acknowledged".into());
        }
    }

    /// Clients end; then everything is read, from the brokers and from a copy of the bucket.
    fn finish(&mut self) {
        self.world.lock().closing = true;
        self.go_on_until(self.now() + ENDING_BOUND / 4);
        let (done, mut finished) = mpsc::unbounded_channel();
        let mut reader = Client::new(&self.world, Node(20), "auditor", &self.plan.brokers);
        self.clients[0].1.spawn(async move {
            for (topic, partition) in AUDITED {
                let found = reader.read_whole(topic, partition).await;
                let _ = done.send((partition, found));
            }
        });
        let end = self.now() + ENDING_BOUND;
        let mut wholes = vec![];
        while wholes.len() < AUDITED.len() && self.now() < end && self.go_on() {
            self.tick();
            while let Ok(found) = finished.try_recv() {
                wholes.push(found);
            }
        }
        if !self.go_on() {
            return;
        }
        if wholes.len() < AUDITED.len() {
            return self
                .world
                .lock()
                .violation("the log could not be read at the end".into());
        }
        for (partition, (id, start, log)) in wholes {
            let mut w = self.world.lock();
            w.history
                .whole((id, partition), start, &log, Millis::MAX, "at the end");
        }
        self.check_bucket("in the bucket at the end");
        if self.plan.drains && self.go_on() {
            self.check_drained();
        }
    }

    /// Left alone, a cluster forgets its dead: their streams leave the manifest, and their data the bucket.
    fn check_drained(&mut self) {
        self.go_on_until(self.now() + DRAINING);
        let counts = self.check_bucket("in the bucket after a rest");
        let running = self.hosts.values().filter(|h| h.machine.is_some()).count();
        let mut w = self.world.lock();
        let of = |class| counts.of(class).objects;
        let (live, garbage, unknown) = (of(Class::Live), of(Class::Garbage), of(Class::Unknown));
        w.tell(format_args!(
            "{live} objects are live, {garbage} garbage, {unknown} unknown"
        ));
        let stored = w.bucket.objects.get(MANIFEST).map(|o| o.bytes.clone());
        let manifest = stored.and_then(|bytes| Manifest::decode(&bytes).ok());
        let Some(manifest) = manifest else {
            return w.violation("there is no readable manifest".into());
        };
        if manifest.live().count() != running {
            let live: Vec<_> = manifest.live().map(|(i, s)| (i, s.node_id)).collect();
            w.violation(format!("{running} brokers run, and the manifest lists {live:?}"));
        }
        let dead: Vec<u64> = manifest
            .streams
            .iter()
            .filter(|(_, s)| !s.is_live())
            .map(|(i, _)| *i)
            .collect();
        if !dead.is_empty() {
            w.violation(format!(
                "after {DRAINING} ms of rest streams {dead:?} are still in the manifest"
            ));
        }
        let wanted = manifest.slots.iter().filter(|r| r.desired.is_some()).count();
        if wanted > 0 {
            w.violation(format!(
                "after {DRAINING} ms of rest {wanted} runs of slots wait to be moved"
            ));
        }
        let segments = w
            .bucket
            .objects
            .keys()
            .filter(|k| k.starts_with("wal/") && !k.ends_with("head.json"));
        let (count, allowed) = (segments.count(), 40 + self.boots as usize * 2);
        if count > allowed {
            w.violation(format!(
                "after {DRAINING} ms of rest {count} objects lie below wal/, at most {allowed} should"
            ));
        }
        drop(w);
        self.check_garbage(counts);
    }

    /// What nobody refers to goes. A file that was written just before the look has made garbage of what it was made
    /// from: whatever is there may take its time, but not more than that.
    fn check_garbage(&mut self, mut counts: Counts) {
        let left = |counts: &Counts, kind| {
            let classes = counts.by_kind.get(&kind);
            let of = |class| classes.and_then(|c| c.get(&class)).map_or(0, |c| c.objects);
            of(Class::Garbage) + of(Class::Unknown)
        };
        let kinds = [Kind::Merged, Kind::Archive];
        if kinds.into_iter().any(|kind| left(&counts, kind) > FILES_LEFT) {
            self.go_on_until(self.now() + GARBAGE_GOES);
            counts = self.check_bucket("in the bucket after a longer rest");
        }
        for kind in kinds {
            let left = left(&counts, kind);
            if left > FILES_LEFT {
                self.world.lock().violation(format!(
                    "after {DRAINING} ms of rest and {GARBAGE_GOES} more nobody refers to {left} objects of kind {kind:?}, at \
                     most {FILES_LEFT} may be left"
                ));
            }
        }
    }

    /// A copy of the bucket is looked through as `alluvium fsck` does: everything that any log refers to must be there
    /// and whole. Then a broker of its own recovers it, alone and undisturbed: all that was acknowledged must be there.
    /// Answers what all the objects are.
    fn check_bucket(&mut self, how: &str) -> Counts {
        self.checks += 1;
        let (copy, now, partitions) = {
            let w = self.world.lock();
            let created = w.bucket.count.created - w.bucket.count.removed;
            assert_eq!(created, w.bucket.objects.len() as u64, "live and deleted are all");
            (w.bucket.clone(), w.now, w.history.partitions())
        };
        let aside = Shared::new(now, false);
        {
            let mut w = aside.lock();
            w.bucket = copy;
            w.now = now;
        }
        let machine = Machine::new(now);
        let looked = machine.run(look(aside, partitions));
        let mut w = self.world.lock();
        w.tell(format_args!("the bucket is looked at"));
        match looked {
            Err(why) => {
                w.violation(format!("{how}: {why}"));
                Counts::default()
            }
            Ok((counts, found)) => {
                for (p, epoch, start, log) in found {
                    w.history.begins(p, epoch, start, how);
                    w.history.whole(p, start, &log, now, how);
                }
                counts
            }
        }
    }

    fn outcome(self) -> Outcome {
        let mut w = self.world.lock();
        let c = w.bucket.count;
        let h = &w.history;
        let summary = format!(
            "{} brokers, {} starts, {} s; {} batches acknowledged, {} read, {} commits; {} writes, {} reads, {} \
             faults, {} looks at the bucket",
            self.plan.brokers.len(),
            self.boots,
            w.now / 1000,
            h.acks,
            h.reads,
            h.commits_acked,
            c.puts,
            c.gets,
            c.faults,
            self.checks,
        );
        w.tell(format_args!("{summary}"));
        Outcome {
            violations: w.history.violations.clone(),
            hash: w.trace.hash(),
            summary,
        }
    }
}

#[derive(Debug)]
struct Fixed(i64);

impl Clock for Fixed {
    fn now_ms(&self) -> i64 {
        self.0
    }
}

/// A partition with its leader's epoch in the manifest, its log start and its records.
type Whole = (Partition, i32, i64, Vec<(i64, i32, Value)>);

/// Looks through a bucket that nobody else uses, opens its log and reads these partitions.
async fn look(world: Shared, partitions: Vec<Partition>) -> Result<(Counts, Vec<Whole>), String> {
    let (now, objects) = {
        let w = world.lock();
        (w.now, w.bucket.objects.len() as u64)
    };
    let client = Arc::new(SimStore::perfect(world.clone()));
    let options = StoreOptions {
        seed: Some(1),
        ..StoreOptions::default()
    };
    let kind = StoreKind::Memory;
    let path = object_store::path::Path::default();
    let store = Store::from_parts(client.clone(), client, path, "the copy".into(), kind, options);
    let clock = Arc::new(Fixed(EPOCH_MS + now as i64));
    let history = broker::history();
    let options = FsckOptions {
        fast: false,
        history: Some(history.clone()),
    };
    let checked = fsck::check(&store, &options, &watch::Sender::default()).await;
    let report = checked.map_err(|e| e.to_string())?;
    if !report.whole {
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        return Err(findings.join(" | "));
    }
    let total = report.counts.total().objects;
    if total != objects {
        return Err(format!(
            "{total} objects are live, garbage or unknown, and there are {objects}"
        ));
    }
    let manifest = world.lock().bucket.get(MANIFEST);
    let manifest = manifest.and_then(|o| Manifest::decode(&o.bytes).ok());
    let manifest = manifest.ok_or("there is no readable manifest")?;
    let log = broker::open_alone(store, clock, history).await?;
    let mut found = vec![];
    for (topic, index) in partitions {
        // A topic whose creation was acknowledged is in the manifest; one that is being deleted is not asked for.
        let p = log
            .partition(&topic, index)
            .ok_or_else(|| format!("{topic}-{index} is not there"))?;
        let marks = p.watermarks();
        let (mut at, mut all) = (marks.log_start_offset, vec![]);
        while at < marks.high_watermark {
            let read = log
                .read(&p, at, 1 << 20, Isolation::ReadUncommitted)
                .await
                .map_err(|e| format!("{topic}-{index} at {at}: {e}"))?;
            let batches = crate::clients::decode(&read.chunks)
                .filter(|b| !b.is_empty())
                .ok_or_else(|| format!("{topic}-{index} at {at}: nothing readable"))?;
            for b in batches {
                let whole = b.records.iter().map(|(offset, value)| (*offset, b.epoch, *value));
                all.extend(whole.filter(|(offset, ..)| *offset >= at));
                at = b.next;
            }
        }
        let epoch = manifest.leader(&topic, index).map_or(-1, |l| l.leader_epoch);
        found.push(((topic, index), epoch, marks.log_start_offset, all));
    }
    Ok((report.counts, found))
}
