//! One measurement: clients run, servers are watched.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Tools;
use super::clients::{Client, Outcome, Reads};
use super::process::{Process, stat, tail_of, tied};
use super::results::Metrics;
use super::statistics::{GIB, SECONDS_PER_MONTH};
use super::store::{Requests, Store};

/// Time that one client may take.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// How often clients and plans are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a measurement does at a moment after its start, such as an outage.
pub(crate) struct Step<'a> {
    pub(crate) after: Duration,
    pub(crate) act: Box<dyn Fn() -> Result<(), String> + 'a>,
}

/// Who runs, who is watched.
#[derive(Default)]
pub(crate) struct Plan<'a> {
    /// The client whose work is measured.
    pub(crate) client: Option<Client>,
    /// Runs beside it, again and again, until it has ended.
    pub(crate) beside: Option<&'a dyn Fn() -> Client>,
    pub(crate) steps: Vec<Step<'a>>,
    pub(crate) broker: Option<&'a Process>,
    pub(crate) store: Option<&'a Store>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Measurement {
    pub(crate) shown: String,
    pub(crate) outcome: Outcome,
    /// Outcomes of the finished runs of the client beside.
    pub(crate) beside: Vec<Outcome>,
    /// From the start of the client to its end.
    pub(crate) wall_seconds: f64,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) broker_cpu_seconds: f64,
    pub(crate) store_cpu_seconds: Option<f64>,
    pub(crate) broker_rss_before: Option<u64>,
    pub(crate) broker_rss_max: Option<u64>,
    pub(crate) requests: Option<Requests>,
}

impl Plan<'_> {
    /// Runs it to the end of the client.
    pub(crate) fn run(mut self, tools: &Tools) -> Result<Measurement, String> {
        let client = self.client.take().ok_or("a measurement without a client")?;
        let broker = self.broker.ok_or("a measurement without a broker")?;
        let shown = client.shown.clone();
        broker.forget_peak();
        let broker_rss_before = broker.rss_bytes();
        let broker_cpu = broker.cpu_seconds()?;
        let store_cpu = self
            .store
            .map(|store| {
                store.reset_counts()?;
                store.process.cpu_seconds()
            })
            .transpose()?;
        let started = Instant::now();
        let mut main = Running::start(tools, client, "client")?;
        let mut beside = None;
        let mut finished = Vec::new();
        self.steps.sort_by_key(|step| step.after);
        let mut steps = self.steps.iter().peekable();
        let (outcome, client_cpu_seconds) = loop {
            if let Some(ended) = main.ended()? {
                break ended;
            }
            while let Some(step) = steps.next_if(|step| started.elapsed() >= step.after) {
                (step.act)()?;
            }
            if let Some(again) = self.beside {
                let running = match &mut beside {
                    Some(running) => running,
                    none => none.insert(Running::start(tools, again(), "client-beside")?),
                };
                if let Some((outcome, _)) = running.ended()? {
                    finished.push(outcome);
                    beside = None;
                }
            }
            // Ends early when the broker has died: its clients would wait for it for long.
            broker.cpu_seconds()?;
            std::thread::sleep(LOOK);
        };
        // A plan that is not over would leave the store as it is in the middle of it.
        for step in steps {
            (step.act)()?;
        }
        Ok(Measurement {
            shown,
            outcome,
            beside: finished,
            wall_seconds: started.elapsed().as_secs_f64(),
            client_cpu_seconds,
            broker_cpu_seconds: broker.cpu_seconds()? - broker_cpu,
            store_cpu_seconds: match (self.store, store_cpu) {
                (Some(store), Some(before)) => Some(store.process.cpu_seconds()? - before),
                _ => None,
            },
            broker_rss_before,
            broker_rss_max: broker.rss_bytes_max(),
            requests: self.store.map(Store::requests).transpose()?,
        })
    }
}

impl Measurement {
    /// The client does not say itself what it has done: so many bytes, in all the time that it ran.
    pub(crate) fn did(&mut self, bytes: f64) {
        self.outcome = Outcome(json!({"bytes": bytes, "seconds": self.wall_seconds}));
    }

