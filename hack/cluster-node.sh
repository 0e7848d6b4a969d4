#!/usr/bin/env bash
# Process 1 of the node that hack/cluster.sh makes: furnishes its namespaces, then starts etcd, the control plane, containerd and
# the kubelet, each again when it ends. Never run by hand: outside of namespaces of its own it would mount over this machine.
#   hack/cluster-node.sh ROOT BIN IMAGES
set -euo pipefail
ROOT=$1 BIN=$2 IMAGES=$3
[ $$ = 1 ] || { echo "hack/cluster-node.sh is process 1 of a node of its own; run hack/cluster.sh" >&2 && exit 1; }

ADDRESS=10.213.0.1
# The service "kubernetes", which pods call: an address of this node, as there is no proxy for services.
SERVICE=10.215.0.1
API=https://$ADDRESS:443

# Mounts of its own over everything that a node writes to, so that paths are those of any node.
mounts() {
  local dir value
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  cgroups
  # The kubelet would set these for the whole machine (pkg/util/sysctl); here it finds them as it wants them.
  mkdir -p "$ROOT/sysctl"
  while read -r dir value; do
    [ -e "/proc/sys/$dir" ] || continue
    echo "$value" >"$ROOT/sysctl/${dir//\//.}"
    mount --bind "$ROOT/sysctl/${dir//\//.}" "/proc/sys/$dir"
  done <<EOF
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF
  mount -t tmpfs -o mode=755,size=256m run /run
  for dir in var opt; do
    mkdir -p "$ROOT/disk/$dir" "$ROOT/work/$dir" "/$dir"
    mount -t overlay -o "lowerdir=/$dir,upperdir=$ROOT/disk/$dir,workdir=$ROOT/work/$dir" "$dir" "/$dir"
  done
  # No overlay has its upper directory on another one: where containers' layers are made is the disk itself.
  for dir in containerd kubelet; do
    mkdir -p "$ROOT/disk/$dir" "/var/lib/$dir"
    mount --bind "$ROOT/disk/$dir" "/var/lib/$dir"
  done
}

# The cgroup namespace begins at the cluster's own groups; the mounts must show that.
cgroups() {
  local line controllers dir
  if [ -e /sys/fs/cgroup/cgroup.controllers ] || ! grep -q '^[1-9]' /proc/self/cgroup; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # A group with processes of its own gives its children no controllers.
    mkdir -p /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs
    sed 's/\(^\| \)/ +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
    return
  fi
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  while IFS=: read -r line controllers _; do
    case $controllers in
      '') dir=unified && mkdir "/sys/fs/cgroup/$dir" && mount -t cgroup2 cgroup2 "/sys/fs/cgroup/$dir" ;;
      name=*) dir=${controllers#name=} && mkdir "/sys/fs/cgroup/$dir" && mount -t cgroup -o "none,$controllers" cgroup "/sys/fs/cgroup/$dir" ;;
      *)
        dir=$controllers && mkdir "/sys/fs/cgroup/$dir" && mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$dir"
        # Both names of a hierarchy with two controllers.
        case $dir in *,*) for line in ${dir//,/ }; do ln -s "$dir" "/sys/fs/cgroup/$line"; done ;; esac
        ;;
    esac
  done </proc/self/cgroup
}

# The node's address: on one end of a pair that leads nowhere.
network() {
  hostname node
  ip link set lo up
  ip link add node0 type veth peer name node1
  ip address add "$ADDRESS/32" dev node0
  ip address add "$SERVICE/32" dev node0
  ip link set node0 up
  ip link set node1 up
  ip route add default dev node0
}

