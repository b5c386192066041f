//! PeerPing on the wire: frames of a fixed size, so that there is nothing to bound and nothing to allocate.
//!
//! ```text
//! request   length i32 | key i16 | version i16 | correlation id i32 | client id i16 = -1 (none)
//!           cluster id 16 bytes | sender's incarnation u64 | sender's manifest version u64
//! answer    length i32 | correlation id i32 | error code i16, and if that is 0:
//!           incarnation u64 | applied manifest version u64 | draining u8 (0 or 1)
//! ```
//!
//! All numbers are big-endian; the header is Kafka's, so that what looks into Kafka's frames understands it. A
//! broker that does not know a version says so with UNSUPPORTED_VERSION: closing the connection would look like
//! a broker in trouble to its newer neighbours.

use alluvium_log::Incarnation;
use alluvium_log::membership::Pong;
use uuid::Uuid;

use crate::errors::ErrorCode;

/// Key of the API; Kafka's own are small numbers.
pub(crate) const PEER_PING: i16 = 32_000;
/// The version that is spoken.
pub(crate) const VERSION: i16 = 0;
/// The largest request that is read, its length not counted: room for versions to come.
pub(crate) const REQUEST_BYTES_MAX: usize = 128;
/// The largest answer that is read, its length not counted.
pub(crate) const ANSWER_BYTES_MAX: usize = 128;

const HEADER: usize = 10;
const REQUEST: usize = HEADER + 16 + 8 + 8;
const NO_CLIENT_ID: i16 = -1;

/// What a broker says of itself when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ping {
    pub(crate) cluster: Uuid,
    pub(crate) incarnation: Incarnation,
    /// The newest manifest that it has seen.
    pub(crate) manifest_version: u64,
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Ping {
        correlation_id: i32,
        ping: Ping,
    },
    /// Of a version that is not known here.
    Newer {
        correlation_id: i32,
    },
}

/// Bytes that are no PeerPing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it is {0} bytes long")]
    Length(usize),
    #[error("it has a client id")]
    ClientId,
    #[error("it answers another request")]
    Correlation,
    #[error("its flags are {0}")]
    Flags(u8),
}

impl Ping {
    /// The whole frame of the request.
    pub(crate) fn encode(&self, correlation_id: i32) -> Vec<u8> {
        let mut frame = Vec::with_capacity(4 + REQUEST);
        frame.extend((REQUEST as i32).to_be_bytes());
        frame.extend(PEER_PING.to_be_bytes());
        frame.extend(VERSION.to_be_bytes());
        frame.extend(correlation_id.to_be_bytes());
        frame.extend(NO_CLIENT_ID.to_be_bytes());
        frame.extend(self.cluster.as_bytes());
        frame.extend(self.incarnation.to_be_bytes());
        frame.extend(self.manifest_version.to_be_bytes());
        frame
    }
}

/// Reads a request from its API key on.
pub(crate) fn decode_request(bytes: &[u8]) -> Result<Received, Malformed> {
    let mut read = Fields(bytes);
    let length = || Malformed::Length(bytes.len());
    let _key: [u8; 2] = read.take().ok_or_else(length)?;
    let version = i16::from_be_bytes(read.take().ok_or_else(length)?);
    let correlation_id = i32::from_be_bytes(read.take().ok_or_else(length)?);
    if version != VERSION {
        return Ok(Received::Newer { correlation_id });
    }
    if bytes.len() != REQUEST {
        return Err(length());
    }
    if read.take().map(i16::from_be_bytes) != Some(NO_CLIENT_ID) {
        return Err(Malformed::ClientId);
    }
    let ping = Ping {
        cluster: Uuid::from_bytes(read.take().ok_or_else(length)?),
        incarnation: u64::from_be_bytes(read.take().ok_or_else(length)?),
        manifest_version: u64::from_be_bytes(read.take().ok_or_else(length)?),
    };
    Ok(Received::Ping { correlation_id, ping })
}

/// The whole frame of an answer. An error comes alone: who belongs to another cluster learns nothing of this one.
pub(crate) fn encode_answer(correlation_id: i32, answer: Result<Pong, ErrorCode>) -> Vec<u8> {
    let mut body = Vec::with_capacity(32);
    body.extend(correlation_id.to_be_bytes());
    match answer {
        Ok(pong) => {
            body.extend(ErrorCode::None.code().to_be_bytes());
            body.extend(pong.incarnation.to_be_bytes());
            body.extend(pong.manifest_version.to_be_bytes());
            body.push(u8::from(pong.draining));
        }
        Err(error) => body.extend(error.code().to_be_bytes()),
    }
    let mut frame = (body.len() as i32).to_be_bytes().to_vec();
    frame.append(&mut body);
    frame
}

