//! Opening the log: register, seal the predecessors, take their slots in one change, recover, serve.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hashbrown::HashMap;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use uuid::Uuid;

use crate::checkpointer::Checkpointer;
use crate::clock::Clock;
use crate::entry::Entry;
use crate::format::segment::{Seal, SegmentHeader, SegmentIndex, decode_index, encode_seal, read_header};
use crate::format::{IndexOrMore, ObjectKind, SUFFIX_GUESS, checkpoint, index_of};
use crate::head::Head;
use crate::keys;
use crate::log::{Inner, Log, LogOptions, OpenError};
use crate::manifest::Manifest;
use crate::manifest::change::TakeoverRefused;
use crate::manifest::keeper::{ManifestError, ManifestKeeper};
use crate::metrics::LogMetrics;
use crate::partition::Partition;
use crate::read::blocks::Blocks;
use crate::read::tail::TailRing;
use crate::recover::{StreamRead, recover, streams_to_read};
use crate::store::Store;
use crate::store::conditional::{self, CreateOutcome, Patience};
use crate::stream::Stream;
use crate::stream::flush::FlushPolicy;
use crate::takeover::{Found, HeadSeen, Takeover};
use crate::{Incarnation, Seq, Slot, TopicPartition};

/// Segment indexes read at once.
const READ_AHEAD: usize = 32;
/// How long a start keeps trying while the store fails.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the manifest is looked at.
const POLL: Duration = Duration::from_secs(1);

impl Log {
    /// Opens the log of the cluster in `store`, which is created if there is none. This broker start becomes the
    /// owner of every slot: streams of earlier starts are sealed first, and whoever still runs on one of them
    /// finds its next write refused and stops.
    pub async fn open(
        store: Store,
        options: LogOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Log, OpenError> {
        let started = Instant::now();
        let metrics = LogMetrics::register(registry);
        let keeper = Arc::new(ManifestKeeper::open(store.clone()).await.map_err(unusable)?);
        let cluster = keeper.current().cluster_id;
        let reader = Reader {
            store: store.clone(),
            cluster,
        };
        // Streams of another cluster under this manifest: found out before anything is written.
        let present: Vec<Incarnation> = keeper.current().live().map(|(i, _)| i).collect();
        for stream in present {
            reader.head(stream).await?;
        }
        let register = |m: &mut Manifest| {
            let i = m.register(options.node_id, options.rack.clone(), options.endpoints.clone());
            Ok::<_, Infallible>((i, Some(i)))
        };
        let incarnation = keeper.change(register).await.map_err(unusable)?;

        let mut read = BTreeMap::new();
        let proven = loop {
            let proven = Instant::now();
            let before: Vec<Incarnation> = keeper
                .current()
                .live()
                .map(|(i, _)| i)
                .filter(|i| *i < incarnation)
                .collect();
            let mut sealed = vec![];
            for victim in before {
                let by = Taker {
                    incarnation,
                    node_id: options.node_id,
                    now_ms: clock.now_ms(),
                };
                let (seal, stream) = reader.end_stream(victim, &by).await?;
                sealed.push((victim, seal));
                read.insert(victim, stream);
            }
            let take = |m: &mut Manifest| {
                m.take_over(incarnation, &sealed)
                    .map(|()| ((), Some(incarnation)))
            };
            match keeper.change(take).await {
                Ok(()) => break proven,
                Err(ManifestError::Refused(TakeoverRefused::VictimNotLive(_))) => {}
                Err(e) => return Err(unusable(e)),
            }
        };
        let manifest = keeper.current();
        let images = reader.recover(&manifest, incarnation, read).await?;
        let inherited = !images.is_empty();
        let partitions = lead(&manifest, incarnation, images);
        tracing::info!(
            incarnation,
            partitions = partitions.len(),
            seconds = started.elapsed().as_secs_f64(),
            "recovered the log"
        );
        metrics.recovery_seconds.set(started.elapsed().as_secs_f64());

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
            metrics.clone(),
        ));
        let stream = Arc::new(Stream::new(
            store,
            cluster,
            incarnation,
            clock,
            partitions,
            blocks,
            metrics,
            policy,
        ));
        stream.prove(proven);
        let expiration = options.producer_id_expiration;
        let checkpointer = Arc::new(Checkpointer::new(stream.clone(), keeper.clone(), expiration));
        let inner = Arc::new(Inner {
            options,
            keeper,
            checkpointer: checkpointer.clone(),
            stream_task: tokio::sync::Mutex::new(Some(tokio::spawn(stream.clone().run()))),
            next_producer: AtomicI64::new(0),
            background: parking_lot::Mutex::default(),
            stream,
        });
        inner.apply_manifest();
        let tasks = [
            tokio::spawn(checkpointer.run(inherited)),
            tokio::spawn(poll_manifest(Arc::downgrade(&inner))),
        ];
        inner.background.lock().extend(tasks);
        Ok(Log { inner })
    }
}

