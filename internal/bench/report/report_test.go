package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuantile(t *testing.T) {
	require.Zero(t, Median(nil))
	require.Equal(t, 7.0, Median([]float64{7}))
	values := []float64{4, 1, 3, 2}
	require.Equal(t, 2.5, Median(values))
	require.Equal(t, 1.0, Quantile(values, 0))
	require.Equal(t, 1.75, Quantile(values, 0.25))
	require.Equal(t, 4.0, Quantile(values, 1))
	require.Equal(t, []float64{4, 1, 3, 2}, values, "left as they were")
}

// A machine that is twice as slow for a while shifts the medians of the times, not
// that of the ratios.
func TestRatiosOfPairs(t *testing.T) {
	base, ours := []float64{10, 20, 20, 10, 20}, []float64{5, 10, 10, 5, 10}
	require.Equal(t, 0.5, Median(Ratios(base, ours)))
	require.Len(t, Ratios(base, ours[:2]), 2, "a run without its pair doesn't count")
}

func TestFormats(t *testing.T) {
	for nanoseconds, want := range map[float64]string{
		0: "0s", 999: "999ns", 1234: "1.23µs", 1_357_900: "1.36ms", 25_000_000: "25ms", 99_960_000: "100ms",
	} {
		require.Equal(t, want, Duration(nanoseconds))
	}
	for x, want := range map[float64]string{0: "0", 0.02346: "0.0235", 1: "1", 12.345: "12.3", 281.4: "281", 12345: "12345"} {
		require.Equal(t, want, Number(x))
	}
	require.Regexp(t, `^2026-11-26 · .+, \d+ cores, .+ · go1\.`, Machine(time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)))
}

func TestTable(t *testing.T) {
	table := Table{Title: "title", Head: []string{"workload", "time"}, Rows: [][]string{{"work", "5ns"}}}
	var text, page strings.Builder
	require.NoError(t, table.Print(&text))
	table.Markdown(&page)
	require.Equal(t, "\ntitle\n\nworkload  time\nwork      5ns\n", text.String())
	require.Equal(t, "\ntitle\n\n| workload | time |\n|---|---:|\n| work | 5ns |\n", page.String())
}

func TestSplice(t *testing.T) {
	doc := "head\n<!-- a: begin -->\nold\n<!-- a: end -->\n<!-- b: begin -->\n<!-- b: end -->\n"
	got, err := Splice(doc, "a", "new\n")
	require.NoError(t, err)
	require.Equal(t, strings.Replace(doc, "old", "new", 1), got)
	again, err := Splice(got, "a", "new\n")
	require.NoError(t, err)
	require.Equal(t, got, again)
	for _, broken := range []string{"", "<!-- a: begin -->\n", "<!-- a: end -->"} {
		_, err = Splice(broken, "a", "new\n")
		require.ErrorContains(t, err, `no place for "a"`)
	}
	path := filepath.Join(t.TempDir(), "page.md")
	require.ErrorIs(t, SpliceFile(path, "a", "new\n"), os.ErrNotExist)
	require.NoError(t, os.WriteFile(path, []byte(doc), 0o644))
	require.NoError(t, SpliceFile(path, "b", "new\n"))
	require.ErrorContains(t, SpliceFile(path, "c", ""), path)
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, strings.Replace(doc, "b: begin -->\n", "b: begin -->\nnew\n", 1), string(page))
}
