//! The Fetch response, written by hand so that record bytes are referenced and not copied.
//!
//! The envelope goes into one buffer; where records belong, their chunks are slipped in between slices of it.
//! Layout: `FetchResponse.json` of Kafka, versions 4 to 18. Tests compare it with kafka-wire's decoder.

use bytes::{Bytes, BytesMut};
use kafka_wire::fetch_response::NodeEndpoint;
use kafka_wire_core::{ApiVersion, EncodeError, Encoder, KafkaEncode, StrBytes, Uuid};

use super::{HeldBytes, Reply, begin_reply, seal_length};
use crate::errors::ErrorCode;

/// First version with compact encodings and tagged fields.
const FLEXIBLE: i16 = 12;
/// First version that names topics by id alone.
pub(crate) const TOPIC_IDS: i16 = 13;
/// First version with the endpoints of current leaders.
const NODE_ENDPOINTS: i16 = 16;

/// Answer to one Fetch.
#[derive(Debug, Default)]
pub(crate) struct FetchAnswer {
    pub(crate) error: Option<ErrorCode>,
    pub(crate) session_id: i32,
    pub(crate) topics: Vec<TopicAnswer>,
    /// Where the leaders listen that `current_leader` of a partition names.
    pub(crate) node_endpoints: Vec<NodeEndpoint>,
}

#[derive(Debug)]
pub(crate) struct TopicAnswer {
    pub(crate) name: StrBytes,
    pub(crate) id: Uuid,
    pub(crate) partitions: Vec<PartitionAnswer>,
}

/// Answer for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionAnswer {
    pub(crate) index: i32,
    pub(crate) error: ErrorCode,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable_offset: i64,
    pub(crate) log_start_offset: i64,
    /// (epoch, end offset) from where the client's log differs (KIP-595).
    pub(crate) diverging_epoch: Option<(i32, i64)>,
    /// (node id, epoch), told with an error that a wrong leader causes (KIP-951).
    pub(crate) current_leader: Option<(i32, i32)>,
    /// (producer id, first offset); `None` for read_uncommitted.
    pub(crate) aborted: Option<Vec<(i64, i64)>>,
    /// Whole batches, possibly cut anywhere between chunks.
    pub(crate) records: Vec<Bytes>,
    pub(crate) records_bytes: usize,
}

impl PartitionAnswer {
    /// An answer that carries nothing but an error.
    pub(crate) fn failed(index: i32, error: ErrorCode) -> PartitionAnswer {
        PartitionAnswer {
            index,
            error,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: None,
            current_leader: None,
            aborted: None,
            records: Vec::new(),
            records_bytes: 0,
        }
    }
}

impl FetchAnswer {
    /// Record bytes in the answer.
    pub(crate) fn records_bytes(&self) -> usize {
        self.topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|partition| partition.records_bytes)
            .sum()
    }

    /// The reply as chunks. The record chunks are the ones that were given, not copies.
    pub(crate) fn into_reply(
        self,
        version: i16,
        correlation_id: i32,
        held: Option<HeldBytes>,
    ) -> Result<Reply, EncodeError> {
        let mut envelope = BytesMut::with_capacity(64 + 80 * self.topics.len());
        begin_reply(&mut envelope, correlation_id, version >= FLEXIBLE);
        let mut insertions: Vec<(usize, Vec<Bytes>)> = Vec::new();
        let mut inserted = 0;

        let mut encoder = Encoder::new(&mut envelope);
        encoder.write_i32(0)?;
        if version >= 7 {
            encoder.write_i16(self.error.unwrap_or(ErrorCode::None).code())?;
            encoder.write_i32(self.session_id)?;
        }
        write_array_len(&mut envelope, version, Some(self.topics.len()))?;
        for topic in self.topics {
            let mut encoder = Encoder::new(&mut envelope);
            if version >= TOPIC_IDS {
                encoder.write_uuid(topic.id)?;
            } else if version >= FLEXIBLE {
                encoder.write_compact_string(&topic.name)?;
            } else {
                encoder.write_string(&topic.name)?;
            }
            write_array_len(&mut envelope, version, Some(topic.partitions.len()))?;
            for partition in topic.partitions {
                partition.write_before_records(&mut envelope, version)?;
                inserted += partition.records_bytes;
                partition.write_tags(&mut envelope, version, &mut insertions)?;
            }
            if version >= FLEXIBLE {
                Encoder::new(&mut envelope).write_unsigned_varint(0)?;
            }
        }
        if version >= FLEXIBLE {
            write_node_endpoints(&mut envelope, version, &self.node_endpoints)?;
        }

        let total = envelope.len().saturating_add(inserted);
        seal_length(&mut envelope, total)?;
        Ok(Reply::new(interleave(envelope.freeze(), insertions), held))
    }
}

