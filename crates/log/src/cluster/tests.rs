//! An operator's view and changes, on the in-memory store with real logs, and the judgement on made-up manifests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt;
use prometheus_client::registry::Registry;
use uuid::Uuid;

use super::restore::{self, Present};
use super::status::{self, HEAD_AGE_MS_MAX, MoveStatus, Seen, SlotRange, StreamSeen};
use super::*;
use crate::batch::BatchBuilder;
use crate::head::Head;
use crate::manifest::{Change, Endpoint, FEATURE_LEVEL};
use crate::store::{StoreKind, StoreOptions};
use crate::{Clock, Log, LogOptions, Slot, SystemClock, keys};

async fn memory() -> Store {
    Store::open("memory://", StoreOptions::default()).await.unwrap()
}

async fn opened(store: &Store) -> Result<Log, crate::OpenError> {
    let options = LogOptions::for_store(StoreKind::Memory);
    let mut registry = Registry::default();
    Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry).await
}

async fn open(store: &Store) -> Log {
    opened(store).await.unwrap()
}

async fn create(log: &Log, name: &str, partitions: u32) -> crate::TopicId {
    let create = Change::CreateTopic {
        name: name.into(),
        partitions,
        replication_factor: 1,
        configs: BTreeMap::new(),
    };
    log.change(vec![create]).await.remove(0).unwrap().topics[name].id
}

async fn append(log: &Log, topic: &crate::TopicId, value: &str) -> i64 {
    let partition = log.partition(topic, 0).unwrap();
    let mut batch = BatchBuilder::new();
    batch.push(1_000, None, Some(value.as_bytes()), &[]);
    let pending = log.append(&partition, batch.build(), false).unwrap();
    pending.published().await.unwrap().base_offset
}

fn end(log: &Log, topic: &crate::TopicId) -> i64 {
    log.partition(topic, 0).unwrap().watermarks().high_watermark
}

async fn bytes(store: &Store, key: &str) -> bytes::Bytes {
    let found = store.bulk.get(&store.key(key)).await.unwrap();
    found.bytes().await.unwrap()
}

async fn put(store: &Store, key: &str, bytes: impl Into<object_store::PutPayload>) {
    store.bulk.put(&store.key(key), bytes.into()).await.unwrap();
}

async fn remove(store: &Store, key: &str) {
    store.bulk.delete(&store.key(key)).await.unwrap();
}

/// Copies are made in the background.
async fn copied(store: &Store, log: &Log) {
    let key = store.key(&keys::manifest_copy(log.manifest().version));
    for _ in 0..1_000 {
        if store.bulk.head(&key).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{key} is not there");
}

/// A clock ahead by so many milliseconds.
#[derive(Debug)]
struct Ahead(i64);

impl Clock for Ahead {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + self.0
    }
}

async fn seen(store: &Store, ahead_ms: i64) -> status::Status {
    status::judge(&status::look(store, &Ahead(ahead_ms)).await.unwrap())
}

#[tokio::test]
async fn a_broker_that_writes_its_head_is_well_and_one_that_stopped_is_not() {
    let store = memory().await;
    let nothing = status::look(&store, &SystemClock).await.unwrap_err().to_string();
    assert!(nothing.contains("no Alluvium cluster here"), "{nothing}");
    assert!(Cluster::open(&store).await.is_err());
    assert!(
        store.bulk.head(&store.key(keys::MANIFEST)).await.is_err(),
        "it only looks"
    );
    let log = open(&store).await;
    let topic = create(&log, "t", 3).await;
    append(&log, &topic, "v0").await;
    log.inner.checkpointer.write_checkpoint().await.unwrap();
    copied(&store, &log).await;
    let now = seen(&store, 0).await;
    assert_eq!(now.problems, Vec::<String>::new());
    assert!(now.manifest_copied && now.notes.is_empty(), "{:?}", now.notes);
    assert_eq!((now.topics, now.partitions, now.slots), (1, 3, 1024));
    assert_eq!((now.partitions_min, now.partitions_max), (3, 3));
    let [broker] = &now.brokers[..] else {
        panic!("{:?}", now.brokers)
    };
    assert_eq!((broker.node_id, broker.slots, broker.tip), (1, 1024, 1));
    assert!(broker.controller && broker.head_age_ms.is_some() && broker.checkpoint_age_ms.is_some());
    let later = seen(&store, HEAD_AGE_MS_MAX + 2_000).await;
    assert_eq!(later.problems.len(), 1, "{:?}", later.problems);
    assert!(
        later.problems[0].contains("has not written its head for 6"),
        "{:?}",
        later.problems
    );
}

