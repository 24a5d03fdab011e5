#!/usr/bin/env bash
# Plays examples/identity.yaml on this machine, shows what happens, and sums it up from what the programs really
# printed. Fails if one of the facts of the summary did not happen. `make demo` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

# The development profile: it builds in half the time, `make test` uses it too and has built it, and here nothing depends
# on speed.
[ -n "${SEAMOUNT_PREBUILT:-}" ] || cargo build --locked --bins -p seamount -p seamount-mounter -p seamount-agent -p seamount-examples
bin="$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug"

as_root=()
if [ "$(id -u)" != 0 ] && ! command -v newuidmap >/dev/null; then
  # The pods run as three users, so play needs more ids than ours.
  if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    echo "demo: the pods run as three users; that takes root, so seamount play runs under sudo" >&2
    as_root=(sudo)
  else
    echo "demo: the pods run as three users: run this as root, or install newuidmap (apt install uidmap)" >&2
    exit 1
  fi
fi

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
echo "Playing examples/identity.yaml. Identities live for 30 seconds only, so that you see them being replaced."
echo "(Lines that repeat are shown once.)"
echo
started=$SECONDS
declare -A shown
code=0
"${as_root[@]}" "$bin/seamount" play --svid-ttl 30s --timeout 110s examples/identity.yaml 2>&1 | tee "$log" \
  | while IFS= read -r line; do
      [ -n "${shown[x$line]-}" ] || printf '%s\n' "$line"
      shown[x$line]=1
    done || code=$?

id=spiffe://example.org/ns/demo/sa
missing=0
# need FACT TEXT: TEXT must have been found.
need() {
  if [ -z "$2" ] || [ "$2" = 0 ]; then
    echo "demo: MISSING: $1" >&2
    missing=1
  fi
}
# serials BEFORE AFTER: the different serial numbers between the two texts, in order of appearance.
serials() { sed -n "s|.*$1 (serial \([0-9a-f]*\))$2.*|\1|p" "$log" | awk '!seen[$0]++'; }

for name in server client stranger; do
  need "$name got its identity" "$(grep -c "I am $id/$name (serial " "$log" || true)"
done
conversations="$(grep -c "$id/server (serial [0-9a-f]*) says: welcome $id/client (serial " "$log" || true)"
need "client and server spoke" "$conversations"
refusals="$(grep -c "server: refused $id/stranger" "$log" || true)"
need "the server refused the stranger" "$refusals"
alert="$(sed -n "s|.*\[[^]]*stranger[^]]*\].*refused me: TLS alert \([A-Za-z]*\).*|\1|p" "$log" | head -n 1)"
need "the stranger saw the refusal" "$alert"
if grep -q "welcome $id/stranger" "$log"; then
  echo "demo: WRONG: the server welcomed the stranger" >&2
  missing=1
fi
mapfile -t client_serials < <(serials "welcome $id/client" "")
mapfile -t server_serials < <(serials "$id/server" " says")
need "the client's identity was replaced and the new one used" "${client_serials[1]-}"
need "the client ran through" "$(grep -c "my SVID was replaced: $conversations conversations, " "$log" || true)"
failures="$(sed -n "s|.*my SVID was replaced: [0-9]* conversations, \([0-9]*\) failures.*|\1|p" "$log" | head -n 1)"
if [ "$code" != 0 ]; then
  echo "demo: seamount play ended with $code" >&2
  missing=1
fi
if [ "$missing" != 0 ]; then
  echo "demo: FAILED: not everything happened that should have; the whole output is above" >&2
  exit 1
fi

cat <<EOF

------------------------------------------------------------------------------------------------------------------
What you have just seen, in $((SECONDS - started)) seconds, without a cluster and without a single secret in a file:

1. Three pods started. Each has a volume of the driver csi.spiffe.io with a socket in it, and asked that socket who
   it is. The answer depends on the pod's service account, not on anything that the pod says:
     server     $id/server
     client     $id/client
     stranger   $id/stranger

2. Client and server spoke mutual TLS, $conversations times. Each proved its identity, and checked the other's:
     $id/client  <->  $id/server

3. The stranger runs the same program, with a valid identity from the same authority. But the server allows only
   the client: it refused the stranger $refusals times (the stranger saw the TLS alert $alert).

4. Identities are short-lived and replaced while the programs run: no restart, no file, $failures failed conversations.
     client's serial   ${client_serials[0]}
           and then    ${client_serials[1]}
     server's serial   ${server_serials[0]}
           and then    ${server_serials[1]-(not replaced before the client was done)}

The same file runs on a cluster. Look at examples/identity.yaml, and go on with README.md.
------------------------------------------------------------------------------------------------------------------
EOF
