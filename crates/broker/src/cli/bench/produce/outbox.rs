//! What one producer has for one partition: batches in the order of their sequences, from the moment they are made
//! until they are acknowledged. Pure; the rules are those of Kafka's idempotent producers.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::payload::ReadyBatch;
use crate::cli::client::is_retriable;
use crate::errors::ErrorCode;

/// A batch that is not acknowledged yet.
#[derive(Debug)]
pub(super) struct Batch {
    /// Number of its first record in the order of the producer.
    pub(super) first: u64,
    /// How many records it has.
    pub(super) records: u64,
    /// When it was closed.
    pub(super) closed: Instant,
    /// Its bytes.
    pub(super) ready: ReadyBatch,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    in_flight: bool,
    batch: Batch,
}

/// Batches of one partition.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    entries: VecDeque<Entry>,
    next_id: u64,
    next_sequence: i32,
    /// Nothing is sent before this time, after an error.
    pause_until: Option<Instant>,
    /// Whether a batch was ever acknowledged. Until then there is only one in flight: a broker that does not know the
    /// producer takes any first sequence, so that the second batch could get in before the first, for which a new
    /// partition may not have been ready yet.
    is_established: bool,
}

/// What an answer means for its batch.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is in the log.
    Acknowledged(Batch),
    /// It is sent again with the same sequence.
    Again,
    /// It will never be taken.
    Refused,
    /// Nobody waits for this answer.
    Stray,
}

impl Outbox {
    /// Sequence of the next record.
    pub(super) fn next_sequence(&self) -> i32 {
        self.next_sequence
    }

    /// Batches in it.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Records in it.
    pub(super) fn records(&self) -> u64 {
        self.entries.iter().map(|entry| entry.batch.records).sum()
    }

    /// Whether a further batch may be sent at once: older ones that wait go first.
    pub(super) fn is_flowing(&self) -> bool {
        let has_window = self.is_established || self.entries.is_empty();
        has_window && self.entries.iter().all(|entry| entry.in_flight)
    }

    /// Whether a batch waits to be sent, perhaps again.
    pub(super) fn has_waiting(&self) -> bool {
        self.entries.iter().any(|entry| !entry.in_flight)
    }

