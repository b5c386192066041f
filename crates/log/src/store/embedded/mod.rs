//! A local directory as an object store: create-if-absent, compare-and-swap by ETag, durable when answered.
//!
//! One process at a time has it, by a lock; any number may look at it read-only. Keys are paths below the
//! directory, byte for byte, so that the directory can be copied to a bucket and back. Two limits follow from
//! that: a key cannot be a prefix segment of another (`a` and `a/b`), and a segment has at most 255 bytes.

mod direct;
mod directory;

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

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
use directory::{Directory, DiskError, PRIVATE, Staged, at, modified_ns};

const STORE: &str = "embedded";

/// Large objects are read in pieces of this size, so that a reader never holds more than one.
const READ_CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// Keys that a listing hands over at a time.
const LIST_CHUNK: usize = 1000;

/// Concurrent deletions of one stream.
const DELETES_AT_ONCE: usize = 8;

/// The embedded store. Clones share the directory and its lock.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddedStore {
    directory: Arc<Directory>,
}

impl EmbeddedStore {
    /// Opens the directory for this process alone, creating it if it is missing; with `read_only`, for
    /// looking at a directory that exists, whoever else has it.
    pub(crate) async fn open(root: PathBuf, read_only: bool) -> Result<EmbeddedStore, StoreError> {
        let shown = root.display().to_string();
        let opened = tokio::task::spawn_blocking(move || match read_only {
            true => Directory::open_read_only(&root),
            false => Directory::open(&root),
        });
        let directory = opened.await.map_err(|error| StoreError::Unusable {
            store: shown,
            problem: format!("opening was cut off: {error}"),
        })??;
        Ok(EmbeddedStore {
            directory: Arc::new(directory),
        })
    }

