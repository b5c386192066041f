//! Dangerous moments, each made on purpose: a write is stopped half way, and others go on meanwhile. The table in
//! `tests/simulation/README.md` lists them all, and who else watches them.

use std::collections::BTreeSet;
use std::time::Duration;

use object_store::memory::InMemory;
use tokio::task::JoinHandle;

use super::meddling::{Hand, Verb, meddled};
use super::shared::{a_while, halfway, join, member, slot_of};
use super::*;
use crate::entry::Level;
use crate::keys::{InStream, parse_in_stream};
use crate::merge::MergeError;
use crate::merge::tests::{
    HOUR, checkpoint, cleaner, levels, listed, merger, of_stream, open_with, produce, read_all,
};
use crate::recover::StreamRead;
use crate::start::{Reader, Taker};

/// A broker that owns all slots, and one that has heard of it and owns none.
struct Two {
    bucket: Arc<InMemory>,
    a: Log,
    b: Log,
    /// The hands in what each of them asks of the bucket.
    hand_of_a: Arc<Hand>,
    hand_of_b: Arc<Hand>,
    id: TopicId,
}

impl Two {
    async fn new(partitions: u32) -> Two {
        Two::with(partitions, member(1)).await
    }

    async fn with(partitions: u32, options_of_a: LogOptions) -> Two {
        let bucket = Arc::<InMemory>::default();
        let (way_of_a, hand_of_a) = meddled(&bucket, StoreKind::S3);
        let (way_of_b, hand_of_b) = meddled(&bucket, StoreKind::S3);
        let a = open_with(&way_of_a, options_of_a).await;
        let b = join(&way_of_b, 2).await;
        let id = topic(&a, "t", partitions).await;
        // Without a checkpoint of what it takes over, whoever follows it must read all that it had to read.
        hand_of_b.hold(|verb, key| {
            verb == Verb::Put && matches!(parse_in_stream(key), Some((2, InStream::Checkpoint(_))))
        });
        a_while().await;
        Two {
            bucket,
            a,
            b,
            hand_of_a,
            hand_of_b,
            id,
        }
    }

    /// The bucket, by the way of nobody.
    fn store(&self) -> Store {
        meddled(&self.bucket, StoreKind::S3).0
    }

    /// The second broker dies, and is started again with nothing but the bucket.
    async fn restart_b(&self) -> Log {
        self.hand_of_b.hold(|_, _| true);
        let log = join(&self.store(), 2).await;
        a_while().await;
        log
    }

    async fn take_over(&self) {
        self.b.inner.take_over(1, "it is silent").await.unwrap();
        a_while().await;
    }
}

type Ended = JoinHandle<Result<(Seq, StreamRead), OpenError>>;

impl Two {
    /// Somebody else takes the first broker for dead. Returns the hand in what it asks of the bucket.
    fn third_ends_a(&self, held: impl Fn(Verb, &str) -> bool + Send + Sync + 'static) -> (Ended, Arc<Hand>) {
        let (store, hand) = meddled(&self.bucket, StoreKind::S3);
        hand.hold(held);
        let cluster = self.a.manifest().cluster_id;
        let by = Taker {
            incarnation: 3,
            node_id: 3,
            now_ms: 0,
            reason: "it is silent".into(),
        };
        let ended = tokio::spawn(async move { Reader { store, cluster }.end_stream(1, &by).await });
        (ended, hand)
    }
}

/// A broker takes the first one for dead, finds no segment at `at`, and is held up before it seals; nor does it look again.
async fn takes_slowly(by: &Log, hand: &Hand, at: Seq) -> JoinHandle<Result<(), String>> {
    hand.hold(move |verb, key| verb == Verb::Put && is_segment(key, 1, at));
    let by = by.clone();
    let taking = tokio::spawn(async move { by.inner.take_over(1, "it is silent").await });
    hand.holds().await;
    hand.hold(move |_, key| is_segment(key, 1, at));
    taking
}

/// The first seq of a broker's stream that is not published.
fn tip(log: &Log) -> Seq {
    *log.inner.stream.published_next.lock()
}

