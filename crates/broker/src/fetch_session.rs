//! Incremental fetch sessions (KIP-227): a consumer names its partitions once, then only what changed.
//!
//! A session remembers for each partition what the client wants and what it was told last; an incremental
//! answer leaves out partitions with nothing new. Partitions that brought records move to the end of the
//! session's order, so that all get their turn when one answer cannot hold everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;
use kafka_wire::FetchRequest;
use kafka_wire_core::{StrBytes, Uuid};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::errors::ErrorCode;
use crate::protocol::fetch_response::PartitionAnswer;

/// A session is safe from being displaced this long after its last use (Kafka: 2 minutes).
const DISPLACED_AFTER: Duration = Duration::from_secs(120);
/// Partitions that all sessions together remember, some 200 bytes each.
const PARTITIONS_MAX: usize = 500_000;
/// Epoch of a request that starts a session.
const INITIAL_EPOCH: i32 = 0;
/// Epoch of a request that wants no session, or ends the one it names.
const FINAL_EPOCH: i32 = -1;

/// A partition as the client names it: by topic name, or from version 13 on by topic id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartitionKey {
    pub(crate) topic: StrBytes,
    pub(crate) topic_id: Uuid,
    pub(crate) index: i32,
}

/// A partition to fetch and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) key: PartitionKey,
    pub(crate) fetch_offset: i64,
    pub(crate) max_bytes: i32,
    pub(crate) current_leader_epoch: i32,
    pub(crate) last_fetched_epoch: i32,
}

/// What a Fetch request asks for, after the session has had its say.
#[derive(Debug)]
pub(crate) struct FetchContext {
    pub(crate) targets: Vec<Target>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Sessionless,
    /// All partitions were named: a session begins if there is room.
    Full {
        by_id: bool,
    },
    Incremental {
        id: i32,
        session: Arc<Mutex<Session>>,
    },
}

/// One client's session.
#[derive(Debug)]
struct Session {
    /// Epoch that the next request must have.
    epoch: i32,
    by_id: bool,
    partitions: HashMap<PartitionKey, Remembered>,
    order: BTreeMap<u64, PartitionKey>,
    next_place: u64,
}

#[derive(Debug)]
struct Remembered {
    place: u64,
    fetch_offset: i64,
    max_bytes: i32,
    current_leader_epoch: i32,
    last_fetched_epoch: i32,
    /// What the client was told last; -1 makes the next answer tell it again.
    high_watermark: i64,
    log_start_offset: i64,
}

/// All sessions of the broker.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    cache: Mutex<Cache>,
    count: Gauge,
}

#[derive(Debug)]
struct Cache {
    slots: usize,
    next_id: u32,
    entries: HashMap<i32, Entry>,
    partitions: usize,
}

#[derive(Debug)]
struct Entry {
    session: Arc<Mutex<Session>>,
    created: Instant,
    last_used: Instant,
    size: usize,
}

impl FetchSessions {
    /// At most `slots` sessions, with ids that follow `first_id`.
    pub(crate) fn new(slots: usize, first_id: u32, count: Gauge) -> FetchSessions {
        let cache = Cache {
            slots,
            next_id: first_id,
            entries: HashMap::new(),
            partitions: 0,
        };
        FetchSessions {
            cache: Mutex::new(cache),
            count,
        }
    }

    /// What to fetch for this request, or the error of its session.
    pub(crate) fn begin(
        &self,
        request: &FetchRequest,
        by_id: bool,
        now: Instant,
    ) -> Result<FetchContext, ErrorCode> {
        let mut cache = self.cache.lock();
        let result = match request.session_epoch {
            INITIAL_EPOCH | FINAL_EPOCH => {
                cache.remove(request.session_id);
                let kind = if request.session_epoch == INITIAL_EPOCH && cache.slots > 0 {
                    Kind::Full { by_id }
                } else {
                    Kind::Sessionless
                };
                Ok(FetchContext {
                    targets: targets_of(request).collect(),
                    kind,
                })
            }
            _ => cache.resume(request, by_id, now),
        };
        self.count
            .set(i64::try_from(cache.entries.len()).unwrap_or(i64::MAX));
        result
    }

