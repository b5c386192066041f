//! Keeps an eye on the other brokers, and slots where they should be: the effects around [`liveness`] and
//! [`placement`].
//!
//! For every other live stream of the manifest a task pings its broker, and looks at its head and the end of its
//! stream when the judge says so. What a broker answers is kept: it tells how much of the manifest each one has
//! applied, and makes this broker look at the manifest at once when another knows a newer one.
//!
//! The controller (the lowest live incarnation) also compares the assignment with the plan after each change of
//! the manifest, and asks owners to hand slots over, a limited number at a time.
//!
//! What pings, reads and changes is behind three small traits, so that all of this runs under paused time.
//!
//! [`liveness`]: crate::liveness
//! [`placement`]: crate::placement

mod signs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hashbrown::HashMap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::liveness::{Death, Event, Judge, LivenessLimits, Sign, Verdict};
use crate::manifest::{Manifest, StreamEntry};
use crate::{Incarnation, Seq, Slot, placement};

pub use signs::StoreSigns;

/// How often a judge is told that this process runs; well below [`LivenessLimits::frozen`].
const TICK: Duration = Duration::from_millis(500);
/// Brokers that find the same death act one after the other, so that most find it settled.
const STAGGER: Duration = Duration::from_millis(500);
/// At most so many of them wait.
const STAGGER_RANKS: u32 = 6;
/// Others have so long to apply a manifest that they are told of before this broker goes.
const TOLD: Duration = Duration::from_secs(3);
/// Pause between two questions whether they have.
const TELL_AGAIN: Duration = Duration::from_millis(50);
/// A plan for so many partitions takes less time than handing it to another thread.
const PLANNED_AT_ONCE: u64 = 500;

/// What a broker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The broker start that answered.
    pub incarnation: Incarnation,
    /// Version of the manifest that it has applied.
    pub manifest_version: u64,
    /// It is about to leave, or was told to give its slots away.
    pub draining: bool,
}

/// Why there is no pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// The machine is there and refuses the connection.
    #[error("connection refused")]
    Refused,
    /// Nothing came back that makes sense.
    #[error("no answer")]
    NoAnswer,
}

/// Reaches other brokers.
pub trait Peers: Send + Sync + 'static {
    /// Pings the broker of a stream, telling it the newest manifest version that this broker knows. It MUST answer
    /// `Refused` only if the peer's machine did so, and MAY be dropped at any time.
    fn ping(
        &self,
        to: &StreamEntry,
        incarnation: Incarnation,
        manifest_version: u64,
    ) -> BoxFuture<'static, Result<Pong, PingError>>;
}

/// Reads what a broker writes.
pub trait Signs: Send + Sync + 'static {
    /// Reads the head of a stream and looks where it ends. `known` is where it ended before, 0 at first: nothing
    /// below is looked at.
    fn look(&self, stream: Incarnation, known: Seq) -> BoxFuture<'static, Result<Sign, String>>;
}

/// What membership does to this broker and to the cluster. Each future runs to its end on a task of its own.
pub trait Cluster: Send + Sync + 'static {
    /// The newest manifest that this broker knows.
    fn manifest(&self) -> watch::Receiver<Arc<Manifest>>;
    /// Reads the manifest: somebody knows a newer one.
    fn refresh(&self) -> BoxFuture<'static, ()>;
    /// Ends the stream of a dead broker and gives its slots to the living. The error is one sentence.
    fn take_over(&self, victim: Incarnation, death: Death) -> BoxFuture<'static, Result<(), String>>;
    /// Asks the owners of slots, in one change of the manifest, to hand them over. The error is one sentence.
    fn propose(&self, moves: Vec<(Slot, Incarnation)>) -> BoxFuture<'static, Result<(), String>>;
    /// Whether the broker of a stream should lose its slots, as far as the manifest tells.
    fn is_drained(&self, _incarnation: Incarnation, _stream: &StreamEntry) -> bool {
        false
    }
}

/// Settings of [`Membership`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipOptions {
    /// How patient judges are.
    pub liveness: LivenessLimits,
    /// Without a pong for so long a ping has failed.
    pub ping_timeout: Duration,
    /// A broker that has not answered for so long is given no slots.
    pub quiet: Duration,
    /// The plan is looked at this often even if nothing changed.
    pub plan_interval: Duration,
    /// After a change of the manifest the plan waits for so long, for others that come with it.
    pub plan_delay: Duration,
    /// Slots on their way at once, at most: clients of a slot wait while it moves.
    pub slots_under_way: usize,
}

