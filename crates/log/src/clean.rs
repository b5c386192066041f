//! Deletes what nobody needs any more: segments below the floor and old checkpoints of this broker's stream, all but
//! the seal and the head of streams that have left the manifest, merged objects and files of history that [`crate::garbage`]
//! finds no reference to, and old copies of the manifest.
//!
//! Nothing is deleted by age, nor because nobody seems to need it, but only by facts that never change back: a floor
//! and a checkpoint that a *durable* head names, a stream that was in the manifest and is not any more (its
//! incarnation is given, and it is not listed), a file that no log refers to. A broker that lost its stream deletes
//! nothing: the seal that it met may be a void one. Seals of streams stay for ever, so that a write of a stalled broker
//! can never land there.
//!
//! Keys are found by listing, so what a crash left, or a stalled writer created late, goes as well. A listing that is
//! out of date only leaves something for the next one. Everything waits for `log.segment.delete.delay.ms`, so that
//! whoever planned a read a moment ago finds what it looks for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::checkpointer::Durable;
use crate::entry::Level;
use crate::format::segment::{HEAD_LEN, read_header};
use crate::garbage::{Collector, Rounds, Void, old_copies};
use crate::head::Head;
use crate::keys::{self, InStream};
use crate::manifest::Manifest;
use crate::manifest::keeper::ManifestKeeper;
use crate::store::conditional;
use crate::store::reason_of;
use crate::stream::Stream;
use crate::{Incarnation, Seq};

/// How long what nobody needs any more stays, where that can be changed while the log is open.
pub trait DeleteDelay: fmt::Debug + Send + Sync + 'static {
    /// `None`: as the log was opened with. It is asked again after each change of the manifest.
    fn delete_delay(&self) -> Option<Duration>;
}

/// The delay that holds whenever it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Delay {
    fixed: Duration,
    set: Option<Arc<dyn DeleteDelay>>,
}

impl Delay {
    pub(crate) fn new(fixed: Duration, set: Option<Arc<dyn DeleteDelay>>) -> Delay {
        Delay { fixed, set }
    }

    pub(crate) fn now(&self) -> Duration {
        let set = self.set.as_ref().and_then(|set| set.delete_delay());
        set.unwrap_or(self.fixed)
    }
}

impl From<Duration> for Delay {
    fn from(fixed: Duration) -> Delay {
        Delay::new(fixed, None)
    }
}

/// Objects that are deleted between two looks at whether this broker still may.
const BATCH: usize = 1_000;
/// The own stream is not listed more often.
const OWN_PAUSE: Duration = Duration::from_secs(10);
/// All streams are listed this long after a start, and then once in this time.
const FIRST_SWEEP: Duration = Duration::from_secs(120);
const SWEEP: Duration = Duration::from_secs(3600);
/// A larger object of a stream is no seal.
pub(crate) const SEAL_BYTES_MAX: u64 = 4 << 10;
/// Numbered copies of the manifest that are kept, the newest ones.
pub(crate) const COPIES_KEPT: usize = 1_000;
/// Headers that are read at once, to tell a seal from data.
const HEADERS_AT_ONCE: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Cleaner {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    delay: Delay,
    /// How often files are looked for that nobody refers to.
    garbage_interval: Duration,
}

/// Why something was left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotCleaned {
    /// A request failed; what is left is found again.
    #[error("{0}")]
    Store(String),
    /// What stands there cannot be read, so it may be needed.
    #[error("{0}")]
    Unreadable(String),
    /// This broker has lost its stream.
    #[error("this broker was taken over")]
    Fenced,
}

/// Whether a stream was there and has left the table, which it never enters again. One that is not in the table only
/// because the manifest was restored from an older copy has left nothing.
pub(crate) fn is_drained(manifest: &Manifest, incarnation: Incarnation) -> bool {
    let restored = manifest.restored.as_ref();
    incarnation < manifest.next_incarnation
        && !manifest.streams.contains_key(&incarnation)
        && !restored.is_some_and(|r| r.unknown_streams.contains(&incarnation))
}

