//! The container's root file system, as the agent prepares it: the image below, a writable layer
//! above, both joined by overlayfs. It is mounted detached; the container's first process attaches it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{Setup, StartStage, Upper};
use rustix::{
    fs::{CWD, Gid, Mode, Uid, chmodat, chownat, mkdir, stat},
    mount::{FsPickFlags, MountAttrFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick},
};

use crate::{
    failure::{At, Failure},
    mount::{self, FsOption},
};

/// Folder of the initial RAM file system with the image.
pub const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
/// Where overlayfs puts what the container changes of it. Both are on one file system, and the work folder is its own.
pub const CHANGES: &str = "/upper/changes";
const WORK: &str = "/upper/work";

/// A mounted root file system.
pub struct Rootfs {
    overlay: OwnedFd,
    /// The writable file system, where it outlives the machine.
    durable: Option<OwnedFd>,
}

impl Rootfs {
    /// Mounts what `setup` names.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Rootfs`], with the device or folder as the subject.
    pub fn mount(setup: &Setup) -> Result<Self, Failure> {
        let lower = mount_lower(&setup.lower_device).at(StartStage::Rootfs, &setup.lower_device)?;
        mount::attach_at(lower, LOWER).at(StartStage::Rootfs, LOWER)?;
        let (upper, durable) = match &setup.upper {
            Upper::Tmpfs { size_bytes } => (
                mount_tmpfs(*size_bytes).at(StartStage::Rootfs, "tmpfs")?,
                false,
            ),
            Upper::Ext4 { device } => (mount_ext4(device).at(StartStage::Rootfs, device)?, true),
        };
        mount::attach_at(&upper, UPPER).at(StartStage::Rootfs, UPPER)?;
        prepare_upper().at(StartStage::Rootfs, UPPER)?;
        let overlay = mount_overlay().at(StartStage::Rootfs, "overlay")?;
        Ok(Self {
            overlay,
            durable: durable.then_some(upper),
        })
    }

    /// The detached mount.
    pub fn overlay(&self) -> BorrowedFd<'_> {
        self.overlay.as_fd()
    }

    /// Whether what the container writes outlives the machine.
    pub fn is_durable(&self) -> bool {
        self.durable.is_some()
    }

    /// Writes all there is to the disk and leaves its file system clean. Nothing may run in the
    /// container any more.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a file is open for writing, and those of the device.
    pub fn make_read_only(&self) -> io::Result<()> {
        let Some(durable) = &self.durable else {
            return Ok(());
        };
        let context = fspick(
            durable,
            "",
            FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH,
        )?;
        fsconfig_set_flag(&context, "ro")?;
        Ok(fsconfig_reconfigure(&context)?)
    }
}

fn mount_lower(device: &str) -> io::Result<OwnedFd> {
    let options = [("source", Some(device)), ("ro", None)];
    mount::create("erofs", &options, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn mount_tmpfs(size_bytes: u64) -> io::Result<OwnedFd> {
    let size = size_bytes.to_string();
    let options = [("mode", Some("755")), ("size", Some(size.as_str()))];
    // Size 0 would be no limit at all; without the option it is half of memory.
    let given: &[FsOption<'_>] = if size_bytes == 0 {
        &options[..1]
    } else {
        &options
    };
    mount::create("tmpfs", given, MountAttrFlags::MOUNT_ATTR_NOATIME)
}

fn mount_ext4(device: &str) -> io::Result<OwnedFd> {
    let options = [
        ("source", Some(device)),
        // What the container deletes leaves the host's sparse file ...
        ("discard", None),
        // ... and inode tables that nobody uses never enter it.
        ("noinit_itable", None),
    ];
    mount::create("ext4", &options, MountAttrFlags::MOUNT_ATTR_NOATIME)
}

/// Makes the layer's folders. A new one takes mode and owner of the image's root, since overlayfs
/// shows those of the upper root.
fn prepare_upper() -> io::Result<()> {
    let private = Mode::from_raw_mode(0o700);
    match mkdir(CHANGES, private) {
        Err(rustix::io::Errno::EXIST) => {}
        result => {
            result?;
            let image = stat(LOWER)?;
            let owner = (Uid::from_raw(image.st_uid), Gid::from_raw(image.st_gid));
            chownat(
                CWD,
                CHANGES,
                Some(owner.0),
                Some(owner.1),
                rustix::fs::AtFlags::empty(),
            )?;
            chmodat(
                CWD,
                CHANGES,
                Mode::from_raw_mode(image.st_mode),
                rustix::fs::AtFlags::empty(),
            )?;
        }
    }
    match mkdir(WORK, private) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mount_overlay() -> io::Result<OwnedFd> {
    let options = [
        ("lowerdir", Some(LOWER)),
        ("upperdir", Some(CHANGES)),
        ("workdir", Some(WORK)),
        // Redirections and metadata copies are trusted.overlay attributes, and those of the lower
        // layer come from the image.
        ("redirect_dir", Some("nofollow")),
        ("metacopy", Some("off")),
    ];
    mount::create("overlay", &options, MountAttrFlags::empty())
}
