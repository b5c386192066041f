//! One partition that this broker leads: its assigned state, its published image, and who waits for more.

pub mod image;
pub mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::entry::Level;
use crate::log::AppendError;
use crate::read::{Isolation, ReadError};
use crate::{Offset, TopicId, TopicPartition};
use image::PartitionImage;
use state::PartitionState;

/// Nobody asks for more than a fetch can carry.
const FETCH_BYTES_MAX: u64 = 1 << 30;

/// A partition that this broker leads.
#[derive(Debug)]
pub struct Partition {
    tp: TopicPartition,
    topic_name: Arc<str>,
    leader_epoch: i32,
    /// State after every append that got its offset; ahead of what is published. Locked inside the stream's lock.
    pub(crate) assigned: Mutex<PartitionState>,
    /// State after every publication: all that a reader may know.
    pub(crate) published: Mutex<PartitionImage>,
    waiters: Mutex<HashMap<u64, Arc<Notify>>>,
    standing: AtomicU8,
}

/// What may still be done with a partition object. It only ever gets less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Everything.
    Led,
    /// It is read, but nothing is appended any more: its slot is about to be released.
    Closed,
    /// Nothing: its slot is released, and somebody else may own it already; or it has moved.
    Released,
    /// Nothing: its topic is gone.
    Deleted,
}

/// Offsets that a client may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// First offset that may be read.
    pub log_start_offset: Offset,
    /// First offset that is not published.
    pub high_watermark: Offset,
    /// First offset of the oldest open transaction; without one, the high watermark.
    pub last_stable_offset: Offset,
    /// Leader epoch.
    pub leader_epoch: i32,
}

/// One producer as DescribeProducers (KIP-664) shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Producer id.
    pub producer_id: i64,
    /// Newest epoch.
    pub producer_epoch: i16,
    /// Sequence of its last record, or -1.
    pub last_sequence: i32,
    /// Greatest timestamp (ms) of its last batch, or -1.
    pub last_timestamp: i64,
    /// -1: no open transaction.
    pub current_txn_start_offset: Offset,
}

impl Partition {
    pub(crate) fn new(
        tp: TopicPartition,
        topic_name: Arc<str>,
        leader_epoch: i32,
        image: PartitionImage,
    ) -> Partition {
        Partition {
            tp,
            topic_name,
            leader_epoch,
            assigned: Mutex::new(image.state.clone()),
            published: Mutex::new(image),
            waiters: Mutex::default(),
            standing: AtomicU8::new(Standing::Led as u8),
        }
    }

    /// Topic and number.
    pub fn id(&self) -> TopicPartition {
        self.tp
    }

    /// Topic id.
    pub fn topic(&self) -> TopicId {
        self.tp.topic
    }

    /// Name of the topic.
    pub fn topic_name(&self) -> &str {
        &self.topic_name
    }

    /// Everything that is left of the log below this offset is in history.
    pub fn archived_to(&self) -> Offset {
        self.published.lock().archived_to()
    }

    /// Partition number.
    pub fn index(&self) -> i32 {
        self.tp.partition
    }

    /// Leader epoch under which this broker appends.
    pub fn leader_epoch(&self) -> i32 {
        self.leader_epoch
    }

    /// The published offsets.
    pub fn watermarks(&self) -> Watermarks {
        self.watermarks_of(&self.published.lock())
    }

    pub(crate) fn watermarks_of(&self, image: &PartitionImage) -> Watermarks {
        Watermarks {
            log_start_offset: image.state.log_start,
            high_watermark: image.state.end,
            last_stable_offset: image.state.end,
            leader_epoch: self.leader_epoch,
        }
    }

    /// Whether the topic was deleted, or the partition moved away.
    pub fn is_gone(&self) -> bool {
        self.standing.load(Ordering::Acquire) >= Standing::Released as u8
    }

    /// Allows less from now on, and wakes everybody who waits if that is nothing. `Closed` is set, and looked at, under
    /// the stream's lock.
    pub(crate) fn become_at_least(&self, standing: Standing) {
        self.standing.fetch_max(standing as u8, Ordering::AcqRel);
        if standing != Standing::Closed {
            self.wake();
        }
    }

    pub(crate) fn check_appendable(&self) -> Result<(), AppendError> {
        match self.standing.load(Ordering::Acquire) {
            s if s == Standing::Led as u8 => Ok(()),
            s if s == Standing::Deleted as u8 => Err(AppendError::UnknownPartition),
            _ => Err(AppendError::NotLeader),
        }
    }

