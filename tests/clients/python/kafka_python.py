"""kafka-python."""

import logging
import threading
import time

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import InvalidPartitionsError, MessageSizeTooLargeError, TopicAlreadyExistsError

from scenario import (BASE_MS, COMPACT, COMPACT_SECONDS, Record, Seen, Suite, arguments, check, compacted, records, same, superseded,
                      tick, until)

logging.getLogger("kafka").setLevel(logging.CRITICAL)
BOOTSTRAP, PREFIX = arguments()
suite = Suite("kafka-python", kafka.__version__)
_admin = None


def admin():
    global _admin
    if _admin is None:
        _admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    return _admin


def create(name, partitions=3, configs=None):
    topic = "%s-%s" % (PREFIX, name)
    admin().create_topics({topic: {"num_partitions": partitions, "replication_factor": 1, "configs": configs or {}}},
                          wait_for_metadata=True)
    return topic


def produce(topic, batch, partitions=3, **config):
    """Produces; returns (partition, offset, Record) as acknowledged."""
    config = {"enable_idempotence": False, "acks": "all", "linger_ms": 20, **config}
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, max_request_size=1048576, **config)
    futures = [(r, producer.send(topic, key=r.key, value=r.value, headers=r.headers, partition=i % partitions,
                                 timestamp_ms=r.timestamp)) for i, r in enumerate(batch)]
    producer.flush(30)
    acked = []
    for record, future in futures:
        meta = future.get(30)
        acked.append((meta.partition, meta.offset, record))
    producer.close()
    return acked


def consumer(group=None, **config):
    return KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
                         session_timeout_ms=10000, heartbeat_interval_ms=500, **config)


def polled(source, timeout_ms=200):
    return [Seen(m.partition, m.offset, m.key, m.value, m.headers, m.timestamp)
            for batch in source.poll(timeout_ms).values() for m in batch]


def take(source, count, seconds=30, idle=0.5):
    out, end = [], time.monotonic() + seconds
    while len(out) < count and time.monotonic() < end:
        out += polled(source)
    end = time.monotonic() + idle
    while time.monotonic() < end:
        out += polled(source, 100)
    return out


def read_all(topic, partitions, count):
    source = consumer()
    source.assign([TopicPartition(topic, p) for p in range(partitions)])
    source.seek_to_beginning()
    out = take(source, count)
    source.close()
    return out


def read_to(topic, offset):
    """What a reader from the start finds up to this offset."""
    source = consumer()
    source.assign([TopicPartition(topic, 0)])
    source.seek_to_beginning()
    out = []
    until(lambda: out.extend(polled(source)) or (out and out[-1].offset >= offset), 30, "the end")
    source.close()
    return out


def simple(count, tag):
    return [Record(b"k%d" % i, b"%s-%d" % (tag.encode(), i), [], BASE_MS + i * 1000) for i in range(count)]


@suite.scenario("topic.create", "ApiVersions", "Metadata", "CreateTopics")
def _():
    topic = create("create", 3, {"cleanup.policy": "compact"})
    check(len(admin().describe_topics([topic])[0]["partitions"]) == 3, "wrong partition count")
    try:
        create("create")
        check(False, "creating the topic twice succeeded")
    except TopicAlreadyExistsError:
        pass
    admin().create_topics({topic + "-dry": {"num_partitions": 1, "replication_factor": 1}}, validate_only=True)
    check(topic + "-dry" not in admin().list_topics(), "validate_only created the topic")


def codec(name):
    def run():
        topic = create("codec-" + name)
        acked = produce(topic, records(null_header=False, both_null=False), compression_type=None if name == "none" else name)
        same(acked, read_all(topic, 3, len(acked)))
    return run


for _name in ("none", "gzip", "snappy", "lz4", "zstd"):
    suite.scenario("produce." + _name, "Produce", "Fetch", "ListOffsets", "Metadata")(codec(_name))


@suite.scenario("topic.auto-create", "Metadata", "Produce")
def _():
    topic = PREFIX + "-auto"
    same(produce(topic, simple(3, "a"), 1), read_all(topic, 1, 3))


@suite.scenario("produce.idempotent", "InitProducerId", "Produce")
def _():
    topic = create("idempotent")
    acked = produce(topic, records(null_header=False, both_null=False) + simple(500, "i"), enable_idempotence=True, batch_size=500)
    same(acked, read_all(topic, 3, len(acked)))


