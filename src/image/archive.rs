//! Archives that hold images: an OCI layout in a tar file, what `docker save` writes, or both in one; plain, gzip or
//! zstd.
//!
//! Nothing is ever unpacked: names in the archive are only looked up. A file is read where its members lie; what
//! cannot be read twice (a pipe, a compressed archive) is spooled member by member into the folder of the running
//! operation. What `docker save` wrote before it wrote OCI layouts too gets a manifest here, always the same one.

mod docker;
mod tar;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use oci_spec::OciSpecError;

use self::tar::{Input, Member, MemberKind, Members};
use crate::image::{
    digest::Digest,
    import::{self, Source, SourceError},
    layer::Compression,
    layout::{self, Candidate, LayoutError},
    manifest::{Blob, MAX_DOCUMENT, ManifestError},
    reference::ReferenceError,
    store::{FileError, Transaction},
};

/// Most members of an archive.
const MAX_MEMBERS: usize = 1 << 16;
/// Longest name that can matter: a blob's or a Docker layer's are half as long.
const MAX_NAME: usize = 512;
/// Most links from one to the next.
const MAX_LINKS: usize = 8;
/// How many bytes one compressed byte may become, judged once a GiB came out.
const MAX_RATIO: u64 = 200;
const RATIO_FROM: u64 = 1 << 30;

/// Why an archive holds no usable image.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ArchiveError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error(
        "the archive is neither an OCI archive nor one of `docker save`: it has no index.json and no manifest.json"
    )]
    NotAnImage,
    #[error("the archive has more than {MAX_MEMBERS} members")]
    TooManyMembers,
    #[error("the archive has no file {0:?}")]
    Missing(String),
    #[error("{0} in the archive has more than the {MAX_DOCUMENT} bytes allowed")]
    TooLarge(String),
    #[error("manifest.json is malformed")]
    Manifest(#[source] serde_json::Error),
    #[error("manifest.json names an image {name:?}")]
    Name {
        name: String,
        source: ReferenceError,
    },
    #[error("manifest.json names an image {0:?} with a digest, which only a registry can give")]
    PinnedName(String),
    #[error("image configuration {0:?} cannot be used")]
    Config(String, #[source] ManifestError),
    #[error("cannot make a manifest")]
    Compose(#[source] OciSpecError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("cannot spool the archive")]
    Spool(#[from] FileError),
}

/// An archive whose members are known.
pub(crate) struct Archive {
    file: Option<File>,
    members: HashMap<String, Content>,
    /// Blobs that are no `blobs/...` member: by what was found in a `docker save` archive.
    blobs: HashMap<Digest, Content>,
}

/// Where the content of a member lies.
#[derive(Debug, Clone)]
enum Content {
    /// In the archive's file.
    Within { offset: u64, size: u64 },
    /// In a file of the running operation.
    Spooled { path: PathBuf, size: u64 },
    /// Made up here.
    Made(Vec<u8>),
    /// Under another name.
    Link(String),
}

impl Archive {
    /// Looks through `input`, a tar file from its current position that may be compressed, and gives the archive
    /// and the images it offers to this platform.
    pub fn open(
        input: File,
        transaction: &Transaction<'_>,
    ) -> Result<(Self, Vec<Candidate>), ArchiveError> {
        let mut archive = Self::scan(decompress(input).map_err(ArchiveError::Read)?, transaction)?;
        let candidates = if archive.members.contains_key(layout::INDEX)
            && archive.members.contains_key(layout::MARKER)
        {
            layout::check_marker(&archive.document(layout::MARKER)?)?;
            layout::candidates(&archive.document(layout::INDEX)?)?
        } else if archive.members.contains_key(docker::MANIFEST) {
            docker::candidates(&mut archive)?
        } else {
            return Err(ArchiveError::NotAnImage);
        };
        Ok((archive, candidates))
    }

    fn scan(input: Input, transaction: &Transaction<'_>) -> Result<Self, ArchiveError> {
        let is_file = matches!(input, Input::File(_));
        let mut walk = Members::new(input).map_err(ArchiveError::Read)?;
        let mut members = HashMap::new();
        while let Some(member) = walk.next().map_err(ArchiveError::Read)? {
            let Some(name) = normalize("", &member.name).filter(|name| name.len() <= MAX_NAME)
            else {
                continue;
            };
            let content = match &member.kind {
                MemberKind::Other => continue,
                MemberKind::File if is_file => Content::Within {
                    offset: member.offset,
                    size: member.size,
                },
                MemberKind::File => spool(&mut walk, &member, transaction)?,
                MemberKind::Symlink(target) => match normalize(parent(&name), target) {
                    Some(target) => Content::Link(target),
                    None => continue,
                },
                MemberKind::HardLink(target) => match normalize("", target) {
                    Some(target) => Content::Link(target),
                    None => continue,
                },
            };
            members.insert(name, content);
            if members.len() > MAX_MEMBERS {
                return Err(ArchiveError::TooManyMembers);
            }
        }
        let file = match walk.into_input().map_err(ArchiveError::Read)? {
            Input::File(file) => Some(file),
            Input::Stream(_) => None,
        };
        Ok(Self {
            file,
            members,
            blobs: HashMap::new(),
        })
    }

    /// A member by its name, links followed.
    fn member(&self, name: &str) -> Result<&Content, ArchiveError> {
        let missing = || ArchiveError::Missing(name.chars().take(MAX_NAME).collect());
        let mut current = normalize("", name).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&current) {
                Some(Content::Link(target)) => current.clone_from(target),
                Some(content) => return Ok(content),
                None => break,
            }
        }
        Err(missing())
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let content = self.member(name)?;
        if content.size() > MAX_DOCUMENT {
            return Err(ArchiveError::TooLarge(name.into()));
        }
        let mut bytes = Vec::new();
        self.read(content)
            .and_then(|reader| reader.take(MAX_DOCUMENT).read_to_end(&mut bytes))
            .map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    fn read<'a>(&'a self, content: &'a Content) -> io::Result<Box<dyn Read + Send + 'a>> {
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

    fn blob(&self, digest: &Digest) -> Result<&Content, ArchiveError> {
        match self.blobs.get(digest) {
            Some(content) => Ok(content),
            None => self.member(&layout::blob_path(digest)),
        }
    }
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Within { size, .. } | Self::Spooled { size, .. } => *size,
            Self::Made(bytes) => bytes.len() as u64,
            Self::Link(_) => 0,
        }
    }
}

impl Source for Archive {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(self.read(self.blob(&blob.digest)?)?)
    }

    fn spooled(&self, blob: &Blob) -> Option<PathBuf> {
        match self.blob(&blob.digest) {
            Ok(Content::Spooled { path, .. }) => Some(path.clone()),
            _ => None,
        }
    }
}

