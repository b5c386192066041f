//! Lines of the log that one cause may call for again and again: told at once, and then from time to time with
//! a count.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Such lines are told this often.
pub(crate) const TOLD_EVERY: Duration = Duration::from_secs(10);

/// When one kind of line was told last, and how often it was not since.
#[derive(Debug, Default)]
pub(crate) struct LogPace(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl LogPace {
    /// How many lines were left out since the last one, if one is due now; `None` if this one is left out too.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock();
        if told
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < TOLD_EVERY)
        {
            told.untold += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.untold))
    }
}

/// What a line says about those that were left out before it: nothing, if there were none.
pub(crate) fn left_out(count: u64) -> String {
    match count {
        0 => String::new(),
        count => format!(" ({count} more since the last such line)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_line_is_told_at_once_and_the_rest_is_counted() {
        let (pace, start) = (LogPace::default(), Instant::now());
        let at = |seconds| pace.due(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(1), at(9), at(10), at(11), at(30)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
        assert_eq!(
            [left_out(0), left_out(2)],
            ["".to_owned(), " (2 more since the last such line)".to_owned()]
        );
    }
}
