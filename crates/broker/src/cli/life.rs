//! One life of a broker: from the opening of the log until it is stopped or another broker takes over.
//!
//! A broker that lost its stream keeps nothing: what it has in memory may be out of date. It ends all connections,
//! drops everything and starts anew, as another incarnation, on the same store and the same listening sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium_log::membership::MembershipOptions;
use alluvium_log::store::counting::StoreMetrics;
use alluvium_log::store::{Store, StoreKind};
use alluvium_log::{Clock, Log, SystemClock};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::cluster::{self, Fenced};
use crate::config::{Config, Settings};
use crate::groups::{Coordinator, WallClock};
use crate::peers::{PeerClient, PeerMetrics};
use crate::server::{Bound, Server};
use crate::{compaction, history, http, process_metrics, retention};

/// The first pause before a broker that lost its stream comes back, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Who served for so long has not been in a duel: the next pause is a short one again.
const LONG_SERVICE: Duration = Duration::from_secs(300);
/// How long connections may take to hear that the broker lost its stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What outlives a life.
pub(super) struct Ground {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) store_metrics: StoreMetrics,
    /// When the process started, in milliseconds since 1970.
    pub(super) started_ms: i64,
    pub(super) shown: http::Shown,
    /// The operator knows that others cannot reach this broker.
    pub(super) told_unreachable: Arc<AtomicBool>,
}

/// A broker that serves.
pub(super) struct Life {
    pub(super) broker: Arc<Broker>,
    began: Instant,
    server: Option<Server>,
    retention: JoinHandle<()>,
}

impl Life {
    /// Opens the log and puts a broker on it; it serves nobody yet.
    pub(super) async fn begin(ground: &Ground) -> Result<Life, String> {
        let mut registry = Registry::default();
        process_metrics::register(&mut registry, ground.started_ms);
        ground.store_metrics.register(&mut registry);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (options, policies) = history::with_history(&ground.settings, &mut registry)?;
        let edge = registry.sub_registry_with_prefix("alluvium");
        let names = ground
            .settings
            .advertised_listeners
            .iter()
            .map(|l| l.name.clone());
        let peers = PeerClient::new(names.collect(), PeerMetrics::register(edge));
        let before_ms = clock.now_ms();
        let opened = Log::open(ground.store.clone(), options, clock.clone(), &mut registry).await;
        let log = opened.map_err(|e| e.to_string())?;
        peers.belongs_to(log.manifest().cluster_id, log.incarnation());
        log.watch_peers(Arc::new(peers), MembershipOptions::default(), &mut registry);
        ground.check_clock(before_ms, clock.now_ms()).await;
        ground.watch_for_others(&log);
        let config = Arc::new(Config::new(ground.settings.clone(), log.node_id()));
        policies.follow(config.clone(), &log);
        let manifest = log.manifest();
        let marked = cluster::marked(&manifest, log.node_id());
        for line in config.overruled(&manifest).into_iter().chain(marked) {
            tracing::warn!("{line}");
        }
        let wall: WallClock = Arc::new(move || clock.now_ms());
        let edge = registry.sub_registry_with_prefix("alluvium");
        cluster::register(edge, &log);
        let groups = Coordinator::new(log.clone(), config.clone(), wall.clone(), edge);
        let options = config.settings.compaction.unwrap_or_default();
        compaction::start(&log, &config, options, &mut registry)
            .map_err(|e| format!("no thread for compaction: {e}"))?;
        let retention = retention::spawn(log.clone(), config.clone(), wall.clone(), &mut registry);
        let broker = Arc::new(Broker::new(log, config, groups, wall, &mut registry));
        ground.shown.started(broker.clone(), registry);
        Ok(Life {
            broker,
            began: Instant::now(),
            server: None,
            retention,
        })
    }

    /// Serves until the stream is lost.
    pub(super) async fn serve(&mut self, listeners: &[Bound]) -> Fenced {
        self.server = Some(Server::start(self.broker.clone(), listeners));
        cluster::fenced(&self.broker.log, &self.broker.config.settings).await
    }

    /// Lets go of everything after the stream was lost; returns how long the life was.
    pub(super) async fn leave(mut self, ground: &Ground) -> Duration {
        ground.shown.ended();
        self.broker.readiness.drain();
        if let Some(server) = self.server.take() {
            server.stop(LAST_WORDS).await;
        }
        self.retention.abort();
        self.began.elapsed()
    }

