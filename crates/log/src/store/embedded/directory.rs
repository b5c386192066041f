//! The directory under an embedded store: its lock, staging, durability and versions. Everything here blocks.
//!
//! ```text
//! <root>/.alluvium/lock       flock'ed by the process that has the store; its pid in decimal
//! <root>/.alluvium/staging/   files being written; emptied when the store is opened
//! <root>/.alluvium/journal/   small objects that are no files yet; see `journal`
//! <root>/<key>                one file per object, with nothing but the object's bytes
//! ```
//!
//! * **Durable before visible to a reader.** A file is fsynced in staging, then linked or renamed to its
//!   name, then its directory is fsynced. Between the last two steps it can be seen already; a reader who
//!   meets it there fsyncs the directory himself before he believes what he saw. That matters because a
//!   write whose answer was lost is settled by reading.
//! * **A failed directory fsync is final.** The kernel reports it once and may drop what it could not write,
//!   so nothing that is read afterwards can be trusted to be on disk: the store refuses all further work
//!   until it is opened again.
//! * **Versions** are the files' modification times, which this module sets itself so that they only grow,
//!   whatever the clock does: identical bytes written twice have different ETags. One process at a time and
//!   only in memory does anyone rely on them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::super::StoreError;
use super::direct::DirectIo;
use super::staging::{Staged, StagedName, syncs_whole};

/// Holds what is not an object. No key may start with it.
pub(super) const PRIVATE: &str = ".alluvium";

/// Granularities of file times that exist: Linux file systems, NTFS and SMB, some network ones, HFS+, FAT.
const GRANULES_NS: [i64; 6] = [1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000];

/// Locks for the keys that are replaced; keys share them by hash.
const KEY_LOCKS: usize = 64;

/// A failed operation on a file, with what it was about.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub(super) struct DiskError {
    action: &'static str,
    path: PathBuf,
    pub(super) source: io::Error,
}

/// A failure whose consequences last: whoever meets them later is told of the same.
#[derive(Clone, Debug)]
pub(super) struct Lasting {
    kind: ErrorKind,
    why: String,
}

impl Lasting {
    pub(super) fn new(error: &DiskError, why: String) -> Lasting {
        let kind = error.source.kind();
        Lasting { kind, why }
    }

    pub(super) fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.why.clone())
    }
}

pub(super) type Result<T, E = DiskError> = std::result::Result<T, E>;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    /// Held for its flock; `None` if opened for reading only.
    lock: Option<File>,
    /// Files staged so far, for their names.
    pub(super) staged: AtomicU64,
    /// The newest version given or seen.
    newest_version_ns: AtomicI64,
    granule_ns: i64,
    /// A time that the file system gave to a file, and when that was.
    file_clock: Mutex<(i64, Instant)>,
    direct_io: Arc<DirectIo>,
    /// Whether one sync of the file system stands for many.
    pub(super) syncs_whole: bool,
    /// Directories known to exist durably.
    durable: Mutex<HashSet<PathBuf>>,
    /// Names under change whose directory is not fsynced yet, with the number of writers at it.
    unsynced: Mutex<HashMap<PathBuf, u32>>,
    /// Why nothing can be trusted any more.
    broken: OnceLock<Lasting>,
    key_locks: [Mutex<()>; KEY_LOCKS],
}

/// Marks a name as under change for as long as it lives.
struct Unsynced<'a> {
    directory: &'a Directory,
    path: &'a FilePath,
}

impl Directory {
    /// Opens the directory at `root` for this process alone, creating it if it is missing.
    pub(super) fn open(root: &FilePath) -> Result<Directory, StoreError> {
        let unusable = |error: DiskError| explain(root, &error);
        match fs::metadata(root) {
            Ok(meta) if !meta.is_dir() => return Err(not_a_directory(root)),
            Ok(_) => {}
            Err(_) => create_durably(root).map_err(unusable)?,
        }
        let root = fs::canonicalize(root)
            .map_err(at("resolving", root))
            .map_err(unusable)?;
        let private = root.join(PRIVATE);
        create_durably(&private).map_err(unusable)?;
        let lock = lock(&root, &private.join("lock"))?;
        let mut directory = Directory::new(root.clone(), Some(lock));
        directory.clean_staging().map_err(unusable)?;
        directory.granule_ns = directory.try_out().map_err(unusable)?;
        Ok(directory)
    }

