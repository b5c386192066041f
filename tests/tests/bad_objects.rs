//! Objects of the bucket that are damaged, cut short or from the future: a broker that starts there refuses them, or
//! serves what is not hurt; it says which object and why, and it never overwrites it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alluvium_tests::batches::{Producer, batch};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::kafka::{self, read_all};
use alluvium_tests::s3_fake::{Options, S3Fake};
use alluvium_tests::wire::Client;
use bytes::Bytes;

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "t";

/// A bucket that a broker left behind when it was killed: a checkpoint, and segments behind it.
struct Bucket {
    fake: S3Fake,
    contents: BTreeMap<String, Bytes>,
    values: Vec<String>,
}

/// What became of a start.
#[derive(Debug)]
enum Started {
    /// It ended, or will serve nothing, and said this.
    Refused(String),
    /// It serves everything as it was.
    Whole,
    /// It serves, but not this topic, and said this.
    Quarantined(String),
}

/// The same broker each time: another one would wait before it takes the dead one's log.
fn options(fake: &S3Fake) -> BrokerOptions {
    BrokerOptions::on(fake.store_url("bad"))
        .env(fake.env())
        .set("node.id", 1)
}

impl Bucket {
    fn new() -> Bucket {
        let fake = S3Fake::start(Options::default()).unwrap();
        let mut broker = Broker::start(options(&fake));
        let mut values = Vec::new();
        // Records of another time would be removed by retention.
        let now = chrono::Utc::now().timestamp_millis();
        let mut produce = |broker: &Broker, count: usize| {
            let mut client = Client::connect(broker.address()).unwrap();
            kafka::create_topic(&mut client, TOPIC, 1, &[]).unwrap();
            for _ in 0..count {
                let value = format!("value {}", values.len());
                let records = batch(now, Producer::NONE, &[value.clone().into_bytes()]);
                assert_eq!(kafka::produce(&mut client, TOPIC, 0, records).unwrap().0, 0);
                values.push(value);
            }
        };
        produce(&broker, 3);
        broker.terminate();
        broker.launch();
        produce(&broker, 3);
        broker.kill_9();
        let mut bucket = Bucket {
            fake,
            contents: BTreeMap::new(),
            values,
        };
        bucket.contents = bucket.now();
        bucket
    }

    fn now(&self) -> BTreeMap<String, Bytes> {
        let keys = self.fake.objects("").into_iter();
        keys.filter_map(|(key, _)| Some((key.clone(), self.fake.get(&key)?)))
            .collect()
    }

    /// Makes the bucket again what it was.
    fn restore(&self) {
        for key in self.now().keys() {
            self.fake.remove(key);
        }
        for (key, bytes) in &self.contents {
            self.fake.put_raw(key, bytes.clone()).unwrap();
        }
    }

