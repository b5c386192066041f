//! A journal in front of small objects that are created.
//!
//! A file of its own costs a small object five changes of the file system's records and two waits for them:
//! 0.84 ms and 0.38 ms of CPU at 4 KiB, measured on ext4. One write into blocks that exist already is as
//! durable after 0.20 ms and 0.08. So an object is written as one record into one of two pre-written files
//! and answered; a thread makes regular files of the records later, hundreds at a time, for 0.08 ms of CPU
//! each. Larger objects are written twice for that: at 64 KiB no CPU is saved any more, only time.
//!
//! ```text
//! <root>/.alluvium/journal/0, 1   two halves; see `format`
//! ```
//!
//! * **An object is *pending*** from the end of its record's write until it is a regular file and its half has
//!   a new header. While it is, it is served from memory and counts like a file: see [`Journal::create`],
//!   [`Journal::get`], [`Journal::children`]. Nothing but creation is journalled. Whoever is going to replace
//!   or remove a key calls [`Journal::settle`] first and makes sure under the key's lock that it still is
//!   settled: once the header is new, no opening can bring the object back.
//! * **Files are durable before they have their names.** At the next opening a record whose key has a file is
//!   passed over; a name whose bytes are not on disk yet would hide the record that has them.
//! * **A half is used again only as a whole**, under a new nonce, when all its objects are regular files with
//!   durable names. If that fails, for want of space say, the objects stay pending, the journal takes no
//!   further ones, and it is tried again every second.
//! * **A failed write of a record closes the store**, as a failed fsync does: whether the object exists will be
//!   known at the next opening.
//! * **Memory:** payloads that are pending, at most the size of the journal and an eighth.
//!
//! When the last clone of the store goes, everything is made regular files. A process that ends without that
//! leaves it to its successor.

mod format;
mod half;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::StoreError;
use super::directory::{Directory, DiskError, Lasting, PRIVATE, at, create_durably, explain, sync_directory};
use super::file_of;
use format::{Header, Object, Record};
use half::{Found, Half};
use room::{HALVES, Room};

/// Larger objects gain too little from being written twice.
const PAYLOAD_BYTES_MAX: u64 = 256 * 1024;

/// What the system itself can open is not longer.
const KEY_BYTES_MAX: usize = 4096;

/// Space and files that must be left when an object is journalled, so that it can become a file.
const SPARE_BYTES: u64 = 1024 * 1024;
const SPARE_FILES: u64 = 64;

/// Files that share a wait for the disk.
const FILES_AT_ONCE: usize = 1024;

/// Between attempts to make files of a half.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The size of the journal and how long it keeps objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Of each half; a multiple of 4 KiB.
    pub(super) half_bytes: u64,
    /// A half with an object of this age is made regular files. Each time the disk is busy for some
    /// milliseconds, which those notice who write then: at 500 objects a second, p99 is 5 ms if it is done
    /// every second and 1 ms if it is done every ten.
    pub(super) drain_after: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            half_bytes: 16 * 1024 * 1024,
            drain_after: Duration::from_secs(10),
        }
    }
}

/// The journal of a directory. Dropping it makes everything regular files.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    drainer: Option<JoinHandle<()>>,
}

/// What became of an object that was to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It is durable and has this version.
    Committed(i64),
    /// The key is taken.
    Exists,
    /// It is not for the journal, or there is no room: make a file.
    NotTaken,
}

/// An object that is not a regular file yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) payload: Bytes,
    pub(super) version: i64,
    half: usize,
}

#[derive(Debug)]
struct Shared {
    directory: Arc<Directory>,
    settings: Settings,
    /// None if nothing can be journalled.
    halves: Option<[Half; HALVES]>,
    state: Mutex<State>,
    /// Something of the state has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    room: Room,
    headers: [Header; HALVES],
    pending: BTreeMap<String, Pending>,
    pending_bytes: u64,
    /// Someone waits for a key to be settled: what is pending now is due.
    hurry: bool,
    stop: bool,
    failures: u64,
    /// Why the last attempt to make files has failed, and when the next one is due.
    stuck: Option<(Lasting, Instant)>,
}

/// What the thread does next.
enum Step {
    Drain(usize),
    WaitUntil(Instant),
    Wait,
    End,
}

