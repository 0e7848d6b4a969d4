#!/usr/bin/env bash
# The root file system of hearth's image: hearth's programs, runsc, nft with its libraries; no shell, no package manager.
#   hack/image-root.sh DIR [PROFILE]
# PROFILE is `release`, or `debug` for tests. What runs on nodes (hearth-init, hearth-runsc, runsc) is static: it lands
# beside whatever C library the node has. hearthd, hearthctl and nft share this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

root=${1:?usage: hack/image-root.sh DIR [PROFILE]}
profile=${2:-release}

hack/build.sh image "$profile"
install -d -m 755 "$root"/{etc,usr/local/bin,usr/sbin,usr/share/doc/hearth}
install -m 755 "target/$profile/hearthd" "target/$profile/hearthctl" target/static/hearth-{init,runsc} "$(realpath "$BIN/runsc")" \
  "$root/usr/local/bin"
nft=$(PATH=$PATH:/usr/sbin:/sbin command -v nft) || die "nft is missing: run make setup"
install -m 755 "$nft" "$root/usr/sbin/nft"
install -m 644 LICENSE "$root/usr/share/doc/hearth/LICENSE"
printf '%s\n' 'root:x:0:0:root:/nonexistent:/nonexistent' 'nobody:x:65534:65534:nobody:/nonexistent:/nonexistent' >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$root/etc/group"
printf '%s\n' 'hosts: files dns' >"$root/etc/nsswitch.conf"
# Where containers get mounts, and a place for the CA bundle of an OTLP collector.
install -d -m 755 "$root"/{proc,sys,dev,run,etc/hearth,var/lib,opt}
install -d -m 1777 "$root/tmp"

for program in usr/local/bin/hearthd usr/local/bin/hearthctl usr/sbin/nft; do ldd "$root/$program"; done |
  awk '/=> \// { print $3 } $1 ~ /^\// { print $1 }' | sort -u | while read -r library; do
    # Under the name that programs ask for; /lib is /usr/lib on the systems that this builds on, and a directory here.
    install -D -m 755 "$(realpath "$library")" "$root$library"
  done
