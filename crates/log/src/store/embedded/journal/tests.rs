//! A crash is opening a copy of the directory that was taken at that point: the journal first and the files
//! then, so that what the journal's thread does in the meantime is in the copy twice and never not at all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt};
use object_store::{
    CopyMode, CopyOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutResult, UpdateVersion,
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::EmbeddedStore;
use super::super::direct::BLOCK;
use super::super::directory::modified_ns;
use super::*;

const RECORDS: usize = format::RECORDS_START;

/// Nothing becomes a file unless somebody asks for it.
const NEVER: Settings = Settings {
    half_bytes: 1024 * 1024,
    drain_after: Duration::MAX,
};

fn open(root: &FilePath) -> EmbeddedStore {
    EmbeddedStore::open_with(root, NEVER).unwrap()
}

async fn create(store: &EmbeddedStore, key: &str, body: &Bytes) -> object_store::Result<PutResult> {
    let key = Path::from(key);
    store
        .put_opts(&key, body.clone().into(), PutMode::Create.into())
        .await
}

fn body(bytes: usize, seed: u8) -> Bytes {
    (0..bytes)
        .map(|i| (i / 3 + i / 4096) as u8 ^ seed)
        .collect::<Vec<_>>()
        .into()
}

/// Every object with its ETag and bytes, as the store tells it. What is listed must be what can be read.
async fn contents(store: &EmbeddedStore) -> BTreeMap<String, (String, Bytes)> {
    let mut found = BTreeMap::new();
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    for meta in listed {
        let got = store.get(&meta.location).await.unwrap();
        assert_eq!(got.meta, meta);
        assert_eq!(store.head(&meta.location).await.unwrap(), meta);
        let bytes = got.bytes().await.unwrap();
        assert_eq!(bytes.len() as u64, meta.size);
        assert!(
            found
                .insert(meta.location.to_string(), (meta.e_tag.unwrap(), bytes))
                .is_none()
        );
    }
    found
}

/// The same from the files alone.
fn regular_files(root: &FilePath) -> BTreeMap<String, (String, Bytes)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with(PRIVATE) {
                    directories.push(path);
                }
                continue;
            }
            let e_tag = format!("\"{:x}\"", modified_ns(&path.metadata().unwrap()));
            let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(key, (e_tag, fs::read(&path).unwrap().into()));
        }
    }
    found
}

fn copy_into(from: &FilePath, to: &FilePath) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            if entry.file_name() != PRIVATE {
                copy_into(&entry.path(), &target);
            }
        } else {
            fs::copy(entry.path(), &target).unwrap();
            let times = fs::FileTimes::new().set_modified(meta.modified().unwrap());
            fs::File::options()
                .write(true)
                .open(&target)
                .unwrap()
                .set_times(times)
                .unwrap();
        }
    }
}

fn copy_journal(from: &FilePath, to: &FilePath) {
    let journal = FilePath::new(PRIVATE).join("journal");
    if from.join(&journal).exists() {
        copy_into(&from.join(&journal), &to.join(&journal));
    }
}

/// The directory as a power cut would leave it now.
fn crashed(root: &FilePath) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_journal(root, copy.path());
    copy_into(root, copy.path());
    copy
}

/// Which half a pending object is in.
fn half_path(root: &FilePath, store: &EmbeddedStore, key: &str) -> PathBuf {
    let half = store.journal.get(key).unwrap().half;
    paths(root)[half].clone()
}

fn live_records(root: &FilePath) -> Vec<String> {
    let halves = paths(root)
        .into_iter()
        .filter_map(|path| half::read(root, &path).unwrap());
    halves
        .flat_map(|found| found.objects)
        .map(|object| object.key)
        .collect()
}

fn refusal(root: &FilePath) -> String {
    let before = fs::metadata(&paths(root)[0]).unwrap().modified().unwrap();
    let line = EmbeddedStore::open_with(root, NEVER).unwrap_err().to_string();
    let looking = EmbeddedStore::open_read_only(root).unwrap_err().to_string();
    assert!(
        !line.contains('\n') && line.contains(&paths(root)[0].display().to_string()),
        "{line}"
    );
    assert!(looking.contains(".alluvium/journal/0"), "{looking}");
    assert_eq!(
        fs::metadata(&paths(root)[0]).unwrap().modified().unwrap(),
        before,
        "it was written to"
    );
    line
}

