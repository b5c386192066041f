"""Reads a bucket of Alluvium, knowing nothing of it but docs/storage.md.

    read.py DIRECTORY        the directory is an embedded store whose broker has stopped, or a copy of a bucket

Prints one line of JSON for every record of every partition, by topic, partition and offset, and at the end one line
of what there was. It stops at the first thing that is not as the page says. Parquet is read by pyarrow and the codecs
of Kafka by cramjam; everything else is here.

Written from the page and not from the product's code, so that the page is known to be enough. Please keep it so.
"""

import base64
import io
import json
import os
import struct
import sys
import uuid
import zlib

import cramjam
import pyarrow.parquet


class Bad(Exception):
    """The bucket is not as the page says."""


def check(right, message, *arguments):
    if not right:
        raise Bad(message % arguments)


# --- Primitives

def _table():
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        rows.append(byte)
    return rows


TABLE = _table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Cursor:
    """Walks over bytes and never past their end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, count):
        check(0 <= count <= self.left(), "%d bytes where %d are left", count, self.left())
        self.at += count
        return self.data[self.at - count:self.at]

    def u8(self):
        return self.take(1)[0]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def uuid(self):
        return uuid.UUID(bytes=bytes(self.take(16)))

    def uint(self):
        value = 0
        for shift in range(0, 70, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                check(value < 1 << 64, "a varint of more than 64 bits")
                return value
        raise Bad("a varint of more than ten bytes")

    def int(self):
        value = self.uint()
        return value >> 1 ^ -(value & 1)

    def block(self):
        """Bytes behind their length."""
        return self.take(self.uint())

    def end(self):
        check(self.left() == 0, "%d bytes are left over", self.left())


def wrapped(value):
    """A signed integer of 64 bits that has gone round."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# --- The container

KINDS = {1: "segment", 2: "checkpoint", 3: "merged"}


class Object:
    """A binary object, taken apart and checked."""

    def __init__(self, data, kind, cluster):
        check(len(data) >= 80, "an object of %d bytes", len(data))
        magic, code, major, _minor, _zero, _compatible, incompatible = struct.unpack("<8sBBBBII", data[:20])
        check(magic == b"ALLUVIUM", "magic %r", magic)
        check(struct.unpack("<I", data[36:40])[0] == crc32c(data[:36]), "the preamble's checksum")
        check(KINDS.get(code) == kind, "kind %d and not %s", code, kind)
        check(major == 1 and incompatible == 0, "written by a newer version")
        check(uuid.UUID(bytes=data[20:36]) == cluster, "an object of another cluster")
        at, length, crc, end_code, whole, end = struct.unpack("<QQIIQ8s", data[-40:])
        check(end == b"MUIVULLA" and end_code == code and whole == len(data), "the trailer")
        self.index = data[at:at + length]
        check(at + length + 40 == whole and crc == crc32c(self.index), "the index and its checksum")
        self.sections, cursor = {}, Cursor(data[:-40])
        cursor.take(40)
        while cursor.left():
            tag, size = cursor.u32(), cursor.u64()
            self.sections.setdefault(tag, cursor.take(size))
        check(set(self.sections) >= {1, 2, 3} and self.sections[3] == self.index, "the sections")
        self.data = data


def header_and_rest(found):
    cursor = Cursor(found.index)
    check(cursor.u8() == 1, "the version of the index")
    header = cursor.block()
    check(header == found.sections[1], "the header in the index is not the one at the start")
    return header, cursor


def segment(data, cluster):
    """The header of a segment or seal, and its entries."""
    raw, cursor = header_and_rest(Object(data, "segment", cluster))
    at = Cursor(raw)
    header = {"nonce": at.uuid(), "incarnation": at.u64(), "seq": at.u64(), "manifest_version": at.uint(),
              "checkpoint_next": at.uint() - 1, "committed_next": at.uint(), "written": at.int(), "seal": None}
    if at.u8() == 1:
        header["seal"] = {"taker": at.uint(), "node": at.int(), "reason": at.block().decode()}
    at.end()
    topics = [cursor.uuid() for _ in range(cursor.uint())]
    entries = []
    for _ in range(cursor.uint()):
        code, body = cursor.u8(), Cursor(cursor.block())
        entries.append(entry(code, body, topics, header["written"]))
        body.end()
    cursor.end()
    return header, entries


