//! Reading and writing files past the page cache (`O_DIRECT`), for objects of 64 KiB and more.
//!
//! A log's large objects are written once and read, if at all, by readers that have a cache of their own, so
//! the page cache only costs: measured on ext4, a durable file of 4 MiB takes 18.8 ms and 3.3 CPU-seconds per
//! GB through it, 4.2 ms and 0.3 past it. Below 64 KiB the difference is smaller than the price of aligning.
//!
//! What comes back from a read is memory that an earlier reader has done with, where there is some: reading a GB
//! takes 0.08 CPU-seconds then, 0.18 into memory that must be zeroed first and 0.5 into memory that the system
//! has to find first.
//!
//! Direct I/O wants memory, offset and length in multiples of the device's block. Hence the buffers here,
//! which start at a multiple of 4 KiB, the largest block in use. Which file systems do it at all is found out
//! by trying: one that refuses (`EINVAL`) is used through the page cache from then on, with equal results.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// What memory, offsets and lengths are multiples of.
pub(super) const BLOCK: usize = 4096;

/// Reads and writes of fewer bytes go through the page cache.
const DIRECT_BYTES_MIN: u64 = 64 * 1024;

/// Large objects are written in pieces of this size, a multiple of [`BLOCK`].
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// Buffers of [`PIECE_BYTES`] that are kept for the next writer. A buffer's memory is taken by the system
/// only as far as it has been filled once.
const BUFFERS_KEPT: usize = 4;

/// Memory of dropped reads that is kept for the next ones, in bytes: about a large reply to a Fetch, since what the cache has
/// evicted meanwhile comes back all at once when a client has taken the reply. With a quarter of that most reads of a fast
/// consumer took new memory, and the allocator kept 100 MB more, and more with each pass.
const RECYCLED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Direct I/O in one directory: whether it works there, and the buffers for it.
#[derive(Debug)]
pub(super) struct DirectIo {
    works: AtomicBool,
    /// For writers.
    kept: Mutex<Vec<AlignedBuffer>>,
    /// For readers, the one that has been unused for longest first.
    recycled: Mutex<VecDeque<AlignedBuffer>>,
}

/// Zeroed bytes that start at a multiple of [`BLOCK`].
#[derive(Debug, Default)]
pub(super) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// At least `len` of them.
    pub(super) fn zeroed(len: usize) -> AlignedBuffer {
        let bytes = vec![0; len + BLOCK];
        let start = aligned_start(&bytes);
        AlignedBuffer { bytes, start }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// What was read. Its memory is used again when the last one who looks at it is done.
struct ReadBuffer {
    buffer: AlignedBuffer,
    wanted: Range<usize>,
    direct_io: Arc<DirectIo>,
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        let AlignedBuffer { bytes, start } = &self.buffer;
        &bytes[start + self.wanted.start..start + self.wanted.end]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.direct_io.recycle(std::mem::take(&mut self.buffer));
    }
}

/// Where in `bytes` the first multiple of [`BLOCK`] is; there is one if at least a block is allocated.
pub(super) fn aligned_start(bytes: &[u8]) -> usize {
    // A pointer that cannot be aligned would only make the system refuse, which is provided for.
    bytes.as_ptr().align_offset(BLOCK).min(BLOCK - 1)
}

impl DirectIo {
    /// To be tried: the first refusal ends it.
    pub(super) fn new() -> DirectIo {
        DirectIo {
            works: AtomicBool::new(true),
            kept: Mutex::default(),
            recycled: Mutex::default(),
        }
    }

    pub(super) fn refused(&self) {
        self.works.store(false, Ordering::Relaxed);
    }