#[tokio::test]
async fn a_pending_object_is_like_a_file_and_becomes_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sizes = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 100_000];
    for (number, size) in sizes.into_iter().enumerate() {
        let key = format!("wal/{number}/0");
        let put = create(&store, &key, &body(size, 1)).await.unwrap();
        assert!(store.journal.holds(&key));
        assert_eq!(
            store.head(&Path::from(key.as_str())).await.unwrap().e_tag,
            put.e_tag
        );
        let again = create(&store, &key, &body(5, 2)).await.unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
        if size > 2 {
            let range = store
                .get_range(&Path::from(key), 1..size as u64 - 1)
                .await
                .unwrap();
            assert_eq!(range, body(size, 1).slice(1..size - 1));
        }
    }
    assert!(regular_files(dir.path()).is_empty());
    let level = store.list_with_delimiter(Some(&Path::from("wal"))).await.unwrap();
    assert_eq!(
        (level.common_prefixes.len(), level.objects.len()),
        (sizes.len(), 0)
    );
    let level = store
        .list_with_delimiter(Some(&Path::from("wal/3")))
        .await
        .unwrap();
    assert_eq!(level.objects[0].size, 4096);
    let before = contents(&store).await;
    assert_eq!(before.len(), sizes.len());
    store.journal.settle("wal/0/0").unwrap();
    assert_eq!(contents(&store).await, before);
    assert_eq!(
        regular_files(dir.path()),
        before,
        "with the versions that were told"
    );
    // Larger objects do not come here.
    create(&store, "large", &body(PAYLOAD_BYTES_MAX as usize + 1, 1))
        .await
        .unwrap();
    assert!(!store.journal.holds("large"));
}

#[tokio::test]
async fn what_replaces_a_pending_object_sees_it_and_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [old, new] = [body(100, 1), body(200, 2)];
    let [a, b, c, d] = ["wal/a", "wal/b", "wal/c", "wal/d"].map(Path::from);
    let found = async |key: &Path| store.get(key).await.unwrap().bytes().await.unwrap();
    let pending = async |key: &Path| {
        let put = create(&store, key.as_ref(), &old).await.unwrap();
        assert!(store.journal.holds(key.as_ref()));
        put
    };
    pending(&a).await;
    store.put(&a, new.clone().into()).await.unwrap();
    assert_eq!(found(&a).await, new);
    let version = pending(&b).await.e_tag;
    let update = |e_tag: Option<String>| PutMode::Update(UpdateVersion { e_tag, version: None }).into();
    let stale = store
        .put_opts(&b, new.clone().into(), update(Some("\"1\"".to_owned())))
        .await;
    assert!(matches!(stale, Err(Error::Precondition { .. })), "{stale:?}");
    store.delete(&b).await.unwrap();
    let version = [version, pending(&b).await.e_tag];
    let [gone, current] = version.map(|e_tag| store.put_opts(&b, new.clone().into(), update(e_tag)));
    assert!(
        matches!(gone.await, Err(Error::Precondition { .. })),
        "the version of a deleted object"
    );
    current.await.unwrap();
    assert_eq!(found(&b).await, new);
    pending(&c).await;
    store.copy(&c, &b).await.unwrap();
    assert_eq!(found(&b).await, old);
    store.delete(&c).await.unwrap();
    pending(&c).await;
    store.copy(&a, &c).await.unwrap();
    assert_eq!(found(&c).await, new);
    pending(&d).await;
    assert!(matches!(
        store.copy_if_not_exists(&a, &d).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert_eq!(found(&d).await, old);
    store.delete(&d).await.unwrap();
    assert!(matches!(store.get(&d).await, Err(Error::NotFound { .. })));
    let before = contents(&store).await;
    assert_eq!(contents(&open(crashed(dir.path()).path())).await, before);
}

#[tokio::test]
async fn closing_leaves_nothing_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..200 {
        create(
            &store,
            &format!("wal/{}/{number}", number % 3),
            &body(number * 10, 3),
        )
        .await
        .unwrap();
    }
    let before = contents(&store).await;
    assert!(regular_files(dir.path()).len() < 200);
    let clone = store.clone();
    drop(store);
    assert_eq!(live_records(dir.path()).len(), 200, "a clone is left");
    drop(clone);
    assert_eq!(regular_files(dir.path()), before);
    assert_eq!(live_records(dir.path()), [""; 0]);
    // A copy without what is private is all there is.
    let copy = tempfile::tempdir().unwrap();
    copy_into(dir.path(), copy.path());
    assert_eq!(contents(&open(copy.path())).await, before);
}

