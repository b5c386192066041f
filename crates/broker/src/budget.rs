//! Byte budgets: memory is reserved before it is filled, and given back when what fills it is done.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::BudgetMetrics;

/// A number of bytes that requests share. Whoever asks first gets first, so a large request is not starved.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget {
    semaphore: Arc<Semaphore>,
    total: u32,
    metrics: BudgetMetrics,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct BudgetPermit {
    _permit: OwnedSemaphorePermit,
    bytes: u32,
    metrics: BudgetMetrics,
}

impl ByteBudget {
    pub(crate) fn new(total: usize, metrics: BudgetMetrics) -> ByteBudget {
        let total = u32::try_from(total).unwrap_or(u32::MAX).max(1);
        metrics.limit_bytes.set(i64::from(total));
        ByteBudget {
            semaphore: Arc::new(Semaphore::new(total as usize)),
            total,
            metrics,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.total as usize
    }

    /// Waits until `bytes` are free and takes them. More than there ever is counts as all of it: such a
    /// request runs alone.
    pub(crate) async fn reserve(&self, bytes: usize) -> BudgetPermit {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total);
        let permit = match Arc::clone(&self.semaphore).try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                self.metrics.waits.inc();
                let since = Instant::now();
                // The semaphore is never closed; if it were, waiting for ever holds the request back.
                let Ok(permit) = Arc::clone(&self.semaphore).acquire_many_owned(bytes).await else {
                    return std::future::pending().await;
                };
                self.metrics.wait_seconds.observe(since.elapsed().as_secs_f64());
                permit
            }
        };
        self.metrics.in_use_bytes.inc_by(i64::from(bytes));
        BudgetPermit {
            _permit: permit,
            bytes,
            metrics: self.metrics.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.semaphore.available_permits()
    }
}

impl Drop for BudgetPermit {
    fn drop(&mut self) {
        self.metrics.in_use_bytes.dec_by(i64::from(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_waits_until_its_bytes_are_given_back() {
        let budget = ByteBudget::new(100, BudgetMetrics::unregistered());
        let first = budget.reserve(80).await;
        let mut second = tokio_test_task(budget.reserve(30));
        assert!(poll_once(&mut second).await.is_none());
        assert_eq!(budget.metrics.waits.get(), 1);
        drop(first);
        let permit = second.await;
        assert_eq!(budget.available(), 70);
        drop(permit);
        assert_eq!(budget.metrics.in_use_bytes.get(), 0);
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_is_the_whole_budget() {
        let budget = ByteBudget::new(100, BudgetMetrics::unregistered());
        let permit = budget.reserve(1_000_000).await;
        assert_eq!(budget.available(), 0);
        drop(permit);
        assert_eq!(budget.available(), 100);
    }

    fn tokio_test_task<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
        Box::pin(future)
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
