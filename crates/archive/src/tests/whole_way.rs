//! The whole way of a record, through the real engine and the real format: it is appended, merged, compacted if its topic
//! is, and archived, and wherever it stands it is read and found as it was appended.
//!
//! What is expected knows nothing of objects: for each partition the records that were sent, with the offsets, times and
//! epochs that they were promised. Batches without records and gaps within batches come from compaction, since nobody may
//! send any. Control batches cannot come here: transactions are refused, so that nothing makes one, and
//! `RecordBatch::parse_produced` takes none from clients. What becomes of them in a file is looked at in `round_trip`.

use std::collections::BTreeMap;
use std::time::Duration;

use alluvium_log::batch::ChunkCursor;
use alluvium_log::manifest::{Change, Topic};
use alluvium_log::{
    ArchivePolicies, ArchivePolicy, CompactionOptions, CompactionPolicy, CompactionSettings, FoundOffset,
    Isolation, Log, LogOptions, OffsetLookup, Partition, SystemClock, TopicId,
};
use futures::TryStreamExt;
use hashbrown::HashMap;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::runtime::Runtime;

use super::made::{Sent, Then, sent};
use super::*;

const LONG: Duration = Duration::from_secs(1_000_000);
/// One that keeps all, and one that is compacted before it is archived.
const TOPICS: [&str; 2] = ["orders", "states"];
/// Of both topics, in turns.
const PARTITIONS: i32 = 4;

/// Sizes that decide what stands together.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    segment: usize,
    tail: usize,
    merged: u64,
    file: u64,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let of = |all: &'static [u64]| prop::sample::select(all);
    (
        of(&[1, 100_000, 4 << 20]),
        of(&[0, 100_000, 128 << 20]),
        of(&[1, 100_000, 32 << 20]),
        of(&[1, 200_000, 64 << 20]),
    )
        .prop_map(|(segment, tail, merged, file)| Sizes {
            segment: segment as usize,
            tail: tail as usize,
            merged,
            file,
        })
}

/// A question, in parts of what there is.
#[derive(Clone, Debug)]
struct Question {
    partition: i32,
    /// The record that it is about.
    record: Index,
    max_bytes: usize,
    /// How far from the record's own time.
    time: i64,
}

fn questions() -> impl Strategy<Value = Vec<Question>> {
    let max_bytes = prop_oneof![Just(0), 1usize..3_000, 1usize..1 << 18, 1usize..8 << 20];
    let one = (0..PARTITIONS, any::<Index>(), max_bytes, -1i64..2);
    vec(one, 1..24).prop_map(|questions| {
        let of = |(partition, record, max_bytes, time)| Question {
            partition,
            record,
            max_bytes,
            time,
        };
        questions.into_iter().map(of).collect()
    })
}

/// Everything is archived, in files of so many bytes.
#[derive(Debug)]
struct Archived(u64);

impl ArchivePolicies for Archived {
    fn policy(&self, _name: &str, _topic: &Topic) -> Option<ArchivePolicy> {
        Some(ArchivePolicy {
            file_bytes: self.0,
            interval: LONG,
            text_values: false,
        })
    }
}

/// One topic is compacted at once; marks of what was deleted stay.
#[derive(Debug)]
struct Compacted(TopicId);

impl CompactionPolicy for Compacted {
    fn topics(&self) -> HashMap<TopicId, CompactionSettings> {
        let settings = CompactionSettings {
            delete_retention_ms: i64::MAX,
            min_lag_ms: 0,
            max_lag_ms: i64::MAX,
            min_dirty_ratio: 0.0,
            segment_ms: 0,
        };
        [(self.0, settings)].into_iter().collect()
    }
}

/// An open log in virtual time. Dropping it is a crash: all its tasks end where they are.
struct Broker {
    log: Log,
    registry: Registry,
    runtime: Runtime,
}

