//! What images of the store are made of, for those who pass them on: documents and blobs as they came.

use std::{fs::File, path::PathBuf};

use serde_json::Value;

use super::{
    Kind, NameRecord, Record, Store, StoreError, Transaction,
    files::{self, FileError},
    images::Lease,
};
use crate::image::{digest::Digest, manifest::MAX_DOCUMENT, reference::Reference};

/// An image as it came. It is not removed from the store before this is dropped.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// What the name that it was asked for by denotes where it came from, or its manifest.
    pub target: Digest,
    /// The name it was asked for by.
    pub reference: Option<Reference>,
    record: Record,
    _lease: Lease,
}

impl Contents {
    /// Its configuration, which is a blob.
    pub fn config(&self) -> Digest {
        self.record.config
    }

    /// Its layers as blobs, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = Digest> {
        self.record.layers.iter().map(|layer| layer.blob)
    }
}

/// An image with everything that is to be said about it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its ID.
    pub id: Digest,
    /// Its names with what each denotes where it came from.
    pub names: Vec<(Reference, Digest)>,
    /// Its configuration, with whatever is in it.
    pub config: Value,
    /// Bytes of its root file system on this disk.
    pub size: u64,
    /// Its layers, lowest first: the diff_id and the bytes on this disk.
    pub layers: Vec<(Digest, u64)>,
}

impl Store {
    /// Finds an image by its name, ID or the first digits of it.
    pub(crate) fn contents(&self, name: &str) -> Result<Contents, StoreError> {
        let (manifest, target, reference) = self.find(name)?;
        let (record, lease) = self.lease(&manifest)?;
        Ok(Contents {
            manifest,
            target,
            reference,
            record,
            _lease: lease,
        })
    }

    /// What [`Store::resolve`] finds: the manifest, what the name denotes, and the name.
    pub(crate) fn find(
        &self,
        name: &str,
    ) -> Result<(Digest, Digest, Option<Reference>), StoreError> {
        if !name.starts_with("sha256:")
            && let Ok(reference) = self.short_names.parse(name)
            && let Some(NameRecord { manifest, target }) = self.find_name(&reference)?
        {
            return Ok((manifest, target, Some(reference)));
        }
        match self.find_id(name)? {
            Some(manifest) => Ok((manifest, manifest, None)),
            None => Err(StoreError::Unknown(name.into())),
        }
    }

    /// A blob and its size.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<(File, u64), FileError> {
        let path = self.path(Kind::Blobs, digest);
        let file = files::open(&path)?;
        let size = file
            .metadata()
            .map_err(|source| FileError::Read(path, source))?
            .len();
        Ok((file, size))
    }

    /// A manifest or a configuration.
    pub(crate) fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, FileError> {
        let path = self.path(Kind::Blobs, digest);
        files::read(&files::open(&path)?, &path, MAX_DOCUMENT)
    }

    /// Everything about an image.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`] where there is none of this name or ID.
    pub fn describe(&self, name: &str) -> Result<Description, StoreError> {
        let image = self.contents(name)?;
        let bytes = self.read_document(&image.config())?;
        let path = || PathBuf::from(image.config().to_string());
        let config =
            serde_json::from_slice(&bytes).map_err(|source| FileError::Damaged(path(), source))?;
        let names = self.names()?;
        let names = names
            .into_iter()
            .filter(|(_, record)| record.manifest == image.manifest);
        let layers = image
            .record
            .layers
            .iter()
            .map(|layer| (layer.diff_id, self.layer_bytes(&layer.diff_id)));
        Ok(Description {
            id: image.config(),
            names: names.map(|(name, record)| (name, record.target)).collect(),
            config,
            size: self.size(&image.record),
            layers: layers.collect(),
        })
    }

    /// Gives the image of a name or an ID another name, which it is taken from what had it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`] where there is no such image.
    pub fn tag(&self, name: &str, reference: Reference) -> Result<(), StoreError> {
        let image = self.contents(name)?;
        let mut transaction = Transaction::begin(self)?;
        transaction.add_name(
            reference,
            NameRecord {
                manifest: image.manifest,
                target: image.target,
            },
        );
        transaction.commit()
    }
}
