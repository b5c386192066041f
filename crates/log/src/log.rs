//! The engine's facade: what a broker does with the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::archive::{
    self, ArchiveOptions, ArchivePolicies, ArchivedPartition, AskArchiver, Flush, NotArchived,
};
use crate::checkpointer::Checkpointer;
use crate::clean::DeleteDelay;
use crate::handover::Member;
use crate::head::Head;
use crate::history::History;
use crate::keys;
use crate::manifest::keeper::{ManifestError, ManifestKeeper};
use crate::manifest::{Change, Endpoint, LEVEL_OF_HISTORY, Manifest, Rejection};
use crate::membership::{Membership, MembershipMetrics, MembershipOptions, Peers, StoreSigns};
use crate::merge::{AskedMerge, MergeOptions};
use crate::mutation::{self, Mutation};
use crate::partition::Partition;
use crate::read::{self, FoundOffset, Isolation, OffsetLookup, ReadError, ReadResult};
use crate::recover::StreamRead;
use crate::store::conditional;
use crate::store::{StoreError, StoreKind};
use crate::stream::{Fate, Fenced, Phase, Stream};
use crate::{Incarnation, Offset, RecordBatch, TopicId, TopicPartition};

/// A leader answers reads so long after the start of the last store call that proved its ownership.
const READ_LEASE: Duration = Duration::from_secs(3);
/// So long somebody who is in no hurry waits for a proof of ownership that comes by itself: a little more than a second, in
/// which the manifest is looked at anyway.
const PROOF_PATIENCE: Duration = Duration::from_millis(1200);
/// How long a stop waits for a checkpoint that only spares the next owners some reading.
const LAST_CHECKPOINT: Duration = Duration::from_secs(3);
/// How long the name of a deleted topic is waited for.
const DELETION_PATIENCE: Duration = Duration::from_secs(60);
/// How often the others are asked meanwhile what they have applied.
const DELETION_ASK: Duration = Duration::from_millis(50);
/// A broker that has not answered by then may live and not be heard: from then on its head is read, so often.
const DELETION_HEADS_AFTER: Duration = Duration::from_secs(2);
const DELETION_HEADS: Duration = Duration::from_secs(1);
/// How long such a head is waited for.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Kafka's broker id; one is assigned if there is none.
    pub node_id: Option<i32>,
    /// `broker.rack`
    pub rack: Option<String>,
    /// Advertised endpoints by listener name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// `flush.interval.ms`: the oldest append waits at most this long while the request budget lasts.
    pub flush_interval: Duration,
    /// `flush.bytes`: a segment of so many bytes is written at once.
    pub flush_bytes: usize,
    /// `flush.puts.in.flight`: segments written at the same time.
    pub puts_in_flight: usize,
    /// `request.budget.per.second`: writes of small segments per second; 0 = no budget.
    pub request_budget_per_second: f64,
    /// `request.budget.burst`: how many may be saved up.
    pub request_budget_burst: f64,
    /// `tail.bytes`: newest segments kept in memory.
    pub tail_bytes: usize,
    /// `cache.bytes`: blocks read back from the store.
    pub cache_bytes: u64,
    /// `store.read.concurrency`: ranged GETs of cold readers at once.
    pub read_concurrency: usize,
    /// `producer.id.expiration.ms`
    pub producer_id_expiration: Duration,
    /// `merge.*`
    pub merge: MergeOptions,
    /// Knows the format of history; without one there is none, and what was archived cannot be read.
    pub history: Option<Arc<dyn History>>,
    /// Which topics are archived, and how; without it none is.
    pub archive_policies: Option<Arc<dyn ArchivePolicies>>,
    /// `archive.*`
    pub archive: ArchiveOptions,
    /// `log.segment.delete.delay.ms`: what nobody needs any more is deleted after this time.
    pub delete_delay: Duration,
    /// Asked for another delay that holds instead.
    pub delete_delay_set: Option<Arc<dyn DeleteDelay>>,
    /// `garbage.check.interval.ms`: how often merged objects are looked for that nobody refers to any more.
    pub garbage_interval: Duration,
}

