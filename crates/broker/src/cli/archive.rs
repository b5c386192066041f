//! `alluvium archive flush TOPIC`.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::manifest::LEVEL_OF_HISTORY;
use tokio::time::Instant;

use super::client::{Client, ClientError, Cluster, address, code_name, discover, is_retriable};
use crate::history::message::{
    ANSWER_BYTES_MAX, Answer, Flush, PartitionProgress, Progress, Unarchived, decode_answer,
};

/// How often the leaders are asked how far they are.
const POLL: Duration = Duration::from_millis(300);
/// How often a leader is told again to begin: it may have lost what it was told, or the partition.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// How often it is told how far they are where nobody watches.
const QUIET: Duration = Duration::from_secs(10);
/// So often may a broker close the connection on the request, without ever having answered it, before it counts as one
/// that does not know it.
const CLOSED_MAX: u32 = 5;
/// Partitions that a message names.
const NAMED_MAX: usize = 5;

/// The history of topics.
#[derive(clap::Subcommand, Debug)]
pub(super) enum ArchiveCommand {
    /// Turn what a topic holds now into Parquet files, and wait until it is
    ///
    /// Records become Parquet by themselves when there are enough of them (archive.file.bytes) or when they are old
    /// enough (archive.interval.ms). This does not wait for either, but for the topic's last time to be 10 seconds ago
    /// (archive.flush.min.interval.ms). Consumers notice nothing: they go on reading the same records. The exit code is 0
    /// once all that was in the topic when the command was given is in files, else 1, with a line that says why.
    Flush(FlushArgs),
}

/// What is to be archived.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FlushArgs {
    /// The topic
    topic: String,
    /// Broker to begin with; several are separated by commas
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9092",
        value_delimiter = ',',
        value_parser = address
    )]
    bootstrap: Vec<String>,
    /// Seconds to wait until all is archived; 0 only asks for it
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

pub(super) async fn run(command: ArchiveCommand) -> Result<(), String> {
    let ArchiveCommand::Flush(args) = command;
    let mut shown = Shown::new();
    let done = flush(&args, &mut shown).await;
    shown.end();
    super::cluster::print(&done?)
}

/// Returns what to say when all is archived.
async fn flush(args: &FlushArgs, shown: &mut Shown) -> Result<String, String> {
    let topic = &args.topic;
    let bootstrap: Vec<Arc<str>> = args.bootstrap.iter().map(|one| one.as_str().into()).collect();
    let cluster = discover(&bootstrap, topic).await.map_err(|e| e.to_string())?;
    if cluster.leaders.is_empty() {
        return Err(in_words(Unarchived::Unknown, topic));
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut leaders = Leaders::new(bootstrap, topic.clone(), cluster);
    let mut goal = Goal::new(leaders.cluster.leaders.len());
    loop {
        let round = leaders.ask_all(&mut goal).await;
        if goal.is_reached() {
            return Ok(goal.in_words(topic));
        }
        if goal.is_stuck() {
            return Err(goal.in_words_stuck());
        }
        let why = match round {
            Ok(()) => None,
            Err(Failure::ForGood(why)) => return Err(why),
            Err(Failure::ForNow(why)) => Some(why),
        };
        if args.timeout == 0 && why.is_none() {
            return Ok(format!("asked for, and not waited for: {}", goal.still()));
        }
        shown.progress(topic, &goal);
        if Instant::now() >= deadline {
            return Err(not_done(args, &goal, why));
        }
        tokio::time::sleep(POLL).await;
        if why.is_some() || goal.misses_a_leader() {
            // Whoever leads it now is asked next; a broker that knows it may be found later.
            leaders.look_again().await;
        }
    }
}

fn in_words(why: Unarchived, topic: &str) -> String {
    match why {
        Unarchived::Unknown => {
            format!(
                "there is no topic '{topic}'; `kafka-topics.sh --list` or `kcat -L` shows those that exist"
            )
        }
        Unarchived::Compacted => format!(
            "'{topic}' is a compacted topic (cleanup.policy), and those do not become Parquet; set cleanup.policy=delete \
             to archive it"
        ),
        Unarchived::Internal => {
            format!("'{topic}' is a topic of the brokers themselves, and those do not become Parquet")
        }
        Unarchived::Disabled => format!(
            "archive.enable is false for '{topic}'; set it with kafka-configs.sh --alter --entity-type topics \
             --entity-name {topic} --add-config archive.enable=true"
        ),
        Unarchived::FeatureLevel => format!(
            "the cluster's feature level does not allow Parquet yet; once every broker is of this version, raise it with \
             `alluvium cluster feature-level URL --set {LEVEL_OF_HISTORY}`"
        ),
    }
}

fn not_done(args: &FlushArgs, goal: &Goal, why: Option<String>) -> String {
    let trouble = goal.trouble.clone().filter(|_| why.is_none());
    let why = why.or(trouble).map_or_else(
        || "it goes on without this command; give it again, with a longer --timeout, to wait".to_owned(),
        |why| format!("the last thing that went wrong: {why}"),
    );
    format!("not archived within {} s: {}; {why}", args.timeout, goal.still())
}

/// Why a round of questions did not bring all answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// It will not get better by itself.
    ForGood(String),
    /// It is worth trying again.
    ForNow(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error.is_retriable() {
            true => Failure::ForNow(error.to_string()),
            false => Failure::ForGood(error.to_string()),
        }
    }
}

