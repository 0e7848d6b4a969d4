#!/bin/busybox sh
# The first process of the node that hack/test-v2.sh boots: mounts what a Linux has, runs the tests that /hearth/plan names,
# says "hearth-v2: passed ..." or "hearth-v2: failed ..." on the second serial line, and switches the node off.
# Everything is ten times slower here.
export HEARTH_PATIENCE=6
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root HEARTH_CACHE=/hearth/cache HEARTH_BIN_DIR=/hearth/cache/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -e /dev/null ] || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,rw /
stty -F /dev/ttyS1 raw 2>/dev/null
exec </dev/null >/dev/ttyS1 2>&1

hostname hearth-v2
ip link set lo up
for module in overlay zram veth dummy nf_tables nf_conntrack; do modprobe "$module" || echo "no module $module"; done
echo "hearth-v2: Linux $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers), $(nproc) CPUs, up $(cut -d' ' -f1 /proc/uptime) s"
! grep -q " cgroup rw" /proc/mounts || echo "hearth-v2: there is a v1 hierarchy beside it"
. /hearth/env

code=0 passed=0 failed=0
while read -r binary filters; do
  # One after the other: the processors are slow enough, and what fails is told at once.
  for filter in $filters; do
    echo "hearth-v2: ${binary##*/} $filter, at $(cut -d. -f1 /proc/uptime) s"
    "$binary" --test-threads=1 "$filter" >/tmp/out 2>&1 || code=$?
    cat /tmp/out
    set -- $(sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' /tmp/out)
    passed=$((passed + ${1:-0})) failed=$((failed + ${2:-0}))
    # A filter that fits nothing would pass.
    [ "${1:-0}" -gt 0 ] || { echo "hearth-v2: no test passed for $filter"; code=1; }
  done
done </hearth/plan
if [ $code = 0 ]; then word=passed; else word=failed; fi
echo "hearth-v2: $word: $passed tests passed, $failed failed, up $(cut -d' ' -f1 /proc/uptime) s"
sync
poweroff -f