impl Broker {
    fn start(store: &Store, sizes: &Sizes, set: impl FnOnce(&mut LogOptions)) -> Broker {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let mut options = LogOptions::for_store(StoreKind::Memory);
        options.flush_bytes = sizes.segment;
        options.tail_bytes = sizes.tail;
        options.merge.interval = LONG;
        options.merge.file_bytes = sizes.merged;
        options.archive.own_threads = false;
        options.history = Some(Arc::new(history(&ParquetOptions {
            own_threads: false,
            ..small()
        })));
        set(&mut options);
        let mut registry = Registry::default();
        let opened = Log::open(store.clone(), options, Arc::new(SystemClock), &mut registry);
        let log = runtime.block_on(opened).unwrap();
        Broker {
            log,
            registry,
            runtime,
        }
    }

    /// Lets it work for a while.
    fn pass(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("there is no {name}"))
            .parse()
            .unwrap()
    }
}

/// A topic's partition by its number among all.
fn partition(log: &Log, number: i32) -> Arc<Partition> {
    let count = TOPICS.len() as i32;
    let name = TOPICS[(number % count) as usize];
    let id = log.manifest().topics[name].id;
    log.partition(&id, number / count).unwrap()
}

/// What each partition holds, in offset order, and where it ends.
#[derive(Clone, Debug, Default)]
struct Expected {
    partitions: BTreeMap<i32, Vec<Seen>>,
    ends: BTreeMap<i32, Offset>,
}

impl Expected {
    /// A batch was promised its place.
    fn add(&mut self, sent: &Sent, epoch: i32, appended: &alluvium_log::Appended) {
        let number = sent.batch.partition;
        let end = self.ends.entry(number).or_default();
        assert_eq!(appended.base_offset, *end, "no offset is left out");
        *end += sent.batch.records.len() as i64;
        let records = sent.batch.records.iter().map(|record| Seen {
            offset: appended.base_offset + record.offset,
            timestamp: match sent.log_append_time {
                true => appended.append_time_ms,
                false => record.timestamp,
            },
            log_append: sent.log_append_time,
            epoch,
            ..record.clone()
        });
        self.partitions.entry(number).or_default().extend(records);
    }

    fn of(&self, number: i32) -> &[Seen] {
        self.partitions.get(&number).map_or(&[], Vec::as_slice)
    }

    /// Of the topic that is compacted the newest record of each key is left, and none without a key.
    fn compact(&mut self) {
        for (_, records) in self.partitions.iter_mut().filter(|(number, _)| *number % 2 == 1) {
            let newest: HashMap<Bytes, Offset> = records
                .iter()
                .filter_map(|r| Some((r.key.clone()?, r.offset)))
                .collect();
            records.retain(|r| r.key.as_ref().is_some_and(|key| newest[key] == r.offset));
        }
    }

    /// Everything is read from the log start on, and every question has its answer.
    fn check(&self, broker: &Broker, questions: &[Question], place: &str) {
        broker.runtime.block_on(async {
            for number in 0..PARTITIONS {
                let p = partition(&broker.log, number);
                let marks = p.watermarks();
                let end = self.ends.get(&number).copied().unwrap_or_default();
                assert_eq!(
                    (marks.log_start_offset, marks.high_watermark),
                    (0, end),
                    "{place}"
                );
                let mut at = 0;
                while at < end {
                    at = self.check_read(broker, number, at, 1 << 20, place).await;
                }
            }
            for question in questions {
                self.check_question(broker, question, place).await;
            }
        });
    }

    async fn check_question(&self, broker: &Broker, question: &Question, place: &str) {
        let number = question.partition;
        let (p, own) = (partition(&broker.log, number), self.of(number));
        let end = self.ends.get(&number).copied().unwrap_or_default();
        // Also one of which compaction left nothing.
        let mut at = if end > 0 {
            question.record.index(end as usize) as i64
        } else {
            0
        };
        for _ in 0..3 {
            at = self
                .check_read(broker, number, at, question.max_bytes, place)
                .await;
        }
        let time = match own {
            [] => question.time,
            own => question.record.get(own).timestamp + question.time,
        };
        // What is below is no time for who asks: -1 is the end, and so on.
        let at_least = time.max(0);
        let greatest = own.iter().map(|r| r.timestamp).fold(-1, i64::max);
        for (what, at_least) in [
            (OffsetLookup::Timestamp(at_least), at_least),
            (OffsetLookup::MaxTimestamp, greatest),
        ] {
            let first = own.iter().find(|r| r.timestamp >= at_least);
            let expected = first.map(|r| FoundOffset {
                offset: r.offset,
                timestamp: r.timestamp,
                leader_epoch: r.epoch,
            });
            let found = broker.log.lookup_offset(&p, what).await;
            assert_eq!(found, Ok(expected), "{place}: {what:?} in partition {number}");
        }
    }

