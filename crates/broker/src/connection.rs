//! One client connection: requests are read, answered in order, and nothing of it outlives it but appends.
//!
//! Consecutive Produce requests are started as they arrive and wait for their publication together; any
//! other request waits for what came before it and holds back what comes after, because clients rely on
//! Kafka handling the requests of a connection one after the other. Reading and answering are two futures
//! of one task, so a connection that ends takes everything with it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::future::{BoxFuture, Either, select};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::frame::{Frame, FrameError, FrameReader, PRODUCE};
use crate::protocol::Reply;

/// Chunks that one vectored write takes.
const CHUNKS_PER_WRITE: usize = 64;

/// What a request comes to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Reply),
    /// The client wants no answer (acks = 0).
    Silent,
    /// The connection has to be closed.
    Close(Refusal),
}

/// Why a connection is closed from our side; one line of the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("unknown API key {0}")]
    UnknownApi(i16),
    #[error("{api} version {version} is not served")]
    UnsupportedVersion { api: &'static str, version: i16 },
    #[error("malformed {api} request, version {version}: {error}")]
    Malformed {
        api: &'static str,
        version: i16,
        error: String,
    },
    /// Kafka, too, shows a producer that wants no answers only so that something went wrong.
    #[error("a Produce request with acks=0 failed: {0}")]
    SilentProduceFailed(String),
    #[error("cannot encode the {api} answer, version {version}: {error}")]
    Unencodable {
        api: &'static str,
        version: i16,
        error: String,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot send the answer: {0}")]
    Write(io::Error),
    #[error("the client left an answer untouched for {0:?}")]
    Stuck(Duration),
    #[error("the broker is stopping")]
    Stopping,
}

impl Ended {
    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Ended::Frame(error) => error.reason(),
            Ended::Refused(_) => "refused",
            Ended::Write(_) => "lost",
            Ended::Stuck(_) => "stuck",
            Ended::Stopping => "stopping",
        }
    }

    /// Whether the operator should see it: a client that comes, goes or idles is nothing to tell.
    pub(crate) fn is_noteworthy(&self) -> bool {
        match self {
            Ended::Frame(error) => !matches!(
                error,
                FrameError::Closed | FrameError::Truncated | FrameError::Io(_) | FrameError::Idle(_)
            ),
            Ended::Refused(_) | Ended::Stuck(_) => true,
            Ended::Write(_) | Ended::Stopping => false,
        }
    }
}

/// Serves requests. The one implementation besides those of tests is the dispatch table.
pub(crate) trait Requests: Send + Sync + 'static {
    /// Facts about the connection that requests need.
    type Peer: Send;

    /// Starts a request. For Produce, everything that must happen in the order of requests happens in this
    /// call; for others it may happen when the future is first polled.
    fn start(&self, peer: &mut Self::Peer, frame: Frame) -> Started;
}

/// A request under way.
pub(crate) struct Started {
    pub(crate) outcome: BoxFuture<'static, Outcome>,
    /// May be given up half-way when nobody waits for the answer any more: it only waits and reads.
    pub(crate) abandonable: bool,
}

struct Queued {
    started: Started,
    /// Tells the reading side that a request that holds back others is answered.
    answered: Option<oneshot::Sender<()>>,
}

/// State that the two sides of a connection share.
#[derive(Default)]
struct Shared {
    in_flight: AtomicUsize,
    /// The client has closed its side: nobody waits for a long poll.
    gone: Notify,
}

/// Serves a connection until it ends. `stopping` turns true when the broker wants to stop.
pub(crate) async fn serve<R, W, S>(
    reader: FrameReader<R>,
    writer: W,
    service: Arc<S>,
    peer: S::Peer,
    stopping: watch::Receiver<bool>,
) -> Ended
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: Requests,
{
    let limits = reader.limits().clone();
    let (queue, answers) = mpsc::channel(limits.produces_overlapped_max.max(1));
    let shared = Shared::default();
    let reading = std::pin::pin!(read_side(reader, queue, service, peer, &shared, stopping.clone()));
    let writing = std::pin::pin!(write_side(writer, answers, &shared, limits.idle, stopping));
    match select(reading, writing).await {
        // The queue is closed now: what is in it is still answered, in bounded time.
        Either::Left((ended, writing)) => match (&ended, timeout(limits.drain, writing).await) {
            (Ended::Frame(FrameError::Closed) | Ended::Stopping, Ok(Some(write_ended))) => write_ended,
            _ => ended,
        },
        Either::Right((Some(ended), _)) => ended,
        // The writing side ends without a reason only after the reading side.
        Either::Right((None, reading)) => reading.await,
    }
}

