//! Which half of the journal has room, and which one is due. Pure: no file, no lock, no clock.
//!
//! A half is free, then filling, then sealed; a sealed half whose writes have all ended is drained, and free
//! again. At most one half is filling.

use std::time::Instant;

use super::format::RECORDS_START;

pub(super) const HALVES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Filling(Fill),
    Sealed(Fill),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fill {
    /// Where the next record goes.
    end: u64,
    /// Records that are being written.
    writing: u32,
    /// When the first record was given its place.
    since: Instant,
}

/// The room in both halves.
#[derive(Debug)]
pub(super) struct Room {
    half_bytes: u64,
    phases: [Phase; HALVES],
}

impl Room {
    pub(super) fn new(half_bytes: u64) -> Room {
        Room {
            half_bytes,
            phases: [Phase::Free; HALVES],
        }
    }

    /// A place for a record: half and offset. A half that cannot take it is sealed.
    pub(super) fn reserve(&mut self, bytes: u64, now: Instant) -> Option<(usize, u64)> {
        let start = RECORDS_START as u64;
        if bytes > self.half_bytes.saturating_sub(start) {
            return None;
        }
        for (half, phase) in self.phases.iter_mut().enumerate() {
            if let Phase::Filling(fill) = phase {
                if fill.end + bytes <= self.half_bytes {
                    let offset = fill.end;
                    fill.end += bytes;
                    fill.writing += 1;
                    return Some((half, offset));
                }
                *phase = Phase::Sealed(*fill);
            }
        }
        let half = self.phases.iter().position(|phase| *phase == Phase::Free)?;
        self.phases[half] = Phase::Filling(Fill {
            end: start + bytes,
            writing: 1,
            since: now,
        });
        Some((half, start))
    }

    /// A record's write has ended, well or not.
    pub(super) fn written(&mut self, half: usize) {
        if let Phase::Filling(fill) | Phase::Sealed(fill) = &mut self.phases[half] {
            fill.writing = fill.writing.saturating_sub(1);
        }
    }

    /// Seals the half that has been filling since `then` or before.
    pub(super) fn seal_older(&mut self, then: Instant) {
        for phase in &mut self.phases {
            if let Phase::Filling(fill) = phase
                && fill.since <= then
            {
                *phase = Phase::Sealed(*fill);
            }
        }
    }

    /// Since when a half has been filling.
    pub(super) fn filling_since(&self) -> Option<Instant> {
        self.phases.iter().find_map(|phase| match phase {
            Phase::Filling(fill) => Some(fill.since),
            _ => None,
        })
    }

    /// The sealed half that nobody writes to any more; of two, the older one.
    pub(super) fn drainable(&self) -> Option<usize> {
        let sealed = self
            .phases
            .iter()
            .enumerate()
            .filter_map(|(half, phase)| match phase {
                Phase::Sealed(fill) if fill.writing == 0 => Some((fill.since, half)),
                _ => None,
            });
        sealed.min().map(|(_, half)| half)
    }

    /// A drained half has a new header.
    pub(super) fn freed(&mut self, half: usize) {
        self.phases[half] = Phase::Free;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.phases.iter().all(|phase| *phase == Phase::Free)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BLOCK: u64 = 4096;

    #[test]
    fn halves_take_turns() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut room = Room::new(5 * BLOCK);
        assert!(room.is_empty());
        assert_eq!(room.reserve(4 * BLOCK, start), None, "larger than a half");
        assert!(room.is_empty());
        assert_eq!(room.reserve(BLOCK, start), Some((0, 2 * BLOCK)));
        assert_eq!(room.reserve(2 * BLOCK, after(1)), Some((0, 3 * BLOCK)));
        assert_eq!((room.filling_since(), room.drainable()), (Some(start), None));
        // The first is full: the second begins, and the first waits for its writers.
        assert_eq!(room.reserve(3 * BLOCK, after(2)), Some((1, 2 * BLOCK)));
        assert_eq!((room.filling_since(), room.drainable()), (Some(after(2)), None));
        room.written(0);
        assert_eq!(room.drainable(), None);
        room.written(0);
        assert_eq!(room.drainable(), Some(0));
        // The second is full as well.
        assert_eq!(room.reserve(BLOCK, after(3)), None);
        room.written(1);
        assert_eq!(room.drainable(), Some(0), "the older one first");
        room.freed(0);
        assert_eq!(room.drainable(), Some(1));
        assert_eq!(room.reserve(BLOCK, after(4)), Some((0, 2 * BLOCK)));
        room.freed(1);
        room.written(0);
        room.seal_older(after(3));
        assert_eq!(room.drainable(), None, "too young");
        room.seal_older(after(4));
        assert_eq!((room.filling_since(), room.drainable()), (None, Some(0)));
        assert!(!room.is_empty());
        room.freed(0);
        assert!(room.is_empty());
    }
}