    /// The figures that every table may show.
    pub(crate) fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::new();
        let mut put = |name: &str, value: Option<f64>| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                metrics.insert(name.to_owned(), value);
            }
        };
        let (bytes, seconds) = (self.outcome.bytes(), self.outcome.seconds());
        put("seconds", Some(seconds));
        put("bytes", Some(bytes));
        put(
            "mb_per_second",
            (seconds > 0.0 && bytes > 0.0).then_some(bytes / seconds / 1e6),
        );
        let per_gb = |cpu: f64| (bytes > 0.0).then_some(cpu / (bytes / 1e9));
        put("broker_cpu_s_per_gb", per_gb(self.broker_cpu_seconds));
        put("client_cpu_s_per_gb", per_gb(self.client_cpu_seconds));
        put("store_cpu_s_per_gb", self.store_cpu_seconds.and_then(per_gb));
        let cores = |cpu: f64| Some(cpu / self.wall_seconds);
        put("broker_cores", cores(self.broker_cpu_seconds));
        put("client_cores", cores(self.client_cpu_seconds));
        put("store_cores", self.store_cpu_seconds.and_then(cores));
        put(
            "rss_before_mb",
            self.broker_rss_before.map(|rss| rss as f64 / 1e6),
        );
        put("rss_mb", self.broker_rss_max.map(|rss| rss as f64 / 1e6));
        let plain = [
            "records",
            "errors",
            "retries",
            "lost",
            "first_byte_ms",
            "connections",
            "connect_seconds",
            "wakes",
            "longest_gap_ms",
        ];
        for name in plain {
            put(name, self.outcome.number(name));
        }
        for (of, prefix) in [
            ("latency_ms", ""),
            ("wake_latency_ms", ""),
            ("session_latency_ms", ""),
            ("produce_latency_ms", "produce_"),
        ] {
            for part in ["mean", "p50", "p90", "p95", "p99", "p999", "max"] {
                put(
                    &format!("{prefix}{part}_ms"),
                    self.outcome.number(&format!("{of}.{part}")),
                );
            }
        }
        if let Some(requests) = &self.requests {
            let dollars = requests.dollars();
            put(
                "dollars_per_gib",
                (bytes > 0.0).then_some(dollars / (bytes / GIB)),
            );
            put(
                "dollars_per_month",
                Some(dollars / self.wall_seconds * SECONDS_PER_MONTH),
            );
            put(
                "requests_per_second",
                Some(requests.total() as f64 / self.wall_seconds),
            );
            put("rejected", Some(requests.rejected as f64));
            for kind in ["put", "get", "head", "list", "multipart", "delete"] {
                let count = requests.by_kind.get(kind).copied().unwrap_or(0);
                put(&format!("{kind}_requests"), Some(count as f64));
            }
        }
        metrics
    }
}

/// A client that runs.
pub(crate) struct Running {
    child: Child,
    reads: Reads,
    shown: String,
    output: PathBuf,
    log: PathBuf,
    started: Instant,
}

impl Running {
    pub(crate) fn start(tools: &Tools, client: Client, name: &str) -> Result<Running, String> {
        let Client {
            command,
            shown,
            reads,
        } = client;
        let mut command = tied(command);
        let (output, log) = (tools.log(&format!("{name}-output")), tools.log(name));
        let create =
            |path: &PathBuf| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
        command
            .stdin(Stdio::null())
            .stdout(create(&output)?)
            .stderr(create(&log)?);
        let child = command.spawn().map_err(|error| format!("{shown}: {error}"))?;
        Ok(Running {
            child,
            reads,
            shown,
            output,
            log,
            started: Instant::now(),
        })
    }

