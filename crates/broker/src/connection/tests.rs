use super::*;
use std::collections::HashMap;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::budget::ByteBudget;
use crate::frame::{ConnectionLimits, FrameBudgets};
use crate::metrics::BudgetMetrics;

const FETCH: i16 = 1;
const HEARTBEAT: i16 = 12;

/// Handlers that do what the test says. Requests carry a number as their one body byte.
#[derive(Default)]
struct Fake {
    events: Mutex<Vec<String>>,
    gates: Mutex<HashMap<u8, oneshot::Receiver<Outcome>>>,
}

impl Fake {
    fn note(&self, event: String) {
        self.events.lock().push(event);
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().clone()
    }

    /// The request `number` waits until the returned sender says what it comes to.
    fn gate(&self, number: u8) -> oneshot::Sender<Outcome> {
        let (open, gate) = oneshot::channel();
        self.gates.lock().insert(number, gate);
        open
    }
}

/// Says when a future is dropped before its end.
struct DropNote(Arc<Fake>, u8, bool);

impl Drop for DropNote {
    fn drop(&mut self) {
        if !self.2 {
            self.0.note(format!("dropped {}", self.1));
        }
    }
}

struct Service(Arc<Fake>);

impl Requests for Service {
    type Peer = ();

    fn start(&self, _peer: &mut (), frame: Frame) -> Started {
        let fake = Arc::clone(&self.0);
        let number = frame.bytes[8];
        let is_produce = frame.api_key == PRODUCE;
        if is_produce {
            fake.note(format!("start {number}"));
        }
        let gate = fake.gates.lock().remove(&number);
        let outcome = Box::pin(async move {
            if !is_produce {
                fake.note(format!("start {number}"));
            }
            let mut note = DropNote(Arc::clone(&fake), number, false);
            let outcome = match gate {
                Some(gate) => gate.await.unwrap(),
                None => reply(number),
            };
            note.2 = true;
            fake.note(format!("end {number}"));
            drop(frame);
            outcome
        });
        Started {
            outcome,
            abandonable: !is_produce && number >= 100,
        }
    }
}

fn reply(number: u8) -> Outcome {
    let mut frame = BytesMut::from(&[0, 0, 0, 0][..]);
    frame.extend_from_slice(&[number]);
    Outcome::Reply(Reply::from_frame(frame).unwrap())
}

fn request(api_key: i16, number: u8) -> Vec<u8> {
    let mut frame = 9_i32.to_be_bytes().to_vec();
    frame.extend(api_key.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, number]);
    frame
}

struct Client {
    stream: DuplexStream,
    fake: Arc<Fake>,
    stop: watch::Sender<bool>,
    server: JoinHandle<Ended>,
    budgets: FrameBudgets,
}

impl Client {
    fn connect() -> Client {
        Client::connect_with(ConnectionLimits::new(1024, Duration::from_secs(600)), 64 * 1024)
    }

    fn connect_with(limits: ConnectionLimits, buffer: usize) -> Client {
        let (stream, server) = tokio::io::duplex(buffer);
        let (reader, writer) = tokio::io::split(server);
        let fake = Arc::new(Fake::default());
        let budgets = FrameBudgets {
            produce: ByteBudget::new(1 << 20, BudgetMetrics::unregistered()),
            other: ByteBudget::new(1 << 20, BudgetMetrics::unregistered()),
        };
        let (stop, stopping) = watch::channel(false);
        let reader = FrameReader::new(reader, limits, budgets.clone());
        let service = Arc::new(Service(Arc::clone(&fake)));
        let server = tokio::spawn(serve(reader, writer, service, (), stopping));
        Client {
            stream,
            fake,
            stop,
            server,
            budgets,
        }
    }

    async fn send(&mut self, api_key: i16, number: u8) {
        self.stream.write_all(&request(api_key, number)).await.unwrap();
    }

    async fn answer(&mut self) -> u8 {
        let mut answer = [0; 5];
        self.stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..4], 1_i32.to_be_bytes());
        answer[4]
    }

    /// Lets the server do all it can do.
    async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    async fn close(self) -> (Ended, Vec<String>) {
        drop(self.stream);
        let ended = self.server.await.unwrap();
        (ended, self.fake.events())
    }
}

