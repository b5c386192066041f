import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.AlterConfigOp.OpType;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.CreateTopicsOptions;
import org.apache.kafka.clients.admin.DescribeClusterResult;
import org.apache.kafka.clients.admin.DescribeConfigsOptions;
import org.apache.kafka.clients.admin.DescribeProducersResult.PartitionProducerState;
import org.apache.kafka.clients.admin.ListOffsetsResult.ListOffsetsResultInfo;
import org.apache.kafka.clients.admin.MemberToRemove;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionInfo;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.InvalidPartitionsException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.SecurityDisabledException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.quota.ClientQuotaFilter;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.AppInfoParser;

/** kafka-clients, the Java client. The records and the report are described in ../README.md. */
public final class Clients {
    static final long BASE_MS = 1_700_000_000_000L;
    static final int BIG_BYTES = 900_000;
    static String bootstrap;
    static String prefix;
    static Admin admin;

    record Rec(byte[] key, byte[] value, List<Header> headers, long timestamp) {}

    record Acked(int partition, long offset, Rec rec) {}

    interface Body {
        /** Runs the scenario; the result is a note, or null. */
        String run() throws Exception;
    }

    record Scenario(List<String> apis, Body body) {}

    static final Map<String, Scenario> SCENARIOS = new LinkedHashMap<>();

    static void scenario(String name, String apis, Body body) {
        SCENARIOS.put(name, new Scenario(List.of(apis.split(" ")), body));
    }

