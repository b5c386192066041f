//! Runs the real `alluvium` binary: builds it once, starts it, kills it, pauses it, looks at it.
//!
//! Everything here panics when something is not as it should be: it is a test harness, and a panic shows the
//! test and the end of the broker's log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng;
use tempfile::TempDir;

/// Time that a start, recovery included, may take.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Time that a graceful stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a log that a failed test shows.
const LOG_SHOWN_BYTES: usize = 16 * 1024;

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Store URL; `None` is a fresh embedded store that goes away with the broker.
    pub store: Option<String>,
    /// Settings, given as `--set`.
    pub settings: Vec<(String, String)>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// Further arguments of `serve`.
    pub arguments: Vec<String>,
    /// Where its output goes; `None` is a file that goes away with the broker.
    pub log: Option<PathBuf>,
}

impl BrokerOptions {
    /// On a fresh embedded store.
    pub fn embedded() -> BrokerOptions {
        BrokerOptions {
            store: None,
            settings: Vec::new(),
            env: Vec::new(),
            arguments: Vec::new(),
            log: None,
        }
    }

    /// On this store.
    pub fn on(store: impl Into<String>) -> BrokerOptions {
        BrokerOptions {
            store: Some(store.into()),
            ..BrokerOptions::embedded()
        }
    }

    /// Adds a setting.
    pub fn set(mut self, key: &str, value: impl ToString) -> BrokerOptions {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Keeps the output in this file.
    pub fn log(mut self, path: &Path) -> BrokerOptions {
        self.log = Some(path.to_owned());
        self
    }

    /// Adds environment variables.
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> BrokerOptions {
        self.env.extend(variables);
        self
    }
}

/// A running broker. Dropping it kills it.
#[derive(Debug)]
pub struct Broker {
    options: BrokerOptions,
    store: String,
    kafka: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
    log: PathBuf,
    /// Holds the log and, when no store was named, the data.
    directory: TempDir,
}

impl Broker {
    /// Starts a broker and waits until it is ready.
    pub fn start(options: BrokerOptions) -> Broker {
        let mut broker = Broker::prepare(options);
        broker.launch();
        broker
    }

    /// Chooses ports and directories; [`Broker::launch`] starts the process.
    pub fn prepare(options: BrokerOptions) -> Broker {
        let directory = TempDir::with_prefix("alluvium-").expect("a temporary directory");
        let data = directory.path().join("data");
        let store = options
            .store
            .clone()
            .unwrap_or_else(|| format!("file://{}", data.display()));
        let own_log = || directory.path().join("broker.log");
        let log = options.log.clone().unwrap_or_else(own_log);
        Broker {
            options,
            store,
            kafka: free_address(),
            http: free_address(),
            child: None,
            log,
            directory,
        }
    }

    /// Starts the process on the same store and ports and waits until it is ready.
    pub fn launch(&mut self) {
        self.spawn();
        let deadline = Instant::now() + START_PATIENCE;
        while !self.is_ready() {
            if let Some(status) = self.exited() {
                panic!("the broker ended at its start: {status}\n{}", self.log_tail());
            }
            assert!(
                Instant::now() < deadline,
                "the broker is not ready in time\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the broker is running");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the broker's log");
        let mut command = command();
        command.arg("serve").args(self.arguments());
        command.envs(self.options.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the broker's log"))
            .stderr(log);
        self.child = Some(command.spawn().expect("the broker starts"));
    }

    /// Arguments of `serve`, as [`Broker::spawn`] gives them.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--store".to_owned(),
            self.store.clone(),
            "--listeners".to_owned(),
            format!("PLAINTEXT://{}", self.kafka),
            "--http-listen".to_owned(),
            self.http.to_string(),
        ];
        for (key, value) in &self.options.settings {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    /// Where Kafka clients connect.
    pub fn address(&self) -> SocketAddr {
        self.kafka
    }

    /// Where metrics and health are.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Chooses another address for metrics and health, before the process is started.
    pub fn set_http(&mut self, address: SocketAddr) {
        self.http = address;
    }

    /// URL of the store.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Directory of the log and, when no store was named, of the data (below `data`).
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the broker is running").id()
    }

    /// Whether the broker says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.http_get("/readyz").is_ok_and(|(status, _)| status == 200)
    }

    /// Status and body of an HTTP path.
    pub fn http_get(&self, path: &str) -> io::Result<(u16, String)> {
        http_get(self.http, path)
    }

    /// The value of a metric, summed over its labels; labels may be given as in `name{kind="put"}`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        metric(self.http, name)
    }

