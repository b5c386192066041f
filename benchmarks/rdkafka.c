/*
 * Measures a Kafka broker with librdkafka; prints one JSON object like that of `alluvium bench`.
 *
 *   rdkafka produce BOOTSTRAP TOPIC PARTITIONS RECORDS RECORD_SIZE [NAME=VALUE...]
 *   rdkafka consume BOOTSTRAP TOPIC PARTITIONS RECORDS RECORD_SIZE [NAME=VALUE...]
 *   rdkafka e2e     BOOTSTRAP TOPIC RECORDS_PER_SECOND SECONDS RECORD_SIZE [NAME=VALUE...]
 *   rdkafka pace    BOOTSTRAP TOPIC RECORDS_PER_SECOND SECONDS RECORD_SIZE [NAME=VALUE...]
 *
 * The topic must exist. NAME=VALUE are settings of librdkafka; the producer starts with acks=all, linger.ms=5, with
 * pace with none at all. pace also tells, for each partition, the longest time in which it acknowledged nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <librdkafka/rdkafka.h>

/* Without progress for so long, the run has failed. */
#define PATIENCE_NS (60 * 1000000000LL)
/* Distinct payloads, so that nothing on the way can gain from repetition. */
#define POOL_BYTES (16u << 20)

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "rdkafka: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static long number(const char *text, long min) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || *end || end == text || value < min)
        fail("'%s' is not a whole number of at least %ld", text, min);
    return value;
}

static rd_kafka_conf_t *settings(const char *bootstrap, int count, char **pairs, const char *const *defaults) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char error[512];
    if (rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, error, sizeof error) != RD_KAFKA_CONF_OK)
        fail("%s", error);
    for (; defaults[0]; defaults += 2)
        if (rd_kafka_conf_set(conf, defaults[0], defaults[1], error, sizeof error) != RD_KAFKA_CONF_OK)
            fail("%s", error);
    for (int i = 0; i < count; i++) {
        char *value = strchr(pairs[i], '=');
        if (!value)
            fail("'%s' is not NAME=VALUE", pairs[i]);
        *value = 0;
        if (rd_kafka_conf_set(conf, pairs[i], value + 1, error, sizeof error) != RD_KAFKA_CONF_OK)
            fail("%s", error);
        *value = '=';
    }
    return conf;
}

/* Random bytes (xorshift64). */
static unsigned char *random_pool(size_t bytes) {
    unsigned char *pool = malloc(bytes);
    if (!pool)
        fail("no memory");
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(pool + i, &state, 8);
    }
    return pool;
}

/* Latencies in microseconds. */
struct latencies {
    uint32_t *values;
    size_t count, capacity;
};

static void latencies_init(struct latencies *all, size_t capacity) {
    all->count = 0;
    all->capacity = capacity;
    all->values = malloc(capacity * sizeof *all->values);
    if (!all->values)
        fail("no memory");
}

static void latencies_add(struct latencies *all, int64_t ns) {
    if (all->count < all->capacity)
        all->values[all->count++] = ns < 0 ? 0 : ns / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 1000);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct latencies *all, double share) {
    if (!all->count)
        return 0;
    size_t at = (size_t)(share * (double)(all->count - 1) + 0.5);
    return all->values[at] / 1000.0;
}

static void latencies_print(const char *name, struct latencies *all) {
    double sum = 0;
    qsort(all->values, all->count, sizeof *all->values, ascending);
    for (size_t i = 0; i < all->count; i++)
        sum += all->values[i];
    printf("\"%s\":{\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
           name, all->count ? sum / (double)all->count / 1000.0 : 0, percentile(all, 0.5), percentile(all, 0.9),
           percentile(all, 0.95), percentile(all, 0.99), percentile(all, 0.999), percentile(all, 1));
}

/* What the delivery reports say. Used by one thread only: the one that polls. */
static struct latencies acknowledged;
static long deliveries, delivery_errors;
/* By partition: the last acknowledgement, and the longest time from one to the next. NULL: nobody wants to know. */
static struct gap {
    int64_t last, longest;
} *gaps;

static void delivered(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque) {
    (void)client;
    (void)opaque;
    deliveries++;
    if (message->err) {
        delivery_errors++;
        return;
    }
    int64_t now = now_ns();
    latencies_add(&acknowledged, now - (int64_t)(intptr_t)message->_private);
    if (gaps) {
        struct gap *gap = &gaps[message->partition];
        if (now - gap->last > gap->longest)
            gap->longest = now - gap->last;
        gap->last = now;
    }
}