    /// Runs `work` where blocking is allowed. A caller who goes away does not stop it.
    async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Directory) -> Result<T> + Send + 'static,
    {
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || {
            check_broken(&directory)?;
            work(&directory)
        })
        .await?
    }

    async fn write<T, F>(&self, key: &Path, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Directory, &Path) -> Result<T> + Send + 'static,
    {
        if self.directory.is_read_only() {
            let source = "the store was opened for reading only".into();
            return Err(Error::PermissionDenied {
                path: key.to_string(),
                source,
            });
        }
        let key = key.clone();
        self.run(move |directory| work(directory, &key)).await
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
        self.write(key, move |directory, key| {
            let version = match options.mode {
                PutMode::Create => create(directory, key, |d| d.stage_bytes(payload.as_ref())),
                PutMode::Overwrite => overwrite(directory, key, |d| d.stage_bytes(payload.as_ref())),
                PutMode::Update(expected) => update(directory, key, &payload, &expected),
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
            .write(key, |directory, key| {
                directory.stage().map_err(|e| failed(key, e))
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
        let (file, meta, range, first) = self
            .run(move |directory| {
                let (file, meta) = open(directory, &wanted)?;
                options.check_preconditions(&meta)?;
                let range = match &options.range {
                    None => 0..meta.size,
                    Some(range) => range
                        .as_range(meta.size)
                        .map_err(|error| generic(Box::new(error)))?,
                };
                let wanted_bytes = if options.head { 0 } else { range.end - range.start };
                let file = ReadFile::new(file, wanted_bytes, directory.direct_io());
                let mut first = Bytes::new();
                if !options.head {
                    first = read_piece(&file, &wanted, &range)?;
                }
                Ok((file, meta, range, first))
            })
            .await?;
        let rest = range.start + first.len() as u64..range.end;
        let pieces = read_pieces(file, key.clone(), rest);
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
            let walked = store.run(move |directory| {
                let mut walk = Walk {
                    directory,
                    sender,
                    found: Vec::new(),
                };
                walk.visit(&prefix)?;
                walk.flush();
                Ok(())
            });
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
        self.run(move |directory| {
            let mut result = ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
            };
            for entry in entries(directory, &prefix)? {
                match entry {
                    Entry::Object(meta) => result.objects.push(meta),
                    Entry::Directory(key) if has_objects(directory, &key)? => {
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
        self.write(to, move |directory, to| {
            let (mut source, _) = open(directory, &from)?;
            let stage = |directory: &Directory| {
                let mut staged = directory.stage()?;
                std::io::copy(&mut source, &mut staged.file).map_err(at("copying", directory.root()))?;
                let version = directory.seal(&staged)?;
                Ok((staged, version))
            };
            match options.mode {
                CopyMode::Create => create(directory, to, stage),
                CopyMode::Overwrite => overwrite(directory, to, stage),
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
                .write(&key, move |directory, key| {
                    let mut offset = offset;
                    for chunk in &data {
                        let written = staged.file.write_all_at(chunk, offset);
                        written.map_err(|e| failed(key, at("writing", directory.root())(e)))?;
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
            .write(&self.key, move |directory, key| {
                overwrite(directory, key, |directory| {
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

fn create(directory: &Directory, key: &Path, stage: impl FnOnce(&Directory) -> Stage) -> Result<i64> {
    let path = file_of(directory, key)?;
    directory.ensure_parent(&path).map_err(|e| failed(key, e))?;
    // Looked up first only to spare a repeated attempt the writing; the link decides.
    if path.symlink_metadata().is_ok() {
        directory.confirm(&path).map_err(|e| failed(key, e))?;
        return Err(exists(key));
    }
    let (staged, version) = stage(directory).map_err(|e| failed(key, e))?;
    match directory
        .publish_new(&staged, &path)
        .map_err(|e| failed(key, e))?
    {
        true => Ok(version),
        false => Err(exists(key)),
    }
}

fn overwrite(directory: &Directory, key: &Path, stage: impl FnOnce(&Directory) -> Stage) -> Result<i64> {
    let path = file_of(directory, key)?;
    directory.ensure_parent(&path).map_err(|e| failed(key, e))?;
    if let Ok(meta) = path.symlink_metadata() {
        directory.outdate(modified_ns(&meta));
    }
    let (staged, version) = stage(directory).map_err(|e| failed(key, e))?;
    let _locked = directory.key_lock(key.as_ref()).lock();
    directory
        .publish_over(&staged, &path)
        .map_err(|e| failed(key, e))?;
    Ok(version)
}

fn update(directory: &Directory, key: &Path, payload: &PutPayload, expected: &UpdateVersion) -> Result<i64> {
    let Some(expected) = &expected.e_tag else {
        return Err(generic("an ETag is needed for a conditional update".into()));
    };
    let path = file_of(directory, key)?;
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
    let (staged, version) = directory
        .stage_bytes(payload.as_ref())
        .map_err(|e| failed(key, e))?;
    let _locked = directory.key_lock(key.as_ref()).lock();
    check()?;
    directory
        .publish_over(&staged, &path)
        .map_err(|e| failed(key, e))?;
    Ok(version)
}

/// Removes an object; as on S3, removing what is not there succeeds.
fn delete(directory: &Directory, key: &Path) -> Result<()> {
    let path = file_of(directory, key)?;
    let _locked = directory.key_lock(key.as_ref()).lock();
    if let Ok(meta) = path.symlink_metadata() {
        directory.outdate(modified_ns(&meta));
    }
    directory.remove(&path).map_err(|e| failed(key, e))
}

fn open(directory: &Directory, key: &Path) -> Result<(File, ObjectMeta)> {
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
    Ok((file, object_meta(key.clone(), &meta)?))
}

/// The first piece of the range.
fn read_piece(file: &ReadFile, key: &Path, range: &Range<u64>) -> Result<Bytes> {
    let piece = range.start..range.end.min(range.start + READ_CHUNK_BYTES);
    let read = file.read(piece);
    read.map_err(|e| failed(key, at("reading", std::path::Path::new(key.as_ref()))(e)))
}

fn read_pieces(file: ReadFile, key: Path, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold((file, key, range), |(file, key, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let (piece, file, key, range) = tokio::task::spawn_blocking(move || {
            let piece = read_piece(&file, &key, &range)?;
            Ok::<_, Error>((piece, file, key, range))
        })
        .await??;
        let rest = range.start + piece.len() as u64..range.end;
        Ok(Some((piece, (file, key, rest))))
    })
    .boxed()
}

/// What a directory holds, as keys.
enum Entry {
    Object(ObjectMeta),
    Directory(Path),
}

/// The entries of a directory in the order of their keys' bytes, in which `a-b` comes before `a/b`.
fn entries(directory: &Directory, prefix: &Path) -> Result<Vec<Entry>> {
    let path = match prefix.is_root() {
        true => directory.root().to_owned(),
        false => file_of(directory, prefix)?,
    };
    let listing = |error| failed(prefix, at("listing", &path)(error));
    let found = match std::fs::read_dir(&path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(listing(error)),
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry.map_err(listing)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if prefix.is_root() && name == PRIVATE {
            continue;
        }
        let full = if prefix.is_root() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let Ok(key) = Path::parse(&full) else { continue };
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => entries.push((format!("{full}/"), Entry::Directory(key))),
            Ok(meta) if meta.is_file() => entries.push((full, Entry::Object(object_meta(key, &meta)?))),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(listing(error)),
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

fn has_objects(directory: &Directory, prefix: &Path) -> Result<bool> {
    for entry in entries(directory, prefix)? {
        match entry {
            Entry::Object(_) => return Ok(true),
            Entry::Directory(below) if has_objects(directory, &below)? => return Ok(true),
            Entry::Directory(_) => {}
        }
    }
    Ok(false)
}

/// A listing under way.
struct Walk<'a> {
    directory: &'a Directory,
    sender: tokio::sync::mpsc::Sender<Result<Vec<ObjectMeta>>>,
    found: Vec<ObjectMeta>,
}

impl Walk<'_> {
    fn visit(&mut self, prefix: &Path) -> Result<()> {
        for entry in entries(self.directory, prefix)? {
            match entry {
                Entry::Object(meta) => self.found.push(meta),
                Entry::Directory(below) => self.visit(&below)?,
            }
            if self.found.len() >= LIST_CHUNK {
                self.flush();
            }
            if self.sender.is_closed() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        // Fails if nobody listens any more; the walk ends then.
        let _ = self.sender.blocking_send(Ok(std::mem::take(&mut self.found)));
    }
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

fn object_meta(key: Path, meta: &std::fs::Metadata) -> Result<ObjectMeta> {
    let modified = meta.modified().map_err(|error| generic(Box::new(error)))?;
    Ok(ObjectMeta {
        location: key,
        last_modified: modified.into(),
        size: meta.len(),
        e_tag: Some(e_tag(modified_ns(meta))),
        version: None,
    })
}

fn e_tag(version: i64) -> String {
    format!("\"{version:x}\"")
}

fn check_broken(directory: &Directory) -> Result<()> {
    match directory.broken() {
        None => Ok(()),
        Some(why) => Err(generic(why.to_owned().into())),
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

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: STORE, source }
}

#[cfg(test)]
mod tests;
