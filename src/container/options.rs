//! What a user asked of a container, as meant: parsed and checked, before the image is known.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use protocol::{HostEntry, Mount, Resource, Rlimit, WindowSize};
use vmm::VmConfig;

use super::{
    health::HealthOptions,
    limits::LimitOptions,
    log::LogConfig,
    mount::{MountRequest, VolumesFrom},
    network::NetworkSpec,
    restart::RestartPolicy,
};

/// A request to create a container.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its name; one is made up where there is none.
    pub name: Option<String>,
    /// Replaces the image's entry point; an empty list removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    /// Added to the image's environment, in order.
    pub env: Vec<EnvChange>,
    /// Replaces the image's working directory.
    pub working_directory: Option<String>,
    /// Replaces the image's user.
    pub user: Option<String>,
    /// Host name; the start of the container's ID where there is none.
    pub hostname: Option<String>,
    /// What it may use.
    pub limits: LimitOptions,
    /// Make the root file system read-only.
    pub read_only: bool,
    /// tmpfs mounts.
    pub tmpfs: Vec<Mount>,
    /// Volumes, and folders and files of the host.
    pub mounts: Vec<MountRequest>,
    /// Containers whose volumes it gets.
    pub volumes_from: Vec<VolumesFrom>,
    /// Whether folders may be mounted through which the host is ruled.
    pub dangerous_mounts: bool,
    /// Run the process below a small reaping init.
    pub init: bool,
    /// All capabilities, devices and writable `/proc` and `/sys`, within the VM.
    pub privileged: bool,
    /// Capabilities beyond the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Resource limits.
    pub ulimits: Vec<Rlimit>,
    /// User's own data, kept with the container.
    pub labels: BTreeMap<String, String>,
    /// Its network.
    pub network: NetworkSpec,
    /// Domains, and options, of its resolver.
    pub dns_search: Vec<String>,
    /// See there.
    pub dns_options: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<HostEntry>,
    /// Remove the container when it ends.
    pub remove: bool,
    /// Nobody is attached when it starts.
    pub detach: bool,
    /// How its output is kept.
    pub log: LogConfig,
    /// What asks it to end, in place of the image's signal.
    pub stop_signal: Option<u8>,
    /// Seconds from there until it is killed; negative: never.
    pub stop_timeout: Option<i64>,
    /// How it is seen whether it works.
    pub health: HealthOptions,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Connect standard input.
    pub interactive: bool,
    /// Give the process a terminal of this size.
    pub terminal: Option<WindowSize>,
    /// Guest kernel to boot in place of the installed one.
    pub kernel: Option<PathBuf>,
    /// Where the guest kernel's serial console goes, for debugging.
    pub kernel_console: Option<PathBuf>,
}

/// A request to run another process in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Changes to the container's environment, in order.
    pub env: Vec<EnvChange>,
    /// Replaces the container's user.
    pub user: Option<String>,
    /// Replaces the container's working directory.
    pub working_directory: Option<String>,
    /// Give the process a terminal of this size.
    pub terminal: Option<WindowSize>,
    /// All capabilities.
    pub privileged: bool,
}

/// One change to the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// Set this variable.
    Set(String, String),
    /// Remove it.
    Unset(String),
}

/// Guest memory in bytes: whole pages, at least [`VmConfig::MIN_MEMORY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(u64);

impl Default for Memory {
    /// 512 MiB. Only what the guest touches is taken from the host.
    fn default() -> Self {
        Self(512 << 20)
    }
}

