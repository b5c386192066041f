//! `alluvium cluster drain NODE_ID URL`.

use std::time::Duration;

use alluvium_log::cluster::{Cluster, ClusterError, Led, led_by_broker};
use alluvium_log::manifest::Manifest;
use tokio::time::Instant;

use super::{open_to_change, print};

/// How often the manifest is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Whom to drain.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct DrainArgs {
    /// node.id of the broker
    #[arg(value_parser = clap::value_parser!(i32).range(0..))]
    node_id: i32,
    /// The store, as for `serve --store`
    url: String,
    /// Take the mark away: the broker may get partitions again
    #[arg(long)]
    undo: bool,
    /// Seconds to wait until the broker leads nothing; 0 sets the mark and does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

pub(super) async fn run(args: DrainArgs) -> Result<(), String> {
    let store = open_to_change(&args.url).await?;
    let cluster = Cluster::open(&store).await.map_err(|e| e.to_string())?;
    let (node_id, draining) = (args.node_id, !args.undo);
    let marked = tokio::select! {
        marked = cluster.change(|m| m.set_draining(node_id, draining)) => marked,
        () = interrupted() => {
            return Err(format!(
                "interrupted, and it is unknown whether the mark of broker {node_id} was written; `alluvium cluster \
                 status {}` shows it",
                args.url
            ));
        }
    };
    let changed = marked.map_err(|error| unknown_mark(error, &args.url))?;
    if args.undo {
        let text = match changed {
            true => format!("broker {node_id} is no longer marked as draining and may get partitions again"),
            false => format!("broker {node_id} was not marked as draining"),
        };
        return print(&text);
    }
    print(&match changed {
        true => format!(
            "broker {node_id} is marked as draining: it hands over what it leads and gets nothing more"
        ),
        false => format!("broker {node_id} is marked as draining already"),
    })?;
    if args.timeout == 0 {
        return Ok(());
    }
    tokio::select! {
        done = wait(&cluster, node_id, Duration::from_secs(args.timeout)) => done,
        () = interrupted() => Err(still(node_id, "interrupted")),
    }
}

fn unknown_mark(error: ClusterError, url: &str) -> String {
    match error {
        ClusterError::Unknown(_) => format!(
            "{error}; the mark may be set now or later: look with `alluvium cluster status {url}`, and give the \
             command again"
        ),
        ClusterError::Refused(_) => error.to_string(),
    }
}

/// Why the wait is over although the broker still leads something.
fn still(node_id: i32, why: &str) -> String {
    format!("{why}: broker {node_id} stays marked and goes on handing over; --undo takes the mark away")
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No signal can be heard: then none interrupts.
        std::future::pending::<()>().await;
    }
}

/// Waits until the broker leads nothing, and tells how far it is.
async fn wait(cluster: &Cluster, node_id: i32, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    let mut told_of = None;
    let mut failing = false;
    loop {
        match cluster.refresh().await {
            Ok(manifest) => {
                failing = false;
                match progress(&manifest, node_id) {
                    Progress::Done(text) => return print(&text),
                    Progress::Leads(led) if told_of != Some(led) => {
                        print(&format!(
                            "broker {node_id} still leads {} partitions in {} slots",
                            led.partitions, led.slots
                        ))?;
                        told_of = Some(led);
                    }
                    Progress::Leads(_) => {}
                }
            }
            Err(error) if !failing => {
                failing = true;
                eprintln!("alluvium: {error}; trying again");
            }
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(still(
                node_id,
                &format!("not done after {} s", patience.as_secs()),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done(String),
    Leads(Led),
}

/// How far a broker that drains is, by the manifest.
pub(super) fn progress(manifest: &Manifest, node_id: i32) -> Progress {
    let lives = manifest.live().any(|(_, stream)| stream.node_id == node_id);
    let led = led_by_broker(manifest, node_id);
    match (lives, led.slots) {
        (false, _) => Progress::Done(format!("broker {node_id} is gone, and others lead what it led")),
        (true, 0) if !manifest.draining.contains(&node_id) => Progress::Done(format!(
            "broker {node_id} leads nothing, but its mark was taken away"
        )),
        (true, 0) => Progress::Done(format!(
            "broker {node_id} leads nothing any more: it can be stopped"
        )),
        (true, _) => Progress::Leads(led),
    }
}
