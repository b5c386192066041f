"""aiokafka."""

import asyncio
import logging
import time

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidPartitionsError, MessageSizeTooLargeError, TopicAlreadyExistsError
from aiokafka.structs import OffsetAndMetadata

from scenario import BASE_MS, COMPACT, COMPACT_SECONDS, Record, Seen, Suite, arguments, check, compacted, records, same, superseded, tick

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
BOOTSTRAP, PREFIX = arguments()
suite = Suite("aiokafka", aiokafka.__version__)


def scenario(name, *apis):
    """Registers a coroutine function; each run has its own loop and its own admin client."""
    def register(function):
        def run():
            async def body():
                admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
                await admin.start()
                try:
                    return await asyncio.wait_for(function(admin), 90)
                finally:
                    await admin.close()
            return asyncio.run(body())
        suite.scenario(name, *apis)(run)
        return function
    return register


async def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        check(time.monotonic() < end, "%s did not happen within %s s", what, seconds)
        await asyncio.sleep(0.1)


async def create(admin, name, partitions=3, configs=None):
    topic = "%s-%s" % (PREFIX, name)
    answer = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs or {})])
    for error in answer.topic_errors:
        if error[1]:
            raise aiokafka.errors.for_code(error[1])(str(error))

    async def visible():
        found = await admin.describe_topics([topic])
        return found and found[0]["error_code"] == 0 and len(found[0]["partitions"]) == partitions
    await until(visible, 20, "topic %s visible" % topic)
    return topic


async def produce(topic, batch, partitions=3, **config):
    """Produces; returns (partition, offset, Record) as acknowledged."""
    config = {"acks": "all", "linger_ms": 20, **config}
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, max_request_size=1048576, **config)
    await producer.start()
    try:
        sent = [(r, await producer.send(topic, key=r.key, value=r.value, headers=r.headers, partition=i % partitions,
                                        timestamp_ms=r.timestamp)) for i, r in enumerate(batch)]
        acked = []
        for record, future in sent:
            meta = await asyncio.wait_for(future, 30)
            if meta is not None:
                acked.append((meta.partition, meta.offset, record))
        return acked
    finally:
        await producer.stop()


async def consumer(*topics, group=None, **config):
    source = AIOKafkaConsumer(*topics, bootstrap_servers=BOOTSTRAP, group_id=group, enable_auto_commit=False,
                              auto_offset_reset="earliest", session_timeout_ms=10000, heartbeat_interval_ms=500, **config)
    await source.start()
    return source


async def polled(source, timeout_ms=200):
    return [Seen(m.partition, m.offset, m.key, m.value, list(m.headers), m.timestamp)
            for batch in (await source.getmany(timeout_ms=timeout_ms)).values() for m in batch]


async def take(source, count, seconds=30, idle=0.5):
    out, end = [], time.monotonic() + seconds
    while len(out) < count and time.monotonic() < end:
        out += await polled(source)
    end = time.monotonic() + idle
    while time.monotonic() < end:
        out += await polled(source, 100)
    return out


async def read_all(topic, partitions, count):
    source = await consumer()
    source.assign([TopicPartition(topic, p) for p in range(partitions)])
    await source.seek_to_beginning()
    try:
        return await take(source, count)
    finally:
        await source.stop()


def simple(count, tag):
    return [Record(b"k%d" % i, b"%s-%d" % (tag.encode(), i), [], BASE_MS + i * 1000) for i in range(count)]


@scenario("topic.create", "ApiVersions", "Metadata", "CreateTopics")
async def _(admin):
    topic = await create(admin, "create", 3, {"cleanup.policy": "compact"})
    try:
        await create(admin, "create")
        check(False, "creating the topic twice succeeded")
    except TopicAlreadyExistsError:
        pass
    await admin.create_topics([NewTopic(topic + "-dry", 1, 1)], validate_only=True)
    check(topic + "-dry" not in await admin.list_topics(), "validate_only created the topic")


def codec(name):
    async def run(admin):
        topic = await create(admin, "codec-" + name)
        acked = await produce(topic, records(both_null=False), compression_type=None if name == "none" else name)
        same(acked, await read_all(topic, 3, len(acked)))
    return run