async fn read_side<R, S>(
    mut reader: FrameReader<R>,
    queue: mpsc::Sender<Queued>,
    service: Arc<S>,
    mut peer: S::Peer,
    shared: &Shared,
    mut stopping: watch::Receiver<bool>,
) -> Ended
where
    R: AsyncRead + Unpin,
    S: Requests,
{
    let mut patience = reader.limits().first_request;
    loop {
        tokio::select! {
            biased;
            _ = stopped(&mut stopping) => return Ended::Stopping,
            waited = reader.wait_for_request(patience) => match waited {
                Err(FrameError::Idle(_)) if shared.in_flight.load(Ordering::Acquire) > 0 => continue,
                Err(error) => return error.into(),
                Ok(()) => {}
            },
        }
        patience = reader.limits().idle;
        let frame = match reader.read_request().await {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        // Room in the queue comes before the start, so that no more than the limit are ever under way.
        let Ok(room) = queue.reserve().await else {
            return FrameError::Closed.into();
        };
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        if frame.api_key == PRODUCE {
            room.send(Queued {
                started: service.start(&mut peer, frame),
                answered: None,
            });
            continue;
        }
        let (answered, mut is_answered) = oneshot::channel();
        room.send(Queued {
            started: service.start(&mut peer, frame),
            answered: Some(answered),
        });
        // The next request is only looked at, so that a client that goes away is noticed.
        tokio::select! {
            biased;
            _ = &mut is_answered => {}
            waited = reader.wait_for_request(Duration::MAX) => match waited {
                Ok(()) => drop(is_answered.await),
                Err(error) => {
                    shared.gone.notify_one();
                    return error.into();
                }
            },
        }
    }
}

/// Resolves once the broker is stopping.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, and with it the broker.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Answers in order; `None` when there is nothing more to answer.
async fn write_side<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut answers: mpsc::Receiver<Queued>,
    shared: &Shared,
    stuck_after: Duration,
    mut stopping: watch::Receiver<bool>,
) -> Option<Ended> {
    while let Some(Queued { started, answered }) = answers.recv().await {
        let outcome = if started.abandonable {
            tokio::select! {
                biased;
                outcome = started.outcome => outcome,
                _ = shared.gone.notified() => return None,
                _ = stopped(&mut stopping) => return Some(Ended::Stopping),
            }
        } else {
            started.outcome.await
        };
        match outcome {
            Outcome::Reply(reply) => {
                if let Err(ended) = write_reply(&mut writer, reply, stuck_after).await {
                    return Some(ended);
                }
            }
            Outcome::Silent => {}
            Outcome::Close(refusal) => return Some(refusal.into()),
        }
        shared.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Some(answered) = answered {
            let _ = answered.send(());
        }
    }
    // Best effort: the connection is about to be dropped anyway.
    let _ = timeout(Duration::from_secs(1), writer.shutdown()).await;
    None
}

/// Writes all chunks of a reply; every write must make progress within `stuck_after`.
async fn write_reply<W: AsyncWrite + Unpin>(
    writer: &mut W,
    reply: Reply,
    stuck_after: Duration,
) -> Result<(), Ended> {
    let mut chunks: &[Bytes] = &reply.chunks;
    // Bytes of the first chunk that are written already.
    let mut skip = 0;
    while let Some(first) = chunks.first() {
        if skip == first.len() {
            chunks = &chunks[1..];
            skip = 0;
            continue;
        }
        let mut slices = [IoSlice::new(&[]); CHUNKS_PER_WRITE];
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(chunks) {
            *slot = IoSlice::new(if count == 0 { &chunk[skip..] } else { chunk.chunk() });
            count += 1;
        }
        let written = match timeout(stuck_after, writer.write_vectored(&slices[..count])).await {
            Err(_) => return Err(Ended::Stuck(stuck_after)),
            Ok(Err(error)) => return Err(Ended::Write(error)),
            Ok(Ok(0)) => return Err(Ended::Write(io::ErrorKind::WriteZero.into())),
            Ok(Ok(written)) => written,
        };
        skip += written;
        while let Some(first) = chunks.first() {
            if skip < first.len() {
                break;
            }
            skip -= first.len();
            chunks = &chunks[1..];
        }
    }
    match timeout(stuck_after, writer.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Ended::Write(error)),
        Err(_) => Err(Ended::Stuck(stuck_after)),
    }
}

#[cfg(test)]
mod tests;
