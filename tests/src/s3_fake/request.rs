//! From HTTP request heads to S3 operations: strict, so that our own mistakes surface as errors.

use std::ops::Range;

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::{Method, Uri};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::bucket::{ListQuery, Precondition};
use super::error::S3Error;

/// S3's limit of a key, in bytes of UTF-8.
const KEY_BYTES_MAX: usize = 1_024;
/// Keys of one LIST page at most; also the default.
const LIST_KEYS_MAX: usize = 1_000;

/// Kind of a request, as faults, latencies and counters tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// PutObject and CopyObject.
    Put,
    /// Create, upload part, complete and abort of a multipart upload.
    Multipart,
    /// ListObjectsV2.
    List,
    /// DeleteObject and DeleteObjects.
    Delete,
    /// Create, head and locate a bucket.
    Bucket,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::Get,
        Kind::Head,
        Kind::Put,
        Kind::Multipart,
        Kind::List,
        Kind::Delete,
        Kind::Bucket,
    ];

    /// Name in rules and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Head => "head",
            Kind::Put => "put",
            Kind::Multipart => "multipart",
            Kind::List => "list",
            Kind::Delete => "delete",
            Kind::Bucket => "bucket",
        }
    }

    /// Price of one request in dollars (S3 Standard, us-east-1).
    pub fn dollars(self) -> f64 {
        match self {
            Kind::Put | Kind::Multipart | Kind::List => 5e-6,
            Kind::Get | Kind::Head | Kind::Bucket => 4e-7,
            Kind::Delete => 0.0,
        }
    }
}

/// `Range` of a GET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// First and last byte, both inclusive.
    Inclusive(u64, u64),
    From(u64),
    /// The last so many bytes.
    Suffix(u64),
}

impl ByteRange {
    fn parse(text: &str) -> Option<ByteRange> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        match (first, last) {
            ("", last) => Some(ByteRange::Suffix(last.parse().ok()?)),
            (first, "") => Some(ByteRange::From(first.parse().ok()?)),
            (first, last) => {
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then_some(ByteRange::Inclusive(first, last))
            }
        }
    }

    /// The bytes of an object of `size` that this range selects.
    pub(crate) fn resolve(self, size: u64) -> Result<Range<u64>, S3Error> {
        let range = match self {
            ByteRange::Inclusive(first, last) => first..size.min(last.saturating_add(1)),
            ByteRange::From(first) => first..size,
            ByteRange::Suffix(count) => size.saturating_sub(count)..size,
        };
        if range.is_empty() {
            Err(S3Error::invalid_range())
        } else {
            Ok(range)
        }
    }
}

/// Conditions of a read, ETags without quotes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadConditions {
    pub(crate) matches: Option<String>,
    pub(crate) none_match: Option<String>,
}

impl ReadConditions {
    pub(crate) fn check(&self, etag: &str) -> Result<(), S3Error> {
        if self
            .matches
            .as_deref()
            .is_some_and(|wanted| wanted != "*" && wanted != etag)
        {
            return Err(S3Error::precondition_failed("If-Match"));
        }
        if self
            .none_match
            .as_deref()
            .is_some_and(|known| known == "*" || known == etag)
        {
            return Err(S3Error::not_modified());
        }
        Ok(())
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    CreateBucket,
    HeadBucket,
    BucketLocation,
    List(ListQuery),
    Put(Precondition),
    /// Source bucket and key.
    Copy(String, String, Precondition),
    Get(Option<ByteRange>, ReadConditions),
    Head(ReadConditions),
    Delete(Precondition),
    DeleteMany,
    CreateUpload,
    UploadPart {
        id: String,
        number: u32,
    },
    CompleteUpload {
        id: String,
        condition: Precondition,
    },
    AbortUpload {
        id: String,
    },
}

impl Operation {
    /// The IAM actions that S3 wants to be allowed for it ("Required permissions" of its API reference).
    pub(crate) fn actions(&self) -> &'static [&'static str] {
        match self {
            Operation::CreateBucket => &["s3:CreateBucket"],
            Operation::HeadBucket | Operation::List(_) => &["s3:ListBucket"],
            Operation::BucketLocation => &["s3:GetBucketLocation"],
            // Whether an object has a certain ETag says something of its content.
            Operation::Put(Precondition::Matches(_))
            | Operation::CompleteUpload {
                condition: Precondition::Matches(_),
                ..
            } => &["s3:PutObject", "s3:GetObject"],
            Operation::Put(_)
            | Operation::CreateUpload
            | Operation::UploadPart { .. }
            | Operation::CompleteUpload { .. } => &["s3:PutObject"],
            Operation::Copy(..) => &["s3:PutObject", "s3:GetObject"],
            Operation::Get(..) | Operation::Head(_) => &["s3:GetObject"],
            Operation::Delete(_) | Operation::DeleteMany => &["s3:DeleteObject"],
            Operation::AbortUpload { .. } => &["s3:AbortMultipartUpload"],
        }
    }
}

