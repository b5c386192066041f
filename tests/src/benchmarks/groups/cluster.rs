//! What clients notice when brokers of a cluster die, stop, restart, come and go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::alluvium::Alluvium;
use super::super::clients::{Outcome, pace};
use super::super::measure::{Running, settle};
use super::super::report::{Bound, Column, OURS, Section, Target};
use super::super::results::Metrics;
use super::super::session::{Key, Run, Session};
use super::super::statistics::SECONDS_PER_MONTH;
use super::super::store::Store;
use super::{BENCH, GroupSpec, TOPIC, s3};
use crate::kafka::{Router, create_topic};
use crate::wire::Client;

const CHANGES: &str = "cluster.changes";
const IDLE: &str = "cluster.idle";
const IDLE_WORK: &str = "three idle brokers";
const CLIENT: &str = "librdkafka";
const BROKERS: usize = 3;
const PARTITIONS: i32 = 48;
/// Records per second: a steady service, twenty to each partition.
const RATE: u32 = 960;
/// Until a cluster that has just started, or has just changed, is at rest.
const SETTLING: Duration = Duration::from_secs(15);

/// What happens to the cluster under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    Kill,
    Stop,
    Roll,
    Scale,
}

const ALL: [Event; 5] = [
    Event::Nothing,
    Event::Kill,
    Event::Stop,
    Event::Roll,
    Event::Scale,
];

impl Event {
    const fn work(self) -> &'static str {
        match self {
            Event::Nothing => "nothing happens",
            Event::Kill => "SIGKILL of one of three",
            Event::Stop => "graceful stop of one of three",
            Event::Roll => "rolling restart of all three",
            Event::Scale => "from one broker to three and back",
        }
    }
}

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "cluster",
    title: "A cluster",
    about: "Three brokers on one machine share a bucket with S3's latency and nothing else; all settings are at their \
            defaults.",
    sections: &[
        Section {
            id: CHANGES,
            title: "Produce while ...",
            about: "librdkafka with all settings at their defaults sends 960 records a second to 48 partitions, one \
                    after the other. Latency runs from the moment at which a record was to be sent. \"unavailable\" is \
                    the longest time from one acknowledgement of a partition to the next, over the partitions that the \
                    killed or stopped broker led (over all of them where every broker changes); 50 ms of it are the \
                    rate of the partition. \"failed\" counts records that librdkafka gave up; \"partitions moved\" had another leader \
                    afterwards (in the last row: while there were three brokers).",
            columns: &[
                Column::Value("failed", "errors", 0),
                Column::Several(
                    "unavailable p50 / p99 / max ms",
                    &["gap_p50_ms", "gap_p99_ms", "gap_max_ms"],
                    0,
                ),
                Column::Value("unavailable max ms, other partitions", "other_gap_max_ms", 0),
                Column::Several("p50 / p99 / max ms", &["p50_ms", "p99_ms", "max_ms"], 0),
                Column::Value("added at worst ms", "added_ms", 0),
                Column::Value("partitions moved", "moved", 0),
            ],
        },
        Section {
            id: IDLE,
            title: "Requests of three idle brokers",
            about: "With one topic that nobody uses, half a minute after the last start, over three minutes.",
            columns: &[
                Column::Value("requests/min", "requests_per_minute", 1),
                Column::Several(
                    "PUT / GET / HEAD / LIST per min",
                    &[
                        "put_per_minute",
                        "get_per_minute",
                        "head_per_minute",
                        "list_per_minute",
                    ],
                    1,
                ),
                Column::Value("$/month", "dollars_per_month", 2),
            ],
        },
    ],
    targets: &[
        target(
            "Cluster: unavailable at worst after SIGKILL, ms",
            Event::Kill,
            "gap_max_ms",
            5_000.0,
        ),
        target("Cluster: failed sends after SIGKILL", Event::Kill, "errors", 0.0),
        target(
            "Cluster: failed sends at a graceful stop",
            Event::Stop,
            "errors",
            0.0,
        ),
        target(
            "Cluster: added latency at a graceful stop, ms",
            Event::Stop,
            "added_ms",
            1_000.0,
        ),
        target(
            "Cluster: failed sends at a rolling restart",
            Event::Roll,
            "errors",
            0.0,
        ),
        target(
            "Cluster: added latency at a rolling restart, ms",
            Event::Roll,
            "added_ms",
            1_000.0,
        ),
        target(
            "Cluster: failed sends from one broker to three and back",
            Event::Scale,
            "errors",
            0.0,
        ),
        Target {
            says: "Cluster: $/month of three idle brokers",
            section: IDLE,
            work: IDLE_WORK,
            client: BENCH,
            metric: "dollars_per_month",
            bound: Bound::AtMost(10.0),
        },
    ],
    run,
};

