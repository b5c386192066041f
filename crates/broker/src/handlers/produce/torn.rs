//! Keeps the pipelined batches of an idempotent producer together when one of them is refused.
//!
//! A producer has up to five batches of a partition under way. The first of a new one can come too early: the topic
//! is not known here yet, or its slot is still being recovered. If this broker becomes ready between that request and
//! the next, the batches behind it would be appended, because an unknown producer may begin at any sequence (KIP-360).
//! The refused one would come again, be older than what the log has of the producer, and be called a duplicate, which
//! Java's client takes for success: a record would be acknowledged that is nowhere. In Kafka only a change of
//! the leader opens this window; here each recovery of a slot does.
//!
//! So what a connection sends of the same producer to the same partition behind a batch that was refused, but will be
//! sent again, is refused in the same way, until that batch comes again, or one before it. Then the log is asked, and
//! from there on it knows the producer and finds gaps by itself.
//!
//! Only what was on its way already when the client heard of the refusal can be torn off, and idempotent producers
//! have no more than five requests under way, because brokers remember five batches. So a refusal is forgotten
//! after that many requests. It must be: when a partition moves away and later comes back, its producer has sent the
//! refused batch to the other broker, and would never get past this one.

use std::collections::HashMap;

use alluvium_log::BatchHeader;
use kafka_wire_core::Uuid;

use crate::errors::ErrorCode;

/// Requests that an idempotent producer has under way at most (`max.in.flight.requests.per.connection`).
const REQUESTS_UNDER_WAY: u64 = 5;
/// Refusals that one connection remembers, some 100 bytes each. More at once, as when thousands of partitions are
/// recovered, are not remembered: their batches are judged as Kafka would, one by one.
const REFUSALS_MAX: usize = 1024;

/// What one connection was refused of late.
#[derive(Debug, Default)]
pub(crate) struct Torn {
    /// Produce requests so far.
    requests: u64,
    refused: HashMap<Key, Refused>,
}

/// Whose batches belong together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Name or id, as the request says; copied, since the bytes of the request would be held otherwise.
    name: Box<str>,
    id: Uuid,
    partition: i32,
    producer_id: i64,
    producer_epoch: i16,
}

#[derive(Debug)]
struct Refused {
    sequence: i32,
    error: ErrorCode,
    /// The number of the request.
    request: u64,
}

/// A batch of an idempotent producer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequenced<'a> {
    name: &'a str,
    id: Uuid,
    partition: i32,
    producer_id: i64,
    producer_epoch: i16,
    sequence: i32,
}

impl<'a> Sequenced<'a> {
    /// Looks at the header alone: the batch may be refused before anybody checks it.
    pub(super) fn of(name: &'a str, id: Uuid, partition: i32, records: Option<&[u8]>) -> Option<Self> {
        let header = BatchHeader::parse(records?).ok()?;
        (header.producer_id >= 0).then_some(Sequenced {
            name,
            id,
            partition,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            sequence: header.base_sequence,
        })
    }

    fn key(&self) -> Key {
        Key {
            name: self.name.into(),
            id: self.id,
            partition: self.partition,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
        }
    }
}

impl Torn {
    /// Another Produce request begins.
    pub(super) fn next_request(&mut self) {
        self.requests += 1;
        let now = self.requests;
        self.refused
            .retain(|_, refused| now - refused.request < REQUESTS_UNDER_WAY);
    }

    /// The error to refuse the batch with, if one before it was refused and has not come again.
    pub(super) fn refusal(&mut self, batch: &Sequenced<'_>) -> Option<ErrorCode> {
        if self.refused.is_empty() {
            return None;
        }
        let key = batch.key();
        let refused = self.refused.get(&key)?;
        if is_later(batch.sequence, refused.sequence) {
            return Some(refused.error);
        }
        self.refused.remove(&key);
        None
    }

    /// A batch that [`Torn::refusal`] let pass was refused.
    pub(super) fn note(&mut self, batch: &Sequenced<'_>, error: ErrorCode) {
        if is_sent_again(error) && self.refused.len() < REFUSALS_MAX {
            let refused = Refused {
                sequence: batch.sequence,
                error,
                request: self.requests,
            };
            self.refused.insert(batch.key(), refused);
        }
    }
}

