//! A broker without sockets, for the simulation of whole clusters in `tests/simulation`.
//!
//! From the first byte of a connection on everything is the product's: frames, order, dispatch, handlers, groups,
//! retention, engine. What the simulation brings is a store, a clock, and the byte streams.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::manifest::Endpoint;
use alluvium_log::membership::MembershipOptions;
use alluvium_log::store::Store;
use alluvium_log::{Clock, CompactionOptions, Log};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::broker::Broker;
use crate::config::{Config, Settings};
use crate::connection::serve;
use crate::dispatch::{Dispatcher, Peer};
use crate::frame::{ConnectionLimits, FrameBudgets, FrameReader};
use crate::groups::{Coordinator, WallClock};
use crate::peers::{PeerClient, PeerMetrics, Wire};
use crate::{compaction, history, retention, server};

/// One broker process.
pub struct Simulated {
    broker: Arc<Broker>,
    dispatcher: Arc<Dispatcher>,
    limits: ConnectionLimits,
    budgets: FrameBudgets,
    stopping: watch::Sender<bool>,
}

impl Simulated {
    /// Starts a broker on the runtime that this is called in; returns once it has recovered its log.
    pub async fn start<S, F>(
        mut settings: Settings,
        store: Store,
        clock: Arc<dyn Clock>,
        dial: impl Fn(&Endpoint) -> F + Send + Sync + 'static,
    ) -> Result<Simulated, String>
    where
        S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let mut registry = Registry::default();
        let names = settings.advertised_listeners.iter().map(|l| l.name.clone());
        let metrics = PeerMetrics::register(&mut registry);
        let peers = PeerClient::dialing(
            Box::new(move |endpoint| {
                let dialed = dial(endpoint);
                Box::pin(async move { dialed.await.map(|s| Box::new(s) as Box<dyn Wire>) })
            }),
            names.collect(),
            metrics,
        );
        // A thread would not know of the simulation's time.
        settings.log.archive.own_threads = false;
        let (options, policies) = history::with_history(&settings, &mut registry)?;
        let opened = Log::open(store, options, clock.clone(), &mut registry).await;
        let log = opened.map_err(|e| e.to_string())?;
        peers.belongs_to(log.manifest().cluster_id, log.incarnation());
        log.watch_peers(Arc::new(peers), MembershipOptions::default(), &mut registry);
        let config = Arc::new(Config::new(settings, log.node_id()));
        policies.follow(config.clone(), &log);
        let wall: WallClock = Arc::new(move || clock.now_ms());
        let groups = Coordinator::new(log.clone(), config.clone(), wall.clone(), &mut registry);
        retention::spawn(log.clone(), config.clone(), wall.clone(), &mut registry);
        let options = CompactionOptions {
            own_thread: false,
            ..config.settings.compaction.unwrap_or_default()
        };
        compaction::start(&log, &config, options, &mut registry).map_err(|e| e.to_string())?;
        let broker = Arc::new(Broker::new(log, config, groups, wall, &mut registry));
        let settings = &broker.config.settings;
        Ok(Simulated {
            dispatcher: Arc::new(Dispatcher::new(broker.clone())),
            limits: ConnectionLimits::new(settings.socket_request_max_bytes, settings.connections_max_idle),
            budgets: server::budgets(settings, &broker),
            stopping: watch::Sender::new(false),
            broker,
        })
    }

    /// The engine.
    pub fn log(&self) -> &Log {
        &self.broker.log
    }

    /// Serves one connection until it ends.
    pub fn serve<S>(&self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let reader = FrameReader::new(reader, self.limits.clone(), self.budgets.clone());
        let peer = Peer::new(0, IpAddr::V4(Ipv4Addr::LOCALHOST), &"PLAINTEXT".into());
        let (dispatcher, stopping) = (self.dispatcher.clone(), self.stopping.subscribe());
        async move {
            let ended = serve(reader, writer, dispatcher, peer, stopping).await;
            tracing::debug!(reason = %ended, "connection closed");
        }
    }

    /// Stops as a process does that is asked to: the log first, so that clients hear where to go.
    pub async fn stop(&self, patience: Duration) -> Result<(), String> {
        self.broker.readiness.drain();
        let closed = tokio::time::timeout(patience, self.broker.log.close()).await;
        self.stopping.send_replace(true);
        tokio::time::sleep(patience / 10).await;
        match closed {
            Ok(closed) => closed.map_err(|e| e.to_string()),
            Err(_) => Err(format!("not closed within {patience:?}")),
        }
    }
}
