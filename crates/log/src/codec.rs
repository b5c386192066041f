//! Kafka's five codecs: records are decompressed under a hard cap on the bytes that come out.
//!
//! Compressed bytes come from clients, so no length that they declare is ever allocated: a buffer grows with what
//! was really decompressed, or is bounded by what the codec can make of the bytes that are really there.

use std::io::{self, Read, Write};

use flate2::bufread::GzDecoder;
use lz4_flex::block::DecompressError as Lz4Error;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use zstd::zstd_safe::{self, DCtx, zstd_sys::ZSTD_ErrorCode};

/// How the records of a batch are compressed: the lowest three bits of its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not compressed.
    None,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// Snappy: one raw block, or the `snappy-java` framing that Java producers write.
    Snappy,
    /// One LZ4 frame.
    Lz4,
    /// Zstandard frames (KIP-110).
    Zstd,
}

/// Why compressed records cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// More than the cap would come out.
    #[error("decompressed size passes the cap")]
    TooLarge,
    /// The bytes are not what the codec writes, or they end too early.
    #[error("the compressed bytes are damaged")]
    Damaged,
}

impl Codec {
    /// The codec with this id in a batch's attributes.
    pub fn from_id(id: u8) -> Option<Codec> {
        match id {
            0 => Some(Codec::None),
            1 => Some(Codec::Gzip),
            2 => Some(Codec::Snappy),
            3 => Some(Codec::Lz4),
            4 => Some(Codec::Zstd),
            _ => None,
        }
    }

    /// The id in a batch's attributes.
    pub fn id(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Gzip => 1,
            Codec::Snappy => 2,
            Codec::Lz4 => 3,
            Codec::Zstd => 4,
        }
    }

    /// Decompresses `input`, which may become at most `max_bytes`. Memory stays below a small multiple of
    /// `max_bytes`, whatever the input says of itself.
    pub fn decompress(self, input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
        match self {
            Codec::None if input.len() > max_bytes => Err(DecompressError::TooLarge),
            Codec::None => Ok(input.to_vec()),
            // For zstd no bytes are no frames, which is valid; no producer means it.
            _ if input.is_empty() => Err(DecompressError::Damaged),
            Codec::Gzip => gunzip(input, max_bytes),
            Codec::Snappy => unsnappy(input, max_bytes),
            Codec::Lz4 => unlz4(input, max_bytes),
            Codec::Zstd => unzstd(input, max_bytes),
        }
    }

    /// Compresses as Kafka's Java producer does with its default levels.
    pub fn compress(self, input: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Codec::None => Ok(input.to_vec()),
            Codec::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(input)?;
                encoder.finish()
            }
            Codec::Snappy => snappy_java(input),
            Codec::Lz4 => {
                let info = FrameInfo::new()
                    .block_size(BlockSize::Max64KB)
                    .block_mode(BlockMode::Independent);
                let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(input)?;
                encoder.finish().map_err(io::Error::other)
            }
            Codec::Zstd => zstd::bulk::compress(input, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }
}

/// Like Java's reader this takes several members one after the other and ignores what follows the last one.
fn gunzip(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    const MEMBER_MAGIC: [u8; 2] = [0x1f, 0x8b];
    /// Producers write one member. Each needs a fresh decoder of tens of KiB, which 20 bytes could ask for.
    const MEMBERS_MAX: usize = 64;
    let mut out = Vec::new();
    let mut rest = input;
    for _ in 0..MEMBERS_MAX {
        // One byte more than allowed tells "too large" from "just fits".
        let room = ((max_bytes - out.len()) as u64).saturating_add(1);
        let mut member = GzDecoder::new(rest).take(room);
        member
            .read_to_end(&mut out)
            .map_err(|_| DecompressError::Damaged)?;
        if out.len() > max_bytes {
            return Err(DecompressError::TooLarge);
        }
        rest = member.into_inner().into_inner();
        if !rest.starts_with(&MEMBER_MAGIC) {
            return Ok(out);
        }
    }
    Err(DecompressError::Damaged)
}

/// What `snappy-java` puts before a stream: its magic, then its version and the oldest one that can read it.
const SNAPPY_JAVA_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const SNAPPY_JAVA_HEADER_LEN: usize = 16;
/// `snappy-java` compresses 32 KiB at a time.
const SNAPPY_JAVA_BLOCK_BYTES: usize = 32 * 1024;

fn unsnappy(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    if !input.starts_with(&SNAPPY_JAVA_MAGIC) {
        append_snappy_block(input, max_bytes, &mut out)?;
        return Ok(out);
    }
    let mut rest = input;
    while !rest.is_empty() {
        // Streams may be joined end to end, each with its own header.
        if rest.starts_with(&SNAPPY_JAVA_MAGIC) {
            rest = rest
                .get(SNAPPY_JAVA_HEADER_LEN..)
                .ok_or(DecompressError::Damaged)?;
            continue;
        }
        let (len, after) = rest.split_first_chunk::<4>().ok_or(DecompressError::Damaged)?;
        let len = u32::from_be_bytes(*len) as usize;
        let (block, after) = after.split_at_checked(len).ok_or(DecompressError::Damaged)?;
        append_snappy_block(block, max_bytes, &mut out)?;
        rest = after;
    }
    Ok(out)
}

fn append_snappy_block(block: &[u8], max_bytes: usize, out: &mut Vec<u8>) -> Result<(), DecompressError> {
    /// The longest copy is 64 bytes from an element of 3, so no block grows by more than this.
    const MAX_EXPANSION: usize = 22;
    let declared = snap::raw::decompress_len(block).map_err(|_| DecompressError::Damaged)?;
    if declared > block.len().saturating_mul(MAX_EXPANSION) {
        return Err(DecompressError::Damaged);
    }
    if declared > max_bytes - out.len() {
        return Err(DecompressError::TooLarge);
    }
    let start = out.len();
    out.resize(start + declared, 0);
    let written = snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(|_| DecompressError::Damaged)?;
    out.truncate(start + written);
    Ok(())
}

