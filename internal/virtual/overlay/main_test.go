package main

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The runtime of the Go in use is as it is known here, and the changed files are Go.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, write(dir))
	text, err := os.ReadFile(filepath.Join(dir, "overlay.json"))
	require.NoError(t, err)
	var overlay struct{ Replace map[string]string }
	require.NoError(t, json.Unmarshal(text, &overlay))
	require.Len(t, overlay.Replace, len(edits))
	for from, to := range overlay.Replace {
		require.FileExists(t, from)
		_, err := parser.ParseFile(token.NewFileSet(), to, nil, 0)
		require.NoError(t, err)
	}
}

func TestEdit(t *testing.T) {
	got, err := edit("a b", [][2]string{{"a", "c"}, {"b", "d"}})
	require.NoError(t, err)
	require.Equal(t, "c d", got)
	for _, text := range []string{"b", "a a"} {
		_, err := edit(text, [][2]string{{"a", "c"}})
		require.ErrorContains(t, err, "not the Go that is known here")
	}
}