#[tokio::test]
async fn what_is_damaged_is_named() {
    let store = memory().await;
    let log = open(&store).await;
    log.inner.checkpointer.write_checkpoint().await.unwrap();
    let key = keys::head(log.incarnation());
    let good = bytes(&store, &key).await;
    let head = Head::decode(&good, log.manifest().cluster_id, log.incarnation()).unwrap();
    let named = head.checkpoint.unwrap();
    let checkpoint = keys::checkpoint(log.incarnation(), named.next, named.nonce);
    let problem = async || seen(&store, 0).await.problems.join("; ");
    assert_eq!(problem().await, "");
    put(&store, &key, "{").await;
    assert!(
        problem().await.contains(&format!("{key}: not a valid head")),
        "{}",
        problem().await
    );
    put(&store, &key, good).await;
    let whole = bytes(&store, &checkpoint).await;
    put(
        &store,
        &checkpoint,
        "no checkpoint at all, but long enough for one",
    )
    .await;
    assert!(
        problem()
            .await
            .contains(&format!("{checkpoint}: not an Alluvium")),
        "{}",
        problem().await
    );
    remove(&store, &checkpoint).await;
    assert!(problem().await.contains("is gone, although the head names it"));
    put(&store, &checkpoint, whole).await;
    assert_eq!(problem().await, "");
    put(&store, keys::MANIFEST, "{").await;
    let line = status::look(&store, &SystemClock).await.unwrap_err().to_string();
    assert!(
        line.contains("cluster/manifest.json: not a valid manifest")
            && line.contains("alluvium cluster restore-manifest"),
        "{line}"
    );
}

fn endpoint(host: &str) -> BTreeMap<String, Endpoint> {
    let host = host.to_owned();
    BTreeMap::from([("PLAINTEXT".to_owned(), Endpoint { host, port: 9092 })])
}

/// A manifest of 8 slots with brokers 1, 2, ... as incarnations 1, 2, ... that own so many slots each, in order.
fn shared(slots: &[u32]) -> Manifest {
    let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), slots.iter().sum());
    let run = m.slots[0];
    m.slots.clear();
    let mut first: Slot = 0;
    for (i, count) in slots.iter().enumerate() {
        let owner = m.register(i as i32 + 1, Some("a".into()), endpoint(&format!("b{i}")));
        m.slots.push(crate::manifest::SlotRun {
            first,
            count: *count,
            owner,
            epoch: 1,
            ..run
        });
        first += count;
    }
    m
}

fn judged(m: &Manifest, head_ages_ms: &[Option<i64>]) -> status::Status {
    let heads = head_ages_ms.iter().zip(1u64..);
    let streams = heads.map(|(age, incarnation)| {
        let mut head = Head::new(m.cluster_id, incarnation, Uuid::nil());
        (head.tip, head.floor) = (100, 0);
        let head = age.map(|age| (head, 1_000_000 - age));
        let seen = StreamSeen {
            head,
            ..StreamSeen::default()
        };
        (incarnation, seen)
    });
    status::judge(&Seen {
        store: "memory://".into(),
        manifest: m.clone(),
        manifest_bytes: 1,
        manifest_copied: true,
        streams: streams.collect(),
        now_ms: 1_000_000,
    })
}

