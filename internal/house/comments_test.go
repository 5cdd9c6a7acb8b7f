package house

import (
	"go/ast"
	"go/token"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The measures of comments, in words and in percent.
const (
	meanSentence    = 14
	longestSentence = 30
)

// TestSentencesAreShort holds the comments of each production file to the measures above. The
// mean is that of the sentences in comments that stand on lines of their own. A remark behind
// code, such as that of a field, is no sentence, and counts as to its length only.
func TestSentencesAreShort(t *testing.T) {
	s := load(t)
	for _, name := range s.names() {
		words, sentences := 0, 0
		for _, group := range s.files[name].Comments {
			for _, sentence := range sentencesOf(group) {
				n := len(strings.Fields(sentence))
				if n > longestSentence {
					t.Errorf("%s: a sentence of %d words: %s", s.fset.Position(group.Pos()), n, sentence)
				}
				if s.alone(name, group.Pos()) {
					words, sentences = words+n, sentences+1
				}
			}
		}
		if words > meanSentence*sentences {
			t.Errorf("%s: %d sentences of %.1f words in the mean", name, sentences, float64(words)/float64(sentences))
		}
	}
}

// alone reports whether nothing but white space stands before the position in its line.
func (s *source) alone(name string, pos token.Pos) bool {
	at := s.fset.Position(pos)
	line := s.texts[name][at.Offset-(at.Column-1) : at.Offset]
	return strings.TrimSpace(string(line)) == ""
}

var (
	preformatted = regexp.MustCompile(`^(\t|  |#)`)
	item         = regexp.MustCompile(`^ *- `)
	ending       = regexp.MustCompile(`[.!?][)"]*\s+`)
)

// sentencesOf takes the sentences out of a comment. A paragraph and an item of a list begin a
// sentence. Headings, tables and code, which are indented, have none.
func sentencesOf(group *ast.CommentGroup) (all []string) {
	var part []string
	flush := func() {
		text := strings.TrimSpace(strings.Join(part, " "))
		part = nil
		for text != "" {
			end := ending.FindStringIndex(text)
			if end == nil {
				all = append(all, text)
				return
			}
			all, text = append(all, strings.TrimSpace(text[:end[1]])), text[end[1]:]
		}
	}
	inItem := false
	for _, comment := range group.List {
		line := strings.TrimPrefix(strings.TrimPrefix(comment.Text, "//"), " ")
		switch {
		case strings.HasPrefix(comment.Text, "//go:"), line == "":
			flush()
			inItem = false
		case item.MatchString(line):
			flush()
			inItem, part = true, []string{item.ReplaceAllString(line, "")}
		case preformatted.MatchString(line) && !inItem:
			flush()
		default:
			part = append(part, strings.TrimSpace(line))
		}
	}
	flush()
	return all
}

// TestSentencesOf shows what is counted.
func TestSentencesOf(t *testing.T) {
	lines := []string{
		"// One sentence, of version 3.7.3, see",
		"// client.go. etcd's own. (In brackets.) A list:",
		"//",
		"//   - an item that goes on",
		"//     in the next line; and",
		"//   - another.",
		"//",
		"//\tcode(that, is, left, out)",
		"//",
		"// # A heading",
		"//",
		"// No end",
	}
	group := &ast.CommentGroup{}
	for _, line := range lines {
		group.List = append(group.List, &ast.Comment{Text: line})
	}
	require.Equal(t, []string{
		"One sentence, of version 3.7.3, see client.go.", "etcd's own.", "(In brackets.)", "A list:",
		"an item that goes on in the next line; and", "another.", "No end",
	}, sentencesOf(group))
}
