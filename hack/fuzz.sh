#!/usr/bin/env bash
# Fuzzes what comes from outside: what a guest sends (records, messages), what callers send (requests), configuration.
#   hack/fuzz.sh [SECONDS] [NAME...]   each of them (or those named) for SECONDS (60), as many at once as there are cores
#   hack/fuzz.sh grow [SECONDS]        the same, then puts what was learnt into fuzz/corpus, small
# Found inputs that break something are in target/fuzz/<name>/; run target/debug/fuzz-<name> with one to see it again.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

ALL=(records messages requests config)
# A new input larger than that teaches nothing.
LENGTH=4096

grow=no
if [ "${1:-}" = grow ]; then
  grow=yes
  shift
fi
seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || die "usage: hack/fuzz.sh [grow] [SECONDS] [NAME...]"
[ $# = 0 ] || shift
names=("${@:-${ALL[@]}}")
[ $# != 0 ] || names=("${ALL[@]}")

export CARGO_TARGET_DIR=$PWD/target RUSTC_WRAPPER=$PWD/fuzz/coverage.sh
cargo metadata --locked --offline --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null 2>&1 ||
  cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null 2>&1 ||
  die "fuzz/Cargo.lock is older than Cargo.toml: run 'cargo update --workspace --manifest-path fuzz/Cargo.toml' and commit it"
doing "building the fuzzers"
run_logged cargo-fuzz-build cargo build --locked --manifest-path fuzz/Cargo.toml || die "the fuzzers do not build"

# fuzz NAME: its new inputs go to target/, the committed ones are only read.
fuzz() {
  local name=$1 own=target/fuzz/$1
  mkdir -p "$own/corpus" "fuzz/corpus/$name"
  if ! "target/debug/fuzz-$name" -max_total_time="$seconds" -max_len=$LENGTH -timeout=10 -rss_limit_mb=1024 \
    -artifact_prefix="$own/" -print_final_stats=1 "$own/corpus" "fuzz/corpus/$name" >"$own/log" 2>&1; then
    tail -n 40 "$own/log" >&2
    return 1
  fi
  local ran covered
  ran=$(awk '/stat::number_of_executed_units/ { print $2 }' "$own/log")
  covered=$(grep -o 'cov: [0-9]*' "$own/log" | tail -1)
  # Without coverage it would only throw dice.
  [[ $covered =~ [1-9][0-9]{2} ]] || { echo "fuzz-$name sees no coverage: $covered" >&2; return 1; }
  have "fuzz-$name: $ran inputs in $seconds s, $covered edges"
}
export -f fuzz have
export seconds LENGTH GREEN PLAIN
printf '%s\n' "${names[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}' || die "an input breaks something (see above)"

[ $grow = yes ] || exit 0
for name in "${names[@]}"; do
  fresh=target/fuzz/$name/fresh
  rm -rf "$fresh"
  mkdir -p "$fresh"
  "target/debug/fuzz-$name" -merge=1 -max_len=512 "$fresh" "fuzz/corpus/$name" "target/fuzz/$name/corpus" >/dev/null 2>&1
  rm -rf "fuzz/corpus/$name"
  mkdir -p "fuzz/corpus/$name"
  # The smallest 100 of them: a beginning, not an archive.
  find "$fresh" -type f -printf '%s %p\n' | sort -n | head -100 | cut -d' ' -f2- | xargs -r cp -t "fuzz/corpus/$name"
  have "fuzz/corpus/$name: $(find "fuzz/corpus/$name" -type f | wc -l) inputs"
done
