//! CreateTopics (19), versions 2-7.
//!
//! All topics of a request are one change of the manifest. Placement is by slots, so a manual assignment is
//! checked for consistency and then gives only the partition count and the replication factor; any factor
//! from 1 up is accepted and reported back, because the bucket is what replicates. Left out: topic creation
//! policies and mutation quotas.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use alluvium_log::Incarnation;
use alluvium_log::manifest::{Change, Manifest, StreamEntry, Topic};
use kafka_wire::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use kafka_wire::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_wire::{CreateTopicsRequest, CreateTopicsResponse};
use kafka_wire_core::StrBytes;

use crate::admin_change::{CONFIG_VALUE_BYTES_MAX, Decision, Outcome, Refusal, carry_out, patience};
use crate::broker::{Broker, RequestContext};
use crate::config::DescribedConfig;
use crate::errors::ErrorCode;
use crate::topics::{CLUSTER_METADATA_TOPIC, PARTITIONS_MAX, TakenNames, wire_id};

/// First version whose response has partition count, replication factor and configs.
const FIRST_VERSION_WITH_CONFIGS: i16 = 5;
/// First version whose response has the topic id.
const FIRST_VERSION_WITH_ID: i16 = 7;
/// `DescribedConfig::source` of a config that was set for the topic.
const SOURCE_TOPIC: i8 = 1;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let manifest = broker.log.manifest();
    let plans = {
        let check_config = |key: &str, value: &str| broker.config.check_topic_config(key, value);
        let complete =
            |configs: &mut BTreeMap<String, String>| broker.config.fix_at_creation(&manifest, configs);
        let rules = Rules {
            topics: &manifest.topics,
            live_nodes: live_nodes(&manifest.streams),
            default_partitions: broker.config.settings.num_partitions,
            default_replication_factor: broker.config.settings.default_replication_factor,
            check_config: &check_config,
            complete: &complete,
        };
        decide(&request, &rules)
    };
    let decisions = plans.iter().map(|plan| plan.decision.clone()).collect();
    let outcomes = carry_out(
        &broker.log,
        ctx,
        decisions,
        request.validate_only,
        patience(request.timeout_ms),
    )
    .await;
    let describe = |manifest: Option<&Manifest>, name: &str| {
        broker
            .config
            .describe_topic(manifest.unwrap_or(&broker.log.manifest()), name)
    };
    respond(ctx.api_version, plans, outcomes, &describe)
}

/// Ids of the brokers that are up.
pub(crate) fn live_nodes(streams: &BTreeMap<Incarnation, StreamEntry>) -> BTreeSet<i32> {
    streams
        .values()
        .filter(|stream| stream.is_live())
        .map(|stream| stream.node_id)
        .collect()
}

/// What a decision depends on besides the request.
struct Rules<'a> {
    topics: &'a BTreeMap<String, Topic>,
    live_nodes: BTreeSet<i32>,
    default_partitions: u32,
    default_replication_factor: i16,
    check_config: &'a (dyn Fn(&str, &str) -> Result<(), String> + Sync),
    /// Adds what a broker setting fixes for a topic at its creation.
    complete: &'a (dyn Fn(&mut BTreeMap<String, String>) + Sync),
}

/// One topic of the request, each name once.
struct Plan {
    name: StrBytes,
    decision: Decision,
}

fn decide(request: &CreateTopicsRequest, rules: &Rules<'_>) -> Vec<Plan> {
    let mut mentions: HashMap<&str, u32> = HashMap::new();
    for topic in &request.topics {
        *mentions.entry(topic.name.as_str()).or_default() += 1;
    }
    let mut taken = TakenNames::of(rules.topics);
    let mut partitions_left = PARTITIONS_MAX;
    let mut plans = Vec::with_capacity(mentions.len());
    for topic in &request.topics {
        // The entry is taken out at the first mention, so that a repeated name is answered once.
        let decision = match mentions.remove(topic.name.as_str()) {
            None => continue,
            Some(1) => decide_topic(topic, rules, &taken, partitions_left),
            Some(_) => Err(Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name.")),
        };
        if let Ok(change) = &decision {
            taken.take(topic.name.as_str());
            if let Some(Change::CreateTopic { partitions, .. }) = change {
                partitions_left -= partitions;
            }
        }
        plans.push(Plan {
            name: topic.name.clone(),
            decision,
        });
    }
    plans
}

fn decide_topic(
    topic: &CreatableTopic,
    rules: &Rules<'_>,
    taken: &TakenNames<'_>,
    partitions_left: u32,
) -> Decision {
    let name = topic.name.as_str();
    if name == CLUSTER_METADATA_TOPIC {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Creation of internal topic {CLUSTER_METADATA_TOPIC} is prohibited."),
        ));
    }
    taken.check(name)?;
    let configs = decide_configs(topic, rules)?;
    let (partitions, replication_factor) = if topic.assignments.is_empty() {
        decide_counts(topic, rules)?
    } else {
        decide_assignments(topic, &rules.live_nodes)?
    };
    if partitions > PARTITIONS_MAX {
        return Err(Refusal::new(
            ErrorCode::InvalidPartitions,
            format!("A topic can have at most {PARTITIONS_MAX} partitions, not {partitions}."),
        ));
    }
    if partitions > partitions_left {
        return Err(Refusal::new(
            ErrorCode::PolicyViolation,
            format!("One request can create at most {PARTITIONS_MAX} partitions."),
        ));
    }
    Ok(Some(Change::CreateTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        configs,
    }))
}