    /// One read as Fetch makes it: whole batches from the one that holds `offset` on, no more than `max_bytes` of them but
    /// for the first, and no record that is not as it was sent. Answers where the next one begins.
    async fn check_read(
        &self,
        broker: &Broker,
        number: i32,
        offset: Offset,
        max_bytes: usize,
        place: &str,
    ) -> Offset {
        let (p, own) = (partition(&broker.log, number), self.of(number));
        let what = format!("{place}: partition {number} from {offset} on, {max_bytes} bytes");
        let read = broker.log.read(&p, offset, max_bytes, Isolation::ReadCommitted);
        let read = read.await.unwrap_or_else(|why| panic!("{what}: {why}"));
        let mut batches = vec![];
        let mut cursor = ChunkCursor::new(&read.chunks);
        while let Some(view) = cursor.next_batch() {
            batches.push(view.unwrap().to_batch(&read.chunks).unwrap());
        }
        let first = own.partition_point(|r| r.offset < offset);
        let Some(last) = batches.last() else {
            assert_eq!(first, own.len(), "{what}: nothing, and there is more");
            return read.watermarks.high_watermark;
        };
        let (next, bytes) = (last.header().last_offset() + 1, read.bytes);
        assert!(next > offset, "{what}: only what lies before it");
        assert!(bytes <= max_bytes || batches.len() == 1, "{what}: {bytes} bytes");
        let batches: Vec<Bytes> = batches.iter().map(|b| b.bytes().clone()).collect();
        let records = seen(&batches);
        // The first batch may begin before what was asked for.
        let from = records
            .first()
            .map_or(first, |r| own.partition_point(|o| o.offset < r.offset));
        assert!(from <= first, "{what}: records are left out");
        let to = own.partition_point(|r| r.offset < next);
        assert_same(&records, &own[from..to], &what);
        next
    }
}

/// As `assert_eq`, without megabytes of values in what it says.
fn assert_same(found: &[Seen], expected: &[Seen], what: &str) {
    let short = |record: Option<&Seen>| {
        let value = record.and_then(|r| r.value.as_ref());
        let begins = value.map(|v| v.slice(..v.len().min(40)));
        let record = record.map(|r| Seen {
            value: begins,
            ..r.clone()
        });
        format!("{record:?}, with a value of {:?} bytes", value.map(Bytes::len))
    };
    let at = found.iter().zip(expected).position(|(f, e)| f != e);
    let at = at.or((found.len() != expected.len()).then_some(found.len().min(expected.len())));
    if let Some(at) = at {
        let (found, expected) = (short(found.get(at)), short(expected.get(at)));
        panic!("{what}: record {at} is\n  {found}\nand was sent as\n  {expected}");
    }
}

fn create_topics(broker: &Broker) {
    let create = |name: &&str| Change::CreateTopic {
        name: (*name).to_owned(),
        partitions: PARTITIONS as u32 / TOPICS.len() as u32,
        replication_factor: 1,
        configs: Default::default(),
    };
    let changes = TOPICS.iter().map(create).collect();
    let made = broker.runtime.block_on(broker.log.change(changes));
    assert!(made.iter().all(Result::is_ok));
}