impl LogOptions {
    /// The defaults for a kind of store: a local directory is flushed at once and for nothing, a bucket every
    /// 30 ms and within a request budget.
    pub fn for_store(kind: StoreKind) -> LogOptions {
        let bucket = kind == StoreKind::S3;
        LogOptions {
            node_id: None,
            rack: None,
            endpoints: BTreeMap::new(),
            flush_interval: Duration::from_millis(if bucket { 30 } else { 0 }),
            flush_bytes: 4 << 20,
            puts_in_flight: if bucket { 8 } else { 2 },
            request_budget_per_second: if bucket { 4.0 } else { 0.0 },
            request_budget_burst: 900.0,
            tail_bytes: 128 << 20,
            cache_bytes: 128 << 20,
            read_concurrency: 32,
            producer_id_expiration: Duration::from_secs(24 * 3600),
            merge: MergeOptions::default(),
            history: None,
            archive_policies: None,
            archive: ArchiveOptions::default(),
            delete_delay: Duration::from_secs(60),
            delete_delay_set: None,
            garbage_interval: Duration::from_secs(300),
        }
    }
}

/// Why the log cannot be opened or closed. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object under the manifest belongs to another cluster: the wrong manifest was put there.
    #[error("{0}")]
    OtherCluster(String),
    /// What is in the bucket cannot be used, or somebody else has it.
    #[error("{0}")]
    Unusable(String),
}

/// Where an append stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The time (ms) that the log gave to the records; -1 if they kept their own.
    pub append_time_ms: i64,
    /// Log start when the append was made.
    pub log_start_offset: Offset,
}

/// Why an append is refused, or what it waited for failed. Nothing was appended, except for `NotLeader` of
/// something that was already being written: that is unknown until the new owner answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The stream was taken over.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// The topic was deleted.
    #[error("the topic was deleted")]
    UnknownPartition,
    /// The batch does not follow the producer's last one.
    #[error("sequence {got} does not follow: {expected} was expected")]
    OutOfOrderSequence {
        /// The next sequence.
        expected: i32,
        /// The one that came.
        got: i32,
    },
    /// Appended before, and too long ago to know its offset.
    #[error("a duplicate of a batch whose offset is no longer remembered")]
    DuplicateSequence,
    /// A newer instance of the producer has appended.
    #[error("producer epoch {got} is older than {current}")]
    InvalidProducerEpoch {
        /// Newest epoch.
        current: i16,
        /// The one that came.
        got: i16,
    },
    /// The broker is stopping.
    #[error("this broker is stopping")]
    Stopping,
}

impl AppendError {
    /// Whether a producer gives up on it: then it must be proven first, see [`Log::confirm_rejection`].
    pub fn is_for_good(&self) -> bool {
        matches!(
            self,
            AppendError::OutOfOrderSequence { .. }
                | AppendError::DuplicateSequence
                | AppendError::InvalidProducerEpoch { .. }
        )
    }
}

/// An append whose place is fixed; it resolves at publication. Dropping it does not undo the append.
#[derive(Debug)]
pub struct PendingAppend {
    appended: Appended,
    fate: Option<watch::Receiver<Fate>>,
}

impl PendingAppend {
    pub(crate) fn new(appended: Appended, fate: Option<watch::Receiver<Fate>>) -> PendingAppend {
        PendingAppend { appended, fate }
    }

    /// The offset of the batch's first record; for a duplicate that of the original.
    pub fn base_offset(&self) -> Offset {
        self.appended.base_offset
    }

    /// Waits until the append, and everything before it, is durable and visible.
    pub async fn published(self) -> Result<Appended, AppendError> {
        wait_published(self.fate).await.map(|_| self.appended)
    }
}

/// Waits for a segment's publication; its seq, if there was anything to wait for.
pub(crate) async fn wait_published(
    fate: Option<watch::Receiver<Fate>>,
) -> Result<Option<crate::Seq>, AppendError> {
    let Some(mut fate) = fate else { return Ok(None) };
    let settled = fate.wait_for(|f| *f != Fate::Pending).await;
    match settled.as_deref() {
        Ok(Fate::Published(seq)) => Ok(Some(*seq)),
        Ok(Fate::Failed(e)) => Err(e.clone()),
        // The sender went away without a word: the stream's task is gone.
        Ok(Fate::Pending) | Err(_) => Err(AppendError::NotLeader),
    }
}

