//! What to do next in a conditional write, as pure functions of what was seen. No clock, no I/O: the driver
//! in [`super`] carries the actions out, and a model checker can do the same.
//!
//! Both machines keep two rules. A write whose fate is unknown is never reported as a success or a failure:
//! it is settled by reading the key back. And a refusal by the store is not believed either, since it may be
//! the echo of this writer's own earlier attempt, which a layer below has repeated.

/// Settles a create-if-absent.
///
/// Once the key holds anything, it holds that for ever (nothing that is created this way is overwritten), so
/// one look at it is final. As long as it holds nothing, sending the same bytes again is safe, however many
/// earlier copies are still on their way: one of the copies wins, and all carry the same nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CreateMachine {
    step: Step,
}

/// What a create sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CreateEvent {
    /// The store confirmed the write.
    PutConfirmed,
    /// The store refused: something exists, or (409) another request for the key was under way.
    PutRefused,
    /// No answer, or an error that leaves open whether the write was or will be applied.
    PutUnknown,
    /// The key holds this writer's nonce.
    ReadMine,
    /// The key holds something else.
    ReadOther,
    /// The key holds nothing (yet).
    ReadMissing,
    /// The key could not be read.
    ReadFailed,
}

/// Settles a compare-and-swap from one version to a body with a fresh commit id.
///
/// Bodies never repeat (each holds a fresh commit id), so a version never comes back; once the key has moved
/// past the expected version, no copy of this write that is still on its way can be applied any more. As long
/// as it has not moved, sending the same bytes again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct UpdateMachine {
    step: Step,
}

/// What an update sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpdateEvent {
    /// The store confirmed the write.
    PutConfirmed,
    /// The store refused: 412, 404, or 409 (another request for the key was under way).
    PutRefused,
    /// No answer, or an error that leaves open whether the write was or will be applied.
    PutUnknown,
    /// What the key holds shows that this write was applied, be it that others have built on it since.
    ReadLanded,
    /// The key is still what the write expects: the expected version, or absent if it is to be created.
    ReadUnchanged,
    /// The key holds something else, without a trace of this write.
    ReadChanged,
    /// The key could not be read.
    ReadFailed,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the write, with the same bytes every time.
    Put,
    /// Read the key back.
    Read,
    /// Over: the write was applied.
    Committed,
    /// Over: the write was not applied and never will be.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Step {
    #[default]
    Putting,
    Reading,
    Committed,
    Lost,
}

impl Step {
    fn action(self) -> Action {
        match self {
            Step::Putting => Action::Put,
            Step::Reading => Action::Read,
            Step::Committed => Action::Committed,
            Step::Lost => Action::Lost,
        }
    }
}

impl CreateMachine {
    /// What to do now.
    pub fn action(&self) -> Action {
        self.step.action()
    }

    /// Takes in what the last action brought, and says what to do next. An event that does not belong to the
    /// action changes nothing.
    #[must_use]
    pub fn on(&mut self, event: CreateEvent) -> Action {
        self.step = match (self.step, event) {
            (Step::Putting, CreateEvent::PutConfirmed) => Step::Committed,
            (Step::Putting, CreateEvent::PutRefused | CreateEvent::PutUnknown) => Step::Reading,
            (Step::Reading, CreateEvent::ReadMine) => Step::Committed,
            (Step::Reading, CreateEvent::ReadOther) => Step::Lost,
            (Step::Reading, CreateEvent::ReadMissing) => Step::Putting,
            (step, _) => step,
        };
        self.action()
    }
}

impl UpdateMachine {
    /// What to do now.
    pub fn action(&self) -> Action {
        self.step.action()
    }

    /// Takes in what the last action brought, and says what to do next. An event that does not belong to the
    /// action changes nothing.
    #[must_use]
    pub fn on(&mut self, event: UpdateEvent) -> Action {
        self.step = match (self.step, event) {
            (Step::Putting, UpdateEvent::PutConfirmed) => Step::Committed,
            (Step::Putting, UpdateEvent::PutRefused | UpdateEvent::PutUnknown) => Step::Reading,
            (Step::Reading, UpdateEvent::ReadLanded) => Step::Committed,
            (Step::Reading, UpdateEvent::ReadChanged) => Step::Lost,
            (Step::Reading, UpdateEvent::ReadUnchanged) => Step::Putting,
            (step, _) => step,
        };
        self.action()
    }
}

#[cfg(test)]
mod tests;
