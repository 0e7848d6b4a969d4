#!/usr/bin/env bash
# hearth on a node that has cgroup v2 only: Debian's 6.12 kernel in QEMU's emulation (no KVM needed), with the real containerd
# and the real gVisor; the tests of freeze, reclaim, limits, kill and claim run there as they are. It shows that things work,
# not how fast: everything is ten times slower there.
#   hack/test-v2.sh [FILTER...]   with filters: only those of tests/node, and nothing else
# Outside the checkout: Debian's qemu-system-x86 (installed), and in ~/.cache/hearth the kernel's package, unpacked.
#   HEARTH_V2_CPUS=2  HEARTH_V2_MEMORY=6G  HEARTH_V2_SECONDS=3000   what the node gets, and how long it may take
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

SERIES=6.12
CPUS=${HEARTH_V2_CPUS:-2}
MEMORY=${HEARTH_V2_MEMORY:-6G}
SECONDS_AT_MOST=${HEARTH_V2_SECONDS:-3000}

# What runs there: a test binary, then its filters. hack/v2-node.sh runs one after the other.
plan() {
  local each
  if [ $# != 0 ]; then
    for each; do echo "${each%%:*} ${each#*:}"; done
    return
  fi
  echo "node what_sleeps_outlives"
  echo "hearth cgroup::"
  echo "runsc_wrapper a_frozen_sandbox a_restart_of_containerd a_stopped_sandbox a_hung_runsc"
  echo "runtime inside_a_sandbox_every_bound_holds ends_are_told frozen_and_wedged"
  echo "node claim_run_code_release a_dry_pool_fails a_sandbox_that_ends_by_itself every_limit_is_met" \
    "a_pool_keeps_few_running a_claimed_sandbox_sleeps the_zram_device" \
    "no_sandbox_restarts" \
    "a_sandbox_goes_to_the_disk what_is_on_the_disk_survives who_sleeps_long_sinks"
}

qemu() {
  if ! command -v qemu-system-x86_64 >/dev/null; then
    doing "Debian's qemu-system-x86"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends qemu-system-x86)
    run_logged v2-qemu "${install[@]}" ||
      { run_logged apt-update apt-get update -q && run_logged v2-qemu "${install[@]}"; } ||
      die "apt-get could not install qemu-system-x86"
  fi
  have "$(qemu-system-x86_64 --version | head -1)"
}

# The newest of its series that apt knows; one that is there is kept. Unpacked only: installed, it would be this machine's.
kernel() {
  KERNEL=$(readlink -e "$CACHE/tools/kernel-v2" || :)
  if [ -z "$KERNEL" ]; then
    local package fresh=$CACHE/tools/.kernel-v2.$$ release module
    package=$(apt-cache depends "linux-image-$SERIES-cloud-amd64" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$package" ] || die "apt knows no linux-image-$SERIES-cloud-amd64; run apt-get update, or add Debian's security archive"
    doing "$package, downloaded with apt and unpacked"
    rm -rf "$fresh"
    mkdir -p "$fresh"
    run_logged v2-kernel env -C "$fresh" apt-get download -q "$package" ||
      { run_logged apt-update apt-get update -q && run_logged v2-kernel env -C "$fresh" apt-get download -q "$package"; } ||
      die "$package could not be downloaded"
    dpkg -x "$fresh"/*.deb "$fresh"
    rm "$fresh"/*.deb
    release=${package#linux-image-}
    module=$fresh/lib/modules/$release
    [ -d "$module" ] || die "$package has no modules in lib/modules/$release"
    # busybox, which loads them, reads plain ones.
    find "$module" -name '*.ko.xz' -exec xz -d {} +
    busybox depmod -b "$fresh" "$release"
    [ -s "$module/modules.dep" ] || die "the modules of $package could not be listed"
    rm -rf "$CACHE/tools/kernel-$release"
    mv "$fresh" "$CACHE/tools/kernel-$release"
    link "$CACHE/tools/kernel-$release" "$CACHE/tools/kernel-v2"
    KERNEL=$CACHE/tools/kernel-$release
  fi
  RELEASE=${KERNEL##*/kernel-}
  have "Linux $RELEASE"
}

