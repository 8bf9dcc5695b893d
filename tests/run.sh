#!/bin/bash
# Everything that CI runs: format and lint checks, the tests that run on any machine, and the built
# program end to end in the lab. The last line is the total.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
step() { echo "== $*"; }
status=0

step "lint"
make --no-print-directory lint || status=1

step "unit tests"
# One at a time: a program that one test starts would hold, until it runs, the locks of another.
$cargo test --workspace --no-fail-fast --quiet -- --test-threads=1 2>&1 | tee "$work/unit.log" || status=1

step "the program, two kernels and three images"
$cargo build --release --quiet
e2e=$($cargo test --release --test e2e --no-run --message-format=json 2> "$work/build.log" |
  jq -r 'select(.target.name? == "e2e" and .executable != null).executable') || { cat "$work/build.log"; exit 1; }
kernel=$(kernel-config/build.sh guest)
host_kernel=$(kernel-config/build.sh lab-host tests/lab/host.config)

# The store that the tests in the lab find: filling it there would take an emulated processor long.
export PILLBUG_ROOT=$PWD/target/e2e/root PILLBUG_TEST_IMAGES=$PWD/target/e2e/images PILLBUG_KERNEL=$kernel/vmlinux
rm -rf target/e2e
mkdir -p "$PILLBUG_TEST_IMAGES"
for image in busybox debian python; do
  folder=$(tests/images/build.sh $image)
  ln -s "$folder" "$PILLBUG_TEST_IMAGES/$image"
  target/release/pillbug load --quiet -i "$folder/oci"
done

# A first run makes folders that stay; tests look at what others leave.
target/release/pillbug ps > /dev/null

# One lab has one processor: two of them, each with every other test.
step "end to end, in two labs"
"$e2e" --list --format terse | sed -n 's/: test$//p' > "$work/tests"
lab() {
  tests/lab/lab.sh -m 5120 -t 2400 -k "$host_kernel/vmlinux" -- \
    "$e2e" --exact --test-threads=1 $(awk "NR % 2 == $1" "$work/tests") > "$work/lab$1.log" 2>&1
}
lab 0 & first=$!
lab 1 & second=$!
for job in "$first:0" "$second:1"; do
  wait "${job%:*}" || status=1
  cat "$work/lab${job#*:}.log"
done

# A test program that runs nothing shows nothing.
if grep -h '^test result:' "$work"/*.log | grep -q ' 0 passed; 0 failed; 0 ignored;'; then
  echo "a test program ran no test" >&2
  status=1
fi
total=$(grep -h '^test result:' "$work"/*.log | awk '{ passed += $4; failed += $6 } END { printf "%d passed, %d failed", passed, failed }')
ended=$(grep -c '^test result:' "$work"/lab*.log | awk -F: '{ n += $2 } END { print n }')
[ "$ended" = 2 ] || { echo "a lab ended before its tests did" >&2; status=1; }
echo "$total"
exit $status
