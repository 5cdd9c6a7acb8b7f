SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
export LC_ALL := C
# A checkout that belongs to another user has no version to stamp; nothing here needs one.
export GOFLAGS += -buildvcs=false

CLIENT := go.etcd.io/etcd/client/v3
TOOL := go tool -modfile=tools.mod
GOTEST := go test -race -shuffle=on -timeout=20m

# What `check` runs, cheap first.
CHECKS := lint api cover others services fuzz bench-quick chaos-quick virtual-quick
# The packages whose tests count for the coverage of the package in the root.
CONTRACT := . ./internal/compat
COVERAGE := 95
FUZZTIME ?= 30s

GREP := grep -rnIE --exclude-dir=.git --exclude-dir=.build

# $(call none,command) fails when the command prints anything, or fails itself.
none = out=$$($(1)); [ -z "$$out" ] || { echo "$$out"; exit 1; }
# $(call nowhere,options,pattern) fails when a file of the tree matches.
nowhere = $(call none,$(GREP) $(1) '$(2)' . || [ $$? = 1 ])

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## the demo program; flags in DEMOFLAGS, a cluster of yours in ENDPOINTS
	go run ./internal/demo $(DEMOFLAGS)

lines: ## who owns the locks NAME='a b' of the etcd at ENDPOINTS, who waits, and for whom; FOLLOW=1 to go on
	@go run ./internal/lines $(if $(FOLLOW),-f) $(NAME)

# Most tests wait, so several packages run at a time, those first that take longest. The race
# detector runs along in check, and would take as much of the processors again. lint runs vet.
test: ## all tests, in random order; make check has them run with the race detector
	go test -p 5 -vet=off -ldflags=-w -shuffle=on -timeout=20m $(CONTRACT) ./...

check: export FUZZTIME := 10s
check: ## everything that has to hold before a merge, with the seconds each part took
	@for part in $(CHECKS); do \
		start=$$SECONDS; $(MAKE) --no-print-directory $$part; \
		echo "== $$part: $$((SECONDS - start)) s"; \
	done

lint: ## formatting, knots, sentences, vet, staticcheck, modernizers, tidiness, imports, edits of the mutants
	@echo "== formatting, imports, words, comments, lengths"
	@$(call none,$(TOOL) gofumpt -l .)
	@$(call none,go list -f '{{join .Imports "\n"}}' . | awk '/^[^\/]*\./ && \
		$$0 != "$(CLIENT)" && !/^go\.etcd\.io\/etcd\/api\/v3\// && \
		!/^google\.golang\.org\/grpc\/(codes|connectivity|metadata|status)$$/')
	@$(call nowhere,--exclude='*.sum',\b(TOD[O]|FIXM[E]|XX[X])\b)
	@$(call nowhere,--include='*_test.go',time\.Sleep)
	@$(call nowhere,--include='*.go',\.Skip(f|Now)?\b)
	$(TOOL) revive -config testdata/revive.toml ./...
	$(TOOL) revive -config testdata/revive-tests.toml ./...
	@echo "== knots, sentences, sizes"
	go test -count=1 ./internal/house
	go vet ./...
	GOARCH=386 CGO_ENABLED=0 go vet ./...
	GOOS=windows CGO_ENABLED=0 go vet ./...
	$(TOOL) staticcheck -checks=all ./...
	go fix -diff ./...
	go mod tidy -diff
	$(MUTANTS) -check

readme: ## the programs of README.md, each in a new module; make others runs this, too
	go test -count=1 -timeout=5m ./internal/readme

api: | .build ## the exported API against upstream's: only what testdata/api.except lists may differ
	$(TOOL) apidiff $(CLIENT)/concurrency . >.build/api.txt
	@awk '/^[^#]/ && !reason {print "no reason given: " $$0; bad = 1} \
		{reason = /^#/} END {exit bad}' testdata/api.except
	@sed -n '/^Compatible/,$$p' .build/api.txt
	@diff -U0 --label accepted --label found <(grep '^[^#]' testdata/api.except | sort) \
		<(sed -n '/^Incompatible/,/^Compatible/s/^- //p' .build/api.txt | sort)

