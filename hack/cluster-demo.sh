#!/usr/bin/env bash
# hearth on a Kubernetes of its own, on one screen: installed by its chart, a pool gets warm, a claim through the agent's pod, the pod
# deleted under it, metrics scraped by a Prometheus. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

ROOT=/tmp/hearth-cluster-demo-$$
title() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
typed() { printf '  %s$ %s%s\n' "$DIM" "$*" "$PLAIN"; }
told() { sed 's/^/    /'; }
# shown COMMAND...: what is typed, and what it says.
shown() {
  typed "$*"
  "$@" 2>&1 | told
}
cleanup() {
  local code=$?
  trap - EXIT INT TERM
  title "The end: the node goes, with everything on it"
  [ ! -d "$ROOT" ] || hack/cluster.sh down "$ROOT"
  exit "$code"
}
prometheus() {
  local ip
  ip=$(kubectl -n hearth get pods -o jsonpath='{.items[0].status.podIP}')
  cat >"$ROOT/prometheus.yaml" <<EOF
{"global": {"scrape_interval": "1s"}, "scrape_configs": [{"job_name": "hearth", "static_configs": [{"targets": ["$ip:9468"]}]}]}
EOF
  node "$BIN/prometheus" --config.file="$ROOT/prometheus.yaml" --storage.tsdb.path="$ROOT/prometheus" \
    --web.listen-address=127.0.0.1:9090 --log.level=error >"$ROOT/logs/prometheus" 2>&1 &
  local query='http://127.0.0.1:9090/api/v1/query?query=hearth_pool_sandboxes'
  for _ in $(seq 100); do
    node busybox wget -q -O - "$query" 2>/dev/null | grep -q '"value"' && break
    sleep 0.2
  done
  node "$BIN/promtool" query instant http://127.0.0.1:9090 "$1"
}

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
title "Getting ready"
hack/cluster-setup.sh
hack/image.sh
hack/oci-image.sh

title "A Kubernetes of one node"
hack/cluster.sh up "$ROOT"
export PATH=$ROOT/bin:$PATH
ctr -n k8s.io images import target/image/hearth.tar >/dev/null

title "hearth, by its chart"
typed helm install hearth daemonset/chart -n hearth --create-namespace
helm install hearth daemonset/chart -n hearth --create-namespace --set image.pullPolicy=Never >/dev/null
kubectl -n hearth rollout status daemonset/hearth --timeout=120s | tail -n 1 | told
shown kubectl -n hearth get pods -o wide

title "A pool of gVisor sandboxes on the node's containerd"
hearthctl() { kubectl -n hearth exec -i daemonset/hearth -- hearthctl "$@"; }
hearthctl image import - <"$CACHE/images/python.tar" 2>&1 | tail -n 1 | told
hearthctl pools set -f - --wait 2m <<EOF 2>&1 | told
{"pools": [{"name": "python", "min_warm": 4, "max_total": 8, "template": {"image": "hearth.local/python:3", "interpreter": "python"}}]}
EOF
typed kubectl -n hearth exec daemonset/hearth -- hearthctl claim python
claim=$(hearthctl claim python -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["claim_id"])')
hearthctl run "$claim" 'import platform; x = 41; platform.release()' | told
say "the node's kernel: $(uname -r)"
hearthctl bench python -n 3 2>&1 | told

title "What the agent takes, beside the sandboxes"
node sh -c 'grep VmRSS "/proc/$(pgrep -xo hearthd)/status"' | tr -s '\t ' ' ' | told
node sh -c 'group=$(sed -n "s/^[0-9]*:memory:/memory/p; s/^0::/./p" "/proc/$(pgrep -xo hearthd)/cgroup" | head -n 1)
  cat "/sys/fs/cgroup/$group/memory.usage_in_bytes" "/sys/fs/cgroup/$group/memory.current" 2>/dev/null' |
  awk '{ printf "its cgroup, page cache included: %d kB\n", $1 / 1024 }' | told

title "The agent's pod is deleted; the claim runs on"
shown kubectl -n hearth delete pod -l app.kubernetes.io/name=hearth
kubectl -n hearth rollout status daemonset/hearth --timeout=120s | tail -n 1 | told
typed "kubectl -n hearth exec daemonset/hearth -- hearthctl run ${claim:0:8} 'x + 1'"
hearthctl run "$claim" 'x + 1' | told

title "Scraped by a Prometheus over the pod's network"
typed 'promtool query instant … hearth_pool_sandboxes'
prometheus hearth_pool_sandboxes | told
