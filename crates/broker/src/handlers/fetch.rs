//! Fetch 4-18: sessions, long polls, byte limits. Record bytes go from the log to the client uncopied.
//!
//! A fetch that finds too little waits for the high watermark of any of its partitions, at most
//! `max_wait_ms`; an error of any partition is answered at once. Partitions are read side by side, so one
//! that has to be brought from the store does not add to the others' time.
//!
//! Left out: followers (brokers do not replicate; a replica id is refused), fetching from the closest
//! replica, and the refusal of zstd below version 10 (Kafka, too, sends it when the producer chose it).

use std::sync::Arc;
use std::time::Duration;

use alluvium_log::manifest::{Leader, Manifest};
use alluvium_log::{AppendWaiter, Isolation, Partition, ReadError, ReadResult, Watermarks};
use futures::stream::{self, StreamExt};
use kafka_wire::FetchRequest;
use kafka_wire::fetch_response::NodeEndpoint;
use kafka_wire_core::StrBytes;
use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, RequestContext, find_topic, leader_elsewhere, leader_endpoint};
use crate::errors::{ErrorCode, check_leader_epoch};
use crate::fetch_session::{PartitionKey, Target};
use crate::protocol::fetch_response::{FetchAnswer, PartitionAnswer, TOPIC_IDS, TopicAnswer};
use crate::protocol::topic_id;

pub(crate) mod read_plan;
use read_plan::{Candidate, Limits};

/// Partitions of one request that are read at once.
const CONCURRENT_READS: usize = 16;
/// First version with epochs and leaders in the answer (KIP-595).
const CURRENT_LEADER: i16 = 12;
/// Bytes that an answer may have however much other answers hold.
const ANSWER_BYTES_MIN: usize = 1024 * 1024;

/// A target, found or not.
enum Found {
    Here(Arc<Partition>),
    Failed(ErrorCode),
}

/// Everything that one fetch needs while it waits and reads.
struct Fetch<'a> {
    broker: &'a Broker,
    targets: &'a [Target],
    found: Vec<Found>,
    isolation: Isolation,
    limits: Limits,
}

pub(crate) async fn answer(broker: &Arc<Broker>, ctx: &RequestContext, request: FetchRequest) -> FetchAnswer {
    let began = Instant::now();
    let by_id = ctx.api_version >= TOPIC_IDS;
    if request.replica_id.max(request.replica_state.replica_id) >= 0 {
        return refuse_follower(broker, request);
    }
    let context = match broker.fetch_sessions.begin(&request, by_id, began) {
        Ok(context) => context,
        Err(error) => {
            broker.metrics.request_error("Fetch", error.code());
            return FetchAnswer {
                error: Some(error),
                ..FetchAnswer::default()
            };
        }
    };
    let manifest = broker.log.manifest();
    let mut fetch = Fetch {
        broker,
        targets: &context.targets,
        found: context
            .targets
            .iter()
            .map(|target| find(broker, &manifest, by_id, target))
            .collect(),
        isolation: if request.isolation_level == 1 {
            Isolation::ReadCommitted
        } else {
            Isolation::ReadUncommitted
        },
        limits: Limits {
            max_bytes: bytes(request.max_bytes).min(broker.config.settings.fetch_max_bytes),
            min_bytes: bytes(request.min_bytes) as u64,
        },
    };
    let max_wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    fetch.wait(began.checked_add(max_wait)).await;
    let answers = fetch.read().await;
    let mut node_endpoints = Vec::new();
    let answers = fetch.tell_leaders(answers, ctx, &mut node_endpoints);
    for answer in &answers {
        broker.metrics.request_error("Fetch", answer.error.code());
    }
    let (session_id, told) = broker.fetch_sessions.finish(context, answers, Instant::now());
    FetchAnswer {
        error: None,
        session_id,
        topics: by_topic(told),
        node_endpoints,
    }
}

fn bytes(claimed: i32) -> usize {
    usize::try_from(claimed).unwrap_or(0)
}

