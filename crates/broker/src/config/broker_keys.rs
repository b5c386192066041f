//! The table of broker settings: Kafka's names where Kafka has one, ours beside them.

use super::key::{Kind, Preset, Rule, Unit};
use super::listener;
use super::topic_keys::{
    ARCHIVE_FILE_BYTES, AT_LEAST_0, AT_LEAST_1, CLEANUP_POLICIES, COMPRESSION_TYPES, TIMESTAMP_TYPES,
    VALUE_TYPES,
};

/// One broker setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokerKey {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) rule: Rule,
    pub(crate) default: Preset,
    pub(crate) unit: Unit,
    /// May be changed while the broker runs, by AlterConfigs.
    pub(crate) dynamic: bool,
    pub(crate) doc: &'static str,
}

/// Settings that belong together, for people who read the list.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) keys: &'static [BrokerKey],
}

impl BrokerKey {
    const fn unit(mut self, unit: Unit) -> BrokerKey {
        self.unit = unit;
        self
    }

    const fn bytes(self) -> BrokerKey {
        self.unit(Unit::Bytes)
    }

    const fn ms(self) -> BrokerKey {
        self.unit(Unit::Milliseconds)
    }

    const fn dynamic(mut self) -> BrokerKey {
        self.dynamic = true;
        self
    }

    const fn unset(mut self) -> BrokerKey {
        self.default = Preset::Unset;
        self
    }

    const fn by_store(mut self, s3: &'static str, embedded: &'static str) -> BrokerKey {
        self.default = Preset::ByStore { s3, embedded };
        self
    }
}

const fn key(
    name: &'static str,
    kind: Kind,
    rule: Rule,
    default: &'static str,
    doc: &'static str,
) -> BrokerKey {
    BrokerKey {
        name,
        kind,
        rule,
        default: Preset::Fixed(default),
        unit: Unit::None,
        dynamic: false,
        doc,
    }
}

use Kind::{Boolean, Double, Int, List, Long, Short, Text};

static IDENTITY: &[BrokerKey] = &[
    key(
        "node.id",
        Int,
        AT_LEAST_0,
        "",
        "Number of this broker, unlike that of every other broker on the same store; clients see it as the broker id. If it is not set the cluster assigns one: that of the broker which had the same advertised listener before, or else the lowest that is free. Two running brokers with the same number take each other for one: the older one stops, unless its number was assigned: then it gets another one.",
    )
    .unset(),
    key(
        "broker.id",
        Int,
        AT_LEAST_0,
        "",
        "Older name of node.id; where both are given they must agree.",
    )
    .unset(),
    key(
        "broker.rack",
        Text,
        Rule::Any,
        "",
        "Zone or rack in which this broker runs, as clients see it in the metadata.",
    )
    .unset(),
    key(
        "store.url",
        Text,
        Rule::Syntax {
            accepts: "a path, file:///path, memory:// or s3://bucket/prefix",
            check: super::store_url::check,
        },
        "file:./alluvium-data",
        "The store that holds everything: file:///path (or just a path) for a directory, memory:// for a trial that leaves nothing, s3://bucket/prefix for a bucket. A relative path counts from the directory in which the broker is started.",
    ),
    key(
        "shutdown.timeout.ms",
        Long,
        Rule::Whole(1_000, 86_400_000),
        "20000",
        "A stop by SIGTERM or SIGINT takes at most this long: half of it for requests that are under way, the rest for the log. What the store has not taken by then is left, unacknowledged; the next start recovers the rest. Less than what kills the process, which in Kubernetes is 30 s.",
    )
    .ms(),
];

