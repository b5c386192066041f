//! Who should own which slot: a pure function of the manifest, so that every broker that asks gets one answer.
//!
//! Four aims, in this order: brokers lead about the same number of partitions; each topic's partitions are
//! spread evenly; slots without partitions lie in stripes, so that a topic that is created later is spread
//! from the start; and as little as possible moves, because each move interrupts the clients of a slot for a
//! moment.
//!
//! The last aim would be lost in the chase for the others: with a thousand topics across the same slots, some
//! exchange that mends one partition can always be found. So a step must pay for itself: of the partitions
//! that it moves, one in [`PAYS_FOR`] at least must count as an improvement, and differences that are small
//! beside one slot are no fault. Every step makes one of three faults smaller and no more important one
//! larger, so the search ends, and where it ended there is no step: the plan of a planned state is empty.
//!
//! [`plan`] is what the controller proposes while all goes well, [`orphans`] deals out what a dead broker owned.

use std::collections::BTreeSet;

use crate::manifest::{Manifest, StreamEntry, slot_of};
use crate::{Incarnation, Slot, TopicPartition};

/// A step must improve the place of at least one in so many of the partitions that it moves.
const PAYS_FOR: i64 = 4;
/// Differences of totals up to this part of a usual slot's partitions are no fault, on either side.
const SLACK: i64 = 4;
/// Steps for each slot, at most: far more than any search has needed, it keeps a mistake here from being a hang.
const STEPS_PER_SLOT: usize = 16;

/// The slots that should change hands, with who should own them then, in the order in which to do it: any first
/// part of it is worth doing on its own.
///
/// Slots that are already on their way (`desired`) count as arrived and are left alone, unless who should get
/// them cannot any more; then the plan may say that the owner should keep the slot. Brokers for which `draining`
/// says so get nothing and lose all they have. Without a broker that may get slots nothing moves.
pub fn plan(
    manifest: &Manifest,
    draining: impl Fn(Incarnation, &StreamEntry) -> bool,
) -> Vec<(Slot, Incarnation)> {
    let receivers: Vec<Incarnation> = manifest
        .live()
        .filter(|(incarnation, stream)| !draining(*incarnation, stream))
        .map(|(incarnation, _)| incarnation)
        .collect();
    if receivers.is_empty() {
        return vec![];
    }
    let mut board = Board::new(manifest, receivers);
    board.settle();
    let now = |slot: usize| board.now[slot].desired.unwrap_or(board.now[slot].owner);
    let mut told = BTreeSet::new();
    let mut moves = vec![];
    // A slot whose way leads nowhere must be told so even if it stays with its owner.
    let withdrawn = (0..board.now.len()).filter(|s| board.now[*s].desired.is_some());
    for slot in board.touched.iter().copied().chain(withdrawn) {
        let Some(to) = board.at[slot].map(|rank| board.receivers[rank]) else {
            continue;
        };
        if to != now(slot) && told.insert(slot) {
            moves.push((slot as Slot, to));
        }
    }
    moves
}

/// New owners for `slots`, whose owner is gone, among `live`. Nothing else moves. Every slot of the cluster among
/// `slots` gets an owner, in the order of the slots, if anybody is live.
pub fn orphans(manifest: &Manifest, slots: &[Slot], live: &[Incarnation]) -> Vec<(Slot, Incarnation)> {
    let receivers: Vec<Incarnation> = live
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if receivers.is_empty() {
        return vec![];
    }
    let mut board = Board::new(manifest, receivers);
    let wanted: BTreeSet<usize> = slots.iter().map(|s| *s as usize).collect();
    for slot in 0..board.at.len() {
        board.movable[slot] = wanted.contains(&slot);
        // An orphan on its way to somebody who lives arrives there; one that only had an owner has none.
        let going = board.now[slot].desired.and_then(|d| board.rank(d));
        if wanted.contains(&slot) && going.is_none() {
            board.take_away(slot);
        }
    }
    board.settle();
    let owner = |slot: usize| {
        let rank = board.at.get(slot).copied().flatten()?;
        Some((slot as Slot, board.receivers[rank]))
    };
    wanted.into_iter().filter_map(owner).collect()
}

/// Where the manifest says that a slot is.
#[derive(Clone, Copy)]
struct Now {
    owner: Incarnation,
    desired: Option<Incarnation>,
}

/// A number is no fault between `lo` and `hi`.
#[derive(Clone, Copy)]
struct Band {
    lo: i64,
    hi: i64,
}