/// An open log. Clones share everything.
#[derive(Clone, Debug)]
pub struct Log {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// Kafka's broker id, as given or assigned.
    pub(crate) node_id: i32,
    pub(crate) keeper: Arc<ManifestKeeper>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) stream_task: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    pub(crate) next_producer: AtomicI64,
    /// Streams that this broker has just ended and read: they need not be read again to recover their slots.
    pub(crate) ended: parking_lot::Mutex<BTreeMap<Incarnation, StreamRead>>,
    /// Why slots are quarantined, for a start that must not go on without them.
    pub(crate) last_failure: parking_lot::Mutex<Option<String>>,
    pub(crate) handing_over: tokio::sync::Mutex<()>,
    /// The other brokers, once there is a way to reach them.
    pub(crate) membership: std::sync::OnceLock<Arc<Membership>>,
    /// The tasks that rewrite, once they run.
    pub(crate) rewriters: std::sync::OnceLock<Rewriters>,
    /// Tasks that end with the log.
    pub(crate) background: parking_lot::Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// How to ask the tasks that rewrite.
#[derive(Debug)]
pub(crate) struct Rewriters {
    pub(crate) merge: mpsc::Sender<AskedMerge>,
    pub(crate) archive: Option<AskArchiver>,
}

impl Log {
    /// The manifest in use.
    pub fn manifest(&self) -> Arc<Manifest> {
        self.inner.keeper.current()
    }

    /// Changes with every manifest version that is applied here.
    pub fn manifest_changes(&self) -> watch::Receiver<Arc<Manifest>> {
        self.inner.keeper.subscribe()
    }

    /// Kafka's broker id.
    pub fn node_id(&self) -> i32 {
        self.inner.node_id
    }

