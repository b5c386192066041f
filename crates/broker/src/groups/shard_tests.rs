//! Stories are texts: a line is a command, the lines with `>` under it are what must come of it. The group is
//! `g` unless a line says otherwise; members go by the labels of their first JoinGroup.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;

use super::*;
use crate::groups::member::Protocol;
use crate::groups::testing::{limits, subscription};

pub(super) const TOPIC_ID: u128 = 77;
pub(super) const EPOCH_MS: i64 = 1_700_000_000_000;

/// A shard with its log, and names for what random ids and replies would hide.
struct Stage {
    shard: Shard,
    now: Now,
    /// Appends under way, oldest first.
    under_way: VecDeque<Append>,
    log: Vec<EncodedRecord>,
    labels: BTreeMap<String, String>,
    replies: BTreeMap<ReplyId, String>,
    next_reply: ReplyId,
    joins: u128,
    out: String,
}

impl Stage {
    fn new(limits: Limits) -> Stage {
        Stage {
            shard: Shard::new(Arc::new(limits)),
            now: Now {
                monotonic_ms: 0,
                wall_ms: EPOCH_MS,
            },
            under_way: VecDeque::new(),
            log: Vec::new(),
            labels: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_reply: 0,
            joins: 0,
            out: String::new(),
        }
    }

    fn label(&self, id: &str) -> String {
        self.labels.get(id).cloned().unwrap_or_else(|| id.to_owned())
    }

    fn id(&self, label: &str) -> String {
        let known = self.labels.iter().find(|(_, known)| *known == label);
        known
            .map(|(id, _)| id.clone())
            .unwrap_or_else(|| label.to_owned())
    }

    fn reply(&mut self, who: &str) -> ReplyId {
        self.next_reply += 1;
        self.replies.insert(self.next_reply, who.to_owned());
        self.next_reply
    }

    fn apply(&mut self, command: Command) {
        let fx = self.shard.apply(command, self.now);
        self.show(fx);
        let deadline = self.shard.group("g").and_then(Group::next_deadline_ms);
        let queued = self.shard.next_deadline_ms();
        assert!(
            self.shard.closed.is_some()
                || deadline.is_none_or(|at| queued.is_some_and(|queued| queued <= at)),
            "deadline {deadline:?} but {queued:?} in the queue"
        );
    }

    fn show(&mut self, fx: Effects) {
        for append in fx.appends {
            let shown: Vec<String> = append
                .records
                .iter()
                .map(|record| self.show_record(record))
                .collect();
            writeln!(self.out, "> append {}", shown.join(", ")).unwrap();
            self.under_way.push_back(append);
        }
        let mut lines = Vec::new();
        for (id, reply) in fx.replies {
            let who = self.replies.remove(&id).expect("one answer to each request");
            lines.push(format!("> {who}: {}", self.show_reply(reply)));
        }
        for line in lines {
            writeln!(self.out, "{line}").unwrap();
        }
    }

    fn show_record(&self, record: &EncodedRecord) -> String {
        match LogRecord::decode(&record.key, record.value.as_deref())
            .unwrap()
            .unwrap()
        {
            LogRecord::Offset {
                topic,
                partition,
                value: Some(value),
                ..
            } => {
                format!("{topic}/{partition}={}", value.offset)
            }
            LogRecord::Offset {
                topic,
                partition,
                value: None,
                ..
            } => format!("{topic}/{partition} gone"),
            LogRecord::Group {
                value: Some(value), ..
            } => {
                let member = |m: &crate::groups::records::MemberValue| {
                    format!(
                        "{}:{}",
                        self.label(&m.member_id),
                        String::from_utf8_lossy(&m.assignment)
                    )
                };
                let members: Vec<String> = value.members.iter().map(member).collect();
                format!("generation {} [{}]", value.generation, members.join(" "))
            }
            LogRecord::Group { value: None, .. } => "group gone".to_owned(),
        }
    }

    fn show_reply(&self, reply: Reply) -> String {
        match reply {
            Reply::Join(join) if join.error == ErrorCode::None => {
                let members: Vec<String> = join.members.iter().map(|m| self.label(&m.0)).collect();
                let skip = if join.skip_assignment { " skip" } else { "" };
                format!(
                    "joined {} {} leader {} [{}]{skip}",
                    join.generation,
                    join.protocol.unwrap_or_default(),
                    self.label(&join.leader),
                    members.join(" ")
                )
            }
            Reply::Join(join) => format!("{:?}", join.error),
            Reply::Sync(sync) if sync.error == ErrorCode::None => {
                format!("synced {}", String::from_utf8_lossy(&sync.assignment))
            }
            Reply::Sync(sync) => format!("{:?}", sync.error),
            Reply::Code(code) => format!("{code:?}"),
            Reply::Codes(codes) => format!("{codes:?}"),
            Reply::Failed(error) => format!("failed {error:?}"),
        }
    }

