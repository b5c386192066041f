//! A broker's way to the bucket: an [`ObjectStore`] whose requests take time and fail in all the ways that a real
//! one's do. A request's fate is drawn when it is sent and does not depend on whether its sender still lives: a write
//! whose sender was killed, frozen or sealed lands all the same, perhaps a minute later.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use alluvium_log::manifest::Manifest;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use tokio::sync::oneshot;

use crate::bucket::{If, Object, Put};
use crate::history::Retention;
use crate::mutation::Mutation;
use crate::world::{COMPACTED, Command, EPOCH_MS, LIMITED, Millis, Node, STORE, Shared, World, Zombie};

/// How often a client that retries sends a request again.
const RETRIES: u32 = 6;
/// How long a client waits for an answer before it gives the request up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The manifest's key.
pub const MANIFEST: &str = "cluster/manifest.json";
/// How long a segment is on its way whose sender becomes a zombie, and how long that sleeps at most.
const ZOMBIES_WRITE: Millis = 40_000;
const ZOMBIES_SLEEP: Millis = 25_000;

/// One client of the bucket.
#[derive(Clone, Debug)]
pub struct SimStore {
    world: Shared,
    node: Node,
    /// Whether failed requests are sent again by the client itself, as the bulk client does.
    retries: bool,
    /// Whether nothing ever fails and everything is instant: for looking at a copy.
    perfect: bool,
}

#[derive(Clone, Debug)]
enum Request {
    Put {
        key: String,
        bytes: Bytes,
        condition: If,
    },
    Get {
        key: String,
    },
    Delete {
        key: String,
    },
    List {
        prefix: String,
    },
}

