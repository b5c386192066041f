//! Connections between machines: byte streams that keep their order and take time, that stall while the way is cut,
//! break when it stays cut, and end with the process at their other end, if somebody is there to say so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::world::{Millis, Node, Shared, World};

/// A way that stays cut so long breaks its connections.
const BREAKS_AFTER_MS: Millis = 15_000;
/// How often a stalled stream is looked at.
const STALLED_LOOK_MS: Millis = 100;
/// How long a client waits for a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections and what is between machines.
#[derive(Debug, Default)]
pub struct Network {
    /// Pairs (the smaller first) that cannot reach each other.
    cuts: BTreeSet<(Node, Node)>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Processes that accept connections, by machine.
    listeners: BTreeMap<Node, Listener>,
    /// Machines whose process was killed while their network went silent too.
    silent: BTreeSet<Node>,
    /// Probabilities of a weather of its own: a packet is sent again, a connection is reset.
    pub lossy: f64,
    pub resets: f64,
}

#[derive(Debug, Default)]
struct Listener {
    boot: u64,
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    /// The two ends; what end 0 writes, end 1 reads.
    ends: [End; 2],
}

#[derive(Debug)]
struct End {
    node: Node,
    /// Arrived and not read.
    inbox: VecDeque<Bytes>,
    /// On its way here, with the time of its arrival; `None` is the end of the stream.
    coming: VecDeque<(Millis, Option<Bytes>)>,
    pumping: bool,
    stalled_since: Option<Millis>,
    finished: bool,
    broken: bool,
    waker: Option<Waker>,
}

