//! `alluvium serve`: puts a broker together, runs it, and stops it gracefully.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::store::counting::StoreMetrics;
use alluvium_log::store::probe::{ProbeError, probe};
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, Log, SystemClock};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::config::SettingsArgs;
use crate::broker::Broker;
use crate::config::{Config, LogFormat, Settings, Surroundings};
use crate::groups::{Coordinator, WallClock};
use crate::server::{Bound, Server};
use crate::{http, retention};

/// Connections that do not end within this time are cut at a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// The log is closed within this time, or left to the next start to recover.
const CLOSE: Duration = Duration::from_secs(20);
/// A probe whose requests fail is repeated so often: a passing failure must not become a crash loop.
const PROBE_RETRIES: u32 = 5;
/// Pause before a probe is repeated.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(args: SettingsArgs) -> Result<(), String> {
    let surroundings = Surroundings::of_process().map_err(|e| e.to_string())?;
    let (mut settings, warnings) = args.load(&surroundings).map_err(|e| e.to_string())?;
    init_tracing(&settings)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let failed = |e: std::io::Error| format!("cannot listen for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;

    let listeners = bind(&mut settings).await?;
    let shown = http::Shown::default();
    if let Some(address) = settings.http_listen {
        let bound = http::bind(address).await.map_err(|e| {
            format!("cannot listen on {address} for HTTP: {e}; choose another http.listen, or an empty one for none")
        })?;
        settings.http_listen = bound.local_addr().ok();
        tokio::spawn(http::serve(bound, shown.clone()));
    }

    let started = tokio::select! {
        started = start(settings, shown) => Some(started?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let Some((broker, store)) = started else {
        return Ok(());
    };
    print_welcome(&broker, &store);
    let server = Server::start(broker.clone(), listeners);

    let lost = tokio::select! {
        why = broker.log.fenced() => Some(why),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    broker.readiness.drain();
    if let Some(why) = lost {
        return Err(format!(
            "stopped: {why}. One broker serves a bucket at a time; nothing acknowledged is lost"
        ));
    }
    tracing::info!("stopping");
    // Requests that wait for publication are answered while the connections drain.
    server.stop(DRAIN).await;
    match tokio::time::timeout(CLOSE, broker.log.close()).await {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!(
            "the log did not close within {CLOSE:?}; the next start recovers it"
        )),
    }
}

async fn bind(settings: &mut Settings) -> Result<Vec<Bound>, String> {
    let mut listeners = vec![];
    for listener in &settings.listeners {
        listeners.push(Bound::bind(listener).await.map_err(|e| e.to_string())?);
    }
    let ports: BTreeMap<String, u16> = listeners
        .iter()
        .map(|b| (b.name.clone(), b.address.port()))
        .collect();
    settings.set_bound_ports(&ports);
    Ok(listeners)
}

async fn start(settings: Settings, shown: http::Shown) -> Result<(Arc<Broker>, Store), String> {
    let mut registry = Registry::default();
    let metrics = StoreMetrics::default();
    metrics.register(&mut registry);
    let options = StoreOptions {
        metrics: Some(metrics),
        ..StoreOptions::default()
    };
    let store = Store::open(&settings.store_url, options)
        .await
        .map_err(|e| e.to_string())?;
    // A directory and memory are ours and tested with every build; a bucket must prove itself at each start.
    if store.kind == StoreKind::S3 {
        prove(&store).await?;
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = Log::open(store.clone(), settings.log.clone(), clock.clone(), &mut registry).await;
    let log = opened.map_err(|e| e.to_string())?;
    let config = Arc::new(Config::new(settings));
    let wall: WallClock = Arc::new(move || clock.now_ms());
    let groups = Coordinator::new(
        log.clone(),
        config.clone(),
        wall.clone(),
        registry.sub_registry_with_prefix("alluvium"),
    );
    retention::spawn(log.clone(), config.clone(), wall.clone(), &mut registry);
    let broker = Arc::new(Broker::new(log, config, groups, wall, &mut registry));
    shown.started(broker.clone(), registry);
    Ok((broker, store))
}

/// Probes a bucket; requests that fail are given some time to pass, a store that breaks its promises is not.
async fn prove(store: &Store) -> Result<(), String> {
    let mut tries = 0;
    loop {
        match probe(store).await {
            Ok(_) => return Ok(()),
            Err(error @ ProbeError::Failed { .. }) if tries < PROBE_RETRIES => {
                tries += 1;
                tracing::warn!(%error, tries, "the store could not be probed; trying again");
                tokio::time::sleep(PROBE_PAUSE).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn init_tracing(settings: &Settings) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|e| format!("RUST_LOG: {e}"))?,
        Err(_) => EnvFilter::try_new(&settings.log_level)
            .map_err(|e| format!("log.level '{}': {e}", settings.log_level))?,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_target(false).init(),
    }
    Ok(())
}

/// Where it listens, where the data is, and what to type next.
fn print_welcome(broker: &Broker, store: &Store) {
    let settings = &broker.config.settings;
    let list =
        |l: &[crate::config::Listener]| l.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = settings.advertised_listeners.first();
    let bootstrap = first.map_or_else(String::new, |l| format!("{}:{}", l.host, l.port));
    println!("Alluvium {} is ready.", env!("CARGO_PKG_VERSION"));
    println!("  listening   {}", list(&settings.listeners));
    println!("  advertised  {}", list(&settings.advertised_listeners));
    println!("  data        {}", store.display);
    if let Some(http) = settings.http_listen {
        println!("  metrics     http://{http}/metrics");
    }
    println!(
        "  cluster     {} (node.id {})",
        broker.log.manifest().cluster_id,
        settings.node_id
    );
    println!();
    println!("Try it:");
    println!("  echo 'hello world' | kcat -b {bootstrap} -t greetings -P");
    println!("  kcat -b {bootstrap} -t greetings -C -o beginning -e");
}
