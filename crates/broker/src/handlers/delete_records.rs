//! DeleteRecords (21), versions 0-2.
//!
//! Moves the log start of partitions that this broker leads; each move is an entry of the stream and is
//! answered after publication. Offset -1 means the high watermark. Records go from view at once, their bytes
//! are reclaimed later. As in Kafka the low watermark that is answered is the log start: there is one copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_log::manifest::Topic;
use alluvium_log::{AppendError, Partition};
use futures::StreamExt;
use kafka_wire::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_wire::{DeleteRecordsRequest, DeleteRecordsResponse};
use kafka_wire_core::StrBytes;

use crate::admin_change::patience;
use crate::admin_log;
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::topics::is_internal;

/// Answered instead of a low watermark when there is an error.
const NO_LOW_WATERMARK: i64 = -1;
/// The offset that asks for everything up to the high watermark.
const UP_TO_HIGH_WATERMARK: i64 = -1;
/// Log start moves under way at once; they share segments, so many at once cost few writes.
const MOVES_AT_ONCE: usize = 1_024;

/// Topic, partition, and the log start before and after.
type Moved = (StrBytes, i32, Result<(i64, i64), ErrorCode>);

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let deadline = tokio::time::Instant::now() + patience(request.timeout_ms);
    // An offset that is out of range, and a log start that is there already, are answered without a write: that must not
    // come from a leader that was succeeded by another one without noticing.
    let proven = broker.log.confirm_leadership().await.is_ok();
    let moves = futures::stream::iter(wanted(request)).map(|(name, partition, offset)| async move {
        let result = match target(broker, &name, partition, offset) {
            _ if !proven => Err(ErrorCode::NotLeaderOrFollower),
            Ok((partition, to)) => {
                let before = partition.watermarks().log_start_offset;
                match tokio::time::timeout_at(deadline, broker.log.advance_log_start(&partition, to)).await {
                    Ok(Ok(log_start)) => Ok((before, log_start)),
                    Ok(Err(error)) => Err(append_code(&error)),
                    // The entry may still be published: unknown, as for every timeout.
                    Err(_) => Err(ErrorCode::RequestTimedOut),
                }
            }
            Err(code) => Err(code),
        };
        (name, partition, result)
    });
    let moved: Vec<Moved> = moves.buffered(MOVES_AT_ONCE).collect().await;
    admin_log::tell(ctx, &told(&moved));
    let answers = moved.into_iter();
    respond(
        answers
            .map(|(name, partition, result)| (name, partition, result.map(|(_, log_start)| log_start)))
            .collect(),
    )
}

/// The log starts that were moved, in words.
fn told(moved: &[Moved]) -> Vec<String> {
    let of = |(name, partition, result): &Moved| match result {
        Ok((before, after)) if after > before => Some(format!(
            "deleted records of {}-{partition} below offset {after} (from {before})",
            name.as_str()
        )),
        _ => None,
    };
    moved.iter().filter_map(of).collect()
}

fn target(broker: &Broker, name: &str, index: i32, offset: i64) -> Result<(Arc<Partition>, i64), ErrorCode> {
    let manifest = broker.log.manifest();
    let topic = check_topic(name, manifest.topics.get(name), index)?;
    let partition = broker
        .log
        .partition(&topic.id, index)
        .ok_or(ErrorCode::NotLeaderOrFollower)?;
    let settings = broker.config.topic(&manifest, name);
    let only_compacted = settings.cleanup_compact && !settings.cleanup_delete;
    let to = check_offset(offset, partition.watermarks().high_watermark, only_compacted)?;
    Ok((partition, to))
}

/// The partitions asked for, grouped by topic; of an offset given twice the last one counts, as in Kafka.
fn wanted(request: DeleteRecordsRequest) -> Vec<(StrBytes, i32, i64)> {
    let mut offsets: BTreeMap<StrBytes, BTreeMap<i32, i64>> = BTreeMap::new();
    for topic in request.topics {
        let partitions = offsets.entry(topic.name).or_default();
        partitions.extend(topic.partitions.iter().map(|p| (p.partition_index, p.offset)));
    }
    offsets
        .into_iter()
        .flat_map(|(name, partitions)| {
            partitions
                .into_iter()
                .map(move |(p, offset)| (name.clone(), p, offset))
        })
        .collect()
}

fn check_topic<'a>(name: &str, topic: Option<&'a Topic>, index: i32) -> Result<&'a Topic, ErrorCode> {
    let topic = topic.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if !u32::try_from(index).is_ok_and(|index| index < topic.partitions) {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    if is_internal(name) {
        return Err(ErrorCode::InvalidTopicException);
    }
    Ok(topic)
}

/// The log start that `offset` asks for.
fn check_offset(offset: i64, high_watermark: i64, only_compacted: bool) -> Result<i64, ErrorCode> {
    if only_compacted {
        return Err(ErrorCode::PolicyViolation);
    }
    match offset {
        UP_TO_HIGH_WATERMARK => Ok(high_watermark),
        offset if (0..=high_watermark).contains(&offset) => Ok(offset),
        _ => Err(ErrorCode::OffsetOutOfRange),
    }
}

fn append_code(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::UnknownPartition => ErrorCode::UnknownTopicOrPartition,
        // Somebody else leads it now, or will in a moment.
        AppendError::NotLeader | AppendError::Stopping => ErrorCode::NotLeaderOrFollower,
        // A move of the log start has no producer, so nothing else can come.
        _ => ErrorCode::UnknownServerError,
    }
}

