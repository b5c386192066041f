//! What an undisturbed taker finds in bucket and manifest of this model, and the check of every state.

use std::collections::BTreeMap;

use alluvium_log::entry::{Entry, Level};
use alluvium_log::format::checkpoint::{SlotImage, decode_slot};
use alluvium_log::manifest::Manifest;
use alluvium_log::partition::image::{PartitionImage, StoredRange};
use alluvium_log::recover::{Source, Sources, StreamRead, recover, to_read};
use alluvium_log::takeover::{Found, HeadSeen, Takeover};
use alluvium_log::{Incarnation, Offset, Seq, Slot, TopicPartition};

use super::Moves;
use super::model::{Obj, State, tp};
use crate::one_stream::state::{Rec, Violation};

type Images = BTreeMap<TopicPartition, PartitionImage>;

fn begin(s: &State, stream: Incarnation) -> StreamRead {
    StreamRead {
        checkpoint: s.heads.get(&stream).map(|h| (*h.checkpoint).clone()),
        segments: vec![],
    }
}

/// Where a takeover that nobody disturbs ends a stream, and what it reads on its way.
pub fn end_of(s: &State, victim: Incarnation) -> Option<(Seq, StreamRead)> {
    let head = s.heads.get(&victim);
    let seen = HeadSeen {
        checkpoint_next: head.map_or(0, |h| h.checkpoint.next),
        floor: head.map_or(0, |h| h.floor),
    };
    let (mut take, mut read) = (Takeover::Begin, begin(s, victim));
    loop {
        let found = match take {
            Takeover::Begin => Found::Head(seen),
            Takeover::Confirming { seal } if seal < seen.floor => return None,
            Takeover::Confirming { .. } => Found::Head(seen),
            Takeover::Probing { probe } => match s.objs.get(&(victim, probe)) {
                Some(Obj::Data(entries)) => {
                    read.segments.push((probe, entries.to_vec()));
                    Found::Data
                }
                Some(Obj::Seal) => Found::Seal,
                None => Found::Missing,
            },
            Takeover::Sealing { .. } => Found::Created,
            Takeover::Sealed { seal } => return Some((seal, read)),
        };
        take = take.on(found);
    }
}

fn add(s: &State, source: Source, read: &mut Sources) -> Option<()> {
    match source {
        Source::Stream { stream, bound } => {
            let mut whole = begin(s, stream);
            let from = whole.checkpoint.as_ref().map_or(0, |c| c.next);
            for seq in from..bound {
                let Obj::Data(entries) = s.objs.get(&(stream, seq))? else {
                    return None;
                };
                whole.segments.push((seq, entries.to_vec()));
            }
            read.streams.insert(stream, whole);
        }
        Source::Release { stream, bound } => {
            let Obj::Data(entries) = s.objs.get(&(stream, bound.checked_sub(1)?))? else {
                return None;
            };
            let mut slots = BTreeMap::new();
            for e in entries.iter() {
                if let Entry::Release {
                    slot,
                    leader_epoch: epoch,
                    image,
                } = e
                {
                    let (epoch, partitions) = (*epoch, decode_slot(image.clone()).ok()?);
                    slots.insert(*slot, SlotImage { epoch, partitions });
                }
            }
            read.releases.insert((stream, bound), slots);
        }
    }
    Some(())
}

/// The state of slots, as the engine rebuilds it from what was read and what must still be read.
pub fn rebuilt(
    s: &State,
    manifest: &Manifest,
    slots: &[Slot],
    streams: BTreeMap<Incarnation, StreamRead>,
) -> Result<Images, String> {
    let mut read = Sources {
        streams,
        ..Sources::default()
    };
    loop {
        let wanted = to_read(manifest, slots, &read);
        if wanted.is_empty() {
            break;
        }
        for source in wanted {
            add(s, source, &mut read).ok_or_else(|| format!("{source:?} is not whole"))?;
        }
    }
    let images = recover(manifest, slots, &read).map_err(|e| e.to_string())?;
    Ok(images.into_iter().collect())
}

/// Somebody takes over from all that live, and recovers everything.
fn fresh_taker(s: &State) -> Result<Images, String> {
    let mut manifest = (*s.stored).clone();
    let live: Vec<Incarnation> = manifest.live().map(|(i, _)| i).collect();
    let taker = manifest.register(99, None, BTreeMap::new());
    let (mut sealed, mut read) = (vec![], BTreeMap::new());
    for victim in live {
        let (seal, stream) = end_of(s, victim).ok_or("a stream ends below its floor")?;
        sealed.push((victim, seal));
        read.insert(victim, stream);
    }
    manifest.take_over(taker, &sealed).map_err(|e| e.to_string())?;
    let slots: Vec<Slot> = (0..manifest.slot_count).collect();
    rebuilt(s, &manifest, &slots, read)
}

/// The record that the bucket holds where an image says that a range is.
pub fn stored(m: &Moves, s: &State, tp: TopicPartition, range: &StoredRange) -> Option<Rec> {
    if range.place.level == Level::L1 {
        let file = s.files.get(&(range.place.incarnation, range.place.seq))?;
        return file.get(&range.base_offset).copied();
    }
    let Obj::Data(entries) = s.objs.get(&(range.place.incarnation, range.place.seq))? else {
        return None;
    };
    entries.iter().find_map(|e| match e {
        Entry::Batches(r) if (r.partition, r.base_offset()) == (tp, range.base_offset) => {
            m.record_of(r.batches.first()?)
        }
        _ => None,
    })
}

/// Everything that a fresh taker, a reader or a client could find wrong now.
pub fn check(m: &Moves, s: &State) -> Option<Violation> {
    let Ok(images) = fresh_taker(s) else {
        return Some(Violation::Unrecoverable);
    };
    let mut log: BTreeMap<(i32, Offset), Rec> = BTreeMap::new();
    for (tp, image) in &images {
        for range in &image.ranges {
            let Some(rec) = stored(m, s, *tp, range) else {
                return Some(Violation::ReadableDeleted);
            };
            if log.values().any(|r| *r == rec) {
                return Some(Violation::Duplicate);
            }
            log.insert((tp.partition, range.base_offset), rec);
        }
    }
    let none = PartitionImage::default();
    let image = |partition: i32| images.get(&tp(partition)).unwrap_or(&none);
    let there = |partition: i32, offset: Offset, rec: Rec| {
        let state = &image(partition).state;
        state.end > offset && (offset < state.log_start || log.get(&(partition, offset)) == Some(&rec))
    };
    for (rec, request) in s.requests.iter().enumerate() {
        let (rec, Some(offset)) = (rec as Rec, request.acked) else {
            continue;
        };
        if !there(m.partition(rec), offset, rec) {
            return Some(Violation::AckedLost);
        }
        let producer = m.producer(rec);
        let known = image(m.partition(rec)).state.producers.get(&producer.id);
        let same = |b: &alluvium_log::partition::state::RememberedBatch| {
            (b.first_sequence, b.base_offset) == (producer.first_sequence, offset)
        };
        if !known.is_some_and(|p| p.batches.iter().any(same)) {
            return Some(Violation::RetryNotKnown);
        }
    }
    let lost = |((partition, offset), rec): (&(i32, Offset), &Rec)| !there(*partition, *offset, *rec);
    if s.visible.iter().any(lost) {
        return Some(Violation::VisibleLost);
    }
    None
}
