//! Writes `docs/compatibility.md` from the results of the client tests, or checks that nothing on it is lost.

use std::path::PathBuf;
use std::process::ExitCode;

use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::compatibility::{Served, read_reports, regressions, render};
use alluvium_tests::installed::{root, target};
use alluvium_tests::wire::Client;
use clap::Parser;
use kafka_wire::ApiVersionsRequest;

/// Writes docs/compatibility.md from the results of the client tests.
#[derive(Debug, Parser)]
#[command(name = "compatibility")]
struct Arguments {
    /// Write nothing; fail if a client can no longer do what the page says
    #[arg(long)]
    check: bool,
    /// Directory of the results (default: clients/results in the target directory)
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(words) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Err(words) => {
            eprintln!("{words}");
            ExitCode::FAILURE
        }
    }
}

/// What the real binary names.
fn served() -> Result<Served, String> {
    let broker = Broker::start(BrokerOptions::embedded());
    let answer = Client::connect(broker.address())
        .and_then(|mut client| client.call(&ApiVersionsRequest::default(), 0))
        .map_err(|error| format!("no answer to ApiVersions: {error}"))?;
    let ranges = answer.api_keys.iter();
    Ok(ranges
        .map(|api| (api.api_key, (api.min_version, api.max_version)))
        .collect())
}

fn run(arguments: &Arguments) -> Result<String, String> {
    let results = arguments.results.clone();
    let results = results.unwrap_or_else(|| target().join("clients/results"));
    let reports = read_reports(&results)?;
    if reports.is_empty() {
        return Err(format!("no results in {}", results.display()));
    }
    let path = root().join("docs/compatibility.md");
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    let page = render(&reports, &served()?);
    if !arguments.check {
        std::fs::write(&path, page).map_err(at)?;
        return Ok(format!("wrote {} from {} results", path.display(), reports.len()));
    }
    let committed = std::fs::read_to_string(&path).map_err(at)?;
    let lost = regressions(&committed, &reports);
    if !lost.is_empty() {
        return Err(format!(
            "no longer as docs/compatibility.md says:\n{}",
            lost.join("\n")
        ));
    }
    let differs = if committed == page {
        ""
    } else {
        "; the page is not up to date, write it again"
    };
    Ok(format!(
        "{} results, none is worse than the page{differs}",
        reports.len()
    ))
}