    /// Ends on request. The others get the partitions while the connections are still there, so that clients hear
    /// from this broker where to go.
    pub(super) async fn stop(mut self, listeners: Vec<Bound>, patience: Duration) -> Result<(), String> {
        tracing::info!("stopping");
        self.broker.readiness.drain();
        // The whole must be over before whoever stops us loses patience, wherever the store is.
        let deadline = Instant::now() + patience;
        let close_by = deadline - (patience / 4).min(LAST_WORDS);
        let closed = tokio::time::timeout_at(close_by, self.broker.log.close()).await;
        drop(listeners);
        if let Some(server) = self.server.take() {
            server
                .stop(deadline.saturating_duration_since(Instant::now()))
                .await;
        }
        match closed {
            Ok(Ok(())) => {
                tracing::info!("stopped");
                Ok(())
            }
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!(
                "stopped after {patience:?} (shutdown.timeout.ms) without closing the log{}; nothing acknowledged is \
                 lost, the next start recovers it",
                self.broker
                    .log
                    .store_trouble()
                    .map_or_else(String::new, |why| format!(", because the store fails: {why}")),
            )),
        }
    }
}

/// A namesake took over: this process must not come back, or the two would take over from each other for ever.
pub(super) fn given_way(fenced: &Fenced, namesake: &str, node_id: i32) -> String {
    format!(
        "stopped: {namesake} runs under the same node.id, {node_id}: brokers that run at the same time must differ in \
         node.id and in advertised.listeners; stop one of the two, or give it its own. Nothing acknowledged is lost \
         ({})",
        fenced.why
    )
}

/// Starts anew after a pause, and again until it succeeds. Meanwhile clients are turned away at the door, so that
/// they ask another broker.
pub(super) async fn begin_again(
    ground: &Ground,
    listeners: &[Bound],
    pauses: &mut Pauses,
    fenced: &Fenced,
    served: Duration,
) -> Life {
    let again = async {
        let mut pause = pauses.after(served);
        tracing::warn!(
            "{}; nothing acknowledged is lost; starting anew in {pause:?}",
            fenced.why
        );
        loop {
            tokio::time::sleep(pause).await;
            match Life::begin(ground).await {
                Ok(life) => {
                    let log = &life.broker.log;
                    tracing::info!(
                        incarnation = log.incarnation(),
                        node_id = log.node_id(),
                        "started anew"
                    );
                    return life;
                }
                Err(error) => {
                    pause = pauses.after(Duration::ZERO);
                    tracing::error!("cannot start anew: {error}; trying again in {pause:?}");
                }
            }
        }
    };
    tokio::select! {
        life = again => life,
        never = turn_away(listeners) => match never {},
    }
}

/// Accepts connections and closes them.
async fn turn_away(listeners: &[Bound]) -> Infallible {
    futures::future::join_all(listeners.iter().map(Bound::refuse_all)).await;
    std::future::pending().await
}

/// How long to wait before coming back: twice as long each time, unless it had served for a good while.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses { next: PAUSE_MIN }
    }
}

