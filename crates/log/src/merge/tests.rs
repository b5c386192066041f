//! Whole-engine tests: produce, merge, checkpoint, delete, restart, and read everything.

use std::collections::BTreeSet;

use object_store::memory::InMemory;
use prometheus_client::registry::Registry;

use super::*;
use crate::checkpointer::Durable;
use crate::clean::{Cleaner, NotCleaned};
use crate::entry::Level;
use crate::head::Head;
use crate::keys::{InStream, parse_in_stream};
use crate::manifest::Change;
use crate::store::counting::StoreMetrics;
use crate::store::{Store, StoreKind, StoreOptions};
use crate::tests::meddling::meddled;
use crate::tests::shared::{a_while, join, shared};
use crate::tests::{append, contents, delete_objects, topic};
use crate::{Incarnation, Isolation, Log, LogOptions, ReadError, Seq, SystemClock, TopicId};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn memory() -> Store {
    Store::open("memory://", StoreOptions::default()).await.unwrap()
}

/// A log that merges and deletes only when a test says so.
async fn open(store: &Store) -> Log {
    let mut options = LogOptions::for_store(StoreKind::Memory);
    options.merge.interval = 1_000 * HOUR;
    options.delete_delay = 1_000 * HOUR;
    open_with(store, options).await
}

pub(crate) async fn open_with(store: &Store, options: LogOptions) -> Log {
    let mut registry = Registry::default();
    let opened = Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry).await;
    opened.unwrap()
}

