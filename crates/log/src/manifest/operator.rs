//! What an operator changes in the manifest, without a broker: the marks of brokers that are to hand over, and the
//! feature level. Pure, and validated again at each attempt of the compare-and-swap loop, as every change is.

use super::{FEATURE_LEVEL, LEVEL_OF_CLUSTERS, Manifest};
use crate::Incarnation;

/// Feature levels that this build knows, and what each allows to be written.
pub const LEVELS: [(u32, &str); 3] = [
    (
        1,
        "segments, checkpoints, takeover: what one broker on a bucket writes",
    ),
    (
        2,
        "slots handed over while both brokers live, streams merged and given back",
    ),
    (3, "history in Parquet files, compaction"),
];

/// Why an operator's change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    /// It is so already: nothing has to be written.
    #[error("nothing has to be changed")]
    AsItIs,
    /// There is no such broker to hand over.
    #[error("no live broker has node.id {node_id}; {live}")]
    NoSuchBroker {
        /// As given.
        node_id: i32,
        /// Those that live, in words.
        live: String,
    },
    /// Nobody could take over.
    #[error(
        "broker {0} is the only live one that may get partitions: nobody could take them over; start another broker first"
    )]
    NobodyElse(i32),
    /// At this level a broker gives its slots away only when it stops.
    #[error(
        "at feature level {0} a broker hands over only when it stops; stop it, or raise the level with `alluvium \
         cluster feature-level` first"
    )]
    NoHandOver(u32),
    /// This build does not know the level.
    #[error("feature level {0} is unknown to this build, which knows 1 to {FEATURE_LEVEL}")]
    UnknownLevel(u32),
    /// It would be shut out by its own cluster, with its partitions.
    #[error(
        "a live broker does not know feature level {asked} and could not read the bucket any more: {brokers}; start the \
         new version in its place first (one that is gone is taken over within seconds, if another one lives)"
    )]
    Unready {
        /// As given.
        asked: u32,
        /// "broker 1 knows 1 to 2, broker 7 knows 1 to 2"
        brokers: String,
    },
    /// Levels are never lowered: what was written at the higher one would be unreadable.
    #[error("the feature level is {now} and is never lowered to {asked}: what was written since may need it")]
    Lower {
        /// The bucket's.
        now: u32,
        /// As given.
        asked: u32,
    },
}

impl Manifest {
    /// Marks a broker as one that hands over all that it leads and gets nothing more, or takes the mark away. The
    /// mark stays with the node id, also through restarts.
    pub fn set_draining(&mut self, node_id: i32, draining: bool) -> Result<(), NotChanged> {
        if !draining {
            return match self.draining.remove(&node_id) {
                true => Ok(()),
                false => Err(NotChanged::AsItIs),
            };
        }
        if self.draining.contains(&node_id) {
            return Err(NotChanged::AsItIs);
        }
        if !self.live().any(|(_, stream)| stream.node_id == node_id) {
            return Err(NotChanged::NoSuchBroker {
                node_id,
                live: self.live_in_words(),
            });
        }
        if self.feature_level < LEVEL_OF_CLUSTERS {
            return Err(NotChanged::NoHandOver(self.feature_level));
        }
        let takes_over = |other: i32| other != node_id && !self.draining.contains(&other);
        if !self.live().any(|(_, stream)| takes_over(stream.node_id)) {
            return Err(NotChanged::NobodyElse(node_id));
        }
        self.draining.insert(node_id);
        Ok(())
    }

    /// Live streams that may be given slots, without `except`: those that are not marked, or all if all are, since
    /// partitions without a leader are worse.
    pub fn receivers(&self, except: Incarnation) -> Vec<Incarnation> {
        let others = || self.live().filter(|(incarnation, _)| *incarnation != except);
        let unmarked = others().filter(|(_, stream)| !self.draining.contains(&stream.node_id));
        let unmarked: Vec<Incarnation> = unmarked.map(|(incarnation, _)| incarnation).collect();
        match unmarked.is_empty() {
            true => others().map(|(incarnation, _)| incarnation).collect(),
            false => unmarked,
        }
    }

    /// Allows brokers to write what `level` brings. Refused while a live one could not read it: it would be left with
    /// partitions that it can neither serve nor give away.
    pub fn raise_feature_level(&mut self, level: u32) -> Result<(), NotChanged> {
        if level == 0 || level > FEATURE_LEVEL {
            return Err(NotChanged::UnknownLevel(level));
        }
        let now = self.feature_level;
        match level.cmp(&now) {
            std::cmp::Ordering::Less => Err(NotChanged::Lower { now, asked: level }),
            std::cmp::Ordering::Equal => Err(NotChanged::AsItIs),
            std::cmp::Ordering::Greater => {
                let unready = self.unready_in_words(level);
                if !unready.is_empty() {
                    let (asked, brokers) = (level, unready);
                    return Err(NotChanged::Unready { asked, brokers });
                }
                self.feature_level = level;
                Ok(())
            }
        }
    }

    /// The live brokers that do not know a level, and what they know: "broker 1 knows 1 to 2". Empty: all know it.
    pub(crate) fn unready_in_words(&self, level: u32) -> String {
        let known = self
            .live()
            .map(|(incarnation, s)| (s.node_id, self.known_level(incarnation)));
        let mut unready: Vec<(i32, u32)> = known.filter(|(_, known)| *known < level).collect();
        unready.sort_unstable();
        let unready: Vec<String> = unready
            .iter()
            .map(|(id, known)| format!("broker {id} knows 1 to {known}"))
            .collect();
        unready.join(", ")
    }

