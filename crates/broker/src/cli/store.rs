//! `alluvium store check URL`, and the store that a command line names.

use alluvium_log::inspect::WHAT_TO_GIVE;
use alluvium_log::store::probe::probe;
use alluvium_log::store::{Store, StoreError, StoreKind, StoreOptions};

use crate::config::{resolve_store_url, store_kind};

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct CheckArgs {
    /// The store, as for `serve --store`; a few objects are written below its prefix and removed again. A directory
    /// must not be in use, and keeps an empty .alluvium
    url: String,
}

pub(super) async fn check(args: CheckArgs) -> Result<(), String> {
    let url = absolute(&args.url)?;
    let opened = Store::open(&url, StoreOptions::default()).await;
    let store = opened.map_err(|error| match error {
        StoreError::InUse { path, holder } => {
            format!(
                "{path} is in use by {holder}; stop it first, for a directory is checked while nobody has it"
            )
        }
        other => other.to_string(),
    })?;
    let probed = probe(&store).await;
    if store_kind(&url) == StoreKind::Embedded {
        // Only the directory of the probe's keys, and only if nothing is in it. That of the lock stays: who removed
        // it could take it away under somebody who is about to lock it.
        let _ = std::fs::remove_dir(std::path::Path::new(&store.display).join("probe"));
    }
    println!("{}", probed.map_err(|e| e.to_string())?);
    Ok(())
}

/// The store of a command line as `serve` understands it.
pub(super) fn absolute(url: &str) -> Result<String, String> {
    let cwd = std::env::current_dir().map_err(|e| format!("no current directory: {e}"))?;
    resolve_store_url(url, &cwd).map_err(|problem| format!("bad store: {problem}"))
}

/// Why nothing can be done about a store in memory.
pub(super) const MEMORY_IS_ELSEWHERE: &str =
    "memory:// is in the memory of the broker that serves it: nothing of it can be seen from here";

/// Opens a store, by its absolute URL, for looking only: a directory may be in use by a broker.
pub(super) async fn look_into(url: &str) -> Result<Store, String> {
    let kind = store_kind(url);
    if kind == StoreKind::Memory {
        return Err(MEMORY_IS_ELSEWHERE.to_owned());
    }
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let opened = Store::open(url, options).await;
    opened.map_err(|error| match error {
        StoreError::Unusable { store, .. } if kind == StoreKind::Embedded => {
            // What to do about a directory that is to be served is of no use to who only looks.
            let why =
                std::fs::read_dir(&store).map_or_else(|e| e.to_string(), |_| "it cannot be opened".into());
            format!("cannot look at {store}: {why}; {WHAT_TO_GIVE}")
        }
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn checked(url: &str) -> Result<(), String> {
        check(CheckArgs { url: url.to_owned() }).await
    }

    #[tokio::test]
    async fn a_directory_that_was_empty_keeps_only_the_place_of_its_lock() {
        let root = tempfile::tempdir().unwrap();
        let url = root.path().display().to_string();
        checked(&url).await.unwrap();
        let left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".alluvium"]);
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_checked_is_refused_without_the_advice_of_serve() {
        let root = tempfile::tempdir().unwrap();
        let url = root.path().display().to_string();
        let held = Store::open(&url, StoreOptions::default()).await.unwrap();
        let line = checked(&url).await.unwrap_err();
        assert!(
            line.contains("is in use by") && line.contains("stop it first"),
            "{line}"
        );
        drop(held);
        for url in ["/proc/alluvium-check", "/dev/null", "~/x", "gs://x"] {
            let line = checked(url).await.unwrap_err();
            assert!(!line.contains("--store"), "{line}");
        }
    }
}
