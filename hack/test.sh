#!/usr/bin/env bash
# Every test, on the real containerd, the real gVisor and, last, a real Kubernetes of one node; prints how many passed. A skip does
# not exist.
#   HEARTH_TEST_CLUSTER=0   leaves the Kubernetes out (its parts take ten minutes to build, once) and says so
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

# What cargo keeps to build faster after the next edit is half of target/; a checkout that was never built is a CI's.
[ -d target/debug/incremental ] || export CARGO_INCREMENTAL=0
# From nothing: 4 for what is built, 7 for the Go modules and their objects, 2 for tools and images, the rest is the tests'.
NEEDED=14
free=$(df -BG --output=avail . | tail -1 | tr -dc 0-9)
[ "$free" -ge "$NEEDED" ] || say "only $free GB are free here; from nothing, all this takes up to $NEEDED"

hack/build.sh hostile
doing "building the tests"
run_logged cargo-test-build cargo test --locked --no-run || die "the tests do not build"

logs=("$CACHE/logs/cargo-test.log")
began=$SECONDS
code=0
cargo test --locked --no-fail-fast 2>&1 | tee "${logs[0]}" || code=$?
hack/fuzz.sh "${FUZZ_SECONDS:-60}" || code=1
left_out=''
if [ "${HEARTH_TEST_CLUSTER:-1}" = 0 ]; then
  left_out=', the cluster LEFT OUT (HEARTH_TEST_CLUSTER=0)'
else
  logs+=("$CACHE/logs/cluster-test.log")
  hack/cluster-test.sh 2>&1 | tee "${logs[1]}" || code=1
fi
awk -v took=$((SECONDS - began)) -v left_out="$left_out" '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
  END { printf "\n  %d tests passed, %d failed, %d skipped, in %d s%s\n", passed, failed, ignored, took, left_out; exit failed + ignored > 0 }' \
  "${logs[@]}" || code=1
exit "$code"
