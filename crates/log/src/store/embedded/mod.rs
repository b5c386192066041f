//! A local directory as an object store: create-if-absent, compare-and-swap by ETag, durable when answered.
//!
//! One process at a time has it, by a lock; any number may look at it read-only. Keys are paths below the
//! directory, byte for byte, so that the directory can be copied to a bucket and back. Two limits follow from
//! that: a key cannot be a prefix segment of another (`a` and `a/b`), and a segment has at most 255 bytes.
//! Small new objects are in a [`journal`] for some seconds before they are such files, and in a directory that
//! was not closed until it is opened again. Files of history are not: query engines read the directory as it lies.

mod direct;
mod directory;
mod journal;
mod listing;
mod staging;

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UpdateVersion, UploadPart,
};

use super::StoreError;
use direct::ReadFile;
use directory::{Directory, DiskError, PRIVATE, at, modified_ns};
use journal::{Created, Journal};
use listing::Entry;
use staging::Staged;

const STORE: &str = "embedded";

/// Large objects are read in pieces of this size, so that a reader never holds more than one.
const READ_CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// Concurrent deletions of one stream.
const DELETES_AT_ONCE: usize = 8;

/// The embedded store. Clones share the directory and its lock. With the last one goes what it holds in its
/// journal, which blocks for some milliseconds, or longer on a slow disk.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddedStore {
    directory: Arc<Directory>,
    journal: Arc<Journal>,
}

impl EmbeddedStore {
    /// Opens the directory for this process alone, creating it if it is missing; with `read_only`, for
    /// looking at a directory that exists, whoever else has it.
    pub(crate) async fn open(root: PathBuf, read_only: bool) -> Result<EmbeddedStore, StoreError> {
        let shown = root.display().to_string();
        let opened = tokio::task::spawn_blocking(move || match read_only {
            true => EmbeddedStore::open_read_only(&root),
            false => EmbeddedStore::open_with(&root, journal::Settings::default()),
        });
        opened.await.map_err(|error| StoreError::Unusable {
            store: shown,
            problem: format!("opening was cut off: {error}"),
        })?
    }

    fn open_with(root: &std::path::Path, settings: journal::Settings) -> Result<EmbeddedStore, StoreError> {
        let directory = Arc::new(Directory::open(root)?);
        let journal = Arc::new(Journal::open(directory.clone(), settings)?);
        Ok(EmbeddedStore { directory, journal })
    }

    fn open_read_only(root: &std::path::Path) -> Result<EmbeddedStore, StoreError> {
        let directory = Arc::new(Directory::open_read_only(root)?);
        let journal = Arc::new(Journal::open_read_only(directory.clone())?);
        Ok(EmbeddedStore { directory, journal })
    }

    /// Runs `work` where blocking is allowed. A caller who goes away does not stop it.
    async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&EmbeddedStore) -> Result<T> + Send + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            check_broken(&store.directory)?;
            work(&store)
        })
        .await?
    }

    async fn write<T, F>(&self, key: &Path, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&EmbeddedStore, &Path) -> Result<T> + Send + 'static,
    {
        if self.directory.is_read_only() {
            let source = "the store was opened for reading only".into();
            return Err(Error::PermissionDenied {
                path: key.to_string(),
                source,
            });
        }
        let key = key.clone();
        self.run(move |store| work(store, &key)).await
    }
}

impl fmt::Display for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "embedded({})", self.directory.root().display())
    }
}

