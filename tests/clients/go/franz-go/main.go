// Command franz-go runs the scenarios with github.com/twmb/franz-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	. "alluvium.test/clients/scenario"
)

var (
	suite = New("franz-go", "github.com/twmb/franz-go")
	ctx   = context.Background()
	adm   *kadm.Client
)

func client(opts ...kgo.Opt) *kgo.Client {
	return Get(kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(suite.Bootstrap)}, opts...)...))
}

func create(name string, partitions int32, configs map[string]*string) string {
	topic := suite.Prefix + "-" + name
	_, err := adm.CreateTopic(ctx, partitions, 1, configs, topic)
	Must(err)
	Until(20*time.Second, "topic visible", func() bool {
		return len(Get(adm.ListTopics(ctx, topic))[topic].Partitions) == int(partitions)
	})
	return topic
}

// produce returns the records as acknowledged.
func produce(topic string, batch []Record, partitions int, opts ...kgo.Opt) []At {
	return Get(tryProduce(topic, batch, partitions, opts...))
}

func tryProduce(topic string, batch []Record, partitions int, opts ...kgo.Opt) ([]At, error) {
	cl := client(append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(20 * time.Millisecond),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.AllowAutoTopicCreation()}, opts...)...)
	defer cl.Close()
	var send []*kgo.Record
	for i, r := range batch {
		one := &kgo.Record{Topic: topic, Partition: int32(i % partitions), Key: r.Key, Value: r.Value, Timestamp: time.UnixMilli(r.Timestamp)}
		for _, h := range r.Headers {
			one.Headers = append(one.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		send = append(send, one)
	}
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	results := cl.ProduceSync(limit, send...)
	if err := results.FirstErr(); err != nil {
		return nil, err
	}
	acked := make([]At, len(send))
	for i, r := range send {
		acked[i] = At{Partition: r.Partition, Offset: r.Offset, Record: batch[i]}
	}
	return acked, nil
}

func poll(cl *kgo.Client, wait time.Duration) []At {
	limit, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetches := cl.PollFetches(limit)
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) {
			panic(e.Err)
		}
	}
	var out []At
	fetches.EachRecord(func(r *kgo.Record) {
		one := Record{Key: r.Key, Value: r.Value, Timestamp: r.Timestamp.UnixMilli()}
		for _, h := range r.Headers {
			one.Headers = append(one.Headers, Header{Key: h.Key, Value: h.Value})
		}
		out = append(out, At{Partition: r.Partition, Offset: r.Offset, Record: one})
	})
	return out
}

// take polls until count records came, and then a little longer so that a surplus is seen.
func take(cl *kgo.Client, count int) []At {
	var out []At
	for end := time.Now().Add(30 * time.Second); len(out) < count && time.Now().Before(end); {
		out = append(out, poll(cl, 200*time.Millisecond)...)
	}
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		out = append(out, poll(cl, 100*time.Millisecond)...)
	}
	return out
}

func from(topic string, offsets ...kgo.Offset) *kgo.Client {
	parts := map[int32]kgo.Offset{}
	for p, o := range offsets {
		parts[int32(p)] = o
	}
	return client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: parts}))
}

func read(topic string, count int, offsets ...kgo.Offset) []At {
	cl := from(topic, offsets...)
	defer cl.Close()
	return take(cl, count)
}

func readAll(topic string, partitions, count int) []At {
	return read(topic, count, slices.Repeat([]kgo.Offset{kgo.NewOffset().AtStart()}, partitions)...)
}

// readTo is what a reader from the start finds up to an offset.
func readTo(topic string, offset int64) []At {
	cl := from(topic, kgo.NewOffset().AtStart())
	defer cl.Close()
	var out []At
	Until(30*time.Second, "the end", func() bool {
		out = append(out, poll(cl, 200*time.Millisecond)...)
		return len(out) > 0 && out[len(out)-1].Offset >= offset
	})
	return out
}

