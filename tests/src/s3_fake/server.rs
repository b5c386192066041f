//! The HTTP side: one request from its head to its answer, latency and faults included.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::body::{self, BodyError, Cut, Reply};
use super::bucket::{Buckets, Conditions, EtagKind, Moment, Object, Payload, Precondition, md5_hex};
use super::counts::Counts;
use super::error::S3Error;
use super::faults::{Fault, Injected, Landing, Rule, decide};
use super::latency::Latency;
use super::request::{ByteRange, Kind, Operation, ReadConditions, Request};
use super::{Latencies, Options, Outage, control, xml};

/// Between the check and the write of a store that is not atomic.
const NOT_ATOMIC_GAP: Duration = Duration::from_millis(5);

/// What happens to requests from now on: faults and latencies, drawn from one seeded generator.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rules: Vec<Rule>,
    pub(crate) latencies: Latencies,
    /// IAM actions that are not allowed.
    pub(crate) denied: BTreeSet<String>,
    /// Access keys whose credentials have expired.
    pub(crate) expired: BTreeSet<String>,
    random: StdRng,
}

/// The plan of one request.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    fault: Option<Fault>,
    latency: Duration,
    /// Part of the latency after which the operation takes effect.
    effect: f64,
}

impl Plan {
    fn draw(&mut self, kind: Kind, key: &str) -> Drawn {
        let fault = decide(&mut self.rules, kind, key, &mut self.random);
        let latency = match kind {
            Kind::Get | Kind::Head => self.latencies.get,
            Kind::Put | Kind::Multipart => self.latencies.put,
            Kind::List => self.latencies.list,
            Kind::Delete => self.latencies.delete,
            Kind::Bucket => Latency::None,
        };
        let effect = if latency == Latency::None {
            0.0
        } else {
            self.random.random()
        };
        let mut latency = latency.sample(&mut self.random);
        if let Some(Fault::Delay(time)) = fault {
            latency += time;
        }
        Drawn {
            fault,
            latency,
            effect,
        }
    }
}

/// Everything that the connections of one fake share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) buckets: Mutex<Buckets>,
    pub(crate) plan: Mutex<Plan>,
    pub(crate) counts: Mutex<Counts>,
    pub(crate) outage: watch::Sender<Option<Outage>>,
    pub(crate) bucket: String,
    etags: EtagKind,
    conditions: Conditions,
    authorization: bool,
    object_bytes_max: u64,
    requests: AtomicU64,
}

impl Shared {
    pub(crate) fn new(options: &Options) -> Shared {
        let mut buckets = Buckets::new(options.bytes_max);
        // A new state has no bucket yet, so this cannot fail.
        let _ = buckets.create_bucket(&options.bucket);
        let random = StdRng::seed_from_u64(options.seed);
        Shared {
            buckets: Mutex::new(buckets),
            plan: Mutex::new(Plan {
                rules: options.faults.clone(),
                latencies: options.latencies,
                denied: BTreeSet::new(),
                expired: BTreeSet::new(),
                random,
            }),
            counts: Mutex::new(Counts::default()),
            outage: watch::Sender::new(None),
            bucket: options.bucket.clone(),
            etags: options.etags,
            conditions: options.conditions,
            authorization: options.require_authorization,
            object_bytes_max: options.object_bytes_max,
            requests: AtomicU64::new(1),
        }
    }

    fn md5(&self, content: &[u8]) -> Option<String> {
        (self.etags == EtagKind::Md5).then(|| md5_hex(content))
    }

    fn error_response(&self, error: &S3Error, resource: &str) -> Response<Reply> {
        let bodiless = error.status == StatusCode::NOT_MODIFIED;
        let id = self.requests.load(Ordering::Relaxed);
        let body = if bodiless {
            String::new()
        } else {
            xml::error(error, resource, id)
        };
        let mut response = respond(
            error.status,
            Reply::whole(Bytes::from(body)),
            &[(header::CONTENT_TYPE, "application/xml")],
        );
        if let Some(region) = error.region {
            let name = HeaderName::from_static("x-amz-bucket-region");
            insert(&mut response, name, region);
        }
        response
    }