    /// Opens the directory at `root` for looking: no lock, no write, whoever else has it open.
    pub(super) fn open_read_only(root: &FilePath) -> Result<Directory, StoreError> {
        match fs::metadata(root).map_err(at("opening", root)) {
            Ok(meta) if !meta.is_dir() => Err(not_a_directory(root)),
            Ok(_) => Ok(Directory::new(root.to_owned(), None)),
            Err(error) => Err(explain(root, &error)),
        }
    }

    fn new(root: PathBuf, lock: Option<File>) -> Directory {
        Directory {
            syncs_whole: syncs_whole(&root),
            root,
            lock,
            staged: AtomicU64::new(0),
            newest_version_ns: AtomicI64::new(0),
            granule_ns: 1,
            file_clock: Mutex::new((0, Instant::now())),
            direct_io: Arc::new(DirectIo::new()),
            durable: Mutex::default(),
            unsynced: Mutex::default(),
            broken: OnceLock::new(),
            key_locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    pub(super) fn root(&self) -> &FilePath {
        &self.root
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// Why the store refuses to work, if it does.
    pub(super) fn broken(&self) -> Option<&Lasting> {
        self.broken.get()
    }

    /// How large objects are read and written here.
    pub(super) fn direct_io(&self) -> &Arc<DirectIo> {
        &self.direct_io
    }

    /// Held while a key is compared and replaced.
    pub(super) fn key_lock(&self, key: &str) -> &Mutex<()> {
        &self.key_locks[crc32c::crc32c(key.as_bytes()) as usize % KEY_LOCKS]
    }

    /// The file system has just given this time to a file.
    pub(super) fn set_clock(&self, now: i64) {
        *self.file_clock.lock() = (now, Instant::now());
    }

    /// A version for an object that has no file yet: about the time that the file system would give it.
    pub(super) fn version_now(&self) -> i64 {
        let (then, read) = *self.file_clock.lock();
        let since = i64::try_from(read.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let now = then.saturating_add(since);
        self.version_after(now - now.rem_euclid(self.granule_ns))
    }

    /// The version of what is written at the time `natural`: that, or later if need be.
    pub(super) fn version_after(&self, natural: i64) -> i64 {
        let next = |newest: i64| natural.max(newest.saturating_add(self.granule_ns));
        let order = Ordering::Relaxed;
        let before = self
            .newest_version_ns
            .fetch_update(order, order, |newest| Some(next(newest)));
        next(before.unwrap_or_else(|unchanged| unchanged))
    }

    /// Versions given from now on are newer than `version`, which a file had that was there before.
    pub(super) fn outdate(&self, version: i64) {
        self.newest_version_ns.fetch_max(version, Ordering::Relaxed);
    }

    /// Gives a sealed file the name `path` unless that is taken; false if it is. Durable in both cases.
    pub(super) fn publish_new(&self, staged: &Staged, path: &FilePath) -> Result<bool> {
        let _unsynced = self.unsynced(path);
        self.change(path, || self.link(&staged.name, path))
    }

    /// Gives a staged file the name `path` unless that is taken; false if it is. Not durable yet.
    pub(super) fn link(&self, staged: &StagedName, path: &FilePath) -> Result<bool> {
        match fs::hard_link(&staged.0, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(at("linking", path)(error)),
        }
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_names(&self, path: &FilePath) -> Result<()> {
        let directory = File::open(path).map_err(at("opening", path))?;
        self.sync(&directory, path)
    }

    /// Gives a sealed file the name `path`, replacing what has it. Durable.
    pub(super) fn publish_over(&self, staged: &Staged, path: &FilePath) -> Result<()> {
        let _unsynced = self.unsynced(path);
        self.change(path, || {
            fs::rename(&staged.name.0, path).map_err(at("renaming to", path))
        })
    }

    /// Removes the file, if there is one. Durable.
    pub(super) fn remove(&self, path: &FilePath) -> Result<()> {
        if path
            .symlink_metadata()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            return Ok(());
        }
        self.change(path, || match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(at("removing", path)(error)),
            _ => Ok(()),
        })
    }

    /// Call after the file has been opened or seen, before believing it: what it showed is durable then.
    pub(super) fn confirm(&self, path: &FilePath) -> Result<()> {
        // Who only looks has no part in anybody's commit.
        if self.is_read_only() || !self.unsynced.lock().contains_key(path) {
            return Ok(());
        }
        self.change(path, || Ok(()))
    }

    /// Makes sure that the directory of `path` exists and will exist after a crash. `taken` says of a key
    /// below the root whether it is an object without a file, where no directory can be.
    pub(super) fn ensure_parent(&self, path: &FilePath, taken: impl Fn(&str) -> bool) -> Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        let Ok(below) = parent.strip_prefix(&self.root) else {
            return Ok(());
        };
        if self.durable.lock().contains(parent) {
            return Ok(());
        }
        let mut at_now = self.root.clone();
        for part in below.components() {
            at_now.push(part);
            if self.durable.lock().contains(&at_now) {
                continue;
            }
            let key = at_now.strip_prefix(&self.root).ok().and_then(FilePath::to_str);
            let key = key.unwrap_or_default();
            let _locked = self.key_lock(key).lock();
            if taken(key) {
                return Err(at("creating", &at_now)(ErrorKind::NotADirectory.into()));
            }
            // Fsynced also if it is there already: who has just created it may not have come to that.
            self.change(&at_now, || match fs::create_dir(&at_now) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(at("creating", &at_now)(error)),
                _ => Ok(()),
            })?;
            self.durable.lock().insert(at_now.clone());
        }
        Ok(())
    }

    /// Someone may have removed directories that were there: look again next time.
    pub(super) fn forget_parents(&self, path: &FilePath) {
        let mut durable = self.durable.lock();
        for parent in path.ancestors().skip(1) {
            durable.remove(parent);
        }
    }

    #[cfg(test)]
    pub(super) fn unsynced_for_test<'a>(&'a self, path: &'a FilePath) -> impl Drop + use<'a> {
        self.unsynced(path)
    }

    #[cfg(test)]
    pub(super) fn break_for_test(&self, why: &str) {
        let (kind, why) = (ErrorKind::Other, why.to_owned());
        let _ = self.broken.set(Lasting { kind, why });
    }

    fn unsynced<'a>(&'a self, path: &'a FilePath) -> Unsynced<'a> {
        *self.unsynced.lock().entry(path.to_owned()).or_insert(0) += 1;
        Unsynced {
            directory: self,
            path,
        }
    }

    /// Changes what is at `path` and makes that durable. The directory is opened first: once something has
    /// changed, only the fsync itself can fail.
    fn change<T>(&self, path: &FilePath, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let parent = path.parent().unwrap_or(&self.root);
        let directory = File::open(parent).map_err(at("opening", parent));
        let changed = directory.and_then(|directory| Ok((change()?, directory)));
        let (result, directory) = changed.inspect_err(|_| self.forget_parents(path))?;
        self.sync(&directory, parent)?;
        Ok(result)
    }

    fn sync(&self, directory: &File, path: &FilePath) -> Result<()> {
        directory
            .sync_all()
            .map_err(at("fsyncing", path))
            .inspect_err(|error| self.close(error))
    }

    /// Nothing is done any more after this error.
    pub(super) fn close(&self, error: &DiskError) {
        let why = format!("{error}; the store stays closed until it is opened again");
        let _ = self.broken.set(Lasting::new(error, why));
    }

    /// Writes, names and removes a file once, so that a full or unsuitable disk is found now and not by the
    /// first record. Returns the granularity of file times.
    fn try_out(&self) -> Result<i64> {
        let (staged, version) = self.stage_bytes(&[Bytes::from_static(b"a trial\n")])?;
        self.direct_io.try_out(&staged.file);
        let linked = self.staging().join("linked");
        fs::hard_link(&staged.name.0, &linked).map_err(at("linking", &linked))?;
        let renamed = self.staging().join("renamed");
        fs::rename(&linked, &renamed).map_err(at("renaming to", &renamed))?;
        sync_directory(&self.staging())?;
        // Odd in seconds and in every digit below, so that each granularity leaves its own trace.
        let odd = (version / 2_000_000_000) * 2_000_000_000 + 1_987_654_321;
        set_modified(&staged.file, odd).map_err(at("setting the time of", &renamed))?;
        let kept = modified_ns(&fs::metadata(&renamed).map_err(at("reading", &renamed))?);
        fs::remove_file(&renamed).map_err(at("removing", &renamed))?;
        let granule = GRANULES_NS
            .into_iter()
            .find(|granule| odd - odd % granule == kept);
        granule.ok_or_else(|| {
            at("setting the time of", &renamed)(io::Error::other("the file system does not keep file times"))
        })
    }
}

impl Drop for Unsynced<'_> {
    fn drop(&mut self) {
        let mut unsynced = self.directory.unsynced.lock();
        if let Some(writers) = unsynced.get_mut(self.path) {
            *writers -= 1;
            if *writers == 0 {
                unsynced.remove(self.path);
            }
        }
    }
}

