// Package report has what the programs that measure have in common: what they say their results
// with, which is tables, figures with three digits, medians, the machine, and the marked places of
// a page; and how they read lists of what to measure.
package report

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Table is what is printed, and written as Markdown.
type Table struct {
	Title string
	Head  []string
	Rows  [][]string
}

// Print writes the table with aligned columns.
func (t Table) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n%s\n\n%s\n", t.Title, strings.Join(t.Head, "\t"))
	for _, row := range t.Rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// Markdown writes the table as GitHub shows it: text to the left, figures to the right.
func (t Table) Markdown(out io.Writer) {
	rule := "|---|" + strings.Repeat("---:|", len(t.Head)-1)
	fmt.Fprintf(out, "\n%s\n\n| %s |\n%s\n", t.Title, strings.Join(t.Head, " | "), rule)
	for _, row := range t.Rows {
		fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
	}
}

// Duration has three digits.
func Duration(nanoseconds float64) string {
	d := time.Duration(nanoseconds)
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}

// Number has three digits, or as many as stand before the point.
func Number(x float64) string {
	if math.Abs(x) >= 100 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

// Machine says when and on what the figures came about, as far as the system tells it.
func Machine(now time.Time) string {
	return fmt.Sprintf("%s · %s, %d cores, %s · %s",
		now.UTC().Format("2006-01-02"), processor(), runtime.NumCPU(), kernel(), runtime.Version())
}

// processor is the model of the processor, where the system tells it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // empty elsewhere
	_, rest, _ := strings.Cut(string(info), "model name")
	line, _, _ := strings.Cut(rest, "\n")
	if _, model, ok := strings.Cut(line, ":"); ok {
		return strings.TrimSpace(model)
	}
	return runtime.GOARCH
}

func kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty elsewhere
	return strings.TrimSpace(runtime.GOOS + " " + string(release))
}

// Splice puts text between the two comments that name its place in a page. The comments stay.
func Splice(page, name, text string) (string, error) {
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(page, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("no place for %q: it takes the lines %q and %q", name, strings.TrimSpace(begin), end)
	}
	return before + begin + text + end + after, nil
}

// SpliceFile does the same to a page in a file.
func SpliceFile(path, name, text string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	updated, err := Splice(string(page), name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(updated), 0o644)
}

// List reads values that commas part.
func List[T any](s string, read func(string) (T, error)) (values []T, err error) {
	for part := range strings.SplitSeq(s, ",") {
		value, err := read(part)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}
