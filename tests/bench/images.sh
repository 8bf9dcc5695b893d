#!/bin/bash
# Images measured: what they take on disk, how long a pull takes against other tools, and whether a start
# grows with the number of files.
#
#   images.sh [RUNS]     10 runs of each
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-10}

. tests/bench/lab.bash

# In the lab: starts of two images in turn, from the command to its end.
if [ "${1:-}" = --here ]; then
  settle
  for ((run = -1; run < $2; run++)); do
    for image in busybox smallfiles; do
      # The first run of each fills the caches.
      timed $image pillbug run --rm $image true | unless_warming $run
    done
  done | summary | awk '
    { print; p50[$1] = $3 }
    END { printf "smallfiles / busybox %.2f\n", p50["smallfiles"] / p50["busybox"] }'
  exit
fi

cargo build --release --quiet
PILLBUG_KERNEL=$(kernel-config/build.sh guest)/vmlinux
export PILLBUG_KERNEL
pillbug=$PWD/target/release/pillbug
work=$(mktemp -d -p "${BENCH_FOLDER:-/dev/shm}")
chmod 700 "$work"
registry=
trap '[ -z "$registry" ] || kill $registry; rm -rf "$work"' EXIT
layout() { echo "$(tests/images/build.sh "$1")/oci"; }
used() { du -sB1 "$@" | awk '{ sum += $1 } END { print sum }'; }
echo "commit $(git rev-parse --short HEAD), $(nproc) processors, everything in $(df --output=fstype "$work" | tail -n1)"

printf '\nwhat images take on disk\n\n'
printf '%-11s %10s %10s %6s %10s\n' image tar made ratio blobs
for image in busybox smallfiles debian python nginx redis postgresql openjdk; do
  folder=$(layout $image)
  export PILLBUG_ROOT=$work/$image
  $pillbug load -q -i "$folder"
  tar=$(for blob in $(jq -r '.layers[].digest' "$folder/blobs/$(jq -r '.manifests[0].digest' "$folder/index.json" | tr : /)"); do
    gzip -dc "$folder/blobs/${blob/:/\/}" | wc -c
  done | awk '{ sum += $1 } END { print sum }')
  # What a virtual machine is given, and the index that it was made from.
  made=$(used "$PILLBUG_ROOT"/images/{layers,rootfs})
  printf '%-11s %10d %10d %6.3f %10d\n' $image "$tar" "$made" "$(bc <<< "scale=4; $made / $tar")" "$(used "$PILLBUG_ROOT/images/blobs")"
done
export PILLBUG_ROOT=$work/shared
$pillbug load -q -i "$(layout python)"
python=$(used "$PILLBUG_ROOT/images")
$pillbug load -q -i "$(layout nginx)"
both=$(used "$PILLBUG_ROOT/images")
printf '\npython alone %d bytes, nginx alone %d, both in one store %d\n' "$python" "$(used "$work/nginx/images")" "$both"
rm -rf "$work"/*

printf '\npull of openjdk, %d bytes of tar, from a registry on this machine, in turn\n\n' "$(stat -c %s "$(dirname "$(layout openjdk)")/docker.tar")"
cat > "$work/registry.yml" <<END
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:0}
END
exec {log}< <(exec docker-registry serve "$work/registry.yml" 2>&1)
registry=$!
while read -r line <&$log; do
  [[ $line =~ listening\ on\ ([0-9.:]+) ]] && break
done
address=${BASH_REMATCH[1]}
cat <&$log > /dev/null &
skopeo copy -q --dest-tls-verify=false "oci:$(layout openjdk):openjdk:latest" "docker://$address/openjdk:latest"
measure() { # name, command...
  /usr/bin/time -a -o "$work/times" -f "$1 %e %U %S %M" "${@:2}" > /dev/null 2>> "$work/errors"
}
for ((run = 0; run < runs; run++)); do
  PILLBUG_ROOT=$work/root measure pillbug $pillbug pull -q "$address/openjdk:latest"
  measure skopeo skopeo copy -q --src-tls-verify=false "docker://$address/openjdk:latest" "oci:$work/layout:openjdk"
  measure umoci umoci unpack --image "$work/layout:openjdk" "$work/bundle"
  rm -rf "$work/root" "$work/layout" "$work/bundle"
done
# One after the other, skopeo and umoci make what pillbug makes at once.
paste -d' ' <(grep '^skopeo' "$work/times") <(grep '^umoci' "$work/times") |
  awk '{ print "both", $2 + $7, $3 + $8, $4 + $9, ($5 > $10 ? $5 : $10) }' >> "$work/times"
median() { # name, field
  awk -v name="$1" -v field="$2" '$1 == name { print field == 3 ? $3 + $4 : $field }' "$work/times" | sort -n |
    awk '{ values[NR] = $1 } END { print values[int((NR + 1) / 2)] }'
}
for name in pillbug skopeo umoci both; do
  printf '%-8s %6.2f s   %6.2f s of processor   %7d KiB of memory\n' $name "$(median $name 2)" "$(median $name 3)" "$(median $name 5)"
done
echo "pillbug / both $(bc <<< "scale=2; $(median pillbug 2) / $(median both 2)"), $runs runs each"

prepare start-of-many busybox smallfiles
printf '\nstart of an image of 60,000 files against busybox, instruction clock\n\n'
tests/lab/lab.sh -m 3072 -i -- tests/bench/images.sh --here "$runs"
printf '\nwall clock\n\n'
tests/lab/lab.sh -m 3072 -- tests/bench/images.sh --here "$runs"
