"""kcat, driven as a program."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time

from scenario import BASE_MS, Record, Seen, Suite, arguments, big, check, same, until

BOOTSTRAP, PREFIX = arguments()


def version():
    try:
        text = subprocess.run(["kcat", "-V"], capture_output=True, text=True, timeout=20).stdout
    except OSError:
        return "missing"
    found = re.search(r"Version (\S+) .*librdkafka (\S+)", text)
    return "%s (librdkafka %s)" % found.groups() if found else "unknown"


suite = Suite("kcat", version())


def kcat(*args, data=b"", timeout=40):
    """Runs kcat to its end; (standard output, standard error)."""
    result = subprocess.run(["kcat", "-b", BOOTSTRAP, *args], input=data, capture_output=True, timeout=timeout)
    err = result.stderr.decode("utf-8", "replace")
    check(result.returncode == 0, "kcat %s: exit code %d: %s", " ".join(args), result.returncode, err.strip()[-300:])
    return result.stdout, err


def topic(name):
    """A topic of one partition, made by asking for its metadata: kcat has no other way to create one."""
    full = "%s-%s" % (PREFIX, name)

    def leader():
        found = json.loads(kcat("-L", "-J", "-t", full)[0])["topics"][0]
        return not found.get("error") and found["partitions"] and found["partitions"][0]["leader"] >= 0
    until(leader, 20, "topic %s" % full)
    return full


def delivered(err):
    return [(int(p), int(o)) for p, o in re.findall(r"[Mm]essage delivered to partition (\d+) \(offset (\d+)\)", err)]


def produce(name, batch, *args):
    """Produces with few runs: kcat sets headers per run, and reads a large value from a file."""
    acked = []
    for record in batch:
        extra = [a for h, v in record.headers for a in ("-H", "%s=%s" % (h, v.decode()))]
        if record.value is not None and (len(record.value) > 1000 or b"\n" in record.value):
            with tempfile.NamedTemporaryFile() as file:
                file.write(record.value)
                file.flush()
                key = [] if record.key is None else ["-k", record.key.decode()]
                _, err = kcat("-P", "-t", name, "-p", "0", "-vv", *key, *extra, *args, file.name)
        else:
            line = (record.key or b"") + b"\t" + (record.value or b"") + b"\n"
            _, err = kcat("-P", "-t", name, "-p", "0", "-vv", "-K", "\t", "-Z", *extra, *args, data=line)
        where = delivered(err)
        check(len(where) == 1, "one delivery report expected: %s", err[-300:])
        acked.append((where[0][0], where[0][1], record))
    return acked


def lines(name, count, tag, *args):
    """Produces `count` small records in one run."""
    batch = [Record(b"k%d" % i, b"%s-%d" % (tag.encode(), i), [], None) for i in range(count)]
    _, err = kcat("-P", "-t", name, "-p", "0", "-vv", "-K", "\t", *args, data=b"".join(r.key + b"\t" + r.value + b"\n" for r in batch))
    offsets = sorted(delivered(err))
    check(len(offsets) == count, "%d of %d delivered", len(offsets), count)
    return [(p, o, r) for (p, o), r in zip(offsets, batch)]


FORMAT = "%t %p %o %T %K %S %h\n%k%s"


def parse(data):
    out, at = [], 0
    while at < len(data):
        end = data.index(b"\n", at)
        head = data[at:end].decode().split(" ", 6)
        at = end + 1
        key_length, value_length = int(head[4]), int(head[5])
        key = None if key_length < 0 else data[at:at + key_length]
        at += max(key_length, 0)
        value = None if value_length < 0 else data[at:at + value_length]
        at += max(value_length, 0)
        headers = [(h.split("=", 1)[0], h.split("=", 1)[1].encode()) for h in head[6].split(",")] if head[6] else []
        out.append((head[0], Seen(int(head[1]), int(head[2]), key, value, headers, int(head[3]))))
    return out


def read(name, *args):
    return [s for _, s in parse(kcat("-C", "-t", name, "-e", "-q", "-f", FORMAT, *args)[0])]


EDGE = [
    Record(b"plain", b"value", [], None),
    Record(None, b"no key", [], None),
    Record(b"tombstone", None, [], None),
    Record(None, None, [], None),
    Record(b"headers", b"with headers", [("h", b"1"), ("h", b"2"), ("empty", b""), ("h", b"1")], None),
    Record(b"big", big(), [("size", b"900000")], None),
    Record(b"text", b"the quick brown fox " * 5000, [], None),
]


@suite.scenario("admin.cluster", "ApiVersions", "Metadata")
def _():
    answer = json.loads(kcat("-L", "-J")[0])
    check(len(answer["brokers"]) >= 1 and answer["controllerid"] in [b["id"] for b in answer["brokers"]],
          "the controller is not a listed broker: %s", answer["brokers"])


@suite.scenario("topic.auto-create", "Metadata", "Produce")
def _():
    name = PREFIX + "-auto"
    same(lines(name, 3, "auto"), read(name, "-o", "beginning"), timestamps=False)


def codec(kind):
    def run():
        name = topic("codec-" + kind)
        acked = produce(name, EDGE, "-z", kind) + lines(name, 300, "text text text", "-z", kind)
        same(acked, read(name, "-o", "beginning"), timestamps=False)
    return run


for _name in ("none", "gzip", "snappy", "lz4", "zstd"):
    suite.scenario("produce." + _name, "Produce", "Fetch", "ListOffsets")(codec(_name))


@suite.scenario("produce.idempotent", "InitProducerId", "Produce")
def _():
    name = topic("idempotent")
    acked = lines(name, 2000, "i", "-X", "enable.idempotence=true", "-X", "batch.num.messages=50")
    same(acked, read(name, "-o", "beginning"), timestamps=False)


@suite.scenario("produce.acks", "Produce")
def _():
    name = topic("acks")
    acked = lines(name, 20, "one", "-X", "acks=1")
    kcat("-P", "-t", name, "-p", "0", "-X", "acks=0", data=b"zero\n" * 20)
    until(lambda: len(read(name, "-o", "beginning")) == 40, 10, "40 records", pause=0.3)
    back = read(name, "-o", "beginning")
    same(acked, back[:20], timestamps=False)
    check([s.value for s in back[20:]] == [b"zero"] * 20, "acks=0 records differ")


@suite.scenario("offsets.list", "ListOffsets")
def _():
    name = topic("list")
    lines(name, 10, "l")
    for spec, expected in (("-2", 0), ("-1", 10)):
        out, _ = kcat("-Q", "-t", "%s:0:%s" % (name, spec))
        check(("offset %d" % expected) in out.decode(), "query %s: %s", spec, out)


@suite.scenario("seek.offset", "Fetch")
def _():
    name = topic("seek")
    acked = lines(name, 30, "s")
    same(acked[5:], read(name, "-o", "5"), timestamps=False)
    same(acked[26:], read(name, "-o", "-4"), timestamps=False)
    same(acked[10:13], read(name, "-o", "10", "-c", "3"), timestamps=False)


@suite.scenario("seek.time", "ListOffsets", "Fetch")
def _():
    name = topic("time")
    acked = lines(name, 5, "before")
    time.sleep(0.05)
    middle = int(time.time() * 1000)
    time.sleep(0.05)
    acked += lines(name, 5, "after")
    back = read(name, "-o", "beginning")
    check(all(s.timestamp < middle for s in back[:5]) and all(s.timestamp >= middle for s in back[5:]), "timestamps %s around %d", back, middle)
    same(acked[5:], read(name, "-o", "s@%d" % middle), timestamps=False)
    same(acked[:5], read(name, "-o", "s@%d" % (middle - 60000), "-o", "e@%d" % middle), timestamps=False)


class Member:
    """A `kcat -G` process; what it prints goes to files."""

    def __init__(self, group, *topics):
        self.out, self.err = tempfile.NamedTemporaryFile(), tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen(
            ["kcat", "-b", BOOTSTRAP, "-u", "-f", FORMAT, "-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000",
             "-X", "heartbeat.interval.ms=500", "-X", "partition.assignment.strategy=roundrobin",
             "-X", "auto.commit.interval.ms=200", "-G", group, *topics], stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err)

    def owned(self):
        with open(self.err.name, "rb") as file:
            found = re.findall(r"rebalanced \(memberid [^)]*\): (assigned|revoked):([^\n]*)", file.read().decode())
        check(self.process.poll() is None, "kcat -G ended")
        return len(re.findall(r"\[\d+\]", found[-1][1])) if found and found[-1][0] == "assigned" else 0

    def seen(self):
        with open(self.out.name, "rb") as file:
            return parse(file.read())

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return self.seen()


@suite.scenario("group.rebalance", "FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "OffsetCommit", "OffsetFetch")
def _():
    names, group = [topic("group-a"), topic("group-b")], PREFIX + "-group"
    acked = {n: lines(n, 50, "g") for n in names}
    first = Member(group, *names)
    until(lambda: len(first.seen()) == 100, 30, "first member reads all")
    check(first.owned() == 2, "first member owns %d", first.owned())
    time.sleep(0.6)
    second = Member(group, *names)
    until(lambda: (first.owned(), second.owned()) == (1, 1), 30, "two members own one partition each")
    for n in names:
        acked[n] += lines(n, 30, "h")
    until(lambda: len(first.seen()) + len(second.seen()) == 160, 20, "two members read all")
    time.sleep(0.6)
    got = second.stop()
    until(lambda: first.owned() == 2, 30, "first member owns both again")
    for n in names:
        acked[n] += lines(n, 20, "i")
    until(lambda: len(first.seen()) + len(got) == 200, 20, "first member reads the rest")
    got += first.stop()
    for n in names:
        same(acked[n], [s for t, s in got if t == n], timestamps=False)


@suite.scenario("group.resume", "OffsetCommit", "OffsetFetch", "JoinGroup", "SyncGroup")
def _():
    name, group = topic("resume"), PREFIX + "-resume"
    first = lines(name, 25, "r")
    base = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000", "-e", "-q", "-f", FORMAT, "-G", group, name]
    same(first, [s for _, s in parse(kcat(*base)[0])], timestamps=False)
    more = lines(name, 15, "s")
    same(more, [s for _, s in parse(kcat(*base)[0])], timestamps=False)


@suite.scenario("longpoll", "Fetch")
def _():
    name = topic("longpoll")
    lines(name, 1, "first")
    process = subprocess.Popen(["kcat", "-b", BOOTSTRAP, "-C", "-u", "-q", "-t", name, "-o", "end", "-X", "fetch.wait.max.ms=5000"],
                               stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    os.set_blocking(process.stdout.fileno(), False)
    time.sleep(2)
    took = []
    try:
        for i in range(3):
            lines(name, 1, "p%d" % i)
            sent = time.monotonic()
            until(lambda: process.stdout.read(), 20, "a record", pause=0.002)
            took.append(int((time.monotonic() - sent) * 1000))
    finally:
        process.terminate()
        process.wait(10)
    return "record arrives %d ms after the producer ended" % sorted(took)[1]


suite.main()
