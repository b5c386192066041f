//! What every backend must do, as one suite that each of them runs: memory, directory, S3 and its imitations.
//! Test code that lives here so that other packages can call it.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStoreExt, PutPayload, UpdateVersion};

use super::conditional::{CreateOutcome, Patience, UpdateOutcome, create, read, update};
use super::probe::probe;
use super::{Store, segment};

type Checked = Result<(), String>;

const WRITERS: usize = 8;
const INCREMENTS: usize = 10;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// Runs the whole suite under a fresh prefix of `store` and removes what it wrote. The error says which part
/// failed and how.
pub async fn run(store: &Store) -> Checked {
    let mut store = store.clone();
    store.prefix = store.key(&format!("conformance/{:016x}", store.random_u64()));
    let store = &store;
    probe(store).await.map_err(|error| error.to_string())?;
    let named = |part: &str, result: Checked| result.map_err(|error| format!("{part}: {error}"));
    named("create", creates(store).await)?;
    named("create race", create_races(store).await)?;
    named("update", updates(store).await)?;
    named("counter", counter(store).await)?;
    named("ranges", ranges(store).await)?;
    named("empty object", empty_object(store).await)?;
    named("large object", large_object(store).await)?;
    named("odd keys", odd_keys(store).await)?;
    named("list", lists(store).await)?;
    named("delete", deletes(store).await)?;
    let left: Vec<_> = store
        .bulk
        .list(Some(&store.prefix))
        .map_ok(|meta| meta.location)
        .collect()
        .await;
    let deleted: Vec<_> = store
        .bulk
        .delete_stream(stream::iter(left).boxed())
        .collect()
        .await;
    named(
        "clean-up",
        deleted
            .into_iter()
            .try_for_each(|deleted| deleted.map(drop).map_err(text)),
    )
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn put(store: &Store, key: &Path, body: impl Into<PutPayload>) -> Checked {
    store.bulk.put(key, body.into()).await.map(drop).map_err(text)
}

async fn get(store: &Store, key: &Path) -> Result<Bytes, String> {
    store
        .bulk
        .get(key)
        .await
        .map_err(text)?
        .bytes()
        .await
        .map_err(text)
}

async fn create_text(store: &Store, key: &Path, body: &str) -> CreateOutcome {
    let nonce = body.to_owned();
    let is_mine = move |start: &Bytes| start == nonce.as_bytes();
    create(store, key, body.to_owned().into(), is_mine, Patience::Forever).await
}

async fn creates(store: &Store) -> Checked {
    let key = store.key("create/one");
    let outcomes = [
        create_text(store, &key, "a").await,
        create_text(store, &key, "b").await,
    ];
    ensure!(
        outcomes[0] == CreateOutcome::Committed,
        "first: {:?}",
        outcomes[0]
    );
    ensure!(
        outcomes[1] == CreateOutcome::Lost("a".into()),
        "second: {:?}",
        outcomes[1]
    );
    // The same writer again, after a restart say.
    let again = create_text(store, &key, "a").await;
    ensure!(
        again == CreateOutcome::Committed,
        "the first writer again: {again:?}"
    );
    ensure!(get(store, &key).await? == "a", "the content changed");
    Ok(())
}

async fn create_races(store: &Store) -> Checked {
    for round in 0..10 {
        let key = store.key(&format!("race/{round:03}"));
        let bodies: Vec<_> = (0..WRITERS).map(|writer| format!("writer {writer}")).collect();
        let outcomes = join_all(bodies.iter().map(|body| create_text(store, &key, body))).await;
        let found = get(store, &key).await?;
        for (body, outcome) in bodies.iter().zip(outcomes) {
            let expected = match found == body.as_bytes() {
                true => CreateOutcome::Committed,
                false => CreateOutcome::Lost(found.clone()),
            };
            ensure!(
                outcome == expected,
                "{key} holds {found:?}, but {body} was told {outcome:?}"
            );
        }
    }
    Ok(())
}

async fn updates(store: &Store) -> Checked {
    let key = store.key("update/one");
    let write = async |body: &'static str, from: Option<&UpdateVersion>| {
        update(
            store,
            &key,
            body.into(),
            from,
            move |found| found == body,
            Patience::Forever,
        )
        .await
    };
    ensure!(
        read(store, &key).await.map_err(text)?.is_none(),
        "a fresh key can be read"
    );
    let UpdateOutcome::Committed(first) = write("1", None).await else {
        return Err("the first write was not committed".to_owned());
    };
    let found = read(store, &key).await.map_err(text)?;
    ensure!(found.as_ref() == Some(&first), "read {found:?} after {first:?}");
    let outcome = write("2", None).await;
    ensure!(
        outcome == UpdateOutcome::Lost(Some(first.clone())),
        "a second first write: {outcome:?}"
    );
    let UpdateOutcome::Committed(second) = write("3", Some(&first.version)).await else {
        return Err("an update from the newest version was not committed".to_owned());
    };
    ensure!(
        first.version.e_tag != second.version.e_tag,
        "two versions with one ETag"
    );
    let outcome = write("4", Some(&first.version)).await;
    ensure!(
        outcome == UpdateOutcome::Lost(Some(second.clone())),
        "a stale update: {outcome:?}"
    );
    store.bulk.delete(&key).await.map_err(text)?;
    let outcome = write("5", Some(&second.version)).await;
    ensure!(
        outcome == UpdateOutcome::Lost(None),
        "an update of a deleted key: {outcome:?}"
    );
    Ok(())
}

