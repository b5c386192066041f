//! DeleteTopics (20), versions 1-6.
//!
//! Topics are named, or (version 6) given by id; all of a request are one change of the manifest. A topic is
//! gone when the answer comes; its bytes are reclaimed later. Answers come in the order of the request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use alluvium_log::TopicId;
use alluvium_log::manifest::{Change, Topic};
use kafka_wire::delete_topics_request::DeleteTopicState;
use kafka_wire::delete_topics_response::DeletableTopicResult;
use kafka_wire::{DeleteTopicsRequest, DeleteTopicsResponse};
use kafka_wire_core::{StrBytes, Uuid};

use crate::admin_change::{Decision, Outcome, Refusal, carry_out, patience};
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::topics::wire_id;

/// First version that knows TOPIC_DELETION_DISABLED.
const FIRST_VERSION_WITH_DISABLED_ERROR: i16 = 3;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let patience = patience(request.timeout_ms);
    let plans = if broker.config.settings.delete_topic_enable {
        decide(request, &broker.log.manifest().topics)
    } else {
        refuse_all(request, ctx.api_version)
    };
    let decisions = plans.iter().map(|plan| plan.decision.clone()).collect();
    let outcomes = carry_out(&broker.log, ctx, decisions, false, patience).await;
    respond(plans, outcomes)
}

/// One topic of the request, each once.
struct Plan {
    name: Option<StrBytes>,
    id: Uuid,
    /// The client gave the id, so an unknown topic is an unknown id.
    by_id: bool,
    decision: Decision,
}

/// The topics of a request in one form, whatever the version that it came in.
fn asked(request: DeleteTopicsRequest) -> Vec<DeleteTopicState> {
    let named = request.topic_names.into_iter().map(|name| {
        let mut topic = DeleteTopicState::default();
        topic.name = Some(name);
        topic
    });
    named.chain(request.topics).collect()
}

fn refuse_all(request: DeleteTopicsRequest, version: i16) -> Vec<Plan> {
    let code = if version < FIRST_VERSION_WITH_DISABLED_ERROR {
        ErrorCode::InvalidRequest
    } else {
        ErrorCode::TopicDeletionDisabled
    };
    asked(request)
        .into_iter()
        .map(|topic| Plan {
            by_id: topic.name.is_none(),
            name: topic.name,
            id: topic.topic_id,
            decision: Err(Refusal::new(code, "Topic deletion is disabled.")),
        })
        .collect()
}

fn decide(request: DeleteTopicsRequest, topics: &BTreeMap<String, Topic>) -> Vec<Plan> {
    let asked = asked(request);
    let names_by_id: HashMap<TopicId, &str> = topics
        .iter()
        .map(|(name, topic)| (topic.id, name.as_str()))
        .collect();
    let mut name_mentions: HashMap<StrBytes, u32> = HashMap::new();
    let mut id_mentions: HashMap<TopicId, u32> = HashMap::new();
    for topic in &asked {
        match &topic.name {
            Some(name) if topic.topic_id.is_zero() => *name_mentions.entry(name.clone()).or_default() += 1,
            None if !topic.topic_id.is_zero() => *id_mentions.entry(log_id(topic.topic_id)).or_default() += 1,
            _ => {}
        }
    }
    let given_ids = id_mentions.clone();
    let mut plans = Vec::with_capacity(asked.len());
    for DeleteTopicState { name, topic_id, .. } in asked {
        let invalid = |message: &str| Err(Refusal::new(ErrorCode::InvalidRequest, message));
        // Taking out the entry at the first mention answers a repeated topic once.
        let plan = match (name, topic_id.is_zero()) {
            (Some(name), true) => match (name_mentions.remove(&name), topics.get(name.as_str())) {
                (None, _) => continue,
                (Some(2..), _) => plan_name(name, topic_id, invalid("Duplicate topic name.")),
                (_, None) => plan_name(
                    name,
                    topic_id,
                    Err(Refusal::new(
                        ErrorCode::UnknownTopicOrPartition,
                        "This server does not host this topic.",
                    )),
                ),
                (_, Some(topic)) if given_ids.contains_key(&topic.id) => plan_name(
                    name,
                    wire_id(&topic.id),
                    invalid("The provided topic name maps to an ID that was already supplied."),
                ),
                (_, Some(topic)) => plan_name(
                    name,
                    wire_id(&topic.id),
                    Ok(Some(Change::DeleteTopic { id: topic.id })),
                ),
            },
            (None, false) => {
                let id = log_id(topic_id);
                match (id_mentions.remove(&id), names_by_id.get(&id)) {
                    (None, _) => continue,
                    (Some(2..), _) => plan_id(None, topic_id, invalid("Duplicate topic id.")),
                    (_, None) => plan_id(
                        None,
                        topic_id,
                        Err(Refusal::new(
                            ErrorCode::UnknownTopicId,
                            "This server does not host this topic ID.",
                        )),
                    ),
                    (_, Some(name)) => plan_id(Some(name), topic_id, Ok(Some(Change::DeleteTopic { id }))),
                }
            }
            (None, true) => plan_id(
                None,
                topic_id,
                invalid("Neither topic name nor id were specified."),
            ),
            (Some(name), false) => plan_name(
                name,
                topic_id,
                invalid("You may not specify both topic name and topic id."),
            ),
        };
        plans.push(plan);
    }
    plans
}