impl Band {
    /// What each of `of` has if `all` is shared evenly.
    fn even(all: i64, of: usize) -> Band {
        let of = of as i64;
        Band {
            lo: all / of,
            hi: (all + of - 1) / of,
        }
    }

    fn outside(self, value: i64) -> i64 {
        (value - self.hi).max(0) + (self.lo - value).max(0)
    }

    /// How much smaller the fault becomes if `amount` goes from one who has `from` to one who has `to`.
    fn gain(self, from: i64, to: i64, amount: i64) -> i64 {
        self.outside(from) + self.outside(to) - self.outside(from - amount) - self.outside(to + amount)
    }
}

/// A step of the search.
#[derive(Clone, Copy)]
enum Step {
    /// The slot goes to a broker.
    Move(usize, usize),
    /// Two slots change places.
    Swap(usize, usize),
}

/// An assignment, with all the counts that a step is judged by. Brokers are ranks in `receivers`.
struct Board {
    receivers: Vec<Incarnation>,
    now: Vec<Now>,
    /// Who has each slot: nobody, at first, if that is no receiver.
    at: Vec<Option<usize>>,
    movable: Vec<bool>,
    /// Topics with partitions in each slot, and how many: one, unless a topic goes round all slots.
    topics_of: Vec<Vec<(usize, i64)>>,
    /// Partitions in each slot.
    weight: Vec<i64>,
    /// Partitions of each broker, and what is no fault there.
    total: Vec<i64>,
    total_band: Band,
    /// Partitions of a topic at a broker, at `topic * receivers + rank`.
    of_topic: Vec<i64>,
    topic_band: Vec<Band>,
    /// How far each broker is outside the bands of all topics, summed.
    topic_fault: Vec<i64>,
    /// Slots of each broker, in all and by blocks of as many neighbouring slots as there are brokers.
    slots_of: Vec<i64>,
    slots_band: Band,
    of_block: Vec<i64>,
    block_band: Vec<Band>,
    /// Slots of the best on either side that are tried in pairs.
    candidates: usize,
    /// Slots that a step moved, the first time that it did.
    touched: Vec<usize>,
    steps_left: usize,
}

impl Board {
    /// The manifest's assignment; a slot whose way leads to a receiver is there and stays.
    fn new(manifest: &Manifest, receivers: Vec<Incarnation>) -> Board {
        let (n, slots) = (receivers.len(), manifest.slot_count as usize);
        let (topics_of, topic_band) = contents(manifest, n);
        let weight: Vec<i64> = topics_of.iter().map(|t| t.iter().map(|(_, k)| k).sum()).collect();
        let now: Vec<Now> = manifest
            .slots
            .iter()
            .flat_map(|run| {
                let now = Now {
                    owner: run.owner,
                    desired: run.desired,
                };
                std::iter::repeat_n(now, run.count as usize)
            })
            .collect();
        let (mut occupied, all): (Vec<i64>, i64) = (
            weight.iter().copied().filter(|w| *w > 0).collect(),
            weight.iter().sum(),
        );
        occupied.sort_unstable();
        let usual = occupied.get(occupied.len() / 2).copied().unwrap_or(0);
        let even = Band::even(all, n);
        let mut board = Board {
            at: vec![None; slots],
            movable: vec![true; slots],
            total: vec![0; n],
            total_band: Band {
                lo: even.lo - usual / SLACK,
                hi: even.hi + usual / SLACK,
            },
            of_topic: vec![0; topic_band.len() * n],
            topic_fault: vec![topic_band.iter().map(|b| b.lo).sum(); n],
            slots_of: vec![0; n],
            slots_band: Band::even(slots as i64, n),
            of_block: vec![0; slots.div_ceil(n) * n],
            block_band: (0..slots.div_ceil(n))
                .map(|block| Band::even(n.min(slots - block * n) as i64, n))
                .collect(),
            // Pairs cost their square times the topics of a slot: keep that product about the same.
            candidates: ((16_384 / (usual + 1)).isqrt() as usize).clamp(8, 128),
            touched: vec![],
            steps_left: slots * STEPS_PER_SLOT,
            receivers,
            now,
            topics_of,
            weight,
            topic_band,
        };
        for slot in 0..slots {
            let Now { owner, desired } = board.now[slot];
            let going = desired.and_then(|d| board.rank(d));
            board.movable[slot] = going.is_none() || desired == Some(owner);
            if let Some(rank) = going.or_else(|| board.rank(owner)) {
                board.put(slot, rank);
            }
        }
        board
    }