# What finds the disk: busybox and the few modules that the disk needs.
initramfs() {
  local root=$WORK/initramfs modules=lib/modules/$RELEASE dir
  mkdir -p "$root"/{bin,dev,proc,node,sbin} "$root/$modules/kernel"
  install -m 755 /bin/busybox "$root/bin/busybox"
  for dir in drivers/virtio drivers/block fs/ext4 fs/jbd2 lib crypto arch/x86/crypto; do
    [ ! -d "$KERNEL/$modules/kernel/$dir" ] || (cd "$KERNEL/$modules" && cp -r --parents "kernel/$dir" "$root/$modules/")
  done
  [ ! -f "$KERNEL/$modules/kernel/fs/mbcache.ko" ] || cp "$KERNEL/$modules/kernel/fs/mbcache.ko" "$root/$modules/kernel/fs/"
  cp "$KERNEL/$modules"/modules.* "$root/$modules/"
  cat >"$root/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
exec >/dev/ttyS0 2>&1
for module in virtio_pci virtio_blk ext4; do $b modprobe "$module"; done
n=0
until $b mount -t ext4 /dev/vda /node 2>/dev/null; do
  n=$((n + 1))
  [ $n -lt 200 ] || { echo "no disk"; $b ls /dev; $b poweroff -f; }
  $b sleep 0.1
done
exec $b switch_root /node /sbin/init
INIT
  chmod 755 "$root/init"
  (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$WORK/initramfs.gz"
}

# program ROOT PATH...: programs of this machine with their libraries, under the names they have here.
programs() {
  local root=$1 program library
  shift
  for program in "$@"; do
    [ -e "$program" ] || die "$program is missing"
    install -D -m 755 "$(realpath "$program")" "$root$program"
    { ldd "$program" 2>/dev/null || :; } | awk '/=> \// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
      [ -e "$root$library" ] || install -D -m 755 "$(realpath "$library")" "$root$library"
    done
  done
}

# The node's disk: busybox, the few programs that hearth calls, the kernel's modules, and this checkout's outputs where the
# tests look for them.
disk() {
  local root=$WORK/root name path applet here=$PWD
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,root,etc,tmp,var/lib,lib,usr/bin,usr/sbin,hearth/cache/bin,hearth/cache/images}
  chmod 1777 "$root/tmp"
  install -m 755 /bin/busybox "$root/bin/busybox"
  for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
  ln -sf ../bin/busybox "$root/sbin/modprobe"
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/nonexistent:/bin/false' >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$root/etc/group"
  printf '%s\n' 'hosts: files dns' >"$root/etc/nsswitch.conf"
  printf '%s\n' '127.0.0.1 localhost' >"$root/etc/hosts"
  : >"$root/etc/resolv.conf"
  for name in nft ip mkswap swapon swapoff nsenter setpriv mount umount tar; do
    path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$name") || die "$name is missing: run make setup"
    # Later in PATH than busybox's of the same name otherwise.
    rm -f "$root/bin/$name"
    programs "$root" "$path"
  done
  cp -r "$KERNEL/lib/modules" "$root/lib/" 2>/dev/null || cp -r "$KERNEL/usr/lib/modules" "$root/lib/"
  for name in runsc containerd containerd-shim-runc-v2 ctr; do
    install -m 755 "$(realpath "$BIN/$name")" "$root/hearth/cache/bin/$name"
  done
  install -m 644 "$(realpath "$CACHE/images/python.tar")" "$root/hearth/cache/images/python.tar"
  for path in target/debug/{hearthd,hearthctl,hearth-runsc,hearth-init} target/static/hearth-init "${TESTS[@]}"; do
    programs "$root" "$here/${path#"$here"/}"
    strip --strip-debug "$root$here/${path#"$here"/}" 2>/dev/null || :
  done
  install -m 755 hack/v2-node.sh "$root/sbin/init"
  plan "$@" | while read -r name filters; do echo "$(binary "$name") $filters"; done >"$root/hearth/plan"
  printf 'cd %q\nexport CARGO_MANIFEST_DIR=%q\n' "$here" "$here" >"$root/hearth/env"
  truncate -s 16G "$WORK/disk"
  run_logged v2-disk mke2fs -q -F -t ext4 -O ^has_journal -E root_owner=0:0 -d "$root" "$WORK/disk" ||
    die "the node's disk could not be made"
  rm -rf "$root"
}

