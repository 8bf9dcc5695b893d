#!/bin/bash
# Makes real container images from Debian packages and prints the folder of the last one.
#
#   build.sh NAME...        NAME is a recipe in this folder: busybox, smallfiles on it, debian, and on
#                           that, layer for layer, python, nginx, redis, postgresql, openjdk
#
# Images lie in ${XDG_CACHE_HOME:-~/.cache}/pillbug/images/NAME-KEY, where KEY stands for the recipe
# and its base's, each in every form that is met in the wild:
#
#   oci/        OCI layout, gzip layers     oci.tar     OCI archive of it
#   zstd/       OCI layout, zstd layers     docker.tar  what `docker save` writes, plain layers
set -euo pipefail

fail() { echo "images: $*" >&2; exit 1; }
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pillbug/images
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Nothing in an image is younger, so that the same packages make the same layers.
export SOURCE_DATE_EPOCH=1793491200
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)

# Adds to the image in layout $1 a layer of what the script on standard input changes, run inside it
# with the further arguments as its own.
add_layer() {
  local layout=$1 root=bundle/rootfs
  shift
  [ "$(id -u)" = 0 ] || fail "running programs inside an image takes root: run this with sudo"
  [ -d bundle ] || umoci unpack --image "$layout" bundle
  cp --remove-destination /etc/resolv.conf $root/etc/resolv.conf
  # Services must not start in here.
  printf '#!/bin/sh\nexit 101\n' > $root/usr/sbin/policy-rc.d
  chmod +x $root/usr/sbin/policy-rc.d
  # A mount namespace takes /proc away again, however the script ends; some packages want it there.
  unshare --mount --fork --kill-child sh -ec 'mount -t proc proc '$root'/proc; exec chroot '$root' "$@"' sh \
    env -i PATH=$path DEBIAN_FRONTEND=noninteractive sh -ec "$(cat)" sh "$@"
  rm -rf $root/usr/sbin/policy-rc.d $root/var/cache/ldconfig/aux-cache
  : > $root/etc/resolv.conf
  find $root -xdev -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  umoci repack --refresh-bundle --image "$layout" --history.created "$created" bundle
}

# Adds a layer with these Debian packages.
install_packages() {
  add_layer "$@" <<'SCRIPT'
    apt-get update -q
    apt-get install -qy --no-install-recommends "$@"
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old
SCRIPT
}

# A recipe's key: itself, this script, its base, and what it says it depends on besides.
key() {
  local base='' depends=true
  # shellcheck source=/dev/null
  source "$here/$1"
  { cat "$here/build.sh" "$here/$1"; $depends; [ -z "$base" ] || key "$base"; } | sha256sum | cut -c1-16
}

# Makes the image in the current folder. A process of its own, so that the first failure ends it.
make_image() { # name, folder of its base
  # shellcheck source=/dev/null
  source "$here/$1"
  if [ -n "${2:-}" ]; then
    skopeo copy "oci:$2/oci:$base:latest" oci:work:latest
  else
    umoci init --layout work
    umoci new --image work:latest
  fi
  make_layer work:latest
  umoci config --image work:latest --created "$created" --history.created "$created" \
    --config.env "PATH=$path" "${config[@]}"
  skopeo copy oci:work:latest "oci:oci:$1:latest"
  skopeo copy oci:work:latest "oci-archive:oci.tar:$1:latest"
  skopeo copy oci:work:latest "docker-archive:docker.tar:$1:latest"
  skopeo copy --dest-compress-format zstd oci:work:latest "oci:zstd:$1:latest"
  rm -rf bundle layer.tar rootfs work
}

folder() {
  local name=$1 base='' below='' out work
  [ -f "$here/$name" ] && [ "$name" != build.sh ] || fail "there is no recipe $here/$name"
  out=$cache/$name-$(key "$name")
  if [ ! -e "$out" ]; then
    base=$(source "$here/$name"; echo "${base:-}")
    [ -z "$base" ] || below=$(folder "$base") || exit
    mkdir -p "$cache"
    exec 9> "$cache/$name.lock"
    flock 9
    if [ ! -e "$out" ]; then
      echo "images: making $name" >&2
      work=$(mktemp -d "$cache/build.XXXXXX")
      chmod 755 "$work"
      if ! (cd "$work" && "$here/build.sh" --make "$name" "$below") > "$work.log" 2>&1 9>&-; then
        tail -n 30 "$work.log" >&2
        rm -rf "$work" "$work.log"
        fail "cannot make $name"
      fi
      rm "$work.log"
      mv -T "$work" "$out"
    fi
  fi
  echo "$out"
}

if [ "$1" = --make ]; then
  make_image "$2" "$3"
  exit
fi
for name; do result=$(folder "$name") || exit; done
echo "$result"
