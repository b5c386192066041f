//! Small configurations, each with some features on.

use super::model::Scenario;
use super::state::Budget;

pub fn all() -> Vec<Scenario> {
    let none = Budget::default();
    let base = Scenario {
        name: "",
        brokers: 2,
        max_incarnations: 3,
        owners: vec![0],
        producers: vec![(0, 2), (0, 1)],
        max_sends: 2,
        pipeline: 2,
        take_back: false,
        budget: none,
        reaches: vec!["all acked"],
    };
    vec![
        // Write path, seals, takeover, restart. Two producers, so offsets can differ.
        Scenario {
            name: "core",
            reaches: vec!["all acked", "all acked after a takeover", "two links"],
            budget: Budget {
                reissue: 1,
                crash: 1,
                takeover: 2,
                ..none
            },
            ..base.clone()
        },
        // Checkpoints, merges, floor and deletion under a live owner, against a slow taker.
        Scenario {
            name: "floor",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "segments deleted",
                "stream drained",
                "void seal",
            ],
            max_incarnations: 2,
            producers: vec![(0, 1), (0, 1)],
            budget: Budget {
                reissue: 1,
                takeover: 1,
                merge: 1,
                checkpoint: 2,
                ..none
            },
            ..base.clone()
        },
        // Two slow takers at the same stream while its owner deletes.
        Scenario {
            name: "two-takers",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "segments deleted",
                "two links",
                "void seal",
            ],
            brokers: 3,
            producers: vec![(0, 1), (0, 1)],
            pipeline: 1,
            budget: Budget {
                takeover: 2,
                merge: 1,
                checkpoint: 2,
                ..none
            },
            ..base.clone()
        },
        // Two takeovers before and after checkpoints; links, draining.
        Scenario {
            name: "chain",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "segments deleted",
                "stream drained",
                "two links",
                "void seal",
            ],
            brokers: 3,
            producers: vec![(0, 1), (0, 1)],
            pipeline: 1,
            budget: Budget {
                takeover: 2,
                merge: 1,
                checkpoint: 1,
                ..none
            },
            ..base.clone()
        },
        // One slot moves while its owner lives on with another.
        Scenario {
            name: "release",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "acked after a release",
                "segments deleted",
                "stream drained",
                "void seal",
            ],
            max_incarnations: 2,
            owners: vec![0, 0],
            producers: vec![(0, 1), (1, 1)],
            budget: Budget {
                takeover: 1,
                release: 1,
                merge: 1,
                checkpoint: 2,
                ..none
            },
            ..base.clone()
        },
        // There and back again.
        Scenario {
            name: "release-twice",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "acked after a release",
                "stream drained",
                "two links",
            ],
            max_incarnations: 2,
            producers: vec![(0, 1), (0, 1)],
            pipeline: 1,
            take_back: true,
            budget: Budget {
                takeover: 1,
                release: 2,
                checkpoint: 1,
                ..none
            },
            ..base.clone()
        },
        // An inherited slot is merged and released at the same time.
        Scenario {
            name: "release-merged",
            reaches: vec![
                "all acked",
                "acked after a release",
                "stream drained",
                "two links",
            ],
            brokers: 3,
            producers: vec![(0, 1), (0, 1)],
            max_sends: 1,
            budget: Budget {
                takeover: 1,
                release: 1,
                merge: 1,
                checkpoint: 1,
                ..none
            },
            ..base.clone()
        },
        // Unreferenced files of a drained writer, while the slot moves on.
        Scenario {
            name: "clean",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "acked after a release",
                "file deleted",
                "stream drained",
                "two links",
            ],
            brokers: 3,
            producers: vec![(0, 1), (0, 1)],
            max_sends: 1,
            pipeline: 1,
            budget: Budget {
                takeover: 1,
                merge: 1,
                checkpoint: 2,
                release: 1,
                clean: 1,
                ..none
            },
            ..base.clone()
        },
        // One file, two slots, two owners, and a log start.
        Scenario {
            name: "shared-file",
            reaches: vec![
                "all acked",
                "acked after a release",
                "file deleted",
                "log start moved",
            ],
            max_incarnations: 2,
            owners: vec![0, 0],
            producers: vec![(0, 1), (1, 1)],
            max_sends: 1,
            pipeline: 1,
            budget: Budget {
                release: 1,
                merge: 1,
                checkpoint: 1,
                log_start: 1,
                clean: 1,
                ..none
            },
            ..base.clone()
        },
        // A taker that has a stream with data and checkpoints of its own.
        Scenario {
            name: "two-owners",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "segments deleted",
                "stream drained",
                "void seal",
            ],
            max_incarnations: 2,
            owners: vec![0, 1],
            producers: vec![(0, 1), (1, 1)],
            budget: Budget {
                takeover: 1,
                merge: 1,
                checkpoint: 2,
                ..none
            },
            ..base.clone()
        },
        // Two owners that seal each other; both come back as new incarnations.
        Scenario {
            name: "duel",
            reaches: vec!["all acked", "all acked after a takeover", "two links"],
            max_incarnations: 4,
            owners: vec![0, 1],
            producers: vec![(0, 1), (1, 1)],
            max_sends: 3,
            pipeline: 1,
            budget: Budget { takeover: 3, ..none },
            ..base.clone()
        },
        // Manifest updates with unknown outcomes.
        Scenario {
            name: "cas",
            brokers: 3,
            max_incarnations: 3,
            producers: vec![(0, 1), (0, 1)],
            pipeline: 1,
            budget: Budget {
                takeover: 2,
                release: 1,
                delayed_cas: 2,
                ..none
            },
            ..base.clone()
        },
        // A fenced broker that does not know it, and clients that ask it.
        Scenario {
            name: "reads",
            reaches: vec![
                "all acked after a takeover",
                "stale within its lease",
                "answered after proof",
            ],
            max_incarnations: 2,
            producers: vec![(0, 1), (0, 1)],
            budget: Budget {
                takeover: 1,
                tick: 1,
                ask: 1,
                ..none
            },
            ..base.clone()
        },
        // A slot goes to another broker, and its old owner does not know yet whether it did.
        Scenario {
            name: "reads-move",
            reaches: vec!["all acked", "acked after a release", "answered after proof"],
            max_incarnations: 2,
            owners: vec![0, 0],
            producers: vec![(0, 1), (1, 1)],
            budget: Budget {
                release: 1,
                delayed_cas: 1,
                tick: 1,
                ask: 1,
                ..none
            },
            ..base.clone()
        },
        // A broker that ends its own stream and gives its slots away, against a taker.
        Scenario {
            name: "retire",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "slot without an owner",
                "stream drained",
                "two links",
            ],
            producers: vec![(0, 1), (0, 1)],
            budget: Budget {
                retire: 1,
                takeover: 1,
                merge: 1,
                checkpoint: 1,
                ..none
            },
            ..base.clone()
        },
        // A takeover gives slots to two brokers, one of which dies before it has recovered.
        Scenario {
            name: "split",
            reaches: vec![
                "all acked",
                "all acked after a takeover",
                "stream drained",
                "taker and heir",
                "two links",
            ],
            brokers: 3,
            owners: vec![0, 0],
            producers: vec![(0, 1), (1, 1)],
            pipeline: 1,
            budget: Budget {
                takeover: 2,
                checkpoint: 1,
                split: 1,
                ..none
            },
            ..base
        },
    ]
}

/// The same with more of everything: minutes and gigabytes each.
pub fn deep() -> Vec<Scenario> {
    let from = |name: &str, deep: &'static str| Scenario {
        name: deep,
        reaches: vec![],
        ..all().into_iter().find(|s| s.name == name).unwrap()
    };
    let mut v = vec![
        from("core", "core+"),
        from("floor", "floor+"),
        from("chain", "chain+"),
        from("release", "release+"),
        from("cas", "cas+"),
    ];
    for s in &mut v {
        match s.name {
            "core+" => (s.max_incarnations, s.budget.reissue) = (4, 2),
            "floor+" => (s.max_incarnations, s.budget.crash, s.budget.log_start) = (3, 1, 1),
            "chain+" => (s.budget.merge, s.budget.checkpoint) = (2, 2),
            "release+" => (s.brokers, s.max_incarnations, s.pipeline, s.budget.takeover) = (3, 3, 1, 2),
            _ => (s.brokers, s.max_incarnations, s.budget.crash, s.budget.checkpoint) = (2, 3, 1, 1),
        }
    }
    v
}

pub fn by_name(name: &str) -> Option<Scenario> {
    all().into_iter().chain(deep()).find(|s| s.name == name)
}
