//! Memory of every process on the host that serves one idle container.

use std::{
    fs, io,
    io::Write,
    process::{Child, Command, Stdio},
};

use serde::Serialize;

use super::{
    BenchError, StartConfig,
    bundle::Bundle,
    command::{failed, first_byte, pillbug_run},
};

use crate::sandbox::kernel;

/// One process, in KiB, as `/proc/PID/smaps` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// What it was started as.
    pub command: String,
    /// Its own pages and its share of pages that others have too.
    pub pss_kib: u64,
    /// Pages that nobody else has, without guest memory.
    pub private_kib: u64,
    /// Guest memory it holds.
    pub guest_kib: u64,
}

/// An idle container of pillbug's.
pub fn of_pillbug(config: &StartConfig) -> Result<Vec<ProcessMemory>, BenchError> {
    idle(pillbug_run(config, &["-i"], &["cat"]), "pillbug")
}

/// An idle container of another runtime's.
pub fn of_peer(name: &str, bundle: &Bundle) -> Result<Vec<ProcessMemory>, BenchError> {
    let id = format!("pillbug-bench-{}-idle", std::process::id());
    let command = bundle.run_with(name, &id, &["cat"])?;
    idle(command, name)
}

/// Starts `cat`, has it answer once so that all of it runs, looks, and lets it end.
fn idle(mut command: Command, program: &str) -> Result<Vec<ProcessMemory>, BenchError> {
    let broken = |source: io::Error| BenchError::Memory {
        program: program.into(),
        source,
    };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(|source| BenchError::Spawn {
        program: program.into(),
        source,
    })?;
    let asked = child
        .stdin
        .as_mut()
        .map_or(Ok(()), |stdin| stdin.write_all(b"x"));
    let found = asked
        .and_then(|()| first_byte(&mut child))
        .and_then(|()| tree(&child));
    drop(child.stdin.take());
    let status = child.wait().map_err(broken)?;
    if !status.success() {
        return Err(failed(program, status, String::new()));
    }
    found.map_err(broken)
}

/// The child and everything below it.
fn tree(child: &Child) -> io::Result<Vec<ProcessMemory>> {
    let parents = parents()?;
    let mut family = vec![child.id()];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    family.into_iter().map(process).collect()
}

/// Every process and its parent.
fn parents() -> io::Result<Vec<(u32, u32)>> {
    let pids = fs::read_dir("/proc")?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids
        .filter_map(|pid| {
            // Behind the name, which may hold anything: state, then parent (proc(5)).
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let behind = stat.rsplit_once(") ")?.1;
            Some((pid, behind.split(' ').nth(1)?.parse().ok()?))
        })
        .collect())
}

/// Whether a mapping is memory of the guest: its RAM, or the kernel and initial RAM file system that lie in it as
/// private mappings of their files.
fn is_guest(mapping: &str) -> bool {
    let kernel = kernel::find(None)
        .ok()
        .and_then(|path| path.canonicalize().ok());
    ["/memfd:guest-memory", "/memfd:initramfs"]
        .iter()
        .any(|name| mapping.contains(name))
        || kernel.is_some_and(|path| mapping.ends_with(&*path.to_string_lossy()))
}

fn process(pid: u32) -> io::Result<ProcessMemory> {
    let command = fs::read(format!("/proc/{pid}/cmdline"))?;
    let command = String::from_utf8_lossy(&command)
        .split('\0')
        .take(2)
        .collect::<Vec<_>>()
        .join(" ");
    let mut memory = ProcessMemory {
        command,
        pss_kib: 0,
        private_kib: 0,
        guest_kib: 0,
    };
    let mut guest = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kib = value.parse().unwrap_or(0);
        match key {
            "Pss:" => memory.pss_kib += kib,
            "Rss:" if guest => memory.guest_kib += kib,
            "Private_Clean:" | "Private_Dirty:" if !guest => memory.private_kib += kib,
            // A line without a colon behind its first word begins a mapping.
            _ if !key.ends_with(':') => guest = is_guest(line),
            _ => {}
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_and_its_memory_are_found() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        first_byte(&mut child).unwrap();
        let found = tree(&child).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].command.contains("cat"));
        assert!(found[0].private_kib > 0 && found[0].pss_kib >= found[0].private_kib);
        assert_eq!(found[0].guest_kib, 0);
    }
}
