//! Compares what logs refer to with what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, stream};
use hashbrown::{HashMap, HashSet};
use object_store::GetRange;
use object_store::path::Path;
use tokio::sync::watch;

use super::state::{Got, State, get, index};
use super::{Finding, FsckOptions, Progress, Trouble, Wrong};
use crate::batch::{BatchError, ChunkCursor, RecordBatch, slice_chunks};
use crate::entry::{Entry, Level, Place};
use crate::format::{ObjectKind, merged, segment};
use crate::history::History;
use crate::keys;
use crate::manifest::Manifest;
use crate::partition::image::{PartitionImage, StoredRange, stored};
use crate::read::ReadError;
use crate::read::history::share_of;
use crate::store::Store;
use crate::{Offset, TopicPartition};

/// Objects that are looked into at once.
const OBJECTS_AT_ONCE: usize = 8;
/// A request reads at most this much, unless a single range is longer.
const READ_BYTES: u64 = 8 << 20;
/// Ranges are read in one request if no more than this lies between them.
const GAP: u64 = 128 << 10;

/// Offsets of a partition that stand in an object.
#[derive(Clone, Debug)]
struct Need {
    tp: TopicPartition,
    /// Topic and partition, as people write them.
    name: String,
    range: StoredRange,
}

impl Need {
    fn in_words(&self) -> String {
        format!(
            "{} offsets {} to {}",
            self.name, self.range.base_offset, self.range.last_offset
        )
    }
}

/// A partition with its log, as it is looked at.
#[derive(Clone, Copy)]
struct Known<'s> {
    tp: TopicPartition,
    topic: &'s str,
    image: &'s PartitionImage,
}

impl Known<'_> {
    fn name(&self) -> String {
        format!("{}-{}", self.topic, self.tp.partition)
    }
}

/// A range that logs refer to, by its object: all that is kept of each while the objects are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reference {
    place: Place,
    /// Positions of the partition in the list of them all, and of the range in its log.
    partition: u32,
    range: u32,
}

/// An object, and all that logs need of it.
#[derive(Debug)]
struct Object {
    key: String,
    place: Place,
    needs: Vec<Need>,
}

/// Checks objects, each once as long as the same is needed of it.
pub(super) struct Objects<'a> {
    options: &'a FsckOptions,
    progress: &'a watch::Sender<Progress>,
    /// What was found good.
    good: HashSet<(TopicPartition, Offset, Place)>,
    pub(super) checked: u64,
    pub(super) bytes: u64,
}

/// What looking into one object came to.
#[derive(Debug, Default)]
struct Looked {
    findings: Vec<Finding>,
    bytes: u64,
}

impl<'a> Objects<'a> {
    pub(super) fn new(options: &'a FsckOptions, progress: &'a watch::Sender<Progress>) -> Objects<'a> {
        Objects {
            options,
            progress,
            good: HashSet::new(),
            checked: 0,
            bytes: 0,
        }
    }

    /// Everything that the logs of `state` refer to. At a second look only what was `suspected`.
    pub(super) async fn check(
        &mut self,
        store: &Store,
        state: &State,
        suspected: &BTreeMap<(Wrong, String), Finding>,
    ) -> Result<Vec<Finding>, Trouble> {
        let known = known(state);
        let checked = known.iter().flat_map(|one| check_image(&one.name(), one.image));
        let mut findings: Vec<Finding> = checked.collect();
        let references = references(&known);
        let same = |a: &Reference, b: &Reference| {
            // Files of history lie in a folder of their topic.
            let topic = |r: &Reference| known[r.partition as usize].tp.topic;
            a.place == b.place && (a.place.level != Level::L2 || topic(a) == topic(b))
        };
        let wanted = |of_object: &&[Reference]| {
            if suspected.is_empty() {
                let mut needs = of_object.iter().map(|r| need(&known, r));
                return needs.any(|(one, range)| !self.good.contains(&good(one.tp, range)));
            }
            let key = key(&known, of_object);
            [Wrong::Missing, Wrong::Damaged, Wrong::Overlap]
                .into_iter()
                .any(|wrong| suspected.contains_key(&(wrong, key.clone())))
        };
        let wanted: Vec<&[Reference]> = references.chunk_by(same).filter(wanted).collect();
        let count = wanted.len() as u64;
        self.progress.send_modify(|p| p.objects = p.checked + count);
        let looker = Looker {
            store,
            options: self.options,
        };
        let looks = wanted.into_iter().map(|of_object| {
            let (looker, object) = (&looker, object(&known, of_object));
            async move { looker.object(&object).await.map(|looked| (object, looked)) }
        });
        let mut looks = stream::iter(looks).buffered(OBJECTS_AT_ONCE);
        while let Some(looked) = looks.next().await {
            let (object, looked) = looked?;
            self.checked += 1;
            self.bytes += looked.bytes;
            self.progress.send_modify(|p| {
                p.checked += 1;
                p.bytes += looked.bytes;
            });
            if looked.findings.is_empty() {
                let needs = object.needs.iter();
                self.good.extend(needs.map(|n| good(n.tp, &n.range)));
            }
            findings.extend(looked.findings);
        }
        Ok(findings)
    }
}