fn is_segment(key: &str, stream: Incarnation, seq: Seq) -> bool {
    matches!(parse_in_stream(key), Some((s, InStream::Segment(n))) if (s, n) == (stream, seq))
}

/// Whoever cannot read the manifest does not hear that it was succeeded.
fn hears(verb: Verb, key: &str) -> bool {
    verb == Verb::Get && key == keys::MANIFEST
}

/// Long enough for whatever is not held back.
async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

// ---- a batch is sent again while the original is on its way

type Answer = JoinHandle<Result<Appended, AppendError>>;

/// A producer's batch, which is `v1`.
fn send(log: &Log, p: &Arc<Partition>) -> Answer {
    let pending = log.append(p, batch(&["v1"], Some((77, 0))), false).unwrap();
    tokio::spawn(pending.published())
}

/// The batch, and the same again when the first one is on its way.
async fn send_twice(log: &Log, p: &Arc<Partition>) -> [Answer; 2] {
    let original = send(log, p);
    a_moment().await;
    let answers = [original, send(log, p)];
    a_moment().await;
    answers
}

fn assert_open(answers: &[Answer]) {
    let open: Vec<bool> = answers.iter().map(|answer| !answer.is_finished()).collect();
    assert!(open.iter().all(|open| *open), "answered too early: {open:?}");
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_answered_when_its_original_is_published() {
    let two = Two::new(1).await;
    let p = two.a.partition(&two.id, 0).unwrap();
    append(&two.a, &p, &["v0"]).await;
    let at = tip(&two.a);
    two.hand_of_a.hold(move |_, key| is_segment(key, 1, at));
    let answers = send_twice(&two.a, &p).await;
    assert_open(&answers);
    two.hand_of_a.let_go();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().base_offset, 1);
    }
    assert_eq!(contents(&two.a, &p, 0).await, expected(2));
}

#[tokio::test(start_paused = true)]
async fn a_repeat_fails_with_its_original_when_the_stream_is_sealed_before_it() {
    // The second time the original is in the bucket, and a segment before it is not.
    for landed in [false, true] {
        let two = Two::new(1).await;
        let (a, b) = (&two.a, &two.b);
        let p = a.partition(&two.id, 0).unwrap();
        append(a, &p, &["v0"]).await;
        let at = tip(a);
        two.hand_of_a
            .hold(move |verb, key| is_segment(key, 1, at) || hears(verb, key));
        if landed {
            drop(a.append(&p, batch(&["lost"], None), false).unwrap());
            a_moment().await;
        }
        let answers = send_twice(a, &p).await;
        assert_open(&answers);
        let there = of_stream(&two.store(), 1).await.0;
        assert_eq!(there.contains(&(at + 1)), landed, "{there:?}");

        two.take_over().await;
        assert_open(&answers);
        let successor = b.partition(&two.id, 0).unwrap();
        assert_eq!(contents(b, &successor, 0).await, expected(1));
        two.hand_of_a.hold(hears);
        for answer in answers {
            assert_eq!(answer.await.unwrap(), Err(AppendError::NotLeader));
        }
        // It is no repeat there.
        let appended = send(b, &successor).await.unwrap().unwrap();
        assert_eq!(appended.base_offset, 1);
        let b = two.restart_b().await;
        let p = b.partition(&two.id, 0).unwrap();
        assert_eq!(contents(&b, &p, 0).await, expected(2));
    }
}

