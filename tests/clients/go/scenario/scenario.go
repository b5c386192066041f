// Package scenario holds what the Go client programs have in common: the records, the comparison and the
// report. The rules are those of ../../README.md.
package scenario

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"sort"
	"strings"
	"time"
)

// BaseMs is the timestamp of the first record of a set.
const BaseMs int64 = 1_700_000_000_000

// Header is a record header; its value may be nil.
type Header struct {
	Key   string
	Value []byte
}

// Record is a record to produce; nil keys and values are null.
type Record struct {
	Key, Value []byte
	Headers    []Header
	Timestamp  int64
}

// At is a record with its partition and offset, as acknowledged or as consumed.
type At struct {
	Partition int32
	Offset    int64
	Record    Record
}

func noise(size int, state uint32) []byte {
	out := make([]byte, size)
	for i := range out {
		state ^= state << 13
		state ^= state >> 17
		state ^= state << 5
		out[i] = byte(state)
	}
	return out
}

var big = noise(900_000, 7)

// Records are the records that each codec carries.
func Records() []Record {
	up, down := make([]byte, 256), make([]byte, 256)
	for i := range up {
		up[i], down[i] = byte(i), byte(255-i)
	}
	out := []Record{
		{Key: []byte("plain"), Value: []byte("value")},
		{Value: []byte("no key")},
		{Key: []byte("tombstone")},
		{},
		{Key: []byte{}, Value: []byte{}},
		{Key: []byte("headers"), Value: []byte("with headers"), Headers: []Header{
			{"h", []byte("1")}, {"h", []byte("2")}, {"empty", []byte{}}, {"nil", nil}, {"caf\u00e9", []byte{0, 255, 254}}, {"h", []byte("1")}}},
		{Key: up, Value: down},
		{Key: []byte("big"), Value: big, Headers: []Header{{"size", []byte("900000")}}},
	}
	for i := range 60 {
		out = append(out, Record{Key: fmt.Appendf(nil, "key-%d", i%7), Value: []byte(strings.Repeat(fmt.Sprintf("the quick brown fox %d ", i), 20)),
			Headers: []Header{{"n", fmt.Append(nil, i)}}})
	}
	for i := range out {
		out[i].Timestamp = BaseMs + int64(i)*1000
	}
	return out
}

// Simple are count small records.
func Simple(count int, tag string) []Record {
	out := make([]Record, count)
	for i := range out {
		out[i] = Record{Key: fmt.Appendf(nil, "k%d", i), Value: fmt.Appendf(nil, "%s-%d", tag, i), Timestamp: BaseMs + int64(i)*1000}
	}
	return out
}

// Compact are topic configs under which any broker compacts soon: what is a moment old, however little it is.
var Compact = map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": "100",
	"max.compaction.lag.ms": "100"}

// superseded are records of ten keys, five times over, and then none of the first key.
func superseded() []Record {
	var out []Record
	for n := range 5 {
		for key := range 10 {
			out = append(out, Record{Key: fmt.Appendf(nil, "k%d", key), Value: fmt.Appendf(nil, "%d in %d", key, n)})
		}
	}
	out = append(out, Record{Key: []byte("k0")})
	for i := range out {
		out[i].Timestamp = BaseMs + int64(i)*1000
	}
	return out
}

// compacted tells whether of superseded only the newest is left. The newest must be there at any time.
func compacted(seen []At) bool {
	rows, newest := 0, map[string]string{}
	for i, a := range seen {
		Check(i == 0 || a.Offset > seen[i-1].Offset, "the offsets do not rise at %d", a.Offset)
		key := string(a.Record.Key)
		if key == "tick" {
			continue
		}
		rows++
		newest[key] = string(a.Record.Value)
	}
	for key := 1; key < 10; key++ {
		Check(newest[fmt.Sprintf("k%d", key)] == fmt.Sprintf("%d in 4", key), "the newest are %v", newest)
	}
	Check(newest["k0"] == "", "the deleted key is back: %v", newest)
	// The deletion itself stays for a day.
	return rows <= 10
}

// AddCompaction registers topic.compact. create makes a topic of one partition with the configs Compact, produce returns the
// records as acknowledged, readTo what a reader from the start finds up to an offset.
func (s *Suite) AddCompaction(create func(name string) string, produce func(topic string, batch []Record) []At,
	readTo func(topic string, offset int64) []At) {
	s.Add("topic.compact", "CreateTopics Produce Fetch", func() string {
		topic, began := create("compact"), time.Now()
		produce(topic, superseded())
		Until(75*time.Second, "compaction", func() bool {
			time.Sleep(time.Second)
			passed := int64(time.Since(began).Seconds())
			// Kafka compacts only what a later record has followed.
			later := Record{Key: []byte("tick"), Value: fmt.Append(nil, passed), Timestamp: BaseMs + (100+passed)*1000}
			return compacted(readTo(topic, produce(topic, []Record{later})[0].Offset))
		})
		return fmt.Sprintf("compacted after %d s", int(time.Since(began).Seconds()))
	})
}

// Check panics with the message when the condition does not hold; Run turns that into a failed scenario.
func Check(condition bool, format string, args ...any) {
	if !condition {
		panic(fmt.Errorf(format, args...))
	}
}

// Must panics when there is an error.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}

