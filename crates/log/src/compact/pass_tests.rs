//! Passes over logs of every kind, against a plain list of what was appended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::batch::{BatchBuilder, HEADER_LEN, Record, field, records};
use crate::codec::Codec;
use crate::entry::{CompactedRanges, Entry, Level, MergedRanges, Place};
use crate::format::checkpoint::{SlotImage, decode_slot, encode_slot};
use crate::merge::plan::verify;
use crate::partition::image::{PartitionImage, stored};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const DELETE_RETENTION_MS: i64 = 100;
/// Every other range holds records that are older than their append by so much, as those of a mirror are.
const OLDER_MS: i64 = 40;

fn tp() -> TopicPartition {
    TopicPartition {
        topic: Uuid::from_u128(1),
        partition: 0,
    }
}

/// What a batch is beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Transactional,
    Control,
    /// Its checksum is right and its inside is not.
    Opaque,
}

/// A key, if there is one, and the size of the value, if it is no deletion mark.
type Spec = (Option<u8>, Option<usize>);

#[derive(Clone, Debug)]
enum Op {
    /// Batches that come to stand in one range.
    Append(Vec<(Kind, usize, Vec<Spec>)>),
    NextEpoch,
    Pass {
        later_ms: i64,
        room: u64,
        /// Of every so many ranges one cannot be read when the map is made, and when they are written anew.
        bad_every: (usize, usize),
    },
    LogStart(i64),
    /// A checkpoint is written and read.
    Restart,
}

/// Ranges that cannot be read, by their first offset.
#[derive(Default)]
struct Bad {
    for_map: BTreeSet<Offset>,
    for_rewrite: BTreeSet<Offset>,
}

impl Bad {
    fn is_empty(&self) -> bool {
        self.for_map.is_empty() && self.for_rewrite.is_empty()
    }
}

#[derive(Default)]
struct World {
    objects: HashMap<Place, Bytes>,
    image: PartitionImage,
    next: u64,
    epoch: i32,
    now_ms: i64,
    /// The timestamp of all records, if they are not as old as their append or a little older.
    timestamp: Option<i64>,
    /// First offset of each epoch.
    epochs: Vec<(i32, Offset)>,
    /// Records of batches that cannot be opened.
    hidden: BTreeMap<Offset, Vec<Record>>,
    /// When each deletion mark was first met.
    met: BTreeMap<Offset, i64>,
    tally: Tally,
}

/// A batch, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    base_offset: Offset,
    last_offset: Offset,
    leader_epoch: i32,
    transactional: bool,
    control: bool,
    horizon: Option<i64>,
    bytes: Bytes,
    records: Vec<Record>,
}

impl World {
    fn place(&mut self) -> Place {
        self.next += 1;
        Place::l1(9, self.next)
    }

