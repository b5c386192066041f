//! What producers notice of archiving.

use super::super::super::clients::{bench, words};
use super::super::super::measure::{Plan, settle};
use super::super::super::report::{Bound, Column, Section, Target};
use super::super::super::results::Metrics;
use super::super::super::session::{Run, Session, in_turns};
use super::super::store30::CORES;
use super::super::{faults, ours};
use super::layers::{Place, broker_on};
use super::{PARTITIONS, events, target};

const ID: &str = "history.beside";
/// The longest measured time, and what does not count before it: archiving begins meanwhile.
const SECONDS_MAX: f64 = 12.0;
const WARM_UP_SECONDS_MAX: f64 = 5.0;

pub(super) const SECTION: Section = Section {
    id: ID,
    title: "Produce at 50 MB/s beside archiving",
    about: "Four producers on twelve partitions, for 12 s after 5 s that do not count. Merging every second \
            (`merge.interval.ms=1000`), and either no archiving or archiving of whatever is a second old \
            (`archive.interval.ms=1000`), at the default pace. No saved-up requests (`request.budget.burst=1`). \
            \"archived\" is the part of the records that was Parquet when the last one was acknowledged; \"p99 x\" \
            compares with the run without archiving.",
    columns: &[
        Column::Value("MB/s", "mb_per_second", 1),
        Column::Value("errors", "errors", 0),
        Column::Several("p50 / p99 / p99.9 ms", &["p50_ms", "p99_ms", "p999_ms"], 1),
        Column::Value("p99 x", "p99_ratio", 2),
        Column::Value("max ms", "max_ms", 0),
        Column::Value("archived %", "archived_percent", 0),
        Column::Value("files", "files", 0),
        Column::Value("peak RSS MB", "rss_mb", 0),
        CORES,
    ],
};
pub(super) const TARGET_DISK: Target = target(
    "History: produce p99 beside archiving, embedded store, x without",
    ID,
    work(Place::Disk, true),
    "p99_ratio",
    Bound::AtMost(1.3),
);
pub(super) const TARGET_BUCKET: Target = target(
    "History: produce p99 beside archiving, 30 ms bucket, x without",
    ID,
    work(Place::Bucket, true),
    "p99_ratio",
    Bound::AtMost(1.3),
);

const fn work(place: Place, archiving: bool) -> &'static str {
    match (place, archiving) {
        (Place::Disk, false) => "embedded store, no archiving",
        (Place::Disk, true) => "embedded store, archiving",
        (Place::Bucket, false) => "bucket at 30/15/30 ms, no archiving",
        (Place::Bucket, true) => "bucket at 30/15/30 ms, archiving",
    }
}

const fn settings(archiving: bool) -> [(&'static str, &'static str); 4] {
    [
        ("merge.interval.ms", "1000"),
        ("request.budget.burst", "1"),
        ("archive.enable", if archiving { "true" } else { "false" }),
        ("archive.interval.ms", "1000"),
    ]
}

pub(super) fn rows(session: &mut Session) {
    for place in Place::ALL {
        for run in 0..session.scale.runs {
            let mut done = [false, true].map(|_| Err("was not measured".to_owned()));
            for archiving in in_turns(&[false, true], run) {
                done[usize::from(archiving)] = once(session, place, archiving);
            }
            let [without, mut with] = done;
            if let (Ok((_, without)), Ok((_, with))) = (&without, &mut with) {
                compare(with, without);
            }
            session.record(&ours(ID, work(place, false)), without);
            session.record(&ours(ID, work(place, true)), with);
        }
    }
}

fn compare(with: &mut Metrics, without: &Metrics) {
    let p99 = |metrics: &Metrics| metrics.get("p99_ms").copied().filter(|p99| *p99 > 0.0);
    if let (Some(ours), Some(baseline)) = (p99(with), p99(without)) {
        with.insert("p99_ratio".to_owned(), ours / baseline);
    }
}

fn once(session: &Session, place: Place, archiving: bool) -> Run {
    let tools = &session.tools;
    let store = place.store(session)?;
    let broker = broker_on(session, store.as_ref(), &settings(archiving))?;
    let seconds = (session.scale.records() as f64 / faults::RATE as f64).min(SECONDS_MAX);
    let produce = format!(
        "--partitions {PARTITIONS} --producers 4 --rate {} {} --seconds {seconds:.2} --warmup {:.2}",
        faults::RATE,
        events(),
        seconds.min(WARM_UP_SECONDS_MAX)
    );
    settle();
    let plan = Plan {
        client: Some(bench(tools, "produce", broker.address(), &words(&produce))),
        broker: Some(broker.process()?),
        store: store.as_ref(),
        ..Plan::default()
    };
    let measurement = plan.run(tools)?;
    let mut metrics = measurement.metrics();
    let archived = broker.metric("alluvium_log_archived_rows_total")?;
    let produced = broker.metric("alluvium_produce_records_total")?;
    if (archived > 0.0) != archiving {
        return Err(format!("{archived} of {produced} records were archived"));
    }
    let files = broker.metric("alluvium_log_archived_files_total")?;
    metrics.insert("archived_percent".to_owned(), 100.0 * archived / produced);
    metrics.insert("files".to_owned(), files);
    Ok((measurement.shown, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archiving_is_compared_with_none() {
        let p99 = |value: f64| Metrics::from([("p99_ms".to_owned(), value)]);
        let mut with = p99(3.0);
        compare(&mut with, &p99(2.0));
        assert_eq!(with["p99_ratio"], 1.5);
        let mut alone = p99(3.0);
        compare(&mut alone, &p99(0.0));
        compare(&mut alone, &Metrics::new());
        assert!(!alone.contains_key("p99_ratio"));
    }
}