    fn rank(&self, incarnation: Incarnation) -> Option<usize> {
        self.receivers.binary_search(&incarnation).ok()
    }

    fn block(&self, slot: usize) -> usize {
        slot / self.receivers.len()
    }

    /// The place of a broker in a block if stripes are perfect. It decides where nothing else does.
    fn at_home(&self, slot: usize, rank: usize) -> bool {
        slot % self.receivers.len() == rank
    }

    fn put(&mut self, slot: usize, rank: usize) {
        self.at[slot] = Some(rank);
        self.count(slot, rank, 1);
    }

    fn take_away(&mut self, slot: usize) {
        if let Some(rank) = self.at[slot].take() {
            self.count(slot, rank, -1);
        }
    }

    fn count(&mut self, slot: usize, rank: usize, sign: i64) {
        let n = self.receivers.len();
        self.total[rank] += sign * self.weight[slot];
        self.slots_of[rank] += sign;
        let block = self.block(slot);
        self.of_block[block * n + rank] += sign;
        for (topic, k) in &self.topics_of[slot] {
            let (count, band) = (&mut self.of_topic[topic * n + rank], self.topic_band[*topic]);
            self.topic_fault[rank] -= band.outside(*count);
            *count += sign * k;
            self.topic_fault[rank] += band.outside(*count);
        }
    }

    fn make(&mut self, step: Step) {
        self.steps_left -= 1;
        match step {
            Step::Move(slot, to) => self.carry(slot, to),
            Step::Swap(one, other) => {
                if let (Some(a), Some(b)) = (self.at[one], self.at[other]) {
                    self.carry(one, b);
                    self.carry(other, a);
                }
            }
        }
    }

    fn carry(&mut self, slot: usize, to: usize) {
        self.take_away(slot);
        self.put(slot, to);
        self.touched.push(slot);
    }

    /// Slots with partitions that `rank` has.
    fn occupied(&self, rank: usize) -> impl Iterator<Item = usize> {
        (0..self.at.len()).filter(move |s| self.at[*s] == Some(rank) && self.weight[*s] > 0)
    }

    /// Those that it may give away.
    fn free(&self, rank: usize) -> impl Iterator<Item = usize> {
        self.occupied(rank).filter(|s| self.movable[*s])
    }

    /// Gives every slot an owner, then makes steps until none pays.
    fn settle(&mut self) {
        let mut homeless: Vec<usize> = (0..self.at.len()).filter(|s| self.at[*s].is_none()).collect();
        homeless.retain(|s| self.movable[*s]);
        // The heaviest first: light ones even out what they leave.
        homeless.sort_by_key(|s| (-self.weight[*s], *s));
        for slot in homeless {
            let to = self.best_home(slot);
            self.carry(slot, to);
        }
        loop {
            while let Some(step) = self.level() {
                self.make(step);
            }
            if !self.spread() {
                break;
            }
        }
        while self.stripe() {}
    }

    fn best_home(&self, slot: usize) -> usize {
        let n = self.receivers.len();
        let judge = |rank: usize| {
            let (band, before) = (self.total_band, self.total[rank]);
            let level = band.outside(before) - band.outside(before + self.weight[slot]);
            let crowd: i64 = self.topics_of[slot]
                .iter()
                .map(|(topic, k)| k * (2 * self.of_topic[topic * n + rank] + k))
                .sum();
            let block = self.block(slot);
            let (band, count) = (self.block_band[block], self.of_block[block * n + rank]);
            let (slots, have) = (self.slots_band, self.slots_of[rank]);
            let stripe =
                band.outside(count) - band.outside(count + 1) + slots.outside(have) - slots.outside(have + 1);
            let total = if self.weight[slot] > 0 {
                self.total[rank]
            } else {
                0
            };
            (level, -crowd, -total, stripe, -have, self.at_home(slot, rank))
        };
        // The first of the best, so that the lowest incarnation wins.
        (0..n).rev().max_by_key(|rank| judge(*rank)).unwrap_or(0)
    }

    /// Whether a step that moves so many partitions may be made for this gain.
    fn pays(gain: i64, moved: i64) -> bool {
        gain >= 1 && gain * PAYS_FOR >= moved
    }

