//! A raw Kafka client: sends any request of any version, or any bytes at all, and reads what comes back.
//!
//! It blocks, negotiates nothing and retries nothing, so that a test sees exactly what the broker did.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_wire::{
    KafkaRequest, OutboundFrameLimits, RequestResponsePair, encode_request, response_header_version_for,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, KafkaDecode, StrBytes};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    correlation: i32,
}

impl Client {
    /// Connects; reads and writes give up after 30 s unless [`Client::set_timeout`] says otherwise.
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let client = Client::connect_within(address, Duration::from_secs(10))?;
        client.set_timeout(Duration::from_secs(30))?;
        Ok(client)
    }

    /// Connects; that, each read and each write give up after `patience`.
    pub fn connect_within(address: SocketAddr, patience: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        let client = Client {
            stream,
            correlation: 0,
        };
        client.set_timeout(patience)?;
        Ok(client)
    }

    /// Time after which a read or a write gives up.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))?;
        self.stream.set_write_timeout(Some(timeout))
    }

    /// Sends a request and returns its correlation id.
    pub fn send<R: KafkaRequest>(&mut self, request: &R, version: i16) -> io::Result<i32> {
        self.correlation += 1;
        let frame = frame(request, version, self.correlation)?;
        self.stream.write_all(&frame)?;
        Ok(self.correlation)
    }

    /// Reads the next answer, which must be one to an `R` of this version, with its correlation id.
    pub fn receive<R: RequestResponsePair>(&mut self, version: i16) -> io::Result<(i32, R::Response)> {
        let answer = self.read_frame()?;
        decode_answer::<R>(answer, version)
    }

    /// Sends a request and reads its answer.
    pub fn call<R: RequestResponsePair>(&mut self, request: &R, version: i16) -> io::Result<R::Response> {
        let sent = self.send(request, version)?;
        let (correlation, response) = self.receive::<R>(version)?;
        if correlation != sent {
            return Err(invalid(format!(
                "the answer to {correlation} came instead of {sent}"
            )));
        }
        Ok(response)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Ends the sending direction; answers can still be read.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Reads one answer without its length, whatever is in it.
    pub fn read_frame(&mut self) -> io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > ANSWER_BYTES_MAX {
            return Err(invalid(format!("an answer of {length} bytes")));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok(Bytes::from(answer))
    }

    /// Waits until the broker answers or closes the connection.
    pub fn outcome(&mut self, patience: Duration) -> io::Result<Outcome> {
        self.set_timeout(patience)?;
        match self.read_frame() {
            Ok(answer) => Ok(Outcome::Answer(answer)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(Outcome::Silent),
                io::ErrorKind::InvalidData => Err(error),
                _ => Ok(Outcome::Closed),
            },
        }
    }

    /// Whether the broker closes the connection in time, after any answers.
    pub fn closes_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut sink = [0; 64 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match self.stream.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return false,
                    io::ErrorKind::Interrupted => {}
                    _ => return true,
                },
            }
        }
    }
}

/// What a broker did with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered these bytes (without their length).
    Answer(Bytes),
    /// It closed the connection.
    Closed,
    /// Nothing happened in time.
    Silent,
}

/// A request as it goes over the wire, its length included.
pub fn frame<R: KafkaRequest>(request: &R, version: i16, correlation: i32) -> io::Result<Bytes> {
    let mut buffer = BytesMut::new();
    let limits = OutboundFrameLimits::new(i32::MAX as usize);
    let client_id = Some(StrBytes::from("wire"));
    encode_request(
        &mut buffer,
        correlation,
        client_id,
        request,
        ApiVersion::new(version),
        limits,
    )
    .map_err(|error| invalid(error.to_string()))?;
    Ok(buffer.freeze())
}

/// Puts a length in front of a header and body.
pub fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = i32::try_from(payload.len())
        .unwrap_or(i32::MAX)
        .to_be_bytes()
        .to_vec();
    frame.extend_from_slice(payload);
    frame
}

/// A request header of any key and version: version 2 (with tagged fields) when `flexible`, else 1.
pub fn header(key: i16, version: i16, correlation: i32, flexible: bool) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&key.to_be_bytes());
    header.extend_from_slice(&version.to_be_bytes());
    header.extend_from_slice(&correlation.to_be_bytes());
    header.extend_from_slice(&4i16.to_be_bytes());
    header.extend_from_slice(b"wire");
    if flexible {
        header.push(0);
    }
    header
}

/// Reads an answer's header and body; nothing may be left over.
pub fn decode_answer<R: RequestResponsePair>(answer: Bytes, version: i16) -> io::Result<(i32, R::Response)> {
    let version = ApiVersion::new(version);
    let limits = DecodeLimits::default();
    let decoded = |error: kafka_wire_core::DecodeError| invalid(error.to_string());
    let mut decoder = Decoder::new(answer, limits).map_err(decoded)?;
    let correlation = decoder.read_i32().map_err(decoded)?;
    let flexible = response_header_version_for::<R>(version).map_err(|error| invalid(error.to_string()))?;
    if flexible > 0 {
        decoder.read_tagged_fields().map_err(decoded)?;
    }
    let response = R::Response::decode(&mut decoder, version).map_err(decoded)?;
    decoder.finish().map_err(decoded)?;
    Ok((correlation, response))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
