package house

import (
	"go/ast"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The measures of files, in lines of code: lines that are neither empty nor comment alone. A
// field that is a struct counts as one, because its type has a theme of its own.
const (
	longestFile      = 300
	lockPath         = 1554
	sessions         = 858
	transactions     = 821
	ranges           = 670
	traces           = 284
	mostFieldsOfSome = 14 // of type lease, which everything would otherwise be put in
)

// lockPathFiles are what a reader of Mutex.Lock reads, from the errors up. sessionFiles are what a
// reader of NewSession reads beside the errors, the calls and the watches. The files of transactions
// are what a reader of NewSTM reads.
var (
	lockPathFiles = []string{
		"errors.go", "retry.go", "calls.go", "watch.go", "key.go", "seat.go", "line.go", "cleanup.go", "queue.go",
		"ownership.go", "mutex.go",
	}
	sessionFiles     = []string{"clock.go", "ends.go", "stream.go", "renewal.go", "lease.go", "opening.go"}
	transactionFiles = []string{
		"contention.go", "stm.go", "options.go", "attempt.go", "operations.go", "commit.go", "transaction.go",
	}
	// What transactions read, in ranges too, and what they wait for.
	rangeFiles = []string{"facts.go", "read.go", "range.go", "blocking.go"}
	// What tells of both, and can be left out by a reader.
	traceFiles = []string{"trace.go", "telling.go"}
)

// lines counts the lines of code and of comment of a file.
func (s *source) lines(name string) (code, comment int) {
	for line := range strings.Lines(string(s.texts[name])) {
		switch line = strings.TrimSpace(line); {
		case line == "":
		case strings.HasPrefix(line, "//"):
			comment++
		default:
			code++
		}
	}
	return code, comment
}

// TestSizes holds the package to the measures above.
func TestSizes(t *testing.T) {
	s := load(t)
	for _, name := range s.names() {
		if code, _ := s.lines(name); code > longestFile {
			t.Errorf("%s has %d lines of code, of %d at most", name, code, longestFile)
		}
	}
	for most, files := range map[int][]string{lockPath: lockPathFiles, sessions: sessionFiles, transactions: transactionFiles, ranges: rangeFiles, traces: traceFiles} {
		all := 0
		for _, name := range files {
			require.Contains(t, s.names(), name)
			code, _ := s.lines(name)
			all += code
		}
		if all > most {
			t.Errorf("%d lines of code, of %d at most, in %s", all, most, strings.Join(files, ", "))
		}
		t.Log(all, strings.Join(files, ", "))
	}
	if fields := s.fieldsOf("lease"); fields > mostFieldsOfSome {
		t.Errorf("lease has %d fields, of %d at most", fields, mostFieldsOfSome)
	}
}

// fieldsOf counts the fields of a struct.
func (s *source) fieldsOf(name string) (fields int) {
	for _, file := range s.files {
		if i := slices.IndexFunc(file.Decls, func(d ast.Decl) bool {
			return declares(d, name)
		}); i >= 0 {
			spec := file.Decls[i].(*ast.GenDecl).Specs[0].(*ast.TypeSpec)
			fields = spec.Type.(*ast.StructType).Fields.NumFields()
		}
	}
	return fields
}

func declares(d ast.Decl, name string) bool {
	types, ok := d.(*ast.GenDecl)
	if !ok || len(types.Specs) != 1 {
		return false
	}
	spec, ok := types.Specs[0].(*ast.TypeSpec)
	return ok && spec.Name.Name == name
}
