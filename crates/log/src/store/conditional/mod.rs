//! Conditional writes with three outcomes: committed, lost, unknown.
//!
//! * [`create`] writes a key that must not exist (segments, seals, checkpoints).
//! * [`update`] replaces a key whose version is known (the manifest, `head.json`), or writes it first.
//! * [`read`] gives a key's bytes with the version that an update needs.
//!
//! The decisions are the machines of [`CreateMachine`] and [`UpdateMachine`]; this file carries them out:
//! one attempt at a time with a time-out that grows with the bytes, and pauses with jitter in between. Errors
//! of every kind are retried, refused credentials and a full disk included: they pass, and nothing else than
//! the key's content can tell what became of an earlier attempt.
//!
//! **Cancellation.** Dropping the future of `create` or `update` is safe for the store (there is nothing to
//! clean up) and leaves the outcome unknown: a write on its way may still be applied. Who must know the
//! outcome runs it on a task of its own that nobody drops.

mod machine;

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use tokio::time::Instant;

use super::reason_of;
use super::{Store, StoreError};
use crate::mutation::{self, Mutation};
pub use machine::{Action, CreateEvent, CreateMachine, UpdateEvent, UpdateMachine};

/// How much of an object a create reads back to recognise it: a writer's nonce MUST lie within.
pub const READ_BACK_BYTES: u64 = 256;

/// The largest object that is read whole, as the manifest and heads are.
pub const CAS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a conditional write is retried while its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until it is settled.
    Forever,
    /// Until about this long after the start; then the outcome is `Unknown`.
    For(Duration),
}

/// What became of a [`create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateOutcome {
    /// The key holds our bytes, durably.
    Committed,
    /// The key holds something else; its first [`READ_BACK_BYTES`] are given. Our bytes never get there.
    Lost(Bytes),
    /// Patience ran out, for the reason given. The write may have been applied, or may be later.
    Unknown(String),
}

impl CreateOutcome {
    /// Its name, for the log.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            CreateOutcome::Committed => "committed",
            CreateOutcome::Lost(_) => "lost",
            CreateOutcome::Unknown(_) => "unknown",
        }
    }
}

/// What became of an [`update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// Our write was applied. The content is what the key held when that became known: our own bytes, or what
    /// another writer has made of them since.
    Committed(Versioned),
    /// Our write was not applied and never will be. The content is what the key holds now; `None` if nothing.
    Lost(Option<Versioned>),
    /// Patience ran out, for the reason given. The write may have been applied, or may be later.
    Unknown(String),
}

/// Bytes of a key with the version that a compare-and-swap from them needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The whole content.
    pub bytes: Bytes,
    /// Its version.
    pub version: UpdateVersion,
}

/// What one attempt of a conditional write says, before anything is read back.
#[derive(Debug)]
enum Attempt {
    Confirmed(UpdateVersion),
    Refused(Error),
    Unknown(String),
}

/// Writes `payload` at `key` if nothing is there, and finds out whether that worked.
///
/// `is_mine` gets the first [`READ_BACK_BYTES`] (fewer if the object is smaller) of what is at the key, and
/// MUST say whether they are this very writer's: by a nonce that no other writer of the key can have. The
/// same writer MAY call again with the same bytes, and MUST NOT call with other bytes under the same nonce.
pub async fn create<F>(
    store: &Store,
    key: &Path,
    payload: PutPayload,
    is_mine: F,
    patience: Patience,
) -> CreateOutcome
where
    F: Fn(&Bytes) -> bool + Send + Sync,
{
    let bytes = payload.content_length() as u64;
    let mut pace = Pace::new(store, key, patience);
    let mut machine = CreateMachine::default();
    let blindly = mutation::on(Mutation::CasRetriedBlindly);
    let mut found = Bytes::new();
    loop {
        let event = match machine.action() {
            Action::Put => match attempt(&pace, payload.clone(), PutMode::Create, bytes).await {
                Attempt::Confirmed(_) => CreateEvent::PutConfirmed,
                Attempt::Refused(_) if blindly && pace.failures > 0 => CreateEvent::PutConfirmed,
                Attempt::Unknown(error) if blindly => {
                    pace.trouble = error;
                    if pace.failed(true).await {
                        continue;
                    }
                    return CreateOutcome::Unknown(pace.trouble);
                }
                Attempt::Refused(error) => {
                    pace.trouble = reason_of(&error);
                    CreateEvent::PutRefused
                }
                Attempt::Unknown(error) => {
                    pace.trouble = error;
                    CreateEvent::PutUnknown
                }
            },
            Action::Read => match read_start(&pace).await {
                Ok(Some(start)) if is_mine(&start) => CreateEvent::ReadMine,
                Ok(Some(start)) => {
                    found = start;
                    CreateEvent::ReadOther
                }
                Ok(None) => CreateEvent::ReadMissing,
                Err(error) => {
                    pace.trouble = error;
                    CreateEvent::ReadFailed
                }
            },
            Action::Committed => {
                store.write_settled();
                return CreateOutcome::Committed;
            }
            Action::Lost => {
                store.write_settled();
                return CreateOutcome::Lost(found);
            }
        };
        let _ = machine.on(event);
        let again = matches!(event, CreateEvent::ReadMissing | CreateEvent::ReadFailed);
        let unknown = event == CreateEvent::PutUnknown;
        if (again || unknown) && !pace.failed(again).await {
            return CreateOutcome::Unknown(pace.trouble);
        }
    }
}