pub(crate) fn merger(log: &Log) -> Merger {
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

pub(crate) fn cleaner(log: &Log) -> Cleaner {
    Cleaner::new(log.inner.stream.clone(), log.inner.keeper.clone(), HOUR, HOUR)
}

/// Writes a checkpoint and returns what is durable with it.
pub(crate) async fn checkpoint(log: &Log) -> Arc<Durable> {
    log.inner.checkpointer.write_checkpoint().await.unwrap();
    log.inner.checkpointer.durable().borrow().clone()
}

pub(crate) async fn listed(store: &Store) -> Vec<String> {
    let all = store.bulk.list(None).map(|o| o.unwrap().location.to_string());
    let mut keys: Vec<String> = all.collect().await;
    keys.sort_unstable();
    keys
}

/// Segments and seals of a stream, and how many checkpoints.
pub(crate) async fn of_stream(store: &Store, incarnation: Incarnation) -> (BTreeSet<Seq>, usize) {
    let (mut segments, mut checkpoints) = (BTreeSet::new(), 0);
    for key in listed(store).await {
        match parse_in_stream(&key) {
            Some((i, InStream::Segment(seq))) if i == incarnation => drop(segments.insert(seq)),
            Some((i, InStream::Checkpoint(_))) if i == incarnation => checkpoints += 1,
            _ => {}
        }
    }
    (segments, checkpoints)
}

pub(crate) fn levels(log: &Log, id: &TopicId, partition: i32) -> Vec<Level> {
    let p = log.partition(id, partition).unwrap();
    let image = p.published.lock();
    image.ranges.iter().map(|r| r.place.level).collect()
}

/// Three partitions with records of very different sizes; returns what each holds.
pub(crate) async fn produce(log: &Log, id: &TopicId, rounds: usize) -> Vec<Vec<(i64, String)>> {
    let large = "x".repeat(1_300_000);
    for round in 0..rounds {
        for partition in 0..3 {
            let p = log.partition(id, partition).unwrap();
            let value = format!("v{round}-{partition}");
            let second = if (round + partition as usize) % 7 == 3 {
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
        let start = p.watermarks().log_start_offset;
        all.push(contents(log, &p, start).await);
    }
    all
}

#[tokio::test]
async fn what_is_merged_reads_the_same_and_the_rest_is_deleted() {
    let metrics = StoreMetrics::default();
    let options = StoreOptions {
        metrics: Some(metrics.clone()),
        ..StoreOptions::default()
    };
    let store = Store::open("memory://", options).await.unwrap();
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 12).await;
    let mut merger_ = merger(&log);
    merger_.round().await.unwrap();
    for partition in 0..3 {
        assert!(levels(&log, &id, partition).iter().all(|l| *l == Level::L1));
        let p = log.partition(&id, partition).unwrap();
        let image = p.published.lock();
        assert_eq!(image.unmerged, 0);
        let fits = |r: &StoredRange| r.len <= 1 << 20 || r.last_offset == r.base_offset + 1;
        assert!(image.ranges.iter().all(fits), "{:?}", image.ranges);
        assert!(image.ranges.len() < 12, "neighbours share a range");
    }
    assert_eq!(read_all(&log, &id).await, all);
    let missed = log.inner.stream.metrics.cache_misses.get();
    assert_eq!(missed, 0, "what was in memory still is");
    merger_.round().await.unwrap();
    let files = |keys: &[String]| keys.iter().filter(|k| k.starts_with("merged/")).count();
    assert_eq!(files(&listed(&store).await), 1, "nothing is left to merge");

    // A crash at this point: pointers are found behind what they point from.
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);
    assert!(levels(&log, &id, 0).iter().all(|l| *l == Level::L1));
    let more = produce(&log, &id, 5).await;
    merger(&log).round().await.unwrap();
    assert_eq!(read_all(&log, &id).await, more);

    let first = checkpoint(&log).await;
    assert_eq!(Some(first.floor), first.checkpoint_next, "no data pins the floor");
    assert!(first.covered.iter().all(|c| !c.foreign_l0));
    append(&log, &log.partition(&id, 0).unwrap(), &["last", "one"]).await;
    let durable = checkpoint(&log).await;
    assert_eq!(durable.floor, first.floor, "the newest segment is needed");
    let checkpoints = of_stream(&store, 2).await.1 as u64;
    assert!(checkpoints >= 2, "{checkpoints}");
    let deleted = cleaner(&log).clean_own(&durable).await.unwrap();
    assert_eq!(deleted, durable.floor + checkpoints - 1);
    assert_eq!(of_stream(&store, 2).await, (BTreeSet::from([durable.floor]), 1));
    assert_eq!(log.inner.stream.metrics.deleted(), deleted);
    let more = read_all(&log, &id).await;

    let reads = || metrics.requests("get") + metrics.requests("get_range");
    let before = reads();
    let log = open(&store).await;
    assert!(reads() - before < 15, "{} reads for a start", reads() - before);
    assert_eq!(read_all(&log, &id).await, more);
    assert_eq!(more[0].last().unwrap().1, "one");
}

#[tokio::test]
async fn small_objects_are_made_of_whole_segments_and_nothing_is_merged_twice() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 10).await;
    let mut merger = merger(&log);
    merger.options.file_bytes = 1;
    merger.round().await.unwrap();
    let files = listed(&store)
        .await
        .iter()
        .filter(|k| k.starts_with("merged/1/"))
        .count();
    assert_eq!(files, 30, "one for each segment");
    assert_eq!(read_all(&log, &id).await, all);
    assert_eq!(log.inner.stream.metrics.merged_objects.get(), 30);
}

#[tokio::test]
async fn log_starts_and_deleted_topics_between_plan_and_publication_do_no_harm() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let gone = topic(&log, "gone", 1).await;
    produce(&log, &id, 6).await;
    append(&log, &log.partition(&gone, 0).unwrap(), &["a"]).await;
    let mut merger = merger(&log);
    // As far as the pointers of one object.
    let cut = merger
        .survey()
        .await
        .cut(FileLimits {
            bytes: u64::MAX,
            ranges: u64::MAX,
        })
        .unwrap();
    let chosen = log.partitions();
    let chosen = chosen
        .iter()
        .flat_map(|p| runs(p.id(), p.leader_epoch(), &p.published.lock(), cut, |_| false));
    let layout = Arc::new(Layout::new(chosen.collect()));
    let mut data = vec![0; layout.data_len as usize];
    assert!(merger.collect(&layout, &mut data).await.unwrap().is_empty());
    let entries = pointers(
        &layout,
        &data,
        Target {
            file: 0,
            data_start: 0,
        },
        |_, _| true,
    )
    .unwrap();
    store
        .bulk
        .put_opts(&store.key(&keys::merged(1, 0)), data.into(), Default::default())
        .await
        .unwrap();
    // Meanwhile: one partition's log start passes a part, another's passes all, a topic goes.
    let [p0, p1] = [0, 1].map(|i| log.partition(&id, i).unwrap());
    log.advance_log_start(&p0, 5).await.unwrap();
    log.advance_log_start(&p1, 12).await.unwrap();
    log.change(vec![Change::DeleteTopic { id: gone }])
        .await
        .remove(0)
        .unwrap();
    append(&log, &p1, &["later", "still"]).await;
    let expected = read_all(&log, &id).await;
    // And one is about to be released: what its RELEASE will say is settled already.
    let p2 = log.partition(&id, 2).unwrap();
    log.inner.stream.stop_appends(std::slice::from_ref(&p2)).unwrap();
    merger.publish(entries).await.unwrap();
    assert!(levels(&log, &id, 2).iter().all(|l| *l == Level::L0));
    assert_eq!(read_all(&log, &id).await, expected);
    assert_eq!(levels(&log, &id, 1), [Level::L0], "only what came later");
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, expected);
    assert_eq!(expected[0][0].0, 5);
}

