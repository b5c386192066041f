//! ArchiveFlush on the wire: what `alluvium archive flush` asks the leaders of a topic, again and again.
//!
//! ```text
//! request   length i32 | key i16 | version i16 | correlation id i32 | client id i16 = -1 (none)
//!           begin u8 (1: archive what is published now; 0: only say how far it is) | topic: length u8, bytes
//! answer    length i32 | correlation id i32 | error code i16, and if that is 0:
//!           refusal u8, and if that is 0:
//!           place: length u16, bytes | trouble: length u16, bytes | count u32 | and of each partition
//!           partition i32 | log start i64 | end i64 | archived to i64 | stuck u8 (0 or 1)
//! ```
//!
//! All numbers are big-endian; the header is Kafka's. Texts are UTF-8. A request has a bounded size; the count of an
//! answer is held against the bytes that came before anything is reserved for it.

use crate::errors::ErrorCode;
use crate::topics::NAME_LENGTH_MAX;

/// Key of the API; Kafka's own are small numbers.
pub(crate) const ARCHIVE_FLUSH: i16 = 32_001;
/// The version that is spoken.
pub(crate) const VERSION: i16 = 0;
/// The largest request that is read, its length not counted: room for versions to come.
pub(crate) const REQUEST_BYTES_MAX: usize = 512;
/// The largest answer that is read, its length not counted: more than all partitions that a topic may have.
pub(crate) const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A text of an answer ends there.
const TEXT_BYTES_MAX: usize = 1_000;

const NO_CLIENT_ID: i16 = -1;
const PARTITION_BYTES: usize = 4 + 3 * 8 + 1;

/// What is asked of a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flush {
    /// Archive what is published now, and do not only tell.
    pub(crate) begin: bool,
    pub(crate) topic: String,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Flush {
        correlation_id: i32,
        flush: Flush,
    },
    /// Of a version that is not known here.
    Newer {
        correlation_id: i32,
    },
}

/// Why a topic is not archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unarchived {
    /// There is no such topic.
    Unknown,
    /// `cleanup.policy` has compact.
    Compacted,
    /// It belongs to the coordinators.
    Internal,
    /// `archive.enable=false`
    Disabled,
    /// The cluster may not write history yet.
    FeatureLevel,
}

impl Unarchived {
    const ALL: [Unarchived; 5] = [
        Unarchived::Unknown,
        Unarchived::Compacted,
        Unarchived::Internal,
        Unarchived::Disabled,
        Unarchived::FeatureLevel,
    ];

    fn code(self) -> u8 {
        Self::ALL
            .iter()
            .position(|one| *one == self)
            .map_or(0, |at| at as u8 + 1)
    }

    fn of_code(code: u8) -> Option<Unarchived> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// How far a leader's partitions are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where the topic's files are: the store, and the folder in it.
    pub(crate) place: String,
    /// What went wrong last, if nothing went right since; or nothing.
    pub(crate) trouble: String,
    /// The partitions that this broker leads.
    pub(crate) partitions: Vec<PartitionProgress>,
}

/// How far one partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionProgress {
    pub(crate) partition: i32,
    pub(crate) log_start: i64,
    /// The next offset that will be published.
    pub(crate) end: i64,
    /// Everything below is history, or is gone.
    pub(crate) archived_to: i64,
    /// What was last asked for has come to its end and left some of it: waiting does not help.
    pub(crate) stuck: bool,
}

/// Bytes that are no ArchiveFlush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it is cut short, or goes on behind its end")]
    Length,
    #[error("it has a client id")]
    ClientId,
    #[error("it answers another request")]
    Correlation,
    #[error("a flag in it is {0}")]
    Flag(u8),
    #[error("the name of its topic is {0} bytes long")]
    Name(usize),
    #[error("a text in it is no UTF-8")]
    Text,
    #[error("it counts more partitions than it has")]
    Count,
}

impl Flush {
    /// The whole frame of the request; `None` if no topic can have that name.
    pub(crate) fn encode(&self, correlation_id: i32) -> Option<Vec<u8>> {
        let name_len = u8::try_from(self.topic.len()).ok().filter(|len| *len > 0)?;
        let mut body = Vec::with_capacity(16 + self.topic.len());
        body.extend(ARCHIVE_FLUSH.to_be_bytes());
        body.extend(VERSION.to_be_bytes());
        body.extend(correlation_id.to_be_bytes());
        body.extend(NO_CLIENT_ID.to_be_bytes());
        body.push(u8::from(self.begin));
        body.push(name_len);
        body.extend(self.topic.as_bytes());
        Some(framed(body))
    }
}

