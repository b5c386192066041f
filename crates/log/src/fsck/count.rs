//! What all the listed objects are: needed, garbage, or neither for certain.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::GetRange;
use serde::Serialize;

use super::Trouble;
use super::listing::Listing;
use super::state::{Got, State, get};
use crate::clean::{COPIES_KEPT, SEAL_BYTES_MAX, is_drained};
use crate::entry::{Level, Place};
use crate::format::segment::{HEAD_LEN, read_header};
use crate::garbage::old_copies;
use crate::keys::{self, InStream};
use crate::manifest::Manifest;
use crate::store::Store;
use crate::store::reason_of;
use crate::{Incarnation, Seq};

/// Headers that are read at once, to tell seals from segments.
const HEADERS_AT_ONCE: usize = 16;
/// Keys that are named of what is nobody's.
const NAMED: usize = 10;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The manifest.
    Manifest,
    /// A numbered copy of it, or one that was replaced.
    ManifestCopy,
    /// A stream's head.
    Head,
    /// A checkpoint.
    Checkpoint,
    /// A segment, or a seal.
    Segment,
    /// A merged object.
    Merged,
    /// A file of history.
    Archive,
    /// None of ours, as far as its key tells.
    Foreign,
}

/// Whether an object is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Something refers to it, or it is kept on purpose.
    Live,
    /// Nobody needs it, and nobody ever will.
    Garbage,
    /// It cannot be told from outside, as what a running broker is writing.
    Unknown,
}

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counted {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// Everything that was listed, once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Of each kind, what is live, garbage and unknown.
    pub by_kind: BTreeMap<Kind, BTreeMap<Class, Counted>>,
}

impl Counts {
    /// All kinds together.
    pub fn of(&self, class: Class) -> Counted {
        let counted = self.by_kind.values().filter_map(|classes| classes.get(&class));
        counted.fold(Counted::default(), |sum, one| Counted {
            objects: sum.objects + one.objects,
            bytes: sum.bytes + one.bytes,
        })
    }

    /// Everything.
    pub fn total(&self) -> Counted {
        [Class::Live, Class::Garbage, Class::Unknown]
            .into_iter()
            .map(|class| self.of(class))
            .fold(Counted::default(), |sum, one| Counted {
                objects: sum.objects + one.objects,
                bytes: sum.bytes + one.bytes,
            })
    }
}

pub(super) struct Judged {
    pub(super) counts: Counts,
    /// Garbage that no running broker looks after for itself.
    pub(super) deletable: Listing,
    pub(super) notes: Vec<String>,
}

/// A verdict, and whether anyone may delete it.
type Verdict = (Kind, Class, bool);

/// Judges everything that was listed before `state` was read. Without `steady` nothing that a log might refer to counts
/// as garbage.
pub(super) async fn count(
    store: &Store,
    listed: &Listing,
    state: Option<&State>,
    steady: bool,
) -> Result<Judged, Trouble> {
    let seals = match state {
        Some(state) => seals(store, listed, &state.manifest).await?,
        None => BTreeMap::new(),
    };
    let judge = Judge {
        state,
        steady,
        old_copies: copies(listed),
        seals,
    };
    let mut judged = Judged {
        counts: Counts::default(),
        deletable: Listing::default(),
        notes: vec![],
    };
    let mut foreign = vec![];
    let (mut under_way, mut left_out) = (Counted::default(), BTreeSet::new());
    for (key, size) in listed.iter() {
        let (kind, class, anyone) = judge.verdict(&key);
        let classes = judged.counts.by_kind.entry(kind).or_default();
        classes.entry(class).or_default().add(size);
        if anyone {
            judged.deletable.push(&key, size);
        }
        match (kind, class) {
            (Kind::Foreign, _) if foreign.len() < NAMED => foreign.push(key),
            (Kind::Foreign, _) => {}
            (Kind::Merged | Kind::Archive, Class::Unknown) => under_way.add(size),
            (_, Class::Unknown) => left_out.extend(keys::parse_in_stream(&key).map(|(stream, _)| stream)),
            _ => {}
        }
    }
    judged.notes = notes(&judge, &judged.counts, &foreign, under_way, &left_out);
    if let Some(state) = state {
        let lost = without_seal(store, listed, &state.manifest, &judge.seals).await?;
        if !lost.is_empty() {
            judged.notes.push(format!(
                "the seals of streams {} are gone, which nothing of ours deletes: does a rule of the bucket? Nobody reads \
                 there, but a broker that was thought dead could write on, and acknowledge it",
                lost.join(", ")
            ));
        }
    }
    Ok(judged)
}

