//! Recovery: a pure function of the manifest and what was read of the streams.
//!
//! A slot's log goes through its *links*, oldest first. Recovery starts at the newest link whose checkpoint
//! covers the slot in the epoch that was granted to that stream, and applies the entries of that epoch from
//! there on, up to each seal. Entries after a seal, and checkpoints as of the seal or later, are not part of
//! the log; entries of an epoch that was not granted to their stream are ignored.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use crate::entry::{Entry, Place};
use crate::format::checkpoint::Checkpoint;
use crate::manifest::{Link, Manifest, slot_of};
use crate::partition::image::PartitionImage;
use crate::partition::state::Misfit;
use crate::{Incarnation, Seq, Slot, TopicPartition};

/// What was read of one sealed stream.
#[derive(Clone, Debug, Default)]
pub struct StreamRead {
    /// Its newest checkpoint below the seal.
    pub checkpoint: Option<Checkpoint>,
    /// Entries of every segment from the checkpoint (or 0) up to the seal, in order.
    pub segments: Vec<(Seq, Vec<Entry>)>,
}

impl StreamRead {
    fn first_unread(&self) -> Seq {
        self.checkpoint.as_ref().map_or(0, |c| c.next)
    }

    fn covers(&self, slot: Slot, epoch: i32) -> bool {
        self.checkpoint
            .as_ref()
            .is_some_and(|c| c.slots.get(&slot).is_some_and(|s| s.epoch == epoch))
    }
}

/// Why a log cannot be rebuilt. Nothing is served from such a slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Neither a covering checkpoint nor the slot's first epoch is there.
    #[error("slot {0}: no checkpoint covers it and its first epoch is not linked")]
    NotCovered(Slot),
    /// A checkpoint lies at or beyond its stream's seal.
    #[error("stream {stream}: the checkpoint as of {next} lies beyond the seal at {bound}")]
    CheckpointBeyondSeal {
        /// The stream.
        stream: Incarnation,
        /// What the checkpoint holds.
        next: Seq,
        /// The seal.
        bound: Seq,
    },
    /// A segment between checkpoint and seal was not read.
    #[error("stream {stream}: segment {seq} is missing")]
    Missing {
        /// The stream.
        stream: Incarnation,
        /// The segment.
        seq: Seq,
    },
    /// An entry does not fit.
    #[error("stream {stream}, segment {seq}: {misfit}")]
    Misfit {
        /// The stream.
        stream: Incarnation,
        /// The segment.
        seq: Seq,
        /// What does not fit.
        misfit: Misfit,
    },
}

/// Which streams must still be read before `slots` can be recovered: from the newest link of each slot back
/// to the first one that covers it. Call it again with what was read until it is empty.
pub fn streams_to_read(
    manifest: &Manifest,
    slots: &[Slot],
    read: &BTreeMap<Incarnation, StreamRead>,
) -> BTreeMap<Incarnation, Seq> {
    let mut wanted = BTreeMap::new();
    for slot in slots {
        for link in manifest.links(*slot).iter().rev() {
            match read.get(&link.stream) {
                None => {
                    wanted.insert(link.stream, link.bound);
                    break;
                }
                Some(r) if r.covers(*slot, link.epoch) => break,
                Some(_) => {}
            }
        }
    }
    wanted
}

