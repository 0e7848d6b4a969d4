#!/usr/bin/env bash
# Format, lints and licences. Warm it takes well below two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

DENY=0.20.2

doing "rustfmt"
cargo fmt --check || die "run cargo fmt"
doing "clippy, every target, no warning"
cargo clippy --locked --all-targets -q -- -D warnings
# No part of a plain `cargo test`, so --all-targets leaves it out.
cargo clippy --locked --test cluster -q -- -D warnings
doing "clippy of the two small binaries as they are shipped"
cargo clippy --locked -q --no-default-features --features init --bin hearth-init -- -D warnings
cargo clippy --locked -q --no-default-features --features hostile --bin hostile-init -- -D warnings
cargo clippy --locked -q --no-default-features --features runsc --bin hearth-runsc -- -D warnings
deny=$CACHE/tools/cargo-deny-$DENY
if [ ! -x "$deny/bin/cargo-deny" ]; then
  doing "cargo-deny $DENY, built from source (some minutes on 2 cores, once)"
  run_logged cargo-deny cargo install --locked --quiet --root "$deny" --version "$DENY" cargo-deny ||
    die "cargo-deny could not be built"
fi
doing "cargo-deny: licences, duplicates, sources"
"$deny/bin/cargo-deny" --log-level error --locked check licenses bans sources
have "all good"
