use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStoreExt, PutMultipartOptions,
    PutResult, Result as StoreResult,
};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::{StoreKind, StoreOptions};
use super::*;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing.
    None,
    /// Not applied, an error.
    Refuses,
    /// Applied, an error all the same: a 500, or a connection cut before the answer.
    AppliesThenFails,
    /// Applied, then sent again by a layer below, whose second copy met the first: own success as a conflict.
    AppliesThenConflicts,
    /// Not applied, 409.
    Conflicts,
    /// Not applied, never answered.
    Hangs,
    /// Never answered, applied after so many seconds.
    LandsAfter(u64),
    /// An error at once, applied after so many seconds.
    FailsThenLandsAfter(u64),
}

/// A bucket with the faults of an S3 client in front of it. ETags are those of the store inside.
#[derive(Debug)]
struct FaultyStore {
    inner: Arc<InMemory>,
    puts: Mutex<VecDeque<Fault>>,
    gets: Mutex<VecDeque<Fault>>,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty")
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "faulty",
        source: "status code: 500".into(),
    }
}

fn conflict(key: &Path, update: bool) -> Error {
    let (path, source) = (key.to_string(), "status code: 409 or 412".into());
    match update {
        true => Error::Precondition { path, source },
        false => Error::AlreadyExists { path, source },
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        let update = matches!(options.mode, PutMode::Update(_));
        let fault = self.puts.lock().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => self.inner.put_opts(key, payload, options).await,
            Fault::Refuses => Err(failure()),
            Fault::AppliesThenFails => {
                // If the condition did not hold, that is what the client hears.
                self.inner.put_opts(key, payload, options).await?;
                Err(failure())
            }
            Fault::AppliesThenConflicts => {
                let _ = self.inner.put_opts(key, payload, options).await;
                Err(conflict(key, update))
            }
            // S3's 409 reads AlreadyExists for creates and for updates.
            Fault::Conflicts => Err(conflict(key, false)),
            Fault::Hangs => std::future::pending().await,
            Fault::LandsAfter(seconds) | Fault::FailsThenLandsAfter(seconds) => {
                let (inner, key) = (self.inner.clone(), key.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    let _ = inner.put_opts(&key, payload, options).await;
                });
                match fault {
                    Fault::LandsAfter(_) => std::future::pending().await,
                    _ => Err(failure()),
                }
            }
        }
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let fault = self.gets.lock().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => self.inner.get_opts(key, options).await,
            Fault::Hangs => std::future::pending().await,
            _ => Err(failure()),
        }
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// One writer's view of the bucket `inner`.
fn faulty(inner: &Arc<InMemory>, puts: &[Fault], gets: &[Fault]) -> Store {
    let faulty = FaultyStore {
        inner: inner.clone(),
        puts: Mutex::new(puts.iter().copied().collect()),
        gets: Mutex::new(gets.iter().copied().collect()),
    };
    let options = StoreOptions {
        seed: Some(7),
        ..StoreOptions::default()
    };
    let display = "faulty://".to_owned();
    Store::from_parts(
        inner.clone(),
        Arc::new(faulty),
        Path::default(),
        display,
        StoreKind::Memory,
        options,
    )
}

/// Runs in time that passes as fast as it can.
fn simulate<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(work)
}

async fn content(inner: &InMemory, key: &Path) -> Option<Bytes> {
    match inner.get(key).await {
        Ok(found) => Some(found.bytes().await.unwrap()),
        Err(_) => None,
    }
}

fn body(writer: usize) -> Bytes {
    // Longer than what is read back, and different only in its nonce.
    let mut body = format!("nonce {writer:04} ").into_bytes();
    body.resize(1000, b'.');
    body.into()
}

async fn create_as(store: &Store, key: &Path, writer: usize, patience: Patience) -> CreateOutcome {
    let nonce = body(writer).slice(..11);
    create(
        store,
        key,
        body(writer).into(),
        move |start| start.starts_with(&nonce),
        patience,
    )
    .await
}

#[test]
fn a_create_settles_every_fault_of_its_first_attempt() {
    use Fault::*;
    let cases = [
        vec![None],
        vec![Refuses, Refuses],
        vec![AppliesThenFails],
        vec![AppliesThenConflicts],
        vec![Conflicts, Conflicts],
        vec![Hangs],
        vec![LandsAfter(2)],
        vec![
            FailsThenLandsAfter(1),
            Refuses,
            Refuses,
            Refuses,
            Refuses,
            Refuses,
            Refuses,
        ],
    ];
    for faults in cases {
        simulate(async {
            let inner = Arc::new(InMemory::new());
            let key = Path::from("wal/1");
            let store = faulty(&inner, &faults, &[]);
            let outcome = create_as(&store, &key, 1, Patience::Forever).await;
            assert_eq!(outcome, CreateOutcome::Committed, "{faults:?}");
            assert_eq!(content(&inner, &key).await, Some(body(1)), "{faults:?}");

            let other = create_as(&faulty(&inner, &faults, &[]), &key, 2, Patience::Forever).await;
            assert_eq!(other, CreateOutcome::Lost(body(1).slice(..256)), "{faults:?}");
        });
    }
}

