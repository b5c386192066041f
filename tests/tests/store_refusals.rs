//! A store that turns the broker away: no such bucket, another region, credentials that are unknown, wrong or expired,
//! a clock that is off, a call that is not allowed. At a start each is one line that says what and what to do; a broker
//! that runs serves what it can, and goes on by itself when it may again.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use alluvium_tests::batches::{Producer, batch, now_ms};
use alluvium_tests::broker::{self, Broker, BrokerOptions, free_address};
use alluvium_tests::kafka::{self, IdempotentProducer, check_exact, code, read_all};
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use kafka_wire::ApiVersionsRequest;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

const PATIENCE: Duration = Duration::from_secs(90);
/// A start that waiting cannot help ends within this time: without pauses and repetitions.
const AT_ONCE: Duration = Duration::from_secs(5);
/// What a broker needs, as it says itself where something of it is missing.
const NEEDED: &str = "a broker needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its \
                      objects, and s3:ListBucket on the bucket";

/// How long a broker that runs is turned away: short by default, 30 s where `ALLUVIUM_TEST_OUTAGE_SECONDS` asks for it.
fn length() -> Duration {
    let seconds = std::env::var("ALLUVIUM_TEST_OUTAGE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

fn fake() -> S3Fake {
    S3Fake::start(Options::default()).unwrap()
}

/// The line with which a start ends.
fn refused_start(url: &str, env: &[(String, String)]) -> String {
    let listeners = format!("PLAINTEXT://{}", free_address());
    let began = Instant::now();
    let arguments = [
        "serve",
        "--store",
        url,
        "--listeners",
        &listeners,
        "--http-listen",
        "",
    ];
    let ended = broker::run(&arguments, env, PATIENCE);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(began.elapsed() < AT_ONCE, "after {:?}: {text}", began.elapsed());
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("s3://")).collect();
    let [line] = &lines[..] else {
        panic!("not one line: {text}")
    };
    line.strip_prefix("alluvium: ")
        .unwrap_or_else(|| panic!("{line}"))
        .to_owned()
}

#[test]
fn a_start_says_in_one_line_why_it_is_turned_away_and_what_to_do() {
    let fake = fake();
    let url = fake.store_url("start");
    for (rule, what, to_do) in [
        (
            "no-bucket",
            "the bucket 'alluvium' does not exist at http://127.0.0.1:",
            "create it, or correct its name",
        ),
        (
            "expired",
            "AWS_SECRET_ACCESS_KEY have expired",
            "restart it with new ones",
        ),
        (
            "unknown-key",
            "from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not known",
            "check them",
        ),
        ("bad-signature", "does not belong to its access key", "check it"),
        (
            "redirect",
            "is in region eu-central-1, not in us-east-1",
            "set AWS_REGION=eu-central-1",
        ),
        (
            "region",
            "is in region eu-central-1, not in us-east-1",
            "set AWS_REGION=eu-central-1",
        ),
        (
            "skew",
            "the clock of this machine is 20 minutes behind the store's",
            "set it",
        ),
    ] {
        fake.set_fault_texts(&[&format!("do={rule}")]);
        let line = refused_start(&url, &fake.env());
        println!("{rule}: {line}");
        assert!(
            line.starts_with(&format!("store '{url}' cannot be used: ")),
            "{line}"
        );
        assert!(line.contains(what) && line.contains(to_do), "{rule}: {line}");
    }
    fake.set_faults(vec![]);
    let line = refused_start("s3://nope/x", &fake.env());
    assert!(
        line.contains("the bucket 'nope' does not exist at http://127.0.0.1:"),
        "{line}"
    );
    for action in [
        "s3:PutObject",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    ] {
        fake.deny(&[action]);
        let line = refused_start(&url, &fake.env());
        println!("{line}");
        let expected = format!(
            "store '{url}' cannot be used: {action} is denied: allow it to whom the credentials from "
        );
        assert!(line.starts_with(&expected) && line.contains(NEEDED), "{line}");
    }
    // As from a store that does not say what it wanted.
    fake.deny(&[]);
    fake.set_fault_texts(&["kind=delete,do=403"]);
    let line = refused_start(&url, &fake.env());
    assert!(line.contains("s3:DeleteObject is denied"), "{line}");
}

#[test]
fn commands_say_it_too() {
    let fake = fake();
    for arguments in [
        &["store", "check", "s3://nope/x"][..],
        &["cluster", "status", "s3://nope/x"],
        &["cluster", "drain", "1", "s3://nope/x"],
        &["cluster", "restore-manifest", "s3://nope/x"],
        &["inspect", "s3://nope/x"],
        &["fsck", "s3://nope/x"],
    ] {
        let ended = broker::run(arguments, &fake.env(), PATIENCE);
        let line = String::from_utf8_lossy(&ended.stderr).into_owned();
        println!("{arguments:?}: {line}");
        assert!(!ended.status.success(), "{arguments:?}: {line}");
        assert!(
            line.contains("the bucket 'nope' does not exist at http://127.0.0.1:"),
            "{arguments:?}: {line}"
        );
        assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
    }
}

/// A broker on the fake with records in topic `t` whose one producer knows what it was promised.
struct Running {
    fake: S3Fake,
    broker: Broker,
    producer: IdempotentProducer,
    sent: u64,
}

impl Running {
    fn start() -> Running {
        let fake = fake();
        let options = BrokerOptions::on(fake.store_url("running")).env(fake.env());
        Running::with(fake, options)
    }

    fn with(fake: S3Fake, options: BrokerOptions) -> Running {
        let options = options
            .set("flush.interval.ms", 10)
            .set("request.budget.per.second", 0);
        let broker = Broker::start(options);
        let mut client = Client::connect(broker.address()).unwrap();
        kafka::create_topic(&mut client, "t", 1, &[]).unwrap();
        let producer = IdempotentProducer::new(broker.address(), "t", 0).unwrap();
        let mut running = Running {
            fake,
            broker,
            producer,
            sent: 0,
        };
        running.send(20);
        running.producer.flush(PATIENCE).unwrap();
        running
    }

    /// Sends so many records, one a batch.
    fn send(&mut self, count: u64) {
        for number in self.sent..self.sent + count {
            let value = format!("record {number}").into_bytes();
            self.producer.send(now_ms(), vec![value], PATIENCE).unwrap();
        }
        self.sent += count;
    }

    /// The broker answers what needs no store, and is not restarted.
    fn is_alive(&mut self, pid: u32) {
        let mut client = Client::connect(self.broker.address()).unwrap();
        client.set_timeout(Duration::from_secs(5)).unwrap();
        client.call(&ApiVersionsRequest::default(), 0).unwrap();
        assert_eq!(self.broker.http_get("/livez").unwrap().0, 200);
        assert_eq!((self.broker.exited(), self.broker.pid()), (None, pid));
    }

    /// Records that can be read at once.
    fn readable(&self) -> usize {
        let mut client = Client::connect(self.broker.address()).unwrap();
        let fetched = kafka::fetch(&mut client, "t", 0, 0, Duration::ZERO);
        match fetched {
            Ok((code::NONE, bytes)) => alluvium_tests::batches::read(&bytes).unwrap().len(),
            _ => 0,
        }
    }

    /// Whether a record that nobody counts on can be written now.
    fn writable(&self) -> bool {
        let mut client = Client::connect(self.broker.address()).unwrap();
        client.set_timeout(Duration::from_secs(3)).unwrap();
        let records = batch(now_ms(), Producer::NONE, &[b"x".to_vec()]);
        matches!(kafka::produce(&mut client, "t", 0, records), Ok((code::NONE, _)))
    }

    /// `/readyz` says why not.
    fn unready(&self, why: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, text) = self.broker.http_get("/readyz").unwrap();
            if status == 503 && text.contains(why) {
                return;
            }
            assert!(Instant::now() < deadline, "{status}: {text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.broker.is_ready() {
            assert!(Instant::now() < deadline, "{}", self.broker.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What was promised is there, and nothing else.
    fn is_exact(&self) {
        let found = read_all(self.broker.address(), "t", 0, PATIENCE).unwrap();
        check_exact(&found, &[self.producer.acknowledged()]).unwrap();
        assert_eq!(found.len() as u64, self.sent);
    }
}

/// All calls are turned away for some time while the producer goes on.
fn turned_away(rule: &str, why: &str) {
    let mut running = Running::start();
    let pid = running.broker.pid();
    running.fake.set_fault_texts(&[&format!("do={rule}")]);
    let began = Instant::now();
    assert_eq!(
        running.readable(),
        20,
        "what is in memory is served as long as the lease lasts"
    );
    let acknowledged = running.producer.acknowledged().len();
    std::thread::scope(|scope| {
        let fake = &running.fake;
        scope.spawn(move || {
            std::thread::sleep(length());
            fake.set_faults(vec![]);
        });
        let (address, broker) = (running.broker.address(), &running.broker);
        scope.spawn(move || {
            while began.elapsed() + Duration::from_millis(1_500) < length() {
                let mut client = Client::connect(address).unwrap();
                client.set_timeout(Duration::from_secs(5)).unwrap();
                client.call(&ApiVersionsRequest::default(), 0).unwrap();
                assert_eq!(broker.http_get("/livez").unwrap().0, 200);
                std::thread::sleep(Duration::from_millis(500));
            }
            let (status, text) = broker.http_get("/readyz").unwrap();
            assert!(status == 503 && text.contains(why), "{status}: {text}");
        });
        for number in 20..30 {
            let value = format!("record {number}").into_bytes();
            running.producer.send(now_ms(), vec![value], PATIENCE).unwrap();
        }
        running.producer.flush(PATIENCE).unwrap();
    });
    running.sent = 30;
    assert!(
        began.elapsed() >= length(),
        "acknowledged while the store refused everything"
    );
    assert_eq!(running.producer.acknowledged().len(), acknowledged + 10);
    running.ready();
    running.is_alive(pid);
    running.is_exact();
    let log = running.broker.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(why)).collect();
    assert!(
        told.iter()
            .any(|line| line.contains("cannot write to s3://") && line.contains("producers wait")),
        "{log}"
    );
    assert!(told.len() <= 6, "told again and again: {told:#?}");
    running.fake.set_faults(vec![]);
    running.broker.restart();
    running.is_exact();
}

#[test]
fn credentials_that_expire_and_are_valid_again_lose_nothing() {
    turned_away("expired", "have expired");
}

#[test]
fn a_clock_that_was_off_loses_nothing() {
    turned_away("skew", "the clock of this machine is 20 minutes behind");
}

/// An object in a missing bucket is not a missing object: a stream does not end there.
#[test]
fn a_bucket_that_is_gone_for_a_while_loses_nothing() {
    turned_away("no-bucket", "the bucket 'alluvium' does not exist");
}

/// One call after the other is denied: what does not need it goes on.
#[test]
fn what_needs_no_denied_call_goes_on() {
    let mut running = Running::start();
    let pid = running.broker.pid();

    running.fake.deny(&["s3:PutObject"]);
    std::thread::scope(|scope| {
        // Nobody notices but by a write.
        let writing = scope.spawn(|| running.writable());
        running.unready("s3:PutObject is denied");
        assert_eq!(
            running.readable(),
            20,
            "ownership is proven by reading the manifest"
        );
        assert!(!writing.join().unwrap());
    });
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(running.readable(), 20, "longer than a lease");
    running.is_alive(pid);
    running.fake.deny(&[]);
    running.ready();
    // The record that nobody counts on has been written after all.
    let deadline = Instant::now() + PATIENCE;
    while running.readable() < 21 {
        assert!(Instant::now() < deadline, "{}", running.broker.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }

    running.fake.deny(&["s3:GetObject"]);
    running.unready("s3:GetObject is denied");
    assert!(running.writable(), "a write proves ownership");
    assert_eq!(running.readable(), 22);
    running.is_alive(pid);

    running.fake.deny(&["s3:ListBucket", "s3:DeleteObject"]);
    running.ready();
    for read in [23, 24] {
        assert!(running.writable());
        assert_eq!(running.readable(), read);
        std::thread::sleep(Duration::from_secs(2));
        assert!(running.broker.is_ready(), "neither is needed to serve");
    }
    running.is_alive(pid);
}

/// Files of history whose uploads fail while they may not be aborted: it is said once, and everything goes on.
#[test]
fn uploads_that_may_not_be_aborted_are_told_once() {
    const ABORT: &str = "s3:AbortMultipartUpload";
    // More than a part of an upload.
    const ROUNDS: usize = 30;
    const ROUND_BYTES: usize = 900_000;
    let fake = fake();
    let options = BrokerOptions::on(fake.store_url("running")).env(fake.env());
    let mut running = Running::with(fake, options.set("merge.interval.ms", 1_000));
    let (pid, bootstrap) = (running.broker.pid(), running.broker.address().to_string());
    running.fake.deny(&[ABORT]);
    let aborts = |running: &Running| running.fake.counts().actions[ABORT];
    let told = |running: &Running| {
        let log = running.broker.log();
        let lines = log.lines().filter(|line| {
            line.contains("an upload that was given up could not be aborted")
                && line.contains("s3:AbortMultipartUpload is denied")
        });
        lines.count()
    };
    let mut random = StdRng::seed_from_u64(1);
    for topic in ["first", "second"] {
        let mut client = Client::connect(running.broker.address()).unwrap();
        kafka::create_topic(&mut client, topic, 1, &[]).unwrap();
        for _ in 0..ROUNDS {
            let mut value = vec![0; ROUND_BYTES];
            random.fill_bytes(&mut value);
            let records = batch(now_ms(), Producer::NONE, &[value]);
            let (error, _) = kafka::produce(&mut client, topic, 0, records).unwrap();
            assert_eq!(error, code::NONE);
        }
        let before = aborts(&running);
        let rule = format!("kind=multipart,key=topic={topic}-,nth=2,do=403");
        running.fake.set_fault_texts(&[&rule]);
        let flush = [
            "archive",
            "flush",
            topic,
            "--bootstrap",
            &bootstrap,
            "--timeout",
            "0",
        ];
        let asked = broker::run(&flush, &[], PATIENCE);
        assert!(asked.status.success(), "{asked:?}");
        broker::until("the upload is given up", PATIENCE, || aborts(&running) > before);
        broker::until("it is told", PATIENCE, || told(&running) > 0);
    }
    // What came of the second abort would be in the log by now.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(told(&running), 1, "{}", running.broker.log_tail());
    running.is_alive(pid);
    assert!(running.broker.is_ready() && running.writable());
}

/// Credentials that whatever writes the shared file has renewed are taken up by a broker that runs.
#[test]
fn renewed_credentials_of_a_profile_are_taken_up() {
    let fake = fake();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("credentials");
    let write = |key: &str| {
        let text = format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    write("FIRST");
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let mut env = fake.env();
    env.retain(|(name, _)| !keys.contains(&name.as_str()));
    env.push((
        "AWS_SHARED_CREDENTIALS_FILE".to_owned(),
        file.display().to_string(),
    ));
    env.push((
        "AWS_CONFIG_FILE".to_owned(),
        files.path().join("none").display().to_string(),
    ));
    let options = BrokerOptions::on(fake.store_url("running")).env(env);
    let mut running = Running::with(fake, options);
    let pid = running.broker.pid();

    running.fake.expire_keys(&["FIRST"]);
    running.unready("the credentials from profile 'default' have expired: renew them (`aws sso login`, ");
    write("SECOND");
    running.ready();
    running.send(5);
    running.producer.flush(PATIENCE).unwrap();
    running.is_alive(pid);
    running.is_exact();
}
