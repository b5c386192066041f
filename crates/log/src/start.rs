//! Opening the log: register, seal the predecessors, take their slots in one change, recover, serve.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::archive::{Archiver, AskArchiver, Asks};
use crate::checkpointer::{Checkpointer, Durable};
use crate::clean::{Cleaner, Delay};
use crate::clock::Clock;
use crate::entry::Entry;
use crate::format::checkpoint::SlotImage;
use crate::format::segment::{Seal, SegmentHeader, SegmentIndex, decode_index, encode_seal, read_header};
use crate::format::{
    IndexOrMore, ObjectKind, SUFFIX_GUESS, check_preamble, checkpoint, index_of, read_trailer,
};
use crate::head::Head;
use crate::keys;
use crate::log::{Inner, Log, LogOptions, OpenError, Rewriters};
use crate::manifest::Manifest;
use crate::manifest::change::TakeoverRefused;
use crate::manifest::keeper::{ManifestError, ManifestKeeper};
use crate::merge::Merger;
use crate::metrics::LogMetrics;
use crate::mutation::{self, Mutation};
use crate::read::blocks::Blocks;
use crate::read::tail::TailRing;
use crate::recover::{Source, Sources, StreamRead};
use crate::store::conditional::{self, CreateOutcome, Patience};
use crate::store::{Store, StoreKind};
use crate::stream::Stream;
use crate::stream::flush::FlushPolicy;
use crate::takeover::{Found, HeadSeen, Takeover};
use crate::{Incarnation, Seq, Slot};

/// Segment indexes read at once.
const READ_AHEAD: usize = 32;
/// How long a start keeps trying while the store fails.
const PATIENCE: Duration = Duration::from_secs(300);
/// A read is sent again after this time; it doubles, since a large object takes longer.
const READ_TIMEOUT_MIN: Duration = Duration::from_secs(3);
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How often the manifest is looked at.
const POLL: Duration = Duration::from_secs(1);
/// Wishes to have something rewritten that may wait.
const WISHES: usize = 16;
/// How often links are looked at without a new checkpoint.
const LINKS_AGAIN: Duration = Duration::from_secs(60);