/// Tasks increment one counter by compare-and-swap. Each keeps the number of its last commit in the body, so
/// that it can tell whether a write of its own has landed.
async fn counter(store: &Store) -> Checked {
    let key = store.key("counter");
    let tasks = (0..WRITERS).map(|writer| {
        let (store, key) = (store.clone(), key.clone());
        tokio::spawn(async move {
            for commit in 1..=INCREMENTS as u64 {
                increment(&store, &key, writer, commit).await?;
            }
            Ok::<_, String>(())
        })
    });
    for task in join_all(tasks).await {
        task.map_err(text)??;
    }
    let body = get(store, &key).await?;
    let commits = parse_counter(&body)?;
    ensure!(
        commits[WRITERS] == (WRITERS * INCREMENTS) as u64,
        "acknowledged increments are missing: {commits:?}"
    );
    ensure!(
        commits[..WRITERS].iter().all(|&last| last == INCREMENTS as u64),
        "commits: {commits:?}"
    );
    Ok(())
}

async fn increment(store: &Store, key: &Path, writer: usize, commit: u64) -> Checked {
    let mut current = read(store, key).await.map_err(text)?;
    loop {
        let mut commits = match &current {
            Some(found) => parse_counter(&found.bytes)?,
            None => vec![0; WRITERS + 1],
        };
        ensure!(
            commits[writer] == commit - 1,
            "writer {writer} finds {commits:?} before commit {commit}"
        );
        commits[writer] = commit;
        commits[WRITERS] += 1;
        let body = commits.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let landed = |found: &Bytes| parse_counter(found).is_ok_and(|found| found[writer] >= commit);
        let version = current.as_ref().map(|found| &found.version);
        match update(store, key, body.into(), version, landed, Patience::Forever).await {
            UpdateOutcome::Committed(_) => return Ok(()),
            UpdateOutcome::Lost(found) => current = found,
            UpdateOutcome::Unknown(why) => return Err(format!("unknown in spite of all patience: {why}")),
        }
    }
}

fn parse_counter(body: &[u8]) -> Result<Vec<u64>, String> {
    let body = str::from_utf8(body).map_err(text)?;
    let commits: Vec<u64> = body
        .split(' ')
        .map(|n| n.parse().map_err(text))
        .collect::<Result<_, _>>()?;
    ensure!(commits.len() == WRITERS + 1, "{body:?}");
    Ok(commits)
}

