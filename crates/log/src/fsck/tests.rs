//! Clusters of real logs in memory, and what is done to them.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::*;
use crate::checkpointer::Durable;
use crate::entry::{Level, Place};
use crate::head::Head;
use crate::keys::InStream;
use crate::manifest::Restored;
use crate::merge::tests::{HOUR, checkpoint, cleaner, listed, memory, merger, open_with, produce};
use crate::partition::image::StoredRange;
use crate::store::StoreKind;
use crate::tests::meddling::meddled;
use crate::tests::shared::{a_while, join, shared};
use crate::tests::topic;
use crate::{Log, LogOptions, TopicId};

async fn checked_as(store: &Store, fast: bool) -> Report {
    let options = FsckOptions { fast, history: None };
    let progress = watch::Sender::default();
    let report = check(store, &options, &progress).await.unwrap();
    let listed = progress.borrow().listed;
    assert_eq!(
        report.counts.total().objects,
        listed,
        "live + garbage + unknown is everything"
    );
    report
}

async fn checked(store: &Store) -> Report {
    checked_as(store, false).await
}

async fn whole(store: &Store) -> Report {
    let report = checked(store).await;
    assert_eq!(report.findings, []);
    assert!(report.whole);
    report
}

/// The only thing that is wrong.
async fn wrong(store: &Store) -> Finding {
    let mut report = checked(store).await;
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert!(!report.whole && report.deletable.is_empty());
    report.findings.remove(0)
}

async fn bytes(store: &Store, key: &str) -> Bytes {
    let found = store.bulk.get(&store.key(key)).await.unwrap();
    found.bytes().await.unwrap()
}

async fn put(store: &Store, key: &str, bytes: impl Into<Bytes>) {
    store
        .bulk
        .put(&store.key(key), bytes.into().into())
        .await
        .unwrap();
}

async fn remove(store: &Store, key: &str) -> Bytes {
    let was = bytes(store, key).await;
    store.bulk.delete(&store.key(key)).await.unwrap();
    was
}

fn flipped(bytes: &Bytes, at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1;
    flipped
}

/// A log that does nothing by itself.
async fn quiet(store: &Store) -> Log {
    let mut options = LogOptions::for_store(StoreKind::Memory);
    options.merge.interval = 1_000 * HOUR;
    options.delete_delay = 1_000 * HOUR;
    options.garbage_interval = 1_000 * HOUR;
    let log = open_with(store, options).await;
    // Else a head or checkpoint of its own would come in between.
    let tasks = std::mem::take(&mut *log.inner.background.lock());
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    log
}

/// A broker that was restarted: data that is merged, inherited data that is not, and its own.
async fn lived_in(store: &Store) -> (Log, TopicId) {
    let first = quiet(store).await;
    let id = topic(&first, "t", 3).await;
    produce(&first, &id, 3).await;
    merger(&first).round().await.unwrap();
    checkpoint(&first).await;
    produce(&first, &id, 2).await;
    first.close().await.unwrap();
    let log = quiet(store).await;
    produce(&log, &id, 2).await;
    checkpoint(&log).await;
    produce(&log, &id, 1).await;
    (log, id)
}

fn ranges(log: &Log, id: &TopicId) -> Vec<StoredRange> {
    let p = log.partition(id, 0).unwrap();
    let image = p.published.lock();
    image.ranges.iter().copied().collect()
}

/// The first range of partition 0 that stands on a level in an object of a broker start.
fn range(log: &Log, id: &TopicId, level: Level, incarnation: u64) -> StoredRange {
    let is = |r: &StoredRange| (r.place.level, r.place.incarnation) == (level, incarnation);
    ranges(log, id).into_iter().find(is).unwrap()
}

async fn head(store: &Store, log: &Log) -> Head {
    let found = bytes(store, &keys::head(log.incarnation())).await;
    Head::decode(&found, log.manifest().cluster_id, log.incarnation()).unwrap()
}

async fn named_checkpoint(store: &Store, log: &Log) -> String {
    let named = head(store, log).await.checkpoint.unwrap();
    keys::checkpoint(log.incarnation(), named.next, named.nonce)
}

