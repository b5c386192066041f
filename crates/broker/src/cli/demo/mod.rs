//! `alluvium demo`: a broker on a directory with something in it: topics, a producer, a consumer group that lags.
//!
//! The broker is that of `alluvium serve`, in this process. Everything else speaks to it as any client does, over TCP:
//! [`feed`] produces the records of [`story`], [`billing`] consumes them, [`figures`] says how far they are.

mod billing;
mod feed;
mod figures;
mod story;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_log::store::StoreKind;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::{
    ClientError, Cluster, OffsetOf, TopicPlan, discover, ensure_topic, init_producer_id, list_offsets,
};
use super::cluster::print;
use super::config::SettingsArgs;
use super::serve::{Signals, Started, from_here, init_tracing};
use crate::config::{Settings, Surroundings};
use billing::{Billing, GROUP, READS_EVERY};
use feed::Feed;
use figures::{Figures, Status};
use story::{TOPICS, Topic};

/// Where the broker listens if nothing is said and nobody else does.
const KAFKA: &str = "127.0.0.1:9092";
const HTTP: &str = "127.0.0.1:9464";
/// How long the broker may take to serve the first requests.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long producer and consumer may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often it is told how far everything is.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct DemoArgs {
    /// Where the data is. What is there from an earlier time is gone on with
    #[arg(long, value_name = "PATH", default_value = "./alluvium-demo")]
    directory: String,
    /// Orders per second; for each there are three page views, and for every ten a change of a customer
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// Stop after so many seconds, as with Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Where to listen for clients: [NAME://]host:port,... [default: 127.0.0.1:9092, another port if that is taken]
    #[arg(long, value_name = "LIST")]
    listeners: Option<String>,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), String> {
    let (mut settings, mut taken) = settings(&args)?;
    init_tracing(&settings)?;
    let mut signals = Signals::listen()?;
    let started = loop {
        let error = tokio::select! {
            started = Started::begin(settings) => match started {
                Ok(started) => break started,
                Err(error) => error,
            },
            () = signals.stop() => return Ok(()),
        };
        // Somebody may have taken a port since it was found free; there are two of them.
        let (others, taken_now) = self::settings(&args)?;
        if taken_now.len() <= taken.len() {
            return Err(error);
        }
        (settings, taken) = (others, taken_now);
    };
    let demo = Demo::of(args, &started, taken);
    let mut played = Ok(());
    let stop = async { played = demo.play(&mut signals).await };
    let stopped = started.live(stop).await;
    played.and(stopped)?;
    print(&format!(
        "Stopped. What was acknowledged is in {}: the same command goes on with it.",
        demo.directory
    ))
}

/// What the broker is started with, and the ports that it does not get. Nothing else is looked at: a demo has no
/// configuration.
fn settings(args: &DemoArgs) -> Result<(Settings, Vec<u16>), String> {
    let surroundings = Surroundings {
        variables: Vec::new(),
        ..Surroundings::of_process().map_err(|e| e.to_string())?
    };
    let mut taken = Vec::new();
    let mut free = |wanted: &str| match free_or_any(wanted) {
        (address, true) => address,
        (address, false) => {
            taken.extend(port_of(wanted));
            address
        }
    };
    let listeners = args.listeners.clone().unwrap_or_else(|| free(KAFKA));
    let flags = SettingsArgs {
        store: Some(args.directory.clone()),
        listeners: Some(listeners),
        http_listen: Some(free(HTTP)),
        log_level: Some("warn".to_owned()),
        ..SettingsArgs::default()
    };
    let (settings, _) = flags.load(&surroundings).map_err(|e| in_words(e.to_string()))?;
    match settings.store_kind() {
        StoreKind::Embedded => Ok((settings, taken)),
        StoreKind::Memory | StoreKind::S3 => Err(format!(
            "'{}' is no directory, and the demo needs one; a broker on anything else is `alluvium serve --store {0}`",
            args.directory
        )),
    }
}

/// This address if nobody listens there, else one with any port; and whether it is this one.
fn free_or_any(wanted: &str) -> (String, bool) {
    match TcpListener::bind(wanted) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let any = wanted.rsplit_once(':').map_or(wanted, |(host, _)| host);
            (format!("{any}:0"), false)
        }
        // Any other error is told when the broker listens.
        _ => (wanted.to_owned(), true),
    }
}

