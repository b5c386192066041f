//! Finds merged objects and files of history that nobody refers to any more, and says when they may be deleted.
//!
//! # Why what is deleted is not needed
//!
//! **Who points to what.** A pointer to a file of broker start *w* is an entry of the stream of *w*, and of no other.
//! A slot's log is a chain of entries, through one stream after the other; its state at any place of the chain names
//! some files, and going on along the chain adds names only by entries. So if the state of a slot at *some* place of its
//! chain does not name a file of *w*, and no pointer to that file stands further on, then no later state names it
//! either: being *unreferenced* never changes back. This is what a round proves for every slot, and why it does not
//! matter that the slots are looked at one after the other, or that an older checkpoint is looked at than the newest.
//!
//! **One round.**
//! 1. *Numbers first.* A broker asks only about its own files, and of those only about numbers that are settled
//!    ([`FileNumbers`]): all pointers to them that will ever be published are published, and applied in memory. A file
//!    that is being written, or whose pointers are under way, is not asked about. Files of a stream that has left the
//!    manifest ([`crate::clean::is_drained`]) are asked about by one broker, the controller: no log goes through such a stream, so
//!    each slot's owner has a newer epoch than any of its entries, and what a stalled writer adds there is part of no
//!    log. Nobody asks about files of a stream that others still go through. (A stream that the manifest says is sealed
//!    would do, since it gets no further pointer either; one that has left it needs no second thought.)
//! 2. *The manifest*, read from the store: version v.
//! 3. *Claims*: for every slot one state of its chain, as its owner in v has it in the epoch of v. Of a broker's own
//!    slots that is what is published in memory; of others the checkpoint that their head names. In that epoch all earlier
//!    streams are behind the state, so every pointer by *w* from when it had the slot is in it; and what the owner
//!    adds are pointers to the owner's files. Links do not matter for a slot that is seen so: they are there for data in
//!    segments, or not dropped yet. A slot that is in no such state is *uncovered*: if it is in its first epoch and has
//!    no links, nobody had it before and it holds nothing but its owner's files; otherwise it may refer to anything, and
//!    the round is void. So is one in which anything could not be read.
//! 4. *The manifest again*: only if it is still v did all of these brokers own their slots while they were asked. Else
//!    one could be asked before it got a slot, and the other after it gave it away.
//! 5. What nobody claims is unreferenced. It is deleted after `log.segment.delete.delay.ms`, so that a read that was
//!    planned before finds it. No further look is needed then, but one: a broker that has lost its stream deletes
//!    nothing, because a seal that it met may be a void one, and the pointers that failed there may be in the log of its
//!    heir. (Their numbers are not settled, so they were not even asked about.)
//!
//! **What was tried against it.**
//! * *A stalled merge or archive writes after the round:* its file was not listed, or is listed later; nothing points
//!   to it, and a later round finds it. If the same bytes land a second time after their deletion, the same.
//! * *Recovery from an old checkpoint* replays entries that name deleted files: it compares offsets, reads none of the
//!   files, and the entry that dropped them follows.
//! * *A to B to A:* each grant has a new epoch, and a state of another epoch covers nothing.
//! * *A takeover under way:* the seal is set and v does not say so. The states that were read lie before the seal or are
//!   the log's end; the heirs go on from there.
//! * *Topics:* partitions of deleted topics leave the images; a checkpoint that still has them claims more than it
//!   must. A partition that is younger than a checkpoint holds nothing older than it.
//! * *A manifest restored from a copy:* streams that it did not know never count as drained.
//! * *The controller dies half way:* what is remembered of a round is lost with it, and found again.

mod claims;
mod numbers;
mod rounds;
#[cfg(test)]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use hashbrown::HashSet;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use tokio::time::Instant;

use crate::clean::Delay;
use crate::entry::Place;
use crate::format::checkpoint;
use crate::head::{CheckpointRef, Head};
use crate::manifest::Manifest;
use crate::manifest::keeper::ManifestKeeper;
use crate::partition::Partition;
use crate::store::conditional;
use crate::store::reason_of;
use crate::stream::Stream;
use crate::{Incarnation, Slot, keys};
pub(crate) use claims::{Claimed, Claims, Judge, Uncovered, files_of};
pub(crate) use numbers::{FileNumber, FileNumbers};
pub(crate) use rounds::{Rounds, Scope};

