//! What a topic becomes, as Apache Spark sees it: every record of it, in columns of the types that `docs/analytics.md`
//! names, by each of Spark's two readers of Parquet, the checksums of pages verified. `tests/spark/run.sh` runs it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use alluvium_log::batch::BatchBuilder;
use alluvium_log::codec::Codec;
use alluvium_tests::batches::{Producer, batch, now_ms};
use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::installed::{Missing, root, spark_missing};
use alluvium_tests::kafka::{self, code};
use alluvium_tests::wire::Client;
use base64::Engine;
use serde::Deserialize;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);
const BASE_MS: i64 = 1_700_000_000_000;
/// Records of a topic with something of everything: more than a page of any column holds.
const RECORDS: i64 = 3_000;
/// Records of each partition of a topic that fills several pages of its offsets (16,384 in each).
const MANY: i64 = 40_000;

/// An answer of `run.sh --json`.
#[derive(Debug, Deserialize)]
struct Answer {
    rows: Vec<Value>,
    scanned: i64,
    columnar: bool,
}

fn spark(statements: &str) -> Vec<Answer> {
    let mut child = Command::new(root().join("tests/spark/run.sh"))
        .arg("--json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run.sh runs");
    let mut input = child.stdin.take().unwrap();
    input.write_all(statements.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// As Spark writes binary values in JSON.
fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn send(client: &mut Client, topic: &str, partition: i32, batch: Vec<u8>) {
    let (error, _) = kafka::produce(client, topic, partition, batch).unwrap();
    assert_eq!(error, code::NONE);
}

/// Produces records with something of everything, and returns the rows that they must be.
fn produce(client: &mut Client, topic: &str, text: bool) -> Vec<Value> {
    let mut rows = vec![];
    for base in (0..RECORDS).step_by(500) {
        let mut builder = BatchBuilder::new();
        for n in base..base + 500 {
            let key = format!("key {n}").into_bytes();
            let key = [Some(&key[..]), None, Some(b"")][n as usize % 3];
            let mut value = format!("value é {n} ").repeat(n as usize % 20).into_bytes();
            if !text {
                value.extend([0, 0xff]);
            }
            let value = (n % 7 != 0).then_some(&value[..]);
            let number = n.to_string();
            let headers: &[(&[u8], Option<&[u8]>)] = match n % 4 {
                0 => &[],
                1 => &[(b"row", Some(number.as_bytes()))],
                _ => &[
                    (b"row", Some(number.as_bytes())),
                    ("ü".as_bytes(), None),
                    (b"row", Some(b"")),
                    (b"row", Some(b"\xff")),
                ],
            };
            // -1 says that a record has none.
            let timestamp = if n % 5 == 4 { -1 } else { BASE_MS + n };
            builder.push(timestamp, key, value, headers);
            let of_value = |value: &[u8]| match text {
                true => String::from_utf8(value.to_vec()).unwrap(),
                false => base64(value),
            };
            let headers = headers.iter().map(|(key, value)| {
                let key = std::str::from_utf8(key).unwrap();
                json!({"key": key, "value": value.map(base64)})
            });
            rows.push(json!({
                "partition": 0,
                "offset": n,
                "us": (timestamp >= 0).then_some(timestamp * 1_000),
                "leader_epoch": 1,
                "key": key.map(base64),
                "headers": headers.collect::<Vec<_>>(),
                "value": value.map(of_value),
                "log_append_time": false,
            }));
        }
        let batch = builder.build_with(Codec::Zstd).unwrap().bytes().to_vec();
        send(client, topic, 0, batch);
    }
    rows
}

#[test]
fn spark_sees_every_record_by_both_of_its_readers() {
    if !Missing::from_environment().goes_on(spark_missing()) {
        return;
    }
    // The records are of 2023.
    let options = BrokerOptions::embedded().set("log.retention.ms", -1);
    let broker = Broker::start(options);
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, "bytes", 1, &[]).unwrap();
    kafka::create_topic(&mut client, "text", 1, &[("archive.value.type", "string")]).unwrap();
    kafka::create_topic(&mut client, "many", 2, &[]).unwrap();
    let expected = [
        produce(&mut client, "bytes", false),
        produce(&mut client, "text", true),
    ];
    for partition in 0..2 {
        for base in (0..MANY).step_by(4_000) {
            let values: Vec<Vec<u8>> = (base..base + 4_000).map(|n| n.to_string().into_bytes()).collect();
            send(
                &mut client,
                "many",
                partition,
                batch(now_ms(), Producer::NONE, &values),
            );
        }
    }
    let bootstrap = broker.address().to_string();
    for topic in ["bytes", "text", "many"] {
        let arguments = ["archive", "flush", topic, "--bootstrap", &bootstrap];
        let done = broker::run(&arguments, &[], PATIENCE);
        assert!(done.status.success(), "{done:?}");
    }

    let archive = broker.directory().join("data/archive");
    let archive = archive.display();
    let mut statements = "SET `parquet.page.verify-checksum.enabled`=true;\n".to_owned();
    for topic in ["bytes", "text", "many"] {
        statements += &format!(
            "CREATE TEMPORARY VIEW {topic} USING parquet
             OPTIONS (path '{archive}/topic={topic}-*', basePath '{archive}');\n"
        );
    }
    statements += "DESCRIBE bytes;\nDESCRIBE text;\n";
    for vectorized in [true, false] {
        statements += &format!("SET spark.sql.parquet.enableVectorizedReader={vectorized};\n");
        for topic in ["bytes", "text"] {
            statements += &format!(
                "SELECT partition, offset, unix_micros(timestamp) AS us, leader_epoch, key, headers, value, log_append_time
                 FROM {topic} WHERE topic LIKE '{topic}-%' ORDER BY partition, offset;\n"
            );
        }
        statements +=
            "SELECT count(*) AS n, min(offset) AS first, max(cast(cast(value AS string) AS bigint)) AS last
                       FROM many WHERE partition = 1 AND offset >= 35000;\n";
    }
    let answers = spark(&statements);
    let [bytes, text, answers @ ..] = &answers[..] else {
        panic!("{answers:?}");
    };

    for (columns, value) in [(bytes, "binary"), (text, "string")] {
        let found: Vec<(&str, &str)> = columns
            .rows
            .iter()
            .map(|row| {
                (
                    row["col_name"].as_str().unwrap(),
                    row["data_type"].as_str().unwrap(),
                )
            })
            .take(10)
            .collect();
        let expected = [
            ("partition", "int"),
            ("offset", "bigint"),
            ("timestamp", "timestamp"),
            ("append_time", "timestamp"),
            ("leader_epoch", "int"),
            ("key", "binary"),
            ("headers", "array<struct<key:string,value:binary>>"),
            ("value", value),
            ("log_append_time", "boolean"),
            ("topic", "string"),
        ];
        assert_eq!(found, expected);
    }
    assert_eq!(answers.len(), 6);
    for (answers, columnar) in answers.chunks(3).zip([true, false]) {
        for (answer, expected) in answers.iter().zip(&expected) {
            for (found, expected) in answer.rows.iter().zip(expected) {
                assert_eq!(found, expected);
            }
            assert_eq!(answer.rows.len(), expected.len());
        }
        assert!(answers.iter().all(|answer| answer.columnar == columnar));
        let late = &answers[2];
        assert_eq!(late.rows, [json!({"n": 5_000, "first": 35_000, "last": 39_999})]);
        // Of 80,000: a page or two of offsets.
        assert!(
            (5_000..=2 * 16_384).contains(&late.scanned),
            "{} rows were read",
            late.scanned
        );
    }
}