def entry(code, at, topics, written):
    if code == 3:
        return {"kind": "release", "slot": at.uint(), "epoch": at.uint(), "image": at.block()}
    found = {"topic": topics[at.uint()], "partition": at.uint(), "epoch": at.uint()}
    if code == 1:
        found.update(kind="batches", **batches(at, written))
    elif code == 2:
        found.update(kind="log_start", offset=at.uint())
    elif code == 4:
        found.update(kind="merged", ranges=merged_ranges(at, written))
    elif code == 5:
        found.update(kind="compacted", clean_to=at.uint(), ranges=merged_ranges(at, written))
    elif code == 6:
        found.update(kind="archived", ranges=shares(at, written))
    else:
        raise Bad("an entry of kind %d: written by a newer version" % code)
    return found


def batches(at, written):
    position, appended = at.uint(), wrapped(written - at.int())
    offset = base = at.uint()
    size = maximum = 0
    for number in range(at.uint()):
        length, gap, span, missing = at.uint(), at.uint(), at.uint(), at.uint()
        check(number or gap == 0, "the first batch of a range does not begin where the range does")
        max_timestamp = wrapped(appended - at.int())
        wrapped(max_timestamp - at.int())  # The timestamp of the first record.
        flags = at.uint()
        if flags & 1:
            at.uint(), at.uint(), at.int()  # Producer id, its epoch, first sequence.
        check(missing <= span, "more records are missing than there are offsets")
        offset += gap + span + 1
        size += length
        maximum = max_timestamp if number == 0 else max(maximum, max_timestamp)
    check(size > 0, "a range without a batch")
    return {"range": Range(0, base, offset - 1, None, position, size, maximum, appended)}


def merged_ranges(at, written):
    file, position, base, time, ranges = at.uint(), at.uint(), at.uint(), written, []
    for _ in range(at.uint()):
        last, length = base + at.uint(), at.uint()
        time = wrapped(time - at.int())
        ranges.append(Range(1, base, last, file, position, length, wrapped(time - at.int()), time))
        base, position = last + 1, position + length
    return ranges


def shares(at, written):
    file, base, row, time, ranges = at.uint(), at.uint(), 0, written, []
    for _ in range(at.uint()):
        last, row, length = base + at.uint(), row + at.int(), at.uint()
        time = wrapped(time - at.int())
        ranges.append(Range(2, base, last, file, row, length, wrapped(time - at.int()), time))
        base = last + 1
    return ranges


class Range:
    """Contiguous offsets of a partition that stand in one object."""

    def __init__(self, level, base, last, number, position, length, max_timestamp, appended, incarnation=None):
        self.level, self.base, self.last, self.number, self.position = level, base, last, number, position
        self.length, self.max_timestamp, self.appended, self.incarnation = length, max_timestamp, appended, incarnation

    def at(self, incarnation, seq):
        self.incarnation = incarnation
        if self.level == 0:
            self.number = seq
        return self


# --- Checkpoints

class Partition:
    def __init__(self, log_start=0, end=0, ranges=()):
        self.log_start, self.end, self.ranges = log_start, end, list(ranges)

    def apply(self, found, incarnation, seq):
        kind = found["kind"]
        if kind == "batches":
            new = found["range"].at(incarnation, seq)
            check(new.base == self.end, "batches at %d where the log ends at %d", new.base, self.end)
            self.ranges.append(new)
            self.end = new.last + 1
        elif kind == "log_start":
            check(found["offset"] <= self.end, "a log start beyond the end")
            self.log_start = max(self.log_start, found["offset"])
        else:
            new = [one.at(incarnation, seq) for one in found["ranges"]]
            base, last = new[0].base, new[-1].last
            check(last < self.end, "a pointer beyond the end")
            if last < self.log_start:
                return
            old = [one for one in self.ranges if one.base <= last and one.last >= base]
            highest = 0 if kind == "merged" else 1
            check(old and old[-1].last == last and all(one.base >= base and one.level <= highest for one in old),
                  "a pointer to %d..%d that does not fit", base, last)
            at = self.ranges.index(old[0])
            self.ranges[at:at + len(old)] = new
        self.ranges = [one for one in self.ranges if one.last >= self.log_start]