/// Drained streams of which something is left, and no seal.
async fn without_seal(
    store: &Store,
    listed: &Listing,
    manifest: &Manifest,
    seals: &BTreeMap<Incarnation, BTreeSet<Seq>>,
) -> Result<Vec<String>, Trouble> {
    let streams = listed.iter().filter_map(|(key, _)| keys::parse_in_stream(&key));
    let streams: BTreeSet<Incarnation> = streams.map(|(stream, _)| stream).collect();
    let drained = streams.into_iter().filter(|stream| is_drained(manifest, *stream));
    let mut lost = vec![];
    for stream in drained.filter(|stream| !seals.contains_key(stream)) {
        // It may have ended after it was listed.
        let folder = keys::stream(stream);
        let mut listing = store.bulk.list(Some(&store.key(&folder)));
        let mut sealed = false;
        while let Some(meta) = listing
            .try_next()
            .await
            .map_err(|e| Trouble(format!("{}: listing {folder}: {}", store.display, reason_of(&e))))?
        {
            let key = store.relative(&meta.location).and_then(keys::parse_in_stream);
            sealed |= matches!(key, Some((_, InStream::Segment(_)))) && meta.size <= SEAL_BYTES_MAX;
        }
        if !sealed {
            lost.push(stream.to_string());
        }
    }
    Ok(lost)
}

/// `foreign` are the first keys that are not of this cluster.
fn notes(
    judge: &Judge<'_>,
    counts: &Counts,
    foreign: &[String],
    under_way: Counted,
    left_out: &BTreeSet<Incarnation>,
) -> Vec<String> {
    let mut notes = vec![];
    if !foreign.is_empty() {
        let all = counts.by_kind.get(&Kind::Foreign);
        let all: u64 = all.map_or(0, |classes| classes.values().map(|c| c.objects).sum());
        let more = match all.saturating_sub(foreign.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = foreign.join(", ");
        notes.push(format!(
            "not of this cluster, by their keys, and left alone: {named}{more}"
        ));
    }
    if under_way.objects > 0 {
        let why = match judge.state.is_some_and(|state| state.complete) && judge.steady {
            true => {
                "no log refers to them now: brokers are writing them, delete them within minutes, or cannot be asked"
            }
            false => "whether a log refers to them cannot be told as long as not all logs can be seen",
        };
        notes.push(format!(
            "{} merged objects and files of history with {} bytes are unknown: {why}",
            under_way.objects, under_way.bytes
        ));
    }
    let restored = judge.state.and_then(|state| state.manifest.restored.as_ref());
    if let Some(restored) = restored {
        let kept: Vec<String> = restored
            .unknown_streams
            .intersection(left_out)
            .map(Incarnation::to_string)
            .collect();
        if !kept.is_empty() {
            notes.push(format!(
                "streams {} were not known to the copy from which the manifest was restored; what they hold is kept for \
                 people to look at",
                kept.join(", ")
            ));
        }
    }
    notes
}

/// Keys of numbered copies that are not kept.
fn copies(listed: &Listing) -> BTreeSet<String> {
    let version = |key: &str| {
        let name = key.strip_prefix(keys::HISTORY)?.strip_prefix('/')?;
        keys::copied_version(name)
    };
    let versions: Vec<u64> = listed.iter().filter_map(|(key, _)| version(&key)).collect();
    let old = old_copies(&versions, COPIES_KEPT).filter_map(|at| versions.get(at));
    old.map(|version| keys::manifest_copy(*version)).collect()
}

/// Which segments of drained streams are seals, or cannot be told from one.
async fn seals(
    store: &Store,
    listed: &Listing,
    manifest: &Manifest,
) -> Result<BTreeMap<Incarnation, BTreeSet<Seq>>, Trouble> {
    let mut small: BTreeMap<Incarnation, Vec<Seq>> = BTreeMap::new();
    for (key, size) in listed.iter() {
        if let Some((stream, InStream::Segment(seq))) = keys::parse_in_stream(&key)
            && is_drained(manifest, stream)
            && size <= SEAL_BYTES_MAX
        {
            small.entry(stream).or_default().push(seq);
        }
    }
    let mut seals: BTreeMap<Incarnation, BTreeSet<Seq>> = BTreeMap::new();
    let mut doubtful = vec![];
    for (stream, segments) in small {
        match &segments[..] {
            // What is left of nearly all of them.
            [seq] => drop(seals.entry(stream).or_default().insert(*seq)),
            _ => doubtful.extend(segments.into_iter().map(|seq| (stream, seq))),
        }
    }
    let reads = doubtful.into_iter().map(|(stream, seq)| async move {
        let key = store.key(&keys::segment(stream, seq));
        let start = get(store, &key, Some(GetRange::Bounded(0..HEAD_LEN))).await?;
        let may_be_seal = match start {
            Got::Bytes(start, _) => seal(&start, manifest),
            Got::Missing => false,
            Got::Short(_) => true,
        };
        Ok::<_, Trouble>((stream, seq, may_be_seal))
    });
    let mut reads = stream::iter(reads).buffer_unordered(HEADERS_AT_ONCE);
    while let Some(read) = reads.next().await {
        let (stream, seq, may_be_seal) = read?;
        if may_be_seal {
            seals.entry(stream).or_default().insert(seq);
        }
    }
    Ok(seals)
}

fn seal(start: &Bytes, manifest: &Manifest) -> bool {
    read_header(start, Some(manifest.cluster_id)).map_or(true, |header| header.seal.is_some())
}

struct Judge<'a> {
    state: Option<&'a State>,
    steady: bool,
    old_copies: BTreeSet<String>,
    seals: BTreeMap<Incarnation, BTreeSet<Seq>>,
}