impl Log {
    /// Opens the log of the cluster in `store`, which is created if there is none. The broker joins with a stream of its
    /// own; the streams of its predecessors (same `node.id`; on a store of this process alone, all) are sealed first,
    /// and whoever still runs on one of them finds its next write refused and stops. Returns once the slots that it
    /// owns at the start are recovered.
    pub async fn open(
        store: Store,
        options: LogOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Log, OpenError> {
        let metrics = LogMetrics::register(registry);
        let keeper = Arc::new(ManifestKeeper::open(store.clone()).await.map_err(unusable)?);
        let joined = join(&store, &keeper, &options, clock.as_ref()).await?;
        let merge = options.merge;
        let delete_delay = Delay::new(options.delete_delay, options.delete_delay_set.clone());
        let (history, policies) = (options.history.clone(), options.archive_policies.clone());
        let archive = options.archive;
        let garbage_interval = options.garbage_interval;
        let inner = Inner::assemble(store, options, clock, metrics, keeper, joined);
        // First, so that others see it live: a recovery may take longer than they wait for a sign of life.
        let checkpointer = &inner.checkpointer;
        // Before there is a checkpoint: who begins to listen later would miss it.
        let (for_cleaner, for_links) = (checkpointer.durable(), checkpointer.durable());
        let alive = [
            tokio::spawn(checkpointer.clone().run()),
            tokio::spawn(poll_manifest(Arc::downgrade(&inner))),
        ];
        inner.background.lock().extend(alive);
        inner.apply_manifest();
        let whole = inner.recovered().await;
        let failed = if inner.stream.is_fenced() {
            Some(inner.stream.fenced().await.why)
        } else if !whole && inner.exclusive() {
            // Nobody else can serve what is missing: better not to start than to hide it.
            Some(inner.last_failure.lock().clone().unwrap_or_default())
        } else {
            None
        };
        if let Some(why) = failed {
            inner.background.lock().drain(..).for_each(|task| task.abort());
            return Err(OpenError::Unusable(why));
        }
        let (stream, keeper) = (&inner.stream, &inner.keeper);
        let merger = Merger::new(stream.clone(), keeper.clone(), checkpointer.clone(), merge);
        let (ask_merger, asked_merger) = mpsc::channel(WISHES);
        let archiver = history.zip(policies).map(|(format, policies)| {
            let (ask, asked) = mpsc::channel(WISHES);
            let (stream, keeper, checkpointer) = (stream.clone(), keeper.clone(), checkpointer.clone());
            let archiver = Archiver::new(stream, keeper, checkpointer, format, policies.clone(), archive);
            let asking = AskArchiver {
                flushes: ask,
                policies,
                asks: parking_lot::Mutex::new(Asks::new(archive.flush_interval_min)),
            };
            (archiver, asked, asking)
        });
        let cleaner = Arc::new(Cleaner::new(
            stream.clone(),
            keeper.clone(),
            delete_delay,
            garbage_interval,
        ));
        let tasks = [
            tokio::spawn(merger.run(asked_merger)),
            tokio::spawn(cleaner.run(for_cleaner)),
            tokio::spawn(drop_links(Arc::downgrade(&inner), for_links)),
        ];
        inner.background.lock().extend(tasks);
        let ask_archiver = archiver.map(|(archiver, asked, ask)| {
            inner.background.lock().push(tokio::spawn(archiver.run(asked)));
            ask
        });
        // Set once: there is one open for each.
        let _ = inner.rewriters.set(Rewriters {
            merge: ask_merger,
            archive: ask_archiver,
        });
        Ok(Log { inner })
    }
}

/// A start that has its stream.
struct Joined {
    incarnation: Incarnation,
    node_id: i32,
    /// When the manifest read was begun on which all of this rests.
    proven: Instant,
    /// Streams of predecessors, as they were read when they were ended.
    ended: BTreeMap<Incarnation, StreamRead>,
}

/// Registers, ends the streams of predecessors and takes their slots, and those that nobody owns.
async fn join(
    store: &Store,
    keeper: &ManifestKeeper,
    options: &LogOptions,
    clock: &dyn Clock,
) -> Result<Joined, OpenError> {
    let reader = Reader {
        store: store.clone(),
        cluster: keeper.current().cluster_id,
    };
    // Streams of another cluster under this manifest: found out before anything is written. A head that is damaged hurts
    // only whoever needs it.
    let present: Vec<Incarnation> = keeper.current().streams.keys().copied().collect();
    let heads = present.into_iter().map(|stream| reader.head(stream));
    let foreign = |e: &OpenError| matches!(e, OpenError::OtherCluster(_));
    if let Some(e) = futures::future::join_all(heads)
        .await
        .into_iter()
        .filter_map(Result::err)
        .find(foreign)
    {
        return Err(e);
    }
    let exclusive = store.kind != StoreKind::S3;
    let register = |m: &mut Manifest| {
        let node_id = options.node_id.unwrap_or_else(|| {
            if exclusive {
                1
            } else {
                m.free_node_id(&options.endpoints)
            }
        });
        let i = m.register(node_id, options.rack.clone(), options.endpoints.clone());
        Ok::<_, Infallible>(((i, node_id), Some(i)))
    };
    let (incarnation, node_id) = keeper.change(register).await.map_err(unusable)?;
    let mut ended = BTreeMap::new();
    'plan: loop {
        let proven = Instant::now();
        let manifest = keeper.current();
        let before = manifest
            .live()
            .filter(|(i, s)| *i < incarnation && (exclusive || s.node_id == node_id));
        let predecessors: Vec<Incarnation> = before.map(|(i, _)| i).collect();
        let mut sealed = vec![];
        for victim in predecessors {
            let by = Taker {
                incarnation,
                node_id,
                now_ms: clock.now_ms(),
                reason: "a newer start of the same broker took over".to_owned(),
            };
            match reader.end_stream(victim, &by).await {
                Ok((seal, stream)) => {
                    sealed.push((victim, seal));
                    ended.insert(victim, stream);
                }
                Err(why) if still_live(keeper, victim).await => return Err(why),
                Err(_) => continue 'plan,
            }
        }
        let take = |m: &mut Manifest| {
            m.take_over(incarnation, &sealed)
                .map(|()| ((), Some(incarnation)))
        };
        let unowned = manifest.slots.iter().any(|r| r.owner == 0);
        let taken = if sealed.is_empty() && !unowned {
            Ok(())
        } else {
            keeper.change(take).await
        };
        match taken {
            Ok(()) => {
                if mutation::on(Mutation::SealDeleted) {
                    for (victim, at) in &sealed {
                        let _ = store.bulk.delete(&store.key(&keys::segment(*victim, *at))).await;
                    }
                }
                return Ok(Joined {
                    incarnation,
                    node_id,
                    proven,
                    ended,
                });
            }
            Err(ManifestError::Refused(TakeoverRefused::VictimNotLive(_))) => {}
            Err(e) => return Err(unusable(e)),
        }
    }
}

