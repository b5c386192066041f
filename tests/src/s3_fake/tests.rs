//! The fake as object_store's S3 client sees it.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig, UpdateVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn start() -> S3Fake {
    S3Fake::start(Options::default()).unwrap()
}

fn with_faults(rules: &[&str]) -> S3Fake {
    let fake = start();
    fake.set_fault_texts(rules);
    fake
}

/// A client that never retries, as the log's conditional one.
fn client(fake: &S3Fake) -> AmazonS3 {
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let options = ClientOptions::new()
        .with_allow_http(true)
        .with_timeout(Duration::from_secs(2));
    AmazonS3Builder::new()
        .with_endpoint(fake.endpoint())
        .with_bucket_name("alluvium")
        .with_region("us-east-1")
        .with_access_key_id("fake")
        .with_secret_access_key("fake")
        .with_unsigned_payload(true)
        .with_client_options(options)
        .with_retry(retry)
        .build()
        .unwrap()
}

async fn put(store: &AmazonS3, key: &str, body: &'static str, mode: PutMode) -> Result<String, Error> {
    let result = store
        .put_opts(&Path::from(key), body.into(), PutOptions::from(mode))
        .await?;
    Ok(result.e_tag.unwrap())
}

fn update(etag: &str) -> PutMode {
    PutMode::Update(UpdateVersion {
        e_tag: Some(etag.to_owned()),
        version: None,
    })
}

async fn get(store: &AmazonS3, key: &str) -> Result<Bytes, Error> {
    store.get(&Path::from(key)).await?.bytes().await
}

#[tokio::test]
async fn creates_only_what_is_absent() {
    let fake = start();
    let store = client(&fake);
    let etag = put(&store, "k", "one", PutMode::Create).await.unwrap();
    assert_eq!(
        etag, "\"f97c5d29941bfb1b2fdab0874906ab82\"",
        "the MD5 of the content, quoted"
    );
    let error = put(&store, "k", "two", PutMode::Create).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error:?}");
    assert_eq!(fake.get("k").unwrap(), "one");
    assert_eq!(fake.counts().of(Kind::Put).errors, 1);
}

#[tokio::test]
async fn one_of_many_racing_creates_and_updates_wins() {
    let fake = start();
    let stores: Vec<AmazonS3> = (0..8).map(|_| client(&fake)).collect();
    for round in 0..20 {
        let key = format!("k{round}");
        let creates = stores.iter().map(|store| put(store, &key, "a", PutMode::Create));
        let won = futures::future::join_all(creates)
            .await
            .into_iter()
            .filter(Result::is_ok)
            .count();
        assert_eq!(won, 1, "creates");
        let etag = client_etag(&stores[0], &key).await;
        let updates = ["b", "c", "d", "e"].into_iter().zip(&stores);
        let updates = updates.map(|(body, store)| put(store, &key, body, update(&etag)));
        let won = futures::future::join_all(updates)
            .await
            .into_iter()
            .filter(Result::is_ok)
            .count();
        assert_eq!(won, 1, "updates");
    }
}

async fn client_etag(store: &AmazonS3, key: &str) -> String {
    store.head(&Path::from(key)).await.unwrap().e_tag.unwrap()
}

#[tokio::test]
async fn updates_only_what_matches() {
    let fake = start();
    let store = client(&fake);
    let first = put(&store, "k", "one", PutMode::Create).await.unwrap();
    let second = put(&store, "k", "two", update(&first)).await.unwrap();
    let error = put(&store, "k", "three", update(&first)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition { .. }), "{error:?}");
    // The trap of content hashes: the first content again makes the first ETag valid again.
    put(&store, "k", "one", update(&second)).await.unwrap();
    put(&store, "k", "aba", update(&first)).await.unwrap();
    // S3 says 404 here, which object_store turns into a failed precondition.
    let error = put(&store, "missing", "x", update(&first)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition { .. }), "{error:?}");
    assert!(fake.get("missing").is_none());
}

#[tokio::test]
async fn counter_etags_never_repeat() {
    let fake = S3Fake::start(Options {
        etags: EtagKind::Counter,
        ..Options::default()
    })
    .unwrap();
    let store = client(&fake);
    let first = put(&store, "k", "one", PutMode::Create).await.unwrap();
    let second = put(&store, "k", "one", update(&first)).await.unwrap();
    assert_ne!(first, second);
    assert!(put(&store, "k", "one", update(&first)).await.is_err());
}