/// Rebuilds every partition of `slots` from what was read. Partitions of deleted topics are left out.
pub fn recover(
    manifest: &Manifest,
    slots: &[Slot],
    read: &BTreeMap<Incarnation, StreamRead>,
) -> Result<HashMap<TopicPartition, PartitionImage>, RecoveryError> {
    let known: BTreeSet<_> = manifest.topics.values().map(|t| t.id).collect();
    let mut images: HashMap<TopicPartition, PartitionImage> = HashMap::new();
    // Per slot: its links from the covering one on. The first of them may bring a checkpoint.
    let mut granted: HashMap<(Incarnation, Slot), i32> = HashMap::new();
    for slot in slots {
        let links = manifest.links(*slot);
        let start = links
            .iter()
            .rposition(|l| read.get(&l.stream).is_some_and(|r| r.covers(*slot, l.epoch)));
        if start.is_none() && links.first().is_some_and(|l| l.epoch != 1) {
            return Err(RecoveryError::NotCovered(*slot));
        }
        for (i, link) in links.iter().enumerate().skip(start.unwrap_or(0)) {
            let r = read.get(&link.stream).ok_or(RecoveryError::Missing {
                stream: link.stream,
                seq: 0,
            })?;
            check_whole(link, r)?;
            // Only the covering checkpoint stands for what came before it; below another one entries would be lost.
            if Some(i) != start && r.first_unread() != 0 {
                return Err(RecoveryError::NotCovered(*slot));
            }
            granted.insert((link.stream, *slot), link.epoch);
            if Some(i) == start {
                let covered = r.checkpoint.as_ref().and_then(|c| c.slots.get(slot));
                for (tp, image) in covered.into_iter().flat_map(|s| &s.partitions) {
                    if known.contains(&tp.topic) {
                        images.insert(*tp, image.clone());
                    }
                }
            }
        }
    }
    // A slot's epochs grow from stream to stream, and incarnations grow with time: in that order every slot
    // sees its links oldest first.
    for (stream, r) in read {
        for (seq, entries) in &r.segments {
            for e in entries {
                let (tp, epoch) = e.scope();
                let slot = slot_of(&tp, manifest.slot_count);
                if granted.get(&(*stream, slot)) != Some(&epoch) || !known.contains(&tp.topic) {
                    continue;
                }
                let place = Place {
                    incarnation: *stream,
                    seq: *seq,
                };
                let applied = images.entry(tp).or_default().apply(e, place);
                applied.map_err(|misfit| RecoveryError::Misfit {
                    stream: *stream,
                    seq: *seq,
                    misfit,
                })?;
            }
        }
    }
    Ok(images)
}

