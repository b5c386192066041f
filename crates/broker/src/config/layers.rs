//! Where settings come from, which place wins, and what is said when one is wrong.
//!
//! A flag wins over the environment, the environment over the file, the file over the default.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::broker_keys::{BrokerKey, broker_key, broker_keys};
use super::foreign::{Foreign, foreign};
use super::key::{Value, nearest, parse, quote};
use super::properties;
use super::topic_keys::TOPIC_KEYS;

/// Where a setting was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: its default holds.
    Default,
    /// A properties file, at a line that counts from 1.
    File {
        /// As it was named on the command line or in the environment.
        path: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File { path, line } => write!(f, "{path}:{line}"),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A setting that a broker cannot start with, or several. Prints as one line for each: the place, the key, the
/// value, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Where the wrong setting is.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
    /// Further ones, without further ones of their own.
    pub others: Vec<ConfigError>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)?;
        self.others.iter().try_for_each(|other| write!(f, "\n{other}"))
    }
}

impl ConfigError {
    pub(crate) fn new(place: impl fmt::Display, problem: impl Into<String>) -> ConfigError {
        ConfigError {
            place: place.to_string(),
            problem: problem.into(),
            others: Vec::new(),
        }
    }

    /// One error for all, if there are any.
    fn of(errors: Vec<ConfigError>) -> Option<ConfigError> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.others.extend(errors);
        Some(first)
    }
}

/// Something about the settings that an operator should know although the broker starts. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All that loading settings takes from the process around it, handed in so that tests can own it.
pub struct Surroundings<'a> {
    /// Environment variables; only those that begin with `ALLUVIUM_` or `KAFKA_` are looked at.
    pub variables: Vec<(String, String)>,
    /// The directory from which a relative `store.url` counts.
    pub cwd: PathBuf,
    /// The name by which other machines may know this one; `None` if it has none.
    pub hostname: Option<String>,
    /// Reads the settings file.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

impl Surroundings<'static> {
    /// The real ones.
    ///
    /// # Errors
    /// The current directory is gone or may not be read.
    pub fn of_process() -> io::Result<Surroundings<'static>> {
        let variables = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .filter(|(name, _)| name.starts_with(PREFIX) || name.starts_with(KAFKA_PREFIX))
            .collect();
        Ok(Surroundings {
            variables,
            cwd: std::env::current_dir()?,
            hostname: hostname(),
            read_file: &read_file,
        })
    }
}

