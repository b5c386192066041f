//! A broker of ours under measurement.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Tools;
use super::process::Process;
use super::store::Store;
use crate::broker::{free_address, http_get, isolate, metric};

const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Where a broker keeps its records.
#[derive(Clone, Debug)]
enum Keeps {
    /// A directory of this machine's disk, removed with the broker.
    Directory(PathBuf),
    Store {
        url: String,
        env: Vec<(String, String)>,
    },
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Alluvium {
    tools: Tools,
    keeps: Keeps,
    settings: Vec<(String, String)>,
    kafka: SocketAddr,
    http: SocketAddr,
    process: Option<Process>,
}

impl Alluvium {
    /// On an empty embedded store, with settings that differ from the defaults.
    pub(crate) fn embedded(tools: &Tools, settings: &[(&str, &str)]) -> Result<Alluvium, String> {
        let keeps = Keeps::Directory(tools.fresh_directory("alluvium")?);
        Alluvium::start(tools, keeps, settings)
    }

    /// On the fake.
    pub(crate) fn on(tools: &Tools, store: &Store, settings: &[(&str, &str)]) -> Result<Alluvium, String> {
        let mut broker = Alluvium::prepared(tools, store, settings);
        broker.launch()?;
        Ok(broker)
    }

    /// One that will run on the fake, once it is launched.
    pub(crate) fn prepared(tools: &Tools, store: &Store, settings: &[(&str, &str)]) -> Alluvium {
        let keeps = Keeps::Store {
            url: store.url(),
            env: store.env(),
        };
        Alluvium::new(tools, keeps, settings)
    }

    fn start(tools: &Tools, keeps: Keeps, settings: &[(&str, &str)]) -> Result<Alluvium, String> {
        let mut broker = Alluvium::new(tools, keeps, settings);
        broker.launch()?;
        Ok(broker)
    }

    fn new(tools: &Tools, keeps: Keeps, settings: &[(&str, &str)]) -> Alluvium {
        Alluvium {
            tools: tools.clone(),
            keeps,
            settings: owned(settings),
            kafka: free_address(),
            http: free_address(),
            process: None,
        }
    }

    /// Starts the process and waits until it is ready.
    pub(crate) fn launch(&mut self) -> Result<(), String> {
        let mut command = Command::new(&self.tools.alluvium);
        isolate(&mut command);
        command.arg("serve");
        match &self.keeps {
            Keeps::Directory(path) => {
                command.args(["--store", &format!("file://{}", path.display())]);
            }
            Keeps::Store { url, env } => {
                command.args(["--store", url]).envs(env.iter().cloned());
            }
        }
        command.args(["--listeners", &format!("PLAINTEXT://{}", self.kafka)]);
        command.args(["--http-listen", &self.http.to_string()]);
        for (key, value) in &self.settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let mut process = Process::start("alluvium", command, &self.tools.log("alluvium"))?;
        let http = self.http;
        process.wait_until(START_PATIENCE, || {
            http_get(http, "/readyz").is_ok_and(|(status, _)| status == 200)
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Settings that differ from the defaults, from the next start on.
    pub(crate) fn set(&mut self, settings: &[(&str, &str)]) {
        self.settings = owned(settings);
    }

    /// Stops it gracefully and starts it again: what it held in memory is gone.
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        self.stop();
        self.launch()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        // Dropping it does that.
        self.process = None;
    }

    /// Stops it gracefully, and waits until it has ended.
    pub(crate) fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop(STOP_PATIENCE);
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.kafka
    }

    /// The value of a metric, summed over its labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64, String> {
        metric(self.http, name).ok_or_else(|| format!("the broker does not tell {name}"))
    }

    /// Where an embedded store is.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match &self.keeps {
            Keeps::Directory(path) => Some(path),
            Keeps::Store { .. } => None,
        }
    }

    pub(crate) fn process(&self) -> Result<&Process, String> {
        self.process
            .as_ref()
            .ok_or_else(|| "the broker did not start again".to_owned())
    }
}

impl Drop for Alluvium {
    fn drop(&mut self) {
        self.stop();
        if let Keeps::Directory(path) = &self.keeps {
            remove(path);
        }
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    settings.iter().map(owned).collect()
}

/// Bytes of the files below a directory whose names end like this.
pub(crate) fn bytes_below(directory: &Path, ending: &str) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let about = entry.metadata().map_err(failed)?;
        if about.is_dir() {
            bytes += bytes_below(&entry.path(), ending)?;
        } else if entry.file_name().to_string_lossy().ends_with(ending) {
            bytes += about.len();
        }
    }
    Ok(bytes)
}

/// Removes the data of a row; what cannot be removed is told, since the next rows need the space.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        eprintln!("{}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_files_that_are_meant() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("1.log"), [0; 7]).unwrap();
        std::fs::write(below.join("1.index"), [0; 100]).unwrap();
        std::fs::write(directory.path().join("2.log"), [0; 3]).unwrap();
        assert_eq!(bytes_below(directory.path(), ".log"), Ok(10));
        assert!(bytes_below(&below.join("nowhere"), ".log").is_err());
    }
}
