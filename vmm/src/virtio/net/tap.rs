//! What a TAP device has to be for this one: made from an open `/dev/net/tun`, by whoever may do that.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, c_ulong, ifreq};

use super::frame::HEADER;

/// Segmentation of UDP (linux/if_tun.h), Linux 6.2.
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;

/// Makes the open files `queues` a TAP device called `name`, each of them a queue of it, which goes when all of them are
/// closed for the last time. It is down, and connected to nothing. Whether it segments UDP too.
///
/// # Errors
///
/// `InvalidInput` for a name that is none and for no queue, `PermissionDenied` without `CAP_NET_ADMIN`,
/// `EBUSY` for a name that is taken, and those of the ioctls.
pub fn create(queues: &[impl AsFd], name: &str) -> io::Result<bool> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let Some(first) = queues.first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // A device of that name that takes further queues would be somebody else's.
    let mut own = 0;
    if queues.len() > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
        own = libc::IFF_TUN_EXCL;
    }
    for queue in queues {
        let mut request = named(name)?;
        request.ifr_ifru.ifru_flags = (flags | own) as _;
        own = 0;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
        checked(unsafe {
            libc::ioctl(
                queue.as_fd().as_raw_fd(),
                libc::TUNSETIFF as _,
                &raw mut request,
            )
        })?;
    }
    let tun = first.as_fd().as_raw_fd();
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

/// Lets the device have frames for this one of its queues, or not.
///
/// # Errors
///
/// Those of the ioctl, such as `EINVAL` where nothing changes.
pub fn attach(queue: &impl AsFd, attached: bool) -> io::Result<()> {
    let mut request = no_request();
    request.ifr_ifru.ifru_flags = match attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    } as _;
    let queue = queue.as_fd().as_raw_fd();
    // SAFETY: TUNSETQUEUE reads an ifreq, which `request` is.
    checked(unsafe { libc::ioctl(queue, libc::TUNSETQUEUE as _, &raw const request) })
}

/// A request about the device called `name`.
fn named(name: &str) -> io::Result<ifreq> {
    let mut request = no_request();
    // One byte stays zero: the end of the name.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn no_request() -> ifreq {
    // SAFETY: ifreq is integers and a union of them, for which zero is a value.
    unsafe { std::mem::zeroed() }
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
            let error = create(&[&file], name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