impl PartitionAnswer {
    /// Everything up to and including the length of the records.
    fn write_before_records(&self, envelope: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
        let mut encoder = Encoder::new(envelope);
        encoder.write_i32(self.index)?;
        encoder.write_i16(self.error.code())?;
        encoder.write_i64(self.high_watermark)?;
        encoder.write_i64(self.last_stable_offset)?;
        if version >= 5 {
            encoder.write_i64(self.log_start_offset)?;
        }
        write_array_len(envelope, version, self.aborted.as_ref().map(Vec::len))?;
        let mut encoder = Encoder::new(envelope);
        for (producer_id, first_offset) in self.aborted.iter().flatten() {
            encoder.write_i64(*producer_id)?;
            encoder.write_i64(*first_offset)?;
            if version >= FLEXIBLE {
                encoder.write_unsigned_varint(0)?;
            }
        }
        if version >= 11 {
            // No other replica is preferred.
            encoder.write_i32(-1)?;
        }
        // Java's client wants an empty set of records, not null.
        let too_large = |_| EncodeError::FrameTooLarge {
            bytes: self.records_bytes,
        };
        let length = i32::try_from(self.records_bytes).map_err(too_large)?;
        if version >= FLEXIBLE {
            encoder.write_unsigned_varint(length.unsigned_abs() + 1)?;
        } else {
            encoder.write_i32(length)?;
        }
        Ok(())
    }

    /// Notes where the records belong and writes what follows them.
    fn write_tags(
        self,
        envelope: &mut BytesMut,
        version: i16,
        insertions: &mut Vec<(usize, Vec<Bytes>)>,
    ) -> Result<(), EncodeError> {
        if !self.records.is_empty() {
            insertions.push((envelope.len(), self.records));
        }
        if version < FLEXIBLE {
            return Ok(());
        }
        let mut encoder = Encoder::new(envelope);
        let count = u32::from(self.diverging_epoch.is_some()) + u32::from(self.current_leader.is_some());
        encoder.write_unsigned_varint(count)?;
        if let Some((epoch, end_offset)) = self.diverging_epoch {
            // Tag 0: int32, int64, no tags of its own.
            encoder.write_unsigned_varint(0)?;
            encoder.write_unsigned_varint(13)?;
            encoder.write_i32(epoch)?;
            encoder.write_i64(end_offset)?;
            encoder.write_unsigned_varint(0)?;
        }
        if let Some((leader, epoch)) = self.current_leader {
            // Tag 1: int32, int32, no tags of its own.
            encoder.write_unsigned_varint(1)?;
            encoder.write_unsigned_varint(9)?;
            encoder.write_i32(leader)?;
            encoder.write_i32(epoch)?;
            encoder.write_unsigned_varint(0)?;
        }
        Ok(())
    }
}

fn write_array_len(envelope: &mut BytesMut, version: i16, length: Option<usize>) -> Result<(), EncodeError> {
    let mut encoder = Encoder::new(envelope);
    if version >= FLEXIBLE {
        encoder.write_compact_nullable_array_len(length)
    } else {
        encoder.write_nullable_array_len(length)
    }
}

fn write_node_endpoints(
    envelope: &mut BytesMut,
    version: i16,
    endpoints: &[NodeEndpoint],
) -> Result<(), EncodeError> {
    if version < NODE_ENDPOINTS || endpoints.is_empty() {
        return Encoder::new(envelope).write_unsigned_varint(0);
    }
    let mut field = BytesMut::new();
    Encoder::new(&mut field).write_compact_array_len(endpoints.len())?;
    for endpoint in endpoints {
        endpoint.encode(&mut Encoder::new(&mut field), ApiVersion::new(version))?;
    }
    let mut encoder = Encoder::new(envelope);
    encoder.write_unsigned_varint(1)?;
    encoder.write_unsigned_varint(0)?;
    // A tagged field is a count of bytes, not that count plus one.
    let length = u32::try_from(field.len()).map_err(|_| EncodeError::FrameTooLarge { bytes: field.len() })?;
    encoder.write_unsigned_varint(length)?;
    encoder.write_raw_slice(&field)
}

