package readme

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/etcd/concurrency/internal/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, etcdtest.IgnoreServer()...) }

const (
	root   = "../.."
	module = "example.com/etcd/concurrency"
	// address is where the programs of the page look for etcd.
	address = "localhost:2379"
)

// program finds a program of the page, and the output that the page says it has.
var program = regexp.MustCompile("(?ms)^```go\n(.*?)^```\n\n(?:It prints\n\n((?:    .*?\n)+))?")

// TestPrograms pastes each program of the page into a new module, as the page says, builds it
// and runs it. It has to end by itself, without an error, and print what the page says.
func TestPrograms(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	all := program.FindAllSubmatch(page, -1)
	require.Len(t, all, bytes.Count(page, []byte("```go\n")), "a block that this test does not understand")
	require.NotEmpty(t, all)
	for _, match := range all {
		text, prints := string(match[1]), regexp.MustCompile(`(?m)^    `).ReplaceAllString(string(match[2]), "")
		require.NotEmpty(t, prints, "the page does not say what this prints:\n%s", text)
		binary := build(t, text)
		require.Equal(t, prints, run(t, binary), "the output of\n%s", text)
	}
}

// build makes a module of the program and returns the binary.
func build(t *testing.T, text string) string {
	checkout, err := filepath.Abs(root)
	require.NoError(t, err)
	server := etcdtest.New(t) // in which nobody has written
	endpoint := strings.TrimPrefix(server.Endpoint(0), "http://")
	require.Contains(t, text, address)
	text = strings.ReplaceAll(text, address, endpoint)

	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("main.go", text)
	// The sums of all that the program may need, so that nobody has to be asked for them.
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	require.NoError(t, err)
	write("go.sum", string(sums))
	command(t, dir, "go", "mod", "init", "try")
	command(t, dir, "go", "mod", "edit", "-require", module+"@v0.0.0", "-replace", module+"="+checkout)
	command(t, dir, "go", "vet", "-mod=mod", ".")
	command(t, dir, "go", "build", "-mod=mod", "-o", "try.exe", ".")
	return filepath.Join(dir, "try.exe")
}

func run(t *testing.T, binary string) string { return command(t, filepath.Dir(binary), binary) }

// command runs a command in the folder and returns its output.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	var out, trouble bytes.Buffer
	// A program that does not end is stopped when go test's own time is up.
	ctx := context.Background()
	if deadline, bounded := t.Deadline(); bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &trouble
	err := cmd.Run()
	require.NoError(t, err, "%s %v\n%s%s", name, args, &out, &trouble)
	return out.String()
}
