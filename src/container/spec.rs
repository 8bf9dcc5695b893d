//! What a container is, as it is written down when it is created: image and options merged. No behaviour.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use protocol::{Process, Setup};
use serde::{Deserialize, Serialize};

use super::{
    health::HealthCheck,
    limits::{CpuSet, Cpus, DiskRate},
    log::LogConfig,
    mount::MountPoint,
    name::Id,
    network::NetworkSpec,
    restart::RestartPolicy,
};
use crate::image::digest::Digest;

/// What a container is. Changed by `rename` and `update` alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its ID.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// The image as the user named it.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: Digest,
    /// The image's ID.
    pub image_id: Digest,
    /// When it was created.
    pub created: SystemTime,
    /// Its process.
    pub process: Process,
    /// What surrounds the process.
    pub setup: Setup,
    /// Its machine.
    pub machine: Machine,
    /// Volumes, and folders and files of the host.
    #[serde(default)]
    pub mounts: Vec<MountPoint>,
    /// Whoever created it said that it may have folders of the host through which that is ruled.
    #[serde(default)]
    pub dangerous_mounts: bool,
    /// Its network.
    #[serde(default)]
    pub network: NetworkSpec,
    /// What is done with its streams.
    pub streams: Streams,
    /// What ends it.
    pub stop: Stop,
    /// How it is seen whether it works.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// When it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// User's own data, and the image's.
    pub labels: BTreeMap<String, String>,
    /// Remove it when it ends.
    pub remove: bool,
}

/// The virtual machine around a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor time, and with it virtual CPUs.
    #[serde(default)]
    pub cpus: Cpus,
    /// Which of the host's processors; all where there is none.
    #[serde(default)]
    pub cpuset: Option<CpuSet>,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Size of the writable disk in bytes; without one, what is written lies in memory.
    pub disk_bytes: Option<u64>,
    /// How fast it may use disks of the host's.
    #[serde(default)]
    pub disk_rates: Vec<DiskRate>,
    /// How soon the host ends it when memory is used up, -1000 to 1000.
    #[serde(default)]
    pub oom_score_adj: i16,
    /// Guest kernel in place of the installed one.
    pub kernel: Option<PathBuf>,
    /// Where the guest kernel's serial console goes.
    pub kernel_console: Option<PathBuf>,
}

/// A container's standard streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input is connected.
    pub interactive: bool,
    /// Standard input ends with the first client that was attached to it.
    pub stdin_once: bool,
    /// How output is kept.
    pub log: LogConfig,
}

/// How a container is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal it is sent.
    pub signal: u8,
    /// Seconds until it is killed; negative: never.
    pub timeout: i64,
}

impl Stop {
    /// SIGTERM, and ten seconds.
    pub const DEFAULT: Self = Self {
        signal: 15,
        timeout: 10,
    };
}

impl Spec {
    /// Program and arguments.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.process.args
    }
}

/// A container for tests: busybox's `true`.
#[cfg(test)]
pub fn example(name: &str) -> Spec {
    use protocol::Upper;

    use super::{options::Options, process};

    let options = Options {
        command: vec!["true".into()],
        ..Options::default()
    };
    let digest = Digest::of(b"busybox");
    Spec {
        id: Id::random().unwrap(),
        name: name.into(),
        image: "busybox".into(),
        image_digest: digest,
        image_id: digest,
        created: SystemTime::now(),
        process: process::process(&oci_spec::image::Config::default(), &options, "h").unwrap(),
        setup: process::setup(&options, "h", Upper::Tmpfs { size_bytes: 0 }),
        machine: Machine {
            cpus: Cpus::default(),
            cpuset: None,
            disk_rates: Vec::new(),
            oom_score_adj: 0,
            memory_bytes: 1 << 28,
            disk_bytes: None,
            kernel: None,
            kernel_console: None,
        },
        mounts: Vec::new(),
        dangerous_mounts: false,
        network: NetworkSpec::default(),
        streams: Streams {
            interactive: false,
            stdin_once: false,
            log: LogConfig::default(),
        },
        stop: Stop::DEFAULT,
        health: None,
        restart: RestartPolicy::No,
        labels: BTreeMap::new(),
        remove: false,
    }
}
