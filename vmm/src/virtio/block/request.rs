//! One block request (virtio 1.2, 5.2.6): parsed from a chain, checked, carried out, answered.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::virtio::{Buffers, BuffersError, Chain};

use super::Disk;

/// What positions and sizes of requests are counted in, whatever the block size.
pub const SECTOR: u64 = 512;
/// Most sectors in one range to discard or zero (2 GiB).
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Most ranges in one request.
pub const MAX_RANGES: u32 = 32;

/// Bytes of `struct virtio_blk_outhdr`, which every request begins with.
const HEADER: u64 = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;
/// Its flag to free the space of what is zeroed.
const UNMAP: u32 = 1;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("request is cut short")]
    Short(#[from] BuffersError),
    #[error("request reaches outside of the disk")]
    Range,
    #[error("request writes to a read-only disk")]
    ReadOnly,
    #[error("request type or flag is unknown")]
    Unsupported,
    #[error("host file failed")]
    Host(#[from] io::Error),
}

/// What a request asks of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A read.
    In(u64),
    /// A write, or a change of ranges, which counts as the request that it is.
    Out(u64),
    /// Anything else.
    Other,
}

/// What the request in `chain` asks for, without taking anything from it.
pub fn work(chain: &Chain<'_>) -> Work {
    let kind = chain.readable.peek_object::<u32>();
    let (readable, writable) = (chain.readable.len() as u64, chain.writable.len() as u64);
    match kind {
        Some(VIRTIO_BLK_T_IN) => Work::In(writable.saturating_sub(1)),
        Some(VIRTIO_BLK_T_OUT) => Work::Out(readable.saturating_sub(HEADER)),
        Some(VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => Work::Out(0),
        _ => Work::Other,
    }
}

/// Carries out the request in `chain` and puts its status there; how many bytes were written.
pub fn answer(disk: &Disk, chain: &mut Chain<'_>) -> u32 {
    // The status is the last writable byte. Without room for it there is no answer.
    let Some(capacity) = chain.writable.len().checked_sub(1) else {
        return 0;
    };
    let Ok(mut data) = chain.writable.take(capacity) else {
        return 0;
    };
    let result = execute(disk, &mut chain.readable, &mut data);
    let status = match &result {
        Ok(_) => VIRTIO_BLK_S_OK,
        Err(RequestError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(RequestError::Host(error)) if error.kind() == io::ErrorKind::Unsupported => {
            VIRTIO_BLK_S_UNSUPP
        }
        Err(_) => VIRTIO_BLK_S_IOERR,
    };
    // The status byte is there: `capacity` left it.
    let _ = chain.writable.write(&[status as u8]);
    // The length counts up to the first byte that was not written (2.7.8.2).
    let written = result.unwrap_or(0);
    let total = if written == capacity {
        written + 1
    } else {
        written
    };
    u32::try_from(total).unwrap_or(u32::MAX)
}

/// How many bytes of `data` were written.
fn execute(
    disk: &Disk,
    readable: &mut Buffers<'_>,
    data: &mut Buffers<'_>,
) -> Result<usize, RequestError> {
    let kind: u32 = readable.read_object()?;
    let _priority: u32 = readable.read_object()?;
    let sector: u64 = readable.read_object()?;
    match kind {
        VIRTIO_BLK_T_IN => {
            let count = data.len();
            let position = range(disk, sector, count as u64)?;
            disk.read(position, data)?;
            Ok(count)
        }
        VIRTIO_BLK_T_OUT => {
            check_writable(disk)?;
            let position = range(disk, sector, readable.len() as u64)?;
            disk.write(position, readable)?;
            Ok(0)
        }
        // Nothing is ever dirty on a read-only disk.
        VIRTIO_BLK_T_FLUSH if disk.is_read_only() => Ok(0),
        VIRTIO_BLK_T_FLUSH => {
            disk.flush()?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => {
            let mut id = [0; 20];
            id[..disk.serial().len()].copy_from_slice(disk.serial().as_bytes());
            let count = id.len().min(data.len());
            data.write(&id[..count])?;
            Ok(count)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            check_writable(disk)?;
            for_ranges(disk, readable, kind)?;
            Ok(0)
        }
        _ => Err(RequestError::Unsupported),
    }
}

/// Discards or zeroes each range of a request, all of them checked before the first is touched.
fn for_ranges(disk: &Disk, readable: &mut Buffers<'_>, kind: u32) -> Result<(), RequestError> {
    let count = readable.len() / RANGE;
    if !readable.len().is_multiple_of(RANGE) || count > MAX_RANGES as usize {
        return Err(RequestError::Range);
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let sector: u64 = readable.read_object()?;
        let sectors: u32 = readable.read_object()?;
        let flags: u32 = readable.read_object()?;
        let known = if kind == VIRTIO_BLK_T_DISCARD {
            0
        } else {
            UNMAP
        };
        if flags & !known != 0 {
            return Err(RequestError::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(RequestError::Range);
        }
        let bytes = u64::from(sectors) * SECTOR;
        ranges.push((range(disk, sector, bytes)?, bytes, flags));
    }
    for (position, bytes, flags) in ranges {
        if bytes == 0 {
            continue;
        }
        if kind == VIRTIO_BLK_T_WRITE_ZEROES && flags & UNMAP == 0 {
            disk.write_zeroes(position, bytes)?;
        } else {
            disk.discard(position, bytes)?;
        }
    }
    Ok(())
}

/// The position in bytes of `bytes` from `sector`, when the disk has them.
fn range(disk: &Disk, sector: u64, bytes: u64) -> Result<u64, RequestError> {
    let position = sector.checked_mul(SECTOR).ok_or(RequestError::Range)?;
    let end = position.checked_add(bytes).ok_or(RequestError::Range)?;
    match bytes.is_multiple_of(SECTOR) && end <= disk.bytes() && position < disk.bytes() {
        true => Ok(position),
        false => Err(RequestError::Range),
    }
}

fn check_writable(disk: &Disk) -> Result<(), RequestError> {
    match disk.is_read_only() {
        true => Err(RequestError::ReadOnly),
        false => Ok(()),
    }
}
