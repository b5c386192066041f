//! A consumer's side of a fetch session (KIP-227): all partitions are named once, then only what changed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_wire::FetchRequest;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};

use super::answer::SESSIONS;
use crate::cli::client::{ClientError, refused};
use crate::errors::ErrorCode;

/// How much one fetch brings and for how long it waits.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct FetchLimits {
    /// Bytes of one answer.
    pub(in super::super) max_bytes: u32,
    /// Bytes of one partition in it.
    pub(in super::super) partition_max_bytes: u32,
    /// Bytes that are waited for.
    pub(in super::super) min_bytes: u32,
    /// For how long they are waited for.
    pub(in super::super) wait: Duration,
}

/// The partitions that are fetched over one connection.
#[derive(Debug)]
pub(super) struct FetchSession {
    topic: String,
    has_sessions: bool,
    /// 0 without a session.
    id: i32,
    epoch: i32,
    offsets: BTreeMap<i32, i64>,
    /// Partitions whose offset the broker does not know yet.
    changed: BTreeSet<i32>,
    forgotten: BTreeSet<i32>,
    /// Requests without a session begin with the next partition each, so that all get their turn.
    begin: i32,
}

impl FetchSession {
    /// Partitions and their offsets, for Fetch requests of this version.
    pub(super) fn new(topic: &str, version: i16, offsets: BTreeMap<i32, i64>) -> FetchSession {
        FetchSession {
            topic: topic.to_owned(),
            has_sessions: version >= SESSIONS,
            id: 0,
            epoch: 0,
            offsets,
            changed: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            begin: 0,
        }
    }

    /// Whether there is nothing to fetch any more.
    pub(super) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The offset of a partition, if it is fetched.
    pub(super) fn offset(&self, partition: i32) -> Option<i64> {
        self.offsets.get(&partition).copied()
    }

    /// Goes on at this offset.
    pub(super) fn advance(&mut self, partition: i32, offset: i64) {
        if let Some(known) = self.offsets.get_mut(&partition) {
            *known = offset;
            self.changed.insert(partition);
        }
    }

    /// Fetches the partition no more.
    pub(super) fn forget(&mut self, partition: i32) {
        self.offsets.remove(&partition);
        self.changed.remove(&partition);
        self.forgotten.insert(partition);
    }

    /// The next request.
    pub(super) fn request(&mut self, limits: &FetchLimits) -> FetchRequest {
        let mut request = FetchRequest::default();
        request.replica_id = -1;
        request.max_wait_ms = i32::try_from(limits.wait.as_millis()).unwrap_or(i32::MAX);
        request.min_bytes = signed(limits.min_bytes);
        request.max_bytes = signed(limits.max_bytes);
        request.session_id = self.id;
        request.session_epoch = if self.has_sessions { self.epoch } else { -1 };
        let changed = std::mem::take(&mut self.changed);
        let forgotten = std::mem::take(&mut self.forgotten);
        let listed: Vec<_> = if self.id == 0 {
            let begin = self.begin;
            self.begin = self
                .offsets
                .range(begin + 1..)
                .next()
                .map_or(0, |(next, _)| *next);
            let rest = self.offsets.range(..begin);
            self.offsets.range(begin..).chain(rest).collect()
        } else {
            let known = changed
                .iter()
                .filter_map(|partition| self.offsets.get_key_value(partition));
            known.collect()
        };
        if !listed.is_empty() {
            let mut topic = FetchTopic::default();
            topic.topic = self.topic.as_str().into();
            topic.partitions = listed
                .into_iter()
                .map(|(partition, offset)| {
                    let mut asked = FetchPartition::default();
                    asked.partition = *partition;
                    asked.current_leader_epoch = -1;
                    asked.fetch_offset = *offset;
                    asked.log_start_offset = -1;
                    asked.partition_max_bytes = signed(limits.partition_max_bytes);
                    asked
                })
                .collect();
            request.topics = vec![topic];
        }
        if self.id != 0 && !forgotten.is_empty() {
            let mut topic = ForgottenTopic::default();
            topic.topic = self.topic.as_str().into();
            topic.partitions = forgotten.into_iter().collect();
            request.forgotten_topics_data = vec![topic];
        }
        request
    }

