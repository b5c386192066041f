//! Several open logs on one bucket: what happens to a slot, a name and a start when the others move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::meddling::{Hand, Verb, meddled};
use super::*;
use crate::entry::{Entry, Level};
use crate::format::segment::decode_index;
use crate::format::{IndexOrMore, ObjectKind, checkpoint, index_of};
use crate::head::Head;
use crate::keys::{InStream, parse_in_stream};
use crate::manifest::{Manifest, StreamEntry};
use crate::membership::{MembershipOptions, Peers, PingError, Pong};
use crate::recover::Source;
use crate::start::SourceRead;

const HOUR: Duration = Duration::from_secs(3600);

/// A bucket that several brokers share, by the way of one of them.
pub(crate) fn shared() -> Store {
    meddled(&Arc::default(), StoreKind::S3).0
}

/// A broker that merges and deletes only when a test says so.
pub(crate) async fn join(store: &Store, node_id: i32) -> Log {
    try_join(store, node_id).await.unwrap()
}

/// As which it joins.
pub(crate) fn member(node_id: i32) -> LogOptions {
    let mut options = LogOptions::for_store(StoreKind::S3);
    options.node_id = Some(node_id);
    options.merge.interval = 1_000 * HOUR;
    options.delete_delay = 1_000 * HOUR;
    options
}

async fn try_join(store: &Store, node_id: i32) -> Result<Log, OpenError> {
    let options = member(node_id);
    let mut registry = Registry::default();
    Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry).await
}

/// Long enough for polls of the manifest and what follows from them.
pub(crate) async fn a_while() {
    tokio::time::sleep(Duration::from_secs(10)).await;
}

pub(crate) fn slot_of(log: &Log, topic: TopicId, partition: i32) -> Slot {
    log.manifest().slot_of(&TopicPartition { topic, partition })
}

/// Asks for a slot to be given to a broker, as the controller does.
async fn wish(by: &Log, slot: Slot, to: &Log) {
    let to = to.incarnation();
    by.inner.desire(vec![(slot, to)]).await.unwrap();
}

// ---- a stop and a start

