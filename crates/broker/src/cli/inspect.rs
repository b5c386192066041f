//! `alluvium inspect URL [KEY]`.

use std::collections::BTreeMap;
use std::io::Write;

use alluvium_log::store::Store;
use alluvium_log::{ReadError, inspect, keys};
use serde_json::json;

use super::store::{absolute, look_into};

/// What to look at.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// The directory or URL that `serve --store` uses; a directory may be in use by a broker
    url: String,
    /// One of the keys that the overview lists, such as cluster/manifest.json; without it the overview is shown
    key: Option<String>,
}

pub(super) async fn run(args: InspectArgs) -> Result<(), String> {
    let shown = look(&args).await?;
    let text = serde_json::to_string_pretty(&shown).map_err(|e| e.to_string())?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}

async fn look(args: &InspectArgs) -> Result<serde_json::Value, String> {
    let store = look_into(&absolute(&args.url)?).await?;
    let shown = match &args.key {
        Some(key) if keys::parse_archived(key).is_some() => return history(&store, key).await,
        Some(key) => inspect::object(&store, key).await,
        None => inspect::overview(&store).await,
    };
    shown.map_err(|e| e.to_string())
}

/// A file of history, by its end.
async fn history(store: &Store, key: &str) -> Result<serde_json::Value, String> {
    let file = alluvium_archive::summary(store, &store.key(key)).await;
    let file = file.map_err(|error| match error {
        ReadError::Missing(_) => inspect::missing(store, key),
        error => format!("{}: {error}", store.display),
    })?;
    let metadata: BTreeMap<&str, &str> = file
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let row_groups = file
        .row_groups
        .iter()
        .map(|(rows, bytes)| json!({ "rows": rows, "bytes": bytes }));
    let columns = file.columns.iter().map(|(path, kind, stored, raw)| {
        json!({ "column": path, "type": kind, "bytes": stored, "uncompressed_bytes": raw })
    });
    let shares = file.shares.iter().map(|share| {
        json!({
            "partition": share.partition, "base_offset": share.base_offset, "last_offset": share.last_offset,
            "first_row": share.first_row, "rows": share.rows,
        })
    });
    Ok(json!({
        "kind": "history", "format": "parquet", "bytes": file.bytes, "rows": file.rows, "metadata": metadata,
        "row_groups": row_groups.collect::<Vec<_>>(), "columns": columns.collect::<Vec<_>>(),
        "shares": shares.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::store::{StoreKind, StoreOptions};
    use alluvium_log::{Log, LogOptions, SystemClock};
    use std::sync::Arc;

    async fn looked(url: &str, key: Option<&str>) -> Result<serde_json::Value, String> {
        look(&InspectArgs {
            url: url.to_owned(),
            key: key.map(str::to_owned),
        })
        .await
    }

    #[tokio::test]
    async fn what_is_no_cluster_says_what_to_give() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().display().to_string();
        for url in [format!("{here}/gone"), here.clone(), "/dev/null".to_owned()] {
            let line = looked(&url, None).await.unwrap_err();
            assert!(
                line.ends_with("give the directory or URL that `serve` uses"),
                "{line}"
            );
            assert!(!line.contains("--store"), "{line}");
        }
        assert!(!root.path().join("gone").exists(), "it only looks");
        assert!(
            looked(&here, None)
                .await
                .unwrap_err()
                .contains("no Alluvium cluster here")
        );
        let memory = looked("memory://", None).await.unwrap_err();
        assert!(memory.contains("nothing of it can be seen"), "{memory}");
        assert!(
            looked("~/x", None)
                .await
                .unwrap_err()
                .contains("write the whole path")
        );
    }

    #[tokio::test]
    async fn a_cluster_is_shown_also_with_a_damaged_manifest() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().display().to_string();
        let store = Store::open(&here, StoreOptions::default()).await.unwrap();
        let options = LogOptions::for_store(StoreKind::Embedded);
        let mut registry = prometheus_client::registry::Registry::default();
        let log = Log::open(store, options, Arc::new(SystemClock), &mut registry)
            .await
            .unwrap();
        log.close().await.unwrap();
        let shown = looked(&here, None).await.unwrap();
        assert_eq!(
            shown["manifest"]["cluster_id"],
            log.manifest().cluster_id.to_string()
        );
        let line = looked(&here, Some("cluster/manifest")).await.unwrap_err();
        assert!(
            line.contains("there is no cluster/manifest; KEY is one of those that `alluvium inspect"),
            "{line}"
        );
        std::fs::write(root.path().join("cluster/manifest.json"), "{").unwrap();
        let shown = looked(&here, None).await.unwrap();
        assert!(
            shown["manifest"]["damaged"]
                .as_str()
                .unwrap()
                .contains("not valid JSON")
        );
        let listed = shown["objects"].as_array().unwrap();
        assert!(
            listed
                .iter()
                .any(|object| object["key"].as_str().unwrap().starts_with("cluster/history/")),
            "the copies are what is looked for"
        );
    }
}