async fn ranges(store: &Store) -> Checked {
    let key = store.key("ranges");
    let body: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    put(store, &key, body.clone()).await?;
    let size = body.len() as u64;
    let cases = [
        (GetRange::Bounded(0..1), 0..1),
        (GetRange::Bounded(99_999..100_000), 99_999..100_000),
        (GetRange::Bounded(50_000..1_000_000), 50_000..100_000),
        (GetRange::Offset(99_990), 99_990..100_000),
        (GetRange::Suffix(1), 99_999..100_000),
        (GetRange::Suffix(64_000), 36_000..100_000),
        (GetRange::Suffix(200_000), 0..100_000),
    ];
    for (range, expected) in cases {
        let options = GetOptions::new().with_range(Some(range.clone()));
        let found = store
            .bulk
            .get_opts(&key, options)
            .await
            .map_err(|error| format!("{range}: {error}"))?;
        ensure!(
            found.meta.size == size,
            "{range}: size {} instead of {size}",
            found.meta.size
        );
        ensure!(
            found.range == expected,
            "{range}: {:?} instead of {expected:?}",
            found.range
        );
        let bytes = found.bytes().await.map_err(text)?;
        ensure!(
            bytes == body[expected.start as usize..expected.end as usize],
            "{range}: other bytes"
        );
    }
    let past_the_end = store.bulk.get_range(&key, size..size + 1).await;
    ensure!(past_the_end.is_err(), "a range past the end: {past_the_end:?}");
    let head = store.bulk.head(&key).await.map_err(text)?;
    ensure!(
        head.size == size && head.location == key && head.e_tag.is_some(),
        "head: {head:?}"
    );
    let unchanged = GetOptions::new().with_if_none_match(head.e_tag);
    let unchanged = store.bulk.get_opts(&key, unchanged).await.map(drop);
    ensure!(
        matches!(unchanged, Err(Error::NotModified { .. })),
        "an unchanged key: {unchanged:?}"
    );
    Ok(())
}

async fn empty_object(store: &Store) -> Checked {
    let key = store.key("empty");
    put(store, &key, PutPayload::new()).await?;
    ensure!(get(store, &key).await?.is_empty(), "it has bytes");
    ensure!(
        store.bulk.head(&key).await.map_err(text)?.size == 0,
        "its size is not 0"
    );
    let outcome = create_text(store, &key, "late").await;
    ensure!(
        outcome == CreateOutcome::Lost(Bytes::new()),
        "a create over it: {outcome:?}"
    );
    Ok(())
}

async fn large_object(store: &Store) -> Checked {
    let key = store.key("large");
    // 8 MiB in chunks of many sizes, none among them, and more than one writev takes.
    let mut chunks = Vec::new();
    let (mut size, mut state) = (0usize, 1u32);
    while size < 8 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let bytes = match chunks.len() % 64 {
            0 => 300_000,
            _ => (state >> 20) as usize,
        };
        chunks.push(Bytes::from(vec![state as u8; bytes.min((8 << 20) - size)]));
        size += bytes.min((8 << 20) - size);
        if chunks.len() % 10 == 0 {
            chunks.push(Bytes::new());
        }
    }
    ensure!(
        chunks.len() > 1024,
        "the case is too small: {} chunks",
        chunks.len()
    );
    let payload = PutPayload::from_iter(chunks);
    let whole = Bytes::from(payload.clone());
    let start = whole.slice(..256);
    let is_mine = move |found: &Bytes| found == &start;
    let outcome = create(store, &key, payload, is_mine, Patience::Forever).await;
    ensure!(outcome == CreateOutcome::Committed, "{outcome:?}");
    ensure!(get(store, &key).await? == whole, "other bytes came back");
    let (from, to) = (4_194_000, 4_195_000);
    let part = store.bulk.get_range(&key, from..to).await.map_err(text)?;
    ensure!(
        part == whole.slice(from as usize..to as usize),
        "a range in the middle is wrong"
    );
    Ok(())
}

async fn odd_keys(store: &Store) -> Checked {
    let long = "x".repeat(200);
    let names = [
        "with space",
        "ünïcødé-日本語-🚀",
        "100%",
        "a%2Fb",
        "a/b",
        "a+b",
        "a=b&c",
        "semi;colon,comma",
        "q?x#y",
        "back\\slash",
        "..",
        ".",
        "...",
        ".hidden",
        "'quote'\"",
        "tab\there",
        "[b]{c}|d^e`f~",
        "@:!$()*",
        &long,
    ];
    let mut expected = HashSet::new();
    for (number, name) in names.into_iter().enumerate() {
        let key = store.key(&format!("odd/topic={}/{number}", segment(name)));
        put(store, &key, format!("{number}"))
            .await
            .map_err(|error| format!("{name:?}: {error}"))?;
        let found = get(store, &key)
            .await
            .map_err(|error| format!("{name:?}: {error}"))?;
        ensure!(found == number.to_string(), "{name:?}: {found:?}");
        expected.insert(key);
    }
    let listed = keys(store, "odd").await?;
    let found: HashSet<_> = listed.iter().cloned().collect();
    ensure!(
        found == expected,
        "listed {:?} instead of the same",
        found.symmetric_difference(&expected)
    );
    for key in &listed {
        ensure!(
            store.bulk.head(key).await.is_ok(),
            "{key} was listed and cannot be found"
        );
    }
    Ok(())
}

