//! Archives that hold images: an OCI layout in a tar file, what `docker save` writes, or both in one; plain, gzip or
//! zstd.
//!
//! Nothing is ever unpacked: names in the archive are only looked up. A file is read where its members lie; what
//! cannot be read twice (a pipe, a compressed archive) is spooled member by member into the folder of the running
//! operation. What `docker save` wrote before it wrote OCI layouts too gets a manifest here, always the same one.

mod docker;
mod input;
mod members;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use oci_spec::OciSpecError;

pub(crate) use self::input::Input;
use self::members::{Content, Members};
use crate::image::{
    digest::Digest,
    import::{Source, SourceError},
    layer::archive::ArchiveError as TarError,
    layout::{self, Candidate, LayoutError},
    manifest::{Blob, MAX_DOCUMENT, ManifestError},
    reference::ReferenceError,
    store::{FileError, Transaction},
};

/// Why an archive holds no usable image.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ArchiveError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("the archive is not a tar file, or a damaged one")]
    Tar(#[from] TarError),
    #[error("{0:?} in the archive is a sparse file: pack it without --sparse")]
    Sparse(String),
    #[error(
        "the archive is neither an OCI archive nor one of `docker save`: it has no index.json and no manifest.json"
    )]
    NotAnImage,
    #[error("the archive has more than {} members", members::MAX_MEMBERS)]
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
    members: Members,
    /// Blobs that are no `blobs/...` member: by what was found in a `docker save` archive.
    blobs: HashMap<Digest, Content>,
}

impl Archive {
    /// Looks through `input`, a tar file from its beginning that may be compressed, and gives the archive and the
    /// images it offers to this platform.
    pub fn open(
        input: File,
        transaction: &Transaction<'_>,
    ) -> Result<(Self, Vec<Candidate>), ArchiveError> {
        let input = Input::open(input).map_err(ArchiveError::Read)?;
        let members = Members::scan(input, transaction)?;
        let blobs = HashMap::new();
        let mut archive = Self { members, blobs };
        let has = |name| archive.members.get(name).is_ok();
        let candidates = if has(layout::INDEX) && has(layout::MARKER) {
            layout::check_marker(&archive.document(layout::MARKER)?)?;
            layout::candidates(&archive.document(layout::INDEX)?)?
        } else if has(docker::MANIFEST) {
            docker::candidates(&mut archive)?
        } else {
            return Err(ArchiveError::NotAnImage);
        };
        Ok((archive, candidates))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let content = self.members.get(name)?;
        if content.size() > MAX_DOCUMENT {
            return Err(ArchiveError::TooLarge(name.into()));
        }
        let mut bytes = Vec::new();
        self.members
            .read(content)
            .and_then(|reader| reader.take(MAX_DOCUMENT).read_to_end(&mut bytes))
            .map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    fn blob(&self, digest: &Digest) -> Result<&Content, ArchiveError> {
        match self.blobs.get(digest) {
            Some(content) => Ok(content),
            None => self.members.get(&layout::blob_path(digest)),
        }
    }
}

impl Source for Archive {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(self.members.read(self.blob(&blob.digest)?)?)
    }

    fn spooled(&self, blob: &Blob) -> Option<PathBuf> {
        match self.blob(&blob.digest) {
            Ok(Content::Spooled { path, .. }) => Some(path.clone()),
            _ => None,
        }
    }
}