def partitions(body):
    """The partitions of one slot."""
    cursor = Cursor(body)
    version = cursor.u8()
    check(1 <= version <= 4, "version %d of a slot's body", version)
    found = {}
    for _ in range(cursor.uint()):
        at = Cursor(cursor.block())
        key = at.uuid(), at.uint()
        log_start, end, _append_time = at.uint(), at.uint(), at.int()
        for _ in range(at.uint()):
            at.uint(), at.uint()  # Leader epoch, its first offset.
        for _ in range(at.uint()):
            at.uint(), at.uint(), at.int()  # Producer id, its epoch, time of its newest append.
            for _ in range(at.uint()):
                at.int(), at.int(), at.uint(), at.uint(), at.int()  # First and last sequence, offset, span, timestamp.
        ranges, incarnation, number, last, time, appended = [], 0, 0, 0, 0, 0
        for _ in range(at.uint()):
            level = at.u8() if version > 1 else 0
            check(level < version, "level %d in a body of version %d", level, version)
            incarnation = (incarnation + at.int()) % (1 << 64)
            number = (number + at.int()) % (1 << 64)
            position, length = at.uint(), at.uint()
            base = last + at.int()
            last = base + at.uint()
            time, appended = wrapped(time + at.int()), wrapped(appended + at.int())
            ranges.append(Range(level, base, last, number, position, length, time, appended, incarnation))
        if version >= 4:
            at.uint()  # The offset below which it is compacted.
        check(at.uint() == 0, "a partition with more than this version knows")
        at.end()
        found[key] = Partition(log_start, end, ranges)
    cursor.end()
    return found


def checkpoint(data, cluster):
    """`next` of a checkpoint, and of each covered slot its epoch and partitions."""
    whole = Object(data, "checkpoint", cluster)
    raw, cursor = header_and_rest(whole)
    at = Cursor(raw)
    at.uuid(), at.u64()  # Nonce, incarnation.
    following = at.u64()
    at.uint(), at.int()  # Manifest version, time.
    at.end()
    slots = {}
    for _ in range(cursor.uint()):
        slot, epoch, source, position, length, crc = (cursor.uint() for _ in range(6))
        check(source == 0, "a checkpoint that refers to another")
        body = whole.sections[2][position:position + length]
        check(len(body) == length and crc32c(body) == crc, "the checksum of slot %d", slot)
        slots[slot] = epoch, partitions(body) if length else {}
    cursor.end()
    return following, slots


# --- The bucket

