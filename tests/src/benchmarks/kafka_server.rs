//! Apache Kafka on one node, as its own scripts start it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use kafka_wire::{DeleteTopicsRequest, MetadataRequest};

use super::Tools;
use super::alluvium::{bytes_below, remove};
use super::process::{Process, tail_of};
use crate::broker::free_address;
use crate::kafka::{code, create_topic, list_offset};
use crate::wire::Client;

const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Until the files of a deleted topic are gone.
const DELETE_PATIENCE: Duration = Duration::from_secs(60);
/// What `kafka-server-start.sh` and `kafka-run-class.sh` give the virtual machine.
const JVM: [&str; 7] = [
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];
/// What the distribution's `config/server.properties` sets beside addresses and directories. The last line is
/// ours: deleted topics leave the disk at once instead of after a minute.
const PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
num.network.threads=3
num.io.threads=8
socket.send.buffer.bytes=102400
socket.receive.buffer.bytes=102400
socket.request.max.bytes=104857600
num.partitions=1
num.recovery.threads.per.data.dir=1
offsets.topic.replication.factor=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
log.retention.hours=168
log.segment.bytes=1073741824
log.retention.check.interval.ms=300000
log.segment.delete.delay.ms=1000
";

/// A running Kafka. Its data goes with it.
#[derive(Debug)]
pub(crate) struct KafkaServer {
    process: Option<Process>,
    address: SocketAddr,
    directory: PathBuf,
}

impl KafkaServer {
    /// Formats a directory, starts the broker and waits until it answers.
    pub(crate) fn start(tools: &Tools) -> Result<KafkaServer, String> {
        let directory = tools.fresh_directory("kafka")?;
        let mut server = KafkaServer {
            process: None,
            address: free_address(),
            directory,
        };
        let properties = server.directory.join("server.properties");
        std::fs::write(&properties, server.properties(free_address()))
            .map_err(|error| format!("{}: {error}", properties.display()))?;
        let log = tools.log("kafka");
        server.format(tools, &properties)?;
        let mut command = Command::new("java");
        command
            .args(JVM)
            .args(["-cp", &tools.kafka_jars(), "kafka.Kafka"]);
        command.arg(&properties);
        let mut process = Process::start("kafka", command, &log)?;
        let address = server.address;
        process.wait_until(START_PATIENCE, || answers(address))?;
        server.process = Some(process);
        Ok(server)
    }

    fn properties(&self, controller: SocketAddr) -> String {
        let (broker, data) = (self.address, self.directory.join("data"));
        format!(
            "{PROPERTIES}listeners=PLAINTEXT://{broker},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{broker},CONTROLLER://{controller}\n\
             controller.quorum.bootstrap.servers={controller}\nlog.dirs={}\n",
            data.display()
        )
    }

    fn format(&self, tools: &Tools, properties: &std::path::Path) -> Result<(), String> {
        // Kafka's own cluster ids are random UUIDs in URL-safe base 64 without padding, 22 characters.
        let id = base64::Engine::encode(
            &base64::prelude::BASE64_URL_SAFE_NO_PAD,
            uuid::Uuid::new_v4().as_bytes(),
        );
        let mut command = Command::new("java");
        command.args(["-cp", &tools.kafka_jars(), "kafka.tools.StorageTool", "format"]);
        // An id must not look like an option.
        command.arg(format!("--cluster-id={id}")).arg("--standalone");
        command.arg("--config").arg(properties);
        let log = tools.log("kafka-format");
        let status = command
            .stdout(std::fs::File::create(&log).map_err(|error| error.to_string())?)
            .stderr(std::process::Stdio::null())
            .status()
            .map_err(|error| format!("java: {error}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!(
                "formatting Kafka's directory: {status}\n{}",
                tail_of(&log)
            ))
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn process(&self) -> Result<&Process, String> {
        self.process
            .as_ref()
            .ok_or_else(|| "Kafka did not start".to_owned())
    }

    /// Deletes a topic and waits until its files are gone.
    pub(crate) fn delete_topic(&self, topic: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("deleting {topic}: {error}");
        let mut client = Client::connect(self.address).map_err(failed)?;
        let mut request = DeleteTopicsRequest::default();
        request.topic_names = vec![topic.into()];
        request.timeout_ms = 30_000;
        let response = client.call(&request, 5).map_err(failed)?;
        let answered = response.responses.first().map(|topic| topic.error_code);
        if answered != Some(code::NONE) {
            return Err(format!("deleting {topic}: error {answered:?}"));
        }
        let deadline = Instant::now() + DELETE_PATIENCE;
        while !self.directories_of(topic).is_empty() {
            if Instant::now() > deadline {
                return Err(format!("the files of {topic} stay"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Bytes of a topic's segments, without their indexes.
    pub(crate) fn segment_bytes(&self, topic: &str) -> Result<u64, String> {
        let directories = self.directories_of(topic);
        let bytes = directories.iter().map(|path| bytes_below(path, ".log"));
        bytes.sum()
    }

    /// The directories of a topic's partitions.
    fn directories_of(&self, topic: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.join("data"));
        let entries = entries.into_iter().flatten().flatten();
        let prefix = format!("{topic}-");
        let of_topic = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        of_topic.map(|entry| entry.path()).collect()
    }
}

impl Drop for KafkaServer {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop(STOP_PATIENCE);
        }
        remove(&self.directory);
    }
}

/// Whether there is a broker that knows itself as part of a cluster.
fn answers(address: SocketAddr) -> bool {
    let Ok(mut client) = Client::connect(address) else {
        return false;
    };
    let mut request = MetadataRequest::default();
    request.topics = Some(Vec::new());
    client
        .call(&request, 4)
        .is_ok_and(|response| !response.brokers.is_empty())
}

/// Creates a topic and waits until each partition has a leader that answers.
pub(crate) fn create_with_leaders(
    broker: SocketAddr,
    name: &str,
    partitions: u32,
    configs: &[(&str, &str)],
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("creating {name}: {error}");
    let mut client = Client::connect(broker).map_err(failed)?;
    let partitions = i32::try_from(partitions).map_err(|error| error.to_string())?;
    create_topic(&mut client, name, partitions, configs).map_err(failed)?;
    let deadline = Instant::now() + START_PATIENCE;
    for partition in 0..partitions {
        while let Err(error) = list_offset(&mut client, name, partition, -1) {
            if Instant::now() > deadline {
                return Err(format!("{name}-{partition}: {error}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