    /// Whether nothing has refused so far.
    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Whether an object or range of this size goes past the page cache.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        bytes >= DIRECT_BYTES_MIN && self.works()
    }

    /// Tries on a file that may be overwritten whether direct I/O works here.
    pub(super) fn try_out(&self, file: &File) {
        let mut trial = AlignedBuffer::zeroed(BLOCK);
        let trial = &trial.bytes_mut()[..BLOCK];
        let tried = set_direct(file, true).and_then(|()| file.write_all_at(trial, 0));
        if tried.is_err() {
            self.refused();
        }
        // Only where it was set and cannot be taken back would this matter, and then by an error later on.
        let _ = set_direct(file, false);
    }

    /// Writes the chunks to an empty file. False if direct I/O was refused: the file may have bytes then.
    pub(super) fn write(&self, file: &File, chunks: &[Bytes]) -> io::Result<bool> {
        if let Err(error) = set_direct(file, true) {
            return self.unless_refusal(error);
        }
        let kept = self.kept.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| AlignedBuffer::zeroed(PIECE_BYTES));
        let written = write_pieces(file, chunks, &mut buffer.bytes_mut()[..PIECE_BYTES]);
        let mut kept = self.kept.lock();
        if kept.len() < BUFFERS_KEPT {
            kept.push(buffer);
        }
        drop(kept);
        match written {
            Ok(()) => Ok(true),
            Err(error) => {
                set_direct(file, false)?;
                self.unless_refusal(error)
            }
        }
    }

    /// A buffer of at least `len` bytes and little more, with anything in it.
    fn read_buffer(&self, len: usize) -> AlignedBuffer {
        let mut recycled = self.recycled.lock();
        let fits = |buffer: &AlignedBuffer| (len..=len + len / 4).contains(&buffer.len());
        let found = recycled.iter().rposition(fits).and_then(|at| recycled.remove(at));
        drop(recycled);
        found.unwrap_or_else(|| AlignedBuffer::zeroed(len))
    }

    fn recycle(&self, buffer: AlignedBuffer) {
        let mut recycled = self.recycled.lock();
        recycled.push_back(buffer);
        let mut bytes: usize = recycled.iter().map(AlignedBuffer::len).sum();
        let mut dropped = Vec::new();
        while bytes > RECYCLED_BYTES_MAX
            && let Some(oldest) = recycled.pop_front()
        {
            bytes -= oldest.len();
            dropped.push(oldest);
        }
        // Memory is given back without the lock.
        drop(recycled);
    }

    fn unless_refusal(&self, error: io::Error) -> io::Result<bool> {
        if !is_refusal(&error) {
            return Err(error);
        }
        self.refused();
        Ok(false)
    }
}

/// A file open for reading, past the page cache or through it.
#[derive(Debug)]
pub(super) struct ReadFile {
    file: File,
    direct: AtomicBool,
    direct_io: Arc<DirectIo>,
}

impl ReadFile {
    pub(super) fn new(file: File, direct_io: &Arc<DirectIo>) -> ReadFile {
        ReadFile {
            file,
            direct: AtomicBool::new(false),
            direct_io: direct_io.clone(),
        }
    }

    /// Says how many bytes are going to be read: many go past the page cache.
    pub(super) fn expect(&mut self, bytes: u64) {
        let direct = self.direct_io.takes(bytes) && set_direct(&self.file, true).is_ok();
        self.direct = AtomicBool::new(direct);
    }

    /// Reads a range that lies in the file.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if self.direct.load(Ordering::Relaxed) {
            match self.read_aligned(&range) {
                Err(error) if is_refusal(&error) => {
                    self.direct_io.refused();
                    self.direct.store(false, Ordering::Relaxed);
                    set_direct(&self.file, false)?;
                }
                read => return read,
            }
        }
        let mut buffer = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer.into())
    }

    fn read_aligned(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let block = BLOCK as u64;
        let start = range.start / block * block;
        let needed = (range.end - start) as usize;
        let aligned = needed.next_multiple_of(BLOCK);
        let mut buffer = ReadBuffer {
            buffer: self.direct_io.read_buffer(aligned),
            wanted: (range.start - start) as usize..needed,
            direct_io: self.direct_io.clone(),
        };
        let bytes = &mut buffer.buffer.bytes_mut()[..aligned];
        let mut filled = 0;
        // The file may end within the last block.
        while filled < needed {
            match self.file.read_at(&mut bytes[filled..], start + filled as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Bytes::from_owner(buffer))
    }
}

/// Fills the buffer from the chunks and writes it, again and again. What is left of less than a block goes
/// through the page cache: cutting off what a whole block had too much is dearer by 40 µs of CPU, because the
/// file system reads that block again.
fn write_pieces(file: &File, chunks: &[Bytes], buffer: &mut [u8]) -> io::Result<()> {
    let (mut offset, mut filled) = (0, 0);
    for chunk in chunks {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(buffer.len() - filled));
            buffer[filled..filled + now.len()].copy_from_slice(now);
            (filled, rest) = (filled + now.len(), later);
            if filled == buffer.len() {
                file.write_all_at(buffer, offset)?;
                (offset, filled) = (offset + filled as u64, 0);
            }
        }
    }
    let (blocks, tail) = buffer[..filled].split_at(filled / BLOCK * BLOCK);
    file.write_all_at(blocks, offset)?;
    set_direct(file, false)?;
    file.write_all_at(tail, offset + blocks.len() as u64)
}

/// What file systems answer that do not do direct I/O, or not with these blocks.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported)
}

/// Makes reads and writes of an open file go past the page cache, or through it again.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_setfl};
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    Ok(fcntl_setfl(file, flags)?)
}

