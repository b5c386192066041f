"""The Kafka command-line tools, each started as a user would start it.

The class path comes from KAFKA_TOOLS_CLASSPATH; the jars hold the tools' version.
"""

import os
import re
import subprocess
import tempfile
import time

from scenario import COMPACT, COMPACT_SECONDS, Suite, arguments, check, compacted, superseded, tick, until

BOOTSTRAP, PREFIX = arguments()
CLASSPATH = os.environ.get("KAFKA_TOOLS_CLASSPATH", "")
# A class archive that makes the tools start faster; it may be missing.
ARCHIVE = os.environ.get("KAFKA_TOOLS_ARCHIVE", "")
SERVER = ["--bootstrap-server", BOOTSTRAP]


def version():
    found = [re.search(r"kafka-tools-([0-9.]+)\.jar$", name) for part in CLASSPATH.split(":")
             for name in (os.listdir(part[:-1]) if part.endswith("*") and os.path.isdir(part[:-1]) else [part])]
    return next((f.group(1) for f in found if f), "missing")


suite = Suite("kafka-tools", version())


def command(name, *args):
    # The first compiler tier only: a tool runs for a second, and several run on a small machine.
    archive = ["-XX:SharedArchiveFile=" + ARCHIVE] if os.path.exists(ARCHIVE) else []
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", *archive,
            # An archive that does not fit is only slower; the JVM must not say so among the records.
            "-Xlog:disable", "-Xlog:all=error:stderr", "-Xmx256m", "-cp", CLASSPATH,
            "org.apache.kafka.tools." + name, *args]


def tool(name, *args, data="", fails=False, timeout=60, errors=True):
    """Runs a tool to its end; everything that it printed, or without `errors` its standard output only."""
    result = subprocess.run(command(name, *args), input=data, capture_output=True, text=True, timeout=timeout)
    text = result.stdout + "\n".join(l for l in result.stderr.splitlines() if "SLF4J" not in l)
    check((result.returncode != 0) == fails, "%s %s: exit code %d: %s", name, " ".join(args), result.returncode, text[-400:])
    return text if errors else result.stdout


def create(name, partitions=1, *args):
    topic = "%s-%s" % (PREFIX, name)
    tool("TopicCommand", *SERVER, "--create", "--topic", topic, "--partitions", str(partitions), *args)
    return topic


def produce(topic, lines, *args):
    tool("ConsoleProducer", *SERVER, "--topic", topic, *args, data="".join(l + "\n" for l in lines))


def consume(topic, count, *args, timeout_ms=15000):
    text = tool("consumer.ConsoleConsumer", *SERVER, "--topic", topic, "--max-messages", str(count),
                "--timeout-ms", str(timeout_ms), *args, errors=False)
    return text.splitlines()


@suite.scenario("topic.create", "ApiVersions", "Metadata", "CreateTopics", "DescribeTopicPartitions", "DescribeConfigs",
                "ListPartitionReassignments")
def _():
    topic = create("create", 3, "--config", "cleanup.policy=compact", "--replication-factor", "1")
    text = tool("TopicCommand", *SERVER, "--describe", "--topic", topic)
    check("PartitionCount: 3" in text and "cleanup.policy=compact" in text and text.count("Leader: ") == 3, "describe: %s", text)
    check(topic in tool("TopicCommand", *SERVER, "--list").split(), "the topic is not listed")
    text = tool("TopicCommand", *SERVER, "--create", "--topic", topic, "--partitions", "3", fails=True)
    check("already exists" in text, "creating it twice: %s", text)


@suite.scenario("api.versions", "ApiVersions", "DescribeCluster")
def _():
    text = tool("BrokerApiVersionsCommand", *SERVER)
    for api in ("Produce(0)", "Fetch(1)", "ListOffsets(2)", "Metadata(3)", "JoinGroup(11)", "InitProducerId(22)"):
        check(re.search(re.escape(api) + r": [^\n]*usable", text) is not None, "%s is not usable: %s", api, text[:500])


@suite.scenario("produce.lz4", "InitProducerId", "Produce", "Fetch", "ListOffsets")
def _():
    topic = create("console")
    sent = ["h1:%d,h1:again\tkey-%d\tvalue %d \u00e9" % (i, i, i) for i in range(50)]
    produce(topic, sent, "--reader-property", "parse.key=true", "--reader-property", "parse.headers=true", "--compression-codec", "lz4")
    back = consume(topic, 50, "--from-beginning", "--formatter-property", "print.key=true",
                   "--formatter-property", "print.headers=true")
    check(back == sent, "consumed differs: %s", back[:3])