#[tokio::test]
async fn produces_overlap_and_are_answered_in_order() {
    let mut client = Client::connect();
    let gates = [1, 2, 3].map(|number| client.fake.gate(number));
    for number in [1, 2, 3] {
        client.send(PRODUCE, number).await;
    }
    client.settle().await;
    assert_eq!(client.fake.events(), ["start 1", "start 2", "start 3"]);
    for (number, gate) in [1, 2, 3].into_iter().zip(gates).rev() {
        gate.send(reply(number)).unwrap();
    }
    for number in [1, 2, 3] {
        assert_eq!(client.answer().await, number);
    }
    let (ended, _) = client.close().await;
    assert!(matches!(ended, Ended::Frame(FrameError::Closed)), "{ended}");
}

#[tokio::test]
async fn any_other_request_holds_back_and_is_held_back() {
    let mut client = Client::connect();
    let produce = client.fake.gate(1);
    let heartbeat = client.fake.gate(2);
    client.send(PRODUCE, 1).await;
    client.send(HEARTBEAT, 2).await;
    client.send(PRODUCE, 3).await;
    client.settle().await;
    assert_eq!(client.fake.events(), ["start 1"]);
    produce.send(reply(1)).unwrap();
    assert_eq!(client.answer().await, 1);
    client.settle().await;
    assert_eq!(client.fake.events(), ["start 1", "end 1", "start 2"]);
    heartbeat.send(reply(2)).unwrap();
    assert_eq!(client.answer().await, 2);
    assert_eq!(client.answer().await, 3);
    let events = client.fake.events();
    assert_eq!(events[3..], ["end 2", "start 3", "end 3"]);
}

#[tokio::test]
async fn overlapped_produces_are_bounded() {
    let mut limits = ConnectionLimits::new(1024, Duration::from_secs(600));
    limits.produces_overlapped_max = 2;
    let mut client = Client::connect_with(limits, 64 * 1024);
    let gates: Vec<_> = (0..6).map(|number| client.fake.gate(number)).collect();
    for number in 0..6 {
        client.send(PRODUCE, number).await;
    }
    client.settle().await;
    // One is being answered, two are queued.
    assert_eq!(client.fake.events(), ["start 0", "start 1", "start 2"]);
    for (number, gate) in (0..).zip(gates) {
        gate.send(reply(number)).unwrap();
        assert_eq!(client.answer().await, number);
    }
}

#[tokio::test]
async fn a_silent_request_leaves_no_gap() {
    let mut client = Client::connect();
    client.fake.gate(1).send(Outcome::Silent).unwrap();
    client.send(PRODUCE, 1).await;
    client.send(HEARTBEAT, 2).await;
    assert_eq!(client.answer().await, 2);
}

#[tokio::test]
async fn a_refusal_closes_after_what_came_before() {
    let mut client = Client::connect();
    client
        .fake
        .gate(2)
        .send(Outcome::Close(Refusal::UnknownApi(99)))
        .unwrap();
    for number in [1, 2, 3] {
        client.send(PRODUCE, number).await;
    }
    assert_eq!(client.answer().await, 1);
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    let ended = client.server.await.unwrap();
    assert!(
        matches!(ended, Ended::Refused(Refusal::UnknownApi(99))),
        "{ended}"
    );
    assert_eq!(client.budgets.produce.available(), 1 << 20);
}