fn framed(mut body: Vec<u8>) -> Vec<u8> {
    let mut frame = (body.len() as i32).to_be_bytes().to_vec();
    frame.append(&mut body);
    frame
}

/// Reads a request from its API key on.
pub(crate) fn decode_request(bytes: &[u8]) -> Result<Received, Malformed> {
    let mut read = Fields(bytes);
    let _key: [u8; 2] = read.array()?;
    let version = i16::from_be_bytes(read.array()?);
    let correlation_id = i32::from_be_bytes(read.array()?);
    if version != VERSION {
        return Ok(Received::Newer { correlation_id });
    }
    if i16::from_be_bytes(read.array()?) != NO_CLIENT_ID {
        return Err(Malformed::ClientId);
    }
    let begin = read.flag()?;
    let length = usize::from(read.u8()?);
    if !(1..=NAME_LENGTH_MAX).contains(&length) {
        return Err(Malformed::Name(length));
    }
    let topic = read.text(length)?;
    read.finish()?;
    let flush = Flush { begin, topic };
    Ok(Received::Flush {
        correlation_id,
        flush,
    })
}

/// The whole frame of an answer.
pub(crate) fn encode_answer(
    correlation_id: i32,
    answer: Result<Result<Progress, Unarchived>, ErrorCode>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    body.extend(correlation_id.to_be_bytes());
    let answered = match answer {
        Ok(answered) => answered,
        Err(error) => {
            body.extend(error.code().to_be_bytes());
            return framed(body);
        }
    };
    body.extend(ErrorCode::None.code().to_be_bytes());
    let progress = match answered {
        Ok(progress) => progress,
        Err(why) => {
            body.push(why.code());
            return framed(body);
        }
    };
    body.push(0);
    for text in [&progress.place, &progress.trouble] {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    body.extend((progress.partitions.len() as u32).to_be_bytes());
    for one in &progress.partitions {
        body.extend(one.partition.to_be_bytes());
        for offset in [one.log_start, one.end, one.archived_to] {
            body.extend(offset.to_be_bytes());
        }
        body.push(u8::from(one.stuck));
    }
    framed(body)
}

/// An answer: an error of Kafka's, or why there is nothing to do, or how far it is.
pub(crate) type Answer = Result<Result<Progress, Unarchived>, i16>;

/// Reads an answer from its correlation id on.
pub(crate) fn decode_answer(bytes: &[u8], correlation_id: i32) -> Result<Answer, Malformed> {
    let mut read = Fields(bytes);
    if i32::from_be_bytes(read.array()?) != correlation_id {
        return Err(Malformed::Correlation);
    }
    let error = i16::from_be_bytes(read.array()?);
    if error != ErrorCode::None.code() {
        return read.finish().map(|()| Err(error));
    }
    let refusal = read.u8()?;
    if refusal != 0 {
        let why = Unarchived::of_code(refusal).ok_or(Malformed::Flag(refusal))?;
        return read.finish().map(|()| Ok(Err(why)));
    }
    let mut text = || {
        let length = usize::from(u16::from_be_bytes(read.array()?));
        read.text(length)
    };
    let (place, trouble) = (text()?, text()?);
    let count = u32::from_be_bytes(read.array()?);
    if read.0.len() as u64 != u64::from(count) * PARTITION_BYTES as u64 {
        return Err(Malformed::Count);
    }
    let mut partitions = Vec::with_capacity(read.0.len() / PARTITION_BYTES);
    for _ in 0..count {
        partitions.push(PartitionProgress {
            partition: i32::from_be_bytes(read.array()?),
            log_start: i64::from_be_bytes(read.array()?),
            end: i64::from_be_bytes(read.array()?),
            archived_to: i64::from_be_bytes(read.array()?),
            stuck: read.flag()?,
        });
    }
    read.finish()?;
    Ok(Ok(Ok(Progress {
        place,
        trouble,
        partitions,
    })))
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Flag(other)),
        }
    }

    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed::Length)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| Malformed::Text)?;
        Ok(text.to_owned())
    }

    fn finish(&self) -> Result<(), Malformed> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Malformed::Length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flush(topic: &str) -> Flush {
        Flush {
            begin: true,
            topic: topic.to_owned(),
        }
    }

    fn progress(partitions: i32) -> Progress {
        let one = |partition| PartitionProgress {
            partition,
            log_start: 1,
            end: i64::MAX,
            archived_to: 3,
            stuck: partition % 2 == 1,
        };
        Progress {
            place: "s3://bucket/archive/topic=t-12345678".to_owned(),
            trouble: String::new(),
            partitions: (0..partitions).map(one).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let longest = "x".repeat(NAME_LENGTH_MAX);
        for topic in ["t", &longest] {
            let frame = flush(topic).encode(12).unwrap();
            assert!(frame.len() <= 4 + REQUEST_BYTES_MAX);
            let received = Received::Flush {
                correlation_id: 12,
                flush: flush(topic),
            };
            assert_eq!(decode_request(&frame[4..]), Ok(received));
        }
        assert_eq!(flush("").encode(1), None);
        assert_eq!(flush(&"x".repeat(256)).encode(1), None);
        let all = Unarchived::ALL.map(Err);
        for answer in all.into_iter().chain([Ok(progress(0)), Ok(progress(10_000))]) {
            let frame = encode_answer(12, Ok(answer.clone()));
            assert!(frame.len() <= 4 + ANSWER_BYTES_MAX);
            assert_eq!(decode_answer(&frame[4..], 12), Ok(Ok(answer)));
        }
        let refused = encode_answer(12, Err(ErrorCode::UnsupportedVersion));
        assert_eq!(decode_answer(&refused[4..], 12), Ok(Err(35)));
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let long = Progress {
            trouble: "é".repeat(2_000),
            ..progress(1)
        };
        let frame = encode_answer(1, Ok(Ok(long)));
        let found = decode_answer(&frame[4..], 1).unwrap().unwrap().unwrap();
        assert_eq!(found.trouble, "é".repeat(500));
    }

    #[test]
    fn only_exact_frames_are_taken() {
        let request = flush("topic").encode(12).unwrap()[4..].to_vec();
        for length in 0..request.len() {
            assert_eq!(
                decode_request(&request[..length]),
                Err(Malformed::Length),
                "{length}"
            );
        }
        assert_eq!(
            decode_request(&[&request[..], &[0]].concat()),
            Err(Malformed::Length)
        );
        let patched = |at: usize, byte: u8| {
            let mut request = request.clone();
            request[at] = byte;
            decode_request(&request)
        };
        assert_eq!(patched(9, 1), Err(Malformed::ClientId));
        assert_eq!(patched(10, 2), Err(Malformed::Flag(2)));
        assert_eq!(patched(11, 0), Err(Malformed::Name(0)));
        assert_eq!(patched(11, 255), Err(Malformed::Name(255)));
        assert_eq!(patched(12, 0xff), Err(Malformed::Text));
        assert_eq!(patched(3, 1), Ok(Received::Newer { correlation_id: 12 }));

        let answer = encode_answer(12, Ok(Ok(progress(3))))[4..].to_vec();
        for length in 0..answer.len() {
            assert!(decode_answer(&answer[..length], 12).is_err(), "{length} bytes");
        }
        assert!(decode_answer(&[&answer[..], &[0]].concat(), 12).is_err());
        assert_eq!(decode_answer(&answer, 13), Err(Malformed::Correlation));
        let mut counted = answer.clone();
        let at = answer.len() - 3 * PARTITION_BYTES - 4;
        counted[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode_answer(&counted, 12), Err(Malformed::Count));
        let mut refused = encode_answer(12, Ok(Err(Unarchived::Disabled)))[4..].to_vec();
        refused[6] = 99;
        assert_eq!(decode_answer(&refused, 12), Err(Malformed::Flag(99)));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_answer(&bytes, 0);
            if let Ok(Received::Flush { correlation_id, flush }) = decode_request(&bytes) {
                // What is accepted is what would be written, but for the key, which was looked at before.
                let written = flush.encode(correlation_id).unwrap();
                prop_assert_eq!(&written[6..], &bytes[2..]);
            }
        }
    }
}
