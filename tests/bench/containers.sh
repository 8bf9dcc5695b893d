#!/bin/bash
# Running containers measured in the lab: what a command in one costs beside runc and crun, what many of them do to
# `ps` and take of memory, and how much freed memory comes back, and when.
#
#   containers.sh [RUNS [CONTAINERS]]     10 runs of each, 100 containers
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lab.bash

in_lab() { # runs, containers
  settle runc crun
  machine=(--network none -m 64m)
  pillbug run -d --name bench "${machine[@]}" busybox sleep 1000000 > /dev/null
  echo "1 vCPU, 64 MiB each, guest kernel $(pillbug exec bench uname -r), one processor, host kernel $(uname -r)"
  mkdir -p bundle/rootfs
  pillbug export bench | tar -x -C bundle/rootfs
  runc spec -b bundle
  jq '.process.terminal = false | .process.args = ["sleep", "1000000"]' bundle/config.json > config && mv config bundle/config.json
  for runtime in runc crun; do
    $runtime run -d -b bundle $runtime < /dev/null > /dev/null 2>&1
  done
  printf '\nexec of true in a running container, from the command to its end\n'
  for ((run = -2; run < $1; run++)); do
    # The first ones fill caches.
    { timed pillbug pillbug exec bench true
      timed runc runc exec runc true
      timed crun crun exec crun true
    } | unless_warming $run
  done | summary
  for runtime in runc crun; do
    $runtime delete -f $runtime
  done
  pillbug rm -f bench > /dev/null

  printf '\nfreed memory: a file of 512 MiB in the guest is removed\n'
  pillbug run -d --name bench --network none -m 768m --shm-size 600m busybox sleep 1000000 > /dev/null
  vmm=$(pillbug inspect -f '{{.State.Pid}}' bench)
  pss() { awk '/^Pss:/ { print $2 }' "/proc/$vmm/smaps_rollup"; }
  idle=$(pss)
  pillbug exec bench dd if=/dev/zero of=/dev/shm/file bs=1M count=512 2> /dev/null
  full=$(pss)
  pillbug exec bench rm /dev/shm/file
  removed=${EPOCHREALTIME/./} before=$full
  for second in 1 2 3 4 5 10 20; do
    until [ $((${EPOCHREALTIME/./} - removed)) -ge $((second * 1000000)) ]; do sleep 0.05; done
    echo "after $second s: $(((full - $(pss)) * 100 / (512 * 1024))) % of 512 MiB back"
  done
  echo "idle $idle KiB, full $full KiB, at the end $(pss) KiB"
  pillbug rm -f bench > /dev/null

  printf '\n%d idle containers, paused but for who is asked something\n' "$2"
  before=$(available)
  for ((number = 0; number < $2; number++)); do
    pillbug run -d --name "idle$number" "${machine[@]}" busybox sleep 1000000 > /dev/null
    # Guests wake now and then when they idle: some sixty are all that one emulated processor gets done.
    pillbug pause "idle$number" > /dev/null
  done
  for ((run = -1; run < $1; run++)); do
    timed ps pillbug ps | unless_warming $run
  done | summary
  echo "each takes $(((before - $(available)) / $2)) KiB of the host's memory; to itself and without the guest's, on average:"
  private supervise
  private vmm-process
  answered=0
  for ((number = 0; number < $2; number++)); do
    pillbug unpause "idle$number" > /dev/null
    [ "$(pillbug exec "idle$number" echo here)" = here ] && answered=$((answered + 1))
    pillbug pause "idle$number" > /dev/null
  done
  echo "$answered of $2 answer exec"
}

available() {
  awk '/^MemAvailable/ { print $2 }' /proc/meminfo
}

# What processes of pillbug's have in pages that nobody else has, the guest's left out.
private() { # subcommand
  local pid
  for pid in $(pgrep -f "^pillbug $1 "); do
    awk '/^[0-9a-f]+-/ { guest = /memfd:|vmlinux/ } /^Private_/ && !guest { sum += $2 } END { print sum }' "/proc/$pid/smaps"
  done | awk -v name="$1" '{ sum += $1 } END { printf "  %-12s %d KiB\n", name, sum / NR }'
}

if [ "${1:-}" = --here ]; then
  in_lab "${@:2}"
  exit
fi
prepare containers busybox
printf '\ninstruction clock: 1 ms is a million instructions\n\n'
tests/lab/lab.sh -m 8192 -t 5400 -i -- tests/bench/containers.sh --here "${1:-10}" "${2:-100}"