    /// Remembers what is about to be told. Returns the session id to answer with and keeps those of the
    /// answers, given in the order of the targets, that the client must see.
    pub(crate) fn finish(
        &self,
        context: FetchContext,
        answers: Vec<PartitionAnswer>,
        now: Instant,
    ) -> (i32, Vec<(PartitionKey, PartitionAnswer)>) {
        let answered = context.targets.into_iter().zip(answers);
        match context.kind {
            Kind::Sessionless => (0, answered.map(|(target, answer)| (target.key, answer)).collect()),
            Kind::Full { by_id } => {
                let answered: Vec<(Target, PartitionAnswer)> = answered.collect();
                let mut cache = self.cache.lock();
                let id = cache.start(by_id, &answered, now).unwrap_or(0);
                self.count
                    .set(i64::try_from(cache.entries.len()).unwrap_or(i64::MAX));
                (
                    id,
                    answered
                        .into_iter()
                        .map(|(target, answer)| (target.key, answer))
                        .collect(),
                )
            }
            Kind::Incremental { id, session } => {
                let mut session = session.lock();
                let told = answered
                    .filter(|(target, answer)| session.tell(&target.key, answer))
                    .map(|(target, answer)| (target.key, answer))
                    .collect();
                (id, told)
            }
        }
    }
}

impl Cache {
    fn remove(&mut self, id: i32) {
        if let Some(entry) = self.entries.remove(&id) {
            self.partitions = self.partitions.saturating_sub(entry.size);
        }
    }

    /// Goes on with the session that the request names.
    fn resume(
        &mut self,
        request: &FetchRequest,
        by_id: bool,
        now: Instant,
    ) -> Result<FetchContext, ErrorCode> {
        let id = request.session_id;
        let entry = self
            .entries
            .get_mut(&id)
            .ok_or(ErrorCode::FetchSessionIdNotFound)?;
        let shared = Arc::clone(&entry.session);
        let mut session = shared.lock();
        if session.epoch != request.session_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if session.by_id != by_id {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        session.update(request);
        let size = session.partitions.len();
        self.partitions = self.partitions.saturating_sub(entry.size).saturating_add(size);
        entry.size = size;
        entry.last_used = now;
        let targets = session.targets();
        if size == 0 || self.partitions > PARTITIONS_MAX {
            self.remove(id);
            // A client whose session grew too large starts again, without one.
            return match size {
                0 => Ok(FetchContext {
                    targets,
                    kind: Kind::Sessionless,
                }),
                _ => Err(ErrorCode::FetchSessionIdNotFound),
            };
        }
        session.epoch = next_epoch(session.epoch);
        drop(session);
        Ok(FetchContext {
            targets,
            kind: Kind::Incremental { id, session: shared },
        })
    }

    /// Begins a session if there is room, displacing one that is old; returns its id.
    fn start(&mut self, by_id: bool, answered: &[(Target, PartitionAnswer)], now: Instant) -> Option<i32> {
        let size = answered.len();
        if size == 0 {
            return None;
        }
        if self.entries.len() >= self.slots {
            let displaced = self.displaceable(size, now)?;
            self.remove(displaced);
        }
        if self.partitions.saturating_add(size) > PARTITIONS_MAX {
            return None;
        }
        let mut session = Session {
            epoch: next_epoch(INITIAL_EPOCH),
            by_id,
            partitions: HashMap::with_capacity(size),
            order: BTreeMap::new(),
            next_place: 0,
        };
        let mut names = OwnedNames::default();
        for (target, answer) in answered {
            let remembered = session.remember(target.clone(), &mut names);
            remembered.high_watermark = answer.high_watermark;
            remembered.log_start_offset = answer.log_start_offset;
        }
        let size = session.partitions.len();
        self.partitions += size;
        let id = self.unused_id();
        let session = Arc::new(Mutex::new(session));
        self.entries.insert(
            id,
            Entry {
                session,
                created: now,
                last_used: now,
                size,
            },
        );
        Some(id)
    }

    /// The session to give up for a new one of `size` partitions: the longest unused if it is old enough,
    /// else the smallest that is both smaller and old enough.
    fn displaceable(&self, size: usize, now: Instant) -> Option<i32> {
        let is_old = |at: Instant| now.saturating_duration_since(at) > DISPLACED_AFTER;
        let (unused, entry) = self
            .entries
            .iter()
            .min_by_key(|(id, entry)| (entry.last_used, **id))?;
        if is_old(entry.last_used) {
            return Some(*unused);
        }
        let (smallest, entry) = self.entries.iter().min_by_key(|(id, entry)| (entry.size, **id))?;
        (entry.size < size && is_old(entry.created)).then_some(*smallest)
    }

    /// A positive id that no session has.
    fn unused_id(&mut self) -> i32 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            let id = (self.next_id & 0x7fff_ffff).cast_signed();
            if id != 0 && !self.entries.contains_key(&id) {
                return id;
            }
        }
    }
}

