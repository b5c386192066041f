//! DescribeConfigs (32), versions 1-4.
//!
//! Topics, this broker, and the defaults of all brokers (the empty name, which shows what was set). Loggers,
//! groups and client metrics are valid resources that have no configs here, and are answered as Kafka answers
//! when nothing is set. A resource that a request repeats is answered once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use alluvium_log::manifest::Topic;
use kafka_wire::describe_configs_request::DescribeConfigsResource;
use kafka_wire::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_wire::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_wire_core::StrBytes;

use crate::admin_change::Refusal;
use crate::broker::{Broker, RequestContext};
use crate::config::DescribedConfig;
use crate::config_change::{
    RESOURCE_BROKER, RESOURCE_BROKER_LOGGER, RESOURCE_CLIENT_METRICS, RESOURCE_GROUP, RESOURCE_TOPIC,
    check_node,
};
use crate::errors::ErrorCode;
use crate::topics::check_name;

/// `DescribedConfig::source` of what was set for all brokers.
const SOURCE_DYNAMIC_DEFAULT_BROKER: i8 = 3;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let manifest = broker.log.manifest();
    respond(
        request,
        &Sources {
            topics: &manifest.topics,
            node_id: broker.log.node_id(),
            describe_topic: &|name| broker.config.describe_topic(&manifest, name),
            describe_broker: &|node| broker.config.describe_broker(&manifest, node),
        },
    )
}

/// Where the answers come from.
struct Sources<'a> {
    topics: &'a BTreeMap<String, Topic>,
    node_id: i32,
    describe_topic: &'a dyn Fn(&str) -> Vec<DescribedConfig>,
    describe_broker: &'a dyn Fn(Option<i32>) -> Vec<DescribedConfig>,
}

fn respond(request: DescribeConfigsRequest, sources: &Sources<'_>) -> DescribeConfigsResponse {
    let mut response = DescribeConfigsResponse::default();
    // As in Kafka, one resource of an unknown type fails the request.
    let unknown = request
        .resources
        .iter()
        .find(|resource| !is_known(resource.resource_type))
        .map(|resource| {
            Refusal::new(
                ErrorCode::InvalidRequest,
                format!(
                    "Unexpected resource type {} for resource {}",
                    resource.resource_type, resource.resource_name
                ),
            )
        });
    let mut seen = HashSet::new();
    for resource in request.resources {
        if !seen.insert((resource.resource_type, resource.resource_name.clone())) {
            continue;
        }
        let rows = match &unknown {
            Some(refusal) => Err(refusal.clone()),
            None => rows(&resource, sources),
        };
        let mut result = DescribeConfigsResult::default();
        result.error_message = None;
        match rows {
            Ok(rows) => {
                result.configs = rows
                    .into_iter()
                    .filter(|row| is_wanted(&resource, row.name))
                    .map(|row| entry(row, request.include_synonyms, request.include_documentation))
                    .collect();
            }
            Err(refusal) => {
                result.error_code = refusal.code.code();
                result.error_message = refusal.wire_message();
            }
        }
        result.resource_type = resource.resource_type;
        result.resource_name = resource.resource_name;
        response.results.push(result);
    }
    response
}

fn is_known(kind: i8) -> bool {
    matches!(
        kind,
        RESOURCE_TOPIC | RESOURCE_BROKER | RESOURCE_BROKER_LOGGER | RESOURCE_CLIENT_METRICS | RESOURCE_GROUP
    )
}

/// No keys, absent or empty, means all.
fn is_wanted(resource: &DescribeConfigsResource, name: &str) -> bool {
    match &resource.configuration_keys {
        Some(keys) if !keys.is_empty() => keys.iter().any(|key| key.as_str() == name),
        _ => true,
    }
}

