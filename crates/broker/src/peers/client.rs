//! Pings other brokers over connections that it keeps.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use alluvium_log::Incarnation;
use alluvium_log::manifest::{Endpoint, StreamEntry};
use alluvium_log::membership::{Peers, PingError, Pong};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::PeerMetrics;
use super::message::{ANSWER_BYTES_MAX, Malformed, Ping, decode_answer};
use crate::errors::ErrorCode;
use crate::log_pace::{LogPace, left_out};

/// How long a peer may take to answer, a new connection included.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that nobody used for so long is closed: its broker is gone from the cluster.
const UNUSED: Duration = Duration::from_secs(60);

/// What goes wrong with one exchange.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its answer cannot be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("its answer has a length of {0}")]
    Length(i32),
    #[error("it answers with error {0}")]
    Error(i16),
}

/// A connection to a peer.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

/// Connects to an endpoint.
pub(crate) type Dial = Box<dyn Fn(&Endpoint) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> + Send + Sync>;

/// One kept connection; its lock lets pings of one peer take turns.
type Kept = Arc<tokio::sync::Mutex<Option<Box<dyn Wire>>>>;

/// Asks other brokers for a sign of life. Clones share their connections.
#[derive(Clone)]
pub(crate) struct PeerClient {
    shared: Arc<Shared>,
}

struct Shared {
    dial: Dial,
    /// Cluster and incarnation, known once the log is open.
    own: OnceLock<(Uuid, Incarnation)>,
    /// Names of our own listeners: a peer's endpoint of the same name is in the same network.
    listeners: Vec<String>,
    kept: Mutex<HashMap<(String, u16), (Kept, Instant)>>,
    next_correlation: AtomicI32,
    metrics: PeerMetrics,
    strangers: LogPace,
}

impl PeerClient {
    pub(crate) fn new(listeners: Vec<String>, metrics: PeerMetrics) -> PeerClient {
        PeerClient::dialing(Box::new(dial_tcp), listeners, metrics)
    }

    /// One that connects in its own way.
    pub(crate) fn dialing(dial: Dial, listeners: Vec<String>, metrics: PeerMetrics) -> PeerClient {
        let shared = Shared {
            dial,
            own: OnceLock::new(),
            listeners,
            kept: Mutex::default(),
            next_correlation: AtomicI32::new(1),
            metrics,
            strangers: LogPace::default(),
        };
        PeerClient {
            shared: Arc::new(shared),
        }
    }

    /// From now on it asks in the name of this broker start; before that it asks nobody. The first call counts.
    pub(crate) fn belongs_to(&self, cluster: Uuid, incarnation: Incarnation) {
        let _ = self.shared.own.set((cluster, incarnation));
    }
}

impl Peers for PeerClient {
    /// Only a connection that nobody accepts counts as refused. One that is closed again does not: a broker that has
    /// no room for another one, or is between two lives, does that, and so does a proxy in front of nothing.
    fn ping(
        &self,
        to: &StreamEntry,
        _: Incarnation,
        manifest_version: u64,
    ) -> BoxFuture<'static, Result<Pong, PingError>> {
        let (shared, to) = (Arc::clone(&self.shared), to.clone());
        Box::pin(async move { shared.ping(&to, manifest_version).await })
    }
}

impl Shared {
    async fn ping(&self, to: &StreamEntry, manifest_version: u64) -> Result<Pong, PingError> {
        let (Some(own), Some(endpoint)) = (self.own.get(), self.endpoint(to)) else {
            return Err(PingError::NoAnswer);
        };
        let ping = Ping {
            cluster: own.0,
            incarnation: own.1,
            manifest_version,
        };
        let kept = self.keep(endpoint);
        let (outcome, result) = match timeout(PATIENCE, self.exchange(&kept, endpoint, &ping)).await {
            Ok(Ok(pong)) => ("answered", Ok(pong)),
            Ok(Err(Failed::Io(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ("refused", Err(PingError::Refused))
            }
            Ok(Err(Failed::Io(_))) | Err(_) => ("silent", Err(PingError::NoAnswer)),
            // It has lost the store, and is as good as silent.
            Ok(Err(Failed::Error(code))) if code == ErrorCode::KafkaStorageError.code() => {
                ("silent", Err(PingError::NoAnswer))
            }
            Ok(Err(error)) => {
                // Whoever is there is no broker of this cluster that we understand.
                if let Some(more) = self.strangers.due(Instant::now()) {
                    let (Endpoint { host, port }, more) = (endpoint, left_out(more));
                    tracing::warn!(
                        node_id = to.node_id,
                        "cannot talk to the broker at {host}:{port}: {error}{more}"
                    );
                }
                ("stranger", Err(PingError::NoAnswer))
            }
        };
        self.metrics.count(outcome);
        result
    }

    /// The peer's endpoint of the first of our listeners that it has too, else its first.
    fn endpoint<'s>(&self, of: &'s StreamEntry) -> Option<&'s Endpoint> {
        let same = self.listeners.iter().find_map(|name| of.endpoints.get(name));
        same.or_else(|| of.endpoints.values().next())
    }