    /// Lets time pass, stopping at every deadline.
    fn wait(&mut self, ms: i64) {
        let until = self.now.monotonic_ms + ms;
        let mut steps = 0;
        while let Some(at) = self.shard.next_deadline_ms().filter(|at| *at <= until) {
            steps += 1;
            assert!(steps < 10_000, "deadlines that never end");
            let by = (at - self.now.monotonic_ms).max(0);
            self.now.monotonic_ms += by;
            self.now.wall_ms += by;
            self.apply(Command::Tick);
            if self
                .shard
                .next_deadline_ms()
                .is_some_and(|next| next <= self.now.monotonic_ms)
            {
                panic!("a tick must do what is due");
            }
        }
        self.now.wall_ms += until - self.now.monotonic_ms;
        self.now.monotonic_ms = until;
    }

    fn publish(&mut self) {
        while let Some(append) = self.under_way.pop_front() {
            self.log.extend(append.records);
            self.apply(Command::Appended {
                append: append.id,
                outcome: Ok(()),
            });
        }
    }

    fn fail(&mut self) {
        while let Some(append) = self.under_way.pop_front() {
            let outcome = Err(ErrorCode::CoordinatorNotAvailable);
            self.apply(Command::Appended {
                append: append.id,
                outcome,
            });
        }
    }

    /// A shard that knows only the log.
    fn replayed(&self) -> Shard {
        let mut shard = Shard::new(self.shard.limits.clone());
        for record in &self.log {
            let record = LogRecord::decode(&record.key, record.value.as_deref())
                .unwrap()
                .unwrap();
            shard.replay(record, self.now);
        }
        shard
    }

    fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let option = |key: &str| {
            let prefix = format!("{key}=");
            words
                .iter()
                .find_map(|word| word.strip_prefix(&prefix))
                .map(str::to_owned)
        };
        let number = |key: &str| option(key).map(|text| text.parse::<i32>().unwrap());
        let group = option("group").unwrap_or_else(|| "g".to_owned());
        let who = words.get(1).copied().unwrap_or_default();
        match words[0] {
            "join" => {
                let request = self.join_request(who, &option, &number);
                let reply = self.reply(who);
                self.apply(Command::Join {
                    group,
                    request,
                    reply,
                });
            }
            "sync" => {
                let assignments = option("give").unwrap_or_default();
                let assignments = assignments.split(',').filter_map(|pair| pair.split_once(':'));
                let request = Sync {
                    member_id: self.id(who),
                    instance_id: option("instance"),
                    generation: number("gen").unwrap(),
                    protocol_type: option("type"),
                    protocol: option("proto"),
                    assignments: assignments
                        .map(|(label, given)| (self.id(label), Bytes::copy_from_slice(given.as_bytes())))
                        .collect(),
                };
                let reply = self.reply(who);
                self.apply(Command::Sync {
                    group,
                    request,
                    reply,
                });
            }
            "beat" => {
                let (member_id, instance_id) = (self.id(who), option("instance"));
                let generation = number("gen").unwrap();
                let reply = self.reply(who);
                self.apply(Command::Heartbeat {
                    group,
                    member_id,
                    instance_id,
                    generation,
                    reply,
                });
            }
            "leave" => {
                let members = if who.starts_with("instance=") {
                    vec![(String::new(), option("instance"))]
                } else {
                    words[1..].iter().map(|label| (self.id(label), None)).collect()
                };
                let reply = self.reply(&words[1..].join("+"));
                self.apply(Command::Leave {
                    group,
                    members,
                    reply,
                });
            }
            "commit" => {
                let offsets = words[2..]
                    .iter()
                    .filter_map(|word| word.strip_prefix("t/")?.split_once('='));
                let request = Commit {
                    member_id: if who == "-" { String::new() } else { self.id(who) },
                    instance_id: option("instance"),
                    generation: number("gen").unwrap_or(-1),
                    retention_ms: number("keep").map(i64::from),
                    names_missing_group: number("v").is_none_or(|v| v >= 9),
                    offsets: offsets
                        .map(|(p, o)| offset(p.parse().unwrap(), o.parse().unwrap()))
                        .collect(),
                };
                let reply = self.reply(who);
                self.apply(Command::Commit {
                    group,
                    request,
                    reply,
                });
            }
            "delete" => {
                let reply = self.reply("delete");
                let groups = words[1..].iter().map(|name| (*name).to_owned()).collect();
                self.apply(Command::DeleteGroups { groups, reply });
            }
            "forget" => {
                let reply = self.reply("forget");
                let offsets = words[1..].iter().filter_map(|word| word.split_once('/'));
                let offsets = offsets.map(|(t, p)| (t.to_owned(), p.parse().unwrap())).collect();
                self.apply(Command::DeleteOffsets {
                    group,
                    offsets,
                    reply,
                });
            }
            "drop" => {
                let id = number("id").map_or(TOPIC_ID, |id| u128::try_from(id).unwrap());
                let topic = ("t".to_owned(), Some(TopicId::from_u128(id)));
                self.apply(Command::DropTopics([topic].into()));
            }
            "offsets" => {
                let rows: Vec<String> = self
                    .shard
                    .all_committed(&group)
                    .map(|(topic, partition, committed)| {
                        format!("{topic}/{partition}={}", committed.value.offset)
                    })
                    .collect();
                writeln!(self.out, "> {}", rows.join(" ")).unwrap();
            }
            "state" => {
                let line = match self.shard.group(&group) {
                    None => "no group".to_owned(),
                    Some(group) => {
                        let members: Vec<String> = group.members().map(|m| self.label(&m.id)).collect();
                        let leader = group.leader().map(|id| self.label(id)).unwrap_or_default();
                        let (state, generation) = (group.state(), group.generation());
                        format!("{state:?} {generation} leader {leader} [{}]", members.join(" "))
                    }
                };
                writeln!(self.out, "> {line}").unwrap();
            }
            "wait" => self.wait(who.parse().unwrap()),
            "publish" => self.publish(),
            "fail" => self.fail(),
            "expire" => self.apply(Command::Expire),
            "unload" => self.apply(Command::Unload(ErrorCode::NotCoordinator)),
            "restart" => {
                self.shard = self.replayed();
                self.under_way.clear();
                let fx = self.shard.loaded(self.now);
                self.show(fx);
            }
            other => panic!("no command {other}"),
        }
    }

    fn join_request(
        &mut self,
        label: &str,
        option: &dyn Fn(&str) -> Option<String>,
        number: &dyn Fn(&str) -> Option<i32>,
    ) -> Join {
        let known = self.id(label);
        let again = known != label && option("as").is_none();
        let version = number("v").unwrap_or(3);
        self.joins += 1;
        let unique = uuid::Uuid::from_u128(self.joins);
        let instance_id = option("instance");
        let member_id = match option("as") {
            Some(other) => self.id(&other),
            None if again => known,
            None => String::new(),
        };
        if member_id.is_empty() {
            let prefix = instance_id.as_deref().unwrap_or(label);
            self.labels.insert(format!("{prefix}-{unique}"), label.to_owned());
        }
        let protocols = option("proto").unwrap_or_else(|| "range".to_owned());
        let topics = option("topics").unwrap_or_else(|| "t".to_owned());
        let metadata = subscription(&topics.split(',').collect::<Vec<_>>());
        Join {
            member_id,
            instance_id,
            client_id: label.to_owned(),
            client_host: "/host".to_owned(),
            session_timeout_ms: number("session").unwrap_or(10_000),
            rebalance_timeout_ms: number("rebalance").unwrap_or(60_000),
            protocol_type: option("type").unwrap_or_else(|| "consumer".to_owned()),
            protocols: protocols
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| Protocol {
                    name: name.to_owned(),
                    metadata: metadata.clone(),
                })
                .collect(),
            requires_known_member_id: version >= 4,
            supports_skipping_assignment: version >= 9,
            unique,
        }
    }
}

pub(super) fn offset(partition: i32, offset: i64) -> OffsetToCommit {
    OffsetToCommit {
        topic: "t".to_owned(),
        topic_id: TopicId::from_u128(TOPIC_ID),
        partition,
        offset,
        leader_epoch: -1,
        metadata: String::new(),
    }
}

/// Runs the commands of a story and compares all that came of it.
fn story_with(limits: Limits, text: &str) {
    let mut stage = Stage::new(limits);
    let mut expected = String::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        expected.push_str(line);
        expected.push('\n');
        if !line.starts_with('>') {
            stage.out.push_str(line);
            stage.out.push('\n');
            stage.run(line);
        }
    }
    let happened: String = stage
        .out
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    assert!(
        happened == expected,
        "--- expected ---\n{expected}--- happened ---\n{happened}"
    );
}

