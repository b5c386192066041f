//! A format of history for tests: batches as they are, each behind its partition, its first row and its length.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parking_lot::Mutex;

use crate::batch::RecordBatch;
use crate::history::{FinishedFile, History, HistoryError, HistoryTopic, HistoryWriter, Share};
use crate::read::ReadError;
use crate::store::Store;
use crate::{BatchError, Offset};

/// Something that happens once.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// See the module's documentation. A share takes about so many bytes.
pub(crate) struct FakeHistory {
    group_bytes: u32,
    /// On the thread of the next file, before it is finished.
    pub(crate) before_finish: Hook,
    /// Nothing can be written.
    pub(crate) refuses: Arc<AtomicBool>,
    /// The next read finds damage.
    pub(crate) damaged: AtomicBool,
    /// How many times larger batches are than what their share is said to take.
    pub(crate) expansion: AtomicU32,
    /// Reads that somebody waits for: who reads ahead wants as little as there is at once.
    pub(crate) reads: AtomicU32,
    /// Files that were begun.
    pub(crate) begun: Mutex<Vec<HistoryTopic>>,
}

impl fmt::Debug for FakeHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fake history")
    }
}

impl FakeHistory {
    pub(crate) fn new(group_bytes: u32) -> Arc<FakeHistory> {
        Arc::new(FakeHistory {
            group_bytes,
            before_finish: Hook::default(),
            refuses: Arc::default(),
            damaged: AtomicBool::default(),
            expansion: AtomicU32::new(1),
            reads: AtomicU32::default(),
            begun: Mutex::default(),
        })
    }
}

struct FakeWriter {
    group_bytes: u32,
    expansion: u32,
    before_finish: Hook,
    refuses: Arc<AtomicBool>,
    out: BytesMut,
    rows: u32,
    shares: Vec<Share>,
}

impl HistoryWriter for FakeWriter {
    fn add(
        &mut self,
        partition: i32,
        append_time_ms: i64,
        batch: &Bytes,
    ) -> Result<Result<(), BatchError>, HistoryError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(HistoryError("refused".into()));
        }
        let rows = match opened(batch) {
            Ok(records) => records.len() as u32,
            Err(e) => return Ok(Err(e)),
        };
        let header = *RecordBatch::from_stored(batch.clone()).unwrap().header();
        let goes_on = |s: &&mut Share| {
            (s.partition, s.last_offset + 1) == (partition, header.base_offset) && s.len < self.group_bytes
        };
        let share = match self.shares.last_mut().filter(goes_on) {
            Some(share) => share,
            None => {
                self.shares.push(Share {
                    partition,
                    base_offset: header.base_offset,
                    last_offset: header.base_offset,
                    first_row: self.rows,
                    len: 0,
                    max_timestamp: -1,
                    append_time_ms,
                });
                self.shares.last_mut().unwrap()
            }
        };
        share.last_offset = header.last_offset();
        share.len += batch.len() as u32 / self.expansion;
        share.max_timestamp = share.max_timestamp.max(header.max_timestamp);
        share.append_time_ms = share.append_time_ms.max(append_time_ms);
        if !header.is_control() {
            self.out.put_i32(partition);
            self.out.put_u32(self.rows);
            self.out.put_u32(batch.len() as u32);
            self.out.put_slice(batch);
            self.rows += rows;
        }
        Ok(Ok(()))
    }

    fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedFile, HistoryError> {
        let hook = self.before_finish.lock().take();
        if let Some(happens) = hook {
            happens();
        }
        Ok(FinishedFile {
            rest: self.take(),
            shares: self.shares,
            rows: u64::from(self.rows),
        })
    }
}

fn opened(batch: &Bytes) -> Result<Vec<crate::batch::Record>, BatchError> {
    crate::batch::records(batch, 1 << 26)
}

/// The batches of a share, each with its first row.
async fn batches(store: &Store, key: &Path, share: &Share) -> Result<Vec<Bytes>, ReadError> {
    let got = async { store.bulk.get(key).await?.bytes().await };
    let mut file = match got.await {
        Ok(bytes) => bytes,
        Err(object_store::Error::NotFound { .. }) => return Err(ReadError::Missing(key.to_string())),
        Err(e) => return Err(ReadError::Store(e.to_string())),
    };
    let mut found = vec![];
    while !file.is_empty() {
        let (partition, row, len) = (file.get_i32(), file.get_u32(), file.get_u32());
        let bytes = file.split_to(len as usize);
        let batch = RecordBatch::from_stored(bytes.clone()).map_err(|e| ReadError::Corrupt(e.to_string()))?;
        let offsets = share.base_offset..=share.last_offset;
        if partition == share.partition
            && row >= share.first_row
            && offsets.contains(&batch.header().base_offset)
        {
            found.push(bytes);
        }
    }
    Ok(found)
}

fn last_offset(batch: &Bytes) -> Offset {
    RecordBatch::from_stored(batch.clone())
        .unwrap()
        .header()
        .last_offset()
}

#[async_trait]
impl History for FakeHistory {
    fn begin(&self, topic: &HistoryTopic) -> Result<Box<dyn HistoryWriter>, HistoryError> {
        self.begun.lock().push(topic.clone());
        Ok(Box::new(FakeWriter {
            group_bytes: self.group_bytes,
            expansion: self.expansion.load(Ordering::Relaxed),
            before_finish: self.before_finish.clone(),
            refuses: self.refuses.clone(),
            out: BytesMut::new(),
            rows: 0,
            shares: vec![],
        }))
    }

    async fn read(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        self.reads.fetch_add(u32::from(max_bytes > 1), Ordering::Relaxed);
        tokio::task::yield_now().await;
        if self.damaged.swap(false, Ordering::Relaxed) {
            return Err(ReadError::Corrupt("as a test wants it".into()));
        }
        let (mut taken, mut bytes) = (vec![], 0);
        for batch in batches(store, key, share).await? {
            if last_offset(&batch) < offset {
                continue;
            }
            if bytes > 0 && bytes + batch.len() > max_bytes {
                break;
            }
            bytes += batch.len();
            taken.push(batch);
        }
        Ok(taken)
    }

    async fn first_at_or_after(
        &self,
        store: &Store,
        key: &Path,
        share: &Share,
        at_least: i64,
        from: Offset,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        for batch in batches(store, key, share).await? {
            for record in opened(&batch).unwrap() {
                if record.timestamp >= at_least && record.offset >= from {
                    return Ok(Some((record.offset, record.timestamp)));
                }
            }
        }
        Ok(None)
    }

    async fn forget(&self, _key: &Path) {}
}
