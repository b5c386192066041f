//! DescribeTopicPartitions (75), version 0 (KIP-966).
//!
//! Topics in the order of their names, from a cursor on, page by page. The leader is the one replica and the
//! one in-sync replica; there are no eligible leader replicas, because the bucket holds the data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use alluvium_log::manifest::{Leader, StreamEntry, Topic};
use alluvium_log::{Incarnation, TopicId};
use kafka_wire::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_wire::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::topics::{TOPIC_OPERATIONS, check_name, is_internal, wire_id};

/// Most partitions in a response, whatever the request says; the default of Kafka's
/// `max.request.partition.size.limit`.
const PARTITIONS_MAX: i32 = 2_000;
const NO_LEADER: i32 = -1;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let manifest = broker.log.manifest();
    let view = View {
        topics: &manifest.topics,
        streams: &manifest.streams,
        leader: &|topic, partition| manifest.leader(topic, partition),
    };
    respond(&request, &view)
}

/// The part of the manifest that is described.
struct View<'a> {
    topics: &'a BTreeMap<String, Topic>,
    streams: &'a BTreeMap<Incarnation, StreamEntry>,
    leader: &'a dyn Fn(&TopicId, i32) -> Option<Leader>,
}

fn respond(request: &DescribeTopicPartitionsRequest, view: &View<'_>) -> DescribeTopicPartitionsResponse {
    let cursor = request.cursor.as_ref();
    let from = cursor.map_or("", |cursor| cursor.topic_name.as_str());
    let all = request.topics.is_empty();
    let names: BTreeSet<&str> = if all {
        let rest = view
            .topics
            .range::<str, _>((Bound::Included(from), Bound::Unbounded));
        rest.map(|(name, _)| name.as_str()).collect()
    } else {
        request
            .topics
            .iter()
            .map(|topic| topic.name.as_str())
            .filter(|name| *name >= from)
            .collect()
    };
    if let Some(cursor) = cursor
        && (cursor.partition_index < 0 || !all && !names.contains(from))
    {
        return refuse_all(request);
    }
    let start = cursor.map_or(0, |cursor| u32::try_from(cursor.partition_index).unwrap_or(0));
    let limit = request.response_partition_limit.clamp(1, PARTITIONS_MAX);
    let mut left = u32::try_from(limit).unwrap_or(1);

    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names {
        let Some(topic) = view.topics.get(name) else {
            // Names that do not exist cost nothing of the limit, which counts partitions.
            response.topics.push(unknown(name));
            continue;
        };
        if left == 0 {
            response.next_cursor = Some(next(name, 0));
            break;
        }
        let first = if name == from {
            start.min(topic.partitions)
        } else {
            0
        };
        let end = topic.partitions.min(first.saturating_add(left));
        response.topics.push(described(name, topic, first..end, view));
        if end < topic.partitions {
            response.next_cursor = Some(next(name, end));
            break;
        }
        left -= end - first;
    }
    response
}

fn refuse_all(request: &DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
    let mut response = DescribeTopicPartitionsResponse::default();
    response.topics = request
        .topics
        .iter()
        .map(|asked| {
            let mut topic = DescribeTopicPartitionsResponseTopic::default();
            topic.name = Some(asked.name.clone());
            topic.error_code = ErrorCode::InvalidRequest.code();
            topic
        })
        .collect();
    response
}

fn unknown(name: &str) -> DescribeTopicPartitionsResponseTopic {
    let code = match check_name(name) {
        Ok(()) => ErrorCode::UnknownTopicOrPartition,
        Err(refusal) => refusal.code,
    };
    let mut topic = DescribeTopicPartitionsResponseTopic::default();
    topic.name = Some(StrBytes::from(name));
    topic.error_code = code.code();
    topic.is_internal = is_internal(name);
    topic
}

fn next(name: &str, partition: u32) -> Cursor {
    let mut cursor = Cursor::default();
    cursor.topic_name = StrBytes::from(name);
    cursor.partition_index = i32::try_from(partition).unwrap_or(i32::MAX);
    cursor
}

