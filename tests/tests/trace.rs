//! Following one Produce request through the log of a broker: from its bytes to its answer, by one word.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use alluvium_tests::batches::{self, Producer};
use alluvium_tests::broker::{Broker, BrokerOptions};
use alluvium_tests::kafka::{self, PRODUCE_VERSION, code, produced};
use alluvium_tests::wire::Client;
use kafka_wire::ProduceResponse;
use serde_json::Value;

const TOPIC: &str = "followed";
/// What the page says to set.
const FILTER: &str = "info,alluvium=debug";
/// The way of a request that is taken, but for "appended": the segment may be closed before that is written down.
const WAY: [&str; 5] = [
    "decoded",
    "segment closed",
    "segment written",
    "segment published",
    "answered",
];

fn broker(format: &str, filter: &str) -> Broker {
    let options = BrokerOptions::embedded().set("log.format", format);
    Broker::start(options.env([("RUST_LOG".to_owned(), filter.to_owned())]))
}

fn connect(broker: &Broker) -> Client {
    let mut client = Client::connect(broker.address()).unwrap();
    kafka::create_topic(&mut client, TOPIC, 2, &[]).unwrap();
    client
}

/// Sends a batch; the correlation id of the request.
fn send(client: &mut Client, partition: i32) -> i32 {
    let records = batches::batch(1_700_000_000_000, Producer::NONE, &[b"a".to_vec(), b"b".to_vec()]);
    let request = kafka::produce_request(TOPIC, partition, records);
    client.send(&request, PRODUCE_VERSION).unwrap()
}

fn answer(client: &mut Client) -> (i16, i64) {
    let (_, response): (i32, ProduceResponse) = client
        .receive::<kafka_wire::ProduceRequest>(PRODUCE_VERSION)
        .unwrap();
    produced(&response).unwrap()
}

/// The lines of a JSON log that belong to a request: by the part of the trace behind the dash.
fn followed(log: &str, correlation: i32) -> Vec<Value> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_request = |line: &Value| {
        let trace = line["span"]["trace"]
            .as_str()
            .and_then(|trace| trace.split_once('-'));
        trace.is_some_and(|(_, id)| id == correlation.to_string())
    };
    lines.filter(of_request).collect()
}

fn message(line: &Value) -> &str {
    line["fields"]["message"].as_str().unwrap()
}

#[test]
fn a_request_is_followed_by_connection_and_correlation_id() {
    let broker = broker("json", FILTER);
    let mut client = connect(&broker);
    // Two at once on one connection, and one on another.
    let ids = [send(&mut client, 0), send(&mut client, 1)];
    assert_eq!(
        [answer(&mut client), answer(&mut client)],
        [(code::NONE, 0), (code::NONE, 0)]
    );
    let mut other = Client::connect(broker.address()).unwrap();
    send(&mut other, 0);
    assert_eq!(answer(&mut other), (code::NONE, 2));

    let log = broker.log();
    let mut traces = vec![];
    for (id, partition) in ids.into_iter().zip(0..) {
        let lines = followed(&log, id);
        let way: Vec<&str> = lines
            .iter()
            .map(message)
            .filter(|word| *word != "appended")
            .collect();
        assert_eq!(way, WAY, "{lines:?}");
        let appended = lines.iter().find(|line| message(line) == "appended").unwrap();
        let fields = &appended["fields"];
        assert_eq!(
            (
                &fields["topic"],
                &fields["partition"],
                &fields["base_offset"],
                &fields["records"]
            ),
            (
                &Value::from(TOPIC),
                &Value::from(partition),
                &Value::from(0),
                &Value::from(2)
            ),
        );
        // One segment, named where it is closed, written and published, and there in the store.
        let segments: Vec<(u64, u64)> = lines
            .iter()
            .filter(|line| message(line).starts_with("segment "))
            .map(|line| {
                let number = |name: &str| line["fields"][name].as_u64().unwrap();
                (number("incarnation"), number("seq"))
            })
            .collect();
        assert_eq!(segments.len(), 3);
        assert!(
            segments.iter().all(|segment| *segment == segments[0]),
            "{segments:?}"
        );
        let written = lines
            .iter()
            .find(|line| message(line) == "segment written")
            .unwrap();
        assert_eq!(written["fields"]["outcome"], "committed");
        let answered = lines.last().unwrap();
        assert_eq!(answered["fields"]["result"], "published");
        traces.push(lines[0]["span"]["trace"].as_str().unwrap().to_owned());
    }
    assert_ne!(traces[0], traces[1]);
    // The number of the connection leads to the client's address.
    let connection = traces[0].split_once('-').unwrap().0.parse::<u64>().unwrap();
    let accepted = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["fields"]["connection"] == connection)
        .unwrap();
    assert_eq!(message(&accepted), "connection accepted");
    assert!(
        accepted["fields"]["peer"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
}

#[test]
fn a_request_that_is_refused_says_so() {
    let broker = broker("json", FILTER);
    let mut client = connect(&broker);
    let id = send(&mut client, 7);
    assert_eq!(answer(&mut client).0, code::UNKNOWN_TOPIC_OR_PARTITION);
    let lines = followed(&broker.log(), id);
    let way: Vec<&str> = lines.iter().map(message).collect();
    assert_eq!(way, ["decoded", "refused", "answered"]);
    assert_eq!(lines[1]["fields"]["error"], "UnknownTopicOrPartition");
    assert_eq!(lines[2]["fields"]["result"], "error");
}

#[test]
fn in_text_one_word_finds_the_request() {
    let broker = broker("text", FILTER);
    let mut client = connect(&broker);
    let id = send(&mut client, 0);
    answer(&mut client);
    let log = broker.log();
    let mark = format!("-{id}}}: ");
    let of_request = |line: &&str| line.contains("produce{trace=") && line.contains(&mark);
    let lines: Vec<&str> = log.lines().filter(of_request).collect();
    assert_eq!(lines.len(), WAY.len() + 1, "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("segment written incarnation=1 seq=")),
        "{lines:#?}"
    );
}

/// Whoever does not ask for it gets no line of it, and pays for none.
#[test]
fn at_info_nothing_is_followed() {
    let broker = broker("json", "info");
    let mut client = connect(&broker);
    send(&mut client, 0);
    answer(&mut client);
    let log = broker.log();
    assert!(!log.contains("\"trace\"") && !log.contains("segment "), "{log}");
}