impl Default for MembershipOptions {
    fn default() -> Self {
        MembershipOptions {
            liveness: LivenessLimits::default(),
            ping_timeout: Duration::from_secs(1),
            quiet: Duration::from_secs(5),
            plan_interval: Duration::from_secs(10),
            plan_delay: Duration::from_secs(1),
            slots_under_way: 128,
        }
    }
}

/// Metrics of membership. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct MembershipMetrics {
    peers: Gauge,
    pub(crate) suspects: Gauge,
    takeover_failures: Counter,
    slots_under_way: Gauge,
    plan_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl MembershipMetrics {
    /// Makes them known.
    pub fn register(registry: &mut Registry) -> MembershipMetrics {
        let m = MembershipMetrics::default();
        let r = registry.sub_registry_with_prefix("alluvium_membership");
        r.register("peers", "Other live brokers", m.peers.clone());
        r.register(
            "suspects",
            "Brokers that do not answer, whose objects in the bucket are watched",
            m.suspects.clone(),
        );
        r.register(
            "takeover_failures",
            "Takeovers that did not succeed",
            m.takeover_failures.clone(),
        );
        r.register(
            "slots_under_way",
            "Slots that their owners were asked to hand over",
            m.slots_under_way.clone(),
        );
        r.register(
            "plan_seconds",
            "Time that the newest comparison of assignment and plan took",
            m.plan_seconds.clone(),
        );
        m
    }
}

/// The newest answer of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When it came.
    pub at: Instant,
    /// What it said.
    pub pong: Pong,
}

/// See the module's documentation.
pub struct Membership {
    own: Incarnation,
    options: MembershipOptions,
    metrics: MembershipMetrics,
    peers: Arc<dyn Peers>,
    signs: Arc<dyn Signs>,
    cluster: Arc<dyn Cluster>,
    heard: Mutex<BTreeMap<Incarnation, Heard>>,
    /// Counts calls of `nudge` and of `store_failed`.
    nudges: watch::Sender<u64>,
    store_failures: watch::Sender<u64>,
    refreshing: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Nothing happens before [`Membership::run`].
    pub fn new(
        own: Incarnation,
        options: MembershipOptions,
        metrics: MembershipMetrics,
        peers: Arc<dyn Peers>,
        signs: Arc<dyn Signs>,
        cluster: Arc<dyn Cluster>,
    ) -> Arc<Membership> {
        Arc::new(Membership {
            own,
            options,
            metrics,
            peers,
            signs,
            cluster,
            heard: Mutex::default(),
            nudges: watch::Sender::new(0),
            store_failures: watch::Sender::new(0),
            refreshing: Arc::default(),
        })
    }

    /// Watches and plans until it is dropped, or this broker is no longer live.
    pub async fn run(self: Arc<Self>) {
        let mut manifest = self.cluster.manifest();
        let mut watchers = JoinSet::new();
        watchers.spawn(self.clone().plan_on());
        let mut of: HashMap<Incarnation, AbortHandle> = HashMap::new();
        loop {
            let now = manifest.borrow_and_update().clone();
            if !now.is_live(self.own) {
                return;
            }
            of.retain(|peer, watcher| {
                let live = now.is_live(*peer);
                if !live {
                    watcher.abort();
                }
                live && !watcher.is_finished()
            });
            self.heard.lock().retain(|peer, _| now.is_live(*peer));
            for (peer, entry) in now.live().filter(|(i, _)| *i != self.own) {
                of.entry(peer)
                    .or_insert_with(|| watchers.spawn(self.clone().watch(peer, entry.clone())));
            }
            self.metrics.peers.set(of.len() as i64);
            // Watchers that are done are let go of here too.
            while watchers.try_join_next().is_some() {}
            if manifest.changed().await.is_err() {
                return;
            }
        }
    }

    /// Pings everybody at once, so that they learn of a manifest that this broker has just changed.
    pub fn nudge(&self) {
        self.nudges.send_modify(|n| *n += 1);
    }

    /// A request of this broker to the store failed: until more is known, nobody else is to blame for silence.
    pub fn store_failed(&self) {
        self.store_failures.send_modify(|n| *n += 1);
    }

    /// The newest answer of each live broker that has answered.
    pub fn heard(&self) -> BTreeMap<Incarnation, Heard> {
        self.heard.lock().clone()
    }

    /// Whether a broker has not answered for so long that it is given no slots.
    pub(crate) fn is_quiet(&self, peer: Incarnation) -> bool {
        let heard = self.heard.lock().get(&peer).map(|h| h.at);
        peer != self.own && heard.is_none_or(|at| at.elapsed() >= self.options.quiet)
    }

