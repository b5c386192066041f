//! What AlterConfigs and IncrementalAlterConfigs have in common: edits of the configs of topics and brokers,
//! decided purely.
//!
//! All edits of a resource are one [`Change`], so a resource changes whole or not at all. A replacement names
//! every key that can be set, so that a key that somebody else sets at the same time does not survive it.
//! Appending to a list and subtracting from it start from the value in the applied manifest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use alluvium_log::manifest::{Change, Topic};

use crate::admin_change::{CONFIG_VALUE_BYTES_MAX, Decision, Refusal};
use crate::config::DescribedConfig;
use crate::errors::ErrorCode;
use crate::topics::check_name;

/// `ConfigResource.Type` of Kafka: a topic by name.
pub(crate) const RESOURCE_TOPIC: i8 = 2;
/// A broker by its id, or all brokers by the empty name.
pub(crate) const RESOURCE_BROKER: i8 = 4;
/// The loggers of a broker by its id.
pub(crate) const RESOURCE_BROKER_LOGGER: i8 = 8;
/// A subscription to client metrics by name.
pub(crate) const RESOURCE_CLIENT_METRICS: i8 = 16;
/// A group by id.
pub(crate) const RESOURCE_GROUP: i8 = 32;

/// `DescribedConfig::kind` of comma-separated lists.
const KIND_LIST: i8 = 7;

/// Kafka's `AlterConfigOp.OpType`.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

/// One key of an edit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyEdit<'a> {
    pub(crate) key: &'a str,
    /// Kafka's `AlterConfigOp.OpType`; a replacement sets.
    pub(crate) operation: i8,
    pub(crate) value: Option<&'a str>,
}

impl<'a> KeyEdit<'a> {
    pub(crate) fn set(key: &'a str, value: Option<&'a str>) -> KeyEdit<'a> {
        KeyEdit {
            key,
            operation: SET,
            value,
        }
    }
}

/// The edits of one resource.
#[derive(Clone, Debug)]
pub(crate) struct ResourceEdit<'a> {
    pub(crate) kind: i8,
    pub(crate) name: &'a str,
    /// All other keys go back to their defaults (AlterConfigs).
    pub(crate) replace: bool,
    pub(crate) keys: Vec<KeyEdit<'a>>,
}

type Check<'a> = &'a (dyn Fn(&str, &str) -> Result<(), String> + Sync);

/// What a decision depends on besides the request.
pub(crate) struct Rules<'a> {
    pub(crate) topics: &'a BTreeMap<String, Topic>,
    pub(crate) broker_configs: &'a BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) node_id: i32,
    pub(crate) check_topic: Check<'a>,
    pub(crate) check_broker: Check<'a>,
    /// Whether a topic config keeps the value that its topic was created with.
    pub(crate) is_fixed: &'a (dyn Fn(&str) -> bool + Sync),
    pub(crate) describe_topic: &'a (dyn Fn(&str) -> Vec<DescribedConfig> + Sync),
    /// Every key of this broker.
    pub(crate) describe_broker: &'a (dyn Fn() -> Vec<DescribedConfig> + Sync),
}

/// One decision per resource, in order.
pub(crate) fn decide(edits: &[ResourceEdit<'_>], rules: &Rules<'_>) -> Vec<Decision> {
    let mut mentions: HashMap<(i8, &str), u32> = HashMap::new();
    for edit in edits {
        *mentions.entry((edit.kind, edit.name)).or_default() += 1;
    }
    edits
        .iter()
        .map(|edit| {
            if mentions
                .get(&(edit.kind, edit.name))
                .is_some_and(|count| *count > 1)
            {
                return Err(invalid_request("Each resource must appear at most once."));
            }
            decide_resource(edit, rules)
        })
        .collect()
}

fn invalid_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, message)
}

fn invalid_config(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InvalidConfig, message)
}

