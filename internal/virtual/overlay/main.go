// Overlay writes a few files of Go's own, changed so that a program of one processor runs
// a bubble of virtual time the same way each time, and the file that go build's and go test's
// -overlay takes. It is given the folder to write to.
//
//   - Goroutines of a bubble get their random numbers, such as those of select, of maps and of
//     math/rand/v2, from a sequence that begins anew with each bubble.
//   - The hashes of maps are those of a fixed seed.
//   - A goroutine keeps the processor, in system calls too, until it waits. Only what has not
//     waited for five seconds is interrupted.
//   - A mutex does not look how long, in real time, somebody has waited for it.
//   - A goroutine outside of bubbles that is woken up comes last, and changes no order.
//
// It fails if these files are not as it knows them: Go 1.26.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// edits are what is changed: in the file, each text, which stands there once, by another.
var edits = map[string][][2]string{
	"runtime/rand.go": {
		{
			"\tglobalRand.state.Init(*seed)\n",
			"\t*seed = [32]byte{1}\n\tglobalRand.state.Init(*seed)\n",
		},
		{
			"func rand() uint64 {\n",
			"func rand() uint64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn bubbleRand(b)\n\t}\n",
		},
	},
	"runtime/select.go": {
		{"j := cheaprandn(uint32(norder + 1))\n", "j := selectRandn(uint32(norder + 1))\n"},
	},
	"internal/sync/mutex.go": {
		{"starvationThresholdNs = 1e6\n", "starvationThresholdNs = 1e15\n"},
	},
	"runtime/time.go": {
		// The order of timers that are due at one instant.
		{"\t\t\tt.rand = cheaprand()\n", "\t\t\tt.rand = uint32(rand())\n"},
	},
	"runtime/proc.go": {
		{
			"func retake(now int64) uint32 {\n",
			"func retake(now int64) uint32 {\n\tif now < retakeNext {\n\t\treturn 0\n\t}\n\tretakeNext = now + 5e9\n",
		},
		{
			"func ready(gp *g, traceskip int, next bool) {\n",
			"func ready(gp *g, traceskip int, next bool) {\n\tnext = next && gp.bubble != nil\n",
		},
	},
}

// added is appended to the files.
var added = map[string]string{
	"runtime/rand.go": `
// bubbleSequence is the state of the random numbers of the newest bubble.
var bubbleSequence struct{ id, state uint64 }

//go:nosplit
func bubbleRand(b *synctestBubble) uint64 {
	s := &bubbleSequence
	if s.id != b.id {
		s.id, s.state = b.id, 0
	}
	s.state += 0xa0761d6478bd642f
	hi, lo := math.Mul64(s.state, s.state^0xe7037ed1a0b428db)
	return hi ^ lo
}
`,
	"runtime/select.go": `
// selectRandn is a random number below n.
func selectRandn(n uint32) uint32 {
	if getg().bubble != nil {
		return randn(n)
	}
	return cheaprandn(n)
}
`,
	"runtime/proc.go": `
// retakeNext is when processors are looked at again.
var retakeNext int64
`,
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: overlay folder")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "overlay:", err)
		os.Exit(1)
	}
}

// write writes the files to dir, and overlay.json, which says what they replace.
func write(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(root)), "src")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	replace := make(map[string]string)
	for name, changes := range edits {
		from, to := filepath.Join(src, name), filepath.Join(dir, filepath.Base(name))
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		changed, err := edit(string(text), changes)
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		if err := os.WriteFile(to, []byte(changed+added[name]), 0o666); err != nil {
			return err
		}
		replace[from] = to
	}
	text, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o666)
}

// edit makes each change once.
func edit(text string, changes [][2]string) (string, error) {
	for _, c := range changes {
		if strings.Count(text, c[0]) != 1 {
			return "", fmt.Errorf("not the Go that is known here: %q does not stand there once", c[0])
		}
		text = strings.Replace(text, c[0], c[1], 1)
	}
	return text, nil
}
