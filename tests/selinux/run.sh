#!/usr/bin/env bash
# Boots a guest with SELinux enforcing and runs the rules in it: tests/selinux/run.sh PROGRAMS
# PROGRAMS: a directory with the static seamount-mounter, seamount-agent and seamount-selinux (`make selinux` builds
# them). Needs no root. SEAMOUNT_GUEST_ACCEL=tcg|kvm says how the guest is run; SEAMOUNT_GUEST_LIMIT=240 how many
# seconds it may take. The last line is "N passed, N failed, N skipped".
set -euo pipefail
programs=$(cd "${1:?usage: tests/selinux/run.sh PROGRAMS}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
cache=${SEAMOUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seamount}
limit=${SEAMOUNT_GUEST_LIMIT:-240}

if [ "$(uname -m)" != x86_64 ]; then
  echo "SKIPPED selinux: the guest is made for x86_64"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
PATH=$PATH:/usr/sbin:/sbin

# The kernel is Debian's, unpacked and not installed: the newest of these that has idmapped tmpfs (6.3) and noswap (6.4).
kernel() {
  local meta package version home
  for meta in linux-image-cloud-amd64 linux-image-6.12-cloud-amd64; do
    package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    version=${package#linux-image-}
    [ -n "$package" ] && [ "$(printf '%s\n' 6.4 "$version" | sort -V | head -n 1)" = 6.4 ] && break
    package=
  done
  if [ -z "$package" ]; then
    # Without apt's lists the one that was unpacked before will do.
    home=$(find "$cache" -maxdepth 1 -name 'guest-*' 2>/dev/null | sort -V | tail -n 1)
    [ -n "$home" ] || { echo "selinux: no package of a kernel from 6.4 on; run apt-get update, or use Debian 12 or newer" >&2; return 1; }
    echo "$home"
    return
  fi
  home=$cache/guest-$version
  if [ ! -e "$home/vmlinuz" ] || [ ! -e "$home/virtio_blk.ko" ]; then
    echo "selinux: fetching $package" >&2
    mkdir -p "$work/kernel"
    (cd "$work/kernel" && apt-get download "$package" >/dev/null 2>"$work/apt.log") || { cat "$work/apt.log" >&2; return 1; }
    dpkg-deb -x "$work"/kernel/*.deb "$work/kernel"
    mkdir -p "$home"
    xz -dc "$work"/kernel/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz >"$home/virtio_blk.ko"
    cp "$work"/kernel/boot/vmlinuz-* "$home/vmlinuz"
  fi
  echo "$home"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
home=$(kernel)

{
  for i in $(seq 0 1023); do echo "(category c$i)"; done
  echo "(categoryorder ($(seq -f 'c%g' -s ' ' 0 1023)))"
} >"$work/categories.cil"

root=$work/root
mkdir -p "$root"
for mcs in fedora refpolicy; do
  secilc -M true -c 33 -U allow -f /dev/null -o "$root/policy.$mcs" policy/base.cil "policy/mcs-$mcs.cil" "$work/categories.cil"
done
cp "$programs/seamount-mounter" "$programs/seamount-agent" "$home/virtio_blk.ko" "$root/"
cp "$programs/seamount-selinux" "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc --owner 0:0) | gzip -1 >"$work/initramfs"
truncate -s 256M "$work/disk"
mkfs.ext4 -q -F "$work/disk"

# Emulation is the default: hypervisors that offer /dev/kvm to their own guests do not all carry it through.
accel=${SEAMOUNT_GUEST_ACCEL:-tcg}
cpu=max
[ "$accel" != kvm ] || cpu=host
echo "guest: ${home##*/guest-}, accelerated by $accel"
begun=$SECONDS
# timeout(1) kills it, whatever hangs; as its child it also ends with this script.
timeout --kill-after=5 "$limit" qemu-system-x86_64 \
  -accel "$accel" -cpu "$cpu" -smp 2 -m 768 -nodefaults -no-user-config -display none -no-reboot -nic none \
  -serial stdio -kernel "$home/vmlinuz" -initrd "$work/initramfs" \
  -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" \
  -append "console=ttyS0 ${SEAMOUNT_GUEST_KERNEL:-loglevel=1} panic=-1 security=selinux selinux=1 enforcing=1" \
  </dev/null 2>"$work/qemu.log" | tr -d '\r' | tee "$work/out" | grep --line-buffered -v '^sum ' || true
[ ! -s "$work/qemu.log" ] || cat "$work/qemu.log" >&2

# What the guest did not say, it did not do.
read -r passed failed skipped sums < <(awk '/^sum /{p += $3; f += $4; s += $5; n++} END {print p + 0, f + 0, s + 0, n + 0}' "$work/out")
if [ "$sums" != 2 ] || ! grep -q '^guest done' "$work/out" || grep -q '^FAIL the guest itself' "$work/out"; then
  echo "FAIL the guest did not run both policies to their end within $limit s; its last words:"
  tail -n 20 "$work/out"
  failed=$((failed + 1))
fi
echo "the guest took $((SECONDS - begun)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
