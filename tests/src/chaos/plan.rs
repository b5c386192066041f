//! What goes wrong and when: drawn from a seed, the same each time.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::proxy::Manner;

/// One thing that goes wrong, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What it is.
    pub(super) kind: FaultKind,
    /// The broker that it hits, counted from 0.
    pub(super) broker: usize,
    /// From its begin to its end.
    pub(super) length: Duration,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// SIGKILL; at the end the broker starts again.
    Kill,
    /// SIGKILL to every broker at once.
    KillAll,
    /// SIGTERM; at the end the broker starts again.
    Stop,
    /// SIGSTOP; at the end SIGCONT.
    Freeze,
    /// The network between this broker and the store.
    Store(CutManner),
    /// The network between the other brokers and this one.
    Peers(CutManner),
    /// The network between this broker and everything that asks it, clients and brokers.
    Everyone(CutManner),
    /// The store stumbles, for all brokers: errors, cut connections, writes that land although they failed.
    Storm,
}

/// [`Manner`] without the whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CutManner {
    /// As [`Manner::Refuse`].
    Refuse,
    /// As [`Manner::Silent`].
    Silent,
    /// As [`Manner::Mute`].
    Mute,
}

impl From<CutManner> for Manner {
    fn from(manner: CutManner) -> Manner {
        match manner {
            CutManner::Refuse => Manner::Refuse,
            CutManner::Silent => Manner::Silent,
            CutManner::Mute => Manner::Mute,
        }
    }
}

impl FaultKind {
    /// Whether it takes the process away, or stops it.
    pub(super) fn hits_process(self) -> bool {
        matches!(
            self,
            FaultKind::Kill | FaultKind::KillAll | FaultKind::Stop | FaultKind::Freeze
        )
    }

    /// The faults of one name are told together.
    pub(super) fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::KillAll => "kill all",
            FaultKind::Stop => "stop",
            FaultKind::Freeze => "freeze",
            FaultKind::Store(CutManner::Refuse) => "store refuses",
            FaultKind::Store(CutManner::Silent) => "store silent",
            FaultKind::Store(CutManner::Mute) => "store mute",
            FaultKind::Peers(CutManner::Refuse) => "peers refused",
            FaultKind::Peers(CutManner::Silent) => "peers silent",
            FaultKind::Peers(CutManner::Mute) => "peers mute",
            FaultKind::Everyone(CutManner::Refuse) => "everyone refused",
            FaultKind::Everyone(CutManner::Silent) => "everyone silent",
            FaultKind::Everyone(CutManner::Mute) => "everyone mute",
            FaultKind::Storm => "storm",
        }
    }

    /// Whether the two cannot be told apart, or one makes the other meaningless.
    fn collides(self, other: FaultKind) -> bool {
        let same_place = |a: FaultKind| match a {
            FaultKind::Store(_) => 1,
            FaultKind::Peers(_) | FaultKind::Everyone(_) => 2,
            FaultKind::Storm => 3,
            _ => 0,
        };
        same_place(self) == same_place(other)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.length.as_secs_f64();
        write!(
            f,
            "{} of broker {} for {seconds:.1} s",
            self.kind.name(),
            self.broker
        )
    }
}

/// Faults that strike together: each begins so long after the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The faults and their delays.
    pub(super) faults: Vec<(Duration, Fault)>,
    /// Quiet time after the last one has ended.
    pub(super) rest: Duration,
}

/// What the faults may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Brokers.
    pub(super) brokers: usize,
    /// Longest fault.
    pub(super) longest: Duration,
    /// Whether the store can be made to stumble: only the fake can.
    pub(super) storms: bool,
}

/// Draws one step after the other.
#[derive(Debug)]
pub(super) struct Plan {
    random: StdRng,
    bounds: Bounds,
    /// Kinds that have not come up since all had.
    left: Vec<FaultKind>,
}

const MANNERS: [CutManner; 3] = [CutManner::Refuse, CutManner::Silent, CutManner::Mute];
/// Shortest fault.
const SHORTEST: Duration = Duration::from_millis(500);

