# Lists the tree below the current folder, a line for each fact: type and mode, owner, links, time;
# target of a link; checksum of a file. Understood by every sh with find, stat and sha256sum, so that
# the listing made from inside a container can be compared with that of another unpacker.
# What the kernel or a container engine puts into a running container is left out.
tree() {
  find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./etc/hosts -o -path ./etc/hostname \
    -o -path ./etc/resolv.conf \) -prune -o "$@" -print0
}
tree | xargs -0 stat -c '%n|%f|%u|%g|%Y' | sort
tree ! -type d | xargs -0 stat -c '%n|%h|%s' | sort
tree -type l | xargs -0 stat -c '%N' | sort
tree -type f | xargs -0 sha256sum | sort
