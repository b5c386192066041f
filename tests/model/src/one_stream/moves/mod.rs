//! Slots that move between brokers: RELEASE, takeovers that give slots to several brokers, graceful stops, links that
//! are dropped, streams that are drained.
//!
//! The engine decides who owns what after a change (`Manifest::register`, `set_desired`, `move_slots`, `take_over_for`,
//! `retire`, `drop_links`), what is appended (`PartitionState`), where a stream ends (`Takeover`), what must be read and
//! what comes of it (`to_read`, `recover`), how far a floor may move (`head::floor`). Here a write that lands is
//! confirmed, a head is written in one step and so is an end put to a stream: [`super::model`] takes those apart. A
//! broker acts on the manifest that it has applied, which may be old; the answer to its own change of the manifest
//! reaches it only that way, as if it were always lost.

mod check;
mod model;
mod steps;

use self::Deviation::*;
use crate::check::{Checked, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// The floor moves while links that this stream's releases made are in the manifest.
    FloorIgnoresLinks,
    /// The floor moves while a RELEASE is on its way.
    FloorIgnoresRelease,
    /// A checkpoint leaves out what is on its way to another broker.
    CheckpointForgetsReleasing,
    /// A checkpoint holds what the manifest grants, recovered or not.
    CheckpointCoversRecovering,
    /// Appends go on until the RELEASE is sent, behind the state that it holds.
    AppendWhileReleasing,
    /// A slot is moved when its RELEASE is sent.
    MoveBeforePublished,
    /// A broker goes on with a slot that came back in a new epoch, as if nothing had happened.
    KeepAcrossEpochs,
    /// A pointer to merged data is sent behind the state that a RELEASE holds, and before the RELEASE.
    PointerWhileReleasing,
    /// Links are dropped although the data lies in other streams.
    DropWithForeignData,
    /// A broker that stops seals behind what it has sent, stored or not.
    SealBeforeFlush,
}

/// Every deviation, with the configuration that shows it.
const MUTATIONS: &[(Deviation, &str)] = &[
    (FloorIgnoresLinks, "moves"),
    (FloorIgnoresRelease, "moves"),
    (CheckpointForgetsReleasing, "moves"),
    (CheckpointCoversRecovering, "moves"),
    (AppendWhileReleasing, "inherited"),
    (MoveBeforePublished, "moves"),
    (KeepAcrossEpochs, "there-and-back"),
    (PointerWhileReleasing, "inherited"),
    (DropWithForeignData, "moves"),
    (SealBeforeFlush, "stop"),
];

/// How often what costs states may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub moves: u8,
    pub takeovers: u8,
    pub checkpoints: u8,
    pub merges: u8,
    pub stops: u8,
    pub starts: u8,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub brokers: u8,
    /// As many as partitions: each partition has one of its own.
    pub slots: u32,
    /// Partition of each record, in the order of its producer.
    pub records: Vec<i32>,
    pub max_sends: u8,
    pub puts_in_flight: usize,
    pub budget: Budget,
    pub reaches: Vec<&'static str>,
}

pub struct Moves {
    pub cfg: Scenario,
    pub deviations: Vec<Deviation>,
}

impl Checked for Moves {
    fn violation(&self, s: &model::State) -> Option<String> {
        s.bad.map(|v| format!("{v:?}"))
    }
}

fn scenarios() -> Vec<Scenario> {
    let none = Budget::default();
    let base = Scenario {
        name: "",
        brokers: 2,
        slots: 2,
        records: vec![0, 1],
        max_sends: 2,
        puts_in_flight: 1,
        budget: none,
        reaches: vec![],
    };
    vec![
        // A slot moves while its owner lives on with another, and a takeover comes in between.
        Scenario {
            name: "moves",
            records: vec![0, 0],
            budget: Budget {
                moves: 1,
                takeovers: 1,
                checkpoints: 1,
                merges: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a move",
                "all acknowledged after a takeover",
                "released and then sealed",
                "stream drained",
            ],
            ..base.clone()
        },
        // An inherited slot is merged and moves on at the same time.
        Scenario {
            name: "inherited",
            brokers: 3,
            slots: 1,
            records: vec![0],
            puts_in_flight: 2,
            max_sends: 1,
            budget: Budget {
                moves: 1,
                takeovers: 1,
                checkpoints: 1,
                merges: 1,
                ..none
            },
            reaches: vec!["all acknowledged after a takeover", "stream drained", "two links"],
        },
        // There and back again, or back to itself because the other one is gone.
        Scenario {
            name: "there-and-back",
            records: vec![0, 0],
            budget: Budget {
                moves: 2,
                takeovers: 1,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a move",
                "went back in a new epoch",
                "two links",
            ],
            ..base.clone()
        },
        // A takeover gives slots to two brokers, one of which dies before it has recovered.
        Scenario {
            name: "heirs",
            brokers: 3,
            budget: Budget {
                takeovers: 2,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a takeover",
                "taker and heir",
                "two links",
                "stream drained",
            ],
            ..base.clone()
        },
        // A graceful stop, against a takeover; the next start takes what nobody owns.
        Scenario {
            name: "stop",
            budget: Budget {
                stops: 1,
                starts: 1,
                takeovers: 1,
                checkpoints: 1,
                ..none
            },
            reaches: vec![
                "all acknowledged after a takeover",
                "slot without an owner",
                "two links",
            ],
            ..base
        },
    ]
}

/// The configurations, or their deviations.
pub fn runs(mutations: bool) -> Vec<Run> {
    let one = |cfg: Scenario, d: Option<Deviation>| {
        let (label, reaches) = (d.map(|d| format!("{d:?}")), cfg.reaches.clone());
        Run::new("one-stream", cfg.name, label, reaches, move || Moves {
            cfg: cfg.clone(),
            deviations: d.into_iter().collect(),
        })
    };
    let scenarios = scenarios();
    if !mutations {
        return scenarios.into_iter().map(|s| one(s, None)).collect();
    }
    let of = |(d, name): &(Deviation, &str)| {
        let cfg = scenarios.iter().find(|s| s.name == *name)?;
        Some(one(cfg.clone(), Some(*d)))
    };
    MUTATIONS.iter().filter_map(of).collect()
}