fn described(
    name: &str,
    topic: &Topic,
    partitions: std::ops::Range<u32>,
    view: &View<'_>,
) -> DescribeTopicPartitionsResponseTopic {
    let mut result = DescribeTopicPartitionsResponseTopic::default();
    result.name = Some(StrBytes::from(name));
    result.topic_id = wire_id(&topic.id);
    result.is_internal = is_internal(name);
    result.topic_authorized_operations = TOPIC_OPERATIONS;
    result.partitions = partitions
        .map(|index| {
            let index = i32::try_from(index).unwrap_or(i32::MAX);
            let mut partition = DescribeTopicPartitionsResponsePartition::default();
            partition.partition_index = index;
            partition.leader_id = NO_LEADER;
            partition.eligible_leader_replicas = Some(Vec::new());
            partition.last_known_elr = Some(Vec::new());
            if let Some(leader) = (view.leader)(&topic.id, index) {
                partition.leader_epoch = leader.leader_epoch;
                partition.replica_nodes = vec![leader.node_id];
                if view
                    .streams
                    .get(&leader.incarnation)
                    .is_some_and(|stream| stream.is_live())
                {
                    partition.leader_id = leader.node_id;
                    partition.isr_nodes = vec![leader.node_id];
                } else {
                    partition.offline_replicas = vec![leader.node_id];
                }
            }
            partition
        })
        .collect();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, stream, topic};
    use kafka_wire::describe_topic_partitions_request::{Cursor as From, TopicRequest};

    /// Topics a (3 partitions), b (1), c (2); the leader of partition 2 is down and c-1 has none.
    fn described(request: &DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
        let topics: BTreeMap<String, Topic> = [("a", 1, 3), ("b", 2, 1), ("c", 3, 2)]
            .map(|(name, id, partitions)| (name.to_owned(), topic(id, partitions)))
            .into();
        let streams = [
            (1, stream(7, true, &[("L", "seven", 1)])),
            (2, stream(8, false, &[("L", "eight", 1)])),
        ]
        .into();
        let view = View {
            topics: &topics,
            streams: &streams,
            leader: &|id, index| {
                let (incarnation, node_id) = if index == 2 { (2, 8) } else { (1, 7) };
                let leader = Leader {
                    incarnation,
                    node_id,
                    leader_epoch: 5,
                };
                (*id != TopicId::from_u128(3) || index == 0).then_some(leader)
            },
        };
        respond(request, &view)
    }

    fn asked(names: &[&str], limit: i32, cursor: Option<(&str, i32)>) -> DescribeTopicPartitionsRequest {
        let mut request = DescribeTopicPartitionsRequest::default();
        for name in names {
            let mut topic = TopicRequest::default();
            topic.name = (*name).into();
            request.topics.push(topic);
        }
        request.response_partition_limit = limit;
        request.cursor = cursor.map(|(name, index)| {
            let mut cursor = From::default();
            cursor.topic_name = name.into();
            cursor.partition_index = index;
            cursor
        });
        request
    }

    type Page = (Vec<(String, i16, Vec<i32>)>, Option<(String, i32)>);

    fn page(request: &DescribeTopicPartitionsRequest) -> Page {
        let response = described(request);
        let topics = response.topics.into_iter().map(|t| {
            let partitions = t.partitions.iter().map(|p| p.partition_index).collect();
            (
                t.name.map(StrBytes::into_string).unwrap_or_default(),
                t.error_code,
                partitions,
            )
        });
        (
            topics.collect(),
            response
                .next_cursor
                .map(|c| (c.topic_name.into_string(), c.partition_index)),
        )
    }

    fn expected(topics: &[(&str, i16, &[i32])], cursor: Option<(&str, i32)>) -> Page {
        let topics = topics
            .iter()
            .map(|(name, code, p)| ((*name).to_owned(), *code, p.to_vec()))
            .collect();
        (topics, cursor.map(|(name, index)| (name.to_owned(), index)))
    }

    #[test]
    fn pages_follow_kafkas_rules() {
        let whole: &[(&str, i16, &[i32])] = &[("a", 0, &[0, 1, 2]), ("b", 0, &[0]), ("c", 0, &[0, 1])];
        let table = [
            (asked(&[], 2_000, None), expected(whole, None)),
            (asked(&[], i32::MAX, None), expected(whole, None)),
            (asked(&[], 6, None), expected(whole, None)),
            (asked(&[], 0, None), expected(&[("a", 0, &[0])], Some(("a", 1)))),
            (
                asked(&[], -5, Some(("a", 1))),
                expected(&[("a", 0, &[1])], Some(("a", 2))),
            ),
            (asked(&[], 3, None), expected(&whole[..1], Some(("b", 0)))),
            (
                asked(&[], 5, None),
                expected(&[whole[0], whole[1], ("c", 0, &[0])], Some(("c", 1))),
            ),
            (
                asked(&[], 9, Some(("a", 2))),
                expected(&[("a", 0, &[2]), whole[1], whole[2]], None),
            ),
            // The topic of the cursor was deleted, or lost no partition but asks beyond the end.
            (asked(&[], 9, Some(("aa", 1))), expected(&whole[1..], None)),
            (
                asked(&[], 9, Some(("b", 7))),
                expected(&[("b", 0, &[]), whole[2]], None),
            ),
            (
                asked(&[], 9, Some(("b", i32::MAX))),
                expected(&[("b", 0, &[]), whole[2]], None),
            ),
            (asked(&[], 9, Some(("z", 0))), expected(&[], None)),
            (
                asked(&["c", "a", "c"], 9, None),
                expected(&[whole[0], whole[2]], None),
            ),
            (asked(&["c", "a"], 3, None), expected(&whole[..1], Some(("c", 0)))),
            (
                asked(&["c", "a"], 9, Some(("c", 1))),
                expected(&[("c", 0, &[1])], None),
            ),
            (
                asked(&["b", "nope", "a/b"], 9, None),
                expected(&[("a/b", 17, &[]), whole[1], ("nope", 3, &[])], None),
            ),
            (
                asked(&["c", "a"], 9, Some(("b", 0))),
                expected(&[("c", 42, &[]), ("a", 42, &[])], None),
            ),
            (
                asked(&["c"], 9, Some(("c", -1))),
                expected(&[("c", 42, &[])], None),
            ),
            (asked(&[], 9, Some(("c", -1))), expected(&[], None)),
        ];
        for (request, expected) in table {
            assert_eq!(page(&request), expected, "{request:?}");
        }
    }

    #[test]
    fn following_the_cursor_shows_every_partition_once() {
        for limit in 1..=7 {
            let mut seen = Vec::new();
            let mut cursor: Option<(String, i32)> = None;
            for _ in 0..10 {
                let from = cursor.as_ref().map(|(name, index)| (name.as_str(), *index));
                let (topics, next) = page(&asked(&[], limit, from));
                seen.extend(
                    topics
                        .into_iter()
                        .flat_map(|(name, _, p)| p.into_iter().map(move |p| (name.clone(), p))),
                );
                cursor = next;
                if cursor.is_none() {
                    break;
                }
            }
            let all =
                [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)].map(|(n, p)| (n.to_owned(), p));
            assert_eq!(seen, all, "limit {limit}");
        }
    }

    #[test]
    fn a_partition_shows_its_leader_as_its_only_replica() {
        let response = described(&asked(&[], 9, None));
        let shown: Vec<_> = response
            .topics
            .iter()
            .flat_map(|t| &t.partitions)
            .map(|p| {
                (
                    p.leader_id,
                    p.leader_epoch,
                    p.replica_nodes.clone(),
                    p.isr_nodes.clone(),
                    p.offline_replicas.clone(),
                )
            })
            .collect();
        assert_eq!(shown[0], (7, 5, vec![7], vec![7], vec![]));
        assert_eq!(shown[2], (-1, 5, vec![8], vec![], vec![8]));
        assert_eq!(shown[5], (-1, -1, vec![], vec![], vec![]));
        assert_eq!(response.topics[0].topic_id, wire_id(&TopicId::from_u128(1)));
    }

    #[test]
    fn the_version_can_carry_the_response() {
        assert_encodes(0..=0, |_| described(&asked(&["a", "nope"], 2, None)));
        assert_encodes(0..=0, |_| described(&asked(&["a"], 2, Some(("b", 0)))));
        assert_encodes(0..=0, |_| described(&asked(&[], 9, None)));
    }
}