#[tokio::test]
async fn a_cluster_that_is_used_is_whole_at_any_time() {
    let store = memory().await;
    let none = check(&store, &FsckOptions::default(), &watch::Sender::default()).await;
    assert!(none.unwrap_err().to_string().contains("no Alluvium cluster here"));
    let (log, id) = lived_in(&store).await;
    let report = whole(&store).await;
    assert_eq!((report.topics, report.partitions, report.live_brokers), (1, 3, 1));
    assert!(
        report.checked_objects >= 5 && report.checked_bytes > 2_000_000,
        "{report:?}"
    );
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(report.counts.of(Class::Unknown), Counted::default());
    let fast = checked_as(&store, true).await;
    assert!(fast.whole && fast.checked_bytes < 100_000);
    merger(&log).round().await.unwrap();
    whole(&store).await;
    let durable = checkpoint(&log).await;
    let report = whole(&store).await;
    let garbage = report.counts.of(Class::Garbage);
    assert!(garbage.objects > 0, "below the floor");
    assert!(
        deletable(&report).objects < garbage.objects,
        "which is its broker's affair"
    );
    cleaner(&log).clean_own(&durable).await.unwrap();
    let kept = whole(&store).await.counts.of(Class::Live).objects;
    assert!(kept > 5);
    log.change(vec![crate::manifest::Change::DeleteTopic { id }])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(whole(&store).await.partitions, 0);
    log.close().await.unwrap();
    let report = whole(&store).await;
    assert_eq!(serde_json::to_value(&report).unwrap()["whole"], true);
}

#[tokio::test]
async fn a_missing_object_is_named_with_what_is_lost() {
    let store = memory().await;
    let (log, id) = lived_in(&store).await;
    for r in [
        range(&log, &id, Level::L1, 1),
        range(&log, &id, Level::L0, 1),
        range(&log, &id, Level::L0, 2),
    ] {
        let key = keys::place(r.place);
        let was = remove(&store, &key).await;
        let report = checked(&store).await;
        let finding = &report.findings[0];
        assert_eq!(finding.place, key, "{report:#?}");
        let text = finding.to_string();
        assert!(text.contains("is missing"), "{text}");
        if finding.wrong == Wrong::Missing {
            assert_eq!(report.findings.len(), 1);
            assert!(text.contains("t-0 offsets") && finding.affected > 0, "{text}");
        } else {
            // A recovery would need it: all that goes through the stream is lost with it.
            assert_eq!(finding.wrong, Wrong::Segment);
            assert!(finding.affected > 0);
        }
        assert!(finding.advice().contains("earlier version of the bucket"));
        put(&store, &key, was).await;
    }
    whole(&store).await;
}

#[tokio::test]
async fn every_flipped_bit_of_a_record_or_index_is_found() {
    let store = memory().await;
    let (log, id) = lived_in(&store).await;
    for level in [Level::L1, Level::L0] {
        let r = range(&log, &id, level, 1);
        let key = keys::place(r.place);
        let good = bytes(&store, &key).await;
        put(&store, &key, flipped(&good, r.position as usize + 70)).await;
        let finding = wrong(&store).await;
        assert_eq!(
            (finding.wrong, finding.place.as_str()),
            (Wrong::Damaged, key.as_str())
        );
        assert!(finding.to_string().contains("t-0 offsets"), "{finding}");
        assert!(
            checked_as(&store, true).await.whole,
            "only the index is looked at"
        );
        put(&store, &key, flipped(&good, good.len() - 60)).await;
        let report = checked_as(&store, true).await;
        assert_eq!(report.findings[0].place, key);
        assert!(
            report.findings[0].what.contains("checksum"),
            "{:?}",
            report.findings
        );
        // Cut short, longer than it was, and of another place.
        for bad in [good.slice(..good.len() - 1), good.slice(..0), good.slice(..40)] {
            put(&store, &key, bad).await;
            assert_eq!(checked(&store).await.findings[0].place, key);
        }
        put(&store, &key, good).await;
    }
    let (one, two) = (range(&log, &id, Level::L0, 1), range(&log, &id, Level::L0, 2));
    let (one, two) = (keys::place(one.place), keys::place(two.place));
    let was = bytes(&store, &two).await;
    put(&store, &two, bytes(&store, &one).await).await;
    let report = checked(&store).await;
    assert!(
        report.findings.iter().any(|f| f.place == two),
        "{:#?}",
        report.findings
    );
    put(&store, &two, was).await;
    whole(&store).await;
}