/// Largest settings file that is read: Kafka's own, with all its comments, has 7 KB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The host name of this machine, else the address from which it would reach another one.
fn hostname() -> Option<String> {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_shell = || std::env::var("HOSTNAME").ok();
    let named = from_kernel
        .or_else(from_shell)
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    named.or_else(|| {
        // Connecting a datagram socket sends nothing; it only makes the system choose the address to send from.
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(("192.0.2.1", 9)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    })
}

const PREFIX: &str = "ALLUVIUM_";

/// What the settings of the official Kafka image begin with.
const KAFKA_PREFIX: &str = "KAFKA_";

/// What the tests of the project read. None of it is a setting, and who exports it may start a broker.
const TEST_PREFIX: &str = "ALLUVIUM_TEST_";

/// The variable that names the settings file, as `--config` does.
const CONFIG_VARIABLE: &str = "ALLUVIUM_CONFIG";

/// The environment variable that sets a key: `ALLUVIUM_LOG_RETENTION_MS` for `log.retention.ms`.
pub(crate) fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// A key and value as a flag of the command line gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlagSetting {
    pub(crate) flag: &'static str,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// The settings that were made anywhere, after precedence, each checked by itself.
#[derive(Debug, Default)]
pub(crate) struct Layered {
    pub(crate) values: BTreeMap<&'static str, (Value, Place)>,
    /// `controller.listener.names` of a Kafka configuration: the listeners that are not for clients.
    pub(crate) controller_listeners: Vec<String>,
    /// `log.dirs` or `log.dir`, which say where Kafka would have its data.
    pub(crate) kafkas_directory: Option<(String, Place)>,
    pub(crate) warnings: Vec<Warning>,
    /// All that is wrong with single settings, so that they can be mended together.
    errors: Vec<ConfigError>,
}

/// One setting as found.
struct Found {
    key: String,
    value: String,
    place: Place,
}

pub(crate) fn collect(
    config: Option<&Path>,
    flags: Vec<FlagSetting>,
    surroundings: &Surroundings<'_>,
) -> Result<Layered, ConfigError> {
    let mut layered = Layered::default();
    let mut ignored: Vec<(String, Place)> = Vec::new();

    let named_by_variable = surroundings
        .variables
        .iter()
        .find(|(name, _)| name == CONFIG_VARIABLE);
    let from_variable = named_by_variable.map(|(_, path)| PathBuf::from(path));
    let (config, named_by) = match config {
        Some(path) => (Some(path.to_owned()), Place::Flag("--config")),
        None => (from_variable, Place::Environment(CONFIG_VARIABLE.to_owned())),
    };
    if let Some(path) = config {
        let found = from_file(&path, &named_by, surroundings, &mut layered.warnings)?;
        layered.add(found, &mut ignored);
    }
    let found = from_kafkas_environment(&surroundings.variables, &mut layered.warnings);
    layered.add(found, &mut ignored);
    let found = from_environment(&surroundings.variables, &mut layered.errors);
    layered.add(found, &mut ignored);
    let flags = flags.into_iter().map(|FlagSetting { flag, key, value }| Found {
        key,
        value,
        place: Place::Flag(flag),
    });
    let flags = distinct(flags.collect(), &mut layered.errors);
    layered.add(flags, &mut ignored);
    if let Some(error) = ConfigError::of(std::mem::take(&mut layered.errors)) {
        return Err(error);
    }

    let mut rest = Vec::new();
    for (key, place) in ignored {
        match key.as_str() {
            // In Kafka the first wins over the second.
            "log.dirs" => layered.kafkas_directory = Some((key, place)),
            "log.dir" => layered.kafkas_directory = layered.kafkas_directory.or(Some((key, place))),
            _ => rest.push((key, place)),
        }
    }
    if !rest.is_empty() {
        layered.warnings.push(Warning(format!(
            "ignored: {}: settings of Kafka without a meaning here; `alluvium config` lists those that have one",
            listed(&rest)
        )));
    }
    Ok(layered)
}

/// Keys with their places, in which a file is named once.
fn listed(keys: &[(String, Place)]) -> String {
    let mut out = Vec::new();
    let mut file = None;
    for (key, place) in keys {
        // Keys are Kafka's here, so that they can stand without quotes.
        out.push(match place {
            Place::File { path, line } if file == Some(path) => format!("{key}:{line}"),
            Place::File { path, line } => {
                file = Some(path);
                format!("in {path} {key}:{line}")
            }
            other => format!("{key} ({other})"),
        });
    }
    out.join(", ")
}

fn from_file(
    path: &Path,
    named_by: &Place,
    surroundings: &Surroundings<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Found>, ConfigError> {
    let shown = path.display().to_string();
    let bytes = (surroundings.read_file)(&surroundings.cwd.join(path))
        .map_err(|error| ConfigError::new(named_by, format!("cannot read {}: {error}", quote(&shown))))?;
    let entries = properties::parse(&bytes).map_err(|bad| {
        ConfigError::new(
            Place::File {
                path: shown.clone(),
                line: bad.line,
            },
            bad.problem,
        )
    })?;
    // As in Java the last of two wins; unlike in Java it is said.
    let mut last: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for entry in entries {
        let before = last.insert(entry.key.clone(), (entry.value, entry.line));
        if let Some((_, line)) = before {
            warnings.push(Warning(format!(
                "{shown}:{}: {} replaces the value of line {line}",
                entry.line,
                quote(&entry.key)
            )));
        }
    }
    let mut kept: Vec<_> = last.into_iter().collect();
    kept.sort_by_key(|(_, (_, line))| *line);
    let found = kept.into_iter().map(|(key, (value, line))| {
        let place = Place::File {
            path: shown.clone(),
            line,
        };
        Found { key, value, place }
    });
    Ok(found.collect())
}

fn from_environment(variables: &[(String, String)], errors: &mut Vec<ConfigError>) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if name == CONFIG_VARIABLE || name.starts_with(TEST_PREFIX) || is_service_link(rest, value) {
            continue;
        }
        let place = Place::Environment(name.clone());
        // An underscore stands for a dot, and no key of ours or Kafka's has an underscore.
        let guess = rest.to_ascii_lowercase().replace('_', ".");
        let spelt_right = variable_name(&guess) == *name;
        if !spelt_right || (broker_key(&guess).is_none() && foreign(&guess).is_none()) {
            let names: Vec<String> = broker_keys().map(|key| variable_name(key.name)).collect();
            let right = match meant(&guess) {
                Some(key) => Some(variable_name(key)),
                None => nearest(name, names.iter().map(String::as_str)).map(str::to_owned),
            };
            errors.push(match right {
                Some(right) => ConfigError::new(place, format!("unknown setting; did you mean {right}?")),
                None => ConfigError::new(place, "unknown setting; `alluvium config` lists all"),
            });
            continue;
        }
        found.push(Found {
            key: guess,
            value: value.clone(),
            place,
        });
    }
    found
}