impl Inner {
    fn assemble(
        store: Store,
        options: LogOptions,
        clock: Arc<dyn Clock>,
        metrics: LogMetrics,
        keeper: Arc<ManifestKeeper>,
        joined: Joined,
    ) -> Arc<Inner> {
        let (incarnation, node_id) = (joined.incarnation, joined.node_id);
        let policy = FlushPolicy {
            bytes: options.flush_bytes,
            interval: options.flush_interval,
            puts_in_flight: options.puts_in_flight,
            tokens_per_second: options.request_budget_per_second,
            token_burst: options.request_budget_burst,
        };
        let tail = TailRing::new(incarnation, options.tail_bytes as u64);
        let (cache, concurrency) = (options.cache_bytes, options.read_concurrency);
        let blocks = Arc::new(Blocks::new(
            store.clone(),
            tail,
            cache,
            concurrency,
            options.history.clone(),
            metrics.clone(),
        ));
        let stream = Arc::new(Stream::new(
            store,
            keeper.current().cluster_id,
            (incarnation, node_id),
            clock,
            blocks,
            metrics,
            policy,
        ));
        stream.prove(joined.proven);
        let expiration = options.producer_id_expiration;
        Arc::new(Inner {
            node_id,
            checkpointer: Arc::new(Checkpointer::new(stream.clone(), keeper.clone(), expiration)),
            keeper,
            stream_task: tokio::sync::Mutex::new(Some(tokio::spawn(stream.clone().run()))),
            next_producer: AtomicI64::new(0),
            ended: parking_lot::Mutex::new(joined.ended),
            last_failure: parking_lot::Mutex::default(),
            handing_over: tokio::sync::Mutex::default(),
            membership: std::sync::OnceLock::new(),
            rewriters: std::sync::OnceLock::new(),
            background: parking_lot::Mutex::default(),
            stream,
        })
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader {
            store: self.stream.store.clone(),
            cluster: self.stream.cluster,
        }
    }
}

fn unusable<E: std::fmt::Display>(e: ManifestError<E>) -> OpenError {
    OpenError::Unusable(e.to_string())
}

/// Whether a stream that could not be ended is still to be. If not, somebody else was faster, and may have deleted what was
/// to be read of it.
pub(crate) async fn still_live(keeper: &ManifestKeeper, victim: Incarnation) -> bool {
    // What cannot be read has not changed, as far as anybody knows.
    let _ = keeper.refresh().await;
    let manifest = keeper.current();
    let stream = manifest.streams.get(&victim);
    stream.is_some_and(|s| s.is_live())
}

/// Looks at the manifest every second, for changes by others and as proof of ownership.
async fn poll_manifest(inner: std::sync::Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.stream.is_fenced() {
            return;
        }
        // A directory is locked to this process and memory belongs to it: nobody else changes them.
        if inner.stream.store.kind != crate::store::StoreKind::S3 {
            continue;
        }
        // The store tells of failures itself, once for all who meet them.
        let _ = inner.refresh_manifest().await;
    }
}

/// After each checkpoint, and again from time to time since it may fail: slots whose data lies in no other stream any
/// more need their links no longer.
async fn drop_links(inner: std::sync::Weak<Inner>, mut durable: watch::Receiver<Arc<Durable>>) {
    while let Ok(Ok(())) | Err(_) = tokio::time::timeout(LINKS_AGAIN, durable.changed()).await {
        let newest = durable.borrow_and_update().clone();
        let Some(inner) = inner.upgrade() else { return };
        let early = mutation::on(Mutation::LinkDroppedEarly);
        let whole = newest.covered.iter().filter(|c| !c.foreign_l0 || early);
        let whole: Vec<(Slot, i32)> = whole.map(|c| (c.slot, c.epoch)).collect();
        inner.drop_links(&whole).await;
    }
}

/// Who seals, and why.
pub(crate) struct Taker {
    pub(crate) incarnation: Incarnation,
    pub(crate) node_id: i32,
    pub(crate) now_ms: i64,
    pub(crate) reason: String,
}

