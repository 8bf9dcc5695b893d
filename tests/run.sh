#!/bin/bash
# Everything that CI runs: format and lint checks, the tests that run on any machine, and the built
# program end to end in the lab. The last line is the total.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
step() { echo "== $*, after $SECONDS s"; }
status=0

step "lint"
make --no-print-directory lint || status=1

step "unit tests"
# One at a time: a program that one test starts would hold, until it runs, the locks of another.
$cargo test --workspace --no-fail-fast --quiet -- --test-threads=1 2>&1 | tee "$work/unit.log" || status=1

step "the program, two kernels and real images"
$cargo build --release --quiet
e2e=$($cargo test --release --test e2e --no-run --message-format=json 2> "$work/build.log" |
  jq -r 'select(.target.name? == "e2e" and .executable != null).executable') || { cat "$work/build.log"; exit 1; }
kernel=$(kernel-config/build.sh guest)
host_kernel=$(kernel-config/build.sh lab-host tests/lab/host.config)

# The store that the tests in the lab find: filling it there would take an emulated processor long.
export PILLBUG_ROOT=$PWD/target/e2e/root PILLBUG_TEST_IMAGES=$PWD/target/e2e/images PILLBUG_KERNEL=$kernel/vmlinux
rm -rf target/e2e
mkdir -p "$PILLBUG_TEST_IMAGES"
for image in busybox debian python nginx redis postgresql pgready openjdk; do
  folder=$(tests/images/build.sh $image)
  ln -s "$folder" "$PILLBUG_TEST_IMAGES/$image"
  target/release/pillbug load --quiet -i "$folder/oci"
done

# A first run makes folders that stay; tests look at what others leave.
target/release/pillbug ps > /dev/null

# One lab has one processor: two of them, each with every other test.
step "end to end, in two labs"
"$e2e" --list --format terse | sed -n 's/: test$//p' > "$work/tests"
lab() { # log, test...
  tests/lab/lab.sh -m 6144 -t 3000 -k "$host_kernel/vmlinux" -- bash -c "$in_lab" - \
    "$e2e" --exact --test-threads=1 "${@:2}" > "$work/$1.log" 2>&1
}
# What tests write is in the lab's memory: where that runs out a machine is killed, and its test fails for no reason of its own.
in_lab='"$@"
status=$?
free -m
dmesg | grep "Out of memory" || true
exit $status'
lab lab0 $(awk 'NR % 2 == 0' "$work/tests") & first=$!
lab lab1 $(awk 'NR % 2 == 1' "$work/tests") & second=$!
ended=0
for job in "$first:lab0" "$second:lab1"; do
  wait "${job%:*}" || ended=1
  cat "$work/${job#*:}.log"
done
[ "$(grep -l '^test result:' "$work"/lab?.log | wc -l)" = 2 ] || { echo "a lab ended before its tests did" >&2; status=1; }

# The emulated processor is not quite a processor: about one start in several hundred goes wrong on it
# without a reason in the program. So a few tests that fail get a second try, and the report says so.
sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$work"/lab?.log > "$work/failed"
again=0
if [ "$ended" = 1 ] && [ -s "$work/failed" ] && [ "$(wc -l < "$work/failed")" -le 3 ]; then
  step "again, what failed"
  if lab again $(cat "$work/failed"); then
    ended=0
    again=$(wc -l < "$work/failed")
  fi
  cat "$work/again.log"
fi
[ "$ended" = 0 ] || status=1

step "done"
totals() { awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$@"; }
read -r passed failed < <(totals "$work/unit.log" "$work"/lab?.log)
[ "$again" = 0 ] || echo "passed at the second try only: $(paste -sd ' ' "$work/failed")"
echo "$((passed + again)) passed, $((failed - again)) failed"
exit $status
