//! What a broker sees of the cluster that it is a member of, for its operator.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use alluvium_log::Log;
use alluvium_log::manifest::{Endpoint, Manifest};
use alluvium_log::store::StoreKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::config::{Listener, Settings};

/// From here on a clock is called wrong: services that sign requests refuse them.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(15 * 60);

/// Why this broker lost its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fenced {
    /// One sentence.
    pub(crate) why: String,
    /// Who took over, if it has this broker's id: "incarnation 7 at host:9092".
    pub(crate) namesake: Option<String>,
}

/// Resolves when this broker has lost its stream.
pub(crate) async fn fenced(log: &Log, settings: &Settings) -> Fenced {
    let alluvium_log::Fenced { why, same_node } = log.fenced().await;
    // Whoever sealed the stream: if this broker's id has a newer start by now, coming back would end that one. A look that
    // fails is told by the store.
    log.refresh().await;
    // An id that the cluster assigned goes to another broker while this one is taken for dead, and this one gets another
    // when it comes back. On a store of one process there is no other.
    let assigned = settings.node_id.is_none() && settings.store_kind() == StoreKind::S3;
    let place = assigned.then_some(&settings.log.endpoints);
    let known = namesake(&log.manifest(), log.incarnation(), log.node_id(), place);
    let namesake = known.or_else(|| (same_node && !assigned).then(|| "a newer process".to_owned()));
    Fenced { why, namesake }
}

/// The newer start that runs under the same broker id, and in the same place if one is given.
fn namesake(
    manifest: &Manifest,
    incarnation: u64,
    node_id: i32,
    place: Option<&BTreeMap<String, Endpoint>>,
) -> Option<String> {
    let (newer, stream) = manifest
        .live()
        .filter(|(other, stream)| *other > incarnation && stream.node_id == node_id)
        .filter(|(_, stream)| place.is_none_or(|place| stream.is_at(place)))
        .last()?;
    Some(match stream.endpoints.values().next() {
        Some(Endpoint { host, port }) => format!("incarnation {newer} at {host}:{port}"),
        None => format!("incarnation {newer}"),
    })
}

/// A warning if brokers on other machines, and their clients, cannot reach this one.
pub(crate) fn unreachable(advertised: &[Listener], manifest: &Manifest) -> Option<String> {
    let others = manifest.live().count().saturating_sub(1);
    let local = advertised
        .iter()
        .find(|listener| means_this_machine(&listener.host))?;
    (others > 0).then(|| {
        let s = if others == 1 { "" } else { "s" };
        format!(
            "{local} is advertised, which means another machine to everybody else, and the cluster has {others} other \
             broker{s}: unless all of it runs on this machine, set advertised.listeners to an address that the others \
             can reach"
        )
    })
}

