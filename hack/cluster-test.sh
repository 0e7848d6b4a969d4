#!/usr/bin/env bash
# hearth as a DaemonSet on a real kubelet: tests/cluster.rs on a cluster of hack/cluster.sh, which must leave nothing behind.
# Two images are installed in turn: the second's hearth-init and hearth-runsc are other files, as those of an upgrade are.
#   hack/cluster-test.sh [test name or flag of the test binary ...]
#   HEARTH_CLUSTER_TEST_SECONDS=1800   how long the tests may take; a test that hangs fails with the cluster's logs
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

hack/cluster-setup.sh
hack/image.sh
hack/oci-image.sh --profile debug --tag first --out target/image/first.tar --check
hack/oci-image.sh --profile debug --tag second --out target/image/second.tar --stamp 'another build'
doing "building the tests"
run_logged cluster-test-build cargo test --locked --no-run --test cluster || die "the tests do not build"
TESTS=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$CACHE/logs/cluster-test-build.log" | tail -1)
[ -x "$TESTS" ] || die "cargo named no test binary: $CACHE/logs/cluster-test-build.log"
run_logged cluster-example-build cargo build --locked --example controller || die "examples/rust does not build"

ROOT=/tmp/hearth-cluster-test-$$
before=$(mktemp)
# What a cluster could leave on this machine: mounts, links, namespaces, cgroups, the sysctls that a kubelet sets.
traces() {
  awk '{ print "mount " $2 }' /proc/mounts
  ip -o link show | awk -F': ' '{ print "link " $2 }'
  ip netns list | sed 's/^/netns /'
  find /sys/fs/cgroup -maxdepth 3 -type d -name 'hearth-cluster*' 2>/dev/null | sed 's/^/cgroup /'
  head /proc/sys/vm/overcommit_memory /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops
  ls -d /var/lib/kubelet /var/lib/hearth /run/hearth /opt/hearth /etc/cni /var/log/pods 2>/dev/null || :
}
cleanup() {
  local code=$?
  trap - EXIT INT TERM
  if [ "$code" != 0 ] && [ -d "$ROOT" ]; then
    rm -rf "$CACHE/logs/cluster"
    cp -r "$ROOT/logs" "$CACHE/logs/cluster" && say "the cluster's logs: $CACHE/logs/cluster"
    # Of pods: hearthd's own, also of those that are gone.
    cp -r "$ROOT/disk/var/log/pods" "$CACHE/logs/cluster/pods" 2>/dev/null || :
  fi
  hack/cluster.sh down "$ROOT" || code=1
  rm -f "$before"
  exit "$code"
}
traces >"$before"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
hack/cluster.sh up "$ROOT"
# The binary itself: cargo that is stopped leaves it running.
HEARTH_CLUSTER=$ROOT timeout --foreground --kill-after=10 "${HEARTH_CLUSTER_TEST_SECONDS:-1800}" "$TESTS" --nocapture "$@" || die "the cluster's tests failed, or took too long"
hack/cluster.sh down "$ROOT"
left=$(comm -13 <(sort "$before") <(traces | sort))
! pgrep -af -- "$ROOT" | grep -v "^$$ " || die "processes of the cluster are left"
# Others may work on this machine meanwhile, even with a cluster: only what is this cluster's own counts.
left=$(grep -vE "hearth-cluster[a-z]*-" <<<"${left//${ROOT##*/}/hearth-cluster}" || :)
left=$(grep -E 'hearth-cluster|kubelet|/(var/lib|run|opt)/hearth$|cni|overcommit|panic|^[0-9]' <<<"$left" || :)
[ -z "$left" ] || die "left behind:"$'\n'"$left"
have "no process, mount, link, cgroup, file or sysctl of the cluster is left"
