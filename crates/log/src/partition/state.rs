//! The pure state of one partition's log: what an append may do, and what an entry does to it.
//!
//! One function, [`PartitionState::apply`], serves assignment (in the appender), publication and recovery, so
//! that the three cannot disagree (invariants 2 and 3 of the design). [`PartitionState::check`] decides about
//! an append as Kafka's `ProducerStateManager` does.

use std::time::Duration;

use hashbrown::HashMap;

use crate::batch::BatchHeader;
use crate::entry::{BatchEntry, BatchProducer, Entry};
use crate::log::AppendError;
use crate::{Offset, TopicPartition};

/// Batches remembered per producer: a retry of any of them is answered with its original offset.
/// Clients keep at most five requests in flight (KIP-98).
pub const REMEMBERED_BATCHES: usize = 5;

/// State of a log, without its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    /// First offset that may be read.
    pub log_start: Offset,
    /// Next offset to be given. For published state this is the high watermark.
    pub end: Offset,
    /// Time (ms) of the newest append.
    pub append_time_ms: i64,
    /// Each leader epoch that wrote something at or above the log start, with its first offset (KIP-101); at least the
    /// newest that wrote.
    pub epochs: Vec<(i32, Offset)>,
    /// Idempotent producers by id.
    pub producers: HashMap<i64, ProducerState>,
}

/// What is remembered of one idempotent producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Newest epoch.
    pub epoch: i16,
    /// Time (ms) of its newest append, for expiry.
    pub append_time_ms: i64,
    /// The newest batches, oldest first; at most [`REMEMBERED_BATCHES`].
    pub batches: Vec<RememberedBatch>,
}

/// One remembered batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RememberedBatch {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// Its greatest timestamp (ms).
    pub max_timestamp: i64,
}

/// What an append may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it at the log's end.
    Append,
    /// It is there already: answer with the original offset, once that is published.
    Duplicate(RememberedBatch),
    /// Refuse it.
    Reject(AppendError),
}

/// An entry does not fit the state before it: the stored log is damaged or the protocol was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{partition:?}: {what} (at offset {offset}, the log ends at {end})")]
pub struct Misfit {
    /// The partition.
    pub partition: TopicPartition,
    /// Offset in the entry.
    pub offset: Offset,
    /// End of the log before it.
    pub end: Offset,
    /// What is wrong.
    pub what: &'static str,
}

/// The sequence that follows `sequence` by `n`; wraps to 0 after `i32::MAX`.
pub fn sequence_after(sequence: i32, n: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(n);
    (sum % (i64::from(i32::MAX) + 1)) as i32
}

/// Producer fields of a batch header, if it has a producer.
pub fn producer_of(h: &BatchHeader) -> Option<BatchProducer> {
    (h.producer_id >= 0).then(|| BatchProducer {
        id: h.producer_id,
        epoch: h.producer_epoch,
        first_sequence: h.base_sequence,
        last_sequence: if h.base_sequence < 0 {
            h.base_sequence
        } else {
            sequence_after(h.base_sequence, h.last_offset_delta)
        },
    })
}

impl PartitionState {
    /// Decides about a batch of an idempotent producer, or of none. Changes nothing.
    pub fn check(&self, producer: Option<BatchProducer>) -> Verdict {
        let Some(p) = producer else { return Verdict::Append };
        // An unknown producer may begin anywhere: its state may have expired here (KIP-360).
        let Some(known) = self.producers.get(&p.id) else {
            return Verdict::Append;
        };
        if p.epoch < known.epoch {
            return Verdict::Reject(AppendError::InvalidProducerEpoch {
                current: known.epoch,
                got: p.epoch,
            });
        }
        if p.epoch > known.epoch {
            return if p.first_sequence == 0 {
                Verdict::Append
            } else {
                Verdict::Reject(AppendError::OutOfOrderSequence {
                    expected: 0,
                    got: p.first_sequence,
                })
            };
        }
        let same =
            |b: &&RememberedBatch| (b.first_sequence, b.last_sequence) == (p.first_sequence, p.last_sequence);
        if let Some(original) = known.batches.iter().find(same) {
            return Verdict::Duplicate(*original);
        }
        let Some(newest) = known.batches.last() else {
            return Verdict::Append;
        };
        let expected = sequence_after(newest.last_sequence, 1);
        if p.first_sequence == expected {
            return Verdict::Append;
        }
        // Sequences wrap, so "before" means less than half the circle behind.
        let behind = i64::from(expected)
            .wrapping_sub(i64::from(p.first_sequence))
            .rem_euclid(1 << 31);
        if behind > 0 && behind < 1 << 30 {
            Verdict::Reject(AppendError::DuplicateSequence)
        } else {
            Verdict::Reject(AppendError::OutOfOrderSequence {
                expected,
                got: p.first_sequence,
            })
        }
    }

