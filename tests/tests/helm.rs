//! The Helm chart without a cluster: its manifests are rendered, validated as by an API server, and played. Command,
//! variables, settings, probes and times of the pods come from the manifests; brokers, clients and MinIO are real.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alluvium_tests::broker::http_get;
use alluvium_tests::installed::Missing;
use alluvium_tests::kafka::{self, IdempotentProducer, Router};
use alluvium_tests::kubelet::{Container, Manifests, Network, Pod};
use alluvium_tests::minio::Minio;
use alluvium_tests::wire::Client;
use kafka_wire::MetadataRequest;
use parking_lot::Mutex;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
const SET: &str = "trial-alluvium";
const BROKERS_SERVICE: &str = "trial-alluvium-brokers";
const TOPIC: &str = "t";
const PARTITIONS: i32 = 6;
/// Metadata with names and without flexible headers.
const METADATA_VERSION: i16 = 8;

/// Three brokers at a time keep a small machine busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn goes_on() -> bool {
    Missing::from_environment().goes_on(Manifests::missing().or_else(Minio::missing))
}

/// The names of the pods and services of a StatefulSet; a name with several addresses leads to the first one here.
fn name_brokers(network: &mut Network, count: u8) {
    for ordinal in 0..count {
        let address = network.address(ordinal);
        network.name(&format!("{SET}-{ordinal}.{BROKERS_SERVICE}"), address);
    }
    network.name(SET, network.address(0));
}

fn brokers(manifests: &Manifests, network: &Network, count: u8) -> Vec<Pod> {
    let set = manifests.only("StatefulSet");
    (0..count)
        .map(|ordinal| Pod::of_set(manifests, set, ordinal, Some(&format!("zone-{ordinal}")), network))
        .collect()
}

/// Starts pods at the same time, as `podManagementPolicy: Parallel` does.
fn run_all(pods: &[Pod]) -> Vec<Container<'_>> {
    let mut running: Vec<Container<'_>> = pods.iter().map(Pod::run).collect();
    for container in &mut running {
        container.wait_until_ready(PATIENCE);
    }
    running
}

