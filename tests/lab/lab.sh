#!/bin/bash
# The lab: a KVM host for machines that have none.
#
#   lab.sh [OPTION...] [--] COMMAND [ARG...]   runs COMMAND on it
#   lab.sh [OPTION...]                         a shell on it
#
# A small Linux runs under QEMU's software CPU, whose nested AMD SVM makes its own /dev/kvm real.
# COMMAND runs as root with the caller's folder, environment and file system; what it writes goes to
# RAM and is gone afterwards, but for -w folders. Any number of labs may run at once.
#
#   -m MIB      memory (2048)
#   -t SECONDS  give up after this long (600; a shell has no limit)
#   -w FOLDER   let writes below FOLDER through
#   -i          instruction clock: one nanosecond an instruction, so that figures repeat whatever else
#               the machine does. Only for work that waits for nothing outside: copy to /run (RAM)
#               what is measured first, since a wait for the shared file system runs the clock on.
#   -k KERNEL   the lab host's kernel (built where absent)
#
# Exit status: COMMAND's; 124 past -t; 125 when the lab itself failed.
set -euo pipefail

fail() { echo "lab: $*" >&2; exit 125; }
usage() { sed -n '2,20s/^# \{0,1\}//p' "$0" >&2; exit 125; }

memory=2048 limit=600 folder='' kernel='' clock=()
# The emulated time stamp counter runs at the host's rate, and the lab host is told so and not to doubt
# it: on a busy machine its own calibration fails, and its KVM then spins in kvm_guest_time_update.
tsc_khz=$(awk '/^bogomips/ { printf "%d", $3 * 500; exit }' /proc/cpuinfo)
while getopts m:t:w:ik: option; do
  case $option in
    m) memory=$OPTARG ;;
    t) limit=$OPTARG ;;
    w) folder=$(realpath -e "$OPTARG") || fail "-w $OPTARG: no such folder" ;;
    i) clock=(-icount shift=0,sleep=off) tsc_khz=1000000 ;;
    k) kernel=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))

[ $# -gt 0 ] || [ -t 0 -a -t 1 ] || fail "a shell needs a terminal"
for tool in qemu-system-x86_64 busybox cpio setpriv; do
  command -v $tool >/dev/null || fail "$tool is missing: run 'make setup'"
done
here=$(cd "$(dirname "$0")" && pwd)
[ -n "$kernel" ] || kernel=$("$here/../../kernel-config/build.sh" lab-host "$here/host.config")/vmlinux
[ -r "$kernel" ] || fail "no kernel at $kernel"

job=$(mktemp -d)
vm=
saved=
cleanup() {
  [ -z "$vm" ] || kill "$vm" 2>/dev/null || true
  [ -z "$saved" ] || stty "$saved"
  rm -rf "$job"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -p "$job"/root/{bin,dev,proc,sys,lower,upper,merged,job} "$job/share"
cp "$(command -v busybox)" "$job/root/bin/busybox"
install "$here/init" "$job/root/init"
(cd "$job/root" && find . | cpio -o -H newc --quiet) > "$job/initramfs"

export -p > "$job/share/environment"
[ -z "$folder" ] || echo "$folder" > "$job/share/write"
terminal=()
{
  printf 'cd %q\n' "$PWD"
  if [ $# -gt 0 ]; then
    printf 'exec'; printf ' %q' "$@"; echo
  else
    printf 'stty rows %d cols %d\n' $(stty size)
    echo 'echo "This is the lab: writes go to RAM and are gone when the shell ends."; exec bash -i'
  fi
} > "$job/share/command"
if [ $# = 0 ]; then
  limit=0
  touch "$job/share/terminal"
  saved=$(stty -g)
  terminal+=(-chardev stdio,id=tty,signal=off -device virtio-serial-device,max_ports=1 -device virtconsole,chardev=tty)
fi

shares=()
share() { # tag, folder, more
  shares+=(-fsdev "local,id=$1,path=${2//,/,,},security_model=none,multidevs=remap$3" -device "virtio-9p-device,fsdev=$1,mount_tag=$1")
}
share root / ,readonly=on
share job "$job/share" ''
[ -z "$folder" ] || share write "$folder" ''

# QEMU writes through `cat`, since it would truncate a file. One processor: with two, the lab host
# crashed once in three runs under QEMU 7.2. Code of each guest is translated apart: in the 1 GiB that
# QEMU takes for that, some sixty guests make it begin all over again and again. The outer setpriv ends
# QEMU with this script, however that ends.
exec 3> >(cat); out=$!
exec 4> >(cat >&2); err=$!
setpriv --pdeathsig TERM timeout --foreground "$limit" setpriv --pdeathsig KILL \
  qemu-system-x86_64 -M microvm,acpi=off,x-option-roms=off,isa-serial=on \
  -accel tcg,tb-size=2047 "${clock[@]}" -cpu max -smp 1 -m "$memory" -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$kernel" -initrd "$job/initramfs" \
  -append "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on tsc=reliable no_timer_check tsc_early_khz=$tsc_khz" \
  -serial "file:$job/console" "${shares[@]}" -device virtio-serial-device,id=streams \
  -chardev file,id=out,path=/dev/fd/3 -device virtserialport,bus=streams.0,nr=1,chardev=out \
  -chardev file,id=err,path=/dev/fd/4 -device virtserialport,bus=streams.0,nr=2,chardev=err \
  "${terminal[@]}" <&0 &
vm=$!
status=0
wait "$vm" || status=$?
vm=
exec 3>&- 4>&-
wait "$out" "$err"

if [ "$status" = 124 ]; then
  echo "lab: gave up after $limit s" >&2
  exit 124
fi
if [ ! -s "$job/share/exit" ]; then
  cat "$job/console" >&2
  fail "the lab host died before the command ended"
fi
exit "$(cat "$job/share/exit")"
