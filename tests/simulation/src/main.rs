//! Whole clusters of real brokers in virtual time. See README.md.

mod broker;
mod bucket;
mod clients;
mod history;
mod kafka;
mod machine;
mod members;
mod mutation;
mod nemesis;
mod network;
mod os;
mod run;
mod store;
mod sweep;
mod world;

use std::process::ExitCode;

use mutation::Mutation;
use sweep::Rule;

const USAGE: &str = "\
alluvium-simulation: brokers, clients, a store and a network, in virtual time, by a seed

  --seeds A..B         runs the seeds from A to below B, each in a process of its own
  --seed N             runs one seed and prints everything that happens
  --mutations          breaks one rule after the other and says how many seeds it takes to notice
  --mutation NAME      breaks one rule; with --seeds or --seed
  --unbroken           keeps that rule, in the same worlds: they must hold
  --budget-seconds S   stops after so long; with --mutations: for each of them
  --resume FILE        skips the seeds in FILE and adds those that are done
  --quiet              with --seed: only the result

RUST_LOG=alluvium_log=debug adds what the product logs to the output of --seed.
";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Args {
    seeds: Option<(u64, u64)>,
    seed: Option<u64>,
    mutations: bool,
    mutation: Option<Mutation>,
    unbroken: bool,
    budget_seconds: Option<u64>,
    resume: Option<String>,
    quiet: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
        match word.as_str() {
            "--seeds" => {
                let text = value()?;
                let (from, to) = text.split_once("..").ok_or(format!("{text} is not A..B"))?;
                args.seeds = Some((number(from.to_owned())?, number(to.to_owned())?));
            }
            "--seed" => args.seed = Some(number(value()?)?),
            "--mutations" => args.mutations = true,
            "--mutation" => {
                let name = value()?;
                let found = Mutation::ALL.into_iter().find(|m| format!("{m:?}") == name);
                args.mutation = Some(found.ok_or(format!("{name} is none of {:?}", Mutation::ALL))?);
            }
            "--budget-seconds" => args.budget_seconds = Some(number(value()?)?),
            "--resume" => args.resume = Some(value()?),
            "--unbroken" => args.unbroken = true,
            "--quiet" => args.quiet = true,
            other => return Err(format!("{other} is not known\n\n{USAGE}")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let passed = match (&args.seed, &args.seeds) {
        (Some(seed), _) => one(*seed, &args),
        (None, _) if args.mutations => sweep::mutations(args.seeds.unwrap_or((0, 400)), args.budget_seconds),
        (None, Some(seeds)) => {
            let rule = args.mutation.map(|m| Rule {
                mutation: m,
                broken: !args.unbroken,
            });
            sweep::seeds(*seeds, rule, args.budget_seconds, args.resume.as_deref())
        }
        (None, None) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs one seed in this process.
fn one(seed: u64, args: &Args) -> bool {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .init();
    }
    // A task that panics would end alone and in silence; as in the product, the whole process ends.
    std::panic::set_hook(Box::new(|panic| {
        println!("VIOLATION {}", panic.to_string().replace('\n', " "));
        println!("{}", std::backtrace::Backtrace::capture());
        std::process::exit(101);
    }));
    let (rule, broken, print) = (args.mutation, !args.unbroken, !args.quiet);
    // On a thread of its own: what the standard library remembers by thread was drawn before chance was taken over.
    let ran = std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(move || run::run(seed, rule, broken, print));
    let outcome = match ran.map(std::thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        _ => {
            println!("VIOLATION the simulation did not run");
            return false;
        }
    };
    for what in &outcome.violations {
        println!("VIOLATION {what}");
    }
    println!("{}", outcome.summary);
    println!("RESULT {} {:016x}", outcome.violations.len(), outcome.hash);
    outcome.violations.is_empty()
}
