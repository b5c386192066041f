//! What is to be seen while the demo runs: how far the topics and the group are, in one line.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::story::ORDERS;
use crate::cli::archive::grouped;

/// How often a line is printed where there is no terminal.
const QUIET: Duration = Duration::from_secs(5);

/// What the tasks of the demo know, shared between them.
#[derive(Debug, Default)]
pub(super) struct Figures(Mutex<Known>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// End offset of each partition, by topic, in the order of the topics.
    ends: Vec<(&'static str, Vec<i64>)>,
    /// Committed offset of each partition of the orders that the group has given to our consumer.
    committed: BTreeMap<i32, i64>,
    /// What each task could not do the last time.
    troubles: BTreeMap<&'static str, String>,
}

impl Figures {
    /// These are the topics, and where they end.
    pub(super) fn begin(&self, ends: Vec<(&'static str, Vec<i64>)>) {
        self.0.lock().ends = ends;
    }

    /// A partition ends here.
    pub(super) fn ends(&self, topic: usize, partition: usize, end: i64) {
        let mut known = self.0.lock();
        let known = known
            .ends
            .get_mut(topic)
            .and_then(|(_, ends)| ends.get_mut(partition));
        if let Some(known) = known {
            *known = end;
        }
    }

    /// The consumer has these partitions, and has committed these offsets.
    pub(super) fn committed(&self, offsets: &BTreeMap<i32, i64>) {
        self.0.lock().committed.clone_from(offsets);
    }

    /// Somebody could not do something and tries again, or could do it again.
    pub(super) fn trouble(&self, who: &'static str, what: Option<String>) {
        let mut known = self.0.lock();
        match what {
            Some(what) => known.troubles.insert(who, what),
            None => known.troubles.remove(who),
        };
    }
}

impl Known {
    fn totals(&self) -> Vec<i64> {
        self.ends.iter().map(|(_, ends)| ends.iter().sum()).collect()
    }

    /// Records that the group has not committed, in the partitions that our consumer has.
    fn lag(&self) -> i64 {
        let ends = self.ends.iter().find(|(topic, _)| *topic == ORDERS);
        let ends = ends.map_or(&[][..], |(_, ends)| ends);
        let behind = self.committed.iter().map(|(partition, committed)| {
            let end = usize::try_from(*partition).ok().and_then(|place| ends.get(place));
            end.map_or(0, |end| (end - committed).max(0))
        });
        behind.sum()
    }

    /// `rates` are records per second, one for each topic, once they are known.
    fn line(&self, group: &str, rates: Option<&[f64]>) -> String {
        let mut parts = Vec::new();
        for (place, ((topic, _), total)) in self.ends.iter().zip(self.totals()).enumerate() {
            let rate = rates.and_then(|rates| rates.get(place));
            let rate = rate.map_or_else(String::new, |rate| format!(" ({rate:.0}/s)"));
            parts.push(format!("{topic} {}{rate}", grouped(total)));
        }
        let all = self.ends.iter().find(|(topic, _)| *topic == ORDERS);
        let all = all.map_or(0, |(_, ends)| ends.len());
        let behind = grouped(self.lag());
        parts.push(match self.committed.len() {
            0 => format!("{group} has no partition yet"),
            some if some < all => format!("{group} is {behind} behind in {some} of {all} partitions"),
            _ => format!("{group} is {behind} behind"),
        });
        for (who, what) in &self.troubles {
            parts.push(format!("{who} tries again: {what}"));
        }
        parts.join(", ")
    }
}

/// Shows the figures: on a terminal in one line that is written over, else now and then.
pub(super) struct Status {
    group: &'static str,
    terminal: bool,
    /// Characters of the line that is on the terminal.
    width: usize,
    /// When it was last told, and how far the topics were.
    told: Option<(Instant, Vec<i64>)>,
}

impl Status {
    pub(super) fn new(group: &'static str) -> Status {
        Status {
            group,
            terminal: std::io::stdout().is_terminal(),
            width: 0,
            told: None,
        }
    }

    /// Once a second.
    pub(super) fn show(&mut self, figures: &Figures, now: Instant) {
        let due = |(told, _): &(Instant, Vec<i64>)| self.terminal || now - *told >= QUIET;
        if self.told.as_ref().is_none_or(due) {
            self.tell(figures, now);
        }
    }

    fn tell(&mut self, figures: &Figures, now: Instant) {
        let known = figures.0.lock().clone();
        let totals = known.totals();
        let rates = self.told.take().and_then(|(told, before)| {
            let seconds = (now - told).as_secs_f64();
            let rate = |(now, before): (&i64, i64)| (now - before) as f64 / seconds;
            (seconds > 0.0).then(|| totals.iter().zip(before).map(rate).collect::<Vec<_>>())
        });
        self.told = Some((now, totals));
        let line = known.line(self.group, rates.as_deref());
        // What cannot be told is no reason to stop.
        let mut out = std::io::stdout().lock();
        if self.terminal {
            let columns = crate::cli::config::terminal_width().saturating_sub(1);
            let line: String = line.chars().take(columns).collect();
            let width = self.width.max(line.chars().count()).min(columns);
            let _ = write!(out, "\r{line:width$}");
            self.width = line.chars().count();
        } else {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
    }

    /// The last line, which stays.
    pub(super) fn end(&mut self, figures: &Figures, now: Instant) {
        self.tell(figures, now);
        if self.terminal {
            let _ = writeln!(std::io::stdout());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_everything_is() {
        let figures = Figures::default();
        figures.begin(vec![("customers", vec![7]), (ORDERS, vec![1_000, 230, 10])]);
        figures.ends(1, 2, 12);
        figures.ends(9, 0, 1);
        figures.ends(1, 9, 1);
        let line = |rates: Option<&[f64]>| figures.0.lock().line("billing", rates);
        assert_eq!(
            line(None),
            "customers 7, orders 1,242, billing has no partition yet"
        );
        figures.committed(&BTreeMap::from([(0, 990), (1, 230), (2, 14), (5, 0)]));
        assert_eq!(
            line(Some(&[2.4, 20.0])),
            "customers 7 (2/s), orders 1,242 (20/s), billing is 10 behind"
        );
        figures.committed(&BTreeMap::from([(0, 0)]));
        figures.trouble("producer", Some("no".to_owned()));
        assert_eq!(
            line(None),
            "customers 7, orders 1,242, billing is 1,000 behind in 1 of 3 partitions, producer tries again: no"
        );
        figures.trouble("producer", None);
        assert!(!line(None).contains("again"));
    }
}
