//! One producer's connection to one broker, polled by the producer's own task: nothing crosses a thread between a
//! record's time and its bytes in the socket.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use kafka_wire::ProduceRequest;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::frame::{VERSION_MAX, VERSION_MIN};
use crate::cli::client::{
    ANSWER_BYTES_MAX, ANSWER_PATIENCE, Client, ClientError, RETRY_PAUSE, answer_length, decode,
};

/// Pieces that one system call takes.
const SLICES_MAX: usize = 64;
/// Room for answers, which are small.
const INCOMING_BYTES: usize = 16 * 1024;

/// A batch: its partition, and its id in that partition's outbox.
pub(super) type BatchKey = (usize, u64);

/// A connection that comes and goes.
pub(super) struct Link {
    address: Arc<str>,
    state: State,
}

type Connecting = Pin<Box<dyn Future<Output = Result<(TcpStream, i16), ClientError>> + Send>>;

enum State {
    Down { until: Instant },
    Connecting(Connecting),
    Up(Box<Up>),
}

struct Up {
    stream: TcpStream,
    version: i16,
    correlation: i32,
    /// What is not written yet.
    outgoing: VecDeque<Bytes>,
    queued_bytes: u64,
    written_bytes: u64,
    incoming: BytesMut,
    in_flight: VecDeque<Request>,
}

#[derive(Debug)]
struct Request {
    correlation: i32,
    sent: Instant,
    batches: Vec<BatchKey>,
    bytes: u64,
    /// `written_bytes` when all of it is written.
    end: u64,
    is_answered: bool,
}

/// What happened on a link.
#[derive(Debug)]
pub(super) enum Event {
    /// Batches can be sent.
    Connected,
    /// A request of so many bytes is answered: its batches with their error codes.
    Answered {
        batches: Vec<(BatchKey, i16)>,
        bytes: u64,
    },
    /// The connection failed, and what becomes of these batches is unknown.
    Lost {
        error: ClientError,
        batches: Vec<BatchKey>,
    },
}

impl Link {
    /// Will connect when it is polled.
    pub(super) fn new(address: Arc<str>, now: Instant) -> Link {
        Link {
            address,
            state: State::Down { until: now },
        }
    }

    /// Where it leads.
    pub(super) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Requests that are not answered yet.
    pub(super) fn in_flight(&self) -> usize {
        match &self.state {
            State::Up(up) => up.in_flight.len(),
            _ => 0,
        }
    }

    /// Version and correlation id of the next request, if there is a connection.
    pub(super) fn next_request(&self) -> Option<(i16, i32)> {
        match &self.state {
            State::Up(up) => Some((up.version, up.correlation)),
            _ => None,
        }
    }

    /// Queues a request with the version and correlation id of [`Link::next_request`].
    pub(super) fn send(
        &mut self,
        frame: Vec<Bytes>,
        batches: Vec<BatchKey>,
        is_answered: bool,
        now: Instant,
    ) {
        if let State::Up(up) = &mut self.state {
            let bytes = frame.iter().map(|part| part.len() as u64).sum();
            up.queued_bytes += bytes;
            up.in_flight.push_back(Request {
                correlation: up.correlation,
                sent: now,
                batches,
                bytes,
                end: up.queued_bytes,
                is_answered,
            });
            up.correlation = up.correlation.wrapping_add(1);
            up.outgoing
                .extend(frame.into_iter().filter(|part| !part.is_empty()));
        }
    }

    /// Moves everything on that can be moved, and wakes the task when more can.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, events: &mut Vec<Event>) {
        if let State::Down { until } = self.state
            && now >= until
        {
            self.state = State::Connecting(Box::pin(connect(self.address.clone())));
        }
        if let State::Connecting(connecting) = &mut self.state {
            match connecting.as_mut().poll(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, version))) => {
                    self.state = State::Up(Box::new(Up {
                        stream,
                        version,
                        correlation: 0,
                        outgoing: VecDeque::new(),
                        queued_bytes: 0,
                        written_bytes: 0,
                        incoming: BytesMut::with_capacity(INCOMING_BYTES),
                        in_flight: VecDeque::new(),
                    }));
                    events.push(Event::Connected);
                }
                Poll::Ready(Err(error)) => self.fail(error, now, events),
            }
        }
        if let State::Up(up) = &mut self.state
            && let Err(error) = up.poll(cx, now, &self.address, events)
        {
            self.fail(error, now, events);
        }
    }

    fn fail(&mut self, error: ClientError, now: Instant, events: &mut Vec<Event>) {
        let until = now + RETRY_PAUSE;
        let before = std::mem::replace(&mut self.state, State::Down { until });
        let batches = match before {
            State::Up(up) => up
                .in_flight
                .into_iter()
                .flat_map(|request| request.batches)
                .collect(),
            _ => Vec::new(),
        };
        events.push(Event::Lost { error, batches });
    }
}

