//! The binary container of every object but the JSON ones (manifest, head).
//!
//! ```text
//! preamble (40 bytes) | section | section | ... | trailer (40 bytes)
//! section  = tag u32 | length u64 | bytes         (an unknown tag can be skipped)
//! trailer  = index offset u64 | index length u64 | index CRC32C u32 | kind u8 | features u24 | object length u64 | magic
//! ```
//! The trailer is fixed, so one suffix GET finds the index. It repeats the incompatible features of the preamble, which
//! whoever reads an object from its end never sees. All integers are little endian; offsets inside
//! an index are varints. The payload is not summed a second time: each record batch carries its own CRC32C.

pub(crate) mod checked_json;
pub mod checkpoint;
pub mod merged;
pub mod segment;
mod varint;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

pub use varint::{Reader, put_signed, put_unsigned};

const MAGIC: &[u8; 8] = b"ALLUVIUM";
const TRAILER_MAGIC: &[u8; 8] = b"MUIVULLA";
/// Bytes of the preamble.
pub const PREAMBLE_LEN: usize = 40;
/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 40;
/// Bytes before a section's payload.
pub const SECTION_HEADER_LEN: usize = 12;
/// A suffix GET of this many bytes holds nearly every index.
pub const SUFFIX_GUESS: u64 = 64 * 1024;
/// Major version written by this build; a higher one is refused.
pub const MAJOR: u8 = 1;
const MINOR: u8 = 0;
/// Incompatible feature bits that this build understands. The trailer has room for the lower 24.
const KNOWN_INCOMPATIBLE: u32 = 0;

const SECTION_HEADER: u32 = 1;
const SECTION_DATA: u32 = 2;
const SECTION_INDEX: u32 = 3;

/// What an object is, as its preamble and trailer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A segment or a seal.
    Segment,
    /// A checkpoint.
    Checkpoint,
    /// A merged object (L1).
    Merged,
}

impl ObjectKind {
    fn code(self) -> u8 {
        match self {
            ObjectKind::Segment => 1,
            ObjectKind::Checkpoint => 2,
            ObjectKind::Merged => 3,
        }
    }
}

/// Why an object cannot be read. Each message says what is wrong; the caller adds the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Shorter than its own lengths say.
    #[error("cut short: {0}")]
    Truncated(&'static str),
    /// Not one of our objects, or of another kind.
    #[error("not an Alluvium {0}")]
    NotOurs(&'static str),
    /// Written by a newer, incompatible version.
    #[error("written by a newer version ({0}); use a newer Alluvium")]
    TooNew(String),
    /// Belongs to another cluster.
    #[error("belongs to cluster {found}, not {expected}")]
    OtherCluster {
        /// Cluster id in the object.
        found: Uuid,
        /// Cluster id of the manifest.
        expected: Uuid,
    },
    /// A checksum does not match.
    #[error("checksum mismatch in the {0}")]
    Checksum(&'static str),
    /// A field has an impossible value.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Appends the preamble.
fn put_preamble(out: &mut BytesMut, kind: ObjectKind, cluster: Uuid) {
    let start = out.len();
    out.put_slice(MAGIC);
    out.put_slice(&[kind.code(), MAJOR, MINOR, 0]);
    out.put_u32_le(0); // compatible features
    out.put_u32_le(0); // incompatible features
    out.put_slice(cluster.as_bytes());
    let crc = crc32c::crc32c(&out[start..]);
    out.put_u32_le(crc);
}

/// Checks the preamble and returns the cluster id in it.
pub fn check_preamble(bytes: &[u8], kind: ObjectKind, cluster: Option<Uuid>) -> Result<Uuid, FormatError> {
    let p = bytes
        .get(..PREAMBLE_LEN)
        .ok_or(FormatError::Truncated("preamble"))?;
    if &p[..8] != MAGIC {
        return Err(FormatError::NotOurs("object"));
    }
    let mut crc = &p[PREAMBLE_LEN - 4..];
    if crc32c::crc32c(&p[..PREAMBLE_LEN - 4]) != crc.get_u32_le() {
        return Err(FormatError::Checksum("preamble"));
    }
    if p[8] != kind.code() {
        return Err(FormatError::NotOurs(match kind {
            ObjectKind::Segment => "segment",
            ObjectKind::Checkpoint => "checkpoint",
            ObjectKind::Merged => "merged object",
        }));
    }
    let incompatible = (&p[16..20]).get_u32_le();
    if p[9] > MAJOR || incompatible & !KNOWN_INCOMPATIBLE != 0 {
        return Err(FormatError::TooNew(format!(
            "format {}.{}, features {incompatible:#x}",
            p[9], p[10]
        )));
    }
    let mut id = [0u8; 16];
    id.copy_from_slice(&p[20..36]);
    let found = Uuid::from_bytes(id);
    match cluster {
        Some(expected) if expected != found => Err(FormatError::OtherCluster { found, expected }),
        _ => Ok(found),
    }
}

/// What every header begins with.
struct HeaderStart {
    /// Tells a write from any other of the same key.
    nonce: Uuid,
    /// The stream, or the broker start that wrote the object.
    incarnation: u64,
    /// The object's number there.
    number: u64,
    /// Manifest version that the writer had applied.
    manifest_version: u64,
}

impl HeaderStart {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(self.nonce.as_bytes());
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.number);
        put_unsigned(out, self.manifest_version);
    }

    fn read(r: &mut Reader) -> Result<HeaderStart, FormatError> {
        Ok(HeaderStart {
            nonce: r.uuid()?,
            incarnation: r.u64()?,
            number: r.u64()?,
            manifest_version: r.unsigned()?,
        })
    }
}

/// Reads on at the header, given the first bytes of an object.
fn first_section(prefix: &Bytes, kind: ObjectKind, cluster: Option<Uuid>) -> Result<Reader, FormatError> {
    check_preamble(prefix, kind, cluster)?;
    let mut r = Reader::new(prefix.slice(PREAMBLE_LEN..));
    let tag = r.bytes(4)?;
    if tag[..] != SECTION_HEADER.to_le_bytes() {
        return Err(FormatError::Invalid("first section"));
    }
    let _len = r.u64()?;
    Ok(r)
}

fn put_section_header(out: &mut BytesMut, tag: u32, len: u64) {
    out.put_u32_le(tag);
    out.put_u64_le(len);
}

fn put_section(out: &mut BytesMut, tag: u32, body: &[u8]) {
    put_section_header(out, tag, body.len() as u64);
    out.put_slice(body);
}

/// Appends the index section and the trailer to an object that is `so_far` bytes long before them.
fn put_index_and_trailer(out: &mut BytesMut, kind: ObjectKind, index: &[u8], so_far: u64) {
    put_section(out, SECTION_INDEX, index);
    let index_offset = so_far + SECTION_HEADER_LEN as u64;
    out.put_u64_le(index_offset);
    out.put_u64_le(index.len() as u64);
    out.put_u32_le(crc32c::crc32c(index));
    out.put_u32_le(u32::from(kind.code())); // and no incompatible features
    out.put_u64_le(index_offset + index.len() as u64 + TRAILER_LEN as u64);
    out.put_slice(TRAILER_MAGIC);
}

/// Where the index stands, as the trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Offset of the index from the start of the object.
    pub index_offset: u64,
    /// Bytes of the index.
    pub index_len: u64,
    /// Bytes of the whole object.
    pub object_len: u64,
    crc: u32,
}

