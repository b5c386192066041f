//! Metrics of the Kafka edge. Names begin with `alluvium_`; units are bytes and seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::errors::ErrorCode;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ApiLabel {
    api: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    api: &'static str,
    error: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Why connections are closed, as [`Ended::reason`](crate::connection::Ended::reason) says, and for a limit.
pub(crate) const CLOSE_REASONS: [&str; 10] = [
    "bad_length",
    "client",
    "idle",
    "limit",
    "lost",
    "other_protocol",
    "refused",
    "slow",
    "stopping",
    "stuck",
];

/// Handles of every metric of the edge; cheap to update from any task.
#[derive(Debug)]
pub(crate) struct Metrics {
    request_latency: BTreeMap<i16, Histogram>,
    request_errors: Family<ErrorLabels, Counter>,
    pub(crate) produce_bytes: Counter,
    pub(crate) produce_records: Counter,
    pub(crate) fetch_bytes: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_accepted: Counter,
    connections_closed: Family<ReasonLabel, Counter>,
    pub(crate) fetch_sessions: Gauge,
    pub(crate) fetch_reply_bytes: Gauge,
    pub(crate) produce_budget: BudgetMetrics,
    pub(crate) request_budget: BudgetMetrics,
}

/// What is seen of one byte budget.
#[derive(Clone, Debug)]
pub(crate) struct BudgetMetrics {
    pub(crate) limit_bytes: Gauge,
    pub(crate) in_use_bytes: Gauge,
    pub(crate) waits: Counter,
    pub(crate) wait_seconds: Histogram,
}

impl BudgetMetrics {
    fn register(registry: &mut Registry, name: &str, what: &str) -> BudgetMetrics {
        let metrics = BudgetMetrics {
            limit_bytes: Gauge::default(),
            in_use_bytes: Gauge::default(),
            waits: Counter::default(),
            wait_seconds: latency_histogram(),
        };
        registry.register_with_unit(
            format!("{name}_limit"),
            format!("Size of the budget for {what}"),
            Unit::Bytes,
            metrics.limit_bytes.clone(),
        );
        registry.register_with_unit(
            format!("{name}_in_use"),
            format!("Bytes held from the budget for {what}"),
            Unit::Bytes,
            metrics.in_use_bytes.clone(),
        );
        registry.register(
            format!("{name}_waits"),
            format!("Requests that had to wait for the budget for {what}"),
            metrics.waits.clone(),
        );
        registry.register_with_unit(
            format!("{name}_wait"),
            format!("Time that requests waited for the budget for {what}"),
            Unit::Seconds,
            metrics.wait_seconds.clone(),
        );
        metrics
    }

    /// For tests and benchmarks.
    pub(crate) fn unregistered() -> BudgetMetrics {
        BudgetMetrics::register(&mut Registry::default(), "test", "a test")
    }
}

impl Metrics {
    /// Creates and registers everything. `apis` are the keys and names that the dispatch table serves.
    pub(crate) fn register(
        registry: &mut Registry,
        apis: impl Iterator<Item = (i16, &'static str)>,
    ) -> Metrics {
        let registry = registry.sub_registry_with_prefix("alluvium");
        let latency = Family::<ApiLabel, Histogram>::new_with_constructor(latency_histogram);
        registry.register_with_unit(
            "request_latency",
            "Time from a whole request to its answer, waiting for earlier requests of the connection included",
            Unit::Seconds,
            latency.clone(),
        );
        let metrics = Metrics {
            request_latency: apis
                .map(|(key, api)| (key, latency.get_or_create(&ApiLabel { api }).clone()))
                .collect(),
            request_errors: Family::default(),
            produce_bytes: Counter::default(),
            produce_records: Counter::default(),
            fetch_bytes: Counter::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_closed: Family::default(),
            fetch_sessions: Gauge::default(),
            fetch_reply_bytes: Gauge::default(),
            produce_budget: BudgetMetrics::register(
                registry,
                "produce_memory",
                "unpublished Produce requests",
            ),
            request_budget: BudgetMetrics::register(
                registry,
                "request_memory",
                "requests other than Produce",
            ),
        };
        for reason in CLOSE_REASONS {
            let _ = metrics.connections_closed.get_or_create(&ReasonLabel { reason });
        }
        registry.register(
            "request_errors",
            "Errors answered, by API and Kafka error",
            metrics.request_errors.clone(),
        );
        registry.register_with_unit(
            "produce",
            "Record batch bytes accepted from producers",
            Unit::Bytes,
            metrics.produce_bytes.clone(),
        );
        registry.register(
            "produce_records",
            "Records accepted from producers",
            metrics.produce_records.clone(),
        );
        registry.register_with_unit(
            "fetch",
            "Record batch bytes sent to consumers",
            Unit::Bytes,
            metrics.fetch_bytes.clone(),
        );
        registry.register(
            "connections",
            "Client connections that are open",
            metrics.connections.clone(),
        );
        registry.register(
            "connections_accepted",
            "Client connections accepted",
            metrics.connections_accepted.clone(),
        );
        registry.register(
            "connections_closed",
            "Client connections closed, by reason",
            metrics.connections_closed.clone(),
        );
        registry.register(
            "fetch_sessions",
            "Incremental fetch sessions",
            metrics.fetch_sessions.clone(),
        );
        registry.register_with_unit(
            "fetch_reply_in_flight",
            "Record bytes of Fetch answers that clients have not taken yet",
            Unit::Bytes,
            metrics.fetch_reply_bytes.clone(),
        );
        metrics
    }

    pub(crate) fn request_answered(&self, api_key: i16, took: Duration) {
        if let Some(histogram) = self.request_latency.get(&api_key) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Counts an error that is answered; NONE is not counted.
    pub(crate) fn request_error(&self, api: &'static str, code: i16) {
        if code != ErrorCode::None.code() {
            let error = ErrorCode::name_of(code).unwrap_or("Other");
            self.request_errors
                .get_or_create(&ErrorLabels { api, error })
                .inc();
        }
    }

    pub(crate) fn connection_closed(&self, reason: &'static str) {
        debug_assert!(CLOSE_REASONS.contains(&reason), "{reason} is not in the list");
        self.connections_closed
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }
}

/// 0.5 ms to 16 s in powers of two: an embedded commit is at the lower end, a slow store at the upper.
fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}
