//! The processor's part of archiving: one thread per file that is being written, with a low priority.
//!
//! It opens, sorts and compresses records, which is several times the work of the hot path, so it runs on none of the
//! threads that serve clients. It is fed through one channel and answers through another; when either of them closes it
//! ends. In a simulation it is a task like any other.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::batch::{BatchError, ChunkCursor};
use crate::history::{FinishedFile, History, HistoryError, HistoryTopic, HistoryWriter};
use crate::partition::image::StoredRange;
use crate::worker::stand_back;

/// How nice its threads are to others, as `nice` counts.
const NICE: i32 = 10;

/// A range with its bytes, which were verified.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// Partition number.
    pub(crate) partition: i32,
    pub(crate) range: StoredRange,
    pub(crate) chunks: Vec<Bytes>,
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Work {
    /// These ranges are next.
    Ranges(Vec<Loaded>),
    /// Nothing comes after what was given.
    Finish,
}

/// What the thread tells.
#[derive(Debug)]
pub(crate) enum Made {
    /// The next bytes of the file.
    Bytes(Bytes),
    /// A range holds a batch whose inside is bad. With [`Manner::Careful`] none of it went into the file; else the
    /// file is to be given up, and this is the last word.
    Bad(i32, StoredRange, BatchError),
    /// The file's last bytes, and what it holds.
    Finished(FinishedFile),
    /// There was nothing to put in: there is no file.
    Nothing,
    /// The file is to be given up.
    Failed(HistoryError),
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each range goes right in.
    Swift,
    /// Each range is tried on a file that nobody wants first: at double the cost, a bad one does no harm.
    Careful,
}

/// Starts the thread of one file, or, without threads of its own, a task.
pub(crate) fn start(
    format: Arc<dyn History>,
    topic: HistoryTopic,
    manner: Manner,
    own_thread: bool,
    work: mpsc::Receiver<Work>,
    made: mpsc::Sender<Made>,
) -> std::io::Result<()> {
    let writing = async move {
        if let Err(end) = write(format.as_ref(), &topic, manner, work, &made).await {
            // Who does not listen any more need not be told.
            let _ = made.send(end).await;
        }
    };
    if !own_thread {
        tokio::spawn(writing);
        return Ok(());
    }
    // It only waits for the two channels, which need nothing of the runtime.
    let runtime = Handle::current();
    let body = move || {
        stand_back(NICE);
        runtime.block_on(writing);
    };
    std::thread::Builder::new()
        .name("alluvium-archive".to_owned())
        .spawn(body)
        .map(drop)
}

/// Writes one file; the error is the last word to be told.
async fn write(
    format: &dyn History,
    topic: &HistoryTopic,
    manner: Manner,
    mut work: mpsc::Receiver<Work>,
    made: &mpsc::Sender<Made>,
) -> Result<(), Made> {
    let mut writer = format.begin(topic).map_err(Made::Failed)?;
    while let Some(work) = work.recv().await {
        let ranges = match work {
            Work::Ranges(ranges) => ranges,
            Work::Finish if writer.is_empty() => return Err(Made::Nothing),
            Work::Finish => {
                let finished = writer.finish().map_err(Made::Failed)?;
                return Err(Made::Finished(finished));
            }
        };
        for loaded in &ranges {
            let (partition, range) = (loaded.partition, loaded.range);
            if manner == Manner::Careful {
                let mut scratch = format.begin(topic).map_err(Made::Failed)?;
                if let Err(why) = add(scratch.as_mut(), loaded).map_err(Made::Failed)? {
                    if made.send(Made::Bad(partition, range, why)).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            }
            match add(writer.as_mut(), loaded).map_err(Made::Failed)? {
                Ok(()) => {}
                Err(why) if manner == Manner::Careful => {
                    let what = format!("what was taken once is not taken again: {why}");
                    return Err(Made::Failed(HistoryError(what)));
                }
                Err(why) => return Err(Made::Bad(partition, range, why)),
            }
            let bytes = writer.take();
            if !bytes.is_empty() && made.send(Made::Bytes(bytes)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Adds the batches of a range, up to the first whose inside is bad.
fn add(writer: &mut dyn HistoryWriter, loaded: &Loaded) -> Result<Result<(), BatchError>, HistoryError> {
    let mut cursor = ChunkCursor::new(&loaded.chunks);
    while let Some(view) = cursor.next_batch() {
        let view = match view {
            Ok(view) => view,
            Err(e) => return Ok(Err(e)),
        };
        let batch = view.in_one_piece(&loaded.chunks);
        if let Err(e) = writer.add(loaded.partition, loaded.range.append_time_ms, &batch)? {
            return Ok(Err(e));
        }
    }
    Ok(Ok(()))
}
