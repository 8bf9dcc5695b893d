//! The flags that say what a container may use, as `run` and `create` share them.

use clap::Args;

use crate::container::{
    limits::{self, CpuSet, Cpus, DiskRate, LimitOptions, RateKind, Shm},
    options::{Memory, OptionError},
};

/// What a container may use.
#[derive(Debug, Args)]
pub struct LimitFlags {
    /// Processors: how many, or a part of one, from 0.01 to 32
    #[arg(
        long,
        default_value = "1",
        value_name = "COUNT",
        allow_negative_numbers = true
    )]
    cpus: Cpus,
    /// Run on these processors of the host only, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<CpuSet>,
    /// Memory of the virtual machine, such as 512m or 2g
    #[arg(short, long, default_value = "512m", value_name = "SIZE")]
    memory: Memory,
    /// Most processes and threads; -1 for no limit
    #[arg(long, value_name = "COUNT", value_parser = limits::pids, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Size of /dev/shm
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "64m",
        hide_default_value = true
    )]
    shm_size: Shm,
    /// Set a parameter of the container's kernel, such as net.core.somaxconn=1024
    #[arg(long, value_name = "NAME=VALUE", value_parser = limits::sysctl)]
    sysctl: Vec<(String, String)>,
    /// Limit what the container may write: size=SIZE (10g, or half of its memory with --rm)
    #[arg(long, value_name = "size=SIZE", value_parser = limits::storage)]
    storage_opt: Option<u64>,
    /// How soon the host ends the container when its memory is used up, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, default_value = "0", hide_default_value = true,
        value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    oom_score_adj: i16,
    /// Limit reads from a disk of the host's in bytes a second, such as /dev/sda:10mb
    #[arg(long, value_name = "DEVICE:RATE", value_parser = read_bytes)]
    device_read_bps: Vec<DiskRate>,
    /// Limit writes to a disk of the host's in bytes a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = write_bytes)]
    device_write_bps: Vec<DiskRate>,
    /// Limit reads from a disk of the host's in requests a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = reads)]
    device_read_iops: Vec<DiskRate>,
    /// Limit writes to a disk of the host's in requests a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = writes)]
    device_write_iops: Vec<DiskRate>,
}

fn read_bytes(text: &str) -> Result<DiskRate, OptionError> {
    DiskRate::parse(RateKind::ReadBytes, text)
}

fn write_bytes(text: &str) -> Result<DiskRate, OptionError> {
    DiskRate::parse(RateKind::WriteBytes, text)
}

fn reads(text: &str) -> Result<DiskRate, OptionError> {
    DiskRate::parse(RateKind::Reads, text)
}

fn writes(text: &str) -> Result<DiskRate, OptionError> {
    DiskRate::parse(RateKind::Writes, text)
}

impl LimitFlags {
    /// As meant.
    pub fn into_options(self) -> LimitOptions {
        let rates = [
            self.device_read_bps,
            self.device_write_bps,
            self.device_read_iops,
            self.device_write_iops,
        ];
        LimitOptions {
            cpus: self.cpus,
            cpuset: self.cpuset_cpus,
            memory: self.memory,
            pids: self
                .pids_limit
                .and_then(|pids| u64::try_from(pids).ok())
                .filter(|pids| *pids > 0),
            shm: self.shm_size,
            sysctls: self.sysctl,
            oom_score_adj: self.oom_score_adj,
            disk_bytes: self.storage_opt,
            disk_rates: rates.into_iter().flatten().collect(),
        }
    }
}