async fn connect(address: Arc<str>) -> Result<(TcpStream, i16), ClientError> {
    let client = Client::connect(&address).await?;
    let version = client
        .versions()
        .pick::<ProduceRequest>(&address, VERSION_MIN, VERSION_MAX)?;
    Ok((client.into_stream(), version))
}

impl Up {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        address: &Arc<str>,
        events: &mut Vec<Event>,
    ) -> Result<(), ClientError> {
        let lost = |source| ClientError::Lost {
            address: address.clone(),
            source,
        };
        self.poll_write(cx).map_err(lost)?;
        while let Some(front) = self.in_flight.front()
            && !front.is_answered
            && front.end <= self.written_bytes
        {
            self.complete(|_| Some(0), events);
        }
        let open = self.poll_read(cx).map_err(lost)?;
        self.take_answers(events).map_err(|why| ClientError::Malformed {
            address: address.clone(),
            why,
        })?;
        if !open {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match self.in_flight.front() {
            Some(oldest) if now.saturating_duration_since(oldest.sent) > ANSWER_PATIENCE + GRACE => {
                Err(ClientError::Silent {
                    address: address.clone(),
                    after: ANSWER_PATIENCE,
                })
            }
            _ => Ok(()),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let written = match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => written?,
            };
            self.written_bytes += written as u64;
            advance(&mut self.outgoing, written);
        }
        Ok(())
    }

    /// Reads what is there; false at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        while let Poll::Ready(ready) = self.stream.poll_read_ready(cx) {
            ready?;
            if self.incoming.capacity() == self.incoming.len() {
                self.incoming.reserve(INCOMING_BYTES);
            }
            match self.stream.try_read_buf(&mut self.incoming) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn take_answers(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        while let Some(prefix) = self.incoming.first_chunk::<4>() {
            let length = answer_length(*prefix, ANSWER_BYTES_MAX)?;
            if self.incoming.len() < 4 + length {
                return Ok(());
            }
            self.incoming.advance(4);
            let answer = self.incoming.split_to(length).freeze();
            let (correlation, answer) = decode::<ProduceRequest>(answer, self.version)?;
            let expected = self.in_flight.front().map(|request| request.correlation);
            if expected != Some(correlation) {
                return Err(format!(
                    "an answer to request {correlation} instead of {expected:?}"
                ));
            }
            let partitions = answer
                .responses
                .iter()
                .flat_map(|topic| &topic.partition_responses);
            let code_of = |partition: usize| {
                let mut found = partitions.clone();
                let found = found.find(|found| usize::try_from(found.index) == Ok(partition));
                found.map(|found| found.error_code)
            };
            if !self.complete(code_of, events) {
                return Err("an answer without a partition that was produced to".to_owned());
            }
        }
        Ok(())
    }

    /// Reports the oldest request as answered; false, and it stays, if a code is missing.
    fn complete(&mut self, code_of: impl Fn(usize) -> Option<i16>, events: &mut Vec<Event>) -> bool {
        let Some(request) = self.in_flight.front() else {
            return false;
        };
        let batches: Option<Vec<_>> = request
            .batches
            .iter()
            .map(|key| Some((*key, code_of(key.0)?)))
            .collect();
        let Some(batches) = batches else {
            return false;
        };
        let bytes = request.bytes;
        self.in_flight.pop_front();
        events.push(Event::Answered { batches, bytes });
        true
    }
}

/// The broker answers REQUEST_TIMED_OUT itself when its patience ends; only then it is silent.
const GRACE: Duration = Duration::from_secs(5);

/// Drops the first `written` bytes.
fn advance(parts: &mut VecDeque<Bytes>, mut written: usize) {
    while written > 0
        && let Some(first) = parts.front_mut()
    {
        let step = first.len().min(written);
        first.advance(step);
        written -= step;
        if first.is_empty() {
            parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_leave_the_queue() {
        let mut parts = VecDeque::from([Bytes::from_static(b"abc"), Bytes::from_static(b"defg")]);
        advance(&mut parts, 2);
        assert_eq!(
            parts.iter().map(|part| &part[..]).collect::<Vec<_>>(),
            [&b"c"[..], b"defg"]
        );
        advance(&mut parts, 3);
        assert_eq!(
            parts.iter().map(|part| &part[..]).collect::<Vec<_>>(),
            [&b"fg"[..]]
        );
        advance(&mut parts, 2);
        assert!(parts.is_empty());
    }
}