/// The input as a tar file: a file that is one is read in place.
fn decompress(mut input: File) -> io::Result<Input> {
    let mut magic = Vec::new();
    Read::by_ref(&mut input).take(4).read_to_end(&mut magic)?;
    let compression = import::sniff(&magic);
    if input.metadata()?.is_file() {
        input.rewind()?;
        magic.clear();
        if compression == Compression::None {
            return Ok(Input::File(input));
        }
    }
    let went_in = Arc::new(AtomicU64::new(0));
    let input = BufReader::with_capacity(
        128 << 10,
        Counted {
            inner: io::Cursor::new(magic).chain(input),
            count: Arc::clone(&went_in),
        },
    );
    let inner: Box<dyn Read + Send> = match compression {
        Compression::None => return Ok(Input::Stream(Box::new(input))),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
    };
    Ok(Input::Stream(Box::new(Expanded {
        inner,
        came_out: 0,
        went_in,
    })))
}

/// Copies a member of a stream aside.
fn spool(
    walk: &mut Members,
    member: &Member,
    transaction: &Transaction<'_>,
) -> Result<Content, ArchiveError> {
    let (mut file, path) = transaction.new_file()?;
    let mut content = walk.content(member);
    let mut buffer = vec![0; 128 << 10];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => file
                .write_all(&buffer[..count])
                .map_err(|source| FileError::Write(path.clone(), source))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ArchiveError::Read(error)),
        }
    }
    Ok(Content::Spooled {
        path,
        size: member.size,
    })
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

/// Counts what it reads for somebody else.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A decompressor that stops where so little becomes so much.
struct Expanded {
    inner: Box<dyn Read + Send>,
    came_out: u64,
    went_in: Arc<AtomicU64>,
}

impl Read for Expanded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.came_out += count as u64;
        let allowed = self
            .went_in
            .load(Ordering::Relaxed)
            .saturating_mul(MAX_RATIO);
        if self.came_out > RATIO_FROM && self.came_out > allowed {
            let message = format!("the archive expands more than {MAX_RATIO} times");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
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