fn rows(resource: &DescribeConfigsResource, sources: &Sources<'_>) -> Result<Vec<DescribedConfig>, Refusal> {
    let name = resource.resource_name.as_str();
    let not_empty = |what: &str| match name.is_empty() {
        true => Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("{what} must not be empty"),
        )),
        false => Ok(Vec::new()),
    };
    match resource.resource_type {
        RESOURCE_TOPIC => {
            check_name(name)?;
            if !sources.topics.contains_key(name) {
                return Err(Refusal::new(
                    ErrorCode::UnknownTopicOrPartition,
                    "This server does not host this topic.",
                ));
            }
            Ok((sources.describe_topic)(name))
        }
        RESOURCE_BROKER if name.is_empty() => {
            let mut rows = (sources.describe_broker)(None);
            rows.retain(|row| row.source == SOURCE_DYNAMIC_DEFAULT_BROKER);
            Ok(rows)
        }
        RESOURCE_BROKER => {
            check_node(name, sources.node_id)?;
            Ok((sources.describe_broker)(Some(sources.node_id)))
        }
        RESOURCE_BROKER_LOGGER => {
            not_empty("Broker id")?;
            check_node(name, sources.node_id)?;
            Ok(Vec::new())
        }
        RESOURCE_CLIENT_METRICS => not_empty("Client metrics subscription name"),
        _ => not_empty("Group name"),
    }
}

