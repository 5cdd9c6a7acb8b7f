#!/usr/bin/env bash
# Takes the rules of the package out, one at a time, and runs the tests that are to notice.
#
# Each *.patch here is a mutant: a rule taken out of a copy of the tree. Its header says
# which rule ("# rule: ...") and which tests are expected to kill it, one line or more of
# "# kill: -run 'regexp' package". A mutant that does not apply or build is an error, not a
# kill; one that no test notices lives, and a test is missing.
#
# From the environment:
#   ONLY=regexp  only the mutants whose names match
#   FULL=1       those that live are run against all tests
#   LIMIT=60     seconds for the tests of one mutant
#   CHAOS=flags  those with a line "# chaos" are given to internal/chaos, run with the flags
#                and those on that line, instead of to their tests
#
# README.md beside it has the last result of each mutant, CHAOS.md those of CHAOS. The script
# fails unless all that were run are killed.
set -eu -o pipefail
cd "$(dirname "$0")"
here=$PWD
only=${ONLY:-} full=${FULL:-} limit=${LIMIT:-60} chaos=${CHAOS:-}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/tree" "$tmp/data"
export TMPDIR=$tmp/data GIT_CEILING_DIRECTORIES=$tmp
tar -C ../.. --exclude=./.git --exclude=./.build -c . | tar -C "$tmp/tree" -x
cd "$tmp/tree"

# relevant reports whether the mutant is one of those that this kind of run is about.
relevant() { [[ ! $chaos ]] || grep -q '^# chaos' "$here/$1.patch"; }

mutants=()
for patch in "$here"/*.patch; do
	name=$(basename "$patch" .patch)
	[[ $name =~ $only ]] || continue
	relevant "$name" || continue
	mutants+=("$name")
done

rule() { sed -n 's/^# rule: //p' "$here/$1.patch"; }

# kills prints package and regexp, one line for each command.
kills() { sed -nE "s/^# kill: -run '(.*)' ([^ ]+)\$/\\2 \\1/p" "$here/$1.patch"; }

# named runs the tests of one package that match; what they print goes to $tmp/out.
named() { # package regexp seconds
	go test -c -ldflags='-s -w' -o "$tmp/test" "$1" >"$tmp/out" 2>&1 || return 3
	(cd "$1" && timeout -k 5 "$(($3 + 10))" "$tmp/test" -test.run "$2" -test.timeout "$3s") >"$tmp/out" 2>&1
}

# culprit names the first test that failed or hung, as deep as it goes.
culprit() {
	awk '/--- FAIL: / && (name == "" || index($3, name "/") == 1) {name = $3}
		running && hung == "" {hung = $1}
		/^\t*running tests:/ {running = 1}
		/^goleak: |^left behind: / && left == "" {left = "TestMain (" $0 ")"}
		/^panic: |^fatal error: / && died == "" {died = $0}
		END {print name != "" ? name : hung != "" ? hung " (hung)" : left != "" ? left : died}' "$tmp/out"
}

# hunted prints what the chaos run says about a mutant that is applied: the first violation.
hunted() {
	go build -o "$tmp/chaos" ./internal/chaos >"$tmp/out" 2>&1 || { echo "ERROR: does not build"; return; }
	# shellcheck disable=SC2086 # flags
	if "$tmp/chaos" $chaos $(sed -n 's/^# chaos//p' "$here/$1.patch") >"$tmp/out" 2>&1; then
		echo LIVES
	else
		awk -v round=0 '/^== seed/ {round++}
			/, by here, at / {sub(/^ */, ""); print "round " round ": " substr($0, 1, 150); found = 1; exit}
			END {if (!found) print "ERROR: failed otherwise"}' "$tmp/out"
	fi
}

# verdict prints what became of a mutant that is applied.
verdict() {
	if [[ $chaos ]]; then
		hunted "$1"
		return
	fi
	while read -r package regexp; do
		status=0
		named "$package" "$regexp" "$limit" || status=$?
		case $status in
		0) ;;
		3) echo "ERROR: does not build"; return ;;
		*) culprit; return ;;
		esac
	done < <(kills "$1")
	if [[ $full ]] && ! go test -count=1 -timeout=20m ./... >"$tmp/out" 2>&1; then
		culprit
	else
		echo LIVES
	fi
}

if [[ ! $chaos ]]; then
	echo "== the same tests on the tree as it is"
	for package in $(for name in "${mutants[@]}"; do kills "$name"; done | cut -d' ' -f1 | sort -u); do
		regexp=$(for name in "${mutants[@]}"; do kills "$name"; done |
			sed -n "s#^$package ##p" | sort -u | paste -sd'|')
		named "$package" "$regexp" 600 || {
			cat "$tmp/out"
			echo "they fail without a mutant: nothing can be said"
			exit 1
		}
	done
fi

echo "== ${#mutants[@]} mutants"
killed=0
for name in "${mutants[@]}"; do
	if ! git apply "$here/$name.patch" 2>"$tmp/out"; then
		result="ERROR: does not apply"
	else
		result=$(verdict "$name")
		result=${result:-ERROR: failed without a word}
		git apply -R "$here/$name.patch"
	fi
	case $result in ERROR* | LIVES) ;; *) killed=$((killed + 1)) ;; esac
	printf '%-28s %-88s %s\n' "$name" "$(rule "$name")" "$result"
	echo "| $name | $(rule "$name") | ${result//|/\\|} |" >>"$tmp/table"
done
echo "killed $killed of ${#mutants[@]}"

if [[ $chaos ]]; then
	file=CHAOS.md title="Mutants under chaos" found="found" verb="found"
	text="\`make chaos-mutants\` takes out rules whose loss is dangerous, one at a time, and lets internal/chaos look
for what comes of it, with the flags $chaos; see run.sh."
else
	file=README.md title="Mutants" found="killed by" verb="killed"
	text="Each patch takes one rule out of the package. \`make mutants\` applies them to a copy of the
tree, one at a time, runs the tests named in the patch, and writes its results here; see run.sh."
fi

# The rows of this run, and for the mutants that were not run the rows of the last one.
touch "$here/$file"
for patch in "$here"/*.patch; do
	name=$(basename "$patch" .patch)
	relevant "$name" || continue
	grep -m1 -F "| $name |" <(cat "$tmp/table" "$here/$file") || echo "| $name | $(rule "$name") | ERROR: not run |"
done >"$tmp/rows"
{
	cat <<END
# $title

$text

$(date -u +%F): $verb $(grep -cvE '[|] (ERROR: .*|LIVES) [|]$' "$tmp/rows") of $(wc -l <"$tmp/rows").

| mutant | the rule taken out | $found |
|---|---|---|
END
	cat "$tmp/rows"
} >"$tmp/report.md"
mv "$tmp/report.md" "$here/$file"
[[ $killed = "${#mutants[@]}" ]]