static NETWORK: &[BrokerKey] = &[
    key(
        "listeners",
        List,
        Rule::Syntax { accepts: "a list of [NAME://]host:port", check: |text| listener::parse_listeners(text).map(|_| ()) },
        "PLAINTEXT://127.0.0.1:9092",
        "Where the broker listens for clients: NAME://host:port, more than one separated by commas. An empty host or 0.0.0.0 means every address of the machine; port 0 lets the system choose. The name may be left out: it is then PLAINTEXT. Any other name needs an entry in listener.security.protocol.map.",
    ),
    key(
        "advertised.listeners",
        List,
        Rule::Syntax { accepts: "a list of [NAME://]host:port", check: |text| listener::parse_advertised(text).map(|_| ()) },
        "",
        "Addresses that clients are told to connect to, by listener name. Unset: those of listeners; for a listener on every address, the host name of the machine.",
    )
    .unset(),
    key(
        "listener.security.protocol.map",
        List,
        Rule::Syntax { accepts: "a list of NAME:PROTOCOL", check: |text| listener::parse_protocols(text).map(|_| ()) },
        "PLAINTEXT:PLAINTEXT",
        "Security protocol of each listener name. Every listener in use must be PLAINTEXT, the only protocol there is.",
    ),
    key(
        "http.listen",
        Text,
        Rule::Syntax { accepts: "an address as 127.0.0.1:9464, or nothing to switch it off", check: |text| listener::parse_http(text).map(|_| ()) },
        "127.0.0.1:9464",
        "Address of the HTTP server with /metrics, /livez and /readyz. Empty: there is none.",
    ),
    key("socket.request.max.bytes", Int, Rule::Whole(1024, i64::MAX), "104857600", "Largest request that a client may send; a larger one closes its connection.").bytes(),
    key("max.connections", Int, AT_LEAST_1, "10000", "Client connections that may be open at once; a further one is closed as soon as it is accepted."),
    key("max.connections.per.ip", Int, AT_LEAST_1, "2147483647", "Client connections that may be open at once from one address."),
    key("connections.max.idle.ms", Long, Rule::UnlimitedOrPositive, "600000", "A connection on which nothing happened for this long is closed. -1: never.").ms(),
    key("memory.budget.bytes", Long, Rule::Whole(1024 * 1024, 1 << 40), "134217728", "Memory for produce requests that are not yet written. When it is spent, further ones wait unread in their connections, and the producers with them. At least socket.request.max.bytes.").bytes(),
    key("fetch.max.bytes", Int, Rule::Whole(1024, i64::MAX), "57671680", "Most bytes in the answer to one fetch request. One batch is always sent, however large.").bytes(),
    key("max.incremental.fetch.session.cache.slots", Int, AT_LEAST_0, "1000", "Fetch sessions that are remembered at once; a consumer without one sends its whole list of partitions with every fetch."),
];

static WRITING: &[BrokerKey] = &[
    key("flush.interval.ms", Long, Rule::Whole(0, 60_000), "", "The oldest record of a segment waits at most this long for others before the segment is written, as long as the request budget lasts. 0: a segment is written as soon as an earlier one is through.").by_store("30", "0").ms(),
    key("flush.bytes", Int, Rule::Whole(64 * 1024, 64 * 1024 * 1024), "4194304", "A segment is written as soon as it has this many bytes.").bytes(),
    key("flush.puts.in.flight", Int, Rule::Whole(1, 256), "", "Segments that are written at the same time. They are acknowledged in their order.").by_store("8", "2"),
    key("request.budget.per.second", Double, Rule::Decimal(0.0, 1_000_000.0), "", "Small write requests to the store that may be spent per second, in the mean; large segments cost nothing. It limits what a trickle of records costs. 0: no limit.").by_store("4.0", "0.0"),
    key("request.budget.burst", Double, Rule::Decimal(1.0, 1_000_000_000.0), "900.0", "Unspent write requests that may be saved up."),
    key("tail.bytes", Long, Rule::Whole(1024 * 1024, 1 << 40), "134217728", "Memory for the newest segments, from which consumers that keep up are served.").bytes(),
    key("cache.bytes", Long, Rule::Whole(0, 1 << 40), "134217728", "Memory for blocks that were read back from the store.").bytes(),
    key("store.read.concurrency", Int, Rule::Whole(1, 1024), "32", "Reads from the store that may be under way at once for consumers that lag."),
    key("merge.interval.ms", Long, Rule::Whole(1_000, 3_600_000), "45000", "How often what was written is merged into objects that are sorted by partition, which makes it cheap to read again and lets the segments go.").ms(),
    key("merge.bytes", Long, Rule::Whole(1024 * 1024, 1 << 40), "134217728", "So many bytes are merged before merge.interval.ms has passed.").bytes(),
    key("merge.file.bytes", Long, Rule::Whole(1024 * 1024, 1 << 30), "33554432", "Size of a merged object. About twice as much memory is used while one is made.").bytes(),
    key("merge.bytes.per.second", Long, Rule::Whole(64 * 1024, 1 << 40), "67108864", "How fast data is merged at most, so that producers and consumers do not feel it. Less than what is produced in the mean leaves more and more unmerged.").bytes(),
    key("merge.gather.after.ms", Long, Rule::Whole(1_000, 1 << 40), "7200000", "What has been merged for so long, and stands in objects of which little else is needed (less than a quarter of merge.file.bytes), moves into new objects, so that the old ones leave the bucket.").ms(),
    key("log.segment.delete.delay.ms", Long, AT_LEAST_0, "60000", "What nobody needs any more is deleted after this time, so that whoever is about to read it still finds it.").ms().dynamic(),
    key("garbage.check.interval.ms", Long, Rule::Whole(1_000, 86_400_000), "300000", "How often merged objects are looked for that nobody refers to any more.").ms(),
    key("producer.id.expiration.ms", Int, AT_LEAST_1, "86400000", "A producer that has not written to a partition for this long is forgotten there, and with it the protection against its repeats.").ms(),
];

