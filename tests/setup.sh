#!/usr/bin/env bash
# Installs what a make target lacks, and nothing else: quiet when there is nothing to do.
#   tests/setup.sh build      a C compiler and linker, the pinned Rust toolchain
#   tests/setup.sh check      cargo-deny, shellcheck and typos
#   tests/setup.sh fuzz       cargo-fuzz, and a C++ compiler for libFuzzer
#   tests/setup.sh disk       what makes ext4 and xfs in a file, for tests and measurements on a disk
#   tests/setup.sh play       newuidmap, so that the tests play pods with subordinate ids as well
#   tests/setup.sh guest      qemu, a policy compiler and what packs the guest of the SELinux rules
#   tests/setup.sh go         nothing, but says what to do without Go (csi-sanity and the cluster are built with it)
# Tools that are built go to SEAMOUNT_CACHE (default ~/.cache/seamount), so that a second checkout finds them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${SEAMOUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seamount}
deny_version=0.20.2
fuzz_version=0.13.2
typos_version=1.52.0

missing=()
need() { # PACKAGE COMMAND…: the package is missing if the command fails
  local package=$1; shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || { echo "setup: please install: ${missing[*]}" >&2; exit 1; }
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: needs root, or sudo, to install: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  missing=()
}

build() {
  need gcc command -v cc
  need libc6-dev test -e /usr/include/stdlib.h
  install_missing
  command -v cargo >/dev/null || { echo "setup: cargo is missing; install Rust with https://rustup.rs" >&2; exit 1; }
  # rustup reads rust-toolchain.toml; a first call may have to fetch the toolchain.
  local want have
  want=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  if ! have=$(cargo --version 2>/dev/null) && command -v rustup >/dev/null; then
    rustup toolchain install --no-self-update
    have=$(cargo --version)
  fi
  case $have in
    "cargo $want"*) ;;
    *) echo "setup: this project is built with Rust $want, and cargo here is: $have; install https://rustup.rs" >&2; exit 1 ;;
  esac
}

check() {
  need shellcheck command -v shellcheck
  need python3 command -v python3
  need python3-venv python3 -c 'import ensurepip, venv'
  install_missing
  local home=$cache/cargo-deny-$deny_version
  if [ ! -x "$home/bin/cargo-deny" ]; then
    echo "setup: building cargo-deny $deny_version (once, about two minutes)"
    cargo install --quiet --locked cargo-deny --version $deny_version --root "$home"
  fi
  mkdir -p target
  ln -sfn "$home/bin" target/tools
  # The same program as on crates.io, in seconds instead of minutes.
  home=$cache/typos-$typos_version
  if [ ! -x "$home/bin/typos" ]; then
    echo "setup: installing typos $typos_version"
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: typos==$typos_version
  fi
  ln -sfn "$home/bin" target/tools-words
}

fuzz() {
  need g++ command -v c++
  install_missing
  local home=$cache/cargo-fuzz-$fuzz_version
  if [ ! -x "$home/bin/cargo-fuzz" ]; then
    echo "setup: building cargo-fuzz $fuzz_version (once, about two minutes)"
    cargo install --quiet --locked cargo-fuzz --version $fuzz_version --root "$home"
  fi
  mkdir -p target
  ln -sfn "$home/bin" target/tools-fuzz
}

disk() {
  PATH=$PATH:/usr/sbin:/sbin need e2fsprogs command -v mkfs.ext4
  PATH=$PATH:/usr/sbin:/sbin need xfsprogs command -v mkfs.xfs
  install_missing
}

play() {
  need uidmap command -v newuidmap
  install_missing
}

guest() {
  need qemu-system-x86 command -v qemu-system-x86_64
  need secilc command -v secilc
  need cpio command -v cpio
  need xz-utils command -v xz
  PATH=$PATH:/usr/sbin:/sbin need e2fsprogs command -v mkfs.ext4
  install_missing
}

go() {
  command -v go >/dev/null || { echo "setup: go is missing; install it from https://go.dev/dl (1.21 or newer fetches the version it needs)" >&2; exit 1; }
}

for what in "$@"; do
  case $what in
    build | check | fuzz | disk | play | guest | go) "$what" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