#[tokio::test]
async fn unsafe_stores_let_more_than_one_win() {
    for conditions in [Conditions::Ignored, Conditions::NotAtomic] {
        let fake = S3Fake::start(Options {
            conditions,
            ..Options::default()
        })
        .unwrap();
        let stores: Vec<AmazonS3> = (0..4).map(|_| client(&fake)).collect();
        let creates = stores.iter().map(|store| put(store, "k", "a", PutMode::Create));
        let won = futures::future::join_all(creates)
            .await
            .into_iter()
            .filter(Result::is_ok)
            .count();
        assert!(won > 1, "{conditions:?}: {won} won");
        let late = put(&stores[0], "k", "b", PutMode::Create).await;
        assert_eq!(late.is_ok(), conditions == Conditions::Ignored);
    }
}

#[tokio::test]
async fn reads_ranges_and_conditions() {
    let fake = start();
    fake.put_raw("k", "0123456789").unwrap();
    let store = client(&fake);
    let path = Path::from("k");
    let range = async |range: GetRange| {
        let options = GetOptions {
            range: Some(range),
            ..GetOptions::default()
        };
        let result = store.get_opts(&path, options).await?;
        let span = result.range.clone();
        result.bytes().await.map(|bytes| (span, bytes))
    };
    assert_eq!(
        range(GetRange::Bounded(2..5)).await.unwrap(),
        (2..5, "234".into())
    );
    assert_eq!(
        range(GetRange::Bounded(8..50)).await.unwrap(),
        (8..10, "89".into())
    );
    assert_eq!(range(GetRange::Offset(7)).await.unwrap(), (7..10, "789".into()));
    assert_eq!(range(GetRange::Suffix(3)).await.unwrap(), (7..10, "789".into()));
    assert_eq!(
        range(GetRange::Suffix(30)).await.unwrap(),
        (0..10, "0123456789".into())
    );
    assert!(range(GetRange::Offset(10)).await.is_err());
    let etag = client_etag(&store, "k").await;
    let get = async |options: GetOptions| {
        store
            .get_opts(&path, options)
            .await
            .map(|result| result.meta.size)
    };
    let known = GetOptions {
        if_none_match: Some(etag.clone()),
        ..GetOptions::default()
    };
    assert!(matches!(get(known).await, Err(Error::NotModified { .. })));
    let other = GetOptions {
        if_none_match: Some("\"x\"".into()),
        ..GetOptions::default()
    };
    assert_eq!(get(other).await.unwrap(), 10);
    let matching = GetOptions {
        if_match: Some(etag),
        ..GetOptions::default()
    };
    assert_eq!(get(matching).await.unwrap(), 10);
    let stale = GetOptions {
        if_match: Some("\"x\"".into()),
        ..GetOptions::default()
    };
    assert!(matches!(get(stale).await, Err(Error::Precondition { .. })));
    assert!(matches!(
        self::get(&store, "missing").await,
        Err(Error::NotFound { .. })
    ));
    let meta = store.head(&path).await.unwrap();
    assert_eq!(meta.size, 10);
    assert!((chrono::Utc::now() - meta.last_modified).num_seconds().abs() < 5);
    assert!(matches!(
        store.head(&Path::from("missing")).await,
        Err(Error::NotFound { .. })
    ));
}

#[tokio::test]
async fn lists_in_pages() {
    let fake = start();
    let mut all: Vec<String> = (0..2_345).map(|i| format!("wal/{:02}/{i:05}", i % 7)).collect();
    all.sort();
    for key in &all {
        fake.put_raw(key, "x").unwrap();
    }
    for key in ["wal", "walk", "a&b <c>", "é/x"] {
        fake.put_raw(key, "x").unwrap();
    }
    let store = client(&fake);
    let list = async |prefix: &str, after: Option<&str>| -> Vec<String> {
        let prefix = Path::from(prefix);
        let stream = match after {
            None => store.list(Some(&prefix)),
            Some(after) => store.list_with_offset(Some(&prefix), &Path::from(after)),
        };
        stream
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .unwrap()
    };
    assert_eq!(list("wal", None).await, all);
    assert_eq!(fake.counts().of(Kind::List).requests, 3, "pages of 1,000");
    assert_eq!(list("wal", Some(&all[1_999])).await, all[2_000..]);
    assert_eq!(store.list(None).count().await, all.len() + 4);
    let folded = store.list_with_delimiter(Some(&Path::from("wal"))).await.unwrap();
    let prefixes: Vec<String> = folded.common_prefixes.iter().map(Path::to_string).collect();
    assert_eq!(
        prefixes,
        (0..7).map(|i| format!("wal/{i:02}")).collect::<Vec<_>>()
    );
    let top = store.list_with_delimiter(None).await.unwrap();
    assert_eq!((top.common_prefixes.len(), top.objects.len()), (2, 3));
    assert_eq!(fake.counts().rejected, 0);
}

