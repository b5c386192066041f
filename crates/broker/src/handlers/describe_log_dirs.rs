//! DescribeLogDirs (35), versions 1-5.
//!
//! One log directory, named after the store, with the partitions that this broker leads and the bytes between
//! their log start and end. A bucket has no size, so the volume's total and usable bytes are unknown (-1).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use alluvium_log::TopicId;
use alluvium_log::manifest::Topic;
use kafka_wire::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_wire::{DescribeLogDirsRequest, DescribeLogDirsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let manifest = broker.log.manifest();
    let led = broker.log.partitions();
    let sizes = led
        .iter()
        .map(|partition| (partition.topic(), partition.index(), partition.size_bytes()));
    respond(
        &request,
        &manifest.topics,
        sizes,
        &broker.config.settings.store_url,
    )
}

/// `sizes` are the partitions led here with their bytes.
fn respond(
    request: &DescribeLogDirsRequest,
    topics: &BTreeMap<String, Topic>,
    sizes: impl Iterator<Item = (TopicId, i32, u64)>,
    store_url: &str,
) -> DescribeLogDirsResponse {
    let wanted: Option<BTreeSet<(&str, i32)>> = request.topics.as_ref().map(|topics| {
        topics
            .iter()
            .flat_map(|t| t.partitions.iter().map(|p| (t.topic.as_str(), *p)))
            .collect()
    });
    let names: HashMap<TopicId, &str> = topics
        .iter()
        .map(|(name, topic)| (topic.id, name.as_str()))
        .collect();
    let mut by_topic: BTreeMap<&str, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for (id, index, size) in sizes {
        let Some(name) = names.get(&id) else { continue };
        if wanted
            .as_ref()
            .is_some_and(|wanted| !wanted.contains(&(*name, index)))
        {
            continue;
        }
        let mut partition = DescribeLogDirsPartition::default();
        partition.partition_index = index;
        partition.partition_size = i64::try_from(size).unwrap_or(i64::MAX);
        by_topic.entry(name).or_default().push(partition);
    }
    let mut dir = DescribeLogDirsResult::default();
    dir.log_dir = StrBytes::from(without_secrets(store_url));
    for (name, mut partitions) in by_topic {
        partitions.sort_unstable_by_key(|partition| partition.partition_index);
        let mut topic = DescribeLogDirsTopic::default();
        topic.name = StrBytes::from(name);
        topic.partitions = partitions;
        dir.topics.push(topic);
    }
    let mut response = DescribeLogDirsResponse::default();
    response.results.push(dir);
    response
}

/// A store URL without user info, query and fragment: any client may read it.
fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, topic};
    use kafka_wire::describe_log_dirs_request::DescribableLogDirTopic;

    fn described(wanted: Option<&[(&str, &[i32])]>) -> DescribeLogDirsResponse {
        let mut request = DescribeLogDirsRequest::default();
        request.topics = wanted.map(|topics| {
            topics
                .iter()
                .map(|(name, partitions)| {
                    let mut topic = DescribableLogDirTopic::default();
                    topic.topic = (*name).into();
                    topic.partitions = partitions.to_vec();
                    topic
                })
                .collect()
        });
        let topics = [("a".to_owned(), topic(1, 2)), ("b".to_owned(), topic(2, 1))].into();
        let id = TopicId::from_u128;
        let sizes = [
            (id(2), 0, u64::MAX),
            (id(1), 1, 11),
            (id(1), 0, 10),
            (id(9), 0, 99),
        ];
        respond(
            &request,
            &topics,
            sizes.into_iter(),
            "s3://key:secret@bucket/prefix?token=x",
        )
    }

    fn sizes(response: &DescribeLogDirsResponse) -> Vec<(&str, i32, i64)> {
        let topics = &response.results[0].topics;
        topics
            .iter()
            .flat_map(|t| {
                t.partitions
                    .iter()
                    .map(|p| (t.name.as_str(), p.partition_index, p.partition_size))
            })
            .collect()
    }

    #[test]
    fn led_partitions_are_listed_with_their_sizes() {
        let all = described(None);
        assert_eq!(sizes(&all), [("a", 0, 10), ("a", 1, 11), ("b", 0, i64::MAX)]);
        let dir = &all.results[0];
        assert_eq!(dir.log_dir.as_str(), "s3://bucket/prefix");
        assert_eq!((dir.error_code, dir.total_bytes, dir.usable_bytes), (0, -1, -1));
    }

    #[test]
    fn only_what_was_asked_for_is_listed() {
        assert_eq!(
            sizes(&described(Some(&[("a", &[1, 1, 7]), ("nope", &[0])]))),
            [("a", 1, 11)]
        );
        let none = described(Some(&[]));
        assert_eq!((none.results.len(), sizes(&none)), (1, vec![]));
    }

    #[test]
    fn secrets_stay_here() {
        for (url, shown) in [
            ("file:///var/lib/alluvium", "file:///var/lib/alluvium"),
            ("memory://", "memory://"),
            ("s3://bucket", "s3://bucket"),
            ("s3://user:p@ss@bucket/a@b", "s3://bucket/a@b"),
            ("s3://bucket/p?secret=1#x", "s3://bucket/p"),
            ("./data", "./data"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(1..=5, |_| described(None));
    }
}
