//! Upload in parallel, publish in order: the pure part.
//!
//! Seq N is published only after N-1 (invariants 1 and 2): a segment that is durable early waits here.

use std::collections::VecDeque;

use crate::Seq;

/// Segments whose writes are under way, by seq without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window<T> {
    first: Seq,
    slots: VecDeque<(T, bool)>,
}

impl<T> Window<T> {
    /// An empty window of a stream whose next seq is `next`.
    pub fn new(next: Seq) -> Window<T> {
        Window {
            first: next,
            slots: VecDeque::new(),
        }
    }

    /// The seq that the next segment gets.
    pub fn next_seq(&self) -> Seq {
        self.first + self.slots.len() as Seq
    }

    /// First seq that is not published.
    pub fn published_next(&self) -> Seq {
        self.first
    }

    /// Writes whose outcome is open.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|(_, durable)| !durable).count()
    }

    /// Nothing under way and nothing waiting.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds a segment at [`Window::next_seq`].
    pub fn push(&mut self, segment: T) -> Seq {
        self.slots.push_back((segment, false));
        self.next_seq() - 1
    }

    /// A write is committed: returns what may be published now, in order.
    pub fn durable(&mut self, seq: Seq) -> Vec<T> {
        let at = seq.checked_sub(self.first).map(|i| i as usize);
        if let Some(slot) = at.and_then(|i| self.slots.get_mut(i)) {
            slot.1 = true;
        }
        let mut ready = vec![];
        while self.slots.front().is_some_and(|(_, durable)| *durable) {
            if let Some((segment, _)) = self.slots.pop_front() {
                ready.push(segment);
                self.first += 1;
            }
        }
        ready
    }

    /// Changes the segment of a seq, if it is here.
    pub(crate) fn change<R>(&mut self, seq: Seq, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let at = seq.checked_sub(self.first)? as usize;
        self.slots.get_mut(at).map(|(segment, _)| change(segment))
    }

    /// The stream is sealed: everything that is not published is dropped.
    pub fn fail(&mut self) -> Vec<T> {
        std::mem::take(&mut self.slots)
            .into_iter()
            .map(|(segment, _)| segment)
            .collect()
    }

    /// What was added last, if it is not published.
    pub fn newest(&self) -> Option<&T> {
        self.slots.back().map(|(segment, _)| segment)
    }

    /// What is under way or waits.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map(|(segment, _)| segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn publication_is_in_order_and_complete(order in Just((0u64..12).collect::<Vec<_>>()).prop_shuffle(), first in 0u64..9) {
            let mut w = Window::new(first);
            for i in 0..12 {
                prop_assert_eq!(w.push(first + i), first + i);
            }
            let (mut published, mut done) = (vec![], std::collections::HashSet::new());
            for i in order {
                done.insert(first + i);
                published.extend(w.durable(first + i));
                prop_assert!(published.iter().all(|s| done.contains(s)));
                prop_assert_eq!(w.in_flight(), 12 - done.len());
                prop_assert_eq!(w.published_next(), first + published.len() as u64);
            }
            prop_assert_eq!(published, (first..first + 12).collect::<Vec<_>>());
            prop_assert!(w.is_empty());
        }
    }

    #[test]
    fn a_failed_window_drops_what_is_not_published() {
        let mut w = Window::new(5);
        w.push('a');
        w.push('b');
        w.push('c');
        assert!(w.durable(6).is_empty());
        assert_eq!(w.fail(), vec!['a', 'b', 'c']);
        assert!(w.durable(5).is_empty(), "a late outcome changes nothing");
        assert!(w.durable(99).is_empty());
    }
}
