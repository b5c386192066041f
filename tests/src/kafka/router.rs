//! Finds leaders and coordinators as Kafka's clients do, and finds them again when they have moved.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::{
    FindCoordinatorRequest, InitProducerIdRequest, MetadataRequest, MetadataResponse, RequestResponsePair,
};

use super::{code, failed};
use crate::wire::Client;

/// Newest version of Metadata with names and without flexible headers.
const METADATA_VERSION: i16 = 8;
const FIND_COORDINATOR_VERSION: i16 = 2;
/// Pause between two tries of something that may succeed soon.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks whichever broker answers who leads a partition or coordinates a group, and remembers it until it is told to
/// forget.
#[derive(Debug)]
pub struct Router {
    bootstrap: Vec<SocketAddr>,
    /// How long a connection or an answer may take.
    patience: Duration,
    turn: usize,
    client: Option<Client>,
    /// Leads everything, whatever the brokers say.
    fixed: Option<SocketAddr>,
    leaders: HashMap<(String, i32), SocketAddr>,
}

impl Router {
    /// Begins with these brokers, of which one at least should be there.
    pub fn new(bootstrap: &[SocketAddr], patience: Duration) -> Router {
        Router {
            bootstrap: bootstrap.to_vec(),
            patience,
            turn: 0,
            client: None,
            fixed: None,
            leaders: HashMap::new(),
        }
    }

    /// One that always names this broker, without asking.
    pub fn fixed(address: SocketAddr, patience: Duration) -> Router {
        Router {
            fixed: Some(address),
            ..Router::new(&[address], patience)
        }
    }

    /// Whether it always names the same broker.
    pub fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// How long a connection or an answer may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A connection to a broker, with the patience of this router.
    pub fn connect(&self, address: SocketAddr) -> io::Result<Client> {
        Client::connect_within(address, self.patience)
    }

    /// Sends a request that any broker answers to one of them. After an error the next call asks another one.
    pub fn ask<R: RequestResponsePair>(&mut self, request: &R, version: i16) -> io::Result<R::Response> {
        let address = self.bootstrap[self.turn % self.bootstrap.len()];
        let client = match self.client.take() {
            Some(client) => Ok(client),
            None => self.connect(address),
        };
        let answered = client.and_then(|mut client| {
            let response = client.call(request, version)?;
            Ok((client, response))
        });
        match answered {
            Ok((client, response)) => {
                self.client = Some(client);
                Ok(response)
            }
            Err(error) => {
                self.turn += 1;
                Err(error)
            }
        }
    }

    /// The leader of a partition.
    pub fn leader(&mut self, topic: &str, partition: i32) -> io::Result<SocketAddr> {
        let key = (topic.to_owned(), partition);
        if let Some(address) = self.fixed.as_ref().or_else(|| self.leaders.get(&key)) {
            return Ok(*address);
        }
        let response = self.metadata(topic)?;
        let leaders = leaders_of(&response, topic)?;
        for (partition, leader) in leaders {
            self.leaders.insert((topic.to_owned(), partition), leader);
        }
        match self.leaders.get(&key) {
            Some(address) => Ok(*address),
            None => {
                // The broker that said so may be the one that knows least.
                self.another();
                Err(failed(format!("partition {partition} has no leader")))
            }
        }
    }

    /// What a broker knows of a topic.
    pub fn metadata(&mut self, topic: &str) -> io::Result<MetadataResponse> {
        let mut asked = MetadataRequestTopic::default();
        asked.name = Some(topic.into());
        let mut request = MetadataRequest::default();
        request.topics = Some(vec![asked]);
        request.allow_auto_topic_creation = false;
        self.ask(&request, METADATA_VERSION)
    }

    /// The coordinator of a group.
    pub fn coordinator(&mut self, group: &str) -> io::Result<SocketAddr> {
        let mut request = FindCoordinatorRequest::default();
        request.key = group.into();
        request.key_type = 0;
        let response = self.ask(&request, FIND_COORDINATOR_VERSION)?;
        if response.error_code != code::NONE {
            self.another();
            return Err(failed(format!("FindCoordinator: error {}", response.error_code)));
        }
        resolve(&response.host, response.port)
    }

