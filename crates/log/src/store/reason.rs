//! Why a request to a store failed, in words: what is wrong, what to do about it where that is known, and whether
//! waiting may help. Decided by the types of the error and of its sources.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::s3::refusal::Refusal;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    /// One line, without the key.
    pub(crate) line: String,
    pub(crate) cure: Cure,
}

/// What makes an error go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cure {
    /// Perhaps time.
    Wait,
    /// Only somebody who changes something.
    Change,
}

impl Reason {
    pub(crate) fn of(error: &Error) -> Reason {
        if let Some(refusal) = Refusal::of(error) {
            return Reason {
                line: refusal.to_string(),
                cure: Cure::Change,
            };
        }
        let text = cause_of(error);
        match known(error) {
            Some((advice, cure)) => Reason {
                line: format!("{advice} ({text})"),
                cure,
            },
            None => Reason {
                line: text,
                cure: Cure::Wait,
            },
        }
    }
}

/// An error, and what lies below it.
pub(super) fn with_sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What to do about an error that is no answer of the store.
fn known(error: &Error) -> Option<(&'static str, Cure)> {
    for inner in with_sources(error) {
        if let Some(http) = inner.downcast_ref::<HttpError>() {
            return unanswered(http);
        }
        if let Some(disk) = inner.downcast_ref::<io::Error>() {
            return on_disk(disk.kind());
        }
    }
    match error {
        Error::PermissionDenied { .. } => Some((
            "a store that is only looked at cannot be changed, nor probed",
            Cure::Change,
        )),
        _ => None,
    }
}

/// A request without an answer. The client's layers have no types for two reasons that matter.
fn unanswered(error: &HttpError) -> Option<(&'static str, Cure)> {
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if text.contains("dns error") {
            let advice = "the endpoint's host name is unknown: check AWS_ENDPOINT_URL and AWS_REGION";
            return Some((advice, Cure::Wait));
        }
        if text.contains("certificate") {
            let advice = "the endpoint's certificate is not trusted by this machine";
            return Some((advice, Cure::Change));
        }
        source = inner.source();
    }
    match error.kind() {
        HttpErrorKind::Decode => None,
        _ => Some((
            "nothing answers there: check AWS_ENDPOINT_URL and the network",
            Cure::Wait,
        )),
    }
}

fn on_disk(kind: io::ErrorKind) -> Option<(&'static str, Cure)> {
    match kind {
        io::ErrorKind::NotFound => Some(("a directory is gone: mount or restore it", Cure::Wait)),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some(("the disk is full: free space", Cure::Wait))
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Some(("the file system is read-only: mount it writable", Cure::Wait))
        }
        io::ErrorKind::PermissionDenied => {
            Some(("this user may not do that: give it write access", Cure::Change))
        }
        _ => None,
    }
}

/// Why a request failed, with what to do about it where that is known.
pub fn reason_of(error: &Error) -> String {
    Reason::of(error).line
}

/// What happened, without the key, which the variants of the error put in front of it.
fn cause_of(error: &Error) -> String {
    match error {
        Error::NotFound { source, .. }
        | Error::AlreadyExists { source, .. }
        | Error::Precondition { source, .. }
        | Error::NotModified { source, .. }
        | Error::PermissionDenied { source, .. }
        | Error::Unauthenticated { source, .. }
        | Error::Generic { source, .. } => one_line(source),
        other => one_line(other),
    }
}

/// An error's text in one line: of the XML of many lines that services answer in, only code and message.
pub(super) fn one_line(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let between = |from: &str, to: &str| Some(text.split_once(from)?.1.split_once(to)?.0);
    let short = match (text.find("<Error>"), between("<Code>", "</Code>")) {
        (Some(at), Some(code)) => {
            let start = text[..at].split("<?xml").next().unwrap_or_default();
            format!(
                "{start} {code}: {}",
                between("<Message>", "</Message>").unwrap_or_default()
            )
        }
        _ => text,
    };
    short.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::s3::refusal::{Why, tests::caller};
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Generic {
            store: "S3",
            source: source.into(),
        }
    }

    #[test]
    fn the_reason_is_what_happened_and_not_where() {
        let what = "creating /data/.alluvium/staging/10: No such file or directory (os error 2)";
        let missing = Error::NotFound {
            path: "wal/1/2".into(),
            source: io::Error::new(io::ErrorKind::NotFound, what).into(),
        };
        assert_eq!(
            reason_of(&missing),
            format!("a directory is gone: mount or restore it ({what})")
        );
        assert_eq!(reason_of(&generic("odd\n  thing")), "odd thing");
        let answer =
            "status 400: <?xml version=\"1.0\"?>\n<Error>\n<Code>Odd</Code><Message>so</Message></Error>";
        assert_eq!(reason_of(&generic(answer)), "status 400: Odd: so");
    }

    #[test]
    fn what_a_type_says_is_believed_however_deep_it_lies() {
        let refusal = || Refusal::new(Why::NoBucket, caller(), "NoSuchBucket: gone".into());
        let line = refusal().to_string();
        let http = HttpError::new(HttpErrorKind::Unknown, refusal());
        for error in [generic(refusal()), generic(http), generic(generic(refusal()))] {
            let (line, cure) = (line.clone(), Cure::Change);
            assert_eq!(Reason::of(&error), Reason { line, cure });
        }
        let cases = [
            (io::ErrorKind::StorageFull, "the disk is full", Cure::Wait),
            (
                io::ErrorKind::PermissionDenied,
                "give it write access",
                Cure::Change,
            ),
            (io::ErrorKind::ReadOnlyFilesystem, "mount it writable", Cure::Wait),
        ];
        for (kind, advice, cure) in cases {
            let reason = Reason::of(&generic(io::Error::new(kind, "NoSuchBucket")));
            assert!(reason.line.contains(advice), "{reason:?}");
            assert_eq!(reason.cure, cure);
        }
    }

    #[test]
    fn requests_without_an_answer_are_told_apart() {
        let reason = |kind, text: &str| Reason::of(&generic(HttpError::new(kind, io::Error::other(text))));
        for (kind, text, advice, cure) in [
            (
                HttpErrorKind::Connect,
                "dns error: no",
                "host name is unknown",
                Cure::Wait,
            ),
            (
                HttpErrorKind::Connect,
                "invalid peer certificate",
                "not trusted",
                Cure::Change,
            ),
            (
                HttpErrorKind::Connect,
                "refused",
                "nothing answers there",
                Cure::Wait,
            ),
            (
                HttpErrorKind::Timeout,
                "time",
                "nothing answers there",
                Cure::Wait,
            ),
            (HttpErrorKind::Decode, "bytes", "bytes", Cure::Wait),
        ] {
            let reason = reason(kind, text);
            assert!(reason.line.contains(advice), "{reason:?}");
            assert_eq!(reason.cure, cure);
        }
        assert!(!reason(HttpErrorKind::Decode, "bytes").line.contains("check"));
    }
}