    fn append(&mut self, batches: &[(Kind, usize, Vec<Spec>)]) {
        let (base, mut data, mut max_timestamp) = (self.image.state.end, BytesMut::new(), -1);
        let mut end = base;
        let older = if base % 2 == 0 { OLDER_MS } else { 0 };
        for (kind, codec, specs) in batches {
            let mut builder = BatchBuilder::new();
            match kind {
                Kind::Transactional => builder = builder.producer(1, 0, 0).transactional(),
                Kind::Control => builder = builder.producer(1, 0, 0).transactional().control(),
                Kind::Plain | Kind::Opaque => {}
            }
            for (i, (key, value)) in specs.iter().enumerate() {
                let value = value.map(|size| vec![b'a' + (end as u8 % 16); size + 1]);
                let headers: [(&[u8], Option<&[u8]>); 1] = [(b"h", None)];
                let key = key.map(|k| [k]);
                let at = (self.now_ms + i as i64 - older).max(0);
                let at = self.timestamp.unwrap_or(at);
                builder.push(
                    at,
                    key.as_ref().map(|k| &k[..]),
                    value.as_deref(),
                    &headers[..i % 2],
                );
            }
            let built = builder.build_with(CODECS[*codec]).unwrap();
            let mut bytes = built.patched_header(end, self.epoch).to_vec();
            bytes.extend_from_slice(&built.body());
            if *kind == Kind::Opaque {
                let whole = Bytes::from(bytes.clone());
                self.hidden.insert(end, records(&whole, 1 << 22).unwrap());
                // One record more than there are.
                let count = built.header().record_count + 1;
                bytes[field::RECORD_COUNT..HEADER_LEN].copy_from_slice(&count.to_be_bytes());
                let crc = crc32c::crc32c(&bytes[field::ATTRIBUTES..]);
                bytes[field::CRC..field::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
            }
            data.extend_from_slice(&bytes);
            max_timestamp = built.header().max_timestamp.max(max_timestamp);
            end += i64::from(built.header().last_offset_delta) + 1;
        }
        if self.epochs.last().is_none_or(|(e, _)| *e != self.epoch) {
            self.epochs.push((self.epoch, base));
        }
        let place = self.place();
        let range = StoredRange {
            base_offset: base,
            last_offset: end - 1,
            place,
            position: 0,
            len: data.len() as u32,
            max_timestamp,
            append_time_ms: self.now_ms,
        };
        self.objects.insert(place, data.freeze());
        let mut ranges = self.image.ranges.clone();
        ranges.push_back(range);
        self.image.state.end = end;
        let mut image = PartitionImage::new(self.image.state.clone(), ranges);
        image.clean_to = self.image.clean_to;
        self.image = image;
        self.now_ms += 10;
    }

    fn bytes(&self, r: &StoredRange) -> Bytes {
        let from = r.position as usize;
        self.objects[&r.place].slice(from..from + r.len as usize)
    }

    fn seen(&self) -> Vec<Seen> {
        let mut all = vec![];
        for r in &self.image.ranges {
            let chunks = [self.bytes(r)];
            verify(r, &chunks).unwrap();
            let mut cursor = ChunkCursor::new(&chunks);
            while let Some(view) = cursor.next_batch() {
                let view = view.unwrap();
                let bytes = view.chunks(&chunks).swap_remove(0);
                let hidden = self.hidden.get(&view.header.base_offset);
                let records = match hidden {
                    Some(hidden) if view.header.record_count > hidden.len() as i32 => hidden.clone(),
                    _ => records(&bytes, 1 << 22).unwrap(),
                };
                all.push(Seen {
                    base_offset: view.header.base_offset,
                    last_offset: view.header.last_offset(),
                    leader_epoch: view.header.leader_epoch,
                    transactional: view.header.is_transactional(),
                    control: view.header.is_control(),
                    horizon: view.header.delete_horizon_ms(),
                    bytes,
                    records,
                });
            }
        }
        all
    }

    /// The newest value of each key, with transactions committed or aborted.
    fn newest(seen: &[Seen], committed: bool) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut newest = BTreeMap::new();
        for b in seen {
            if b.control || (b.transactional && !committed) {
                continue;
            }
            for r in &b.records {
                let Some(key) = &r.key else { continue };
                match &r.value {
                    Some(value) => drop(newest.insert(key.to_vec(), value.to_vec())),
                    None => drop(newest.remove(&key[..])),
                }
            }
        }
        newest
    }

