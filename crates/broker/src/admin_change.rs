//! How an admin request becomes changes of the manifest.
//!
//! A handler decides purely, item by item, what to change or why not ([`Decision`]); [`carry_out`] hands all
//! accepted changes of the request to the log in one call, which is one compare-and-swap, and returns one
//! outcome per item in the order of the request.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::Log;
use alluvium_log::manifest::{Change, Manifest, Rejection};
use kafka_wire_core::StrBytes;

use crate::admin_log::{self, describe};
use crate::broker::RequestContext;
use crate::errors::ErrorCode;

/// Longest error message in a response, in bytes. Messages quote what the client sent, and before flexible
/// versions a string that is longer than 32,767 bytes cannot be encoded at all.
const MESSAGE_BYTES_MAX: usize = 1_000;

/// Longest config value, in bytes: a longer one could not be described to a client that speaks a version
/// with 16-bit string lengths.
pub(crate) const CONFIG_VALUE_BYTES_MAX: usize = i16::MAX as usize;

/// What a request that names no useful timeout gets.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// The longest wait: a later answer finds nobody, and the requests behind it on the connection wait as well.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Why one item of an admin request was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    /// A sentence for people; empty if the code says it all.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }

    /// The message as responses carry it: absent if there is none, and never longer than every version of
    /// the protocol can carry.
    pub(crate) fn wire_message(&self) -> Option<StrBytes> {
        (!self.message.is_empty()).then(|| StrBytes::from(clipped(&self.message)))
    }
}

