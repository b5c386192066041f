//! What is merged next, where it comes to stand, and what is said of it: the pure part.
//!
//! Whole segments are taken, the oldest first, until an object is full. Of each partition the ranges that stand in them
//! become one or more *runs*: neighbours with nothing between them. An object holds runs in the order of partitions.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::batch::{BatchError, BatchHeader, ChunkCursor};
use crate::entry::{Entry, Level, MergedRange, MergedRanges, Place, Rewrite};
use crate::partition::image::{PartitionImage, StoredRange};
use crate::stream::Conditional;
use crate::{Offset, TopicPartition};

/// A range of a merged object is at most this long, unless a single batch is longer: what one read brings is little
/// more than what was asked for.
const RANGE_BYTES: u64 = 1 << 20;
/// Parts of a segment are read in one request if no more than this lies between them.
const GAP: u64 = 128 << 10;
/// A request reads at most this much, unless a single range is longer.
const READ_BYTES: u64 = 4 << 20;

/// What one object takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimits {
    pub(crate) bytes: u64,
    pub(crate) ranges: u64,
}

/// What is not merged, by segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    segments: BTreeMap<Place, Share>,
    /// Bytes of everything.
    pub(crate) bytes: u64,
    /// Append time (ms) of the oldest.
    pub(crate) oldest_ms: Option<i64>,
}

/// What is needed of one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    bytes: u64,
    ranges: u64,
}

impl Backlog {
    /// Adds a range that stands in a segment.
    pub(crate) fn add(&mut self, r: &StoredRange) {
        let share = self.segments.entry(r.place).or_default();
        share.bytes += u64::from(r.len);
        share.ranges += 1;
        self.bytes += u64::from(r.len);
        self.oldest_ms = Some(
            self.oldest_ms
                .map_or(r.append_time_ms, |o| o.min(r.append_time_ms)),
        );
    }

    /// The last segment that goes into the next object: whole segments from the oldest on as far as they fit, and at
    /// least one.
    pub(crate) fn cut(&self, limits: FileLimits) -> Option<Place> {
        let (mut bytes, mut ranges, mut last) = (0, 0, None);
        for (place, share) in &self.segments {
            bytes += share.bytes;
            ranges += share.ranges;
            if last.is_some() && (bytes > limits.bytes || ranges > limits.ranges) {
                break;
            }
            last = Some(*place);
        }
        last
    }
}

/// Neighbouring ranges of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) partition: TopicPartition,
    pub(crate) leader_epoch: i32,
    pub(crate) ranges: Vec<StoredRange>,
}

/// The runs of a partition up to the segment `cut`, without those ranges that `skip` names.
pub(crate) fn runs(
    partition: TopicPartition,
    leader_epoch: i32,
    image: &PartitionImage,
    cut: Place,
    skip: impl Fn(&StoredRange) -> bool,
) -> Vec<Run> {
    let chosen = image.unmerged_ranges().filter(|r| r.place <= cut && !skip(r));
    neighbours(partition, leader_epoch, chosen)
}

/// Ranges of a partition, in offset order, as runs of those that have nothing between them.
pub(crate) fn neighbours<'a>(
    partition: TopicPartition,
    leader_epoch: i32,
    ranges: impl Iterator<Item = &'a StoredRange>,
) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for r in ranges {
        let last = runs.last_mut().filter(|run| {
            let end = run.ranges.last().map(|l| l.last_offset + 1);
            end == Some(r.base_offset)
        });
        match last {
            Some(run) => run.ranges.push(*r),
            None => runs.push(Run {
                partition,
                leader_epoch,
                ranges: vec![*r],
            }),
        }
    }
    runs
}

/// Where everything comes from and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// By partition and offset: the order of the object.
    pub(crate) runs: Vec<Run>,
    /// Bytes of all runs.
    pub(crate) data_len: u64,
    /// Requests, each for bytes of one segment.
    pub(crate) reads: Vec<Read>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) bytes: Range<u64>,
    pub(crate) parts: Vec<Part>,
}

/// One range of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Position of the run in the layout, and of the range in the run.
    pub(crate) run: usize,
    pub(crate) range: usize,
    /// Where its bytes go, counted from the start of the data.
    pub(crate) target: u64,
}

