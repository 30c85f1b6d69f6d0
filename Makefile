# make help lists what there is. Nothing has to be installed but Go (and gcc for
# the race detector): tools come from .ci/tools/go.mod.

TOOL     := go tool -modfile=.ci/tools/go.mod
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 30s
PACKAGES  = $(shell go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep -v '/e2e$$')

.DEFAULT_GOAL := help
.PHONY: help build test test-race e2e lint fmt generate verify demo bench conformance soak fuzz dist clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build ./berth, one static file
	CGO_ENABLED=0 go build -o berth ./cmd/berth

test: ## All tests
	go test -timeout 20m ./...

test-race: ## All tests but e2e, with the race detector
	CGO_ENABLED=1 go test -race -short $(PACKAGES)

e2e: ## The real program against the local platform, kill -9 included
	go test -count=1 -v ./e2e

lint: ## golangci-lint by .golangci.yml
	$(TOOL) golangci-lint run ./...

fmt: ## Format all Go files
	$(TOOL) golangci-lint fmt

generate: ## Write the documents and golden files that come from code
	go test ./internal/api ./internal/config ./internal/session -update
	go test ./internal/sandbox/linux -run TestBundle -update

verify: ## Everything that CI checks
	.ci/run

demo: build ## A session at work against the local platform: no account needed
	./berth demo

bench: ## Figures against the official SDK's worker, written to docs/benchmarks.md
	go test ./bench -run '^$$' -bench . -benchtime 1x -timeout 60m -write ../docs/benchmarks.md

conformance: ## Hold Berth and the official workers to the contract; writes docs/conformance.md
	go test ./conformance -run TestWorkersKeepTheContract -count=1 -timeout 60m -v -args -subjects berth,go,npm -slow -seeds 8 -write

soak: ## What takes long: the whole crash matrix, 100 rounds of random kills, ten minutes of races
	go test -count=1 -timeout 60m ./e2e -run 'Killed' -full
	go test -count=1 -timeout 60m -v ./e2e -run RandomKills -kills 100
	CGO_ENABLED=1 go test -race -count=1 -timeout 60m ./internal/session -run 'TestSoak$$' -soak 10m

fuzz: ## Each fuzz target for FUZZTIME
	@for file in $$(grep -rl '^func Fuzz' --include='*_test.go' .); do \
	  for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/p' $$file); do \
	    echo "== $$(dirname $$file) $$target"; \
	    go test $$(dirname $$file) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) || exit 1; \
	  done; \
	done

dist: ## Release files for all platforms, with checksums
	@mkdir -p dist
	@for platform in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do \
	  out=dist/berth_$(VERSION)_$$(echo $$platform | tr / _); \
	  echo "$$out"; \
	  CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/} \
	    go build -trimpath -buildvcs=true -ldflags '-s -w -X main.version=$(VERSION)' -o $$out ./cmd/berth || exit 1; \
	done
	cd dist && sha256sum berth_$(VERSION)_* > checksums.txt

clean: ## Remove what the targets above made
	rm -rf berth dist bin
