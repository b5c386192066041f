use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;

use futures::TryStreamExt;
use object_store::{GetRange, ObjectStoreExt};

use super::super::{Store, StoreOptions, conformance, probe};
use super::*;

async fn open_at(path: &FilePath) -> Result<Store, StoreError> {
    Store::open(path.to_str().unwrap(), StoreOptions::default()).await
}

async fn open_read_only(path: &FilePath) -> Result<Store, StoreError> {
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    Store::open(&format!("file://{}", path.display()), options).await
}

/// Everything below a directory, what is private included.
fn files_below(path: &FilePath) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/yet/there");
    let store = open_at(&root).await.unwrap();
    conformance::run(&store).await.unwrap();
    let report = probe::probe(&store).await.unwrap();
    assert_eq!(
        report
            .checks
            .iter()
            .filter_map(|check| check.note.clone())
            .collect::<Vec<_>>(),
        [""; 0]
    );
    assert_eq!(
        files_below(&root),
        ["journal/0", "journal/1", "lock"].map(|name| root.join(".alluvium").join(name))
    );
}

#[tokio::test]
async fn history_is_a_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_at(dir.path()).await.unwrap();
    for (key, is_file) in [
        ("archive/topic=t-00000000/1-2.parquet", true),
        ("wal/x-1/7", false),
    ] {
        let object = store.key(key);
        let create = |body: &'static str| store.bulk.put_opts(&object, body.into(), PutMode::Create.into());
        create("PAR1").await.unwrap();
        assert_eq!(dir.path().join(key).exists(), is_file, "{key}");
        let again = create("other").await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{key}");
    }
}

#[tokio::test]
async fn one_process_has_it_and_any_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_at(dir.path()).await.unwrap();
    let key = store.key("cluster/manifest.json");
    store.bulk.put(&key, "{}".into()).await.unwrap();
    let shown = dir.path().canonicalize().unwrap();
    let error = open_at(dir.path()).await.unwrap_err().to_string();
    let this = format!(
        "{} is in use by this process already; stop it or choose another store",
        shown.display()
    );
    assert_eq!(error, this);
    std::fs::write(dir.path().join(".alluvium/lock"), "4711\n").unwrap();
    let error = open_at(dir.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("is in use by another broker (pid 4711); stop it"),
        "{error}"
    );

    let looking = open_read_only(dir.path()).await.unwrap();
    assert_eq!(looking.bulk.get(&key).await.unwrap().bytes().await.unwrap(), "{}");
    let denied = looking.bulk.put(&key, "x".into()).await.unwrap_err();
    assert!(matches!(denied, Error::PermissionDenied { .. }), "{denied}");
    assert!(looking.bulk.delete(&key).await.is_err());
    assert!(
        probe::probe(&looking)
            .await
            .unwrap_err()
            .to_string()
            .contains("reading only")
    );

    // A crash leaves files in staging; nothing but the end of the store frees the lock.
    std::fs::write(dir.path().join(".alluvium/staging/17"), "half").unwrap();
    drop(store);
    let store = open_at(dir.path()).await.unwrap();
    assert_eq!(store.bulk.get(&key).await.unwrap().bytes().await.unwrap(), "{}");
    let private = dir.path().join(".alluvium");
    assert_eq!(
        files_below(&private),
        ["journal/0", "journal/1", "lock"].map(|name| private.join(name))
    );
}