/// Heads and checkpoints of other brokers that are read at once.
const READS_AT_ONCE: usize = 4;
/// A checkpoint that is not where its head says is looked for again so often: its owner goes on meanwhile.
const LOOKS: usize = 3;
/// What could not be deleted is tried again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// Partitions that are looked at between two points at which others may go on.
const PARTITIONS_AT_ONCE: usize = 500;

/// Why a round found out nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Void {
    /// Ownership changed meanwhile.
    #[error("the manifest changed meanwhile")]
    Changed,
    /// A slot's log could not be seen.
    #[error(transparent)]
    Uncovered(#[from] Uncovered),
    /// Something cannot be read, so it may refer to anything.
    #[error("{0}")]
    Unread(String),
    /// This broker has lost its stream.
    #[error("this broker was taken over")]
    Fenced,
}

impl Void {
    /// As a label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Void::Changed => "manifest_changed",
            Void::Uncovered(_) => "slot_uncovered",
            Void::Unread(_) => "unreadable",
            Void::Fenced => "fenced",
        }
    }
}

/// What a checkpoint of another broker says.
#[derive(Debug, Default)]
struct Saved {
    named: Option<CheckpointRef>,
    slots: Vec<(Slot, i32)>,
    files: Vec<Place>,
}

/// A file that nobody refers to.
#[derive(Clone, Debug)]
struct Waiting {
    /// When it was found.
    since: Instant,
    /// It could not be deleted, and is left until then.
    again: Option<Instant>,
    meta: ObjectMeta,
}

impl Waiting {
    fn new(since: Instant, meta: ObjectMeta) -> Waiting {
        Waiting {
            since,
            again: None,
            meta,
        }
    }

    /// When it may be deleted.
    fn at(&self, delay: Duration) -> Instant {
        let at = self.since + delay;
        self.again.map_or(at, |again| again.max(at))
    }
}

/// Finds garbage for one open log.
#[derive(Debug)]
pub(crate) struct Collector {
    stream: Arc<Stream>,
    keeper: Arc<ManifestKeeper>,
    delay: Delay,
    /// Newest checkpoints of others, as they were read last.
    saved: BTreeMap<Incarnation, Arc<Saved>>,
    /// What a round has found, until it is deleted.
    waiting: BTreeMap<Path, Waiting>,
}