@suite.scenario("produce.acks", "Produce")
def _():
    topic = create("acks", 1)
    acked = produce(topic, simple(20, "one"), 1, acks=1)
    produce(topic, simple(20, "zero"), 1, acks=0)
    back = read_all(topic, 1, 40)
    check([s.value for s in back] == [b"one-%d" % i for i in range(20)] + [b"zero-%d" % i for i in range(20)],
          "acks=0 after acks=1: wrong order")
    same(acked, back[:20])


@suite.scenario("produce.too-large", "Produce")
def _():
    topic = create("too-large", 1, {"max.message.bytes": "1000"})
    try:
        produce(topic, [Record(b"k", b"x" * 5000, [], BASE_MS)], 1)
        check(False, "a record above max.message.bytes was accepted")
    except MessageSizeTooLargeError:
        pass
    check(read_all(topic, 1, 0) == [], "the rejected record is there")


@suite.scenario("group.rebalance", "FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "OffsetCommit", "OffsetFetch")
def _():
    topic, group = create("group", 4), PREFIX + "-group"
    acked, out = produce(topic, simple(200, "g"), 4), []

    class Member(threading.Thread):
        """One consumer in a thread of its own: a join blocks until every member has polled."""
        def __init__(self):
            super().__init__(daemon=True)
            self.source = consumer(group)
            self.source.subscribe([topic])
            self.owned, self.stopping, self.error = -1, False, None
            self.start()

        def run(self):
            try:
                while not self.stopping:
                    out.extend(polled(self.source))
                    self.owned = len(self.source.assignment())
                self.source.commit()
                self.source.close()
            except Exception as problem:
                self.error = problem

        def stop(self):
            self.stopping = True
            self.join(30)
            check(self.error is None, "member: %r", self.error)

    first = Member()
    until(lambda: first.owned == 4, 30, "first member owns 4 partitions")
    until(lambda: len(out) >= 200, 20, "first member reads all")
    first.source.commit_async()
    time.sleep(0.5)
    second = Member()
    until(lambda: (first.owned, second.owned) == (2, 2), 30, "two members own 2 partitions each")
    acked += produce(topic, simple(100, "h"), 4)
    until(lambda: len(out) >= 300, 20, "two members read all")
    second.stop()
    until(lambda: first.owned == 4, 30, "first member owns 4 partitions again")
    acked += produce(topic, simple(40, "i"), 4)
    until(lambda: len(out) >= 340, 20, "first member reads the rest")
    first.stop()
    # A member that rejoins may read again what it had not committed: nothing may be missing.
    same(acked, list({(s.partition, s.offset): s for s in out}.values()))


@suite.scenario("group.resume", "OffsetCommit", "OffsetFetch", "JoinGroup", "SyncGroup")
def _():
    topic, group = create("resume", 2), PREFIX + "-resume"
    produce(topic, simple(50, "r"), 2)
    member = consumer(group)
    member.subscribe([topic])
    check(len(take(member, 50)) == 50, "first member did not read all")
    member.commit({TopicPartition(topic, 0): OffsetAndMetadata(25, "half", -1),
                   TopicPartition(topic, 1): OffsetAndMetadata(20, "caf\u00e9", -1)})
    member.close(autocommit=False)
    more = produce(topic, simple(10, "s"), 2)
    member = consumer(group)
    member.subscribe([topic])
    back = take(member, 15)
    committed = [member.committed(TopicPartition(topic, p), metadata=True) for p in range(2)]
    member.close(autocommit=False)
    check(sorted((s.partition, s.offset) for s in back)
          == sorted([(p, o) for p, o, _ in more] + [(1, o) for o in range(20, 25)]), "resumed at the wrong offsets: %s", back)
    check([(c.offset, c.metadata) for c in committed] == [(25, "half"), (20, "caf\u00e9")], "committed %s", committed)


@suite.scenario("group.static", "JoinGroup", "SyncGroup", "DescribeGroups")
def _():
    topic, group = create("static", 2), PREFIX + "-static"
    produce(topic, simple(10, "t"), 2)
    for _round in range(2):
        member = consumer(group, group_instance_id="instance-1")
        member.subscribe([topic])
        until(lambda: polled(member) or len(member.assignment()) == 2, 30, "static member assigned")
        members = admin().describe_groups([group])[group]["members"]
        check([m["group_instance_id"] for m in members] == ["instance-1"], "members %s", members)
        member.close(autocommit=False)


@suite.scenario("offsets.list", "ListOffsets")
def _():
    topic = create("list", 2)
    produce(topic, simple(20, "l"), 2)
    parts = [TopicPartition(topic, p) for p in range(2)]
    source = consumer()
    check(source.beginning_offsets(parts) == {parts[0]: 0, parts[1]: 0}, "earliest")
    check(source.end_offsets(parts) == {parts[0]: 10, parts[1]: 10}, "latest")
    source.close()
    answer = admin().list_partition_offsets({p: OffsetSpec.MAX_TIMESTAMP for p in parts})
    check([answer[p].offset for p in parts] == [9, 9] and answer[parts[1]].timestamp == BASE_MS + 19000, "max timestamp %s", answer)


@suite.scenario("seek.time", "ListOffsets", "Fetch")
def _():
    topic = create("time", 1)
    acked = produce(topic, simple(30, "t"), 1)
    part, source = TopicPartition(topic, 0), consumer()
    at = source.offsets_for_times({part: BASE_MS + 10500})[part]
    check((at.offset, at.timestamp) == (11, BASE_MS + 11000), "offset for a time between records: %s", at)
    check(source.offsets_for_times({part: BASE_MS + 10 ** 9})[part] is None, "a time after the end has an offset")
    source.assign([part])
    source.seek(part, at.offset)
    same(acked[11:], take(source, 19))
    source.close()


@suite.scenario("seek.offset", "Fetch")
def _():
    topic = create("seek", 1)
    acked = produce(topic, simple(30, "t"), 1)
    part, source = TopicPartition(topic, 0), consumer()
    source.assign([part])
    for offset, expected in ((5, acked[5:]), (29, acked[29:]), (5000, acked)):
        source.seek(part, offset)
        same(expected, take(source, len(expected)))
    source.close()


@suite.scenario("longpoll", "Fetch")
def _():
    topic = create("longpoll", 1)
    source = consumer(fetch_max_wait_ms=5000)
    source.assign([TopicPartition(topic, 0)])
    polled(source)
    took = []
    for _round in range(5):
        sent = []

        def later():
            time.sleep(0.3)
            produce(topic, simple(1, "p"), 1, linger_ms=0)
            sent.append(time.monotonic())
        thread = threading.Thread(target=later)
        thread.start()
        until(lambda: polled(source, 1000), 20, "a record", pause=0)
        arrived = time.monotonic()
        thread.join()
        took.append(max(0, int((arrived - sent[0]) * 1000)))
    source.close()
    return "record arrives %s ms after the producer closed" % sorted(took)[2]


@suite.scenario("admin.partitions", "CreatePartitions", "Metadata")
def _():
    topic = create("grow", 1)
    admin().create_partitions({topic: 4})
    until(lambda: len(admin().describe_topics([topic])[0]["partitions"]) == 4, 20, "4 partitions")
    same(produce(topic, simple(20, "x"), 4), read_all(topic, 4, 20))
    try:
        admin().create_partitions({topic: 2})
        check(False, "shrinking succeeded")
    except InvalidPartitionsError:
        pass


@suite.scenario("admin.configs", "DescribeConfigs", "IncrementalAlterConfigs", "AlterConfigs")
def _():
    topic = create("configs", 1, {"retention.ms": "3600000"})

    def get(name):
        answer = admin().describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
        return answer["topic"][topic][name]

    check(get("retention.ms")["value"] == "3600000", "retention.ms set at creation")
    check(get("cleanup.policy")["value"] == "delete", "default cleanup.policy")
    admin().alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": ("SET", "7200000"),
                                                                           "cleanup.policy": ("APPEND", "compact")})])
    until(lambda: get("retention.ms")["value"] == "7200000", 10, "retention.ms changed")
    check(set(get("cleanup.policy")["value"].split(",")) == {"delete", "compact"}, "append")
    admin().alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": ("DELETE", None)})])
    until(lambda: get("retention.ms")["value"] == "604800000", 10, "retention.ms back to its default")
    admin().alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.bytes": "1000000"})], incremental=False)
    until(lambda: get("retention.bytes")["value"] == "1000000", 10, "AlterConfigs")


