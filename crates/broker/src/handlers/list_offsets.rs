//! ListOffsets 1-11: offsets by time and the special times of Kafka.
//!
//! -1 latest (the last stable offset for read_committed), -2 earliest, -3 the record with the largest
//! timestamp, -4 earliest local (all of the log is as local as the rest, so: earliest), -5 latest tiered and
//! -6 earliest not yet tiered (never found: clients see one log, not two tiers). Not found is offset -1 and
//! timestamp -1 without an error.

use std::collections::HashSet;
use std::sync::Arc;

use alluvium_log::manifest::Manifest;
use alluvium_log::{Isolation, OffsetLookup};
use futures::stream::{self, StreamExt};
use kafka_wire::list_offsets_request::ListOffsetsPartition;
use kafka_wire::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_wire::{ListOffsetsRequest, ListOffsetsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::{ErrorCode, check_leader_epoch};

/// Partitions that are looked up at once: a time may have to be searched for in the store.
const CONCURRENT_LOOKUPS: usize = 16;
/// First version with leader epochs in the answer.
const LEADER_EPOCH: i16 = 4;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let manifest = broker.log.manifest();
    let isolation = match request.isolation_level {
        1 => Isolation::ReadCommitted,
        _ => Isolation::ReadUncommitted,
    };
    let is_follower = request.replica_id >= 0;
    let duplicates = duplicates(&request);
    let mut response = ListOffsetsResponse::default();
    for topic in request.topics {
        let name = &topic.name;
        let lookups = topic.partitions.into_iter().map(|wanted| {
            let manifest = &manifest;
            let is_duplicate = duplicates.contains(&(name.clone(), wanted.partition_index));
            async move {
                if is_follower || is_duplicate {
                    return answer(ctx.api_version, &wanted, Err(ErrorCode::InvalidRequest));
                }
                let found = lookup(broker, manifest, ctx.api_version, name, &wanted, isolation).await;
                answer(ctx.api_version, &wanted, found)
            }
        });
        let mut answered = ListOffsetsTopicResponse::default();
        answered.partitions = stream::iter(lookups).buffered(CONCURRENT_LOOKUPS).collect().await;
        for partition in &answered.partitions {
            broker.metrics.request_error("ListOffsets", partition.error_code);
        }
        answered.name = topic.name;
        response.topics.push(answered);
    }
    response
}

/// Partitions that the request names more than once.
fn duplicates(request: &ListOffsetsRequest) -> HashSet<(StrBytes, i32)> {
    let mut seen = HashSet::new();
    let all = request.topics.iter().flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(|partition| (topic.name.clone(), partition.partition_index))
    });
    all.filter(|key| !seen.insert(key.clone())).collect()
}

/// What an answer says where something was found: timestamp, offset, leader epoch.
type Found = Option<(i64, i64, i32)>;

async fn lookup(
    broker: &Broker,
    manifest: &Manifest,
    version: i16,
    name: &str,
    wanted: &ListOffsetsPartition,
    isolation: Isolation,
) -> Result<Found, ErrorCode> {
    let topic = manifest
        .topics
        .get(name)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = broker
        .led_partition(manifest, topic, wanted.partition_index)
        .map_err(|misplaced| misplaced.error)?;
    check_leader_epoch(wanted.current_leader_epoch, partition.watermarks().leader_epoch)?;
    let Some(what) = meaning(version, wanted.timestamp, isolation)? else {
        return Ok(None);
    };
    let found = broker
        .log
        .lookup_offset(&partition, what)
        .await
        .map_err(|error| {
            broker
                .failed_reads
                .tell(name, wanted.partition_index, None, &error);
            ErrorCode::from(&error)
        })?;
    Ok(found.map(|found| {
        let timestamp = match what {
            // Kafka gives these offsets without a time.
            OffsetLookup::Latest(_) | OffsetLookup::Earliest => -1,
            OffsetLookup::MaxTimestamp | OffsetLookup::Timestamp(_) => found.timestamp,
        };
        (timestamp, found.offset, found.leader_epoch)
    }))
}

