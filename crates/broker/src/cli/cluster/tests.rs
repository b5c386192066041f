//! The commands on directories, and their pages on made-up clusters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alluvium_log::cluster::Led;
use alluvium_log::cluster::status::{BrokerStatus, LinkedStatus, MoveStatus, SlotRange, Status};
use alluvium_log::manifest::{Endpoint, Manifest};
use alluvium_log::{Log, LogOptions};
use uuid::Uuid;

use super::*;

/// The directory of a broker that has stopped.
async fn used(root: &Path) -> String {
    let here = root.display().to_string();
    let store = Store::open(&here, StoreOptions::default()).await.unwrap();
    let options = LogOptions::for_store(StoreKind::Embedded);
    let mut registry = prometheus_client::registry::Registry::default();
    let clock = Arc::new(alluvium_log::SystemClock);
    let log = Log::open(store, options, clock, &mut registry).await.unwrap();
    log.close().await.unwrap();
    here
}

fn manifest_file(root: &Path) -> std::path::PathBuf {
    root.join("cluster/manifest.json")
}

fn manifest(root: &Path) -> Manifest {
    Manifest::decode(&std::fs::read(manifest_file(root)).unwrap()).unwrap()
}

fn shared(nodes: &[i32]) -> Manifest {
    let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), 8);
    for node in nodes {
        m.register(*node, None, BTreeMap::new());
    }
    m
}

/// A directory with this manifest and nothing else.
fn with_manifest(m: &Manifest) -> (tempfile::TempDir, String) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("cluster")).unwrap();
    std::fs::write(manifest_file(root.path()), m.encode()).unwrap();
    let here = root.path().display().to_string();
    (root, here)
}

/// What `alluvium cluster` is given, without those two words.
async fn ran(arguments: &[&str]) -> Result<(), String> {
    #[derive(clap::Parser)]
    struct Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    }
    let line = std::iter::once("cluster").chain(arguments.iter().copied());
    let parsed: Cluster = clap::Parser::try_parse_from(line).map_err(|e| e.to_string())?;
    run(parsed.command).await
}

#[tokio::test]
async fn what_is_no_cluster_is_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let here = root.path().display().to_string();
    let gone = format!("{here}/gone");
    for url in ["memory://", &gone, &here, "gs://x", "~/x"] {
        let commands: [&[&str]; 5] = [
            &["status", url],
            &["drain", "1", url],
            &["feature-level", url],
            &["feature-level", url, "--set", "2", "--yes"],
            &["restore-manifest", url, "--yes"],
        ];
        for arguments in commands {
            let line = ran(arguments).await.unwrap_err();
            assert!(!line.contains("--store"), "{arguments:?}: {line}");
        }
    }
    assert!(!root.path().join("gone").exists(), "a command makes no cluster");
    assert!(!root.path().join("cluster").exists());
}

