//! The inside of the container, made by its first process in namespaces of its own: root, `/proc`,
//! `/dev`, `/sys`, further mounts, and what Docker masks of them.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use protocol::{Mount, StartStage};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, makedev, mknodat, open, symlink},
    io::Errno,
    mount::{MountAttrFlags, MountFlags},
    process::{chroot, fchdir, umask},
    system::sethostname,
};

use crate::{
    failure::{At, Failure},
    mount::{self, FsOption},
    network,
    sandbox::Sandbox,
    sys,
    target::{self, Kind},
};

const NOTHING: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Devices that every container has: name, major and minor number
/// (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links in `/dev`, and where they lead.
const LINKS: [(&str, &str); 6] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// What Docker hides from a container that is not privileged.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What Docker makes read-only for one.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Settings that containers have by default: ports below 1024 and ICMP echo sockets for everybody, and no look twice a second
/// at whether memory is worth compacting, for which an idle machine would wake. It is compacted where pages are asked for.
const SYSCTLS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Turns the calling process, which must be alone in new mount, UTS and IPC namespaces and first in
/// a new PID namespace, into one inside the container.
///
/// # Errors
///
/// At the stage that failed.
pub fn enter(sandbox: &Sandbox, terminal: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let setup = &sandbox.setup;
    // Modes are given exactly from here on.
    umask(Mode::empty());
    // Not a flag of clone3: there the namespace would begin at the parent's group.
    sys::new_cgroup_namespace().at(StartStage::Fork, "cgroup namespace")?;
    sethostname(setup.hostname.as_bytes()).at(StartStage::Hostname, &setup.hostname)?;
    change_root(sandbox.rootfs.overlay()).at(StartStage::Rootfs, "/")?;
    let root = sandbox.rootfs.overlay();

    let read_only = match setup.privileged {
        true => MountAttrFlags::empty(),
        false => MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    attach(root, "/proc", "proc", &[], NOTHING)?;
    for (path, value) in SYSCTLS {
        // A kernel without the feature has no such setting.
        let _ = fs::write(path, value);
    }
    for (name, value) in &setup.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(path, value).at(StartStage::Sysctl, name)?;
    }
    for (path, value) in network::settings(&setup.interfaces) {
        let _ = fs::write(path, value);
    }
    devices(sandbox, terminal)?;
    attach(root, "/sys", "sysfs", &[], NOTHING | read_only)?;
    attach(root, "/sys/fs/cgroup", "cgroup2", &[], NOTHING | read_only)?;
    for (mount, share) in setup.mounts.iter().zip(&sandbox.shares) {
        match share {
            Some(share) => shared(root, mount, share),
            None => further(root, mount),
        }
        .at(StartStage::Mount, &mount.target)?;
    }
    for (path, file) in &sandbox.files {
        let put = || mount::attach(file, target::ensure(root, path, Kind::File)?.fd);
        put().at(StartStage::Hostname, path)?;
        if setup.read_only_root {
            mount::make_read_only(path, MountFlags::empty()).at(StartStage::Hostname, path)?;
        }
    }
    if !setup.privileged {
        for path in MASKED {
            mask(path).at(StartStage::Mount, path)?;
        }
        for path in READ_ONLY {
            protect(path).at(StartStage::Mount, path)?;
        }
    }
    if setup.read_only_root {
        mount::make_read_only("/", MountFlags::empty()).at(StartStage::Mount, "/")?;
    }
    Ok(())
}

/// Gives the calling process, which must be alone in a new mount namespace, the root with the host's folders and files in
/// it, and nothing else that a container has: for work on files while none runs. The host alone refuses writes here.
///
/// # Errors
///
/// Those of mounting.
pub fn show(sandbox: &Sandbox) -> io::Result<()> {
    let root = sandbox.rootfs.overlay();
    change_root(root)?;
    for (mount, share) in sandbox.setup.mounts.iter().zip(&sandbox.shares) {
        if let Some(share) = share {
            attach_share(root, mount, share)?;
        }
    }
    Ok(())
}

/// Makes a detached mount the root. What was there before lies below it, out of reach: pivot_root(2)
/// cannot take the initial RAM file system away.
fn change_root(mount: BorrowedFd<'_>) -> io::Result<()> {
    mount::attach_at(mount, "/")?;
    fchdir(mount)?;
    Ok(chroot(".")?)
}