static const char *const PATIENT[] = {"acks", "all", "linger.ms", "5", NULL};
static const char *const NONE[] = {NULL};

static rd_kafka_t *producer(const char *bootstrap, int count, char **pairs, const char *const *defaults) {
    rd_kafka_conf_t *conf = settings(bootstrap, count, pairs, defaults);
    char error[512];
    rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof error);
    if (!client)
        fail("%s", error);
    return client;
}

static rd_kafka_topic_t *topic_of(rd_kafka_t *client, const char *name) {
    rd_kafka_topic_t *topic = rd_kafka_topic_new(client, name, NULL);
    if (!topic)
        fail("%s: %s", name, rd_kafka_err2str(rd_kafka_last_error()));
    return topic;
}

/* Queues one record, waiting while the queue is full. The clock of its latency starts at `sent`. */
static void queue(rd_kafka_t *client, rd_kafka_topic_t *topic, int32_t partition, void *payload, size_t size,
                  int copy, int64_t sent) {
    while (rd_kafka_produce(topic, partition, copy ? RD_KAFKA_MSG_F_COPY : 0, payload, size, NULL, 0,
                            (void *)(intptr_t)sent)) {
        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
            fail("produce: %s", rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_poll(client, 10);
    }
}

static void wait_for_deliveries(rd_kafka_t *client, long records) {
    int64_t progress = now_ns();
    for (long before = deliveries; deliveries < records;) {
        rd_kafka_poll(client, 10);
        if (deliveries != before) {
            before = deliveries;
            progress = now_ns();
        } else if (now_ns() - progress > PATIENCE_NS) {
            fail("no delivery report for a minute, %ld of %ld records", deliveries, records);
        }
    }
}

/* Serves delivery reports until this time. */
static void wait_until(rd_kafka_t *client, int64_t due) {
    for (int64_t left; (left = due - now_ns()) > 0;) {
        struct timespec rest = {0, left > 999999 ? 999999 : left};
        nanosleep(&rest, NULL);
        rd_kafka_poll(client, 0);
    }
}

static void produce(const char *bootstrap, const char *name, long partitions, long records, long size, int count,
                    char **pairs) {
    rd_kafka_t *client = producer(bootstrap, count, pairs, PATIENT);
    rd_kafka_topic_t *topic = topic_of(client, name);
    unsigned char *pool = random_pool(POOL_BYTES);
    const size_t places = (POOL_BYTES - (size_t)size) / 8;
    latencies_init(&acknowledged, (size_t)records);
    int64_t start = now_ns();
    for (long i = 0; i < records; i++) {
        /* The payload is not copied: the pool outlives every record. */
        unsigned char *payload = pool + (size_t)i * 1031 % places * 8;
        queue(client, topic, (int32_t)(i % partitions), payload, (size_t)size, 0, now_ns());
        if (i % 64 == 0)
            rd_kafka_poll(client, 0);
    }
    wait_for_deliveries(client, records);
    double seconds = (double)(now_ns() - start) / 1e9;
    long good = records - delivery_errors;
    printf("{\"kind\":\"produce\",\"records\":%ld,\"bytes\":%ld,\"seconds\":%.6f,\"mb_per_second\":%.3f,"
           "\"records_per_second\":%.1f,\"errors\":%ld,",
           good, good * size, seconds, (double)(good * size) / seconds / 1e6, (double)good / seconds,
           delivery_errors);
    latencies_print("latency_ms", &acknowledged);
    printf("}\n");
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy(client);
    free(pool);
}

static rd_kafka_t *consumer(const char *bootstrap, const char *name, long partitions, int64_t offset, int count,
                            char **pairs, int64_t *assigned_at) {
    /* No group: the partitions are assigned. A group id must be there all the same. */
    static const char *const defaults[] = {"group.id", "rdkafka-benchmark", "enable.auto.commit", "false",
                                           "auto.offset.reset", "error", NULL};
    rd_kafka_conf_t *conf = settings(bootstrap, count, pairs, defaults);
    char error[512];
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
    if (!client)
        fail("%s", error);
    rd_kafka_poll_set_consumer(client);
    rd_kafka_topic_t *topic = topic_of(client, name);
    const struct rd_kafka_metadata *metadata;
    rd_kafka_resp_err_t found = rd_kafka_metadata(client, 0, topic, &metadata, 30000);
    if (found)
        fail("metadata: %s", rd_kafka_err2str(found));
    rd_kafka_metadata_destroy(metadata);
    rd_kafka_topic_destroy(topic);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)partitions);
    for (long partition = 0; partition < partitions; partition++)
        rd_kafka_topic_partition_list_add(list, name, (int32_t)partition)->offset = offset;
    if (assigned_at)
        *assigned_at = now_ns();
    rd_kafka_resp_err_t assigned = rd_kafka_assign(client, list);
    if (assigned)
        fail("assign: %s", rd_kafka_err2str(assigned));
    rd_kafka_topic_partition_list_destroy(list);
    return client;
}