#[tokio::test]
async fn heads_checkpoints_seals_and_segments_are_looked_at() {
    let store = memory().await;
    let (log, _) = lived_in(&store).await;
    let named = named_checkpoint(&store, &log).await;
    let good = bytes(&store, &named).await;
    put(&store, &named, good.slice(..good.len() - 7)).await;
    let finding = wrong(&store).await;
    assert_eq!((finding.wrong, &finding.place), (Wrong::Checkpoint, &named));
    assert_eq!(finding.affected, 1_024, "all slots");
    remove(&store, &named).await;
    assert!(
        wrong(&store)
            .await
            .what
            .contains("the head of its stream names it")
    );
    put(&store, &named, good).await;

    let key = keys::head(log.incarnation());
    let good = bytes(&store, &key).await;
    put(&store, &key, "{").await;
    assert_eq!(wrong(&store).await.wrong, Wrong::Head);
    put(&store, &key, good).await;

    let crate::manifest::StreamState::Sealed { at, .. } = log.manifest().streams[&1].state.clone() else {
        panic!("{:?}", log.manifest());
    };
    let seal = keys::segment(1, at);
    let good = remove(&store, &seal).await;
    let finding = wrong(&store).await;
    assert_eq!(finding.place, seal);
    assert!(
        finding.what.contains("a stalled broker could write on"),
        "{finding}"
    );
    put(&store, &seal, good).await;

    // The last one that was published when the head was written; those behind it are still to be seen.
    let tip = {
        let _named = checkpoint(&log).await;
        head(&store, &log).await.tip
    };
    whole(&store).await;
    let last = keys::segment(log.incarnation(), tip - 1);
    let good = remove(&store, &last).await;
    let report = checked(&store).await;
    assert_eq!(report.findings[0].place, last, "{:#?}", report.findings);
    put(&store, &last, good).await;
    whole(&store).await;
}

#[tokio::test]
async fn a_tail_that_does_not_fit_its_checkpoint_is_told() {
    let store = memory().await;
    let (log, _) = lived_in(&store).await;
    let first = head(&store, &log).await.first_unread();
    // The second segment of the tail in the place of the first.
    let [one, two] = [first, first + 1].map(|seq| keys::segment(log.incarnation(), seq));
    let (was, other) = (bytes(&store, &one).await, bytes(&store, &two).await);
    put(&store, &one, other).await;
    assert_eq!(wrong(&store).await.place, one);
    put(&store, &one, was).await;
    whole(&store).await;
}

/// Changes what is published of partition 0 and saves it: by hand, as no broker does.
async fn doctored(
    log: &Log,
    id: &TopicId,
    change: impl FnOnce(&mut Vec<StoredRange>),
) -> std::sync::Arc<Durable> {
    {
        let p = log.partition(id, 0).unwrap();
        let mut image = p.published.lock();
        let mut ranges: Vec<StoredRange> = image.ranges.iter().copied().collect();
        change(&mut ranges);
        image.ranges = ranges.into();
    }
    checkpoint(log).await
}

#[tokio::test]
async fn gaps_and_overlaps_are_named() {
    let store = memory().await;
    let (log, id) = lived_in(&store).await;
    let good = ranges(&log, &id);
    assert!(good.len() >= 3);
    doctored(&log, &id, |ranges| {
        ranges.remove(1);
    })
    .await;
    let finding = wrong(&store).await;
    assert_eq!((finding.wrong, finding.place.as_str()), (Wrong::Gap, "t-0"));
    let missing = format!("offsets {} to {}", good[1].base_offset, good[1].last_offset);
    assert_eq!(finding.examples, [missing]);
    doctored(&log, &id, |ranges| {
        *ranges = good.clone();
        ranges.pop();
    })
    .await;
    assert_eq!(wrong(&store).await.wrong, Wrong::Gap);
    doctored(&log, &id, |ranges| {
        *ranges = good.clone();
        ranges.insert(1, good[0]);
    })
    .await;
    // A checkpoint in which two things stand for an offset is not even read.
    let finding = wrong(&store).await;
    assert_eq!(
        (finding.wrong, finding.what.as_str()),
        (Wrong::Checkpoint, "invalid range")
    );
    // It points to bytes that are something else.
    doctored(&log, &id, |ranges| {
        *ranges = good.clone();
        ranges[0].position += 1;
    })
    .await;
    let finding = wrong(&store).await;
    assert_eq!(
        (finding.wrong, finding.place),
        (Wrong::Damaged, keys::place(good[0].place))
    );
    doctored(&log, &id, |ranges| *ranges = good.clone()).await;
    whole(&store).await;
}