    /// This broker start; Kafka's broker epoch.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.stream.incarnation
    }

    /// From now on keeps an eye on the other brokers of the bucket, reached by `peers`, takes over from the dead, and
    /// keeps slots where they should be. To be called once; on a store of this process alone there is nobody to watch.
    pub fn watch_peers(&self, peers: Arc<dyn Peers>, options: MembershipOptions, registry: &mut Registry) {
        let inner = &self.inner;
        let metrics = MembershipMetrics::register(registry);
        if inner.exclusive() {
            return;
        }
        inner.checkpointer.mind(metrics.suspects.clone());
        let stream = &inner.stream;
        let signs = StoreSigns::new(stream.store.clone(), stream.cluster);
        let member = Member(Arc::downgrade(inner));
        let membership = Membership::new(
            stream.incarnation,
            options,
            metrics,
            peers,
            Arc::new(signs),
            Arc::new(member),
        );
        if inner.membership.set(membership.clone()).is_ok() {
            // It ends by itself when this broker is no longer live or the log is gone.
            tokio::spawn(membership.run());
        }
    }

    /// Version of the manifest that this broker has applied: what it answers follows it.
    pub fn applied_manifest_version(&self) -> u64 {
        self.inner.applied()
    }

    /// Looks at the manifest now: somebody says that there is a newer one.
    pub async fn refresh(&self) {
        // The store tells of failures itself.
        let _ = self.inner.refresh_manifest().await;
    }

    /// A partition that this broker leads.
    pub fn partition(&self, topic: &TopicId, partition: i32) -> Option<Arc<Partition>> {
        let tp = TopicPartition {
            topic: *topic,
            partition,
        };
        self.inner.stream.partitions.read().get(&tp).cloned()
    }

    /// Whether the partition was granted to this broker, which cannot rebuild it until an operator helps.
    pub fn is_quarantined(&self, topic: &TopicId, partition: i32) -> bool {
        let tp = TopicPartition {
            topic: *topic,
            partition,
        };
        let slot = self.manifest().slot_of(&tp);
        let owned = self.inner.stream.owned.lock();
        owned.get(&slot).is_some_and(|o| o.phase == Phase::Quarantined)
    }

    /// All partitions that this broker leads.
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.inner.stream.partitions.read().values().cloned().collect()
    }

    /// Gives a batch its offsets now, in call order and without waiting; the result resolves at publication.
    /// With `log_append_time` the log's time replaces the producer's timestamps.
    pub fn append(
        &self,
        partition: &Arc<Partition>,
        batch: RecordBatch,
        log_append_time: bool,
    ) -> Result<PendingAppend, AppendError> {
        self.inner.stream.append(partition, batch, log_append_time)
    }

    /// What to tell a producer whose batch was refused. Some refusals end a producer for good, so they must not come from
    /// a broker that was succeeded by another one without noticing: they are answered only after proof that this broker
    /// still leads the partition, else with `NotLeader`.
    pub async fn confirm_rejection(&self, partition: &Arc<Partition>, refused: AppendError) -> AppendError {
        if refused.is_for_good() && (self.confirm_leadership().await.is_err() || partition.is_gone()) {
            return AppendError::NotLeader;
        }
        refused
    }

    /// Whole batches from the one that holds `offset` on: at least one if there is any, else up to `max_bytes`.
    pub async fn read(
        &self,
        partition: &Arc<Partition>,
        offset: Offset,
        max_bytes: usize,
        isolation: Isolation,
    ) -> Result<ReadResult, ReadError> {
        self.check_lease()?;
        let blocks = &self.inner.stream.blocks;
        let result = read::read(blocks, partition, offset, max_bytes, isolation).await;
        if let Err(ReadError::OffsetOutOfRange { .. }) = &result {
            // Clients reset their position on this: it must not come from a state that is out of date.
            self.confirm_leadership().await?;
            if partition.is_gone() {
                return Err(ReadError::NotLeader);
            }
        }
        result
    }

    /// Looks up an offset by kind or time; `None` if no record matches.
    pub async fn lookup_offset(
        &self,
        partition: &Arc<Partition>,
        what: OffsetLookup,
    ) -> Result<Option<FoundOffset>, ReadError> {
        self.check_lease()?;
        read::lookup(&self.inner.stream.blocks, partition, what).await
    }

    /// Moves the log start to `to` (never back, never beyond the high watermark) as an entry of the stream;
    /// answers after publication with the log start.
    pub async fn advance_log_start(
        &self,
        partition: &Arc<Partition>,
        to: Offset,
    ) -> Result<Offset, AppendError> {
        let fate = self.inner.stream.advance_log_start(partition, to)?;
        wait_published(fate).await?;
        Ok(partition.watermarks().log_start_offset)
    }

    /// Archives now what is published of a topic's partitions that this broker leads, and returns how far that went.
    /// If there is anything to do, it waits until [`ArchiveOptions::flush_interval_min`] have passed since the last time
    /// that there was. Dropping the future stops nothing.
    pub async fn archive_now(&self, topic: &TopicId) -> Result<Vec<ArchivedPartition>, NotArchived> {
        let rewriters = self.inner.rewriters.get().ok_or(NotArchived::Ended)?;
        let archiver = rewriters.archive.as_ref().ok_or(NotArchived::NoFormat)?;
        let how_far = |led: &[(Arc<Partition>, Offset)]| -> Vec<ArchivedPartition> {
            led.iter().map(|(p, end)| archive::archived_to(p, *end)).collect()
        };
        let done = how_far(&self.to_archive(archiver, topic)?);
        if done.iter().all(|one| one.why.is_none()) {
            return Ok(done);
        }
        archiver.admitted(*topic).await?;
        // Much may have changed meanwhile.
        let led = self.to_archive(archiver, topic)?;
        let ended = |_| NotArchived::Ended;
        let unmerged = |(p, end): &(Arc<Partition>, Offset)| {
            let image = p.published.lock();
            image.unmerged_ranges().any(|r| r.base_offset < *end)
        };
        if led.iter().any(unmerged) {
            let (done, merged) = oneshot::channel();
            rewriters.merge.send(done).await.map_err(|_| NotArchived::Ended)?;
            merged.await.map_err(ended)?.map_err(NotArchived::Failed)?;
        }
        let (done, archived) = oneshot::channel();
        let flush = Flush {
            topic: *topic,
            ends: led.iter().map(|(p, end)| (p.index(), *end)).collect(),
            done,
        };
        let asked = archiver.flushes.send(flush).await;
        asked.map_err(|_| NotArchived::Ended)?;
        archived.await.map_err(ended)??;
        Ok(how_far(&led))
    }

    /// The partitions of a topic that this broker leads, by their numbers, and where each ends now; an error if none of
    /// it can be archived.
    fn to_archive(
        &self,
        archiver: &AskArchiver,
        topic: &TopicId,
    ) -> Result<Vec<(Arc<Partition>, Offset)>, NotArchived> {
        if !self.inner.stream.is_open() {
            return Err(NotArchived::Ended);
        }
        let manifest = self.manifest();
        let (name, found) = manifest.topic_by_id(topic).ok_or(NotArchived::NotLed)?;
        if manifest.feature_level < LEVEL_OF_HISTORY {
            return Err(NotArchived::Level(manifest.feature_level));
        }
        let policy = archiver.policies.policy(name, found);
        policy.ok_or(NotArchived::NotThisTopic)?;
        let mut led: Vec<(Arc<Partition>, Offset)> = self
            .partitions()
            .into_iter()
            .filter(|p| p.topic() == *topic)
            .map(|p| {
                let end = p.watermarks().high_watermark;
                (p, end)
            })
            .collect();
        if led.is_empty() {
            return Err(NotArchived::NotLed);
        }
        led.sort_by_key(|(p, _)| p.index());
        Ok(led)
    }

    /// Makes the changes in one compare-and-swap; each gets its own verdict. Returns once they are durable and in
    /// use here. Dropping the future does not stop a change that was begun.
    ///
    /// A topic whose name was deleted is created once every live broker knows of the deletion: one that does not would
    /// still take records for the old topic, and acknowledge what nobody will read.
    pub async fn change(&self, changes: Vec<Change>) -> Vec<Result<Arc<Manifest>, Rejection>> {
        let (count, inner) = (changes.len(), self.inner.clone());
        let ids: Vec<TopicId> = changes.iter().map(|_| Uuid::new_v4()).collect();
        let made = tokio::spawn(async move {
            let (patience, mut applied) = (Instant::now() + DELETION_PATIENCE, Applied::new());
            loop {
                let verdicts = inner.change_once(&changes, &ids, &applied).await;
                let waits = |v: &Result<(), Rejection>| matches!(v, Err(Rejection::DeletionUnderWay(_)));
                match &verdicts {
                    Err(ManifestError::Refused(Refused::All(v)))
                        if v.iter().any(waits) && Instant::now() < patience =>
                    {
                        inner.deletions_applied(&changes, &mut applied, patience).await;
                    }
                    Ok(_) => {
                        inner.nudge();
                        return verdicts;
                    }
                    Err(_) => return verdicts,
                }
            }
        });
        let unavailable = |why: String| vec![Err(Rejection::Unavailable(why)); count];
        let verdicts = match made.await {
            Ok(Ok(verdicts)) | Ok(Err(ManifestError::Refused(Refused::All(verdicts)))) => verdicts,
            Ok(Err(ManifestError::Refused(Refused::Sealed))) => {
                return unavailable("this broker was taken over by another one".into());
            }
            Ok(Err(e)) => return unavailable(e.to_string()),
            Err(e) => return unavailable(e.to_string()),
        };
        let manifest = self.manifest();
        verdicts
            .into_iter()
            .map(|v| v.map(|()| manifest.clone()))
            .collect()
    }

    /// What [`Log::change`] would answer now, without doing it.
    pub fn check(&self, changes: &[Change]) -> Vec<Result<(), Rejection>> {
        let mut manifest = (*self.manifest()).clone();
        changes
            .iter()
            .map(|c| manifest.apply(c, Uuid::new_v4()))
            .collect()
    }

    /// A producer id that no broker start ever gave: incarnation and a counter, without any write.
    pub fn next_producer_id(&self) -> i64 {
        let n = self.inner.next_producer.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff;
        ((self.incarnation() as i64) << 32) | n
    }

    /// Whether this broker may still answer reads: its ownership was proven within the lease, or the store
    /// cannot be shared.
    pub fn leased(&self) -> bool {
        let shared = self.inner.stream.store.kind == StoreKind::S3;
        !self.inner.stream.is_fenced() && (!shared || self.inner.stream.proven_since() < READ_LEASE)
    }

    /// Why the store fails now, as far as its last requests tell; `None` if they succeeded. A log without
    /// traffic still writes a sign of life every 30 s, and on a shared store looks at the manifest every second.
    pub fn store_trouble(&self) -> Option<String> {
        self.inner.stream.store.trouble()
    }

    fn check_lease(&self) -> Result<(), ReadError> {
        if self.leased() {
            return Ok(());
        }
        if self.inner.stream.is_fenced() {
            return Err(ReadError::NotLeader);
        }
        Err(ReadError::Store(
            "ownership could not be proven within the read lease".into(),
        ))
    }

    /// Proves, by a manifest read that starts after this call, that this broker still owns its partitions.
    /// OffsetFetch and OFFSET_OUT_OF_RANGE need it: clients act on them for good. A single partition may have moved all
    /// the same: look at [`Partition::is_gone`] afterwards.
    pub async fn confirm_leadership(&self) -> Result<(), ReadError> {
        if mutation::on(Mutation::StaleCoordinator) {
            return Ok(());
        }
        if self.inner.stream.store.kind == StoreKind::S3 {
            let refreshed = self.inner.refresh_manifest().await;
            refreshed.map_err(|e| ReadError::Store(e.to_string()))?;
        }
        if self.inner.stream.is_fenced() {
            Err(ReadError::NotLeader)
        } else {
            Ok(())
        }
    }

    /// As [`Log::confirm_leadership`], for an answer that may wait a little over a second: a segment that is written and
    /// published meanwhile, or the look at the manifest that is due every second, proves the same, and then the store is
    /// asked for nothing.
    pub async fn await_leadership(&self) -> Result<(), ReadError> {
        let stream = &self.inner.stream;
        if stream.store.kind == StoreKind::S3 {
            let proven = tokio::select! {
                () = stream.proven_after(Instant::now()) => !stream.is_fenced(),
                // Nothing will be proven any more.
                _ = stream.fenced() => false,
                () = tokio::time::sleep(PROOF_PATIENCE) => false,
            };
            if proven {
                return Ok(());
            }
        }
        self.confirm_leadership().await
    }

    /// Graceful stop: takes no more appends, publishes what is under way, seals the stream and gives its slots to the
    /// other brokers. Whoever comes next starts from a checkpoint.
    pub async fn close(&self) -> Result<(), OpenError> {
        let (inner, stream) = (&self.inner, &self.inner.stream);
        let alone = inner.exclusive() || self.manifest().live().count() <= 1;
        // With others waiting for the slots, the checkpoint comes first: they read little, and nobody waits for it.
        if !alone {
            let written = tokio::time::timeout(LAST_CHECKPOINT, inner.checkpointer.write_checkpoint());
            if !matches!(written.await, Ok(Ok(()))) {
                tracing::info!("no checkpoint before the stop; the next owners will read more");
            }
        }
        stream.stop();
        if let Some(task) = inner.stream_task.lock().await.take() {
            task.await
                .map_err(|e| OpenError::Unusable(format!("the stream's task failed: {e}")))?;
        }
        if stream.is_fenced() {
            return Err(OpenError::Unusable(stream.fenced().await.why));
        }
        for task in std::mem::take(&mut *inner.background.lock()) {
            task.abort();
        }
        let written = if alone {
            inner.checkpointer.write_checkpoint().await
        } else {
            Ok(())
        };
        // The seal is right also without a checkpoint: everything is published.
        if let Some(at) = stream.seal_itself().await
            && !inner.exclusive()
        {
            inner.retire(at).await;
        }
        written.map_err(|e| OpenError::Unusable(e.to_string()))
    }

    /// Resolves, with the reason, when this broker has lost its stream.
    pub async fn fenced(&self) -> Fenced {
        self.inner.stream.fenced().await
    }
}