impl Collector {
    pub(crate) fn new(
        stream: Arc<Stream>,
        keeper: Arc<ManifestKeeper>,
        delay: impl Into<Delay>,
    ) -> Collector {
        Collector {
            stream,
            keeper,
            delay: delay.into(),
            saved: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// One round. Returns how many files nobody refers to that were not known before.
    pub(crate) async fn round(&mut self, scope: Scope) -> Result<usize, Void> {
        let found = self.find(scope).await;
        let metrics = &self.stream.metrics;
        metrics.garbage_round(found.as_ref().map_or_else(Void::reason, |_| "done"));
        let found = found?;
        let now = Instant::now();
        let before = self.waiting.len();
        for meta in found {
            let known = self.waiting.entry(meta.location.clone());
            known.or_insert_with(|| Waiting::new(now, meta));
        }
        self.measure();
        Ok(self.waiting.len() - before)
    }

    async fn find(&mut self, scope: Scope) -> Result<Vec<ObjectMeta>, Void> {
        let own = self.stream.incarnation;
        let judge = Judge {
            own,
            merged_below: self.stream.merged_numbers.settled_below(),
            archived_below: self.stream.archived_numbers.settled_below(),
            drained: scope.drained,
        };
        let mut listed = self.list(scope, &judge).await?;
        // What this broker refers to itself needs no look at anybody else, and most often that is all.
        self.leave_out_own(&mut listed).await;
        if listed.is_empty() {
            return Ok(vec![]);
        }
        let manifest = self.look().await?;
        let mut claims = Claims::new(&manifest);
        self.claim_own(&mut claims).await;
        self.claim_others(&manifest, &mut claims).await?;
        let claimed = claims.finish()?;
        if self.look().await?.version != manifest.version {
            return Err(Void::Changed);
        }
        let unclaimed = listed
            .into_iter()
            .filter(|(file, _)| judge.may_judge(&manifest, *file) && !claimed.contains(file));
        let unclaimed: Vec<ObjectMeta> = unclaimed.map(|(_, meta)| meta).collect();
        self.check_waiting(&claimed);
        Ok(unclaimed)
    }

    /// The manifest as it is in the store now, in which this broker is live.
    async fn look(&self) -> Result<Arc<Manifest>, Void> {
        let refreshed = self.keeper.refresh().await;
        refreshed.map_err(|e| Void::Unread(e.to_string()))?;
        let manifest = self.keeper.current();
        match manifest.is_live(self.stream.incarnation) && !self.stream.is_fenced() {
            true => Ok(manifest),
            false => Err(Void::Fenced),
        }
    }

    /// Files that may be judged now.
    async fn list(&self, scope: Scope, judge: &Judge) -> Result<Vec<(Place, ObjectMeta)>, Void> {
        let own = keys::merged_folder(judge.own);
        let merged = if scope.drained { keys::MERGED } else { own.as_str() };
        let mut folders = vec![merged];
        if scope.archive {
            folders.push(keys::ARCHIVE);
        }
        let manifest = self.keeper.current();
        let store = &self.stream.store;
        let mut files = vec![];
        for folder in folders {
            let mut listing = store.bulk.list(Some(&store.key(folder)));
            while let Some(meta) = listing
                .try_next()
                .await
                .map_err(|e| Void::Unread(format!("listing {folder}: {}", reason_of(&e))))?
            {
                let file = store.relative(&meta.location).and_then(keys::parse_file);
                // Seen before it is judged: a stream that drains in between is for the next round.
                if let Some(file) = file.filter(|file| judge.may_judge(&manifest, *file)) {
                    files.push((file, meta));
                }
            }
        }
        Ok(files)
    }

    async fn leave_out_own(&self, files: &mut Vec<(Place, ObjectMeta)>) {
        if files.is_empty() {
            return;
        }
        let partitions = self.stream.partitions.read().values().cloned().collect();
        let mut claimed = Claimed::new();
        each_image(partitions, |file| {
            claimed.insert(file);
        })
        .await;
        files.retain(|(file, _)| !claimed.contains(file));
    }

    /// What is published of the own slots.
    async fn claim_own(&self, claims: &mut Claims<'_>) {
        let (slots, partitions) = {
            // Under both locks, so that what is led of a slot is all that there is of it.
            let partitions = self.stream.partitions.read();
            let owned = self.stream.owned.lock();
            let held = owned.iter().filter(|(_, o)| o.is_covered());
            let slots: Vec<(Slot, i32)> = held.map(|(slot, o)| (*slot, o.epoch)).collect();
            (slots, partitions.values().cloned().collect())
        };
        claims.cover(self.stream.incarnation, slots);
        each_image(partitions, |file| claims.claim([file])).await;
    }

    /// What the checkpoints of the other live brokers say.
    async fn claim_others(&mut self, manifest: &Manifest, claims: &mut Claims<'_>) -> Result<(), Void> {
        let own = self.stream.incarnation;
        self.saved.retain(|stream, _| manifest.is_live(*stream));
        let others = manifest.live().map(|(stream, _)| stream).filter(|i| *i != own);
        let known: Vec<(Incarnation, Option<Arc<Saved>>)> =
            others.map(|i| (i, self.saved.get(&i).cloned())).collect();
        let this = &*self;
        let read: Vec<(Incarnation, Arc<Saved>)> = stream::iter(known)
            .map(|(stream, known)| async move { Ok::<_, Void>((stream, this.newest(stream, known).await?)) })
            .buffer_unordered(READS_AT_ONCE)
            .try_collect()
            .await?;
        for (stream, saved) in read {
            claims.cover(stream, saved.slots.iter().copied());
            claims.claim(saved.files.iter().copied());
            self.saved.insert(stream, saved);
        }
        Ok(())
    }

    /// What the checkpoint says that the head of a stream names; `known` if it is still that one.
    async fn newest(&self, of: Incarnation, known: Option<Arc<Saved>>) -> Result<Arc<Saved>, Void> {
        let (store, cluster) = (&self.stream.store, self.stream.cluster);
        let key = store.key(&keys::head(of));
        for _ in 0..LOOKS {
            let found = conditional::read(store, &key).await;
            let Some(found) = found.map_err(|e| Void::Unread(e.to_string()))? else {
                // Not written yet.
                return Ok(Arc::default());
            };
            let head = Head::decode(&found.bytes, cluster, of);
            let head = head.map_err(|e| Void::Unread(format!("{key}: {e}")))?;
            let Some(named) = head.checkpoint else {
                return Ok(Arc::default());
            };
            if let Some(known) = known.as_ref().filter(|k| k.named.as_ref() == Some(&named)) {
                return Ok(known.clone());
            }
            let key = store.key(&keys::checkpoint(of, named.next, named.nonce));
            let got = async { store.bulk.get(&key).await?.bytes().await };
            let bytes = match got.await {
                Ok(bytes) => bytes,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(e) => return Err(Void::Unread(format!("{key}: {}", reason_of(&e)))),
            };
            let decoded = checkpoint::decode(&bytes, Some(cluster));
            let checkpoint = decoded.map_err(|e| Void::Unread(format!("{key}: {e}")))?;
            if (checkpoint.incarnation, checkpoint.next) != (of, named.next) {
                return Err(Void::Unread(format!(
                    "{key}: holds the state of another position"
                )));
            }
            let images = checkpoint.slots.values().flat_map(|slot| &slot.partitions);
            let files: HashSet<Place> = images.flat_map(|(_, image)| files_of(image)).collect();
            return Ok(Arc::new(Saved {
                named: Some(named),
                slots: checkpoint
                    .slots
                    .iter()
                    .map(|(slot, s)| (*slot, s.epoch))
                    .collect(),
                files: files.into_iter().collect(),
            }));
        }
        Err(Void::Unread(format!(
            "{key} names a checkpoint that is not there"
        )))
    }

    /// What nobody referred to stays so. If not, the rule is broken somewhere, and nothing of it is deleted.
    fn check_waiting(&mut self, claimed: &Claimed) {
        let store = &self.stream.store;
        self.waiting.retain(|key, _| {
            let file = store.relative(key).and_then(keys::parse_file);
            let again = file.is_some_and(|file| claimed.contains(&file));
            if again {
                tracing::error!(%key, "an object that nobody referred to is referred to again; it stays");
            }
            !again
        });
    }

    /// When something may be deleted.
    pub(crate) fn next(&self) -> Option<Instant> {
        let delay = self.delay.now();
        self.waiting.values().map(|w| w.at(delay)).min()
    }

    /// What may be deleted now. It stays remembered until it is gone.
    pub(crate) fn doomed(&self, now: Instant) -> Vec<ObjectMeta> {
        let delay = self.delay.now();
        let waiting = self.waiting.values().filter(|w| w.at(delay) <= now);
        waiting.map(|w| w.meta.clone()).collect()
    }

    /// These are gone, or will be tried again later.
    pub(crate) fn tried(&mut self, tried: &[ObjectMeta], gone: bool, now: Instant) {
        for meta in tried {
            match gone {
                true => drop(self.waiting.remove(&meta.location)),
                false => {
                    if let Some(waiting) = self.waiting.get_mut(&meta.location) {
                        waiting.again = Some(now + AGAIN);
                    }
                }
            }
        }
        self.measure();
    }

    fn measure(&self) {
        let bytes: u64 = self.waiting.values().map(|w| w.meta.size).sum();
        let metrics = &self.stream.metrics;
        metrics.unreferenced_objects.set(self.waiting.len() as i64);
        metrics
            .unreferenced_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// The files that some partitions refer to, neighbours only once.
async fn each_image(partitions: Vec<Arc<Partition>>, mut each: impl FnMut(Place)) {
    for some in partitions.chunks(PARTITIONS_AT_ONCE) {
        for p in some {
            let image = p.published.lock();
            files_of(&image).for_each(&mut each);
        }
        tokio::task::yield_now().await;
    }
}

/// Numbered copies of the manifest that are not among the newest `kept`, as positions in `versions`.
pub(crate) fn old_copies(versions: &[u64], kept: usize) -> impl Iterator<Item = usize> + '_ {
    let mut sorted: Vec<u64> = versions.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let oldest_kept = sorted.get(kept.saturating_sub(1)).copied();
    let old = versions.iter().enumerate();
    old.filter(move |(_, v)| oldest_kept.is_some_and(|oldest| **v < oldest))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