    /// Bytes that a fetch from `offset` could get now, from whole ranges: an estimate that is 0 only at the end. History
    /// counts for as much as a fetch can carry, since what its rows become is many times what they take in the file.
    /// Fails as a read would.
    pub fn readable_bytes(&self, offset: Offset, isolation: Isolation) -> Result<u64, ReadError> {
        let image = self.published.lock();
        self.check_offset(&image, offset, isolation)?;
        let ranges = image.ranges.range(image.range_from(offset)..);
        let mut sum = 0u64;
        for r in ranges {
            sum += match r.place.level {
                Level::L2 => FETCH_BYTES_MAX,
                Level::L0 | Level::L1 => u64::from(r.len).max(1),
            };
            if sum > FETCH_BYTES_MAX {
                break;
            }
        }
        Ok(sum)
    }

    /// Checks that a read may begin at `offset` and returns where it must end.
    pub(crate) fn check_offset(
        &self,
        image: &PartitionImage,
        offset: Offset,
        isolation: Isolation,
    ) -> Result<Offset, ReadError> {
        if self.is_gone() {
            return Err(ReadError::NotLeader);
        }
        let w = self.watermarks_of(image);
        if offset < w.log_start_offset || offset > w.high_watermark {
            return Err(ReadError::OffsetOutOfRange {
                offset,
                log_start: w.log_start_offset,
                end: w.high_watermark,
            });
        }
        Ok(match isolation {
            Isolation::ReadUncommitted => w.high_watermark,
            Isolation::ReadCommitted => w.last_stable_offset,
        })
    }

    /// Stored bytes between log start and end.
    pub fn size_bytes(&self) -> u64 {
        self.published.lock().bytes
    }

    /// Idempotent producers that are remembered.
    pub fn producers(&self) -> Vec<ActiveProducer> {
        let image = self.published.lock();
        let one = |(id, p): (&i64, &state::ProducerState)| ActiveProducer {
            producer_id: *id,
            producer_epoch: p.epoch,
            last_sequence: p.batches.last().map_or(-1, |b| b.last_sequence),
            last_timestamp: p.batches.last().map_or(-1, |b| b.max_timestamp),
            current_txn_start_offset: -1,
        };
        image.state.producers.iter().map(one).collect()
    }

    /// KIP-320: the largest epoch not above `epoch` and the offset where it ends; (-1, -1) if unknown.
    pub fn end_offset_for_epoch(&self, epoch: i32) -> (i32, Offset) {
        self.published
            .lock()
            .state
            .end_offset_for_epoch(epoch, self.leader_epoch)
    }

    /// Where retention lets the log start now; a negative limit means none.
    pub fn retention_point(&self, now_ms: i64, retention_ms: i64, retention_bytes: i64) -> Offset {
        self.published
            .lock()
            .retention_point(now_ms, retention_ms, retention_bytes)
    }

    pub(crate) fn wake(&self) {
        self.waiters.lock().values().for_each(|n| n.notify_one());
    }
}

static NEXT_WAITER: AtomicU64 = AtomicU64::new(0);

/// Woken once when any watched partition gets a higher watermark or goes away. Dropping it deregisters.
///
/// Register first, then check, then wait: nothing published after `watch` is missed.
#[derive(Debug)]
pub struct AppendWaiter {
    id: u64,
    notify: Arc<Notify>,
    watched: Vec<Arc<Partition>>,
}

impl Default for AppendWaiter {
    fn default() -> Self {
        AppendWaiter::new()
    }
}

impl AppendWaiter {
    /// Watches nothing yet.
    pub fn new() -> AppendWaiter {
        let id = NEXT_WAITER.fetch_add(1, Ordering::Relaxed);
        AppendWaiter {
            id,
            notify: Arc::new(Notify::new()),
            watched: vec![],
        }
    }

    /// Registers with a partition.
    pub fn watch(&mut self, partition: &Arc<Partition>) {
        partition.waiters.lock().insert(self.id, self.notify.clone());
        self.watched.push(partition.clone());
    }

    /// Returns at the first publication after `watch`, or after the last return.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}

impl Drop for AppendWaiter {
    fn drop(&mut self) {
        for p in &self.watched {
            p.waiters.lock().remove(&self.id);
        }
    }
}
