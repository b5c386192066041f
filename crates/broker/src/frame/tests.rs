use super::*;
use crate::metrics::BudgetMetrics;
use tokio::io::{AsyncWriteExt, DuplexStream};

fn limits() -> ConnectionLimits {
    ConnectionLimits::new(1024 * 1024, Duration::from_secs(600))
}

fn budgets(produce: usize, other: usize) -> FrameBudgets {
    FrameBudgets {
        produce: ByteBudget::new(produce, BudgetMetrics::unregistered()),
        other: ByteBudget::new(other, BudgetMetrics::unregistered()),
    }
}

fn reader(limits: ConnectionLimits) -> (FrameReader<DuplexStream>, DuplexStream) {
    let (client, server) = tokio::io::duplex(1024 * 1024);
    (
        FrameReader::new(server, limits, budgets(1 << 20, 1 << 20)),
        client,
    )
}

async fn next<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) -> Result<Frame, FrameError> {
    reader.wait_for_request(Duration::from_secs(600)).await?;
    reader.read_request().await
}

fn request(api_key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut frame = ((8 + body.len()) as i32).to_be_bytes().to_vec();
    frame.extend(api_key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(7_i32.to_be_bytes());
    frame.extend(body);
    frame
}

#[tokio::test]
async fn whole_frames_come_out_whatever_the_cuts() {
    let (mut reader, mut client) = reader(limits());
    let mut sent = request(3, 9, b"first");
    sent.extend(request(18, 0, b""));
    tokio::spawn(async move {
        for byte in sent {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let first = next(&mut reader).await.unwrap();
    assert_eq!((first.api_key, first.api_version), (3, 9));
    assert_eq!(&first.bytes[8..], b"first");
    let second = next(&mut reader).await.unwrap();
    assert_eq!((second.api_key, second.bytes.len()), (18, 8));
    assert!(matches!(next(&mut reader).await, Err(FrameError::Closed)));
}

#[tokio::test]
async fn every_short_prefix_of_a_request_is_a_truncation() {
    let whole = request(0, 9, b"12345678");
    for cut in 1..whole.len() {
        let (mut reader, mut client) = reader(limits());
        client.write_all(&whole[..cut]).await.unwrap();
        drop(client);
        assert!(
            matches!(next(&mut reader).await, Err(FrameError::Truncated)),
            "cut at {cut}"
        );
    }
}

#[tokio::test]
async fn lengths_out_of_bounds_are_refused_from_four_bytes() {
    for length in [i32::MIN, -1, 0, 1, 7, 1024 * 1024 + 1, i32::MAX] {
        let (mut reader, mut client) = reader(limits());
        client.write_all(&length.to_be_bytes()).await.unwrap();
        let error = next(&mut reader).await.unwrap_err();
        assert!(
            matches!(error, FrameError::BadLength(_) | FrameError::TooLarge { .. }),
            "{length}: {error}"
        );
    }
}

#[tokio::test]
async fn other_protocols_are_named() {
    for (bytes, name) in [
        (&b"GET / HTTP/1.1\r\n"[..], "an HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "a TLS handshake"),
        (b"SSH-2.0-OpenSSH_9.9", "an SSH client"),
    ] {
        let mut wide = limits();
        wide.request_bytes_max = i32::MAX as usize;
        let (mut reader, mut client) = reader(wide);
        client.write_all(bytes).await.unwrap();
        let error = next(&mut reader).await.unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_drip_is_closed_and_gives_its_memory_back() {
    let (client, server) = tokio::io::duplex(1024);
    let budgets = budgets(1 << 20, 1 << 20);
    let mut reader = FrameReader::new(server, limits(), budgets.clone());
    let drip = tokio::spawn(async move {
        let mut client = client;
        client
            .write_all(&request(0, 9, &[0; 256 * 1024])[..12])
            .await
            .unwrap();
        while client.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let began = Instant::now();
    let error = next(&mut reader).await.unwrap_err();
    assert!(matches!(error, FrameError::Slow { .. }), "{error}");
    // 30 s of grace and 2 s for 256 KiB at 128 KiB/s.
    assert_eq!(began.elapsed().as_secs(), 32);
    assert_eq!(budgets.produce.available(), 1 << 20);
    drop(reader);
    drip.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_started_prefix_has_its_own_deadline_and_silence_is_idleness() {
    let (mut reader, mut client) = reader(limits());
    client.write_all(&[0, 0]).await.unwrap();
    let error = reader
        .wait_for_request(Duration::from_secs(600))
        .await
        .unwrap_err();
    assert!(matches!(error, FrameError::Slow { received: 2, .. }), "{error}");

    let (mut reader, _client) = self::reader(limits());
    let began = Instant::now();
    let error = reader
        .wait_for_request(Duration::from_secs(30))
        .await
        .unwrap_err();
    assert!(matches!(error, FrameError::Idle(_)), "{error}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn waiting_may_be_dropped_and_resumed() {
    let (mut reader, mut client) = reader(limits());
    let frame = request(12, 4, b"x");
    client.write_all(&frame[..5]).await.unwrap();
    let waited = tokio::time::timeout(
        Duration::from_millis(5),
        reader.wait_for_request(Duration::from_secs(9)),
    )
    .await;
    assert!(waited.is_err());
    client.write_all(&frame[5..]).await.unwrap();
    assert_eq!(next(&mut reader).await.unwrap().api_key, 12);
}

#[tokio::test]
async fn a_produce_body_waits_for_memory_while_others_pass() {
    let budgets = budgets(1000, 64 * 1024);
    let held = budgets.produce.reserve(1000).await;

    let (mut producer, server) = tokio::io::duplex(64 * 1024);
    let mut produce = FrameReader::new(server, limits(), budgets.clone());
    producer.write_all(&request(0, 9, &[1; 100])).await.unwrap();
    produce.wait_for_request(Duration::from_secs(1)).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(20), produce.read_request()).await;
    assert!(waited.is_err(), "the body must not be read");

    let (mut consumer, server) = tokio::io::duplex(64 * 1024);
    let mut others = FrameReader::new(server, limits(), budgets.clone());
    consumer.write_all(&request(12, 4, &[1; 100])).await.unwrap();
    consumer.write_all(&request(1, 12, &[1; 10_000])).await.unwrap();
    assert!(next(&mut others).await.unwrap().permit.is_none());
    let fetch = next(&mut others).await.unwrap();
    assert_eq!(budgets.other.available(), 64 * 1024 - 10_008);
    drop(fetch);
    assert_eq!(budgets.other.available(), 64 * 1024);

    drop(held);
    let frame = produce.read_request().await.unwrap();
    assert_eq!(frame.bytes.len(), 108);
    assert_eq!(budgets.produce.available(), 1000 - 108);

    consumer
        .write_all(&request(8, 2, &[1; 100_000])[..100])
        .await
        .unwrap();
    assert!(matches!(
        next(&mut others).await,
        Err(FrameError::TooLarge { limit: 65_536, .. })
    ));
}

#[tokio::test]
async fn pings_of_peers_are_small() {
    use crate::peers::message::{PEER_PING, REQUEST_BYTES_MAX};
    let fits = request(PEER_PING, 0, &[0; REQUEST_BYTES_MAX - 8]);
    let (mut reader, mut client) = reader(limits());
    client.write_all(&fits).await.unwrap();
    assert_eq!(next(&mut reader).await.unwrap().bytes.len(), REQUEST_BYTES_MAX);
    // Refused by its length, before anything more of it is read.
    let mut start = request(PEER_PING, 0, &[]);
    start[..4].copy_from_slice(&(REQUEST_BYTES_MAX as i32 + 1).to_be_bytes());
    client.write_all(&start).await.unwrap();
    let refused = next(&mut reader).await;
    assert!(
        matches!(
            refused,
            Err(FrameError::TooLarge {
                length: 129,
                limit: 128
            })
        ),
        "{refused:?}"
    );
}