/// What was read of one source.
pub(crate) enum SourceRead {
    Stream(Incarnation, StreamRead),
    Release((Incarnation, Seq), BTreeMap<Slot, SlotImage>),
}

impl SourceRead {
    pub(crate) fn add_to(self, sources: &mut Sources) {
        match self {
            SourceRead::Stream(stream, read) => drop(sources.streams.insert(stream, read)),
            SourceRead::Release(at, slots) => drop(sources.releases.insert(at, slots)),
        }
    }
}

/// What stands at a key of a stream.
enum At {
    Segment(SegmentIndex),
    Missing,
}

/// Reads streams of others.
pub(crate) struct Reader {
    pub(crate) store: Store,
    pub(crate) cluster: Uuid,
}

impl Reader {
    /// Ends a stream with a seal, ours or one that is there, and returns where, with all that was read of it.
    pub(crate) async fn end_stream(
        &self,
        victim: Incarnation,
        by: &Taker,
    ) -> Result<(Seq, StreamRead), OpenError> {
        let mut state = Takeover::Begin;
        let mut read = StreamRead::default();
        loop {
            state = match state {
                Takeover::Begin | Takeover::Confirming { .. } => {
                    let head = self.head(victim).await?;
                    // Read first: a head whose checkpoint is gone already is no head to begin from.
                    let Some(checkpoint) = self.checkpoint(&head).await? else {
                        continue;
                    };
                    let seen = HeadSeen {
                        checkpoint_next: head.first_unread(),
                        floor: head.floor,
                    };
                    let next = state.on(Found::Head(seen));
                    if let Takeover::Probing { .. } = next {
                        // The first time, or the seal was void: all that was read before is out of date.
                        read = StreamRead {
                            checkpoint,
                            segments: vec![],
                        };
                    }
                    next
                }
                Takeover::Probing { probe } => self.probe(victim, probe, &mut read).await?,
                Takeover::Sealing { at } => {
                    let found = self.seal(victim, at, by).await?;
                    state.on(found)
                }
                Takeover::Sealed { seal } => {
                    if mutation::on(Mutation::ZombieMovesLogStart) {
                        self.log_starts_behind(victim, seal, &mut read).await?;
                    }
                    return Ok((seal, read));
                }
            };
        }
    }

    /// Reads on from `probe`, several at once, to the first key that holds no segment.
    async fn probe(
        &self,
        victim: Incarnation,
        probe: Seq,
        read: &mut StreamRead,
    ) -> Result<Takeover, OpenError> {
        let mut state = Takeover::Probing { probe };
        let mut ahead = self.indexes(victim, probe, Seq::MAX);
        while let Some((seq, found)) = ahead.next().await {
            let found = match found? {
                At::Missing => Found::Missing,
                At::Segment(index) if index.header.seal.is_some() => Found::Seal,
                At::Segment(index) => {
                    read.segments.push((seq, index.entries));
                    Found::Data
                }
            };
            state = state.on(found);
            if found != Found::Data {
                break;
            }
        }
        Ok(state)
    }

    /// [`Mutation::ZombieMovesLogStart`]: takes log starts from behind a seal as if they stood before it.
    async fn log_starts_behind(
        &self,
        stream: Incarnation,
        seal: Seq,
        read: &mut StreamRead,
    ) -> Result<(), OpenError> {
        let Some((_, last)) = read.segments.last_mut() else {
            return Ok(());
        };
        let mut behind = self.indexes(stream, seal + 1, Seq::MAX);
        while let Some((_, found)) = behind.next().await {
            let At::Segment(index) = found? else { break };
            let entries = index.entries.into_iter();
            last.extend(entries.filter(|e| matches!(e, Entry::LogStart { .. })));
        }
        Ok(())
    }

