//! OffsetCommit (key 8), versions 2-10. Topics by name up to version 9, by id in version 10. Answers after
//! publication. Partitions that do not exist get their own error; the others are committed.

use std::sync::Arc;

use alluvium_log::TopicId;
use kafka_wire::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_wire::{OffsetCommitRequest, OffsetCommitResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{Commit, Inner, OffsetToCommit, fits};

/// From this version on topics have ids instead of names.
const TOPIC_IDS_SINCE: i16 = 10;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    let group = request.group_id.as_str().to_owned();
    let mut response = OffsetCommitResponse::default();
    // Where in the response the answer to each offset goes.
    let mut places = Vec::new();
    let mut offsets = Vec::new();
    let by_id = ctx.api_version >= TOPIC_IDS_SINCE;
    for topic in request.topics {
        let (name, missing) = resolve(groups, by_id, &topic.name, topic.topic_id);
        let info = name.as_deref().and_then(|name| groups.topic(name));
        let mut row = OffsetCommitResponseTopic::default();
        for partition in topic.partitions {
            let index = partition.partition_index;
            let mut answer = OffsetCommitResponsePartition::default();
            answer.partition_index = index;
            match (&name, info) {
                (Some(name), Some(info)) if u32::try_from(index).is_ok_and(|p| p < info.partitions) => {
                    places.push((response.topics.len(), row.partitions.len()));
                    offsets.push(OffsetToCommit {
                        topic: name.clone(),
                        topic_id: info.id,
                        partition: index,
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition
                            .committed_metadata
                            .map(StrBytes::into_string)
                            .unwrap_or_default(),
                    });
                }
                (Some(_), Some(_)) => answer.error_code = ErrorCode::UnknownTopicOrPartition.code(),
                _ => answer.error_code = missing.code(),
            }
            row.partitions.push(answer);
        }
        row.name = topic.name;
        row.topic_id = topic.topic_id;
        response.topics.push(row);
    }
    let member_id = request.member_id.into_string();
    let instance_id = request.group_instance_id.map(StrBytes::into_string);
    // An empty group id is allowed here, as it always was in Kafka.
    let codes = if !fits(&group) {
        Err(ErrorCode::InvalidGroupId)
    } else if offsets.is_empty() {
        Ok(Vec::new())
    } else {
        let retention_ms = request.retention_time_ms;
        let commit = Commit {
            member_id,
            instance_id,
            generation: request.generation_id_or_member_epoch,
            retention_ms: (retention_ms != -1 && ctx.api_version <= 4).then_some(retention_ms),
            names_missing_group: ctx.api_version >= 9,
            offsets,
        };
        groups.commit(&group, commit).await
    };
    for (place, (topic, partition)) in places.into_iter().enumerate() {
        response.topics[topic].partitions[partition].error_code = match &codes {
            Ok(codes) => codes
                .get(place)
                .copied()
                .unwrap_or(ErrorCode::UnknownServerError)
                .code(),
            Err(error) => error.code(),
        };
    }
    response
}

/// The topic's name if it is known, and the error if it is not.
fn resolve(
    groups: &Inner,
    by_id: bool,
    name: &StrBytes,
    id: kafka_wire_core::Uuid,
) -> (Option<String>, ErrorCode) {
    if by_id {
        (
            groups.topic_name(&TopicId::from_bytes(id.to_bytes())),
            ErrorCode::UnknownTopicId,
        )
    } else {
        (Some(name.as_str().to_owned()), ErrorCode::UnknownTopicOrPartition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, stable};
    use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};

    fn request(version: i16, topic: &str, id: TopicId, rows: &[(i32, i64, &str)]) -> OffsetCommitRequest {
        let mut request = OffsetCommitRequest::default();
        request.group_id = StrBytes::from("g");
        let mut row = OffsetCommitRequestTopic::default();
        if version >= TOPIC_IDS_SINCE {
            row.topic_id = kafka_wire_core::Uuid::from_bytes(*id.as_bytes());
        } else {
            row.name = StrBytes::from(topic);
        }
        for (index, offset, metadata) in rows {
            let mut partition = OffsetCommitRequestPartition::default();
            partition.partition_index = *index;
            partition.committed_offset = *offset;
            partition.committed_leader_epoch = 3;
            partition.committed_metadata = Some(StrBytes::from(*metadata));
            row.partitions.push(partition);
        }
        request.topics.push(row);
        request
    }

    #[tokio::test(start_paused = true)]
    async fn each_partition_has_its_own_answer() {
        for version in 2..=10 {
            let fixture = Fixture::loaded().await;
            let id = fixture.topic_id("events");
            let ctx = fixture.context(version);
            let large = "x".repeat(5_000);
            let rows = [(0, 10, "note"), (1, 11, large.as_str()), (99, 1, ""), (-1, 1, "")];
            let response = respond(&fixture.inner, &ctx, request(version, "events", id, &rows)).await;
            encodes(&response, version);
            let codes: Vec<i16> = response.topics[0]
                .partitions
                .iter()
                .map(|p| p.error_code)
                .collect();
            assert_eq!(codes, [0, 12, 3, 3], "version {version}");
            let all = fixture.inner.fetch("g", None, false).await.unwrap();
            let value = all[0].1[0]
                .1
                .as_ref()
                .map(|committed| committed.value.clone())
                .unwrap();
            assert_eq!(
                (value.offset, value.leader_epoch, value.metadata.as_str()),
                (10, 3, "note")
            );

            let unknown = request(version, "missing", TopicId::from_u128(404), &[(0, 1, "")]);
            let response = respond(&fixture.inner, &ctx, unknown).await;
            encodes(&response, version);
            let code = response.topics[0].partitions[0].error_code;
            assert_eq!(code, if version >= 10 { 100 } else { 3 });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_current_generation_of_a_member_commits() {
        let fixture = Fixture::loaded().await;
        let member = stable(&fixture, "g").await;
        let id = fixture.topic_id("events");
        let commit = async |version: i16, member: &str, generation: i32, group: &str| {
            let mut request = request(version, "events", id, &[(0, 1, "")]);
            request.group_id = StrBytes::from(group);
            request.member_id = StrBytes::from(member);
            request.generation_id_or_member_epoch = generation;
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            response.topics[0].partitions[0].error_code
        };
        assert_eq!(commit(8, &member, 1, "g").await, 0);
        assert_eq!(commit(8, &member, 0, "g").await, 22);
        assert_eq!(commit(8, "zombie", 1, "g").await, 25);
        // A tool may not overwrite what members are working on.
        assert_eq!(commit(8, "", -1, "g").await, 25);
        assert_eq!(commit(8, "m", 3, "missing").await, 22);
        assert_eq!(commit(9, "m", 3, "missing").await, 69);
        assert_eq!(commit(9, "", -1, "tool").await, 0);
    }
}
