//! The S3 fake as a process of its own, so that its processor time is not the broker's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Tools;
use super::process::Process;
use super::statistics::dollars;
use crate::broker::{self, free_address, http_get};
use crate::s3_fake::environment;

/// Bytes that the fake may hold: more than any row writes, less than would take the machine down.
const BYTES_MAX: u64 = 14 << 30;

/// Latencies of a store, in the form of the fake's options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreLatency {
    pub(crate) put: &'static str,
    pub(crate) get: &'static str,
    pub(crate) list: &'static str,
}

impl StoreLatency {
    /// The text that `/_fake/latency` takes.
    pub(crate) fn text(&self) -> String {
        format!("put={},get={},list={}", self.put, self.get, self.list)
    }
}

/// A running fake. It forgets everything when it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) process: Process,
    address: SocketAddr,
}

/// What the fake was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    pub(crate) by_kind: BTreeMap<String, u64>,
    /// Requests that a correct client would not send.
    pub(crate) rejected: u64,
}

impl Requests {
    pub(crate) fn dollars(&self) -> f64 {
        dollars(&self.by_kind)
    }

    pub(crate) fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }
}

impl Store {
    /// Starts a fake with these latencies and, if there is one, a fault rule.
    pub(crate) fn start(tools: &Tools, latency: StoreLatency, fault: Option<&str>) -> Result<Store, String> {
        let address = free_address();
        let mut command = Command::new(&tools.s3_fake);
        command.args(["--listen", &address.to_string()]);
        command.args(["--put-ms", latency.put, "--get-ms", latency.get]);
        command.args(["--list-ms", latency.list]);
        // MD5 over every byte is the store's work in reality, not this machine's.
        command.args(["--etag", "counter", "--threads", "2"]);
        command.args(["--max-bytes", &BYTES_MAX.to_string()]);
        if let Some(rule) = fault {
            command.args(["--fault", rule]);
        }
        let mut process = Process::start("s3-fake", command, &tools.log("s3-fake"))?;
        process.wait_until(Duration::from_secs(20), || {
            http_get(address, "/_fake/latency").is_ok_and(|(status, _)| status == 200)
        })?;
        Ok(Store { process, address })
    }

    /// URL of the bucket as the broker takes it.
    pub(crate) fn url(&self) -> String {
        "s3://alluvium/benchmarks".to_owned()
    }

    /// Variables that point an S3 client here.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        environment(&format!("http://{}", self.address))
    }

    /// Counts anew from here.
    pub(crate) fn reset_counts(&self) -> Result<(), String> {
        self.control("DELETE", "counts", "").map(drop)
    }

    /// Requests since the last reset.
    pub(crate) fn requests(&self) -> Result<Requests, String> {
        let text = self.control("GET", "counts", "")?;
        let value = serde_json::from_str(&text).map_err(|error| format!("s3-fake: {error}"))?;
        parse_counts(&value).ok_or_else(|| format!("s3-fake: counts {text}"))
    }

    /// Replaces the latencies.
    pub(crate) fn set_latency(&self, text: &str) -> Result<(), String> {
        self.control("PUT", "latency", text).map(drop)
    }

    /// `refuse`, `hang`, `503` or `off`.
    pub(crate) fn set_outage(&self, outage: &str) -> Result<(), String> {
        self.control("PUT", "outage", outage).map(drop)
    }

    /// An object of text below `benchmarks/`.
    pub(crate) fn text_of(&self, key: &str) -> Result<String, String> {
        let answer = self.control("GET", &format!("object/benchmarks/{key}"), "")?;
        let object: Value = serde_json::from_str(&answer).map_err(|error| format!("s3-fake: {error}"))?;
        let text = object["text"].as_str();
        text.map(str::to_owned)
            .ok_or_else(|| format!("s3-fake: {key} without text"))
    }

    fn control(&self, method: &str, name: &str, body: &str) -> Result<String, String> {
        let failed = |error: io::Error| format!("s3-fake: {method} {name}: {error}");
        let (status, answer) = self.exchange(method, name, body).map_err(failed)?;
        if status == 200 {
            Ok(answer)
        } else {
            Err(format!("s3-fake: {method} {name}: {status} {answer}"))
        }
    }

    fn exchange(&self, method: &str, name: &str, body: &str) -> io::Result<(u16, String)> {
        broker::http(self.address, method, &format!("/_fake/{name}"), body)
    }
}

/// The counts of `/_fake/counts`.
fn parse_counts(value: &Value) -> Option<Requests> {
    let mut requests = Requests {
        rejected: value["rejected"].as_u64()?,
        ..Requests::default()
    };
    for (kind, counts) in value["kinds"].as_object()? {
        requests
            .by_kind
            .insert(kind.clone(), counts["requests"].as_u64()?);
    }
    Some(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_the_counts_of_the_fake() {
        let value = json!({
            "kinds": {"put": {"requests": 3, "bytes_in": 7}, "get": {"requests": 10}},
            "rejected": 1, "outage": 0, "dollars": 0.1
        });
        let requests = parse_counts(&value).unwrap();
        assert_eq!(requests.total(), 13);
        assert_eq!(requests.rejected, 1);
        assert!((requests.dollars() - 1.9e-5).abs() < 1e-12);
        assert_eq!(parse_counts(&json!({"kinds": {"put": {}}, "rejected": 0})), None);
        assert_eq!(parse_counts(&json!([])), None);
    }

    #[test]
    fn reads_what_the_fake_really_says() {
        let counts = crate::s3_fake::Counts::default();
        let value = serde_json::to_value(counts).unwrap();
        assert_eq!(parse_counts(&value), Some(Requests::default()));
    }
}