#[test]
fn a_trial_passes_its_own_test() {
    if !goes_on() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock();
    let manifests = Manifests::render(&[
        "--set",
        "minio.enabled=true,serviceMonitor.enabled=true,preStopSeconds=1",
    ]);
    let mut network = Network::new();
    name_brokers(&mut network, 3);
    network.name("trial-alluvium-minio", network.address(3));

    let deployment = manifests.only("Deployment");
    let template = &deployment["spec"]["template"];
    let minio = Pod::of_template(&manifests, "trial-alluvium-minio-x", template, 3, &network);
    let mut minio = minio.run();
    minio.wait_until_ready(PATIENCE);
    assert_eq!(minio.probe("livenessProbe"), Some(200));

    let pods = brokers(&manifests, &network, 3);
    let mut running = run_all(&pods);
    for container in &running {
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container.probe(probe), Some(200), "{probe}");
        }
    }
    let endpoint = &manifests.only("ServiceMonitor")["spec"]["endpoints"][0];
    let metrics = pods[0].port(endpoint["port"].as_str().unwrap());
    let (status, page) = http_get(metrics, endpoint["path"].as_str().unwrap()).unwrap();
    assert!(
        status == 200 && page.contains("alluvium_cluster_brokers 3"),
        "{page}"
    );

    // What `helm test` runs.
    let test = manifests.only("Pod");
    let test = Pod::of_template(&manifests, "trial-alluvium-test", test, 4, &network);
    test.initialize(PATIENCE);
    let mut consume = test.run();
    assert!(consume.wait(PATIENCE).success(), "{}", consume.log());
    let read = consume.log();
    let count = |text: &str| {
        read.lines()
            .any(|line| line.split_whitespace().eq(text.split_whitespace()))
    };
    assert!(count("records: 1000") && count("errors: 0"), "{read}");

    // What the notes say: the ordinal is the node.id, and the zone of the node the rack.
    let status = pods[1].exec(&[
        "alluvium",
        "cluster",
        "status",
        "s3://alluvium/alluvium",
        "--json",
    ]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let found: BTreeSet<(u64, String)> = status["brokers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|broker| {
            (
                broker["node_id"].as_u64().unwrap(),
                broker["rack"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected: BTreeSet<(u64, String)> = (0..3).map(|n| (n, format!("zone-{n}"))).collect();
    assert_eq!(found, expected);

    for container in running.iter_mut().rev() {
        println!("a broker stopped within {:?}", container.delete());
    }
}

/// Values of a cluster on a MinIO that is not the chart's, with keys in a secret.
fn on_minio(minio: &Minio) -> (Vec<String>, Vec<(String, String)>) {
    let env: BTreeMap<String, String> = minio.env().into_iter().collect();
    let values = format!(
        "bucket.name=alluvium,bucket.existingSecret=store-keys,bucket.endpoint={}",
        env["AWS_ENDPOINT_URL"]
    );
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let secret = keys.map(|key| (key.to_owned(), env[key].clone()));
    (vec!["--set".to_owned(), values], secret.to_vec())
}

fn with_secret(pod: Pod, secret: &[(String, String)]) -> Pod {
    let entries: Vec<(&str, &str)> = secret.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    pod.secret("store-keys", &entries)
}

fn render(values: &[String], more: &[&str]) -> Manifests {
    let all: Vec<&str> = values
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Manifests::render(&all)
}

fn checksum(manifests: &Manifests) -> &Value {
    &manifests.only("StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
}

/// Sends records to one partition until it is told to stop; every one must be acknowledged. What was acknowledged, and
/// the longest that a record had to wait.
fn produce(
    brokers: &[SocketAddr],
    partition: i32,
    stop: &AtomicBool,
) -> (BTreeMap<i64, Vec<Vec<u8>>>, Duration) {
    let router = Router::new(brokers, Duration::from_secs(5));
    let mut producer = IdempotentProducer::routed(router, TOPIC, partition).unwrap();
    let mut longest = Duration::ZERO;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let value = format!("{partition}-{number}").into_bytes();
        producer.queue(chrono::Utc::now().timestamp_millis(), vec![value]);
        producer.flush(PATIENCE).unwrap();
        longest = longest.max(began.elapsed());
        number += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "partition {partition}: {number} records, none longer than {longest:?}, {} retries",
        producer.retries()
    );
    (producer.take_acknowledged(), longest)
}

#[test]
fn a_rolling_upgrade_fails_no_send() {
    if !goes_on() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock();
    let minio = Minio::start();
    let (values, secret) = on_minio(&minio);
    let quick = ["--set", "preStopSeconds=2,minReadySeconds=3"];
    let before = render(&values, &quick);
    let changed = [
        quick[0],
        quick[1],
        "--set-json",
        r#"{"config":{"log.retention.hours":1000}}"#,
    ];
    let after = render(&values, &changed);
    assert_ne!(
        checksum(&before),
        checksum(&after),
        "a changed setting restarts brokers"
    );
    let scaled = render(
        &values,
        &["--set", "preStopSeconds=2,minReadySeconds=3,replicas=5"],
    );
    assert_eq!(checksum(&before), checksum(&scaled), "another number does not");

    let mut network = Network::new();
    name_brokers(&mut network, 3);
    let keep = |manifests: &Manifests| -> Vec<Pod> {
        let pods = brokers(manifests, &network, 3).into_iter();
        pods.map(|pod| with_secret(pod, &secret)).collect()
    };
    let (old, new) = (keep(&before), keep(&after));
    let mut running = run_all(&old);
    let addresses: Vec<SocketAddr> = old.iter().map(|pod| pod.port("kafka")).collect();
    let mut client = Client::connect(addresses[0]).unwrap();
    kafka::create_topic(&mut client, TOPIC, PARTITIONS, &[]).unwrap();
    drop(client);

    let set = after.only("StatefulSet");
    let pause = Duration::from_secs(set["spec"]["minReadySeconds"].as_u64().unwrap());
    let stop = AtomicBool::new(false);
    let sent: Vec<_> = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PARTITIONS)
            .map(|partition| {
                let (addresses, stop) = (&addresses, &stop);
                scope.spawn(move || produce(addresses, partition, stop))
            })
            .collect();
        // Whatever fails here, the producers must hear of the end.
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for ordinal in (0..3).rev() {
                let took = running[ordinal].delete();
                running[ordinal] = new[ordinal].run();
                running[ordinal].wait_until_ready(PATIENCE);
                println!("broker {ordinal} handed over within {took:?}");
                std::thread::sleep(pause);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let sent = producers.into_iter().map(|p| p.join().unwrap()).collect();
        upgraded.unwrap();
        sent
    });
    let mut router = Router::new(&addresses, Duration::from_secs(15));
    for (partition, (acknowledged, longest)) in (0..).zip(&sent) {
        assert!(acknowledged.len() > 100, "{} records only", acknowledged.len());
        // A dead broker's partitions are still for twelve seconds at least: nobody was taken for dead.
        assert!(*longest < Duration::from_secs(10), "{longest:?}");
        let leader = router.leader(TOPIC, partition).unwrap();
        let records = kafka::read_all(leader, TOPIC, partition, PATIENCE).unwrap();
        kafka::check_exact(&records, &[acknowledged]).unwrap();
    }
}

/// Host and port of each broker by its node.id, as a client hears it that asks there.
fn told(address: SocketAddr) -> BTreeMap<i32, (String, i32)> {
    let mut client = Client::connect(address).unwrap();
    let response = client
        .call(&MetadataRequest::default(), METADATA_VERSION)
        .unwrap();
    let brokers = response.brokers.iter();
    brokers
        .map(|broker| (broker.node_id, (broker.host.to_string(), broker.port)))
        .collect()
}

#[test]
fn clients_outside_and_inside_hear_of_different_addresses() {
    if !goes_on() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock();
    let minio = Minio::start();
    let (values, secret) = on_minio(&minio);
    let manifests = render(
        &values,
        &[
            "--set",
            "external.enabled=true,external.type=NodePort,external.host=nodes.example.com",
            "--set",
            "firstNodeId=7,replicas=2,rack.from=node,rack.image=kubectl,preStopSeconds=0",
        ],
    );
    // The zone is asked for in an init container, of a program that is played.
    let programs = tempfile::tempdir().unwrap();
    let kubectl = programs.path().join("kubectl");
    let script = r#"#!/bin/sh -e
[ "$*" = "get node node-of-trial-alluvium-7 -o jsonpath={.metadata.labels['topology\.kubernetes\.io/zone']}" ]
printf zone-of-the-node
"#;
    std::fs::write(&kubectl, script).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let network = Network::new();
    let pod = Pod::of_set(&manifests, manifests.only("StatefulSet"), 7, None, &network);
    let pod = with_secret(pod, &secret).programs(programs.path());
    pod.initialize(PATIENCE);
    let mut running = pod.run();
    running.wait_until_ready(PATIENCE);

    let service = manifests.get("Service", "trial-alluvium-7-external");
    let port = &service["spec"]["ports"][0];
    assert_eq!(port["targetPort"], "external");
    let outside = (
        "nodes.example.com".to_owned(),
        port["nodePort"].as_i64().unwrap() as i32,
    );
    assert_eq!(
        told(pod.port("external")),
        BTreeMap::from([(7, outside)]),
        "through the node port"
    );
    let inside = "trial-alluvium-7.trial-alluvium-brokers.streams.svc.cluster.local";
    assert_eq!(
        told(pod.port("kafka")),
        BTreeMap::from([(7, (inside.to_owned(), 9092))])
    );
    let status = pod.exec(&[
        "alluvium",
        "cluster",
        "status",
        "s3://alluvium/alluvium",
        "--json",
    ]);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["brokers"][0]["rack"], "zone-of-the-node");
    // The settings are found without a flag.
    assert_eq!(pod.exec(&["alluvium", "health"]).trim(), "ok");
    running.delete();
}