    /// "the live ones are 1, 2" or "there is no live one".
    fn live_in_words(&self) -> String {
        let mut live: Vec<i32> = self.live().map(|(_, stream)| stream.node_id).collect();
        live.sort_unstable();
        live.dedup();
        let live: Vec<String> = live.iter().map(i32::to_string).collect();
        match live.is_empty() {
            true => "there is no live one".to_owned(),
            false => format!("the live ones are {}", live.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    fn manifest(brokers: &[i32]) -> Manifest {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 8);
        for node_id in brokers {
            m.register(*node_id, None, BTreeMap::new());
        }
        m
    }

    #[test]
    fn a_mark_needs_a_broker_and_somebody_who_takes_over() {
        let mut m = manifest(&[1, 2, 3]);
        assert_eq!(
            m.set_draining(4, true).unwrap_err().to_string(),
            "no live broker has node.id 4; the live ones are 1, 2, 3"
        );
        m.set_draining(2, true).unwrap();
        assert_eq!(m.set_draining(2, true), Err(NotChanged::AsItIs));
        m.set_draining(3, true).unwrap();
        assert_eq!(m.set_draining(1, true), Err(NotChanged::NobodyElse(1)));
        m.set_draining(2, false).unwrap();
        assert_eq!(m.set_draining(2, false), Err(NotChanged::AsItIs));
        m.set_draining(1, true).unwrap();
        assert_eq!(m.draining.iter().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(Manifest::decode(&m.encode()).unwrap(), m);
        let mut alone = manifest(&[7, 7]);
        assert_eq!(alone.set_draining(7, true), Err(NotChanged::NobodyElse(7)));
        assert!(
            manifest(&[])
                .set_draining(1, true)
                .unwrap_err()
                .to_string()
                .ends_with("there is no live one")
        );
    }

    #[test]
    fn without_hand_over_no_mark_is_set_and_one_can_be_taken_away() {
        let mut m = manifest(&[1, 2]);
        m.set_draining(1, true).unwrap();
        m.feature_level = 1;
        assert_eq!(m.set_draining(2, true), Err(NotChanged::NoHandOver(1)));
        m.set_draining(1, false).unwrap();
    }

    #[test]
    fn slots_go_to_those_without_a_mark_if_there_are_any() {
        let mut m = manifest(&[1, 2, 3]);
        m.set_draining(2, true).unwrap();
        assert_eq!(m.receivers(1), [3]);
        assert_eq!(m.receivers(0), [1, 3]);
        m.set_draining(3, true).unwrap();
        assert_eq!(m.receivers(1), [2, 3], "all that are left are marked");
    }

    #[test]
    fn a_new_broker_gets_no_number_that_is_marked() {
        let mut m = manifest(&[1, 2, 3]);
        m.set_draining(2, true).unwrap();
        m.streams.remove(&2);
        assert_eq!(m.free_node_id(&BTreeMap::new()), 4);
        m.set_draining(2, false).unwrap();
        assert_eq!(m.free_node_id(&BTreeMap::new()), 2);
    }

    #[test]
    fn a_manifest_without_marks_is_as_it_was_before_there_were_any() {
        let text = String::from_utf8(manifest(&[1]).encode()).unwrap();
        assert!(!text.contains("draining") && !text.contains("restored"), "{text}");
    }

    #[test]
    fn levels_only_rise_to_known_ones() {
        let mut m = manifest(&[]);
        m.feature_level = 1;
        for unknown in [0, FEATURE_LEVEL + 1] {
            assert_eq!(
                m.raise_feature_level(unknown),
                Err(NotChanged::UnknownLevel(unknown))
            );
        }
        assert_eq!(m.raise_feature_level(1), Err(NotChanged::AsItIs));
        m.raise_feature_level(2).unwrap();
        assert_eq!(
            m.raise_feature_level(1),
            Err(NotChanged::Lower { now: 2, asked: 1 })
        );
        m.raise_feature_level(3).unwrap();
        assert_eq!(m.feature_level, 3);
        let known: Vec<u32> = LEVELS.iter().map(|(level, _)| *level).collect();
        assert_eq!(known, (1..=FEATURE_LEVEL).collect::<Vec<_>>());
    }

    #[test]
    fn a_level_that_a_live_broker_does_not_know_is_refused_and_the_broker_named() {
        let mut m = manifest(&[7, 4, 9]);
        m.feature_level = 1;
        // 7 is of a build that did not say what it knows, 9 of one that knows less than this level.
        m.known_levels.remove(&1);
        m.known_levels.insert(3, 2);
        let before = m.clone();
        let refused = m.raise_feature_level(3).unwrap_err();
        assert_eq!(
            refused,
            NotChanged::Unready {
                asked: 3,
                brokers: "broker 7 knows 1 to 2, broker 9 knows 1 to 2".into()
            }
        );
        assert!(refused.to_string().contains("does not know feature level 3"));
        assert_eq!(m, before, "nothing was changed");
        m.raise_feature_level(2).unwrap();
        // Their new versions come, and take over from them.
        let new = [7, 9].map(|node_id| m.register(node_id, None, BTreeMap::new()));
        assert!(m.raise_feature_level(3).is_err(), "the old ones live still");
        m.take_over(new[0], &[(1, 5)]).unwrap();
        m.take_over(new[1], &[(3, 5)]).unwrap();
        m.raise_feature_level(3).unwrap();
        assert_eq!(m.feature_level, 3);
    }
}
