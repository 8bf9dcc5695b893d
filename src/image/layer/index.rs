//! The index of a layer: its entries in the order of the archive, without the contents of larger files.
//!
//! A header of 24 bytes, then one postcard record an entry. The format has a version and no promise beyond
//! it: an index can always be made again from the layer's blob.

use std::io::{self, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

use super::sparse::{BLOCK, MAX_CHUNK_BITS, MAX_CHUNKS};

/// Magic and version; the version moves with any change to the records below.
const MAGIC: &[u8; 8] = b"pbindex\x01";
/// Magic, number of entries, number of blocks of `data`.
const HEADER: usize = 24;

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// Clean path: no leading slash, no `.` or `..`; empty for the root folder.
    pub path: &'a [u8],
    /// What the layer says about that path.
    #[serde(borrow)]
    pub change: Change<'a>,
}

impl Entry<'_> {
    /// Whether everything that others count on holds, as it does for each entry that was written.
    fn is_sound(&self) -> bool {
        let components = self.path.split(|&byte| byte == b'/');
        let named = self.path.is_empty()
            || components
                .map(<[u8]>::len)
                .all(|length| (1..=255).contains(&length));
        let Change::Inode(inode) = &self.change else {
            return named;
        };
        let content = match &inode.content {
            Content::Inline(bytes) | Content::Symlink(bytes) => bytes.len() <= BLOCK as usize,
            Content::Sparse {
                size,
                chunk_bits,
                runs,
            } => {
                (12..=MAX_CHUNK_BITS).contains(chunk_bits)
                    && size.div_ceil(1 << chunk_bits) <= MAX_CHUNKS
                    && runs.iter().all(|run| {
                        let end = u64::from(run.chunk) + u64::from(run.count);
                        end <= size.div_ceil(1 << chunk_bits)
                    })
            }
            _ => true,
        };
        named && content && inode.mode <= 0o7777
    }
}

/// What a layer does to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<'a> {
    /// Removes what lower layers have there.
    Whiteout,
    /// Empties the folder of what lower layers have in it.
    Opaque,
    /// Another name for the file at this clean path.
    HardLink(&'a [u8]),
    /// A file of its own.
    #[serde(borrow)]
    Inode(Inode<'a>),
}

/// A file of any kind, without its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode<'a> {
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes, full names.
    #[serde(borrow)]
    pub xattrs: Vec<Xattr<'a>>,
    /// Kind and content.
    #[serde(borrow)]
    pub content: Content<'a>,
}

/// Name and value of an extended attribute.
pub type Xattr<'a> = (&'a [u8], &'a [u8]);

/// A time since 1970, before it where `seconds` is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds to add: under 10^9.
    pub nanoseconds: u32,
}

/// Kind of a file and where its content lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content<'a> {
    /// A folder.
    Directory,
    /// A regular file whose content is here.
    Inline(&'a [u8]),
    /// A regular file whose content lies in one piece in `data`.
    Extent {
        /// Its first block in `data`.
        block: u32,
        /// Its length in bytes, over zero.
        size: u64,
    },
    /// A regular file with holes.
    Sparse {
        /// Its length in bytes.
        size: u64,
        /// Binary logarithm of the chunk size in bytes, at least 12.
        chunk_bits: u8,
        /// Chunks that are not holes, in rising order.
        runs: Vec<Run>,
    },
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// Consecutive chunks of a sparse file that are consecutive in `data` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First chunk of the file.
    pub chunk: u32,
    /// Number of chunks.
    pub count: u32,
    /// First block in `data`.
    pub block: u32,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Major number, under 2^12.
    pub major: u32,
    /// Minor number, under 2^20.
    pub minor: u32,
}

/// Why bytes are no index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It does not start as an index of this version.
    #[error("it is not a layer index of this version")]
    Magic,
    /// It ends early or holds what is no record.
    #[error("entry {0} of the layer index is damaged")]
    Record(u64),
}

