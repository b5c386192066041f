//! A short round of chaos on real processes; the `chaos` command runs longer ones.

use std::time::Duration;

use alluvium_tests::chaos::{Settings, StoreChoice, clients_missing, logs_of, run};
use alluvium_tests::installed::{Missing, target};
use alluvium_tests::minio::Minio;
use parking_lot::Mutex;

/// Three brokers and their clients keep a small machine busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The seed of `ALLUVIUM_TEST_SEED`, or another one each time.
fn seed() -> u64 {
    let given = std::env::var("ALLUVIUM_TEST_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok());
    seed.unwrap_or_else(|| u64::from(rand::random::<u32>()))
}

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        brokers: 3,
        length: Duration::from_secs(60),
        rounds: None,
        longest: Duration::from_secs(20),
        store: StoreChoice::Fake("put=20/60,get=10/30".to_owned()),
        rate: 200,
        clients: false,
        other: None,
        logs: logs_of(seed),
    }
}

fn pass(settings: &Settings) {
    let _alone = ONE_AT_A_TIME.lock();
    println!("ALLUVIUM_TEST_SEED={}", settings.seed);
    match run(settings) {
        Ok(summary) => println!("{summary}"),
        Err(failure) => panic!("seed {}: {failure}", settings.seed),
    }
}

#[test]
fn nothing_is_lost_in_chaos() {
    pass(&settings(seed()));
}

/// Half of the starts are of a version that has never heard of history, on a bucket that it has made.
#[test]
fn nothing_is_lost_beside_an_older_version() {
    let other = target().join("other-version/alluvium");
    let missing = (!other.exists()).then(|| "it is not built: tests/other-version.sh".to_owned());
    if Missing::from_environment().goes_on(missing) {
        pass(&Settings {
            other: Some(other),
            ..settings(seed())
        });
    }
}

#[test]
#[ignore = "takes minutes: what nobody needs is deleted only some time after the last start; CI runs it"]
fn rounds_of_kill_and_restart_leave_nothing_behind() {
    pass(&Settings {
        rounds: Some(10),
        ..settings(seed())
    });
}

#[test]
fn nothing_is_lost_in_chaos_on_minio() {
    if Missing::from_environment().goes_on(Minio::missing().or_else(clients_missing)) {
        pass(&Settings {
            store: StoreChoice::Minio,
            clients: true,
            ..settings(seed())
        });
    }
}
