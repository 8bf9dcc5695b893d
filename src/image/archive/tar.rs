//! The members of a tar file that holds an image: ustar, GNU and pax, names and sizes only.
//!
//! Nothing is unpacked and no name is a path here. Extended headers are read into memory within a cap, which the
//! `tar` crate's own iterator does not have. Layers are read elsewhere; they need far more of the format.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;
/// Most bytes of an extended header or a long name.
const MAX_EXTENSION: u64 = 64 << 10;

/// Where a tar file is read from.
pub(super) enum Input {
    /// A file that can be read again and need not be read between headers.
    File(File),
    /// Anything else.
    Stream(Box<dyn Read + Send>),
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MemberKind {
    /// A file.
    File,
    /// A symbolic link, to this.
    Symlink(String),
    /// A hard link, to the member of this name.
    HardLink(String),
    /// A folder, a device or something else that holds nothing.
    Other,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name as it stands in the archive.
    pub name: String,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of its content.
    pub size: u64,
    /// Where its content begins in the tar file.
    pub offset: u64,
}

/// Walks from member to member.
pub(super) struct Members {
    input: Input,
    /// Bytes from the beginning of the tar file.
    position: u64,
    /// Where the next header lies.
    next: u64,
    /// Bytes of the file; unknown for a stream.
    length: Option<u64>,
}

/// What extended headers say about the member behind them.
#[derive(Default)]
struct Extensions {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Members {
    /// Begins where `input` stands, which for a file must be its beginning.
    pub fn new(input: Input) -> io::Result<Self> {
        let length = match &input {
            Input::File(file) => Some(file.metadata()?.len()),
            Input::Stream(_) => None,
        };
        Ok(Self {
            input,
            position: 0,
            next: 0,
            length,
        })
    }

    /// The input again. What follows a stream's last member is read, so that whoever writes it can finish, and a
    /// compressed one is seen to be whole.
    pub fn into_input(mut self) -> io::Result<Input> {
        if let Input::Stream(stream) = &mut self.input {
            io::copy(stream, &mut io::sink())?;
        }
        Ok(self.input)
    }

    /// The next member; [`Members::content`] then reads it. A name that is no UTF-8 comes out altered.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_to(self.next)?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            let mut size = header.entry_size()?;
            if !(kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions())
            {
                size = extensions.size.unwrap_or(size);
            }
            self.next = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|padded| padded.checked_add(self.position))
                .ok_or_else(|| invalid("a member of impossible size"))?;
            if self
                .length
                .is_some_and(|length| self.position + size > length)
            {
                return Err(truncated());
            }
            if kind.is_gnu_longname() {
                extensions.name = Some(text(&self.extension(size)?));
            } else if kind.is_gnu_longlink() {
                extensions.link = Some(text(&self.extension(size)?));
            } else if kind.is_pax_local_extensions() {
                extensions.add(&self.extension(size)?)?;
            } else if !kind.is_pax_global_extensions() {
                return Ok(Some(self.member(&header, size, extensions)));
            }
        }
    }

    fn member(&self, header: &Header, size: u64, extensions: Extensions) -> Member {
        let link = || {
            extensions
                .link
                .unwrap_or_else(|| text(&header.link_name_bytes().unwrap_or_default()))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => MemberKind::File,
            EntryType::Symlink => MemberKind::Symlink(link()),
            EntryType::Link => MemberKind::HardLink(link()),
            _ => MemberKind::Other,
        };
        Member {
            name: extensions
                .name
                .unwrap_or_else(|| text(&header.path_bytes())),
            kind,
            size,
            offset: self.position,
        }
    }

    /// Reads the content of the member that [`Members::next`] just gave; fails where it is cut short.
    pub fn content<'m>(&'m mut self, member: &Member) -> impl Read + use<'m> {
        Content {
            left: member.size,
            members: self,
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += filled as u64;
        // Some writers leave out the two empty blocks of the end.
        if filled == 0 || bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if filled < bytes.len() {
            let is_first = self.position < BLOCK;
            return Err(if is_first {
                not_a_tar_file()
            } else {
                truncated()
            });
        }
        // The checksum field itself counts as spaces.
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(not_a_tar_file());
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid("an extended header of more than 64 KiB"));
        }
        let mut bytes = Vec::new();
        Content {
            left: size,
            members: self,
        }
        .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_to(&mut self, target: u64) -> io::Result<()> {
        match &mut self.input {
            Input::File(file) => {
                file.seek(SeekFrom::Start(target))?;
            }
            Input::Stream(stream) => {
                let count = target - self.position;
                if io::copy(&mut stream.take(count), &mut io::sink())? != count {
                    return Err(truncated());
                }
            }
        }
        self.position = target;
        Ok(())
    }
}

impl Extensions {
    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        for extension in PaxExtensions::new(bytes) {
            let extension = extension?;
            match extension.key_bytes() {
                b"path" => self.name = Some(text(extension.value_bytes())),
                b"linkpath" => self.link = Some(text(extension.value_bytes())),
                b"size" => {
                    let size = extension.value().ok().and_then(|value| value.parse().ok());
                    self.size = Some(size.ok_or_else(|| invalid("a size that is no number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stream(stream) => stream.read(buffer),
        }
    }
}

struct Content<'m> {
    members: &'m mut Members,
    left: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.members.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(truncated());
        }
        self.left -= count as u64;
        self.members.position += count as u64;
        Ok(count)
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is truncated")
}

fn not_a_tar_file() -> io::Error {
    invalid("not a tar file, or a damaged one")
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