fn story(text: &str) {
    story_with(
        Limits {
            initial_rebalance_delay_ms: 0,
            ..limits()
        },
        text,
    );
}

#[test]
fn one_member_joins_syncs_beats_and_leaves() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         state
         > CompletingRebalance 1 leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         # The assignment goes out, and the group is stable, only when that is durable.
         state
         > CompletingRebalance 1 leader a [a]
         publish
         > a: synced X
         state
         > Stable 1 leader a [a]
         beat a gen=1
         > a: None
         beat a gen=0
         > a: IllegalGeneration
         beat zombie gen=1
         > zombie: UnknownMemberId
         sync a gen=1
         > a: synced X
         leave a
         > append generation 2 []
         publish
         > a: [None]
         state
         > Empty 2 leader  []
         beat a gen=2
         > a: UnknownMemberId",
    );
}

#[test]
fn a_second_member_makes_the_first_rejoin() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         join b
         state
         > PreparingRebalance 1 leader a [a b]
         beat a gen=1
         > a: RebalanceInProgress
         sync a gen=1
         > a: RebalanceInProgress
         # Commits of the old generation still count while it is being left.
         commit a gen=1 t/0=5
         > append t/0=5
         publish
         > a: [None]
         join a
         > a: joined 2 range leader a [a b]
         > b: joined 2 range leader a []
         commit a gen=2 t/0=6
         > a: failed RebalanceInProgress
         commit a gen=1 t/0=6
         > a: failed IllegalGeneration
         sync b gen=2
         sync a gen=2 give=a:X,b:Y
         > append generation 2 [a:X b:Y]
         publish
         > a: synced X
         > b: synced Y
         offsets
         > t/0=5",
    );
}

#[test]
fn versions_from_four_on_first_get_an_id() {
    story(
        "join a v=4
         > a: MemberIdRequired
         state
         > Empty 0 leader  []
         join a v=4
         > a: joined 1 range leader a [a]
         join b v=4
         > b: MemberIdRequired
         # An id that nobody joins with lapses with the session timeout, and the group with it.
         sync a gen=1
         > append generation 1 [a:]
         publish
         > a: synced 
         wait 9999
         beat a gen=1
         > a: None
         wait 2
         join b v=4
         > b: UnknownMemberId",
    );
    story(
        "join a v=4
         > a: MemberIdRequired
         wait 10000
         state
         > no group",
    );
}

#[test]
fn the_first_rebalance_waits_for_more_members() {
    story_with(
        limits(),
        "join a
         wait 2999
         join b
         wait 1
         # Somebody came in the first three seconds: three more.
         state
         > PreparingRebalance 0 leader a [a b]
         wait 2999
         wait 1
         > a: joined 1 range leader a [a b]
         > b: joined 1 range leader a []",
    );
    // Not longer than the rebalance timeout, however many come.
    story_with(
        limits(),
        "join a rebalance=5000
         wait 2000
         join b rebalance=5000
         wait 2000
         join c rebalance=5000
         wait 999
         wait 1
         > a: joined 1 range leader a [a b c]
         > b: joined 1 range leader a []
         > c: joined 1 range leader a []",
    );
}

#[test]
fn who_does_not_rejoin_in_time_is_out() {
    story(
        "join a session=100000 rebalance=5000
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         join b session=100000 rebalance=5000
         wait 4999
         wait 1
         > b: joined 2 range leader b [b]
         beat a gen=1
         > a: UnknownMemberId
         commit a gen=1 t/0=9
         > a: failed UnknownMemberId",
    );
}

#[test]
fn a_silent_member_is_out_when_its_session_ends() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1
         > append generation 1 [a:]
         publish
         > a: synced 
         wait 5000
         beat a gen=1
         > a: None
         # A commit keeps the session too.
         wait 9999
         commit a gen=1 t/0=1
         > append t/0=1
         publish
         > a: [None]
         wait 9999
         state
         > Stable 1 leader a [a]
         wait 1
         > append generation 2 []
         publish
         state
         > Empty 2 leader  []",
    );
}

