package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
)

// provenance says when, on what, of which versions and with which settings the figures came about.
func provenance(now time.Time, o options, f *fleet) string {
	settings := map[kind]string{
		etcd: "without fsync", zooKeeper: "with forceSync=no", redisServer: "without persistence",
	}
	var servers, clients []string
	for _, k := range []kind{etcd, zooKeeper, redisServer} {
		if s := f.servers[k]; s != nil {
			servers = append(servers, fmt.Sprintf("%s %s %s", k, s.version, settings[k]))
		}
	}
	for _, l := range o.chosen() {
		if client := l.module + " " + versionOf(l.module); !slices.Contains(clients, client) {
			clients = append(clients, client)
		}
	}
	return fmt.Sprintf("%s · one server each, data on %s: %s · clients: %s · "+
		"rounds: %d, window %v · those who poll ask every %v",
		report.Machine(now), filesystem(o.data), strings.Join(servers, ", "), strings.Join(clients, ", "),
		o.rounds, o.window, pause)
}

// versionOf is the version of a module that this program is built with.
func versionOf(module string) string {
	info, _ := debug.ReadBuildInfo() // nil only without modules
	for _, m := range info.Deps {
		if m.Path == module {
			return m.Version
		}
	}
	return "of unknown version"
}

// filesystem is the kind of that on which a folder is, where the system tells it.
func filesystem(folder string) string {
	mounts, _ := os.ReadFile("/proc/mounts") // empty elsewhere
	folder, _ = filepath.Abs(folder)         // as it is without a current folder
	found, under := "disk", ""
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || len(fields[1]) < len(under) {
			continue
		}
		if rest, ok := strings.CutPrefix(folder, strings.TrimSuffix(fields[1], "/")); ok && (rest == "" || rest[0] == '/') {
			found, under = fields[2], fields[1]
		}
	}
	return found
}

// tables say how long a hand-over takes, how that compares, and how fair it is.
func tables(rows []row) []report.Table {
	times := report.Table{Title: "Time from one owner to the next, medians of the runs"}
	ratios := report.Table{Title: "Ratio: time here by the time of the peer, medians and quartiles of the rounds"}
	waits := report.Table{Title: "Longest wait for a turn in a run, medians of the runs"}
	for _, r := range rows {
		name := r.workload.String()
		timeRow, ratioRow, waitRow := []string{name}, []string{name}, []string{name}
		times.Head, ratios.Head = []string{"workload"}, []string{"workload"}
		for i, l := range r.libraries {
			times.Head = append(times.Head, l.name)
			timeRow = append(timeRow, report.Duration(report.Median(r.figures[i].times)))
			waitRow = append(waitRow, report.Duration(report.Median(r.figures[i].waits)))
			if l.name == here {
				continue
			}
			ratios.Head = append(ratios.Head, l.name)
			pairs := r.ratios(l.name)
			ratioRow = append(ratioRow, fmt.Sprintf("%s (%s to %s)", report.Number(report.Median(pairs)),
				report.Number(report.Quantile(pairs, 0.25)), report.Number(report.Quantile(pairs, 0.75))))
		}
		waits.Head, ratios.Head = times.Head, append(ratios.Head, "goals")
		times.Rows, ratios.Rows = append(times.Rows, timeRow), append(ratios.Rows, append(ratioRow, r.verdict()))
		if !r.line { // whose longest wait is that of the last one, by the way it is measured
			waits.Rows = append(waits.Rows, waitRow)
		}
	}
	return slices.DeleteFunc([]report.Table{times, ratios, waits}, func(t report.Table) bool { return len(t.Rows) == 0 })
}

// of are the figures of a library, none if it was not measured.
func (r row) of(name string) figures {
	i := slices.IndexFunc(r.libraries, func(l library) bool { return l.name == name })
	if i < 0 {
		return figures{}
	}
	return r.figures[i]
}

// ratios are those of the rounds: the time here by that of a library.
func (r row) ratios(name string) []float64 {
	return report.Ratios(r.of(name).times, r.of(here).times)
}

// verdict says which goals there are and which of them are missed.
func (r row) verdict() string {
	var parts []string
	for _, l := range r.libraries {
		goal, ok := r.goals[l.name]
		if !ok {
			continue
		}
		part := l.name + " " + report.Number(goal)
		if report.Median(r.ratios(l.name)) > goal {
			part += " missed"
		}
		parts = append(parts, part)
	}
	if parts == nil {
		return "–"
	}
	return strings.Join(parts, ", ")
}

// picture is one that internal/bench/chart draws.
type picture struct{ name, title string }

var pictures = []picture{
	{"peers", "hand-over of a lock, beside peers"},
	{"peers-rtt", "hand-over of a lock with a round trip, beside peers"},
}

// encode writes the points of the pictures: milliseconds over the number of contenders.
func encode(rows []row) []byte {
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	for _, r := range rows {
		if r.line {
			continue
		}
		for i, l := range r.libraries {
			p, line := pictures[0].name, l.name
			if r.rtt > 0 {
				p, line = pictures[1].name, l.name+", "+r.rtt.String()
			}
			y := strconv.FormatFloat(report.Median(r.figures[i].times)/float64(time.Millisecond), 'g', 6, 64)
			_ = w.Write([]string{p, line, strconv.Itoa(r.contenders), y}) // to memory
		}
	}
	w.Flush()
	return out.Bytes()
}
