//! Whole-engine tests on the in-memory store: append, publish, crash, recover, exactly.

use std::sync::Arc;

use futures::StreamExt;
use object_store::ObjectStoreExt;
use prometheus_client::registry::Registry;

use crate::batch::{BatchBuilder, ChunkCursor};
use crate::manifest::Change;
use crate::partition::image::PartitionImage;
use crate::store::{Store, StoreKind, StoreOptions};
use crate::*;

pub(crate) mod meddling;
mod moments;
pub(crate) mod shared;

pub(crate) async fn store() -> Store {
    Store::open("memory://", StoreOptions::default()).await.unwrap()
}

pub(crate) async fn open(store: &Store) -> Log {
    let options = LogOptions::for_store(StoreKind::Memory);
    Log::open(
        store.clone(),
        options,
        Arc::new(SystemClock),
        &mut Registry::default(),
    )
    .await
    .unwrap()
}

pub(crate) async fn topic(log: &Log, name: &str, partitions: u32) -> TopicId {
    let configs = Default::default();
    let create = Change::CreateTopic {
        name: name.into(),
        partitions,
        replication_factor: 1,
        configs,
    };
    let made = log.change(vec![create]).await.remove(0).unwrap();
    made.topics[name].id
}

pub(crate) fn batch(values: &[&str], producer: Option<(i64, i32)>) -> RecordBatch {
    let mut b = BatchBuilder::new();
    if let Some((id, sequence)) = producer {
        b = b.producer(id, 0, sequence);
    }
    for (i, v) in values.iter().enumerate() {
        b.push(1_000 + i as i64, None, Some(v.as_bytes()), &[]);
    }
    b.build()
}

pub(crate) async fn append(log: &Log, p: &Arc<Partition>, values: &[&str]) -> i64 {
    log.append(p, batch(values, None), false)
        .unwrap()
        .published()
        .await
        .unwrap()
        .base_offset
}

/// Every (offset, value) from `from` on, read in small pieces.
pub(crate) async fn contents(log: &Log, p: &Arc<Partition>, from: i64) -> Vec<(i64, String)> {
    let (mut out, mut next) = (vec![], from);
    loop {
        let r = log.read(p, next, 200, Isolation::ReadUncommitted).await.unwrap();
        if r.bytes == 0 {
            return out;
        }
        let mut cursor = ChunkCursor::new(&r.chunks);
        while let Some(view) = cursor.next_batch() {
            let whole = view.unwrap().to_batch(&r.chunks).unwrap();
            for record in crate::batch::records(whole.bytes(), 1 << 20).unwrap() {
                if record.offset >= next {
                    out.push((
                        record.offset,
                        String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                    ));
                }
            }
        }
        next = out.last().unwrap().0 + 1;
    }
}

fn expected(n: usize) -> Vec<(i64, String)> {
    (0..n).map(|i| (i as i64, format!("v{i}"))).collect()
}

#[tokio::test]
async fn what_is_acknowledged_survives_crashes_in_order() {
    let store = store().await;
    let mut log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    for i in 0..40 {
        if i % 7 == 6 {
            // A crash: the old log is just left behind.
            log = open(&store).await;
        }
        let p = log.partition(&id, 0).unwrap();
        assert_eq!(p.watermarks().high_watermark, i);
        assert_eq!(append(&log, &p, &[&format!("v{i}")]).await, i);
    }
    let p = log.partition(&id, 0).unwrap();
    assert_eq!(contents(&log, &p, 0).await, expected(40));
    assert_eq!(contents(&log, &p, 33).await, expected(40)[33..]);
    assert_eq!(p.leader_epoch(), 6);
    assert_eq!(p.end_offset_for_epoch(1), (1, 6));
}

