//! `minio-dev/`: the script is run as a newcomer runs it, and the compose file, for which there is no Docker here, is held
//! against the script, the Dockerfile and `monitoring/`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alluvium_tests::broker;
use alluvium_tests::installed::{Missing, analytics_missing, kcat_missing, root};
use alluvium_tests::minio::Minio;
use regex_lite::Regex;
use serde::Deserialize;
use serde_yaml_ng::Value;

/// The script with three brokers that were built without optimisation.
const PATIENCE: Duration = Duration::from_secs(240);
const COMPOSE: &str = "minio-dev/compose.yaml";
const SCRIPT: &str = "minio-dev/run";
/// Metrics and health inside a container, as the image has it.
const HTTP_PORT: &str = "9464";

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The compose file. What is not named here is a mistake, or has to be looked at by a test.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    #[serde(rename = "name")]
    _name: String,
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Service {
    image: String,
    build: Option<String>,
    depends_on: Vec<String>,
    restart: Option<String>,
    stop_grace_period: Option<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    /// Compose wants texts: what YAML takes for a number or a boolean is refused here.
    environment: BTreeMap<String, String>,
    ports: Vec<String>,
    volumes: Vec<String>,
}

fn compose() -> Compose {
    let mut whole: Value = serde_yaml_ng::from_str(&text(COMPOSE)).unwrap();
    whole.apply_merge().unwrap();
    let top = whole.as_mapping_mut().unwrap();
    // Extensions are for anchors alone.
    top.retain(|key, _| !key.as_str().is_some_and(|key| key.starts_with("x-")));
    serde_yaml_ng::from_value(whole).unwrap()
}

impl Compose {
    fn brokers(&self) -> Vec<&Service> {
        (1..=3)
            .map(|number| &self.services[&format!("broker-{number}")])
            .collect()
    }

    /// The file of the repository that a service sees at this path.
    fn mounted(&self, service: &str, path: &str) -> String {
        let volumes = &self.services[service].volumes;
        let found = volumes.iter().find_map(|volume| {
            let (source, rest) = volume.split_once(':')?;
            let inside = rest.strip_suffix(":ro")?;
            let below = path.strip_prefix(inside)?;
            Some(format!("minio-dev/{source}{below}"))
        });
        found.unwrap_or_else(|| panic!("{service} sees nothing at {path}"))
    }
}

/// A variable of the script: `name=value`, or `name=(a b c)`.
fn script_values(name: &str) -> Vec<String> {
    let script = text(SCRIPT);
    let prefix = format!("{name}=");
    let value = script
        .lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap();
    let value = value.trim_start_matches('(').trim_end_matches(')');
    value.split(' ').map(str::to_owned).collect()
}

