#!/usr/bin/env bash
# Our figures beside their floor or peer, measured in the same run. Everything in target/bench/.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

hack/build.sh init
doing "building the benches"
run_logged cargo-bench-build cargo bench --locked --no-run || die "the benches do not build"
cargo bench --locked -q --bench node
