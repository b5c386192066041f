//! What a hundred thousand partitions cost: the manifest, memory, a new topic, and a takeover of a third of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kafka_wire::create_topics_request::CreatableTopic;
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{CreateTopicsRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest};

use super::super::alluvium::Alluvium;
use super::super::report::{Bound, Column, Section, Target};
use super::super::results::Metrics;
use super::super::session::Session;
use super::super::store::Store;
use super::{BENCH, GroupSpec, ours, s3};
use crate::batches::{Producer, batch};
use crate::kafka::{PRODUCE_VERSION, code};
use crate::wire::Client;

const SECTION: &str = "scale.partitions";
const WORK: &str = "1,000 topics of 100 partitions, three brokers";
const BROKERS: usize = 3;
const TOPICS: usize = 1_000;
const PARTITIONS: i32 = 100;
/// Topics that one request creates.
const BATCH: usize = 50;
const PATIENCE: Duration = Duration::from_secs(300);
/// A manifest that did not change for so long is at rest.
const REST: Duration = Duration::from_secs(10);
const MIB: f64 = 1024.0 * 1024.0;

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "scale",
    title: "A hundred thousand partitions",
    about: "Three brokers on one machine, on a bucket with S3's latency; every partition holds a record.",
    sections: &[Section {
        id: SECTION,
        title: "1,000 topics of 100 partitions",
        about: "\"CAS per topic\" is how far the manifest's version went when one more topic was created. One broker is \
                then killed; \"takeover\" is the time until all of its partitions answer ListOffsets at another one, \
                from the SIGKILL on, and \"without noticing\" the same from the first moment at which another broker \
                claims one of them. All three brokers and the store share the machine's processors.",
        columns: &[
            Column::Value("manifest MB", "manifest_mb", 2),
            Column::Value("CAS per topic", "cas_per_topic", 1),
            Column::Value("create a topic ms", "create_ms", 0),
            Column::Value("RSS MiB, largest broker", "rss_mib", 0),
            Column::Value("RSS MiB after the takeover", "rss_after_mib", 0),
            Column::Value("partitions taken over", "taken", 0),
            Column::Value("takeover s", "takeover_seconds", 1),
            Column::Value("without noticing s", "takeover_only_seconds", 1),
        ],
    }],
    targets: &[
        target("Scale: manifest of 100,000 partitions, MB", "manifest_mb", 2.0),
        target("Scale: CAS per new topic", "cas_per_topic", 1.0),
        target("Scale: memory of a broker, MiB", "rss_after_mib", 1024.0),
        target("Scale: takeover of a third, s", "takeover_only_seconds", 5.0),
    ],
    run,
};

const fn target(says: &'static str, metric: &'static str, bound: f64) -> Target {
    Target {
        says,
        section: SECTION,
        work: WORK,
        client: BENCH,
        metric,
        bound: Bound::AtMost(bound),
    }
}

/// Partitions of each topic by leader, as a broker tells.
type Leaders = BTreeMap<SocketAddr, Vec<(String, i32)>>;

fn run(session: &mut Session) -> Result<(), String> {
    let done = measure(session).map(|metrics| (String::new(), metrics));
    session.record(&ours(SECTION, WORK), done);
    Ok(())
}

fn measure(session: &Session) -> Result<Metrics, String> {
    let store = Store::start(&session.tools, s3::LATENCY, None)?;
    let mut brokers = Vec::new();
    for index in 0..BROKERS {
        let id = (index + 1).to_string();
        let mut broker = Alluvium::prepared(&session.tools, &store, &[("node.id", &id)]);
        broker.launch()?;
        brokers.push(broker);
    }
    let said = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    let topics = if session.scale.quick { TOPICS / 10 } else { TOPICS };
    let names: Vec<String> = (0..topics).map(|number| format!("scale-{number}")).collect();
    let mut client = Client::connect(brokers[0].address()).map_err(said("connect"))?;
    client.set_timeout(PATIENCE).map_err(said("connect"))?;
    for names in names.chunks(BATCH) {
        create(&mut client, names).map_err(said("create"))?;
    }
    let mut metrics = Metrics::new();
    let before = manifest_at_rest(&store)?;
    let begun = Instant::now();
    create(&mut client, &["scale-one-more".to_owned()]).map_err(said("create"))?;
    metrics.insert("create_ms".to_owned(), begun.elapsed().as_secs_f64() * 1e3);
    let after = manifest(&store)?;
    metrics.insert(
        "cas_per_topic".to_owned(),
        (after.version - before.version) as f64,
    );
    metrics.insert("manifest_mb".to_owned(), after.bytes as f64 / 1e6);
    let leaders = wait_for_leaders(brokers[0].address(), topics, &|leaders| leaders.len() == BROKERS)?;
    fill(&leaders).map_err(said("fill"))?;
    std::thread::sleep(session.scale.time(60));
    metrics.insert("rss_mib".to_owned(), rss_mib(&brokers)?);
    take_over(&mut brokers, &leaders, topics, &mut metrics)?;
    metrics.insert("rss_after_mib".to_owned(), rss_mib(&brokers[1..])?);
    Ok(metrics)
}

