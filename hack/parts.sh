# How the outside parts are made that hearth is built, tested and tried with. Sourced by the scripts of hack/ that make some,
# after hack/lib.sh, never run.

# Nothing here waits for ever: a proxy or a mirror that hangs is an error after this, and what was downloaded is kept.
BUILD_SECONDS=2400
FETCH_SECONDS=900
APT=(-o Acquire::Retries=3 -o Acquire::http::Timeout=60)

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
      run_logged apt-golang timeout --foreground "$FETCH_SECONDS" env DEBIAN_FRONTEND=noninteractive apt-get "${APT[@]}" install -y -q --no-install-recommends golang-go ||
        die "apt-get could not install golang-go; install Go $wanted by hand and run this again"
    fi
    doing "go $wanted (as the module golang.org/toolchain, checked by Go's checksum database)"
    local dir
    dir=$(GOFLAGS=-mod=mod GOTOOLCHAIN=local timeout --foreground "$FETCH_SECONDS" go mod download -json "golang.org/toolchain@v0.0.1-go$wanted.linux-amd64" |
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
      run_logged "build-$name" timeout --foreground "$BUILD_SECONDS" env -C "hack/tools/$module" CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local \
        "$GO" build -trimpath -tags "$tags" -ldflags "-s -w $ldflags" -o "$dir/.$name.fresh" "$package" ||
        die "$name could not be built. Is the Go module proxy reachable ('go env GOPROXY')? Run this again: what was downloaded is kept"
      mv "$dir/.$name.fresh" "$dir/$name"
    else
      have "$name $version"
    fi
    link "$dir/$name" "$CACHE/bin/$name"
  done
}

# unpack NAME PACKAGE PROGRAM...: programs of a Debian package, unpacked: installed, its service would start and keep a port.
unpack() {
  local name=$1 package=$2 program missing=''
  shift 2
  for program in "$@"; do [ -x "$CACHE/bin/$(basename "$program")" ] || missing=yes; done
  if [ -z "$missing" ]; then
    have "$name"
    return
  fi
  doing "$name, downloaded with apt and unpacked"
  local fresh=$CACHE/tools/.$name.$$ version dir
  rm -rf "$fresh"
  mkdir -p "$fresh/unpacked"
  # The lists may be too old for the mirror.
  local fetch=(run_logged "$name" timeout --foreground "$FETCH_SECONDS" env -C "$fresh" apt-get "${APT[@]}" download -q "$package")
  "${fetch[@]}" ||
    { run_logged apt-update timeout --foreground "$FETCH_SECONDS" apt-get "${APT[@]}" update -q && "${fetch[@]}"; } ||
    die "$package could not be downloaded"
  version=$(dpkg-deb -f "$fresh"/*.deb Version)
  dpkg -x "$fresh"/*.deb "$fresh/unpacked"
  dir=$CACHE/tools/$name-$version
  rm -rf "$dir"
  mkdir "$dir"
  for program in "$@"; do
    mv "$fresh/unpacked/$program" "$dir"
    link "$dir/$(basename "$program")" "$CACHE/bin/$(basename "$program")"
  done
  rm -rf "$fresh"
  have "$name $version"
}
