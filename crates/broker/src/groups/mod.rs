//! Classic consumer groups: membership, rebalances and committed offsets.
//!
//! Groups are spread over the partitions of the internal topic `__consumer_offsets`; the leader of a
//! partition coordinates its groups. What a group must remember is in that topic, in Kafka's own record
//! formats, so that it rides in the same segments as data and moves with the partition.
//!
//! Read in this order: [`records`] (what is stored), [`state`] and [`member`] (one group, pure),
//! [`offsets`] (its committed offsets, pure), [`shard`] (all groups of one partition, pure),
//! [`coordinator`] (locks, tasks, timers), [`engine`] (the log behind a trait).
//!
//! Rules that everything here keeps:
//! - An answer that tells of stored state comes after its publication; an OffsetFetch sees published offsets
//!   only. A failed append is a retriable error and leaves the offsets as they were.
//! - Every JoinGroup and SyncGroup gets exactly one answer, also when the member goes or the partition moves.
//! - An unchanged commit is answered without a write while the stored one is younger than an eighth of
//!   `offsets.retention.minutes`; its time still counts for expiry on this coordinator. After a failover the
//!   offset may thus expire at most an eighth of the retention early.

mod coordinator;
mod engine;
mod member;
mod metrics;
mod offsets;
mod records;
mod shard;
mod state;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;
use std::time::Duration;

use alluvium_log::Log;
use prometheus_client::registry::Registry;

use crate::config::{Config, Settings};

pub use coordinator::WallClock;
pub(crate) use coordinator::{FetchedTopic, GroupDescription, Inner, Options};
pub(crate) use engine::{CoordinatorEndpoint, Engine};
pub(crate) use member::Protocol;
pub(crate) use offsets::Committed;
pub(crate) use shard::{Commit, OffsetToCommit};
pub(crate) use state::{GroupState, Join, JoinReply, Limits, Sync, SyncReply};

/// Bytes of one group record or one append to `__consumer_offsets`. A generation whose members' metadata and
/// assignments pass it cannot be stored, and its SyncGroups fail.
const APPEND_BYTES_MAX: usize = 8 << 20;

/// The group coordinator of this broker. Clones share their state.
#[derive(Clone)]
pub struct Coordinator {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coordinator")
    }
}

impl Coordinator {
    /// Starts loading the partitions of `__consumer_offsets` that this broker leads, and the timers. Must be
    /// called inside a tokio runtime; the tasks end with the last clone.
    pub fn new(log: Log, config: Arc<Config>, clock: WallClock, registry: &mut Registry) -> Coordinator {
        // Before the first look at the manifest, so that no change falls between.
        let mut changes = log.manifest_changes();
        let mut seen = changes.borrow_and_update().clone();
        let replication_factor = config.settings.default_replication_factor;
        let engine = Arc::new(engine::LogEngine::new(log, replication_factor));
        let coordinator = Coordinator::with_engine(engine, options(&config.settings), clock, registry);
        let inner = Arc::downgrade(&coordinator.inner);
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let manifest = changes.borrow_and_update().clone();
                let is_gone = |(name, topic): (&String, &alluvium_log::manifest::Topic)| {
                    manifest.topics.get(name).is_none_or(|now| now.id != topic.id)
                };
                let deleted = seen.topics.iter().any(is_gone);
                seen = manifest;
                match inner.upgrade() {
                    Some(inner) => inner.reconcile(deleted),
                    None => return,
                }
            }
        });
        coordinator
    }

    pub(crate) fn with_engine(
        engine: Arc<dyn Engine>,
        options: Options,
        clock: WallClock,
        registry: &mut Registry,
    ) -> Coordinator {
        let inner = Inner::new(engine, options, clock, metrics::Metrics::register(registry));
        registry.register_collector(Box::new(metrics::GroupGauges(Arc::downgrade(&inner))));
        inner.reconcile(false);
        tokio::spawn(Inner::expire_forever(
            Arc::downgrade(&inner),
            inner.expire_interval(),
        ));
        Coordinator { inner }
    }
}

fn options(settings: &Settings) -> Options {
    Options {
        limits: Limits {
            initial_rebalance_delay_ms: millis(settings.group_initial_rebalance_delay),
            session_timeout_min_ms: millis(settings.group_min_session_timeout),
            session_timeout_max_ms: millis(settings.group_max_session_timeout),
            group_max_size: settings.group_max_size,
            offset_metadata_max: settings.offset_metadata_max_bytes,
            offsets_retention_ms: millis(settings.offsets_retention),
            append_max_bytes: APPEND_BYTES_MAX,
        },
        offsets_partitions: settings.offsets_topic_num_partitions,
        expire_interval: settings.offsets_retention_check_interval,
    }
}

/// Whether a text fits the 16-bit length that Kafka's records, and older protocol versions, give it.
pub(crate) fn fits(text: &str) -> bool {
    i16::try_from(text.len()).is_ok()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