impl Journal {
    /// Makes regular files of what an earlier process has left in the journal, and begins a new one. Without
    /// space for one there is none.
    pub(super) fn open(directory: Arc<Directory>, settings: Settings) -> Result<Journal, StoreError> {
        let root = directory.root().to_owned();
        let unusable = |error: DiskError| explain(&root, &error);
        let mut found = Vec::new();
        for path in paths(&root) {
            found.push(half::read(&root, &path)?);
        }
        let objects = recovered(&directory, &mut found)?;
        for object in &objects {
            directory.outdate(object.version);
        }
        make_files(&directory, &objects).map_err(unusable)?;
        drop(objects);
        let (headers, halves) = prepare(&directory, &found, settings).map_err(unusable)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(headers, settings)),
            directory,
            settings,
            halves,
            changed: Condvar::new(),
        });
        let mut journal = Journal {
            shared: shared.clone(),
            drainer: None,
        };
        if shared.halves.is_some() {
            let named = std::thread::Builder::new().name("store-journal".to_owned());
            let drainer = named.spawn(move || shared.drain());
            journal.drainer = Some(
                drainer
                    .map_err(at("starting a thread for", &root))
                    .map_err(unusable)?,
            );
        }
        Ok(journal)
    }

    /// What is pending in a directory that is only looked at, whoever has it. Nothing is written.
    pub(super) fn open_read_only(directory: Arc<Directory>) -> Result<Journal, StoreError> {
        let root = directory.root().to_owned();
        let settings = Settings::default();
        let mut state = State::new([Header::NONE; HALVES], settings);
        let mut found = Vec::new();
        for path in paths(&root) {
            found.push(half::read(&root, &path)?);
        }
        for object in recovered(&directory, &mut found)? {
            let pending = Pending {
                payload: object.payload,
                version: object.version,
                half: 0,
            };
            state.pending.entry(object.key).or_insert(pending);
        }
        let shared = Arc::new(Shared {
            directory,
            settings,
            halves: None,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        Ok(Journal {
            shared,
            drainer: None,
        })
    }

    /// Creates an object whose file would be `path`, whose directory exists.
    pub(super) fn create(&self, key: &Path, path: &FilePath, chunks: &[Bytes]) -> Result<Created, DiskError> {
        let Some(halves) = &self.shared.halves else {
            return Ok(Created::NotTaken);
        };
        let payload_bytes: usize = chunks.iter().map(Bytes::len).sum();
        let name = key.as_ref();
        if payload_bytes as u64 > PAYLOAD_BYTES_MAX || name.len() > KEY_BYTES_MAX {
            return Ok(Created::NotTaken);
        }
        let bytes = format::record_bytes(name, payload_bytes) as u64;
        let directory = &self.shared.directory;
        let _locked = directory.key_lock(name).lock();
        if self.holds(name) {
            return Ok(Created::Exists);
        }
        match path.symlink_metadata() {
            Ok(_) => {
                directory.confirm(path)?;
                return Ok(Created::Exists);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Such as a name that is too long: the attempt to make a file will say it.
            Err(_) => return Ok(Created::NotTaken),
        }
        let Some((half, offset, nonce)) = self.shared.reserve(&halves[0], bytes) else {
            return Ok(Created::NotTaken);
        };
        let version = directory.version_now();
        let record = Record::encode(nonce, version, name, chunks);
        let written = halves[half].write_record(offset, &record);
        let written = written.inspect_err(|error| directory.close(error));
        let mut state = self.shared.state.lock();
        state.room.written(half);
        if written.is_ok() {
            let payload = record.into_payload();
            state.pending_bytes += bytes;
            let pending = Pending {
                payload,
                version,
                half,
            };
            state.pending.insert(name.to_owned(), pending);
        }
        drop(state);
        self.shared.changed.notify_all();
        written.map(|()| Created::Committed(version))
    }

    /// Whether the key is pending.
    pub(super) fn holds(&self, key: &str) -> bool {
        self.shared.state.lock().pending.contains_key(key)
    }

    /// A pending object. One that was pending and is not any more is a regular file.
    pub(super) fn get(&self, key: &str) -> Option<Pending> {
        self.shared.state.lock().pending.get(key).cloned()
    }

    /// The pending objects directly below a prefix, which ends with `/` or is empty: key, bytes, version.
    pub(super) fn children(&self, prefix: &str) -> Vec<(String, u64, i64)> {
        let state = self.shared.state.lock();
        let below = state.pending.range(prefix.to_owned()..);
        below
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| !key[prefix.len()..].contains('/'))
            .map(|(key, pending)| (key.clone(), pending.payload.len() as u64, pending.version))
            .collect()
    }

    /// Returns when the key is not pending. If its file cannot be made, the error says why.
    pub(super) fn settle(&self, key: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let failures = state.failures;
        if state.pending.contains_key(key) {
            state.hurry = true;
            if let Some((_, retry)) = &mut state.stuck {
                *retry = Instant::now();
            }
            self.shared.changed.notify_all();
        }
        while state.pending.contains_key(key) {
            if let Some(why) = self.shared.directory.broken() {
                return Err(why.error());
            }
            if let Some((why, _)) = &state.stuck
                && state.failures != failures
            {
                return Err(why.error());
            }
            self.shared.changed.wait(&mut state);
        }
        Ok(())
    }

    /// Locks a key that is not pending, for replacing or removing what it has.
    pub(super) fn lock_settled(&self, key: &str) -> io::Result<MutexGuard<'_, ()>> {
        loop {
            let locked = self.shared.directory.key_lock(key).lock();
            if !self.holds(key) {
                return Ok(locked);
            }
            drop(locked);
            self.settle(key)?;
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(drainer) = self.drainer.take() {
            // If it has panicked, what is pending is in the journal's files.
            let _ = drainer.join();
        }
    }
}

impl State {
    fn new(headers: [Header; HALVES], settings: Settings) -> State {
        State {
            room: Room::new(settings.half_bytes),
            headers,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            hurry: false,
            stop: false,
            failures: 0,
            stuck: None,
        }
    }

    fn next(&mut self, now: Instant, drain_after: Duration) -> Step {
        if std::mem::take(&mut self.hurry) || self.stop {
            self.room.seal_older(now);
        } else if let Some(then) = now.checked_sub(drain_after) {
            self.room.seal_older(then);
        }
        if let Some(half) = self.room.drainable() {
            match &self.stuck {
                Some((_, retry)) if *retry > now && !self.stop => return Step::WaitUntil(*retry),
                _ => return Step::Drain(half),
            }
        }
        if self.stop && self.room.is_empty() {
            return Step::End;
        }
        let due = self
            .room
            .filling_since()
            .and_then(|since| since.checked_add(drain_after));
        due.map_or(Step::Wait, Step::WaitUntil)
    }
}

impl Shared {
    /// Room for a record, if it can be expected to become a file: half, offset and nonce.
    fn reserve(&self, any: &Half, bytes: u64) -> Option<(usize, u64, u128)> {
        let (pending_bytes, files) = {
            let state = self.state.lock();
            (state.pending_bytes, state.pending.len() as u64)
        };
        // A full disk is told to the writer now, and not to the log later on.
        if !any.has_space_for(pending_bytes + bytes + SPARE_BYTES, files + SPARE_FILES) {
            return None;
        }
        let mut state = self.state.lock();
        if state.stuck.is_some() || state.stop {
            return None;
        }
        let reserved = state.room.reserve(bytes, Instant::now());
        if reserved.is_none() {
            // The half that has no room has been sealed.
            self.changed.notify_all();
        }
        let (half, offset) = reserved?;
        Some((half, offset, state.headers[half].nonce))
    }

    /// The thread: makes files of the halves as they become due.
    fn drain(&self) {
        let Some(halves) = &self.halves else { return };
        let mut state = self.state.lock();
        while self.directory.broken().is_none() {
            let half = match state.next(Instant::now(), self.settings.drain_after) {
                Step::Drain(half) => half,
                Step::End => break,
                Step::Wait => {
                    self.changed.wait(&mut state);
                    continue;
                }
                Step::WaitUntil(then) => {
                    self.changed.wait_until(&mut state, then);
                    continue;
                }
            };
            let objects = state.objects_of(half);
            let header = state.headers[half].next();
            let drained = MutexGuard::unlocked(&mut state, || {
                make_files(&self.directory, &objects)?;
                // Who has a header that may be old or new can tell nobody what will be found at the opening.
                let written = halves[half].write_header(header);
                written.inspect_err(|error| self.directory.close(error))
            });
            match drained {
                Ok(()) => state.drained(half, header),
                Err(error) => {
                    let why = error.to_string();
                    if state.stuck.is_none() {
                        tracing::warn!(error = why, "objects stay in the journal of the store for now");
                    }
                    state.failures += 1;
                    state.stuck = Some((Lasting::new(&error, why), Instant::now() + RETRY_AFTER));
                    if state.stop {
                        break;
                    }
                }
            }
            self.changed.notify_all();
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// What is pending in one half, in the order of the versions.
    fn objects_of(&self, half: usize) -> Vec<Object> {
        let in_half = self.pending.iter().filter(|(_, pending)| pending.half == half);
        let mut objects: Vec<_> = in_half
            .map(|(key, pending)| Object {
                key: key.clone(),
                version: pending.version,
                payload: pending.payload.clone(),
            })
            .collect();
        objects.sort_by_key(|object| object.version);
        objects
    }

    fn drained(&mut self, half: usize, header: Header) {
        self.headers[half] = header;
        self.pending.retain(|_, pending| pending.half != half);
        self.pending_bytes = self
            .pending
            .iter()
            .map(|(key, pending)| format::record_bytes(key, pending.payload.len()) as u64)
            .sum();
        self.room.freed(half);
        self.stuck = None;
    }
}

impl Header {
    const NONE: Header = Header {
        generation: 0,
        nonce: 0,
    };

    /// One that no record has.
    fn next(self) -> Header {
        Header {
            generation: self.generation.saturating_add(1),
            nonce: rand::random(),
        }
    }
}

fn paths(root: &FilePath) -> [PathBuf; HALVES] {
    std::array::from_fn(|half| root.join(PRIVATE).join("journal").join(half.to_string()))
}

/// The objects that both halves hold, in the order of their versions.
fn recovered(directory: &Directory, found: &mut [Option<Found>]) -> Result<Vec<Object>, StoreError> {
    let halves = found.iter_mut().flatten();
    let mut objects: Vec<_> = halves
        .flat_map(|found| std::mem::take(&mut found.objects))
        .collect();
    objects.sort_by_key(|object| object.version);
    for object in &objects {
        // Parsing forgives what would lead elsewhere, such as a slash at the start.
        let key = Path::parse(&object.key).ok();
        let key = key.filter(|key| key.as_ref() == object.key);
        if key.is_none_or(|key| file_of(directory, &key).is_err()) {
            return Err(StoreError::Unusable {
                store: directory.root().display().to_string(),
                problem: format!("its journal has the key {:?}, which cannot be", object.key),
            });
        }
    }
    Ok(objects)
}

/// The halves under new headers. Those that exist MUST get one: an object that is in them would come back at
/// the next opening although it may be deleted by then. New ones are not made if that fails.
fn prepare(
    directory: &Directory,
    found: &[Option<Found>],
    settings: Settings,
) -> Result<([Header; HALVES], Option<[Half; HALVES]>), DiskError> {
    let newest = found
        .iter()
        .flatten()
        .map(|found| found.header)
        .max_by_key(|header| header.generation);
    let header = newest.unwrap_or(Header::NONE);
    let headers = std::array::from_fn(|_| header.next());
    let mut halves = Vec::new();
    let mut missing = Vec::new();
    for (number, path) in paths(directory.root()).into_iter().enumerate() {
        match &found[number] {
            Some(found) => {
                let half = Half::reuse(directory, path.clone(), headers[number])?;
                match found.bytes == settings.half_bytes {
                    true => halves.push((number, half)),
                    false => missing.push((number, path)),
                }
            }
            None => missing.push((number, path)),
        }
    }
    let made = (|| {
        let Some((_, path)) = missing.first() else {
            return Ok(());
        };
        let parent = path.parent().unwrap_or(path).to_owned();
        create_durably(&parent)?;
        for (number, path) in missing {
            let half = Half::create(directory, path, settings.half_bytes, headers[number])?;
            halves.push((number, half));
        }
        sync_directory(&parent)
    })();
    if let Err::<(), DiskError>(error) = made {
        tracing::warn!(error = %error, "the store works without a journal: small writes take longer");
        return Ok((headers, None));
    }
    halves.sort_by_key(|(number, _)| *number);
    let halves: Vec<_> = halves.into_iter().map(|(_, half)| half).collect();
    Ok((headers, halves.try_into().ok()))
}

/// Makes durable regular files of the objects, except where there is one. Files that are there already are
/// made durable too: the process that made them may not have come to that.
fn make_files(directory: &Directory, objects: &[Object]) -> Result<(), DiskError> {
    let mut parents = BTreeSet::new();
    let mut made = || {
        for objects in objects.chunks(FILES_AT_ONCE) {
            let batch = directory.batch()?;
            let mut staged = Vec::new();
            for object in objects {
                let path = directory.root().join(&object.key);
                directory.ensure_parent(&path, |_| false)?;
                parents.extend(path.parent().map(FilePath::to_owned));
                match path.symlink_metadata() {
                    Ok(meta) if meta.is_file() => continue,
                    Ok(_) => return Err(at("creating", &path)(ErrorKind::IsADirectory.into())),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(at("looking for", &path)(error)),
                }
                staged.push((batch.stage(&object.payload, object.version)?, path));
            }
            if !staged.is_empty() {
                batch.sync()?;
            }
            for (staged, path) in &staged {
                directory.link(staged, path)?;
            }
        }
        parents.iter().try_for_each(|parent| directory.sync_names(parent))
    };
    // Someone may have removed directories: the next attempt looks again.
    made().inspect_err(|_| {
        objects
            .iter()
            .for_each(|object| directory.forget_parents(&directory.root().join(&object.key)))
    })
}

#[cfg(test)]
mod tests;
