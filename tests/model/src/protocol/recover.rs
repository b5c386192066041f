//! Recovery: a pure function of bucket and manifest. A taker runs it, and so does every check.

use super::rules::{Deviation, Rules};
use super::state::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A segment or checkpoint that the log needs is not there.
    Missing,
    /// An entry does not fit the state before it.
    Corrupt,
}

/// Applies one entry; `at` is where it stands.
pub fn apply(log: &mut Log, entry: &Entry, at: (Inc, Seq)) -> Result<(), Broken> {
    match entry {
        Entry::Rec { off, rec, .. } => {
            if *off as usize != log.len() {
                return Err(Broken::Corrupt);
            }
            log.push((*rec, Loc::L0(at.0, at.1)));
        }
        Entry::Merged { from, to, file, .. } => {
            if *to as usize > log.len() {
                return Err(Broken::Corrupt);
            }
            for r in &mut log[*from as usize..*to as usize] {
                if r.1 != Loc::Gone {
                    r.1 = Loc::L1(*file);
                }
            }
        }
        Entry::LogStart { start, .. } => {
            if *start as usize > log.len() {
                return Err(Broken::Corrupt);
            }
            for r in &mut log[..*start as usize] {
                r.1 = Loc::Gone;
            }
        }
        Entry::Release { snapshot, .. } => {
            // Where the bytes are is the same too, unless a deviation is at work, which shows when they are read.
            if !snapshot.iter().map(|x| x.0).eq(log.iter().map(|x| x.0)) {
                return Err(Broken::Corrupt);
            }
        }
    }
    Ok(())
}

/// The newest checkpoint that is part of the log: as of a seq below the bound.
pub fn newest_below(stream: &Stream, bound: Option<Seq>) -> Option<&Checkpoint> {
    let inside = |c: &&Checkpoint| bound.is_none_or(|b| c.as_of < b);
    stream.checkpoints.iter().filter(inside).max_by_key(|c| c.as_of)
}

/// The newest checkpoint as a taker finds it.
pub fn newest_found<'a>(rules: &Rules, stream: &'a Stream) -> Option<&'a Checkpoint> {
    if rules.has(Deviation::CheckpointByHint) {
        let hint = stream.hint?;
        return stream.checkpoints.iter().find(|c| c.as_of == hint);
    }
    newest_below(stream, None)
}

/// State of `slot` by its links, and by the owner's own stream if `with_owner`.
pub fn recover(
    rules: &Rules,
    s: &State,
    manifest: &Manifest,
    slot: Slot,
    with_owner: bool,
) -> Result<Log, Broken> {
    let any_epoch = rules.has(Deviation::LinkWithoutEpoch);
    let meta = &manifest.slots[slot as usize];
    let owner = Link {
        stream: meta.owner,
        bound: Seq::MAX,
        epoch: meta.epoch,
        release: false,
    };
    let mut chain: Vec<&Link> = meta.links.iter().collect();
    if with_owner && meta.owner != NOBODY {
        chain.push(&owner);
    }
    // Start from the newest link that released the slot, or whose checkpoint covers it in the epoch granted to its stream.
    let mut log = Log::new();
    let mut first = 0;
    let mut covered = false;
    for (i, link) in chain.iter().enumerate().rev() {
        if link.release {
            // The RELEASE itself is a complete snapshot, whatever became of the stream since.
            let Obj::Data(seg) = s.streams[link.stream as usize].get(link.bound - 1) else {
                return Err(Broken::Missing);
            };
            let snapshot = seg.iter().find_map(|e| match e {
                Entry::Release {
                    slot: sl,
                    epoch,
                    snapshot,
                } if (*sl, *epoch) == (slot, link.epoch) => Some(snapshot),
                _ => None,
            });
            log = snapshot.ok_or(Broken::Corrupt)?.clone();
            (first, covered) = (i + 1, true);
            break;
        }
        let cp = newest_below(&s.streams[link.stream as usize], Some(link.bound));
        if let Some(l) = cp.and_then(|cp| cp.covers(slot, (!any_epoch).then_some(link.epoch))) {
            (log, first, covered) = (l.clone(), i, true);
            break;
        }
    }
    // A slot's first epoch starts empty; any later one must have been found.
    if !covered && chain.first().is_some_and(|l| l.epoch != 1) {
        return Err(Broken::Missing);
    }
    for link in &chain[first..] {
        let stream = &s.streams[link.stream as usize];
        let cp = newest_below(stream, Some(link.bound));
        // A newer checkpoint of this stream without the slot means: no entry of the slot so far.
        let mut seq = cp.map_or(0, |c| c.as_of + 1);
        while seq < link.bound {
            match stream.get(seq) {
                Obj::Data(seg) => {
                    let granted = |e: &&Entry| {
                        e.slot_epoch() == (slot, link.epoch) || any_epoch && e.slot_epoch().0 == slot
                    };
                    for e in seg.iter().filter(granted) {
                        apply(&mut log, e, (link.stream, seq))?;
                    }
                }
                _ if link.bound == Seq::MAX => break,
                _ => return Err(Broken::Missing),
            }
            seq += 1;
        }
    }
    Ok(log)
}

/// Are the bytes of this record where the log says?
pub fn readable(s: &State, slot: Slot, off: usize, rec: Rec, loc: Loc) -> bool {
    match loc {
        Loc::Gone => true,
        Loc::L1(f) => s.files[f as usize].present,
        Loc::L0(inc, seq) => match s.streams[inc as usize].get(seq) {
            Obj::Data(seg) => seg.iter().any(
                |e| matches!(e, Entry::Rec { slot: sl, off: o, rec: r, .. } if (*sl, *o as usize, *r) == (slot, off, rec)),
            ),
            _ => false,
        },
    }
}

/// Everything a fresh taker could find wrong now.
pub fn check(rules: &Rules, s: &State, slot_of: &[Slot]) -> Option<Violation> {
    for slot in 0..s.manifest.slots.len() as Slot {
        let Ok(log) = recover(rules, s, &s.manifest, slot, true) else {
            return Some(Violation::Unrecoverable);
        };
        for (off, (rec, loc)) in log.iter().enumerate() {
            if log[..off].iter().any(|(r, _)| r == rec) {
                return Some(Violation::Duplicate);
            }
            if !readable(s, slot, off, *rec, *loc) {
                return Some(Violation::ReachableDeleted);
            }
        }
        for (rec, r) in s.recs.iter().enumerate() {
            let Some(off) = r.acked.filter(|_| slot_of[rec] == slot) else {
                continue;
            };
            if log.get(off as usize).map(|x| x.0) != Some(rec as Rec) {
                return Some(Violation::AckedLost);
            }
        }
        let visible = &s.visible[slot as usize];
        if !visible
            .iter()
            .enumerate()
            .all(|(o, r)| log.get(o).map(|x| x.0) == Some(*r))
        {
            return Some(Violation::PublishedLost);
        }
    }
    None
}
