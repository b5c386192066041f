//! A broker process on a machine: the product, with a simulated store, clock and network.

use std::sync::Arc;
use std::time::Duration;

use alluvium::config::Settings;
use alluvium::simulated::Simulated;
use alluvium_archive::{ParquetHistory, ParquetOptions};
use alluvium_log::history::History;
use alluvium_log::manifest::Endpoint;
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, Log, LogOptions};
use object_store::path::Path;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::clients::node_named;
use crate::network::{accept, dial};
use crate::store::SimStore;
use crate::world::{Command, EPOCH_MS, Node, Shared, TWIN};

/// How the last word of a broker begins that must not come back: another one has its id.
pub const GAVE_WAY: &str = "gave way";
/// How long a graceful stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct SimClock {
    world: Shared,
    node: Node,
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        let world = self.world.lock();
        EPOCH_MS + world.clock() as i64 + world.skew_ms[self.node.0 as usize]
    }
}

/// The bucket as a broker on `node` reaches it.
pub fn store(world: &Shared, node: Node, seed: u64) -> Store {
    let client = |retries| Arc::new(SimStore::new(world.clone(), node, retries));
    let options = StoreOptions {
        seed: Some(seed),
        ..StoreOptions::default()
    };
    let display = "s3://simulated".to_owned();
    Store::from_parts(
        client(true),
        client(false),
        Path::default(),
        display,
        StoreKind::S3,
        options,
    )
}

/// Settings of the broker on a machine.
pub fn settings(world: &Shared, node: Node) -> Settings {
    let advertised = format!("PLAINTEXT://{node}:9092");
    let id = if node == TWIN { 1 } else { node.0 }.to_string();
    let tuning = world.lock().tuning;
    let (file_bytes, interval_ms) = (tuning.history.0.to_string(), tuning.history.1.to_string());
    let pairs = [
        ("store.url", "s3://simulated"),
        ("node.id", id.as_str()),
        ("listeners", "PLAINTEXT://0.0.0.0:9092"),
        ("advertised.listeners", advertised.as_str()),
        ("auto.create.topics.enable", "false"),
        ("offsets.topic.num.partitions", "4"),
        ("cache.bytes", "16777216"),
        ("archive.threads", "1"),
        ("archive.file.bytes", file_bytes.as_str()),
        ("archive.interval.ms", interval_ms.as_str()),
        ("log.retention.check.interval.ms", "3000"),
        // What is worth to be compacted in days is so here in seconds.
        ("log.cleaner.backoff.ms", "3000"),
        ("log.cleaner.min.cleanable.ratio", "0.1"),
        ("log.roll.ms", "10000"),
    ];
    match Settings::from_pairs(pairs) {
        Ok(mut settings) => {
            // So little that most reads go to the store.
            settings.log.tail_bytes = 4_096;
            settings.log.merge.interval = Duration::from_millis(tuning.merge_ms);
            settings.log.merge.file_bytes = tuning.file_bytes;
            settings.log.merge.gather_after = Duration::from_millis(tuning.gather_ms);
            settings.log.delete_delay = Duration::from_millis(tuning.delete_delay_ms);
            settings.log.garbage_interval = Duration::from_millis(tuning.garbage_ms);
            settings
        }
        Err(why) => panic!("the simulation's settings: {why}"),
    }
}

/// Runs a broker until it ends by itself or the machine does.
pub async fn run(world: Shared, node: Node, boot: u64, mut stop: mpsc::UnboundedReceiver<()>) {
    let seed = world.lock().chance.next();
    let clock = Arc::new(SimClock {
        world: world.clone(),
        node,
    });
    let (dialing, settings) = (world.clone(), settings(&world, node));
    let dial = move |endpoint: &Endpoint| {
        let (world, to) = (dialing.clone(), node_named(&endpoint.host));
        async move {
            let to = to.ok_or(std::io::ErrorKind::NotFound)?;
            dial(&world, node, to).await
        }
    };
    let starting = Simulated::start(settings, store(&world, node, seed), clock, dial);
    let broker = tokio::select! {
        biased;
        _ = stop.recv() => return exit(&world, node, boot, "stopped before it had started"),
        started = starting => match started {
            Ok(broker) => broker,
            Err(why) => return exit(&world, node, boot, &why),
        },
    };
    {
        let mut w = world.lock();
        w.tell(format_args!(
            "{node} is up as incarnation {}",
            broker.log().incarnation()
        ));
        w.incarnations.insert(node, broker.log().incarnation());
        w.network.listen(node, boot);
    }
    let why = loop {
        tokio::select! {
            biased;
            why = broker.log().fenced() => break match why.same_node {
                true => format!("{GAVE_WAY}: {}", why.why),
                false => format!("fenced: {}", why.why),
            },
            _ = stop.recv() => {
                break match broker.stop(STOP_PATIENCE).await {
                    Ok(()) => "stopped".to_owned(),
                    Err(why) => format!("stopped: {why}"),
                };
            }
            stream = accept(&world, node, boot) => {
                tokio::spawn(broker.serve(stream));
            }
        }
    };
    exit(&world, node, boot, &why);
}

fn exit(world: &Shared, node: Node, boot: u64, why: &str) {
    let why = why.to_owned();
    world.lock().commands.push(Command::Exited { node, boot, why });
}

/// History as brokers write it, for who only looks.
pub fn history() -> Arc<dyn History> {
    let options = ParquetOptions {
        own_threads: false,
        ..ParquetOptions::default()
    };
    let format = ParquetHistory::new(options, &mut Registry::default());
    Arc::new(format.expect("it starts no thread"))
}

/// Opens the log of a bucket that nobody else uses.
pub async fn open_alone(
    store: Store,
    clock: Arc<dyn Clock>,
    history: Arc<dyn History>,
) -> Result<Log, String> {
    let mut options = LogOptions::for_store(StoreKind::Memory);
    options.node_id = Some(99);
    options.history = Some(history);
    let mut registry = Registry::default();
    let opened = Log::open(store, options, clock, &mut registry).await;
    opened.map_err(|e| e.to_string())
}