/// The original is before the seal, and its sender does not know.
#[tokio::test(start_paused = true)]
async fn a_repeat_finds_its_original_with_the_taker_that_found_it() {
    let two = Two::new(1).await;
    let (a, b) = (&two.a, &two.b);
    let p = a.partition(&two.id, 0).unwrap();
    append(a, &p, &["v0"]).await;
    let at = tip(a);
    two.hand_of_a
        .hold(move |verb, key| (verb != Verb::Put && is_segment(key, 1, at)) || hears(verb, key));
    let answers = send_twice(a, &p).await;
    assert_open(&answers);

    two.take_over().await;
    assert_open(&answers);
    let successor = b.partition(&two.id, 0).unwrap();
    let again = send(b, &successor).await.unwrap().unwrap();
    assert_eq!(again.base_offset, 1);
    // It may still be told so by who was succeeded, and nothing more.
    two.hand_of_a.hold(hears);
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().base_offset, 1);
    }
    let more = a.append(&p, batch(&["lost"], None), false).unwrap();
    assert_eq!(more.published().await, Err(AppendError::NotLeader));
    let b = two.restart_b().await;
    let p = b.partition(&two.id, 0).unwrap();
    assert_eq!(send(&b, &p).await.unwrap().unwrap().base_offset, 1);
    assert_eq!(contents(&b, &p, 0).await, expected(2));
}

// ---- a broker that was succeeded moves the log start

#[tokio::test(start_paused = true)]
async fn a_log_start_behind_a_seal_moves_nothing() {
    let two = Two::new(1).await;
    let (a, b) = (&two.a, &two.b);
    let p = a.partition(&two.id, 0).unwrap();
    append(a, &p, &["v0", "v1"]).await;
    a_while().await;
    // Behind the newest checkpoint, so that the stream is read.
    append(a, &p, &["v2", "v3"]).await;
    let at = tip(a);
    // One segment does not get through, and what comes behind it does: before the stream is sealed, and after.
    two.hand_of_a
        .hold(move |verb, key| is_segment(key, 1, at) || hears(verb, key));
    let lost = a.append(&p, batch(&["lost"], None), false).unwrap();
    a_moment().await;
    let advance = |to| {
        let (a, p) = (a.clone(), p.clone());
        tokio::spawn(async move { a.advance_log_start(&p, to).await })
    };
    let before = advance(1);
    a_moment().await;
    two.take_over().await;
    let after = advance(2);
    a_moment().await;
    let store = two.store();
    let behind: BTreeSet<Seq> = of_stream(&store, 1).await.0.split_off(&at);
    assert_eq!(
        behind,
        BTreeSet::from([at, at + 1, at + 2]),
        "a seal, and what lies behind"
    );
    assert!(!before.is_finished() && !after.is_finished());

    let stands_still = async |log: &Log| {
        let p = log.partition(&two.id, 0).unwrap();
        assert_eq!(p.watermarks().log_start_offset, 0);
        assert_eq!(contents(log, &p, 0).await, expected(4));
    };
    stands_still(b).await;
    two.hand_of_a.hold(hears);
    assert_eq!(lost.published().await, Err(AppendError::NotLeader));
    for moved in [before, after] {
        assert_eq!(moved.await.unwrap(), Err(AppendError::NotLeader));
    }
    assert_eq!(p.watermarks().log_start_offset, 0, "of the zombie's own");
    stands_still(&two.restart_b().await).await;
}

// ---- a checkpoint between the release of a slot and the change of the manifest

#[tokio::test(start_paused = true)]
async fn a_checkpoint_between_release_and_move_loses_nothing() {
    // The second time the manifest has moved the slot, and its old owner does not know.
    for stopped in [Verb::Put, Verb::Answer] {
        let two = Two::new(3).await;
        let (a, b, id) = (&two.a, &two.b, two.id);
        let mut all = produce(a, &id, 3).await;
        // No data of the slot holds the floor.
        merger(a).round().await.unwrap();
        let slot = slot_of(a, id, 0);
        halfway(slot, &two.hand_of_a, stopped, b).await;
        two.hand_of_a.hold(|_, key| key == keys::MANIFEST);
        a_while().await;
        let moved = b.partition(&id, 0).is_some();
        assert_eq!(moved, stopped == Verb::Answer);

        // All that a broker does for its stream, and for the slots that it keeps.
        let kept = a.partition(&id, 1).unwrap();
        let offset = append(a, &kept, &["more"]).await;
        all[1].push((offset, "more".into()));
        merger(a).round().await.unwrap();
        let durable = checkpoint(a).await;
        assert_eq!(durable.checkpoint_next, Some(tip(a)), "the release lies below");
        let held = durable.covered.iter().find(|c| c.slot == slot);
        assert_eq!(held.map(|c| c.epoch), Some(1), "it is its owner's still");
        cleaner(a).clean_own(&durable).await.unwrap();

        // A kill.
        two.hand_of_a.hold(|_, _| true);
        two.take_over().await;
        assert_eq!(read_all(b, &id).await, all);
        let p = b.partition(&id, 0).unwrap();
        assert_eq!(p.leader_epoch(), 2);
        // Its change comes late.
        two.hand_of_a.let_go();
        a.fenced().await;
        a_while().await;
        assert_eq!(b.manifest().leader(&id, 0).unwrap().incarnation, 2);
        let offset = append(b, &p, &["on"]).await;
        all[0].push((offset, "on".into()));
        assert_eq!(offset + 1, all[0].len() as i64);
        let b = two.restart_b().await;
        assert_eq!(read_all(&b, &id).await, all);
    }
}

