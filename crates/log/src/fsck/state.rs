//! What the bucket says of every log: the manifest, the streams, and the logs rebuilt from them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, stream};
use hashbrown::HashMap;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use uuid::Uuid;

use super::{Finding, Trouble, Wrong, slot_names};
use crate::entry::Entry;
use crate::format::checkpoint::{self, Checkpoint, SlotImage};
use crate::format::segment::{SegmentIndex, decode_index};
use crate::format::{IndexOrMore, ObjectKind, SUFFIX_GUESS, index_of};
use crate::garbage::{Claimed, files_of};
use crate::head::Head;
use crate::keys;
use crate::manifest::{Link, Manifest, StreamState};
use crate::partition::image::PartitionImage;
use crate::recover::{Source, Sources, StreamRead, recover, to_read};
use crate::store::Store;
use crate::store::conditional;
use crate::store::reason_of;
use crate::{Incarnation, Seq, Slot, TopicPartition};

/// Streams that are read at once.
const STREAMS_AT_ONCE: usize = 8;
/// Segment indexes of one stream that are read at once.
const READ_AHEAD: usize = 32;

/// What was seen.
#[derive(Debug)]
pub(super) struct State {
    pub(super) manifest: Manifest,
    pub(super) streams: BTreeMap<Incarnation, Seen>,
    /// Every partition whose log could be rebuilt.
    pub(super) images: HashMap<TopicPartition, PartitionImage>,
    /// Every merged object and file of history that a log, a checkpoint or a release refers to.
    pub(super) claimed: Claimed,
    /// Whether every log could be rebuilt: then what is not claimed is not needed.
    pub(super) complete: bool,
}

/// One stream of the manifest's table.
#[derive(Debug)]
pub(super) struct Seen {
    /// The newest head; `None` if there is none, or it cannot be read.
    pub(super) head: Option<Head>,
    pub(super) live: bool,
    /// First seq that is not part of the log: of the seal, or of what is still to come.
    pub(super) end: Seq,
    /// All that a recovery reads, if it can be read.
    read: Option<StreamRead>,
}

/// Reads everything that a broker would read that took over from all others now.
pub(super) async fn read(store: &Store, manifest: Manifest) -> Result<(State, Vec<Finding>), Trouble> {
    let look = Look {
        store,
        cluster: manifest.cluster_id,
    };
    let table: Vec<(Incarnation, Option<Seq>)> = manifest
        .streams
        .iter()
        .map(|(stream, entry)| match &entry.state {
            StreamState::Live => (*stream, None),
            StreamState::Sealed { at, .. } => (*stream, Some(*at)),
        })
        .collect();
    let reads = table.into_iter().map(|(stream, sealed)| {
        let look = &look;
        async move { look.stream(stream, sealed).await.map(|seen| (stream, seen)) }
    });
    let mut reads = stream::iter(reads).buffer_unordered(STREAMS_AT_ONCE);
    let (mut streams, mut findings) = (BTreeMap::new(), vec![]);
    while let Some(read) = reads.next().await {
        let (stream, (seen, finding)) = read?;
        if let Some(finding) = finding {
            let slots: BTreeSet<Slot> = through(&manifest, stream);
            findings.push(finding.affecting(slot_names(&slots)));
        }
        streams.insert(stream, seen);
    }
    let mut state = State {
        manifest,
        streams,
        images: HashMap::new(),
        claimed: Claimed::new(),
        complete: true,
    };
    findings.extend(look.rebuild(&mut state).await?);
    Ok((state, findings))
}

/// Slots that a stream owns, or whose logs go through it.
fn through(manifest: &Manifest, stream: Incarnation) -> BTreeSet<Slot> {
    let all: Vec<Slot> = (0..manifest.slot_count).collect();
    let linked = all.iter().zip(manifest.links_of(&all));
    let linked = linked.filter(|(_, links)| links.iter().any(|link| link.stream == stream));
    let owned = manifest.slots_of(stream).map(|(slot, _)| slot);
    owned.chain(linked.map(|(slot, _)| *slot)).collect()
}

/// What stands at a key.
pub(super) enum Got {
    /// The bytes, and how long the whole object is.
    Bytes(Bytes, u64),
    Missing,
    /// The object ends before what was asked for.
    Short(u64),
}

