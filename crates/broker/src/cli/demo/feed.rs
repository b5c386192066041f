//! The producer: orders and what goes with them, at a gentle and steady rate, each record once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_log::batch::BatchBuilder;
use alluvium_log::{Clock, SystemClock};
use bytes::Bytes;
use kafka_wire::ProduceRequest;
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};

use super::figures::Figures;
use super::story::{Topic, number};
use super::{AGAIN, Over};
use crate::cli::client::{ANSWER_PATIENCE, Client, ClientError, refused};

/// How long records gather before they are sent together.
const TICK: Duration = Duration::from_millis(200);
/// Newest version of Produce that names topics in this way and carries batches as they are built here.
const PRODUCE_VERSION_MAX: i16 = 9;
const WHO: &str = "producer";

/// A topic, and how far it is.
pub(super) struct Feed {
    topic: &'static Topic,
    pace: Pace,
    /// Where each partition ends.
    ends: Vec<i64>,
    /// Sequence of each partition's next record.
    sequences: Vec<i32>,
    /// Partition of the next record.
    turn: usize,
}

/// A batch that is not acknowledged.
struct Outgoing {
    feed: usize,
    partition: usize,
    records: i32,
    bytes: Bytes,
}

impl Feed {
    /// Goes on where the topic ends.
    pub(super) fn new(topic: &'static Topic, ends: Vec<i64>, orders_per_second: u64, now: Instant) -> Feed {
        Feed {
            topic,
            pace: Pace::new(orders_per_second * topic.per_hundred_orders, now),
            sequences: vec![0; ends.len()],
            ends,
            turn: 0,
        }
    }

    /// The records that are due, a batch for each partition that has some.
    fn gather(&mut self, at: usize, identity: (i64, i16), now: Instant, now_ms: i64) -> Vec<Outgoing> {
        let partitions = self.ends.len();
        let (id, epoch) = identity;
        let mut builders: Vec<_> = (0..partitions)
            .map(|partition| BatchBuilder::new().producer(id, epoch, self.sequences[partition]))
            .collect();
        for _ in 0..self.pace.due(now) {
            let partition = self.turn;
            let builder = &mut builders[partition];
            let offset = self.ends[partition] + i64::from(builder.record_count());
            let number = number(offset, partition, partitions as u64);
            let entry = (self.topic.record)(number, partitions as u64);
            let source: (&[u8], Option<&[u8]>) = (b"source", Some(entry.source.as_bytes()));
            builder.push(
                now_ms,
                Some(entry.key.as_bytes()),
                Some(entry.value.as_bytes()),
                &[source],
            );
            self.turn = (partition + 1) % partitions;
        }
        let filled = builders
            .into_iter()
            .enumerate()
            .filter(|(_, builder)| !builder.is_empty());
        let outgoing = filled.map(|(partition, builder)| Outgoing {
            feed: at,
            partition,
            records: builder.record_count(),
            bytes: builder.build().bytes().clone(),
        });
        outgoing.collect()
    }

    /// A batch was acknowledged, with this offset for its first record.
    fn acknowledged(&mut self, batch: &Outgoing, base_offset: i64) -> i64 {
        let sequence = &mut self.sequences[batch.partition];
        // After the greatest comes 0, as everywhere in Kafka.
        *sequence = sequence.wrapping_add(batch.records) & i32::MAX;
        // Somebody else may produce to the topic too.
        self.ends[batch.partition] = base_offset + i64::from(batch.records);
        self.ends[batch.partition]
    }
}

/// A record, of which one part is due in a nanosecond at a rate of one in a hundred seconds.
const RECORD: u128 = 100 * 1_000_000_000;

/// How many records are due at a steady rate. After a pause it is a second's worth at most: the demo is no load test.
#[derive(Clone, Debug)]
struct Pace {
    /// Records in a hundred seconds.
    rate: u64,
    /// What is due of a record, in parts of [`RECORD`]: in fractions it would not add up.
    owed: u128,
    since: Instant,
}

impl Pace {
    fn new(rate: u64, now: Instant) -> Pace {
        Pace {
            rate,
            owed: 0,
            since: now,
        }
    }

    fn due(&mut self, now: Instant) -> u64 {
        let passed = now
            .saturating_duration_since(self.since)
            .min(Duration::from_secs(1));
        self.since = now;
        self.owed += passed.as_nanos() * u128::from(self.rate);
        let due = self.owed / RECORD;
        self.owed %= RECORD;
        u64::try_from(due).unwrap_or(u64::MAX)
    }
}

/// Produces until the demo is over. A batch is sent again, with its sequence, until it is acknowledged.
///
/// # Errors
/// What the broker will never take.
pub(super) async fn run(
    at: Arc<str>,
    mut feeds: Vec<Feed>,
    identity: (i64, i16),
    figures: Arc<Figures>,
    mut over: Over,
) -> Result<(), String> {
    let mut client = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = over.wait() => return Ok(()),
        }
        let (now, now_ms) = (Instant::now(), SystemClock.now_ms());
        let mut waiting = Vec::new();
        for (place, feed) in feeds.iter_mut().enumerate() {
            waiting.extend(feed.gather(place, identity, now, now_ms));
        }
        while !waiting.is_empty() {
            let error = match send(&at, &mut client, &mut feeds, &mut waiting, &figures).await {
                Ok(()) => continue,
                Err(error) if error.is_retriable() => error,
                Err(error) => return Err(format!("the producer cannot go on: {error}")),
            };
            client = None;
            figures.trouble(WHO, Some(error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = over.wait() => return Ok(()),
            }
        }
        figures.trouble(WHO, None);
    }
}