func value(topic, key string) string {
	configs := Get(Get(adm.DescribeTopicConfigs(ctx, topic)).On(topic, nil))
	for _, c := range configs.Configs {
		if c.Key == key {
			return c.MaybeValue()
		}
	}
	panic(fmt.Errorf("config %s is missing", key))
}

func main() {
	base := client()
	adm = kadm.NewClient(base)
	suite.Add("topic.create", "ApiVersions Metadata CreateTopics", func() string {
		compact := "compact"
		topic := create("create", 3, map[string]*string{"cleanup.policy": &compact})
		_, err := adm.CreateTopic(ctx, 3, 1, nil, topic)
		Check(errors.Is(err, kerr.TopicAlreadyExists), "creating it twice: %v", err)
		Must(Get(adm.ValidateCreateTopics(ctx, 1, 1, nil, topic+"-dry")).Error())
		Check(!Get(adm.ListTopics(ctx)).Has(topic+"-dry"), "validate_only created the topic")
		return ""
	})
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for i, name := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		codec := codecs[i]
		suite.Add("produce."+name, "Produce Fetch ListOffsets Metadata", func() string {
			topic := create("codec-"+name, 3, nil)
			acked := produce(topic, Records(), 3, kgo.ProducerBatchCompression(codec), kgo.DisableIdempotentWrite())
			Same(acked, readAll(topic, 3, len(acked)), false)
			return ""
		})
	}
	suite.Add("topic.auto-create", "Metadata Produce", func() string {
		topic := suite.Prefix + "-auto"
		Same(produce(topic, Simple(3, "a"), 1), readAll(topic, 1, 3), false)
		return ""
	})
	suite.Add("produce.idempotent", "InitProducerId Produce", func() string {
		topic := create("idempotent", 3, nil)
		acked := produce(topic, append(Records(), Simple(500, "i")...), 3)
		Same(acked, readAll(topic, 3, len(acked)), false)
		return ""
	})
	suite.Add("produce.acks", "Produce", func() string {
		topic := create("acks", 1, nil)
		acked := produce(topic, Simple(20, "one"), 1, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
		produce(topic, Simple(20, "zero"), 1, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
		back := readAll(topic, 1, 40)
		Check(len(back) == 40, "%d of 40 records", len(back))
		Same(acked, back[:20], false)
		return ""
	})
	suite.Add("produce.too-large", "Produce", func() string {
		small := "1000"
		topic := create("too-large", 1, map[string]*string{"max.message.bytes": &small})
		_, err := tryProduce(topic, []Record{{Key: []byte("k"), Value: make([]byte, 5000), Timestamp: BaseMs}}, 1)
		Check(errors.Is(err, kerr.MessageTooLarge), "a record above max.message.bytes: %v", err)
		Check(len(readAll(topic, 1, 0)) == 0, "the rejected record is there")
		return ""
	})
	groups()
	reading()
	administration()
	suite.Run()
}

func member(group, topic string, opts ...kgo.Opt) *kgo.Client {
	return client(append([]kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(10 * time.Second),
		kgo.HeartbeatInterval(500 * time.Millisecond), kgo.Balancers(kgo.RangeBalancer())}, opts...)...)
}

