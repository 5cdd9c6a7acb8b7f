# What no linter at hand looks at: functions of more than 50 lines, and exported
# names without a comment. For gofumpt-formatted files: a closing brace in the
# first column ends a declaration. Lengths are looked at with -v long=1 only.

function report(what) {
	printf "%s:%d: %s\n", FILENAME, FNR, what
	bad = 1
}

FNR == 1 { start = 0; block = 0; comment = 0 }

/^func / && !/}$/ { start = FNR; name = $0 }

/^}/ {
	if (long && start && FNR - start + 1 > 50)
		report(FNR - start + 1 " lines: " name)
	start = 0
}

/^(func|type|var|const) [A-Z]/ && !comment { report("no comment: " $0) }
/^func \([a-z]+ \*?[A-Z][^)]*\) [A-Z]/ && !comment { report("no comment: " $0) }

# One comment above a block speaks for all of it.
/^(var|const|type) \($/ { block = !comment }
/^\)/ { block = 0 }
block && /^\t[A-Z][A-Za-z0-9]*( |,|$)/ && !comment { report("no comment: " $0) }

{ comment = /^\t?\/\// || /\*\/$/ }

END { exit bad }