fn check_whole(link: &Link, r: &StreamRead) -> Result<(), RecoveryError> {
    let (stream, bound, next) = (link.stream, link.bound, r.first_unread());
    if next > bound {
        return Err(RecoveryError::CheckpointBeyondSeal { stream, next, bound });
    }
    let mut expected = next;
    for (seq, _) in &r.segments {
        if *seq != expected {
            return Err(RecoveryError::Missing {
                stream,
                seq: expected,
            });
        }
        expected += 1;
    }
    if expected != bound {
        return Err(RecoveryError::Missing {
            stream,
            seq: expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{BatchEntry, BatchRange};
    use crate::format::checkpoint::SlotImage;
    use crate::manifest::Change;
    use uuid::Uuid;

    const TOPIC: Uuid = Uuid::from_u128(42);

    fn tp() -> TopicPartition {
        TopicPartition {
            topic: TOPIC,
            partition: 0,
        }
    }

    fn record(epoch: i32, offset: i64) -> Entry {
        let batch = BatchEntry {
            base_offset: offset,
            last_offset: offset,
            records: 1,
            size: 70,
            base_timestamp: 0,
            max_timestamp: 0,
            attributes: 0,
            producer: None,
        };
        Entry::Batches(BatchRange {
            partition: tp(),
            leader_epoch: epoch,
            position: 100,
            append_time_ms: 0,
            batches: vec![batch],
        })
    }

    /// Three starts of one broker: streams 1 (sealed at 2), 2 (sealed at 0), 3 live.
    fn manifest() -> Manifest {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        m.apply(&create, TOPIC).unwrap();
        for (i, seal) in [(1, 2), (2, 0)] {
            assert_eq!(m.register(1, None, BTreeMap::new()), i);
            if i == 1 {
                m.take_over(1, &[]).unwrap();
            }
            let next = m.next_incarnation;
            m.register(1, None, BTreeMap::new());
            m.take_over(next, &[(i, seal)]).unwrap();
            m.next_incarnation = i + 1;
            if i == 1 {
                m.streams.retain(|s, _| *s <= 2);
            }
        }
        m
    }

    fn slots(m: &Manifest) -> Vec<Slot> {
        (0..m.slot_count).collect()
    }

    #[test]
    fn it_reads_back_to_the_covering_checkpoint_and_no_further() {
        let m = manifest();
        let mut read = BTreeMap::new();
        assert_eq!(streams_to_read(&m, &slots(&m), &read), BTreeMap::from([(2, 0)]));
        read.insert(2, StreamRead::default());
        assert_eq!(streams_to_read(&m, &slots(&m), &read), BTreeMap::from([(1, 2)]));
        let covered = |epoch| {
            let slots = (0..4)
                .map(|s| {
                    (
                        s,
                        SlotImage {
                            epoch,
                            partitions: vec![],
                        },
                    )
                })
                .collect();
            Checkpoint {
                incarnation: 2,
                next: 0,
                manifest_version: 1,
                written_ms: 0,
                slots,
            }
        };
        read.insert(
            2,
            StreamRead {
                checkpoint: Some(covered(2)),
                segments: vec![],
            },
        );
        assert!(streams_to_read(&m, &slots(&m), &read).is_empty());
        read.insert(
            2,
            StreamRead {
                checkpoint: Some(covered(1)),
                segments: vec![],
            },
        );
        assert_eq!(
            streams_to_read(&m, &slots(&m), &read).len(),
            1,
            "another epoch does not cover"
        );
    }

    #[test]
    fn entries_are_applied_through_all_links_and_other_epochs_are_ignored() {
        let m = manifest();
        let segments = vec![(0, vec![record(1, 0), record(9, 55)]), (1, vec![record(1, 1)])];
        let mut read = BTreeMap::from([
            (
                1,
                StreamRead {
                    checkpoint: None,
                    segments: segments.clone(),
                },
            ),
            (2, StreamRead::default()),
        ]);
        let images = recover(&m, &slots(&m), &read).unwrap();
        assert_eq!(images[&tp()].state.end, 2);
        assert_eq!(
            images[&tp()].ranges[1].place,
            Place {
                incarnation: 1,
                seq: 1
            }
        );

        read.insert(
            1,
            StreamRead {
                checkpoint: None,
                segments: segments[..1].to_vec(),
            },
        );
        assert_eq!(
            recover(&m, &slots(&m), &read),
            Err(RecoveryError::Missing { stream: 1, seq: 1 })
        );
        read.insert(
            1,
            StreamRead {
                checkpoint: None,
                segments: segments[1..].to_vec(),
            },
        );
        assert_eq!(
            recover(&m, &slots(&m), &read),
            Err(RecoveryError::Missing { stream: 1, seq: 0 })
        );
        let bad = vec![(0, vec![record(1, 0)]), (1, vec![record(1, 5)])];
        read.insert(
            1,
            StreamRead {
                checkpoint: None,
                segments: bad,
            },
        );
        assert!(matches!(
            recover(&m, &slots(&m), &read),
            Err(RecoveryError::Misfit { seq: 1, .. })
        ));
        let other = (0..4)
            .map(|s| {
                (
                    s,
                    SlotImage {
                        epoch: 9,
                        partitions: vec![],
                    },
                )
            })
            .collect();
        let hides = Checkpoint {
            incarnation: 1,
            next: 1,
            manifest_version: 1,
            written_ms: 0,
            slots: other,
        };
        read.insert(
            1,
            StreamRead {
                checkpoint: Some(hides),
                segments: vec![(1, vec![])],
            },
        );
        assert!(
            matches!(recover(&m, &slots(&m), &read), Err(RecoveryError::NotCovered(_))),
            "a checkpoint that does not cover the slot must not hide what came before it"
        );
        read.remove(&1);
        assert!(recover(&m, &slots(&m), &read).is_err());
    }

    #[test]
    fn a_checkpoint_stands_for_what_came_before_it() {
        let m = manifest();
        let mut image = PartitionImage::default();
        image
            .apply(
                &record(1, 0),
                Place {
                    incarnation: 1,
                    seq: 0,
                },
            )
            .unwrap();
        let slot = m.slot_of(&tp());
        let partitions = vec![(tp(), image)];
        let gone = TopicPartition {
            topic: Uuid::from_u128(77),
            partition: 0,
        };
        let mut slots_covered: BTreeMap<Slot, SlotImage> = (0..4)
            .map(|s| {
                (
                    s,
                    SlotImage {
                        epoch: 1,
                        partitions: vec![],
                    },
                )
            })
            .collect();
        slots_covered.insert(slot, SlotImage { epoch: 1, partitions });
        slots_covered
            .get_mut(&m.slot_of(&gone))
            .unwrap()
            .partitions
            .push((gone, PartitionImage::default()));
        let checkpoint = Checkpoint {
            incarnation: 1,
            next: 1,
            manifest_version: 1,
            written_ms: 0,
            slots: slots_covered,
        };
        let mut read = BTreeMap::from([
            (
                1,
                StreamRead {
                    checkpoint: Some(checkpoint),
                    segments: vec![(1, vec![record(1, 1)])],
                },
            ),
            (2, StreamRead::default()),
        ]);
        let images = recover(&m, &slots(&m), &read).unwrap();
        assert_eq!(
            (images[&tp()].state.end, images.len()),
            (2, 1),
            "the deleted topic is left out"
        );
        read.get_mut(&1).unwrap().checkpoint.as_mut().unwrap().next = 3;
        assert!(matches!(
            recover(&m, &slots(&m), &read),
            Err(RecoveryError::CheckpointBeyondSeal { .. })
        ));
    }
}