    /// As the task does it; answers up to where it went.
    fn pass(&mut self, room: u64, bad: &Bad) -> Offset {
        let ranges: Vec<StoredRange> = self.image.ranges.iter().copied().collect();
        let mut map = OffsetMap::new(room * crate::compact::map::PLACE_BYTES, 1 << 20);
        let (mut end, mut unread) = (0, Unread::new());
        for r in ranges.iter().filter(|r| r.last_offset >= self.image.clean_to) {
            if bad.for_map.contains(&r.base_offset) {
                unread.insert(r.base_offset, "bad".into());
            } else if note_keys(&mut map, &[self.bytes(r)]).is_err() {
                break;
            }
            end = r.last_offset + 1;
        }
        let ranges: Vec<_> = ranges.into_iter().filter(|r| r.last_offset < end).collect();
        let rules = Rules {
            newest: Arc::new(map),
            unread,
            now_ms: self.now_ms,
            delete_retention_ms: DELETE_RETENTION_MS,
        };
        let head = BytesMut::from(&b"head"[..]);
        let mut rewriter = Rewriter::new(tp(), rules, head.clone());
        let last = ranges.last().map(|r| r.base_offset);
        for r in &ranges {
            if rewriter.was_unread(r).is_some() || bad.for_rewrite.contains(&r.base_offset) {
                rewriter.unreadable(r);
            } else {
                let write = Some(r.base_offset) == last;
                rewriter.range(r, &[self.bytes(r)], write).unwrap();
            }
            if rewriter.len() > 1_000 {
                let piece = rewriter.take(head.clone());
                self.publish(piece, rewriter.obstacle);
            }
        }
        let piece = rewriter.take(head);
        self.publish(piece, rewriter.obstacle);
        self.tally = rewriter.tally;
        end
    }

    fn publish(&mut self, piece: Piece, obstacle: Option<Offset>) {
        let place = self.place();
        self.objects.insert(place, piece.object.freeze());
        for run in piece.runs {
            let merged = MergedRanges {
                partition: tp(),
                leader_epoch: self.epoch,
                file: place.seq,
                position: run.position as u32,
                base_offset: run.base_offset,
                ranges: run.ranges,
            };
            for r in stored(&merged, 9) {
                verify(&r, &[self.bytes(&r)]).unwrap();
            }
            let end = merged.last_offset() + 1;
            let clean_to = obstacle.map_or(end, |o| o.min(end));
            let entry = Entry::Compacted(CompactedRanges { merged, clean_to });
            self.image.apply(&entry, Place::l0(9, 1)).unwrap();
        }
    }

    fn epoch_of(&self, offset: Offset) -> i32 {
        let after = self.epochs.partition_point(|(_, start)| *start <= offset);
        self.epochs[after - 1].0
    }

