//! What is known of every slot's log under one manifest version: the pure part of finding out what nobody needs.

use std::collections::BTreeSet;

use hashbrown::HashSet;

use crate::clean::is_drained;
use crate::entry::{Level, Place};
use crate::manifest::Manifest;
use crate::partition::image::PartitionImage;
use crate::{Incarnation, Slot};

/// The merged objects and files of history that some log refers to.
pub(crate) type Claimed = HashSet<Place>;

/// A slot whose log was not seen, so that it may refer to anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {slot} of broker start {owner} (epoch {epoch}) is in no checkpoint yet")]
pub(crate) struct Uncovered {
    pub(crate) slot: Slot,
    pub(crate) owner: Incarnation,
    pub(crate) epoch: i32,
}

/// Gathers what the logs of all slots refer to.
#[derive(Debug)]
pub(crate) struct Claims<'a> {
    manifest: &'a Manifest,
    covered: BTreeSet<Slot>,
    claimed: Claimed,
}

impl<'a> Claims<'a> {
    /// Nothing is known yet; `manifest` says who owns what.
    pub(crate) fn new(manifest: &'a Manifest) -> Claims<'a> {
        Claims {
            manifest,
            covered: BTreeSet::new(),
            claimed: Claimed::new(),
        }
    }

    /// The state of these slots, as `owner` had them in these epochs, is among what is claimed. What the manifest does
    /// not say of a slot is no state of its log as it is now.
    pub(crate) fn cover(&mut self, owner: Incarnation, slots: impl IntoIterator<Item = (Slot, i32)>) {
        for (slot, epoch) in slots {
            let run = self.manifest.slot(slot);
            if run.is_some_and(|run| (run.owner, run.epoch) == (owner, epoch)) {
                self.covered.insert(slot);
            }
        }
    }

    /// Some log refers to these.
    pub(crate) fn claim(&mut self, places: impl IntoIterator<Item = Place>) {
        let files = places.into_iter().filter(|place| place.level != Level::L0);
        self.claimed.extend(files);
    }

    /// Everything that is referred to, if every slot was seen.
    ///
    /// A slot in its first epoch and without links is one that nobody had before its owner, and where the owner's
    /// checkpoint does not hold it, all that the owner has of it lies behind that: pointers to the owner's own objects.
    pub(crate) fn finish(self) -> Result<Claimed, Uncovered> {
        for run in &self.manifest.slots {
            for slot in run.first..run.first + run.count {
                let fresh = || run.epoch <= 1 && !self.manifest.has_links(slot);
                if !self.covered.contains(&slot) && !fresh() {
                    return Err(Uncovered {
                        slot,
                        owner: run.owner,
                        epoch: run.epoch,
                    });
                }
            }
        }
        Ok(self.claimed)
    }
}

/// The objects that a partition refers to beside segments, neighbours only once.
pub(crate) fn files_of(image: &PartitionImage) -> impl Iterator<Item = Place> + '_ {
    let mut before = None;
    let places = image.ranges.iter().map(|r| r.place);
    places.filter(move |place| place.level != Level::L0 && before.replace(*place) != Some(*place))
}

/// Whose objects are judged: a broker judges its own as far as their pointers are settled, and one of the brokers
/// those of streams that have left the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judge {
    pub(crate) own: Incarnation,
    /// Merged objects of smaller numbers have all the pointers that they will ever have. To be taken before any claim is
    /// read.
    pub(crate) merged_below: u64,
    /// The same for files of history.
    pub(crate) archived_below: u64,
    /// Whether objects of drained streams are judged as well.
    pub(crate) drained: bool,
}

impl Judge {
    pub(crate) fn may_judge(&self, manifest: &Manifest, file: Place) -> bool {
        if file.incarnation != self.own {
            return self.drained && file.level != Level::L0 && is_drained(manifest, file.incarnation);
        }
        match file.level {
            Level::L0 => false,
            Level::L1 => file.seq < self.merged_below,
            Level::L2 => file.seq < self.archived_below,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::manifest::change::Released;

    /// Broker start 1 owns slots 0 to 3, start 2 is there.
    fn two() -> Manifest {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let one = m.register(1, None, BTreeMap::new());
        m.register(2, None, BTreeMap::new());
        m.take_over(one, &[]).unwrap();
        m
    }

    #[test]
    fn a_slot_that_nobody_had_before_holds_nothing() {
        let m = two();
        assert_eq!(Claims::new(&m).finish(), Ok(Claimed::new()));
    }

    #[test]
    fn a_slot_that_moved_is_unknown_until_its_owner_has_saved_it() {
        let mut m = two();
        assert_eq!(m.set_desired(&[(2, 2)]), 1);
        let released = Released {
            slot: 2,
            epoch: 1,
            bound: 7,
        };
        m.move_slots(1, &[released]).unwrap();
        let unknown = Uncovered {
            slot: 2,
            owner: 2,
            epoch: 2,
        };
        assert_eq!(Claims::new(&m).finish(), Err(unknown));
        for (owner, epoch) in [(1, 1), (1, 2), (2, 1), (2, 3)] {
            let mut other = Claims::new(&m);
            other.cover(owner, [(2, epoch)]);
            assert_eq!(other.finish(), Err(unknown), "{owner} in {epoch}");
        }
        let mut saved = Claims::new(&m);
        saved.cover(2, [(2, 2), (99, 1)]);
        saved.claim([Place::l0(1, 1), Place::l1(1, 4)]);
        assert_eq!(saved.finish(), Ok(Claimed::from_iter([Place::l1(1, 4)])));
        // Without the link it could not be told from damage.
        m.drop_links(2, &[(2, 2)]);
        assert_eq!(Claims::new(&m).finish(), Err(unknown));
    }

    #[test]
    fn a_broker_judges_its_own_settled_objects_and_one_of_them_those_of_the_gone() {
        let mut m = two();
        let third = m.register(3, None, BTreeMap::new());
        m.take_over(2, &[(third, 4)]).unwrap();
        m.take_over(2, &[(1, 9)]).unwrap();
        let mut judge = Judge {
            own: 2,
            merged_below: 5,
            archived_below: 2,
            drained: false,
        };
        assert!(judge.may_judge(&m, Place::l1(2, 4)) && !judge.may_judge(&m, Place::l1(2, 5)));
        assert!(judge.may_judge(&m, Place::l2(2, 1)) && !judge.may_judge(&m, Place::l2(2, 2)));
        assert!(!judge.may_judge(&m, Place::l0(2, 0)));
        assert!(!judge.may_judge(&m, Place::l1(third, 0)));
        judge.drained = true;
        assert!(
            judge.may_judge(&m, Place::l1(third, 0)),
            "it owned nothing, so it has left"
        );
        assert!(!judge.may_judge(&m, Place::l1(1, 0)), "logs go through it");
        assert!(!judge.may_judge(&m, Place::l1(4, 0)), "it is to come");
    }
}
