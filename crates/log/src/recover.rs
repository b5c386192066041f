//! Recovery: a pure function of the manifest and what was read of the streams.
//!
//! A slot's log goes through its *links*, oldest first. Recovery starts at the newest link that holds all there is to
//! know of the slot: one by which it was *released* (the entry carries its image), or one whose stream's checkpoint
//! covers the slot in the epoch that was granted to that stream. From there on the entries of each link's epoch are
//! applied, up to each seal. Entries after a seal, and checkpoints as of the seal or later, are not part of the log;
//! entries of an epoch that was not granted to their stream are ignored.
//!
//! Each change of owner, and nothing else, makes the slot's epoch one greater and adds a link of the epoch that ends. All
//! links of a slot go together, once its owner has a checkpoint of it in its own epoch, and before that the owner has
//! recovered it. So the links follow each other without a gap up to the epoch before the present one, and where there are
//! none, nobody had the slot before: a link that is missing is the loss of what was appended in its epoch.
//!
//! A checkpoint covers every slot that its stream could append to when it was taken. So where a slot is *not* covered,
//! all of its entries in that stream lie behind the checkpoint.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use hashbrown::HashMap;

use crate::entry::{Entry, Place};
use crate::format::checkpoint::{Checkpoint, SlotImage};
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

/// All that was read so far.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Sealed streams, whole from their checkpoint on.
    pub streams: BTreeMap<Incarnation, StreamRead>,
    /// Slots as the segment before a bound released them.
    pub releases: BTreeMap<(Incarnation, Seq), BTreeMap<Slot, SlotImage>>,
}

impl Sources {
    fn has(&self, source: Source) -> bool {
        match source {
            Source::Stream { stream, .. } => self.streams.contains_key(&stream),
            Source::Release { stream, bound } => self.releases.contains_key(&(stream, bound)),
        }
    }

    fn covers(&self, slot: Slot, link: &Link) -> bool {
        covering(self, slot, link).is_some_and(|i| i.epoch == link.epoch)
    }
}

/// Something that must be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A sealed stream from its newest checkpoint on.
    Stream {
        /// Which.
        stream: Incarnation,
        /// Seq of its seal.
        bound: Seq,
    },
    /// The segment before `bound`, for its RELEASE entries.
    Release {
        /// Which stream.
        stream: Incarnation,
        /// The seq after the segment.
        bound: Seq,
    },
}

impl Source {
    fn of(link: &Link) -> Source {
        let (stream, bound) = (link.stream, link.bound);
        if link.released {
            Source::Release { stream, bound }
        } else {
            Source::Stream { stream, bound }
        }
    }
}

impl StreamRead {
    fn first_unread(&self) -> Seq {
        self.checkpoint.as_ref().map_or(0, |c| c.next)
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
    /// Nothing says where the slot's log stands in one of the epochs that it went through.
    #[error("slot {slot}: epoch {epoch} is not linked")]
    NotLinked {
        /// The slot.
        slot: Slot,
        /// The epoch.
        epoch: i32,
    },
    /// A link's stream was not read.
    #[error("{0:?} was not read")]
    Unread(Source),
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

/// What must still be read before `slots` can be recovered: from the newest link of each slot back to the first one
/// that covers it. Call it again with what was read until it is empty.
pub fn to_read(manifest: &Manifest, slots: &[Slot], read: &Sources) -> BTreeSet<Source> {
    let mut wanted = BTreeSet::new();
    for (slot, links) in slots.iter().zip(manifest.links_of(slots)) {
        for link in links.iter().rev() {
            let source = Source::of(link);
            if !read.has(source) {
                wanted.insert(source);
                break;
            }
            if read.covers(*slot, link) {
                break;
            }
        }
    }
    wanted
}

/// Entries of a stream by slot and epoch, in order.
type BySlot<'a> = HashMap<(Slot, i32), Vec<(Seq, &'a Entry)>>;

fn by_slot(r: &StreamRead, slot_count: u32) -> BySlot<'_> {
    let mut entries = BySlot::new();
    for (seq, of_segment) in &r.segments {
        for e in of_segment {
            if let Some((tp, epoch)) = e.scope() {
                let of_slot = entries.entry((slot_of(&tp, slot_count), epoch)).or_default();
                of_slot.push((*seq, e));
            }
        }
    }
    entries
}

