//! What the fake holds: buckets, objects and unfinished uploads, as plain state with no I/O.
//!
//! Every method is one atomic step; the server calls them under one lock, which makes every key linearizable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};
use tokio::time::Instant;

use super::error::S3Error;

/// Earlier versions that a stale LIST may still show; older ones are forgotten.
const HISTORY_MAX: usize = 8_192;
/// S3 refuses to complete an upload whose parts, but the last, are smaller.
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

/// The moment of a change, on the clock that ages a stale LIST and on the one that people read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    pub(crate) utc: DateTime<Utc>,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment {
            instant: Instant::now(),
            utc: Utc::now(),
        }
    }
}

/// What the fake knows about one object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Empty for a past version, which only a stale LIST shows.
    pub(crate) content: Bytes,
    /// Bytes.
    pub(crate) size: u64,
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) modified: Moment,
}

impl Object {
    fn new(content: Bytes, etag: String, modified: Moment) -> Object {
        Object {
            size: content.len() as u64,
            content,
            etag,
            modified,
        }
    }
}

/// What a write brings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payload {
    pub(crate) content: Bytes,
    /// Hex digest that becomes the ETag; `None` takes a counter.
    pub(crate) md5: Option<String>,
}

/// Condition of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Precondition {
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: <etag>`, without quotes.
    Matches(String),
}

impl Precondition {
    /// S3 answers 412 when the condition does not hold and 404 when `If-Match` meets no object.
    fn check(&self, key: &str, current: Option<&Object>) -> Result<(), S3Error> {
        match (self, current) {
            (Precondition::None, _) | (Precondition::Absent, None) => Ok(()),
            (Precondition::Absent, Some(_)) => Err(S3Error::precondition_failed("If-None-Match")),
            (Precondition::Matches(_), None) => Err(S3Error::no_such_key(key)),
            (Precondition::Matches(etag), Some(object)) if *etag == object.etag => Ok(()),
            (Precondition::Matches(_), Some(_)) => Err(S3Error::precondition_failed("If-Match")),
        }
    }
}

/// How the fake treats the conditions of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// As S3 does: checked and applied in one step.
    Atomic,
    /// Not looked at, as some stores do.
    Ignored,
    /// Checked first and applied a moment later, as other stores do: two writers may both succeed.
    NotAtomic,
}

/// How ETags are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtagKind {
    /// MD5 of the content, as S3 does for single PUTs: identical bytes have identical ETags.
    Md5,
    /// A counter: cheaper for benchmarks, and never repeats.
    Counter,
}

#[derive(Debug)]
struct Past {
    key: String,
    object: Object,
    ended: Instant,
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<u32, Object>,
}

#[derive(Debug, Default)]
struct Bucket {
    objects: BTreeMap<String, Object>,
    past: VecDeque<Past>,
}

/// All buckets of one fake.
#[derive(Debug)]
pub(crate) struct Buckets {
    buckets: BTreeMap<String, Bucket>,
    uploads: BTreeMap<String, Upload>,
    etags: u64,
    bytes: u64,
    bytes_max: u64,
}

/// A LIST request (version 2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListQuery {
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    pub(crate) start_after: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) keys_max: usize,
    /// Keys are percent-encoded in the answer.
    pub(crate) url_encoded: bool,
}

/// One page of a LIST.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Object)>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) next: Option<String>,
}

impl Buckets {
    pub(crate) fn new(bytes_max: u64) -> Buckets {
        Buckets {
            buckets: BTreeMap::new(),
            uploads: BTreeMap::new(),
            etags: 0,
            bytes: 0,
            bytes_max,
        }
    }

    pub(crate) fn create_bucket(&mut self, name: &str) -> Result<(), S3Error> {
        if self.buckets.contains_key(name) {
            return Err(S3Error::bucket_exists());
        }
        self.buckets.insert(name.to_owned(), Bucket::default());
        Ok(())
    }

    pub(crate) fn require_bucket(&self, name: &str) -> Result<(), S3Error> {
        self.bucket(name).map(|_| ())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn object_count(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.objects.len()).sum()
    }

    fn bucket(&self, name: &str) -> Result<&Bucket, S3Error> {
        self.buckets
            .get(name)
            .ok_or_else(|| S3Error::no_such_bucket(name))
    }

    fn next_etag(&mut self) -> String {
        self.etags += 1;
        format!("{:032x}", self.etags)
    }

    /// Stores the payload if `condition` holds and returns the new ETag.
    pub(crate) fn put(
        &mut self,
        bucket: &str,
        key: &str,
        payload: Payload,
        condition: &Precondition,
        now: Moment,
    ) -> Result<String, S3Error> {
        let current = self.bucket(bucket)?.objects.get(key);
        condition.check(key, current)?;
        let freed = current.map_or(0, |object| object.size);
        let bytes = self.bytes - freed + payload.content.len() as u64;
        if bytes > self.bytes_max {
            return Err(S3Error::full(self.bytes_max));
        }
        self.bytes = bytes;
        let Payload { content, md5 } = payload;
        let etag = md5.unwrap_or_else(|| self.next_etag());
        let object = Object::new(content, etag.clone(), now);
        if let Some(bucket) = self.buckets.get_mut(bucket)
            && let Some(old) = bucket.objects.insert(key.to_owned(), object)
        {
            bucket.remember(key, old, now.instant);
        }
        Ok(etag)
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> Result<Object, S3Error> {
        self.bucket(bucket)?
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| S3Error::no_such_key(key))
    }

    /// Checks the condition of a write without writing.
    pub(crate) fn check(&self, bucket: &str, key: &str, condition: &Precondition) -> Result<(), S3Error> {
        condition.check(key, self.bucket(bucket)?.objects.get(key))
    }

    /// Removes the key; removing what is not there succeeds, as in S3, unless a condition names an ETag.
    pub(crate) fn delete(
        &mut self,
        bucket: &str,
        key: &str,
        condition: &Precondition,
        now: Moment,
    ) -> Result<bool, S3Error> {
        condition.check(key, self.bucket(bucket)?.objects.get(key))?;
        let Some(bucket) = self.buckets.get_mut(bucket) else {
            return Ok(false);
        };
        let Some(old) = bucket.objects.remove(key) else {
            return Ok(false);
        };
        self.bytes -= old.size;
        bucket.remember(key, old, now.instant);
        Ok(true)
    }

    /// Keys and sizes, in order.
    pub(crate) fn keys(&self, bucket: &str, prefix: &str) -> Vec<(String, u64)> {
        let Some(bucket) = self.buckets.get(bucket) else {
            return Vec::new();
        };
        let from = bucket
            .objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| (key.clone(), object.size))
            .collect()
    }

    /// One page, as the bucket is now or as it was at `as_of`.
    pub(crate) fn list(
        &self,
        bucket: &str,
        query: &ListQuery,
        as_of: Option<Instant>,
    ) -> Result<Page, S3Error> {
        let bucket = self.bucket(bucket)?;
        match as_of {
            None => page(&bucket.objects, query),
            Some(instant) => page(&bucket.as_of(instant), query),
        }
    }

    pub(crate) fn create_upload(&mut self, bucket: &str, key: &str) -> Result<String, S3Error> {
        self.bucket(bucket)?;
        let id = format!("upload-{}", self.next_etag());
        let upload = Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            parts: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    pub(crate) fn upload_part(
        &mut self,
        bucket: &str,
        key: &str,
        id: &str,
        number: u32,
        payload: Payload,
        now: Moment,
    ) -> Result<String, S3Error> {
        let freed = self
            .upload(bucket, key, id)?
            .parts
            .get(&number)
            .map_or(0, |p| p.size);
        let bytes = self.bytes - freed + payload.content.len() as u64;
        if bytes > self.bytes_max {
            return Err(S3Error::full(self.bytes_max));
        }
        self.bytes = bytes;
        let Payload { content, md5 } = payload;
        let etag = md5.unwrap_or_else(|| self.next_etag());
        if let Some(upload) = self.uploads.get_mut(id) {
            upload
                .parts
                .insert(number, Object::new(content, etag.clone(), now));
        }
        Ok(etag)
    }

    fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<&Upload, S3Error> {
        let upload = self
            .uploads
            .get(id)
            .filter(|upload| upload.bucket == bucket && upload.key == key);
        upload.ok_or_else(S3Error::no_such_upload)
    }

    /// Joins the listed parts into one object. `parts` are part numbers with ETags (unquoted).
    pub(crate) fn complete_upload(
        &mut self,
        bucket: &str,
        key: &str,
        id: &str,
        parts: &[(u32, String)],
        condition: &Precondition,
        now: Moment,
    ) -> Result<String, S3Error> {
        let upload = self.upload(bucket, key, id)?;
        let mut content = BytesMut::new();
        let mut digests = Md5::new();
        let mut previous = 0;
        for (index, (number, etag)) in parts.iter().enumerate() {
            if *number <= previous {
                return Err(S3Error::invalid_part_order());
            }
            previous = *number;
            let part = upload.parts.get(number).filter(|part| part.etag == *etag);
            let part = part.ok_or_else(|| S3Error::invalid_part(*number))?;
            if index + 1 < parts.len() && part.content.len() < PART_BYTES_MIN {
                return Err(S3Error::part_too_small(*number));
            }
            content.extend_from_slice(&part.content);
            digests.update(part.etag.as_bytes());
        }
        condition.check(key, self.bucket(bucket)?.objects.get(key))?;
        let etag = format!("{}-{}", hex(&digests.finalize()), parts.len());
        self.abort_upload(bucket, key, id)?;
        let payload = Payload {
            content: content.freeze(),
            md5: Some(etag),
        };
        self.put(bucket, key, payload, &Precondition::None, now)
    }

    pub(crate) fn abort_upload(&mut self, bucket: &str, key: &str, id: &str) -> Result<(), S3Error> {
        let freed: u64 = self.upload(bucket, key, id)?.parts.values().map(|p| p.size).sum();
        self.uploads.remove(id);
        self.bytes -= freed;
        Ok(())
    }
}

impl Bucket {
    fn remember(&mut self, key: &str, object: Object, ended: Instant) {
        if self.past.len() == HISTORY_MAX {
            self.past.pop_front();
        }
        let object = Object {
            content: Bytes::new(),
            ..object
        };
        self.past.push_back(Past {
            key: key.to_owned(),
            object,
            ended,
        });
    }

    fn as_of(&self, instant: Instant) -> BTreeMap<String, Object> {
        let now = self
            .objects
            .iter()
            .filter(|(_, object)| object.modified.instant <= instant);
        let mut then: BTreeMap<String, Object> = now.map(|(k, o)| (k.clone(), o.clone())).collect();
        let past = self
            .past
            .iter()
            .filter(|p| p.object.modified.instant <= instant && p.ended > instant);
        then.extend(past.map(|p| (p.key.clone(), p.object.clone())));
        then
    }
}

/// Where a page starts.
enum Marker {
    Start,
    AfterKey(String),
    AfterPrefix(String),
}

fn marker(query: &ListQuery) -> Result<Marker, S3Error> {
    let Some(token) = &query.token else {
        return Ok(query.start_after.clone().map_or(Marker::Start, Marker::AfterKey));
    };
    let invalid = || S3Error::invalid_argument("The continuation token provided is incorrect");
    let text = unhex(token).ok_or_else(invalid)?;
    match text.split_at_checked(1) {
        Some(("k", key)) => Ok(Marker::AfterKey(key.to_owned())),
        Some(("p", prefix)) => Ok(Marker::AfterPrefix(prefix.to_owned())),
        _ => Err(invalid()),
    }
}

fn page(objects: &BTreeMap<String, Object>, query: &ListQuery) -> Result<Page, S3Error> {
    let mut page = Page::default();
    let mut at = match marker(query)? {
        Marker::Start => Bound::Included(query.prefix.clone()),
        Marker::AfterKey(key) if key >= query.prefix => Bound::Excluded(key),
        Marker::AfterKey(_) => Bound::Included(query.prefix.clone()),
        Marker::AfterPrefix(prefix) => match after_all(&prefix) {
            Some(next) => Bound::Included(next),
            None => return Ok(page),
        },
    };
    let mut last = None;
    while let Some((key, object)) = objects.range((at.clone(), Bound::Unbounded)).next() {
        if !key.starts_with(&query.prefix) {
            break;
        }
        if page.objects.len() + page.prefixes.len() == query.keys_max {
            page.next = last.map(|marker: String| hex(marker.as_bytes()));
            break;
        }
        let rest = &key[query.prefix.len()..];
        let folded = query
            .delimiter
            .as_deref()
            .and_then(|d| rest.find(d).map(|i| i + d.len()));
        match folded {
            Some(end) => {
                let prefix = key[..query.prefix.len() + end].to_owned();
                last = Some(format!("p{prefix}"));
                let next = after_all(&prefix);
                page.prefixes.push(prefix);
                match next {
                    Some(next) => at = Bound::Included(next),
                    None => break,
                }
            }
            None => {
                last = Some(format!("k{key}"));
                page.objects.push((key.clone(), object.clone()));
                at = Bound::Excluded(key.clone());
            }
        }
    }
    Ok(page)
}

/// The smallest string greater than every string with this prefix.
fn after_all(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // Skips the gap of the surrogates, which are no characters.
        let next = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// The MD5 of `content` in hex, as S3 uses it for ETags.
pub(crate) fn md5_hex(content: &[u8]) -> String {
    hex(&Md5::digest(content))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
    digits.map(char::from).collect()
}

fn unhex(text: &str) -> Option<String> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok())
        .collect();
    String::from_utf8(bytes?).ok()
}
