use super::*;

fn parse(url: &str) -> Result<Location, String> {
    Location::parse(url).map_err(|error| error.to_string())
}

#[test]
fn urls() {
    let dir = |path: &str| Ok(Location::Directory(path.into()));
    assert_eq!(parse("memory://"), Ok(Location::Memory));
    assert_eq!(parse("file:///var/lib/a%20b"), dir("/var/lib/a b"));
    assert_eq!(parse("file://localhost/x"), dir("/x"));
    assert_eq!(parse("file:data/here"), dir("data/here"));
    assert_eq!(parse("./alluvium-data"), dir("./alluvium-data"));
    assert_eq!(parse("/abs/pa th"), dir("/abs/pa th"));
    assert_eq!(parse("./odd:name"), dir("./odd:name"));
    let s3 = |bucket: &str, prefix: &str| {
        Ok(Location::S3 {
            bucket: bucket.to_owned(),
            prefix: Path::parse(prefix).unwrap(),
        })
    };
    assert_eq!(parse("s3://bucket"), s3("bucket", ""));
    assert_eq!(parse("s3://bucket/"), s3("bucket", ""));
    assert_eq!(parse("S3://b.u-c/team/a"), s3("b.u-c", "team/a"));
}

#[test]
fn bad_urls_are_one_line_that_names_what_is_accepted() {
    let bad = [
        ("", "empty"),
        ("gs://bucket", "unknown scheme 'gs'"),
        ("https://bucket.s3.amazonaws.com/x", "unknown scheme 'https'"),
        ("s3:bucket", "s3 URLs look like"),
        ("s3://", "the bucket is missing"),
        ("s3:///prefix", "the bucket is missing"),
        ("s3://buc ket/x", "is not a bucket name"),
        ("s3://b/x?region=eu", "no query"),
        ("s3://b/a/../c", "bad prefix"),
        ("s3://b/a//c", "bad prefix"),
        ("file://data", "three slashes"),
        ("file:", "the path is empty"),
        ("file:///a%zz", "percent-encoding"),
        ("file:///a%00b", "percent-encoding"),
        ("memory://name", "takes no path"),
    ];
    for (url, expected) in bad {
        let error = parse(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
        assert!(
            error.contains("expected memory://") && !error.contains('\n'),
            "{url}: {error}"
        );
    }
}

#[test]
fn secrets_in_a_url_are_not_shown() {
    for url in [
        "s3://AKIA:hunter2@bucket/x",
        "gs://u:hunter2@h/p",
        "s3://b/x?secret=hunter2",
    ] {
        let error = parse(url).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn keys_live_under_the_prefix_and_are_not_encoded_twice() {
    let mut store = Store::open("memory://", StoreOptions::default()).await.unwrap();
    assert_eq!(
        store.key("cluster/manifest.json").as_ref(),
        "cluster/manifest.json"
    );
    store.prefix = Path::parse("team/a").unwrap();
    let key = store.key(&format!("archive/topic={}/1", segment("a/b c%é")));
    assert_eq!(key.as_ref(), "team/a/archive/topic=a%2Fb c%25%C3%A9/1");
    assert_eq!(Path::parse(key.as_ref()).unwrap(), key);
}

#[test]
fn backoff_doubles_up_to_its_bound_with_jitter() {
    let limits = AttemptLimits::default();
    let millis = |failures, random| limits.backoff(failures, random).as_millis();
    assert_eq!(
        [millis(1, 0.0), millis(1, 1.0), millis(2, 1.0), millis(3, 1.0)],
        [25, 50, 100, 200]
    );
    assert_eq!([millis(40, 0.0), millis(u32::MAX, 1.0)], [1000, 2000]);
    assert_eq!(limits.timeout(0), Duration::from_secs(10));
    assert_eq!(limits.timeout(4 * 1024 * 1024), Duration::from_secs(14));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_conforms() {
    let store = Store::open("memory://", StoreOptions::default()).await.unwrap();
    conformance::run(&store).await.unwrap();
}