static void consume(const char *bootstrap, const char *name, long partitions, long records, int count, char **pairs) {
    enum { BATCH = 10000 };
    rd_kafka_message_t **messages = malloc(BATCH * sizeof *messages);
    if (!messages)
        fail("no memory");
    /* The time begins when the partitions are assigned: finding the broker is no part of it. */
    int64_t start;
    rd_kafka_t *client = consumer(bootstrap, name, partitions, 0, count, pairs, &start);
    rd_kafka_queue_t *all = rd_kafka_queue_get_consumer(client);
    long got = 0;
    int64_t bytes = 0, first = 0, progress = start;
    while (got < records) {
        ssize_t arrived = rd_kafka_consume_batch_queue(all, 100, messages, BATCH);
        for (ssize_t i = 0; i < arrived; i++) {
            if (messages[i]->err)
                fail("consume: %s", rd_kafka_message_errstr(messages[i]));
            got++;
            bytes += (int64_t)(messages[i]->len + messages[i]->key_len);
            rd_kafka_message_destroy(messages[i]);
        }
        if (arrived > 0) {
            progress = now_ns();
            if (!first)
                first = progress;
        } else if (now_ns() - progress > PATIENCE_NS) {
            fail("no record for a minute, %ld of %ld", got, records);
        }
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"kind\":\"consume\",\"records\":%ld,\"bytes\":%" PRId64 ",\"seconds\":%.6f,\"mb_per_second\":%.3f,"
           "\"records_per_second\":%.1f,\"first_byte_ms\":%.3f}\n",
           got, bytes, seconds, (double)bytes / seconds / 1e6, (double)got / seconds, (double)(first - start) / 1e6);
    rd_kafka_queue_destroy(all);
    rd_kafka_consumer_close(client);
    rd_kafka_destroy(client);
    free(messages);
}

/* The tailing side of e2e. Records carry the time at which they should have been sent. */
struct tail {
    rd_kafka_t *client;
    struct latencies latencies;
    long expected;
    volatile int ready;
};

static void *follow(void *argument) {
    struct tail *tail = argument;
    int64_t progress = now_ns();
    while ((long)tail->latencies.count < tail->expected && now_ns() - progress < PATIENCE_NS) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(tail->client, 100);
        if (!message)
            continue;
        int64_t arrived = now_ns(), sent;
        if (!message->err && message->len >= sizeof sent) {
            memcpy(&sent, message->payload, sizeof sent);
            /* Zero marks the probe that shows that the consumer is at the end of the log. */
            if (sent)
                latencies_add(&tail->latencies, arrived - sent);
            else
                tail->ready = 1;
            progress = arrived;
        }
        rd_kafka_message_destroy(message);
    }
    return NULL;
}

static void end_to_end(const char *bootstrap, const char *name, long rate, long seconds, long size, int count,
                       char **pairs) {
    const long records = rate * seconds;
    if (size < 8)
        fail("a record needs 8 bytes for its time");
    unsigned char *payload = random_pool((size_t)size + 8);
    struct tail tail = {.expected = records};
    latencies_init(&tail.latencies, (size_t)records);
    latencies_init(&acknowledged, (size_t)records);
    tail.client = consumer(bootstrap, name, 1, RD_KAFKA_OFFSET_BEGINNING, 0, NULL, NULL);
    rd_kafka_t *client = producer(bootstrap, count, pairs, PATIENT);
    rd_kafka_topic_t *topic = topic_of(client, name);
    pthread_t thread;
    if (pthread_create(&thread, NULL, follow, &tail))
        fail("no thread");
    /* Probes until the consumer tails: connecting is no part of a latency. */
    long probes = 0;
    memset(payload, 0, 8);
    for (int64_t begin = now_ns(); !tail.ready;) {
        queue(client, topic, 0, payload, (size_t)size, 1, now_ns());
        wait_for_deliveries(client, ++probes);
        rd_kafka_poll(client, 50);
        if (now_ns() - begin > PATIENCE_NS)
            fail("the consumer saw nothing for a minute");
    }
    if (delivery_errors)
        fail("%ld probes were not delivered", delivery_errors);
    deliveries = 0;
    acknowledged.count = 0;
    int64_t start = now_ns() + 100000000;
    for (long i = 0; i < records; i++) {
        int64_t due = start + i * 1000000000 / rate;
        wait_until(client, due);
        memcpy(payload, &due, sizeof due);
        queue(client, topic, 0, payload, (size_t)size, 1, due);
    }
    wait_for_deliveries(client, records);
    double took = (double)(now_ns() - start) / 1e9;
    pthread_join(thread, NULL);
    printf("{\"kind\":\"e2e\",\"records\":%ld,\"bytes\":%ld,\"seconds\":%.6f,\"errors\":%ld,\"lost\":%ld,", records,
           records * size, took, delivery_errors, records - (long)tail.latencies.count);
    latencies_print("produce_latency_ms", &acknowledged);
    printf(",");
    latencies_print("latency_ms", &tail.latencies);
    printf("}\n");
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy(client);
    rd_kafka_consumer_close(tail.client);
    rd_kafka_destroy(tail.client);
    free(payload);
}