#[tokio::test]
async fn what_cannot_be_used_is_one_line_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let lines = [
        (open_at(&file).await, "is not a directory"),
        (open_at(&file.join("below")).await, "name a directory"),
        (open_read_only(&file).await, "is not a directory"),
        (
            open_read_only(&dir.path().join("missing")).await,
            "create it or choose another store",
        ),
        (open_at(FilePath::new("/proc/alluvium")).await, "/proc/alluvium"),
    ];
    for (opened, expected) in lines {
        let line = opened.unwrap_err().to_string();
        assert!(line.contains(expected) && !line.contains('\n'), "{line}");
    }
    assert_eq!(files_below(dir.path()), [file]);
    for (errno, expected) in [
        (rustix::io::Errno::NOSPC, "free space"),
        (rustix::io::Errno::DQUOT, "free space"),
        (rustix::io::Errno::ROFS, "mount it writable"),
        (rustix::io::Errno::ACCESS, "give this user write access"),
    ] {
        let error = at("creating", FilePath::new("/data/.alluvium"))(errno.into());
        let line = directory::explain(FilePath::new("/data"), &error).to_string();
        assert!(
            line.starts_with("store '/data': creating /data/.alluvium: "),
            "{line}"
        );
        assert!(
            line.contains(expected) && line.contains("choose another store"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let read_only = std::fs::Permissions::from_mode(0o555);
    std::fs::set_permissions(dir.path(), read_only).unwrap();
    let opened = open_at(dir.path()).await;
    let root_may_write = std::fs::write(dir.path().join("probe"), "").is_ok();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if root_may_write {
        println!("skipped: this user may write everywhere");
        return;
    }
    let line = opened.unwrap_err().to_string();
    assert!(line.contains("give this user write access"), "{line}");
    assert!(files_below(dir.path()).is_empty());
}

#[tokio::test]
async fn etags_never_repeat_for_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let version = |e_tag: Option<String>| i64::from_str_radix(e_tag.unwrap().trim_matches('"'), 16).unwrap();
    let mut newest = 0;
    let key = Path::from("cluster/manifest.json");
    // A file from the future, as left by a process whose clock was ahead.
    let future = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(8_000_000_000);
    for round in 0..3 {
        let store = open_at(dir.path()).await.unwrap();
        if round == 1 {
            let file = File::open(dir.path().join(key.as_ref())).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(future))
                .unwrap();
            newest = version(store.bulk.head(&key).await.unwrap().e_tag);
            assert!(newest >= 8_000_000_000_000_000_000);
        }
        // Each round begins with another way to replace what the one before has left.
        for step in round..200 {
            let put = match step % 4 {
                0 => store.bulk.put(&key, "same".into()).await.unwrap(),
                1 => {
                    store.bulk.delete(&key).await.unwrap();
                    store
                        .bulk
                        .put_opts(&key, "same".into(), PutMode::Create.into())
                        .await
                        .unwrap()
                }
                _ => {
                    let meta = store.bulk.head(&key).await.unwrap();
                    let version = UpdateVersion {
                        e_tag: meta.e_tag,
                        version: None,
                    };
                    store
                        .bulk
                        .put_opts(&key, "same".into(), PutMode::Update(version).into())
                        .await
                        .unwrap()
                }
            };
            let found = store.bulk.head(&key).await.unwrap();
            assert_eq!(put.e_tag, found.e_tag);
            let found = version(found.e_tag);
            assert!(
                found > newest,
                "round {round}, step {step}: {found} after {newest}"
            );
            newest = found;
        }
    }
}

#[tokio::test]
async fn keys_that_a_directory_cannot_hold_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_at(dir.path()).await.unwrap();
    let long = format!("a/{}", "x".repeat(256));
    for key in ["", ".alluvium", ".alluvium/lock", ".alluvium/staging/0", &long] {
        let key = Path::parse(key).unwrap();
        assert!(store.bulk.put(&key, "x".into()).await.is_err(), "{key}");
        assert!(store.bulk.get(&key).await.is_err(), "{key}");
        let _ = store.bulk.delete(&key).await;
    }
    assert!(dir.path().join(".alluvium/lock").exists());
    store.bulk.put(&Path::from("a/b"), "x".into()).await.unwrap();
    assert!(store.bulk.put(&Path::from("a"), "x".into()).await.is_err());
    assert!(store.bulk.put(&Path::from("a/b/c"), "x".into()).await.is_err());
    assert!(matches!(
        store.bulk.get(&Path::from("a")).await,
        Err(Error::NotFound { .. })
    ));
    let left: Vec<_> = store
        .bulk
        .list(None)
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(left, [Path::from("a/b")]);
    assert_eq!(std::fs::read(dir.path().join("a/b")).unwrap(), b"x");
}

#[tokio::test]
async fn directories_may_disappear_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().to_owned(), false).await.unwrap();
    let [key, small] = ["wal/1/00000001", "wal/1/00000002"].map(Path::from);
    // Too large for the journal.
    let body = Bytes::from(vec![7; 300_000]);
    let create = async || {
        store
            .put_opts(&key, body.clone().into(), PutMode::Create.into())
            .await
    };
    create().await.unwrap();
    std::fs::remove_dir_all(dir.path().join("wal")).unwrap();
    let gone = create().await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    create().await.unwrap();
    // What is in the journal gets its directory back, at the second attempt.
    store
        .put_opts(&small, "x".into(), PutMode::Create.into())
        .await
        .unwrap();
    std::fs::remove_dir_all(dir.path().join("wal")).unwrap();
    assert_eq!(store.get(&small).await.unwrap().bytes().await.unwrap(), "x");
    assert!(store.journal.settle(small.as_ref()).is_err());
    store.journal.settle(small.as_ref()).unwrap();
    assert_eq!(std::fs::read(dir.path().join(small.as_ref())).unwrap(), b"x");
}

#[tokio::test]
async fn what_is_seen_before_its_directory_is_fsynced_is_fsynced_by_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().to_owned(), false).await.unwrap();
    let key = Path::from("wal/1");
    store.put(&key, "x".into()).await.unwrap();
    // As if another write of the key stood between its link and its fsync: the directory cannot be opened
    // any more, so a reader that fsyncs fails, and one that does not succeeds.
    let file = store.directory.root().join("wal/1");
    let pending = store.directory.unsynced_for_test(&file);
    let moved = dir.path().join("moved");
    let opened = File::open(&file).unwrap();
    std::fs::rename(dir.path().join("wal"), &moved).unwrap();
    assert!(store.directory.confirm(&file).is_err());
    drop(pending);
    assert!(store.directory.confirm(&file).is_ok());
    drop(opened);
}

