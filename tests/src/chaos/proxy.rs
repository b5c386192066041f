//! A TCP proxy that stands for a network: it passes bytes on, holds them back in either direction, or resets.
//!
//! A direction that is held back behaves as if packets were lost: connections stay open, new ones are taken and
//! nothing comes through; when the network heals, what was on its way arrives late. The connections between brokers
//! can be cut alone: they are known by the key of a request that only brokers send.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::sniffer::Sniffer;

/// Bytes that are under way in one direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Time that the end of a task may take.
const CLOSING: std::time::Duration = std::time::Duration::from_secs(5);

/// How a network is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Manner {
    /// It is not.
    #[default]
    Whole,
    /// Connections are reset, new ones are closed at once.
    Refuse,
    /// Nothing comes through in either direction.
    Silent,
    /// Requests come through, answers do not.
    Mute,
}

/// Which connections a manner holds for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weather {
    /// For every connection.
    pub(super) all: Manner,
    /// For connections between brokers.
    pub(super) peers: Manner,
}

impl Weather {
    /// What holds for a connection.
    fn of(self, is_peer: bool) -> Manner {
        match self.all {
            Manner::Whole if is_peer => self.peers,
            all => all,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Requests,
    Answers,
}

/// What a direction does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Flows,
    Waits,
    Ends,
}

fn does(manner: Manner, way: Way) -> Does {
    match (manner, way) {
        (Manner::Whole, _) | (Manner::Mute, Way::Requests) => Does::Flows,
        (Manner::Silent, _) | (Manner::Mute, Way::Answers) => Does::Waits,
        (Manner::Refuse, _) => Does::Ends,
    }
}

/// A running proxy. Dropping it cuts everything.
#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    runtime: Handle,
    upstream: Arc<OnceLock<SocketAddr>>,
    weather: watch::Sender<Weather>,
    /// Nothing while the proxy does not listen.
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on this address and passes connections on to what [`Proxy::leads_to`] will name.
    pub(super) fn start(runtime: &Handle, listen: SocketAddr) -> io::Result<Proxy> {
        let mut proxy = Proxy {
            address: listen,
            runtime: runtime.clone(),
            upstream: Arc::new(OnceLock::new()),
            weather: watch::Sender::new(Weather::default()),
            accepting: None,
        };
        proxy.open()?;
        Ok(proxy)
    }

    /// Listens again after [`Proxy::close`].
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.accepting.is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        self.address = listener.local_addr()?;
        let _guard = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let accepting = accept(listener, self.upstream.clone(), self.weather.subscribe());
        self.accepting = Some(self.runtime.spawn(accepting));
        Ok(())
    }

    /// Does not listen any more, as the machine of a process that has ended: connections are refused by the system.
    pub(super) fn close(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // The listener goes with the task, at once or after what it does now.
            let begun = std::time::Instant::now();
            while !accepting.is_finished() && begun.elapsed() < CLOSING {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Names the other side, once.
    pub(super) fn leads_to(&self, upstream: SocketAddr) {
        let named = self.upstream.get_or_init(|| upstream);
        assert_eq!(*named, upstream, "a proxy leads to one place");
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the network, for open connections too.
    pub(super) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Connections end by themselves: their channel is closed.
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: Arc<OnceLock<SocketAddr>>,
    weather: watch::Receiver<Weather>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let refused = weather.borrow().all == Manner::Refuse;
        if let (false, Some(upstream)) = (refused, upstream.get()) {
            tokio::spawn(connection(stream, *upstream, weather.clone()));
        }
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, weather: watch::Receiver<Weather>) {
    let peer = Arc::new(AtomicBool::new(false));
    // While nothing comes through, there is no connection to the other side either.
    let mut waiting = Gate::new(weather.clone(), peer.clone(), Way::Requests);
    if !waiting.opens().await {
        return;
    }
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(
        from_client,
        to_server,
        Gate::new(weather.clone(), peer.clone(), Way::Requests),
        Some(Sniffer::default()),
    );
    let answers = pump(
        from_server,
        to_client,
        Gate::new(weather, peer, Way::Answers),
        None,
    );
    // A side that has ended its requests may still wait for answers; a cut ends both.
    tokio::select! {
        End::Cut = requests => {}
        End::Cut = answers => {}
        else => {}
    }
}

/// How a direction came to its end.
#[derive(Debug)]
enum End {
    /// The sender said that nothing more comes.
    Finished,
    /// An error or a reset.
    Cut,
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut gate: Gate,
    mut sniffer: Option<Sniffer>,
) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = gate.cut() => return End::Cut,
        };
        let bytes = match read {
            Ok(0) => {
                if gate.opens().await {
                    let _ = to.shutdown().await;
                    return End::Finished;
                }
                return End::Cut;
            }
            Ok(count) => &buffer[..count],
            Err(_) => return End::Cut,
        };
        if let Some(sniffer) = &mut sniffer
            && sniffer.sees_peer(bytes)
        {
            gate.peer.store(true, Ordering::Relaxed);
        }
        if !gate.opens().await {
            return End::Cut;
        }
        let written = tokio::select! {
            written = to.write_all(bytes) => written.is_ok(),
            () = gate.cut() => false,
        };
        if !written {
            return End::Cut;
        }
    }
}

