//! Metrics of the engine. Base units; no label has more than a handful of values.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Label = [(&'static str, &'static str); 1];

/// What is deleted, as labels.
const DELETED_KINDS: [&str; 5] = ["segment", "checkpoint", "merged", "archive", "manifest_copy"];
/// How a round of looking for files that nobody refers to can end.
const ROUNDS: [&str; 5] = [
    "done",
    "manifest_changed",
    "slot_uncovered",
    "unreadable",
    "fenced",
];

/// Handles to the engine's metrics. Clones share the values.
#[derive(Clone, Debug)]
pub(crate) struct LogMetrics {
    pub(crate) appended_bytes: Counter,
    pub(crate) appended_batches: Counter,
    pub(crate) gathering_bytes: Gauge,
    pub(crate) segments: Counter,
    pub(crate) segment_bytes: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) flush_seconds: Histogram,
    pub(crate) put_seconds: Histogram,
    pub(crate) order_seconds: Histogram,
    pub(crate) publish_seconds: Histogram,
    pub(crate) puts_in_flight: Gauge,
    pub(crate) tail_bytes: Gauge,
    pub(crate) tail_reads: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) blocks_ahead: Counter,
    pub(crate) cache_bytes: Gauge,
    pub(crate) corrupt_reads: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoint_bytes: Gauge,
    pub(crate) manifest_version: Gauge,
    pub(crate) partitions: Gauge,
    pub(crate) recovery_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) recovering_slots: Gauge,
    pub(crate) quarantined_slots: Gauge,
    pub(crate) slots_moved: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) unmerged_bytes: Gauge,
    pub(crate) unmerged_age_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) merged_objects: Counter,
    pub(crate) merged_bytes: Counter,
    pub(crate) merge_seconds: Histogram,
    pub(crate) gathered_bytes: Counter,
    pub(crate) unmergeable_ranges: Counter,
    pub(crate) archived_files: Counter,
    pub(crate) archived_bytes: Counter,
    pub(crate) archived_rows: Counter,
    pub(crate) archive_seconds: Histogram,
    pub(crate) archive_due_bytes: Gauge,
    pub(crate) archive_due_age_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) archive_paused_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    pub(crate) unarchivable_ranges: Counter,
    pub(crate) deleted_objects: Family<Label, Counter>,
    pub(crate) deleted_bytes: Family<Label, Counter>,
    pub(crate) unreferenced_objects: Gauge,
    pub(crate) unreferenced_bytes: Gauge,
    pub(crate) garbage_rounds: Family<Label, Counter>,
}

