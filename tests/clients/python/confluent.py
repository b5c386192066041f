"""confluent-kafka (librdkafka)."""

import threading
import time

import confluent_kafka
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition, OFFSET_BEGINNING
from confluent_kafka import KafkaException
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic,
                                   OffsetSpec, ResourceType)

from scenario import (BASE_MS, COMPACT, COMPACT_SECONDS, Record, Seen, Suite, arguments, check, compacted, records, same, superseded,
                      tick, until)

BOOTSTRAP, PREFIX = arguments()
suite = Suite("confluent-kafka", "%s (librdkafka %s)" % (confluent_kafka.__version__, confluent_kafka.libversion()[0]))
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})


def done(futures):
    """Waits for a dict of admin futures."""
    return {key: future.result(30) for key, future in futures.items()}


def create(name, partitions=3, config=None):
    topic = "%s-%s" % (PREFIX, name)
    done(admin.create_topics([NewTopic(topic, partitions, 1, config=config or {})]))
    until(lambda: len((admin.list_topics(topic, timeout=10).topics.get(topic) or type("None", (), {"partitions": {}})).partitions)
          == partitions, 20, "topic %s visible" % topic)
    return topic


def produce(topic, batch, partitions=3, **config):
    """Produces; returns (partition, offset, Record) as acknowledged."""
    acked, errors = [], []
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "acks": "all", "linger.ms": 20, "message.max.bytes": 1000000, **config})

    def report(record):
        def callback(error, message):
            if error:
                errors.append(str(error))
            else:
                acked.append((message.partition(), message.offset(), record))
        return callback

    for i, record in enumerate(batch):
        producer.produce(topic, key=record.key, value=record.value, headers=record.headers or None, partition=i % partitions,
                         timestamp=record.timestamp, on_delivery=report(record))
        producer.poll(0)
    left = producer.flush(30)
    check(not errors, "delivery failed: %s", errors[:3])
    check(left == 0 and len(acked) == len(batch), "%d of %d records acknowledged", len(acked), len(batch))
    return acked


def consumer(group=None, **config):
    return Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": group or PREFIX + "-none", "enable.auto.commit": False,
                     "auto.offset.reset": "earliest", "session.timeout.ms": 10000, "heartbeat.interval.ms": 500, **config})


def seen(message):
    check(message.error() is None, "consumer: %s", message.error())
    return Seen(message.partition(), message.offset(), message.key(), message.value(), message.headers(), message.timestamp()[1])


def take(source, count, seconds=30, idle=0.5):
    """Polls until `count` records came, then a little longer so that a surplus is seen."""
    out, end = [], time.monotonic() + seconds
    while len(out) < count and time.monotonic() < end:
        out += [seen(m) for m in source.consume(500, 0.2)]
    end = time.monotonic() + idle
    while time.monotonic() < end:
        out += [seen(m) for m in source.consume(500, 0.1)]
    return out


def read_all(topic, partitions, count, **config):
    source = consumer(**config)
    source.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
    out = take(source, count)
    source.close()
    return out


def read_to(topic, offset):
    """What a reader from the start finds up to this offset."""
    source = consumer()
    source.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    out = []
    until(lambda: out.extend(seen(m) for m in source.consume(500, 0.2)) or (out and out[-1].offset >= offset), 30, "the end")
    source.close()
    return out


def simple(count, tag):
    return [Record(b"k%d" % i, b"%s-%d" % (tag.encode(), i), [], BASE_MS + i * 1000) for i in range(count)]


@suite.scenario("topic.create", "ApiVersions", "Metadata", "CreateTopics")
def _():
    topic = create("create", 3, {"cleanup.policy": "compact"})
    check(len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3, "wrong partition count")
    try:
        done(admin.create_topics([NewTopic(topic, 3, 1)]))
        check(False, "creating the topic twice succeeded")
    except KafkaException as error:
        check(error.args[0].name() == "TOPIC_ALREADY_EXISTS", "second create: %s", error)
    done(admin.create_topics([NewTopic(topic + "-dry", 1, 1)], validate_only=True))
    check(topic + "-dry" not in admin.list_topics(timeout=10).topics, "validate_only created the topic")


def codec(name):
    def run():
        topic = create("codec-" + name)
        acked = produce(topic, records(), **{"compression.type": name})
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
    acked = produce(topic, records() + simple(500, "i"), **{"enable.idempotence": True, "batch.num.messages": 20})
    same(acked, read_all(topic, 3, len(acked)))


