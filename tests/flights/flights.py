"""Produces the flights of 2013 into a broker that is killed three times, reads them with two groups, compares all.

See run.sh for the options. What is checked:

* the producer (idempotent, acks=all) got every row acknowledged once, at contiguous offsets, in the file's
  order within each partition, each tail number in one partition;
* each group, the fast one and the slow one, which read while the broker is killed, saw at every offset the row
  that was acknowledged there: key, value and timestamp equal to the file, nothing missing;
* so did a reader that starts from the beginning after everything else has ended;
* then the topic becomes Parquet (`alluvium archive flush`), nothing else of it is left in the store, and a reader from
  the beginning sees the same records once more, headers among them, while DuckDB, Polars, pyarrow and Spark answer a
  question from the files exactly as the original does.
"""

import argparse
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from datetime import datetime, timezone

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition, OFFSET_BEGINNING
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC, PARTITIONS = "flights", 6
PATIENCE_S = 180
# By default what nobody needs is looked for every few minutes and deleted a minute later; here somebody waits for it.
SETTINGS = ("group.initial.rebalance.delay.ms=100", "merge.interval.ms=5000", "log.segment.delete.delay.ms=2000",
            "garbage.check.interval.ms=2000")
NUMBERS = ("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
           "flight", "air_time", "distance", "hour", "minute")


class Wrong(Exception):
    """The broker did not do what it must."""


