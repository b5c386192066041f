//! A taker's way through bucket and manifest, by the engine's own functions, and the check of every state.

use std::collections::BTreeMap;

use alluvium_log::entry::Entry;
use alluvium_log::head::Head;
use alluvium_log::manifest::Manifest;
use alluvium_log::partition::image::PartitionImage;
use alluvium_log::recover::{Source, Sources, StreamRead, recover, to_read};
use alluvium_log::takeover::{Found, HeadSeen, Takeover};
use alluvium_log::{Incarnation, Seq};

use super::model::{OneStream, SLOT, tp};
use super::state::*;

/// What the stored head of a stream says, if there is one.
pub fn head_seen(bucket: &Bucket, stream: Incarnation) -> HeadSeen {
    let head = bucket.heads.get(&stream);
    HeadSeen {
        checkpoint_next: head.map_or(0, |h| h.first_unread()),
        floor: head.map_or(0, |h| h.floor),
    }
}

/// A reading that begins at the checkpoint that a head names; nothing if that is not there.
pub fn begin(bucket: &Bucket, stream: Incarnation, head: Option<&Of<Head>>) -> Option<Reading> {
    let named = head.and_then(|h| h.checkpoint.as_ref());
    let checkpoint = match named {
        None => None,
        Some(c) => Some(bucket.checkpoints.get(&(stream, c.nonce.as_u128()))?.clone()),
    };
    Some(Reading {
        checkpoint,
        segments: vec![],
    })
}

/// Reads a stream that the manifest says is sealed at `bound`, from the checkpoint that `head` names, all at once.
/// Nothing if something is not there.
pub fn sealed_stream(
    bucket: &Bucket,
    stream: Incarnation,
    bound: Seq,
    head: Option<&Of<Head>>,
) -> Option<Reading> {
    let mut reading = begin(bucket, stream, head)?;
    for seq in head.map_or(0, |h| h.first_unread())..bound {
        match bucket.objs.get(&(stream, seq))? {
            Obj::Data(entries) => reading.segments.push((seq, entries.clone())),
            Obj::Seal { .. } => reading.segments.push((seq, Default::default())),
        }
    }
    Some(reading)
}

/// A linked stream that must be read before the slot can be recovered, and where it ends.
pub fn wanted(manifest: &Manifest, read: &BTreeMap<Incarnation, Reading>) -> Option<(Incarnation, Seq)> {
    to_read(manifest, &[SLOT], &sources(read))
        .iter()
        .find_map(stream_of)
}

fn sources(read: &BTreeMap<Incarnation, Reading>) -> Sources {
    Sources {
        streams: read.iter().map(|(i, r)| (*i, stream_read(r))).collect(),
        ..Sources::default()
    }
}

/// One broker at a time: nothing is released.
fn stream_of(source: &Source) -> Option<(Incarnation, Seq)> {
    match source {
        Source::Stream { stream, bound } => Some((*stream, *bound)),
        Source::Release { .. } => None,
    }
}

fn stream_read(r: &Reading) -> StreamRead {
    StreamRead {
        checkpoint: r.checkpoint.as_ref().map(|c| (**c).clone()),
        segments: r
            .segments
            .iter()
            .map(|(seq, entries)| (*seq, entries.to_vec()))
            .collect(),
    }
}

/// The log's state as the engine rebuilds it from what was read and what must still be read.
pub fn rebuild(
    bucket: &Bucket,
    manifest: &Manifest,
    read: &BTreeMap<Incarnation, Reading>,
) -> Result<PartitionImage, String> {
    let mut read = sources(read);
    loop {
        let wanted = to_read(manifest, &[SLOT], &read);
        if wanted.is_empty() {
            break;
        }
        for source in &wanted {
            let (stream, bound) = stream_of(source).ok_or("a slot was released")?;
            let head = bucket.heads.get(&stream);
            let r = sealed_stream(bucket, stream, bound, head).ok_or("a linked stream is not whole")?;
            read.streams.insert(stream, stream_read(&r));
        }
    }
    let mut images = recover(manifest, &[SLOT], &read).map_err(|e| e.to_string())?;
    Ok(images.remove(&tp()).unwrap_or_default())
}