    /// Why S3 would not do this for who asks, if it would not.
    fn denial(&self, operation: &Operation) -> Option<S3Error> {
        let plan = self.plan.lock();
        let denied = operation
            .actions()
            .iter()
            .find(|action| plan.denied.contains(**action));
        denied.map(|action| S3Error::not_authorized(action))
    }
}

/// Accepts connections until the runtime ends.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, shared.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Only a hint for latency.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| serve(shared.clone(), request));
    let mut http = hyper::server::conn::http1::Builder::new();
    let served = http
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::trace!(%error, "connection ended");
    }
}

async fn serve(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Response<Reply>, Cut> {
    let started = Instant::now();
    if request.uri().path().starts_with(control::PREFIX) {
        return control::answer(&shared, request).await;
    }
    let outage = *shared.outage.borrow();
    if let Some(outage) = outage {
        shared.counts.lock().outage += 1;
        return suffer(&shared, outage, request).await;
    }
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = understand(&shared, request, started).await?;
    if let Ok(id) = HeaderValue::from_str(&format!("{number:016X}")) {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    Ok(response)
}

/// A request during an outage.
async fn suffer(
    shared: &Shared,
    outage: Outage,
    request: hyper::Request<Incoming>,
) -> Result<Response<Reply>, Cut> {
    match outage {
        Outage::Refuse => Err(Cut),
        Outage::Hang => {
            // What was sent into a dead network stays lost when it comes back.
            let _ = shared
                .outage
                .subscribe()
                .wait_for(|now| *now != Some(Outage::Hang))
                .await;
            Err(Cut)
        }
        Outage::Unavailable => {
            let path = request.uri().path().to_owned();
            body::drain(request.into_body()).await;
            Ok(shared.error_response(&S3Error::slow_down(), &path))
        }
    }
}

async fn understand(
    shared: &Arc<Shared>,
    request: hyper::Request<Incoming>,
    started: Instant,
) -> Result<Response<Reply>, Cut> {
    let (parts, incoming) = request.into_parts();
    let path = parts.uri.path();
    let refuse = |error: &S3Error| {
        shared.counts.lock().rejected += 1;
        tracing::warn!(method = %parts.method, uri = %parts.uri, code = error.code, error = %error.message, "refused");
        shared.error_response(error, path)
    };
    let parsed = match Request::parse(&parts, shared.authorization) {
        Ok(parsed) => parsed,
        Err(error) => {
            body::drain(incoming).await;
            return Ok(refuse(&error));
        }
    };
    let expired = access_key(&parts.headers).is_some_and(|key| shared.plan.lock().expired.contains(key));
    if expired {
        body::drain(incoming).await;
        return Ok(shared.error_response(&S3Error::expired_token(), path));
    }
    let body = if parsed.has_body() {
        match body::read(&parts.headers, incoming, shared.object_bytes_max).await {
            Ok(body) => body,
            Err(BodyError::Cut) => return Err(Cut),
            Err(BodyError::Refused(error)) => return Ok(refuse(&error)),
        }
    } else {
        Bytes::new()
    };
    let needs_digest = parsed.operation == Operation::DeleteMany;
    if needs_digest
        && !["content-md5", "x-amz-sdk-checksum-algorithm"]
            .iter()
            .any(|h| parts.headers.contains_key(*h))
    {
        return Ok(refuse(&S3Error::invalid_request(
            "Missing required header for this request: Content-MD5",
        )));
    }
    run(shared, parsed, body, path, started).await
}

/// The access key in the header of a signature.
fn access_key(headers: &header::HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.split_once("Credential=")?.1.split('/').next()
}

/// Counts a request as in flight until it is dropped.
struct InFlight<'a>(&'a Shared, Kind);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.counts.lock().end(self.1);
    }
}

/// An operation, ready to take effect.
#[derive(Clone, Debug)]
struct Work {
    request: Request,
    payload: Payload,
}

enum Outcome {
    Answer(Result<Response<Reply>, S3Error>),
    Cut,
    /// Never answered; cut after this time if there is one.
    Hang(Option<Duration>),
}