/// Also of compacted topics, and of merged data: compaction leaves no gaps.
#[test]
fn each_offset_of_a_range_has_a_batch() {
    let r = |base_offset, last_offset, len: usize| StoredRange {
        base_offset,
        last_offset,
        place: Place::l1(1, 2),
        position: 0,
        len: len as u32,
        max_timestamp: 0,
        append_time_ms: 0,
    };
    let empty = |base, last| Bytes::clone(crate::batch::empty_batch(base, last, 0).bytes());
    let looked = |base, last, spans: &[(i64, i64)]| {
        let data: Vec<Bytes> = spans.iter().map(|(base, last)| empty(*base, *last)).collect();
        let data = Bytes::from(data.concat());
        objects::batches(&r(base, last, data.len()), &[data])
    };
    assert_eq!(looked(3, 9, &[(3, 5), (6, 6), (7, 9)]), Ok(()));
    let lacks = |from: i64, to: i64| Err(format!("no batch stands for offsets {from} to {to}"));
    assert_eq!(looked(3, 9, &[(4, 9)]), lacks(3, 3));
    assert_eq!(looked(3, 9, &[(3, 5), (8, 9)]), lacks(6, 7));
    assert_eq!(looked(3, 9, &[(3, 5)]), lacks(6, 9));
    assert!(looked(3, 9, &[(3, 5), (5, 9)]).is_err());
    assert!(looked(3, 9, &[(3, 10)]).is_err());
    let data = empty(3, 9);
    assert!(objects::batches(&r(3, 9, data.len() + 1), &[data]).is_err());
}

#[test]
fn ranges_must_stand_for_each_offset_once() {
    let r = |base_offset, last_offset| StoredRange {
        base_offset,
        last_offset,
        place: Place::l1(1, 2),
        position: 0,
        len: 1,
        max_timestamp: 0,
        append_time_ms: 0,
    };
    let image = |log_start, end, ranges: &[(i64, i64)]| {
        let state = crate::partition::state::PartitionState {
            log_start,
            end,
            ..Default::default()
        };
        let ranges = ranges.iter().map(|(base, last)| r(*base, *last)).collect();
        crate::partition::image::PartitionImage::new(state, ranges)
    };
    let kinds = |image| {
        let found = objects::check_image("t-0", &image);
        found.into_iter().map(|f| f.wrong).collect::<Vec<_>>()
    };
    assert_eq!(kinds(image(0, 0, &[])), []);
    assert_eq!(kinds(image(5, 5, &[])), []);
    assert_eq!(
        kinds(image(5, 10, &[(3, 7), (8, 9)])),
        [],
        "the first begins below the log start"
    );
    assert_eq!(kinds(image(5, 10, &[])), [Wrong::Gap]);
    assert_eq!(kinds(image(5, 10, &[(6, 9)])), [Wrong::Gap]);
    assert_eq!(kinds(image(5, 10, &[(5, 8)])), [Wrong::Gap]);
    assert_eq!(kinds(image(5, 10, &[(5, 6), (8, 9)])), [Wrong::Gap]);
    assert_eq!(kinds(image(5, 10, &[(5, 8), (8, 9)])), [Wrong::Overlap]);
    assert_eq!(kinds(image(5, 10, &[(5, 9), (6, 7)])), [Wrong::Overlap]);
    assert_eq!(
        kinds(image(5, 10, &[(5, 11)])),
        [Wrong::Overlap],
        "beyond the end"
    );
}

#[tokio::test]
async fn without_a_manifest_that_says_what_is_needed() {
    let store = memory().await;
    let (log, _) = lived_in(&store).await;
    log.inner.keeper.copies_kept().await;
    let good = bytes(&store, keys::MANIFEST).await;
    put(&store, keys::MANIFEST, "{").await;
    let finding = wrong(&store).await;
    assert_eq!(finding.wrong, Wrong::Manifest);
    assert!(finding.advice().contains("restore-manifest"));
    remove(&store, keys::MANIFEST).await;
    assert!(wrong(&store).await.what.contains("it is gone"));
    let mut newer: serde_json::Value = serde_json::from_slice(&good).unwrap();
    newer["feature_level"] = 99.into();
    put(&store, keys::MANIFEST, newer.to_string()).await;
    let refused = check(&store, &FsckOptions::default(), &watch::Sender::default()).await;
    assert!(
        refused.unwrap_err().to_string().contains("level is 99"),
        "it is for another build to say"
    );
}