fn decide_configs(topic: &CreatableTopic, rules: &Rules<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let invalid = |message: String| Refusal::new(ErrorCode::InvalidConfig, message);
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let name = config.name.as_str();
        let Some(value) = &config.value else {
            return Err(invalid(format!(
                "Null value not supported for topic configs: {name}"
            )));
        };
        if value.len() > CONFIG_VALUE_BYTES_MAX {
            return Err(invalid(format!(
                "The value of {name} is longer than {CONFIG_VALUE_BYTES_MAX} bytes."
            )));
        }
        (rules.check_config)(name, value).map_err(invalid)?;
        // As in Kafka, the last of several values counts.
        configs.insert(name.to_owned(), value.as_str().to_owned());
    }
    (rules.complete)(&mut configs);
    Ok(configs)
}

fn decide_counts(topic: &CreatableTopic, rules: &Rules<'_>) -> Result<(u32, i16), Refusal> {
    let replication_factor = match topic.replication_factor {
        -1 => rules.default_replication_factor.max(1),
        factor if factor >= 1 => factor,
        _ => {
            return Err(Refusal::new(
                ErrorCode::InvalidReplicationFactor,
                "Replication factor must be larger than 0, or -1 to use the default value.",
            ));
        }
    };
    let partitions = match u32::try_from(topic.num_partitions) {
        Ok(count) if count > 0 => count,
        Err(_) if topic.num_partitions == -1 => rules.default_partitions.max(1),
        _ => {
            return Err(Refusal::new(
                ErrorCode::InvalidPartitions,
                "Number of partitions was set to an invalid non-positive value.",
            ));
        }
    };
    Ok((partitions, replication_factor))
}

fn decide_assignments(topic: &CreatableTopic, live_nodes: &BTreeSet<i32>) -> Result<(u32, i16), Refusal> {
    for (field, is_default) in [
        ("replication factor", topic.replication_factor == -1),
        ("numPartitions", topic.num_partitions == -1),
    ] {
        if !is_default {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                format!("A manual partition assignment was specified, but {field} was not set to -1."),
            ));
        }
    }
    let invalid = |message: String| Refusal::new(ErrorCode::InvalidReplicaAssignment, message);
    let mut seen = BTreeSet::new();
    for CreatableReplicaAssignment { partition_index, .. } in &topic.assignments {
        if !seen.insert(*partition_index) {
            return Err(invalid(format!(
                "Found multiple manual partition assignments for partition {partition_index}"
            )));
        }
    }
    let factor = check_assignment(
        topic.assignments.iter().map(|a| a.broker_ids.as_slice()),
        None,
        live_nodes,
    )?;
    // The indexes differ, so the sequence has no gap when it starts at 0 and ends at its length.
    let count = u32::try_from(seen.len()).unwrap_or(u32::MAX);
    let last = seen.last().and_then(|last| u32::try_from(*last).ok());
    if seen.first() != Some(&0) || last != Some(count - 1) {
        return Err(invalid(
            "partitions should be a consecutive 0-based integer sequence".to_owned(),
        ));
    }
    Ok((count, factor))
}

