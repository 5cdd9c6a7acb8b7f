// Command chart draws what the bench program has measured: it reads a series.csv and
// writes one SVG for each picture into a folder.
//
// It is a module of its own, so that the plotting library is no business of those who
// use the package.
package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// picture is how one is labelled. All have the number of those who take part below.
type picture struct {
	title, x, y string
	logY        bool
}

var pictures = map[string]picture{
	"hand-over":   {"Hand-over of a lock", "contenders", "ms from one owner to the next", true},
	"peers":       {"Hand-over of a lock", "contenders", "ms from one owner to the next", true},
	"peers-rtt":   {"Hand-over of a lock, with a round trip", "contenders", "ms from one owner to the next", true},
	"drain":       {"Draining a line", "waiters", "s until the last has had its turn", true},
	"stm-commits": {"Transactions on one key", "clients", "commits per second", false},
	"stm-entries": {"Transactions on one key", "clients", "raft entries per commit", false},
}

// line is one of a picture.
type line struct {
	name   string
	points plotter.XYs
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: chart series.csv folder")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func run(series, folder string) error {
	drawn, err := read(series)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, lines := range drawn {
		p, ok := pictures[name]
		if !ok {
			return fmt.Errorf("no picture is called %q", name)
		}
		if err := p.draw(lines, filepath.Join(folder, name+".svg")); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// read gives the lines of each picture, in the order of the file.
func read(path string) (map[string][]line, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	records, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, err
	}
	drawn := map[string][]line{}
	for _, r := range records {
		if len(r) != 4 {
			return nil, fmt.Errorf("%q has no picture, line, x and y", r)
		}
		x, errX := strconv.ParseFloat(r[2], 64)
		y, errY := strconv.ParseFloat(r[3], 64)
		if errX != nil || errY != nil {
			return nil, fmt.Errorf("%q has no numbers", r)
		}
		lines := drawn[r[0]]
		i := slices.IndexFunc(lines, func(l line) bool { return l.name == r[1] })
		if i < 0 {
			i = len(lines)
			lines = append(lines, line{name: r[1]})
		}
		lines[i].points = append(lines[i].points, plotter.XY{X: x, Y: y})
		drawn[r[0]] = lines
	}
	return drawn, nil
}

func (p picture) draw(lines []line, path string) error {
	fig := plot.New()
	fig.Title.Text, fig.X.Label.Text, fig.Y.Label.Text = p.title, p.x, p.y
	fig.Title.Padding, fig.X.Padding, fig.Y.Padding = vg.Points(6), vg.Points(4), vg.Points(4)
	var ticks []plot.Tick
	for _, point := range lines[0].points {
		ticks = append(ticks, plot.Tick{Value: point.X, Label: strconv.FormatFloat(point.X, 'f', 0, 64)})
	}
	fig.X.Scale, fig.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(ticks)
	if p.logY {
		fig.Y.Scale, fig.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: 3}
	} else {
		fig.Y.Min = 0
	}
	fig.Add(plotter.NewGrid())
	var args []any
	for _, l := range lines {
		args = append(args, l.name, l.points)
	}
	if err := plotutil.AddLinePoints(fig, args...); err != nil {
		return err
	}
	fig.Legend.Top = true
	return fig.Save(16*vg.Centimeter, 10*vg.Centimeter, path)
}
