package house

import (
	"go/ast"
	"strings"
	"testing"
)

// The share of comment in the lines of a file, in percent. The aim is 25 to 35, as it is in the
// packages of this field that read best.
const (
	leastShare = 25
	mostShare  = 35
	shortFile  = 60 // lines of a file too short to have a share
)

// TestShareOfComment holds each production file to the share. What exported names promise is as long
// as it has to be, so it does not count against the most.
func TestShareOfComment(t *testing.T) {
	s := load(t)
	for _, name := range s.names() {
		code, comment := s.lines(name)
		if code+comment <= shortFile || code <= 1 {
			continue
		}
		promises := s.promises(name)
		share, rest := 100*comment/(code+comment), 100*(comment-promises)/(code+comment-promises)
		t.Logf("%-16s %3d %%, without what exported names promise %3d %%", name, share, rest)
		if share < leastShare {
			t.Errorf("%s: %d %% of comment, of %d at least", name, share, leastShare)
		}
		if rest > mostShare {
			t.Errorf("%s: %d %% of comment, of %d at most", name, rest, mostShare)
		}
	}
}

// promises counts the lines of the comments on exported names, and on what is in an exported type.
func (s *source) promises(name string) (lines int) {
	count := func(doc *ast.CommentGroup, of *ast.Ident) {
		if doc != nil && of.IsExported() {
			lines += strings.Count(string(s.texts[name][s.offset(doc.Pos()):s.offset(doc.End())]), "\n") + 1
		}
	}
	ast.Inspect(s.files[name], func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.FuncDecl:
			count(node.Doc, node.Name)
			return false
		case *ast.GenDecl:
			if spec, ok := node.Specs[0].(*ast.TypeSpec); ok {
				count(node.Doc, spec.Name)
			}
		case *ast.ValueSpec:
			count(node.Doc, node.Names[0])
		case *ast.Field:
			if len(node.Names) > 0 {
				count(node.Doc, node.Names[0])
			}
		}
		return true
	})
	return lines
}
