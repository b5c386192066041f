//! The command line: one file per command.

mod archive;
mod bench;
mod client;
mod cluster;
pub mod config;
mod demo;
mod fsck;
mod health;
mod inspect;
mod life;
mod serve;
mod store;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::Surroundings;

/// A Kafka-compatible log whose only durable part is a bucket.
#[derive(Parser, Debug)]
#[command(name = "alluvium", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a broker
    Serve(config::SettingsArgs),
    /// Run a broker that has something to look at: topics, a producer, a consumer group. Needs no configuration
    Demo(demo::DemoArgs),
    /// Look at an object store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show the manifest, a head, segment, seal, checkpoint or Parquet file as JSON
    Inspect(inspect::InspectArgs),
    /// Look at a cluster and operate it, through its store
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Work with the history of topics: Parquet in the store
    #[command(subcommand)]
    Archive(archive::ArchiveCommand),
    /// Look through everything in a store: is all that logs refer to there and whole? Reads only, unless it is told to
    /// repair. Exit code 0: it is, 1: something is wrong, 2: it could not be found out
    Fsck(fsck::FsckArgs),
    /// Ask a broker whether it is ready, over HTTP; exit code 0 or 1
    Health(health::HealthArgs),
    /// List every setting with its value, default and meaning
    Config(config::ConfigArgs),
    /// Put load on a Kafka broker, this one or any other, and measure
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

#[derive(Subcommand, Debug)]
enum StoreCommand {
    /// Prove that a store keeps its promises (conditional writes above all); exit code 0 or 1
    Check(store::CheckArgs),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => on_runtime(serve::run(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Store(StoreCommand::Check(args)) => on_runtime(store::check(args)),
        Command::Inspect(args) => on_runtime(inspect::run(args)),
        Command::Cluster(command) => on_runtime(cluster::run(command)),
        Command::Archive(command) => on_runtime(archive::run(command)),
        Command::Fsck(args) => return fsck::main(args),
        Command::Health(args) => health::run(&args),
        Command::Config(args) => show_config(&args),
        Command::Bench(command) => on_runtime(bench::run(command)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            lines.lines().for_each(|line| eprintln!("alluvium: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// How long file work of a command that is over may take.
const LAST_WORK_TIMEOUT: Duration = Duration::from_secs(5);

fn on_runtime(command: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start threads: {e}"))?;
    let done = runtime.block_on(command);
    // What still holds the store ends here, so that the embedded one can make files of what is only in its journal;
    // blocking file work that hangs must not hold the process for ever.
    runtime.shutdown_timeout(LAST_WORK_TIMEOUT);
    done
}

fn show_config(args: &config::ConfigArgs) -> Result<(), String> {
    let surroundings = Surroundings::of_process().map_err(|e| e.to_string())?;
    let (mut out, mut warn) = (std::io::stdout().lock(), std::io::stderr().lock());
    match config::run(args, &surroundings, config::terminal_width(), &mut out, &mut warn) {
        // The reader of a pipe has seen enough.
        Err(config::ConfigCommandError::Write(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|e| e.to_string()),
    }
}
