"""librdkafka in a chaos run: an idempotent producer and two members of a group, until standard input ends.

    chaos.py BOOTSTRAP TOPIC PARTITIONS FIRST_PRODUCER RECORDS_PER_SECOND

Every value is `PRODUCER.NUMBER:`, with one producer number for each partition. Each line says what the clients were
told; the run compares it with everything else:

    a PARTITION OFFSET PRODUCER NUMBER      acknowledged
    p MEMBER PARTITION OFFSET               a member goes on from here
    r MEMBER PARTITION OFFSET VALUE         it read this
    ! WORDS                                 something that must not happen
"""

import sys
import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

bootstrap, topic, partitions, first, rate = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
stop_producing, stop_reading = threading.Event(), threading.Event()
printing = threading.Lock()


def tell(*words):
    with printing:
        print(*words, flush=True)


def produce():
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5,
                         "message.timeout.ms": 300000})

    def delivered(number):
        def callback(error, message):
            if error:
                tell("!", "delivery to partition %d failed: %s" % (message.partition(), error))
            else:
                tell("a", message.partition(), message.offset(), first + message.partition(), number)
        return callback

    number = 0
    while not stop_producing.is_set():
        for partition in range(partitions):
            while True:
                try:
                    producer.produce(topic, value=b"%d.%d:" % (first + partition, number), partition=partition,
                                     on_delivery=delivered(number))
                    break
                except BufferError:
                    producer.poll(0.5)
        number += 1
        producer.poll(partitions / rate)
    left = producer.flush(240)
    if left:
        tell("!", "%d records are not acknowledged at the end" % left)


def consume(member):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "chaos-rdkafka", "enable.auto.commit": False,
                         "auto.offset.reset": "error", "session.timeout.ms": 10000})

    def assigned(consumer, parts):
        while not stop_reading.is_set():
            try:
                committed = consumer.committed(parts, timeout=10)
                break
            except KafkaException as error:
                print("committed:", error, file=sys.stderr, flush=True)
        else:
            return
        for part in committed:
            if part.error:
                tell("!", "no committed offset of partition %d: %s" % (part.partition, part.error))
            part.offset = max(part.offset, 0)
            tell("p", member, part.partition, part.offset)
        consumer.assign(committed)

    def committed(error, _parts):
        if error:
            print("commit:", error, file=sys.stderr, flush=True)

    consumer.subscribe([topic], on_assign=assigned)
    saved = time.monotonic()
    while not stop_reading.is_set():
        for message in consumer.consume(100, timeout=0.2):
            error = message.error()
            if not error:
                tell("r", member, message.partition(), message.offset(), message.value().decode())
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                tell("!", "a consumer was reset: %s" % error)
            else:
                print("consume:", error, file=sys.stderr, flush=True)
        if time.monotonic() - saved > 1:
            saved = time.monotonic()
            try:
                consumer.commit(asynchronous=True)
            except KafkaException as error:
                # Nothing new, or a rebalance is under way: what is not committed is read again.
                print("commit:", error, file=sys.stderr, flush=True)
    consumer.close()


producing = threading.Thread(target=produce)
reading = [threading.Thread(target=consume, args=(member,)) for member in range(2)]
for thread in [producing, *reading]:
    thread.start()
sys.stdin.read()
stop_producing.set()
producing.join()
stop_reading.set()
for thread in reading:
    thread.join()
