//! Writes the metadata of an EROFS file system whose file contents lie behind it on the same device.
//!
//! The image is what a Linux kernel mounts without options: blocks of 4 KiB, extended inodes, no compression
//! (Linux: Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h). Nothing is known here of layers or of how the tree
//! came about, and nothing is read back: that is the kernel's work.

mod directory;
mod inode;
mod layout;
mod superblock;
mod xattr;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::layer::index::{Run, Timestamp, Xattr};
use layout::{Layout, Place};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// A file of any kind.
#[derive(Debug)]
pub struct Inode<'a> {
    /// Type and permission bits as `st_mode` has them.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Number of names.
    pub nlink: u32,
    /// Extended attributes by full name; those of namespaces that Linux does not have are left out.
    pub xattrs: &'a [Xattr<'a>],
    /// Content.
    pub body: Body<'a>,
}

/// Content of an inode.
#[derive(Debug)]
pub enum Body<'a> {
    /// The names in a folder, `.` and `..` among them, sorted by bytes.
    Directory(Vec<Dirent<'a>>),
    /// A small file's content or a symbolic link's target, to be stored in the metadata: a block at most.
    Inline(&'a [u8]),
    /// A file that lies in one piece in the data area.
    Extent {
        /// First block of it, counted from the start of the data area.
        block: u64,
        /// Bytes.
        size: u64,
    },
    /// A file with holes.
    Chunks {
        /// Bytes.
        size: u64,
        /// Binary logarithm of the chunk size in bytes, 12 to 43.
        bits: u8,
        /// Chunks that are not holes, in rising order.
        runs: &'a [Run],
        /// Block of the data area from which the runs count.
        base: u64,
    },
    /// A device with its encoded number, or a pipe with zero.
    Node(u32),
}

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub struct Dirent<'a> {
    /// At most 255 bytes.
    pub name: &'a [u8],
    /// Position of its inode in the list given to [`write`].
    pub inode: u32,
}

/// Encodes a device number as Linux keeps it on disks: 12 bits of major, 20 of minor.
#[must_use]
pub fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

/// Why a file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The file fails.
    #[error("cannot write the file")]
    Write(#[from] io::Error),
    /// 32 bits of block number do not reach its end.
    #[error("the file system would be larger than 16 TiB")]
    TooLarge,
}

/// Writes the metadata for `inodes`, of which the first is the root folder, to the empty `file`, which must be open
/// for reading too. `data_blocks` is the size of the data area that will lie behind it. Returns the number of
/// metadata blocks. Equal input gives equal bytes.
///
/// # Errors
///
/// When `file` cannot be written or the whole becomes too large for the format.
pub fn write(inodes: &[Inode<'_>], data_blocks: u64, file: &File) -> Result<u64, ErofsError> {
    let layout = Layout::plan(inodes);
    let blocks = layout.blocks + data_blocks;
    if blocks >= u64::from(u32::MAX) {
        return Err(ErofsError::TooLarge);
    }
    let mut output = Output {
        file: BufWriter::with_capacity(1 << 20, file),
        position: 0,
        bytes: Vec::new(),
    };
    for &number in &layout.order {
        let (inode, place) = (&inodes[number as usize], &layout.places[number as usize]);
        output.pad(place.offset)?;
        inode::encode(inode, number, place, layout.blocks, &mut output.bytes);
        xattr::encode(inode.xattrs, &mut output.bytes);
        body(inodes, inode, place, &layout, &mut output.bytes);
        output.flush()?;
    }
    for &number in &layout.order {
        let (inode, place) = (&inodes[number as usize], &layout.places[number as usize]);
        if place.blocks > 0 {
            output.pad(place.block * BLOCK)?;
            in_blocks(inodes, inode, place, &layout, &mut output)?;
        }
    }
    output.pad(layout.blocks * BLOCK)?;
    output.file.flush()?;
    drop(output);
    // The checksum covers whatever shares the first block with the superblock.
    let mut first = [0; BLOCK as usize];
    file.read_exact_at(&mut first, 0)?;
    superblock::encode(&layout, inodes, blocks as u32, &mut first);
    file.write_all_at(&first, 0)?;
    Ok(layout.blocks)
}

/// What lies right behind an inode and its attributes.
fn body(
    inodes: &[Inode<'_>],
    inode: &Inode<'_>,
    place: &Place,
    layout: &Layout,
    output: &mut Vec<u8>,
) {
    match &inode.body {
        Body::Inline(bytes) if place.inline => output.extend_from_slice(bytes),
        Body::Directory(entries) if place.inline => {
            if let Some(last) = directory::groups(entries).last() {
                directory::encode(last, inodes, layout, output);
            }
        }
        Body::Chunks {
            size,
            bits,
            runs,
            base,
        } => inode::encode_chunks(*size, *bits, runs, layout.blocks + base, output),
        _ => {}
    }
}

/// What lies in blocks of the metadata's own.
fn in_blocks(
    inodes: &[Inode<'_>],
    inode: &Inode<'_>,
    place: &Place,
    layout: &Layout,
    output: &mut Output<'_>,
) -> io::Result<()> {
    match &inode.body {
        Body::Inline(bytes) => output.bytes.extend_from_slice(bytes),
        Body::Directory(entries) => {
            for (group, block) in
                directory::groups(entries).zip(place.block..place.block + place.blocks)
            {
                output.pad(block * BLOCK)?;
                directory::encode(group, inodes, layout, &mut output.bytes);
                output.flush()?;
            }
        }
        _ => {}
    }
    output.flush()
}

/// A file that is written from start to end.
struct Output<'a> {
    file: BufWriter<&'a File>,
    position: u64,
    bytes: Vec<u8>,
}

impl Output<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.bytes)?;
        self.position += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }

    fn pad(&mut self, position: u64) -> io::Result<()> {
        // Always under a block: the layout leaves no larger gaps.
        let gap = position.saturating_sub(self.position);
        self.bytes.resize(gap as usize, 0);
        self.flush()
    }
}