    /// The next step towards equal totals.
    fn level(&self) -> Option<Step> {
        if self.steps_left == 0 || self.total.iter().all(|t| self.total_band.outside(*t) == 0) {
            return None;
        }
        let n = self.receivers.len();
        let mut by_total: Vec<usize> = (0..n).collect();
        by_total.sort_by_key(|rank| (self.total[*rank], *rank));
        let (low, high) = (by_total[0], by_total[n - 1]);
        let from_high = by_total.iter().map(|to| (high, *to));
        let to_low = by_total.iter().rev().map(|from| (*from, low));
        from_high
            .chain(to_low)
            .filter(|(from, to)| self.total[*from] > self.total[*to])
            .find_map(|(from, to)| {
                self.level_by_move(from, to)
                    .or_else(|| self.level_by_swap(from, to))
            })
    }

    fn level_by_move(&self, from: usize, to: usize) -> Option<Step> {
        let n = self.receivers.len();
        let judge = |slot: usize| {
            let weight = self.weight[slot];
            let gain = self.total_band.gain(self.total[from], self.total[to], weight);
            if !Self::pays(gain, weight) {
                return None;
            }
            // Squares, unlike faults, tell from the first step on which topics are far from even.
            let spread: i64 = self.topics_of[slot]
                .iter()
                .map(|(topic, k)| k * (self.of_topic[topic * n + from] - self.of_topic[topic * n + to] - k))
                .sum();
            let stripe = self.stripe_gain(slot, from, to);
            let home = self.at_home(slot, to);
            Some((
                gain * 4 / weight,
                spread * 1024 / weight,
                stripe,
                home,
                std::cmp::Reverse(slot),
            ))
        };
        let best = self.free(from).filter_map(judge).max()?;
        Some(Step::Move(best.4.0, to))
    }

    fn level_by_swap(&self, from: usize, to: usize) -> Option<Step> {
        let back: Vec<usize> = self.free(to).collect();
        let mut best: Option<(i64, Step)> = None;
        for slot in self.free(from) {
            for other in &back {
                let (one, two) = (self.weight[slot], self.weight[*other]);
                let gain = self.total_band.gain(self.total[from], self.total[to], one - two);
                if Self::pays(gain, one + two) && best.is_none_or(|(g, _)| gain > g) {
                    best = Some((gain, Step::Swap(slot, *other)));
                }
            }
        }
        best.map(|(_, step)| step)
    }

    /// Spreads topics, pair of brokers by pair, without making totals worse. Whether anything was done.
    fn spread(&mut self) -> bool {
        let before = self.steps_left;
        for one in 0..self.receivers.len() {
            for other in one + 1..self.receivers.len() {
                while self.steps_left > 0 {
                    match self.spread_between(one, other) {
                        Some(step) => self.make(step),
                        None => break,
                    }
                }
            }
        }
        self.steps_left < before
    }

    fn spread_between(&self, one: usize, other: usize) -> Option<Step> {
        if self.topic_fault[one] + self.topic_fault[other] == 0 {
            return None;
        }
        let ranked = |from: usize, to: usize| {
            let judge = |slot| {
                let gain = self.spread_gain(slot, None, from, to);
                (gain * 1024 / self.weight[slot], std::cmp::Reverse(slot), gain)
            };
            let mut all: Vec<_> = self.occupied(from).map(judge).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all
        };
        let (there, back) = (ranked(one, other), ranked(other, one));
        let mut best: Option<(i64, Step)> = None;
        let mut consider = |gain: i64, moved: i64, step: Step| {
            let worth = gain * 1024 / moved;
            if Self::pays(gain, moved) && best.is_none_or(|(w, _)| worth > w) {
                best = Some((worth, step));
            }
        };
        for (ranking, from, to) in [(&there, one, other), (&back, other, one)] {
            for (_, slot, gain) in ranking.iter().take_while(|(worth, ..)| *worth > 0) {
                let weight = self.weight[slot.0];
                if self.movable[slot.0] && self.total_band.gain(self.total[from], self.total[to], weight) >= 0
                {
                    consider(*gain, weight, Step::Move(slot.0, to));
                }
            }
        }
        for (_, slot, _) in there.iter().take(self.candidates) {
            for (_, against, _) in back.iter().take(self.candidates) {
                let (w1, w2) = (self.weight[slot.0], self.weight[against.0]);
                // Slots on their way were ranked too: whether they have arrived must not change who the best are.
                let free = self.movable[slot.0] && self.movable[against.0];
                if free && self.total_band.gain(self.total[one], self.total[other], w1 - w2) >= 0 {
                    let gain = self.spread_gain(slot.0, Some(against.0), one, other);
                    consider(gain, w1 + w2, Step::Swap(slot.0, against.0));
                }
            }
        }
        best.map(|(_, step)| step)
    }

