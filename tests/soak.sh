#!/bin/bash
# Services used, stopped and killed at random in the lab for so many minutes, and then nothing left of them: the end-to-end
# test of case 70, made longer.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-60}
cargo=${CARGO:-cargo}

$cargo build --release --quiet
e2e=$($cargo test --release --test e2e --no-run --message-format=json 2> /dev/null |
  jq -r 'select(.target.name? == "e2e" and .executable != null).executable')
kernel=$(kernel-config/build.sh guest)
host_kernel=$(kernel-config/build.sh lab-host tests/lab/host.config)
export PILLBUG_ROOT=$PWD/target/soak/root PILLBUG_KERNEL=$kernel/vmlinux SOAK_MINUTES=$minutes
rm -rf target/soak
mkdir -p target/soak
for image in busybox nginx redis; do
  target/release/pillbug load --quiet -i "$(tests/images/build.sh $image)/oci"
done

# What runs in the lab is not to change meanwhile.
cp target/release/pillbug "$e2e" target/soak/
export PILLBUG_PROGRAM=$PWD/target/soak/pillbug
exec tests/lab/lab.sh -m 4096 -t $((minutes * 60 + 1800)) -k "$host_kernel/vmlinux" -- \
  "target/soak/$(basename "$e2e")" --exact --nocapture soak::a70_what_is_killed_at_random_leaves_nothing_behind
