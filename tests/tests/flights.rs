//! A year of real flights, the broker killed with SIGKILL on the way, every record compared with the file, from the log
//! and from Parquet, and the same question asked of the file and of DuckDB, Polars, pyarrow and Spark:
//! `tests/flights/run.sh` on the embedded store and on MinIO.

use std::process::{Command, Stdio};

use alluvium_tests::broker;
use alluvium_tests::installed::{Missing, root, target};
use alluvium_tests::minio::Minio;

/// Spark is asked where it is installed; in CI everything must be.
fn missing() -> Option<String> {
    let spark = (Missing::from_environment() == Missing::Fails).then_some("spark");
    ["python", "flights", "analytics"]
        .iter()
        .chain(&spark)
        .find(|part| !target().join(format!("clients/{part}.installed")).exists())
        .map(|part| format!("{part} is not installed: tests/clients/install.sh {part}"))
}

fn fly(store: Option<&str>, env: Vec<(String, String)>) {
    let mut command = Command::new(root().join("tests/flights/run.sh"));
    command.arg("--bin").arg(broker::binary());
    if let Some(url) = store {
        command.args(["--store", url]);
    }
    let output = command
        .envs(env)
        .stdin(Stdio::null())
        .output()
        .expect("run.sh runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    println!("{text}");
}

#[test]
fn flights_on_the_embedded_store() {
    if Missing::from_environment().goes_on(missing()) {
        fly(None, Vec::new());
    }
}

#[test]
fn flights_on_minio() {
    if Missing::from_environment().goes_on(missing().or_else(Minio::missing)) {
        let minio = Minio::start();
        fly(Some("s3://alluvium/flights"), minio.env());
    }
}
