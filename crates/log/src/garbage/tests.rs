//! Rounds of real logs on stores in memory.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::memory::InMemory;

use super::*;
use crate::keys::InStream;
use crate::merge::tests::{
    HOUR, checkpoint, cleaner, listed, memory, merger, open_with, produce, read_all, read_one,
};
use crate::store::{Store, StoreKind};
use crate::tests::meddling::meddled;
use crate::tests::shared::{a_while, join, shared};
use crate::tests::{append, topic};
use crate::{DeleteDelay, Log, LogOptions, TopicId, TopicPartition};

const OWN: Scope = Scope {
    drained: false,
    archive: false,
};
const WIDE: Scope = Scope {
    drained: true,
    archive: true,
};

fn collector(log: &Log) -> Collector {
    Collector::new(log.inner.stream.clone(), log.inner.keeper.clone(), Duration::ZERO)
}

async fn merged(store: &Store) -> Vec<String> {
    let mut keys = listed(store).await;
    keys.retain(|key| key.starts_with("merged/"));
    keys
}

/// Moves the log start of a partition to its end.
async fn empty(log: &Log, id: &TopicId, partition: i32) {
    let p = log.partition(id, partition).unwrap();
    let end = p.watermarks().high_watermark;
    assert_eq!(log.advance_log_start(&p, end).await, Ok(end));
}

fn slot(log: &Log, topic: TopicId, partition: i32) -> Slot {
    log.manifest().slot_of(&TopicPartition { topic, partition })
}

#[tokio::test]
async fn a_file_goes_when_the_last_log_start_has_passed_it() {
    let store = memory().await;
    let mut options = LogOptions::for_store(StoreKind::Memory);
    options.merge.interval = 1_000 * HOUR;
    options.garbage_interval = HOUR;
    let log = open_with(&store, options).await;
    let id = topic(&log, "t", 3).await;
    let all = produce(&log, &id, 3).await;
    merger(&log).round().await.unwrap();
    let mut garbage = collector(&log);
    empty(&log, &id, 0).await;
    empty(&log, &id, 1).await;
    assert_eq!(garbage.round(WIDE).await, Ok(0), "one partition is in it still");
    assert_eq!(read_one(&log, &id, 2).await, all[2]);
    empty(&log, &id, 2).await;
    assert_eq!(garbage.round(OWN).await, Ok(1));
    assert_eq!(garbage.round(OWN).await, Ok(0), "it is known already");
    let metrics = &log.inner.stream.metrics;
    assert_eq!(metrics.unreferenced_objects.get(), 1);
    assert!(metrics.unreferenced_bytes.get() > 1_000_000);
    assert_eq!(merged(&store).await.len(), 1, "nothing is deleted by a round");
    assert_eq!(cleaner(&log).delete_doomed(&mut garbage).await, Ok(1));
    assert_eq!((merged(&store).await, garbage.next()), (vec![], None));
    assert_eq!(
        metrics.deleted_objects.get_or_create(&[("kind", "merged")]).get(),
        1
    );
    assert_eq!(metrics.unreferenced_bytes.get(), 0);
    assert_eq!(
        metrics.garbage_rounds.get_or_create(&[("outcome", "done")]).get(),
        3
    );
    append(&log, &log.partition(&id, 0).unwrap(), &["on"]).await;
    assert_eq!(read_all(&log, &id).await[0].last().unwrap().1, "on");
}

#[tokio::test]
async fn what_is_found_waits_for_the_delay_and_a_fenced_broker_deletes_nothing() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 1).await;
    merger(&log).round().await.unwrap();
    for partition in 0..3 {
        empty(&log, &id, partition).await;
    }
    let mut garbage = Collector::new(log.inner.stream.clone(), log.inner.keeper.clone(), HOUR);
    assert_eq!(garbage.round(OWN).await, Ok(1));
    let at = garbage.next().unwrap();
    assert!(at > Instant::now() + HOUR / 2);
    assert_eq!(cleaner(&log).delete_doomed(&mut garbage).await, Ok(0));
    assert_eq!(garbage.doomed(at).len(), 1);
    let new = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    // It finds out by the manifest, before its stream meets the seal.
    assert_eq!(garbage.round(OWN).await, Err(Void::Fenced));
    log.refresh().await;
    let mut due = collector(&log);
    due.waiting = std::mem::take(&mut garbage.waiting);
    let refused = cleaner(&log).delete_doomed(&mut due).await;
    assert_eq!(refused, Err(crate::clean::NotCleaned::Fenced));
    assert_eq!(merged(&store).await.len(), 1);
    drop(new);
}