/// What a timestamp asks for; `None` is what this log never has.
fn meaning(version: i16, timestamp: i64, isolation: Isolation) -> Result<Option<OffsetLookup>, ErrorCode> {
    match timestamp {
        0.. => Ok(Some(OffsetLookup::Timestamp(timestamp))),
        -1 => Ok(Some(OffsetLookup::Latest(isolation))),
        -2 => Ok(Some(OffsetLookup::Earliest)),
        -3 if version >= 7 => Ok(Some(OffsetLookup::MaxTimestamp)),
        -4 if version >= 8 => Ok(Some(OffsetLookup::Earliest)),
        -5 if version >= 9 => Ok(None),
        -6 if version >= 11 => Ok(None),
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}

fn answer(
    version: i16,
    wanted: &ListOffsetsPartition,
    found: Result<Found, ErrorCode>,
) -> ListOffsetsPartitionResponse {
    let mut answer = ListOffsetsPartitionResponse::default();
    answer.partition_index = wanted.partition_index;
    answer.timestamp = -1;
    answer.offset = -1;
    answer.leader_epoch = -1;
    match found {
        Ok(Some((timestamp, offset, leader_epoch))) => {
            answer.timestamp = timestamp;
            answer.offset = offset;
            if version >= LEADER_EPOCH {
                answer.leader_epoch = leader_epoch;
            }
        }
        Ok(None) => {}
        Err(error) => answer.error_code = error.code(),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::list_offsets_request::ListOffsetsTopic;
    use kafka_wire_core::{ApiVersion, KafkaEncode};

    #[test]
    fn special_times_by_version() {
        let committed = Isolation::ReadCommitted;
        let of = |version, timestamp| meaning(version, timestamp, committed);
        assert_eq!(of(1, 0), Ok(Some(OffsetLookup::Timestamp(0))));
        assert_eq!(of(1, -1), Ok(Some(OffsetLookup::Latest(committed))));
        assert_eq!(of(1, -2), Ok(Some(OffsetLookup::Earliest)));
        for (timestamp, first, expected) in [
            (-3, 7, Some(OffsetLookup::MaxTimestamp)),
            (-4, 8, Some(OffsetLookup::Earliest)),
            (-5, 9, None),
            (-6, 11, None),
        ] {
            assert_eq!(of(first, timestamp), Ok(expected));
            assert_eq!(
                of(first - 1, timestamp),
                Err(ErrorCode::UnsupportedVersion),
                "{timestamp}"
            );
        }
        assert_eq!(of(11, -7), Err(ErrorCode::UnsupportedVersion));
        assert_eq!(of(11, i64::MIN), Err(ErrorCode::UnsupportedVersion));
    }

    #[test]
    fn answers_encode_at_every_version() {
        let wanted = ListOffsetsPartition::default();
        for version in 1..=11 {
            for found in [Ok(Some((5, 6, 7))), Ok(None), Err(ErrorCode::NotLeaderOrFollower)] {
                let mut topic = ListOffsetsTopicResponse::default();
                topic.name = StrBytes::from("t");
                topic.partitions = vec![answer(version, &wanted, found)];
                let mut response = ListOffsetsResponse::default();
                response.topics = vec![topic];
                response.encode_to_bytes(ApiVersion::new(version)).unwrap();
            }
        }
        let missing = answer(11, &wanted, Ok(None));
        assert_eq!(
            (missing.error_code, missing.timestamp, missing.offset),
            (0, -1, -1)
        );
    }

    #[test]
    fn partitions_named_twice_are_found() {
        let mut topic = ListOffsetsTopic::default();
        topic.name = StrBytes::from("t");
        for index in [0, 1, 0] {
            let mut partition = ListOffsetsPartition::default();
            partition.partition_index = index;
            topic.partitions.push(partition);
        }
        let mut request = ListOffsetsRequest::default();
        request.topics = vec![topic];
        assert_eq!(duplicates(&request), HashSet::from([(StrBytes::from("t"), 0)]));
    }
}