    /// Applies one entry of this partition.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Misfit> {
        match entry {
            Entry::Batches(range) => {
                for b in &range.batches {
                    self.apply_batch(range.partition, range.leader_epoch, range.append_time_ms, b)?;
                }
            }
            Entry::LogStart {
                partition, offset, ..
            } => {
                if *offset > self.end {
                    return Err(self.misfit(*partition, *offset, "a log start beyond the end"));
                }
                self.log_start = self.log_start.max(*offset);
                self.forget_epochs();
            }
            // It speaks of a slot and changes no partition.
            Entry::Release { .. } => {}
            // Bytes have moved, and records may be gone by compaction; which offsets are taken has not changed.
            Entry::Merged(_) | Entry::Compacted(_) | Entry::Archived(_) => {
                if let Some(r) = entry.rewrite().filter(|r| r.last_offset >= self.end) {
                    return Err(self.misfit(r.partition, r.last_offset, "a pointer beyond the end"));
                }
            }
        }
        Ok(())
    }

    /// Forgets epochs that ended at or below the log start: there is one more with every failover. The last that began
    /// there stays, whether or not it has ended.
    fn forget_epochs(&mut self) {
        let begun = self.epochs.partition_point(|(_, start)| *start <= self.log_start);
        self.epochs.drain(..begun.saturating_sub(1));
    }

    /// Applies one batch.
    pub fn apply_batch(
        &mut self,
        partition: TopicPartition,
        leader_epoch: i32,
        append_time_ms: i64,
        b: &BatchEntry,
    ) -> Result<(), Misfit> {
        if b.base_offset != self.end {
            return Err(self.misfit(partition, b.base_offset, "a batch that does not begin at the end"));
        }
        if b.last_offset < b.base_offset {
            return Err(self.misfit(partition, b.base_offset, "a batch that ends before it begins"));
        }
        match self.epochs.last() {
            Some((newest, _)) if *newest > leader_epoch => {
                return Err(self.misfit(partition, b.base_offset, "an epoch older than one before it"));
            }
            Some((newest, _)) if *newest == leader_epoch => {}
            _ => self.epochs.push((leader_epoch, b.base_offset)),
        }
        self.end = b.last_offset + 1;
        self.append_time_ms = self.append_time_ms.max(append_time_ms);
        if let Some(p) = b.producer {
            self.remember(p, b, append_time_ms);
        }
        Ok(())
    }

    fn remember(&mut self, p: BatchProducer, b: &BatchEntry, append_time_ms: i64) {
        let state = self.producers.entry(p.id).or_insert_with(|| ProducerState {
            epoch: p.epoch,
            append_time_ms,
            batches: Vec::with_capacity(REMEMBERED_BATCHES),
        });
        if p.epoch != state.epoch {
            state.epoch = p.epoch;
            state.batches.clear();
        }
        state.append_time_ms = append_time_ms;
        if state.batches.len() == REMEMBERED_BATCHES {
            state.batches.remove(0);
        }
        state.batches.push(RememberedBatch {
            first_sequence: p.first_sequence,
            last_sequence: p.last_sequence,
            base_offset: b.base_offset,
            last_offset: b.last_offset,
            max_timestamp: b.max_timestamp,
        });
    }

    /// Forgets producers that have not appended for `expiration` (`producer.id.expiration.ms`).
    pub fn expire_producers(&mut self, now_ms: i64, expiration: Duration) {
        let oldest = now_ms.saturating_sub(expiration.as_millis().min(i64::MAX as u128) as i64);
        self.producers.retain(|_, p| p.append_time_ms >= oldest);
    }

    /// KIP-320: the largest epoch not above `epoch` and the offset where it ends, or (-1, -1).
    /// `current` is the partition's leader epoch, which may not have written yet.
    pub fn end_offset_for_epoch(&self, epoch: i32, current: i32) -> (i32, Offset) {
        const UNDEFINED: (i32, Offset) = (-1, -1);
        if epoch < 0 || epoch > current {
            return UNDEFINED;
        }
        if epoch == current {
            return (epoch, self.end);
        }
        let higher = self.epochs.partition_point(|(e, _)| *e <= epoch);
        let end = self.epochs.get(higher).map_or(self.end, |(_, start)| *start);
        match higher.checked_sub(1).and_then(|i| self.epochs.get(i)) {
            Some((found, _)) => (*found, end),
            // Older than anything kept: it ended where the log now begins.
            None => (epoch, end.max(self.log_start).min(self.end)),
        }
    }

    /// Leader epoch under which `offset` was given, or -1.
    pub fn epoch_of(&self, offset: Offset) -> i32 {
        let after = self.epochs.partition_point(|(_, start)| *start <= offset);
        after.checked_sub(1).map_or(-1, |i| self.epochs[i].0)
    }

    fn misfit(&self, partition: TopicPartition, offset: Offset, what: &'static str) -> Misfit {
        Misfit {
            partition,
            offset,
            end: self.end,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn tp() -> TopicPartition {
        TopicPartition {
            topic: Uuid::from_u128(7),
            partition: 0,
        }
    }

    fn producer(id: i64, epoch: i16, first: i32, n: i32) -> BatchProducer {
        BatchProducer {
            id,
            epoch,
            first_sequence: first,
            last_sequence: sequence_after(first, n - 1),
        }
    }

    /// Appends as the log does: check, then apply.
    fn append(s: &mut PartitionState, p: Option<BatchProducer>, n: i32) -> Result<Offset, Verdict> {
        match s.check(p) {
            Verdict::Append => {
                let base = s.end;
                let b = BatchEntry {
                    base_offset: base,
                    last_offset: base + i64::from(n) - 1,
                    records: n as u32,
                    size: 100,
                    base_timestamp: 0,
                    max_timestamp: 0,
                    attributes: 0,
                    producer: p,
                };
                s.apply_batch(tp(), 1, 0, &b).unwrap();
                Ok(base)
            }
            Verdict::Duplicate(original) => Ok(original.base_offset),
            other => Err(other),
        }
    }

    #[test]
    fn a_retry_gets_the_original_offset_and_a_gap_is_refused() {
        let mut s = PartitionState::default();
        for i in 0..6 {
            assert_eq!(
                append(&mut s, Some(producer(1, 0, i * 2, 2)), 2),
                Ok(i64::from(i) * 2)
            );
        }
        assert_eq!(append(&mut s, Some(producer(1, 0, 2, 2)), 2), Ok(2));
        assert_eq!(s.end, 12);
        assert_eq!(
            append(&mut s, Some(producer(1, 0, 0, 2)), 2),
            Err(Verdict::Reject(AppendError::DuplicateSequence)),
            "the sixth oldest is no longer remembered"
        );
        assert_eq!(
            append(&mut s, Some(producer(1, 0, 20, 1)), 1),
            Err(Verdict::Reject(AppendError::OutOfOrderSequence {
                expected: 12,
                got: 20
            }))
        );
        assert_eq!(
            append(&mut s, Some(producer(1, 0, 10, 3)), 3),
            Err(Verdict::Reject(AppendError::DuplicateSequence)),
            "same first sequence, other length: not the same batch, and not a new one"
        );
    }

    #[test]
    fn epochs_fence_and_restart_sequences() {
        let mut s = PartitionState::default();
        append(&mut s, Some(producer(1, 5, 0, 1)), 1).unwrap();
        assert_eq!(
            append(&mut s, Some(producer(1, 4, 1, 1)), 1),
            Err(Verdict::Reject(AppendError::InvalidProducerEpoch {
                current: 5,
                got: 4
            }))
        );
        assert!(append(&mut s, Some(producer(1, 6, 1, 1)), 1).is_err());
        assert_eq!(append(&mut s, Some(producer(1, 6, 0, 1)), 1), Ok(1));
        assert_eq!(
            append(&mut s, Some(producer(2, 0, 77, 1)), 1),
            Ok(2),
            "an unknown producer begins anywhere"
        );
    }

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
        let mut s = PartitionState::default();
        append(&mut s, Some(producer(1, 0, i32::MAX - 1, 2)), 2).unwrap();
        assert_eq!(append(&mut s, Some(producer(1, 0, 0, 1)), 1), Ok(2));
        assert_eq!(append(&mut s, Some(producer(1, 0, i32::MAX - 1, 2)), 2), Ok(0));
    }

    #[test]
    fn epoch_ends_follow_kip_320() {
        let s = PartitionState {
            end: 30,
            epochs: vec![(2, 0), (5, 10), (6, 20)],
            ..Default::default()
        };
        assert_eq!(s.end_offset_for_epoch(2, 7), (2, 10));
        assert_eq!(s.end_offset_for_epoch(4, 7), (2, 10));
        assert_eq!(s.end_offset_for_epoch(6, 7), (6, 30));
        assert_eq!(s.end_offset_for_epoch(7, 7), (7, 30));
        assert_eq!(s.end_offset_for_epoch(8, 7), (-1, -1));
        assert_eq!(s.end_offset_for_epoch(1, 7), (1, 0));
        assert_eq!(s.end_offset_for_epoch(-1, 7), (-1, -1));
        assert_eq!((s.epoch_of(0), s.epoch_of(19), s.epoch_of(25)), (2, 5, 6));
        assert_eq!(PartitionState::default().epoch_of(0), -1);
    }

    #[test]
    fn entries_that_do_not_fit_are_refused() {
        let mut s = PartitionState {
            end: 5,
            log_start: 2,
            epochs: vec![(3, 0)],
            ..Default::default()
        };
        let start = |offset| Entry::LogStart {
            partition: tp(),
            leader_epoch: 3,
            offset,
        };
        assert!(s.apply(&start(6)).is_err());
        s.apply(&start(1)).unwrap();
        assert_eq!(s.log_start, 2, "the log start never goes back");
        let b = BatchEntry {
            base_offset: 4,
            last_offset: 4,
            records: 1,
            size: 70,
            base_timestamp: 0,
            max_timestamp: 0,
            attributes: 0,
            producer: None,
        };
        assert!(s.apply_batch(tp(), 3, 0, &b).is_err());
        assert!(
            s.apply_batch(
                tp(),
                2,
                0,
                &BatchEntry {
                    base_offset: 5,
                    last_offset: 5,
                    ..b
                }
            )
            .is_err()
        );
        assert!(
            s.apply_batch(
                tp(),
                3,
                0,
                &BatchEntry {
                    base_offset: 5,
                    last_offset: 4,
                    ..b
                }
            )
            .is_err()
        );
        assert_eq!(s.end, 5);
    }

    /// A leader that appends, a newer one, or a log start that moves on.
    #[derive(Clone, Copy, Debug)]
    enum Turn {
        Append(i64),
        Failover,
        LogStart(i64),
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = prop_oneof![
            3 => (1i64..4).prop_map(Turn::Append),
            2 => Just(Turn::Failover),
            2 => (-2i64..6).prop_map(Turn::LogStart),
        ];
        proptest::collection::vec(turn, 1..60)
    }

    proptest! {
        /// What is told of the epochs of a log is what is told of one that keeps all of them, as far as its start.
        #[test]
        fn epochs_below_the_log_start_are_forgotten_and_missed_by_nobody(turns in turns()) {
            let (mut s, mut all, mut epoch) = (PartitionState::default(), PartitionState::default(), 1);
            for turn in turns {
                match turn {
                    Turn::Failover => epoch += 1,
                    Turn::Append(n) => {
                        let b = BatchEntry {
                            base_offset: s.end,
                            last_offset: s.end + n - 1,
                            records: n as u32,
                            size: 70,
                            base_timestamp: 0,
                            max_timestamp: 0,
                            attributes: 0,
                            producer: None,
                        };
                        s.apply_batch(tp(), epoch, 0, &b).unwrap();
                        all.apply_batch(tp(), epoch, 0, &b).unwrap();
                    }
                    Turn::LogStart(by) => {
                        let start = |offset| Entry::LogStart {
                            partition: tp(),
                            leader_epoch: epoch,
                            offset,
                        };
                        let to = (s.log_start + by).clamp(0, s.end);
                        s.apply(&start(to)).unwrap();
                        all.log_start = s.log_start;
                        // A checkpoint from before epochs were forgotten loses them with the next move.
                        let mut old = all.clone();
                        old.apply(&start(to)).unwrap();
                        prop_assert_eq!(&old, &s);
                        let needed = all.epochs.iter().filter(|(_, first)| *first > s.log_start);
                        prop_assert!(s.epochs.len() <= needed.count() + 1);
                    }
                }
                for offset in s.log_start..=s.end {
                    prop_assert_eq!(s.epoch_of(offset), all.epoch_of(offset));
                }
                let oldest = s.epochs.first().map_or(0, |(e, _)| *e);
                for asked in -1..=epoch + 1 {
                    let (told, of_all) = (
                        s.end_offset_for_epoch(asked, epoch),
                        all.end_offset_for_epoch(asked, epoch),
                    );
                    if (0..oldest).contains(&asked) {
                        // As Kafka says of epochs before its oldest.
                        prop_assert_eq!(told, (asked, s.log_start));
                        prop_assert!(told.1 >= of_all.1, "{told:?} would cut a log that ends at {of_all:?}");
                    } else {
                        prop_assert_eq!(told, of_all);
                    }
                }
            }
        }

        /// Producers that retry, skip and repeat at random, against a model that keeps everything.
        #[test]
        fn appends_agree_with_a_simple_model(
            ops in proptest::collection::vec((0i64..3, 0i16..2, 0i32..12, 1i32..3), 1..200)
        ) {
            let mut s = PartitionState::default();
            // Model: per producer, epoch and the full list of (first, last, offset).
            type Known = (i16, Vec<(i32, i32, i64)>);
            let mut model: std::collections::HashMap<i64, Known> = Default::default();
            let mut end = 0i64;
            for (id, epoch, first, n) in ops {
                let p = producer(id, epoch, first, n);
                let got = append(&mut s, Some(p), n);
                let last = first + n - 1;
                let known = model.entry(id).or_insert((-1, vec![]));
                let tail: Vec<_> = known.1.iter().rev().take(REMEMBERED_BATCHES).collect();
                let want = if known.0 == -1 || (epoch > known.0 && first == 0) {
                    Some(None)
                } else if epoch != known.0 {
                    None
                } else if let Some(dup) = tail.iter().find(|t| (t.0, t.1) == (first, last)) {
                    Some(Some(dup.2))
                } else if known.1.last().unwrap().1 + 1 == first {
                    Some(None)
                } else {
                    None
                };
                match want {
                    Some(Some(original)) => prop_assert_eq!(got, Ok(original)),
                    Some(None) => {
                        prop_assert_eq!(got, Ok(end));
                        if known.0 != epoch {
                            *known = (epoch, vec![]);
                        }
                        known.1.push((first, last, end));
                        end += i64::from(n);
                    }
                    None => prop_assert!(got.is_err()),
                }
                prop_assert_eq!(s.end, end);
            }
        }
    }
}