#[tokio::test]
async fn objects_become_files_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let soon = Settings {
        drain_after: Duration::from_millis(20),
        ..NEVER
    };
    let store = EmbeddedStore::open_with(dir.path(), soon).unwrap();
    for round in 0..3 {
        create(&store, &format!("wal/{round}"), &body(100, round))
            .await
            .unwrap();
        let started = Instant::now();
        while store.journal.holds(&format!("wal/{round}")) {
            assert!(started.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(regular_files(dir.path()).len(), 3);
}

#[tokio::test]
async fn a_torn_record_is_no_object_and_hides_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, "wal/1", &body(5000, 1)).await.unwrap();
    let without = crashed(dir.path());
    let torn_body = body(10_000, 2);
    create(&store, "wal/2", &torn_body).await.unwrap();
    create(&store, "wal/3", &body(5, 3)).await.unwrap();
    let all = contents(&store).await;
    let whole = fs::read(half_path(dir.path(), &store, "wal/2")).unwrap();
    let start = RECORDS + format::record_bytes("wal/1", 5000);
    let end = start + format::record_bytes("wal/2", torn_body.len());
    let content_end = start + 44 + "wal/2".len() + torn_body.len();

    let opened = contents(&open(without.path())).await;
    assert_eq!(opened.keys().collect::<Vec<_>>(), ["wal/1"], "before the record");
    for cut in (start..=end).step_by(512) {
        for first_part in [true, false] {
            let mut half = whole.clone();
            match first_part {
                true => half[cut..end].fill(0),
                false => half[start..cut].fill(0),
            }
            let complete = half[start..content_end] == whole[start..content_end];
            let copy = crashed(dir.path());
            fs::write(half_path(copy.path(), &store, "wal/2"), half).unwrap();
            let opened = open(copy.path());
            let mut expected = all.clone();
            if !complete {
                expected.remove("wal/2");
            }
            assert!(contents(&opened).await == expected, "cut at {}", cut - start);
            assert!(regular_files(copy.path()) == expected, "cut at {}", cut - start);
            // The key is as free as if nothing had been tried.
            assert_eq!(create(&opened, "wal/2", &body(3, 9)).await.is_ok(), !complete);
        }
    }
}

#[tokio::test]
async fn a_crash_while_files_are_made_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..6 {
        create(
            &store,
            &format!("wal/{}/{number}", number % 2),
            &body(number * 3000, 3),
        )
        .await
        .unwrap();
    }
    let before = contents(&store).await;
    let not_begun = crashed(dir.path());
    store.journal.settle("wal/0/0").unwrap();
    for linked in 0..=6 {
        // Files that are not linked yet are in staging, which is emptied.
        let copy = crashed(not_begun.path());
        for key in before.keys().take(linked) {
            let target = copy.path().join(key);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(dir.path().join(key), &target).unwrap();
            let times = fs::metadata(dir.path().join(key)).unwrap().modified().unwrap();
            let file = fs::File::options().write(true).open(&target).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(times)).unwrap();
        }
        let staging = copy.path().join(".alluvium/staging");
        fs::create_dir_all(&staging).unwrap();
        fs::write(staging.join("17"), "half").unwrap();
        let opened = open(copy.path());
        assert!(contents(&opened).await == before, "{linked} files");
        assert_eq!(regular_files(copy.path()), before);
        // All files are there and the half is not reset: what is deleted now must not come back.
        opened.delete(&Path::from("wal/0/0")).await.unwrap();
        let again = crashed(copy.path());
        drop(opened);
        for root in [copy.path(), again.path()] {
            let mut expected = before.clone();
            expected.remove("wal/0/0");
            assert!(contents(&open(root)).await == expected, "{linked} files");
        }
    }
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let key = Path::from("wal/1");
    for round in 0..4 {
        create(&store, "wal/1", &body(100, round)).await.unwrap();
        create(&store, "wal/2", &body(100, 0)).await.ok();
        let created = crashed(dir.path());
        store.delete(&key).await.unwrap();
        let deleted = crashed(dir.path());
        assert_eq!(live_records(dir.path()), [""; 0]);
        create(&store, "wal/1", &body(200, round)).await.unwrap();
        let recreated = crashed(dir.path());
        assert!(store.journal.holds("wal/1"));
        store.journal.settle("wal/1").unwrap();
        assert_eq!(contents(&open(created.path())).await["wal/1"].1, body(100, round));
        let left = contents(&open(deleted.path())).await;
        assert_eq!(left.keys().collect::<Vec<_>>(), ["wal/2"]);
        assert_eq!(
            contents(&open(recreated.path())).await["wal/1"].1,
            body(200, round)
        );
        // The half of the first, from before it was made new, with the files of the second.
        let both = tempfile::tempdir().unwrap();
        copy_journal(recreated.path(), both.path());
        copy_into(dir.path(), both.path());
        assert_eq!(contents(&open(both.path())).await["wal/1"].1, body(200, round));
        store.delete(&key).await.unwrap();
    }
}

