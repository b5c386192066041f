//! Produce requests, written by hand so that records are referenced and not copied.

use alluvium_log::batch::HEADER_LEN;
use bytes::{BufMut, Bytes, BytesMut};

use super::super::payload::ReadyBatch;
use crate::cli::client::{ANSWER_PATIENCE, CLIENT_ID};

/// First version that carries record batches v2.
pub(super) const VERSION_MIN: i16 = 3;
/// Last version that names topics; those after it have ids.
pub(super) const VERSION_MAX: i16 = 12;
/// First version with compact encodings and tagged fields.
const FLEXIBLE: i16 = 9;
/// Bytes of a request beside its batches, at most, with the longest name that a topic can have.
const ENVELOPE_BYTES: usize = 512;

/// A request of batches for distinct partitions of one topic, with its length in front.
pub(super) fn produce_frame<'a>(
    version: i16,
    correlation: i32,
    acks: i16,
    topic: &str,
    batches: impl ExactSizeIterator<Item = (i32, &'a ReadyBatch)>,
) -> Vec<Bytes> {
    let flexible = version >= FLEXIBLE;
    let mut envelope = BytesMut::with_capacity(ENVELOPE_BYTES + batches.len() * (HEADER_LEN + 16));
    envelope.put_i32(0);
    envelope.put_i16(0);
    envelope.put_i16(version);
    envelope.put_i32(correlation);
    envelope.put_i16(CLIENT_ID.len() as i16);
    envelope.put_slice(CLIENT_ID.as_bytes());
    if flexible {
        // No tagged fields in the header, no transactional id.
        envelope.put_slice(&[0, 0]);
    } else {
        envelope.put_i16(-1);
    }
    envelope.put_i16(acks);
    envelope.put_i32(ANSWER_PATIENCE.as_millis() as i32);
    put_count(&mut envelope, flexible, 1);
    if flexible {
        put_varint(&mut envelope, topic.len() + 1);
    } else {
        envelope.put_i16(topic.len() as i16);
    }
    envelope.put_slice(topic.as_bytes());
    put_count(&mut envelope, flexible, batches.len());

    let mut bodies = Vec::with_capacity(batches.len());
    let mut total = 0;
    for (partition, batch) in batches {
        envelope.put_i32(partition);
        put_count(&mut envelope, flexible, HEADER_LEN + batch.body.len());
        envelope.put_slice(&batch.header);
        total += batch.body.len();
        bodies.push((envelope.len(), batch.body.clone()));
        if flexible {
            envelope.put_u8(0);
        }
    }
    if flexible {
        // No tagged fields of the topic, none of the request.
        envelope.put_slice(&[0, 0]);
    }
    total += envelope.len();
    let length = i32::try_from(total - 4).unwrap_or(i32::MAX);
    envelope[..4].copy_from_slice(&length.to_be_bytes());

    let mut rest = envelope.freeze();
    let mut frame = Vec::with_capacity(2 * bodies.len() + 1);
    let mut at = 0;
    for (end, body) in bodies {
        frame.push(rest.split_to(end - at));
        frame.push(body);
        at = end;
    }
    if !rest.is_empty() {
        frame.push(rest);
    }
    frame
}

/// The length of an array or of bytes.
fn put_count(out: &mut BytesMut, flexible: bool, count: usize) {
    if flexible {
        put_varint(out, count + 1);
    } else {
        out.put_i32(i32::try_from(count).unwrap_or(i32::MAX));
    }
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::{ProduceRequest, RequestHeader};
    use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, KafkaDecode};

    #[test]
    fn requests_of_all_versions_read_well() {
        let batch = |fill: u8, len: usize| ReadyBatch {
            header: [fill; HEADER_LEN],
            body: vec![fill; len].into(),
            record_bytes: 0,
        };
        let batches = [(0, batch(1, 10)), (7, batch(2, 200_000)), (3, batch(3, 100))];
        for version in VERSION_MIN..=VERSION_MAX {
            let parts = produce_frame(version, 9, -1, "topic-a", batches.iter().map(|(p, b)| (*p, b)));
            // The bodies are the ones that were given.
            assert!(
                parts
                    .iter()
                    .any(|part| part.as_ptr() == batches[1].1.body.as_ptr())
            );
            let frame = Bytes::from(parts.concat());
            assert_eq!(frame[..4], (frame.len() as i32 - 4).to_be_bytes());
            let mut decoder = Decoder::new(frame.slice(4..), DecodeLimits::default()).unwrap();
            let header_version = ApiVersion::new(if version >= FLEXIBLE { 2 } else { 1 });
            let header = RequestHeader::decode(&mut decoder, header_version).unwrap();
            assert_eq!(
                (
                    header.request_api_key,
                    header.request_api_version,
                    header.correlation_id
                ),
                (0, version, 9)
            );
            assert_eq!(header.client_id.unwrap().as_str(), CLIENT_ID);
            let request = ProduceRequest::decode(&mut decoder, ApiVersion::new(version)).unwrap();
            decoder.finish().unwrap();
            assert_eq!((request.acks, request.timeout_ms), (-1, 30_000));
            assert_eq!(request.transactional_id, None);
            assert_eq!(request.topic_data.len(), 1);
            assert_eq!(request.topic_data[0].name.as_str(), "topic-a");
            let read = &request.topic_data[0].partition_data;
            assert_eq!(read.len(), batches.len());
            for (read, (partition, batch)) in read.iter().zip(&batches) {
                assert_eq!(read.index, *partition);
                let expected = [&batch.header[..], &batch.body].concat();
                assert_eq!(read.records.as_ref().unwrap()[..], expected);
            }
        }
    }
}
