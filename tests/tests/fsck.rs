//! `alluvium fsck` on real brokers and the S3 fake: every command of docs/fsck.md beside brokers that run, damage that is
//! done to a bucket, and garbage that goes by itself.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alluvium_tests::batches::{self, Producer};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::kafka;
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// The store as the page names it.
const PAGE_STORE: &str = "s3://my-bucket/my-cluster";
const TOPIC: &str = "t";
const PARTITIONS: i32 = 4;
/// The batches have timestamps of 1970.
const KEPT: &[(&str, &str)] = &[("retention.ms", "-1")];

/// Exit code, and all that was said.
fn alluvium(fake: &S3Fake, arguments: &[&str]) -> (Option<i32>, String) {
    let (code, out, err) = apart(fake, arguments);
    (code, out + &err)
}

fn apart(fake: &S3Fake, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = broker::run(arguments, &fake.env(), PATIENCE);
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    println!("$ alluvium {}\n{out}{err}", arguments.join(" "));
    assert!(!err.contains("panicked"), "{err}");
    (output.status.code(), out, err)
}

/// A broker that merges and deletes in seconds what takes minutes by default.
fn hurried(fake: &S3Fake, prefix: &str) -> BrokerOptions {
    BrokerOptions::on(fake.store_url(prefix))
        .env(fake.env())
        .set("merge.interval.ms", 1_000)
        .set("log.segment.delete.delay.ms", 1_000)
        .set("garbage.check.interval.ms", 1_000)
}

