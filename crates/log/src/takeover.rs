//! Ending a stream: the pure part of a takeover.
//!
//! Safety comes from seals, never from clocks. The taker reads the stream from its newest checkpoint on and
//! creates a seal at the first missing seq; if the owner's write got there first, it goes on. After a seal
//! made *or found* it reads the head again: a seal below the floor is void (the range was deleted under the
//! taker), and it starts again from the newer checkpoint. Protects invariants 1 and 4.

use crate::Seq;
use crate::mutation::{self, Mutation};

/// What the head of the victim says: where reading starts, and below what segments may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadSeen {
    /// First seq that the newest durable checkpoint does not hold.
    pub checkpoint_next: Seq,
    /// The floor.
    pub floor: Seq,
}

/// A takeover of one stream, between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Takeover {
    /// The head must be read.
    Begin,
    /// The key of `probe` must be read.
    Probing {
        /// Next seq to look at.
        probe: Seq,
    },
    /// The key of `at` was missing: a seal must be created there.
    Sealing {
        /// Where.
        at: Seq,
    },
    /// A seal stands at `seal`: the head must be read again.
    Confirming {
        /// Where.
        seal: Seq,
    },
    /// The stream ends at `seal`: every taker will find the same.
    Sealed {
        /// Where.
        seal: Seq,
    },
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The head, or what holds where there is none.
    Head(HeadSeen),
    /// The key holds a segment.
    Data,
    /// The key holds a seal.
    Seal,
    /// The key is missing.
    Missing,
    /// Our seal was created.
    Created,
}

impl Takeover {
    /// The state after a step found `found`; the same state if the finding does not belong to it.
    pub fn on(self, found: Found) -> Takeover {
        match (self, found) {
            (Takeover::Begin, Found::Head(h)) => Takeover::Probing {
                probe: h.checkpoint_next,
            },
            (Takeover::Probing { probe }, Found::Data) => Takeover::Probing { probe: probe + 1 },
            (Takeover::Probing { probe }, Found::Seal) => Takeover::Confirming { seal: probe },
            (Takeover::Probing { probe }, Found::Missing) => Takeover::Sealing { at: probe },
            (Takeover::Sealing { at }, Found::Created | Found::Seal) => Takeover::Confirming { seal: at },
            // The owner's write won the race for the key: it is part of the log and must be read.
            (Takeover::Sealing { at }, Found::Data) => Takeover::Probing { probe: at },
            (Takeover::Confirming { seal }, Found::Head(h)) => {
                if seal < h.floor && !mutation::on(Mutation::FloorIgnored) {
                    Takeover::Probing {
                        probe: h.checkpoint_next,
                    }
                } else {
                    Takeover::Sealed { seal }
                }
            }
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(findings: &[Found]) -> Takeover {
        findings.iter().fold(Takeover::Begin, |t, f| t.on(*f))
    }

    fn head(checkpoint_next: Seq, floor: Seq) -> Found {
        Found::Head(HeadSeen {
            checkpoint_next,
            floor,
        })
    }

    #[test]
    fn it_reads_to_the_first_gap_and_seals_it() {
        let t = run(&[
            head(3, 0),
            Found::Data,
            Found::Data,
            Found::Missing,
            Found::Created,
            head(3, 0),
        ]);
        assert_eq!(t, Takeover::Sealed { seal: 5 });
    }

    #[test]
    fn a_write_that_got_there_first_is_part_of_the_log() {
        let t = run(&[
            head(0, 0),
            Found::Missing,
            Found::Data, // The owner was faster: the segment is there, and must be read like any other.
        ]);
        assert_eq!(t, Takeover::Probing { probe: 0 });
        let rest = [Found::Data, Found::Missing, Found::Created, head(0, 0)];
        assert_eq!(rest.iter().fold(t, |t, f| t.on(*f)), Takeover::Sealed { seal: 1 });
    }

    #[test]
    fn a_seal_below_the_floor_is_void_also_when_found() {
        for seal in [Found::Missing, Found::Seal] {
            let mut t = run(&[head(2, 0), seal]);
            if seal == Found::Missing {
                t = t.on(Found::Created);
            }
            assert_eq!(t, Takeover::Confirming { seal: 2 });
            let t = t.on(head(9, 7));
            assert_eq!(t, Takeover::Probing { probe: 9 });
            assert_eq!(t.on(Found::Seal).on(head(9, 9)), Takeover::Sealed { seal: 9 });
        }
    }
}
