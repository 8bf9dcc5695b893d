//! Positioned reads and writes straight between a file and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, iovec, off_t};

use crate::virtio::Buffers;

/// Most buffers that one system call takes (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// Reads from `offset` of `file` into the front of `buffers`; how many bytes, 0 at the end.
///
/// # Errors
///
/// Those of `preadv(2)`.
pub fn read_at(file: &File, buffers: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let (vectors, count, offset) = arguments(buffers, offset)?;
    // SAFETY: `vectors` names `count` ranges, each of them mapped guest memory for as long as
    // `buffers` lives; that the guest changes it at the same time is not seen by any reference.
    let read = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes the front of `buffers` to `offset` of `file`; how many bytes.
///
/// # Errors
///
/// Those of `pwritev(2)`.
pub fn write_at(file: &File, buffers: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let (vectors, count, offset) = arguments(buffers, offset)?;
    // SAFETY: As in `read_at`; the kernel only reads them.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn arguments(buffers: &Buffers<'_>, offset: u64) -> io::Result<(Vec<iovec>, c_int, off_t)> {
    let vectors: Vec<_> = buffers
        .slices()
        .take(MAX_BUFFERS)
        .map(|slice| iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect();
    let count = c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    let offset = off_t::try_from(offset).map_err(io::Error::other)?;
    Ok((vectors, count, offset))
}
