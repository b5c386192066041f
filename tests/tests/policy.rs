//! The policy that `terraform/` gives to brokers is exactly what they and the commands do to a bucket: each IAM action that
//! a whole life of a cluster needs is in it, and each that is in it is needed. What the broker and the pages say is the
//! same.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use alluvium_tests::batches::{Producer, batch};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::installed::root;
use alluvium_tests::kafka::{self, code};
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use kafka_wire::DeleteRecordsRequest;
use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use regex_lite::Regex;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "team/cluster";
const TOPIC: &str = "t";
/// More than a part of an upload, so that files are written in parts.
const ROUNDS: usize = 30;
const ROUND_BYTES: usize = 900_000;

/// Actions, each with what it is allowed on.
type Allowed = BTreeSet<(String, String)>;

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// From the file that the module renders. It has these two placeholders and no logic.
fn of_terraform() -> Allowed {
    let text = text("terraform/policy.json.tftpl");
    of_policy(&text, "${bucket_arn}", "${objects_arn}")
}

/// Action and resource of every permission of a policy in JSON, whose resources are the bucket and its objects.
fn of_policy(policy: &str, bucket: &str, objects: &str) -> Allowed {
    let policy: Value = serde_json::from_str(policy).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        let resource = match statement["Resource"].as_str().unwrap() {
            resource if resource == bucket => "BUCKET",
            resource if resource == objects => "OBJECTS",
            other => panic!("a resource that is neither: {other}"),
        };
        let actions = match &statement["Action"] {
            Value::String(action) => vec![action.clone()],
            actions => serde_json::from_value(actions.clone()).unwrap(),
        };
        allowed.extend(actions.into_iter().map(|action| (action, resource.to_owned())));
    }
    allowed
}

/// What the fake was asked for needs these, on the bucket or on its objects.
fn needed(fake: &S3Fake) -> Allowed {
    let actions = fake.counts().actions.into_keys();
    let of_bucket = |action: &str| action.ends_with("Bucket") || action.ends_with("BucketLocation");
    actions
        .map(|action| {
            let resource = if of_bucket(&action) { "BUCKET" } else { "OBJECTS" };
            (action, resource.to_owned())
        })
        .collect()
}