#[test]
fn members_that_do_not_sync_in_time_are_out() {
    story(
        "join a session=100000 rebalance=5000
         > a: joined 1 range leader a [a]
         wait 4999
         beat a gen=1
         > a: None
         wait 1
         > append generation 2 []
         beat a gen=1
         > a: UnknownMemberId",
    );
    // The leader waits in vain for nobody: a follower that does not sync leaves after the rebalance timeout.
    story(
        "join a session=100000 rebalance=5000
         > a: joined 1 range leader a [a]
         join b session=100000 rebalance=5000
         join a session=100000 rebalance=5000
         > a: joined 2 range leader a [a b]
         > b: joined 2 range leader a []
         sync a gen=2 give=a:X
         > append generation 2 [a:X b:]
         publish
         > a: synced X
         wait 5000
         state
         > PreparingRebalance 2 leader a [a]
         beat a gen=2
         > a: RebalanceInProgress",
    );
}

#[test]
fn a_rebalance_during_the_assignment_calls_it_off() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         join b
         > a: RebalanceInProgress
         # The stored assignment comes too late to count.
         publish
         state
         > PreparingRebalance 1 leader a [a b]
         join a
         > a: joined 2 range leader a [a b]
         > b: joined 2 range leader a []",
    );
}

#[test]
fn a_parked_request_keeps_the_session_and_its_answer_starts_it_anew() {
    story(
        "join a rebalance=100000
         > a: joined 1 range leader a [a]
         join b rebalance=100000
         join a rebalance=100000
         > a: joined 2 range leader a [a b]
         > b: joined 2 range leader a []
         wait 9000
         beat a gen=2
         > a: None
         sync b gen=2
         wait 9000
         # The session of b is over by its timer, but b waits; a heartbeat of it changes nothing.
         beat a gen=2
         > a: None
         beat b gen=2
         > b: None
         wait 9000
         sync a gen=2 give=a:X,b:Y
         > append generation 2 [a:X b:Y]
         publish
         > a: synced X
         > b: synced Y
         wait 9999
         beat a gen=2
         > a: None
         wait 1
         state
         > PreparingRebalance 2 leader a [a]",
    );
    // Nothing is due for a group whose only member waits for the log.
    story(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         wait 10000
         beat a gen=1
         > a: None
         publish
         > a: synced X",
    );
}

#[test]
fn a_lost_answer_is_given_again_without_a_rebalance() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         # Twice asked is once stored, and once answered each.
         sync a gen=1 give=a:Z
         > a: RebalanceInProgress
         publish
         > a: synced X
         join b
         join a
         > a: joined 2 range leader a [a b]
         > b: joined 2 range leader a []
         sync a gen=2 give=a:X,b:Y
         > append generation 2 [a:X b:Y]
         sync b gen=2
         publish
         > a: synced X
         > b: synced Y
         # A follower may ask again; a leader that asks wants a rebalance.
         join b
         > b: joined 2 range leader a []
         state
         > Stable 2 leader a [a b]
         join a
         state
         > PreparingRebalance 2 leader a [a b]
         # Of two JoinGroups of one member the newer waits.
         join a
         > a: RebalanceInProgress
         join b topics=u
         > a: joined 3 range leader a [a b]
         > b: joined 3 range leader a []",
    );
}

#[test]
fn protocols_are_voted_for_among_those_that_all_offer() {
    story(
        "join a proto=sticky,range,only-a
         > a: joined 1 sticky leader a [a]
         join b proto=other
         > b: InconsistentGroupProtocol
         join b type=connect proto=range
         > b: InconsistentGroupProtocol
         join c proto=range,sticky
         join d proto=range,sticky
         join a proto=sticky,range,only-a
         > a: joined 2 range leader a [a c d]
         > c: joined 2 range leader a []
         > d: joined 2 range leader a []
         sync a gen=2 proto=sticky
         > a: InconsistentGroupProtocol
         sync a gen=2 type=connect
         > a: InconsistentGroupProtocol
         sync a gen=2 type=consumer proto=range
         > append generation 2 [a: c: d:]",
    );
}