/// A request whose head is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) bucket: String,
    /// Empty for operations on the bucket.
    pub(crate) key: String,
    pub(crate) operation: Operation,
}

impl Request {
    pub(crate) fn kind(&self) -> Kind {
        match &self.operation {
            Operation::CreateBucket | Operation::HeadBucket | Operation::BucketLocation => Kind::Bucket,
            Operation::List(_) => Kind::List,
            Operation::Put(_) | Operation::Copy(..) => Kind::Put,
            Operation::Get(..) => Kind::Get,
            Operation::Head(_) => Kind::Head,
            Operation::Delete(_) | Operation::DeleteMany => Kind::Delete,
            Operation::CreateUpload
            | Operation::UploadPart { .. }
            | Operation::CompleteUpload { .. }
            | Operation::AbortUpload { .. } => Kind::Multipart,
        }
    }

    /// Whether the operation may change what is stored.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.kind(), Kind::Put | Kind::Multipart | Kind::Delete)
    }

    /// Whether the request carries a body, whose length must then be declared.
    pub(crate) fn has_body(&self) -> bool {
        matches!(
            self.operation,
            Operation::Put(_)
                | Operation::UploadPart { .. }
                | Operation::CreateUpload
                | Operation::CompleteUpload { .. }
                | Operation::DeleteMany
        )
    }

    /// Reads a request head. `authorization`: the headers of Signature Version 4 must be there (their
    /// signature is not verified).
    pub(crate) fn parse(parts: &Parts, authorization: bool) -> Result<Request, S3Error> {
        let query = Query::parse(&parts.uri);
        if authorization {
            check_authorization(&parts.headers, &query)?;
        }
        let (bucket, key) = split_path(parts.uri.path())?;
        if bucket.is_empty() {
            return Err(S3Error::not_implemented(
                "ListBuckets and virtual-hosted addressing",
            ));
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(S3Error::key_too_long());
        }
        let operation = if key.is_empty() {
            bucket_operation(&parts.method, &query)?
        } else {
            object_operation(&parts.method, &query, &parts.headers)?
        };
        Ok(Request {
            bucket,
            key,
            operation,
        })
    }
}

