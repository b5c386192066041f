//! History as Parquet: which topics have it and how, by their settings, and what `alluvium archive flush` asks. What else
//! the engine asks of settings that change is here too.
//!
//! The engine archives, `alluvium_archive` knows the file format; what is here ties both to the settings of topics.

mod flushes;
pub(crate) mod message;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alluvium_archive::{ParquetHistory, ParquetOptions};
use alluvium_log::history::History;
use alluvium_log::manifest::{LEVEL_OF_HISTORY, Manifest, Topic};
use alluvium_log::{ArchivePolicies, ArchivePolicy, DeleteDelay, Log, LogOptions};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::config::{Config, Settings, TopicSettings};
use crate::topics::is_internal;
pub(crate) use flushes::Flushes;
use message::Unarchived;

/// Policies by the settings of topics. It is needed to open the log, and knows nothing until [`Policies::follow`].
#[derive(Default)]
pub(crate) struct Policies {
    known: OnceLock<(Arc<Config>, watch::Receiver<Arc<Manifest>>)>,
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").finish_non_exhaustive()
    }
}

impl Policies {
    /// From now on topics are archived as their settings say. The first call counts.
    pub(crate) fn follow(&self, config: Arc<Config>, log: &Log) {
        let _ = self.known.set((config, log.manifest_changes()));
    }
}

impl ArchivePolicies for Policies {
    fn policy(&self, name: &str, _: &Topic) -> Option<ArchivePolicy> {
        let (config, manifest) = self.known.get()?;
        let settings = config.topic(&manifest.borrow().clone(), name);
        barred(name, &settings).is_none().then(|| ArchivePolicy {
            file_bytes: settings.archive_file_bytes,
            interval: Duration::from_millis(u64::try_from(settings.archive_interval_ms).unwrap_or(u64::MAX)),
            text_values: settings.archive_text_values,
        })
    }
}

impl DeleteDelay for Policies {
    fn delete_delay(&self) -> Option<Duration> {
        let (config, manifest) = self.known.get()?;
        config.delete_delay_set(&manifest.borrow())
    }
}

/// The options of a log with history, and the policies that are to follow the settings once it is open.
pub(crate) fn with_history(
    settings: &Settings,
    registry: &mut Registry,
) -> Result<(LogOptions, Arc<Policies>), String> {
    let policies = Arc::new(Policies::default());
    let options = ParquetOptions {
        metadata_cache_bytes: settings.archive_metadata_cache_bytes,
        portion_cache_bytes: settings.archive_cache_bytes,
        own_threads: settings.log.archive.own_threads,
        ..ParquetOptions::default()
    };
    let log = LogOptions {
        history: Some(parquet(options, registry)?),
        archive_policies: Some(policies.clone()),
        delete_delay_set: Some(policies.clone()),
        ..settings.log.clone()
    };
    Ok((log, policies))
}

/// The format of history, for who only looks.
pub(crate) fn format() -> Result<Arc<dyn History>, String> {
    parquet(ParquetOptions::default(), &mut Registry::default())
}

fn parquet(options: ParquetOptions, registry: &mut Registry) -> Result<Arc<dyn History>, String> {
    match ParquetHistory::new(options, registry) {
        Ok(format) => Ok(Arc::new(format)),
        Err(error) => Err(format!("cannot start a thread to read history: {error}")),
    }
}

/// Why a topic with these settings does not become history.
fn barred(name: &str, settings: &TopicSettings) -> Option<Unarchived> {
    if is_internal(name) {
        Some(Unarchived::Internal)
    } else if settings.cleanup_compact {
        Some(Unarchived::Compacted)
    } else if !settings.archive_enable {
        Some(Unarchived::Disabled)
    } else {
        None
    }
}

/// Why a topic does not become history now.
pub(crate) fn unarchived(config: &Config, manifest: &Manifest, topic: &str) -> Option<Unarchived> {
    if !manifest.topics.contains_key(topic) {
        return Some(Unarchived::Unknown);
    }
    let level = (manifest.feature_level < LEVEL_OF_HISTORY).then_some(Unarchived::FeatureLevel);
    barred(topic, &config.topic(manifest, topic)).or(level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::topic;
    use uuid::Uuid;

    #[test]
    fn only_ordinary_topics_become_history() {
        let settings = Settings::from_pairs([("store.url", "memory://")]).unwrap();
        let config = Config::new(settings, 1);
        let mut manifest = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let mut add = |name: &str, configs: &[(&str, &str)]| {
            let mut one = topic(1, 1);
            let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            one.configs = configs.collect();
            manifest.topics.insert(name.to_owned(), one);
        };
        add("plain", &[]);
        add("both", &[("cleanup.policy", "compact,delete")]);
        add("off", &[("archive.enable", "false")]);
        add("__consumer_offsets", &[("cleanup.policy", "compact")]);
        let why = |manifest: &Manifest, name: &str| unarchived(&config, manifest, name);
        assert_eq!(why(&manifest, "plain"), None);
        assert_eq!(why(&manifest, "both"), Some(Unarchived::Compacted));
        assert_eq!(why(&manifest, "off"), Some(Unarchived::Disabled));
        assert_eq!(why(&manifest, "__consumer_offsets"), Some(Unarchived::Internal));
        assert_eq!(why(&manifest, "none"), Some(Unarchived::Unknown));
        manifest.feature_level = LEVEL_OF_HISTORY - 1;
        assert_eq!(why(&manifest, "plain"), Some(Unarchived::FeatureLevel));
        assert_eq!(why(&manifest, "off"), Some(Unarchived::Disabled));
    }
}
