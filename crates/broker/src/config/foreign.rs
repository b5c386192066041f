//! Settings of Kafka that mean nothing here, so that a `server.properties` made for Kafka still starts a broker.

/// What becomes of a key that is Kafka's but not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// It may stand in the file: nothing is lost by ignoring it.
    Ignored,
    /// Ignoring it would leave the broker open where its operator believes it is not.
    Refused(&'static str),
}

/// Whole families of keys. None of ours may begin like this, or a misspelt one would pass for Kafka's.
const PREFIXES: &[&str] = &[
    "alter.log.dirs.replication.",
    "broker.heartbeat.",
    "broker.session.",
    "client.quota.",
    "config.providers",
    "confluent.",
    "connection.failed.authentication.",
    "controlled.shutdown.",
    "controller.",
    "delegation.token.",
    "fetch.purgatory.",
    "group.consumer.",
    "group.coordinator.",
    "group.share.",
    "group.streams.",
    "inter.broker.",
    "kafka.metrics.",
    "leader.imbalance.",
    "leader.replication.",
    "follower.replication.",
    "listener.name.",
    "log4j.",
    "log4j2.",
    "metadata.log.",
    "metadata.max.",
    "metric.",
    "metrics.",
    "password.encoder.",
    "plugin.",
    "quota.",
    "remote.",
    "replica.",
    "replication.quota.",
    "rlmm.",
    "rsm.",
    "sasl.",
    "security.",
    "share.",
    "socket.connection.setup.",
    "ssl.",
    "telemetry.",
    "transaction.",
    "unstable.",
    "zookeeper.",
];

/// Single keys.
const KEYS: &[&str] = &[
    "add.partitions.to.txn.retry.backoff.max.ms",
    "add.partitions.to.txn.retry.backoff.ms",
    "alter.config.policy.class.name",
    "auto.include.jmx.reporter",
    "auto.leader.rebalance.enable",
    "background.threads",
    "broker.id.generation.enable",
    "connections.max.reauth.ms",
    "control.plane.listener.name",
    "create.topic.policy.class.name",
    "delete.records.purgatory.purge.interval.requests",
    "early.start.listeners",
    "eligible.leader.replicas.enable",
    "enable.fips",
    "initial.broker.registration.timeout.ms",
    "internal.segment.bytes",
    "log.cleaner.io.buffer.load.factor",
    "log.cleaner.io.buffer.size",
    "log.dir",
    "log.dir.failure.timeout.ms",
    "log.dirs",
    "log.flush.offset.checkpoint.interval.ms",
    "log.flush.start.offset.checkpoint.interval.ms",
    "log.initial.task.delay.ms",
    "log.message.downconversion.enable",
    "log.message.format.version",
    "log.message.timestamp.difference.max.ms",
    "max.connection.creation.rate",
    "max.connections.per.ip.overrides",
    "max.request.partition.size.limit",
    "num.io.threads",
    "num.network.threads",
    "num.recovery.threads.per.data.dir",
    "num.replica.alter.log.dirs.threads",
    "num.replica.fetchers",
    "offsets.commit.required.acks",
    "offsets.commit.timeout.ms",
    "offsets.load.buffer.size",
    "offsets.topic.compression.codec",
    "offsets.topic.segment.bytes",
    "principal.builder.class",
    "process.roles",
    "producer.id.expiration.check.interval.ms",
    "producer.purgatory.purge.interval.requests",
    "queued.max.request.bytes",
    "queued.max.requests",
    "request.timeout.ms",
    "reserved.broker.max.id",
    "server.max.startup.time.ms",
    "socket.listen.backlog.size",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "transactional.id.expiration.ms",
    "unclean.leader.election.interval.ms",
];

/// Keys by which an operator restricts who may do what.
const REFUSED: &[(&str, &str)] = &[(
    "authorizer.class.name",
    "there is no authorization here, so every client may do everything; remove it to accept that",
)];

/// What to do with a key that is not in our table; `None` if it is not Kafka's either.
pub(crate) fn foreign(key: &str) -> Option<Foreign> {
    if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == key) {
        return Some(Foreign::Refused(why));
    }
    let known = KEYS.contains(&key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    known.then_some(Foreign::Ignored)
}
