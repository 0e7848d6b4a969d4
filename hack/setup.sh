#!/usr/bin/env bash
# Installs what hearth builds and runs with: Debian packages, then runsc, containerd and helm from pinned Go modules.
# Debian's Prometheus, which tests start, is unpacked only.
# Idempotent: what is present is skipped. Built parts live outside the checkout, one directory a version:
#   ~/.cache/hearth/tools/<name>-<version>/     (HEARTH_CACHE moves ~/.cache/hearth)
#   ~/.cache/hearth/bin/<name>                  links to the versions this checkout pins
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

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
  run_logged apt-update apt-get update -q ||
    say "apt-get update failed (see its log above); trying with the lists there are"
  run_logged apt-install env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]}"
}

# A Go that can build the pinned modules. Where there is none (or an old one), Debian's fetches the right one as a module.
GO=go
golang() {
  local wanted
  wanted=$(awk '$1 == "go" { print $2 }' hack/tools/*/go.mod | sort -V | tail -1)
  if command -v go >/dev/null && newer_or_same "$(go_version go)" "$wanted"; then
    have "go $(go_version go)"
    return
  fi
  local cached=$CACHE/tools/go-$wanted/bin/go
  if [ ! -x "$cached" ]; then
    if ! command -v go >/dev/null; then
      doing "Debian's Go, to fetch go $wanted with"
      run_logged apt-golang env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends golang-go ||
        die "apt-get could not install golang-go; install Go $wanted by hand and run this again"
    fi
    doing "go $wanted (as the module golang.org/toolchain, checked by Go's checksum database)"
    local dir
    dir=$(GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod download -json "golang.org/toolchain@v0.0.1-go$wanted.linux-amd64" |
      awk -F'"' '$2 == "Dir" { print $4 }') || die "go $wanted could not be downloaded"
    [ -d "$dir" ] || die "go $wanted could not be downloaded"
    local fresh=$CACHE/tools/.go-$wanted.$$
    mkdir -p "$CACHE/tools"
    cp -r "$dir" "$fresh"
    chmod -R u+w "$fresh"
    chmod +x "$fresh"/bin/* "$fresh"/pkg/tool/linux_amd64/* 2>/dev/null || chmod +x "$fresh"/bin/*
    rm -rf "$CACHE/tools/go-$wanted"
    mv "$fresh" "$CACHE/tools/go-$wanted"
  fi
  GO=$cached
  export GOROOT=$CACHE/tools/go-$wanted
  have "$("$GO" version | cut -d' ' -f3) in $CACHE/tools"
}

# build MODULE_DIR VERSION LDFLAGS TAGS NAME PACKAGE ...: builds the pinned package, once a version.
build() {
  local module=$1 version=$2 ldflags=$3 tags=$4
  shift 4
  local key
  key=$version-$(cat "hack/tools/$module/go.mod" "hack/tools/$module/go.sum" <(echo "$ldflags $tags") | sha256sum | cut -c1-8)
  while [ $# -gt 0 ]; do
    local name=$1 package=$2
    shift 2
    local dir=$CACHE/tools/$name-$key
    if [ ! -x "$dir/$name" ]; then
      doing "$name $version, built from source (1 to 3 minutes on 2 cores, once)"
      mkdir -p "$dir"
      run_logged "build-$name" env -C "hack/tools/$module" CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local \
        "$GO" build -trimpath -tags "$tags" -ldflags "-s -w $ldflags" -o "$dir/.$name.fresh" "$package" ||
        die "$name could not be built. Is the Go module proxy reachable ('go env GOPROXY')? Run this again: what was downloaded is kept"
      mv "$dir/.$name.fresh" "$dir/$name"
    else
      have "$name $version"
    fi
    link "$dir/$name" "$CACHE/bin/$name"
  done
}

parts() {
  local runsc containerd
  runsc=$(pinned hack/tools/runsc/go.mod gvisor.dev/gvisor)
  containerd=$(pinned hack/tools/containerd/go.mod github.com/containerd/containerd/v2)
  build runsc "$runsc" "-X gvisor.dev/gvisor/runsc/version.version=$runsc" "" runsc gvisor.dev/gvisor/runsc
  local cd=github.com/containerd/containerd/v2
  build containerd "$containerd" "-X $cd/version.Version=$containerd" "no_btrfs no_devmapper no_zfs" \
    containerd $cd/cmd/containerd containerd-shim-runc-v2 $cd/cmd/containerd-shim-runc-v2 ctr $cd/cmd/ctr
  # Renders daemonset/chart for its tests; nothing that runs needs it.
  build helm "$(pinned hack/tools/helm/go.mod helm.sh/helm/v4)" "" "" helm helm.sh/helm/v4/cmd/helm
}

# Debian's Prometheus and promtool, unpacked: installed, its service would start and keep a port. They need libc only.
prometheus() {
  if [ -x "$CACHE/bin/prometheus" ] && [ -x "$CACHE/bin/promtool" ]; then
    have "prometheus"
    return
  fi
  doing "prometheus, downloaded with apt and unpacked"
  local fresh=$CACHE/tools/.prometheus.$$ version dir
  rm -rf "$fresh"
  mkdir -p "$fresh/unpacked"
  # The lists may be too old for the mirror.
  run_logged prometheus env -C "$fresh" apt-get download -q prometheus ||
    { run_logged apt-update apt-get update -q && run_logged prometheus env -C "$fresh" apt-get download -q prometheus; } ||
    die "prometheus could not be downloaded"
  version=$(dpkg-deb -f "$fresh"/*.deb Version)
  dpkg -x "$fresh"/*.deb "$fresh/unpacked"
  dir=$CACHE/tools/prometheus-$version
  rm -rf "$dir"
  mkdir "$dir"
  mv "$fresh"/unpacked/usr/bin/{prometheus,promtool} "$dir"
  rm -rf "$fresh"
  link "$dir/prometheus" "$CACHE/bin/prometheus"
  link "$dir/promtool" "$CACHE/bin/promtool"
  have "prometheus $version"
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
prometheus
target
