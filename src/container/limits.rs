//! What a container may use: as it is asked for, as it is written down, and changed while it runs.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use vmm::VmConfig;

use super::{
    error::{RunError, check_memory},
    launch::connect,
    name::Id,
    options::{Memory, OptionError, size},
    restart::RestartPolicy,
    session::{Reply, Request},
    spec::Spec,
    state::Containers,
};

/// Billionths in one processor.
const NANO: u64 = 1_000_000_000;
/// `/dev/shm`, as Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// What is asked for when a container is created.
#[derive(Debug, Clone, Default)]
pub struct LimitOptions {
    /// Processor time, and with it virtual CPUs.
    pub cpus: Cpus,
    /// Which of the host's processors.
    pub cpuset: Option<CpuSet>,
    /// Guest memory.
    pub memory: Memory,
    /// Processes and threads; no limit where there is none.
    pub pids: Option<u64>,
    /// `/dev/shm`.
    pub shm: Shm,
    /// Settings of the guest's kernel: a name with dots, and its value.
    pub sysctls: Vec<(String, String)>,
    /// How soon the host ends the machine when it runs out of memory, -1000 to 1000.
    pub oom_score_adj: i16,
    /// Size of what the container may write, in bytes.
    pub disk_bytes: Option<u64>,
    /// How fast it may use disks of the host's.
    pub disk_rates: Vec<DiskRate>,
}

/// Size of `/dev/shm` in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shm(pub u64);

impl Default for Shm {
    fn default() -> Self {
        Self(SHM_BYTES)
    }
}

impl FromStr for Shm {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        at_least_one(text).map(Self)
    }
}

/// Processor time in billionths of one processor, from a hundredth to [`VmConfig::MAX_VCPUS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus(u64);

impl Default for Cpus {
    fn default() -> Self {
        Self(NANO)
    }
}

impl Cpus {
    /// In billionths of one.
    #[must_use]
    pub fn nano(self) -> u64 {
        self.0
    }

    /// Virtual CPUs that can use it up.
    #[must_use]
    pub fn vcpus(self) -> u8 {
        // At most MAX_VCPUS.
        u8::try_from(self.0.div_ceil(NANO)).unwrap_or(u8::MAX)
    }

    /// What a machine of so many virtual CPUs is to be held to; none where they cannot use more.
    #[must_use]
    pub fn throttle(self, vcpus: u8) -> Option<u64> {
        (self.0 < u64::from(vcpus) * NANO).then_some(self.0)
    }
}

impl FromStr for Cpus {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let refused = || OptionError::Cpus(text.into());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if text.len() > 32
            || whole.len() + fraction.len() == 0
            || !digits(whole)
            || !digits(fraction)
        {
            return Err(refused());
        }
        let whole: u64 = if whole.is_empty() {
            Ok(0)
        } else {
            whole.parse()
        }
        .map_err(|_| refused())?;
        // Beyond nine digits nothing counts.
        let nano: u64 = format!("{fraction:0<9.9}").parse().map_err(|_| refused())?;
        let total = whole
            .checked_mul(NANO)
            .and_then(|whole| whole.checked_add(nano));
        match total {
            Some(nano) if (NANO / 100..=u64::from(VmConfig::MAX_VCPUS) * NANO).contains(&nano) => {
                Ok(Self(nano))
            }
            _ => Err(refused()),
        }
    }
}

/// Processors of the host, by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSet(Vec<u16>);

impl CpuSet {
    /// Each once, ascending.
    #[must_use]
    pub fn cpus(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for CpuSet {
    type Err = OptionError;

    /// As cpuset(7) lists them: `0-3,7`.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let refused = || OptionError::CpuSet(text.into());
        let number = |text: &str| match text.parse::<u16>() {
            // What sched_setaffinity(2) takes.
            Ok(cpu) if cpu < 1024 => Ok(cpu),
            _ => Err(refused()),
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(refused());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, cpu) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{cpu}")?;
        }
        Ok(())
    }
}

