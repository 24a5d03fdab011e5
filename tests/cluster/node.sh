# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086 # the variables are cluster.sh's and hold no blanks
# Part of cluster.sh: one node.

node_network() { # I
  local i=$1 n=$P-n$1 addr=10.70.0.1$1 j
  ip netns add "$n"; ip -n "$n" link set lo up
  ip link add eth0 netns "$n" type veth peer name "v$i" netns $P-cp
  ip -n $P-cp link set "v$i" master br0 up
  ip -n "$n" addr add "$addr/24" dev eth0; ip -n "$n" link set eth0 up; ip -n "$n" route add default via $CP
  for j in $(seq "$NODES"); do
    [ "$j" = "$i" ] || ip -n "$n" route add "10.88.$j.0/24" via "10.70.0.1$j"
  done
  ip -n $P-cp route add "10.88.$i.0/24" via "$addr"
}

node_cgroups() { # I: cgroupRoot must exist in every hierarchy
  local n=$P-n$1 h f
  for h in $(hierarchies); do mkdir -p "$h/$n"; done
  if [ -f /sys/fs/cgroup/cpuset/cpuset.cpus ]; then
    for f in cpuset.cpus cpuset.mems; do cat "/sys/fs/cgroup/cpuset/$f" >"/sys/fs/cgroup/cpuset/$n/$f"; done
  fi
}

node_configuration() { # I
  local i=$1 n=$P-n$1 d=$WORK/n$1 addr=10.70.0.1$1
  mkdir -p "$d"/{kubelet,containerd,run,cni-conf,cni-lib,netns,log,etc}
  cat >"$d/etc/containerd.toml" <<K
version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "test.local/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "$BIN/runc"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
K
  cat >"$d/cni-conf/10.conflist" <<K
{"cniVersion": "0.4.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/var/lib/cni/net"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
K
  cat >"$d/etc/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $addr
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/n$i.crt
tlsPrivateKeyFile: $PKI/n$i.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$n
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
syncFrequency: ${KUBELET_SYNC:-10s}
K
  cat >"$d/etc/proxy.yaml" <<K
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: $addr
clientConnection: {kubeconfig: $PKI/proxy.kubeconfig}
clusterCIDR: 10.88.0.0/16
hostnameOverride: n$i
mode: nftables
conntrack: {maxPerCore: 0, min: 0}
K
}

node_up() { # I
  local i=$1 d=$WORK/n$1
  cert "n$i" "/O=system:nodes/CN=system:node:n$i" "IP:10.70.0.1$i,DNS:n$i"; kubeconfig "n$i"
  node_network "$i"; node_cgroups "$i"; node_configuration "$i"
  # The node's own mount namespace: propagation in it is shared (Bidirectional mounts need that), none of it leaves it,
  # whatever propagation the machine's own root has. With an argument: one process of a node that is up.
  # shellcheck disable=SC2153 # PIDS is cluster.sh's
  cat >"$d/etc/start.sh" <<K
$(declare -f started record)
PIDS=$PIDS
export PATH=$BIN:\$PATH
begin() { local n=n$i-\$1; shift; setsid "\$@" </dev/null >>$RUN/\$n.log 2>&1 & record "\$n" \$!; }
begin_containerd() {
  begin containerd containerd -c $d/etc/containerd.toml
  until ctr version >/dev/null 2>&1; do sleep .1; done
}
begin_proxy() { begin proxy kube-proxy --config=$d/etc/proxy.yaml; }
begin_kubelet() {
  begin kubelet kubelet --config=$d/etc/kubelet.yaml --kubeconfig=$PKI/n$i.kubeconfig --hostname-override=n$i \\
    --node-ip=10.70.0.1$i --cert-dir=/var/lib/kubelet/pki ${KUBELET_FLAGS:-}
}
if [ -n "\${1:-}" ]; then "begin_\$1"; exit; fi
mount --make-rshared /
mkdir -p $PLACES
mkdir -p $d/log/pods $d/log/containers
mount --bind $d/kubelet /var/lib/kubelet;     mount --make-rshared /var/lib/kubelet
mount --bind $d/containerd /var/lib/containerd
mount --bind $d/run /run/containerd
mount --bind $d/cni-conf /etc/cni/net.d
mount --bind $d/cni-lib /var/lib/cni
mount --bind $d/netns /run/netns;             mount --make-rshared /run/netns
mount --bind $d/log/pods /var/log/pods
mount --bind $d/log/containers /var/log/containers
begin_containerd
for t in $WORK/images/*.tar; do ctr -n k8s.io images import \$t >/dev/null; done
begin_proxy
begin_kubelet
exec sleep infinity                          # holds the namespaces, also while nothing else runs
K
  node_on "$i"
}

node_on() { # I
  bg "n$1" nsenter --net=/run/netns/$P-n"$1" unshare -m --propagation private bash "$WORK/n$1/etc/start.sh"
}

# All processes of a node: its containers, and those in its mount namespace.
node_processes() { # I MOUNT-NAMESPACE
  local h
  for h in $(hierarchies); do
    [ ! -d "$h/$P-n$1" ] || find "$h/$P-n$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done
  [ -n "$2" ] || return 0
  # A pattern, where `mnt:[4026]` would be a class of characters.
  find /proc/[0-9]*/ns/mnt -maxdepth 0 -lname "${2//[\[\]]/?}" -printf '%h\n' 2>/dev/null | cut -d/ -f3 || true
}

# As if the power failed: no process, no mount, nothing in /run, no cgroup; the disk stays as it is.
node_off() { # I
  local i=$1 d=$WORK/n$1 pids own
  own=$(live "n$i" | head -n 1)
  own=${own:+$(readlink "/proc/$own/ns/mnt")}
  # What would start others goes first.
  { live "n$i-kubelet"; live "n$i-containerd"; } | xargs -r kill -9 2>/dev/null || true
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(node_processes "$i" "$own" | sort -u)
    [ -n "$pids" ] || break
    xargs -r kill -9 <<<"$pids" 2>/dev/null || true
    sleep .3
  done
  rm -rf --one-file-system "$d"/run/* "$d"/netns/*
  node_cgroups_gone "$i"
  ip -n "$P-n$i" link del cni0 2>/dev/null || true
  nsenter --net="/run/netns/$P-n$i" nft flush ruleset 2>/dev/null || true
}

node_cgroups_gone() { # I
  local h g
  for h in $(hierarchies); do
    g=$h/$P-n$1
    [ ! -d "$g" ] || until_true 20 .1 rmdir_tree "$g" || true
  done
}
rmdir_tree() { find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$1" ]; }
