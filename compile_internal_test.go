package concurrency

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// The golden files hold the transaction that an attempt comes to, at each isolation
// level. After a change that is meant to change them:
//
//	go test -run TestCompile -update .
//
// rewrites them, for the difference to be read.
var update = flag.Bool("update", false, "rewrite the golden files of the transactions")

// pinned is the revision of the attempts' first read.
const pinned = 10

// attempts are made of a read set, in which 0 stands for a key that did not exist, and
// of the function's writes.
var attempts = []struct {
	name  string
	reads map[string]int64 // mod revisions
	spans []span
	write func(stm STM)
	guard []v3.Cmp
}{
	{name: "nothing"},
	{
		name:  "guarded",
		reads: map[string]int64{"b": 7, "a": 3},
		write: func(stm STM) { stm.Put("a", "new") },
		guard: []v3.Cmp{ticket{"team/1f", 4}.stands(), ticket{"lock/1f", 5}.stands()},
	},
	{
		name:  "guarded-blind-write",
		write: func(stm STM) { stm.Put("a", "new") },
		guard: []v3.Cmp{ticket{"lock/1f", 5}.stands()},
	},
	{
		name:  "reads",
		reads: map[string]int64{"a": 3, "none": 0, "b": 7},
	},
	{
		name: "blind-writes",
		write: func(stm STM) {
			stm.Put("b", "1")
			stm.Del("a")
		},
	},
	{
		name:  "update",
		reads: map[string]int64{"a": 3},
		write: func(stm STM) { stm.Put("a", "new") },
	},
	{
		name:  "remove",
		reads: map[string]int64{"a": 3, "none": 0},
		write: func(stm STM) {
			stm.Del("a")
			stm.Del("none")
		},
	},
	{
		name:  "reads-and-writes",
		reads: map[string]int64{"b": 7, "a": 3, "none": 0},
		write: func(stm STM) {
			stm.Put("none", "created")
			stm.Put("blind", "1")
			stm.Put("a", "new")
		},
	},
	{
		name:  "order-of-writes",
		reads: map[string]int64{"z": 9, "y": 8},
		write: func(stm STM) {
			stm.Put("c", "1", v3.WithPrevKV())
			stm.Put("a", "2")
			stm.Put("b", "3")
			stm.Del("a")
			stm.Put("b", "4")
			stm.Put("c", "5") // in its place, without the option
			stm.Put("z", "6")
		},
	},
	{
		name:  "ranges",
		reads: map[string]int64{"b": 7, "x": 3},
		spans: []span{
			{interval{"a", "d"}, pinned, []*mvccpb.KeyValue{seen("a", 3), seen("b", 7)}},
			{interval{"s", unbounded}, pinned, []*mvccpb.KeyValue{seen("t", 9), seen("x", 3)}},
		},
		write: func(stm STM) {
			stm.Put("c", "lies in a range that was read")
			stm.Put("m", "does not")
		},
	},
	{
		name:  "delete-ranges",
		reads: map[string]int64{"m": 3},
		write: func(stm STM) {
			stm.Put("b", "is dropped")
			stm.DelRange("", "d")
			stm.Put("c", "stays")
			stm.Del("b")
			stm.DelRange("s", unbounded)
		},
	},
}

func seen(key string, rev int64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}
}

var levelNames = [...]string{
	SerializableSnapshot: "SerializableSnapshot",
	Serializable:         "Serializable",
	RepeatableReads:      "RepeatableReads",
	ReadCommitted:        "ReadCommitted",
}

