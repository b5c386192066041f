//! The table of topic configs: every one that a Kafka 4 client or tool may send or ask for.

use super::key::{Kind, Rule};

/// One topic config.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicKey {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) rule: Rule,
    /// The broker settings that give its default, the strongest first, and what a unit of each is worth.
    pub(crate) broker: &'static [(&'static str, i64)],
    /// The default where there is no such broker setting.
    pub(crate) default: &'static str,
    pub(crate) doc: &'static str,
}

const fn key(
    name: &'static str,
    kind: Kind,
    rule: Rule,
    broker: &'static [(&'static str, i64)],
    doc: &'static str,
) -> TopicKey {
    TopicKey {
        name,
        kind,
        rule,
        broker,
        default: "",
        doc,
    }
}

const fn alone(
    name: &'static str,
    kind: Kind,
    rule: Rule,
    default: &'static str,
    doc: &'static str,
) -> TopicKey {
    TopicKey {
        name,
        kind,
        rule,
        broker: &[],
        default,
        doc,
    }
}

const MINUTE_MS: i64 = 60 * 1000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

pub(crate) const AT_LEAST_0: Rule = Rule::Whole(0, i64::MAX);
pub(crate) const AT_LEAST_1: Rule = Rule::Whole(1, i64::MAX);
pub(crate) const CLEANUP_POLICIES: Rule = Rule::Items(&["compact", "delete"]);
pub(crate) const TIMESTAMP_TYPES: Rule = Rule::OneOf(&["CreateTime", "LogAppendTime"]);
pub(crate) const VALUE_TYPES: Rule = Rule::OneOf(&["binary", "string"]);
pub(crate) const ARCHIVE_FILE_BYTES: Rule = Rule::Whole(64 * 1024, 1 << 30);
pub(crate) const COMPRESSION_TYPES: Rule =
    Rule::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]);

const THROTTLED_REPLICAS: Rule = Rule::Syntax {
    accepts: "a list of PARTITION:BROKER pairs, or *",
    check: |text| {
        let number = |part: &str| part.parse::<u32>().is_ok();
        let pair = |item: &str| item.split_once(':').is_some_and(|(p, b)| number(p) && number(b));
        if text == "*" || super::key::split_list(text).iter().all(|item| pair(item)) {
            Ok(())
        } else {
            Err("expected a list of PARTITION:BROKER pairs, or *".into())
        }
    },
};

/// Configs that a topic gets at its creation and keeps: data that was written under one value must not lie beside
/// data of another.
pub(crate) const FIXED_AT_CREATION: &[&str] = &["archive.value.type"];

