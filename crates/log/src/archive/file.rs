//! One file of history, from the merged data to the pointers: what is planned is read, handed to a thread that knows the
//! format, and uploaded as it comes back.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::TopicPartition;
use crate::batch::BatchError;
use crate::entry::ArchivedShares;
use crate::history::{FinishedFile, History, HistoryTopic};
use crate::keys;
use crate::merge::plan::{Layout, Run};
use crate::merge::{MergeError, bring_all};
use crate::mutation::{self, Mutation};
use crate::partition::image::StoredRange;
use crate::store::reason_of;
use crate::stream::Stream;

use super::pace::Pace;
use super::plan::{LeftOut, has_gaps, pieces, pointers};
use super::thread::{self, Loaded, Made, Manner, Work};
use super::upload::Upload;

/// Merged data that is read at once. About three times as much is in memory per file: on its way from the store, waiting,
/// and being worked on.
const PIECE_BYTES: u64 = 8 << 20;
/// Messages of the thread that may wait.
const MADE_AT_ONCE: usize = 4;
/// A range in which a batch is missing, or has another base offset than it had, which no checksum covers.
const NO_BATCH: &str = "no batch stands for some of its offsets";

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
    #[error("{}: offset {}: {why}", keys::place(.range.place), .range.base_offset)]
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
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Where everything is; empty if nothing was good enough to be written, and then there is no file either.
    pub(crate) pointers: Vec<ArchivedShares>,
    /// Ranges that are not in it.
    pub(crate) left_out: Vec<Left>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// A range that did not go into a file, and stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) partition: TopicPartition,
    pub(crate) range: StoredRange,
    /// In which way it is not as it was written, or what in it cannot be opened.
    pub(crate) why: String,
}

/// What was left out so far, by the one who reads and by the one who hears of the thread.
type LeftSoFar = Mutex<Vec<Left>>;

/// What a file is made of, and how.
pub(crate) struct Order<'a> {
    pub(crate) stream: &'a Arc<Stream>,
    pub(crate) format: &'a Arc<dyn History>,
    pub(crate) topic: &'a HistoryTopic,
    pub(crate) number: u64,
    /// By partition and offset.
    pub(crate) runs: &'a [Run],
    pub(crate) manner: Manner,
    /// Whether a thread of its own works on it.
    pub(crate) own_thread: bool,
    pub(crate) pace: &'a Pace,
}

impl Order<'_> {
    /// Writes the file. It stands in the store when this returns, and nobody points to it yet.
    pub(crate) async fn carry_out(self) -> Result<Written, FileError> {
        let left_out = LeftSoFar::default();
        let (work, for_thread) = mpsc::channel(1);
        let (from_thread, made) = mpsc::channel(MADE_AT_ONCE);
        thread::start(
            self.format.clone(),
            self.topic.clone(),
            self.manner,
            self.own_thread,
            for_thread,
            from_thread,
        )
        .map_err(|e| FileError::Store(format!("no thread could be started: {e}")))?;
        let fed = self.feed(work, &left_out);
        let collected = self.collect(made, &left_out);
        let ((), mut written) = futures::future::try_join(fed, collected).await?;
        written.left_out = left_out.into_inner();
        Ok(written)
    }

    /// Reads everything, piece by piece, and gives it to the thread.
    async fn feed(&self, work: mpsc::Sender<Work>, left_out: &LeftSoFar) -> Result<(), FileError> {
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
    async fn load(&self, piece: Vec<Run>, left_out: &LeftSoFar) -> Result<Vec<Loaded>, FileError> {
        let layout = Arc::new(Layout::new(piece));
        let mut reads = bring_all(self.stream, &layout);
        let mut loaded: Vec<Loaded> = vec![];
        while let Some((i, brought)) = reads.next().await {
            for (part, found) in layout.reads[i].parts.iter().zip(brought?) {
                let (partition, range) = (layout.runs[part.run].partition, *layout.range(part));
                let why = match found {
                    Ok(chunks) if has_gaps(&range, &chunks) => NO_BATCH.to_owned(),
                    Ok(chunks) => {
                        loaded.push(Loaded {
                            partition: partition.partition,
                            range,
                            chunks,
                        });
                        continue;
                    }
                    Err(why) => why,
                };
                left_out.lock().push(Left {
                    partition,
                    range,
                    why,
                });
            }
        }
        // Reads are in the order of the objects that they are of.
        loaded.sort_by_key(|one| (one.partition, one.range.base_offset));
        Ok(loaded)
    }

    /// Uploads what the thread makes, if it makes anything.
    async fn collect(
        &self,
        mut made: mpsc::Receiver<Made>,
        left_out: &LeftSoFar,
    ) -> Result<Written, FileError> {
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
            let Some(finished) = finished else {
                return Ok(Written::default());
            };
            // Everything is read by now. What the format says is checked before the file is there for nothing.
            let name = |left: &Left| (left.partition, left.range.base_offset);
            let names: LeftOut = left_out.lock().iter().map(name).collect();
            let pointers = pointers(self.runs, &names, self.number, &finished.shares);
            let pointers = pointers.map_err(FileError::Format)?;
            upload.add(finished.rest).await.map_err(failed)?;
            let bytes = if mutation::on(Mutation::PointerBeforeUpload) {
                tokio::spawn(upload.finish());
                0
            } else {
                upload.finish().await.map_err(failed)?
            };
            return Ok(Written {
                pointers,
                left_out: vec![],
                rows: finished.rows,
                bytes,
            });
        }
        Err(FileError::Format("the thread that wrote it has ended".to_owned()))
    }

    /// What follows from a word of the thread: bytes to be uploaded, or the end.
    fn heard(
        &self,
        made: Made,
        left_out: &LeftSoFar,
    ) -> Result<ControlFlow<Option<FinishedFile>, Option<Bytes>>, FileError> {
        match made {
            Made::Bytes(bytes) => Ok(ControlFlow::Continue(Some(bytes))),
            Made::Finished(finished) => Ok(ControlFlow::Break(Some(finished))),
            Made::Nothing => Ok(ControlFlow::Break(None)),
            Made::Failed(e) => Err(FileError::Format(e.to_string())),
            Made::Bad(partition, range, why) if self.manner == Manner::Careful => {
                let partition = TopicPartition {
                    topic: self.topic.id,
                    partition,
                };
                left_out.lock().push(Left {
                    partition,
                    range,
                    why: why.to_string(),
                });
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