/// A journal of one half with these objects, as a process that was killed would leave it.
fn forge(root: &FilePath, half: usize, nonce: u128, objects: &[(&str, i64, &Bytes)]) {
    let directory = Directory::open(root).unwrap();
    let path = paths(root)[half].clone();
    create_durably(path.parent().unwrap()).unwrap();
    let header = Header { generation: 7, nonce };
    let half = Half::create(&directory, path, NEVER.half_bytes, header).unwrap();
    let mut offset = RECORDS as u64;
    for (key, version, body) in objects {
        let record = Record::encode(nonce, *version, key, std::slice::from_ref(body));
        half.write_record(offset, &record).unwrap();
        offset += record.bytes().len() as u64;
    }
}

#[tokio::test]
async fn of_two_records_of_a_key_the_older_counts_and_a_file_counts_more() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, file] = [1, 2, 3].map(|seed| body(5000, seed));
    fs::write(dir.path().join("file"), &file).unwrap();
    forge(
        dir.path(),
        0,
        5,
        &[
            ("wal/1", 2_000, &second),
            ("wal/2", 4_000, &second),
            ("file", 1, &first),
        ],
    );
    forge(
        dir.path(),
        1,
        6,
        &[("wal/1", 1_000, &first), ("wal/2", 5_000, &first)],
    );
    let looking = EmbeddedStore::open_read_only(dir.path()).unwrap();
    let store = open(dir.path());
    for store in [looking, store] {
        let found = contents(&store).await;
        let bodies: Vec<_> = found.into_iter().map(|(key, (_, body))| (key, body)).collect();
        let expected = [("file", &file), ("wal/1", &first), ("wal/2", &second)];
        assert!(bodies == expected.map(|(key, body)| (key.to_owned(), body.clone())));
    }
}

#[test]
fn a_key_that_would_be_elsewhere_is_refused() {
    for key in ["../up", "/etc/alluvium", ".alluvium/lock", "a//b", ""] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        forge(&root, 0, 5, &[(key, 1_000, &body(1, 1))]);
        let line = EmbeddedStore::open_with(&root, NEVER).unwrap_err().to_string();
        assert!(line.contains("which cannot be"), "{key:?}: {line}");
        assert!(!dir.path().join("up").exists());
    }
}

#[tokio::test]
async fn records_of_an_earlier_generation_are_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..5 {
        create(&store, &format!("wal/{number}"), &body(100, 0))
            .await
            .unwrap();
    }
    let halves = paths(dir.path()).map(|path| fs::read(path).unwrap());
    let keys = (0..5).map(|number| Ok(Path::from(format!("wal/{number}"))));
    let deleted = store.delete_stream(futures::stream::iter(keys.collect::<Vec<_>>()).boxed());
    deleted.try_collect::<Vec<_>>().await.unwrap();
    create(&store, "wal/new", &body(100, 0)).await.unwrap();
    // They are still there, behind the new one.
    let half = fs::read(half_path(dir.path(), &store, "wal/new")).unwrap();
    let block = RECORDS + BLOCK;
    assert!(half[block..block + BLOCK] == halves[0][block..block + BLOCK]);
    assert!(half[block..].starts_with(b"alluvobj"));
    let copy = crashed(dir.path());
    assert_eq!(
        contents(&open(copy.path())).await.into_keys().collect::<Vec<_>>(),
        ["wal/new"]
    );
}