    // ---- records ----

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] noise(int size, int seed) {
        byte[] out = new byte[size];
        int state = seed;
        for (int i = 0; i < size; i++) {
            state ^= state << 13;
            state ^= state >>> 17;
            state ^= state << 5;
            out[i] = (byte) state;
        }
        return out;
    }

    static final byte[] BIG = noise(BIG_BYTES, 7);

    static Header header(String name, byte[] value) {
        return new RecordHeader(name, value);
    }

    static List<Rec> records() {
        byte[] up = new byte[256];
        byte[] down = new byte[256];
        for (int i = 0; i < 256; i++) {
            up[i] = (byte) i;
            down[i] = (byte) (255 - i);
        }
        List<Rec> out = new ArrayList<>();
        add(out, bytes("plain"), bytes("value"));
        add(out, null, bytes("no key"));
        add(out, bytes("tombstone"), null);
        add(out, null, null);
        add(out, new byte[0], new byte[0]);
        add(out, bytes("headers"), bytes("with headers"), header("h", bytes("1")), header("h", bytes("2")),
                header("empty", new byte[0]), header("nil", null), header("caf\u00e9", new byte[] {0, -1, -2}),
                header("h", bytes("1")));
        add(out, up, down);
        add(out, bytes("big"), BIG, header("size", bytes("900000")));
        for (int i = 0; i < 60; i++) {
            add(out, bytes("key-" + i % 7), bytes(("the quick brown fox " + i + " ").repeat(20)), header("n", bytes("" + i)));
        }
        return out;
    }

    static void add(List<Rec> out, byte[] key, byte[] value, Header... headers) {
        out.add(new Rec(key, value, List.of(headers), BASE_MS + out.size() * 1000L));
    }

    static List<Rec> simple(int count, String tag) {
        List<Rec> out = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            add(out, bytes("k" + i), bytes(tag + "-" + i));
        }
        return out;
    }

    // ---- checks ----

    static void check(boolean condition, String message, Object... args) {
        if (!condition) {
            throw new AssertionError(args.length == 0 ? message : String.format(message, args));
        }
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static void until(int seconds, String what, Condition condition) throws Exception {
        long end = System.nanoTime() + seconds * 1_000_000_000L;
        while (!condition.holds()) {
            check(System.nanoTime() < end, "%s did not happen within %d s", what, seconds);
            Thread.sleep(50);
        }
    }

    static <E extends Exception> void fails(Class<E> kind, String what, Body body) throws Exception {
        try {
            body.run();
        } catch (ExecutionException error) {
            check(kind.isInstance(error.getCause()), "%s: expected %s, got %s", what, kind.getSimpleName(), error.getCause());
            return;
        }
        throw new AssertionError(what + " succeeded");
    }

    /** Compares what was acknowledged with what was consumed, byte for byte and header for header. */
    static void same(List<Acked> acked, List<ConsumerRecord<byte[], byte[]>> seen) {
        check(acked.size() == seen.size(), "%d records produced, %d consumed", acked.size(), seen.size());
        List<Acked> want = new ArrayList<>(acked);
        want.sort(Comparator.comparingInt(Acked::partition).thenComparingLong(Acked::offset));
        List<ConsumerRecord<byte[], byte[]>> got = new ArrayList<>(seen);
        got.sort(Comparator.comparingInt((ConsumerRecord<byte[], byte[]> r) -> r.partition()).thenComparingLong(r -> r.offset()));
        for (int i = 0; i < want.size(); i++) {
            Acked a = want.get(i);
            ConsumerRecord<byte[], byte[]> r = got.get(i);
            String where = "partition " + a.partition + " offset " + a.offset;
            check(a.partition == r.partition() && a.offset == r.offset(), "acknowledged at %s, consumed at partition %d offset %d",
                    where, r.partition(), r.offset());
            check(Arrays.equals(a.rec.key, r.key()), "key of %s differs", where);
            check(Arrays.equals(a.rec.value, r.value()), "value of %s differs", where);
            check(a.rec.timestamp == r.timestamp(), "timestamp of %s: %d, not %d", where, r.timestamp(), a.rec.timestamp);
            check(a.rec.headers.equals(List.of(r.headers().toArray())), "headers of %s: %s, not %s", where, r.headers(), a.rec.headers);
        }
    }

    // ---- client ----

    static String create(String name, int partitions, String... configs) throws Exception {
        String topic = prefix + "-" + name;
        Map<String, String> map = new HashMap<>();
        for (int i = 0; i < configs.length; i += 2) {
            map.put(configs[i], configs[i + 1]);
        }
        admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(map))).all().get();
        until(20, "topic " + topic + " visible", () -> partitionsOf(topic) == partitions);
        return topic;
    }

    static int partitionsOf(String topic) throws Exception {
        try {
            return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
        } catch (ExecutionException notYet) {
            return 0;
        }
    }

    static Properties properties(Object... pairs) {
        Properties out = new Properties();
        out.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) {
            out.put(pairs[i], pairs[i + 1]);
        }
        return out;
    }

    static KafkaProducer<byte[], byte[]> producer(Object... pairs) {
        Properties config = properties("acks", "all", "enable.idempotence", "false", "linger.ms", "20");
        config.putAll(properties(pairs));
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static List<Acked> produce(String topic, List<Rec> batch, int partitions, Object... config) throws Exception {
        List<Future<RecordMetadata>> futures = new ArrayList<>();
        List<Acked> acked = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer = producer(config)) {
            for (int i = 0; i < batch.size(); i++) {
                Rec r = batch.get(i);
                futures.add(producer.send(new ProducerRecord<>(topic, i % partitions, r.timestamp, r.key, r.value, r.headers)));
            }
            producer.flush();
            for (int i = 0; i < batch.size(); i++) {
                RecordMetadata meta = futures.get(i).get();
                acked.add(new Acked(meta.partition(), meta.offset(), batch.get(i)));
            }
        }
        return acked;
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group, Object... pairs) {
        Properties config = properties("enable.auto.commit", "false", "auto.offset.reset", "earliest",
                "session.timeout.ms", "10000", "heartbeat.interval.ms", "500");
        if (group != null) {
            config.put("group.id", group);
        }
        config.putAll(properties(pairs));
        return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static void poll(KafkaConsumer<byte[], byte[]> source, List<ConsumerRecord<byte[], byte[]>> out, int ms) {
        source.poll(Duration.ofMillis(ms)).forEach(out::add);
    }

    static List<ConsumerRecord<byte[], byte[]>> take(KafkaConsumer<byte[], byte[]> source, int count) {
        List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
        long end = System.nanoTime() + 30_000_000_000L;
        while (out.size() < count && System.nanoTime() < end) {
            poll(source, out, 200);
        }
        long idle = System.nanoTime() + 500_000_000L;
        while (System.nanoTime() < idle) {
            poll(source, out, 100);
        }
        return out;
    }

    static List<TopicPartition> parts(String topic, int count) {
        return IntStream.range(0, count).mapToObj(p -> new TopicPartition(topic, p)).collect(Collectors.toList());
    }

    static List<ConsumerRecord<byte[], byte[]>> readAll(String topic, int partitions, int count) {
        try (KafkaConsumer<byte[], byte[]> source = consumer(null)) {
            source.assign(parts(topic, partitions));
            source.seekToBeginning(source.assignment());
            return take(source, count);
        }
    }

    /** What a reader from the start finds up to an offset. */
    static List<ConsumerRecord<byte[], byte[]>> readTo(String topic, long offset) {
        try (KafkaConsumer<byte[], byte[]> source = consumer(null)) {
            source.assign(parts(topic, 1));
            source.seekToBeginning(source.assignment());
            List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
            long end = System.nanoTime() + 30_000_000_000L;
            while (out.isEmpty() || out.get(out.size() - 1).offset() < offset) {
                check(System.nanoTime() < end, "offset %d was not read within 30 s", offset);
                poll(source, out, 200);
            }
            return out;
        }
    }

    /** Whether of the records of ten keys only the newest is left. The newest must be there at any time. */
    static boolean compacted(List<ConsumerRecord<byte[], byte[]>> seen) {
        int rows = 0;
        long before = -1;
        Map<String, String> newest = new HashMap<>();
        for (ConsumerRecord<byte[], byte[]> r : seen) {
            check(r.offset() > before, "the offsets do not rise at %d", r.offset());
            before = r.offset();
            String key = new String(r.key(), StandardCharsets.UTF_8);
            if (!key.equals("tick")) {
                rows++;
                newest.put(key, r.value() == null ? null : new String(r.value(), StandardCharsets.UTF_8));
            }
        }
        for (int key = 1; key < 10; key++) {
            check((key + " in 4").equals(newest.get("k" + key)), "the newest are %s", newest);
        }
        check(newest.get("k0") == null, "the deleted key is back: %s", newest);
        // The deletion itself stays for a day.
        return rows <= 10;
    }

    static String config(String topic, String name) throws Exception {
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        ConfigEntry entry = admin.describeConfigs(List.of(resource)).all().get().get(resource).get(name);
        check(entry != null, "config %s is missing", name);
        return entry.value();
    }

    static void alter(String topic, AlterConfigOp... ops) throws Exception {
        admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.TOPIC, topic), List.of(ops))).all().get();
    }

    static AlterConfigOp op(String name, String value, OpType type) {
        return new AlterConfigOp(new ConfigEntry(name, value), type);
    }

    static ConsumerGroupDescription describe(String group) throws Exception {
        return admin.describeConsumerGroups(List.of(group)).all().get().get(group);
    }

    // ---- scenarios ----

    static void register() {
        scenario("topic.create", "ApiVersions Metadata CreateTopics DescribeTopicPartitions", () -> {
            String topic = create("create", 3, "cleanup.policy", "compact");
            check(config(topic, "cleanup.policy").equals("compact"), "cleanup.policy");
            fails(TopicExistsException.class, "creating the topic twice",
                    () -> admin.createTopics(List.of(new NewTopic(topic, 3, (short) 1))).all().get() + "");
            var dry = admin.createTopics(List.of(new NewTopic(topic + "-dry", 5, (short) 1)), new CreateTopicsOptions().validateOnly(true));
            check(dry.numPartitions(topic + "-dry").get() == 5, "validate_only answers with the partition count");
            check(!admin.listTopics().names().get().contains(topic + "-dry"), "validate_only created the topic");
            String byDefault = topic + "-default";
            var made = admin.createTopics(List.of(new NewTopic(byDefault, java.util.Optional.empty(), java.util.Optional.empty())));
            check(made.numPartitions(byDefault).get() >= 1, "default partition count");
            check(made.config(byDefault).get().get("retention.ms") != null, "the answer holds the configs");
            return null;
        });
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            scenario("produce." + codec, "Produce Fetch ListOffsets Metadata", () -> {
                String topic = create("codec-" + codec, 3);
                List<Acked> acked = produce(topic, records(), 3, "compression.type", codec);
                same(acked, readAll(topic, 3, acked.size()));
                return null;
            });
        }
        scenario("topic.auto-create", "Metadata Produce", () -> {
            String topic = prefix + "-auto";
            same(produce(topic, simple(3, "a"), 1), readAll(topic, 1, 3));
            return null;
        });
        scenario("produce.idempotent", "InitProducerId Produce", () -> {
            String topic = create("idempotent", 3);
            List<Rec> batch = records();
            batch.addAll(simple(500, "i"));
            List<Acked> acked = produce(topic, batch, 3, "enable.idempotence", "true", "batch.size", "500");
            same(acked, readAll(topic, 3, acked.size()));
            return null;
        });
        scenario("produce.acks", "Produce", () -> {
            String topic = create("acks", 1);
            List<Acked> acked = produce(topic, simple(20, "one"), 1, "acks", "1");
            produce(topic, simple(20, "zero"), 1, "acks", "0");
            var back = readAll(topic, 1, 40);
            check(back.size() == 40, "%d of 40 records", back.size());
            same(acked, back.subList(0, 20));
            return null;
        });
        scenario("produce.too-large", "Produce", () -> {
            String topic = create("too-large", 1, "max.message.bytes", "1000");
            fails(RecordTooLargeException.class, "a record above max.message.bytes",
                    () -> produce(topic, List.of(new Rec(bytes("k"), new byte[5000], List.of(), BASE_MS)), 1) + "");
            check(readAll(topic, 1, 0).isEmpty(), "the rejected record is there");
            return null;
        });
        groups();
        reading();
        administration();
    }

    static void groups() {
        scenario("group.rebalance", "FindCoordinator JoinGroup SyncGroup Heartbeat LeaveGroup OffsetCommit OffsetFetch", () -> {
            String topic = create("group", 4);
            String group = prefix + "-group";
            List<Acked> acked = new ArrayList<>(produce(topic, simple(200, "g"), 4));
            List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
            KafkaConsumer<byte[], byte[]> first = consumer(group);
            first.subscribe(List.of(topic));
            until(30, "first member reads all of 4 partitions", () -> {
                poll(first, out, 100);
                return out.size() >= 200 && first.assignment().size() == 4;
            });
            first.commitSync();
            KafkaConsumer<byte[], byte[]> second = consumer(group);
            second.subscribe(List.of(topic));
            until(30, "two members own 2 partitions each", () -> {
                poll(first, out, 50);
                poll(second, out, 50);
                return first.assignment().size() == 2 && second.assignment().size() == 2;
            });
            acked.addAll(produce(topic, simple(100, "h"), 4));
            until(20, "two members read all", () -> {
                poll(first, out, 50);
                poll(second, out, 50);
                return out.size() >= 300;
            });
            first.commitSync();
            second.commitSync();
            second.close();
            until(30, "first member owns 4 partitions again", () -> {
                poll(first, out, 50);
                return first.assignment().size() == 4;
            });
            acked.addAll(produce(topic, simple(40, "i"), 4));
            until(20, "first member reads the rest", () -> {
                poll(first, out, 50);
                return out.size() >= 340;
            });
            first.commitSync();
            first.close();
            same(acked, out);
            return null;
        });
        scenario("group.cooperative", "JoinGroup SyncGroup Heartbeat", () -> {
            String topic = create("cooperative", 4);
            String group = prefix + "-cooperative";
            String assignor = "org.apache.kafka.clients.consumer.CooperativeStickyAssignor";
            List<Acked> acked = produce(topic, simple(80, "c"), 4);
            List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
            try (KafkaConsumer<byte[], byte[]> first = consumer(group, "partition.assignment.strategy", assignor);
                    KafkaConsumer<byte[], byte[]> second = consumer(group, "partition.assignment.strategy", assignor)) {
                first.subscribe(List.of(topic));
                until(30, "first member reads all of 4 partitions", () -> {
                    poll(first, out, 100);
                    return first.assignment().size() == 4 && out.size() >= 80;
                });
                first.commitSync();
                second.subscribe(List.of(topic));
                until(30, "two members own 2 partitions each", () -> {
                    poll(first, out, 50);
                    poll(second, out, 50);
                    return first.assignment().size() == 2 && second.assignment().size() == 2;
                });
            }
            same(acked, out);
            return null;
        });
        scenario("group.resume", "OffsetCommit OffsetFetch JoinGroup SyncGroup", () -> {
            String topic = create("resume", 2);
            String group = prefix + "-resume";
            List<TopicPartition> parts = parts(topic, 2);
            List<Acked> old = produce(topic, simple(50, "r"), 2);
            try (KafkaConsumer<byte[], byte[]> member = consumer(group)) {
                member.subscribe(List.of(topic));
                same(old, take(member, 50));
                member.commitSync(Map.of(parts.get(0), new OffsetAndMetadata(25, "half"),
                        parts.get(1), new OffsetAndMetadata(20, "caf\u00e9")));
            }
            List<Acked> expected = new ArrayList<>(produce(topic, simple(10, "s"), 2));
            old.stream().filter(a -> a.partition == 1 && a.offset >= 20).forEach(expected::add);
            try (KafkaConsumer<byte[], byte[]> member = consumer(group)) {
                member.subscribe(List.of(topic));
                same(expected, take(member, 15));
                var committed = member.committed(new HashSet<>(parts));
                check(committed.get(parts.get(0)).offset() == 25 && committed.get(parts.get(0)).metadata().equals("half")
                        && committed.get(parts.get(1)).metadata().equals("caf\u00e9"), "committed %s", committed);
            }
            return null;
        });
        scenario("group.static", "JoinGroup SyncGroup DescribeGroups LeaveGroup", () -> {
            String topic = create("static", 2);
            String group = prefix + "-static";
            for (int round = 0; round < 2; round++) {
                try (KafkaConsumer<byte[], byte[]> member = consumer(group, "group.instance.id", "instance-1")) {
                    member.subscribe(List.of(topic));
                    until(30, "static member assigned", () -> {
                        member.poll(Duration.ofMillis(100));
                        return member.assignment().size() == 2;
                    });
                    var members = describe(group).members();
                    check(members.size() == 1 && members.iterator().next().groupInstanceId().orElse("").equals("instance-1"),
                            "members %s", members);
                }
            }
            check(describe(group).members().size() == 1, "a static member that closes stays until its session ends");
            admin.removeMembersFromConsumerGroup(group,
                    new RemoveMembersFromConsumerGroupOptions(Set.of(new MemberToRemove("instance-1")))).all().get();
            until(10, "removed static member gone", () -> describe(group).members().isEmpty());
            return null;
        });
    }

    static void reading() {
        scenario("offsets.list", "ListOffsets", () -> {
            String topic = create("list", 2);
            produce(topic, simple(20, "l"), 2);
            TopicPartition part = new TopicPartition(topic, 1);
            for (Object[] row : new Object[][] {{OffsetSpec.earliest(), 0L}, {OffsetSpec.latest(), 10L},
                    {OffsetSpec.maxTimestamp(), 9L}, {OffsetSpec.forTimestamp(BASE_MS + 5500), 3L},
                    {OffsetSpec.forTimestamp(BASE_MS + 1_000_000_000L), -1L}}) {
                ListOffsetsResultInfo info = admin.listOffsets(Map.of(part, (OffsetSpec) row[0])).all().get().get(part);
                check(info.offset() == (long) row[1], "%s: %s", row[0].getClass().getSimpleName(), info);
            }
            try (KafkaConsumer<byte[], byte[]> source = consumer(null)) {
                check(source.beginningOffsets(List.of(part)).get(part) == 0 && source.endOffsets(List.of(part)).get(part) == 10, "consumer");
            }
            return null;
        });
        scenario("seek.time", "ListOffsets Fetch", () -> {
            String topic = create("time", 1);
            TopicPartition part = new TopicPartition(topic, 0);
            List<Acked> acked = produce(topic, simple(30, "t"), 1);
            try (KafkaConsumer<byte[], byte[]> source = consumer(null)) {
                source.assign(List.of(part));
                OffsetAndTimestamp at = source.offsetsForTimes(Map.of(part, BASE_MS + 10_500)).get(part);
                check(at.offset() == 11 && at.timestamp() == BASE_MS + 11_000, "offset for a time between records: %s", at);
                check(source.offsetsForTimes(Map.of(part, BASE_MS + 1_000_000_000L)).get(part) == null, "a time after the end has an offset");
                source.seek(part, at.offset());
                same(acked.subList(11, 30), take(source, 19));
            }
            return null;
        });
        scenario("seek.offset", "Fetch OffsetForLeaderEpoch", () -> {
            String topic = create("seek", 1);
            TopicPartition part = new TopicPartition(topic, 0);
            List<Acked> acked = produce(topic, simple(30, "t"), 1);
            try (KafkaConsumer<byte[], byte[]> source = consumer(null)) {
                source.assign(List.of(part));
                for (int offset : new int[] {5, 29, 5000}) {
                    source.seek(part, offset);
                    List<Acked> expected = acked.subList(offset < 30 ? offset : 0, 30);
                    same(expected, take(source, expected.size()));
                }
                // A position with a leader epoch is validated by OffsetForLeaderEpoch before the next fetch.
                var epoch = admin.listOffsets(Map.of(part, OffsetSpec.latest())).all().get().get(part).leaderEpoch();
                check(epoch.isPresent(), "ListOffsets names no leader epoch");
                source.seek(part, new OffsetAndMetadata(7, epoch, ""));
                same(acked.subList(7, 30), take(source, 23));
            }
            return null;
        });
        scenario("longpoll", "Fetch", () -> {
            String topic = create("longpoll", 1);
            List<Long> took = new ArrayList<>();
            try (KafkaConsumer<byte[], byte[]> source = consumer(null, "fetch.max.wait.ms", "5000");
                    KafkaProducer<byte[], byte[]> producer = producer("linger.ms", "0")) {
                source.assign(parts(topic, 1));
                source.seekToBeginning(source.assignment());
                source.poll(Duration.ofMillis(500));
                for (int i = 0; i < 5; i++) {
                    AtomicLong sent = new AtomicLong();
                    Thread later = new Thread(() -> {
                        try {
                            Thread.sleep(300);
                            producer.send(new ProducerRecord<>(topic, bytes("p"))).get();
                            sent.set(System.nanoTime());
                        } catch (InterruptedException | ExecutionException error) {
                            throw new IllegalStateException(error);
                        }
                    });
                    later.start();
                    long end = System.nanoTime() + 20_000_000_000L;
                    while (source.poll(Duration.ofSeconds(5)).isEmpty()) {
                        check(System.nanoTime() < end, "no record within 20 s");
                    }
                    long arrived = System.nanoTime();
                    later.join();
                    took.add(Math.max(0, (arrived - sent.get()) / 1_000_000));
                }
            }
            Collections.sort(took);
            return "record arrives " + took.get(2) + " ms after its acknowledgement";
        });
    }

    static void administration() {
        scenario("admin.partitions", "CreatePartitions Metadata", () -> {
            String topic = create("grow", 1);
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
            until(20, "4 partitions", () -> partitionsOf(topic) == 4);
            same(produce(topic, simple(20, "x"), 4), readAll(topic, 4, 20));
            fails(InvalidPartitionsException.class, "shrinking",
                    () -> admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(2))).all().get() + "");
            return null;
        });
        scenario("admin.configs", "DescribeConfigs IncrementalAlterConfigs", () -> {
            String topic = create("configs", 1, "retention.ms", "3600000");
            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            Config full = admin.describeConfigs(List.of(resource),
                    new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true)).all().get().get(resource);
            ConfigEntry retention = full.get("retention.ms");
            check(retention.source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG && retention.type() == ConfigEntry.ConfigType.LONG,
                    "retention.ms: source %s type %s", retention.source(), retention.type());
            check(retention.synonyms().get(0).source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG, "synonyms %s", retention.synonyms());
            check(full.get("max.message.bytes").synonyms().stream().anyMatch(s -> s.name().equals("message.max.bytes")),
                    "synonyms %s", full.get("max.message.bytes").synonyms());
            check(retention.documentation() != null && !retention.documentation().isEmpty(), "documentation");
            check(full.get("cleanup.policy").isDefault(), "cleanup.policy is the default");
            alter(topic, op("retention.ms", "7200000", OpType.SET), op("cleanup.policy", "compact", OpType.APPEND));
            until(10, "retention.ms changed", () -> config(topic, "retention.ms").equals("7200000"));
            check(Set.of(config(topic, "cleanup.policy").split(",")).equals(Set.of("delete", "compact")), "append");
            alter(topic, op("cleanup.policy", "compact", OpType.SUBTRACT), op("retention.ms", null, OpType.DELETE));
            until(10, "retention.ms back to its default", () -> config(topic, "retention.ms").equals("604800000"));
            check(config(topic, "cleanup.policy").equals("delete"), "subtract");
            fails(InvalidConfigurationException.class, "retention.ms=soon", () -> {
                alter(topic, op("retention.ms", "soon", OpType.SET));
                return null;
            });
            return null;
        });
        scenario("admin.broker-configs", "DescribeConfigs IncrementalAlterConfigs", () -> {
            String id = admin.describeCluster().nodes().get().iterator().next().idString();
            ConfigResource resource = new ConfigResource(ConfigResource.Type.BROKER, id);
            Config full = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            for (String name : List.of("num.partitions", "auto.create.topics.enable", "message.max.bytes", "log.retention.ms", "listeners")) {
                check(full.get(name) != null, "broker config %s is missing", name);
            }
            return null;
        });
        scenario("admin.cluster", "DescribeCluster Metadata", () -> {
            DescribeClusterResult cluster = admin.describeCluster();
            check(cluster.clusterId().get() != null, "no cluster id");
            check(cluster.nodes().get().stream().anyMatch(n -> n.id() == get(cluster.controller()).id()), "the controller is not a listed broker");
            return null;
        });
        scenario("admin.topics", "Metadata DescribeTopicPartitions", () -> {
            String topic = create("described", 2);
            TopicDescription byName = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            check(!byName.topicId().equals(Uuid.ZERO_UUID), "the topic id is zero");
            for (TopicPartitionInfo info : byName.partitions()) {
                check(info.leader() != null && info.replicas().contains(info.leader()) && info.isr().contains(info.leader()), "partition %s", info);
            }
            TopicDescription byId = admin.describeTopics(org.apache.kafka.common.TopicCollection.ofTopicIds(List.of(byName.topicId())))
                    .allTopicIds().get().get(byName.topicId());
            check(byId.name().equals(topic), "by id: %s", byId);
            check(admin.listTopics().listings().get().stream().anyMatch(l -> l.name().equals(topic) && l.topicId().equals(byName.topicId())), "list");
            return null;
        });
        scenario("admin.groups", "ListGroups DescribeGroups DeleteGroups", () -> {
            String topic = create("groups", 1);
            String group = prefix + "-groups";
            produce(topic, simple(5, "g"), 1);
            try (KafkaConsumer<byte[], byte[]> member = consumer(group, "client.id", "the-client")) {
                member.subscribe(List.of(topic));
                check(take(member, 5).size() == 5, "records");
                member.commitSync();
                check(admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group)), "group is not listed");
                ConsumerGroupDescription described = describe(group);
                check(described.groupState() == GroupState.STABLE && described.members().size() == 1, "described %s", described);
                var one = described.members().iterator().next();
                check(one.clientId().equals("the-client") && one.assignment().topicPartitions().equals(Set.of(new TopicPartition(topic, 0))),
                        "member %s", one);
                fails(GroupNotEmptyException.class, "deleting a group with members",
                        () -> admin.deleteConsumerGroups(List.of(group)).all().get() + "");
            }
            until(20, "group empty", () -> describe(group).groupState() == GroupState.EMPTY);
            admin.deleteConsumerGroups(List.of(group)).all().get();
            check(admin.listGroups().all().get().stream().noneMatch(g -> g.groupId().equals(group)), "the deleted group is listed");
            return null;
        });
        scenario("admin.group-offsets", "OffsetFetch OffsetCommit OffsetDelete", () -> {
            String topic = create("group-offsets", 2);
            String group = prefix + "-group-offsets";
            List<TopicPartition> parts = parts(topic, 2);
            admin.alterConsumerGroupOffsets(group, Map.of(parts.get(0), new OffsetAndMetadata(4, "m"),
                    parts.get(1), new OffsetAndMetadata(7))).all().get();
            var back = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            check(back.get(parts.get(0)).offset() == 4 && back.get(parts.get(0)).metadata().equals("m") && back.get(parts.get(1)).offset() == 7,
                    "offsets %s", back);
            admin.deleteConsumerGroupOffsets(group, Set.of(parts.get(0))).all().get();
            back = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            check(back.keySet().equals(Set.of(parts.get(1))), "after OffsetDelete: %s", back);
            return null;
        });
        scenario("admin.delete-records", "DeleteRecords ListOffsets", () -> {
            String topic = create("delete-records", 1);
            TopicPartition part = new TopicPartition(topic, 0);
            List<Acked> acked = produce(topic, simple(20, "d"), 1);
            long low = admin.deleteRecords(Map.of(part, RecordsToDelete.beforeOffset(8))).lowWatermarks().get(part).get().lowWatermark();
            check(low == 8, "low watermark %d", low);
            until(10, "log start 8", () -> admin.listOffsets(Map.of(part, OffsetSpec.earliest())).all().get().get(part).offset() == 8);
            same(acked.subList(8, 20), readAll(topic, 1, 12));
            return null;
        });
        scenario("admin.log-dirs", "DescribeLogDirs", () -> {
            String topic = create("log-dirs", 1);
            produce(topic, simple(50, "z"), 1);
            int id = admin.describeCluster().nodes().get().iterator().next().id();
            var dirs = admin.describeLogDirs(List.of(id)).allDescriptions().get().get(id);
            check(dirs.values().stream().anyMatch(d -> d.replicaInfos().containsKey(new TopicPartition(topic, 0))), "log dirs %s", dirs);
            return null;
        });
        scenario("admin.producers", "DescribeProducers", () -> {
            String topic = create("producers", 1);
            TopicPartition part = new TopicPartition(topic, 0);
            produce(topic, simple(5, "z"), 1, "enable.idempotence", "true");
            PartitionProducerState state = admin.describeProducers(List.of(part)).partitionResult(part).get();
            check(state.activeProducers().size() == 1 && state.activeProducers().get(0).lastSequence() == 4, "producers %s", state.activeProducers());
            return null;
        });
        scenario("admin.reassignments", "ListPartitionReassignments", () -> {
            check(admin.listPartitionReassignments().reassignments().get().isEmpty(), "a reassignment goes on");
            return null;
        });
        scenario("admin.security", "DescribeAcls DescribeClientQuotas", () -> {
            fails(SecurityDisabledException.class, "describing ACLs without an authorizer",
                    () -> admin.describeAcls(AclBindingFilter.ANY).values().get() + "");
            check(admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get().isEmpty(), "there are quotas");
            return null;
        });
        scenario("topic.compact", "CreateTopics Produce Fetch", () -> {
            // Under these configs any broker compacts soon: what is a moment old, however little it is.
            String topic = create("compact", 1, "cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.01", "segment.ms", "100",
                    "max.compaction.lag.ms", "100");
            List<Rec> all = new ArrayList<>();
            for (int n = 0; n < 5; n++) {
                for (int key = 0; key < 10; key++) {
                    add(all, bytes("k" + key), bytes(key + " in " + n));
                }
            }
            add(all, bytes("k0"), null);
            produce(topic, all, 1);
            long began = System.nanoTime();
            until(75, "compaction", () -> {
                Thread.sleep(1000);
                long passed = (System.nanoTime() - began) / 1_000_000_000;
                // Kafka compacts only what a later record has followed.
                Rec later = new Rec(bytes("tick"), bytes("" + passed), List.of(), BASE_MS + (100 + passed) * 1000);
                return compacted(readTo(topic, produce(topic, List.of(later), 1).get(0).offset));
            });
            return "compacted after " + (System.nanoTime() - began) / 1_000_000_000 + " s";
        });
        scenario("topic.delete", "DeleteTopics Metadata", () -> {
            String topic = create("delete", 2);
            Uuid id = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId();
            produce(topic, simple(10, "d"), 2);
            admin.deleteTopics(List.of(topic)).all().get();
            until(20, "topic gone", () -> !admin.listTopics().names().get().contains(topic));
            create("delete", 1);
            check(!admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId().equals(id), "the new topic has the old id");
            List<Acked> acked = produce(topic, simple(3, "e"), 1);
            check(acked.stream().map(Acked::offset).sorted().toList().equals(List.of(0L, 1L, 2L)), "a topic made again starts at 0: %s", acked);
            same(acked, readAll(topic, 1, 3));
            return null;
        });
    }

    static <T> T get(Future<T> future) {
        try {
            return future.get();
        } catch (InterruptedException | ExecutionException error) {
            throw new IllegalStateException(error);
        }
    }

    // ---- report ----

    static String quote(String text) {
        if (text == null) {
            return "null";
        }
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    static String list(Collection<String> items) {
        return items.stream().map(Clients::quote).collect(Collectors.joining(", ", "[", "]"));
    }

    public static void main(String[] args) {
        if (args.length < 2) {
            System.err.println("usage: Clients BOOTSTRAP PREFIX [SCENARIO...]");
            System.exit(2);
        }
        bootstrap = args[0];
        prefix = args[1];
        register();
        Set<String> chosen = Stream.of(args).skip(2).collect(Collectors.toSet());
        if (!SCENARIOS.keySet().containsAll(chosen)) {
            System.err.println("no such scenario among " + chosen);
            System.exit(2);
        }
        admin = Admin.create(properties("default.api.timeout.ms", "30000"));
        boolean failed = false;
        for (Map.Entry<String, Scenario> one : SCENARIOS.entrySet()) {
            if (!chosen.isEmpty() && !chosen.contains(one.getKey())) {
                continue;
            }
            long start = System.nanoTime();
            String note = null;
            String error = null;
            try {
                note = one.getValue().body.run();
            } catch (Exception | AssertionError problem) {
                failed = true;
                error = problem.toString();
                if (System.getenv("VERBOSE") != null) {
                    StringWriter text = new StringWriter();
                    problem.printStackTrace(new PrintWriter(text));
                    System.err.println(text);
                }
            }
            System.out.printf("{\"client\": \"kafka-clients\", \"version\": %s, \"scenario\": %s, \"apis\": %s, \"ok\": %b, "
                    + "\"error\": %s, \"note\": %s, \"ms\": %d}%n", quote(AppInfoParser.getVersion()), quote(one.getKey()),
                    list(one.getValue().apis), error == null, quote(error), quote(note), (System.nanoTime() - start) / 1_000_000);
        }
        // Halted, so that a client thread that still waits cannot change the result.
        System.out.flush();
        Runtime.getRuntime().halt(failed ? 1 : 0);
    }
}
