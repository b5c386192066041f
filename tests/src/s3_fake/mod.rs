//! A strict S3 in memory, over real HTTP, with latency and faults.
//!
//! It answers as S3 documents its API where Alluvium depends on it: conditional writes (412 when the condition
//! fails, 404 for `If-Match` on a missing key), content-hash ETags, ranges, LIST version 2, multipart uploads,
//! XML errors. What it does not know it refuses, and what no correct client sends (two conditions at once, a
//! body without a length, an unsigned request) it refuses too and counts in [`Counts::rejected`]. Every key is
//! linearizable. A request that has arrived takes effect even if its client goes away.
//!
//! `Server -> Request (parsed) -> Plan (fault, latency) -> Buckets (one atomic step) -> Reply`
//!
//! It is used in process through [`S3Fake`] and from scripts through the `s3-fake` command and `/_fake/...`.

mod body;
mod bucket;
mod control;
mod counts;
mod error;
mod faults;
mod latency;
mod request;
mod server;
#[cfg(test)]
mod tests;
mod xml;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub use bucket::{Conditions, EtagKind};
pub use counts::{Counts, KindCounts};
pub use error::S3Error;
pub use faults::{Fault, Injected, Landing, Rule, RuleText};
pub use latency::Latency;
pub use request::Kind;

use bucket::{Moment, Payload, Precondition, md5_hex};
use server::Shared;

/// Latencies by kind of request: HEAD takes that of GET; copies and multipart requests take that of PUT.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// Of GetObject and HeadObject.
    pub get: Latency,
    /// Of PutObject, CopyObject and multipart requests.
    pub put: Latency,
    /// Of ListObjectsV2.
    pub list: Latency,
    /// Of DeleteObject and DeleteObjects.
    pub delete: Latency,
}

impl FromStr for Latencies {
    type Err = String;

    /// `put=100/195,get=63/118,list=50,delete=20`; kinds that are not named have none.
    fn from_str(text: &str) -> Result<Latencies, String> {
        let mut latencies = Latencies::default();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("'{pair}' is not kind=ms"))?;
            let slot = match name.trim() {
                "get" => &mut latencies.get,
                "put" => &mut latencies.put,
                "list" => &mut latencies.list,
                "delete" => &mut latencies.delete,
                other => return Err(format!("unknown kind '{other}'; known: get, put, list, delete")),
            };
            *slot = value.trim().parse()?;
        }
        Ok(latencies)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |latency: Latency| match latency {
            Latency::None => "0".to_owned(),
            Latency::Fixed(time) => format!("{}", time.as_secs_f64() * 1e3),
            Latency::LogNormal { p50, p99 } => {
                format!("{}/{}", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3)
            }
            Latency::Tailed { p50, p99, p999 } => format!(
                "{}/{}/{}",
                p50.as_secs_f64() * 1e3,
                p99.as_secs_f64() * 1e3,
                p999.as_secs_f64() * 1e3
            ),
        };
        let Latencies {
            get,
            put,
            list,
            delete,
        } = *self;
        write!(
            f,
            "put={},get={},list={},delete={}",
            text(put),
            text(get),
            text(list),
            text(delete)
        )
    }
}

/// How the store is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Connections are cut as soon as a request arrives.
    Refuse,
    /// Requests get no answer; their connections are cut when the outage ends.
    Hang,
    /// Every request is answered 503 SlowDown.
    Unavailable,
}

impl Outage {
    fn name(self) -> &'static str {
        match self {
            Outage::Refuse => "refuse",
            Outage::Hang => "hang",
            Outage::Unavailable => "503",
        }
    }

    fn parse(text: &str) -> Result<Option<Outage>, String> {
        match text {
            "off" | "none" => Ok(None),
            "refuse" | "on" => Ok(Some(Outage::Refuse)),
            "hang" => Ok(Some(Outage::Hang)),
            "503" => Ok(Some(Outage::Unavailable)),
            other => Err(format!("unknown outage '{other}'; known: off, refuse, hang, 503")),
        }
    }
}

/// Settings of a fake.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bucket that exists from the start.
    pub bucket: String,
    /// Latencies by kind.
    pub latencies: Latencies,
    /// Rules of what goes wrong.
    pub faults: Vec<Rule>,
    /// Seed of latencies and probabilities.
    pub seed: u64,
    /// How ETags are made.
    pub etags: EtagKind,
    /// How conditions of writes are treated.
    pub conditions: Conditions,
    /// Objects and parts take at most so many bytes; beyond it a write is answered 507.
    pub bytes_max: u64,
    /// One body has at most so many bytes.
    pub object_bytes_max: u64,
    /// Refuse requests without the headers of Signature Version 4.
    pub require_authorization: bool,
    /// Worker threads.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            bucket: "alluvium".to_owned(),
            latencies: Latencies::default(),
            faults: Vec::new(),
            seed: 0,
            etags: EtagKind::Md5,
            conditions: Conditions::Atomic,
            bytes_max: u64::MAX,
            object_bytes_max: 5 * 1024 * 1024 * 1024,
            require_authorization: true,
            workers: 2,
        }
    }
}

