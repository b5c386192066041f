//! Hints that there is a newer manifest: whoever hears of one looks at once instead of at the next poll.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Looks that hints cause are at least this far apart: a peer that makes versions up must not cost more than a
/// few requests a second.
const APART: Duration = Duration::from_millis(200);

/// One look at a time; hints that come during one cause one more. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Nudges {
    heard: Arc<Notify>,
    task: AbortHandle,
}

impl Nudges {
    /// `look` reads the manifest. Must be called inside a tokio runtime.
    pub(crate) fn new(look: impl Fn() -> BoxFuture<'static, ()> + Send + 'static) -> Nudges {
        let heard = Arc::new(Notify::new());
        let hints = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                hints.notified().await;
                look().await;
                tokio::time::sleep(APART).await;
            }
        });
        Nudges {
            heard,
            task: task.abort_handle(),
        }
    }

    /// There seems to be a newer manifest.
    pub(crate) fn hear(&self) {
        self.heard.notify_one();
    }
}

impl Drop for Nudges {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn hints_are_answered_one_at_a_time_and_not_too_often() {
        let (looks, under_way) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let nudges = Nudges::new({
            let (looks, under_way) = (Arc::clone(&looks), Arc::clone(&under_way));
            move || {
                let (looks, under_way) = (Arc::clone(&looks), Arc::clone(&under_way));
                Box::pin(async move {
                    assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0);
                    looks.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    under_way.fetch_sub(1, Ordering::SeqCst);
                })
            }
        });
        let after = async |ms| tokio::time::sleep(Duration::from_millis(ms)).await;
        nudges.hear();
        after(10).await;
        assert_eq!(looks.load(Ordering::SeqCst), 1, "the first one at once");
        for _ in 0..100 {
            nudges.hear();
        }
        after(200).await;
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        after(1_000).await;
        assert_eq!(looks.load(Ordering::SeqCst), 2, "many hints are one");
        for _ in 0..100 {
            nudges.hear();
            after(10).await;
        }
        assert!((5..=7).contains(&looks.load(Ordering::SeqCst)), "{looks:?}");
        // Nothing goes on behind the back of who dropped it.
        drop(nudges);
        let before = looks.load(Ordering::SeqCst);
        after(1_000).await;
        assert_eq!(looks.load(Ordering::SeqCst), before);
        assert_eq!(Arc::strong_count(&looks), 1);
    }
}
