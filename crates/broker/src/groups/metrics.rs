//! What operators see of groups. Counters are kept while commands run; gauges are computed at each scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Weak;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::coordinator::Inner;
use super::shard::Effects;

/// Series of `group_lag` at most; the largest lags are kept.
const LAG_SERIES_MAX: usize = 1_000;

type Labels = [(&'static str, &'static str); 1];

/// Counters and histograms of the coordinator.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    rebalances: Counter,
    commits: Family<Labels, Counter>,
    expired: Counter,
    failed_appends: Counter,
    load_seconds: LoadSeconds,
}

#[derive(Debug)]
struct LoadSeconds(Histogram);

impl Default for LoadSeconds {
    fn default() -> LoadSeconds {
        LoadSeconds(Histogram::new(exponential_buckets(0.005, 2.0, 16)))
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        for outcome in ["written", "unchanged"] {
            let _ = metrics.commits.get_or_create(&[("outcome", outcome)]);
        }
        registry.register(
            "group_rebalances",
            "Rebalances that began",
            metrics.rebalances.clone(),
        );
        registry.register(
            "group_offset_commits",
            "Offsets committed; unchanged ones needed no write",
            metrics.commits.clone(),
        );
        registry.register(
            "group_offsets_expired",
            "Offsets that outlived their retention",
            metrics.expired.clone(),
        );
        registry.register(
            "group_append_failures",
            "Appends to __consumer_offsets that were rejected",
            metrics.failed_appends.clone(),
        );
        registry.register_with_unit(
            "group_load",
            "Time to load a partition of __consumer_offsets",
            Unit::Seconds,
            metrics.load_seconds.0.clone(),
        );
        metrics
    }

    pub(crate) fn count(&self, fx: &Effects) {
        self.rebalances.inc_by(fx.rebalances);
        self.expired.inc_by(fx.offsets_expired);
        if fx.offsets_committed > 0 {
            self.commits
                .get_or_create(&[("outcome", "written")])
                .inc_by(fx.offsets_committed);
        }
        if fx.offsets_unchanged > 0 {
            self.commits
                .get_or_create(&[("outcome", "unchanged")])
                .inc_by(fx.offsets_unchanged);
        }
    }

    pub(crate) fn append_failed(&self) {
        self.failed_appends.inc();
    }

    pub(crate) fn loaded(&self, seconds: f64) {
        self.load_seconds.0.observe(seconds);
    }
}

/// Groups by state, and lag by group and topic, read from the shards at each scrape.
pub(crate) struct GroupGauges(pub(crate) Weak<Inner>);

impl fmt::Debug for GroupGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupGauges")
    }
}

impl Collector for GroupGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(inner) = self.0.upgrade() else {
            return Ok(());
        };
        let states = inner.groups_by_state();
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor("groups", "Groups by state", None, kind)?;
        for (state, count) in states {
            let gauge = ConstGauge::new(count);
            gauge.encode(family.encode_family(&[("state", state)])?)?;
        }
        let lags = largest(inner.lag_by_group_and_topic());
        let mut family = encoder.encode_descriptor(
            "group_lag",
            "Records between the committed offset and the high watermark, summed over the partitions led here",
            None,
            kind,
        )?;
        for ((group, topic), lag) in lags {
            let gauge = ConstGauge::new(lag);
            gauge.encode(family.encode_family(&[("group", group), ("topic", topic)])?)?;
        }
        Ok(())
    }
}

/// Keeps the largest lags, so that many groups cannot flood the metrics store.
fn largest(lags: BTreeMap<(String, String), i64>) -> Vec<((String, String), i64)> {
    let mut rows: Vec<_> = lags.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    rows.truncate(LAG_SERIES_MAX);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_largest_lags_become_series() {
        let lags = (0..3_000)
            .map(|n| ((format!("g{n}"), "t".to_owned()), n))
            .collect();
        let rows = largest(lags);
        assert_eq!(rows.len(), LAG_SERIES_MAX);
        assert_eq!(rows[0], (("g2999".to_owned(), "t".to_owned()), 2_999));
        assert_eq!(rows[LAG_SERIES_MAX - 1].1, 2_000);
    }
}
