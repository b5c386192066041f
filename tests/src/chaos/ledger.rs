//! What producers were promised and what readers saw, and whether the two can both be true.
//!
//! A ledger is told everything as it happens and answers with a sentence as soon as something contradicts what it
//! was told before: an offset with two records, a record at two offsets, a producer's records out of order, a reader
//! that skipped an offset, a committed offset that went back. It knows no clock and no network.

use std::collections::BTreeMap;

use super::record::Record;

/// One sentence about a promise that was broken.
pub(super) type Violation = String;

/// Everything that is known about one topic.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    partitions: Vec<Partition>,
    /// Acknowledged commits by group and partition.
    committed: BTreeMap<(String, i32), i64>,
    /// The newest generation in which a member of the group got its share.
    generations: BTreeMap<String, i32>,
}

/// What was known of a group when a request was sent: whatever is answered must not contradict that. What came to be
/// known while the request was under way may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The highest offset that was promised to be committed.
    pub(super) floor: i64,
    /// The newest generation.
    pub(super) generation: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    record: Record,
    acknowledged: bool,
}

#[derive(Debug, Default)]
struct Partition {
    /// By offset: what was acknowledged there, or read from there.
    log: Vec<Option<Known>>,
    /// By producer and number: the offset.
    places: BTreeMap<u16, Vec<Option<i64>>>,
    acknowledged: u64,
}

/// Where a reader stands that must see every offset in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The offset that comes next.
    pub(super) next: i64,
}

impl Ledger {
    /// Of a topic with so many partitions.
    pub(super) fn new(partitions: i32) -> Ledger {
        Ledger {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            ..Ledger::default()
        }
    }

    /// A batch was acknowledged at this base offset.
    ///
    /// # Errors
    /// What this contradicts.
    pub(super) fn acknowledged(
        &mut self,
        partition: i32,
        base: i64,
        records: &[Record],
    ) -> Result<(), Violation> {
        let log = self.partition(partition)?;
        for (delta, record) in records.iter().enumerate() {
            let offset = base + delta as i64;
            let what = || format!("partition {partition}: {record} was acknowledged at {offset}");
            let known = log
                .place(offset, *record)
                .map_err(|why| format!("{}, {why}", what()))?;
            if known.acknowledged {
                return Err(format!("{}, for the second time", what()));
            }
            known.acknowledged = true;
            log.acknowledged += 1;
        }
        Ok(())
    }

    /// A reader got this record from this offset.
    ///
    /// # Errors
    /// What this contradicts.
    pub(super) fn read(
        &mut self,
        partition: i32,
        cursor: &mut Cursor,
        offset: i64,
        record: Record,
    ) -> Result<(), Violation> {
        let what = || format!("partition {partition}: {record} was read at {offset}");
        if offset != cursor.next {
            return Err(format!("{}, where {} comes next", what(), cursor.next));
        }
        let log = self.partition(partition)?;
        log.place(offset, record)
            .map_err(|why| format!("{}, {why}", what()))?;
        cursor.next += 1;
        Ok(())
    }

    /// The highest offset that the group was promised to be committed.
    pub(super) fn commit_floor(&self, group: &str, partition: i32) -> i64 {
        let found = self.committed.get(&(group.to_owned(), partition));
        found.copied().unwrap_or(0)
    }

    /// What a member knows when it asks something of its group.
    pub(super) fn group_now(&self, group: &str, partition: i32) -> Asked {
        Asked {
            floor: self.commit_floor(group, partition),
            generation: self.generations.get(group).copied().unwrap_or(-1),
        }
    }

    /// A member got its share in this generation, having asked at `asked`.
    ///
    /// # Errors
    /// If the group had been further.
    pub(super) fn joined(&mut self, group: &str, asked: Asked, generation: i32) -> Result<(), Violation> {
        if generation < asked.generation {
            return Err(format!(
                "group {group} is at generation {generation}, after {}",
                asked.generation
            ));
        }
        let known = self.generations.entry(group.to_owned()).or_insert(generation);
        *known = (*known).max(generation);
        Ok(())
    }

