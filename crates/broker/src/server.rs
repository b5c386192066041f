//! Accepts connections, within limits, and gives each a task of its own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::broker::Broker;
use crate::budget::ByteBudget;
use crate::config::{Listener, Settings};
use crate::connection::{Ended, serve};
use crate::dispatch::{Dispatcher, Peer};
use crate::frame::{ConnectionLimits, FrameBudgets, FrameReader};

/// Pause after a failed accept: it is most often too many open files, and passes only when some are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Refused connections are logged once in this time.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    socket: TcpListener,
}

impl Bound {
    /// Binds a listener. An empty host is every address of the machine.
    pub(crate) async fn bind(listener: &Listener) -> Result<Bound, BindError> {
        let host = if listener.host.is_empty() {
            "0.0.0.0"
        } else {
            listener.host.as_str()
        };
        let failed = |source| BindError {
            host: host.to_owned(),
            port: listener.port,
            source,
        };
        let socket = TcpListener::bind((host, listener.port)).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Bound {
            name: listener.name.clone(),
            address,
            socket,
        })
    }
}

/// A listener cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {host}:{port}: {source}")]
pub(crate) struct BindError {
    host: String,
    port: u16,
    source: io::Error,
}

/// The accepting side of the broker.
pub(crate) struct Server {
    stopping: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

/// What the tasks of a server share.
struct Shared {
    broker: Arc<Broker>,
    dispatcher: Arc<Dispatcher>,
    limits: ConnectionLimits,
    budgets: FrameBudgets,
    admission: Admission,
}

impl Server {
    /// Starts to accept on all listeners.
    pub(crate) fn start(broker: Arc<Broker>, listeners: Vec<Bound>) -> Server {
        let settings = &broker.config.settings;
        let shared = Arc::new(Shared {
            dispatcher: Arc::new(Dispatcher::new(Arc::clone(&broker))),
            limits: ConnectionLimits::new(settings.socket_request_max_bytes, settings.connections_max_idle),
            budgets: budgets(settings, &broker),
            admission: Admission::new(settings.max_connections, settings.max_connections_per_ip),
            broker,
        });
        let (stopping, _) = watch::channel(false);
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept_all(Arc::clone(&shared), listener, stopping.subscribe()));
        }
        Server { stopping, accepting }
    }

    /// Stops accepting and waits for what is in flight, at most `patience`.
    pub(crate) async fn stop(mut self, patience: Duration) {
        self.stopping.send_replace(true);
        let all_ended = async { while self.accepting.join_next().await.is_some() {} };
        if timeout(patience, all_ended).await.is_err() {
            tracing::warn!(?patience, "some connections did not end in time and are cut");
        }
    }
}

fn budgets(settings: &Settings, broker: &Broker) -> FrameBudgets {
    let produce = settings.memory_budget_bytes;
    FrameBudgets {
        produce: ByteBudget::new(produce, broker.metrics.produce_budget.clone()),
        other: ByteBudget::new(
            FrameBudgets::other_bytes(produce),
            broker.metrics.request_budget.clone(),
        ),
    }
}

async fn accept_all(shared: Arc<Shared>, listener: Bound, mut stopping: watch::Receiver<bool>) {
    let name: Arc<str> = listener.name.as_str().into();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.socket.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = %name, %error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        shared.broker.metrics.connections_accepted.inc();
        let ip = address.ip().to_canonical();
        match shared.admission.admit(ip) {
            Ok(place) => {
                let connection = one_connection(
                    Arc::clone(&shared),
                    stream,
                    address,
                    Arc::clone(&name),
                    place,
                    stopping.clone(),
                );
                connections.spawn(connection);
            }
            Err(limit) => {
                shared.broker.metrics.connection_closed("limit");
                shared.admission.log_refusal(address, limit);
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn one_connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    listener: Arc<str>,
    place: Place,
    stopping: watch::Receiver<bool>,
) {
    // Answers are written whole, so waiting for more to send only costs time.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(peer = %address, %error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = socket2::SockRef::from(&stream).set_keepalive(true) {
        tracing::debug!(peer = %address, %error, "cannot set SO_KEEPALIVE");
    }
    let metrics = &shared.broker.metrics;
    metrics.connections.inc();
    let (reader, writer) = stream.into_split();
    let reader = FrameReader::new(reader, shared.limits.clone(), shared.budgets.clone());
    let peer = Peer::new(address.ip().to_canonical(), &listener);
    let ended = serve(reader, writer, Arc::clone(&shared.dispatcher), peer, stopping).await;
    metrics.connections.dec();
    metrics.connection_closed(ended.reason());
    log_end(&ended, address, &listener);
    drop(place);
}

fn log_end(ended: &Ended, peer: SocketAddr, listener: &str) {
    if ended.is_noteworthy() {
        tracing::warn!(%peer, listener, reason = %ended, "connection closed");
    } else {
        tracing::debug!(%peer, listener, reason = %ended, "connection closed");
    }
}

/// Counts connections against `max.connections` and `max.connections.per.ip`.
#[derive(Debug)]
struct Admission {
    counts: Arc<Mutex<Counts>>,
    max: usize,
    max_per_ip: usize,
    last_logged: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// A connection's place; dropping it makes room.
#[derive(Debug)]
struct Place {
    counts: Arc<Mutex<Counts>>,
    ip: IpAddr,
}

impl Admission {
    fn new(max: usize, max_per_ip: usize) -> Admission {
        Admission {
            counts: Arc::default(),
            max,
            max_per_ip,
            last_logged: Mutex::new(None),
        }
    }

    /// A place for a connection from `ip`, or the limit that forbids it.
    fn admit(&self, ip: IpAddr) -> Result<Place, &'static str> {
        let mut counts = self.counts.lock();
        if counts.total >= self.max {
            return Err("max.connections");
        }
        if counts
            .by_ip
            .get(&ip)
            .is_some_and(|count| *count >= self.max_per_ip)
        {
            return Err("max.connections.per.ip");
        }
        counts.total += 1;
        *counts.by_ip.entry(ip).or_default() += 1;
        Ok(Place {
            counts: Arc::clone(&self.counts),
            ip,
        })
    }

    fn log_refusal(&self, peer: SocketAddr, limit: &'static str) {
        let now = Instant::now();
        let mut last = self.last_logged.lock();
        if last.is_none_or(|at| now.saturating_duration_since(at) >= REFUSALS_LOGGED_EVERY) {
            *last = Some(now);
            tracing::warn!(%peer, limit, "connection refused; others may be too");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        if let Some(count) = counts.by_ip.get_mut(&self.ip) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_total_and_by_address() {
        let admission = Admission::new(3, 2);
        let one = IpAddr::from([10, 0, 0, 1]);
        let two = IpAddr::from([10, 0, 0, 2]);
        let first = admission.admit(one).unwrap();
        let _second = admission.admit(one).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), "max.connections.per.ip");
        let _third = admission.admit(two).unwrap();
        assert_eq!(admission.admit(two).unwrap_err(), "max.connections");
        drop(first);
        drop(admission.admit(one).unwrap());
        assert_eq!(admission.counts.lock().by_ip[&one], 1);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let listener = |port| Listener {
            name: "PLAINTEXT".to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
        };
        let bound = Bound::bind(&listener(0)).await.unwrap();
        let error = Bound::bind(&listener(bound.address.port())).await.unwrap_err();
        let expected = format!("cannot listen on 127.0.0.1:{}: ", bound.address.port());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
