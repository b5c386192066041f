use std::convert::Infallible;
use std::time::Duration;

use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::store::StoreKind;
use crate::tests::meddling::{Verb, meddled};

fn manifest(version: u64) -> Manifest {
    let mut manifest = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(u128::from(version)), 1);
    manifest.version = version;
    manifest
}

fn object(version: u64) -> UpdateVersion {
    UpdateVersion {
        e_tag: Some(format!("e{version}")),
        version: None,
    }
}

fn stored(version: u64) -> Versioned {
    Versioned {
        bytes: manifest(version).encode().into(),
        version: object(version),
    }
}

/// A keeper that knows a version, and never asks its store.
fn keeper(version: u64) -> ManifestKeeper {
    let store = meddled(&Arc::default(), StoreKind::S3).0;
    ManifestKeeper::new(store, manifest(version), object(version))
}

fn adopted(keeper: &ManifestKeeper, known: &Manifest, version: u64) -> Result<(), String> {
    let adopted = keeper.adopt::<Infallible>(known, stored(version));
    adopted.map_err(|e| e.to_string())
}

/// What is in use, once it is certain that the object belongs to it.
fn in_use(keeper: &ManifestKeeper) -> u64 {
    let (manifest, of) = keeper.newest();
    assert_eq!(of, object(manifest.version));
    manifest.version
}

#[test]
fn an_older_version_has_gone_back_only_if_it_was_asked_for_afterwards() {
    let keeper = keeper(5);
    let (before, _) = keeper.newest();
    assert_eq!(adopted(&keeper, &before, 7), Ok(()));
    assert_eq!(
        adopted(&keeper, &before, 6),
        Ok(()),
        "it was faster to be written and slower to come"
    );
    assert_eq!(in_use(&keeper), 7);
    let (after, _) = keeper.newest();
    for version in [4, 6] {
        let why = adopted(&keeper, &after, version).unwrap_err();
        assert!(why.contains(&format!("from version 7 to {version}")), "{why}");
    }
    let why = adopted(&keeper, &before, 4).unwrap_err();
    assert!(why.contains("from version 5 to 4"), "{why}");
    assert_eq!(in_use(&keeper), 7);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Somebody changes the manifest in the store.
    Change,
    Ask,
    /// One of those that were asked answers, with what the store had at some time since.
    Answer(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Change),
        Just(Step::Ask),
        (any::<usize>(), any::<u64>()).prop_map(|(which, what)| Step::Answer(which, what)),
    ]
}

proptest! {
    #[test]
    fn answers_may_come_in_any_order(steps in prop::collection::vec(step(), 0..100)) {
        let keeper = keeper(1);
        let (mut newest, mut asked) = (1, vec![]);
        for step in steps {
            match step {
                Step::Change => newest += 1,
                Step::Ask => asked.push((keeper.newest().0, newest)),
                Step::Answer(..) if asked.is_empty() => {}
                Step::Answer(which, what) => {
                    let (known, then) = asked.swap_remove(which % asked.len());
                    let (before, found) = (in_use(&keeper), then + what % (newest - then + 1));
                    prop_assert_eq!(adopted(&keeper, &known, found), Ok(()));
                    prop_assert_eq!(in_use(&keeper), before.max(found));
                }
            }
        }
        // And by hand it is put back.
        let (known, version) = (keeper.newest().0, in_use(&keeper));
        if version > 1 {
            prop_assert!(adopted(&keeper, &known, version - 1).is_err());
            prop_assert_eq!(in_use(&keeper), version);
        }
    }
}

/// Leaves a mark in the manifest that tells who changed it.
async fn mark(keeper: &ManifestKeeper, mark: &str) {
    let mark = |m: &mut Manifest| {
        m.broker_configs.insert(mark.to_owned(), Default::default());
        Ok::<_, Infallible>(((), None))
    };
    keeper.change(mark).await.unwrap();
}

fn marks(keeper: &ManifestKeeper) -> Vec<String> {
    keeper.current().broker_configs.keys().cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_beside_changes_that_take_turns() {
    let bucket = Arc::<InMemory>::default();
    let (way, hand) = meddled(&bucket, StoreKind::S3);
    let ours = Arc::new(ManifestKeeper::open(way).await.unwrap());
    let other = ManifestKeeper::open(meddled(&bucket, StoreKind::S3).0)
        .await
        .unwrap();
    hand.hold(|verb, key| verb == Verb::Put && key == keys::MANIFEST);
    let change = |name: &'static str| {
        let ours = ours.clone();
        tokio::spawn(async move { mark(&ours, name).await })
    };
    let changes = [change("first"), change("second"), change("dropped")];
    hand.holds().await;
    for round in ["third", "fourth"] {
        mark(&other, round).await;
        let read = tokio::time::timeout(Duration::from_millis(1), ours.refresh());
        read.await.expect("a read waits for a change").unwrap();
        assert_eq!(ours.current(), other.current());
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let [first, second, dropped] = changes;
    assert!(!first.is_finished() && !second.is_finished());
    dropped.abort();
    hand.let_go();
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(marks(&ours), ["first", "fourth", "second", "third"]);
    other.refresh().await.unwrap();
    assert_eq!(other.current(), ours.current());

    // One that is dropped while the store has it: what becomes of it is open, and nothing else suffers.
    hand.hold(|verb, key| verb == Verb::Put && key == keys::MANIFEST);
    let dropped = change("dropped");
    hand.holds().await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    hand.let_go();
    mark(&ours, "fifth").await;
    mark(&other, "sixth").await;
    ours.refresh().await.unwrap();
    assert_eq!(ours.current(), other.current());
    assert!(marks(&ours).contains(&"fifth".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_read_serves_all_who_came_before_it_began_and_nobody_else() {
    let (way, hand) = meddled(&Arc::default(), StoreKind::S3);
    let keeper = Arc::new(ManifestKeeper::open(way).await.unwrap());
    let gets = Arc::new(AtomicU64::new(0));
    let counted = gets.clone();
    hand.hold(move |verb, _| {
        counted.fetch_add(u64::from(verb == Verb::Get), Ordering::Relaxed);
        true
    });
    let read = || {
        let keeper = keeper.clone();
        tokio::spawn(async move { keeper.refresh().await })
    };
    let mut reads = vec![read()];
    hand.holds().await;
    reads.extend([read(), read(), read()]);
    tokio::task::yield_now().await;
    assert_eq!(gets.load(Ordering::Relaxed), 1);
    let counted = gets.clone();
    hand.hold(move |verb, _| {
        counted.fetch_add(u64::from(verb == Verb::Get), Ordering::Relaxed);
        false
    });
    for read in reads {
        read.await.unwrap().unwrap();
    }
    // The first one asked again when the hand changed its mind; then one for the three.
    assert_eq!(gets.load(Ordering::Relaxed), 3);
    // At the same instant, as far as this clock can tell.
    keeper.refresh().await.unwrap();
    assert_eq!(gets.load(Ordering::Relaxed), 4);
}