for _name in ("none", "gzip", "snappy", "lz4", "zstd"):
    scenario("produce." + _name, "Produce", "Fetch", "ListOffsets", "Metadata")(codec(_name))


@scenario("topic.auto-create", "Metadata", "Produce")
async def _(admin):
    topic = PREFIX + "-auto"
    same(await produce(topic, simple(3, "a"), 1), await read_all(topic, 1, 3))


@scenario("produce.idempotent", "InitProducerId", "Produce")
async def _(admin):
    topic = await create(admin, "idempotent")
    acked = await produce(topic, records(both_null=False) + simple(500, "i"), enable_idempotence=True, max_batch_size=1000000)
    same(acked, await read_all(topic, 3, len(acked)))


@scenario("produce.acks", "Produce")
async def _(admin):
    topic = await create(admin, "acks", 1)
    acked = await produce(topic, simple(20, "one"), 1, acks=1)
    await produce(topic, simple(20, "zero"), 1, acks=0)
    back = await read_all(topic, 1, 40)
    check([s.value for s in back] == [b"one-%d" % i for i in range(20)] + [b"zero-%d" % i for i in range(20)],
          "acks=0 after acks=1: wrong order")
    same(acked, back[:20])


@scenario("produce.too-large", "Produce")
async def _(admin):
    topic = await create(admin, "too-large", 1, {"max.message.bytes": "1000"})
    try:
        await produce(topic, [Record(b"k", b"x" * 5000, [], BASE_MS)], 1)
        check(False, "a record above max.message.bytes was accepted")
    except MessageSizeTooLargeError:
        pass
    check(await read_all(topic, 1, 0) == [], "the rejected record is there")


