#!/usr/bin/env bash
# Installs what hearth builds and runs with: Debian packages, then runsc, containerd and helm from pinned Go modules.
# Debian's Prometheus, which tests start, is unpacked only.
# Idempotent: what is present is skipped. Built parts live outside the checkout, one directory a version:
#   ~/.cache/hearth/tools/<name>-<version>/     (HEARTH_CACHE moves ~/.cache/hearth)
#   ~/.cache/hearth/bin/<name>                  links to the versions this checkout pins
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh
source hack/parts.sh

PACKAGES=(ca-certificates gcc libc6-dev make git protobuf-compiler libprotobuf-dev busybox-static mmdebstrap umoci nftables
  iproute2 python3 python3-venv procps)

system() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "hearth's setup knows Linux on x86_64 only, not $(uname -s) on $(uname -m)"
  [ "$(id -u)" = 0 ] || die "run as root: sandboxes need cgroups, mounts and a containerd of their own"
  command -v cargo >/dev/null || die "cargo is missing: install a Rust toolchain (rustup.rs), then run this again"
}

packages() {
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  if [ ${#missing[@]} = 0 ]; then
    have "Debian packages"
    return
  fi
  command -v apt-get >/dev/null || die "apt-get is missing: install by hand: ${missing[*]}"
  doing "Debian packages: ${missing[*]}"
  run_logged apt-update timeout --foreground "$FETCH_SECONDS" apt-get "${APT[@]}" update -q ||
    say "apt-get update failed (see its log above); trying with the lists there are"
  run_logged apt-install timeout --foreground "$FETCH_SECONDS" env DEBIAN_FRONTEND=noninteractive apt-get "${APT[@]}" install -y -q --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]}"
}

parts() {
  local runsc containerd
  runsc=$(pinned hack/tools/runsc/go.mod gvisor.dev/gvisor)
  containerd=$(pinned hack/tools/containerd/go.mod github.com/containerd/containerd/v2)
  build runsc "$runsc" "-X gvisor.dev/gvisor/runsc/version.version=$runsc" "" runsc gvisor.dev/gvisor/runsc
  local cd=github.com/containerd/containerd/v2
  build containerd "$containerd" "-X $cd/version.Version=$containerd" "no_btrfs no_devmapper no_zfs" \
    containerd $cd/cmd/containerd containerd-shim-runc-v2 $cd/cmd/containerd-shim-runc-v2 ctr $cd/cmd/ctr
  # Stands where Kata's shim would be, in tests: no virtual machine boots on the machines they run on.
  local recording
  recording=$(sha256sum hack/tools/containerd/recording-shim/main.go | cut -c1-8)
  build containerd "$containerd-$recording" "" "no_btrfs no_devmapper no_zfs" \
    containerd-shim-kata-recording-v2 ./recording-shim
  # Renders daemonset/chart for its tests; nothing that runs needs it.
  build helm "$(pinned hack/tools/helm/go.mod helm.sh/helm/v4)" "" "" helm helm.sh/helm/v4/cmd/helm
}

# hearth-init must be static: musl where rustup has it, else glibc linked statically (hack/build.sh decides the same way).
target() {
  if rustup target list --installed 2>/dev/null | grep -qx x86_64-unknown-linux-musl; then
    have "Rust target x86_64-unknown-linux-musl"
  elif command -v rustup >/dev/null && run_logged rustup-target rustup target add x86_64-unknown-linux-musl; then
    have "Rust target x86_64-unknown-linux-musl"
  else
    say "no musl target for Rust: hearth-init will be linked statically against glibc"
  fi
}

system
mkdir -p "$CACHE/bin" "$CACHE/logs"
# One at a time: a second setup waits for the first and then finds everything there.
exec 9>"$CACHE/.setup.lock"
flock 9
packages
golang
parts
# Debian's; they need libc only.
unpack prometheus prometheus usr/bin/prometheus usr/bin/promtool
target