/// Slices of `envelope` with the insertions between them, at the given positions, in rising order.
fn interleave(envelope: Bytes, insertions: Vec<(usize, Vec<Bytes>)>) -> Vec<Bytes> {
    let mut chunks = Vec::with_capacity(1 + 2 * insertions.len());
    let mut rest = envelope;
    let mut position = 0;
    for (at, records) in insertions {
        chunks.push(rest.split_to(at - position));
        position = at;
        chunks.extend(records);
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::FetchResponse;
    use kafka_wire::fetch_response as wire;
    use kafka_wire_core::{DecodeLimits, KafkaDecode};

    fn endpoint() -> NodeEndpoint {
        let mut endpoint = NodeEndpoint::default();
        endpoint.node_id = 5;
        endpoint.host = StrBytes::from("b5.example");
        endpoint.port = 9092;
        endpoint.rack = Some(StrBytes::from("zone-a"));
        endpoint
    }

    fn answer(version: i16) -> FetchAnswer {
        let large = Bytes::from(vec![7; 300]);
        let mut full = PartitionAnswer::failed(0, ErrorCode::None);
        full.high_watermark = 12;
        full.last_stable_offset = 11;
        full.log_start_offset = 3;
        full.aborted = Some(vec![(900, 4), (901, 6)]);
        full.records = vec![large.slice(..100), large.slice(100..)];
        full.records_bytes = 300;
        let mut diverging = PartitionAnswer::failed(1, ErrorCode::None);
        let mut moved = PartitionAnswer::failed(2, ErrorCode::NotLeaderOrFollower);
        if version >= FLEXIBLE {
            diverging.diverging_epoch = Some((2, 44));
            diverging.current_leader = Some((6, 7));
            moved.current_leader = Some((5, 9));
        }
        let topic = |name: &str, id, partitions| TopicAnswer {
            name: StrBytes::from(name),
            id: Uuid::from_bytes([id; 16]),
            partitions,
        };
        FetchAnswer {
            error: None,
            session_id: 77,
            topics: vec![
                topic("first", 1, vec![full.clone(), diverging]),
                topic("second", 2, vec![moved, full]),
            ],
            node_endpoints: vec![endpoint()],
        }
    }

    fn expected(version: i16) -> FetchResponse {
        let mut response = FetchResponse::default();
        response.session_id = if version >= 7 { 77 } else { 0 };
        for topic in answer(version).topics {
            let mut wire_topic = wire::FetchableTopicResponse::default();
            if version >= TOPIC_IDS {
                wire_topic.topic_id = topic.id;
            } else {
                wire_topic.topic = topic.name;
            }
            for partition in topic.partitions {
                let mut data = wire::PartitionData::default();
                data.partition_index = partition.index;
                data.error_code = partition.error.code();
                data.high_watermark = partition.high_watermark;
                data.last_stable_offset = partition.last_stable_offset;
                data.log_start_offset = if version >= 5 {
                    partition.log_start_offset
                } else {
                    -1
                };
                data.aborted_transactions = partition.aborted.map(|aborted| {
                    let one = |(producer_id, first_offset)| {
                        let mut one = wire::AbortedTransaction::default();
                        one.producer_id = producer_id;
                        one.first_offset = first_offset;
                        one
                    };
                    aborted.into_iter().map(one).collect()
                });
                if let Some((epoch, end_offset)) = partition.diverging_epoch {
                    data.diverging_epoch.epoch = epoch;
                    data.diverging_epoch.end_offset = end_offset;
                }
                if let Some((leader_id, leader_epoch)) = partition.current_leader {
                    data.current_leader.leader_id = leader_id;
                    data.current_leader.leader_epoch = leader_epoch;
                }
                data.records = Some(Bytes::from(partition.records.concat()));
                wire_topic.partitions.push(data);
            }
            response.responses.push(wire_topic);
        }
        if version >= NODE_ENDPOINTS {
            response.node_endpoints.push(endpoint());
        }
        response
    }

    #[test]
    fn every_version_reads_back_and_matches_the_reference_encoding() {
        for version in 4..=18 {
            let reply = answer(version).into_reply(version, 42, None).unwrap();
            let frame = Bytes::from(reply.chunks.concat());
            assert_eq!(frame[..4], ((frame.len() - 4) as i32).to_be_bytes(), "v{version}");
            assert_eq!(frame[4..8], 42_i32.to_be_bytes());
            let header = if version >= FLEXIBLE { 9 } else { 8 };
            let api_version = ApiVersion::new(version);
            let body = frame.slice(header..);
            let decoded =
                FetchResponse::decode_from_bytes(body.clone(), api_version, DecodeLimits::default()).unwrap();
            assert_eq!(decoded, expected(version), "v{version}");
            assert_eq!(
                body,
                expected(version).encode_to_bytes(api_version).unwrap(),
                "v{version}"
            );
        }
    }

    #[test]
    fn record_chunks_are_referenced_not_copied() {
        let answer = answer(12);
        let given = answer.topics[0].partitions[0].records[1].as_ptr();
        let reply = answer.into_reply(12, 1, None).unwrap();
        assert!(reply.chunks.iter().any(|chunk| chunk.as_ptr() == given));
    }

    #[test]
    fn an_empty_answer_is_one_chunk() {
        let reply = FetchAnswer::default().into_reply(17, 1, None).unwrap();
        assert_eq!(reply.chunks.len(), 1);
    }
}