// ---- a slow taker leaves a seal that does not count

/// One taker makes the seal, the other finds it.
#[tokio::test(start_paused = true)]
async fn takers_that_meet_a_void_seal_go_on_from_the_newer_checkpoint() {
    let two = Two::new(3).await;
    let (a, b, id) = (&two.a, &two.b, two.id);
    let store = two.store();
    produce(a, &id, 2).await;
    // The checkpoint that each start writes soon; the next one that is not asked for would be a minute later.
    a_while().await;
    merger(a).round().await.unwrap();
    let old = checkpoint(a).await;
    // What the takers read behind it before they are held up.
    produce(a, &id, 1).await;
    let at = tip(a);
    let making = takes_slowly(b, &two.hand_of_b, at).await;
    let (finding, hand) = two.third_ends_a(move |verb, key| verb == Verb::Get && is_segment(key, 1, at));
    hand.holds().await;

    // Their victim is well, and deletes what stands at that place meanwhile.
    produce(a, &id, 1).await;
    merger(a).round().await.unwrap();
    let new = checkpoint(a).await;
    assert!(
        Some(at) > old.checkpoint_next && new.floor > at,
        "{old:?} {new:?}"
    );
    cleaner(a).clean_own(&new).await.unwrap();
    let all = produce(a, &id, 1).await;
    let end = tip(a);
    assert_eq!(of_stream(&store, 1).await.0, (new.floor..end).collect());

    two.hand_of_b.let_go();
    making.await.unwrap().unwrap();
    let mut left: BTreeSet<Seq> = (new.floor..=end).collect();
    left.insert(at);
    assert_eq!(
        of_stream(&store, 1).await.0,
        left,
        "the void seal, and the one that counts"
    );
    hand.let_go();
    let (seal, read) = finding.await.unwrap().unwrap();
    assert_eq!(seal, end, "every taker finds the same");
    let from = read.checkpoint.map(|c| c.next);
    assert_eq!(from, new.checkpoint_next);
    let read: Vec<Seq> = read.segments.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(read, (from.unwrap()..end).collect::<Vec<_>>());

    a_while().await;
    assert_eq!(read_all(b, &id).await, all);
    let b = two.restart_b().await;
    assert_eq!(read_all(&b, &id).await, all);
}

