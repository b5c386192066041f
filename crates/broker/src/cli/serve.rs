//! `alluvium serve`: puts a broker together, runs it, and stops it gracefully.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::store::counting::StoreMetrics;
use alluvium_log::store::probe::{ProbeError, probe};
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, SystemClock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use super::config::SettingsArgs;
use super::life::{Ground, Life, Pauses, begin_again, given_way};
use crate::broker::Broker;
use crate::config::{Listener, LogFormat, Settings, Surroundings};
use crate::server::{Bound, bind_advice};
use crate::{http, open_files};

/// A probe whose requests fail is repeated so often: a passing failure must not become a crash loop.
const PROBE_RETRIES: u32 = 5;
/// Pause before a probe is repeated.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(args: SettingsArgs) -> Result<(), String> {
    let surroundings = Surroundings::of_process().map_err(|e| e.to_string())?;
    let (settings, warnings) = args.load(&surroundings).map_err(|e| e.to_string())?;
    init_tracing(&settings)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let mut signals = Signals::listen()?;
    let started = tokio::select! {
        started = Started::begin(settings) => started?,
        () = signals.stop() => return Ok(()),
    };
    print_welcome(started.broker(), started.store());
    started.live(signals.stop()).await
}

/// A broker that is put together, has its addresses, and serves nobody yet.
pub(super) struct Started {
    ground: Ground,
    life: Life,
    listeners: Vec<Bound>,
    /// What answers over HTTP.
    serving: JoinSet<()>,
}

impl Started {
    /// Opens the store, takes the addresses, and opens the log.
    pub(super) async fn begin(mut settings: Settings) -> Result<Started, String> {
        let started_ms = SystemClock.now_ms();
        if let Some(warning) = open_files::raise_limit(settings.max_connections) {
            tracing::warn!("{warning}");
        }
        let store_metrics = StoreMetrics::default();
        // A second broker on a directory has the same ports too: that the directory is taken is what it must hear.
        let opened = match settings.store_kind() {
            StoreKind::S3 => None,
            StoreKind::Embedded | StoreKind::Memory => Some(open_store(&settings, &store_metrics).await?),
        };
        let listeners = bind(&mut settings).await?;
        let shown = http::Shown::default();
        let mut serving = JoinSet::new();
        if let Some(address) = settings.http_listen {
            let bound = http::bind(address).await.map_err(|e| {
                let advice = bind_advice(&e, address.port(), "http.listen");
                format!("cannot listen on {address} for HTTP: {e}{advice}, or an empty one for none")
            })?;
            settings.http_listen = bound.local_addr().ok();
            serving.spawn(http::serve(bound, shown.clone()));
        }
        let begin = async {
            let store = match opened {
                Some(store) => store,
                None => open_bucket(&settings, &store_metrics).await?,
            };
            let ground = Ground {
                settings,
                store,
                store_metrics,
                started_ms,
                shown,
                told_unreachable: Arc::default(),
            };
            let life = Life::begin(&ground).await?;
            Ok((ground, life))
        };
        match begin.await {
            Ok((ground, life)) => Ok(Started {
                ground,
                life,
                listeners,
                serving,
            }),
            Err(error) => {
                // Who tries again finds the port free.
                serving.shutdown().await;
                Err(error)
            }
        }
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.life.broker
    }

    pub(super) fn store(&self) -> &Store {
        &self.ground.store
    }

    /// One life after the other, until `stop` resolves or the process must give way to another.
    pub(super) async fn live(self, stop: impl Future<Output = ()>) -> Result<(), String> {
        let Started {
            ground,
            mut life,
            listeners,
            serving: _until_the_end,
        } = self;
        let mut stop = std::pin::pin!(stop);
        let mut pauses = Pauses::default();
        loop {
            let fenced = tokio::select! {
                fenced = life.serve(&listeners) => fenced,
                () = &mut stop => return life.stop(listeners, ground.settings.shutdown_timeout).await,
            };
            let node_id = life.broker.log.node_id();
            let served = life.leave(&ground).await;
            if let Some(namesake) = &fenced.namesake {
                return Err(given_way(&fenced, namesake, node_id));
            }
            life = tokio::select! {
                life = begin_again(&ground, &listeners, &mut pauses, &fenced, served) => life,
                () = &mut stop => return Ok(()),
            };
        }
    }
}

/// Requests to stop from outside.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, String> {
        let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Resolves when the process is told to stop.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
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

/// A directory and memory are ours and tested with every build; a bucket must prove itself at each start.
async fn open_bucket(settings: &Settings, metrics: &StoreMetrics) -> Result<Store, String> {
    let store = open_store(settings, metrics).await?;
    prove(&store).await?;
    Ok(store)
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

pub(super) fn init_tracing(settings: &Settings) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|e| format!("RUST_LOG: {e}"))?,
        // A store that does not answer is told once in a while; its client would tell of each try.
        Err(_) => EnvFilter::try_new(format!("object_store=warn,{}", settings.log_level))
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

/// An address that means "all of this machine's" is reached at the loopback one.
pub(super) fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Where a client on this machine connects: to what is bound, since a name that is advertised to others may mean
/// nothing here.
pub(super) fn from_here(listener: &Listener) -> String {
    let host = match listener.host.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => reachable(address).to_string(),
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

    #[test]
    fn every_address_of_the_machine_is_reached_at_its_loopback_one() {
        let here = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(here("0.0.0.0"), "127.0.0.1");
        assert_eq!(here("::"), "::1");
        assert_eq!(here("10.0.0.1"), "10.0.0.1");
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