fn entry(row: DescribedConfig, synonyms: bool, documentation: bool) -> DescribeConfigsResourceResult {
    let shown = |value: Option<String>| value.filter(|_| !row.sensitive).map(StrBytes::from);
    let mut entry = DescribeConfigsResourceResult::default();
    entry.name = StrBytes::from(row.name);
    entry.value = shown(row.value);
    entry.read_only = row.read_only;
    entry.config_source = row.source;
    entry.is_sensitive = row.sensitive;
    entry.config_type = row.kind;
    entry.documentation = documentation.then(|| StrBytes::from(row.documentation));
    if synonyms {
        entry.synonyms = row
            .synonyms
            .into_iter()
            .map(|(name, value, source)| {
                let mut synonym = DescribeConfigsSynonym::default();
                synonym.name = StrBytes::from(name);
                synonym.value = shown(value);
                synonym.source = source;
                synonym
            })
            .collect();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};

    fn row(name: &'static str, value: &str, source: i8, sensitive: bool) -> DescribedConfig {
        DescribedConfig {
            name,
            value: Some(value.to_owned()),
            read_only: false,
            sensitive,
            source,
            kind: 5,
            documentation: "What it does.",
            synonyms: vec![(format!("log.{name}"), Some(value.to_owned()), source)],
        }
    }

    fn resource(kind: i8, name: &str, keys: Option<&[&str]>) -> DescribeConfigsResource {
        let mut resource = DescribeConfigsResource::default();
        resource.resource_type = kind;
        resource.resource_name = name.into();
        resource.configuration_keys = keys.map(|keys| keys.iter().map(|key| StrBytes::from(*key)).collect());
        resource
    }

    fn described(
        resources: Vec<DescribeConfigsResource>,
        synonyms: bool,
        docs: bool,
    ) -> DescribeConfigsResponse {
        let mut request = DescribeConfigsRequest::default();
        request.resources = resources;
        request.include_synonyms = synonyms;
        request.include_documentation = docs;
        let topics = [("t".to_owned(), topic(1, 1))].into();
        let sources = Sources {
            topics: &topics,
            node_id: 7,
            describe_topic: &|_| vec![row("retention.ms", "5", 1, false), row("secret", "hush", 1, true)],
            describe_broker: &|node| {
                let own = if node == Some(7) { 2 } else { 5 };
                vec![
                    row("log.retention.ms", "9", 3, false),
                    row("num.partitions", "1", own, false),
                ]
            },
        };
        respond(request, &sources)
    }

    /// Error code and names of what is described.
    fn names(resource: DescribeConfigsResource) -> (i16, Vec<String>) {
        let result = described(vec![resource], false, false).results.remove(0);
        assert_eq!(result.error_code == 0, result.error_message.is_none());
        (
            result.error_code,
            result.configs.into_iter().map(|c| c.name.into_string()).collect(),
        )
    }

    #[test]
    fn each_resource_is_answered_as_kafka_does() {
        let all = |names: &[&str]| (0, names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        let error = |code: i16| (code, Vec::new());
        let table = [
            (
                resource(RESOURCE_TOPIC, "t", None),
                all(&["retention.ms", "secret"]),
            ),
            (
                resource(RESOURCE_TOPIC, "t", Some(&[])),
                all(&["retention.ms", "secret"]),
            ),
            (
                resource(RESOURCE_TOPIC, "t", Some(&["retention.ms", "nope"])),
                all(&["retention.ms"]),
            ),
            (resource(RESOURCE_TOPIC, "nope", None), error(3)),
            (resource(RESOURCE_TOPIC, "a/b", None), error(17)),
            (resource(RESOURCE_TOPIC, "", None), error(17)),
            (
                resource(RESOURCE_BROKER, "7", None),
                all(&["log.retention.ms", "num.partitions"]),
            ),
            (resource(RESOURCE_BROKER, "", None), all(&["log.retention.ms"])),
            (resource(RESOURCE_BROKER, "8", None), error(42)),
            (resource(RESOURCE_BROKER, "x", None), error(42)),
            (resource(RESOURCE_BROKER_LOGGER, "7", None), all(&[])),
            (resource(RESOURCE_BROKER_LOGGER, "8", None), error(42)),
            (resource(RESOURCE_BROKER_LOGGER, "", None), error(42)),
            (resource(RESOURCE_CLIENT_METRICS, "m", None), all(&[])),
            (resource(RESOURCE_CLIENT_METRICS, "", None), error(42)),
            (resource(RESOURCE_GROUP, "g", None), all(&[])),
            (resource(RESOURCE_GROUP, "", None), error(42)),
            (resource(0, "x", None), error(42)),
            (resource(99, "x", None), error(42)),
        ];
        for (resource, expected) in table {
            assert_eq!(names(resource.clone()), expected, "{resource:?}");
        }
    }

    #[test]
    fn synonyms_and_documentation_come_when_asked_for_and_secrets_never() {
        let plain = described(vec![resource(RESOURCE_TOPIC, "t", None)], false, false)
            .results
            .remove(0);
        assert!(
            plain
                .configs
                .iter()
                .all(|c| c.synonyms.is_empty() && c.documentation.is_none())
        );
        let full = described(vec![resource(RESOURCE_TOPIC, "t", None)], true, true)
            .results
            .remove(0);
        let retention = &full.configs[0];
        assert_eq!(retention.value.as_deref(), Some("5"));
        assert_eq!(retention.documentation.as_deref(), Some("What it does."));
        assert_eq!(retention.synonyms[0].value.as_deref(), Some("5"));
        let secret = &full.configs[1];
        assert!(secret.is_sensitive && secret.value.is_none() && secret.synonyms[0].value.is_none());
    }

    #[test]
    fn a_repeated_resource_is_answered_once_and_an_unknown_type_fails_all() {
        let t = || resource(RESOURCE_TOPIC, "t", None);
        assert_eq!(described(vec![t(), t()], false, false).results.len(), 1);
        let failed = described(vec![t(), resource(1, "x", None)], false, false);
        assert_eq!(
            failed.results.iter().map(|r| r.error_code).collect::<Vec<_>>(),
            [42, 42]
        );
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(1..=4, |version| {
            let resources = vec![
                resource(RESOURCE_TOPIC, "t", None),
                resource(RESOURCE_TOPIC, &"x".repeat(32_000), None),
                resource(RESOURCE_BROKER, "7", None),
                resource(RESOURCE_BROKER, "8", None),
            ];
            described(resources, true, version >= 3)
        });
    }
}