    /// A pass, and everything that must be true after it.
    fn checked_pass(&mut self, room: u64, bad: &Bad) {
        let before = self.seen();
        let ranges_before = self.image.ranges.clone();
        let clean_before = self.image.clean_to;
        let unread = ranges_before.iter().filter(|r| {
            let dirty = r.last_offset >= clean_before;
            bad.for_rewrite.contains(&r.base_offset) || dirty && bad.for_map.contains(&r.base_offset)
        });
        let hidden = self
            .hidden
            .keys()
            .filter(|o| before.iter().any(|b| b.base_offset == **o));
        // From here on there may be records of which nothing is known.
        let obstructed_from = unread.map(|r| r.base_offset).chain(hidden.copied()).min();
        let obstructed = |offset: Offset| obstructed_from.is_some_and(|from| offset >= from);
        let opaque = |seen: &[Seen], w: &World| seen.iter().any(|b| w.hidden.contains_key(&b.base_offset));
        let end = self.pass(room, bad);
        let after = self.seen();
        for committed in [false, true] {
            assert_eq!(
                World::newest(&before, committed),
                World::newest(&after, committed),
                "nobody's newest value changes"
            );
        }
        let all = |seen: &[Seen]| -> BTreeMap<Offset, Record> {
            let records = seen.iter().flat_map(|b| b.records.clone());
            records.map(|r| (r.offset, r)).collect()
        };
        let (old, new) = (all(&before), all(&after));
        for (offset, record) in &new {
            assert_eq!(old.get(offset), Some(record), "what stays is what it was");
        }
        for (offset, record) in old.range(end..) {
            assert_eq!(new.get(offset), Some(record), "nothing behind the end is touched");
        }
        let mut next = self.image.ranges.front().map_or(0, |r| r.base_offset);
        for b in &after {
            assert_eq!(b.base_offset, next, "every offset has its batch");
            next = b.last_offset + 1;
            assert_eq!(
                self.epoch_of(b.last_offset),
                b.leader_epoch,
                "no batch leaves its epoch"
            );
            if b.control {
                assert!(
                    before
                        .iter()
                        .any(|o| o.bytes == b.bytes || o.base_offset == b.base_offset)
                );
            }
        }
        let unchanged = |b: &&Seen| !before.iter().any(|o| o.bytes == b.bytes);
        for b in after.iter().filter(unchanged) {
            let was = before.iter().find(|o| o.base_offset == b.base_offset);
            let same = was.is_some_and(|o| o.records == b.records && o.last_offset == b.last_offset);
            let marks = b.records.iter().any(|r| r.value.is_none());
            assert!(!same || marks, "a batch that loses nothing is as it was");
        }
        for b in after
            .iter()
            .filter(|b| obstructed(b.base_offset) && b.horizon.is_some())
        {
            let had_it = |o: &Seen| (o.base_offset, o.horizon) == (b.base_offset, b.horizon);
            assert!(
                before.iter().any(had_it),
                "no mark behind an obstacle counts as met"
            );
        }
        for r in &self.image.ranges {
            let overlaps =
                |o: &&StoredRange| o.base_offset <= r.last_offset && r.base_offset <= o.last_offset;
            let were = ranges_before.iter().filter(overlaps);
            let (times, appends): (Vec<i64>, Vec<i64>) = were.map(|o| (time_of(o), o.append_time_ms)).unzip();
            assert!(
                Some(&time_of(r)) <= times.iter().max(),
                "retention waits no longer than before"
            );
            assert!(Some(&r.append_time_ms) <= appends.iter().max());
            let batches = after
                .iter()
                .filter(|b| (r.base_offset..=r.last_offset).contains(&b.base_offset));
            if batches.flat_map(|b| &b.records).next().is_none() {
                assert_eq!(r.max_timestamp, -1, "there is no record to be found by it");
            }
        }
        // Where everything can be read there is one record of a key, and no old deletion mark.
        if bad.is_empty() && !opaque(&before, self) {
            assert_eq!(self.image.clean_to, end.max(clean_before));
            let mut keys = BTreeSet::new();
            for r in after.iter().filter(|b| !b.transactional).flat_map(|b| &b.records) {
                if r.offset < end {
                    let key = r.key.clone();
                    assert!(key.is_some(), "none is without a key");
                    assert!(
                        keys.insert(key),
                        "one record of each key, not another at {}",
                        r.offset
                    );
                    let met = self.met.get(&r.offset);
                    let old = met.is_some_and(|met| met + DELETE_RETENTION_MS <= self.now_ms);
                    assert!(r.value.is_some() || !old, "a mark stays no longer");
                }
            }
        }
        for r in after.iter().filter(|b| !b.transactional).flat_map(|b| &b.records) {
            if r.value.is_none() && r.offset < end && !obstructed(r.offset) {
                self.met.entry(r.offset).or_insert(self.now_ms);
            }
        }
        // Marks that were new to this pass, or are young, are still there if they are the newest.
        for b in before.iter().filter(|b| !b.transactional && !b.control) {
            for r in b.records.iter().filter(|r| r.value.is_none() && r.key.is_some()) {
                let newest = !old.range(r.offset + 1..).any(|(_, o)| o.key == r.key);
                let met = self.met.get(&r.offset).copied().unwrap_or(self.now_ms);
                if newest && met + DELETE_RETENTION_MS > self.now_ms {
                    assert!(
                        new.contains_key(&r.offset),
                        "the mark at {} went too early",
                        r.offset
                    );
                }
            }
        }
    }

    fn restart(&mut self) {
        let slot = SlotImage {
            epoch: 1,
            partitions: vec![(tp(), std::mem::take(&mut self.image))],
        };
        let (_, image) = decode_slot(encode_slot(&slot)).unwrap().swap_remove(0);
        assert_eq!(image, slot.partitions[0].1);
        self.image = image;
    }

