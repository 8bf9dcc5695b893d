//! Folders and files of the host that a guest has: served by one process a sandbox, in a jail that holds nothing
//! else.
//!
//! This is the side of whoever runs the sandbox. The process itself is in [`process`], its jail in `jail`, and
//! how it answers the guest in `server`. It lives as long as its control socket, like the VMM.

mod ids;
mod jail;
pub mod process;
mod seccomp;
mod server;

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::Child,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Shutdown, shutdown},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::own_process;

/// First argument of the share process; whoever parses the command line hands over to it.
pub const SHARE_PROCESS: &str = "share-process";

/// Longest message in bytes between it and who started it.
const MAX_MESSAGE: usize = 128 << 10;

/// How long one that was told to end may take, in milliseconds: it only closes files, but those may be on a file
/// system that is slow.
const END_LIMIT: u16 = 5_000;

/// A folder, or anything else with a path, that a guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its path, without links in it.
    pub source: PathBuf,
    /// Refuse whatever changes it.
    pub read_only: bool,
}

/// Why folders are not shared, or no longer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ShareError {
    #[error("cannot start the share process")]
    Start(#[source] io::Error),
    #[error("cannot talk to the share process")]
    Talk(#[source] io::Error),
    #[error("the share process cannot set up: {0}")]
    Refused(String),
    #[error("the process that serves shared folders ended, and the container with it")]
    Lost,
    #[error("cannot give the share process its users")]
    Users(#[source] io::Error),
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
enum FromProcess {
    /// It is in a user namespace of its own, and waits for users in it.
    Unshared,
    /// Every share is there.
    Ready,
    /// It cannot be, and ends.
    Refused(String),
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum ToProcess {
    /// It has users.
    GoOn,
    /// What to serve; the socket to the device comes with it.
    Serve(Vec<Share>),
}

/// A share process. Dropping it ends it.
#[derive(Debug)]
pub struct Shares {
    control: OwnedFd,
    /// Its first process, which only makes the second.
    first: Child,
}

impl Shares {
    /// Starts a process that serves `shares`, and returns it with the socket for the device. What it has to say
    /// goes to `log`. It may yet find that it cannot: see [`hear`](Self::hear).
    ///
    /// # Errors
    ///
    /// [`ShareError`]; nothing is left running.
    pub fn start(label: &str, shares: &[Share], log: File) -> Result<(Self, OwnedFd), ShareError> {
        let (first, control) =
            own_process::start(SHARE_PROCESS, label, log).map_err(ShareError::Start)?;
        let mut this = Self { control, first };
        if !rustix::process::geteuid().is_root() {
            this.give_users()?;
        }
        let (device, server) = own_process::pair().map_err(ShareError::Start)?;
        let serve = ToProcess::Serve(shares.to_vec());
        send(this.control.as_fd(), &serve, Some(server.as_fd())).map_err(ShareError::Talk)?;
        Ok((this, device))
    }

    /// Takes in what it says when it is readable.
    ///
    /// # Errors
    ///
    /// [`ShareError::Refused`] where it cannot serve, and [`ShareError::Lost`] when it has died.
    pub fn hear(&mut self) -> Result<(), ShareError> {
        match receive(self.control.as_fd()) {
            Ok(Some((FromProcess::Ready, _))) => Ok(()),
            Ok(Some((FromProcess::Refused(reason), _))) => Err(ShareError::Refused(reason)),
            Ok(Some((FromProcess::Unshared, _)) | None) => Err(ShareError::Lost),
            Err(error) => Err(ShareError::Talk(error)),
        }
    }

    /// Maps users into its namespace, as only who is outside can.
    fn give_users(&mut self) -> Result<(), ShareError> {
        match receive(self.control.as_fd()).map_err(ShareError::Talk)? {
            Some((FromProcess::Unshared, _)) => {}
            Some((FromProcess::Refused(reason), _)) => return Err(ShareError::Refused(reason)),
            Some((FromProcess::Ready, _)) | None => return Err(ShareError::Lost),
        }
        ids::map(self.first.id()).map_err(ShareError::Users)?;
        send(self.control.as_fd(), &ToProcess::GoOn, None).map_err(ShareError::Talk)
    }
}

impl AsFd for Shares {
    /// Readable when there is something to [`hear`](Self::hear).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        // It ends when nobody can talk to it any more, and its end of the socket with it.
        use std::os::fd::AsRawFd;
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Write);
        let _ = self.first.wait();
        let mut watched = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        while let Ok(1..) | Err(nix::Error::EINTR) =
            poll(&mut watched, PollTimeout::from(END_LIMIT))
        {
            match receive::<FromProcess>(self.control.as_fd()) {
                Ok(Some(_)) => {}
                _ => return,
            }
        }
    }
}

fn send(
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

/// The next message and what came with it; `None` at the end.
fn receive<T: DeserializeOwned>(
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
