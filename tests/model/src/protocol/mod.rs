//! The base model: the whole protocol of the design, with a small version of every rule of its own.

pub mod model;
pub mod progress;
mod reads;
mod recover;
pub mod rules;
pub mod scenarios;
pub mod state;

use model::{Protocol, Scenario};
use rules::{AS_WRITTEN, Deviation, MUTATIONS, Rules};

use crate::check::{Checked, Outcome, Run};

impl Checked for Protocol {
    fn violation(&self, s: &state::State) -> Option<String> {
        s.bad.map(|v| format!("{v:?}"))
    }
}

/// One configuration, as the rules say or with deviations.
pub fn run(cfg: Scenario, deviations: Vec<Deviation>) -> Run {
    // This one breaks no rule of safety: it leaves states from which nobody is ever served again.
    if deviations.contains(&Deviation::GrantToSealed) {
        return progress_run(cfg, deviations);
    }
    let deviation = label(&deviations);
    let reaches = if deviation.is_none() {
        cfg.reaches.clone()
    } else {
        vec![]
    };
    let name = cfg.name;
    Run::new("protocol", name, deviation, reaches, move || {
        Protocol::new(cfg.clone(), Rules(deviations.clone()))
    })
}

fn progress(cfg: Scenario, deviations: Vec<Deviation>) -> Outcome {
    let start = std::time::Instant::now();
    let r = progress::analyse(&Protocol::new(cfg, Rules(deviations)));
    let trace: Vec<String> = r.trace.iter().map(|a| format!("{a:?}")).collect();
    Outcome {
        depth: trace.len(),
        failure: (r.stuck > 0).then(|| (format!("{} states are stuck", r.stuck), trace)),
        reached: vec![],
        states: r.states,
        seconds: start.elapsed().as_secs_f64(),
        exhaustive: true,
    }
}

/// From every hopeful state of a configuration all records can still be acknowledged.
pub fn progress_run(cfg: Scenario, deviations: Vec<Deviation>) -> Run {
    let deviation = label(&deviations);
    let config = format!("progress {}", cfg.name);
    let explore = move |_| progress(cfg.clone(), deviations.clone());
    Run {
        part: "protocol",
        config,
        deviation,
        reaches: vec![],
        explore: Box::new(explore),
    }
}

fn label(deviations: &[Deviation]) -> Option<String> {
    deviations.first().map(|d| format!("{d:?}"))
}

/// Every check of this part: the configurations, then the deviations.
pub fn runs() -> Vec<Run> {
    let mut runs: Vec<Run> = scenarios::all().into_iter().map(|s| run(s, vec![])).collect();
    runs.extend(scenarios::by_name("duel").map(|s| progress_run(s, vec![])));
    for (d, config) in AS_WRITTEN.iter().chain(MUTATIONS) {
        runs.extend(scenarios::by_name(config).map(|s| run(s, vec![*d])));
    }
    runs
}
