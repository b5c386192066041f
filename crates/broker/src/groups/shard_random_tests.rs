//! Random commands against a shard: whatever happens, the rules of groups hold.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::tests::{DAY_MS, EPOCH_MS, TOPIC_ID, offset};
use super::*;
use crate::groups::member::Protocol;
use crate::groups::testing::{limits, subscription};

#[derive(Clone, Debug)]
enum Step {
    Join {
        member: usize,
        fresh: bool,
        is_static: bool,
        version: i32,
        protocols: u8,
    },
    Sync {
        member: usize,
        stale: bool,
    },
    Beat {
        member: usize,
    },
    Leave {
        member: usize,
    },
    Commit {
        member: usize,
        partition: i32,
        offset: i64,
    },
    SimpleCommit {
        partition: i32,
        offset: i64,
    },
    DeleteGroup,
    DeleteOffset {
        partition: i32,
    },
    DropTopic,
    Wait {
        ms: i64,
    },
    Expire,
    Unheard,
    Settle {
        publish: bool,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let member = 0usize..5;
    let step = prop_oneof![
        8 => (member.clone(), any::<bool>(), any::<bool>(), prop_oneof![Just(3), Just(4), Just(9)], 1u8..8)
            .prop_map(|(member, fresh, is_static, version, protocols)| Step::Join {
                member, fresh, is_static, version, protocols,
            }),
        8 => (member.clone(), proptest::bool::weighted(0.1)).prop_map(|(member, stale)| Step::Sync { member, stale }),
        4 => member.clone().prop_map(|member| Step::Beat { member }),
        2 => member.clone().prop_map(|member| Step::Leave { member }),
        4 => (member, 0..3, 0..9i64)
            .prop_map(|(member, partition, offset)| Step::Commit { member, partition, offset }),
        2 => (0..3, 0..9i64).prop_map(|(partition, offset)| Step::SimpleCommit { partition, offset }),
        1 => Just(Step::DeleteGroup),
        1 => (0..3).prop_map(|partition| Step::DeleteOffset { partition }),
        1 => Just(Step::DropTopic),
        4 => prop_oneof![0..1_000i64, 0..20_000i64, Just(8 * DAY_MS)].prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Expire),
        1 => Just(Step::Unheard),
        6 => proptest::bool::weighted(0.9).prop_map(|publish| Step::Settle { publish }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Drives a shard with random commands, as members that remember what they were told would.
struct Crowd {
    shard: Shard,
    limits: Arc<Limits>,
    now: Now,
    under_way: VecDeque<Append>,
    log: Vec<EncodedRecord>,
    /// Requests without an answer, with the member that waits.
    open: BTreeMap<ReplyId, usize>,
    next_reply: ReplyId,
    members: [Told; 5],
    joins: u128,
    generation: i32,
    offsets: BTreeMap<i32, i64>,
}

/// What a member was last told.
#[derive(Clone, Debug, Default)]
struct Told {
    id: String,
    instance: Option<String>,
    generation: i32,
    leads: bool,
    peers: Vec<String>,
}

const MAX_SIZE: usize = 4;

impl Crowd {
    fn new() -> Crowd {
        let limits = Arc::new(Limits {
            group_max_size: MAX_SIZE,
            ..limits()
        });
        Crowd {
            shard: Shard::new(limits.clone()),
            limits,
            now: Now {
                monotonic_ms: 0,
                wall_ms: EPOCH_MS,
            },
            under_way: VecDeque::new(),
            log: Vec::new(),
            open: BTreeMap::new(),
            next_reply: 0,
            members: Default::default(),
            joins: 0,
            generation: 0,
            offsets: BTreeMap::new(),
        }
    }

    fn ask(&mut self, member: usize, command: impl FnOnce(ReplyId) -> Command) {
        self.next_reply += 1;
        self.open.insert(self.next_reply, member);
        let command = command(self.next_reply);
        self.apply(command);
    }

    fn apply(&mut self, command: Command) {
        let fx = self.shard.apply(command, self.now);
        self.carry_out(fx);
        self.check();
    }

    fn carry_out(&mut self, fx: Effects) {
        self.under_way.extend(fx.appends);
        for (id, reply) in fx.replies {
            let member = self
                .open
                .remove(&id)
                .expect("an answer to a request that has none yet");
            if let Reply::Join(join) = reply {
                let told = &mut self.members[member];
                if !join.member_id.is_empty() {
                    told.id = join.member_id.clone();
                }
                if join.error == ErrorCode::None {
                    told.generation = join.generation;
                    told.leads = join.leader == join.member_id;
                    told.peers = join.members.into_iter().map(|row| row.0).collect();
                    assert!(
                        told.leads != told.peers.is_empty(),
                        "the leader, and only it, gets the members"
                    );
                }
            }
        }
    }

    fn check(&mut self) {
        let Some(group) = self.shard.group("g") else {
            self.generation = 0;
            return;
        };
        assert!(group.generation() >= self.generation, "generations never go back");
        self.generation = group.generation();
        let members: Vec<&str> = group.members().map(|m| m.id.as_str()).collect();
        match group.state() {
            GroupState::Stable | GroupState::CompletingRebalance => {
                assert!(members.len() <= MAX_SIZE, "{} members", members.len());
                assert!(!members.is_empty());
                assert!(group.protocol().is_some());
            }
            GroupState::Empty | GroupState::Dead => assert!(members.is_empty()),
            GroupState::PreparingRebalance => {}
        }
        match group.leader() {
            Some(leader) => assert!(members.contains(&leader), "the leader is a member"),
            None => assert!(members.is_empty(), "members have a leader"),
        }
        let deadline = group.next_deadline_ms();
        let queued = self.shard.next_deadline_ms();
        assert!(
            self.shard.closed.is_some()
                || deadline.is_none_or(|at| queued.is_some_and(|queued| queued <= at)),
            "deadline {deadline:?} but {queued:?} in the queue"
        );
        // What is answered to an OffsetFetch is what a reader of the log would compute.
        let visible: BTreeMap<i32, i64> = self
            .shard
            .all_committed("g")
            .map(|(_, p, committed)| (p, committed.value.offset))
            .collect();
        assert_eq!(visible, self.offsets, "offsets differ from the published ones");
    }

    fn settle(&mut self, publish: bool) {
        let Some(append) = self.under_way.pop_front() else {
            return;
        };
        let outcome = if publish {
            for record in &append.records {
                let record = LogRecord::decode(&record.key, record.value.as_deref())
                    .unwrap()
                    .unwrap();
                if let LogRecord::Offset { partition, value, .. } = record {
                    match value {
                        Some(value) => self.offsets.insert(partition, value.offset),
                        None => self.offsets.remove(&partition),
                    };
                }
            }
            self.log.extend(append.records);
            Ok(())
        } else {
            Err(ErrorCode::CoordinatorNotAvailable)
        };
        self.apply(Command::Appended {
            append: append.id,
            outcome,
        });
    }

    fn wait(&mut self, ms: i64) {
        let until = self.now.monotonic_ms + ms;
        let mut steps = 0;
        while let Some(at) = self.shard.next_deadline_ms().filter(|at| *at <= until) {
            steps += 1;
            assert!(steps < 5_000, "deadlines that never end");
            let by = (at - self.now.monotonic_ms).max(0);
            self.now = Now {
                monotonic_ms: self.now.monotonic_ms + by,
                wall_ms: self.now.wall_ms + by,
            };
            self.apply(Command::Tick);
        }
        self.now.wall_ms += until - self.now.monotonic_ms;
        self.now.monotonic_ms = until;
    }

    fn restart(&mut self) {
        // The old process ends: whoever waits is told, and what was under way is lost.
        self.apply(Command::Unload(ErrorCode::NotCoordinator));
        while !self.under_way.is_empty() {
            self.settle(false);
        }
        assert!(self.open.is_empty(), "left without an answer: {:?}", self.open);
        let mut shard = Shard::new(self.limits.clone());
        for record in &self.log {
            let record = LogRecord::decode(&record.key, record.value.as_deref())
                .unwrap()
                .unwrap();
            shard.replay(record, self.now);
        }
        self.shard = shard;
        // A generation that was never stored may come again after a restart.
        self.generation = 0;
        let fx = self.shard.loaded(self.now);
        self.carry_out(fx);
        self.check();
    }

    fn step(&mut self, step: Step) {
        let group = "g".to_owned();
        match step {
            Step::Join {
                member,
                fresh,
                is_static,
                version,
                protocols,
            } => {
                self.joins += 1;
                let told = &mut self.members[member];
                if fresh {
                    told.id.clear();
                    told.instance = is_static.then(|| format!("instance-{}", member % 2));
                }
                let offered = ["range", "sticky", "other"].iter().enumerate();
                let request = Join {
                    member_id: told.id.clone(),
                    instance_id: told.instance.clone(),
                    client_id: "c".to_owned(),
                    client_host: "/h".to_owned(),
                    session_timeout_ms: 10_000,
                    rebalance_timeout_ms: 15_000,
                    protocol_type: "consumer".to_owned(),
                    protocols: offered
                        .filter(|(bit, _)| protocols & (1 << bit) != 0)
                        .map(|(_, name)| Protocol {
                            name: (*name).to_owned(),
                            metadata: subscription(&["u"]),
                        })
                        .collect(),
                    requires_known_member_id: version >= 4,
                    supports_skipping_assignment: version >= 9,
                    unique: uuid::Uuid::from_u128(self.joins),
                };
                self.ask(member, |reply| Command::Join {
                    group,
                    request,
                    reply,
                });
            }
            Step::Sync { member, stale } => {
                let told = self.members[member].clone();
                let request = Sync {
                    member_id: told.id,
                    instance_id: told.instance,
                    generation: told.generation - i32::from(stale),
                    protocol_type: None,
                    protocol: None,
                    assignments: told
                        .peers
                        .into_iter()
                        .map(|id| (id, Bytes::from_static(b"X")))
                        .collect(),
                };
                self.ask(member, |reply| Command::Sync {
                    group,
                    request,
                    reply,
                });
            }
            Step::Beat { member } => {
                let Told {
                    id: member_id,
                    instance: instance_id,
                    generation,
                    ..
                } = self.members[member].clone();
                self.ask(member, |reply| Command::Heartbeat {
                    group,
                    member_id,
                    instance_id,
                    generation,
                    reply,
                });
            }
            Step::Leave { member } => {
                let members = vec![(self.members[member].id.clone(), None)];
                self.ask(member, |reply| Command::Leave {
                    group,
                    members,
                    reply,
                });
            }
            Step::Commit {
                member,
                partition,
                offset: at,
            } => {
                let told = self.members[member].clone();
                let request = Commit {
                    member_id: told.id,
                    instance_id: told.instance,
                    generation: told.generation,
                    retention_ms: None,
                    names_missing_group: true,
                    offsets: vec![offset(partition, at)],
                };
                self.ask(member, |reply| Command::Commit {
                    group,
                    request,
                    reply,
                });
            }
            Step::SimpleCommit {
                partition,
                offset: at,
            } => {
                let request = Commit {
                    member_id: String::new(),
                    instance_id: None,
                    generation: -1,
                    retention_ms: None,
                    names_missing_group: true,
                    offsets: vec![offset(partition, at)],
                };
                self.ask(0, |reply| Command::Commit {
                    group,
                    request,
                    reply,
                });
            }
            Step::DeleteGroup => {
                self.ask(0, |reply| Command::DeleteGroups {
                    groups: vec![group],
                    reply,
                });
            }
            Step::DeleteOffset { partition } => {
                let offsets = vec![("t".to_owned(), partition)];
                self.ask(0, |reply| Command::DeleteOffsets {
                    group,
                    offsets,
                    reply,
                });
            }
            Step::DropTopic => {
                let topic = ("t".to_owned(), Some(TopicId::from_u128(TOPIC_ID)));
                self.apply(Command::DropTopics([topic].into()));
            }
            Step::Wait { ms } => self.wait(ms),
            Step::Expire => self.apply(Command::Expire),
            Step::Unheard => self.apply(Command::Unheard(self.now)),
            Step::Settle { publish } => self.settle(publish),
            Step::Restart => self.restart(),
        }
    }

    /// Lets a log that works settle everything, until every wait has ended.
    fn leave_alone(&mut self) {
        for _ in 0..50 {
            while !self.under_way.is_empty() {
                self.settle(true);
            }
            self.wait(400_000);
        }
    }
}

/// Runs the steps, and then judges what is left.
fn keeps_the_rules(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut crowd = Crowd::new();
    for step in steps {
        crowd.step(step);
    }
    // Left alone, with a log that works, everybody gets an answer and the group ends empty.
    crowd.leave_alone();
    prop_assert!(crowd.open.is_empty(), "left without an answer: {:?}", crowd.open);
    if let Some(group) = crowd.shard.group("g") {
        prop_assert_eq!(group.state(), GroupState::Empty);
    }
    // A generation whose record failed lives on in memory alone, and the next one is stored: there is one more.
    crowd.step(Step::Join {
        member: 0,
        fresh: true,
        is_static: false,
        version: 3,
        protocols: 1,
    });
    crowd.leave_alone();
    // What a restart would know is what this shard knows.
    let mut again = Shard::new(crowd.limits.clone());
    for record in &crowd.log {
        again.replay(
            LogRecord::decode(&record.key, record.value.as_deref())
                .unwrap()
                .unwrap(),
            crowd.now,
        );
    }
    again.loaded(crowd.now);
    let offsets = |shard: &Shard| {
        shard
            .all_committed("g")
            .map(|(_, p, c)| (p, c.value.clone()))
            .collect::<Vec<_>>()
    };
    prop_assert_eq!(offsets(&again), offsets(&crowd.shard));
    let known = |shard: &Shard| shard.group("g").map(|group| group.members().count());
    prop_assert_eq!(known(&again).unwrap_or(0), known(&crowd.shard).unwrap_or(0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// One leader, at most the allowed members, generations that never go back, exactly one answer to each
    /// request, offsets that are those of the published log, and an end to every wait.
    #[test]
    fn random_commands_keep_the_rules(steps in steps()) {
        keeps_the_rules(steps)?;
    }
}

/// The last thing that happens is that a generation without members cannot be stored.
#[test]
fn an_empty_generation_that_failed_is_made_up_for_by_the_next() {
    let join = |member, fresh, is_static| Step::Join {
        member,
        fresh,
        is_static,
        version: 3,
        protocols: 1,
    };
    keeps_the_rules(vec![
        join(0, false, false),
        Step::Wait { ms: 8 * DAY_MS },
        join(0, false, false),
        Step::DeleteOffset { partition: 0 },
        Step::Settle { publish: false },
        join(2, true, true),
        Step::Wait { ms: 3_000 },
        Step::Sync {
            member: 2,
            stale: false,
        },
        Step::Settle { publish: true },
        Step::Wait { ms: 10_000 },
        Step::Settle { publish: false },
    ])
    .unwrap();
}
