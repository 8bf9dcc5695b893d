#!/bin/bash
# The demonstration: a real Debian image in a microVM, on this host if its KVM can run one, else in the lab.
set -euo pipefail
cd "$(dirname "$0")/.."

# Shown as a user would type it; the second part runs where KVM does.
if [ "${1:-}" = --here ]; then
  image=$2
  show() { printf '\n$ %s\n' "$*"; PATH=$PWD/target/release:$PATH "$@"; }
  show uname -a
  show pillbug run --rm "$image" uname -a
  show pillbug run --rm "$image" sh -c '. /etc/os-release; echo "$PRETTY_NAME, $(nproc) CPU, $(ls /bin | wc -l) programs, processes:"; ls -d /proc/[0-9]*'
  show pillbug run --rm --timing "$image" true
  exit
fi

echo "building pillbug, its agent and the guest kernel (minutes the first time) ..."
cargo build --release --quiet
PILLBUG_KERNEL=$(kernel-config/build.sh guest)/vmlinux
echo "making a Debian image from packages (a minute the first time) ..."
image=$(tests/images/build.sh debian)/oci
export PILLBUG_KERNEL PILLBUG_ROOT=$PWD/target/demo
id=$(target/release/pillbug load --input "$image" | sed 's/.*: //')

if report=$(target/release/pillbug doctor); then
  echo "running it on this host:"
  exec tests/demo.sh --here "$id"
fi
printf 'this host cannot run microVMs itself:\n\n%s\n\n' "$report"
echo "so the same program runs in the lab, an emulated host with a real KVM; times are some fifty times longer:"
exec tests/lab/lab.sh -- tests/demo.sh --here "$id"