#[test]
fn other_protocol_types_are_groups_too() {
    for kind in ["connect", "sr"] {
        story(&format!(
            "join a type={kind} proto=v1
             > a: joined 1 v1 leader a [a]
             sync a gen=1 give=a:X
             > append generation 1 [a:X]
             publish
             > a: synced X
             commit a gen=1 t/0=1
             > append t/0=1
             publish
             > a: [None]
             # Whether it uses the topic cannot be known: its offsets stay as long as it has members.
             forget t/0
             > forget: failed NonEmptyGroup
             leave a
             > append generation 2 []
             publish
             > a: [None]
             forget t/0
             > append t/0 gone
             publish
             > forget: [None]"
        ));
    }
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    story(
        "join a instance=i
         > a: joined 1 range leader a [a]
         sync a gen=1 instance=i give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         # The new process of the same instance takes its place; the answer waits until that is stored. An
         # older client is told its former id as the leader, so that it does not assign again.
         join a2 instance=i
         > append generation 1 [a2:X]
         publish
         > a2: joined 1 range leader a []
         sync a2 gen=1 instance=i
         > a2: synced X
         beat a gen=1 instance=i
         > a: FencedInstanceId
         commit a gen=1 instance=i t/0=1
         > a: failed FencedInstanceId
         sync a gen=1 instance=i
         > a: FencedInstanceId
         beat a gen=1
         > a: UnknownMemberId
         # Version 9 may be told that it leads and need not assign.
         join a3 instance=i v=9
         > append generation 1 [a3:X]
         publish
         > a3: joined 1 range leader a3 [a3] skip
         state
         > Stable 1 leader a3 [a3]
         # With an id that is not its own it is fenced.
         join x as=a2 instance=i
         > x: FencedInstanceId
         join x as=a2 instance=unknown
         > x: UnknownMemberId",
    );
}

#[test]
fn a_static_member_that_changes_what_the_group_speaks_rebalances() {
    story(
        "join a instance=i proto=range,sticky
         > a: joined 1 range leader a [a]
         sync a gen=1 instance=i give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         join a2 instance=i proto=sticky
         > a2: joined 2 sticky leader a2 [a2]
         # While an assignment is being made the old id may be in it.
         join a3 instance=i proto=sticky
         > a3: joined 3 sticky leader a3 [a3]
         sync a2 gen=3 instance=i
         > a2: FencedInstanceId",
    );
}

#[test]
fn a_static_member_keeps_its_place_through_a_rebalance_and_leaves_by_name() {
    story(
        "join a instance=i session=30000 rebalance=5000
         > a: joined 1 range leader a [a]
         join b session=30000 rebalance=5000
         # The static member does not come, but is not thrown out; the other one leads.
         wait 5000
         > b: joined 2 range leader b [b a]
         sync b gen=2 give=a:X,b:Y
         > append generation 2 [b:Y a:X]
         publish
         > b: synced Y
         leave instance=i
         > instance=i: [None]
         leave instance=i
         > instance=i: [UnknownMemberId]
         join b
         > b: joined 3 range leader b [b]",
    );
    // When only static members are left and none comes, their sessions end the waiting.
    story(
        "join a instance=i session=30000 rebalance=5000
         > a: joined 1 range leader a [a]
         sync a gen=1 instance=i give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         join b session=6000 rebalance=5000
         leave b
         > b: UnknownMemberId
         > b: [None]
         wait 29999
         state
         > PreparingRebalance 1 leader a [a]
         wait 1
         > append generation 2 []",
    );
}

#[test]
fn a_restarted_static_member_whose_predecessor_waits_fences_it() {
    story(
        "join a instance=i
         > a: joined 1 range leader a [a]
         join b
         join a instance=i
         > b: joined 2 range leader a []
         > a: joined 2 range leader a [b a]
         sync b gen=2
         join b2 instance=j
         > b: RebalanceInProgress
         join a instance=i
         join a2 instance=i
         > a: FencedInstanceId
         join b
         > b: joined 3 range leader a2 []
         > a2: joined 3 range leader a2 [b a2 b2]
         > b2: joined 3 range leader a2 []",
    );
}

#[test]
fn an_oversized_group_refuses_members() {
    let small = Limits {
        group_max_size: 2,
        initial_rebalance_delay_ms: 0,
        ..limits()
    };
    story_with(
        small,
        "join a
         > a: joined 1 range leader a [a]
         join b
         join c
         state
         > PreparingRebalance 1 leader a [a b c]
         # The last to come back finds the seats taken.
         join a
         > a: GroupMaxSizeReached
         > b: joined 2 range leader b [b c]
         > c: joined 2 range leader b []
         join d
         > d: GroupMaxSizeReached
         state
         > CompletingRebalance 2 leader b [b c]",
    );
}

#[test]
fn commits_show_after_publication_and_failures_leave_no_trace() {
    story(
        "commit - t/0=5 t/1=6
         > append t/0=5, t/1=6
         offsets
         > 
         publish
         > -: [None, None]
         offsets
         > t/0=5 t/1=6
         # Unchanged and durable: answered without a write.
         commit - t/0=5
         > -: [None]
         commit - t/0=7
         > append t/0=7
         # Unchanged against what is published, but something else is on its way.
         commit - t/0=5
         > append t/0=5
         fail
         > -: failed CoordinatorNotAvailable
         > -: failed CoordinatorNotAvailable
         offsets
         > t/0=5 t/1=6
         commit - t/0=8
         > append t/0=8
         publish
         > -: [None]
         offsets
         > t/0=8 t/1=6",
    );
    // A group that only a failed commit made is no group.
    story(
        "commit - t/0=5
         > append t/0=5
         state
         > Empty 0 leader  []
         fail
         > -: failed CoordinatorNotAvailable
         state
         > no group
         commit m gen=3 t/0=1
         > m: failed GroupIdNotFound
         commit m gen=3 v=8 t/0=1
         > m: failed IllegalGeneration",
    );
}

