//! Whole-engine tests: produce, merge, archive, restart, hand over, and read everything.

use std::sync::atomic::Ordering;
use std::sync::mpsc as blocking;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use prometheus_client::registry::Registry;

use super::fake::FakeHistory;
use super::*;
use crate::batch::field;
use crate::manifest::{Change, Manifest};
use crate::merge::tests::open_with;
use crate::merge::{MergeOptions, Merger};
use crate::store::{Store, StoreKind, StoreOptions};
use crate::tests::{append, batch, contents, topic};
use crate::{Isolation, Log, LogOptions, OffsetLookup, ReadError, RecordBatch, SystemClock};

const HOUR: Duration = Duration::from_secs(3600);
/// Larger than half a range of merged data, so that each makes one.
const LARGE: usize = 600_000;

/// Every topic but internal ones, all alike.
#[derive(Debug)]
struct Alike(ArchivePolicy);

impl ArchivePolicies for Alike {
    fn policy(&self, name: &str, _topic: &Topic) -> Option<ArchivePolicy> {
        (!name.starts_with("__")).then_some(self.0)
    }
}

/// Files of so many bytes, due at once.
fn eager(file_bytes: u64) -> Arc<Alike> {
    Arc::new(Alike(ArchivePolicy {
        file_bytes,
        interval: Duration::ZERO,
        text_values: true,
    }))
}

async fn memory() -> Store {
    Store::open("memory://", StoreOptions::default()).await.unwrap()
}

/// A log that merges and archives only when a test says so.
pub(crate) async fn open(store: &Store, format: &Arc<FakeHistory>) -> Log {
    open_as(store, format, StoreKind::Memory, 1).await
}

async fn open_as(store: &Store, format: &Arc<FakeHistory>, kind: StoreKind, node_id: i32) -> Log {
    open_with(store, options(format, kind, node_id)).await
}

fn options(format: &Arc<FakeHistory>, kind: StoreKind, node_id: i32) -> LogOptions {
    let mut options = LogOptions::for_store(kind);
    options.node_id = Some(node_id);
    options.merge.interval = 1_000 * HOUR;
    options.delete_delay = 1_000 * HOUR;
    options.history = Some(format.clone());
    options
}

fn merger(log: &Log) -> Merger {
    let inner = &log.inner;
    let options = MergeOptions {
        bytes_per_second: u64::MAX,
        ..MergeOptions::default()
    };
    Merger::new(
        inner.stream.clone(),
        inner.keeper.clone(),
        inner.checkpointer.clone(),
        options,
    )
}

fn archiver(log: &Log, format: &Arc<FakeHistory>, policies: Arc<Alike>) -> Archiver {
    let inner = &log.inner;
    let options = ArchiveOptions {
        bytes_per_second: u64::MAX,
        ..ArchiveOptions::default()
    };
    Archiver::new(
        inner.stream.clone(),
        inner.keeper.clone(),
        inner.checkpointer.clone(),
        format.clone(),
        policies,
        options,
    )
}

/// Archives until nothing is due.
async fn round(archiver: &Archiver) -> Outcome {
    loop {
        let now_ms = archiver.shared.stream.clock.now_ms();
        let mut candidates = archiver.survey().await;
        candidates.retain(|c| c.lag.is_due(&c.policy, now_ms));
        let Some(next) = candidates.pop() else {
            return Ok(());
        };
        archiver.shared.archive(next).await?;
    }
}

/// Merges and archives everything.
pub(crate) async fn settle(log: &Log, format: &Arc<FakeHistory>, file_bytes: u64) {
    merger(log).round().await.unwrap();
    round(&archiver(log, format, eager(file_bytes))).await.unwrap();
}

fn levels(log: &Log, id: &TopicId, partition: i32) -> Vec<Level> {
    let p = log.partition(id, partition).unwrap();
    let image = p.published.lock();
    image.ranges.iter().map(|r| r.place.level).collect()
}

fn all_are(log: &Log, id: &TopicId, level: Level) -> bool {
    (0..3).all(|p| levels(log, id, p).iter().all(|l| *l == level))
}

/// Three partitions with small and large records; returns what each holds.
pub(crate) async fn produce(log: &Log, id: &TopicId, rounds: usize) -> Vec<Vec<(i64, String)>> {
    let large = "x".repeat(LARGE);
    for round in 0..rounds {
        for partition in 0..3 {
            let p = log.partition(id, partition).unwrap();
            let value = format!("v{round}-{partition}");
            let second = if (round + partition as usize).is_multiple_of(3) {
                large.as_str()
            } else {
                "y"
            };
            append(log, &p, &[&value, second]).await;
        }
    }
    read_all(log, id).await
}