fn port_of(address: &str) -> Option<u16> {
    address.parse::<SocketAddr>().ok().map(|address| address.port())
}

/// An error of the broker, with the flag that this command has for the store.
fn in_words(error: String) -> String {
    error.replace("--store", "--directory")
}

/// Tells the tasks of the demo that it is over.
#[derive(Clone, Debug)]
struct Over(watch::Receiver<bool>);

impl Over {
    /// Resolves when it is over.
    async fn wait(&mut self) {
        // It is also over when nobody is left to say so.
        let _ = self.0.wait_for(|over| *over).await;
    }
}

/// What is shown, and where.
struct Demo {
    /// Where clients on this machine connect.
    at: Arc<str>,
    metrics: Option<SocketAddr>,
    directory: String,
    rate: u64,
    duration: Duration,
    /// Ports that another program has.
    taken: Vec<u16>,
}

impl Demo {
    fn of(args: DemoArgs, started: &Started, taken: Vec<u16>) -> Demo {
        let settings = &started.broker().config.settings;
        Demo {
            at: settings
                .listeners
                .first()
                .map_or_else(String::new, from_here)
                .into(),
            metrics: settings.http_listen,
            directory: started.store().display.clone(),
            rate: args.rate,
            duration: args.duration.map_or(Duration::MAX, Duration::from_secs),
            taken,
        }
    }

    /// Everything but the broker, until it is told to stop.
    async fn play(&self, signals: &mut Signals) -> Result<(), String> {
        let (ends, identity) = tokio::select! {
            opened = self.open() => opened.map_err(|e| e.to_string())?,
            () = signals.stop() => return Ok(()),
        };
        let went_on = ends.iter().flatten().any(|end| *end > 0);
        print(&self.welcome(went_on))?;

        let (over, is_over) = watch::channel(false);
        let is_over = Over(is_over);
        let figures = Arc::new(Figures::default());
        figures.begin(TOPICS.iter().map(|topic| topic.name).zip(ends.clone()).collect());
        let now = Instant::now();
        let feeds = TOPICS.iter().zip(ends);
        let feeds = feeds
            .map(|(topic, ends)| Feed::new(topic, ends, self.rate, now))
            .collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(feed::run(
            self.at.clone(),
            feeds,
            identity,
            figures.clone(),
            is_over.clone(),
        ));
        let billing = Billing::new(self.at.clone(), figures.clone());
        tasks.spawn(async move {
            billing.run(is_over).await;
            Ok(())
        });

        let mut status = Status::new(GROUP);
        let mut due = tokio::time::interval(STATUS_EVERY);
        let end = tokio::time::sleep(self.duration);
        let mut end = std::pin::pin!(end);
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                () = signals.stop() => break,
                () = &mut end => break,
                Some(ended) = tasks.join_next() => {
                    outcome = ended.map_err(|e| format!("a task of the demo ended: {e}")).flatten();
                    break;
                }
                _ = due.tick() => status.show(&figures, Instant::now()),
            }
        }
        over.send_replace(true);
        let all_end = async { while tasks.join_next().await.is_some() {} };
        // Who takes longer is cut off: it has nothing that a client must say.
        let _ = tokio::time::timeout(LAST_WORDS, all_end).await;
        status.end(&figures, Instant::now());
        outcome
    }

    /// Finds or creates the topics: where each of their partitions ends, and a producer id.
    async fn open(&self) -> Result<(Vec<Vec<i64>>, (i64, i16)), ClientError> {
        let bootstrap = std::slice::from_ref(&self.at);
        let mut ends = Vec::new();
        for topic in &TOPICS {
            let cluster = find_or_create(bootstrap, topic).await?;
            ends.push(list_offsets(&cluster, topic.name, OffsetOf::End).await?);
        }
        Ok((ends, init_producer_id(bootstrap, START_PATIENCE).await?))
    }

    /// Where it is, what is there, and what to type next.
    fn welcome(&self, went_on: bool) -> String {
        let mut out = Vec::new();
        let how = if went_on {
            ", going on with what is there"
        } else {
            ""
        };
        out.push(format!(
            "Alluvium {}: a demo in {}{how}.",
            env!("CARGO_PKG_VERSION"),
            self.directory
        ));
        for port in &self.taken {
            out.push(format!(
                "  (another program has port {port}, so a free one is used)"
            ));
        }
        let at = &self.at;
        out.push(format!("  broker      {at}"));
        if let Some(metrics) = self.metrics {
            out.push(format!("  metrics     http://{metrics}/metrics"));
        }
        for (place, topic) in TOPICS.iter().enumerate() {
            let label = if place == 0 { "topics" } else { "" };
            out.push(format!("  {label:<11} {:<11} {}", topic.name, topic.about));
        }
        out.push(format!(
            "  group       {GROUP:<11} reads the orders every {} s",
            READS_EVERY.as_secs()
        ));
        out.push(String::new());
        out.push("In another terminal:".to_owned());
        out.extend(self.next().into_iter().map(|line| format!("  {line}")));
        out.push(String::new());
        out.push("Ctrl-C stops it. So does kill -9, and nothing that was acknowledged is lost.".to_owned());
        out.push(String::new());
        out.join("\n")
    }

    /// Commands to look at it.
    fn next(&self) -> Vec<String> {
        let at = &self.at;
        let files = Path::new(&self.directory).join("archive/topic=orders-*/*.parquet");
        let query = format!(
            "SELECT value ->> 'item' AS item, count(*) AS orders FROM '{}' GROUP BY item",
            files.display()
        );
        let mut next = vec![
            format!("kcat -b {at} -t orders -C -o -5 -c 5 -f '%k %h %s\\n'"),
            format!("kcat -b {at} -G readers page_views"),
            format!("kafka-console-consumer.sh --bootstrap-server {at} --topic customers --from-beginning"),
            format!("kafka-consumer-groups.sh --bootstrap-server {at} --describe --group {GROUP}"),
            format!("alluvium archive flush orders --bootstrap {at}"),
            format!("duckdb -c \"{query}\""),
        ];
        if let Some(metrics) = self.metrics {
            next.push(format!(
                "curl -s http://{metrics}/metrics | grep -E 'group_lag|produce_records'"
            ));
        }
        next
    }
}

