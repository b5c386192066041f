//! Retention: a task that moves the log start of led partitions by `retention.ms` and `retention.bytes`.
//!
//! Every `log.retention.check.interval.ms`, and soon after the limits of a topic changed, each partition whose
//! topic has the cleanup policy `delete` is asked where its limits let the log start; where that has grown,
//! the log start moves, as an entry of the stream. The bytes go later, once nothing refers to the objects they stand in.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use alluvium_log::manifest::Manifest;
use alluvium_log::{AppendError, Log, Partition, TopicId};
use futures::StreamExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Config;

/// Milliseconds since the epoch, now.
pub(crate) type WallClock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The first check comes no later than this after the start, as in Kafka.
const FIRST_CHECK: Duration = Duration::from_secs(30);
/// Changes of the manifest come in groups; one look at the limits serves them all.
const SETTLE: Duration = Duration::from_secs(1);
/// Log start moves under way at once.
const MOVES_AT_ONCE: usize = 256;
/// Partitions looked at between two chances for other tasks.
const LOOKS_WITHOUT_PAUSE: usize = 64;

/// Starts the task; it ends when the log is closed, and may be aborted at any time.
pub(crate) fn spawn(
    log: Log,
    config: Arc<Config>,
    now_ms: WallClock,
    registry: &mut Registry,
) -> JoinHandle<()> {
    let check_interval = config.settings.log_retention_check_interval;
    let manifests = log.manifest_changes();
    // Brokers that start together must not look together; the incarnation is theirs alone.
    let random = StdRng::seed_from_u64(log.incarnation());
    let task = Task {
        log: LedLog { log, config },
        check_interval,
        now_ms,
        metrics: Metrics::registered(registry),
        random,
    };
    tokio::spawn(task.run(manifests))
}

/// Limits of a topic with the cleanup policy `delete`; -1 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    retention_ms: i64,
    retention_bytes: i64,
}

type TopicLimits = HashMap<TopicId, Option<Limits>>;

/// What the task works on: the log of this broker, or a fake one in tests.
trait RetainedLog: Send + Sync + 'static {
    type Partition: Send + Sync;
    /// The limits of every topic; `None` for one whose cleanup policy keeps everything.
    fn limits(&self) -> TopicLimits;
    /// The limits of a partition's topic at this moment.
    fn limits_of(&self, partition: &Self::Partition) -> Option<Limits>;
    fn led(&self) -> Vec<(TopicId, Self::Partition)>;
    /// Where the log starts, and where `limits` let it start.
    fn look(&self, partition: &Self::Partition, now_ms: i64, limits: Limits) -> Look;
    fn advance(
        &self,
        partition: &Self::Partition,
        to: i64,
    ) -> impl Future<Output = Result<i64, AppendError>> + Send;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    log_start: i64,
    retention_point: i64,
}

impl Look {
    /// The log start to move to, if any.
    fn target(self) -> Option<i64> {
        (self.retention_point > self.log_start).then_some(self.retention_point)
    }
}

struct LedLog {
    log: Log,
    config: Arc<Config>,
}

impl LedLog {
    fn limits_by_name(&self, manifest: &Manifest, name: &str) -> Option<Limits> {
        let settings = self.config.topic(manifest, name);
        settings.cleanup_delete.then_some(Limits {
            retention_ms: settings.retention_ms,
            retention_bytes: settings.retention_bytes,
        })
    }
}

impl RetainedLog for LedLog {
    type Partition = Arc<Partition>;

    fn limits(&self) -> TopicLimits {
        let manifest = self.log.manifest();
        let topics = manifest.topics.iter();
        let limits = topics.map(|(name, topic)| (topic.id, self.limits_by_name(&manifest, name)));
        limits.collect()
    }

    fn limits_of(&self, partition: &Arc<Partition>) -> Option<Limits> {
        let manifest = self.log.manifest();
        let name = partition.topic_name();
        let topic = manifest.topics.get(name)?;
        (topic.id == partition.topic()).then(|| self.limits_by_name(&manifest, name))?
    }

    fn led(&self) -> Vec<(TopicId, Arc<Partition>)> {
        self.log
            .partitions()
            .into_iter()
            .map(|partition| (partition.topic(), partition))
            .collect()
    }

