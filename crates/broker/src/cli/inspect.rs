//! `alluvium inspect URL [KEY]`.

use std::io::Write;

use alluvium_log::inspect;
use alluvium_log::store::{Store, StoreOptions};

/// What to look at.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// The store, as for `serve --store`; a directory may be in use by a broker
    url: String,
    /// Key below the store's prefix, such as cluster/manifest.json; without it an overview is shown
    key: Option<String>,
}

pub(super) async fn run(args: InspectArgs) -> Result<(), String> {
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let store = Store::open(&args.url, options).await.map_err(|e| e.to_string())?;
    let shown = match &args.key {
        Some(key) => inspect::object(&store, key).await,
        None => inspect::overview(&store).await,
    };
    let shown = shown.map_err(|e| e.to_string())?;
    let text = serde_json::to_string_pretty(&shown).map_err(|e| e.to_string())?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}