/// Reads the trailer from the last bytes of an object.
pub fn read_trailer(suffix: &[u8], kind: ObjectKind) -> Result<Trailer, FormatError> {
    let at = suffix
        .len()
        .checked_sub(TRAILER_LEN)
        .ok_or(FormatError::Truncated("trailer"))?;
    let mut t = &suffix[at..];
    let (index_offset, index_len, crc) = (t.get_u64_le(), t.get_u64_le(), t.get_u32_le());
    let (code, object_len) = (t.get_u32_le(), t.get_u64_le());
    let (code, incompatible) = (code & 0xff, code >> 8);
    if t != TRAILER_MAGIC {
        return Err(FormatError::NotOurs("object (trailer)"));
    }
    if code != u32::from(kind.code()) {
        return Err(FormatError::NotOurs("object of this kind (trailer)"));
    }
    if incompatible & !KNOWN_INCOMPATIBLE != 0 {
        return Err(FormatError::TooNew(format!("features {incompatible:#x}")));
    }
    let end = index_offset
        .checked_add(index_len)
        .and_then(|e| e.checked_add(TRAILER_LEN as u64));
    if end != Some(object_len) {
        return Err(FormatError::Invalid("trailer lengths"));
    }
    Ok(Trailer {
        index_offset,
        index_len,
        object_len,
        crc,
    })
}

/// Cuts the checked index out of a suffix of an object, or says how long a suffix is needed.
pub fn index_of(suffix: &Bytes, kind: ObjectKind) -> Result<IndexOrMore, FormatError> {
    let trailer = read_trailer(suffix, kind)?;
    let needed = trailer.object_len - trailer.index_offset;
    if (suffix.len() as u64) < needed {
        return Ok(IndexOrMore::NeedSuffix(needed));
    }
    let from = suffix.len() - needed as usize;
    let index = suffix.slice(from..from + trailer.index_len as usize);
    if crc32c::crc32c(&index) != trailer.crc {
        return Err(FormatError::Checksum("index"));
    }
    Ok(IndexOrMore::Index(index))
}

/// Answer of [`index_of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexOrMore {
    /// The checked bytes of the index.
    Index(Bytes),
    /// The suffix was too short; so many bytes are needed.
    NeedSuffix(u64),
}
