//! Manifests, indexes and configurations: parsed by `oci-spec`, then held to what an image that can run must be.
//!
//! OCI's and Docker's media types are accepted, other artifacts, Docker's schema 1 and layers that may not be
//! distributed are refused with their names. Nothing is fetched here and no file is touched.

use std::str::FromStr;

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};
use serde::{Deserialize, de::IgnoredAny};

use crate::image::digest::{Digest, DigestError};

/// Most bytes of a manifest, an index or a configuration, as registries have it.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of an image, as Docker has it.
pub const MAX_LAYERS: usize = 127;
/// Most indexes within indexes on the way to a manifest.
pub const MAX_INDEX_DEPTH: usize = 4;

/// Media types of Docker's image manifest version 2, schema 2, and the Docker Hub's relatives of OCI's types.
mod docker {
    pub const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    pub const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    pub const FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
}

/// The media types of the documents that an image's reference may lead to.
pub const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    docker::LIST,
    docker::MANIFEST,
];

/// Why a document describes no image that can run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ManifestError {
    #[error("not a valid image manifest or index")]
    Syntax(#[source] serde_json::Error),
    #[error("not a valid image configuration")]
    ConfigSyntax(#[source] serde_json::Error),
    #[error(
        "a Docker schema 1 manifest, which is no longer supported: push the image again with a current tool"
    )]
    Schema1,
    #[error("has both `manifests` and `layers`, so that it could be read as two different images")]
    Ambiguous,
    #[error("has neither `manifests` nor `layers`")]
    Neither,
    #[error("calls itself {found}, which its content contradicts")]
    MediaType { found: String },
    #[error("manifest version {0} is not supported, only 2")]
    Version(u32),
    #[error("not a container image but an artifact of type {0}")]
    Artifact(String),
    #[error("layer {digest} may not be distributed ({media_type}): such images cannot be used")]
    NonDistributable { digest: String, media_type: String },
    #[error("layer {digest} is of an unsupported type {media_type}")]
    Layer { digest: String, media_type: String },
    #[error("the image has no layers, so there is nothing to run")]
    NoLayers,
    #[error("the image has {0} layers; {MAX_LAYERS} are supported")]
    TooManyLayers(usize),
    #[error("malformed digest")]
    Digest(#[from] DigestError),
    #[error("the manifest lists {layers} layers, the configuration {diff_ids}")]
    DiffIds { layers: usize, diff_ids: usize },
    #[error("a root file system of type {0:?} instead of layers")]
    RootfsType(String),
    #[error("the image is for {found}, this machine runs {}", Platform::HOST)]
    Platform { found: String },
    #[error("no image for {} among those offered: {offered}", Platform::HOST)]
    NoPlatform { offered: String },
}

/// An operating system and a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    os: &'static str,
    architecture: &'static str,
}

impl Platform {
    /// What the virtual machines of this build run.
    pub const HOST: Self = Self {
        os: "linux",
        architecture: "amd64",
    };

    fn is(self, os: &Os, architecture: &Arch) -> bool {
        os.to_string() == self.os && architecture.to_string() == self.architecture
    }
}

/// A platform that virtual machines of this build do not run, or none at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{asked:?} cannot run here: this machine runs {}", Platform::HOST)]
pub struct PlatformError {
    asked: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// `OS/ARCHITECTURE[/VARIANT]`, `OS` or `ARCHITECTURE`, with the other names that people have for them. Only what
    /// runs here is accepted.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let lower = text.to_ascii_lowercase();
        let (os, rest) = match lower.split_once('/') {
            Some((os, rest)) => (os, Some(rest)),
            None => (lower.as_str(), None),
        };
        let is_ours =
            |architecture: &str| matches!(architecture, "amd64" | "x86_64" | "x86-64" | "amd64/v1");
        let runs = match rest {
            Some(architecture) => os == Self::HOST.os && is_ours(architecture),
            None => os == Self::HOST.os || is_ours(os),
        };
        if runs {
            Ok(Self::HOST)
        } else {
            Err(PlatformError { asked: text.into() })
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// A validated descriptor: what a blob must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it claims to hold.
    pub media_type: MediaType,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Number of its bytes.
    pub size: u64,
}

impl TryFrom<&Descriptor> for Blob {
    type Error = ManifestError;

    fn try_from(descriptor: &Descriptor) -> Result<Self, ManifestError> {
        Ok(Self {
            media_type: descriptor.media_type().clone(),
            digest: descriptor.digest().as_ref().parse()?,
            size: descriptor.size(),
        })
    }
}

/// What a descriptor of an image may lead to.
#[derive(Debug)]
pub enum Document {
    /// A choice of images.
    Index(Box<ImageIndex>),
    /// One image.
    Manifest(Manifest),
}

/// The manifest of an image that could run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first; 1 to [`MAX_LAYERS`].
    pub layers: Vec<Blob>,
}

/// The fields by which documents are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Document {
    /// Reads a document. What it is, its content says; its media type must not contradict (the confusion that
    /// the image specification's "media type verification" is about).
    ///
    /// # Errors
    ///
    /// Where it is no manifest or index, could be read as both, or is a manifest of something else than an image.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
        let is_index = match (&shape.manifests, &shape.layers, &shape.fs_layers) {
            (_, _, Some(_)) => return Err(ManifestError::Schema1),
            (Some(_), Some(_), _) => return Err(ManifestError::Ambiguous),
            (None, None, _) => return Err(ManifestError::Neither),
            (manifests, ..) => manifests.is_some(),
        };
        if let Some(found) = shape.media_type {
            let claimed = MediaType::from(found.as_str());
            let fits = if is_index {
                is_index_type(&claimed)
            } else {
                is_manifest_type(&claimed)
            };
            if !fits {
                return Err(ManifestError::MediaType { found });
            }
        }
        if is_index {
            let index: ImageIndex = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
            check_version(index.schema_version())?;
            Ok(Self::Index(Box::new(index)))
        } else {
            let manifest = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
            Ok(Self::Manifest(Manifest::validate(&manifest)?))
        }
    }
}

