//! What an operator does with a cluster: every command of docs/cluster.md on real brokers and the S3 fake, the commands
//! that change the bucket while the store misbehaves or a broker still runs, a backup of the bucket, and a config that
//! is changed at one of two brokers.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Output;
use std::time::{Duration, Instant};

use alluvium_tests::batches::{self, Producer};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::kafka;
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use futures::TryStreamExt;
use kafka_wire::DescribeConfigsRequest;
use kafka_wire::describe_configs_request::DescribeConfigsResource;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// The store as the page names it.
const PAGE_STORE: &str = "s3://my-bucket/my-cluster";
const TOPIC: &str = "t";
const PARTITIONS: i32 = 12;
/// The batches have timestamps of 1970.
const KEPT: &[(&str, &str)] = &[("retention.ms", "-1")];

fn alluvium(fake: &S3Fake, arguments: &[&str]) -> Output {
    broker::run(arguments, &fake.env(), PATIENCE)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The command must succeed.
fn succeeded(fake: &S3Fake, arguments: &[&str]) -> String {
    let output = alluvium(fake, arguments);
    let text = text(&output);
    println!("$ alluvium {}\n{text}", arguments.join(" "));
    assert!(output.status.success(), "{arguments:?} failed: {text}");
    text
}

/// The command must fail, with exit code 1 and without a panic.
fn failed(fake: &S3Fake, arguments: &[&str]) -> String {
    let output = alluvium(fake, arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn manifest(fake: &S3Fake, prefix: &str) -> Value {
    let bytes = fake.get(&format!("{prefix}/cluster/manifest.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
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

/// Each partition holds so many records, wherever it is led.
fn read_everywhere(brokers: &[Broker], count: usize) {
    for partition in 0..PARTITIONS {
        let began = Instant::now();
        let found = |broker: &Broker| {
            let read = kafka::read_all(broker.address(), TOPIC, partition, Duration::from_secs(1));
            read.map(|records| records.len()).unwrap_or(0)
        };
        while !brokers.iter().any(|broker| found(broker) == count) {
            assert!(
                began.elapsed() < PATIENCE,
                "partition {partition} has not {count} records"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// `cluster status` until it says that all is well.
fn healthy(fake: &S3Fake, url: &str) -> Value {
    let began = Instant::now();
    loop {
        let output = alluvium(fake, &["cluster", "status", url, "--json"]);
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "{}", text(&output));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Waits until each of three brokers leads its share.
fn balanced(fake: &S3Fake, url: &str) {
    let began = Instant::now();
    loop {
        let status = healthy(fake, url);
        let share = Value::from(PARTITIONS / 3);
        if (&status["partitions_min"], &status["partitions_max"]) == (&share, &share)
            && status["moves"] == Value::Array(vec![])
        {
            println!("balanced after {:?}", began.elapsed());
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{status}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A broker as a command line of the page starts it, with addresses of this machine and the fake as its store.
fn started(fake: &S3Fake, words: &[&str], url: &str) -> Broker {
    let mut options = BrokerOptions::on(url).env(fake.env());
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--store" => assert_eq!(words.next(), Some(PAGE_STORE)),
            "--listeners" | "--advertised-listeners" => drop(words.next()),
            other => options.arguments.push(other.to_owned()),
        }
    }
    Broker::start(options)
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster.md");
    let page = std::fs::read_to_string(page).unwrap();
    let commands: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("$ alluvium "))
        .collect();
    assert!(commands.len() >= 12, "{commands:?}");
    let fake = S3Fake::start(Options::default()).unwrap();
    let url = fake.store_url("page");
    let mut brokers: Vec<Broker> = vec![];
    for (i, command) in commands.iter().enumerate() {
        let words: Vec<&str> = command.split_whitespace().collect();
        if let ["serve", rest @ ..] = &words[..] {
            brokers.push(started(&fake, rest, &url));
            let more = commands.get(i + 1).is_some_and(|next| next.starts_with("serve"));
            if !more {
                let mut client = Client::connect(brokers[0].address()).unwrap();
                kafka::create_topic(&mut client, TOPIC, PARTITIONS, KEPT).unwrap();
                produce_everywhere(&brokers, "first");
                balanced(&fake, &url);
            }
            continue;
        }
        let mut words: Vec<&str> = words
            .iter()
            .map(|word| if *word == PAGE_STORE { url.as_str() } else { word })
            .collect();
        let restores = words.contains(&"restore-manifest");
        if restores {
            brokers.iter_mut().for_each(Broker::terminate);
            assert!(fake.remove("page/cluster/manifest.json"));
            words.push("--yes");
        }
        let said = succeeded(&fake, &words);
        match &words[..] {
            ["cluster", "status", _] => {
                assert!(said.contains("brokers   3 live, 4 partitions each"), "{said}")
            }
            ["cluster", "drain", _, _] => {
                assert!(
                    said.contains("leads nothing any more: it can be stopped"),
                    "{said}"
                );
                produce_everywhere(&brokers[..2], "drained");
            }
            ["cluster", "drain", _, _, "--undo"] => {
                assert!(said.contains("no longer marked"), "{said}");
                balanced(&fake, &url);
            }
            ["cluster", "feature-level", _] => assert!(said.contains("* 3"), "{said}"),
            _ => {}
        }
        if restores {
            assert!(said.contains("nothing should be missing"), "{said}");
            brokers.iter_mut().for_each(Broker::launch);
            produce_everywhere(&brokers, "restored");
        }
    }
    read_everywhere(&brokers, 3);
    let status = healthy(&fake, &url);
    assert_eq!(status["brokers"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&status["topics"], &status["partitions"]),
        (&1.into(), &PARTITIONS.into())
    );
}

/// A bucket of a broker that has stopped, with one record in it.
fn used_bucket(fake: &S3Fake, prefix: &str) -> Broker {
    let mut broker = Broker::start(BrokerOptions::on(fake.store_url(prefix)).env(fake.env()));
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, 1, KEPT).unwrap();
    drop(client);
    produce_one(&broker);
    broker.terminate();
    broker
}

#[test]
fn an_own_success_that_looks_like_a_failure_is_one_change() {
    let fake = S3Fake::start(Options::default()).unwrap();
    for fault in [
        "applied-then-500",
        "applied-then-412",
        "applied-then-cut",
        "500",
        "409",
    ] {
        let prefix = format!("level-{fault}");
        drop(used_bucket(&fake, &prefix));
        let url = fake.store_url(&prefix);
        edited(&fake, &prefix, |m| {
            drop(m.insert("feature_level".into(), 1.into()))
        });
        let before = manifest(&fake, &prefix);
        fake.set_fault_texts(&[&format!("kind=put,key=manifest.json$,times=1,do={fault}")]);
        let said = succeeded(&fake, &["cluster", "feature-level", &url, "--set", "2", "--yes"]);
        assert_eq!(fake.faults_fired(), [1], "{fault}");
        fake.set_faults(vec![]);
        assert!(said.contains("the feature level is 2 now"), "{said}");
        let after = manifest(&fake, &prefix);
        assert_eq!(after["feature_level"], 2);
        assert_eq!(
            after["version"].as_u64().unwrap(),
            before["version"].as_u64().unwrap() + 1,
            "{fault}"
        );
        let copy = format!(
            "{prefix}/cluster/history/{:020}.json",
            after["version"].as_u64().unwrap()
        );
        assert!(fake.get(&copy).is_some(), "{fault}: with its copy");
    }
}

/// Changes the manifest by hand, while no broker runs.
fn edited(fake: &S3Fake, prefix: &str, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let mut manifest = manifest(fake, prefix);
    let members = manifest.as_object_mut().unwrap();
    // Changed by hand, it has no right checksum.
    members.remove("crc32c");
    edit(members);
    fake.put_raw(&format!("{prefix}/cluster/manifest.json"), manifest.to_string())
        .unwrap();
}

#[test]
fn a_level_is_raised_once_every_live_broker_knows_it() {
    const PREFIX: &str = "unready";
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut broker = used_bucket(&fake, PREFIX);
    edited(&fake, PREFIX, |m| {
        drop(m.insert("feature_level".into(), 2.into()))
    });
    broker.launch();
    broker.kill_9();
    // It is live as far as anybody can tell, and of a build that did not say what it knows.
    edited(&fake, PREFIX, |m| drop(m.remove("known_levels").unwrap()));
    let url = fake.store_url(PREFIX);
    let raise = ["cluster", "feature-level", &url, "--set", "3", "--yes"];
    let said = failed(&fake, &raise);
    assert!(said.contains("broker 1 knows 1 to 2"), "{said}");
    let status = text(&alluvium(&fake, &["cluster", "status", &url, "--json"]));
    assert!(status.contains("broker 1 knows 1 to 2"), "{status}");
    assert_eq!(manifest(&fake, PREFIX)["feature_level"], 2);
    broker.launch();
    let said = succeeded(&fake, &raise);
    assert!(said.contains("the feature level is 3 now"), "{said}");
    produce_one(&broker);
    let found = kafka::read_all(broker.address(), TOPIC, 0, PATIENCE).unwrap();
    assert_eq!(found.len(), 2);
}

fn produce_one(broker: &Broker) {
    let mut client = Client::connect(broker.address()).unwrap();
    let records = batches::batch(0, Producer::NONE, &["kept".into()]);
    assert_eq!(kafka::produce(&mut client, TOPIC, 0, records).unwrap().0, 0);
}

#[test]
fn a_bucket_that_does_not_answer_is_told_in_a_line() {
    let fake = S3Fake::start(Options::default()).unwrap();
    for command in [
        &["cluster", "status", "s3://no-such-bucket/x"][..],
        &["cluster", "drain", "1", "s3://no-such-bucket/x"],
        &["cluster", "feature-level", "s3://no-such-bucket/x"],
        &["cluster", "restore-manifest", "s3://no-such-bucket/x", "--yes"],
    ] {
        let said = failed(&fake, command);
        assert!(
            said.contains("no-such-bucket") && said.trim_end().lines().count() == 1,
            "{said}"
        );
    }
    let nothing = failed(&fake, &["cluster", "status", &fake.store_url("empty")]);
    assert!(nothing.contains("no Alluvium cluster here"), "{nothing}");
}

#[test]
fn a_manifest_is_not_restored_under_a_running_broker() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let mut broker = used_bucket(&fake, "restore");
    let url = fake.store_url("restore");
    broker.launch();
    let whole = failed(&fake, &["cluster", "restore-manifest", &url, "--yes"]);
    assert!(whole.contains("the manifest is whole"), "{whole}");
    let key = "restore/cluster/manifest.json";
    let before = manifest(&fake, "restore");
    fake.put_raw(key, "{\"format\": {").unwrap();
    let damaged = failed(&fake, &["cluster", "status", &url]);
    assert!(damaged.contains("restore-manifest"), "{damaged}");
    let running = failed(&fake, &["cluster", "restore-manifest", &url, "--yes"]);
    assert!(running.contains("a broker is running"), "{running}");
    assert_eq!(fake.get(key).unwrap(), "{\"format\": {");
    broker.kill_9();
    let said = succeeded(&fake, &["cluster", "restore-manifest", &url, "--yes"]);
    assert!(said.contains("nothing should be missing"), "{said}");
    let after = manifest(&fake, "restore");
    assert!(after["version"].as_u64() > before["version"].as_u64());
    assert!(after["next_incarnation"].as_u64() > before["next_incarnation"].as_u64());
    assert_eq!(after["cluster_id"], before["cluster_id"]);
    broker.launch();
    assert_eq!(
        kafka::read_all(broker.address(), TOPIC, 0, PATIENCE)
            .unwrap()
            .len(),
        1
    );
}

/// Copies what lies below a prefix to another one, as `aws s3 sync` does: by a list and a copy of each object.
fn copied(fake: &S3Fake, from: &str, to: &str) -> usize {
    let store = AmazonS3Builder::new()
        .with_endpoint(fake.endpoint())
        .with_allow_http(true)
        .with_bucket_name("alluvium")
        .with_region("us-east-1")
        .with_access_key_id("fake")
        .with_secret_access_key("fake")
        .build()
        .unwrap();
    let copies = store.list(Some(&Path::from(from))).map_ok(|object| {
        let name = object.location.as_ref().strip_prefix(from).unwrap().to_owned();
        let copy = Path::parse(format!("{to}{name}")).unwrap();
        let store = &store;
        async move { store.copy(&object.location, &copy).await }
    });
    let copies = copies.try_buffer_unordered(8).try_collect::<Vec<()>>();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(copies).unwrap().len()
}

/// docs/operations.md: a copy of the prefix while no broker runs is the same cluster, wherever it lies.
#[test]
fn a_copy_of_the_bucket_serves_everything() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let on = |prefix: &str| -> Vec<Broker> {
        let broker = |id: i32| {
            let options = BrokerOptions::on(fake.store_url(prefix)).env(fake.env());
            Broker::start(options.set("node.id", id).set("merge.interval.ms", 1_000))
        };
        (1..=2).map(broker).collect()
    };
    let mut brokers = on("whole");
    let mut client = Client::connect(brokers[0].address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, PARTITIONS, KEPT).unwrap();
    drop(client);
    // Some of it is history, some merged, some as it was written.
    produce_everywhere(&brokers, "first");
    let bootstrap = brokers[0].address().to_string();
    succeeded(&fake, &["archive", "flush", TOPIC, "--bootstrap", &bootstrap]);
    produce_everywhere(&brokers, "second");
    brokers.iter_mut().for_each(Broker::terminate);

    let objects = fake.objects("whole/").len();
    assert_eq!(copied(&fake, "whole", "copy/of"), objects);
    // Nothing in the copy leads back to where it was.
    for (key, _) in fake.objects("whole/") {
        assert!(fake.remove(&key));
    }
    let url = fake.store_url("copy/of");
    succeeded(&fake, &["fsck", &url]);
    let brokers = on("copy/of");
    read_everywhere(&brokers, 2);
    produce_everywhere(&brokers, "third");
    read_everywhere(&brokers, 3);
    healthy(&fake, &url);
    assert!(fake.objects("whole/").is_empty());
}

/// A config of the topic as a broker describes it; `None` while it does not know the topic.
fn described(broker: &Broker, name: &str) -> Option<String> {
    let mut resource = DescribeConfigsResource::default();
    resource.resource_type = kafka::RESOURCE_TOPIC;
    resource.resource_name = TOPIC.into();
    resource.configuration_keys = Some(vec![name.into()]);
    let mut request = DescribeConfigsRequest::default();
    request.resources = vec![resource];
    let mut client = Client::connect(broker.address()).unwrap();
    let answer = client.call(&request, 4).unwrap();
    let config = answer.results.first()?.configs.first()?;
    let value = config.value.as_ref()?;
    Some(value.as_str().to_owned())
}

/// Whoever is asked for a change, the others go by it soon: they read of it in the manifest.
#[test]
fn a_config_that_is_changed_at_one_broker_is_in_effect_at_the_other_within_seconds() {
    const CONFIG: &str = "max.message.bytes";
    const SOON: Duration = Duration::from_secs(10);
    let fake = S3Fake::start(Options::default()).unwrap();
    let start = |id: i32| {
        let options = BrokerOptions::on(fake.store_url("configs")).env(fake.env());
        Broker::start(options.set("node.id", id))
    };
    let (one, other) = (start(1), start(2));
    let mut client = Client::connect(one.address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, 1, KEPT).unwrap();
    for (at, seen_at, value) in [(&one, &other, "20000"), (&other, &one, "30000")] {
        let began = Instant::now();
        let mut client = Client::connect(at.address()).unwrap();
        kafka::alter_topic_config(&mut client, TOPIC, CONFIG, value).unwrap();
        broker::until("the config is in effect at the other broker", SOON, || {
            described(seen_at, CONFIG).as_deref() == Some(value)
        });
        println!("{CONFIG}={value} after {:?}", began.elapsed());
    }
}
