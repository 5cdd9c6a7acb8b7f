package house

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// inTheMap finds the files in the first column of a table of ARCHITECTURE.md.
var (
	row      = regexp.MustCompile(`(?m)^\| ([a-z]+\.go[^|]*)\|`)
	inTheMap = regexp.MustCompile(`[a-z]+\.go`)
)

// TestTheMapIsInTheOrderOfReading fails if ARCHITECTURE.md leaves a production file out, or names a
// file above one that it uses, in the sense of [TestFilesUseEachOtherInOneDirection]. Who reads the
// files in that order meets nothing that was not met before.
func TestTheMapIsInTheOrderOfReading(t *testing.T) {
	s := load(t)
	page, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	require.NoError(t, err)
	var order []string
	for _, match := range row.FindAllSubmatch(page, -1) {
		order = append(order, inTheMap.FindAllString(string(match[1]), -1)...)
	}
	used := s.uses(t)
	for _, name := range s.names() {
		if name == "doc.go" {
			continue
		}
		at := slices.Index(order, name)
		if at < 0 {
			t.Errorf("ARCHITECTURE.md does not name %s", name)
			continue
		}
		for _, below := range order[at:] {
			if len(used[name][below]) > 0 {
				t.Errorf("%s is above %s, which it uses", name, below)
			}
		}
	}
	for _, name := range order {
		if _, there := s.files[name]; !there {
			t.Errorf("ARCHITECTURE.md names %s, which is not there", name)
		}
	}
}