#[tokio::test]
async fn damaged_and_missing_segments_stop_nobody_else() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 4).await;
    let at = |log: &Log, partition, range: usize| {
        log.partition(&id, partition).unwrap().published.lock().ranges[range]
    };
    let (flipped, missing, cut) = (at(&log, 0, 1), at(&log, 1, 2), at(&log, 2, 3));
    let key = |r: &StoredRange| store.key(&keys::place(r.place));
    let mut bytes = store
        .bulk
        .get(&key(&flipped))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    bytes[flipped.position as usize + flipped.len as usize - 1] ^= 1;
    store.bulk.put(&key(&flipped), bytes.into()).await.unwrap();
    let log = open(&store).await;
    store.bulk.delete(&key(&missing)).await.unwrap();
    store
        .bulk
        .put(&key(&cut), Bytes::from_static(b"ALLUVIUM").into())
        .await
        .unwrap();
    let mut merger = merger(&log);
    merger.round().await.unwrap();
    for (partition, bad) in [(0, flipped), (1, missing), (2, cut)] {
        let p = log.partition(&id, partition).unwrap();
        let image = p.published.lock();
        assert_eq!(image.unmerged_ranges().collect::<Vec<_>>(), [&bad]);
    }
    let metrics = &log.inner.stream.metrics;
    assert_eq!(metrics.unmergeable_ranges.get(), 3);
    merger.round().await.unwrap();
    assert_eq!(metrics.unmergeable_ranges.get(), 3, "told once");
    let p = log.partition(&id, 0).unwrap();
    assert_eq!(
        contents(&log, &p, 4).await.len(),
        4,
        "what lies behind can be read"
    );
    let read = log.read(&p, 2, 1, Isolation::ReadUncommitted).await;
    assert!(matches!(read, Err(ReadError::Corrupt(_))), "{read:?}");
    assert!(
        checkpoint(&log).await.covered.iter().any(|c| c.foreign_l0),
        "its stream is still needed"
    );
}

#[tokio::test]
async fn a_segment_that_alone_cannot_be_read_holds_up_the_rest_for_a_few_rounds() {
    let bucket: Arc<InMemory> = Arc::default();
    let (store, hand) = meddled(&bucket, StoreKind::Memory);
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 4).await;
    let log = open(&store).await;
    let bad = log.partition(&id, 1).unwrap().published.lock().ranges[2];
    let key = store.key(&keys::place(bad.place)).to_string();
    hand.fail_reads(move |found| found == key);
    let mut merger = merger(&log);
    for _ in 1..STUBBORN_ROUNDS {
        let failed = merger.round().await;
        assert!(
            matches!(failed, Err(MergeError::Object { place, .. }) if place == bad.place),
            "{failed:?}"
        );
    }
    merger.round().await.unwrap();
    for partition in 0..3 {
        let p = log.partition(&id, partition).unwrap();
        let left = p.published.lock().unmerged_ranges().copied().collect::<Vec<_>>();
        assert!(left.iter().all(|r| r.place == bad.place), "{left:?}");
        assert_eq!(left.len(), usize::from(partition == 1));
    }
    // Nobody can be read: that is no fault of one object's.
    append(&log, &log.partition(&id, 0).unwrap(), &["more"]).await;
    hand.fail_reads(|_| false);
    let log = open(&store).await;
    hand.fail_reads(|_| true);
    let mut merger = self::merger(&log);
    for _ in 0..2 * STUBBORN_ROUNDS {
        assert!(merger.round().await.is_err());
    }
    assert_eq!(log.inner.stream.metrics.unmergeable_ranges.get(), 0);
}

