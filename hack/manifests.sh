#!/usr/bin/env bash
# Renders daemonset/manifests/hearth.yaml from the chart, as for `kubectl apply -f`. tests/daemonset.rs holds them equal.
#   hack/manifests.sh [FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh

out=${1:-daemonset/manifests/hearth.yaml}
[ -x "$BIN/helm" ] || die "helm is missing: run make setup"
mkdir -p "$(dirname "$out")"
{
  echo '# Rendered from daemonset/chart with its defaults by hack/manifests.sh: change the chart, not this file.'
  printf '%s\n' --- 'apiVersion: v1' 'kind: Namespace' 'metadata:' '  name: hearth' '  labels:' \
    '    # hostPath volumes and the host'\''s process ids are what a node agent is made of.' \
    '    pod-security.kubernetes.io/enforce: privileged'
  # Nothing of this machine's own helm configuration; its notes about the links in files/ are no news.
  env -i PATH="$PATH" HOME=/nonexistent "$BIN/helm" template hearth daemonset/chart --namespace hearth 2>/dev/null ||
    die "the chart can't be rendered: $BIN/helm template hearth daemonset/chart"
} | sed 's/[[:space:]]*$//' | sed '/./,$!d' >"$out.fresh"
mv "$out.fresh" "$out"