#[tokio::test]
async fn what_is_being_written_is_not_asked_about() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let mut number = log.inner.stream.merged_numbers.begin();
    let key = store.key(&keys::merged(1, number.number()));
    store
        .bulk
        .put(&key, Bytes::from_static(b"x").into())
        .await
        .unwrap();
    let foreign = store.key("merged/1/notes.txt");
    store
        .bulk
        .put(&foreign, Bytes::from_static(b"x").into())
        .await
        .unwrap();
    let mut garbage = collector(&log);
    assert_eq!(garbage.round(WIDE).await, Ok(0));
    number.submit();
    assert_eq!(garbage.round(WIDE).await, Ok(0));
    number.settle();
    assert_eq!(garbage.round(WIDE).await, Ok(1));
    assert_eq!(cleaner(&log).delete_doomed(&mut garbage).await, Ok(1));
    assert_eq!(
        merged(&store).await,
        ["merged/1/notes.txt"],
        "what is not ours stays"
    );
}

#[tokio::test(start_paused = true)]
async fn what_moved_away_is_claimed_by_who_has_it_now() {
    let store = shared();
    let a = join(&store, 1).await;
    let id = topic(&a, "t", 3).await;
    let all = produce(&a, &id, 2).await;
    merger(&a).round().await.unwrap();
    let b = join(&store, 2).await;
    checkpoint(&a).await;
    let moved = slot(&a, id, 0);
    a_while().await;
    a.inner.desire(vec![(moved, b.incarnation())]).await.unwrap();
    a_while().await;
    empty(&a, &id, 1).await;
    empty(&a, &id, 2).await;
    // Its new owner has it only in memory, as far as the bucket tells.
    let head = store.key(&keys::head(b.incarnation()));
    let saved = store.bulk.get(&head).await.unwrap().bytes().await.unwrap();
    store.bulk.delete(&head).await.unwrap();
    let mut garbage = collector(&a);
    let uncovered = garbage.round(OWN).await;
    assert!(
        matches!(uncovered, Err(Void::Uncovered(u)) if (u.slot, u.owner) == (moved, b.incarnation())),
        "{uncovered:?}"
    );
    store.bulk.put(&head, saved.into()).await.unwrap();
    checkpoint(&b).await;
    assert_eq!(garbage.round(OWN).await, Ok(0));
    assert_eq!(read_one(&b, &id, 0).await, all[0]);

    // Another broker's checkpoint cannot be read: it may refer to anything.
    empty(&b, &id, 0).await;
    checkpoint(&b).await;
    let newest = store.bulk.get(&head).await.unwrap().bytes().await.unwrap();
    let newest = Head::decode(&newest, a.manifest().cluster_id, b.incarnation()).unwrap();
    let named = newest.checkpoint.unwrap();
    let named = store.key(&keys::checkpoint(b.incarnation(), named.next, named.nonce));
    let good = store.bulk.get(&named).await.unwrap().bytes().await.unwrap();
    store
        .bulk
        .put(&named, good.slice(..good.len() - 9).into())
        .await
        .unwrap();
    let unread = garbage.round(OWN).await;
    assert!(
        matches!(&unread, Err(Void::Unread(why)) if why.contains(named.as_ref())),
        "{unread:?}"
    );
    store.bulk.delete(&named).await.unwrap();
    let missing = garbage.round(OWN).await;
    assert!(
        matches!(&missing, Err(Void::Unread(why)) if why.contains("not there")),
        "{missing:?}"
    );
    store.bulk.put(&named, good.into()).await.unwrap();
    assert_eq!(
        garbage.round(OWN).await,
        Ok(1),
        "the new owner's log start has passed it"
    );
    assert_eq!(cleaner(&a).delete_doomed(&mut garbage).await, Ok(1));
    let b = join(&store, 2).await;
    assert_eq!(b.partition(&id, 0).unwrap().watermarks().log_start_offset, 4);
}