/// Manifest versions that brokers have applied, as their heads say.
type Applied = BTreeMap<Incarnation, u64>;

#[derive(Debug)]
enum Refused {
    Sealed,
    All(Vec<Result<(), Rejection>>),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refused::Sealed => "this broker was taken over",
            Refused::All(_) => "every change was refused",
        })
    }
}

/// The name that a change wants, and the version in which a topic of that name was deleted.
fn deleted_in<'a>(manifest: &Manifest, change: &'a Change) -> Option<(&'a str, u64)> {
    let Change::CreateTopic { name, .. } = change else {
        return None;
    };
    Some((name.as_str(), *manifest.deleted_names.get(name)?))
}

impl Inner {
    async fn change_once(
        self: &Arc<Inner>,
        changes: &[Change],
        ids: &[TopicId],
        applied: &Applied,
    ) -> Result<Vec<Result<(), Rejection>>, ManifestError<Refused>> {
        let incarnation = self.stream.incarnation;
        let verdicts = self
            .keeper
            .change(|m| {
                if !m.is_live(incarnation) {
                    return Err(Refused::Sealed);
                }
                // Judged in the version that is changed: a broker that joins later reads a newer one.
                let free = self.applied_by_all(m, applied);
                let one = |(c, id): (&Change, &TopicId)| match deleted_in(m, c) {
                    Some((name, version)) if version > free => {
                        Err(Rejection::DeletionUnderWay(name.to_owned()))
                    }
                    _ => m.apply(c, *id),
                };
                let verdicts: Vec<_> = changes.iter().zip(ids).map(one).collect();
                if verdicts.iter().all(Result::is_err) {
                    return Err(Refused::All(verdicts));
                }
                // What every live broker has applied need not be remembered.
                m.deleted_names.retain(|_, version| *version > free);
                m.tombstones.retain(|_, version| *version > free);
                Ok((verdicts, Some(incarnation)))
            })
            .await;
        self.apply_manifest();
        verdicts
    }