/// Sorted by name.
pub(crate) static TOPIC_KEYS: &[TopicKey] = &[
    key(
        "archive.enable",
        Kind::Boolean,
        Rule::Any,
        &[("archive.enable", 1)],
        "Whether the topic's records become history: Parquet files that analytics tools query and consumers replay from. Without effect on compacted and internal topics, which never do. Switched off, what is Parquet stays so until retention removes it.",
    ),
    key(
        "archive.file.bytes",
        Kind::Long,
        ARCHIVE_FILE_BYTES,
        &[("archive.file.bytes", 1)],
        "So much stored data of the topic, as its producers compressed it and as merged objects hold it, over all partitions that a broker leads, is archived at once, as one Parquet file. The file itself may be smaller or larger: it is compressed anew.",
    ),
    key(
        "archive.interval.ms",
        Kind::Long,
        AT_LEAST_1,
        &[("archive.interval.ms", 1)],
        "Age at which records are archived although the file stays small. It is how far queries lag behind producers; `alluvium archive flush` does not wait for it.",
    ),
    alone(
        "archive.value.type",
        Kind::Text,
        VALUE_TYPES,
        "binary",
        "Type of the column value in the topic's Parquet files: binary, or string for values that are all UTF-8 text. Fixed when the topic is created; there it is the broker's archive.value.type unless it is given.",
    ),
    key(
        "cleanup.policy",
        Kind::List,
        CLEANUP_POLICIES,
        &[("log.cleanup.policy", 1)],
        "What happens to old records: with delete they go when retention.ms or retention.bytes has passed them; with compact the newest record of each key stays, and the others go some time after they were superseded (see min.cleanable.dirty.ratio). Both may be given; with an empty list nothing is ever removed.",
    ),
    key(
        "compression.gzip.level",
        Kind::Int,
        Rule::Level(1, 9),
        &[("compression.gzip.level", 1)],
        "Level for batches that the broker itself would compress with gzip. Without effect: batches keep the bytes that the producer sent.",
    ),
    key(
        "compression.lz4.level",
        Kind::Int,
        Rule::Whole(1, 17),
        &[("compression.lz4.level", 1)],
        "Level for batches that the broker itself would compress with lz4. Without effect: batches keep the bytes that the producer sent.",
    ),
    key(
        "compression.type",
        Kind::Text,
        COMPRESSION_TYPES,
        &[("compression.type", 1)],
        "Codec in which the topic's batches are meant to be stored. Without effect: batches keep the producer's codec, as with the value producer.",
    ),
    key(
        "compression.zstd.level",
        Kind::Int,
        Rule::Whole(-131_072, 22),
        &[("compression.zstd.level", 1)],
        "Level for batches that the broker itself would compress with zstd. Without effect: batches keep the bytes that the producer sent.",
    ),
    key(
        "delete.retention.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.cleaner.delete.retention.ms", 1)],
        "How long a compacted topic keeps the deletion mark of a key (a record without a value), counted from when compaction first met it: so long a reader that began at the start has time to see it. It goes with the next compaction of the partition after that.",
    ),
    key(
        "file.delete.delay.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.segment.delete.delay.ms", 1)],
        "How long a log file stays after its deletion. Without effect: topics share their files (see log.segment.delete.delay.ms of the broker).",
    ),
    key(
        "flush.messages",
        Kind::Long,
        AT_LEAST_1,
        &[("log.flush.interval.messages", 1)],
        "Number of records after which a log is forced to the disk. Without effect: every record is durable before it is acknowledged.",
    ),
    key(
        "flush.ms",
        Kind::Long,
        AT_LEAST_0,
        &[
            ("log.flush.interval.ms", 1),
            ("log.flush.scheduler.interval.ms", 1),
        ],
        "Time after which a log is forced to the disk. Without effect: every record is durable before it is acknowledged (see flush.interval.ms of the broker).",
    ),
    alone(
        "follower.replication.throttled.replicas",
        Kind::List,
        THROTTLED_REPLICAS,
        "",
        "Follower replicas whose replication is slowed down. Without effect: the store replicates.",
    ),
    key(
        "index.interval.bytes",
        Kind::Int,
        AT_LEAST_0,
        &[("log.index.interval.bytes", 1)],
        "Distance of the entries in a log's index. Without effect: every batch is indexed.",
    ),
    alone(
        "leader.replication.throttled.replicas",
        Kind::List,
        THROTTLED_REPLICAS,
        "",
        "Leader replicas whose replication is slowed down. Without effect: the store replicates.",
    ),
    key(
        "local.retention.bytes",
        Kind::Long,
        Rule::Whole(-2, i64::MAX),
        &[("log.local.retention.bytes", 1)],
        "Bytes of a tiered partition that stay on the broker's disk; -2 means as retention.bytes. Without effect: a broker keeps nothing but caches.",
    ),
    key(
        "local.retention.ms",
        Kind::Long,
        Rule::Whole(-2, i64::MAX),
        &[("log.local.retention.ms", 1)],
        "Time for which a tiered partition's data stays on the broker's disk; -2 means as retention.ms. Without effect: a broker keeps nothing but caches.",
    ),
    key(
        "max.compaction.lag.ms",
        Kind::Long,
        AT_LEAST_1,
        &[("log.cleaner.max.compaction.lag.ms", 1)],
        "Age at which a partition with a record that was not compacted yet is compacted, however little there is to do. Judged by ranges of up to a megabyte or a minute, and by their records' timestamps or the time of the append, whichever is earlier.",
    ),
    key(
        "max.message.bytes",
        Kind::Int,
        AT_LEAST_0,
        &[("message.max.bytes", 1)],
        "Largest record batch that a producer may send, as it travels (after compression), in bytes.",
    ),
    key(
        "message.timestamp.after.max.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.message.timestamp.after.max.ms", 1)],
        "How far a record's timestamp may lie ahead of the broker's clock before the batch is rejected. Applies to CreateTime only.",
    ),
    key(
        "message.timestamp.before.max.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.message.timestamp.before.max.ms", 1)],
        "How far a record's timestamp may lie behind the broker's clock before the batch is rejected. Applies to CreateTime only.",
    ),
    key(
        "message.timestamp.type",
        Kind::Text,
        TIMESTAMP_TYPES,
        &[("log.message.timestamp.type", 1)],
        "Whose time a record carries: CreateTime is the producer's, LogAppendTime that of the append.",
    ),
    key(
        "min.cleanable.dirty.ratio",
        Kind::Double,
        Rule::Decimal(0.0, 1.0),
        &[("log.cleaner.min.cleanable.ratio", 1)],
        "Share of not yet compacted data above which a partition is compacted. In addition there must be a megabyte of such data, or 32 ranges of it (one comes about every merge.interval.ms), or some that is as old as segment.ms.",
    ),
    key(
        "min.compaction.lag.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.cleaner.min.compaction.lag.ms", 1)],
        "Age, by its timestamp, below which a record is not compacted away, nor any that follows it.",
    ),
    key(
        "min.insync.replicas",
        Kind::Int,
        AT_LEAST_1,
        &[("min.insync.replicas", 1)],
        "Replicas that must hold a record before acks=all is answered. Without effect: every acknowledged record is in the store, which replicates it.",
    ),
    key(
        "preallocate",
        Kind::Boolean,
        Rule::Any,
        &[("log.preallocate", 1)],
        "Whether a log file gets its full size at its creation. Without effect: there are no log files on a disk.",
    ),
    alone(
        "remote.copy.lag.bytes",
        Kind::Long,
        Rule::Whole(-1, i64::MAX),
        "0",
        "Bytes by which copying to tiered storage may lag. Without effect: all data is in the bucket at once.",
    ),
    alone(
        "remote.copy.lag.ms",
        Kind::Long,
        Rule::Whole(-1, i64::MAX),
        "0",
        "Time by which copying to tiered storage may lag. Without effect: all data is in the bucket at once.",
    ),
    alone(
        "remote.log.copy.disable",
        Kind::Boolean,
        Rule::Any,
        "false",
        "Whether data is no longer copied to tiered storage. Without effect: all data is in the bucket at once.",
    ),
    alone(
        "remote.log.delete.on.disable",
        Kind::Boolean,
        Rule::Any,
        "false",
        "Whether tiered data goes when tiering is switched off. Without effect: all data is in the bucket, and stays there.",
    ),
    alone(
        "remote.storage.enable",
        Kind::Boolean,
        Rule::Any,
        "false",
        "Whether the topic uses tiered storage. Without effect: all data is in the bucket at once, whatever it says.",
    ),
    key(
        "retention.bytes",
        Kind::Long,
        Rule::Any,
        &[("log.retention.bytes", 1)],
        "Size of a partition, as it is stored, above which its oldest records go, if cleanup.policy has delete. Negative: no limit.",
    ),
    key(
        "retention.ms",
        Kind::Long,
        Rule::Whole(-1, i64::MAX),
        &[
            ("log.retention.ms", 1),
            ("log.retention.minutes", MINUTE_MS),
            ("log.retention.hours", HOUR_MS),
        ],
        "Age at which records go, if cleanup.policy has delete. -1: never.",
    ),
    key(
        "segment.bytes",
        Kind::Int,
        Rule::Whole(1024 * 1024, i64::MAX),
        &[("log.segment.bytes", 1)],
        "Size at which a new log file begins. Without effect: partitions share the broker's objects, and retention takes away ranges of records that are at most a row group of a Parquet file (about 12 MiB). See flush.bytes of the broker, and archive.file.bytes.",
    ),
    key(
        "segment.index.bytes",
        Kind::Int,
        Rule::Whole(4, i64::MAX),
        &[("log.index.size.max.bytes", 1)],
        "Size of a log file's index. Without effect: a partition has no files of its own.",
    ),
    key(
        "segment.jitter.ms",
        Kind::Long,
        AT_LEAST_0,
        &[("log.roll.jitter.ms", 1), ("log.roll.jitter.hours", HOUR_MS)],
        "Random part of segment.ms. Without effect: a partition has no files of its own.",
    ),
    key(
        "segment.ms",
        Kind::Long,
        AT_LEAST_1,
        &[("log.roll.ms", 1), ("log.roll.hours", HOUR_MS)],
        "Age at which data of a compacted topic is compacted even if it is little, as far as min.cleanable.dirty.ratio allows; in Kafka a new log file begins then. No other effect: partitions share the broker's objects, and retention does not wait for one to be full. See merge.interval.ms of the broker, and archive.interval.ms.",
    ),
    key(
        "unclean.leader.election.enable",
        Kind::Boolean,
        Rule::Any,
        &[("unclean.leader.election.enable", 1)],
        "Whether a replica that misses records may become leader. Without effect: a leader always has every acknowledged record.",
    ),
];

/// The topic config of this name.
pub(crate) fn topic_key(name: &str) -> Option<&'static TopicKey> {
    TOPIC_KEYS.iter().find(|key| key.name == name)
}
