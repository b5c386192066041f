//! A Kafka client's connection over the simulated network: requests out, answers in, nothing negotiated.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::{
    KafkaRequest, OutboundFrameLimits, RequestResponsePair, encode_request, response_header_version_for,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, KafkaDecode, KafkaEncode, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::network::{Stream, dial};
use crate::world::{Node, Shared};

/// How long a client waits for an answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Error codes that are told apart.
pub mod code {
    pub const NONE: i16 = 0;
    pub const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub const TOPIC_ALREADY_EXISTS: i16 = 36;
    pub const CORRUPT_MESSAGE: i16 = 2;
    pub const UNKNOWN_SERVER_ERROR: i16 = -1;
    pub const UNKNOWN_TOPIC_ID: i16 = 100;

    /// Codes after which a client tries again; all others are an answer that must not be given.
    pub fn is_retriable(code: i16) -> bool {
        // COORDINATOR_*, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, BROKER_NOT_AVAILABLE,
        // NETWORK_EXCEPTION, NOT_ENOUGH_REPLICAS, KAFKA_STORAGE_ERROR, NOT_CONTROLLER, FENCED/UNKNOWN_LEADER_EPOCH.
        [3, 5, 6, 7, 8, 13, 14, 15, 16, 19, 20, 41, 56, 74, 75, 100, 103].contains(&code)
    }
}

/// One connection to a broker.
#[derive(Debug)]
pub struct Kafka {
    stream: Stream,
    correlation: i32,
    /// The broker's machine.
    pub node: Node,
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl Kafka {
    pub async fn connect(world: &Shared, from: Node, to: Node) -> io::Result<Kafka> {
        Ok(Kafka {
            stream: dial(world, from, to).await?,
            correlation: 0,
            node: to,
        })
    }

    /// Sends a request; its answer is the next one that [`Kafka::receive`] has not given.
    pub async fn send<R: KafkaRequest + KafkaEncode>(
        &mut self,
        version: i16,
        request: &R,
    ) -> io::Result<i32> {
        self.correlation += 1;
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(1 << 26);
        let id = self.correlation;
        let client = Some(StrBytes::from("simulated"));
        encode_request(&mut frame, id, client, request, ApiVersion::new(version), limits).map_err(invalid)?;
        self.stream.write_all(&frame).await?;
        Ok(id)
    }

    /// The next answer, which must be the one to request `id`.
    pub async fn receive<R: RequestResponsePair>(
        &mut self,
        version: i16,
        id: i32,
    ) -> io::Result<R::Response> {
        let read = async {
            let length = self.stream.read_i32().await?;
            let mut frame = vec![0; usize::try_from(length).map_err(invalid)?];
            self.stream.read_exact(&mut frame).await?;
            io::Result::Ok(Bytes::from(frame))
        };
        let frame = tokio::time::timeout(REQUEST_TIMEOUT, read)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let version = ApiVersion::new(version);
        let mut decoder = Decoder::new(frame, DecodeLimits::default()).map_err(invalid)?;
        let correlation = decoder.read_i32().map_err(invalid)?;
        if correlation != id {
            return Err(invalid(format!(
                "the answer to {correlation} came instead of {id}"
            )));
        }
        if response_header_version_for::<R>(version).map_err(invalid)? > 0 {
            decoder.read_tagged_fields().map_err(invalid)?;
        }
        R::Response::decode(&mut decoder, version).map_err(invalid)
    }

    /// Sends a request and waits for its answer.
    pub async fn call<R>(&mut self, version: i16, request: &R) -> io::Result<R::Response>
    where
        R: RequestResponsePair + KafkaRequest + KafkaEncode,
    {
        let id = self.send(version, request).await?;
        self.receive::<R>(version, id).await
    }
}