    /// A commit in this generation, which was sent at `asked`, was acknowledged.
    ///
    /// # Errors
    /// If the generation was over by then, or a later offset had been committed: two members believe that they own
    /// the partition.
    pub(super) fn committed(
        &mut self,
        (group, partition): (&str, i32),
        asked: Asked,
        generation: i32,
        offset: i64,
    ) -> Result<(), Violation> {
        let what = || format!("group {group} was let commit {offset} for partition {partition}");
        if generation < asked.generation {
            return Err(format!(
                "{} in generation {generation}, after {}",
                what(),
                asked.generation
            ));
        }
        if offset < asked.floor {
            return Err(format!("{}, after {}", what(), asked.floor));
        }
        let committed = self
            .committed
            .entry((group.to_owned(), partition))
            .or_insert(offset);
        *committed = (*committed).max(offset);
        Ok(())
    }

    /// A group was told its committed offset, having asked at `asked`.
    ///
    /// # Errors
    /// If that is less than what had been promised.
    pub(super) fn fetched(group: &str, partition: i32, asked: Asked, offset: i64) -> Result<(), Violation> {
        if offset < asked.floor {
            return Err(format!(
                "group {group} is told {offset} for partition {partition}, where it had committed {}",
                asked.floor
            ));
        }
        Ok(())
    }

    /// The offset after the last one that anything is known of.
    pub(super) fn end(&self, partition: i32) -> i64 {
        let found = self.partitions.get(partition as usize);
        found.map_or(0, |log| log.log.len() as i64)
    }

    /// Acknowledged records.
    pub(super) fn acknowledged_count(&self) -> u64 {
        self.partitions.iter().map(|log| log.acknowledged).sum()
    }

    /// Compares a whole partition, as somebody read it after all producers got all their acknowledgements.
    ///
    /// # Errors
    /// The first difference.
    pub(super) fn compare(&self, partition: i32, records: &[(i64, Record)]) -> Result<(), Violation> {
        let log = self
            .partitions
            .get(partition as usize)
            .ok_or_else(|| format!("partition {partition} is unknown"))?;
        let mut last = BTreeMap::new();
        for (index, (offset, record)) in records.iter().enumerate() {
            let what = || format!("partition {partition}: {record} is at {offset}");
            if *offset != index as i64 {
                return Err(format!("{}, where {index} comes next", what()));
            }
            match log.log.get(index).copied().flatten() {
                Some(known) if known.record != *record => {
                    return Err(format!("{}, where {} was", what(), known.record));
                }
                Some(known) if known.acknowledged => {}
                _ => return Err(format!("{}, which was never acknowledged", what())),
            }
            let before = last.insert(record.producer, record.number);
            if before.is_some_and(|before| before >= record.number) {
                return Err(format!("{}, behind number {}", what(), before.unwrap_or(0)));
            }
        }
        if records.len() as u64 != log.acknowledged {
            return Err(format!(
                "partition {partition} has {} records, {} were acknowledged",
                records.len(),
                log.acknowledged
            ));
        }
        Ok(())
    }

    fn partition(&mut self, partition: i32) -> Result<&mut Partition, Violation> {
        let found = usize::try_from(partition)
            .ok()
            .and_then(|index| self.partitions.get_mut(index));
        found.ok_or_else(|| format!("partition {partition} is unknown"))
    }
}

