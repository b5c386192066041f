//! A loaded shard at work: its lock, its appends, its task.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::warn;

use super::{Inner, LEASE_LOOK};
use crate::errors::ErrorCode;
use crate::groups::engine::EngineError;
use crate::groups::member::ReplyId;
use crate::groups::records::OFFSETS_TOPIC;
use crate::groups::shard::{AppendId, Command, Effects, Reply, Shard};
use crate::groups::state::Now;

pub(super) struct ActiveShard {
    pub(super) partition: i32,
    pub(super) epoch: i32,
    /// Zero of the monotonic clock.
    pub(super) started: Instant,
    pub(super) guarded: Mutex<Guarded>,
    /// An earlier deadline than before is in the queue, or the shard is closed.
    pub(super) wake: Notify,
    /// Turns true when the shard is closed and the outcome of all its appends is known.
    pub(super) drained: watch::Sender<bool>,
}

pub(super) struct Guarded {
    pub(super) shard: Shard,
    pub(super) waiting: HashMap<ReplyId, oneshot::Sender<Reply>>,
    pub(super) next_reply: ReplyId,
    /// When nothing proved, last, that this broker is the coordinator: what members said then was refused.
    pub(super) unheard: Option<Now>,
    /// `None` once the shard is closed; the task ends when what was sent before is done.
    pub(super) publications: Option<mpsc::UnboundedSender<Publication>>,
}

pub(super) enum Publication {
    Append {
        id: AppendId,
        done: BoxFuture<'static, Result<(), EngineError>>,
    },
    /// Everything that was appended before is published or has failed.
    Barrier(oneshot::Sender<()>),
}

impl ActiveShard {
    /// Applies a command and everything that follows from it at once.
    pub(super) fn execute(&self, inner: &Inner, guarded: &mut Guarded, command: Command) {
        let before = guarded.shard.next_deadline_ms();
        let fx = guarded.shard.apply(command, inner.now());
        self.carry_out(inner, guarded, fx);
        let after = guarded.shard.next_deadline_ms();
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.wake.notify_one();
        }
    }

    pub(super) fn carry_out(&self, inner: &Inner, guarded: &mut Guarded, fx: Effects) {
        let now = inner.now();
        let mut queue = VecDeque::from([fx]);
        while let Some(fx) = queue.pop_front() {
            inner.metrics.count(&fx);
            for append in fx.appends {
                let (partition, epoch) = (self.partition, self.epoch);
                let started = inner.engine.append(partition, epoch, append.records, now.wall_ms);
                let done = started.unwrap_or_else(|error| Box::pin(std::future::ready(Err(error))));
                let publication = Publication::Append { id: append.id, done };
                let sent = guarded.publications.as_ref().map(|queue| queue.send(publication));
                if !matches!(sent, Some(Ok(()))) {
                    let outcome = Err(ErrorCode::NotCoordinator);
                    let failed = Command::Appended {
                        append: append.id,
                        outcome,
                    };
                    queue.push_back(guarded.shard.apply(failed, now));
                }
            }
            for (id, reply) in fx.replies {
                if let Some(sender) = guarded.waiting.remove(&id) {
                    // Whoever asked may have hung up.
                    let _ = sender.send(reply);
                }
            }
        }
    }

    /// Waits for the end of a closed shard: until then its appends may still get into the log.
    pub(super) async fn drained(&self) {
        // An error means that the sender is gone, which this borrow rules out.
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
    }

    pub(super) fn close(&self, inner: &Inner, error: ErrorCode) {
        let mut guarded = self.guarded.lock();
        self.execute(inner, &mut guarded, Command::Unload(error));
        guarded.publications = None;
        drop(guarded);
        self.wake.notify_one();
    }

    pub(super) fn instant(&self, deadline_ms: Option<i64>) -> Instant {
        let ms = deadline_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
        self.started + Duration::from_millis(ms)
    }

    pub(super) async fn barrier(&self) -> Result<(), ErrorCode> {
        let (sender, reached) = oneshot::channel();
        let sent = match &self.guarded.lock().publications {
            Some(queue) => queue.send(Publication::Barrier(sender)).is_ok(),
            None => false,
        };
        if !sent {
            return Err(ErrorCode::NotCoordinator);
        }
        reached.await.map_err(|_| ErrorCode::NotCoordinator)
    }

    /// Waits for publications, one after the other, and for deadlines, until the shard is closed and
    /// everything that it appended is settled.
    pub(super) async fn run_until_drained(
        self: Arc<ActiveShard>,
        inner: Weak<Inner>,
        queue: mpsc::UnboundedReceiver<Publication>,
    ) {
        self.clone().run(inner, queue).await;
        self.drained.send_replace(true);
    }

    async fn run(
        self: Arc<ActiveShard>,
        inner: Weak<Inner>,
        mut queue: mpsc::UnboundedReceiver<Publication>,
    ) {
        let mut head: Option<(AppendId, BoxFuture<'static, Result<(), EngineError>>)> = None;
        let mut not_before = self.started;
        loop {
            let deadline = self.guarded.lock().shard.next_deadline_ms();
            let sleep = tokio::time::sleep_until(self.instant(deadline).max(not_before));
            tokio::select! {
                outcome = publication(&mut head), if head.is_some() => {
                    let (Some((append, _)), Some(inner)) = (head.take(), inner.upgrade()) else { return };
                    self.settle(&inner, append, outcome);
                }
                next = queue.recv(), if head.is_none() => match next {
                    Some(Publication::Append { id, done }) => head = Some((id, done)),
                    Some(Publication::Barrier(reached)) => {
                        let _ = reached.send(());
                    }
                    None => return,
                },
                () = sleep, if deadline.is_some() => {
                    let Some(inner) = inner.upgrade() else { return };
                    if !self.tick(&inner) {
                        not_before = Instant::now() + LEASE_LOOK;
                    }
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// Does what is due, unless nothing proves that this broker is the coordinator: it refuses heartbeats then, and
    /// whoever is silent for that reason must not be taken for gone.
    fn tick(&self, inner: &Inner) -> bool {
        let leased = inner.engine.leased();
        let mut guarded = self.guarded.lock();
        if !leased {
            guarded.unheard = Some(inner.now());
            return false;
        }
        if let Some(until) = guarded.unheard.take() {
            self.execute(inner, &mut guarded, Command::Unheard(until));
        }
        self.execute(inner, &mut guarded, Command::Tick);
        true
    }

    pub(super) fn settle(
        self: &Arc<ActiveShard>,
        inner: &Arc<Inner>,
        append: AppendId,
        outcome: Result<(), EngineError>,
    ) {
        let failed = outcome.is_err();
        let outcome = outcome.map_err(|error| {
            inner.metrics.append_failed();
            warn!(%error, "storing group records in {OFFSETS_TOPIC}-{} failed", self.partition);
            match error {
                EngineError::NotLeader | EngineError::Recovering => ErrorCode::NotCoordinator,
                EngineError::Rejected(_) | EngineError::Unreadable(_) => ErrorCode::CoordinatorNotAvailable,
            }
        });
        {
            let mut guarded = self.guarded.lock();
            self.execute(inner, &mut guarded, Command::Appended { append, outcome });
        }
        if failed {
            inner.distrust(self);
        }
    }
}

async fn publication(
    head: &mut Option<(AppendId, BoxFuture<'static, Result<(), EngineError>>)>,
) -> Result<(), EngineError> {
    match head {
        Some((_, done)) => done.await,
        None => std::future::pending().await,
    }
}
