//! The errors of the S3 API: status, code and XML body.

use hyper::StatusCode;

/// An error as S3 answers it.
///
/// Source: "Error responses" of the Amazon S3 API reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Error {
    /// HTTP status of the answer.
    pub status: StatusCode,
    /// Value of `<Code>`.
    pub code: &'static str,
    /// Value of `<Message>`.
    pub message: String,
    /// Further elements.
    pub details: Vec<(&'static str, String)>,
    /// Value of the header `x-amz-bucket-region`.
    pub region: Option<&'static str>,
}

/// Where the bucket is when it is elsewhere.
const ELSEWHERE: &str = "eu-central-1";
/// How far the clock of a client is behind when it is wrong, in minutes.
const BEHIND_MINUTES: i64 = 20;

impl S3Error {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> S3Error {
        S3Error {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            region: None,
        }
    }

    fn detail(mut self, name: &'static str, value: impl Into<String>) -> S3Error {
        self.details.push((name, value.into()));
        self
    }

    /// Access is denied to somebody who may not do this.
    pub(crate) fn not_authorized(action: &str) -> S3Error {
        S3Error::access_denied(&format!(
            "User: arn:aws:iam::123456789012:user/fake is not authorized to perform: {action} on resource: \
             \"arn:aws:s3:::bucket\" because no identity-based policy allows the {action} action"
        ))
    }

    pub(crate) fn expired_token() -> S3Error {
        let message = "The provided token has expired.";
        S3Error::new(StatusCode::BAD_REQUEST, "ExpiredToken", message)
    }

    pub(crate) fn invalid_access_key() -> S3Error {
        let message = "The AWS Access Key Id you provided does not exist in our records.";
        S3Error::new(StatusCode::FORBIDDEN, "InvalidAccessKeyId", message)
    }

    pub(crate) fn signature_mismatch() -> S3Error {
        let message = "The request signature we calculated does not match the signature you provided.";
        S3Error::new(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message)
    }

    /// The bucket is in another region, and this one knows which.
    pub(crate) fn permanent_redirect() -> S3Error {
        let message =
            "The bucket you are attempting to access must be addressed using the specified endpoint.";
        let error = S3Error::new(StatusCode::MOVED_PERMANENTLY, "PermanentRedirect", message);
        let error = error.detail("Endpoint", format!("s3.{ELSEWHERE}.amazonaws.com"));
        S3Error {
            region: Some(ELSEWHERE),
            ..error
        }
    }

    /// The request was signed for another region.
    pub(crate) fn wrong_region() -> S3Error {
        let message =
            format!("The authorization header is malformed; the region is wrong; expecting '{ELSEWHERE}'");
        let error = S3Error::new(StatusCode::BAD_REQUEST, "AuthorizationHeaderMalformed", message);
        error.detail("Region", ELSEWHERE)
    }

    pub(crate) fn no_such_key(key: &str) -> S3Error {
        S3Error::new(
            StatusCode::NOT_FOUND,
            "NoSuchKey",
            format!("The specified key does not exist: {key}"),
        )
    }

    pub(crate) fn no_such_bucket(bucket: &str) -> S3Error {
        let message = format!("The specified bucket does not exist: {bucket}");
        S3Error::new(StatusCode::NOT_FOUND, "NoSuchBucket", message)
    }

    pub(crate) fn no_such_upload() -> S3Error {
        S3Error::new(
            StatusCode::NOT_FOUND,
            "NoSuchUpload",
            "The specified multipart upload does not exist",
        )
    }

