//! The flags that set settings, and `alluvium config`, which explains all of them.
//!
//! `docs/configuration.md` is what `alluvium config --markdown` prints.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;

use crate::config::{
    BrokerKey, ConfigError, FlagSetting, Place, Preset, SECTIONS, Settings, Surroundings, TOPIC_KEYS,
    TopicKey, Unit, Warning, default_text, listing, nearest, quote, variable_name,
};
use alluvium_log::store::StoreKind;

/// Flags that set settings. Each stands for one key; `--set` reaches all others.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// Settings file, in the format and with the names of Kafka's server.properties
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the data is: a directory, s3://bucket/prefix, or memory:// for a trial [store.url, default ./alluvium-data]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,

    /// Where to listen for clients: [NAME://]host:port,... [listeners, default 127.0.0.1:9092]
    #[arg(long, value_name = "LIST")]
    pub listeners: Option<String>,

    /// What clients are told to connect to [advertised.listeners, default: the listeners]
    #[arg(long, value_name = "LIST")]
    pub advertised_listeners: Option<String>,

    /// Number of this broker [node.id, default: assigned by the cluster]
    #[arg(long, value_name = "N")]
    pub node_id: Option<String>,

    /// Zone or rack of this broker [broker.rack, default: none]
    #[arg(long, value_name = "NAME")]
    pub rack: Option<String>,

    /// Address of /metrics, /livez and /readyz; empty for none [http.listen, default 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<String>,

    /// error, warn, info, debug or trace [log.level, default info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// text or json [log.format, default text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// Any setting (`alluvium config` lists them); may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl SettingsArgs {
    /// Loads the settings: these flags over environment over file over default.
    ///
    /// # Errors
    /// A line about each setting that is unknown or bad, or about the first that contradicts another.
    pub fn load(&self, surroundings: &Surroundings<'_>) -> Result<(Settings, Vec<Warning>), ConfigError> {
        Settings::load(self.config.as_deref(), self.flags()?, surroundings)
    }

    fn flags(&self) -> Result<Vec<FlagSetting>, ConfigError> {
        let named = [
            ("--store", "store.url", &self.store),
            ("--listeners", "listeners", &self.listeners),
            (
                "--advertised-listeners",
                "advertised.listeners",
                &self.advertised_listeners,
            ),
            ("--node-id", "node.id", &self.node_id),
            ("--rack", "broker.rack", &self.rack),
            ("--http-listen", "http.listen", &self.http_listen),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ];
        let mut flags = Vec::new();
        for (flag, key, value) in named {
            if let Some(value) = value {
                flags.push(FlagSetting {
                    flag,
                    key: key.to_owned(),
                    value: value.clone(),
                });
            }
        }
        for pair in &self.set {
            let Some((key, value)) = pair.split_once('=') else {
                let problem = format!("'{}' is not of the form key=value", pair.escape_debug());
                return Err(ConfigError::new("--set", problem));
            };
            flags.push(FlagSetting {
                flag: "--set",
                key: key.trim().to_owned(),
                value: value.to_owned(),
            });
        }
        Ok(flags)
    }
}

/// `alluvium config`: every setting with its value, default and meaning.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Show only the settings whose names contain this
    pub filter: Option<String>,

    /// Print the page docs/configuration.md
    #[arg(long, conflicts_with_all = ["json", "filter"])]
    pub markdown: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Flags as for `serve`: the values shown are those that it would have.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// `alluvium config` failed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigCommandError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No setting has this in its name.
    #[error("no setting's name contains {}; {}", quote(.0), instead(.0))]
    NoSuchSetting(String),
    /// The list could not be written.
    #[error("cannot write the list: {0}")]
    Write(#[from] io::Error),
}

/// What to do about a filter that leaves nothing.
fn instead(filter: &str) -> String {
    let brokers = SECTIONS.iter().flat_map(|part| part.keys).map(|key| key.name);
    let names: Vec<&str> = brokers.chain(TOPIC_KEYS.iter().map(|key| key.name)).collect();
    // A filter may be meant for a part of the name.
    let parts = names.iter().flat_map(|name| name.split('.'));
    match nearest(filter, names.iter().copied()).or_else(|| nearest(filter, parts)) {
        Some(near) => format!("did you mean {near}?"),
        None => "`alluvium config` lists all".to_owned(),
    }
}