/// The command must succeed; its output.
fn alluvium(fake: &S3Fake, arguments: &[&str]) -> String {
    let output = broker::run(arguments, &fake.env(), PATIENCE);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

fn broker_of(fake: &S3Fake, node_id: i32) -> Broker {
    let options = BrokerOptions::on(fake.store_url(PREFIX)).env(fake.env());
    let options = options
        .set("node.id", node_id)
        .set("merge.interval.ms", 1_000)
        .set("request.budget.per.second", 0)
        .set("log.segment.delete.delay.ms", 1_000)
        .set("garbage.check.interval.ms", 1_000);
    Broker::start(options)
}

/// Produces to whoever leads the partition.
fn produce(brokers: &[&Broker], value: Vec<u8>) {
    let began = Instant::now();
    let now_ms = chrono::Utc::now().timestamp_millis();
    let records = batch(now_ms, Producer::NONE, &[value]);
    let taken = |broker: &Broker| {
        let mut client = Client::connect(broker.address()).ok()?;
        let (error, _) = kafka::produce(&mut client, TOPIC, 0, records.clone()).ok()?;
        (error == code::NONE).then_some(())
    };
    while !brokers.iter().any(|broker| taken(broker).is_some()) {
        assert!(began.elapsed() < PATIENCE, "nobody leads the partition");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn delete_all_records(broker: &Broker) {
    let mut of_partition = DeleteRecordsPartition::default();
    of_partition.partition_index = 0;
    of_partition.offset = -1;
    let mut of_topic = DeleteRecordsTopic::default();
    of_topic.name = TOPIC.into();
    of_topic.partitions = vec![of_partition];
    let mut request = DeleteRecordsRequest::default();
    request.topics = vec![of_topic];
    request.timeout_ms = 30_000;
    let mut client = Client::connect(broker.address()).unwrap();
    let answer = client.call(&request, 1).unwrap();
    assert_eq!(answer.topics[0].partitions[0].error_code, code::NONE);
}

#[test]
fn the_policy_allows_what_a_cluster_does_and_nothing_else() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let url = fake.store_url(PREFIX);
    alluvium(&fake, &["store", "check", &url]);

    let mut first = broker_of(&fake, 1);
    let mut client = Client::connect(first.address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, 1, &[]).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..ROUNDS {
        let mut value = vec![0; ROUND_BYTES];
        random.fill_bytes(&mut value);
        produce(&[&first], value);
    }
    // An upload that cannot go on is ended, as each start's is, and begun anew.
    let aborts = || fake.counts().actions["s3:AbortMultipartUpload"];
    let before = aborts();
    fake.set_fault_texts(&["kind=multipart,nth=2,do=403"]);
    let bootstrap = first.address().to_string();
    let archived = alluvium(&fake, &["archive", "flush", TOPIC, "--bootstrap", &bootstrap]);
    assert!(archived.contains("are Parquet"), "{archived}");
    assert_eq!(fake.faults_fired(), [1]);
    broker::until("the upload is aborted", PATIENCE, || aborts() > before);

    let mut second = broker_of(&fake, 2);
    broker::until("all is well", PATIENCE, || {
        let status = broker::run(&["cluster", "status", &url], &fake.env(), PATIENCE);
        status.status.success()
    });
    alluvium(&fake, &["cluster", "drain", "1", &url]);
    produce(&[&first, &second], b"drained".to_vec());
    let read = kafka::read_all(second.address(), TOPIC, 0, PATIENCE).unwrap();
    assert_eq!(read.len(), ROUNDS + 1, "history is read back");
    delete_all_records(&second);
    let archive = format!("{PREFIX}/archive/");
    broker::until("what was deleted leaves the bucket", PATIENCE, || {
        fake.objects(&archive).is_empty()
    });
    alluvium(&fake, &["inspect", &url]);
    alluvium(&fake, &["cluster", "drain", "1", &url, "--undo"]);

    second.kill_9();
    broker::until("the survivor takes over", PATIENCE, || {
        let status = broker::run(&["cluster", "status", &url], &fake.env(), PATIENCE);
        status.status.success()
    });
    produce(&[&first], b"taken over".to_vec());
    // Exit code 1 would say that it has found something.
    alluvium(&fake, &["fsck", &url, "--repair", "--yes"]);
    first.terminate();
    assert!(fake.remove(&format!("{PREFIX}/cluster/manifest.json")));
    let restored = alluvium(&fake, &["cluster", "restore-manifest", &url, "--yes"]);
    assert!(restored.contains("is restored as version"), "{restored}");
    first.launch();
    // What was there before it was deleted.
    let next = ROUNDS as i64 + 1;
    broker::until("the last record is read", PATIENCE, || {
        let mut client = Client::connect(first.address()).unwrap();
        let fetched = kafka::fetch(&mut client, TOPIC, 0, next, Duration::from_millis(100));
        matches!(fetched, Ok((code::NONE, bytes)) if !bytes.is_empty())
    });
    first.terminate();

    let (allowed, needed) = (of_terraform(), needed(&fake));
    println!("{:?}", fake.counts());
    let missing: Vec<_> = needed.difference(&allowed).collect();
    let surplus: Vec<_> = allowed.difference(&needed).collect();
    assert!(missing.is_empty(), "not in the policy: {missing:?}");
    assert!(surplus.is_empty(), "in the policy and never needed: {surplus:?}");
    let elsewhere: Vec<_> = fake
        .objects("")
        .into_iter()
        .filter(|(key, _)| !key.starts_with(&format!("{PREFIX}/")))
        .collect();
    assert!(elsewhere.is_empty(), "outside of the prefix: {elsewhere:?}");
}

/// The words of the line with which a start ends that is denied something.
fn of_the_broker() -> Allowed {
    let fake = S3Fake::start(Options::default()).unwrap();
    fake.deny(&["s3:PutObject"]);
    let arguments = ["store", "check", &fake.store_url(PREFIX)];
    let output = broker::run(&arguments, &fake.env(), PATIENCE);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = line.split_once("; a broker needs ").and_then(|(_, rest)| {
        let (objects, rest) = rest.split_once(" on its objects, and ")?;
        Some([
            (objects, "OBJECTS"),
            (rest.split_once(" on the bucket (")?.0, "BUCKET"),
        ])
    });
    let words = words.unwrap_or_else(|| panic!("{line}"));
    let mut allowed = Allowed::new();
    for (words, resource) in words {
        let on = |action| (action, resource.to_owned());
        allowed.extend(actions(words).into_iter().map(on));
    }
    allowed
}

/// The IAM actions in a text.
fn actions(text: &str) -> BTreeSet<String> {
    let action = Regex::new("s3:[A-Z][A-Za-z]+").unwrap();
    action
        .find_iter(text)
        .map(|found| found.as_str().to_owned())
        .collect()
}

#[test]
fn everything_that_names_the_permissions_names_the_same() {
    let expected = of_terraform();
    assert_eq!(of_the_broker(), expected);
    let page = text("docs/kubernetes.md");
    let policy = page
        .split("```json")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .find(|block| block.contains("\"Statement\""))
        .expect("the page shows a policy");
    let of_page = of_policy(policy, "arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/*");
    assert_eq!(of_page, expected);
    let names: BTreeSet<String> = expected.into_iter().map(|(action, _)| action).collect();
    for page in [
        "docs/quickstart.md",
        "docs/troubleshooting.md",
        "terraform/README.md",
    ] {
        assert_eq!(actions(&text(page)), names, "{page}");
    }
}