fn split_path(path: &str) -> Result<(String, String), S3Error> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
    };
    let invalid = |_| S3Error::invalid_request("The path is not UTF-8");
    Ok((decode(bucket).map_err(invalid)?, decode(key).map_err(invalid)?))
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(uri: &Uri) -> Query {
        let pairs = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Query(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Refuses every parameter that is not named here: an ignored one would hide a mistake.
    fn only(&self, names: &[&str]) -> Result<(), S3Error> {
        let known = |name: &str| names.contains(&name) || name == "x-id" || name.starts_with("X-Amz-");
        match self.0.iter().find(|(name, _)| !known(name)) {
            Some((name, _)) => Err(S3Error::not_implemented(&format!("query parameter {name}"))),
            None => Ok(()),
        }
    }
}

fn check_authorization(headers: &HeaderMap, query: &Query) -> Result<(), S3Error> {
    if query.get("X-Amz-Signature").is_some() {
        return Ok(());
    }
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let complete = value.starts_with("AWS4-HMAC-SHA256 ")
        && ["Credential=", "SignedHeaders=", "Signature="]
            .iter()
            .all(|part| value.contains(part));
    if !complete {
        return Err(S3Error::access_denied(
            "The Authorization header is missing or incomplete",
        ));
    }
    for name in ["x-amz-date", "x-amz-content-sha256"] {
        if !headers.contains_key(name) {
            return Err(S3Error::access_denied(&format!("The {name} header is missing")));
        }
    }
    Ok(())
}

fn bucket_operation(method: &Method, query: &Query) -> Result<Operation, S3Error> {
    match *method {
        Method::PUT => query.only(&[]).map(|()| Operation::CreateBucket),
        Method::HEAD => query.only(&[]).map(|()| Operation::HeadBucket),
        Method::POST if query.get("delete").is_some() => {
            query.only(&["delete"]).map(|()| Operation::DeleteMany)
        }
        Method::GET if query.get("location").is_some() => {
            query.only(&["location"]).map(|()| Operation::BucketLocation)
        }
        Method::GET if query.get("list-type") == Some("2") => list_query(query).map(Operation::List),
        Method::GET => Err(S3Error::not_implemented(
            "LIST version 1 and bucket sub-resources",
        )),
        _ => Err(S3Error::method_not_allowed()),
    }
}

fn list_query(query: &Query) -> Result<ListQuery, S3Error> {
    query.only(&[
        "list-type",
        "prefix",
        "delimiter",
        "max-keys",
        "start-after",
        "continuation-token",
        "encoding-type",
        "fetch-owner",
    ])?;
    if query.get("encoding-type").is_some_and(|kind| kind != "url") {
        return Err(S3Error::invalid_argument(
            "Invalid Encoding Method specified in Request",
        ));
    }
    let keys_max = match query.get("max-keys") {
        None => LIST_KEYS_MAX,
        Some(text) => {
            let count: usize = text
                .parse()
                .map_err(|_| S3Error::invalid_argument(format!("max-keys is no number: {text}")))?;
            count.min(LIST_KEYS_MAX)
        }
    };
    let owned = |name: &str| {
        query
            .get(name)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    Ok(ListQuery {
        prefix: query.get("prefix").unwrap_or_default().to_owned(),
        delimiter: owned("delimiter"),
        start_after: owned("start-after"),
        token: owned("continuation-token"),
        keys_max,
        url_encoded: query.get("encoding-type").is_some(),
    })
}

fn object_operation(method: &Method, query: &Query, headers: &HeaderMap) -> Result<Operation, S3Error> {
    match *method {
        Method::PUT => put_operation(query, headers),
        Method::GET => {
            query.only(&[])?;
            let range = match text(headers, &header::RANGE)? {
                None => None,
                Some(text) => {
                    let bad = || S3Error::invalid_argument(format!("This Range is not understood: {text}"));
                    Some(ByteRange::parse(text).ok_or_else(bad)?)
                }
            };
            Ok(Operation::Get(range, read_conditions(headers)?))
        }
        Method::HEAD => {
            query.only(&[])?;
            Ok(Operation::Head(read_conditions(headers)?))
        }
        Method::DELETE => match query.get("uploadId") {
            Some(id) => query
                .only(&["uploadId"])
                .map(|()| Operation::AbortUpload { id: id.to_owned() }),
            None => {
                query.only(&[])?;
                match precondition(headers)? {
                    Precondition::Absent => Err(S3Error::not_implemented("DELETE with If-None-Match")),
                    condition => Ok(Operation::Delete(condition)),
                }
            }
        },
        Method::POST if query.get("uploads").is_some() => {
            query.only(&["uploads"]).map(|()| Operation::CreateUpload)
        }
        Method::POST => match query.get("uploadId") {
            Some(id) => {
                query.only(&["uploadId"])?;
                Ok(Operation::CompleteUpload {
                    id: id.to_owned(),
                    condition: precondition(headers)?,
                })
            }
            None => Err(S3Error::method_not_allowed()),
        },
        _ => Err(S3Error::method_not_allowed()),
    }
}

fn put_operation(query: &Query, headers: &HeaderMap) -> Result<Operation, S3Error> {
    let source = headers.get("x-amz-copy-source");
    if let Some(id) = query.get("uploadId") {
        query.only(&["uploadId", "partNumber"])?;
        if source.is_some() {
            return Err(S3Error::not_implemented("UploadPartCopy"));
        }
        let number = query.get("partNumber").and_then(|text| text.parse().ok());
        let number = number.filter(|number| (1..=10_000).contains(number));
        let bad = || S3Error::invalid_argument("Part number must be between 1 and 10000");
        return Ok(Operation::UploadPart {
            id: id.to_owned(),
            number: number.ok_or_else(bad)?,
        });
    }
    query.only(&[])?;
    let condition = precondition(headers)?;
    match source {
        None => Ok(Operation::Put(condition)),
        Some(source) => {
            let source = source
                .to_str()
                .map_err(|_| S3Error::invalid_argument("bad x-amz-copy-source"))?;
            let (bucket, key) = split_path(source)?;
            Ok(Operation::Copy(bucket, key, condition))
        }
    }
}

/// The condition of a write. Real S3 knows `If-None-Match: *` and `If-Match: <etag>`, one at a time.
fn precondition(headers: &HeaderMap) -> Result<Precondition, S3Error> {
    if headers.contains_key(header::IF_MODIFIED_SINCE) || headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Err(S3Error::not_implemented("a write with a condition on time"));
    }
    match (
        text(headers, &header::IF_NONE_MATCH)?,
        text(headers, &header::IF_MATCH)?,
    ) {
        (None, None) => Ok(Precondition::None),
        (Some("*"), None) => Ok(Precondition::Absent),
        (Some(_), None) => Err(S3Error::not_implemented(
            "a write with If-None-Match other than *",
        )),
        (None, Some("*")) => Err(S3Error::not_implemented("a write with If-Match: *")),
        (None, Some(etag)) => Ok(Precondition::Matches(unquote(etag).to_owned())),
        (Some(_), Some(_)) => Err(S3Error::invalid_request(
            "If-Match and If-None-Match exclude each other",
        )),
    }
}

fn read_conditions(headers: &HeaderMap) -> Result<ReadConditions, S3Error> {
    if headers.contains_key(header::IF_MODIFIED_SINCE) || headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Err(S3Error::not_implemented("a read with a condition on time"));
    }
    let etag = |name| Ok(text(headers, &name)?.map(|etag| unquote(etag).to_owned()));
    Ok(ReadConditions {
        matches: etag(header::IF_MATCH)?,
        none_match: etag(header::IF_NONE_MATCH)?,
    })
}