fn any_name_contains(filter: &str) -> bool {
    let mut brokers = SECTIONS.iter().flat_map(|part| part.keys).map(|key| key.name);
    brokers.any(|name| name.contains(filter)) || TOPIC_KEYS.iter().any(|key| key.name.contains(filter))
}

/// Width of the terminal in characters, for [`run`]; 100 where there is none.
pub fn terminal_width() -> usize {
    const WITHOUT_TERMINAL: usize = 100;
    terminal_size::terminal_size().map_or(WITHOUT_TERMINAL, |(width, _)| usize::from(width.0))
}

/// Writes the list of settings. Warnings go to `warn`, one line each.
///
/// # Errors
/// A setting that a broker could not start with, no setting of that name, or `out` or `warn` cannot be written.
pub fn run(
    args: &ConfigArgs,
    surroundings: &Surroundings<'_>,
    width: usize,
    out: &mut dyn Write,
    warn: &mut dyn Write,
) -> Result<(), ConfigCommandError> {
    if args.markdown {
        out.write_all(markdown().as_bytes())?;
        return Ok(());
    }
    let (settings, warnings) = args.settings.load(surroundings)?;
    for warning in warnings {
        writeln!(warn, "warning: {warning}")?;
    }
    let filter = args.filter.as_deref().unwrap_or_default();
    if !any_name_contains(filter) {
        return Err(ConfigCommandError::NoSuchSetting(filter.to_owned()));
    }
    let text = if args.json {
        to_json(&settings, filter)?
    } else {
        to_text(&settings, filter, width)
    };
    out.write_all(text.as_bytes())?;
    Ok(())
}

/// Values of all broker settings, by name.
fn values(settings: &Settings) -> Vec<(&'static str, Option<(String, Place)>)> {
    listing(settings).map(|(key, value)| (key.name, value)).collect()
}

/// The default in words.
fn default_words(key: &BrokerKey) -> String {
    let shown = |text: Option<String>| match text {
        Some(text) if text.is_empty() => "empty".into(),
        Some(text) => text,
        None => "unset".into(),
    };
    let embedded = shown(default_text(key, StoreKind::Embedded));
    match key.default {
        Preset::ByStore { .. } => format!(
            "{} on S3, else {embedded}",
            shown(default_text(key, StoreKind::S3))
        ),
        _ => embedded,
    }
}

fn accepts_words(key: &BrokerKey) -> String {
    let accepts = key.rule.accepts(key.kind);
    match key.unit {
        Unit::None => accepts,
        unit => format!("{accepts}; {}", unit.name()),
    }
}

/// Which broker settings give a topic config its default, or the default itself.
fn topic_default_words(key: &TopicKey) -> String {
    if key.broker.is_empty() {
        return if key.default.is_empty() {
            "empty".into()
        } else {
            key.default.into()
        };
    }
    let names: Vec<_> = key.broker.iter().map(|(name, _)| *name).collect();
    format!("from {}", names.join(", "))
}

const DYNAMIC: &str = "Can be changed while the broker runs.";

fn to_text(settings: &Settings, filter: &str, width: usize) -> String {
    let values = values(settings);
    let mut out = String::new();
    let mut section = |title: &str, entries: Vec<(String, Vec<String>)>| {
        if entries.is_empty() {
            return;
        }
        out.push_str(&format!("{title}\n"));
        for (head, paragraphs) in entries {
            out.push_str(&format!("\n  {head}\n"));
            for paragraph in paragraphs {
                for line in wrap(&paragraph, width.saturating_sub(6)) {
                    out.push_str(&format!("      {line}\n"));
                }
            }
        }
        out.push('\n');
    };
    for part in SECTIONS {
        let entries = part
            .keys
            .iter()
            .filter(|key| key.name.contains(filter))
            .map(|key| {
                let value = values
                    .iter()
                    .find(|(name, _)| *name == key.name)
                    .and_then(|(_, value)| value.as_ref());
                let head = match value {
                    None => format!("{} is unset", key.name),
                    Some((text, Place::Default)) => format!("{} = {text}", key.name),
                    Some((text, place)) => format!("{} = {text}   [{place}]", key.name),
                };
                let mut facts = format!("Default: {}. Accepts {}.", default_words(key), accepts_words(key));
                if key.dynamic {
                    facts.push_str(&format!(" {DYNAMIC}"));
                }
                (head, vec![key.doc.to_owned(), facts])
            });
        section(part.title, entries.collect());
    }
    let topics = TOPIC_KEYS
        .iter()
        .filter(|key| key.name.contains(filter))
        .map(|key| {
            let facts = format!(
                "Default: {}. Accepts {}.",
                topic_default_words(key),
                key.rule.accepts(key.kind)
            );
            (key.name.to_owned(), vec![key.doc.to_owned(), facts])
        });
    section(
        "Topic configs (set per topic, by CreateTopics and AlterConfigs)",
        topics.collect(),
    );
    out
}

