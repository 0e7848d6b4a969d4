#!/usr/bin/env bash
# Makes an image without any registry: Debian packages from this machine's own apt sources, as an OCI archive.
#   hack/image.sh [python]   prints where it is: ~/.cache/hearth/images/<name>.tar   (HEARTH_CACHE moves ~/.cache/hearth)
# Made once for each version of this script and each Debian suite; a second run finds it there.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

NAME=${1:-python}
case $NAME in
  # python3, not python3-minimal: that one lacks http.server and most of the standard library.
  python) PACKAGES=python3,busybox-static,ca-certificates REFERENCE=hearth.local/python:3 COMMAND=python3 ;;
  *) die "hack/image.sh knows the image python, not $NAME" ;;
esac

codename() { (source /etc/os-release && echo "${VERSION_CODENAME:?this is no Debian release}"); }

# sources SUITE: those of apt's sources that are Debian's own for this release, one file or line each.
sources() {
  local file
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] || continue
    awk -v suite="$1" '$1 == "Suites:" { for (i = 2; i <= NF; i++) if ($i == suite || $i ~ "^" suite "-(updates|security)$") found = 1 }
      END { exit !found }' "$file" && echo "$file"
  done
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
    awk -v suite="$1" '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i == suite || $i ~ "^" suite "-(updates|security)$") { print; next } }'
}

# proxies: what apt is told about proxies, as options of mmdebstrap's apt.
proxies() { apt-config dump --format '%f "%v";%n' Acquire::http::Proxy Acquire::https::Proxy | grep -v '""' || :; }

# root DIR SUITE: the root file system.
root() {
  local from=() options=() line
  mapfile -t from < <(sources "$2")
  [ ${#from[@]} != 0 ] || die "apt has no sources for Debian $2"
  while read -r line; do options+=("--aptopt=$line"); done < <(proxies)
  run_logged "image-$NAME-packages" mmdebstrap --mode=root --variant=extract --include="$PACKAGES" "${options[@]}" \
    "$2" "$1" "${from[@]}" || die "the packages of the image could not be fetched; is apt's mirror reachable ('apt-get update')?"
  # Nothing was configured: a shell, users, and what a running program expects.
  local applet dir
  for applet in $(busybox --list); do
    for dir in bin sbin usr/bin usr/sbin; do
      if [ -e "$1/$dir/$applet" ] || [ -L "$1/$dir/$applet" ]; then continue 2; fi
    done
    ln -s busybox "$1/bin/$applet"
  done
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/nonexistent:/bin/false' >"$1/etc/passwd"
  printf '%s\n' 'root:x:0:' 'tty:x:5:' 'nogroup:x:65534:' >"$1/etc/group"
  printf '%s\n' 'hosts: files dns' >"$1/etc/nsswitch.conf"
  cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1/etc/ssl/certs/ca-certificates.crt"
  rm -rf "$1"/usr/share/{doc,man,info,locale,lintian,bug,doc-base,pixmaps,applications,menu,bash-completion} \
    "$1"/usr/share/ca-certificates "$1"/var/cache/* "$1"/var/lib/{apt,dpkg} "$1"/var/log/* "$1"/usr/lib/*/gconv "$1"/dev/*
  mkdir -p "$1"/{root,tmp,proc,sys,dev,run}
  # Into the image's layer once, instead of into every sandbox's own disk at each start.
  run_logged "image-$NAME-compile" chroot "$1" python3 -m compileall -q /usr/lib ||
    die "the image's python does not run"
  chmod 0700 "$1/root"
  chmod 1777 "$1/tmp"
}

# pack ROOT WORK OUT: the OCI archive.
pack() {
  local layout=$2/layout
  local tar=(tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 --format=gnu)
  "${tar[@]}" -C "$1" -cf "$2/layer.tar" .
  umoci init --layout "$layout"
  umoci new --image "$layout:latest"
  umoci raw add-layer --no-history --image "$layout:latest" "$2/layer.tar"
  umoci config --no-history --image "$layout:latest" --os linux --architecture amd64 --created 1970-01-01T00:00:00Z \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --config.env LANG=C.UTF-8 \
    --config.workingdir /root --config.user root --config.cmd "$COMMAND"
  umoci gc --layout "$layout"
  # umoci knows tags only; the full name makes an import need no other.
  sed -i "s|\"org.opencontainers.image.ref.name\":\"latest\"|\"org.opencontainers.image.ref.name\":\"$REFERENCE\"|" "$layout/index.json"
  grep -q "$REFERENCE" "$layout/index.json" || return 1
  "${tar[@]}" -C "$layout" -cf "$3" oci-layout index.json blobs
}

suite=$(codename)
key=$(cat hack/image.sh <(echo "$suite $NAME") | sha256sum | cut -c1-8)
images=$CACHE/images
archive=$images/$NAME-$key.tar
mkdir -p "$images"
# One at a time: a second run waits for the first and then finds it there.
exec 8>"$images/.lock"
flock 8
if [ ! -s "$archive" ]; then
  [ "$(id -u)" = 0 ] || die "run as root: the image's files belong to root"
  doing "image $REFERENCE from Debian $suite's packages (half a minute, once)"
  work=$(mktemp -d "$images/.work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root "$work/root" "$suite"
  run_logged "image-$NAME-pack" pack "$work/root" "$work" "$work/archive.tar" || die "the image could not be packed"
  mv "$work/archive.tar" "$archive"
fi
link "$archive" "$images/$NAME.tar"
have "image $REFERENCE, $(du -m "$archive" | cut -f1) MB: $images/$NAME.tar"
