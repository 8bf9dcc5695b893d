#!/bin/bash
# Builds a kernel from the fragments in this folder and prints the folder that holds it.
#
#   build.sh guest                        the kernel that pillbug boots
#   build.sh NAME FRAGMENT...             another one: these fragments on top of ours
#
# The source is Debian's package linux-source-6.12, or KERNEL_SOURCE=<tarball> (any Linux 6.12.x).
# It must be known: listed in sources.sha256, or named by KERNEL_SOURCE_SHA256, or the file of an
# installed package with the checksum that the signed archive gave it.
#
# The result lies in ${XDG_CACHE_HOME:-~/.cache}/pillbug/kernel/NAME-KEY, where KEY stands for
# everything that shapes it: vmlinux (stripped), System.map, config and provenance. The guest's is
# also found as kernel/vmlinux, which is where pillbug looks.
set -euo pipefail

fail() { echo "kernel: $*" >&2; exit 1; }
[ $# -ge 1 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }

series=6.12
name=$1; shift
here=$(cd "$(dirname "$0")" && pwd)
fragments=("$here"/*.config "$@")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pillbug/kernel
package=/usr/src/linux-source-$series.tar.xz
tarball=${KERNEL_SOURCE:-$package}
[ -r "$tarball" ] || fail "no source at $tarball: run 'make setup', or set KERNEL_SOURCE to a linux-$series tarball"
for tool in gcc ld make flex bison bc strip; do
  command -v $tool >/dev/null || fail "$tool is missing: run 'make setup'"
done

source_sha=$(sha256sum < "$tarball" | cut -d' ' -f1)
compiler="$(gcc --version | head -n1); $(ld --version | head -n1)"
key=$({ echo "$source_sha $compiler"; cat "$here/build.sh" "${fragments[@]}"; } | sha256sum | cut -c1-16)
out=$cache/$name-$key

publish() {
  [ "$name" != guest ] || ln -sfn "$name-$key/vmlinux" "$cache/vmlinux"
  echo "$out"
  exit 0
}
[ ! -e "$out/vmlinux" ] || publish

# One build of a kernel at a time; whoever waited finds it done.
mkdir -p "$cache"
exec 9> "$cache/$name.lock"
flock 9
[ ! -e "$out/vmlinux" ] || publish

# What vouches for the source, for the provenance.
if pinned=$(grep "^$source_sha " "$here/sources.sha256"); then
  trust="pinned as ${pinned#* }"
elif [ "${KERNEL_SOURCE_SHA256:-}" = "$source_sha" ]; then
  trust="named by KERNEL_SOURCE_SHA256"
elif [ "$tarball" = "$package" ] && command -v dpkg >/dev/null && dpkg -V "linux-source-$series"; then
  trust="package linux-source-$series $(dpkg-query -W -f '${Version}' "linux-source-$series")"
else
  fail "$tarball (sha256 $source_sha) is not known: check it, then add it to $here/sources.sha256 or set KERNEL_SOURCE_SHA256"
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "kernel: building $name from $(basename "$tarball") ($trust); takes some minutes" >&2
tar -xf "$tarball" -C "$work" --strip-components=1 --exclude='*/Documentation/devicetree' --exclude='*/tools/testing'
version=$(make -s -C "$work" kernelversion)
case $version in $series.*) ;; *) fail "$tarball holds Linux $version, not $series" ;; esac

# The build leaves no trace of who made it where and when.
export KBUILD_BUILD_USER=pillbug KBUILD_BUILD_HOST=pillbug KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(TZ=UTC0 date -Rd "@$(stat -c %Y "$work/Makefile")")
export KBUILD_BUILD_TIMESTAMP
log=$work/build.log
quietly() { "$@" >> "$log" 2>&1 || { tail -n 30 "$log" >&2; fail "'$*' failed"; }; }

# Reasons stand behind the options; kconfig takes comments on lines of their own only.
sed -E 's/[[:space:]]+#.*//' "${fragments[@]}" > "$work/kernel/configs/pillbug.config"
quietly make -C "$work" tinyconfig pillbug.config

# Every option must exist and have come through: kconfig drops what misses a dependency in silence.
# A later fragment overrides an earlier one.
missing=$(awk -F= -v kconfig=<(cd "$work" && find . -name 'Kconfig*' -exec sed -nE 's/^[[:space:]]*(menu)?config[[:space:]]+([A-Z0-9_]+).*/\2/p' {} +) '
  BEGIN { while ((getline symbol < kconfig) > 0) known["CONFIG_" symbol] = 1 }
  FNR == 1 { part++ }
  !/^CONFIG_/ { next }
  { option = $1; value = substr($0, length($1) + 2) }
  part == 1 { asked[option] = value; next }
  { got[option] = value }
  END {
    for (option in asked) {
      if (!(option in known)) print "  " option ": no such option"
      else if (asked[option] == "n" ? option in got : got[option] != asked[option])
        print "  " option ": asked for " asked[option] ", got " (option in got ? got[option] : "n")
    }
  }' "$work/kernel/configs/pillbug.config" "$work/.config" | sort)
[ -z "$missing" ] || fail "options did not come through:
$missing"

quietly make -C "$work" -j"$(nproc)" vmlinux

result=$(mktemp -d "$cache/result.XXXXXX")
chmod 755 "$result"
strip -s -o "$result/vmlinux" "$work/vmlinux"
cp "$work/System.map" "$result/"
cp "$work/.config" "$result/config"
cat > "$result/provenance" <<EOF
linux $version
source $(basename "$tarball")
source-sha256 $source_sha
source-trust $trust
fragments-sha256 $(cat "${fragments[@]}" | sha256sum | cut -d' ' -f1)
config-sha256 $(sha256sum < "$result/config" | cut -d' ' -f1)
vmlinux-sha256 $(sha256sum < "$result/vmlinux" | cut -d' ' -f1)
compiler $compiler
EOF
mv -T "$result" "$out"
publish