    /// What it measured and its processor time, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<(Outcome, f64)>, String> {
        // A process that has ended keeps its times until it is waited for.
        let now = stat(self.child.id()).ok_or_else(|| format!("{}: not in /proc", self.shown))?;
        if now.state != 'Z' {
            if self.started.elapsed() > PATIENCE {
                return Err(format!("{} does not end\n{}", self.shown, tail_of(&self.log)));
            }
            return Ok(None);
        }
        let status = self
            .child
            .wait()
            .map_err(|error| format!("{}: {error}", self.shown))?;
        let output = std::fs::read_to_string(&self.output).unwrap_or_default();
        let failed = |error: String| format!("{}: {error}\n{}", self.shown, tail_of(&self.log));
        if !status.success() {
            return Err(failed(status.to_string()));
        }
        let outcome = self.reads.read(&output).map_err(failed)?;
        Ok(Some((outcome, now.cpu_seconds)))
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<Outcome, String> {
        loop {
            if let Some((outcome, _)) = self.ended()? {
                return Ok(outcome);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the disk finish what earlier rows left to be written, so that the next row does not pay for it.
pub(crate) fn settle() {
    let _ = Command::new("sync").status();
    std::thread::sleep(Duration::from_millis(500));
}

/// A broker that nobody uses: what it costs in this time.
pub(crate) fn watch_idle(
    broker: &Process,
    store: &Store,
    time: Duration,
) -> Result<(Metrics, BTreeMap<String, u64>), String> {
    store.reset_counts()?;
    let (cpu, started) = (broker.cpu_seconds()?, Instant::now());
    std::thread::sleep(time);
    let requests = store.requests()?;
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let mut metrics = Metrics::new();
    metrics.insert("minutes".to_owned(), minutes);
    let cores = (broker.cpu_seconds()? - cpu) / (minutes * 60.0);
    metrics.insert("broker_cores".to_owned(), cores);
    if let Some(rss) = broker.rss_bytes() {
        metrics.insert("rss_mb".to_owned(), rss as f64 / 1e6);
    }
    metrics.insert(
        "requests_per_minute".to_owned(),
        requests.total() as f64 / minutes,
    );
    for kind in ["put", "get", "head", "list", "multipart", "delete"] {
        let count = requests.by_kind.get(kind).copied().unwrap_or(0);
        metrics.insert(format!("{kind}_per_minute"), count as f64 / minutes);
    }
    let month = requests.dollars() / (minutes * 60.0) * SECONDS_PER_MONTH;
    metrics.insert("dollars_per_month".to_owned(), month);
    metrics.insert("dollars_per_month_of_three".to_owned(), 3.0 * month);
    Ok((metrics, requests.by_kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_what_was_seen_into_figures() {
        let measurement = Measurement {
            outcome: Outcome(json!({
                "bytes": 2_000_000_000u64, "seconds": 10.0, "records": 5, "errors": 0,
                "latency_ms": {"p50": 1.0, "p99": 4.0}, "produce_latency_ms": {"p99": 2.0}
            })),
            wall_seconds: 12.0,
            client_cpu_seconds: 6.0,
            broker_cpu_seconds: 3.0,
            store_cpu_seconds: Some(1.2),
            broker_rss_max: Some(300_000_000),
            requests: Some(Requests {
                by_kind: BTreeMap::from([("put".to_owned(), 600), ("get".to_owned(), 12)]),
                rejected: 0,
            }),
            ..Measurement::default()
        };
        let metrics = measurement.metrics();
        let near = |name: &str, expected: f64| {
            let found = metrics[name];
            assert!(
                (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
                "{name} {found}"
            );
        };
        near("mb_per_second", 200.0);
        near("broker_cpu_s_per_gb", 1.5);
        near("client_cpu_s_per_gb", 3.0);
        near("broker_cores", 0.25);
        near("store_cores", 0.1);
        near("rss_mb", 300.0);
        near("p99_ms", 4.0);
        near("produce_p99_ms", 2.0);
        near("put_requests", 600.0);
        near("list_requests", 0.0);
        near("requests_per_second", 51.0);
        near("dollars_per_gib", (600.0 * 5e-6 + 12.0 * 4e-7) / (2e9 / GIB));
        near(
            "dollars_per_month",
            (600.0 * 5e-6 + 12.0 * 4e-7) / 12.0 * 2_592_000.0,
        );
        assert!(!metrics.contains_key("retries"));
    }

    #[test]
    fn a_client_that_tells_nothing_worked_all_the_time() {
        let mut measurement = Measurement {
            wall_seconds: 4.0,
            ..Measurement::default()
        };
        measurement.did(2e6);
        assert_eq!(measurement.metrics()["mb_per_second"], 0.5);
    }

    #[test]
    fn work_without_bytes_has_no_figures_per_byte() {
        let measurement = Measurement {
            outcome: Outcome(json!({"kind": "many", "wakes": 3, "wake_latency_ms": {"p50": 2.0}})),
            wall_seconds: 1.0,
            ..Measurement::default()
        };
        let metrics = measurement.metrics();
        assert_eq!(metrics["p50_ms"], 2.0);
        assert_eq!(metrics["wakes"], 3.0);
        assert!(!metrics.contains_key("broker_cpu_s_per_gb") && !metrics.contains_key("mb_per_second"));
    }
}
