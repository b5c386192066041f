//! Metrics of compaction, after those of Kafka's log cleaner.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::pass::Tally;

#[derive(Clone, Debug)]
pub(crate) struct CompactionMetrics {
    pub(crate) max_dirty_percent: Gauge<f64, AtomicU64>,
    pub(crate) dirty_bytes: Gauge,
    pub(crate) uncleanable: Gauge,
    pub(crate) passes: Counter,
    pub(crate) pass_seconds: Histogram,
    pub(crate) last_pass_seconds: Gauge<f64, AtomicU64>,
    pub(crate) map_percent: Gauge<f64, AtomicU64>,
    read_bytes: Counter,
    rewritten_bytes: Counter,
    written_bytes: Counter,
    records: Counter,
    removed_records: Counter,
    opaque_batches: Counter,
}

impl CompactionMetrics {
    pub(crate) fn register(registry: &mut Registry) -> CompactionMetrics {
        let m = CompactionMetrics {
            max_dirty_percent: Gauge::default(),
            dirty_bytes: Gauge::default(),
            uncleanable: Gauge::default(),
            passes: Counter::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.01, 4.0, 10)),
            last_pass_seconds: Gauge::default(),
            map_percent: Gauge::default(),
            read_bytes: Counter::default(),
            rewritten_bytes: Counter::default(),
            written_bytes: Counter::default(),
            records: Counter::default(),
            removed_records: Counter::default(),
            opaque_batches: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("alluvium_compaction");
        r.register(
            "max_dirty_percent",
            "Share of data that was not compacted, in percent, of the compacted partition where it is greatest",
            m.max_dirty_percent.clone(),
        );
        r.register(
            "dirty_bytes",
            "Bytes of compacted partitions that could be compacted and were not",
            m.dirty_bytes.clone(),
        );
        r.register(
            "uncleanable_partitions",
            "Partitions that are not compacted, or only in part, because of what stands in them; the log says why",
            m.uncleanable.clone(),
        );
        r.register("passes", "Passes through a partition", m.passes.clone());
        r.register("pass_seconds", "Time that passes took", m.pass_seconds.clone());
        r.register(
            "last_pass_seconds",
            "Time that the newest pass took",
            m.last_pass_seconds.clone(),
        );
        r.register(
            "map_percent",
            "How full the newest pass made the map of keys (log.cleaner.dedupe.buffer.size), in percent",
            m.map_percent.clone(),
        );
        r.register(
            "read_bytes",
            "Bytes that were gone through, the second time",
            m.read_bytes.clone(),
        );
        r.register(
            "rewritten_bytes",
            "Bytes of what was written anew, before",
            m.rewritten_bytes.clone(),
        );
        r.register(
            "written_bytes",
            "Bytes of what was written anew, afterwards",
            m.written_bytes.clone(),
        );
        r.register("records", "Records that were gone through", m.records.clone());
        r.register(
            "removed_records",
            "Records that were taken out",
            m.removed_records.clone(),
        );
        r.register(
            "opaque_batches",
            "Batches that were met and could not be opened; they stay as they are",
            m.opaque_batches.clone(),
        );
        m
    }

    pub(crate) fn add(&self, tally: &Tally) {
        self.read_bytes.inc_by(tally.bytes_read);
        self.rewritten_bytes.inc_by(tally.bytes_before);
        self.written_bytes.inc_by(tally.bytes_after);
        self.records.inc_by(tally.records);
        self.removed_records.inc_by(tally.removed);
        self.opaque_batches.inc_by(tally.opaque);
    }
}
