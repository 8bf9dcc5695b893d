//! Folders and files of the host: the one file system device that has them all, mounted where the container cannot
//! reach it, and a mount of its own for each.

use std::{fs, io, os::fd::OwnedFd};

use protocol::{Mount, SHARE_TYPE, SHARES_TAG, StartStage};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    mount::MountAttrFlags,
};

use crate::{
    failure::{At, Failure},
    fill, mount,
    rootfs::Rootfs,
};

/// In the initial RAM file system, which the container leaves.
const FOLDER: &str = "/shares";

/// A detached mount for each of `mounts`; `None` where that is of another type.
///
/// # Errors
///
/// At [`StartStage::Mount`], with the target as the subject.
pub fn open(mounts: &[Mount]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let is_share = |mount: &Mount| mount.fs_type == SHARE_TYPE;
    let Some(first) = mounts.iter().find(|mount| is_share(mount)) else {
        return Ok(mounts.iter().map(|_| None).collect());
    };
    mount_device().at(StartStage::Mount, &first.target)?;
    let one = |mount: &Mount| match is_share(mount) {
        true => {
            let tree = mount::duplicate(&format!("{FOLDER}/{}", mount.source));
            tree.map(Some).at(StartStage::Mount, &mount.target)
        }
        false => Ok(None),
    };
    mounts.iter().map(one).collect()
}

fn mount_device() -> io::Result<()> {
    fs::create_dir(FOLDER)?;
    let options = [("source", Some(SHARES_TAG))];
    let device = mount::create(SHARE_TYPE, &options, MountAttrFlags::empty())?;
    mount::attach_at(device, FOLDER)
}

/// Copies what the image has at the targets of those mounts that want it.
///
/// # Errors
///
/// As [`fill::copy`], with the file as the subject.
pub fn fill(mounts: &[Mount], rootfs: &Rootfs) -> Result<(), Failure> {
    for mount in mounts.iter().filter(|mount| mount.fill) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rootfs.overlay();
        let from = openat2(
            root,
            mount.target.as_str(),
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        );
        let Ok(from) = from else {
            // The image has no such folder.
            continue;
        };
        let to = format!("{FOLDER}/{}", mount.source);
        let to = rustix::fs::open(to, flags, Mode::empty()).at(StartStage::Mount, &mount.target)?;
        if let Err((error, path)) = fill::copy(&from, &to) {
            Err::<(), _>(error).at(StartStage::Mount, &format!("{}{path}", mount.target))?;
        }
    }
    Ok(())
}