/// Breaks a text at spaces so that a line has at most `width` characters, if its words allow it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn to_json(settings: &Settings, filter: &str) -> Result<String, io::Error> {
    let values = values(settings);
    let mut rows = Vec::new();
    for part in SECTIONS {
        for key in part.keys.iter().filter(|key| key.name.contains(filter)) {
            let value = values
                .iter()
                .find(|(name, _)| *name == key.name)
                .and_then(|(_, value)| value.as_ref());
            let default = match key.default {
                Preset::ByStore { .. } => json!({
                    "s3": default_text(key, StoreKind::S3),
                    "else": default_text(key, StoreKind::Embedded),
                }),
                _ => json!(default_text(key, StoreKind::Embedded)),
            };
            rows.push(json!({
                "scope": "broker",
                "section": part.title,
                "name": key.name,
                "value": value.map(|(text, _)| text),
                "source": value.map(|(_, place)| place.to_string()),
                "default": default,
                "type": key.kind.name(),
                "unit": key.unit.name(),
                "accepts": key.rule.accepts(key.kind),
                "dynamic": key.dynamic,
                "environment": variable_name(key.name),
                "documentation": key.doc,
            }));
        }
    }
    for key in TOPIC_KEYS.iter().filter(|key| key.name.contains(filter)) {
        let names: Vec<_> = key.broker.iter().map(|(name, _)| *name).collect();
        let default = if names.is_empty() {
            json!(key.default)
        } else {
            json!(null)
        };
        rows.push(json!({
            "scope": "topic",
            "name": key.name,
            "default": default,
            "default_from": names,
            "type": key.kind.name(),
            "accepts": key.rule.accepts(key.kind),
            "documentation": key.doc,
        }));
    }
    Ok(serde_json::to_string_pretty(&rows).map_err(io::Error::other)? + "\n")
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Written by `alluvium config --markdown`. Change the tables in crates/broker/src/config instead. -->

A setting is looked for in four places; the first that has it wins:

1. a flag: `--store`, `--listeners`, `--advertised-listeners`, `--node-id`, `--rack`, `--http-listen`, `--log-level`,
   `--log-format`, and `--set key=value` for everything else;
2. the environment: `ALLUVIUM_` and the key in upper case, with underscores for dots: `ALLUVIUM_LOG_RETENTION_MS`
   for `log.retention.ms`. What is meant for the official Kafka image (`KAFKA_LOG_RETENTION_MS`) is taken too, below
   ours, and names in it that are no settings are ignored with a warning;
3. the file that `--config FILE` or `ALLUVIUM_CONFIG` names, in the format of Kafka's `server.properties`;
4. the default.

Kafka's names are used where Kafka has the setting. Unknown keys and bad values stop the start with one line for each
that names it, its place and the nearest right one. Settings of Kafka that have no meaning here (`log.dirs`,
`process.roles`, `num.io.threads`, ...) are ignored with a warning, and so are the listeners that
`controller.listener.names` lists. What would protect a Kafka broker is never ignored: a listener that is not
PLAINTEXT, or `authorizer.class.name`, stops the start. Variables that Kubernetes makes for a service
(`ALLUVIUM_SERVICE_HOST`, `ALLUVIUM_PORT_9092_TCP` and the like) are no settings, nor is anything that begins with
`ALLUVIUM_TEST_`.

