#!/bin/bash
# Starts measured in the lab: on the instruction clock, for figures that repeat, and on the wall clock,
# for ratios between runtimes. What is measured lies in RAM.
#
#   run.sh [RUNS]     10 runs of each runtime
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-10}

. tests/bench/lab.bash

if [ "${1:-}" = --here ]; then
  settle runc crun umoci
  exec pillbug bench start --runs "$2" busybox
fi

prepare start busybox
printf '\ninstruction clock: 1 ms is a million instructions\n\n'
tests/lab/lab.sh -m 3072 -i -- tests/bench/run.sh --here "$runs"
printf '\nwall clock\n\n'
tests/lab/lab.sh -m 3072 -- tests/bench/run.sh --here "$runs"