static int32_t partitions_of(rd_kafka_t *client, rd_kafka_topic_t *topic) {
    const struct rd_kafka_metadata *metadata;
    rd_kafka_resp_err_t found = rd_kafka_metadata(client, 0, topic, &metadata, 30000);
    if (found)
        fail("metadata: %s", rd_kafka_err2str(found));
    int32_t count = metadata->topic_cnt == 1 ? metadata->topics[0].partition_cnt : 0;
    rd_kafka_metadata_destroy(metadata);
    if (count < 1)
        fail("the topic has no partitions");
    return count;
}

/* One record after the other to one partition after the other, at a steady rate, whatever happens to the brokers. */
static void pace(const char *bootstrap, const char *name, long rate, long seconds, long size, int count, char **pairs) {
    const long records = rate * seconds;
    unsigned char *payload = random_pool((size_t)size + 8);
    latencies_init(&acknowledged, (size_t)records);
    rd_kafka_t *client = producer(bootstrap, count, pairs, NONE);
    rd_kafka_topic_t *topic = topic_of(client, name);
    const int32_t partitions = partitions_of(client, topic);
    int64_t start = now_ns() + 100000000;
    gaps = calloc((size_t)partitions, sizeof *gaps);
    if (!gaps)
        fail("no memory");
    for (int32_t i = 0; i < partitions; i++)
        gaps[i].last = start;
    for (long i = 0; i < records; i++) {
        int64_t due = start + i * 1000000000 / rate;
        wait_until(client, due);
        queue(client, topic, (int32_t)(i % partitions), payload, (size_t)size, 1, due);
    }
    wait_for_deliveries(client, records);
    double took = (double)(now_ns() - start) / 1e9;
    long good = records - delivery_errors;
    printf("{\"kind\":\"pace\",\"records\":%ld,\"bytes\":%ld,\"seconds\":%.6f,\"errors\":%ld,", good, good * size, took,
           delivery_errors);
    latencies_print("latency_ms", &acknowledged);
    printf(",\"gaps_ms\":[");
    for (int32_t i = 0; i < partitions; i++)
        printf("%s%.3f", i ? "," : "", (double)gaps[i].longest / 1e6);
    printf("]}\n");
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy(client);
    free(gaps);
    free(payload);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "version")) {
        printf("%s\n", rd_kafka_version_str());
        return 0;
    }
    if (argc < 7)
        fail("usage: rdkafka produce|consume BOOTSTRAP TOPIC PARTITIONS RECORDS RECORD_SIZE [NAME=VALUE...], "
             "rdkafka e2e|pace BOOTSTRAP TOPIC RECORDS_PER_SECOND SECONDS RECORD_SIZE [NAME=VALUE...]");
    long first = number(argv[4], 1), second = number(argv[5], 1), size = number(argv[6], 1);
    if (size > 1 << 20)
        fail("a record of at most 1 MiB");
    if (!strcmp(argv[1], "produce"))
        produce(argv[2], argv[3], first, second, size, argc - 7, argv + 7);
    else if (!strcmp(argv[1], "consume"))
        consume(argv[2], argv[3], first, second, argc - 7, argv + 7);
    else if (!strcmp(argv[1], "e2e"))
        end_to_end(argv[2], argv[3], first, second, size, argc - 7, argv + 7);
    else if (!strcmp(argv[1], "pace"))
        pace(argv[2], argv[3], first, second, size, argc - 7, argv + 7);
    else
        fail("unknown command '%s'", argv[1]);
    return 0;
}
