// Command places measures the lock with other numbers of places from which a waiter follows its
// line: the constant nearby of key.go. It builds the program bench anew for each number, with that
// line of key.go replaced by an overlay, and puts the figures of all of them into one table.
package main

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
)

func main() {
	numbers := []int{1, 4, 8, 16, 32}
	flag.Func("nearby", "the `numbers` of places, such as 8,16", func(s string) (err error) {
		numbers, err = report.List(s, strconv.Atoi)
		return err
	})
	rounds := flag.Int("rounds", 5, "`number` of pairs of runs")
	dir := flag.String("dir", ".build/places", "`folder` for what is built")
	update := flag.String("update", "", "Markdown `file` whose place called places is brought up to date")
	flag.Parse()
	if err := run(numbers, *rounds, *dir, *update); err != nil {
		fmt.Fprintln(os.Stderr, "places:", err)
		os.Exit(1)
	}
}

func run(numbers []int, rounds int, dir, update string) error {
	table := report.Table{
		Title: "Time of a hand-over, and beside it that of bare calls with the same watch and a read = 1, by the number of places",
		Head:  []string{"contenders"},
	}
	for _, n := range numbers {
		table.Head = append(table.Head, strconv.Itoa(n))
		points, err := measure(n, rounds, dir)
		if err != nil {
			return fmt.Errorf("%d places: %w", n, err)
		}
		for i, p := range points {
			if i == len(table.Rows) {
				table.Rows = append(table.Rows, []string{p.name})
			}
			table.Rows[i] = append(table.Rows[i], p.figure())
		}
	}
	facts := fmt.Sprintf("%s · rounds: %d", report.Machine(time.Now()), rounds)
	fmt.Println(facts)
	if err := table.Print(os.Stdout); err != nil || update == "" {
		return err
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "\n%s\n", facts)
	table.Markdown(&text)
	text.WriteByte('\n')
	return report.SpliceFile(update, "places", text.String())
}

// point is what was measured of one workload: milliseconds with bare calls, and here.
type point struct {
	name       string
	bare, here float64
}

func (p point) figure() string {
	return fmt.Sprintf("%s %s", report.Duration(p.here*float64(time.Millisecond)), report.Number(p.here/p.bare))
}

var nearby = regexp.MustCompile(`(?m)^\tnearby = \d+$`)

// measure builds bench with the number, and has it measure.
func measure(n, rounds int, dir string) ([]point, error) {
	code, err := os.ReadFile("key.go")
	if err != nil {
		return nil, err
	}
	if len(nearby.FindAll(code, -1)) != 1 {
		return nil, fmt.Errorf("key.go has no one line %v", nearby)
	}
	dir, err = filepath.Abs(filepath.Join(dir, strconv.Itoa(n)))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	changed, overlay, program := filepath.Join(dir, "key.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "bench")
	original, err := filepath.Abs("key.go")
	if err != nil {
		return nil, err
	}
	paths, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		return nil, err
	}
	code = nearby.ReplaceAll(code, fmt.Appendf(nil, "\tnearby = %d", n))
	if err := cmp.Or(os.WriteFile(changed, code, 0o644), os.WriteFile(overlay, paths, 0o644)); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"go", "build", "-overlay", overlay, "-o", program, "./internal/bench"},
		{program, "-places", "-rounds", strconv.Itoa(rounds), "-out", dir},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
	}
	return read(filepath.Join(dir, "series.csv"))
}

// read reads the points that bench has written: two lines for each workload, of bare calls first.
func read(path string) (points []point, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	records, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(records); i += 2 {
		bare, err := strconv.ParseFloat(records[i][3], 64)
		here, err2 := strconv.ParseFloat(records[i+1][3], 64)
		if err := cmp.Or(err, err2); err != nil {
			return nil, err
		}
		points = append(points, point{strings.TrimPrefix(records[i][1], "bare: "), bare, here})
	}
	return points, nil
}