    /// Tells everybody at once of the newest manifest, also when this broker has left it and watches nobody any more, and
    /// waits until those who answer have applied it, at most for a while: a client that loses its connection to this
    /// broker asks one of them, once, who leads its partitions now.
    pub async fn tell_all(&self) {
        let manifest = self.cluster.manifest().borrow().clone();
        let others = manifest.live().filter(|(i, _)| *i != self.own);
        let told = others.map(|(peer, entry)| self.tell(peer, entry, manifest.version));
        let all = futures::future::join_all(told);
        let _ = tokio::time::timeout(TOLD, all).await;
    }

    async fn tell(&self, peer: Incarnation, entry: &StreamEntry, version: u64) {
        loop {
            let answer = self.peers.ping(entry, peer, version);
            match tokio::time::timeout(self.options.ping_timeout, answer).await {
                Ok(Ok(pong)) if pong.incarnation == peer && pong.manifest_version < version => {}
                _ => return,
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }

    /// Watches one broker until it is dead and taken over.
    async fn watch(self: Arc<Self>, peer: Incarnation, entry: StreamEntry) {
        let mut suspect = Suspect::new(self.metrics.suspects.clone());
        let mut judge = Judge::new(self.options.liveness.clone(), Instant::now());
        let mut nudges = self.nudges.subscribe();
        let mut failures = self.store_failures.subscribe();
        let mut ping: Option<BoxFuture<'static, Event>> = None;
        let mut look: Option<BoxFuture<'static, (Instant, Result<Sign, String>)>> = None;
        let (mut known, mut answers) = (0, false);
        let mut verdict = judge.on(Event::Tick, Instant::now());
        loop {
            let (ping_at, look_at) = match verdict {
                Verdict::Observe { ping_at, look_at } => (ping_at, look_at),
                Verdict::TakeOver(death) => {
                    (ping, look, answers) = (None, None, false);
                    if self.take_over(peer, &entry, death).await {
                        return;
                    }
                    verdict = judge.on(Event::Tick, Instant::now());
                    continue;
                }
            };
            suspect.set(look_at.is_some());
            let now = Instant::now();
            let mut wake = now + TICK;
            match &ping {
                None if now >= ping_at => ping = Some(self.ping(peer, &entry)),
                None => wake = wake.min(ping_at),
                Some(_) => {}
            }
            match (&look, look_at) {
                (None, Some(at)) if now >= at => look = Some(self.look(peer, known)),
                (None, Some(at)) => wake = wake.min(at),
                _ => {}
            }
            let event = tokio::select! {
                event = pending(&mut ping) => {
                    ping = None;
                    answers = event == Event::Answered;
                    event
                }
                (asked, found) = pending(&mut look) => {
                    look = None;
                    match found {
                        Ok(sign) => {
                            known = sign.end;
                            Event::Looked { asked, sign }
                        }
                        Err(why) => {
                            tracing::debug!(peer, why, "a silent broker's objects could not be read");
                            Event::StoreFailed
                        }
                    }
                }
                Ok(()) = nudges.changed() => {
                    // One that does not answer is asked in its own time: refusals must lie apart to count.
                    if answers && ping.is_none() {
                        ping = Some(self.ping(peer, &entry));
                    }
                    Event::Tick
                }
                Ok(()) = failures.changed() => Event::StoreFailed,
                () = sleep_until(wake) => Event::Tick,
            };
            verdict = judge.on(event, Instant::now());
        }
    }

    fn ping(self: &Arc<Self>, peer: Incarnation, entry: &StreamEntry) -> BoxFuture<'static, Event> {
        let this = self.clone();
        let version = self.cluster.manifest().borrow().version;
        let answer = self.peers.ping(entry, peer, version);
        let answer = tokio::time::timeout(self.options.ping_timeout, answer);
        Box::pin(async move {
            let pong = match answer.await {
                Ok(Ok(pong)) => pong,
                Ok(Err(PingError::Refused)) => {
                    // Perhaps it has left in good order, and the newest manifest says so.
                    this.refresh();
                    return Event::Refused;
                }
                Ok(Err(PingError::NoAnswer)) | Err(_) => return Event::NoAnswer,
            };
            if pong.manifest_version > this.cluster.manifest().borrow().version {
                this.refresh();
            }
            if pong.incarnation != peer {
                return Event::AnsweredByAnother;
            }
            let at = Instant::now();
            this.heard.lock().insert(peer, Heard { at, pong });
            Event::Answered
        })
    }

    /// Reads the manifest in the background, once however many brokers know a newer one.
    fn refresh(&self) {
        if let Ok(guard) = self.refreshing.clone().try_lock_owned() {
            let refresh = self.cluster.refresh();
            tokio::spawn(async move {
                refresh.await;
                drop(guard);
            });
        }
    }

    fn look(&self, peer: Incarnation, known: Seq) -> BoxFuture<'static, (Instant, Result<Sign, String>)> {
        let asked = Instant::now();
        let look = self.signs.look(peer, known);
        Box::pin(async move { (asked, look.await) })
    }