/// Checkpoints of one position can differ: a slot has come in between, say. If the older one were named last, the slot
/// would be covered by nothing, and links of it may be gone by then.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_under_way_at_a_stop_is_not_named_after_the_newer_one() {
    let bucket = Arc::<InMemory>::default();
    let a = join(&meddled(&bucket, StoreKind::S3).0, 1).await;
    let id = topic(&a, "t", 2).await;
    let slots = [0, 1].map(|partition| slot_of(&a, id, partition));
    for partition in [0, 1] {
        append(&a, &a.partition(&id, partition).unwrap(), &["v0", "v1"]).await;
    }
    let (slow, hand) = meddled(&bucket, StoreKind::S3);
    let b = join(&slow, 2).await;
    a_while().await;
    wish(&a, slots[0], &b).await;
    a_while().await;
    assert!(b.partition(&id, 0).is_some());

    // One checkpoint is held up, and no other.
    let first = Mutex::new(None);
    hand.hold(move |verb, key| {
        let meant = verb == Verb::Put && matches!(parse_in_stream(key), Some((2, InStream::Checkpoint(_))));
        meant && first.lock().get_or_insert_with(|| key.to_owned()) == key
    });
    let checkpointer = b.inner.checkpointer.clone();
    let under_way = tokio::spawn(async move { checkpointer.write_checkpoint().await });
    hand.holds().await;
    wish(&a, slots[1], &b).await;
    a_while().await;
    assert!(b.partition(&id, 1).is_some());
    let closing = {
        let b = b.clone();
        tokio::spawn(async move { b.close().await })
    };
    // Less than a stop waits for its checkpoint.
    tokio::time::sleep(Duration::from_secs(1)).await;
    hand.let_go();
    under_way.await.unwrap().unwrap();
    closing.await.unwrap().unwrap();

    let durable = b.inner.checkpointer.durable().borrow().clone();
    let covered: BTreeSet<Slot> = durable.covered.iter().map(|c| c.slot).collect();
    assert_eq!(covered, BTreeSet::from(slots), "as this broker takes it");
    let read = async |key: &str| {
        let got = slow.bulk.get(&slow.key(key)).await;
        got.unwrap().bytes().await.unwrap()
    };
    let cluster = a.manifest().cluster_id;
    let head = Head::decode(&read(&keys::head(2)).await, cluster, 2).unwrap();
    let named = head.checkpoint.unwrap();
    let named = read(&keys::checkpoint(2, named.next, named.nonce)).await;
    let named = checkpoint::decode(&named, Some(cluster)).unwrap();
    let covered: BTreeSet<Slot> = named.slots.keys().copied().collect();
    assert_eq!(covered, BTreeSet::from(slots), "as the head has it");
    a_while().await;
    for partition in [0, 1] {
        let p = a.partition(&id, partition).unwrap();
        assert_eq!(contents(&a, &p, 0).await, expected(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_taken_over_while_it_recovers_ends_with_the_reason() {
    let bucket = Arc::<InMemory>::default();
    let way = || meddled(&bucket, StoreKind::S3);
    let a = join(&way().0, 1).await;
    let id = topic(&a, "t", 1).await;
    append(&a, &a.partition(&id, 0).unwrap(), &["v0"]).await;
    // The first broker dies, its heir too before a checkpoint of it covers anything, and what is started then must read
    // the first one's stream. It gets no answer.
    let b = join(&way().0, 2).await;
    b.inner.take_over(1, "it is dead").await.unwrap();
    let (slow, hand) = way();
    hand.hold(|verb, key| {
        verb == Verb::Get && matches!(parse_in_stream(key), Some((1, InStream::Segment(_))))
    });
    let starting = tokio::spawn(async move { try_join(&slow, 2).await });
    hand.holds().await;
    let c = join(&way().0, 3).await;
    let starts = c.manifest();
    let starts = starts.live().filter(|(_, s)| s.node_id == 2).map(|(i, _)| i);
    let [victim]: [Incarnation; 1] = starts.collect::<Vec<_>>().try_into().unwrap();
    c.inner.take_over(victim, "it does nothing").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), starting).await;
    let why = ended.expect("the start hangs").unwrap().unwrap_err().to_string();
    assert!(why.contains("stream 3 has ended"), "{why}");
    a_while().await;
    let p = c.partition(&id, 0).unwrap();
    assert_eq!(contents(&c, &p, 0).await, expected(1));
}

// ---- a store that does not answer

/// The answer to one write of the manifest is lost. Reads need the manifest too, and must not wait behind it.
#[tokio::test(start_paused = true)]
async fn a_change_that_hangs_takes_no_lease_away() {
    let (way, hand) = meddled(&Arc::default(), StoreKind::S3);
    let log = join(&way, 1).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    append(&log, &p, &["v0"]).await;
    hand.hold(|verb, key| verb == Verb::Put && key == keys::MANIFEST);
    let changing = {
        let log = log.clone();
        tokio::spawn(async move { topic(&log, "u", 1).await })
    };
    hand.holds().await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(log.leased());
    }
    let confirmed = tokio::time::timeout(Duration::from_millis(5), log.confirm_leadership());
    assert_eq!(confirmed.await, Ok(Ok(())));
    assert_eq!(contents(&log, &p, 0).await, expected(1));
    assert!(!changing.is_finished());
    hand.let_go();
    let made = changing.await.unwrap();
    assert!(log.partition(&made, 0).is_some());
}

