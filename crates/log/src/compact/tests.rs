//! Whole-engine tests: produce, merge, compact, crash, move, and read everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicI64;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parking_lot::Mutex;

use super::*;
use crate::archive;
use crate::archive::fake::FakeHistory;
use crate::batch::{BatchBuilder, ChunkCursor, records};
use crate::merge::{MergeOptions, Merger};
use crate::store::{Store, StoreKind};
use crate::tests::meddling::{Hand, Verb, meddled};
use crate::tests::topic;
use crate::{Clock, Isolation, LogOptions, RecordBatch};

const HOUR: Duration = Duration::from_secs(3600);

/// A clock that a test moves.
#[derive(Debug, Default)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Topics that are compacted.
#[derive(Debug, Default)]
struct Topics(Mutex<HashMap<TopicId, CompactionSettings>>);

impl CompactionPolicy for Topics {
    fn topics(&self) -> HashMap<TopicId, CompactionSettings> {
        self.0.lock().clone()
    }
}

const AT_ONCE: CompactionSettings = CompactionSettings {
    delete_retention_ms: 1_000,
    min_lag_ms: 0,
    max_lag_ms: i64::MAX,
    min_dirty_ratio: 0.0,
    segment_ms: 0,
};

/// A bucket, its clock and what is compacted in it.
struct World {
    store: Store,
    hand: Arc<Hand>,
    clock: Arc<Hands>,
    topics: Arc<Topics>,
}

impl World {
    fn new(kind: StoreKind) -> World {
        let (store, hand) = meddled(&Arc::<InMemory>::default(), kind);
        World {
            store,
            hand,
            clock: Arc::default(),
            topics: Arc::default(),
        }
    }

    /// A broker that merges and compacts only when a test says so.
    async fn open(&self, node_id: i32) -> Log {
        let mut options = LogOptions::for_store(self.store.kind);
        options.node_id = Some(node_id);
        options.merge.interval = 1_000 * HOUR;
        options.delete_delay = 1_000 * HOUR;
        let (clock, mut registry) = (self.clock.clone(), Registry::default());
        Log::open(self.store.clone(), options, clock, &mut registry)
            .await
            .unwrap()
    }

    async fn topic(&self, log: &Log, name: &str, partitions: u32, settings: CompactionSettings) -> TopicId {
        let id = topic(log, name, partitions).await;
        self.topics.0.lock().insert(id, settings);
        id
    }

    fn compactor(&self, log: &Log) -> Compactor {
        self.compactor_with(log, f64::MAX)
    }

    fn compactor_with(&self, log: &Log, bytes_per_second: f64) -> Compactor {
        let options = CompactionOptions {
            bytes_per_second,
            own_thread: false,
            ..CompactionOptions::default()
        };
        Compactor::new(log, self.topics.clone(), options, &mut Registry::default()).unwrap()
    }

    fn pass(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }
}

/// A log with one partition of a compacted topic.
async fn compacted() -> (World, Log, TopicId, Arc<Partition>) {
    let w = World::new(StoreKind::Memory);
    let log = w.open(1).await;
    let id = w.topic(&log, "t", 1, AT_ONCE).await;
    let p = log.partition(&id, 0).unwrap();
    (w, log, id, p)
}

async fn merge(log: &Log) {
    let inner = &log.inner;
    let options = MergeOptions {
        bytes_per_second: u64::MAX,
        ..MergeOptions::default()
    };
    let (stream, keeper) = (inner.stream.clone(), inner.keeper.clone());
    let mut merger = Merger::new(stream, keeper, inner.checkpointer.clone(), options);
    merger.round().await.unwrap();
}

async fn checkpoint(log: &Log) {
    log.inner.checkpointer.write_checkpoint().await.unwrap();
}

