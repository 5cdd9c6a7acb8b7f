package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/library"
)

// layers are where a function may belong, by its name: to the first that matches.
var layers = []struct {
	name     string
	function *regexp.Regexp
}{
	{"this package", regexp.MustCompile(`^example\.com/etcd/concurrency\.`)},
	{"etcd's client", regexp.MustCompile(`^go\.etcd\.io/etcd/(client|api)/`)},
	{"etcd's servers", regexp.MustCompile(`^go\.etcd\.io/|^go\.uber\.org/zap|^github\.com/google/btree`)},
	{"gRPC, protobuf", regexp.MustCompile(`^google\.golang\.org/|^golang\.org/x/net/|^net/http`)},
	{"system calls", regexp.MustCompile(`[sS]yscall|^runtime\.(futex|epollwait|usleep|write1|read)$|^\[vdso\]`)},
	{"memory", regexp.MustCompile(`^runtime\.(.*(alloc|gc|GC|scan|sweep|mark|heap|[sS]pan|memclr|memmove|grey|bulkBarrier|nextFree|wbBuf|typePointers|rowth|growslice|newobject|makeslice|findObject))`)},
	{"goroutines, timers, maps", regexp.MustCompile(`^runtime\.|^internal/runtime/`)},
	{"the rest", regexp.MustCompile(``)},
}

// shares reads what go tool pprof -top prints of a profile: the processor time, and how much
// of it was spent in the functions of each layer.
func shares(top string) (total time.Duration, spent map[string]time.Duration, err error) {
	spent = map[string]time.Duration{}
	_, lines, ok := strings.Cut(top, "cum%\n")
	if !ok {
		return 0, nil, fmt.Errorf("no profile: %q", top)
	}
	for line := range strings.Lines(lines) {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			return 0, nil, fmt.Errorf("not a line of a profile: %q", line)
		}
		flat, err := time.ParseDuration(fields[0])
		if err != nil && fields[0] != "0" {
			return 0, nil, err
		}
		name := strings.Join(fields[5:], " ")
		for _, l := range layers {
			if l.function.MatchString(name) {
				spent[l.name] += flat
				break
			}
		}
		total += flat
	}
	return total, spent, nil
}

// profiling is how long a workload is done at least. A profile has a hundred samples for each second of core time.
const profiling = 10 * time.Second

// profiled is where the time of a workload went.
type profiled struct {
	workload
	wall  time.Duration // of all operations
	ops   int
	total time.Duration // of processors, in both processes
	spent map[string]time.Duration
}

// profiles does the workloads, and leaves no file.
func (l *lab) profiles(ctx context.Context, chosen []workload) (t report.Table, err error) {
	dir, err := os.MkdirTemp("", "bench-*")
	if err != nil {
		return t, err
	}
	defer os.RemoveAll(dir)
	var all []profiled
	for _, w := range chosen {
		p, err := l.profile(ctx, w, dir)
		if err != nil {
			return t, fmt.Errorf("%s: %w", w.name, err)
		}
		all = append(all, p)
	}
	return breakdown("Processor time of clients and servers together", all), nil
}

// profile does a workload with this package only, while both processes are profiled.
func (l *lab) profile(ctx context.Context, w workload, dir string) (p profiled, err error) {
	p.workload = w
	b, err := l.prepare(ctx, w, library.Here)
	defer b.close()
	if err == nil {
		err = new(figures).count(ctx, w, b)
	}
	if err != nil {
		return p, err
	}
	clients, servers := filepath.Join(dir, "clients.pprof"), filepath.Join(dir, "servers.pprof")
	if err := l.cluster.toggleProfile(servers); err != nil {
		return p, err
	}
	stop, err := startProfile(clients)
	if err != nil {
		return p, err
	}
	for p.wall < profiling {
		took, err := b.do(ctx, w)
		if err != nil {
			return p, errors.Join(err, stop())
		}
		p.wall += took
		p.ops += w.ops
	}
	if err := errors.Join(stop(), l.cluster.toggleProfile(servers)); err != nil {
		return p, err
	}
	top, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-unit=ns",
		"-nodecount=1000000", "-nodefraction=0", "-edgefraction=0", clients, servers).Output() // of their sum
	if err != nil {
		return p, fmt.Errorf("go tool pprof: %w", err)
	}
	p.total, p.spent, err = shares(string(top))
	return p, err
}

// startProfile profiles this process until the function that it returns is called.
func startProfile(file string) (stop func() error, err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// breakdown is the table of where the time went.
func breakdown(title string, all []profiled) report.Table {
	t := report.Table{Title: title, Head: []string{"workload", "time", "core time", "of the cores"}}
	for _, l := range layers {
		t.Head = append(t.Head, l.name)
	}
	for _, p := range all {
		line := []string{
			p.name, report.Duration(float64(p.wall) / float64(p.ops)), report.Duration(float64(p.total) / float64(p.ops)),
			report.Number(100*float64(p.total)/float64(p.wall)/float64(runtime.NumCPU())) + " %",
		}
		for _, l := range layers {
			line = append(line, strconv.FormatFloat(100*float64(p.spent[l.name])/float64(p.total), 'f', 1, 64)+" %")
		}
		t.Rows = append(t.Rows, line)
	}
	return t
}
