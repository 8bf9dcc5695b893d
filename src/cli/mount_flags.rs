//! Flags of `run` and `create` about volumes and folders of the host.

use clap::Args;
use protocol::Mount;

use crate::container::{
    mount::{self, Given, MountRequest, MountSyntaxError, VolumesFrom},
    options,
};

/// What is mounted besides the image.
#[derive(Debug, Args)]
pub struct MountFlags {
    /// Mount a volume by its name, or a folder or file of the host by its absolute path
    ///
    /// OPTIONS are ro (the host refuses writes) and nocopy (a volume does not begin with what the
    /// image has in its place). Without a SOURCE the volume is a new one, which `rm -v` removes.
    #[arg(short, long, value_name = "[SOURCE:]FOLDER[:OPTIONS]", value_parser = mount::short)]
    volume: Vec<MountRequest>,
    /// Mount a volume, a folder or file of the host, or memory: type=bind|volume|tmpfs,source=,target=,...
    ///
    /// Further: readonly; volume-nocopy and volume-label=NAME=VALUE; tmpfs-size= and tmpfs-mode=.
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = mount::long)]
    mount: Vec<Given>,
    /// Mount what another container has mounted from the host
    #[arg(long, value_name = "CONTAINER[:ro]", value_parser = mount::from)]
    volumes_from: Vec<VolumesFrom>,
    /// Mount a tmpfs, such as /run:size=64m
    #[arg(long, value_parser = options::tmpfs, value_name = "FOLDER[:OPTIONS]")]
    tmpfs: Vec<Mount>,
    /// Also mount folders through which this host is ruled: /, its devices, pillbug's own state, docker.sock
    #[arg(long)]
    allow_dangerous_mounts: bool,
}

/// As meant.
pub struct Mounts {
    pub tmpfs: Vec<Mount>,
    pub shared: Vec<MountRequest>,
    pub from: Vec<VolumesFrom>,
    pub dangerous: bool,
}

impl MountFlags {
    /// All of them together.
    pub fn into_mounts(self) -> Result<Mounts, MountSyntaxError> {
        let mut tmpfs = self.tmpfs;
        for mount in &mut tmpfs {
            mount.target = mount::target(&mount.target)?;
        }
        let mut shared = self.volume;
        for given in self.mount {
            match given {
                Given::Shared(request) => shared.push(request),
                Given::Tmpfs(mount) => tmpfs.push(mount),
            }
        }
        Ok(Mounts {
            tmpfs,
            shared,
            from: self.volumes_from,
            dangerous: self.allow_dangerous_mounts,
        })
    }
}