static TOPICS: &[BrokerKey] = &[
    key("num.partitions", Int, Rule::Whole(1, 100_000), "1", "Partitions of a topic for which no number is given."),
    key("default.replication.factor", Int, Rule::Whole(1, 32_767), "1", "Replication factor that is reported for a topic for which none is given. The store replicates, whatever it says."),
    key("auto.create.topics.enable", Boolean, Rule::Any, "true", "Whether a topic is created when a client that allows it asks for one that does not exist."),
    key("delete.topic.enable", Boolean, Rule::Any, "true", "Whether topics may be deleted."),
    key("log.retention.check.interval.ms", Long, AT_LEAST_1, "300000", "How often it is checked which records have passed their retention.").ms(),
    key("log.retention.ms", Long, Rule::UnlimitedOrPositive, "", "Age at which records go: default of retention.ms. -1: never. Unset: log.retention.minutes decides, else log.retention.hours.").unset().ms().dynamic(),
    key("log.retention.minutes", Int, Rule::UnlimitedOrPositive, "", "As log.retention.ms, in minutes, if that is unset.").unset().unit(Unit::Minutes),
    key("log.retention.hours", Int, Rule::UnlimitedOrPositive, "168", "As log.retention.ms, in hours, if neither that nor log.retention.minutes is set.").unit(Unit::Hours),
    key("log.retention.bytes", Long, Rule::Any, "-1", "Size of a partition above which its oldest records go: default of retention.bytes. Negative: no limit.").bytes().dynamic(),
    key("log.cleanup.policy", List, CLEANUP_POLICIES, "delete", "Default of cleanup.policy.").dynamic(),
    key("message.max.bytes", Int, AT_LEAST_0, "1048588", "Largest record batch that a producer may send: default of max.message.bytes.").bytes().dynamic(),
    key("log.message.timestamp.type", Text, TIMESTAMP_TYPES, "CreateTime", "Default of message.timestamp.type.").dynamic(),
    key("log.message.timestamp.before.max.ms", Long, AT_LEAST_0, "9223372036854775807", "Default of message.timestamp.before.max.ms.").ms().dynamic(),
    key("log.message.timestamp.after.max.ms", Long, AT_LEAST_0, "3600000", "Default of message.timestamp.after.max.ms.").ms().dynamic(),
];

static HISTORY: &[BrokerKey] = &[
    key("archive.enable", Boolean, Rule::Any, "true", "Default of archive.enable of a topic: whether its records become Parquet files.").dynamic(),
    key("archive.file.bytes", Long, ARCHIVE_FILE_BYTES, "268435456", "Default of archive.file.bytes of a topic: how much stored data goes into a Parquet file.").bytes().dynamic(),
    key("archive.interval.ms", Long, AT_LEAST_1, "3600000", "Default of archive.interval.ms of a topic: the age at which its records become Parquet although the file stays small.").ms().dynamic(),
    key("archive.value.type", Text, VALUE_TYPES, "binary", "The archive.value.type that a topic is created with if none is given. It does not change for topics that exist.").dynamic(),
    key("archive.threads", Int, Rule::Whole(1, 256), "", "Threads of low priority that write Parquet. Unset: a quarter of the processors, at least 1.").unset(),
    key("archive.bytes.per.second", Long, Rule::Whole(64 * 1024, 1 << 40), "67108864", "How fast data is archived at most, as it is stored, so that producers and consumers do not feel it. Less than what is produced in the mean leaves more and more that is not Parquet.").bytes(),
    key("archive.pause.above.ms", Long, AT_LEAST_1, "1000", "No more data is read for Parquet while a produced record has waited this long to become durable, for up to 30 s.").ms(),
    key("archive.flush.min.interval.ms", Long, Rule::Whole(0, 3_600_000), "10000", "A topic becomes Parquet because of `alluvium archive flush` once in this time at most, as each time makes a file, however small. A command that comes sooner waits, as long as its own time-out lets it.").ms(),
    key("archive.cache.bytes", Long, Rule::Whole(0, 1 << 40), "67108864", "Memory for records that were read back from Parquet, from which other consumers are served.").bytes(),
    key("archive.metadata.cache.bytes", Long, Rule::Whole(0, 1 << 40), "33554432", "Memory for what is known of Parquet files: where each partition's records are.").bytes(),
];