#[test]
fn a_store_is_in_trouble_from_the_first_failure_until_a_write_is_settled() {
    simulate(async {
        let inner = Arc::new(InMemory::new());
        let key = Path::from("wal/1");
        let store = faulty(&inner, &[Fault::Refuses; 5], &[]);
        assert_eq!(store.trouble(), None);
        let outcome = create_as(&store, &key, 1, Patience::For(Duration::from_millis(60))).await;
        assert!(matches!(outcome, CreateOutcome::Unknown(_)), "{outcome:?}");
        // Given up, and still in trouble: nothing has shown that the store answers again.
        assert_eq!(store.trouble().as_deref(), Some("status code: 500"));
        let outcome = create_as(&store, &key, 1, Patience::Forever).await;
        assert_eq!((outcome, store.trouble()), (CreateOutcome::Committed, None));
        // A lost write is an answer too.
        let store = faulty(&inner, &[Fault::Refuses; 2], &[Fault::Refuses]);
        assert!(matches!(
            create_as(&store, &key, 2, Patience::Forever).await,
            CreateOutcome::Lost(_)
        ));
        assert_eq!(store.trouble(), None);
    });
}

#[test]
fn a_write_that_lands_late_is_met_by_its_own_retry() {
    simulate(async {
        let inner = Arc::new(InMemory::new());
        let key = Path::from("wal/1");
        // Three copies are under way and one attempt after the other fails, when the first one lands.
        let puts = [
            Fault::LandsAfter(35),
            Fault::LandsAfter(30),
            Fault::LandsAfter(60),
            Fault::Conflicts,
        ];
        let store = faulty(&inner, &puts, &[Fault::Refuses]);
        assert_eq!(
            create_as(&store, &key, 1, Patience::Forever).await,
            CreateOutcome::Committed
        );
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(content(&inner, &key).await, Some(body(1)));
    });
}

#[test]
fn a_dropped_create_can_be_settled_by_the_same_writer_later() {
    simulate(async {
        for faults in [
            vec![Fault::LandsAfter(5)],
            vec![Fault::Hangs; 2],
            vec![Fault::AppliesThenFails],
        ] {
            let inner = Arc::new(InMemory::new());
            let key = Path::from("wal/1");
            let store = faulty(&inner, &faults, &[Fault::Hangs]);
            let dropped = create_as(&store, &key, 1, Patience::Forever);
            assert!(
                tokio::time::timeout(Duration::from_secs(1), dropped)
                    .await
                    .is_err(),
                "{faults:?}"
            );
            let again = create_as(&store, &key, 1, Patience::Forever).await;
            assert_eq!(again, CreateOutcome::Committed, "{faults:?}");
        }
    });
}

#[test]
fn patience_ends_with_unknown_and_the_last_trouble() {
    simulate(async {
        let inner = Arc::new(InMemory::new());
        let key = Path::from("wal/1");
        let started = Instant::now();
        let store = faulty(&inner, &[Fault::Refuses; 1000], &[]);
        let outcome = create_as(&store, &key, 1, Patience::For(Duration::from_secs(20))).await;
        let CreateOutcome::Unknown(why) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(why.contains("status code: 500"), "{why}");
        let took = started.elapsed();
        assert!((18..=20).contains(&took.as_secs()), "{took:?}");

        let store = faulty(&inner, &[Fault::Hangs; 1000], &[]);
        let landed = |_: &Bytes| false;
        let patience = Patience::For(Duration::from_secs(25));
        let outcome = update(&store, &key, "x".into(), Option::None, landed, patience).await;
        let UpdateOutcome::Unknown(why) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(why.contains("no answer within"), "{why}");
        assert!(started.elapsed() - took <= Duration::from_secs(26));
    });
}

#[test]
fn a_read_of_what_is_too_large_or_has_no_etag_is_refused() {
    simulate(async {
        let inner = Arc::new(InMemory::new());
        let key = Path::from("cluster/manifest.json");
        let store = faulty(&inner, &[], &[]);
        assert_eq!(read(&store, &key).await.unwrap(), Option::None);
        inner
            .put(&key, vec![0; CAS_BYTES_MAX as usize + 1].into())
            .await
            .unwrap();
        let error = read(&store, &key).await.unwrap_err().to_string();
        assert!(
            error.contains("cluster/manifest.json has 67108865 bytes"),
            "{error}"
        );
    });
}

fn put_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::None),
        2 => Just(Fault::Refuses),
        2 => Just(Fault::AppliesThenFails),
        2 => Just(Fault::AppliesThenConflicts),
        2 => Just(Fault::Conflicts),
        1 => Just(Fault::Hangs),
        2 => (0u64..60).prop_map(Fault::LandsAfter),
        2 => (0u64..60).prop_map(Fault::FailsThenLandsAfter),
    ]
}

fn get_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![3 => Just(Fault::None), 2 => Just(Fault::Refuses), 1 => Just(Fault::Hangs)]
}

