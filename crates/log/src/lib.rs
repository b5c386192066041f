//! The log engine of Alluvium: a partitioned log whose only durable part is a bucket.
//!
//! Each broker start (an [`Incarnation`]) owns one *stream* of write-once objects; creating the next object
//! is the commit. Everything that must be ordered or fenced is an [`entry::Entry`] in that stream, so one
//! *seal* fences all of it. One small [`manifest::Manifest`], changed by compare-and-swap, says which stream
//! owns which slot of partitions.
//!
//! **The write path:** [`Log::append`] decides under one short lock ([`partition::state`]) and adds the batch
//! to the gathering segment; the stream's task closes it ([`stream::flush`]), builds it ([`stream::writer`]),
//! writes it ([`store::conditional`]) and publishes in order ([`stream::window`]); then the reply resolves.
//!
//! **The read path:** [`Log::read`] plans on the published image ([`partition::image`]) and takes bytes from
//! the tail ring, the block cache or a ranged GET ([`read`]).
//!
//! **Behind both:** [`merge`] moves what is published into objects sorted by partition, the checkpointer writes down
//! where everything is and raises the floor, [`compact`] takes superseded records out of what is merged, [`archive`] turns
//! it into [`history`], [`clean`] deletes what lies below the floor, and of all these files those that [`garbage`] finds to
//! be needed by nobody.
//!
//! **Start:** [`takeover`] ends the predecessor's stream with a seal, one manifest change takes its slots,
//! [`recover`] rebuilds every partition from checkpoint and tail.
//!
//! Decisions are pure functions, tested without a runtime; errors carry key and reason. Object layout:
//! [`format`] and [`keys`]. No Kafka messages and no Arrow here: only record batches.

mod archive;
pub mod batch;
mod checkpointer;
mod clean;
mod clock;
pub mod cluster;
pub mod codec;
mod compact;
pub mod entry;
pub mod format;
pub mod fsck;
mod garbage;
mod grants;
mod handover;
pub mod head;
pub mod history;
pub mod inspect;
pub mod keys;
pub mod liveness;
mod log;
pub mod manifest;
pub mod membership;
mod merge;
mod metrics;
#[doc(hidden)]
pub mod mutation;
pub mod partition;
pub mod placement;
pub mod read;
pub mod recover;
mod start;
pub mod store;
pub mod stream;
pub mod takeover;
#[cfg(test)]
mod tests;
pub mod worker;

pub use archive::{ArchiveOptions, ArchivePolicies, ArchivePolicy, ArchivedPartition, NotArchived};
pub use batch::{BatchError, BatchHeader, RecordBatch};
pub use clean::DeleteDelay;
pub use clock::{Clock, SystemClock};
pub use compact::{CompactionOptions, CompactionPolicy, CompactionSettings};
pub use log::{AppendError, Appended, Log, LogOptions, OpenError, PendingAppend};
pub use merge::MergeOptions;
pub use partition::{ActiveProducer, AppendWaiter, Partition, Watermarks};
pub use read::{FoundOffset, Isolation, OffsetLookup, ReadError, ReadResult};
pub use stream::Fenced;

/// Id of a topic; never reused, unlike its name.
pub type TopicId = uuid::Uuid;
/// A broker start: it owns one stream and is never reused.
pub type Incarnation = u64;
/// Position in a stream.
pub type Seq = u64;
/// Group of partitions that has one owner.
pub type Slot = u32;
/// Position of a record in a partition.
pub type Offset = i64;

/// A partition of a topic, by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// Partition number.
    pub partition: i32,
}
