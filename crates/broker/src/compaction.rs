//! Which topics the engine compacts, and how: what their configs say.

use std::fmt;
use std::sync::Arc;

use alluvium_log::manifest::Manifest;
use alluvium_log::{CompactionOptions, CompactionPolicy, CompactionSettings, Log, TopicId};
use hashbrown::HashMap;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::config::Config;
use crate::topics::is_internal;

/// Coordinators read their topics from the start when they take over, so what stands there does not wait for long.
const INTERNAL_SEGMENT_MS: i64 = 60 * 60 * 1_000;

/// Starts compaction, unless it is switched off. It ends with the log.
pub(crate) fn start(
    log: &Log,
    config: &Arc<Config>,
    options: CompactionOptions,
    registry: &mut Registry,
) -> std::io::Result<()> {
    if config.settings.compaction.is_none() {
        tracing::warn!(
            "log.cleaner.enable = false: nothing is compacted, and __consumer_offsets grows with every commit"
        );
        return Ok(());
    }
    let policy = Policy {
        manifests: log.manifest_changes(),
        config: config.clone(),
    };
    log.compact(Arc::new(policy), options, registry)
}

struct Policy {
    manifests: watch::Receiver<Arc<Manifest>>,
    config: Arc<Config>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("compaction as topics are configured")
    }
}

impl CompactionPolicy for Policy {
    fn topics(&self) -> HashMap<TopicId, CompactionSettings> {
        let manifest = self.manifests.borrow().clone();
        topics(&manifest, &self.config)
    }
}

/// The compacted topics of a manifest.
fn topics(manifest: &Manifest, config: &Config) -> HashMap<TopicId, CompactionSettings> {
    let compacted = manifest.topics.iter().filter_map(|(name, topic)| {
        let settings = config.topic(manifest, name);
        let mut compaction = settings.compaction;
        if is_internal(name) {
            compaction.segment_ms = compaction.segment_ms.min(INTERNAL_SEGMENT_MS);
        }
        settings.cleanup_compact.then_some((topic.id, compaction))
    });
    compacted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::topic;
    use crate::config::Settings;

    #[test]
    fn topics_are_compacted_as_they_are_configured() {
        let settings = [
            ("log.cleaner.min.cleanable.ratio", "0.25"),
            ("log.roll.ms", "7000"),
        ];
        let config = Config::new(Settings::from_pairs(settings).unwrap(), 1);
        let id = uuid::Uuid::from_u128(9);
        let mut manifest = Manifest::new(id, id, 8);
        let mut add = |name: &str, number: u128, configs: &[(&str, &str)]| {
            let mut topic = topic(number, 1);
            let owned = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            topic.configs = owned.collect();
            manifest.topics.insert(name.to_owned(), topic);
        };
        add("plain", 1, &[]);
        add(
            "both",
            2,
            &[
                ("cleanup.policy", "delete,compact"),
                ("delete.retention.ms", "5"),
                ("min.compaction.lag.ms", "6"),
                ("max.compaction.lag.ms", "8"),
            ],
        );
        add(
            "__consumer_offsets",
            3,
            &[("cleanup.policy", "compact"), ("segment.ms", "604800000")],
        );
        manifest.version += 1;
        let found = topics(&manifest, &config);
        assert_eq!(found.len(), 2);
        let expected = CompactionSettings {
            delete_retention_ms: 5,
            min_lag_ms: 6,
            max_lag_ms: 8,
            min_dirty_ratio: 0.25,
            segment_ms: 7_000,
        };
        assert_eq!(found[&manifest.topics["both"].id], expected);
        let internal = found[&manifest.topics["__consumer_offsets"].id];
        assert_eq!(
            (internal.segment_ms, internal.delete_retention_ms),
            (INTERNAL_SEGMENT_MS, 86_400_000)
        );
    }
}