/// Whether an object of the own stream is needed by nobody, by what a durable head says.
fn is_passed(what: InStream, durable: &Durable) -> bool {
    match what {
        InStream::Segment(seq) => seq < durable.floor,
        // One of the same position may be on its way to be named by the next head.
        InStream::Checkpoint(next) => durable.checkpoint_next.is_some_and(|named| next < named),
        InStream::Other => false,
    }
}

impl Cleaner {
    pub(crate) fn new(
        stream: Arc<Stream>,
        keeper: Arc<ManifestKeeper>,
        delay: impl Into<Delay>,
        garbage_interval: Duration,
    ) -> Cleaner {
        Cleaner {
            stream,
            keeper,
            delay: delay.into(),
            garbage_interval,
        }
    }

    /// Runs until the task is aborted or the stream is lost.
    pub(crate) async fn run(self: Arc<Cleaner>, mut heads: watch::Receiver<Arc<Durable>>) {
        let mut manifests = self.keeper.subscribe();
        let mut due = Due::new(Instant::now(), self.delay.now());
        let random = || self.stream.store.random_unit();
        let mut rounds = Rounds::new(self.garbage_interval, Instant::now(), random());
        let (stream, keeper) = (self.stream.clone(), self.keeper.clone());
        let mut garbage = Collector::new(stream, keeper, self.delay.clone());
        let manifest = self.keeper.current();
        let mut listed: BTreeSet<Incarnation> = manifest.streams.keys().copied().collect();
        let mut to_come = manifest.next_incarnation;
        let mut was_first = false;
        loop {
            let next = [due.next(self.delay.now()), rounds.next()]
                .into_iter()
                .chain(garbage.next());
            let next = next.min().unwrap_or_else(Instant::now);
            tokio::select! {
                changed = heads.changed() => if changed.is_err() { return },
                changed = manifests.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next) => {}
            }
            if self.stream.is_fenced() {
                return;
            }
            let (now, manifest) = (Instant::now(), self.keeper.current());
            due.head(heads.borrow_and_update().clone(), now);
            manifests.mark_unchanged();
            // One broker is enough for what belongs to nobody.
            let first = manifest.controller().map(|(i, _)| i) == Some(self.stream.incarnation);
            if first && !was_first {
                // Whoever was it before may not have come to the end.
                due.sweep_soon(now);
            }
            was_first = first;
            // Some may have come and gone since the last look, which can be long ago where deleting takes long.
            let came = to_come..manifest.next_incarnation;
            let known = listed.iter().copied().chain(came);
            for gone in known.filter(|i| !manifest.streams.contains_key(i)) {
                due.drained(gone, now);
            }
            to_come = to_come.max(manifest.next_incarnation);
            listed = manifest.streams.keys().copied().collect();
            for task in due.take(now, self.delay.now()) {
                let done = match &task {
                    Task::Own(durable) => self.clean_own(durable).await,
                    Task::Stream(incarnation) if first => self.clean_stream(*incarnation).await,
                    Task::Sweep if first => self.sweep_all().await,
                    Task::Stream(_) | Task::Sweep => Ok(0),
                };
                match done {
                    Ok(0) => {}
                    Ok(objects) => tracing::debug!(objects, "deleted what nobody needs"),
                    Err(NotCleaned::Fenced) => return,
                    Err(why) => {
                        tracing::warn!(%why, "something could not be deleted; it is found again later");
                        // Not only by the next look at all streams, which may be an hour away.
                        match task {
                            Task::Stream(incarnation) => due.drained(incarnation, now + OWN_PAUSE),
                            Task::Sweep => due.sweep_soon(now),
                            Task::Own(_) => {}
                        }
                    }
                }
            }
            if let Some(scope) = rounds.take(now, first, random()) {
                match garbage.round(scope).await {
                    Ok(objects) if objects > 0 => tracing::debug!(objects, "found what nobody refers to"),
                    Ok(_) => {}
                    Err(Void::Fenced) => return,
                    Err(why @ (Void::Changed | Void::Uncovered(_))) => {
                        tracing::debug!(%why, "what nobody refers to could not be found out; trying again later");
                    }
                    Err(why @ Void::Unread(_)) => {
                        tracing::warn!(%why, "what nobody refers to could not be found out; trying again later");
                    }
                }
            }
            if self.delete_doomed(&mut garbage).await == Err(NotCleaned::Fenced) {
                return;
            }
        }
    }

    /// Deletes what a durable head of this broker's stream has passed. Returns how many objects.
    pub(crate) async fn clean_own(&self, durable: &Durable) -> Result<u64, NotCleaned> {
        let own = self.stream.incarnation;
        let store = &self.stream.store;
        let listing = store.bulk.list(Some(&store.key(&keys::stream(own))));
        let passed = listing.map_err(listing_failed).try_filter_map(|meta| async {
            let what = self.relative(&meta).and_then(keys::parse_in_stream);
            let passed = what.is_some_and(|(stream, what)| stream == own && is_passed(what, durable));
            Ok(passed.then_some(meta))
        });
        self.delete(passed.boxed()).await
    }

    /// Deletes everything of a stream that has left the manifest's table, but its seal and its head.
    pub(crate) async fn clean_stream(&self, incarnation: Incarnation) -> Result<u64, NotCleaned> {
        if !is_drained(&self.keeper.current(), incarnation) {
            return Ok(0);
        }
        let store = &self.stream.store;
        let key = store.key(&keys::head(incarnation));
        let head = conditional::read(store, &key).await;
        let floor = match head.map_err(|e| NotCleaned::Store(e.to_string()))? {
            None => 0,
            Some(found) => {
                let head = Head::decode(&found.bytes, self.stream.cluster, incarnation);
                head.map_err(|e| NotCleaned::Unreadable(format!("{key}: {e}")))?
                    .floor
            }
        };
        let listing = store.bulk.list(Some(&store.key(&keys::stream(incarnation))));
        let judged = listing.map_err(listing_failed).map_ok(|meta| async move {
            let what = self.relative(&meta).and_then(keys::parse_in_stream);
            let garbage = match what.filter(|(stream, _)| *stream == incarnation) {
                Some((_, InStream::Segment(seq))) => seq < floor || !self.may_be_seal(&meta).await?,
                Some((_, InStream::Checkpoint(_))) => true,
                Some((_, InStream::Other)) | None => false,
            };
            Ok(garbage.then_some(meta))
        });
        let garbage = judged
            .try_buffered(HEADERS_AT_ONCE)
            .try_filter_map(|found| async { Ok(found) });
        self.delete(garbage.boxed()).await
    }

    /// Looks for everything that others left, but for files, which have their own rounds.
    async fn sweep_all(&self) -> Result<u64, NotCleaned> {
        Ok(self.sweep().await? + self.clean_copies(COPIES_KEPT).await?)
    }

    /// Looks through all streams for what others left.
    pub(crate) async fn sweep(&self) -> Result<u64, NotCleaned> {
        let manifest = self.keeper.current();
        let store = &self.stream.store;
        // Per drained stream: whether there is more than its seal.
        let mut found: BTreeMap<Incarnation, (u64, bool)> = BTreeMap::new();
        let mut listing = store.bulk.list(Some(&store.key(keys::STREAMS)));
        while let Some(meta) = listing.try_next().await.map_err(listing_failed)? {
            let Some((stream, what)) = self.relative(&meta).and_then(keys::parse_in_stream) else {
                continue;
            };
            if is_drained(&manifest, stream) {
                let (segments, checkpoints) = found.entry(stream).or_default();
                match what {
                    InStream::Segment(_) => *segments += 1,
                    InStream::Checkpoint(_) => *checkpoints = true,
                    InStream::Other => {}
                }
            }
        }
        let mut deleted = 0;
        for (stream, (segments, checkpoints)) in found {
            if segments > 1 || checkpoints {
                deleted += self.clean_stream(stream).await?;
            }
        }
        Ok(deleted)
    }

    /// Deletes files that nobody has referred to for long enough.
    pub(crate) async fn delete_doomed(&self, garbage: &mut Collector) -> Result<u64, NotCleaned> {
        let doomed = garbage.doomed(Instant::now());
        if doomed.is_empty() {
            return Ok(0);
        }
        let found = stream::iter(doomed.iter().cloned().map(Ok)).boxed();
        let deleted = self.delete(found).await;
        garbage.tried(&doomed, deleted.is_ok(), Instant::now());
        match &deleted {
            Ok(objects) => tracing::debug!(objects, "deleted what nobody refers to"),
            Err(NotCleaned::Fenced) => {}
            Err(why) => tracing::warn!(%why, "something could not be deleted; trying again later"),
        }
        deleted
    }

    /// Deletes numbered copies of the manifest but for the newest `kept`.
    pub(crate) async fn clean_copies(&self, kept: usize) -> Result<u64, NotCleaned> {
        let store = &self.stream.store;
        let listing = store.bulk.list(Some(&store.key(keys::HISTORY)));
        let copies: Vec<ObjectMeta> = listing.map_err(listing_failed).try_collect().await?;
        let version = |meta: ObjectMeta| Some((keys::copied_version(meta.location.filename()?)?, meta));
        let copies: Vec<(u64, ObjectMeta)> = copies.into_iter().filter_map(version).collect();
        let versions: Vec<u64> = copies.iter().map(|(version, _)| *version).collect();
        let old = old_copies(&versions, kept).filter_map(|at| copies.get(at));
        let old: Vec<_> = old.map(|(_, meta)| Ok(meta.clone())).collect();
        self.delete(stream::iter(old).boxed()).await
    }

    fn relative<'a>(&self, meta: &'a ObjectMeta) -> Option<&'a str> {
        self.stream.store.relative(&meta.location)
    }

    /// Whether an object is a seal, or cannot be told from one.
    async fn may_be_seal(&self, meta: &ObjectMeta) -> Result<bool, NotCleaned> {
        if meta.size > SEAL_BYTES_MAX {
            return Ok(false);
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(0..HEAD_LEN)),
            ..GetOptions::default()
        };
        let store = &self.stream.store;
        let got = async { store.bulk.get_opts(&meta.location, options).await?.bytes().await };
        match got.await {
            Ok(start) => Ok(match read_header(&start, Some(self.stream.cluster)) {
                Ok(header) => header.seal.is_some(),
                Err(why) => {
                    tracing::warn!(key = %meta.location, %why, "an object of a drained stream is not readable; it stays");
                    true
                }
            }),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(e) => Err(NotCleaned::Store(reason_of(&e))),
        }
    }

    async fn delete(
        &self,
        garbage: stream::BoxStream<'_, Result<ObjectMeta, NotCleaned>>,
    ) -> Result<u64, NotCleaned> {
        let mut deleted = 0;
        let mut batches = garbage.try_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            // What was found before something failed goes with the next look.
            let batch = batch.map_err(|e| e.1)?;
            if self.stream.is_fenced() {
                return Err(NotCleaned::Fenced);
            }
            let keys: Vec<_> = batch.iter().map(|meta| Ok(meta.location.clone())).collect();
            let mut answers = self.stream.store.bulk.delete_stream(stream::iter(keys).boxed());
            let sizes: HashMap<&Path, u64> = batch.iter().map(|m| (&m.location, m.size)).collect();
            let mut failed = None;
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(key) => {
                        deleted += 1;
                        let kind = kind_of(self.stream.store.relative(&key).unwrap_or_default());
                        let bytes = sizes.get(&key).copied().unwrap_or(0);
                        self.stream.metrics.count_deleted(kind, bytes);
                        if kind == "archive" {
                            self.stream.blocks.history.forget_file(&key).await;
                        }
                    }
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => failed = Some(NotCleaned::Store(reason_of(&e))),
                }
            }
            failed.map_or(Ok(()), Err)?;
        }
        Ok(deleted)
    }
}