@suite.scenario("admin.cluster", "DescribeCluster")
def _():
    cluster = admin().describe_cluster()
    check(cluster["cluster_id"], "no cluster id: %s", cluster)
    check(cluster["controller_id"] in [b["broker_id"] for b in cluster["brokers"]], "the controller is not a listed broker: %s", cluster)


@suite.scenario("admin.topics", "Metadata", "DescribeTopicPartitions")
def _():
    topic = create("described", 3)
    page = admin().describe_topic_partitions([topic], response_partition_limit=2)
    check(len(page["topics"][0]["partitions"]) == 2 and page["next_cursor"]["partition_index"] == 2, "first page %s", page)
    rest = admin().describe_topic_partitions([topic], cursor=page["next_cursor"])
    check([p["partition_index"] for p in rest["topics"][0]["partitions"]] == [2], "second page %s", rest)


@suite.scenario("admin.log-dirs", "DescribeLogDirs")
def _():
    topic = create("log-dirs", 1)
    produce(topic, simple(50, "z"), 1)
    answer = admin().describe_log_dirs([topic])
    names = [t["name"] if "name" in t else t["topic"] for b in answer for d in b["log_dirs"] for t in d["topics"]]
    check(topic in names, "topic is not in a log dir: %s", answer)


@suite.scenario("admin.producers", "DescribeProducers")
def _():
    topic = create("producers", 1)
    produce(topic, simple(5, "z"), 1, enable_idempotence=True)
    state = admin().describe_producers([TopicPartition(topic, 0)])[TopicPartition(topic, 0)]
    check(len(state.active_producers) == 1 and state.active_producers[0].last_sequence == 4, "producers %s", state)