fn good(tp: TopicPartition, range: &StoredRange) -> (TopicPartition, Offset, Place) {
    (tp, range.base_offset, range.place)
}

/// Every partition of a topic that exists, in order.
fn known(state: &State) -> Vec<Known<'_>> {
    let names = names(&state.manifest);
    let known = state.images.iter().filter_map(|(tp, image)| {
        let topic = *names.get(&tp.topic)?;
        Some(Known {
            tp: *tp,
            topic,
            image,
        })
    });
    let mut known: Vec<Known<'_>> = known.collect();
    // So that a report is the same twice.
    known.sort_by_key(|one| one.tp);
    known
}

/// Every range, by its object, and of each object by partition and offset.
fn references(known: &[Known<'_>]) -> Vec<Reference> {
    let ranges = known.iter().map(|one| one.image.ranges.len()).sum();
    let mut references = Vec::with_capacity(ranges);
    for (partition, one) in known.iter().enumerate() {
        references.extend(one.image.ranges.iter().enumerate().map(|(range, r)| Reference {
            place: r.place,
            partition: partition as u32,
            range: range as u32,
        }));
    }
    references.sort_unstable();
    references
}

fn need<'s>(known: &[Known<'s>], reference: &Reference) -> (Known<'s>, &'s StoredRange) {
    let one = known[reference.partition as usize];
    (one, &one.image.ranges[reference.range as usize])
}