fn attach(
    root: BorrowedFd<'_>,
    path: &str,
    fs_type: &str,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> Result<(), Failure> {
    let mount = || {
        let mount = mount::create(fs_type, options, attributes)?;
        mount::attach(mount, target::ensure(root, path, Kind::Folder)?.fd)
    };
    mount().at(StartStage::Mount, path)
}

/// `/dev` and what is mounted in it. A privileged container gets the machine's own.
fn devices(sandbox: &Sandbox, terminal: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let root = sandbox.rootfs.overlay();
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    if sandbox.setup.privileged {
        attach(root, "/dev", "devtmpfs", &[], attributes)?;
    } else {
        let options = [("mode", Some("755")), ("size", Some("65536k"))];
        attach(root, "/dev", "tmpfs", &options, attributes)?;
    }
    let everybody = Mode::from_raw_mode(0o666);
    for (path, major, minor) in DEVICES {
        let made = mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            everybody,
            makedev(major, minor),
        );
        unless_there(made).at(StartStage::Mount, path)?;
    }
    for (path, to) in LINKS {
        unless_there(symlink(to, path)).at(StartStage::Mount, path)?;
    }

    let pts = || {
        mount::attach(
            sandbox.devpts(),
            target::ensure(root, "/dev/pts", Kind::Folder)?.fd,
        )
    };
    pts().at(StartStage::Mount, "/dev/pts")?;
    let shm_bytes = sandbox.setup.shm_bytes.to_string();
    let options = [("mode", Some("1777")), ("size", Some(shm_bytes.as_str()))];
    attach(root, "/dev/shm", "tmpfs", &options, NOTHING)?;
    attach(root, "/dev/mqueue", "mqueue", &[], NOTHING)?;
    if let Some(terminal) = terminal {
        let console = || {
            let target = target::ensure(root, "/dev/console", Kind::File)?;
            mount::attach(mount::duplicate_open(terminal)?, target.fd)
        };
        console().at(StartStage::Terminal, "/dev/console")?;
    }
    Ok(())
}

fn unless_there(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A mount that the container asked for. A tmpfs over a folder of the image keeps that one's mode.
fn further(root: BorrowedFd<'_>, mount: &Mount) -> io::Result<()> {
    let target = target::ensure(root, &mount.target, Kind::Folder)?;
    let (attributes, mut options) = mount::parse_options(&mount.options);
    options.push(("source", Some(&mount.source)));
    let mode;
    if mount.fs_type == "tmpfs"
        && !target.created
        && !options.iter().any(|(name, _)| *name == "mode")
    {
        mode = format!("{:o}", fstat(&target.fd)?.st_mode & 0o7777);
        options.push(("mode", Some(&mode)));
    }
    mount::attach(
        mount::create(&mount.fs_type, &options, attributes)?,
        target.fd,
    )
}

/// A folder or file of the host's.
fn attach_share(root: BorrowedFd<'_>, mount: &Mount, share: &OwnedFd) -> io::Result<()> {
    let kind = match FileType::from_raw_mode(fstat(share)?.st_mode) {
        FileType::Directory => Kind::Folder,
        _ => Kind::File,
    };
    mount::attach(share, target::ensure(root, &mount.target, kind)?.fd)
}

/// The same in a container. That the host refuses writes to a read-only one does not depend on this.
fn shared(root: BorrowedFd<'_>, mount: &Mount, share: &OwnedFd) -> io::Result<()> {
    attach_share(root, mount, share)?;
    let (attributes, _) = mount::parse_options(&mount.options);
    if attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
        let path = format!("/proc/self/fd/{}", share.as_raw_fd());
        mount::make_read_only(&path, MountFlags::empty())?;
    }
    Ok(())
}

/// Puts nothing in the place of a file or folder, where the kernel has it.
fn mask(path: &str) -> io::Result<()> {
    let target = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        target => target?,
    };
    let nothing = if FileType::from_raw_mode(fstat(&target)?.st_mode) == FileType::Directory {
        let read_only = NOTHING | MountAttrFlags::MOUNT_ATTR_RDONLY;
        mount::create("tmpfs", &[("nr_inodes", Some("1"))], read_only)?
    } else {
        mount::duplicate("/dev/null")?
    };
    mount::attach(nothing, target)
}

/// Makes a folder read-only, where the kernel has it.
fn protect(path: &str) -> io::Result<()> {
    let mount = match mount::duplicate(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        mount => mount?,
    };
    mount::attach_at(mount.as_fd(), path)?;
    mount::make_read_only(
        path,
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    )
}