/// Waits for the weather that lets one direction of a connection through.
#[derive(Debug)]
struct Gate {
    weather: watch::Receiver<Weather>,
    peer: Arc<AtomicBool>,
    way: Way,
}

impl Gate {
    fn new(weather: watch::Receiver<Weather>, peer: Arc<AtomicBool>, way: Way) -> Gate {
        Gate { weather, peer, way }
    }

    fn now(&mut self) -> Does {
        let weather = *self.weather.borrow_and_update();
        does(weather.of(self.peer.load(Ordering::Relaxed)), self.way)
    }

    /// True when bytes may pass, false when the connection ends.
    async fn opens(&mut self) -> bool {
        loop {
            match self.now() {
                Does::Flows => return true,
                Does::Ends => return false,
                Does::Waits => {
                    if self.weather.changed().await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    /// Returns when the connection ends.
    async fn cut(&mut self) {
        while self.now() != Does::Ends {
            if self.weather.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream as Blocking;
    use std::time::Duration;

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(20);

    /// A proxy in front of something that sends back what it gets.
    fn echo(runtime: &tokio::runtime::Runtime) -> Proxy {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(runtime.handle(), "127.0.0.1:0".parse().unwrap()).unwrap();
        proxy.leads_to(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..count]);
                    }
                });
            }
        });
        proxy
    }

    fn connect(proxy: &Proxy) -> Blocking {
        Blocking::connect(proxy.address()).unwrap()
    }

    /// What comes back in this time; nothing when the connection is open and silent.
    fn answer(stream: &mut Blocking, patience: Duration) -> Option<Vec<u8>> {
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(count) => Some(buffer[..count].to_vec()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(_) => Some(Vec::new()),
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    fn all(manner: Manner) -> Weather {
        Weather {
            all: manner,
            peers: Manner::Whole,
        }
    }

    #[test]
    fn what_is_held_back_arrives_when_the_network_heals() {
        let runtime = runtime();
        let proxy = echo(&runtime);
        let mut stream = connect(&proxy);
        stream.write_all(b"one").unwrap();
        assert_eq!(answer(&mut stream, LONG).unwrap(), b"one");
        for manner in [Manner::Silent, Manner::Mute] {
            proxy.set(all(manner));
            stream.write_all(b"two").unwrap();
            assert_eq!(answer(&mut stream, SHORT), None, "{manner:?}");
            let mut new = connect(&proxy);
            new.write_all(b"new").unwrap();
            assert_eq!(answer(&mut new, SHORT), None, "{manner:?}");
            proxy.set(Weather::default());
            assert_eq!(answer(&mut stream, LONG).unwrap(), b"two");
            assert_eq!(answer(&mut new, LONG).unwrap(), b"new");
        }
    }

    #[test]
    fn a_refusal_cuts_old_connections_and_new_ones() {
        let runtime = runtime();
        let proxy = echo(&runtime);
        let mut idle = connect(&proxy);
        let mut held = connect(&proxy);
        for stream in [&mut idle, &mut held] {
            stream.write_all(b"x").unwrap();
            assert_eq!(answer(stream, LONG).unwrap(), b"x");
        }
        proxy.set(all(Manner::Mute));
        held.write_all(b"y").unwrap();
        assert_eq!(answer(&mut held, SHORT), None);
        proxy.set(all(Manner::Refuse));
        assert_eq!(answer(&mut idle, LONG).unwrap(), b"");
        assert_eq!(answer(&mut held, LONG).unwrap(), b"", "the answer is lost");
        let mut new = connect(&proxy);
        assert_eq!(answer(&mut new, LONG).unwrap(), b"");
        proxy.set(Weather::default());
        let mut again = connect(&proxy);
        again.write_all(b"z").unwrap();
        assert_eq!(answer(&mut again, LONG).unwrap(), b"z");
    }

    #[test]
    fn a_closed_proxy_refuses_and_listens_again_at_the_same_place() {
        let runtime = runtime();
        let mut proxy = echo(&runtime);
        let address = proxy.address();
        proxy.close();
        let refused = Blocking::connect(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.open().unwrap();
        proxy.open().unwrap();
        assert_eq!(proxy.address(), address);
        let mut stream = connect(&proxy);
        stream.write_all(b"x").unwrap();
        assert_eq!(answer(&mut stream, LONG).unwrap(), b"x");
    }

    #[test]
    fn brokers_can_be_cut_from_each_other_alone() {
        let runtime = runtime();
        let proxy = echo(&runtime);
        let (mut client, mut peer) = (connect(&proxy), connect(&proxy));
        let ping = [0, 0, 0, 4, 125, 0, 0, 0];
        let produce = [0, 0, 0, 4, 0, 0, 0, 9];
        proxy.set(Weather {
            all: Manner::Whole,
            peers: Manner::Silent,
        });
        client.write_all(&produce).unwrap();
        peer.write_all(&ping).unwrap();
        assert_eq!(answer(&mut client, LONG).unwrap(), produce);
        assert_eq!(answer(&mut peer, SHORT), None);
        proxy.set(Weather {
            all: Manner::Whole,
            peers: Manner::Refuse,
        });
        assert_eq!(answer(&mut peer, LONG).unwrap(), b"");
        client.write_all(&produce).unwrap();
        assert_eq!(answer(&mut client, LONG).unwrap(), produce);
    }
}
