package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// childEnv makes this program the child: a process that takes part in the locks and
// elections, and is stopped by SIGSTOP past its leases. It can't know of that, so that
// nothing is asked of its holds; its guarded writes are checked like all others.
const childEnv = "CHAOS_CHILD"

type childSpec struct {
	Client    int
	Package   string
	Seed      uint64
	Endpoints []string
}

// childReport is what it says at its end.
type childReport struct {
	Calls            int
	Written, Refused int // guarded writes that were carried out, and that were refused
	// Those that it made as soon as it went on after a pause, before it asked whether it
	// still held. One was carried out only if its key still stood, which the history shows.
	StaleWritten, StaleRefused int
}

// count adds a call.
func (r *childReport) count(c history.Call) {
	r.Calls++
	written, refused := &r.Written, &r.Refused
	switch c.Op {
	case guardedOp:
	case staleOp:
		written, refused = &r.StaleWritten, &r.StaleRefused
	default:
		return
	}
	switch c.Error {
	case "":
		*written++
	case errRefused.Error():
		*refused++
	}
}

// child works until the input ends.
func child(spec string, in io.Reader, out io.Writer) error {
	var s childSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	client, err := etcdtest.NewClient(s.Endpoints...)
	if err != nil {
		return err
	}
	defer client.Close()
	r := &run{rec: history.NewRecorder()}
	r.seed = s.Seed
	lib := library.Here
	if s.Package == history.Upstream {
		lib = library.Upstream
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, bufio.NewReader(in))
		cancel()
	}()
	station := &station{
		who: history.Who{Client: s.Client, Package: s.Package}, lib: lib, client: client, leases: witnessOf(client),
	}
	var wg sync.WaitGroup
	for i := range uint64(2) {
		w := &worker{run: r, station: station, rnd: r.rand(500 + i), dawdles: true}
		wg.Go(func() { w.work(ctx) })
	}
	wg.Wait()
	var report childReport
	for _, record := range r.rec.History() {
		if record.Call != nil {
			report.count(*record.Call)
		}
	}
	return json.NewEncoder(out).Encode(report)
}

// process is the child as its parent sees it.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	report childReport
	err    error
	once   sync.Once
}

func startChild(s childSpec) (*process, error) {
	spec, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return p, p.cmd.Start()
}

// finish lets the child end its work, and waits for it.
func (p *process) finish() {
	p.once.Do(func() {
		p.in.Close()
		late := time.AfterFunc(settling, func() { _ = p.cmd.Process.Kill() })
		defer late.Stop()
		err := json.NewDecoder(p.out).Decode(&p.report)
		if p.err = p.cmd.Wait(); p.err == nil && err != nil {
			p.err = fmt.Errorf("no report: %w", err)
		}
	})
}

func (p *process) kill() {
	_ = p.resume()
	p.finish()
}
