//! `alluvium cluster ...`: what an operator sees and changes, through the bucket, without a broker.

mod drain;
mod feature_level;
mod restore;
mod status;

use std::io::{BufRead, IsTerminal, Write};

use alluvium_log::store::{Store, StoreError, StoreKind, StoreOptions};
use clap::Subcommand;

use super::store::{absolute, look_into};
use crate::config::store_kind;

#[derive(Subcommand, Debug)]
pub(super) enum ClusterCommand {
    /// Show brokers, what they lead, and what is wrong; reads only the store. Exit code 0: all is well, 1: it is not
    Status(status::StatusArgs),
    /// Have a broker hand over all that it leads, and get nothing more until that is undone
    Drain(drain::DrainArgs),
    /// Show or raise the feature level: what brokers may write to the store
    FeatureLevel(feature_level::FeatureLevelArgs),
    /// Put a numbered copy in the place of a manifest that is damaged or gone
    RestoreManifest(restore::RestoreArgs),
}

pub(super) async fn run(command: ClusterCommand) -> Result<(), String> {
    match command {
        ClusterCommand::Status(args) => status::run(args).await,
        ClusterCommand::Drain(args) => drain::run(args).await,
        ClusterCommand::FeatureLevel(args) => feature_level::run(args).await,
        ClusterCommand::RestoreManifest(args) => restore::run(args).await,
    }
}

/// The store of an existing cluster, to change something in it. A directory is changed only while no broker has it.
pub(super) async fn open_to_change(url: &str) -> Result<Store, String> {
    let url = absolute(url)?;
    if store_kind(&url) != StoreKind::S3 {
        // Opening it for changes would make a directory that is not there, and memory is never here.
        look_into(&url).await?;
    }
    let opened = Store::open(&url, StoreOptions::default()).await;
    opened.map_err(|error| match error {
        StoreError::InUse { path, holder } => {
            format!(
                "{path} is in use by {holder}; stop it first, for a directory is changed while nobody has it"
            )
        }
        other => other.to_string(),
    })
}

/// Asks before something is done that cannot be undone. Without a terminal to ask on, `--yes` has to be given.
pub(super) async fn confirmed(question: &str, yes: bool) -> Result<(), String> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err("nobody is there to be asked; give --yes if it shall be done".to_owned());
    }
    let question = question.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        write!(out, "{question} [y/N] ").and_then(|()| out.flush())?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = asked
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    match is_yes(&answer) {
        true => Ok(()),
        false => Err("nothing was changed".to_owned()),
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Writes a text to standard output; a reader who has seen enough is no failure.
pub(super) fn print(text: &str) -> Result<(), String> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