#[async_trait]
impl ObjectStore for EmbeddedStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.write(key, move |store, key| {
            let version = match options.mode {
                PutMode::Create => put_new(store, key, payload.as_ref()),
                PutMode::Overwrite => overwrite(store, key, |d| d.stage_bytes(payload.as_ref())),
                PutMode::Update(expected) => update(store, key, payload.as_ref(), &expected),
            }?;
            Ok(PutResult {
                e_tag: Some(e_tag(version)),
                version: None,
            })
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let staged = self
            .write(key, |store, key| {
                store.directory.stage().map_err(|e| failed(key, e))
            })
            .await?;
        let (store, key) = (self.clone(), key.clone());
        Ok(Box::new(Upload {
            store,
            key,
            staged: Some(Arc::new(staged)),
            bytes: 0,
        }))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let wanted = key.clone();
        let (source, meta, range, first) = self
            .run(move |store| {
                let (mut source, meta) = open(store, &wanted)?;
                options.check_preconditions(&meta)?;
                let range = match &options.range {
                    None => 0..meta.size,
                    Some(range) => range
                        .as_range(meta.size)
                        .map_err(|error| generic(Box::new(error)))?,
                };
                if options.head {
                    return Ok((source, meta, range, Bytes::new()));
                }
                source.expect(range.end - range.start);
                let first = read_piece(&source, &wanted, &range)?;
                Ok((source, meta, range, first))
            })
            .await?;
        let rest = range.start + first.len() as u64..range.end;
        let pieces = read_pieces(source, key.clone(), rest);
        let payload = GetResultPayload::Stream(stream::iter([Ok(first)]).chain(pieces).boxed());
        Ok(GetResult {
            payload,
            meta,
            range,
            attributes: Default::default(),
        })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        keys.map(move |key| {
            let store = store.clone();
            async move {
                let key = key?;
                store.write(&key, delete).await?;
                Ok(key)
            }
        })
        .buffered(DELETES_AT_ONCE)
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let (store, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let walk = async move {
            let failures = sender.clone();
            let walked = store.run(move |store| listing::walk(store, &prefix, sender));
            if let Err(error) = walked.await {
                let _ = failures.send(Err(error)).await;
            }
        };
        let found = stream::unfold(receiver, |mut receiver| async move {
            let chunk: Result<Vec<ObjectMeta>> = receiver.recv().await?;
            let chunk = match chunk {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(chunk), receiver))
        });
        // The walk is polled along with its results: nothing is left running when the stream is dropped.
        let walk = stream::once(walk).filter_map(|()| async { None });
        stream::select(walk, found.flatten()).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        self.run(move |store| {
            let mut result = ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
            };
            for entry in listing::entries(store, &prefix)? {
                match entry {
                    Entry::Object(meta) => result.objects.push(meta),
                    Entry::Directory(key) if listing::has_objects(store, &key)? => {
                        result.common_prefixes.push(key)
                    }
                    Entry::Directory(_) => {}
                }
            }
            Ok(result)
        })
        .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let from = from.clone();
        self.write(to, move |store, to| {
            store.journal.settle(from.as_ref()).map_err(unsettled)?;
            let (mut source, _) = open_file(store, &from)?;
            let stage = |directory: &Directory| {
                let mut staged = directory.stage()?;
                std::io::copy(&mut source, &mut staged.file).map_err(at("copying", directory.root()))?;
                let version = directory.seal(&staged)?;
                Ok((staged, version))
            };
            match options.mode {
                CopyMode::Create => create(store, to, &placed(store, to)?, stage),
                CopyMode::Overwrite => overwrite(store, to, stage),
            }?;
            Ok(())
        })
        .await
    }
}

