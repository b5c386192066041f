//! The strict S3 fake as a command: for benchmarks and scripts.

use std::net::SocketAddr;
use std::process::ExitCode;

use alluvium_tests::s3_fake::{Conditions, EtagKind, Latencies, Latency, Options, Rule, S3Fake};
use clap::{Parser, ValueEnum};

/// A strict S3 in memory with the latency, the faults and the bill of a real one.
///
/// It serves one bucket, path style, any credentials, and forgets everything when it ends.
#[derive(Debug, Parser)]
#[command(name = "s3-fake", after_help = CONTROL)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Name of the bucket
    #[arg(long, default_value = "alluvium")]
    bucket: String,
    /// Latency of PUTs and multipart requests in ms: "20" is fixed, "100/195" is log-normal by p50/p99,
    /// "100/195/274" by p50/p99/p99.9
    #[arg(long, default_value = "0", value_name = "MS")]
    put_ms: Latency,
    /// Latency of GETs and HEADs, such as "63/118"
    #[arg(long, default_value = "0", value_name = "MS")]
    get_ms: Latency,
    /// Latency of LISTs
    #[arg(long, default_value = "0", value_name = "MS")]
    list_ms: Latency,
    /// Latency of DELETEs
    #[arg(long, default_value = "0", value_name = "MS")]
    delete_ms: Latency,
    /// Seed of latencies and fault probabilities
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What goes wrong; may be given more than once, the first rule that fires decides (see below)
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Rule>,
    /// How ETags are made: md5 as S3 does, counter is cheaper
    #[arg(long, value_enum, default_value_t = Etag::Md5)]
    etag: Etag,
    /// How conditions of writes are treated: atomic as S3 does, or broken as other stores do
    #[arg(long, value_enum, default_value_t = Condition::Atomic)]
    conditions: Condition,
    /// Most bytes that it holds; beyond them writes are answered 507
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Accept requests without the headers of a signature
    #[arg(long)]
    allow_unsigned: bool,
    /// Worker threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

const CONTROL: &str = "\
Rules are name=value pairs joined by commas:
  kind=put+get      kinds: get, head, put, multipart, list, delete, bucket (default: all)
  prefix=wal/       prefix of the key         key=REGEX   expression that the key contains
  nth=3             only the third match      after=N     skip N matches      times=N   fire at most N times
  probability=0.01  fire by chance            ms=200      time of late-..., hang, delay, stale
  do=ACTION         500, 503, 409, 412, 403, skew, no-bucket, expired, unknown-key, bad-signature,
                    redirect, region, cut, hang: alone the write is not applied,
                    as applied-then-500 it is, as late-500 it is applied ms later;
                    truncate, flip (GET bodies); delay; stale (LIST as of ms ago)
  Example: --fault 'kind=put,probability=0.01,do=applied-then-500'

While it runs:
  curl URL/_fake/counts                       requests, bytes and dollars (-X DELETE: start anew)
  curl -X PUT -d '[\"kind=put,do=503\"]' URL/_fake/faults
  curl -X PUT -d 'put=100/195,get=63/118' URL/_fake/latency
  curl -X PUT -d hang URL/_fake/outage        refuse, hang, 503, off
  curl URL/_fake/objects                      keys and sizes";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Etag {
    Md5,
    Counter,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Condition {
    Atomic,
    Ignored,
    NotAtomic,
}

impl Arguments {
    fn options(self) -> Options {
        Options {
            listen: self.listen,
            bucket: self.bucket,
            latencies: Latencies {
                get: self.get_ms,
                put: self.put_ms,
                list: self.list_ms,
                delete: self.delete_ms,
            },
            faults: self.faults,
            seed: self.seed,
            etags: match self.etag {
                Etag::Md5 => EtagKind::Md5,
                Etag::Counter => EtagKind::Counter,
            },
            conditions: match self.conditions {
                Condition::Atomic => Conditions::Atomic,
                Condition::Ignored => Conditions::Ignored,
                Condition::NotAtomic => Conditions::NotAtomic,
            },
            bytes_max: self.max_bytes.unwrap_or(u64::MAX),
            require_authorization: !self.allow_unsigned,
            workers: self.threads,
            ..Options::default()
        }
    }
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let options = Arguments::parse().options();
    let listen = options.listen;
    match S3Fake::start(options) {
        Ok(fake) => {
            println!("# s3-fake listens on {}", fake.endpoint());
            println!("# store URL: {}", fake.store_url(""));
            for (name, value) in fake.env() {
                println!("export {name}={value}");
            }
            // The fake serves on threads of its own until the process is ended.
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("s3-fake cannot listen on {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}