`alluvium config` prints this list with the values that hold, given the same flags, environment and file as `serve`,
and where each comes from; `alluvium config retention` prints the part whose names contain a word.

Settings marked *dynamic* can also be changed while brokers run, for all of them or for one, for example with
`kafka-configs.sh --alter --entity-type brokers`. What is set for one broker wins over what is set for all, and both
win over flag, environment and file: a start says which of its settings are overruled so. They are in the store, which
`alluvium config` does not read: it shows what the start alone says. `kafka-configs.sh --describe --entity-type brokers
--entity-name 1 --all` shows what holds.
";

/// The page `docs/configuration.md`.
pub fn markdown() -> String {
    let mut out = INTRODUCTION.to_owned();
    for part in SECTIONS {
        out.push_str(&format!("\n## {}\n\n", part.title));
        out.push_str("| Setting | Default | Accepts | Meaning |\n|---|---|---|---|\n");
        for key in part.keys {
            let dynamic = if key.dynamic { " *dynamic*" } else { "" };
            let cells = [
                format!("`{}`{dynamic}", key.name),
                default_words(key),
                accepts_words(key),
                key.doc.to_owned(),
            ];
            push_row(&mut out, &cells);
        }
    }
    out.push_str(
        "\n## Topic configs\n\nSet per topic, by CreateTopics and AlterConfigs. All are dynamic.\n\n",
    );
    out.push_str("| Config | Default | Accepts | Meaning |\n|---|---|---|---|\n");
    for key in TOPIC_KEYS {
        let names: Vec<_> = key.broker.iter().map(|(name, _)| format!("`{name}`")).collect();
        let default = if names.is_empty() {
            topic_default_words(key)
        } else {
            names.join(", else ")
        };
        push_row(
            &mut out,
            &[
                format!("`{}`", key.name),
                default,
                key.rule.accepts(key.kind),
                key.doc.to_owned(),
            ],
        );
    }
    out
}

