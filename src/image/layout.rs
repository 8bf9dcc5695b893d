//! OCI image layouts: a folder, or the same within an archive, as the specification's "Image Layout" has it.
//!
//! Of a folder only `oci-layout`, `index.json` and blobs by their digests are read, none of them through a symbolic
//! link. Choosing among several images and what becomes of them are not decided here.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};
use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;

use crate::image::{
    digest::Digest,
    import::{Source, SourceError},
    manifest::{self, Blob, MAX_DOCUMENT, ManifestError},
    reference::{Reference, ReferenceError},
};

/// File that makes a folder a layout.
pub(crate) const MARKER: &str = "oci-layout";
/// The entry point of a layout.
pub(crate) const INDEX: &str = "index.json";
/// Annotation with which containerd and Docker name an image in full.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
/// Annotation with which everybody else names it: a tag, a full name or anything else.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why something is no usable layout.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LayoutError {
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is a folder but not an OCI image layout: it has no file oci-layout")]
    NotALayout(PathBuf),
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    #[error("{0} has more than the {MAX_DOCUMENT} bytes allowed")]
    TooLarge(PathBuf),
    #[error("oci-layout is malformed")]
    Marker(#[source] serde_json::Error),
    #[error("layout version {0:?} is not supported, only 1.0.0")]
    Version(String),
    #[error("index.json is malformed")]
    Index(#[source] serde_json::Error),
    #[error("index.json cannot be used")]
    Entry(#[source] ManifestError),
    #[error("index.json names an image {name:?}")]
    Name {
        name: String,
        source: ReferenceError,
    },
}

/// One image that a layout or an archive offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its manifest or index.
    pub blob: Blob,
    /// Its names in full, as far as it has such.
    pub names: Vec<Reference>,
    /// What the layout calls it, often only a tag.
    pub label: Option<String>,
}

impl Candidate {
    /// Whether a person who writes `selector` behind a path means this image.
    pub fn is_called(&self, selector: &str) -> bool {
        let named = |name: &Reference| {
            selector
                .parse()
                .is_ok_and(|wanted: Reference| wanted == *name)
                || name.tag() == Some(selector)
        };
        self.label.as_deref() == Some(selector) || self.names.iter().any(named)
    }
}

/// Checks the content of `oci-layout`.
pub(crate) fn check_marker(bytes: &[u8]) -> Result<(), LayoutError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker = serde_json::from_slice(bytes).map_err(LayoutError::Marker)?;
    if marker.image_layout_version == "1.0.0" {
        Ok(())
    } else {
        Err(LayoutError::Version(marker.image_layout_version))
    }
}

/// The images that `index.json` offers to this platform, one for each entry.
pub(crate) fn candidates(index: &[u8]) -> Result<Vec<Candidate>, LayoutError> {
    let index: ImageIndex = serde_json::from_slice(index).map_err(LayoutError::Index)?;
    index
        .manifests()
        .iter()
        .filter(|entry| manifest::leads_to_image(entry) && manifest::suits_host(entry))
        .map(candidate)
        .collect()
}

fn candidate(entry: &Descriptor) -> Result<Candidate, LayoutError> {
    let annotation = |key| {
        entry
            .annotations()
            .as_ref()
            .and_then(|all| all.get(key))
            .cloned()
    };
    let blob = Blob::try_from(entry).map_err(LayoutError::Entry)?;
    let label = annotation(REF_NAME);
    let name = match annotation(FULL_NAME) {
        Some(name) => Some(
            name.parse()
                .map_err(|source| LayoutError::Name { name, source })?,
        ),
        // A bare word is a tag of an image whose name is not told; what is no name at all is a label.
        None => label
            .as_ref()
            .filter(|label| label.contains([':', '/']))
            .and_then(|label| label.parse().ok()),
    };
    // A digest in a name would be a claim about content that nobody checked.
    let names = name
        .into_iter()
        .filter(|name: &Reference| name.digest().is_none())
        .collect();
    Ok(Candidate { blob, names, label })
}

/// A layout in a folder.
pub(crate) struct Layout {
    path: PathBuf,
    folder: OwnedFd,
}

impl Layout {
    /// Opens the layout in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|errno| LayoutError::Open(path.into(), errno.into()))?;
        let layout = Self {
            path: path.into(),
            folder,
        };
        match layout.document(MARKER) {
            Err(LayoutError::Open(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LayoutError::NotALayout(path.into()));
            }
            marker => check_marker(&marker?)?,
        }
        Ok(layout)
    }

    /// The images that it offers to this platform.
    pub fn candidates(&self) -> Result<Vec<Candidate>, LayoutError> {
        candidates(&self.document(INDEX)?)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        self.file(name)?
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| LayoutError::Read(path.clone(), source))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(LayoutError::TooLarge(path));
        }
        Ok(bytes)
    }

    /// A regular file within the layout. Whoever made the layout has no say in what else is read.
    fn file(&self, name: &str) -> Result<File, LayoutError> {
        let path = self.path.join(name);
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file: File = openat2(&self.folder, name, how)
            .map_err(|errno| LayoutError::Open(path.clone(), errno.into()))?
            .into();
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            Ok(_) => Err(LayoutError::NotAFile(path)),
            Err(source) => Err(LayoutError::Read(path, source)),
        }
    }
}

/// Where a blob lies in a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

impl Source for Layout {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(Box::new(self.file(&blob_path(&blob.digest))?))
    }
}