/// Some bytes of an object. A store that fails is trouble, an object that is too short is not.
pub(super) async fn get(store: &Store, key: &Path, range: Option<GetRange>) -> Result<Got, Trouble> {
    let options = GetOptions {
        range,
        ..GetOptions::default()
    };
    let got = async {
        let got = store.bulk.get_opts(key, options).await?;
        let size = got.meta.size;
        got.bytes().await.map(|bytes| (bytes, size))
    };
    match got.await {
        Ok((bytes, size)) => Ok(Got::Bytes(bytes, size)),
        Err(object_store::Error::NotFound { .. }) => Ok(Got::Missing),
        // Stores refuse to give what lies behind the end of an object, and any part of an empty one.
        Err(e) => match store.bulk.head(key).await {
            Ok(meta) if e.to_string().contains("ange") || meta.size == 0 => Ok(Got::Short(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(Got::Missing),
            _ => Err(Trouble(format!("{}: {key}: {}", store.display, reason_of(&e)))),
        },
    }
}

/// The checked index of a segment or merged object, and where it stands; the inner error says what is wrong with it.
pub(super) async fn index(
    store: &Store,
    key: &Path,
    kind: ObjectKind,
) -> Result<Option<Result<(Bytes, u64), String>>, Trouble> {
    let mut len = SUFFIX_GUESS;
    loop {
        let (bytes, size) = match get(store, key, Some(GetRange::Suffix(len))).await? {
            Got::Bytes(bytes, size) => (bytes, size),
            Got::Missing => return Ok(None),
            Got::Short(size) => return Ok(Some(Err(format!("it has {size} bytes and no index")))),
        };
        match index_of(&bytes, kind) {
            Err(e) => return Ok(Some(Err(e.to_string()))),
            Ok(IndexOrMore::NeedSuffix(n)) if n > len && n <= size => len = n,
            Ok(IndexOrMore::NeedSuffix(_)) => return Ok(Some(Err("it is cut short".to_owned()))),
            Ok(IndexOrMore::Index(index)) => {
                let trailer = crate::format::read_trailer(&bytes, kind);
                let trailer = match trailer {
                    Ok(trailer) => trailer,
                    Err(e) => return Ok(Some(Err(e.to_string()))),
                };
                if trailer.object_len != size {
                    let what = format!("it has {size} bytes and was written with {}", trailer.object_len);
                    return Ok(Some(Err(what)));
                }
                return Ok(Some(Ok((index, trailer.index_offset))));
            }
        }
    }
}

struct Look<'a> {
    store: &'a Store,
    cluster: Uuid,
}

/// What was read, or what is wrong with it.
type Read<T> = Result<Result<T, Finding>, Trouble>;

impl Look<'_> {
    /// One stream from its newest checkpoint on; if something is wrong, as far as it could be read.
    async fn stream(&self, of: Incarnation, sealed: Option<Seq>) -> Result<(Seen, Option<Finding>), Trouble> {
        let mut seen = Seen {
            head: None,
            live: sealed.is_none(),
            end: sealed.unwrap_or(0),
            read: None,
        };
        let head = match self.head(of).await? {
            Ok(head) => head,
            Err(finding) => return Ok((seen, Some(finding))),
        };
        seen.head = Some(head.clone());
        let checkpoint = match self.checkpoint(&head).await? {
            Ok(checkpoint) => checkpoint,
            Err(finding) => return Ok((seen, Some(finding))),
        };
        let first = head.first_unread();
        let mut segments: Vec<(Seq, Vec<Entry>)> = vec![];
        let mut ahead = Box::pin(
            stream::iter(first..sealed.unwrap_or(Seq::MAX))
                .map(|seq| async move { (seq, self.segment(of, seq).await) })
                .buffered(READ_AHEAD),
        );
        let mut end = first;
        while let Some((seq, found)) = ahead.next().await {
            match found? {
                Ok(Some(index)) if index.header.seal.is_some() => break,
                Ok(Some(index)) => {
                    segments.push((seq, index.entries));
                    end = seq + 1;
                }
                Ok(None) => break,
                Err(finding) => return Ok((seen, Some(finding))),
            }
        }
        let published = sealed.unwrap_or(head.tip);
        if end < published {
            let key = keys::segment(of, end);
            let what = match sealed {
                Some(at) => format!("it is missing, and the stream goes on to its seal at {at}"),
                None => format!("it is missing, and {published} segments were published"),
            };
            return Ok((seen, Some(Finding::new(Wrong::Segment, key, what))));
        }
        seen.end = end;
        seen.read = Some(StreamRead { checkpoint, segments });
        Ok((seen, self.seal_missing(of, sealed).await?))
    }

    /// The seal that ends a stream keeps a stalled broker from going on.
    async fn seal_missing(&self, of: Incarnation, sealed: Option<Seq>) -> Result<Option<Finding>, Trouble> {
        let Some(at) = sealed else { return Ok(None) };
        let key = keys::segment(of, at);
        Ok(match self.segment(of, at).await? {
            Ok(Some(index)) if index.header.seal.is_some() => None,
            Ok(Some(_)) => Some(Finding::new(
                Wrong::Segment,
                key,
                "it should be the seal that ends its stream, and is a segment",
            )),
            Ok(None) => Some(Finding::new(
                Wrong::Segment,
                key,
                "the seal that ends its stream is missing: a stalled broker could write on, and acknowledge what nobody \
                 will read",
            )),
            Err(finding) => Some(finding),
        })
    }

    async fn head(&self, of: Incarnation) -> Read<Head> {
        let key = keys::head(of);
        let found = conditional::read(self.store, &self.store.key(&key)).await;
        let Some(found) = found.map_err(|e| Trouble(e.to_string()))? else {
            return Ok(Ok(Head::new(self.cluster, of, Uuid::nil())));
        };
        let head = Head::decode(&found.bytes, self.cluster, of);
        Ok(head.map_err(|why| Finding::new(Wrong::Head, key, why)))
    }

    async fn checkpoint(&self, head: &Head) -> Read<Option<Checkpoint>> {
        let Some(named) = &head.checkpoint else {
            return Ok(Ok(None));
        };
        let key = keys::checkpoint(head.incarnation, named.next, named.nonce);
        let wrong = |what: String| Ok(Err(Finding::new(Wrong::Checkpoint, key.clone(), what)));
        let bytes = match get(self.store, &self.store.key(&key), None).await? {
            Got::Bytes(bytes, _) => bytes,
            Got::Missing => return wrong("it is missing, and the head of its stream names it".to_owned()),
            Got::Short(_) => return wrong("it is empty".to_owned()),
        };
        match checkpoint::decode(&bytes, Some(self.cluster)) {
            Err(e) => wrong(e.to_string()),
            Ok(c) if (c.incarnation, c.next) != (head.incarnation, named.next) => {
                wrong("it holds the state of another position".to_owned())
            }
            Ok(checkpoint) => Ok(Ok(Some(checkpoint))),
        }
    }

    /// A segment's index; `None` if the segment is not there.
    async fn segment(&self, of: Incarnation, seq: Seq) -> Read<Option<SegmentIndex>> {
        let key = keys::segment(of, seq);
        let wrong = |what: String| Ok(Err(Finding::new(Wrong::Segment, key.clone(), what)));
        let index = index(self.store, &self.store.key(&key), ObjectKind::Segment).await?;
        let index = match index {
            None => return Ok(Ok(None)),
            Some(Err(why)) => return wrong(why),
            Some(Ok((index, _))) => index,
        };
        match decode_index(index) {
            Err(e) => wrong(e.to_string()),
            Ok(index) if (index.header.incarnation, index.header.seq) != (of, seq) => wrong(format!(
                "it is segment {} of stream {}",
                index.header.seq, index.header.incarnation
            )),
            Ok(index) => Ok(Ok(Some(index))),
        }
    }

    /// The slots that a segment releases.
    async fn release(&self, of: Incarnation, bound: Seq) -> Read<BTreeMap<Slot, SlotImage>> {
        let seq = bound.saturating_sub(1);
        let key = keys::segment(of, seq);
        let index = match self.segment(of, seq).await? {
            Err(finding) => return Ok(Err(finding)),
            Ok(Some(index)) => index,
            Ok(None) => {
                let what = "it is missing, and logs go on from what it says".to_owned();
                return Ok(Err(Finding::new(Wrong::Segment, key, what)));
            }
        };
        let mut slots = BTreeMap::new();
        for entry in index.entries {
            let Entry::Release {
                slot,
                leader_epoch: epoch,
                image,
            } = entry
            else {
                continue;
            };
            match checkpoint::decode_slot(image) {
                Ok(partitions) => drop(slots.insert(slot, SlotImage { epoch, partitions })),
                Err(e) => {
                    let what = format!("what it says of slot {slot}: {e}");
                    return Ok(Err(Finding::new(Wrong::Segment, key, what)));
                }
            }
        }
        Ok(Ok(slots))
    }

    /// Rebuilds all logs, as after a takeover of every live stream where it ends now.
    async fn rebuild(&self, state: &mut State) -> Result<Vec<Finding>, Trouble> {
        let mut after = state.manifest.clone();
        let live = after.live().map(|(stream, _)| stream);
        let ends: Vec<(Incarnation, Seq)> = live
            .map(|stream| (stream, state.streams.get(&stream).map_or(0, |seen| seen.end)))
            .collect();
        let taker = after.register(0, None, BTreeMap::new());
        // Cannot be refused: both were live in this very version.
        let _ = after.take_over(taker, &ends);
        let mut sources = Sources::default();
        for (stream, seen) in &mut state.streams {
            if let Some(read) = seen.read.take() {
                let images = read.checkpoint.iter().flat_map(|c| c.slots.values());
                state.claimed.extend(claimed_in(images));
                sources.streams.insert(*stream, read);
            }
        }
        let mut findings = vec![];
        let mut unread: BTreeSet<Source> = BTreeSet::new();
        let slots: Vec<Slot> = (0..after.slot_count).collect();
        loop {
            let readable = |slot: &&Slot| {
                let missing = to_read(&after, std::slice::from_ref(*slot), &sources);
                missing.iter().all(|source| !unread.contains(source))
            };
            let good: Vec<Slot> = slots.iter().filter(readable).copied().collect();
            let wanted: Vec<Source> = to_read(&after, &good, &sources).into_iter().collect();
            if wanted.is_empty() {
                let lost: BTreeSet<Slot> = slots.iter().filter(|s| !good.contains(s)).copied().collect();
                state.complete = lost.is_empty();
                findings.extend(rebuild_alike(&after, &good, &sources, state));
                break;
            }
            for source in wanted {
                match source {
                    // It is in the table, so it was read, or what is wrong with it is told already.
                    Source::Stream { .. } => drop(unread.insert(source)),
                    Source::Release { stream, bound } => match self.release(stream, bound).await? {
                        Ok(slots) => {
                            state.claimed.extend(claimed_in(slots.values()));
                            sources.releases.insert((stream, bound), slots);
                        }
                        Err(finding) => {
                            unread.insert(source);
                            findings.push(finding);
                        }
                    },
                }
            }
        }
        let files = state.images.values().flat_map(files_of);
        state.claimed.extend(files);
        Ok(findings)
    }
}

