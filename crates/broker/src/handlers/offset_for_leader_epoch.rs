//! OffsetForLeaderEpoch 2-4 (KIP-320): where an epoch ended, so that a client can tell whether its position
//! is still part of the log.

use std::sync::Arc;

use kafka_wire::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_wire::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_wire::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::broker::{Broker, RequestContext};
use crate::errors::{ErrorCode, check_leader_epoch};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let manifest = broker.log.manifest();
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let mut result = OffsetForLeaderTopicResult::default();
        let known = manifest.topics.get(topic.topic.as_str());
        for wanted in &topic.partitions {
            let found = known
                .ok_or(ErrorCode::UnknownTopicOrPartition)
                .and_then(|topic| {
                    let led = broker.led_partition(&manifest, topic, wanted.partition);
                    led.map_err(|misplaced| misplaced.error)
                })
                .and_then(|partition| {
                    if !broker.log.leased() {
                        return Err(ErrorCode::NotLeaderOrFollower);
                    }
                    check_leader_epoch(wanted.current_leader_epoch, partition.watermarks().leader_epoch)?;
                    Ok(partition.end_offset_for_epoch(wanted.leader_epoch))
                });
            result.partitions.push(answer(wanted, found));
            if let Err(error) = found {
                broker.metrics.request_error("OffsetForLeaderEpoch", error.code());
            }
        }
        result.topic = topic.topic;
        response.topics.push(result);
    }
    response
}

fn answer(wanted: &OffsetForLeaderPartition, found: Result<(i32, i64), ErrorCode>) -> EpochEndOffset {
    let mut answer = EpochEndOffset::default();
    answer.partition = wanted.partition;
    match found {
        Ok((epoch, end_offset)) => {
            answer.leader_epoch = epoch;
            answer.end_offset = end_offset;
        }
        Err(error) => {
            answer.error_code = error.code();
            answer.leader_epoch = -1;
            answer.end_offset = -1;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_no_epoch_and_no_offset() {
        let mut wanted = OffsetForLeaderPartition::default();
        wanted.partition = 3;
        let failed = answer(&wanted, Err(ErrorCode::FencedLeaderEpoch));
        assert_eq!(
            (
                failed.partition,
                failed.error_code,
                failed.leader_epoch,
                failed.end_offset
            ),
            (3, 74, -1, -1)
        );
        let found = answer(&wanted, Ok((4, 100)));
        assert_eq!(
            (found.error_code, found.leader_epoch, found.end_offset),
            (0, 4, 100)
        );
    }
}
