//! Counts what is asked of a store, in [`StoreMetrics`].
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `alluvium_store_requests_total` | `op` | requests as the engine makes them (retries inside the bulk client and list pages are not seen) |
//! | `alluvium_store_errors_total` | `op`, `class` | answers other than success; `cancelled` is a request that nobody waited for to the end, as after a time-out |
//! | `alluvium_store_request_duration_seconds` | `op` | time to the answer, without a GET's body |
//! | `alluvium_store_sent_bytes_total` | | payload of writes |
//! | `alluvium_store_received_bytes_total` | | payload of reads |

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::reason::with_sources;
use super::s3::refusal::{Refusal, Why};

/// Upper bounds of the latency histograms in seconds: from a page-cache read to a hung request.
const LATENCY_BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10.0, 30.0,
];

type Label = (&'static str, &'static str);

/// The counters of one store. Clones share them.
#[derive(Clone)]
pub struct StoreMetrics {
    requests: Family<[Label; 1], Counter>,
    errors: Family<[Label; 2], Counter>,
    latency: Family<[Label; 1], Histogram, fn() -> Histogram>,
    sent: Counter,
    received: Counter,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        StoreMetrics {
            requests: Family::default(),
            errors: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            sent: Counter::default(),
            received: Counter::default(),
        }
    }
}

impl fmt::Debug for StoreMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreMetrics").finish_non_exhaustive()
    }
}

impl StoreMetrics {
    /// Registers the metrics under their full names. The requests that a broker makes are there from the start,
    /// at 0; errors, of which there are many kinds, appear with the first of each.
    pub fn register(&self, registry: &mut Registry) {
        for op in ["get", "get_range", "put_create", "put_update"] {
            let _ = self.requests.get_or_create(&[("op", op)]);
            let _ = self.latency.get_or_create(&[("op", op)]);
        }
        registry.register(
            "alluvium_store_requests",
            "Requests to the store",
            self.requests.clone(),
        );
        registry.register(
            "alluvium_store_errors",
            "Requests to the store that were not answered with success",
            self.errors.clone(),
        );
        registry.register_with_unit(
            "alluvium_store_request_duration",
            "Time to the store's answer, without the body of a GET",
            Unit::Seconds,
            self.latency.clone(),
        );
        registry.register_with_unit(
            "alluvium_store_sent",
            "Payload of writes to the store",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register_with_unit(
            "alluvium_store_received",
            "Payload of reads from the store",
            Unit::Bytes,
            self.received.clone(),
        );
    }

    /// Requests of a kind so far: `get`, `get_range`, `head`, `put_create`, `put_update`, `put_overwrite`,
    /// `put_multipart`, `put_part`, `list`, `delete`, `copy`.
    pub fn requests(&self, op: &'static str) -> u64 {
        self.requests.get_or_create(&[("op", op)]).get()
    }

    fn start(&self, op: &'static str) -> Running {
        self.requests.get_or_create(&[("op", op)]).inc();
        Running {
            metrics: self.clone(),
            op,
            started: Instant::now(),
            answered: false,
        }
    }

    fn failed(&self, op: &'static str, class: &'static str) {
        self.errors.get_or_create(&[("op", op), ("class", class)]).inc();
    }
}

/// A request under way; counted as cancelled when dropped before its answer.
struct Running {
    metrics: StoreMetrics,
    op: &'static str,
    started: Instant,
    answered: bool,
}

impl Running {
    fn answered<T>(mut self, answer: Result<T>) -> Result<T> {
        self.finish();
        answer.inspect_err(|error| self.metrics.failed(self.op, class(error)))
    }

    fn finish(&mut self) {
        self.answered = true;
        let latency = self.metrics.latency.get_or_create(&[("op", self.op)]);
        latency.observe(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.failed(self.op, "cancelled");
        }
    }
}

/// The kind of an error, as a label.
fn class(error: &Error) -> &'static str {
    match error {
        Error::NotFound { .. } => return "not_found",
        Error::AlreadyExists { .. } => return "already_exists",
        Error::Precondition { .. } => return "precondition",
        Error::NotModified { .. } => return "not_modified",
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => return "denied",
        Error::NotSupported { .. } | Error::NotImplemented { .. } => return "unsupported",
        _ => {}
    }
    match Refusal::of(error).map(|refusal| &refusal.why) {
        Some(Why::NotImplemented) => return "unsupported",
        Some(_) => return "denied",
        None => {}
    }
    let http = with_sources(error).find_map(|inner| inner.downcast_ref::<HttpError>());
    if let Some(http) = http {
        return match http.kind() {
            HttpErrorKind::Connect => "connect",
            HttpErrorKind::Timeout => "timeout",
            _ => "connection",
        };
    }
    // The status is in the text only.
    let text = error.to_string();
    let status = text.split_once("status code: ").map(|(_, rest)| rest.as_bytes());
    match status {
        _ if text.contains("SlowDown") => "throttled",
        Some([b'5', b'0', b'3', ..] | [b'4', b'2', b'9', ..]) => "throttled",
        Some([b'5', ..]) => "server",
        Some([b'4', ..]) => "client",
        _ => "other",
    }
}