#[test]
fn pages_of_any_size_are_the_same_list() {
    let mut buckets = bucket::Buckets::new(u64::MAX);
    buckets.create_bucket("b").unwrap();
    for key in [
        "a",
        "a/1",
        "a/2",
        "a/b/3",
        "b",
        "c/1",
        "c/2",
        "d\u{d7ff}/1",
        "d\u{10ffff}/1",
        "e",
    ] {
        buckets
            .put(
                "b",
                key,
                bucket::Payload::default(),
                &Precondition::None,
                Moment::now(),
            )
            .unwrap();
    }
    for (prefix, delimiter, expected) in [
        ("", Some("/"), "a a/ b c/ d\u{d7ff}/ d\u{10ffff}/ e"),
        ("a", Some("/"), "a a/"),
        ("a/", Some("/"), "a/1 a/2 a/b/"),
        ("a/", None, "a/1 a/2 a/b/3"),
    ] {
        for keys_max in 1..12 {
            let mut query = bucket::ListQuery {
                prefix: prefix.to_owned(),
                delimiter: delimiter.map(str::to_owned),
                keys_max,
                ..bucket::ListQuery::default()
            };
            let mut found = Vec::new();
            loop {
                let page = buckets.list("b", &query, None).unwrap();
                assert!(page.objects.len() + page.prefixes.len() <= keys_max);
                found.extend(page.objects.into_iter().map(|(key, _)| key).chain(page.prefixes));
                match page.next {
                    Some(token) => query.token = Some(token),
                    None => break,
                }
            }
            found.sort();
            assert_eq!(found.join(" "), expected, "pages of {keys_max}");
        }
    }
}

#[tokio::test]
async fn deletes_one_and_many() {
    let fake = start();
    let store = client(&fake);
    for i in 0..1_500 {
        fake.put_raw(&format!("k/{i}"), "x").unwrap();
    }
    store.delete(&Path::from("k/0")).await.unwrap();
    store.delete(&Path::from("k/0")).await.unwrap();
    let paths: Vec<_> = (1..1_400).map(|i| Ok(Path::from(format!("k/{i}")))).collect();
    let deleted = store.delete_stream(futures::stream::iter(paths).boxed());
    assert_eq!(deleted.try_collect::<Vec<_>>().await.unwrap().len(), 1_399);
    assert_eq!(fake.objects("k/").len(), 100);
    assert_eq!(fake.bytes_stored(), 100);
    assert_eq!(fake.counts().rejected, 0);
}

#[tokio::test]
async fn joins_multipart_uploads() {
    let fake = start();
    let store = client(&fake);
    let part = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
    let mut upload = store.put_multipart(&Path::from("big")).await.unwrap();
    upload.put_part(part(b'a', 5 << 20).into()).await.unwrap();
    upload.put_part(part(b'b', 100).into()).await.unwrap();
    assert!(fake.get("big").is_none(), "visible only when complete");
    let etag = upload.complete().await.unwrap().e_tag.unwrap();
    assert!(etag.trim_matches('"').ends_with("-2"), "{etag}");
    let object = get(&store, "big").await.unwrap();
    assert_eq!(object.len(), (5 << 20) + 100);
    assert_eq!(
        (object[0], object[(5 << 20) - 1], object[5 << 20]),
        (b'a', b'a', b'b')
    );

    let mut aborted = store.put_multipart(&Path::from("gone")).await.unwrap();
    aborted.put_part(part(b'a', 1_000).into()).await.unwrap();
    aborted.abort().await.unwrap();
    assert!(fake.get("gone").is_none());
    assert_eq!(fake.bytes_stored(), (5 << 20) + 100);

    let mut small = store.put_multipart(&Path::from("small")).await.unwrap();
    small.put_part(part(b'a', 1_000).into()).await.unwrap();
    small.put_part(part(b'b', 1_000).into()).await.unwrap();
    assert!(
        small
            .complete()
            .await
            .unwrap_err()
            .to_string()
            .contains("EntityTooSmall")
    );
    store.copy(&Path::from("big"), &Path::from("copy")).await.unwrap();
    assert_eq!(fake.get("copy").unwrap(), object);
}

