#!/bin/bash
# Shared folders measured in the lab, on the instruction clock: a tree of small files as a package manager makes it, and one large file, in a
# folder of the host; from a container of pillbug's, and from a microvm of QEMU's whose folder virtiofsd serves. In turn,
# on the same kernel.
#
#   volumes.sh [RUNS [FILES]]     3 runs of each, 2,000 files
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lab.bash

# What is done in the guest, in /data. Seconds of the guest's own clock.
work='
now() { read -r now rest < /proc/uptime; }
did() { before=$now; now; echo "TIME $1 $before $now"; }
cd /data; now
tar -xf tree.tar; did "unpack"
find tree -type f | xargs cat > /dev/null; did "read"
find tree -name "*.js" | wc -l > /dev/null; did "find"
rm -r tree; did "remove"
dd if=/dev/zero of=large bs=1M count=64 conv=fsync 2> /dev/null; did "write-64M"
dd if=large of=/dev/null bs=1M 2> /dev/null; did "read-64M"
rm large; cd /'

in_lab() { # runs, files
  settle
  # As many files a folder, and as large, as packages have.
  mkdir -p /run/data /run/made/tree
  for ((number = 0; number < $2; number++)); do
    folder=/run/made/tree/package$((number / 20))/lib
    [ -d $folder ] || mkdir -p $folder
    head -c $(((number * 7919) % 8000)) /dev/zero > $folder/file$number.js
  done
  tar -C /run/made -cf /run/data/tree.tar tree
  pillbug run -d --name bench --network none -m 256m -v /run/data:/data busybox sleep 1000000 > /dev/null
  echo "$2 files, 1 vCPU, 256 MiB, guest kernel $(pillbug exec bench uname -r), one processor, host kernel $(uname -r)"
  for ((run = -1; run < $1; run++)); do
    {
      pillbug exec bench sh -c "$work" | sed 's/^TIME /pillbug-/'
      # With its defaults: it keeps what it knows as long as nobody else can have changed it.
      env -u LD_LIBRARY_PATH /usr/lib/qemu/virtiofsd --socket-path=/run/virtiofsd.sock -o source=/run/data > /run/virtiofsd.log 2>&1 &
      until [ -S /run/virtiofsd.sock ]; do sleep 0.1; done
      microvm "mount -t virtiofs data /data; $work" -chardev socket,id=data,path=/run/virtiofsd.sock \
        -device vhost-user-fs-device,chardev=data,tag=data | sed -n 's/^TIME /qemu-/p'
      wait $!
      rm -f /run/virtiofsd.sock
    } | unless_warming $run
  done | awk '{ print $1, ($3 - $2) * 1000000 }' | sed 's/^\([a-z]*\)-\([^ ]*\)/\2-\1/' | summary
}

if [ "${1:-}" = --here ]; then
  in_lab "${@:2}"
  exit
fi
prepare volumes busybox
tests/lab/lab.sh -m 3072 -t 3000 -i -- tests/bench/volumes.sh --here "${1:-3}" "${2:-2000}"