#[tokio::test(start_paused = true)]
async fn files_of_the_gone_are_looked_after_by_one_of_the_living() {
    let store = shared();
    let dead = join(&store, 1).await;
    let id = topic(&dead, "t", 3).await;
    produce(&dead, &id, 2).await;
    merger(&dead).round().await.unwrap();
    let all = produce(&dead, &id, 1).await;
    let heir = join(&store, 2).await;
    heir.inner.take_over(1, "it is dead").await.unwrap();
    a_while().await;
    let mut garbage = collector(&heir);
    for partition in 0..3 {
        empty(&heir, &id, partition).await;
    }
    assert_eq!(
        garbage.round(WIDE).await,
        Ok(0),
        "logs still go through that stream"
    );
    checkpoint(&heir).await;
    a_while().await;
    assert!(!heir.manifest().streams.contains_key(&1));
    // The dead one was only slow: it writes one more, which nobody will ever refer to.
    let late = store.key(&keys::merged(1, 9));
    store
        .bulk
        .put(&late, Bytes::from_static(b"late").into())
        .await
        .unwrap();
    assert_eq!(
        garbage.round(OWN).await,
        Ok(0),
        "only one broker looks, and not always"
    );
    assert_eq!(garbage.round(WIDE).await, Ok(2));
    assert_eq!(cleaner(&heir).delete_doomed(&mut garbage).await, Ok(2));
    assert_eq!(merged(&store).await, Vec::<String>::new());
    drop(all);
}

// In real time: two looks that begin at the same moment are one.
#[tokio::test]
async fn a_round_in_which_ownership_changes_is_void() {
    let bucket = Arc::new(InMemory::new());
    let (store, hand) = meddled(&bucket, StoreKind::S3);
    let a = join(&store, 1).await;
    let id = topic(&a, "t", 3).await;
    produce(&a, &id, 1).await;
    merger(&a).round().await.unwrap();
    let b = join(&store, 2).await;
    checkpoint(&b).await;
    for partition in 0..3 {
        empty(&a, &id, partition).await;
    }
    a.refresh().await;
    let change = {
        let key = store.key(keys::MANIFEST);
        let mut manifest = (*a.manifest()).clone();
        manifest.stamp(None, uuid::Uuid::new_v4());
        move || {
            let put = async move { bucket.put(&key, manifest.encode().into()).await };
            futures::FutureExt::now_or_never(put).unwrap().unwrap();
        }
    };
    let of_checkpoint = |what| matches!(what, InStream::Checkpoint(_));
    hand.before_get(of_checkpoint, change);
    let mut garbage = collector(&a);
    assert_eq!(garbage.round(OWN).await, Err(Void::Changed));
    assert!(hand.happened() && garbage.next().is_none());
    assert_eq!(garbage.round(OWN).await, Ok(1));
}

/// A delay that somebody has set, in seconds.
#[derive(Debug)]
struct Set(AtomicU64);

impl DeleteDelay for Set {
    fn delete_delay(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.0.load(Ordering::Relaxed)))
    }
}

#[tokio::test]
async fn a_delay_that_changes_holds_for_what_was_found_before() {
    let log = open_with(&memory().await, LogOptions::for_store(StoreKind::Memory)).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 1).await;
    merger(&log).round().await.unwrap();
    for partition in 0..3 {
        empty(&log, &id, partition).await;
    }
    let set = Arc::new(Set(AtomicU64::new(7200)));
    let delay = Delay::new(Duration::ZERO, Some(set.clone()));
    let mut garbage = Collector::new(log.inner.stream.clone(), log.inner.keeper.clone(), delay);
    assert_eq!(garbage.round(OWN).await, Ok(1));
    assert!(garbage.next().unwrap() > Instant::now() + HOUR);
    assert_eq!(cleaner(&log).delete_doomed(&mut garbage).await, Ok(0));
    set.0.store(0, Ordering::Relaxed);
    assert!(garbage.next().unwrap() <= Instant::now());
    // What could not be deleted waits, however short the delay is.
    let doomed = garbage.doomed(Instant::now());
    garbage.tried(&doomed, false, Instant::now());
    assert_eq!((doomed.len(), garbage.doomed(Instant::now()).len()), (1, 0));
    assert_eq!(garbage.doomed(Instant::now() + AGAIN).len(), 1);
}

