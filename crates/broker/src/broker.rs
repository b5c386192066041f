//! What every handler can reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium_log::manifest::{Endpoint, Leader, Manifest, StreamEntry, Topic};
use alluvium_log::{Incarnation, Log, Partition, ReadError, TopicId};
use kafka_wire_core::StrBytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::errors::ErrorCode;
use crate::fetch_session::FetchSessions;
use crate::groups::WallClock;
use crate::log_pace::{LogPace, left_out};
use crate::metrics::Metrics;
use crate::peers::Nudges;

/// The broker as handlers see it: the log, the settings, the groups and what is shared between requests.
pub struct Broker {
    /// The engine.
    pub log: Log,
    /// Static and dynamic settings.
    pub config: Arc<crate::config::Config>,
    /// The coordinator of consumer groups.
    pub groups: crate::groups::Coordinator,
    pub(crate) metrics: Metrics,
    pub(crate) fetch_sessions: FetchSessions,
    pub(crate) readiness: Readiness,
    /// Reads that fail, for fetches and lookups.
    pub(crate) failed_reads: FailedReads,
    /// Hints of peers that there is a newer manifest.
    pub(crate) nudges: Nudges,
    clock: WallClock,
}

/// Facts about the connection and request that a handler may need.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// What the client calls itself; empty if it does not.
    pub client_id: Arc<str>,
    /// "/127.0.0.1" as Kafka shows it in DescribeGroups.
    pub client_host: Arc<str>,
    /// Listener that the request came in by: picks the advertised endpoint.
    pub listener: Arc<str>,
    /// Version of the request and of its answer.
    pub api_version: i16,
}

/// A partition that cannot be served here, and who serves it as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    pub(crate) error: ErrorCode,
    pub(crate) leader: Option<Leader>,
}

impl Broker {
    /// Puts the parts together and registers the metrics of the edge. Must be called inside a tokio runtime.
    pub fn new(
        log: Log,
        config: Arc<crate::config::Config>,
        groups: crate::groups::Coordinator,
        clock: WallClock,
        registry: &mut Registry,
    ) -> Broker {
        let metrics = Metrics::register(registry, crate::dispatch::apis().map(|api| (api.key, api.name)));
        let fetch_sessions = FetchSessions::new(
            config.settings.max_incremental_fetch_session_cache_slots,
            // Sessions of an earlier start must not be mistaken for ours.
            rand::random(),
            metrics.fetch_sessions.clone(),
        );
        let nudged = log.clone();
        let nudges = Nudges::new(move || {
            let log = nudged.clone();
            Box::pin(async move { log.refresh().await })
        });
        Broker {
            log,
            config,
            groups,
            metrics,
            fetch_sessions,
            readiness: Readiness::default(),
            failed_reads: FailedReads::default(),
            nudges,
            clock,
        }
    }

    /// The partition, if this broker leads it and has recovered it.
    pub(crate) fn led_partition(
        &self,
        manifest: &Manifest,
        topic: &Topic,
        index: i32,
    ) -> Result<Arc<Partition>, Misplaced> {
        self.log
            .partition(&topic.id, index)
            .ok_or_else(|| misplaced(manifest, topic, index, self.log.incarnation()))
    }

    /// Milliseconds since 1970 by the machine's clock: for checks of record timestamps, never for ordering.
    pub(crate) fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// Whether this broker should get traffic now.
    pub(crate) fn ready(&self, now: Instant) -> Result<(), Unready> {
        self.readiness.check(self.log.store_trouble(), now)
    }
}

/// The error for a partition that is not served here. One that exists is led elsewhere, or about to be: by nobody
/// yet, by a broker that is gone, or by this one, which is still recovering it.
fn misplaced(manifest: &Manifest, topic: &Topic, index: i32, own: Incarnation) -> Misplaced {
    let exists = u32::try_from(index).is_ok_and(|index| index < topic.partitions);
    if exists {
        Misplaced {
            error: ErrorCode::NotLeaderOrFollower,
            leader: leader_elsewhere(manifest, topic, index, own),
        }
    } else {
        Misplaced {
            error: ErrorCode::UnknownTopicOrPartition,
            leader: None,
        }
    }
}

/// Whom a client of broker start `own` should ask instead: another live broker that leads the partition. A client
/// goes there at once, so one that is gone is not named, and this one neither.
pub(crate) fn leader_elsewhere(
    manifest: &Manifest,
    topic: &Topic,
    index: i32,
    own: Incarnation,
) -> Option<Leader> {
    let leader = manifest.leader(&topic.id, index)?;
    (leader.incarnation != own && manifest.is_live(leader.incarnation)).then_some(leader)
}

/// A topic by id if the request names topics so, else by name.
pub(crate) fn find_topic<'m>(
    manifest: &'m Manifest,
    by_id: bool,
    name: &StrBytes,
    id: TopicId,
) -> Result<(&'m str, &'m Topic), ErrorCode> {
    if by_id {
        manifest.topic_by_id(&id).ok_or(ErrorCode::UnknownTopicId)
    } else {
        let found = manifest.topics.get_key_value(name.as_str());
        found
            .map(|(name, topic)| (name.as_str(), topic))
            .ok_or(ErrorCode::UnknownTopicOrPartition)
    }
}

