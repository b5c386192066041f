//! What a client has sent behind a batch that was refused.
//!
//! Clients keep several batches in flight. If the first of a new producer is refused because this broker does not lead
//! the partition *yet*, and leads it a moment later, the ones behind it must not be appended: to the log an unknown
//! producer may begin anywhere (KIP-360), so they would be, and the first, sent again, would look like a duplicate from
//! long ago. Clients take that answer for success, and the records would be lost in silence. So whatever follows a
//! refused batch on its connection is refused too, until the batch itself, or one before it, comes again.

use std::collections::HashMap;

use alluvium_log::BatchHeader;
use kafka_wire_core::{StrBytes, Uuid};

/// Refused batches that are remembered per connection. One client writes to few partitions that move at once.
const REFUSED_MAX: usize = 4_096;

/// A partition as the client names it, and a producer.
type Key = (StrBytes, Uuid, i32, i64);

/// A batch of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    producer_id: i64,
    epoch: i16,
    sequence: i32,
}

impl Sent {
    /// `None` for a producer that does not number its batches, or bytes that are no batch.
    pub(crate) fn of(records: Option<&[u8]>) -> Option<Sent> {
        let header = BatchHeader::parse(records?).ok()?;
        (header.producer_id >= 0 && header.base_sequence >= 0).then_some(Sent {
            producer_id: header.producer_id,
            epoch: header.producer_epoch,
            sequence: header.base_sequence,
        })
    }

    fn is_behind(&self, refused: &Sent) -> bool {
        // Sequences wrap: behind means less than half the circle away.
        let ahead = self.sequence.wrapping_sub(refused.sequence) & i32::MAX;
        self.epoch == refused.epoch && ahead != 0 && ahead < 1 << 30
    }
}

/// The refused batches of one connection.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    refused: HashMap<Key, Sent>,
}

impl Pipeline {
    /// Whether a batch came behind one that was refused, and must be refused as well.
    pub(crate) fn must_refuse(&mut self, topic: &StrBytes, id: Uuid, index: i32, sent: &Sent) -> bool {
        if self.refused.is_empty() {
            return false;
        }
        let key = (topic.clone(), id, index, sent.producer_id);
        match self.refused.get(&key) {
            Some(refused) if sent.is_behind(refused) => true,
            _ => {
                self.refused.remove(&key);
                false
            }
        }
    }

    /// Remembers a batch that was refused and will be sent again.
    pub(crate) fn refuse(&mut self, topic: &StrBytes, id: Uuid, index: i32, sent: Sent) {
        if self.refused.len() < REFUSED_MAX {
            let key = (topic.clone(), id, index, sent.producer_id);
            self.refused.entry(key).or_insert(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::batch::BatchBuilder;

    fn sent(sequence: i32) -> Sent {
        let mut batch = BatchBuilder::new().producer(7, 0, sequence);
        batch.push(0, None, Some(b"v"), &[]);
        Sent::of(Some(batch.build().bytes())).unwrap()
    }

    #[test]
    fn what_follows_a_refused_batch_is_refused_until_it_comes_again() {
        let (mut pipeline, name) = (Pipeline::default(), StrBytes::from("t"));
        let mut must =
            |p: &mut Pipeline, index, sequence| p.must_refuse(&name, Uuid::ZERO, index, &sent(sequence));
        assert!(!must(&mut pipeline, 0, 5));
        pipeline.refuse(&name, Uuid::ZERO, 0, sent(5));
        assert!(must(&mut pipeline, 0, 6) && must(&mut pipeline, 0, 9));
        assert!(!must(&mut pipeline, 1, 6), "another partition");
        assert!(!must(&mut pipeline, 0, 5), "the batch itself comes again");
        assert!(!must(&mut pipeline, 0, 6));
        pipeline.refuse(&name, Uuid::ZERO, 0, sent(i32::MAX));
        assert!(must(&mut pipeline, 0, 0), "sequences wrap");
        assert!(!must(&mut pipeline, 0, i32::MAX - 3), "one before it comes again");
    }

    #[test]
    fn only_numbered_batches_count() {
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(b"v"), &[]);
        assert_eq!(Sent::of(Some(batch.build().bytes())), None);
        assert_eq!(Sent::of(Some(b"no batch")), None);
        assert_eq!(Sent::of(None), None);
    }
}
