use super::*;
use bytes::Bytes;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};

fn sessions(slots: usize) -> FetchSessions {
    FetchSessions::new(slots, 0, Gauge::default())
}

fn request(id: i32, epoch: i32, partitions: &[(i32, i64)]) -> FetchRequest {
    let mut request = FetchRequest::default();
    request.session_id = id;
    request.session_epoch = epoch;
    if !partitions.is_empty() {
        let mut topic = FetchTopic::default();
        topic.topic = StrBytes::from("t");
        for &(index, offset) in partitions {
            let mut partition = FetchPartition::default();
            partition.partition = index;
            partition.fetch_offset = offset;
            partition.partition_max_bytes = 100;
            topic.partitions.push(partition);
        }
        request.topics.push(topic);
    }
    request
}

fn forget(mut request: FetchRequest, partitions: &[i32]) -> FetchRequest {
    let mut topic = ForgottenTopic::default();
    topic.topic = StrBytes::from("t");
    topic.partitions = partitions.to_vec();
    request.forgotten_topics_data.push(topic);
    request
}

fn at(index: i32, high_watermark: i64) -> PartitionAnswer {
    let mut answer = PartitionAnswer::failed(index, ErrorCode::None);
    answer.high_watermark = high_watermark;
    answer.log_start_offset = 0;
    answer
}

fn with_records(index: i32, high_watermark: i64) -> PartitionAnswer {
    let mut answer = at(index, high_watermark);
    answer.records = vec![Bytes::from_static(b"batch")];
    answer.records_bytes = 5;
    answer
}

/// Fetches; the answer of every target comes from `answer`. Returns the session and the indexes answered.
fn fetch(
    sessions: &FetchSessions,
    request: &FetchRequest,
    now: Instant,
    answer: impl Fn(i32) -> PartitionAnswer,
) -> Result<(i32, Vec<i32>), ErrorCode> {
    let context = sessions.begin(request, false, now)?;
    let answers = context
        .targets
        .iter()
        .map(|target| answer(target.key.index))
        .collect();
    let (id, told) = sessions.finish(context, answers, now);
    Ok((id, told.into_iter().map(|(key, _)| key.index).collect()))
}

#[tokio::test]
async fn only_what_changed_is_told_and_records_move_to_the_end() {
    let sessions = sessions(10);
    let now = Instant::now();
    let (id, told) = fetch(&sessions, &request(0, 0, &[(0, 0), (1, 0), (2, 0)]), now, |i| {
        at(i, 5)
    })
    .unwrap();
    assert!(id > 0);
    assert_eq!(told, [0, 1, 2]);
    // Nothing new.
    assert_eq!(
        fetch(&sessions, &request(id, 1, &[]), now, |i| at(i, 5)).unwrap(),
        (id, vec![])
    );
    // Records in partition 0, a new high watermark in 2.
    let answer = |i| {
        if i == 0 {
            with_records(0, 6)
        } else {
            at(i, if i == 2 { 9 } else { 5 })
        }
    };
    assert_eq!(
        fetch(&sessions, &request(id, 2, &[]), now, answer).unwrap(),
        (id, vec![0, 2])
    );
    // Partition 0 comes last now.
    let context = sessions.begin(&request(id, 3, &[]), false, now).unwrap();
    assert_eq!(
        context
            .targets
            .iter()
            .map(|target| target.key.index)
            .collect::<Vec<_>>(),
        [1, 2, 0]
    );
}

#[tokio::test]
async fn an_error_is_told_every_time_and_so_is_what_follows_it() {
    let sessions = sessions(10);
    let now = Instant::now();
    let (id, _) = fetch(&sessions, &request(0, 0, &[(0, 0)]), now, |i| at(i, 5)).unwrap();
    let failed = |i| PartitionAnswer::failed(i, ErrorCode::NotLeaderOrFollower);
    assert_eq!(
        fetch(&sessions, &request(id, 1, &[]), now, failed).unwrap().1,
        [0]
    );
    assert_eq!(
        fetch(&sessions, &request(id, 2, &[]), now, failed).unwrap().1,
        [0]
    );
    assert_eq!(
        fetch(&sessions, &request(id, 3, &[]), now, |i| at(i, 5))
            .unwrap()
            .1,
        [0]
    );
    assert!(
        fetch(&sessions, &request(id, 4, &[]), now, |i| at(i, 5))
            .unwrap()
            .1
            .is_empty()
    );
}

#[tokio::test]
async fn partitions_are_added_changed_and_forgotten() {
    let sessions = sessions(10);
    let now = Instant::now();
    let (id, _) = fetch(&sessions, &request(0, 0, &[(0, 0), (1, 0)]), now, |i| at(i, 5)).unwrap();
    let change = forget(request(id, 1, &[(1, 77), (2, 3)]), &[0]);
    let context = sessions.begin(&change, false, now).unwrap();
    let wanted: Vec<(i32, i64)> = context
        .targets
        .iter()
        .map(|target| (target.key.index, target.fetch_offset))
        .collect();
    assert_eq!(wanted, [(1, 77), (2, 3)]);
    // A session with nothing left is over.
    let empty = forget(request(id, 2, &[]), &[1, 2]);
    assert_eq!(fetch(&sessions, &empty, now, |i| at(i, 5)).unwrap(), (0, vec![]));
    let gone = sessions.begin(&request(id, 3, &[]), false, now).unwrap_err();
    assert_eq!(gone, ErrorCode::FetchSessionIdNotFound);
    assert_eq!(sessions.cache.lock().partitions, 0);
}

