// Command pipe produces lines and prints records, by the flags that kcat has for it: it stands in for kcat on a machine
// that has Go and no kcat.
//
//	pipe -b BROKERS -t TOPIC -P [-K DELIMITER]                     each line of standard input is a record
//	pipe -b BROKERS -t TOPIC -C [-o beginning] -e [-q] [-K DELIMITER]   each record is a line, up to the end as of now
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A broker may die meanwhile, and its partitions must be led again.
const patience = 2 * time.Minute

func main() {
	brokers := flag.String("b", "127.0.0.1:9092", "brokers, separated by commas")
	topic := flag.String("t", "", "topic")
	produces := flag.Bool("P", false, "produce")
	consumes := flag.Bool("C", false, "consume")
	delimiter := flag.String("K", "", "what stands between key and value")
	from := flag.String("o", "beginning", "where to begin: only beginning")
	untilEnd := flag.Bool("e", false, "end at the end; always so")
	flag.Bool("q", false, "say nothing of the end; always so")
	flag.Parse()
	var err error
	switch {
	case *topic == "" || *produces == *consumes || flag.NArg() > 0:
		err = errors.New("one topic (-t), and either -P or -C")
	case *consumes && (*from != "beginning" || !*untilEnd):
		err = errors.New("only -o beginning and -e are there")
	default:
		err = run(strings.Split(*brokers, ","), *topic, *delimiter, *produces)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pipe:", err)
		os.Exit(1)
	}
}

func run(brokers []string, topic, delimiter string, produces bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	seeds := kgo.SeedBrokers(brokers...)
	if produces {
		return produce(ctx, seeds, topic, delimiter)
	}
	return consume(ctx, seeds, topic, delimiter)
}

func produce(ctx context.Context, seeds kgo.Opt, topic, delimiter string) error {
	client, err := kgo.NewClient(seeds, kgo.DefaultProduceTopic(topic), kgo.AllowAutoTopicCreation(),
		kgo.UnknownTopicRetries(-1))
	if err != nil {
		return err
	}
	defer client.Close()
	var records []*kgo.Record
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		record := &kgo.Record{Value: bytes.Clone(lines.Bytes())}
		if delimiter != "" {
			if key, value, found := bytes.Cut(record.Value, []byte(delimiter)); found {
				record.Key, record.Value = key, value
			}
		}
		records = append(records, record)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return client.ProduceSync(ctx, records...).FirstErr()
}

func consume(ctx context.Context, seeds kgo.Opt, topic, delimiter string) error {
	client, err := kgo.NewClient(seeds, kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	// How far each partition is to be read.
	ends := map[int32]int64{}
	admin := kadm.NewClient(client)
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return err
	}
	listed, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return err
	}
	listed.Each(func(end kadm.ListedOffset) {
		if start, found := starts.Lookup(topic, end.Partition); found && start.Offset < end.Offset {
			ends[end.Partition] = end.Offset
		}
	})
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for len(ends) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		fetches.EachError(func(_ string, _ int32, err error) { fmt.Fprintln(os.Stderr, "pipe:", err) })
		fetches.EachRecord(func(record *kgo.Record) {
			end, open := ends[record.Partition]
			if !open {
				return
			}
			if delimiter != "" {
				fmt.Fprintf(out, "%s%s", record.Key, delimiter)
			}
			fmt.Fprintf(out, "%s\n", record.Value)
			if record.Offset+1 >= end {
				delete(ends, record.Partition)
			}
		})
	}
	return nil
}