/// Merges each segment into an object of its own, and gathers then.
async fn scattered(log: &Log) -> Merger {
    let mut merger = merger(log);
    merger.options.file_bytes = 1;
    merger.round().await.unwrap();
    merger.options.file_bytes = 8 << 20;
    merger.options.gather_after = Duration::ZERO;
    // What is younger than a millisecond is not older than nothing.
    tokio::time::sleep(Duration::from_millis(5)).await;
    merger
}

fn objects(log: &Log, id: &TopicId) -> BTreeSet<Place> {
    let of = |partition| {
        let p = log.partition(id, partition).unwrap();
        let image = p.published.lock();
        image.ranges.iter().map(|r| r.place).collect::<Vec<_>>()
    };
    (0..3).flat_map(of).collect()
}

#[tokio::test]
async fn little_that_is_needed_of_many_objects_is_gathered_and_reads_the_same() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 10).await;
    let p0 = log.partition(&id, 0).unwrap();
    p0.published.lock().clean_to = 7;
    let mut merger = scattered(&log).await;
    assert_eq!(objects(&log, &id).len(), 30);
    merger.options.gather_after = HOUR;
    merger.gather().await.unwrap();
    assert_eq!(objects(&log, &id).len(), 30, "it is too young");
    merger.options.gather_after = Duration::ZERO;
    log.advance_log_start(&p0, 5).await.unwrap();
    let all = read_all(&log, &id).await;
    merger.gather().await.unwrap();
    assert_eq!(objects(&log, &id).len(), 1);
    assert_eq!(read_all(&log, &id).await, all);
    assert_eq!(p0.published.lock().clean_to, 7, "nothing was compacted");
    let gathered = log.inner.stream.metrics.gathered_bytes.get();
    assert!(gathered > 4 << 20, "{gathered}");
    merger.gather().await.unwrap();
    assert_eq!(
        log.inner.stream.metrics.gathered_bytes.get(),
        gathered,
        "and not again"
    );
    // What is merged later stands where it is merged, and a new start sees the same.
    append(&log, &p0, &["later"]).await;
    let all = read_all(&log, &id).await;
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);
    let planned = merger.needed_of(&objects(&log, &id)).await;
    assert!(planned.iter().all(|run| run.ranges.len() > 1), "{planned:?}");
}

#[tokio::test]
async fn what_was_rewritten_since_it_was_gathered_stays_as_it_is_now() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 10).await;
    let mut merger = scattered(&log).await;
    let layout = Layout::new(merger.needed_of(&objects(&log, &id)).await);
    let (index, _number) = merger.copy(&Arc::new(layout.clone())).await.unwrap().unwrap();
    let pointers = |wanted: i32| {
        let of = index.entries.iter().filter(|m| m.partition.partition == wanted);
        of.map(|merged| gathered(&layout, merged.clone()))
            .collect::<Vec<_>>()
    };
    // Somebody else rewrites all of it meanwhile, and the offsets of the pointers fit as before.
    merger.gather().await.unwrap();
    let places = objects(&log, &id);
    let stream = &log.inner.stream;
    assert_eq!(stream.rewrite_if(pointers(0)).await.unwrap(), 0);
    assert_eq!((objects(&log, &id), read_all(&log, &id).await), (places, all));
    let blindly = pointers(0).into_iter().map(|(entry, _)| entry).collect();
    assert_eq!(stream.rewrite(blindly).await.unwrap(), 1, "the offsets do fit");
}