impl LogMetrics {
    pub(crate) fn register(registry: &mut Registry) -> LogMetrics {
        let seconds = || Histogram::new(exponential_buckets(0.000_25, 2.0, 18));
        let m = LogMetrics {
            appended_bytes: Counter::default(),
            appended_batches: Counter::default(),
            gathering_bytes: Gauge::default(),
            segments: Counter::default(),
            segment_bytes: Histogram::new(exponential_buckets(1024.0, 2.0, 15)),
            queue_seconds: seconds(),
            flush_seconds: seconds(),
            put_seconds: seconds(),
            order_seconds: seconds(),
            publish_seconds: seconds(),
            puts_in_flight: Gauge::default(),
            tail_bytes: Gauge::default(),
            tail_reads: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            blocks_ahead: Counter::default(),
            cache_bytes: Gauge::default(),
            corrupt_reads: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_bytes: Gauge::default(),
            manifest_version: Gauge::default(),
            partitions: Gauge::default(),
            recovery_seconds: Gauge::default(),
            recovering_slots: Gauge::default(),
            quarantined_slots: Gauge::default(),
            slots_moved: Counter::default(),
            takeovers: Counter::default(),
            unmerged_bytes: Gauge::default(),
            unmerged_age_seconds: Gauge::default(),
            merged_objects: Counter::default(),
            merged_bytes: Counter::default(),
            merge_seconds: seconds(),
            gathered_bytes: Counter::default(),
            unmergeable_ranges: Counter::default(),
            archived_files: Counter::default(),
            archived_bytes: Counter::default(),
            archived_rows: Counter::default(),
            archive_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 18)),
            archive_due_bytes: Gauge::default(),
            archive_due_age_seconds: Gauge::default(),
            archive_paused_seconds: Counter::default(),
            unarchivable_ranges: Counter::default(),
            deleted_objects: Family::default(),
            deleted_bytes: Family::default(),
            unreferenced_objects: Gauge::default(),
            unreferenced_bytes: Gauge::default(),
            garbage_rounds: Family::default(),
        };
        let r = registry.sub_registry_with_prefix("alluvium_log");
        r.register(
            "appended_bytes",
            "Bytes of record batches that got an offset",
            m.appended_bytes.clone(),
        );
        r.register(
            "appended_batches",
            "Record batches that got an offset",
            m.appended_batches.clone(),
        );
        r.register(
            "gathering_bytes",
            "Bytes in the segment that is being gathered",
            m.gathering_bytes.clone(),
        );
        r.register("segments", "Segments published", m.segments.clone());
        r.register("segment_bytes", "Size of segments", m.segment_bytes.clone());
        r.register(
            "queue_seconds",
            "From a segment's first append to its closing, after which it takes no more",
            m.queue_seconds.clone(),
        );
        r.register(
            "flush_seconds",
            "From a segment's closing to the start of its write: it is put together",
            m.flush_seconds.clone(),
        );
        r.register(
            "put_seconds",
            "Write of a segment, retries included",
            m.put_seconds.clone(),
        );
        r.register(
            "order_seconds",
            "From the end of a segment's write to its publication, for which it waits for those before it",
            m.order_seconds.clone(),
        );
        r.register(
            "publish_seconds",
            "From a segment's first append to its publication",
            m.publish_seconds.clone(),
        );
        r.register(
            "puts_in_flight",
            "Segment writes under way",
            m.puts_in_flight.clone(),
        );
        r.register(
            "tail_bytes",
            "Newest segments kept in memory",
            m.tail_bytes.clone(),
        );
        r.register(
            "tail_reads",
            "Ranges served from the newest segments in memory",
            m.tail_reads.clone(),
        );
        r.register("cache_hits", "Blocks found in the cache", m.cache_hits.clone());
        r.register(
            "cache_misses",
            "Blocks read from the store",
            m.cache_misses.clone(),
        );
        r.register(
            "blocks_ahead",
            "Blocks read from the store before a reader asked for them",
            m.blocks_ahead.clone(),
        );
        r.register("cache_bytes", "Blocks kept in the cache", m.cache_bytes.clone());
        r.register(
            "corrupt_reads",
            "Reads of bytes that are not what was written",
            m.corrupt_reads.clone(),
        );
        r.register("checkpoints", "Checkpoints written", m.checkpoints.clone());
        r.register(
            "checkpoint_bytes",
            "Size of the newest checkpoint",
            m.checkpoint_bytes.clone(),
        );
        r.register(
            "manifest_version",
            "Version of the manifest in use",
            m.manifest_version.clone(),
        );
        r.register(
            "partitions",
            "Partitions that this broker leads",
            m.partitions.clone(),
        );
        r.register(
            "recovery_seconds",
            "Time that the newest recovery of slots took",
            m.recovery_seconds.clone(),
        );
        r.register(
            "recovering_slots",
            "Slots that this broker owns and is rebuilding",
            m.recovering_slots.clone(),
        );
        r.register(
            "quarantined_slots",
            "Slots that this broker owns and cannot rebuild",
            m.quarantined_slots.clone(),
        );
        r.register(
            "slots_moved",
            "Slots that this broker handed over",
            m.slots_moved.clone(),
        );
        r.register(
            "takeovers",
            "Dead brokers whose streams this broker ended",
            m.takeovers.clone(),
        );
        m.register_merging(r);
        m.register_archiving(r);
        m.register_deleting(r);
        m
    }

    fn register_archiving(&self, r: &mut Registry) {
        r.register(
            "archived_files",
            "Files of history written",
            self.archived_files.clone(),
        );
        r.register(
            "archived_bytes",
            "Bytes of files of history",
            self.archived_bytes.clone(),
        );
        r.register(
            "archived_rows",
            "Records in files of history",
            self.archived_rows.clone(),
        );
        r.register(
            "archive_seconds",
            "From the plan of a file of history to its end in the store",
            self.archive_seconds.clone(),
        );
        r.register(
            "archive_due_bytes",
            "Merged bytes of topics of which a file of history is due",
            self.archive_due_bytes.clone(),
        );
        r.register(
            "archive_due_age_seconds",
            "Age of the oldest data of which a file of history is due",
            self.archive_due_age_seconds.clone(),
        );
        r.register(
            "archive_paused_seconds",
            "Time for which archiving has paused because producers waited",
            self.archive_paused_seconds.clone(),
        );
        r.register(
            "unarchivable_ranges",
            "Ranges of merged data that hold something damaged, found while archiving",
            self.unarchivable_ranges.clone(),
        );
    }

    fn register_merging(&self, r: &mut Registry) {
        r.register(
            "unmerged_bytes",
            "Published bytes that are not merged yet",
            self.unmerged_bytes.clone(),
        );
        r.register(
            "unmerged_age_seconds",
            "Age of the oldest data that is not merged yet",
            self.unmerged_age_seconds.clone(),
        );
        r.register(
            "merged_objects",
            "Merged objects written",
            self.merged_objects.clone(),
        );
        r.register(
            "merged_bytes",
            "Bytes of merged objects",
            self.merged_bytes.clone(),
        );
        r.register(
            "merge_seconds",
            "From the plan of a merged object to the publication of its data's place",
            self.merge_seconds.clone(),
        );
        r.register(
            "gathered_bytes",
            "Merged bytes that were moved because little else was needed of the object in which they stood",
            self.gathered_bytes.clone(),
        );
        r.register(
            "unmergeable_ranges",
            "Ranges that are missing or not what was written, found while merging",
            self.unmergeable_ranges.clone(),
        );
    }

    fn register_deleting(&self, r: &mut Registry) {
        for kind in DELETED_KINDS {
            let _ = self.deleted_objects.get_or_create(&[("kind", kind)]);
            let _ = self.deleted_bytes.get_or_create(&[("kind", kind)]);
        }
        for outcome in ROUNDS {
            let _ = self.garbage_rounds.get_or_create(&[("outcome", outcome)]);
        }
        r.register(
            "deleted_objects",
            "Objects deleted because nothing needs them any more, by kind",
            self.deleted_objects.clone(),
        );
        r.register(
            "deleted_bytes",
            "Bytes of deleted objects, by kind",
            self.deleted_bytes.clone(),
        );
        r.register(
            "unreferenced_objects",
            "Merged objects and files of history that nobody refers to and that are about to be deleted",
            self.unreferenced_objects.clone(),
        );
        r.register(
            "unreferenced_bytes",
            "Bytes of objects that nobody refers to and that are about to be deleted",
            self.unreferenced_bytes.clone(),
        );
        r.register(
            "garbage_rounds",
            "Looks for objects that nobody refers to, by outcome; all but done found out nothing",
            self.garbage_rounds.clone(),
        );
    }

    /// An object of a kind was deleted.
    pub(crate) fn count_deleted(&self, kind: &'static str, bytes: u64) {
        self.deleted_objects.get_or_create(&[("kind", kind)]).inc();
        self.deleted_bytes.get_or_create(&[("kind", kind)]).inc_by(bytes);
    }

    /// A look for objects that nobody refers to is over.
    pub(crate) fn garbage_round(&self, outcome: &'static str) {
        self.garbage_rounds.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Objects deleted so far, of all kinds.
    #[cfg(test)]
    pub(crate) fn deleted(&self) -> u64 {
        let of = |kind| self.deleted_objects.get_or_create(&[("kind", kind)]).get();
        DELETED_KINDS.into_iter().map(of).sum()
    }
}