// owned is the number of partitions that each member of the group has, smallest first.
func owned(group, topic string) []int {
	described := Get(adm.DescribeGroups(ctx, group))[group]
	out := []int{}
	if described.State != "Stable" {
		return out
	}
	for _, m := range described.Members {
		if a, ok := m.Assigned.AsConsumer(); ok {
			n := 0
			for _, t := range a.Topics {
				if t.Topic == topic {
					n += len(t.Partitions)
				}
			}
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func groups() {
	suite.Add("group.rebalance", "FindCoordinator JoinGroup SyncGroup Heartbeat LeaveGroup OffsetCommit OffsetFetch DescribeGroups", func() string {
		topic, group := create("group", 4, nil), suite.Prefix+"-group"
		acked := produce(topic, Simple(200, "g"), 4)
		var out []At
		pump := func(want int, members ...*kgo.Client) {
			Until(20*time.Second, fmt.Sprintf("%d records read", want), func() bool {
				for _, m := range members {
					out = append(out, poll(m, 100*time.Millisecond)...)
				}
				return len(out) >= want
			})
		}
		shape := func(want []int, members ...*kgo.Client) {
			Until(30*time.Second, fmt.Sprintf("partitions owned: %v", want), func() bool {
				for _, m := range members {
					out = append(out, poll(m, 50*time.Millisecond)...)
				}
				return slices.Equal(owned(group, topic), want)
			})
		}
		first := member(group, topic)
		pump(200, first)
		shape([]int{4}, first)
		Must(first.CommitUncommittedOffsets(ctx))
		second := member(group, topic)
		shape([]int{2, 2}, first, second)
		acked = append(acked, produce(topic, Simple(100, "h"), 4)...)
		pump(300, first, second)
		Must(first.CommitUncommittedOffsets(ctx))
		Must(second.CommitUncommittedOffsets(ctx))
		second.Close()
		shape([]int{4}, first)
		acked = append(acked, produce(topic, Simple(40, "i"), 4)...)
		pump(340, first)
		Must(first.CommitUncommittedOffsets(ctx))
		first.Close()
		Same(acked, out, false)
		return ""
	})
	suite.Add("group.cooperative", "JoinGroup SyncGroup Heartbeat", func() string {
		topic, group := create("cooperative", 4, nil), suite.Prefix+"-cooperative"
		acked := produce(topic, Simple(80, "c"), 4)
		first := member(group, topic, kgo.Balancers(kgo.CooperativeStickyBalancer()))
		out := take(first, 80)
		Must(first.CommitUncommittedOffsets(ctx))
		second := member(group, topic, kgo.Balancers(kgo.CooperativeStickyBalancer()))
		Until(30*time.Second, "two members own 2 partitions each", func() bool {
			out = append(append(out, poll(first, 50*time.Millisecond)...), poll(second, 50*time.Millisecond)...)
			return slices.Equal(owned(group, topic), []int{2, 2})
		})
		first.Close()
		second.Close()
		Same(acked, out, false)
		return ""
	})
	suite.Add("group.resume", "OffsetCommit OffsetFetch JoinGroup SyncGroup", func() string {
		topic, group := create("resume", 2, nil), suite.Prefix+"-resume"
		old := produce(topic, Simple(50, "r"), 2)
		first := member(group, topic)
		Same(old, take(first, 50), false)
		Must(first.CommitUncommittedOffsets(ctx))
		first.Close()
		acked := produce(topic, Simple(10, "s"), 2)
		second := member(group, topic)
		Same(acked, take(second, 10), false)
		second.Close()
		return ""
	})
	suite.Add("group.static", "JoinGroup SyncGroup DescribeGroups LeaveGroup", func() string {
		topic, group := create("static", 2, nil), suite.Prefix+"-static"
		acked := produce(topic, Simple(10, "t"), 2)
		for round := range 2 {
			m := member(group, topic, kgo.InstanceID("instance-1"))
			if round == 0 {
				Same(acked, take(m, 10), false)
				Must(m.CommitUncommittedOffsets(ctx))
			} else {
				Check(len(take(m, 0)) == 0, "the restarted member reads again what it had committed")
			}
			members := Get(adm.DescribeGroups(ctx, group))[group].Members
			Check(len(members) == 1 && members[0].InstanceID != nil && *members[0].InstanceID == "instance-1", "members %v", members)
			m.Close()
		}
		Must(Get(adm.LeaveGroup(ctx, kadm.LeaveGroup(group).InstanceIDs("instance-1"))).Error())
		Until(10*time.Second, "static member gone", func() bool { return len(Get(adm.DescribeGroups(ctx, group))[group].Members) == 0 })
		return ""
	})
}

func reading() {
	suite.Add("offsets.list", "ListOffsets", func() string {
		topic := create("list", 2, nil)
		produce(topic, Simple(20, "l"), 2)
		for what, pair := range map[string]struct {
			got  kadm.ListedOffsets
			want int64
		}{
			"earliest": {Get(adm.ListStartOffsets(ctx, topic)), 0}, "latest": {Get(adm.ListEndOffsets(ctx, topic)), 10},
			"committed": {Get(adm.ListCommittedOffsets(ctx, topic)), 10}, "max timestamp": {Get(adm.ListMaxTimestampOffsets(ctx, topic)), 9},
			"by time": {Get(adm.ListOffsetsAfterMilli(ctx, BaseMs+5500, topic)), 3},
			// kadm asks again for the end where no record is that young.
			"after the end": {Get(adm.ListOffsetsAfterMilli(ctx, BaseMs+1_000_000_000, topic)), 10},
		} {
			o, ok := pair.got.Lookup(topic, 1)
			Check(ok && o.Err == nil && o.Offset == pair.want, "%s: %+v, not %d", what, o, pair.want)
		}
		return ""
	})
	suite.Add("seek.time", "ListOffsets Fetch", func() string {
		topic := create("time", 1, nil)
		acked := produce(topic, Simple(30, "t"), 1)
		Same(acked[11:], read(topic, 19, kgo.NewOffset().AfterMilli(BaseMs+10_500)), false)
		return ""
	})
	suite.Add("seek.offset", "Fetch OffsetForLeaderEpoch", func() string {
		topic := create("seek", 1, nil)
		acked := produce(topic, Simple(30, "t"), 1)
		Same(acked[5:], read(topic, 25, kgo.NewOffset().At(5)), false)
		Same(acked[27:], read(topic, 3, kgo.NewOffset().AtEnd().Relative(-3)), false)
		end, _ := Get(adm.ListEndOffsets(ctx, topic)).Lookup(topic, 0)
		Same(acked[7:], read(topic, 23, kgo.NewOffset().At(7).WithEpoch(end.LeaderEpoch)), false)
		// Past the end: franz-go resets to its reset offset, the start.
		Same(acked, read(topic, 30, kgo.NewOffset().At(5000)), false)
		var request kadm.OffsetForLeaderEpochRequest
		request.Add(topic, 0, end.LeaderEpoch)
		answer := Get(adm.OffsetForLeaderEpoch(ctx, request))[topic][0]
		Check(answer.Err == nil && answer.EndOffset == 30 && answer.LeaderEpoch == end.LeaderEpoch, "end of the epoch: %+v", answer)
		return ""
	})
	suite.Add("longpoll", "Fetch", func() string {
		topic := create("longpoll", 1, nil)
		cl := client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}), kgo.FetchMaxWait(5*time.Second))
		defer cl.Close()
		sender := client(kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0))
		defer sender.Close()
		poll(cl, time.Second)
		var took []int64
		for range 5 {
			sent := make(chan time.Time, 1)
			go func() {
				time.Sleep(300 * time.Millisecond)
				if sender.ProduceSync(ctx, kgo.StringRecord("p")).FirstErr() != nil {
					close(sent)
					return
				}
				sent <- time.Now()
			}()
			Check(len(poll(cl, 20*time.Second)) > 0, "no record within 20 s")
			arrived := time.Now()
			at, ok := <-sent
			Check(ok, "the record was not acknowledged")
			took = append(took, max(0, arrived.Sub(at).Milliseconds()))
		}
		slices.Sort(took)
		return fmt.Sprintf("record arrives %d ms after its acknowledgement", took[2])
	})
}

