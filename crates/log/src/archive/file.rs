//! One file of history, from the merged data to the pointers: what is planned is read, handed to a thread that knows the
//! format, and uploaded as it comes back.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::TopicPartition;
use crate::batch::BatchError;
use crate::entry::ArchivedShares;
use crate::history::{FinishedFile, History, HistoryTopic};
use crate::keys;
use crate::merge::MergeError;
use crate::merge::bring;
use crate::merge::plan::{Layout, Run};
use crate::partition::image::StoredRange;
use crate::store::trouble::reason_of;
use crate::stream::Stream;

use super::pace::Pace;
use super::plan::{Given, LeftOut, check_shares, pieces, pointers};
use super::thread::{self, Loaded, Made, Manner, Work};
use super::upload::Upload;

/// Merged data that is read at once. About three times as much is in memory per file: on its way from the store, waiting,
/// and being worked on.
const PIECE_BYTES: u64 = 8 << 20;
/// Reads under way at once.
const READS_AT_ONCE: usize = 4;
/// Messages of the thread that may wait.
const MADE_AT_ONCE: usize = 4;

/// Why no file was written. Its number is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    /// The store fails: later.
    #[error("{0}")]
    Store(String),
    /// The format refuses, or what it says does not fit.
    #[error("{0}")]
    Format(String),
    /// The inside of a batch is bad: again, without its range.
    #[error("{}: offset {}: {why}", keys::place(range.place), range.base_offset)]
    Bad {
        /// Partition number.
        partition: i32,
        range: StoredRange,
        why: BatchError,
    },
}

impl From<MergeError> for FileError {
    fn from(e: MergeError) -> FileError {
        FileError::Store(e.to_string())
    }
}

/// A file that stands in the store.
#[derive(Debug)]
pub(crate) struct Written {
    /// Where everything is; empty if nothing was good enough to be written, and then there is no file either.
    pub(crate) pointers: Vec<ArchivedShares>,
    /// Ranges that are not in it, and why.
    pub(crate) left_out: Vec<(TopicPartition, StoredRange, String)>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// What a thread ends with: the file and what it was given, or that there is none.
type End = Option<(FinishedFile, Vec<Given>)>;

/// What a file is made of, and how.
pub(crate) struct Order<'a> {
    pub(crate) stream: &'a Arc<Stream>,
    pub(crate) format: &'a Arc<dyn History>,
    pub(crate) topic: &'a HistoryTopic,
    pub(crate) number: u64,
    /// By partition and offset.
    pub(crate) runs: &'a [Run],
    pub(crate) manner: Manner,
    pub(crate) pace: &'a Pace,
}