class Bucket:
    def __init__(self, root):
        self.root, self.cache, self.parquet = root, {}, {}
        self.manifest = self.json("cluster/manifest.json", "alluvium manifest")
        self.cluster = uuid.UUID(self.manifest["cluster_id"])
        self.names = {uuid.UUID(topic["id"]): name for name, topic in self.manifest["topics"].items()}

    def get(self, key):
        """The bytes of an object, or None."""
        if key not in self.cache:
            try:
                with open(os.path.join(self.root, key), "rb") as file:
                    self.cache[key] = file.read()
            except FileNotFoundError:
                self.cache[key] = None
        return self.cache[key]

    def must(self, key):
        data = self.get(key)
        check(data is not None, "there is no %s", key)
        return data

    def json(self, key, kind):
        data = self.must(key)
        body, mark, crc = data.rpartition(b',"crc32c":"')
        if mark:
            check(crc.endswith(b'"}') and int(crc[:-2], 16) == crc32c(body), "%s: the checksum", key)
        found = json.loads(data)
        check(found["format"]["kind"] == kind and found["format"]["major"] == 1, "%s: the format", key)
        check(not found["format"].get("incompatible"), "%s: written by a newer version", key)
        return found

    def stream(self, incarnation):
        """The folder of a stream."""
        mask = (1 << 64) - 1
        h = (incarnation + 0x9E3779B97F4A7C15) & mask
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
        h ^= h >> 31
        return "wal/%04x-%d" % (h & 0xFFFF, incarnation)

    def key(self, one, topic):
        if one.level == 0:
            return "%s/%020d" % (self.stream(one.incarnation), one.number)
        if one.level == 1:
            return "merged/%d/%020d" % (one.incarnation, one.number)
        plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        name = "".join(chr(b) if chr(b) in plain else "%%%02X" % b for b in self.names[topic].encode())
        return "archive/topic=%s-%s/%020d-%020d.parquet" % (name, topic.hex[:8], one.incarnation, one.number)

    def slot(self, topic, partition):
        h = 0xCBF29CE484222325
        for byte in topic.bytes:
            h = (h ^ byte) * 0x100000001B3 % (1 << 64)
        return (h + partition) % (1 << 64) % self.manifest["slot_count"]

    def path(self, slot):
        """The streams that a slot's log goes through: (epoch, stream, bound or None, released)."""
        found = []
        for number, stream in self.manifest["streams"].items():
            state = stream["state"]
            if state != "live":
                for run in state["sealed"]["links"]:
                    if run["first"] <= slot < run["first"] + run["count"]:
                        found.append((run["epoch"], int(number), state["sealed"]["at"], False))
            for run in stream.get("released", []):
                if run["first"] <= slot < run["first"] + run["count"]:
                    found.append((run["epoch"], int(number), run["bound"], True))
        for run in self.manifest["slots"]:
            owner = self.manifest["streams"].get(str(run["owner"]))
            if run["first"] <= slot < run["first"] + run["count"] and owner and owner["state"] == "live":
                found.append((run["epoch"], run["owner"], None, False))
        return sorted(found)

    def read_stream(self, incarnation, bound):
        """The newest checkpoint of a stream, and the entries of its segments from there to its end."""
        folder = self.stream(incarnation)
        following, slots = 0, {}
        if self.get(folder + "/head.json") is not None:
            head = self.json(folder + "/head.json", "alluvium head")
            if head["checkpoint"]:
                following = head["checkpoint"]["next"]
                nonce = uuid.UUID(head["checkpoint"]["nonce"]).hex
                found, slots = checkpoint(self.must("%s/checkpoint/%020d-%s" % (folder, following, nonce)), self.cluster)
                check(found == following, "the checkpoint is not the one that the head names")
        segments, seq = [], following
        while bound is None or seq < bound:
            data = self.get("%s/%020d" % (folder, seq))
            if data is None and bound is None:
                break
            check(data is not None, "segment %d of stream %d is missing", seq, incarnation)
            header, entries = segment(data, self.cluster)
            check((header["incarnation"], header["seq"]) == (incarnation, seq), "a segment of another place")
            if header["seal"]:
                check(bound is None, "stream %d is sealed at %d, and not at %s", incarnation, seq, bound)
                break
            segments.append((seq, entries))
            seq += 1
        return slots, segments


def logs(bucket):
    """Every partition of every topic that was ever written to."""
    streams, found = {}, {}
    for name, topic in bucket.manifest["topics"].items():
        for number in range(topic["partitions"]):
            found[uuid.UUID(topic["id"]), number] = Partition()
    by_slot = {}
    for key in found:
        by_slot.setdefault(bucket.slot(*key), []).append(key)
    for slot in by_slot:
        path, covers = bucket.path(slot), []
        for epoch, stream, bound, released in path:
            if released:
                _, entries = segment(bucket.must("%s/%020d" % (bucket.stream(stream), bound - 1)), bucket.cluster)
                image = [e["image"] for e in entries if e["kind"] == "release" and (e["slot"], e["epoch"]) == (slot, epoch)]
                check(len(image) == 1, "no RELEASE of slot %d", slot)
                covers.append(partitions(image[0]))
                continue
            if stream not in streams:
                streams[stream] = bucket.read_stream(stream, bound)
            granted, image = streams[stream][0].get(slot, (None, None))
            covers.append(image if granted == epoch else None)
        start = max((i for i, image in enumerate(covers) if image is not None), default=None)
        check(start is not None or not path or path[0][0] == 1, "nothing covers slot %d", slot)
        for i, (epoch, stream, _, released) in enumerate(path):
            if i < (start or 0):
                continue
            if i == start:
                found.update((key, one) for key, one in covers[i].items() if key in found)
            check(not released or i == start, "slot %d was released, and something is before it", slot)
            if released:
                continue
            for seq, entries in streams[stream][1]:
                for e in entries:
                    key = e.get("topic"), e.get("partition")
                    if key in found and e["epoch"] == epoch and bucket.slot(*key) == slot:
                        found[key].apply(e, stream, seq)
    return found


