//! The fields of a header, with the allowances that writers of archives need.

use std::io;

use tar::Header;

use super::ArchiveError;
use crate::image::layer::index::{Device, Timestamp};

/// The type, as the byte that it is.
pub fn type_of(header: &Header) -> u8 {
    header.as_old().linkflag[0]
}

/// Whether the checksum is right. Some writers took bytes as signed.
pub fn is_sound(header: &Header) -> bool {
    let (mut unsigned, mut signed) = (0, 0);
    for (at, &byte) in header.as_bytes().iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let written = header.cksum().map(i64::from);
    written.is_ok_and(|sum| sum == unsigned || sum == signed)
}

/// Bytes of content in the archive.
pub fn size(header: &Header) -> Result<u64, ArchiveError> {
    number(&header.as_old().size, || header.entry_size(), "size")
}

/// Permission bits.
pub fn mode(header: &Header) -> Result<u16, ArchiveError> {
    let mode = number(&header.as_old().mode, || header.mode(), "mode")?;
    Ok((mode & 0o7777) as u16)
}

/// Owner.
pub fn user(header: &Header) -> Result<u64, ArchiveError> {
    number(&header.as_old().uid, || header.uid(), "owner")
}

/// Group.
pub fn group(header: &Header) -> Result<u64, ArchiveError> {
    number(&header.as_old().gid, || header.gid(), "owner")
}

/// An owner or group in range. The largest is -1, to which no file can belong.
pub fn owner(id: u64) -> Result<u32, ArchiveError> {
    let id = u32::try_from(id).ok().filter(|&id| id != u32::MAX);
    id.ok_or(ArchiveError::Field("owner"))
}

/// Last modification.
pub fn time(header: &Header) -> Result<Timestamp, ArchiveError> {
    let seconds = number(
        &header.as_old().mtime,
        || header.mtime(),
        "modification time",
    )?;
    Ok(Timestamp {
        // Binary fields hold two's complement, which the tar crate gives as unsigned.
        seconds: seconds.cast_signed(),
        nanoseconds: 0,
    })
}

/// The number of a device, in the range that file systems have.
pub fn device(header: &Header) -> Result<Device, ArchiveError> {
    let number = |value: io::Result<Option<u32>>, bits: u32| {
        let number = value.ok().flatten().filter(|number| number >> bits == 0);
        number.ok_or(ArchiveError::Field("device number"))
    };
    Ok(Device {
        major: number(header.device_major(), 12)?,
        minor: number(header.device_minor(), 20)?,
    })
}

/// A field that must be a number.
pub fn field<T>(value: io::Result<T>, name: &'static str) -> Result<T, ArchiveError> {
    value.map_err(|_| ArchiveError::Field(name))
}

/// A field that some writers leave blank.
fn number<T: Default>(
    raw: &[u8],
    value: impl FnOnce() -> io::Result<T>,
    name: &'static str,
) -> Result<T, ArchiveError> {
    if raw.iter().all(|&byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    field(value(), name)
}