async fn run(
    shared: &Arc<Shared>,
    request: Request,
    body: Bytes,
    path: &str,
    started: Instant,
) -> Result<Response<Reply>, Cut> {
    let kind = request.kind();
    let key = match &request.operation {
        Operation::List(query) => query.prefix.as_str(),
        _ => request.key.as_str(),
    };
    let drawn = shared.plan.lock().draw(kind, key);
    if let Some(fault) = drawn.fault {
        tracing::debug!(kind = kind.name(), key, ?fault, "fault");
    }
    {
        let mut counts = shared.counts.lock();
        counts.begin(kind, body.len() as u64, drawn.fault.is_some());
        counts.needs(request.operation.actions());
    }
    let _in_flight = InFlight(shared, kind);
    let stores = matches!(
        request.operation,
        Operation::Put(_) | Operation::UploadPart { .. }
    );
    let md5 = if stores { shared.md5(&body) } else { None };
    let work = Work {
        request,
        payload: Payload { content: body, md5 },
    };
    if let Some(denial) = shared.denial(&work.request.operation) {
        let response = work
            .refused(&denial)
            .unwrap_or_else(|error| shared.error_response(&error, path));
        shared.counts.lock().answered(kind, response.body().len(), true);
        return Ok(response);
    }
    let work = match shared.conditions {
        Conditions::Atomic => Ok(work),
        Conditions::Ignored => Ok(work.unconditional()),
        Conditions::NotAtomic => work.checked_beforehand(shared).await,
    };
    let work = match work {
        Ok(work) => work,
        Err(error) => return Ok(shared.error_response(&error, path)),
    };
    let outcome = if drawn.fault.is_none() && drawn.latency.is_zero() {
        Outcome::Answer(work.execute(shared, None))
    } else {
        // On a task of its own: a client that goes away does not undo a request that has arrived.
        let task = tokio::spawn(perform(shared.clone(), work, drawn, started));
        task.await.unwrap_or(Outcome::Cut)
    };
    let outage = *shared.outage.borrow();
    let response = match (outcome, outage) {
        // An outage that began meanwhile loses the answer, not the effect.
        (_, Some(Outage::Refuse)) | (Outcome::Cut, _) => return Err(Cut),
        (_, Some(Outage::Hang)) => {
            let _ = shared
                .outage
                .subscribe()
                .wait_for(|now| *now != Some(Outage::Hang))
                .await;
            return Err(Cut);
        }
        (Outcome::Hang(time), _) => {
            match time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
            return Err(Cut);
        }
        (Outcome::Answer(Ok(response)), _) => response,
        // Who may not list learns of no object that it is not there.
        (Outcome::Answer(Err(error)), _)
            if error.code == "NoSuchKey" && shared.plan.lock().denied.contains("s3:ListBucket") =>
        {
            shared.error_response(&S3Error::access_denied("Access Denied"), path)
        }
        (Outcome::Answer(Err(error)), _) => shared.error_response(&error, path),
    };
    let error = response.status().as_u16() >= 400;
    shared.counts.lock().answered(kind, response.body().len(), error);
    Ok(response)
}

async fn perform(shared: Arc<Shared>, work: Work, drawn: Drawn, started: Instant) -> Outcome {
    let effect_at = started + drawn.latency.mul_f64(drawn.effect);
    let answer_at = started + drawn.latency;
    let outcome = match drawn.fault {
        Some(Fault::Answer(injected, landing)) => {
            let answer = work.refused(&injected.error());
            land(&shared, work, landing, effect_at).await;
            Outcome::Answer(answer)
        }
        Some(Fault::Cut(landing)) => {
            land(&shared, work, landing, effect_at).await;
            Outcome::Cut
        }
        Some(Fault::Hang(landing, time)) => {
            land(&shared, work, landing, effect_at).await;
            Outcome::Hang(time)
        }
        fault => {
            sleep_until(effect_at).await;
            Outcome::Answer(work.execute(&shared, fault))
        }
    };
    sleep_until(answer_at).await;
    outcome
}

/// Lets a write whose answer will be a failure take effect when its fault says so.
async fn land(shared: &Arc<Shared>, work: Work, landing: Landing, effect_at: Instant) {
    if !work.request.writes() {
        return;
    }
    match landing {
        Landing::Never => {}
        Landing::Applied => {
            sleep_until(effect_at).await;
            drop(work.execute(shared, None));
        }
        Landing::Late(time) => {
            let shared = shared.clone();
            tokio::spawn(async move {
                sleep(time).await;
                drop(work.execute(&shared, None));
            });
        }
    }
}

