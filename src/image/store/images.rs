//! Images that are in the store: opening one for use, listing all.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use oci_spec::image::ImageConfiguration;

use super::{Kind, Record, Store, StoreError, files};
use crate::image::{
    digest::Digest,
    healthcheck::{self, Healthcheck},
    manifest::{self, MAX_DOCUMENT, ManifestError},
    reference::Reference,
    rootfs::Rootfs,
};

/// An image ready to be run. It is not removed from the store before this is dropped.
#[derive(Debug)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Digest of its configuration: the ID that Docker shows.
    pub id: Digest,
    /// The name it was asked for by, if it was by one.
    pub reference: Option<Reference>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its health check, which that does not hold.
    pub healthcheck: Option<Healthcheck>,
    /// The files that make up its root file system.
    pub rootfs: Rootfs,
    _lease: Lease,
}

/// A shared lock on the record of an image.
#[derive(Debug)]
pub(super) struct Lease {
    _record: File,
}

/// An image as lists show it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names with what each denotes where it came from.
    pub names: Vec<(Reference, Digest)>,
    /// Its configuration, where it is not damaged.
    pub config: Option<ImageConfiguration>,
    /// Bytes of its root file system on this disk, shared layers counted in full.
    pub size: u64,
}

impl Store {
    /// Opens the image of a manifest, which is in the store.
    pub(crate) fn image(
        &self,
        digest: &Digest,
        reference: Option<Reference>,
    ) -> Result<Image, StoreError> {
        let (record, lease) = self.lease(digest)?;
        let (config, healthcheck) = self.config(digest, &record)?;
        let layers: Vec<PathBuf> = record
            .layers
            .iter()
            .map(|layer| self.path(Kind::Layers, &layer.diff_id))
            .collect();
        let rootfs =
            Rootfs::open(&self.path(Kind::Rootfs, &record.rootfs), &layers).map_err(|source| {
                StoreError::Rootfs {
                    image: digest.to_string(),
                    source,
                }
            })?;
        Ok(Image {
            digest: *digest,
            id: record.config,
            reference,
            config,
            healthcheck,
            rootfs,
            _lease: lease,
        })
    }

    /// Reads a record and keeps its image in the store for as long as the lease lives.
    pub(super) fn lease(&self, digest: &Digest) -> Result<(Record, Lease), StoreError> {
        let path = self.path(Kind::Images, digest);
        let unknown = || StoreError::Unknown(digest.to_string());
        let file = files::open(&path).map_err(|error| {
            if error.is_missing() {
                unknown()
            } else {
                error.into()
            }
        })?;
        files::lock_shared(&file, &path)?;
        // Removed between the two: the lock is on a file that nobody looks at any more.
        let metadata = file
            .metadata()
            .map_err(|source| files::FileError::Read(path.clone(), source))?;
        if metadata.nlink() == 0 {
            return Err(unknown());
        }
        let record = files::read_record(&file, &path)?;
        Ok((record, Lease { _record: file }))
    }

    fn config(
        &self,
        image: &Digest,
        record: &Record,
    ) -> Result<(ImageConfiguration, Option<Healthcheck>), StoreError> {
        let path = self.path(Kind::Blobs, &record.config);
        let bytes = files::read(&files::open(&path)?, &path, MAX_DOCUMENT)?;
        let refused = |source| StoreError::Config {
            image: image.to_string(),
            source,
        };
        let (config, _) = manifest::parse_config(&bytes, record.layers.len()).map_err(refused)?;
        let healthcheck = healthcheck::parse(&bytes)
            .map_err(|error| refused(ManifestError::ConfigSyntax(error)))?;
        Ok((config, healthcheck))
    }

    /// The record of an image, if it is in the store.
    pub(crate) fn record(&self, digest: &Digest) -> Result<Option<Record>, StoreError> {
        let path = self.path(Kind::Images, digest);
        match files::open(&path) {
            Ok(file) => Ok(Some(files::read_record(&file, &path)?)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The records of all images, by the digests of their manifests.
    pub(crate) fn records(&self) -> Result<BTreeMap<Digest, Record>, StoreError> {
        let mut records = BTreeMap::new();
        for digest in self.digests(Kind::Images)? {
            if let Some(record) = self.record(&digest)? {
                records.insert(digest, record);
            }
        }
        Ok(records)
    }

    /// The digests of everything of one kind.
    pub(crate) fn digests(&self, kind: Kind) -> Result<Vec<Digest>, StoreError> {
        let folder = self.root.join(kind.folder());
        let mut digests = Vec::new();
        for algorithm in files::list(&folder)? {
            for hex in files::list(&folder.join(&algorithm))? {
                digests.extend(format!("{algorithm}:{hex}").parse::<Digest>());
            }
        }
        Ok(digests)
    }

    /// The one image whose ID begins with `text`, with or without `sha256:`.
    pub(super) fn find_id(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.is_empty()
            || digits.len() > 64
            || !digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Ok(None);
        }
        let mut found: BTreeMap<Digest, Digest> = BTreeMap::new();
        for (manifest, record) in self.records()? {
            if record.config.hex().starts_with(digits) {
                found.insert(record.config, manifest);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.into_values().next()),
            count => Err(StoreError::AmbiguousId {
                id: text.into(),
                count,
            }),
        }
    }

    /// All images, those without a name last.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read. An image that is removed meanwhile is left out.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut names: BTreeMap<Digest, Vec<(Reference, Digest)>> = BTreeMap::new();
        for (reference, record) in self.names()? {
            names
                .entry(record.manifest)
                .or_default()
                .push((reference, record.target));
        }
        let mut images = Vec::new();
        for (digest, record) in self.records()? {
            images.push(Listed {
                digest,
                id: record.config,
                names: names.remove(&digest).unwrap_or_default(),
                config: self.config(&digest, &record).ok().map(|(config, _)| config),
                size: self.size(&record),
            });
        }
        images.sort_by_key(|image| {
            (
                image.names.is_empty(),
                image.names.first().map(|name| name.0.clone()),
            )
        });
        Ok(images)
    }

    /// Bytes of an image's root file system on this disk.
    pub(super) fn size(&self, record: &Record) -> u64 {
        let layers = record
            .layers
            .iter()
            .map(|layer| self.layer_bytes(&layer.diff_id));
        let metadata = fs::metadata(self.path(Kind::Rootfs, &record.rootfs));
        layers.sum::<u64>() + metadata.map_or(0, |metadata| metadata.len())
    }

    /// Bytes of a layer's contents on this disk.
    pub(super) fn layer_bytes(&self, diff_id: &Digest) -> u64 {
        let data = self.path(Kind::Layers, diff_id).join("data");
        fs::metadata(data).map_or(0, |metadata| metadata.len())
    }
}
