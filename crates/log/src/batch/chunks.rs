//! Batches laid end to end in a list of chunks whose borders fall anywhere, also inside a header.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::header::{BatchHeader, HEADER_LEN, field};
use super::{BatchError, RecordBatch, check_crc};

/// A place in a chunk list: which chunk, and how many bytes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    chunk: usize,
    within: usize,
}

impl Position {
    const START: Position = Position { chunk: 0, within: 0 };

    /// The pieces of the next `len` bytes, without copying; fewer where the chunks end before.
    fn pieces(self, chunks: &[Bytes], mut len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut within = self.within;
        chunks
            .iter()
            .enumerate()
            .skip(self.chunk)
            .map_while(move |(index, chunk)| {
                if len == 0 {
                    return None;
                }
                let start = within.min(chunk.len());
                let piece = start..chunk.len().min(start.saturating_add(len));
                within = 0;
                len -= piece.len();
                Some((index, piece))
            })
    }

    /// The place `len` bytes on, or `None` if the chunks end before.
    fn advance(self, chunks: &[Bytes], mut len: usize) -> Option<Position> {
        let mut at = self;
        loop {
            let Some(chunk) = chunks.get(at.chunk) else {
                return (len == 0).then_some(at);
            };
            let available = chunk.len().saturating_sub(at.within);
            // At the end of a chunk the place is the start of the next one, so that empty chunks are passed over.
            if len < available {
                return Some(Position {
                    within: at.within + len,
                    ..at
                });
            }
            len -= available;
            at = Position {
                chunk: at.chunk + 1,
                within: 0,
            };
        }
    }
}

/// One batch found by a [`ChunkCursor`]. The methods take the chunk list that the cursor walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchView {
    /// The header; nothing beyond magic and size has been checked.
    pub header: BatchHeader,
    /// Where the batch begins, in bytes from the start of the first chunk.
    pub start: usize,
    /// Size of the batch in bytes.
    pub len: usize,
    at: Position,
}

impl BatchView {
    /// The bytes of the batch in the list.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Compares the CRC with the bytes, over all chunks that the batch touches.
    pub fn verify(&self, chunks: &[Bytes]) -> Result<(), BatchError> {
        let covered = self
            .at
            .advance(chunks, field::ATTRIBUTES)
            .ok_or(BatchError::Truncated)?;
        let crc = covered
            .pieces(chunks, self.len - field::ATTRIBUTES)
            .fold(0, |crc, (index, piece)| {
                crc32c::crc32c_append(crc, &chunks[index][piece])
            });
        check_crc(&self.header, crc)
    }

    /// The batch in one piece, verified: a slice if it lies in one chunk, otherwise a copy.
    pub fn to_batch(&self, chunks: &[Bytes]) -> Result<RecordBatch, BatchError> {
        RecordBatch::from_stored(self.in_one_piece(chunks))
    }

    /// The bytes of the batch side by side; copied only if the batch spans several chunks.
    pub fn in_one_piece(&self, chunks: &[Bytes]) -> Bytes {
        let mut pieces = self.chunks(chunks);
        if pieces.len() == 1 {
            return pieces.swap_remove(0);
        }
        let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        whole.freeze()
    }

    /// The batch as sub-chunks, without copying.
    pub fn chunks(&self, chunks: &[Bytes]) -> Vec<Bytes> {
        slices(chunks, self.at, self.len)
    }
}

/// Walks the batches of a chunk list by their headers, without touching the records. After an error (a batch that is
/// cut, a foreign magic, an impossible length) there is no further item, since nobody knows where the next begins.
#[derive(Clone, Debug)]
pub struct ChunkCursor<'a> {
    chunks: &'a [Bytes],
    at: Position,
    start: usize,
    done: bool,
}

impl<'a> ChunkCursor<'a> {
    /// A cursor before the first batch.
    pub fn new(chunks: &'a [Bytes]) -> ChunkCursor<'a> {
        ChunkCursor {
            chunks,
            at: Position::START,
            start: 0,
            done: false,
        }
    }

    /// Bytes passed so far: where the next batch begins.
    pub fn position(&self) -> usize {
        self.start
    }

    /// The next batch, or `None` at the end of the chunks.
    pub fn next_batch(&mut self) -> Option<Result<BatchView, BatchError>> {
        if self.done {
            return None;
        }
        let batch = self.read().transpose();
        self.done = !matches!(batch, Some(Ok(_)));
        batch
    }

    fn read(&mut self) -> Result<Option<BatchView>, BatchError> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let view = BatchView {
            header,
            start: self.start,
            len: header.size(),
            at: self.at,
        };
        self.at = self
            .at
            .advance(self.chunks, view.len)
            .ok_or(BatchError::Truncated)?;
        self.start += view.len;
        Ok(Some(view))
    }

    fn header(&self) -> Result<Option<BatchHeader>, BatchError> {
        if let Some(head) = self
            .chunks
            .get(self.at.chunk)
            .and_then(|chunk| chunk.get(self.at.within..))
            && head.len() >= HEADER_LEN
        {
            return BatchHeader::parse(head).map(Some);
        }
        let mut head = [0; HEADER_LEN];
        let mut filled = 0;
        for (index, piece) in self.at.pieces(self.chunks, HEADER_LEN) {
            let end = filled + piece.len();
            head[filled..end].copy_from_slice(&self.chunks[index][piece]);
            filled = end;
        }
        if filled == 0 {
            return Ok(None);
        }
        BatchHeader::parse(&head[..filled]).map(Some)
    }
}

impl Iterator for ChunkCursor<'_> {
    type Item = Result<BatchView, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch()
    }
}

/// The bytes of `range`, counted from the start of the first chunk, as sub-chunks that share the memory. What lies
/// beyond the end is left out, and no piece is empty.
pub fn slice_chunks(chunks: &[Bytes], range: Range<usize>) -> Vec<Bytes> {
    match Position::START.advance(chunks, range.start) {
        Some(start) => slices(chunks, start, range.len()),
        None => Vec::new(),
    }
}

fn slices(chunks: &[Bytes], at: Position, len: usize) -> Vec<Bytes> {
    at.pieces(chunks, len)
        .filter(|(_, piece)| !piece.is_empty())
        .map(|(index, piece)| chunks[index].slice(piece))
        .collect()
}