/// How fast the container may use what lies on a block device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRate {
    /// Such as `/dev/sda`.
    pub device: PathBuf,
    /// What is limited.
    pub kind: RateKind,
    /// How many of it a second.
    pub rate: u64,
}

/// What a [`DiskRate`] limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum RateKind {
    ReadBytes,
    WriteBytes,
    Reads,
    Writes,
}

impl DiskRate {
    /// `DEVICE:RATE`; a rate of bytes may have a unit.
    ///
    /// # Errors
    ///
    /// [`OptionError::DiskRate`] for anything else, or a rate of nothing.
    pub fn parse(kind: RateKind, text: &str) -> Result<Self, OptionError> {
        let refused = || OptionError::DiskRate(text.into());
        let (device, rate) = text.rsplit_once(':').ok_or_else(refused)?;
        let rate = match kind {
            RateKind::ReadBytes | RateKind::WriteBytes => size(rate).map_err(|_| refused())?,
            RateKind::Reads | RateKind::Writes => rate.parse().map_err(|_| refused())?,
        };
        if !device.starts_with('/') || rate == 0 {
            return Err(refused());
        }
        Ok(Self {
            device: device.into(),
            kind,
            rate,
        })
    }
}

/// Bytes, in all or a second, which may have a unit.
///
/// # Errors
///
/// [`OptionError::Size`] for anything else, or nothing.
pub fn at_least_one(text: &str) -> Result<u64, OptionError> {
    match size(text)? {
        0 => Err(OptionError::Size(text.into())),
        bytes => Ok(bytes),
    }
}

/// A limit of processes: -1 and 0 are none.
///
/// # Errors
///
/// [`OptionError::Pids`].
pub fn pids(text: &str) -> Result<i64, OptionError> {
    match text.parse() {
        Ok(count) if count >= -1 => Ok(count),
        _ => Err(OptionError::Pids(text.into())),
    }
}

/// `NAME=VALUE`, the name with dots.
///
/// # Errors
///
/// [`OptionError::Sysctl`] where the name could lead anywhere else.
pub fn sysctl(text: &str) -> Result<(String, String), OptionError> {
    let refused = || OptionError::Sysctl(text.into());
    let (name, value) = text.split_once('=').ok_or_else(refused)?;
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    match name.contains('.') && name.split('.').all(part) && !value.contains('\0') {
        true => Ok((name.into(), value.into())),
        false => Err(refused()),
    }
}

/// `size=SIZE`.
///
/// # Errors
///
/// [`OptionError::Storage`] for any other option.
pub fn storage(text: &str) -> Result<u64, OptionError> {
    match text.split_once('=') {
        Some(("size", bytes)) => size(bytes),
        _ => Err(OptionError::Storage(text.into())),
    }
}

/// What is changed in a container that exists; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Processor time.
    pub cpus: Option<Cpus>,
    /// Which of the host's processors.
    pub cpuset: Option<CpuSet>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads; 0 and below for no limit.
    pub pids: Option<i64>,
    /// When it is started again.
    pub restart: Option<RestartPolicy>,
}

/// What a container that runs does not have before it is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// More processors than its machine has.
    pub cpus: bool,
    /// More memory than its machine has.
    pub memory: bool,
}

/// Changes what a container may use, at once where it runs.
///
/// # Errors
///
/// Where there is no such container, the host has no such memory, what goes with its end is to be started again, or the
/// supervisor cannot be told.
pub fn change(containers: &Containers, id: &Id, change: &Change) -> Result<Later, RunError> {
    if let Some(memory) = change.memory {
        check_memory(memory.bytes())?;
    }
    if change
        .restart
        .is_some_and(|policy| policy != RestartPolicy::No)
        && containers.record(id)?.spec.remove
    {
        return Err(RunError::RestartOfTransient(id.short().into()));
    }
    containers.change(id, |spec| apply(spec, change))?;
    containers.record_event(id, "update", &[]);
    reload(containers, id)
}