    /// Waits, not longer than `until`, for every live broker to have applied the deletions of the topics whose names are to
    /// be used again. One that is not heard may be cut off from this broker alone: what it has applied stands in its head.
    async fn deletions_applied(&self, changes: &[Change], applied: &mut Applied, until: Instant) {
        let began = Instant::now();
        while Instant::now() < until {
            // The change was refused in this version or an older one, and newer ones are read every second.
            let manifest = self.keeper.current();
            let deleted = changes.iter().filter_map(|c| deleted_in(&manifest, c));
            let Some(newest) = deleted.map(|(_, version)| version).max() else {
                return;
            };
            let behind: Vec<Incarnation> = self
                .applied_by_each(&manifest, applied)
                .filter(|(_, version)| *version < newest)
                .map(|(i, _)| i)
                .collect();
            if behind.is_empty() {
                return;
            }
            self.nudge();
            let unheard = began.elapsed() >= DELETION_HEADS_AFTER;
            tokio::time::sleep(if unheard { DELETION_HEADS } else { DELETION_ASK }).await;
            if unheard {
                let heads = behind.into_iter().map(|i| self.applied_in_head(i));
                applied.extend(futures::future::join_all(heads).await.into_iter().flatten());
            }
        }
    }

    /// What the head of a stream says that its broker has applied. It may be long out of date, or a late write of it: what
    /// was applied once stays applied, so that a head errs on the safe side.
    async fn applied_in_head(&self, of: Incarnation) -> Option<(Incarnation, u64)> {
        let key = self.stream.store.key(&keys::head(of));
        let read = conditional::read(&self.stream.store, &key);
        let found = tokio::time::timeout(HEAD_TIMEOUT, read).await.ok()?.ok()??;
        let head = Head::decode(&found.bytes, self.stream.cluster, of).ok()?;
        Some((of, head.manifest_version))
    }

