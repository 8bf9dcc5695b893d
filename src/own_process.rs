//! Processes of this program's own, of another kind: the virtual machine's, the one that serves its folders, and the switch of
//! a network. Each is talked to over a socket, which is its standard input, and lives no longer than that.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

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