/// Parts go to their place in one staged file, which gets its name at the end.
#[derive(Debug)]
struct Upload {
    store: EmbeddedStore,
    key: Path,
    staged: Option<Arc<Staged>>,
    bytes: u64,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let offset = self.bytes;
        self.bytes += data.content_length() as u64;
        let (store, key, staged) = (self.store.clone(), self.key.clone(), self.staged.clone());
        Box::pin(async move {
            let staged = staged.ok_or_else(|| generic("the upload is over".into()))?;
            store
                .write(&key, move |store, key| {
                    let mut offset = offset;
                    for chunk in &data {
                        let written = staged.file.write_all_at(chunk, offset);
                        written.map_err(|e| failed(key, at("writing", store.directory.root())(e)))?;
                        offset += chunk.len() as u64;
                    }
                    Ok(())
                })
                .await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().and_then(Arc::into_inner);
        let staged = staged.ok_or_else(|| generic("the upload is over, or parts are under way".into()))?;
        let version = self
            .store
            .write(&self.key, move |store, key| {
                overwrite(store, key, |directory| {
                    let version = directory.seal(&staged)?;
                    Ok((staged, version))
                })
            })
            .await?;
        Ok(PutResult {
            e_tag: Some(e_tag(version)),
            version: None,
        })
    }

    async fn abort(&mut self) -> Result<()> {
        self.staged = None;
        Ok(())
    }
}

type Stage = std::result::Result<(Staged, i64), DiskError>;

/// Whether others read it as a file, who do not know of the journal: then it is one as soon as it exists.
fn is_for_others(key: &Path) -> bool {
    key.extension() == Some("parquet")
}

/// Creates an object from memory: in the journal, if that takes it.
fn put_new(store: &EmbeddedStore, key: &Path, chunks: &[Bytes]) -> Result<i64> {
    let path = placed(store, key)?;
    if is_for_others(key) {
        return create(store, key, &path, |directory| directory.stage_bytes(chunks));
    }
    let created = store.journal.create(key, &path, chunks);
    match created.map_err(|e| failed(key, e))? {
        Created::Committed(version) => Ok(version),
        Created::Exists => Err(exists(key)),
        Created::NotTaken => create(store, key, &path, |directory| directory.stage_bytes(chunks)),
    }
}

/// Creates an object as the file `path`, whose directory exists.
fn create(
    store: &EmbeddedStore,
    key: &Path,
    path: &FilePath,
    stage: impl FnOnce(&Directory) -> Stage,
) -> Result<i64> {
    let directory = &store.directory;
    // Looked up first only to spare a repeated attempt the writing; the link decides.
    if store.journal.holds(key.as_ref()) {
        return Err(exists(key));
    }
    if path.symlink_metadata().is_ok() {
        directory.confirm(path).map_err(|e| failed(key, e))?;
        return Err(exists(key));
    }
    let (staged, version) = stage(directory).map_err(|e| failed(key, e))?;
    // Between the journal and the link nobody else may create it.
    let _locked = directory.key_lock(key.as_ref()).lock();
    if store.journal.holds(key.as_ref()) {
        return Err(exists(key));
    }
    match directory.publish_new(&staged, path).map_err(|e| failed(key, e))? {
        true => Ok(version),
        false => Err(exists(key)),
    }
}

fn overwrite(store: &EmbeddedStore, key: &Path, stage: impl FnOnce(&Directory) -> Stage) -> Result<i64> {
    let directory = &store.directory;
    let path = placed(store, key)?;
    if let Ok(meta) = path.symlink_metadata() {
        directory.outdate(modified_ns(&meta));
    }
    let (staged, version) = stage(directory).map_err(|e| failed(key, e))?;
    let _locked = store.journal.lock_settled(key.as_ref()).map_err(unsettled)?;
    directory
        .publish_over(&staged, &path)
        .map_err(|e| failed(key, e))?;
    Ok(version)
}

fn update(store: &EmbeddedStore, key: &Path, chunks: &[Bytes], expected: &UpdateVersion) -> Result<i64> {
    let Some(expected) = &expected.e_tag else {
        return Err(generic("an ETag is needed for a conditional update".into()));
    };
    let directory = &store.directory;
    let path = file_of(directory, key)?;
    store.journal.settle(key.as_ref()).map_err(unsettled)?;
    let check = || {
        let meta = path.symlink_metadata().ok().filter(|meta| meta.is_file());
        let found = meta.map_or("nothing".to_owned(), |meta| e_tag(modified_ns(&meta)));
        match &found == expected {
            true => Ok(()),
            false => {
                let source = format!("expected version {expected}, found {found}").into();
                Err(Error::Precondition {
                    path: key.to_string(),
                    source,
                })
            }
        }
    };
    // Before staging, to spare the writing, and so that the new version is newer than the old one.
    check()?;
    if let Ok(meta) = path.symlink_metadata() {
        directory.outdate(modified_ns(&meta));
    }
    let (staged, version) = directory.stage_bytes(chunks).map_err(|e| failed(key, e))?;
    let _locked = store.journal.lock_settled(key.as_ref()).map_err(unsettled)?;
    check()?;
    directory
        .publish_over(&staged, &path)
        .map_err(|e| failed(key, e))?;
    Ok(version)
}

/// Removes an object; as on S3, removing what is not there succeeds.
fn delete(store: &EmbeddedStore, key: &Path) -> Result<()> {
    let directory = &store.directory;
    let path = file_of(directory, key)?;
    let _locked = store.journal.lock_settled(key.as_ref()).map_err(unsettled)?;
    if let Ok(meta) = path.symlink_metadata() {
        directory.outdate(modified_ns(&meta));
    }
    directory.remove(&path).map_err(|e| failed(key, e))
}

/// The file of a key that is going to be written, in a directory that exists.
fn placed(store: &EmbeddedStore, key: &Path) -> Result<PathBuf> {
    let path = file_of(&store.directory, key)?;
    let parent = store
        .directory
        .ensure_parent(&path, |key| store.journal.holds(key));
    parent.map_err(|e| failed(key, e))?;
    Ok(path)
}

/// Where an object's bytes are.
enum Source {
    Memory(Bytes),
    File(ReadFile),
}

impl Source {
    /// Says how many bytes are going to be read, before the first are.
    fn expect(&mut self, bytes: u64) {
        if let Source::File(file) = self {
            file.expect(bytes);
        }
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        match self {
            // The range is within the object.
            Source::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Source::File(file) => file.read(range),
        }
    }
}

fn open(store: &EmbeddedStore, key: &Path) -> Result<(Source, ObjectMeta)> {
    let pending = store.journal.get(key.as_ref()).map(|pending| {
        let meta = pending_meta(key.clone(), pending.payload.len() as u64, pending.version);
        (Source::Memory(pending.payload), meta)
    });
    let open = || {
        let (file, meta) = open_file(store, key)?;
        Ok((
            Source::File(ReadFile::new(file, store.directory.direct_io())),
            meta,
        ))
    };
    match pending {
        None => open(),
        Some(pending) if !store.directory.is_read_only() => Ok(pending),
        // Whoever has the directory may have made a file of it since, and another one of that.
        Some(pending) => match open() {
            Err(Error::NotFound { .. }) => Ok(pending),
            opened => opened,
        },
    }
}

fn open_file(store: &EmbeddedStore, key: &Path) -> Result<(File, ObjectMeta)> {
    let directory = &store.directory;
    let path = file_of(directory, key)?;
    let file = File::open(&path).map_err(|e| failed(key, at("opening", &path)(e)))?;
    let meta = file
        .metadata()
        .map_err(|e| failed(key, at("reading", &path)(e)))?;
    if !meta.is_file() {
        let source = "it is a directory".into();
        return Err(Error::NotFound {
            path: key.to_string(),
            source,
        });
    }
    directory.confirm(&path).map_err(|e| failed(key, e))?;
    // A failed fsync may have happened between the opening and here.
    check_broken(directory)?;
    Ok((file, file_meta(key.clone(), &meta)?))
}

/// The first piece of the range.
fn read_piece(source: &Source, key: &Path, range: &Range<u64>) -> Result<Bytes> {
    let piece = range.start..range.end.min(range.start + READ_CHUNK_BYTES);
    let read = source.read(piece);
    read.map_err(|e| failed(key, at("reading", FilePath::new(key.as_ref()))(e)))
}

fn read_pieces(source: Source, key: Path, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold((source, key, range), |(source, key, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let (piece, source, key, range) = tokio::task::spawn_blocking(move || {
            let piece = read_piece(&source, &key, &range)?;
            Ok::<_, Error>((piece, source, key, range))
        })
        .await??;
        let rest = range.start + piece.len() as u64..range.end;
        Ok(Some((piece, (source, key, rest))))
    })
    .boxed()
}

/// The file of a key. A key's segments are never `.`, `..` or empty, so that it stays below the root.
fn file_of(directory: &Directory, key: &Path) -> Result<PathBuf> {
    let raw = key.as_ref();
    let refused = |why: &'static str| {
        Err(Error::NotSupported {
            source: format!("key '{raw}' cannot be stored in a directory: {why}").into(),
        })
    };
    if raw.is_empty() {
        return refused("it is empty");
    }
    if raw == PRIVATE || raw.starts_with(".alluvium/") {
        return refused("its first segment is reserved");
    }
    if raw
        .split('/')
        .any(|segment| matches!(segment, "" | "." | "..") || segment.contains('\0'))
    {
        return refused("it has an empty or relative segment");
    }
    Ok(directory.root().join(raw))
}

