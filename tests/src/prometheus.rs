//! A real Prometheus on the loopback interface, installed by `tests/monitoring.sh`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{free_address, http_get};
use crate::installed::root;

/// Time that the start may take on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The path of `prometheus` or `promtool`, if it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    let output = Command::new(root().join("tests/monitoring.sh"))
        .args(["which", name])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim_end()))
}

/// What is missing for [`Prometheus::start`], if anything.
pub fn missing() -> Option<String> {
    let lacks = ["prometheus", "promtool"]
        .into_iter()
        .find(|name| program(name).is_none())?;
    Some(format!(
        "{lacks} is not installed: run tests/monitoring.sh install"
    ))
}

/// One series of an answer: its labels and its value.
pub type Sample = (Value, f64);

/// A running Prometheus. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Prometheus {
    /// Starts it with a configuration of one job, `alluvium`, that scrapes these addresses every second, and with the
    /// rules of a file; waits until it is ready.
    pub fn start(targets: &[SocketAddr], rules: &Path) -> Prometheus {
        let directory = TempDir::with_prefix("alluvium-prometheus-").expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let rules = rules.canonicalize().expect("the file of rules");
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: alluvium, static_configs: [{{targets: [{}]}}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        std::fs::write(at("prometheus.yml"), configuration).expect("its configuration");
        let log = File::create(at("prometheus.log")).expect("its log");
        let address = free_address();
        let child = Command::new(program("prometheus").expect("Prometheus is installed"))
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("its log"))
            .stderr(log)
            .spawn()
            .expect("Prometheus starts");
        let mut prometheus = Prometheus {
            child,
            address,
            directory,
        };
        let deadline = Instant::now() + START_PATIENCE;
        while prometheus.get("/-/ready").is_err() {
            let ended = prometheus.child.try_wait().expect("the state of Prometheus");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "Prometheus does not start: {}",
                prometheus.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        prometheus
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("prometheus.log")).unwrap_or_default()
    }

    /// Evaluates an expression now: a series for each element of the vector, or one for a scalar.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = self.api(&format!("/api/v1/query?query={encoded}"))?;
        let result = &answer["result"];
        let series: Vec<&Value> = match answer["resultType"].as_str() {
            Some("vector") => result.as_array().into_iter().flatten().collect(),
            kind => return Err(format!("a result of type {kind:?}, not a vector")),
        };
        let sample = |one: &Value| {
            let value = one["value"][1].as_str()?.parse().ok()?;
            Some((one["metric"].clone(), value))
        };
        let samples: Option<Vec<Sample>> = series.into_iter().map(sample).collect();
        samples.ok_or_else(|| format!("not understood: {answer}"))
    }

    /// The rules that it has loaded, as its API describes them.
    pub fn rules(&self) -> Result<Vec<Value>, String> {
        let answer = self.api("/api/v1/rules")?;
        let groups = answer["groups"].as_array().into_iter().flatten();
        let rules = groups.filter_map(|group| group["rules"].as_array()).flatten();
        Ok(rules.cloned().collect())
    }

    /// What the API answers, without its envelope.
    fn api(&self, path: &str) -> Result<Value, String> {
        let mut answer: Value = serde_json::from_str(&self.get(path)?).map_err(|e| e.to_string())?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// The body of an answer; that of an error of the API is JSON as well.
    fn get(&self, path: &str) -> Result<String, String> {
        match http_get(self.address, path).map_err(|e| e.to_string())? {
            (200 | 400 | 422, body) => Ok(body),
            (status, body) => Err(format!("status {status}: {body}")),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