/// Appends everything, with other leader epochs in between. Answers the log that it came to, and what it must hold.
fn append(store: &Store, sizes: &Sizes, all: &[Sent]) -> (Broker, Expected) {
    let mut broker = Broker::start(store, sizes, |_| {});
    create_topics(&broker);
    let (mut expected, mut pending) = (Expected::default(), vec![]);
    for (n, sent) in all.iter().enumerate() {
        let p = partition(&broker.log, sent.batch.partition);
        let batch = RecordBatch::parse_produced(sent.batch.bytes.clone()).unwrap();
        for _ in 0..=u8::from(sent.again) {
            let _entered = broker.runtime.enter();
            let append = broker.log.append(&p, batch.clone(), sent.log_append_time);
            pending.push((n, p.leader_epoch(), append.unwrap()));
        }
        if sent.then == Then::GoesOn && n + 1 < all.len() {
            continue;
        }
        let mut before = None;
        for (n, epoch, append) in pending.drain(..) {
            let appended = broker.runtime.block_on(append.published()).unwrap();
            match before {
                Some((first, at)) if first == n => assert_eq!(at, appended, "it was sent again"),
                _ => expected.add(&all[n], epoch, &appended),
            }
            before = Some((n, appended));
        }
        if matches!(sent.then, Then::Crashes | Then::Stops) && n + 1 < all.len() {
            if sent.then == Then::Stops {
                broker.runtime.block_on(broker.log.close()).unwrap();
            }
            drop(broker);
            broker = Broker::start(store, sizes, |_| {});
        }
    }
    (broker, expected)
}

/// Keys of a kind of object.
fn objects(broker: &Broker, store: &Store, folder: &str) -> Vec<String> {
    broker.runtime.block_on(async {
        let listed = store.bulk.list(Some(&store.key(folder)));
        let keys = listed.map_ok(|object| object.location.to_string());
        keys.try_collect().await.unwrap()
    })
}

/// Sends everything on its way, and reads it wherever it comes to: from memory, and then by a broker that has only the
/// bucket.
fn travel(all: &[Sent], sizes: &Sizes, questions: &[Question]) {
    let store = memory();
    let (broker, mut expected) = append(&store, sizes, all);
    assert!(objects(&broker, &store, "merged").is_empty());
    expected.check(&broker, questions, "just appended");
    drop(broker);
    let broker = Broker::start(&store, sizes, |_| {});
    expected.check(&broker, questions, "in segments");
    drop(broker);

    let merge = |options: &mut LogOptions| options.merge.interval = Duration::from_secs(4);
    let broker = Broker::start(&store, sizes, merge);
    broker.pass(Duration::from_secs(30));
    assert!(broker.metric("alluvium_log_merged_objects_total") > 0.0);
    assert_eq!(broker.metric("alluvium_log_unmerged_bytes"), 0.0);
    expected.check(&broker, questions, "just merged");
    drop(broker);

    let mut broker = Broker::start(&store, sizes, |_| {});
    expected.check(&broker, questions, "merged");
    let policy = Arc::new(Compacted(partition(&broker.log, 1).topic()));
    let options = CompactionOptions {
        own_thread: false,
        ..CompactionOptions::default()
    };
    {
        let _entered = broker.runtime.enter();
        let compacting = broker.log.compact(policy, options, &mut broker.registry);
        compacting.unwrap();
    }
    broker.pass(Duration::from_secs(60));
    expected.compact();
    expected.check(&broker, questions, "just compacted");
    drop(broker);

    let archive = |options: &mut LogOptions| {
        options.archive_policies = Some(Arc::new(Archived(sizes.file)));
    };
    let broker = Broker::start(&store, sizes, archive);
    expected.check(&broker, questions, "compacted");
    let archived = broker.runtime.block_on(async {
        let mut all = vec![];
        for name in TOPICS {
            let id = broker.log.manifest().topics[name].id;
            all.extend(broker.log.archive_now(&id).await.unwrap());
        }
        all
    });
    for one in archived {
        assert_eq!((one.archived_to, &one.why), (one.end, &None));
    }
    expected.check(&broker, questions, "just archived");
    drop(broker);

    // What is left of the way is garbage: when it is gone, files of history are all there is.
    let clean = |options: &mut LogOptions| {
        options.merge.interval = Duration::from_secs(4);
        options.delete_delay = Duration::from_secs(1);
        options.garbage_interval = Duration::from_secs(5);
    };
    let broker = Broker::start(&store, sizes, clean);
    broker.pass(Duration::from_secs(300));
    let left = objects(&broker, &store, "merged");
    assert!(left.is_empty(), "{left:?}");
    expected.check(&broker, questions, "in history alone");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_is_appended_is_read_and_found_wherever_it_stands(
        all in sent(PARTITIONS, 30),
        sizes in sizes(),
        questions in questions(),
    ) {
        travel(&all, &sizes, &questions);
    }
}