/// Counts every request to the store inside.
#[derive(Debug)]
pub(crate) struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    metrics: StoreMetrics,
}

impl CountingStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, metrics: StoreMetrics) -> CountingStore {
        CountingStore { inner, metrics }
    }

    /// Counts a listing from its start to its end.
    fn count_listing(
        &self,
        found: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (metrics, mut running) = (self.metrics.clone(), self.metrics.start("list"));
        let end = futures::stream::poll_fn(move |_| {
            running.finish();
            std::task::Poll::Ready(None)
        });
        let counted = found.inspect(move |item| {
            if let Err(error) = item {
                metrics.failed("list", class(error));
            }
        });
        counted.chain(end).boxed()
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let running = self.metrics.start(match options.mode {
            PutMode::Create => "put_create",
            PutMode::Update(_) => "put_update",
            PutMode::Overwrite => "put_overwrite",
        });
        self.metrics.sent.inc_by(payload.content_length() as u64);
        running.answered(self.inner.put_opts(key, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let running = self.metrics.start("put_multipart");
        let inner = running.answered(self.inner.put_multipart_opts(key, options).await)?;
        Ok(Box::new(CountingUpload {
            inner,
            metrics: self.metrics.clone(),
        }))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let running = self.metrics.start(match (options.head, &options.range) {
            (true, _) => "head",
            (false, Some(_)) => "get_range",
            (false, None) => "get",
        });
        let mut result = running.answered(self.inner.get_opts(key, options).await)?;
        let received = self.metrics.received.clone();
        let GetResultPayload::Stream(body) = result.payload;
        let counted = body.inspect(move |piece| {
            if let Ok(piece) = piece {
                received.inc_by(piece.len() as u64);
            }
        });
        result.payload = GetResultPayload::Stream(counted.boxed());
        Ok(result)
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let metrics = self.metrics.clone();
        let counted = self.inner.delete_stream(keys).inspect(move |deleted| {
            metrics.requests.get_or_create(&[("op", "delete")]).inc();
            if let Err(error) = deleted {
                metrics.failed("delete", class(error));
            }
        });
        counted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count_listing(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count_listing(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let running = self.metrics.start("list");
        running.answered(self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let running = self.metrics.start("copy");
        running.answered(self.inner.copy_opts(from, to, options).await)
    }
}

#[derive(Debug)]
struct CountingUpload {
    inner: Box<dyn MultipartUpload>,
    metrics: StoreMetrics,
}

#[async_trait]
impl MultipartUpload for CountingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let running = self.metrics.start("put_part");
        self.metrics.sent.inc_by(data.content_length() as u64);
        let part = self.inner.put_part(data);
        Box::pin(async move { running.answered(part.await) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let running = self.metrics.start("put_multipart");
        running.answered(self.inner.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        let running = self.metrics.start("delete");
        running.answered(self.inner.abort().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreOptions};
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn requests_bytes_and_errors_are_counted_under_their_documented_names() {
        let metrics = StoreMetrics::default();
        let options = StoreOptions {
            metrics: Some(metrics.clone()),
            ..StoreOptions::default()
        };
        let store = Store::open("memory://", options).await.unwrap();
        let key = store.key("a");
        for _ in 0..2 {
            let _ = store
                .conditional
                .put_opts(&key, "12345".into(), PutMode::Create.into())
                .await;
        }
        store.bulk.get(&key).await.unwrap().bytes().await.unwrap();
        store.bulk.get_range(&key, 1..3).await.unwrap();
        store.bulk.head(&key).await.unwrap();
        store.bulk.head(&store.key("missing")).await.unwrap_err();
        assert_eq!(
            store.bulk.list(None).try_collect::<Vec<_>>().await.unwrap().len(),
            1
        );
        store.bulk.delete(&key).await.unwrap();
        drop(store.bulk.list(None));
        assert_eq!([metrics.requests("put_create"), metrics.requests("list")], [2, 2]);

        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"alluvium_store_requests_total{op="put_create"} 2"#,
            r#"alluvium_store_requests_total{op="get"} 1"#,
            r#"alluvium_store_requests_total{op="get_range"} 1"#,
            r#"alluvium_store_requests_total{op="head"} 2"#,
            r#"alluvium_store_requests_total{op="delete"} 1"#,
            r#"alluvium_store_errors_total{op="put_create",class="already_exists"} 1"#,
            r#"alluvium_store_errors_total{op="head",class="not_found"} 1"#,
            r#"alluvium_store_errors_total{op="list",class="cancelled"} 1"#,
            r#"alluvium_store_request_duration_seconds_count{op="put_create"} 2"#,
            "alluvium_store_sent_bytes_total 10",
            "alluvium_store_received_bytes_total 7",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