#[tokio::test(start_paused = true)]
async fn orphans_are_told_from_what_is_being_written_and_from_what_is_not_ours() {
    let store = shared();
    let dead = join(&store, 1).await;
    let id = topic(&dead, "t", 3).await;
    produce(&dead, &id, 2).await;
    merger(&dead).round().await.unwrap();
    let heir = join(&store, 2).await;
    heir.inner.take_over(1, "it is dead").await.unwrap();
    a_while().await;
    checkpoint(&heir).await;
    a_while().await;
    assert!(!heir.manifest().streams.contains_key(&1), "{:?}", heir.manifest());
    let orphan = keys::merged(1, 7);
    put(&store, &orphan, "nobody points to it").await;
    let under_way = keys::merged(heir.incarnation(), 0);
    put(&store, &under_way, "as if it were").await;
    for foreign in [
        "notes.txt",
        "merged/1/notes.txt",
        "cluster/x",
        "archive/topic=t/part-0.parquet",
    ] {
        put(&store, foreign, "mine").await;
    }
    let report = whole(&store).await;
    let of = |kind, class| {
        report.counts.by_kind[&kind]
            .get(&class)
            .copied()
            .unwrap_or_default()
            .objects
    };
    assert_eq!(
        (of(Kind::Merged, Class::Live), of(Kind::Merged, Class::Garbage)),
        (1, 1)
    );
    assert_eq!(
        (
            of(Kind::Merged, Class::Unknown),
            of(Kind::Foreign, Class::Unknown)
        ),
        (1, 4)
    );
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("notes.txt") && notes.contains("cluster/x"),
        "{notes}"
    );
    assert!(notes.contains("1 merged objects"), "{notes}");
    // The stream of the dead one is garbage as well, but for its seal and its head.
    assert!(of(Kind::Segment, Class::Garbage) > 0);
    assert_eq!(grace(&store, &report), Duration::from_secs(60), "a broker runs");
    let planned = deletable(&report);
    assert_eq!(planned.objects, report.counts.of(Class::Garbage).objects);
    assert_eq!(repair(&store, &report).await.unwrap(), planned);
    let left = listed(&store).await;
    assert!(!left.contains(&orphan) && left.contains(&under_way));
    let after = whole(&store).await;
    assert_eq!(after.notes.len(), 2, "{:?}", after.notes);
    assert_eq!(after.counts.of(Class::Garbage).objects, 0);
    assert_eq!(
        after.counts.total().objects + planned.objects,
        report.counts.total().objects
    );
    let seals = listed(&store).await.into_iter().filter(|key| {
        let what = crate::keys::parse_in_stream(key);
        matches!(what, Some((1, InStream::Segment(_))))
    });
    for seal in seals {
        remove(&store, &seal).await;
    }
    let notes = whole(&store).await.notes.join("\n");
    assert!(notes.contains("the seals of streams 1 are gone"), "{notes}");
    let p = heir.partition(&id, 0).unwrap();
    assert_eq!(crate::tests::contents(&heir, &p, 0).await.len(), 4);
    let again = join(&store, 2).await;
    let p = again.partition(&id, 0).unwrap();
    assert_eq!(crate::tests::contents(&again, &p, 0).await.len(), 4);
}

