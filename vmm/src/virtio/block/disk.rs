//! What a block device shows: files one after the other, read in place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::virtio::Buffers;

use super::request::SECTOR;
use super::vectored::{read_at, write_at};

/// Alignment of every part but the last one's end.
const PART_ALIGNMENT: u64 = 4096;

/// The parts of a disk, in order and without gaps.
#[derive(Debug)]
pub struct Disk {
    /// Each with the position of its first byte; sorted, the first at 0.
    parts: Vec<(u64, Part)>,
    bytes: u64,
    read_only: bool,
    serial: String,
}

/// A run of a disk, taken from the start of a file.
#[derive(Debug)]
pub struct Part {
    file: File,
    bytes: u64,
}

/// Why a disk cannot be shown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No parts, or more than one on a writable disk.
    #[error("a disk of {0} parts; a writable one has exactly one, a read-only one at least one")]
    PartCount(usize),
    /// A part that the next one could not follow.
    #[error("part {index} of a disk has {bytes} bytes, not a multiple of {multiple}")]
    PartSize {
        /// Which one.
        index: usize,
        /// Its size.
        bytes: u64,
        /// What it should be a multiple of.
        multiple: u64,
    },
    /// The sum of the parts.
    #[error("a disk is empty or larger than a file can be")]
    Size,
    /// The name that the guest reads.
    #[error("disk serial number {0:?} is not up to 20 bytes of ASCII")]
    Serial(String),
}

impl Part {
    /// The first `bytes` bytes of `file`; where it is shorter the rest reads as zeroes.
    #[must_use]
    pub fn new(file: OwnedFd, bytes: u64) -> Self {
        Self {
            file: file.into(),
            bytes,
        }
    }
}

impl Disk {
    /// A disk of `parts` that tells its driver `serial`.
    ///
    /// # Errors
    ///
    /// When parts and serial number are not as [`BlockConfig`](crate::BlockConfig) says.
    pub fn new(parts: Vec<Part>, read_only: bool, serial: String) -> Result<Self, DiskError> {
        if parts.is_empty() || (!read_only && parts.len() != 1) {
            return Err(DiskError::PartCount(parts.len()));
        }
        if serial.len() > 20 || !serial.is_ascii() {
            return Err(DiskError::Serial(serial));
        }
        let last = parts.len() - 1;
        let mut placed = Vec::with_capacity(parts.len());
        let mut bytes = 0u64;
        for (index, part) in parts.into_iter().enumerate() {
            let multiple = if index == last {
                SECTOR
            } else {
                PART_ALIGNMENT
            };
            if part.bytes % multiple != 0 {
                return Err(DiskError::PartSize {
                    index,
                    bytes: part.bytes,
                    multiple,
                });
            }
            let start = bytes;
            bytes = bytes.checked_add(part.bytes).ok_or(DiskError::Size)?;
            placed.push((start, part));
        }
        if bytes == 0 || i64::try_from(bytes).is_err() {
            return Err(DiskError::Size);
        }
        Ok(Self {
            parts: placed,
            bytes,
            read_only,
            serial,
        })
    }

    /// Size in bytes, a multiple of 512.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What the driver is told as the disk's identity, up to 20 bytes.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Fills `buffers` from `position`. The range is inside the disk.
    ///
    /// # Errors
    ///
    /// Those of `preadv(2)`.
    pub fn read(&self, position: u64, buffers: &mut Buffers<'_>) -> io::Result<()> {
        let first = self.parts.partition_point(|(start, _)| *start <= position) - 1;
        let mut position = position;
        for (start, part) in &self.parts[first..] {
            let offset = position - start;
            let count = (part.bytes - offset).min(buffers.len() as u64);
            let piece = buffers.take(count as usize).map_err(io::Error::other)?;
            part.read(offset, piece)?;
            position += count;
            if buffers.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Writes `buffers` at `position`. The range is inside the disk, and the disk is writable.
    ///
    /// # Errors
    ///
    /// Those of `pwritev(2)`.
    pub fn write(&self, position: u64, buffers: &mut Buffers<'_>) -> io::Result<()> {
        let mut position = position;
        while !buffers.is_empty() {
            match write_at(self.writable()?, buffers, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    buffers.take(written).map_err(io::Error::other)?;
                    position += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes what was written last.
    ///
    /// # Errors
    ///
    /// Those of `fdatasync(2)`: data may be lost.
    pub fn flush(&self) -> io::Result<()> {
        self.writable()?.sync_data()
    }

    /// Frees a range that then reads as zeroes.
    ///
    /// # Errors
    ///
    /// Those of `fallocate(2)`, `EOPNOTSUPP` where the file system cannot.
    pub fn discard(&self, position: u64, bytes: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, position, bytes)
    }

    /// Makes a range read as zeroes and keeps its space.
    ///
    /// # Errors
    ///
    /// As [`discard`](Self::discard).
    pub fn write_zeroes(&self, position: u64, bytes: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, position, bytes)
    }

    fn fallocate(&self, mode: FallocateFlags, position: u64, bytes: u64) -> io::Result<()> {
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = i64::try_from(position).map_err(io::Error::other)?;
        let length = i64::try_from(bytes).map_err(io::Error::other)?;
        Ok(fallocate(self.writable()?, mode, offset, length)?)
    }

    fn writable(&self) -> io::Result<&File> {
        match &self.parts[..] {
            [(_, part)] if !self.read_only => Ok(&part.file),
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

impl Part {
    fn read(&self, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
        let mut offset = offset;
        while !buffers.is_empty() {
            match read_at(&self.file, &buffers, offset) {
                Ok(0) => {
                    buffers.fill_zero();
                    break;
                }
                Ok(read) => {
                    buffers.take(read).map_err(io::Error::other)?;
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
