//! Stand-in until the planner lands.
use crate::manifest::Manifest;
use crate::{Incarnation, Slot};
pub(crate) fn orphans(_m: &Manifest, slots: &[Slot], live: &[Incarnation]) -> Vec<(Slot, Incarnation)> {
    slots
        .iter()
        .enumerate()
        .map(|(i, s)| (*s, live[i % live.len()]))
        .collect()
}