#[tokio::test]
async fn an_object_that_nobody_points_to_is_left_and_its_number_is_not_used_again() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    // The number is taken: by an earlier write of ours that was given up, for all that is known.
    let taken = store.key(&keys::merged(1, 0));
    store
        .bulk
        .put(&taken, Bytes::from_static(b"who knows").into())
        .await
        .unwrap();
    let mut merger_ = merger(&log);
    let refused = merger_.round().await;
    assert!(matches!(refused, Err(MergeError::Odd(_))), "{refused:?}");
    assert!(store.bulk.head(&taken).await.is_ok());
    // Written, and not published: the broker stops between the two.
    log.inner.stream.stop();
    let ended = merger_.round().await;
    assert_eq!(ended, Err(MergeError::Ended(AppendError::Stopping)));
    assert!(store.bulk.head(&store.key(&keys::merged(1, 1))).await.is_ok());

    let log = open(&store).await;
    assert!(levels(&log, &id, 0).iter().all(|l| *l == Level::L0));
    assert_eq!(read_all(&log, &id).await, all);
    merger(&log).round().await.unwrap();
    assert_eq!(read_all(&log, &id).await, all);
    let names = listed(&store).await;
    assert_eq!(names.iter().filter(|k| k.starts_with("merged/")).count(), 3);
}

#[tokio::test]
async fn a_merge_of_a_broker_that_was_taken_over_changes_nothing_and_it_deletes_nothing() {
    let store = memory().await;
    let old = open(&store).await;
    let id = topic(&old, "t", 3).await;
    produce(&old, &id, 3).await;
    merger(&old).round().await.unwrap();
    let durable = checkpoint(&old).await;
    let all = produce(&old, &id, 3).await;
    let new = open(&store).await;
    // It does not know yet, so it merges, and meets the seal with the pointers.
    let merged = merger(&old).round().await;
    assert!(
        matches!(merged, Err(MergeError::Odd(_) | MergeError::Ended(_))),
        "{merged:?}"
    );
    let merged = merger(&old).round().await;
    assert_eq!(merged, Err(MergeError::Ended(AppendError::NotLeader)));
    assert!(durable.floor > 0);
    let before = listed(&store).await;
    assert_eq!(cleaner(&old).clean_own(&durable).await, Err(NotCleaned::Fenced));
    assert_eq!(listed(&store).await, before);
    assert_eq!(read_all(&new, &id).await, all);
    let last = *levels(&new, &id, 0).last().unwrap();
    assert_eq!(last, Level::L0, "the pointers of the old one do not count");
}

#[tokio::test]
async fn a_stream_that_left_the_manifest_keeps_its_seal_and_its_head() {
    let store = memory().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 3).await;
    checkpoint(&log).await;
    produce(&log, &id, 1).await;
    log.close().await.unwrap();
    let log = open(&store).await;
    let all = read_all(&log, &id).await;
    let cleaner_ = cleaner(&log);
    let before = of_stream(&store, 1).await;
    assert_eq!(cleaner_.clean_stream(1).await, Ok(0), "it is linked");
    assert_eq!(cleaner_.clean_stream(2).await, Ok(0), "it lives");
    assert_eq!(cleaner_.clean_stream(3).await, Ok(0), "it is to come");
    assert_eq!(cleaner_.sweep().await, Ok(0));
    assert!(checkpoint(&log).await.covered.iter().any(|c| c.foreign_l0));
    merger(&log).round().await.unwrap();
    assert!(checkpoint(&log).await.covered.iter().all(|c| !c.foreign_l0));
    let unlink = |m: &mut crate::manifest::Manifest| {
        m.streams.remove(&1);
        Ok::<_, std::convert::Infallible>(((), Some(2)))
    };
    log.inner.keeper.change(unlink).await.unwrap();

    // What cannot be read may be needed.
    let head = store.key(&keys::head(1));
    let good = store.bulk.get(&head).await.unwrap().bytes().await.unwrap();
    store
        .bulk
        .put(&head, Bytes::from_static(b"{").into())
        .await
        .unwrap();
    let refused = cleaner_.clean_stream(1).await;
    assert!(matches!(refused, Err(NotCleaned::Unreadable(_))), "{refused:?}");
    assert_eq!(of_stream(&store, 1).await, before);
    store.bulk.put(&head, good.clone().into()).await.unwrap();

    let deleted = cleaner_.sweep().await.unwrap();
    assert_eq!(deleted as usize, before.0.len() - 1 + before.1);
    let seal = *before.0.last().unwrap();
    assert_eq!(of_stream(&store, 1).await, (BTreeSet::from([seal]), 0));
    let kept = store.bulk.get(&head).await.unwrap().bytes().await.unwrap();
    assert!(Head::decode(&kept, log.manifest().cluster_id, 1).is_ok());
    assert_eq!(cleaner_.sweep().await, Ok(0));
    // A write of the dead broker that was on its way all the time: garbage, and found.
    let late = store.key(&keys::segment(1, seal + 1));
    let bytes = listed_segment(&store).await;
    store.bulk.put(&late, bytes.into()).await.unwrap();
    assert_eq!(cleaner_.sweep().await, Ok(1));
    assert_eq!(read_all(&log, &id).await, all);
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);
}