/// A whole takeover by a fresh broker start that nobody disturbs.
fn fresh_taker(bucket: &Bucket) -> Result<PartitionImage, String> {
    let mut manifest = (*bucket.manifest).clone();
    let taker = manifest.register(9, None, BTreeMap::new());
    let victims: Vec<Incarnation> = manifest.live().map(|(i, _)| i).filter(|i| *i < taker).collect();
    let (mut sealed, mut read) = (vec![], BTreeMap::new());
    for victim in victims {
        let (mut take, mut reading) = (Takeover::Begin, Reading::default());
        let seal = loop {
            let found = match take {
                Takeover::Begin => {
                    let head = bucket.heads.get(&victim);
                    reading = begin(bucket, victim, head).ok_or("a checkpoint is missing")?;
                    Found::Head(head_seen(bucket, victim))
                }
                Takeover::Confirming { .. } => {
                    let seen = Found::Head(head_seen(bucket, victim));
                    // Nobody disturbs it, so a void seal would be found for ever.
                    if matches!(take.on(seen), Takeover::Probing { .. }) {
                        return Err("the stream ends below its floor".to_owned());
                    }
                    seen
                }
                Takeover::Probing { probe } => match bucket.objs.get(&(victim, probe)) {
                    Some(Obj::Data(entries)) => {
                        reading.segments.push((probe, entries.clone()));
                        Found::Data
                    }
                    Some(Obj::Seal { .. }) => Found::Seal,
                    None => Found::Missing,
                },
                Takeover::Sealing { .. } => Found::Created,
                Takeover::Sealed { seal } => break seal,
            };
            take = take.on(found);
        };
        sealed.push((victim, seal));
        read.insert(victim, reading);
    }
    manifest.take_over(taker, &sealed).map_err(|e| e.to_string())?;
    rebuild(bucket, &manifest, &read)
}

/// The record that `bucket` holds where `image` says that `range` is.
fn stored(
    m: &OneStream,
    bucket: &Bucket,
    range: &alluvium_log::partition::image::StoredRange,
) -> Option<Rec> {
    let Obj::Data(entries) = bucket.objs.get(&(range.place.incarnation, range.place.seq))? else {
        return None;
    };
    entries.iter().find_map(|e| match e {
        Entry::Batches(r) if r.base_offset() == range.base_offset => m.record_of(r.batches.first()?),
        _ => None,
    })
}

/// Everything that a fresh taker, a reader or a client could find wrong now.
pub fn check(m: &OneStream, s: &State) -> Option<Violation> {
    let Ok(image) = fresh_taker(&s.bucket) else {
        return Some(Violation::Unrecoverable);
    };
    let start = image.state.log_start;
    if start < s.shown_start || start > s.asked_start {
        return Some(Violation::LogStartMoved);
    }
    let mut log: BTreeMap<i64, Rec> = BTreeMap::new();
    for range in &image.ranges {
        let Some(rec) = stored(m, &s.bucket, range) else {
            return Some(Violation::ReadableDeleted);
        };
        if log.values().any(|r| *r == rec) {
            return Some(Violation::Duplicate);
        }
        log.insert(range.base_offset, rec);
    }
    for (rec, request) in s.requests.iter().enumerate() {
        let (rec, Some(offset)) = (rec as Rec, request.acked) else {
            continue;
        };
        if image.state.end <= offset || offset >= start && log.get(&offset) != Some(&rec) {
            return Some(Violation::AckedLost);
        }
        let (producer, sequence) = m.producer_of(rec);
        let known = image.state.producers.get(&producer).is_some_and(|p| {
            p.batches
                .iter()
                .any(|b| (b.first_sequence, b.base_offset) == (sequence, offset))
        });
        if !known {
            return Some(Violation::RetryNotKnown);
        }
    }
    let seen = |(offset, rec): (&i64, &Rec)| {
        image.state.end > *offset && (*offset < start || log.get(offset) == Some(rec))
    };
    if !s.visible.iter().all(seen) {
        return Some(Violation::VisibleLost);
    }
    // Whoever the manifest calls the owner serves readers from its published image.
    let owner = s.bucket.manifest.slot(SLOT).map_or(0, |r| r.owner);
    if let Some(Broker::Serving(b)) = s.brokers.get((owner as usize).wrapping_sub(1))
        && !b
            .published
            .ranges
            .iter()
            .all(|r| stored(m, &s.bucket, r).is_some())
    {
        return Some(Violation::ReadableDeleted);
    }
    None
}