/// Rebuilds every partition of `slots` from what was read. Partitions of deleted topics are left out.
pub fn recover(
    manifest: &Manifest,
    slots: &[Slot],
    read: &Sources,
) -> Result<HashMap<TopicPartition, PartitionImage>, RecoveryError> {
    let known: BTreeSet<_> = manifest.topics.values().map(|t| t.id).collect();
    let mut images: HashMap<TopicPartition, PartitionImage> = HashMap::new();
    let mut indexed: BTreeMap<Incarnation, BySlot<'_>> = BTreeMap::new();
    for (slot, links) in slots.iter().zip(manifest.links_of(slots)) {
        let start = links.iter().rposition(|l| read.covers(*slot, l));
        // Without a covering link the log must be there from its first entry on: the slot's first epoch, and a stream that
        // is read from its beginning.
        let from_the_start = |l: &Link| {
            let read = read.streams.get(&l.stream);
            l.epoch == 1 && !l.released && read.is_none_or(|r| r.first_unread() == 0)
        };
        if start.is_none() && !links.first().is_none_or(from_the_start) {
            return Err(RecoveryError::NotCovered(*slot));
        }
        check_linked(manifest, *slot, &links[start.unwrap_or(0)..])?;
        for (i, link) in links.iter().enumerate().skip(start.unwrap_or(0)) {
            if Some(i) == start {
                let covering = covering(read, *slot, link)
                    .into_iter()
                    .flat_map(|s| &s.partitions);
                let still = covering.filter(|(tp, _)| known.contains(&tp.topic));
                images.extend(still.map(|(tp, image)| (*tp, image.clone())));
            }
            if link.released {
                // It holds everything, or it is not what the manifest says.
                if Some(i) != start {
                    return Err(RecoveryError::NotCovered(*slot));
                }
                continue;
            }
            let stream = link.stream;
            let entries = match indexed.entry(stream) {
                btree_map::Entry::Occupied(known) => known.into_mut(),
                btree_map::Entry::Vacant(new) => {
                    let missing = RecoveryError::Unread(Source::of(link));
                    let r = read.streams.get(&stream).ok_or(missing)?;
                    check_whole(link, r)?;
                    new.insert(by_slot(r, manifest.slot_count))
                }
            };
            for (seq, e) in entries.get(&(*slot, link.epoch)).into_iter().flatten() {
                let seq = *seq;
                let Some((tp, _)) = e.scope().filter(|(tp, _)| known.contains(&tp.topic)) else {
                    continue;
                };
                let applied = images.entry(tp).or_default().apply(e, Place::l0(stream, seq));
                applied.map_err(|misfit| RecoveryError::Misfit { stream, seq, misfit })?;
            }
        }
    }
    Ok(images)
}

fn covering<'a>(read: &'a Sources, slot: Slot, link: &Link) -> Option<&'a SlotImage> {
    if link.released {
        read.releases.get(&(link.stream, link.bound))?.get(&slot)
    } else {
        read.streams
            .get(&link.stream)?
            .checkpoint
            .as_ref()?
            .slots
            .get(&slot)
    }
}

