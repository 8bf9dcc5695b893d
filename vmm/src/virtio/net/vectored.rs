//! One write of bytes of the device's own followed by guest memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec};

use crate::virtio::Buffers;

/// Most buffers that one system call takes (`IOV_MAX`), the one of the device's own included.
pub const MAX_BUFFERS: usize = 1024;

/// Writes `head`, then what is left of `rest`; how many bytes. A frame of more than [`MAX_BUFFERS`]
/// buffers is refused.
///
/// # Errors
///
/// Those of `writev(2)`.
pub fn write(fd: BorrowedFd<'_>, head: &[u8], rest: &Buffers<'_>) -> io::Result<usize> {
    let mut vectors = Vec::with_capacity(1 + rest.slices().len());
    vectors.push(iovec {
        iov_base: head.as_ptr().cast_mut().cast(),
        iov_len: head.len(),
    });
    vectors.extend(rest.slices().map(|slice| iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }));
    let count = c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    // SAFETY: `vectors` names `count` ranges that the kernel reads: `head`, and mapped guest memory
    // for as long as `rest` lives; that the guest changes it at the same time is not seen by any
    // reference.
    let written = unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
