//! What clients saw, and what must hold of it: the invariants of a log, checked as the history grows and once more at
//! its end. Nothing here knows how the log is built.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::world::{EPOCH_MS, Millis};

/// Bytes that a record takes in a log at most, alone in its batch, or its offset in an empty one.
const RECORD_BYTES_MAX: i64 = 100;

/// A partition, by topic id.
pub type Partition = (Uuid, i32);

/// A record's value: who wrote it, and its number there. Values of an idempotent producer are written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    pub producer: u32,
    pub number: u64,
}

impl Value {
    pub fn encode(self) -> Vec<u8> {
        format!("{}:{}", self.producer, self.number).into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Option<Value> {
        let (producer, number) = std::str::from_utf8(bytes).ok()?.split_once(':')?;
        Some(Value {
            producer: producer.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    /// The key of its record.
    pub fn key(self) -> [u8; 1] {
        [(self.number % 7) as u8]
    }

    /// The time of its record: about when it is written.
    pub fn time(self) -> i64 {
        EPOCH_MS + 150 * self.number as i64
    }

    /// Whether a producer that numbers its batches wrote it: such have even numbers.
    pub fn is_idempotent(self) -> bool {
        self.producer.is_multiple_of(2)
    }
}

/// An answer that told a partition's end.
#[derive(Clone, Copy, Debug)]
struct Told {
    asked: Millis,
    answered: Millis,
    epoch: i32,
    end: i64,
    start: i64,
}

#[derive(Clone, Copy, Debug)]
struct Acked {
    value: Value,
    answered: Millis,
}

#[derive(Debug, Default)]
struct Log {
    /// What was read or acknowledged at each offset.
    records: BTreeMap<i64, Value>,
    acked: BTreeMap<i64, Acked>,
    /// Where each value of an idempotent producer is.
    places: BTreeMap<Value, i64>,
    /// Leader epoch in which each batch that was read was written, by its base offset.
    epochs: BTreeMap<i64, i32>,
    told: Vec<Told>,
    /// The highest log start that anybody asked for, whether or not it was done.
    start_asked: i64,
    /// The highest log start that was acknowledged.
    start_acked: i64,
    deleted: bool,
    /// Set while nothing lets its start move.
    standing: Option<Standing>,
}

/// A log whose start stands still.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Leaders of newer epochs were chosen after retention had ended, and have never known of it.
    above_epoch: i32,
    /// Where the first of them began.
    start: Option<i64>,
}

/// What moves log starts although nobody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// A limit of size, in bytes. What was written last stays.
    Size(i64),
    /// A limit of age, in ms.
    Time(i64),
}

/// Offsets that one group committed for one partition; one client at a time commits, in growing order.
#[derive(Debug, Default)]
struct Commits {
    /// When commits were sent that were not acknowledged, by offset: each may be carried out at any time, also long after a
    /// later one.
    open: BTreeMap<i64, Vec<Millis>>,
    acked: Vec<AckedCommit>,
}

/// A commit that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct AckedCommit {
    sent: Millis,
    answered: Millis,
    offset: i64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct History {
    pub violations: Vec<String>,
    /// The latest time (ms) that a clock of a broker can have shown so far.
    pub latest_ms: i64,
    logs: BTreeMap<Partition, Log>,
    /// Topics whose deletion was asked for.
    gone: BTreeSet<Uuid>,
    /// Topics that had a limit at some time.
    limited: BTreeMap<Uuid, Retention>,
    /// Topics of which the newest record of each key stays, and not all.
    compacted: BTreeSet<Uuid>,
    commits: BTreeMap<(String, Partition), Commits>,
    /// Per group: each generation that a member has heard of as settled, and when.
    generations: BTreeMap<String, Vec<(Millis, i32)>>,
    /// The newest success of each client, by name.
    successes: BTreeMap<String, Millis>,
    pub acks: u64,
    pub reads: u64,
    pub commits_acked: u64,
}

impl History {
    fn log(&mut self, p: Partition) -> &mut Log {
        let deleted = self.gone.contains(&p.0);
        self.logs.entry(p).or_insert_with(|| Log {
            deleted,
            ..Log::default()
        })
    }

    fn wrong(&mut self, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    /// A client got what it wanted.
    pub fn success(&mut self, client: &str, now: Millis) {
        self.successes.insert(client.to_owned(), now);
    }

    pub fn clients(&self) -> impl Iterator<Item = (&String, &Millis)> {
        self.successes.iter()
    }

    fn place(&mut self, p: Partition, offset: i64, value: Value, how: &str) {
        let log = self.log(p);
        let before = log.records.insert(offset, value);
        let elsewhere = match value.is_idempotent() {
            true => log.places.insert(value, offset),
            false => None,
        };
        if let Some(before) = before.filter(|b| *b != value) {
            self.wrong(format!(
                "{p:?} offset {offset} held {before:?} and is {how} as {value:?}"
            ));
        }
        if let Some(other) = elsewhere.filter(|o| *o != offset) {
            self.wrong(format!(
                "{p:?}: {value:?} was written once and is at {other} and, {how}, at {offset}"
            ));
        }
    }

    /// A batch was acknowledged.
    pub fn acked(&mut self, p: Partition, base: i64, values: &[Value], now: Millis) {
        self.acks += 1;
        for (i, value) in values.iter().enumerate() {
            let offset = base + i as i64;
            self.place(p, offset, *value, "acknowledged");
            self.log(p).acked.insert(
                offset,
                Acked {
                    value: *value,
                    answered: now,
                },
            );
        }
    }

    /// A batch was read.
    pub fn read(&mut self, p: Partition, base: i64, epoch: i32, values: &[Value]) {
        self.reads += 1;
        let log = self.log(p);
        let before = log.epochs.insert(base, epoch);
        if let Some(before) = before.filter(|b| *b != epoch) {
            self.wrong(format!(
                "{p:?} offset {base} was of epoch {before} and is of {epoch}"
            ));
        }
        for (i, value) in values.iter().enumerate() {
            self.place(p, base + i as i64, *value, "read");
        }
    }

    /// A leader of `epoch` told where the log begins and ends.
    pub fn told(&mut self, p: Partition, epoch: i32, start: i64, end: i64, asked: Millis, answered: Millis) {
        let told = Told {
            asked,
            answered,
            epoch,
            end,
            start,
        };
        self.log(p).told.push(told);
        self.begins(p, epoch, start, "as told");
    }

    /// A leader said that `offset` is outside the log, to somebody who read below it before.
    pub fn out_of_range(&mut self, p: Partition, offset: i64) {
        let limited = self.limited.get(&p.0).copied();
        let log = self.log(p);
        let known_end = log.records.last_key_value().map_or(0, |(o, _)| o + 1);
        let newest = log.acked.last_key_value().map_or(0, |(o, _)| *o);
        let below_start = offset < log.start_asked
            || match limited {
                Some(Retention::Size(_)) => offset <= newest,
                // It may have taken what nobody has seen yet.
                Some(Retention::Time(_)) => true,
                None => false,
            };
        if !below_start && offset <= known_end && !log.deleted {
            self.wrong(format!(
                "{p:?}: OFFSET_OUT_OF_RANGE for {offset}, and the log reaches {known_end}"
            ));
        }
    }

    /// A leader said in which epoch, and where, the epoch ended that somebody had read up to an offset.
    pub fn epoch_ends(&mut self, p: Partition, (epoch, read): (i32, i64), (found, end): (i32, i64)) {
        if (found < 0 || end < read) && !self.log(p).deleted {
            self.wrong(format!(
                "{p:?}: epoch {epoch} was read up to {read}, and its end is told as {end} in epoch {found}"
            ));
        }
    }

    /// The time of some record that was acknowledged up to `settled`.
    pub fn some_time(&self, p: Partition, settled: Millis, lot: u64) -> Option<i64> {
        let acked = &self.logs.get(&p)?.acked;
        let (last, _) = acked.last_key_value()?;
        let (_, record) = acked.range((lot % (*last as u64 + 1)) as i64..).next()?;
        (record.answered <= settled).then(|| record.value.time())
    }

    /// A leader answered which record is the first that is not older than `time`, with its time; all that was acknowledged
    /// up to `settled` is known to it.
    pub fn found_by_time(&mut self, p: Partition, time: i64, found: Option<(i64, i64)>, settled: Millis) {
        if self.limited.contains_key(&p.0) || self.gone.contains(&p.0) {
            return;
        }
        let log = self.log(p);
        let mut problems = vec![];
        if let Some((offset, at)) = found {
            let known = log.records.get(&offset).map(|value| value.time());
            if at < time || known.is_some_and(|known| known != at) {
                problems.push(format!("and is of {known:?}"));
            }
        }
        let end = found.map_or(i64::MAX, |(offset, _)| offset).max(log.start_asked);
        let passed = log.acked.range(log.start_asked..end);
        let passed = passed.filter(|(_, a)| a.answered <= settled && a.value.time() >= time);
        problems.extend(passed.map(|(o, a)| format!("and {o} is of {}", a.value.time())));
        for what in problems.into_iter().take(1) {
            self.wrong(format!(
                "{p:?}: {found:?} is told to be the first of {time}, {what}"
            ));
        }
    }

    /// Somebody asks for the log to start at `offset`.
    pub fn start_asked(&mut self, p: Partition, offset: i64) {
        let log = self.log(p);
        log.start_asked = log.start_asked.max(offset);
    }

    pub fn start_acked(&mut self, p: Partition, start: i64) {
        let log = self.log(p);
        log.start_acked = log.start_acked.max(start);
    }

    /// From now on only the newest record of each key must stay.
    pub fn compacted(&mut self, topic: Uuid) {
        self.compacted.insert(topic);
    }

    /// The manifest says that a topic has a limit from now on.
    pub fn limited(&mut self, topic: Uuid, by: Retention) {
        self.limited.insert(topic, by);
        for (_, log) in self.logs.range_mut((topic, i32::MIN)..=(topic, i32::MAX)) {
            log.standing = None;
        }
    }

    /// The manifest says that a topic has no limit any more, and the leader epoch of each of its partitions.
    pub fn unlimited(&mut self, topic: Uuid, epochs: &[(i32, i32)]) {
        if !self.limited.contains_key(&topic) {
            return;
        }
        for (partition, epoch) in epochs {
            let log = self.log((topic, *partition));
            log.standing.get_or_insert(Standing {
                above_epoch: *epoch,
                start: None,
            });
        }
    }

    /// Somebody who knows the log up to its leader of `epoch` says that it begins at `start`.
    pub fn begins(&mut self, p: Partition, epoch: i32, start: i64, how: &str) {
        let Some(standing) = self.log(p).standing.as_mut().filter(|s| epoch > s.above_epoch) else {
            return;
        };
        let stood = *standing.start.get_or_insert(start);
        if stood != start {
            self.wrong(format!(
                "{how}: {p:?} begins at {start} in epoch {epoch}, and began at {stood} since nothing lets that move"
            ));
        }
    }

    /// The topic is to be deleted: from now on its end is no loss.
    pub fn deleting(&mut self, topic: Uuid) {
        self.gone.insert(topic);
        for (_, log) in self.logs.range_mut((topic, i32::MIN)..=(topic, i32::MAX)) {
            log.deleted = true;
        }
    }

    pub fn commit_tried(&mut self, group: &str, p: Partition, offset: i64, now: Millis) {
        let c = self.commits.entry((group.to_owned(), p)).or_default();
        c.open.entry(offset).or_default().push(now);
    }

    pub fn commit_acked(&mut self, group: &str, p: Partition, offset: i64, now: Millis) {
        self.commits_acked += 1;
        let c = self.commits.entry((group.to_owned(), p)).or_default();
        let sent = c.open.get_mut(&offset).and_then(Vec::pop).unwrap_or(now);
        c.acked.push(AckedCommit {
            sent,
            answered: now,
            offset,
        });
    }

    fn newest_generation(&self, group: &str, before: Millis) -> i32 {
        let known = self.generations.get(group).into_iter().flatten();
        known
            .filter(|(at, _)| *at < before)
            .map(|(_, g)| *g)
            .max()
            .unwrap_or(-1)
    }

    /// A member was given its share in a generation. A coordinator that was taken over and does not know it may still
    /// give shares of an old one, and no harm is done: nothing is committed in it any more.
    pub fn synced(&mut self, group: &str, generation: i32, now: Millis) {
        let known = self.generations.entry(group.to_owned()).or_default();
        known.push((now, generation));
    }

    /// A member's commit, sent at `asked`, was acknowledged.
    pub fn committed_in(&mut self, group: &str, generation: i32, asked: Millis) {
        let newest = self.newest_generation(group, asked);
        if generation < newest {
            self.wrong(format!(
                "group {group}: generation {generation} committed, and {newest} was settled"
            ));
        }
    }

    /// A coordinator answered that `offset` (-1: none) is committed; it was asked at `asked`.
    pub fn committed(&mut self, group: &str, p: Partition, offset: i64, asked: Millis) {
        let c = self.commits.entry((group.to_owned(), p)).or_default();
        // A commit may have been carried out at any time between its sending and its answer: one is out of date for sure
        // only if another was sent after its answer and answered before the question.
        let settled = |c: &&AckedCommit| c.answered < asked;
        let replaced = |old: Millis| c.acked.iter().filter(settled).any(|later| later.sent > old);
        let is_newest = match offset {
            -1 => !c.acked.iter().any(|c| c.answered < asked),
            _ => c
                .acked
                .iter()
                .any(|c| c.offset == offset && !replaced(c.answered)),
        };
        let open = c.open.get(&offset).is_some_and(|sent| !sent.is_empty());
        if !is_newest && !open {
            let newest = c.acked.iter().rfind(settled).map_or(-1, |c| c.offset);
            self.wrong(format!(
                "group {group}: {newest} was the newest acknowledged commit for {p:?}, and {offset} was fetched"
            ));
        }
    }

    /// Acknowledged records of a log that begins at `start`, of topics that were not deleted: offset and value.
    pub fn must_be_there(&self, p: Partition, start: i64, before: Millis) -> Vec<(i64, Value)> {
        let Some(log) = self.logs.get(&p).filter(|l| !l.deleted) else {
            return vec![];
        };
        let from = match self.limited.contains_key(&p.0) {
            true => start.max(log.start_asked),
            false => log.start_asked,
        };
        let acked = log.acked.range(from..);
        acked
            .filter(|(_, a)| a.answered <= before)
            .map(|(o, a)| (*o, a.value))
            .collect()
    }

    /// Partitions with acknowledged records, whose topic was not deleted.
    pub fn partitions(&self) -> Vec<Partition> {
        let alive = self
            .logs
            .iter()
            .filter(|(_, l)| !l.deleted && !l.acked.is_empty());
        alive.map(|(p, _)| *p).collect()
    }

    /// A whole log as it is at the end, or in a copy of the bucket: from `start` on, one value per offset.
    pub fn whole(&mut self, p: Partition, start: i64, log: &[(i64, i32, Value)], before: Millis, how: &str) {
        let (limited, compacted) = (self.limited.get(&p.0).copied(), self.compacted.contains(&p.0));
        let (asked, acked, last_acked) = {
            let l = self.log(p);
            let last = l.acked.iter().rfind(|(_, a)| a.answered <= before);
            (l.start_asked, l.start_acked, last.map_or(i64::MAX, |(o, _)| *o))
        };
        let at_most = match limited {
            None => asked,
            // How many bytes a file of history has of a record is not known here.
            Some(Retention::Size(_)) if !compacted => last_acked.max(asked),
            Some(Retention::Time(_)) if !compacted => i64::MAX,
            Some(limit) => self.start_of_compacted(p, log, limit).max(asked),
        };
        if start > at_most {
            self.wrong(format!(
                "{how}: {p:?} starts at {start}, and nothing let it begin after {at_most}"
            ));
        }
        if start < acked && before == Millis::MAX {
            self.wrong(format!(
                "{how}: {p:?} starts at {start}, and {acked} was acknowledged"
            ));
        }
        let mut next = None;
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        let mut epoch_before = 0;
        for (offset, epoch, value) in log {
            if next.is_some_and(|n| n > *offset || (n < *offset && !compacted)) {
                self.wrong(format!("{how}: {p:?} has a gap before {offset}"));
            }
            next = Some(offset + 1);
            self.place(p, *offset, *value, how);
            if *epoch < epoch_before {
                self.wrong(format!(
                    "{how}: {p:?} offset {offset} is of epoch {epoch}, after {epoch_before}"
                ));
            }
            epoch_before = *epoch;
            if value.is_idempotent() {
                let last = newest.insert(value.producer, value.number);
                if let Some(last) = last.filter(|l| *l >= value.number) {
                    self.wrong(format!(
                        "{how}: {p:?} offset {offset} holds {value:?} after number {last}"
                    ));
                }
            }
        }
        let have: BTreeMap<i64, Value> = log.iter().map(|(o, _, v)| (*o, *v)).collect();
        let last: BTreeMap<[u8; 1], i64> = log.iter().map(|(o, _, v)| (v.key(), *o)).collect();
        for (offset, value) in self.must_be_there(p, start, before) {
            let superseded = compacted && last.get(&value.key()).is_some_and(|newer| *newer > offset);
            if have.get(&offset) != Some(&value) && !superseded {
                let found = have.get(&offset).copied();
                self.wrong(format!(
                    "{how}: {p:?} offset {offset} was acknowledged as {value:?} and is {found:?}"
                ));
            }
        }
        if before == Millis::MAX {
            self.check_told(p, log);
        }
    }

    /// Where a compacted log may begin at most, of which there is `log` now: what is the newest of its key goes when the
    /// limit lets it, and no sooner.
    fn start_of_compacted(&self, p: Partition, log: &[(i64, i32, Value)], limit: Retention) -> i64 {
        match limit {
            Retention::Size(bytes) => {
                let end = log.last().map_or(0, |(offset, ..)| offset + 1);
                end - bytes / RECORD_BYTES_MAX
            }
            Retention::Time(ms) => {
                let known = self.logs.get(&p).into_iter().flat_map(|l| &l.records);
                let known = known.chain(log.iter().map(|(offset, _, value)| (offset, value)));
                let mut newest: BTreeMap<[u8; 1], (i64, i64)> = BTreeMap::new();
                for (offset, value) in known {
                    let of_key = newest.entry(value.key()).or_default();
                    *of_key = (*of_key).max((*offset, value.time()));
                }
                let young = newest.values().filter(|(_, time)| time + ms >= self.latest_ms);
                young.map(|(offset, _)| *offset).min().unwrap_or(i64::MAX)
            }
        }
    }

    /// Ends and starts that were told may not go back: within an epoch and from epoch to epoch, in the order of
    /// time as clients can know it (one answer before the other question).
    fn check_told(&mut self, p: Partition, whole: &[(i64, i32, Value)]) {
        let l = self.log(p);
        let mut told = std::mem::take(&mut l.told);
        told.sort_by_key(|t| t.asked);
        let mut by_answer = told.clone();
        by_answer.sort_by_key(|t| t.answered);
        let epoch_at: BTreeMap<i64, i32> = whole.iter().map(|(o, e, _)| (*o, *e)).collect();
        let mut acks: Vec<(Millis, i64, i32)> = l
            .acked
            .iter()
            .filter_map(|(o, a)| Some((a.answered, *o, *epoch_at.get(o)?)))
            .collect();
        acks.sort_unstable();
        let deleted = l.deleted;
        let mut problems = vec![];
        // The greatest end and start known before a question, by the epoch that they were told in.
        let (mut ends, mut starts): (BTreeMap<i32, i64>, BTreeMap<i32, i64>) = Default::default();
        let (mut answers, mut acked) = (by_answer.iter().peekable(), acks.iter().peekable());
        for t in &told {
            while let Some(a) = answers.next_if(|a| a.answered < t.asked) {
                let end = ends.entry(a.epoch).or_insert(0);
                *end = (*end).max(a.end);
                let start = starts.entry(a.epoch).or_insert(0);
                *start = (*start).max(a.start);
            }
            while let Some((_, offset, epoch)) = acked.next_if(|(at, ..)| *at < t.asked) {
                let end = ends.entry(*epoch).or_insert(0);
                *end = (*end).max(offset + 1);
            }
            let end = ends.range(..=t.epoch).map(|(_, e)| *e).max().unwrap_or(0);
            let start = starts.range(..=t.epoch).map(|(_, s)| *s).max().unwrap_or(0);
            if t.end < end {
                problems.push(format!(
                    "{p:?}: at {} the leader of epoch {} told the end {}, and {end} was known",
                    t.answered, t.epoch, t.end
                ));
            }
            if t.start < start {
                problems.push(format!(
                    "{p:?}: at {} the leader of epoch {} told the start {}, and {start} was known",
                    t.answered, t.epoch, t.start
                ));
            }
        }
        if !deleted {
            problems.into_iter().for_each(|what| self.wrong(what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = (Uuid::nil(), 0);

    fn v(number: u64) -> Value {
        Value { producer: 2, number }
    }

    fn found(h: &History) -> usize {
        h.violations.len()
    }

    #[test]
    fn a_clean_history_is_clean() {
        let mut h = History::default();
        h.acked(P, 0, &[v(0), v(1)], 10);
        h.read(P, 0, 1, &[v(0), v(1)]);
        h.told(P, 1, 0, 2, 11, 12);
        h.told(P, 2, 0, 2, 13, 14);
        h.whole(P, 0, &[(0, 1, v(0)), (1, 1, v(1))], Millis::MAX, "at the end");
        h.commit_tried("g", P, 5, 15);
        h.commit_acked("g", P, 5, 20);
        h.committed("g", P, 5, 21);
        assert_eq!(h.violations, Vec::<String>::new());
    }

    #[test]
    fn of_a_compacted_topic_the_newest_of_each_key_must_be_there() {
        let look = |log: &[(i64, i32, Value)]| {
            let mut h = History::default();
            h.compacted(P.0);
            h.acked(P, 0, &[v(0), v(1), v(7), v(8)], 10);
            h.whole(P, 0, log, 99, "x");
            found(&h)
        };
        let all = [(0, 1, v(0)), (1, 1, v(1)), (2, 1, v(7)), (3, 1, v(8))];
        assert_eq!(look(&all), 0);
        assert_eq!(look(&all[2..]), 0, "7 has the key of 0, and 8 that of 1");
        assert_eq!(look(&[all[0], all[3]]), 1);
        assert_eq!(look(&all[..3]), 1, "the newest itself");
    }

    #[test]
    fn the_first_record_of_a_time_is_found() {
        let told = |time: u64, at: Option<(i64, u64)>| {
            let mut h = History::default();
            h.acked(P, 0, &[v(0), v(5), v(3)], 10);
            h.acked(P, 3, &[v(6)], 20);
            let at = at.map(|(offset, of)| (offset, v(of).time()));
            h.found_by_time(P, v(time).time(), at, 15);
            found(&h)
        };
        assert_eq!(told(4, Some((1, 5))), 0);
        assert_eq!(told(6, Some((3, 6))), 0);
        assert_eq!(told(6, None), 0, "what is new may be unknown");
        assert_eq!(told(4, None), 1);
        assert_eq!(told(3, Some((2, 3))), 1, "an earlier one was passed over");
        assert_eq!(told(4, Some((0, 0))), 1, "it is older");
        assert_eq!(told(4, Some((1, 6))), 1, "it has another time");
    }

    #[test]
    fn what_retention_may_take_is_missed_by_nobody() {
        let of = |by: Option<Retention>, start: i64| {
            let mut h = History::default();
            h.acked(P, 0, &[v(0), v(1), v(2)], 10);
            by.into_iter().for_each(|by| h.limited(P.0, by));
            let log: Vec<_> = (start..3).map(|o| (o, 1, v(o as u64))).collect();
            h.whole(P, start, &log, 99, "x");
            found(&h)
        };
        assert_eq!(of(None, 1), 2, "nobody asked for it, and a record is missing");
        assert_eq!(of(Some(Retention::Size(1)), 2), 0);
        assert_eq!(of(Some(Retention::Size(1)), 3), 1, "the last one stays");
        assert_eq!(of(Some(Retention::Time(1)), 3), 0);
    }

    #[test]
    fn of_a_compacted_topic_the_newest_of_each_key_goes_when_the_limit_lets_it() {
        // Of seven keys: 0 to 6 are superseded by 7 to 13.
        let look = |by: Retention, latest: u64, left: &[u64]| {
            let mut h = History {
                latest_ms: v(latest).time(),
                ..History::default()
            };
            h.compacted(P.0);
            h.limited(P.0, by);
            h.acked(P, 0, &(0..14).map(v).collect::<Vec<_>>(), 10);
            let log: Vec<_> = left.iter().map(|n| (*n as i64, 1, v(*n))).collect();
            h.whole(P, left.first().map_or(14, |n| *n as i64), &log, 99, "x");
            found(&h)
        };
        let size = Retention::Size(3 * RECORD_BYTES_MAX);
        let time = Retention::Time(v(3).time() - v(0).time());
        for limit in [size, time] {
            assert_eq!(look(limit, 10, &[7, 8, 9, 10, 11, 12, 13]), 0);
            assert_eq!(
                look(limit, 10, &[7, 8, 10, 11, 12, 13]),
                1,
                "9 lies above the start"
            );
        }
        assert_eq!(look(size, 99, &[11, 12, 13]), 0);
        assert_eq!(look(size, 99, &[12, 13]), 1, "less is left than the limit");
        assert_eq!(look(time, 12, &[9, 10, 11, 12, 13]), 0);
        assert_eq!(look(time, 11, &[9, 10, 11, 12, 13]), 1, "8 is young enough");
        assert_eq!(look(time, 99, &[]), 0);
    }

    #[test]
    fn a_log_start_stands_still_when_nothing_lets_it_move() {
        let mut h = History::default();
        h.unlimited(P.0, &[(0, 4)]);
        h.begins(P, 9, 1, "as told");
        h.begins(P, 9, 2, "as told");
        h.limited(P.0, Retention::Size(1));
        h.begins(P, 4, 3, "as told");
        h.unlimited(P.0, &[(0, 4)]);
        h.begins(P, 4, 5, "as told");
        h.begins(P, 5, 5, "as told");
        h.begins(P, 4, 4, "as told");
        assert_eq!(found(&h), 0, "the leader of epoch 4 may not know it yet");
        h.begins(P, 6, 7, "as told");
        assert_eq!(found(&h), 1);
        h.limited(P.0, Retention::Size(1));
        h.begins(P, 6, 8, "as told");
        assert_eq!(found(&h), 1);
    }

    #[test]
    fn old_generations_are_seen() {
        let mut h = History::default();
        h.synced("g", 3, 5);
        h.committed_in("g", 3, 9);
        h.synced("g", 4, 10);
        h.committed_in("g", 3, 10);
        assert_eq!(found(&h), 0, "it may have been under way");
        h.committed_in("g", 3, 11);
        assert_eq!(found(&h), 1);
    }

    #[test]
    fn every_kind_of_wrong_is_seen() {
        let wrong = |what: fn(&mut History)| {
            let mut h = History::default();
            h.acked(P, 0, &[v(0), v(1)], 10);
            what(&mut h);
            found(&h)
        };
        assert_eq!(wrong(|h| h.read(P, 0, 1, &[v(7)])), 1, "one offset, two values");
        assert_eq!(wrong(|h| h.read(P, 2, 1, &[v(1)])), 1, "written twice");
        assert_eq!(
            wrong(|h| h.whole(P, 0, &[(0, 1, v(0))], 99, "x")),
            1,
            "a record is lost"
        );
        assert_eq!(
            wrong(|h| h.whole(P, 0, &[(0, 1, v(0)), (2, 1, v(2))], 5, "x")),
            1,
            "a gap"
        );
        assert_eq!(
            wrong(|h| h.whole(P, 0, &[(0, 2, v(0)), (1, 1, v(1))], 5, "x")),
            1,
            "an epoch goes back"
        );
        assert_eq!(wrong(|h| h.out_of_range(P, 2)), 1, "the end itself can be read");
        assert_eq!(wrong(|h| h.out_of_range(P, 3)), 0);
        assert_eq!(wrong(|h| h.epoch_ends(P, (3, 2), (3, 2))), 0);
        assert_eq!(wrong(|h| h.epoch_ends(P, (3, 2), (3, 1))), 1, "the log is cut");
        assert_eq!(
            wrong(|h| h.epoch_ends(P, (3, 2), (-1, -1))),
            1,
            "it is not the log"
        );
        let limited = |by: Retention, offset: i64| {
            let mut h = History::default();
            h.acked(P, 0, &[v(0), v(1)], 10);
            h.limited(P.0, by);
            h.out_of_range(P, offset);
            found(&h)
        };
        assert_eq!(limited(Retention::Size(1), 1), 0);
        assert_eq!(
            limited(Retention::Size(1), 2),
            1,
            "the last one stays, and so does what is behind it"
        );
        assert_eq!(limited(Retention::Time(1), 2), 0);
        let reset = |h: &mut History| {
            h.told(P, 1, 0, 1, 11, 12);
            h.whole(P, 0, &[(0, 1, v(0)), (1, 1, v(1))], Millis::MAX, "x");
        };
        assert_eq!(wrong(reset), 1, "the end lies before what was acknowledged");
        let lost = |h: &mut History| {
            h.commit_tried("g", P, 5, 15);
            h.commit_acked("g", P, 5, 20);
            h.committed("g", P, -1, 21);
        };
        assert_eq!(wrong(lost), 1, "a commit is lost");
        assert_eq!(
            wrong(|h| h.committed("g", P, 1, 21)),
            1,
            "a commit out of nothing"
        );
        let two = |first: Millis, second: Millis| {
            let mut h = History::default();
            h.commit_tried("g", P, 4, 10);
            h.commit_acked("g", P, 4, first);
            h.commit_tried("g", P, 5, 20);
            h.commit_acked("g", P, 5, second);
            h.committed("g", P, 4, 50);
            found(&h)
        };
        assert_eq!(
            two(15, 30),
            1,
            "a commit is lost that came after another one's answer"
        );
        assert_eq!(
            two(40, 30),
            0,
            "the answer of a commit may be late, and the commit the newer one"
        );
    }
}
