//! `alluvium-model`: checks every configuration and every deviation; exits with 1 unless each is as it must be.
//! `alluvium-model CONFIG [DEVIATION]`: one of them, with the trace if there is one.
//! A name that begins with "progress " asks whether all records can still be acknowledged from every hopeful state.
//! Environment: `THREADS` (2) checks at a time; `LIMIT` seconds (600) and `MAX_STATES` (60,000,000) of each.

mod check;
mod one_stream;
mod protocol;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use check::{Limits, Outcome, Run};

fn env(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|t| t.parse().ok())
        .unwrap_or(default)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let deep = protocol::scenarios::deep()
        .into_iter()
        .map(|s| protocol::run(s, vec![]));
    let progress = protocol::scenarios::all()
        .into_iter()
        .map(|s| protocol::progress_run(s, vec![]));
    let all = one_stream::runs().into_iter().chain(protocol::runs());
    let runs: Vec<Run> = match args.first() {
        None => all.collect(),
        Some(_) => all.chain(deep).chain(progress).filter(|r| r.is(&args)).collect(),
    };
    if runs.is_empty() {
        return unknown(&args.join(" "));
    }
    let (start, count) = (Instant::now(), runs.len());
    let failed = check_all(&runs, !args.is_empty());
    println!("{:.0} seconds", start.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", count - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn unknown(what: &str) -> ExitCode {
    eprintln!("no such configuration or deviation: {what}");
    ExitCode::FAILURE
}

/// Checks all, several at a time, prints them in order, and counts those that are not as they must be.
fn check_all(runs: &[Run], with_trace: bool) -> usize {
    let limits = Limits {
        time: Duration::from_secs(env("LIMIT", 600) as u64),
        states: env("MAX_STATES", 60_000_000),
    };
    let (next, (done, outcomes)) = (AtomicUsize::new(0), mpsc::channel::<(usize, Option<Outcome>)>());
    let mut failed = 0;
    println!("| part | configuration | deviation | result | states | depth | seconds | verdict |");
    println!("|---|---|---|---|---|---|---|---|");
    std::thread::scope(|scope| {
        for _ in 0..env("THREADS", 2).max(1) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(i) else { return };
                    // A model that panics has failed; the others go on.
                    let explore = std::panic::AssertUnwindSafe(|| (run.explore)(limits));
                    let _ = done.send((i, std::panic::catch_unwind(explore).ok()));
                }
            });
        }
        drop(done);
        let mut waiting = std::collections::BTreeMap::new();
        let mut shown = 0;
        for (i, outcome) in outcomes {
            waiting.insert(i, outcome);
            while let Some(outcome) = waiting.remove(&shown) {
                failed += usize::from(!show(&runs[shown], outcome, with_trace));
                shown += 1;
            }
        }
    });
    failed
}

/// Prints one outcome; false if it is not as it must be.
fn show(run: &Run, outcome: Option<Outcome>, with_trace: bool) -> bool {
    let Some(o) = outcome else {
        println!(
            "| {} | {} | {:?} | **FAILED: the model panicked** |",
            run.part, run.config, run.deviation
        );
        return false;
    };
    println!("{}", run.row(&o));
    let good = run.problem(&o).is_none();
    if with_trace {
        println!("reached: {:?}", o.reached);
    }
    if with_trace || !good {
        let trace = o.failure.iter().flat_map(|f| &f.1);
        trace.enumerate().for_each(|(i, a)| println!("{:3} {a}", i + 1));
    }
    good
}