    fn keep(&self, endpoint: &Endpoint) -> Kept {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        kept.retain(|_, (_, used)| now.saturating_duration_since(*used) < UNUSED);
        let (connection, used) = kept
            .entry((endpoint.host.clone(), endpoint.port))
            .or_insert_with(|| (Kept::default(), now));
        *used = now;
        Arc::clone(connection)
    }

    /// One request and its answer, over the kept connection if it still works. It is taken out meanwhile: what was
    /// given up half way is not used again.
    async fn exchange(&self, kept: &Kept, endpoint: &Endpoint, ping: &Ping) -> Result<Pong, Failed> {
        let correlation_id = self.next_correlation.fetch_add(1, Ordering::Relaxed);
        let mut kept = kept.lock().await;
        if let Some(mut connection) = kept.take() {
            let asked = ask(&mut *connection, ping, correlation_id).await;
            if let Ok(_) | Err(Failed::Error(_)) = &asked {
                *kept = Some(connection);
                return asked;
            }
        }
        // It closed the old one, or never had one. If nobody listens any more this is where it shows.
        let mut connection = (self.dial)(endpoint).await?;
        let asked = ask(&mut *connection, ping, correlation_id).await;
        if let Ok(_) | Err(Failed::Error(_)) = &asked {
            *kept = Some(connection);
        }
        asked
    }
}

fn dial_tcp(endpoint: &Endpoint) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> {
    let Endpoint { host, port } = endpoint.clone();
    Box::pin(async move {
        let connection = TcpStream::connect((host.as_str(), port)).await?;
        connection.set_nodelay(true)?;
        Ok::<Box<dyn Wire>, _>(Box::new(connection))
    })
}

