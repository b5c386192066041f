//! The settings of a broker: parsed, checked against each other, and from then on unchanged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use alluvium_log::manifest::Endpoint;
use alluvium_log::store::StoreKind;
use alluvium_log::{ArchiveOptions, CompactionOptions, LogOptions, MergeOptions};

use super::broker_keys::{BrokerKey, broker_key, broker_keys};
use super::key::{Preset, Value, parse, quote};
use super::layers::{ConfigError, FlagSetting, Layered, Place, Surroundings, Warning, collect};
use super::listener::{self, Listener};
use super::store_url;

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Static settings after parsing and validation; immutable. `alluvium config` explains each.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `node.id`; `None` lets the cluster assign one.
    pub node_id: Option<i32>,
    /// `broker.rack`
    pub rack: Option<String>,
    /// `store.url`, with an absolute path.
    pub store_url: String,
    /// `listeners`, without those of a Kafka controller.
    pub listeners: Vec<Listener>,
    /// `advertised.listeners`: one for each listener, in the same order. A port of 0 is that of a listener whose
    /// port the system chooses: see [`Settings::set_bound_ports`].
    pub advertised_listeners: Vec<Listener>,
    /// `http.listen`
    pub http_listen: Option<SocketAddr>,
    /// `num.partitions`
    pub num_partitions: u32,
    /// `default.replication.factor`
    pub default_replication_factor: i16,
    /// `auto.create.topics.enable`
    pub auto_create_topics: bool,
    /// `delete.topic.enable`
    pub delete_topic_enable: bool,
    /// `socket.request.max.bytes`
    pub socket_request_max_bytes: usize,
    /// `max.connections`
    pub max_connections: usize,
    /// `max.connections.per.ip`
    pub max_connections_per_ip: usize,
    /// `connections.max.idle.ms`
    pub connections_max_idle: Duration,
    /// `memory.budget.bytes`
    pub memory_budget_bytes: usize,
    /// `fetch.max.bytes`
    pub fetch_max_bytes: usize,
    /// `max.incremental.fetch.session.cache.slots`
    pub max_incremental_fetch_session_cache_slots: usize,
    /// `group.initial.rebalance.delay.ms`
    pub group_initial_rebalance_delay: Duration,
    /// `group.min.session.timeout.ms`
    pub group_min_session_timeout: Duration,
    /// `group.max.session.timeout.ms`
    pub group_max_session_timeout: Duration,
    /// `group.max.size`
    pub group_max_size: usize,
    /// `offsets.topic.num.partitions`
    pub offsets_topic_num_partitions: u32,
    /// `offsets.retention.minutes`
    pub offsets_retention: Duration,
    /// `offsets.retention.check.interval.ms`
    pub offsets_retention_check_interval: Duration,
    /// `offset.metadata.max.bytes`
    pub offset_metadata_max_bytes: usize,
    /// `log.retention.check.interval.ms`
    pub log_retention_check_interval: Duration,
    /// `archive.cache.bytes`
    pub archive_cache_bytes: u64,
    /// `archive.metadata.cache.bytes`
    pub archive_metadata_cache_bytes: u64,
    /// `shutdown.timeout.ms`
    pub shutdown_timeout: Duration,
    /// `log.level`, in the words of a `tracing` filter.
    pub log_level: String,
    /// `log.format`
    pub log_format: LogFormat,
    /// `log.cleaner.*`; `None` if nothing is compacted.
    pub compaction: Option<CompactionOptions>,
    /// Settings of the engine.
    pub log: LogOptions,
    /// What was set and where; what is not in here has its default.
    explicit: BTreeMap<&'static str, (Value, Place)>,
}

/// Longest time that a setting may mean. Nothing waits ten years, and adding it to an instant cannot overflow.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

fn duration_ms(ms: i64) -> Duration {
    // Negative means never.
    u64::try_from(ms).map_or(DURATION_MAX, |ms| Duration::from_millis(ms).min(DURATION_MAX))
}

impl Settings {
    /// Loads settings: flags over environment over file over default.
    ///
    /// # Errors
    /// A line about each setting that is unknown or bad, or about the first that contradicts another.
    pub(crate) fn load(
        config: Option<&Path>,
        flags: Vec<FlagSetting>,
        surroundings: &Surroundings<'_>,
    ) -> Result<(Settings, Vec<Warning>), ConfigError> {
        build(collect(config, flags, surroundings)?, surroundings)
    }

