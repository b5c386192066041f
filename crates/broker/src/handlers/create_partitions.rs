//! CreatePartitions (37), versions 0-3.
//!
//! `count` is the new total. Manual assignments are checked for consistency and otherwise have no effect:
//! placement is by slots. Their length is not held against the topic's replication factor, because Metadata
//! shows one replica whatever the factor. Left out: mutation quotas.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use alluvium_log::manifest::{Change, Topic};
use kafka_wire::create_partitions_request::CreatePartitionsTopic;
use kafka_wire::create_partitions_response::CreatePartitionsTopicResult;
use kafka_wire::{CreatePartitionsRequest, CreatePartitionsResponse};
use kafka_wire_core::StrBytes;

use crate::admin_change::{Decision, Outcome, Refusal, carry_out, patience};
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::handlers::create_topics::{check_assignment, live_nodes};
use crate::topics::{PARTITIONS_MAX, is_internal};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let manifest = broker.log.manifest();
    let (names, decisions) = decide(&request, &manifest.topics, &live_nodes(&manifest.streams))
        .into_iter()
        .unzip();
    let outcomes = carry_out(
        &broker.log,
        ctx,
        decisions,
        request.validate_only,
        patience(request.timeout_ms),
    )
    .await;
    respond(names, outcomes)
}

/// One decision per topic of the request, each name once.
fn decide(
    request: &CreatePartitionsRequest,
    topics: &BTreeMap<String, Topic>,
    live_nodes: &BTreeSet<i32>,
) -> Vec<(StrBytes, Decision)> {
    let mut mentions: HashMap<&str, u32> = HashMap::new();
    for topic in &request.topics {
        *mentions.entry(topic.name.as_str()).or_default() += 1;
    }
    let mut partitions_left = PARTITIONS_MAX;
    let mut decisions = Vec::with_capacity(mentions.len());
    for topic in &request.topics {
        // The entry is taken out at the first mention, so that a repeated name is answered once.
        let decision = match (
            mentions.remove(topic.name.as_str()),
            topics.get(topic.name.as_str()),
        ) {
            (None, _) => continue,
            (Some(2..), _) => Err(Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name.")),
            // Groups are found by hash modulo the count: growing the topic would part them from their offsets.
            (_, Some(_)) if is_internal(topic.name.as_str()) => Err(Refusal::new(
                ErrorCode::InvalidPartitions,
                "The partitions of an internal topic cannot be changed.",
            )),
            (_, None) => Err(Refusal::new(
                ErrorCode::UnknownTopicOrPartition,
                "This server does not host this topic.",
            )),
            (_, Some(current)) => {
                match decide_topic(topic, current.partitions, live_nodes, partitions_left) {
                    Ok(count) => {
                        partitions_left -= count - current.partitions;
                        Ok(Some(Change::CreatePartitions {
                            name: topic.name.as_str().to_owned(),
                            count,
                        }))
                    }
                    Err(refusal) => Err(refusal),
                }
            }
        };
        decisions.push((topic.name.clone(), decision));
    }
    decisions
}

/// The new total of a topic that has `current` partitions.
fn decide_topic(
    topic: &CreatePartitionsTopic,
    current: u32,
    live_nodes: &BTreeSet<i32>,
    partitions_left: u32,
) -> Result<u32, Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    let count = match u32::try_from(topic.count) {
        Ok(count) if count == current => {
            return invalid(format!("Topic already has {current} partition(s)."));
        }
        Ok(count) if count > current => count,
        _ => {
            return invalid(format!(
                "The topic {} currently has {current} partition(s); {} would not be an increase.",
                topic.name, topic.count
            ));
        }
    };
    if count > PARTITIONS_MAX {
        return invalid(format!(
            "A topic can have at most {PARTITIONS_MAX} partitions, not {count}."
        ));
    }
    let additional = count - current;
    if let Some(assignments) = &topic.assignments {
        if u32::try_from(assignments.len()) != Ok(additional) {
            return Err(Refusal::new(
                ErrorCode::InvalidReplicaAssignment,
                format!(
                    "Attempted to add {additional} additional partition(s), but only {} assignment(s) were specified.",
                    assignments.len()
                ),
            ));
        }
        check_assignment(
            assignments.iter().map(|a| a.broker_ids.as_slice()),
            None,
            live_nodes,
        )?;
    }
    if additional > partitions_left {
        return Err(Refusal::new(
            ErrorCode::PolicyViolation,
            format!("One request can create at most {PARTITIONS_MAX} partitions."),
        ));
    }
    Ok(count)
}

