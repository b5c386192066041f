//! Many seeds, each in a process of its own: what a run leaves in static variables, or a panic, is nobody else's.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mutation::Mutation;

/// Real time that one seed may take.
const SEED_TIMEOUT: Duration = Duration::from_secs(180);

/// What a process said of its seed.
#[derive(Debug)]
struct Result {
    violations: Vec<String>,
    hash: String,
    /// Whether the seed came to an end, or to a violation: else nothing was found out.
    ran: bool,
}

/// The rule that worlds are made for.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub mutation: Mutation,
    pub broken: bool,
}

impl Rule {
    fn arguments(self) -> Vec<String> {
        let mut words = vec!["--mutation".to_owned(), format!("{:?}", self.mutation)];
        if !self.broken {
            words.push("--unbroken".to_owned());
        }
        words
    }
}

fn run(seed: u64, rule: Option<Rule>) -> Result {
    let failed = |what: String| Result {
        violations: vec![what],
        hash: String::new(),
        ran: false,
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => return failed(format!("this program cannot be found: {e}")),
    };
    let mut command = Command::new(program);
    command.args(["--quiet", "--seed", &seed.to_string()]);
    command.args(rule.into_iter().flat_map(Rule::arguments));
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => return failed(format!("no process: {e}")),
    };
    // A seed says little: what it says fits into the pipes.
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() > SEED_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return failed(format!("no end within {SEED_TIMEOUT:?}"));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return failed(format!("the process cannot be waited for: {e}")),
        }
    };
    let (mut out, mut err) = (String::new(), String::new());
    let _ = child.stdout.take().map(|mut o| o.read_to_string(&mut out));
    let _ = child.stderr.take().map(|mut e| e.read_to_string(&mut err));
    let mut violations: Vec<String> = out
        .lines()
        .filter_map(|l| l.strip_prefix("VIOLATION "))
        .map(str::to_owned)
        .collect();
    let hash = out
        .lines()
        .find_map(|l| l.strip_prefix("RESULT "))
        .and_then(|l| l.split_once(' '))
        .map(|(_, hash)| hash.to_owned());
    let ran = hash.is_some() || !violations.is_empty();
    if !ran {
        let tail: Vec<&str> = err.lines().filter(|l| !l.trim().is_empty()).take(3).collect();
        violations.push(format!("{status}: {}", tail.join(" | ")));
    }
    Result {
        violations,
        hash: hash.unwrap_or_default(),
        ran,
    }
}

/// How to see a seed again.
fn replay(seed: u64, rule: Option<Rule>) -> String {
    let mut words = vec![
        "cargo run --manifest-path tests/simulation/Cargo.toml -- --seed".to_owned(),
        seed.to_string(),
    ];
    words.extend(rule.into_iter().flat_map(Rule::arguments));
    words.join(" ")
}

/// Runs seeds; true if none of them failed.
pub fn seeds(
    (from, to): (u64, u64),
    rule: Option<Rule>,
    budget_seconds: Option<u64>,
    resume: Option<&str>,
) -> bool {
    let done: BTreeSet<u64> = resume
        .and_then(|file| std::fs::read_to_string(file).ok())
        .map(|text| {
            let first = |l: &str| l.split_whitespace().next().and_then(|w| w.parse().ok());
            text.lines().filter_map(first).collect()
        })
        .unwrap_or_default();
    let mut record = resume.and_then(|file| OpenOptions::new().create(true).append(true).open(file).ok());
    let began = Instant::now();
    let (mut ran, mut failed) = (0, vec![]);
    for seed in (from..to).filter(|s| !done.contains(s)) {
        if budget_seconds.is_some_and(|s| began.elapsed().as_secs() >= s) {
            println!("the budget is spent at seed {seed}");
            break;
        }
        let result = run(seed, rule);
        ran += 1;
        if !result.violations.is_empty() {
            println!("seed {seed} FAILED: {}", result.violations[0]);
            for more in result.violations.iter().skip(1).take(4) {
                println!("    {more}");
            }
            println!("    replay: {}", replay(seed, rule));
            failed.push(seed);
        }
        if let Some(record) = &mut record {
            let verdict = if result.violations.is_empty() {
                "ok"
            } else {
                "FAILED"
            };
            let _ = writeln!(record, "{seed} {verdict} {}", result.hash);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{ran} seeds in {seconds:.0} s, {} failed{}",
        failed.len(),
        match failed.is_empty() {
            true => String::new(),
            false => format!(": {failed:?}"),
        }
    );
    failed.is_empty()
}

/// Breaks every rule; true if each was noticed, in a world that holds with the rule kept.
pub fn mutations((from, to): (u64, u64), budget_seconds: Option<u64>) -> bool {
    let budget = Duration::from_secs(budget_seconds.unwrap_or(60));
    let mut all = true;
    println!("{:<24} {:>6} {:>8}  noticed as", "mutation", "seeds", "seconds");
    for mutation in Mutation::ALL {
        let began = Instant::now();
        let mut found = None;
        let mut ran = 0;
        for seed in from..to {
            if began.elapsed() > budget {
                break;
            }
            ran += 1;
            let rule = |broken| Some(Rule { mutation, broken });
            let result = run(seed, rule(true));
            if let Some(what) = result.violations.into_iter().next() {
                if !result.ran {
                    println!("seed {seed} of {mutation:?} did not run: {what}");
                    continue;
                }
                if let Some(also) = run(seed, rule(false)).violations.first() {
                    println!("seed {seed} of {mutation:?} fails with the rule kept too: {also}");
                    all = false;
                }
                found = Some((seed, what));
                break;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let name = format!("{mutation:?}");
        match found {
            Some((seed, what)) => println!("{name:<24} {ran:>6} {seconds:>8.1}  seed {seed}: {what}"),
            None => {
                all = false;
                println!("{name:<24} {ran:>6} {seconds:>8.1}  NOT NOTICED");
            }
        }
    }
    all
}