@suite.scenario("produce.acks", "Produce")
def _():
    topic = create("acks", 1)
    acked = produce(topic, simple(20, "one"), 1, acks=1)
    produce(topic, simple(20, "zero"), 1, acks=0)
    back = read_all(topic, 1, 40)
    check([s.value for s in back] == [b"one-%d" % i for i in range(20)] + [b"zero-%d" % i for i in range(20)], "acks=0 after acks=1: wrong order")
    same(acked, back[:20])


@suite.scenario("produce.too-large", "Produce")
def _():
    topic = create("too-large", 1, {"max.message.bytes": "1000"})
    try:
        produce(topic, [Record(b"k", b"x" * 5000, [], BASE_MS)], 1)
        check(False, "a record above max.message.bytes was accepted")
    except AssertionError as error:
        check("MSG_SIZE_TOO_LARGE" in str(error) or "too large" in str(error), "wrong error: %s", error)
    check(read_all(topic, 1, 0) == [], "the rejected record is there")


@suite.scenario("group.rebalance", "FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "OffsetCommit", "OffsetFetch")
def _():
    topic, group = create("group", 4), PREFIX + "-group"
    acked = produce(topic, simple(200, "g"), 4)
    first = consumer(group)
    first.subscribe([topic])
    out = []

    def pump(*members):
        for member in members:
            for message in member.consume(200, 0.1):
                out.append(seen(message))

    def shape(*members):
        pump(*members)
        return [len(m.assignment()) for m in members]

    until(lambda: shape(first) == [4], 30, "first member owns 4 partitions")
    until(lambda: pump(first) or len(out) >= 200, 20, "first member reads all")
    first.commit(asynchronous=False)
    second = consumer(group)
    second.subscribe([topic])
    until(lambda: shape(first, second) == [2, 2], 30, "two members own 2 partitions each")
    acked += produce(topic, simple(100, "h"), 4)
    until(lambda: pump(first, second) or len(out) >= 300, 20, "two members read all")
    first.commit(asynchronous=False)
    second.commit(asynchronous=False)
    second.close()
    until(lambda: shape(first) == [4], 30, "first member owns 4 partitions again")
    acked += produce(topic, simple(40, "i"), 4)
    until(lambda: pump(first) or len(out) >= 340, 20, "first member reads the rest")
    first.commit(asynchronous=False)
    first.close()
    same(acked, out)


@suite.scenario("group.resume", "OffsetCommit", "OffsetFetch", "JoinGroup", "SyncGroup")
def _():
    topic, group = create("resume", 2), PREFIX + "-resume"
    produce(topic, simple(50, "r"), 2)
    member = consumer(group)
    member.subscribe([topic])
    check(len(take(member, 50)) == 50, "first member did not read all")
    member.commit(offsets=[TopicPartition(topic, 0, 25, metadata="half"), TopicPartition(topic, 1, 20, metadata="caf\u00e9")],
                  asynchronous=False)
    member.close()
    more = produce(topic, simple(10, "s"), 2)
    member = consumer(group)
    member.subscribe([topic])
    back = take(member, 15)
    committed = member.committed([TopicPartition(topic, p) for p in range(2)], timeout=10)
    member.close()
    check(sorted((s.partition, s.offset) for s in back)
          == sorted([(p, o) for p, o, _ in more] + [(1, o) for o in range(20, 25)]), "resumed at the wrong offsets: %s", back)
    check([c.offset for c in committed] == [25, 20], "committed offsets %s", committed)
    check([c.metadata for c in committed] == ["half", "caf\u00e9"], "commit metadata %s", committed)


@suite.scenario("group.static", "JoinGroup", "SyncGroup", "DescribeGroups")
def _():
    topic, group = create("static", 2), PREFIX + "-static"
    produce(topic, simple(10, "t"), 2)
    generations = []
    for _round in range(2):
        member = consumer(group, **{"group.instance.id": "instance-1"})
        member.subscribe([topic])
        until(lambda: member.consume(1, 0.1) or len(member.assignment()) == 2, 30, "static member assigned")
        described = admin.describe_consumer_groups([group])[group].result(30)
        check([m.group_instance_id for m in described.members] == ["instance-1"], "members %s", described.members)
        generations.append(described.members[0].member_id)
        member.close()
    check(generations[0] != generations[1], "the restarted static member kept its member id")


@suite.scenario("offsets.list", "ListOffsets")
def _():
    topic = create("list", 2)
    produce(topic, simple(20, "l"), 2)
    parts = [TopicPartition(topic, p) for p in range(2)]

    def ask(spec):
        return [(r.offset, r.timestamp) for r in done(admin.list_offsets({p: spec for p in parts})).values()]

    check([o for o, _ in ask(OffsetSpec.earliest())] == [0, 0], "earliest")
    check([o for o, _ in ask(OffsetSpec.latest())] == [10, 10], "latest")
    check(ask(OffsetSpec.max_timestamp()) == [(9, BASE_MS + 18000), (9, BASE_MS + 19000)], "max timestamp: %s", ask(OffsetSpec.max_timestamp()))
    check(ask(OffsetSpec.for_timestamp(BASE_MS + 5500))[0] == (3, BASE_MS + 6000), "by time")
    source = consumer()
    check(source.get_watermark_offsets(parts[0], timeout=10) == (0, 10), "watermarks")
    source.close()


@suite.scenario("seek.time", "ListOffsets", "Fetch")
def _():
    topic = create("time", 1)
    acked = produce(topic, simple(30, "t"), 1)
    source = consumer()
    at = source.offsets_for_times([TopicPartition(topic, 0, BASE_MS + 10500)], timeout=10)
    check(at[0].offset == 11, "offset for a time between records: %s", at)
    past = source.offsets_for_times([TopicPartition(topic, 0, BASE_MS + 10 ** 9)], timeout=10)
    check(past[0].offset == -1, "offset for a time after the end: %s", past)
    source.assign(at)
    same(acked[11:], take(source, 19))
    source.close()


@suite.scenario("seek.offset", "Fetch")
def _():
    topic = create("seek", 1)
    acked = produce(topic, simple(30, "t"), 1)
    source = consumer()
    source.assign([TopicPartition(topic, 0, 5)])
    same(acked[5:], take(source, 25))
    source.seek(TopicPartition(topic, 0, 29))
    same(acked[29:], take(source, 1))
    source.seek(TopicPartition(topic, 0, 5000))
    same(acked, take(source, 30))  # Out of range: reset to the earliest.
    source.close()


@suite.scenario("longpoll", "Fetch")
def _():
    topic = create("longpoll", 1)
    source = consumer(**{"fetch.wait.max.ms": 5000})
    source.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    source.poll(1)
    sent, took = [], []
    for i in range(5):
        def later():
            time.sleep(0.3)
            produce(topic, simple(1, "p%d" % i), 1, **{"linger.ms": 0})
            sent.append(time.monotonic())
        thread = threading.Thread(target=later)
        thread.start()
        message = source.poll(20)
        arrived = time.monotonic()
        thread.join()
        check(message is not None, "no record within 20 s")
        seen(message)
        took.append(max(0, int((arrived - sent[-1]) * 1000)))
    source.close()
    return "record arrives %s ms after its acknowledgement" % sorted(took)[2]


@suite.scenario("admin.partitions", "CreatePartitions", "Metadata")
def _():
    topic = create("grow", 1)
    done(admin.create_partitions([NewPartitions(topic, 4)]))
    until(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 4, 20, "4 partitions")
    acked = produce(topic, simple(20, "x"), 4)
    same(acked, read_all(topic, 4, 20))
    try:
        done(admin.create_partitions([NewPartitions(topic, 2)]))
        check(False, "shrinking succeeded")
    except KafkaException as error:
        check(error.args[0].name() == "INVALID_PARTITIONS", "shrink: %s", error)


@suite.scenario("admin.configs", "DescribeConfigs", "IncrementalAlterConfigs", "AlterConfigs")
def _():
    topic = create("configs", 1, {"retention.ms": "3600000"})
    resource = ConfigResource(ResourceType.TOPIC, topic)

    def get(name):
        return done(admin.describe_configs([resource]))[resource][name]

    check(get("retention.ms").value == "3600000" and not get("retention.ms").is_default, "retention.ms set at creation")
    check(get("cleanup.policy").value == "delete" and get("cleanup.policy").is_default, "default cleanup.policy")
    for name in ("max.message.bytes", "compression.type", "message.timestamp.type", "min.insync.replicas", "segment.bytes",
                 "retention.bytes", "flush.ms", "unclean.leader.election.enable", "delete.retention.ms", "min.cleanable.dirty.ratio"):
        get(name)
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
        ConfigEntry("retention.ms", "7200000", incremental_operation=AlterConfigOpType.SET),
        ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.APPEND)])
    done(admin.incremental_alter_configs([change]))
    until(lambda: get("retention.ms").value == "7200000", 10, "retention.ms changed")
    check(set(get("cleanup.policy").value.split(",")) == {"delete", "compact"}, "append: %s", get("cleanup.policy").value)
    reset = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
        ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)])
    done(admin.incremental_alter_configs([reset]))
    until(lambda: get("retention.ms").value == "604800000", 10, "retention.ms back to its default")
    bad = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
        ConfigEntry("retention.ms", "soon", incremental_operation=AlterConfigOpType.SET)])
    try:
        done(admin.incremental_alter_configs([bad]))
        check(False, "retention.ms=soon was accepted")
    except KafkaException as error:
        check(error.args[0].name() == "INVALID_CONFIG", "bad value: %s", error)
    done(admin.alter_configs([ConfigResource(ResourceType.TOPIC, topic, set_config={"retention.bytes": "1000000"})]))
    until(lambda: get("retention.bytes").value == "1000000", 10, "AlterConfigs")
    check(get("cleanup.policy").value == "delete", "AlterConfigs must reset what it does not name")