#[tokio::test]
async fn a_failed_fsync_closes_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().to_owned(), false).await.unwrap();
    let key = Path::from("wal/1");
    store.put(&key, "x".into()).await.unwrap();
    store.directory.break_for_test("fsyncing wal: I/O error");
    for error in [
        store.put(&key, "x".into()).await.map(drop).unwrap_err(),
        store.get(&key).await.map(drop).unwrap_err(),
        store.delete(&key).await.unwrap_err(),
        store
            .list(None)
            .try_collect::<Vec<_>>()
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert!(error.to_string().contains("fsyncing wal: I/O error"), "{error}");
    }
}

#[tokio::test]
async fn long_listings_and_large_objects_come_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_at(dir.path()).await.unwrap();
    for n in 0..2500 {
        let path = dir.path().join(format!("many/{:02}", n % 7));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(format!("{n:05}")), "x").unwrap();
    }
    let all: Vec<_> = store
        .bulk
        .list(None)
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(all.len(), 2500);
    assert!(all.is_sorted());
    let first: Vec<_> = store.bulk.list(None).take(3).try_collect().await.unwrap();
    assert_eq!(
        first.iter().map(|meta| &meta.location).collect::<Vec<_>>(),
        all[..3].iter().collect::<Vec<_>>()
    );

    let body: Bytes = (0..10_000_000u32)
        .map(|i| (i / 7) as u8)
        .collect::<Vec<_>>()
        .into();
    let key = Path::from("large");
    store.bulk.put(&key, body.clone().into()).await.unwrap();
    let pieces: Vec<_> = store
        .bulk
        .get(&key)
        .await
        .unwrap()
        .into_stream()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(
        pieces.iter().map(Bytes::len).collect::<Vec<_>>(),
        [4 << 20, 4 << 20, 10_000_000 - (8 << 20)]
    );
    assert_eq!(pieces.concat(), body);
    let range = GetOptions::new().with_range(Some(GetRange::Offset(1)));
    assert_eq!(
        store
            .bulk
            .get_opts(&key, range)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        body.slice(1..)
    );
}

#[tokio::test]
async fn copies_and_multipart_uploads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_at(dir.path()).await.unwrap();
    let [a, b, c] = ["a", "b", "c"].map(Path::from);
    let mut upload = store.bulk.put_multipart(&a).await.unwrap();
    let parts = [Bytes::from(vec![1; 3_000_000]), Bytes::from(vec![2; 70_000])];
    let sent: Vec<_> = parts
        .iter()
        .map(|part| upload.put_part(part.clone().into()))
        .collect();
    // In any order.
    for part in sent.into_iter().rev() {
        part.await.unwrap();
    }
    assert!(store.bulk.head(&a).await.is_err());
    upload.complete().await.unwrap();
    assert_eq!(
        store.bulk.get(&a).await.unwrap().bytes().await.unwrap(),
        parts.concat()
    );
    assert!(upload.complete().await.is_err());
    store.bulk.copy(&a, &b).await.unwrap();
    assert_eq!(
        store.bulk.get(&b).await.unwrap().bytes().await.unwrap(),
        parts.concat()
    );
    assert!(matches!(
        store.bulk.copy_if_not_exists(&a, &b).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert!(matches!(
        store.bulk.copy(&c, &b).await,
        Err(Error::NotFound { .. })
    ));
    store.bulk.put_multipart(&c).await.unwrap().abort().await.unwrap();
    // Two objects, the lock and the journal.
    assert_eq!(files_below(dir.path()).len(), 5);
}

#[tokio::test]
async fn objects_of_every_size_come_back_with_and_without_direct_io() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().to_owned(), false).await.unwrap();
    for direct in [true, false] {
        if !direct {
            store.directory.direct_io().refused();
        }
        for size in [
            0,
            1,
            4095,
            4096,
            4097,
            65_535,
            65_536,
            65_537,
            (4 << 20) + 13,
            (9 << 20) + 4097,
        ] {
            let body: Bytes = (0..size)
                .map(|i| (i / 3 + i / 4096) as u8)
                .collect::<Vec<_>>()
                .into();
            for mode in [PutMode::Create, PutMode::Overwrite] {
                let key = Path::from(format!("{direct}/{mode:?}/{size}"));
                let parts = [body.slice(..size / 3), body.slice(size / 3..)];
                store
                    .put_opts(&key, PutPayload::from_iter(parts), mode.into())
                    .await
                    .unwrap();
                let found = store.get(&key).await.unwrap();
                assert_eq!(found.meta.size, size as u64);
                assert!(found.bytes().await.unwrap() == body, "{key}");
                assert_eq!(store.head(&key).await.unwrap().size, size as u64);
                for from in [0, size / 2, size.saturating_sub(1)] {
                    if from < size {
                        let range = from as u64..size as u64;
                        let found = store.get_range(&key, range).await.unwrap();
                        assert!(found == body.slice(from..), "{key} from {from}");
                    }
                }
            }
        }
    }
}
