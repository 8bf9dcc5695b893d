#!/bin/bash
# Installs what building and testing pillbug takes and this machine lacks, and says what. Quiet when
# nothing is missing. On a machine without apt it only lists it.
set -euo pipefail
cd "$(dirname "$0")/.."

# A command (or file) that must be there, and the Debian package that brings it.
needs=(
  gcc:gcc ld:binutils make:make flex:flex bison:bison bc:bc cpio:cpio xz:xz-utils zstd:zstd jq:jq
  /usr/include/libelf.h:libelf-dev                                   # the kernel build's objtool
  musl-gcc:musl-tools /usr/lib/rustlib/src/rust/library/std/src/lib.rs:rust-web-src rustc:rustc-web
  qemu-system-x86_64:qemu-system-x86 busybox:busybox-static          # the lab
  mmdebstrap:mmdebstrap umoci:umoci skopeo:skopeo setfattr:attr      # images
  docker-registry:docker-registry podman:podman openssl:openssl      # registries, and what reads and writes them
  strace:strace unshare:util-linux                                   # faults
  nft:nftables passt:passt ip:iproute2 tcpdump:tcpdump               # networks
  newuidmap:uidmap                                                   # users of ordinary users
  /usr/bin/time:time runc:runc crun:crun python3:python3 ss:iproute2 /usr/lib/qemu/virtiofsd:qemu-system-common   # benches
  mkfs.erofs:erofs-utils mke2fs:e2fsprogs setcap:libcap2-bin         # what is checked against
)
[ -n "${KERNEL_SOURCE:-}" ] || needs+=(/usr/src/linux-source-6.12.tar.xz:linux-source-6.12)

missing=()
for need in "${needs[@]}"; do
  # Administrators' commands are not on everybody's PATH.
  PATH=$PATH:/usr/sbin:/sbin command -v "${need%%:*}" >/dev/null || [ -e "${need%%:*}" ] || missing+=("${need##*:}")
done

# The Rust toolchain: any that is new enough, or Debian's newest.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ "$(printf '%s\n' "$wanted" "${found:-0}" | sort -V | head -n1)" != "$wanted" ]; then
  missing+=(cargo-web rustc-web rustfmt-web rust-web-clippy)
fi

[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "setup: this machine has no apt; please install what these Debian packages hold: ${missing[*]}" >&2
  echo "setup: (Rust must be $wanted or newer: https://rustup.rs)" >&2
  exit 1
fi
root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup: please install as root: apt-get install ${missing[*]}" >&2; exit 1; }
  root=(sudo)
fi
echo "setup: installing with apt: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { "${root[@]}" apt-get update -q && "${root[@]}" apt-get install -qy --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "setup: apt failed; the packages wanted are: ${missing[*]}" >&2
  exit 1
fi