    fn log_start(&mut self, by: i64) {
        let offset = (self.image.state.log_start + by).min(self.image.state.end);
        let entry = Entry::LogStart {
            partition: tp(),
            leader_epoch: self.epoch,
            offset,
        };
        self.image.apply(&entry, Place::l0(9, 1)).unwrap();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append(batches) => self.append(&batches),
            Op::NextEpoch => self.epoch += 1,
            Op::Pass {
                later_ms,
                room,
                bad_every,
            } => {
                self.now_ms += later_ms;
                let one_in = |every: usize| {
                    let ranges = self.image.ranges.iter().enumerate();
                    let bad = ranges.filter(|(i, _)| every > 0 && i % every == every - 1);
                    bad.map(|(_, r)| r.base_offset).collect()
                };
                let bad = Bad {
                    for_map: one_in(bad_every.0),
                    for_rewrite: one_in(bad_every.1),
                };
                self.checked_pass(room, &bad);
            }
            Op::LogStart(by) => self.log_start(by),
            Op::Restart => self.restart(),
        }
    }
}

fn batch() -> impl Strategy<Value = (Kind, usize, Vec<Spec>)> {
    let kind = prop_oneof![
        12 => Just(Kind::Plain),
        2 => Just(Kind::Transactional),
        1 => Just(Kind::Control),
        1 => Just(Kind::Opaque),
    ];
    let key = prop_oneof![9 => (0u8..6).prop_map(Some), 1 => Just(None)];
    let value = prop_oneof![12 => (0usize..40).prop_map(Some), 5 => Just(None), 1 => Just(Some(300_000))];
    (kind, 0usize..5, proptest::collection::vec((key, value), 1..5))
}

fn plain_batch() -> impl Strategy<Value = (Kind, usize, Vec<Spec>)> {
    batch().prop_map(|(_, codec, specs)| (Kind::Plain, codec, specs))
}

fn ops(
    batches: impl Strategy<Value = (Kind, usize, Vec<Spec>)>,
    bad_every: impl Strategy<Value = (usize, usize)>,
) -> impl Strategy<Value = Vec<Op>> {
    let pass = (
        prop_oneof![Just(0i64), Just(60), Just(1_000)],
        prop_oneof![3 => Just(1_000u64), 1 => 2u64..9],
        bad_every,
    );
    let op = prop_oneof![
        4 => proptest::collection::vec(batches, 1..4).prop_map(Op::Append),
        1 => Just(Op::NextEpoch),
        3 => pass.prop_map(|(later_ms, room, bad_every)| Op::Pass { later_ms, room, bad_every }),
        1 => (0i64..4).prop_map(Op::LogStart),
        1 => Just(Op::Restart),
    ];
    proptest::collection::vec(op, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Where everything can be read, compaction does all that it should and nothing else.
    #[test]
    fn a_compacted_log_says_the_same(ops in ops(plain_batch(), Just((0usize, 0usize)))) {
        let mut w = World::default();
        for op in ops {
            w.run(op);
        }
        w.image.clean_to = 0;
        w.checked_pass(1_000, &Bad::default());
        // And a second pass, through everything again, finds nothing to do; it may let a batch stand for the offsets that an
        // empty one stood for, where the first one began another object.
        let batches = |w: &World| w.seen().into_iter().filter(|b| !b.records.is_empty());
        let records = |w: &World| batches(w).map(|b| b.records).collect::<Vec<_>>();
        let before = records(&w);
        w.image.clean_to = 0;
        w.checked_pass(1_000, &Bad::default());
        prop_assert!(records(&w) == before);
        prop_assert_eq!(w.tally.removed, 0);
        let all = |w: &World| w.seen().iter().map(|b| b.bytes.clone()).collect::<Vec<_>>();
        let before = all(&w);
        w.image.clean_to = 0;
        w.checked_pass(1_000, &Bad::default());
        prop_assert!(all(&w).len() <= before.len());
        // Later all deletion marks are gone, and nothing else.
        w.now_ms += 10 * DELETE_RETENTION_MS;
        w.append(&[one(200)]);
        w.checked_pass(1_000, &Bad::default());
        let left = w.seen();
        prop_assert!(left.iter().flat_map(|b| &b.records).all(|r| r.value.is_some()));
        prop_assert_eq!(w.image.ranges.iter().map(|r| r.place.level).max().unwrap_or(Level::L1), Level::L1);
    }

    /// Whatever cannot be read, now or at all, and whatever transactions become: nothing comes back, nothing is lost.
    #[test]
    fn what_is_hidden_is_neither_lost_nor_brought_back(
        ops in ops(batch(), (some_or_none(), some_or_none())),
    ) {
        let mut w = World::default();
        for op in ops {
            w.run(op);
        }
        for later in [0, 2 * DELETE_RETENTION_MS, 2 * DELETE_RETENTION_MS] {
            w.now_ms += later;
            w.append(&[one(200)]);
            w.checked_pass(1_000, &Bad::default());
        }
    }
}

fn some_or_none() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0usize), 2 => 1usize..5]
}