    pub(crate) fn precondition_failed(condition: &str) -> S3Error {
        let message = format!("At least one of the preconditions did not hold: {condition}");
        S3Error::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message)
    }

    pub(crate) fn conflict() -> S3Error {
        S3Error::new(
            StatusCode::CONFLICT,
            "ConditionalRequestConflict",
            "A conflicting conditional operation is in progress against this resource",
        )
    }

    pub(crate) fn slow_down() -> S3Error {
        S3Error::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "SlowDown",
            "Please reduce your request rate",
        )
    }

    pub(crate) fn internal() -> S3Error {
        let message = "We encountered an internal error. Please try again";
        S3Error::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(crate) fn access_denied(message: &str) -> S3Error {
        S3Error::new(StatusCode::FORBIDDEN, "AccessDenied", message)
    }

    pub(crate) fn clock_skew() -> S3Error {
        let message = "The difference between the request time and the current time is too large.";
        let now = chrono::Utc::now();
        let server = now + chrono::TimeDelta::minutes(BEHIND_MINUTES);
        S3Error::new(StatusCode::FORBIDDEN, "RequestTimeTooSkewed", message)
            .detail("RequestTime", now.format("%Y%m%dT%H%M%SZ").to_string())
            .detail("ServerTime", server.format("%Y-%m-%dT%H:%M:%SZ").to_string())
            .detail("MaxAllowedSkewMilliseconds", "900000")
    }

    pub(crate) fn invalid_argument(message: impl Into<String>) -> S3Error {
        S3Error::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }

    pub(crate) fn invalid_request(message: impl Into<String>) -> S3Error {
        S3Error::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }

    pub(crate) fn malformed_xml(message: impl Into<String>) -> S3Error {
        S3Error::new(StatusCode::BAD_REQUEST, "MalformedXML", message)
    }

    pub(crate) fn bad_digest() -> S3Error {
        let message = "The Content-MD5 you specified did not match what was received";
        S3Error::new(StatusCode::BAD_REQUEST, "BadDigest", message)
    }

    pub(crate) fn invalid_part(number: u32) -> S3Error {
        let message = format!("Part {number} could not be found, or its ETag does not match");
        S3Error::new(StatusCode::BAD_REQUEST, "InvalidPart", message)
    }

    pub(crate) fn invalid_part_order() -> S3Error {
        S3Error::new(
            StatusCode::BAD_REQUEST,
            "InvalidPartOrder",
            "Parts must be listed in ascending order",
        )
    }

    pub(crate) fn part_too_small(number: u32) -> S3Error {
        let message = format!("Part {number} is smaller than the minimum allowed size of 5 MiB");
        S3Error::new(StatusCode::BAD_REQUEST, "EntityTooSmall", message)
    }

    pub(crate) fn missing_content_length() -> S3Error {
        let message = "You must provide the Content-Length HTTP header";
        S3Error::new(StatusCode::LENGTH_REQUIRED, "MissingContentLength", message)
    }

    pub(crate) fn too_large(limit: u64) -> S3Error {
        let message = format!("The upload exceeds the maximum of {limit} bytes");
        S3Error::new(StatusCode::BAD_REQUEST, "EntityTooLarge", message)
    }

    pub(crate) fn key_too_long() -> S3Error {
        S3Error::new(
            StatusCode::BAD_REQUEST,
            "KeyTooLongError",
            "Your key is longer than 1024 bytes",
        )
    }

    pub(crate) fn not_implemented(what: &str) -> S3Error {
        S3Error::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            format!("Not implemented here: {what}"),
        )
    }

    pub(crate) fn method_not_allowed() -> S3Error {
        let message = "The specified method is not allowed against this resource";
        S3Error::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(crate) fn invalid_range() -> S3Error {
        let message = "The requested range is not satisfiable";
        S3Error::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", message)
    }

    pub(crate) fn full(limit: u64) -> S3Error {
        let message = format!("The fake holds its maximum of {limit} bytes");
        S3Error::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", message)
    }

    pub(crate) fn bucket_exists() -> S3Error {
        let message = "You already own the bucket";
        S3Error::new(StatusCode::CONFLICT, "BucketAlreadyOwnedByYou", message)
    }

    /// The 304 of a conditional GET: it has no body and no code on the wire.
    pub(crate) fn not_modified() -> S3Error {
        S3Error::new(StatusCode::NOT_MODIFIED, "NotModified", "")
    }
}