#[test]
fn partitions_are_counted_by_owner_and_shares_leave_out_who_drains() {
    let mut m = shared(&[4, 2, 2]);
    let create = Change::CreateTopic {
        name: "t".into(),
        partitions: 16,
        replication_factor: 1,
        configs: BTreeMap::new(),
    };
    m.apply(&create, Uuid::from_u128(9)).unwrap();
    m.set_draining(3, true).unwrap();
    let s = judged(&m, &[Some(1); 3]);
    let shares: Vec<u64> = s.brokers.iter().map(|b| b.partitions).collect();
    assert_eq!(shares, [8, 4, 4]);
    assert_eq!((s.partitions_min, s.partitions_max), (4, 8));
    assert_eq!(
        led_by_broker(&m, 1),
        Led {
            partitions: 8,
            slots: 4
        }
    );
    assert_eq!(led_by_broker(&m, 9), Led::default());
    assert!(s.brokers[2].draining && !s.brokers[0].draining && s.brokers[0].controller);
    assert_eq!(s.brokers[0].unmerged, 100);
    assert_eq!(s.problems, Vec::<String>::new());
    assert_eq!(s.notes, ["broker 3 is draining and still owns 2 slots"]);
}

#[test]
fn moves_are_joined_and_named_by_broker() {
    let mut m = shared(&[4, 4]);
    let run = m.slots[0];
    let part = |first, count, desired| crate::manifest::SlotRun {
        first,
        count,
        desired,
        ..run
    };
    m.slots.splice(
        0..1,
        [
            part(0, 1, None),
            part(1, 1, Some(2)),
            part(2, 1, Some(2)),
            part(3, 1, Some(1)),
        ],
    );
    let slots = SlotRange { first: 1, last: 2 };
    assert_eq!(
        judged(&m, &[Some(1); 2]).moves,
        [MoveStatus {
            slots,
            from: 1,
            to: 2
        }]
    );
}

#[test]
fn slots_of_nobody_and_of_the_dead_are_a_problem() {
    let mut m = shared(&[3, 3, 2]);
    let create = Change::CreateTopic {
        name: "t".into(),
        partitions: 8,
        replication_factor: 1,
        configs: BTreeMap::new(),
    };
    m.apply(&create, Uuid::from_u128(9)).unwrap();
    m.take_over(3, &[(2, 7)]).unwrap();
    // The slots of the first broker, given to nobody.
    m.slots[0].owner = 0;
    let s = judged(&m, &[Some(1), None, Some(1)]);
    assert_eq!(s.slots_without_owner, [SlotRange { first: 0, last: 2 }]);
    assert_eq!(s.partitions_without_owner, 3);
    assert!(
        s.problems[0].starts_with("3 of 8 partitions are led by nobody"),
        "{:?}",
        s.problems
    );
    let [sealed] = &s.linked[..] else {
        panic!("{:?}", s.linked)
    };
    assert_eq!(
        (sealed.node_id, sealed.incarnation, sealed.sealed_at, sealed.slots),
        (2, 2, Some(7), 3)
    );
    assert_eq!(sealed.slot_ranges, [SlotRange { first: 3, last: 5 }]);
    let empty = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 8);
    assert!(judged(&empty, &[]).problems[0].starts_with("no broker is live"));
}

#[test]
fn a_live_stream_that_handed_slots_over_is_listed_with_them() {
    let mut m = shared(&[4, 4]);
    m.set_desired(&[(1, 2), (2, 2)]);
    let released = [(1, 1), (2, 1)].map(|(slot, epoch)| crate::manifest::change::Released {
        slot,
        epoch,
        bound: 9,
    });
    m.move_slots(1, &released).unwrap();
    let s = judged(&m, &[Some(1); 2]);
    let [linked] = &s.linked[..] else {
        panic!("{:?}", s.linked)
    };
    assert_eq!((linked.node_id, linked.sealed_at, linked.slots), (1, None, 2));
    assert_eq!(linked.slot_ranges, [SlotRange { first: 1, last: 2 }]);
    assert_eq!(s.moves, []);
}

