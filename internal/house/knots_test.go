package house

import (
	"fmt"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
	"testing"
)

// uses are what one file uses of another: names, by the file that uses them and the file that
// declares them.
type uses map[string]map[string]map[string]bool

func (u uses) add(from, to, name string) {
	if from == to || to == "" {
		return
	}
	if u[from] == nil {
		u[from] = map[string]map[string]bool{}
	}
	if u[from][to] == nil {
		u[from][to] = map[string]bool{}
	}
	u[from][to][name] = true
}

// TestFilesUseEachOtherInOneDirection fails if production files of the package use each other
// in a circle. A file uses another one if it names what is declared there:
//
//   - a type, a function, a variable or a constant of the package;
//   - a method or a field, also one that is reached through embedding, and the embedded
//     fields on the way to it;
//   - a type whose method it declares.
//
// Not counted is what a file does not name: a method that is called by an interface or a
// function that was handed in, and the type of a value that is only passed on. Such calls are
// how a lower file hands work to an upper one.
func TestFilesUseEachOtherInOneDirection(t *testing.T) {
	s := load(t)
	u := s.uses(t)
	for _, knot := range knots(s.names(), u) {
		var lines []string
		for _, from := range knot {
			for _, to := range knot {
				if names := u[from][to]; len(names) > 0 {
					lines = append(lines, fmt.Sprintf("\t%s uses of %s: %s", from, to,
						strings.Join(slices.Sorted(maps.Keys(names)), ", ")))
				}
			}
		}
		t.Errorf("a knot of %d files:\n%s", len(knot), strings.Join(lines, "\n"))
	}
}

// uses finds what each file uses of each other one.
func (s *source) uses(t *testing.T) uses {
	pkg, info := s.check(t)
	u := uses{}
	fileOf := func(pos token.Pos) string { return s.fset.Position(pos).Filename }
	use := func(from token.Pos, object types.Object) {
		if object.Pkg() == pkg && object.Pos().IsValid() {
			u.add(fileOf(from), fileOf(object.Pos()), object.Name())
		}
	}
	for name, object := range info.Uses {
		use(name.Pos(), object)
	}
	for at, selection := range info.Selections {
		through(selection, func(field *types.Var) { use(at.Pos(), field) })
	}
	return u
}

// through visits the embedded fields through which a selection goes.
func through(selection *types.Selection, visit func(*types.Var)) {
	in := selection.Recv()
	for _, i := range selection.Index()[:len(selection.Index())-1] {
		if pointer, ok := in.Underlying().(*types.Pointer); ok {
			in = pointer.Elem()
		}
		field := in.Underlying().(*types.Struct).Field(i)
		visit(field)
		in = field.Type()
	}
}

// knots are the largest sets of files in which each uses each other one, directly or not.
func knots(files []string, u uses) (all [][]string) {
	reach := map[string]map[string]bool{}
	for _, from := range files {
		reach[from] = map[string]bool{}
		for next := slices.Collect(maps.Keys(u[from])); len(next) > 0; {
			to := next[0]
			if next = next[1:]; reach[from][to] {
				continue
			}
			reach[from][to] = true
			next = append(next, slices.Collect(maps.Keys(u[to]))...)
		}
	}
	seen := map[string]bool{}
	for _, file := range files {
		if seen[file] || !reach[file][file] {
			continue
		}
		knot := slices.DeleteFunc(slices.Clone(files), func(other string) bool {
			return !reach[file][other] || !reach[other][file]
		})
		for _, member := range knot {
			seen[member] = true
		}
		all = append(all, knot)
	}
	return all
}

// TestKnots shows that a circle is found, and a line of uses is none.
func TestKnots(t *testing.T) {
	u := uses{}
	u.add("a", "b", "x")
	u.add("b", "c", "y")
	u.add("c", "d", "z")
	if got := knots([]string{"a", "b", "c", "d"}, u); len(got) != 0 {
		t.Fatalf("found %v where there is none", got)
	}
	u.add("c", "a", "w")
	if got := knots([]string{"a", "b", "c", "d"}, u); len(got) != 1 || !slices.Equal(got[0], []string{"a", "b", "c"}) {
		t.Fatalf("found %v", got)
	}
}
