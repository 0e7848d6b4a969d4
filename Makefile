# hearth. `make demo` shows it; `make test` proves it; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build image image-hearth demo dev check test test-v2 cluster cluster-test cluster-demo fuzz torture soak overload churn bench clean

help: ## What there is
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

test-v2: setup image ## Freeze, reclaim, limits, kill and claim tests on a kernel with cgroup v2 only, in QEMU
	@hack/test-v2.sh

test: setup image ## All tests, on real containerd, gVisor and Kubernetes (HEARTH_TEST_CLUSTER=0 leaves that out)
	@hack/test.sh

cluster: ## A Kubernetes of one node to play with, until Ctrl-C (the first time builds it: ten minutes)
	@hack/cluster.sh run

cluster-demo: ## See hearth on such a cluster, on one screen
	@hack/cluster-demo.sh

cluster-test: ## hearth as a DaemonSet on such a cluster: life, upgrade, rights, uninstall (part of `make test`)
	@hack/cluster-test.sh

fuzz: setup ## Fuzz what guests and callers send, each target for FUZZ_SECONDS=60
	@hack/fuzz.sh $(or $(FUZZ_SECONDS),60)

torture: setup image ## Kill hearthd -9 at its fail points under load, TORTURE_KILLS=1000 times
	@hack/build.sh init
	@HEARTH_TORTURE_KILLS=$(or $(TORTURE_KILLS),1000) cargo test --locked --test node -- torture:: --nocapture

soak: setup image ## Churn and faults for SOAK_SECONDS=1800, then nothing has grown and nothing is left
	@hack/build.sh init
	@HEARTH_SOAK_SECONDS=$(or $(SOAK_SECONDS),1800) cargo test --locked --test node -- soak:: --nocapture

overload: setup image ## Ten times what the node can do, for OVERLOAD_SECONDS=60
	@hack/build.sh init
	@HEARTH_OVERLOAD_SECONDS=$(or $(OVERLOAD_SECONDS),60) cargo test --locked --test node -- overload:: --nocapture

churn: setup image ## Hibernate and resume CHURN_ROUNDS=1000 times over CHURN_SANDBOXES=50
	@hack/build.sh init
	@HEARTH_CHURN_ROUNDS=$(or $(CHURN_ROUNDS),1000) HEARTH_CHURN_SANDBOXES=$(or $(CHURN_SANDBOXES),50) \
	  cargo test --locked --test node -- churn:: --nocapture

bench: build image ## Our figures beside their floor or peer, in target/bench/
	@hack/bench.sh

clean: ## Remove build outputs (the cache of built parts stays)
	@cargo clean
