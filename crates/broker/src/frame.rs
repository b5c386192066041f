//! Request frames: a 4-byte length, then that many bytes beginning with API key, version, correlation id.
//!
//! The first eight bytes are read on their own, so that the length is checked and the API is known before
//! any memory is taken: a Produce body waits for the produce budget, everything else lives from a reserve
//! of its own. A frame that has begun must arrive at a minimum rate.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::budget::{BudgetPermit, ByteBudget};
use crate::{history, peers};

/// API key of Produce, the one whose bodies wait for the produce budget.
pub(crate) const PRODUCE: i16 = 0;

/// Length, API key and version: what must be known before memory is taken.
const PREFIX: usize = 8;
/// API key, version and correlation id: no request is shorter.
const SHORTEST_REQUEST: usize = 8;
/// Requests up to this size (Heartbeats, commits, most Fetches) never wait: at most one of them is held per
/// connection, so `max.connections` bounds them.
const SMALL_REQUEST: usize = 4 * 1024;

/// What one client may do with its connection and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits {
    /// `socket.request.max.bytes`
    pub(crate) request_bytes_max: usize,
    /// `connections.max.idle.ms`; also how long a client may leave an answer untouched.
    pub(crate) idle: Duration,
    /// Time from the connection to its first request.
    pub(crate) first_request: Duration,
    /// Time from the first byte of a frame to its API key.
    pub(crate) prefix: Duration,
    /// A frame may take this long, plus its size over `bytes_per_second_min`.
    pub(crate) frame_grace: Duration,
    pub(crate) bytes_per_second_min: usize,
    /// Produce requests of one connection that wait for their publication at once.
    pub(crate) produces_overlapped_max: usize,
    /// How long what is in flight may take once the client has stopped sending.
    pub(crate) drain: Duration,
}

impl ConnectionLimits {
    pub(crate) fn new(request_bytes_max: usize, idle: Duration) -> ConnectionLimits {
        ConnectionLimits {
            request_bytes_max,
            idle,
            first_request: Duration::from_secs(30),
            prefix: Duration::from_secs(10),
            frame_grace: Duration::from_secs(30),
            bytes_per_second_min: 128 * 1024,
            produces_overlapped_max: 1_024,
            drain: Duration::from_secs(60),
        }
    }
}

/// Where the memory of frames comes from; shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct FrameBudgets {
    /// `memory.budget.bytes`: held from before a Produce body is read until its batches are published.
    pub(crate) produce: ByteBudget,
    /// For everything else, held until the answer is written.
    pub(crate) other: ByteBudget,
}

impl FrameBudgets {
    /// The reserve of the other requests: an eighth of the produce budget, at least 16 MiB.
    pub(crate) fn other_bytes(memory_budget_bytes: usize) -> usize {
        (memory_budget_bytes / 8).max(16 * 1024 * 1024)
    }
}

/// One whole request.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) api_key: i16,
    pub(crate) api_version: i16,
    /// From the API key on.
    pub(crate) bytes: Bytes,
    pub(crate) permit: Option<BudgetPermit>,
    pub(crate) received: Instant,
}

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the client closed the connection")]
    Closed,
    #[error("the client closed the connection in the middle of a request")]
    Truncated,
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("{0}: this port speaks the Kafka protocol without TLS")]
    OtherProtocol(&'static str),
    #[error("a request of {length} bytes, more than the {limit} that are allowed")]
    TooLarge { length: usize, limit: usize },
    #[error("a request length of {0}")]
    BadLength(i32),
    #[error("no request in {0:?}")]
    Idle(Duration),
    #[error("a request arrives too slowly: {received} of {length} bytes in {elapsed:?}")]
    Slow {
        received: usize,
        length: usize,
        elapsed: Duration,
    },
}

impl FrameError {
    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            FrameError::Closed => "client",
            FrameError::Truncated | FrameError::Io(_) => "lost",
            FrameError::OtherProtocol(_) => "other_protocol",
            FrameError::TooLarge { .. } | FrameError::BadLength(_) => "bad_length",
            FrameError::Idle(_) => "idle",
            FrameError::Slow { .. } => "slow",
        }
    }
}

