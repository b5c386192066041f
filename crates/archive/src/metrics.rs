//! Metrics of history.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Handles to the metrics. Clones share the values.
#[derive(Clone, Debug)]
pub(crate) struct HistoryMetrics {
    pub(crate) reads: Counter,
    pub(crate) fetched_bytes: Counter,
    pub(crate) files_opened: Counter,
    pub(crate) portion_hits: Counter,
    pub(crate) portion_misses: Counter,
    pub(crate) portions_ahead: Counter,
    pub(crate) cached_bytes: Gauge,
    pub(crate) decode_seconds: Histogram,
    pub(crate) corrupt_reads: Counter,
}

impl HistoryMetrics {
    pub(crate) fn register(registry: &mut Registry) -> HistoryMetrics {
        let m = HistoryMetrics {
            reads: Counter::default(),
            fetched_bytes: Counter::default(),
            files_opened: Counter::default(),
            portion_hits: Counter::default(),
            portion_misses: Counter::default(),
            portions_ahead: Counter::default(),
            cached_bytes: Gauge::default(),
            decode_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            corrupt_reads: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("alluvium_history");
        r.register("reads", "Reads of history by offset or by time", m.reads.clone());
        r.register(
            "fetched_bytes",
            "Bytes of history files read from the store",
            m.fetched_bytes.clone(),
        );
        r.register(
            "files_opened",
            "Times that the index of a history file was read",
            m.files_opened.clone(),
        );
        r.register(
            "portion_hits",
            "Portions found in the cache, rebuilt already",
            m.portion_hits.clone(),
        );
        r.register(
            "portion_misses",
            "Portions read from the store and rebuilt",
            m.portion_misses.clone(),
        );
        r.register(
            "portions_ahead",
            "Portions rebuilt before a reader asked for them",
            m.portions_ahead.clone(),
        );
        r.register(
            "cached_bytes",
            "Rebuilt batches kept in the cache",
            m.cached_bytes.clone(),
        );
        r.register(
            "decode_seconds",
            "Time to make batches of a portion's pages, without the wait for a thread",
            m.decode_seconds.clone(),
        );
        r.register(
            "corrupt_reads",
            "Reads of history that is not what was written",
            m.corrupt_reads.clone(),
        );
        m
    }
}
