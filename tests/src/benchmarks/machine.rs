//! What the page says about the machine, the versions and the day.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Tools;
use super::statistics::median;
use crate::installed::root;

/// Writes of the disk probe.
const PROBE_WRITES: usize = 50;

/// The machine that measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Processors that the system shows.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// File system and device of the data directories.
    pub disk: String,
    /// Median time in ms of writing 4 KiB to the end of a file with fsync.
    pub fsync_4_kib_ms: f64,
    /// The same with 4 MiB.
    pub fsync_4_mib_ms: f64,
}

impl Machine {
    /// This machine, with the disk below `directory`.
    pub(crate) fn look(directory: &Path) -> Result<Machine, String> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mounts = read("/proc/self/mounts");
        let directory = directory
            .canonicalize()
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(Machine {
            cpu: cpu_model(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            disk: mount_of(&mounts, &directory),
            fsync_4_kib_ms: fsync_ms(&directory, 4 * 1024)?,
            fsync_4_mib_ms: fsync_ms(&directory, 4 * 1024 * 1024)?,
        })
    }
}

/// Versions of everything that takes part.
pub(crate) fn versions(tools: &Tools) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut put = |name: &str, version: Option<String>| {
        if let Some(version) = version {
            versions.insert(name.to_owned(), version);
        }
    };
    let alluvium = said(Command::new(&tools.alluvium).arg("--version"));
    let alluvium = alluvium.map(|line| line.trim_start_matches("alluvium ").to_owned());
    put("Alluvium", alluvium);
    put("Apache Kafka", kafka_version(&tools.directory.join("kafka/lib")));
    put("librdkafka", said(Command::new(&tools.rdkafka).arg("version")));
    put("Java", said(Command::new("java").arg("--version")));
    put("Rust", said(Command::new("rustc").arg("--version")));
    versions
}

/// The commit that was measured, with a word when the tree differs from it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| said(Command::new("git").current_dir(root()).args(arguments));
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(_) => format!("{commit} with changes"),
        None => commit,
    }
}

/// First line of what a command prints.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

fn kafka_version(jars: &Path) -> Option<String> {
    let entries = std::fs::read_dir(jars).ok()?;
    let mut names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find_map(|name| {
        let version = name.strip_prefix("kafka-server-")?.strip_suffix(".jar")?;
        version
            .starts_with(|c: char| c.is_ascii_digit())
            .then(|| version.to_owned())
    })
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':'));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// File system and device of the mount that holds a path, by `/proc/self/mounts`.
fn mount_of(mounts: &str, path: &Path) -> String {
    let entries = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        path.starts_with(at).then_some((at.len(), kind, device))
    });
    // Of two mounts at one place the later one hides the earlier.
    let found = entries.max_by_key(|(length, _, _)| *length);
    found.map_or_else(
        || "unknown".to_owned(),
        |(_, kind, device)| format!("{kind} on {device}"),
    )
}

fn fsync_ms(directory: &Path, bytes: usize) -> Result<f64, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut file = tempfile::tempfile_in(directory).map_err(failed)?;
    let content = vec![0x5a; bytes];
    let mut times = Vec::new();
    for _ in 0..PROBE_WRITES {
        let started = Instant::now();
        file.write_all(&content).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        assert_eq!(cpu_model("processor : 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
        assert_eq!(
            memory_bytes("MemTotal:   2048 kB\nMemFree: 1 kB\n"),
            2 * 1024 * 1024
        );
        assert_eq!(memory_bytes(""), 0);
    }

    #[test]
    fn finds_the_mount_of_a_path() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        let of = |path: &str| mount_of(mounts, Path::new(path));
        assert_eq!(of("/home/x"), "ext4 on /dev/a");
        assert_eq!(of("/tmp/x"), "tmpfs on tmpfs");
        assert_eq!(of("/tmp/disk/x"), "xfs on /dev/b");
        assert_eq!(mount_of("", Path::new("/x")), "unknown");
    }

    #[test]
    fn finds_the_version_among_the_jars() {
        let jars = tempfile::tempdir().unwrap();
        for name in ["kafka-server-common-4.1.2.jar", "kafka-server-4.1.2.jar", "x.jar"] {
            std::fs::write(jars.path().join(name), "").unwrap();
        }
        assert_eq!(kafka_version(jars.path()), Some("4.1.2".to_owned()));
        assert_eq!(kafka_version(Path::new("/nowhere")), None);
    }
}