    /// Takes error and session id of an answer. A session that is gone begins anew with the next request.
    pub(super) fn answered(&mut self, error: i16, session_id: i32) -> Result<(), ClientError> {
        let gone = [
            ErrorCode::FetchSessionIdNotFound.code(),
            ErrorCode::InvalidFetchSessionEpoch.code(),
        ];
        if gone.contains(&error) {
            (self.id, self.epoch) = (0, 0);
            return Ok(());
        }
        refused("a fetch was refused", error)?;
        (self.id, self.epoch) = match session_id {
            0 => (0, 0),
            // Epochs go from i32::MAX to 1.
            id => (id, self.epoch.checked_add(1).unwrap_or(1)),
        };
        Ok(())
    }
}

fn signed(bytes: u32) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FetchLimits = FetchLimits {
        max_bytes: u32::MAX,
        partition_max_bytes: 1000,
        min_bytes: 1,
        wait: Duration::from_millis(500),
    };

    fn listed(request: &FetchRequest) -> Vec<(i32, i64)> {
        let partitions = request.topics.iter().flat_map(|topic| &topic.partitions);
        partitions
            .map(|asked| (asked.partition, asked.fetch_offset))
            .collect()
    }

    fn session(version: i16) -> FetchSession {
        FetchSession::new("t", version, BTreeMap::from([(0, 10), (1, 20), (4, 30)]))
    }

    #[test]
    fn a_session_names_only_what_changed() {
        let mut session = session(12);
        let first = session.request(&LIMITS);
        assert_eq!((first.session_id, first.session_epoch), (0, 0));
        assert_eq!((first.max_bytes, first.max_wait_ms), (i32::MAX, 500));
        assert_eq!(listed(&first), vec![(0, 10), (1, 20), (4, 30)]);
        session.answered(0, 77).unwrap();
        session.advance(1, 25);
        let second = session.request(&LIMITS);
        assert_eq!((second.session_id, second.session_epoch), (77, 1));
        assert_eq!(listed(&second), vec![(1, 25)]);
        session.answered(0, 77).unwrap();
        session.advance(1, 26);
        session.forget(1);
        session.advance(1, 27);
        let third = session.request(&LIMITS);
        assert_eq!((third.session_epoch, third.topics.len()), (2, 0));
        assert_eq!(third.forgotten_topics_data[0].partitions, vec![1]);
        session.answered(0, 77).unwrap();
        assert!(session.request(&LIMITS).forgotten_topics_data.is_empty());
        assert_eq!((session.offset(0), session.offset(1)), (Some(10), None));
    }

    #[test]
    fn a_lost_session_begins_anew() {
        for error in [70, 71] {
            let mut session = session(11);
            session.request(&LIMITS);
            session.answered(0, 77).unwrap();
            session.forget(0);
            session.advance(4, 31);
            session.request(&LIMITS);
            session.answered(error, 0).unwrap();
            let again = session.request(&LIMITS);
            assert_eq!((again.session_id, again.session_epoch), (0, 0));
            let mut all = listed(&again);
            all.sort_unstable();
            assert_eq!(all, vec![(1, 20), (4, 31)]);
            assert!(again.forgotten_topics_data.is_empty());
        }
        assert!(session(11).answered(6, 0).unwrap_err().is_retriable());
    }

    #[test]
    fn without_sessions_every_partition_gets_its_turn() {
        let mut session = session(6);
        let firsts: Vec<_> = (0..4)
            .map(|_| {
                let request = session.request(&LIMITS);
                assert_eq!((request.session_epoch, listed(&request).len()), (-1, 3));
                session.answered(0, 0).unwrap();
                listed(&request)[0].0
            })
            .collect();
        assert_eq!(firsts, vec![0, 1, 4, 0]);
        for partition in [0, 1, 4] {
            session.forget(partition);
        }
        assert!(session.is_empty());
    }

    #[test]
    fn epochs_wrap_to_one() {
        let mut session = session(12);
        session.epoch = i32::MAX;
        session.answered(0, 5).unwrap();
        assert_eq!(session.epoch, 1);
    }
}