    /// The last key of those that contain this part, which is of the newest stream.
    fn last(&self, part: &str) -> String {
        let stream = |key: &str| -> u64 {
            let name = key.split('/').nth(2).unwrap_or_default();
            name.rsplit('-')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        let found = self.contents.keys().filter(|key| key.contains(part));
        found
            .max_by_key(|key| (stream(key), key.to_string()))
            .unwrap()
            .clone()
    }

    /// Its newest segment.
    fn last_segment(&self) -> String {
        let head = self.last("head.json");
        let stream = head.strip_suffix("head.json").unwrap();
        let segments = self.contents.keys().filter(|key| {
            key.strip_prefix(stream)
                .is_some_and(|name| name.chars().all(|c| c.is_ascii_digit()))
        });
        segments.max().unwrap().clone()
    }

    /// Starts a broker on the bucket with this object instead of its own.
    fn start_with(&self, key: &str, damaged: &[u8]) -> Started {
        self.restore();
        self.fake.put_raw(key, damaged.to_vec()).unwrap();
        let mut broker = Broker::prepare(options(&self.fake));
        broker.spawn();
        let started = self.watch(&mut broker, key);
        broker.kill_9();
        assert!(!broker.log().contains("panicked"), "{}", broker.log_tail());
        assert_eq!(
            self.fake.get(key).as_deref(),
            Some(damaged),
            "{key} was overwritten\n{}",
            broker.log_tail()
        );
        started
    }

    fn watch(&self, broker: &mut Broker, key: &str) -> Started {
        let begun = Instant::now();
        let mut readable = None;
        let name = key.strip_prefix("bad/").unwrap_or(key);
        loop {
            let log = broker.log();
            let names = |line: &&str| line.contains(name) && !line.contains(" INFO ");
            let line = log.lines().rfind(names).map(str::to_owned);
            if broker.exited().is_some() {
                return Started::Refused(line.unwrap_or_else(|| panic!("{key} is not named\n{log}")));
            }
            if broker.is_ready() {
                match read_all(broker.address(), TOPIC, 0, Duration::from_secs(2)) {
                    Ok(records) => {
                        let values: Vec<_> = records.iter().map(|record| record.value.clone()).collect();
                        assert_eq!(values, self.values, "with {key} damaged\n{log}");
                        return Started::Whole;
                    }
                    Err(error) => readable = Some(error),
                }
                if let Some(line) = line {
                    return Started::Quarantined(line);
                }
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "with {key} damaged the broker neither serves ({readable:?}) nor says why\n{log}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// It does not believe the object, and says why in one of these words.
    fn assert_told(&self, key: &str, damaged: &[u8], words: &[&str]) {
        match self.start_with(key, damaged) {
            Started::Refused(line) | Started::Quarantined(line) => {
                println!("{line}");
                let lower = line.to_lowercase();
                assert!(words.iter().any(|word| lower.contains(word)), "{words:?}: {line}");
            }
            Started::Whole => panic!("{key} was believed"),
        }
    }

    /// With the object as it was, everything is there.
    fn assert_whole(&self) {
        let key = self.last("cluster/manifest.json");
        let started = self.start_with_own(&key);
        assert!(matches!(started, Started::Whole), "{started:?}");
    }

    fn start_with_own(&self, key: &str) -> Started {
        self.restore();
        let mut broker = Broker::prepare(options(&self.fake));
        broker.spawn();
        let started = self.watch(&mut broker, key);
        broker.kill_9();
        started
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// Where the last digit of this JSON member stands.
fn digit_of(bytes: &[u8], member: &str) -> usize {
    let text = std::str::from_utf8(bytes).unwrap();
    let from = text.find(&format!("\"{member}\":")).unwrap() + member.len() + 3;
    let digits = text[from..].chars().take_while(char::is_ascii_digit).count();
    assert!(digits > 0, "{member} is no number in {text}");
    from + digits - 1
}

/// As a newer version would write it.
fn from_the_future(bytes: &[u8]) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    json["format"]["major"] = 9.into();
    json["format"]["incompatible"] = serde_json::json!(["time-travel"]);
    serde_json::to_vec(&json).unwrap()
}

/// What a newer version may write into a binary object that this one must not read, each by itself: another major
/// version, a feature that readers must know, at both ends of the object, and an index of another form. Everything is
/// whole: checksums fit.
fn binary_from_the_future(bytes: &[u8]) -> Vec<Vec<u8>> {
    const PREAMBLE: usize = 40;
    const TRAILER: usize = 40;
    let put = |object: &mut [u8], at: usize, value: u32| {
        object[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    let sealed = |mut object: Vec<u8>| {
        let sum = crc32c::crc32c(&object[..PREAMBLE - 4]);
        put(&mut object, PREAMBLE - 4, sum);
        object
    };
    let trailer = bytes.len() - TRAILER;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let place = |at: usize| usize::try_from(number(at)).unwrap();
    let (index, length) = (place(trailer), place(trailer + 8));

    let mut major = bytes.to_vec();
    major[9] = 9;
    let mut feature = bytes.to_vec();
    feature[16] |= 0x20;
    let mut by_suffix = bytes.to_vec();
    by_suffix[trailer + 21] |= 0x20;
    let mut form = bytes.to_vec();
    form[index] = 9;
    let sum = crc32c::crc32c(&form[index..index + length]);
    put(&mut form, trailer + 16, sum);
    vec![sealed(major), sealed(feature), by_suffix, form]
}

#[test]
fn binary_objects_from_the_future_are_not_read() {
    let bucket = Bucket::new();
    for key in [bucket.last("/checkpoint/"), bucket.last_segment()] {
        for newer in binary_from_the_future(&bucket.contents[&key]) {
            bucket.assert_told(&key, &newer, &["written by a newer version"]);
        }
    }
    bucket.assert_whole();
}

#[test]
fn json_objects_are_not_believed_when_they_are_damaged() {
    let bucket = Bucket::new();
    for (key, member) in [
        (bucket.last("cluster/manifest.json"), "next_incarnation"),
        (bucket.last("head.json"), "floor"),
    ] {
        let whole = &bucket.contents[&key];
        let invalid = ["not a valid", "checksum"];
        bucket.assert_told(&key, &flipped(whole, digit_of(whole, member)), &["checksum"]);
        bucket.assert_told(&key, &flipped(whole, 0), &invalid);
        bucket.assert_told(&key, &whole[..whole.len() / 2], &invalid);
        bucket.assert_told(&key, b"", &invalid);
        bucket.assert_told(&key, &from_the_future(whole), &["newer version"]);
    }
    bucket.assert_whole();
}

#[test]
fn binary_objects_are_not_believed_when_they_are_damaged() {
    let bucket = Bucket::new();
    for key in [bucket.last("/checkpoint/"), bucket.last_segment()] {
        let whole = &bucket.contents[&key];
        let words = ["checksum", "cut short", "not an alluvium", "invalid"];
        // The index lies in front of the trailer of 40 bytes.
        bucket.assert_told(&key, &flipped(whole, whole.len() - 45), &words);
        bucket.assert_told(&key, &flipped(whole, whole.len() - 3), &words);
        bucket.assert_told(&key, &whole[..whole.len() / 2], &words);
        bucket.assert_told(&key, &[whole, &b"more"[..]].concat(), &words);
        bucket.assert_told(&key, b"", &words);
    }
    bucket.assert_whole();
}

/// Wherever a bit is wrong: what a consumer gets is right, or it gets an error.
#[test]
fn a_flipped_bit_never_reaches_a_consumer() {
    let bucket = Bucket::new();
    for key in [bucket.last("/checkpoint/"), bucket.last_segment()] {
        let whole = &bucket.contents[&key];
        for part in 1..8 {
            let at = whole.len() * part / 8;
            println!(
                "{key}, byte {at}: {:?}",
                bucket.start_with(&key, &flipped(whole, at))
            );
        }
    }
}

fn refused(arguments: &[&str], env: &[(String, String)]) -> String {
    let output = broker::run(arguments, env, PATIENCE);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_node_id_that_is_no_number_is_refused() {
    for id in ["abc", "1.5", "-3", "99999999999", ""] {
        let setting = format!("node.id={id}");
        let line = refused(&["serve", "--store", "memory://", "--set", &setting], &[]);
        assert!(
            line.contains("node.id") && line.contains("whole number"),
            "{id}: {line}"
        );
    }
}

#[test]
fn a_clock_that_is_too_wrong_for_the_store_is_named_at_the_start() {
    let fake = S3Fake::start(Options::default()).unwrap();
    fake.set_fault_texts(&["do=skew"]);
    let listeners = format!("PLAINTEXT://{}", broker::free_address());
    let store = fake.store_url("skewed");
    let arguments = [
        "serve",
        "--store",
        &store,
        "--listeners",
        &listeners,
        "--http-listen",
        "",
    ];
    let line = refused(&arguments, &fake.env());
    assert!(line.contains("clock of this machine"), "{line}");
    assert!(fake.objects("").is_empty());
}

#[test]
fn several_brokers_that_advertise_this_machine_are_warned_about() {
    let fake = S3Fake::start(Options::default()).unwrap();
    let options = || BrokerOptions::on(fake.store_url("loopback")).env(fake.env());
    let first = Broker::start(options().set("node.id", 1));
    assert!(
        !first.log().contains("advertised.listeners"),
        "alone, it may be so"
    );
    let second = Broker::start(options().set("node.id", 2));
    let begun = Instant::now();
    while !second
        .log()
        .contains("set advertised.listeners to an address that the others can reach")
    {
        assert!(begun.elapsed() < PATIENCE, "{}", second.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    }
}