/// Counts how often the manifest is asked for from now on.
fn count_looks(hand: &Hand) -> Arc<AtomicU64> {
    let looks = Arc::<AtomicU64>::default();
    let counted = looks.clone();
    hand.hold(move |verb, key| {
        if verb == Verb::Get && key == keys::MANIFEST {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        false
    });
    looks
}

#[tokio::test(start_paused = true)]
async fn who_can_wait_for_a_proof_of_ownership_asks_the_store_for_nothing() {
    let bucket = Arc::<InMemory>::default();
    let (way, hand) = meddled(&bucket, StoreKind::S3);
    let log = join(&way, 1).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    a_while().await;
    let looks = count_looks(&hand);
    let began = Instant::now();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(70)).await;
        let asked = Instant::now();
        assert_eq!(log.await_leadership().await, Ok(()));
        assert!(asked.elapsed() <= Duration::from_millis(1_100));
    }
    let polls = began.elapsed().as_secs();
    assert!((polls..=polls + 1).contains(&looks.load(Ordering::Relaxed)));
    // A segment that is published proves it too, and sooner.
    tokio::time::sleep(Duration::from_millis(70)).await;
    let (before, asked) = (looks.load(Ordering::Relaxed), Instant::now());
    let writing = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        append(&log, &p, &["v0"]).await
    };
    let (proven, _) = tokio::join!(log.await_leadership(), writing);
    assert_eq!(proven, Ok(()));
    assert!(asked.elapsed() < Duration::from_millis(100));
    assert_eq!(looks.load(Ordering::Relaxed), before);

    // Nothing proves it by itself: only then it is looked.
    let lost = Arc::<AtomicU64>::default();
    let counted = lost.clone();
    hand.hold(move |verb, key| {
        let look = verb == Verb::Get && key == keys::MANIFEST;
        // The poll's answer is lost, and what comes when it was given up is answered.
        look && counted.fetch_add(1, Ordering::Relaxed) == 0
    });
    let asked = Instant::now();
    assert_eq!(log.await_leadership().await, Ok(()));
    let took = asked.elapsed();
    assert!(
        (Duration::from_millis(1_200)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    hand.let_go();

    // Who has lost the stream hears of it as soon as anybody does.
    let b = join(&meddled(&bucket, StoreKind::S3).0, 2).await;
    let waiting = {
        let log = log.clone();
        tokio::spawn(async move { log.await_leadership().await })
    };
    b.inner.take_over(1, "it is dead").await.unwrap();
    assert_eq!(waiting.await.unwrap(), Err(ReadError::NotLeader));
}

// ---- a slot that moves

/// Appends `w0`, `w1`, … wherever the partition is led, until told to stop; returns what was acknowledged.
async fn write(logs: [Log; 2], tp: TopicPartition, stop: watch::Receiver<bool>) -> Vec<(i64, String)> {
    let mut acked = vec![];
    for number in 0.. {
        if *stop.borrow() {
            break;
        }
        let value = format!("w{number}");
        for log in &logs {
            let Some(p) = log.partition(&tp.topic, tp.partition) else {
                continue;
            };
            if let Ok(pending) = log.append(&p, batch(&[&value], None), false)
                && let Ok(appended) = pending.published().await
            {
                acked.push((appended.base_offset, value.clone()));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    acked
}

/// Lets a broker release a slot in favour of `to`, and stops its change of the manifest: before anything is done, or
/// before it hears of it.
pub(crate) async fn halfway(slot: Slot, hand: &Hand, stopped: Verb, to: &Log) {
    hand.hold(move |verb, key| verb == stopped && key == keys::MANIFEST);
    let heir = to.incarnation();
    let wished = |m: &mut Manifest| {
        m.set_desired(&[(slot, heir)]);
        Ok::<_, std::convert::Infallible>(((), Some(heir)))
    };
    to.inner.keeper.change(wished).await.unwrap();
    hand.holds().await;
}

/// Whether a log says that it does not lead a partition, to writers and to readers.
async fn disowns(log: &Log, p: &Arc<Partition>) -> bool {
    let appended = log.append(p, batch(&["lost"], None), false);
    let read = log.read(p, 0, 99, Isolation::ReadUncommitted).await;
    matches!(appended, Err(AppendError::NotLeader)) && matches!(read, Err(ReadError::NotLeader))
}

#[tokio::test(start_paused = true)]
async fn a_slot_goes_to_another_broker_and_comes_back() {
    let bucket = Arc::<InMemory>::default();
    let (way_of_a, hand) = meddled(&bucket, StoreKind::S3);
    let a = join(&way_of_a, 1).await;
    let b = join(&meddled(&bucket, StoreKind::S3).0, 2).await;
    let id = topic(&a, "t", 1).await;
    a_while().await;
    let (tp, slot) = (
        TopicPartition {
            topic: id,
            partition: 0,
        },
        slot_of(&a, id, 0),
    );
    let first = a.partition(&id, 0).unwrap();
    let sequenced = async |log: &Log, p: &Arc<Partition>, value: &str, sequence| {
        let pending = log.append(p, batch(&[value], Some((77, sequence))), false);
        pending.unwrap().published().await.unwrap().base_offset
    };
    let place_of_s0 = sequenced(&a, &first, "s0", 0).await;
    let (stop, stopping) = watch::channel(false);
    let writing = tokio::spawn(write([a.clone(), b.clone()], tp, stopping));
    tokio::time::sleep(Duration::from_secs(1)).await;

    // The release is in the stream, and the manifest does not say so yet: nobody leads.
    halfway(slot, &hand, Verb::Put, &b).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(b.manifest().leader(&id, 0).unwrap().incarnation, 1);
    assert!(disowns(&a, &first).await && b.partition(&id, 0).is_none());
    hand.let_go();
    a_while().await;

    // What the new owner goes on from is in the segment before the link's bound.
    let links = b.manifest().links(slot);
    let [link] = links[..] else {
        panic!("{links:?}");
    };
    assert_eq!((link.stream, link.epoch, link.released), (1, 1, true));
    let (stream, bound) = (link.stream, link.bound);
    let release = b.inner.reader().source(Source::Release { stream, bound }).await;
    let Ok(SourceRead::Release(_, released)) = release else {
        panic!("no release");
    };
    let image = &released[&slot].partitions[0];
    assert_eq!(image.0, tp);
    assert!(disowns(&a, &first).await && a.partition(&id, 0).is_none());
    let second = b.partition(&id, 0).unwrap();
    assert_eq!(second.leader_epoch(), 2);
    let (epoch_1, end_1) = second.end_offset_for_epoch(1);
    assert_eq!((epoch_1, end_1), (1, image.1.state.end));
    // A retry finds what its producer wrote at the old owner.
    assert_eq!(sequenced(&b, &second, "s0", 0).await, place_of_s0);
    let place_of_s1 = sequenced(&b, &second, "s1", 1).await;
    assert!(place_of_s1 >= end_1);

    wish(&a, slot, &a).await;
    a_while().await;
    assert!(disowns(&b, &second).await && b.partition(&id, 0).is_none());
    assert!(disowns(&a, &first).await, "a handle of an earlier epoch");
    let third = a.partition(&id, 0).unwrap();
    assert_eq!(third.leader_epoch(), 3);
    assert_eq!(sequenced(&a, &third, "s1", 1).await, place_of_s1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.send_replace(true);
    let mut written = writing.await.unwrap();
    written.push((place_of_s0, "s0".into()));
    written.push((place_of_s1, "s1".into()));
    written.sort_unstable();
    assert!(written.len() > 100, "{}", written.len());
    assert_eq!(contents(&a, &third, 0).await, written);
    // And from nothing but the bucket.
    let a = join(&meddled(&bucket, StoreKind::S3).0, 1).await;
    a_while().await;
    assert_eq!(contents(&a, &a.partition(&id, 0).unwrap(), 0).await, written);
}

// ---- a name that is used again

/// The network between brokers of this process.
#[derive(Default)]
struct Wire {
    logs: Mutex<BTreeMap<Incarnation, Log>>,
    /// It is cut.
    cut: AtomicBool,
}

impl Wire {
    fn connect(self: &Arc<Wire>, log: &Log) {
        self.logs.lock().insert(log.incarnation(), log.clone());
        log.watch_peers(
            self.clone(),
            MembershipOptions::default(),
            &mut Registry::default(),
        );
    }

    /// The process is gone, and its machine says so.
    fn disconnect(&self, log: &Log) {
        self.logs.lock().remove(&log.incarnation());
    }
}

impl Peers for Wire {
    fn ping(
        &self,
        _: &StreamEntry,
        incarnation: Incarnation,
        newest: u64,
    ) -> BoxFuture<'static, Result<Pong, PingError>> {
        let peer = self.logs.lock().get(&incarnation).cloned();
        let cut = self.cut.load(Ordering::Relaxed);
        async move {
            if cut {
                return Err(PingError::NoAnswer);
            }
            let peer = peer.ok_or(PingError::Refused)?;
            let manifest_version = peer.applied_manifest_version();
            if newest > manifest_version {
                tokio::spawn(async move { peer.refresh().await });
            }
            Ok(Pong {
                incarnation,
                manifest_version,
                draining: false,
            })
        }
        .boxed()
    }
}

/// Two brokers that share the partitions of a topic, with a record in each of them.
struct Pair {
    wire: Arc<Wire>,
    a: Log,
    b: Log,
    /// In what the second broker asks of the bucket.
    hand: Arc<Hand>,
    bucket: Arc<InMemory>,
    old: TopicId,
}

const PARTITIONS: i32 = 6;

impl Pair {
    async fn new() -> Pair {
        let (wire, bucket) = (Arc::<Wire>::default(), Arc::<InMemory>::default());
        let a = join(&meddled(&bucket, StoreKind::S3).0, 1).await;
        let (way_of_b, hand) = meddled(&bucket, StoreKind::S3);
        let b = join(&way_of_b, 2).await;
        wire.connect(&a);
        wire.connect(&b);
        let old = topic(&a, "t", PARTITIONS as u32).await;
        let pair = Pair {
            wire,
            a,
            b,
            hand,
            bucket,
            old,
        };
        pair.shared_out().await;
        assert!(!pair.b.partitions().is_empty());
        pair.append_everywhere(&old, "old").await;
        pair
    }

    /// Until the controller has given everybody a share, and all of it is led.
    async fn shared_out(&self) {
        loop {
            a_while().await;
            let under_way = self.a.manifest().slots.iter().any(|run| run.desired.is_some());
            let led = self.a.partitions().len() + self.b.partitions().len();
            if !under_way && led == PARTITIONS as usize {
                return;
            }
        }
    }

    async fn append_everywhere(&self, topic: &TopicId, value: &str) {
        for partition in 0..PARTITIONS {
            let (log, p) = self.leader(topic, partition);
            append(log, &p, &[value]).await;
        }
    }

    fn leader(&self, topic: &TopicId, partition: i32) -> (&Log, Arc<Partition>) {
        let led = |log: &Log| log.partition(topic, partition);
        match (led(&self.a), led(&self.b)) {
            (Some(p), None) => (&self.a, p),
            (None, Some(p)) => (&self.b, p),
            both => panic!("{both:?}"),
        }
    }

    /// The second broker gets no manifest, and the first one deletes the topic and wants its name for another one.
    async fn delete_unheard(&self) -> tokio::task::JoinHandle<TopicId> {
        self.hand
            .hold(|verb, key| verb == Verb::Get && key == keys::MANIFEST);
        let delete = Change::DeleteTopic { id: self.old };
        self.a.change(vec![delete]).await.remove(0).unwrap();
        let a = self.a.clone();
        tokio::spawn(async move { topic(&a, "t", PARTITIONS as u32).await })
    }

    /// Whoever leads the partitions of the new topic, they hold what was appended to them, and nothing else.
    async fn assert_only_new(&self, new: &TopicId) {
        for partition in 0..PARTITIONS {
            let (log, p) = self.leader(new, partition);
            assert_eq!(contents(log, &p, 0).await, [(0, "new".to_owned())]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_is_free_when_every_live_broker_has_applied_the_deletion() {
    let pair = Pair::new().await;
    let of_b = pair.b.partitions().remove(0);
    let creating = pair.delete_unheard().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It does not know yet, and takes records for the old topic: nobody must find them in the new one.
    assert_eq!(append(&pair.b, &of_b, &["late"]).await, 1);
    assert!(pair.b.manifest().topic_by_id(&pair.old).is_some());
    assert!(!creating.is_finished(), "the name was free too early");

    pair.hand.let_go();
    let new = creating.await.unwrap();
    assert_ne!(new, pair.old);
    assert!(pair.b.manifest().topic_by_id(&pair.old).is_none());
    let refused = pair.b.append(&of_b, batch(&["later"], None), false);
    assert!(
        matches!(refused, Err(AppendError::UnknownPartition)),
        "{refused:?}"
    );
    pair.shared_out().await;
    pair.append_everywhere(&new, "new").await;
    pair.assert_only_new(&new).await;

    // Old and new records are in the same segments; a restart tells them apart.
    let Pair {
        wire, bucket, old, ..
    } = pair;
    let (a, b) = (
        join(&meddled(&bucket, StoreKind::S3).0, 1).await,
        join(&meddled(&bucket, StoreKind::S3).0, 2).await,
    );
    a_while().await;
    let hand = Arc::default();
    let again = Pair {
        wire,
        a,
        b,
        hand,
        bucket,
        old,
    };
    again.assert_only_new(&new).await;
    assert!(again.a.partition(&old, 0).is_none() && again.b.partition(&old, 0).is_none());
}

/// Both reach the bucket, and only what they write there tells one of the other.
#[tokio::test(start_paused = true)]
async fn a_name_is_free_though_a_broker_that_lives_is_not_heard() {
    let (wire, bucket) = (Arc::<Wire>::default(), Arc::<InMemory>::default());
    let (way_of_a, hand_of_a) = meddled(&bucket, StoreKind::S3);
    let (way_of_b, hand_of_b) = meddled(&bucket, StoreKind::S3);
    let (a, b) = (join(&way_of_a, 1).await, join(&way_of_b, 2).await);
    wire.connect(&a);
    wire.connect(&b);
    let old = topic(&a, "t", 1).await;
    a_while().await;
    wire.cut.store(true, Ordering::Relaxed);
    hand_of_b.hold(|verb, key| verb == Verb::Get && key == keys::MANIFEST);
    a.change(vec![Change::DeleteTopic { id: old }])
        .await
        .remove(0)
        .unwrap();
    let looks = count_looks(&hand_of_a);
    let began = Instant::now();
    let creating = {
        let a = a.clone();
        tokio::spawn(async move { topic(&a, "t", 1).await })
    };
    // Its heads go on and say that it does not know.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(!creating.is_finished(), "the name was free too early");
    hand_of_b.let_go();
    let new = creating.await.unwrap();
    assert!(b.manifest().topic_by_id(&old).is_none());
    // A head comes every ten seconds.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25 + 13), "{took:?}");
    assert!(a.manifest().is_live(b.incarnation()) && b.manifest().is_live(a.incarnation()));
    // One look for each refusal, and the poll.
    let looks = looks.load(Ordering::Relaxed);
    assert!(looks <= took.as_secs() + 3, "{looks} looks in {took:?}");
    a_while().await;
    let led = [&a, &b]
        .into_iter()
        .filter(|log| log.partition(&new, 0).is_some());
    assert_eq!(led.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_free_when_who_never_heard_of_the_deletion_is_sealed() {
    let pair = Pair::new().await;
    let of_b = pair.b.partitions().remove(0);
    let creating = pair.delete_unheard().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!creating.is_finished(), "the name was free too early");
    pair.wire.disconnect(&pair.b);
    let new = creating.await.unwrap();
    assert!(!pair.a.manifest().is_live(pair.b.incarnation()));
    // It runs on all the same, has heard nothing, and gets nothing acknowledged.
    assert!(pair.b.manifest().topic_by_id(&pair.old).is_some());
    let pending = pair.b.append(&of_b, batch(&["late"], None), false).unwrap();
    assert_eq!(pending.published().await, Err(AppendError::NotLeader));
    a_while().await;
    for partition in 0..PARTITIONS {
        let p = pair.a.partition(&new, partition).unwrap();
        append(&pair.a, &p, &["new"]).await;
        assert_eq!(contents(&pair.a, &p, 0).await, [(0, "new".to_owned())]);
    }
}

// ---- a bucket that older builds may still use

/// What every segment and checkpoint of the bucket holds: kinds of entries, and where ranges stand.
async fn written(store: &Store) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let (mut entries, mut places) = (BTreeSet::new(), BTreeSet::new());
    let all = store.bulk.list(None).map(|o| o.unwrap().location);
    let all: Vec<_> = all.collect().await;
    for key in all {
        let bytes = store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
        match parse_in_stream(key.as_ref()) {
            Some((_, InStream::Segment(_))) => {
                let IndexOrMore::Index(index) = index_of(&bytes, ObjectKind::Segment).unwrap() else {
                    panic!("{key}");
                };
                let index = decode_index(index).unwrap();
                entries.extend(index.entries.iter().map(|e| match e {
                    Entry::Batches(_) => "batches",
                    Entry::LogStart { .. } => "log start",
                    Entry::Release { .. } => "release",
                    Entry::Merged(_) => "merged",
                    Entry::Compacted(_) => "compacted",
                    Entry::Archived(_) => "archived",
                }));
            }
            Some((_, InStream::Checkpoint(_))) => {
                let checkpoint = checkpoint::decode(&bytes, None).unwrap();
                let partitions = checkpoint.slots.values().flat_map(|slot| &slot.partitions);
                let ranges = partitions.flat_map(|(_, image)| &image.ranges);
                places.extend(ranges.map(|range| match range.place.level {
                    Level::L0 => "segment",
                    Level::L1 => "merged object",
                    Level::L2 => "file of history",
                }));
            }
            _ => assert!(!key.as_ref().starts_with("merged/"), "{key}"),
        }
    }
    (entries, places)
}

#[tokio::test(start_paused = true)]
async fn at_feature_level_1_all_goes_on_and_nothing_newer_is_written() {
    let store = shared();
    let open = async |node_id| {
        // As brokers run, with merges and deletions.
        let mut options = LogOptions::for_store(StoreKind::S3);
        options.node_id = Some(node_id);
        let mut registry = Registry::default();
        Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry)
            .await
            .unwrap()
    };
    let a = open(1).await;
    let lower = |m: &mut Manifest| {
        m.feature_level = 1;
        Ok::<_, std::convert::Infallible>(((), Some(1)))
    };
    a.inner.keeper.change(lower).await.unwrap();
    let b = open(2).await;
    a_while().await;
    let id = topic(&a, "t", 2).await;
    let [p, q] = [0, 1].map(|partition| a.partition(&id, partition).unwrap());
    for number in 0..3 {
        append(&a, &p, &[&format!("v{number}")]).await;
        append(&a, &q, &[&format!("v{number}")]).await;
        tokio::time::sleep(Duration::from_secs(40)).await;
    }
    assert_eq!(a.advance_log_start(&q, 1).await, Ok(1));
    // A slot that is wanted elsewhere stays: there is no entry for its release.
    wish(&a, slot_of(&a, id, 0), &b).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(contents(&a, &p, 0).await, expected(3));
    assert!(b.partition(&id, 0).is_none());
    // A stop and a takeover need none.
    a.close().await.unwrap();
    a_while().await;
    append(&b, &b.partition(&id, 0).unwrap(), &["v3"]).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    let c = open(3).await;
    c.inner.take_over(2, "it is dead").await.unwrap();
    a_while().await;
    assert_eq!(contents(&c, &c.partition(&id, 0).unwrap(), 0).await, expected(4));
    assert_eq!(
        contents(&c, &c.partition(&id, 1).unwrap(), 1).await,
        expected(3)[1..]
    );
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(c.manifest().feature_level, 1);
    let (entries, places) = written(&store).await;
    assert_eq!(entries, BTreeSet::from(["batches", "log start"]));
    assert_eq!(places, BTreeSet::from(["segment"]));
}