/// No broker replicates from another here: whoever says it is one is mistaken about the cluster.
fn refuse_follower(broker: &Broker, request: FetchRequest) -> FetchAnswer {
    let error = ErrorCode::InvalidRequest;
    broker.metrics.request_error("Fetch", error.code());
    let topics = request.topics.into_iter().map(|topic| TopicAnswer {
        name: topic.topic,
        id: topic.topic_id,
        partitions: topic
            .partitions
            .iter()
            .map(|partition| PartitionAnswer::failed(partition.partition, error))
            .collect(),
    });
    FetchAnswer {
        error: Some(error),
        topics: topics.collect(),
        ..FetchAnswer::default()
    }
}

fn find(broker: &Broker, manifest: &Manifest, by_id: bool, target: &Target) -> Found {
    let key = &target.key;
    let topic = match find_topic(manifest, by_id, &key.topic, topic_id(key.topic_id)) {
        Ok((_, topic)) => topic,
        Err(error) => return Found::Failed(error),
    };
    match broker.led_partition(manifest, topic, key.index) {
        // A broker that cannot prove its ownership must not keep consumers waiting at its own end of the log.
        Ok(_) if !broker.log.leased() => Found::Failed(ErrorCode::NotLeaderOrFollower),
        Ok(partition) => Found::Here(partition),
        Err(misplaced) => Found::Failed(misplaced.error),
    }
}