/// The leaders of a topic's partitions, with a connection to each.
struct Leaders {
    bootstrap: Vec<Arc<str>>,
    topic: String,
    cluster: Cluster,
    connections: HashMap<Arc<str>, Client>,
    /// When each was last told to begin.
    told: HashMap<Arc<str>, Instant>,
    /// Who ever answered.
    answered: bool,
    /// How often a connection was closed on the request, until somebody answers.
    closed: u32,
}

impl Leaders {
    fn new(bootstrap: Vec<Arc<str>>, topic: String, cluster: Cluster) -> Leaders {
        Leaders {
            bootstrap,
            topic,
            cluster,
            connections: HashMap::new(),
            told: HashMap::new(),
            answered: false,
            closed: 0,
        }
    }

    /// Asks every leader once. What some do not answer does not hide what others do.
    async fn ask_all(&mut self, goal: &mut Goal) -> Result<(), Failure> {
        let led = (0..self.cluster.leaders.len()).filter_map(|one| self.cluster.leader(one));
        let leaders: BTreeMap<i32, Arc<str>> = led.map(|(node, at)| (node, at.clone())).collect();
        let mut outcome = Ok(());
        goal.begin_round();
        for at in leaders.into_values() {
            match self.ask(&at).await {
                Ok(progress) => goal.see(progress),
                Err(Failure::ForGood(why)) => return Err(Failure::ForGood(why)),
                Err(failure) => outcome = Err(failure),
            }
        }
        outcome
    }

    async fn ask(&mut self, at: &Arc<str>) -> Result<Progress, Failure> {
        let now = Instant::now();
        let begin = self.told.get(at).is_none_or(|told| now - *told >= TELL_AGAIN);
        let mut client = match self.connections.remove(at).filter(Client::is_open) {
            Some(client) => client,
            None => Client::connect(at).await?,
        };
        let answer = self.exchange(&mut client, begin).await?;
        self.connections.insert(at.clone(), client);
        match answer {
            Ok(Ok(progress)) => {
                if begin {
                    self.told.insert(at.clone(), now);
                }
                Ok(progress)
            }
            Ok(Err(why)) => Err(Failure::ForGood(in_words(why, &self.topic))),
            Err(code) if is_retriable(code) => Err(Failure::ForNow(format!("{at}: {}", code_name(code)))),
            Err(code) => Err(Failure::ForGood(format!(
                "{at} does not understand this version of the command ({}): use the one of the brokers",
                code_name(code)
            ))),
        }
    }

