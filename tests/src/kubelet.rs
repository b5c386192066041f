//! Plays the kubelet for pods of the Helm chart: takes command, variables, settings files, probes and times from the
//! rendered manifests and runs the real binary by them, on loopback addresses of its own for each pod.
//!
//! What a cluster would bring is replaced in the texts of the manifest before a process sees them: `0.0.0.0` is the
//! pod's own address, names of services and pods are the addresses behind them, and what is mounted is a directory.
//! Everything else stays as it is rendered.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{binary, http_get, signal};
use crate::installed::{root, target};

/// Name of the release that is rendered.
pub const RELEASE: &str = "trial";
/// Its namespace.
pub const NAMESPACE: &str = "streams";
/// The label with a pod's ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// The label with the zone of a pod's node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Pause between two looks at a process.
const LOOK: Duration = Duration::from_millis(20);

/// The objects of a rendered chart.
#[derive(Debug)]
pub struct Manifests {
    objects: Vec<Value>,
}

impl Manifests {
    /// What is missing to render the chart and to run its pods, if anything.
    pub fn missing() -> Option<String> {
        let tools = target().join("tools");
        if !tools.join("helm").exists() || !tools.join("helm-check").exists() {
            return Some("Helm is not built: run helm/check.sh install".to_owned());
        }
        let addresses = TcpListener::bind((Ipv4Addr::new(127, 77, 7, 7), 0));
        addresses
            .err()
            .map(|error| format!("this machine has one loopback address, not a network of them: {error}"))
    }

    /// Renders the chart with these arguments of `helm template`; every object must be valid.
    pub fn render(arguments: &[&str]) -> Manifests {
        let check = root().join("helm/check.sh");
        let rendered = Command::new(&check)
            .args(["helm", "template", RELEASE])
            .arg(root().join("helm/alluvium"))
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .expect("helm runs");
        let errors = String::from_utf8_lossy(&rendered.stderr);
        assert!(rendered.status.success(), "helm {arguments:?}: {errors}");
        let mut checked = Command::new(&check)
            .args(["check", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("helm-check runs");
        let mut input = checked.stdin.take().expect("its input");
        let writer = std::thread::spawn(move || input.write_all(&rendered.stdout));
        let output = checked.wait_with_output().expect("its end");
        writer.join().expect("the writer").expect("all is read");
        assert!(output.status.success(), "the manifests are not valid");
        Manifests {
            objects: serde_json::from_slice(&output.stdout).expect("JSON"),
        }
    }

    /// The objects of a kind.
    pub fn all<'m>(&'m self, kind: &str) -> impl Iterator<Item = &'m Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The object of this kind and name.
    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.all(kind)
            .find(|object| object["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind}/{name} in the manifests"))
    }

    /// The only object of a kind.
    pub fn only(&self, kind: &str) -> &Value {
        let mut all = self.all(kind);
        match (all.next(), all.next()) {
            (Some(object), None) => object,
            _ => panic!("expected one {kind} in the manifests"),
        }
    }

    /// A file of a config map.
    pub fn file(&self, config_map: &str, file: &str) -> &str {
        text(&self.get("ConfigMap", config_map)["data"][file])
    }
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("expected text, found {value}"))
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(
        value
            .as_u64()
            .unwrap_or_else(|| panic!("expected seconds, found {value}")),
    )
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The network of a cluster: addresses of pods, and what names lead to.
#[derive(Clone, Debug)]
pub struct Network {
    base: [u8; 2],
    names: Vec<(String, String)>,
}

impl Network {
    /// One of its own, so that several can be on a machine.
    pub fn new() -> Network {
        let mut random = rand::rng();
        Network {
            base: [random.random_range(64..128), random.random()],
            names: Vec::new(),
        }
    }

    /// The address of the pod with this number.
    pub fn address(&self, pod: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.base[0], self.base[1], pod + 1)
    }

    /// A name in the namespace leads to this address.
    pub fn name(&mut self, name: &str, address: Ipv4Addr) {
        let full = format!("{name}.{NAMESPACE}.svc.cluster.local");
        self.names.push((full, address.to_string()));
    }

    /// A text of the manifest as it holds on this machine, for a pod with this address.
    fn resolve(&self, text: &str, address: Ipv4Addr) -> String {
        // Names of pods end in the names of services, so the longest go first.
        let mut names = self.names.clone();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        names.iter().fold(
            text.replace("0.0.0.0", &address.to_string()),
            |text, (name, to)| text.replace(name.as_str(), to),
        )
    }
}

