//! What a share process can reach: an empty root, read-only, with one mount for each share and a `/proc` of its
//! own descriptors; no network, no other process, and no capability beyond what files need.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{fchdir, pivot_root},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs},
};

use super::Share;

/// Where the shares are, by their numbers.
pub const SHARES: &str = "/shares";

/// What owners, modes and attributes of files need. Not among them: `CAP_MKNOD`, `CAP_DAC_READ_SEARCH`, which opens
/// files by handle, and `CAP_SYS_ADMIN`.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP);

/// Open files: each that the guest knows is one.
const OPEN_FILES: u64 = 1 << 20;

/// Why a process is not in its jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A share is not there, or cannot be taken.
    #[error("cannot share {path}")]
    Share {
        /// Its path.
        path: PathBuf,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// One step on the way.
    #[error("cannot {what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// A mount is not as it has to be.
    #[error("{0} could not be protected")]
    Unprotected(PathBuf),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::Step {
        what,
        source: source.into(),
    }
}

/// Leaves everything but `shares` behind. The process is alone in new mount and PID namespaces.
///
/// # Errors
///
/// [`JailError`].
pub fn enter(shares: &[Share]) -> Result<(), JailError> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(step("part with the host's mounts"))?;
    let mut trees = Vec::with_capacity(shares.len());
    for share in shares {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let tree = open_tree(CWD, &share.source, flags).map_err(|source| JailError::Share {
            path: share.source.clone(),
            source: source.into(),
        })?;
        trees.push(tree);
    }
    let root = file_system(
        "tmpfs",
        &[("mode", "755"), ("size", "1m")],
        MountAttrFlags::empty(),
    )
    .map_err(step("make a root"))?;
    let proc = file_system(
        "proc",
        &[("subset", "pid")],
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(step("make a /proc"))?;
    // Any folder that is there will do: it is left behind.
    let place = openat(CWD, "/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("open /proc"))?;
    attach(&root, &place).map_err(step("attach the root"))?;
    fchdir(&root).map_err(step("enter the root"))?;
    fill(&root, &proc, &trees).map_err(step("fill the root"))?;
    drop(trees);
    pivot_root(".", ".").map_err(step("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the host's files"))?;
    std::env::set_current_dir("/").map_err(step("enter the root"))?;
    protect(shares)?;
    let sealed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | NOTHING;
    mount(None::<&str>, "/", None::<&str>, sealed, None::<&str>)
        .map_err(step("make the root read-only"))?;
    raise_open_files();
    Ok(())
}

const NOTHING: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

fn file_system(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&context, *name, *value)?;
    }
    fsconfig_create(&context)?;
    let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes | nothing,
    )?)
}

fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// One folder or file for each tree, and the tree on it.
fn fill(root: &OwnedFd, proc: &OwnedFd, trees: &[OwnedFd]) -> io::Result<()> {
    let path = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let folder = Mode::from_raw_mode(0o755);
    for (name, mount) in [("proc", Some(proc)), ("shares", None)] {
        mkdirat(root, name, folder)?;
        if let Some(mount) = mount {
            attach(mount, openat(root, name, path, Mode::empty())?)?;
        }
    }
    let shares = openat(root, "shares", path, Mode::empty())?;
    for (number, tree) in trees.iter().enumerate() {
        let name = number.to_string();
        if FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory {
            mkdirat(&shares, &name, folder)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&shares, &name, flags, Mode::from_raw_mode(0o644))?;
        }
        attach(tree, openat(&shares, &name, path, Mode::empty())?)?;
    }
    Ok(())
}

/// Makes every mount of every share one that nothing can be run or made a device from, and those of read-only ones
/// read-only, and looks whether they are.
fn protect(shares: &[Share]) -> Result<(), JailError> {
    for mounted in mounts().map_err(step("read the list of mounts"))? {
        let Some(share) = mounted.share(shares) else {
            continue;
        };
        let mut flags = mounted.flags() | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if share.read_only {
            flags |= MsFlags::MS_RDONLY;
        }
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(
            None::<&str>,
            &mounted.path,
            None::<&str>,
            flags,
            None::<&str>,
        )
        .map_err(|source| JailError::Share {
            path: mounted.path.clone(),
            source: source.into(),
        })?;
    }
    // A path is looked up anew by each call, and others may write to what it leads through.
    for mounted in mounts().map_err(step("read the list of mounts"))? {
        let Some(share) = mounted.share(shares) else {
            continue;
        };
        let has = |option| mounted.options.iter().any(|given| given == option);
        if !has("nosuid") || !has("nodev") || share.read_only && !has("ro") {
            return Err(JailError::Unprotected(mounted.path));
        }
    }
    Ok(())
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    path: PathBuf,
    options: Vec<String>,
}

impl Mounted {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(4);
        let (path, options) = (fields.next()?, fields.next()?);
        Some(Self {
            path: PathBuf::from(unescape(path)),
            options: options.split(',').map(str::to_owned).collect(),
        })
    }

    /// What it belongs to.
    fn share<'s>(&self, shares: &'s [Share]) -> Option<&'s Share> {
        let below = self.path.strip_prefix(SHARES).ok()?;
        let number = below.components().next()?.as_os_str().to_str()?;
        shares.get(number.parse::<usize>().ok()?)
    }

    /// Flags that it has: of a mount from outside of a user namespace none may be taken away.
    fn flags(&self) -> MsFlags {
        let known = [
            ("ro", MsFlags::MS_RDONLY),
            ("nosuid", MsFlags::MS_NOSUID),
            ("nodev", MsFlags::MS_NODEV),
            ("noexec", MsFlags::MS_NOEXEC),
            ("noatime", MsFlags::MS_NOATIME),
            ("nodiratime", MsFlags::MS_NODIRATIME),
            ("relatime", MsFlags::MS_RELATIME),
        ];
        known
            .into_iter()
            .filter(|(name, _)| self.options.iter().any(|option| option == name))
            .map(|(_, flag)| flag)
            .collect()
    }
}

/// A path in which space, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

fn mounts() -> io::Result<Vec<Mounted>> {
    let text = fs::read_to_string(Path::new("/proc/self/mountinfo"))?;
    Ok(text.lines().filter_map(Mounted::parse).collect())
}

fn raise_open_files() {
    // Where it is refused there is room for fewer.
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Gives up every capability that serving files does not need, for good.
///
/// # Errors
///
/// Those of capset(2) and prctl(2).
pub fn drop_privileges() -> Result<(), JailError> {
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        // One that this kernel does not know is not there to be given up.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(step("give up capabilities"))?;
    set_no_new_privs(true).map_err(step("give up new privileges"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_belongs_to_the_share_it_is_in() {
        let share = |read_only| Share {
            source: "/x".into(),
            read_only,
        };
        let shares = [share(false), share(true)];
        let line =
            "36 35 98:0 /mnt1 /shares/1/a\\040b\\134 ro,noatime master:1 - ext3 /dev/root rw";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!(mounted.path, PathBuf::from("/shares/1/a b\\"));
        assert_eq!(mounted.share(&shares), Some(&shares[1]));
        assert_eq!(mounted.flags(), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME);
        for path in ["/shares", "/shares/2", "/proc", "/shares/x", "/"] {
            let other = Mounted {
                path: path.into(),
                options: vec![],
            };
            assert_eq!(other.share(&shares), None, "{path}");
        }
    }
}
