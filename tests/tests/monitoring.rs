//! The dashboard and the alerts in `monitoring/`: every query and every rule, evaluated by a real Prometheus that scrapes
//! live brokers under load. One broker dies on the way, a group lags, a topic becomes Parquet.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use alluvium_tests::batches::{self, Producer};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::installed::{Missing, root};
use alluvium_tests::kafka::{self, Member, Router, code};
use alluvium_tests::prometheus::{self, Prometheus};
use alluvium_tests::s3_fake::{Options, S3Fake};
use regex_lite::Regex;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// Becomes Parquet, and is read back from there.
const ARCHIVED: &str = "events";
const PARTITIONS: i32 = 4;
/// Never becomes Parquet, and is read back through the cache of blocks.
const KEPT: &str = "kept";
/// Of a topic, by name.
type Configs = &'static [(&'static str, &'static str)];
const GROUP: &str = "readers";
/// What is produced at once: more than the smallest tail holds comes together in a few seconds.
const BATCH: (usize, usize) = (20, 4096);
/// What Grafana makes of the dashboard's variables. The interval covers the whole test.
const VARIABLES: [(&str, &str); 6] = [
    ("$__rate_interval", "2m"),
    ("$job", "alluvium"),
    ("$namespace", ".*"),
    ("$broker", ".*"),
    ("$put_price", "0.005"),
    ("$get_price", "0.0004"),
];

fn monitoring(name: &str) -> PathBuf {
    root().join("monitoring").join(name)
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(monitoring("dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Title and query of everything that is drawn, variables replaced.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = vec![];
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in VARIABLES {
                query = query.replace(variable, value);
            }
            assert!(
                !query.contains('$'),
                "{title}: a variable that this test does not know: {query}"
            );
            found.push((title.to_owned(), query));
        }
    }
    found
}

/// The metrics that an expression names.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let names = Regex::new(r"\b(?:alluvium|process)_[a-z_]+|\bup\b").unwrap();
    // What stands in quotes is the value of a label.
    let quoted = Regex::new(r#""[^"]*""#).unwrap();
    let bare = quoted.replace_all(expression, "");
    names
        .find_iter(&bare)
        .map(|found| found.as_str().to_owned())
        .collect()
}

/// The alerts as the file has them: name, and anchor of the runbook.
fn alerts() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(monitoring("alerts.yaml")).unwrap();
    let value = |line: &str, key: &str| line.trim_start().strip_prefix(key).map(str::to_owned);
    let names: Vec<String> = text.lines().filter_map(|line| value(line, "- alert: ")).collect();
    let runbooks: Vec<String> = text.lines().filter_map(|line| value(line, "runbook: ")).collect();
    assert_eq!(names.len(), runbooks.len(), "an alert without a runbook");
    names.into_iter().zip(runbooks).collect()
}

/// `AlluviumBrokerDown` is `broker-down`.
fn kebab(name: &str) -> String {
    let name = name.strip_prefix("Alluvium").unwrap();
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[test]
fn every_panel_is_complete() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    let mut ends = BTreeMap::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let at = |name: &str| panel["gridPos"][name].as_i64().unwrap();
        assert!(at("x") >= 0 && at("x") + at("w") <= 24 && at("h") > 0, "{title}");
        for x in at("x")..at("x") + at("w") {
            let free = ends.insert(x, at("y") + at("h")).unwrap_or(0);
            assert!(at("y") >= free, "{title} lies over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title} has no unit"
        );
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            // Several clusters on one Prometheus must not be added up.
            let query = target["expr"].as_str().unwrap();
            let of_one = r#"job=~"$job",namespace=~"$namespace""#;
            assert_eq!(
                query.matches(of_one).count(),
                query.matches('{').count(),
                "{title} looks at several clusters"
            );
        }
    }
    assert!(queries(&dashboard).len() >= 60);
}

/// What a dashboard and alerts speak of must be in the list of metrics that people read.
#[test]
fn every_metric_is_documented() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let alerts = std::fs::read_to_string(monitoring("alerts.yaml")).unwrap();
    let rules = alerts.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut named = metrics_of(&rules.collect::<Vec<_>>().join("\n"));
    for (_, query) in queries(&dashboard()) {
        named.extend(metrics_of(&query));
    }
    assert!(named.len() > 60, "{named:?}");
    named.remove("up");
    for name in named {
        let suffixes = ["_total", "_bucket", "_sum", "_count", "_info"];
        let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let listed = |name: &str| page.contains(&format!("\n| `{name}` |"));
        assert!(
            listed(&name) || stem.is_some_and(listed),
            "{name} is not in docs/metrics.md"
        );
    }
}

#[test]
fn every_alert_names_its_runbook() {
    let alerts = alerts();
    assert!(alerts.len() >= 20, "{alerts:?}");
    let page = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    for (name, runbook) in &alerts {
        assert_eq!(*runbook, format!("docs/operations.md#alert-{}", kebab(name)));
        // What makes that anchor.
        let heading = format!("# Alert: {}\n", kebab(name).replace('-', " "));
        assert!(
            page.contains(&heading),
            "docs/operations.md has no runbook for {name}"
        );
    }
}