    /// Takes a dead broker over, unless somebody else does. Whether it is done with.
    async fn take_over(&self, victim: Incarnation, entry: &StreamEntry, death: Death) -> bool {
        let node = entry.node_id;
        let manifest = self.cluster.manifest().borrow().clone();
        tokio::time::sleep(stagger(&manifest, self.own, victim)).await;
        if !self.cluster.manifest().borrow().is_live(victim) {
            return true;
        }
        tracing::warn!(victim, node, why = %death, "a broker is dead; taking its slots over");
        // The manifest loses the victim half way through, which ends this task: the takeover must go on.
        let (taking, metrics) = (self.cluster.take_over(victim, death), self.metrics.clone());
        let taken = tokio::spawn(async move {
            let taken = taking.await;
            if taken.is_err() {
                metrics.takeover_failures.inc();
            }
            taken
        });
        let why = match taken.await {
            Ok(Ok(())) => return true,
            Ok(Err(why)) => why,
            Err(e) => e.to_string(),
        };
        tracing::warn!(
            victim,
            node,
            why,
            "a dead broker was not taken over; watching it again"
        );
        false
    }

    /// Proposes moves while this broker is the controller.
    async fn plan_on(self: Arc<Self>) {
        let mut manifest = self.cluster.manifest();
        loop {
            tokio::time::sleep(self.options.plan_delay).await;
            let now = manifest.borrow_and_update().clone();
            if now.controller().is_some_and(|(i, _)| i == self.own) {
                self.propose(now).await;
            }
            // In vain until the next change or a pause, whichever is first.
            let _ = tokio::time::timeout(self.options.plan_interval, manifest.changed()).await;
        }
    }

    async fn propose(&self, manifest: Arc<Manifest>) {
        let under_way = slots_under_way(&manifest);
        self.metrics.slots_under_way.set(under_way as i64);
        let room = self.options.slots_under_way.saturating_sub(under_way);
        if room == 0 {
            return;
        }
        let heard = self.heard();
        let leaving: Vec<Incarnation> = manifest
            .live()
            .filter(|(i, s)| heard.get(i).is_some_and(|h| h.pong.draining) || self.cluster.is_drained(*i, s))
            .map(|(i, _)| i)
            .collect();
        let started = Instant::now();
        let partitions: u64 = manifest.topics.values().map(|t| u64::from(t.partitions)).sum();
        let plan = move || placement::plan(&manifest, |i, _| leaving.contains(&i));
        let planned = if partitions <= PLANNED_AT_ONCE {
            Ok(plan())
        } else {
            tokio::task::spawn_blocking(plan).await
        };
        self.metrics.plan_seconds.set(started.elapsed().as_secs_f64());
        let Ok(mut moves) = planned else { return };
        moves.retain(|(_, to)| !self.is_quiet(*to));
        moves.truncate(room);
        if moves.is_empty() {
            return;
        }
        tracing::info!(slots = moves.len(), under_way, "asking owners to hand slots over");
        match tokio::spawn(self.cluster.propose(moves)).await {
            Ok(Ok(())) => self.nudge(),
            Ok(Err(why)) => tracing::warn!(why, "owners could not be asked to hand slots over"),
            Err(e) => tracing::warn!(error = %e, "owners could not be asked to hand slots over"),
        }
    }
}

/// Resolves with what is under way, never if nothing is.
async fn pending<T>(under_way: &mut Option<BoxFuture<'static, T>>) -> T {
    match under_way {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// How long a broker that found another one dead leaves it to those that come before it.
fn stagger(manifest: &Manifest, own: Incarnation, victim: Incarnation) -> Duration {
    let before = manifest.live().filter(|(i, _)| *i < own && *i != victim).count();
    STAGGER * (before as u32).min(STAGGER_RANKS)
}

/// Slots that somebody else than their owner should own.
fn slots_under_way(manifest: &Manifest) -> usize {
    let runs = manifest.slots.iter();
    let asked = runs.filter(|r| r.desired.is_some_and(|d| d != r.owner));
    asked.map(|r| r.count as usize).sum()
}

/// Counts a broker among the suspects while it is one, however the watch ends.
struct Suspect {
    gauge: Gauge,
    is: bool,
}

impl Suspect {
    fn new(gauge: Gauge) -> Suspect {
        Suspect { gauge, is: false }
    }

    fn set(&mut self, is: bool) {
        if is != self.is {
            self.gauge.inc_by(if is { 1 } else { -1 });
            self.is = is;
        }
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests;