    /// The manifest version that every live broker is known to have applied.
    fn applied_by_all(&self, manifest: &Manifest, applied: &Applied) -> u64 {
        let versions = self
            .applied_by_each(manifest, applied)
            .map(|(_, version)| version);
        versions.min().unwrap_or_else(|| self.applied())
    }

    /// The manifest version that each live broker is known to have applied: it said so, or its head does.
    fn applied_by_each(
        &self,
        manifest: &Manifest,
        applied: &Applied,
    ) -> impl Iterator<Item = (Incarnation, u64)> {
        let heard = self.membership.get().map(|m| m.heard()).unwrap_or_default();
        manifest.live().map(move |(i, _)| {
            let heard = heard.get(&i).map_or(0, |h| h.pong.manifest_version);
            let in_head = applied.get(&i).copied().unwrap_or_default();
            let own = i == self.stream.incarnation;
            (i, if own { self.applied() } else { heard.max(in_head) })
        })
    }

    /// The manifest version that this broker has applied.
    fn applied(&self) -> u64 {
        self.stream.manifest_version.load(Ordering::Relaxed)
    }

    /// Reads the manifest from the store if it changed, and brings the partitions in line with it.
    pub(crate) async fn refresh_manifest(self: &Arc<Inner>) -> Result<(), StoreError> {
        let started = Instant::now();
        let looked = self.keeper.refresh().await;
        if let (Err(_), Some(membership)) = (&looked, self.membership.get()) {
            membership.store_failed();
        }
        looked?;
        self.apply_manifest();
        if !self.stream.is_fenced() {
            self.stream.prove(started);
        }
        Ok(())
    }
}