impl Injected {
    fn error(self) -> S3Error {
        match self {
            Injected::Internal => S3Error::internal(),
            Injected::SlowDown => S3Error::slow_down(),
            Injected::Conflict => S3Error::conflict(),
            Injected::PreconditionFailed => S3Error::precondition_failed("injected"),
            Injected::AccessDenied => S3Error::access_denied("injected"),
            Injected::ClockSkew => S3Error::clock_skew(),
            Injected::NoBucket => S3Error::no_such_bucket("injected"),
            Injected::Expired => S3Error::expired_token(),
            Injected::UnknownKey => S3Error::invalid_access_key(),
            Injected::BadSignature => S3Error::signature_mismatch(),
            Injected::Redirect => S3Error::permanent_redirect(),
            Injected::WrongRegion => S3Error::wrong_region(),
        }
    }
}

impl Work {
    /// The answer if this error meets it: that to DeleteObjects is 200, with an error for each key, where access is
    /// denied.
    fn refused(&self, error: &S3Error) -> Result<Response<Reply>, S3Error> {
        if self.request.operation == Operation::DeleteMany && error.code == "AccessDenied" {
            let asked = xml::parse_delete(&self.payload.content)?;
            return Ok(xml_response(xml::not_deleted(&asked.keys, error)));
        }
        Err(error.clone())
    }

    /// The same write without its condition.
    fn unconditional(mut self) -> Work {
        if let Operation::Put(condition) = &mut self.request.operation {
            *condition = Precondition::None;
        }
        self
    }

    /// Checks the condition now and lets the write happen later, whatever came between.
    async fn checked_beforehand(self, shared: &Shared) -> Result<Work, S3Error> {
        if let Operation::Put(condition) = &self.request.operation {
            shared
                .buckets
                .lock()
                .check(&self.request.bucket, &self.request.key, condition)?;
            sleep(NOT_ATOMIC_GAP).await;
        }
        Ok(self.unconditional())
    }

    /// Does the operation, in one step under the lock.
    fn execute(&self, shared: &Shared, fault: Option<Fault>) -> Result<Response<Reply>, S3Error> {
        let (bucket, key) = (self.request.bucket.as_str(), self.request.key.as_str());
        let now = Moment::now();
        match &self.request.operation {
            Operation::CreateBucket => {
                shared.buckets.lock().create_bucket(bucket)?;
                Ok(respond(
                    StatusCode::OK,
                    Reply::default(),
                    &[(header::LOCATION, &format!("/{bucket}"))],
                ))
            }
            Operation::HeadBucket => {
                shared.buckets.lock().require_bucket(bucket)?;
                Ok(respond(StatusCode::OK, Reply::default(), &[]))
            }
            Operation::BucketLocation => {
                shared.buckets.lock().require_bucket(bucket)?;
                Ok(xml_response(xml::location()))
            }
            Operation::List(query) => {
                let as_of = match fault {
                    Some(Fault::StaleList(age)) => now.instant.checked_sub(age),
                    _ => None,
                };
                let page = shared.buckets.lock().list(bucket, query, as_of)?;
                Ok(xml_response(xml::list(bucket, query, &page)))
            }
            Operation::Put(condition) => {
                let payload = self.payload.clone();
                let etag = shared.buckets.lock().put(bucket, key, payload, condition, now)?;
                Ok(stored(&etag))
            }
            Operation::Copy(from_bucket, from_key, condition) => {
                let mut buckets = shared.buckets.lock();
                let source = buckets.get(from_bucket, from_key)?;
                let md5 = (shared.etags == EtagKind::Md5).then(|| source.etag.clone());
                let payload = Payload {
                    content: source.content,
                    md5,
                };
                let etag = buckets.put(bucket, key, payload, condition, now)?;
                Ok(xml_response(xml::copied(&etag, now.utc)))
            }
            Operation::Get(range, conditions) => {
                let object = shared.buckets.lock().get(bucket, key)?;
                get(object, *range, conditions, fault)
            }
            Operation::Head(conditions) => {
                let object = shared.buckets.lock().get(bucket, key)?;
                conditions.check(&object.etag)?;
                let length = object.size.to_string();
                let mut response = describe(StatusCode::OK, Reply::default(), &object);
                insert(&mut response, header::CONTENT_LENGTH, &length);
                Ok(response)
            }
            Operation::Delete(condition) => {
                shared.buckets.lock().delete(bucket, key, condition, now)?;
                Ok(respond(StatusCode::NO_CONTENT, Reply::default(), &[]))
            }
            Operation::DeleteMany => {
                let request = xml::parse_delete(&self.payload.content)?;
                for key in &request.keys {
                    shared
                        .buckets
                        .lock()
                        .delete(bucket, key, &Precondition::None, now)?;
                }
                Ok(xml_response(xml::deleted(&request.keys, request.quiet)))
            }
            operation => self.execute_upload(shared, operation, now),
        }
    }

