//! The load generators: how each is called and how its answer is read.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::Tools;
use crate::broker::isolate;

/// Bytes of a record's value everywhere.
pub(crate) const RECORD_BYTES: u64 = 1024;
/// Distinct records of the Java producer.
const PAYLOADS: usize = 2_000;

/// One load generator, ready to start.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) command: Command,
    /// The command as the page shows it.
    pub(crate) shown: String,
    pub(crate) reads: Reads,
}

/// The form of what a load generator prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// One JSON object on the last line: `alluvium bench --json` and ours on librdkafka.
    Json,
    /// Kafka's ProducerPerformance.
    JavaProducer,
    /// Kafka's ConsumerPerformance.
    JavaConsumer,
    /// Words for people; how long it took is what was measured.
    Nothing,
}

/// What a load generator measured, as `alluvium bench --json` names it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome(pub(crate) Value);

impl Outcome {
    /// A number, by its path such as `latency_ms.p99`.
    pub(crate) fn number(&self, path: &str) -> Option<f64> {
        let found = path.split('.').try_fold(&self.0, |value, name| value.get(name))?;
        found.as_f64()
    }

    /// Bytes of records that went through.
    pub(crate) fn bytes(&self) -> f64 {
        self.number("bytes").unwrap_or(0.0)
    }

    /// Time of the work as the client counted it.
    pub(crate) fn seconds(&self) -> f64 {
        self.number("seconds").unwrap_or(0.0)
    }
}

/// Which load generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `alluvium bench`.
    Bench,
    /// Kafka's own, with its settings as they come.
    Java,
    /// Kafka's own with batches of 1 MiB, which its users choose for throughput.
    JavaBatches,
    /// librdkafka.
    Rdkafka,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bench => "alluvium bench",
            Kind::Java => "Java",
            Kind::JavaBatches => "Java, batch.size=1048576",
            Kind::Rdkafka => "librdkafka",
        }
    }
}

/// Work of producers without a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Produce<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partitions: u32,
    pub(crate) producers: u32,
    pub(crate) idempotent: bool,
    pub(crate) records: u64,
}

/// `alluvium bench VERB` with these further arguments.
pub(crate) fn bench(tools: &Tools, verb: &str, broker: SocketAddr, arguments: &[String]) -> Client {
    let mut command = Command::new(&tools.alluvium);
    isolate(&mut command);
    let mut words = vec!["bench".to_owned(), verb.to_owned()];
    words.extend(["--bootstrap".to_owned(), broker.to_string()]);
    words.extend(arguments.iter().cloned());
    words.push("--json".to_owned());
    client(command, "alluvium", words, broker, Reads::Json)
}

/// `alluvium archive flush`.
pub(crate) fn archive_flush(tools: &Tools, broker: SocketAddr, topic: &str) -> Client {
    let mut command = Command::new(&tools.alluvium);
    isolate(&mut command);
    let line = words(&format!("archive flush {topic} --bootstrap {broker}"));
    client(command, "alluvium", line, broker, Reads::Nothing)
}

/// Words of a command line, separated by blanks.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Producers as fast as they can.
pub(crate) fn produce(
    tools: &Tools,
    kind: Kind,
    broker: SocketAddr,
    work: Produce<'_>,
) -> Result<Client, String> {
    let Produce {
        topic,
        partitions,
        producers,
        idempotent,
        records,
    } = work;
    match kind {
        Kind::Bench => {
            let line = format!(
                "--topic {topic} --partitions {partitions} --producers {producers} --idempotent {idempotent} \
                 --record-size {RECORD_BYTES} --records {records}"
            );
            Ok(bench(tools, "produce", broker, &words(&line)))
        }
        Kind::Java | Kind::JavaBatches => {
            let payloads = payload_file(tools)?;
            let mut line = format!(
                "--topic {topic} --num-records {records} --throughput -1 --payload-file {} --producer-props \
                 bootstrap.servers={broker} acks=all enable.idempotence={idempotent}",
                payloads.display()
            );
            if kind == Kind::JavaBatches {
                // A batch of a full MiB and its header must still fit into a request.
                line.push_str(" batch.size=1048576 max.request.size=8388608 buffer.memory=134217728");
            }
            let tool = "org.apache.kafka.tools.ProducerPerformance";
            Ok(java(tools, tool, &line, broker, Reads::JavaProducer))
        }
        Kind::Rdkafka => {
            let line = format!(
                "produce {broker} {topic} {partitions} {records} {RECORD_BYTES} enable.idempotence={idempotent}"
            );
            Ok(rdkafka(tools, &line, broker))
        }
    }
}