/// The key of the object of these references, of which there is one at least.
fn key(known: &[Known<'_>], of_object: &[Reference]) -> String {
    let (one, range) = need(known, &of_object[0]);
    let place = range.place;
    match place.level {
        Level::L2 => keys::archived(one.topic, one.tp.topic, place.incarnation, place.seq),
        Level::L0 | Level::L1 => keys::place(place),
    }
}

fn object(known: &[Known<'_>], of_object: &[Reference]) -> Object {
    let needs = of_object.iter().map(|reference| {
        let (one, range) = need(known, reference);
        Need {
            tp: one.tp,
            name: one.name(),
            range: *range,
        }
    });
    Object {
        key: key(known, of_object),
        place: of_object[0].place,
        needs: needs.collect(),
    }
}

/// Names of topics by id.
fn names(manifest: &Manifest) -> HashMap<crate::TopicId, &str> {
    let topics = manifest.topics.iter();
    topics.map(|(name, topic)| (topic.id, name.as_str())).collect()
}

/// Whether the ranges of a partition stand for each of its offsets once.
pub(super) fn check_image(name: &str, image: &PartitionImage) -> Vec<Finding> {
    let state = &image.state;
    let (mut gaps, mut overlaps) = (vec![], vec![]);
    let mut next = state.log_start;
    for (i, r) in image.ranges.iter().enumerate() {
        // The first one may begin below the log start.
        let below = i == 0 && r.base_offset < next;
        if r.base_offset > next {
            gaps.push(format!("offsets {next} to {}", r.base_offset - 1));
        } else if !below && r.base_offset < next {
            overlaps.push(format!(
                "offsets {} to {} in {} and before it",
                r.base_offset,
                (next - 1).min(r.last_offset),
                keys::place(r.place)
            ));
        }
        next = next.max(r.last_offset.saturating_add(1));
    }
    if next < state.end {
        gaps.push(format!("offsets {next} to {}", state.end - 1));
    } else if next > state.end {
        overlaps.push(format!("offsets {} to {} beyond the end", state.end, next - 1));
    }
    let mut findings = vec![];
    if !gaps.is_empty() {
        let what = format!(
            "no object stands for some offsets from {} to {}",
            state.log_start, state.end
        );
        findings.push(Finding::new(Wrong::Gap, name, what).affecting(gaps));
    }
    if !overlaps.is_empty() {
        let what = "more than one object stands for some offsets";
        findings.push(Finding::new(Wrong::Overlap, name, what).affecting(overlaps));
    }
    findings
}

struct Looker<'a> {
    store: &'a Store,
    options: &'a FsckOptions,
}

impl Looker<'_> {
    async fn object(&self, object: &Object) -> Result<Looked, Trouble> {
        match object.place.level {
            Level::L0 | Level::L1 => self.native(object).await,
            Level::L2 => self.history(object).await,
        }
    }

    /// A segment or merged object.
    async fn native(&self, object: &Object) -> Result<Looked, Trouble> {
        let mut looked = Looked::default();
        let kind = match object.place.level {
            Level::L0 => ObjectKind::Segment,
            Level::L1 | Level::L2 => ObjectKind::Merged,
        };
        let key = self.store.key(&object.key);
        let all = || object.needs.iter().map(Need::in_words);
        let (index, data_end) = match index(self.store, &key, kind).await? {
            None => {
                let what = "it is missing, and logs refer to it";
                let finding = Finding::new(Wrong::Missing, &object.key, what);
                looked.findings.push(finding.affecting(all()));
                return Ok(looked);
            }
            Some(Err(why)) => {
                let finding = Finding::new(Wrong::Damaged, &object.key, why);
                looked.findings.push(finding.affecting(all()));
                return Ok(looked);
            }
            Some(Ok(found)) => found,
        };
        looked.bytes += index.len() as u64;
        let held = match held(object.place, index) {
            Ok(held) => held,
            Err(why) => {
                let finding = Finding::new(Wrong::Damaged, &object.key, why);
                looked.findings.push(finding.affecting(all()));
                return Ok(looked);
            }
        };
        let (needs, unknown): (Vec<&Need>, Vec<&Need>) = object.needs.iter().partition(|n| {
            let end = u64::from(n.range.position) + u64::from(n.range.len);
            held.contains(&bounds(n.tp, &n.range)) && end <= data_end
        });
        if !unknown.is_empty() {
            let what = "its own index does not say what logs say of it";
            let finding = Finding::new(Wrong::Damaged, &object.key, what);
            looked
                .findings
                .push(finding.affecting(unknown.into_iter().map(Need::in_words)));
        }
        let mut needs = needs;
        needs.sort_by_key(|n| n.range.position);
        looked.findings.extend(overlapping(&object.key, &needs));
        if !self.options.fast {
            self.records(object, &key, &needs, &mut looked).await?;
        }
        Ok(looked)
    }

    /// Compares the records with their checksums.
    async fn records(
        &self,
        object: &Object,
        key: &Path,
        needs: &[&Need],
        looked: &mut Looked,
    ) -> Result<(), Trouble> {
        let mut bad: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (bytes, needs) in requests(needs) {
            if bytes.is_empty() {
                continue;
            }
            let range = GetRange::Bounded(bytes.clone());
            let (chunks, why) = match get(self.store, key, Some(range)).await? {
                Got::Bytes(found, _) => (vec![found], String::new()),
                Got::Missing => (vec![], "it was there a moment ago, and is missing".to_owned()),
                Got::Short(size) => (vec![], format!("it has only {size} bytes")),
            };
            looked.bytes += chunks.iter().map(Bytes::len).sum::<usize>() as u64;
            for need in needs {
                if !why.is_empty() {
                    bad.entry(why.clone()).or_default().push(need.in_words());
                    continue;
                }
                let start = (u64::from(need.range.position) - bytes.start) as usize;
                let own = slice_chunks(&chunks, start..start + need.range.len as usize);
                if let Err(why) = batches(&need.range, &own) {
                    bad.entry(why).or_default().push(need.in_words());
                }
            }
        }
        for (why, affected) in bad {
            let what = format!("records in it are damaged: {why}");
            let finding = Finding::new(Wrong::Damaged, &object.key, what);
            looked.findings.push(finding.affecting(affected));
        }
        Ok(())
    }

    /// A file of history.
    async fn history(&self, object: &Object) -> Result<Looked, Trouble> {
        let mut looked = Looked::default();
        let key = self.store.key(&object.key);
        let finding = |wrong, what: String, affected: Vec<String>| {
            Finding::new(wrong, &object.key, what).affecting(affected)
        };
        let all = || object.needs.iter().map(Need::in_words).collect();
        // A few bytes tell whether it is there and not empty.
        match get(self.store, &key, Some(GetRange::Bounded(0..4))).await? {
            Got::Bytes(..) => {}
            Got::Missing => {
                let what = "it is missing, and logs refer to it".to_owned();
                looked.findings.push(finding(Wrong::Missing, what, all()));
                return Ok(looked);
            }
            Got::Short(size) => {
                let what = format!("it has only {size} bytes");
                looked.findings.push(finding(Wrong::Damaged, what, all()));
                return Ok(looked);
            }
        }
        let Some(format) = self.options.history.as_ref().filter(|_| !self.options.fast) else {
            return Ok(looked);
        };
        let mut bad: BTreeMap<(Wrong, String), Vec<String>> = BTreeMap::new();
        for need in &object.needs {
            match self.share(format.as_ref(), &key, need, &mut looked.bytes).await? {
                Ok(()) => {}
                Err(why) => bad.entry(why).or_default().push(need.in_words()),
            }
        }
        let bad = bad.into_iter();
        looked
            .findings
            .extend(bad.map(|((wrong, what), affected)| finding(wrong, what, affected)));
        Ok(looked)
    }

    /// Reads a whole share, as consumers do.
    async fn share(
        &self,
        format: &dyn History,
        key: &Path,
        need: &Need,
        bytes: &mut u64,
    ) -> Result<Result<(), (Wrong, String)>, Trouble> {
        let r = &need.range;
        let share = share_of(need.tp.partition, r);
        let damaged = |what: String| {
            Ok(Err((
                Wrong::Damaged,
                format!("records in it are damaged: {what}"),
            )))
        };
        let mut offset = r.base_offset;
        while offset <= r.last_offset {
            let read = format
                .read(self.store, key, &share, offset, READ_BYTES as usize)
                .await;
            let found = match read {
                Ok(found) => found,
                Err(ReadError::Corrupt(why)) => return damaged(why),
                Err(ReadError::Missing(_)) => {
                    return Ok(Err((
                        Wrong::Missing,
                        "it was there a moment ago, and is missing".to_owned(),
                    )));
                }
                Err(e) => return Err(Trouble(format!("{}: {key}: {e}", self.store.display))),
            };
            if found.is_empty() {
                break;
            }
            for batch in &found {
                *bytes += batch.len() as u64;
                let last = match RecordBatch::from_stored(batch.clone()) {
                    Ok(batch) => batch.header().last_offset(),
                    Err(e) => return damaged(e.to_string()),
                };
                if last < offset || last > r.last_offset {
                    return damaged(format!("offset {last} where {offset} was expected"));
                }
                offset = last + 1;
            }
        }
        Ok(Ok(()))
    }
}

