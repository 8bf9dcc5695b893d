//! The members of a tar archive, read one after the other from a stream.
//!
//! Headers are the tar crate's; what lies between them is read here, because its own iterator neither bounds
//! the memory of extended headers nor lets a caller see raw members whose size an extended header replaces. Where
//! formats are loose, this reads what Go's archive/tar reads, with which container engines write and unpack.

mod header;
mod map;

use std::io::{self, BufRead};

use tar::Header;

use super::index::{Device, Timestamp};
use super::pax::Pax;
use super::sparse::{self, Extent};

const BLOCK: usize = 512;
/// Longest extended header or GNU long name.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream failed.
    #[error("the stream failed")]
    Read(#[source] io::Error),
    /// The stream ends inside a member.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// A header that is none.
    #[error("a header's checksum is wrong")]
    Checksum,
    /// One zero block and something behind it.
    #[error("something follows the end marker's first half")]
    EndMarker,
    /// A number in a header that is none, or out of range.
    #[error("the {0} of an entry is not a number in range")]
    Field(&'static str),
    /// An extended header larger than any tool writes.
    #[error("an extended header is larger than 1 MiB")]
    ExtensionSize,
    /// A record of an extended header.
    #[error("an extended header is malformed")]
    PaxRecord,
    /// A sparse map that contradicts itself or its file.
    #[error("the map of a sparse file is malformed")]
    Sparse,
    /// A sparse map or file too large.
    #[error(
        "a sparse file has more than {} pieces or is too large",
        sparse::MAX_EXTENTS
    )]
    SparseMapSize,
    /// A kind of member that no file system has.
    #[error("an entry has the unknown type '{}'", char::from(*.0).escape_default())]
    Type(u8),
}

/// One member, without its content.
#[derive(Debug)]
pub struct Member {
    /// Path as the archive spells it.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// At most 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Full names and values, all that the archive has.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug)]
pub enum Kind {
    Directory,
    /// A file of this many bytes, which follow as the archive's content.
    File(u64),
    /// A file of this many bytes, of which the archive's content holds these pieces.
    Sparse(u64, Vec<Extent>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// A tar archive on a stream.
pub struct Archive<R> {
    input: R,
    /// Bytes of the current member's content that have not been read.
    content: u64,
    /// Bytes behind it up to the next header.
    padding: u64,
    /// Bytes that were lent out and are to be passed over before anything else is read.
    lent: usize,
}

impl<R: BufRead> Archive<R> {
    /// Reads members from `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
            lent: 0,
        }
    }

    /// The next member, or `None` at the end marker or at an end of the stream behind a member's content. Skips what was not read of the
    /// member before.
    ///
    /// # Errors
    ///
    /// When the stream fails or is no archive from here on.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        self.input.consume(std::mem::take(&mut self.lent));
        let content = std::mem::take(&mut self.content);
        let padding = std::mem::take(&mut self.padding);
        self.skip(content)?;
        match self.skip(padding) {
            // Some tools pad neither the last member nor the archive.
            Err(ArchiveError::Truncated) => return Ok(None),
            skipped => skipped?,
        }
        let mut pax = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                return if extended {
                    Err(ArchiveError::Truncated)
                } else {
                    Ok(None)
                };
            };
            let size = header::size(&header)?;
            extended = true;
            match header::type_of(&header) {
                b'x' => pax = Pax::parse(&self.extension(size)?)?,
                b'L' => long_name = Some(until_nul(self.extension(size)?)),
                b'K' => long_link = Some(until_nul(self.extension(size)?)),
                // Container engines do not apply global headers; git archive keeps a comment in one.
                b'g' => {
                    self.extension(size)?;
                    extended = false;
                }
                _ => return self.member(&header, pax, long_name, long_link).map(Some),
            }
        }
    }

    /// The next bytes, one at least and no more than `most`, of the current member's content: for a sparse file
    /// its pieces, back to back. To be asked for what [`Kind`] says only.
    ///
    /// # Errors
    ///
    /// When the stream ends or fails.
    pub fn content(&mut self, most: u64) -> Result<&[u8], ArchiveError> {
        self.input.consume(std::mem::take(&mut self.lent));
        let ready = self.input.fill_buf().map_err(failed)?;
        let most = usize::try_from(most.min(self.content)).unwrap_or(usize::MAX);
        self.lent = most.min(ready.len());
        if self.lent == 0 {
            return Err(ArchiveError::Truncated);
        }
        self.content -= self.lent as u64;
        Ok(&ready[..self.lent])
    }

    /// The stream, from behind the last thing that was read.
    pub fn into_inner(mut self) -> R {
        self.input.consume(self.lent);
        self.input
    }

    fn member(
        &mut self,
        header: &Header,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, ArchiveError> {
        let path = long_name
            .or(pax.sparse.name.take())
            .or(pax.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = long_link
            .or(pax.link_path.take())
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let kind = match header::type_of(header) {
            // Before ustar, folders were files with a slash at the end.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => self.file(header, &mut pax)?,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharDevice(header::device(header)?),
            b'4' => Kind::BlockDevice(header::device(header)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(ArchiveError::Type(other)),
        };
        Ok(Member {
            path,
            kind,
            mode: header::mode(header)?,
            uid: header::owner(pax.uid.map_or_else(|| header::user(header), Ok)?)?,
            gid: header::owner(pax.gid.map_or_else(|| header::group(header), Ok)?)?,
            mtime: pax.mtime.map_or_else(|| header::time(header), Ok)?,
            xattrs: pax.xattrs,
        })
    }

    fn file(&mut self, header: &Header, pax: &mut Pax) -> Result<Kind, ArchiveError> {
        let stored = pax.size.map_or_else(|| header::size(header), Ok)?;
        self.content = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        if stored.checked_add(self.padding).is_none() {
            return Err(ArchiveError::Field("size"));
        }
        let (size, map) = if header::type_of(header) == b'S' {
            self.gnu_map(header)?
        } else if pax.sparse.is_present() {
            let size = pax.sparse.size.ok_or(ArchiveError::Sparse)?;
            let map = match (pax.sparse.version, pax.sparse.map.take()) {
                ((0, _), Some(map)) => map,
                ((1, 0), _) => self.leading_map()?,
                _ => return Err(ArchiveError::Sparse),
            };
            (size, map)
        } else {
            return Ok(Kind::File(stored));
        };
        sparse::check(&map, size, self.content)?;
        Ok(Kind::Sparse(size, map))
    }

    /// The next header, or `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let Some(block) = self.block_or_end()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            return match self.block_or_end()? {
                None => Ok(None),
                Some(second) if second == [0; BLOCK] => Ok(None),
                Some(_) => Err(ArchiveError::EndMarker),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        if !header::is_sound(&header) {
            return Err(ArchiveError::Checksum);
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::ExtensionSize);
        }
        let mut bytes = vec![0; size as usize];
        self.input.read_exact(&mut bytes).map_err(failed)?;
        self.skip(size.wrapping_neg() % BLOCK as u64)?;
        Ok(bytes)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        self.block_or_end()?.ok_or(ArchiveError::Truncated)
    }

    fn block_or_end(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        if self.input.fill_buf().map_err(failed)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(failed)?;
        Ok(Some(block))
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), ArchiveError> {
        while bytes > 0 {
            let ready = self.input.fill_buf().map_err(failed)?.len();
            if ready == 0 {
                return Err(ArchiveError::Truncated);
            }
            let count = usize::try_from(bytes).map_or(ready, |bytes| bytes.min(ready));
            self.input.consume(count);
            bytes -= count as u64;
        }
        Ok(())
    }
}

