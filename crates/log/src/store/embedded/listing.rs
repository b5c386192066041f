//! What is below a prefix: regular files, and objects of the journal that are none yet.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use object_store::path::Path;
use object_store::{ObjectMeta, Result};
use tokio::sync::mpsc::Sender;

use super::directory::{PRIVATE, at};
use super::{EmbeddedStore, failed, file_meta, file_of, pending_meta};

/// Keys that a listing hands over at a time.
const LIST_CHUNK: usize = 1000;

/// What a directory holds, as keys.
pub(super) enum Entry {
    Object(ObjectMeta),
    Directory(Path),
}

/// The entries of a directory in the order of their keys' bytes, in which `a-b` comes before `a/b`.
pub(super) fn entries(store: &EmbeddedStore, prefix: &Path) -> Result<Vec<Entry>> {
    let path = match prefix.is_root() {
        true => store.directory.root().to_owned(),
        false => file_of(&store.directory, prefix)?,
    };
    let below = match prefix.is_root() {
        true => String::new(),
        false => format!("{prefix}/"),
    };
    // The journal first: what leaves it in the meantime is a file then. Where there are both, in a directory
    // that is only looked at, the file is newer or the same.
    let mut entries = BTreeMap::new();
    for (full, bytes, version) in store.journal.children(&below) {
        if let Ok(key) = Path::parse(&full) {
            entries.insert(full, Entry::Object(pending_meta(key, bytes, version)));
        }
    }
    let listing = |error| failed(prefix, at("listing", &path)(error));
    let found = match std::fs::read_dir(&path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(entries.into_values().collect());
        }
        Err(error) => return Err(listing(error)),
    };
    for entry in found {
        let entry = entry.map_err(listing)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if prefix.is_root() && name == PRIVATE {
            continue;
        }
        let full = format!("{below}{name}");
        let Ok(key) = Path::parse(&full) else { continue };
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => {
                entries.insert(format!("{full}/"), Entry::Directory(key));
            }
            Ok(meta) if meta.is_file() => {
                entries.insert(full, Entry::Object(file_meta(key, &meta)?));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(listing(error)),
        }
    }
    Ok(entries.into_values().collect())
}

pub(super) fn has_objects(store: &EmbeddedStore, prefix: &Path) -> Result<bool> {
    for entry in entries(store, prefix)? {
        match entry {
            Entry::Object(_) => return Ok(true),
            Entry::Directory(below) if has_objects(store, &below)? => return Ok(true),
            Entry::Directory(_) => {}
        }
    }
    Ok(false)
}

/// A listing under way.
struct Walk<'a> {
    store: &'a EmbeddedStore,
    sender: Sender<Result<Vec<ObjectMeta>>>,
    found: Vec<ObjectMeta>,
}

/// Sends what is below a prefix in the order of the keys' bytes, for as long as somebody receives.
pub(super) fn walk(
    store: &EmbeddedStore,
    prefix: &Path,
    sender: Sender<Result<Vec<ObjectMeta>>>,
) -> Result<()> {
    let found = Vec::new();
    let mut walk = Walk { store, sender, found };
    walk.visit(prefix)?;
    walk.flush();
    Ok(())
}

impl Walk<'_> {
    fn visit(&mut self, prefix: &Path) -> Result<()> {
        for entry in entries(self.store, prefix)? {
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