/// Partition, offsets and bytes of a range.
type Bounds = (TopicPartition, Offset, Offset, u32, u32);

fn bounds(tp: TopicPartition, r: &StoredRange) -> Bounds {
    (tp, r.base_offset, r.last_offset, r.position, r.len)
}

/// What an object says that it holds; or what is wrong with it.
fn held(place: Place, index: Bytes) -> Result<BTreeSet<Bounds>, String> {
    let mut held = BTreeSet::new();
    let is = |found: (u64, u64)| match found == (place.incarnation, place.seq) {
        true => Ok(()),
        false => Err(format!("it is number {} of broker start {}", found.1, found.0)),
    };
    match place.level {
        Level::L0 => {
            let index = segment::decode_index(index).map_err(|e| e.to_string())?;
            is((index.header.incarnation, index.header.seq))?;
            for entry in index.entries {
                let Entry::Batches(r) = entry else { continue };
                let (Ok(position), Ok(len)) = (u32::try_from(r.position), u32::try_from(r.byte_len())) else {
                    return Err("a position beyond 4 GiB".to_owned());
                };
                held.insert((r.partition, r.base_offset(), r.last_offset(), position, len));
            }
        }
        Level::L1 | Level::L2 => {
            let index = merged::decode_index(index).map_err(|e| e.to_string())?;
            is((index.header.incarnation, index.header.number))?;
            for m in &index.entries {
                held.extend(stored(m, place.incarnation).map(|r| bounds(m.partition, &r)));
            }
        }
    }
    Ok(held)
}

