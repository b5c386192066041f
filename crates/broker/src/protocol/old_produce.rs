//! Produce versions 0 to 2, which are advertised but not served.
//!
//! Old librdkafka infers from the advertised range what else a broker can do, so Kafka advertises these
//! versions and so do we. Who really sends one gets UNSUPPORTED_VERSION for each partition.

use bytes::BytesMut;
use kafka_wire_core::{DecodeError, Decoder, EncodeError, Encoder, StrBytes};

use super::{Reply, begin_reply};
use crate::errors::ErrorCode;

/// The first version that kafka-wire knows.
pub(crate) const FIRST_SERVED: i16 = 3;

/// Reads such a request and refuses every partition of it; `None` for acks = 0, where no answer is due.
pub(crate) fn refuse(
    mut decoder: Decoder,
    version: i16,
    correlation_id: i32,
) -> Result<Option<Reply>, RefuseError> {
    let acks = decoder.read_i16()?;
    let _timeout_ms = decoder.read_i32()?;
    let topics: Vec<(StrBytes, Vec<i32>)> = {
        let count = decoder.read_array_len()?;
        decoder.read_vec(count, |decoder| {
            let name = decoder.read_string()?;
            let count = decoder.read_array_len()?;
            let partitions = decoder.read_vec(count, |decoder| {
                let index = decoder.read_i32()?;
                decoder.read_nullable_bytes()?;
                Ok(index)
            })?;
            Ok((name, partitions))
        })?
    };
    decoder.finish()?;
    if acks == 0 {
        return Ok(None);
    }
    let mut frame = BytesMut::new();
    begin_reply(&mut frame, correlation_id, false);
    let mut encoder = Encoder::new(&mut frame);
    encoder.write_array_len(topics.len())?;
    for (name, partitions) in &topics {
        encoder.write_string(name)?;
        encoder.write_array_len(partitions.len())?;
        for index in partitions {
            encoder.write_i32(*index)?;
            encoder.write_i16(ErrorCode::UnsupportedVersion.code())?;
            encoder.write_i64(-1)?;
            if version >= 2 {
                encoder.write_i64(-1)?;
            }
        }
    }
    if version >= 1 {
        encoder.write_i32(0)?;
    }
    Ok(Some(Reply::from_frame(frame)?))
}

/// Why such a request could not even be refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefuseError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::decode_header;

    fn request(version: i16, acks: i16) -> Decoder {
        let mut bytes = BytesMut::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.write_i16(0).unwrap();
        encoder.write_i16(version).unwrap();
        encoder.write_i32(9).unwrap();
        encoder.write_string(&StrBytes::from("old")).unwrap();
        encoder.write_i16(acks).unwrap();
        encoder.write_i32(1000).unwrap();
        encoder.write_array_len(1).unwrap();
        encoder.write_string(&StrBytes::from("t")).unwrap();
        encoder.write_array_len(1).unwrap();
        encoder.write_i32(4).unwrap();
        encoder.write_bytes(b"message set").unwrap();
        decode_header(bytes.freeze(), false).unwrap().1
    }

    #[test]
    fn each_version_is_refused_in_its_own_shape() {
        for (version, tail) in [(0, 0), (1, 4), (2, 12)] {
            let reply = refuse(request(version, 1), version, 9).unwrap().unwrap();
            let frame = &reply.chunks[0];
            assert_eq!(frame[..4], ((frame.len() - 4) as i32).to_be_bytes());
            assert_eq!(frame[4..8], 9_i32.to_be_bytes());
            // topics, name, partitions, index, error, offset
            assert_eq!(frame.len(), 8 + 4 + 3 + 4 + 4 + 2 + 8 + tail);
            assert_eq!(frame[8 + 4 + 3 + 4 + 4..][..2], 35_i16.to_be_bytes());
        }
        assert!(refuse(request(1, 0), 1, 9).unwrap().is_none());
    }
}