/// The most memory that one of these brokers has used.
fn rss_mib(brokers: &[Alluvium]) -> Result<f64, String> {
    let mut most = 0;
    for broker in brokers {
        most = most.max(broker.process()?.rss_bytes_max().unwrap_or(0));
    }
    Ok(most as f64 / MIB)
}

fn create(client: &mut Client, names: &[String]) -> io::Result<()> {
    let mut request = CreateTopicsRequest::default();
    for name in names {
        let mut topic = CreatableTopic::default();
        topic.name = name.as_str().into();
        topic.num_partitions = PARTITIONS;
        topic.replication_factor = 1;
        request.topics.push(topic);
    }
    request.timeout_ms = PATIENCE.as_millis() as i32;
    let response = client.call(&request, 5)?;
    let known = [code::NONE, code::TOPIC_ALREADY_EXISTS];
    match response
        .topics
        .iter()
        .find(|topic| !known.contains(&topic.error_code))
    {
        Some(failed) => Err(io::Error::other(format!("{failed:?}"))),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ManifestSize {
    version: u64,
    bytes: u64,
}

/// The manifest as it is now.
fn manifest(store: &Store) -> Result<ManifestSize, String> {
    manifest_of(&store.text_of("cluster/manifest.json")?)
}

fn manifest_of(text: &str) -> Result<ManifestSize, String> {
    let manifest: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("the manifest: {error}"))?;
    let version = manifest["version"].as_u64();
    Ok(ManifestSize {
        version: version.ok_or("a manifest without a version")?,
        bytes: text.len() as u64,
    })
}

/// The manifest when it has not changed for a while: placement moves slots for some time after topics were created.
fn manifest_at_rest(store: &Store) -> Result<ManifestSize, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = manifest(store)?;
    loop {
        std::thread::sleep(REST);
        let now = manifest(store)?;
        if now == last || Instant::now() > deadline {
            return Ok(now);
        }
        last = now;
    }
}

/// Who leads what, as this broker knows it.
fn leaders(broker: SocketAddr) -> io::Result<Leaders> {
    let mut client = Client::connect(broker)?;
    let mut request = MetadataRequest::default();
    request.topics = None;
    let response = client.call(&request, 8)?;
    let address = |node: i32| {
        let found = response.brokers.iter().find(|broker| broker.node_id == node)?;
        format!("{}:{}", found.host, found.port).parse().ok()
    };
    let mut leaders = Leaders::new();
    for topic in &response.topics {
        let name = topic.name.as_deref().unwrap_or_default();
        if !name.starts_with("scale-") {
            continue;
        }
        for partition in &topic.partitions {
            if let Some(address) = address(partition.leader_id) {
                let place = (name.to_owned(), partition.partition_index);
                leaders.entry(address).or_default().push(place);
            }
        }
    }
    Ok(leaders)
}

/// Waits until every partition has a leader and these leaders will do.
fn wait_for_leaders(
    broker: SocketAddr,
    topics: usize,
    will_do: &dyn Fn(&Leaders) -> bool,
) -> Result<Leaders, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = leaders(broker);
        if let Ok(leaders) = &found {
            let led: usize = leaders.values().map(Vec::len).sum();
            if led == (topics + 1) * PARTITIONS as usize && will_do(leaders) {
                return found.map_err(|error| error.to_string());
            }
        }
        if Instant::now() > deadline {
            return Err("the partitions do not get the leaders that they should".to_owned());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// By topic, as requests want it.
fn by_topic(places: &[(String, i32)]) -> BTreeMap<&str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in places {
        topics.entry(topic).or_default().push(*partition);
    }
    topics
}

