//! Fetch answers, walked in the buffer that they were read into: no record is copied, and nothing is allocated.

use alluvium_log::BatchError;
use alluvium_log::batch::BatchHeader;

/// First version with record batches v2.
pub(super) const VERSION_MIN: i16 = 4;
/// Last version that names topics; those after it have ids.
pub(super) const VERSION_MAX: i16 = 12;
/// First version with fetch sessions.
pub(super) const SESSIONS: i16 = 7;
const FLEXIBLE: i16 = 12;

/// What an answer says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnswerHead {
    pub(super) correlation: i32,
    pub(super) error: i16,
    pub(super) session_id: i32,
}

/// What it says of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FetchedPartition<'a> {
    pub(super) index: i32,
    pub(super) error: i16,
    /// Batches end to end, of which the last may be cut.
    pub(super) records: &'a [u8],
}

/// Hands each partition of an answer (without its length) to `visit`.
///
/// # Errors
/// A phrase when the bytes are not a Fetch answer of this version. Partitions before that place have been visited.
pub(super) fn walk<'a>(
    answer: &'a [u8],
    version: i16,
    mut visit: impl FnMut(FetchedPartition<'a>),
) -> Result<AnswerHead, &'static str> {
    let flexible = version >= FLEXIBLE;
    let mut cursor = Cursor(answer);
    let correlation = cursor.i32()?;
    if flexible {
        cursor.skip_tags()?;
    }
    cursor.skip(4)?;
    let (error, session_id) = if version >= SESSIONS {
        (cursor.i16()?, cursor.i32()?)
    } else {
        (0, 0)
    };
    for _ in 0..cursor.count(flexible)? {
        let name = if flexible {
            cursor.count(true)?
        } else {
            cursor.i16()?.max(0) as usize
        };
        cursor.skip(name)?;
        for _ in 0..cursor.count(flexible)? {
            visit(partition(&mut cursor, version)?);
        }
        if flexible {
            cursor.skip_tags()?;
        }
    }
    if flexible {
        cursor.skip_tags()?;
    }
    if !cursor.0.is_empty() {
        return Err("bytes follow a Fetch answer");
    }
    Ok(AnswerHead {
        correlation,
        error,
        session_id,
    })
}

fn partition<'a>(cursor: &mut Cursor<'a>, version: i16) -> Result<FetchedPartition<'a>, &'static str> {
    let flexible = version >= FLEXIBLE;
    let index = cursor.i32()?;
    let error = cursor.i16()?;
    // High watermark, last stable offset, log start offset.
    cursor.skip(if version >= 5 { 24 } else { 16 })?;
    for _ in 0..cursor.count(flexible)? {
        cursor.skip(16)?;
        if flexible {
            cursor.skip_tags()?;
        }
    }
    if version >= 11 {
        // The preferred replica.
        cursor.skip(4)?;
    }
    let records = cursor.count(flexible)?;
    let records = cursor.skip(records)?;
    if flexible {
        cursor.skip_tags()?;
    }
    Ok(FetchedPartition {
        index,
        error,
        records,
    })
}

/// What is left of an answer.
struct Cursor<'a>(&'a [u8]);

const CUT: &str = "a Fetch answer is cut short";

impl<'a> Cursor<'a> {
    fn skip(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (skipped, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(skipped)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (array, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*array)
    }

    fn i16(&mut self) -> Result<i16, &'static str> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, &'static str> {
        self.array().map(i32::from_be_bytes)
    }

    fn varint(&mut self) -> Result<usize, &'static str> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).map_err(|_| CUT);
            }
        }
        Err("a number in a Fetch answer is too long")
    }

    /// The length of an array or of bytes; null is 0.
    fn count(&mut self, flexible: bool) -> Result<usize, &'static str> {
        if flexible {
            Ok(self.varint()?.saturating_sub(1))
        } else {
            Ok(self.i32()?.max(0) as usize)
        }
    }

    fn skip_tags(&mut self) -> Result<(), &'static str> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let len = self.varint()?;
            self.skip(len)?;
        }
        Ok(())
    }
}

/// The whole batches at the start of `records`; one that is cut ends them.
pub(in crate::cli) struct Batches<'a>(&'a [u8]);