func TestCompile(t *testing.T) {
	require.Len(t, levelNames, len(levels))
	for _, tc := range attempts {
		t.Run(tc.name, func(t *testing.T) {
			compileAt := func(lvl level) string {
				a := newAttempt(lvl, tc.reads, tc.spans, tc.write)
				a.options.guards = tc.guard
				return render(a.compile())
			}
			var got bytes.Buffer
			for lvl, name := range levelNames {
				text := compileAt(levels[lvl])
				fmt.Fprintf(&got, "%s\n%s", name, text)
				for range 20 { // whatever the order of the maps
					require.Equal(t, text, compileAt(levels[lvl]))
				}
			}
			file := filepath.Join("testdata", "golden", tc.name+".txt")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

// A golden file that no test reads proves nothing.
func TestGoldenFilesAreUsed(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*"))
	require.NoError(t, err)
	var want []string
	for _, tc := range attempts {
		want = append(want, filepath.Join("testdata", "golden", tc.name+".txt"))
	}
	require.ElementsMatch(t, want, files)
}

// newAttempt is an attempt that has read and written.
func newAttempt(lvl level, reads map[string]int64, spans []span, apply func(stm STM)) *attempt {
	a := &attempt{
		level: lvl, reads: newFacts(), written: map[string]*write{},
		carried: carried{chunk: defaultChunk},
	}
	for _, s := range spans {
		a.reads.insert(s)
		a.ask(want{interval: s.interval})
	}
	if len(reads) > 0 {
		a.header = &pb.ResponseHeader{Revision: pinned}
	}
	for key, rev := range reads {
		a.reads.keys[key] = nil
		if rev != 0 {
			a.reads.keys[key] = &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}
		}
	}
	if apply != nil {
		apply(a)
	}
	return a
}

// render writes a transaction as text, one line for each compare and operation.
func render(c compiled) string {
	var b strings.Builder
	for _, cmp := range c.cmps {
		fmt.Fprintf(&b, "\tif %s\n", renderCmp(cmp))
	}
	for _, op := range c.then {
		fmt.Fprintf(&b, "\tthen %s\n", renderOp(op))
	}
	for _, op := range c.els {
		fmt.Fprintf(&b, "\telse %s\n", renderOp(op))
	}
	if len(c.back) > 0 {
		var back []string
		for _, w := range c.back {
			back = append(back, strings.ReplaceAll(w.name(), "\x00", "0x00"))
		}
		fmt.Fprintf(&b, "\tread back: %s\n", strings.Join(back, " "))
	}
	if b.Len() == 0 {
		return "\tnothing\n"
	}
	return b.String()
}

func renderCmp(cmp v3.Cmp) string {
	compare := cmp.GetCompare()
	return fmt.Sprintf("%s(%s) %s %d", strings.ToLower(compare.Target.String()), place(compare.Key, compare.RangeEnd),
		map[pb.Compare_CompareResult]string{pb.Compare_EQUAL: "=", pb.Compare_LESS: "<"}[compare.Result],
		compare.GetModRevision()+compare.GetCreateRevision()) // one of them is set
}

// place is a key or a range.
func place(key, end []byte) string {
	if end == nil {
		return string(key)
	}
	return strings.ReplaceAll(interval{string(key), string(end)}.name(), "\x00", "0x00")
}

func renderOp(op v3.Op) string {
	var text string
	switch {
	case op.IsTxn():
		cmps, then, els := op.Txn()
		var parts []string
		for _, cmp := range cmps {
			parts = append(parts, renderCmp(cmp))
		}
		return fmt.Sprintf("whether %s, then %d and else %d", strings.Join(parts, " and "), len(then), len(els))
	case op.IsPut():
		text = fmt.Sprintf("put %s %q", op.KeyBytes(), op.ValueBytes())
	case op.IsDelete():
		text = fmt.Sprintf("delete %s", place(op.KeyBytes(), op.RangeBytes()))
	case op.IsGet():
		text = fmt.Sprintf("get %s", place(op.KeyBytes(), op.RangeBytes()))
		if op.RangeBytes() != nil {
			text += fmt.Sprintf(", %d at most", op.Limit())
		}
	default:
		return "neither read nor write"
	}
	if op.Rev() != 0 || op.IsSerializable() {
		text += ", pinned or serializable"
	}
	if op.IsPrevKV() {
		text += ", previous value"
	}
	return text
}
