#!/usr/bin/env bash
# The end-to-end tests: two real nodes (tests/cluster), the product's image, real clients.
#
#   run.sh                all of it: up, the tests, down
#   run.sh build          what the others start, and nothing else
#   run.sh up             start the cluster and install, or put a new build into the one that is up
#   run.sh test [NAME]    the tests (whose name contains NAME) in the cluster that is up
#   run.sh down           take everything away
#
# Without root, or sudo without a password, it says that it is skipped. With SEAMOUNT_PREBUILT (`xtask test`) all of it is built
# before: target/debug holds the workspace's programs and tests, and `run.sh build` has run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
cache=${SEAMOUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seamount}
target=${CARGO_TARGET_DIR:-$repo/target}
work=$target/e2e
programs=$target/$(uname -m)-unknown-linux-gnu/release
domain=e2e.test                     # TRUST_DOMAIN of src/lib.rs
cluster() { "$repo/tests/cluster/cluster.sh" "$@"; }
say() { printf '%s %s\n' "$(date +%T)" "$*"; }

# A folder named by what it is made from, made once.
cached() { # NAME FILE...
  local name=$1; shift
  echo "$cache/$name-$(cat "$@" | sha256sum | cut -c1-12)"
}

clients() {
  local go python
  python=$(cached python "$here/clients/python/requirements.txt")
  if [ ! -e "$python/complete" ]; then
    say "installing the Python client"
    rm -rf "$python"; python3 -m venv "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check -r "$here/clients/python/requirements.txt"
    touch "$python/complete"
  fi
  go=$(cached go-client "$here"/clients/go/{main.go,go.mod,go.sum})
  if [ ! -x "$go" ]; then
    say "building the Go client"
    (cd "$here/clients/go" && CGO_ENABLED=0 GOFLAGS='' GOWORK=off go build -trimpath -ldflags '-s -w' -o "$go.new" .)
    mv "$go.new" "$go"
  fi
  local a l=(); for a in $(busybox --list); do [ "$a" = busybox ] || l+=(--link "/bin/$a=busybox"); done
  xtask image --name test.local/seamount-clients:1 --out "$work/clients.tar" --dir /tmp:1777 --dir /etc "${l[@]}" \
    "$(command -v busybox):/bin/busybox" "$go:/client"
  cat >"$work/env" <<K
export SEAMOUNT_E2E=1 SEAMOUNT_E2E_PYTHON=$python/bin/python SEAMOUNT_E2E_PROGRAM=$programs/seamount
export SEAMOUNT_E2E_MANIFESTS=$work/manifests.yaml
K
}

xtask() {
  if [ -n "${SEAMOUNT_PREBUILT:-}" ]; then (cd "$repo" && "$target/debug/xtask" "$@"); else (cd "$repo" && cargo run --quiet -p xtask -- "$@"); fi
}

# The tests by name, where the whole workspace is built: for one package alone cargo would build all libraries again.
cargo_test() {
  local which=(-p seamount-e2e) f
  if [ -n "${SEAMOUNT_PREBUILT:-}" ]; then
    which=(--workspace); for f in "$here"/tests/*.rs; do which+=(--test "$(basename "$f" .rs)"); done
  fi
  (cd "$repo" && cargo test "${which[@]}" "$@")
}

build() {
  mkdir -p "$work"
  cluster deps
  say "building the cluster's binaries"
  cluster build
  say "building the images"
  xtask images --out "$work"
  # The same programs in another image, to roll to.
  local p l=(); for p in seamount seamount-agent seamount-mounter; do l+=("$programs/$p:/$p"); done
  xtask image --name seamount:dev2 --out "$work/seamount-dev2.tar" --entry /seamount --env RELEASE=2 "${l[@]}"
  clients
  say "building the tests"
  cargo_test --quiet --no-run
}

# The authority's root comes from elsewhere (openssl), as in a cluster with a company's own.
secret() {
  cluster kubectl -n seamount-system get secret seamount-authority >/dev/null 2>&1 && return
  local d; d=$(mktemp -d)
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$d/tls.key"
  openssl req -x509 -new -key "$d/tls.key" -subj "/O=$domain/CN=root" -days 2 -out "$d/tls.crt" \
    -addext keyUsage=critical,keyCertSign,cRLSign -addext "subjectAltName=URI:spiffe://$domain" 2>/dev/null
  openssl x509 -in "$d/tls.crt" -outform DER | sha256sum | cut -d' ' -f1 >"$work/root.sha256"
  cluster kubectl -n seamount-system create secret tls seamount-authority --cert="$d/tls.crt" --key="$d/tls.key"
  rm -r "$d"
}

up() {
  [ -n "${SEAMOUNT_PREBUILT:-}" ] || build
  if ! cluster kubectl get nodes >/dev/null 2>&1; then
    say "starting the cluster"
    cluster up 2
  fi
  say "installing"
  local image; for image in seamount seamount-dev2 clients; do cluster load "$work/$image.tar" >/dev/null; done
  # The cluster has no DNS, hence the address.
  "$programs/seamount" manifests --trust-domain $domain --image seamount:dev \
    --image-pull-policy Never --api-server https://10.96.0.1 --log-level debug >"$work/manifests.yaml"
  cluster kubectl apply -f - <"$work/manifests.yaml"
  secret
  echo "export SEAMOUNT_E2E_ROOT_SHA256=$(cat "$work/root.sha256")" >>"$work/env"
  cluster kubectl -n seamount-system delete pods --all >/dev/null
  cluster kubectl -n seamount-system rollout status daemonset/seamount-node --timeout=120s ||
    { cluster kubectl -n seamount-system describe pods; cluster kubectl -n seamount-system logs daemonset/seamount-node --all-containers --tail=50; return 1; }
}

tests() {
  # shellcheck source=/dev/null
  . "$work/env"
  say "testing"
  cargo_test --no-fail-fast -- --test-threads="${SEAMOUNT_E2E_THREADS:-6}" --show-output "$@"
}

finish() {
  local rc=$?
  if [ $rc != 0 ]; then
    rm -rf "$work/logs"
    cluster logs "$work/logs" 2>/dev/null && echo "e2e: the logs of all processes are in $work/logs"
  fi
  say "taking the cluster down"
  cluster down
  return $rc
}

may_run() {
  local elevate=(); [ "$(id -u)" = 0 ] || elevate=(sudo -n)
  "${elevate[@]}" unshare --mount --net true 2>/dev/null
}

if ! may_run; then
  [ "${1:-}" != build ] || exit 0
  echo "SKIPPED e2e: needs root, or sudo without a password, and leave to make namespaces"
  exit 0
fi
case ${1:-all} in
  all) trap finish EXIT; up; tests ;;
  build) build ;;
  up|down) if [ "$1" = up ]; then up; else cluster down; fi ;;
  test) shift; tests "$@" ;;
  *) sed -n '2,12p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