impl Pauses {
    /// The pause after a life of `served`.
    fn after(&mut self, served: Duration) -> Duration {
        if served >= LONG_SERVICE {
            self.next = PAUSE_MIN;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

impl Ground {
    /// Warns of a clock that is far from the store's. Opening the log has just written the manifest, so the time
    /// that the store has for it is between the two of ours.
    async fn check_clock(&self, before_ms: i64, after_ms: i64) {
        if self.store.kind != StoreKind::S3 {
            return;
        }
        if let Some(store_ms) = self.store.written_ms(alluvium_log::keys::MANIFEST).await
            && let Some(warning) = cluster::wrong_clock(store_ms, before_ms, after_ms)
        {
            tracing::warn!("{warning}");
        }
    }

    /// Warns, once in a process, when there are other brokers that cannot reach this one.
    fn watch_for_others(&self, log: &Log) {
        // A directory or memory belongs to one process.
        if self.store.kind != StoreKind::S3 {
            return;
        }
        let advertised = self.settings.advertised_listeners.clone();
        let told = self.told_unreachable.clone();
        let mut manifests = log.manifest_changes();
        tokio::spawn(async move {
            loop {
                let warning = cluster::unreachable(&advertised, &manifests.borrow_and_update());
                if let Some(warning) = warning {
                    if !told.swap(true, Ordering::Relaxed) {
                        tracing::warn!("{warning}");
                    }
                    return;
                }
                if told.load(Ordering::Relaxed) || manifests.changed().await.is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::stream;
    use crate::config::Listener;
    use crate::testing::shared_store;
    use alluvium_log::LogOptions;
    use alluvium_log::membership::{Peers, PingError};
    use alluvium_log::store::StoreOptions;
    use std::collections::BTreeSet;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    async fn ground() -> Ground {
        let settings = Settings::from_pairs([("store.url", "memory://"), ("node.id", "1")]).unwrap();
        let store_metrics = StoreMetrics::default();
        let options = StoreOptions {
            metrics: Some(store_metrics.clone()),
            ..StoreOptions::default()
        };
        let store = Store::open(&settings.store_url, options).await.unwrap();
        on(settings, store, store_metrics)
    }

    /// A bucket that others share, for a broker that takes the number which the cluster gives it.
    async fn shared_ground() -> Ground {
        let settings = [
            ("store.url", "s3://shared"),
            ("advertised.listeners", "PLAINTEXT://broker.test:9092"),
        ];
        let settings = Settings::from_pairs(settings).unwrap();
        let (store, store_metrics) = shared_store().await;
        on(settings, store, store_metrics)
    }

    fn on(settings: Settings, store: Store, store_metrics: StoreMetrics) -> Ground {
        Ground {
            settings,
            store,
            store_metrics,
            started_ms: 0,
            shown: http::Shown::default(),
            told_unreachable: Arc::default(),
        }
    }

    /// A start of broker `node_id` on the same store, which takes over from whoever is there.
    async fn intruder(ground: &Ground, node_id: i32) -> Log {
        let options = LogOptions {
            node_id: Some(node_id),
            ..ground.settings.log.clone()
        };
        let clock = Arc::new(SystemClock);
        Log::open(ground.store.clone(), options, clock, &mut Registry::default())
            .await
            .unwrap()
    }

    async fn listener() -> Bound {
        let any = Listener {
            name: "PLAINTEXT".into(),
            host: "127.0.0.1".into(),
            port: 0,
        };
        Bound::bind(&any).await.unwrap()
    }

    #[tokio::test]
    async fn a_broker_that_lost_its_stream_starts_anew_on_the_same_port() {
        let ground = ground().await;
        let listeners = [listener().await];
        let address = listeners[0].address;
        let peer = stream(1, true, &[("PLAINTEXT", "127.0.0.1", address.port())]);
        let mut life = Life::begin(&ground).await.unwrap();
        let client = PeerClient::new(vec![], PeerMetrics::default());
        client.belongs_to(life.broker.log.manifest().cluster_id, 99);
        let broker = life.broker.clone();
        let fenced = {
            let mut serving = std::pin::pin!(life.serve(&listeners));
            let first = tokio::select! {
                _ = &mut serving => panic!("nobody took over"),
                pong = client.ping(&peer, 1, 0) => pong.unwrap(),
            };
            assert_eq!((first.incarnation, first.draining), (1, false));
            assert_eq!(first.manifest_version, broker.log.manifest().version);
            drop(intruder(&ground, 2).await);
            // A peer that knows of it makes this broker find out.
            let told = client.ping(&peer, 1, first.manifest_version + 1).await;
            assert!(told.is_ok());
            serving.await
        };
        assert_eq!(fenced.namesake, None, "{fenced:?}");
        drop(broker);
        let served = life.leave(&ground).await;
        assert_eq!(
            client.ping(&peer, 1, 0).await,
            Err(PingError::NoAnswer),
            "nobody is home"
        );
        let mut pauses = Pauses::default();
        let mut life = {
            let mut again = std::pin::pin!(begin_again(&ground, &listeners, &mut pauses, &fenced, served));
            let turned_away = async {
                let mut connection = TcpStream::connect(address).await.unwrap();
                connection.read(&mut [0; 8]).await
            };
            tokio::select! {
                _ = &mut again => panic!("too soon"),
                end = turned_away => assert!(!matches!(end, Ok(1..)), "{end:?}"),
            }
            again.await
        };
        tokio::select! {
            _ = life.serve(&listeners) => panic!("nobody took over"),
            pong = client.ping(&peer, 1, 0) => assert_eq!(pong.unwrap().incarnation, 3),
        }
        life.stop(listeners.into(), Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(client.ping(&peer, 1, 0).await, Err(PingError::Refused));
    }

    #[tokio::test]
    async fn a_namesake_is_given_way() {
        let ground = ground().await;
        let listeners = [listener().await];
        let mut life = Life::begin(&ground).await.unwrap();
        drop(intruder(&ground, 1).await);
        life.broker.log.refresh().await;
        let fenced = life.serve(&listeners).await;
        let namesake = fenced.namesake.clone().unwrap();
        let line = given_way(&fenced, &namesake, life.broker.log.node_id());
        let expected = "stopped: incarnation 2 at 127.0.0.1:9092 runs under the same node.id, 1: ";
        assert!(line.starts_with(expected), "{line}");
        life.leave(&ground).await;
    }

    #[tokio::test]
    async fn a_number_that_was_assigned_is_left_to_who_has_it_now() {
        let mut ground = shared_ground().await;
        let listeners = [listener().await];
        let mut life = Life::begin(&ground).await.unwrap();
        assert_eq!(life.broker.log.node_id(), 1);
        // Somebody else has it, and has taken over from this one.
        let own = std::mem::take(&mut ground.settings.log.endpoints);
        let other = intruder(&ground, 1).await;
        ground.settings.log.endpoints = own;
        life.broker.log.refresh().await;
        let fenced = life.serve(&listeners).await;
        assert_eq!(fenced.namesake, None, "{fenced:?}");
        life.leave(&ground).await;
        let mut life = Life::begin(&ground).await.unwrap();
        assert_eq!(life.broker.log.node_id(), 2);
        assert!(other.leased() && other.manifest().is_live(other.incarnation()));

        // In its own place it is a newer start of itself.
        drop(intruder(&ground, 2).await);
        life.broker.log.refresh().await;
        let fenced = life.serve(&listeners).await;
        assert!(fenced.namesake.is_some(), "{fenced:?}");
        life.leave(&ground).await;
    }

    #[test]
    fn pauses_grow_until_a_long_service() {
        let mut pauses = Pauses::default();
        let mut after = |seconds| pauses.after(Duration::from_secs(seconds)).as_secs();
        let short: Vec<u64> = (0..8).map(|_| after(299)).collect();
        assert_eq!(short, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!([after(300), after(0), after(0)], [1, 2, 4]);
    }

    #[tokio::test]
    async fn a_life_leaves_nothing_behind_and_the_next_one_has_its_own_metrics() {
        let ground = ground().await;
        let mut lives = vec![];
        for _ in 0..2 {
            let life = Life::begin(&ground).await.unwrap();
            life.broker.metrics.produce_records.inc_by(5);
            assert!(
                ground
                    .shown
                    .metrics()
                    .contains("alluvium_produce_records_total 5\n")
            );
            lives.push((life.broker.log.incarnation(), Arc::downgrade(&life.broker)));
            life.leave(&ground).await;
        }
        assert_eq!([lives[0].0, lives[1].0], [1, 2]);
        for (_, broker) in lives {
            assert!(broker.upgrade().is_none());
        }
    }

    #[tokio::test]
    async fn the_page_of_metrics_lists_what_is_there() {
        let ground = ground().await;
        let life = Life::begin(&ground).await.unwrap();
        // Families that appear with their first member.
        life.broker.metrics.request_error("Fetch", 3);
        let there: BTreeSet<(String, String)> = ground
            .shown
            .metrics()
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
        let page = page.unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        // The second table is about labels.
        let rows = rows.filter(|row| row.starts_with("alluvium_") || row.starts_with("process_"));
        let listed: BTreeSet<(String, String)> = rows
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
                let name = cells.next().unwrap_or_default().to_owned();
                (name, cells.next().unwrap_or_default().to_owned())
            })
            .collect();
        let missing: Vec<_> = there.difference(&listed).collect();
        let surplus: Vec<_> = listed.difference(&there).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "missing: {missing:?}, not there: {surplus:?}"
        );
    }
}