/// Reads an answer from its correlation id on; the inner error is a code of Kafka's.
pub(crate) fn decode_answer(bytes: &[u8], correlation_id: i32) -> Result<Result<Pong, i16>, Malformed> {
    let mut read = Fields(bytes);
    let length = || Malformed::Length(bytes.len());
    if i32::from_be_bytes(read.take().ok_or_else(length)?) != correlation_id {
        return Err(Malformed::Correlation);
    }
    let error = i16::from_be_bytes(read.take().ok_or_else(length)?);
    if error != ErrorCode::None.code() {
        return match read.0 {
            [] => Ok(Err(error)),
            _ => Err(length()),
        };
    }
    let incarnation = u64::from_be_bytes(read.take().ok_or_else(length)?);
    let manifest_version = u64::from_be_bytes(read.take().ok_or_else(length)?);
    let draining = match read.0 {
        [0] => false,
        [1] => true,
        [other] => return Err(Malformed::Flags(*other)),
        _ => return Err(length()),
    };
    Ok(Ok(Pong {
        incarnation,
        manifest_version,
        draining,
    }))
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PING: Ping = Ping {
        cluster: Uuid::from_u128(7),
        incarnation: 3,
        manifest_version: 41,
    };
    const PONG: Pong = Pong {
        incarnation: 9,
        manifest_version: 40,
        draining: true,
    };

    #[test]
    fn what_is_written_is_read() {
        let frame = PING.encode(12);
        assert_eq!(frame[..4], 42_i32.to_be_bytes());
        assert!(frame.len() <= 4 + REQUEST_BYTES_MAX);
        let received = decode_request(&frame[4..]);
        assert_eq!(
            received,
            Ok(Received::Ping {
                correlation_id: 12,
                ping: PING
            })
        );
        for answer in [
            Ok(PONG),
            Ok(Pong {
                draining: false,
                ..PONG
            }),
        ] {
            let frame = encode_answer(12, answer);
            assert_eq!(frame[..4], 23_i32.to_be_bytes());
            assert_eq!(decode_answer(&frame[4..], 12), Ok(Ok(answer.unwrap())));
        }
        let refused = encode_answer(12, Err(ErrorCode::InconsistentClusterId));
        assert_eq!(refused.len(), 10, "an error says nothing else");
        assert_eq!(decode_answer(&refused[4..], 12), Ok(Err(104)));
    }

    #[test]
    fn only_exact_frames_are_taken() {
        let request = PING.encode(12)[4..].to_vec();
        for length in 0..request.len() {
            assert_eq!(decode_request(&request[..length]), Err(Malformed::Length(length)));
        }
        let longer = [&request[..], &[0]].concat();
        assert_eq!(decode_request(&longer), Err(Malformed::Length(43)));
        let mut named = request.clone();
        named[9] = 1;
        assert_eq!(decode_request(&named), Err(Malformed::ClientId));

        let answer = encode_answer(12, Ok(PONG))[4..].to_vec();
        for length in 0..answer.len() {
            assert!(decode_answer(&answer[..length], 12).is_err(), "{length} bytes");
        }
        assert!(decode_answer(&[&answer[..], &[0]].concat(), 12).is_err());
        assert_eq!(decode_answer(&answer, 13), Err(Malformed::Correlation));
        let mut flagged = answer.clone();
        flagged[22] = 2;
        assert_eq!(decode_answer(&flagged, 12), Err(Malformed::Flags(2)));
        let refused = [&encode_answer(12, Err(ErrorCode::UnsupportedVersion))[4..], &[0]].concat();
        assert!(decode_answer(&refused, 12).is_err());
    }

    #[test]
    fn other_versions_are_told_apart_from_garbage() {
        for version in [1_i16, -1, i16::MAX] {
            let mut request = PING.encode(12)[4..].to_vec();
            request[2..4].copy_from_slice(&version.to_be_bytes());
            request.extend([1; 40]);
            assert_eq!(
                decode_request(&request),
                Ok(Received::Newer { correlation_id: 12 })
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_answer(&bytes, 0);
            if let Ok(Received::Ping { correlation_id, ping }) = decode_request(&bytes) {
                // What is accepted is what would be written, but for the key, which was looked at before.
                prop_assert_eq!(&ping.encode(correlation_id)[6..], &bytes[2..]);
            }
        }
    }
}
