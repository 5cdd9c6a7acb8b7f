package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// culprit names the first test that failed or hung, as deep as it goes, or what else ended a
// test binary.
func culprit(out []byte) string {
	var failed, hung, left, died string
	running := false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		bare := strings.TrimLeft(line, "\t ")
		if _, rest, ok := strings.Cut(line, "--- FAIL: "); ok {
			if name := first(rest); failed == "" || strings.HasPrefix(name, failed+"/") {
				failed = name
			}
		}
		switch {
		case running && hung == "":
			hung = first(bare) + " (hung)"
		case strings.HasPrefix(bare, "running tests:"):
			running = true
		case strings.HasPrefix(line, "goleak: "), strings.HasPrefix(line, "left behind: "):
			left = cmp.Or(left, "TestMain ("+line+")")
		case strings.HasPrefix(line, "panic: "), strings.HasPrefix(line, "fatal error: "):
			died = cmp.Or(died, line)
		}
	}
	return cmp.Or(failed, hung, left, died)
}

// first returns the first word.
func first(text string) string {
	if words := strings.Fields(text); len(words) > 0 {
		return words[0]
	}
	return ""
}

// discovery returns the first line of a command that -found matches, and the round it is in.
func (r *runner) discovery(out []byte) string {
	round := 0
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		switch {
		case r.round != nil && r.round.MatchString(line):
			round++
		case r.found.MatchString(line) && round > 0:
			return fmt.Sprintf("round %d: %.150s", round, line)
		case r.found.MatchString(line):
			return fmt.Sprintf("%.150s", line)
		}
	}
	return "ERROR: failed otherwise"
}

func isKill(result string) bool {
	return result != "" && result != "LIVES" && !strings.HasPrefix(result, "ERROR: ")
}

// report writes the results down, and why others can't be found. A mutant that was not run keeps
// the last result.
func (r *runner) report(all []mutant, results map[string]string) error {
	file, title, verb := "README.md", "Mutants", "killed"
	text := "Each mutant takes one rule out of the package: *.txt here. `make mutants` applies them, one at a time,\n" +
		"runs the tests named with the mutant, and writes its results here; `go doc ./internal/mutants` says more."
	if r.under != "" {
		file, title, verb = strings.ToUpper(r.under)+".md", "Mutants under "+r.under, "found"
		text = "`make " + r.under + "-mutants` takes out rules whose loss is dangerous, one at a time, and lets this look for\n" +
			"what comes of it, with the flags that the mutant has for it (`go doc ./internal/mutants`):\n\n    " + r.command
	}
	path := filepath.Join(filepath.FromSlash(folder), file)
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	known := rows(string(old))
	var table, others strings.Builder
	killed, wanted := 0, 0
	for _, m := range all {
		if why := m.beyond[r.under]; why != "" {
			fmt.Fprintf(&others, "| %s | %s | %s |\n", m.name, m.rule, why)
			continue
		}
		wanted++
		result := cmp.Or(strings.ReplaceAll(results[m.name], "|", `\|`), known[m.name], "ERROR: not run")
		if isKill(result) {
			killed++
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", m.name, m.rule, result)
	}
	head := fmt.Sprintf("# %s\n\n%s\n\n%s: %s %d of %d.\n\n| mutant | the rule taken out | %s |\n|---|---|---|\n",
		title, text, time.Now().UTC().Format(time.DateOnly), verb, killed, wanted,
		map[string]string{"killed": "killed by", "found": "found"}[verb])
	if others.Len() > 0 {
		table.WriteString("\n## Not looked for\n\n| mutant | the rule taken out | why it can't be found |\n|---|---|---|\n" +
			others.String())
	}
	return os.WriteFile(path, []byte(head+table.String()), 0o644)
}

var row = regexp.MustCompile(`(?m)^\| ([a-z0-9-]+) \| .*? \| (.*) \|$`)

// rows returns the results of a report, by mutant.
func rows(report string) map[string]string {
	results := map[string]string{}
	for _, cells := range row.FindAllStringSubmatch(report, -1) {
		results[cells[1]] = cells[2]
	}
	return results
}
