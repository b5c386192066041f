//! `alluvium bench`: a load generator for any Kafka broker, cheap enough on CPU not to be what is measured.
//!
//! [`super::client`] speaks the protocol, [`produce`] and [`consume`] carry the records, [`e2e`] and [`many`] are made
//! of them. [`schedule`] says when each record is to be sent, [`payload`] has batches ready, [`meter`] counts.

mod consume;
mod e2e;
mod event;
mod many;
mod meter;
mod payload;
mod produce;
mod schedule;
mod timer;

pub(super) use consume::Batches;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium_log::codec::Codec;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::client::{TopicPlan, address};
use payload::{Content, RecordPlan};

/// Times on the command line are at most this long.
const SECONDS_MAX: f64 = 1e7;

/// The kinds of load.
#[derive(Subcommand, Debug)]
pub(super) enum BenchCommand {
    /// Produce records: throughput, and latency to the acknowledgement
    Produce(produce::ProduceArgs),
    /// Consume records: throughput
    ///
    /// Without --records and --seconds it reads what the topic holds at the start. Its bytes are those of the batches
    /// as they are stored, compressed or not, without their headers.
    Consume(consume::ConsumeArgs),
    /// One producer and one tailing consumer: latency from a record's intended time to its arrival
    E2e(e2e::E2eArgs),
    /// What many clients cost: idle connections, waiting consumers, one fetch session over many partitions
    Many(many::ManyArgs),
}

pub(super) async fn run(command: BenchCommand) -> Result<(), String> {
    match command {
        BenchCommand::Produce(args) => produce::run(args).await,
        BenchCommand::Consume(args) => consume::run(args).await,
        BenchCommand::E2e(args) => e2e::run(args).await,
        BenchCommand::Many(args) => many::run(args).await,
    }
}

/// Where, for how long, and how it is told.
#[derive(clap::Args, Clone, Debug)]
struct RunArgs {
    /// Broker to begin with, plaintext; several are separated by commas
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9092",
        value_delimiter = ',',
        value_parser = address
    )]
    bootstrap: Vec<String>,
    /// Topic
    #[arg(long, value_name = "TOPIC", default_value = "bench")]
    topic: String,
    /// Partitions with which the topic is created if it does not exist [default: 1]; one that exists must have as many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: Option<i32>,
    /// Replicas with which the topic is created
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    replication_factor: i16,
    /// Setting with which the topic is created; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    topic_config: Vec<(String, String)>,
    /// Stop after so many records, those of the warm-up included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Stop so many seconds after the warm-up; without this and --records, loads that produce stop after 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Seconds at the beginning that count in no figure
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    warmup: Duration,
    /// Seconds for which brokers may be unreachable or fail before the run does
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    patience: Duration,
    /// Print one JSON object at the end and nothing else; MB are 10^6 bytes
    #[arg(long)]
    json: bool,
}

impl RunArgs {
    fn bootstrap(&self) -> Vec<Arc<str>> {
        self.bootstrap
            .iter()
            .map(|address| address.as_str().into())
            .collect()
    }

    fn topic_plan(&self, create: bool) -> TopicPlan {
        TopicPlan {
            name: self.topic.clone(),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            configs: self.topic_config.clone(),
            create,
        }
    }

    /// `--seconds`, or this if neither it nor `--records` is given.
    fn seconds_or(&self, default: Duration) -> Option<Duration> {
        match (self.seconds, self.records) {
            (None, None) => Some(default),
            (seconds, _) => seconds,
        }
    }

    /// Set at the first Ctrl-C, so that what was measured until then is told; the second ends the process.
    fn stop(&self) -> Stop {
        let stop = Stop::default();
        let set = stop.clone();
        tokio::spawn(async move {
            const INTERRUPTED: i32 = 130;
            for tries in 0..2 {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                if tries > 0 {
                    std::process::exit(INTERRUPTED);
                }
                set.set();
            }
        });
        stop
    }

    fn report(&self, report: &impl Serialize) -> Result<(), String> {
        let text = if self.json {
            serde_json::to_string(report)
        } else {
            serde_json::to_string_pretty(report).map(|json| readable(&json))
        };
        let text = text.map_err(|e| e.to_string())?;
        match writeln!(std::io::stdout(), "{text}") {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
            _ => Ok(()),
        }
    }
}

/// JSON of several lines without its punctuation.
fn readable(json: &str) -> String {
    let lines = json.lines().filter_map(|line| {
        let line = line.trim_end_matches([',', '{']).trim_end();
        let text = line.strip_prefix("  ")?.replace('"', "");
        (!text.trim().is_empty() && text.trim() != "}").then_some(text)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What the records are.
#[derive(clap::Args, Clone, Debug)]
struct RecordArgs {
    /// Bytes of each record's value
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=67_108_864))]
    record_size: u32,
    /// Values that compress to about one part in so many; 1 is random bytes, which do not compress
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    compressible: f64,
    /// Values that are JSON as services send it, cut to --record-size; zstd makes them about a quarter
    #[arg(long, conflicts_with = "compressible")]
    json_values: bool,
    /// Distinct keys, of 8 bytes each; without it keys are null. Keys do not choose partitions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keys: Option<u32>,
    /// How batches are compressed; full ones are, once, before the run
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compression: Compression,
}

impl RecordArgs {
    /// Batches of up to 1 MB.
    fn plan(&self) -> RecordPlan {
        RecordPlan {
            value_bytes: self.record_size as usize,
            content: match self.json_values {
                true => Content::Json,
                false => Content::Random(self.compressible),
            },
            keys: self.keys,
            batch_bytes: 1_000_000,
            batch_records_max: usize::MAX,
            codec: match self.compression {
                Compression::None => Codec::None,
                Compression::Gzip => Codec::Gzip,
                Compression::Snappy => Codec::Snappy,
                Compression::Lz4 => Codec::Lz4,
                Compression::Zstd => Codec::Zstd,
            },
        }
    }
}

/// As Kafka's `compression.type`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Tells all tasks of a run that it is over.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() {
        return Err("expected KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds, such as 10 or 0.5".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (1.0..=1e6).contains(&ratio) => Ok(ratio),
        _ => Err("expected 1 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_arguments() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["-1", "NaN", "inf", "1e9", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert!(ratio("0.5").is_err() && ratio("4").is_ok());
    }

    #[test]
    fn a_report_can_be_read_by_people() {
        let report = serde_json::json!({"a": 1, "b": {"c": 2.5}, "d": "x"});
        let text = readable(&serde_json::to_string_pretty(&report).unwrap());
        assert_eq!(text, "a: 1\nb:\n  c: 2.5\nd: x");
    }
}