/// Replaces what is at `key` by `payload` if its version is `expected` (`None`: if nothing is there), and
/// finds out whether that worked.
///
/// `landed` gets what is at the key and MUST say whether this write was applied, even if other writers have
/// built on it since: the bodies carry the last commit id of every writer. `payload` MUST differ from every
/// earlier content of the key, since stores whose ETags are content hashes take equal bytes for equal versions.
pub async fn update<F>(
    store: &Store,
    key: &Path,
    payload: Bytes,
    expected: Option<&UpdateVersion>,
    landed: F,
    patience: Patience,
) -> UpdateOutcome
where
    F: Fn(&Bytes) -> bool + Send + Sync,
{
    let bytes = payload.len() as u64;
    let mode = expected.map_or(PutMode::Create, |version| PutMode::Update(version.clone()));
    let mut pace = Pace::new(store, key, patience);
    let mut machine = UpdateMachine::default();
    let mut current = None;
    loop {
        let event = match machine.action() {
            Action::Put => match attempt(&pace, payload.clone().into(), mode.clone(), bytes).await {
                Attempt::Confirmed(version) => {
                    current = Some(Versioned {
                        bytes: payload.clone(),
                        version,
                    });
                    UpdateEvent::PutConfirmed
                }
                Attempt::Refused(error) => {
                    pace.trouble = reason_of(&error);
                    UpdateEvent::PutRefused
                }
                Attempt::Unknown(error) => {
                    pace.trouble = error;
                    UpdateEvent::PutUnknown
                }
            },
            Action::Read => match read_whole(&pace, bytes).await {
                Ok(found) => {
                    let event = match &found {
                        Some(found) if landed(&found.bytes) => UpdateEvent::ReadLanded,
                        _ if is_expected(found.as_ref(), expected) => UpdateEvent::ReadUnchanged,
                        _ => UpdateEvent::ReadChanged,
                    };
                    current = found;
                    event
                }
                Err(error) => {
                    pace.trouble = error;
                    UpdateEvent::ReadFailed
                }
            },
            Action::Lost => {
                // A key that is gone may be all of the store that is gone.
                if current.is_some() {
                    store.write_settled();
                }
                return UpdateOutcome::Lost(current);
            }
            Action::Committed => match current {
                Some(current) => {
                    store.write_settled();
                    return UpdateOutcome::Committed(current);
                }
                None => return UpdateOutcome::Unknown("committed without content".to_owned()),
            },
        };
        let _ = machine.on(event);
        let again = matches!(event, UpdateEvent::ReadUnchanged | UpdateEvent::ReadFailed);
        let unknown = event == UpdateEvent::PutUnknown;
        if (again || unknown) && !pace.failed(again).await {
            return UpdateOutcome::Unknown(pace.trouble);
        }
    }
}

/// The content of `key` with its version; `None` if nothing is there. Retried by the client, then an error.
pub async fn read(store: &Store, key: &Path) -> Result<Option<Versioned>, StoreError> {
    get_versioned(store, store.bulk.as_ref(), key).await
}

/// Paces the attempts of one write and knows when to give up.
struct Pace<'a> {
    store: &'a Store,
    key: &'a Path,
    deadline: Option<Instant>,
    failures: u32,
    /// The first failure.
    failing_since: Option<Instant>,
    /// The latest trouble, for the log and for giving up.
    trouble: String,
}