#[tokio::test]
async fn wrong_sessions_are_refused() {
    let sessions = sessions(10);
    let now = Instant::now();
    let (id, _) = fetch(&sessions, &request(0, 0, &[(0, 0)]), now, |i| at(i, 5)).unwrap();
    let refused = |request: &FetchRequest, by_id| sessions.begin(request, by_id, now).unwrap_err();
    assert_eq!(
        refused(&request(id + 1, 1, &[]), false),
        ErrorCode::FetchSessionIdNotFound
    );
    assert_eq!(
        refused(&request(0, 1, &[]), false),
        ErrorCode::FetchSessionIdNotFound
    );
    assert_eq!(
        refused(&request(id, 2, &[]), false),
        ErrorCode::InvalidFetchSessionEpoch
    );
    assert_eq!(
        refused(&request(id, 1, &[]), true),
        ErrorCode::FetchSessionTopicIdError
    );
    // The epoch did not move on by the refusals.
    assert!(fetch(&sessions, &request(id, 1, &[]), now, |i| at(i, 5)).is_ok());
    // The final epoch closes the session and still fetches.
    assert_eq!(
        fetch(&sessions, &request(id, -1, &[(0, 0)]), now, |i| at(i, 5)).unwrap(),
        (0, vec![0])
    );
    assert_eq!(
        refused(&request(id, 2, &[]), false),
        ErrorCode::FetchSessionIdNotFound
    );
    // Naming an old session when starting anew replaces it.
    let (first, _) = fetch(&sessions, &request(0, 0, &[(0, 0)]), now, |i| at(i, 5)).unwrap();
    let (second, _) = fetch(&sessions, &request(first, 0, &[(0, 0)]), now, |i| at(i, 5)).unwrap();
    assert_ne!(first, second);
    assert_eq!(sessions.cache.lock().entries.len(), 1);
}

#[tokio::test]
async fn a_full_cache_displaces_only_what_is_old() {
    let sessions = sessions(2);
    let start = Instant::now();
    let begin = |partitions: &[(i32, i64)], now| {
        fetch(&sessions, &request(0, 0, partitions), now, |i| at(i, 5))
            .unwrap()
            .0
    };
    let small = begin(&[(0, 0)], start);
    let large = begin(&[(0, 0), (1, 0), (2, 0)], start);
    assert_eq!(begin(&[(0, 0), (1, 0)], start), 0, "nothing is old");

    let later = start + DISPLACED_AFTER + Duration::from_secs(1);
    for id in [small, large] {
        fetch(&sessions, &request(id, 1, &[]), later, |i| at(i, 5)).unwrap();
    }
    assert_eq!(
        begin(&[(0, 0)], later),
        0,
        "the small one is in use and no smaller"
    );
    let middle = begin(&[(0, 0), (1, 0)], later);
    assert!(middle > 0);
    let gone = sessions.begin(&request(small, 2, &[]), false, later).unwrap_err();
    assert_eq!(gone, ErrorCode::FetchSessionIdNotFound);

    let idle = later + DISPLACED_AFTER + Duration::from_secs(1);
    fetch(&sessions, &request(middle, 1, &[]), idle, |i| at(i, 5)).unwrap();
    assert!(begin(&[(0, 0)], idle) > 0, "the idle one goes whatever its size");
    assert!(sessions.begin(&request(large, 2, &[]), false, idle).is_err());
}

#[tokio::test]
async fn without_slots_every_fetch_stands_alone() {
    let sessions = sessions(0);
    let answer = fetch(&sessions, &request(0, 0, &[(0, 0)]), Instant::now(), |i| at(i, 5)).unwrap();
    assert_eq!(answer, (0, vec![0]));
}

#[tokio::test]
async fn a_session_does_not_keep_the_request_buffer() {
    let sessions = sessions(1);
    let now = Instant::now();
    let buffer = Bytes::from(b"a long request that ends in t".to_vec());
    let mut request = request(0, 0, &[(0, 0)]);
    request.topics[0].topic = StrBytes::try_from(buffer.slice(buffer.len() - 1..)).unwrap();
    let (id, _) = fetch(&sessions, &request, now, |i| at(i, 5)).unwrap();
    drop(request);
    assert!(id > 0);
    assert!(buffer.is_unique(), "the session holds a slice of the request");
}

#[test]
fn epochs_wrap_to_one() {
    assert_eq!(next_epoch(0), 1);
    assert_eq!(next_epoch(i32::MAX), 1);
}