#[tokio::test]
async fn a_zombie_is_fenced_and_acknowledges_nothing() {
    let store = store().await;
    let old = open(&store).await;
    let id = topic(&old, "t", 1).await;
    let zombie = old.partition(&id, 0).unwrap();
    append(&old, &zombie, &["v0"]).await;
    let new = open(&store).await;
    let lost = old
        .append(&zombie, batch(&["lost"], None), false)
        .unwrap()
        .published()
        .await;
    assert_eq!(lost, Err(AppendError::NotLeader));
    assert!(
        old.fenced().await.why.contains("incarnation 2"),
        "{}",
        old.fenced().await.why
    );
    assert!(matches!(
        old.append(&zombie, batch(&["x"], None), false),
        Err(AppendError::NotLeader)
    ));
    assert_eq!(
        old.read(&zombie, 0, 99, Isolation::ReadUncommitted)
            .await
            .unwrap_err(),
        ReadError::NotLeader
    );
    let refused = old.change(vec![Change::DeleteTopic { id }]).await.remove(0);
    assert!(matches!(refused, Err(manifest::Rejection::Unavailable(_))));
    let p = new.partition(&id, 0).unwrap();
    append(&new, &p, &["v1"]).await;
    assert_eq!(contents(&new, &p, 0).await, expected(2));
}

#[tokio::test]
async fn a_retry_across_a_crash_gets_its_original_offset() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    let pid = log.next_producer_id();
    let p = log.partition(&id, 0).unwrap();
    for i in 0..7 {
        log.append(&p, batch(&[&format!("v{i}")], Some((pid, i))), false)
            .unwrap()
            .published()
            .await
            .unwrap();
    }
    let log = open(&store).await;
    assert_ne!(log.next_producer_id(), pid);
    let p = log.partition(&id, 0).unwrap();
    let again = log
        .append(&p, batch(&["v5"], Some((pid, 5))), false)
        .unwrap()
        .published()
        .await
        .unwrap();
    assert_eq!(again.base_offset, 5);
    let gap = log.append(&p, batch(&["v9"], Some((pid, 9))), false).unwrap_err();
    assert_eq!(gap, AppendError::OutOfOrderSequence { expected: 7, got: 9 });
    assert_eq!(contents(&log, &p, 0).await, expected(7));
}

#[tokio::test]
async fn a_graceful_stop_leaves_a_checkpoint_and_a_seal() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 3).await;
    for i in 0..3 {
        let p = log.partition(&id, i).unwrap();
        append(&log, &p, &["v0", "v1"]).await;
    }
    let p = log.partition(&id, 1).unwrap();
    assert_eq!(log.advance_log_start(&p, 1).await, Ok(1));
    log.close().await.unwrap();
    assert!(matches!(
        log.append(&p, batch(&["x"], None), false),
        Err(AppendError::Stopping)
    ));
    let log = open(&store).await;
    let p = log.partition(&id, 1).unwrap();
    assert_eq!(
        (p.watermarks().log_start_offset, p.watermarks().high_watermark),
        (1, 2)
    );
    let below = log.read(&p, 0, 99, Isolation::ReadUncommitted).await.unwrap_err();
    assert_eq!(
        below,
        ReadError::OffsetOutOfRange {
            offset: 0,
            log_start: 1,
            end: 2
        }
    );
    assert_eq!(
        contents(&log, &log.partition(&id, 2).unwrap(), 0).await,
        expected(2)
    );
    let names: Vec<String> = store
        .bulk
        .list(None)
        .map(|o| o.unwrap().location.to_string())
        .collect()
        .await;
    assert!(names.iter().any(|n| n.contains("/checkpoint/")), "{names:?}");
}