/// One record into each partition, wherever it is led.
fn produce_everywhere(brokers: &[Broker], value: &str) {
    for partition in 0..PARTITIONS {
        let began = Instant::now();
        let taken = |broker: &Broker| {
            let mut client = Client::connect(broker.address()).ok()?;
            let records = batches::batch(0, Producer::NONE, &[value.into()]);
            let (error, _) = kafka::produce(&mut client, TOPIC, partition, records).ok()?;
            (error == 0).then_some(())
        };
        while !brokers.iter().any(|broker| taken(broker).is_some()) {
            assert!(began.elapsed() < PATIENCE, "nobody leads partition {partition}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn create(broker: &Broker, configs: &[(&str, &str)]) {
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, PARTITIONS, configs).unwrap();
}

/// Waits until the objects below a folder are as they should be.
fn until(
    fake: &S3Fake,
    folder: &str,
    what: &str,
    good: impl Fn(&[(String, u64)]) -> bool,
) -> Vec<(String, u64)> {
    let began = Instant::now();
    loop {
        let objects = fake.objects(folder);
        if good(&objects) {
            return objects;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {objects:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn merged(fake: &S3Fake, prefix: &str) -> Vec<(String, u64)> {
    until(fake, &format!("{prefix}/merged/"), "nothing was merged", |o| {
        !o.is_empty()
    })
}

#[test]
fn every_command_of_the_page_works_beside_brokers_that_run() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fsck.md");
    let page = std::fs::read_to_string(page).unwrap();
    let commands: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("$ alluvium "))
        .collect();
    assert!(commands.len() >= 4, "{commands:?}");
    let fake = S3Fake::start(Options::default()).unwrap();
    let url = fake.store_url("page");
    let brokers = [(); 2].map(|()| Broker::start(hurried(&fake, "page")));
    create(&brokers[0], KEPT);
    // Dead brokers leave something behind.
    let mut dead = Broker::start(hurried(&fake, "page"));
    produce_everywhere(&brokers, "first");
    merged(&fake, "page");
    dead.kill_9();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                produce_everywhere(&brokers, "more");
            }
        });
        for command in &commands {
            let mut words: Vec<&str> = command
                .split_whitespace()
                .map(|word| if word == PAGE_STORE { url.as_str() } else { word })
                .collect();
            if words.contains(&"--repair") {
                words.push("--yes");
            }
            let (code, said, err) = apart(&fake, &words);
            if words.contains(&"--json") && code == Some(0) {
                let json: Value = serde_json::from_str(&said).unwrap();
                assert_eq!(json["whole"], true);
                assert_eq!(json["topics"], 1);
                assert!(json["counts"]["by_kind"]["merged"]["live"]["objects"].as_u64() > Some(0));
            }
            done.store(code != Some(0), Ordering::Relaxed);
            assert_eq!(code, Some(0), "{said}{err}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn damage_is_named_with_its_key_and_an_exit_code() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let url = fake.store_url("damage");
    let mut broker = Broker::start(hurried(&fake, "damage"));
    create(&broker, KEPT);
    produce_everywhere(std::slice::from_ref(&broker), "first");
    let key = merged(&fake, "damage")[0].0.clone();
    let name = key.strip_prefix("damage/").unwrap();
    produce_everywhere(std::slice::from_ref(&broker), "second");
    // Long enough for the pointers to be there.
    std::thread::sleep(Duration::from_secs(3));
    broker.kill_9();
    assert_eq!(alluvium(&fake, &["fsck", &url]).0, Some(0));
    let good = fake.get(&key).unwrap();

    assert!(fake.remove(&key));
    let (code, said) = alluvium(&fake, &["fsck", &url]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("{name}: it is missing, and logs refer to it (t-"))
            && said.contains("What to do:"),
        "{said}"
    );
    let (code, said) = alluvium(&fake, &["fsck", &url, "--repair", "--yes"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("nothing is deleted as long as something is wrong"),
        "{said}"
    );

    let mut flipped = good.to_vec();
    let at = flipped.windows(5).position(|w| w == b"first").unwrap();
    flipped[at] ^= 1;
    fake.put_raw(&key, flipped).unwrap();
    let (code, said, _) = apart(&fake, &["fsck", &url, "--json"]);
    assert_eq!(code, Some(1), "{said}");
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (
            &json["whole"],
            &json["findings"][0]["wrong"],
            &json["findings"][0]["place"]
        ),
        (&false.into(), &"damaged".into(), &name.into())
    );
    assert_eq!(
        alluvium(&fake, &["fsck", &url, "--fast"]).0,
        Some(0),
        "records are not looked at"
    );
    fake.put_raw(&key, good).unwrap();
    fake.put_raw("damage/notes.txt", "mine").unwrap();
    let (code, said) = alluvium(&fake, &["fsck", &url]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("not of this cluster, by their keys, and left alone: notes.txt"),
        "{said}"
    );

    for (words, part) in [
        (vec!["fsck", "s3://no-such-bucket/x"], "no-such-bucket"),
        (vec!["fsck", &fake.store_url("empty")], "no Alluvium cluster here"),
        (vec!["fsck", &url, "--nonsense"], "--nonsense"),
    ] {
        let (code, said) = alluvium(&fake, &words);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn merged_objects_go_when_nobody_needs_them() {
    let fake = S3Fake::start(Options::default()).unwrap();
    // What is of 1970 goes at the first look at retention, by when it is merged.
    let options = hurried(&fake, "garbage").set("log.retention.check.interval.ms", 10_000);
    let mut broker = Broker::start(options);
    create(&broker, &[]);
    produce_everywhere(std::slice::from_ref(&broker), "short-lived");
    let were = merged(&fake, "garbage");
    println!("merged: {were:?}");
    until(&fake, "garbage/merged/", "merged objects stay", <[_]>::is_empty);
    let deleted = broker.metric("alluvium_log_deleted_objects_total{kind=\"merged\"}");
    assert!(deleted >= Some(were.len() as f64), "{deleted:?}");
    let (code, said) = alluvium(&fake, &["fsck", &fake.store_url("garbage")]);
    assert_eq!(code, Some(0), "{said}");
    // What a broker leaves that is gone is for its successor.
    produce_everywhere(std::slice::from_ref(&broker), "left behind");
    merged(&fake, "garbage");
    broker.kill_9();
    broker.launch();
    until(
        &fake,
        "garbage/merged/",
        "merged objects of the dead stay",
        <[_]>::is_empty,
    );
    produce_everywhere(std::slice::from_ref(&broker), "on");
}