/// The endpoint that clients of this listener are told; a broker without that listener shows any it has.
pub(crate) fn endpoint_for<'m>(stream: &'m StreamEntry, listener: &str) -> Option<&'m Endpoint> {
    stream
        .endpoints
        .get(listener)
        .or_else(|| stream.endpoints.values().next())
}

/// Where the leader listens, for the error replies that carry it (KIP-951).
pub(crate) fn leader_endpoint<'m>(
    manifest: &'m Manifest,
    leader: &Leader,
    listener: &str,
) -> Option<(&'m StreamEntry, &'m Endpoint)> {
    let stream = manifest.streams.get(&leader.incarnation)?;
    Some((stream, endpoint_for(stream, listener)?))
}

/// Tells of reads that fail, each kind from time to time: clients ask again and again.
#[derive(Debug, Default)]
pub(crate) struct FailedReads {
    store: LogPace,
    data: LogPace,
}

impl FailedReads {
    /// Tells of a read that failed because of the store or of what is in it; other errors are the client's.
    pub(crate) fn tell(&self, topic: &str, partition: i32, offset: Option<i64>, error: &ReadError) {
        let now = Instant::now();
        match error {
            ReadError::Store(_) => {
                if let Some(more) = self.store.due(now) {
                    let more = left_out(more);
                    tracing::warn!(topic, partition, offset, %error, "cannot read for a client{more}");
                }
            }
            ReadError::Corrupt(_) | ReadError::Missing(_) | ReadError::NoHistory(_) => {
                if let Some(more) = self.data.due(now) {
                    let more = left_out(more);
                    tracing::error!(topic, partition, offset, "{error}{more}");
                }
            }
            ReadError::NotLeader | ReadError::OffsetOutOfRange { .. } => {}
        }
    }
}

/// Whether the broker should get traffic: it is not stopping, and the store has not failed it of late.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    draining: AtomicBool,
    store_failed: Mutex<Option<(Instant, &'static str)>>,
}

/// Why the broker is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    Draining,
    Store(String),
}

impl Readiness {
    /// A failure of the store counts this long, unless it answers before: without traffic nobody would notice
    /// that it works again.
    const STORE_FAILURE_COUNTS: Duration = Duration::from_secs(30);

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn store_failed(&self, how: &'static str, now: Instant) {
        *self.store_failed.lock() = Some((now, how));
    }

    pub(crate) fn store_answered(&self) {
        let mut failed = self.store_failed.lock();
        if failed.is_some() {
            *failed = None;
        }
    }

    /// `trouble` is what the log says of its own last requests, of which some are made without any traffic.
    pub(crate) fn check(&self, trouble: Option<String>, now: Instant) -> Result<(), Unready> {
        if self.is_draining() {
            return Err(Unready::Draining);
        }
        if let Some(why) = trouble {
            return Err(Unready::Store(why));
        }
        match *self.store_failed.lock() {
            Some((at, how)) if now.saturating_duration_since(at) < Self::STORE_FAILURE_COUNTS => {
                Err(Unready::Store(how.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::manifest::StreamState;

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_the_store_and_the_stop() {
        let readiness = Readiness::default();
        let start = Instant::now();
        let check = |seconds| readiness.check(None, start + Duration::from_secs(seconds));
        let store = |how: &str| Err(Unready::Store(how.to_owned()));
        assert_eq!(check(0), Ok(()));
        readiness.store_failed("a write timed out", start);
        assert_eq!(check(29), store("a write timed out"));
        assert_eq!(check(30), Ok(()));
        readiness.store_answered();
        assert_eq!(check(0), Ok(()));
        // What the log has met itself counts for as long as it lasts.
        assert_eq!(readiness.check(Some("gone".into()), start), store("gone"));
        readiness.drain();
        assert_eq!(
            readiness.check(Some("gone".into()), start),
            Err(Unready::Draining)
        );
    }

    #[test]
    fn a_partition_elsewhere_names_its_leader_if_it_lives() {
        use ErrorCode::{NotLeaderOrFollower, UnknownTopicOrPartition};
        let id = uuid::Uuid::from_u128(1);
        let mut manifest = Manifest::new(id, id, 8);
        let topic = Topic {
            id,
            partitions: 2,
            replication_factor: 1,
            configs: Default::default(),
            unknown: Default::default(),
        };
        let answers = |manifest: &Manifest, own| {
            [-1, 0, 1, 2, i32::MAX].map(|index| {
                let misplaced = misplaced(manifest, &topic, index, own);
                (misplaced.error, misplaced.leader.map(|leader| leader.node_id))
            })
        };
        let all = |leader: Option<i32>| {
            let (here, beyond) = ((NotLeaderOrFollower, leader), (UnknownTopicOrPartition, None));
            [beyond, here, here, beyond, beyond]
        };
        assert_eq!(answers(&manifest, 9), all(None), "nobody has come yet");
        let owner = manifest.register(4, None, Default::default());
        manifest.take_over(owner, &[]).unwrap();
        assert_eq!(answers(&manifest, 9), all(Some(4)));
        assert_eq!(answers(&manifest, owner), all(None), "it is still recovering");
        manifest.streams.get_mut(&owner).unwrap().state = StreamState::Sealed { at: 3, links: vec![] };
        assert_eq!(answers(&manifest, 9), all(None), "it is gone");
        manifest.streams.clear();
        assert_eq!(answers(&manifest, 9), all(None), "not even its entry is left");
    }
}