# binary NAME: the test binary of that name, as cargo has just said.
binary() {
  local path
  for path in "${TESTS[@]}"; do
    [[ ${path##*/} != "$1"-* ]] || { echo "$PWD/${path#"$PWD"/}"; return; }
  done
  die "cargo built no test binary $1"
}

build_tests() {
  hack/build.sh init
  doing "building the tests"
  local log=$CACHE/logs/v2-build.log which=(--lib --test runsc_wrapper --test runtime --test node) each
  if [ $# != 0 ]; then
    which=()
    for each; do
      case $each in
        hearth:*) which+=(--lib) ;;
        *:*) which+=(--test "${each%%:*}") ;;
        *) die "not BINARY:FILTER: $each" ;;
      esac
    done
  fi
  run_logged v2-build cargo test --locked --no-run "${which[@]}" || die "the tests do not build"
  mapfile -t TESTS < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$log")
  [ ${#TESTS[@]} != 0 ] || die "cargo named no test binary; see $log"
}

run() {
  local log=$CACHE/logs/v2-tests.log console=$CACHE/logs/v2-console.log began=$SECONDS code
  : >"$log"
  doing "booting a node with cgroup v2 only, under emulation (its console: $console)"
  timeout --foreground "$SECONDS_AT_MOST" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp "$CPUS" -m "$MEMORY" \
    -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$KERNEL/boot/vmlinuz-$RELEASE" -initrd "$WORK/initramfs.gz" \
    -append "console=ttyS0 cgroup_no_v1=all mitigations=off nokaslr panic=-1 quiet loglevel=4" \
    -drive "if=virtio,format=raw,cache=unsafe,file=$WORK/disk" -object rng-random,id=random,filename=/dev/urandom \
    -device virtio-rng-pci,rng=random -serial "file:$console" -serial "file:$log" </dev/null &
  QEMU=$!
  # What the node says, as it says it.
  tail --pid="$QEMU" -n +1 -f "$log" 2>/dev/null | sed -u 's/\r//; s/^/  │ /'
  code=0
  wait "$QEMU" || code=$?
  QEMU=''
  [ "$code" != 124 ] || die "not done within $SECONDS_AT_MOST s; all that was said: $log"
  [ "$code" = 0 ] || die "QEMU ended with $code; its console: $console"
  local verdict
  verdict=$(tr -d '\r' <"$log" | sed -n 's/^hearth-v2: //p' | tail -1)
  case $verdict in
    passed*) have "cgroup v2: $verdict, in $((SECONDS - began)) s with the boot" ;;
    '') tail -n 20 "$console" >&2; die "the node ended before its tests did; its console: $console" ;;
    *) die "cgroup v2: $verdict; all that was said: $log" ;;
  esac
}

WORK='' QEMU=''
end() {
  [ -z "$QEMU" ] || kill "$QEMU" 2>/dev/null || :
  [ -z "$WORK" ] || rm -rf "$WORK"
}
trap end EXIT
mkdir -p "$CACHE/tools" "$CACHE/logs"
# One at a time: they share logs and the kernel.
exec 7>"$CACHE/.v2.lock"
flock 7
qemu
kernel
build_tests "$@"
WORK=$(mktemp -d "$CACHE/.v2.XXXXXX")
doing "the node's disk"
initramfs
disk "$@"
run