@suite.scenario("admin.groups", "ListGroups", "DescribeGroups", "DeleteGroups")
def _():
    topic, group = create("groups", 1), PREFIX + "-groups"
    produce(topic, simple(5, "g"), 1)
    member = consumer(group, client_id="the-client")
    member.subscribe([topic])
    check(len(take(member, 5)) == 5, "records")
    member.commit()
    check(group in [g["group_id"] for g in admin().list_groups()], "group is not listed")
    described = admin().describe_groups([group])[group]
    check(described["group_state"] == "Stable" and described["members"][0]["client_id"] == "the-client", "described %s", described)
    refused = admin().delete_groups([group])
    check("NON_EMPTY" in str(refused).upper() or "NONEMPTY" in str(refused).upper(), "a group with members was deleted: %s", refused)
    member.close(autocommit=False)
    until(lambda: admin().describe_groups([group])[group]["group_state"] == "Empty", 20, "group empty")
    admin().delete_groups([group])
    check(group not in [g["group_id"] for g in admin().list_groups()], "the deleted group is still listed")


@suite.scenario("admin.group-offsets", "OffsetFetch", "OffsetCommit", "OffsetDelete")
def _():
    topic, group = create("group-offsets", 2), PREFIX + "-group-offsets"
    parts = [TopicPartition(topic, p) for p in range(2)]
    admin().alter_group_offsets(group, {parts[0]: OffsetAndMetadata(4, "m", -1), parts[1]: OffsetAndMetadata(7, "", -1)})
    back = admin().list_group_offsets({group: None})[group]
    check({t: (o.offset, o.metadata) for t, o in back.items()} == {parts[0]: (4, "m"), parts[1]: (7, "")}, "offsets %s", back)
    admin().delete_group_offsets(group, [parts[0]])
    back = admin().list_group_offsets({group: None})[group]
    check([t for t, o in back.items() if o.offset >= 0] == [parts[1]], "after OffsetDelete: %s", back)


@suite.scenario("admin.delete-records", "DeleteRecords", "ListOffsets")
def _():
    topic = create("delete-records", 1)
    acked = produce(topic, simple(20, "d"), 1)
    part = TopicPartition(topic, 0)
    admin().delete_records({part: 8})
    source = consumer()
    until(lambda: source.beginning_offsets([part])[part] == 8, 10, "log start 8")
    source.close()
    same(acked[8:], read_all(topic, 1, 12))


@suite.scenario("topic.compact", "CreateTopics", "Produce", "Fetch")
def _():
    topic, began = create("compact", 1, COMPACT), time.monotonic()
    produce(topic, superseded(), 1)

    def done():
        [(_, offset, _)] = produce(topic, [tick(int(time.monotonic() - began))], 1)
        return compacted([(s.offset, s.key, s.value) for s in read_to(topic, offset)])
    until(done, COMPACT_SECONDS, "compaction", pause=1)
    return "compacted after %d s" % (time.monotonic() - began)


@suite.scenario("topic.delete", "DeleteTopics", "Metadata")
def _():
    topic = create("delete", 2)
    produce(topic, simple(10, "d"), 2)
    admin().delete_topics([topic])
    until(lambda: topic not in admin().list_topics(), 20, "topic gone")
    create("delete", 1)
    acked = produce(topic, simple(3, "e"), 1)
    check(sorted(o for _, o, _ in acked) == [0, 1, 2], "a topic made again starts at 0: %s", acked)
    same(acked, read_all(topic, 1, 3))


suite.main()