/// Whether a producer sends the same batch again after this error, by itself and with the same sequence.
fn is_sent_again(error: ErrorCode) -> bool {
    matches!(
        error,
        ErrorCode::CorruptMessage
            | ErrorCode::UnknownTopicOrPartition
            | ErrorCode::LeaderNotAvailable
            | ErrorCode::NotLeaderOrFollower
            | ErrorCode::RequestTimedOut
            | ErrorCode::NotEnoughReplicas
            | ErrorCode::KafkaStorageError
            | ErrorCode::UnknownTopicId
            | ErrorCode::InconsistentTopicId
    )
}

/// Sequences go from 0 to `i32::MAX` and begin again: the later one is less than half of the circle ahead.
fn is_later(sequence: i32, than: i32) -> bool {
    let ahead = sequence.wrapping_sub(than) & i32::MAX;
    ahead != 0 && ahead <= i32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: ErrorCode = ErrorCode::NotLeaderOrFollower;

    fn batch(sequence: i32) -> Sequenced<'static> {
        Sequenced {
            name: "t",
            id: Uuid::default(),
            partition: 0,
            producer_id: 7,
            producer_epoch: 1,
            sequence,
        }
    }

    /// After a request whose only batch has this sequence and was refused.
    fn refused(sequence: i32) -> Torn {
        let mut torn = Torn::default();
        torn.next_request();
        assert_eq!(torn.refusal(&batch(sequence)), None);
        torn.note(&batch(sequence), ERROR);
        torn
    }

    #[test]
    fn later_batches_wait_for_the_refused_one() {
        for again in [10, 9] {
            let mut torn = refused(10);
            torn.next_request();
            assert_eq!(torn.refusal(&batch(11)), Some(ERROR));
            assert_eq!(torn.refusal(&batch(500)), Some(ERROR));
            assert_eq!(torn.refusal(&batch(again)), None);
            assert_eq!(torn.refusal(&batch(11)), None, "the log judges");
        }
    }

    #[test]
    fn others_are_not_held_back() {
        let mut torn = refused(10);
        let own = batch(11);
        let others = [
            Sequenced { name: "u", ..own },
            Sequenced {
                id: Uuid::from_bytes([1; 16]),
                ..own
            },
            Sequenced { partition: 1, ..own },
            Sequenced {
                producer_id: 8,
                ..own
            },
            Sequenced {
                producer_epoch: 2,
                ..own
            },
        ];
        for other in others {
            assert_eq!(torn.refusal(&other), None, "{other:?}");
        }
        assert_eq!(torn.refusal(&own), Some(ERROR));
    }

    #[test]
    fn only_what_was_under_way_is_held_back() {
        let mut torn = refused(10);
        for _ in 1..REQUESTS_UNDER_WAY {
            torn.next_request();
            assert_eq!(torn.refusal(&batch(11)), Some(ERROR));
        }
        torn.next_request();
        assert_eq!(torn.refusal(&batch(1001)), None);
    }

    #[test]
    fn an_error_for_good_holds_nothing_back() {
        for error in [ErrorCode::MessageTooLarge, ErrorCode::InvalidProducerEpoch] {
            let mut torn = Torn::default();
            torn.note(&batch(10), error);
            assert_eq!(torn.refusal(&batch(11)), None);
        }
    }

    #[test]
    fn sequences_are_compared_around_the_circle() {
        let mut torn = refused(i32::MAX);
        assert_eq!(torn.refusal(&batch(0)), Some(ERROR), "0 follows the largest");
        assert_eq!(torn.refusal(&batch(i32::MAX - 5)), None);
        let mut torn = refused(0);
        assert_eq!(torn.refusal(&batch(i32::MAX / 2)), Some(ERROR));
        assert_eq!(torn.refusal(&batch(i32::MAX)), None);
    }

    #[test]
    fn the_number_of_refusals_is_bounded() {
        let mut torn = Torn::default();
        let of = |partition| Sequenced {
            partition,
            ..batch(10)
        };
        let most = i32::try_from(REFUSALS_MAX).unwrap();
        (0..most + 10).for_each(|partition| torn.note(&of(partition), ERROR));
        assert_eq!(torn.refused.len(), REFUSALS_MAX);
        let next = |partition| Sequenced {
            sequence: 11,
            ..of(partition)
        };
        assert_eq!(torn.refusal(&next(most - 1)), Some(ERROR));
        assert_eq!(torn.refusal(&next(most)), None);
    }
}