/// Checks the replica lists of a manual assignment against each other, `factor` and the brokers that are up;
/// answers the replication factor that they have in common.
pub(crate) fn check_assignment<'a>(
    replica_lists: impl Iterator<Item = &'a [i32]>,
    factor: Option<i16>,
    live_nodes: &BTreeSet<i32>,
) -> Result<i16, Refusal> {
    let invalid = |message: String| {
        Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            format!("The manual partition assignment includes {message}."),
        )
    };
    let mut factor = factor;
    for replicas in replica_lists {
        if replicas.is_empty() {
            return Err(invalid("an empty replica list".to_owned()));
        }
        let mut distinct = BTreeSet::new();
        for broker in replicas {
            if !live_nodes.contains(broker) {
                return Err(invalid(format!(
                    "broker {broker}, but no such broker is registered"
                )));
            }
            if !distinct.insert(broker) {
                return Err(invalid(format!("the broker {broker} more than once")));
            }
        }
        let count = i16::try_from(replicas.len()).unwrap_or(i16::MAX);
        if let Some(expected) = factor
            && expected != count
        {
            return Err(invalid(format!(
                "a partition with {count} replica(s), but other partitions have {expected}"
            )));
        }
        factor = Some(count);
    }
    factor.ok_or_else(|| invalid("no partition".to_owned()))
}

/// `describe` lists all configs of a topic, by the given manifest or else by the current one.
fn respond(
    version: i16,
    plans: Vec<Plan>,
    outcomes: Vec<Outcome>,
    describe: &dyn Fn(Option<&Manifest>, &str) -> Vec<DescribedConfig>,
) -> CreateTopicsResponse {
    let mut response = CreateTopicsResponse::default();
    for (plan, outcome) in plans.into_iter().zip(outcomes) {
        let mut result = CreatableTopicResult::default();
        result.error_message = None;
        match (&outcome, &plan.decision) {
            (Err(refusal), _) => {
                result.error_code = refusal.code.code();
                result.error_message = refusal.wire_message();
            }
            (
                Ok(manifest),
                Ok(Some(Change::CreateTopic {
                    partitions,
                    replication_factor,
                    configs,
                    ..
                })),
            ) => {
                let manifest = manifest.as_deref();
                if version >= FIRST_VERSION_WITH_ID {
                    let topic = manifest.and_then(|m| m.topics.get(plan.name.as_str()));
                    result.topic_id = topic.map(|topic| wire_id(&topic.id)).unwrap_or_default();
                }
                if version >= FIRST_VERSION_WITH_CONFIGS {
                    result.num_partitions = i32::try_from(*partitions).unwrap_or(i32::MAX);
                    result.replication_factor = *replication_factor;
                    result.configs = Some(created_configs(describe(manifest, &plan.name), configs));
                }
            }
            // A plan without a change is a refusal, and a refusal comes back as one.
            (Ok(_), _) => result.error_code = ErrorCode::UnknownServerError.code(),
        }
        result.name = plan.name;
        response.topics.push(result);
    }
    response
}