    /// Forgets who leads: the next question is asked anew, of another broker.
    pub fn forget(&mut self) {
        self.leaders.clear();
        self.another();
    }

    /// Asks another broker from now on. One that gave no answer was left when it did not: of two, turning once more would
    /// come back to it for ever.
    pub fn another(&mut self) {
        if self.client.take().is_some() {
            self.turn += 1;
        }
    }

    /// Asks for a producer id until `patience` is over.
    ///
    /// # Errors
    /// A sentence with the last error.
    pub fn init_producer_id(&mut self, patience: Duration) -> Result<(i64, i16), String> {
        let deadline = Instant::now() + patience;
        let mut request = InitProducerIdRequest::default();
        request.transactional_id = None;
        request.transaction_timeout_ms = 60_000;
        loop {
            let error = match self.ask(&request, 1) {
                Ok(response) if response.error_code == code::NONE => {
                    return Ok((response.producer_id, response.producer_epoch));
                }
                Ok(response) => {
                    self.another();
                    format!("error {}", response.error_code)
                }
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(format!("no producer id: {error}"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Partitions of a topic that have a leader with a known address.
fn leaders_of(response: &MetadataResponse, topic: &str) -> io::Result<Vec<(i32, SocketAddr)>> {
    let found = response
        .topics
        .iter()
        .find(|found| found.name.as_deref() == Some(topic));
    let found = found.ok_or_else(|| failed(format!("Metadata does not answer for {topic}")))?;
    if found.error_code != code::NONE {
        return Err(failed(format!("Metadata of {topic}: error {}", found.error_code)));
    }
    let mut leaders = Vec::new();
    for partition in &found.partitions {
        let broker = response
            .brokers
            .iter()
            .find(|broker| broker.node_id == partition.leader_id);
        if let (code::NONE, Some(broker)) = (partition.error_code, broker) {
            leaders.push((partition.partition_index, resolve(&broker.host, broker.port)?));
        }
    }
    Ok(leaders)
}

fn resolve(host: &str, port: i32) -> io::Result<SocketAddr> {
    let port = u16::try_from(port).map_err(|_| failed(format!("{host} has port {port}")))?;
    let mut found = (host, port).to_socket_addrs()?;
    found
        .next()
        .ok_or_else(|| failed(format!("{host} has no address")))
}

#[cfg(test)]
mod tests {
    use kafka_wire::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };

    use super::*;
    use crate::broker::free_address;

    fn broker(node_id: i32, port: i32) -> MetadataResponseBroker {
        let mut broker = MetadataResponseBroker::default();
        broker.node_id = node_id;
        broker.host = "127.0.0.1".into();
        broker.port = port;
        broker
    }

    fn partition(index: i32, leader: i32, error: i16) -> MetadataResponsePartition {
        let mut partition = MetadataResponsePartition::default();
        partition.partition_index = index;
        partition.leader_id = leader;
        partition.error_code = error;
        partition
    }

    #[test]
    fn only_partitions_with_a_leader_that_is_there_are_routed() {
        let mut topic = MetadataResponseTopic::default();
        topic.name = Some("t".into());
        topic.partitions = vec![
            partition(0, 2, code::NONE),
            partition(1, -1, code::LEADER_NOT_AVAILABLE),
            partition(2, 9, code::NONE),
            partition(3, 1, code::NONE),
        ];
        let mut response = MetadataResponse::default();
        response.brokers = vec![broker(1, 1001), broker(2, 1002)];
        response.topics = vec![topic];
        let leaders = leaders_of(&response, "t").unwrap();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(leaders, [(0, address(1002)), (3, address(1001))]);
        assert!(leaders_of(&response, "other").is_err());
        response.topics[0].error_code = code::UNKNOWN_TOPIC_OR_PARTITION;
        assert!(leaders_of(&response, "t").is_err());
    }

    #[test]
    fn of_two_brokers_the_dead_one_is_not_asked_for_ever() {
        let mut router = Router::new(&[free_address(), free_address()], Duration::from_secs(1));
        let mut asked = vec![];
        for _ in 0..3 {
            asked.push(router.turn % 2);
            assert!(router.leader("t", 0).is_err(), "nobody listens there");
            router.forget();
        }
        assert_eq!(asked, [0, 1, 0]);
    }
}