impl Layout {
    /// Lays runs out.
    pub(crate) fn new(mut runs: Vec<Run>) -> Layout {
        let start = |run: &Run| run.ranges.first().map_or(0, |r| r.base_offset);
        runs.sort_by_key(|run| (run.partition, start(run)));
        let (mut parts, mut target) = (vec![], 0);
        for (run, of_run) in runs.iter().enumerate() {
            for (range, r) in of_run.ranges.iter().enumerate() {
                parts.push(Part { run, range, target });
                target += u64::from(r.len);
            }
        }
        let mut layout = Layout {
            runs,
            data_len: target,
            reads: vec![],
        };
        parts.sort_by_key(|p| {
            let r = layout.range(p);
            (r.place, r.position)
        });
        for part in parts {
            let r = *layout.range(&part);
            let from = u64::from(r.position);
            let to = from + u64::from(r.len);
            let fits = |read: &&mut Read| {
                let near = from.saturating_sub(read.bytes.end) <= GAP;
                read.place == r.place && near && to - read.bytes.start <= READ_BYTES
            };
            match layout.reads.last_mut().filter(fits) {
                Some(read) => {
                    read.bytes.end = read.bytes.end.max(to);
                    read.parts.push(part);
                }
                None => layout.reads.push(Read {
                    place: r.place,
                    bytes: from..to,
                    parts: vec![part],
                }),
            }
        }
        layout
    }

    /// The range of a part.
    pub(crate) fn range(&self, part: &Part) -> &StoredRange {
        &self.runs[part.run].ranges[part.range]
    }
}

/// Compares stored bytes with what the index says of them: where batches begin and end, and their checksums. Merged data
/// may have gaps, which compaction leaves.
pub(crate) fn verify(r: &StoredRange, chunks: &[Bytes]) -> Result<(), BatchError> {
    if chunks.iter().map(Bytes::len).sum::<usize>() as u64 != u64::from(r.len) {
        return Err(BatchError::Truncated);
    }
    let gaps = r.place.level != Level::L0;
    let mut expected = r.base_offset;
    let mut cursor = ChunkCursor::new(chunks);
    while let Some(batch) = cursor.next_batch() {
        let batch = batch?;
        let base_offset = batch.header.base_offset;
        if base_offset < expected || base_offset > expected && !gaps {
            return Err(BatchError::Invalid("its base offset is not what the index says"));
        }
        batch.verify(chunks)?;
        expected = batch.header.last_offset().wrapping_add(1);
    }
    let end = r.last_offset + 1;
    if expected > end || expected < end && !gaps {
        return Err(BatchError::Invalid("the last offset is not what the index says"));
    }
    Ok(())
}

/// The object that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its number.
    pub(crate) file: u64,
    /// Where its data begins.
    pub(crate) data_start: u64,
}

/// What entries say of an object whose bytes are `data`. Ranges for which `good` says no are left where they are, and
/// a run falls apart there.
pub(crate) fn pointers(
    layout: &Layout,
    data: &[u8],
    target: Target,
    good: impl Fn(usize, usize) -> bool,
) -> Result<Vec<MergedRanges>, BatchError> {
    let mut pointers = vec![];
    let mut at = 0usize;
    for (number, run) in layout.runs.iter().enumerate() {
        let mut open: Option<Pointer> = None;
        for (i, r) in run.ranges.iter().enumerate() {
            let end = at + r.len as usize;
            let bytes = data.get(at..end).ok_or(BatchError::Truncated)?;
            if good(number, i) {
                let pointer = match &mut open {
                    Some(pointer) => pointer,
                    none => none.insert(Pointer::new(run, r.base_offset, target, at)?),
                };
                pointer.add(bytes, r.append_time_ms)?;
            } else {
                pointers.extend(open.take().map(Pointer::finish));
            }
            at = end;
        }
        pointers.extend(open.map(Pointer::finish));
    }
    Ok(pointers)
}

/// Pointers to a part of a run, while its batches are gone through.
struct Pointer {
    merged: MergedRanges,
    last: Option<MergedRange>,
}

impl Pointer {
    fn new(run: &Run, base_offset: Offset, target: Target, at: usize) -> Result<Pointer, BatchError> {
        let position = target.data_start + at as u64;
        let merged = MergedRanges {
            partition: run.partition,
            leader_epoch: run.leader_epoch,
            file: target.file,
            position: u32::try_from(position).map_err(|_| BatchError::TooLarge)?,
            base_offset,
            ranges: vec![],
        };
        Ok(Pointer { merged, last: None })
    }