impl Fetch<'_> {
    /// Returns when there is enough to answer, when something has failed, or at the deadline.
    async fn wait(&mut self, deadline: Option<Instant>) {
        if self.is_answerable() || deadline.is_some_and(|at| at <= Instant::now()) {
            return;
        }
        let mut waiter = AppendWaiter::new();
        for found in &self.found {
            if let Found::Here(partition) = found {
                waiter.watch(partition);
            }
        }
        // What was published between the first look and the registration wakes nobody: look again.
        while !self.is_answerable() {
            match deadline {
                Some(at) => {
                    if timeout_at(at, waiter.wait()).await.is_err() {
                        return;
                    }
                }
                None => waiter.wait().await,
            }
        }
    }

    fn is_answerable(&self) -> bool {
        if self.targets.is_empty() {
            return true;
        }
        match self.candidates() {
            Some(candidates) => read_plan::is_enough(&candidates, self.limits),
            None => true,
        }
    }

    /// What each partition has; `None` if one of them has failed, which is answered at once.
    fn candidates(&self) -> Option<Vec<Option<Candidate>>> {
        let pairs = self.targets.iter().zip(&self.found);
        pairs
            .map(|(target, found)| self.candidate(target, found).ok().map(Some))
            .collect()
    }

    fn candidate(&self, target: &Target, found: &Found) -> Result<Candidate, ErrorCode> {
        let Found::Here(partition) = found else {
            return Err(ErrorCode::UnknownTopicOrPartition);
        };
        check_position(target, partition)?;
        let readable = partition
            .readable_bytes(target.fetch_offset, self.isolation)
            .map_err(|error| ErrorCode::from(&error))?;
        Ok(Candidate {
            readable,
            max_bytes: bytes(target.max_bytes),
        })
    }

    /// Reads what the plan says; one answer per target.
    async fn read(&mut self) -> Vec<PartitionAnswer> {
        // Answers that clients have not taken yet hold memory: the more there is, the smaller a new one.
        let held = usize::try_from(self.broker.metrics.fetch_reply_bytes.get()).unwrap_or(0);
        let spare = self
            .broker
            .config
            .settings
            .memory_budget_bytes
            .saturating_sub(held)
            / 2;
        self.limits.max_bytes = self.limits.max_bytes.min(spare.max(ANSWER_BYTES_MIN));

        let pairs = self.targets.iter().zip(&self.found);
        let mut candidates: Vec<Result<Candidate, ErrorCode>> = pairs
            .map(|(target, found)| self.candidate(target, found))
            .collect();
        if candidates.contains(&Err(ErrorCode::OffsetOutOfRange)) {
            // Clients reset their position on this one: it must not come from a leader that no longer is one.
            if let Err(error) = self.broker.log.confirm_leadership().await {
                let error = ErrorCode::from(&error);
                let stale = candidates
                    .iter_mut()
                    .filter(|found| **found == Err(ErrorCode::OffsetOutOfRange));
                stale.for_each(|found| *found = Err(error));
            }
        }
        let known: Vec<Option<Candidate>> = candidates
            .iter()
            .map(|candidate| candidate.as_ref().ok().copied())
            .collect();
        let reads = read_plan::plan(&known, self.limits);
        let results: Vec<Option<Result<ReadResult, ReadError>>> = stream::iter(reads.clone())
            .map(|read| self.read_one(read.position, read.max_bytes))
            .buffered(CONCURRENT_READS)
            .collect()
            .await;
        let brought = results.iter().map(|result| match result {
            Some(Ok(result)) => result.bytes,
            _ => 0,
        });
        let keep = read_plan::keep(brought, self.limits);

        let mut answers: Vec<PartitionAnswer> = (0..)
            .zip(&candidates)
            .filter_map(|(at, candidate)| self.unread(at, *candidate))
            .collect();
        for ((read, result), keep) in reads.iter().zip(results).zip(keep) {
            if let (Some(answer), Some(result)) = (answers.get_mut(read.position), result) {
                if let (Err(error), Some(target)) = (&result, self.targets.get(read.position)) {
                    self.read_failed(target, error);
                }
                self.fill(answer, result, keep);
            }
        }
        answers
    }

    async fn read_one(&self, position: usize, max_bytes: usize) -> Option<Result<ReadResult, ReadError>> {
        let target = self.targets.get(position)?;
        match self.found.get(position)? {
            Found::Here(partition) => {
                let read = self
                    .broker
                    .log
                    .read(partition, target.fetch_offset, max_bytes, self.isolation);
                Some(read.await)
            }
            Found::Failed(_) => None,
        }
    }

    /// The answer for a partition of which nothing is read.
    fn unread(&self, position: usize, candidate: Result<Candidate, ErrorCode>) -> Option<PartitionAnswer> {
        let target = self.targets.get(position)?;
        let index = target.key.index;
        Some(match (self.found.get(position)?, candidate) {
            (Found::Failed(error), _) => PartitionAnswer::failed(index, *error),
            (Found::Here(_), Err(error)) => PartitionAnswer::failed(index, error),
            // The poll may have waited for longer than the proof is good that it began with.
            (Found::Here(_), Ok(_)) if !self.broker.log.leased() => {
                PartitionAnswer::failed(index, ErrorCode::NotLeaderOrFollower)
            }
            (Found::Here(partition), Ok(_)) => {
                let mut answer = PartitionAnswer::failed(index, ErrorCode::None);
                set_watermarks(&mut answer, partition.watermarks());
                answer.aborted = self.aborted(Vec::new());
                answer.diverging_epoch = diverging_epoch(target, partition);
                answer
            }
        })
    }

    fn read_failed(&self, target: &Target, error: &ReadError) {
        if matches!(error, ReadError::Store(_)) {
            self.broker
                .readiness
                .store_failed("a read failed", Instant::now());
        }
        let manifest = self.broker.log.manifest();
        let key = &target.key;
        // A client that names topics by id only is answered so, but people know topics by name.
        let by_id = manifest.topic_by_id(&topic_id(key.topic_id));
        let topic = by_id.map_or(key.topic.as_str(), |(name, _)| name);
        let failed_reads = &self.broker.failed_reads;
        failed_reads.tell(topic, key.index, Some(target.fetch_offset), error);
    }

    fn fill(&self, answer: &mut PartitionAnswer, result: Result<ReadResult, ReadError>, keep: bool) {
        match result {
            Ok(_) if answer.error != ErrorCode::None || answer.diverging_epoch.is_some() => {}
            Ok(result) => {
                set_watermarks(answer, result.watermarks);
                if keep {
                    answer.records_bytes = result.bytes;
                    answer.records = result.chunks;
                    answer.aborted = self.aborted(result.aborted);
                }
            }
            Err(error) => {
                *answer = PartitionAnswer::failed(answer.index, ErrorCode::from(&error));
            }
        }
    }

    fn aborted(&self, aborted: Vec<(i64, i64)>) -> Option<Vec<(i64, i64)>> {
        (self.isolation == Isolation::ReadCommitted).then_some(aborted)
    }

    /// Adds who leads a partition that is not led here, or not in the epoch that the client knows. By now that may be
    /// another broker than when the fetch began.
    fn tell_leaders(
        &self,
        mut answers: Vec<PartitionAnswer>,
        ctx: &RequestContext,
        endpoints: &mut Vec<NodeEndpoint>,
    ) -> Vec<PartitionAnswer> {
        if ctx.api_version < CURRENT_LEADER {
            return answers;
        }
        let manifest = self.broker.log.manifest();
        let by_id = ctx.api_version >= TOPIC_IDS;
        for (answer, target) in answers.iter_mut().zip(self.targets) {
            let Some(leader) = self.current_leader(&manifest, by_id, target, answer.error) else {
                continue;
            };
            let Some((stream, endpoint)) = leader_endpoint(&manifest, &leader, &ctx.listener) else {
                continue;
            };
            answer.current_leader = Some((leader.node_id, leader.leader_epoch));
            if endpoints.iter().all(|known| known.node_id != leader.node_id) {
                let mut node = NodeEndpoint::default();
                node.node_id = leader.node_id;
                node.host = StrBytes::from(endpoint.host.as_str());
                node.port = i32::from(endpoint.port);
                node.rack = stream.rack.as_deref().map(StrBytes::from);
                endpoints.push(node);
            }
        }
        answers
    }

    /// The leader that an error makes the client look for (KIP-951).
    fn current_leader(
        &self,
        manifest: &Manifest,
        by_id: bool,
        target: &Target,
        error: ErrorCode,
    ) -> Option<Leader> {
        let key = &target.key;
        let (_, topic) = find_topic(manifest, by_id, &key.topic, topic_id(key.topic_id)).ok()?;
        match error {
            ErrorCode::NotLeaderOrFollower => {
                leader_elsewhere(manifest, topic, key.index, self.broker.log.incarnation())
            }
            ErrorCode::FencedLeaderEpoch => manifest
                .leader(&topic.id, key.index)
                .filter(|leader| manifest.is_live(leader.incarnation)),
            _ => None,
        }
    }
}