#[test]
fn an_assignment_that_cannot_be_stored_is_made_again() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > append generation 1 [a:X]
         fail
         > a: CoordinatorNotAvailable
         state
         > PreparingRebalance 1 leader a [a]
         join a
         > a: joined 2 range leader a [a]
         sync a gen=2 give=a:X
         > append generation 2 [a:X]
         publish
         > a: synced X",
    );
}

#[test]
fn a_static_takeover_that_cannot_be_stored_is_taken_back() {
    story(
        "join a instance=i
         > a: joined 1 range leader a [a]
         sync a gen=1 instance=i give=a:X
         > append generation 1 [a:X]
         publish
         > a: synced X
         wait 9000
         join a2 instance=i
         > append generation 1 [a2:X]
         fail
         > a2: CoordinatorNotAvailable
         state
         > Stable 1 leader a [a]
         # Its session starts anew.
         wait 9999
         beat a gen=1 instance=i
         > a: None
         sync a gen=1 instance=i
         > a: synced X",
    );
}

#[test]
fn groups_are_deleted_when_nobody_is_in_them() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         delete g missing
         > delete: [NonEmptyGroup, GroupIdNotFound]
         sync a gen=1
         > append generation 1 [a:]
         publish
         > a: synced 
         commit a gen=1 t/0=4
         > append t/0=4
         publish
         > a: [None]
         leave a
         > append generation 2 []
         publish
         > a: [None]
         commit - group=h t/3=3
         > append t/3=3
         # Several groups go in one append, with what is still on its way.
         delete g h
         > append t/0 gone, group gone, t/3 gone, group gone
         # Until it is durable nothing is lost, and nobody can join.
         offsets
         > t/0=4
         join b
         > b: CoordinatorNotAvailable
         commit - t/0=1
         > -: failed CoordinatorNotAvailable
         publish
         > -: [None]
         > delete: [None, None]
         state
         > no group
         state group=h
         > no group",
    );
    story(
        "commit - t/0=4
         > append t/0=4
         publish
         > -: [None]
         delete g
         > append t/0 gone, group gone
         fail
         > delete: failed CoordinatorNotAvailable
         offsets
         > t/0=4
         commit - t/0=5
         > append t/0=5",
    );
}

#[test]
fn offsets_of_a_consumed_topic_are_kept() {
    story(
        "join a topics=t
         > a: joined 1 range leader a [a]
         sync a gen=1
         > append generation 1 [a:]
         publish
         > a: synced 
         commit a gen=1 t/0=4
         > append t/0=4
         publish
         > a: [None]
         forget t/0 u/0
         > forget: [GroupSubscribedToTopic, None]
         forget group=missing t/0
         > forget: failed GroupIdNotFound",
    );
}

pub(super) const DAY_MS: i64 = 86_400_000;

#[test]
fn offsets_expire_a_week_after_their_group_became_empty() {
    story(&format!(
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1
         > append generation 1 [a:]
         publish
         > a: synced 
         commit a gen=1 t/0=4
         > append t/0=4
         publish
         > a: [None]
         # As long as the topic is consumed nothing expires.
         expire
         leave a
         > append generation 2 []
         publish
         > a: [None]
         wait {almost}
         expire
         wait 1
         expire
         > append t/0 gone, group gone
         publish
         state
         > no group",
        almost = 7 * DAY_MS - 1
    ));
}

#[test]
fn offsets_outside_group_management_expire_a_week_after_the_last_commit() {
    story(&format!(
        "commit - t/0=4 t/1=9
         > append t/0=4, t/1=9
         publish
         > -: [None, None]
         # Nothing to write while the stored commit is young, but it counts as a commit.
         wait {hour}
         commit - t/0=4
         > -: [None]
         wait {almost}
         expire
         > append t/1 gone
         publish
         offsets
         > t/0=4
         wait {hour}
         expire
         > append t/0 gone, group gone",
        hour = 3_600_000,
        almost = 7 * DAY_MS - 3_600_000
    ));
    // Once an eighth of the retention has passed it is stored again.
    story(&format!(
        "commit - t/0=4
         > append t/0=4
         publish
         > -: [None]
         wait {eighth}
         commit - t/0=4
         > append t/0=4
         publish
         > -: [None]",
        eighth = 7 * DAY_MS / 8
    ));
    // An own retention time counts alone.
    story(
        "commit - keep=1000 t/0=4
         > append t/0=4
         publish
         > -: [None]
         wait 999
         expire
         wait 1
         expire
         > append t/0 gone, group gone",
    );
}

