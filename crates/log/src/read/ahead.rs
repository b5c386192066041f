//! What a cold reader will want next: the pure part of read-ahead.
//!
//! Consumers hold their own position, so the log knows a reader only by its reads: one that begins where an
//! earlier one ended goes on through the partition. Its window doubles with every step up to a limit, as for
//! files in an operating system, and all windows together fit into half of the block cache, so that what was
//! read ahead is still there when it is asked for.

use std::hash::Hash;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tokio::time::Instant;

use crate::Offset;

/// Readers that are remembered.
const READERS_MAX: usize = 1024;
/// A reader that does not come back within this time has left.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// How far ahead readers may be, in whatever unit the owner counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// What a reader who was seen going on gets first.
    pub first: usize,
    /// What one reader gets at most.
    pub max: usize,
    /// For all windows together.
    pub budget: usize,
}

/// One reader, between its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// How much is to be read ahead.
    pub window: usize,
    /// Everything before this offset is read ahead already.
    pub ahead_to: Offset,
    /// Bytes that it got for each that is stored, about, once that is known: history is compressed.
    pub expansion: Option<u64>,
    seen: Instant,
}

/// The readers that may go on, each in a partition `P`.
#[derive(Debug)]
pub struct ReadAhead<P> {
    /// By where the next read will begin.
    readers: HashMap<(P, Offset), Reader>,
    /// When those who left were last looked for: they would hold a share for ever.
    swept: Option<Instant>,
    windows: Windows,
}

impl<P: Eq + Hash> ReadAhead<P> {
    /// Nobody reads yet.
    pub fn new(windows: Windows) -> ReadAhead<P> {
        ReadAhead {
            readers: HashMap::new(),
            swept: None,
            windows,
        }
    }

    /// The reader that begins at `offset`: one that goes on, with a larger window, or a new one with none. Who begins
    /// `at_start`, where the partition does, will go on, too.
    pub fn begin(&mut self, partition: P, offset: Offset, at_start: bool, now: Instant) -> Reader {
        if self
            .swept
            .is_none_or(|at| now.saturating_duration_since(at) >= FORGOTTEN_AFTER)
        {
            self.readers
                .retain(|_, r| now.saturating_duration_since(r.seen) < FORGOTTEN_AFTER);
            self.swept = Some(now);
        }
        let known = self.readers.remove(&(partition, offset));
        let Windows { first, max, budget } = self.windows;
        let share = budget / (self.readers.len() + 1);
        let window = match known {
            Some(reader) => (reader.window * 2).clamp(first, max),
            None if at_start => first,
            None => 0,
        };
        Reader {
            window: window.min(share),
            ahead_to: known.map_or(offset, |r| r.ahead_to),
            expansion: known.and_then(|r| r.expansion),
            seen: now,
        }
    }

    /// Remembers a reader whose next read will begin at `next`.
    pub fn end(&mut self, partition: P, next: Offset, reader: Reader) {
        let known = self.readers.len();
        match self.readers.entry((partition, next)) {
            // Another one is at the same place: what is read ahead serves both.
            Entry::Occupied(mut other) => {
                let other = other.get_mut();
                other.window = other.window.max(reader.window);
                other.ahead_to = other.ahead_to.max(reader.ahead_to);
                other.expansion = reader.expansion.or(other.expansion);
                other.seen = reader.seen;
            }
            Entry::Vacant(place) if known < READERS_MAX => {
                place.insert(reader);
            }
            Entry::Vacant(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopicPartition;
    use uuid::Uuid;

    const FIRST: usize = 8;

    fn windows(budget: usize) -> Windows {
        Windows {
            first: FIRST,
            max: 32,
            budget,
        }
    }

    fn partition(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: Uuid::nil(),
            partition,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_grows_while_a_reader_goes_on() {
        let (mut ahead, now) = (ReadAhead::new(windows(1000)), Instant::now());
        let (mut offset, mut windows) = (0, vec![]);
        for _ in 0..6 {
            let mut reader = ahead.begin(partition(0), offset, false, now);
            windows.push(reader.window);
            reader.ahead_to = offset + 50;
            offset += 10;
            ahead.end(partition(0), offset, reader);
        }
        assert_eq!(windows, [0, 8, 16, 32, 32, 32]);
        assert_eq!(
            ahead.begin(partition(0), offset, false, now).ahead_to,
            offset + 40
        );
        assert_eq!(
            ahead.begin(partition(0), offset, false, now).window,
            0,
            "one step is taken once"
        );
        assert_eq!(
            ahead.begin(partition(1), offset, false, now).window,
            0,
            "another partition"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_at_the_start_goes_on() {
        let (mut ahead, now) = (ReadAhead::new(windows(1000)), Instant::now());
        let mut reader = ahead.begin(partition(0), 5, true, now);
        assert_eq!((reader.window, reader.expansion), (FIRST, None));
        reader.expansion = Some(9);
        ahead.end(partition(0), 15, reader);
        let reader = ahead.begin(partition(0), 15, true, now);
        assert_eq!((reader.window, reader.expansion), (FIRST * 2, Some(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_share_the_budget_and_those_who_left_are_forgotten() {
        let mut ahead = ReadAhead::new(windows(64));
        for n in 0..20 {
            let reader = ahead.begin(partition(n), 0, false, Instant::now());
            ahead.end(partition(n), 10, reader);
        }
        assert_eq!(
            ahead.begin(partition(0), 10, false, Instant::now()).window,
            3,
            "64 / 20"
        );
        for n in 0..5000 {
            let reader = ahead.begin(partition(n), 0, false, Instant::now());
            ahead.end(partition(n), 10, reader);
        }
        assert_eq!(ahead.readers.len(), READERS_MAX);
        assert_eq!(
            ahead.begin(partition(7), 10, false, Instant::now()).window,
            0,
            "no share is left"
        );
        tokio::time::advance(FORGOTTEN_AFTER).await;
        let reader = ahead.begin(partition(0), 0, false, Instant::now());
        ahead.end(partition(0), 10, reader);
        assert_eq!(ahead.readers.len(), 1);
        assert_eq!(ahead.begin(partition(0), 10, false, Instant::now()).window, FIRST);
    }
}