fn decide_resource(edit: &ResourceEdit<'_>, rules: &Rules<'_>) -> Decision {
    check_shape(&edit.keys)?;
    match edit.kind {
        RESOURCE_TOPIC => decide_topic(edit, rules),
        RESOURCE_BROKER => decide_broker(edit, rules),
        RESOURCE_BROKER_LOGGER if !edit.replace => {
            check_node(edit.name, rules.node_id)?;
            match edit.keys.first() {
                Some(logger) => Err(invalid_config(format!("Logger {} does not exist!", logger.key))),
                None => Ok(None),
            }
        }
        RESOURCE_CLIENT_METRICS | RESOURCE_GROUP => Err(invalid_request(
            "This broker has no configs for client metrics and groups.",
        )),
        kind => Err(invalid_request(format!("Unknown resource type {kind}"))),
    }
}

/// What must hold for an edit whatever the resource is.
fn check_shape(keys: &[KeyEdit<'_>]) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    for edit in keys {
        if !seen.insert(edit.key) {
            return Err(invalid_request("Error due to duplicate config keys"));
        }
        if !(SET..=SUBTRACT).contains(&edit.operation) {
            return Err(invalid_request(format!(
                "Unknown operations type {}",
                edit.operation
            )));
        }
        match edit.value {
            None if edit.operation != DELETE => {
                return Err(invalid_request(format!(
                    "Null value not supported for : {}",
                    edit.key
                )));
            }
            Some(value) if value.len() > CONFIG_VALUE_BYTES_MAX => {
                return Err(invalid_config(format!(
                    "The value of {} is longer than {CONFIG_VALUE_BYTES_MAX} bytes.",
                    edit.key
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn decide_topic(edit: &ResourceEdit<'_>, rules: &Rules<'_>) -> Decision {
    if edit.name.is_empty() {
        return Err(invalid_request("Default topic resources are not allowed."));
    }
    check_name(edit.name)?;
    let Some(topic) = rules.topics.get(edit.name) else {
        return Err(Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("The topic '{}' does not exist.", edit.name),
        ));
    };
    let rows = (rules.describe_topic)(edit.name);
    let check = |key: &str, value: &str| (rules.check_topic)(key, value).map_err(invalid_config);
    let changes = key_changes(edit, &rows, Some(&topic.configs), &check, rules.is_fixed)?;
    Ok((!changes.is_empty()).then(|| Change::AlterTopicConfigs {
        name: edit.name.to_owned(),
        changes,
    }))
}

fn decide_broker(edit: &ResourceEdit<'_>, rules: &Rules<'_>) -> Decision {
    let broker = if edit.name.is_empty() {
        String::new()
    } else {
        check_node(edit.name, rules.node_id)?;
        rules.node_id.to_string()
    };
    let rows = (rules.describe_broker)();
    // Kafka answers INVALID_REQUEST and not INVALID_CONFIG for brokers, and says that it will stay so.
    let check = |key: &str, value: &str| (rules.check_broker)(key, value).map_err(invalid_request);
    let own = rules.broker_configs.get(&broker);
    let changes = key_changes(edit, &rows, own, &check, &|_| false)?;
    Ok((!changes.is_empty()).then_some(Change::AlterBrokerConfigs { broker, changes }))
}

/// Configs of a single broker go through that broker. Only the plain decimal form is taken, so that a broker
/// has one name and a request cannot ask for it again and again under others.
pub(crate) fn check_node(name: &str, node_id: i32) -> Result<(), Refusal> {
    match name.parse::<i32>() {
        Ok(id) if id.to_string() != name => Err(invalid_request(format!(
            "Node id must be a plain integer, but it is: {name}"
        ))),
        Ok(id) if id != node_id => Err(invalid_request(format!(
            "Unexpected broker id, expected {node_id}, but received {name}"
        ))),
        Ok(_) => Ok(()),
        Err(_) => Err(invalid_request(format!(
            "Node id must be an integer, but it is: {name}"
        ))),
    }
}

/// The changes of the keys of one resource. `rows` are all its keys with their effective values, `own` what is
/// set for the resource itself. A fixed key may be named with the value that it has, and survives a replacement.
fn key_changes(
    edit: &ResourceEdit<'_>,
    rows: &[DescribedConfig],
    own: Option<&BTreeMap<String, String>>,
    check: &dyn Fn(&str, &str) -> Result<(), Refusal>,
    is_fixed: &dyn Fn(&str) -> bool,
) -> Result<Vec<(String, Option<String>)>, Refusal> {
    let mut changes = Vec::new();
    if edit.replace {
        let given: HashSet<&str> = edit.keys.iter().map(|key| key.key).collect();
        let known = rows.iter().filter(|row| !row.read_only).map(|row| row.name);
        let set = own.into_iter().flat_map(BTreeMap::keys).map(String::as_str);
        let removed: BTreeSet<&str> = known
            .chain(set)
            .filter(|key| !given.contains(key) && !is_fixed(key))
            .collect();
        changes.extend(removed.into_iter().map(|key| (key.to_owned(), None)));
    }
    for KeyEdit {
        key,
        operation,
        value,
    } in &edit.keys
    {
        let value = match (*operation, value) {
            (DELETE, _) | (_, None) => None,
            (SET, Some(value)) => Some((*value).to_owned()),
            (operation, Some(value)) => {
                let row = rows
                    .iter()
                    .find(|row| row.name == *key && row.kind == KIND_LIST)
                    .ok_or_else(|| {
                        let verb = if operation == APPEND { "APPEND" } else { "SUBTRACT" };
                        invalid_config(format!("Can't {verb} to key {key} because its type is not LIST."))
                    })?;
                let current = own.and_then(|own| own.get(*key)).or(row.value.as_ref());
                Some(edited_list(
                    current.map_or("", String::as_str),
                    operation == APPEND,
                    value,
                ))
            }
        };
        if let Some(value) = &value {
            if value.len() > CONFIG_VALUE_BYTES_MAX {
                return Err(invalid_config(format!(
                    "{key} would grow longer than {CONFIG_VALUE_BYTES_MAX} bytes."
                )));
            }
            check(key, value)?;
        }
        if is_fixed(key) {
            let unchanged = match &value {
                None => own.is_none_or(|own| !own.contains_key(*key)),
                Some(_) => rows.iter().any(|row| row.name == *key && row.value == value),
            };
            if !unchanged {
                return Err(invalid_config(format!(
                    "{key} is fixed when a topic is created: create another topic for another value."
                )));
            }
            continue;
        }
        changes.push(((*key).to_owned(), value));
    }
    Ok(changes)
}

/// A comma-separated list with the items of `items` appended, unless they are in it, or taken out.
fn edited_list(current: &str, append: bool, items: &str) -> String {
    fn split(list: &str) -> impl Iterator<Item = &str> {
        list.split(',').map(str::trim).filter(|item| !item.is_empty())
    }
    let mut list: Vec<&str> = split(current).collect();
    if append {
        let mut present: HashSet<&str> = list.iter().copied().collect();
        list.extend(split(items).filter(|item| present.insert(item)));
    } else {
        let gone: HashSet<&str> = split(items).collect();
        list.retain(|item| !gone.contains(item));
    }
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::topic;

    type Keys = Vec<(String, Option<String>)>;

    fn row(name: &'static str, kind: i8, value: &str, read_only: bool) -> DescribedConfig {
        DescribedConfig {
            name,
            value: Some(value.to_owned()),
            read_only,
            sensitive: false,
            source: 5,
            kind,
            documentation: "",
            synonyms: Vec::new(),
        }
    }

    /// The rules of one topic `t` and broker 7, in which every value that starts with "bad" is refused.
    fn decided(edits: &[ResourceEdit<'_>]) -> Vec<Result<Keys, ErrorCode>> {
        let mut t = topic(1, 1);
        t.configs.insert("retention.ms".to_owned(), "5".to_owned());
        t.configs.insert("throttled".to_owned(), "0:1,0:2".to_owned());
        t.configs.insert("fixed.one".to_owned(), "as created".to_owned());
        let topics = [("t".to_owned(), t)].into();
        let broker_configs: BTreeMap<String, BTreeMap<String, String>> = [(
            String::new(),
            [("log.retention.ms".to_owned(), "9".to_owned())].into(),
        )]
        .into();
        let check = |_: &str, value: &str| match value.starts_with("bad") {
            true => Err("bad value".to_owned()),
            false => Ok(()),
        };
        let rules = Rules {
            topics: &topics,
            broker_configs: &broker_configs,
            node_id: 7,
            check_topic: &check,
            check_broker: &check,
            is_fixed: &|key| key.starts_with("fixed"),
            describe_topic: &|_| {
                vec![
                    row("fixed.one", 2, "as created", false),
                    row("fixed.other", 2, "by default", false),
                    row("cleanup.policy", KIND_LIST, "delete", false),
                    row("retention.ms", 5, "5", false),
                    row("throttled", KIND_LIST, "", false),
                ]
            },
            describe_broker: &|| {
                vec![
                    row("log.cleanup.policy", KIND_LIST, "delete", false),
                    row("log.retention.ms", 5, "9", false),
                    row("node.id", 3, "7", true),
                ]
            },
        };
        decide(edits, &rules)
            .into_iter()
            .map(|decision| match decision {
                Ok(None) => Ok(Vec::new()),
                Ok(Some(Change::AlterTopicConfigs { name, changes })) => {
                    assert_eq!(name, "t");
                    Ok(changes)
                }
                Ok(Some(Change::AlterBrokerConfigs { broker, changes })) => {
                    assert!(broker.is_empty() || broker == "7");
                    Ok(changes)
                }
                Ok(Some(other)) => panic!("unexpected {other:?}"),
                Err(refusal) => Err(refusal.code),
            })
            .collect()
    }

    fn incremental<'a>(kind: i8, name: &'a str, keys: &[(&'a str, i8, Option<&'a str>)]) -> ResourceEdit<'a> {
        let keys = keys
            .iter()
            .map(|&(key, operation, value)| KeyEdit {
                key,
                operation,
                value,
            })
            .collect();
        ResourceEdit {
            kind,
            name,
            replace: false,
            keys,
        }
    }

    fn replacement<'a>(kind: i8, name: &'a str, keys: &[(&'a str, Option<&'a str>)]) -> ResourceEdit<'a> {
        let keys = keys
            .iter()
            .map(|&(key, value)| KeyEdit::set(key, value))
            .collect();
        ResourceEdit {
            kind,
            name,
            replace: true,
            keys,
        }
    }

    fn keys(changes: &[(&str, Option<&str>)]) -> Result<Keys, ErrorCode> {
        Ok(changes
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned)))
            .collect())
    }

    #[test]
    fn what_is_fixed_at_creation_is_neither_changed_nor_lost() {
        let edit = |key, operation, value| incremental(RESOURCE_TOPIC, "t", &[(key, operation, value)]);
        let replaced = |value| replacement(RESOURCE_TOPIC, "t", &[("fixed.one", Some(value))]);
        let table = [
            (edit("fixed.one", SET, Some("as created")), true),
            (edit("fixed.one", SET, Some("else")), false),
            (edit("fixed.one", DELETE, None), false),
            (edit("fixed.other", SET, Some("by default")), true),
            (edit("fixed.other", SET, Some("as created")), false),
            (edit("fixed.other", DELETE, None), true),
            (replaced("as created"), true),
            (replaced("else"), false),
            (replacement(RESOURCE_TOPIC, "t", &[]), true),
        ];
        for (edit, taken) in table {
            match &decided(std::slice::from_ref(&edit))[0] {
                Ok(changes) => assert!(
                    taken && changes.iter().all(|(key, _)| !key.starts_with("fixed")),
                    "{edit:?}: {changes:?}"
                ),
                Err(code) => assert!(!taken && *code == ErrorCode::InvalidConfig, "{edit:?}"),
            }
        }
    }

    #[test]
    fn incremental_edits_of_topics() {
        use ErrorCode::{InvalidConfig, InvalidRequest, InvalidTopicException, UnknownTopicOrPartition};
        let edit = |ops: &[(&'static str, i8, Option<&'static str>)]| incremental(RESOURCE_TOPIC, "t", ops);
        let table = [
            (edit(&[]), keys(&[])),
            (
                edit(&[("retention.ms", SET, Some("6"))]),
                keys(&[("retention.ms", Some("6"))]),
            ),
            (
                edit(&[("retention.ms", DELETE, None)]),
                keys(&[("retention.ms", None)]),
            ),
            (
                edit(&[("retention.ms", DELETE, Some("x"))]),
                keys(&[("retention.ms", None)]),
            ),
            // Nothing is set for the topic, so the effective value is where appending starts.
            (
                edit(&[("cleanup.policy", APPEND, Some("compact"))]),
                keys(&[("cleanup.policy", Some("delete,compact"))]),
            ),
            (
                edit(&[("cleanup.policy", APPEND, Some("delete"))]),
                keys(&[("cleanup.policy", Some("delete"))]),
            ),
            (
                edit(&[("throttled", APPEND, Some("0:2, 0:3,0:3"))]),
                keys(&[("throttled", Some("0:1,0:2,0:3"))]),
            ),
            (
                edit(&[("throttled", SUBTRACT, Some("0:1,9:9"))]),
                keys(&[("throttled", Some("0:2"))]),
            ),
            (
                edit(&[("throttled", SUBTRACT, Some("0:2,0:1"))]),
                keys(&[("throttled", Some(""))]),
            ),
            (edit(&[("retention.ms", APPEND, Some("6"))]), Err(InvalidConfig)),
            (edit(&[("retention.ms", SUBTRACT, Some("6"))]), Err(InvalidConfig)),
            (edit(&[("no.such.key", APPEND, Some("6"))]), Err(InvalidConfig)),
            (edit(&[("retention.ms", SET, Some("bad"))]), Err(InvalidConfig)),
            (
                edit(&[
                    ("throttled", APPEND, Some("0:9")),
                    ("retention.ms", SET, Some("bad")),
                ]),
                Err(InvalidConfig),
            ),
            (edit(&[("retention.ms", SET, None)]), Err(InvalidRequest)),
            (edit(&[("throttled", APPEND, None)]), Err(InvalidRequest)),
            (edit(&[("retention.ms", 4, Some("6"))]), Err(InvalidRequest)),
            (edit(&[("retention.ms", -1, Some("6"))]), Err(InvalidRequest)),
            (
                edit(&[("retention.ms", SET, Some("6")), ("retention.ms", DELETE, None)]),
                Err(InvalidRequest),
            ),
            (
                incremental(RESOURCE_TOPIC, "nope", &[]),
                Err(UnknownTopicOrPartition),
            ),
            (incremental(RESOURCE_TOPIC, "", &[]), Err(InvalidRequest)),
            (
                incremental(RESOURCE_TOPIC, "a/b", &[]),
                Err(InvalidTopicException),
            ),
        ];
        for (edit, expected) in table {
            assert_eq!(decided(std::slice::from_ref(&edit)), [expected], "{edit:?}");
        }
    }

    #[test]
    fn a_replacement_resets_what_it_does_not_name() {
        let table = [
            (
                replacement(RESOURCE_TOPIC, "t", &[("retention.ms", Some("6"))]),
                keys(&[
                    ("cleanup.policy", None),
                    ("throttled", None),
                    ("retention.ms", Some("6")),
                ]),
            ),
            (
                replacement(RESOURCE_TOPIC, "t", &[]),
                keys(&[
                    ("cleanup.policy", None),
                    ("retention.ms", None),
                    ("throttled", None),
                ]),
            ),
            // Keys that cannot change dynamically are not touched.
            (
                replacement(RESOURCE_BROKER, "", &[("log.retention.ms", Some("6"))]),
                keys(&[("log.cleanup.policy", None), ("log.retention.ms", Some("6"))]),
            ),
            (
                replacement(RESOURCE_TOPIC, "t", &[("retention.ms", None)]),
                Err(ErrorCode::InvalidRequest),
            ),
            (
                replacement(RESOURCE_TOPIC, "t", &[("retention.ms", Some("bad"))]),
                Err(ErrorCode::InvalidConfig),
            ),
            (
                replacement(RESOURCE_BROKER_LOGGER, "7", &[]),
                Err(ErrorCode::InvalidRequest),
            ),
        ];
        for (edit, expected) in table {
            assert_eq!(decided(std::slice::from_ref(&edit)), [expected], "{edit:?}");
        }
    }

    #[test]
    fn brokers_loggers_and_the_rest() {
        use ErrorCode::{InvalidConfig, InvalidRequest};
        let table = [
            (
                incremental(RESOURCE_BROKER, "", &[("log.retention.ms", SET, Some("6"))]),
                keys(&[("log.retention.ms", Some("6"))]),
            ),
            (
                incremental(
                    RESOURCE_BROKER,
                    "7",
                    &[("log.cleanup.policy", APPEND, Some("compact"))],
                ),
                keys(&[("log.cleanup.policy", Some("delete,compact"))]),
            ),
            (incremental(RESOURCE_BROKER, "8", &[]), Err(InvalidRequest)),
            (incremental(RESOURCE_BROKER, "seven", &[]), Err(InvalidRequest)),
            (incremental(RESOURCE_BROKER, "07", &[]), Err(InvalidRequest)),
            (
                incremental(RESOURCE_BROKER, "7", &[("log.retention.ms", SET, Some("bad"))]),
                Err(InvalidRequest),
            ),
            (incremental(RESOURCE_BROKER_LOGGER, "7", &[]), keys(&[])),
            (
                incremental(RESOURCE_BROKER_LOGGER, "7", &[("root", SET, Some("DEBUG"))]),
                Err(InvalidConfig),
            ),
            (incremental(RESOURCE_BROKER_LOGGER, "8", &[]), Err(InvalidRequest)),
            (incremental(RESOURCE_BROKER_LOGGER, "", &[]), Err(InvalidRequest)),
            (
                incremental(RESOURCE_CLIENT_METRICS, "m", &[]),
                Err(InvalidRequest),
            ),
            (incremental(RESOURCE_GROUP, "g", &[]), Err(InvalidRequest)),
            (incremental(0, "x", &[]), Err(InvalidRequest)),
            (incremental(99, "x", &[]), Err(InvalidRequest)),
        ];
        for (edit, expected) in table {
            assert_eq!(decided(std::slice::from_ref(&edit)), [expected], "{edit:?}");
        }
    }

    #[test]
    fn a_resource_appears_once() {
        let set = [("retention.ms", SET, Some("6"))];
        let verdicts = decided(&[
            incremental(RESOURCE_TOPIC, "t", &set),
            incremental(RESOURCE_BROKER, "", &[]),
            incremental(RESOURCE_TOPIC, "t", &set),
        ]);
        assert_eq!(
            verdicts,
            [
                Err(ErrorCode::InvalidRequest),
                Ok(vec![]),
                Err(ErrorCode::InvalidRequest)
            ]
        );
    }

    #[test]
    fn values_stay_short_enough_for_every_version() {
        let max = "v".repeat(CONFIG_VALUE_BYTES_MAX);
        let too_long = "v".repeat(CONFIG_VALUE_BYTES_MAX + 1);
        let set = |value| incremental(RESOURCE_TOPIC, "t", &[("throttled", SET, Some(value))]);
        let append = |value| incremental(RESOURCE_TOPIC, "t", &[("throttled", APPEND, Some(value))]);
        assert!(decided(&[set(&max)])[0].is_ok());
        assert_eq!(decided(&[set(&too_long)]), [Err(ErrorCode::InvalidConfig)]);
        assert_eq!(decided(&[append(&max)]), [Err(ErrorCode::InvalidConfig)]);
    }
}