#[tokio::test]
async fn a_directory_is_seen_while_a_broker_has_it_and_changed_while_none_has() {
    let root = tempfile::tempdir().unwrap();
    let here = used(root.path()).await;
    let held = Store::open(&here, StoreOptions::default()).await.unwrap();
    let seen = status::look(&here).await.unwrap();
    assert_eq!((seen.slots, seen.topics), (1024, 0));
    ran(&["feature-level", &here]).await.unwrap();
    let line = ran(&["feature-level", &here, "--set", "3", "--yes"])
        .await
        .unwrap_err();
    assert!(
        line.contains("is in use by") && line.contains("stop it first"),
        "{line}"
    );
    drop(held);
    ran(&["feature-level", &here, "--set", "3", "--yes"])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_level_is_raised_once_and_never_lowered() {
    let mut m = shared(&[1]);
    m.feature_level = 1;
    let (root, here) = with_manifest(&m);
    let asked = ran(&["feature-level", &here, "--set", "2"]).await.unwrap_err();
    assert!(asked.contains("give --yes"), "{asked}");
    assert_eq!(manifest(root.path()).feature_level, 1);
    ran(&["feature-level", &here, "--set", "2", "--yes"])
        .await
        .unwrap();
    let now = manifest(root.path());
    assert_eq!((now.feature_level, now.version), (2, m.version + 1));
    let copy = root
        .path()
        .join(format!("cluster/history/{:020}.json", now.version));
    assert!(copy.exists(), "with its copy");
    ran(&["feature-level", &here, "--set", "2", "--yes"])
        .await
        .unwrap();
    assert_eq!(
        manifest(root.path()).version,
        now.version,
        "nothing had to be written"
    );
    let lower = ran(&["feature-level", &here, "--set", "1", "--yes"])
        .await
        .unwrap_err();
    assert!(lower.contains("never lowered"), "{lower}");
    let unknown = ran(&["feature-level", &here, "--set", "99", "--yes"])
        .await
        .unwrap_err();
    assert!(unknown.contains("unknown to this build"), "{unknown}");
    let mut newer = serde_json::to_value(&now).unwrap();
    newer["feature_level"] = 99.into();
    std::fs::write(manifest_file(root.path()), newer.to_string()).unwrap();
    let newer = ran(&["feature-level", &here]).await.unwrap_err();
    assert!(
        newer.contains("level is 99") && newer.ends_with("use a newer Alluvium"),
        "{newer}"
    );
}

#[tokio::test]
async fn a_level_that_a_live_broker_could_not_read_is_refused_before_anybody_is_asked() {
    let mut m = shared(&[1, 5]);
    m.feature_level = 2;
    m.known_levels.remove(&2);
    let (root, here) = with_manifest(&m);
    for more in [&["--yes"][..], &[]] {
        let mut arguments = vec!["feature-level", here.as_str(), "--set", "3"];
        arguments.extend(more);
        let line = ran(&arguments).await.unwrap_err();
        assert!(line.contains("broker 5 knows 1 to 2;"), "{line}");
    }
    assert_eq!(manifest(root.path()), m, "nothing was written");
    ran(&["feature-level", &here]).await.unwrap();
}

#[tokio::test]
async fn a_mark_is_set_and_taken_away() {
    let (root, here) = with_manifest(&shared(&[1, 2]));
    ran(&["drain", "2", &here, "--timeout", "0"]).await.unwrap();
    assert!(manifest(root.path()).draining.contains(&2));
    // It owns nothing, so the wait is over at once.
    ran(&["drain", "2", &here]).await.unwrap();
    let nobody = ran(&["drain", "1", &here]).await.unwrap_err();
    assert!(nobody.contains("nobody could take them over"), "{nobody}");
    let unknown = ran(&["drain", "7", &here]).await.unwrap_err();
    assert!(unknown.contains("the live ones are 1, 2"), "{unknown}");
    assert!(ran(&["drain", "-1", &here]).await.is_err());
    ran(&["drain", "2", &here, "--undo"]).await.unwrap();
    assert!(manifest(root.path()).draining.is_empty());
    ran(&["drain", "2", &here, "--undo"]).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_does_not_hand_over_in_time_stays_marked() {
    let mut m = shared(&[1, 2]);
    m.slots[0].owner = 2;
    let (root, here) = with_manifest(&m);
    let line = ran(&["drain", "2", &here, "--timeout", "1"]).await.unwrap_err();
    assert!(
        line.contains("not done after 1 s") && line.contains("stays marked"),
        "{line}"
    );
    assert!(manifest(root.path()).draining.contains(&2));
}

#[test]
fn progress_is_read_from_the_manifest() {
    use drain::{Progress, progress};
    let mut m = shared(&[1, 2]);
    m.slots[0].owner = 2;
    m.set_draining(2, true).unwrap();
    let led = Led {
        partitions: 0,
        slots: 8,
    };
    assert_eq!(progress(&m, 2), Progress::Leads(led));
    m.slots[0].owner = 1;
    let done = |m: &Manifest| match progress(m, 2) {
        Progress::Done(text) => text,
        other => panic!("{other:?}"),
    };
    assert!(done(&m).contains("can be stopped"));
    m.set_draining(2, false).unwrap();
    assert!(done(&m).contains("its mark was taken away"));
    m.streams.remove(&2);
    assert!(done(&m).contains("is gone"));
}

#[tokio::test]
async fn a_manifest_is_restored_from_its_copy() {
    let root = tempfile::tempdir().unwrap();
    let here = used(root.path()).await;
    let whole = ran(&["restore-manifest", &here, "--yes"]).await.unwrap_err();
    assert!(whole.contains("the manifest is whole"), "{whole}");
    let before = manifest(root.path());
    for damage in ["{", "", "[1, 2]"] {
        std::fs::write(manifest_file(root.path()), damage).unwrap();
        let line = ran(&["status", &here]).await.unwrap_err();
        assert!(line.contains("restore-manifest"), "{line}");
        assert!(
            ran(&["restore-manifest", &here])
                .await
                .unwrap_err()
                .contains("--yes"),
            "it asks"
        );
        ran(&["restore-manifest", &here, "--yes"]).await.unwrap();
        assert_eq!(manifest(root.path()).cluster_id, before.cluster_id);
    }
    std::fs::remove_file(manifest_file(root.path())).unwrap();
    ran(&["restore-manifest", &here, "--yes"]).await.unwrap();
    let after = manifest(root.path());
    assert!(after.version > before.version + 3 && after.next_incarnation > before.next_incarnation);
    let version = before.version.to_string();
    ran(&[
        "restore-manifest",
        &here,
        "--yes",
        "--force",
        "--version",
        &version,
    ])
    .await
    .unwrap();
    assert_eq!(
        manifest(root.path()).restored.unwrap().from_version,
        before.version
    );
    let missing = ran(&["restore-manifest", &here, "--yes", "--force", "--version", "777"])
        .await
        .unwrap_err();
    assert!(missing.contains("there is no such copy"), "{missing}");
}

#[tokio::test]
async fn what_would_be_lost_is_said_first() {
    let root = tempfile::tempdir().unwrap();
    let here = used(root.path()).await;
    let last = manifest(root.path()).version;
    let copy = |version: u64| root.path().join(format!("cluster/history/{version:020}.json"));
    std::fs::write(copy(last), "{").unwrap();
    std::fs::remove_file(manifest_file(root.path())).unwrap();
    let store = Store::open(&here, StoreOptions::default()).await.unwrap();
    let found = alluvium_log::cluster::restore::find(&store).await.unwrap();
    let plan = alluvium_log::cluster::restore::plan(&store, &found, None, false)
        .await
        .unwrap();
    let text = restore::described(&plan, "here");
    assert!(text.starts_with("here: the manifest is gone.\n"), "{text}");
    assert!(text.contains("cannot be used: not a valid manifest"), "{text}");
    assert!(
        text.contains(&format!("LOST: the changes of version {last}.")),
        "{text}"
    );
}

fn broker(node_id: i32) -> BrokerStatus {
    let endpoint = |host: &str, port| Endpoint {
        host: host.to_owned(),
        port,
    };
    BrokerStatus {
        node_id,
        incarnation: 1_234_567,
        rack: Some("a-name-of-eu-central-1a".into()),
        endpoints: BTreeMap::from([
            ("PLAINTEXT".into(), endpoint(&"very-long-name.".repeat(12), 9092)),
            ("V6".into(), endpoint("fe80::1", 9093)),
        ]),
        controller: node_id == 1,
        draining: true,
        partitions: 100_000,
        slots: 1_024,
        head_age_ms: Some(119_999),
        checkpoint_age_ms: Some(7_000_000),
        tip: 1_000_000_000,
        floor: 999_000_000,
        unmerged: 1_000_000,
        applied_version: 9,
        known_level: 3,
    }
}

fn large() -> Status {
    let ranges: Vec<SlotRange> = (0..500)
        .map(|i| SlotRange {
            first: i * 2,
            last: i * 2,
        })
        .collect();
    let linked = |incarnation| LinkedStatus {
        node_id: 100_000,
        incarnation,
        sealed_at: Some(1_000_000_000),
        slots: 1_024,
        slot_ranges: ranges.clone(),
    };
    Status {
        store: "s3://bucket/prefix".into(),
        cluster_id: Uuid::from_u128(7),
        feature_level: 2,
        manifest_version: 1_000_000,
        manifest_bytes: 2_000_000,
        manifest_copied: true,
        restored_from: Some(7),
        topics: 1_000,
        partitions: 100_000,
        slots: 1_024,
        brokers: vec![broker(1), broker(100_000)],
        partitions_min: 49_000,
        partitions_max: 51_000,
        linked: (0..25).map(linked).collect(),
        moves: vec![
            MoveStatus {
                slots: SlotRange { first: 7, last: 9 },
                from: 100_000,
                to: 1
            };
            21
        ],
        slots_without_owner: ranges.clone(),
        partitions_without_owner: 3,
        draining: vec![1],
        problems: vec![],
        notes: vec!["word ".repeat(100)],
    }
}

#[test]
fn the_page_fits_a_hundred_columns() {
    let page = status::page(&large());
    for line in page.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for part in [
        "brokers   2 live, 49000 to 51000 partitions each",
        "restored from version 7",
        "controller, draining",
        " …u-central-1a ",
        "119 s",
        "116 min",
        "V6://[fe80::1]:9093",
        "500 WITHOUT OWNER: 0, 2, 4,",
        "7-9 from broker 100000 to broker 1",
        "and 5 more",
        "and 1 more",
    ] {
        assert!(page.contains(part), "'{part}' is missing:\n{page}");
    }
}

#[test]
fn the_page_of_an_empty_cluster_has_no_tables() {
    let status = Status {
        brokers: vec![],
        linked: vec![],
        moves: vec![],
        notes: vec![],
        slots_without_owner: vec![],
        ..large()
    };
    let page = status::page(&status);
    assert_eq!(page.lines().count(), 5, "{page}");
    assert!(page.contains("slots     1024, 0 on their way"), "{page}");
}

#[test]
fn only_yes_is_yes() {
    for yes in ["y\n", "Y", " yes \n", "YES"] {
        assert!(is_yes(yes), "{yes}");
    }
    for no in ["", "\n", "n", "yeah", "no"] {
        assert!(!is_yes(no), "{no}");
    }
}

/// Every command line of ours on the pages for people is one that the program takes.
#[test]
fn commands_on_the_pages_exist() {
    use clap::CommandFactory;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut checked = 0;
    for page in ["README.md", "docs/cluster.md"] {
        let text = std::fs::read_to_string(format!("{root}/{page}")).unwrap();
        for line in text.lines() {
            let Some(command) = line.strip_prefix("$ alluvium ") else {
                continue;
            };
            let command = command.split('#').next().unwrap_or_default();
            let words = std::iter::once("alluvium").chain(command.split_whitespace());
            let parsed = crate::cli::Cli::command().try_get_matches_from(words);
            assert!(
                parsed.is_ok(),
                "{page}: {line}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} command lines were found");
}
