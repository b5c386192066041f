//! How a shard stores what its groups decide, and carries on when that is done.

use std::collections::BTreeSet;

use super::{After, Append, AppendId, Effects, Pending, Reply, Shard};
use crate::errors::ErrorCode;
use crate::groups::records::{EncodedRecord, LogRecord};
use crate::groups::state::{Group, GroupEffects, Limits, Now};

impl Shard {
    /// Runs a call on a group, then stores and answers what it asks for and re-arms its deadline.
    pub(super) fn with_group(
        &mut self,
        name: &str,
        now: Now,
        fx: &mut Effects,
        call: impl FnOnce(&mut Group, &Limits, &mut GroupEffects),
    ) {
        let limits = self.limits.clone();
        let Some(entry) = self.groups.get_mut(name) else {
            return;
        };
        let mut gfx = GroupEffects::default();
        call(&mut entry.group, &limits, &mut gfx);
        self.carry_out(name, gfx, now, fx);
        self.settle(name);
    }

    pub(super) fn carry_out(&mut self, name: &str, gfx: GroupEffects, now: Now, fx: &mut Effects) {
        fx.rebalances += gfx.rebalances;
        fx.replies
            .extend(gfx.joins.into_iter().map(|(id, reply)| (id, Reply::Join(reply))));
        fx.replies
            .extend(gfx.syncs.into_iter().map(|(id, reply)| (id, Reply::Sync(reply))));
        if let Some((value, then)) = gfx.persist {
            let records = vec![LogRecord::Group {
                group: name.to_owned(),
                value: Some(value),
            }];
            let after = After {
                then: Some((name.to_owned(), then)),
                ..After::default()
            };
            self.append(records, after, ErrorCode::UnknownServerError, now, fx);
        }
    }

    /// Appends records, in as many batches as their size asks for; what comes `after` waits for the last.
    /// Without records it happens at once, and with a record that is too large it fails with `too_large`.
    pub(super) fn append(
        &mut self,
        records: Vec<LogRecord>,
        after: After,
        too_large: ErrorCode,
        now: Now,
        fx: &mut Effects,
    ) {
        let mut encoded = Vec::with_capacity(records.len());
        for record in &records {
            match record.encode() {
                Ok(bytes) if bytes.len() <= self.limits.append_max_bytes => encoded.push(bytes),
                _ => {
                    self.finish(after, Err(too_large), now, fx);
                    return;
                }
            }
        }
        if records.is_empty() {
            self.finish(after, Ok(()), now, fx);
            return;
        }
        for record in &records {
            if let Some(entry) = self.groups.get_mut(record.group()) {
                entry.in_flight += 1;
                if let LogRecord::Offset { topic, partition, .. } = record {
                    entry.offsets.begin(topic, *partition);
                }
            }
        }
        let mut parts: Vec<(Vec<LogRecord>, Vec<EncodedRecord>)> = Vec::new();
        let mut size = usize::MAX;
        for (record, bytes) in records.into_iter().zip(encoded) {
            size = size.saturating_add(bytes.len());
            match parts.last_mut() {
                Some((typed, raw)) if size <= self.limits.append_max_bytes => {
                    typed.push(record);
                    raw.push(bytes);
                }
                _ => {
                    size = bytes.len();
                    parts.push((vec![record], vec![bytes]));
                }
            }
        }
        let last = self.next_append + parts.len() as u64 - 1;
        let mut after = Some(after);
        for (typed, raw) in parts {
            let id = self.next_append;
            self.next_append += 1;
            let After {
                then,
                replies,
                buried,
            } = if id == last {
                after.take().unwrap_or_default()
            } else {
                After::default()
            };
            self.pending.insert(
                id,
                Pending {
                    records: typed,
                    then,
                    replies,
                    buried,
                    doomed: None,
                    last,
                },
            );
            fx.appends.push(Append { id, records: raw });
        }
    }

    pub(super) fn appended(
        &mut self,
        id: AppendId,
        outcome: Result<(), ErrorCode>,
        now: Now,
        fx: &mut Effects,
    ) {
        let Some(pending) = self.pending.remove(&id) else {
            return;
        };
        let mut touched = BTreeSet::new();
        for record in pending.records {
            touched.insert(record.group().to_owned());
            self.record_done(record, outcome.is_ok());
        }
        if let Err(error) = outcome
            && let Some(last) = self.pending.get_mut(&pending.last)
        {
            last.doomed = Some(error);
        }
        let outcome = pending.doomed.map_or(outcome, Err);
        let after = After {
            then: pending.then,
            replies: pending.replies,
            buried: pending.buried,
        };
        self.finish(after, outcome, now, fx);
        for name in touched {
            self.settle(&name);
        }
    }

    pub(super) fn record_done(&mut self, record: LogRecord, published: bool) {
        let Some(entry) = self.groups.get_mut(record.group()) else {
            return;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        match record {
            LogRecord::Offset {
                topic,
                partition,
                value,
                ..
            } if published => {
                entry.offsets.succeeded(&topic, partition, value);
            }
            LogRecord::Offset { topic, partition, .. } => entry.offsets.failed(&topic, partition),
            LogRecord::Group { value, .. } if published => entry.stored = value.is_some(),
            LogRecord::Group { .. } => {}
        }
    }

    pub(super) fn finish(
        &mut self,
        after: After,
        outcome: Result<(), ErrorCode>,
        now: Now,
        fx: &mut Effects,
    ) {
        for name in &after.buried {
            if let Some(entry) = self.groups.get_mut(name) {
                match outcome {
                    // What remains is dropped by `settle`.
                    Ok(()) => entry.group = Group::new(now),
                    Err(_) => entry.group.revive(now),
                }
            }
        }
        for (id, reply) in after.replies {
            let reply = match outcome {
                Ok(()) => reply,
                Err(error) => Reply::Failed(error),
            };
            fx.replies.push((id, reply));
        }
        if let Some((name, then)) = after.then
            && self.closed.is_none()
        {
            self.with_group(&name, now, fx, |group, limits, gfx| {
                group.persisted(then, outcome, now, limits, gfx);
            });
        }
    }

    /// Forgets a group of which nothing is left, or puts its deadline into the queue.
    pub(super) fn settle(&mut self, name: &str) {
        let Some(entry) = self.groups.get_mut(name) else {
            return;
        };
        let forgotten =
            !entry.stored && entry.in_flight == 0 && entry.offsets.is_empty() && entry.group.is_vacant();
        let next = if forgotten || self.closed.is_some() {
            None
        } else {
            entry.group.next_deadline_ms()
        };
        if next != entry.armed_ms {
            if let Some(armed) = entry.armed_ms {
                self.deadlines.remove(&(armed, name.to_owned()));
            }
            if let Some(at_ms) = next {
                self.deadlines.insert((at_ms, name.to_owned()));
            }
            entry.armed_ms = next;
        }
        if forgotten {
            self.groups.remove(name);
        }
    }
}