    /// Adds a batch behind the others.
    pub(super) fn push(&mut self, batch: Batch) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        // Sequences go from i32::MAX to 0.
        self.next_sequence = self.next_sequence.wrapping_add(batch.records as i32) & i32::MAX;
        self.entries.push_back(Entry {
            id,
            in_flight: false,
            batch,
        });
        id
    }

    /// The batch that is to be sent next, if one may be sent now. After a failure everything that is in flight
    /// behind the failed batch is waited for, so that what follows cannot overtake it.
    pub(super) fn next_to_send(&self, now: Instant) -> Option<u64> {
        if self.pause_until.is_some_and(|until| now < until) {
            return None;
        }
        let first = self.entries.iter().position(|entry| !entry.in_flight)?;
        let overtaken = self.entries.iter().skip(first).any(|entry| entry.in_flight);
        let has_window = self.is_established || first == 0;
        (has_window && !overtaken).then(|| self.entries[first].id)
    }

    /// A batch by its id.
    pub(super) fn get(&self, id: u64) -> Option<&Batch> {
        let entry = self.entries.iter().find(|entry| entry.id == id)?;
        Some(&entry.batch)
    }

    /// The batch is on its way.
    pub(super) fn sent(&mut self, id: u64) {
        self.mark(id, true);
    }

    /// Nobody knows what became of the batch: it waits to be sent again.
    pub(super) fn lost(&mut self, id: u64) {
        self.mark(id, false);
    }

    fn mark(&mut self, id: u64, in_flight: bool) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.in_flight = in_flight;
        }
    }

    /// Takes the answer to a batch that is in flight.
    pub(super) fn answered(&mut self, id: u64, code: i16) -> Verdict {
        let Some(place) = self
            .entries
            .iter()
            .position(|entry| entry.id == id && entry.in_flight)
        else {
            return Verdict::Stray;
        };
        let done = code == ErrorCode::None.code() || code == ErrorCode::DuplicateSequenceNumber.code();
        // A batch in front of it failed; with the sequence unbroken it would mean that the broker lost records.
        let behind_failure = code == ErrorCode::OutOfOrderSequenceNumber.code() && place > 0;
        if done {
            self.is_established = true;
            let entry = self.entries.remove(place);
            entry.map_or(Verdict::Stray, |entry| Verdict::Acknowledged(entry.batch))
        } else if is_retriable(code) || behind_failure {
            self.lost(id);
            Verdict::Again
        } else {
            Verdict::Refused
        }
    }

    /// Sends nothing before this time.
    pub(super) fn pause(&mut self, until: Instant) {
        self.pause_until = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn batch(records: u64) -> Batch {
        Batch {
            first: 0,
            records,
            closed: Instant::now(),
            ready: ReadyBatch {
                header: [0; 61],
                body: bytes::Bytes::new(),
                record_bytes: 0,
            },
        }
    }

    fn filled(count: u64) -> Outbox {
        let mut outbox = Outbox {
            is_established: true,
            ..Outbox::default()
        };
        for expected in 0..count {
            assert_eq!(outbox.push(batch(10)), expected);
            outbox.sent(expected);
        }
        outbox
    }

    #[test]
    fn batches_leave_when_acknowledged() {
        let mut outbox = filled(3);
        assert_eq!(
            (outbox.len(), outbox.records(), outbox.next_sequence()),
            (3, 30, 30)
        );
        assert!(outbox.is_flowing() && !outbox.has_waiting());
        assert!(matches!(outbox.answered(0, 0), Verdict::Acknowledged(_)));
        // A duplicate is in the log already.
        assert!(matches!(outbox.answered(1, 46), Verdict::Acknowledged(_)));
        assert!(matches!(outbox.answered(1, 0), Verdict::Stray));
        assert_eq!(outbox.len(), 1);
    }

    #[test]
    fn what_failed_is_sent_again_in_order_when_all_behind_it_is_answered() {
        let now = Instant::now();
        let mut outbox = filled(3);
        assert!(matches!(outbox.answered(0, 6), Verdict::Again));
        assert!(!outbox.is_flowing());
        assert_eq!(outbox.next_to_send(now), None, "1 and 2 are in flight");
        assert!(matches!(outbox.answered(1, 45), Verdict::Again));
        assert!(matches!(outbox.answered(2, 45), Verdict::Again));
        outbox.pause(now + Duration::from_millis(50));
        assert_eq!(outbox.next_to_send(now), None);
        let now = now + Duration::from_millis(50);
        for expected in 0..3 {
            assert_eq!(outbox.next_to_send(now), Some(expected));
            outbox.sent(expected);
        }
        assert!(outbox.is_flowing());
        assert_eq!(outbox.next_sequence(), 30, "sequences stay");
    }

    #[test]
    fn a_lost_connection_sends_everything_again() {
        let mut outbox = filled(2);
        outbox.lost(0);
        outbox.lost(1);
        assert_eq!(outbox.next_to_send(Instant::now()), Some(0));
        assert!(
            matches!(outbox.answered(0, 0), Verdict::Stray),
            "an answer from before"
        );
    }

    #[test]
    fn a_hole_at_the_head_is_a_broken_promise() {
        let mut outbox = filled(2);
        assert!(matches!(outbox.answered(0, 45), Verdict::Refused));
        assert!(matches!(outbox.answered(0, 10), Verdict::Refused));
    }

    #[test]
    fn the_first_batch_goes_alone() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        assert!(outbox.is_flowing());
        assert_eq!((outbox.push(batch(1)), outbox.push(batch(1))), (0, 1));
        assert_eq!(outbox.next_to_send(now), Some(0));
        outbox.sent(0);
        assert_eq!(outbox.next_to_send(now), None);
        assert!(matches!(outbox.answered(0, 3), Verdict::Again));
        assert_eq!(outbox.next_to_send(now), Some(0));
        outbox.sent(0);
        assert!(matches!(outbox.answered(0, 0), Verdict::Acknowledged(_)));
        assert_eq!(outbox.next_to_send(now), Some(1));
        outbox.sent(1);
        assert!(outbox.is_flowing());
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut outbox = Outbox {
            next_sequence: i32::MAX - 4,
            ..Outbox::default()
        };
        outbox.push(batch(10));
        assert_eq!(outbox.next_sequence(), 5);
    }
}