#[tokio::test]
async fn nothing_is_deleted_while_something_is_wrong_or_after_a_restoration() {
    let store = memory().await;
    let (log, id) = lived_in(&store).await;
    merger(&log).round().await.unwrap();
    checkpoint(&log).await;
    log.inner
        .drop_links(
            &checkpoint(&log)
                .await
                .covered
                .iter()
                .map(|c| (c.slot, c.epoch))
                .collect::<Vec<_>>(),
        )
        .await;
    assert!(!log.manifest().streams.contains_key(&1));
    put(&store, &keys::merged(1, 7), "orphan").await;
    let report = whole(&store).await;
    assert!(deletable(&report).objects > 1);
    let r = range(&log, &id, Level::L1, 2);
    let was = remove(&store, &keys::place(r.place)).await;
    let bad = checked(&store).await;
    assert!(repair(&store, &bad).await.is_err() && deletable(&bad) == Repaired::default());
    put(&store, &keys::place(r.place), was).await;
    let restored = |m: &mut Manifest| {
        m.restored = Some(Restored {
            from_version: 1,
            commit_id: Uuid::from_u128(7),
            unknown_streams: BTreeSet::from([1]),
        });
        Ok::<_, std::convert::Infallible>(((), Some(2)))
    };
    log.inner.keeper.change(restored).await.unwrap();
    let refused = repair(&store, &report).await.unwrap_err().to_string();
    assert!(refused.contains("nothing was deleted"), "{refused}");
    let report = whole(&store).await;
    assert_eq!(deletable(&report).objects, 0);
    assert!(
        report.notes.join("\n").contains("streams 1 were not known"),
        "{:?}",
        report.notes
    );
    assert!(listed(&store).await.contains(&keys::merged(1, 7)));
}

#[tokio::test(start_paused = true)]
async fn what_a_running_broker_deletes_meanwhile_is_not_missing() {
    let bucket = Arc::new(InMemory::new());
    let (store, hand) = meddled(&bucket, StoreKind::Memory);
    let log = quiet(&store).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 2).await;
    checkpoint(&log).await;
    let head_key = keys::head(1);
    let of_old = bytes(&store, &head_key).await;
    let old = listed(&store).await;
    merger(&log).round().await.unwrap();
    checkpoint(&log).await;
    let of_new = bytes(&store, &head_key).await;
    // Back to how it was: what came since is put there, and the first segment deleted, when that is looked at.
    let mut since = vec![];
    for key in listed(&store).await {
        if !old.contains(&key) {
            since.push((store.key(&key), remove(&store, &key).await));
        }
    }
    put(&store, &head_key, of_old).await;
    whole(&store).await;
    let change = {
        let (head, first) = (store.key(&head_key), store.key(&keys::segment(1, 0)));
        move || {
            let changed = async move {
                for (key, bytes) in since {
                    bucket.put(&key, bytes.into()).await.unwrap();
                }
                bucket.put(&head, of_new.into()).await.unwrap();
                bucket.delete(&first).await.unwrap();
            };
            futures::FutureExt::now_or_never(changed).unwrap();
        }
    };
    hand.before_get(|what| what == InStream::Segment(0), change);
    let options = FsckOptions::default();
    let report = check(&store, &options, &watch::Sender::default()).await.unwrap();
    assert!(hand.happened(), "it was deleted under the look");
    assert_eq!(report.findings, []);
    assert!(report.whole && report.notes.is_empty(), "{:?}", report.notes);
}

#[tokio::test]
async fn files_of_history_are_read_if_their_format_is_known() {
    use crate::archive::{fake::FakeHistory, tests as archiving};
    let (store, format) = (memory().await, FakeHistory::new(1 << 20));
    let log = archiving::open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    archiving::produce(&log, &id, 3).await;
    archiving::settle(&log, &format, u64::MAX).await;
    let with_format = FsckOptions {
        fast: false,
        history: Some(format.clone()),
    };
    let looked =
        async |options: &FsckOptions| check(&store, options, &watch::Sender::default()).await.unwrap();
    let report = looked(&with_format).await;
    assert_eq!(report.findings, []);
    assert!(
        report.checked_bytes > 600_000 && report.counts.by_kind[&Kind::Archive][&Class::Live].objects > 0
    );
    let key = listed(&store)
        .await
        .into_iter()
        .find(|key| key.starts_with("archive/"))
        .unwrap();
    let good = bytes(&store, &key).await;
    put(&store, &key, flipped(&good, good.len() / 2)).await;
    let report = looked(&with_format).await;
    assert_eq!(
        (report.findings[0].wrong, &report.findings[0].place),
        (Wrong::Damaged, &key)
    );
    assert!(
        looked(&FsckOptions::default()).await.whole,
        "nobody knows how to read it"
    );
    remove(&store, &key).await;
    let report = looked(&FsckOptions::default()).await;
    assert_eq!(
        (report.findings[0].wrong, &report.findings[0].place),
        (Wrong::Missing, &key)
    );
    put(&store, &key, good).await;
    assert!(looked(&with_format).await.whole);
}
