use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    Result as StoreResult, UploadPart,
};

use super::super::s3::refusal::{Refusal, Why, tests::caller};
use super::super::{StoreKind, StoreOptions};
use super::*;

/// How a store is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quirk {
    /// Conditions of creates are ignored.
    CreateOverwrites,
    /// Conditions of updates are ignored.
    UpdateOverwrites,
    /// Creates are checked, and done a moment later.
    CreateNotAtomic,
    /// Updates are checked, and done a moment later.
    UpdateNotAtomic,
    /// If-Match passes on a missing key.
    UpdateCreates,
    /// Refused, and written all the same.
    RefusesAndWrites,
    /// Writes are answered without an ETag.
    NoETag,
    /// A read gives what was there a write ago: nothing.
    Forgets,
    /// Ranges are ignored.
    WholeForRange,
    /// Deletes do nothing.
    KeepsDeleted,
    /// ETags are hashes of the content: no fault.
    ContentETags,
    /// Lists are empty: no fault either.
    EmptyLists,
    /// Every request fails so many times.
    FailsFirst(usize),
    /// Every request fails for a reason that only somebody can cure.
    NoBucket,
    /// Uploads may be begun and not aborted.
    DeniesAborts,
    /// An upload is gone before it is aborted: no fault.
    LosesUploads,
}

#[derive(Debug)]
struct QuirkyStore {
    inner: InMemory,
    quirk: Quirk,
    requests: Mutex<usize>,
}

impl fmt::Display for QuirkyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.quirk)
    }
}

impl QuirkyStore {
    async fn content_e_tag(&self, key: &Path) -> Option<String> {
        let bytes = self.inner.get(key).await.ok()?.bytes().await.ok()?;
        Some(format!("{:x}", crc32c::crc32c(&bytes)))
    }

