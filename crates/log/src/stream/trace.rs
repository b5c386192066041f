//! Following single requests through a segment, for whoever asks for it with the log's level.
//!
//! Whoever appends may do so inside a span, such as that of a Produce request. A segment keeps the spans of its
//! appends, and says in each of them what becomes of it. Where the level is above debug there are no spans, and all
//! that an append costs is one look at the level.

use tracing::Span;

/// The spans of the requests whose appends are in one segment, in order of the appends. They live as long as those
/// requests wait, and are as many at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces(Vec<Span>);

impl Traces {
    /// Adds the span that is entered here and now, if there is one. A request with many partitions counts once.
    pub(super) fn add_current(&mut self) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let span = Span::current();
        let again = self.0.last().is_some_and(|last| last.id() == span.id());
        if !span.is_disabled() && !again {
            self.0.push(span);
        }
    }

    /// Calls `say`, which logs an event, once in each of the spans.
    pub(super) fn each(&self, say: impl Fn()) {
        for span in &self.0 {
            span.in_scope(&say);
        }
    }
}