#[tokio::test]
async fn a_missing_or_short_journal_loses_only_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut ends = Vec::new();
    for number in 0..4 {
        create(&store, &format!("wal/{number}"), &body(number * 4000, 1))
            .await
            .unwrap();
        ends.push(ends.last().unwrap_or(&RECORDS) + format::record_bytes("wal/0", number * 4000));
    }
    let before = contents(&store).await;
    let path = |root: &FilePath| half_path(root, &store, "wal/0");
    for bytes in (RECORDS..=ends[3]).step_by(1024) {
        let copy = crashed(dir.path());
        let half = fs::File::options().write(true).open(path(copy.path())).unwrap();
        half.set_len(bytes as u64).unwrap();
        let opened = contents(&open(copy.path())).await;
        assert!(opened.iter().all(|(key, found)| before[key] == *found));
        let whole = ends.iter().filter(|&&end| end <= bytes).count();
        assert!(
            opened.len() >= whole && opened.len() <= whole + 1,
            "{} at {bytes}",
            opened.len()
        );
        // It is whole again, and works.
        let store = open(copy.path());
        assert_eq!(fs::metadata(path(copy.path())).unwrap().len(), NEVER.half_bytes);
        create(&store, "wal/next", &body(1, 1)).await.unwrap();
        assert!(store.journal.holds("wal/next"));
    }
    for missing in [true, false] {
        let copy = crashed(dir.path());
        match missing {
            true => fs::remove_file(path(copy.path())).unwrap(),
            false => fs::remove_dir_all(copy.path().join(".alluvium/journal")).unwrap(),
        }
        let looking = EmbeddedStore::open_read_only(copy.path()).unwrap();
        assert!(contents(&looking).await.is_empty());
        let store = open(copy.path());
        create(&store, "wal/next", &body(1, 1)).await.unwrap();
        assert_eq!(contents(&store).await.len(), 1);
    }
    // What is cut off in the middle of the header is not taken for an empty one.
    let copy = crashed(dir.path());
    fs::write(path(copy.path()), "").unwrap();
    assert!(refusal(copy.path()).contains("is damaged"));
}

#[tokio::test]
async fn flipped_bits_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..3 {
        create(&store, &format!("wal/{number}"), &body(3000, number))
            .await
            .unwrap();
    }
    let before = contents(&store).await;
    let path = half_path(dir.path(), &store, "wal/1");
    let whole = Bytes::from(fs::read(&path).unwrap());
    let header = Header::decode(&whole).unwrap();
    let content = 44 + "wal/1".len() + 3000;
    let second = RECORDS + BLOCK;
    for at in (second..second + 64).chain((second..second + BLOCK).step_by(61)) {
        let mut half = whole.to_vec();
        half[at] ^= 1 << (at % 8);
        let found = format::records(&half.into(), header.nonce);
        let expected: &[&str] = match at < second + content {
            true => &["wal/0", "wal/2"],
            false => &["wal/0", "wal/1", "wal/2"],
        };
        assert_eq!(
            found.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(),
            expected
        );
    }
    // One header is enough, whichever; without any nobody can say what is valid.
    for at in 0..44 {
        let mut half = whole.to_vec();
        half[at] ^= 4;
        assert_eq!(Header::decode(&half), Ok(header), "{at}");
        half[at] ^= 4;
        half[BLOCK + at] ^= 4;
        assert_eq!(Header::decode(&half), Ok(header), "{at}");
        half[at] ^= 4;
        assert_eq!(Header::decode(&half), Err(format::Unreadable::Damaged), "{at}");
    }
    let copy = crashed(dir.path());
    let mut half = whole.to_vec();
    half[17] ^= 1;
    fs::write(half_path(copy.path(), &store, "wal/1"), &half).unwrap();
    assert_eq!(contents(&open(copy.path())).await, before);
    let copy = crashed(dir.path());
    half[BLOCK] ^= 1;
    fs::write(half_path(copy.path(), &store, "wal/1"), &half).unwrap();
    assert!(refusal(copy.path()).contains("is damaged, and the newest objects may be only there"));
}

