//! The members of an archive by their names: where the content of each lies.
//!
//! A file is looked through from header to header, so that what is not asked for is not read; of a stream each member
//! is spooled.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use super::{ArchiveError, input::Input};
use crate::image::{
    layer::archive::{self as tar, ArchiveError as TarError, Kind, Member},
    store::{FileError, Transaction},
};

/// Most members of an archive.
pub(super) const MAX_MEMBERS: usize = 1 << 16;
/// Longest name that can matter: a blob's or a Docker layer's are half as long.
const MAX_NAME: usize = 512;
/// Most links from one to the next.
const MAX_LINKS: usize = 8;
/// Content of tar files is padded to so many bytes.
const BLOCK: u64 = 512;
/// Bytes of a member that are copied at once.
const PIECE: u64 = 128 << 10;

/// All members that may be asked for.
pub(super) struct Members {
    file: Option<File>,
    contents: HashMap<String, Content>,
}

/// Where the content of a member lies.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// In the archive's file.
    Within { offset: u64, size: u64 },
    /// In a file of the running operation.
    Spooled { path: PathBuf, size: u64 },
    /// Made up here.
    Made(Vec<u8>),
    /// Under another name.
    Link(String),
}

impl Members {
    /// Looks through an archive.
    pub fn scan(input: Input, transaction: &Transaction<'_>) -> Result<Self, ArchiveError> {
        match input {
            Input::File(file) => Self::scan_file(file),
            Input::Stream(stream) => Self::scan_stream(stream, transaction),
        }
    }

    fn scan_file(file: File) -> Result<Self, ArchiveError> {
        let length = file.metadata().map_err(ArchiveError::Read)?.len();
        let mut contents = HashMap::new();
        let mut tape = Tape {
            input: BufReader::new(file),
            position: 0,
        };
        loop {
            let mut archive = tar::Archive::new(tape);
            let Some(member) = archive.next_member()? else {
                let file = Some(archive.into_inner().input.into_inner());
                return Ok(Self { file, contents });
            };
            tape = archive.into_inner();
            let Kind::File(size) = member.kind else {
                add(&mut contents, &member, None)?;
                continue;
            };
            let offset = tape.position;
            let end = offset.checked_add(size).filter(|end| *end <= length);
            let end = end.ok_or(TarError::Truncated)?;
            add(
                &mut contents,
                &member,
                Some(Content::Within { offset, size }),
            )?;
            tape.seek_to(end.next_multiple_of(BLOCK))
                .map_err(ArchiveError::Read)?;
        }
    }

    fn scan_stream(
        stream: Box<dyn Read + Send>,
        transaction: &Transaction<'_>,
    ) -> Result<Self, ArchiveError> {
        let mut contents = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::with_capacity(PIECE as usize, stream));
        while let Some(member) = archive.next_member()? {
            let content = match member.kind {
                Kind::File(size) => Some(spool(&mut archive, size, transaction)?),
                _ => None,
            };
            add(&mut contents, &member, content)?;
        }
        // So that whoever writes it can finish, and a compressed one is seen to be whole.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(Self {
            file: None,
            contents,
        })
    }

    /// A member by its name, links followed.
    pub fn get(&self, name: &str) -> Result<&Content, ArchiveError> {
        let missing = || ArchiveError::Missing(name.chars().take(MAX_NAME).collect());
        let mut current = normalize("", name).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            match self.contents.get(&current) {
                Some(Content::Link(target)) => current.clone_from(target),
                Some(content) => return Ok(content),
                None => break,
            }
        }
        Err(missing())
    }

    /// Begins to read what [`Members::get`] found.
    pub fn read<'a>(&'a self, content: &'a Content) -> io::Result<Box<dyn Read + Send + 'a>> {
        match content {
            Content::Within { offset, size } => {
                let file = self.file.as_ref().ok_or(io::ErrorKind::NotSeekable)?;
                Ok(Box::new(Section {
                    file,
                    position: *offset,
                    left: *size,
                }))
            }
            Content::Spooled { path, .. } => Ok(Box::new(File::open(path)?)),
            Content::Made(bytes) => Ok(Box::new(bytes.as_slice())),
            Content::Link(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Content {
    /// Bytes of it.
    pub fn size(&self) -> u64 {
        match self {
            Self::Within { size, .. } | Self::Spooled { size, .. } => *size,
            Self::Made(bytes) => bytes.len() as u64,
            Self::Link(_) => 0,
        }
    }
}

/// Notes a member under its name; the last of several with one name counts. Names that lead out of the archive, or
/// are longer than any that is asked for, are nobody's.
fn add(
    contents: &mut HashMap<String, Content>,
    member: &Member,
    content: Option<Content>,
) -> Result<(), ArchiveError> {
    let text = String::from_utf8_lossy(&member.path);
    let Some(name) = normalize("", &text).filter(|name| name.len() <= MAX_NAME) else {
        return Ok(());
    };
    let target = |folder, target: &[u8]| {
        normalize(folder, &String::from_utf8_lossy(target)).map(Content::Link)
    };
    let content = match &member.kind {
        Kind::Symlink(link) => target(parent(&name), link),
        Kind::HardLink(link) => target("", link),
        Kind::Sparse(..) => return Err(ArchiveError::Sparse(name)),
        _ => content,
    };
    contents.extend(content.map(|content| (name, content)));
    if contents.len() > MAX_MEMBERS {
        return Err(ArchiveError::TooManyMembers);
    }
    Ok(())
}

/// Copies the content of a stream's current member aside.
fn spool(
    archive: &mut tar::Archive<impl BufRead>,
    size: u64,
    transaction: &Transaction<'_>,
) -> Result<Content, ArchiveError> {
    let (mut file, path) = transaction.new_file()?;
    let mut left = size;
    while left > 0 {
        let piece = archive.content(left.min(PIECE))?;
        file.write_all(piece)
            .map_err(|source| FileError::Write(path.clone(), source))?;
        left -= piece.len() as u64;
    }
    Ok(Content::Spooled { path, size })
}

/// A name without `.`, `..` and leading or doubled slashes, as seen from `folder`; none where it leads out of
/// the archive or to nothing.
fn normalize(folder: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    if name.starts_with('/') {
        return None;
    }
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/")).filter(|name| !name.is_empty())
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A file that is read from header to header and knows where it is.
struct Tape {
    input: BufReader<File>,
    position: u64,
}

impl Tape {
    /// Goes forward to `target` without reading.
    fn seek_to(&mut self, target: u64) -> io::Result<()> {
        let distance = i64::try_from(target - self.position).map_err(io::Error::other)?;
        self.input.seek_relative(distance)?;
        self.position = target;
        Ok(())
    }
}

impl Read for Tape {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl BufRead for Tape {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.position += count as u64;
    }
}

/// A part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    position: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a23_names_stay_in_the_archive() {
        assert_eq!(normalize("", "./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(
            normalize("a/b", "../c/layer.tar").as_deref(),
            Some("a/c/layer.tar")
        );
        for name in [
            "",
            ".",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/..",
        ] {
            assert_eq!(normalize("", name), None, "{name}");
        }
        assert_eq!(normalize("a", "../../x"), None);
    }
}