#[tokio::test]
async fn a_deleted_topic_is_gone_and_its_name_is_free() {
    let store = store().await;
    let log = open(&store).await;
    let old = topic(&log, "t", 1).await;
    let p = log.partition(&old, 0).unwrap();
    append(&log, &p, &["old"]).await;
    log.change(vec![Change::DeleteTopic { id: old }])
        .await
        .remove(0)
        .unwrap();
    assert!(log.partition(&old, 0).is_none() && p.is_gone());
    assert_eq!(
        log.append(&p, batch(&["x"], None), false).unwrap_err(),
        AppendError::UnknownPartition
    );
    let new = topic(&log, "t", 1).await;
    assert_ne!(old, new);
    append(&log, &log.partition(&new, 0).unwrap(), &["v0"]).await;
    let log = open(&store).await;
    assert!(log.partition(&old, 0).is_none());
    assert_eq!(
        contents(&log, &log.partition(&new, 0).unwrap(), 0).await,
        expected(1)
    );
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    for _ in 0..3 {
        append(&log, &p, &["a", "b", "c"]).await; // timestamps 1000, 1001, 1002
    }
    let log = open(&store).await; // From the store, not from the tail.
    let p = log.partition(&id, 0).unwrap();
    let find = async |what| {
        log.lookup_offset(&p, what)
            .await
            .unwrap()
            .map(|f| (f.offset, f.timestamp))
    };
    assert_eq!(find(OffsetLookup::Timestamp(0)).await, Some((0, 1000)));
    assert_eq!(find(OffsetLookup::Timestamp(1001)).await, Some((1, 1001)));
    assert_eq!(find(OffsetLookup::Timestamp(1003)).await, None);
    assert_eq!(find(OffsetLookup::MaxTimestamp).await, Some((2, 1002)));
    assert_eq!(find(OffsetLookup::Earliest).await, Some((0, -1)));
    assert_eq!(
        find(OffsetLookup::Latest(Isolation::ReadCommitted)).await,
        Some((9, -1))
    );
    log.advance_log_start(&p, 2).await.unwrap();
    assert_eq!(find(OffsetLookup::Timestamp(1001)).await, Some((2, 1002)));
    assert_eq!(find(OffsetLookup::Timestamp(-1)).await, Some((2, 1002)));
    let empty = topic(&log, "empty", 1).await;
    let e = log.partition(&empty, 0).unwrap();
    assert_eq!(
        log.lookup_offset(&e, OffsetLookup::MaxTimestamp).await.unwrap(),
        None
    );
    assert_eq!(
        log.lookup_offset(&e, OffsetLookup::Timestamp(5)).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_a_publication_and_by_deletion() {
    let log = open(&store().await).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    let mut waiter = AppendWaiter::new();
    waiter.watch(&p);
    append(&log, &p, &["v0"]).await;
    waiter.wait().await;
    assert_eq!(p.readable_bytes(1, Isolation::ReadUncommitted), Ok(0));
    let pending = tokio::spawn(async move { waiter.wait().await });
    log.change(vec![Change::DeleteTopic { id }])
        .await
        .remove(0)
        .unwrap();
    pending.await.unwrap();
}

#[tokio::test]
async fn large_and_small_batches_come_back_from_tail_cache_and_store() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 2).await;
    let big = "x".repeat(3 << 20);
    let p = log.partition(&id, 0).unwrap();
    for i in 0..6 {
        append(&log, &p, &[if i % 2 == 0 { "small" } else { &big }]).await;
    }
    let all = contents(&log, &p, 0).await;
    assert_eq!(all.len(), 6);
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    assert_eq!(contents(&log, &p, 0).await, all);
    let r = log.read(&p, 1, 10, Isolation::ReadUncommitted).await.unwrap();
    assert!(
        r.bytes > 3 << 20,
        "one batch, though it is larger than what was asked for"
    );
    let r = log
        .read(&p, 0, 1 << 20, Isolation::ReadUncommitted)
        .await
        .unwrap();
    assert!(
        r.bytes < 200,
        "no batch beyond the first that does not fit: {}",
        r.bytes
    );
}

#[tokio::test]
async fn a_damaged_segment_is_an_error_and_never_bytes_for_a_reader() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    append(&log, &log.partition(&id, 0).unwrap(), &["v0"]).await;
    log.close().await.unwrap();
    let key = store.key(&keys::segment(1, 0));
    let mut bytes = store
        .bulk
        .get(&key)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    let at = bytes.windows(2).position(|w| w == b"v0").unwrap();
    bytes[at] = b'w';
    store.bulk.put(&key, bytes.into()).await.unwrap();
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    assert!(matches!(
        log.read(&p, 0, 99, Isolation::ReadUncommitted).await,
        Err(ReadError::Corrupt(_))
    ));
}

#[tokio::test]
async fn an_object_that_is_gone_is_not_called_damaged() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    append(&log, &log.partition(&id, 0).unwrap(), &["v0"]).await;
    log.close().await.unwrap();
    let key = store.key(&keys::segment(1, 0));
    store.bulk.delete(&key).await.unwrap();
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    let read = log.read(&p, 0, 99, Isolation::ReadUncommitted).await;
    let error = read.unwrap_err();
    assert_eq!(error, ReadError::Missing(key.to_string()));
    assert_eq!(
        error.to_string(),
        format!("data is missing: {key} is not in the store")
    );
}