const fn target(says: &'static str, event: Event, metric: &'static str, bound: f64) -> Target {
    Target {
        says,
        section: CHANGES,
        work: event.work(),
        client: CLIENT,
        metric,
        bound: Bound::AtMost(bound),
    }
}

fn run(session: &mut Session) -> Result<(), String> {
    for run in 0..session.scale.runs {
        // The row in which nothing happens comes first in each turn: the others are compared with it.
        let mut calm = None;
        for event in ALL {
            let done = once(session, event, run).map(|(command, mut metrics)| {
                let worst = metrics.get("max_ms").copied();
                match (event, worst, calm) {
                    (Event::Nothing, ..) => calm = worst,
                    (_, Some(worst), Some(calm)) => {
                        metrics.insert("added_ms".to_owned(), (worst - calm).max(0.0));
                    }
                    _ => {}
                }
                (command, metrics)
            });
            session.record(&key(CHANGES, event.work(), CLIENT), done);
        }
    }
    let done = idle(session);
    session.record(&key(IDLE, IDLE_WORK, BENCH), done);
    Ok(())
}

fn key(section: &'static str, work: &str, client: &str) -> Key {
    Key {
        section,
        work: work.to_owned(),
        client: client.to_owned(),
        system: OURS,
    }
}

/// Brokers of one cluster, the first so many of which run.
fn start(session: &Session, store: &Store, running: usize) -> Result<Vec<Alluvium>, String> {
    let mut brokers = Vec::new();
    for index in 0..BROKERS {
        let id = (index + 1).to_string();
        let mut broker = Alluvium::prepared(&session.tools, store, &[("node.id", &id)]);
        if index < running {
            broker.launch()?;
        }
        brokers.push(broker);
    }
    Ok(brokers)
}

fn addresses(brokers: &[Alluvium]) -> Vec<SocketAddr> {
    brokers.iter().map(Alluvium::address).collect()
}