static COMPACTION: &[BrokerKey] = &[
    key("log.cleaner.enable", Boolean, Rule::Any, "true", "Whether this broker compacts the partitions that it leads, of topics whose cleanup.policy has compact. Without it __consumer_offsets grows with every commit."),
    key("log.cleaner.min.cleanable.ratio", Double, Rule::Decimal(0.0, 1.0), "0.5", "Default of min.cleanable.dirty.ratio.").dynamic(),
    key("log.cleaner.min.compaction.lag.ms", Long, AT_LEAST_0, "0", "Default of min.compaction.lag.ms.").ms().dynamic(),
    key("log.cleaner.max.compaction.lag.ms", Long, AT_LEAST_1, "9223372036854775807", "Default of max.compaction.lag.ms.").ms().dynamic(),
    key("log.cleaner.delete.retention.ms", Long, AT_LEAST_0, "86400000", "Default of delete.retention.ms.").ms().dynamic(),
    key("log.cleaner.dedupe.buffer.size", Long, Rule::Whole(1024 * 1024, 1 << 36), "33554432", "Memory for the keys of one pass, at 32 bytes each, taken only while one is under way and as far as it is needed. A partition with more new keys takes several passes.").bytes(),
    key("log.cleaner.io.max.bytes.per.second", Double, Rule::Decimal(65_536.0, f64::INFINITY), "33554432.0", "Bytes per second that compaction reads and writes at most, so that producers and consumers do not feel it."),
    key("log.cleaner.backoff.ms", Long, Rule::Whole(100, 3_600_000), "15000", "How often it is checked what there is to compact.").ms(),
];

static GROUPS: &[BrokerKey] = &[
    key(
        "group.initial.rebalance.delay.ms",
        Int,
        AT_LEAST_0,
        "3000",
        "How long the first rebalance of an empty group waits for further members.",
    )
    .ms(),
    key(
        "group.min.session.timeout.ms",
        Int,
        AT_LEAST_1,
        "6000",
        "Shortest session timeout that a member may ask for.",
    )
    .ms(),
    key(
        "group.max.session.timeout.ms",
        Int,
        AT_LEAST_1,
        "1800000",
        "Longest session timeout that a member may ask for.",
    )
    .ms(),
    key(
        "group.max.size",
        Int,
        AT_LEAST_1,
        "10000",
        "Members that a group may have.",
    ),
    key(
        "offsets.topic.num.partitions",
        Int,
        Rule::Whole(1, 10_000),
        "50",
        "Partitions of __consumer_offsets. Counts when the topic is created; later changes are without effect.",
    ),
    key(
        "offsets.topic.replication.factor",
        Short,
        AT_LEAST_1,
        "3",
        "Replication factor of __consumer_offsets. Without effect: the store replicates.",
    ),
    key(
        "offsets.retention.minutes",
        Int,
        AT_LEAST_1,
        "10080",
        "Committed offsets of a group without members are forgotten after this time.",
    )
    .unit(Unit::Minutes),
    key(
        "offsets.retention.check.interval.ms",
        Long,
        AT_LEAST_1,
        "600000",
        "How often it is checked which committed offsets have passed their retention.",
    )
    .ms(),
    key(
        "offset.metadata.max.bytes",
        Int,
        AT_LEAST_0,
        "4096",
        "Longest text that a client may store beside a committed offset.",
    )
    .bytes(),
];

static LOGGING: &[BrokerKey] = &[
    key(
        "log.level",
        Text,
        Rule::OneOf(&["error", "warn", "info", "debug", "trace"]),
        "info",
        "What the broker logs: events of this weight and above.",
    ),
    key(
        "log.format",
        Text,
        Rule::OneOf(&["text", "json"]),
        "text",
        "Form of the log lines: for people, or one JSON object per line.",
    ),
];