fn snappy_java(input: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::from(SNAPPY_JAVA_MAGIC);
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(&1u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in input.chunks(SNAPPY_JAVA_BLOCK_BYTES) {
        let compressed = encoder.compress_vec(block).map_err(io::Error::other)?;
        let len = u32::try_from(compressed.len()).map_err(io::Error::other)?;
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&compressed);
    }
    Ok(out)
}

/// Reads one LZ4 frame. The frame is parsed here and not by a streaming decoder because that one allocates up to
/// 12 MiB by two bits of the frame's header. Checksums inside the frame are passed over: the batch's own CRC32C has
/// covered all of these bytes.
fn unlz4(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
    const CHECKSUM_LEN: usize = 4;
    /// How far back a block of linked blocks may refer.
    const WINDOW: usize = 64 * 1024;
    let mut frame = Frame(input);
    if frame.take::<4>()? != MAGIC {
        return Err(DecompressError::Damaged);
    }
    let [flags, block_descriptor] = frame.take::<2>()?;
    let bit = |n: u8| flags & (1 << n) != 0;
    let (version, independent, block_checksums, content_size, dictionary) =
        (flags >> 6, bit(5), bit(4), bit(3), bit(0));
    let max_block = match (block_descriptor >> 4) & 7 {
        size @ 4..=7 => 1_usize << (8 + 2 * size),
        _ => return Err(DecompressError::Damaged),
    };
    // Kafka's producers have no dictionary that a reader could know.
    if version != 1 || dictionary {
        return Err(DecompressError::Damaged);
    }
    // The content size is only a claim; the checksum of the header is one byte.
    frame.skip(if content_size { 8 } else { 0 } + 1)?;
    let mut out = Vec::new();
    loop {
        let word = u32::from_le_bytes(frame.take::<4>()?);
        if word == 0 {
            return Ok(out);
        }
        let stored = word & (1 << 31) != 0;
        let len = (word & !(1 << 31)) as usize;
        if len > max_block {
            return Err(DecompressError::Damaged);
        }
        let block = frame.skip(len)?;
        let window_start = if independent {
            out.len()
        } else {
            out.len().saturating_sub(WINDOW)
        };
        append_lz4_block(block, stored, max_block, window_start, max_bytes, &mut out)?;
        frame.skip(if block_checksums { CHECKSUM_LEN } else { 0 })?;
    }
}

fn append_lz4_block(
    block: &[u8],
    stored: bool,
    max_block: usize,
    window_start: usize,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    /// A length byte stands for at most 255 bytes; the rest is for the shortest sequences.
    const MAX_EXPANSION: usize = 255;
    const EXPANSION_SLACK: usize = 64;
    let start = out.len();
    let room = max_bytes - start;
    if stored {
        if block.len() > room {
            return Err(DecompressError::TooLarge);
        }
        out.extend_from_slice(block);
        return Ok(());
    }
    let possible = block
        .len()
        .saturating_mul(MAX_EXPANSION)
        .saturating_add(EXPANSION_SLACK)
        .min(max_block);
    out.resize(start + possible.min(room), 0);
    let (before, target) = out.split_at_mut(start);
    match lz4_flex::block::decompress_into_with_dict(block, target, &before[window_start..]) {
        Ok(written) => {
            out.truncate(start + written);
            Ok(())
        }
        Err(Lz4Error::OutputTooSmall { .. }) if room < possible => Err(DecompressError::TooLarge),
        Err(_) => Err(DecompressError::Damaged),
    }
}

/// What is left of a frame.
struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecompressError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecompressError::Damaged)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn skip(&mut self, len: usize) -> Result<&'a [u8], DecompressError> {
        let (skipped, rest) = self.0.split_at_checked(len).ok_or(DecompressError::Damaged)?;
        self.0 = rest;
        Ok(skipped)
    }
}

/// Decompresses into one buffer and tries again with a larger one while it is too small. A streaming decoder would
/// first allocate the window that the frame declares (up to 128 MiB, and producers with high levels do declare it);
/// here the output is the window. Buffers grow fourfold, so all failed attempts cost a third of the last one.
fn unzstd(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    const FIRST_BUFFER_MIN: usize = 16 * 1024;
    const FIRST_EXPANSION: usize = 8;
    const GROWTH: usize = 4;
    const TOO_SMALL: usize = (ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize).wrapping_neg();
    let mut context = DCtx::try_create().ok_or(DecompressError::Damaged)?;
    let guess = input.len().saturating_mul(FIRST_EXPANSION).max(FIRST_BUFFER_MIN);
    // A declared size is believed only as far as it makes the first buffer smaller.
    let mut capacity = match zstd_safe::get_frame_content_size(input) {
        Ok(Some(declared)) => guess.min(usize::try_from(declared).unwrap_or(usize::MAX)),
        _ => guess,
    }
    .clamp(1, max_bytes.max(1));
    loop {
        let mut out = Vec::with_capacity(capacity);
        match context.decompress(&mut out, input) {
            Ok(_) if out.len() > max_bytes => return Err(DecompressError::TooLarge),
            Ok(_) => return Ok(out),
            Err(TOO_SMALL) if capacity >= max_bytes => return Err(DecompressError::TooLarge),
            Err(TOO_SMALL) => capacity = capacity.saturating_mul(GROWTH).min(max_bytes),
            Err(_) => return Err(DecompressError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests;
