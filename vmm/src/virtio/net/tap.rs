//! What a TAP device has to be for this one: made from an open `/dev/net/tun`, by whoever may do that.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, c_ulong, ifreq};

use super::frame::HEADER;

/// Segmentation of UDP (linux/if_tun.h), Linux 6.2.
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;

/// Makes the open file `tun` a TAP device called `name`, which goes when the file is closed for the
/// last time. It is down, and connected to nothing. Whether it segments UDP too.
///
/// # Errors
///
/// `InvalidInput` for a name that is none, `PermissionDenied` without `CAP_NET_ADMIN`,
/// `EBUSY` for a name that is taken, and those of the ioctls.
pub fn create(tun: &impl AsFd, name: &str) -> io::Result<bool> {
    // SAFETY: ifreq is integers and a union of them, for which zero is a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the end of the name.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as _;
    let tun = tun.as_fd().as_raw_fd();
    // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
    checked(unsafe { libc::ioctl(tun, libc::TUNSETIFF as _, &raw mut request) })?;
    let header = HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    checked(unsafe { libc::ioctl(tun, libc::TUNSETVNETHDRSZ as _, &raw const header) })?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let set = |offload: c_uint| {
        // SAFETY: TUNSETOFFLOAD takes a number in the place of its argument.
        checked(unsafe { libc::ioctl(tun, libc::TUNSETOFFLOAD as _, c_ulong::from(offload)) })
    };
    match set(offload | TUN_F_USO4 | TUN_F_USO6) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(offload).map(|()| false),
        Err(error) => Err(error),
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused_before_the_kernel_is_asked() {
        let file = tempfile::tempfile().unwrap();
        for name in ["", "sixteen-bytes-xx", "tap\u{e9}"] {
            let error = create(&file, name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
