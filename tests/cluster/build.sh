# shellcheck shell=bash
# shellcheck disable=SC2154 # here, repo, BIN and WORK are set by cluster.sh
# Part of cluster.sh: what it needs from the machine, and how its binaries and images are made.

deps() {
  local missing=()
  need() { local package=$1; shift; "$@" >/dev/null 2>&1 || missing+=("$package"); }
  need containernetworking-plugins test -x /usr/lib/cni/bridge
  need iptables command -v iptables
  need nftables command -v nft
  need conntrack command -v conntrack
  need iproute2 command -v ip
  need util-linux command -v nsenter
  need busybox-static command -v busybox
  need jq command -v jq
  need openssl command -v openssl
  need gcc command -v gcc
  need libc6-dev test -e /usr/include/stdlib.h
  need pkg-config command -v pkg-config
  need libseccomp-dev pkg-config --exists libseccomp
  need python3 command -v python3                             # for the clients of tests/e2e
  need python3-venv python3 -c 'import ensurepip, venv'
  local sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  fi
  # etcd is unpacked, not installed: its package would start a service.
  if ! command -v etcd >/dev/null && [ ! -x "$BIN/etcd" ]; then
    local d; d=$(mktemp -d); chmod 755 "$d"
    (cd "$d" && { apt-get download etcd-server || { $sudo apt-get update -qq && apt-get download etcd-server; }; } && dpkg -x etcd-server*.deb .)
    mkdir -p "$BIN"; mv "$d/usr/bin/etcd" "$BIN/etcd"; rm -rf "$d"
  fi
}

go_build() { # FOLDER OUT PACKAGE [go build's flags]: a binary appears whole or not at all
  local dir=$1 out=$2 package=$3; shift 3
  [ ! -x "$BIN/$out" ] || return 0
  (cd "$dir" && GOFLAGS='' GOWORK=off go build -trimpath "$@" -o "$BIN/.$out" "$package") && mv "$BIN/.$out" "$BIN/$out"
}

build() {
  mkdir -p "$BIN"
  local v c x d=github.com/containerd/containerd/v2/cmd
  v=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
  x="-X k8s.io/component-base/version.gitVersion=$v -X k8s.io/component-base/version.gitMajor=1"
  x="$x -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$v")"
  for c in kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    CGO_ENABLED=0 go_build "$here" $c "k8s.io/kubernetes/cmd/$c" -ldflags "-s -w $x"
  done
  for c in containerd containerd-shim-runc-v2 ctr; do
    CGO_ENABLED=0 go_build "$here/runtime" $c $d/$c -ldflags "-s -w"
  done
  CGO_ENABLED=1 go_build "$here/runtime" runc github.com/opencontainers/runc -tags seccomp -ldflags "-s -w"
  images
}

oci() {
  local xtask=(cargo run --quiet -p xtask --)
  [ -z "${SEAMOUNT_PREBUILT:-}" ] || xtask=("${CARGO_TARGET_DIR:-$repo/target}/debug/xtask")
  (cd "$repo" && "${xtask[@]}" image --name "$1" --out "$2" "${@:3}" >/dev/null)
}

images() {
  local o=$WORK/images a l=(); mkdir -p "$o"
  gcc -Os -static -s -o "$o/pause" "$here/pause.c"
  oci test.local/pause:1 "$o/pause.tar" --entry /pause "$o/pause:/pause"
  for a in $(busybox --list); do [ "$a" = busybox ] || l+=(--link "/bin/$a=busybox"); done
  oci test.local/busybox:1 "$o/busybox.tar" --cmd /bin/sh --dir /tmp:1777 --dir /etc "${l[@]}" "$(command -v busybox):/bin/busybox"
}