fn one(key: u8) -> (Kind, usize, Vec<Spec>) {
    (Kind::Plain, 0, vec![(Some(key), Some(3))])
}

#[test]
fn batches_are_stretched_within_their_epoch_and_empty_ones_stand_in() {
    let mut w = World::default();
    // Epoch 0: keys 1, 2; epoch 1: 2; epoch 2: 2; epoch 3: 2 and 9.
    w.append(&[one(1), one(2)]);
    for _ in 0..2 {
        w.epoch += 1;
        w.append(&[one(2)]);
    }
    w.epoch += 1;
    w.append(&[one(2), one(9)]);
    w.checked_pass(100, &Bad::default());
    let spans: Vec<_> = w
        .seen()
        .iter()
        .map(|b| (b.base_offset, b.last_offset, b.leader_epoch, b.records.len()))
        .collect();
    assert_eq!(spans, [(0, 1, 0, 1), (2, 3, 2, 0), (4, 4, 3, 1), (5, 5, 3, 1)]);
    // Of a log whose first records are gone an empty batch is the first.
    w.append(&[one(1), one(2), one(9)]);
    w.checked_pass(100, &Bad::default());
    let spans: Vec<_> = w
        .seen()
        .iter()
        .map(|b| (b.base_offset, b.last_offset, b.leader_epoch, b.records.len()))
        .collect();
    assert_eq!(spans, [(0, 5, 3, 0), (6, 6, 3, 1), (7, 7, 3, 1), (8, 8, 3, 1)]);
    assert_eq!(w.image.clean_to, 9);
}

#[test]
fn a_span_beyond_what_a_batch_can_have_is_given_to_another() {
    let mut open = OpenRun {
        run: Run {
            base_offset: 0,
            position: 0,
            ranges: vec![],
        },
        last: None,
    };
    let mut object = BytesMut::new();
    let most = i64::from(i32::MAX);
    open.cover(&mut object, (0, most), 1, 5);
    open.cover(&mut object, (most + 1, most + 10), 1, 6);
    open.cover(&mut object, (most + 11, most + 20), 2, 7);
    open.settle(&mut object);
    let chunks = [object.freeze()];
    let spans: Vec<_> = ChunkCursor::new(&chunks)
        .map(|b| b.unwrap().header)
        .map(|h| (h.base_offset, h.last_offset(), h.leader_epoch))
        .collect();
    assert_eq!(spans, [(0, most, 1), (most + 1, most + 20, 2)]);
    let range = open.run.ranges[0];
    assert_eq!((range.last_offset, range.append_time_ms), (most + 20, 7));
}

