//! Pure rules about topics: names, limits, what is internal. They are Kafka's.

use std::collections::{BTreeMap, HashMap};

use alluvium_log::manifest::Topic;
use kafka_wire_core::Uuid;

use crate::admin_change::Refusal;
use crate::errors::ErrorCode;

/// Longest topic name in characters.
pub(crate) const NAME_LENGTH_MAX: usize = 249;

/// Most partitions of one topic, and most that one request may create.
pub(crate) const PARTITIONS_MAX: u32 = 10_000;

/// Where Kafka's controllers keep their log; no client may create it.
pub(crate) const CLUSTER_METADATA_TOPIC: &str = "__cluster_metadata";

/// Topics that coordinators write, by Kafka's names.
const INTERNAL_TOPICS: [&str; 3] = ["__consumer_offsets", "__transaction_state", "__share_group_state"];

/// The operations on a topic that anybody may do where no ACLs exist, as Kafka's bit field: read, write,
/// create, delete, alter, describe, describe configs, alter configs.
pub(crate) const TOPIC_OPERATIONS: i32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;

/// True for the topics of coordinators.
pub(crate) fn is_internal(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}

/// Whether `name` can be a topic's name at all.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        format!("'{name}' is not allowed")
    } else if name.len() > NAME_LENGTH_MAX {
        format!(
            "it is {} bytes long, more than the {NAME_LENGTH_MAX} that are allowed",
            name.len()
        )
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        format!("'{name}' has a character other than ASCII letters, digits, '.', '_' and '-'")
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        ErrorCode::InvalidTopicException,
        format!("Topic name is invalid: {reason}."),
    ))
}

/// The names that a new topic must differ from in more than '.' against '_'. Metric names do not know the
/// two apart, so Kafka refuses such neighbours, and clients and tools rely on that.
#[derive(Debug)]
pub(crate) struct TakenNames<'a> {
    topics: &'a BTreeMap<String, Topic>,
    by_unified_name: HashMap<String, &'a str>,
}

impl<'a> TakenNames<'a> {
    pub(crate) fn of(topics: &'a BTreeMap<String, Topic>) -> TakenNames<'a> {
        let by_unified_name = topics
            .keys()
            .filter(|name| has_colliding_characters(name))
            .map(|name| (unified(name), name.as_str()))
            .collect();
        TakenNames {
            topics,
            by_unified_name,
        }
    }

    /// Whether a topic of that name can be created now.
    pub(crate) fn check(&self, name: &str) -> Result<(), Refusal> {
        if self.topics.contains_key(name) {
            return Err(Refusal::new(
                ErrorCode::TopicAlreadyExists,
                format!("Topic '{name}' already exists."),
            ));
        }
        check_name(name)?;
        if has_colliding_characters(name)
            && let Some(neighbour) = self.by_unified_name.get(&unified(name))
        {
            return Err(Refusal::new(
                ErrorCode::InvalidTopicException,
                format!("Topic '{name}' collides with topic '{neighbour}': '.' and '_' count as the same."),
            ));
        }
        Ok(())
    }

    /// Takes a name that a request is about to create.
    pub(crate) fn take(&mut self, name: &'a str) {
        if has_colliding_characters(name) {
            self.by_unified_name.insert(unified(name), name);
        }
    }
}

fn has_colliding_characters(name: &str) -> bool {
    name.contains(['.', '_'])
}

fn unified(name: &str) -> String {
    name.replace('.', "_")
}

/// A topic id as the wire has it.
pub(crate) fn wire_id(id: &alluvium_log::TopicId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::topic;

    #[test]
    fn names_are_checked_as_kafka_does() {
        let longest = "x".repeat(NAME_LENGTH_MAX);
        let too_long = "x".repeat(NAME_LENGTH_MAX + 1);
        for good in ["a", "A.b_c-9", "...", "_", "__consumer_offsets", &longest] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "", ".", "..", "a b", "a/b", "ä", "a\u{0}", "a:b", "a,b", &too_long,
        ] {
            assert_eq!(
                check_name(bad).map_err(|r| r.code),
                Err(ErrorCode::InvalidTopicException),
                "{bad}"
            );
        }
    }

    #[test]
    fn dot_and_underscore_collide_and_nothing_else_does() {
        let topics: BTreeMap<String, Topic> =
            [("a.b".to_owned(), topic(1, 1)), ("plain".to_owned(), topic(2, 1))].into();
        let mut taken = TakenNames::of(&topics);
        let code = |taken: &TakenNames<'_>, name: &str| taken.check(name).map_err(|r| r.code);
        assert_eq!(code(&taken, "a_b"), Err(ErrorCode::InvalidTopicException));
        assert_eq!(code(&taken, "a.b"), Err(ErrorCode::TopicAlreadyExists));
        assert_eq!(code(&taken, "plain"), Err(ErrorCode::TopicAlreadyExists));
        assert_eq!(code(&taken, "a-b"), Ok(()));
        assert_eq!(code(&taken, "A_b"), Ok(()));
        assert_eq!(code(&taken, "x.y_z"), Ok(()));
        taken.take("x.y_z");
        assert_eq!(code(&taken, "x_y.z"), Err(ErrorCode::InvalidTopicException));
    }

    #[test]
    fn authorized_operations_are_kafkas_number() {
        // What Kafka's own brokers answer without an authorizer.
        assert_eq!(TOPIC_OPERATIONS, 3576);
    }
}