/// Takes the results grouped by topic.
fn respond(results: Vec<(StrBytes, i32, Result<i64, ErrorCode>)>) -> DeleteRecordsResponse {
    let mut response = DeleteRecordsResponse::default();
    for (name, index, outcome) in results {
        let mut partition = DeleteRecordsPartitionResult::default();
        partition.partition_index = index;
        partition.low_watermark = *outcome.as_ref().unwrap_or(&NO_LOW_WATERMARK);
        partition.error_code = outcome.err().unwrap_or(ErrorCode::None).code();
        match response.topics.last_mut() {
            Some(topic) if topic.name == name => topic.partitions.push(partition),
            _ => {
                let mut topic = DeleteRecordsTopicResult::default();
                topic.name = name;
                topic.partitions.push(partition);
                response.topics.push(topic);
            }
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_log_starts_that_moved_are_told() {
        let moved = [
            ("t".into(), 0, Ok((0, 7))),
            ("t".into(), 1, Ok((7, 7))),
            ("t".into(), 2, Err(ErrorCode::RequestTimedOut)),
        ];
        assert_eq!(told(&moved), ["deleted records of t-0 below offset 7 (from 0)"]);
    }

    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};

    #[test]
    fn offsets_are_checked_against_the_high_watermark() {
        use ErrorCode::{OffsetOutOfRange, PolicyViolation};
        let table = [
            (-1, 10, false, Ok(10)),
            (-1, 0, false, Ok(0)),
            (0, 10, false, Ok(0)),
            (10, 10, false, Ok(10)),
            (11, 10, false, Err(OffsetOutOfRange)),
            (-2, 10, false, Err(OffsetOutOfRange)),
            (i64::MIN, 10, false, Err(OffsetOutOfRange)),
            (i64::MAX, 10, false, Err(OffsetOutOfRange)),
            (5, 10, true, Err(PolicyViolation)),
            (-1, 10, true, Err(PolicyViolation)),
        ];
        for (offset, high_watermark, only_compacted, expected) in table {
            assert_eq!(
                check_offset(offset, high_watermark, only_compacted),
                expected,
                "offset {offset}"
            );
        }
    }

    #[test]
    fn topics_and_partitions_must_exist_and_not_be_internal() {
        use ErrorCode::{InvalidTopicException, UnknownTopicOrPartition};
        let topic = topic(1, 3);
        let table = [
            ("t", Some(&topic), 0, Ok(())),
            ("t", Some(&topic), 2, Ok(())),
            ("t", Some(&topic), 3, Err(UnknownTopicOrPartition)),
            ("t", Some(&topic), -1, Err(UnknownTopicOrPartition)),
            ("t", None, 0, Err(UnknownTopicOrPartition)),
            ("__consumer_offsets", Some(&topic), 0, Err(InvalidTopicException)),
            ("__consumer_offsets", None, 0, Err(UnknownTopicOrPartition)),
        ];
        for (name, topic, index, expected) in table {
            assert_eq!(
                check_topic(name, topic, index).map(|_| ()),
                expected,
                "{name} {index}"
            );
        }
    }

    #[test]
    fn the_last_offset_for_a_partition_counts() {
        let entry = |name: &str, partitions: &[(i32, i64)]| {
            let mut topic = DeleteRecordsTopic::default();
            topic.name = name.into();
            for (index, offset) in partitions {
                let mut partition = DeleteRecordsPartition::default();
                partition.partition_index = *index;
                partition.offset = *offset;
                topic.partitions.push(partition);
            }
            topic
        };
        let mut request = DeleteRecordsRequest::default();
        request.topics = vec![
            entry("b", &[(1, 5), (0, 3)]),
            entry("a", &[(0, 1)]),
            entry("b", &[(1, 7)]),
        ];
        let wanted = wanted(request);
        let seen: Vec<_> = wanted
            .iter()
            .map(|(name, p, o)| (name.as_str(), *p, *o))
            .collect();
        assert_eq!(seen, [("a", 0, 1), ("b", 0, 3), ("b", 1, 7)]);
    }

    #[test]
    fn results_are_grouped_and_every_version_can_carry_them() {
        assert_encodes(0..=2, |_| {
            let response = respond(vec![
                ("a".into(), 0, Ok(7)),
                ("b".into(), 0, Err(ErrorCode::OffsetOutOfRange)),
                ("b".into(), 1, Ok(0)),
            ]);
            assert_eq!(response.topics.len(), 2);
            let b: Vec<_> = response.topics[1]
                .partitions
                .iter()
                .map(|p| (p.low_watermark, p.error_code))
                .collect();
            assert_eq!(b, [(-1, 1), (0, 0)]);
            response
        });
    }

    #[test]
    fn append_errors_have_codes_that_clients_act_on() {
        assert_eq!(
            append_code(&AppendError::NotLeader),
            ErrorCode::NotLeaderOrFollower
        );
        assert_eq!(
            append_code(&AppendError::Stopping),
            ErrorCode::NotLeaderOrFollower
        );
        assert_eq!(
            append_code(&AppendError::UnknownPartition),
            ErrorCode::UnknownTopicOrPartition
        );
    }
}