/// The checks of KIP-320 on what the client says about the leader.
fn check_position(target: &Target, partition: &Partition) -> Result<(), ErrorCode> {
    if target.current_leader_epoch < 0 {
        return Ok(());
    }
    check_leader_epoch(target.current_leader_epoch, partition.watermarks().leader_epoch)
}

/// Where the client's log and ours part, if they do.
fn diverging_epoch(target: &Target, partition: &Partition) -> Option<(i32, i64)> {
    let last = target.last_fetched_epoch;
    if last < 0 {
        return None;
    }
    let (epoch, end_offset) = partition.end_offset_for_epoch(last);
    (epoch >= 0 && (epoch < last || end_offset < target.fetch_offset)).then_some((epoch, end_offset))
}

fn set_watermarks(answer: &mut PartitionAnswer, watermarks: Watermarks) {
    answer.high_watermark = watermarks.high_watermark;
    answer.last_stable_offset = watermarks.last_stable_offset;
    answer.log_start_offset = watermarks.log_start_offset;
}

/// Groups answers by topic where they follow each other, keeping the order of partitions.
fn by_topic(answers: Vec<(PartitionKey, PartitionAnswer)>) -> Vec<TopicAnswer> {
    let mut topics: Vec<TopicAnswer> = Vec::new();
    for (key, answer) in answers {
        match topics.last_mut() {
            Some(last) if last.name == key.topic && last.id == key.topic_id => last.partitions.push(answer),
            _ => topics.push(TopicAnswer {
                name: key.topic,
                id: key.topic_id,
                partitions: vec![answer],
            }),
        }
    }
    topics
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire_core::Uuid;

    #[test]
    fn answers_are_grouped_without_reordering() {
        let key = |topic: &str, index| PartitionKey {
            topic: StrBytes::from(topic),
            topic_id: Uuid::ZERO,
            index,
        };
        let answer = |index| PartitionAnswer::failed(index, ErrorCode::None);
        let topics = by_topic(vec![
            (key("a", 1), answer(1)),
            (key("a", 0), answer(0)),
            (key("b", 5), answer(5)),
            (key("a", 2), answer(2)),
        ]);
        let shape: Vec<(&str, Vec<i32>)> = topics
            .iter()
            .map(|topic| {
                (
                    topic.name.as_str(),
                    topic.partitions.iter().map(|answer| answer.index).collect(),
                )
            })
            .collect();
        assert_eq!(shape, [("a", vec![1, 0]), ("b", vec![5]), ("a", vec![2])]);
    }

    #[test]
    fn negative_sizes_are_nothing() {
        assert_eq!((bytes(-1), bytes(i32::MIN), bytes(7)), (0, 0, 7));
    }
}
