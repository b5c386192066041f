//! The pages for people who query a topic: every command and query is run as it is written, on the real binary, and
//! its answer compared with the page's. `tests/analytics/pages.py` does it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use alluvium_tests::broker;
use alluvium_tests::installed::{Missing, root, target};
use alluvium_tests::minio::Minio;
use parking_lot::Mutex;

/// The pages name the default ports, so one broker at a time can have them.
static PORTS: Mutex<()> = Mutex::new(());
const PORTS_OF_THE_PAGES: [u16; 2] = [9092, 9464];
/// Where the page says that MinIO is.
const PORT_OF_MINIO: u16 = 9000;

fn missing(ports: &[u16]) -> Option<String> {
    if !target().join("clients/analytics.installed").exists() {
        return Some("DuckDB is not installed: tests/clients/install.sh analytics".to_owned());
    }
    let kcat = Command::new("kcat").arg("-V").output();
    if kcat.is_err() {
        return Some("kcat is not installed: tests/clients/install.sh kcat".to_owned());
    }
    let taken = ports
        .iter()
        .find(|port| TcpListener::bind(("127.0.0.1", **port)).is_err());
    taken.map(|port| format!("something else listens on port {port}, which the pages name"))
}

fn python() -> PathBuf {
    target().join("clients/analytics/bin/python")
}

fn run(page: &str, arguments: &[&str], env: Vec<(String, String)>) {
    let output = Command::new(python())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root().join("tests/analytics/pages.py"))
        .arg(root().join(page))
        .arg("--bin")
        .arg(broker::binary())
        .args(arguments)
        .envs(env)
        .stdin(Stdio::null())
        .output()
        .expect("pages.py runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    println!("{text}");
}

#[test]
fn the_page_about_queries_is_true() {
    let _alone = PORTS.lock();
    if Missing::from_environment().goes_on(missing(&PORTS_OF_THE_PAGES)) {
        run("docs/analytics.md", &[], Vec::new());
    }
}

#[test]
fn the_page_about_queries_is_true_on_a_bucket() {
    let _alone = PORTS.lock();
    let ports = [PORTS_OF_THE_PAGES[0], PORTS_OF_THE_PAGES[1], PORT_OF_MINIO];
    if Missing::from_environment().goes_on(missing(&ports).or_else(Minio::missing)) {
        let minio = Minio::start_at(PORT_OF_MINIO, "my-bucket");
        let bucket = ["--bucket", "s3://my-bucket/my-cluster"];
        run("docs/analytics.md", &bucket, minio.env());
    }
}

#[test]
fn the_tour_of_the_readme_is_true() {
    let _alone = PORTS.lock();
    if Missing::from_environment().goes_on(missing(&PORTS_OF_THE_PAGES)) {
        run("README.md", &[], Vec::new());
    }
}
