//! Files before they have their names: written, given a version and made durable in `.alluvium/staging/`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::directory::{Directory, PRIVATE, Result, at, create_durably, modified_ns, set_modified};

/// Buffers handed to one `writev`.
const IO_SLICES_MAX: usize = 1024;

/// An open file in staging.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) name: StagedName,
    pub(super) file: File,
}

/// A file's name in staging; removed when dropped, whether or not the file was given a name elsewhere.
#[derive(Debug)]
pub(super) struct StagedName(pub(super) PathBuf);

/// Files that are staged together and made durable together: by one sync of the whole file system where that
/// tells of errors. To fsync each is a commit of the file system's journal for each, 2 ms instead of 0.02.
pub(super) struct Batch<'a> {
    directory: &'a Directory,
    /// Open since before the first write: errors are told to those who were there.
    whole: Option<File>,
}

impl Directory {
    /// A new file in staging.
    pub(super) fn stage(&self) -> Result<Staged> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.staging().join(format!("{number}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(at("creating", &path))?;
        let name = StagedName(path);
        Ok(Staged { name, file })
    }

    /// A file in staging with these bytes, sealed.
    pub(super) fn stage_bytes(&self, chunks: &[Bytes]) -> Result<(Staged, i64)> {
        let mut staged = self.stage()?;
        self.write(&mut staged.file, chunks)
            .map_err(at("writing", &staged.name.0))?;
        let version = self.seal(&staged)?;
        Ok((staged, version))
    }

    /// Writes all chunks to an empty file.
    fn write(&self, file: &mut File, chunks: &[Bytes]) -> io::Result<()> {
        let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if self.direct_io().takes(bytes) {
            if self.direct_io().write(file, chunks)? {
                return Ok(());
            }
            file.set_len(0)?;
        }
        write_chunks(file, chunks)
    }

    /// Makes many staged files durable together.
    pub(super) fn batch(&self) -> Result<Batch<'_>> {
        let staging = self.staging();
        let whole = match self.syncs_whole {
            true => Some(File::open(&staging).map_err(at("opening", &staging))?),
            false => None,
        };
        let directory = self;
        Ok(Batch { directory, whole })
    }

    /// Makes the bytes of a staged file durable.
    fn sync_staged(&self, staged: &Staged) -> Result<()> {
        staged.file.sync_data().map_err(at("fsyncing", &staged.name.0))
    }

    /// Gives a complete staged file its version and makes its bytes durable.
    pub(super) fn seal(&self, staged: &Staged) -> Result<i64> {
        let natural = self.read_clock(staged)?;
        let version = self.version_after(natural);
        if version != natural {
            set_modified(&staged.file, version).map_err(at("setting the time of", &staged.name.0))?;
        }
        self.sync_staged(staged)?;
        Ok(version)
    }

    /// The time that the file system has given to a file that was just written.
    fn read_clock(&self, staged: &Staged) -> Result<i64> {
        let meta = staged.file.metadata().map_err(at("reading", &staged.name.0))?;
        let now = modified_ns(&meta);
        self.set_clock(now);
        Ok(now)
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.root().join(PRIVATE).join("staging")
    }

    pub(super) fn clean_staging(&self) -> Result<()> {
        let staging = self.staging();
        create_durably(&staging)?;
        for entry in fs::read_dir(&staging).map_err(at("listing", &staging))? {
            let path = entry.map_err(at("listing", &staging))?.path();
            fs::remove_file(&path).map_err(at("removing", &path))?;
        }
        Ok(())
    }
}

impl Batch<'_> {
    /// A file in staging with these bytes and this version, closed again.
    pub(super) fn stage(&self, payload: &Bytes, version: i64) -> Result<StagedName> {
        let directory = self.directory;
        let mut staged = directory.stage()?;
        let path = &staged.name.0;
        let written = directory.write(&mut staged.file, std::slice::from_ref(payload));
        written.map_err(at("writing", path))?;
        directory.read_clock(&staged)?;
        set_modified(&staged.file, version).map_err(at("setting the time of", path))?;
        if self.whole.is_none() {
            directory.sync_staged(&staged)?;
        }
        Ok(staged.name)
    }

    /// Makes everything durable that has been staged in the batch.
    pub(super) fn sync(&self) -> Result<()> {
        match &self.whole {
            Some(staging) => sync_whole(staging).map_err(at("syncing", &self.directory.staging())),
            None => Ok(()),
        }
    }
}

impl Drop for StagedName {
    fn drop(&mut self) {
        // What is left behind is removed at the next opening.
        let _ = fs::remove_file(&self.0);
    }
}

/// Syncs the file system of an open directory.
#[cfg(target_os = "linux")]
fn sync_whole(directory: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(directory)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_whole(_: &File) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether [`sync_whole`] of the file system of `root` syncs everything and reports what could not be written: on
/// Linux since 5.17 (before, the result of a file system's own sync was passed over), and only where it is known.
/// FUSE answers without asking its server, and an overlay does not hear of the errors below it.
pub(super) fn syncs_whole(root: &FilePath) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    is_release_since(&release, (5, 17)) && is_known(root)
}

/// ext2 to ext4, XFS, btrfs and F2FS, by the numbers of statfs(2).
#[cfg(target_os = "linux")]
fn is_known(root: &FilePath) -> bool {
    const KNOWN: [u32; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010];
    rustix::fs::statfs(root).is_ok_and(|stat| KNOWN.contains(&(stat.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_known(_: &FilePath) -> bool {
    false
}

fn is_release_since(release: &str, since: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= since,
        _ => false,
    }
}

/// Writes all chunks without putting them together first.
fn write_chunks(file: &mut File, chunks: &[Bytes]) -> io::Result<()> {
    for group in chunks.chunks(IO_SLICES_MAX) {
        let mut slices: Vec<_> = group
            .iter()
            .filter(|c| !c.is_empty())
            .map(|c| IoSlice::new(c))
            .collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_linux() {
        for release in ["5.8.0", "5.10.0-28-amd64\n", "6.1", "10.0-rc1"] {
            assert!(is_release_since(release, (5, 8)), "{release}");
        }
        for release in [
            "",
            "5",
            "4.18.0-553.el8_10.x86_64",
            "5.7.99",
            "Darwin 23.1",
            "x.9",
        ] {
            assert!(!is_release_since(release, (5, 8)), "{release}");
        }
    }

    #[test]
    fn a_batch_has_bytes_and_versions_however_it_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(dir.path()).unwrap();
        for whole in [syncs_whole(directory.root()), false] {
            directory.syncs_whole = whole;
            let batch = directory.batch().unwrap();
            let sizes = [0, 1, 5000, 65_536, 70_001];
            let body = |size| Bytes::from(vec![7; size]);
            let staged = sizes.map(|size| batch.stage(&body(size), 1_000 + size as i64).unwrap());
            batch.sync().unwrap();
            for (size, name) in sizes.into_iter().zip(&staged) {
                let path = dir.path().join(format!("{whole}-{size}"));
                assert!(directory.link(name, &path).unwrap());
                assert!(!directory.link(name, &path).unwrap());
                assert_eq!(fs::read(&path).unwrap(), body(size));
                assert_eq!(modified_ns(&fs::metadata(&path).unwrap()), 1_000 + size as i64);
            }
            drop(staged);
            assert_eq!(fs::read_dir(directory.staging()).unwrap().count(), 0);
        }
    }
}