/// The variables that `tests/minio.sh env` prints, for a container.
fn aws() -> BTreeMap<String, String> {
    let output = Command::new(root().join("tests/minio.sh"))
        .args(["env", "9000"])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout)
        .unwrap()
        .replace("127.0.0.1", "minio");
    let words = printed.split_whitespace().filter_map(|word| word.split_once('='));
    words
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn the_compose_file_is_complete_in_itself() {
    let compose = compose();
    let names: BTreeSet<&str> = compose.services.keys().map(String::as_str).collect();
    let expected = [
        "broker-1",
        "broker-2",
        "broker-3",
        "console",
        "grafana",
        "minio",
        "prometheus",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    let mut published = BTreeSet::new();
    for (name, service) in &compose.services {
        let (_, tag) = service.image.rsplit_once(':').unwrap();
        assert!(tag != "latest" && !tag.is_empty(), "{name}: {}", service.image);
        for needed in &service.depends_on {
            assert!(names.contains(needed.as_str()), "{name} needs {needed}");
        }
        for port in &service.ports {
            let parts: Vec<&str> = port.split(':').collect();
            assert_eq!(
                (parts.len(), parts[0]),
                (3, "127.0.0.1"),
                "{name}: {port} is open to the network"
            );
            assert!(
                published.insert(parts[1].to_owned()),
                "{name}: {port} is published twice"
            );
        }
        for volume in &service.volumes {
            let (source, _) = volume.split_once(':').unwrap();
            let there = match source.starts_with('.') {
                true => root().join("minio-dev").join(source).exists(),
                false => compose.volumes.contains_key(source),
            };
            assert!(there, "{name}: {volume}");
        }
    }
}

/// MinIO in the container is started as tests/minio.sh does it.
#[test]
fn minio_is_the_one_of_the_script() {
    let compose = compose();
    let minio = &compose.services["minio"];
    let script = text("tests/minio.sh");
    let line = script
        .lines()
        .find(|line| line.contains("export MINIO_ROOT_USER"))
        .unwrap();
    let exported: BTreeMap<String, String> = line
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(minio.environment, exported);
    assert!(script.contains(r#"mkdir -p "$dir/$bucket""#));
    assert!(script.contains(r#"exec "$tools/minio" server --quiet --address "127.0.0.1:$port" "$dir""#));
    assert_eq!(minio.entrypoint, ["sh", "-c"]);
    let port = &script_values("minio_port")[0];
    let command = format!("mkdir -p /data/alluvium && exec minio server --quiet --address :{port} /data");
    assert_eq!(minio.command, [command]);
    assert_eq!(minio.ports, [format!("127.0.0.1:{port}:{port}")]);
    assert_eq!(minio.volumes, ["minio:/data"]);
}

#[test]
fn brokers_are_those_of_the_script() {
    let compose = compose();
    let script = text(SCRIPT);
    let (store, partitions) = (script_values("store"), script_values("partitions"));
    let (kafka_ports, http_ports) = (script_values("kafka_ports"), script_values("http_ports"));
    // What the script gives its brokers, besides what differs by network.
    let given = Regex::new(r"(?m)^ +(ALLUVIUM_[A-Z_]+)=").unwrap();
    let given: BTreeSet<&str> = given
        .captures_iter(&script)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    let networks = [
        "ALLUVIUM_LISTENER_SECURITY_PROTOCOL_MAP",
        "ALLUVIUM_ADVERTISED_LISTENERS",
    ];
    // The image listens for HTTP on all its addresses anyway.
    let by_the_image = "ALLUVIUM_HTTP_LISTEN";
    for (i, service) in compose.brokers().into_iter().enumerate() {
        let (number, kafka, http) = (i + 1, &kafka_ports[i], &http_ports[i]);
        let of = |name: &str| service.environment[name].as_str();
        assert_eq!(of("ALLUVIUM_STORE_URL"), store[0]);
        assert_eq!(of("ALLUVIUM_NUM_PARTITIONS"), partitions[0]);
        assert_eq!(of("ALLUVIUM_NODE_ID"), number.to_string());
        let listeners = format!("INTERNAL://0.0.0.0:19092,HOST://0.0.0.0:{kafka}");
        assert_eq!(of("ALLUVIUM_LISTENERS"), listeners);
        let advertised = format!("INTERNAL://broker-{number}:19092,HOST://127.0.0.1:{kafka}");
        assert_eq!(of("ALLUVIUM_ADVERTISED_LISTENERS"), advertised);
        let ports = [
            format!("127.0.0.1:{kafka}:{kafka}"),
            format!("127.0.0.1:{http}:{HTTP_PORT}"),
        ];
        assert_eq!(service.ports, ports);
        let own: BTreeSet<&str> = service.environment.keys().map(String::as_str).collect();
        let ours = own
            .iter()
            .copied()
            .filter(|name| name.starts_with("ALLUVIUM_") && !networks.contains(name));
        let expected = given.iter().copied().filter(|name| *name != by_the_image);
        assert_eq!(ours.collect::<BTreeSet<_>>(), expected.collect());
        let credentials = service
            .environment
            .iter()
            .filter(|(name, _)| name.starts_with("AWS_"));
        assert_eq!(
            credentials
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<BTreeMap<_, _>>(),
            aws()
        );
        assert_eq!(service.build.as_deref(), Some(".."), "the Dockerfile is there");
        assert_eq!(service.depends_on, ["minio"]);
        assert_eq!(service.restart.as_deref(), Some("on-failure"));
        assert!(
            service.entrypoint.is_empty() && service.command.is_empty(),
            "the image knows what to run"
        );
    }
}

/// The broker itself reads what a container would give it.
#[test]
fn the_broker_accepts_the_settings_of_the_containers() {
    for service in compose().brokers() {
        let mut env: Vec<(String, String)> = service.environment.clone().into_iter().collect();
        let config = root().join("container/server.properties");
        env.push(("ALLUVIUM_CONFIG".to_owned(), config.to_str().unwrap().to_owned()));
        let output = broker::run(&["config", "--json"], &env, Duration::from_secs(30));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        let settings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let broker = settings.as_array().unwrap();
        let value = |name: &str| broker.iter().find(|one| one["name"] == name).unwrap()["value"].clone();
        assert_eq!(value("http.listen"), format!("0.0.0.0:{HTTP_PORT}"));
        assert_eq!(value("listeners"), service.environment["ALLUVIUM_LISTENERS"]);
        let stop_ms: u64 = value("shutdown.timeout.ms").as_str().unwrap().parse().unwrap();
        let grace = service.stop_grace_period.as_deref().unwrap();
        let grace_s: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
        assert!(
            grace_s * 1000 > stop_ms,
            "killed after {grace}, in the middle of a stop of {stop_ms} ms"
        );
    }
}

#[test]
fn prometheus_and_grafana_find_everything() {
    let compose = compose();
    #[derive(Deserialize)]
    struct Scrapes {
        rule_files: Vec<String>,
        scrape_configs: Vec<Job>,
    }
    #[derive(Deserialize)]
    struct Job {
        job_name: String,
        static_configs: Vec<BTreeMap<String, Vec<String>>>,
    }
    let file = compose.mounted("prometheus", "/etc/prometheus/prometheus.yml");
    let scrapes: Scrapes = serde_yaml_ng::from_str(&text(&file)).unwrap();
    let rules = compose.mounted("prometheus", &scrapes.rule_files[0]);
    assert!(text(&rules).contains("AlluviumBrokerDown"));
    let [job] = scrapes.scrape_configs.as_slice() else {
        panic!("one job")
    };
    assert!(
        job.job_name.contains("alluvium"),
        "the alert about a broker that is down looks for it"
    );
    let targets = &job.static_configs[0]["targets"];
    let expected: Vec<String> = (1..=3)
        .map(|number| format!("broker-{number}:{HTTP_PORT}"))
        .collect();
    assert_eq!(*targets, expected);

    let source = compose.mounted("grafana", "/etc/grafana/provisioning/datasources/prometheus.yaml");
    let source: Value = serde_yaml_ng::from_str(&text(&source)).unwrap();
    assert_eq!(source["datasources"][0]["url"], "http://prometheus:9090");
    assert_eq!(compose.services["prometheus"].ports, ["127.0.0.1:9090:9090"]);
    let provider = compose.mounted("grafana", "/etc/grafana/provisioning/dashboards/alluvium.yaml");
    let provider: Value = serde_yaml_ng::from_str(&text(&provider)).unwrap();
    let directory = provider["providers"][0]["options"]["path"].as_str().unwrap();
    let home = &compose.services["grafana"].environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert_eq!(Path::new(home).parent(), Some(Path::new(directory)));
    let dashboard = compose.mounted("grafana", home);
    let dashboard: serde_json::Value = serde_json::from_str(&text(&dashboard)).unwrap();
    assert_eq!(dashboard["uid"], "alluvium");

    let console = &compose.services["console"].environment["AKHQ_CONFIGURATION"];
    let console: Value = serde_yaml_ng::from_str(console).unwrap();
    let bootstrap = &console["akhq"]["connections"]["alluvium"]["properties"]["bootstrap.servers"];
    let brokers = compose.brokers();
    let internal: Vec<&str> = brokers
        .iter()
        .map(|broker| broker.environment["ALLUVIUM_ADVERTISED_LISTENERS"].as_str())
        .map(|list| {
            list.split(',')
                .next()
                .unwrap()
                .strip_prefix("INTERNAL://")
                .unwrap()
        })
        .collect();
    assert_eq!(bootstrap.as_str().unwrap(), internal.join(","));
}

/// The commands that the page shows are those that the script runs, so that CI has run them.
#[test]
fn the_page_shows_the_commands_of_the_script() {
    let script = text(SCRIPT);
    let shown = Regex::new(r#"(?m)^ *show (?:"((?:[^"\\]|\\.)*)"|'([^']*)')$"#).unwrap();
    let of_script: Vec<String> = shown
        .captures_iter(&script)
        .map(|found| match (found.get(1), found.get(2)) {
            (Some(quoted), _) => quoted
                .as_str()
                .replace("\\\"", "\"")
                .replace("$store", &script_values("store")[0]),
            (None, Some(plain)) => plain.as_str().to_owned(),
            (None, None) => unreachable!("one of the two"),
        })
        .collect();
    let page = text("minio-dev/README.md");
    let (_, tour) = page.split_once("## The tour").unwrap();
    let of_page: Vec<&str> = tour.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(of_page.len() >= 7, "{of_page:?}");
    assert_eq!(of_page, of_script);
    assert!(page.contains(&format!("$ docker compose -f {COMPOSE} up --build --detach\n")));
    assert!(page.contains(&format!("$ {SCRIPT}\n")));
}

/// What the script needs to show everything.
fn missing() -> Option<String> {
    let programs = analytics_missing().or_else(kcat_missing).or_else(Minio::missing);
    programs.or_else(go_missing).or_else(|| {
        let taken = ports().into_iter().find(|port| listens(*port));
        taken.map(|port| format!("something listens on port {port}, which minio-dev/run needs"))
    })
}

/// It builds what stands in for kcat.
fn go_missing() -> Option<String> {
    let go = Command::new("go").arg("version").output();
    go.is_err()
        .then(|| "Go is not installed: 1.26 or newer".to_owned())
}

/// The `PATH` of a machine without kcat: in the place of a directory that has it are links to all else that is there.
fn path_without_kcat(links: &Path) -> OsString {
    let path = std::env::var_os("PATH").unwrap();
    let directories = std::env::split_paths(&path).enumerate().map(|(i, directory)| {
        if !directory.join("kcat").exists() {
            return directory;
        }
        let links = links.join(i.to_string());
        std::fs::create_dir(&links).unwrap();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "kcat" {
                std::os::unix::fs::symlink(directory.join(&name), links.join(&name)).unwrap();
            }
        }
        links
    });
    std::env::join_paths(directories).unwrap()
}

fn ports() -> Vec<u16> {
    let names = ["minio_port", "kafka_ports", "http_ports"];
    let values = names.into_iter().flat_map(script_values);
    values.map(|port| port.parse().unwrap()).collect()
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The script, under way. Dropping it stops it as Ctrl-C does.
struct Running {
    child: Child,
    output: std::fs::File,
    directory: tempfile::TempDir,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        Running::start_in(None, arguments)
    }

    /// With another `PATH` than this program's.
    fn start_in(programs: Option<OsString>, arguments: &[&str]) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output");
        let output = std::fs::File::create(&path).unwrap();
        let temporary = directory.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let mut command = Command::new(root().join(SCRIPT));
        broker::isolate(&mut command);
        let child = command
            .args(arguments)
            .env("ALLUVIUM_BIN", broker::binary())
            .env("TMPDIR", &temporary)
            .envs(programs.map(|programs| ("PATH", programs)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Running {
            child,
            output: std::fs::File::open(path).unwrap(),
            directory,
        }
    }

    fn printed(&mut self) -> String {
        use std::io::{Seek, SeekFrom};
        let mut text = String::new();
        self.output.seek(SeekFrom::Start(0)).unwrap();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn interrupt(&self) {
        broker::signal(self.child.id(), "INT");
    }

    /// Waits until it has ended; nothing of it may be left.
    fn ended(&mut self, code: i32) -> String {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.printed());
            std::thread::sleep(Duration::from_millis(50));
        };
        let printed = self.printed();
        assert_eq!(status.code(), Some(code), "{printed}");
        let left: Vec<u16> = ports().into_iter().filter(|port| listens(*port)).collect();
        assert!(left.is_empty(), "something still listens on {left:?}: {printed}");
        let files = std::fs::read_dir(self.directory.path().join("tmp")).unwrap();
        assert_eq!(files.count(), 0, "files are left: {printed}");
        printed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.interrupt();
            let _ = self.child.wait();
        }
    }
}

/// The texts, one after the other.
fn in_order(printed: &str, texts: &[&str]) {
    let mut rest = printed;
    for text in texts {
        let (_, after) = rest
            .split_once(text)
            .unwrap_or_else(|| panic!("no {text:?} where it should be in\n{printed}"));
        rest = after;
    }
}

/// What it shows, whatever kcat is.
const SHOWN: [&str; 14] = [
    "MinIO on port 9000",
    "broker 3 on port 9094",
    "$ alluvium cluster status",
    "$ kcat -b 127.0.0.1:9092 -t orders -P",
    "-C -o beginning",
    "ada|{\"order\":1,\"item\":\"tea\",\"price\":4.5}",
    "$ kill -9",
    "fay|{\"order\":5,\"item\":\"tea\",\"price\":4.5}\n",
    "$ alluvium archive flush orders",
    "'orders': 5 records in 6 partitions are Parquet",
    "$ duckdb < minio-dev/query.sql",
    "│ ada      │      2 │    9.75 │",
    "│ fay      │      1 │     4.5 │",
    "Stopped, and everything removed.",
];

/// One after the other, since they have the same ports.
#[test]
fn the_script_shows_everything_and_leaves_nothing() {
    const STANDS_IN: &str = "kcat is not installed; a small client of ours stands in for it";
    if !Missing::from_environment().goes_on(missing()) {
        return;
    }
    let printed = Running::start(&[]).ended(0);
    in_order(&printed, &SHOWN);
    assert!(!printed.contains(STANDS_IN), "{printed}");
    // What is kept is run without kcat, so that both are seen in one go.
    let links = tempfile::tempdir().unwrap();
    let path = path_without_kcat(links.path());
    let mut kept = Running::start_in(Some(path.clone()), &["--keep"]);
    let deadline = Instant::now() + PATIENCE;
    while !kept.printed().contains("It goes on until Ctrl-C") {
        assert!(Instant::now() < deadline && kept.runs(), "{}", kept.printed());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(ports().into_iter().all(listens), "all of it runs");
    // What it says to type in another terminal.
    let said = kept.printed();
    let mut lines = said.lines().map(str::trim);
    let mut last = |start: &str| lines.rfind(|line| line.starts_with(start)).unwrap();
    let (consume, export) = (last("kcat "), last("export PATH="));
    let typed = Command::new("bash")
        .args(["-c", &format!("{export}\n{consume}")])
        .env("PATH", path)
        .output()
        .unwrap();
    let consumed = String::from_utf8_lossy(&typed.stdout);
    assert!(consumed.contains("fay|"), "{consume}: {typed:?}");
    kept.interrupt();
    let printed = kept.ended(130);
    in_order(&printed, &[&[STANDS_IN][..], &SHOWN].concat());
    // And in the middle of the start.
    let mut early = Running::start(&[]);
    let deadline = Instant::now() + PATIENCE;
    while !early.printed().contains("MinIO on port") {
        assert!(Instant::now() < deadline && early.runs(), "{}", early.printed());
        std::thread::sleep(Duration::from_millis(10));
    }
    early.interrupt();
    early.ended(130);
}