/// Systems without `O_DIRECT` do everything through their cache.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn set_direct(_: &File, direct: bool) -> io::Result<()> {
    match direct {
        true => Err(ErrorKind::Unsupported.into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Bytes {
        (0..bytes)
            .map(|i| (i / 5 + i / 4096) as u8)
            .collect::<Vec<_>>()
            .into()
    }

    #[test]
    fn ranges_of_every_alignment_come_back() {
        let file = tempfile::tempfile().unwrap();
        let body = body(3 * DIRECT_BYTES_MIN as usize + 13);
        let direct_io = Arc::new(DirectIo::new());
        let chunks = [
            body.slice(..1),
            body.slice(1..70_000),
            Bytes::new(),
            body.slice(70_000..),
        ];
        let direct = direct_io.write(&file, &chunks).unwrap();
        assert_eq!(
            file.metadata().unwrap().len(),
            body.len() as u64 * u64::from(direct)
        );
        set_direct(&file, false).unwrap();
        file.write_all_at(&body, 0).unwrap();
        let mut read = ReadFile::new(file, &direct_io);
        read.expect(body.len() as u64);
        for start in [0, 1, 4095, 4096, 4097, 100_000] {
            for end in [start, start + 1, start + 4096, start + 70_001, body.len() as u64] {
                let found = read.read(start..end).unwrap();
                assert_eq!(found, body.slice(start as usize..end as usize), "{start}..{end}");
            }
        }
        let past = body.len() as u64 - 1..body.len() as u64 + 1;
        assert_eq!(read.read(past).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_refusal_is_found_out_and_ends_the_attempts() {
        let direct_io = Arc::new(DirectIo::new());
        // The kernel's own files know nothing of it.
        let file = File::open("/proc/self/stat").unwrap();
        if set_direct(&file, true).is_ok() {
            println!("skipped: this system's /proc does direct I/O");
            return;
        }
        let mut read = ReadFile::new(file, &direct_io);
        read.expect(1 << 20);
        assert_eq!(read.read(0..1).unwrap().len(), 1);

        // A buffer that is not aligned stands for a device with larger blocks.
        let mut buffer = AlignedBuffer::zeroed(PIECE_BYTES);
        buffer.start ^= 1;
        direct_io.kept.lock().push(buffer);
        let file = tempfile::tempfile().unwrap();
        let body = body(100_000);
        let written = direct_io.write(&file, std::slice::from_ref(&body)).unwrap();
        assert_eq!(written, direct_io.takes(100_000), "a refusal is remembered");
        if written {
            println!("skipped: this file system does not mind the alignment");
        } else {
            file.write_all_at(&body, 0).unwrap();
        }
        let mut read = ReadFile::new(file, &direct_io);
        read.expect(100_000);
        assert_eq!(read.read(0..100_000).unwrap(), body);
    }

    #[test]
    fn the_memory_of_reads_is_used_again_when_they_are_dropped() {
        let direct_io = Arc::new(DirectIo::new());
        let file = tempfile::tempfile().unwrap();
        let body = body(2 << 20);
        if !direct_io.write(&file, std::slice::from_ref(&body)).unwrap() {
            println!("skipped: this file system does no direct I/O");
            return;
        }
        let mut file = ReadFile::new(file, &direct_io);
        file.expect(2 << 20);
        let recycled = || direct_io.recycled.lock().len();
        let first = file.read(0..1 << 20).unwrap();
        let part = first.slice(10..20);
        drop(first);
        assert_eq!(recycled(), 0, "a part of it is looked at");
        assert_eq!(part, body.slice(10..20));
        drop(part);
        assert_eq!(recycled(), 1);
        let small = file.read(0..70_000).unwrap();
        assert_eq!(recycled(), 1, "too large for that");
        let second = file.read(5000..1 << 20).unwrap();
        assert_eq!(recycled(), 0);
        assert!(second == body.slice(5000..1 << 20) && small == body.slice(..70_000));
        for _ in 0..4 {
            let many: Vec<_> = (0..12).map(|_| file.read(0..2 << 20).unwrap()).collect();
            assert!(many.iter().all(|read| *read == body));
            drop(many);
            let bytes: usize = direct_io.recycled.lock().iter().map(AlignedBuffer::len).sum();
            assert!(bytes > 0 && bytes <= RECYCLED_BYTES_MAX);
        }
    }

    #[test]
    fn few_buffers_are_kept() {
        let direct_io = DirectIo::new();
        for _ in 0..2 * BUFFERS_KEPT {
            direct_io.kept.lock().push(AlignedBuffer::zeroed(PIECE_BYTES));
        }
        let file = tempfile::tempfile().unwrap();
        for _ in 0..2 * BUFFERS_KEPT {
            direct_io.write(&file, &[body(70_000)]).unwrap();
        }
        assert!(direct_io.kept.lock().len() <= BUFFERS_KEPT);
    }
}
