//! `alluvium serve`: puts a broker together, runs it, and stops it gracefully.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::store::counting::StoreMetrics;
use alluvium_log::store::probe::{ProbeError, probe};
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, Log, SystemClock};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use super::config::SettingsArgs;
use crate::broker::Broker;
use crate::config::{Config, Listener, LogFormat, Settings, Surroundings};
use crate::groups::{Coordinator, WallClock};
use crate::server::{Bound, Server, bind_advice};
use crate::{http, open_files, process_metrics, retention};

/// A probe whose requests fail is repeated so often: a passing failure must not become a crash loop.
const PROBE_RETRIES: u32 = 5;
/// Pause before a probe is repeated.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(args: SettingsArgs) -> Result<(), String> {
    let surroundings = Surroundings::of_process().map_err(|e| e.to_string())?;
    let started_ms = SystemClock.now_ms();
    let (mut settings, warnings) = args.load(&surroundings).map_err(|e| e.to_string())?;
    init_tracing(&settings)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = open_files::raise_limit(settings.max_connections) {
        tracing::warn!("{warning}");
    }
    let failed = |e: std::io::Error| format!("cannot listen for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;

    let mut registry = Registry::default();
    process_metrics::register(&mut registry, started_ms);
    let metrics = StoreMetrics::default();
    metrics.register(&mut registry);
    // A second broker on a directory has the same ports too: that the directory is taken is what it must hear.
    let opened = match settings.store_kind() {
        StoreKind::S3 => None,
        StoreKind::Embedded | StoreKind::Memory => Some(open_store(&settings, &metrics).await?),
    };
    let listeners = bind(&mut settings).await?;
    let shown = http::Shown::default();
    if let Some(address) = settings.http_listen {
        let bound = http::bind(address).await.map_err(|e| {
            let advice = bind_advice(&e, address.port(), "http.listen");
            format!("cannot listen on {address} for HTTP: {e}{advice}, or an empty one for none")
        })?;
        settings.http_listen = bound.local_addr().ok();
        tokio::spawn(http::serve(bound, shown.clone()));
    }
    let shutdown_timeout = settings.shutdown_timeout;

    let start = async {
        let store = match opened {
            Some(store) => store,
            None => open_store(&settings, &metrics).await?,
        };
        start(settings, store, registry, shown).await
    };
    let started = tokio::select! {
        started = start => Some(started?),
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
        let why = why.why;
        return Err(format!("stopped: {why}. nothing acknowledged is lost"));
    }
    tracing::info!("stopping");
    // The whole must be over before whoever stops us loses patience, wherever the store is.
    let deadline = Instant::now() + shutdown_timeout;
    // Requests that wait for publication are answered while the connections drain.
    server.stop(shutdown_timeout / 2).await;
    match tokio::time::timeout_at(deadline, broker.log.close()).await {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!(
            "stopped after {shutdown_timeout:?} (shutdown.timeout.ms) without closing the log{}; nothing \
             acknowledged is lost, the next start recovers it",
            broker
                .log
                .store_trouble()
                .map_or_else(String::new, |why| format!(", because the store fails: {why}")),
        )),
    }
}

async fn open_store(settings: &Settings, metrics: &StoreMetrics) -> Result<Store, String> {
    let options = StoreOptions {
        metrics: Some(metrics.clone()),
        ..StoreOptions::default()
    };
    let opened = Store::open(&settings.store_url, options).await;
    opened.map_err(|e| e.to_string())
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

async fn start(
    settings: Settings,
    store: Store,
    mut registry: Registry,
    shown: http::Shown,
) -> Result<(Arc<Broker>, Store), String> {
    // A directory and memory are ours and tested with every build; a bucket must prove itself at each start.
    if store.kind == StoreKind::S3 {
        prove(&store).await?;
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = Log::open(store.clone(), settings.log.clone(), clock.clone(), &mut registry).await;
    let log = opened.map_err(|e| e.to_string())?;
    let config = Arc::new(Config::new(settings, log.node_id()));
    for line in config.overruled(&log.manifest()) {
        tracing::warn!("{line}");
    }
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
    let list = |l: &[Listener]| l.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let bootstrap = settings.listeners.first().map_or_else(String::new, from_here);
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
        broker.log.node_id()
    );
    println!();
    println!("Try it:");
    println!("  echo 'hello world' | kcat -b {bootstrap} -t greetings -P");
    println!("  kcat -b {bootstrap} -t greetings -C -o beginning -e");
}

/// Where a client on this machine connects: to what is bound, since a name that is advertised to others may mean
/// nothing here.
fn from_here(listener: &Listener) -> String {
    let host = match listener.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        _ => listener.host.clone(),
    };
    match host.contains(':') {
        true => format!("[{host}]:{}", listener.port),
        false => format!("{host}:{}", listener.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn the_page_of_metrics_lists_what_is_there() {
        let settings = Settings::from_pairs([("store.url", "memory://")]).unwrap();
        let metrics = StoreMetrics::default();
        let mut registry = Registry::default();
        process_metrics::register(&mut registry, 0);
        metrics.register(&mut registry);
        let store = open_store(&settings, &metrics).await.unwrap();
        let shown = http::Shown::default();
        let (broker, _) = start(settings, store, registry, shown.clone()).await.unwrap();
        // Families that appear with their first member.
        broker.metrics.request_error("Fetch", 3);
        let there: BTreeSet<(String, String)> = shown
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

    #[test]
    fn the_hint_names_an_address_that_works_from_here() {
        let hint = |host: &str| {
            from_here(&Listener {
                name: "PLAINTEXT".into(),
                host: host.into(),
                port: 9092,
            })
        };
        assert_eq!(hint("0.0.0.0"), "127.0.0.1:9092");
        assert_eq!(hint("::"), "[::1]:9092");
        assert_eq!(hint("fe80::1"), "[fe80::1]:9092");
        assert_eq!(hint("10.0.0.7"), "10.0.0.7:9092");
        assert_eq!(hint("localhost"), "localhost:9092");
    }
}