fn failed(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => ArchiveError::Read(error),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, name: &str) -> Header {
        let mut header = Header::new_old();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkflag[0] = kind;
        header.set_size(0);
        header.set_cksum();
        header
    }

    fn first(blocks: &[&[u8]]) -> Result<Option<Member>, ArchiveError> {
        Archive::new(&blocks.concat()[..]).next_member()
    }

    #[test]
    fn an_archive_ends_with_two_zero_blocks_or_cleanly() {
        let zero = [0; BLOCK];
        let file = header(b'0', "f");
        for blocks in [
            &[][..],
            &[&zero[..]],
            &[&zero, &zero],
            &[&zero, &zero, b"more"],
        ] {
            assert!(first(blocks).unwrap().is_none());
        }
        assert!(matches!(
            first(&[&zero, file.as_bytes()]),
            Err(ArchiveError::EndMarker)
        ));
        assert!(matches!(
            first(&[&file.as_bytes()[..511]]),
            Err(ArchiveError::Truncated)
        ));
        assert!(matches!(
            first(&[header(b'x', "p").as_bytes()]),
            Err(ArchiveError::Truncated)
        ));
    }

    #[test]
    fn an_archive_may_end_behind_the_last_content() {
        let mut file = header(b'0', "f");
        file.set_size(3);
        file.set_cksum();
        for (content, ends_well) in [(&b"abc"[..], true), (b"abc\0\0", true), (b"ab", false)] {
            let bytes = [file.as_bytes(), content].concat();
            let mut archive = Archive::new(&bytes[..]);
            archive.next_member().unwrap().unwrap();
            let end = archive.next_member();
            assert_eq!(matches!(end, Ok(None)), ends_well, "{content:?}");
        }
    }

    #[test]
    fn blank_fields_are_zero_and_old_folders_end_in_a_slash() {
        let member = first(&[header(0, "d/").as_bytes()]).unwrap().unwrap();
        assert!(matches!(member.kind, Kind::Directory));
        assert_eq!(
            (member.mode, member.uid, member.mtime),
            (0, 0, Timestamp::default())
        );
        let member = first(&[header(0, "f").as_bytes()]).unwrap().unwrap();
        assert!(matches!(member.kind, Kind::File(0)));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for field in [108..116, 116..124, 124..136] {
            let mut header = header(b'0', "f");
            header.as_mut_bytes()[field].fill(0xff);
            header.set_cksum();
            assert!(matches!(
                first(&[header.as_bytes()]),
                Err(ArchiveError::Field(_))
            ));
        }
        let mut before = header(b'0', "f");
        before.as_mut_bytes()[136..148].fill(0xff);
        before.set_cksum();
        let member = first(&[before.as_bytes()]).unwrap().unwrap();
        assert_eq!(member.mtime.seconds, -1);
    }

    #[test]
    fn unknown_types_and_wrong_checksums_are_refused() {
        assert!(matches!(
            first(&[header(b'V', "v").as_bytes()]),
            Err(ArchiveError::Type(b'V'))
        ));
        let mut wrong = header(b'0', "f");
        wrong.as_mut_bytes()[0] ^= 1;
        assert!(matches!(
            first(&[wrong.as_bytes()]),
            Err(ArchiveError::Checksum)
        ));
    }

    #[test]
    fn a28_extended_headers_are_bounded() {
        let mut large = header(b'x', "p");
        large.set_size(MAX_EXTENSION + 1);
        large.set_cksum();
        assert!(matches!(
            first(&[large.as_bytes()]),
            Err(ArchiveError::ExtensionSize)
        ));
    }
}
