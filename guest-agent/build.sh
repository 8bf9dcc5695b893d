#!/usr/bin/env bash
# Builds the guest agent as a static binary and leaves it at TARGET_DIR/agent/guest-agent.
#
#   guest-agent/build.sh [TARGET_DIR]     default: target/ of the workspace
#
# The agent is linked against musl: a tenth of the size that glibc makes it. Where the standard
# library for that target comes from, first that works:
#
#   1. the active toolchain has it;
#   2. rustup adds it;
#   3. it is built from source, with a compiler from the distribution that brings that source
#      (Debian: rustc-web rust-web-src libstd-rust-web-dev musl-tools);
#   4. glibc, linked statically: larger, otherwise the same.
#
# The choice is kept beside the result, so a further run only asks cargo whether anything changed.
# Safe inside a cargo build: nothing of the outer build's settings reaches the inner one.
set -euo pipefail

readonly musl=x86_64-unknown-linux-musl gnu=x86_64-unknown-linux-gnu
workspace=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$workspace/target}/agent
cargo=${CARGO:-cargo}
rustc=${RUSTC:-rustc}

# What an outer cargo, clippy or rustdoc sets for its own build. Settings of the user's own, such as
# registries and proxies, stay.
for variable in $(compgen -e); do
  case $variable in
    CARGO_HOME | CARGO_HTTP_* | CARGO_NET_* | CARGO_REGISTR* | CARGO_SOURCE_*) ;;
    CARGO | CARGO_* | RUSTC | RUSTC_* | RUSTDOC* | RUSTFLAGS | CLIPPY_* | MAKEFLAGS | MFLAGS) unset "$variable" ;;
    TARGET | HOST | OUT_DIR | PROFILE | OPT_LEVEL | DEBUG | NUM_JOBS) unset "$variable" ;;
  esac
done

has_musl() { [ -d "$("$rustc" --print sysroot)/lib/rustlib/$musl/lib" ]; }

# A compiler of the distribution with the source of its own standard library.
source_rustc() {
  local sysroot
  [ -x /usr/bin/rustc ] && command -v musl-gcc >/dev/null || return 1
  sysroot=$(/usr/bin/rustc --print sysroot)
  [ -f "$sysroot/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

choose() {
  local kept=
  [ -f "$out/method" ] && kept=$(<"$out/method")
  if has_musl; then
    echo musl
  elif [ "$kept" = source ] && source_rustc || [ "$kept" = gnu ]; then
    echo "$kept"
  elif command -v rustup >/dev/null && timeout 30 rustup target add $musl >/dev/null 2>&1 && has_musl; then
    echo musl
  elif source_rustc; then
    echo source
  else
    echo gnu
  fi
}

build() { # TARGET RUSTFLAGS [CARGO_ARGUMENT...]
  local target=$1 flags=$2
  shift 2
  # A fixed load address: nothing to relocate at every start.
  RUSTFLAGS="-Ctarget-feature=+crt-static -Crelocation-model=static $flags" \
    "$cargo" build --manifest-path "$workspace/Cargo.toml" --package guest-agent --locked --quiet \
    --profile agent --target "$target" --target-dir "$out" "$@"
}

# The unwinder that std links against, as musl's own toolchain would have it: GCC's, less the one
# glibc symbol it looks for.
unwinder() {
  [ -f "$out/unwind/libunwind.a" ] && return
  mkdir -p "$out/unwind.new"
  echo 'int _dl_find_object(void *address, void *result) { return -1; }' |
    musl-gcc -Os -x c -c - -o "$out/unwind.new/stub.o"
  cp "$(gcc -print-file-name=libgcc_eh.a)" "$out/unwind.new/libunwind.a"
  ar r "$out/unwind.new/libunwind.a" "$out/unwind.new/stub.o" 2>/dev/null
  rm -rf "$out/unwind"
  mv "$out/unwind.new" "$out/unwind"
}

mkdir -p "$out"
method=$(choose)
case $method in
  musl)
    target=$musl
    build $musl ''
    ;;
  source)
    target=$musl
    unwinder
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
    build $musl "-Clink-self-contained=no -Lnative=$out/unwind" \
      -Zbuild-std=std,panic_abort -Zbuild-std-features=
    ;;
  gnu)
    target=$gnu
    build $gnu ''
    ;;
esac
echo "$method" >"$out/method"

built=$out/$target/agent/guest-agent
if ! cmp -s "$built" "$out/guest-agent"; then
  cp "$built" "$out/guest-agent.new"
  mv "$out/guest-agent.new" "$out/guest-agent"
fi
