//! Wake-ups that are exact to some 60 µs. The timers of tokio count whole milliseconds, which would add up to one of
//! them to every latency that is measured from an intended time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A thread that wakes tasks. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    sleepers: Mutex<Sleepers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Sleepers {
    by_time: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
    closed: bool,
}

impl Timer {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Timer> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("bench-timer".to_owned())
            .spawn(move || of_thread.run())?;
        Ok(Timer { shared })
    }

    /// An alarm for one task.
    pub(super) fn alarm(&self) -> Alarm {
        let mut sleepers = self.shared.sleepers.lock();
        sleepers.next_id += 1;
        Alarm {
            shared: self.shared.clone(),
            id: sleepers.next_id,
            set: None,
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.sleepers.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut sleepers = self.sleepers.lock();
        while !sleepers.closed {
            match sleepers.by_time.first_entry() {
                None => self.changed.wait(&mut sleepers),
                Some(first) if first.key().0 <= Instant::now() => {
                    let waker = first.remove();
                    MutexGuard::unlocked(&mut sleepers, || waker.wake());
                }
                Some(first) => {
                    let at = first.key().0;
                    self.changed.wait_until(&mut sleepers, at);
                }
            }
        }
    }
}

/// Wakes the task that polls it.
#[derive(Debug)]
pub(super) struct Alarm {
    shared: Arc<Shared>,
    id: u64,
    set: Option<(Instant, Waker)>,
}

impl Alarm {
    /// Ready from `at` on; until then the task is woken at that time, or at an earlier one that it asked for before:
    /// to leave that in place is cheaper than to wake the thread for each change.
    pub(super) fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let now = Instant::now();
        if now >= at {
            return Poll::Ready(());
        }
        if let Some((set, waker)) = &self.set
            && *set > now
            && *set <= at
            && waker.will_wake(cx.waker())
        {
            return Poll::Pending;
        }
        let mut sleepers = self.shared.sleepers.lock();
        if let Some((set, _)) = self.set.take() {
            sleepers.by_time.remove(&(set, self.id));
        }
        self.set = Some((at, cx.waker().clone()));
        sleepers.by_time.insert((at, self.id), cx.waker().clone());
        let is_first = sleepers.by_time.keys().next() == Some(&(at, self.id));
        drop(sleepers);
        if is_first {
            self.shared.changed.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some((set, _)) = self.set {
            self.shared.sleepers.lock().by_time.remove(&(set, self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test]
    async fn wakes_in_the_order_of_time_and_never_early() {
        let timer = Timer::start().unwrap();
        let start = Instant::now();
        let sleep = |ms: u64| {
            let mut alarm = timer.alarm();
            async move {
                let at = start + Duration::from_millis(ms);
                poll_fn(|cx| alarm.poll_until(cx, at)).await;
                assert!(Instant::now() >= at);
                ms
            }
        };
        let mut woken = futures::stream::FuturesUnordered::from_iter([sleep(60), sleep(5)]);
        assert_eq!(woken.next().await, Some(5));
        assert_eq!(woken.next().await, Some(60));
        drop(woken);
        assert!(timer.shared.sleepers.lock().by_time.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_alarm_leaves_nothing() {
        let timer = Timer::start().unwrap();
        let mut alarm = timer.alarm();
        let far = Instant::now() + Duration::from_secs(3600);
        let polled = poll_fn(|cx| Poll::Ready(alarm.poll_until(cx, far))).await;
        assert!(polled.is_pending());
        let nearer = Instant::now() + Duration::from_secs(1800);
        let polled = poll_fn(|cx| Poll::Ready(alarm.poll_until(cx, nearer))).await;
        assert!(polled.is_pending());
        assert_eq!(timer.shared.sleepers.lock().by_time.len(), 1);
        drop(alarm);
        assert!(timer.shared.sleepers.lock().by_time.is_empty());
    }
}
