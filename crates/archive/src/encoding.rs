//! Decodes what stands in a page: levels, packed integers and lengths, in place and with no allocation by a number that
//! the bytes declare.
//!
//! The library's decoders make a reference-counted slice of every value and trust the counts of the page header, which
//! no checksum covers; these are told how many rows there must be and check that it is so.

use alluvium_log::format::FormatError;

/// Numbers in one miniblock of packed ones at most; the writer's have 32 or 64.
const MINIBLOCK_MAX: u64 = 64;
/// Bytes of the largest miniblock, and room to read 16 bytes at its last number.
const UNPACKED: usize = MINIBLOCK_MAX as usize * 8 + 16;

fn cut() -> FormatError {
    FormatError::Truncated("page")
}

/// What is left of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FormatError> {
        let (&byte, rest) = self.0.split_first().ok_or_else(cut)?;
        self.0 = rest;
        Ok(byte)
    }

    fn unsigned(&mut self) -> Result<u64, FormatError> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FormatError::Invalid("number in a page"))
    }

    fn signed(&mut self) -> Result<i64, FormatError> {
        let raw = self.unsigned()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// The levels that stand here behind their length.
    pub(crate) fn levels(&mut self) -> Result<Bytes<'a>, FormatError> {
        let len = self.take(4)?;
        let len = len
            .iter()
            .rev()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        self.take(len).map(Bytes)
    }
}

/// Walks `count` levels of up to `max` as runs of equal ones (run-length and bit-packed hybrid).
pub(crate) fn walk_levels(
    mut bytes: Bytes<'_>,
    max: u8,
    count: usize,
    mut run: impl FnMut(u8, usize) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut checked = |level: u8, n| {
        if level > max {
            return Err(FormatError::Invalid("level in a page"));
        }
        run(level, n)
    };
    let width = u8::BITS - max.leading_zeros();
    let mut left = count;
    while left > 0 {
        let head = bytes.unsigned()?;
        let n = usize::try_from(head >> 1).map_err(|_| FormatError::Invalid("run in a page"))?;
        if n == 0 {
            return Err(FormatError::Invalid("run in a page"));
        }
        if head & 1 == 0 {
            let n = n.min(left);
            checked(bytes.byte()?, n)?;
            left -= n;
            continue;
        }
        // Groups of eight levels; the last one may be padded.
        let packed = bytes.take(n.checked_mul(width as usize).ok_or_else(cut)?)?;
        for group in packed.chunks_exact(width as usize) {
            let mut bits = group
                .iter()
                .rev()
                .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
            for _ in 0..left.min(8) {
                checked((bits & ((1 << width) - 1)) as u8, 1)?;
                bits >>= width;
                left -= 1;
            }
        }
    }
    Ok(())
}

/// Decodes integers (DELTA_BINARY_PACKED) of which there must be `count`, and appends them to `out`. What follows them
/// stays in `bytes`.
pub(crate) fn packed(bytes: &mut Bytes<'_>, count: usize, out: &mut Vec<i64>) -> Result<(), FormatError> {
    let (block, miniblocks) = (bytes.unsigned()?, bytes.unsigned()?);
    let total = bytes.unsigned()?;
    let mut value = bytes.signed()?;
    let per_mini = block.checked_div(miniblocks).unwrap_or(0);
    if per_mini == 0 || per_mini > MINIBLOCK_MAX || per_mini % 8 != 0 || miniblocks > MINIBLOCK_MAX {
        return Err(FormatError::Invalid("block of packed numbers"));
    }
    if total != count as u64 {
        return Err(FormatError::Invalid("count of packed numbers"));
    }
    if count == 0 {
        return Ok(());
    }
    let per_mini = per_mini as usize;
    out.push(value);
    let mut left = count - 1;
    while left > 0 {
        let least = bytes.signed()?;
        for width in bytes.take(miniblocks as usize)? {
            if left == 0 {
                break;
            }
            let width = u32::from(*width);
            if width > u64::BITS {
                return Err(FormatError::Invalid("width of packed numbers"));
            }
            let body = bytes.take(per_mini * width as usize / 8)?;
            let n = per_mini.min(left);
            unpack(body, width, n, |delta| {
                value = value.wrapping_add(least).wrapping_add(delta.cast_signed());
                out.push(value);
            });
            left -= n;
        }
    }
    Ok(())
}

/// Hands out `n` unsigned numbers of `width` bits, the lowest bits first.
fn unpack(body: &[u8], width: u32, n: usize, mut each: impl FnMut(u64)) {
    if width == 0 {
        (0..n).for_each(|_| each(0));
        return;
    }
    // With room behind the last number every one can be read whole.
    let mut padded = [0; UNPACKED];
    padded[..body.len()].copy_from_slice(body);
    let mask = u64::MAX >> (u64::BITS - width);
    for index in 0..n {
        let bit = index * width as usize;
        let at = bit / 8;
        let mut word = [0; 16];
        word.copy_from_slice(&padded[at..at + 16]);
        each((u128::from_le_bytes(word) >> (bit % 8)) as u64 & mask);
    }
}

/// Bits of booleans (PLAIN), of which there must be `count`.
pub(crate) fn booleans(bytes: Bytes<'_>, count: usize, out: &mut Vec<i64>) -> Result<(), FormatError> {
    if bytes.0.len() != count.div_ceil(8) {
        return Err(FormatError::Invalid("count of booleans"));
    }
    out.extend((0..count).map(|n| i64::from(bytes.0[n / 8] >> (n % 8) & 1)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_and_groups_of_levels_are_walked() {
        // A run of five ones, then a group of eight in two bits of which three are wanted: 2, 0, 1.
        let bytes = [10, 1, 3, 0b0001_0010, 0];
        let mut levels = vec![];
        walk_levels(Bytes(&bytes), 2, 8, |level, n| {
            levels.extend(std::iter::repeat_n(level, n));
            Ok(())
        })
        .unwrap();
        assert_eq!(levels, [1, 1, 1, 1, 1, 2, 0, 1]);
        assert!(
            walk_levels(Bytes(&bytes), 2, 14, |_, _| Ok(())).is_err(),
            "too few"
        );
        assert!(
            walk_levels(Bytes(&[4, 3]), 2, 2, |_, _| Ok(())).is_err(),
            "too high"
        );
        assert!(
            walk_levels(Bytes(&[0, 1]), 2, 2, |_, _| Ok(())).is_err(),
            "no progress"
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, count in 0usize..2000) {
            let _ = walk_levels(Bytes(&bytes), 1, count, |_, _| Ok(()));
            let _ = walk_levels(Bytes(&bytes), 2, count, |_, _| Ok(()));
            let mut out = vec![];
            let _ = packed(&mut Bytes(&bytes), count, &mut out);
            let _ = booleans(Bytes(&bytes), count, &mut out);
            prop_assert!(out.len() <= 2 * count);
        }
    }
}