#[test]
fn every_external_service_leads_to_what_its_broker_advertises() {
    if !Missing::from_environment().goes_on(Manifests::missing()) {
        return;
    }
    let bucket = "bucket.name=logs,bucket.region=r,external.enabled=true";
    for (values, hosts) in [
        (
            "external.type=NodePort,external.host=n.example.com",
            ["n.example.com"; 3],
        ),
        (
            "external.type=NodePort,external.nodePorts.brokers={31000,32000,31500},external.hosts={a,b,c}",
            ["a", "b", "c"],
        ),
        (
            "external.host=b{ordinal}.example.com,external.sourceRanges[0]=10.0.0.0/8",
            ["b0.example.com", "b1.example.com", "b2.example.com"],
        ),
        (
            "external.hosts={10.0.0.1,fd00::2,c},external.port=9999,external.sourceRanges[0]=10.0.0.0/8",
            ["10.0.0.1", "[fd00::2]", "c"],
        ),
    ] {
        let manifests = Manifests::render(&["--set", bucket, "--set", values]);
        let mut seen = BTreeSet::new();
        for (ordinal, host) in hosts.iter().enumerate() {
            let pod = format!("{SET}-{ordinal}");
            let service = manifests.get("Service", &format!("{pod}-external"));
            let spec = &service["spec"];
            assert_eq!(
                spec["selector"]["statefulset.kubernetes.io/pod-name"],
                pod.as_str()
            );
            let port = match spec["type"].as_str() {
                Some("NodePort") => &spec["ports"][0]["nodePort"],
                _ => &spec["ports"][0]["port"],
            };
            let file = manifests.file(SET, &format!("{pod}.properties"));
            let advertised = file
                .lines()
                .find_map(|line| line.strip_prefix("advertised.listeners="));
            let expected = format!(
                "PLAINTEXT://{pod}.{BROKERS_SERVICE}.streams.svc.cluster.local:9092,EXTERNAL://{host}:{port}"
            );
            assert_eq!(advertised, Some(expected.as_str()), "{values}");
            assert!(seen.insert(expected), "two brokers at one address");
        }
    }
}

/// Settings reach the broker as they were given: large numbers, decimals, and what is special in a properties file.
#[test]
fn settings_are_written_as_they_are() {
    if !Missing::from_environment().goes_on(Manifests::missing()) {
        return;
    }
    let config = r#"{"config":{"log.retention.ms":604800000,"log.cleaner.min.cleanable.ratio":0.25,
        "auto.create.topics.enable":false,"log.cleanup.policy":"compact,delete","log.level":"a\\b"}}"#;
    let manifests = Manifests::render(&["--set", "minio.enabled=true", "--set-json", config]);
    let file = manifests.file(SET, "server.properties");
    for line in [
        "store.url=s3://alluvium/alluvium",
        "listeners=PLAINTEXT://0.0.0.0:9092",
        "http.listen=0.0.0.0:9464",
        "log.retention.ms=604800000",
        "log.cleaner.min.cleanable.ratio=0.25",
        "auto.create.topics.enable=false",
        "log.cleanup.policy=compact,delete",
        r"log.level=a\\b",
    ] {
        assert!(
            file.lines().any(|found| found == line),
            "{line} is not in\n{file}"
        );
    }
    assert_eq!(file.lines().count(), 8, "{file}");
}