fn respond(names: Vec<StrBytes>, outcomes: Vec<Outcome>) -> CreatePartitionsResponse {
    let mut response = CreatePartitionsResponse::default();
    for (name, outcome) in names.into_iter().zip(outcomes) {
        let mut result = CreatePartitionsTopicResult::default();
        result.name = name;
        if let Err(refusal) = outcome {
            result.error_code = refusal.code.code();
            result.error_message = refusal.wire_message();
        }
        response.results.push(result);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::create_partitions_request::CreatePartitionsAssignment;

    fn more(name: &str, count: i32, assignments: Option<&[&[i32]]>) -> CreatePartitionsTopic {
        let mut topic = CreatePartitionsTopic::default();
        topic.name = name.into();
        topic.count = count;
        topic.assignments = assignments.map(|lists| {
            lists
                .iter()
                .map(|brokers| {
                    let mut assignment = CreatePartitionsAssignment::default();
                    assignment.broker_ids = brokers.to_vec();
                    assignment
                })
                .collect()
        });
        topic
    }

    fn decided(topics: Vec<CreatePartitionsTopic>) -> Vec<(StrBytes, Decision)> {
        let mut request = CreatePartitionsRequest::default();
        request.topics = topics;
        let existing = [("t".to_owned(), topic(1, 3)), ("u".to_owned(), topic(2, 1))].into();
        decide(&request, &existing, &[1, 2].into())
    }

    #[test]
    fn each_topic_gets_kafkas_verdict() {
        use ErrorCode::{InvalidPartitions, InvalidReplicaAssignment, UnknownTopicOrPartition};
        let max = PARTITIONS_MAX as i32;
        let table = [
            (more("t", 5, None), Ok(5)),
            (more("t", max, None), Ok(PARTITIONS_MAX)),
            (more("t", 5, Some(&[&[1], &[2]])), Ok(5)),
            (more("t", 5, Some(&[&[1, 2], &[2, 1]])), Ok(5)),
            (more("t", 3, None), Err(InvalidPartitions)),
            (more("t", 2, None), Err(InvalidPartitions)),
            (more("t", 0, None), Err(InvalidPartitions)),
            (more("t", -1, None), Err(InvalidPartitions)),
            (more("t", i32::MIN, None), Err(InvalidPartitions)),
            (more("t", i32::MAX, None), Err(InvalidPartitions)),
            (more("t", max + 1, None), Err(InvalidPartitions)),
            (more("t", 5, Some(&[])), Err(InvalidReplicaAssignment)),
            (more("t", 5, Some(&[&[1]])), Err(InvalidReplicaAssignment)),
            (more("t", 5, Some(&[&[1], &[]])), Err(InvalidReplicaAssignment)),
            (more("t", 5, Some(&[&[1], &[7]])), Err(InvalidReplicaAssignment)),
            (
                more("t", 5, Some(&[&[1, 1], &[1, 2]])),
                Err(InvalidReplicaAssignment),
            ),
            (
                more("t", 5, Some(&[&[1], &[1, 2]])),
                Err(InvalidReplicaAssignment),
            ),
            (more("nope", 5, None), Err(UnknownTopicOrPartition)),
        ];
        for (topic, expected) in table {
            let decisions = decided(vec![topic.clone()]);
            let got = match &decisions[0].1 {
                Ok(Some(Change::CreatePartitions { name, count })) if *name == topic.name.as_str() => {
                    Ok(*count)
                }
                Ok(other) => panic!("unexpected {other:?}"),
                Err(refusal) => Err(refusal.code),
            };
            assert_eq!(got, expected, "{topic:?}");
        }
    }

    #[test]
    fn messages_are_kafkas() {
        let message = |topic| match decided(vec![topic]).remove(0).1 {
            Err(refusal) => refusal.message,
            Ok(change) => panic!("unexpected {change:?}"),
        };
        assert_eq!(message(more("t", 3, None)), "Topic already has 3 partition(s).");
        assert_eq!(
            message(more("t", 2, None)),
            "The topic t currently has 3 partition(s); 2 would not be an increase."
        );
    }

    #[test]
    fn a_repeated_topic_is_refused_once_and_a_request_is_bounded() {
        let max = PARTITIONS_MAX as i32;
        let codes = |topics| {
            decided(topics)
                .into_iter()
                .map(|(name, d)| (name.into_string(), d.err().map(|r| r.code)))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            codes(vec![more("t", 5, None), more("u", 2, None), more("t", 6, None)]),
            [
                ("t".to_owned(), Some(ErrorCode::InvalidRequest)),
                ("u".to_owned(), None)
            ]
        );
        assert_eq!(
            codes(vec![more("t", max, None), more("u", max, None)]),
            [
                ("t".to_owned(), None),
                ("u".to_owned(), Some(ErrorCode::PolicyViolation))
            ]
        );
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(0..=3, |_| {
            let (names, decisions): (Vec<_>, Vec<_>) = decided(vec![more("t", 5, None), more("u", 1, None)])
                .into_iter()
                .unzip();
            let response = respond(names, decisions.into_iter().map(|d| d.map(|_| None)).collect());
            assert_eq!(response.results[0].error_message, None);
            assert_eq!(response.results[1].error_code, 37);
            response
        });
    }
}