fn claimed_in<'a>(slots: impl Iterator<Item = &'a SlotImage>) -> Vec<crate::entry::Place> {
    let images = slots.flat_map(|slot| &slot.partitions);
    images.flat_map(|(_, image)| files_of(image)).collect()
}

/// Slots with the same links are rebuilt together; if that fails, in halves, until it is known which of them fail.
fn rebuild_alike(after: &Manifest, slots: &[Slot], sources: &Sources, state: &mut State) -> Vec<Finding> {
    let mut alike: BTreeMap<Vec<Link>, Vec<Slot>> = BTreeMap::new();
    for (slot, links) in slots.iter().zip(after.links_of(slots)) {
        alike.entry(links).or_default().push(*slot);
    }
    let mut failed: BTreeMap<String, BTreeSet<Slot>> = BTreeMap::new();
    let mut groups: Vec<Vec<Slot>> = alike.into_values().collect();
    while let Some(group) = groups.pop() {
        match recover(after, &group, sources) {
            Ok(images) => state.images.extend(images),
            Err(_) if group.len() > 1 => {
                let (one, other) = group.split_at(group.len() / 2);
                groups.extend([one.to_vec(), other.to_vec()]);
            }
            Err(e) => {
                state.complete = false;
                let place = match &e {
                    crate::recover::RecoveryError::Misfit { stream, seq, .. } => keys::segment(*stream, *seq),
                    _ => "the log of some slots".to_owned(),
                };
                failed.entry(format!("{place}\n{e}")).or_default().extend(group);
            }
        }
    }
    let finding = |(place_and_why, slots): (String, BTreeSet<Slot>)| {
        let (place, why) = place_and_why.split_once('\n').unwrap_or_default();
        let what = format!("it cannot be rebuilt: {why}");
        Finding::new(Wrong::Recovery, place, what).affecting(slot_names(&slots))
    };
    failed.into_iter().map(finding).collect()
}
