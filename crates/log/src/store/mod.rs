//! The bucket: opening it by URL, writing to it under conditions, proving that it keeps them.
//!
//! A [`Store`] holds two clients of one bucket:
//!
//! * `bulk` retries by itself and serves reads, lists and deletes;
//! * `conditional` never retries, because a client that retries a conditional write reports its own success
//!   as a conflict; it is used only through [`conditional`], which settles every doubtful outcome by
//!   reading back.
//!
//! Each client is a stack of [`object_store::ObjectStore`]s, put together in [`Store::from_parts`] and
//! nowhere else, from the outside in:
//!
//! 1. [`counting`]: requests, bytes, errors and latencies as the engine sees them, time-outs included;
//! 2. the backend: memory, a directory ([`StoreKind::Embedded`]) or S3 over HTTP.
//!
//! | URL | store |
//! |---|---|
//! | `memory://` | in this process, gone with it: for tests |
//! | `file:///path`, `file:path`, a plain path | a directory, fsynced, locked to one process |
//! | `s3://bucket/prefix` | S3 or anything that speaks it and keeps conditions (see [`probe`]) |

pub mod conditional;
#[doc(hidden)]
pub mod conformance;
pub mod counting;
mod embedded;
pub mod probe;
pub(crate) mod reason;
mod s3;
pub(crate) mod trouble;

pub use reason::reason_of;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use counting::{CountingStore, StoreMetrics};
use embedded::EmbeddedStore;
use trouble::Trouble;

/// What is accepted as a store URL, for error messages.
const ACCEPTED: &str = "expected memory://, file:///path, a plain path, or s3://bucket/prefix";

/// A bucket opened by URL, with the prefix under which one cluster lives. Clones share everything.
#[derive(Clone)]
pub struct Store {
    /// Retries by itself; serves reads, lists, deletes and unconditional writes.
    pub bulk: Arc<dyn ObjectStore>,
    /// Never retries; only used through [`conditional`].
    pub conditional: Arc<dyn ObjectStore>,
    /// Prefix of every key; see [`Store::key`].
    pub prefix: Path,
    /// What to show people: the URL without secrets.
    pub display: String,
    /// What is behind it.
    pub kind: StoreKind,
    /// Time-outs and back-off of conditional writes.
    pub limits: AttemptLimits,
    read_only: bool,
    random: Arc<Mutex<SmallRng>>,
    /// Conditional writes that fail, and reads of the manifest that fail.
    writes: Arc<Mutex<Trouble>>,
    looks: Arc<Mutex<Trouble>>,
}

/// What is behind a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process only.
    Memory,
    /// A local directory.
    Embedded,
    /// S3 or a service that speaks its API.
    S3,
}

/// How a store is opened. The default is right for a broker.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Open for looking only: a directory is opened without its lock, whoever has it, and refuses every
    /// write. Stores without a lock take no notice.
    pub read_only: bool,
    /// Time-outs and back-off.
    pub limits: AttemptLimits,
    /// Where requests are counted.
    pub metrics: Option<StoreMetrics>,
    /// Seed of back-off jitter and probe keys; a random one if not given.
    pub seed: Option<u64>,
}

/// Limits of one attempt of a conditional write, and the back-off between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for one request, to which the time for its bytes at `bytes_per_second_min` is added.
    pub request_timeout: Duration,
    /// The slowest transfer that is waited for.
    pub bytes_per_second_min: u64,
    /// Upper bound of the first pause; it doubles with every failure.
    pub backoff_min: Duration,
    /// Upper bound of every pause.
    pub backoff_max: Duration,
}