type Schedule = (Vec<Fault>, Vec<Fault>, u64);

/// Faults of a writer's puts and gets, and when it starts in ms.
fn schedule() -> impl Strategy<Value = Schedule> {
    use prop::collection::vec;
    (vec(put_fault(), 0..12), vec(get_fault(), 0..12), 0u64..40_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn creates_have_one_winner_and_nobody_is_told_otherwise(
        schedules in prop::collection::vec(schedule(), 1..4),
        patience in prop_oneof![Just(Patience::Forever), (0u64..90).prop_map(|s| Patience::For(Duration::from_secs(s)))],
    ) {
        simulate(async {
            let inner = Arc::new(InMemory::new());
            let key = Path::from("wal/1");
            let writers = schedules.iter().enumerate().map(|(writer, (puts, gets, start))| {
                let (store, key, inner) = (faulty(&inner, puts, gets), key.clone(), inner.clone());
                let start = Duration::from_millis(*start);
                async move {
                    tokio::time::sleep(start).await;
                    let outcome = create_as(&store, &key, writer, patience).await;
                    // At the very moment of the answer.
                    (outcome, content(&inner, &key).await)
                }
            });
            let outcomes = join_all(writers).await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let last = content(&inner, &key).await;
            for (writer, (outcome, then)) in outcomes.into_iter().enumerate() {
                match outcome {
                    CreateOutcome::Committed => {
                        prop_assert_eq!(then, Some(body(writer)));
                        prop_assert_eq!(&last, &Some(body(writer)));
                    }
                    CreateOutcome::Lost(start) => {
                        prop_assert_ne!(&last, &Some(body(writer)));
                        prop_assert_eq!(Some(start), last.as_ref().map(|last| last.slice(..256)));
                    }
                    CreateOutcome::Unknown(_) => prop_assert_ne!(patience, Patience::Forever),
                }
            }
            if patience == Patience::Forever {
                prop_assert!(last.is_some());
            }
            Ok(())
        })?;
    }

    #[test]
    fn updates_are_never_lost_doubled_or_misreported(
        schedules in prop::collection::vec(schedule(), 1..4),
        patience in prop_oneof![Just(Patience::Forever), (5u64..90).prop_map(|s| Patience::For(Duration::from_secs(s)))],
    ) {
        simulate(async {
            let inner = Arc::new(InMemory::new());
            let key = Path::from("cluster/manifest.json");
            let count = schedules.len();
            let writers = schedules.iter().enumerate().map(|(writer, (puts, gets, start))| {
                let (store, key) = (faulty(&inner, puts, gets), key.clone());
                let start = Duration::from_millis(*start);
                async move {
                    tokio::time::sleep(start).await;
                    let mut told = Vec::new();
                    for _ in 0..3 {
                        told.push(commit(&store, &key, writer, count, told.len(), patience).await);
                        if told.last() == Some(&Told::Unknown) {
                            // An unknown commit may land under the next one: this writer stops here.
                            break;
                        }
                    }
                    told
                }
            });
            let told = join_all(writers).await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let chain = content(&inner, &key).await.map(|body| parse(&body)).unwrap_or_default();
            for (writer, told) in told.into_iter().enumerate() {
                for (commit, told) in told.into_iter().enumerate() {
                    let times = chain.iter().filter(|entry| **entry == (writer, commit)).count();
                    match told {
                        Told::Committed => prop_assert_eq!(times, 1, "{} {} in {:?}", writer, commit, chain),
                        Told::Unknown => prop_assert!(times <= 1 && patience != Patience::Forever),
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Committed,
    Unknown,
}

/// The whole chain of commits is the body, so that nothing can be lost or doubled unseen.
fn parse(body: &[u8]) -> Vec<(usize, usize)> {
    let entry = |entry: &str| {
        let (writer, commit) = entry.split_once(':').unwrap();
        (writer.parse().unwrap(), commit.parse().unwrap())
    };
    str::from_utf8(body)
        .unwrap()
        .split_whitespace()
        .map(entry)
        .collect()
}

/// Adds an entry to the chain with the loop that the manifest's owner has.
async fn commit(
    store: &Store,
    key: &Path,
    writer: usize,
    count: usize,
    commit: usize,
    patience: Patience,
) -> Told {
    assert!(writer < count);
    let mut current = read(store, key).await.unwrap();
    loop {
        let chain = current
            .as_ref()
            .map(|found| String::from_utf8(found.bytes.to_vec()).unwrap());
        let body = format!("{}{writer}:{commit} ", chain.unwrap_or_default());
        let version = current.as_ref().map(|found| found.version.clone());
        let landed = |found: &Bytes| parse(found).contains(&(writer, commit));
        match update(store, key, body.into(), version.as_ref(), landed, patience).await {
            UpdateOutcome::Committed(found) => {
                assert!(landed(&found.bytes));
                return Told::Committed;
            }
            UpdateOutcome::Lost(found) => current = found,
            UpdateOutcome::Unknown(_) => return Told::Unknown,
        }
    }
}