fn clipped(text: &str) -> &str {
    if text.len() <= MESSAGE_BYTES_MAX {
        return text;
    }
    let mut end = MESSAGE_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl From<&Rejection> for Refusal {
    fn from(rejection: &Rejection) -> Refusal {
        let code = match rejection {
            Rejection::TopicExists(name) => {
                return Refusal::new(
                    ErrorCode::TopicAlreadyExists,
                    format!("Topic '{name}' already exists."),
                );
            }
            Rejection::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
            Rejection::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
            // The write may still land, or a broker hear of the deletion: the answer must be one after which clients
            // try again.
            Rejection::Unavailable(_) | Rejection::DeletionUnderWay(_) => ErrorCode::RequestTimedOut,
        };
        Refusal::new(code, rejection.to_string())
    }
}

/// What is to be done for one item of a request: a change, nothing, or a refusal.
pub(crate) type Decision = Result<Option<Change>, Refusal>;

/// What became of one item. The manifest is there if the change is in it, which it is not when the request
/// only asked for validation or there was nothing to change.
pub(crate) type Outcome = Result<Option<Arc<Manifest>>, Refusal>;

/// How long a request may wait, by its `timeout_ms` field.
pub(crate) fn patience(timeout_ms: i32) -> Duration {
    match u64::try_from(timeout_ms) {
        Ok(ms) if ms > 0 => Duration::from_millis(ms).min(TIMEOUT_MAX),
        _ => TIMEOUT_DEFAULT,
    }
}

/// Hands the accepted changes to the log, all in one call, and waits at most `patience`. What is changed is told
/// in the log in the name of the client.
///
/// When that is over the items are answered REQUEST_TIMED_OUT, which means unknown: the change goes on.
pub(crate) async fn carry_out(
    log: &Log,
    ctx: &RequestContext,
    decisions: Vec<Decision>,
    validate_only: bool,
    patience: Duration,
) -> Vec<Outcome> {
    let (log, ctx) = (log.clone(), ctx.clone());
    apply(decisions, |changes| async move {
        let count = changes.len();
        if validate_only {
            let verdicts = log.check(&changes);
            return verdicts
                .iter()
                .map(|v| v.as_ref().map(|()| None).map_err(Refusal::from))
                .collect();
        }
        // On a task of its own: a client that hangs up must not cancel a commit half way.
        let commit = tokio::spawn(async move {
            let before = log.manifest();
            let told: Vec<String> = changes.iter().map(|change| describe(change, &before)).collect();
            let verdicts = change_all(&log, changes).await;
            let done = told
                .into_iter()
                .zip(&verdicts)
                .filter(|(_, verdict)| verdict.is_ok());
            admin_log::tell(&ctx, &done.map(|(told, _)| told).collect::<Vec<_>>());
            verdicts
        });
        match tokio::time::timeout(patience, commit).await {
            Ok(Ok(verdicts)) => verdicts
                .into_iter()
                .map(|v| v.map(Some).map_err(|r| Refusal::from(&r)))
                .collect(),
            Ok(Err(died)) => {
                tracing::error!(error = %died, "the task of a manifest change died");
                vec![
                    Err(Refusal::new(
                        ErrorCode::UnknownServerError,
                        "the change could not be made"
                    ));
                    count
                ]
            }
            Err(_) => {
                let late = Refusal::new(
                    ErrorCode::RequestTimedOut,
                    "the change was not confirmed in time; it may still be made",
                );
                vec![Err(late); count]
            }
        }
    })
    .await
}

/// Makes the changes. A topic whose name is not free yet waits for that, and must not keep the others waiting.
async fn change_all(log: &Log, changes: Vec<Change>) -> Vec<Result<Arc<Manifest>, Rejection>> {
    let mut verdicts = log.change(changes.clone()).await;
    let late = still_deleted(&verdicts);
    // If there was nothing else to do it has waited already.
    if !late.is_empty() && late.len() < verdicts.len() {
        let waiting = late.iter().filter_map(|at| changes.get(*at).cloned()).collect();
        for (at, verdict) in late.into_iter().zip(log.change(waiting).await) {
            if let Some(place) = verdicts.get_mut(at) {
                *place = verdict;
            }
        }
    }
    verdicts
}

/// Places of the topics whose names are not free yet.
fn still_deleted<T>(verdicts: &[Result<T, Rejection>]) -> Vec<usize> {
    let waits = |(at, verdict): (usize, &Result<T, Rejection>)| {
        matches!(verdict, Err(Rejection::DeletionUnderWay(_))).then_some(at)
    };
    verdicts.iter().enumerate().filter_map(waits).collect()
}

/// Runs `commit` once over the changes among `decisions`, not at all if there is none, and puts its verdicts
/// back in the places of their decisions.
async fn apply<C, F>(decisions: Vec<Decision>, commit: C) -> Vec<Outcome>
where
    C: FnOnce(Vec<Change>) -> F,
    F: Future<Output = Vec<Outcome>>,
{
    let mut changes = Vec::new();
    let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(decisions.len());
    for decision in decisions {
        outcomes.push(match decision {
            Ok(Some(change)) => {
                changes.push(change);
                None
            }
            Ok(None) => Some(Ok(None)),
            Err(refusal) => Some(Err(refusal)),
        });
    }
    let verdicts = if changes.is_empty() {
        Vec::new()
    } else {
        commit(changes).await
    };
    let mut verdicts = verdicts.into_iter();
    outcomes
        .into_iter()
        .map(|settled| {
            settled.or_else(|| verdicts.next()).unwrap_or_else(|| {
                Err(Refusal::new(
                    ErrorCode::UnknownServerError,
                    "the change got no verdict",
                ))
            })
        })
        .collect()
}

/// What the tests of the admin handlers share.
#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;
    use std::ops::RangeInclusive;

    use alluvium_log::TopicId;
    use alluvium_log::manifest::{Endpoint, StreamEntry, StreamState, Topic};
    use kafka_wire::KafkaMessage;
    use kafka_wire_core::{ApiVersion, BytesMut};

    /// Encodes what `build` makes for each version, and with that proves that it can be represented there.
    pub(crate) fn assert_encodes<M: KafkaMessage>(versions: RangeInclusive<i16>, build: impl Fn(i16) -> M) {
        for version in versions {
            let message = build(version);
            let mut buffer = BytesMut::new();
            if let Err(error) = message.encode_into(&mut buffer, ApiVersion::new(version)) {
                panic!("{} at version {version}: {error}", M::NAME);
            }
            assert!(!buffer.is_empty());
        }
    }

    pub(crate) fn topic(id: u128, partitions: u32) -> Topic {
        Topic {
            id: TopicId::from_u128(id),
            partitions,
            configs: BTreeMap::new(),
            replication_factor: 1,
            unknown: BTreeMap::new(),
        }
    }

    pub(crate) fn stream(node_id: i32, live: bool, endpoints: &[(&str, &str, u16)]) -> StreamEntry {
        let endpoints = endpoints
            .iter()
            .map(|(listener, host, port)| {
                (
                    listener.to_string(),
                    Endpoint {
                        host: host.to_string(),
                        port: *port,
                    },
                )
            })
            .collect();
        StreamEntry {
            node_id,
            rack: None,
            endpoints,
            released: vec![],
            state: if live {
                StreamState::Live
            } else {
                StreamState::Sealed {
                    at: 0,
                    links: Vec::new(),
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(id: u128) -> Change {
        Change::DeleteTopic {
            id: alluvium_log::TopicId::from_u128(id),
        }
    }

    fn refusal(code: ErrorCode) -> Refusal {
        Refusal::new(code, "no")
    }

    #[tokio::test]
    async fn verdicts_return_to_the_places_of_their_decisions() {
        let decisions = vec![
            Err(refusal(ErrorCode::InvalidConfig)),
            Ok(Some(delete(1))),
            Ok(None),
            Ok(Some(delete(2))),
        ];
        let outcomes = apply(decisions, |changes| async move {
            assert_eq!(changes.len(), 2);
            vec![Ok(None), Err(refusal(ErrorCode::InvalidPartitions))]
        })
        .await;
        let codes: Vec<_> = outcomes
            .iter()
            .map(|o| o.as_ref().err().map(|r| r.code))
            .collect();
        assert_eq!(
            codes,
            [
                Some(ErrorCode::InvalidConfig),
                None,
                None,
                Some(ErrorCode::InvalidPartitions)
            ]
        );
    }

    #[tokio::test]
    async fn nothing_is_committed_when_nothing_was_accepted() {
        let outcomes = apply(
            vec![Err(refusal(ErrorCode::InvalidConfig)), Ok(None)],
            |_| async {
                panic!("there is nothing to commit");
            },
        )
        .await;
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes[0].is_err() && outcomes[1].is_ok());
    }

    #[tokio::test]
    async fn a_missing_verdict_is_an_error_and_no_success() {
        let outcomes = apply(vec![Ok(Some(delete(1)))], |_| async { Vec::new() }).await;
        assert_eq!(
            outcomes[0].as_ref().err().map(|r| r.code),
            Some(ErrorCode::UnknownServerError)
        );
    }

    #[test]
    fn only_topics_whose_names_are_not_free_yet_wait() {
        let deleted = || Err(Rejection::DeletionUnderWay("t".into()));
        let verdicts = [Ok(()), deleted(), Err(Rejection::UnknownTopic), deleted(), Ok(())];
        assert_eq!(still_deleted(&verdicts), [1, 3]);
        assert_eq!(still_deleted::<()>(&[]), [0; 0]);
    }

    #[test]
    fn messages_are_clipped_at_a_character() {
        let long = Refusal::new(
            ErrorCode::InvalidConfig,
            "x".repeat(MESSAGE_BYTES_MAX - 1) + "€uro",
        );
        let message = long.wire_message().unwrap();
        assert_eq!(message.len(), MESSAGE_BYTES_MAX - 1);
        assert_eq!(Refusal::new(ErrorCode::None, "").wire_message(), None);
    }

    #[test]
    fn patience_is_bounded_on_both_sides() {
        assert_eq!(patience(1_500), Duration::from_millis(1_500));
        assert_eq!(patience(0), TIMEOUT_DEFAULT);
        assert_eq!(patience(-1), TIMEOUT_DEFAULT);
        assert_eq!(patience(i32::MAX), TIMEOUT_MAX);
    }

    #[test]
    fn rejections_have_kafkas_codes() {
        for (rejection, code) in [
            (Rejection::TopicExists("t".into()), ErrorCode::TopicAlreadyExists),
            (Rejection::UnknownTopic, ErrorCode::UnknownTopicOrPartition),
            (
                Rejection::InvalidPartitions("x".into()),
                ErrorCode::InvalidPartitions,
            ),
            (Rejection::Unavailable("x".into()), ErrorCode::RequestTimedOut),
            (
                Rejection::DeletionUnderWay("t".into()),
                ErrorCode::RequestTimedOut,
            ),
        ] {
            assert_eq!(Refusal::from(&rejection).code, code);
        }
    }
}
