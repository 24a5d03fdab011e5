#!/usr/bin/env bash
# csi-sanity 5.6.0 against the real mounter and agent, as root, in a mount and PID namespace of their own.
# The agent is an unprivileged process as on a node; `sanity-shim` (tests/e2e/src/bin) plays the kubelet between it and
# csi-sanity. Arguments are passed on to csi-sanity, such as --ginkgo.focus='NodePublish'; `build` alone only builds.
# With SEAMOUNT_PREBUILT the programs in target/debug are taken as they are.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
cache=${SEAMOUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seamount}
target=${CARGO_TARGET_DIR:-$repo/target}
driver=csi.spiffe.io uid=64203

# Inside the namespaces: everything is on one tmpfs, all processes end with this one.
inside() { # FOLDER CSI-SANITY BINARIES
  local w=$1 sanity=$2
  mount -t tmpfs -o mode=755 sanity "$w"
  mkdir -p "$w"/{bin,run,targets,staging} "$w"/kubelet/{pods,plugins,plugins_registry}
  rmdir "$w/staging"                               # csi-sanity makes it, and insists on that
  mount --bind "$3" "$w/bin"                       # the agent's uid may not be able to walk to the checkout
  cat >"$w/agent.yaml" <<K
drivers: [{name: $driver}]
kubeletRoot: $w/kubelet
nodeName: node-1
mounterSocket: $w/run/mounter.sock
trustDomain: example.org
identity: {source: authority}
authority: {embedded: {}}
token: {audience: seamount.dev, issuers: https://issuer.test, keys: {file: $w/jwks.json}}
http: {address: ""}
K
  shift 3
  "$w/bin/sanity-shim" --root "$w/kubelet" --driver $driver --jwks "$w/jwks.json" --targets "$w/targets" \
    --node-endpoint "$w/node.sock" --controller-endpoint "$w/controller.sock" >"$w/shim.log" 2>&1 &
  await "$w/jwks.json" || fail "$w" "the shim does not start"
  "$w/bin/seamount-mounter" --kubelet-root "$w/kubelet" --driver $driver --socket "$w/run/mounter.sock" \
    --agent-uid $uid --agent-gid $uid >"$w/mounter.log" 2>&1 &
  setpriv --reuid $uid --regid $uid --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
    "$w/bin/seamount-agent" --config "$w/agent.yaml" --health-socket "" >"$w/agent.log" 2>&1 &
  await "$w/controller.sock" || fail "$w" "the agent does not register"

  # Where csi-sanity's path really is, the shim left as a symbolic link.
  cat >"$w/checkpath" <<K
#!/bin/sh
p=\$(readlink "$w/targets/\$(echo "\$1" | tr / _)") || p=\$1
if [ -d "\$p" ]; then echo directory; elif [ -f "\$p" ]; then echo file; elif [ -e "\$p" ]; then echo other; else echo not_found; fi
K
  chmod +x "$w/checkpath"
  local rc=0
  "$sanity" --csi.endpoint="unix:$w/node.sock" --csi.controllerendpoint="unix:$w/controller.sock" \
    --csi.mountdir="$w/mount" --csi.stagingdir="$w/staging" --csi.checkpathcmd="$w/checkpath" \
    --ginkgo.skip='Controller Server|GroupController|SnapshotMetadata' --ginkgo.no-color \
    --ginkgo.json-report="$w/report.json" "$@" >"$w/sanity.log" 2>&1 || rc=$?
  [ -s "$w/report.json" ] || { cat "$w/sanity.log"; fail "$w" "csi-sanity wrote no report"; }
  python3 "$here/report.py" "$w/report.json" || rc=1
  if [ $rc != 0 ]; then cat "$w/sanity.log"; fail "$w" "not every applicable spec passed"; fi
  grep ' Passed | ' "$w/sanity.log"
  # Whatever csi-sanity published is gone again.
  local left; left=$(find "$w/kubelet/pods" -mindepth 1)
  [ -z "$left" ] || fail "$w" "left in the pods directory: $left"
}
await() { local i; for ((i = 0; i < 600; i++)); do [ ! -e "$1" ] || return 0; sleep .1; done; return 1; }
fail() { local f; for f in shim mounter agent; do echo "--- $f"; cat "$1/$f.log"; done; echo "sanity: $2" >&2; exit 1; }

if [ "${1:-}" = --inside ]; then shift; inside "$@"; exit; fi

if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
  [ "${1:-}" != build ] || exit 0
  echo "SKIPPED csi-sanity: needs root, or sudo without a password"; exit 0
fi
sanity=$cache/csi-sanity-$(cat "$here"/go.{mod,sum} | sha256sum | cut -c1-12)
if [ ! -x "$sanity" ]; then
  mkdir -p "$cache"
  (cd "$here" && GOFLAGS='' GOWORK=off go build -trimpath -o "$sanity.new" github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity)
  mv "$sanity.new" "$sanity"
fi
if [ -z "${SEAMOUNT_PREBUILT:-}" ]; then
  (cd "$repo" && cargo build --quiet -p seamount-mounter -p seamount-agent -p seamount-e2e --bins)
fi
[ "${1:-}" != build ] || exit 0

w=$(mktemp -d /tmp/sanity.XXXXXX)
trap 'rmdir "$w"' EXIT
sudo=(); [ "$(id -u)" = 0 ] || sudo=(sudo env "HOME=$HOME")
"${sudo[@]}" unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
  "${BASH_SOURCE[0]}" --inside "$w" "$sanity" "$target/debug" "$@"
