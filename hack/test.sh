#!/usr/bin/env bash
# Every test, on the real containerd and the real gVisor; prints how many passed. A skip does not exist.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

hack/build.sh hostile
doing "building the tests"
run_logged cargo-test-build cargo test --locked --no-run || die "the tests do not build"

log=$CACHE/logs/cargo-test.log
began=$SECONDS
code=0
cargo test --locked --no-fail-fast 2>&1 | tee "$log" || code=$?
awk -v took=$((SECONDS - began)) '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
  END { printf "\n  %d tests passed, %d failed, %d skipped, in %d s\n", passed, failed, ignored, took; exit failed + ignored > 0 }' "$log" || code=1
hack/fuzz.sh "${FUZZ_SECONDS:-60}" || code=1
exit "$code"