# --- Records

def opened(codec, data):
    if codec == 0:
        return data
    if codec == 1:
        return zlib.decompress(data, 31)
    if codec == 2:
        if not data.startswith(b"\x82SNAPPY\0"):
            return bytes(cramjam.snappy.decompress_raw(data))
        out, at = b"", 16
        while at < len(data):
            size = struct.unpack(">I", data[at:at + 4])[0]
            out += bytes(cramjam.snappy.decompress_raw(data[at + 4:at + 4 + size]))
            at += 4 + size
        return out
    if codec == 3:
        return bytes(cramjam.lz4.decompress(data))
    if codec == 4:
        return bytes(cramjam.zstd.decompress(data))
    raise Bad("codec %d" % codec)


class Kafka(Cursor):
    """Kafka's records: varints are signed, and a length of -1 is null."""

    def field(self):
        size = self.int()
        return None if size < 0 else self.take(size)


def batch_records(data, level):
    """The records of batches that stand side by side, and the first and last offset of each batch."""
    at = Cursor(data)
    while at.left():
        base, length = struct.unpack(">qi", at.take(12))
        body = at.take(length)
        _epoch, magic, crc, attributes, last_delta, base_time, max_time, _, _, _, count = struct.unpack(">iBIhiqqqhii", body[:49])
        check(magic == 2 and crc == crc32c(body[9:]), "the batch at %d", base)
        records = []
        if not attributes & 0x20:
            inside = Kafka(opened(attributes & 7, body[49:]))
            for _ in range(count):
                one = Kafka(inside.take(inside.int()))
                one.u8()
                time, offset, key, value = base_time + one.int(), base + one.int(), one.field(), one.field()
                headers = [(one.field(), one.field()) for _ in range(one.int())]
                one.end()
                records.append((offset, max_time if attributes & 8 else time, key, value, headers))
            inside.end()
        yield base, base + last_delta, records


def seek_table(data):
    """The shares that a file of history knows of: (partition, first offset, last offset, first row, rows)."""
    footer = struct.unpack("<I", data[-8:-4])[0]
    at = len(data) - 8 - footer - 32
    magic, version, index, table, zero, crc = struct.unpack("<8sIQIII", data[at:at + 32])
    check(magic == b"ALLUVHIS" and version == 1 and zero == 0, "the trailer of a file of history")
    check(crc32c(data[at - index:at + 28] + data[at + 32:]) == crc, "the checksum of a file of history")
    cursor, row, found = Cursor(data[at - table:at]), 0, []
    for _ in range(cursor.uint()):
        partition, base, span, rows = (cursor.uint() for _ in range(4))
        inside = 0
        for portion in range(cursor.uint()):
            inside += cursor.uint()
            cursor.uint()  # KiB of its records.
            if portion:
                cursor.uint()  # Its first offset.
        check(inside == rows, "portions of %d rows in a share of %d", inside, rows)
        found.append((partition, base, base + span, row, rows))
        row += rows
    cursor.end()
    return found, row


