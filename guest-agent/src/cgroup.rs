//! The container's control group (cgroup v2): everything that runs in the container runs in it, the
//! agent outside.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use protocol::Limits;
use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    mount::MountAttrFlags,
};

use crate::mount;

/// What `cpu.max` counts by, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// Name below the root group.
const NAME: &str = "container";

/// The container's group.
pub struct Cgroup {
    folder: OwnedFd,
}

impl Cgroup {
    /// Makes the group, with every controller that the kernel has.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn create() -> io::Result<Self> {
        // nsdelegate: a namespace's root group belongs to whoever made the namespace, so that a
        // privileged container cannot lift its own limits.
        let hierarchy = mount::create("cgroup2", &[("nsdelegate", None)], MountAttrFlags::empty())?;
        let available = read(hierarchy.as_fd(), "cgroup.controllers")?;
        let enable: String = available
            .split_whitespace()
            .map(|name| format!("+{name} "))
            .collect();
        write(hierarchy.as_fd(), "cgroup.subtree_control", &enable)?;
        mkdirat(&hierarchy, NAME, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            folder: openat(&hierarchy, NAME, flags, Mode::empty())?,
        })
    }

    /// Sets what the group may use; what is none is no longer limited.
    ///
    /// # Errors
    ///
    /// Those of the kernel, with the name of the setting.
    pub fn limit(&self, limits: &Limits) -> Result<(), (&'static str, io::Error)> {
        let processor = limits.nano_cpus.map(|cpus| {
            // What the kernel counts in: microseconds of each tenth of a second.
            format!("{} {PERIOD}", (cpus / (1_000_000_000 / PERIOD)).max(1000))
        });
        let settings = [
            (
                "cpu.max",
                processor.unwrap_or_else(|| format!("max {PERIOD}")),
            ),
            ("memory.max", or_max(limits.memory_bytes)),
            ("pids.max", or_max(limits.pids)),
        ];
        for (name, value) in settings {
            write(self.folder.as_fd(), name, &value).map_err(|error| (name, error))?;
        }
        Ok(())
    }

    /// One of its files, such as `memory.current`.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn read(&self, name: &str) -> io::Result<String> {
        read(self.folder.as_fd(), name)
    }

    /// Its folder, for clone3(2).
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Makes all that runs in the group stand still, or go on.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn freeze(&self, still: bool) -> io::Result<()> {
        write(
            self.folder.as_fd(),
            "cgroup.freeze",
            if still { "1" } else { "0" },
        )
    }

    /// What says whether all stands still; polled for `POLLPRI`, it tells of changes.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn events(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = openat(&self.folder, "cgroup.events", flags, Mode::empty())?;
        Ok(events.into())
    }

    /// Whether all stands still.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn is_frozen(&self, events: &File) -> io::Result<bool> {
        let mut text = [0; 256];
        let length = events.read_at(&mut text, 0)?;
        let mut lines = text[..length].split(|byte| *byte == b'\n');
        Ok(lines.any(|line| line == b"frozen 1"))
    }

    /// Whether the kernel's OOM killer has ended a process of the group or below it, for its own
    /// limit or because the machine's memory was used up.
    pub fn oom_killed(&self) -> bool {
        read(self.folder.as_fd(), "memory.events").is_ok_and(|events| has_oom_kill(&events))
    }
}

fn or_max(limit: Option<u64>) -> String {
    limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string())
}

fn has_oom_kill(events: &str) -> bool {
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

fn read(folder: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = openat(
        folder,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

fn write(folder: BorrowedFd<'_>, name: &str, text: &str) -> io::Result<()> {
    let file = openat(
        folder,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    File::from(file).write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a49_an_oom_kill_is_told_from_mere_pressure() {
        assert!(!has_oom_kill(
            "low 0\nhigh 3\nmax 12\noom 4\noom_kill 0\noom_group_kill 0\n"
        ));
        assert!(has_oom_kill(
            "low 0\nhigh 0\nmax 0\noom 1\noom_kill 2\noom_group_kill 0\n"
        ));
    }
}