    fn look(&self, partition: &Arc<Partition>, now_ms: i64, limits: Limits) -> Look {
        Look {
            log_start: partition.watermarks().log_start_offset,
            retention_point: partition.retention_point(now_ms, limits.retention_ms, limits.retention_bytes),
        }
    }

    async fn advance(&self, partition: &Arc<Partition>, to: i64) -> Result<i64, AppendError> {
        self.log.advance_log_start(partition, to).await
    }
}

/// The topics among `now` whose limits differ from those `before`. A topic that was not there before is new,
/// so it can wait for the next check.
fn changed(before: &TopicLimits, now: &TopicLimits) -> TopicLimits {
    let changed = now
        .iter()
        .filter(|(id, limits)| before.get(*id).is_some_and(|old| old != *limits));
    changed.map(|(id, limits)| (*id, *limits)).collect()
}

struct Task<L> {
    log: L,
    check_interval: Duration,
    now_ms: WallClock,
    metrics: Metrics,
    random: StdRng,
}

impl<L: RetainedLog> Task<L> {
    /// `versions` changes with the manifest and ends with the log.
    async fn run<T>(mut self, mut versions: watch::Receiver<T>) {
        let first = self.jittered(self.check_interval.min(FIRST_CHECK));
        let mut next = Instant::now() + first;
        let mut known = self.log.limits();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    known = self.log.limits();
                    self.check(&known).await;
                    next = Instant::now() + self.jittered(self.check_interval);
                }
                version = versions.changed() => {
                    if version.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    versions.mark_unchanged();
                    let now = self.log.limits();
                    self.check(&changed(&known, &now)).await;
                    known = now;
                }
            }
        }
    }

    /// Up to a tenth more or less than `interval`.
    fn jittered(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(self.random.random_range(0.9..1.1))
    }

    /// Looks at every led partition of the topics in `limits`, and moves the log starts that may move.
    async fn check(&self, limits: &TopicLimits) {
        if limits.values().all(Option::is_none) {
            return;
        }
        let started = Instant::now();
        let now_ms = (self.now_ms)();
        let led = self.log.led();
        let limited = led
            .iter()
            .filter(|(topic, _)| limits.get(topic).is_some_and(Option::is_some));
        futures::stream::iter(limited.enumerate())
            .for_each_concurrent(MOVES_AT_ONCE, |(n, (topic, partition))| async move {
                if n % LOOKS_WITHOUT_PAUSE == 0 {
                    tokio::task::yield_now().await;
                }
                // While others' moves wait for a store that stalls, limits are raised, and what they keep must stay.
                let Some(limits) = self.log.limits_of(partition) else {
                    return;
                };
                let look = self.log.look(partition, now_ms, limits);
                let Some(to) = look.target() else { return };
                match self.log.advance(partition, to).await {
                    Ok(log_start) => self.metrics.moved(look.log_start, log_start),
                    // Led elsewhere or deleted meanwhile: not ours to do any more.
                    Err(AppendError::NotLeader | AppendError::UnknownPartition | AppendError::Stopping) => {}
                    Err(error) => {
                        self.metrics.failures.inc();
                        tracing::warn!(%topic, to, %error, "retention could not move a log start");
                    }
                }
            })
            .await;
        self.metrics.checks.inc();
        self.metrics
            .check_seconds
            .observe(started.elapsed().as_secs_f64());
    }
}

#[derive(Clone, Debug)]
struct Metrics {
    checks: Counter<u64, AtomicU64>,
    check_seconds: Histogram,
    moves: Counter<u64, AtomicU64>,
    offsets: Counter<u64, AtomicU64>,
    failures: Counter<u64, AtomicU64>,
}

