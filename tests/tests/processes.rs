//! Stores that a broker must not use: in use already, read-only, full, of another cluster, of a newer level.
//! Each is refused with one clear line, and nothing is written.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::kafka;
use alluvium_tests::s3_fake::{Conditions, Options, Outage, S3Fake};
use alluvium_tests::wire::Client;
use bytes::Bytes;

const PATIENCE: Duration = Duration::from_secs(60);

/// `serve` on this store, which must end by itself.
fn serve(store: &str, env: &[(String, String)]) -> Output {
    let listeners = format!("PLAINTEXT://{}", broker::free_address());
    let http = broker::free_address().to_string();
    let arguments = [
        "serve",
        "--store",
        store,
        "--listeners",
        &listeners,
        "--http-listen",
        &http,
    ];
    broker::run(&arguments, env, PATIENCE)
}

/// It failed, and its last line says why in these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "it ended well:\n{stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let line = stderr
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .to_lowercase();
    println!("{line}");
    for word in words {
        assert!(
            line.contains(&word.to_lowercase()),
            "the last line does not name '{word}':\n{stderr}"
        );
    }
}

/// Every file below a directory with its bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(
                path.display().to_string(),
                std::fs::read(&path).unwrap_or_default(),
            );
        }
    }
    found
}

fn produce_one(broker: &Broker, value: &str) {
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    let records = alluvium_tests::batches::batch(0, alluvium_tests::batches::Producer::NONE, &[value.into()]);
    assert_eq!(kafka::produce(&mut client, "t", 0, records).unwrap().0, 0);
}

#[test]
fn a_second_process_on_a_directory_is_refused() {
    let mut first = Broker::start(BrokerOptions::embedded());
    produce_one(&first, "mine");
    let data = first.directory().join("data");
    // Paused, so that whatever changes was not the first one's doing.
    first.pause();
    let before = files(&data);
    assert!(!before.is_empty());
    // With the same arguments, as somebody does who starts it twice: the ports are taken too, and say less.
    let arguments = first.arguments();
    let mut serve_again = vec!["serve"];
    serve_again.extend(arguments.iter().map(String::as_str));
    let output = broker::run(&serve_again, &[], PATIENCE);
    let after = files(&data);
    first.resume();
    assert_refused(&output, &["data", &format!("(pid {})", first.pid())]);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    assert!(after == before, "a file changed");
    produce_one(&first, "still mine");
    // With the first one gone, dead or stopped, the directory is free.
    first.restart();
    first.terminate();
    first.launch();
    assert_eq!(
        kafka::read_all(first.address(), "t", 0, PATIENCE).unwrap().len(),
        2
    );
}

#[test]
fn a_port_that_is_taken_is_refused_with_what_to_do() {
    let first = Broker::start(BrokerOptions::embedded());
    let taken = format!("PLAINTEXT://{}", first.address());
    let output = broker::run(
        &[
            "serve",
            "--store",
            "memory://",
            "--listeners",
            &taken,
            "--http-listen",
            "",
        ],
        &[],
        PATIENCE,
    );
    assert_refused(
        &output,
        &[&first.address().to_string(), "choose another --listeners"],
    );
}