impl Default for Network {
    fn default() -> Network {
        Network::new()
    }
}

/// A pod on this machine.
#[derive(Debug)]
pub struct Pod {
    name: String,
    labels: BTreeMap<String, String>,
    spec: Value,
    address: Ipv4Addr,
    network: Network,
    /// Config maps and secrets: kind, name, key and value.
    data: BTreeMap<(&'static str, String), BTreeMap<String, String>>,
    /// Programs that the images have besides our own.
    path: Vec<PathBuf>,
    /// What is mounted, by volume; the logs of the containers.
    directory: TempDir,
}

impl Pod {
    /// The pod of a StatefulSet with this ordinal, on a node in this zone.
    pub fn of_set(
        manifests: &Manifests,
        set: &Value,
        ordinal: u8,
        zone: Option<&str>,
        network: &Network,
    ) -> Pod {
        let name = format!("{}-{ordinal}", text(&set["metadata"]["name"]));
        let mut pod = Pod::of_template(manifests, &name, &set["spec"]["template"], ordinal, network);
        pod.labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
        if let Some(zone) = zone {
            pod.labels.insert(ZONE.to_owned(), zone.to_owned());
        }
        pod
    }

    /// A pod with this name of a template, or of an object of kind Pod, and with the address of this number.
    pub fn of_template(
        manifests: &Manifests,
        name: &str,
        template: &Value,
        number: u8,
        network: &Network,
    ) -> Pod {
        let strings = |value: &Value| -> BTreeMap<String, String> {
            let object = value.as_object().into_iter().flatten();
            object
                .map(|(key, value)| (key.clone(), text(value).to_owned()))
                .collect()
        };
        let mut data = BTreeMap::new();
        for (kind, field) in [("ConfigMap", "data"), ("Secret", "stringData")] {
            for object in manifests.all(kind) {
                let name = text(&object["metadata"]["name"]).to_owned();
                data.insert((kind, name), strings(&object[field]));
            }
        }
        Pod {
            name: name.to_owned(),
            labels: strings(&template["metadata"]["labels"]),
            spec: template["spec"].clone(),
            address: network.address(number),
            network: network.clone(),
            data,
            path: vec![target().join("tools")],
            directory: TempDir::with_prefix("alluvium-pod-").expect("a temporary directory"),
        }
    }

    /// Adds a secret that is not the chart's.
    pub fn secret(mut self, name: &str, entries: &[(&str, &str)]) -> Pod {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.data.insert(("Secret", name.to_owned()), entries.collect());
        self
    }

    /// Adds a directory with programs of the images.
    pub fn programs(mut self, directory: &Path) -> Pod {
        self.path.insert(0, directory.to_owned());
        self
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The address of a port that a container names.
    pub fn port(&self, name: &str) -> SocketAddr {
        let containers = list(&self.spec["containers"]).iter();
        let mut ports = containers.flat_map(|container| list(&container["ports"]));
        let port = ports.find(|port| port["name"] == name);
        let number = port.and_then(|port| port["containerPort"].as_u64());
        let number = number.and_then(|number| u16::try_from(number).ok());
        let number = number.unwrap_or_else(|| panic!("{} has no port {name}", self.name));
        SocketAddr::from((self.address, number))
    }

    /// Runs its init containers to their end, one after the other; each must succeed.
    pub fn initialize(&self, patience: Duration) {
        for container in list(&self.spec["initContainers"]) {
            let mut running = self.start(container);
            let status = running.wait(patience);
            assert!(status.success(), "{status}: {}", running.log());
        }
    }

    /// Starts its only container.
    pub fn run(&self) -> Container<'_> {
        let containers = list(&self.spec["containers"]);
        assert_eq!(containers.len(), 1, "{} has several containers", self.name);
        self.start(&containers[0])
    }

    /// Runs a command in its only container, as `kubectl exec` does; it must succeed. What it prints.
    pub fn exec(&self, arguments: &[&str]) -> String {
        let container = &self.spec["containers"][0];
        let mut command = self.command(container, arguments.iter().map(|word| (*word).to_owned()));
        let output = command.output().expect("the command runs");
        let (out, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{arguments:?}: {out}{errors}");
        out.into_owned()
    }

    fn start(&self, container: &Value) -> Container<'_> {
        let environment = self.environment(container);
        let words = list(&container["command"]).iter().chain(list(&container["args"]));
        let words = words.map(|word| expand(text(word), &environment));
        let log = self
            .directory
            .path()
            .join(format!("{}.log", text(&container["name"])));
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log");
        let child = self
            .command(container, words)
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("the container starts");
        Container {
            pod: self,
            manifest: container.clone(),
            child,
            log,
        }
    }