fn batch(now_ms: i64, records: &[(&str, Option<&str>)]) -> RecordBatch {
    let mut b = BatchBuilder::new();
    for (key, value) in records {
        b.push(now_ms, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    }
    b.build()
}

async fn append(log: &Log, p: &Arc<Partition>, records: &[(&str, Option<&str>)]) {
    let now_ms = log.inner.stream.clock.now_ms();
    let pending = log.append(p, batch(now_ms, records), false).unwrap();
    pending.published().await.unwrap();
}

/// Keys `k0` to `k<keys - 1>` in turn, with values that say when they were written.
async fn produce(log: &Log, p: &Arc<Partition>, keys: usize, rounds: usize) {
    for round in 0..rounds {
        for key in 0..keys {
            let at = p.watermarks().high_watermark;
            append(log, p, &[(&format!("k{key}"), Some(&format!("{round} at {at}")))]).await;
        }
    }
}

type Row = (Offset, String, Option<String>);

async fn rows(log: &Log, p: &Arc<Partition>) -> Vec<Row> {
    let w = p.watermarks();
    let (mut out, mut next) = (vec![], w.log_start_offset);
    while next < w.high_watermark {
        let read = log.read(p, next, 300, Isolation::ReadUncommitted).await.unwrap();
        let before = next;
        for view in ChunkCursor::new(&read.chunks) {
            let whole = view.unwrap().to_batch(&read.chunks).unwrap();
            for r in records(whole.bytes(), 1 << 20).unwrap() {
                let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
                if r.offset >= next {
                    out.push((r.offset, text(&r.key.unwrap()), r.value.as_ref().map(text)));
                }
            }
            next = next.max(whole.header().last_offset() + 1);
        }
        assert!(next > before, "a reader gets on at {next}");
    }
    out
}

/// The newest of each key.
fn newest(rows: &[Row]) -> Vec<Row> {
    let mut of: BTreeMap<&str, &Row> = BTreeMap::new();
    for row in rows {
        of.insert(&row.1, row);
    }
    let mut newest: Vec<Row> = of.into_values().cloned().collect();
    newest.sort();
    newest
}

fn clean_to(p: &Partition) -> Offset {
    p.published.lock().clean_to
}

/// Lets a compactor do all there is to do.
async fn all_rounds(compactor: &mut Compactor) -> usize {
    for round in 0..100 {
        if !compactor.round().await.unwrap() {
            return round;
        }
    }
    panic!("there is always something to compact")
}

#[tokio::test]
async fn the_newest_of_each_key_stays_where_it_is() {
    let w = World::new(StoreKind::Memory);
    let log = w.open(1).await;
    let id = w.topic(&log, "t", 2, AT_ONCE).await;
    let plain = topic(&log, "plain", 1).await;
    let [p, other] = [0, 1].map(|i| log.partition(&id, i).unwrap());
    let not = log.partition(&plain, 0).unwrap();
    produce(&log, &p, 5, 20).await;
    produce(&log, &other, 2, 3).await;
    produce(&log, &not, 2, 3).await;
    let (all, of_other, of_not) = (
        rows(&log, &p).await,
        rows(&log, &other).await,
        rows(&log, &not).await,
    );
    let mut compactor = w.compactor(&log);
    assert_eq!(all_rounds(&mut compactor).await, 0, "nothing is merged yet");
    merge(&log).await;
    let size = p.size_bytes();
    assert_eq!(all_rounds(&mut compactor).await, 2);
    assert_eq!(rows(&log, &p).await, newest(&all));
    assert_eq!(rows(&log, &other).await, newest(&of_other));
    assert_eq!(rows(&log, &not).await, of_not, "its policy is another");
    assert!(p.size_bytes() * 10 < size, "{} of {size}", p.size_bytes());
    assert_eq!((clean_to(&p), clean_to(&other), clean_to(&not)), (100, 6, 0));

    // What comes later, and a restart before any checkpoint, and one after it.
    produce(&log, &p, 1, 3).await;
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    assert_eq!(clean_to(&p), 100);
    let all = rows(&log, &p).await;
    assert_eq!(all.len(), 5 + 3);
    merge(&log).await;
    assert_eq!(
        all_rounds(&mut w.compactor(&log)).await,
        1,
        "the other one is clean"
    );
    assert_eq!(rows(&log, &p).await, newest(&all));
    checkpoint(&log).await;
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    assert_eq!(clean_to(&p), 103);
    assert_eq!(rows(&log, &p).await, newest(&all));
    assert_eq!(all_rounds(&mut w.compactor(&log)).await, 0);
    let at = |t| log.lookup_offset(&p, crate::OffsetLookup::Timestamp(t));
    assert_eq!(at(0).await.unwrap().unwrap().offset, newest(&all)[0].0);
}

#[tokio::test]
async fn deletion_marks_go_after_their_time() {
    let (w, log, id, p) = compacted().await;
    append(&log, &p, &[("a", Some("1")), ("b", Some("2"))]).await;
    append(&log, &p, &[("a", None)]).await;
    merge(&log).await;
    let mut compactor = w.compactor(&log);
    let offsets = |rows: Vec<Row>| rows.iter().map(|r| r.0).collect::<Vec<_>>();
    all_rounds(&mut compactor).await;
    assert_eq!(offsets(rows(&log, &p).await), [1, 2], "the mark is met");
    w.pass(999);
    append(&log, &p, &[("c", Some("3"))]).await;
    merge(&log).await;
    all_rounds(&mut compactor).await;
    assert_eq!(offsets(rows(&log, &p).await), [1, 2, 3]);
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    w.pass(1);
    append(&log, &p, &[("c", Some("4"))]).await;
    merge(&log).await;
    all_rounds(&mut w.compactor(&log)).await;
    assert_eq!(offsets(rows(&log, &p).await), [1, 4]);
    assert_eq!(p.watermarks().high_watermark, 5);
}

#[tokio::test]
async fn what_was_written_and_not_published_does_no_harm() {
    let (w, log, id, p) = compacted().await;
    produce(&log, &p, 3, 5).await;
    merge(&log).await;
    let all = rows(&log, &p).await;
    // It stops between the object and the pointers to it.
    log.inner.stream.stop();
    let ended = w.compactor(&log).round().await;
    assert_eq!(ended, Err(CompactError::Ended(AppendError::Stopping)));
    assert_eq!(w.merged().await, 2);
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    assert_eq!((rows(&log, &p).await, clean_to(&p)), (all.clone(), 0));
    // And one that was taken over and does not know it.
    let new = w.open(1).await;
    assert!(w.compactor(&log).round().await.is_err());
    assert!(matches!(w.compactor(&log).round().await, Err(CompactError::Ended(_))) || p.is_gone());
    let p = new.partition(&id, 0).unwrap();
    assert_eq!((rows(&new, &p).await, clean_to(&p)), (all.clone(), 0));
    assert_eq!(all_rounds(&mut w.compactor(&new)).await, 1);
    assert_eq!(rows(&new, &p).await, newest(&all));
}

impl World {
    async fn merged(&self) -> usize {
        let all = self.store.bulk.list(Some(&self.store.key("merged")));
        all.collect::<Vec<_>>().await.len()
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_start_and_appends_may_move_meanwhile() {
    let (w, log, id, p) = compacted().await;
    for _ in 0..6 {
        produce(&log, &p, 4, 2).await;
        merge(&log).await;
    }
    let all = rows(&log, &p).await;
    let per_second = p.size_bytes() as f64 / 30.0;
    let mut compactor = w.compactor_with(&log, per_second);
    let first = p.published.lock().ranges.clone();
    let meanwhile = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        log.advance_log_start(&p, 17).await.unwrap();
        // What nobody needs any more is deleted before it is read the second time.
        for r in first.iter().filter(|r| r.last_offset < 17) {
            let key = w.store.key(&keys::place(r.place));
            w.store.bulk.delete(&key).await.unwrap();
        }
        produce(&log, &p, 4, 1).await;
        merge(&log).await;
    };
    let (done, ()) = tokio::join!(compactor.round(), meanwhile);
    assert_eq!(done, Ok(true));
    let mut expected: Vec<Row> = newest(&all);
    assert!(expected.iter().all(|row| row.0 >= 17));
    let now = rows(&log, &p).await;
    expected.extend(now.iter().filter(|row| row.0 >= 48).cloned());
    assert_eq!(now, expected);
    assert_eq!((clean_to(&p), p.watermarks().log_start_offset), (48, 17));
    assert!(compactor.troubled.is_empty(), "{:?}", compactor.troubled);
    // All that a pass has gone through is gone.
    let mut compactor = w.compactor_with(&log, 100.0);
    let meanwhile = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        log.advance_log_start(&p, 52).await.unwrap();
    };
    let (done, ()) = tokio::join!(compactor.round(), meanwhile);
    assert_eq!(done, Ok(true));
    assert!(compactor.troubled.is_empty(), "{:?}", compactor.troubled);
    assert_eq!(all_rounds(&mut compactor).await, 0);
    assert_eq!(rows(&log, &p).await, []);
    let log = w.open(1).await;
    assert_eq!(rows(&log, &log.partition(&id, 0).unwrap()).await, []);
}

#[tokio::test]
async fn what_the_log_start_passes_before_it_is_published_is_no_failure() {
    let (w, log, id, p) = compacted().await;
    produce(&log, &p, 3, 4).await;
    merge(&log).await;
    w.hand
        .hold(|verb, key| verb == Verb::Put && key.starts_with(keys::MERGED));
    let mut compactor = w.compactor(&log);
    let meanwhile = async {
        w.hand.holds().await;
        log.advance_log_start(&p, 12).await.unwrap();
        w.hand.let_go();
    };
    let (done, ()) = tokio::join!(compactor.round(), meanwhile);
    assert_eq!(done, Ok(true));
    assert!(compactor.troubled.is_empty());
    assert_eq!(all_rounds(&mut compactor).await, 0);
    // It was a number that nobody points to, and that is settled.
    let numbers = &log.inner.stream.merged_numbers;
    assert_eq!(numbers.settled_below(), numbers.begin().number());
    let log = w.open(1).await;
    assert_eq!(rows(&log, &log.partition(&id, 0).unwrap()).await, []);
}

#[tokio::test]
async fn what_was_missing_for_a_moment_brings_nothing_back() {
    let (w, log, _, p) = compacted().await;
    for (key, value) in [("k", Some("v")), ("k", None), ("c", Some("1"))] {
        append(&log, &p, &[(key, value)]).await;
        merge(&log).await;
    }
    let r = p.published.lock().ranges[1];
    let key = w.store.key(&keys::place(r.place)).to_string();
    let mut compactor = w.compactor(&log);
    // When the map is made the deletion mark is not there, and afterwards it is.
    let mut once = true;
    w.hand.fail_get(move |asked| {
        let path = asked.to_owned();
        let gone = || object_store::Error::NotFound {
            path,
            source: "gone".into(),
        };
        (asked == key && std::mem::take(&mut once)).then(gone)
    });
    assert_eq!(all_rounds(&mut compactor).await, 1);
    assert_eq!(clean_to(&p), r.base_offset);
    assert_eq!(compactor.metrics.uncleanable.get(), 1);
    let mut left = vec![];
    for n in 0..2 {
        w.pass(5_000);
        append(&log, &p, &[("z", Some(&n.to_string()))]).await;
        merge(&log).await;
        assert_eq!(all_rounds(&mut compactor).await, 1);
        assert_eq!(compactor.metrics.uncleanable.get(), 0);
        left = rows(&log, &p).await;
        let lives = |row: &Row| row.1 == "k" && row.2.is_some();
        assert!(!left.iter().any(lives), "{left:?}");
    }
    let keys: Vec<&str> = left.iter().map(|row| row.1.as_str()).collect();
    assert_eq!(keys, ["c", "z"], "and the mark goes after its time");
}

fn refused() -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: "not this one".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_whose_pass_fails_holds_up_no_other() {
    let w = World::new(StoreKind::Memory);
    let log = w.open(1).await;
    let id = w.topic(&log, "t", 2, AT_ONCE).await;
    let [bad, good] = [0, 1].map(|i| log.partition(&id, i).unwrap());
    let mut compactor = w.compactor(&log);
    produce(&log, &good, 3, 4).await;
    merge(&log).await;
    assert_eq!(all_rounds(&mut compactor).await, 1);
    // The good one is clean in part, so that the other one always goes first.
    produce(&log, &good, 3, 1).await;
    merge(&log).await;
    produce(&log, &bad, 3, 4).await;
    merge(&log).await;
    let place = bad.published.lock().ranges[0].place;
    let key = w.store.key(&keys::place(place)).to_string();
    let tries = Arc::new(Mutex::new(0));
    let counted = tries.clone();
    w.hand.fail_get(move |asked| {
        (asked == key).then(|| {
            *counted.lock() += 1;
            refused()
        })
    });
    compactor.rounds().await.unwrap();
    assert_eq!((clean_to(&bad), clean_to(&good)), (0, 15));
    assert_eq!(
        compactor.metrics.uncleanable.get(),
        0,
        "the store may be the reason"
    );
    // It is tried again, and after ever longer times.
    let mut rests = vec![];
    for _ in 0..6 {
        *tries.lock() = 0;
        compactor.rounds().await.unwrap();
        assert_eq!(*tries.lock(), 0);
        let rest = compactor.troubled[&bad.id()].rest;
        rests.push(rest.as_secs());
        tokio::time::sleep(rest).await;
        compactor.rounds().await.unwrap();
        assert!(*tries.lock() > 0);
    }
    assert_eq!(rests, [60, 120, 240, 480, 600, 600]);
    compactor.rounds().await.unwrap();
    assert_eq!(
        compactor.metrics.uncleanable.get(),
        1,
        "by now somebody should look"
    );
    w.hand.fail_get(|_| None);
    tokio::time::sleep(AGAIN).await;
    compactor.rounds().await.unwrap();
    assert_eq!((clean_to(&bad), compactor.troubled.len()), (12, 0));
    assert_eq!(compactor.metrics.uncleanable.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_all_is_not_asked_for_all() {
    let w = World::new(StoreKind::Memory);
    let log = w.open(1).await;
    let id = w.topic(&log, "t", 5, AT_ONCE).await;
    for n in 0..5 {
        produce(&log, &log.partition(&id, n).unwrap(), 2, 2).await;
    }
    merge(&log).await;
    let mut compactor = w.compactor(&log);
    w.hand.fail_get(|key| key.starts_with(keys::MERGED).then(refused));
    compactor.rounds().await.unwrap();
    assert_eq!(compactor.troubled.len(), FAILURES_IN_A_ROW);
    w.hand.fail_get(|_| None);
    compactor.rounds().await.unwrap();
    tokio::time::sleep(SOON).await;
    compactor.rounds().await.unwrap();
    assert!((0..5).all(|n| clean_to(&log.partition(&id, n).unwrap()) == 4));
}

/// A topic's policy may change from compact to delete.
#[tokio::test]
async fn what_was_compacted_can_become_history() {
    let w = World::new(StoreKind::Memory);
    let format = FakeHistory::new(1_000);
    let log = archive::tests::open(&w.store, &format).await;
    let id = w.topic(&log, "t", 3, AT_ONCE).await;
    let p = log.partition(&id, 0).unwrap();
    // Nothing is left of the front, and nothing at last of the rest.
    produce(&log, &p, 3, 4).await;
    append(&log, &p, &[("last", Some("1")), ("last", Some("2"))]).await;
    merge(&log).await;
    assert_eq!(all_rounds(&mut w.compactor(&log)).await, 1);
    let all = rows(&log, &p).await;
    assert_eq!(all.iter().map(|row| row.0).collect::<Vec<_>>(), [9, 10, 11, 13]);
    archive::tests::settle(&log, &format, 64 << 20).await;
    for log in [&log, &archive::tests::open(&w.store, &format).await] {
        let p = log.partition(&id, 0).unwrap();
        assert_eq!(p.published.lock().archived_to(), 14);
        assert_eq!(rows(log, &p).await, all);
    }
}

#[tokio::test]
async fn damaged_data_stays_and_the_rest_is_compacted() {
    let (w, log, id, p) = compacted().await;
    for i in 0..3 {
        append(&log, &p, &[("same", Some("old"))]).await;
        append(&log, &p, &[(&format!("k{i}"), Some("new"))]).await;
        merge(&log).await;
    }
    append(&log, &p, &[("k1", None)]).await;
    merge(&log).await;
    // One byte of the second object, which the cache of a new start does not have.
    let r = p.published.lock().ranges[1];
    let key = w.store.key(&keys::place(r.place));
    let good = w.store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
    let mut bad = good.to_vec();
    bad[(r.position + r.len - 1) as usize] ^= 1;
    w.store.bulk.put(&key, bad.into()).await.unwrap();
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    let mut compactor = w.compactor(&log);
    assert_eq!(
        all_rounds(&mut compactor).await,
        1,
        "once, and not again and again"
    );
    assert_eq!(compactor.metrics.uncleanable.get(), 1);
    assert_eq!(clean_to(&p), r.base_offset, "there it goes on");
    // Long after the mark could have gone.
    w.pass(5_000);
    append(&log, &p, &[("z", Some("1"))]).await;
    merge(&log).await;
    assert_eq!(all_rounds(&mut compactor).await, 1);
    // It was the network: what the mark deletes is there again, and stays deleted.
    w.store.bulk.put(&key, good.into()).await.unwrap();
    let deleted = |rows: &[Row]| newest(rows).iter().all(|row| row.1 != "k1" || row.2.is_none());
    assert!(deleted(&rows(&log, &p).await));
    // Only now it is met, and stays for its time.
    for expected in [&["k0", "same", "k2", "k1", "z"][..], &["k0", "same", "k2", "z"]] {
        w.pass(5_000);
        append(&log, &p, &[("z", Some("2"))]).await;
        merge(&log).await;
        assert_eq!(all_rounds(&mut compactor).await, 1);
        let left = rows(&log, &p).await;
        let keys: Vec<&str> = left.iter().map(|row| row.1.as_str()).collect();
        assert_eq!(keys, expected);
    }
    assert_eq!(compactor.metrics.uncleanable.get(), 0);
}

#[tokio::test]
async fn a_map_that_is_too_small_takes_several_passes_or_is_told() {
    let (w, log, _, p) = compacted().await;
    for _ in 0..4 {
        produce(&log, &p, 30, 1).await;
        merge(&log).await;
    }
    let all = rows(&log, &p).await;
    let mut compactor = w.compactor(&log);
    compactor.options.map_bytes = 20 * map::PLACE_BYTES;
    assert_eq!(all_rounds(&mut compactor).await, 1);
    assert_eq!((rows(&log, &p).await, clean_to(&p)), (all.clone(), 0));
    assert_eq!(compactor.metrics.uncleanable.get(), 1);
    let mut compactor = w.compactor(&log);
    compactor.options.map_bytes = 41 * map::PLACE_BYTES;
    assert_eq!(
        all_rounds(&mut compactor).await,
        1,
        "the same keys again have room"
    );
    assert_eq!(rows(&log, &p).await, newest(&all));
    for i in 0..3 {
        for key in 0..30 {
            append(&log, &p, &[(&format!("{i} {key}"), Some("x"))]).await;
        }
        merge(&log).await;
    }
    let all = rows(&log, &p).await;
    assert_eq!(all_rounds(&mut compactor).await, 3, "a part at a time");
    assert_eq!(rows(&log, &p).await, newest(&all));
}

#[tokio::test]
async fn one_pass_may_write_several_objects() {
    let (w, log, id, p) = compacted().await;
    let value = "v".repeat(700_000);
    for _ in 0..2 {
        for key in 0..30 {
            // Each range loses one of its two batches.
            append(&log, &p, &[(&format!("{key}"), Some(&value))]).await;
            append(&log, &p, &[("same", Some("small"))]).await;
        }
        merge(&log).await;
    }
    let all = rows(&log, &p).await;
    let before = w.merged().await;
    assert_eq!(all_rounds(&mut w.compactor(&log)).await, 1);
    assert_eq!(rows(&log, &p).await, newest(&all));
    assert_eq!(w.merged().await - before, 2);
    let log = w.open(1).await;
    let p = log.partition(&id, 0).unwrap();
    assert_eq!((rows(&log, &p).await, clean_to(&p)), (newest(&all), 120));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_moves_takes_with_it_what_is_clean() {
    let w = World::new(StoreKind::S3);
    let a = w.open(1).await;
    let id = w.topic(&a, "t", 1, AT_ONCE).await;
    let p = a.partition(&id, 0).unwrap();
    produce(&a, &p, 3, 4).await;
    merge(&a).await;
    let all = rows(&a, &p).await;
    assert_eq!(all_rounds(&mut w.compactor(&a)).await, 1);
    let b = w.open(2).await;
    checkpoint(&a).await;
    let slot = a.manifest().slot_of(&p.id());
    tokio::time::sleep(Duration::from_secs(10)).await;
    // The move comes while a pass is under way: it takes no effect any more.
    produce(&a, &p, 3, 2).await;
    merge(&a).await;
    let expected = rows(&a, &p).await;
    let mut late = w.compactor_with(&a, p.size_bytes() as f64 / 60.0);
    let moving = async {
        a.inner.desire(vec![(slot, b.incarnation())]).await.unwrap();
    };
    let (done, ()) = tokio::join!(late.round(), moving);
    assert!(done.is_err(), "{done:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(a.partition(&id, 0).is_none());
    let p = b.partition(&id, 0).unwrap();
    assert_eq!((rows(&b, &p).await, clean_to(&p)), (expected.clone(), 12));
    assert_eq!(newest(&all).len() + 6, expected.len());
    merge(&b).await;
    assert_eq!(all_rounds(&mut w.compactor(&b)).await, 1);
    assert_eq!(rows(&b, &p).await, newest(&expected));
    // And it dies.
    let c = w.open(3).await;
    c.inner.take_over(b.incarnation(), "it is dead").await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let p = c.partition(&id, 0).unwrap();
    assert_eq!((rows(&c, &p).await, clean_to(&p)), (newest(&expected), 18));
    let files: BTreeSet<_> = p.published.lock().ranges.iter().map(|r| r.place.level).collect();
    assert_eq!(files, BTreeSet::from([Level::L1]));
}

#[tokio::test(start_paused = true)]
async fn the_task_compacts_by_itself_from_its_feature_level_on() {
    let w = World::new(StoreKind::Memory);
    let log = w.open(1).await;
    let lower = |m: &mut crate::manifest::Manifest| {
        m.feature_level = LEVEL_OF_HISTORY - 1;
        Ok::<_, std::convert::Infallible>(((), Some(1)))
    };
    log.inner.keeper.change(lower).await.unwrap();
    let id = w.topic(&log, "t", 1, AT_ONCE).await;
    let options = CompactionOptions {
        own_thread: false,
        ..CompactionOptions::default()
    };
    log.compact(w.topics.clone(), options, &mut Registry::default())
        .unwrap();
    let p = log.partition(&id, 0).unwrap();
    produce(&log, &p, 3, 4).await;
    merge(&log).await;
    let all = rows(&log, &p).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rows(&log, &p).await, all);
    let raise = |m: &mut crate::manifest::Manifest| {
        m.feature_level = LEVEL_OF_HISTORY;
        Ok::<_, std::convert::Infallible>(((), Some(1)))
    };
    log.inner.keeper.change(raise).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rows(&log, &p).await, newest(&all));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_topic_that_is_not_compacted_any_more_is_left_alone() {
    let (w, log, _, p) = compacted().await;
    produce(&log, &p, 3, 4).await;
    merge(&log).await;
    let all = rows(&log, &p).await;
    let mut compactor = w.compactor(&log);
    let turn = compactor.choose().await.unwrap();
    w.topics.0.lock().clear();
    assert!(matches!(compactor.pass(&turn).await, Err(CompactError::Odd(_))));
    assert_eq!(rows(&log, &p).await, all);
    assert!(compactor.choose().await.is_none());
}