impl Plan {
    /// The plan of this seed.
    pub(super) fn new(seed: u64, bounds: Bounds) -> Plan {
        Plan {
            random: StdRng::seed_from_u64(seed),
            bounds,
            left: Vec::new(),
        }
    }

    /// A kind at random, but each once before any comes again: a short run meets them all.
    fn kind(&mut self) -> FaultKind {
        if self.left.is_empty() {
            self.left = vec![
                FaultKind::Kill,
                FaultKind::Kill,
                FaultKind::KillAll,
                FaultKind::Stop,
                FaultKind::Freeze,
                FaultKind::Freeze,
                FaultKind::Store(self.manner()),
                FaultKind::Peers(self.manner()),
                FaultKind::Everyone(self.manner()),
            ];
            if self.bounds.storms {
                self.left.push(FaultKind::Storm);
            }
        }
        let at = self.random.random_range(0..self.left.len());
        self.left.swap_remove(at)
    }

    fn manner(&mut self) -> CutManner {
        MANNERS
            .choose(&mut self.random)
            .copied()
            .unwrap_or(CutManner::Refuse)
    }

    /// Short ones are as likely as long ones are long: the logarithm is even.
    fn length(&mut self) -> Duration {
        let longest = self.bounds.longest.max(SHORTEST);
        let (low, high) = (SHORTEST.as_secs_f64().ln(), longest.as_secs_f64().ln());
        Duration::from_secs_f64(self.random.random_range(low..=high).exp())
    }

    fn fault(&mut self) -> Fault {
        let kind = self.kind();
        let length = match kind {
            // How long a process is away matters little; how often it goes does.
            FaultKind::Kill | FaultKind::KillAll | FaultKind::Stop => {
                self.length().min(Duration::from_secs(8))
            }
            _ => self.length(),
        };
        Fault {
            kind,
            broker: self.random.random_range(0..self.bounds.brokers),
            length,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let mut faults = vec![(Duration::ZERO, self.fault())];
        if self.random.random_bool(0.4) {
            let second = self.fault();
            let (_, first) = faults[0];
            let shares_process = first.kind.hits_process() && second.kind.hits_process();
            let apart = first.broker != second.broker
                && first.kind != FaultKind::KillAll
                && second.kind != FaultKind::KillAll;
            if apart || !(shares_process || first.kind.collides(second.kind)) {
                let delay = Duration::from_millis(self.random.random_range(0..3_000));
                faults.push((delay, second));
            }
        }
        let rest = Duration::from_millis(self.random.random_range(0..4_000));
        Some(Step { faults, rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan::new(
            seed,
            Bounds {
                brokers: 3,
                longest: Duration::from_secs(60),
                storms: true,
            },
        )
    }

    #[test]
    fn a_seed_always_draws_the_same() {
        let draw = |seed| plan(seed).take(50).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn everything_comes_up_and_lengths_keep_to_their_bounds() {
        let steps: Vec<Step> = plan(3).take(100).collect();
        let faults: Vec<Fault> = steps
            .iter()
            .flat_map(|step| &step.faults)
            .map(|(_, fault)| *fault)
            .collect();
        for name in [
            "kill",
            "kill all",
            "stop",
            "freeze",
            "storm",
            "store mute",
            "peers silent",
            "everyone refused",
        ] {
            assert!(faults.iter().any(|fault| fault.kind.name() == name), "{name}");
        }
        let bounds = Duration::from_millis(499)..Duration::from_millis(60_001);
        assert!(
            faults
                .iter()
                .all(|fault| bounds.contains(&fault.length) && fault.broker < 3)
        );
        assert!(faults.iter().any(|fault| fault.length > Duration::from_secs(30)));
        assert!(steps.iter().any(|step| step.faults.len() == 2));
    }

    #[test]
    fn a_process_has_one_fault_at_a_time() {
        for step in plan(5).take(500) {
            if let [(_, first), (_, second)] = &step.faults[..] {
                let both = first.kind.hits_process() && second.kind.hits_process();
                let one_broker = first.broker == second.broker
                    || first.kind == FaultKind::KillAll
                    || second.kind == FaultKind::KillAll;
                assert!(!(both && one_broker), "{first}, {second}");
            }
        }
    }
}
