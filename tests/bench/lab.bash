# Sourced by benches: how they get what they measure into the lab's memory, and how they sum up.

# Before the lab: builds pillbug, finds the kernel, and fills a store of its own with these images.
prepare() { # store, image...
  cargo build --release --quiet
  PILLBUG_KERNEL=$(kernel-config/build.sh guest)/vmlinux
  export PILLBUG_KERNEL PILLBUG_ROOT=$PWD/target/bench/$1
  for image in "${@:2}"; do
    target/release/pillbug load --quiet --input "$(tests/images/build.sh "$image")/oci"
  done
  # What only a push or a save reads need not be carried into the lab.
  find "$PILLBUG_ROOT/images/blobs" -size +1M -delete
  echo "commit $(git rev-parse --short HEAD)"
}

# In the lab: pillbug, its kernel and store, and programs of peers, in RAM, with all that these read when they start in its
# place: a process without an environment, as the VMM's is, would find libraries in the shared file system otherwise, and what
# is measured would wait for that. Goes there.
settle() { # peer...
  local here=/run/bench program file
  mkdir -p $here/lib
  cp target/release/pillbug "$PILLBUG_KERNEL" $here
  cp -r "$PILLBUG_ROOT" $here/root
  for program in $here/pillbug $(command -v "$@" || true); do
    cp -n "$program" $here
    # A static one has none.
    { ldd "$program" 2>/dev/null || true; } | sed -n 's/.*[[:space:]]\(\/[^ ]*\) .*/\1/p'
  done | sort -u > $here/libraries
  for file in $(cat $here/libraries) /etc/ld.so.cache /etc/resolv.conf; do
    cp -nL "$file" $here/lib
    mount --bind "$here/lib/${file##*/}" "$file"
  done
  export PATH=$here:$PATH TMPDIR=/run PILLBUG_ROOT=$here/root PILLBUG_KERNEL=$here/vmlinux
  cd $here
}

# In the lab, after that: a microvm of QEMU's with pillbug's own guest kernel, which runs /init of busybox's shell from
# its initial RAM file system and ends; what it prints comes back. It has the memory that pillbug's has.
microvm() { # init script, option...
  local root=/run/microvm
  rm -rf $root
  mkdir -p $root/{bin,dev,proc,sys,data}
  cp "$(command -v busybox)" $root/bin/busybox
  ln -s busybox $root/bin/sh
  printf '#!/bin/sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\nmount -t devtmpfs dev /dev\n%s\nreboot -f\n' "$1" > $root/init
  chmod +x $root/init
  (cd $root && find . | busybox cpio -o -H newc 2> /dev/null) > /run/microvm.cpio
  qemu-system-x86_64 -M microvm,accel=kvm,pit=off,pic=off,rtc=off,acpi=off,memory-backend=memory -cpu host -smp 1 -m 256 \
    -object memory-backend-memfd,id=memory,size=256M,share=on -nodefaults -no-user-config -global virtio-mmio.force-legacy=false -display none -no-reboot -serial stdio \
    -kernel "$PILLBUG_KERNEL" -initrd /run/microvm.cpio -append "console=ttyS0 quiet reboot=t panic=-1" "${@:2}" < /dev/null | tr -d '\r'
}

# Runs a command, and says how many microseconds it took, after this name.
timed() { # name, command...
  local start=${EPOCHREALTIME/./}
  "${@:2}" > /dev/null
  echo "$1 $((${EPOCHREALTIME/./} - start))"
}

# Passes on what runs from number 0 on say: those before fill caches.
unless_warming() { # run
  if [ "$1" -lt 0 ]; then cat > /dev/null; else cat; fi
}

# Lines of `name microseconds` as percentiles.
summary() {
  sort -k1,1 -k2,2n | awk '
    function percentile(name, p) { return values[name, int((count[name] - 1) * p + 0.5) + 1] / 1000 }
    { values[$1, ++count[$1]] = $2 }
    END {
      for (name in count) printf "%-16s p50 %9.2f ms   p90 %9.2f ms   p99 %9.2f ms   of %d\n",
        name, percentile(name, 0.5), percentile(name, 0.9), percentile(name, 0.99), count[name]
    }' | sort
}
