//! What the agent prepares for the container before its first process exists: root file system,
//! control group, terminals and the files below `/etc`, all held as descriptors.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use protocol::{Limits, Setup, StartStage};
use rustix::mount::{MountAttrFlags, MountFlags};

use crate::{
    cgroup::Cgroup,
    etc,
    failure::{At, Failure},
    mount,
    names::Names,
    network::{self, Network},
    rootfs::Rootfs,
    shares,
};

/// What does not depend on the container, so that it can be done before the host has said which one.
pub struct Base {
    cgroup: Cgroup,
    network: Network,
    devpts: OwnedFd,
}

impl Base {
    /// Mounts the agent's `/dev`, makes the control group and brings the loopback interface up.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Mount`], with what was being made as the subject.
    pub fn prepare() -> Result<Self, Failure> {
        let devices = mount::create("devtmpfs", &[], MountAttrFlags::MOUNT_ATTR_NOSUID);
        devices
            .and_then(|devices| mount::attach_at(devices, "/dev"))
            .at(StartStage::Mount, "devtmpfs")?;
        let cgroup = Cgroup::create().at(StartStage::Mount, "cgroup2")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // Group 5 is "tty" in every distribution's /etc/group.
        let options = [
            ("ptmxmode", Some("0666")),
            ("mode", Some("0620")),
            ("gid", Some("5")),
        ];
        let devpts =
            mount::create("devpts", &options, attributes).at(StartStage::Mount, "devpts")?;
        let network = Network::open().at(StartStage::Network, "lo")?;
        Ok(Self {
            cgroup,
            network,
            devpts,
        })
    }
}

/// Everything the container's processes start from.
pub struct Sandbox {
    base: Base,
    /// What the host asked for.
    pub setup: Setup,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Files of the agent's that stand in for the image's: path in the container, and a detached mount.
    pub files: [(&'static str, OwnedFd); 3],
    /// The name server, where there is one, until the agent takes it.
    pub names: Option<Names>,
    /// A detached mount for each of the setup's that is a folder of the host.
    pub shares: Vec<Option<OwnedFd>>,
}

impl Sandbox {
    /// Does what `setup` says as far as it needs no process of the container.
    ///
    /// # Errors
    ///
    /// At the stage that failed.
    pub fn prepare(base: Base, setup: Setup) -> Result<Self, Failure> {
        if setup.limits != Limits::default() {
            let limited = base.cgroup.limit(&setup.limits);
            limited.or_else(|(setting, error)| Err(error).at(StartStage::Limit, setting))?;
        }
        let rootfs = Rootfs::mount(&setup)?;
        base.network.configure(&setup.interfaces)?;
        let names = match setup.resolver.relay {
            true => Some(Names::open().at(StartStage::Network, "name server")?),
            false => None,
        };
        let shares = shares::open(&setup.mounts)?;
        shares::fill(&setup.mounts, &rootfs)?;
        let files = [
            file("/etc/hostname", "/hostname", &etc::hostname(&setup)),
            file("/etc/hosts", "/hosts", &etc::hosts(&setup)),
            // Without a name server the file is empty, whatever the image's says.
            file(
                "/etc/resolv.conf",
                "/resolv.conf",
                &network::resolv_conf(&setup.resolver),
            ),
        ];
        let [hostname, hosts, resolv] = files;
        let files = [hostname?, hosts?, resolv?];
        // `/proc/self/exe` of a process that has not yet left the agent's program leads there, in the container too. Nobody
        // writes to it that way, nor executes it in the place of a program.
        mount::make_read_only("/", MountFlags::NOEXEC).at(StartStage::Rootfs, "/")?;
        Ok(Self {
            base,
            setup,
            rootfs,
            files,
            names,
            shares,
        })
    }

    /// The control group's folder.
    pub fn cgroup(&self) -> &Cgroup {
        &self.base.cgroup
    }

    /// The container's devpts: detached until its first process attaches it, and open as a folder
    /// all the time.
    pub fn devpts(&self) -> BorrowedFd<'_> {
        self.base.devpts.as_fd()
    }
}

/// Writes a file into the agent's own root and gives it a detached mount.
fn file(
    target: &'static str,
    path: &str,
    content: &str,
) -> Result<(&'static str, OwnedFd), Failure> {
    let write = || {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)?;
        io::Write::write_all(&mut file, content.as_bytes())?;
        mount::duplicate(path)
    };
    Ok((target, write().at(StartStage::Hostname, target)?))
}