/// Deletes the objects that a partition's ranges stand in.
pub(crate) async fn delete_objects(store: &Store, image: &PartitionImage) {
    for r in &image.ranges {
        let key = store.key(&keys::place(r.place));
        store.bulk.delete(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_retention_overtakes_is_out_of_range() {
    let (store, hand) = meddling::meddled(&Arc::default(), StoreKind::Memory);
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    for value in ["v0", "v1"] {
        append(&log, &log.partition(&id, 0).unwrap(), &[value]).await;
    }
    log.close().await.unwrap();
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    let planned = p.published.lock().clone();
    delete_objects(&store, &planned).await;
    // Between the plan and the read the log start passes some, or all that there is, and the objects are deleted.
    for log_start in [1, 2] {
        let overtaken = || {
            *p.published.lock() = planned.clone();
            let p = p.clone();
            hand.before_get(
                |what| matches!(what, keys::InStream::Segment(_)),
                move || {
                    let entry = crate::entry::Entry::LogStart {
                        partition: p.id(),
                        leader_epoch: p.leader_epoch(),
                        offset: log_start,
                    };
                    let place = crate::entry::Place::l0(1, 9);
                    p.published.lock().apply(&entry, place).unwrap();
                },
            );
        };
        overtaken();
        let read = log.read(&p, 0, 99, Isolation::ReadUncommitted).await;
        let expected = ReadError::OffsetOutOfRange {
            offset: 0,
            log_start,
            end: 2,
        };
        assert_eq!(read.unwrap_err(), expected);
        overtaken();
        let found = log.lookup_offset(&p, OffsetLookup::Timestamp(0)).await;
        match log_start {
            2 => assert_eq!(found, Ok(None)),
            _ => assert!(matches!(found, Err(ReadError::Missing(_))), "{found:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_log_notices_that_its_store_is_gone_and_that_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let (here, away) = (root.path().join("data"), root.path().join("away"));
    let url = here.display().to_string();
    let store = Store::open(&url, StoreOptions::default()).await.unwrap();
    let log = open(&store).await;
    tokio::time::sleep(std::time::Duration::from_secs(40)).await;
    assert_eq!(log.store_trouble(), None);
    std::fs::rename(&here, &away).unwrap();
    // The journal, which is open, may take one sign of life more.
    tokio::time::sleep(std::time::Duration::from_secs(65)).await;
    let why = log.store_trouble().unwrap();
    assert!(
        why.starts_with("a directory is gone: mount or restore it ("),
        "{why}"
    );
    // Whatever was given up meanwhile, the trouble lasts.
    tokio::time::sleep(std::time::Duration::from_secs(90)).await;
    assert!(log.store_trouble().is_some());
    std::fs::rename(&away, &here).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(35)).await;
    assert_eq!(log.store_trouble(), None);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_manifest_comes_with_a_next_step_and_a_newer_one_does_not() {
    let store = store().await;
    let log = open(&store).await;
    log.close().await.unwrap();
    let key = store.key(keys::MANIFEST);
    let good = store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
    let refused = async |bytes: Vec<u8>| {
        store.bulk.put(&key, bytes.into()).await.unwrap();
        let options = LogOptions::for_store(StoreKind::Memory);
        let (clock, mut registry) = (Arc::new(SystemClock), Registry::default());
        let opened = Log::open(store.clone(), options, clock, &mut registry).await;
        opened.unwrap_err().to_string()
    };
    let cut = refused(good[..good.len() / 2].to_vec()).await;
    assert!(
        cut.contains("cluster/manifest.json: not a valid manifest: "),
        "{cut}"
    );
    assert!(cut.contains("cluster/history/") && !cut.contains('\n'), "{cut}");
    // Without its checksum, as one that was made by hand.
    let mut json: serde_json::Value = serde_json::from_slice(&good).unwrap();
    json.as_object_mut().unwrap().remove("crc32c");
    json["feature_level"] = 99.into();
    let newer = refused(json.to_string().into_bytes()).await;
    assert!(
        newer.contains("use a newer Alluvium") && !newer.contains("history"),
        "{newer}"
    );
}

#[tokio::test]
async fn a_head_that_landed_late_does_not_fail_the_next_one() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    append(&log, &log.partition(&id, 0).unwrap(), &["v0"]).await;
    let checkpointer = &log.inner.checkpointer;
    checkpointer.write_checkpoint().await.unwrap();
    let key = store.key(&keys::head(log.incarnation()));
    let read = async || {
        let bytes = store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
        head::Head::decode(&bytes, log.manifest().cluster_id, log.incarnation()).unwrap()
    };
    // A sign of life that its writer did not see land.
    let mut late = read().await;
    late.heartbeat += 1;
    late.commit_id = uuid::Uuid::new_v4();
    store.bulk.put(&key, late.encode().into()).await.unwrap();
    checkpointer.write_checkpoint().await.unwrap();
    let now = read().await;
    assert_eq!(now.heartbeat, late.heartbeat + 1);
    assert_ne!(now.checkpoint, late.checkpoint, "the newer checkpoint is named");
}

#[tokio::test]
async fn a_reader_who_goes_on_finds_what_comes_next_in_memory() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    let large = "x".repeat(600_000);
    for _ in 0..40 {
        append(&log, &p, &[&large]).await;
    }
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    let metrics = &log.inner.stream.metrics;
    for offset in 0..40 {
        let brought = (metrics.cache_misses.get(), metrics.blocks_ahead.get());
        let r = log
            .read(&p, offset, 600_000, Isolation::ReadUncommitted)
            .await
            .unwrap();
        assert_eq!(
            r.bytes,
            log.read(&p, offset, 1, Isolation::ReadUncommitted)
                .await
                .unwrap()
                .bytes
        );
        // Let what was begun arrive.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let ahead = metrics.blocks_ahead.get() - brought.1;
        let missed = metrics.cache_misses.get() - brought.0;
        match offset {
            0 => assert!(ahead == 2 * 8 && missed == 9, "{ahead} {missed}"),
            _ => assert_eq!(missed, ahead, "nothing is waited for at offset {offset}"),
        }
    }
    assert_eq!(metrics.cache_misses.get(), 40, "and nothing is brought twice");

    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    log.read(&p, 20, 600_000, Isolation::ReadUncommitted)
        .await
        .unwrap();
    let ahead = log.inner.stream.metrics.blocks_ahead.get();
    assert_eq!(
        ahead, 0,
        "the first read somewhere in the middle could be the only one"
    );
}

#[tokio::test]
async fn a_batch_at_another_offset_than_the_index_says_is_damage() {
    let store = store().await;
    let log = open(&store).await;
    let id = topic(&log, "t", 1).await;
    let p = log.partition(&id, 0).unwrap();
    append(&log, &p, &["v0", "v1"]).await;
    append(&log, &p, &["v2"]).await;
    let range = p.published.lock().ranges[1];
    let key = store.key(&keys::segment(range.place.incarnation, range.place.seq));
    let mut bytes = store
        .bulk
        .get(&key)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    // The base offset is outside the checksum.
    bytes[range.position as usize + 7] ^= 1;
    store.bulk.put(&key, bytes.into()).await.unwrap();
    let log = open(&store).await;
    let p = log.partition(&id, 0).unwrap();
    let read = async |offset| log.read(&p, offset, 1 << 20, Isolation::ReadUncommitted).await;
    assert_eq!(
        read(0).await.unwrap().chunks.len(),
        1,
        "what lies before it can be read"
    );
    assert!(matches!(read(2).await, Err(ReadError::Corrupt(_))));
}

#[tokio::test]
async fn a_manifest_that_goes_back_is_not_built_upon() {
    let store = store().await;
    let log = open(&store).await;
    let key = store.key(keys::MANIFEST);
    let old = store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
    topic(&log, "t", 1).await;
    store.bulk.put(&key, old.clone().into()).await.unwrap();
    for _ in 0..2 {
        let create = Change::CreateTopic {
            name: "u".into(),
            partitions: 1,
            replication_factor: 1,
            configs: Default::default(),
        };
        assert!(log.change(vec![create]).await.remove(0).is_err());
    }
    assert_eq!(
        store.bulk.get(&key).await.unwrap().bytes().await.unwrap(),
        old,
        "nothing was overwritten"
    );
}

#[tokio::test]
async fn a_hundred_restarts_recover_from_checkpoints() {
    let store = store().await;
    let mut id = None;
    for i in 0..100 {
        let log = open(&store).await;
        let id = match id {
            Some(id) => id,
            None => *id.insert(topic(&log, "t", 1).await),
        };
        let p = log.partition(&id, 0).unwrap();
        assert_eq!(append(&log, &p, &[&format!("v{i}")]).await, i);
        if i % 3 == 0 {
            log.close().await.unwrap();
        }
    }
}