/// The leader of each partition; every partition must have one.
fn leaders(router: &mut Router) -> Result<Vec<SocketAddr>, String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        router.forget();
        let found: std::io::Result<Vec<SocketAddr>> = (0..PARTITIONS)
            .map(|partition| router.leader(TOPIC, partition))
            .collect();
        match found {
            Ok(leaders) => return Ok(leaders),
            Err(error) if Instant::now() > deadline => return Err(format!("leaders: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn once(session: &Session, event: Event, run: usize) -> Run {
    let tools = &session.tools;
    let store = Store::start(tools, s3::LATENCY, None)?;
    let running = if event == Event::Scale { 1 } else { BROKERS };
    let mut brokers = start(session, &store, running)?;
    let mut router = Router::new(&addresses(&brokers), Duration::from_secs(5));
    let created = Client::connect(brokers[0].address())
        .and_then(|mut client| create_topic(&mut client, TOPIC, PARTITIONS, &[]));
    created.map_err(|error| format!("the topic: {error}"))?;
    std::thread::sleep(SETTLING);
    settle();
    let before = leaders(&mut router)?;
    // Not always the one that answers for the cluster.
    let victim = run % BROKERS;
    let seconds = session.scale.seconds(if event == Event::Roll { 120 } else { 60 });
    let client = pace(tools, &addresses(&brokers), TOPIC, RATE, seconds);
    let shown = client.shown.clone();
    let begun = Instant::now();
    let running = Running::start(tools, client, "client")?;
    std::thread::sleep(Duration::from_secs(seconds) / 6);
    let mut led_by_victim: Vec<bool> = vec![true; before.len()];
    let mut moved = None;
    match event {
        Event::Nothing => {}
        Event::Kill | Event::Stop => {
            let address = brokers[victim].address();
            led_by_victim = before.iter().map(|leader| *leader == address).collect();
            if event == Event::Kill {
                brokers[victim].kill();
            } else {
                brokers[victim].stop();
            }
        }
        Event::Roll => {
            for broker in &mut brokers {
                broker.stop();
                broker.launch()?;
                std::thread::sleep(Duration::from_secs(seconds) / 10);
            }
        }
        Event::Scale => {
            for broker in &mut brokers[1..] {
                broker.launch()?;
            }
            let rest = Duration::from_secs(seconds) * 4 / 6;
            std::thread::sleep(rest.saturating_sub(begun.elapsed()));
            let wide = leaders(&mut router)?;
            let elsewhere = wide
                .iter()
                .filter(|leader| **leader != brokers[0].address())
                .count();
            if elsewhere == 0 {
                return Err("the new brokers lead nothing".to_owned());
            }
            moved = Some(elsewhere);
            for broker in &mut brokers[1..] {
                broker.stop();
            }
        }
    }
    let outcome = running.finish()?;
    // Only now: right after a death the others still name the dead.
    let after = leaders(&mut router)?;
    let differ = || {
        before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .count()
    };
    let moved = moved.unwrap_or_else(differ);
    let mut metrics = metrics(&outcome, &led_by_victim)?;
    metrics.insert("moved".to_owned(), moved as f64);
    Ok((shown, metrics))
}

/// The figures of the client, its gaps parted by whose partitions they were in.
fn metrics(outcome: &Outcome, hit: &[bool]) -> Result<Metrics, String> {
    let gaps = outcome.0["gaps_ms"]
        .as_array()
        .ok_or("the client tells no gaps")?;
    let gaps: Vec<f64> = gaps.iter().filter_map(serde_json::Value::as_f64).collect();
    if gaps.len() != hit.len() {
        return Err(format!("{} gaps of {} partitions", gaps.len(), hit.len()));
    }
    let of = |wanted: bool| {
        let mut of: Vec<f64> = gaps
            .iter()
            .zip(hit)
            .filter(|(_, hit)| **hit == wanted)
            .map(|(gap, _)| *gap)
            .collect();
        of.sort_by(f64::total_cmp);
        of
    };
    let (hit, others) = (of(true), of(false));
    let mut metrics = Metrics::new();
    for (name, share) in [("gap_p50_ms", 0.5), ("gap_p99_ms", 0.99), ("gap_max_ms", 1.0)] {
        let at = (share * hit.len().saturating_sub(1) as f64).round() as usize;
        if let Some(gap) = hit.get(at) {
            metrics.insert(name.to_owned(), *gap);
        }
    }
    if let Some(worst) = others.last() {
        metrics.insert("other_gap_max_ms".to_owned(), *worst);
    }
    for (name, path) in [
        ("records", "records"),
        ("errors", "errors"),
        ("p50_ms", "latency_ms.p50"),
        ("p99_ms", "latency_ms.p99"),
        ("max_ms", "latency_ms.max"),
    ] {
        let value = outcome
            .number(path)
            .ok_or_else(|| format!("the client tells no {path}"))?;
        metrics.insert(name.to_owned(), value);
    }
    Ok(metrics)
}

fn idle(session: &Session) -> Run {
    let store = Store::start(&session.tools, s3::LATENCY, None)?;
    let brokers = start(session, &store, BROKERS)?;
    let created = Client::connect(brokers[0].address())
        .and_then(|mut client| create_topic(&mut client, "idle", 12, &[]));
    created.map_err(|error| format!("the topic: {error}"))?;
    std::thread::sleep(Duration::from_secs(30));
    store.reset_counts()?;
    let begun = Instant::now();
    std::thread::sleep(session.scale.time(180));
    let requests = store.requests()?;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let mut metrics = Metrics::from([
        (
            "requests_per_minute".to_owned(),
            requests.total() as f64 / minutes,
        ),
        (
            "dollars_per_month".to_owned(),
            requests.dollars() / (minutes * 60.0) * SECONDS_PER_MONTH,
        ),
    ]);
    for kind in ["put", "get", "head", "list"] {
        let count = requests.by_kind.get(kind).copied().unwrap_or(0);
        metrics.insert(format!("{kind}_per_minute"), count as f64 / minutes);
    }
    Ok((String::new(), metrics))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gaps_are_parted_by_leader() {
        let outcome = Outcome(json!({
            "records": 9, "errors": 1, "latency_ms": {"p50": 1.0, "p99": 2.0, "max": 3.0},
            "gaps_ms": [50.0, 4_000.0, 60.0, 3_000.0]
        }));
        let metrics = metrics(&outcome, &[false, true, false, true]).unwrap();
        assert_eq!((metrics["gap_p50_ms"], metrics["gap_max_ms"]), (4_000.0, 4_000.0));
        assert_eq!((metrics["other_gap_max_ms"], metrics["errors"]), (60.0, 1.0));
        assert!(super::metrics(&outcome, &[true]).is_err());
        let silent = Outcome(json!({"gaps_ms": [1.0]}));
        assert!(super::metrics(&silent, &[true]).is_err());
    }
}
