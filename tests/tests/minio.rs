//! The store conformance suite on a real MinIO.

use std::process::Command;

use alluvium_log::store::{Store, StoreOptions, conformance};
use alluvium_tests::installed::Missing;
use alluvium_tests::minio::Minio;

/// Runs the test below in a process of its own that has MinIO's credentials in its environment.
#[test]
fn minio_conforms() {
    if !Missing::from_environment().goes_on(Minio::missing()) {
        return;
    }
    let minio = Minio::start();
    let test = std::env::current_exe().expect("the path of this test");
    let output = Command::new(test)
        .args([
            "--exact",
            "store_of_the_environment_conforms",
            "--ignored",
            "--nocapture",
        ])
        .env("ALLUVIUM_TEST_STORE", "s3://alluvium/conformance")
        .envs(minio.env())
        .output()
        .expect("this test runs again");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{text}\n{errors}\nMinIO: {}",
        minio.log()
    );
    assert!(text.contains("1 passed"), "the suite did not run: {text}");
}

/// Any bucket can be tested by hand: its URL in `ALLUVIUM_TEST_STORE`, credentials as AWS_* variables.
#[test]
#[ignore = "needs ALLUVIUM_TEST_STORE"]
fn store_of_the_environment_conforms() {
    let url = std::env::var("ALLUVIUM_TEST_STORE").expect("ALLUVIUM_TEST_STORE is a store URL");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(&url, StoreOptions::default())
            .await
            .expect("the store opens");
        if let Err(problem) = conformance::run(&store).await {
            panic!("{url} does not conform: {problem}");
        }
    });
}
