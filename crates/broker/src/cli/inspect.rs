//! `alluvium inspect URL [KEY]`.

use std::io::Write;

use alluvium_log::inspect;

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
        Some(key) => inspect::object(&store, key).await,
        None => inspect::overview(&store).await,
    };
    shown.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_log::store::{Store, StoreKind, StoreOptions};
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