impl Memory {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// A value that a flag does not take.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OptionError {
    #[error("{0:?} is not a number of CPUs: give one from 0.01 to {max}", max = VmConfig::MAX_VCPUS)]
    Cpus(String),
    #[error("{0:?} is not a list of CPUs: give their numbers, such as 0-3,7")]
    CpuSet(String),
    #[error("{0:?} is not a limit of processes: give a number, or -1 for no limit")]
    Pids(String),
    #[error("{0:?} is not a sysctl: give NAME=VALUE, such as net.core.somaxconn=1024")]
    Sysctl(String),
    #[error("{0:?} is no storage option: give size=SIZE, such as size=20g")]
    Storage(String),
    #[error("{0:?} is not a rate: give DEVICE:RATE, such as /dev/sda:10mb")]
    DiskRate(String),
    #[error("{0:?} is not a size: give a number with b, k, m or g, such as 512m")]
    Size(String),
    #[error("{0:?} is too little memory: a virtual machine needs at least 32m")]
    TooLittleMemory(String),
    #[error("{0:?} is not a resource limit: give NAME=SOFT[:HARD], such as nofile=1024:2048")]
    Ulimit(String),
    #[error("{name:?} is no resource limit: one of {}", known_resources())]
    UnknownResource { name: String },
    #[error("the soft limit of {0:?} is above its hard limit")]
    SoftAboveHard(String),
    #[error("{0:?} is not an environment variable: give NAME=VALUE, or NAME to pass on its value")]
    Env(String),
    #[error(
        "{0:?} is not a tmpfs: give an absolute folder, with mount options after a colon, such as /run:size=64m"
    )]
    Tmpfs(String),
    #[error("{0:?} is not a host name: up to 63 letters, digits and hyphens a label, 64 in all")]
    Hostname(String),
}

impl FromStr for Memory {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        const PAGE: u64 = 4096;
        match size(text)? {
            bytes if bytes < VmConfig::MIN_MEMORY => Err(OptionError::TooLittleMemory(text.into())),
            bytes => Ok(Self(bytes - bytes % PAGE)),
        }
    }
}

/// A size in bytes as Docker takes it: a number, which may have a fraction, and a unit of 1024
/// (`b k m g t`, with or without `b` or `ib` after it, in either case).
///
/// # Errors
///
/// [`OptionError::Size`] for anything else, and for more than 2⁶⁴ bytes.
pub fn size(text: &str) -> Result<u64, OptionError> {
    let refused = || OptionError::Size(text.into());
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refused()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(refused);
    }
    let fraction: f64 = number.parse().map_err(|_| refused())?;
    let bytes = fraction * (1u64 << shift) as f64;
    // 2⁵³: what an f64 tells apart byte by byte.
    if bytes <= 9_007_199_254_740_992.0 {
        Ok(bytes as u64)
    } else {
        Err(refused())
    }
}

const RESOURCES: [(&str, Resource); 16] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

fn known_resources() -> String {
    RESOURCES.map(|(name, _)| name).join(", ")
}

/// `NAME=SOFT[:HARD]`; -1 is unlimited, and a missing hard limit is the soft one.
///
/// # Errors
///
/// For another form, an unknown name, or a soft limit above the hard one.
pub fn ulimit(text: &str) -> Result<Rlimit, OptionError> {
    let refused = || OptionError::Ulimit(text.into());
    let (name, limits) = text.split_once('=').ok_or_else(refused)?;
    let resource = RESOURCES
        .iter()
        .find_map(|(known, resource)| (*known == name).then_some(*resource))
        .ok_or_else(|| OptionError::UnknownResource { name: name.into() })?;
    let limit = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_| refused()),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    if soft > hard {
        return Err(OptionError::SoftAboveHard(text.into()));
    }
    Ok(Rlimit {
        resource,
        soft,
        hard,
    })
}

/// `NAME=VALUE`, or `NAME` for the value that `lookup` gives: where it gives none the variable is
/// removed, as Docker does.
///
/// # Errors
///
/// [`OptionError::Env`] for an empty name or a NUL byte.
pub fn env(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<EnvChange, OptionError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, lookup(text)),
    };
    if name.is_empty() || text.contains('\0') {
        return Err(OptionError::Env(text.into()));
    }
    Ok(match value {
        Some(value) => EnvChange::Set(name.into(), value),
        None => EnvChange::Unset(name.into()),
    })
}