@suite.scenario("admin.broker-configs", "DescribeConfigs")
def _():
    broker = str(sorted(admin.list_topics(timeout=10).brokers)[0])
    resource = ConfigResource(ResourceType.BROKER, broker)
    configs = done(admin.describe_configs([resource]))[resource]
    for name in ("num.partitions", "auto.create.topics.enable", "message.max.bytes", "log.retention.ms", "listeners"):
        check(name in configs, "broker config %s is missing", name)


@suite.scenario("admin.cluster", "DescribeCluster", "Metadata")
def _():
    cluster = admin.describe_cluster().result(30)
    check(cluster.cluster_id, "no cluster id")
    check(cluster.controller.id in [n.id for n in cluster.nodes], "the controller %s is not a listed broker", cluster.controller)
    meta = admin.list_topics(timeout=10)
    check(meta.cluster_id == cluster.cluster_id, "Metadata and DescribeCluster name different clusters")


@suite.scenario("admin.topics", "Metadata")
def _():
    topic = create("described", 2)
    from confluent_kafka import TopicCollection
    described = admin.describe_topics(TopicCollection([topic]))[topic].result(30)
    check(len(described.partitions) == 2 and described.partitions[0].leader is not None, "described %s", described)
    check(str(described.topic_id) not in ("", "AAAAAAAAAAAAAAAAAAAAAA"), "the topic id is zero")


