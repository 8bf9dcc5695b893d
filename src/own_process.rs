//! Processes of this program's own, of another kind: the virtual machine's, the one that serves its folders, the switch of
//! a network, and one that looks after volumes. Each is talked to over a socket, which is its standard input, and lives no longer than that.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Longest message in bytes between such a process and who started it.
const MAX_MESSAGE: usize = 128 << 10;

/// Starts this program as the process of that `kind`, its first argument, and returns it with the socket to it. The
/// `label` is its second argument, so that people can tell it from others; what it has to say goes to `log`.
///
/// # Errors
///
/// Those of socketpair(2) and execve(2).
pub fn start(kind: &str, label: &str, log: File) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = pair()?;
    Ok((start_with(kind, label, theirs, log)?, ours))
}

/// The same with a socket of the caller's own as its standard input.
///
/// # Errors
///
/// Those of execve(2).
pub fn start_with(kind: &str, label: &str, socket: OwnedFd, log: File) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("pillbug")
        .args([kind, label])
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .current_dir("/")
        .env_clear()
        // A terminal's Ctrl-C is for the container, not for what runs it.
        .process_group(0)
        .spawn()
}

/// Two ends of a connection that keeps messages apart.
///
/// # Errors
///
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, closing) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    Ok(socketpair(AddressFamily::Unix, kind, None, closing)?)
}

/// Sends one message, and a descriptor with it.
///
/// # Errors
///
/// Where it is too long, or the other end is gone.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MAX_MESSAGE {
        return Err(io::Error::other("there are too many of them"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let parts = [IoSlice::new(&message)];
    sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for the next message and what came with it; `None` at the end.
///
/// # Errors
///
/// Those of the socket, and of what is no such message.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let message = match received {
        Ok(message) if message.bytes == 0 => return Ok(None),
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        received => received?,
    };
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::other("a message is too long"));
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Some((
        serde_json::from_slice(&bytes[..message.bytes])?,
        descriptor,
    )))
}