cover: | .build ## the tests of the contract, with their coverage of the package in the root
	$(GOTEST) -coverpkg=. -coverprofile=.build/cover.out $(CONTRACT)
	@go tool cover -func=.build/cover.out | awk '/^total/ || $$NF != "100.0%" {print} \
		END {if ($$NF + 0 < $(COVERAGE)) {print "below $(COVERAGE) %"; exit 1}}'

others: ## the tests that cover and lint leave out
	go list ./... | grep -vxF "$$(go list $(CONTRACT) ./internal/house)" | xargs -r $(GOTEST) -p 4

fuzz: ## every fuzz target of the package in the root for FUZZTIME (30s)
	@targets=$$(go test -list '^Fuzz' . | grep '^Fuzz') || { echo "no fuzz target"; exit 1; }; \
	for target in $$targets; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) \
			-fuzzminimizetime 1x .; \
	done

interop: $(if $(CHECKED),,services) ## etcd's services on this package; the demo, the contract and etcdctl against the etcd on PATH; CHECKED=1 after make check
	@$(need-etcd)
	$(WITH_ETCD) go run ./internal/demo $(DEMOFLAGS)
	$(WITH_ETCD) $(GOTEST) $(CONTRACT) ./internal/interop

# What asks most of another server, in a minute: what measures time here has done so in check.
interop-quick: ## the demo, etcdctl, and the rows of the contract that wait for states, against the etcd on PATH
	@$(need-etcd)
	$(WITH_ETCD) go run ./internal/demo $(DEMOFLAGS)
	$(WITH_ETCD) $(GOTEST) -run '^TestWire|^TestContract$$/^others$$' ./internal/compat
	$(WITH_ETCD) $(GOTEST) ./internal/interop

WITH_ETCD = ETCD_BINARY=$$(command -v etcd)
need-etcd = for program in etcd etcdctl; do command -v $$program >/dev/null || { \
	echo "$@ needs $$program on PATH (Debian: etcd-server, etcd-client)"; exit 1; }; done

# Releases of etcd that are tested beside those of go.mod and of Debian. Their etcd and etcdctl are
# built from their Go modules, each in a module of its own, so that they require what they were
# released with.
ETCDS := 3.5.35 3.6.16
ETCD := .build/etcd
interop-versions: $(ETCDS:%=interop-%) ## interop with the etcd and etcdctl of ETCDS; downloads them as Go modules

$(ETCDS:%=interop-%): interop-%: $(ETCD)/%/etcd
	PATH="$(CURDIR)/$(<D):$$PATH" $(MAKE) --no-print-directory interop CHECKED=1

$(ETCDS:%=$(ETCD)/%/etcd): $(ETCD)/%/etcd:
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && go mod init etcd && \
		go get go.etcd.io/etcd/server/v3@v$* go.etcd.io/etcd/etcdctl/v3@v$*
	go build -C $(@D) -o etcdctl go.etcd.io/etcd/etcdctl/v3
	go build -C $(@D) -o etcd go.etcd.io/etcd/server/v3

# etcd's client module with this package in it, and a go.mod by which etcd is built on it.
SWAP := .build/swap
services: ## etcd's lock and election services, by gRPC and HTTP, with etcd built on this package
	go run ./internal/interop/swap -out $(SWAP)
	$(GOTEST) -modfile=$(SWAP)/go.mod ./internal/interop/services -args -swapped

gocron: ## the examples' adapters for gocron's Locker and Elector, with gocron; downloads it as a Go module
	cd internal/interop/gocron && $(GOTEST) .

ETCD_TEST := go test -modfile=$(SWAP)/go.mod -mod=mod -count=1 -timeout=20m
ETCD_TESTS := go.etcd.io/etcd/tests/v3/integration
# The one of etcd's tests that ends otherwise here, and how: see COMPAT.md.
OTHERWISE := TestElectionWithAuthEnabled
etcd-tests: | .build ## etcd's own tests of what uses upstream's package, on this one; downloads them as a Go module
	go run ./internal/interop/swap -out $(SWAP) -tests
	$(ETCD_TEST) -run 'Election|STM|V3Lock' -skip '^$(OTHERWISE)$$' $(ETCD_TESTS)
	$(ETCD_TEST) $(ETCD_TESTS)/clientv3/concurrency $(ETCD_TESTS)/clientv3/experimental/recipes
	$(ETCD_TEST) -run 'Leasing|LeaseDeleteRange|LeaseFailureOverlap' $(ETCD_TESTS)/clientv3/lease
	! $(ETCD_TEST) -run '^$(OTHERWISE)$$' $(ETCD_TESTS) >.build/otherwise.txt
	grep -q 'Error: \[Campaign\] .*: mutex: session is expired' .build/otherwise.txt