pub(crate) async fn read_all(log: &Log, id: &TopicId) -> Vec<Vec<(i64, String)>> {
    let mut all = vec![];
    for partition in 0..3 {
        let p = log.partition(id, partition).unwrap();
        all.push(contents(log, &p, p.watermarks().log_start_offset).await);
    }
    all
}

async fn files(store: &Store) -> Vec<String> {
    let listing = store.bulk.list(Some(&store.key(keys::ARCHIVE)));
    let names = listing.map(|o| o.unwrap().location.to_string());
    let mut names: Vec<String> = names.collect().await;
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_is_archived_reads_the_same_from_any_offset() {
    let (store, format) = (memory().await, FakeHistory::new(700_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 9).await;
    let lookups = [
        OffsetLookup::Earliest,
        OffsetLookup::MaxTimestamp,
        OffsetLookup::Timestamp(0),
        OffsetLookup::Timestamp(1_001),
        OffsetLookup::Timestamp(1_002),
    ];
    let look = |what| {
        let (log, p) = (log.clone(), log.partition(&id, 1).unwrap());
        async move { log.lookup_offset(&p, what).await.unwrap() }
    };
    let mut found = vec![];
    for what in lookups {
        found.push(look(what).await);
    }
    settle(&log, &format, 2 << 20).await;
    assert!(all_are(&log, &id, Level::L2));
    // What rows become is not known before they are read: a fetch that counted their bytes in the file would bring many
    // times what it may.
    let p = log.partition(&id, 0).unwrap();
    let readable = p.readable_bytes(0, Isolation::ReadUncommitted).unwrap();
    assert!(readable >= 1 << 30, "{readable}");
    let metrics = &log.inner.stream.metrics;
    let names = files(&store).await;
    assert!(names.len() > 2, "{names:?}");
    assert_eq!(metrics.archived_files.get(), names.len() as u64);
    assert_eq!(metrics.archived_rows.get(), 9 * 3 * 2);
    for name in &names {
        let (folder, incarnation, _) = keys::parse_archived(name).unwrap();
        assert_eq!((folder, incarnation), (keys::archive_folder("t", id).as_str(), 1));
    }
    let begun = format.begun.lock().clone();
    assert!(
        begun
            .iter()
            .all(|t| (t.id, t.name.as_str(), t.text_values) == (id, "t", true))
    );
    for partition in 0..3 {
        let p = log.partition(&id, partition).unwrap();
        let of = &all[partition as usize];
        for from in 0..of.len() {
            assert_eq!(contents(&log, &p, from as i64).await, of[from..], "from {from}");
        }
        let image = p.published.lock();
        assert_eq!((image.unmerged, image.archived), (0, image.bytes));
        assert_eq!(image.retention_point(i64::MAX, 0, -1), image.state.end);
    }
    for (what, found) in lookups.into_iter().zip(found) {
        assert_eq!(look(what).await, found, "{what:?}");
    }
    // A large read takes several shares, and goes on behind history.
    let more = produce(&log, &id, 2).await;
    let p = log.partition(&id, 0).unwrap();
    let read = log
        .read(&p, 1, 10 << 20, Isolation::ReadUncommitted)
        .await
        .unwrap();
    assert!(read.bytes > 3 * LARGE, "{}", read.bytes);
    assert_eq!(read_all(&log, &id).await, more);
    assert_eq!(levels(&log, &id, 0).last(), Some(&Level::L0));
}

#[tokio::test]
async fn history_survives_restarts_and_is_gone_on_with() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let mut log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    for n in 0..4 {
        let all = produce(&log, &id, 4).await;
        settle(&log, &format, 64 << 20).await;
        assert!(all_are(&log, &id, Level::L2));
        if n % 2 == 1 {
            log.inner.checkpointer.write_checkpoint().await.unwrap();
            let durable = log.inner.checkpointer.durable().borrow().clone();
            assert_eq!(
                Some(durable.floor),
                durable.checkpoint_next,
                "no data pins the floor"
            );
            assert!(durable.covered.iter().all(|c| !c.foreign_l0));
        }
        // A crash.
        log = open(&store, &format).await;
        assert_eq!(read_all(&log, &id).await, all);
        assert!(all_are(&log, &id, Level::L2));
    }
    assert_eq!(files(&store).await.len(), 4, "nothing is archived twice");

    // Without the format what is history cannot be read, and it is said so.
    let options = LogOptions::for_store(StoreKind::Memory);
    let log = Log::open(
        store.clone(),
        options,
        Arc::new(SystemClock),
        &mut Registry::default(),
    )
    .await
    .unwrap();
    let p = log.partition(&id, 0).unwrap();
    let read = log.read(&p, 0, 100, Isolation::ReadUncommitted).await;
    assert!(
        matches!(&read, Err(ReadError::NoHistory(key)) if key.ends_with(".parquet")),
        "{read:?}"
    );
    assert_eq!(log.archive_now(&id).await, Err(NotArchived::NoFormat));
}

#[tokio::test]
async fn a_file_that_nobody_points_to_is_left_and_changes_nothing() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    merger(&log).round().await.unwrap();
    // Written, and not published: the broker stops between the two.
    let archiver_ = archiver(&log, &format, eager(64 << 20));
    log.inner.stream.stop();
    let ended = round(&archiver_).await;
    assert_eq!(ended, Err(EndOfFile::Stream(AppendError::Stopping)));
    assert_eq!(files(&store).await.len(), 1);

    let log = open(&store, &format).await;
    assert!(all_are(&log, &id, Level::L1));
    assert_eq!(read_all(&log, &id).await, all);
    round(&archiver(&log, &format, eager(64 << 20))).await.unwrap();
    assert_eq!(files(&store).await.len(), 2);
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test]
async fn an_archive_of_a_broker_that_was_taken_over_changes_nothing() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let old = open(&store, &format).await;
    let id = topic(&old, "t", 3).await;
    let all = produce(&old, &id, 2).await;
    merger(&old).round().await.unwrap();
    let new = open(&store, &format).await;
    // It does not know yet, so it archives, and meets the seal with the pointers.
    let ended = round(&archiver(&old, &format, eager(64 << 20))).await;
    assert_eq!(ended, Err(EndOfFile::Stream(AppendError::NotLeader)));
    assert_eq!(files(&store).await.len(), 1);
    assert!(all_are(&new, &id, Level::L1));
    assert_eq!(read_all(&new, &id).await, all);
    round(&archiver(&new, &format, eager(64 << 20))).await.unwrap();
    assert_eq!(files(&store).await.len(), 2, "under a name of its own");
    assert_eq!(read_all(&new, &id).await, all);
}

