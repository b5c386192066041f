//! ElectLeaders (43), versions 0-2.
//!
//! A partition has one replica, its leader, and brokers take over from each other by themselves: there is nothing to
//! elect where a leader is up. Where it is not, another broker is about to lead the partition; until then the answer
//! is that the preferred leader, or any eligible one, is not available, and the client may ask again. Who asks for
//! all partitions hears, as in Kafka, only of those without a leader.

use std::sync::Arc;

use alluvium_log::manifest::{Manifest, Topic};
use kafka_wire::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_wire::{ElectLeadersRequest, ElectLeadersResponse};
use kafka_wire_core::StrBytes;

use crate::admin_change::Refusal;
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;

/// First version that chooses the kind of election and has an error for the whole request.
const FIRST_VERSION_WITH_KIND: i16 = 1;

/// `ElectionType` of Kafka (KIP-460).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Election {
    Preferred,
    Unclean,
}

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    respond(ctx.api_version, request, &broker.log.manifest())
}

fn respond(version: i16, request: ElectLeadersRequest, manifest: &Manifest) -> ElectLeadersResponse {
    let mut response = ElectLeadersResponse::default();
    let election = match request.election_type {
        _ if version < FIRST_VERSION_WITH_KIND => Election::Preferred,
        0 => Election::Preferred,
        1 => Election::Unclean,
        _ => {
            response.error_code = ErrorCode::InvalidRequest.code();
            return response;
        }
    };
    response.replica_election_results = match request.topic_partitions {
        Some(topics) => topics
            .into_iter()
            .map(|asked| {
                let topic = manifest.topics.get(asked.topic.as_str());
                let outcome = |index| (index, outcome(manifest, election, &asked.topic, topic, index));
                let outcomes = asked.partitions.iter().copied().map(outcome).collect();
                result(asked.topic.clone(), outcomes)
            })
            .collect(),
        None => all(manifest, election),
    };
    response
}

/// The partitions whose leader could not be elected.
fn all(manifest: &Manifest, election: Election) -> Vec<ReplicaElectionResult> {
    let of_topic = |(name, topic): (&String, &Topic)| {
        let outcomes = (0..i32::try_from(topic.partitions).unwrap_or(i32::MAX))
            .map(|index| (index, outcome(manifest, election, name, Some(topic), index)))
            .filter(|(_, refusal)| refusal.code != ErrorCode::ElectionNotNeeded)
            .collect::<Vec<_>>();
        (!outcomes.is_empty()).then(|| result(StrBytes::from(name.as_str()), outcomes))
    };
    manifest.topics.iter().filter_map(of_topic).collect()
}

fn outcome(
    manifest: &Manifest,
    election: Election,
    name: &str,
    topic: Option<&Topic>,
    index: i32,
) -> Refusal {
    let unknown = |what: String| Refusal::new(ErrorCode::UnknownTopicOrPartition, what);
    let Some(topic) = topic else {
        return unknown(format!("There is no topic {name}."));
    };
    if u32::try_from(index).is_ok_and(|index| index < topic.partitions) {
        let leader = manifest.leader(&topic.id, index);
        let code = match election {
            _ if leader.is_some_and(|leader| manifest.is_live(leader.incarnation)) => {
                ErrorCode::ElectionNotNeeded
            }
            Election::Preferred => ErrorCode::PreferredLeaderNotAvailable,
            Election::Unclean => ErrorCode::EligibleLeadersNotAvailable,
        };
        return Refusal::new(code, "");
    }
    unknown(format!("Topic {name} has no partition {index}."))
}

fn result(topic: StrBytes, outcomes: Vec<(i32, Refusal)>) -> ReplicaElectionResult {
    let mut result = ReplicaElectionResult::default();
    result.topic = topic;
    for (index, refusal) in outcomes {
        let mut partition = PartitionResult::default();
        partition.partition_id = index;
        partition.error_code = refusal.code.code();
        partition.error_message = refusal.wire_message();
        result.partition_result.push(partition);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::elect_leaders_request::TopicPartitions;

    /// Topics a (2 partitions) and b (1). `led` has one broker that leads all, else nobody does.
    fn manifest(led: bool) -> Manifest {
        let id = uuid::Uuid::from_u128(1);
        let mut manifest = Manifest::new(id, id, 8);
        if led {
            let owner = manifest.register(4, None, Default::default());
            manifest.take_over(owner, &[]).unwrap();
        }
        manifest.topics = [("a".to_owned(), topic(1, 2)), ("b".to_owned(), topic(2, 1))].into();
        manifest
    }

    fn asked(election: i8, topics: Option<&[(&str, &[i32])]>) -> ElectLeadersRequest {
        let mut request = ElectLeadersRequest::default();
        request.election_type = election;
        request.topic_partitions = topics.map(|topics| {
            let asked = topics.iter().map(|(name, partitions)| {
                let mut asked = TopicPartitions::default();
                asked.topic = StrBytes::from(*name);
                asked.partitions = partitions.to_vec();
                asked
            });
            asked.collect()
        });
        request
    }

    fn codes(response: &ElectLeadersResponse) -> Vec<(&str, i32, i16)> {
        let of_topic = |result: &ReplicaElectionResult| {
            let partitions = result.partition_result.iter();
            let codes: Vec<_> = partitions.map(|p| (p.partition_id, p.error_code)).collect();
            codes
        };
        let results = response.replica_election_results.iter();
        results
            .flat_map(|result| {
                of_topic(result)
                    .into_iter()
                    .map(|(p, code)| (result.topic.as_str(), p, code))
            })
            .collect()
    }

    #[test]
    fn there_is_nothing_to_elect_where_a_leader_is_up() {
        let named: &[(&str, &[i32])] = &[("a", &[1, 2, -1]), ("nope", &[0]), ("b", &[0])];
        for election in [0, 1] {
            let response = respond(2, asked(election, Some(named)), &manifest(true));
            let expected = [
                ("a", 1, 84),
                ("a", 2, 3),
                ("a", -1, 3),
                ("nope", 0, 3),
                ("b", 0, 84),
            ];
            assert_eq!((response.error_code, codes(&response)), (0, expected.to_vec()));
            for all in [None, Some(&[][..])] {
                let response = respond(2, asked(election, all), &manifest(true));
                assert_eq!((response.error_code, codes(&response)), (0, vec![]));
            }
        }
    }

    #[test]
    fn partitions_without_a_leader_are_told() {
        for (election, code) in [(0, 80), (1, 83)] {
            let response = respond(2, asked(election, None), &manifest(false));
            assert_eq!(codes(&response), [("a", 0, code), ("a", 1, code), ("b", 0, code)]);
        }
        // Version 0 knows one kind only.
        assert_eq!(
            codes(&respond(0, asked(1, None), &manifest(false)))[0],
            ("a", 0, 80)
        );
    }

    #[test]
    fn other_kinds_of_election_are_refused() {
        for kind in [-1, 2, i8::MAX] {
            let response = respond(1, asked(kind, None), &manifest(false));
            assert_eq!((response.error_code, codes(&response)), (42, vec![]));
        }
    }

    #[test]
    fn every_version_can_carry_the_response() {
        for led in [true, false] {
            assert_encodes(0..=2, |version| {
                let kind = i8::from(version > 0);
                respond(
                    version,
                    asked(kind, Some(&[("a", &[0, 7]), ("nope", &[0])])),
                    &manifest(led),
                )
            });
            assert_encodes(0..=2, |version| respond(version, asked(0, None), &manifest(led)));
        }
        assert_encodes(1..=2, |version| respond(version, asked(9, None), &manifest(true)));
    }
}
