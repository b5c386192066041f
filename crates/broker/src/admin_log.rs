//! The trace that administration leaves: one line for each request that changed something, with who asked.

use alluvium_log::manifest::{Change, Manifest};

use crate::broker::RequestContext;
use crate::config::quote;

/// Things that one line names; of the rest it gives the number.
const NAMED_MAX: usize = 20;

/// Tells what a request has changed, one sentence part for each; nothing if that is nothing.
pub(crate) fn tell(ctx: &RequestContext, done: &[String]) {
    if let Some(line) = summary(done) {
        let peer = ctx.client_host.trim_start_matches('/');
        tracing::info!(client_id = %quote(&ctx.client_id), peer, "{line}");
    }
}

fn summary(done: &[String]) -> Option<String> {
    let named = done.iter().take(NAMED_MAX).map(String::as_str);
    let mut line = named.collect::<Vec<_>>().join("; ");
    if done.len() > NAMED_MAX {
        line.push_str(&format!("; and {} more", done.len() - NAMED_MAX));
    }
    (!line.is_empty()).then_some(line)
}

/// What a change does, given the manifest before it.
pub(crate) fn describe(change: &Change, before: &Manifest) -> String {
    match change {
        Change::CreateTopic {
            name,
            partitions,
            configs,
            ..
        } => {
            let configs: String = configs
                .iter()
                .map(|(key, value)| format!(", {key} = {}", quote(value)))
                .collect();
            format!("created topic {name} (partitions: {partitions}{configs})")
        }
        Change::DeleteTopic { id } => match before.topic_by_id(id) {
            Some((name, _)) => format!("deleted topic {name} ({id})"),
            None => format!("deleted topic {id}"),
        },
        Change::CreatePartitions { name, count } => {
            let from = before.topics.get(name).map_or(0, |topic| topic.partitions);
            format!("topic {name} grew from {from} to {count} partitions")
        }
        Change::AlterTopicConfigs { name, changes } => {
            let set = before.topics.get(name).map(|topic| &topic.configs);
            let is_set = |key: &str| set.is_some_and(|set| set.contains_key(key));
            format!("configs of topic {name}: {}", edits(changes, &is_set))
        }
        Change::AlterBrokerConfigs { broker, changes } => {
            let set = before.broker_configs.get(broker);
            let is_set = |key: &str| set.is_some_and(|set| set.contains_key(key));
            let whose = match broker.as_str() {
                "" => "all brokers".to_owned(),
                broker => format!("broker {broker}"),
            };
            format!("configs of {whose}: {}", edits(changes, &is_set))
        }
    }
}

/// A replacement also removes every key that is not set, which is nothing to tell.
fn edits(changes: &[(String, Option<String>)], is_set: &dyn Fn(&str) -> bool) -> String {
    let told = changes.iter().filter_map(|(key, value)| match value {
        Some(value) => Some(format!("{key} = {}", quote(value))),
        None => is_set(key).then(|| format!("{key} removed")),
    });
    let told: Vec<String> = told.collect();
    match told.is_empty() {
        true => "nothing".to_owned(),
        false => told.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::topic;

    #[test]
    fn every_change_is_told_with_names_and_values() {
        let id = uuid::Uuid::from_u128(1);
        let mut before = Manifest::new(id, id, 8);
        let mut t = topic(7, 3);
        t.configs.insert("retention.ms".into(), "5".into());
        before.topics.insert("t".into(), t);
        let told = |change: Change| describe(&change, &before);
        let created = Change::CreateTopic {
            name: "n".into(),
            partitions: 2,
            replication_factor: 1,
            configs: [("cleanup.policy".to_owned(), "compact\n".to_owned())].into(),
        };
        assert_eq!(
            told(created),
            "created topic n (partitions: 2, cleanup.policy = 'compact\\n')"
        );
        let id = |n| alluvium_log::TopicId::from_u128(n);
        assert!(told(Change::DeleteTopic { id: id(7) }).starts_with("deleted topic t ("));
        assert!(told(Change::DeleteTopic { id: id(9) }).starts_with("deleted topic 0000"));
        let grown = Change::CreatePartitions {
            name: "t".into(),
            count: 9,
        };
        assert_eq!(told(grown), "topic t grew from 3 to 9 partitions");
        let changes = vec![
            ("retention.ms".to_owned(), None),
            ("segment.ms".to_owned(), None),
            ("max.message.bytes".to_owned(), Some("9".to_owned())),
        ];
        let name = "t".to_owned();
        assert_eq!(
            told(Change::AlterTopicConfigs { name, changes }),
            "configs of topic t: retention.ms removed, max.message.bytes = '9'"
        );
        let broker = |broker: &str| {
            told(Change::AlterBrokerConfigs {
                broker: broker.to_owned(),
                changes: vec![("log.retention.ms".to_owned(), Some("1".to_owned()))],
            })
        };
        assert_eq!(broker(""), "configs of all brokers: log.retention.ms = '1'");
        assert_eq!(broker("4"), "configs of broker 4: log.retention.ms = '1'");
    }

    #[test]
    fn a_line_is_bounded() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&["a".into(), "b".into()]).as_deref(), Some("a; b"));
        let many: Vec<String> = (0..25).map(|n| n.to_string()).collect();
        assert!(summary(&many).unwrap().ends_with("; 19; and 5 more"));
    }
}