/// Nanoseconds since 1970 of the modification time: the version.
pub(super) fn modified_ns(meta: &fs::Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}

/// Adds what was done to what to an I/O error.
pub(super) fn at(action: &'static str, path: &FilePath) -> impl Fn(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError {
        action,
        path: path.clone(),
        source,
    }
}

pub(super) fn set_modified(file: &File, ns: i64) -> io::Result<()> {
    let since_1970 = Duration::from_nanos(u64::try_from(ns).unwrap_or_default());
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + since_1970))
}

pub(super) fn sync_directory(path: &FilePath) -> Result<()> {
    let directory = File::open(path).map_err(at("opening", path))?;
    directory.sync_all().map_err(at("fsyncing", path))
}

/// Creates a directory with its missing parents, each durable before the next.
pub(super) fn create_durably(path: &FilePath) -> Result<()> {
    let missing: Vec<_> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.is_dir())
        .collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(at("creating", path)(error)),
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_directory(parent.unwrap_or(FilePath::new(".")))?;
    }
    Ok(())
}

/// Takes the lock file or says who has it.
fn lock(root: &FilePath, path: &FilePath) -> Result<File, StoreError> {
    let unusable = |error: io::Error| explain(root, &at("locking", path)(error));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(unusable)?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(unusable(error.into()));
        }
        let mut pid = String::new();
        let _ = file.take(32).read_to_string(&mut pid);
        let holder = match pid.trim().parse::<u32>() {
            Ok(pid) if pid == std::process::id() => "this process already".to_owned(),
            Ok(pid) => format!("another broker (pid {pid})"),
            Err(_) => "another broker".to_owned(),
        };
        return Err(StoreError::InUse {
            path: root.display().to_string(),
            holder,
        });
    }
    file.set_len(0).map_err(unusable)?;
    file.rewind().map_err(unusable)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
        .map_err(unusable)?;
    Ok(file)
}

fn not_a_directory(root: &FilePath) -> StoreError {
    let problem = "is not a directory; name a directory, or one that can be created".to_owned();
    StoreError::Unusable {
        store: root.display().to_string(),
        problem,
    }
}

/// Why a directory cannot be used, and what to do.
pub(super) fn explain(root: &FilePath, error: &DiskError) -> StoreError {
    let advice = match error.source.kind() {
        ErrorKind::PermissionDenied => "; give this user write access or choose another store",
        ErrorKind::ReadOnlyFilesystem => "; mount it writable or choose another store",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free space or choose another store",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; name a directory, or one that can be created"
        }
        ErrorKind::NotFound => "; create it or choose another store",
        ErrorKind::Unsupported => {
            "; the file system lacks what is needed (hard links, flock): choose another store"
        }
        _ => "",
    };
    StoreError::Unusable {
        store: root.display().to_string(),
        problem: format!("{error}{advice}"),
    }
}
