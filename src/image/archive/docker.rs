//! What `docker save` wrote for years, and `skopeo copy ... docker-archive:` writes: manifest.json with the names of
//! a configuration and of layers, which are plain tar files.
//!
//! Such an image has no manifest with a digest. It gets the one that describes exactly these blobs, so that it can be
//! kept, and later pushed, like any other.

use std::io::Read;

use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType};
use serde::Deserialize;

use super::{Archive, ArchiveError, Content};
use crate::image::{
    digest::{Algorithm, Digest, Hashed},
    import,
    layer::Compression,
    layout::Candidate,
    manifest::{self, Blob},
    reference::Reference,
};

/// The member that makes an archive one of these.
pub(super) const MANIFEST: &str = "manifest.json";

/// One image of manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images that the archive offers; those for other platforms are left to fail when they are asked for.
pub(super) fn candidates(archive: &mut Archive) -> Result<Vec<Candidate>, ArchiveError> {
    let bytes = archive.document(MANIFEST)?;
    let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(ArchiveError::Manifest)?;
    items.iter().map(|item| candidate(archive, item)).collect()
}

fn candidate(archive: &mut Archive, item: &Item) -> Result<Candidate, ArchiveError> {
    let layers = item.layers.as_deref().unwrap_or_default();
    let config = archive.document(&item.config)?;
    let (_, diff_ids) = manifest::parse_config(&config, layers.len())
        .map_err(|source| ArchiveError::Config(item.config.clone(), source))?;
    let config_digest = Digest::of(&config);
    let mut descriptors = Vec::new();
    for (name, diff_id) in layers.iter().zip(diff_ids) {
        let content = archive.members.get(name)?.clone();
        let (media_type, digest) = identify(archive, &content, diff_id)?;
        descriptors.push(descriptor(media_type, content.size(), digest)?);
        archive.blobs.insert(digest, content);
    }
    let size = config.len() as u64;
    archive.blobs.insert(config_digest, Content::Made(config));
    let manifest = compose(
        descriptor(MediaType::ImageConfig, size, config_digest)?,
        descriptors,
    )?;
    let blob = Blob {
        media_type: MediaType::ImageManifest,
        digest: Digest::of(&manifest),
        size: manifest.len() as u64,
    };
    archive.blobs.insert(blob.digest, Content::Made(manifest));
    let names = item
        .repo_tags
        .iter()
        .flatten()
        .map(|name| parse_name(name))
        .collect::<Result<_, _>>()?;
    Ok(Candidate {
        blob,
        names,
        label: None,
    })
}

/// What a layer is as a blob. A plain tar file has its diff_id as its digest; that it truly has is checked when it
/// is read.
fn identify(
    archive: &Archive,
    content: &Content,
    diff_id: Digest,
) -> Result<(MediaType, Digest), ArchiveError> {
    let mut reader = archive.members.read(content).map_err(ArchiveError::Read)?;
    let mut magic = Vec::new();
    reader
        .by_ref()
        .take(4)
        .read_to_end(&mut magic)
        .map_err(ArchiveError::Read)?;
    let media_type = match import::sniff(&magic) {
        Compression::None => return Ok((MediaType::ImageLayer, diff_id)),
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    };
    let mut hashed = Hashed::new(magic.as_slice().chain(reader), Algorithm::Sha256);
    std::io::copy(&mut hashed, &mut std::io::sink()).map_err(ArchiveError::Read)?;
    Ok((media_type, hashed.finish().1))
}

fn descriptor(
    media_type: MediaType,
    size: u64,
    digest: Digest,
) -> Result<Descriptor, ArchiveError> {
    let digest: oci_spec::image::Digest =
        digest.to_string().parse().map_err(ArchiveError::Compose)?;
    Ok(Descriptor::new(media_type, size, digest))
}

fn compose(config: Descriptor, layers: Vec<Descriptor>) -> Result<Vec<u8>, ArchiveError> {
    let manifest: ImageManifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .map_err(ArchiveError::Compose)?;
    manifest
        .to_string()
        .map(String::into_bytes)
        .map_err(ArchiveError::Compose)
}

fn parse_name(name: &str) -> Result<Reference, ArchiveError> {
    let reference: Reference = name.parse().map_err(|source| ArchiveError::Name {
        name: name.into(),
        source,
    })?;
    match reference.digest() {
        Some(_) => Err(ArchiveError::PinnedName(name.into())),
        None => Ok(reference),
    }
}
