//! Waiting for the appends of one request, together with the memory that they hold.

use std::pin::Pin;
use std::task::{Context, Poll};

use alluvium_log::{AppendError, Appended};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::budget::BudgetPermit;

type Outcome = Result<Appended, AppendError>;

/// The appends of one Produce request. The budget is given back when the last of them is published, also
/// when nobody waits any more: an append that has begun cannot be taken back, and neither can its memory.
pub(super) struct Publication {
    appends: Vec<Append>,
    /// All before this one are done.
    next: usize,
    permit: Option<BudgetPermit>,
}

enum Append {
    Waiting(BoxFuture<'static, Outcome>),
    Done(Outcome),
}

impl Publication {
    pub(super) fn new(permit: Option<BudgetPermit>) -> Publication {
        Publication {
            appends: Vec::new(),
            next: 0,
            permit,
        }
    }

    /// Adds an append; returns its position.
    pub(super) fn push(&mut self, append: impl Future<Output = Outcome> + Send + 'static) -> usize {
        self.appends.push(Append::Waiting(append.boxed()));
        self.appends.len() - 1
    }

    /// Resolves when all are published or have failed.
    pub(super) fn published(&mut self) -> impl Future<Output = ()> + Send {
        std::future::poll_fn(|context| self.poll(context))
    }

    /// Only the first that is not done is polled: each is woken on its own, and all are needed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(append) = self.appends.get_mut(self.next) {
            if let Append::Waiting(future) = append {
                match Pin::new(future).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(outcome) => *append = Append::Done(outcome),
                }
            }
            self.next += 1;
        }
        self.permit = None;
        Poll::Ready(())
    }

    pub(super) fn any_published(&self) -> bool {
        self.appends
            .iter()
            .any(|append| matches!(append, Append::Done(Ok(_))))
    }

    /// The outcome of an append; `None` if there is none yet.
    pub(super) fn take(&mut self, position: usize) -> Option<Outcome> {
        match self.appends.get_mut(position)? {
            Append::Done(outcome) => Some(outcome.clone()),
            Append::Waiting(future) => {
                let outcome = future.now_or_never()?;
                self.appends[position] = Append::Done(outcome.clone());
                Some(outcome)
            }
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        let waiting: Vec<BoxFuture<'static, Outcome>> = self
            .appends
            .drain(..)
            .filter_map(|append| match append {
                Append::Waiting(future) => Some(future),
                Append::Done(_) => None,
            })
            .collect();
        let permit = self.permit.take();
        if waiting.is_empty() || permit.is_none() {
            return;
        }
        // Without a runtime the process is ending, and nobody needs the budget.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for append in waiting {
                    let _ = append.await;
                }
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::ByteBudget;
    use crate::metrics::BudgetMetrics;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn appended(base_offset: i64) -> Outcome {
        Ok(Appended {
            base_offset,
            append_time_ms: -1,
            log_start_offset: 0,
        })
    }

    fn append() -> (
        oneshot::Sender<Outcome>,
        impl Future<Output = Outcome> + Send + 'static,
    ) {
        let (publish, published) = oneshot::channel();
        (publish, async { published.await.unwrap() })
    }

    #[tokio::test]
    async fn memory_is_held_until_the_last_append_is_published() {
        let budget = ByteBudget::new(100, BudgetMetrics::unregistered());
        let mut publication = Publication::new(Some(budget.reserve(60).await));
        let (first, waiting) = append();
        assert_eq!(publication.push(waiting), 0);
        let (second, waiting) = append();
        assert_eq!(publication.push(waiting), 1);
        second.send(appended(9)).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(5), publication.published())
                .await
                .is_err()
        );
        assert_eq!(budget.available(), 40);
        // What is there at the timeout is told, the rest is unknown.
        assert_eq!(publication.take(1), Some(appended(9)));
        assert_eq!(publication.take(0), None);
        first.send(appended(4)).unwrap();
        publication.published().await;
        assert_eq!(budget.available(), 100);
        assert_eq!(publication.take(0), Some(appended(4)));
    }

    #[tokio::test]
    async fn memory_is_held_after_nobody_waits_any_more() {
        let budget = ByteBudget::new(100, BudgetMetrics::unregistered());
        let mut publication = Publication::new(Some(budget.reserve(60).await));
        let (publish, waiting) = append();
        publication.push(waiting);
        drop(publication);
        tokio::task::yield_now().await;
        assert_eq!(budget.available(), 40);
        publish.send(appended(0)).unwrap();
        let freed = budget.reserve(100);
        tokio::time::timeout(Duration::from_secs(5), freed).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_without_appends_gives_its_memory_back_at_once() {
        let budget = ByteBudget::new(100, BudgetMetrics::unregistered());
        drop(Publication::new(Some(budget.reserve(60).await)));
        assert_eq!(budget.available(), 100);
    }
}
