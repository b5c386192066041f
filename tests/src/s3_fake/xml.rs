//! The XML bodies of the S3 API.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::escape::escape;
use serde::Deserialize;

use super::bucket::{ListQuery, Page};
use super::error::S3Error;
use super::request::unquote;

const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
const NAMESPACE: &str = r#"xmlns="http://s3.amazonaws.com/doc/2006-03-01/""#;
/// Keys of one DeleteObjects request at most.
const DELETE_KEYS_MAX: usize = 1_000;
/// What `encoding-type=url` leaves as it is.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/')
    .remove(b'~');

pub(crate) fn error(error: &S3Error, resource: &str, request_id: u64) -> String {
    let mut details = String::new();
    for (name, value) in &error.details {
        let _ = write!(details, "<{name}>{}</{name}>", escape(value.as_str()));
    }
    format!(
        "{HEAD}<Error><Code>{}</Code><Message>{}</Message>{details}<Resource>{}</Resource>\
         <RequestId>{request_id:016X}</RequestId></Error>",
        error.code,
        escape(error.message.as_str()),
        escape(resource),
    )
}

pub(crate) fn list(bucket: &str, query: &ListQuery, page: &Page) -> String {
    let name = |key: &str| match query.url_encoded {
        true => utf8_percent_encode(key, URL_ENCODED).to_string(),
        false => escape(key).into_owned(),
    };
    let mut out = String::with_capacity(512 + page.objects.len() * 256);
    let mut tag = |tag: &str, value: &str| {
        let _ = write!(out, "<{tag}>{value}</{tag}>");
    };
    tag("Name", &escape(bucket));
    tag("Prefix", &name(&query.prefix));
    if let Some(delimiter) = &query.delimiter {
        tag("Delimiter", &name(delimiter));
    }
    if query.url_encoded {
        tag("EncodingType", "url");
    }
    if let Some(token) = &query.token {
        tag("ContinuationToken", &escape(token.as_str()));
    }
    if let Some(after) = &query.start_after {
        tag("StartAfter", &name(after));
    }
    if let Some(next) = &page.next {
        tag("NextContinuationToken", next);
    }
    tag("MaxKeys", &query.keys_max.to_string());
    tag(
        "KeyCount",
        &(page.objects.len() + page.prefixes.len()).to_string(),
    );
    tag("IsTruncated", if page.next.is_some() { "true" } else { "false" });
    for (key, object) in &page.objects {
        let _ = write!(
            out,
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>&quot;{}&quot;</ETag>\
             <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            name(key),
            timestamp(object.modified.utc),
            object.etag,
            object.size,
        );
    }
    for prefix in &page.prefixes {
        let _ = write!(
            out,
            "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
            name(prefix)
        );
    }
    format!("{HEAD}<ListBucketResult {NAMESPACE}>{out}</ListBucketResult>")
}

pub(crate) fn deleted(keys: &[String], quiet: bool) -> String {
    let mut out = format!("{HEAD}<DeleteResult {NAMESPACE}>");
    for key in keys.iter().filter(|_| !quiet) {
        let _ = write!(out, "<Deleted><Key>{}</Key></Deleted>", escape(key.as_str()));
    }
    out + "</DeleteResult>"
}

/// DeleteObjects answers 200 however many keys it may not delete.
pub(crate) fn not_deleted(keys: &[String], error: &S3Error) -> String {
    let mut out = format!("{HEAD}<DeleteResult {NAMESPACE}>");
    for key in keys {
        let _ = write!(
            out,
            "<Error><Key>{}</Key><Code>{}</Code><Message>{}</Message></Error>",
            escape(key.as_str()),
            error.code,
            escape(error.message.as_str())
        );
    }
    out + "</DeleteResult>"
}

pub(crate) fn upload_created(bucket: &str, key: &str, id: &str) -> String {
    format!(
        "{HEAD}<InitiateMultipartUploadResult {NAMESPACE}><Bucket>{}</Bucket><Key>{}</Key>\
         <UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
        escape(bucket),
        escape(key),
    )
}

pub(crate) fn upload_completed(bucket: &str, key: &str, etag: &str) -> String {
    format!(
        "{HEAD}<CompleteMultipartUploadResult {NAMESPACE}><Location>/{0}/{1}</Location><Bucket>{0}</Bucket>\
         <Key>{1}</Key><ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>",
        escape(bucket),
        escape(key),
    )
}

pub(crate) fn copied(etag: &str, modified: DateTime<Utc>) -> String {
    format!(
        "{HEAD}<CopyObjectResult {NAMESPACE}><LastModified>{}</LastModified><ETag>&quot;{etag}&quot;</ETag>\
         </CopyObjectResult>",
        timestamp(modified),
    )
}

pub(crate) fn location() -> String {
    format!("{HEAD}<LocationConstraint {NAMESPACE}/>")
}

fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Body of DeleteObjects.
#[derive(Debug)]
pub(crate) struct DeleteRequest {
    pub(crate) keys: Vec<String>,
    pub(crate) quiet: bool,
}

pub(crate) fn parse_delete(body: &[u8]) -> Result<DeleteRequest, S3Error> {
    #[derive(Deserialize)]
    struct Object {
        #[serde(rename = "Key")]
        key: String,
    }
    #[derive(Deserialize)]
    struct Delete {
        #[serde(rename = "Object", default)]
        objects: Vec<Object>,
        #[serde(rename = "Quiet", default)]
        quiet: bool,
    }
    let delete: Delete =
        quick_xml::de::from_reader(body).map_err(|error| S3Error::malformed_xml(error.to_string()))?;
    if delete.objects.is_empty() || delete.objects.len() > DELETE_KEYS_MAX {
        return Err(S3Error::malformed_xml(format!(
            "between 1 and {DELETE_KEYS_MAX} objects are allowed"
        )));
    }
    Ok(DeleteRequest {
        keys: delete.objects.into_iter().map(|object| object.key).collect(),
        quiet: delete.quiet,
    })
}

/// Part numbers and ETags (without quotes) of CompleteMultipartUpload.
pub(crate) fn parse_parts(body: &[u8]) -> Result<Vec<(u32, String)>, S3Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "PartNumber")]
        number: u32,
        #[serde(rename = "ETag")]
        etag: String,
    }
    #[derive(Deserialize)]
    struct Complete {
        #[serde(rename = "Part", default)]
        parts: Vec<Part>,
    }
    let complete: Complete =
        quick_xml::de::from_reader(body).map_err(|error| S3Error::malformed_xml(error.to_string()))?;
    if complete.parts.is_empty() {
        return Err(S3Error::malformed_xml("at least one part is needed"));
    }
    Ok(complete
        .parts
        .into_iter()
        .map(|part| (part.number, unquote(&part.etag).to_owned()))
        .collect())
}