/// Reads frames off a connection.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    io: R,
    limits: ConnectionLimits,
    budgets: FrameBudgets,
    prefix: [u8; PREFIX],
    filled: usize,
    prefix_began: Instant,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(io: R, limits: ConnectionLimits, budgets: FrameBudgets) -> FrameReader<R> {
        FrameReader {
            io,
            limits,
            budgets,
            prefix: [0; PREFIX],
            filled: 0,
            prefix_began: Instant::now(),
        }
    }

    pub(crate) fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    /// Waits for the start of the next request, at most `patience` if nothing of it has come. It may be
    /// dropped and called again: what was read is kept.
    pub(crate) async fn wait_for_request(&mut self, patience: Duration) -> Result<(), FrameError> {
        let idle_at = Instant::now().checked_add(patience);
        while self.filled < PREFIX {
            let deadline = if self.filled == 0 {
                idle_at
            } else {
                self.prefix_began.checked_add(self.limits.prefix)
            };
            let read = self.io.read(&mut self.prefix[self.filled..]);
            let result = match deadline {
                Some(at) => timeout_at(at, read).await,
                None => Ok(read.await),
            };
            let count = match result {
                Ok(count) => count?,
                Err(_) if self.filled == 0 => return Err(FrameError::Idle(patience)),
                Err(_) => return Err(self.slow(self.filled, PREFIX, self.prefix_began)),
            };
            match (count, self.filled) {
                (0, 0) => return Err(FrameError::Closed),
                (0, _) => return Err(FrameError::Truncated),
                (_, 0) => self.prefix_began = Instant::now(),
                _ => {}
            }
            self.filled += count;
            if self.filled >= 4 {
                self.length()?;
            }
        }
        Ok(())
    }

    /// Reads the rest of the request whose start has come, once there is memory for it.
    pub(crate) async fn read_request(&mut self) -> Result<Frame, FrameError> {
        let length = self.length()?;
        let [_, _, _, _, a, b, c, d] = self.prefix;
        let api_key = i16::from_be_bytes([a, b]);
        let api_version = i16::from_be_bytes([c, d]);
        let permit = self.reserve(api_key, length).await?;

        let began = Instant::now();
        let slack = Duration::from_secs_f64(length as f64 / self.limits.bytes_per_second_min.max(1) as f64);
        let deadline = began + self.limits.frame_grace + slack;
        let mut bytes = BytesMut::with_capacity(length);
        bytes.extend_from_slice(&self.prefix[4..]);
        while bytes.len() < length {
            let mut rest = (&mut self.io).take((length - bytes.len()) as u64);
            match timeout_at(deadline, rest.read_buf(&mut bytes)).await {
                Ok(Ok(0)) => return Err(FrameError::Truncated),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(self.slow(bytes.len(), length, began)),
            }
        }
        self.filled = 0;
        Ok(Frame {
            api_key,
            api_version,
            bytes: bytes.freeze(),
            permit,
            received: Instant::now(),
        })
    }

    /// The length of the request, checked; at least four bytes of the prefix must be there.
    fn length(&self) -> Result<usize, FrameError> {
        let [a, b, c, d, ..] = self.prefix;
        let claimed = i32::from_be_bytes([a, b, c, d]);
        if let Some(protocol) = other_protocol([a, b, c, d]) {
            return Err(FrameError::OtherProtocol(protocol));
        }
        let length = usize::try_from(claimed).map_err(|_| FrameError::BadLength(claimed))?;
        if length < SHORTEST_REQUEST {
            return Err(FrameError::BadLength(claimed));
        }
        let limit = self.limits.request_bytes_max;
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        Ok(length)
    }

    async fn reserve(&self, api_key: i16, length: usize) -> Result<Option<BudgetPermit>, FrameError> {
        if let Some(limit) = private_limit(api_key).filter(|limit| length > *limit) {
            return Err(FrameError::TooLarge { length, limit });
        }
        if api_key == PRODUCE {
            return Ok(Some(self.budgets.produce.reserve(length).await));
        }
        if length <= SMALL_REQUEST {
            return Ok(None);
        }
        let limit = self.budgets.other.total();
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        Ok(Some(self.budgets.other.reserve(length).await))
    }

    fn slow(&self, received: usize, length: usize, began: Instant) -> FrameError {
        FrameError::Slow {
            received,
            length,
            elapsed: began.elapsed(),
        }
    }
}

/// The largest request of an API that is ours and not Kafka's.
fn private_limit(api_key: i16) -> Option<usize> {
    match api_key {
        peers::message::PEER_PING => Some(peers::message::REQUEST_BYTES_MAX),
        history::message::ARCHIVE_FLUSH => Some(history::message::REQUEST_BYTES_MAX),
        _ => None,
    }
}

/// Names what speaks a different protocol, by the first four bytes it sends. None of these is a length
/// that Kafka's own default limit would let through.
fn other_protocol(start: [u8; 4]) -> Option<&'static str> {
    match &start {
        b"GET " | b"POST" | b"PUT " | b"HEAD" | b"DELE" | b"OPTI" | b"PATC" | b"CONN" | b"PRI " => {
            Some("an HTTP request")
        }
        b"SSH-" => Some("an SSH client"),
        b"PROX" | [0x0d, 0x0a, 0x0d, 0x0a] => Some("a PROXY protocol header"),
        [0x16, 0x03, 0..=4, _] => Some("a TLS handshake"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