impl End {
    fn new(node: Node) -> End {
        End {
            node,
            inbox: VecDeque::new(),
            coming: VecDeque::new(),
            pumping: false,
            stalled_since: None,
            finished: false,
            broken: false,
            waker: None,
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

fn pair(a: Node, b: Node) -> (Node, Node) {
    (a.min(b), a.max(b))
}

impl Network {
    pub fn cut(&mut self, a: Node, b: Node) {
        self.cuts.insert(pair(a, b));
    }

    pub fn mend(&mut self, a: Node, b: Node) {
        self.cuts.remove(&pair(a, b));
    }

    pub fn mend_all(&mut self) {
        self.cuts.clear();
        self.silent.clear();
    }

    pub fn is_cut(&self, a: Node, b: Node) -> bool {
        self.cuts.contains(&pair(a, b))
    }

    /// A process of the machine accepts connections from now on.
    pub fn listen(&mut self, node: Node, boot: u64) {
        self.silent.remove(&node);
        self.listeners.insert(
            node,
            Listener {
                boot,
                ..Listener::default()
            },
        );
    }
}

impl World {
    /// The process of a machine is no more. With `silent` its connections just fall silent, else they are reset.
    pub fn hang_up(&mut self, node: Node, silent: bool) {
        self.network.listeners.remove(&node);
        if silent {
            self.network.silent.insert(node);
        }
        let delay = self.chance.between(2, 20);
        let ids: Vec<u64> = self.network.connections.keys().copied().collect();
        for id in ids {
            let Some(c) = self.network.connections.get_mut(&id) else {
                continue;
            };
            for end in 0..2 {
                if c.ends[end].node != node || c.ends[end].broken {
                    continue;
                }
                c.ends[end].broken = true;
                if !silent {
                    self.after(delay, move |world| world.reset(id, 1 - end));
                }
                break;
            }
        }
    }

    /// Breaks one end, as a reset that arrives there.
    fn reset(&mut self, id: u64, end: usize) {
        let Some(c) = self.network.connections.get_mut(&id) else {
            return;
        };
        let (here, there) = (c.ends[end].node, c.ends[1 - end].node);
        if self.network.cuts.contains(&pair(here, there)) {
            let wait = STALLED_LOOK_MS * 5;
            return self.after(wait, move |world| world.reset(id, end));
        }
        c.ends[end].broken = true;
        c.ends[end].wake();
    }

    fn write(&mut self, id: u64, end: usize, bytes: Option<Bytes>) -> io::Result<()> {
        let now = self.clock();
        let mut delay = self.chance.between(2, 12);
        if self.chance.happens(self.network.lossy) {
            delay += self.chance.between(200, 1_500);
        }
        let resets = self.chance.happens(self.network.resets);
        let c = self
            .network
            .connections
            .get_mut(&id)
            .ok_or(io::ErrorKind::BrokenPipe)?;
        if c.ends[end].broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let to = &mut c.ends[1 - end];
        let at = to.coming.back().map_or(0, |(at, _)| *at).max(now + delay);
        to.coming.push_back((at, bytes));
        if !to.pumping {
            to.pumping = true;
            self.at(at, move |world| world.pump(id, 1 - end));
        }
        if resets {
            let (a, b) = (self.chance.between(0, 30), self.chance.between(0, 30));
            self.after(a, move |world| world.reset(id, 0));
            self.after(b, move |world| world.reset(id, 1));
        }
        Ok(())
    }

    /// Delivers what has arrived at an end.
    fn pump(&mut self, id: u64, end: usize) {
        let now = self.now;
        let Some(c) = self.network.connections.get_mut(&id) else {
            return;
        };
        let way = pair(c.ends[0].node, c.ends[1].node);
        let blocked = self.network.cuts.contains(&way);
        let to = &mut c.ends[end];
        if blocked {
            let since = *to.stalled_since.get_or_insert(now);
            if now - since >= BREAKS_AFTER_MS {
                for end in &mut c.ends {
                    end.broken = true;
                    end.wake();
                }
                return;
            }
            return self.after(STALLED_LOOK_MS, move |world| world.pump(id, end));
        }
        to.stalled_since = None;
        while to.coming.front().is_some_and(|(at, _)| *at <= now) {
            match to.coming.pop_front() {
                Some((_, Some(bytes))) => to.inbox.push_back(bytes),
                _ => to.finished = true,
            }
        }
        to.wake();
        match to.coming.front().map(|(at, _)| *at) {
            Some(at) => self.at(at, move |world| world.pump(id, end)),
            None => to.pumping = false,
        }
    }

    fn arrive(&mut self, id: u64, to: Node) -> Result<(), io::ErrorKind> {
        let Some(listener) = self.network.listeners.get_mut(&to) else {
            return Err(io::ErrorKind::ConnectionRefused);
        };
        listener.waiting.push_back(id);
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
        Ok(())
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream {
    world: Shared,
    id: u64,
    end: usize,
}

/// Connects `from` with whatever listens on `to`.
pub async fn dial(world: &Shared, from: Node, to: Node) -> io::Result<Stream> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let id = {
        let mut w = world.lock();
        w.network.next += 1;
        let id = w.network.next;
        let ends = [End::new(from), End::new(to)];
        w.network.connections.insert(id, Connection { ends });
        let delay = w.chance.between(2, 12);
        w.after(delay, move |w| {
            if w.network.is_cut(from, to) || w.network.silent.contains(&to) {
                return;
            }
            let arrived = w.arrive(id, to);
            let back = w.chance.between(2, 12);
            w.after(back, move |_| {
                let _ = tell.send(arrived);
            });
        });
        id
    };
    let stream = Stream {
        world: world.clone(),
        id,
        end: 0,
    };
    match tokio::time::timeout(DIAL_TIMEOUT, told).await {
        Ok(Ok(Ok(()))) => Ok(stream),
        Ok(Ok(Err(kind))) => Err(kind.into()),
        // Cut or silent: nothing comes.
        Ok(Err(_)) => {
            tokio::time::sleep(DIAL_TIMEOUT).await;
            Err(io::ErrorKind::TimedOut.into())
        }
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The next connection for a process.
pub async fn accept(world: &Shared, node: Node, boot: u64) -> Stream {
    std::future::poll_fn(|cx| {
        let mut w = world.lock();
        match w.network.listeners.get_mut(&node) {
            Some(listener) if listener.boot == boot => {
                if let Some(id) = listener.waiting.pop_front() {
                    return Poll::Ready(Stream {
                        world: world.clone(),
                        id,
                        end: 1,
                    });
                }
                listener.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Pending,
        }
    })
    .await
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut w = self.world.lock();
        let Some(c) = w.network.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let end = &mut c.ends[self.end];
        if let Some(first) = end.inbox.front_mut() {
            let n = first.len().min(buf.remaining());
            buf.put_slice(&first[..n]);
            first.advance(n);
            if first.is_empty() {
                end.inbox.pop_front();
            }
            return Poll::Ready(Ok(()));
        }
        if end.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.finished {
            return Poll::Ready(Ok(()));
        }
        end.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self
            .world
            .lock()
            .write(self.id, self.end, Some(Bytes::copy_from_slice(bytes)));
        Poll::Ready(written.map(|()| bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
        let n = all.len();
        let written = self.world.lock().write(self.id, self.end, Some(all.into()));
        Poll::Ready(written.map(|()| n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.world.lock().write(self.id, self.end, None);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut w = self.world.lock();
        let Some(c) = w.network.connections.get(&self.id) else {
            return;
        };
        if c.ends[1 - self.end].broken {
            w.network.connections.remove(&self.id);
            return;
        }
        if !c.ends[self.end].broken {
            let _ = w.write(self.id, self.end, None);
            if let Some(c) = w.network.connections.get_mut(&self.id) {
                c.ends[self.end].broken = true;
            }
            // A process that answers a connection which is no more is told so.
            let (id, end) = (self.id, self.end);
            w.after(30_000, move |w| w.reset(id, 1 - end));
        }
    }
}