/// What an object is, as a label.
fn kind_of(key: &str) -> &'static str {
    match (keys::parse_in_stream(key), keys::parse_file(key)) {
        (Some((_, InStream::Checkpoint(_))), _) => "checkpoint",
        (_, Some(file)) if file.level == Level::L1 => "merged",
        (_, Some(_)) => "archive",
        _ if key.starts_with(keys::HISTORY) => "manifest_copy",
        _ => "segment",
    }
}

fn listing_failed(e: object_store::Error) -> NotCleaned {
    NotCleaned::Store(reason_of(&e))
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    Own(Arc<Durable>),
    Stream(Incarnation),
    Sweep,
}

/// What is to be done when: the pure part.
#[derive(Debug)]
struct Due {
    /// With the time since when each is durable.
    heads: VecDeque<(Instant, Arc<Durable>)>,
    /// Floor and checkpoint of the newest of them, also if it is taken.
    newest: (Seq, Option<Seq>),
    /// The own stream is not looked at before.
    own_from: Instant,
    /// With the time since when each has left.
    drained: VecDeque<(Instant, Incarnation)>,
    sweep: Instant,
}

impl Due {
    fn new(now: Instant, delay: Duration) -> Due {
        Due {
            heads: VecDeque::new(),
            newest: (0, None),
            own_from: now,
            drained: VecDeque::new(),
            sweep: now + FIRST_SWEEP.max(delay),
        }
    }

