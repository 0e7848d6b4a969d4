# hearth. `make demo` shows it; `make test` proves it; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build image image-hearth demo dev check test cluster cluster-test cluster-demo fuzz torture soak bench clean

help: ## What there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install Debian packages, build runsc and containerd (once a version)
	@hack/setup.sh

build: setup ## Build the four binaries into target/release
	@hack/build.sh release

image: setup ## Build a python image without any registry (once)
	@hack/image.sh

image-hearth: setup ## Build the image of hearth itself, target/image/hearth.tar
	@hack/oci-image.sh --check

demo: ## See hearth work on real containerd and gVisor, on one screen
	@hack/demo.sh

dev: build image ## Keep a node running to play with, until Ctrl-C
	@target/release/hearthd --dev

check: setup ## Format, lints, licences
	@hack/check.sh

test: setup image ## All tests, on real containerd and gVisor
	@hack/test.sh

cluster: ## A Kubernetes of one node to play with, until Ctrl-C (the first time builds it: ten minutes)
	@hack/cluster.sh run

cluster-demo: ## See hearth on such a cluster, on one screen
	@hack/cluster-demo.sh

cluster-test: ## hearth as a DaemonSet on such a cluster: life, upgrade, rights, uninstall
	@hack/cluster-test.sh

fuzz: setup ## Fuzz what guests and callers send, each target for FUZZ_SECONDS=60
	@hack/fuzz.sh $(or $(FUZZ_SECONDS),60)

torture: setup image ## Kill hearthd -9 at its fail points under load, TORTURE_KILLS=1000 times
	@hack/build.sh init
	@HEARTH_TORTURE_KILLS=$(or $(TORTURE_KILLS),1000) cargo test --locked --test node -- torture:: --nocapture

soak: setup image ## Churn and faults for SOAK_SECONDS=1800, then nothing has grown and nothing is left
	@hack/build.sh init
	@HEARTH_SOAK_SECONDS=$(or $(SOAK_SECONDS),1800) cargo test --locked --test node -- soak:: --nocapture

bench: build image ## Our figures beside their floor or peer, in target/bench/
	@hack/bench.sh

clean: ## Remove build outputs (the cache of built parts stays)
	@cargo clean
