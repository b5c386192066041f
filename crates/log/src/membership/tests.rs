use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::*;
use crate::manifest::{SlotRun, Topic};

type Answer = Result<Pong, PingError>;
type Network = Box<dyn Fn(Incarnation, Incarnation) -> Answer + Send>;
type Bucket = Box<dyn Fn(Incarnation) -> Result<Sign, String> + Send>;
type Moves = Vec<(Slot, Incarnation)>;

/// A bucket, a network and some brokers in it.
struct World {
    manifest: watch::Sender<Arc<Manifest>>,
    /// What the broker of the first says to a ping of the second; nobody answers who is not told to.
    network: Mutex<Network>,
    /// What can be seen of a stream in the bucket.
    bucket: Mutex<Bucket>,
    pings: Mutex<Vec<(Incarnation, Incarnation, Instant)>>,
    takeovers: Mutex<Vec<(Incarnation, Incarnation, Instant)>>,
    taken: AtomicU64,
    takeovers_fail: AtomicBool,
    proposals: Mutex<Vec<(Incarnation, Moves)>>,
    refreshes: AtomicU64,
}

/// One broker's view of it.
#[derive(Clone)]
struct Broker {
    own: Incarnation,
    world: Arc<World>,
}

fn pong(incarnation: Incarnation) -> Answer {
    Ok(Pong {
        incarnation,
        manifest_version: 0,
        draining: false,
    })
}

fn beat(seconds: u64) -> Sign {
    Sign {
        heartbeat: seconds / 10,
        tip: 0,
        end: 0,
    }
}

impl World {
    fn new(brokers: i32, slots: u32, owner: impl Fn(Slot) -> Incarnation) -> Arc<World> {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), slots);
        for node in 1..=brokers {
            m.register(node, None, BTreeMap::new());
        }
        m.slots = (0..slots)
            .map(|first| SlotRun {
                first,
                count: 1,
                owner: owner(first),
                epoch: 1,
                desired: None,
            })
            .collect();
        let start = Instant::now();
        Arc::new(World {
            manifest: watch::Sender::new(Arc::new(m)),
            network: Mutex::new(Box::new(|to, _| pong(to))),
            bucket: Mutex::new(Box::new(move |_| Ok(beat(start.elapsed().as_secs())))),
            pings: Mutex::default(),
            takeovers: Mutex::default(),
            taken: AtomicU64::default(),
            takeovers_fail: AtomicBool::default(),
            proposals: Mutex::default(),
            refreshes: AtomicU64::default(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Manifest)) {
        let mut m = (**self.manifest.borrow()).clone();
        change(&mut m);
        m.version += 1;
        self.manifest.send_replace(Arc::new(m));
    }

    fn network(&self, answer: impl Fn(Incarnation, Incarnation) -> Answer + Send + 'static) {
        *self.network.lock() = Box::new(answer);
    }

    fn bucket(&self, sign: impl Fn(Incarnation) -> Result<Sign, String> + Send + 'static) {
        *self.bucket.lock() = Box::new(sign);
    }

    fn start(self: &Arc<World>, own: Incarnation, options: MembershipOptions) -> Arc<Membership> {
        let broker = Arc::new(Broker {
            own,
            world: self.clone(),
        });
        let metrics = MembershipMetrics::default();
        let m = Membership::new(own, options, metrics, broker.clone(), broker.clone(), broker);
        tokio::spawn(m.clone().run());
        m
    }
}

impl Peers for Broker {
    fn ping(&self, _: &StreamEntry, to: Incarnation, _: u64) -> BoxFuture<'static, Answer> {
        let broker = self.clone();
        Box::pin(async move {
            broker.world.pings.lock().push((broker.own, to, Instant::now()));
            let answer = (broker.world.network.lock())(to, broker.own);
            if answer == Err(PingError::NoAnswer) {
                std::future::pending::<()>().await;
            }
            answer
        })
    }
}

impl Signs for Broker {
    fn look(&self, stream: Incarnation, _: Seq) -> BoxFuture<'static, Result<Sign, String>> {
        let world = self.world.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            (world.bucket.lock())(stream)
        })
    }
}

