# vch: a virtual container host. `make` alone prints what can be asked for.

BIN     ?= bin
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BUILT   := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
STAMP   := -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(BUILT)
# The longest that one package's tests may take, and all of them; a machine without KVM boots every container VM in software.
LIMIT   ?= 30m
TOTAL   ?= 52m

export GOFLAGS += -buildvcs=false

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@echo "make build   then bin/vch serve; or make demo to see it all"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what this machine lacks (says what and why; root only for that)
	@scripts/setup

.PHONY: setup-tests
setup-tests: ## the same, and the NFS server that the tests run by themselves
	@scripts/setup tests

.PHONY: tether
tether: # the guest's program, which go:embed puts into vch; written anew only when it changed
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -buildid=' -o cmd/vch/embed/.tether.new ./cmd/tether
	@cmp -s cmd/vch/embed/.tether.new cmd/vch/embed/tether && rm cmd/vch/embed/.tether.new || mv cmd/vch/embed/.tether.new cmd/vch/embed/tether

.PHONY: build
build: tether ## bin/vch: one file, the tether inside it
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w $(STAMP)' -o $(BIN)/vch ./cmd/vch

.PHONY: demo
demo: ## set up, build, and show a container VM with volumes, step by step
	@MAKE='$(MAKE)' scripts/demo

.PHONY: demo-stop
demo-stop: ## end what make demo left running, and delete it
	@scripts/demo stop

# -count=1: a test in a real VM depends on more than Go's test cache can see. -p 1: such tests share two processors badly.
.PHONY: compose
compose: ## bin/docker-compose, which test/e2e runs against vch
	@scripts/compose $(BIN)/docker-compose

.PHONY: buildkit
buildkit: ## bin/buildkit, Buildx and BuildKit, which test/e2e builds images with
	@scripts/buildkit $(BIN)/buildkit

.PHONY: test
test: build compose buildkit ## every test, those in real VMs included; fails if one is skipped
	@timeout -k 30s $(TOTAL) $(GO) test -json -count=1 -p 1 -timeout $(LIMIT) ./... | $(GO) run ./scripts/testreport

.PHONY: test-fast
test-fast: ## the tests that need no VM
	@$(GO) test -json -short ./... | $(GO) run ./scripts/testreport -skips

.PHONY: check
check: ## gofmt, go vet, staticcheck, and the rules of the repository
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w): $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./test/rules

.PHONY: bench
bench: build ## measure create, start, run, volumes, networks, NFS, vSphere; writes doc/performance.md, doc/network-speed.md, doc/nfs-speed.md and doc/vsphere-speed.md
	@scripts/moby $(BIN)/moby || echo "bench: without Docker's engine beside it"
	$(GO) run ./test/bench -vch $(BIN)/vch -moby $(BIN)/moby -into doc/performance.md $(BENCHFLAGS)
	$(GO) run ./test/netbench -vch $(BIN)/vch -into doc/network-speed.md
	$(GO) run ./test/nfsbench -vch $(BIN)/vch -into doc/nfs-speed.md
	$(GO) run ./test/vcbench -vch $(BIN)/vch -into doc/vsphere-speed.md

.PHONY: bench-net
bench-net: build ## measure networks alone
	$(GO) run ./test/netbench -vch $(BIN)/vch -into doc/network-speed.md $(BENCHFLAGS)

.PHONY: bench-nfs
bench-nfs: build ## measure NFS volumes beside a QEMU run by hand and the server's disk; writes doc/nfs-speed.md
	$(GO) run ./test/nfsbench -vch $(BIN)/vch -into doc/nfs-speed.md $(BENCHFLAGS)

.PHONY: bench-vsphere
bench-vsphere: build ## count calls on a simulated vSphere, and measure 1,000 containers and 10,000 volumes there; writes doc/vsphere-speed.md
	$(GO) run ./test/vcbench -vch $(BIN)/vch -into doc/vsphere-speed.md $(BENCHFLAGS)

.PHONY: bench-io
bench-io: build ## measure a volume's I/O beside a QEMU run by hand, and its settings; writes doc/volume-io.md
	$(GO) run ./test/iobench -vch $(BIN)/vch -into doc/volume-io.md $(BENCHFLAGS)

.PHONY: clean
clean: ## delete what was built
	rm -rf $(BIN) cmd/vch/embed/tether cmd/vch/embed/.tether.new