    async fn exchange(&mut self, client: &mut Client, begin: bool) -> Result<Answer, Failure> {
        let flush = Flush {
            begin,
            topic: self.topic.clone(),
        };
        // The topic exists, so its name can be sent.
        let frame = |correlation_id| flush.encode(correlation_id).unwrap_or_default();
        match client.exchange(frame, ANSWER_BYTES_MAX).await {
            Ok((correlation_id, bytes)) => {
                self.answered = true;
                let answer = decode_answer(&bytes, correlation_id);
                answer.map_err(|e| Failure::from(client.malformed(e.to_string())))
            }
            Err(error @ ClientError::Lost { .. }) if !self.answered => {
                self.closed += 1;
                match self.closed < CLOSED_MAX {
                    true => Err(error.into()),
                    false => Err(Failure::ForGood(format!(
                        "{} closes the connection instead of answering: it is no Alluvium broker that knows this \
                         command; upgrade the brokers",
                        client.address()
                    ))),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Finds out who leads now. Every broker that was ever heard of may know.
    async fn look_again(&mut self) {
        let known = self.cluster.brokers.values().chain(&self.bootstrap);
        let known: Vec<_> = known.cloned().collect();
        if let Ok(cluster) = discover(&known, &self.topic).await
            && !cluster.leaders.is_empty()
        {
            self.cluster = cluster;
        }
    }
}

/// What is to be archived, and how much of it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Goal {
    partitions: Vec<Aim>,
    place: String,
    trouble: Option<String>,
}

/// The goal in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Aim {
    /// Log start and end when it was first seen; `None` until then.
    wanted: Option<(i64, i64)>,
    archived_to: i64,
    /// Its leader says that waiting does not help.
    stuck: bool,
    /// Somebody who leads it answered in the last round.
    led: bool,
}

impl Aim {
    fn is_reached(&self) -> bool {
        self.wanted.is_some_and(|(_, end)| self.archived_to >= end)
    }
}

impl Goal {
    fn new(partitions: usize) -> Goal {
        Goal {
            partitions: vec![Aim::default(); partitions],
            ..Goal::default()
        }
    }

    fn begin_round(&mut self) {
        self.partitions.iter_mut().for_each(|aim| aim.led = false);
        self.trouble = None;
    }

    fn see(&mut self, progress: Progress) {
        self.place = progress.place;
        if !progress.trouble.is_empty() {
            self.trouble = Some(progress.trouble);
        }
        for one in progress.partitions {
            self.see_partition(one);
        }
    }

    fn see_partition(&mut self, seen: PartitionProgress) {
        // Partitions that the topic got since are not part of the goal.
        let place = usize::try_from(seen.partition).ok();
        if let Some(aim) = place.and_then(|place| self.partitions.get_mut(place)) {
            aim.wanted.get_or_insert((seen.log_start, seen.end));
            // Who takes a partition over knows all that was archived, so this never goes back for long.
            aim.archived_to = seen.archived_to.max(seen.log_start);
            (aim.led, aim.stuck) = (true, seen.stuck);
        }
    }

    fn is_reached(&self) -> bool {
        self.partitions.iter().all(Aim::is_reached)
    }

    /// Whether what is not reached will not be.
    fn is_stuck(&self) -> bool {
        self.partitions.iter().all(|aim| aim.is_reached() || aim.stuck)
    }

    fn in_words_stuck(&self) -> String {
        let why = self.trouble.clone();
        let why = why.unwrap_or_else(|| "the brokers' logs say why".to_owned());
        format!("not everything can be archived: {}; {why}", self.still())
    }

    fn misses_a_leader(&self) -> bool {
        self.partitions.iter().any(|aim| !aim.led && !aim.is_reached())
    }

    /// Offsets that are archived, and all, as far as they are known.
    fn offsets(&self) -> (i64, i64) {
        let wanted = self.partitions.iter().filter_map(|aim| Some((aim, aim.wanted?)));
        wanted.fold((0, 0), |(done, all), (aim, (start, end))| {
            let archived = aim.archived_to.clamp(start, end.max(start));
            (done + archived - start, all + (end - start).max(0))
        })
    }

    fn still(&self) -> String {
        let (done, all) = self.offsets();
        let missing: Vec<usize> = (0..self.partitions.len())
            .filter(|one| !self.partitions[*one].is_reached())
            .collect();
        let named: Vec<String> = missing.iter().take(NAMED_MAX).map(usize::to_string).collect();
        let more = match missing.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{} of {} records are Parquet, partition {}{more} is not done",
            grouped(done),
            grouped(all),
            named.join(", ")
        )
    }

    fn in_words(&self, topic: &str) -> String {
        let (_, all) = self.offsets();
        let partitions = counted(self.partitions.len() as i64, "partition");
        if all == 0 {
            return format!("'{topic}' holds no records, in {partitions}: there is nothing to archive");
        }
        let place = self.place.strip_prefix("file://").unwrap_or(&self.place);
        let are = if all == 1 { "is" } else { "are" };
        format!(
            "'{topic}': {} in {partitions} {are} Parquet: {place}/*.parquet",
            counted(all, "record")
        )
    }
}

/// A number of things.
fn counted(number: i64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

/// A number as people read it.
pub(super) fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Tells how far it is: on a terminal in one line that is written over, else now and then.
struct Shown {
    terminal: bool,
    /// Characters of the line that is on the terminal.
    width: usize,
    told: Instant,
}

impl Shown {
    fn new() -> Shown {
        Shown {
            terminal: std::io::stderr().is_terminal(),
            width: 0,
            told: Instant::now(),
        }
    }

    fn progress(&mut self, topic: &str, goal: &Goal) {
        let (done, all) = goal.offsets();
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(0);
        let line = format!(
            "'{topic}': {} of {} records ({percent} %)",
            grouped(done),
            grouped(all)
        );
        // What cannot be told is no reason to stop.
        let mut out = std::io::stderr().lock();
        if self.terminal {
            let width = self.width.max(line.len());
            let _ = write!(out, "\r{line:width$}");
            let _ = out.flush();
            self.width = line.len();
        } else if self.told.elapsed() >= QUIET {
            let _ = writeln!(out, "alluvium: {line}");
            self.told = Instant::now();
        }
    }

    /// Makes room for what is printed next.
    fn end(&self) {
        if self.terminal && self.width > 0 {
            let _ = write!(std::io::stderr(), "\r{:1$}\r", "", self.width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(partition: i32, log_start: i64, end: i64, archived_to: i64) -> PartitionProgress {
        PartitionProgress {
            partition,
            log_start,
            end,
            archived_to,
            stuck: false,
        }
    }

    fn progress(partitions: &[PartitionProgress]) -> Progress {
        Progress {
            place: "file:///data/archive/topic=t-12345678".to_owned(),
            trouble: String::new(),
            partitions: partitions.to_vec(),
        }
    }

    #[test]
    fn the_goal_is_what_was_there_first() {
        let mut goal = Goal::new(2);
        assert!(!goal.is_reached() && goal.misses_a_leader());
        goal.begin_round();
        goal.see(progress(&[seen(0, 10, 1_000, 10)]));
        assert!(goal.misses_a_leader());
        assert_eq!(goal.offsets(), (0, 990));
        goal.begin_round();
        goal.see(progress(&[seen(0, 10, 2_000, 700)]));
        goal.see(progress(&[seen(1, 0, 500_000, 0), seen(2, 0, 9, 0)]));
        assert!(!goal.misses_a_leader() && !goal.is_reached());
        assert_eq!(goal.offsets(), (690, 500_990));
        assert_eq!(
            goal.still(),
            "690 of 500,990 records are Parquet, partition 0, 1 is not done"
        );
        // The log start may pass what was wanted.
        goal.see(progress(&[
            seen(0, 1_500, 2_000, 700),
            seen(1, 0, 600_000, 500_000),
        ]));
        assert!(goal.is_reached());
        assert_eq!(
            goal.in_words("t"),
            "'t': 500,990 records in 2 partitions are Parquet: /data/archive/topic=t-12345678/*.parquet"
        );
        goal.begin_round();
        assert!(!goal.misses_a_leader(), "what is done needs nobody");
    }

    #[test]
    fn an_empty_topic_is_done_at_once() {
        let mut goal = Goal::new(1);
        goal.see(progress(&[seen(0, 7, 7, 7)]));
        assert!(goal.is_reached());
        assert!(
            goal.in_words("t")
                .contains("in 1 partition: there is nothing to archive")
        );
        let mut goal = Goal::new(1);
        goal.see(progress(&[seen(0, 7, 8, 8)]));
        assert!(
            goal.in_words("t")
                .starts_with("'t': 1 record in 1 partition is Parquet: /data/")
        );
    }

    #[test]
    fn what_is_not_done_says_why_and_what_to_do() {
        let args = |timeout| FlushArgs {
            topic: "t".into(),
            bootstrap: vec![],
            timeout,
        };
        let mut goal = Goal::new(9);
        goal.see(progress(&[seen(0, 0, 5, 2)]));
        let line = not_done(&args(600), &goal, None);
        assert!(
            line.starts_with("not archived within 600 s: 2 of 5 records are Parquet"),
            "{line}"
        );
        assert!(line.contains("partition 0, 1, 2, 3, 4 and 4 more"), "{line}");
        assert!(line.contains("longer --timeout"), "{line}");
        goal.trouble = Some("the disk is full".into());
        assert!(not_done(&args(600), &goal, None).ends_with("the disk is full"));
        let lost = Some("the connection is lost".to_owned());
        assert!(not_done(&args(600), &goal, lost).ends_with("the connection is lost"));
        for why in [
            Unarchived::Unknown,
            Unarchived::Compacted,
            Unarchived::Internal,
            Unarchived::Disabled,
        ] {
            assert!(in_words(why, "flights").contains("'flights'"));
        }
    }

    #[test]
    fn what_cannot_be_archived_is_not_waited_for() {
        let mut goal = Goal::new(2);
        let stuck = PartitionProgress {
            stuck: true,
            ..seen(1, 0, 5, 2)
        };
        goal.see(progress(&[seen(0, 0, 5, 4), stuck]));
        assert!(!goal.is_stuck());
        goal.see(progress(&[seen(0, 0, 5, 5)]));
        assert!(goal.is_stuck() && !goal.is_reached());
        assert_eq!(
            goal.in_words_stuck(),
            "not everything can be archived: 7 of 10 records are Parquet, partition 1 is not done; the brokers' logs \
             say why"
        );
        goal.see(progress(&[seen(1, 0, 5, 5)]));
        assert!(goal.is_reached());
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (336_776, "336,776"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
