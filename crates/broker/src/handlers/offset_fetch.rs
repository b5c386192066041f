//! OffsetFetch (key 9), versions 1-10. One group up to version 7, many from 8 on; topics by name up to 9, by
//! id in version 10. Null topics ask for all. What was never committed has offset -1 and no error. Only
//! published offsets are answered; `require_stable` waits for the commits that are on their way.

use std::sync::Arc;

use alluvium_log::TopicId;
use kafka_wire::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_wire::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_wire::{OffsetFetchRequest, OffsetFetchResponse};
use kafka_wire_core::{StrBytes, Uuid};

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{Committed, FetchedTopic, Inner, fits};

const MANY_GROUPS_SINCE: i16 = 8;
const TOPIC_IDS_SINCE: i16 = 10;
/// "Nothing committed".
const NO_OFFSET: i64 = -1;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if ctx.api_version < MANY_GROUPS_SINCE {
        return respond_one(groups, ctx, request).await;
    }
    let by_id = ctx.api_version >= TOPIC_IDS_SINCE;
    let mut response = OffsetFetchResponse::default();
    for group in request.groups {
        response
            .groups
            .push(fetch_group(groups, by_id, group, request.require_stable).await);
    }
    response
}

// ---- Versions 1 to 7 ----

async fn respond_one(
    groups: &Inner,
    ctx: &RequestContext,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    // Null asks for all since version 2; before, it cannot be said.
    let wanted: Option<Vec<(String, Vec<i32>)>> = request.topics.map(|topics| {
        topics
            .into_iter()
            .map(|topic| (topic.name.into_string(), topic.partition_indexes))
            .collect()
    });
    let fetched = if fits(&request.group_id) {
        groups
            .fetch(&request.group_id, wanted.clone(), request.require_stable)
            .await
    } else {
        Err(ErrorCode::InvalidGroupId)
    };
    let mut response = OffsetFetchResponse::default();
    let error = fetched.as_ref().err().copied();
    // Version 1 has no place for an error but the partitions.
    if ctx.api_version >= 2 {
        response.error_code = error.unwrap_or(ErrorCode::None).code();
    }
    let unanswered = || {
        let no_rows = |(topic, partitions): (String, Vec<i32>)| {
            (
                topic,
                partitions
                    .into_iter()
                    .map(|partition| (partition, None))
                    .collect(),
            )
        };
        wanted.unwrap_or_default().into_iter().map(no_rows).collect()
    };
    let rows: Vec<FetchedTopic> = fetched.unwrap_or_else(|_| unanswered());
    for (name, partitions) in rows {
        let mut topic = OffsetFetchResponseTopic::default();
        topic.name = StrBytes::from(name);
        for (index, committed) in partitions {
            let mut row = OffsetFetchResponsePartition::default();
            row.partition_index = index;
            row.error_code = error.unwrap_or(ErrorCode::None).code();
            let (offset, leader_epoch, metadata) = values(committed);
            row.committed_offset = offset;
            row.metadata = Some(metadata);
            if ctx.api_version >= 5 {
                row.committed_leader_epoch = leader_epoch;
            }
            topic.partitions.push(row);
        }
        response.topics.push(topic);
    }
    response
}

// ---- Versions 8 and later ----

async fn fetch_group(
    groups: &Inner,
    by_id: bool,
    request: OffsetFetchRequestGroup,
    require_stable: bool,
) -> OffsetFetchResponseGroup {
    let mut response = OffsetFetchResponseGroup::default();
    response.group_id = request.group_id.clone();
    // Topics whose id nobody knows are answered here; the others in the order of the request.
    let mut unknown = Vec::new();
    let wanted = request.topics.map(|topics| {
        let mut wanted = Vec::new();
        for topic in topics {
            let name = if by_id {
                groups.topic_name(&TopicId::from_bytes(topic.topic_id.to_bytes()))
            } else {
                Some(topic.name.as_str().to_owned())
            };
            match name {
                Some(name) => wanted.push((name, topic.partition_indexes)),
                None => unknown.push((topic.topic_id, topic.partition_indexes)),
            }
        }
        wanted
    });
    let fetched = if fits(&request.group_id) {
        groups.fetch(&request.group_id, wanted, require_stable).await
    } else {
        Err(ErrorCode::InvalidGroupId)
    };
    match fetched {
        Err(error) => response.error_code = error.code(),
        Ok(topics) => {
            response.topics = topics
                .into_iter()
                .filter_map(|topic| to_topic(groups, by_id, topic))
                .collect();
            response.topics.extend(
                unknown
                    .into_iter()
                    .map(|(id, partitions)| unknown_topic(id, &partitions)),
            );
        }
    }
    response
}

fn to_topic(
    groups: &Inner,
    by_id: bool,
    (name, partitions): FetchedTopic,
) -> Option<OffsetFetchResponseTopics> {
    let mut topic = OffsetFetchResponseTopics::default();
    if by_id {
        // It may have been deleted since the request was read.
        topic.topic_id = Uuid::from_bytes(*groups.topic(&name)?.id.as_bytes());
    } else {
        topic.name = StrBytes::from(name);
    }
    for (index, committed) in partitions {
        let mut row = OffsetFetchResponsePartitions::default();
        row.partition_index = index;
        let (offset, leader_epoch, metadata) = values(committed);
        row.committed_offset = offset;
        row.committed_leader_epoch = leader_epoch;
        row.metadata = Some(metadata);
        topic.partitions.push(row);
    }
    Some(topic)
}

