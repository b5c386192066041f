// Command kafka-go runs the scenarios with github.com/segmentio/kafka-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	. "alluvium.test/clients/scenario"
)

var (
	suite  = New("kafka-go", "github.com/segmentio/kafka-go")
	ctx    = context.Background()
	client = &kafka.Client{Addr: kafka.TCP(suite.Bootstrap), Timeout: 30 * time.Second}
)

func create(name string, partitions int, configs ...kafka.ConfigEntry) string {
	topic := suite.Prefix + "-" + name
	answer := Get(client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{
		{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: configs}}}))
	Must(answer.Errors[topic])
	Until(20*time.Second, "topic visible", func() bool { return partitionsOf(topic) == partitions })
	return topic
}

func topics() map[string]kafka.Topic {
	out := map[string]kafka.Topic{}
	for _, t := range Get(client.Metadata(ctx, &kafka.MetadataRequest{})).Topics {
		out[t.Name] = t
	}
	return out
}

func partitionsOf(topic string) int { return len(topics()[topic].Partitions) }

func produce(topic string, batch []Record, partitions int, change ...func(*kafka.Writer)) []At {
	return Get(tryProduce(topic, batch, partitions, change...))
}

func tryProduce(topic string, batch []Record, partitions int, change ...func(*kafka.Writer)) ([]At, error) {
	acked := make([]At, 0, len(batch))
	var mu sync.Mutex
	w := &kafka.Writer{Addr: kafka.TCP(suite.Bootstrap), Topic: topic, BatchTimeout: 20 * time.Millisecond, BatchBytes: 1_000_000,
		RequiredAcks: kafka.RequireAll, AllowAutoTopicCreation: true, MaxAttempts: 10, Transport: &kafka.Transport{},
		Balancer: kafka.BalancerFunc(func(m kafka.Message, all ...int) int { return all[m.WriterData.(int)%partitions] }),
		Completion: func(messages []kafka.Message, err error) {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range messages {
				if err == nil {
					acked = append(acked, At{Partition: int32(m.Partition), Offset: m.Offset, Record: batch[m.WriterData.(int)]})
				}
			}
		}}
	for _, one := range change {
		one(w)
	}
	var send []kafka.Message
	for i, r := range batch {
		m := kafka.Message{Key: r.Key, Value: r.Value, Time: time.UnixMilli(r.Timestamp), WriterData: i}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, kafka.Header{Key: h.Key, Value: h.Value})
		}
		send = append(send, m)
	}
	if err := w.WriteMessages(ctx, send...); err != nil {
		return nil, err
	}
	return acked, w.Close()
}

func at(m kafka.Message) At {
	one := Record{Key: m.Key, Value: m.Value, Timestamp: m.Time.UnixMilli()}
	for _, h := range m.Headers {
		one.Headers = append(one.Headers, Header{Key: h.Key, Value: h.Value})
	}
	return At{Partition: int32(m.Partition), Offset: m.Offset, Record: one}
}

// take fetches until count records came, and then a little longer so that a surplus is seen.
func take(r *kafka.Reader, count int) []At {
	var out []At
	for {
		wait := 30 * time.Second
		if len(out) >= count {
			wait = 500 * time.Millisecond
		}
		limited, cancel := context.WithTimeout(ctx, wait)
		m, err := r.FetchMessage(limited)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return out
		}
		Must(err)
		out = append(out, at(m))
	}
}

func reader(topic string, partition int) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{Brokers: []string{suite.Bootstrap}, Topic: topic, Partition: partition, MaxBytes: 10 << 20,
		MaxWait: 200 * time.Millisecond})
}

func readAll(topic string, acked []At) []At {
	counts := map[int32]int{}
	for _, a := range acked {
		counts[a.Partition]++
	}
	var out []At
	for p, n := range counts {
		r := reader(topic, int(p))
		out = append(out, take(r, n)...)
		Must(r.Close())
	}
	return out
}

// readTo is what a reader from the start finds up to an offset.
func readTo(topic string, offset int64) []At {
	r := reader(topic, 0)
	defer r.Close()
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out []At
	for len(out) == 0 || out[len(out)-1].Offset < offset {
		out = append(out, at(Get(r.FetchMessage(limited))))
	}
	return out
}

func value(topic, key string) string {
	answer := Get(client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
		{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic}}}))
	for _, e := range answer.Resources[0].ConfigEntries {
		if e.ConfigName == key {
			return e.ConfigValue
		}
	}
	panic(fmt.Errorf("config %s is missing", key))
}

func offsets(topic string, what int64) (int64, int64, map[int64]time.Time) {
	answer := Get(client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		topic: {{Partition: 0, Timestamp: what}}}}))
	one := answer.Topics[topic][0]
	Must(one.Error)
	return one.FirstOffset, one.LastOffset, one.Offsets
}

