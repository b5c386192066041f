//! Batches that compaction changes: some records fewer, a wider span, or none left.
//!
//! What stays of a batch is what a consumer sees: offsets, timestamps, keys, values, headers, the leader epoch and the
//! producer's fields, as Kafka's log cleaner leaves them.

use std::io;

use bytes::Bytes;

use super::header::{BatchHeader, HEADER_LEN, LENGTH_OVERHEAD, MAGIC, TimestampType};
use super::records::{BatchRecords, RecordRef};
use super::{BatchError, RecordBatch};
use crate::Offset;
use crate::codec::Codec;

/// Why a batch could not be written anew.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// Its records cannot be walked.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Its codec did not take them back.
    #[error("the records cannot be compressed again: {0}")]
    Codec(#[from] io::Error),
}

impl RecordBatch {
    /// The batch with those records for which `keep` says yes, and with `delete_horizon_ms` if it has none yet. `opened`
    /// are its records. Base and last offset stay as they are, so it stands for the same offsets.
    pub fn with_records(
        &self,
        opened: &BatchRecords,
        mut keep: impl FnMut(&RecordRef<'_>) -> bool,
        delete_horizon_ms: Option<i64>,
    ) -> Result<RecordBatch, RewriteError> {
        let mut header = self.header;
        if let (Some(ms), None) = (delete_horizon_ms, header.delete_horizon_ms()) {
            header.set_delete_horizon(ms);
        }
        let earlier = self.header.base_timestamp.wrapping_sub(header.base_timestamp);
        let mut records = Vec::with_capacity(opened.payload_bytes());
        (header.record_count, header.max_timestamp) = (0, -1);
        for record in opened {
            let record = record?;
            if keep(&record) {
                header.record_count += 1;
                header.max_timestamp = header.max_timestamp.max(record.timestamp);
                record.put(&mut records, earlier);
            }
        }
        if header.timestamp_type() == TimestampType::LogAppendTime {
            // All records have it, and it stands nowhere else.
            header.max_timestamp = self.header.max_timestamp;
        }
        if header.record_count > 0 {
            records = header.codec()?.compress(&records)?;
        }
        assemble(header, &records)
    }

    /// The batch, standing for everything up to `last_offset` although it has no records there. `None` if that is more
    /// than a batch can stand for.
    pub fn stretched(&self, last_offset: Offset) -> Option<RecordBatch> {
        let last_offset_delta = i32::try_from(last_offset.checked_sub(self.header.base_offset)?).ok()?;
        let header = BatchHeader {
            last_offset_delta,
            ..self.header
        };
        Some(self.clone().with_header(header))
    }
}

/// A batch without records that stands for the offsets from `base_offset` on, as far as one can.
pub fn empty_batch(base_offset: Offset, last_offset: Offset, leader_epoch: i32) -> RecordBatch {
    let span = last_offset
        .saturating_sub(base_offset)
        .clamp(0, i64::from(i32::MAX));
    let mut header = BatchHeader {
        base_offset,
        batch_length: (HEADER_LEN - LENGTH_OVERHEAD) as i32,
        leader_epoch,
        magic: MAGIC,
        crc: 0,
        attributes: i16::from(Codec::None.id()),
        last_offset_delta: span as i32,
        base_timestamp: -1,
        max_timestamp: -1,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 0,
    };
    header.crc = header.crc_with(&[]);
    RecordBatch {
        bytes: Bytes::copy_from_slice(&header.encode()),
        header,
    }
}

fn assemble(mut header: BatchHeader, records: &[u8]) -> Result<RecordBatch, RewriteError> {
    let length = HEADER_LEN - LENGTH_OVERHEAD + records.len();
    header.batch_length = i32::try_from(length).map_err(|_| BatchError::TooLarge)?;
    header.crc = header.crc_with(records);
    let mut bytes = Vec::with_capacity(HEADER_LEN + records.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(records);
    Ok(RecordBatch {
        bytes: Bytes::from(bytes),
        header,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Record, records};
    use proptest::prelude::*;

    const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn all(batch: &RecordBatch) -> Vec<Record> {
        RecordBatch::from_stored(batch.bytes().clone()).unwrap();
        records(batch.bytes(), 1 << 20).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_it_was(
            times in proptest::collection::vec((0i64..1_000_000, any::<bool>()), 1..20),
            codec in 0usize..5,
            horizon: Option<u32>,
            append_time: bool,
        ) {
            let mut builder = BatchBuilder::new().producer(7, 1, 100);
            for (i, (t, _)) in times.iter().enumerate() {
                let value = [b'v'; 99];
                let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h", Some(b"1")), (b"h", None)];
                let value = (i % 3 != 0).then_some(&value[..i]);
                builder.push(*t, Some(&[i as u8]), value, &headers[..i % 3]);
            }
            let built = builder.build_with(CODECS[codec]).unwrap();
            let built = if append_time { built.with_log_append_time(77) } else { built };
            let mut bytes = built.patched_header(1_000, 5).to_vec();
            bytes.extend_from_slice(&built.body());
            let batch = RecordBatch::from_stored(Bytes::from(bytes)).unwrap();
            let opened = batch.records(1 << 20).unwrap();
            let horizon = horizon.map(i64::from);
            let keep = |r: &RecordRef<'_>| times[(r.offset - 1_000) as usize].1;
            let less = batch.with_records(&opened, keep, horizon).unwrap();
            let expected: Vec<Record> = all(&batch)
                .into_iter()
                .filter(|r| times[(r.offset - 1_000) as usize].1)
                .collect();
            prop_assert_eq!(all(&less), expected.clone());
            let (before, after) = (batch.header(), less.header());
            prop_assert_eq!(after.delete_horizon_ms(), horizon);
            prop_assert_eq!(after.last_offset(), before.last_offset());
            prop_assert_eq!(after.last_sequence(), before.last_sequence());
            let same = |h: &BatchHeader| (h.base_offset, h.leader_epoch, h.producer_id, h.producer_epoch, h.attributes & 0x3f);
            prop_assert_eq!(same(before), same(after));
            let newest = expected.iter().map(|r| r.timestamp).max().unwrap_or(-1);
            prop_assert_eq!(after.max_timestamp, if append_time { 77 } else { newest });
            // A horizon that is set stays.
            let opened = less.records(1 << 20).unwrap();
            let again = less.with_records(&opened, |_| true, Some(9)).unwrap();
            prop_assert_eq!(again.header().delete_horizon_ms(), horizon.or(Some(9)));
            prop_assert_eq!(all(&again), expected.clone());
            let wide = again.stretched(5_000_000).unwrap();
            prop_assert_eq!(wide.header().last_offset(), 5_000_000);
            prop_assert_eq!(all(&wide), expected);
            prop_assert!(again.stretched(1_001 + i64::from(i32::MAX)).is_none());
        }
    }

    #[test]
    fn an_empty_batch_stands_for_offsets() {
        let empty = empty_batch(10, 19, 3);
        assert_eq!((empty.len(), all(&empty)), (HEADER_LEN, vec![]));
        assert_eq!(
            (empty.header().last_offset(), empty.header().leader_epoch),
            (19, 3)
        );
        assert_eq!(empty.header().delete_horizon_ms(), None);
        let most = empty_batch(1, i64::MAX, 3);
        assert_eq!(most.header().last_offset(), 1 + i64::from(i32::MAX));
    }
}