    async fn seal(&self, victim: Incarnation, at: Seq, by: &Taker) -> Result<Found, OpenError> {
        let nonce = Uuid::new_v4();
        let header = SegmentHeader {
            incarnation: victim,
            seq: at,
            nonce,
            manifest_version: 0,
            checkpoint_next: None,
            committed_next: at,
            written_ms: by.now_ms,
            seal: Some(Seal {
                taker: by.incarnation,
                taker_node: by.node_id,
                reason: by.reason.clone(),
            }),
        };
        let key = self.store.key(&keys::segment(victim, at));
        let is_mine = |b: &Bytes| read_header(b, Some(self.cluster)).is_ok_and(|h| h.nonce == nonce);
        let bytes = encode_seal(&header, self.cluster);
        match conditional::create(&self.store, &key, bytes.into(), is_mine, Patience::For(PATIENCE)).await {
            CreateOutcome::Committed => Ok(Found::Created),
            CreateOutcome::Lost(found) => match read_header(&found, Some(self.cluster)) {
                Ok(h) if h.seal.is_some() => Ok(Found::Seal),
                Ok(_) => Ok(Found::Data),
                Err(e) => Err(OpenError::Unusable(format!("{key}: {e}"))),
            },
            CreateOutcome::Unknown(why) => {
                Err(OpenError::Unusable(format!("{key} could not be written: {why}")))
            }
        }
    }

    /// Reads one source of a recovery.
    pub(crate) async fn source(&self, source: Source) -> Result<SourceRead, OpenError> {
        match source {
            Source::Stream { stream, bound } => {
                let read = self.sealed_stream(stream, bound).await?;
                Ok(SourceRead::Stream(stream, read))
            }
            Source::Release { stream, bound } => {
                let seq = bound.saturating_sub(1);
                let key = self.store.key(&keys::segment(stream, seq));
                let At::Segment(index) = self.index(stream, seq).await? else {
                    return Err(OpenError::Unusable(format!("{key} is missing")));
                };
                let mut slots = BTreeMap::new();
                for entry in index.entries {
                    let Entry::Release {
                        slot,
                        leader_epoch: epoch,
                        image,
                    } = entry
                    else {
                        continue;
                    };
                    let partitions = checkpoint::decode_slot(image)
                        .map_err(|e| OpenError::Unusable(format!("{key}: slot {slot}: {e}")))?;
                    slots.insert(slot, SlotImage { epoch, partitions });
                }
                Ok(SourceRead::Release((stream, bound), slots))
            }
        }
    }

    /// Reads a stream that is sealed at `bound`. Its owner may not know that it has ended, and checkpoint and delete
    /// while this goes on: what is missing below the seal means that the head is read again.
    pub(crate) async fn sealed_stream(
        &self,
        stream: Incarnation,
        bound: Seq,
    ) -> Result<StreamRead, OpenError> {
        loop {
            let head = self.head(stream).await?;
            let Some(checkpoint) = self.checkpoint(&head).await? else {
                continue;
            };
            let mut segments: Vec<(Seq, Vec<Entry>)> = vec![];
            let mut indexes = self.indexes(stream, head.first_unread(), bound);
            while let Some((seq, found)) = indexes.next().await {
                match found? {
                    At::Segment(index) => segments.push((seq, index.entries)),
                    At::Missing => break,
                }
            }
            let read = head.first_unread() + segments.len() as Seq;
            if read >= bound || self.head(stream).await?.commit_id == head.commit_id {
                let mut read = StreamRead { checkpoint, segments };
                if mutation::on(Mutation::ZombieMovesLogStart) {
                    self.log_starts_behind(stream, bound, &mut read).await?;
                }
                return Ok(read);
            }
        }
    }

    pub(crate) async fn head(&self, stream: Incarnation) -> Result<Head, OpenError> {
        let key = self.store.key(&keys::head(stream));
        let found = self.patiently(|| conditional::read(&self.store, &key)).await?;
        let Some(found) = found else {
            return Ok(Head::new(self.cluster, stream, Uuid::nil()));
        };
        Head::decode(&found.bytes, self.cluster, stream).map_err(|e| {
            let what = format!("{key}: {e}");
            if Head::is_of_another(&found.bytes, self.cluster) {
                OpenError::OtherCluster(what)
            } else {
                OpenError::Unusable(what)
            }
        })
    }

