//! Who has a port that somebody else wants.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{lease::Lease, port::Protocol};

/// In words: a container, else a process, as far as this user may see.
pub fn of(at: SocketAddr, protocol: Protocol, leases: &[Lease]) -> String {
    let overlaps = |other: &SocketAddr| {
        other.port() == at.port()
            && other.is_ipv6() == at.is_ipv6()
            && (other.ip() == at.ip() || other.ip().is_unspecified() || at.ip().is_unspecified())
    };
    for lease in leases {
        let mut ports = lease.published.iter();
        if ports.any(|port| port.protocol == protocol && overlaps(&port.host)) {
            return format!("container {:?}", lease.name);
        }
    }
    inode(at.port(), protocol)
        .and_then(|inode| process_with(&inode))
        .unwrap_or_else(|| "another process".into())
}

/// Of a socket that listens on that port (proc_net_tcp of the kernel's documentation).
fn inode(port: u16, protocol: Protocol) -> Option<String> {
    // Listening, and for UDP, which has no such state, unconnected.
    let state = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    let suffix = format!(":{port:04X}");
    ["", "6"].iter().find_map(|version| {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{version}")).ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let matches = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == state;
            matches.then(|| fields.get(9).map(ToString::to_string))?
        })
    })
}

/// The process that has the socket open.
fn process_with(inode: &str) -> Option<String> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let has = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).ok()?;
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link == wanted))
            .then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        has(&entry.path())?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(format!("process {pid} ({})", name.trim_end()))
    })
}