    /// Adds the batches of one range, the newest of which was appended at `append_time_ms`.
    fn add(&mut self, mut bytes: &[u8], append_time_ms: i64) -> Result<(), BatchError> {
        while !bytes.is_empty() {
            let header = BatchHeader::parse(bytes)?;
            let len = u32::try_from(header.size()).map_err(|_| BatchError::TooLarge)?;
            bytes = bytes.get(header.size()..).ok_or(BatchError::Truncated)?;
            let one = MergedRange {
                last_offset: header.last_offset(),
                len,
                max_timestamp: header.max_timestamp,
                append_time_ms,
            };
            let fits = |r: &&mut MergedRange| u64::from(r.len) + u64::from(len) <= RANGE_BYTES;
            match self.last.as_mut().filter(fits) {
                Some(r) => {
                    *r = MergedRange {
                        len: r.len + len,
                        max_timestamp: r.max_timestamp.max(one.max_timestamp),
                        append_time_ms: r.append_time_ms.max(append_time_ms),
                        ..one
                    };
                }
                None => self.merged.ranges.extend(self.last.replace(one)),
            }
        }
        Ok(())
    }

    fn finish(mut self) -> MergedRanges {
        self.merged.ranges.extend(self.last);
        self.merged
    }
}

/// The ranges that a pointer to what is in `runs` (by partition and offset) stands for.
fn sources<'a>(runs: &'a [Run], rewrite: &Rewrite) -> &'a [StoredRange] {
    let key = (rewrite.partition, rewrite.base_offset);
    let start = |run: &Run| (run.partition, run.ranges.first().map_or(0, |r| r.base_offset));
    let run = runs.partition_point(|run| start(run) <= key);
    let ranges = run.checked_sub(1).map_or(&[][..], |run| &runs[run].ranges);
    let from = ranges.partition_point(|r| r.base_offset < rewrite.base_offset);
    let to = ranges.partition_point(|r| r.last_offset <= rewrite.last_offset);
    &ranges[from..to.max(from)]
}

