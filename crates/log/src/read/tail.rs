//! The newest segments, kept in memory: a byte-budgeted ring by seq.
//!
//! Not a cache with an admission policy: those evict the newest entries first when readers are slow (a
//! TinyLFU cache dropped all of the newest 20 of 200 insertions in a test).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Seq;
use crate::entry::{Level, Place};
use crate::stream::writer::SegmentBytes;

/// Ring of the segments that this broker published last.
#[derive(Debug)]
pub(crate) struct TailRing {
    incarnation: crate::Incarnation,
    budget: u64,
    bytes: u64,
    first: Seq,
    segments: VecDeque<Arc<SegmentBytes>>,
}

impl TailRing {
    pub(crate) fn new(incarnation: crate::Incarnation, budget: u64) -> TailRing {
        TailRing {
            incarnation,
            budget,
            bytes: 0,
            first: 0,
            segments: VecDeque::new(),
        }
    }

    /// Adds the segment that was just published. The newest one always stays, whatever its size.
    pub(crate) fn push(&mut self, seq: Seq, segment: Arc<SegmentBytes>) {
        if self.first + self.segments.len() as Seq != seq {
            // Not the next one: begin anew rather than answer with the wrong bytes.
            self.segments.clear();
            self.bytes = 0;
            self.first = seq;
        }
        self.bytes += segment.len();
        self.segments.push_back(segment);
        while self.bytes > self.budget && self.segments.len() > 1 {
            if let Some(oldest) = self.segments.pop_front() {
                self.bytes -= oldest.len();
                self.first += 1;
            }
        }
    }

    pub(crate) fn get(&self, place: Place) -> Option<Arc<SegmentBytes>> {
        if !self.holds(place) {
            return None;
        }
        let i = usize::try_from(place.seq - self.first).ok()?;
        self.segments.get(i).cloned()
    }

    /// Whether [`TailRing::get`] would find it.
    pub(crate) fn holds(&self, place: Place) -> bool {
        let end = self.first + self.segments.len() as Seq;
        place.level == Level::L0
            && place.incarnation == self.incarnation
            && (self.first..end).contains(&place.seq)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::segment::SegmentHeader;
    use crate::stream::writer;
    use uuid::Uuid;

    fn segment(seq: Seq) -> Arc<SegmentBytes> {
        let header = SegmentHeader {
            incarnation: 1,
            seq,
            nonce: Uuid::nil(),
            manifest_version: 1,
            checkpoint_next: None,
            committed_next: seq,
            written_ms: 0,
            seal: None,
        };
        Arc::new(writer::build(header, Uuid::nil(), vec![], vec![]).bytes)
    }

    #[test]
    fn the_newest_stay_within_the_budget() {
        let one = segment(0).len();
        let mut ring = TailRing::new(1, one * 3 + one / 2);
        for seq in 0..10 {
            ring.push(seq, segment(seq));
            assert!(ring.bytes() <= one * 4);
        }
        let at = |seq| Place::l0(1, seq);
        assert!(ring.get(at(6)).is_none() && ring.get(at(7)).is_some() && ring.get(at(9)).is_some());
        assert!(ring.get(at(10)).is_none());
        assert!(ring.get(Place::l0(2, 9)).is_none());
        ring.push(20, segment(20));
        assert!(ring.get(at(9)).is_none() && ring.get(at(20)).is_some());
        let mut tiny = TailRing::new(1, 1);
        tiny.push(0, segment(0));
        assert!(tiny.get(at(0)).is_some(), "the newest stays, whatever its size");
    }
}
