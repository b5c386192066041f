//! A cluster as its operator sees it: through the bucket alone, without a broker.
//!
//! * [`status`] reads the manifest and the heads, and says how things stand; reads only.
//! * [`Cluster`] changes what an operator decides (marks of draining brokers, the feature level), in the same
//!   compare-and-swap loop that brokers use.
//! * [`restore`] puts a numbered copy of the manifest in the place of a damaged or lost one.
//!
//! Every error is one line made for people. A write whose outcome is unknown is told as unknown.

pub mod restore;
pub mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::inspect::WHAT_TO_GIVE;
use crate::manifest::keeper::{ManifestError, ManifestKeeper};
use crate::manifest::{Manifest, NotChanged};
use crate::store::Store;
use crate::{Incarnation, TopicPartition};

/// Why something could not be seen or done; one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It is not there, cannot be read, or must not be changed.
    #[error("{0}")]
    Refused(String),
    /// The store did not say what became of the write: it may have been applied, or may be later.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl ClusterError {
    pub(crate) fn no_cluster(store: &Store) -> ClusterError {
        ClusterError::Refused(format!(
            "{}: no Alluvium cluster here; {WHAT_TO_GIVE}",
            store.display
        ))
    }
}

impl<E: std::fmt::Display> From<ManifestError<E>> for ClusterError {
    fn from(error: ManifestError<E>) -> ClusterError {
        match error {
            ManifestError::Refused(why) => ClusterError::Refused(why.to_string()),
            ManifestError::Unknown(why) => ClusterError::Unknown(why),
            ManifestError::Unusable(why) => ClusterError::Refused(why),
        }
    }
}

/// The manifest of a cluster that exists, open for an operator.
#[derive(Debug)]
pub struct Cluster {
    keeper: ManifestKeeper,
}

impl Cluster {
    /// Opens the cluster in `store`; unlike a broker it creates none.
    pub async fn open(store: &Store) -> Result<Cluster, ClusterError> {
        let keeper = ManifestKeeper::existing(store).await?;
        let keeper = keeper.ok_or_else(|| ClusterError::no_cluster(store))?;
        Ok(Cluster { keeper })
    }

    /// The manifest as it was last read.
    pub fn manifest(&self) -> Arc<Manifest> {
        self.keeper.current()
    }

    /// Reads the manifest again.
    pub async fn refresh(&self) -> Result<Arc<Manifest>, ClusterError> {
        let read = self.keeper.refresh().await;
        read.map_err(|e| ClusterError::Refused(e.to_string()))?;
        Ok(self.manifest())
    }

    /// Makes a change, durably and with its numbered copy; false if nothing had to be changed.
    ///
    /// No broker stands behind it, so that a write whose answer was lost may be made a second time: `change` MUST
    /// then answer [`NotChanged::AsItIs`].
    pub async fn change(
        &self,
        mut change: impl FnMut(&mut Manifest) -> Result<(), NotChanged> + Send,
    ) -> Result<bool, ClusterError> {
        // A refusal must not rest on what was read long ago.
        self.refresh().await?;
        let changed = self.keeper.change(|m| change(m).map(|()| ((), None))).await;
        self.keeper.copies_kept().await;
        match changed {
            Ok(()) => Ok(true),
            Err(ManifestError::Refused(NotChanged::AsItIs)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a stream leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Led {
    /// Partitions that exist.
    pub partitions: u64,
    /// Slots.
    pub slots: u64,
}

/// What each stream leads, by the manifest; 0 stands for nobody.
pub fn led(manifest: &Manifest) -> BTreeMap<Incarnation, Led> {
    let mut led: BTreeMap<Incarnation, Led> = BTreeMap::new();
    for run in &manifest.slots {
        led.entry(run.owner).or_default().slots += u64::from(run.count);
    }
    for topic in manifest.topics.values() {
        for partition in 0..topic.partitions as i32 {
            let slot = manifest.slot_of(&TopicPartition {
                topic: topic.id,
                partition,
            });
            let owner = manifest.slot(slot).map_or(0, |run| run.owner);
            led.entry(owner).or_default().partitions += 1;
        }
    }
    led
}

/// What the live streams of a node id lead together.
pub fn led_by_broker(manifest: &Manifest, node_id: i32) -> Led {
    let led = led(manifest);
    let live = manifest.live().filter(|(_, stream)| stream.node_id == node_id);
    live.filter_map(|(incarnation, _)| led.get(&incarnation))
        .fold(Led::default(), |sum, led| Led {
            partitions: sum.partitions + led.partitions,
            slots: sum.slots + led.slots,
        })
}

#[cfg(test)]
mod tests;