fn is_index_type(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex || media_type.as_ref() == docker::LIST
}

fn is_manifest_type(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageManifest || media_type.as_ref() == docker::MANIFEST
}

fn check_version(version: u32) -> Result<(), ManifestError> {
    if version == 2 {
        Ok(())
    } else {
        Err(ManifestError::Version(version))
    }
}

impl Manifest {
    fn validate(manifest: &ImageManifest) -> Result<Self, ManifestError> {
        check_version(manifest.schema_version())?;
        let config = Blob::try_from(manifest.config())?;
        if config.media_type != MediaType::ImageConfig
            && config.media_type.as_ref() != docker::CONFIG
        {
            let kind = manifest
                .artifact_type()
                .as_ref()
                .unwrap_or(&config.media_type);
            return Err(ManifestError::Artifact(kind.to_string()));
        }
        match manifest.layers().len() {
            0 => return Err(ManifestError::NoLayers),
            1..=MAX_LAYERS => {}
            count => return Err(ManifestError::TooManyLayers(count)),
        }
        let layers = manifest
            .layers()
            .iter()
            .map(layer)
            .collect::<Result<_, _>>()?;
        Ok(Self { config, layers })
    }
}

fn layer(descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let (digest, media_type) = (
        descriptor.digest().to_string(),
        descriptor.media_type().to_string(),
    );
    match descriptor.media_type() {
        MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => {
            Blob::try_from(descriptor)
        }
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => {
            Err(ManifestError::NonDistributable { digest, media_type })
        }
        other => match other.as_ref() {
            docker::LAYER | docker::LAYER_GZIP | docker::LAYER_ZSTD => Blob::try_from(descriptor),
            docker::FOREIGN | docker::FOREIGN_GZIP => {
                Err(ManifestError::NonDistributable { digest, media_type })
            }
            _ => Err(ManifestError::Layer { digest, media_type }),
        },
    }
}

/// The entry of `index` that this machine runs: the first for its platform, else the first without any.
///
/// # Errors
///
/// [`ManifestError::NoPlatform`] with what there is instead.
pub fn select(index: &ImageIndex) -> Result<Blob, ManifestError> {
    let candidates = || {
        index
            .manifests()
            .iter()
            .filter(|entry| leads_to_image(entry))
    };
    let for_host = candidates().find(|entry| {
        entry
            .platform()
            .as_ref()
            .is_some_and(|platform| Platform::HOST.is(platform.os(), platform.architecture()))
    });
    let chosen = for_host.or_else(|| candidates().find(|entry| entry.platform().is_none()));
    let Some(chosen) = chosen else {
        let mut offered: Vec<String> = candidates()
            .filter_map(|entry| entry.platform().as_ref())
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            .take(32)
            .collect();
        offered.dedup();
        if offered.is_empty() {
            offered.push("none".into());
        }
        return Err(ManifestError::NoPlatform {
            offered: offered.join(", "),
        });
    };
    Blob::try_from(chosen)
}

/// Whether an entry of an index may be an image: neither an artifact nor a BuildKit attestation, which poses as an
/// image for platform unknown/unknown.
#[must_use]
pub fn leads_to_image(entry: &Descriptor) -> bool {
    let is_attestation = entry
        .platform()
        .as_ref()
        .is_some_and(|platform| platform.os().to_string() == "unknown");
    !is_attestation
        && entry.artifact_type().is_none()
        && (is_manifest_type(entry.media_type()) || is_index_type(entry.media_type()))
}

/// Whether an entry of an index is for this machine as far as it says for which it is.
#[must_use]
pub fn suits_host(entry: &Descriptor) -> bool {
    entry
        .platform()
        .as_ref()
        .is_none_or(|platform| Platform::HOST.is(platform.os(), platform.architecture()))
}

/// A configuration that fits its manifest, and the digests of its uncompressed layers.
///
/// # Errors
///
/// Where it is malformed, for another platform, or does not have one diff_id for each of `layers` layers.
pub fn parse_config(
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(ManifestError::ConfigSyntax)?;
    if !Platform::HOST.is(config.os(), config.architecture()) {
        let found = format!("{}/{}", config.os(), config.architecture());
        return Err(ManifestError::Platform { found });
    }
    if config.rootfs().typ() != "layers" {
        return Err(ManifestError::RootfsType(config.rootfs().typ().clone()));
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return Err(ManifestError::DiffIds {
            layers,
            diff_ids: diff_ids.len(),
        });
    }
    let diff_ids = diff_ids
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    Ok((config, diff_ids))
}

/// What a manifest calls itself; OCI's older ones say nothing.
#[must_use]
pub fn media_type(manifest: &[u8]) -> MediaType {
    let shape: Option<Shape> = serde_json::from_slice(manifest).ok();
    let named = shape.and_then(|shape| shape.media_type);
    named.map_or(MediaType::ImageManifest, |name| name.as_str().into())
}

/// The ChainID of a stack of layers, lowest first, as the image specification's "Layer ChainID" defines it.
/// None for no layers.
#[must_use]
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(*first, |chain, diff_id| {
        Digest::of(format!("{chain} {diff_id}").as_bytes())
    }))
}

#[cfg(test)]
mod tests;