    /// A process in a container: nothing of this machine's environment but what finds programs.
    fn command(&self, container: &Value, words: impl Iterator<Item = String>) -> Command {
        let mounts = self.mounts(container);
        let mut words = words.map(|word| self.here(&word, &mounts));
        let program = words.next().expect("a command");
        let mut command = match program.as_str() {
            "alluvium" => Command::new(binary()),
            _ => Command::new(&program),
        };
        let own = std::env::var_os("PATH").unwrap_or_default();
        let path = self.path.iter().cloned().chain(std::env::split_paths(&own));
        let path = std::env::join_paths(path).expect("a path");
        command.env_clear().env("PATH", path).args(words);
        for (name, value) in self.environment(container) {
            command.env(name, self.here(&value, &mounts));
        }
        command.stdin(Stdio::null());
        command
    }

    /// The variables of a container, in their order: each may refer to earlier ones.
    fn environment(&self, container: &Value) -> Vec<(String, String)> {
        assert!(container["envFrom"].is_null(), "envFrom is not played here");
        let mut all: Vec<(String, String)> = Vec::new();
        for variable in list(&container["env"]) {
            let value = match (&variable["value"], &variable["valueFrom"]) {
                (Value::String(value), _) => expand(value, &all),
                (_, from) if !from["fieldRef"].is_null() => self.field(text(&from["fieldRef"]["fieldPath"])),
                (_, from) => {
                    let (name, key) = (
                        text(&from["secretKeyRef"]["name"]),
                        text(&from["secretKeyRef"]["key"]),
                    );
                    let secret = self.data.get(&("Secret", name.to_owned()));
                    let value = secret.and_then(|secret| secret.get(key));
                    value
                        .unwrap_or_else(|| panic!("no key {key} in a secret {name}"))
                        .clone()
                }
            };
            all.push((text(&variable["name"]).to_owned(), value));
        }
        all
    }

    /// What the downward API says; a label that is not there is empty.
    fn field(&self, path: &str) -> String {
        let label = path
            .strip_prefix("metadata.labels['")
            .and_then(|rest| rest.strip_suffix("']"));
        match (path, label) {
            (_, Some(label)) => self.labels.get(label).cloned().unwrap_or_default(),
            ("metadata.name", _) => self.name.clone(),
            ("spec.nodeName", _) => format!("node-of-{}", self.name),
            _ => panic!("the field {path} is not played here"),
        }
    }

    /// Where the volumes of a container are here; config maps are written anew.
    fn mounts(&self, container: &Value) -> Vec<(String, PathBuf)> {
        let mut mounts = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            let name = text(&mount["name"]);
            let directory = self.directory.path().join(name);
            std::fs::create_dir_all(&directory).expect("a directory");
            let mut volumes = list(&self.spec["volumes"]).iter();
            let volume = volumes
                .find(|volume| volume["name"] == name)
                .unwrap_or_else(|| panic!("no volume {name}"));
            if let Some(config_map) = volume["configMap"]["name"].as_str() {
                let files = self.data.get(&("ConfigMap", config_map.to_owned()));
                for (file, content) in files.unwrap_or_else(|| panic!("no config map {config_map}")) {
                    let content = self.network.resolve(content, self.address);
                    std::fs::write(directory.join(file), content).expect("a file is written");
                }
            }
            mounts.push((text(&mount["mountPath"]).to_owned(), directory));
        }
        mounts
    }

    /// A text of the manifest as it holds on this machine.
    fn here(&self, text: &str, mounts: &[(String, PathBuf)]) -> String {
        self.network.resolve(&moved(text, mounts), self.address)
    }
}

/// Replaces paths below mount points.
fn moved(text: &str, mounts: &[(String, PathBuf)]) -> String {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut out = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let before = out.chars().next_back();
        let begins = !before.is_some_and(|c| part_of_name(c) || c == '/');
        let found = mounts.iter().find_map(|(path, directory)| {
            let after = rest.strip_prefix(path.as_str())?;
            (begins && !after.starts_with(part_of_name)).then_some((after, directory))
        });
        match found {
            Some((after, directory)) => {
                out.push_str(&directory.display().to_string());
                rest = after;
            }
            None => {
                out.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    out
}

/// Expands `$(NAME)` as Kubernetes does: what is not known stays, and `$$` is a dollar.
fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| {
            let variable = variables.iter().rfind(|(other, _)| other == name)?;
            Some((&variable.1, after))
        });
        match known {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out + rest
}

/// A running container. Dropping it kills it.
#[derive(Debug)]
pub struct Container<'p> {
    pod: &'p Pod,
    manifest: Value,
    child: Child,
    log: PathBuf,
}

