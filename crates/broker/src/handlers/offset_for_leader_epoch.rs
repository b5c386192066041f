//! OffsetForLeaderEpoch 2-4 (KIP-320): where an epoch ended, so that a client can tell whether its position
//! is still part of the log.

use std::sync::Arc;

use alluvium_log::Partition;
use alluvium_log::manifest::{Manifest, Topic};
use kafka_wire::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_wire::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_wire::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::broker::{Broker, RequestContext};
use crate::errors::{ErrorCode, check_leader_epoch};

/// Where an epoch ended, as far as this broker knows.
struct Found {
    partition: Arc<Partition>,
    /// Epoch and offset.
    end: (i32, i64),
    /// A successor might say something else.
    in_doubt: bool,
}

impl Found {
    /// What may be said once it is known whether this broker still was a leader after the question came.
    fn told(self, proof: Result<(), ErrorCode>) -> Result<(i32, i64), ErrorCode> {
        if self.in_doubt {
            proof?;
            if self.partition.is_gone() {
                return Err(ErrorCode::NotLeaderOrFollower);
            }
        }
        Ok(self.end)
    }
}

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let manifest = broker.log.manifest();
    let looked = request.topics.iter().map(|topic| {
        let known = manifest.topics.get(topic.topic.as_str());
        let wanted = topic.partitions.iter();
        wanted
            .map(|wanted| look(broker, &manifest, known, wanted))
            .collect()
    });
    let looked: Vec<Vec<Result<Found, ErrorCode>>> = looked.collect();
    // An end before its position makes a client go back, or give up: it must not come from a leader that no longer is one.
    let proof = if looked.iter().flatten().flatten().any(|found| found.in_doubt) {
        let confirmed = broker.log.confirm_leadership().await;
        confirmed.map_err(|error| ErrorCode::from(&error))
    } else {
        Ok(())
    };
    let mut response = OffsetForLeaderEpochResponse::default();
    for (topic, looked) in request.topics.into_iter().zip(looked) {
        let mut result = OffsetForLeaderTopicResult::default();
        for (wanted, found) in topic.partitions.iter().zip(looked) {
            let told = found.and_then(|found| found.told(proof));
            result.partitions.push(answer(wanted, told));
            if let Err(error) = told {
                broker.metrics.request_error("OffsetForLeaderEpoch", error.code());
            }
        }
        result.topic = topic.topic;
        response.topics.push(result);
    }
    response
}

fn look(
    broker: &Broker,
    manifest: &Manifest,
    topic: Option<&Topic>,
    wanted: &OffsetForLeaderPartition,
) -> Result<Found, ErrorCode> {
    let topic = topic.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let led = broker.led_partition(manifest, topic, wanted.partition);
    let partition = led.map_err(|misplaced| misplaced.error)?;
    if !broker.log.leased() {
        return Err(ErrorCode::NotLeaderOrFollower);
    }
    // Before the epoch: an append in between can only put in doubt what is certain.
    let watermarks = partition.watermarks();
    check_leader_epoch(wanted.current_leader_epoch, watermarks.leader_epoch)?;
    let (epoch, end_offset) = partition.end_offset_for_epoch(wanted.leader_epoch);
    Ok(Found {
        // Where the next epoch has begun, this one ended for good.
        in_doubt: epoch < 0 || end_offset >= watermarks.high_watermark,
        end: (epoch, end_offset),
        partition,
    })
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