#[tokio::test]
async fn of_two_rewrites_of_the_same_data_one_counts() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let mut all = produce(&log, &id, 4).await;
    let mut merger_ = merger(&log);
    merger_.round().await.unwrap();
    let archivers = [(); 2].map(|()| archiver(&log, &format, eager(64 << 20)));
    // What is merged meanwhile is none of their business.
    for p in 0..3 {
        append(&log, &log.partition(&id, p).unwrap(), &["more"]).await;
        all[p as usize].push((8, "more".into()));
    }
    let candidates = async |archiver: &Archiver| archiver.survey().await.remove(0);
    let [a, b] = [candidates(&archivers[0]).await, candidates(&archivers[1]).await];
    let outcomes = futures::join!(
        archivers[0].shared.archive(a),
        archivers[1].shared.archive(b),
        merger_.round()
    );
    assert_eq!(outcomes, (Ok(()), Ok(()), Ok(())));
    assert_eq!(files(&store).await.len(), 2);
    assert_eq!(read_all(&log, &id).await, all);
    assert!(!log.inner.stream.is_fenced());
    for partition in 0..3 {
        let p = log.partition(&id, partition).unwrap();
        let places: HashSet<_> = p.published.lock().ranges.iter().map(|r| r.place).collect();
        assert_eq!(places.len(), 2, "one file, and what was merged: {places:?}");
    }
    let log = open(&store, &format).await;
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test]
async fn a_format_that_refuses_costs_a_number_and_nothing_else() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    merger(&log).round().await.unwrap();
    let archiver = archiver(&log, &format, eager(64 << 20));
    format.refuses.store(true, Ordering::Relaxed);
    let refused = round(&archiver).await;
    assert_eq!(refused, Err(EndOfFile::File(FileError::Format("refused".into()))));
    assert!(files(&store).await.is_empty());
    format.refuses.store(false, Ordering::Relaxed);
    // A thread that dies, which it never should.
    *format.before_finish.lock() = Some(Box::new(|| panic!("a bug of the format")));
    let died = round(&archiver).await;
    assert!(
        matches!(died, Err(EndOfFile::File(FileError::Format(_)))),
        "{died:?}"
    );
    assert!(files(&store).await.is_empty());
    round(&archiver).await.unwrap();
    assert!(all_are(&log, &id, Level::L2));
    assert_eq!(read_all(&log, &id).await, all);
    let names = files(&store).await;
    assert!(
        names.len() == 1 && names[0].ends_with("-00000000000000000002.parquet"),
        "{names:?}"
    );
}

/// A batch as a careless producer may send it: the checksum is right, and the records cannot be opened.
fn bad_inside() -> RecordBatch {
    let mut bytes = batch(&["never to be seen", &"z".repeat(LARGE)], None)
        .bytes()
        .to_vec();
    // It says that they are compressed.
    bytes[field::ATTRIBUTES + 1] |= 1;
    let crc = crc32c::crc32c(&bytes[field::ATTRIBUTES..]).to_be_bytes();
    bytes[field::CRC..field::CRC + 4].copy_from_slice(&crc);
    RecordBatch::parse_produced(Bytes::from(bytes)).unwrap()
}