@suite.scenario("produce.performance", "InitProducerId", "Produce")
def _():
    topic = create("performance", 3)
    text = tool("ProducerPerformance", "--topic", topic, "--num-records", "20000", "--record-size", "200", "--throughput", "-1",
                "--bootstrap-server", BOOTSTRAP, "--command-property", "acks=all", "--command-property", "compression.type=zstd")
    found = re.search(r"20000 records sent, .*?, ([0-9.]+) ms avg latency", text)
    check(found is not None, "no summary: %s", text)
    offsets = tool("GetOffsetShell", *SERVER, "--topic", topic)
    check(sum(int(l.rsplit(":", 1)[1]) for l in offsets.split()) == 20000, "end offsets: %s", offsets)
    text = tool("ConsumerPerformance", *SERVER, "--topic", topic, "--num-records", "20000", "--timeout", "20000")
    check(re.search(r", 20000, ", text) is not None, "consumer: %s", text)
    return "average latency %s ms" % found.group(1)


@suite.scenario("offsets.list", "ListOffsets")
def _():
    topic = create("offsets", 2)
    produce(topic, ["a", "b", "c"])
    last = tool("GetOffsetShell", *SERVER, "--topic", topic, "--time", "latest").split()
    check(sum(int(l.rsplit(":", 1)[1]) for l in last) == 3 and len(last) == 2, "latest: %s", last)
    first = tool("GetOffsetShell", *SERVER, "--topic", topic, "--time", "earliest").split()
    check(first == [topic + ":0:0", topic + ":1:0"], "earliest: %s", first)
    newest = tool("GetOffsetShell", *SERVER, "--topic", topic, "--time", "max-timestamp")
    check(topic in newest, "max-timestamp: %s", newest)


@suite.scenario("group.resume", "FindCoordinator", "JoinGroup", "SyncGroup", "OffsetCommit", "OffsetFetch")
def _():
    topic, group = create("resume"), PREFIX + "-resume"
    produce(topic, ["a-%d" % i for i in range(10)])
    check(consume(topic, 10, "--group", group, "--from-beginning") == ["a-%d" % i for i in range(10)], "first read")
    produce(topic, ["b-%d" % i for i in range(5)])
    check(consume(topic, 5, "--group", group) == ["b-%d" % i for i in range(5)], "resumed read")


