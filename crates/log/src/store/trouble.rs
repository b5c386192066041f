//! What is said of a store that fails: one line per store and half a minute, however many keys and writers
//! meet the same failure.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// A store that still fails is reported this often.
const REPORTED_EVERY: Duration = Duration::from_secs(30);

/// From here on a failure is more than a hiccup, and somebody should look.
const LASTING: Duration = Duration::from_secs(10);

/// Failures of one kind of request since it last succeeded.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    current: Option<Current>,
    /// When the last report was due, and the last one about a failure that lasts.
    reported: Option<Instant>,
    reported_lasting: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    since: Instant,
    failures: u64,
    why: String,
    /// What waits meanwhile, in words.
    waiting: Option<&'static str>,
    reported_lasting: bool,
}

/// A line of the log that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) why: String,
    pub(crate) failures: u64,
    pub(crate) lasted: Duration,
    pub(crate) waiting: Option<&'static str>,
}

impl Report {
    /// Whether it has lasted long enough to be an error.
    pub(crate) fn is_lasting(&self) -> bool {
        self.lasted > LASTING
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; ", self.why)?;
        if let Some(waiting) = self.waiting {
            write!(f, "{waiting} wait, ")?;
        }
        let s = if self.failures == 1 { "" } else { "s" };
        write!(f, "retrying ({} failure{s}", self.failures)?;
        match self.lasted.as_secs() {
            0 => f.write_str(")"),
            seconds => write!(f, " in {seconds} s)"),
        }
    }
}

impl Trouble {
    /// A request failed. `began` is when the one who makes it met his first failure: others may succeed
    /// meanwhile, and his still lasts. The report is there if it is due.
    pub(crate) fn failed(
        &mut self,
        why: &str,
        waiting: Option<&'static str>,
        began: Instant,
        now: Instant,
    ) -> Option<Report> {
        let current = self.current.get_or_insert_with(|| Current {
            since: began,
            failures: 0,
            why: String::new(),
            waiting: None,
            reported_lasting: false,
        });
        current.failures += 1;
        current.since = current.since.min(began);
        why.clone_into(&mut current.why);
        current.waiting = current.waiting.or(waiting);
        let report = Report {
            why: current.why.clone(),
            failures: current.failures,
            lasted: now.saturating_duration_since(current.since),
            waiting: current.waiting,
        };
        let due = |last: Option<Instant>| {
            last.is_none_or(|last| now.saturating_duration_since(last) >= REPORTED_EVERY)
        };
        if report.is_lasting() {
            if !due(self.reported_lasting) {
                return None;
            }
            current.reported_lasting = true;
            self.reported_lasting = Some(now);
        } else if !due(self.reported) {
            return None;
        }
        self.reported = Some(now);
        Some(report)
    }

    /// A request succeeded. How long it had failed, if that was reported as an error.
    pub(crate) fn succeeded(&mut self, now: Instant) -> Option<Duration> {
        let ended = self.current.take()?;
        ended
            .reported_lasting
            .then(|| now.saturating_duration_since(ended.since))
    }

    /// Why requests fail now, if they do.
    pub(crate) fn why(&self) -> Option<&str> {
        self.current.as_ref().map(|current| current.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_told_once_as_an_error_and_then_every_half_minute() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        // Two writers that each try every second.
        let mut lines = vec![];
        for second in 0..75 {
            for (waiting, began) in [(Some("producers"), 0), (None, 1)] {
                let began = at(start, began.min(second));
                if let Some(report) = trouble.failed("gone", waiting, began, at(start, second)) {
                    lines.push((second, report.is_lasting(), report.to_string()));
                }
            }
        }
        assert_eq!(
            lines,
            [
                (0, false, "gone; producers wait, retrying (1 failure)".to_owned()),
                (
                    11,
                    true,
                    "gone; producers wait, retrying (23 failures in 11 s)".to_owned()
                ),
                (
                    41,
                    true,
                    "gone; producers wait, retrying (83 failures in 41 s)".to_owned()
                ),
                (
                    71,
                    true,
                    "gone; producers wait, retrying (143 failures in 71 s)".to_owned()
                ),
            ]
        );
        assert_eq!(trouble.why(), Some("gone"));
        assert_eq!(
            trouble.succeeded(at(start, 80)),
            Some(Duration::from_secs(80)),
            "its end is told"
        );
        assert_eq!(trouble.why(), None);
        assert_eq!(trouble.succeeded(at(start, 81)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn hiccups_are_warned_of_once_in_half_a_minute() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let mut lines = vec![];
        for second in 0..60 {
            let now = at(start, second);
            if let Some(report) = trouble.failed("503", Some("producers"), now, now) {
                lines.push((second, report.is_lasting()));
            }
            assert_eq!(trouble.succeeded(now), None, "not worth a line");
        }
        assert_eq!(lines, [(0, false), (30, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_that_fails_for_long_is_an_error_though_others_succeed() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let mut lines = vec![];
        for second in 0..45 {
            let now = at(start, second);
            if let Some(report) = trouble.failed("denied", None, start, now) {
                lines.push((second, report.is_lasting()));
            }
            trouble.succeeded(now);
        }
        assert_eq!(lines, [(0, false), (11, true), (41, true)]);
    }
}
