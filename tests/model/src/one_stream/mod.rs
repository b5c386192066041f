//! One stream at a time, decided by the engine's own functions.
//!
//! The base model ([`crate::protocol`]) has its own, smaller version of every rule. Here the rules are those of
//! `alluvium_log`, called and not copied: `PartitionState::check` and `apply`, `Window`, `CreateMachine` and
//! `UpdateMachine`, `Takeover`, `head::floor`, `PartitionImage`, `Manifest::register` and `take_over`,
//! `recover::to_read` and `recover::recover`. The model is the world around them: a store whose copies
//! land late or twice, clients that send again, starts, crashes, deletion below the floor. A deviation changes
//! what the model makes of such a function, never the function.

mod heads;
pub mod model;
mod moves;
mod moves_check;
mod recover;
pub mod rules;
pub mod settings;
mod starts;
pub mod state;
pub mod topics;
mod writes;

use model::{OneStream, Scenario};
use rules::Deviation;
use state::Budget;

use crate::check::{Checked, Run};

pub fn all() -> Vec<Scenario> {
    let none = Budget::default();
    let base = Scenario {
        name: "",
        producers: vec![1, 1],
        max_sends: 2,
        puts_in_flight: 2,
        old_checkpoints_go: false,
        budget: none,
        reaches: vec![],
    };
    let always = [
        "all acknowledged",
        "all acknowledged after a restart",
        "zombie acknowledged",
    ];
    let reaches = |more: &[&'static str]| always.iter().chain(more).copied().collect();
    vec![
        // Parallel writes of unknown outcome, duplicates, one restart that may meet a zombie.
        Scenario {
            name: "write",
            producers: vec![2, 1],
            budget: Budget {
                starts: 1,
                unknown: 2,
                ..none
            },
            reaches: reaches(&["duplicate waited"]),
            ..base.clone()
        },
        // Two restarts on top of each other: two takers of one stream, links through both.
        Scenario {
            name: "restart",
            budget: Budget {
                starts: 2,
                crashes: 1,
                unknown: 1,
                ..none
            },
            reaches: reaches(&["two links"]),
            ..base.clone()
        },
        // Checkpoints while writes are under way, and heads of unknown outcome.
        Scenario {
            name: "checkpoint",
            budget: Budget {
                starts: 1,
                unknown: 2,
                checkpoints: 2,
                ..none
            },
            reaches: reaches(&["restarted from a checkpoint", "head adopted"]),
            ..base.clone()
        },
        // Log starts move the floor and segments go, under a slow taker.
        Scenario {
            name: "floor",
            max_sends: 1,
            budget: Budget {
                starts: 1,
                unknown: 1,
                checkpoints: 2,
                log_starts: 1,
                ..none
            },
            reaches: reaches(&["void seal", "segment deleted", "restarted from a checkpoint"]),
            ..base.clone()
        },
        // Two slow takers of one stream whose owner deletes; then one of them takes over from the other.
        Scenario {
            name: "two-takers",
            producers: vec![1],
            budget: Budget {
                starts: 2,
                checkpoints: 1,
                log_starts: 1,
                ..none
            },
            reaches: reaches(&[
                "void seal",
                "segment deleted",
                "restarted from a checkpoint",
                "two links",
            ]),
            ..base.clone()
        },
        // Checkpoints and heads of unknown outcome, while old checkpoints are deleted.
        Scenario {
            name: "heads",
            producers: vec![1, 1],
            max_sends: 1,
            puts_in_flight: 1,
            old_checkpoints_go: true,
            budget: Budget {
                starts: 1,
                unknown: 2,
                checkpoints: 2,
                ..none
            },
            reaches: vec![
                "all acknowledged",
                "checkpoint deleted",
                "head adopted",
                "restarted from a checkpoint",
            ],
        },
        // Old checkpoints go under the eyes of takers, also those of a zombie whose stream is only a link.
        Scenario {
            name: "old-checkpoints",
            producers: vec![1, 1],
            max_sends: 1,
            puts_in_flight: 1,
            old_checkpoints_go: true,
            budget: Budget {
                starts: 2,
                checkpoints: 2,
                ..none
            },
            reaches: vec![
                "all acknowledged",
                "checkpoint deleted",
                "taker met a deleted checkpoint",
                "two links",
            ],
        },
    ]
}

impl Checked for OneStream {
    fn violation(&self, s: &state::State) -> Option<String> {
        OneStream::violation(self, s).map(|v| format!("{v:?}"))
    }
}

/// Every check of this part: the configurations, then the deviations.
pub fn runs() -> Vec<Run> {
    let one = |name: &str, deviations: Vec<Deviation>| {
        let cfg = all().into_iter().find(|s| s.name == name)?;
        let label = deviations.first().map(|d| format!("{d:?}"));
        let reaches = cfg.reaches.clone();
        Some(Run::new("one-stream", name, label, reaches, move || {
            OneStream::new(cfg.clone(), deviations.clone())
        }))
    };
    let mut runs: Vec<Run> = all().iter().filter_map(|s| one(s.name, vec![])).collect();
    runs.extend(moves::runs(false));
    runs.extend(settings::runs(false));
    runs.extend(topics::runs(false));
    runs.extend(
        rules::MUTATIONS
            .iter()
            .filter_map(|(d, config)| one(config, vec![*d])),
    );
    runs.extend(moves::runs(true));
    runs.extend(settings::runs(true));
    runs.extend(topics::runs(true));
    runs
}