/// The environment of a container that was made for the official Kafka image. A name that is no setting stops nobody:
/// unlike ours, this prefix has other users.
fn from_kafkas_environment(variables: &[(String, String)], warnings: &mut Vec<Warning>) -> Vec<Found> {
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(KAFKA_PREFIX) else {
            continue;
        };
        if is_for_kafkas_scripts(rest) || is_service_link(rest, value) {
            continue;
        }
        let key = kafkas_key(rest);
        if broker_key(&key).is_none() && foreign(&key).is_none() {
            unknown.push(quote(name));
            continue;
        }
        found.push(Found {
            key,
            value: value.clone(),
            place: Place::Environment(name.clone()),
        });
    }
    if !unknown.is_empty() {
        unknown.sort();
        warnings.push(Warning(format!(
            "ignored: {} in the environment: neither a setting of Kafka's nor one of ours",
            unknown.join(", ")
        )));
    }
    found
}

/// The key that a variable of the official Kafka image names, given without its prefix: one underscore stands for a
/// dot, two for an underscore, three for a dash.
pub(super) fn kafkas_key(rest: &str) -> String {
    let mut key = rest.to_ascii_lowercase();
    // The marks cannot be in an environment variable's name. Runs longer than three are in no key, and stay.
    for (run, mark) in [("____", '\u{4}'), ("___", '-'), ("__", '\u{2}'), ("_", '.')] {
        key = key.replace(run, &mark.to_string());
    }
    key.replace('\u{4}', "____").replace('\u{2}', "_")
}

/// Variables that Kafka's scripts and its image read, which are no settings of a broker.
fn is_for_kafkas_scripts(rest: &str) -> bool {
    const OTHERS: [&str; 7] = [
        "DEBUG",
        "HOME",
        "MODE",
        "OPTS",
        "VERSION",
        "JMX_HOSTNAME",
        "JMX_PORT",
    ];
    OTHERS.contains(&rest) || rest.ends_with("_OPTS") || rest.contains("LOG4J_")
}

/// Kubernetes gives every container variables about each service, so a service named `alluvium` makes
/// `ALLUVIUM_SERVICE_HOST`, `ALLUVIUM_PORT_9092_TCP_ADDR` and the like: they are no one's mistake.
fn is_service_link(rest: &str, value: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let service = |tail: &[&str]| matches!(tail, ["SERVICE", "HOST"] | ["SERVICE", "PORT", ..]);
    let port = |tail: &[&str]| match tail {
        // Who means a setting by `ALLUVIUM_PORT` gives a number, not an address.
        ["PORT"] => value.contains("://"),
        ["PORT", number, "TCP" | "UDP" | "SCTP"] => is_number(number),
        ["PORT", number, "TCP" | "UDP" | "SCTP", "ADDR" | "PORT" | "PROTO"] => is_number(number),
        _ => false,
    };
    (0..words.len()).any(|start| service(&words[start..]) || port(&words[start..]))
}