#[tokio::test]
async fn a_long_poll_ends_with_its_client_and_other_work_is_finished() {
    let mut client = Client::connect();
    let _never = client.fake.gate(100);
    client.send(FETCH, 100).await;
    client.settle().await;
    let (_, events) = client.close().await;
    assert_eq!(events, ["start 100", "dropped 100"]);

    let mut client = Client::connect();
    let gate = client.fake.gate(1);
    client.send(HEARTBEAT, 1).await;
    client.settle().await;
    let fake = Arc::clone(&client.fake);
    let closing = tokio::spawn(client.close());
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.events(), ["start 1"]);
    gate.send(reply(1)).unwrap();
    let (_, events) = closing.await.unwrap();
    assert_eq!(events, ["start 1", "end 1"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_gone_client_started_is_waited_for_in_bounded_time() {
    let mut client = Client::connect();
    let _never = client.fake.gate(1);
    client.send(PRODUCE, 1).await;
    client.settle().await;
    let began = Instant::now();
    let (ended, events) = client.close().await;
    assert!(matches!(ended, Ended::Frame(FrameError::Closed)), "{ended}");
    assert_eq!(events, ["start 1", "dropped 1"]);
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn idleness_counts_only_when_nothing_is_in_flight() {
    let mut client = Client::connect_with(ConnectionLimits::new(1024, Duration::from_secs(100)), 1024);
    let gate = client.fake.gate(1);
    client.send(PRODUCE, 1).await;
    tokio::time::sleep(Duration::from_secs(950)).await;
    assert!(!client.server.is_finished());
    gate.send(reply(1)).unwrap();
    assert_eq!(client.answer().await, 1);
    let ended = client.server.await.unwrap();
    assert!(matches!(ended, Ended::Frame(FrameError::Idle(_))), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_client_must_say_something_soon() {
    let client = Client::connect();
    let began = Instant::now();
    let ended = client.server.await.unwrap();
    assert!(matches!(ended, Ended::Frame(FrameError::Idle(_))), "{ended}");
    assert_eq!(began.elapsed().as_secs(), 30);
    drop(client.stream);
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_drops_long_polls() {
    let mut client = Client::connect();
    let gate = client.fake.gate(1);
    client.send(PRODUCE, 1).await;
    client.settle().await;
    client.stop.send_replace(true);
    client.send(PRODUCE, 2).await;
    client.settle().await;
    gate.send(reply(1)).unwrap();
    assert_eq!(client.answer().await, 1);
    let ended = client.server.await.unwrap();
    assert!(matches!(ended, Ended::Stopping), "{ended}");
    assert_eq!(client.fake.events(), ["start 1", "end 1"]);

    let mut client = Client::connect();
    let _never = client.fake.gate(100);
    client.send(FETCH, 100).await;
    client.settle().await;
    client.stop.send_replace(true);
    let ended = client.server.await.unwrap();
    assert!(matches!(ended, Ended::Stopping), "{ended}");
}

#[tokio::test]
async fn many_chunks_arrive_whole_through_a_narrow_pipe() {
    let mut client = Client::connect_with(ConnectionLimits::new(1024, Duration::from_secs(600)), 7);
    let chunks: Vec<Bytes> = (0..500_usize)
        .map(|number| Bytes::from(vec![number as u8; number % 13]))
        .collect();
    let expected = chunks.concat();
    client
        .fake
        .gate(1)
        .send(Outcome::Reply(Reply::new(chunks, None)))
        .unwrap();
    client.send(FETCH, 1).await;
    let mut answer = vec![0; expected.len()];
    client.stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, expected);
    client.send(HEARTBEAT, 2).await;
    assert_eq!(client.answer().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answer_is_cut() {
    let mut client = Client::connect_with(ConnectionLimits::new(1024, Duration::from_secs(50)), 32);
    let big = Outcome::Reply(Reply::new(vec![Bytes::from(vec![1; 1000])], None));
    client.fake.gate(1).send(big).unwrap();
    client.send(FETCH, 1).await;
    let began = Instant::now();
    let ended = client.server.await.unwrap();
    assert!(matches!(ended, Ended::Stuck(_)), "{ended}");
    assert_eq!(began.elapsed().as_secs(), 50);
}

/// Garbage of every kind ends the connection and leaks neither memory nor tasks.
#[tokio::test]
async fn garbage_ends_the_connection() {
    let mut inputs: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        i32::MAX.to_be_bytes().to_vec(),
    ];
    for length in 1..=16 {
        inputs.push(request(PRODUCE, 1)[..length.min(12)].to_vec());
        inputs.push(vec![0xff; length]);
        inputs.push(vec![0; length]);
    }
    for input in inputs {
        let mut client = Client::connect();
        let _ = client.stream.write_all(&input).await;
        let budgets = client.budgets.clone();
        let (ended, events) = client.close().await;
        assert!(matches!(ended, Ended::Frame(_)), "{input:?}: {ended}");
        assert!(events.is_empty(), "{input:?}: {events:?}");
        assert_eq!(budgets.produce.available(), 1 << 20);
    }
}
