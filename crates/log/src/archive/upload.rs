//! Brings a large object to the store while it is being made: in parts, or in one request if it stays small.
//!
//! The object is there once [`Upload::finish`] has returned, and not before. An upload that is dropped earlier is
//! aborted, as far as the store can be reached; a bucket should have a rule that ends uploads nobody finished.

use std::collections::VecDeque;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, Result};
use tokio::task::JoinSet;

use crate::store::reason::{Cure, Reason};

/// Bytes of a part: stores want at least 5 MiB, and some that all but the last are of one size.
/// Each is paid for: with values that compress, a file has about 70 MB by default, which are three parts and two requests
/// besides; a smaller one is a single request.
pub(crate) const PART_BYTES: usize = 24 << 20;
/// Parts under way at once; they and one more are in memory.
const PARTS_AT_ONCE: usize = 1;
/// How long an abort is tried that nobody waits for.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);
/// What only somebody can change is the same for every upload, so it is told once in the life of a process.
static TOLD: Once = Once::new();

/// See the module's documentation.
pub(crate) struct Upload {
    store: Arc<dyn ObjectStore>,
    key: Path,
    /// What does not fill a part yet.
    waiting: VecDeque<Bytes>,
    waiting_len: usize,
    begun: Option<Begun>,
    parts: JoinSet<Result<()>>,
    len: u64,
}

/// An upload in parts, aborted when it is dropped.
struct Begun(Option<Box<dyn MultipartUpload>>);

impl Drop for Begun {
    fn drop(&mut self) {
        // Without a runtime the process is ending.
        let (Some(upload), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            if let Some(why) = abort(upload).await {
                TOLD.call_once(|| {
                    tracing::warn!(
                        %why, "an upload that was given up could not be aborted; it is invisible, and costs until a rule \
                         of the bucket removes it"
                    );
                });
            }
        });
    }
}

/// Why an upload cannot be aborted, if that is for good: one that failed in passing is left to a rule of the bucket.
async fn abort(mut upload: Box<dyn MultipartUpload>) -> Option<String> {
    let aborted = tokio::time::timeout(ABORT_PATIENCE, upload.abort()).await;
    let why = Reason::of(&aborted.ok()?.err()?);
    (why.cure == Cure::Change).then_some(why.line)
}

impl Upload {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, key: Path) -> Upload {
        Upload {
            store,
            key,
            waiting: VecDeque::new(),
            waiting_len: 0,
            begun: None,
            parts: JoinSet::new(),
            len: 0,
        }
    }

    /// Adds the next bytes; waits while enough parts are under way.
    pub(crate) async fn add(&mut self, bytes: Bytes) -> Result<()> {
        self.len += bytes.len() as u64;
        self.waiting_len += bytes.len();
        self.waiting.push_back(bytes);
        // One byte stays, so that the last part is never empty.
        while self.waiting_len > PART_BYTES {
            self.send(PART_BYTES).await?;
        }
        Ok(())
    }

    /// Sends what is left and makes the object visible. Returns its size.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        if self.begun.is_none() {
            let payload = self.cut(self.waiting_len);
            self.store.put(&self.key, payload).await?;
            return Ok(self.len);
        }
        self.send(self.waiting_len).await?;
        while let Some(part) = self.parts.join_next().await {
            landed(part)?;
        }
        let Some(mut upload) = self.begun.as_mut().and_then(|b| b.0.take()) else {
            return Ok(self.len);
        };
        let completed = upload.complete().await;
        if completed.is_err() {
            // Whatever became of it: the key is given up.
            drop(Begun(Some(upload)));
        }
        completed.map(|_| self.len)
    }

    async fn send(&mut self, len: usize) -> Result<()> {
        while self.parts.len() >= PARTS_AT_ONCE {
            if let Some(part) = self.parts.join_next().await {
                landed(part)?;
            }
        }
        let payload = self.cut(len);
        let begun = match &mut self.begun {
            Some(begun) => begun,
            none => none.insert(Begun(Some(self.store.put_multipart(&self.key).await?))),
        };
        if let Some(upload) = &mut begun.0 {
            self.parts.spawn(upload.put_part(payload));
        }
        Ok(())
    }

    /// The first `len` of the waiting bytes.
    fn cut(&mut self, len: usize) -> PutPayload {
        let (mut pieces, mut left) = (vec![], len);
        while left > 0 {
            let Some(mut first) = self.waiting.pop_front() else {
                break;
            };
            if first.len() > left {
                let rest = first.split_off(left);
                self.waiting.push_front(rest);
            }
            left -= first.len();
            pieces.push(first);
        }
        self.waiting_len -= len - left;
        pieces.into_iter().collect()
    }
}

fn landed(part: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    part.unwrap_or_else(|e| {
        Err(object_store::Error::Generic {
            store: "upload",
            source: Box::new(e),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use async_trait::async_trait;
    use object_store::memory::InMemory;
    use object_store::{Error, PutResult, UploadPart};

    use super::*;

    async fn uploaded(pieces: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let key = Path::from("a/b");
        let mut upload = Upload::new(store.clone(), key.clone());
        let mut all = vec![];
        for (i, len) in pieces.iter().enumerate() {
            let piece: Vec<u8> = (0..*len).map(|n| (n + i) as u8).collect();
            all.extend_from_slice(&piece);
            upload.add(piece.into()).await.unwrap();
            assert!(store.head(&key).await.is_err(), "not before it is finished");
        }
        assert_eq!(upload.finish().await.unwrap(), all.len() as u64);
        let got = store.get(&key).await.unwrap().bytes().await.unwrap();
        (got.to_vec(), all)
    }

    #[tokio::test]
    async fn what_is_added_is_there_in_order_however_it_is_cut() {
        for pieces in [
            &[][..],
            &[7],
            &[PART_BYTES],
            &[PART_BYTES + 1],
            &[3 * PART_BYTES],
            &[100, PART_BYTES - 50, 0, 2 * PART_BYTES + 9, 1],
        ] {
            let (got, all) = uploaded(pieces).await;
            assert!(got == all, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_leaves_nothing_to_see() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let key = Path::from("a/b");
        let mut upload = Upload::new(store.clone(), key.clone());
        upload.add(vec![1; 3 * PART_BYTES].into()).await.unwrap();
        drop(upload);
        tokio::task::yield_now().await;
        assert!(store.head(&key).await.is_err());
    }

    /// An upload whose abort fails, or hangs.
    #[derive(Debug)]
    struct Unaborted(Option<Error>);

    #[async_trait]
    impl MultipartUpload for Unaborted {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Ok(()) })
        }

        async fn complete(&mut self) -> Result<PutResult> {
            Err(Error::NotImplemented {
                operation: "complete".into(),
                implementer: "test".into(),
            })
        }

        async fn abort(&mut self) -> Result<()> {
            match self.0.take() {
                Some(error) => Err(error),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_waiting_does_not_cure_is_worth_a_word() {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            let error = Error::Generic {
                store: "test",
                source,
            };
            abort(Box::new(Unaborted(Some(error))))
        };
        let denied = io::Error::new(io::ErrorKind::PermissionDenied, "denied");
        assert!(failed(denied.into()).await.unwrap().contains("denied"));
        assert_eq!(failed("status code: 503".into()).await, None);
        assert_eq!(abort(Box::new(Unaborted(None))).await, None, "no answer");
    }
}