func administration() {
	suite.Add("admin.partitions", "CreatePartitions Metadata", func() string {
		topic := create("grow", 1, nil)
		Must(Get(adm.UpdatePartitions(ctx, 4, topic)).Error())
		Until(20*time.Second, "4 partitions", func() bool { return len(Get(adm.ListTopics(ctx, topic))[topic].Partitions) == 4 })
		Same(produce(topic, Simple(20, "x"), 4), readAll(topic, 4, 20), false)
		Check(errors.Is(Get(adm.UpdatePartitions(ctx, 2, topic)).Error(), kerr.InvalidPartitions), "shrinking")
		return ""
	})
	suite.Add("admin.configs", "DescribeConfigs IncrementalAlterConfigs AlterConfigs", func() string {
		hour, two := "3600000", "7200000"
		topic := create("configs", 1, map[string]*string{"retention.ms": &hour})
		Check(value(topic, "retention.ms") == hour && value(topic, "cleanup.policy") == "delete", "configs set at creation")
		alter := func(op kadm.IncrementalOp, key string, v *string) error {
			return Get(Get(adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: op, Name: key, Value: v}}, topic)).On(topic, nil)).Err
		}
		compact, soon := "compact", "soon"
		Must(alter(kadm.SetConfig, "retention.ms", &two))
		Must(alter(kadm.AppendConfig, "cleanup.policy", &compact))
		Until(10*time.Second, "configs changed", func() bool {
			return value(topic, "retention.ms") == two && len(value(topic, "cleanup.policy")) == len("delete,compact")
		})
		Must(alter(kadm.DeleteConfig, "retention.ms", nil))
		Until(10*time.Second, "retention.ms back to its default", func() bool { return value(topic, "retention.ms") == "604800000" })
		Check(errors.Is(alter(kadm.SetConfig, "retention.ms", &soon), kerr.InvalidConfig), "retention.ms=soon")
		million := "1000000"
		answer := Get(Get(adm.AlterTopicConfigsState(ctx, []kadm.AlterConfig{{Name: "retention.bytes", Value: &million}}, topic)).On(topic, nil))
		Must(answer.Err)
		Until(10*time.Second, "AlterConfigs", func() bool { return value(topic, "retention.bytes") == million })
		Check(value(topic, "cleanup.policy") == "delete", "AlterConfigs must reset what it does not name")
		return ""
	})
	suite.Add("admin.cluster", "Metadata", func() string {
		meta := Get(adm.BrokerMetadata(ctx))
		Check(meta.Cluster != "" && slices.Contains(meta.Brokers.NodeIDs(), meta.Controller), "the controller is not a listed broker: %+v", meta)
		return ""
	})
	suite.Add("admin.topics", "Metadata", func() string {
		topic := create("described", 2, nil)
		detail := Get(adm.ListTopics(ctx, topic))[topic]
		Check(detail.ID != (kadm.TopicID{}), "the topic id is zero")
		for _, p := range detail.Partitions {
			Check(slices.Contains(p.Replicas, p.Leader) && slices.Contains(p.ISR, p.Leader), "partition %+v", p)
		}
		return ""
	})
	suite.Add("admin.groups", "ListGroups DescribeGroups DeleteGroups", func() string {
		topic, group := create("groups", 1, nil), suite.Prefix+"-groups"
		produce(topic, Simple(5, "g"), 1)
		m := member(group, topic, kgo.ClientID("the-client"))
		Check(len(take(m, 5)) == 5, "records")
		Must(m.CommitUncommittedOffsets(ctx))
		listed := Get(adm.ListGroups(ctx, "Stable"))
		Check(slices.Contains(listed.Groups(), group), "group is not listed: %v", listed.Groups())
		described := Get(adm.DescribeGroups(ctx, group))[group]
		Check(described.State == "Stable" && len(described.Members) == 1 && described.Members[0].ClientID == "the-client", "described %+v", described)
		_, err := adm.DeleteGroup(ctx, group)
		Check(errors.Is(err, kerr.NonEmptyGroup), "deleting a group with members: %v", err)
		m.Close()
		Until(20*time.Second, "group empty", func() bool { return Get(adm.DescribeGroups(ctx, group))[group].State == "Empty" })
		_, err = adm.DeleteGroup(ctx, group)
		Must(err)
		Check(!slices.Contains(Get(adm.ListGroups(ctx)).Groups(), group), "the deleted group is listed")
		return ""
	})
	suite.Add("admin.group-offsets", "OffsetFetch OffsetCommit OffsetDelete", func() string {
		topic, group := create("group-offsets", 2, nil), suite.Prefix+"-group-offsets"
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: topic, Partition: 0, At: 4, LeaderEpoch: -1, Metadata: "m"})
		offsets.Add(kadm.Offset{Topic: topic, Partition: 1, At: 7, LeaderEpoch: -1})
		Must(adm.CommitAllOffsets(ctx, group, offsets))
		back := Get(adm.FetchOffsets(ctx, group))
		zero, _ := back.Lookup(topic, 0)
		one, _ := back.Lookup(topic, 1)
		Check(zero.At == 4 && zero.Metadata == "m" && one.At == 7, "offsets %+v", back)
		many := adm.FetchManyOffsets(ctx, group, group+"-other")
		Must(many.Error())
		var gone kadm.TopicsSet
		gone.Add(topic, 0)
		Must(Get(adm.DeleteOffsets(ctx, group, gone)).Error())
		_, ok := Get(adm.FetchOffsets(ctx, group)).Lookup(topic, 0)
		Check(!ok, "the deleted offset is there")
		return ""
	})
	suite.Add("admin.delete-records", "DeleteRecords ListOffsets", func() string {
		topic := create("delete-records", 1, nil)
		acked := produce(topic, Simple(20, "d"), 1)
		var upTo kadm.Offsets
		upTo.AddOffset(topic, 0, 8, -1)
		answer := Get(adm.DeleteRecords(ctx, upTo))
		Must(answer.Error())
		Until(10*time.Second, "log start 8", func() bool {
			o, _ := Get(adm.ListStartOffsets(ctx, topic)).Lookup(topic, 0)
			return o.Offset == 8
		})
		Same(acked[8:], readAll(topic, 1, 12), false)
		return ""
	})
	suite.Add("admin.log-dirs", "DescribeLogDirs", func() string {
		topic := create("log-dirs", 1, nil)
		produce(topic, Simple(50, "z"), 1)
		var set kadm.TopicsSet
		set.Add(topic, 0)
		found := false
		Get(adm.DescribeAllLogDirs(ctx, set)).Each(func(d kadm.DescribedLogDir) {
			Must(d.Err)
			_, ok := d.Topics.Lookup(topic, 0)
			found = found || ok
		})
		Check(found, "the topic is in no log dir")
		return ""
	})
	suite.Add("admin.producers", "DescribeProducers", func() string {
		topic := create("producers", 1, nil)
		produce(topic, Simple(5, "z"), 1)
		var set kadm.TopicsSet
		set.Add(topic, 0)
		all := Get(adm.DescribeProducers(ctx, set)).SortedProducers()
		Check(len(all) == 1 && all[0].LastSequence == 4, "producers %+v", all)
		return ""
	})
	suite.AddCompaction(
		func(name string) string {
			configs := map[string]*string{}
			for key, value := range Compact {
				configs[key] = &value
			}
			return create(name, 1, configs)
		},
		func(topic string, batch []Record) []At { return produce(topic, batch, 1) },
		readTo)
	suite.Add("topic.delete", "DeleteTopics Metadata", func() string {
		topic := create("delete", 2, nil)
		produce(topic, Simple(10, "d"), 2)
		_, err := adm.DeleteTopic(ctx, topic)
		Must(err)
		Until(20*time.Second, "topic gone", func() bool { return !Get(adm.ListTopics(ctx)).Has(topic) })
		create("delete", 1, nil)
		acked := produce(topic, Simple(3, "e"), 1)
		Check(acked[0].Offset == 0, "a topic made again starts at 0: %d", acked[0].Offset)
		Same(acked, readAll(topic, 1, 3), false)
		return ""
	})
}