impl Partition {
    /// Notes that a record is at an offset.
    fn place(&mut self, offset: i64, record: Record) -> Result<&mut Known, String> {
        let at = usize::try_from(offset).map_err(|_| "which is no offset".to_owned())?;
        let places = self.places.entry(record.producer).or_default();
        let number = record.number as usize;
        if places.len() <= number {
            places.resize(number + 1, None);
        }
        if let Some(other) = places[number]
            && other != offset
        {
            return Err(format!("it is at {other} too"));
        }
        let earlier = number.checked_sub(1).and_then(|before| places[before]);
        if let Some(earlier) = earlier
            && earlier >= offset
        {
            return Err(format!("the one before it is at {earlier}"));
        }
        let later = places.get(number + 1).copied().flatten();
        if let Some(later) = later
            && later <= offset
        {
            return Err(format!("the one behind it is at {later}"));
        }
        if self.log.len() <= at {
            self.log.resize(at + 1, None);
        }
        if let Some(known) = self.log[at]
            && known.record != record
        {
            return Err(format!("where {} is", known.record));
        }
        places[number] = Some(offset);
        Ok(self.log[at].get_or_insert(Known {
            record,
            acknowledged: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(producer: u16, number: u32) -> Record {
        Record { producer, number }
    }

    /// Two producers, 7 and 8: `7.0 7.1 8.0 7.2 8.1`.
    fn history() -> (Ledger, Vec<(i64, Record)>) {
        let mut ledger = Ledger::new(2);
        ledger.acknowledged(0, 0, &[record(7, 0), record(7, 1)]).unwrap();
        ledger.acknowledged(0, 3, &[record(7, 2)]).unwrap();
        ledger.acknowledged(0, 2, &[record(8, 0)]).unwrap();
        ledger.acknowledged(0, 4, &[record(8, 1)]).unwrap();
        let order = [(7, 0), (7, 1), (8, 0), (7, 2), (8, 1)];
        let all = order
            .iter()
            .enumerate()
            .map(|(offset, (producer, number))| (offset as i64, record(*producer, *number)));
        (ledger, all.collect())
    }

    fn read_all(ledger: &mut Ledger, records: &[(i64, Record)]) -> Result<(), Violation> {
        let mut cursor = Cursor::default();
        records
            .iter()
            .try_for_each(|(offset, record)| ledger.read(0, &mut cursor, *offset, *record))
    }

    #[test]
    fn a_right_history_is_right() {
        let (mut ledger, records) = history();
        read_all(&mut ledger, &records).unwrap();
        ledger.compare(0, &records).unwrap();
        ledger.compare(1, &[]).unwrap();
        assert_eq!((ledger.end(0), ledger.acknowledged_count()), (5, 5));
    }

    #[test]
    fn a_reader_may_be_ahead_of_the_acknowledgement() {
        let mut ledger = Ledger::new(1);
        let mut cursor = Cursor::default();
        ledger.read(0, &mut cursor, 0, record(1, 0)).unwrap();
        let early = ledger.compare(0, &[(0, record(1, 0))]).unwrap_err();
        assert!(early.contains("never acknowledged"), "{early}");
        ledger.acknowledged(0, 0, &[record(1, 0)]).unwrap();
        ledger.compare(0, &[(0, record(1, 0))]).unwrap();
    }

    #[test]
    fn a_lost_record_is_noticed() {
        let (mut ledger, mut records) = history();
        records.pop();
        let lost = ledger.compare(0, &records).unwrap_err();
        assert!(lost.contains("has 4 records, 5 were acknowledged"), "{lost}");
        // The log went on at the offset of the lost one.
        records.push((4, record(7, 3)));
        let replaced = read_all(&mut ledger, &records).unwrap_err();
        assert!(replaced.contains("7.3 was read at 4, where 8.1 is"), "{replaced}");
    }

    #[test]
    fn a_double_record_is_noticed() {
        let (mut ledger, mut records) = history();
        records.push((5, record(8, 1)));
        let twice = read_all(&mut ledger, &records).unwrap_err();
        assert!(twice.contains("8.1 was read at 5, it is at 4 too"), "{twice}");
        let more = ledger.compare(0, &records).unwrap_err();
        assert!(more.contains("never acknowledged"), "{more}");
        let again = ledger.acknowledged(0, 4, &[record(8, 1)]).unwrap_err();
        assert!(again.contains("second time"), "{again}");
        let elsewhere = ledger.acknowledged(0, 9, &[record(8, 1)]).unwrap_err();
        assert!(elsewhere.contains("it is at 4 too"), "{elsewhere}");
    }

    #[test]
    fn a_gap_is_noticed() {
        let (mut ledger, records) = history();
        let gap = [&records[..2], &records[3..]].concat();
        let skipped = read_all(&mut ledger, &gap).unwrap_err();
        assert!(
            skipped.contains("7.2 was read at 3, where 2 comes next"),
            "{skipped}"
        );
        assert!(
            ledger
                .compare(0, &gap)
                .unwrap_err()
                .contains("where 2 comes next")
        );
    }

    #[test]
    fn reordering_is_noticed() {
        let mut ledger = Ledger::new(1);
        ledger.acknowledged(0, 5, &[record(1, 1)]).unwrap();
        let before = ledger.acknowledged(0, 6, &[record(1, 0)]).unwrap_err();
        assert!(before.contains("the one behind it is at 5"), "{before}");
        let behind = ledger.acknowledged(0, 4, &[record(1, 2)]).unwrap_err();
        assert!(behind.contains("the one before it is at 5"), "{behind}");
        let (ledger, mut records) = history();
        records.swap(0, 1);
        let swapped: Vec<(i64, Record)> = (0..).zip(records.into_iter().map(|(_, record)| record)).collect();
        assert!(ledger.compare(0, &swapped).unwrap_err().contains("where 7.0 was"));
    }

    #[test]
    fn numbers_that_went_back_are_noticed_even_if_neighbours_are_unknown() {
        let mut ledger = Ledger::new(1);
        ledger.acknowledged(0, 0, &[record(1, 4)]).unwrap();
        ledger.acknowledged(0, 1, &[record(1, 2)]).unwrap();
        let back = ledger
            .compare(0, &[(0, record(1, 4)), (1, record(1, 2))])
            .unwrap_err();
        assert!(back.contains("1.2 is at 1, behind number 4"), "{back}");
    }

    #[test]
    fn commits_that_go_back_are_noticed() {
        let mut ledger = Ledger::new(1);
        assert_eq!(ledger.commit_floor("g", 0), 0);
        let early = ledger.group_now("g", 0);
        ledger.committed(("g", 0), early, 1, 10).unwrap();
        ledger.committed(("other", 0), early, 1, 3).unwrap();
        let now = ledger.group_now("g", 0);
        ledger.committed(("g", 0), now, 1, 10).unwrap();
        assert_eq!(ledger.commit_floor("g", 0), 10);
        let back = ledger.committed(("g", 0), now, 1, 9).unwrap_err();
        assert!(back.contains("let commit 9 for partition 0, after 10"), "{back}");
        // Its answer was long under way.
        ledger.committed(("g", 0), early, 1, 9).unwrap();
        assert_eq!(ledger.commit_floor("g", 0), 10);
        Ledger::fetched("g", 0, now, 12).unwrap();
        let lost = Ledger::fetched("g", 0, now, 9).unwrap_err();
        assert!(
            lost.contains("is told 9 for partition 0, where it had committed 10"),
            "{lost}"
        );
    }

    #[test]
    fn generations_that_are_over_are_noticed() {
        let mut ledger = Ledger::new(1);
        let first = ledger.group_now("g", 0);
        ledger.joined("g", first, 4).unwrap();
        let second = ledger.group_now("g", 0);
        ledger.joined("g", second, 5).unwrap();
        // Sent when 4 was the newest: it may have been in time.
        ledger.committed(("g", 0), second, 4, 1).unwrap();
        let third = ledger.group_now("g", 0);
        let stale = ledger.committed(("g", 0), third, 4, 1).unwrap_err();
        assert!(stale.contains("in generation 4, after 5"), "{stale}");
        let back = ledger.joined("g", third, 4).unwrap_err();
        assert!(back.contains("is at generation 4, after 5"), "{back}");
    }
}