#[test]
fn a_stream_without_a_head_is_a_problem_once_it_owns_slots() {
    let mut m = shared(&[8]);
    m.register(2, None, endpoint("127.0.0.1"));
    m.register(2, None, endpoint("b2"));
    let s = judged(&m, &[None, None, Some(1)]);
    assert_eq!(s.problems.len(), 1, "{:?}", s.problems);
    assert!(s.problems[0].contains("owns 8 slots and has no head"));
    let notes = s.notes.join("; ");
    assert!(
        notes.contains("broker 2 (incarnation 2) has no head yet")
            && notes.contains("two live brokers have node.id 2: the newer one (incarnation 3)")
            && notes.contains("a loopback address is advertised by 2:"),
        "{notes}"
    );
}

#[test]
fn a_mark_without_a_broker_and_a_low_level_are_noted() {
    let mut m = shared(&[4, 4]);
    m.draining.insert(9);
    m.feature_level = 1;
    let notes = judged(&m, &[Some(1); 2]).notes.join("; ");
    assert!(
        notes.contains("node.id 9 is marked as draining")
            && notes.contains("the feature level is 1")
            && notes.contains("every live broker is new enough"),
        "{notes}"
    );
    m.known_levels.remove(&2);
    let status = judged(&m, &[Some(1); 2]);
    let known: Vec<u32> = status.brokers.iter().map(|b| b.known_level).collect();
    assert_eq!(known, [FEATURE_LEVEL, 2]);
    let notes = status.notes.join("; ");
    assert!(notes.contains("new enough; broker 2 knows 1 to 2"), "{notes}");
}

#[tokio::test]
async fn an_operators_change_is_durable_with_its_copy_and_made_once() {
    let store = memory().await;
    let m = shared(&[4, 4]);
    put(&store, keys::MANIFEST, m.encode()).await;
    let cluster = Cluster::open(&store).await.unwrap();
    let drain = |m: &mut Manifest| m.set_draining(2, true);
    assert!(cluster.change(drain).await.unwrap());
    assert!(!cluster.change(drain).await.unwrap());
    let now = Manifest::decode(&bytes(&store, keys::MANIFEST).await).unwrap();
    assert_eq!(now.version, m.version + 1);
    assert!(now.draining.contains(&2));
    assert_eq!(
        bytes(&store, &keys::manifest_copy(now.version)).await,
        now.encode()
    );
    assert!(
        now.last_commits.is_empty(),
        "no broker stands behind an operator's change"
    );
    let refused = cluster.change(|m| m.set_draining(7, true)).await.unwrap_err();
    assert_eq!(
        refused,
        ClusterError::Refused("no live broker has node.id 7; the live ones are 1, 2".into())
    );
    // Another writer was faster.
    let mut other = now.clone();
    other.register(3, None, BTreeMap::new());
    other.stamp(None, Uuid::from_u128(77));
    put(&store, keys::MANIFEST, other.encode()).await;
    assert!(cluster.change(|m| m.set_draining(3, true)).await.unwrap());
    assert_eq!(cluster.refresh().await.unwrap().version, other.version + 1);
}

