#!/usr/bin/env bash
# What `make cluster` runs beyond hack/setup.sh: Kubernetes and CNI plugins from pinned Go modules, Debian's etcd and runc
# unpacked, and a pause image. Ten minutes on 2 cores the first time, then seconds. `make demo` needs none of it.
# Modules are checked by go.sum, Debian's packages by apt; what was downloaded before an error is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh
source hack/parts.sh

kubernetes() {
  local version minor
  version=$(pinned hack/tools/kubernetes/go.mod k8s.io/kubernetes)
  minor=${version#v*.}
  local at=k8s.io/component-base/version
  local stamp="-X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=${minor%%.*}"
  local name args=()
  for name in kubectl kube-apiserver kube-controller-manager kube-scheduler kubelet; do
    args+=("$name" "k8s.io/kubernetes/cmd/$name")
  done
  build kubernetes "$version" "$stamp" "" "${args[@]}"
}

cni() {
  local plugins=github.com/containernetworking/plugins
  local version
  version=$(pinned hack/tools/cni/go.mod $plugins)
  build cni "$version" "" "" ptp $plugins/plugins/main/ptp loopback $plugins/plugins/main/loopback \
    host-local $plugins/plugins/ipam/host-local portmap $plugins/plugins/meta/portmap
}

# The process that holds a pod's namespaces: a static busybox that sleeps.
pause() {
  local key archive images=$CACHE/images work layout
  key=$(cat hack/cluster-setup.sh /bin/busybox | sha256sum | cut -c1-8)
  archive=$images/pause-$key.tar
  mkdir -p "$images"
  if [ ! -s "$archive" ]; then
    work=$(mktemp -d "$images/.work.XXXXXX")
    layout=$work/layout
    mkdir "$work/root"
    install -m 755 /bin/busybox "$work/root/busybox"
    tar --owner=0 --group=0 --mtime=@0 -C "$work/root" -cf "$work/layer.tar" .
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    umoci raw add-layer --no-history --image "$layout:latest" "$work/layer.tar"
    umoci config --no-history --image "$layout:latest" --os linux --architecture amd64 \
      --config.entrypoint /busybox --config.entrypoint sleep --config.entrypoint 1000000000
    sed -i 's|"org.opencontainers.image.ref.name":"latest"|"org.opencontainers.image.ref.name":"hearth.local/pause:1"|' "$layout/index.json"
    tar -C "$layout" -cf "$work/archive.tar" oci-layout index.json blobs
    mv "$work/archive.tar" "$archive"
    rm -rf "$work"
  fi
  link "$archive" "$images/pause.tar"
  have "image hearth.local/pause:1"
}

hack/setup.sh
exec 9>"$CACHE/.setup.lock"
flock 9
golang >/dev/null
kubernetes
cni
unpack etcd etcd-server usr/bin/etcd
unpack runc runc usr/sbin/runc
pause
