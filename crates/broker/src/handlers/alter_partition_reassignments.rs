//! AlterPartitionReassignments (45), versions 0-1.
//!
//! Which broker leads a partition is decided by the cluster, so that nothing is ever being reassigned by request. A
//! target that is the state of things, the leader as the one replica, is accepted and changes nothing; any other is
//! refused. There is never a reassignment to cancel.

use std::collections::BTreeSet;
use std::sync::Arc;

use alluvium_log::manifest::{Manifest, Topic};
use kafka_wire::alter_partition_reassignments_request::ReassignablePartition;
use kafka_wire::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_wire::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};

use crate::admin_change::Refusal;
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::handlers::create_topics::live_nodes;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    respond(request, &broker.log.manifest())
}

fn respond(
    request: AlterPartitionReassignmentsRequest,
    manifest: &Manifest,
) -> AlterPartitionReassignmentsResponse {
    let mut response = AlterPartitionReassignmentsResponse::default();
    response.error_message = None;
    response.allow_replication_factor_change = request.allow_replication_factor_change;
    let live = live_nodes(&manifest.streams);
    for asked in request.topics {
        let mut result = ReassignableTopicResponse::default();
        let topic = manifest.topics.get(asked.name.as_str());
        for wanted in &asked.partitions {
            let decided = match topic {
                None => Err(unknown(format!("There is no topic {}.", asked.name))),
                Some(topic) => {
                    let resize = request.allow_replication_factor_change;
                    decide(manifest, &live, topic, wanted, resize)
                }
            };
            let mut partition = ReassignablePartitionResponse::default();
            partition.partition_index = wanted.partition_index;
            partition.error_message = None;
            if let Err(refusal) = decided {
                partition.error_code = refusal.code.code();
                partition.error_message = refusal.wire_message();
            }
            result.partitions.push(partition);
        }
        result.name = asked.name;
        response.responses.push(result);
    }
    response
}

fn unknown(what: String) -> Refusal {
    Refusal::new(ErrorCode::UnknownTopicOrPartition, what)
}

fn decide(
    manifest: &Manifest,
    live: &BTreeSet<i32>,
    topic: &Topic,
    wanted: &ReassignablePartition,
    resize: bool,
) -> Result<(), Refusal> {
    let index = wanted.partition_index;
    if u32::try_from(index).is_ok_and(|index| index >= topic.partitions) || index < 0 {
        return Err(unknown(format!("The topic has no partition {index}.")));
    }
    let Some(target) = &wanted.replicas else {
        let code = ErrorCode::NoReassignmentInProgress;
        return Err(Refusal::new(
            code,
            "No reassignment of this partition is under way.",
        ));
    };
    let invalid = |what: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, what));
    if target.is_empty() {
        return invalid("The list of replicas is empty.".to_owned());
    }
    let distinct: BTreeSet<i32> = target.iter().copied().collect();
    if distinct.len() < target.len() {
        return invalid("The list of replicas names a broker more than once.".to_owned());
    }
    if let Some(missing) = distinct.difference(live).next() {
        return invalid(format!("Broker {missing} is not among the live brokers."));
    }
    if target.len() > 1 && !resize {
        let message = "A partition has one replica, its leader; the bucket is what replicates.";
        return Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message));
    }
    let leader = manifest.leader(&topic.id, index).map(|leader| leader.node_id);
    if leader.is_some_and(|leader| target[..] == [leader]) {
        return Ok(());
    }
    invalid(
        "Placement is automatic: the cluster itself decides which broker leads a partition, and no request moves it."
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::alter_partition_reassignments_request::ReassignableTopic;
    use kafka_wire_core::StrBytes;

    /// Broker 4 leads all of topic a, which has two partitions; broker 5 is up too.
    fn manifest() -> Manifest {
        let id = uuid::Uuid::from_u128(1);
        let mut manifest = Manifest::new(id, id, 8);
        let owner = manifest.register(4, None, Default::default());
        manifest.take_over(owner, &[]).unwrap();
        manifest.register(5, None, Default::default());
        manifest.topics = [("a".to_owned(), topic(1, 2))].into();
        manifest
    }

    fn asked(
        resize: bool,
        topic: &str,
        wanted: &[(i32, Option<&[i32]>)],
    ) -> AlterPartitionReassignmentsRequest {
        let mut request = AlterPartitionReassignmentsRequest::default();
        request.allow_replication_factor_change = resize;
        let mut asked = ReassignableTopic::default();
        asked.name = StrBytes::from(topic);
        for (index, replicas) in wanted {
            let mut partition = ReassignablePartition::default();
            partition.partition_index = *index;
            partition.replicas = replicas.map(<[i32]>::to_vec);
            asked.partitions.push(partition);
        }
        request.topics = vec![asked];
        request
    }

    fn codes(response: &AlterPartitionReassignmentsResponse) -> Vec<i16> {
        assert_eq!(response.error_code, 0);
        let topics = response.responses.iter();
        topics
            .flat_map(|topic| topic.partitions.iter().map(|p| p.error_code))
            .collect()
    }

    #[test]
    fn only_the_state_of_things_is_accepted() {
        let wanted: &[(i32, Option<&[i32]>)] = &[
            (0, Some(&[4])),
            (1, Some(&[5])),
            (1, Some(&[])),
            (1, Some(&[9])),
            (1, Some(&[4, 4])),
            (1, Some(&[4, 5])),
            (1, None),
            (2, Some(&[4])),
            (-1, None),
        ];
        let response = respond(asked(true, "a", wanted), &manifest());
        assert_eq!(codes(&response), [0, 39, 39, 39, 39, 39, 85, 3, 3]);
        assert!(response.allow_replication_factor_change);
        let moved = &response.responses[0].partitions[1];
        assert!(
            moved
                .error_message
                .as_ref()
                .unwrap()
                .contains("Placement is automatic")
        );
        let fixed = respond(asked(false, "a", wanted), &manifest());
        assert_eq!(codes(&fixed), [0, 39, 39, 39, 39, 38, 85, 3, 3]);
        assert_eq!(
            codes(&respond(asked(true, "nope", &wanted[..2]), &manifest())),
            [3, 3]
        );
    }

    #[test]
    fn a_partition_without_a_leader_has_no_state_to_ask_for() {
        let mut manifest = manifest();
        for run in &mut manifest.slots {
            run.owner = 0;
        }
        let response = respond(asked(true, "a", &[(0, Some(&[4])), (0, None)]), &manifest);
        assert_eq!(codes(&response), [39, 85]);
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(0..=1, |version| {
            let wanted: &[(i32, Option<&[i32]>)] = &[(0, Some(&[4])), (1, Some(&[5])), (1, None), (7, None)];
            let mut request = asked(true, "a", wanted);
            // What version 0 cannot say has its default.
            request.allow_replication_factor_change = version == 0;
            respond(request, &manifest())
        });
    }
}
