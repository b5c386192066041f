//! OffsetDelete (key 47), version 0. Offsets of topics that no member consumes; of a group that does not
//! speak the consumer protocol only while it has no members. Answers after the tombstones are published.

use std::sync::Arc;

use kafka_wire::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_wire::{OffsetDeleteRequest, OffsetDeleteResponse};

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::Inner;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    respond(&broker.groups.inner, request).await
}

async fn respond(groups: &Arc<Inner>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let mut response = OffsetDeleteResponse::default();
    let mut places = Vec::new();
    let mut offsets = Vec::new();
    for topic in request.topics {
        let info = groups.topic(&topic.name);
        let mut row = OffsetDeleteResponseTopic::default();
        for partition in topic.partitions {
            let index = partition.partition_index;
            let mut answer = OffsetDeleteResponsePartition::default();
            answer.partition_index = index;
            if info.is_some_and(|info| u32::try_from(index).is_ok_and(|p| p < info.partitions)) {
                places.push((response.topics.len(), row.partitions.len()));
                offsets.push((topic.name.as_str().to_owned(), index));
            } else {
                answer.error_code = ErrorCode::UnknownTopicOrPartition.code();
            }
            row.partitions.push(answer);
        }
        row.name = topic.name;
        response.topics.push(row);
    }
    match groups.delete_offsets(&request.group_id, offsets).await {
        Ok(codes) => {
            for ((topic, partition), code) in places.into_iter().zip(codes) {
                response.topics[topic].partitions[partition].error_code = code.code();
            }
        }
        Err(error) => {
            response.error_code = error.code();
            response.topics.clear();
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, commit_simple, encodes, stable};
    use kafka_wire::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
    use kafka_wire_core::StrBytes;

    async fn delete(fixture: &Fixture, group: &str, topic: &str) -> (i16, Vec<i16>) {
        let mut request = OffsetDeleteRequest::default();
        request.group_id = StrBytes::from(group);
        let mut row = OffsetDeleteRequestTopic::default();
        row.name = StrBytes::from(topic);
        for index in [0, 99] {
            let mut partition = OffsetDeleteRequestPartition::default();
            partition.partition_index = index;
            row.partitions.push(partition);
        }
        request.topics.push(row);
        let response = respond(&fixture.inner, request).await;
        encodes(&response, 0);
        let codes = response
            .topics
            .iter()
            .flat_map(|t| &t.partitions)
            .map(|p| p.error_code)
            .collect();
        (response.error_code, codes)
    }

    #[tokio::test(start_paused = true)]
    async fn subscribed_topics_keep_their_offsets() {
        let fixture = Fixture::loaded().await;
        // Its members subscribe to `events`.
        stable(&fixture, "members").await;
        commit_simple(&fixture, "tool", 5).await;
        assert_eq!(delete(&fixture, "members", "events").await, (0, vec![86, 3]));
        assert_eq!(delete(&fixture, "members", "other").await, (0, vec![0, 3]));
        assert_eq!(delete(&fixture, "tool", "missing").await, (0, vec![3, 3]));
        assert_eq!(delete(&fixture, "missing", "events").await, (69, vec![]));
        assert_eq!(delete(&fixture, "tool", "events").await, (0, vec![0, 3]));
        assert_eq!(fixture.inner.fetch("tool", None, true).await.unwrap(), []);
    }
}