#[tokio::test]
async fn refuses_the_unsigned_and_the_unmeasured() {
    let fake = start();
    let unsigned = AmazonS3Builder::new()
        .with_endpoint(fake.endpoint())
        .with_bucket_name("alluvium")
        .with_skip_signature(true)
        .with_allow_http(true)
        .build()
        .unwrap();
    let error = put(&unsigned, "k", "x", PutMode::Overwrite).await.unwrap_err();
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
    let signature = "Authorization: AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c\r\n\
                     x-amz-date: d\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n";
    for (head, expected) in [
        (
            "PUT /alluvium/k HTTP/1.1\r\nTransfer-Encoding: chunked",
            "411 Length Required",
        ),
        (
            "PUT /alluvium/k HTTP/1.1\r\nContent-Length: 3\r\nIf-Match: \"a\"\r\nIf-None-Match: *",
            "400 Bad Request",
        ),
        (
            "PUT /alluvium/k HTTP/1.1\r\nContent-Length: 3\r\nContent-MD5: AAAA",
            "400 Bad Request",
        ),
        ("PUT /other/k HTTP/1.1\r\nContent-Length: 3", "404 Not Found"),
        (
            "POST /alluvium?delete HTTP/1.1\r\nContent-Length: 3",
            "400 Bad Request",
        ),
        ("GET /alluvium?list-type=2&max-keys=x HTTP/1.1", "400 Bad Request"),
    ] {
        let body = if head.contains("chunked") {
            "0\r\n\r\n"
        } else {
            "abc"
        };
        let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n{signature}\r\n{body}");
        let mut stream = TcpStream::connect(fake.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{head}: {answer}"
        );
    }
    assert!(fake.objects("").is_empty());
    assert_eq!(
        fake.counts().rejected,
        6,
        "an unknown bucket is an answer, not a mistake of form"
    );
}

#[tokio::test]
async fn injected_errors_apply_or_do_not() {
    for (rule, applied) in [
        ("do=500", false),
        ("do=503", false),
        ("do=409", false),
        ("do=cut", false),
        ("do=applied-then-500", true),
        ("do=applied-then-503", true),
        ("do=applied-then-409", true),
        ("do=applied-then-412", true),
        ("do=applied-then-cut", true),
        ("do=applied-then-hang,ms=50", true),
        ("do=hang,ms=50", false),
    ] {
        let fake = with_faults(&[&format!("kind=put,times=1,{rule}")]);
        let store = client(&fake);
        assert!(put(&store, "k", "one", PutMode::Create).await.is_err(), "{rule}");
        assert_eq!(fake.get("k").is_some(), applied, "{rule}");
        assert_eq!(fake.faults_fired(), [1], "{rule}");
        assert_eq!(
            put(&store, "k", "two", PutMode::Create).await.is_err(),
            applied,
            "{rule}"
        );
    }
}

#[tokio::test]
async fn the_trap_of_clients_that_retry() {
    let fake = with_faults(&["kind=put,times=1,do=applied-then-500"]);
    let store = AmazonS3Builder::new()
        .with_endpoint(fake.endpoint())
        .with_bucket_name("alluvium")
        .with_access_key_id("fake")
        .with_secret_access_key("fake")
        .with_allow_http(true)
        .build()
        .unwrap();
    // Why conditional writes go through a client without retries: the own success looks like another's.
    let error = put(&store, "k", "mine", PutMode::Create).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error:?}");
    assert_eq!(fake.get("k").unwrap(), "mine");
}

