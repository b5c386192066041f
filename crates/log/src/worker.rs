//! Threads of their own for work that takes a processor for long, such as opening and writing compressed batches: never
//! on the threads that answer clients, and after them where the system lets a thread say so.
//!
//! A few that stay are also better to the memory than the runtime's own threads for blocking work, of which dozens take
//! turns: an allocator keeps for each thread what that thread used last.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// See the module's documentation. The threads end with it.
#[derive(Debug)]
pub struct Workers {
    /// To the threads; without them work is done in place.
    jobs: Option<mpsc::Sender<Job>>,
}

impl Workers {
    /// `count` threads of this name, as nice to others as `nice` counts.
    pub fn start(name: &str, count: usize, nice: i32) -> std::io::Result<Workers> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..count.max(1) {
            let queue = Arc::clone(&queue);
            let next = move || queue.lock().recv();
            let run = move || {
                stand_back(nice);
                while let Ok(job) = next() {
                    // Whoever waits for it learns of a panic by the answer that does not come.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        }
        Ok(Workers { jobs: Some(jobs) })
    }

    /// Without threads, for a simulation: its time would run on while one works.
    pub fn in_place() -> Workers {
        Workers { jobs: None }
    }

    /// Does something there, after what was asked for earlier, unless nobody waits for it any more by then; `None` if it
    /// panicked. What the job holds is held until it is done or passed over.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, done) = oneshot::channel();
        let job = move || {
            if !answer.is_closed() {
                let _ = answer.send(job());
            }
        };
        match &self.jobs {
            Some(jobs) => jobs.send(Box::new(job)).ok()?,
            None => job(),
        }
        done.await.ok()
    }
}

/// Lets other threads go before this one, as far as `nice` says. On Linux a thread has a priority of its own; elsewhere it
/// would be that of the whole process.
pub(crate) fn stand_back(nice: i32) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, "a thread for background work keeps its priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_go_on_after_a_panic() {
        let workers = Workers::start("test", 1, 19).unwrap();
        let name = workers
            .run(|| std::thread::current().name().map(str::to_owned))
            .await;
        assert_eq!(name.flatten().as_deref(), Some("test"));
        assert_eq!(
            workers.run(|| -> i32 { panic!("as a test wants it") }).await,
            None
        );
        assert_eq!(workers.run(|| 7).await, Some(7));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun() {
        let workers = Workers::start("test", 1, 0).unwrap();
        let (let_go, held) = mpsc::channel::<()>();
        let mut first = Box::pin(workers.run(move || held.recv().is_err()));
        assert!(futures::poll!(&mut first).is_pending());
        let done = Arc::new(Mutex::new(vec![]));
        let job = |n: i32| {
            let done = Arc::clone(&done);
            move || done.lock().push(n)
        };
        {
            let mut second = Box::pin(workers.run(job(2)));
            assert!(futures::poll!(&mut second).is_pending());
        }
        let third = workers.run(job(3));
        drop(let_go);
        let (first, third) = tokio::join!(first, third);
        assert_eq!((first, third), (Some(true), Some(())));
        assert_eq!(*done.lock(), [3]);
    }

    #[tokio::test]
    async fn several_work_at_a_time() {
        let workers = Workers::start("test", 2, 0).unwrap();
        let (from_one, to_other) = mpsc::channel();
        let waits = workers.run(move || to_other.recv());
        let tells = workers.run(move || from_one.send(7));
        assert_eq!(tokio::join!(waits, tells), (Some(Ok(7)), Some(Ok(()))));
    }
}