#[tokio::test]
async fn what_cannot_be_opened_stays_as_it_is_and_what_lies_around_it_is_archived() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let large = "x".repeat(LARGE);
    let [p0, p1] = [0, 1].map(|n| log.partition(&id, n).unwrap());
    append(&log, &p0, &["a", &large]).await;
    append(&log, &p1, &["b", &large]).await;
    let bad = log
        .append(&p0, bad_inside(), false)
        .unwrap()
        .published()
        .await
        .unwrap();
    append(&log, &p0, &["c", &large]).await;
    let bad_too = log
        .append(&p0, bad_inside(), false)
        .unwrap()
        .published()
        .await
        .unwrap();
    append(&log, &p0, &["d", &large]).await;
    let end = p0.watermarks().high_watermark;
    settle(&log, &format, 64 << 20).await;
    let expected = [Level::L2, Level::L1, Level::L2, Level::L1, Level::L2];
    let found = levels(&log, &id, 0);
    let mut distinct = found.clone();
    distinct.dedup();
    assert_eq!(distinct, expected, "{found:?}");
    assert!(levels(&log, &id, 1).iter().all(|l| *l == Level::L2));
    let metrics = &log.inner.stream.metrics;
    assert_eq!(metrics.unarchivable_ranges.get(), 2);
    assert_eq!(metrics.archived_files.get(), 1, "one that was given up, and one");

    // Everybody gets everything, the bad ones byte for byte.
    for log in [log, open(&store, &format).await] {
        let p = log.partition(&id, 0).unwrap();
        let (mut next, mut batches) = (0, vec![]);
        while next < end {
            let r = log.read(&p, next, 1, Isolation::ReadUncommitted).await.unwrap();
            let bytes = Bytes::from(r.chunks.concat());
            let one = RecordBatch::from_stored(bytes).unwrap();
            assert_eq!(one.header().base_offset, next);
            next = one.header().last_offset() + 1;
            batches.push(one);
        }
        let at = |offset| {
            batches
                .iter()
                .find(|b| b.header().base_offset == offset)
                .unwrap()
                .body()
        };
        assert_eq!(at(bad.base_offset), bad_inside().body());
        assert_eq!(at(bad_too.base_offset), bad_inside().body());
        let told = archived_to(&p, end);
        assert_eq!((told.archived_to, told.end), (bad.base_offset, end));
        assert!(told.why.unwrap().starts_with("2 ranges"));
    }
}

#[tokio::test]
async fn a_topic_of_which_nothing_more_can_be_remembered_is_left_alone_for_a_while() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let (id, good) = (topic(&log, "t", 3).await, topic(&log, "good", 3).await);
    let p = log.partition(&id, 0).unwrap();
    let bad = log.append(&p, bad_inside(), false).unwrap();
    bad.published().await.unwrap();
    append(&log, &log.partition(&good, 0).unwrap(), &["a"]).await;
    merger(&log).round().await.unwrap();
    let mut archiver = archiver(&log, &format, eager(64 << 20));
    let elsewhere = |offset| {
        let tp = TopicPartition {
            topic: TopicId::from_u128(77),
            partition: 0,
        };
        (tp, offset)
    };
    let many = (0..SET_ASIDE_MAX as i64).map(elsewhere);
    archiver.shared.set_aside.lock().extend(many);
    let mut candidates = archiver.survey().await;
    candidates.sort_by_key(|c| c.topic.id == good);
    let [first, second] = candidates.try_into().unwrap();
    assert_eq!((first.topic.id, second.topic.id), (id, good));
    let outcome = archiver.shared.archive(first).await;
    assert_eq!(outcome, Err(EndOfFile::TooMuchBad));
    // No file, so its number holds back no look for garbage.
    let numbers = &log.inner.stream.archived_numbers;
    assert_eq!((numbers.settled_below(), numbers.begin().number()), (2, 2));
    assert!(archiver.settle(id, outcome), "others go on");
    assert!(archiver.left_alone[&id] > Instant::now() + AGAIN / 2);
    archiver.shared.archive(second).await.unwrap();
    assert_eq!(levels(&log, &good, 0), [Level::L2]);
    assert_eq!(archiver.shared.set_aside.lock().len(), SET_ASIDE_MAX, "a bound");
    // With room it is set aside, and that is the end of it.
    archiver.shared.set_aside.lock().clear();
    round(&archiver).await.unwrap();
    assert!(archiver.shared.set_aside.lock().contains(&(p.id(), 0)));
    assert_eq!(levels(&log, &id, 0), [Level::L1]);
    assert_eq!(files(&store).await.len(), 1);
    assert_eq!(numbers.settled_below(), numbers.begin().number());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_share_is_read_again_while_others_would_wait_for_its_turn() {
    let store = memory().await;
    // Each batch is a share of its own.
    let format = FakeHistory::new(1);
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 6).await;
    settle(&log, &format, 1 << 20).await;
    assert!(all_are(&log, &id, Level::L2));
    let options = LogOptions {
        read_concurrency: 1,
        ..options(&format, StoreKind::Memory, 1)
    };
    let log = open_with(&store, options).await;
    // Its first shares are small, and are read side by side.
    let p = log.partition(&id, 1).unwrap();
    format.damaged.store(true, Ordering::Relaxed);
    let read = tokio::time::timeout(Duration::from_secs(60), contents(&log, &p, 0)).await;
    assert_eq!(read.expect("nobody waits for ever"), all[1]);
}