class History:
    """A file of history."""

    IDS = {"partition": 1, "offset": 2, "timestamp": 3, "append_time": 4, "leader_epoch": 5, "key": 6, "headers": 7, "value": 8,
           "log_append_time": 9}

    def __init__(self, data, cluster, topic, name):
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        schema = file.schema_arrow
        check(schema.names == list(self.IDS), "columns %s", schema.names)
        for field in schema:
            check(int(field.metadata[b"PARQUET:field_id"]) == self.IDS[field.name], "the field id of %s", field.name)
        said = {key: value.decode() for key, value in file.metadata.metadata.items() if key.startswith(b"alluvium.")}
        check(said == {b"alluvium.format": "1", b"alluvium.cluster": str(cluster), b"alluvium.topic.id": str(topic),
                       b"alluvium.topic.name": name}, "the metadata %s", said)
        self.shares, rows = seek_table(data)
        check(rows == file.metadata.num_rows, "the seek table counts %d rows", rows)
        for group in range(file.metadata.num_row_groups):
            for column in range(file.metadata.num_columns):
                found = file.metadata.row_group(group).column(column)
                check(found.compression == "ZSTD" and found.has_offset_index and not found.has_dictionary_page, "how %s is written",
                      found.path_in_schema)
        table = file.read()
        # Beyond the year 9999 Python has no dates.
        for name in ("timestamp", "append_time"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast("int64"))
        self.rows = table.to_pylist()
        order = [(row["partition"], row["offset"]) for row in self.rows]
        check(order == sorted(set(order)), "the order of the rows")


def archived_records(bucket, topic, key, partition, one):
    if key not in bucket.parquet:
        bucket.parquet[key] = History(bucket.must(key), bucket.cluster, topic, bucket.names[topic])
    file = bucket.parquet[key]
    first = one.position
    check(any(share[:4] == (partition, one.base, one.last, first) for share in file.shares),
          "%s has no share of partition %d from %d to %d at row %d", key, partition, one.base, one.last, first)
    for row in file.rows[first:]:
        if row["partition"] != partition or row["offset"] > one.last:
            break
        value = row["value"].encode() if isinstance(row["value"], str) else row["value"]
        headers = [(h["key"].encode(), h["value"]) for h in row["headers"]]
        timestamp = -1 if row["timestamp"] is None else row["timestamp"] // 1000
        yield row["offset"], timestamp, row["key"], value, headers


def records(bucket, topic, number, partition):
    """Records with their level, in order."""
    expected = None
    for one in partition.ranges:
        check(expected in (None, one.base), "offsets go on at %d and not at %s", one.base, expected)
        expected = one.last + 1
        key = bucket.key(one, topic)
        if one.level == 2:
            found = list(archived_records(bucket, topic, key, number, one))
        else:
            data, found, following = bucket.must(key)[one.position:one.position + one.length], [], one.base
            check(len(data) == one.length, "%s is too short", key)
            for base, last, inside in batch_records(data, one.level):
                check(one.level == 1 or base == following, "%s: a batch at %d where %d should be", key, base, following)
                following = last + 1
                found += inside
            check(following - 1 <= one.last, "%s: batches beyond their range", key)
        for record in found:
            check(one.base <= record[0] <= one.last, "%s: offset %d outside its range", key, record[0])
            if record[0] >= partition.log_start:
                yield one.level, record
    check(expected in (None, partition.end), "the ranges end at %s and the log at %d", expected, partition.end)


def text(data):
    return None if data is None else base64.b64encode(data).decode()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    bucket = Bucket(sys.argv[1])
    counts = {"records": 0, "levels": [0, 0, 0], "partitions": {}}
    everything = logs(bucket)
    for (topic, number), partition in sorted(everything.items(), key=lambda one: (bucket.names[one[0][0]], one[0][1])):
        name = bucket.names[topic]
        counts["partitions"]["%s/%d" % (name, number)] = [partition.log_start, partition.end]
        for level, (offset, timestamp, key, value, headers) in records(bucket, topic, number, partition):
            counts["records"] += 1
            counts["levels"][level] += 1
            print(json.dumps({"topic": name, "partition": number, "offset": offset, "timestamp": timestamp, "level": level,
                              "key": text(key), "value": text(value), "headers": [[text(k), text(v)] for k, v in headers]}))
    print(json.dumps(counts))


if __name__ == "__main__":
    try:
        main()
    except Bad as problem:
        sys.exit("not as docs/storage.md says: %s" % problem)