#[test]
fn promtool_agrees_and_every_alert_fires_when_it_should() {
    if !Missing::from_environment().goes_on(prometheus::missing()) {
        return;
    }
    let promtool = |arguments: &[&str], file: &Path| {
        let output = Command::new(prometheus::program("promtool").unwrap())
            .args(arguments)
            .arg(file)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    let checked = promtool(&["check", "rules"], &monitoring("alerts.yaml"));
    assert!(
        checked.contains(&format!("{} rules found", alerts().len())),
        "{checked}"
    );
    // The file makes each of them fire, and none of them where all is well: see its comments.
    promtool(&["test", "rules"], &monitoring("alerts-test.yaml"));
    let tested = std::fs::read_to_string(monitoring("alerts-test.yaml")).unwrap();
    for (name, _) in alerts() {
        assert!(
            tested.contains(&format!("alertname=\"{name}\"")),
            "{name} is not tested"
        );
    }
}

/// Two brokers, and everything that the test does to them.
struct Load {
    brokers: Vec<Broker>,
    router: Router,
    member: Member,
    round: i64,
}

impl Load {
    fn start(fake: &S3Fake) -> Load {
        let brokers: Vec<Broker> = (0..2)
            .map(|_| {
                let options = BrokerOptions::on(fake.store_url("monitored"))
                    .env(fake.env())
                    .set("flush.interval.ms", 5)
                    .set("tail.bytes", 1024 * 1024)
                    .set("merge.interval.ms", 1000)
                    .set("group.initial.rebalance.delay.ms", 0);
                Broker::start(options)
            })
            .collect();
        let addresses: Vec<_> = brokers.iter().map(Broker::address).collect();
        let mut load = Load {
            router: Router::new(&addresses, Duration::from_secs(10)),
            member: Member::new(
                Router::new(&addresses, Duration::from_secs(10)),
                GROUP,
                ARCHIVED,
                PARTITIONS,
            ),
            brokers,
            round: 0,
        };
        let topics: [(&str, i32, Configs); 2] = [
            (ARCHIVED, PARTITIONS, &[]),
            (KEPT, 1, &[("archive.enable", "false")]),
        ];
        for (topic, partitions, configs) in topics {
            load.until("a topic is created", |load| {
                let mut client = load.router.connect(load.brokers[0].address()).ok()?;
                kafka::create_topic(&mut client, topic, partitions, configs).ok()
            });
        }
        load.until("the member joins", |load| load.member.join().ok());
        load
    }

    /// Tries until something succeeds, as clients do.
    fn until<T>(&mut self, what: &str, mut try_it: impl FnMut(&mut Load) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = try_it(self) {
                return done;
            }
            assert!(Instant::now() < deadline, "in time: {what}");
            self.router.forget();
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A batch for each partition, a look at its end, a commit that leaves the group behind, and a request that fails.
    fn round(&mut self) {
        self.round += 1;
        let values: Vec<Vec<u8>> = (0..BATCH.0).map(|i| vec![i as u8; BATCH.1]).collect();
        let records = batches::batch(batches::now_ms(), Producer::NONE, &values);
        let partitions = (0..PARTITIONS)
            .map(|partition| (ARCHIVED, partition))
            .chain([(KEPT, 0)]);
        for (topic, partition) in partitions {
            let records = &records;
            self.until("a batch is taken", |load| {
                let leader = load.router.leader(topic, partition).ok()?;
                let mut client = load.router.connect(leader).ok()?;
                let (error, offset) = kafka::produce(&mut client, topic, partition, records.clone()).ok()?;
                kafka::fetch(&mut client, topic, partition, offset, Duration::ZERO).ok()?;
                (error == code::NONE).then_some(())
            });
        }
        // Every second round commits what was committed before.
        let committed: BTreeMap<i32, i64> = (0..PARTITIONS)
            .map(|partition| (partition, self.round / 2))
            .collect();
        self.until("offsets are committed", |load| {
            if load.member.commit(&committed).is_ok() {
                return Some(());
            }
            load.member.join().ok();
            None
        });
        let error = self.until("a request is refused", |load| {
            let mut client = load.router.connect(load.brokers[0].address()).ok()?;
            let refused = kafka::fetch(&mut client, "no-such-topic", 0, 0, Duration::ZERO);
            refused.ok().map(|(error, _)| error)
        });
        assert_eq!(error, code::UNKNOWN_TOPIC_OR_PARTITION);
    }

    fn rounds(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.round();
        }
    }

    /// Reads everything from the beginning.
    fn read_back(&mut self) {
        let partitions = (0..PARTITIONS)
            .map(|partition| (ARCHIVED, partition))
            .chain([(KEPT, 0)]);
        for (topic, partition) in partitions {
            self.until("a partition is read", |load| {
                let leader = load.router.leader(topic, partition).ok()?;
                kafka::read_all(leader, topic, partition, Duration::from_secs(10)).ok()
            });
        }
    }

    fn archive(&self) {
        let bootstrap = self.brokers[0].address().to_string();
        let flush = ["archive", "flush", ARCHIVED, "--bootstrap", &bootstrap];
        let output = broker::run(&flush, &[], PATIENCE);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Evaluates everything that should have data by now; what has none.
fn without_data(prometheus: &Prometheus, queries: &[(String, String)]) -> Vec<String> {
    let mut failed = vec![];
    for (title, query) in queries {
        match prometheus.query(query) {
            Ok(samples) if samples.iter().any(|(_, value)| value.is_finite()) => {}
            Ok(samples) => failed.push(format!("{title}: no data: {query}: {samples:?}")),
            Err(error) => failed.push(format!("{title}: {error}: {query}")),
        }
    }
    failed
}

/// The sum of an expression's series.
fn sum(prometheus: &Prometheus, query: &str) -> f64 {
    prometheus
        .query(query)
        .unwrap()
        .iter()
        .map(|(_, value)| value)
        .sum()
}

#[test]
fn every_query_has_data_and_every_rule_evaluates() {
    if !Missing::from_environment().goes_on(prometheus::missing()) {
        return;
    }
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut load = Load::start(&fake);
    let targets: Vec<_> = load.brokers.iter().map(Broker::http).collect();
    let prometheus = Prometheus::start(&targets, &monitoring("alerts.yaml"));
    load.rounds(Duration::from_secs(4));
    load.archive();
    // The second time from memory.
    load.read_back();
    load.read_back();
    load.rounds(Duration::from_secs(2));
    load.brokers[1].kill_9();
    load.rounds(Duration::from_secs(4));

    let queries = queries(&dashboard());
    let deadline = Instant::now() + PATIENCE;
    loop {
        load.round();
        load.read_back();
        let failed = without_data(&prometheus, &queries);
        if failed.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{}\n{}",
            failed.join("\n"),
            prometheus.log()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{} queries of the dashboard have data", queries.len());
    check_what_is_shown(&prometheus, &queries);
    check_rules(&prometheus);
}

/// Some of what the panels say is known here.
fn check_what_is_shown(prometheus: &Prometheus, queries: &[(String, String)]) {
    let of = |title: &str| {
        let query = queries.iter().find(|(found, _)| found == title).unwrap();
        sum(prometheus, &query.1)
    };
    assert!(of("Failovers, 1 h") > 0.0, "a broker died");
    assert_eq!(of("Brokers"), 1.0);
    assert_eq!(of("Slots not served"), 0.0);
    assert!(
        of("Greatest lag") > 0.0,
        "the group commits a fraction of what is produced"
    );
    // So many PUTs as the store says, at their price.
    let (an_hour, puts) = (
        of("Cost per hour"),
        sum(
            prometheus,
            "sum(rate(alluvium_store_requests_total{op=\"put_create\"}[2m]))",
        ),
    );
    let at_least = puts * 3600.0 * 0.005 / 1000.0;
    assert!(
        an_hour >= at_least && an_hour < 20.0 * at_least,
        "{an_hour} of at least {at_least}"
    );
    // The parts of an append's way are the whole of it.
    let mean = |metric: &str| {
        let rate = |suffix: &str| format!("sum(rate(alluvium_log_{metric}_seconds_{suffix}[2m]))");
        sum(prometheus, &format!("{} / {}", rate("sum"), rate("count")))
    };
    let parts: f64 = ["queue", "flush", "put", "order"].into_iter().map(mean).sum();
    let whole = mean("publish");
    assert!((parts - whole).abs() < 0.2 * whole, "{parts} of {whole}");
}

fn check_rules(prometheus: &Prometheus) {
    let rules = prometheus.rules().unwrap();
    assert_eq!(rules.len(), alerts().len());
    for rule in &rules {
        let (name, query) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        let metrics = metrics_of(query);
        assert!(!metrics.is_empty(), "{name} looks at nothing: {query}");
        for metric in metrics {
            let there = prometheus
                .query(&format!("count(last_over_time({metric}[5m]))"))
                .unwrap();
            assert!(!there.is_empty(), "{name}: there is no {metric}");
        }
    }
    // The broker that was killed is missed at once; somebody is told a minute later.
    let down = rules
        .iter()
        .find(|rule| rule["name"] == "AlluviumBrokerDown")
        .unwrap();
    assert_ne!(down["state"], "inactive", "{down}");
    let takeover = rules
        .iter()
        .find(|rule| rule["name"] == "AlluviumTakeover")
        .unwrap();
    assert_eq!(takeover["state"], "firing", "{takeover}");
    println!("{} alerts evaluate, and what they look at exists", rules.len());
}
