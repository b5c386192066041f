//! The policy that `terraform/` gives to brokers is exactly what they and the commands do to a bucket: each IAM action that
//! a whole life of a cluster needs is in it, and each that is in it is needed.

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
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "team/cluster";
const TOPIC: &str = "t";
/// More than a part of an upload, so that files are written in parts.
const ROUNDS: usize = 20;
const ROUND_BYTES: usize = 900_000;

/// Action and resource of every permission, from the file that the module renders.
fn policy() -> BTreeSet<(String, String)> {
    let file = root().join("terraform/policy.json.tftpl");
    let text = std::fs::read_to_string(file).unwrap();
    // It has these two placeholders and no logic.
    let text = text
        .replace("${bucket_arn}", "BUCKET")
        .replace("${objects_arn}", "OBJECTS");
    let policy: Value = serde_json::from_str(&text).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        let resource = statement["Resource"].as_str().unwrap();
        let actions = match &statement["Action"] {
            Value::String(action) => vec![action.clone()],
            actions => serde_json::from_value(actions.clone()).unwrap(),
        };
        allowed.extend(actions.into_iter().map(|action| (action, resource.to_owned())));
    }
    allowed
}

/// What the fake was asked for needs these, on the bucket or on its objects.
fn needed(fake: &S3Fake) -> BTreeSet<(String, String)> {
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
    // An upload that cannot go on is ended, and begun anew.
    fake.set_fault_texts(&["kind=multipart,nth=2,do=403"]);
    let bootstrap = first.address().to_string();
    let archived = alluvium(&fake, &["archive", "flush", TOPIC, "--bootstrap", &bootstrap]);
    assert!(archived.contains("are Parquet"), "{archived}");
    assert_eq!(fake.faults_fired(), [1]);
    broker::until("the upload is aborted", PATIENCE, || {
        fake.counts().actions.contains_key("s3:AbortMultipartUpload")
    });

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

    let (allowed, needed) = (policy(), needed(&fake));
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