impl Cluster for Broker {
    fn manifest(&self) -> watch::Receiver<Arc<Manifest>> {
        self.world.manifest.subscribe()
    }

    fn refresh(&self) -> BoxFuture<'static, ()> {
        let world = self.world.clone();
        Box::pin(async move {
            world.refreshes.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(900)).await;
        })
    }

    fn take_over(&self, victim: Incarnation, _: Death) -> BoxFuture<'static, Result<(), String>> {
        let broker = self.clone();
        Box::pin(async move {
            let world = broker.world;
            world.takeovers.lock().push((broker.own, victim, Instant::now()));
            if world.takeovers_fail.load(Ordering::Relaxed) {
                return Err("the store is slow".into());
            }
            world.change(|m| {
                let live: Vec<_> = m.live().map(|(i, _)| i).filter(|i| *i != victim).collect();
                let slots: Vec<_> = m
                    .slots
                    .iter()
                    .filter(|r| r.owner == victim)
                    .map(|r| r.first)
                    .collect();
                for (slot, to) in placement::orphans(m, &slots, &live) {
                    m.slots[slot as usize].owner = to;
                }
                m.streams.remove(&victim);
            });
            // Recovery, say.
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.taken.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    fn propose(&self, moves: Vec<(Slot, Incarnation)>) -> BoxFuture<'static, Result<(), String>> {
        let broker = self.clone();
        Box::pin(async move {
            broker.world.change(|m| {
                for (slot, to) in &moves {
                    m.slots[*slot as usize].desired = Some(*to);
                }
            });
            broker.world.proposals.lock().push((broker.own, moves));
            Ok(())
        })
    }
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_broker_is_taken_over_once_by_the_first_that_is_left() {
    let world = World::new(3, 6, |s| u64::from(s) % 3 + 1);
    let _all: Vec<_> = (2..=3)
        .map(|i| world.start(i, MembershipOptions::default()))
        .collect();
    seconds(60).await;
    assert!(world.takeovers.lock().is_empty());
    let died = Instant::now();
    world.network(|to, _| {
        if to == 1 {
            Err(PingError::Refused)
        } else {
            pong(to)
        }
    });
    seconds(60).await;
    let takeovers = world.takeovers.lock().clone();
    assert_eq!(takeovers.len(), 1, "{takeovers:?}");
    assert_eq!((takeovers[0].0, takeovers[0].1), (2, 1));
    assert!(takeovers[0].2 - died < Duration::from_secs(2));
    assert!(world.manifest.borrow().slots.iter().all(|r| r.owner != 1));
    // The victim left the manifest in the middle of it.
    assert_eq!(world.taken.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_next_broker_acts_if_the_first_does_not() {
    let world = World::new(3, 6, |s| u64::from(s) % 3 + 1);
    // The first two are dead, and nobody knew the second yet.
    world.network(|_, _| Err(PingError::NoAnswer));
    world.bucket(|_| Ok(beat(0)));
    let _third = world.start(3, MembershipOptions::default());
    seconds(60).await;
    let mut victims: Vec<_> = world
        .takeovers
        .lock()
        .iter()
        .map(|(by, v, _)| (*by, *v))
        .collect();
    victims.sort_unstable();
    assert_eq!(victims, vec![(3, 1), (3, 2)]);
    assert!(world.manifest.borrow().slots.iter().all(|r| r.owner == 3));
}

#[tokio::test(start_paused = true)]
async fn brokers_that_see_the_bucket_but_not_each_other_live() {
    let world = World::new(2, 4, |s| u64::from(s) % 2 + 1);
    let all: Vec<_> = (1..=2)
        .map(|i| world.start(i, MembershipOptions::default()))
        .collect();
    seconds(5).await;
    world.network(|_, _| Err(PingError::NoAnswer));
    seconds(1_200).await;
    assert_eq!(*world.takeovers.lock(), vec![]);
    assert_eq!(all[0].heard().len(), 1);
    // Then one of them really dies.
    let start = Instant::now();
    world.bucket(move |stream| Ok(beat(if stream == 2 { 0 } else { start.elapsed().as_secs() })));
    seconds(180).await;
    let by: Vec<_> = world
        .takeovers
        .lock()
        .iter()
        .map(|(by, v, _)| (*by, *v))
        .collect();
    assert_eq!(by, vec![(1, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_without_its_store_takes_nobody_over() {
    let world = World::new(2, 4, |s| u64::from(s) % 2 + 1);
    let m = world.start(1, MembershipOptions::default());
    world.network(|_, _| Err(PingError::NoAnswer));
    world.bucket(|_| Err("503".into()));
    seconds(300).await;
    // It reads heads, but its other requests fail.
    world.bucket(|_| Ok(beat(0)));
    for _ in 0..60 {
        m.store_failed();
        seconds(5).await;
    }
    assert_eq!(*world.takeovers.lock(), vec![]);
    seconds(15).await;
    assert_eq!(world.takeovers.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_fails_is_tried_again() {
    let world = World::new(2, 4, |s| u64::from(s) % 2 + 1);
    world.takeovers_fail.store(true, Ordering::Relaxed);
    let m = world.start(1, MembershipOptions::default());
    seconds(5).await;
    world.network(|_, _| Err(PingError::Refused));
    seconds(60).await;
    let tried = world.takeovers.lock().len();
    assert!((10..=70).contains(&tried), "{tried}");
    assert_eq!(m.metrics.takeover_failures.get(), tried as u64);
    world.takeovers_fail.store(false, Ordering::Relaxed);
    seconds(5).await;
    assert_eq!(world.taken.load(Ordering::Relaxed), 1);
    assert_eq!((m.metrics.peers.get(), m.metrics.suspects.get()), (0, 0));
    assert!(m.heard().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_newer_manifest_elsewhere_is_read_once_at_a_time() {
    let world = World::new(8, 8, |s| u64::from(s) + 1);
    world.network(|to, _| {
        Ok(Pong {
            incarnation: to,
            manifest_version: 17,
            draining: false,
        })
    });
    let m = world.start(1, MembershipOptions::default());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.refreshes.load(Ordering::Relaxed), 1);
    seconds(9).await;
    let refreshes = world.refreshes.load(Ordering::Relaxed);
    assert!((9..=11).contains(&refreshes), "{refreshes}");
    // Who has applied what is kept.
    let applied = m.heard().into_iter().map(|(i, h)| (i, h.pong.manifest_version));
    assert_eq!(
        applied.collect::<Vec<_>>(),
        (2..=8).map(|i| (i, 17)).collect::<Vec<_>>()
    );
    for _ in 1..17 {
        world.change(|_| {});
    }
    let before = world.refreshes.load(Ordering::Relaxed);
    seconds(10).await;
    assert!(world.refreshes.load(Ordering::Relaxed) <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_nudge_pings_everybody_that_answers_at_once() {
    let world = World::new(4, 8, |_| 1);
    world.network(|to, _| {
        if to == 4 {
            Err(PingError::Refused)
        } else {
            pong(to)
        }
    });
    let m = world.start(1, MembershipOptions::default());
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    world.pings.lock().clear();
    m.nudge();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut pinged: Vec<_> = world.pings.lock().iter().map(|(_, to, _)| *to).collect();
    pinged.sort_unstable();
    assert_eq!(pinged, vec![2, 3]);
}

#[tokio::test(start_paused = true)]
async fn who_joins_is_watched_and_who_left_is_not() {
    let world = World::new(2, 4, |_| 1);
    let m = world.start(1, MembershipOptions::default());
    seconds(3).await;
    world.change(|m| {
        m.register(3, None, BTreeMap::new());
    });
    world.change(|m| drop(m.streams.remove(&2)));
    seconds(3).await;
    assert_eq!(m.heard().into_keys().collect::<Vec<_>>(), vec![3]);
    world.pings.lock().clear();
    seconds(10).await;
    assert!(world.pings.lock().iter().all(|(_, to, _)| *to == 3));
    // Nor does one watch who is dead itself.
    world.change(|m| drop(m.streams.remove(&1)));
    seconds(1).await;
    world.pings.lock().clear();
    seconds(10).await;
    assert!(world.pings.lock().is_empty());
}

/// Hands over what was asked for, some slots at a time.
fn hand_over(world: &World, some: usize) {
    world.change(|m| {
        for run in m.slots.iter_mut().filter(|r| r.desired.is_some()).take(some) {
            if let Some(to) = run.desired.take() {
                run.owner = to;
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn the_controller_gives_a_joiner_its_share_a_few_slots_at_a_time() {
    let world = World::new(2, 64, |_| 1);
    let topic = Topic {
        id: Uuid::from_u128(7),
        partitions: 64,
        replication_factor: 1,
        configs: BTreeMap::new(),
        unknown: BTreeMap::new(),
    };
    world.change(|m| drop(m.topics.insert("t".into(), topic)));
    // It is not there yet.
    world.network(|to, _| {
        if to == 2 {
            Err(PingError::Refused)
        } else {
            pong(to)
        }
    });
    let options = MembershipOptions {
        slots_under_way: 10,
        ..MembershipOptions::default()
    };
    let _all: Vec<_> = (1..=2).map(|i| world.start(i, options.clone())).collect();
    seconds(30).await;
    assert!(world.proposals.lock().is_empty());
    world.network(|to, _| pong(to));
    seconds(30).await;
    assert_eq!(slots_under_way(&world.manifest.borrow()), 10);
    let mut rounds = 0;
    while slots_under_way(&world.manifest.borrow()) > 0 {
        hand_over(&world, 4);
        seconds(3).await;
        assert!(slots_under_way(&world.manifest.borrow()) <= 10);
        rounds += 1;
        assert!(rounds < 40);
    }
    let manifest = world.manifest.borrow().clone();
    assert_eq!(manifest.slots.iter().filter(|r| r.owner == 2).count(), 32);
    let proposals = world.proposals.lock();
    assert!(proposals.iter().all(|(by, _)| *by == 1));
    assert_eq!(proposals.iter().map(|(_, moves)| moves.len()).sum::<usize>(), 32);
}

#[tokio::test(start_paused = true)]
async fn one_that_says_it_is_draining_loses_its_slots() {
    let world = World::new(3, 30, |s| u64::from(s) % 3 + 1);
    world.network(|to, _| {
        Ok(Pong {
            incarnation: to,
            manifest_version: 0,
            draining: to == 3,
        })
    });
    let _first = world.start(1, MembershipOptions::default());
    seconds(15).await;
    hand_over(&world, usize::MAX);
    let manifest = world.manifest.borrow().clone();
    assert!(manifest.slots.iter().all(|r| r.owner != 3));
    let of = |i| manifest.slots.iter().filter(|r| r.owner == i).count();
    assert_eq!((of(1), of(2)), (15, 15));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_waits_until_the_others_know_it_but_not_for_ever() {
    let world = World::new(4, 4, |_| 1);
    let started = Instant::now();
    let applies_after = move |wait: u64| {
        move |to: Incarnation, _: Incarnation| match to {
            // It looks at the manifest when it is told of a newer one, which takes a moment.
            2 => Ok(Pong {
                incarnation: 2,
                manifest_version: if started.elapsed() >= Duration::from_millis(wait) {
                    9
                } else {
                    8
                },
                draining: false,
            }),
            3 => Err(PingError::Refused),
            _ => Err(PingError::NoAnswer),
        }
    };
    world.change(|m| m.version = 8);
    world.network(applies_after(230));
    let m = world.start(1, MembershipOptions::default());
    m.tell_all().await;
    let waited = started.elapsed();
    let ping_timeout = MembershipOptions::default().ping_timeout;
    assert_eq!(waited, ping_timeout, "as long as for one that does not answer");
    let asked_at = |to| {
        let pings = world.pings.lock().clone();
        let told = pings.into_iter().filter(move |p| p.1 == to);
        told.map(|p| p.2 - started).collect::<Vec<_>>()
    };
    assert!(
        asked_at(2).contains(&Duration::from_millis(250)),
        "{:?}",
        asked_at(2)
    );
    world.network(applies_after(1_000_000));
    let again = Instant::now();
    m.tell_all().await;
    assert_eq!(again.elapsed(), TOLD);
}
