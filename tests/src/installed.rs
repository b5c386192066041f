//! Tests that need a program which a machine may lack: they are skipped with a word, except in CI.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Cargo's target directory, below which everything is installed.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => root().join("target"),
    }
}

/// What to do about tools that query files, if they are missing.
pub fn analytics_missing() -> Option<String> {
    let installed = target().join("clients/analytics.installed").exists();
    (!installed).then(|| {
        "DuckDB, Polars and pyarrow are not installed: tests/clients/install.sh analytics".to_owned()
    })
}

/// What to do about Spark, if it is missing.
pub fn spark_missing() -> Option<String> {
    let installed = target().join("clients/spark.installed").exists();
    (!installed).then(|| "Spark is not installed: tests/clients/install.sh spark".to_owned())
}

/// What to do about kcat, if it is missing.
pub fn kcat_missing() -> Option<String> {
    let kcat = Command::new("kcat").arg("-V").output();
    kcat.is_err()
        .then(|| "kcat is not installed: tests/clients/install.sh kcat".to_owned())
}

/// What becomes of a test whose program is not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The test passes and says that it was skipped: a machine with only Rust and a C compiler.
    Skips,
    /// The test fails.
    Fails,
    /// The test is skipped even where the program is installed.
    Off,
}

impl Missing {
    /// `ALLUVIUM_TEST_CLIENTS` is `off`, `auto` or `require`; without it, `CI=true` or
    /// `ALLUVIUM_TEST_REQUIRE_CLIENTS=1` require every program.
    pub fn from_environment() -> Missing {
        let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
        match std::env::var("ALLUVIUM_TEST_CLIENTS").as_deref() {
            Ok("off") => Missing::Off,
            Ok("auto") => Missing::Skips,
            Ok("require") => Missing::Fails,
            Ok(other) => panic!("ALLUVIUM_TEST_CLIENTS={other}: expected off, auto or require"),
            Err(_) if is("CI", "true") || is("ALLUVIUM_TEST_REQUIRE_CLIENTS", "1") => Missing::Fails,
            Err(_) => Missing::Skips,
        }
    }

    /// Whether the test goes on, given what is missing, if anything.
    ///
    /// # Panics
    /// If something is missing that must be there.
    pub fn goes_on(self, missing: Option<String>) -> bool {
        match (self, missing) {
            (Missing::Off, _) => {
                println!("skipped: ALLUVIUM_TEST_CLIENTS=off");
                false
            }
            (_, None) => true,
            (Missing::Skips, Some(what)) => {
                println!("skipped: {what}");
                false
            }
            (Missing::Fails, Some(what)) => panic!("{what}"),
        }
    }
}
