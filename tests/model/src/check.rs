//! Explores a model, finds the shortest way to a violation, and judges the outcome.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// A model that can say what is wrong in a state.
pub trait Checked:
    Model<
        State: Clone + PartialEq + Hash + Send + Sync + 'static,
        Action: Clone + PartialEq + Debug + Send + Sync + 'static,
    > + Send
    + Sync
    + 'static
{
    fn violation(&self, state: &Self::State) -> Option<String>;
}

/// What exploring found.
pub struct Outcome {
    /// The violation, and the shortest way to it.
    pub failure: Option<(String, Vec<String>)>,
    /// Names of the "sometimes" properties that were reached.
    pub reached: Vec<&'static str>,
    pub states: usize,
    pub depth: usize,
    pub seconds: f64,
    pub exhaustive: bool,
}

type Explore = Box<dyn Fn(Limits) -> Outcome + Send + Sync>;

/// One configuration, as the rules say or with one deviation.
pub struct Run {
    pub part: &'static str,
    pub config: String,
    /// `None`: it must hold. Else it must be caught.
    pub deviation: Option<String>,
    /// What must be reached if it holds.
    pub reaches: Vec<&'static str>,
    pub explore: Explore,
}

/// Bounds of one check.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub time: Duration,
    pub states: usize,
}

impl Run {
    pub fn new<M>(
        part: &'static str,
        config: &str,
        deviation: Option<String>,
        reaches: Vec<&'static str>,
        model: impl Fn() -> M + Send + Sync + 'static,
    ) -> Run
    where
        M: Checked,
    {
        Run {
            part,
            config: config.to_owned(),
            deviation,
            reaches,
            explore: Box::new(move |limits| explore(model(), limits)),
        }
    }

    /// Whether the arguments name it: a configuration, then a deviation if it has one.
    pub fn is(&self, args: &[String]) -> bool {
        args.first() == Some(&self.config) && args.get(1) == self.deviation.as_ref()
    }

    /// In one word or a sentence, why the outcome is not what it must be.
    pub fn problem(&self, o: &Outcome) -> Option<String> {
        if self.deviation.is_some() {
            return o.failure.is_none().then(|| "NOT CAUGHT".to_owned());
        }
        if o.failure.is_some() {
            return Some("VIOLATED".to_owned());
        }
        if !o.exhaustive {
            return Some("NOT EXHAUSTIVE".to_owned());
        }
        let missing: Vec<_> = self.reaches.iter().filter(|r| !o.reached.contains(r)).collect();
        (!missing.is_empty()).then(|| format!("NOT REACHED: {missing:?}"))
    }

    /// A row of the table.
    pub fn row(&self, o: &Outcome) -> String {
        let result = match &o.failure {
            Some((what, trace)) => format!("violated in {} steps: {what}", trace.len()),
            None if o.exhaustive => "holds, exhaustive".to_owned(),
            None => "holds so far, stopped by a limit".to_owned(),
        };
        let verdict = self
            .problem(o)
            .map_or("passed".to_owned(), |p| format!("**FAILED: {p}**"));
        let deviation = self.deviation.as_deref().unwrap_or("none");
        format!(
            "| {} | {} | {deviation} | {result} | {} | {} | {:.1} | {verdict} |",
            self.part, self.config, o.states, o.depth, o.seconds
        )
    }
}

fn explore<M: Checked>(model: M, limits: Limits) -> Outcome {
    let start = Instant::now();
    // The time limit is only looked at when a thread runs out of work; the other one always holds.
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(limits.time)
        .target_state_count(limits.states)
        .spawn_bfs()
        .join();
    let (mut failed, mut reached) = (false, vec![]);
    for name in checker.discoveries().into_keys() {
        match checker.discovery_classification(name) {
            stateright::DiscoveryClassification::Example => reached.push(name),
            _ => failed = true,
        }
    }
    reached.sort_unstable();
    // Stateright's own trace is short, not always the shortest.
    let failure = if failed {
        shortest_failure(checker.model())
    } else {
        None
    };
    let seconds = start.elapsed().as_secs_f64();
    let capped = checker.state_count() >= limits.states || seconds >= limits.time.as_secs_f64();
    Outcome {
        exhaustive: !failed && !capped,
        failure,
        reached,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        seconds,
    }
}

/// The shortest way to a violation.
fn shortest_failure<M: Checked>(m: &M) -> Option<(String, Vec<String>)> {
    let mut seen = HashSet::new();
    let mut parent: Vec<Option<(u32, M::Action)>> = vec![None];
    let mut frontier: Vec<(u32, M::State)> = m.init_states().into_iter().map(|s| (0, s)).collect();
    while !frontier.is_empty() {
        let mut next = vec![];
        for (i, s) in frontier {
            for (a, t) in successors(m, &s) {
                if !seen.insert(fingerprint(&t)) {
                    continue;
                }
                if let Some(v) = m.violation(&t) {
                    let mut trace = vec![format!("{a:?}")];
                    let mut at = i;
                    while let Some((p, a)) = &parent[at as usize] {
                        trace.push(format!("{a:?}"));
                        at = *p;
                    }
                    trace.reverse();
                    return Some((v, trace));
                }
                next.push((parent.len() as u32, t));
                parent.push(Some((i, a)));
            }
        }
        frontier = next;
    }
    None
}

/// The states that can follow, each with what leads there.
pub fn successors<M: Model<Action: Clone>>(
    m: &M,
    s: &M::State,
) -> impl Iterator<Item = (M::Action, M::State)> {
    let mut acts = vec![];
    m.actions(s, &mut acts);
    acts.into_iter()
        .filter_map(move |a| m.next_state(s, a.clone()).map(|t| (a, t)))
}

/// 64 bits of a state.
pub fn fingerprint<S: Hash>(s: &S) -> u64 {
    let mut h = DefaultHasher::new();
    s.hash(&mut h);
    h.finish()
}
