//! What the container uses, read when the host asks: its control group's counters, and its processes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
};

use protocol::{ProcessInfo, ProcessList, Usage};
use rustix::{
    fs::{Dir, Mode, OFlags, openat},
    mount::MountAttrFlags,
};

use crate::{cgroup::Cgroup, mount, now_ns};

/// Largest of these files that is read in bytes.
const FILE_LIMIT: u64 = 64 << 10;
/// What sizes in `/proc/PID/stat` are counted in.
const PAGE: u64 = 4096;

/// What the group uses.
///
/// # Errors
///
/// Where a counter cannot be read.
pub fn measure(cgroup: &Cgroup) -> io::Result<Usage> {
    let processor = cgroup.read("cpu.stat")?;
    let memory = cgroup.read("memory.stat")?;
    let current = number(&cgroup.read("memory.current")?);
    Ok(Usage {
        at_ns: now_ns(),
        cpu_ns: field(&processor, "usage_usec").saturating_mul(1000),
        memory_bytes: current.saturating_sub(field(&memory, "inactive_file")),
        memory_total_bytes: memory_total()?,
        pids: number(&cgroup.read("pids.current")?),
    })
}

/// All processes of the container, by their IDs in there.
///
/// # Errors
///
/// Where there is no `/proc` to be had.
pub fn processes() -> io::Result<ProcessList> {
    let proc = mount::create("proc", &[], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    let readable = openat(&proc, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut inner = BTreeMap::new();
    let mut found = Vec::new();
    for entry in Dir::new(readable)? {
        let entry = entry?;
        let Some(outer) = entry
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that has ended meanwhile is no longer there, one of the machine's is none of the container's.
        if let Ok(Some((parent, process))) = process(proc.as_fd(), outer) {
            inner.insert(outer, process.pid);
            found.push((parent, process));
            if found.len() == ProcessList::MAX_COUNT {
                break;
            }
        }
    }
    let mut processes: Vec<ProcessInfo> = found
        .into_iter()
        .map(|(parent, process)| ProcessInfo {
            ppid: inner.get(&parent).copied().unwrap_or(0),
            ..process
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    Ok(ProcessList {
        // A tick is a hundredth of a second to programs, whatever the kernel's.
        at_ticks: now_ns() / 10_000_000,
        processes,
    })
}

/// A process and its parent's ID out here; `None` where it is not the container's.
fn process(proc: BorrowedFd<'_>, outer: u32) -> io::Result<Option<(u32, ProcessInfo)>> {
    let read = |name: &str| read(proc, &format!("{outer}/{name}"));
    let status = read("status")?;
    let line = |name: &str| {
        let prefix = format!("{name}:");
        let mut lines = status.lines();
        lines.find_map(move |line| line.strip_prefix(prefix.as_str()))
    };
    // One number for each PID namespace that it is in, the outermost first.
    let Some(pid) = line("NSpid").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok())
    else {
        return Ok(None);
    };
    let uid = line("Uid").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok());
    let stat = read("stat")?;
    let Some(stat) = Stat::parse(&stat) else {
        return Ok(None);
    };
    let arguments = read("cmdline")?.replace('\0', " ");
    let mut command = match arguments.trim_end() {
        "" => format!("[{}]", line("Name").unwrap_or_default().trim()),
        arguments => arguments.to_owned(),
    };
    command.truncate(command.floor_char_boundary(ProcessInfo::MAX_COMMAND));
    let info = ProcessInfo {
        pid,
        ppid: 0,
        uid: uid.unwrap_or(0),
        state: stat.state,
        started_ticks: stat.started_ticks,
        cpu_ticks: stat.cpu_ticks,
        terminal: stat.terminal,
        resident_bytes: stat.resident_bytes,
        command,
    };
    Ok(Some((stat.parent, info)))
}

/// What is used of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: u32,
    terminal: u32,
    cpu_ticks: u64,
    started_ticks: u64,
    resident_bytes: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses and may hold anything, these too.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first one here is field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(4)?).ok()?,
            terminal: u32::try_from(number(7)?).ok()?,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            started_ticks: number(22)?,
            resident_bytes: number(24)?.saturating_mul(PAGE),
        })
    }
}

fn memory_total() -> io::Result<u64> {
    let information = rustix::system::sysinfo();
    let unit = u64::from(information.mem_unit);
    #[allow(clippy::useless_conversion, reason = "it is not u64 on every target")]
    Ok(u64::from(information.totalram).saturating_mul(unit))
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The value of a line `NAME VALUE`; 0 where there is none.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(key, value)| (key == name).then(|| number(value)))
        .unwrap_or(0)
}

fn read(folder: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = File::from(openat(folder, path, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pose_as_further_fields() {
        let stat = "42 (a) R 1 (x) S 7 42 42 34816 42 4194304 98 0 0 0 12 3 0 0 20 0 1 0 1234 \
                    2547712 174 18446744073709551615 1 1 0 0 0 0 0 0 17 0 0 0 0 0 0";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat {
                state: 'S',
                parent: 7,
                terminal: 34816,
                cpu_ticks: 15,
                started_ticks: 1234,
                resident_bytes: 174 * 4096,
            })
        );
        assert_eq!(Stat::parse("42 (a) R 1"), None);
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "usage_usec 1500\nuser_usec 1000\n";
        assert_eq!((field(text, "usage_usec"), field(text, "x")), (1500, 0));
    }
}