#[test]
fn another_format_is_refused_by_name() {
    for copy in [0, BLOCK] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let mut preamble = b"alluvjrn".to_vec();
        preamble.extend_from_slice(&2u32.to_le_bytes());
        preamble.extend_from_slice(&crc32c::crc32c(&preamble).to_le_bytes());
        let half = fs::File::options()
            .write(true)
            .open(&paths(dir.path())[0])
            .unwrap();
        half.write_all_at(&preamble, copy as u64).unwrap();
        let line = refusal(dir.path());
        assert!(
            line.contains("/journal/0 has format 2, which this version does not know"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn who_only_looks_sees_what_is_pending_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..5 {
        create(
            &store,
            &format!("wal/{}/{number}", number % 2),
            &body(number * 3000, 3),
        )
        .await
        .unwrap();
    }
    let before = contents(&store).await;
    let halves = paths(dir.path()).map(|path| fs::read(path).unwrap());
    let looking = EmbeddedStore::open_read_only(dir.path()).unwrap();
    assert_eq!(contents(&looking).await, before);
    let level = looking
        .list_with_delimiter(Some(&Path::from("wal")))
        .await
        .unwrap();
    assert_eq!(level.common_prefixes.len(), 2);
    assert!(regular_files(dir.path()).is_empty());
    assert!(halves == paths(dir.path()).map(|path| fs::read(path).unwrap()));
    assert!(create(&looking, "wal/x", &body(1, 1)).await.is_err());
    // The file counts as soon as there is one.
    let key = Path::from("wal/0/0");
    store.put(&key, "new".into()).await.unwrap();
    assert_eq!(looking.get(&key).await.unwrap().bytes().await.unwrap(), "new");
    assert_eq!(looking.list(None).count().await, 5);
    assert_eq!(contents(&looking).await.len(), 5);
}

#[tokio::test]
async fn while_files_cannot_be_made_the_journal_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, "wal/1", &body(100, 1)).await.unwrap();
    create(&store, "wal/2", &body(100, 2)).await.unwrap();
    let before = contents(&store).await;
    // A directory where a file has to be.
    fs::create_dir(dir.path().join("wal/1")).unwrap();
    let key = Path::from("wal/1");
    let error = store.delete(&key).await.unwrap_err().to_string();
    assert!(error.contains("wal/1: is a directory"), "{error}");
    assert_eq!(
        store.get(&key).await.unwrap().bytes().await.unwrap(),
        body(100, 1)
    );
    create(&store, "wal/3", &body(100, 3)).await.unwrap();
    assert!(!store.journal.holds("wal/3") && dir.path().join("wal/3").is_file());
    fs::remove_dir(dir.path().join("wal/1")).unwrap();
    let started = Instant::now();
    while store.journal.holds("wal/1") {
        assert!(started.elapsed() < Duration::from_secs(20), "it is tried again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut after = contents(&store).await;
    assert!(after.remove("wal/3").is_some() && after == before);
    create(&store, "wal/4", &body(100, 4)).await.unwrap();
    assert!(store.journal.holds("wal/4"));
    // Nor does anything get lost if it lasts.
    fs::create_dir(dir.path().join("wal/4")).unwrap();
    drop(store);
    let line = EmbeddedStore::open_with(dir.path(), NEVER)
        .unwrap_err()
        .to_string();
    assert!(line.contains("wal/4: is a directory"), "{line}");
    fs::remove_dir(dir.path().join("wal/4")).unwrap();
    assert_eq!(contents(&open(dir.path())).await["wal/4"].1, body(100, 4));
}

#[tokio::test]
async fn a_failed_record_closes_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, "wal/1", &body(100, 1)).await.unwrap();
    let halves = store.journal.shared.halves.as_ref().unwrap();
    halves
        .iter()
        .for_each(|half| half.fails.store(true, Ordering::Relaxed));
    let error = create(&store, "wal/2", &body(100, 1)).await.unwrap_err();
    assert!(matches!(error, Error::Generic { .. }), "{error}");
    let key = Path::from("wal/1");
    for error in [
        store.get(&key).await.map(drop).unwrap_err(),
        store.delete(&key).await.unwrap_err(),
        create(&store, "wal/3", &body(1, 1)).await.map(drop).unwrap_err(),
    ] {
        assert!(
            error
                .to_string()
                .contains("stays closed until it is opened again"),
            "{error}"
        );
    }
    assert!(store.journal.settle("wal/1").is_err());
    drop(store);
    assert!(contents(&open(dir.path())).await.contains_key("wal/1"));
}

#[tokio::test]
async fn a_pending_object_is_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let large = body(300_000, 1);
    create(&store, "a/b", &body(1, 1)).await.unwrap();
    for below in [&body(1, 2), &large] {
        let error = create(&store, "a/b/c", below).await.unwrap_err();
        assert!(error.to_string().contains("a/b: not a directory"), "{error}");
        let error = create(&store, "a", below).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }
    assert!(store.put(&Path::from("a/b/c"), "x".into()).await.is_err());
    assert_eq!(contents(&store).await.len(), 1);
    store.journal.settle("a/b").unwrap();
    assert_eq!(contents(&store).await.len(), 1);
}

/// Small objects go to the journal, large ones do not, and halves are drained all the time or hardly ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn of_many_who_create_a_key_one_does() {
    let always = Settings {
        half_bytes: 64 * 1024,
        drain_after: Duration::ZERO,
    };
    for settings in [always, NEVER] {
        one_creator_of_many(settings).await;
    }
}

