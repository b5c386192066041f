//! A thread of its own for work that takes a processor for long, such as opening and writing compressed batches: never on
//! the threads that answer clients, and after them where the system lets a thread say so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use tokio::sync::oneshot;

/// How far the thread stands back for others: as far as there is.
const NICE: i32 = 19;

type Job = Box<dyn FnOnce() + Send>;

/// See the module's documentation. The thread ends with it.
#[derive(Debug)]
pub(crate) struct Worker {
    /// To the thread; without one work is done in place.
    jobs: Option<mpsc::Sender<Job>>,
}

impl Worker {
    pub(crate) fn start(name: &str) -> std::io::Result<Worker> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let run = move || {
            stand_back(NICE);
            while let Ok(job) = queue.recv() {
                // Whoever waits for it learns of a panic by the answer that does not come.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Worker { jobs: Some(jobs) })
    }

    /// Without a thread, for a simulation: its time would run on while a thread works.
    pub(crate) fn in_place() -> Worker {
        Worker { jobs: None }
    }

    /// Does something there; `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, done) = oneshot::channel();
        let job = move || {
            // Nobody waits any more: the task was aborted.
            let _ = answer.send(job());
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
    async fn it_goes_on_after_a_panic() {
        let worker = Worker::start("test").unwrap();
        let name = worker
            .run(|| std::thread::current().name().map(str::to_owned))
            .await;
        assert_eq!(name.flatten().as_deref(), Some("test"));
        assert_eq!(worker.run(|| -> i32 { panic!("as a test wants it") }).await, None);
        assert_eq!(worker.run(|| 7).await, Some(7));
    }
}
