//! DescribeProducers (61), version 0.
//!
//! The idempotent producers that the leader of a partition remembers. A partition that a request repeats is
//! answered once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use alluvium_log::TopicId;
use alluvium_log::manifest::Topic;
use alluvium_log::partition::ActiveProducer;
use kafka_wire::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_wire::{DescribeProducersRequest, DescribeProducersResponse};

use crate::admin_change::Refusal;
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::topics::check_name;

/// No coordinator has written a marker for the producer.
const NO_COORDINATOR_EPOCH: i32 = -1;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let manifest = broker.log.manifest();
    respond(request, &manifest.topics, &|topic, index| {
        broker
            .log
            .partition(topic, index)
            .map(|partition| partition.producers())
    })
}

/// `producers` answers `None` for a partition that is not led here.
fn respond(
    request: DescribeProducersRequest,
    topics: &BTreeMap<String, Topic>,
    producers: &dyn Fn(&TopicId, i32) -> Option<Vec<ActiveProducer>>,
) -> DescribeProducersResponse {
    let mut response = DescribeProducersResponse::default();
    let mut seen = HashSet::new();
    for asked in request.topics {
        let topic =
            check_name(&asked.name).and_then(|()| topics.get(asked.name.as_str()).ok_or_else(unknown));
        let mut result = TopicResponse::default();
        for index in asked.partition_indexes {
            if !seen.insert((asked.name.clone(), index)) {
                continue;
            }
            let active = topic.clone().and_then(|topic| {
                if !u32::try_from(index).is_ok_and(|index| index < topic.partitions) {
                    return Err(unknown());
                }
                producers(&topic.id, index).ok_or_else(|| Refusal::new(ErrorCode::NotLeaderOrFollower, ""))
            });
            let mut partition = PartitionResponse::default();
            partition.partition_index = index;
            partition.error_message = None;
            match active {
                Ok(active) => partition.active_producers = active.iter().map(state).collect(),
                Err(refusal) => {
                    partition.error_code = refusal.code.code();
                    partition.error_message = refusal.wire_message();
                }
            }
            result.partitions.push(partition);
        }
        result.name = asked.name;
        response.topics.push(result);
    }
    response
}

fn unknown() -> Refusal {
    Refusal::new(
        ErrorCode::UnknownTopicOrPartition,
        "This server does not host this topic-partition.",
    )
}

fn state(producer: &ActiveProducer) -> ProducerState {
    let mut state = ProducerState::default();
    state.producer_id = producer.producer_id;
    state.producer_epoch = i32::from(producer.producer_epoch);
    state.last_sequence = producer.last_sequence;
    state.last_timestamp = producer.last_timestamp;
    state.coordinator_epoch = NO_COORDINATOR_EPOCH;
    state.current_txn_start_offset = producer.current_txn_start_offset;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::describe_producers_request::TopicRequest;

    fn described(asked: &[(&str, &[i32])]) -> DescribeProducersResponse {
        let mut request = DescribeProducersRequest::default();
        for (name, partitions) in asked {
            let mut topic = TopicRequest::default();
            topic.name = (*name).into();
            topic.partition_indexes = partitions.to_vec();
            request.topics.push(topic);
        }
        let topics = [("t".to_owned(), topic(1, 2))].into();
        let producer = ActiveProducer {
            producer_id: 4_294_967_297,
            producer_epoch: 3,
            last_sequence: 41,
            last_timestamp: 1_700_000_000_000,
            current_txn_start_offset: -1,
        };
        respond(request, &topics, &|_, index| (index == 0).then(|| vec![producer]))
    }

    #[test]
    fn partitions_are_answered_one_by_one() {
        let response = described(&[("t", &[0, 1, 2, -1, 0]), ("nope", &[0]), ("a/b", &[0])]);
        let codes: Vec<Vec<i16>> = response
            .topics
            .iter()
            .map(|t| t.partitions.iter().map(|p| p.error_code).collect())
            .collect();
        assert_eq!(codes, [vec![0, 6, 3, 3], vec![3], vec![17]]);
        let producer = &response.topics[0].partitions[0].active_producers[0];
        assert_eq!(
            (
                producer.producer_id,
                producer.producer_epoch,
                producer.last_sequence,
                producer.coordinator_epoch
            ),
            (4_294_967_297, 3, 41, -1)
        );
        assert_eq!(response.topics[0].partitions[0].error_message, None);
    }

    #[test]
    fn the_version_can_carry_the_response() {
        assert_encodes(0..=0, |_| described(&[("t", &[0, 1]), ("nope", &[0])]));
    }
}