// Get returns the value, or panics when there is an error.
func Get[T any](value T, err error) T {
	Must(err)
	return value
}

// Until calls condition until it holds, at most for that long.
func Until(limit time.Duration, what string, condition func() bool) {
	end := time.Now().Add(limit)
	for !condition() {
		Check(time.Now().Before(end), "%s did not happen within %s", what, limit)
		time.Sleep(50 * time.Millisecond)
	}
}

// Same compares what was acknowledged with what was consumed, byte for byte. loose ignores the difference
// between null and empty, for a client that cannot tell them apart.
func Same(acked, seen []At, loose bool) {
	Check(len(acked) == len(seen), "%d records produced, %d consumed", len(acked), len(seen))
	order := func(all []At) []At {
		all = append([]At(nil), all...)
		sort.Slice(all, func(i, j int) bool {
			if all[i].Partition != all[j].Partition {
				return all[i].Partition < all[j].Partition
			}
			return all[i].Offset < all[j].Offset
		})
		return all
	}
	equal := func(a, b []byte) bool { return bytes.Equal(a, b) && (loose || (a == nil) == (b == nil)) }
	want, got := order(acked), order(seen)
	for i, a := range want {
		b := got[i]
		where := fmt.Sprintf("partition %d offset %d", a.Partition, a.Offset)
		Check(a.Partition == b.Partition && a.Offset == b.Offset, "acknowledged at %s, consumed at partition %d offset %d", where, b.Partition, b.Offset)
		Check(equal(a.Record.Key, b.Record.Key), "key of %s differs: %.60q, not %.60q", where, b.Record.Key, a.Record.Key)
		Check(equal(a.Record.Value, b.Record.Value), "value of %s differs: %.60q, not %.60q", where, b.Record.Value, a.Record.Value)
		Check(a.Record.Timestamp == b.Record.Timestamp, "timestamp of %s: %d, not %d", where, b.Record.Timestamp, a.Record.Timestamp)
		Check(len(a.Record.Headers) == len(b.Record.Headers), "headers of %s: %q, not %q", where, b.Record.Headers, a.Record.Headers)
		for j, h := range a.Record.Headers {
			o := b.Record.Headers[j]
			Check(h.Key == o.Key && equal(h.Value, o.Value), "header %d of %s: %q, not %q", j, where, o, h)
		}
	}
}

type line struct {
	Client   string   `json:"client"`
	Version  string   `json:"version"`
	Scenario string   `json:"scenario"`
	Apis     []string `json:"apis"`
	OK       bool     `json:"ok"`
	Error    *string  `json:"error"`
	Note     *string  `json:"note"`
	Ms       int64    `json:"ms"`
}

type one struct {
	name, apis string
	body       func() string
}

// Suite holds the scenarios of one client in their order.
type Suite struct {
	client, module string
	scenarios      []one
	// Bootstrap and Prefix are the first two arguments of the program.
	Bootstrap, Prefix string
}

// New reads the command line. module is the path of the client's module, whose version is reported.
func New(client, module string) *Suite {
	if len(os.Args) < 3 {
		fmt.Fprintf(os.Stderr, "usage: %s BOOTSTRAP PREFIX [SCENARIO...]\n", os.Args[0])
		os.Exit(2)
	}
	return &Suite{client: client, module: module, Bootstrap: os.Args[1], Prefix: os.Args[2]}
}

// Add registers a scenario; apis are the Kafka APIs that it makes the client use. The body returns a note.
func (s *Suite) Add(name, apis string, body func() string) {
	s.scenarios = append(s.scenarios, one{name, apis, body})
}

func (s *Suite) version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == s.module {
				return strings.TrimPrefix(dep.Version, "v")
			}
		}
	}
	return "unknown"
}

// Run runs all scenarios, or those named after the prefix, and ends the program.
func (s *Suite) Run() {
	chosen := map[string]bool{}
	for _, name := range os.Args[3:] {
		chosen[name] = true
	}
	failed, version, ran := false, s.version(), 0
	for _, sc := range s.scenarios {
		if len(chosen) > 0 && !chosen[sc.name] {
			continue
		}
		ran++
		l := line{Client: s.client, Version: version, Scenario: sc.name, Apis: strings.Fields(sc.apis)}
		start := time.Now()
		note, err := guarded(sc.body)
		l.Ms, l.OK = time.Since(start).Milliseconds(), err == nil
		if err != nil {
			text := err.Error()
			l.Error, failed = &text, true
		}
		if note != "" {
			l.Note = &note
		}
		Must(json.NewEncoder(os.Stdout).Encode(l))
	}
	if failed || ran == 0 {
		os.Exit(1)
	}
	os.Exit(0)
}

func guarded(body func() string) (note string, err error) {
	type result struct {
		note string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if problem := recover(); problem != nil {
				if os.Getenv("VERBOSE") != "" {
					fmt.Fprintf(os.Stderr, "%v\n%s\n", problem, debug.Stack())
				}
				if e, ok := problem.(error); ok {
					done <- result{"", e}
				} else {
					done <- result{"", fmt.Errorf("%v", problem)}
				}
			}
		}()
		done <- result{body(), nil}
	}()
	select {
	case r := <-done:
		return r.note, r.err
	case <-time.After(2 * time.Minute):
		return "", fmt.Errorf("did not end within 2 minutes")
	}
}
