#!/bin/bash
# Networks measured in the lab, on the instruction clock: TCP streams and echo requests beside a microvm of QEMU's on
# a TAP device and a bridge of the same kind, without vhost-net and with it, with the same guest kernel; requests to a published port; and
# what the default network costs a start.
#
#   network.sh [RUNS [MIB]]     10 runs of each, streams of 64 MiB
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lab.bash

# In the guest, whose host is $host: streams of $mib MiB both ways, and echo requests.
work='
for run in $(seq $runs); do
  dd if=/dev/zero bs=64k count=$((mib * 16)) 2> /dev/null | nc $host 9001
  nc $host 9002 < /dev/null > /dev/null
done
ping -c $((runs + 2)) -i 0.1 $host | sed -n "s/.*seq=\([0-9]*\) .*time=\([0-9.]*\) ms/PING \1 \2/p"'

# Lines of `name elapsed processor MiB` as rates.
rates() {
  sort -k1,1 -k2,2n | awk '
    { elapsed[$1, ++count[$1]] = $2; cpu[$1, count[$1]] = $3; mib[$1] = $4 }
    END {
      for (name in count) {
        middle = int((count[name] + 1) / 2)
        printf "%-18s %9.1f MiB a second   %9.1f MiB a second of its process   median of %d\n",
          name, mib[name] * 1e6 / elapsed[name, middle], mib[name] * 1e6 / (cpu[name, middle] + 1), count[name]
      }
    }' | sort
}

# The first two echo requests fill caches.
pings() { awk -v name="$1" '$1 == "PING" && $2 > 1 { print name, $3 * 1000 }'; }

in_lab() { # runs, MiB
  local runs=$1 mib=$2 here=$PWD/tests/bench
  settle busybox nft
  cp "$here/stream.py" .
  pillbug run -d --name bench --add-host host:host-gateway busybox sleep 1000000 > /dev/null
  host=$(pillbug exec bench awk '$2 == "host" { print $1 }' /etc/hosts)
  echo "1 vCPU, 256 MiB, guest kernel $(pillbug exec bench uname -r), one processor, host kernel $(uname -r)"
  pillbug inspect -f '{{.State.Pid}}' bench > machine
  python3 stream.py "$host" pillbug machine "$mib" > pillbug.streams & peer=$!
  listening "$host:9002"
  pillbug exec bench sh -c "host=$host runs=$runs mib=$mib; $work" > pillbug.pings
  kill $peer
  pillbug rm -f bench > /dev/null

  ip link add bench type bridge
  ip addr add 10.99.0.1/24 dev bench
  ip link set bench up
  ip tuntap add tap-bench mode tap vnet_hdr
  ip link set tap-bench master bench up
  microvm_streams qemu off
  microvm_streams qemu-vhost on
  printf '\none TCP stream of %d MiB\n' "$mib"
  cat ./*.streams | rates
  printf '\necho request to the host\n'
  for peer in pillbug qemu qemu-vhost; do pings $peer < $peer.pings; done | summary

  printf '\none connection, one line there and back\n'
  pillbug run -d --name bench -p 127.0.0.1:8080:80 busybox nc -ll -p 80 -e cat > /dev/null 2>&1
  ./busybox nc -ll -p 8081 -e cat & peer=$!
  # A server that listens already.
  until line 8080 2> /dev/null && line 8081 2> /dev/null; do sleep 0.1; done
  for ((run = 0; run < runs; run++)); do
    timed published-port line 8080
    timed host-process line 8081
  done | summary
  kill $peer
  pillbug rm -f bench > /dev/null

  printf '\nstart of busybox true, from the command to its end, and to the first byte from its network\n'
  for ((run = -2; run < runs; run++)); do
    {
      # What the start before left behind is cleared away.
      sleep 1
      timed none pillbug run --rm --network none -m 256m busybox true
      sleep 1
      timed default pillbug run --rm -m 256m busybox true
      sleep 1
      timed first-byte first_byte
    } | unless_warming $run
  done | summary
}

microvm_streams() { # name, whether by vhost-net
  python3 stream.py 10.99.0.1 "$1" machine "$mib" > "$1.streams" & peer=$!
  listening 10.99.0.1:9002
  (until pidof qemu-system-x86_64 > machine; do sleep 0.1; done) &
  microvm "ip link set lo up; ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; host=10.99.0.1 runs=$runs mib=$mib; $work" \
    -netdev "tap,id=net,ifname=tap-bench,script=no,downscript=no,vhost=$2" -device virtio-net-device,netdev=net > "$1.pings"
  kill $peer
}

listening() { # address:port
  until ss -ltn | grep -q "$1 "; do sleep 0.1; done
}

line() { # port
  exec {connection}<> "/dev/tcp/127.0.0.1/$1"
  echo line >&$connection
  read -r answer <&$connection
  exec {connection}>&-
  [ "$answer" = line ]
}

# From the command to a byte of the guest's that arrives.
first_byte() {
  ./busybox nc -l -p 9003 > byte &
  pillbug run --rm -m 256m --add-host host:host-gateway busybox sh -c "echo x | nc $host 9003"
  wait $!
  [ -s byte ]
}

if [ "${1:-}" = --here ]; then
  in_lab "${@:2}"
  exit
fi
prepare network busybox
tests/lab/lab.sh -m 3072 -t 3000 -i -- tests/bench/network.sh --here "${1:-10}" "${2:-64}"