/// The bytes of some data segment of stream 2.
async fn listed_segment(store: &Store) -> Bytes {
    let seq = *of_stream(store, 2).await.0.first().unwrap();
    let key = store.key(&keys::segment(2, seq));
    store.bulk.get(&key).await.unwrap().bytes().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_an_open_log_keep_its_stream_short() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let id = topic(&log, "t", 3).await;
    for _ in 0..20 {
        produce(&log, &id, 2).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let all = read_all(&log, &id).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let (segments, checkpoints) = of_stream(&store, 1).await;
    assert!(
        segments.len() <= 2 && checkpoints == 1,
        "{segments:?} {checkpoints}"
    );
    assert_eq!(read_all(&log, &id).await, all);
    assert_eq!(log.inner.stream.metrics.unmerged_bytes.get(), 0);
    let quiet = listed(&store).await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(
        listed(&store).await,
        quiet,
        "an idle log writes nothing but its head"
    );
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test(start_paused = true)]
async fn below_feature_level_2_nothing_is_merged() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let lower = |m: &mut crate::manifest::Manifest| {
        m.feature_level = 1;
        Ok::<_, std::convert::Infallible>(((), Some(1)))
    };
    log.inner.keeper.change(lower).await.unwrap();
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 2).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(listed(&store).await.iter().all(|k| !k.starts_with("merged/")));
    assert!(levels(&log, &id, 0).iter().all(|l| *l == Level::L0));
}

#[tokio::test]
async fn a_reader_whose_segment_is_deleted_meanwhile_plans_again() {
    let (store, hand) = meddled(&Arc::default(), StoreKind::Memory);
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    let planned = p.published.lock().clone();
    merger(&log).round().await.unwrap();
    let merged = p.published.lock().clone();
    delete_objects(&store, &planned).await;
    // The plan is made before the pointers are published, and carried out when the segments are gone.
    let set = |image: &crate::partition::image::PartitionImage| {
        let (p, image) = (p.clone(), image.clone());
        move || *p.published.lock() = image
    };
    set(&planned)();
    let segment = |what| matches!(what, InStream::Segment(_));
    hand.before_get(segment, set(&merged));
    assert_eq!(contents(&log, &p, 0).await, all[0]);
    set(&planned)();
    hand.before_get(segment, set(&merged));
    let found = log
        .lookup_offset(&p, crate::OffsetLookup::Timestamp(1_000))
        .await
        .unwrap();
    assert_eq!(found.unwrap().offset, 0);
    set(&planned)();
    let read = log.read(&p, 0, 1, Isolation::ReadUncommitted).await;
    assert!(
        matches!(read, Err(ReadError::Missing(_))),
        "nothing has moved: {read:?}"
    );
}