#[tokio::test]
async fn late_writes_meet_the_state_of_their_landing() {
    for (failure, limit) in [("500", 250), ("cut", 250), ("hang", 10_000)] {
        let fake = with_faults(&[&format!("kind=put,times=1,do=late-{failure},ms=300")]);
        let store = client(&fake);
        let started = Instant::now();
        assert!(put(&store, "k", "late", PutMode::Create).await.is_err());
        assert!(
            started.elapsed() < Duration::from_millis(limit),
            "{failure}: {:?}",
            started.elapsed()
        );
        if failure != "hang" {
            assert!(fake.get("k").is_none(), "{failure}: not yet");
        }
        wait_for(|| fake.get("k").is_some()).await;
        assert_eq!(fake.get("k").unwrap(), "late");
    }
    let fake = with_faults(&["kind=put,times=1,do=late-500,ms=200"]);
    let store = client(&fake);
    assert!(put(&store, "k", "late", PutMode::Create).await.is_err());
    put(&store, "k", "other", PutMode::Create).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(
        fake.get("k").unwrap(),
        "other",
        "the late create loses against what came first"
    );
}

async fn wait_for(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_gives_up_does_not_undo_its_write() {
    let fake = start();
    fake.set_latencies("put=300".parse().unwrap());
    let store = client(&fake);
    let gave_up = tokio::time::timeout(
        Duration::from_millis(100),
        put(&store, "k", "one", PutMode::Create),
    );
    assert!(gave_up.await.is_err());
    wait_for(|| fake.get("k").is_some()).await;
}

#[tokio::test]
async fn bodies_are_cut_and_bits_flip() {
    let fake = start();
    let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    fake.put_raw("k", content.clone()).unwrap();
    let store = client(&fake);
    fake.set_fault_texts(&["do=flip"]);
    let flipped = get(&store, "k").await.unwrap();
    let wrong: Vec<usize> = (0..content.len()).filter(|&i| flipped[i] != content[i]).collect();
    assert_eq!(wrong, [50_000]);
    assert_eq!((flipped[50_000] ^ content[50_000]).count_ones(), 1);
    fake.set_fault_texts(&["do=truncate"]);
    let mut stream = store.get(&Path::from("k")).await.unwrap().into_stream();
    let mut received = 0;
    let error = loop {
        match stream.next().await {
            Some(Ok(chunk)) => received += chunk.len(),
            Some(Err(error)) => break error,
            None => panic!("the body ended well after {received} bytes"),
        }
    };
    assert_eq!(received, 50_000, "{error}");
    fake.set_faults(Vec::new());
    assert_eq!(get(&store, "k").await.unwrap(), content);
}

#[tokio::test]
async fn a_stale_list_shows_the_past() {
    let fake = start();
    fake.put_raw("kept", "x").unwrap();
    fake.put_raw("deleted", "x").unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    fake.put_raw("new", "x").unwrap();
    fake.put_raw("kept", "longer").unwrap();
    fake.remove("deleted");
    let store = client(&fake);
    let list = async || {
        let keys = store
            .list(None)
            .map_ok(|meta| format!("{}:{}", meta.location, meta.size));
        keys.try_collect::<Vec<String>>().await.unwrap()
    };
    fake.set_fault_texts(&["do=stale,ms=300,times=1"]);
    assert_eq!(list().await, ["deleted:1", "kept:1"]);
    assert_eq!(list().await, ["kept:6", "new:1"]);
}

#[tokio::test]
async fn outages_begin_and_end() {
    let fake = start();
    let store = client(&fake);
    put(&store, "k", "one", PutMode::Create).await.unwrap();
    for outage in [Outage::Refuse, Outage::Unavailable] {
        fake.set_outage(Some(outage));
        assert!(get(&store, "k").await.is_err(), "{outage:?}");
        fake.set_outage(None);
        assert_eq!(get(&store, "k").await.unwrap(), "one");
    }
    fake.set_outage(Some(Outage::Hang));
    let hanging = tokio::spawn({
        let store = client(&fake);
        async move { put(&store, "k2", "x", PutMode::Create).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!hanging.is_finished());
    fake.set_outage(None);
    assert!(hanging.await.unwrap().is_err());
    assert!(fake.get("k2").is_none());
    assert_eq!(fake.counts().outage, 3);

    // What had arrived before the outage took effect; its answer is lost.
    fake.set_latencies("put=300".parse().unwrap());
    let store = client(&fake);
    let (result, ()) = tokio::join!(put(&store, "k3", "x", PutMode::Create), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fake.outage(true);
    });
    assert!(result.is_err());
    assert!(fake.get("k3").is_some());
}

#[tokio::test]
async fn takes_its_time() {
    let fake = start();
    fake.set_latencies("put=100,get=50".parse().unwrap());
    let store = client(&fake);
    let started = Instant::now();
    put(&store, "k", "x", PutMode::Create).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(100));
    let started = Instant::now();
    let keys = ["k"; 20];
    futures::future::join_all(keys.iter().map(|key| get(&store, key))).await;
    let elapsed = started.elapsed();
    assert!(
        (50..700).contains(&elapsed.as_millis()),
        "requests wait side by side: {elapsed:?}"
    );
    assert!(fake.counts().of(Kind::Get).in_flight_max > 5);
}

#[tokio::test]
async fn counts_requests_bytes_and_dollars() {
    let fake = start();
    let store = client(&fake);
    put(&store, "k", "12345", PutMode::Create).await.unwrap();
    get(&store, "k").await.unwrap();
    get(&store, "k").await.unwrap();
    let counts = fake.counts();
    let (puts, gets) = (counts.of(Kind::Put), counts.of(Kind::Get));
    assert_eq!((puts.requests, puts.bytes_in, puts.in_flight), (1, 5, 0));
    assert_eq!((gets.requests, gets.bytes_out, gets.in_flight), (2, 10, 0));
    assert!((counts.dollars - 5.8e-6).abs() < 1e-12);
    fake.reset_counts();
    assert_eq!(fake.counts().of(Kind::Put).requests, 0);
}

#[tokio::test]
async fn holds_no_more_than_it_may() {
    let fake = S3Fake::start(Options {
        bytes_max: 10,
        ..Options::default()
    })
    .unwrap();
    let store = client(&fake);
    put(&store, "a", "12345678", PutMode::Overwrite).await.unwrap();
    assert!(put(&store, "b", "12345678", PutMode::Overwrite).await.is_err());
    put(&store, "a", "1234567890", PutMode::Overwrite).await.unwrap();
    fake.remove("a");
    put(&store, "b", "12345678", PutMode::Overwrite).await.unwrap();
}

/// One request to the control paths; the body of its answer.
async fn control(fake: &S3Fake, method: &str, name: &str, body: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(fake.address()).await.unwrap();
    let head = format!("{method} /_fake/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn is_driven_over_http() {
    let fake = start();
    let store = client(&fake);
    let rules = r#"["kind=put,do=500,times=1", {"kind": "get", "do": "flip"}]"#;
    let answer = control(&fake, "PUT", "faults", rules).await;
    assert_eq!(answer[1]["rule"]["do"], "flip");
    assert!(put(&store, "k", "one", PutMode::Create).await.is_err());
    put(&store, "k", "one", PutMode::Create).await.unwrap();
    assert_ne!(get(&store, "k").await.unwrap(), "one");
    assert_eq!(control(&fake, "GET", "faults", "").await[0]["fired"], 1);
    let answer = control(&fake, "PUT", "faults", r#"[{"do": "flip", "wrong": 1}]"#).await;
    assert!(answer["error"].is_string());
    assert_eq!(
        control(&fake, "DELETE", "faults", "").await,
        serde_json::json!([])
    );
    assert_eq!(get(&store, "k").await.unwrap(), "one");
    assert_eq!(control(&fake, "PUT", "outage", "hang").await["outage"], "hang");
    assert_eq!(control(&fake, "DELETE", "outage", "").await["outage"], "off");
    let latency = control(&fake, "PUT", "latency", "put=100/195").await;
    assert_eq!(latency["latency"], "put=100/195,get=0,list=0,delete=0");
    let counts = control(&fake, "GET", "counts", "").await;
    assert_eq!(counts["kinds"]["put"]["requests"], 2);
    assert_eq!(
        (counts["objects"].as_u64(), counts["bytes_stored"].as_u64()),
        (Some(1), Some(3))
    );
    assert_eq!(control(&fake, "GET", "objects", "").await[0]["key"], "k");
    assert!(control(&fake, "GET", "nothing", "").await["error"].is_string());
}