/// Two flags for one key must agree: their order is not known.
fn distinct(flags: Vec<Found>, errors: &mut Vec<ConfigError>) -> Vec<Found> {
    let mut kept: Vec<Found> = Vec::new();
    for flag in flags {
        match kept.iter().find(|other| other.key == flag.key) {
            Some(other) if other.value == flag.value => {}
            Some(other) => {
                let (a, b) = (quote(&other.value), quote(&flag.value));
                let problem = format!(
                    "{} is set twice, to {a} by {} and to {b}",
                    quote(&flag.key),
                    other.place
                );
                errors.push(ConfigError::new(&flag.place, problem));
            }
            None => kept.push(flag),
        }
    }
    kept
}

impl Layered {
    /// Puts a layer over those that are there.
    fn add(&mut self, found: Vec<Found>, ignored: &mut Vec<(String, Place)>) {
        let mut layer: BTreeMap<&'static str, (Value, Place)> = BTreeMap::new();
        for Found { key, value, place } in found {
            let Some(known) = broker_key(&key) else {
                match foreign(&key) {
                    Some(Foreign::Refused(why)) if !value.trim().is_empty() => {
                        let problem = format!("{} = {}: {why}", quote(&key), quote(&value));
                        self.errors.push(ConfigError::new(place, problem));
                    }
                    Some(_) => {
                        if key == "controller.listener.names" {
                            let names = super::key::split_list(&value);
                            self.controller_listeners =
                                names.iter().map(|name| name.to_ascii_uppercase()).collect();
                        }
                        ignored.retain(|(other, _)| *other != key);
                        ignored.push((key, place));
                    }
                    None => self.errors.push(ConfigError::new(place, unknown_key(&key))),
                }
                continue;
            };
            match parse_setting(known, &value) {
                Ok(parsed) => drop(layer.insert(known.name, (parsed, place))),
                Err(problem) => self.errors.push(ConfigError::new(place, problem)),
            }
        }
        // `broker.id` is the older name of `node.id`; the newer one wins over a lower layer's older one too.
        match (layer.get("node.id"), layer.get("broker.id")) {
            (Some((node, _)), Some((broker, place))) if node != broker => {
                let problem = format!(
                    "broker.id = {} contradicts node.id = {}; leave broker.id out",
                    broker.to_text(),
                    node.to_text()
                );
                self.errors.push(ConfigError::new(place, problem));
            }
            (None, Some(same)) => drop(layer.insert("node.id", same.clone())),
            (Some(same), None) => drop(layer.insert("broker.id", same.clone())),
            _ => {}
        }
        self.values.extend(layer);
    }
}

/// Parses a broker setting; the error names key and value.
pub(crate) fn parse_setting(key: &BrokerKey, value: &str) -> Result<Value, String> {
    parse(key.kind, &key.rule, value)
        .map_err(|problem| format!("bad value {} for {}: {problem}", quote(value), key.name))
}

/// What is said about a key that is not in the table.
pub(crate) fn unknown_key(key: &str) -> String {
    let shown = quote(key);
    if let Some(topic) = TOPIC_KEYS.iter().find(|topic| topic.name == key) {
        return match topic.broker.first() {
            Some((broker, _)) => {
                format!("{shown} is a topic config; the broker setting for its default is {broker}")
            }
            None => format!("{shown} is a topic config, not a broker setting"),
        };
    }
    match meant(key).or_else(|| nearest(key, broker_keys().map(|known| known.name))) {
        Some(right) => format!("unknown key {shown}; did you mean {right}?"),
        None => format!("unknown key {shown}; `alluvium config` lists all"),
    }
}

/// Names by which people look for a setting that has another: flags, and settings of older Kafkas.
const MEANT: &[(&str, &str)] = &[
    ("advertised.host.name", "advertised.listeners"),
    ("advertised.port", "advertised.listeners"),
    ("data.dir", "store.url"),
    ("host", "listeners"),
    ("host.name", "listeners"),
    ("http", "http.listen"),
    ("http.port", "http.listen"),
    ("listen", "listeners"),
    ("port", "listeners"),
    ("rack", "broker.rack"),
    ("store", "store.url"),
];

/// The setting that somebody means by a name that is none.
fn meant(key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    let (_, meant) = MEANT.iter().find(|(name, _)| *name == key)?;
    Some(meant)
}