/// One consumer from the beginning to the end.
pub(crate) fn consume(
    tools: &Tools,
    kind: Kind,
    broker: SocketAddr,
    topic: &str,
    partitions: u32,
    records: u64,
) -> Client {
    match kind {
        Kind::Bench => {
            let line = format!("--topic {topic} --partitions {partitions} --from beginning");
            bench(tools, "consume", broker, &words(&line))
        }
        Kind::Java | Kind::JavaBatches => {
            let line = format!(
                "--bootstrap-server {broker} --topic {topic} --messages {records} --timeout 60000 --group {topic}-{}",
                uuid::Uuid::new_v4().simple()
            );
            let tool = "org.apache.kafka.tools.ConsumerPerformance";
            java(tools, tool, &line, broker, Reads::JavaConsumer)
        }
        Kind::Rdkafka => {
            let line = format!("consume {broker} {topic} {partitions} {records} {RECORD_BYTES}");
            rdkafka(tools, &line, broker)
        }
    }
}

/// One producer and one consumer of one partition, which must exist.
pub(crate) fn end_to_end(
    tools: &Tools,
    kind: Kind,
    broker: SocketAddr,
    topic: &str,
    rate: u32,
    seconds: u64,
) -> Client {
    match kind {
        Kind::Bench => {
            let line =
                format!("--topic {topic} --rate {rate} --seconds {seconds} --record-size {RECORD_BYTES}");
            bench(tools, "e2e", broker, &words(&line))
        }
        _ => {
            let line =
                format!("e2e {broker} {topic} {rate} {seconds} {RECORD_BYTES} enable.idempotence=true");
            rdkafka(tools, &line, broker)
        }
    }
}

/// librdkafka with all settings at their defaults, at a steady rate to all partitions in turn; it also tells the
/// longest time in which each partition acknowledged nothing.
pub(crate) fn pace(tools: &Tools, brokers: &[SocketAddr], topic: &str, rate: u32, seconds: u64) -> Client {
    let rest = format!("{topic} {rate} {seconds} {RECORD_BYTES}");
    let bootstrap: Vec<String> = brokers.iter().map(ToString::to_string).collect();
    let mut command = Command::new(&tools.rdkafka);
    command.args(["pace", &bootstrap.join(",")]).args(rest.split(' '));
    Client {
        command,
        shown: format!("rdkafka pace $BROKERS {rest}"),
        reads: Reads::Json,
    }
}

fn rdkafka(tools: &Tools, line: &str, broker: SocketAddr) -> Client {
    client(
        Command::new(&tools.rdkafka),
        "rdkafka",
        words(line),
        broker,
        Reads::Json,
    )
}

fn java(tools: &Tools, tool: &str, line: &str, broker: SocketAddr, reads: Reads) -> Client {
    let mut command = Command::new("java");
    // As Kafka's scripts start their tools.
    command.args(["-Xmx512M", "-cp", &tools.kafka_jars()]);
    command.arg(tool);
    let name = tool.rsplit('.').next().unwrap_or(tool);
    client(command, name, words(line), broker, reads)
}

fn client(mut command: Command, name: &str, words: Vec<String>, broker: SocketAddr, reads: Reads) -> Client {
    command.args(&words);
    Client {
        shown: shown(name, &words, broker),
        command,
        reads,
    }
}

/// The command without what differs from run to run.
fn shown(name: &str, words: &[String], broker: SocketAddr) -> String {
    let mut line = name.to_owned();
    for word in words {
        let word = word.replace(&broker.to_string(), "$BROKER");
        let path = Path::new(&word);
        let word = match path.file_name() {
            Some(file) if path.is_absolute() => file.to_string_lossy().into_owned(),
            _ => word,
        };
        let _ = write!(line, " {word}");
    }
    line
}