    fn fail(&self) -> StoreResult<()> {
        let mut requests = self.requests.lock();
        *requests += 1;
        match self.quirk {
            Quirk::FailsFirst(count) if *requests <= count => Err(Error::Generic {
                store: "quirky",
                source: "status code: 503".into(),
            }),
            Quirk::NoBucket => Err(Error::Generic {
                store: "quirky",
                source: Refusal::new(Why::NoBucket, caller(), "NoSuchBucket: gone".into()).into(),
            }),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for QuirkyStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.fail()?;
        let mode = options.mode.clone();
        let overwrite = self
            .inner
            .put_opts(key, payload.clone(), PutMode::Overwrite.into());
        let result = match (self.quirk, &mode) {
            (Quirk::CreateOverwrites, PutMode::Create) => overwrite.await,
            (Quirk::UpdateOverwrites, PutMode::Update(_)) if self.inner.head(key).await.is_ok() => {
                overwrite.await
            }
            (Quirk::CreateNotAtomic, PutMode::Create) => {
                let free = self.inner.head(key).await.is_err();
                tokio::task::yield_now().await;
                if free {
                    overwrite.await
                } else {
                    self.inner.put_opts(key, payload, options).await
                }
            }
            (Quirk::UpdateNotAtomic, PutMode::Update(expected)) => {
                let found = self.inner.head(key).await.ok().and_then(|meta| meta.e_tag);
                tokio::task::yield_now().await;
                if found == expected.e_tag {
                    overwrite.await
                } else {
                    self.inner.put_opts(key, payload, options).await
                }
            }
            (Quirk::UpdateCreates, PutMode::Update(_)) if self.inner.head(key).await.is_err() => {
                overwrite.await
            }
            (Quirk::RefusesAndWrites, _) => {
                let result = self.inner.put_opts(key, payload, options).await;
                if result.is_err() {
                    overwrite.await?;
                }
                result
            }
            (Quirk::ContentETags, PutMode::Update(expected)) => match self.content_e_tag(key).await {
                found if found == expected.e_tag => overwrite.await,
                _ => Err(Error::Precondition {
                    path: key.to_string(),
                    source: "changed".into(),
                }),
            },
            _ => self.inner.put_opts(key, payload, options).await,
        };
        let mut result = result?;
        match self.quirk {
            Quirk::NoETag => result.e_tag = None,
            Quirk::ContentETags => result.e_tag = self.content_e_tag(key).await,
            _ => {}
        }
        Ok(result)
    }

    async fn get_opts(&self, key: &Path, mut options: GetOptions) -> StoreResult<GetResult> {
        self.fail()?;
        match self.quirk {
            Quirk::Forgets => {
                return Err(Error::NotFound {
                    path: key.to_string(),
                    source: "not yet".into(),
                });
            }
            Quirk::WholeForRange => options.range = None,
            _ => {}
        }
        let mut found = self.inner.get_opts(key, options).await?;
        if self.quirk == Quirk::ContentETags {
            found.meta.e_tag = self.content_e_tag(key).await;
        }
        Ok(found)
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        match self.quirk {
            Quirk::KeepsDeleted => keys,
            _ => self.inner.delete_stream(keys),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.quirk {
            Quirk::EmptyLists => futures::stream::empty().boxed(),
            _ => self.inner.list(prefix),
        }
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(key, options).await?;
        let quirk = self.quirk;
        Ok(Box::new(QuirkyUpload { inner, quirk }))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct QuirkyUpload {
    inner: Box<dyn MultipartUpload>,
    quirk: Quirk,
}

#[async_trait]
impl MultipartUpload for QuirkyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        match self.quirk {
            Quirk::DeniesAborts => {
                let why = Why::Denied("s3:AbortMultipartUpload".into());
                Err(Error::Generic {
                    store: "quirky",
                    source: Refusal::new(why, caller(), "AccessDenied: no".into()).into(),
                })
            }
            Quirk::LosesUploads => Err(Error::NotFound {
                path: "upload".into(),
                source: "NoSuchUpload".into(),
            }),
            _ => self.inner.abort().await,
        }
    }
}

async fn probed(quirk: Quirk) -> (Result<ProbeReport, ProbeError>, Vec<Path>) {
    probed_as(quirk, StoreKind::S3).await
}

async fn probed_as(quirk: Quirk, kind: StoreKind) -> (Result<ProbeReport, ProbeError>, Vec<Path>) {
    let quirky = Arc::new(QuirkyStore {
        inner: InMemory::new(),
        quirk,
        requests: Mutex::default(),
    });
    let options = StoreOptions {
        seed: Some(1),
        ..StoreOptions::default()
    };
    let prefix = Path::from("team");
    let display = "s3://quirky/team".to_owned();
    let store = Store::from_parts(quirky.clone(), quirky.clone(), prefix, display, kind, options);
    let result = probe(&store).await;
    let left = quirky
        .inner
        .list(None)
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .unwrap();
    (result, left)
}

#[tokio::test(start_paused = true)]
async fn every_quirk_is_found_and_named() {
    let cases = [
        (
            Quirk::CreateOverwrites,
            "a create over an existing key is refused: it was confirmed",
            "Garage",
        ),
        (
            Quirk::UpdateOverwrites,
            "an update with a stale ETag is refused: it was confirmed",
            "Garage",
        ),
        (
            Quirk::CreateNotAtomic,
            "of many creates of one key, one wins: 8 of 8 concurrent",
            "s3s-fs",
        ),
        (
            Quirk::UpdateNotAtomic,
            "of many updates from one version, one wins: 8 of 8 concurrent",
            "moto",
        ),
        (
            Quirk::UpdateCreates,
            "an update of a missing key is refused: it was confirmed",
            "21526",
        ),
        (
            Quirk::RefusesAndWrites,
            "refused and written all the same",
            "Garage",
        ),
        (Quirk::NoETag, "without an ETag", "such a store cannot be used"),
        (
            Quirk::Forgets,
            "not found after its write was confirmed",
            "such a store",
        ),
        (
            Quirk::WholeForRange,
            "ranges and suffixes can be read",
            "such a store",
        ),
        (Quirk::KeepsDeleted, "it is still there", "such a store"),
    ];
    for (quirk, observed, known) in cases {
        let (result, left) = probed(quirk).await;
        let error = result.expect_err(&format!("{quirk:?}"));
        assert!(matches!(error, ProbeError::Refused { .. }), "{quirk:?}: {error}");
        let line = error.to_string();
        assert!(
            line.starts_with("store 's3://quirky/team' is refused: "),
            "{line}"
        );
        assert!(
            line.contains(observed) && line.contains(known),
            "{quirk:?}: {line}"
        );
        assert!(
            line.contains("use a store with conditional writes") && !line.contains('\n'),
            "{line}"
        );
        assert!(
            left.is_empty() || quirk == Quirk::KeepsDeleted,
            "{quirk:?} left {left:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn harmless_quirks_are_noted() {
    let (result, left) = probed(Quirk::ContentETags).await;
    let words = result.unwrap().to_string();
    assert!(words.contains("note: ETags are content hashes"), "{words}");
    assert!(
        words.starts_with("store s3://quirky/team keeps its conditions:\n  ok    a new key is listed\n"),
        "{words}"
    );
    assert_eq!(left, [Path::ROOT; 0]);
    let words = probed(Quirk::EmptyLists).await.0.unwrap().to_string();
    assert!(words.contains("note: it was not listed at once"), "{words}");
    let words = probed(Quirk::LosesUploads).await.0.unwrap().to_string();
    assert!(
        words.contains("  ok    an upload in parts can be begun and aborted\n"),
        "{words}"
    );
}

#[tokio::test(start_paused = true)]
async fn whether_uploads_may_be_aborted_is_asked_where_it_can_be_denied() {
    let started = Instant::now();
    let (result, left) = probed(Quirk::DeniesAborts).await;
    let line = result.unwrap_err().to_string();
    assert!(
        line.starts_with(
            "store 's3://quirky/team' cannot be used: s3:AbortMultipartUpload is denied: allow it to whom "
        ),
        "{line}"
    );
    assert_eq!(started.elapsed(), Duration::ZERO, "waiting would not help");
    assert_eq!(left, [Path::ROOT; 0]);
    let (result, _) = probed_as(Quirk::DeniesAborts, StoreKind::Memory).await;
    assert!(result.is_ok(), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_not_called_wrong() {
    let (result, _) = probed(Quirk::FailsFirst(60)).await;
    assert!(result.is_ok(), "{result:?}");
    let started = Instant::now();
    let line = probed(Quirk::FailsFirst(100_000))
        .await
        .0
        .unwrap_err()
        .to_string();
    assert!(
        line.starts_with("store 's3://quirky/team' cannot be used now: ")
            && line.ends_with("; it was to be proven that a new key is listed"),
        "{line}"
    );
    assert!(
        line.contains("status code: 503") && !line.contains('\n'),
        "{line}"
    );
    assert!(
        (5..30).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    let started = Instant::now();
    let line = probed(Quirk::NoBucket).await.0.unwrap_err().to_string();
    assert!(
        line.starts_with("store 's3://quirky/team' cannot be used: the bucket 'b' does not exist"),
        "{line}"
    );
    assert!(line.ends_with(" (NoSuchBucket: gone)"), "{line}");
    assert_eq!(started.elapsed(), Duration::ZERO, "waiting would not help");
}