impl Judge<'_> {
    fn verdict(&self, key: &str) -> Verdict {
        if key == keys::MANIFEST {
            return (Kind::Manifest, Class::Live, false);
        }
        if key.starts_with("cluster/") {
            let name = key
                .strip_prefix(keys::HISTORY)
                .map(|name| name.trim_start_matches('/'));
            let copy = name.is_some_and(|name| keys::copied_version(name).is_some());
            return match (
                copy,
                self.old_copies.contains(key),
                keys::is_replaced_manifest(key),
            ) {
                (true, true, _) => (Kind::ManifestCopy, Class::Garbage, true),
                (true, false, _) | (_, _, true) => (Kind::ManifestCopy, Class::Live, false),
                (false, ..) => (Kind::Foreign, Class::Unknown, false),
            };
        }
        if let Some((stream, what)) = keys::parse_in_stream(key) {
            return self.in_stream(key, stream, what);
        }
        match keys::parse_file(key) {
            Some(file) => self.file(file),
            None => (Kind::Foreign, Class::Unknown, false),
        }
    }

    fn file(&self, file: Place) -> Verdict {
        let kind = match file.level {
            Level::L2 => Kind::Archive,
            Level::L0 | Level::L1 => Kind::Merged,
        };
        let Some(state) = self.state else {
            return (kind, Class::Unknown, false);
        };
        if state.claimed.contains(&file) {
            return (kind, Class::Live, false);
        }
        let certain = state.complete && self.steady && is_drained(&state.manifest, file.incarnation);
        match certain {
            true => (kind, Class::Garbage, true),
            false => (kind, Class::Unknown, false),
        }
    }

    fn in_stream(&self, key: &str, stream: Incarnation, what: InStream) -> Verdict {
        let kind = match what {
            InStream::Segment(_) => Kind::Segment,
            InStream::Checkpoint(_) => Kind::Checkpoint,
            InStream::Other if key == keys::head(stream) => Kind::Head,
            InStream::Other => return (Kind::Foreign, Class::Unknown, false),
        };
        let Some(state) = self.state else {
            return (kind, Class::Unknown, false);
        };
        if is_drained(&state.manifest, stream) {
            let sealed = |seq| self.seals.get(&stream).is_some_and(|seals| seals.contains(&seq));
            return match what {
                InStream::Segment(seq) if sealed(seq) => (kind, Class::Live, false),
                InStream::Other => (kind, Class::Live, false),
                InStream::Segment(_) | InStream::Checkpoint(_) => (kind, Class::Garbage, true),
            };
        }
        let Some(seen) = state.streams.get(&stream) else {
            // It is to come, or a restoration has left it out.
            return (kind, Class::Unknown, false);
        };
        let Some(head) = &seen.head else {
            return (kind, Class::Unknown, false);
        };
        let class = match what {
            InStream::Other => Class::Live,
            // Its broker deletes these; a broker that takes it over does with the whole stream.
            InStream::Segment(seq) if seq < head.floor => Class::Garbage,
            InStream::Segment(seq) if !seen.live && seq > seen.end => Class::Garbage,
            InStream::Segment(_) => Class::Live,
            InStream::Checkpoint(next) => match &head.checkpoint {
                Some(named) if keys::checkpoint(stream, named.next, named.nonce) == key => Class::Live,
                Some(named) if next < named.next => Class::Garbage,
                _ => Class::Unknown,
            },
        };
        (kind, class, false)
    }
}
