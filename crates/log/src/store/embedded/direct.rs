//! Reading and writing files past the page cache (`O_DIRECT`), for objects of 64 KiB and more.
//!
//! A log's large objects are written once and read, if at all, by readers that have a cache of their own, so
//! the page cache only costs: measured on ext4, a durable file of 4 MiB takes 18.8 ms and 3.3 CPU-seconds per
//! GB through it, 4.2 ms and 0.3 past it. Below 64 KiB the difference is smaller than the price of aligning.
//!
//! Direct I/O wants memory, offset and length in multiples of the device's block. Hence the buffers here,
//! which start at a multiple of 4 KiB, the largest block in use. Which file systems do it at all is found out
//! by trying: one that refuses (`EINVAL`) is used through the page cache from then on, with equal results.

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

/// Reads of a cache's block, which are most of all, take a buffer of this size. Its memory goes back to the next
/// reader when the cache drops the block: neither zeroed nor mapped anew, which is a tenth of what a cold consumer
/// costs.
const READ_BYTES: usize = 1024 * 1024;

/// Buffers of [`READ_BYTES`] that are kept for the next reader.
const READ_BUFFERS_KEPT: usize = 16;

/// Direct I/O in one directory: whether it works there, and the buffers for it.
#[derive(Debug)]
pub(super) struct DirectIo {
    works: AtomicBool,
    kept: Mutex<Vec<AlignedBuffer>>,
    kept_for_reads: Mutex<Vec<AlignedBuffer>>,
}

/// A buffer that goes back when nobody needs its bytes any more.
struct Lent {
    buffer: Option<AlignedBuffer>,
    range: Range<usize>,
    owner: Arc<DirectIo>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        let buffer = self.buffer.as_ref();
        buffer.map_or(&[], |b| {
            &b.bytes[b.start + self.range.start..b.start + self.range.end]
        })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.owner.kept_for_reads.lock();
        if kept.len() < READ_BUFFERS_KEPT {
            kept.extend(self.buffer.take());
        }
    }
}

/// Zeroed bytes that start at a multiple of [`BLOCK`].
#[derive(Debug)]
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

    fn into_bytes(self, range: Range<usize>) -> Bytes {
        Bytes::from(self.bytes).slice(self.start + range.start..self.start + range.end)
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
            kept_for_reads: Mutex::default(),
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
        let trial = AlignedBuffer::zeroed(BLOCK).into_bytes(0..BLOCK);
        let tried = set_direct(file, true).and_then(|()| file.write_all_at(&trial, 0));
        if tried.is_err() {
            self.refused();
        }
        // Only where it was set and cannot be taken back would this matter, and then by an error later on.
        let _ = set_direct(file, false);
    }

    /// Writes the chunks, which have `total` bytes together, to an empty file. False if direct I/O was
    /// refused: the file may have bytes then, and is as before otherwise.
    pub(super) fn write(&self, file: &File, chunks: &[Bytes], total: u64) -> io::Result<bool> {
        if let Err(error) = set_direct(file, true) {
            return self.unless_refusal(error);
        }
        let kept = self.kept.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| AlignedBuffer::zeroed(PIECE_BYTES));
        let written = write_pieces(file, chunks, total, &mut buffer.bytes_mut()[..PIECE_BYTES]);
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
            match read_aligned(&self.file, &range, &self.direct_io) {
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
}

/// Fills the buffer from the chunks and writes it, again and again. What the last write has too much, since
/// it is a whole number of blocks, is cut off: no dearer than writing the last block through the page cache.
fn write_pieces(file: &File, chunks: &[Bytes], total: u64, buffer: &mut [u8]) -> io::Result<()> {
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
    let padded = filled.next_multiple_of(BLOCK);
    buffer[filled..padded].fill(0);
    file.write_all_at(&buffer[..padded], offset)?;
    match padded == filled {
        true => Ok(()),
        false => file.set_len(total),
    }
}

fn read_aligned(file: &File, range: &Range<u64>, direct_io: &Arc<DirectIo>) -> io::Result<Bytes> {
    let block = BLOCK as u64;
    let start = range.start / block * block;
    let needed = (range.end - start) as usize;
    let aligned = needed.next_multiple_of(BLOCK);
    let lent = (READ_BYTES / 2..=READ_BYTES).contains(&aligned);
    let kept = lent.then(|| direct_io.kept_for_reads.lock().pop()).flatten();
    let mut buffer = kept.unwrap_or_else(|| AlignedBuffer::zeroed(if lent { READ_BYTES } else { aligned }));
    let mut filled = 0;
    // The file may end within the last block.
    while filled < needed {
        match file.read_at(&mut buffer.bytes_mut()[filled..aligned], start + filled as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let range = (range.start - start) as usize..needed;
    if !lent {
        return Ok(buffer.into_bytes(range));
    }
    Ok(Bytes::from_owner(Lent {
        buffer: Some(buffer),
        range,
        owner: Arc::clone(direct_io),
    }))
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
    fn a_buffer_goes_back_when_its_last_reader_is_done() {
        let file = tempfile::tempfile().unwrap();
        let body = body(2 * READ_BYTES);
        file.write_all_at(&body, 0).unwrap();
        let direct_io = Arc::new(DirectIo::new());
        let read = |range: Range<u64>| read_aligned(&file, &range, &direct_io).unwrap();
        let first = read(0..READ_BYTES as u64);
        let part = first.slice(5000..6000);
        let second = read(5..READ_BYTES as u64 - 3);
        drop(first);
        assert_eq!(direct_io.kept_for_reads.lock().len(), 0, "a slice still needs it");
        assert_eq!(part, body.slice(5000..6000));
        assert_eq!(second, body.slice(5..READ_BYTES - 3));
        drop(part);
        assert_eq!(direct_io.kept_for_reads.lock().len(), 1);
        let third = read(READ_BYTES as u64..2 * READ_BYTES as u64);
        assert_eq!(direct_io.kept_for_reads.lock().len(), 0);
        assert_eq!(third, body.slice(READ_BYTES..));
        drop((second, third));
        let many: Vec<_> = (0..READ_BUFFERS_KEPT + 3)
            .map(|_| read(0..READ_BYTES as u64))
            .collect();
        drop(many);
        assert_eq!(direct_io.kept_for_reads.lock().len(), READ_BUFFERS_KEPT);
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
        let direct = direct_io.write(&file, &chunks, body.len() as u64).unwrap();
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
        let written = direct_io
            .write(&file, std::slice::from_ref(&body), 100_000)
            .unwrap();
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
    fn few_buffers_are_kept() {
        let direct_io = DirectIo::new();
        for _ in 0..2 * BUFFERS_KEPT {
            direct_io.kept.lock().push(AlignedBuffer::zeroed(PIECE_BYTES));
        }
        let file = tempfile::tempfile().unwrap();
        for _ in 0..2 * BUFFERS_KEPT {
            direct_io.write(&file, &[body(70_000)], 70_000).unwrap();
        }
        assert!(direct_io.kept.lock().len() <= BUFFERS_KEPT);
    }
}