compat: export TRIALS := $(TRIALS)
compat: ## the contract on upstream's package and on this one, case by case; TRIALS=240 for the long run
	$(GOTEST) -count=1 -v -timeout=60m -run '^TestContract$$' ./internal/compat | \
		awk '/^\|/ || /--- FAIL|_test\.go:|^panic|^ok|^FAIL/'

cut-offs: export TRIALS := $(or $(TRIALS),240)
cut-offs: ## holders cut off at random: the context of the ownership ends before a rival is in; TRIALS=240
	$(GOTEST) -count=1 -v -timeout=60m -run '^TestCtxEndsBeforeARivalIsIn$$' . | \
		awk '/cut-offs|--- FAIL|^panic|^ok|^FAIL/'

proxied: export TRIALS := $(or $(TRIALS),48)
proxied: ## how late sessions end whose gRPC proxy is cut off from the server; TRIALS=48
	$(GOTEST) -count=1 -v -timeout=60m -run 'BehindAGRPCProxy$$' . | \
		awk '/: (\||the answer)|--- FAIL|^panic|^ok|^FAIL/'

MUTANTS := go run ./internal/mutants
MUTANTFLAGS = $(if $(ONLY),-only '$(ONLY)') $(if $(FULL),-full) $(if $(LIMIT),-limit $(LIMIT)) $(if $(JOBS),-jobs $(JOBS))
mutants: ## takes each rule out in turn: the tests have to notice; ONLY=regexp FULL=1 LIMIT=1m JOBS=1
	$(MUTANTS) $(MUTANTFLAGS)

# The race detector runs along, and the evidence of a violation is left in .build/chaos.
CHAOS := go run -race ./internal/chaos -evidence .build/chaos
DURATION ?= 60s
chaos: | .build ## clients at work while servers, connections and keys fail, checked; DURATION=1h SEED= UPSTREAM=1
	$(CHAOS) -duration $(DURATION) $(if $(SEED),-seed $(SEED)) $(if $(UPSTREAM),-upstream)

chaos-quick: | .build ## the same for 20 s, with patience for a machine that is busy
	$(CHAOS) -duration 20s -grace 20s

chaos-mutants: ## takes rules out whose loss is dangerous: the chaos run has to notice; ONLY=regexp
	$(MUTANTS) $(MUTANTFLAGS) -under chaos -build 'go build -o $$BIN ./internal/chaos' \
		-command '$$BIN -duration 6m -grace 20s -fail-fast $$FLAGS' -found ', by here, at ' -round '^== seed'

# Worlds in virtual time. The runtime is changed by an overlay, so that a seed is the same world
# each time, and one processor plays one world at a time.
WORLDS := .build/worlds.test
worlds: | .build
	@go run ./internal/virtual/overlay .build/overlay
	@go test -c -overlay .build/overlay/overlay.json -o $(WORLDS) ./internal/virtual/worlds

HOURS ?= 1
virtual: worlds ## weeks of faults in minutes: clients at work in virtual time, checked; HOURS=100 SEED= UPSTREAM=1 WORLD=
	@$(WORLDS) play -evidence .build/virtual -hours '$(HOURS)' -seed '$(SEED)' -upstream '$(UPSTREAM)' -world '$(WORLD)'

# 10 million calls by the functions of transactions take about a quarter of a virtual hour.
ranges-long: worlds ## transactions over ranges alone, without faults and pauses: many operations in little time; HOURS=0.25 SEED=
	@$(WORLDS) play -evidence .build/virtual -hours '$(if $(filter file,$(origin HOURS)),0.25,$(HOURS))' -seed '$(SEED)' -world 'dense ranges'