fn plan_name(name: StrBytes, id: Uuid, decision: Decision) -> Plan {
    Plan {
        name: Some(name),
        id,
        by_id: false,
        decision,
    }
}

fn plan_id(name: Option<&&str>, id: Uuid, decision: Decision) -> Plan {
    Plan {
        name: name.map(|name| StrBytes::from(*name)),
        id,
        by_id: true,
        decision,
    }
}

fn log_id(id: Uuid) -> TopicId {
    TopicId::from_bytes(id.to_bytes())
}

fn respond(plans: Vec<Plan>, outcomes: Vec<Outcome>) -> DeleteTopicsResponse {
    let mut response = DeleteTopicsResponse::default();
    for (plan, outcome) in plans.into_iter().zip(outcomes) {
        let mut result = DeletableTopicResult::default();
        result.name = plan.name;
        result.topic_id = plan.id;
        if let Err(mut refusal) = outcome {
            if plan.by_id && refusal.code == ErrorCode::UnknownTopicOrPartition {
                refusal.code = ErrorCode::UnknownTopicId;
            }
            result.error_code = refusal.code.code();
            result.error_message = refusal.wire_message();
        }
        response.responses.push(result);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};

    const GONE: u128 = 9;

    fn existing() -> BTreeMap<String, Topic> {
        [("a".to_owned(), topic(1, 1)), ("b".to_owned(), topic(2, 1))].into()
    }

    fn by_names(names: &[&str]) -> DeleteTopicsRequest {
        let mut request = DeleteTopicsRequest::default();
        request.topic_names = names.iter().map(|name| StrBytes::from(*name)).collect();
        request
    }

    /// (name, id), either absent.
    fn by_states(states: &[(Option<&str>, u128)]) -> DeleteTopicsRequest {
        let mut request = DeleteTopicsRequest::default();
        for (name, id) in states {
            let mut state = DeleteTopicState::default();
            state.name = name.map(StrBytes::from);
            state.topic_id = wire_id(&TopicId::from_u128(*id));
            request.topics.push(state);
        }
        request
    }

    fn codes(request: DeleteTopicsRequest) -> Vec<Option<ErrorCode>> {
        decide(request, &existing())
            .iter()
            .map(|p| p.decision.as_ref().err().map(|r| r.code))
            .collect()
    }

    #[test]
    fn topics_are_found_by_name_and_by_id() {
        use ErrorCode::{InvalidRequest, UnknownTopicId, UnknownTopicOrPartition};
        let table = [
            (
                by_names(&["a", "nope"]),
                vec![None, Some(UnknownTopicOrPartition)],
            ),
            (by_names(&["a", "b", "a"]), vec![Some(InvalidRequest), None]),
            (by_names(&[]), vec![]),
            (
                by_states(&[(None, 2), (None, GONE)]),
                vec![None, Some(UnknownTopicId)],
            ),
            (
                by_states(&[(None, 2), (None, 2), (None, 2)]),
                vec![Some(InvalidRequest)],
            ),
            (by_states(&[(Some("a"), 1)]), vec![Some(InvalidRequest)]),
            (
                by_states(&[(None, 0), (None, 0)]),
                vec![Some(InvalidRequest), Some(InvalidRequest)],
            ),
            (by_states(&[(Some("a"), 0), (None, 2)]), vec![None, None]),
            (
                by_states(&[(Some("a"), 0), (None, 1)]),
                vec![Some(InvalidRequest), None],
            ),
        ];
        for (request, expected) in table {
            assert_eq!(codes(request.clone()), expected, "{request:?}");
        }
    }

    #[test]
    fn the_change_names_the_id_so_that_a_recreated_topic_survives() {
        let plans = decide(by_names(&["b"]), &existing());
        assert!(
            matches!(plans[0].decision, Ok(Some(Change::DeleteTopic { id })) if id == TopicId::from_u128(2))
        );
    }

    #[test]
    fn a_topic_that_vanished_meanwhile_is_unknown_in_the_clients_terms() {
        let request = by_states(&[(Some("a"), 0), (None, 2)]);
        let plans = decide(request, &existing());
        let lost = Refusal::new(ErrorCode::UnknownTopicOrPartition, "unknown topic");
        let response = respond(plans, vec![Err(lost.clone()), Err(lost)]);
        let codes: Vec<_> = response.responses.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [3, 100]);
    }

    #[test]
    fn deletion_can_be_disabled() {
        for (version, code) in [(1, 42), (2, 42), (3, 73), (6, 73)] {
            let plans = refuse_all(by_names(&["a"]), version);
            let outcomes = plans.iter().map(|p| p.decision.clone().map(|_| None)).collect();
            assert_eq!(
                respond(plans, outcomes).responses[0].error_code,
                code,
                "version {version}"
            );
        }
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(1..=6, |version| {
            let request = if version < 6 {
                by_names(&["a", "nope", "b", "b"])
            } else {
                by_states(&[(Some("a"), 0), (None, 2), (None, GONE), (None, 0), (Some("b"), 1)])
            };
            let plans = decide(request, &existing());
            let outcomes = plans.iter().map(|p| p.decision.clone().map(|_| None)).collect();
            respond(plans, outcomes)
        });
    }
}
