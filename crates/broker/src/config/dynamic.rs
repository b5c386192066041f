//! Static settings with what was set dynamically on top: what holds now, and what DescribeConfigs tells about it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::CompactionSettings;
use alluvium_log::manifest::Manifest;
use alluvium_log::store::StoreKind;
use parking_lot::RwLock;

use super::broker_keys::{BrokerKey, broker_key, broker_keys};
use super::foreign::foreign;
use super::key::{Kind, Value, nearest, parse, quote};
use super::layers::{parse_setting, unknown_key};
use super::settings::{Settings, default_text};
use super::store_url;
use super::topic_keys::{FIXED_AT_CREATION, TOPIC_KEYS, TopicKey, topic_key};

/// Where a value comes from, by Kafka's numbers (KIP-226).
mod source {
    pub(super) const TOPIC: i8 = 1;
    pub(super) const DYNAMIC_BROKER: i8 = 2;
    pub(super) const DYNAMIC_DEFAULT_BROKER: i8 = 3;
    pub(super) const STATIC_BROKER: i8 = 4;
    pub(super) const DEFAULT: i8 = 5;
}

/// The name under which the manifest keeps the dynamic configs of all brokers.
const CLUSTER: &str = "";

/// Effective settings of one topic: topic config over dynamic broker config over static broker setting.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSettings {
    /// `max.message.bytes`
    pub max_message_bytes: usize,
    /// `message.timestamp.type` is LogAppendTime.
    pub log_append_time: bool,
    /// `message.timestamp.before.max.ms`
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`
    pub timestamp_after_max_ms: i64,
    /// `retention.ms`; -1 for no limit.
    pub retention_ms: i64,
    /// `retention.bytes`; -1 for no limit.
    pub retention_bytes: i64,
    /// `cleanup.policy` has compact.
    pub cleanup_compact: bool,
    /// `cleanup.policy` has delete. Without it neither age nor size removes records.
    pub cleanup_delete: bool,
    /// `archive.enable`; compacted and internal topics are not archived all the same.
    pub archive_enable: bool,
    /// `archive.file.bytes`
    pub archive_file_bytes: u64,
    /// `archive.interval.ms`
    pub archive_interval_ms: i64,
    /// `archive.value.type` is string.
    pub archive_text_values: bool,
    /// How it is compacted, if `cleanup.policy` has compact.
    pub compaction: CompactionSettings,
}

/// One row of DescribeConfigs. Enums are Kafka's wire numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConfig {
    /// The key.
    pub name: &'static str,
    /// `None` where nothing is set and there is no default.
    pub value: Option<String>,
    /// It cannot be changed by AlterConfigs.
    pub read_only: bool,
    /// It must not be shown; no setting is, so far.
    pub sensitive: bool,
    /// 1 topic, 2 dynamic broker, 3 dynamic default broker, 4 static broker, 5 default
    pub source: i8,
    /// 1 boolean 2 string 3 int 4 short 5 long 6 double 7 list 8 class 9 password
    pub kind: i8,
    /// What it means.
    pub documentation: &'static str,
    /// Name, value, source of everything that would set it: most specific first, so the first one holds.
    pub synonyms: Vec<(String, Option<String>, i8)>,
}

/// Static settings plus what was set dynamically (from the manifest).
pub struct Config {
    /// The static settings.
    pub settings: Settings,
    /// `node.id`, or the one that the cluster assigned.
    node_id: i32,
    cache: RwLock<Cache>,
}

/// Topic settings that were asked for under the newest manifest version seen.
#[derive(Default)]
struct Cache {
    version: u64,
    topics: HashMap<String, Arc<TopicSettings>>,
}

/// A value that would set something: under which name, as what, from where.
struct Candidate {
    name: &'static str,
    /// As parsed and checked.
    value: Value,
    source: i8,
    /// What the value must be multiplied with to be in the unit of the topic config.
    factor: i64,
}

impl Config {
    /// The configuration of the broker with this id.
    pub fn new(settings: Settings, node_id: i32) -> Config {
        Config {
            settings,
            node_id,
            cache: RwLock::default(),
        }
    }

    /// What holds for a topic. Cached per manifest version: cheap enough for every produce request. For a topic that
    /// the manifest does not have: what would hold if it were created without configs.
    pub fn topic(&self, manifest: &Manifest, topic: &str) -> Arc<TopicSettings> {
        {
            let cache = self.cache.read();
            if cache.version == manifest.version
                && let Some(found) = cache.topics.get(topic)
            {
                return Arc::clone(found);
            }
        }
        let configs = manifest.topics.get(topic).map(|entry| &entry.configs);
        let settings = Arc::new(self.effective(manifest, configs));
        // Names that are not in the manifest are not remembered: anyone can make up any number of them.
        if configs.is_some() {
            let mut cache = self.cache.write();
            if manifest.version > cache.version {
                *cache = Cache {
                    version: manifest.version,
                    topics: HashMap::new(),
                };
            }
            // A request that still works with an older manifest must not leave its view to others.
            if manifest.version == cache.version {
                cache.topics.insert(topic.to_owned(), Arc::clone(&settings));
            }
        }
        settings
    }

    /// Checks a topic config as CreateTopics and AlterConfigs must.
    ///
    /// # Errors
    /// One sentence about an unknown key or a bad value.
    pub fn check_topic_config(&self, key: &str, value: &str) -> Result<(), String> {
        let known =
            topic_key(key).ok_or_else(|| match nearest(key, TOPIC_KEYS.iter().map(|known| known.name)) {
                Some(right) => format!("unknown topic config {}; did you mean {right}?", quote(key)),
                None => format!("unknown topic config {}", quote(key)),
            })?;
        parse_topic(known, value).map(|_| ())
    }

    /// Checks all configs that a topic would have, each and against each other.
    ///
    /// # Errors
    /// One sentence about the first that is unknown, bad or contradicts another.
    pub fn check_topic_configs(
        &self,
        manifest: &Manifest,
        configs: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        for (key, value) in configs {
            self.check_topic_config(key, value)?;
        }
        let (low, high) = ("min.compaction.lag.ms", "max.compaction.lag.ms");
        let value =
            |name| topic_key(name).and_then(|key| self.topic_value(manifest, Some(configs), key)?.whole());
        match (value(low), value(high)) {
            (Some(least), Some(most)) if least > most => {
                Err(format!("{low} = {least} must not be above {high} = {most}"))
            }
            _ => Ok(()),
        }
    }

    /// Completes the configs of a topic that is going to be created: what is fixed by that is written down, where a
    /// broker setting says other than the topic config's own default.
    pub fn fix_at_creation(&self, manifest: &Manifest, configs: &mut BTreeMap<String, String>) {
        let node = self.node_id.to_string();
        for name in FIXED_AT_CREATION.iter().copied() {
            let candidates = self.broker_candidates(manifest, Some(&node), &[(name, 1)]);
            let (Some(key), Some(preset)) = (topic_key(name), candidates.first()) else {
                continue;
            };
            let preset = preset.value.to_text();
            if preset != key.default && !configs.contains_key(name) {
                configs.insert(name.to_owned(), preset);
            }
        }
    }

    /// Whether this topic config keeps the value that it had when the topic was created.
    pub fn is_fixed_at_creation(key: &str) -> bool {
        FIXED_AT_CREATION.contains(&key)
    }

    /// Checks a dynamic broker config.
    ///
    /// # Errors
    /// One sentence about a key that is unknown or read-only, or a bad value.
    pub fn check_broker_config(&self, key: &str, value: &str) -> Result<(), String> {
        let known = dynamic_key(key)?;
        let parsed = parse_setting(known, value)?;
        let (low, high) = (
            "log.cleaner.min.compaction.lag.ms",
            "log.cleaner.max.compaction.lag.ms",
        );
        let other = |name: &str| self.static_value(broker_key(name)?)?.whole();
        let (least, most) = match key {
            key if key == low => (parsed.whole(), other(high)),
            key if key == high => (other(low), parsed.whole()),
            _ => return Ok(()),
        };
        match (least, most) {
            (Some(least), Some(most)) if least > most => {
                Err(format!("{low} = {least} must not be above {high} = {most}"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a dynamic broker config may be changed at all, as its removal must be.
    ///
    /// # Errors
    /// One sentence about a key that is unknown or read-only.
    pub fn check_broker_key(&self, key: &str) -> Result<(), String> {
        dynamic_key(key).map(|_| ())
    }

    /// Whether the topic or broker config of this name is a list, to which IncrementalAlterConfigs may append and
    /// from which it may subtract (KIP-339).
    pub fn is_list(key: &str) -> bool {
        let kind = topic_key(key)
            .map(|known| known.kind)
            .or(broker_key(key).map(|known| known.kind));
        kind == Some(Kind::List)
    }

    /// The value that a topic config has now, its default included, in canonical spelling; `None` if there is no
    /// such config. Appending to a list starts from it.
    pub fn topic_config_value(&self, manifest: &Manifest, topic: &str, key: &str) -> Option<String> {
        let configs = manifest.topics.get(topic).map(|entry| &entry.configs);
        self.topic_value(manifest, configs, topic_key(key)?)
            .map(|value| value.to_text())
    }

    /// Every key of a topic as DescribeConfigs shows it, sorted by name.
    pub fn describe_topic(&self, manifest: &Manifest, topic: &str) -> Vec<DescribedConfig> {
        let configs = manifest.topics.get(topic).map(|entry| &entry.configs);
        self.describe_topic_configs(manifest, configs)
    }

    /// The same for a topic that is not in the manifest (yet) and would have these configs: what CreateTopics
    /// answers.
    pub fn describe_topic_configs(
        &self,
        manifest: &Manifest,
        configs: Option<&BTreeMap<String, String>>,
    ) -> Vec<DescribedConfig> {
        let describe = |key: &'static TopicKey| {
            let candidates = self.topic_candidates(manifest, configs, key);
            DescribedConfig {
                name: key.name,
                value: candidates.first().map(|first| first.scaled().to_text()),
                read_only: false,
                sensitive: false,
                source: candidates.first().map_or(source::DEFAULT, |first| first.source),
                kind: key.kind.wire(),
                documentation: key.doc,
                synonyms: candidates
                    .iter()
                    .filter(|one| !one.is_own_default(key))
                    .map(Candidate::synonym)
                    .collect(),
            }
        };
        TOPIC_KEYS.iter().map(describe).collect()
    }

    /// Every key of a broker, sorted by name. The static values are those of this broker whatever `node` says, so a
    /// caller answers for its own node only. For `None`, the cluster-wide default resource "": only what is set
    /// there, as in Kafka.
    pub fn describe_broker(&self, manifest: &Manifest, node: Option<i32>) -> Vec<DescribedConfig> {
        let node_id = node.map(|node| node.to_string());
        let mut rows: Vec<_> = broker_keys()
            .filter_map(|key| {
                let mut candidates: Vec<Candidate> =
                    self.broker_candidates(manifest, node_id.as_deref(), &family(key.name));
                // Synonyms of a stronger name say what the topic default is, not what this key is.
                let own = candidates
                    .iter()
                    .position(|one| one.name == key.name)
                    .unwrap_or(candidates.len());
                candidates.drain(..own);
                if node.is_none() {
                    candidates.retain(|one| one.source == source::DYNAMIC_DEFAULT_BROKER);
                    if candidates.is_empty() {
                        return None;
                    }
                }
                Some(DescribedConfig {
                    name: key.name,
                    value: match candidates.first() {
                        Some(first) => Some(first.value.to_text()),
                        // Assigned ids are shown like given ones: this is where tools look for them.
                        None if matches!(key.name, "node.id" | "broker.id") => node_id.clone(),
                        None => None,
                    },
                    read_only: !key.dynamic,
                    sensitive: false,
                    source: candidates.first().map_or(source::DEFAULT, |first| first.source),
                    kind: key.kind.wire(),
                    documentation: key.doc,
                    synonyms: candidates.iter().map(Candidate::synonym).collect(),
                })
            })
            .collect();
        rows.sort_by_key(|row| row.name);
        rows
    }

    /// One line for each setting that was made at this start and that a config stored in the manifest overrules.
    pub fn overruled(&self, manifest: &Manifest) -> Vec<String> {
        let node = self.node_id.to_string();
        let line = |key: &'static BrokerKey| {
            let (text, place) = self.settings.value(key)?;
            let own = self.settings.explicit(key.name)?;
            let names = family(key.name);
            let candidates = self.broker_candidates(manifest, Some(&node), &names);
            let winner = candidates.first()?;
            let whose = match winner.source {
                source::DYNAMIC_BROKER => format!("broker {node}"),
                source::DYNAMIC_DEFAULT_BROKER => "all brokers".to_owned(),
                _ => return None,
            };
            let factor = names.iter().find(|(name, _)| *name == key.name)?.1;
            if scaled(own, factor) == winner.scaled() {
                return None;
            }
            let value = winner.value.to_text();
            let stored = match winner.name == key.name {
                true => value,
                false => format!("{} = {value}", winner.name),
            };
            Some(format!(
                "{} = {text} ({place}) is overruled by {stored}, stored for {whose}: remove that with \
                 kafka-configs.sh --entity-type brokers --alter --delete-config {}",
                key.name, winner.name
            ))
        };
        broker_keys().filter_map(line).collect()
    }

    /// `log.segment.delete.delay.ms`, if it was set dynamically.
    pub(crate) fn delete_delay_set(&self, manifest: &Manifest) -> Option<Duration> {
        let node = self.node_id.to_string();
        let candidates = self.broker_candidates(manifest, Some(&node), &[("log.segment.delete.delay.ms", 1)]);
        let dynamic =
            |c: &&Candidate| matches!(c.source, source::DYNAMIC_BROKER | source::DYNAMIC_DEFAULT_BROKER);
        let ms = candidates.iter().find(dynamic)?.value.whole()?;
        Some(Duration::from_millis(u64::try_from(ms).ok()?))
    }

    fn effective(&self, manifest: &Manifest, configs: Option<&BTreeMap<String, String>>) -> TopicSettings {
        let value = |name: &str| topic_key(name).and_then(|key| self.topic_value(manifest, configs, key));
        let whole = |name: &str| value(name).and_then(|value| value.whole()).unwrap_or(-1);
        let cleanup = match value("cleanup.policy") {
            Some(Value::List(items)) => items,
            _ => Vec::new(),
        };
        TopicSettings {
            max_message_bytes: usize::try_from(whole("max.message.bytes")).unwrap_or(0),
            log_append_time: value("message.timestamp.type") == Some(Value::Text("LogAppendTime".into())),
            timestamp_before_max_ms: whole("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: whole("message.timestamp.after.max.ms"),
            // Every negative number means the same, and one of them is enough for whoever reads this.
            retention_ms: whole("retention.ms").max(-1),
            retention_bytes: whole("retention.bytes").max(-1),
            cleanup_compact: cleanup.iter().any(|item| item == "compact"),
            cleanup_delete: cleanup.iter().any(|item| item == "delete"),
            archive_enable: value("archive.enable") == Some(Value::Boolean(true)),
            archive_file_bytes: u64::try_from(whole("archive.file.bytes")).unwrap_or(0),
            archive_interval_ms: whole("archive.interval.ms"),
            archive_text_values: value("archive.value.type") == Some(Value::Text("string".into())),
            compaction: CompactionSettings {
                delete_retention_ms: whole("delete.retention.ms").max(0),
                min_lag_ms: whole("min.compaction.lag.ms").max(0),
                max_lag_ms: whole("max.compaction.lag.ms"),
                min_dirty_ratio: match value("min.cleanable.dirty.ratio") {
                    Some(Value::Double(ratio)) => ratio,
                    _ => 1.0,
                },
                segment_ms: whole("segment.ms"),
            },
        }
    }

    fn topic_value(
        &self,
        manifest: &Manifest,
        configs: Option<&BTreeMap<String, String>>,
        key: &TopicKey,
    ) -> Option<Value> {
        self.topic_candidates(manifest, configs, key)
            .first()
            .map(Candidate::scaled)
    }

    /// What would set a topic config, strongest first; its own default is last.
    fn topic_candidates(
        &self,
        manifest: &Manifest,
        configs: Option<&BTreeMap<String, String>>,
        key: &TopicKey,
    ) -> Vec<Candidate> {
        let mut all = Vec::new();
        // What another version stored and this one does not understand is passed over, not obeyed.
        if let Some(value) = configs.and_then(|configs| parse_topic(key, configs.get(key.name)?).ok()) {
            all.push(Candidate {
                name: key.name,
                value,
                source: source::TOPIC,
                factor: 1,
            });
        }
        let node = self.node_id.to_string();
        all.extend(self.broker_candidates(manifest, Some(&node), key.broker));
        if key.broker.is_empty()
            && let Ok(value) = parse_topic(key, key.default)
        {
            all.push(Candidate {
                name: key.name,
                value,
                source: source::DEFAULT,
                factor: 1,
            });
        }
        all
    }

    /// What would set a broker config under one of several names, strongest first: by source, then by name.
    fn broker_candidates(
        &self,
        manifest: &Manifest,
        node: Option<&str>,
        names: &[(&'static str, i64)],
    ) -> Vec<Candidate> {
        let store = self.store_kind();
        let dynamic = |resource: Option<&str>, key: &BrokerKey| {
            let stored = manifest.broker_configs.get(resource?)?.get(key.name)?;
            if key.dynamic {
                parse_setting(key, stored).ok()
            } else {
                None
            }
        };
        let mut all = Vec::new();
        for from in [
            source::DYNAMIC_BROKER,
            source::DYNAMIC_DEFAULT_BROKER,
            source::STATIC_BROKER,
            source::DEFAULT,
        ] {
            for (name, factor) in names {
                let Some(key) = broker_key(name) else { continue };
                let value = match from {
                    source::DYNAMIC_BROKER => dynamic(node, key),
                    source::DYNAMIC_DEFAULT_BROKER => dynamic(Some(CLUSTER), key),
                    source::STATIC_BROKER => self.settings.explicit(name).cloned(),
                    _ => default_text(key, store).and_then(|text| parse_setting(key, &text).ok()),
                };
                if let Some(value) = value {
                    all.push(Candidate {
                        name: key.name,
                        value,
                        source: from,
                        factor: *factor,
                    });
                }
            }
        }
        all
    }

    /// The value of a broker setting without anything dynamic.
    fn static_value(&self, key: &BrokerKey) -> Option<Value> {
        let default = || default_text(key, self.store_kind()).and_then(|text| parse_setting(key, &text).ok());
        self.settings.explicit(key.name).cloned().or_else(default)
    }

    fn store_kind(&self) -> StoreKind {
        store_url::kind(&self.settings.store_url)
    }
}

impl Candidate {
    /// The value in the unit of the topic config.
    fn scaled(&self) -> Value {
        scaled(&self.value, self.factor)
    }

    fn synonym(&self) -> (String, Option<String>, i8) {
        (self.name.to_owned(), Some(self.value.to_text()), self.source)
    }

    /// The default of a config that no broker setting gives: Kafka lists no synonym for it.
    fn is_own_default(&self, key: &TopicKey) -> bool {
        key.broker.is_empty() && self.source == source::DEFAULT
    }
}

fn scaled(value: &Value, factor: i64) -> Value {
    match value {
        // A negative number means "no limit" in every unit.
        Value::Whole(value) if *value > 0 => Value::Whole(value.saturating_mul(factor)),
        other => other.clone(),
    }
}

/// The broker settings that say the same in different units, strongest first; a name alone if there are none.
fn family(name: &'static str) -> Vec<(&'static str, i64)> {
    let shared = TOPIC_KEYS
        .iter()
        .map(|key| key.broker)
        .find(|names| names.iter().any(|(other, _)| *other == name));
    shared.map_or_else(|| vec![(name, 1)], <[_]>::to_vec)
}

fn dynamic_key(key: &str) -> Result<&'static BrokerKey, String> {
    let Some(known) = broker_key(key) else {
        return Err(match foreign(key) {
            Some(_) => format!("{} is a setting of Kafka that has no meaning here", quote(key)),
            None => unknown_key(key),
        });
    };
    if known.dynamic {
        return Ok(known);
    }
    let stronger = family(known.name)
        .into_iter()
        .map(|(name, _)| name)
        .find(|name| *name != known.name);
    Err(match stronger.and_then(broker_key) {
        Some(other) if other.dynamic => {
            format!(
                "{key} is read-only while the broker runs; change {} instead",
                other.name
            )
        }
        _ => format!("{key} is read-only while the broker runs; set it at its start"),
    })
}

fn parse_topic(key: &TopicKey, value: &str) -> Result<Value, String> {
    parse(key.kind, &key.rule, value)
        .map_err(|problem| format!("bad value {} for {}: {problem}", quote(value), key.name))
}