/// A topic that exists is taken as it is.
async fn find_or_create(bootstrap: &[Arc<str>], topic: &Topic) -> Result<Cluster, ClientError> {
    let found = discover(bootstrap, topic.name).await?;
    let configs = topic
        .configs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let plan = TopicPlan {
        name: topic.name.to_owned(),
        partitions: found.leaders.is_empty().then_some(topic.partitions),
        replication_factor: 1,
        configs: configs.collect(),
        create: true,
    };
    ensure_topic(bootstrap, &plan, START_PATIENCE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(directory: &str) -> DemoArgs {
        DemoArgs {
            directory: directory.to_owned(),
            rate: 20,
            duration: None,
            listeners: Some("127.0.0.1:0".to_owned()),
        }
    }

    #[test]
    fn a_port_that_is_taken_gives_way_to_any() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap().to_string();
        assert_eq!(free_or_any(&address), ("127.0.0.1:0".to_owned(), false));
        drop(held);
        assert_eq!(free_or_any(&address), (address, true));
    }

    #[test]
    fn only_a_directory_will_do() {
        let (settings, _) = settings(&args("./there")).unwrap();
        assert!(settings.store_url.ends_with("/there"), "{}", settings.store_url);
        for url in ["memory://", "s3://bucket/prefix"] {
            let line = super::settings(&args(url)).unwrap_err();
            assert!(
                line.contains("is no directory") && line.contains("serve --store"),
                "{line}"
            );
        }
        let line = super::settings(&args("gs://x")).unwrap_err();
        assert!(!line.contains("--store"), "{line}");
    }

    #[test]
    fn the_welcome_names_what_there_is() {
        let demo = Demo {
            at: "127.0.0.1:4711".into(),
            metrics: Some("127.0.0.1:9464".parse().unwrap()),
            directory: "/tmp/demo".to_owned(),
            rate: 20,
            duration: Duration::MAX,
            taken: vec![9092],
        };
        let text = demo.welcome(false);
        for part in [
            "a demo in /tmp/demo.",
            "port 9092",
            "broker      127.0.0.1:4711",
            "kcat -b 127.0.0.1:4711 -t orders",
            "'/tmp/demo/archive/topic=orders-*/*.parquet'",
            "http://127.0.0.1:9464/metrics",
            "billing",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(TOPICS.iter().all(|topic| text.contains(topic.name)), "{text}");
        assert!(demo.welcome(true).contains("going on"), "{text}");
    }
}
