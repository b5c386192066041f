//! Bodies: reading those of requests, writing those of answers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use md5::{Digest, Md5};

use super::error::S3Error;
use super::request::content_length;

/// Reserved at once at most, whatever a request declares.
const RESERVE_MAX: u64 = 64 * 1024 * 1024;
/// Time for the bytes before a cut to leave the machine.
const CUT_DELAY: Duration = Duration::from_millis(5);

/// The connection ends here without an answer, or in the middle of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

/// Why a request's body is not usable.
#[derive(Debug)]
pub(crate) enum BodyError {
    Refused(S3Error),
    /// The client went away in the middle of it.
    Cut,
}

impl From<S3Error> for BodyError {
    fn from(error: S3Error) -> BodyError {
        BodyError::Refused(error)
    }
}

/// Reads a whole body into one buffer of its own size, so that a small object never pins a large read
/// buffer of the connection.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Incoming,
    bytes_max: u64,
) -> Result<Bytes, BodyError> {
    let length = content_length(headers)?;
    if length > bytes_max {
        return Err(S3Error::too_large(bytes_max).into());
    }
    let mut content = BytesMut::with_capacity(length.min(RESERVE_MAX) as usize);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| BodyError::Cut)?.into_data() {
            content.extend_from_slice(&data);
        }
    }
    let content = content.freeze();
    let streaming = header(headers, "x-amz-content-sha256").is_some_and(|sha| sha.starts_with("STREAMING-"));
    let content = if streaming {
        decode_chunks(headers, content)?
    } else {
        content
    };
    check_md5(headers, &content)?;
    Ok(content)
}

/// Throws a body away, so that the client reads the answer instead of meeting a closed connection.
pub(crate) async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn check_md5(headers: &HeaderMap, content: &[u8]) -> Result<(), S3Error> {
    match header(headers, "content-md5") {
        Some(md5) if md5 != BASE64_STANDARD.encode(Md5::digest(content)) => Err(S3Error::bad_digest()),
        _ => Ok(()),
    }
}

/// Takes the framing of `aws-chunked` off: the AWS SDKs send it when they add a trailing checksum. Chunk
/// signatures and trailers are not verified.
fn decode_chunks(headers: &HeaderMap, mut body: Bytes) -> Result<Bytes, S3Error> {
    let malformed = || S3Error::invalid_request("The aws-chunked body is malformed");
    let mut content = BytesMut::new();
    loop {
        let line = body
            .windows(2)
            .position(|pair| pair == b"\r\n")
            .ok_or_else(malformed)?;
        let head = std::str::from_utf8(&body[..line]).map_err(|_| malformed())?;
        let size = head.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| malformed())?;
        body.advance(line + 2);
        if size == 0 {
            break;
        }
        if body.len() < 2 || body.len() - 2 < size || &body[size..size + 2] != b"\r\n" {
            return Err(malformed());
        }
        content.extend_from_slice(&body[..size]);
        body.advance(size + 2);
    }
    let declared = header(headers, "x-amz-decoded-content-length").and_then(|text| text.parse().ok());
    if declared != Some(content.len()) {
        return Err(S3Error::invalid_request(
            "x-amz-decoded-content-length is missing or wrong",
        ));
    }
    Ok(content.freeze())
}

/// Body of an answer: slices of stored objects, never copies.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    frames: VecDeque<Bytes>,
    /// Ends with a cut connection.
    cut: Option<Option<Pin<Box<tokio::time::Sleep>>>>,
}

impl Reply {
    pub(crate) fn whole(content: Bytes) -> Reply {
        Reply {
            frames: VecDeque::from_iter((!content.is_empty()).then_some(content)),
            cut: None,
        }
    }

    pub(crate) fn parts(frames: Vec<Bytes>) -> Reply {
        Reply {
            frames: frames.into_iter().filter(|frame| !frame.is_empty()).collect(),
            cut: None,
        }
    }

    /// Sends `content` and then cuts the connection.
    pub(crate) fn cut_after(content: Bytes) -> Reply {
        Reply {
            cut: Some(None),
            ..Reply::whole(content)
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len() as u64).sum()
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        let Some(cut) = &mut self.cut else {
            return Poll::Ready(None);
        };
        // Pending once lets hyper flush what it has before the error makes it drop the connection.
        let sleep = cut.get_or_insert_with(|| Box::pin(tokio::time::sleep(CUT_DELAY)));
        sleep.as_mut().poll(cx).map(|()| Some(Err(Cut)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.cut.is_some() {
            SizeHint::default()
        } else {
            SizeHint::with_exact(self.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &'static [u8], length: &str) -> Result<Bytes, S3Error> {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-decoded-content-length", length.parse().unwrap());
        decode_chunks(&headers, Bytes::from_static(body))
    }

    #[test]
    fn decodes_aws_chunked_bodies() {
        let body = b"5;chunk-signature=ab\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n";
        assert_eq!(decode(body, "11").unwrap(), "hello world");
        assert!(decode(body, "12").is_err());
        let bad: [&[u8]; 6] = [
            b"",
            b"5\r\nhel",
            b"5\r\nhelloXX0\r\n",
            b"zz\r\n",
            b"ffffffffffffffff\r\nx\r\n",
            b"5\r\nhello\r\n",
        ];
        for body in bad {
            assert!(decode(body, "5").is_err(), "{body:?}");
        }
    }
}