/// Sends all that waits in one request; what is acknowledged waits no more.
async fn send(
    at: &Arc<str>,
    client: &mut Option<Client>,
    feeds: &mut [Feed],
    waiting: &mut Vec<Outgoing>,
    figures: &Figures,
) -> Result<(), ClientError> {
    let connected = match client {
        Some(connected) => connected,
        None => client.insert(Client::connect(at).await?),
    };
    let answer = connected
        .call(&request(feeds, waiting), PRODUCE_VERSION_MAX)
        .await?;
    let mut outcome = Ok(());
    let mut left = Vec::new();
    for batch in waiting.drain(..) {
        let topic = feeds[batch.feed].topic.name;
        let answered = answer
            .responses
            .iter()
            .filter(|one| *one.name == *topic)
            .flat_map(|one| &one.partition_responses)
            .find(|one| usize::try_from(one.index) == Ok(batch.partition));
        let what = format!("cannot produce to {topic}-{}", batch.partition);
        let taken = match answered {
            Some(answered) => refused(&what, answered.error_code).map(|()| answered.base_offset),
            None => Err(ClientError::Other(format!("{what}: the answer leaves it out"))),
        };
        match taken {
            Ok(base_offset) => {
                let end = feeds[batch.feed].acknowledged(&batch, base_offset);
                figures.ends(batch.feed, batch.partition, end);
            }
            Err(error) => {
                left.push(batch);
                outcome = Err(error);
            }
        }
    }
    *waiting = left;
    outcome
}

fn request(feeds: &[Feed], waiting: &[Outgoing]) -> ProduceRequest {
    let mut request = ProduceRequest::default();
    request.acks = -1;
    request.timeout_ms = ANSWER_PATIENCE.as_millis() as i32;
    for (place, feed) in feeds.iter().enumerate() {
        let mut topic = TopicProduceData::default();
        topic.name = feed.topic.name.into();
        for batch in waiting.iter().filter(|batch| batch.feed == place) {
            let mut partition = PartitionProduceData::default();
            partition.index = batch.partition as i32;
            partition.records = Some(batch.bytes.clone());
            topic.partition_data.push(partition);
        }
        if !topic.partition_data.is_empty() {
            request.topic_data.push(topic);
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::super::story::TOPICS;
    use super::*;
    use alluvium_log::batch::{BatchHeader, records};
    use proptest::prelude::*;

    fn read(batch: &Outgoing) -> (BatchHeader, Vec<u64>) {
        let header = BatchHeader::parse(&batch.bytes).unwrap();
        let numbers = records(&batch.bytes, usize::MAX)
            .unwrap()
            .into_iter()
            .map(|record| {
                let value: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
                value["order"].as_u64().unwrap()
            });
        (header, numbers.collect())
    }

    #[test]
    fn numbers_follow_from_offsets_and_sequences_from_what_was_acknowledged() {
        let start = Instant::now();
        let mut feed = Feed::new(&TOPICS[0], vec![10, 10, 9], 5, start);
        let second = start + Duration::from_secs(1);
        let sent = feed.gather(0, (77, 1), second, 1_000);
        assert_eq!(
            sent.iter().map(|batch| batch.records).collect::<Vec<_>>(),
            [2, 2, 1]
        );
        let (header, numbers) = read(&sent[0]);
        assert_eq!(
            (header.producer_id, header.producer_epoch, header.base_sequence),
            (77, 1, 0)
        );
        assert_eq!(numbers, [30, 33]);
        assert_eq!(read(&sent[1]).1, [31, 34]);
        assert_eq!(read(&sent[2]).1, [29]);

        assert_eq!(feed.acknowledged(&sent[0], 10), 12);
        // Somebody else has produced three records.
        assert_eq!(feed.acknowledged(&sent[1], 13), 15);
        feed.acknowledged(&sent[2], 9);
        let sent = feed.gather(0, (77, 1), second + Duration::from_secs(1), 2_000);
        // It goes on with the partition whose turn it is.
        assert_eq!(
            sent.iter().map(|batch| batch.records).collect::<Vec<_>>(),
            [2, 1, 2]
        );
        let (header, numbers) = read(&sent[1]);
        assert_eq!((header.base_sequence, numbers), (2, vec![15 * 3 + 1]));
        let request = request(&[feed], &sent);
        assert_eq!(request.topic_data.len(), 1);
        assert_eq!(request.topic_data[0].partition_data.len(), 3);
    }

    #[test]
    fn sequences_begin_again_behind_the_greatest() {
        let start = Instant::now();
        let mut feed = Feed::new(&TOPICS[2], vec![0], 10, start);
        feed.sequences[0] = i32::MAX;
        let sent = feed.gather(0, (1, 0), start + Duration::from_secs(1), 0);
        assert_eq!(sent[0].records, 1);
        feed.acknowledged(&sent[0], 0);
        assert_eq!(feed.sequences[0], 0);
    }

    proptest! {
        #[test]
        fn a_pace_gives_its_rate_however_often_it_is_asked(
            rate in 1..10_000_u64, steps in prop::collection::vec(1..900_u64, 1..200),
        ) {
            let mut now = Instant::now();
            let mut pace = Pace::new(rate * 100, now);
            let mut due = 0;
            for step in &steps {
                now += Duration::from_millis(*step);
                due += pace.due(now);
            }
            let expected = steps.iter().sum::<u64>() as f64 / 1000.0 * rate as f64;
            prop_assert!((due as f64 - expected).abs() <= 1.0, "{due} of {expected}");
            // A pause is not made up for.
            prop_assert!(pace.due(now + Duration::from_secs(3600)) <= rate + 1);
        }
    }
}
