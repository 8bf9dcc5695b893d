//! A pseudo-terminal of the container's own devpts.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use protocol::WindowSize;
use rustix::{
    fs::{Mode, OFlags, openat},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// The two ends of a pseudo-terminal.
pub struct Terminal {
    /// The agent's, which does not block.
    pub master: OwnedFd,
    /// The process's.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Opens a new one in `devpts`, with its size set before anybody can look.
    ///
    /// # Errors
    ///
    /// Those of the kernel; `ENOSPC` when there are too many.
    pub fn open(devpts: BorrowedFd<'_>, size: WindowSize) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let master = openat(devpts, "ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        resize(&master, size)?;
        // By way of the master, since the name of the slave is the container's to replace.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        Ok(Self { master, slave })
    }
}

/// Sets a terminal's size, by its master.
///
/// # Errors
///
/// Those of the kernel.
pub fn resize(master: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}