impl Session {
    /// Applies what the request adds, changes and forgets.
    fn update(&mut self, request: &FetchRequest) {
        let mut names = OwnedNames::default();
        for target in targets_of(request) {
            self.remember(target, &mut names);
        }
        for topic in &request.forgotten_topics_data {
            for &index in &topic.partitions {
                let key = PartitionKey {
                    topic: topic.topic.clone(),
                    topic_id: topic.topic_id,
                    index,
                };
                if let Some(remembered) = self.partitions.remove(&key) {
                    self.order.remove(&remembered.place);
                }
            }
        }
    }

    fn remember(&mut self, target: Target, names: &mut OwnedNames) -> &mut Remembered {
        let place = self.next_place;
        let remembered = match self.partitions.entry(names.own(&target.key)) {
            MapEntry::Occupied(known) => known.into_mut(),
            MapEntry::Vacant(new) => {
                self.next_place += 1;
                self.order.insert(place, new.key().clone());
                new.insert(Remembered {
                    place,
                    fetch_offset: 0,
                    max_bytes: 0,
                    current_leader_epoch: -1,
                    last_fetched_epoch: -1,
                    high_watermark: -1,
                    log_start_offset: -1,
                })
            }
        };
        remembered.fetch_offset = target.fetch_offset;
        remembered.max_bytes = target.max_bytes;
        remembered.current_leader_epoch = target.current_leader_epoch;
        remembered.last_fetched_epoch = target.last_fetched_epoch;
        remembered
    }

    /// Every partition of the session, in its order.
    fn targets(&self) -> Vec<Target> {
        let target = |key: &PartitionKey| {
            let remembered = self.partitions.get(key)?;
            Some(Target {
                key: key.clone(),
                fetch_offset: remembered.fetch_offset,
                max_bytes: remembered.max_bytes,
                current_leader_epoch: remembered.current_leader_epoch,
                last_fetched_epoch: remembered.last_fetched_epoch,
            })
        };
        self.order.values().filter_map(target).collect()
    }

    /// Whether the client must see this answer; if so, notes that it has.
    fn tell(&mut self, key: &PartitionKey, answer: &PartitionAnswer) -> bool {
        let Some(remembered) = self.partitions.get_mut(key) else {
            return true;
        };
        let failed = answer.error != ErrorCode::None || answer.diverging_epoch.is_some();
        let changed = remembered.high_watermark != answer.high_watermark
            || remembered.log_start_offset != answer.log_start_offset;
        remembered.high_watermark = if failed { -1 } else { answer.high_watermark };
        remembered.log_start_offset = answer.log_start_offset;
        if answer.records_bytes > 0 {
            if let Some(key) = self.order.remove(&remembered.place) {
                remembered.place = self.next_place;
                self.order.insert(self.next_place, key);
                self.next_place += 1;
            }
            return true;
        }
        failed || changed
    }
}

/// Copies of topic names, one per topic, that do not keep the request's buffer alive.
#[derive(Default)]
struct OwnedNames(HashMap<StrBytes, StrBytes>);

impl OwnedNames {
    fn own(&mut self, key: &PartitionKey) -> PartitionKey {
        let topic = match self.0.get(&key.topic) {
            Some(copy) => copy.clone(),
            None => {
                let copy = StrBytes::from(key.topic.as_str());
                self.0.insert(copy.clone(), copy.clone());
                copy
            }
        };
        PartitionKey {
            topic,
            topic_id: key.topic_id,
            index: key.index,
        }
    }
}

fn targets_of(request: &FetchRequest) -> impl Iterator<Item = Target> {
    request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| Target {
            key: PartitionKey {
                topic: topic.topic.clone(),
                topic_id: topic.topic_id,
                index: partition.partition,
            },
            fetch_offset: partition.fetch_offset,
            max_bytes: partition.partition_max_bytes,
            current_leader_epoch: partition.current_leader_epoch,
            last_fetched_epoch: partition.last_fetched_epoch,
        })
    })
}

/// Epochs of a running session are positive and start again at 1.
fn next_epoch(epoch: i32) -> i32 {
    if epoch == i32::MAX { 1 } else { epoch + 1 }
}

#[cfg(test)]
mod tests;