impl<'a> Pace<'a> {
    fn new(store: &'a Store, key: &'a Path, patience: Patience) -> Pace<'a> {
        let deadline = match patience {
            Patience::Forever => None,
            // A deadline that cannot be expressed is no deadline.
            Patience::For(limit) => Instant::now().checked_add(limit),
        };
        Pace {
            store,
            key,
            deadline,
            failures: 0,
            failing_since: None,
            trouble: String::new(),
        }
    }

    /// Counts a failure and, if `pause`, waits before the next attempt (a doubtful write is read back at once,
    /// and only the round after that waits). False if patience has run out.
    async fn failed(&mut self, pause: bool) -> bool {
        let now = Instant::now();
        // Only a segment is written without a deadline, because producers wait for it.
        let waiting = self.deadline.is_none().then_some("producers");
        let began = *self.failing_since.get_or_insert(now);
        self.store.write_failed(&self.trouble, waiting, began);
        let mut wait = Duration::ZERO;
        if pause {
            self.failures = self.failures.saturating_add(1);
            wait = self.store.limits.backoff(self.failures, self.store.random_unit());
        }
        if self.deadline.is_some_and(|deadline| now + wait >= deadline) {
            return false;
        }
        if pause {
            tokio::time::sleep(wait).await;
        }
        true
    }

    /// The time for one request of `bytes`, never past the deadline.
    fn timeout(&self, bytes: u64) -> Duration {
        let own = self.store.limits.timeout(bytes);
        match self.deadline {
            None => own,
            Some(deadline) => own.min(deadline.saturating_duration_since(Instant::now())),
        }
    }
}

/// Sends the write once and sorts the answer. Only a confirmation is taken at its word.
async fn attempt(pace: &Pace<'_>, payload: PutPayload, mode: PutMode, bytes: u64) -> Attempt {
    let timeout = pace.timeout(bytes);
    let options = PutOptions::from(mode);
    let put = pace.store.conditional.put_opts(pace.key, payload, options);
    match tokio::time::timeout(timeout, put).await {
        Ok(Ok(result)) => Attempt::Confirmed(result.into()),
        // A 404 answers If-Match on a missing key.
        Ok(Err(
            error @ (Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. }),
        )) => Attempt::Refused(error),
        Ok(Err(error)) => Attempt::Unknown(reason_of(&error)),
        Err(_) => Attempt::Unknown(format!("no answer within {timeout:?}")),
    }
}

/// Reads the start of the key once.
async fn read_start(pace: &Pace<'_>) -> Result<Option<Bytes>, String> {
    let timeout = pace.timeout(READ_BACK_BYTES);
    let client = pace.store.conditional.as_ref();
    let read = async {
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(0..READ_BACK_BYTES)));
        let error = match client.get_opts(pace.key, options).await {
            Ok(result) => return result.bytes().await.map(Some),
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => error,
        };
        // No range of an empty object can be had.
        match client.get_opts(pace.key, GetOptions::new().with_head(true)).await {
            Ok(result) if result.meta.size == 0 => Ok(Some(Bytes::new())),
            Err(Error::NotFound { .. }) => Ok(None),
            _ => Err(error),
        }
    };
    let answer = tokio::time::timeout(timeout, read).await;
    flatten(
        answer.map(|read| read.map_err(|error| reason_of(&error))),
        timeout,
    )
}

/// Whether the key is still what the write expects. ETags alone are compared, as the store does.
fn is_expected(found: Option<&Versioned>, expected: Option<&UpdateVersion>) -> bool {
    match (found, expected) {
        (None, None) => true,
        (Some(found), Some(expected)) => found.version.e_tag == expected.e_tag,
        _ => false,
    }
}

/// Reads the key once, with its version; it should be about as large as the `bytes` that were to be written.
async fn read_whole(pace: &Pace<'_>, bytes: u64) -> Result<Option<Versioned>, String> {
    let timeout = pace.timeout(bytes.saturating_mul(2));
    let read = get_versioned(pace.store, pace.store.conditional.as_ref(), pace.key);
    let in_words = |error| match error {
        StoreError::Read { source, .. } => reason_of(&source),
        other => other.to_string(),
    };
    let answer = tokio::time::timeout(timeout, read).await;
    flatten(answer.map(|read| read.map_err(in_words)), timeout)
}

fn flatten<T, X>(answer: Result<Result<T, String>, X>, timeout: Duration) -> Result<T, String> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("reading back: {error}")),
        Err(_) => Err(format!("reading back: no answer within {timeout:?}")),
    }
}

async fn get_versioned(
    store: &Store,
    client: &dyn ObjectStore,
    key: &Path,
) -> Result<Option<Versioned>, StoreError> {
    let failed = |source| StoreError::Read {
        store: store.display.clone(),
        key: key.clone(),
        source,
    };
    let result = match client.get_opts(key, GetOptions::new()).await {
        Ok(result) => result,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if result.meta.size > CAS_BYTES_MAX {
        return Err(StoreError::TooLarge {
            store: store.display.clone(),
            key: key.clone(),
            bytes: result.meta.size,
            limit: CAS_BYTES_MAX,
        });
    }
    let version = UpdateVersion {
        e_tag: result.meta.e_tag.clone(),
        version: result.meta.version.clone(),
    };
    if version.e_tag.is_none() {
        return Err(StoreError::NoETag {
            store: store.display.clone(),
            key: key.clone(),
        });
    }
    let bytes = result.bytes().await.map_err(failed)?;
    Ok(Some(Versioned { bytes, version }))
}

#[cfg(test)]
mod tests;