@scenario("group.rebalance", "FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "OffsetCommit", "OffsetFetch")
async def _(admin):
    topic, group = await create(admin, "group", 4), PREFIX + "-group"
    acked, out = await produce(topic, simple(200, "g"), 4), []

    class Commit(ConsumerRebalanceListener):
        """Commits before partitions move, as an application would."""
        def __init__(self, source):
            self.source = source

        async def on_partitions_revoked(self, revoked):
            if revoked:
                await self.source.commit()

        async def on_partitions_assigned(self, assigned):
            pass

    async def member():
        source = await consumer(group=group)
        source.subscribe([topic], listener=Commit(source))
        return source

    async def pump(*members):
        for one in members:
            out.extend(await polled(one, 100))

    async def shape(*members):
        await pump(*members)
        return [len(m.assignment()) for m in members]

    async def owned(wanted, *members):
        return await shape(*members) == wanted

    async def read(count, *members):
        await pump(*members)
        return len(out) >= count

    first = await member()
    await until(lambda: owned([4], first), 30, "first member owns 4 partitions")
    await until(lambda: read(200, first), 20, "first member reads all")
    await first.commit()
    second = await member()
    await until(lambda: owned([2, 2], first, second), 30, "two members own 2 partitions each")
    acked += await produce(topic, simple(100, "h"), 4)
    await until(lambda: read(300, first, second), 20, "two members read all")
    await second.commit()
    await second.stop()
    await until(lambda: owned([4], first), 30, "first member owns 4 partitions again")
    acked += await produce(topic, simple(40, "i"), 4)
    await until(lambda: read(340, first), 20, "first member reads the rest")
    await first.commit()
    await first.stop()
    same(acked, list({(s.partition, s.offset): s for s in out}.values()))


@scenario("group.resume", "OffsetCommit", "OffsetFetch", "JoinGroup", "SyncGroup")
async def _(admin):
    topic, group = await create(admin, "resume", 2), PREFIX + "-resume"
    await produce(topic, simple(50, "r"), 2)
    member = await consumer(topic, group=group)
    check(len(await take(member, 50)) == 50, "first member did not read all")
    await member.commit({TopicPartition(topic, 0): OffsetAndMetadata(25, "half"),
                         TopicPartition(topic, 1): OffsetAndMetadata(20, "caf\u00e9")})
    await member.stop()
    more = await produce(topic, simple(10, "s"), 2)
    member = await consumer(topic, group=group)
    back = await take(member, 15)
    committed = [await member.committed(TopicPartition(topic, p)) for p in range(2)]
    await member.stop()
    check(sorted((s.partition, s.offset) for s in back)
          == sorted([(p, o) for p, o, _ in more] + [(1, o) for o in range(20, 25)]), "resumed at the wrong offsets: %s", back)
    check(committed == [25, 20], "committed %s", committed)
    stored = await admin.list_consumer_group_offsets(group)
    check([stored[TopicPartition(topic, p)].metadata for p in range(2)] == ["half", "caf\u00e9"], "metadata %s", stored)


@scenario("group.static", "JoinGroup", "SyncGroup")
async def _(admin):
    topic, group = await create(admin, "static", 2), PREFIX + "-static"
    await produce(topic, simple(10, "t"), 2)
    for _round in range(2):
        member = await consumer(topic, group=group, group_instance_id="instance-1")
        expected = 10 if _round == 0 else 0
        check(len(await take(member, expected, idle=1)) == expected, "round %d read what it had committed", _round)
        check(len(member.assignment()) == 2, "round %d owns %s", _round, member.assignment())
        await member.commit()
        await member.stop()


@scenario("offsets.list", "ListOffsets")
async def _(admin):
    topic = await create(admin, "list", 2)
    await produce(topic, simple(20, "l"), 2)
    parts = [TopicPartition(topic, p) for p in range(2)]
    source = await consumer(topic)
    check(await source.beginning_offsets(parts) == {parts[0]: 0, parts[1]: 0}, "earliest")
    check(await source.end_offsets(parts) == {parts[0]: 10, parts[1]: 10}, "latest")
    await source.stop()


@scenario("seek.time", "ListOffsets", "Fetch")
async def _(admin):
    topic = await create(admin, "time", 1)
    acked = await produce(topic, simple(30, "t"), 1)
    part, source = TopicPartition(topic, 0), await consumer()
    source.assign([part])
    at = (await source.offsets_for_times({part: BASE_MS + 10500}))[part]
    check((at.offset, at.timestamp) == (11, BASE_MS + 11000), "offset for a time between records: %s", at)
    check((await source.offsets_for_times({part: BASE_MS + 10 ** 9}))[part] is None, "a time after the end has an offset")
    source.seek(part, at.offset)
    same(acked[11:], await take(source, 19))
    await source.stop()


@scenario("seek.offset", "Fetch")
async def _(admin):
    topic = await create(admin, "seek", 1)
    acked = await produce(topic, simple(30, "t"), 1)
    part, source = TopicPartition(topic, 0), await consumer()
    source.assign([part])
    for offset, expected in ((5, acked[5:]), (29, acked[29:]), (5000, acked)):
        source.seek(part, offset)
        same(expected, await take(source, len(expected)))
    await source.stop()


@scenario("longpoll", "Fetch")
async def _(admin):
    topic = await create(admin, "longpoll", 1)
    source = await consumer(fetch_max_wait_ms=5000)
    source.assign([TopicPartition(topic, 0)])
    await polled(source)
    took = []

    async def later():
        await asyncio.sleep(0.3)
        await produce(topic, simple(1, "p"), 1, linger_ms=0)
        return time.monotonic()

    for _round in range(5):
        task = asyncio.create_task(later())
        await asyncio.wait_for(source.getone(), 20)
        arrived = time.monotonic()
        took.append(max(0, int((arrived - await task) * 1000)))
    await source.stop()
    return "record arrives %s ms after the producer closed" % sorted(took)[2]


@scenario("admin.partitions", "CreatePartitions", "Metadata")
async def _(admin):
    topic = await create(admin, "grow", 1)
    await admin.create_partitions({topic: NewPartitions(4)})

    async def grown():
        return len((await admin.describe_topics([topic]))[0]["partitions"]) == 4
    await until(grown, 20, "4 partitions")
    same(await produce(topic, simple(20, "x"), 4), await read_all(topic, 4, 20))
    try:
        await admin.create_partitions({topic: NewPartitions(2)})
        check(False, "shrinking succeeded")
    except InvalidPartitionsError:
        pass


@scenario("admin.configs", "DescribeConfigs", "AlterConfigs")
async def _(admin):
    topic = await create(admin, "configs", 1, {"retention.ms": "3600000"})

    async def get():
        answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        return {entry[0]: entry[1] for entry in answer[0].resources[0][4]}

    before = await get()
    check((before["retention.ms"], before["cleanup.policy"]) == ("3600000", "delete"), "configs %s", before)
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.bytes": "1000000"})])

    async def changed():
        return (await get())["retention.bytes"] == "1000000"
    await until(changed, 10, "AlterConfigs")
    check((await get())["retention.ms"] == "604800000", "AlterConfigs must reset what it does not name")


@scenario("admin.cluster", "Metadata")
async def _(admin):
    cluster = await admin.describe_cluster()
    check(cluster["cluster_id"], "no cluster id: %s", cluster)
    check(cluster["controller_id"] in [b["node_id"] for b in cluster["brokers"]], "the controller is not a listed broker: %s", cluster)


@scenario("admin.groups", "ListGroups", "DescribeGroups")
async def _(admin):
    topic, group = await create(admin, "groups", 1), PREFIX + "-groups"
    await produce(topic, simple(5, "g"), 1)
    member = await consumer(topic, group=group, client_id="the-client")
    check(len(await take(member, 5)) == 5, "records")
    await member.commit()
    check(group in [g[0] for g in await admin.list_consumer_groups()], "group is not listed")
    described = (await admin.describe_consumer_groups([group]))[0].groups[0]
    check(described[1] == group and described[2] == "Stable" and described[5][0][1 if len(described[5][0]) == 5 else 2] == "the-client",
          "described %s", described)
    await member.stop()


@scenario("admin.group-offsets", "OffsetFetch")
async def _(admin):
    topic, group = await create(admin, "group-offsets", 1), PREFIX + "-group-offsets"
    await produce(topic, simple(5, "g"), 1)
    member = await consumer(topic, group=group)
    check(len(await take(member, 5)) == 5, "records")
    await member.commit()
    await member.stop()
    stored = await admin.list_consumer_group_offsets(group)
    check(stored[TopicPartition(topic, 0)].offset == 5, "offsets %s", stored)


@scenario("admin.delete-records", "DeleteRecords", "ListOffsets")
async def _(admin):
    topic = await create(admin, "delete-records", 1)
    acked = await produce(topic, simple(20, "d"), 1)
    part = TopicPartition(topic, 0)
    await admin.delete_records({part: RecordsToDelete(8)})
    source = await consumer(topic)

    async def moved():
        return (await source.beginning_offsets([part]))[part] == 8
    await until(moved, 10, "log start 8")
    await source.stop()
    same(acked[8:], await read_all(topic, 1, 12))


@scenario("topic.compact", "CreateTopics", "Produce", "Fetch")
async def _(admin):
    topic, began = await create(admin, "compact", 1, COMPACT), time.monotonic()
    await produce(topic, superseded(), 1)

    async def read_to(offset):
        source, out = await consumer(), []
        source.assign([TopicPartition(topic, 0)])
        await source.seek_to_beginning()

        async def there():
            out.extend(await polled(source))
            return out and out[-1].offset >= offset
        try:
            await until(there, 30, "the end")
        finally:
            await source.stop()
        return out

    async def done():
        await asyncio.sleep(1)
        [(_, offset, _)] = await produce(topic, [tick(int(time.monotonic() - began))], 1)
        return compacted([(s.offset, s.key, s.value) for s in await read_to(offset)])
    await until(done, COMPACT_SECONDS, "compaction")
    return "compacted after %d s" % (time.monotonic() - began)


@scenario("topic.delete", "DeleteTopics", "Metadata")
async def _(admin):
    topic = await create(admin, "delete", 2)
    await produce(topic, simple(10, "d"), 2)
    await admin.delete_topics([topic])

    async def gone():
        return topic not in await admin.list_topics()
    await until(gone, 20, "topic gone")
    await create(admin, "delete", 1)
    acked = await produce(topic, simple(3, "e"), 1)
    check(sorted(o for _, o, _ in acked) == [0, 1, 2], "a topic made again starts at 0: %s", acked)
    same(acked, await read_all(topic, 1, 3))


suite.main()
