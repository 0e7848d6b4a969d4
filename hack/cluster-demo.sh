#!/usr/bin/env bash
# hearth on a Kubernetes of its own, on one screen: installed by its chart, a pool gets warm, a pod with nothing but its
# ServiceAccount claims from it, hearth's own pod is deleted under the claim, metrics are scraped by a Prometheus. Leaves nothing behind.
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
# certificate DIR: a CA of the demo's own, and a certificate of it for the server.
certificate() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj '/CN=demo' -keyout "$1/ca.key" -out "$1/ca.crt"
  openssl req -newkey rsa:2048 -nodes -subj '/CN=hearth' -keyout "$1/tls.key" -out "$1/tls.csr"
  openssl x509 -req -in "$1/tls.csr" -CA "$1/ca.crt" -CAkey "$1/ca.key" -days 1 -out "$1/tls.crt" \
    -extfile <(printf 'subjectAltName=DNS:hearth\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n')
}
# A pod whose ServiceAccount may claim. `hearthd wait` sleeps: the image has no shell.
agent() {
  kubectl create namespace agents
  kubectl -n agents create serviceaccount allocator
  kubectl -n agents create configmap hearth-ca --from-file="$ROOT/tls/ca.crt"
  kubectl -n hearth create rolebinding allocator --role=hearth-claimer --serviceaccount=agents:allocator
  kubectl apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: agents}
spec:
  serviceAccountName: allocator
  terminationGracePeriodSeconds: 1
  containers:
  - name: agent
    image: $IMAGE
    imagePullPolicy: Never
    args: [wait]
    env:
    - {name: HEARTH_SERVER_NAME, value: hearth}
    - {name: HEARTH_CA, value: /var/run/hearth/ca.crt}
    - {name: HEARTH_TOKEN_FILE, value: /var/run/hearth/token}
    volumeMounts: [{name: hearth, mountPath: /var/run/hearth, readOnly: true}]
  volumes:
  - name: hearth
    projected:
      sources:
      - configMap: {name: hearth-ca}
      - serviceAccountToken: {path: token, audience: hearth, expirationSeconds: 600}
EOF
  kubectl -n agents wait --for=condition=Ready pod/agent --timeout=60s
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
ctr -n k8s.io images import "$PWD/target/image/hearth.tar" >"$ROOT/logs/import" 2>&1 ||
  die "the image of hearth could not be imported: $(tail -n 1 "$ROOT/logs/import")"

title "hearth, by its chart"
mkdir -p "$ROOT/tls"
run_logged cluster-demo-tls certificate "$ROOT/tls" || die "no certificate could be made"
kubectl create namespace hearth >/dev/null
kubectl -n hearth create secret generic hearth-tls --from-file="$ROOT/tls/tls.crt" --from-file="$ROOT/tls/tls.key" \
  --from-file="$ROOT/tls/ca.crt" >/dev/null
words=(--set kubernetes.enabled=true,kubernetes.tokens.enabled=true --set api.tcp.enabled=true,api.tcp.tlsSecret=hearth-tls)
typed helm install hearth daemonset/chart -n hearth "${words[@]}"
helm install hearth daemonset/chart -n hearth "${words[@]}" --set image.pullPolicy=Never >"$ROOT/logs/helm" 2>&1 ||
  die "the chart could not be installed: $(tail -n 1 "$ROOT/logs/helm")"
kubectl -n hearth rollout status daemonset/hearth --timeout=120s | tail -n 1 | told
shown kubectl -n hearth get pods -o wide

title "A pool of gVisor sandboxes on the node's containerd"
hearthctl() { kubectl -n hearth exec -i -c hearthd daemonset/hearth -- hearthctl "$@"; }
hearthctl image import - <"$CACHE/images/python.tar" 2>&1 | tail -n 1 | told
hearthctl pools set -f - --wait 2m <<EOF 2>&1 | told
{"pools": [{"name": "python", "min_warm": 4, "max_total": 8, "template": {"image": "hearth.local/python:3", "interpreter": "python"}}]}
EOF

title "Another pod claims from it, by its ServiceAccount"
IMAGE=hearth.local/hearth:$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
run_logged cluster-demo-agent agent || die "the claiming pod did not start"
find_hearth() { server=https://$(kubectl -n hearth get pods -o jsonpath='{.items[0].status.podIP}'):9470; }
in_agent() { kubectl -n agents exec -i agent -- hearthctl --server "$server" "$@"; }
typed_there() { typed kubectl -n agents exec agent -- hearthctl --server "$server" "$@"; }
find_hearth
typed_there claim python --show-token
read -r claim token < <(in_agent claim python --show-token -o json |
  python3 -c 'import json, sys; it = json.load(sys.stdin); print(it["claim_id"], it["access_token"])')
say "  $claim, and a token that opens this sandbox alone"
inside() { in_agent --token "$token" run "$claim" "$1" | told; }
typed_there --token … run "${claim:0:8}" "'import platform; x = 41; platform.release()'"
inside 'import platform; x = 41; platform.release()'
say "the node's kernel: $(uname -r)"
typed_there bench python -n 3
in_agent bench python -n 3 2>&1 | told

title "What hearthd takes, beside the sandboxes"
node sh -c 'grep VmRSS "/proc/$(pgrep -xo hearthd)/status"' | tr -s '\t ' ' ' | told
node sh -c 'group=$(sed -n "s/^[0-9]*:memory:/memory/p; s/^0::/./p" "/proc/$(pgrep -xo hearthd)/cgroup" | head -n 1)
  cat "/sys/fs/cgroup/$group/memory.usage_in_bytes" 2>/dev/null || cat "/sys/fs/cgroup/$group/memory.current"' |
  awk '{ printf "its cgroup, page cache included: %d kB\n", $1 / 1024 }' | told

title "hearth's pod is deleted; the claim runs on"
shown kubectl -n hearth delete pod -l app.kubernetes.io/name=hearth
kubectl -n hearth rollout status daemonset/hearth --timeout=120s | tail -n 1 | told
find_hearth
typed_there --token … run "${claim:0:8}" "'x + 1'"
inside 'x + 1'

title "Scraped by a Prometheus over the pod's network"
sums='sum by (pool, state) (hearth_pool_sandboxes) > 0'
typed "promtool query instant http://127.0.0.1:9090 '$sums'"
prometheus "$sums" | sed 's/ @\[.*//' | told