impl Container<'_> {
    /// Status that a probe gets; `None` if it gets none, or the container has no such probe.
    pub fn probe(&self, kind: &str) -> Option<u16> {
        let get = &self.manifest[kind]["httpGet"];
        let address = self.pod.port(get["port"].as_str()?);
        http_get(address, get["path"].as_str()?)
            .ok()
            .map(|(status, _)| status)
    }

    /// Waits as the kubelet does until the container is ready: for as long as its startup probe lets it fail, if it has
    /// one, and then until its readiness probe succeeds.
    pub fn wait_until_ready(&mut self, patience: Duration) {
        let startup = self.manifest["startupProbe"].clone();
        if !startup.is_null() {
            let tries = startup["failureThreshold"].as_u64().unwrap_or(3);
            let succeeded = (0..tries).any(|_| {
                std::thread::sleep(seconds(&startup["periodSeconds"]));
                self.probe("startupProbe") == Some(200)
            });
            assert!(
                succeeded,
                "it would be killed at its start, after {tries} probes: {}",
                self.log()
            );
        }
        let period = seconds(&self.manifest["readinessProbe"]["periodSeconds"]);
        let deadline = Instant::now() + patience;
        while self.probe("readinessProbe") != Some(200) {
            let ended = self.child.try_wait().expect("the state of a process");
            assert!(ended.is_none(), "it ended: {ended:?}: {}", self.log());
            assert!(
                Instant::now() < deadline,
                "not ready after {patience:?}: {}",
                self.log()
            );
            std::thread::sleep(period);
        }
    }

    /// Ends the container as the kubelet does when its pod is deleted: the hook, SIGTERM, and the exit within what is
    /// left of the grace period. How long the process took.
    pub fn delete(&mut self) -> Duration {
        let grace = seconds(&self.pod.spec["terminationGracePeriodSeconds"]);
        let hook = &self.manifest["lifecycle"]["preStop"]["sleep"]["seconds"];
        let slept = if hook.is_null() {
            Duration::ZERO
        } else {
            seconds(hook)
        };
        std::thread::sleep(slept);
        let began = Instant::now();
        signal(self.child.id(), "TERM");
        let status = self.wait(grace.saturating_sub(slept));
        assert!(status.success(), "{status}: {}", self.log());
        began.elapsed()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of a process") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end within {patience:?}: {}",
                self.log()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// What it and its predecessors in the pod printed.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("\n--- {} of {} ---\n{log}", self.log.display(), self.pod.name)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let variables = [
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "$(A)".to_owned()),
        ];
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(A)"),
            ("$(C) $A $", "$(C) $A $"),
            ("$$(A)", "$(A)"),
            ("zone=$(kubectl get \"$A\") $(A)", "zone=$(kubectl get \"$A\") 1"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn mounted_paths_are_directories_here() {
        let mounts = [
            ("/etc/alluvium".to_owned(), PathBuf::from("/tmp/x/config")),
            ("/tmp".to_owned(), PathBuf::from("/tmp/x/tmp")),
        ];
        for (text, expected) in [
            ("/etc/alluvium/a.properties", "/tmp/x/config/a.properties"),
            ("/tmp", "/tmp/x/tmp"),
            (
                "cat \"/etc/alluvium\" > /tmp/y",
                "cat \"/tmp/x/config\" > /tmp/x/tmp/y",
            ),
            ("/etc/alluvium-more /data/tmp", "/etc/alluvium-more /data/tmp"),
        ] {
            assert_eq!(moved(text, &mounts), expected);
        }
    }

    #[test]
    fn names_lead_to_addresses() {
        let mut network = Network::new();
        network.name("a", Ipv4Addr::new(127, 0, 0, 1));
        network.name("pod-0.a", Ipv4Addr::new(127, 0, 0, 2));
        let text = "A://0.0.0.0:1,B://pod-0.a.streams.svc.cluster.local:2,a.streams.svc.cluster.local";
        let here = network.resolve(text, Ipv4Addr::new(127, 0, 0, 9));
        assert_eq!(here, "A://127.0.0.9:1,B://127.0.0.2:2,127.0.0.1");
    }
}