// member reads by group in the background.
type member struct {
	r      *kafka.Reader
	cancel context.CancelFunc
	ended  sync.WaitGroup
	mu     sync.Mutex
	seen   []At
}

func join(group, topic string) *member {
	limited, cancel := context.WithCancel(ctx)
	m := &member{cancel: cancel, r: kafka.NewReader(kafka.ReaderConfig{Brokers: []string{suite.Bootstrap}, GroupID: group, Topic: topic,
		MaxBytes: 10 << 20, MaxWait: 200 * time.Millisecond, StartOffset: kafka.FirstOffset, SessionTimeout: 10 * time.Second,
		HeartbeatInterval: 500 * time.Millisecond, RebalanceTimeout: 10 * time.Second, JoinGroupBackoff: 500 * time.Millisecond,
		GroupBalancers: []kafka.GroupBalancer{kafka.RoundRobinGroupBalancer{}}})}
	m.ended.Go(func() {
		for {
			one, err := m.r.FetchMessage(limited)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.seen = append(m.seen, at(one))
			m.mu.Unlock()
			if m.r.CommitMessages(limited, one) != nil {
				return
			}
		}
	})
	return m
}

func (m *member) snapshot() []At {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen)
}

func (m *member) count() int { return len(m.snapshot()) }

func (m *member) stop() []At {
	m.cancel()
	m.ended.Wait()
	Must(m.r.Close())
	return m.seen
}

func describe(group string) kafka.DescribeGroupsResponseGroup {
	return Get(client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})).Groups[0]
}

func owned(group string) []int {
	out := []int{}
	described := describe(group)
	if described.GroupState != "Stable" {
		return out
	}
	for _, m := range described.Members {
		n := 0
		for _, t := range m.MemberAssignments.Topics {
			n += len(t.Partitions)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// once keeps one copy of each record: a member that rejoins may read again what it had not committed.
func once(all []At) []At {
	type place struct {
		partition int32
		offset    int64
	}
	seen := map[place]bool{}
	return slices.DeleteFunc(all, func(a At) bool {
		p := place{a.Partition, a.Offset}
		defer func() { seen[p] = true }()
		return seen[p]
	})
}

func main() {
	suite.Add("topic.create", "ApiVersions Metadata CreateTopics", func() string {
		topic := create("create", 3, kafka.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"})
		answer := Get(client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 3, ReplicationFactor: 1}}}))
		Check(errors.Is(answer.Errors[topic], kafka.TopicAlreadyExists), "creating it twice: %v", answer.Errors[topic])
		return ""
	})
	for codec, name := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		suite.Add("produce."+name, "Produce Fetch Metadata", func() string {
			topic := create("codec-"+name, 3)
			acked := produce(topic, Records(), 3, func(w *kafka.Writer) { w.Compression = kafka.Compression(codec) })
			Check(len(acked) == len(Records()), "%d of %d acknowledged", len(acked), len(Records()))
			Same(acked, readAll(topic, acked), true)
			return ""
		})
	}
	suite.Add("topic.auto-create", "Metadata Produce", func() string {
		topic := suite.Prefix + "-auto"
		var acked []At
		// The first request makes the topic, and kafka-go leaves it to the caller to try again.
		Until(20*time.Second, "topic made", func() bool {
			var err error
			acked, err = tryProduce(topic, Simple(3, "a"), 1)
			Check(err == nil || errors.Is(err, kafka.UnknownTopicOrPartition) || errors.Is(err, kafka.LeaderNotAvailable), "%v", err)
			return err == nil
		})
		Check(len(acked) == 3, "acknowledged %v", acked)
		Same(acked, readAll(topic, acked), true)
		return ""
	})
	suite.Add("produce.acks", "Produce", func() string {
		topic := create("acks", 1)
		acked := produce(topic, Simple(20, "one"), 1, func(w *kafka.Writer) { w.RequiredAcks = kafka.RequireOne })
		produce(topic, Simple(20, "zero"), 1, func(w *kafka.Writer) { w.RequiredAcks = kafka.RequireNone })
		r := reader(topic, 0)
		back := take(r, 40)
		Must(r.Close())
		Check(len(back) == 40, "%d of 40 records", len(back))
		Same(acked, back[:20], true)
		return ""
	})
	suite.Add("produce.too-large", "Produce", func() string {
		topic := create("too-large", 1, kafka.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "1000"})
		_, err := tryProduce(topic, []Record{{Key: []byte("k"), Value: make([]byte, 5000), Timestamp: BaseMs}}, 1,
			func(w *kafka.Writer) { w.MaxAttempts = 1 })
		// A list of errors, one for each message.
		var all kafka.WriteErrors
		Check(errors.As(err, &all) && errors.Is(all[0], kafka.MessageSizeTooLarge), "a record above max.message.bytes: %v", err)
		return ""
	})
	suite.Add("group.rebalance", "FindCoordinator JoinGroup SyncGroup Heartbeat LeaveGroup OffsetCommit OffsetFetch DescribeGroups", func() string {
		topic, group := create("group", 4), suite.Prefix+"-group"
		acked := produce(topic, Simple(200, "g"), 4)
		first := join(group, topic)
		Until(30*time.Second, "first member reads all", func() bool { return first.count() >= 200 })
		Check(slices.Equal(owned(group), []int{4}), "owned %v", owned(group))
		second := join(group, topic)
		Until(40*time.Second, "two members own 2 partitions each", func() bool { return slices.Equal(owned(group), []int{2, 2}) })
		acked = append(acked, produce(topic, Simple(100, "h"), 4)...)
		Until(30*time.Second, "two members read all", func() bool { return len(once(append(first.snapshot(), second.snapshot()...))) >= 300 })
		out := second.stop()
		Until(40*time.Second, "first member owns 4 partitions again", func() bool { return slices.Equal(owned(group), []int{4}) })
		acked = append(acked, produce(topic, Simple(40, "i"), 4)...)
		Until(30*time.Second, "first member reads the rest", func() bool { return len(once(append(first.snapshot(), out...))) >= 340 })
		Same(acked, once(append(first.stop(), out...)), true)
		return ""
	})
	suite.Add("group.resume", "OffsetCommit OffsetFetch JoinGroup SyncGroup", func() string {
		topic, group := create("resume", 2), suite.Prefix+"-resume"
		old := produce(topic, Simple(50, "r"), 2)
		first := join(group, topic)
		Until(30*time.Second, "first member reads all", func() bool { return first.count() >= 50 })
		time.Sleep(300 * time.Millisecond)
		Same(old, first.stop(), true)
		acked := produce(topic, Simple(10, "s"), 2)
		second := join(group, topic)
		Until(30*time.Second, "second member reads the rest", func() bool { return second.count() >= 10 })
		time.Sleep(300 * time.Millisecond)
		Same(acked, second.stop(), true)
		return ""
	})
	others()
	suite.Run()
}