def load(path, limit):
    """The rows of the file as (key, value, timestamp in ms, headers), and where each value is."""
    rows, index = [], {}
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as raw:
        for row in csv.DictReader(io.TextIOWrapper(raw, "utf-8")):
            if limit and len(rows) >= limit:
                break
            event = {name: (None if text in ("", "NA") else float(text) if "." in text else int(text)) if name in NUMBERS
                     else (None if text in ("", "NA") else text) for name, text in row.items()}
            at = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
            value = json.dumps(event, separators=(",", ":")).encode()
            key = event["tailnum"].encode() if event["tailnum"] else None
            if value in index:
                raise Wrong("rows %d and %d of the file are equal" % (index[value], len(rows)))
            index[value] = len(rows)
            # Every third has none; a repeated key and an empty value are the user's data like any other.
            headers = [("row", str(len(rows)).encode()), ("carrier", event["carrier"].encode()), ("row", b"")] if len(rows) % 3 else []
            rows.append((key, value, int(at.timestamp() * 1000), headers))
    return rows, index


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Broker:
    """The broker's process, in a process group of its own so that a killed shell leaves nothing behind."""

    def __init__(self, command, port, log):
        self.command, self.port, self.log, self.process = command, port, log, None
        self.starts, self.recovery_s = 0, []

    def start(self):
        began = time.monotonic()
        # Variables of the tests look like settings, and the broker rightly refuses settings that it does not know.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("ALLUVIUM_", "KAFKA_"))}
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env,
                                            start_new_session=True)
        client = AdminClient({"bootstrap.servers": "127.0.0.1:%d" % self.port, "log_level": 0})
        while True:
            if self.process.poll() is not None:
                raise Wrong("the broker ended with %s: %s" % (self.process.returncode, self.tail()))
            try:
                if client.describe_cluster(request_timeout=1).result(2).nodes:
                    break
            except (KafkaException, TimeoutError):
                time.sleep(0.05)
            if time.monotonic() - began > PATIENCE_S:
                raise Wrong("the broker does not answer: %s" % self.tail())
        self.starts += 1
        if self.starts > 1:
            self.recovery_s.append(time.monotonic() - began)

    def kill(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None

    def tail(self):
        with open(self.log, "rb") as file:
            return file.read()[-3000:].decode("utf-8", "replace")


class Reader:
    """What one reader saw: for every partition, offset -> row."""

    def __init__(self, name, rows, index):
        self.name, self.rows, self.index = name, rows, index
        self.at = [dict() for _ in range(PARTITIONS)]
        self.place = [None] * len(rows)
        self.reread = 0

    def take(self, message):
        if message.error():
            if message.error().fatal():
                raise Wrong("%s: %s" % (self.name, message.error()))
            return  # The client reconnects by itself.
        partition, offset = message.partition(), message.offset()
        where = "%s, partition %d offset %d" % (self.name, partition, offset)
        row = self.index.get(message.value())
        if row is None:
            raise Wrong("%s: a value that is not in the file: %r" % (where, message.value()[:200]))
        key, _, timestamp, headers = self.rows[row]
        if message.key() != key:
            raise Wrong("%s: key %r, not %r" % (where, message.key(), key))
        if message.timestamp()[1] != timestamp:
            raise Wrong("%s: timestamp %r, not %d" % (where, message.timestamp(), timestamp))
        if (message.headers() or []) != headers:
            raise Wrong("%s: headers %r, not %r" % (where, message.headers(), headers))
        before = self.at[partition].setdefault(offset, row)
        if before != row:
            raise Wrong("%s: row %d, and row %d when it was read before" % (where, row, before))
        if self.place[row] not in (None, (partition, offset)):
            raise Wrong("%s: row %d, which is also at partition %d offset %d" % (where, row, *self.place[row]))
        self.place[row] = (partition, offset)

    def add(self, messages):
        before = self.count()
        for message in messages:
            self.take(message)
        self.reread += sum(1 for m in messages if not m.error()) - (self.count() - before)

    def count(self):
        return sum(len(one) for one in self.at)


def differences(acked, at, rows):
    """What is wrong with a reader's view `at`, given the acknowledged (partition, offset) of every row; or None."""
    by_place = [dict() for _ in range(PARTITIONS)]
    for row, place in enumerate(acked):
        if place is None:
            return "row %d was never acknowledged" % row
        if place[1] in by_place[place[0]]:
            return "rows %d and %d were both acknowledged at partition %d offset %d" % (by_place[place[0]][place[1]], row, *place)
        by_place[place[0]][place[1]] = row
    homes = {}
    for partition, places in enumerate(by_place):
        if sorted(places) != list(range(len(places))):
            return "partition %d: acknowledged offsets have a gap" % partition
        order = [places[offset] for offset in range(len(places))]
        if any(a > b for a, b in zip(order, order[1:])):
            return "partition %d: acknowledged out of the file's order" % partition
        for row in order:
            key = rows[row][0]
            if key is not None and homes.setdefault(key, partition) != partition:
                return "tail number %r is in two partitions" % key
        seen = at[partition]
        missing = set(places) - set(seen)
        if missing:
            return "partition %d: %d acknowledged records are missing, the first at offset %d" % (partition, len(missing), min(missing))
        surplus = set(seen) - set(places)
        if surplus:
            return "partition %d: %d records that nobody produced, the first at offset %d" % (partition, len(surplus), min(surplus))
        for offset, row in places.items():
            if seen[offset] != row:
                return "partition %d offset %d: row %d was acknowledged, row %d is there" % (partition, offset, row, seen[offset])
    return None


def self_test():
    """The comparison must find each kind of damage; it runs before every use."""
    rows = [(b"a", b"0", 0, []), (b"b", b"1", 0, []), (b"a", b"2", 0, []), (None, b"3", 0, [])]
    acked = [(0, 0), (1, 0), (0, 1), (2, 0)]

    def view():
        return [{0: 0, 1: 2}, {0: 1}, {0: 3}, {}, {}, {}]
    assert differences(acked, view(), rows) is None
    for damage in (lambda a, v: v[0].pop(1), lambda a, v: v[0].update({2: 0}), lambda a, v: v[0].update({0: 2, 1: 0}),
                   lambda a, v: a.__setitem__(3, None), lambda a, v: a.__setitem__(2, (0, 0)), lambda a, v: a.__setitem__(2, (0, 2)),
                   lambda a, v: (a.__setitem__(0, (0, 1)), a.__setitem__(2, (0, 0)), v[0].update({0: 2, 1: 0})),
                   lambda a, v: (a.__setitem__(2, (3, 0)), v[0].pop(1), v[3].update({0: 2}))):
        a, v = list(acked), view()
        damage(a, v)
        assert differences(a, v, rows) is not None, "the comparison missed a difference"


class Run:
    def __init__(self, broker, rows, index):
        self.broker, self.rows, self.index = broker, rows, index
        self.bootstrap = "127.0.0.1:%d" % broker.port
        self.acked, self.acknowledged, self.errors = [None] * len(rows), 0, []
        self.produced, self.stop = threading.Event(), threading.Event()

    def fail(self, error):
        self.errors.append(error)
        self.stop.set()

    def guard(self, body, *arguments):
        """A thread for `body`; an exception in it ends the run."""
        def run():
            try:
                body(*arguments)
            except Exception as error:  # Reported by the main thread, whatever it is.
                self.fail("%s: %s" % (type(error).__name__, error) if not isinstance(error, Wrong) else str(error))
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def produce(self):
        producer = Producer({"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "acks": "all", "compression.type": "lz4",
                             "linger.ms": 5, "queue.buffering.max.messages": 20000, "message.timeout.ms": PATIENCE_S * 1000,
                             "retry.backoff.max.ms": 500, "reconnect.backoff.max.ms": 500, "log_level": 0, "error_cb": self.error})

        def report(row):
            def callback(error, message):
                if error is not None:
                    self.fail("row %d was not delivered: %s" % (row, error))
                elif self.acked[row] is not None:
                    self.fail("row %d was acknowledged twice" % row)
                else:
                    self.acked[row] = (message.partition(), message.offset())
                    self.acknowledged += 1
            return callback

        for row, (key, value, timestamp, headers) in enumerate(self.rows):
            while not self.stop.is_set():
                try:
                    producer.produce(TOPIC, key=key, value=value, timestamp=timestamp, headers=headers, on_delivery=report(row))
                    break
                except BufferError:
                    producer.poll(0.05)
            if self.stop.is_set():
                return
            if row % 200 == 0:
                producer.poll(0)
        left = producer.flush(PATIENCE_S)
        if left:
            raise Wrong("%d records were not acknowledged within %d s" % (left, PATIENCE_S))
        self.produced.set()

    def error(self, error):
        # Lost connections are what this run is about; only a fatal error, such as a lost sequence, ends it.
        if error.code() == KafkaError._FATAL or error.fatal():
            self.fail("fatal client error: %s" % error)

    def kill_at(self, rows):
        """Kills the broker when that many rows are acknowledged, while more are on their way, and starts it again."""
        while self.acknowledged < rows:
            if self.stop.is_set():
                return
            time.sleep(0.002)
        at = self.acknowledged
        self.broker.kill()
        print("killed with SIGKILL after %d acknowledged records" % at, file=sys.stderr)
        time.sleep(0.5)
        self.broker.start()
        print("started again, answering after %.1f s" % self.broker.recovery_s[-1], file=sys.stderr)

    def consumer(self, group):
        return Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "enable.auto.commit": False, "log_level": 0,
                         "auto.offset.reset": "earliest", "session.timeout.ms": 30000, "reconnect.backoff.max.ms": 500})

    def commit(self, source):
        """Commits the position; while the broker is away it tries again."""
        end = time.monotonic() + PATIENCE_S
        while not self.stop.is_set():
            try:
                source.commit(asynchronous=False)
                return
            except KafkaException as error:
                if error.args[0].code() == KafkaError._NO_OFFSET:
                    return
                if time.monotonic() > end:
                    raise Wrong("an offset commit failed for %d s: %s" % (PATIENCE_S, error)) from error
                time.sleep(0.2)

    def consume(self, reader, rate):
        """Reads everything by group, at most `rate` records a second; at half of it a new member takes over."""
        changed = False
        source = self.consumer(reader.name)
        source.subscribe([TOPIC])
        began, idle = time.monotonic(), time.monotonic()
        while not self.stop.is_set():
            messages = source.consume(500, 0.2)
            reader.add(messages)
            now = time.monotonic()
            if messages:
                idle = now
            done = reader.count()
            if done >= len(self.rows) and self.produced.is_set():
                break
            if now - idle > PATIENCE_S:
                raise Wrong("%s read nothing for %d s, at %d of %d records" % (reader.name, PATIENCE_S, done, len(self.rows)))
            if messages and rate and done / rate > now - began:
                time.sleep(min(1.0, done / rate - (now - began)))
            if not changed and done > len(self.rows) // 2:
                changed = True
                self.commit(source)
                source.close()
                source = self.consumer(reader.name)
                source.subscribe([TOPIC])
        self.commit(source)
        source.close()

    def read_all(self, reader):
        """Reads from the beginning without a group, up to the end offsets that the broker reports."""
        source = self.consumer("unused")
        ends = [source.get_watermark_offsets(TopicPartition(TOPIC, p), timeout=30) for p in range(PARTITIONS)]
        source.assign([TopicPartition(TOPIC, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])
        end = time.monotonic() + PATIENCE_S
        while reader.count() < len(self.rows):
            reader.add(source.consume(2000, 0.5))
            if time.monotonic() > end:
                raise Wrong("%s: %d of %d records within %d s" % (reader.name, reader.count(), len(self.rows), PATIENCE_S))
        reader.add(source.consume(2000, 1.0))
        if any(low != 0 for low, _ in ends) or sum(high for _, high in ends) != len(self.rows):
            raise Wrong("log start and end offsets are %s for %d records" % (ends, len(self.rows)))
        source.close()

    def lag_free(self, group):
        source = self.consumer(group)
        committed = source.committed([TopicPartition(TOPIC, p) for p in range(PARTITIONS)], timeout=30)
        source.close()
        if sum(c.offset for c in committed) != len(self.rows):
            raise Wrong("group %s has committed %s" % (group, [c.offset for c in committed]))

    def main(self):
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        # The events carry the time of their flight, in 2013: kept for ever, or retention would rightly drop them.
        config = {"retention.ms": "-1"}
        for future in admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1, config=config)]).values():
            try:
                future.result(30)
            except KafkaException as error:
                raise Wrong("topic %s: %s" % (TOPIC, error.args[0])) from error
        began = time.monotonic()
        fast, slow = Reader("fast", self.rows, self.index), Reader("slow", self.rows, self.index)
        total = len(self.rows)
        threads = [self.guard(self.produce), self.guard(self.consume, fast, 0), self.guard(self.consume, slow, 15000)]
        for third in (1, 2):
            self.kill_at(total * third // 3)
        threads[0].join()
        produced_s = time.monotonic() - began
        for thread in threads[1:]:
            thread.join()
        if self.errors:
            raise Wrong("; ".join(self.errors[:3]))
        consumed_s = time.monotonic() - began
        # Once more: what is compared last must come from the store and not from a memory of the broker.
        self.broker.kill()
        self.broker.start()
        after = Reader("after", self.rows, self.index)
        self.read_all(after)
        for reader in (fast, slow, after):
            problem = differences(self.acked, reader.at, self.rows)
            if problem:
                raise Wrong("reader %s: %s" % (reader.name, problem))
        for group in ("fast", "slow"):
            self.lag_free(group)
        sizes = [sum(1 for place in self.acked if place[0] == p) for p in range(PARTITIONS)]
        keys = len({key for key, *_ in self.rows if key is not None})
        print("flights: %d records of %d tail numbers (%d without one) in %d partitions of %s records; the broker was killed with "
              "SIGKILL %d times and answered again after %s s; all acknowledged in %.0f s, read by two groups in %.0f s (%d and %d records "
              "re-read after rebalances) and again from the beginning. Every record is at its acknowledged offset, once, unchanged and "
              "in the file's order." % (total, keys, sum(1 for key, *_ in self.rows if key is None), PARTITIONS,
                                        "/".join(map(str, sizes)), self.broker.starts - 1,
                                        ", ".join("%.1f" % s for s in self.broker.recovery_s), produced_s, consumed_s,
                                        fast.reread, slow.reread))


def tool(options, *arguments):
    """What `alluvium` prints with these arguments."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ALLUVIUM_", "KAFKA_"))}
    done = subprocess.run([options.bin, *arguments], capture_output=True, text=True, env=env, timeout=4 * PATIENCE_S)
    if done.returncode != 0:
        raise Wrong("alluvium %s ended with %d: %s" % (" ".join(arguments), done.returncode, done.stderr))
    return done.stdout


def outside_of_history(options, store):
    """Objects that hold records of the topic and are not its Parquet: all segments, and merged objects that hold
    nothing else. (One that another topic needs stays as long as that does.)"""
    overview = json.loads(tool(options, "inspect", store))
    topic = overview["manifest"]["topics"][TOPIC]["id"]
    found = []
    for one in overview["objects"]:
        key = one["key"]
        if not key.startswith("merged/") and not (key.startswith("wal/") and key.rsplit("/", 1)[1].isdigit()):
            continue
        try:
            entries = json.loads(tool(options, "inspect", store, key)).get("entries", [])
        except Wrong as problem:
            # It may be deleted between the list and the look.
            if "there is no" not in str(problem):
                raise
            continue
        data = [entry for entry in entries if entry["kind"] in ("batches", "merged")]
        theirs = [entry for entry in data if entry["topic"] == topic]
        if theirs and (key.startswith("wal/") and any(e["kind"] == "batches" for e in theirs) or len(theirs) == len(data)):
            found.append(key)
    return found


def history(run, options, store, work):
    """Everything becomes Parquet and nothing else stays; consumers and query engines read the same records from it."""
    began = time.monotonic()
    print(tool(options, "archive", "flush", TOPIC, "--bootstrap", run.bootstrap).strip(), file=sys.stderr)
    flushed_s = time.monotonic() - began
    while True:
        left = outside_of_history(options, store)
        if not left:
            break
        if time.monotonic() - began > PATIENCE_S:
            raise Wrong("after %d s there are still %d objects with records of the topic: %s" % (PATIENCE_S, len(left), left[:5]))
        time.sleep(2)
    gone_s = time.monotonic() - began
    # Everything that logs refer to is there and whole, says who looks through all of it.
    tool(options, "fsck", store)
    # So that what is read comes from the files and not from a memory of the broker.
    run.broker.kill()
    run.broker.start()
    reader = Reader("history", run.rows, run.index)
    began = time.monotonic()
    run.read_all(reader)
    read_s = time.monotonic() - began
    problem = differences(run.acked, reader.at, run.rows)
    if problem:
        raise Wrong("reader history: %s" % problem)
    if not options.analytics:
        print("history: Parquet after %.1f s, nothing else left after %.1f s, read again in %.1f s; DuckDB, Polars and pyarrow are "
              "not installed (tests/clients/install.sh analytics)" % (flushed_s, gone_s, read_s))
        return
    groups = {}
    for _, value, *_ in run.rows:
        event = json.loads(value)
        group = groups.setdefault((event["carrier"], event["month"]), [0, []])
        group[0] += 1
        if event["dep_delay"] is not None:
            group[1].append(event["dep_delay"])
    answer = [[carrier, month, count, sum(delays) / len(delays) if delays else None]
              for (carrier, month), (count, delays) in sorted(groups.items())]
    expected = os.path.join(work, "answer.json")
    with open(expected, "w") as file:
        json.dump(answer, file)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "analytics.py")
    spark = ["--spark"] if options.spark else []
    asked = subprocess.run([options.analytics, script, store, expected, *spark], capture_output=True, text=True, timeout=4 * PATIENCE_S)
    if asked.returncode != 0:
        raise Wrong("the question was not answered as by the file: %s%s" % (asked.stdout, asked.stderr))
    print("history: Parquet after %.1f s, nothing else of the topic left after %.1f s, every record read again in %.1f s; flights and "
          "mean delay by carrier and month: %s" % (flushed_s, gone_s, read_s, asked.stdout.strip()))


def main():
    parser = argparse.ArgumentParser(prog="tests/flights/run.sh")
    parser.add_argument("--csv", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--store", metavar="URL", help="where the broker keeps its data (default: a fresh directory)")
    parser.add_argument("--bin", metavar="PATH", help="the alluvium binary")
    parser.add_argument("--analytics", metavar="PYTHON", help=argparse.SUPPRESS)
    parser.add_argument("--spark", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, metavar="ROWS", help="only the first rows of the file")
    parser.add_argument("--broker", metavar="COMMAND", help="another broker: a shell command, in which {port} is replaced")
    parser.add_argument("--recent", action="store_true", help="timestamps of today and not of 2013")
    parser.add_argument("--keep", action="store_true", help="keep the data and the broker's log")
    options = parser.parse_args()
    if not options.bin and not options.broker:
        parser.error("--bin or --broker is needed")
    if options.bin and shutil.which(options.bin) is None:
        parser.error("--bin %s: there is no such program" % options.bin)
    self_test()
    rows, index = load(options.csv, options.limit)
    if options.recent:
        now = int(time.time() * 1000)
        rows = [(key, value, now - len(rows) + row, headers) for row, (key, value, _, headers) in enumerate(rows)]
    if not options.limit and len(rows) != 336776:
        parser.error("the file has %d rows, not 336776" % len(rows))
    work = tempfile.mkdtemp(prefix="alluvium-flights-")
    port = free_port()
    store = options.store or "file://" + os.path.join(work, "data")
    if options.broker:
        command = ["sh", "-c", "exec " + options.broker.replace("{port}", str(port))]
    else:
        command = [options.bin, "serve", "--store", store, "--listeners", "PLAINTEXT://127.0.0.1:%d" % port,
                   "--http-listen", "127.0.0.1:%d" % free_port(), *(word for setting in SETTINGS for word in ("--set", setting))]
    broker = Broker(command, port, os.path.join(work, "broker.log"))
    code = 0
    try:
        broker.start()
        run = Run(broker, rows, index)
        run.main()
        if options.bin:
            history(run, options, store, work)
    except Wrong as problem:
        print("flights: FAILED on %s: %s\nthe broker's log ends with:\n%s\n(all of it is in %s)" % (store, problem, broker.tail(), work))
        code = 1
    finally:
        broker.kill()
        if code == 0 and not options.keep:
            shutil.rmtree(work)
    # A thread of a client library that still waits must not hold the end up.
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
