#!/usr/bin/env bash
# A Kubernetes of one node, in a box: its own process ids, mounts, network and cgroups, so that it neither touches this machine
# nor leaves anything behind. What it writes lies below one directory.
#   hack/cluster.sh up ROOT        starts it (no longer than a socket path allows: /tmp/…); then ROOT/bin/kubectl and others work
#   hack/cluster.sh down ROOT      ends it and removes ROOT
#   hack/cluster.sh restart ROOT PART    kills containerd, kubelet, kube-apiserver, …; it is started again at once
#   hack/cluster.sh run            starts one, tells how to use it, ends it at Ctrl-C
# Needs root and what hack/cluster-setup.sh made.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

READY_WITHIN=${HEARTH_CLUSTER_SECONDS:-180}

# Every cgroup hierarchy's directory: one with v2, several with v1.
hierarchies() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
    return
  fi
  local dir
  for dir in /sys/fs/cgroup/*/; do
    [ ! -e "$dir/cgroup.procs" ] || [ -L "${dir%/}" ] || echo "${dir%/}"
  done
}

# tool NAME BODY: a command of the cluster for people and tests outside of it.
tool() {
  printf '#!/bin/sh\n%s\n' "$2" >"$ROOT/bin/$1"
  chmod +x "$ROOT/bin/$1"
}

tools() {
  local net="exec nsenter -t \$(cat $ROOT/pid) -n"
  local all="exec nsenter -t \$(cat $ROOT/pid) -n -m -p -C --"
  tool kubectl "$net -- $BIN/kubectl --kubeconfig=$ROOT/admin.conf \"\$@\""
  # helm says for each link in the chart's files/ that it follows it.
  tool helm "$net -- env HOME=$ROOT/helm KUBECONFIG=$ROOT/admin.conf $BIN/helm \"\$@\""
  tool ctr "$all $BIN/ctr --address=/run/containerd/containerd.sock \"\$@\""
  # On the node, as root there.
  tool node "$all \"\$@\""
}

up() {
  ROOT=$1
  local name began=$SECONDS dir pid cgroup part
  name=$(basename "$ROOT")
  for part in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl etcd runc ptp containerd; do
    [ -x "$BIN/$part" ] || die "$part is missing: run hack/cluster-setup.sh"
  done
  [ "$(id -u)" = 0 ] || die "run as root: a node needs cgroups, mounts and namespaces of its own"
  mkdir -p "$ROOT"/{bin,logs,pids}
  [ ! -e "$ROOT/pid" ] || die "$ROOT is in use: hack/cluster.sh down $ROOT"
  # In a subshell that enters the cluster's cgroups and becomes it; unshare takes its child along when it dies.
  (
    for dir in $(hierarchies); do
      cgroup=$dir/$name
      mkdir -p "$cgroup"
      # An empty cpuset takes no process.
      for part in cpus mems; do
        [ ! -e "$cgroup/cpuset.$part" ] || cat "$dir/cpuset.$part" >"$cgroup/cpuset.$part" 2>/dev/null || :
      done
      echo "$BASHPID" >"$cgroup/cgroup.procs"
    done
    exec setsid unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc --cgroup \
      hack/cluster-node.sh "$ROOT" "$BIN" "$CACHE/images"
  ) </dev/null >"$ROOT/logs/node" 2>&1 &
  pid=''
  for _ in $(seq 100); do
    # The child that is process 1 of a namespace; before, the subshell has others.
    for part in $(pgrep -P $! || :); do
      ! grep -qs '^NSpid:.*[[:space:]]1$' "/proc/$part/status" || pid=$part
    done
    [ -z "$pid" ] || break
    sleep 0.05
  done
  [ -n "$pid" ] || die "the node did not start: $(cat "$ROOT/logs/node")"
  echo "$pid" >"$ROOT/pid"
  tools
  until [ -e "$ROOT/ready" ]; do
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$ROOT/logs/node" >&2 && die "the node ended; its logs: $ROOT/logs"; }
    [ $((SECONDS - began)) -lt "$READY_WITHIN" ] || die "the node was not ready within $READY_WITHIN s; its logs: $ROOT/logs"
    sleep 0.2
  done
  have "a Kubernetes $(pinned hack/tools/kubernetes/go.mod k8s.io/kubernetes) node, ready in $((SECONDS - began)) s"
}

down() {
  ROOT=$1
  local name dir left tries pids
  name=$(basename "$ROOT")
  case $name in hearth-cluster*) ;; *) die "$ROOT is no cluster of this script: its name begins with hearth-cluster" ;; esac
  # Whatever is in the cluster's cgroups is the cluster's. With its process 1 everything inside ends, and with that the
  # namespaces: mounts, links, addresses.
  for tries in $(seq 100); do
    pids=$(for dir in $(hierarchies); do find "$dir/$name" -name cgroup.procs -exec cat {} + 2>/dev/null || :; done | sort -u)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086 # one word each
    kill -KILL $pids 2>/dev/null || :
    sleep 0.1
  done
  for dir in $(hierarchies); do
    for tries in $(seq 100); do
      left=$(find "$dir/$name" -depth -type d 2>/dev/null || :)
      [ -n "$left" ] || break
      # Depth first; a group is busy until the kernel has seen its last process off.
      printf '%s\n' "$left" | xargs -r rmdir 2>/dev/null || sleep 0.05
    done
    [ ! -e "$dir/$name" ] || die "$dir/$name can't be removed: $(cat "$dir/$name/cgroup.procs")"
  done
  rm -rf --one-file-system "$ROOT"
}

restart() {
  local pid
  pid=$(cat "$1/pids/$2") || die "there is no $2"
  # Ids of the node's own namespace.
  "$1/bin/node" sh -c "kill -KILL $pid"
}

run() {
  ROOT=/tmp/hearth-cluster-$$
  trap 'code=$?; trap - EXIT; printf "\n  ending the cluster …\n"; (down "$ROOT"); exit $code' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  hack/cluster-setup.sh
  up "$ROOT"
  printf '\n  In another shell: %sexport PATH=%s/bin:$PATH%s, then kubectl, helm, ctr, and node (a command on the node).\n' "$BOLD" "$ROOT" "$PLAIN"
  printf '  docs/kubernetes.md installs hearth into it. Ctrl-C ends it.\n\n'
  sleep infinity
}

case ${1:-} in
  up) up "${2:?ROOT}" ;;
  down) down "${2:?ROOT}" ;;
  restart) restart "${2:?ROOT}" "${3:?PART}" ;;
  run) run ;;
  *) die "usage: hack/cluster.sh up ROOT | down ROOT | restart ROOT PART | run" ;;
esac
