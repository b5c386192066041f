//! `alluvium cluster restore-manifest URL`.

use alluvium_log::cluster::ClusterError;
use alluvium_log::cluster::restore::{self, Plan, Present, WATCH};
use alluvium_log::store::StoreKind;

use super::{confirmed, open_to_change, print};

/// What to restore.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct RestoreArgs {
    /// The store, as for `serve --store`
    url: String,
    /// Version of the copy to put back; without it the newest that can be read
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// Also if the manifest is whole
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: RestoreArgs) -> Result<(), String> {
    let store = open_to_change(&args.url).await?;
    let found = restore::find(&store).await.map_err(|e| e.to_string())?;
    let plan = restore::plan(&store, &found, args.version, args.force).await;
    let plan = plan.map_err(|e| e.to_string())?;
    print(&described(&plan, &store.display))?;
    // Whoever has opened a directory for changes is alone with it.
    if store.kind == StoreKind::S3 && plan.watched() > 0 {
        print(&format!(
            "Looking for {} s whether any of {} brokers is still running ...",
            WATCH.as_secs(),
            plan.watched()
        ))?;
        restore::watch(&store, &plan, WATCH)
            .await
            .map_err(|e| e.to_string())?;
    }
    confirmed("Put it back?", args.yes).await?;
    match restore::restore(&store, &plan).await {
        Ok(version) => print(&format!(
            "the manifest is restored as version {version}; brokers can be started"
        )),
        Err(error @ ClusterError::Unknown(_)) => Err(format!(
            "{error}; the manifest may be restored now or later: wait a minute and look with `alluvium cluster status \
             {}`",
            args.url
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// What would be done, and what would be missing afterwards.
pub(super) fn described(plan: &Plan, store: &str) -> String {
    let copy = &plan.copy;
    let mut lines = vec![match &plan.present {
        Present::Missing => format!("{store}: the manifest is gone."),
        Present::Damaged(why) => format!("{store}: the manifest is damaged: {why}."),
        Present::Whole(version) => format!("{store}: the manifest is whole, version {version}."),
    }];
    for (key, why) in &plan.unreadable {
        lines.push(format!("{key} cannot be used: {why}."));
    }
    let partitions: u64 = copy.topics.values().map(|t| u64::from(t.partitions)).sum();
    lines.push(format!(
        "The copy of version {} can be put back as version {}: {} topics with {partitions} partitions, {} live brokers.",
        copy.version,
        plan.restored.version + 1,
        copy.topics.len(),
        copy.live().count()
    ));
    match plan.lost_versions() {
        None => lines.push("No later version is known, so nothing should be missing.".to_owned()),
        Some(lost) => {
            let which = match (lost.start(), lost.end()) {
                (first, last) if first == last => format!("version {first}"),
                (first, last) => format!("versions {first} to {last}"),
            };
            lines.push(format!(
                "LOST: the changes of {which}. Topics and configs made there are gone; where \
                 partitions changed their broker there, the records acknowledged since are gone too."
            ));
        }
    }
    if !plan.unknown_streams.is_empty() {
        let streams: Vec<String> = plan.unknown_streams.iter().map(u64::to_string).collect();
        lines.push(format!(
            "LOST: what was written by broker starts that the copy does not know (incarnations {}).",
            streams.join(", ")
        ));
    }
    if plan.present != Present::Missing {
        lines.push("What is there now will be kept below cluster/replaced/.".to_owned());
    }
    lines.join("\n")
}