    fn execute_upload(
        &self,
        shared: &Shared,
        operation: &Operation,
        now: Moment,
    ) -> Result<Response<Reply>, S3Error> {
        let (bucket, key) = (self.request.bucket.as_str(), self.request.key.as_str());
        let mut buckets = shared.buckets.lock();
        match operation {
            Operation::CreateUpload => {
                let id = buckets.create_upload(bucket, key)?;
                Ok(xml_response(xml::upload_created(bucket, key, &id)))
            }
            Operation::UploadPart { id, number } => {
                let payload = self.payload.clone();
                Ok(stored(
                    &buckets.upload_part(bucket, key, id, *number, payload, now)?,
                ))
            }
            Operation::CompleteUpload { id, condition } => {
                let parts = xml::parse_parts(&self.payload.content)?;
                let etag = buckets.complete_upload(bucket, key, id, &parts, condition, now)?;
                Ok(xml_response(xml::upload_completed(bucket, key, &etag)))
            }
            Operation::AbortUpload { id } => {
                buckets.abort_upload(bucket, key, id)?;
                Ok(respond(StatusCode::NO_CONTENT, Reply::default(), &[]))
            }
            _ => Err(S3Error::method_not_allowed()),
        }
    }
}

fn get(
    object: Object,
    range: Option<ByteRange>,
    conditions: &ReadConditions,
    fault: Option<Fault>,
) -> Result<Response<Reply>, S3Error> {
    conditions.check(&object.etag)?;
    let (status, span) = match range {
        None => (StatusCode::OK, 0..object.size),
        Some(range) => (StatusCode::PARTIAL_CONTENT, range.resolve(object.size)?),
    };
    let content = object.content.slice(span.start as usize..span.end as usize);
    let length = content.len();
    let reply = match fault {
        Some(Fault::Truncate) => Reply::cut_after(content.slice(..length / 2)),
        Some(Fault::FlipBit) if length > 0 => {
            // The place depends on the bytes only, so that a run can be repeated.
            let at = length / 2;
            let flipped = Bytes::from(vec![content[at] ^ 0x10]);
            Reply::parts(vec![content.slice(..at), flipped, content.slice(at + 1..)])
        }
        _ => Reply::whole(content),
    };
    let mut response = describe(status, reply, &object);
    insert(&mut response, header::CONTENT_LENGTH, &length.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{}", span.start, span.end - 1, object.size);
        insert(&mut response, header::CONTENT_RANGE, &range);
    }
    Ok(response)
}

fn describe(status: StatusCode, reply: Reply, object: &Object) -> Response<Reply> {
    let modified = object
        .modified
        .utc
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    respond(
        status,
        reply,
        &[
            (header::ETAG, &format!("\"{}\"", object.etag)),
            (header::LAST_MODIFIED, &modified),
            (header::ACCEPT_RANGES, "bytes"),
            (header::CONTENT_TYPE, "binary/octet-stream"),
        ],
    )
}

fn stored(etag: &str) -> Response<Reply> {
    respond(
        StatusCode::OK,
        Reply::default(),
        &[(header::ETAG, &format!("\"{etag}\""))],
    )
}

fn xml_response(xml: String) -> Response<Reply> {
    respond(
        StatusCode::OK,
        Reply::whole(Bytes::from(xml)),
        &[(header::CONTENT_TYPE, "application/xml")],
    )
}

pub(crate) fn respond(status: StatusCode, reply: Reply, headers: &[(HeaderName, &str)]) -> Response<Reply> {
    let mut response = Response::new(reply);
    *response.status_mut() = status;
    for (name, value) in headers {
        insert(&mut response, name.clone(), value);
    }
    response
}

fn insert(response: &mut Response<Reply>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
