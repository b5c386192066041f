//! A broker of ours under measurement.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Tools;
use super::process::Process;
use super::store::Store;
use crate::broker::{free_address, http_get, isolate};

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
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Alluvium {
            tools: tools.clone(),
            keeps,
            settings: settings.iter().map(owned).collect(),
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

/// Removes the data of a row; what cannot be removed is told, since the next rows need the space.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        eprintln!("{}: {error}", path.display());
    }
}