impl Default for AttemptLimits {
    fn default() -> Self {
        AttemptLimits {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            bytes_per_second_min: 1024 * 1024,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl AttemptLimits {
    /// How long one request that moves `bytes` may take.
    pub fn timeout(&self, bytes: u64) -> Duration {
        let millis = bytes.saturating_mul(1000) / self.bytes_per_second_min.max(1);
        self.request_timeout.saturating_add(Duration::from_millis(millis))
    }

    /// The pause after `failures` failures in a row (1 = the first); `random` in 0..1 spreads writers that
    /// failed together over the second half of it.
    pub fn backoff(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self
            .backoff_min
            .saturating_mul(1 << doublings)
            .min(self.backoff_max);
        full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

/// Why a store cannot be opened or read. Each is one line, made for people.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL is of no known kind.
    #[error("store '{url}': unknown scheme '{scheme}'; {ACCEPTED}")]
    UnknownScheme {
        /// As given.
        url: String,
        /// The part before the colon.
        scheme: String,
    },
    /// The URL is of a known kind but malformed.
    #[error("store '{url}': {problem}; {ACCEPTED}")]
    InvalidUrl {
        /// As given, without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The store cannot be used as it is configured or where it is.
    #[error("store '{store}': {problem}")]
    Unusable {
        /// What to show people.
        store: String,
        /// What is wrong and what to do about it.
        problem: String,
    },
    /// Another process has the directory.
    #[error("{path} is in use by {holder}; stop it or choose another store")]
    InUse {
        /// The directory.
        path: String,
        /// Who has it, as far as it is known.
        holder: String,
    },
    /// A request failed after the client's own retries.
    #[error("store '{store}': reading {key}: {}", reason_of(.source))]
    Read {
        /// What to show people.
        store: String,
        /// The key.
        key: Path,
        /// What the client said.
        source: object_store::Error,
    },
    /// An object is larger than what it may be.
    #[error("store '{store}': {key} has {bytes} bytes, more than the {limit} that are read at once")]
    TooLarge {
        /// What to show people.
        store: String,
        /// The key.
        key: Path,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The store answers without ETags, so nothing in it can be changed safely.
    #[error("store '{store}': {key} was answered without an ETag; a store without ETags cannot be used")]
    NoETag {
        /// What to show people.
        store: String,
        /// The key.
        key: Path,
    },
}

impl Store {
    /// Opens the store that `url` names.
    pub async fn open(url: &str, options: StoreOptions) -> Result<Store, StoreError> {
        match Location::parse(url)? {
            Location::Memory => {
                let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
                let display = "memory://".to_owned();
                let kind = StoreKind::Memory;
                Ok(Store::from_parts(
                    memory.clone(),
                    memory,
                    Path::default(),
                    display,
                    kind,
                    options,
                ))
            }
            Location::Directory(path) => {
                let display = path.display().to_string();
                let directory = EmbeddedStore::open(path, options.read_only).await?;
                let directory: Arc<dyn ObjectStore> = Arc::new(directory);
                let kind = StoreKind::Embedded;
                Ok(Store::from_parts(
                    directory.clone(),
                    directory,
                    Path::default(),
                    display,
                    kind,
                    options,
                ))
            }
            Location::S3 { bucket, prefix } => {
                let display = match prefix.is_root() {
                    true => format!("s3://{bucket}"),
                    false => format!("s3://{bucket}/{prefix}"),
                };
                let clients = s3::connect(&bucket, &s3::environment(), &options.limits).await;
                let clients = clients.map_err(|problem| StoreError::Unusable {
                    store: display.clone(),
                    problem,
                })?;
                let (bulk, conditional) = (Arc::new(clients.bulk), Arc::new(clients.conditional));
                Ok(Store::from_parts(
                    bulk,
                    conditional,
                    prefix,
                    display,
                    StoreKind::S3,
                    options,
                ))
            }
        }
    }

    /// A store over given clients: the one place where the layers are put together. `conditional` MUST NOT
    /// retry a write by itself.
    pub fn from_parts(
        bulk: Arc<dyn ObjectStore>,
        conditional: Arc<dyn ObjectStore>,
        prefix: Path,
        display: String,
        kind: StoreKind,
        options: StoreOptions,
    ) -> Store {
        let count = |client| match &options.metrics {
            Some(metrics) => Arc::new(CountingStore::new(client, metrics.clone())),
            None => client,
        };
        let seed = options.seed.unwrap_or_else(rand::random);
        Store {
            bulk: count(bulk),
            conditional: count(conditional),
            prefix,
            display,
            kind,
            limits: options.limits,
            read_only: options.read_only,
            random: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))),
            writes: Arc::default(),
            looks: Arc::default(),
        }
    }

    /// Why the store cannot be written or its manifest not be read now, as far as the last requests tell;
    /// `None` if they succeeded.
    pub fn trouble(&self) -> Option<String> {
        let why = |trouble: &Mutex<Trouble>| trouble.lock().why().map(str::to_owned);
        why(&self.writes).or_else(|| why(&self.looks))
    }

    /// A conditional write failed, for a writer whose first failure was at `began`; `waiting` says who waits
    /// for it.
    pub(crate) fn write_failed(&self, why: &str, waiting: Option<&'static str>, began: Instant) {
        let report = self.writes.lock().failed(why, waiting, began, Instant::now());
        self.tell("write to", report);
    }

    /// A conditional write was settled: the store answers.
    pub(crate) fn write_settled(&self) {
        if let Some(lasted) = self.writes.lock().succeeded(Instant::now()) {
            tracing::info!(
                "{} can be written again after {} s",
                self.display,
                lasted.as_secs()
            );
        }
    }

    /// The manifest could not be looked at.
    pub(crate) fn look_failed(&self, why: &str) {
        let now = Instant::now();
        let report = self.looks.lock().failed(why, Some("consumers"), now, now);
        self.tell("read the manifest in", report);
    }

    /// The manifest was looked at.
    pub(crate) fn look_succeeded(&self) {
        if let Some(lasted) = self.looks.lock().succeeded(Instant::now()) {
            tracing::info!("{} can be read again after {} s", self.display, lasted.as_secs());
        }
    }

    fn tell(&self, what: &str, report: Option<trouble::Report>) {
        match report {
            Some(report) if report.is_lasting() => {
                tracing::error!("cannot {what} {}: {report}", self.display)
            }
            Some(report) => tracing::warn!("cannot {what} {}: {report}", self.display),
            None => {}
        }
    }

    /// The full key of `relative`, whose segments are separated by `/` and taken as they are (a `%` in them
    /// is not encoded again; see [`segment`] for segments that people choose).
    pub fn key(&self, relative: &str) -> Path {
        let joined = match self.prefix.as_ref() {
            "" => relative.to_owned(),
            prefix => format!("{prefix}/{relative}"),
        };
        // Only an empty, relative or control-character segment cannot be parsed; those are encoded.
        Path::parse(&joined).unwrap_or_else(|_| Path::from(joined))
    }

    /// The same store, with everything that was written to it so far: what is in the journal of a directory that is only
    /// looked at is seen as of its opening.
    pub(crate) async fn renewed(&self) -> Result<Store, StoreError> {
        if self.kind != StoreKind::Embedded || !self.read_only {
            return Ok(self.clone());
        }
        let options = StoreOptions {
            read_only: true,
            limits: self.limits,
            ..StoreOptions::default()
        };
        Store::open(&self.display, options).await
    }

    /// The key of an object below the store's prefix, as [`Store::key`] was given it; `None` if it lies elsewhere.
    pub(crate) fn relative<'a>(&self, key: &'a Path) -> Option<&'a str> {
        match self.prefix.as_ref() {
            "" => Some(key.as_ref()),
            prefix => key.as_ref().strip_prefix(prefix)?.strip_prefix('/'),
        }
    }

    /// When an object was written last, in milliseconds since 1970 by the store's own clock; `None` if it cannot be
    /// found out now.
    pub async fn written_ms(&self, relative: &str) -> Option<i64> {
        let found = self.bulk.head(&self.key(relative)).await.ok()?;
        Some(found.last_modified.timestamp_millis())
    }

    /// A random number in 0..1 from the store's own generator.
    pub(crate) fn random_unit(&self) -> f64 {
        self.random.lock().random()
    }

    /// A random number from the store's own generator.
    pub(crate) fn random_u64(&self) -> u64 {
        self.random.lock().random()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("display", &self.display)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A segment of a key made from a name that people choose, percent-encoded so that it is one segment and
/// can be turned back.
pub fn segment(name: &str) -> String {
    object_store::path::PathPart::from(name).as_ref().to_owned()
}

/// A parsed store URL.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    Memory,
    Directory(std::path::PathBuf),
    S3 { bucket: String, prefix: Path },
}

impl Location {
    fn parse(url: &str) -> Result<Location, StoreError> {
        let invalid = |problem: &str| StoreError::InvalidUrl {
            url: without_secrets(url),
            problem: problem.to_owned(),
        };
        if url.is_empty() {
            return Err(invalid("empty"));
        }
        let Some((scheme, rest)) = split_scheme(url) else {
            return Ok(Location::Directory(url.into()));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "memory" if matches!(rest, "" | "//" | "///") => Ok(Location::Memory),
            "memory" => Err(invalid("memory:// takes no path")),
            "file" => {
                let path = match rest.strip_prefix("//") {
                    None => rest,
                    Some(after) => {
                        let path = after.strip_prefix("localhost").unwrap_or(after);
                        if !path.starts_with('/') {
                            return Err(invalid(
                                "a file URL with // needs an absolute path (three slashes)",
                            ));
                        }
                        path
                    }
                };
                let path = percent_decode(path).ok_or_else(|| invalid("bad percent-encoding in the path"))?;
                match path.is_empty() {
                    true => Err(invalid("the path is empty")),
                    false => Ok(Location::Directory(path.into())),
                }
            }
            "s3" => Location::parse_s3(rest).map_err(|problem| invalid(&problem)),
            other => Err(StoreError::UnknownScheme {
                url: without_secrets(url),
                scheme: other.to_owned(),
            }),
        }
    }

    fn parse_s3(rest: &str) -> Result<Location, String> {
        let rest = rest
            .strip_prefix("//")
            .ok_or("s3 URLs look like s3://bucket/prefix")?;
        if rest.contains(['?', '#']) {
            return Err(
                "an s3 URL has no query or fragment; settings come from the AWS_ variables".to_owned(),
            );
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err("credentials do not belong into the URL; use the AWS_ variables".to_owned());
        }
        if bucket.is_empty() {
            return Err("the bucket is missing".to_owned());
        }
        // The service has stricter rules; this keeps out what would change the meaning of a request line.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !bucket.chars().all(plain) || bucket.len() > 255 {
            return Err(format!("'{bucket}' is not a bucket name"));
        }
        let prefix = Path::parse(prefix).map_err(|error| format!("bad prefix: {error}"))?;
        Ok(Location::S3 {
            bucket: bucket.to_owned(),
            prefix,
        })
    }
}

/// `scheme:rest`, if the text before the first colon looks like a scheme and cannot be a path.
fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let mut chars = scheme.chars();
    let first = chars.next()?.is_ascii_alphabetic();
    let others = chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    (first && others).then_some((scheme, rest))
}

/// The URL as it may be shown: without what stands before an `@` in its authority, and without its query.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn percent_decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let digits = text.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8(out).ok().filter(|path| !path.contains('\0'))
}

#[cfg(test)]
mod tests;
