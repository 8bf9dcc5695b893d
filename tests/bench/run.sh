#!/bin/bash
# Starts measured in the lab: on the instruction clock, for figures that repeat, and on the wall clock,
# for ratios between runtimes. What is measured lies in RAM.
#
#   run.sh [RUNS]     10 runs of each runtime
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-10}

if [ "${1:-}" = --here ]; then
  here=/run/bench
  mkdir -p $here/lib
  cp target/release/pillbug "$PILLBUG_KERNEL" $here
  cp -r "$PILLBUG_ROOT" $here/root
  # Programs of peers too, with their libraries, so that no start waits for the shared file system.
  for program in $here/pillbug $(command -v runc crun umoci || true); do
    cp -n "$program" $here
    ldd "$program" 2>/dev/null | grep -o '/[^ ]*' | xargs -r cp -nLt $here/lib
  done
  export PATH=$here:$PATH LD_LIBRARY_PATH=$here/lib TMPDIR=/run PILLBUG_ROOT=$here/root PILLBUG_KERNEL=$here/vmlinux
  cd $here
  exec pillbug bench start --runs "$2" "$3"
fi

cargo build --release --quiet
PILLBUG_KERNEL=$(kernel-config/build.sh guest)/vmlinux
image=$(tests/images/build.sh busybox)/oci
export PILLBUG_KERNEL PILLBUG_ROOT=$PWD/target/bench
id=$(target/release/pillbug load --input "$image" | sed 's/.*: //')
echo "commit $(git rev-parse --short HEAD), one processor"
printf '\ninstruction clock: 1 ms is a million instructions\n\n'
tests/lab/lab.sh -m 3072 -i -- tests/bench/run.sh --here "$runs" "$id"
printf '\nwall clock\n\n'
tests/lab/lab.sh -m 3072 -- tests/bench/run.sh --here "$runs" "$id"
