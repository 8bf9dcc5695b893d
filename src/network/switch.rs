//! The driver of networks that containers without root are on: a switch between their machines, which is a process of this
//! program's for each network.
//!
//! This is the side of who puts a machine on a network. The process starts with the first machine and ends with the
//! last: it lives as long as somebody is connected to its socket. The process itself is in [`process`], what it does with
//! frames in `fabric`.

mod fabric;
pub mod process;

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, bind, connect, listen, recvmsg, sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde::{Deserialize, Serialize};

use super::{error::NetworkError, lease::Lease};
use crate::own_process;

/// First argument of a switch's process; whoever parses the command line hands over to it.
pub const SWITCH_PROCESS: &str = "switch-process";

/// Longest message in bytes to a switch.
const MAX_MESSAGE: usize = 64 << 10;
/// How long a switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Machines that may wait to be let in.
const BACKLOG: i32 = 128;
/// What a switch says: the machine is on the network; there is no room for it; its way out is gone.
const JOINED: &[u8] = b"joined";
const FULL: &[u8] = b"full";
const NO_WAY_OUT: &[u8] = b"no way out";

/// A machine that wants to be on a network. With it come its stream and, where it has a way out, that of its passt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The address at which its way out begins.
    pub gateway: Option<Ipv4Addr>,
    /// Where its way out must not lead.
    pub denied: Vec<IpNet>,
}

/// A machine's place on a network, until this is dropped.
#[derive(Debug)]
pub struct Membership {
    network: String,
    control: OwnedFd,
}

/// Puts a machine on the network called `network`, whose switch is started where there is none. The caller holds the
/// lock of all networks and a lease.
///
/// # Errors
///
/// Where it cannot be started, or does not answer.
pub fn join(
    networks: &Path,
    network: &str,
    member: &Member,
    streams: &[BorrowedFd<'_>],
    log: &Path,
) -> Result<Membership, NetworkError> {
    let failed = |source| NetworkError::Switch {
        network: network.into(),
        source,
    };
    let folder = folder(networks);
    let mut answer = Err(io::ErrorKind::NotFound.into());
    // One that was about to end does not answer; the second is new.
    for _ in 0..2 {
        let control = match reach(&folder, network) {
            Ok(control) => control,
            Err(error) if is_absent(&error) => start(&folder, network, log).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        };
        answer = enter(&control, member, streams);
        match &answer {
            Ok(said) if said == JOINED => {
                return Ok(Membership {
                    network: network.into(),
                    control,
                });
            }
            Ok(said) if said == FULL => return Err(NetworkError::Full(network.into())),
            _ => drop(fs::remove_file(folder.join(network))),
        }
    }
    let silent = || io::ErrorKind::UnexpectedEof.into();
    Err(failed(answer.err().unwrap_or_else(silent)))
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

impl Membership {
    /// Takes in what the switch says when it is readable: that it is over.
    pub fn hear(&self) -> NetworkError {
        let network = self.network.clone();
        match receive(self.control.as_fd()) {
            Ok(Some((said, _))) if said == NO_WAY_OUT => NetworkError::WayOutLost(network),
            _ => NetworkError::SwitchLost(network),
        }
    }
}

impl AsFd for Membership {
    /// Readable when there is something to [`hear`](Self::hear).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

/// Removes the sockets of switches whose networks nobody is on. The caller holds the lock of all networks.
///
/// # Errors
///
/// Where the folder cannot be listed.
pub fn sweep(networks: &Path, leases: &[Lease]) -> Result<(), NetworkError> {
    let folder = folder(networks);
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            if leases.iter().all(|lease| *lease.network != *name) {
                fs::remove_file(folder.join(name))?;
            }
        }
        Ok(())
    };
    match remove() {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::State {
            what: "sweep",
            path: folder,
            source,
        }),
        _ => Ok(()),
    }
}

/// Where the sockets are, each with the name of its network.
pub fn folder(networks: &Path) -> PathBuf {
    networks.join("switches")
}

/// A socket, and the address of that file in the folder, whose own path may be too long for one; good as long as the
/// folder is open.
fn address(
    folder: &Path,
    name: &str,
    flags: SocketFlags,
) -> io::Result<(OwnedFd, SocketAddrUnix, OwnedFd)> {
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let folder = openat(CWD, folder, path_only, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((socket, SocketAddrUnix::new(path)?, folder))
}

fn reach(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let (socket, address, _folder) = address(folder, name, SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// A socket that machines are handed to, and one that is connected to it already.
fn open(folder: &Path, name: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    // That of one which died.
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (listener, address, _open) = address(folder, name, SocketFlags::NONBLOCK)?;
    bind(&listener, &address)?;
    listen(&listener, BACKLOG)?;
    Ok((listener, reach(folder, name)?))
}

/// Starts a switch, which somebody is connected to before it begins.
fn start(folder: &Path, name: &str, log: &Path) -> io::Result<OwnedFd> {
    let (listener, control) = open(folder, name)?;
    let log = fs::OpenOptions::new().append(true).create(true).open(log)?;
    let mut first = own_process::start_with(SWITCH_PROCESS, name, listener, log)?;
    // It makes the switch a child of nobody here.
    match first.wait()?.success() {
        true => Ok(control),
        false => Err(io::Error::other("its process cannot be started")),
    }
}

/// Hands the machine over, and what is said to that.
fn enter(control: &OwnedFd, member: &Member, streams: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
    let message = serde_json::to_vec(member)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(streams));
    let parts = [IoSlice::new(&message)];
    sendmsg(control, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    set_socket_timeout(control, Timeout::Recv, Some(PATIENCE))?;
    let said = receive(control.as_fd())?;
    set_socket_timeout(control, Timeout::Recv, None)?;
    said.map(|(said, _)| said)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The next message and what came with it; `None` at the end.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 || received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    Ok(Some((bytes, descriptors)))
}

#[cfg(test)]
mod tests;