    /// The checkpoint that a head names, if it names one; `None` if the owner has deleted it since, which it does only
    /// after another head.
    async fn checkpoint(&self, head: &Head) -> Result<Option<Option<checkpoint::Checkpoint>>, OpenError> {
        let Some(named) = &head.checkpoint else {
            return Ok(Some(None));
        };
        let key = self
            .store
            .key(&keys::checkpoint(head.incarnation, named.next, named.nonce));
        let get = || async {
            match self.store.bulk.get(&key).await {
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
                Ok(got) => got.bytes().await.map(Some),
            }
        };
        let Some(bytes) = self.patiently(get).await? else {
            if self.head(head.incarnation).await?.commit_id == head.commit_id {
                return Err(OpenError::Unusable(format!(
                    "{key} is missing, and the head names it"
                )));
            }
            return Ok(None);
        };
        let checkpoint = checkpoint::decode(&bytes, Some(self.cluster))
            .map_err(|e| OpenError::Unusable(format!("{key}: {e}")))?;
        if (checkpoint.incarnation, checkpoint.next) != (head.incarnation, named.next) {
            return Err(OpenError::Unusable(format!(
                "{key}: holds the state of another position"
            )));
        }
        Ok(Some(Some(checkpoint)))
    }

    /// Indexes from `first` up to `bound`, in order, several requests under way.
    fn indexes(
        &self,
        stream: Incarnation,
        first: Seq,
        bound: Seq,
    ) -> impl futures::Stream<Item = (Seq, Result<At, OpenError>)> + Unpin {
        let read = move |seq| async move { (seq, self.index(stream, seq).await) };
        Box::pin(futures::stream::iter(first..bound).map(read).buffered(READ_AHEAD))
    }

    async fn index(&self, stream: Incarnation, seq: Seq) -> Result<At, OpenError> {
        let key = self.store.key(&keys::segment(stream, seq));
        let mut len = SUFFIX_GUESS;
        loop {
            let suffix = || async {
                let options = GetOptions {
                    range: Some(GetRange::Suffix(len)),
                    ..GetOptions::default()
                };
                match self.store.bulk.get_opts(&key, options).await {
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    // A store refuses any range of an empty object, however often it is asked.
                    Err(e) => match self.store.bulk.head(&key).await {
                        Ok(found) if found.size == 0 => Ok(Some(Bytes::new())),
                        _ => Err(e),
                    },
                    Ok(got) => got.bytes().await.map(Some),
                }
            };
            let Some(bytes) = self.patiently(suffix).await? else {
                return Ok(At::Missing);
            };
            let damaged = |e| OpenError::Unusable(format!("{key}: {e}"));
            let trailer = read_trailer(&bytes, ObjectKind::Segment).map_err(damaged)?;
            if trailer.object_len == bytes.len() as u64 {
                // Nearly always there is all of it: then its own word on whose it is, and for whom, is there too.
                check_preamble(&bytes, ObjectKind::Segment, Some(self.cluster)).map_err(damaged)?;
            }
            match index_of(&bytes, ObjectKind::Segment).map_err(damaged)? {
                IndexOrMore::NeedSuffix(n) if n > len => len = n,
                IndexOrMore::NeedSuffix(_) => {
                    return Err(OpenError::Unusable(format!("{key}: cut short")));
                }
                IndexOrMore::Index(index) => {
                    let index = decode_index(index).map_err(damaged)?;
                    if (index.header.incarnation, index.header.seq) != (stream, seq) {
                        let (s, n) = (index.header.incarnation, index.header.seq);
                        return Err(OpenError::Unusable(format!(
                            "{key}: is segment {n} of stream {s}"
                        )));
                    }
                    return Ok(At::Segment(index));
                }
            }
        }
    }

    /// Repeats a read while the store fails: one 503 must not end a recovery.
    async fn patiently<T, E: std::fmt::Display, F>(&self, mut read: impl FnMut() -> F) -> Result<T, OpenError>
    where
        F: Future<Output = Result<T, E>>,
    {
        let started = Instant::now();
        let mut failures = 0;
        let mut wait = READ_TIMEOUT_MIN;
        loop {
            let Ok(read) = tokio::time::timeout(wait, read()).await else {
                // An answer that is lost must not hold up a takeover; one that is slow gets more time.
                wait = (wait * 2).min(READ_TIMEOUT_MAX);
                if started.elapsed() < PATIENCE {
                    continue;
                }
                return Err(OpenError::Unusable(format!("{}: no answer", self.store.display)));
            };
            match read {
                Ok(found) => return Ok(found),
                Err(e) if started.elapsed() < PATIENCE => {
                    failures += 1;
                    tracing::warn!(error = %e, failures, "a read failed during recovery; trying again");
                    tokio::time::sleep(self.store.limits.backoff(failures, self.store.random_unit())).await;
                }
                Err(e) => return Err(OpenError::Unusable(format!("{}: {e}", self.store.display))),
            }
        }
    }
}
