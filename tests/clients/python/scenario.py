"""What every client program has in common: the records, the comparison and the report.

A client program registers named scenarios and calls `main`. Each scenario prints one JSON line:

    {"client", "version", "scenario", "apis", "ok", "error", "note", "ms"}

and the program exits with 1 if any of them failed. A scenario that a client cannot express is not
registered, so that the compatibility table shows a gap and not a success.

The same records are made by the Java, Go and Node programs: the rules are in `../README.md`.
"""

import json
import os
import sys
import time
import traceback
from collections import namedtuple

BASE_MS = 1_700_000_000_000
BIG_BYTES = 900_000

# A record before it is produced. `key` and `value` are bytes or None, `headers` a list of (name, bytes or None).
Record = namedtuple("Record", "key value headers timestamp")
# A record as it came back.
Seen = namedtuple("Seen", "partition offset key value headers timestamp")


def noise(size, seed):
    """Bytes that no codec makes smaller, the same in every language (xorshift32, one byte a step)."""
    state = seed or 1
    out = bytearray(size)
    for i in range(size):
        state ^= (state << 13) & 0xFFFFFFFF
        state ^= state >> 17
        state ^= (state << 5) & 0xFFFFFFFF
        out[i] = state & 0xFF
    return bytes(out)


_BIG = None


def big():
    """The 900,000-byte value, made once."""
    global _BIG
    if _BIG is None:
        _BIG = noise(BIG_BYTES, 7)
    return _BIG


def records(null_header=True, both_null=True):
    """The records that each codec carries: every edge a client's format has, then compressible text."""
    tail = [("nil", None)] if null_header else []
    edge = [
        (b"plain", b"value", []),
        (None, b"no key", []),
        (b"tombstone", None, []),
        (None, None, []),
        (b"", b"", []),
        (b"headers", b"with headers", [("h", b"1"), ("h", b"2"), ("empty", b"")] + tail
         + [("caf\u00e9", bytes([0, 255, 254])), ("h", b"1")]),
        (bytes(range(256)), bytes(range(255, -1, -1)), []),
        (b"big", big(), [("size", b"900000")]),
    ]
    text = [(b"key-%d" % (i % 7), b"the quick brown fox %d " % i * 20, [("n", b"%d" % i)]) for i in range(60)]
    out = []
    for i, (key, value, hdrs) in enumerate(edge + text):
        if key is None and value is None and not both_null:
            continue
        out.append(Record(key, value, hdrs, BASE_MS + i * 1000))
    return out


# Topic configs under which any broker compacts soon: what is a moment old, however little it is.
COMPACT = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": "100", "max.compaction.lag.ms": "100"}
COMPACT_SECONDS = 75


def superseded():
    """Records of ten keys, five times over, and then none of the first key."""
    rounds = [(b"k%d" % key, b"%d in %d" % (key, n)) for n in range(5) for key in range(10)] + [(b"k0", None)]
    return [Record(key, value, [], BASE_MS + i * 1000) for i, (key, value) in enumerate(rounds)]


def tick(n):
    """A later record: Kafka compacts only what such a one has followed."""
    return Record(b"tick", b"%d" % n, [], BASE_MS + (100 + n) * 1000)


def compacted(rows):
    """Whether of `superseded` only the newest is left; `rows` are the offsets, keys and values of all that a reader from the
    start found. The newest must be there at any time."""
    check([r[0] for r in rows] == sorted({r[0] for r in rows}), "the offsets do not rise")
    rows = [r for r in rows if r[1] != b"tick"]
    newest = {key: value for _, key, value in rows}
    expected = {b"k%d" % key: b"%d in 4" % key for key in range(1, 10)}
    check({key: newest.get(key) for key in expected} == expected and newest.get(b"k0") is None, "the newest are %s", newest)
    # The deletion itself stays for a day.
    return len(rows) <= 10


def check(condition, message, *args):
    """Like assert, but not removed by -O and with the values in the message."""
    if not condition:
        raise AssertionError(message % args if args else message)


def brief(value):
    """A value short enough to print."""
    text = repr(value)
    return text if len(text) < 200 else "%s... (%d characters)" % (text[:120], len(text))


def same(expected, seen, timestamps=True):
    """Compares `expected`, a list of (partition, offset, Record), with what was consumed, byte for byte."""
    want = sorted(expected, key=lambda e: (e[0], e[1]))
    got = sorted(seen, key=lambda s: (s.partition, s.offset))
    check(len(want) == len(got), "%d records produced, %d consumed", len(want), len(got))
    for (partition, offset, record), back in zip(want, got):
        where = "partition %d offset %d" % (partition, offset)
        check((back.partition, back.offset) == (partition, offset), "acknowledged at %s, consumed at partition %d offset %d",
              where, back.partition, back.offset)
        for field in ("key", "value", "headers") + (("timestamp",) if timestamps else ()):
            a, b = getattr(record, field), getattr(back, field)
            if field == "headers":
                a, b = [tuple(h) for h in a or []], [tuple(h) for h in b or []]
            check(a == b, "%s of %s: produced %s, consumed %s", field, where, brief(a), brief(b))


def until(condition, seconds, what, pause=0.1):
    """Calls `condition` until it is true; its last value, or an error after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < end, "%s did not happen within %s s", what, seconds)
        time.sleep(pause)


class Suite:
    """The scenarios of one client, in the order in which they were registered."""

    def __init__(self, client, version):
        self.client, self.version, self.scenarios = client, version, []

    def scenario(self, name, *apis):
        """Registers the function below it. `apis` names the Kafka APIs that it makes the client use."""
        def register(function):
            self.scenarios.append((name, list(apis), function))
            return function
        return register

    def main(self):
        """Runs all scenarios, or those named after the prefix; the exit code is 0 if all succeeded."""
        if len(sys.argv) < 3:
            print("usage: %s BOOTSTRAP PREFIX [SCENARIO...]" % sys.argv[0], file=sys.stderr)
            sys.exit(2)
        chosen, failed = sys.argv[3:], 0
        unknown = set(chosen) - {name for name, _, _ in self.scenarios}
        if unknown:
            print("no such scenario: %s" % ", ".join(sorted(unknown)), file=sys.stderr)
            sys.exit(2)
        for name, apis, function in self.scenarios:
            if chosen and name not in chosen:
                continue
            start, error, note = time.monotonic(), None, None
            try:
                note = function()
            except Exception as problem:  # A scenario's failure is its result; the others still run.
                error = "%s: %s" % (type(problem).__name__, problem)
                failed += 1
                if os.environ.get("VERBOSE"):
                    traceback.print_exc()
            line = {"client": self.client, "version": self.version, "scenario": name, "apis": apis, "ok": error is None,
                    "error": error, "note": note, "ms": int((time.monotonic() - start) * 1000)}
            print(json.dumps(line), flush=True)
        # Client libraries keep threads; what they still do must not change the result.
        sys.stdout.flush()
        os._exit(1 if failed else 0)


def arguments():
    """(bootstrap, prefix) of the command line, with harmless values when they are missing."""
    return (sys.argv + ["127.0.0.1:9092", "test"])[1:3] if len(sys.argv) >= 3 else ("127.0.0.1:9092", "test")