/// Checks that a slot's links, from the first that is needed on, leave out no epoch before the present one.
fn check_linked(manifest: &Manifest, slot: Slot, links: &[Link]) -> Result<(), RecoveryError> {
    let run = manifest.slot(slot);
    // A slot without an owner still has the epoch that ended.
    let present = run.map_or(1, |run| run.epoch + i32::from(run.owner == 0));
    let first = links.first().map_or(1, |link| link.epoch);
    let mut linked = links.iter().map(|link| link.epoch);
    match (first..present).find(|epoch| linked.next() != Some(*epoch)) {
        Some(epoch) => Err(RecoveryError::NotLinked { slot, epoch }),
        None => Ok(()),
    }
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

    fn sources<const N: usize>(streams: [(Incarnation, StreamRead); N]) -> Sources {
        Sources {
            streams: BTreeMap::from(streams),
            releases: BTreeMap::new(),
        }
    }

    fn stream(stream: Incarnation, bound: Seq) -> BTreeSet<Source> {
        BTreeSet::from([Source::Stream { stream, bound }])
    }

    fn slots(m: &Manifest) -> Vec<Slot> {
        (0..m.slot_count).collect()
    }

    #[test]
    fn it_reads_back_to_the_covering_checkpoint_and_no_further() {
        let m = manifest();
        let mut read = Sources::default();
        assert_eq!(to_read(&m, &slots(&m), &read), stream(2, 0));
        read.streams.insert(2, StreamRead::default());
        assert_eq!(to_read(&m, &slots(&m), &read), stream(1, 2));
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
        read.streams.insert(
            2,
            StreamRead {
                checkpoint: Some(covered(2)),
                segments: vec![],
            },
        );
        assert!(to_read(&m, &slots(&m), &read).is_empty());
        read.streams.insert(
            2,
            StreamRead {
                checkpoint: Some(covered(1)),
                segments: vec![],
            },
        );
        assert_eq!(
            to_read(&m, &slots(&m), &read).len(),
            1,
            "another epoch does not cover"
        );
    }

    #[test]
    fn entries_are_applied_through_all_links_and_other_epochs_are_ignored() {
        let m = manifest();
        let segments = vec![(0, vec![record(1, 0), record(9, 55)]), (1, vec![record(1, 1)])];
        let mut read = sources([
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
        assert_eq!(images[&tp()].ranges[1].place, Place::l0(1, 1));

        read.streams.insert(
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
        read.streams.insert(
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
        read.streams.insert(
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
        read.streams.remove(&1);
        assert!(recover(&m, &slots(&m), &read).is_err());
    }

    #[test]
    fn a_link_that_is_missing_hides_nothing() {
        let whole = manifest();
        let segments = vec![(0, vec![record(1, 0)]), (1, vec![record(1, 1)])];
        let first = StreamRead {
            checkpoint: None,
            segments,
        };
        let slot = whole.slot_of(&tp());
        let recovered = |without: &[Incarnation], read: &Sources| {
            let mut m = whole.clone();
            m.streams.retain(|stream, _| !without.contains(stream));
            recover(&m, &[slot], read)
        };
        let missing = |epoch| Err(RecoveryError::NotLinked { slot, epoch });
        let mut read = sources([(1, first), (2, StreamRead::default())]);
        assert!(recovered(&[], &read).is_ok());
        assert_eq!(recovered(&[2], &read), missing(2));
        assert_eq!(recovered(&[1, 2], &read), missing(1));
        assert_eq!(recovered(&[1], &read), Err(RecoveryError::NotCovered(slot)));
        // What a checkpoint covers needs no link before it.
        let covered = SlotImage {
            epoch: 2,
            partitions: vec![],
        };
        let checkpoint = Checkpoint {
            incarnation: 2,
            next: 0,
            manifest_version: 1,
            written_ms: 0,
            slots: BTreeMap::from([(slot, covered)]),
        };
        read.streams.insert(
            2,
            StreamRead {
                checkpoint: Some(checkpoint),
                segments: vec![],
            },
        );
        assert!(recovered(&[1], &read).is_ok());
        // Nobody has it: the last epoch that was is the one that must be linked.
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let only = m.register(1, None, BTreeMap::new());
        assert_eq!(recover(&m, &[slot], &read), Ok(HashMap::new()));
        m.take_over(only, &[]).unwrap();
        m.retire(only, 2, |_| None).unwrap();
        assert!(recover(&m, &[slot], &read).is_ok());
        m.streams.clear();
        assert_eq!(recover(&m, &[slot], &read), missing(1));
    }

    #[test]
    fn a_checkpoint_stands_for_what_came_before_it() {
        let m = manifest();
        let mut image = PartitionImage::default();
        image.apply(&record(1, 0), Place::l0(1, 0)).unwrap();
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
        let mut read = sources([
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
        read.streams
            .get_mut(&1)
            .unwrap()
            .checkpoint
            .as_mut()
            .unwrap()
            .next = 3;
        assert!(matches!(
            recover(&m, &slots(&m), &read),
            Err(RecoveryError::CheckpointBeyondSeal { .. })
        ));
    }

    fn image_of(entries: &[Entry]) -> PartitionImage {
        let mut image = PartitionImage::default();
        for (seq, e) in entries.iter().enumerate() {
            let place = Place::l0(1, seq as Seq);
            image.apply(e, place).unwrap();
        }
        image
    }

    /// Broker 1 hands the slot to broker 2, which dies; broker 1 takes it back.
    #[test]
    fn a_released_slot_goes_on_from_its_image_whatever_the_order_of_incarnations() {
        let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 4);
        let create = Change::CreateTopic {
            name: "t".into(),
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
        };
        m.apply(&create, TOPIC).unwrap();
        let (one, two) = (
            m.register(1, None, BTreeMap::new()),
            m.register(2, None, BTreeMap::new()),
        );
        m.take_over(two, &[]).unwrap();
        let slot = m.slot_of(&tp());
        let released = |epoch, bound| [crate::manifest::change::Released { slot, epoch, bound }];
        // Two to one, one to two: the incarnations do not grow with the epochs.
        assert_eq!(m.set_desired(&[(slot, one)]), 1);
        assert_eq!(m.move_slots(two, &released(1, 5)).unwrap(), vec![slot]);
        assert_eq!(m.set_desired(&[(slot, two)]), 1);
        let third = m.register(3, None, BTreeMap::new());
        m.take_over(third, &[(one, 3)]).unwrap();
        let links = m.links(slot);
        assert_eq!(
            links
                .iter()
                .map(|l| (l.stream, l.bound, l.epoch, l.released))
                .collect::<Vec<_>>(),
            [(two, 5, 1, true), (one, 3, 2, false)]
        );
        let mut read = Sources::default();
        assert_eq!(to_read(&m, &[slot], &read), stream(one, 3));
        // Its checkpoint is older than the grant: all that it has of the slot lies behind.
        let checkpoint = Checkpoint {
            incarnation: one,
            next: 2,
            manifest_version: 1,
            written_ms: 0,
            slots: BTreeMap::new(),
        };
        let behind = StreamRead {
            checkpoint: Some(checkpoint),
            segments: vec![(2, vec![record(1, 0), record(2, 2), record(3, 9)])],
        };
        read.streams.insert(one, behind);
        let release = Source::Release {
            stream: two,
            bound: 5,
        };
        assert_eq!(to_read(&m, &[slot], &read), BTreeSet::from([release]));
        let image = |epoch| SlotImage {
            epoch,
            partitions: vec![(tp(), image_of(&[record(1, 0), record(1, 1)]))],
        };
        read.releases.insert((two, 5), BTreeMap::from([(slot, image(1))]));
        assert!(to_read(&m, &[slot], &read).is_empty());
        let images = recover(&m, &[slot], &read).unwrap();
        assert_eq!(images[&tp()].state.end, 3);
        assert_eq!(images[&tp()].state.epochs, vec![(1, 0), (2, 2)]);
        // A segment that does not release the slot as the manifest says is an error, and hides nothing.
        for wrong in [BTreeMap::new(), BTreeMap::from([(slot, image(7))])] {
            read.releases.insert((two, 5), wrong);
            assert!(matches!(
                recover(&m, &[slot], &read),
                Err(RecoveryError::NotCovered(_))
            ));
        }
    }
}