async fn keys(store: &Store, prefix: &str) -> Result<Vec<Path>, String> {
    store
        .bulk
        .list(Some(&store.key(prefix)))
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .map_err(text)
}

async fn lists(store: &Store) -> Checked {
    // In the order of their bytes.
    let names = [
        "l/0",
        "l/a-b/x",
        "l/a/1",
        "l/a/2",
        "l/a0/x",
        "l/b/c/d/e",
        "l/b/c/f",
        "l/z",
    ];
    for (number, name) in names.iter().enumerate() {
        put(store, &store.key(name), "x".repeat(number)).await?;
    }
    put(store, &store.key("l2/other"), "x").await?;
    let all: Vec<_> = names.iter().map(|name| store.key(name)).collect();
    let found = keys(store, "l").await?;
    ensure!(found == all, "{found:?}");
    let found = keys(store, "l/a").await?;
    ensure!(found == all[2..4], "below l/a: {found:?}");
    ensure!(
        keys(store, "l/nothing").await?.is_empty(),
        "an empty prefix lists something"
    );
    let offset = store.bulk.list_with_offset(Some(&store.key("l")), &all[3]);
    let found: Vec<_> = offset
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .map_err(text)?;
    ensure!(found == all[4..], "after {}: {found:?}", all[3]);
    let sizes: Vec<_> = store
        .bulk
        .list(Some(&store.key("l")))
        .map_ok(|meta| meta.size)
        .try_collect()
        .await
        .map_err(text)?;
    ensure!(
        sizes == (0..names.len() as u64).collect::<Vec<_>>(),
        "sizes: {sizes:?}"
    );
    let level = store
        .bulk
        .list_with_delimiter(Some(&store.key("l")))
        .await
        .map_err(text)?;
    let objects: Vec<_> = level.objects.into_iter().map(|meta| meta.location).collect();
    ensure!(
        objects == [store.key("l/0"), store.key("l/z")],
        "objects of one level: {objects:?}"
    );
    let below = ["l/a-b", "l/a", "l/a0", "l/b"].map(|name| store.key(name));
    let (found, below) = (HashSet::from_iter(level.common_prefixes), HashSet::from(below));
    ensure!(found == below, "prefixes of one level: {found:?}");
    Ok(())
}

async fn deletes(store: &Store) -> Checked {
    let all: Vec<_> = (0..20)
        .map(|number| store.key(&format!("d/{number:02}")))
        .collect();
    for key in &all {
        put(store, key, "x").await?;
    }
    let (gone, kept) = all.split_at(15);
    let gone_stream = stream::iter(gone.to_vec()).map(Ok).boxed();
    let deleted: Vec<_> = store
        .bulk
        .delete_stream(gone_stream)
        .try_collect()
        .await
        .map_err(text)?;
    ensure!(deleted == gone, "reported {deleted:?}");
    let left = keys(store, "d").await?;
    ensure!(left == kept, "left {left:?}");
    let missing = store.bulk.delete(&gone[0]).await;
    ensure!(
        matches!(missing, Ok(()) | Err(Error::NotFound { .. })),
        "deleting what is gone: {missing:?}"
    );
    let found = store.bulk.get(&gone[0]).await.map(drop);
    ensure!(
        matches!(found, Err(Error::NotFound { .. })),
        "a deleted key: {found:?}"
    );
    let outcome = create_text(store, &gone[0], "again").await;
    ensure!(
        outcome == CreateOutcome::Committed,
        "creating it again: {outcome:?}"
    );
    Ok(())
}