#[tokio::test]
async fn what_is_referred_to_again_stays() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let id = topic(&log, "t", 3).await;
    produce(&log, &id, 1).await;
    merger(&log).round().await.unwrap();
    let mut garbage = collector(&log);
    // As if a rule were broken somewhere.
    let key = store.key(&keys::merged(1, 0));
    let meta = store.bulk.head(&key).await.unwrap();
    garbage.waiting.insert(key, Waiting::new(Instant::now(), meta));
    let orphan = log.inner.stream.merged_numbers.begin().number();
    let orphan = store.key(&keys::merged(1, orphan));
    store
        .bulk
        .put(&orphan, Bytes::from_static(b"x").into())
        .await
        .unwrap();
    garbage.round(OWN).await.unwrap();
    let doomed: Vec<Path> = garbage
        .doomed(Instant::now())
        .into_iter()
        .map(|m| m.location)
        .collect();
    assert_eq!(doomed, [orphan]);
}

#[tokio::test]
async fn only_the_newest_copies_of_the_manifest_are_kept() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    for _ in 0..6 {
        let change = |m: &mut Manifest| Ok::<_, Infallible>(((), Some(m.next_incarnation - 1)));
        log.inner.keeper.change(change).await.unwrap();
    }
    log.inner.keeper.copies_kept().await;
    let replaced = store.key("cluster/replaced/x");
    store
        .bulk
        .put(&replaced, Bytes::from_static(b"x").into())
        .await
        .unwrap();
    let newest = log.manifest().version;
    assert!(cleaner(&log).clean_copies(3).await.unwrap() >= 4);
    let left = listed(&store).await;
    let left: Vec<&str> = left
        .iter()
        .filter(|key| key.starts_with("cluster/"))
        .map(String::as_str)
        .collect();
    let copies = [newest - 2, newest - 1, newest].map(keys::manifest_copy);
    let mut expected: Vec<&str> = copies.iter().map(String::as_str).collect();
    expected.extend([keys::MANIFEST, "cluster/replaced/x"]);
    assert_eq!(left, expected);
    assert_eq!(cleaner(&log).clean_copies(3).await, Ok(0));
    assert_eq!(
        old_copies(&[5, 1, 4], 0).count(),
        2,
        "the newest one always stays"
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_log_keeps_its_bucket_small() {
    let store = memory().await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    let id = topic(&log, "t", 3).await;
    for _ in 0..10 {
        produce(&log, &id, 2).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!(merged(&store).await.len() >= 5);
    for partition in 0..3 {
        empty(&log, &id, partition).await;
    }
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(merged(&store).await, Vec::<String>::new());
    let all = produce(&log, &id, 1).await;
    let log = open_with(&store, LogOptions::for_store(StoreKind::Memory)).await;
    assert_eq!(read_all(&log, &id).await, all);
}

#[tokio::test]
async fn what_is_archived_leaves_its_merged_object_and_goes_with_its_topic() {
    use crate::archive::{fake::FakeHistory, tests as archiving};
    let (store, format) = (memory().await, FakeHistory::new(1 << 20));
    let log = archiving::open(&store, &format).await;
    let id = topic(&log, "t", 3).await;
    let all = archiving::produce(&log, &id, 3).await;
    archiving::settle(&log, &format, u64::MAX).await;
    let files = async |folder: &str| {
        let mut keys = listed(&store).await;
        keys.retain(|key| key.starts_with(folder));
        keys
    };
    let (merged, archived) = (files("merged/").await, files("archive/").await);
    assert!(!merged.is_empty() && !archived.is_empty());
    let mut garbage = collector(&log);
    assert_eq!(garbage.round(WIDE).await, Ok(merged.len()));
    assert_eq!(
        cleaner(&log).delete_doomed(&mut garbage).await,
        Ok(merged.len() as u64)
    );
    assert_eq!(
        (files("merged/").await, files("archive/").await),
        (vec![], archived.clone())
    );
    assert_eq!(archiving::read_all(&log, &id).await, all);
    log.change(vec![crate::manifest::Change::DeleteTopic { id }])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(
        garbage.round(OWN).await,
        Ok(0),
        "files of history are not looked at each time"
    );
    assert_eq!(garbage.round(WIDE).await, Ok(archived.len()));
    assert_eq!(
        cleaner(&log).delete_doomed(&mut garbage).await,
        Ok(archived.len() as u64)
    );
    assert_eq!(files("archive/").await, Vec::<String>::new());
}
