#!/bin/bash
# Makes real container images from Debian packages and prints the folder of the last one.
#
#   build.sh NAME...        NAME is a recipe in this folder: busybox, debian, python
#
# Images lie in ${XDG_CACHE_HOME:-~/.cache}/pillbug/images/NAME-KEY, where KEY stands for the recipe
# and its base's, each in every form that is met in the wild:
#
#   oci/        OCI layout, gzip layers     oci.tar     OCI archive of it
#   zstd/       OCI layout, zstd layers     docker.tar  what `docker save` writes, plain layers
#   tree        listing of what `umoci unpack` makes of it (list-tree.sh)
set -euo pipefail

fail() { echo "images: $*" >&2; exit 1; }
[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pillbug/images
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Adds a layer with these Debian packages to the image in layout $1.
install_packages() {
  local layout=$1 root=bundle/rootfs
  shift
  [ "$(id -u)" = 0 ] || fail "adding packages to an image takes root: run this with sudo"
  umoci unpack --image "$layout" bundle
  cp --remove-destination /etc/resolv.conf $root/etc/resolv.conf
  # Services must not start in here.
  printf '#!/bin/sh\nexit 101\n' > $root/usr/sbin/policy-rc.d
  chmod +x $root/usr/sbin/policy-rc.d
  env -i PATH=$path DEBIAN_FRONTEND=noninteractive chroot $root sh -ec '
    apt-get update -q
    apt-get install -qy --no-install-recommends "$@"
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /usr/sbin/policy-rc.d' sh "$@"
  : > $root/etc/resolv.conf
  umoci repack --image "$layout" bundle
}

# A recipe's key: itself, this script, its base, and what it says it depends on besides.
key() {
  local base='' depends=true
  # shellcheck source=/dev/null
  source "$here/$1"
  { cat "$here/build.sh" "$here/list-tree.sh" "$here/$1"; $depends; [ -z "$base" ] || key "$base"; } | sha256sum | cut -c1-16
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
  umoci config --image work:latest --config.env "PATH=$path" "${config[@]}"
  skopeo copy oci:work:latest "oci:oci:$1:latest"
  skopeo copy oci:work:latest "oci-archive:oci.tar:$1:latest"
  skopeo copy oci:work:latest "docker-archive:docker.tar:$1:latest"
  skopeo copy --dest-compress-format zstd oci:work:latest "oci:zstd:$1:latest"
  if [ "$(id -u)" = 0 ]; then
    rm -rf bundle
    umoci unpack --image work:latest bundle
    (cd bundle/rootfs && LC_ALL=C sh "$here/list-tree.sh") > tree
  fi
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