func others() {
	suite.Add("offsets.list", "ListOffsets", func() string {
		topic := create("list", 1)
		produce(topic, Simple(20, "l"), 1)
		first, _, _ := offsets(topic, kafka.FirstOffset)
		_, last, _ := offsets(topic, kafka.LastOffset)
		_, _, byTime := offsets(topic, BaseMs+5500)
		_, ok := byTime[6]
		Check(first == 0 && last == 20 && ok, "offsets %d %d %v", first, last, byTime)
		return ""
	})
	suite.Add("seek.time", "ListOffsets Fetch", func() string {
		topic := create("time", 1)
		acked := produce(topic, Simple(30, "t"), 1)
		r := reader(topic, 0)
		defer r.Close()
		Must(r.SetOffsetAt(ctx, time.UnixMilli(BaseMs+10_500)))
		Same(acked[11:], take(r, 19), true)
		return ""
	})
	suite.Add("seek.offset", "Fetch", func() string {
		topic := create("seek", 1)
		acked := produce(topic, Simple(30, "t"), 1)
		r := reader(topic, 0)
		defer r.Close()
		Must(r.SetOffset(5))
		Same(acked[5:], take(r, 25), true)
		Must(r.SetOffset(29))
		Same(acked[29:], take(r, 1), true)
		return ""
	})
	suite.Add("longpoll", "Fetch", func() string {
		topic := create("longpoll", 1)
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{suite.Bootstrap}, Topic: topic, MaxBytes: 1 << 20, MaxWait: 3 * time.Second})
		defer r.Close()
		var took []int64
		for range 5 {
			time.Sleep(200 * time.Millisecond)
			produce(topic, Simple(1, "p"), 1)
			sent := time.Now()
			Check(len(takeOne(r)) == 1, "no record")
			took = append(took, time.Since(sent).Milliseconds())
		}
		slices.Sort(took)
		return fmt.Sprintf("record arrives %d ms after the writer closed", took[2])
	})
	suite.Add("admin.partitions", "CreatePartitions Metadata", func() string {
		topic := create("grow", 1)
		answer := Get(client.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: 4}}}))
		Must(answer.Errors[topic])
		Until(20*time.Second, "4 partitions", func() bool { return partitionsOf(topic) == 4 })
		acked := produce(topic, Simple(20, "x"), 4)
		Same(acked, readAll(topic, acked), true)
		return ""
	})
	suite.Add("admin.configs", "DescribeConfigs IncrementalAlterConfigs AlterConfigs", func() string {
		topic := create("configs", 1, kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "3600000"})
		Check(value(topic, "retention.ms") == "3600000" && value(topic, "cleanup.policy") == "delete", "configs set at creation")
		changed := Get(client.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{
			{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, Configs: []kafka.IncrementalAlterConfigsRequestConfig{
				{Name: "retention.ms", Value: "7200000", ConfigOperation: kafka.ConfigOperationSet}}}}}))
		Must(changed.Resources[0].Error)
		Until(10*time.Second, "retention.ms changed", func() bool { return value(topic, "retention.ms") == "7200000" })
		replaced := Get(client.AlterConfigs(ctx, &kafka.AlterConfigsRequest{Resources: []kafka.AlterConfigRequestResource{
			{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, Configs: []kafka.AlterConfigRequestConfig{{Name: "retention.bytes", Value: "1000000"}}}}}))
		for _, err := range replaced.Errors {
			Must(err)
		}
		Until(10*time.Second, "AlterConfigs", func() bool { return value(topic, "retention.bytes") == "1000000" })
		Check(value(topic, "retention.ms") == "604800000", "AlterConfigs must reset what it does not name")
		return ""
	})
	suite.Add("admin.cluster", "Metadata", func() string {
		meta := Get(client.Metadata(ctx, &kafka.MetadataRequest{}))
		Check(slices.ContainsFunc(meta.Brokers, func(b kafka.Broker) bool { return b.ID == meta.Controller.ID }), "the controller is not a listed broker: %+v", meta)
		return ""
	})
	suite.Add("admin.groups", "ListGroups DescribeGroups DeleteGroups", func() string {
		topic, group := create("groups", 1), suite.Prefix+"-groups"
		produce(topic, Simple(5, "g"), 1)
		m := join(group, topic)
		Until(30*time.Second, "records", func() bool { return m.count() == 5 })
		listed := func() bool {
			answer := Get(client.ListGroups(ctx, &kafka.ListGroupsRequest{}))
			return slices.ContainsFunc(answer.Groups, func(g kafka.ListGroupsResponseGroup) bool { return g.GroupID == group })
		}
		Check(listed(), "group is not listed")
		Check(describe(group).GroupState == "Stable" && len(describe(group).Members) == 1, "described %+v", describe(group))
		remove := func() error {
			return Get(client.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})).Errors[group]
		}
		Check(errors.Is(remove(), kafka.NonEmptyGroup), "deleting a group with members")
		m.stop()
		Until(20*time.Second, "group empty", func() bool { return describe(group).GroupState == "Empty" })
		Must(remove())
		Check(!listed(), "the deleted group is listed")
		return ""
	})
	suite.Add("admin.group-offsets", "OffsetCommit OffsetFetch OffsetDelete", func() string {
		topic, group := create("group-offsets", 2), suite.Prefix+"-group-offsets"
		answer := Get(client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{
			topic: {{Partition: 0, Offset: 4, Metadata: "m"}, {Partition: 1, Offset: 7}}}}))
		for _, p := range answer.Topics[topic] {
			Must(p.Error)
		}
		stored := func() map[int]int64 {
			out := map[int]int64{}
			for _, p := range Get(client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: {0, 1}}})).Topics[topic] {
				Must(p.Error)
				out[p.Partition] = p.CommittedOffset
			}
			return out
		}
		Check(stored()[0] == 4 && stored()[1] == 7, "offsets %v", stored())
		Must(Get(client.OffsetDelete(ctx, &kafka.OffsetDeleteRequest{GroupID: group, Topics: map[string][]int{topic: {0}}})).Error)
		Check(stored()[0] == -1 && stored()[1] == 7, "after OffsetDelete %v", stored())
		return ""
	})
	suite.AddCompaction(
		func(name string) string {
			var configs []kafka.ConfigEntry
			for key, value := range Compact {
				configs = append(configs, kafka.ConfigEntry{ConfigName: key, ConfigValue: value})
			}
			return create(name, 1, configs...)
		},
		func(topic string, batch []Record) []At { return produce(topic, batch, 1) },
		readTo)
	suite.Add("topic.delete", "DeleteTopics Metadata", func() string {
		topic := create("delete", 2)
		produce(topic, Simple(10, "d"), 2)
		Must(Get(client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})).Errors[topic])
		Until(20*time.Second, "topic gone", func() bool { _, there := topics()[topic]; return !there })
		create("delete", 1)
		acked := produce(topic, Simple(3, "e"), 1)
		Check(acked[0].Offset == 0, "a topic made again starts at 0: %d", acked[0].Offset)
		Same(acked, readAll(topic, acked), true)
		return ""
	})
}

func takeOne(r *kafka.Reader) []At {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return []At{at(Get(r.FetchMessage(limited)))}
}
