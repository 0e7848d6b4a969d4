#!/usr/bin/env bash
# Builds hearth's binaries.
#   hack/build.sh release   target/release/{hearthd,hearthctl,hearth-runsc,hearth-init}
#   hack/build.sh init      only the static hearth-init, target/static/hearth-init (for tests; cargo's own is not static)
#   hack/build.sh image [debug]   what the image needs: hearthd, hearthctl (release, or debug for tests), and the static two
#   hack/build.sh hostile   the same and a hostile one, target/static/hostile-init (for tests only)
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

step() {
  local what=$1
  shift
  doing "$what"
  # cargo's own progress on a terminal; its log, told only on failure, elsewhere.
  if [ -t 1 ]; then "$@"; else run_logged "cargo-${what%% *}" "$@"; fi || die "$what could not be built"
}

# place FROM TO: whole or not at all.
place() {
  cmp -s "$1" "$2" && return
  install -D -m 755 "$1" "$2.fresh"
  mv "$2.fresh" "$2"
}

# static NAME FEATURES: what goes into sandboxes of any image needs no shared library.
static() {
  local name=$1 features=$2
  local triple=x86_64-unknown-linux-musl flags=''
  if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$triple" ]; then
    triple=x86_64-unknown-linux-gnu flags='-C target-feature=+crt-static'
  fi
  step "$name (static)" env RUSTFLAGS="$flags" \
    cargo build --locked --profile init --no-default-features --features "$features" --target "$triple" --bin "$name"
  place "target/$triple/init/$name" "target/static/$name"
}
init() { static hearth-init init; }

case ${1:-release} in
  init) init ;;
  hostile)
    init
    static hostile-init hostile
    ;;
  image)
    profile=${2:-release}
    # For tests: as cargo builds them for tests, or the half of what they depend on would be built, and kept, twice.
    how=(test --no-run --test cluster)
    [ "$profile" = debug ] || how=(build --release --bin hearthd --bin hearthctl)
    step "hearthd, hearthctl ($profile)" cargo "${how[@]}" --locked
    init
    static hearth-runsc runsc
    ;;
  release)
    step "hearthd, hearthctl, hearth-runsc (release)" \
      cargo build --release --locked --bin hearthd --bin hearthctl --bin hearth-runsc
    ! grep -q HEARTH_FAILPOINT target/release/hearthd || die "the release build has fail points"
    init
    place target/static/hearth-init target/release/hearth-init
    ;;
  *) die "usage: hack/build.sh [release|init|image|hostile]" ;;
esac