    /// How much better topics are spread if `slot` goes from one broker to another and `back` the other way.
    fn spread_gain(&self, slot: usize, back: Option<usize>, from: usize, to: usize) -> i64 {
        let n = self.receivers.len();
        let gain = |topic: usize, amount: i64| {
            let (a, b) = (self.of_topic[topic * n + from], self.of_topic[topic * n + to]);
            self.topic_band[topic].gain(a, b, amount)
        };
        let mut against: &[(usize, i64)] = back.map_or(&[], |b| &self.topics_of[b]);
        let mut sum = 0;
        // Both lists are in the order of the topics; of a topic in both only the difference moves.
        for (topic, k) in &self.topics_of[slot] {
            while let Some(((t, j), rest)) = against.split_first().filter(|((t, _), _)| t < topic) {
                sum += gain(*t, -j);
                against = rest;
            }
            let same = against.first().filter(|(t, _)| t == topic);
            sum += gain(*topic, k - same.map_or(0, |(_, j)| *j));
            against = &against[usize::from(same.is_some())..];
        }
        sum + against.iter().map(|(t, j)| gain(*t, -j)).sum::<i64>()
    }

    /// How much better slots lie if one goes from one broker to another: in its block, and counted in all.
    fn stripe_gain(&self, slot: usize, from: usize, to: usize) -> i64 {
        let (n, block) = (self.receivers.len(), self.block(slot));
        let of = |rank: usize| self.of_block[block * n + rank];
        self.block_band[block].gain(of(from), of(to), 1)
            + self.slots_band.gain(self.slots_of[from], self.slots_of[to], 1)
    }

    /// Whether it is worth a move that `slot` lies better: one of the two has too many or too few slots in all, or
    /// the stripes are badly torn. Two of a kind in a block are mended when a topic comes that suffers from it.
    fn stripe_matters(&self, slot: usize, from: usize, to: usize) -> bool {
        let n = self.receivers.len();
        self.slots_band.gain(self.slots_of[from], self.slots_of[to], 1) > 0
            || self.of_block[self.block(slot) * n + from] >= n.min(3) as i64
    }

    /// Lays slots without partitions in stripes, block by block. Whether anything was done.
    fn stripe(&mut self) -> bool {
        let n = self.receivers.len();
        let before = self.steps_left;
        for block in 0..self.block_band.len() {
            while self.steps_left > 0 {
                let mut best = None;
                for slot in block * n..(block * n + n).min(self.at.len()) {
                    let Some(from) = self.at[slot].filter(|_| self.movable[slot] && self.weight[slot] == 0)
                    else {
                        continue;
                    };
                    for to in (0..n).filter(|to| *to != from) {
                        let gain = self.stripe_gain(slot, from, to);
                        let worth = (gain, self.at_home(slot, to));
                        if gain > 0
                            && self.stripe_matters(slot, from, to)
                            && best.is_none_or(|(w, _, _)| worth > w)
                        {
                            best = Some((worth, slot, to));
                        }
                    }
                }
                match best {
                    Some((_, slot, to)) => self.make(Step::Move(slot, to)),
                    None => break,
                }
            }
        }
        self.steps_left < before
    }
}

/// The topics in each slot, numbered in the order of their names, and what is even for each.
fn contents(manifest: &Manifest, receivers: usize) -> (Vec<Vec<(usize, i64)>>, Vec<Band>) {
    let mut topics_of: Vec<Vec<(usize, i64)>> = vec![vec![]; manifest.slot_count as usize];
    let mut bands = vec![];
    for (number, topic) in manifest.topics.values().enumerate() {
        for partition in 0..topic.partitions as i32 {
            let tp = TopicPartition {
                topic: topic.id,
                partition,
            };
            let here = &mut topics_of[slot_of(&tp, manifest.slot_count) as usize];
            match here.last_mut().filter(|(t, _)| *t == number) {
                Some((_, count)) => *count += 1,
                None => here.push((number, 1)),
            }
        }
        bands.push(Band::even(i64::from(topic.partitions), receivers));
    }
    (topics_of, bands)
}

#[cfg(test)]
mod tests;
