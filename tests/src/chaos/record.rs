//! A record that says who wrote it and which of theirs it is, and whose every byte can be checked.

use std::fmt;

/// The numberth record of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    /// Who wrote it.
    pub(super) producer: u16,
    /// Counts that producer's records from 0.
    pub(super) number: u32,
}

impl Record {
    /// A value of about so many bytes, which this record alone has.
    pub(super) fn value(self, bytes: usize) -> Vec<u8> {
        let mut value = format!("{self}:").into_bytes();
        let head = value.len();
        let mut state = (u64::from(self.producer) << 32 | u64::from(self.number)) ^ bytes as u64;
        while value.len() < bytes.max(head) {
            // A linear congruential generator (Knuth's constants): cheap, and the same on every machine.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            value.push(b'a' + (state >> 59) as u8 % 26);
        }
        value
    }

    /// The record that has this value.
    ///
    /// # Errors
    /// A sentence if no record has it.
    pub(super) fn parse(value: &[u8]) -> Result<Record, String> {
        let known = || {
            let head = value.iter().position(|byte| *byte == b':')?;
            let (producer, number) = std::str::from_utf8(&value[..head]).ok()?.split_once('.')?;
            let record = Record {
                producer: producer.parse().ok()?,
                number: number.parse().ok()?,
            };
            (record.value(value.len()) == value).then_some(record)
        };
        known().ok_or_else(|| {
            let shown = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
            format!("a value of {} bytes that nobody wrote: {shown:?}", value.len())
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.producer, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_record_and_any_change_is_noticed() {
        for bytes in [0, 3, 10, 1_000] {
            let record = Record {
                producer: 65_535,
                number: 4_000_000_000,
            };
            let value = record.value(bytes);
            assert!(value.len() >= bytes);
            assert_eq!(Record::parse(&value), Ok(record));
        }
        let value = Record {
            producer: 1,
            number: 2,
        }
        .value(50);
        for at in 0..value.len() {
            let mut wrong = value.clone();
            wrong[at] ^= 1;
            assert!(Record::parse(&wrong).is_err(), "byte {at}");
        }
        assert!(Record::parse(&value[..49]).is_err());
        assert!(Record::parse(b"").is_err());
    }
}