async fn planned(store: &Store, version: Option<u64>, force: bool) -> Result<restore::Plan, String> {
    let found = restore::find(store).await.map_err(|e| e.to_string())?;
    let plan = restore::plan(store, &found, version, force).await;
    plan.map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_damaged_manifest_is_restored_and_nothing_is_lost() {
    let store = memory().await;
    let log = open(&store).await;
    let topic = create(&log, "t", 1).await;
    for value in ["v0", "v1"] {
        append(&log, &topic, value).await;
    }
    copied(&store, &log).await;
    log.close().await.unwrap();
    let whole = planned(&store, None, false).await.unwrap_err();
    assert!(whole.contains("the manifest is whole"), "{whole}");
    let last = Manifest::decode(&bytes(&store, keys::MANIFEST).await).unwrap();
    put(&store, keys::MANIFEST, "{\"format\"").await;
    let refused = opened(&store).await.unwrap_err().to_string();
    assert!(refused.contains("alluvium cluster restore-manifest"), "{refused}");
    let plan = planned(&store, None, false).await.unwrap();
    assert!(matches!(plan.present, Present::Damaged(_)));
    assert_eq!((plan.copy.version, plan.lost_versions()), (last.version, None));
    let version = restore::restore(&store, &plan).await.unwrap();
    assert!(version > last.version);
    let now = Manifest::decode(&bytes(&store, keys::MANIFEST).await).unwrap();
    assert_eq!(now.version, version);
    assert_ne!(now.commit_id, last.commit_id);
    assert_eq!(now.restored.as_ref().unwrap().from_version, last.version);
    assert!(now.next_incarnation > log.incarnation() + 1);
    assert_eq!(bytes(&store, &keys::manifest_copy(version)).await, now.encode());
    let kept = keys::replaced_manifest(now.commit_id);
    assert_eq!(bytes(&store, &kept).await, "{\"format\"");
    // Made from what was looked at, and not a second time.
    let again = restore::restore(&store, &plan).await.unwrap_err().to_string();
    assert!(again.contains("changed meanwhile"), "{again}");
    let log = open(&store).await;
    assert!(log.incarnation() >= now.next_incarnation);
    assert_eq!(end(&log, &topic), 2);
    assert_eq!(append(&log, &topic, "v2").await, 2);
}

#[tokio::test]
async fn a_lost_manifest_is_not_taken_for_a_new_cluster() {
    let store = memory().await;
    let log = open(&store).await;
    let topic = create(&log, "t", 1).await;
    append(&log, &topic, "v0").await;
    copied(&store, &log).await;
    log.close().await.unwrap();
    remove(&store, keys::MANIFEST).await;
    let refused = opened(&store).await.unwrap_err().to_string();
    assert!(
        refused.contains("cluster/manifest.json is gone") && refused.contains("restore-manifest"),
        "{refused}"
    );
    let plan = planned(&store, None, false).await.unwrap();
    assert_eq!(plan.present, Present::Missing);
    // Somebody creates one meanwhile.
    let mut other = plan;
    put(&store, keys::MANIFEST, "x").await;
    assert!(restore::restore(&store, &other).await.is_err());
    remove(&store, keys::MANIFEST).await;
    other = planned(&store, None, false).await.unwrap();
    restore::restore(&store, &other).await.unwrap();
    assert_eq!(end(&open(&store).await, &topic), 1);
}

#[tokio::test]
async fn an_older_copy_says_what_is_lost() {
    let store = memory().await;
    let log = open(&store).await;
    create(&log, "early", 1).await;
    copied(&store, &log).await;
    let early = log.manifest().version;
    create(&log, "late", 1).await;
    copied(&store, &log).await;
    let late = log.manifest().version;
    log.inner.checkpointer.write_checkpoint().await.unwrap();
    put(&store, keys::MANIFEST, "x").await;
    put(&store, &keys::manifest_copy(late), "y").await;
    // A stream that only lost versions knew.
    let stranger = log.incarnation() + 5;
    put(&store, &keys::segment(stranger, 0), "z").await;
    let plan = planned(&store, None, false).await.unwrap();
    assert_eq!((plan.copy.version, plan.newest_known), (early, late));
    assert_eq!(plan.lost_versions(), Some(early + 1..=late));
    assert_eq!(plan.unreadable.len(), 1);
    assert_eq!(plan.unknown_streams, [stranger]);
    assert!(plan.restored.next_incarnation > stranger);
    assert!(plan.copy.topics.contains_key("early") && !plan.copy.topics.contains_key("late"));
    let version = restore::restore(&store, &plan).await.unwrap();
    assert!(version > late, "no broker has applied it before");
    let kept = |m: &Manifest| m.restored.as_ref().unwrap().unknown_streams.clone();
    let now = Manifest::decode(&bytes(&store, keys::MANIFEST).await).unwrap();
    assert_eq!(kept(&now).into_iter().collect::<Vec<_>>(), [stranger]);
    // By number, over a whole one.
    assert!(planned(&store, Some(early), false).await.is_err());
    let forced = planned(&store, Some(early), true).await.unwrap();
    assert_eq!((forced.copy.version, forced.newest_known), (early, version));
    let gone = planned(&store, Some(999), true).await.unwrap_err();
    assert!(gone.contains("there is no such copy"), "{gone}");
    let bad = planned(&store, Some(late), true).await.unwrap_err();
    assert!(bad.contains("not a valid manifest"), "{bad}");
}

#[tokio::test]
async fn without_a_readable_copy_nothing_is_restored() {
    let store = memory().await;
    let none = planned(&store, None, false).await.unwrap_err();
    assert!(none.contains("there is no copy of a manifest"), "{none}");
    put(&store, &keys::manifest_copy(3), "x").await;
    let bad = planned(&store, None, false).await.unwrap_err();
    assert!(bad.contains("none of the 1 copies"), "{bad}");
    let mut newer = serde_json::to_value(shared(&[4])).unwrap();
    newer["feature_level"] = 99.into();
    put(&store, keys::MANIFEST, newer.to_string()).await;
    let newer = planned(&store, None, true).await.unwrap_err();
    assert!(newer.contains("nothing is restored over it"), "{newer}");
    // A copy under another number is not that copy.
    put(&store, keys::MANIFEST, "x").await;
    put(&store, &keys::manifest_copy(4), shared(&[4]).encode()).await;
    let wrong = planned(&store, Some(4), false).await.unwrap_err();
    assert!(wrong.contains("it holds version 1"), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_runs_is_found_by_its_head() {
    let store = memory().await;
    let log = open(&store).await;
    copied(&store, &log).await;
    log.inner.checkpointer.write_checkpoint().await.unwrap();
    put(&store, keys::MANIFEST, "x").await;
    let plan = planned(&store, None, false).await.unwrap();
    assert_eq!(plan.watched(), 1);
    let running = restore::watch(&store, &plan, restore::WATCH)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        running.contains("a broker is running (broker 1, incarnation 1")
            && running.contains("stop all brokers"),
        "{running}"
    );
    // Stopped without a word: it is the silence that counts.
    let tasks = std::mem::take(&mut *log.inner.background.lock());
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let plan = planned(&store, None, false).await.unwrap();
    let began = tokio::time::Instant::now();
    restore::watch(&store, &plan, restore::WATCH).await.unwrap();
    assert!(began.elapsed() >= restore::WATCH);
}

/// The same bucket, whose conditional writes are never answered in time, and never applied.
fn deaf(store: &Store) -> Store {
    let config = object_store::throttle::ThrottleConfig {
        wait_put_per_call: Duration::from_secs(3_600),
        ..Default::default()
    };
    let slow = object_store::throttle::ThrottledStore::new(store.bulk.clone(), config);
    Store::from_parts(
        store.bulk.clone(),
        Arc::new(slow),
        store.prefix.clone(),
        store.display.clone(),
        store.kind,
        StoreOptions::default(),
    )
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_told_as_unknown() {
    let store = memory().await;
    put(&store, keys::MANIFEST, shared(&[4, 4]).encode()).await;
    let deaf = deaf(&store);
    let cluster = Cluster::open(&deaf).await.unwrap();
    let marked = cluster.change(|m| m.set_draining(1, true)).await;
    assert!(matches!(marked, Err(ClusterError::Unknown(_))), "{marked:?}");
    put(&store, &keys::manifest_copy(1), shared(&[4, 4]).encode()).await;
    // What stands there could not be kept: then nothing was tried.
    put(&store, keys::MANIFEST, "x").await;
    let plan = planned(&deaf, None, false).await.unwrap();
    let kept = restore::restore(&deaf, &plan).await;
    assert!(
        matches!(&kept, Err(ClusterError::Refused(why)) if why.contains("nothing was restored")),
        "{kept:?}"
    );
    remove(&store, keys::MANIFEST).await;
    let plan = planned(&deaf, None, false).await.unwrap();
    let restored = restore::restore(&deaf, &plan).await;
    assert!(matches!(restored, Err(ClusterError::Unknown(_))), "{restored:?}");
}