#[test]
fn a_lost_store_is_told_and_does_not_hold_up_a_stop() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let options = BrokerOptions::on(fake.store_url("lost")).env(fake.env());
    let mut broker = Broker::start(options.set("shutdown.timeout.ms", 3000));
    produce_one(&broker, "before");
    assert!(
        broker.log().contains("created topic t (partitions: 1)"),
        "administration leaves a trace"
    );
    fake.set_outage(Some(Outage::Refuse));
    let address = broker.address();
    let producing = std::thread::spawn(move || {
        let mut client = Client::connect(address).unwrap();
        let values: &[Vec<u8>] = &["during".into()];
        let records = alluvium_tests::batches::batch(0, alluvium_tests::batches::Producer::NONE, values);
        kafka::produce(&mut client, "t", 0, records)
    });
    let started = std::time::Instant::now();
    let (status, why) = loop {
        let (status, body) = broker.http_get("/readyz").unwrap();
        if status != 200 {
            break (status, body);
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "it calls itself ready"
        );
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status, 503);
    assert!(why.contains("nothing answers there"), "{why}");
    let lines = |text: &str| broker.log().lines().filter(|line| line.contains(text)).count();
    while lines("cannot write to s3://") == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "no line about it");
        std::thread::sleep(Duration::from_millis(100));
    }
    let started = std::time::Instant::now();
    broker.signal("TERM");
    let ended = broker.wait_for_exit(PATIENCE);
    assert!(!ended.success(), "the log could not be closed");
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    assert!(
        broker.log().contains("shutdown.timeout.ms"),
        "it says what bounds it"
    );
    // Never told as success.
    assert!(!matches!(producing.join().unwrap(), Ok((0, _))));
    fake.set_outage(None);
    broker.launch();
    assert!(
        !kafka::read_all(broker.address(), "t", 0, PATIENCE)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn after_a_clean_stop_every_object_is_a_file_of_its_own() {
    let mut broker = Broker::start(BrokerOptions::embedded());
    produce_one(&broker, "mine");
    let wal = broker.directory().join("data/wal");
    // A small segment goes to the journal first, and would stay there alone for seconds.
    let holds =
        |files: &BTreeMap<String, Vec<u8>>| files.values().any(|f| f.windows(4).any(|w| w == b"mine"));
    assert!(
        !holds(&files(&wal)),
        "the journal is no longer in front of the files: this test tests nothing"
    );
    broker.terminate();
    assert!(holds(&files(&wal)));
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    // Not even root may create anything there.
    let output = serve("file:///proc/alluvium-data", &[]);
    assert_refused(&output, &["/proc/alluvium-data"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let output = serve(&format!("file://{}", file.display()), &[]);
    assert_refused(&output, &["file"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");
}

/// A shell in a mount namespace of its own, if this machine lets us have one.
fn in_namespace(script: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c"]);
        command
    };
    let probe = unshare().arg("mount -t tmpfs none /mnt").output();
    match probe {
        Ok(output) if output.status.success() => {
            let mut command = unshare();
            command.arg(script);
            broker::isolate(&mut command);
            Some(command)
        }
        Ok(output) => {
            println!(
                "skipped: no mount namespace: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            None
        }
        Err(error) => {
            println!("skipped: no unshare: {error}");
            None
        }
    }
}

#[test]
fn a_read_only_directory_is_refused() {
    let mut first = Broker::start(BrokerOptions::embedded());
    produce_one(&first, "kept");
    first.terminate();
    let data = first.directory().join("data");
    let before = files(&data);
    let script = r#"mount --bind "$DATA" "$DATA" && mount -o remount,ro,bind "$DATA" && exec "$BIN" serve \
        --store "file://$DATA" --listeners "PLAINTEXT://$KAFKA" --http-listen """#;
    let Some(mut command) = in_namespace(script) else {
        return;
    };
    command.env("DATA", &data).env("BIN", broker::binary());
    command.env("KAFKA", broker::free_address().to_string());
    assert_refused(&command.output().unwrap(), &["data"]);
    assert!(files(&data) == before, "a file changed");
    first.launch();
    assert_eq!(
        kafka::read_all(first.address(), "t", 0, PATIENCE).unwrap().len(),
        1
    );
}

#[test]
fn a_full_disk_loses_nothing_and_passes() {
    let kafka_address = broker::free_address();
    let directory = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=64m none "$DIR" && mkdir "$DIR/data" && exec "$BIN" serve \
        --store "file://$DIR/data" --listeners "PLAINTEXT://$KAFKA" --http-listen """#;
    let Some(mut command) = in_namespace(script) else {
        return;
    };
    command.env("DIR", directory.path()).env("BIN", broker::binary());
    command.env("KAFKA", kafka_address.to_string());
    let log_directory = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(log_directory.path().join("broker.log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = Ended(command.spawn().unwrap());
    let started = std::time::Instant::now();
    let mut client = loop {
        match Client::connect(kafka_address) {
            Ok(client) => break client,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        assert!(child.0.try_wait().unwrap().is_none(), "the broker ended");
        std::thread::sleep(Duration::from_millis(50));
    };
    kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
    let mut producer = kafka::IdempotentProducer::new(kafka_address, "t", 0).unwrap();
    // The broker's own view of its mounts; the process id stays the same through unshare and exec.
    let filler = format!("/proc/{}/root{}/filler", child.0.id(), directory.path().display());
    let value = |number: u64| {
        let mut value = format!("{number}-").into_bytes();
        value.resize(60_000, b'.');
        vec![value]
    };
    for number in 0..20 {
        producer.send(0, value(number), PATIENCE).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let filled = std::fs::write(&filler, vec![0; 64 << 20]);
    assert!(filled.is_err(), "the disk is full");
    let freed = std::thread::spawn({
        let filler = filler.clone();
        move || {
            std::thread::sleep(Duration::from_secs(5));
            std::fs::remove_file(filler)
        }
    });
    let started = std::time::Instant::now();
    for number in 20..40 {
        producer.send(0, value(number), PATIENCE).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    println!(
        "producing through a full disk took {:?}, {} retries",
        started.elapsed(),
        producer.retries()
    );
    assert!(
        started.elapsed() > Duration::from_secs(3),
        "the disk was not full"
    );
    freed.join().unwrap().unwrap();
    assert!(child.0.try_wait().unwrap().is_none(), "the broker ended");
    let records = kafka::read_all(kafka_address, "t", 0, PATIENCE).unwrap();
    kafka::check_exact(&records, &[producer.acknowledged()]).unwrap();
}

/// Ends a process with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bucket with data of a broker that has stopped.
fn used_bucket(fake: &S3Fake, prefix: &str) {
    let mut broker = Broker::start(BrokerOptions::on(fake.store_url(prefix)).env(fake.env()));
    produce_one(&broker, prefix);
    broker.terminate();
}

fn contents(fake: &S3Fake) -> BTreeMap<String, Bytes> {
    fake.objects("")
        .into_iter()
        .filter_map(|(key, _)| Some((key.clone(), fake.get(&key)?)))
        .collect()
}

#[test]
fn a_bucket_of_another_cluster_is_refused() {
    let fake = S3Fake::start(Options::default()).unwrap();
    used_bucket(&fake, "one");
    used_bucket(&fake, "two");
    // As somebody does who restores the wrong manifest.
    let manifest = fake.get("one/cluster/manifest.json").expect("a manifest");
    fake.put_raw("two/cluster/manifest.json", manifest).unwrap();
    let before = contents(&fake);
    let output = serve(&fake.store_url("two"), &fake.env());
    assert_refused(&output, &["cluster"]);
    assert_unchanged(&fake, &before);
    // The other one is as it was.
    let broker = Broker::start(BrokerOptions::on(fake.store_url("one")).env(fake.env()));
    assert_eq!(
        kafka::read_all(broker.address(), "t", 0, PATIENCE).unwrap().len(),
        1
    );
}

fn assert_unchanged(fake: &S3Fake, before: &BTreeMap<String, Bytes>) {
    let after = contents(fake);
    let changed: Vec<&String> = before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key))
        .collect();
    assert!(changed.is_empty(), "written or removed: {changed:?}");
}

/// Raises every level that a manifest names.
fn raise_levels(value: &mut serde_json::Value) -> usize {
    let serde_json::Value::Object(fields) = value else {
        return 0;
    };
    let mut raised = 0;
    for (name, value) in fields {
        match value.as_i64() {
            Some(level) if name.contains("level") => {
                *value = (level + 1_000).into();
                raised += 1;
            }
            _ => raised += raise_levels(value),
        }
    }
    raised
}

#[test]
fn a_bucket_of_a_newer_level_is_refused() {
    let fake = S3Fake::start(Options::default()).unwrap();
    used_bucket(&fake, "newer");
    let key = "newer/cluster/manifest.json";
    let original = fake.get(key).expect("a manifest");
    let mut manifest: serde_json::Value = serde_json::from_slice(&original).expect("the manifest is JSON");
    assert!(
        raise_levels(&mut manifest) > 0,
        "the manifest names its feature level"
    );
    fake.put_raw(key, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let before = contents(&fake);
    let output = serve(&fake.store_url("newer"), &fake.env());
    assert_refused(&output, &["level"]);
    assert_unchanged(&fake, &before);
    fake.put_raw(key, original).unwrap();
    let broker = Broker::start(BrokerOptions::on(fake.store_url("newer")).env(fake.env()));
    assert_eq!(
        kafka::read_all(broker.address(), "t", 0, PATIENCE).unwrap().len(),
        1
    );
}

#[test]
fn a_bucket_that_is_not_there_is_refused() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let output = serve("s3://no-such-bucket/prefix", &fake.env());
    assert_refused(&output, &["no-such-bucket"]);
}

/// Such stores exist: they would lose acknowledged records one day, so the broker refuses them on the first.
#[test]
fn a_store_that_does_not_keep_conditions_is_refused() {
    for conditions in [Conditions::Ignored, Conditions::NotAtomic] {
        let fake = S3Fake::start(Options {
            conditions,
            ..Options::default()
        })
        .unwrap();
        let output = serve(&fake.store_url("unsafe"), &fake.env());
        assert_refused(&output, &["condition"]);
        let output = broker::run(
            &["store", "check", &fake.store_url("unsafe")],
            &fake.env(),
            PATIENCE,
        );
        assert_eq!(output.status.code(), Some(1), "{conditions:?}");
    }
    let fake = S3Fake::start(Options::default()).unwrap();
    let output = broker::run(
        &["store", "check", &fake.store_url("safe")],
        &fake.env(),
        PATIENCE,
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        fake.objects("").is_empty(),
        "the probe leaves nothing behind: {:?}",
        fake.objects("")
    );
}

#[test]
fn a_bucket_that_denies_access_is_refused() {
    let fake = S3Fake::start(Options::default()).unwrap();
    fake.set_fault_texts(&["do=403"]);
    let output = serve(&fake.store_url("denied"), &fake.env());
    assert_refused(&output, &["alluvium"]);
    assert!(fake.objects("").is_empty());
}