#[tokio::test(start_paused = true)]
async fn of_compressed_history_no_more_is_read_than_is_wanted() {
    let store = memory().await;
    // Each batch is a share of its own.
    let format = FakeHistory::new(1);
    format.expansion.store(20, Ordering::Relaxed);
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    let value = "x".repeat(4_000);
    for _ in 0..200 {
        append(&log, &p, &[&value]).await;
    }
    settle(&log, &format, 1 << 20).await;
    let read = async |offset: Offset, room: usize| {
        let before = format.reads.load(Ordering::Relaxed);
        let result = log
            .read(&p, offset, room, Isolation::ReadUncommitted)
            .await
            .unwrap();
        (
            result.bytes / 4_000,
            format.reads.load(Ordering::Relaxed) - before,
        )
    };
    // A reader of which nothing is known: for each byte four are expected, and twenty come.
    let (batches, shares) = read(50, 45_000).await;
    assert!(batches == 11 && shares > 12, "{batches} {shares}");
    // The next time it is known.
    let (batches, shares) = read(61, 45_000).await;
    assert!(batches == 11 && shares <= 12, "{batches} {shares}");
}

#[tokio::test]
async fn merged_data_that_is_damaged_or_missing_stops_nobody_else() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 6).await;
    let mut merger_ = merger(&log);
    merger_.round().await.unwrap();
    let p = log.partition(&id, 0).unwrap();
    let victim = p.published.lock().ranges[1];
    let key = store.key(&keys::place(victim.place));
    let mut bytes = store
        .bulk
        .get(&key)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    bytes[victim.position as usize + victim.len as usize - 1] ^= 1;
    store.bulk.put(&key, bytes.into()).await.unwrap();
    let archiver = archiver(&log, &format, eager(64 << 20));
    round(&archiver).await.unwrap();
    let image = p.published.lock().clone();
    assert_eq!(image.merged_ranges().collect::<Vec<_>>(), [&victim]);
    assert_eq!(log.inner.stream.metrics.unarchivable_ranges.get(), 1);
    assert!((1..3).all(|n| levels(&log, &id, n).iter().all(|l| *l == Level::L2)));

    // Everything of an object that is gone.
    produce(&log, &id, 2).await;
    merger_.round().await.unwrap();
    let gone = *p.published.lock().ranges.back().unwrap();
    store
        .bulk
        .delete(&store.key(&keys::place(gone.place)))
        .await
        .unwrap();
    round(&archiver).await.unwrap();
    assert_eq!(*p.published.lock().ranges.back().unwrap(), gone);
    round(&archiver).await.unwrap();
    assert_eq!(files(&store).await.len(), 1, "there was nothing for a second one");
}

/// A file that stops before it is finished, until the returned sender is used; the receiver tells that it is there.
fn held(format: &FakeHistory) -> (blocking::Receiver<()>, blocking::Sender<()>) {
    let (there, is_there) = blocking::channel();
    let (go, may_go) = blocking::channel::<()>();
    *format.before_finish.lock() = Some(Box::new(move || {
        there.send(()).unwrap();
        // Whoever has gone away lets it go on.
        let _ = may_go.recv();
    }));
    (is_there, go)
}