fn unusable<E: std::fmt::Display>(e: ManifestError<E>) -> OpenError {
    OpenError::Unusable(e.to_string())
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

/// Every partition of the manifest that `incarnation` owns, with what was recovered of it.
fn lead(
    manifest: &Manifest,
    incarnation: Incarnation,
    mut images: HashMap<TopicPartition, crate::partition::image::PartitionImage>,
) -> HashMap<TopicPartition, Arc<Partition>> {
    let mut partitions = HashMap::new();
    for topic in manifest.topics.values() {
        for partition in 0..topic.partitions as i32 {
            let tp = TopicPartition {
                topic: topic.id,
                partition,
            };
            let Some(leader) = manifest.leader(&topic.id, partition) else {
                continue;
            };
            if leader.incarnation == incarnation {
                let image = images.remove(&tp).unwrap_or_default();
                partitions.insert(tp, Arc::new(Partition::new(tp, leader.leader_epoch, image)));
            }
        }
    }
    partitions
}

/// Who seals.
struct Taker {
    incarnation: Incarnation,
    node_id: i32,
    now_ms: i64,
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
    async fn end_stream(&self, victim: Incarnation, by: &Taker) -> Result<(Seq, StreamRead), OpenError> {
        let mut state = Takeover::Begin;
        let mut read = StreamRead::default();
        loop {
            state = match state {
                Takeover::Begin | Takeover::Confirming { .. } => {
                    let head = self.head(victim).await?;
                    let seen = HeadSeen {
                        checkpoint_next: head.first_unread(),
                        floor: head.floor,
                    };
                    let next = state.on(Found::Head(seen));
                    if let Takeover::Probing { .. } = next {
                        // The first time, or the seal was void: all that was read before is out of date.
                        read = StreamRead {
                            checkpoint: self.checkpoint(&head).await?,
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
                Takeover::Sealed { seal } => return Ok((seal, read)),
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

    async fn seal(&self, victim: Incarnation, at: Seq, by: &Taker) -> Result<Found, OpenError> {
        let nonce = Uuid::new_v4();
        let reason = "a newer broker start took over".to_owned();
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
                reason,
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

    /// Reads what `slots` of a new owner need beyond what the takeover has read, and rebuilds them.
    async fn recover(
        &self,
        manifest: &Manifest,
        owner: Incarnation,
        mut read: BTreeMap<Incarnation, StreamRead>,
    ) -> Result<HashMap<TopicPartition, crate::partition::image::PartitionImage>, OpenError> {
        let slots: Vec<Slot> = manifest
            .slots
            .iter()
            .filter(|r| r.owner == owner)
            .flat_map(|r| r.first..r.first + r.count)
            .collect();
        loop {
            let wanted = streams_to_read(manifest, &slots, &read);
            if wanted.is_empty() {
                break;
            }
            for (stream, bound) in wanted {
                read.insert(stream, self.sealed_stream(stream, bound).await?);
            }
        }
        recover(manifest, &slots, &read).map_err(|e| {
            OpenError::Unusable(format!("{}: the log cannot be rebuilt: {e}", self.store.display))
        })
    }

    /// Reads a stream that is sealed at `bound`.
    pub(crate) async fn sealed_stream(
        &self,
        stream: Incarnation,
        bound: Seq,
    ) -> Result<StreamRead, OpenError> {
        let head = self.head(stream).await?;
        let checkpoint = self.checkpoint(&head).await?;
        let mut segments: Vec<(Seq, Vec<Entry>)> = vec![];
        let mut indexes = self.indexes(stream, head.first_unread(), bound);
        while let Some((seq, found)) = indexes.next().await {
            match found? {
                At::Segment(index) => segments.push((seq, index.entries)),
                At::Missing => break,
            }
        }
        Ok(StreamRead { checkpoint, segments })
    }

    pub(crate) async fn head(&self, stream: Incarnation) -> Result<Head, OpenError> {
        let key = self.store.key(&keys::head(stream));
        let found = self.patiently(|| conditional::read(&self.store, &key)).await?;
        let Some(found) = found else {
            return Ok(Head::new(self.cluster, stream, Uuid::nil()));
        };
        Head::decode(&found.bytes, self.cluster, stream)
            .map_err(|e| OpenError::Unusable(format!("{key}: {e}")))
    }

    async fn checkpoint(&self, head: &Head) -> Result<Option<checkpoint::Checkpoint>, OpenError> {
        let Some(named) = &head.checkpoint else {
            return Ok(None);
        };
        let key = self
            .store
            .key(&keys::checkpoint(head.incarnation, named.next, named.nonce));
        let get = || async { self.store.bulk.get(&key).await?.bytes().await };
        let bytes = self.patiently(get).await?;
        let checkpoint = checkpoint::decode(&bytes, Some(self.cluster))
            .map_err(|e| OpenError::Unusable(format!("{key}: {e}")))?;
        if (checkpoint.incarnation, checkpoint.next) != (head.incarnation, named.next) {
            return Err(OpenError::Unusable(format!(
                "{key}: holds the state of another position"
            )));
        }
        Ok(Some(checkpoint))
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
                    Err(e) => Err(e),
                    Ok(got) => got.bytes().await.map(Some),
                }
            };
            let Some(bytes) = self.patiently(suffix).await? else {
                return Ok(At::Missing);
            };
            let damaged = |e| OpenError::Unusable(format!("{key}: {e}"));
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
        loop {
            match read().await {
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