#[derive(Clone, Debug)]
enum Reply {
    Put(Put),
    Got(Option<Object>),
    Deleted,
    Listed(Vec<(String, Object)>),
    /// 409: another request for the key is under way.
    Conflict,
    /// 503 and 500.
    Failed(&'static str),
    /// The connection broke.
    Cut,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// Not done, and said so.
    Refused(&'static str),
    Conflict,
    /// Not done, and nobody knows.
    LostOnTheWay,
    CutBefore,
    /// Done, and nobody knows.
    CutAfter,
    FailedAfter,
    AnswerLost,
    /// Done, and answered as if somebody else had: what a client says that repeats its own success.
    Echo,
    /// Done, much later, when nobody waits any more.
    Late,
}

impl Request {
    fn name(&self) -> (&'static str, &str) {
        match self {
            Request::Put { key, condition, .. } => match condition {
                If::Always => ("put", key),
                If::Absent => ("create", key),
                If::Tag(_) => ("update", key),
            },
            Request::Get { key } => ("get", key),
            Request::Delete { key } => ("delete", key),
            Request::List { prefix } => ("list", prefix),
        }
    }

    fn writes(&self) -> bool {
        matches!(self, Request::Put { .. } | Request::Delete { .. })
    }
}

impl World {
    fn draw_fate(&mut self, request: &Request) -> Fate {
        let w = self.weather;
        let c = &mut self.chance;
        if c.happens(w.throttled) {
            return Fate::Refused("503 SlowDown");
        }
        if c.happens(w.failed_before) {
            return *c.one_of(&[Fate::Refused("500 InternalError"), Fate::CutBefore]);
        }
        if c.happens(w.silent) {
            return *c.one_of(&[Fate::LostOnTheWay, Fate::AnswerLost]);
        }
        if request.writes() {
            if c.happens(w.done_and_failed) {
                return *c.one_of(&[Fate::CutAfter, Fate::FailedAfter]);
            }
            if c.happens(w.late) {
                return Fate::Late;
            }
            if matches!(
                request,
                Request::Put {
                    condition: If::Absent | If::Tag(_),
                    ..
                }
            ) {
                if c.happens(w.conflict) {
                    return Fate::Conflict;
                }
                if c.happens(w.echo) {
                    return Fate::Echo;
                }
            }
        } else if c.happens(w.cut_read) {
            return Fate::CutAfter;
        }
        Fate::Answered
    }

    fn carry_out(&mut self, request: &Request, node: Node, late: bool) -> Reply {
        let now = self.now;
        let reply = match request {
            Request::Put {
                key,
                bytes,
                condition,
            } => {
                let mut condition = condition.clone();
                if self.mutation == Some(Mutation::EtagAba)
                    && late
                    && let If::Tag(tag) = &mut condition
                    && self.bucket.past.get(key).is_some_and(|past| past.contains(tag))
                    && let Some(present) = self.bucket.objects.get(key)
                {
                    // As if a body had repeated: what was expected long ago is there again.
                    tag.clone_from(&present.etag);
                }
                let done = self.bucket.put(key, bytes.clone(), &condition, now);
                if key == MANIFEST && matches!(done, Put::Done(_)) {
                    self.manifest_written(bytes);
                }
                Reply::Put(done)
            }
            Request::Get { key } => Reply::Got(self.bucket.get(key)),
            Request::Delete { key } => {
                self.bucket.delete(key, now);
                Reply::Deleted
            }
            Request::List { prefix } => {
                let (stale, mut chance) = (self.weather.stale_list_ms, self.chance.split());
                let stale = || if stale == 0 { 0 } else { chance.below(stale) };
                Reply::Listed(self.bucket.list(prefix, now, stale))
            }
        };
        let (what, key) = request.name();
        let outcome = match &reply {
            Reply::Put(Put::Done(tag)) => format!("done {tag}"),
            Reply::Put(other) => format!("{other:?}"),
            Reply::Got(found) => found.as_ref().map_or("nothing".into(), |o| o.etag.clone()),
            Reply::Listed(found) => format!("{} keys", found.len()),
            _ => "done".into(),
        };
        self.tell(format_args!("{node} {what} {key}: {outcome}"));
        reply
    }

    /// What must hold from now on follows from what the manifest says.
    fn manifest_written(&mut self, bytes: &Bytes) {
        let Ok(manifest) = Manifest::decode(bytes) else {
            return;
        };
        if let Some(zombie) = self.zombie.filter(|z| !manifest.is_live(z.incarnation)) {
            self.zombie = None;
            let wait = self.chance.between(20, 150);
            self.after(wait, move |w| w.commands.push(Command::Thaw(zombie.node)));
            if self.aims_at_zombies().is_some() {
                for wait in [5, 200, 350, 500, 800, 1_200] {
                    self.after(wait, |w| w.commands.push(Command::CheckBucket));
                }
            }
        }
        for topic in [LIMITED, COMPACTED]
            .iter()
            .filter_map(|name| manifest.topics.get(*name))
        {
            let limit = |config: &str| {
                let limit: i64 = topic.configs.get(config)?.parse().ok()?;
                (limit >= 0).then_some(limit)
            };
            if let Some(bytes) = limit("retention.bytes") {
                self.history.limited(topic.id, Retention::Size(bytes));
            } else if let Some(ms) = limit("retention.ms") {
                self.history.limited(topic.id, Retention::Time(ms));
            } else {
                let epoch = |p| Some((p, manifest.leader(&topic.id, p)?.leader_epoch));
                let epochs: Vec<_> = (0..topic.partitions as i32).filter_map(epoch).collect();
                self.history.unlimited(topic.id, &epochs);
            }
        }
    }

    /// Perhaps the sender freezes or dies soon, just when it is about to act on the answer. Returns how much longer the
    /// request takes.
    fn lie_in_wait(&mut self, node: Node, request: &Request) -> Millis {
        let (what, key) = request.name();
        let ambush = self.ambush;
        let own = self.incarnations.get(&node).copied();
        let written = stream_of(key).filter(|_| what == "create");
        if let Some(incarnation) = written.filter(|s| Some(*s) == own && self.trap == Some(node)) {
            self.trap = None;
            self.zombie = Some(Zombie { node, incarnation });
            self.commands.push(Command::Freeze(node));
            self.after(ZOMBIES_SLEEP, move |w| {
                if w.zombie.is_some_and(|z| z.incarnation == incarnation) {
                    w.zombie = None;
                    w.commands.push(Command::Thaw(node));
                }
            });
            return ZOMBIES_WRITE;
        }
        let seal = written.is_some() && written != own;
        let file = key.starts_with("archive/") && what == "put";
        if file && self.chance.happens(ambush.slow_history) {
            let until = self.clock() + self.chance.between(2_000, 15_000);
            self.slow_keys.entry((node, key.to_owned())).or_insert(until);
        }
        let probability = match what {
            "get" if key.ends_with("head.json") => ambush.head,
            "update" if key == MANIFEST => ambush.manifest,
            "create" if seal => ambush.seal,
            "put" if file => ambush.history,
            "list" if key.starts_with("archive") || key.starts_with("merged") => ambush.garbage,
            "delete" => ambush.garbage,
            "create" if key.contains("/checkpoint/") || key.starts_with("merged/") => ambush.checkpoint,
            _ => 0.0,
        };
        if probability > 0.0 && self.chance.happens(probability) {
            let wait = self.chance.between(0, 120);
            if !seal && self.chance.happens(0.3) {
                let silent = self.chance.happens(0.4);
                self.after(wait, move |w| w.commands.push(Command::Kill { node, silent }));
                return 0;
            }
            let least = if seal { ambush.ms_max / 3 } else { 500 };
            let lasts = self.chance.between(least, ambush.ms_max);
            self.after(wait, move |w| w.commands.push(Command::Freeze(node)));
            self.after(wait + lasts, move |w| w.commands.push(Command::Thaw(node)));
            return if seal { lasts } else { 0 };
        }
        if seal && ambush.slow_seal > 0.0 && self.chance.happens(ambush.slow_seal) {
            let until = self.clock() + self.chance.between(ambush.ms_max / 3, ambush.ms_max);
            self.slow_keys.entry((node, key.to_owned())).or_insert(until);
        }
        let slow = self.slow_keys.get(&(node, key.to_owned()));
        slow.map_or(0, |until| until.saturating_sub(self.clock()))
    }

    fn send(&mut self, node: Node, request: Request, answer: oneshot::Sender<Reply>) {
        let more = self.lie_in_wait(node, &request);
        let fate = self.draw_fate(&request);
        let w = self.weather;
        let mut there = self.chance.between(w.latency_ms.0, w.latency_ms.1) / 2 + 2 + more;
        let mut back = self.chance.between(w.latency_ms.0, w.latency_ms.1) / 2 + 2;
        if self.chance.happens(w.slow) {
            let more = self.chance.between(200, 8_000);
            *(if self.chance.happens(0.5) {
                &mut there
            } else {
                &mut back
            }) += more;
        }
        if let Some(late) = self.unheard().filter(|u| u.node == node) {
            back += late.answers_late_by;
        }
        if fate == Fate::Late {
            there += self.chance.between(1_000, w.late_ms_max);
        }
        if fate != Fate::Answered {
            self.bucket.count.faults += 1;
            let (what, key) = request.name();
            self.tell(format_args!("{node} {what} {key} will be {fate:?}"));
        }
        self.after(there, move |world| {
            if world.network.is_cut(node, STORE) && fate != Fate::Late {
                // The request never arrives, or its sender never learns: a drawn lot like any other.
                if world.chance.happens(0.7) {
                    return;
                }
            }
            let reply = match fate {
                Fate::Refused(why) => Reply::Failed(why),
                Fate::Conflict => Reply::Conflict,
                Fate::CutBefore => Reply::Cut,
                Fate::LostOnTheWay => return,
                Fate::Answered => world.carry_out(&request, node, false),
                Fate::CutAfter | Fate::FailedAfter | Fate::AnswerLost | Fate::Echo | Fate::Late => {
                    let reply = world.carry_out(&request, node, fate == Fate::Late);
                    match fate {
                        Fate::CutAfter if !request.writes() => match reply {
                            // A body that ends too soon.
                            Reply::Got(Some(object)) => Reply::Got(Some(Object {
                                etag: format!("cut {}", object.etag),
                                ..object
                            })),
                            _ => Reply::Cut,
                        },
                        Fate::CutAfter => Reply::Cut,
                        Fate::FailedAfter => Reply::Failed("500 InternalError"),
                        Fate::Echo => match (&request, &reply) {
                            (
                                Request::Put {
                                    condition: If::Tag(_),
                                    ..
                                },
                                _,
                            ) => Reply::Put(Put::Changed),
                            _ => Reply::Put(Put::Exists),
                        },
                        _ => return,
                    }
                }
            };
            world.after(back, move |world| {
                if !world.network.is_cut(node, STORE) {
                    // Nobody waits if the sender has given up or is no more.
                    let _ = answer.send(reply);
                }
            });
        });
    }
}

/// The stream of a segment's or seal's key.
fn stream_of(key: &str) -> Option<u64> {
    let (stream, seq) = key.strip_prefix("wal/")?.split_once('/')?;
    seq.parse::<u64>().ok()?;
    stream.rsplit_once('-')?.1.parse().ok()
}

impl SimStore {
    pub fn new(world: Shared, node: Node, retries: bool) -> SimStore {
        SimStore {
            world,
            node,
            retries,
            perfect: false,
        }
    }

    /// A client of a world of its own that never fails.
    pub fn perfect(world: Shared) -> SimStore {
        SimStore {
            world,
            node: STORE,
            retries: false,
            perfect: true,
        }
    }

    async fn once(&self, request: Request) -> Reply {
        if self.perfect {
            let mut world = self.world.lock();
            return world.carry_out(&request, self.node, false);
        }
        let (answer, answered) = oneshot::channel();
        self.world.lock().send(self.node, request, answer);
        match answered.await {
            Ok(reply) => reply,
            // Nothing will ever come.
            Err(_) => std::future::pending().await,
        }
    }

    async fn ask(&self, request: Request) -> Reply {
        if !self.retries {
            return self.once(request).await;
        }
        let mut pause = 100;
        for _ in 0..RETRIES {
            match tokio::time::timeout(PATIENCE, self.once(request.clone())).await {
                Ok(Reply::Cut | Reply::Failed(_) | Reply::Conflict) | Err(_) => {}
                Ok(reply) => return reply,
            }
            let jitter = self.world.lock().chance.between(pause / 2, pause);
            tokio::time::sleep(Duration::from_millis(jitter)).await;
            pause *= 2;
        }
        Reply::Failed("gave up")
    }
}

fn failed(key: &str, why: &'static str) -> Error {
    Error::Generic {
        store: "simulated",
        source: format!("{why} ({key})").into(),
    }
}

fn meta(key: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: key.clone(),
        last_modified: time(object.written),
        size: object.bytes.len() as u64,
        e_tag: Some(object.etag.clone()),
        version: None,
    }
}

/// What all keys below a path begin with; below an empty one lies everything.
fn folder(path: Option<&Path>) -> String {
    let path = path.filter(|p| !p.as_ref().is_empty());
    path.map_or(String::new(), |p| format!("{p}/"))
}

fn time(at: Millis) -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp_millis(EPOCH_MS + at as i64).unwrap_or_default()
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated store")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let condition = match options.mode {
            PutMode::Create => If::Absent,
            PutMode::Overwrite => If::Always,
            PutMode::Update(version) => If::Tag(version.e_tag.unwrap_or_default()),
        };
        let path = key.to_string();
        let request = Request::Put {
            key: path.clone(),
            bytes: Bytes::from(payload),
            condition,
        };
        let source = |what: &'static str| -> Box<dyn std::error::Error + Send + Sync> { what.into() };
        match self.ask(request).await {
            Reply::Put(Put::Done(tag)) => Ok(PutResult {
                e_tag: Some(tag),
                version: None,
            }),
            Reply::Put(Put::Exists) | Reply::Conflict => Err(Error::AlreadyExists {
                path,
                source: source("exists"),
            }),
            Reply::Put(Put::Changed) => Err(Error::Precondition {
                path,
                source: source("412"),
            }),
            Reply::Put(Put::Missing) => Err(Error::NotFound {
                path,
                source: source("404"),
            }),
            Reply::Failed(why) => Err(failed(&path, why)),
            _ => Err(failed(&path, "connection reset")),
        }
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failed(key.as_ref(), "multipart is not simulated"))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let path = key.to_string();
        let found = match self.ask(Request::Get { key: path.clone() }).await {
            Reply::Got(Some(found)) => found,
            Reply::Got(None) => {
                return Err(Error::NotFound {
                    path,
                    source: "404".into(),
                });
            }
            Reply::Failed(why) => return Err(failed(&path, why)),
            _ => return Err(failed(&path, "connection reset")),
        };
        let cut = found.etag.starts_with("cut ");
        let object = Object {
            etag: found.etag.trim_start_matches("cut ").to_owned(),
            ..found
        };
        let meta = meta(key, &object);
        options.check_preconditions(&meta)?;
        let len = object.bytes.len() as u64;
        let range: Range<u64> = match options.range {
            None => 0..len,
            Some(GetRange::Bounded(r)) if r.start >= len => return Err(failed(&path, "416 InvalidRange")),
            Some(GetRange::Bounded(r)) => r.start..r.end.min(len),
            Some(GetRange::Offset(from)) if from >= len => return Err(failed(&path, "416 InvalidRange")),
            Some(GetRange::Offset(from)) => from..len,
            Some(GetRange::Suffix(n)) => len.saturating_sub(n)..len,
        };
        let bytes = match options.head {
            true => Bytes::new(),
            false => object.bytes.slice(range.start as usize..range.end as usize),
        };
        let pieces: Vec<Result<Bytes>> = match cut {
            true => vec![
                Ok(bytes.slice(..bytes.len() / 2)),
                Err(failed(&path, "the body ended too soon")),
            ],
            false => vec![Ok(bytes)],
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(futures::stream::iter(pieces).boxed()),
            meta,
            range,
            attributes: Attributes::default(),
        })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        keys.then(move |key| {
            let this = this.clone();
            async move {
                let key = key?;
                match this.ask(Request::Delete { key: key.to_string() }).await {
                    Reply::Deleted => Ok(key),
                    Reply::Failed(why) => Err(failed(key.as_ref(), why)),
                    _ => Err(failed(key.as_ref(), "connection reset")),
                }
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), folder(prefix));
        let listing = async move {
            let listed: Vec<Result<ObjectMeta>> = match this
                .ask(Request::List {
                    prefix: prefix.clone(),
                })
                .await
            {
                Reply::Listed(found) => found
                    .iter()
                    .map(|(key, object)| Ok(meta(&Path::from(key.as_str()), object)))
                    .collect(),
                _ => vec![Err(failed(&prefix, "LIST failed"))],
            };
            futures::stream::iter(listed)
        };
        futures::stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = folder(prefix);
        let Reply::Listed(found) = self.ask(Request::List { prefix: path.clone() }).await else {
            return Err(failed(&path, "LIST failed"));
        };
        let mut result = ListResult {
            common_prefixes: vec![],
            objects: vec![],
        };
        for (key, object) in &found {
            match key[path.len()..].split_once('/') {
                Some((first, _)) => {
                    let below = Path::from(format!("{path}{first}"));
                    if result.common_prefixes.last() != Some(&below) {
                        result.common_prefixes.push(below);
                    }
                }
                None => result.objects.push(meta(&Path::from(key.as_str()), object)),
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failed(from.as_ref(), "copies are not simulated"))
    }
}
