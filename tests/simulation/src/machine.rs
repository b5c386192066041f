//! A machine: a runtime of its own with a clock of its own, stepped by the driver. Killing it drops the runtime and
//! with it every task and all memory; freezing it is not stepping it, and then letting its clock jump.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::world::{Millis, stepping};

/// See the module's documentation.
pub struct Machine {
    runtime: Runtime,
    /// An instant of its runtime and the world's time then.
    born: (Instant, Millis),
    /// Up to where it has run.
    at: Millis,
    pub frozen: bool,
}

impl Machine {
    /// A machine that is switched on now.
    pub fn new(now: Millis) -> Machine {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O needs nothing");
        let base = runtime.block_on(async { Instant::now() });
        Machine {
            runtime,
            born: (base, now),
            at: now,
            frozen: false,
        }
    }

    /// Starts a task on it; it is first polled in the next step.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.runtime.spawn(task);
    }

    /// Runs it up to `to`.
    pub fn step(&mut self, to: Millis) {
        if self.frozen || to <= self.at {
            return;
        }
        let until = self.born.0 + Duration::from_millis(to - self.born.1);
        stepping(Some(self.born));
        self.runtime
            .block_on(async { tokio::time::sleep_until(until).await });
        stepping(None);
        self.at = to;
    }

    /// It runs again: its clock jumps, whatever was due meanwhile is due now.
    pub fn thaw(&mut self, now: Millis) {
        self.frozen = false;
        if now > self.at {
            let gap = Duration::from_millis(now - self.at);
            stepping(Some(self.born));
            self.runtime.block_on(async { tokio::time::advance(gap).await });
            stepping(None);
            self.at = now;
        }
    }

    /// Runs a future to its end, as fast as virtual time goes.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        stepping(Some(self.born));
        let done = self.runtime.block_on(future);
        stepping(None);
        done
    }
}