/// A file with random records, made once. Making each record anew, as the Java producer otherwise does, would
/// cost it more time than sending it.
fn payload_file(tools: &Tools) -> Result<PathBuf, String> {
    let path = tools.directory.join("payloads.txt");
    if path.exists() {
        return Ok(path);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let mut text = Vec::with_capacity(PAYLOADS * (RECORD_BYTES as usize + 1));
    for _ in 0..PAYLOADS {
        text.extend((0..RECORD_BYTES).map(|_| random.random_range(b'A'..=b'z')));
        text.push(b'\n');
    }
    let unfinished = path.with_extension("part");
    let mut file = std::fs::File::create(&unfinished).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    std::fs::rename(&unfinished, &path).map_err(failed)?;
    Ok(path)
}

impl Reads {
    /// What the client measured, from everything that it printed.
    pub(crate) fn read(self, output: &str) -> Result<Outcome, String> {
        let read = match self {
            Reads::Json => {
                let last = output.lines().rev().find(|line| line.starts_with('{'));
                let text = last.unwrap_or_else(|| output.trim());
                return serde_json::from_str(text)
                    .map(Outcome)
                    .map_err(|error| format!("{error} in {output:?}"));
            }
            Reads::JavaProducer => java_producer(output),
            Reads::JavaConsumer => java_consumer(output),
            Reads::Nothing => return Ok(Outcome::default()),
        };
        read.map(Outcome)
            .ok_or_else(|| format!("not understood: {output:?}"))
    }
}

/// `N records sent, R records/sec (M MB/sec), A ms avg latency, X ms max latency, P ms 50th, ...`
fn java_producer(output: &str) -> Option<Value> {
    // Progress lines have no percentiles.
    let line = output
        .lines()
        .rev()
        .find(|line| line.contains("records sent") && line.contains("99.9th"))?;
    let before = |unit: &str| -> Option<f64> {
        let (head, _) = line.split_once(unit)?;
        head.rsplit([' ', '(']).next()?.parse().ok()
    };
    let records = before(" records sent")?;
    let rate = before(" records/sec")?;
    Some(json!({
        "kind": "produce",
        "records": records,
        "bytes": records * RECORD_BYTES as f64,
        "seconds": records / rate,
        "records_per_second": rate,
        "latency_ms": {
            "mean": before(" ms avg")?, "max": before(" ms max")?, "p50": before(" ms 50th")?,
            "p95": before(" ms 95th")?, "p99": before(" ms 99th")?, "p999": before(" ms 99.9th")?,
        },
    }))
}

/// A line of headings and one of values. The time of joining the group is not counted, as with the others.
fn java_consumer(output: &str) -> Option<Value> {
    let mut lines = output.lines().skip_while(|line| !line.starts_with("start.time"));
    let headings: Vec<&str> = lines.next()?.split(", ").map(str::trim).collect();
    let values = lines
        .map(|line| line.split(", ").map(str::trim).collect::<Vec<_>>())
        .find(|values| values.len() == headings.len())?;
    let value = |name: &str| -> Option<f64> {
        let at = headings.iter().position(|heading| *heading == name)?;
        values.get(at)?.parse().ok()
    };
    let records = value("data.consumed.in.nMsg")?;
    let seconds = value("fetch.time.ms")? / 1_000.0;
    Some(json!({
        "kind": "consume",
        "records": records,
        "bytes": value("data.consumed.in.MB")? * 1024.0 * 1024.0,
        "seconds": seconds,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_java_producer() {
        let output = "4411 records sent, 882.2 records/sec (0.86 MB/sec), 2406.8 ms avg latency, 3740.0 ms max latency.\n\
            20000 records sent, 2000.0 records/sec (1.95 MB/sec), 51.20 ms avg latency, 834.00 ms max latency, \
            57 ms 50th, 70 ms 95th, 82 ms 99th, 83 ms 99.9th.\n";
        let outcome = Reads::JavaProducer.read(output).unwrap();
        assert_eq!(outcome.number("records"), Some(20_000.0));
        assert_eq!(outcome.bytes(), 20_480_000.0);
        assert_eq!(outcome.seconds(), 10.0);
        assert_eq!(outcome.number("latency_ms.p50"), Some(57.0));
        assert_eq!(outcome.number("latency_ms.p999"), Some(83.0));
        assert_eq!(outcome.number("latency_ms.max"), Some(834.0));
        assert!(
            Reads::JavaProducer
                .read("org.apache.kafka.common.KafkaException")
                .is_err()
        );
    }

    #[test]
    fn reads_the_java_consumer() {
        let output = "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, \
            rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec\n\
            WARNING: Exiting, early\n\
            2026-11-22 21:42:35:838, 2026-11-22 21:42:53:904, 2.0, 0.7062, 2048, 723.1817, 7537, 10500, 1.2118, 1240.8586\n";
        let outcome = Reads::JavaConsumer.read(output).unwrap();
        assert_eq!(outcome.number("records"), Some(2_048.0));
        assert_eq!(outcome.bytes(), 2_097_152.0);
        assert_eq!(outcome.seconds(), 10.5);
        assert!(Reads::JavaConsumer.read("start.time, end.time\n").is_err());
    }

    #[test]
    fn reads_json_behind_other_lines() {
        let outcome = Reads::Json
            .read("a warning\n{\"bytes\": 5, \"latency_ms\": {\"p99\": 1.5}}\n")
            .unwrap();
        assert_eq!(outcome.bytes(), 5.0);
        assert_eq!(outcome.number("latency_ms.p99"), Some(1.5));
        assert_eq!(outcome.number("latency_ms.p50"), None);
        assert!(Reads::Json.read("").is_err());
    }

    #[test]
    fn shows_commands_without_what_differs() {
        let broker = "127.0.0.1:12345".parse().unwrap();
        let line = words("produce 127.0.0.1:12345 --payload-file /x/y/payloads.txt a=127.0.0.1:12345");
        assert_eq!(
            shown("rdkafka", &line, broker),
            "rdkafka produce $BROKER --payload-file payloads.txt a=$BROKER"
        );
    }
}