# kubeconfig NAME: for one of the users in tokens.csv.
kubeconfig() {
  cat >"$ROOT/$1.conf" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$API", certificate-authority: "$ROOT/apiserver/apiserver.crt"}}]
users: [{name: u, user: {token: "$(awk -F, -v name="$1" '$3 == name { print $1 }' "$ROOT/tokens.csv")"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
EOF
}

# Who calls the API server: token, user, uid, groups. The tokens are worth as much as this cluster.
identities() {
  token() { head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
  (
    umask 077
    {
      echo "$(token),admin,admin,\"system:masters\""
      echo "$(token),system:kube-controller-manager,controller-manager,\"system:masters\""
      echo "$(token),system:kube-scheduler,scheduler,\"\""
      echo "$(token),system:node:node,kubelet,\"system:nodes\""
    } >"$ROOT/tokens.csv"
    openssl genrsa -out "$ROOT/accounts.key" 2048 2>/dev/null
    for name in admin controller-manager scheduler kubelet; do kubeconfig $name; done
  )
}

containerd_config() {
  mkdir -p "$ROOT/cni"
  cat >"$ROOT/containerd.toml" <<EOF
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "hearth.local/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
# Machines of tests lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["$BIN"]
conf_dir = "$ROOT/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "$BIN/runc"
SystemdCgroup = false
EOF
  cat >"$ROOT/cni/10-ptp.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp",
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.214.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}}]}
EOF
}

kubelet_config() {
  cat >"$ROOT/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
# Its port is in this node's own network namespace.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {memory.available: "0%"}
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
resolvConf: ""
# No pod needs names here.
clusterDNS: [10.215.0.10]
syncFrequency: 10s
nodeStatusUpdateFrequency: 5s
EOF
}

# keep NAME COMMAND...: in the background, again and again. Its pid is in ROOT/pids.
keep() {
  local name=$1
  shift
  (
    while :; do
      "$@" >>"$ROOT/logs/$name" 2>&1 &
      echo $! >"$ROOT/pids/$name"
      wait $! || :
      sleep 0.5
    done
  ) &
}
kubectl() { "$BIN/kubectl" --kubeconfig="$ROOT/admin.conf" "$@"; }
until_ok() { until "$@" >/dev/null 2>&1; do sleep 0.1; done; }

export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=$ROOT/home
mkdir -p "$HOME" "$ROOT/apiserver"
mounts
network
identities
containerd_config
kubelet_config

keep etcd etcd --name=node --data-dir="$ROOT/etcd" --listen-client-urls=http://127.0.0.1:2379 \
  --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 \
  --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=node=http://127.0.0.1:2380
keep containerd containerd --config="$ROOT/containerd.toml"
keep kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$ADDRESS" --secure-port=443 \
  --cert-dir="$ROOT/apiserver" --token-auth-file="$ROOT/tokens.csv" --authorization-mode=Node,RBAC \
  --kubelet-preferred-address-types=InternalIP --enable-admission-plugins=NodeRestriction --service-cluster-ip-range=10.215.0.0/16 \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$ROOT/accounts.key" \
  --service-account-signing-key-file="$ROOT/accounts.key"
(
  until_ok ctr --address=/run/containerd/containerd.sock version
  ctr --address=/run/containerd/containerd.sock -n k8s.io images import "$IMAGES/pause.tar"
) &
imported=$!
until_ok kubectl get --raw /readyz
keep kube-controller-manager kube-controller-manager --kubeconfig="$ROOT/controller-manager.conf" --leader-elect=false \
  --service-account-private-key-file="$ROOT/accounts.key" --root-ca-file="$ROOT/apiserver/apiserver.crt"
keep kube-scheduler kube-scheduler --kubeconfig="$ROOT/scheduler.conf" --leader-elect=false
wait $imported
keep kubelet kubelet --kubeconfig="$ROOT/kubelet.conf" --config="$ROOT/kubelet.yaml" --hostname-override=node \
  --node-ip="$ADDRESS" --root-dir=/var/lib/kubelet --cert-dir="$ROOT/kubelet"
until_ok kubectl wait --for=condition=Ready node/node --timeout=1s
# The controllers have made what every pod needs.
until_ok kubectl get serviceaccount default
touch "$ROOT/ready"
# Reaps what containerd's shims leave to process 1.
while :; do wait -n 2>/dev/null || sleep 1; done