#[test]
fn what_is_left_empty_is_as_old_as_what_it_held() {
    let small = 5;
    // With nothing else it fills a range.
    let large = RANGE_BYTES as usize;
    let append = |w: &mut World, timestamp: i64, size: usize| {
        w.timestamp = Some(timestamp);
        w.append(&[(Kind::Plain, 0, vec![(Some(1), Some(size))])]);
    };
    let judged = |w: &mut World| -> Vec<(Offset, i64, i64)> {
        w.image.clean_to = 0;
        w.checked_pass(100, &Bad::default());
        let ranges = w.image.ranges.iter();
        ranges
            .map(|r| (r.last_offset, r.max_timestamp, r.append_time_ms))
            .collect()
    };
    let world = || World {
        now_ms: 1_000,
        ..World::default()
    };
    // Records of a mirror: appended now, written long ago.
    let mut w = world();
    append(&mut w, 100, small);
    append(&mut w, 300, small);
    append(&mut w, 220, large);
    assert_eq!(judged(&mut w), [(1, -1, 300), (2, 220, 1_020)]);
    assert_eq!(
        w.image.retention_point(1_000, 600, -1),
        3,
        "nothing waits for what is empty"
    );
    assert_eq!(
        judged(&mut w),
        [(1, -1, 300), (2, 220, 1_020)],
        "it grows no younger"
    );
    // What had no timestamp is as old as its append,
    append(&mut w, -1, small);
    append(&mut w, 1_040, large);
    assert_eq!(judged(&mut w), [(3, -1, 1_030), (4, 1_040, 1_040)]);
    // and so is what had one ahead of the clock.
    append(&mut w, 9_000, small);
    append(&mut w, 1_060, large);
    assert_eq!(judged(&mut w), [(5, -1, 1_050), (6, 1_060, 1_060)]);

    // An empty batch that stood with others is as old as they were.
    let mut w = world();
    append(&mut w, 100, small);
    append(&mut w, 200, small);
    assert_eq!(judged(&mut w), [(1, 200, 1_010)]);
    append(&mut w, 150, large);
    assert_eq!(judged(&mut w), [(1, -1, 200), (2, 150, 1_020)]);
}

#[test]
fn what_was_not_read_for_the_map_is_not_read_afterwards() {
    let mark = |key| (Kind::Plain, 0, vec![(Some(key), None)]);
    let deleted = |w: &World| !World::newest(&w.seen(), true).contains_key(&vec![1]);
    let mut w = World::default();
    w.append(&[one(1)]);
    w.append(&[mark(1)]);
    w.append(&[one(2)]);
    let bad = Bad {
        for_map: BTreeSet::from([1]),
        for_rewrite: BTreeSet::new(),
    };
    w.checked_pass(100, &bad);
    assert_eq!(w.image.clean_to, 1);
    assert!(w.seen().iter().all(|b| b.horizon.is_none()));
    // From here on all can be read, and nobody has met the mark yet.
    for expected in [3, 2] {
        w.now_ms += 2 * DELETE_RETENTION_MS;
        w.append(&[one(3)]);
        w.checked_pass(100, &Bad::default());
        let left: usize = w.seen().iter().map(|b| b.records.len()).sum();
        assert!(deleted(&w));
        assert_eq!(left, expected, "the mark stays for its time, and then goes");
    }
}

#[test]
fn large_ranges_in_which_nothing_changes_are_left_where_they_are() {
    let big = |key| (Kind::Plain, 0, vec![(Some(key), Some(300_000))]);
    let mut w = World::default();
    for key in 0..5 {
        w.append(&[big(key)]);
    }
    w.append(&[one(9)]);
    w.append(&[one(2)]);
    let places: Vec<Place> = w.image.ranges.iter().map(|r| r.place).collect();
    w.checked_pass(100, &Bad::default());
    let now: Vec<Place> = w.image.ranges.iter().map(|r| r.place).collect();
    assert_eq!(now[..2], places[..2]);
    assert_ne!(now[2], places[2], "its key is written again");
    assert_eq!(now[3..5], places[3..5]);
    assert_eq!(now.len(), 6, "the small ones stand together: {now:?}");
    assert!(w.tally.bytes_after < 1_000);
    // A key after the end of the map.
    w.append(&[big(7)]);
    w.append(&[big(0)]);
    assert_eq!(w.pass(2, &Bad::default()), 8, "there is room for one key");
    assert_eq!(w.image.clean_to, 8);
}
