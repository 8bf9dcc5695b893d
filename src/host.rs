//! What this host can do for pillbug, found out by trying rather than by looking for files.

use std::fs::{self, OpenOptions};

use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::{
    sandbox::{self, kernel},
    state_root,
};

/// Free space below which nothing can be expected to work, in bytes.
const LEAST_SPACE: u64 = 128 << 20;

/// Free space below which images will not fit for long, in bytes.
const LITTLE_SPACE: u64 = 2 << 30;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// `run` works, something else will not.
    Warning,
    /// `run` would fail.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_out: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            way_out: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, way_out: &str) -> Self {
        let way_out = Some(way_out.to_owned());
        Self {
            name,
            verdict: Verdict::Warning,
            found: found.into(),
            way_out,
        }
    }

    fn failure(name: &'static str, found: impl Into<String>, way_out: &str) -> Self {
        Self {
            verdict: Verdict::Failure,
            ..Self::warning(name, found, way_out)
        }
    }
}

/// Looks at everything. Takes less than 100 ms, most of it to run a tiny guest.
#[must_use]
pub fn examine() -> Vec<Check> {
    vec![
        kvm(),
        guest_kernel(),
        state(),
        cgroup(),
        tun(),
        nftables(),
        iproute(),
        passt(),
        uidmap(),
    ]
}

fn kvm() -> Check {
    const NAME: &str = "KVM";
    const EMULATED: &str = "use a host with hardware virtualization (bare metal, or a VM with nested \
                            virtualization), or `make lab` in pillbug's source for an emulated one";
    let kvm = match sandbox::open_kvm() {
        Ok(kvm) => kvm,
        Err(error) => {
            let way_out = match error {
                sandbox::SandboxError::KvmPermission => {
                    "sudo usermod -aG kvm $USER, then log in again"
                }
                _ => EMULATED,
            };
            return Check::failure(NAME, chain(&error), way_out);
        }
    };
    match vmm::probe::probe(kvm) {
        Ok(report) => Check::ok(
            NAME,
            format!(
                "ran a test guest in {:.1} ms; up to {} vCPUs",
                report.elapsed.as_secs_f64() * 1e3,
                report.max_vcpus,
            ),
        ),
        Err(error) => Check::failure(NAME, chain(&error), EMULATED),
    }
}

fn guest_kernel() -> Check {
    const NAME: &str = "guest kernel";
    match kernel::find(None) {
        Ok(path) => Check::ok(NAME, path.display().to_string()),
        Err(error) => Check::failure(NAME, chain(&error), "run `make kernel` in pillbug's source"),
    }
}

fn state() -> Check {
    const NAME: &str = "state folder";
    let located = state_root::locate().and_then(|path| {
        state_root::private_folder(&path)?;
        Ok(path)
    });
    let path = match located {
        Ok(path) => path,
        Err(error) => {
            let way_out = "name a folder of your own with PILLBUG_ROOT";
            return Check::failure(NAME, chain(&error), way_out);
        }
    };
    let shown = path.display();
    if let Err(error) = tempfile::tempfile_in(&path) {
        return Check::failure(
            NAME,
            format!("cannot write to {shown}: {error}"),
            "make it writable",
        );
    }
    match statvfs(&path) {
        Ok(space) => {
            let free = space
                .blocks_available()
                .saturating_mul(space.fragment_size());
            let found = format!("{shown}, {} MiB free", free >> 20);
            match free {
                ..LEAST_SPACE => Check::failure(NAME, found, "free some space"),
                LEAST_SPACE..LITTLE_SPACE => Check::warning(NAME, found, "free some space"),
                _ => Check::ok(NAME, found),
            }
        }
        Err(error) => Check::warning(NAME, format!("{shown}: {error}"), "free some space"),
    }
}

fn cgroup() -> Check {
    const NAME: &str = "cgroup v2";
    match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers) => Check::ok(NAME, controllers.trim().replace(' ', ", ")),
        Err(_) => Check::warning(
            NAME,
            "not mounted on /sys/fs/cgroup",
            "boot with systemd.unified_cgroup_hierarchy=1; without it a VMM's own use has no limits",
        ),
    }
}

fn tun() -> Check {
    const NAME: &str = "tun";
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok(NAME, path),
        Err(error) => Check::warning(
            NAME,
            format!("{path}: {error}"),
            "modprobe tun; bridged networks, which take root, need it",
        ),
    }
}

fn nftables() -> Check {
    program(
        "nftables",
        "nft",
        "apt install nftables; bridged networks, which take root, need it",
    )
}

fn iproute() -> Check {
    program(
        "iproute2",
        "ip",
        "apt install iproute2; bridged networks, which take root, need it",
    )
}

fn passt() -> Check {
    program(
        "passt",
        "passt",
        "apt install passt; without it, containers of users other than root have no network",
    )
}

fn uidmap() -> Check {
    program(
        "uidmap",
        "newuidmap",
        "apt install uidmap; without it, containers of users other than root have no volumes with owners",
    )
}

fn program(name: &'static str, program: &str, way_out: &str) -> Check {
    match crate::program::find(program) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::warning(name, format!("there is no program `{program}`"), way_out),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_a_way_out() {
        for check in examine() {
            assert_eq!(
                check.way_out.is_none(),
                check.verdict == Verdict::Ok,
                "{check:?}"
            );
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }
}