#[tokio::test(flavor = "multi_thread")]
async fn log_starts_deleted_topics_and_moves_during_a_file_do_no_harm() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let gone = topic(&log, "gone", 1).await;
    produce(&log, &id, 6).await;
    append(&log, &log.partition(&gone, 0).unwrap(), &["a"]).await;
    merger(&log).round().await.unwrap();
    let archiver = Arc::new(archiver(&log, &format, eager(64 << 20)));
    for topic in [id, gone] {
        let mut candidates = archiver.survey().await;
        candidates.retain(|c| c.topic.id == topic);
        let (is_there, go) = held(&format);
        let writing = {
            let (archiver, candidate) = (archiver.clone(), candidates.pop().unwrap());
            tokio::spawn(async move { archiver.shared.archive(candidate).await })
        };
        tokio::task::spawn_blocking(move || is_there.recv().unwrap())
            .await
            .unwrap();
        if topic == id {
            // One partition's log start passes a part, another's passes all, the third is about to move.
            let [p0, p1, p2] = [0, 1, 2].map(|n| log.partition(&id, n).unwrap());
            log.advance_log_start(&p0, 5).await.unwrap();
            log.advance_log_start(&p1, 12).await.unwrap();
            append(&log, &p1, &["later", "still"]).await;
            log.inner.stream.stop_appends(std::slice::from_ref(&p2)).unwrap();
        } else {
            let delete = Change::DeleteTopic { id: gone };
            log.change(vec![delete]).await.remove(0).unwrap();
        }
        let expected = read_all(&log, &id).await;
        go.send(()).unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(read_all(&log, &id).await, expected);
        assert_eq!(expected[0][0].0, 5);
    }
    assert!(levels(&log, &id, 0).iter().all(|l| *l == Level::L2));
    assert_eq!(levels(&log, &id, 1), [Level::L0], "only what came later");
    assert!(levels(&log, &id, 2).iter().all(|l| *l == Level::L1));
    let expected = read_all(&log, &id).await;
    let log = open(&store, &format).await;
    assert_eq!(read_all(&log, &id).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_lost_ends_its_files() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    merger(&log).round().await.unwrap();
    let (is_there, go) = held(&format);
    let (_ask, asked) = mpsc::channel(1);
    let running = tokio::spawn(archiver(&log, &format, eager(1 << 40)).run(asked));
    tokio::task::spawn_blocking(move || is_there.recv().unwrap())
        .await
        .unwrap();
    let new = open(&store, &format).await;
    let lost = log
        .append(&log.partition(&id, 0).unwrap(), batch(&["lost"], None), false)
        .unwrap()
        .published()
        .await;
    assert_eq!(lost, Err(AppendError::NotLeader));
    // It does not wait for the thread.
    tokio::time::timeout(Duration::from_secs(5), running)
        .await
        .unwrap()
        .unwrap();
    drop(go);
    assert_eq!(read_all(&new, &id).await, all);
    assert!(all_are(&new, &id, Level::L1));
}

#[tokio::test]
async fn a_file_is_written_in_place_where_there_are_no_threads_for_it() {
    let (store, format) = (memory().await, FakeHistory::new(700_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 4).await;
    merger(&log).round().await.unwrap();
    let mut archiver = archiver(&log, &format, eager(64 << 20));
    Arc::get_mut(&mut archiver.shared).unwrap().own_threads = false;
    let (tell, told) = blocking::channel();
    *format.before_finish.lock() = Some(Box::new(move || tell.send(std::thread::current().id()).unwrap()));
    round(&archiver).await.unwrap();
    assert_eq!(told.try_recv(), Ok(std::thread::current().id()));
    assert!(all_are(&log, &id, Level::L2));
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test]
async fn below_feature_level_3_nothing_is_archived() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 2).await;
    let lower = |m: &mut Manifest| {
        m.feature_level = 2;
        Ok::<_, std::convert::Infallible>(((), Some(1)))
    };
    log.inner.keeper.change(lower).await.unwrap();
    settle(&log, &format, 1).await;
    assert!(all_are(&log, &id, Level::L1));
    assert!(files(&store).await.is_empty());
}

/// A log that archives only when somebody asks for it, which counts again after `apart`.
async fn open_to_ask(store: &Store, format: &Arc<FakeHistory>, apart: Duration) -> Log {
    let mut options = LogOptions::for_store(StoreKind::Memory);
    options.merge.interval = 1_000 * HOUR;
    options.history = Some(format.clone());
    options.archive_policies = Some(Arc::new(Alike(ArchivePolicy {
        file_bytes: 1 << 40,
        interval: 1_000 * HOUR,
        text_values: false,
    })));
    options.archive.flush_interval_min = apart;
    let mut registry = Registry::default();
    let opened = Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry).await;
    opened.unwrap()
}

#[tokio::test]
async fn a_topic_is_archived_when_somebody_asks_for_it() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open_to_ask(&store, &format, Duration::ZERO).await;
    let (id, other) = (topic(&log, "t", 3).await, topic(&log, "other", 3).await);
    let internal = topic(&log, "__internal", 1).await;
    let all = produce(&log, &id, 3).await;
    produce(&log, &other, 1).await;
    let done = log.archive_now(&id).await.unwrap();
    let expected: Vec<ArchivedPartition> = (0..3)
        .map(|partition| ArchivedPartition {
            partition,
            archived_to: 6,
            end: 6,
            why: None,
        })
        .collect();
    assert_eq!(done, expected);
    assert!(all_are(&log, &id, Level::L2) && all_are(&log, &other, Level::L1));
    assert_eq!(read_all(&log, &id).await, all);
    assert_eq!(
        log.archive_now(&id).await.unwrap(),
        expected,
        "nothing is left to do"
    );
    assert_eq!(log.archive_now(&internal).await, Err(NotArchived::NotThisTopic));
    assert_eq!(log.archive_now(&TopicId::nil()).await, Err(NotArchived::NotLed));
    // What cannot be written is told.
    produce(&log, &id, 1).await;
    format.refuses.store(true, Ordering::Relaxed);
    let failed = log.archive_now(&id).await;
    assert_eq!(failed, Err(NotArchived::Failed("refused".into())));
    format.refuses.store(false, Ordering::Relaxed);
    let done = log.archive_now(&id).await.unwrap();
    assert!(done.iter().all(|p| (p.archived_to, p.end) == (8, 8)), "{done:?}");
    log.close().await.unwrap();
    assert_eq!(log.archive_now(&id).await, Err(NotArchived::Ended));
}