/// Ranges, sorted by position, that share bytes.
fn overlapping(key: &str, needs: &[&Need]) -> Option<Finding> {
    let mut affected = vec![];
    let mut end = 0u64;
    for need in needs {
        let from = u64::from(need.range.position);
        if from < end && need.range.len > 0 {
            affected.push(need.in_words());
        }
        end = end.max(from + u64::from(need.range.len));
    }
    let what = "the same bytes of it stand for different offsets";
    (!affected.is_empty()).then(|| Finding::new(Wrong::Overlap, key, what).affecting(affected))
}

/// What to read for ranges that are sorted by position.
fn requests<'a>(needs: &[&'a Need]) -> Vec<(Range<u64>, Vec<&'a Need>)> {
    let mut requests: Vec<(Range<u64>, Vec<&Need>)> = vec![];
    for need in needs.iter().copied().filter(|n| n.range.len > 0) {
        let from = u64::from(need.range.position);
        let to = from + u64::from(need.range.len);
        let fits = |(bytes, _): &&mut (Range<u64>, Vec<&Need>)| {
            from.saturating_sub(bytes.end) <= GAP && to - bytes.start <= READ_BYTES
        };
        match requests.last_mut().filter(fits) {
            Some((bytes, needs)) => {
                bytes.end = bytes.end.max(to);
                needs.push(need);
            }
            None => requests.push((from..to, vec![need])),
        }
    }
    requests
}

/// Compares stored batches with their checksums and with the offsets that they stand for, each of which has a batch:
/// where compaction takes records away, another batch stands for their offsets.
pub(super) fn batches(r: &StoredRange, chunks: &[Bytes]) -> Result<(), String> {
    let in_words = |e: BatchError| e.to_string();
    if chunks.iter().map(Bytes::len).sum::<usize>() as u64 != u64::from(r.len) {
        return Err(in_words(BatchError::Truncated));
    }
    let go_on = |next: Offset, at: Offset| match next < at {
        true => Err(format!("no batch stands for offsets {next} to {}", at - 1)),
        false => Ok(()),
    };
    let mut next = r.base_offset;
    let mut cursor = ChunkCursor::new(chunks);
    while let Some(batch) = cursor.next_batch() {
        let batch = batch.map_err(in_words)?;
        batch.verify(chunks).map_err(in_words)?;
        let (base, last) = (batch.header.base_offset, batch.header.last_offset());
        if base < next || last > r.last_offset || last < base {
            return Err(in_words(BatchError::Invalid(
                "its offsets are not what the index says",
            )));
        }
        go_on(next, base)?;
        next = last + 1;
    }
    go_on(next, r.last_offset + 1)
}