    /// Settings from pairs of key and value, all else at its default; for tests and for a broker inside another
    /// program.
    ///
    /// # Errors
    /// As for a broker that is started with `--set` and these pairs.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Settings, ConfigError> {
        let flags = pairs.into_iter().map(|(key, value)| FlagSetting {
            flag: "--set",
            key: key.to_owned(),
            value: value.to_owned(),
        });
        let cwd = std::env::current_dir()
            .map_err(|error| ConfigError::new("--set", format!("no current directory: {error}")))?;
        let no_file = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let surroundings = Surroundings {
            variables: Vec::new(),
            cwd,
            hostname: None,
            read_file: &no_file,
        };
        Settings::load(None, flags.collect(), &surroundings).map(|(settings, _)| settings)
    }

    /// Puts the ports that the system chose into listeners, advertised listeners and the endpoints of the engine.
    /// `bound` is by listener name; a port that was given is left alone.
    pub fn set_bound_ports(&mut self, bound: &BTreeMap<String, u16>) {
        for listener in self.listeners.iter_mut().chain(&mut self.advertised_listeners) {
            if let (0, Some(port)) = (listener.port, bound.get(&listener.name)) {
                listener.port = *port;
            }
        }
        self.log.endpoints = endpoints(&self.advertised_listeners);
    }

    /// Value of a broker setting and where it comes from, the default of this store's kind included.
    pub(crate) fn value(&self, key: &BrokerKey) -> Option<(String, Place)> {
        match self.explicit.get(key.name) {
            Some((value, place)) => Some((value.to_text(), place.clone())),
            None => default_text(key, store_url::kind(&self.store_url)).map(|text| (text, Place::Default)),
        }
    }

    /// The kind of store that `store.url` names.
    pub(crate) fn store_kind(&self) -> StoreKind {
        store_url::kind(&self.store_url)
    }

    /// What was set statically; `None` where the default holds.
    pub(crate) fn explicit(&self, name: &str) -> Option<&Value> {
        self.explicit.get(name).map(|(value, _)| value)
    }
}

/// The default of a setting in its canonical spelling.
pub(crate) fn default_text(key: &BrokerKey, store: StoreKind) -> Option<String> {
    let raw = match key.default {
        Preset::Unset => return None,
        Preset::Fixed(text) => text,
        Preset::ByStore { s3, .. } if store == StoreKind::S3 => s3,
        Preset::ByStore { embedded, .. } => embedded,
    };
    // Every default passes its own check: a test says so.
    Some(parse(key.kind, &key.rule, raw).map_or_else(|_| raw.to_owned(), |value| value.to_text()))
}

/// The collected values with their defaults, read by name and type. A name or type that the table does not have is
/// a mistake of this file, which its tests meet; it reads as zero or nothing.
struct Reader<'a> {
    layered: &'a Layered,
    store: StoreKind,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<String> {
        match self.layered.values.get(name) {
            Some((value, _)) => Some(value.to_text()),
            None => default_text(broker_key(name)?, self.store),
        }
    }

    fn parsed<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        let value = self.text(name).and_then(|text| text.parse().ok());
        debug_assert!(value.is_some(), "{name} has no value of the expected type");
        value.unwrap_or_default()
    }

    fn millis(&self, name: &str) -> Duration {
        duration_ms(self.parsed(name))
    }

    fn place(&self, name: &str) -> Place {
        self.layered
            .values
            .get(name)
            .map_or(Place::Default, |(_, place)| place.clone())
    }

    /// An error at the place of one of the keys: the first that was set.
    fn contradiction(&self, names: &[&str], problem: String) -> ConfigError {
        let set = names
            .iter()
            .map(|name| self.place(name))
            .find(|place| *place != Place::Default);
        ConfigError::new(set.unwrap_or(Place::Default), problem)
    }
}