async fn ask(connection: &mut dyn Wire, ping: &Ping, correlation_id: i32) -> Result<Pong, Failed> {
    connection.write_all(&ping.encode(correlation_id)).await?;
    let claimed = connection.read_i32().await?;
    let length = usize::try_from(claimed).map_err(|_| Failed::Length(claimed))?;
    let mut buffer = [0; ANSWER_BYTES_MAX];
    let answer = buffer.get_mut(..length).ok_or(Failed::Length(claimed))?;
    connection.read_exact(answer).await?;
    decode_answer(answer, correlation_id)?.map_err(Failed::Error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::stream;
    use crate::errors::ErrorCode;
    use crate::peers::message::{Received, decode_request, encode_answer};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    const CLUSTER: Uuid = Uuid::from_u128(5);
    const PONG: Pong = Pong {
        incarnation: 8,
        manifest_version: 21,
        draining: false,
    };

    fn client() -> PeerClient {
        let client = PeerClient::new(vec!["IN".into(), "OUT".into()], PeerMetrics::default());
        client.belongs_to(CLUSTER, 4);
        client
    }

    fn at(port: u16) -> StreamEntry {
        stream(2, true, &[("IN", "127.0.0.1", port)])
    }

    fn counts(client: &PeerClient) -> [u64; 4] {
        super::super::OUTCOMES.map(|outcome| {
            let label = super::super::OutcomeLabel { outcome };
            client.shared.metrics.pings.get_or_create(&label).get()
        })
    }

    /// A peer that treats each connection as `with` says.
    async fn peer<F, S>(with: S) -> (u16, JoinHandle<()>)
    where
        F: Future<Output = ()> + Send,
        S: Fn(TcpStream) -> F + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                with(connection).await;
            }
        });
        (port, task)
    }

    /// Answers `times` requests of a connection, then closes it.
    async fn answer(mut connection: TcpStream, times: usize, reply: impl Fn(i32, Ping) -> Vec<u8>) {
        for _ in 0..times {
            let Ok(length) = connection.read_i32().await else {
                return;
            };
            let mut request = vec![0; usize::try_from(length).unwrap()];
            connection.read_exact(&mut request).await.unwrap();
            let Ok(Received::Ping { correlation_id, ping }) = decode_request(&request) else {
                panic!("no ping");
            };
            connection.write_all(&reply(correlation_id, ping)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_peer_answers_over_one_connection_and_over_a_new_one_when_that_is_closed() {
        let (port, _peer) = peer(|connection| {
            answer(connection, 3, |id, ping| {
                let said = (ping.cluster, ping.incarnation, ping.manifest_version);
                assert_eq!(said, (CLUSTER, 4, 20));
                encode_answer(id, Ok(PONG))
            })
        })
        .await;
        let client = client();
        for _ in 0..8 {
            assert_eq!(client.ping(&at(port), 8, 20).await, Ok(PONG));
        }
        assert_eq!(counts(&client), [8, 0, 0, 0]);
        assert_eq!(client.shared.kept.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_dead_process_refuses_also_after_it_answered() {
        let (port, task) =
            peer(|connection| answer(connection, 9, |id, _| encode_answer(id, Ok(PONG)))).await;
        let client = client();
        assert_eq!(client.ping(&at(port), 8, 20).await, Ok(PONG));
        task.abort();
        assert!(task.await.is_err());
        for _ in 0..2 {
            assert_eq!(client.ping(&at(port), 8, 20).await, Err(PingError::Refused));
        }
        assert_eq!(counts(&client), [1, 2, 0, 0]);
    }

    #[tokio::test]
    async fn a_closed_connection_is_no_refusal() {
        let (port, _peer) = peer(|connection| async { drop(connection) }).await;
        let client = client();
        assert_eq!(client.ping(&at(port), 8, 20).await, Err(PingError::NoAnswer));
        assert_eq!(counts(&client), [0, 0, 1, 0]);
    }

    #[tokio::test]
    async fn who_takes_too_long_is_silent_and_asked_over_a_new_connection() {
        let (port, _peer) = peer(|mut connection| async move {
            let mut byte = [0];
            connection.read_exact(&mut byte).await.unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                drop(connection);
            });
        })
        .await;
        let client = client();
        let began = Instant::now();
        assert_eq!(client.ping(&at(port), 8, 20).await, Err(PingError::NoAnswer));
        assert!(
            (PATIENCE..PATIENCE * 3).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        let kept = client.shared.keep(&at(port).endpoints["IN"]);
        assert!(kept.lock().await.is_none());
    }

    #[tokio::test]
    async fn strangers_and_garbage_are_no_answer() {
        let replies: [fn(i32) -> Vec<u8>; 5] = [
            |id| encode_answer(id, Err(ErrorCode::InconsistentClusterId)),
            |id| encode_answer(id + 1, Ok(PONG)),
            |_| i32::MAX.to_be_bytes().to_vec(),
            |_| (-1_i32).to_be_bytes().to_vec(),
            |_| [&8_i32.to_be_bytes()[..], &[0; 8]].concat(),
        ];
        for reply in replies {
            let (port, _peer) = peer(move |connection| answer(connection, 1, move |id, _| reply(id))).await;
            let client = client();
            assert_eq!(client.ping(&at(port), 8, 20).await, Err(PingError::NoAnswer));
            assert_eq!(counts(&client), [0, 0, 0, 1]);
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_before_the_cluster_is_known() {
        let client = PeerClient::new(vec![], PeerMetrics::default());
        assert_eq!(client.ping(&at(1), 8, 20).await, Err(PingError::NoAnswer));
        assert_eq!(counts(&client), [0; 4]);
        client.belongs_to(CLUSTER, 4);
        let nowhere = stream(2, true, &[]);
        assert_eq!(client.ping(&nowhere, 8, 20).await, Err(PingError::NoAnswer));
    }

    #[test]
    fn the_endpoint_is_that_of_our_own_network_if_there_is_one() {
        let client = client();
        let port = |endpoints: &[(&str, &str, u16)]| {
            client
                .shared
                .endpoint(&stream(2, true, endpoints))
                .map(|endpoint| endpoint.port)
        };
        assert_eq!(port(&[("AAA", "h", 1), ("IN", "h", 2), ("OUT", "h", 3)]), Some(2));
        assert_eq!(port(&[("AAA", "h", 1), ("OUT", "h", 3)]), Some(3));
        assert_eq!(port(&[("BBB", "h", 2), ("AAA", "h", 1)]), Some(1));
        assert_eq!(port(&[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_brokers_that_left_are_let_go() {
        let client = client();
        let endpoint = |port| Endpoint {
            host: "h".into(),
            port,
        };
        client.shared.keep(&endpoint(1));
        tokio::time::advance(UNUSED / 2).await;
        client.shared.keep(&endpoint(2));
        tokio::time::advance(UNUSED / 2).await;
        client.shared.keep(&endpoint(3));
        let mut ports: Vec<u16> = client.shared.kept.lock().keys().map(|(_, port)| *port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [2, 3]);
    }
}