#[tokio::test]
async fn who_asks_again_and_again_makes_no_masses_of_small_objects() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let apart = Duration::from_secs(2);
    let log = open_to_ask(&store, &format, apart).await;
    let (id, other) = (topic(&log, "t", 3).await, topic(&log, "other", 3).await);
    let p = log.partition(&id, 0).unwrap();
    let metrics = &log.inner.stream.metrics;
    let counts = || (metrics.archived_files.get(), metrics.merged_objects.get());
    append(&log, &p, &["a"]).await;
    let begun = Instant::now();
    log.archive_now(&id).await.unwrap();
    let first = begun.elapsed();
    assert!(first < apart, "the first waits for nobody: {first:?}");
    assert_eq!(counts(), (1, 1));
    // Where nothing is left to do nothing is done, not even to what else the stream holds.
    append(&log, &log.partition(&other, 0).unwrap(), &["not yet"]).await;
    for _ in 0..50 {
        log.archive_now(&id).await.unwrap();
    }
    assert_eq!(counts(), (1, 1));
    assert!(begun.elapsed() < apart, "{:?}", begun.elapsed());
    // Two who ask for a little more: both wait, and the second for longer.
    append(&log, &p, &["b"]).await;
    let asked = || async {
        let done = log.archive_now(&id).await.unwrap();
        append(&log, &p, &["c"]).await;
        (done[0].archived_to, begun.elapsed())
    };
    let ((to, first), (_, second)) = futures::join!(asked(), asked());
    assert!(to >= 2);
    assert!(first.min(second) >= apart, "{first:?} {second:?}");
    assert!(first.max(second) >= 2 * apart, "{first:?} {second:?}");
    assert_eq!(counts().0, 3);
    // Other topics do not wait for this one.
    let begun = Instant::now();
    log.archive_now(&other).await.unwrap();
    assert!(begun.elapsed() < apart, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn who_waits_to_ask_hears_that_the_log_was_closed() {
    let (store, format) = (memory().await, FakeHistory::new(1_000));
    let log = open_to_ask(&store, &format, HOUR).await;
    let id = topic(&log, "t", 3).await;
    let p = log.partition(&id, 0).unwrap();
    for value in ["a", "b"] {
        append(&log, &p, &[value]).await;
        if value == "a" {
            log.archive_now(&id).await.unwrap();
        }
    }
    let waits = tokio::spawn({
        let log = log.clone();
        async move { log.archive_now(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waits.is_finished());
    log.close().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), waits).await;
    assert_eq!(ended.unwrap().unwrap(), Err(NotArchived::Ended));
}

/// A store in which no segment becomes durable while it is held.
#[derive(Debug)]
struct Held {
    inner: InMemory,
    held: tokio::sync::watch::Receiver<bool>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("held")
    }
}

#[async_trait]
impl ObjectStore for Held {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        if key.as_ref().starts_with(keys::STREAMS) {
            self.held.clone().wait_for(|held| !held).await.unwrap();
        }
        self.inner.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A store that holds segments back while the sender says so.
fn holding() -> (Store, tokio::sync::watch::Sender<bool>) {
    let (hold, held) = tokio::sync::watch::channel(false);
    let bucket: Arc<dyn ObjectStore> = Arc::new(Held {
        inner: InMemory::new(),
        held,
    });
    let store = Store::from_parts(
        bucket.clone(),
        bucket,
        Default::default(),
        "held".into(),
        StoreKind::Memory,
        StoreOptions::default(),
    );
    (store, hold)
}

#[tokio::test]
async fn a_rewrite_waits_for_the_one_before_although_nobody_waits_for_that() {
    let (store, hold) = holding();
    let format = FakeHistory::new(1_000);
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 2).await;
    let merged = async || {
        let listing = store.bulk.list(Some(&store.key(keys::MERGED)));
        listing.collect::<Vec<_>>().await.len()
    };
    hold.send(true).unwrap();
    // Its pointers are on their way and not published when whoever wrote them is gone.
    let first = tokio::spawn({
        let mut merger = merger(&log);
        async move { merger.round().await }
    });
    until(|| log.inner.stream.oldest_wait() > Duration::ZERO).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(merged().await, 1);
    // Of the same data, as far as anybody can see.
    assert!(all_are(&log, &id, Level::L0));
    let second = tokio::spawn({
        let mut merger = merger(&log);
        async move { merger.round().await }
    });
    let begun = Instant::now();
    while merged().await < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!second.is_finished() && all_are(&log, &id, Level::L0));
    hold.send(false).unwrap();
    second.await.unwrap().unwrap();
    // It was judged by what the first one had published: two pointers to the same offsets would have ended the stream.
    assert!(!log.inner.stream.is_fenced());
    let places = (0..3).flat_map(|n| {
        let p = log.partition(&id, n).unwrap();
        let image = p.published.lock();
        image.ranges.iter().map(|r| r.place).collect::<Vec<_>>()
    });
    let places: HashSet<_> = places.collect();
    assert_eq!(places.len(), 1, "{places:?}");
    assert_eq!(read_all(&log, &id).await, all);
    assert_eq!(read_all(&open(&store, &format).await, &id).await, all);
}