/// Writes an index, entry by entry.
pub struct Writer<W> {
    output: W,
    record: Vec<u8>,
    bytes: u64,
    entries: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts an index.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn new(mut output: W) -> io::Result<Self> {
        output.write_all(&[0; HEADER])?;
        Ok(Self {
            output,
            record: Vec::new(),
            bytes: HEADER as u64,
            entries: 0,
        })
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn add(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.record.clear();
        let record = postcard::to_extend(entry, std::mem::take(&mut self.record));
        self.record = record.map_err(io::Error::other)?;
        self.output.write_all(&self.record)?;
        self.bytes += self.record.len() as u64;
        self.entries += 1;
        Ok(())
    }

    /// Bytes and entries so far.
    pub fn size(&self) -> (u64, u64) {
        (self.bytes, self.entries)
    }

    /// Completes the header, without which the index cannot be read, and gives the output back.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn finish(mut self, data_blocks: u64) -> io::Result<W> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&self.entries.to_le_bytes());
        header[16..].copy_from_slice(&data_blocks.to_le_bytes());
        self.output.seek(SeekFrom::Start(0))?;
        self.output.write_all(&header)?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// Reads an index that lies in memory; entries borrow from it.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    entries: u64,
    read: u64,
    /// Number of 4 KiB blocks of the layer's `data`.
    pub data_blocks: u64,
}

impl<'a> Reader<'a> {
    /// Checks the header.
    ///
    /// # Errors
    ///
    /// When it is not that of an index of this version.
    pub fn new(index: &'a [u8]) -> Result<Self, IndexError> {
        let (header, rest) = index
            .split_first_chunk::<HEADER>()
            .ok_or(IndexError::Magic)?;
        let (magic, numbers) = header.split_at(8);
        if magic != MAGIC {
            return Err(IndexError::Magic);
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&numbers[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Ok(Self {
            rest,
            entries: number(0),
            read: 0,
            data_blocks: number(8),
        })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read == self.entries {
            let trailing = !std::mem::take(&mut self.rest).is_empty();
            return trailing.then_some(Err(IndexError::Record(self.read)));
        }
        let record = postcard::take_from_bytes(self.rest).ok();
        let sound = record.filter(|(entry, _): &(Entry<'_>, _)| entry.is_sound());
        let Some((entry, rest)) = sound else {
            self.entries = self.read;
            self.rest = &[];
            return Some(Err(IndexError::Record(self.read)));
        };
        self.rest = rest;
        self.read += 1;
        Some(Ok(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn sample() -> Vec<Entry<'static>> {
        let inode = Inode {
            mode: 0o4755,
            uid: u32::MAX - 1,
            gid: 7,
            mtime: Timestamp {
                seconds: -1,
                nanoseconds: 999_999_999,
            },
            xattrs: vec![(b"user.x", b"\0\xff")],
            content: Content::Sparse {
                size: 1 << 40,
                chunk_bits: 22,
                runs: vec![Run {
                    chunk: 5,
                    count: 2,
                    block: 9,
                }],
            },
        };
        let change = Change::Inode(inode);
        vec![
            Entry {
                path: b"a/\xff",
                change,
            },
            Entry {
                path: b"b",
                change: Change::HardLink(b"a/\xff"),
            },
        ]
    }

    fn written(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
        for entry in entries {
            writer.add(entry).unwrap();
        }
        writer.finish(11).unwrap().into_inner()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = written(&sample());
        let reader = Reader::new(&bytes).unwrap();
        assert_eq!(reader.data_blocks, 11);
        let read: Vec<_> = reader.map(Result::unwrap).collect();
        assert_eq!(read, sample());
    }

    #[test]
    fn a_cut_or_unfinished_index_is_refused() {
        let bytes = written(&sample());
        for length in 0..bytes.len() {
            let failed = Reader::new(&bytes[..length])
                .map_or(true, |mut reader| reader.any(|entry| entry.is_err()));
            assert!(failed, "{length} bytes of {} were accepted", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..80, value: u8) {
            let mut bytes = written(&sample());
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(reader) = Reader::new(&bytes) {
                prop_assert!(reader.count() <= 3);
            }
        }
    }
}