impl Metrics {
    fn unregistered() -> Metrics {
        Metrics {
            checks: Counter::default(),
            check_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 10)),
            moves: Counter::default(),
            offsets: Counter::default(),
            failures: Counter::default(),
        }
    }

    fn registered(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::unregistered();
        registry.register(
            "alluvium_retention_checks",
            "Looks at the retention limits of all led partitions, or of those whose limits changed",
            metrics.checks.clone(),
        );
        registry.register(
            "alluvium_retention_check_duration_seconds",
            "Time from the start of a look to the publication of the last log start that it moved",
            metrics.check_seconds.clone(),
        );
        registry.register(
            "alluvium_retention_log_start_moves",
            "Log starts moved by retention",
            metrics.moves.clone(),
        );
        registry.register(
            "alluvium_retention_offsets",
            "Offsets that retention took from view",
            metrics.offsets.clone(),
        );
        registry.register(
            "alluvium_retention_failures",
            "Log starts that retention could not move; they are tried again at the next look",
            metrics.failures.clone(),
        );
        metrics
    }

    fn moved(&self, from: i64, to: i64) {
        self.moves.inc();
        self.offsets
            .inc_by(u64::try_from(to.saturating_sub(from)).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A log whose record at offset o was written o seconds after the epoch and has 10 bytes.
    #[derive(Clone, Default)]
    struct FakeLog(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        limits: TopicLimits,
        log_starts: HashMap<(TopicId, i32), i64>,
        end: i64,
        moves: Vec<(TopicId, i32, i64)>,
        broken: Option<AppendError>,
        under_way: usize,
        most_under_way: usize,
        advance_takes: Duration,
    }

    fn id(n: u128) -> TopicId {
        TopicId::from_u128(n)
    }

    fn limits(retention_ms: i64, retention_bytes: i64) -> Option<Limits> {
        Some(Limits {
            retention_ms,
            retention_bytes,
        })
    }

    impl RetainedLog for FakeLog {
        type Partition = (TopicId, i32);

        fn limits(&self) -> TopicLimits {
            self.0.lock().limits.clone()
        }

        fn limits_of(&self, partition: &(TopicId, i32)) -> Option<Limits> {
            self.0.lock().limits.get(&partition.0).copied().flatten()
        }

        fn led(&self) -> Vec<(TopicId, (TopicId, i32))> {
            self.0.lock().log_starts.keys().map(|key| (key.0, *key)).collect()
        }

        fn look(&self, partition: &(TopicId, i32), now_ms: i64, limits: Limits) -> Look {
            let state = self.0.lock();
            let by_time = if limits.retention_ms < 0 {
                0
            } else {
                (now_ms - limits.retention_ms) / 1_000
            };
            let by_size = if limits.retention_bytes < 0 {
                0
            } else {
                state.end - limits.retention_bytes / 10
            };
            let log_start = state.log_starts[partition];
            Look {
                log_start,
                retention_point: by_time.max(by_size).clamp(log_start, state.end),
            }
        }

        async fn advance(&self, partition: &(TopicId, i32), to: i64) -> Result<i64, AppendError> {
            let takes = {
                let mut state = self.0.lock();
                state.under_way += 1;
                state.most_under_way = state.most_under_way.max(state.under_way);
                state.advance_takes
            };
            tokio::time::sleep(takes).await;
            let mut state = self.0.lock();
            state.under_way -= 1;
            if let Some(error) = state.broken.clone() {
                return Err(error);
            }
            state.log_starts.insert(*partition, to);
            state.moves.push((partition.0, partition.1, to));
            Ok(to)
        }
    }

    /// A log with 100 records in each of the given partitions of each topic, and its clock at 50 s.
    fn start(
        topics: &[(u128, i32, Option<Limits>)],
    ) -> (FakeLog, Metrics, watch::Sender<u64>, JoinHandle<()>) {
        let log = FakeLog::default();
        {
            let mut state = log.0.lock();
            state.end = 100;
            for (topic, partitions, limits) in topics {
                state.limits.insert(id(*topic), *limits);
                state
                    .log_starts
                    .extend((0..*partitions).map(|p| ((id(*topic), p), 0)));
            }
        }
        let metrics = Metrics::unregistered();
        let (sender, receiver) = watch::channel(0);
        let task = Task {
            log: log.clone(),
            check_interval: 5 * MINUTE,
            now_ms: Arc::new(|| 50_000),
            metrics: metrics.clone(),
            random: StdRng::seed_from_u64(1),
        };
        (log, metrics, sender, tokio::spawn(task.run(receiver)))
    }

    #[tokio::test(start_paused = true)]
    async fn log_starts_move_by_time_and_by_size_and_only_under_the_delete_policy() {
        let (log, metrics, _manifest, task) = start(&[
            (1, 1, limits(10_000, -1)),
            (2, 1, limits(-1, 200)),
            (3, 1, limits(-1, -1)),
            (4, 1, None),
            (5, 1, limits(10_000, 200)),
        ]);
        tokio::time::sleep(MINUTE).await;
        let mut moves = log.0.lock().moves.clone();
        moves.sort();
        assert_eq!(moves, [(id(1), 0, 40), (id(2), 0, 80), (id(5), 0, 80)]);
        assert_eq!(
            (metrics.checks.get(), metrics.moves.get(), metrics.offsets.get()),
            (1, 3, 200)
        );
        // Nothing has changed, so further checks move nothing.
        tokio::time::sleep(6 * MINUTE).await;
        assert_eq!((metrics.checks.get(), metrics.moves.get()), (2, 3));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_limit_is_looked_at_soon_and_alone() {
        let (log, metrics, manifest, task) =
            start(&[(1, 1, limits(-1, -1)), (2, 1, None), (3, 1, limits(-1, -1))]);
        tokio::time::sleep(MINUTE).await;
        assert_eq!((metrics.checks.get(), metrics.moves.get()), (1, 0));
        // A version that changes no limit is no reason to look.
        manifest.send(1).unwrap();
        tokio::time::sleep(2 * SETTLE).await;
        assert_eq!(metrics.checks.get(), 1);
        {
            let mut state = log.0.lock();
            state.limits.insert(id(1), limits(10_000, -1));
            state.limits.insert(id(2), limits(-1, 200));
            // A new topic waits for the next check.
            state.limits.insert(id(9), limits(-1, 0));
            state.log_starts.insert((id(9), 0), 0);
        }
        manifest.send(2).unwrap();
        tokio::time::sleep(2 * SETTLE).await;
        let mut moves = log.0.lock().moves.clone();
        moves.sort();
        assert_eq!(moves, [(id(1), 0, 40), (id(2), 0, 80)]);
        tokio::time::sleep(6 * MINUTE).await;
        assert!(log.0.lock().moves.contains(&(id(9), 0, 100)));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn moves_are_bounded_and_a_failure_is_tried_again() {
        let partitions = 3 * MOVES_AT_ONCE as i32;
        let (log, metrics, _manifest, task) = start(&[(1, partitions, limits(10_000, -1))]);
        {
            let mut state = log.0.lock();
            state.advance_takes = Duration::from_millis(100);
            state.broken = Some(AppendError::DuplicateSequence);
        }
        tokio::time::sleep(MINUTE).await;
        assert_eq!(
            (metrics.moves.get(), metrics.failures.get()),
            (0, partitions as u64)
        );
        assert_eq!(log.0.lock().most_under_way, MOVES_AT_ONCE);
        // A partition that is led elsewhere by now is no failure.
        log.0.lock().broken = Some(AppendError::NotLeader);
        tokio::time::sleep(6 * MINUTE).await;
        assert_eq!(
            (metrics.moves.get(), metrics.failures.get()),
            (0, partitions as u64)
        );
        log.0.lock().broken = None;
        tokio::time::sleep(6 * MINUTE).await;
        assert_eq!(
            (metrics.moves.get(), metrics.failures.get()),
            (partitions as u64, partitions as u64)
        );
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_raised_while_moves_wait_keeps_what_has_not_moved() {
        let partitions = 2 * MOVES_AT_ONCE as i32;
        let (log, metrics, _manifest, task) = start(&[(1, partitions, limits(10_000, -1))]);
        log.0.lock().advance_takes = 2 * MINUTE;
        tokio::time::sleep(MINUTE).await;
        assert_eq!(log.0.lock().under_way, MOVES_AT_ONCE);
        log.0.lock().limits.insert(id(1), limits(-1, -1));
        tokio::time::sleep(4 * MINUTE).await;
        assert_eq!(
            (metrics.checks.get(), metrics.moves.get()),
            (1, MOVES_AT_ONCE as u64)
        );
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_log() {
        let (_log, _metrics, manifest, task) = start(&[]);
        drop(manifest);
        tokio::time::timeout(MINUTE, task).await.unwrap().unwrap();
    }

    #[test]
    fn checks_are_spread_and_stay_near_the_interval() {
        let mut task = Task {
            log: FakeLog::default(),
            check_interval: MINUTE,
            now_ms: Arc::new(|| 0),
            metrics: Metrics::unregistered(),
            random: StdRng::seed_from_u64(7),
        };
        let waits: Vec<_> = (0..100).map(|_| task.jittered(MINUTE)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (MINUTE * 9 / 10..MINUTE * 11 / 10).contains(wait))
        );
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