async fn one_creator_of_many(settings: Settings) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with(dir.path(), settings).unwrap();
    let mut expected = BTreeMap::new();
    for round in 0..40u32 {
        let key = format!("wal/{}/{round}", round % 3);
        let writers = (0..8u8).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            let bytes = if writer % 4 == 3 {
                300_000
            } else {
                5000 * usize::from(writer)
            };
            tokio::spawn(async move { (writer, create(&store, &key, &body(bytes, writer)).await) })
        });
        let outcomes = futures::future::join_all(writers).await;
        let mut winner = None;
        for outcome in outcomes {
            match outcome.unwrap() {
                (writer, Ok(put)) => assert!(winner.replace((writer, put)).is_none(), "two winners"),
                (_, Err(error)) => assert!(matches!(error, Error::AlreadyExists { .. }), "{error}"),
            }
        }
        let (writer, put) = winner.expect("nobody won");
        let bytes = if writer % 4 == 3 {
            300_000
        } else {
            5000 * usize::from(writer)
        };
        expected.insert(key, (put.e_tag.unwrap(), body(bytes, writer)));
    }
    assert!(contents(&store).await == expected);
    let copy = crashed(dir.path());
    drop(store);
    assert!(regular_files(dir.path()) == expected);
    assert!(contents(&open(copy.path())).await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_journal_is_passed_by_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        half_bytes: 256 * 1024,
        drain_after: Duration::MAX,
    };
    let store = EmbeddedStore::open_with(dir.path(), settings).unwrap();
    let mut put = Vec::new();
    for number in 0..200usize {
        let key = format!("wal/{number:03}");
        create(&store, &key, &body(number * 97, 1)).await.unwrap();
        put.push(key);
        let state = store.journal.shared.state.lock();
        let payloads: usize = state.pending.values().map(|pending| pending.payload.len()).sum();
        assert!(state.pending_bytes <= 2 * settings.half_bytes && payloads as u64 <= state.pending_bytes);
    }
    let found = contents(&store).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), put.iter().collect::<Vec<_>>());
    drop(store);
    assert!(contents(&open(dir.path())).await == found);
}

#[derive(Clone, Debug)]
enum Op {
    Create(usize, usize),
    Overwrite(usize, usize),
    /// With the current version, or with an old one.
    Update(usize, usize, bool),
    Delete(usize),
    Copy(usize, usize, bool),
    Settle(usize),
    Check,
    Reopen,
    Crash,
}

const KEYS: [&str; 5] = ["wal/a", "wal/a-b/c", "wal/b", "x", "wal/d/e/f"];

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS.len();
    let size = || {
        prop_oneof![
            Just(0),
            1usize..5000,
            Just(4096),
            5000usize..90_000,
            Just(262_145)
        ]
    };
    prop_oneof![
        8 => (key(), size()).prop_map(|(key, size)| Op::Create(key, size)),
        2 => (key(), size()).prop_map(|(key, size)| Op::Overwrite(key, size)),
        2 => (key(), size(), any::<bool>()).prop_map(|(key, size, old)| Op::Update(key, size, old)),
        4 => key().prop_map(Op::Delete),
        1 => (key(), key(), any::<bool>()).prop_map(|(from, to, create)| Op::Copy(from, to, create)),
        1 => key().prop_map(Op::Settle),
        4 => Just(Op::Check),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
    ]
}

/// The store under test with what it should hold.
struct Run {
    dir: TempDir,
    store: Option<EmbeddedStore>,
    settings: Settings,
    model: BTreeMap<String, (String, Bytes)>,
    newest: i64,
}

impl Run {
    fn new(settings: Settings) -> Run {
        let dir = tempfile::tempdir().unwrap();
        Run {
            store: Some(EmbeddedStore::open_with(dir.path(), settings).unwrap()),
            dir,
            settings,
            model: BTreeMap::new(),
            newest: 0,
        }
    }

    /// Versions only grow within one opening, and for a key always.
    fn wrote(&mut self, key: &str, e_tag: Option<String>, body: Bytes) {
        let e_tag = e_tag.unwrap();
        let version = i64::from_str_radix(e_tag.trim_matches('"'), 16).unwrap();
        assert!(version > self.newest, "{version} after {}", self.newest);
        self.newest = version;
        self.model.insert(key.to_owned(), (e_tag, body));
    }