#[tokio::test]
async fn while_producers_wait_nothing_is_read_for_history() {
    let (store, hold) = holding();
    let format = FakeHistory::new(1_000);
    let log = open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 2).await;
    merger(&log).round().await.unwrap();
    let pause_above = Duration::from_millis(50);
    let mut archiver = archiver(&log, &format, eager(64 << 20));
    Arc::get_mut(&mut archiver.shared).unwrap().pace = Pace::new(u64::MAX, pause_above);
    hold.send(true).unwrap();
    let waits = log
        .append(&log.partition(&id, 0).unwrap(), batch(&["slow"], None), false)
        .unwrap();
    until(|| log.inner.stream.oldest_wait() > pause_above).await;
    let archived = tokio::spawn(async move { round(&archiver).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(files(&store).await.is_empty() && !archived.is_finished());
    hold.send(false).unwrap();
    waits.published().await.unwrap();
    archived.await.unwrap().unwrap();
    assert_eq!(log.inner.stream.oldest_wait(), Duration::ZERO);
    assert_eq!(files(&store).await.len(), 1);
    let paused = log.inner.stream.metrics.archive_paused_seconds.get();
    assert!(paused >= 0.25, "{paused}");
}

/// A bucket that several brokers share.
fn shared() -> Store {
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    Store::from_parts(
        bucket.clone(),
        bucket,
        Default::default(),
        "shared".into(),
        StoreKind::S3,
        StoreOptions::default(),
    )
}

async fn read_one(log: &Log, id: &TopicId, partition: i32) -> Vec<(i64, String)> {
    contents(log, &log.partition(id, partition).unwrap(), 0).await
}

/// Waits until something is so.
async fn until(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn history_moves_with_its_slot_and_outlives_its_writer() {
    let (store, format) = (shared(), FakeHistory::new(1_000));
    let a = open_as(&store, &format, StoreKind::S3, 1).await;
    let id = topic(&a, "t", 3).await;
    let all = produce(&a, &id, 3).await;
    settle(&a, &format, 64 << 20).await;
    assert!(all_are(&a, &id, Level::L2));
    let b = open_as(&store, &format, StoreKind::S3, 2).await;
    let slot = a.manifest().slot_of(&TopicPartition {
        topic: id,
        partition: 0,
    });
    until(|| a.manifest().is_live(b.incarnation())).await;
    a.inner.desire(vec![(slot, b.incarnation())]).await.unwrap();
    until(|| b.partition(&id, 0).is_some()).await;
    assert_eq!(read_one(&b, &id, 0).await, all[0]);
    assert!(levels(&b, &id, 0).iter().all(|l| *l == Level::L2));
    // It goes on behind what the other one archived, and its links need not wait for that.
    append(&b, &b.partition(&id, 0).unwrap(), &["more"]).await;
    settle(&b, &format, 64 << 20).await;
    b.inner.checkpointer.write_checkpoint().await.unwrap();
    let durable = b.inner.checkpointer.durable().borrow().clone();
    assert!(durable.covered.iter().any(|c| c.slot == slot && !c.foreign_l0));
    until(|| b.manifest().links(slot).is_empty()).await;

    // And the rest when its writer dies.
    b.inner.take_over(a.incarnation(), "it is dead").await.unwrap();
    until(|| (0..3).all(|n| b.partition(&id, n).is_some())).await;
    let mut expected = all.clone();
    expected[0].push((6, "more".into()));
    assert_eq!(read_all(&b, &id).await, expected);
    assert!(all_are(&b, &id, Level::L2));
    let again = open_as(&store, &format, StoreKind::S3, 2).await;
    assert_eq!(read_all(&again, &id).await, expected);
}
