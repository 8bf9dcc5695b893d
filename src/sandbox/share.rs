//! Folders and files of the host that a guest has: served by one process a sandbox, in a jail that holds nothing
//! else.
//!
//! This is the side of whoever runs the sandbox. The process itself is in [`process`], its jail in `jail`, and
//! how it answers the guest in `server`. It lives as long as its control socket, like the VMM.

mod jail;
pub mod process;
mod seccomp;
mod server;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::Child,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Shutdown, shutdown},
};
use serde::{Deserialize, Serialize};

use crate::{
    own_process::{self, receive, send},
    user_namespace::{self, UserNamespaceError},
};

/// First argument of the share process; whoever parses the command line hands over to it.
pub const SHARE_PROCESS: &str = "share-process";

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
    #[error("the share process has no users to serve files for")]
    Users(#[from] UserNamespaceError),
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
enum FromProcess {
    /// Every share is there.
    Ready,
    /// It cannot be, and ends.
    Refused(String),
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
        let this = Self { control, first };
        if !rustix::process::geteuid().is_root() {
            user_namespace::give_users(&this.first, this.control.as_fd())?;
        }
        let (device, server) = own_process::pair().map_err(ShareError::Start)?;
        let served = Some(server.as_fd());
        send(this.control.as_fd(), &shares, served).map_err(ShareError::Talk)?;
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
            Ok(None) => Err(ShareError::Lost),
            Err(error) => Err(ShareError::Talk(error)),
        }
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