/// A pointer that counts only for what stands in `runs`.
pub(crate) fn only_of(runs: &[Run], pointer: Entry) -> Conditional {
    let sources = pointer.rewrite().map(|rewrite| sources(runs, &rewrite).to_vec());
    (pointer, sources)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::batch::BatchBuilder;
    use crate::entry::{ArchivedShare, ArchivedShares, BatchRange, CompactedRanges, Entry};
    use crate::format::checkpoint::{SlotImage, decode_slot, encode_slot};
    use crate::stream::batch_entry;

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: Uuid::from_u128(1),
            partition,
        }
    }

    fn range(place: Place, base_offset: Offset, position: u32, len: u32) -> StoredRange {
        StoredRange {
            base_offset,
            last_offset: base_offset + 9,
            place,
            position,
            len,
            max_timestamp: 0,
            append_time_ms: 100 - base_offset,
        }
    }

    #[test]
    fn whole_segments_go_the_oldest_first_and_at_least_one() {
        let limits = |bytes, ranges| FileLimits { bytes, ranges };
        let mut backlog = Backlog::default();
        assert_eq!(backlog.cut(limits(9, 9)), None);
        for (place, len) in [
            (Place::l0(2, 0), 5),
            (Place::l0(1, 8), 30),
            (Place::l0(1, 9), 10),
            (Place::l0(1, 9), 1),
        ] {
            backlog.add(&range(place, 1, 0, len));
        }
        assert_eq!((backlog.bytes, backlog.oldest_ms), (46, Some(99)));
        assert_eq!(
            backlog.cut(limits(1, 9)),
            Some(Place::l0(1, 8)),
            "however large it is"
        );
        assert_eq!(backlog.cut(limits(40, 9)), Some(Place::l0(1, 8)));
        assert_eq!(backlog.cut(limits(41, 9)), Some(Place::l0(1, 9)));
        assert_eq!(backlog.cut(limits(46, 2)), Some(Place::l0(1, 8)));
        assert_eq!(backlog.cut(limits(46, 4)), Some(Place::l0(2, 0)));
    }

    #[test]
    fn neighbours_in_a_segment_are_read_at_once() {
        let near = Place::l0(1, 1);
        let run = |partition, ranges| Run {
            partition: tp(partition),
            leader_epoch: 1,
            ranges,
        };
        let layout = Layout::new(vec![
            run(
                2,
                vec![range(near, 0, 1_000, 50), range(Place::l0(1, 2), 10, 7, 3)],
            ),
            run(1, vec![range(near, 0, 100, 20)]),
            run(1, vec![range(near, 90, 2_000_000, 9_000_000)]),
        ]);
        let partitions: Vec<_> = layout.runs.iter().map(|r| r.partition.partition).collect();
        assert_eq!(partitions, [1, 1, 2]);
        assert_eq!(layout.data_len, 9_000_073);
        let reads: Vec<_> = layout.reads.iter().map(|r| (r.place, r.bytes.clone())).collect();
        let far = 2_000_000..11_000_000;
        assert_eq!(reads, [(near, 100..1_050), (near, far), (Place::l0(1, 2), 7..10)]);
        let targets: Vec<_> = layout
            .reads
            .iter()
            .flat_map(|r| &r.parts)
            .map(|p| p.target)
            .collect();
        assert_eq!(targets, [0, 9_000_020, 20, 9_000_070]);
    }

    /// A bucket, a log in it, and the same log without any rewrite.
    #[derive(Default)]
    struct World {
        objects: HashMap<Place, Vec<u8>>,
        next_seq: u64,
        next_file: u64,
        plain: BTreeMap<i32, PartitionImage>,
        merged: BTreeMap<i32, PartitionImage>,
        /// Everything that was published, in order.
        entries: Vec<(i32, Entry, Place)>,
        /// Pointers to a merged object that was written.
        pending: Vec<MergedRanges>,
        /// The same of objects that were archived or compacted.
        archived: Option<Entry>,
        compacted: Option<Entry>,
        /// Pointers that were found to fit, and are not published yet.
        submitted: Vec<Entry>,
        bad: Vec<(TopicPartition, Offset)>,
        /// Batches that a compaction took away, by partition and first offset.
        gone: BTreeSet<(i32, Offset)>,
        /// The log as of the newest checkpoint, and how many entries it holds.
        checkpoint: (BTreeMap<i32, PartitionImage>, usize),
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// Sizes of records, by partition.
        Append(Vec<(i32, usize)>),
        LogStart(i32, i64),
        /// Plans and writes an object of segments up to so many bytes.
        Merge(u64),
        /// Writes so many merged ranges of a partition into a file of history, after so many others.
        Archive(i32, usize, usize),
        /// Writes so many ranges of a partition anew without some of their batches, after so many others.
        Compact(i32, usize, usize),
        /// What was written last is judged: the merge, the archived file or the compacted object.
        Submit(u8),
        Publish,
        /// A checkpoint is written and read.
        Restart,
    }

    impl World {
        fn publish(&mut self, partition: i32, entry: Entry, place: Place) {
            if entry.rewrite().is_none() {
                self.plain
                    .entry(partition)
                    .or_default()
                    .apply(&entry, place)
                    .unwrap();
            }
            self.merged
                .entry(partition)
                .or_default()
                .apply(&entry, place)
                .unwrap();
            self.entries.push((partition, entry, place));
        }

        fn next_place(&mut self) -> Place {
            self.next_seq += 1;
            Place::l0(1 + self.next_seq / 7, self.next_seq)
        }

        fn append(&mut self, records: &[(i32, usize)]) {
            let place = self.next_place();
            let (mut bytes, mut found) = (vec![0; 40], BTreeMap::<i32, BatchRange>::new());
            let mut sorted = records.to_vec();
            sorted.sort_by_key(|(p, _)| *p);
            for (i, (partition, size)) in sorted.iter().enumerate() {
                let end = self.plain.get(partition).map_or(0, |i| i.state.end);
                let r = found.entry(*partition).or_insert_with(|| BatchRange {
                    partition: tp(*partition),
                    leader_epoch: 1,
                    position: bytes.len() as u64,
                    append_time_ms: self.next_seq as i64 * 10,
                    batches: vec![],
                });
                let base_offset = r.batches.last().map_or(end, |b| b.last_offset + 1);
                let mut b = BatchBuilder::new();
                for n in 0..1 + i % 3 {
                    b.push(i as i64 * 100 - n as i64, None, Some(&vec![i as u8; *size]), &[]);
                }
                let batch = b.build();
                r.batches.push(batch_entry(batch.header(), base_offset));
                bytes.extend_from_slice(&batch.patched_header(base_offset, 1));
                bytes.extend_from_slice(&batch.bytes()[crate::batch::HEADER_LEN..]);
            }
            self.objects.insert(place, bytes);
            for (partition, r) in found {
                self.publish(partition, Entry::Batches(r), place);
            }
        }

        fn log_start(&mut self, partition: i32, by: i64) {
            let place = self.next_place();
            let Some(image) = self.plain.get(&partition) else {
                return;
            };
            let offset = (image.state.log_start + by).min(image.state.end);
            let entry = Entry::LogStart {
                partition: tp(partition),
                leader_epoch: 1,
                offset,
            };
            self.publish(partition, entry, place);
        }

        fn bytes(&self, r: &StoredRange) -> Vec<u8> {
            let from = r.position as usize;
            self.objects[&r.place][from..from + r.len as usize].to_vec()
        }

        fn merge(&mut self, bytes: u64) {
            if !self.pending.is_empty() {
                return;
            }
            let mut backlog = Backlog::default();
            let skip = |p: i32, r: &StoredRange| self.bad.contains(&(tp(p), r.base_offset));
            for (p, image) in &self.merged {
                let left = image.unmerged_ranges().filter(|r| !skip(*p, r));
                left.for_each(|r| backlog.add(r));
            }
            let Some(cut) = backlog.cut(FileLimits { bytes, ranges: 6 }) else {
                return;
            };
            let chosen = self.merged.iter();
            let chosen = chosen.flat_map(|(p, image)| runs(tp(*p), 1, image, cut, |r| skip(*p, r)));
            let layout = Layout::new(chosen.collect());
            let data_start = 77;
            let mut object = vec![0; data_start + layout.data_len as usize];
            let mut bad = vec![];
            for read in &layout.reads {
                for part in &read.parts {
                    let r = layout.range(part);
                    assert!(read.place == r.place && read.bytes.start <= u64::from(r.position));
                    assert!(read.bytes.end >= u64::from(r.position) + u64::from(r.len));
                    let bytes = Bytes::from(self.bytes(r));
                    if verify(r, std::slice::from_ref(&bytes)).is_err() {
                        bad.push((part.run, part.range));
                        self.bad.push((layout.runs[part.run].partition, r.base_offset));
                        continue;
                    }
                    let to = data_start + part.target as usize;
                    object[to..to + bytes.len()].copy_from_slice(&bytes);
                }
            }
            self.next_file += 1;
            let target = Target {
                file: self.next_file,
                data_start: data_start as u64,
            };
            let good = |run, range| !bad.contains(&(run, range));
            self.pending = pointers(&layout, &object[data_start..], target, good).unwrap();
            for m in &self.pending {
                assert!(m.ranges.iter().all(|r| r.len > 0));
            }
            self.objects.insert(Place::l1(9, self.next_file), object);
        }

        /// Neighbouring ranges of a partition that `may` be rewritten, `n` after `skip` others.
        fn chosen(
            &self,
            partition: i32,
            skip: usize,
            n: usize,
            may: impl Fn(&StoredRange) -> bool,
        ) -> Vec<StoredRange> {
            let Some(image) = self.merged.get(&partition) else {
                return vec![];
            };
            let good = |r: &&StoredRange| may(r) && !self.bad.contains(&(tp(partition), r.base_offset));
            let mut chosen: Vec<StoredRange> = vec![];
            for r in image.ranges.iter().filter(good).skip(skip).take(n) {
                if chosen.last().is_some_and(|l| l.last_offset + 1 != r.base_offset) {
                    break;
                }
                chosen.push(*r);
            }
            chosen
        }

        fn archive(&mut self, partition: i32, skip: usize, n: usize) {
            let chosen = self.chosen(partition, skip, n, |r| r.place.level == Level::L1);
            let Some(first) = chosen.first() else { return };
            // In this world a byte is a row.
            let mut object = vec![0; 5];
            let mut shares: Vec<ArchivedShare> = vec![];
            for (i, r) in chosen.iter().enumerate() {
                let first_row = object.len() as u32;
                object.extend_from_slice(&self.bytes(r));
                match shares.last_mut().filter(|_| i % 2 == 1) {
                    Some(s) => {
                        *s = ArchivedShare {
                            last_offset: r.last_offset,
                            len: s.len + r.len,
                            max_timestamp: s.max_timestamp.max(r.max_timestamp),
                            append_time_ms: r.append_time_ms,
                            ..*s
                        }
                    }
                    None => shares.push(ArchivedShare {
                        last_offset: r.last_offset,
                        first_row,
                        len: r.len,
                        max_timestamp: r.max_timestamp,
                        append_time_ms: r.append_time_ms,
                    }),
                }
            }
            self.next_file += 1;
            self.objects.insert(Place::l2(9, self.next_file), object);
            self.archived = Some(Entry::Archived(ArchivedShares {
                partition: tp(partition),
                leader_epoch: 1,
                file: self.next_file,
                base_offset: first.base_offset,
                shares,
            }));
        }

        fn compact(&mut self, partition: i32, skip: usize, n: usize) {
            // It does not cut ranges up, as a merge does.
            let small = |r: &StoredRange| u64::from(r.len) <= RANGE_BYTES;
            let chosen = self.chosen(partition, skip, n, |r| r.place.level != Level::L2 && small(r));
            let Some(first) = chosen.first() else { return };
            let mut object = vec![0; 9];
            let mut ranges = vec![];
            for r in &chosen {
                let (chunks, before) = ([Bytes::from(self.bytes(r))], object.len());
                let mut cursor = ChunkCursor::new(&chunks);
                while let Some(b) = cursor.next_batch() {
                    let b = b.unwrap();
                    match b.header.base_offset % 3 {
                        0 => drop(self.gone.insert((partition, b.header.base_offset))),
                        _ => object.extend_from_slice(&b.chunks(&chunks).concat()),
                    }
                }
                ranges.push(MergedRange {
                    last_offset: r.last_offset,
                    len: (object.len() - before) as u32,
                    max_timestamp: r.max_timestamp,
                    append_time_ms: r.append_time_ms,
                });
            }
            self.next_file += 1;
            self.objects.insert(Place::l1(9, self.next_file), object);
            let merged = MergedRanges {
                partition: tp(partition),
                leader_epoch: 1,
                file: self.next_file,
                position: 9,
                base_offset: first.base_offset,
                ranges,
            };
            let clean_to = merged.last_offset() + 1;
            self.compacted = Some(Entry::Compacted(CompactedRanges { merged, clean_to }));
        }

        /// As the stream does: pointers are judged once, when no others are on their way, and published later.
        fn submit(&mut self, kind: u8) {
            self.publish_submitted();
            let pointers: Vec<Entry> = match kind {
                0 => std::mem::take(&mut self.pending)
                    .into_iter()
                    .map(Entry::Merged)
                    .collect(),
                1 => self.archived.take().into_iter().collect(),
                _ => self.compacted.take().into_iter().collect(),
            };
            let fits = |e: &Entry| {
                let image = &self.merged[&e.scope().unwrap().0.partition];
                matches!(image.covered_by(&e.rewrite().unwrap()), Ok(Some(_)))
            };
            self.submitted = pointers.into_iter().filter(fits).collect();
        }

        fn publish_submitted(&mut self) {
            for e in std::mem::take(&mut self.submitted) {
                self.next_seq += 1;
                let partition = e.scope().unwrap().0.partition;
                self.publish(partition, e, Place::l0(9, self.next_seq));
            }
        }

        fn publish_merge(&mut self) {
            self.submit(0);
            self.publish_submitted();
        }

        fn restart(&mut self) {
            let images = std::mem::take(&mut self.merged);
            let slot = SlotImage {
                epoch: 1,
                partitions: images.into_iter().map(|(p, i)| (tp(p), i)).collect(),
            };
            let back = decode_slot(encode_slot(&slot)).unwrap();
            assert_eq!(back, slot.partitions);
            self.merged = back.into_iter().map(|(tp, i)| (tp.partition, i)).collect();
            self.checkpoint = (self.merged.clone(), self.entries.len());
        }

        /// Offsets from the log start on, with their bytes: the same, wherever they stand.
        fn contents(&self, image: &PartitionImage) -> Vec<(Offset, Vec<u8>)> {
            let mut batches = vec![];
            for r in &image.ranges {
                let chunks = [Bytes::from(self.bytes(r))];
                let mut cursor = ChunkCursor::new(&chunks);
                let mut expected = r.base_offset;
                while let Some(b) = cursor.next_batch() {
                    let b = b.unwrap();
                    let whole = b.header.base_offset == expected;
                    assert!(whole || b.header.base_offset > expected && r.place.level != Level::L0);
                    expected = b.header.last_offset() + 1;
                    if b.header.last_offset() >= image.state.log_start {
                        batches.push((b.header.base_offset, b.chunks(&chunks).concat()));
                    }
                }
                let end = r.last_offset + 1;
                assert!(expected == end || expected < end && r.place.level != Level::L0);
            }
            batches
        }

        fn check(&self) {
            for (p, merged) in &self.merged {
                let plain = &self.plain[p];
                assert_eq!(merged.state, plain.state);
                let (contents, all) = (self.contents(merged), self.contents(plain));
                assert!(contents.iter().all(|b| all.contains(b)), "nothing is new");
                let may_be_gone = |(offset, _): &&(Offset, Vec<u8>)| self.gone.contains(&(*p, *offset));
                let mut kept = all.iter().filter(|b| !may_be_gone(b));
                assert!(kept.all(|b| contents.contains(b)), "nothing else is gone");
                let mut counted = PartitionImage::new(merged.state.clone(), merged.ranges.clone());
                counted.clean_to = merged.clean_to;
                assert_eq!(&counted, merged, "bytes are counted right");
                let log_start = merged.state.log_start;
                assert!(merged.ranges.iter().all(|r| r.last_offset >= log_start));
                let neighbours = merged.ranges.iter().zip(merged.ranges.iter().skip(1));
                for (a, b) in neighbours {
                    assert_eq!(a.last_offset + 1, b.base_offset);
                    assert!(a.append_time_ms <= b.append_time_ms);
                }
            }
            let mut again: BTreeMap<i32, PartitionImage> = BTreeMap::new();
            for (p, entry, place) in &self.entries {
                again.entry(*p).or_default().apply(entry, *place).unwrap();
            }
            assert_eq!(again, self.merged, "a recovery sees what readers saw");
            let (mut again, from) = self.checkpoint.clone();
            for (p, entry, place) in &self.entries[from..] {
                again.entry(*p).or_default().apply(entry, *place).unwrap();
            }
            assert_eq!(again, self.merged, "and so does one that begins at a checkpoint");
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        let record = (0i32..3, prop_oneof![1usize..300, Just(700_000usize)]);
        prop_oneof![
            4 => proptest::collection::vec(record, 1..5).prop_map(Op::Append),
            1 => (0i32..3, 0i64..6).prop_map(|(p, by)| Op::LogStart(p, by)),
            2 => prop_oneof![1u64..2_000, Just(1 << 30)].prop_map(Op::Merge),
            2 => (0i32..3, 0usize..3, 1usize..5).prop_map(|(p, skip, n)| Op::Archive(p, skip, n)),
            2 => (0i32..3, 0usize..3, 1usize..5).prop_map(|(p, skip, n)| Op::Compact(p, skip, n)),
            4 => (0u8..3).prop_map(Op::Submit),
            2 => Just(Op::Publish),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        /// Appends, log starts, restarts and rewrites of all kinds side by side, in any order: what is rewritten reads as
        /// what is not, but for what compaction took away, and a recovery always agrees with who saw it happen.
        #[test]
        fn a_rewritten_log_is_the_same_log(ops in proptest::collection::vec(op(), 1..40)) {
            let mut w = World::default();
            for op in ops {
                match op {
                    Op::Append(records) => w.append(&records),
                    Op::LogStart(p, by) => w.log_start(p, by),
                    Op::Merge(bytes) => w.merge(bytes),
                    Op::Archive(p, skip, n) => w.archive(p, skip, n),
                    Op::Compact(p, skip, n) => w.compact(p, skip, n),
                    Op::Submit(kind) => w.submit(kind),
                    Op::Publish => w.publish_submitted(),
                    Op::Restart => w.restart(),
                }
                w.check();
            }
            // And it comes to an end: nothing is left that was good.
            w.publish_merge();
            for _ in 0..100 {
                w.merge(1 << 30);
                w.publish_merge();
            }
            w.check();
            prop_assert!(w.merged.values().all(|i| i.unmerged == 0));
            let small = |r: &StoredRange| u64::from(r.len) <= RANGE_BYTES || r.last_offset - r.base_offset < 3;
            let fits = |i: &PartitionImage| i.merged_ranges().all(small);
            prop_assert!(w.merged.values().all(fits), "larger only if it is one batch");
        }

        /// Damaged ranges stay, and nothing else does.
        #[test]
        fn damage_is_left_where_it_is(
            before in proptest::collection::vec((0i32..2, 1usize..200), 1..6),
            hurt in proptest::collection::vec((0i32..2, 1usize..200), 1..6),
            after in proptest::collection::vec((0i32..2, 1usize..200), 1..6),
            at: usize,
        ) {
            let mut w = World::default();
            w.append(&before);
            w.append(&hurt);
            let place = w.entries.last().unwrap().2;
            w.append(&after);
            let ranges: Vec<StoredRange> =
                w.plain.values().flat_map(|i| &i.ranges).filter(|r| r.place == place).copied().collect();
            let victim = ranges[at % ranges.len()];
            // A base offset: outside the checksum.
            w.objects.get_mut(&place).unwrap()[victim.position as usize + 7] ^= 1;
            for _ in 0..5 {
                w.merge(1 << 30);
                w.publish_merge();
            }
            let left: Vec<StoredRange> = w.merged.values().flat_map(|i| i.unmerged_ranges()).copied().collect();
            prop_assert_eq!(left, vec![victim]);
            let needed: Vec<_> = w.merged.values().filter_map(|i| i.oldest_needed(place.incarnation)).collect();
            prop_assert_eq!(needed, vec![place.seq], "so the floor stays below it");
        }
    }

    #[test]
    fn pointers_that_do_not_fit_are_refused() {
        let mut w = World::default();
        for _ in 0..4 {
            w.append(&[(0, 10), (0, 10)]);
        }
        w.merge(1 << 30);
        let good = w.pending.remove(0);
        let image = w.merged[&0].clone();
        let covered = |m: &MergedRanges| image.covered_by(&Entry::Merged(m.clone()).rewrite().unwrap());
        assert_eq!(covered(&good), Ok(Some(0..=3)));
        let shifted = |base: i64, last: i64| {
            let mut m = good.clone();
            m.base_offset += base;
            m.ranges.last_mut().unwrap().last_offset += last;
            m
        };
        for bad in [shifted(1, 0), shifted(0, -1), shifted(0, 1)] {
            covered(&bad).unwrap_err();
            assert!(image.clone().apply(&Entry::Merged(bad), Place::l0(9, 9)).is_err());
        }
        let mut done = image.clone();
        let merged = Entry::Merged(good.clone());
        done.apply(&merged, Place::l0(9, 9)).unwrap();
        assert!(done.apply(&merged, Place::l0(9, 9)).is_err(), "not twice");
        let compacted = Entry::Compacted(CompactedRanges {
            merged: good.clone(),
            clean_to: 0,
        });
        done.apply(&compacted, Place::l0(9, 9)).unwrap();
        done.apply(&compacted, Place::l0(10, 9)).unwrap();
        let last = good.ranges.last().unwrap();
        let archived = Entry::Archived(ArchivedShares {
            partition: good.partition,
            leader_epoch: 1,
            file: 7,
            base_offset: good.base_offset,
            shares: vec![ArchivedShare {
                last_offset: last.last_offset,
                first_row: 3,
                len: 8,
                max_timestamp: last.max_timestamp,
                append_time_ms: last.append_time_ms,
            }],
        });
        done.apply(&archived, Place::l0(9, 9)).unwrap();
        assert_eq!((done.ranges.len(), done.ranges[0].place), (1, Place::l2(9, 7)));
        assert_eq!((done.bytes, done.unmerged, done.archived), (8, 0, 8));
        for late in [&merged, &compacted, &archived] {
            let refused = done.clone().apply(late, Place::l0(9, 9)).unwrap_err();
            assert!(refused.to_string().contains("rewritten already"), "{refused}");
        }
        let mut passed = image;
        let all = Entry::LogStart {
            partition: tp(0),
            leader_epoch: 1,
            offset: passed.state.end,
        };
        passed.apply(&all, Place::l0(9, 8)).unwrap();
        let before = passed.clone();
        passed.apply(&merged, Place::l0(9, 9)).unwrap();
        assert_eq!(passed, before, "what is forgotten stays forgotten");
    }

    #[test]
    fn a_pointer_knows_what_it_stands_for() {
        let run = |n, bases: &[i64]| Run {
            partition: tp(n),
            leader_epoch: 1,
            ranges: bases
                .iter()
                .map(|base| range(Place::l1(1, 1), *base, 0, 5))
                .collect(),
        };
        let runs = [run(1, &[0, 10, 20]), run(1, &[50]), run(2, &[0])];
        let of = |n, base_offset, last_offset| {
            let rewrite = Rewrite {
                partition: tp(n),
                base_offset,
                last_offset,
                highest: Level::L1,
            };
            let found = sources(&runs, &rewrite).iter().map(|r| r.base_offset);
            found.collect::<Vec<_>>()
        };
        assert_eq!(of(1, 0, 29), [0, 10, 20]);
        assert_eq!(of(1, 10, 19), [10]);
        assert_eq!(of(1, 50, 59), [50]);
        assert_eq!(of(2, 0, 9), [0]);
        assert_eq!(of(0, 0, 9), [0; 0]);
    }
}
