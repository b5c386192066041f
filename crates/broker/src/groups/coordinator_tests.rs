use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::*;
use crate::groups::state::{GroupState, Join};
use crate::groups::testing::{
    Appends, Fixture, NEXT_PROOF, commit_simple, join, leader_sync, simple_commit, stable,
};

/// Lets every task run until nothing happens any more at this moment.
async fn idle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

async fn fetched(fixture: &Fixture, group: &str) -> Option<i64> {
    let topics = fixture.inner.fetch(group, None, false).await.unwrap();
    topics
        .first()
        .and_then(|topic| topic.1[0].1.as_ref().map(|committed| committed.value.offset))
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_answered_and_seen_only_after_publication() {
    let fixture = Fixture::loaded().await;
    fixture.engine.set(Appends::Hold);
    let inner = fixture.inner.clone();
    let commit = simple_commit(&fixture, 5);
    let pending = tokio::spawn(async move { inner.commit("g", commit).await });
    idle().await;
    assert!(!pending.is_finished());
    assert_eq!(fetched(&fixture, "g").await, None);
    // A stable read waits for what is on its way.
    let inner = fixture.inner.clone();
    let stable_read = tokio::spawn(async move { inner.fetch("g", None, true).await });
    idle().await;
    assert!(!stable_read.is_finished());

    fixture.engine.set(Appends::Publish);
    assert_eq!(pending.await.unwrap(), Ok(vec![ErrorCode::None]));
    assert_eq!(fetched(&fixture, "g").await, Some(5));
    let topics = stable_read.await.unwrap().unwrap();
    assert_eq!(topics[0].1[0].1.as_ref().unwrap().value.offset, 5);
}

#[tokio::test(start_paused = true)]
async fn commits_of_one_group_are_published_in_their_order() {
    let fixture = Fixture::loaded().await;
    fixture.engine.set(Appends::Hold);
    let mut pending = Vec::new();
    for offset in 1..=20 {
        let inner = fixture.inner.clone();
        let commit = simple_commit(&fixture, offset);
        pending.push(tokio::spawn(async move { inner.commit("g", commit).await }));
        idle().await;
    }
    fixture.engine.set(Appends::Publish);
    for commit in pending {
        assert_eq!(commit.await.unwrap(), Ok(vec![ErrorCode::None]));
    }
    assert_eq!(fetched(&fixture, "g").await, Some(20));
    let again = Fixture::on(fixture.engine.clone());
    again.settled().await;
    assert_eq!(fetched(&again, "g").await, Some(20));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_coordinator_gives_no_offsets() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    fixture.engine.depose();
    let fetched = fixture.inner.fetch("g", None, false).await;
    assert_eq!(fetched.err(), Some(ErrorCode::NotCoordinator));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_coordinator_acknowledges_no_commit_that_changes_nothing() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    // Its successor may have another offset by now. No append tells, since there is nothing to append.
    fixture.engine.depose();
    let before = fixture.engine.appends.load(Ordering::SeqCst);
    let again = fixture.inner.commit("g", simple_commit(&fixture, 5)).await;
    assert_eq!(again, Err(ErrorCode::NotCoordinator));
    assert_eq!(fixture.engine.appends.load(Ordering::SeqCst), before);
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_nothing_is_said_of_groups() {
    let fixture = Fixture::loaded().await;
    let member = stable(&fixture, "g").await;
    let gone = ErrorCode::NotCoordinator;
    let beat = || fixture.inner.heartbeat("g", member.clone(), None, 1);
    fixture.engine.lease(false);
    assert_eq!(beat().await, gone);
    assert_eq!(fixture.inner.join("g", join(&member)).await.error, gone);
    assert_eq!(fixture.inner.describe("g"), Err(gone));
    fixture.engine.lease(true);
    assert_eq!(beat().await, ErrorCode::None);
}

#[tokio::test(start_paused = true)]
async fn who_could_not_be_heard_is_not_taken_for_gone() {
    let fixture = Fixture::loaded().await;
    let member = stable(&fixture, "g").await;
    let beat = || fixture.inner.heartbeat("g", member.clone(), None, 1);
    // Its session is one of 10 s.
    fixture.engine.lease(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(beat().await, ErrorCode::NotCoordinator);
    fixture.engine.lease(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(beat().await, ErrorCode::None);

    // It is refused once, and all is well again before anything is due.
    tokio::time::sleep(Duration::from_secs(8)).await;
    fixture.engine.lease(false);
    assert_eq!(beat().await, ErrorCode::NotCoordinator);
    fixture.engine.lease(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(beat().await, ErrorCode::None);

    // A rebalance waits as long for those that it needs.
    let inner = fixture.inner.clone();
    let second = tokio::spawn(async move { inner.join("g", join("")).await });
    idle().await;
    fixture.engine.lease(false);
    tokio::time::sleep(Duration::from_secs(100)).await;
    fixture.engine.lease(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fixture.inner.join("g", join(&member)).await.generation, 2);
    assert_eq!(second.await.unwrap().generation, 2);

    // Whoever stays silent goes.
    tokio::time::sleep(Duration::from_secs(200)).await;
    let group = fixture.inner.describe("g").unwrap().unwrap();
    assert_eq!((group.state, group.members.len()), (GroupState::Empty, 0));
}

#[tokio::test(start_paused = true)]
async fn damage_hides_no_other_groups() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    let group = partition_for("g", 5);
    let (recovering, damaged) = ((group + 1) % 5, (group + 2) % 5);
    fixture.engine.recover(recovering, true);
    fixture.engine.quarantine(damaged);
    for partition in [recovering, damaged] {
        fixture.engine.own(partition, Some(1));
    }
    fixture.inner.reconcile(false);
    idle().await;
    let loading = Err(ErrorCode::CoordinatorLoadInProgress);
    assert_eq!(fixture.inner.list(), loading, "one of them ends soon");
    fixture.engine.recover(recovering, false);
    tokio::time::sleep(RECOVERING_LOOK).await;
    idle().await;
    let listed = fixture.inner.list().unwrap();
    assert_eq!(listed.iter().map(|g| g.group.as_str()).collect::<Vec<_>>(), ["g"]);
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_commit_costs_no_append_and_no_look_at_the_store() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    let asked = || {
        let count = |counter: &AtomicI64| counter.load(Ordering::SeqCst);
        (
            count(&fixture.engine.appends),
            count(&fixture.engine.confirmations),
        )
    };
    let (appends, looks) = asked();
    for _ in 0..100 {
        let began = Instant::now();
        commit_simple(&fixture, "g", 5).await;
        assert_eq!(began.elapsed(), NEXT_PROOF);
    }
    assert_eq!(asked(), (appends, looks));
    let began = Instant::now();
    commit_simple(&fixture, "g", 6).await;
    assert_eq!(asked(), (appends + 1, looks));
    // Nobody is kept waiting for what went wrong, nor for what a member goes on from.
    let stranger = Commit {
        member_id: "stranger".to_owned(),
        generation: 3,
        ..simple_commit(&fixture, 6)
    };
    let refused = fixture.inner.commit("g", stranger).await;
    assert_eq!(refused, Err(ErrorCode::UnknownMemberId));
    assert_eq!(fetched(&fixture, "g").await, Some(6));
    assert_eq!(asked(), (appends + 1, looks + 2));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_deposed_meanwhile_acknowledges_no_commit_that_changes_nothing() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    let (inner, commit) = (fixture.inner.clone(), simple_commit(&fixture, 5));
    let pending = tokio::spawn(async move { inner.commit("g", commit).await });
    tokio::time::sleep(NEXT_PROOF / 2).await;
    fixture.engine.depose();
    assert_eq!(pending.await.unwrap(), Err(ErrorCode::NotCoordinator));
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_is_retriable_and_leaves_what_the_log_says() {
    for refused_at_once in [false, true] {
        let fixture = Fixture::loaded().await;
        commit_simple(&fixture, "g", 5).await;
        if refused_at_once {
            fixture.engine.refuse_next();
        } else {
            fixture.engine.set(Appends::Fail);
        }
        let failed = fixture.inner.commit("g", simple_commit(&fixture, 6)).await;
        assert_eq!(failed, Err(ErrorCode::NotCoordinator));
        fixture.engine.set(Appends::Publish);
        // Until the partition is read again the group has no coordinator here.
        idle().await;
        let meanwhile = fixture.inner.fetch("g", None, false).await;
        assert_eq!(meanwhile, Err(ErrorCode::NotCoordinator));
        tokio::time::sleep(Duration::from_millis(150)).await;
        fixture.settled().await;
        assert_eq!(fetched(&fixture, "g").await, Some(5));
        commit_simple(&fixture, "g", 7).await;
        assert_eq!(fetched(&fixture, "g").await, Some(7));
    }
}

#[tokio::test(start_paused = true)]
async fn two_members_rebalance_and_sessions_end_by_themselves() {
    let fixture = Fixture::loaded().await;
    let a = stable(&fixture, "g").await;
    let inner = fixture.inner.clone();
    let second = tokio::spawn(async move { inner.join("g", join("")).await });
    idle().await;
    assert_eq!(
        fixture.inner.heartbeat("g", a.clone(), None, 1).await,
        ErrorCode::RebalanceInProgress
    );
    let first = fixture.inner.join("g", join(&a)).await;
    let second = second.await.unwrap();
    assert_eq!((first.generation, second.generation), (2, 2));
    assert_eq!(
        (first.leader.as_str(), second.leader.as_str()),
        (a.as_str(), a.as_str())
    );
    assert_eq!((first.members.len(), second.members.len()), (2, 0));

    let inner = fixture.inner.clone();
    let member = second.member_id.clone();
    let follower = tokio::spawn(async move {
        let request = leader_sync(&member, 2, &Default::default());
        inner.sync("g", request).await
    });
    let members = [a.clone(), second.member_id.clone()].into();
    let leader = fixture.inner.sync("g", leader_sync(&a, 2, &members)).await;
    assert_eq!(leader.error, ErrorCode::None);
    assert_eq!(&follower.await.unwrap().assignment[..], b"assigned");

    // Nobody sends heartbeats: time alone empties the group.
    tokio::time::sleep(Duration::from_secs(200)).await;
    let group = fixture.inner.describe("g").unwrap().unwrap();
    assert_eq!((group.state, group.members.len()), (GroupState::Empty, 0));
}

#[tokio::test(start_paused = true)]
async fn a_restart_finds_groups_members_and_offsets() {
    let fixture = Fixture::loaded().await;
    let member = stable(&fixture, "g").await;
    for group in 0..20 {
        commit_simple(&fixture, &format!("group-{group}"), group).await;
    }
    let again = Fixture::on(fixture.engine.clone());
    assert_eq!(again.inner.list(), Err(ErrorCode::CoordinatorLoadInProgress));
    again.settled().await;
    assert_eq!(again.inner.list(), fixture.inner.list());
    for group in 0..20 {
        assert_eq!(fetched(&again, &format!("group-{group}")).await, Some(group));
    }
    assert_eq!(
        again.inner.heartbeat("g", member.clone(), None, 1).await,
        ErrorCode::None
    );
    let sync = again
        .inner
        .sync("g", leader_sync(&member, 1, &Default::default()))
        .await;
    assert_eq!(&sync.assignment[..], b"assigned");
}

#[tokio::test(start_paused = true)]
async fn while_loading_clients_are_asked_to_wait() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    fixture.engine.reads_held.send_replace(true);
    let again = Fixture::on(fixture.engine.clone());
    idle().await;
    let loading = Err(ErrorCode::CoordinatorLoadInProgress);
    assert_eq!(again.inner.fetch("g", None, false).await, loading);
    assert_eq!(
        again.inner.commit("g", simple_commit(&again, 6)).await,
        Err(ErrorCode::CoordinatorLoadInProgress)
    );
    assert_eq!(
        again.inner.join("g", join("")).await.error,
        ErrorCode::CoordinatorLoadInProgress
    );
    // A heartbeat is let pass: sessions start when loading ends.
    assert_eq!(
        again.inner.heartbeat("g", "m".to_owned(), None, 1).await,
        ErrorCode::None
    );
    fixture.engine.reads_held.send_replace(false);
    again.settled().await;
    assert_eq!(fetched(&again, "g").await, Some(5));
}

#[tokio::test(start_paused = true)]
async fn partitions_come_and_go() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    let partition = partition_for("g", 5);
    let inner = fixture.inner.clone();
    let parked = tokio::spawn(async move { inner.join("g", join("")).await });
    idle().await;

    fixture.engine.own(partition, None);
    fixture.inner.reconcile(false);
    assert_eq!(parked.await.unwrap().error, ErrorCode::NotCoordinator);
    assert_eq!(
        fixture.inner.fetch("g", None, false).await,
        Err(ErrorCode::NotCoordinator)
    );
    let gone = fixture.inner.find("g", "PLAINTEXT").await;
    assert_eq!(gone, Err(ErrorCode::CoordinatorNotAvailable));

    // It comes back, with a new leader epoch, and later changes its epoch without being away.
    for epoch in [3, 4] {
        fixture.engine.own(partition, Some(epoch));
        fixture.inner.reconcile(false);
        fixture.settled().await;
        assert_eq!(fetched(&fixture, "g").await, Some(5));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_a_partition_moves_is_told_to_look_for_the_new_coordinator() {
    for fate in [Appends::Fail, Appends::Publish] {
        let fixture = Fixture::loaded().await;
        let leader = stable(&fixture, "stable").await;
        commit_simple(&fixture, "g", 5).await;
        let partitions = ["g", "stable", "joining"].map(|group| partition_for(group, 5));
        // A member that waits for others to join, a leader whose assignment is being stored, and a commit.
        let inner = fixture.inner.clone();
        let joining = tokio::spawn(async move { inner.join("joining", join("")).await });
        let rejoined = fixture.inner.join("stable", join(&leader)).await;
        assert_eq!(rejoined.generation, 2);
        fixture.engine.set(Appends::Hold);
        let inner = fixture.inner.clone();
        let members = [leader.clone()].into();
        let request = leader_sync(&leader, 2, &members);
        let syncing = tokio::spawn(async move { inner.sync("stable", request).await });
        let inner = fixture.inner.clone();
        let commit = simple_commit(&fixture, 6);
        let committing = tokio::spawn(async move { inner.commit("g", commit).await });
        idle().await;

        // The epochs change without this broker being away, as when a slot comes back to it.
        for partition in partitions {
            fixture.engine.own(partition, Some(3));
        }
        fixture.inner.reconcile(false);
        idle().await;
        assert_eq!(joining.await.unwrap().error, ErrorCode::NotCoordinator);
        assert_eq!(syncing.await.unwrap().error, ErrorCode::NotCoordinator);
        // The fate of what is being written is not known yet, so nothing is said of it, and nobody reads it.
        assert!(!committing.is_finished());
        let loading = fixture.inner.fetch("g", None, false).await;
        assert_eq!(loading, Err(ErrorCode::CoordinatorLoadInProgress));

        fixture.engine.set(fate);
        let committed = committing.await.unwrap();
        fixture.engine.set(Appends::Publish);
        fixture.settled().await;
        // What the log says is what holds, for offsets and for generations.
        let heartbeat = fixture.inner.heartbeat("stable", leader, None, 2).await;
        let offset = fetched(&fixture, "g").await;
        let expected = match fate {
            Appends::Publish => (Ok(vec![ErrorCode::None]), Some(6), ErrorCode::None),
            _ => (
                Err(ErrorCode::NotCoordinator),
                Some(5),
                ErrorCode::IllegalGeneration,
            ),
        };
        assert_eq!((committed, offset, heartbeat), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_was_away_comes_back_with_what_others_stored() {
    let here = Fixture::loaded().await;
    commit_simple(&here, "g", 5).await;
    let partition = partition_for("g", 5);
    here.engine.own(partition, Some(1));
    let there = Fixture::on(here.engine.clone());
    there.settled().await;
    // This broker has not heard of it yet: its epoch is over, and so is what it could store.
    let late = here.inner.commit("g", simple_commit(&here, 6)).await;
    assert_eq!(late, Err(ErrorCode::NotCoordinator));
    commit_simple(&there, "g", 9).await;
    here.engine.own(partition, Some(2));
    for fixture in [&here, &there] {
        fixture.inner.reconcile(false);
        fixture.settled().await;
    }
    assert_eq!(fetched(&here, "g").await, Some(9));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_being_recovered_loads_as_soon_as_it_is_there() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    let partition = partition_for("g", 5);
    fixture.engine.recover(partition, true);
    fixture.engine.own(partition, Some(1));
    fixture.inner.reconcile(false);
    // However long it takes, clients wait and nothing counts as failed.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let loading = Err(ErrorCode::CoordinatorLoadInProgress);
    assert_eq!(fixture.inner.fetch("g", None, false).await, loading);
    let join = fixture.inner.join("g", join("")).await;
    assert_eq!(join.error, ErrorCode::CoordinatorLoadInProgress);
    assert_eq!(
        fixture.inner.failed_loads.due(Instant::now()),
        Some(0),
        "no line of the log"
    );
    fixture.engine.recover(partition, false);
    tokio::time::sleep(RECOVERING_LOOK).await;
    idle().await;
    assert_eq!(fetched(&fixture, "g").await, Some(5));
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_read_again_only_when_nothing_of_it_is_under_way() {
    let fixture = Fixture::loaded().await;
    fixture.engine.set(Appends::Hold);
    let inner = fixture.inner.clone();
    let commit = simple_commit(&fixture, 5);
    let pending = tokio::spawn(async move { inner.commit("g", commit).await });
    idle().await;
    // The epoch changes twice while the commit is on its way.
    for epoch in [1, 2] {
        fixture.engine.own(partition_for("g", 5), Some(epoch));
        fixture.inner.reconcile(false);
        idle().await;
        let loading = fixture.inner.fetch("g", None, false).await;
        assert_eq!(loading, Err(ErrorCode::CoordinatorLoadInProgress));
    }
    fixture.engine.set(Appends::Publish);
    assert_eq!(pending.await.unwrap(), Ok(vec![ErrorCode::None]));
    fixture.settled().await;
    assert_eq!(fetched(&fixture, "g").await, Some(5));
    assert!(fixture.inner.draining.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_join_leaves_nothing_behind() {
    let fixture = Fixture::loaded().await;
    let inner = fixture.inner.clone();
    let parked = tokio::spawn(async move { inner.join("g", join("")).await });
    idle().await;
    parked.abort();
    idle().await;
    let shard = fixture.inner.shard("g").unwrap();
    assert_eq!(shard.guarded.lock().waiting.len(), 1);
    // The rebalance ends without it, its session ends, and so does the group.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shard.guarded.lock().waiting.len(), 0);
    let group = fixture.inner.describe("g").unwrap().unwrap();
    assert_eq!(group.state, GroupState::Empty);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_commit_still_counts() {
    let fixture = Fixture::loaded().await;
    fixture.engine.set(Appends::Hold);
    let inner = fixture.inner.clone();
    let commit = simple_commit(&fixture, 5);
    let pending = tokio::spawn(async move { inner.commit("g", commit).await });
    idle().await;
    pending.abort();
    fixture.engine.set(Appends::Publish);
    idle().await;
    assert_eq!(fetched(&fixture, "g").await, Some(5));
}

#[tokio::test(start_paused = true)]
async fn offsets_of_a_deleted_topic_are_not_those_of_its_successor() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    fixture.engine.remove_topic("events");
    fixture.engine.add_topic("events", 3);
    // Even before the coordinator hears of it.
    assert_eq!(fetched(&fixture, "g").await, None);
    fixture.inner.reconcile(true);
    idle().await;
    assert_eq!(fixture.inner.list(), Ok(Vec::new()));

    // The same while nobody coordinated the group.
    commit_simple(&fixture, "g", 6).await;
    fixture.engine.remove_topic("events");
    let again = Fixture::on(fixture.engine.clone());
    again.settled().await;
    idle().await;
    assert_eq!(again.inner.list(), Ok(Vec::new()));
    let tombstones = fixture
        .engine
        .published()
        .iter()
        .filter(|(_, value)| value.is_none())
        .count();
    assert_eq!(tombstones, 2);
}

#[tokio::test(start_paused = true)]
async fn offsets_expire_by_themselves() {
    let fixture = Fixture::loaded().await;
    commit_simple(&fixture, "g", 5).await;
    fixture.wall_ms.fetch_add(8 * 24 * 3_600_000, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(601)).await;
    idle().await;
    assert_eq!(fixture.inner.list(), Ok(Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn the_topic_is_created_once_however_many_ask() {
    let fixture = Fixture::without_topic();
    assert_eq!(
        fixture.inner.commit("g", simple_commit(&fixture, 1)).await,
        Err(ErrorCode::NotCoordinator)
    );
    let asks = (0..10).map(|n| {
        let inner = fixture.inner.clone();
        async move { inner.find(&format!("g{n}"), "PLAINTEXT").await }
    });
    for found in futures::future::join_all(asks).await {
        assert_eq!(found.unwrap().node_id, 7);
    }
    let id = fixture.topic_id("__consumer_offsets");
    fixture.inner.find("g", "PLAINTEXT").await.unwrap();
    assert_eq!(fixture.topic_id("__consumer_offsets"), id);
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_of_states_lag_and_commits() {
    let fixture = Fixture::loaded().await;
    stable(&fixture, "members").await;
    commit_simple(&fixture, "g", 5).await;
    commit_simple(&fixture, "g", 5).await;
    fixture.engine.set_high_watermark("events", 0, 12);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &fixture.registry).unwrap();
    for line in [
        "groups{state=\"Stable\"} 1",
        "groups{state=\"Empty\"} 1",
        "group_lag{group=\"g\",topic=\"events\"} 7",
        "group_offset_commits_total{outcome=\"written\"} 1",
        "group_offset_commits_total{outcome=\"unchanged\"} 1",
        "group_rebalances_total 1",
        "group_load_seconds_count 5",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_the_tasks() {
    let fixture = Fixture::loaded().await;
    stable(&fixture, "g").await;
    let shard = Arc::downgrade(&fixture.inner.shard("g").unwrap());
    let inner = Arc::downgrade(&fixture.inner);
    drop(fixture);
    idle().await;
    assert!(inner.upgrade().is_none());
    assert!(shard.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn static_members_and_ids_go_through() {
    let fixture = Fixture::loaded().await;
    let request = |unique| Join {
        instance_id: Some("i".to_owned()),
        unique,
        ..join("")
    };
    let first = fixture.inner.join("g", request(uuid::Uuid::from_u128(1))).await;
    assert_eq!(first.member_id, format!("i-{}", uuid::Uuid::from_u128(1)));
    let members = [first.member_id.clone()].into();
    fixture
        .inner
        .sync("g", leader_sync(&first.member_id, 1, &members))
        .await;
    let again = fixture.inner.join("g", request(uuid::Uuid::from_u128(2))).await;
    assert_eq!((again.error, again.generation), (ErrorCode::None, 1));
    let code = fixture
        .inner
        .heartbeat("g", first.member_id.clone(), Some("i".to_owned()), 1)
        .await;
    assert_eq!(code, ErrorCode::FencedInstanceId);

    // A former coordinator may not know of a later replacement, and no client recovers from this error.
    fixture.engine.depose();
    let replaced = Some("i".to_owned());
    let code = fixture
        .inner
        .heartbeat("g", first.member_id.clone(), replaced.clone(), 1)
        .await;
    assert_eq!(code, ErrorCode::NotCoordinator);
    let left = fixture.inner.leave("g", vec![(first.member_id, replaced)]).await;
    assert_eq!(left, Err(ErrorCode::NotCoordinator));
}