/// Writes one record to every partition, a topic's share of a leader in one request.
fn fill(leaders: &Leaders) -> io::Result<()> {
    let records = bytes::Bytes::from(batch(0, Producer::NONE, &[vec![b'x'; 100]]));
    for (leader, places) in leaders {
        let mut client = Client::connect(*leader)?;
        client.set_timeout(PATIENCE)?;
        let topics = by_topic(places);
        let topics: Vec<(&str, Vec<i32>)> = topics.into_iter().collect();
        for some in topics.chunks(20) {
            let mut request = ProduceRequest::default();
            request.acks = -1;
            request.timeout_ms = PATIENCE.as_millis() as i32;
            for (name, partitions) in some {
                let mut topic = TopicProduceData::default();
                topic.name = (*name).into();
                for partition in partitions {
                    let mut data = PartitionProduceData::default();
                    data.index = *partition;
                    data.records = Some(records.clone());
                    topic.partition_data.push(data);
                }
                request.topic_data.push(topic);
            }
            let response = client.call(&request, PRODUCE_VERSION)?;
            let mut answers = response
                .responses
                .iter()
                .flat_map(|topic| &topic.partition_responses);
            if let Some(failed) = answers.find(|answer| answer.error_code != code::NONE) {
                return Err(io::Error::other(format!("{failed:?}")));
            }
        }
    }
    Ok(())
}

/// Kills the first broker and waits until others answer for all that it led.
fn take_over(
    brokers: &mut [Alluvium],
    before: &Leaders,
    topics: usize,
    metrics: &mut Metrics,
) -> Result<(), String> {
    let victim = brokers[0].address();
    let lost = before.get(&victim).cloned().unwrap_or_default();
    let other = brokers[1].address();
    let begun = Instant::now();
    brokers[0].kill();
    wait_for_leaders(other, topics, &|leaders| !leaders.contains_key(&victim))?;
    let noticed = begun.elapsed();
    let after = wait_for_leaders(other, topics, &|_| true)?;
    let mut left: Leaders = Leaders::new();
    let lost_places: std::collections::BTreeSet<&(String, i32)> = lost.iter().collect();
    for (leader, places) in after {
        let mine: Vec<(String, i32)> = places
            .into_iter()
            .filter(|place| lost_places.contains(place))
            .collect();
        left.insert(leader, mine);
    }
    let deadline = Instant::now() + PATIENCE;
    for (leader, places) in &left {
        loop {
            match all_answer(*leader, places) {
                Ok(true) => break,
                answered if Instant::now() > deadline => {
                    return Err(format!(
                        "{leader} does not answer for what it took over: {answered:?}"
                    ));
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
    let took = begun.elapsed();
    metrics.insert("taken".to_owned(), lost.len() as f64);
    metrics.insert("takeover_seconds".to_owned(), took.as_secs_f64());
    metrics.insert("takeover_only_seconds".to_owned(), (took - noticed).as_secs_f64());
    Ok(())
}

/// Whether a leader tells the end of all these partitions, each of which holds a record.
fn all_answer(leader: SocketAddr, places: &[(String, i32)]) -> io::Result<bool> {
    let mut request = ListOffsetsRequest::default();
    request.replica_id = -1;
    for (name, partitions) in by_topic(places) {
        let mut topic = ListOffsetsTopic::default();
        topic.name = name.into();
        for index in partitions {
            let mut partition = ListOffsetsPartition::default();
            partition.partition_index = index;
            partition.timestamp = -1;
            topic.partitions.push(partition);
        }
        request.topics.push(topic);
    }
    let response = Client::connect(leader)?.call(&request, 4)?;
    let mut answers = response.topics.iter().flat_map(|topic| &topic.partitions);
    Ok(answers.all(|answer| answer.error_code == code::NONE && answer.offset >= 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_tells_its_version() {
        let size = manifest_of(r#"{"version":10}"#).unwrap();
        assert_eq!((size.version, size.bytes), (10, 14));
        assert!(manifest_of("{}").unwrap_err().contains("without a version"));
    }

    #[test]
    fn partitions_are_asked_for_by_topic() {
        let places = [("b".to_owned(), 1), ("a".to_owned(), 2), ("b".to_owned(), 0)];
        let topics = by_topic(&places);
        assert_eq!(topics["a"], [2]);
        assert_eq!(topics["b"], [1, 0]);
    }
}