#[test]
fn an_offset_on_its_way_does_not_expire() {
    story(&format!(
        "commit - t/0=4
         > append t/0=4
         publish
         > -: [None]
         wait {week}
         commit - t/0=5
         > append t/0=5
         expire
         publish
         > -: [None]
         offsets
         > t/0=5",
        week = 7 * DAY_MS
    ));
}

#[test]
fn deleted_topics_take_their_offsets_along() {
    story(
        "commit - t/0=4 t/1=5
         > append t/0=4, t/1=5
         publish
         > -: [None, None]
         # Another topic of that name.
         drop id=78
         drop
         > append t/0 gone, t/1 gone
         publish
         state
         > no group",
    );
}

#[test]
fn a_restart_knows_what_was_published() {
    story(
        "join a instance=i topics=t
         > a: joined 1 range leader a [a]
         join b
         join a instance=i topics=t
         > b: joined 2 range leader a []
         > a: joined 2 range leader a [b a]
         sync a gen=2 instance=i give=a:X,b:Y
         > append generation 2 [b:Y a:X]
         sync b gen=2
         publish
         > b: synced Y
         > a: synced X
         commit a gen=2 instance=i t/0=4
         > append t/0=4
         publish
         > a: [None]
         commit a gen=2 instance=i t/0=5
         > append t/0=5
         restart
         state
         > Stable 2 leader a [b a]
         offsets
         > t/0=4
         beat b gen=2
         > b: None
         sync a gen=2 instance=i
         > a: synced X
         forget t/0
         > forget: [GroupSubscribedToTopic]
         # Sessions start anew at the restart.
         wait 9999
         beat b gen=2
         > b: None
         wait 1
         state
         > PreparingRebalance 2 leader b [b]",
    );
}

#[test]
fn everybody_who_waits_is_told_when_the_partition_moves() {
    story(
        "join a
         > a: joined 1 range leader a [a]
         join b
         commit - group=h t/0=4
         > append t/0=4
         unload
         > b: NotCoordinator
         # What was under way is still reported as it went.
         publish
         > -: [None]
         join c
         > c: failed NotCoordinator
         beat a gen=1
         > a: failed NotCoordinator",
    );
}

#[test]
fn what_is_too_large_to_store_is_refused() {
    let small = Limits {
        append_max_bytes: 120,
        initial_rebalance_delay_ms: 0,
        ..limits()
    };
    story_with(
        small,
        "join a
         > a: joined 1 range leader a [a]
         sync a gen=1 give=a:X
         > a: UnknownServerError
         state
         > PreparingRebalance 1 leader a [a]
         # Many small records are several appends and one answer.
         commit - group=h t/0=4 t/1=5 t/2=6
         > append t/0=4, t/1=5
         > append t/2=6
         publish
         > -: [None, None, None]",
    );
    let tiny = Limits {
        append_max_bytes: 10,
        ..limits()
    };
    story_with(
        tiny,
        "commit - t/0=4
         > -: failed InvalidCommitOffsetSize
         state
         > no group",
    );
}

#[test]
fn one_lost_part_fails_the_whole_request() {
    let small = Limits {
        append_max_bytes: 70,
        ..limits()
    };
    let mut stage = Stage::new(small);
    stage.run("commit - t/0=4 t/1=5");
    assert_eq!(stage.under_way.len(), 2);
    let first = stage.under_way.pop_front().unwrap();
    stage.apply(Command::Appended {
        append: first.id,
        outcome: Err(ErrorCode::NotCoordinator),
    });
    stage.publish();
    assert!(
        stage.out.ends_with("> -: failed NotCoordinator\n"),
        "{}",
        stage.out
    );
}

#[test]
fn floods_of_first_joins_end_somewhere() {
    let mut stage = Stage::new(limits());
    for _ in 0..10_000 {
        stage.run("join a v=4 as=");
    }
    stage.out.clear();
    stage.run("join a v=4 as=");
    assert_eq!(stage.out, "> a: GroupMaxSizeReached\n");
}