@suite.scenario("admin.groups", "ListGroups", "DescribeGroups", "DeleteGroups")
def _():
    topic, group = create("groups", 1), PREFIX + "-groups"
    produce(topic, simple(5, "g"), 1)
    member = consumer(group, **{"client.id": "the-client"})
    member.subscribe([topic])
    check(len(take(member, 5)) == 5, "records")
    member.commit(asynchronous=False)
    listed = [g.group_id for g in admin.list_consumer_groups().result(30).valid]
    check(group in listed, "group is not listed: %s", listed)
    described = admin.describe_consumer_groups([group])[group].result(30)
    check(described.state.name == "STABLE" and len(described.members) == 1, "described: %s", described.state)
    check(described.members[0].client_id == "the-client", "client id %s", described.members[0].client_id)
    check([(t.topic, t.partition) for t in described.members[0].assignment.topic_partitions] == [(topic, 0)], "assignment")
    try:
        admin.delete_consumer_groups([group])[group].result(30)
        check(False, "a group with members was deleted")
    except KafkaException as error:
        check(error.args[0].name() == "NON_EMPTY_GROUP", "delete of a live group: %s", error)
    member.close()
    until(lambda: admin.describe_consumer_groups([group])[group].result(30).state.name == "EMPTY", 20, "group empty")
    admin.delete_consumer_groups([group])[group].result(30)
    listed = [g.group_id for g in admin.list_consumer_groups().result(30).valid]
    check(group not in listed, "the deleted group is still listed")


@suite.scenario("admin.group-offsets", "OffsetFetch", "OffsetCommit")
def _():
    topic, group = create("group-offsets", 2), PREFIX + "-group-offsets"
    produce(topic, simple(20, "g"), 2)
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 4), TopicPartition(topic, 1, 7)])
    admin.alter_consumer_group_offsets([wanted])[group].result(30)
    back = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(30)
    check(sorted((t.partition, t.offset) for t in back.topic_partitions) == [(0, 4), (1, 7)], "offsets %s", back.topic_partitions)


@suite.scenario("admin.delete-records", "DeleteRecords", "ListOffsets")
def _():
    topic = create("delete-records", 1)
    acked = produce(topic, simple(20, "d"), 1)
    answer = done(admin.delete_records([TopicPartition(topic, 0, 8)]))
    check([r.low_watermark for r in answer.values()] == [8], "low watermark %s", answer)
    source = consumer()
    until(lambda: source.get_watermark_offsets(TopicPartition(topic, 0), timeout=10) == (8, 20), 10, "log start 8")
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
    done(admin.delete_topics([topic]))
    until(lambda: topic not in admin.list_topics(timeout=10).topics, 20, "topic gone")
    create("delete", 1)
    acked = produce(topic, simple(3, "e"), 1)
    check(sorted(o for _, o, _ in acked) == [0, 1, 2], "a topic made again starts at 0: %s", acked)
    same(acked, read_all(topic, 1, 3))


suite.main()