/// `FOLDER[:OPTIONS]`, with Docker's defaults `nosuid,nodev,noexec`, which an option turns off by its
/// opposite.
///
/// # Errors
///
/// [`OptionError::Tmpfs`] where the folder is not absolute, is the root, or holds a NUL byte.
pub fn tmpfs(text: &str) -> Result<Mount, OptionError> {
    let (target, given) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') || target.trim_matches('/').is_empty() || text.contains('\0') {
        return Err(OptionError::Tmpfs(text.into()));
    }
    let given: Vec<&str> = given
        .split(',')
        .filter(|option| !option.is_empty())
        .collect();
    let mut options: Vec<String> = [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")]
        .into_iter()
        .filter(|(_, opposite)| !given.contains(opposite))
        .map(|(default, _)| default.to_owned())
        .collect();
    options.extend(
        given
            .iter()
            .filter(|option| !["suid", "dev", "exec"].contains(option))
            .map(ToString::to_string),
    );
    Ok(Mount {
        fs_type: "tmpfs".into(),
        source: "tmpfs".into(),
        target: target.into(),
        options,
        fill: false,
    })
}

/// A host name of RFC 1123: labels of letters, digits and hyphens; 64 bytes is what Linux keeps.
///
/// # Errors
///
/// [`OptionError::Hostname`] for anything else.
pub fn hostname(text: &str) -> Result<String, OptionError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= 64 && text.split('.').all(label) {
        Ok(text.into())
    } else {
        Err(OptionError::Hostname(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a65_numbers_out_of_range_are_refused() {
        assert_eq!(
            "1m".parse::<Memory>(),
            Err(OptionError::TooLittleMemory("1m".into()))
        );
        assert_eq!("32m".parse::<Memory>().map(Memory::bytes), Ok(32 << 20));
        for text in ["", "x", "-1", "1.2.3", "12q", "99999999999t", "1e3"] {
            assert_eq!(
                text.parse::<Memory>(),
                Err(OptionError::Size(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("10T"), Ok(10 << 40));
    }

    #[test]
    fn ulimits_are_soft_and_hard() {
        let nofile = |soft, hard| {
            Ok(Rlimit {
                resource: Resource::Nofile,
                soft,
                hard,
            })
        };
        assert_eq!(ulimit("nofile=1024"), nofile(1024, 1024));
        assert_eq!(ulimit("nofile=1:-1"), nofile(1, u64::MAX));
        assert!(matches!(
            ulimit("nofile=2:1"),
            Err(OptionError::SoftAboveHard(_))
        ));
        assert!(matches!(
            ulimit("wings=2"),
            Err(OptionError::UnknownResource { .. })
        ));
        assert!(matches!(ulimit("nofile"), Err(OptionError::Ulimit(_))));
    }

    #[test]
    fn a36_values_of_variables_are_kept_as_they_are() {
        let none = |_: &str| None;
        assert_eq!(
            env("A=b=c\nd init=/x", none),
            Ok(EnvChange::Set("A".into(), "b=c\nd init=/x".into()))
        );
        assert_eq!(
            env("A", |_| Some("host".into())),
            Ok(EnvChange::Set("A".into(), "host".into()))
        );
        assert_eq!(env("A", none), Ok(EnvChange::Unset("A".into())));
        assert!(env("=x", none).is_err());
    }

    #[test]
    fn tmpfs_is_restricted_unless_told_otherwise() {
        assert_eq!(
            tmpfs("/run").unwrap().options,
            ["nosuid", "nodev", "noexec"]
        );
        assert_eq!(
            tmpfs("/run:exec,size=1m").unwrap().options,
            ["nosuid", "nodev", "size=1m"]
        );
        assert!(tmpfs("run").is_err());
        assert!(tmpfs("/").is_err());
    }

    #[test]
    fn host_names_are_checked() {
        assert!(hostname("web-1.example").is_ok());
        for name in ["", "-a", "a b", "a..b", "a\n", &"a".repeat(65)] {
            assert!(hostname(name).is_err(), "{name:?}");
        }
    }
}