/// These exist so that a topic's description is complete and a Kafka configuration is understood.
static WITHOUT_EFFECT: &[BrokerKey] = &[
    key(
        "compression.type",
        Text,
        COMPRESSION_TYPES,
        "producer",
        "Default of compression.type of a topic. Without effect.",
    )
    .dynamic(),
    key(
        "compression.gzip.level",
        Int,
        Rule::Level(1, 9),
        "-1",
        "Default of compression.gzip.level of a topic. Without effect.",
    )
    .dynamic(),
    key(
        "compression.lz4.level",
        Int,
        Rule::Whole(1, 17),
        "9",
        "Default of compression.lz4.level of a topic. Without effect.",
    )
    .dynamic(),
    key(
        "compression.zstd.level",
        Int,
        Rule::Whole(-131_072, 22),
        "3",
        "Default of compression.zstd.level of a topic. Without effect.",
    )
    .dynamic(),
    key(
        "log.cleaner.threads",
        Int,
        AT_LEAST_0,
        "1",
        "Threads that compact. Without effect: there is one, which stands back for everything else.",
    ),
    key(
        "log.flush.interval.messages",
        Long,
        AT_LEAST_1,
        "9223372036854775807",
        "Default of flush.messages. Without effect.",
    )
    .dynamic(),
    key(
        "log.flush.interval.ms",
        Long,
        AT_LEAST_0,
        "",
        "Default of flush.ms. Without effect: see flush.interval.ms.",
    )
    .unset()
    .ms()
    .dynamic(),
    key(
        "log.flush.scheduler.interval.ms",
        Long,
        AT_LEAST_0,
        "9223372036854775807",
        "Default of flush.ms if log.flush.interval.ms is unset. Without effect.",
    )
    .ms(),
    key(
        "log.index.interval.bytes",
        Int,
        AT_LEAST_0,
        "4096",
        "Default of index.interval.bytes. Without effect.",
    )
    .bytes()
    .dynamic(),
    key(
        "log.index.size.max.bytes",
        Int,
        Rule::Whole(4, i64::MAX),
        "10485760",
        "Default of segment.index.bytes. Without effect.",
    )
    .bytes()
    .dynamic(),
    key(
        "log.local.retention.bytes",
        Long,
        Rule::Whole(-2, i64::MAX),
        "-2",
        "Default of local.retention.bytes. Without effect.",
    )
    .bytes()
    .dynamic(),
    key(
        "log.local.retention.ms",
        Long,
        Rule::Whole(-2, i64::MAX),
        "-2",
        "Default of local.retention.ms. Without effect.",
    )
    .ms()
    .dynamic(),
    key(
        "log.preallocate",
        Boolean,
        Rule::Any,
        "false",
        "Default of preallocate. Without effect.",
    )
    .dynamic(),
    key(
        "log.roll.hours",
        Int,
        AT_LEAST_1,
        "168",
        "Default of segment.ms if log.roll.ms is unset. Without effect but for compaction.",
    )
    .unit(Unit::Hours),
    key(
        "log.roll.jitter.hours",
        Int,
        AT_LEAST_0,
        "0",
        "Default of segment.jitter.ms if log.roll.jitter.ms is unset. Without effect.",
    )
    .unit(Unit::Hours),
    key(
        "log.roll.jitter.ms",
        Long,
        AT_LEAST_0,
        "",
        "Default of segment.jitter.ms. Without effect.",
    )
    .unset()
    .ms()
    .dynamic(),
    key(
        "log.roll.ms",
        Long,
        AT_LEAST_1,
        "",
        "Default of segment.ms. Without effect but for compaction.",
    )
    .unset()
    .ms()
    .dynamic(),
    key(
        "log.segment.bytes",
        Int,
        Rule::Whole(1024 * 1024, i64::MAX),
        "1073741824",
        "Default of segment.bytes. Without effect: see flush.bytes.",
    )
    .bytes()
    .dynamic(),
    key(
        "min.insync.replicas",
        Int,
        AT_LEAST_1,
        "1",
        "Default of min.insync.replicas of a topic. Without effect.",
    )
    .dynamic(),
    key(
        "unclean.leader.election.enable",
        Boolean,
        Rule::Any,
        "false",
        "Default of unclean.leader.election.enable of a topic. Without effect.",
    )
    .dynamic(),
];

/// Every broker setting, in the order in which people should read them.
pub(crate) static SECTIONS: &[Section] = &[
    Section {
        title: "Broker and store",
        keys: IDENTITY,
    },
    Section {
        title: "Network and memory",
        keys: NETWORK,
    },
    Section {
        title: "Writing and reading",
        keys: WRITING,
    },
    Section {
        title: "Topics",
        keys: TOPICS,
    },
    Section {
        title: "History",
        keys: HISTORY,
    },
    Section {
        title: "Compaction",
        keys: COMPACTION,
    },
    Section {
        title: "Consumer groups",
        keys: GROUPS,
    },
    Section {
        title: "Logging",
        keys: LOGGING,
    },
    Section {
        title: "Accepted without effect",
        keys: WITHOUT_EFFECT,
    },
];

/// Every broker setting.
pub(crate) fn broker_keys() -> impl Iterator<Item = &'static BrokerKey> + Clone {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// The broker setting of this name.
pub(crate) fn broker_key(name: &str) -> Option<&'static BrokerKey> {
    broker_keys().find(|key| key.name == name)
}