@suite.scenario("admin.groups", "ListGroups", "DescribeGroups", "DeleteGroups", "OffsetFetch", "OffsetCommit", "OffsetDelete")
def _():
    topic, group = create("groups"), PREFIX + "-groups"
    produce(topic, ["g-%d" % i for i in range(10)])
    with tempfile.TemporaryFile() as out:
        member = subprocess.Popen(command("consumer.ConsoleConsumer", *SERVER, "--topic", topic, "--group", group, "--from-beginning"),
                                  stdout=out, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        try:
            def stable():
                text = tool("consumer.group.ConsumerGroupCommand", *SERVER, "--describe", "--group", group, "--state")
                return "Stable" in text and text
            until(stable, 40, "a stable group")
            text = tool("consumer.group.ConsumerGroupCommand", *SERVER, "--describe", "--group", group, "--members", "--verbose")
            check(topic in text, "members: %s", text)
        finally:
            member.terminate()
            member.wait(30)
    check(group in tool("consumer.group.ConsumerGroupCommand", *SERVER, "--list").split(), "the group is not listed")
    tool("consumer.group.ConsumerGroupCommand", *SERVER, "--group", group, "--topic", topic, "--reset-offsets", "--to-offset", "4",
         "--execute")
    text = tool("consumer.group.ConsumerGroupCommand", *SERVER, "--describe", "--group", group)
    row = next(l.split() for l in text.splitlines() if l.split()[:2] == [group, topic])
    check(row[3:6] == ["4", "10", "6"], "offset, end and lag: %s", row)
    tool("consumer.group.ConsumerGroupCommand", *SERVER, "--group", group, "--delete-offsets", "--topic", topic)
    tool("consumer.group.ConsumerGroupCommand", *SERVER, "--delete", "--group", group)
    check(group not in tool("consumer.group.ConsumerGroupCommand", *SERVER, "--list").split(), "the deleted group is listed")


@suite.scenario("admin.configs", "DescribeConfigs", "IncrementalAlterConfigs")
def _():
    topic = create("configs")

    def configs(*args):
        # ConfigCommand lives in Kafka's core and not with the other tools.
        result = subprocess.run([a.replace("org.apache.kafka.tools.ConfigCommand", "kafka.admin.ConfigCommand")
                                 for a in command("ConfigCommand", *SERVER, *args)], capture_output=True, text=True, timeout=60)
        check(result.returncode == 0, "ConfigCommand %s: %s", args, result.stdout + result.stderr)
        return result.stdout
    entity = ["--entity-type", "topics", "--entity-name", topic]
    configs(*entity, "--alter", "--add-config", "retention.ms=7200000,cleanup.policy=[delete,compact]")
    text = configs(*entity, "--describe")
    check("retention.ms=7200000" in text and "cleanup.policy=delete,compact" in text, "after --add-config: %s", text)
    configs(*entity, "--alter", "--delete-config", "retention.ms")
    text = configs(*entity, "--describe")
    check("retention.ms=" not in text and "cleanup.policy=delete,compact" in text, "after --delete-config: %s", text)
    text = configs("--entity-type", "brokers", "--describe", "--all", "--entity-name",
                   re.search(r"Leader: (\d+)", tool("TopicCommand", *SERVER, "--describe", "--topic", topic)).group(1))
    check("num.partitions=" in text and "log.retention.ms=" in text, "broker configs: %s", text[:300])


@suite.scenario("admin.partitions", "CreatePartitions")
def _():
    topic = create("grow")
    tool("TopicCommand", *SERVER, "--alter", "--topic", topic, "--partitions", "4")
    until(lambda: "PartitionCount: 4" in tool("TopicCommand", *SERVER, "--describe", "--topic", topic), 20, "4 partitions")


@suite.scenario("admin.delete-records", "DeleteRecords")
def _():
    topic = create("delete-records")
    produce(topic, ["d-%d" % i for i in range(10)])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write('{"version": 1, "partitions": [{"topic": "%s", "partition": 0, "offset": 6}]}' % topic)
        file.flush()
        text = tool("DeleteRecordsCommand", *SERVER, "--offset-json-file", file.name)
    check("low_watermark: 6" in text, "answer: %s", text)
    check(consume(topic, 4, "--from-beginning") == ["d-%d" % i for i in range(6, 10)], "records left")


@suite.scenario("admin.log-dirs", "DescribeLogDirs")
def _():
    topic = create("log-dirs")
    produce(topic, ["x"])
    text = tool("LogDirsCommand", *SERVER, "--describe", "--topic-list", topic)
    check('"partition":"%s-0"' % topic in text, "log dirs: %s", text)


@suite.scenario("admin.producers", "DescribeProducers")
def _():
    topic = create("producers")
    produce(topic, ["x", "y"])
    text = tool("TransactionsCommand", *SERVER, "describe-producers", "--topic", topic, "--partition", "0")
    rows = [l.split() for l in text.splitlines() if re.match(r"\d+\s", l)]
    check(len(rows) == 1 and rows[0][1] == "0", "producers: %s", text)


@suite.scenario("topic.compact", "CreateTopics", "Produce", "Fetch")
def _():
    topic, began = create("compact", 1, *[word for pair in COMPACT.items() for word in ("--config", "%s=%s" % pair)]), time.monotonic()

    def send(batch):
        produce(topic, ["%s\t%s" % (r.key.decode(), "null" if r.value is None else r.value.decode()) for r in batch],
                "--reader-property", "parse.key=true", "--reader-property", "null.marker=null")

    def rows():
        # Without a count the consumer ends when nothing has come for a while.
        text = tool("consumer.ConsoleConsumer", *SERVER, "--topic", topic, "--timeout-ms", "3000", "--from-beginning",
                    "--formatter-property", "print.key=true", "--formatter-property", "print.offset=true", errors=False)
        for line in text.splitlines():
            found = re.match(r"Offset:(\d+)\t([^\t]*)\t(.*)$", line)
            if found:
                value = None if found.group(3) == "null" else found.group(3).encode()
                yield int(found.group(1)), found.group(2).encode(), value

    def done():
        newest = tick(int(time.monotonic() - began))
        send([newest])
        found = list(rows())
        check(found and found[-1][1:] == (newest.key, newest.value), "the newest record is not the last: %s", found[-1:])
        return compacted(found)
    send(superseded())
    until(done, COMPACT_SECONDS, "compaction", pause=1)
    return "compacted after %d s" % (time.monotonic() - began)


@suite.scenario("topic.delete", "DeleteTopics")
def _():
    topic = create("delete")
    tool("TopicCommand", *SERVER, "--delete", "--topic", topic)
    until(lambda: topic not in tool("TopicCommand", *SERVER, "--list").split(), 20, "topic gone")


suite.main()
