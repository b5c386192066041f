//! A bucket in memory, and a hand in it: what one broker asks of it can be held back, or be preceded by something that
//! others do, at the worst moment.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::keys::{InStream, parse_in_stream};
use crate::store::{Store, StoreKind, StoreOptions};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    /// A PUT is done, and who sent it does not know yet.
    Answer,
}

/// Which GET is preceded by something, and by what.
type Before = (fn(InStream) -> bool, Box<dyn FnOnce() + Send>);
/// Whether something is meant by its key.
type Meant = Box<dyn Fn(&str) -> bool + Send>;
/// Which requests wait.
type Held = Arc<dyn Fn(Verb, &str) -> bool + Send + Sync>;

/// How a GET of a key fails, if it does.
type Fails = Box<dyn FnMut(&str) -> Option<object_store::Error> + Send>;

/// The hand in one broker's requests.
#[derive(Default)]
pub(crate) struct Hand {
    before: Mutex<Option<Before>>,
    unreadable: Mutex<Option<Meant>>,
    held: watch::Sender<Option<Held>>,
    fails: Mutex<Option<Fails>>,
    waiting: AtomicUsize,
}

impl Hand {
    /// Lets something happen just before the next GET of such a thing in a stream.
    pub(crate) fn before_get(&self, of: fn(InStream) -> bool, happens: impl FnOnce() + Send + 'static) {
        *self.before.lock() = Some((of, Box::new(happens)));
    }

    /// Whether that has happened.
    pub(crate) fn happened(&self) -> bool {
        self.before.lock().is_none()
    }

    /// From now on reads of such keys fail, though nothing is missing.
    pub(crate) fn fail_reads(&self, which: impl Fn(&str) -> bool + Send + 'static) {
        *self.unreadable.lock() = Some(Box::new(which));
    }

    /// From now on such requests wait before anything is done, and such answers before they are heard.
    pub(crate) fn hold(&self, which: impl Fn(Verb, &str) -> bool + Send + Sync + 'static) {
        self.held.send_replace(Some(Arc::new(which)));
    }

    /// Nothing is held back any more.
    pub(crate) fn let_go(&self) {
        self.held.send_replace(None);
    }

    /// From now on such GETs fail.
    pub(crate) fn fail_get(&self, how: impl FnMut(&str) -> Option<object_store::Error> + Send + 'static) {
        *self.fails.lock() = Some(Box::new(how));
    }

    /// Resolves once something waits.
    pub(crate) async fn holds(&self) {
        while self.waiting.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn pass(&self, verb: Verb, key: &Path) {
        /// Counts also a request whose sender gives it up.
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let free = |held: &Option<Held>| held.as_ref().is_none_or(|held| !held(verb, key.as_ref()));
        let mut held = self.held.subscribe();
        held.wait_for(free).await.unwrap();
    }
}

/// One broker's way to a bucket.
struct Meddled {
    inner: Arc<InMemory>,
    hand: Arc<Hand>,
}

/// A broker's way to this bucket, and the hand in it.
pub(crate) fn meddled(bucket: &Arc<InMemory>, kind: StoreKind) -> (Store, Arc<Hand>) {
    let hand = Arc::<Hand>::default();
    let client: Arc<dyn ObjectStore> = Arc::new(Meddled {
        inner: bucket.clone(),
        hand: hand.clone(),
    });
    let store = Store::from_parts(
        client.clone(),
        client,
        Path::default(),
        "meddled".into(),
        kind,
        StoreOptions::default(),
    );
    (store, hand)
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("meddled")
    }
}

impl fmt::Display for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("meddled")
    }
}

#[async_trait]
impl ObjectStore for Meddled {
    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.hand.pass(Verb::Get, key).await;
        if self
            .hand
            .unreadable
            .lock()
            .as_ref()
            .is_some_and(|meant| meant(key.as_ref()))
        {
            return Err(object_store::Error::Generic {
                store: "meddled",
                source: "a bad sector".into(),
            });
        }
        if let Some((_, what)) = parse_in_stream(key.as_ref()) {
            let meant = self.hand.before.lock().take_if(|(meant, _)| meant(what));
            if let Some((_, happens)) = meant {
                happens();
            }
        }
        let failure = self.hand.fails.lock().as_mut().and_then(|how| how(key.as_ref()));
        if let Some(error) = failure {
            return Err(error);
        }
        self.inner.get_opts(key, options).await
    }

    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.hand.pass(Verb::Put, key).await;
        let answer = self.inner.put_opts(key, payload, options).await;
        self.hand.pass(Verb::Answer, key).await;
        answer
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
