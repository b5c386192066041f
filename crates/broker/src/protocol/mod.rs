//! What lies between bytes and messages: decoding under limits, replies as lists of chunks.
//!
//! kafka-wire decodes and encodes the messages; it checks every count against the bytes that are there and
//! never reserves by a number that a client claims.

pub(crate) mod fetch_response;
pub(crate) mod old_produce;

use bytes::{Bytes, BytesMut};
use kafka_wire::{KafkaMessage, KafkaRequest, RequestHeader};
use kafka_wire_core::{ApiVersion, DecodeError, DecodeLimits, Decoder, EncodeError, KafkaDecode};
use prometheus_client::metrics::gauge::Gauge;

/// API key of ApiVersions, whose response header stays at version 0 so that every client can read it.
pub(crate) const API_VERSIONS: i16 = 18;

/// Elements that one array of a request may have. A Fetch or OffsetCommit of every partition of a large
/// cluster stays far below.
const ARRAY_ELEMENTS_MAX: usize = 200_000;
/// Longest string of a request; Kafka's classic strings end at 32,767 bytes.
const STRING_BYTES_MAX: usize = 64 * 1024;
/// Unknown tagged fields of one structure, and their bytes: we have no use for any.
const TAGGED_FIELDS_MAX: usize = 64;
const TAGGED_BYTES_MAX: usize = 64 * 1024;

/// The answer to one request, length prefix included, as chunks to be written one after the other.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) chunks: Vec<Bytes>,
    /// Record bytes that this reply keeps alive until the client has taken them.
    _held: Option<HeldBytes>,
}

/// Counts bytes in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    bytes: i64,
    gauge: Gauge,
}

impl HeldBytes {
    pub(crate) fn new(bytes: usize, gauge: &Gauge) -> HeldBytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        gauge.inc_by(bytes);
        HeldBytes {
            bytes,
            gauge: gauge.clone(),
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.gauge.dec_by(self.bytes);
    }
}

impl Reply {
    pub(crate) fn new(chunks: Vec<Bytes>, held: Option<HeldBytes>) -> Reply {
        Reply { chunks, _held: held }
    }

    /// A reply whose frame is one buffer; its first four bytes, reserved by [`begin_reply`], become the length.
    pub(crate) fn from_frame(mut frame: BytesMut) -> Result<Reply, EncodeError> {
        let length = frame.len();
        seal_length(&mut frame, length)?;
        Ok(Reply::new(vec![frame.freeze()], None))
    }
}

/// Starts a reply: room for the length, then the response header.
pub(crate) fn begin_reply(buffer: &mut BytesMut, correlation_id: i32, flexible_header: bool) {
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&correlation_id.to_be_bytes());
    if flexible_header {
        // No tagged fields.
        buffer.extend_from_slice(&[0]);
    }
}

/// Writes the length of a frame of `frame_bytes` (the length field included) at its start.
pub(crate) fn seal_length(start: &mut [u8], frame_bytes: usize) -> Result<(), EncodeError> {
    let body = frame_bytes.saturating_sub(4);
    let length = i32::try_from(body).map_err(|_| EncodeError::FrameTooLarge { bytes: body })?;
    match start.first_chunk_mut::<4>() {
        Some(field) => *field = length.to_be_bytes(),
        None => return Err(EncodeError::FrameTooLarge { bytes: body }),
    }
    Ok(())
}

/// Encodes the answer to a request of version `version`.
pub(crate) fn encode_reply<M: KafkaMessage>(
    api_key: i16,
    version: i16,
    correlation_id: i32,
    response: &M,
) -> Result<Reply, EncodeError> {
    let version = ApiVersion::new(version);
    let mut frame = BytesMut::with_capacity(256);
    begin_reply(
        &mut frame,
        correlation_id,
        api_key != API_VERSIONS && M::is_flexible(version),
    );
    response.encode_into(&mut frame, version)?;
    Reply::from_frame(frame)
}

/// Decodes the header of a request, leaving the decoder at its body.
pub(crate) fn decode_header(bytes: Bytes, flexible: bool) -> Result<(RequestHeader, Decoder), DecodeError> {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = bytes.len();
    limits.max_bytes_bytes = bytes.len();
    limits.max_string_bytes = STRING_BYTES_MAX;
    limits.max_array_elements = ARRAY_ELEMENTS_MAX;
    limits.max_tagged_fields = TAGGED_FIELDS_MAX;
    limits.max_tag_bytes = TAGGED_BYTES_MAX;
    limits.max_total_tag_bytes = TAGGED_BYTES_MAX;
    let mut decoder = Decoder::new(bytes, limits)?;
    let header = RequestHeader::decode(&mut decoder, ApiVersion::new(if flexible { 2 } else { 1 }))?;
    Ok((header, decoder))
}

/// Decodes the body of a request. Bytes that are left over are passed over, as in Kafka: librdkafka 2.16 leaves
/// three behind a Metadata request of version 13.
pub(crate) fn decode_body<R: KafkaRequest>(mut decoder: Decoder, version: i16) -> Result<R, DecodeError> {
    R::decode(&mut decoder, ApiVersion::new(version))
}

/// A topic id as the engine has it.
pub(crate) fn topic_id(id: kafka_wire_core::Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(id.to_bytes())
}