    /// The exit status, if the process has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the broker was started");
        child.try_wait().expect("the state of the broker")
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; what matters is that it is gone.
            let _ = child.kill();
            child.wait().expect("the broker's end");
        }
    }

    /// SIGTERM; the broker must end in time with exit code 0.
    pub fn terminate(&mut self) {
        self.signal("TERM");
        let status = self.wait_for_exit(STOP_PATIENCE);
        assert!(
            status.success(),
            "a graceful stop ended with {status}\n{}",
            self.log_tail()
        );
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.exited() {
                self.child = None;
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the broker does not end\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL and a new process on the same store and ports.
    pub fn restart(&mut self) {
        self.kill_9();
        self.launch();
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Resident memory in bytes now; `None` where the system does not tell.
    pub fn rss_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    /// Most resident memory in bytes since the start of the process.
    pub fn rss_bytes_max(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// Everything that the broker printed so far, over all its starts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(LOG_SHOWN_BYTES);
        let start = (start..=log.len())
            .find(|at| log.is_char_boundary(*at))
            .unwrap_or(log.len());
        format!(
            "--- log of the broker ---\n{}--- end of the log ---",
            &log[start..]
        )
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// Runs `alluvium` with these arguments until it ends by itself.
pub fn run(arguments: &[&str], env: &[(String, String)], patience: Duration) -> Output {
    let mut command = command();
    command.args(arguments).envs(env.iter().cloned());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("alluvium starts");
    // A pipe that is full would hold it up.
    let stdout = drained(child.stdout.take().expect("its output"));
    let stderr = drained(child.stderr.take().expect("its errors"));
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the state of alluvium") {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = (
        stdout.join().expect("its output"),
        stderr.join().expect("its errors"),
    );
    let Some(status) = status else {
        let errors = String::from_utf8_lossy(&stderr);
        panic!("alluvium {arguments:?} does not end: {errors}");
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Reads a pipe to its end, in the background.
fn drained(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is what is shown.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn command() -> Command {
    let mut command = Command::new(binary());
    isolate(&mut command);
    command
}

/// Keeps settings and credentials of the surroundings of the test from a command that runs `alluvium`.
pub fn isolate(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["ALLUVIUM_", "AWS_", "KAFKA_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
}

/// The `alluvium` binary: `ALLUVIUM_TEST_BIN` if that is set, else the one beside this program, else (for tests) built
/// once per test process, in the profile and target directory of the tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("ALLUVIUM_TEST_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside().unwrap_or_else(build),
    })
}

/// The binary beside this program. Tests lie in a directory of their own, and theirs may be an old one.
fn beside() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("alluvium");
    let is_test = path
        .parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name == "deps");
    (!is_test && path.exists()).then_some(path)
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    // With the whole workspace selected, features are resolved as they were for the tests, so that what is
    // compiled already is used again.
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args([
        "build",
        "--workspace",
        "--bin",
        "alluvium",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let test = std::env::current_exe().expect("the path of the test");
    // target/<profile>/deps/<test>
    let profile_dir = test
        .parent()
        .and_then(Path::parent)
        .expect("a test in a target directory");
    match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            command.args(["--profile", profile]);
        }
    }
    if let Some(target) = profile_dir.parent()
        && target.join("CACHEDIR.TAG").exists()
    {
        command.arg("--target-dir").arg(target);
    }
    // What the outer cargo says about the package under test would make build scripts that look at it (ring's
    // does) run again, and with them half of the tree.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_CRATE_NAME"
        {
            command.env_remove(&name);
        }
    }
    let output = command.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "alluvium does not build");
    executable(&output.stdout).expect("cargo names the binary that it built")
}

/// The path of the binary in the messages of cargo.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.split(|byte| *byte == b'\n');
    let paths = messages.filter_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        (message["target"]["name"] == "alluvium")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    paths.reduce(|_, last| last)
}

/// Sends a signal to a process, by its name without "SIG".
pub fn signal(pid: u32, name: &str) {
    // The shell's own `kill` is there even where no such program is installed.
    let script = format!("kill -{name} {pid}");
    let status = Command::new("sh")
        .args(["-c", &script])
        .status()
        .expect("sh runs");
    assert!(status.success(), "{script}: {status}");
}

/// Waits until something holds.
///
/// # Panics
/// If it does not in time.
pub fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A free address. Its port lies below those that the system gives to outgoing connections, so that it stays
/// free while a broker restarts, and is given out once.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    for _ in 0..1_000 {
        let port = rand::rng().random_range(12_000..32_000);
        let mut given = GIVEN.lock();
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.push(port);
            return SocketAddr::from(([127, 0, 0, 1], port));
        }
    }
    panic!("no free port")
}

/// Status and body of a plain HTTP GET.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    http(address, "GET", path, "")
}

/// The value of a broker's metric, summed over its labels; labels may be given as in `name{kind="put"}`.
pub fn metric(http: SocketAddr, name: &str) -> Option<f64> {
    let (_, text) = http_get(http, "/metrics").ok()?;
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let labels = labels.trim_end_matches('}');
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, found_labels) = series.split_once('{').unwrap_or((series, ""));
        (found == name && found_labels.contains(labels)).then(|| value.parse::<f64>().ok())?
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// Status and body of the answer to a plain HTTP request. HTTP/1.0, so that the body comes in one piece.
pub fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_binary_in_the_messages_of_cargo() {
        let messages = br#"{"reason":"compiler-artifact","target":{"name":"alluvium"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"alluvium"},"executable":"/t/debug/alluvium"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/alluvium")));
        assert_eq!(executable(b"{}\n"), None);
    }

    #[test]
    fn gives_every_port_once() {
        let addresses: std::collections::BTreeSet<SocketAddr> = (0..50).map(|_| free_address()).collect();
        assert_eq!(addresses.len(), 50);
    }
}