fn build(layered: Layered, surroundings: &Surroundings<'_>) -> Result<(Settings, Vec<Warning>), ConfigError> {
    let raw_url = Reader {
        layered: &layered,
        store: StoreKind::Embedded,
    }
    .text("store.url")
    .unwrap_or_default();
    let read = Reader {
        layered: &layered,
        store: store_url::kind(&raw_url),
    };
    let bad_url = |problem| {
        ConfigError::new(
            read.place("store.url"),
            format!("bad value {} for store.url: {problem}", quote(&raw_url)),
        )
    };
    let store_url = store_url::resolve(&raw_url, &surroundings.cwd).map_err(bad_url)?;
    let mut warnings = layered.warnings.clone();
    if let Some((key, place)) = &layered.kafkas_directory {
        warnings.push(Warning(format!(
            "{place}: {key} is not used: data goes to store.url ({store_url})"
        )));
    }
    let listeners = listeners(&read, &mut warnings)?;
    let advertised_listeners = advertised(&read, &listeners, surroundings, &mut warnings)?;
    check_contradictions(&read, &mut warnings)?;

    let bad_http = |problem| ConfigError::new(read.place("http.listen"), problem);
    let log = LogOptions {
        node_id: read.text("node.id").and_then(|id| id.parse().ok()),
        rack: read.text("broker.rack").filter(|rack| !rack.is_empty()),
        endpoints: endpoints(&advertised_listeners),
        flush_interval: read.millis("flush.interval.ms"),
        flush_bytes: read.parsed("flush.bytes"),
        puts_in_flight: read.parsed("flush.puts.in.flight"),
        request_budget_per_second: read.parsed("request.budget.per.second"),
        request_budget_burst: read.parsed("request.budget.burst"),
        tail_bytes: read.parsed("tail.bytes"),
        cache_bytes: read.parsed("cache.bytes"),
        read_concurrency: read.parsed("store.read.concurrency"),
        producer_id_expiration: read.millis("producer.id.expiration.ms"),
        merge: MergeOptions {
            interval: read.millis("merge.interval.ms"),
            bytes: read.parsed("merge.bytes"),
            file_bytes: read.parsed("merge.file.bytes"),
            bytes_per_second: read.parsed("merge.bytes.per.second"),
            gather_after: read.millis("merge.gather.after.ms"),
        },
        archive: ArchiveOptions {
            // 0: by the processors.
            threads: read
                .text("archive.threads")
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            bytes_per_second: read.parsed("archive.bytes.per.second"),
            pause_above: read.millis("archive.pause.above.ms"),
            flush_interval_min: read.millis("archive.flush.min.interval.ms"),
            ..ArchiveOptions::default()
        },
        // What knows the format of history comes with the metrics of each start.
        history: None,
        archive_policies: None,
        delete_delay_set: None,
        delete_delay: read.millis("log.segment.delete.delay.ms"),
        garbage_interval: read.millis("garbage.check.interval.ms"),
    };
    let settings = Settings {
        node_id: log.node_id,
        rack: log.rack.clone(),
        store_url,
        listeners,
        advertised_listeners,
        http_listen: listener::parse_http(&read.text("http.listen").unwrap_or_default()).map_err(bad_http)?,
        num_partitions: read.parsed("num.partitions"),
        default_replication_factor: read.parsed("default.replication.factor"),
        auto_create_topics: read.parsed("auto.create.topics.enable"),
        delete_topic_enable: read.parsed("delete.topic.enable"),
        socket_request_max_bytes: read.parsed("socket.request.max.bytes"),
        max_connections: read.parsed("max.connections"),
        max_connections_per_ip: read.parsed("max.connections.per.ip"),
        connections_max_idle: read.millis("connections.max.idle.ms"),
        memory_budget_bytes: read.parsed("memory.budget.bytes"),
        fetch_max_bytes: read.parsed("fetch.max.bytes"),
        max_incremental_fetch_session_cache_slots: read.parsed("max.incremental.fetch.session.cache.slots"),
        group_initial_rebalance_delay: read.millis("group.initial.rebalance.delay.ms"),
        group_min_session_timeout: read.millis("group.min.session.timeout.ms"),
        group_max_session_timeout: read.millis("group.max.session.timeout.ms"),
        group_max_size: read.parsed("group.max.size"),
        offsets_topic_num_partitions: read.parsed("offsets.topic.num.partitions"),
        offsets_retention: duration_ms(
            read.parsed::<i64>("offsets.retention.minutes")
                .saturating_mul(60_000),
        ),
        offsets_retention_check_interval: read.millis("offsets.retention.check.interval.ms"),
        offset_metadata_max_bytes: read.parsed("offset.metadata.max.bytes"),
        log_retention_check_interval: read.millis("log.retention.check.interval.ms"),
        archive_cache_bytes: read.parsed("archive.cache.bytes"),
        archive_metadata_cache_bytes: read.parsed("archive.metadata.cache.bytes"),
        shutdown_timeout: read.millis("shutdown.timeout.ms"),
        compaction: read
            .parsed::<bool>("log.cleaner.enable")
            .then(|| CompactionOptions {
                look: read.millis("log.cleaner.backoff.ms"),
                map_bytes: read.parsed("log.cleaner.dedupe.buffer.size"),
                bytes_per_second: read.parsed("log.cleaner.io.max.bytes.per.second"),
                ..CompactionOptions::default()
            }),
        log_level: read.parsed("log.level"),
        log_format: match read.text("log.format").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
        log,
        explicit: layered.values,
    };
    Ok((settings, warnings))
}

fn endpoints(advertised: &[Listener]) -> BTreeMap<String, Endpoint> {
    let endpoint = |listener: &Listener| Endpoint {
        host: listener.host.clone(),
        port: listener.port,
    };
    advertised
        .iter()
        .map(|listener| (listener.name.clone(), endpoint(listener)))
        .collect()
}