impl<'a> Batches<'a> {
    pub(in crate::cli) fn new(records: &'a [u8]) -> Batches<'a> {
        Batches(records)
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(BatchHeader, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = match BatchHeader::parse(self.0) {
            Ok(header) => header,
            Err(BatchError::Truncated) => return None,
            Err(error) => {
                self.0 = &[];
                return Some(Err(error));
            }
        };
        let (batch, rest) = self.0.split_at_checked(header.size())?;
        self.0 = rest;
        Some(Ok((header, batch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::ErrorCode;
    use crate::protocol::fetch_response::{FetchAnswer, PartitionAnswer, TopicAnswer};
    use alluvium_log::batch::BatchBuilder;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn batch(offset: i64, values: usize) -> Bytes {
        let mut builder = BatchBuilder::new();
        for _ in 0..values {
            builder.push(1, None, Some(b"value"), &[]);
        }
        let batch = builder.build();
        [&batch.patched_header(offset, 0)[..], &batch.body()]
            .concat()
            .into()
    }

    /// An answer as the broker writes it, without its length.
    fn answer(version: i16) -> Vec<u8> {
        let records = Bytes::from([batch(5, 3), batch(8, 1)].concat());
        let mut full = PartitionAnswer::failed(0, ErrorCode::None);
        full.records_bytes = records.len();
        full.records = vec![records];
        full.aborted = Some(vec![(900, 4)]);
        let mut moved = PartitionAnswer::failed(3, ErrorCode::NotLeaderOrFollower);
        if version >= FLEXIBLE {
            moved.current_leader = Some((5, 9));
            moved.diverging_epoch = Some((2, 44));
        }
        let answer = FetchAnswer {
            error: None,
            session_id: if version >= SESSIONS { 77 } else { 0 },
            topics: vec![TopicAnswer {
                name: "topic-a".into(),
                id: kafka_wire_core::Uuid::default(),
                partitions: vec![full, moved],
            }],
            node_endpoints: Vec::new(),
        };
        let reply = answer.into_reply(version, 9, None).unwrap();
        reply.chunks.concat()[4..].to_vec()
    }

    #[test]
    fn walks_answers_of_all_versions() {
        for version in VERSION_MIN..=VERSION_MAX {
            let bytes = answer(version);
            let mut seen = Vec::new();
            let head = walk(&bytes, version, |partition| {
                let batches = Batches::new(partition.records);
                let offsets: Vec<_> = batches
                    .map(|batch| {
                        batch
                            .map(|(header, bytes)| (header.base_offset, bytes.len()))
                            .unwrap()
                    })
                    .collect();
                seen.push((partition.index, partition.error, offsets));
            });
            let session_id = if version >= SESSIONS { 77 } else { 0 };
            assert_eq!(
                head,
                Ok(AnswerHead {
                    correlation: 9,
                    error: 0,
                    session_id
                })
            );
            let lens = (batch(5, 3).len(), batch(8, 1).len());
            assert_eq!(
                seen,
                vec![(0, 0, vec![(5, lens.0), (8, lens.1)]), (3, 6, vec![])],
                "version {version}"
            );
        }
    }

    #[test]
    fn a_cut_answer_is_an_error_wherever_it_is_cut() {
        for version in VERSION_MIN..=VERSION_MAX {
            let bytes = answer(version);
            for end in 0..bytes.len() {
                assert!(
                    walk(&bytes[..end], version, |_| {}).is_err(),
                    "version {version}, {end}"
                );
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(walk(&longer, version, |_| {}).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_answers_end(
            version in VERSION_MIN..=VERSION_MAX, at: prop::sample::Index, with: [u8; 4], garbage: Vec<u8>,
        ) {
            let mut bytes = answer(version);
            let at = at.index(bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(&with);
            for bytes in [&bytes[..], &garbage] {
                // Each partition takes bytes, so that no count makes this long.
                let mut visits = 0;
                let _ = walk(bytes, version, |partition| {
                    visits += 1;
                    let _ = Batches::new(partition.records).count();
                });
                prop_assert!(visits <= bytes.len());
            }
        }
    }

    #[test]
    fn a_cut_batch_ends_the_batches() {
        let whole = [batch(0, 2), batch(2, 2)].concat();
        for cut in [0, 10, 60, whole.len() - 1] {
            let expected = usize::from(cut >= batch(0, 2).len());
            assert_eq!(Batches::new(&whole[..cut]).count(), expected, "{cut}");
        }
        let mut foreign = batch(0, 1).to_vec();
        foreign[16] = 1;
        let mut batches = Batches::new(&foreign);
        assert!(matches!(
            batches.next(),
            Some(Err(BatchError::UnsupportedMagic(1)))
        ));
        assert!(batches.next().is_none());
    }
}