fn unknown_topic(id: Uuid, partitions: &[i32]) -> OffsetFetchResponseTopics {
    let mut topic = OffsetFetchResponseTopics::default();
    topic.topic_id = id;
    for index in partitions {
        let mut row = OffsetFetchResponsePartitions::default();
        row.partition_index = *index;
        row.committed_offset = NO_OFFSET;
        row.error_code = ErrorCode::UnknownTopicId.code();
        topic.partitions.push(row);
    }
    topic
}

fn values(committed: Option<Committed>) -> (i64, i32, StrBytes) {
    match committed {
        Some(Committed { value, .. }) => (value.offset, value.leader_epoch, StrBytes::from(value.metadata)),
        None => (NO_OFFSET, -1, StrBytes::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, commit_simple, encodes};
    use kafka_wire::offset_fetch_request::{OffsetFetchRequestTopic, OffsetFetchRequestTopics};

    fn request(version: i16, id: TopicId, topics: Option<&[&str]>) -> OffsetFetchRequest {
        let mut request = OffsetFetchRequest::default();
        if version < MANY_GROUPS_SINCE {
            request.group_id = StrBytes::from("g");
            request.topics = topics.map(|names| {
                let of = |name: &&str| {
                    let mut topic = OffsetFetchRequestTopic::default();
                    topic.name = StrBytes::from(*name);
                    topic.partition_indexes = vec![0, 1];
                    topic
                };
                names.iter().map(of).collect()
            });
            return request;
        }
        for group in ["g", "other"] {
            let mut row = OffsetFetchRequestGroup::default();
            row.group_id = StrBytes::from(group);
            row.topics = topics.map(|names| {
                let of = |name: &&str| {
                    let mut topic = OffsetFetchRequestTopics::default();
                    let known = if *name == "events" {
                        id
                    } else {
                        TopicId::from_u128(404)
                    };
                    topic.name = StrBytes::from(*name);
                    topic.topic_id = Uuid::from_bytes(*known.as_bytes());
                    topic.partition_indexes = vec![0, 1];
                    topic
                };
                names.iter().map(of).collect()
            });
            request.groups.push(row);
        }
        request
    }

    #[tokio::test(start_paused = true)]
    async fn committed_missing_and_unknown_in_every_version() {
        let fixture = Fixture::loaded().await;
        commit_simple(&fixture, "g", 42).await;
        let id = fixture.topic_id("events");
        for version in 1..=10 {
            let request = request(version, id, Some(&["events", "missing"]));
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            encodes(&response, version);
            let row = |offset: i64, code: i16| (offset, code);
            if version < MANY_GROUPS_SINCE {
                let rows: Vec<_> = response.topics.iter().flat_map(|t| &t.partitions).collect();
                let rows: Vec<_> = rows
                    .iter()
                    .map(|p| row(p.committed_offset, p.error_code))
                    .collect();
                assert_eq!(rows, [(42, 0), (-1, 0), (-1, 0), (-1, 0)], "version {version}");
            } else {
                let of_group = |group: &OffsetFetchResponseGroup| {
                    let rows = group.topics.iter().flat_map(|t| &t.partitions);
                    rows.map(|p| row(p.committed_offset, p.error_code))
                        .collect::<Vec<_>>()
                };
                let unknown = if version >= 10 { 100 } else { 0 };
                let missing = [(-1, unknown), (-1, unknown)];
                assert_eq!(
                    of_group(&response.groups[0]),
                    [&[(42, 0), (-1, 0)], &missing[..]].concat()
                );
                assert_eq!(
                    of_group(&response.groups[1]),
                    [&[(-1, 0), (-1, 0)], &missing[..]].concat()
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn null_topics_ask_for_all() {
        let fixture = Fixture::loaded().await;
        commit_simple(&fixture, "g", 42).await;
        for version in 2..=10 {
            let id = fixture.topic_id("events");
            let response = respond(
                &fixture.inner,
                &fixture.context(version),
                request(version, id, None),
            )
            .await;
            encodes(&response, version);
            let offset = match response.groups.first() {
                Some(group) => group.topics[0].partitions[0].committed_offset,
                None => response.topics[0].partitions[0].committed_offset,
            };
            assert_eq!(offset, 42, "version {version}");
            assert!(response.groups.get(1).is_none_or(|group| group.topics.is_empty()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_is_not_coordinated_here_is_an_error() {
        let fixture = Fixture::without_topic();
        for version in 1..=10 {
            let request = request(version, TopicId::nil(), Some(&["events"]));
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            encodes(&response, version);
            let code = match version {
                1 => response.topics[0].partitions[0].error_code,
                2..=7 => response.error_code,
                _ => response.groups[0].error_code,
            };
            assert_eq!(code, ErrorCode::NotCoordinator.code(), "version {version}");
        }
    }
}
