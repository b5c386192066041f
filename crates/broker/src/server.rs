//! Accepts connections, within limits, and gives each a task of its own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::frame::{ConnectionLimits, FrameBudgets, FrameError, FrameReader};
use crate::log_pace::{LogPace, left_out};

/// Pause after a failed accept: it is most often too many open files, and passes only when some are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Shared, so that it stays bound while nobody accepts.
    socket: Arc<TcpListener>,
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
            socket: Arc::new(socket),
        })
    }

    /// Accepts connections and closes them at once, for ever.
    pub(crate) async fn refuse_all(&self) {
        loop {
            match self.socket.accept().await {
                Ok((connection, _)) => drop(connection),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// A listener cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {source}{}", self.address(), bind_advice(source, *port, "--listeners"))]
pub(crate) struct BindError {
    host: String,
    port: u16,
    source: io::Error,
}

impl BindError {
    fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What to do about an address that cannot be bound. `setting` is what names it.
pub(crate) fn bind_advice(error: &io::Error, port: u16, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; another program has this port: stop it or choose another {setting}")
        }
        io::ErrorKind::PermissionDenied if port < 1024 => {
            format!("; ports below 1024 need a right of their own: choose another {setting}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "; this machine does not have this address: choose another {setting}, such as 0.0.0.0 for all it has"
            )
        }
        // What a resolver says has no kind; the number of a system call's error is missing then.
        _ if error.raw_os_error().is_none() => {
            format!("; this machine does not know this host name: choose another {setting}")
        }
        _ => format!("; choose another {setting}"),
    }
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
    /// Connections so far; each has its number in the log.
    connections: AtomicU64,
    /// Accepts that failed, connections over a limit, clients that speak something else: each comes in crowds.
    failed_accepts: LogPace,
    refusals: LogPace,
    strangers: LogPace,
}

impl Server {
    /// Starts to accept on all listeners.
    pub(crate) fn start(broker: Arc<Broker>, listeners: &[Bound]) -> Server {
        let settings = &broker.config.settings;
        let shared = Arc::new(Shared {
            dispatcher: Arc::new(Dispatcher::new(Arc::clone(&broker))),
            limits: ConnectionLimits::new(settings.socket_request_max_bytes, settings.connections_max_idle),
            budgets: budgets(settings, &broker),
            admission: Admission::new(settings.max_connections, settings.max_connections_per_ip),
            connections: AtomicU64::new(0),
            failed_accepts: LogPace::default(),
            refusals: LogPace::default(),
            strangers: LogPace::default(),
            broker,
        });
        let (stopping, _) = watch::channel(false);
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let (name, socket) = (listener.name.as_str().into(), Arc::clone(&listener.socket));
            accepting.spawn(accept_all(
                Arc::clone(&shared),
                name,
                socket,
                stopping.subscribe(),
            ));
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

pub(crate) fn budgets(settings: &Settings, broker: &Broker) -> FrameBudgets {
    let produce = settings.memory_budget_bytes;
    FrameBudgets {
        produce: ByteBudget::new(produce, broker.metrics.produce_budget.clone()),
        other: ByteBudget::new(
            FrameBudgets::other_bytes(produce),
            broker.metrics.request_budget.clone(),
        ),
    }
}

async fn accept_all(
    shared: Arc<Shared>,
    name: Arc<str>,
    socket: Arc<TcpListener>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = socket.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(more) = shared.failed_accepts.due(Instant::now()) {
                    let advice = accept_advice(&error);
                    let more = left_out(more);
                    tracing::warn!(listener = %name, %error, "cannot accept a connection{advice}{more}");
                }
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
                if let Some(more) = shared.refusals.due(Instant::now()) {
                    let more = left_out(more);
                    tracing::warn!(peer = %address, limit, "connection refused{more}");
                }
            }
        }
    }
    drop(socket);
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
    let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::debug!(connection = number, peer = %address, listener = %listener, "connection accepted");
    let peer = Peer::new(number, address.ip().to_canonical(), &listener);
    let ended = serve(reader, writer, Arc::clone(&shared.dispatcher), peer, stopping).await;
    metrics.connections.dec();
    metrics.connection_closed(ended.reason());
    log_end(&ended, address, &listener, &shared.strangers);
    drop(place);
}

/// What to do when no connection can be accepted, if that is known.
fn accept_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::MFILE.raw_os_error() => ": raise ulimit -n",
        Some(code) if code == rustix::io::Errno::NFILE.raw_os_error() => ": raise fs.file-max",
        _ => "",
    }
}

fn log_end(ended: &Ended, peer: SocketAddr, listener: &str, strangers: &LogPace) {
    if let Ended::Frame(FrameError::OtherProtocol(_)) = ended {
        // A client that is set up for TLS comes again and again.
        if let Some(more) = strangers.due(Instant::now()) {
            let more = left_out(more);
            tracing::warn!(%peer, listener, reason = %ended, "connection closed{more}");
        }
    } else if ended.is_noteworthy() {
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
        assert!(
            error
                .to_string()
                .ends_with("stop it or choose another --listeners"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_comes_with_what_to_do() {
        let refused = async |host: &str| {
            let listener = Listener {
                name: "PLAINTEXT".to_owned(),
                host: host.to_owned(),
                port: 9092,
            };
            Bound::bind(&listener).await.unwrap_err().to_string()
        };
        // From the range for documentation: no machine has it.
        let elsewhere = refused("192.0.2.1").await;
        assert!(
            elsewhere.contains("192.0.2.1:9092: ")
                && elsewhere.contains("choose another --listeners, such as"),
            "{elsewhere}"
        );
        let unknown = io::Error::other("failed to lookup address information");
        assert!(bind_advice(&unknown, 1, "--listeners").contains("does not know this host name"));
        let denied = bind_advice(&io::ErrorKind::PermissionDenied.into(), 80, "--listeners");
        assert!(denied.contains("ports below 1024"), "{denied}");
        let v6 = BindError {
            host: "::1".into(),
            port: 9,
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert!(v6.to_string().starts_with("cannot listen on [::1]:9: "), "{v6}");
    }

    #[test]
    fn too_many_open_files_come_with_what_to_do() {
        let error = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert_eq!(accept_advice(&error), ": raise ulimit -n");
        assert_eq!(accept_advice(&io::ErrorKind::ConnectionAborted.into()), "");
    }
}
