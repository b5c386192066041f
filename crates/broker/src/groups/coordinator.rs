//! Runs the shards: locks, appends, timers, loading. All decisions are in [`super::shard`].
//!
//! A command locks its shard briefly, decides, starts its appends in that order and hands out what can be
//! answered; no lock is held across an await. One task per shard waits for publications, in order, and for
//! the next deadline. A request that is dropped changes nothing: its answer goes nowhere.

mod active;
mod reading;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use alluvium_log::TopicId;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use active::{ActiveShard, Guarded};
pub(crate) use reading::{FetchedTopic, GroupDescription};

use super::engine::{CoordinatorEndpoint, Engine, EngineError, TopicInfo};
use super::member::ReplyId;
use super::metrics::Metrics;
use super::records::{LogRecord, OFFSETS_TOPIC, partition_for};
use super::shard::{Command, Commit, Reply, Shard};
use super::state::{Join, JoinReply, Limits, Now, Sync, SyncReply};
use crate::errors::ErrorCode;
use crate::log_pace::{LogPace, left_out};

/// Unix time in milliseconds.
pub type WallClock = Arc<dyn Fn() -> i64 + Send + std::marker::Sync>;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often a partition is looked at that this broker was granted and has not recovered yet.
const RECOVERING_LOOK: Duration = Duration::from_millis(50);
/// How often it is looked whether this broker is proven to be a coordinator again, where something is due.
const LEASE_LOOK: Duration = Duration::from_millis(100);

/// Settings of the coordinator beyond the limits of groups.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) limits: Limits,
    /// Partitions of `__consumer_offsets` when it is created.
    pub(crate) offsets_partitions: u32,
    pub(crate) expire_interval: Duration,
}

enum Slot {
    Loading {
        epoch: i32,
        task: tokio::task::AbortHandle,
    },
    Active(Arc<ActiveShard>),
}

impl Slot {
    fn epoch(&self) -> i32 {
        match self {
            Slot::Loading { epoch, .. } => *epoch,
            Slot::Active(shard) => shard.epoch,
        }
    }
}

/// The coordinator's state; [`super::Coordinator`] is the handle to it.
pub(crate) struct Inner {
    pub(crate) engine: Arc<dyn Engine>,
    options: Options,
    limits: Arc<Limits>,
    clock: WallClock,
    started: Instant,
    slots: Mutex<HashMap<i32, Slot>>,
    /// Partitions of `__consumer_offsets`; 0 while it does not exist.
    partitions: AtomicU32,
    creation: tokio::sync::Mutex<()>,
    /// Closed shards whose last appends are under way. Their partitions are not read again before the end:
    /// what they still publish would be missed.
    draining: Mutex<HashMap<i32, Vec<Arc<ActiveShard>>>>,
    metrics: Metrics,
    /// Failed loads: all partitions fail together when the store does.
    failed_loads: LogPace,
}