/// A running fake on a runtime of its own. Dropping it cuts every connection and forgets every object.
#[derive(Debug)]
pub struct S3Fake {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
}

impl S3Fake {
    /// Listens and serves in the background.
    pub fn start(options: Options) -> io::Result<S3Fake> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.workers.max(1))
            .thread_name("s3-fake")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(&options));
        let serving = shared.clone();
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(server::accept(listener, serving));
        Ok(S3Fake {
            shared,
            address,
            runtime: Mutex::new(Some(runtime)),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients call the endpoint URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `s3://bucket/prefix`
    pub fn store_url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.shared.bucket)
    }

    /// The environment that points an S3 client at this fake.
    pub fn env(&self) -> Vec<(String, String)> {
        environment(&self.endpoint())
    }

    /// Replaces the fault rules.
    pub fn set_faults(&self, rules: Vec<Rule>) {
        self.shared.plan.lock().rules = rules;
    }

    /// Replaces the fault rules by these, in the form of the `--fault` option.
    ///
    /// # Panics
    /// If a rule is not understood: the test that wrote it is wrong.
    pub fn set_fault_texts(&self, rules: &[&str]) {
        let parse = |text: &&str| text.parse().unwrap_or_else(|error| panic!("{error}"));
        self.set_faults(rules.iter().map(parse).collect());
    }

    /// How often each rule has fired, in the order of the rules.
    pub fn faults_fired(&self) -> Vec<u64> {
        self.shared.plan.lock().rules.iter().map(Rule::fired).collect()
    }

    /// Replaces the latencies.
    pub fn set_latencies(&self, latencies: Latencies) {
        self.shared.plan.lock().latencies = latencies;
    }

    /// Starts (refusing everything) or ends an outage.
    pub fn outage(&self, on: bool) {
        self.set_outage(on.then_some(Outage::Refuse));
    }

    /// Starts or ends an outage of a certain form.
    pub fn set_outage(&self, outage: Option<Outage>) {
        self.shared.outage.send_replace(outage);
    }

    /// Allows everything but these IAM actions; who may not list is told of no object that it is missing.
    pub fn deny(&self, actions: &[&str]) {
        self.shared.plan.lock().denied = actions.iter().map(|action| (*action).to_owned()).collect();
    }

    /// The credentials with these access keys, and only they, have expired.
    pub fn expire_keys(&self, keys: &[&str]) {
        self.shared.plan.lock().expired = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    /// What has been asked since the start or the last reset.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().clone()
    }

    /// Counts anew from here.
    pub fn reset_counts(&self) {
        self.shared.counts.lock().reset();
    }

    /// Keys and sizes in bytes below a prefix, in order.
    pub fn objects(&self, prefix: &str) -> Vec<(String, u64)> {
        self.shared.buckets.lock().keys(&self.shared.bucket, prefix)
    }

    /// The bytes of an object, past any fault and uncounted.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.shared
            .buckets
            .lock()
            .get(&self.shared.bucket, key)
            .ok()
            .map(|object| object.content)
    }

    /// Overwrites an object, past any fault and uncounted.
    pub fn put_raw(&self, key: &str, content: impl Into<Bytes>) -> Result<(), S3Error> {
        let content = content.into();
        let payload = Payload {
            md5: Some(md5_hex(&content)),
            content,
        };
        let mut buckets = self.shared.buckets.lock();
        buckets.put(
            &self.shared.bucket,
            key,
            payload,
            &Precondition::None,
            Moment::now(),
        )?;
        Ok(())
    }

    /// Removes an object, past any fault and uncounted; says whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        let mut buckets = self.shared.buckets.lock();
        buckets
            .delete(&self.shared.bucket, key, &Precondition::None, Moment::now())
            .unwrap_or(false)
    }

    /// Bytes of all objects and unfinished parts.
    pub fn bytes_stored(&self) -> u64 {
        self.shared.buckets.lock().bytes()
    }
}

impl Drop for S3Fake {
    fn drop(&mut self) {
        // Not a plain drop: that would panic inside another runtime.
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

/// The environment variables that point an S3 client at `endpoint`.
pub fn environment(endpoint: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "fake"),
        ("AWS_SECRET_ACCESS_KEY", "fake"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}
