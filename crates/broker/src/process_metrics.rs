//! What every process tells of itself, under the names that Prometheus' own clients use, and the build.
//!
//! Memory and open files are read from `/proc` at each scrape; where there is none, they are left out.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::open_files;

/// Registers both. `started_ms` is when the process started, in milliseconds since 1970.
pub(crate) fn register(registry: &mut Registry, started_ms: i64) {
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("alluvium_build", "The running version", build);
    registry.register_collector(Box::new(Process { started_ms }));
}

#[derive(Debug)]
struct Process {
    started_ms: i64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cpu = ConstCounter::new(cpu_seconds());
        let name = "process_cpu_seconds";
        let to =
            encoder.encode_descriptor(name, "CPU time spent, user and system", None, cpu.metric_type())?;
        cpu.encode(to)?;
        let started = ConstGauge::new(self.started_ms as f64 / 1000.0);
        let name = "process_start_time_seconds";
        let to =
            encoder.encode_descriptor(name, "Start, in seconds since 1970", None, started.metric_type())?;
        started.encode(to)?;
        let limit = open_files::limit().and_then(|limit| i64::try_from(limit).ok());
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory in use", resident_bytes()),
            ("process_open_fds", "Open files and connections", open_fds()),
            ("process_max_fds", "Files and connections that may be open", limit),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> Option<i64> {
    resident_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmRSS:     1234 kB` of a process's status.
fn resident_of(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn open_fds() -> Option<i64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // The listing itself has one.
    i64::try_from(count.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_names_have_plausible_values() {
        let mut registry = Registry::default();
        register(&mut registry, 1_700_000_000_500);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert_eq!(value("process_start_time_seconds"), 1_700_000_000.5);
        if std::path::Path::new("/proc/self/status").exists() {
            assert!(value("process_resident_memory_bytes") > 1_000_000.0);
            assert!(value("process_open_fds") >= 3.0);
            assert!(value("process_max_fds") >= value("process_open_fds"));
        }
        let version = env!("CARGO_PKG_VERSION");
        assert!(
            text.contains(&format!("alluvium_build_info{{version=\"{version}\"}} 1\n")),
            "{text}"
        );
    }

    #[test]
    fn resident_memory_is_read_from_the_status() {
        assert_eq!(
            resident_of("Name:\tx\nVmRSS:\t    1234 kB\nThreads: 3\n"),
            Some(1234 * 1024)
        );
        assert_eq!(resident_of("Name:\tx\n"), None);
        assert_eq!(resident_of("VmRSS: many kB"), None);
    }
}