    /// A head is durable.
    fn head(&mut self, durable: Arc<Durable>, now: Instant) {
        let says = (durable.floor, durable.checkpoint_next);
        if says != self.newest {
            self.newest = says;
            self.heads.push_back((now, durable));
        }
    }

    /// A stream has left the manifest.
    fn drained(&mut self, incarnation: Incarnation, now: Instant) {
        self.drained.push_back((now, incarnation));
    }

    /// All streams are to be looked at before long.
    fn sweep_soon(&mut self, now: Instant) {
        self.sweep = self.sweep.min(now + FIRST_SWEEP);
    }

    /// When there is something to do.
    fn next(&self, delay: Duration) -> Instant {
        let own = self.heads.front();
        let own = own.map(|(since, _)| (*since + delay).max(self.own_from));
        let drained = self.drained.front().map(|(since, _)| *since + delay);
        let first = [own, drained].into_iter().flatten().min();
        first.map_or(self.sweep, |first| first.min(self.sweep))
    }

    /// What is to be done now. Of several heads the newest counts.
    fn take(&mut self, now: Instant, delay: Duration) -> Vec<Task> {
        let mut tasks = vec![];
        if now >= self.own_from {
            let ripe = self.heads.iter().take_while(|(since, _)| *since + delay <= now);
            let ripe = ripe.count();
            if let Some((_, newest)) = self.heads.drain(..ripe).next_back() {
                tasks.push(Task::Own(newest));
                self.own_from = now + OWN_PAUSE;
            }
        }
        while let Some((_, stream)) = self.drained.pop_front_if(|(since, _)| *since + delay <= now) {
            tasks.push(Task::Stream(stream));
        }
        if self.sweep <= now {
            tasks.push(Task::Sweep);
            self.sweep = now + SWEEP;
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(floor: Seq, next: Seq) -> Arc<Durable> {
        Arc::new(Durable {
            floor,
            checkpoint_next: Some(next),
            covered: vec![],
        })
    }

    #[test]
    fn only_what_a_durable_head_has_passed_goes() {
        let d = durable(5, 9);
        let passed: Vec<Seq> = (0..9)
            .filter(|seq| is_passed(InStream::Segment(*seq), &d))
            .collect();
        assert_eq!(passed, [0, 1, 2, 3, 4]);
        assert!(is_passed(InStream::Checkpoint(8), &d));
        assert!(!is_passed(InStream::Checkpoint(9), &d) && !is_passed(InStream::Checkpoint(10), &d));
        assert!(!is_passed(InStream::Other, &d), "the head stays");
        let nothing = Durable::default();
        assert!(!is_passed(InStream::Segment(0), &nothing) && !is_passed(InStream::Checkpoint(0), &nothing));
    }

    #[test]
    fn a_stream_is_drained_when_it_was_there_and_is_gone() {
        let mut m = Manifest::new(uuid::Uuid::nil(), uuid::Uuid::nil(), 4);
        let i = m.register(1, None, BTreeMap::new());
        assert!(!is_drained(&m, i) && !is_drained(&m, i + 1));
        m.streams.remove(&i);
        assert!(is_drained(&m, i) && !is_drained(&m, i + 1));
        m.restored = Some(crate::manifest::Restored {
            from_version: 1,
            commit_id: uuid::Uuid::nil(),
            unknown_streams: BTreeSet::from([i]),
        });
        assert!(!is_drained(&m, i), "the copy did not know it");
    }

    #[tokio::test(start_paused = true)]
    async fn everything_waits_for_the_delay_and_the_newest_head_counts() {
        let delay = Duration::from_secs(60);
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let mut due = Due::new(t0, delay);
        assert_eq!(due.next(delay), at(120), "the first sweep");
        due.head(durable(0, 0), t0);
        due.head(durable(4, 7), at(1));
        due.head(durable(4, 7), at(2));
        due.head(durable(6, 9), at(30));
        due.drained(3, at(8));
        assert_eq!((due.next(delay), due.take(at(59), delay)), (at(60), vec![]));
        assert_eq!(
            due.take(at(62), delay),
            [Task::Own(durable(4, 7))],
            "and not yet the younger one"
        );
        due.head(durable(6, 9), at(63));
        assert_eq!(due.take(at(68), delay), [Task::Stream(3)]);
        assert_eq!(due.next(delay), at(90));
        due.head(durable(7, 9), at(31));
        assert_eq!(due.take(at(91), delay), [Task::Own(durable(7, 9))]);
        due.head(durable(8, 9), at(32));
        assert_eq!(due.next(delay), at(101), "not without a pause");
        assert_eq!(due.take(at(95), delay), []);
        assert_eq!(due.take(at(120), delay), [Task::Own(durable(8, 9)), Task::Sweep]);
        assert_eq!(due.next(delay), at(120 + 3600));
        due.sweep_soon(at(200));
        assert_eq!(due.next(delay), at(320));
        due.sweep_soon(at(300));
        assert_eq!(due.take(at(320), delay), [Task::Sweep], "the sooner counts");
    }
    #[tokio::test(start_paused = true)]
    async fn a_delay_that_changes_holds_for_what_waits_already() {
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let [long, short] = [3600, 10].map(Duration::from_secs);
        let mut due = Due::new(t0, long);
        due.head(durable(4, 7), at(1));
        due.drained(3, at(5));
        assert_eq!((due.next(long), due.take(at(20), long)), (at(3600), vec![]));
        assert_eq!(due.next(short), at(11));
        let both = [Task::Own(durable(4, 7)), Task::Stream(3)];
        assert_eq!(due.take(at(20), short), both);
        due.drained(4, at(30));
        assert_eq!(due.take(at(41), long), [], "and a longer one as well");
    }
}