# Go's own runtime, because to compile everything for the other one takes minutes. What is found
# may need some seeds around it to be found again. The seeds are always the same, so that what
# check finds comes from the change. `make virtual` looks for more.
virtual-quick: | .build ## the same for ten virtual hours, on Go's own runtime
	@go test -c -o .build/quick.test ./internal/virtual/worlds
	@.build/quick.test play -evidence .build/virtual -hours 10 -seed 1

virtual-mutants: ## takes rules out: the worlds have to notice each within two minutes; ONLY=regexp
	$(MUTANTS) $(MUTANTFLAGS) -every -under virtual -build 'go test -c -o $$BIN ./internal/virtual/worlds' \
		-command '$$BIN play -hours 1000 -seed 1 -limit 2m -fail-fast $$FLAGS' -found '^seed '

BENCH := go run ./internal/bench
bench: ## the tables and pictures of PERFORMANCE.md, upstream beside; flags in BENCHFLAGS
	$(BENCH) $(BENCHFLAGS) -without 'beside bare calls' -update PERFORMANCE.md
	$(BENCH) $(BENCHFLAGS) -workloads 'beside bare calls' -update PERFORMANCE.md -name bare
	$(BENCH) -profile -workloads 'free lock|hand-over among (2|16), quiet$$|clients: 16' \
		-update PERFORMANCE.md -name profile
	$(BENCH) $(BENCHFLAGS) -rtt 5ms -workloads 'hand-over among (2|16), quiet$$|a writer|Campaign|TryLock|reads' \
		-update PERFORMANCE.md -name rtt
	$(BENCH) -contention -rounds 5 -window 5s -rtt 0,2ms,10ms,40ms -update PERFORMANCE.md -name contention
	$(BENCH) -contention -rounds 5 -window 5s -members 3 -fsync -update PERFORMANCE.md -name contention-3
	$(BENCH) -sessions 1000,5000 -update PERFORMANCE.md -name sessions
	$(BENCH) -rounds 3 $(BENCHFLAGS) -charts -out testdata/performance -name series
	go run -C internal/bench/chart . $(CURDIR)/testdata/performance/series.csv $(CURDIR)/testdata/performance

bench-quick: ## call counts, raft entries and the hand-over against upstream, in under a minute
	$(BENCH) -quick

# Another commit of this package stands in a copy of etcd's client module, in the place of upstream's.
BESIDE := .build/beside
bench-beside: | .build ## the tables beside another COMMIT of this package, not beside upstream; flags in BENCHFLAGS
	@[ -n "$(COMMIT)" ] || { echo "COMMIT= names no commit"; exit 2; }
	go run ./internal/interop/swap -out $(BESIDE)
	rm $(BESIDE)/client/concurrency/shim.go
	git archive $(COMMIT) -- ':(glob)*.go' ':(exclude,glob)*_test.go' | tar -x -C $(BESIDE)/client/concurrency
	go run -modfile=$(BESIDE)/go.mod ./internal/bench $(BENCHFLAGS)

places: ## the table of PERFORMANCE.md by which the number of places in key.go was chosen; PLACESFLAGS
	go run ./internal/bench/places $(PLACESFLAGS) -update PERFORMANCE.md

PEERS := .build/peers
peers: | .build ## the same lock in ZooKeeper and Redis beside, into PERFORMANCE.md; needs Debian's zookeeper and redis-server; PEERSFLAGS
	@go build -C internal/peers -o $(CURDIR)/$(PEERS) .
	$(PEERS) $(PEERSFLAGS) -out testdata/performance -update PERFORMANCE.md
	go run -C internal/bench/chart . $(CURDIR)/testdata/performance/peers.csv $(CURDIR)/testdata/performance

.build:
	@mkdir -p $@

.PHONY: help demo lines test check lint readme api cover others fuzz \
	interop interop-quick interop-versions $(ETCDS:%=interop-%) services gocron etcd-tests compat cut-offs proxied mutants \
	chaos chaos-quick chaos-mutants worlds virtual ranges-long virtual-quick virtual-mutants bench bench-quick bench-beside places peers