/// The one value of a header; two of them are a mistake.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, S3Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(S3Error::invalid_request(format!(
            "The header {name} is there twice"
        )));
    }
    value
        .to_str()
        .map(Some)
        .map_err(|_| S3Error::invalid_request(format!("The header {name} is not text")))
}

pub(crate) fn unquote(etag: &str) -> &str {
    etag.trim().trim_matches('"')
}

/// The declared length of a body, which S3 insists on.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<u64, S3Error> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(S3Error::missing_content_length());
    }
    let length = text(headers, &header::CONTENT_LENGTH)?.ok_or_else(S3Error::missing_content_length)?;
    length
        .parse()
        .map_err(|_| S3Error::invalid_request("Content-Length is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Request, S3Error> {
        let mut request = hyper::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Request::parse(&request.body(()).unwrap().into_parts().0, false)
    }

    fn code(result: Result<Request, S3Error>) -> &'static str {
        result.unwrap_err().code
    }

    #[test]
    fn reads_conditions_of_writes() {
        let put = |headers: &[_]| parse("PUT", "/b/k", headers).map(|r| r.operation);
        assert_eq!(put(&[]), Ok(Operation::Put(Precondition::None)));
        assert_eq!(
            put(&[("if-none-match", "*")]),
            Ok(Operation::Put(Precondition::Absent))
        );
        let matches = Operation::Put(Precondition::Matches("abc".into()));
        assert_eq!(put(&[("if-match", "\"abc\"")]), Ok(matches));
        for (headers, expected) in [
            (
                vec![("if-none-match", "*"), ("if-match", "\"abc\"")],
                "InvalidRequest",
            ),
            (
                vec![("if-match", "\"abc\""), ("if-match", "\"def\"")],
                "InvalidRequest",
            ),
            (vec![("if-none-match", "\"abc\"")], "NotImplemented"),
            (vec![("if-match", "*")], "NotImplemented"),
            (vec![("if-unmodified-since", "x")], "NotImplemented"),
        ] {
            assert_eq!(code(parse("PUT", "/b/k", &headers)), expected, "{headers:?}");
        }
    }

    #[test]
    fn refuses_what_it_would_have_to_ignore() {
        assert_eq!(code(parse("GET", "/b/k?versionId=1", &[])), "NotImplemented");
        assert_eq!(
            code(parse("GET", "/b/k", &[("range", "bytes=0-1,3-4")])),
            "InvalidArgument"
        );
        assert_eq!(
            code(parse("GET", "/b/k", &[("range", "bytes=5-4")])),
            "InvalidArgument"
        );
        assert_eq!(code(parse("GET", "/b", &[])), "NotImplemented");
        assert_eq!(code(parse("PATCH", "/b/k", &[])), "MethodNotAllowed");
        assert_eq!(
            code(parse("PUT", &format!("/b/{}", "k".repeat(1025)), &[])),
            "KeyTooLongError"
        );
        assert_eq!(
            code(parse("PUT", "/b/k?uploadId=x&partNumber=0", &[])),
            "InvalidArgument"
        );
    }

    #[test]
    fn decodes_keys_and_queries() {
        let request = parse("GET", "/b/a%20b/%C3%A9%2Fc", &[]).unwrap();
        assert_eq!((request.bucket.as_str(), request.key.as_str()), ("b", "a b/é/c"));
        let list = parse(
            "GET",
            "/b?list-type=2&prefix=wal%2F&delimiter=%2F&max-keys=5000",
            &[],
        )
        .unwrap();
        let Operation::List(query) = list.operation else {
            panic!("not a list")
        };
        assert_eq!(
            (query.prefix.as_str(), query.delimiter.as_deref(), query.keys_max),
            ("wal/", Some("/"), 1000)
        );
    }

    #[test]
    fn resolves_ranges() {
        let range = |text, size| ByteRange::parse(text).unwrap().resolve(size);
        assert_eq!(range("bytes=2-4", 10), Ok(2..5));
        assert_eq!(range("bytes=2-400", 10), Ok(2..10));
        assert_eq!(range("bytes=7-", 10), Ok(7..10));
        assert_eq!(range("bytes=-3", 10), Ok(7..10));
        assert_eq!(range("bytes=-30", 10), Ok(0..10));
        assert_eq!(range("bytes=0-18446744073709551615", 10), Ok(0..10));
        for (text, size) in [
            ("bytes=10-", 10),
            ("bytes=-0", 10),
            ("bytes=0-0", 0),
            ("bytes=-1", 0),
        ] {
            assert_eq!(
                range(text, size).unwrap_err().code,
                "InvalidRange",
                "{text} of {size}"
            );
        }
    }

    #[test]
    fn wants_the_headers_of_a_signature() {
        let signed = |headers: &[(&str, &str)]| {
            let mut request = hyper::Request::builder().uri("/b/k");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            Request::parse(&request.body(()).unwrap().into_parts().0, true)
        };
        assert_eq!(code(signed(&[])), "AccessDenied");
        let value = "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=0";
        assert_eq!(code(signed(&[("authorization", value)])), "AccessDenied");
        let all = [
            ("authorization", value),
            ("x-amz-date", "d"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ];
        assert!(signed(&all).is_ok());
    }
}