/// Has a container that runs be what is written down of it, as far as it can before its next start.
///
/// # Errors
///
/// Where its supervisor cannot be told.
pub fn reload(containers: &Containers, id: &Id) -> Result<Later, RunError> {
    let Some(mut session) = connect(containers, id, Request::Reload)? else {
        return Ok(Later::default());
    };
    match session.wait()? {
        Some(Reply::Reloaded(later)) => Ok(later),
        // It ended meanwhile, and has it at its next start.
        _ => Ok(Later::default()),
    }
}

fn apply(spec: &mut Spec, change: &Change) {
    let machine = &mut spec.machine;
    if let Some(cpus) = change.cpus {
        machine.cpus = cpus;
        spec.setup.limits.nano_cpus = cpus.throttle(cpus.vcpus());
    }
    if let Some(cpuset) = &change.cpuset {
        machine.cpuset = Some(cpuset.clone());
    }
    if let Some(memory) = change.memory {
        machine.memory_bytes = memory.bytes();
    }
    if let Some(pids) = change.pids {
        spec.setup.limits.pids = u64::try_from(pids).ok().filter(|pids| *pids > 0);
    }
    if let Some(restart) = change.restart {
        spec.restart = restart;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a65_processors_out_of_range_are_refused() {
        for text in [
            "0",
            "0.001",
            "33",
            "32.1",
            "10000",
            "-1",
            "",
            ".",
            "1.",
            "1e1",
            "x",
            "1.5.2",
            "99999999999999999999",
        ] {
            let parsed = text.parse::<Cpus>();
            match text {
                "1." => assert_eq!(parsed, Ok(Cpus(NANO))),
                _ => assert_eq!(parsed, Err(OptionError::Cpus(text.into())), "{text}"),
            }
        }
    }

    #[test]
    fn fractions_of_processors_are_held_to() {
        for (text, vcpus, throttle) in [
            ("1", 1, None),
            ("0.5", 1, Some(500_000_000)),
            (".01", 1, Some(10_000_000)),
            ("1.5", 2, Some(1_500_000_000)),
            ("32", 32, None),
        ] {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!(
                (cpus.vcpus(), cpus.throttle(vcpus)),
                (vcpus, throttle),
                "{text}"
            );
        }
    }

    #[test]
    fn sets_of_processors_are_lists_of_ranges() {
        let set: CpuSet = "0-2,7,1".parse().unwrap();
        assert_eq!(
            (set.cpus(), set.to_string().as_str()),
            (&[0, 1, 2, 7][..], "0,1,2,7")
        );
        for text in ["", "2-1", "a", "0,", "-1", "0-99999", "1024"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_name_a_device() {
        let rate = |kind, text| DiskRate::parse(kind, text).map(|rate| rate.rate);
        assert_eq!(rate(RateKind::ReadBytes, "/dev/sda:1mb"), Ok(1 << 20));
        assert_eq!(rate(RateKind::Writes, "/dev/sda:100"), Ok(100));
        for text in ["/dev/sda", "sda:1", "/dev/sda:0", "/dev/sda:x", ":1"] {
            assert!(rate(RateKind::Reads, text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sysctl_leads_nowhere_else() {
        assert_eq!(
            sysctl("net.core.somaxconn=1024"),
            Ok(("net.core.somaxconn".into(), "1024".into()))
        );
        for text in [
            "a=1",
            "net..core=1",
            "../x.y=1",
            "net/core.x=1",
            "net.core",
            ".=1",
        ] {
            assert!(sysctl(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_limits_are_read() {
        assert_eq!(pids("-1"), Ok(-1));
        assert!(pids("-2").is_err() && pids("x").is_err());
        assert_eq!(storage("size=1g"), Ok(1 << 30));
        assert!(storage("x=1").is_err());
        assert!("0".parse::<Shm>().is_err());
    }
}
