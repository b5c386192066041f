//! Unsigned LEB128 and zigzag integers, and a reader that never panics and never trusts a count.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::FormatError;

/// Appends an unsigned LEB128 integer.
pub fn put_unsigned(out: &mut BytesMut, mut v: u64) {
    while v >= 0x80 {
        out.put_u8(v as u8 | 0x80);
        v >>= 7;
    }
    out.put_u8(v as u8);
}

/// Appends a zigzag-encoded signed integer.
pub fn put_signed(out: &mut BytesMut, v: i64) {
    put_unsigned(out, ((v << 1) ^ (v >> 63)) as u64);
}

/// A cursor over untrusted bytes.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    /// A cursor before the first byte.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { bytes, at: 0 }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes, sharing the memory.
    pub fn bytes(&mut self, n: usize) -> Result<Bytes, FormatError> {
        if self.remaining() < n {
            return Err(FormatError::Truncated("field"));
        }
        let b = self.bytes.slice(self.at..self.at + n);
        self.at += n;
        Ok(b)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        let b = *self.bytes.get(self.at).ok_or(FormatError::Truncated("byte"))?;
        self.at += 1;
        Ok(b)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let s = self
            .bytes
            .get(self.at..self.at + N)
            .ok_or(FormatError::Truncated("field"))?;
        let mut a = [0; N];
        a.copy_from_slice(s);
        self.at += N;
        Ok(a)
    }

    /// A little-endian integer of 8 bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A UUID.
    pub fn uuid(&mut self) -> Result<Uuid, FormatError> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    /// An unsigned LEB128 integer.
    pub fn unsigned(&mut self) -> Result<u64, FormatError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let part = u64::from(b & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            v |= part << shift;
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(FormatError::Invalid("varint"))
    }

    /// A zigzag-encoded signed integer.
    pub fn signed(&mut self) -> Result<i64, FormatError> {
        let v = self.unsigned()?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// An unsigned integer that fits 32 bits; `what` names it in the error.
    pub fn u32v(&mut self, what: &'static str) -> Result<u32, FormatError> {
        u32::try_from(self.unsigned()?).map_err(|_| FormatError::Invalid(what))
    }

    /// A non-negative integer that fits 31 bits; `what` names it in the error.
    pub fn i32v(&mut self, what: &'static str) -> Result<i32, FormatError> {
        i32::try_from(self.unsigned()?).map_err(|_| FormatError::Invalid(what))
    }

    /// A non-negative offset.
    pub fn offset(&mut self, what: &'static str) -> Result<i64, FormatError> {
        i64::try_from(self.unsigned()?).map_err(|_| FormatError::Invalid(what))
    }

    /// A count of elements of at least `min_len` bytes each: never more than could follow.
    pub fn count(&mut self, min_len: usize) -> Result<usize, FormatError> {
        let n = self.unsigned()?;
        if n > (self.remaining() / min_len.max(1)) as u64 {
            return Err(FormatError::Invalid("count"));
        }
        Ok(n as usize)
    }

    /// A text behind its length.
    pub fn string(&mut self) -> Result<String, FormatError> {
        let n = self.count(1)?;
        let b = self.bytes(n)?;
        String::from_utf8(b.to_vec()).map_err(|_| FormatError::Invalid("text"))
    }

    /// Checks that nothing is left.
    pub fn finish(&self) -> Result<(), FormatError> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(FormatError::Invalid("trailing bytes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_come_back(u: u64, s: i64) {
            let mut out = BytesMut::new();
            put_unsigned(&mut out, u);
            put_signed(&mut out, s);
            let mut r = Reader::new(out.freeze());
            prop_assert_eq!(r.unsigned().unwrap(), u);
            prop_assert_eq!(r.signed().unwrap(), s);
            prop_assert!(r.finish().is_ok());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let mut r = Reader::new(Bytes::from(bytes));
            while r.remaining() > 0 && r.unsigned().is_ok() {}
            let _ = (r.clone().signed(), r.clone().uuid(), r.clone().string(), r.count(3));
        }
    }

    #[test]
    fn ten_full_bytes_are_not_an_integer() {
        assert!(Reader::new(Bytes::from_static(&[0xff; 10])).unsigned().is_err());
    }
}