    async fn apply(&mut self, op: Op, seed: u8) {
        let store = self.store.clone().unwrap();
        match op {
            Op::Create(key, size) => {
                let (key, body) = (KEYS[key], body(size, seed));
                match create(&store, key, &body).await {
                    Ok(put) => {
                        assert!(!self.model.contains_key(key));
                        self.wrote(key, put.e_tag, body);
                    }
                    Err(Error::AlreadyExists { .. }) => assert!(self.model.contains_key(key)),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Overwrite(key, size) => {
                let (key, body) = (KEYS[key], body(size, seed));
                let put = store.put(&Path::from(key), body.clone().into()).await.unwrap();
                self.wrote(key, put.e_tag, body);
            }
            Op::Update(key, size, old) => {
                let (key, body) = (KEYS[key], body(size, seed));
                let current = self.model.get(key).map(|(e_tag, _)| e_tag.clone());
                let e_tag = current.clone().filter(|_| !old).or(Some("\"1\"".to_owned()));
                let mode = PutMode::Update(UpdateVersion { e_tag, version: None });
                match store
                    .put_opts(&Path::from(key), body.clone().into(), mode.into())
                    .await
                {
                    Ok(put) => {
                        assert!(current.is_some() && !old);
                        self.wrote(key, put.e_tag, body);
                    }
                    Err(Error::Precondition { .. }) => assert!(current.is_none() || old),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Delete(key) => {
                store.delete(&Path::from(KEYS[key])).await.unwrap();
                self.model.remove(KEYS[key]);
            }
            Op::Copy(from, to, create) => {
                let mode = if create {
                    CopyMode::Create
                } else {
                    CopyMode::Overwrite
                };
                let (from, to) = (KEYS[from], KEYS[to]);
                let options = CopyOptions::new().with_mode(mode);
                let copied = store.copy_opts(&Path::from(from), &Path::from(to), options).await;
                let source = self.model.get(from).map(|(_, body)| body.clone());
                match (copied, source) {
                    (Ok(()), Some(body)) => {
                        assert!(!create || !self.model.contains_key(to));
                        let e_tag = store.head(&Path::from(to)).await.unwrap().e_tag;
                        self.wrote(to, e_tag, body);
                    }
                    (Err(Error::NotFound { .. }), None) => {}
                    (Err(Error::AlreadyExists { .. }), Some(_)) => {
                        assert!(create && self.model.contains_key(to))
                    }
                    (copied, source) => panic!("{copied:?} of {source:?}"),
                }
            }
            Op::Settle(key) => {
                store.journal.settle(KEYS[key]).unwrap();
                let found = regular_files(self.dir.path()).remove(KEYS[key]);
                assert!(found.as_ref() == self.model.get(KEYS[key]));
            }
            Op::Check => assert!(contents(&store).await == self.model),
            Op::Reopen => {
                drop((store, self.store.take()));
                assert!(regular_files(self.dir.path()) == self.model, "closed");
                self.store = Some(EmbeddedStore::open_with(self.dir.path(), self.settings).unwrap());
                self.newest = self.newest_of_all();
            }
            Op::Crash => {
                let copy = crashed(self.dir.path());
                let looking = EmbeddedStore::open_read_only(copy.path()).unwrap();
                assert!(contents(&looking).await == self.model, "looked at");
                drop((store, looking, self.store.take()));
                self.dir = copy;
                self.store = Some(EmbeddedStore::open_with(self.dir.path(), self.settings).unwrap());
                assert!(regular_files(self.dir.path()) == self.model, "after a crash");
                self.newest = self.newest_of_all();
            }
        }
    }

    fn newest_of_all(&self) -> i64 {
        let versions = self
            .model
            .values()
            .map(|(e_tag, _)| i64::from_str_radix(e_tag.trim_matches('"'), 16));
        versions.map(Result::unwrap).max().unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn it_is_a_store_whatever_happens(
        ops in proptest::collection::vec(op(), 1..40),
        drain_ms in prop_oneof![Just(u64::MAX), Just(0), 1u64..10],
    ) {
        let settings = Settings { half_bytes: 128 * 1024, drain_after: Duration::from_millis(drain_ms) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut run = Run::new(settings);
        runtime.block_on(async {
            for (number, op) in ops.into_iter().enumerate() {
                run.apply(op, number as u8).await;
            }
            run.apply(Op::Check, 0).await;
            run.apply(Op::Crash, 0).await;
        });
    }
}