fn means_this_machine(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

/// A warning if an operator's mark keeps this broker from getting partitions.
pub(crate) fn marked(manifest: &Manifest, node_id: i32) -> Option<String> {
    manifest.draining.contains(&node_id).then(|| {
        format!(
            "node.id {node_id} is marked as draining: this broker gets no partitions from others until `alluvium \
             cluster drain {node_id} --undo`"
        )
    })
}

/// A warning if the clock of this machine is far from the store's, which said `store_ms` at some time between
/// `from_ms` and `to_ms` of ours.
pub(crate) fn wrong_clock(store_ms: i64, from_ms: i64, to_ms: i64) -> Option<String> {
    let (off_ms, which) = if store_ms < from_ms {
        (from_ms - store_ms, "ahead of")
    } else {
        (store_ms.saturating_sub(to_ms), "behind")
    };
    let off = Duration::from_millis(u64::try_from(off_ms).unwrap_or(0));
    (off > CLOCK_TOLERANCE).then(|| {
        format!(
            "the clock of this machine is {} minutes {which} the store's: set it, because timestamps of records and \
             retention go by it",
            off.as_secs() / 60
        )
    })
}

/// Registers the gauges under the prefix of `registry`; they are computed at each scrape.
pub(crate) fn register(registry: &mut Registry, log: &Log) {
    registry.register_collector(Box::new(Gauges { log: log.clone() }));
}

#[derive(Debug)]
struct Gauges {
    log: Log,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let manifest = self.log.manifest();
        let live = i64::try_from(manifest.live().count()).unwrap_or(i64::MAX);
        let is_controller = manifest
            .controller()
            .is_some_and(|(incarnation, _)| incarnation == self.log.incarnation());
        for (name, help, value) in [
            ("cluster_brokers", "Live brokers of the cluster", live),
            (
                "cluster_is_controller",
                "1 if this broker is the one that clients are shown as controller, else 0",
                i64::from(is_controller),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::stream;

    fn manifest(brokers: &[(i32, u16)]) -> Manifest {
        let id = uuid::Uuid::from_u128(1);
        let mut manifest = Manifest::new(id, id, 4);
        for (node_id, port) in brokers {
            let endpoints = stream(*node_id, true, &[("IN", "host", *port)]).endpoints;
            manifest.register(*node_id, None, endpoints);
        }
        manifest
    }

    #[test]
    fn a_namesake_is_newer_live_and_has_our_id() {
        let cluster = manifest(&[(1, 11), (2, 22), (1, 33)]);
        assert_eq!(
            namesake(&cluster, 1, 1, None).as_deref(),
            Some("incarnation 3 at host:33")
        );
        assert_eq!(namesake(&cluster, 3, 1, None), None);
        assert_eq!(namesake(&cluster, 1, 3, None), None);
        let place = |port| stream(1, true, &[("IN", "host", port)]).endpoints;
        assert_eq!(namesake(&cluster, 1, 1, Some(&place(11))), None, "elsewhere");
        assert!(namesake(&cluster, 1, 1, Some(&place(33))).is_some());
        let mut hidden = manifest(&[(1, 11)]);
        hidden.register(1, None, BTreeMap::new());
        assert_eq!(namesake(&hidden, 1, 1, None).as_deref(), Some("incarnation 2"));
    }

    #[test]
    fn addresses_of_this_machine_are_warned_of_among_several() {
        let listener = |host: &str| Listener {
            name: "IN".into(),
            host: host.into(),
            port: 9092,
        };
        let (one, three) = (manifest(&[(1, 11)]), manifest(&[(1, 11), (2, 22), (3, 33)]));
        for host in [
            "localhost",
            "LOCALHOST.",
            "x.localhost",
            "127.0.0.1",
            "127.3.2.1",
            "::1",
            "0.0.0.0",
            "::",
        ] {
            let advertised = [listener("broker.example"), listener(host)];
            assert_eq!(unreachable(&advertised, &one), None, "{host}");
            let warning = unreachable(&advertised, &three).unwrap();
            assert!(
                warning.contains(host) && warning.contains("2 other brokers"),
                "{warning}"
            );
        }
        for host in [
            "broker.example",
            "10.0.0.1",
            "fe80::1",
            "localhost.example",
            "notlocalhost",
        ] {
            assert_eq!(unreachable(&[listener(host)], &three), None, "{host}");
        }
    }

    #[test]
    fn a_mark_is_told_to_the_broker_that_has_it() {
        let mut two = manifest(&[(1, 9092), (2, 9093)]);
        two.set_draining(2, true).unwrap();
        assert_eq!(marked(&two, 1), None);
        assert!(marked(&two, 2).unwrap().contains("cluster drain 2 --undo"));
    }

    #[test]
    fn a_clock_is_wrong_from_a_quarter_of_an_hour_on() {
        let minutes = |n: i64| n * 60_000;
        for fine in [minutes(100), minutes(115), minutes(85), minutes(101)] {
            assert_eq!(wrong_clock(fine, minutes(100), minutes(100)), None);
        }
        let ahead = wrong_clock(minutes(40), minutes(100), minutes(101)).unwrap();
        assert!(ahead.contains("60 minutes ahead of the store's"), "{ahead}");
        let behind = wrong_clock(minutes(121), minutes(100), minutes(101)).unwrap();
        assert!(behind.contains("20 minutes behind the store's"), "{behind}");
        assert_eq!(wrong_clock(minutes(116), minutes(100), minutes(101)), None);
    }
}