fn file_meta(key: Path, meta: &std::fs::Metadata) -> Result<ObjectMeta> {
    let modified = meta.modified().map_err(|error| generic(Box::new(error)))?;
    Ok(ObjectMeta {
        location: key,
        last_modified: modified.into(),
        size: meta.len(),
        e_tag: Some(e_tag(modified_ns(meta))),
        version: None,
    })
}

fn pending_meta(key: Path, bytes: u64, version: i64) -> ObjectMeta {
    let since_1970 = Duration::from_nanos(u64::try_from(version).unwrap_or_default());
    ObjectMeta {
        location: key,
        last_modified: (SystemTime::UNIX_EPOCH + since_1970).into(),
        size: bytes,
        e_tag: Some(e_tag(version)),
        version: None,
    }
}

fn e_tag(version: i64) -> String {
    format!("\"{version:x}\"")
}

fn check_broken(directory: &Directory) -> Result<()> {
    match directory.broken() {
        None => Ok(()),
        Some(why) => Err(generic(why.error().into())),
    }
}

fn exists(key: &Path) -> Error {
    Error::AlreadyExists {
        path: key.to_string(),
        source: "the file exists".into(),
    }
}

fn failed(key: &Path, error: DiskError) -> Error {
    let path = key.to_string();
    match error.source.kind() {
        ErrorKind::NotFound => Error::NotFound {
            path,
            source: Box::new(error),
        },
        ErrorKind::PermissionDenied => Error::PermissionDenied {
            path,
            source: Box::new(error),
        },
        _ => generic(Box::new(error)),
    }
}

/// A key's object cannot be made a file, which comes before everything else that can be done to it.
fn unsettled(why: io::Error) -> Error {
    generic(why.into())
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: STORE, source }
}

#[cfg(test)]
mod tests;