/// The listeners for clients: those that a Kafka configuration keeps for its controller are left out.
fn listeners(read: &Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Vec<Listener>, ConfigError> {
    let place = read.place("listeners");
    let at_place = |problem: String| ConfigError::new(&place, problem);
    let mut all = listener::parse_listeners(&read.text("listeners").unwrap_or_default()).map_err(at_place)?;
    all.retain(|listener| {
        let for_controller = read.layered.controller_listeners.contains(&listener.name);
        if for_controller {
            warnings.push(Warning(format!(
                "{place}: ignored: {listener}, a listener of Kafka's controller, which does not exist here"
            )));
        }
        !for_controller
    });
    if all.is_empty() {
        return Err(at_place(
            "all of the listeners are named in controller.listener.names: none is for clients".into(),
        ));
    }
    let map = read.text("listener.security.protocol.map").unwrap_or_default();
    let map = listener::parse_protocols(&map)
        .map_err(|problem| ConfigError::new(read.place("listener.security.protocol.map"), problem))?;
    for listener in &all {
        let name = &listener.name;
        let Some(protocol) = listener::protocol_of(name, &map) else {
            return Err(at_place(format!(
                "no security protocol is defined for listener {name}: add {name}:PLAINTEXT to listener.security.protocol.map"
            )));
        };
        if protocol != listener::DEFAULT_NAME {
            return Err(at_place(format!(
                "{listener} is a listener of protocol {protocol}, but there is only PLAINTEXT: remove it, or map its name to PLAINTEXT in listener.security.protocol.map, with which clients talk unencrypted and unauthenticated"
            )));
        }
    }
    Ok(all)
}

/// One advertised listener for each listener.
fn advertised(
    read: &Reader<'_>,
    listeners: &[Listener],
    surroundings: &Surroundings<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Listener>, ConfigError> {
    let place = read.place("advertised.listeners");
    let at_place = |problem: String| ConfigError::new(&place, problem);
    let mut given = listener::parse_advertised(&read.text("advertised.listeners").unwrap_or_default())
        .map_err(at_place)?;
    for one in &mut given {
        // Without a name it can only mean the first listener.
        one.name.get_or_insert_with(|| listeners[0].name.clone());
    }
    given.retain(|one| {
        one.name
            .as_ref()
            .is_none_or(|name| !read.layered.controller_listeners.contains(name))
    });
    for (index, one) in given.iter().enumerate() {
        let name = one.name.as_deref().unwrap_or_default();
        if given[..index].iter().any(|other| other.name == one.name) {
            return Err(at_place(format!("two advertised listeners are named {name}")));
        }
        if !listeners.iter().any(|listener| listener.name == name) {
            let names: Vec<_> = listeners.iter().map(|listener| listener.name.as_str()).collect();
            return Err(at_place(format!(
                "advertised listener {name} is not among the listeners ({})",
                names.join(", ")
            )));
        }
    }
    let advertise = |listener: &Listener| {
        let own = given.iter().find(|one| one.name.as_ref() == Some(&listener.name));
        let mut out = listener.clone();
        if let Some(own) = own {
            out.port = own.port;
            if !own.host.is_empty() {
                out.host.clone_from(&own.host);
                return out;
            }
        }
        if own.is_some_and(|own| own.host.is_empty()) || listener.is_wildcard() {
            out.host = surroundings
                .hostname
                .clone()
                .unwrap_or_else(|| "localhost".into());
            warnings.push(Warning(format!(
                "clients are told to connect to {out}, the name of this machine, because {listener} listens on every address; set advertised.listeners if they know it by another name"
            )));
        }
        out
    };
    Ok(listeners.iter().map(advertise).collect())
}

/// Checks that no setting can see alone.
fn check_contradictions(read: &Reader<'_>, warnings: &mut Vec<Warning>) -> Result<(), ConfigError> {
    let ordered = |low: &str, high: &str| {
        let (low_value, high_value) = (read.parsed::<i64>(low), read.parsed::<i64>(high));
        if low_value <= high_value {
            return Ok(());
        }
        let problem = format!("{low} = {low_value} must not be above {high} = {high_value}");
        Err(read.contradiction(&[low, high], problem))
    };
    ordered("group.min.session.timeout.ms", "group.max.session.timeout.ms")?;
    ordered(
        "log.cleaner.min.compaction.lag.ms",
        "log.cleaner.max.compaction.lag.ms",
    )?;
    // The largest request must fit into the budget, or it would wait for ever.
    ordered("socket.request.max.bytes", "memory.budget.bytes")?;
    let (message, request) = ("message.max.bytes", "socket.request.max.bytes");
    if read.parsed::<i64>(message) > read.parsed::<i64>(request) {
        warnings.push(Warning(format!(
            "{message} is above {request}, so a batch of that size cannot be sent"
        )));
    }
    Ok(())
}

/// Every broker setting with its value, for a list: key, value (`None` if unset), place.
pub(crate) fn listing(
    settings: &Settings,
) -> impl Iterator<Item = (&'static BrokerKey, Option<(String, Place)>)> {
    broker_keys().map(|key| (key, settings.value(key)))
}