impl Order<'_> {
    /// Writes the file. It stands in the store when this returns, and nobody points to it yet.
    pub(crate) async fn carry_out(self) -> Result<Written, FileError> {
        let left_out = Mutex::new(vec![]);
        let (work, for_thread) = mpsc::channel(1);
        let (from_thread, made) = mpsc::channel(MADE_AT_ONCE);
        thread::start(
            self.format.clone(),
            self.topic.clone(),
            self.manner,
            for_thread,
            from_thread,
        )
        .map_err(|e| FileError::Store(format!("no thread could be started: {e}")))?;
        let fed = self.feed(work, &left_out);
        let collected = self.collect(made, &left_out);
        let ((), finished) = futures::future::try_join(fed, collected).await?;
        let left_out = left_out.into_inner();
        let Some((finished, bytes)) = finished else {
            return Ok(Written {
                pointers: vec![],
                left_out,
                rows: 0,
                bytes: 0,
            });
        };
        let names: LeftOut = left_out.iter().map(|(tp, r, _)| (*tp, r.base_offset)).collect();
        Ok(Written {
            pointers: pointers(self.runs, &names, self.number, &finished.shares),
            left_out,
            rows: finished.rows,
            bytes,
        })
    }

    /// Reads everything, piece by piece, and gives it to the thread.
    async fn feed(
        &self,
        work: mpsc::Sender<Work>,
        left_out: &Mutex<Vec<(TopicPartition, StoredRange, String)>>,
    ) -> Result<(), FileError> {
        for piece in pieces(self.runs, PIECE_BYTES) {
            let bytes = piece.iter().flat_map(|run| &run.ranges).map(|r| u64::from(r.len));
            self.pace.wait(self.stream, bytes.sum()).await;
            let loaded = self.load(piece, left_out).await?;
            if work.send(Work::Ranges(loaded)).await.is_err() {
                // It has said why.
                return Ok(());
            }
        }
        let _ = work.send(Work::Finish).await;
        Ok(())
    }

    /// Reads a piece, verified. What is not as it was written is left out.
    async fn load(
        &self,
        piece: Vec<Run>,
        left_out: &Mutex<Vec<(TopicPartition, StoredRange, String)>>,
    ) -> Result<Vec<Loaded>, FileError> {
        let mut piece = piece;
        for run in &mut piece {
            // What compaction has left nothing of is nothing to read.
            run.ranges.retain(|r| r.len > 0);
        }
        let layout = Arc::new(Layout::new(piece));
        let (from, plan) = (self.stream.clone(), layout.clone());
        let mut reads = stream::iter(0..layout.reads.len())
            .map(move |i| {
                let (from, plan) = (from.clone(), plan.clone());
                async move { (i, bring(&from, &plan.reads[i], &plan).await) }
            })
            .buffer_unordered(READS_AT_ONCE);
        let mut loaded: Vec<Loaded> = vec![];
        while let Some((i, brought)) = reads.next().await {
            for (part, found) in layout.reads[i].parts.iter().zip(brought?) {
                let (tp, range) = (layout.runs[part.run].partition, *layout.range(part));
                match found {
                    Ok(chunks) => loaded.push(Loaded {
                        partition: tp.partition,
                        range,
                        chunks,
                    }),
                    Err(why) => left_out.lock().push((tp, range, why)),
                }
            }
        }
        // Reads are in the order of the objects that they are of.
        loaded.sort_by_key(|one| (one.partition, one.range.base_offset));
        Ok(loaded)
    }

    /// Uploads what the thread makes. `None` if it has made nothing.
    async fn collect(
        &self,
        mut made: mpsc::Receiver<Made>,
        left_out: &Mutex<Vec<(TopicPartition, StoredRange, String)>>,
    ) -> Result<Option<(FinishedFile, u64)>, FileError> {
        let store = &self.stream.store;
        let (name, id, incarnation) = (&self.topic.name, self.topic.id, self.stream.incarnation);
        let key = store.key(&keys::archived(name, id, incarnation, self.number));
        let mut upload = Upload::new(store.bulk.clone(), key.clone());
        let failed = |e: object_store::Error| FileError::Store(format!("{key}: {}", reason_of(&e)));
        while let Some(next) = made.recv().await {
            let finished = match self.heard(next, left_out)? {
                ControlFlow::Continue(None) => continue,
                ControlFlow::Continue(Some(bytes)) => {
                    upload.add(bytes).await.map_err(failed)?;
                    continue;
                }
                ControlFlow::Break(finished) => finished,
            };
            let Some((finished, given)) = finished else {
                return Ok(None);
            };
            // Before it is uploaded for nothing.
            check_shares(&given, &finished.shares).map_err(FileError::Format)?;
            upload.add(finished.rest.clone()).await.map_err(failed)?;
            let bytes = upload.finish().await.map_err(failed)?;
            return Ok(Some((finished, bytes)));
        }
        Err(FileError::Format("the thread that wrote it has ended".to_owned()))
    }

    /// What follows from a word of the thread: bytes to be uploaded, or the end.
    fn heard(
        &self,
        made: Made,
        left_out: &Mutex<Vec<(TopicPartition, StoredRange, String)>>,
    ) -> Result<ControlFlow<End, Option<Bytes>>, FileError> {
        match made {
            Made::Bytes(bytes) => Ok(ControlFlow::Continue(Some(bytes))),
            Made::Finished(finished, given) => Ok(ControlFlow::Break(Some((finished, given)))),
            Made::Nothing => Ok(ControlFlow::Break(None)),
            Made::Failed(e) => Err(FileError::Format(e.to_string())),
            Made::Bad(partition, range, why) if self.manner == Manner::Careful => {
                let tp = TopicPartition {
                    topic: self.topic.id,
                    partition,
                };
                left_out.lock().push((tp, range, why.to_string()));
                Ok(ControlFlow::Continue(None))
            }
            Made::Bad(partition, range, why) => Err(FileError::Bad {
                partition,
                range,
                why,
            }),
        }
    }
}
