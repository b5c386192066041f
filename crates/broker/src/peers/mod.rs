//! Brokers of one cluster ask each other for a sign of life.
//!
//! Everything that matters goes through the bucket. What goes between brokers is one small request,
//! [`message`], over the listener that clients use: it tells the dead from the living sooner than the bucket
//! would, and that there is a newer manifest. An answer proves nothing and decides nothing by itself: who takes
//! over from whom is settled by seals. It has a private API key that ApiVersions does not show.

mod client;
pub(crate) mod message;
mod nudges;

pub(crate) use client::{PeerClient, Wire};
pub(crate) use nudges::Nudges;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// How pings of other brokers end.
const OUTCOMES: [&str; 4] = ["answered", "refused", "silent", "stranger"];

/// Counts the pings that this broker sends.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerMetrics {
    pings: Family<OutcomeLabel, Counter>,
}

impl PeerMetrics {
    /// Registers the counters under the prefix of `registry`.
    pub(crate) fn register(registry: &mut Registry) -> PeerMetrics {
        let metrics = PeerMetrics::default();
        for outcome in OUTCOMES {
            let _ = metrics.pings.get_or_create(&OutcomeLabel { outcome });
        }
        registry.register(
            "peer_pings",
            "Pings of other brokers, by outcome",
            metrics.pings.clone(),
        );
        metrics
    }

    fn count(&self, outcome: &'static str) {
        debug_assert!(OUTCOMES.contains(&outcome), "{outcome} is not in the list");
        self.pings.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
