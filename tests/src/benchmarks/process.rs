//! Programs under watch: their processor time and memory, read from `/proc`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ticks per second of the times in `/proc/PID/stat`: Linux has always told user space 100.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a log that an error shows.
const LOG_SHOWN_BYTES: usize = 4 * 1024;

/// A program that the benchmarks started. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stat {
    /// `R`, `S`, ..., `Z` for a process that has ended and was not yet waited for.
    pub(crate) state: char,
    /// Processor time of all threads, ended ones included, in user space and in the kernel.
    pub(crate) cpu_seconds: f64,
}

impl Process {
    /// Starts a program; what it prints goes to the end of `log`.
    pub(crate) fn start(name: &str, command: Command, log: &Path) -> Result<Process, String> {
        let mut command = tied(command);
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| format!("{}: {error}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file);
        let child = command.spawn().map_err(failed)?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready` says yes, as long as the program runs.
    pub(crate) fn wait_until(
        &mut self,
        patience: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !ready() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("{} ended: {status}\n{}", self.name, tail_of(&self.log)));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "{} is not ready after {} s\n{}",
                    self.name,
                    patience.as_secs(),
                    tail_of(&self.log)
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, String> {
        match stat(self.child.id()) {
            Some(stat) if stat.state != 'Z' => Ok(stat.cpu_seconds),
            _ => Err(format!("{} has ended\n{}", self.name, tail_of(&self.log))),
        }
    }

    /// Resident memory now.
    pub(crate) fn rss_bytes(&self) -> Option<u64> {
        status_bytes(&self.status(), "VmRSS:")
    }

    /// Most resident memory since [`Process::forget_peak`], or since the start where that is not allowed.
    pub(crate) fn rss_bytes_max(&self) -> Option<u64> {
        status_bytes(&self.status(), "VmHWM:")
    }

    /// Lets the peak of resident memory start anew.
    pub(crate) fn forget_peak(&self) {
        // Not every kernel allows it; the peak is then that of the process's whole life.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    fn status(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default()
    }

    /// SIGTERM, then SIGKILL when it does not end in time.
    pub(crate) fn stop(mut self, patience: Duration) {
        let script = format!("kill -TERM {}", self.child.id());
        let _ = Command::new("sh").args(["-c", &script]).status();
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Dropping it kills it.
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same command, killed by the kernel when this program ends however it ends: what is left running would take
/// the next measurement's processors. Where util-linux is not installed it is the command as it was.
pub(crate) fn tied(command: Command) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let works = || {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]);
        let probed = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
        probed.is_ok_and(|status| status.success())
    };
    if !*SETPRIV.get_or_init(works) {
        return command;
    }
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]);
    tied.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    tied
}

/// The end of a log, for an error.
pub(crate) fn tail_of(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_SHOWN_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// State and processor time of a process, one that has ended but was not waited for included.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `/proc/PID/stat` (proc(5)): the name in parentheses may itself hold blanks and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // state is field 3, utime 14, stime 15.
    let ticks = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_seconds: (ticks(14)? + ticks(15)?) as f64 / TICKS_PER_SECOND,
    })
}

/// A field of `/proc/PID/status` in bytes.
fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_times_of_a_process_with_any_name() {
        let text = "123 (a ) b (c) R 1 2 3 0 -1 4194560 5 6 7 8 250 50 9 9 20 0 4 0 100 1000 200";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                state: 'R',
                cpu_seconds: 3.0
            })
        );
        assert_eq!(parse_stat("123 (a) R 1 2 3"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn reads_memory_from_the_status() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(status_bytes(status, "VmHWM:"), Some(2 * 1024 * 1024));
        assert_eq!(status_bytes(status, "VmRSS:"), Some(1024 * 1024));
        assert_eq!(status_bytes(status, "VmSwap:"), None);
        assert_eq!(status_bytes("VmHWM: many kB", "VmHWM:"), None);
    }

    #[test]
    fn knows_when_a_process_has_ended() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo words; exit 3"]);
        let mut process = Process::start("sh", command, log.path()).unwrap();
        let ended = process.wait_until(Duration::from_secs(30), || false).unwrap_err();
        assert!(ended.contains("sh ended") && ended.contains("words"), "{ended}");
        assert!(process.cpu_seconds().is_err());
    }

    #[test]
    fn a_tied_command_keeps_arguments_and_environment() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo \"$A-$HOME\""])
            .env("A", "b")
            .env_remove("HOME");
        let output = tied(command).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "b-");
    }

    #[test]
    fn sees_its_own_process() {
        let stat = stat(std::process::id()).unwrap();
        assert!(stat.state != 'Z' && stat.cpu_seconds >= 0.0);
    }
}
