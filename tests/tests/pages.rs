//! The pages for people: every command and query that needs no account and nothing to install is run as it is written,
//! on the real binary, and its answer compared with the page's. `tests/pages.py` does it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use alluvium_tests::broker;
use alluvium_tests::installed::{Missing, analytics_missing, kcat_missing, root, spark_missing, target};
use alluvium_tests::minio::Minio;
use alluvium_tests::s3_fake::{Options, S3Fake};
use parking_lot::Mutex;

/// The pages name the default ports, so one broker at a time can have them.
static PORTS: Mutex<()> = Mutex::new(());
const PORTS_OF_THE_PAGES: [u16; 2] = [9092, 9464];
/// Where the pages say that the bucket is, and what it is called.
const PORT_OF_THE_BUCKET: u16 = 9000;
const BUCKET: &str = "my-bucket";

fn missing(page: &str, ports: &[u16]) -> Option<String> {
    let text = std::fs::read_to_string(root().join(page)).expect("the page");
    let spark = || text.contains("```sql spark").then(spark_missing).flatten();
    let programs = analytics_missing().or_else(kcat_missing).or_else(spark);
    programs.or_else(|| {
        let taken = ports
            .iter()
            .find(|port| TcpListener::bind(("127.0.0.1", **port)).is_err());
        taken.map(|port| format!("something else listens on port {port}, which the pages name"))
    })
}

fn missing_for_a_bucket(page: &str) -> Option<String> {
    missing(
        page,
        &[PORTS_OF_THE_PAGES[0], PORTS_OF_THE_PAGES[1], PORT_OF_THE_BUCKET],
    )
}

fn python() -> PathBuf {
    target().join("clients/analytics/bin/python")
}

fn run(page: &str, arguments: &[&str], env: Vec<(String, String)>) {
    let output = Command::new(python())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root().join("tests/pages.py"))
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

/// What a page says of a directory, and of nothing else.
fn is_true(page: &str) {
    let _alone = PORTS.lock();
    if Missing::from_environment().goes_on(missing(page, &PORTS_OF_THE_PAGES)) {
        run(page, &[], Vec::new());
    }
}

/// What it says of a bucket, on the S3 fake.
fn is_true_on_a_bucket(page: &str) {
    let _alone = PORTS.lock();
    if Missing::from_environment().goes_on(missing_for_a_bucket(page)) {
        let fake = S3Fake::start(Options {
            listen: SocketAddr::from(([127, 0, 0, 1], PORT_OF_THE_BUCKET)),
            bucket: BUCKET.to_owned(),
            ..Options::default()
        });
        let fake = fake.expect("the S3 fake starts");
        run(page, &["--bucket"], fake.env());
    }
}

#[test]
fn the_page_about_queries_is_true() {
    is_true("docs/analytics.md");
}

#[test]
fn the_page_about_queries_is_true_on_minio() {
    let page = "docs/analytics.md";
    let _alone = PORTS.lock();
    if Missing::from_environment().goes_on(missing_for_a_bucket(page).or_else(Minio::missing)) {
        let minio = Minio::start_at(PORT_OF_THE_BUCKET, BUCKET);
        run(page, &["--bucket"], minio.env());
    }
}

#[test]
fn the_readme_is_true() {
    is_true("README.md");
}

#[test]
fn the_readme_is_true_on_a_bucket() {
    is_true_on_a_bucket("README.md");
}

#[test]
fn the_quick_start_is_true() {
    is_true("docs/quickstart.md");
}

#[test]
fn the_quick_start_is_true_on_a_bucket() {
    is_true_on_a_bucket("docs/quickstart.md");
}

#[test]
fn the_page_about_operations_is_true() {
    is_true("docs/operations.md");
}

#[test]
fn the_page_about_operations_is_true_on_a_bucket() {
    is_true_on_a_bucket("docs/operations.md");
}
