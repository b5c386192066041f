//! Wall-clock time, behind a seam so that a simulation can own it. Monotonic time is `tokio::time::Instant`,
//! which a test can pause.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the wall-clock time. Used for record timestamps and retention, never for safety.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> i64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // The one place that reads the machine's clock.
    fn now_ms(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as i64)
    }
}