/// All configs of a topic with those on top that its creation sets: where the request only asks for
/// validation, no manifest has them yet.
fn created_configs(rows: Vec<DescribedConfig>, set: &BTreeMap<String, String>) -> Vec<CreatableTopicConfigs> {
    rows.into_iter()
        .map(|row| {
            let own = set.get(row.name);
            let mut config = CreatableTopicConfigs::default();
            config.name = StrBytes::from(row.name);
            config.value = own
                .or(row.value.as_ref())
                .filter(|_| !row.sensitive)
                .map(|v| StrBytes::from(v.as_str()));
            config.read_only = row.read_only;
            config.config_source = if own.is_some() { SOURCE_TOPIC } else { row.source };
            config.is_sensitive = row.sensitive;
            config
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, stream, topic};
    use kafka_wire::create_topics_request::CreatableTopicConfig;

    fn check(key: &str, value: &str) -> Result<(), String> {
        match (key, value.parse::<i64>()) {
            ("retention.ms", Ok(_)) => Ok(()),
            ("retention.ms", Err(_)) => Err(format!("Invalid value {value} for configuration retention.ms")),
            _ => Err(format!("Unknown topic config name: {key}")),
        }
    }

    fn request(topics: Vec<CreatableTopic>) -> CreateTopicsRequest {
        let mut request = CreateTopicsRequest::default();
        request.topics = topics;
        request
    }

    fn new_topic(name: &str, partitions: i32, factor: i16) -> CreatableTopic {
        let mut topic = CreatableTopic::default();
        topic.name = name.into();
        topic.num_partitions = partitions;
        topic.replication_factor = factor;
        topic
    }

    fn with_config(mut topic: CreatableTopic, key: &str, value: Option<&str>) -> CreatableTopic {
        let mut config = CreatableTopicConfig::default();
        config.name = key.into();
        config.value = value.map(StrBytes::from);
        topic.configs.push(config);
        topic
    }

    fn assigned(name: &str, assignment: &[(i32, &[i32])]) -> CreatableTopic {
        let mut topic = new_topic(name, -1, -1);
        for (index, brokers) in assignment {
            let mut entry = CreatableReplicaAssignment::default();
            entry.partition_index = *index;
            entry.broker_ids = brokers.to_vec();
            topic.assignments.push(entry);
        }
        topic
    }

    fn existing() -> BTreeMap<String, Topic> {
        [("old".to_owned(), topic(1, 1)), ("a.b".to_owned(), topic(2, 1))].into()
    }

    fn plans(topics: Vec<CreatableTopic>) -> Vec<Plan> {
        let existing = existing();
        let rules = Rules {
            topics: &existing,
            live_nodes: [1, 2].into(),
            default_partitions: 3,
            default_replication_factor: 2,
            check_config: &check,
            complete: &|configs| {
                configs.entry("fixed".into()).or_insert_with(|| "preset".into());
            },
        };
        decide(&request(topics), &rules)
    }

    fn verdict(topic: CreatableTopic) -> Result<(u32, i16), ErrorCode> {
        let plans = plans(vec![topic]);
        assert_eq!(plans.len(), 1);
        match &plans[0].decision {
            Ok(Some(Change::CreateTopic {
                partitions,
                replication_factor,
                ..
            })) => Ok((*partitions, *replication_factor)),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(refusal) => Err(refusal.code),
        }
    }

    #[test]
    fn each_topic_gets_kafkas_verdict() {
        let max = PARTITIONS_MAX as i32;
        let too_long = "v".repeat(CONFIG_VALUE_BYTES_MAX + 1);
        use ErrorCode::{
            InvalidConfig, InvalidPartitions, InvalidReplicationFactor, InvalidRequest,
            InvalidTopicException, TopicAlreadyExists,
        };
        let table = [
            (new_topic("t", 6, 3), Ok((6, 3))),
            (new_topic("t", -1, -1), Ok((3, 2))),
            (new_topic("t", 1, i16::MAX), Ok((1, i16::MAX))),
            (new_topic("t", max, 1), Ok((PARTITIONS_MAX, 1))),
            (new_topic("__consumer_offsets", 50, 3), Ok((50, 3))),
            (new_topic("t", max + 1, 1), Err(InvalidPartitions)),
            (new_topic("t", i32::MAX, 1), Err(InvalidPartitions)),
            (new_topic("t", 0, 1), Err(InvalidPartitions)),
            (new_topic("t", -2, 1), Err(InvalidPartitions)),
            (new_topic("t", i32::MIN, 1), Err(InvalidPartitions)),
            (new_topic("t", 1, 0), Err(InvalidReplicationFactor)),
            (new_topic("t", 1, -2), Err(InvalidReplicationFactor)),
            (new_topic("", 1, 1), Err(InvalidTopicException)),
            (new_topic("..", 1, 1), Err(InvalidTopicException)),
            (new_topic("no spaces", 1, 1), Err(InvalidTopicException)),
            (new_topic("a_b", 1, 1), Err(InvalidTopicException)),
            (new_topic("old", 1, 1), Err(TopicAlreadyExists)),
            (new_topic("old", 0, 0), Err(TopicAlreadyExists)),
            (new_topic("__cluster_metadata", 1, 1), Err(InvalidRequest)),
            (
                with_config(new_topic("t", 1, 1), "retention.ms", Some("5")),
                Ok((1, 1)),
            ),
            (
                with_config(new_topic("t", 1, 1), "retention.ms", Some("soon")),
                Err(InvalidConfig),
            ),
            (
                with_config(new_topic("t", 1, 1), "retention.ms", None),
                Err(InvalidConfig),
            ),
            (
                with_config(new_topic("t", 1, 1), "retention.ms", Some(&too_long)),
                Err(InvalidConfig),
            ),
            (
                with_config(new_topic("t", 1, 1), "no.such.key", Some("5")),
                Err(InvalidConfig),
            ),
        ];
        for (topic, expected) in table {
            assert_eq!(verdict(topic.clone()), expected, "{topic:?}");
        }
    }

    #[test]
    fn manual_assignments_must_be_consistent() {
        use ErrorCode::{InvalidReplicaAssignment, InvalidRequest};
        let mut with_counts = assigned("t", &[(0, &[1])]);
        with_counts.num_partitions = 1;
        let mut with_factor = assigned("t", &[(0, &[1])]);
        with_factor.replication_factor = 1;
        let table = [
            (assigned("t", &[(0, &[1, 2]), (1, &[2, 1])]), Ok((2, 2))),
            (assigned("t", &[(1, &[1]), (0, &[2])]), Ok((2, 1))),
            (
                assigned("t", &[(0, &[1]), (0, &[2])]),
                Err(InvalidReplicaAssignment),
            ),
            (
                assigned("t", &[(0, &[1]), (2, &[2])]),
                Err(InvalidReplicaAssignment),
            ),
            (
                assigned("t", &[(1, &[1]), (2, &[2])]),
                Err(InvalidReplicaAssignment),
            ),
            (
                assigned("t", &[(-1, &[1]), (0, &[2])]),
                Err(InvalidReplicaAssignment),
            ),
            (assigned("t", &[(0, &[])]), Err(InvalidReplicaAssignment)),
            (assigned("t", &[(0, &[1, 1])]), Err(InvalidReplicaAssignment)),
            (assigned("t", &[(0, &[3])]), Err(InvalidReplicaAssignment)),
            (
                assigned("t", &[(0, &[1, 2]), (1, &[1])]),
                Err(InvalidReplicaAssignment),
            ),
            (with_counts, Err(InvalidRequest)),
            (with_factor, Err(InvalidRequest)),
        ];
        for (topic, expected) in table {
            assert_eq!(verdict(topic.clone()), expected, "{topic:?}");
        }
    }

    #[test]
    fn a_repeated_name_is_refused_once_and_neighbours_are_refused() {
        let plans = plans(vec![
            new_topic("twice", 1, 1),
            new_topic("x.y", 1, 1),
            new_topic("twice", 2, 1),
            new_topic("x_y", 1, 1),
        ]);
        let seen: Vec<_> = plans
            .iter()
            .map(|p| (p.name.as_str(), p.decision.as_ref().err().map(|r| r.code)))
            .collect();
        assert_eq!(
            seen,
            [
                ("twice", Some(ErrorCode::InvalidRequest)),
                ("x.y", None),
                ("x_y", Some(ErrorCode::InvalidTopicException)),
            ]
        );
    }

    #[test]
    fn one_request_creates_a_bounded_number_of_partitions() {
        let half = PARTITIONS_MAX as i32 / 2;
        let codes: Vec<_> = plans(vec![
            new_topic("a", half, 1),
            new_topic("b", half + 1, 1),
            new_topic("c", half, 1),
            new_topic("d", 1, 1),
        ])
        .iter()
        .map(|p| p.decision.as_ref().err().map(|r| r.code))
        .collect();
        assert_eq!(
            codes,
            [
                None,
                Some(ErrorCode::PolicyViolation),
                None,
                Some(ErrorCode::PolicyViolation)
            ]
        );
    }

    fn rows() -> Vec<DescribedConfig> {
        let row = |name, value: &str, source, sensitive| DescribedConfig {
            name,
            value: Some(value.to_owned()),
            read_only: false,
            sensitive,
            source,
            kind: 5,
            documentation: "",
            synonyms: Vec::new(),
        };
        vec![
            row("retention.bytes", "-1", 5, false),
            row("retention.ms", "604800000", 4, false),
            row("secret", "hush", 4, true),
        ]
    }

    fn mixed_response(version: i16) -> CreateTopicsResponse {
        let plans = plans(vec![
            with_config(new_topic("new", 6, 3), "retention.ms", Some("5")),
            new_topic("old", 1, 1),
            new_topic(&"x".repeat(32_000), 1, 1),
        ]);
        let outcomes = plans.iter().map(|p| p.decision.clone().map(|_| None)).collect();
        respond(version, plans, outcomes, &|_, _| rows())
    }

    #[test]
    fn the_response_shows_what_was_or_would_be_created() {
        let response = mixed_response(7);
        let created = &response.topics[0];
        assert_eq!((created.error_code, created.error_message.clone()), (0, None));
        assert_eq!((created.num_partitions, created.replication_factor), (6, 3));
        let configs: Vec<_> = created
            .configs
            .iter()
            .flatten()
            .map(|c| (c.name.as_str(), c.value.as_deref(), c.config_source))
            .collect();
        assert_eq!(
            configs,
            [
                ("retention.bytes", Some("-1"), 5),
                ("retention.ms", Some("5"), SOURCE_TOPIC),
                ("secret", None, 4)
            ]
        );
        assert_eq!(response.topics[1].error_code, 36);
        assert_eq!(response.topics[1].num_partitions, -1);
        assert_eq!(response.topics[2].error_code, 17);
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(2..=7, mixed_response);
    }

    #[test]
    fn only_live_streams_count_as_brokers() {
        let streams = [
            (1, stream(1, false, &[])),
            (2, stream(1, true, &[])),
            (3, stream(2, false, &[])),
        ];
        assert_eq!(live_nodes(&streams.into()), [1].into());
    }
}