fn push_row(out: &mut String, cells: &[String; 4]) {
    for cell in cells {
        out.push_str("| ");
        // A bar ends a cell, and a star or an angle bracket would be markup.
        out.push_str(
            &cell
                .replace('|', "\\|")
                .replace(", or *", ", or \\*")
                .replace('<', "\\<"),
        );
        out.push(' ');
    }
    out.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(clap::Parser)]
    struct Serve {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    #[derive(clap::Parser)]
    struct Show {
        #[command(flatten)]
        config: ConfigArgs,
    }

    const NO_FILE: &dyn Fn(&Path) -> io::Result<Vec<u8>> = &|_| Err(io::ErrorKind::NotFound.into());

    fn surroundings() -> Surroundings<'static> {
        Surroundings {
            variables: vec![],
            cwd: "/home/me".into(),
            hostname: None,
            read_file: NO_FILE,
        }
    }

    fn served(args: &[&str]) -> Result<(Settings, Vec<Warning>), ConfigError> {
        let args = std::iter::once("alluvium").chain(args.iter().copied());
        Serve::try_parse_from(args)
            .unwrap()
            .settings
            .load(&surroundings())
    }

    fn shown(args: &[&str], width: usize) -> (String, String) {
        let args = std::iter::once("alluvium").chain(args.iter().copied());
        let args = Show::try_parse_from(args).unwrap().config;
        let (mut out, mut warn) = (Vec::new(), Vec::new());
        run(&args, &surroundings(), width, &mut out, &mut warn).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(warn).unwrap())
    }

    #[test]
    fn the_page_in_docs_is_what_the_program_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/configuration.md is not what `alluvium config --markdown` prints; write it anew with that"
        );
    }

    #[test]
    fn flags_set_their_keys() {
        let (settings, _) = served(&[
            "--store",
            "memory://",
            "--listeners",
            "A://127.0.0.1:0",
            "--set",
            "listener.security.protocol.map=A:PLAINTEXT",
            "--advertised-listeners",
            "h:1",
            "--node-id",
            "4",
            "--rack",
            "z",
            "--http-listen",
            "",
            "--log-level",
            "debug",
            "--log-format",
            "json",
            "--set",
            "num.partitions=3",
            "--set",
            "log.retention.ms = -1",
        ])
        .unwrap();
        assert_eq!(settings.store_url, "memory://");
        assert_eq!(settings.advertised_listeners[0].to_string(), "A://h:1");
        assert_eq!((settings.node_id, settings.rack.as_deref()), (Some(4), Some("z")));
        assert_eq!(
            (settings.http_listen, settings.log_level.as_str()),
            (None, "debug")
        );
        assert_eq!(settings.log_format, crate::config::LogFormat::Json);
        assert_eq!(settings.num_partitions, 3);
    }

    #[test]
    fn a_wrong_flag_is_one_line() {
        for (args, line) in [
            (
                vec!["--set", "num.partitions"],
                "--set: 'num.partitions' is not of the form key=value",
            ),
            (
                vec!["--set", "num.partition=1"],
                "--set: unknown key 'num.partition'; did you mean num.partitions?",
            ),
            (
                vec!["--node-id", "x"],
                "--node-id: bad value 'x' for node.id: expected a whole number, at least 0",
            ),
            (
                vec!["--listeners", "host"],
                "--listeners: bad value 'host' for listeners: 'host': expected [NAME://]host:port, port 0 to 65535",
            ),
        ] {
            assert_eq!(served(&args).unwrap_err().to_string(), line);
        }
    }

    #[test]
    fn the_list_for_people_fits_the_terminal_and_names_places() {
        let (text, warnings) = shown(&["--set", "num.partitions=3", "--set", "log.dirs=/x"], 60);
        assert!(text.contains("\n  num.partitions = 3   [--set]\n"), "{text}");
        assert!(text.contains("\n  broker.rack is unset\n") && text.contains("\n  retention.ms\n"));
        assert!(text.contains("Default: 30 on S3, else 0."));
        assert!(
            warnings.starts_with(
                "warning: --set: log.dirs is not used: data goes to store.url (file:///home/me/"
            ),
            "{warnings}"
        );
        let long: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("      ") && line.len() > 60)
            .collect();
        assert!(
            long.iter().all(|line| line.trim().split(' ').count() == 1),
            "{long:?}"
        );
        let (part, _) = shown(&["retention"], 80);
        assert!(part.contains("log.retention.ms") && !part.contains("num.partitions"));
    }

    #[test]
    fn a_filter_that_leaves_nothing_is_an_error_with_a_suggestion() {
        let refused = |filter: &str| {
            let args = ConfigArgs {
                filter: Some(filter.to_owned()),
                ..ConfigArgs::default()
            };
            let done = run(&args, &surroundings(), 80, &mut Vec::new(), &mut Vec::new());
            done.unwrap_err().to_string()
        };
        assert_eq!(
            refused("retentoin"),
            "no setting's name contains 'retentoin'; did you mean retention?"
        );
        assert_eq!(
            refused("num.partitons"),
            "no setting's name contains 'num.partitons'; did you mean num.partitions?"
        );
        assert_eq!(
            refused("xyzxyzxyz"),
            "no setting's name contains 'xyzxyzxyz'; `alluvium config` lists all"
        );
    }

    #[test]
    fn the_json_list_is_complete() {
        let (text, _) = shown(&["--json", "--node-id", "9"], 80);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let brokers: usize = SECTIONS.iter().map(|part| part.keys.len()).sum();
        assert_eq!(rows.len(), brokers + TOPIC_KEYS.len());
        let node = rows.iter().find(|row| row["name"] == "node.id").unwrap();
        assert_eq!(
            (&node["value"], &node["source"], &node["default"]),
            (&json!("9"), &json!("--node-id"), &serde_json::Value::Null)
        );
        assert_eq!(node["environment"], "ALLUVIUM_NODE_ID");
        let flush = rows
            .iter()
            .find(|row| row["name"] == "flush.interval.ms")
            .unwrap();
        assert_eq!(flush["default"], json!({"s3": "30", "else": "0"}));
    }

    #[test]
    fn every_row_of_the_page_has_four_cells() {
        for line in markdown().lines().filter(|line| line.starts_with("| ")) {
            assert_eq!(line.replace("\\|", "").matches('|').count(), 5, "{line}");
        }
    }
}