#[tokio::test]
async fn a_checkpoint_that_is_deleted_meanwhile_means_reading_the_head_again() {
    let inner = Arc::<InMemory>::default();
    let (store, hand) = meddled(&inner, StoreKind::Memory);
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 1).await;
    let old = checkpoint(&log).await;
    let head = store.key(&keys::head(1));
    let of_old = inner.get(&head).await.unwrap().bytes().await.unwrap();
    let all = produce(&log, &id, 1).await;
    let new = checkpoint(&log).await;
    let of_new = inner.get(&head).await.unwrap().bytes().await.unwrap();
    assert!(old.checkpoint_next < new.checkpoint_next);
    assert_eq!(
        cleaner(&log).clean_own(&new).await.unwrap(),
        1,
        "the older checkpoint"
    );

    // The taker has read the older head when the newer one lands.
    inner.put(&head, of_old.clone().into()).await.unwrap();
    let lands = {
        let (inner, head) = (inner.clone(), head.clone());
        move || {
            let put = futures::FutureExt::now_or_never(async move { inner.put(&head, of_new.into()).await });
            put.unwrap().unwrap();
        }
    };
    let of_checkpoint = |what| matches!(what, InStream::Checkpoint(_));
    hand.before_get(of_checkpoint, lands);
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);

    // A head that names what is not there, and stays: that is damage, and told with the key.
    let log = {
        checkpoint(&log).await;
        log
    };
    let head = store.key(&keys::head(2));
    let named = inner.get(&head).await.unwrap().bytes().await.unwrap();
    let named = Head::decode(&named, log.manifest().cluster_id, 2)
        .unwrap()
        .checkpoint
        .unwrap();
    let key = store.key(&keys::checkpoint(2, named.next, named.nonce));
    inner.delete(&key).await.unwrap();
    let options = LogOptions::for_store(StoreKind::Memory);
    let refused = Log::open(
        store.clone(),
        options,
        Arc::new(SystemClock),
        &mut Registry::default(),
    )
    .await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains(key.as_ref()) && why.contains("is missing"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_restarts_leave_a_manifest_as_small_as_before() {
    let store = memory().await;
    let (mut id, mut size) = (None, 0);
    let mut log = None;
    for i in 0..100 {
        let new = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
        let id = match id {
            Some(id) => id,
            None => *id.insert(topic(&new, "t", 3).await),
        };
        if i == 0 {
            size = new.manifest().encode().len();
        }
        let p = new.partition(&id, i % 3).unwrap();
        append(&new, &p, &[&format!("v{i}")]).await;
        match i % 3 {
            // Some stop gracefully, some crash after a while, some at once, and so does the last but for the test.
            2 => new.close().await.unwrap(),
            1 => tokio::time::sleep(Duration::from_secs(20)).await,
            _ => {}
        }
        log = Some(new);
    }
    let (log, id) = (log.unwrap(), id.unwrap());
    let all = read_all(&log, &id).await;
    assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 100);
    tokio::time::sleep(Duration::from_secs(400)).await;
    let manifest = log.manifest();
    assert_eq!(manifest.streams.keys().copied().collect::<Vec<_>>(), [100]);
    let now = manifest.encode().len();
    assert!(now < size + 100, "{now} bytes, {size} before");
    let keys = listed(&store).await;
    let of = |prefix: &str| keys.iter().filter(|k| k.starts_with(prefix)).count();
    // A seal for each dead stream and a head for most, what the live one has, and the merged data.
    assert!(of("wal/") <= 2 * 99 + 4, "{} objects in streams", of("wal/"));
    assert!(of("merged/") <= 100, "{} merged objects", of("merged/"));
    for dead in 1..100 {
        let (segments, checkpoints) = of_stream(&store, dead).await;
        assert_eq!((segments.len(), checkpoints), (1, 0), "stream {dead}");
    }
    let log = open(&store).await;
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test]
async fn a_directory_is_merged_and_cleaned_like_any_store() {
    let root = tempfile::tempdir().unwrap();
    let url = root.path().display().to_string();
    let store = Store::open(&url, StoreOptions::default()).await.unwrap();
    let mut options = LogOptions::for_store(StoreKind::Embedded);
    options.merge.interval = 1_000 * HOUR;
    let log = open_with(&store, options.clone()).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 5).await;
    merger(&log).round().await.unwrap();
    let durable = checkpoint(&log).await;
    let before = of_stream(&store, 1).await.0.len() as u64;
    assert_eq!(durable.floor, before);
    let deleted = cleaner(&log).clean_own(&durable).await.unwrap();
    assert!(deleted >= before);
    assert_eq!(of_stream(&store, 1).await, (BTreeSet::new(), 1));
    assert_eq!(read_all(&log, &id).await, all);
    log.close().await.unwrap();
    drop((log, store));
    let store = Store::open(&url, StoreOptions::default()).await.unwrap();
    let log = open_with(&store, options).await;
    assert_eq!(read_all(&log, &id).await, all);
}