impl Inner {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        options: Options,
        clock: WallClock,
        metrics: Metrics,
    ) -> Arc<Inner> {
        Arc::new(Inner {
            engine,
            limits: Arc::new(options.limits.clone()),
            options,
            clock,
            started: Instant::now(),
            slots: Mutex::new(HashMap::new()),
            partitions: AtomicU32::new(0),
            creation: tokio::sync::Mutex::new(()),
            draining: Mutex::new(HashMap::new()),
            metrics,
            failed_loads: LogPace::default(),
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn now(&self) -> Now {
        let monotonic_ms = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        Now {
            monotonic_ms,
            wall_ms: (self.clock)(),
        }
    }

    // ---- Ownership ----

    /// Loads the partitions that this broker has come to lead and lets go of those it has lost. To be called
    /// after every change of the manifest; `topics_deleted` when it has fewer topics than before.
    pub(crate) fn reconcile(self: &Arc<Inner>, topics_deleted: bool) {
        let ownership = self.engine.ownership().unwrap_or_default();
        self.partitions.store(ownership.partitions, Ordering::Release);
        let (mut active, mut lost) = (Vec::new(), 0);
        {
            let mut slots = self.slots.lock();
            slots.retain(|partition, slot| {
                let kept = ownership.owned.get(partition) == Some(&slot.epoch());
                match slot {
                    Slot::Loading { task, .. } if !kept => task.abort(),
                    Slot::Active(shard) if !kept => {
                        lost += 1;
                        self.close(shard);
                    }
                    Slot::Active(shard) => active.push(shard.clone()),
                    Slot::Loading { .. } => {}
                }
                kept
            });
            for (partition, epoch) in ownership.owned {
                slots.entry(partition).or_insert_with(|| {
                    let task = tokio::spawn(self.clone().load(partition, epoch));
                    Slot::Loading {
                        epoch,
                        task: task.abort_handle(),
                    }
                });
            }
        }
        if lost > 0 {
            info!(
                partitions = lost,
                "unloading the groups of partitions of {OFFSETS_TOPIC}"
            );
        }
        if topics_deleted {
            for shard in active {
                self.drop_missing_topics(&shard);
            }
        }
    }

    fn close(&self, shard: &Arc<ActiveShard>) {
        let mut draining = self.draining.lock();
        let of_partition = draining.entry(shard.partition).or_default();
        of_partition.retain(|shard| !*shard.drained.borrow());
        of_partition.push(shard.clone());
        drop(draining);
        shard.close(self, ErrorCode::NotCoordinator);
    }

    async fn load(self: Arc<Inner>, partition: i32, epoch: i32) {
        let began = Instant::now();
        let earlier = self.draining.lock().get(&partition).cloned().unwrap_or_default();
        for shard in earlier {
            shard.drained().await;
        }
        self.draining.lock().remove(&partition);
        let mut shard = Shard::new(self.limits.clone());
        let mut from = None;
        let mut count = 0u64;
        let mut wait = RETRY_MIN;
        loop {
            match self.engine.read(partition, epoch, from).await {
                Ok(chunk) => {
                    wait = RETRY_MIN;
                    count += chunk.records.len() as u64;
                    let now = self.now();
                    for (key, value) in chunk.records {
                        match LogRecord::decode(&key, value.as_deref()) {
                            Ok(Some(record)) => shard.replay(record, now),
                            Ok(None) => debug!(partition, "skipping a record that is not of a classic group"),
                            Err(error) => warn!(partition, %error, "skipping an unreadable group record"),
                        }
                    }
                    if chunk.is_last {
                        break;
                    }
                    from = Some(chunk.next_offset);
                }
                // Nothing has failed: it takes as long as it takes, and clients are told that it loads.
                Err(EngineError::Recovering) => tokio::time::sleep(RECOVERING_LOOK).await,
                Err(error) => {
                    // While the partition is ours this must succeed some time; when it is not any more,
                    // `reconcile` ends this task.
                    if let Some(more) = self.failed_loads.due(Instant::now()) {
                        let more = left_out(more);
                        warn!(%error, "cannot load the groups of {OFFSETS_TOPIC}-{partition} yet; trying again{more}");
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
        self.activate(partition, epoch, shard);
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.loaded(seconds);
        debug!(partition, epoch, records = count, seconds, "loaded groups");
    }

    fn activate(self: &Arc<Inner>, partition: i32, epoch: i32, shard: Shard) {
        let (publications, queue) = mpsc::unbounded_channel();
        let active = Arc::new(ActiveShard {
            partition,
            epoch,
            started: self.started,
            guarded: Mutex::new(Guarded {
                shard,
                waiting: HashMap::new(),
                next_reply: 0,
                unheard: None,
                publications: Some(publications),
            }),
            wake: Notify::new(),
            drained: watch::Sender::new(false),
        });
        {
            let mut slots = self.slots.lock();
            match slots.get(&partition) {
                Some(Slot::Loading { epoch: loading, .. }) if *loading == epoch => {}
                _ => return,
            }
            slots.insert(partition, Slot::Active(active.clone()));
            let mut guarded = active.guarded.lock();
            let fx = guarded.shard.loaded(self.now());
            active.carry_out(self, &mut guarded, fx);
        }
        tokio::spawn(active.clone().run_until_drained(Arc::downgrade(self), queue));
        self.drop_missing_topics(&active);
    }

    /// Tombstones for offsets of topics that were deleted, also while nobody coordinated the group.
    fn drop_missing_topics(&self, shard: &ActiveShard) {
        let mut guarded = shard.guarded.lock();
        let topics = guarded.shard.topics();
        let is_gone = |(name, stored): &(String, Option<TopicId>)| match self.engine.topic(name) {
            None => true,
            Some(topic) => stored.is_some_and(|id| id != topic.id),
        };
        let gone: BTreeSet<_> = topics.into_iter().filter(is_gone).collect();
        if !gone.is_empty() {
            shard.execute(self, &mut guarded, Command::DropTopics(gone));
        }
    }

    /// The log rejected an append of the shard: what it holds in memory may be ahead of the log, so it is
    /// read again, if the partition is still led here.
    fn distrust(self: &Arc<Inner>, shard: &Arc<ActiveShard>) {
        let removed = {
            let mut slots = self.slots.lock();
            match slots.get(&shard.partition) {
                Some(Slot::Active(current)) if Arc::ptr_eq(current, shard) => {
                    self.close(shard);
                    slots.remove(&shard.partition)
                }
                _ => None,
            }
        };
        if removed.is_some() {
            warn!(
                partition = shard.partition,
                epoch = shard.epoch,
                "an append was rejected; loading groups again"
            );
            let inner = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(RETRY_MIN).await;
                inner.reconcile(false);
            });
        }
    }

    /// Looks for expired offsets from time to time, until the coordinator is gone.
    pub(crate) async fn expire_forever(inner: Weak<Inner>, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let Some(inner) = inner.upgrade() else { return };
            for shard in inner.active_shards() {
                let mut guarded = shard.guarded.lock();
                shard.execute(&inner, &mut guarded, Command::Expire);
            }
        }
    }

    pub(crate) fn expire_interval(&self) -> Duration {
        self.options.expire_interval
    }

    fn active_shards(&self) -> Vec<Arc<ActiveShard>> {
        let slots = self.slots.lock();
        let active = |slot: &Slot| match slot {
            Slot::Active(shard) => Some(shard.clone()),
            Slot::Loading { .. } => None,
        };
        slots.values().filter_map(active).collect()
    }

    /// Without a proof of late another broker may coordinate the group, which has gone on there: a client that asks here
    /// must look for it, and not be told how the group was.
    fn shard(&self, group: &str) -> Result<Arc<ActiveShard>, ErrorCode> {
        let partitions = self.partitions.load(Ordering::Acquire);
        if partitions == 0 {
            return Err(ErrorCode::NotCoordinator);
        }
        let leased = self.engine.leased();
        let shard = match self.slots.lock().get(&partition_for(group, partitions)) {
            Some(Slot::Active(shard)) => shard.clone(),
            Some(Slot::Loading { .. }) if leased => return Err(ErrorCode::CoordinatorLoadInProgress),
            Some(Slot::Loading { .. }) | None => return Err(ErrorCode::NotCoordinator),
        };
        if leased {
            return Ok(shard);
        }
        shard.guarded.lock().unheard = Some(self.now());
        Err(ErrorCode::NotCoordinator)
    }

    // ---- Commands ----

    /// Within the lease a former coordinator may answer: the member finds the new one a little later. That it is fenced
    /// it must not hear from there, since no client recovers from that.
    async fn submit(
        &self,
        group: &str,
        command: impl FnOnce(ReplyId) -> Command,
    ) -> Result<Reply, ErrorCode> {
        let (shard, answer) = self.begin(group, command)?;
        let reply = answer.await.ok();
        if reply.as_ref().is_some_and(Reply::is_fencing)
            && !self.engine.confirm_leadership(shard.partition, shard.epoch).await
        {
            return Err(ErrorCode::NotCoordinator);
        }
        settled(reply)
    }

    /// The same for what must last. An answer that needs an append waits for its publication, which no former
    /// coordinator gets; one that comes at once, as to a commit that changes nothing, needs proof that this is still the
    /// coordinator: its successor may have other offsets. Consumers without records commit so every few seconds, and have
    /// time: they wait for a proof that is there soon anyway, and cost no request to the store.
    async fn submit_lasting(
        &self,
        group: &str,
        command: impl FnOnce(ReplyId) -> Command,
    ) -> Result<Reply, ErrorCode> {
        let (shard, mut answer) = self.begin(group, command)?;
        let Ok(reply) = answer.try_recv() else {
            return settled(answer.await.ok());
        };
        let (partition, epoch) = (shard.partition, shard.epoch);
        let proven = match reply.is_success() {
            true => self.engine.await_leadership(partition, epoch).await,
            false => self.engine.confirm_leadership(partition, epoch).await,
        };
        if !proven {
            return Err(ErrorCode::NotCoordinator);
        }
        settled(Some(reply))
    }

    fn begin(
        &self,
        group: &str,
        command: impl FnOnce(ReplyId) -> Command,
    ) -> Result<(Arc<ActiveShard>, oneshot::Receiver<Reply>), ErrorCode> {
        let shard = self.shard(group)?;
        let mut guarded = shard.guarded.lock();
        let reply = guarded.next_reply;
        guarded.next_reply += 1;
        let (sender, answer) = oneshot::channel();
        guarded.waiting.insert(reply, sender);
        shard.execute(self, &mut guarded, command(reply));
        drop(guarded);
        Ok((shard, answer))
    }

    /// Waits for as long as the rebalance takes.
    pub(crate) async fn join(&self, group: &str, request: Join) -> JoinReply {
        let member_id = request.member_id.clone();
        let name = group.to_owned();
        match self
            .submit(group, |reply| Command::Join {
                group: name,
                request,
                reply,
            })
            .await
        {
            Ok(Reply::Join(reply)) => reply,
            other => JoinReply::error(unexpected(other), &member_id),
        }
    }

    /// Waits for the leader's assignment to be stored.
    pub(crate) async fn sync(&self, group: &str, request: Sync) -> SyncReply {
        let name = group.to_owned();
        match self
            .submit(group, |reply| Command::Sync {
                group: name,
                request,
                reply,
            })
            .await
        {
            Ok(Reply::Sync(reply)) => reply,
            other => SyncReply::error(unexpected(other)),
        }
    }

    pub(crate) async fn heartbeat(
        &self,
        group: &str,
        member_id: String,
        instance_id: Option<String>,
        generation: i32,
    ) -> ErrorCode {
        let name = group.to_owned();
        let command = |reply| Command::Heartbeat {
            group: name,
            member_id,
            instance_id,
            generation,
            reply,
        };
        match self.submit(group, command).await {
            Ok(Reply::Code(code)) => code,
            // The group is being read: its sessions start afterwards, so all is well.
            Err(ErrorCode::CoordinatorLoadInProgress) => ErrorCode::None,
            other => unexpected(other),
        }
    }

    /// One code per member.
    pub(crate) async fn leave(
        &self,
        group: &str,
        members: Vec<(String, Option<String>)>,
    ) -> Result<Vec<ErrorCode>, ErrorCode> {
        let name = group.to_owned();
        codes(
            self.submit(group, |reply| Command::Leave {
                group: name,
                members,
                reply,
            })
            .await,
        )
    }

    /// One code per offset; returns after publication.
    pub(crate) async fn commit(&self, group: &str, request: Commit) -> Result<Vec<ErrorCode>, ErrorCode> {
        let name = group.to_owned();
        codes(
            self.submit_lasting(group, |reply| Command::Commit {
                group: name,
                request,
                reply,
            })
            .await,
        )
    }

    /// One code per topic and partition.
    pub(crate) async fn delete_offsets(
        &self,
        group: &str,
        offsets: Vec<(String, i32)>,
    ) -> Result<Vec<ErrorCode>, ErrorCode> {
        let name = group.to_owned();
        codes(
            self.submit_lasting(group, |reply| Command::DeleteOffsets {
                group: name,
                offsets,
                reply,
            })
            .await,
        )
    }

    /// One code per group; those of one partition go in one append.
    pub(crate) async fn delete_groups(&self, groups: &[String]) -> Vec<ErrorCode> {
        let partitions = self.partitions.load(Ordering::Acquire);
        let mut by_partition: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (index, group) in groups.iter().enumerate() {
            by_partition
                .entry(partition_for(group, partitions))
                .or_default()
                .push(index);
        }
        let deletions = by_partition.into_values().map(|indexes| async move {
            let names: Vec<String> = indexes.iter().map(|index| groups[*index].clone()).collect();
            let first = names[0].clone();
            let answer = self
                .submit_lasting(&first, |reply| Command::DeleteGroups { groups: names, reply })
                .await;
            (indexes, codes(answer))
        });
        let mut result = vec![ErrorCode::UnknownServerError; groups.len()];
        for (indexes, answer) in futures::future::join_all(deletions).await {
            for (place, index) in indexes.into_iter().enumerate() {
                result[index] = match &answer {
                    Ok(codes) => codes.get(place).copied().unwrap_or(ErrorCode::UnknownServerError),
                    Err(error) => *error,
                };
            }
        }
        result
    }

    /// Where the group's coordinator is. Creates `__consumer_offsets` when it does not exist yet.
    pub(crate) async fn find(
        self: &Arc<Inner>,
        group: &str,
        listener: &str,
    ) -> Result<CoordinatorEndpoint, ErrorCode> {
        if self.engine.ownership().is_none() {
            self.create_topic().await?;
        }
        let partitions = self
            .engine
            .ownership()
            .map_or(0, |ownership| ownership.partitions);
        if partitions == 0 {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let endpoint = self.engine.endpoint(partition_for(group, partitions), listener);
        endpoint.ok_or(ErrorCode::CoordinatorNotAvailable)
    }

    async fn create_topic(self: &Arc<Inner>) -> Result<(), ErrorCode> {
        let _one_at_a_time = self.creation.lock().await;
        if self.engine.ownership().is_none()
            && let Err(error) = self
                .engine
                .create_offsets_topic(self.options.offsets_partitions)
                .await
        {
            warn!(%error, "cannot create the topic of groups and offsets yet");
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.reconcile(false);
        Ok(())
    }

    pub(crate) fn topic(&self, name: &str) -> Option<TopicInfo> {
        self.engine.topic(name)
    }

    pub(crate) fn topic_name(&self, id: &TopicId) -> Option<String> {
        self.engine.topic_name(id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for slot in self.slots.get_mut().values() {
            if let Slot::Active(shard) = slot {
                shard.guarded.lock().publications = None;
                shard.wake.notify_one();
            }
        }
    }
}

fn settled(reply: Option<Reply>) -> Result<Reply, ErrorCode> {
    match reply {
        Some(Reply::Failed(error)) => Err(error),
        Some(reply) => Ok(reply),
        None => Err(ErrorCode::NotCoordinator),
    }
}

fn codes(answer: Result<Reply, ErrorCode>) -> Result<Vec<ErrorCode>, ErrorCode> {
    match answer {
        Ok(Reply::Codes(codes)) => Ok(codes),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Result<Reply, ErrorCode>) -> ErrorCode {
    answer.err().unwrap_or(ErrorCode::UnknownServerError)
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
