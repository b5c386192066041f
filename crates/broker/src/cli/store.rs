//! `alluvium store check URL`.

use alluvium_log::store::probe::probe;
use alluvium_log::store::{Store, StoreOptions};

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct CheckArgs {
    /// The store, as for `serve --store`; a few objects are written below its prefix and removed again
    url: String,
}

pub(super) async fn check(args: CheckArgs) -> Result<(), String> {
    let store = Store::open(&args.url, StoreOptions::default())
        .await
        .map_err(|e| e.to_string())?;
    let report = probe(&store).await.map_err(|e| e.to_string())?;
    println!("{report}");
    Ok(())
}