/// A seal may also be void without a floor: once a stream was ended and is needed no more, its segments go, and whoever
/// found a key missing before they were written can still seal it.
#[tokio::test(start_paused = true)]
async fn an_owner_that_meets_a_void_seal_deletes_nothing_that_its_successor_reads() {
    // It deletes whatever it may, and at once.
    let mut eager = member(1);
    eager.delete_delay = Duration::ZERO;
    eager.garbage_interval = Duration::from_secs(60);
    let two = Two::with(3, eager).await;
    let (a, b, id) = (&two.a, &two.b, two.id);
    let store = two.store();
    let all = produce(a, &id, 3).await;
    a_while().await;
    let at = tip(a);
    let (sealing, hand) = two.third_ends_a(move |verb, key| verb == Verb::Put && is_segment(key, 1, at));
    hand.holds().await;
    // Nor does that one look again.
    hand.hold(move |_, key| is_segment(key, 1, at));
    // The owner merges; its pointers get there, and it hears no more of that, nor of anything else.
    two.hand_of_a
        .hold(move |verb, key| verb != Verb::Put && is_segment(key, 1, at));
    let merging = {
        let mut merger = merger(a);
        tokio::spawn(async move { merger.round().await })
    };
    two.hand_of_a.holds().await;
    two.hand_of_a.hold(|_, _| true);

    // Its successor finds them, and then needs the stream no more.
    two.take_over().await;
    assert!((0..3).all(|p| levels(b, &id, p).iter().all(|l| *l == Level::L1)));
    two.hand_of_b.let_go();
    checkpoint(b).await;
    a_while().await;
    assert!(!b.manifest().streams.contains_key(&1));
    cleaner(b).sweep().await.unwrap();
    assert_eq!(of_stream(&store, 1).await.0, BTreeSet::from([at + 1]));
    hand.let_go();
    // Whatever that one makes of it: the manifest gives no slots of a stream that it does not have.
    let _ = sealing.await.unwrap();
    assert_eq!(of_stream(&store, 1).await.0, BTreeSet::from([at, at + 1]));
    let files = async || {
        let mut keys = listed(&store).await;
        keys.retain(|key| key.starts_with("merged/"));
        keys
    };
    let needed = files().await;
    assert_eq!(needed, [keys::merged(1, 0)]);

    // It wakes, and takes its pointers for lost.
    two.hand_of_a.hold(hears);
    let merged = merging.await.unwrap();
    assert_eq!(merged, Err(MergeError::Ended(AppendError::NotLeader)));
    let why = a.fenced().await.why;
    assert!(
        why.contains(&keys::segment(1, at)) && why.contains("incarnation 3"),
        "{why}"
    );
    two.hand_of_a.let_go();
    tokio::time::sleep(HOUR).await;
    assert_eq!(files().await, needed);
    assert_eq!(read_all(b, &id).await, all);
    let b = two.restart_b().await;
    assert_eq!(read_all(&b, &id).await, all);
}

/// Nobody would be told that a checkpoint is missing: it is, because all is well.
#[tokio::test(start_paused = true)]
async fn a_taker_who_comes_when_all_is_cleaned_up_finds_that_others_were_faster() {
    let two = Two::new(1).await;
    let (a, b, id) = (&two.a, &two.b, two.id);
    let p = a.partition(&id, 0).unwrap();
    append(a, &p, &["v0"]).await;
    // Its head names a checkpoint.
    merger(a).round().await.unwrap();
    let durable = checkpoint(a).await;
    cleaner(a).clean_own(&durable).await.unwrap();
    let at = tip(a);
    let (way_of_c, hand_of_c) = meddled(&two.bucket, StoreKind::S3);
    let c = join(&way_of_c, 3).await;
    a_while().await;
    let taking = takes_slowly(&c, &hand_of_c, at).await;
    hand_of_c.hold(move |verb, key| is_segment(key, 1, at) || hears(verb, key));
    append(a, &p, &["v1"]).await;

    two.take_over().await;
    // It got some of the slots, and is taken for dead, too.
    b.inner.take_over(3, "it is silent").await.unwrap();
    a_while().await;
    two.hand_of_b.let_go();
    merger(b).round().await.unwrap();
    checkpoint(b).await;
    a_while().await;
    assert!(!b.manifest().streams.contains_key(&1));
    cleaner(b).sweep().await.unwrap();

    hand_of_c.let_go();
    taking.await.unwrap().unwrap();
    let left = of_stream(&two.store(), 1).await;
    assert!(
        left.0.contains(&at) && left.1 == 0,
        "it has sealed what nobody needs: {left:?}"
    );
    let p = b.partition(&id, 0).unwrap();
    assert_eq!(contents(b, &p, 0).await, expected(2));
}