pub(crate) async fn read_one(log: &Log, id: &TopicId, partition: i32) -> Vec<(i64, String)> {
    contents(log, &log.partition(id, partition).unwrap(), 0).await
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_moves_holds_the_floor_until_its_data_is_merged() {
    let store = shared();
    let a = join(&store, 1).await;
    let id = topic(&a, "t", 3).await;
    let all = produce(&a, &id, 4).await;
    let b = join(&store, 2).await;
    checkpoint(&a).await;
    let slot = a.manifest().slot_of(&TopicPartition {
        topic: id,
        partition: 0,
    });
    // It must have heard of the other one.
    a_while().await;
    a.inner.desire(vec![(slot, b.incarnation())]).await.unwrap();
    a_while().await;
    assert!(a.partition(&id, 0).is_none());
    let p = b.partition(&id, 0).unwrap();
    assert_eq!(read_one(&b, &id, 0).await, all[0]);
    append(&b, &p, &["more"]).await;

    merger(&a).round().await.unwrap();
    let held = checkpoint(&a).await;
    assert_eq!(held.floor, 0, "the new owner reads the old stream");
    assert!(held.covered.iter().all(|c| c.slot != slot));
    assert!(
        checkpoint(&b)
            .await
            .covered
            .iter()
            .any(|c| c.slot == slot && c.foreign_l0)
    );
    a_while().await;
    assert_eq!(b.manifest().links(slot).len(), 1);

    merger(&b).round().await.unwrap();
    assert!(levels(&b, &id, 0).iter().all(|l| *l == Level::L1));
    checkpoint(&b).await;
    a_while().await;
    assert!(a.manifest().links(slot).is_empty() && b.manifest().links(slot).is_empty());
    let free = checkpoint(&a).await;
    assert_eq!(Some(free.floor), free.checkpoint_next);
    assert!(cleaner(&a).clean_own(&free).await.unwrap() > 0);
    assert_eq!(of_stream(&store, 1).await.0, BTreeSet::new());
    let mut expected = all.clone();
    expected[0].push((p.watermarks().high_watermark - 1, "more".into()));
    assert_eq!(read_one(&b, &id, 0).await, expected[0]);
    assert_eq!(read_one(&a, &id, 1).await, expected[1]);
    let b = join(&store, 2).await;
    assert_eq!(read_one(&b, &id, 0).await, expected[0]);
}

#[tokio::test(start_paused = true)]
async fn the_stream_of_a_dead_broker_drains_and_what_it_still_tries_does_no_harm() {
    let store = shared();
    let dead = join(&store, 1).await;
    let id = topic(&dead, "t", 3).await;
    produce(&dead, &id, 3).await;
    merger(&dead).round().await.unwrap();
    let known = checkpoint(&dead).await;
    let all = produce(&dead, &id, 3).await;
    let heir = join(&store, 2).await;
    heir.inner.take_over(1, "it is dead").await.unwrap();
    a_while().await;
    assert_eq!(read_all(&heir, &id).await, all);
    assert!(merger(&dead).round().await.is_err());
    assert_eq!(cleaner(&dead).clean_own(&known).await, Err(NotCleaned::Fenced));
    merger(&heir).round().await.unwrap();
    checkpoint(&heir).await;
    a_while().await;
    let manifest = heir.manifest();
    assert_eq!(manifest.streams.keys().copied().collect::<Vec<_>>(), [2]);
    assert!(cleaner(&heir).sweep().await.unwrap() > 0);
    assert_eq!(of_stream(&store, 1).await.0.len(), 1, "its seal");
    assert_eq!(read_all(&heir, &id).await, all);
    let again = join(&store, 2).await;
    assert_eq!(read_all(&again, &id).await, all);
}
