//! `alluvium cluster feature-level URL [--set N]`.

use alluvium_log::cluster::{Cluster, ClusterError};
use alluvium_log::manifest::operator::LEVELS;
use alluvium_log::manifest::{FEATURE_LEVEL, Manifest, NotChanged};

use super::super::store::{absolute, look_into};
use super::{confirmed, open_to_change, print};

/// Which level.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct FeatureLevelArgs {
    /// The store, as for `serve --store`
    url: String,
    /// Raise the level to this one; it can never be lowered again
    #[arg(long, value_name = "LEVEL")]
    set: Option<u32>,
    /// Do not ask
    #[arg(long, requires = "set")]
    yes: bool,
}

pub(super) async fn run(args: FeatureLevelArgs) -> Result<(), String> {
    let Some(level) = args.set else {
        let store = look_into(&absolute(&args.url)?).await?;
        let cluster = Cluster::open(&store).await.map_err(|e| e.to_string())?;
        return print(&shown(&cluster.manifest(), &store.display));
    };
    let store = open_to_change(&args.url).await?;
    let cluster = Cluster::open(&store).await.map_err(|e| e.to_string())?;
    let before = cluster.manifest();
    match (*before).clone().raise_feature_level(level) {
        Ok(()) => {}
        Err(NotChanged::AsItIs) => return print(&format!("the feature level is {level} already")),
        Err(refused) => return Err(refused.to_string()),
    }
    print(&warning(&before, level))?;
    confirmed(
        &format!("Raise the feature level of {} to {level}?", store.display),
        args.yes,
    )
    .await?;
    let raised = cluster.change(|m| m.raise_feature_level(level)).await;
    match raised {
        Ok(_) => print(&format!("the feature level is {level} now")),
        Err(error @ ClusterError::Unknown(_)) => Err(format!(
            "{error}; the level may be raised now or later: look with `alluvium cluster feature-level {}`",
            args.url
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The level, and what the levels mean.
fn shown(manifest: &Manifest, store: &str) -> String {
    let now = manifest.feature_level;
    let mut lines = vec![format!(
        "the feature level of {store} is {now}; this alluvium knows 1 to {FEATURE_LEVEL}"
    )];
    for (level, meaning) in LEVELS {
        let mark = if level == now { "*" } else { " " };
        lines.push(format!("{mark} {level}  {meaning}"));
    }
    if now < FEATURE_LEVEL {
        lines.push(format!(
            "--set {FEATURE_LEVEL} raises it, once every broker is new enough"
        ));
    }
    lines.join("\n")
}

/// What to know before a level is raised.
fn warning(manifest: &Manifest, level: u32) -> String {
    let mut live: Vec<String> = manifest
        .live()
        .map(|(_, stream)| stream.node_id.to_string())
        .collect();
    live.sort();
    let who = match live.is_empty() {
        true => "No broker is live now.".to_owned(),
        false => format!("Live now: {}.", live.join(", ")),
    };
    format!(
        "From {} to {level}. Every broker must know level {level}: one that does not refuses the store from then on, \
         and so does any older version that you might want to go back to. {who}",
        manifest.feature_level
    )
}
