//! The two files of the journal: making, reading, and writing to them so that it is durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};

use bytes::Bytes;

use super::super::super::StoreError;
use super::super::direct::{AlignedBuffer, BLOCK, set_direct};
use super::super::directory::{Directory, DiskError, at, explain};
use super::format::{Header, Object, Record, Unreadable, records};

/// Zeros written at a time to a new half.
const ZEROS_BYTES: usize = 1024 * 1024;

/// Longer files are not ours and are not read.
const HALF_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A half that is open for writing.
#[derive(Debug)]
pub(super) struct Half {
    path: PathBuf,
    file: File,
    /// Whether a write may be told to be durable by itself: not where only an fsync is known to be.
    writes_through: bool,
    #[cfg(test)]
    pub(super) fails: std::sync::atomic::AtomicBool,
}

/// What a half was found to hold.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) objects: Vec<Object>,
    pub(super) bytes: u64,
}

impl Half {
    /// Opens a half that [`read`] has found and makes what it holds invalid.
    pub(super) fn reuse(directory: &Directory, path: PathBuf, header: Header) -> Result<Half, DiskError> {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let half = Half::new(directory, file.map_err(at("opening", &path))?, path);
        half.past_the_cache(directory);
        half.write_header(header)?;
        Ok(half)
    }

    /// Makes a new half, replacing a file that has its name. All its blocks are written once, since a write
    /// to blocks that are only allocated changes the file system's own records, which takes as long again.
    pub(super) fn create(
        directory: &Directory,
        path: PathBuf,
        bytes: u64,
        header: Header,
    ) -> Result<Half, DiskError> {
        let new = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let half = Half::new(directory, options.open(&new).map_err(at("creating", &new))?, new);
        half.past_the_cache(directory);
        let made = half
            .write_zeros(bytes)
            .map_err(at("writing", &half.path))
            .and_then(|()| half.write_header(header))
            .and_then(|()| half.file.sync_all().map_err(at("fsyncing", &half.path)))
            .and_then(|()| fs::rename(&half.path, &path).map_err(at("renaming to", &path)));
        match made {
            Ok(()) => Ok(Half::new(directory, half.file, path)),
            Err(error) => {
                let _ = fs::remove_file(&half.path);
                Err(error)
            }
        }
    }

    fn new(directory: &Directory, file: File, path: PathBuf) -> Half {
        Half {
            path,
            file,
            writes_through: directory.syncs_whole,
            #[cfg(test)]
            fails: Default::default(),
        }
    }

    fn past_the_cache(&self, directory: &Directory) {
        if directory.direct_io().works() {
            // Tried out before on the same file system; without it the journal is only a little dearer.
            let _ = set_direct(&self.file, true);
        }
    }

    fn write_zeros(&self, bytes: u64) -> io::Result<()> {
        let mut zeros = AlignedBuffer::zeroed(ZEROS_BYTES);
        let zeros = &zeros.bytes_mut()[..ZEROS_BYTES];
        let mut offset = 0;
        while offset < bytes {
            let piece = (bytes - offset).min(ZEROS_BYTES as u64);
            self.file.write_all_at(&zeros[..piece as usize], offset)?;
            offset += piece;
        }
        Ok(())
    }

    /// Both copies of a header, durable one after the other: from now on no record is valid that has been
    /// written before.
    pub(super) fn write_header(&self, header: Header) -> Result<(), DiskError> {
        let mut block = AlignedBuffer::zeroed(BLOCK);
        let block = &mut block.bytes_mut()[..BLOCK];
        let encoded = header.encode();
        block[..encoded.len()].copy_from_slice(&encoded);
        let written = self
            .write(block, 0)
            .and_then(|()| self.write(block, BLOCK as u64));
        written.map_err(at("writing", &self.path))
    }

    /// Writes a record; it is durable then.
    pub(super) fn write_record(&self, offset: u64, record: &Record) -> Result<(), DiskError> {
        #[cfg(test)]
        if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(at("writing", &self.path)(io::Error::other(
                "as if the disk were dead",
            )));
        }
        self.write(record.bytes(), offset)
            .map_err(at("writing", &self.path))
    }

    /// Writes and waits until the bytes are durable.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.writes_through {
            true => write_through(&self.file, bytes, offset),
            false => write_and_sync(&self.file, bytes, offset),
        }
    }

    /// Whether the file system has room for `bytes` more in `files` new files.
    pub(super) fn has_space_for(&self, bytes: u64, files: u64) -> bool {
        let Ok(space) = rustix::fs::fstatvfs(&self.file) else {
            return false;
        };
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        // Some file systems do not count files and say 0 to both.
        available >= bytes && (space.f_files == 0 || space.f_favail >= files)
    }
}

/// Reads a half; `None` if there is no such file. One that cannot be understood is refused, because objects
/// whose writers were told that they are durable may be there and nowhere else.
pub(super) fn read(root: &FilePath, path: &FilePath) -> Result<Option<Found>, StoreError> {
    let unreadable = |error: io::Error| explain(root, &at("reading", path)(error));
    let refused = |problem: String| StoreError::Unusable {
        store: root.display().to_string(),
        problem: format!("{} {problem}", path.display()),
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let mut half = Vec::new();
    file.take(HALF_BYTES_MAX + 1)
        .read_to_end(&mut half)
        .map_err(unreadable)?;
    let header = match half.len() as u64 > HALF_BYTES_MAX {
        true => Err(Unreadable::Damaged),
        false => Header::decode(&half),
    };
    let header = header.map_err(|why| match why {
        Unreadable::OtherFormat(format) => refused(format!(
            "has format {format}, which this version does not know; start the version that wrote it"
        )),
        Unreadable::Damaged => refused(
            "is damaged, and the newest objects may be only there; restore it, or remove it to do without them"
                .to_owned(),
        ),
    })?;
    let bytes = half.len() as u64;
    Ok(Some(Found {
        header,
        objects: records(&Bytes::from(half), header.nonce),
        bytes,
    }))
}

/// Writes and waits until the bytes are durable, without the file's times. `RWF_DSYNC` is `O_DSYNC` for one
/// write: with it the device is told to write through where it can, instead of being told to flush.
#[cfg(target_os = "linux")]
fn write_through(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
    let mut written = 0;
    while written < bytes.len() {
        let rest = io::IoSlice::new(&bytes[written..]);
        match pwritev2(file, &[rest], offset + written as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            // A system that does not know the flag.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_and_sync(file, bytes, offset),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn write_through(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_and_sync(file, bytes, offset)
}

fn write_and_sync(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.sync_data()
}
